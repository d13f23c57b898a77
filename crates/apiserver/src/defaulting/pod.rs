//! Defaults of pods and pod templates.

use super::{child, each, existing, pair, quantities, set, text, unset};
use serde_json::{Map, Value, json};

/// A pod: what templates get, and what only pods get.
pub(super) fn pod(object: &mut Map<String, Value>) {
    let spec = child(object, "spec");
    pod_spec(spec);
    set(spec, "enableServiceLinks", json!(true));
    for list in ["initContainers", "containers"] {
        for container in each(spec, list) {
            requests_from_limits(child(container, "resources"));
        }
    }
    let quality = quality_of_service(spec);
    let status = child(object, "status");
    set(status, "phase", json!("Pending"));
    set(status, "qosClass", json!(quality));
    pair(status, "podIP", "podIPs", |ip| json!({"ip": ip}));
    pair(status, "hostIP", "hostIPs", |ip| json!({"ip": ip}));
}

/// The pod template of a workload.
pub(super) fn template(spec: &mut Map<String, Value>) {
    let template = child(spec, "template");
    child(template, "metadata");
    pod_spec(child(template, "spec"));
}

fn pod_spec(spec: &mut Map<String, Value>) {
    set(spec, "dnsPolicy", json!("ClusterFirst"));
    set(spec, "restartPolicy", json!("Always"));
    set(spec, "securityContext", json!({}));
    set(spec, "terminationGracePeriodSeconds", json!(30));
    set(spec, "schedulerName", json!("default-scheduler"));
    let host_network = spec.get("hostNetwork") == Some(&Value::Bool(true));
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for each_container in each(spec, list) {
            container(
                each_container,
                host_network && list != "ephemeralContainers",
            );
        }
    }
    for each_volume in each(spec, "volumes") {
        volume(each_volume);
    }
    for claim in each(spec, "topologySpreadConstraints") {
        set(claim, "whenUnsatisfiable", json!("DoNotSchedule"));
    }
    // The old name of a service account is kept in step with the new one.
    if !unset(spec, "serviceAccountName") {
        let name = spec["serviceAccountName"].clone();
        set(spec, "serviceAccount", name);
    } else if !unset(spec, "serviceAccount") {
        let name = spec["serviceAccount"].clone();
        set(spec, "serviceAccountName", name);
    }
    quantities(spec, "overhead");
}

fn container(container: &mut Map<String, Value>, host_network: bool) {
    set(
        container,
        "terminationMessagePath",
        json!("/dev/termination-log"),
    );
    set(container, "terminationMessagePolicy", json!("File"));
    let policy = pull_policy(text(container, "image"));
    set(container, "imagePullPolicy", json!(policy));
    let resources = child(container, "resources");
    quantities(resources, "limits");
    quantities(resources, "requests");
    for port in each(container, "ports") {
        set(port, "protocol", json!("TCP"));
        if host_network && let Some(number) = port.get("containerPort").cloned() {
            set(port, "hostPort", number);
        }
    }
    for variable in each(container, "env") {
        if let Some(source) = existing(variable, "valueFrom") {
            value_source(source);
        }
    }
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let Some(probe) = existing(container, name) else {
            continue;
        };
        set(probe, "timeoutSeconds", json!(1));
        set(probe, "periodSeconds", json!(10));
        set(probe, "successThreshold", json!(1));
        set(probe, "failureThreshold", json!(3));
        for (field, default) in [
            ("timeoutSeconds", 1),
            ("periodSeconds", 10),
            ("successThreshold", 1),
            ("failureThreshold", 3),
        ] {
            if probe.get(field) == Some(&json!(0)) {
                probe.insert(field.into(), json!(default));
            }
        }
        handler(probe);
    }
    if let Some(lifecycle) = existing(container, "lifecycle") {
        for name in ["postStart", "preStop"] {
            if let Some(hook) = existing(lifecycle, name) {
                handler(hook);
            }
        }
    }
}

/// What a probe or a hook does.
fn handler(handler: &mut Map<String, Value>) {
    if let Some(get) = existing(handler, "httpGet") {
        set(get, "path", json!("/"));
        set(get, "scheme", json!("HTTP"));
    }
    if let Some(grpc) = existing(handler, "grpc") {
        grpc.entry("service").or_insert_with(|| json!(""));
    }
}

fn value_source(source: &mut Map<String, Value>) {
    if let Some(field) = existing(source, "fieldRef") {
        set(field, "apiVersion", json!("v1"));
    }
    if let Some(field) = existing(source, "resourceFieldRef") {
        set(field, "divisor", json!("0"));
        if field["divisor"].is_number() {
            field["divisor"] = Value::String(field["divisor"].to_string());
        }
    }
}

/// `Always` for the tag `latest` or none, else `IfNotPresent`.
fn pull_policy(image: &str) -> &'static str {
    if image.contains('@') {
        return "IfNotPresent";
    }
    let last = image.rsplit('/').next().unwrap_or(image);
    match last.split_once(':') {
        None | Some((_, "latest")) => "Always",
        Some(_) => "IfNotPresent",
    }
}

fn volume(volume: &mut Map<String, Value>) {
    if volume.keys().all(|key| key == "name") {
        volume.insert("emptyDir".into(), json!({}));
    }
    // 0644, the mode of files in volumes made from objects.
    const MODE: u32 = 0o644;
    for name in ["secret", "configMap", "downwardAPI", "projected"] {
        let Some(source) = existing(volume, name) else {
            continue;
        };
        set(source, "defaultMode", json!(MODE));
        for item in each(source, "items") {
            value_source(item);
        }
        for projection in each(source, "sources") {
            if let Some(token) = existing(projection, "serviceAccountToken") {
                set(token, "expirationSeconds", json!(3600));
            }
            if let Some(downward) = existing(projection, "downwardAPI") {
                for item in each(downward, "items") {
                    value_source(item);
                }
            }
        }
    }
    if let Some(host_path) = existing(volume, "hostPath") {
        host_path.entry("type").or_insert_with(|| json!(""));
    }
    if let Some(empty) = existing(volume, "emptyDir")
        && empty.get("sizeLimit").is_some_and(Value::is_number)
    {
        let size = empty["sizeLimit"].to_string();
        empty.insert("sizeLimit".into(), json!(size));
    }
    if let Some(ephemeral) = existing(volume, "ephemeral")
        && let Some(template) = existing(ephemeral, "volumeClaimTemplate")
    {
        set(child(template, "spec"), "volumeMode", json!("Filesystem"));
    }
}

fn requests_from_limits(resources: &mut Map<String, Value>) {
    let Some(limits) = resources.get("limits").and_then(Value::as_object).cloned() else {
        return;
    };
    if limits.is_empty() {
        return;
    }
    let requests = child(resources, "requests");
    for (name, limit) in limits {
        requests.entry(name).or_insert(limit);
    }
}

/// Guaranteed when every container's requests of CPU and memory equal its
/// limits, BestEffort when none asks for anything, else Burstable.
fn quality_of_service(spec: &Map<String, Value>) -> &'static str {
    let mut guaranteed = true;
    let mut any = false;
    let containers = ["initContainers", "containers"]
        .iter()
        .filter_map(|list| spec.get(*list).and_then(Value::as_array))
        .flatten();
    for container in containers {
        let amount = |field: &str, resource: &str| {
            container
                .get("resources")
                .and_then(|resources| resources.get(field))
                .and_then(|amounts| amounts.get(resource))
        };
        for resource in ["cpu", "memory"] {
            let (request, limit) = (amount("requests", resource), amount("limits", resource));
            any |= request.is_some() || limit.is_some();
            guaranteed &= limit.is_some() && request == limit;
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}
