//! What a new pod starts with.

use serde_json::{Value, json};

use crate::object;

/// Phase, quality of service, service account and the tolerations that every
/// pod has.
pub(super) fn prepare_new(pod: &mut Value) {
    if !pod["spec"].is_object() {
        // Validation says that it is missing.
        return;
    }
    pod["status"] = json!({"phase": "Pending", "qosClass": qos_class(&pod["spec"])});
    let account = match object::text(pod, "/spec/serviceAccountName") {
        "" => match object::text(pod, "/spec/serviceAccount") {
            "" => "default".to_owned(),
            name => name.to_owned(),
        },
        name => name.to_owned(),
    };
    let spec = &mut pod["spec"];
    spec["serviceAccountName"] = account.clone().into();
    spec["serviceAccount"] = account.into();
    if spec["priority"].is_null() {
        spec["priority"] = 0.into();
    }
    if spec["preemptionPolicy"].is_null() {
        spec["preemptionPolicy"] = "PreemptLowerPriority".into();
    }
    if !spec["tolerations"].is_array() {
        spec["tolerations"] = json!([]);
    }
    if let Some(tolerations) = spec["tolerations"].as_array_mut() {
        for key in [
            "node.kubernetes.io/not-ready",
            "node.kubernetes.io/unreachable",
        ] {
            let tolerated = tolerations.iter().any(|t| {
                let effect = t["effect"].as_str().unwrap_or_default();
                let of = t["key"].as_str().unwrap_or_default();
                (of == key || of.is_empty()) && (effect == "NoExecute" || effect.is_empty())
            });
            if !tolerated {
                tolerations.push(json!({
                    "key": key, "operator": "Exists", "effect": "NoExecute",
                    "tolerationSeconds": 300,
                }));
            }
        }
    }
}

/// Guaranteed when every container limits CPU and memory and requests the
/// same, BestEffort when none asks for anything, Burstable between.
fn qos_class(spec: &Value) -> &'static str {
    let containers = ["containers", "initContainers"]
        .iter()
        .filter_map(|f| spec[f].as_array())
        .flatten();
    let (mut any, mut all) = (false, true);
    for container in containers {
        for resource in ["cpu", "memory"] {
            let request = &container["resources"]["requests"][resource];
            let limit = &container["resources"]["limits"][resource];
            any |= !request.is_null() || !limit.is_null();
            all &= !limit.is_null() && (request.is_null() || request == limit);
        }
    }
    match (any, all) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}
