//! Objects as a real API server writes them.

use std::net::IpAddr;

use podwire_api::service::{ServiceType, SessionAffinity, TrafficPolicy};
use podwire_api::{AddressType, EndpointSlice, NetworkPolicy, Node, Pod, Protocol, Service};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

fn read<T: DeserializeOwned>(object: Value) -> T {
    serde_json::from_str(&object.to_string()).expect("the object is readable")
}

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts
        .iter()
        .map(|text| text.parse().expect("an address"))
        .collect()
}

#[test]
fn a_node_has_ranges_and_internal_addresses_in_order() {
    let node: Node = read(json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": "n", "uid": "u", "resourceVersion": "7", "managedFields": [{}],
            "labels": {"topology.kubernetes.io/zone": "z"}, "annotations": {"a": "b"}},
        "spec": {"podCIDR": "10.1.0.0/24", "podCIDRs": ["10.1.0.0/24", "fd00::/64"], "taints": null},
        "status": {"addresses": [
            {"type": "Hostname", "address": "n"},
            {"type": "ExternalIP", "address": "203.0.113.9"},
            {"type": "InternalIP", "address": "192.168.64.11"},
            {"type": "InternalIP", "address": "fd00:64::11"},
        ], "conditions": null},
    }));
    assert_eq!(
        node.pod_cidrs().collect::<Vec<_>>(),
        ["10.1.0.0/24", "fd00::/64"]
    );
    assert_eq!(
        node.internal_addresses().collect::<Vec<_>>(),
        ips(&["192.168.64.11", "fd00:64::11"])
    );
    assert_eq!(node.zone(), Some("z"));
}

#[test]
fn a_node_without_a_range_has_none_and_one_with_the_older_field_has_one() {
    let node: Node = read(json!({"metadata": {"name": "n"}, "spec": null, "status": null}));
    assert_eq!(node.pod_cidrs().count(), 0);
    let node: Node = read(json!({"metadata": {"name": "n"}, "spec": {"podCIDR": "10.1.0.0/24"}}));
    assert_eq!(node.pod_cidrs().collect::<Vec<_>>(), ["10.1.0.0/24"]);
}

#[test]
fn absent_service_fields_have_their_api_defaults() {
    let service: Service = read(json!({"metadata": {"name": "s", "namespace": "d"},
        "spec": {"clusterIPs": ["10.96.0.1"], "ports": [{"port": 80}]}}));
    assert_eq!(service.spec.kind, ServiceType::ClusterIP);
    assert_eq!(service.spec.external_traffic_policy, TrafficPolicy::Cluster);
    assert_eq!(service.spec.internal_traffic_policy, TrafficPolicy::Cluster);
    assert_eq!(service.spec.session_affinity, SessionAffinity::None);
    assert_eq!(service.spec.ports[0].protocol, Protocol::Tcp);
    assert_eq!(service.spec.ports[0].node_port, None);
}

#[test]
fn a_full_service_is_read() {
    let service: Service = read(
        json!({"metadata": {"name": "s", "namespace": "d"}, "spec": {
        "type": "LoadBalancer", "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd00:96::1"],
        "externalIPs": ["203.0.113.1", "not an address"], "externalTrafficPolicy": "Local",
        "internalTrafficPolicy": "Local", "sessionAffinity": "ClientIP",
        "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 100}},
        "loadBalancerSourceRanges": [" 10.0.0.0/8"], "healthCheckNodePort": 32000,
        "ports": [{"name": "dns", "protocol": "UDP", "port": 53, "targetPort": "dns", "nodePort": 30053}]},
        "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.2", "ipMode": "Proxy"}, {"hostname": "x"}]}}}),
    );
    assert_eq!(service.spec.kind, ServiceType::LoadBalancer);
    assert_eq!(
        service.spec.cluster_ips,
        ["10.96.0.1".into(), "fd00:96::1".into()]
    );
    assert_eq!(
        service.spec.external_ips,
        ["203.0.113.1".into(), "not an address".into()]
    );
    assert_eq!(service.spec.external_traffic_policy, TrafficPolicy::Local);
    assert_eq!(service.spec.internal_traffic_policy, TrafficPolicy::Local);
    assert_eq!(service.spec.session_affinity, SessionAffinity::ClientIP);
    let config = service
        .spec
        .session_affinity_config
        .unwrap()
        .client_ip
        .unwrap();
    assert_eq!(config.timeout_seconds, Some(100));
    assert_eq!(service.spec.ports[0].node_port, Some(30053));
    assert_eq!(service.spec.ports[0].protocol, Protocol::Udp);
    assert_eq!(
        service.status.load_balancer.ingress[0].ip,
        Some("203.0.113.2".into())
    );
    assert_eq!(service.status.load_balancer.ingress[1].ip, None);
}

#[test]
fn a_headless_service_says_so() {
    let service: Service = read(
        json!({"metadata": {"name": "s"}, "spec": {"clusterIP": "None", "clusterIPs": ["None"]}}),
    );
    assert_eq!(service.spec.cluster_ips, ["None".into()]);
}

#[test]
fn nil_lists_of_a_slice_are_empty_and_absent_conditions_mean_ready() {
    let slice: EndpointSlice = read(
        json!({"metadata": {"name": "s"}, "addressType": "IPv4", "endpoints": null, "ports": null}),
    );
    assert!(slice.endpoints.is_empty() && slice.ports.is_empty());
    let slice: EndpointSlice = read(json!({
        "metadata": {"name": "web-x", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv6",
        "endpoints": [
            {"addresses": ["fd00::1"], "nodeName": "n", "zone": "z", "conditions": null,
             "hints": {"forZones": [{"name": "z"}]}},
            {"addresses": ["fd00::2"], "conditions": {"ready": false, "serving": true, "terminating": true}},
        ],
        "ports": [{"name": null, "protocol": null, "port": 8080}, {"name": "x", "port": null}]}));
    assert_eq!(slice.service_name(), Some("web"));
    assert_eq!(slice.address_type, AddressType::V6);
    assert!(slice.endpoints[0].conditions.is_ready() && slice.endpoints[0].conditions.is_serving());
    let last = slice.endpoints[1].conditions;
    assert!(!last.is_ready() && last.is_serving() && last.is_terminating());
    assert_eq!(slice.ports[0].port, Some(8080));
    assert_eq!(slice.ports[1].port, None);
}

#[test]
fn a_slice_of_names_is_no_address_family() {
    let slice: EndpointSlice = read(
        json!({"metadata": {"name": "s"}, "addressType": "FQDN", "endpoints": [{"addresses": ["example.com"]}]}),
    );
    assert_eq!(slice.address_type, AddressType::Other);
    assert_eq!(&*slice.endpoints[0].addresses[0], "example.com");
}

#[test]
fn a_pod_has_addresses_and_named_ports() {
    let pod: Pod = read(json!({"metadata": {"name": "p", "namespace": "d"},
        "spec": {"nodeName": "n", "containers": [{"name": "c", "ports": [{"name": "web", "containerPort": 80}]}]},
        "status": {"phase": "Succeeded", "podIPs": [{"ip": "10.1.0.5"}, {"ip": "fd00::5"}]}}));
    assert_eq!(pod.status.pod_ips, ips(&["10.1.0.5", "fd00::5"]));
    assert_eq!(&*pod.spec.containers[0].ports[0].name, "web");
    assert!(pod.is_finished());
}

#[test]
fn a_policy_tells_absent_selectors_from_empty_ones() {
    let policy: NetworkPolicy = read(
        json!({"metadata": {"name": "p", "namespace": "d"}, "spec": {
        "podSelector": {}, "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"from": [{"namespaceSelector": {}}, {"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}}],
            "ports": [{"port": 80, "endPort": 90}, {"port": "web", "protocol": "UDP"}, {}]}], "egress": null}}),
    );
    let from = &policy.spec.ingress[0].from;
    assert!(from[0].namespace_selector.is_some() && from[0].pod_selector.is_none());
    assert_eq!(
        &*from[1].ip_block.as_ref().unwrap().except[0],
        "10.1.0.0/16"
    );
    assert!(policy.spec.egress.is_empty());
    assert_eq!(policy.spec.ingress[0].ports.len(), 3);
}
