//! Defaults of Services and their endpoints.

use super::{child, each, existing, set, text};
use serde_json::{Map, Value, json};

/// How long a client keeps its endpoint with `sessionAffinity: ClientIP`, seconds.
const AFFINITY_SECONDS: u32 = 10_800;

pub(super) fn service(object: &mut Map<String, Value>) {
    let spec = child(object, "spec");
    set(spec, "sessionAffinity", json!("None"));
    if text(spec, "sessionAffinity") == "None" {
        spec.remove("sessionAffinityConfig");
    }
    if text(spec, "sessionAffinity") == "ClientIP" {
        let config = child(child(spec, "sessionAffinityConfig"), "clientIP");
        set(config, "timeoutSeconds", json!(AFFINITY_SECONDS));
    }
    set(spec, "type", json!("ClusterIP"));
    for port in each(spec, "ports") {
        set(port, "protocol", json!("TCP"));
        if port.get("targetPort") == Some(&json!(0)) {
            port.remove("targetPort");
        }
        if let Some(number) = port.get("port").cloned() {
            set(port, "targetPort", number);
        }
    }
    let kind = text(spec, "type").to_owned();
    let has_external_ips = spec
        .get("externalIPs")
        .and_then(Value::as_array)
        .is_some_and(|ips| !ips.is_empty());
    let outside = matches!(kind.as_str(), "NodePort" | "LoadBalancer")
        || (kind == "ClusterIP" && has_external_ips);
    if outside {
        set(spec, "externalTrafficPolicy", json!("Cluster"));
    }
    if matches!(kind.as_str(), "ClusterIP" | "NodePort" | "LoadBalancer") {
        set(spec, "internalTrafficPolicy", json!("Cluster"));
    }
    if kind == "LoadBalancer" {
        set(spec, "allocateLoadBalancerNodePorts", json!(true));
    }
    let status = child(object, "status");
    child(status, "loadBalancer");
    if let Some(balancer) = existing(status, "loadBalancer") {
        for ingress in each(balancer, "ingress") {
            if !text(ingress, "ip").is_empty() {
                set(ingress, "ipMode", json!("VIP"));
            }
        }
    }
}

pub(super) fn endpoints(object: &mut Map<String, Value>) {
    for subset in each(object, "subsets") {
        for port in each(subset, "ports") {
            set(port, "protocol", json!("TCP"));
        }
    }
}

pub(super) fn endpoint_slice(object: &mut Map<String, Value>) {
    for port in each(object, "ports") {
        port.entry("name").or_insert_with(|| json!(""));
        set(port, "protocol", json!("TCP"));
    }
    // Both lists are required fields and never absent in what clients read.
    object.entry("endpoints").or_insert_with(|| json!([]));
    object.entry("ports").or_insert_with(|| json!([]));
}
