//! Taints of nodes and the pods that tolerate them.

use k8s_openapi::api::core::v1::{Node, Pod, Taint, Toleration};

/// The node's Ready condition is False.
pub(crate) const NOT_READY: &str = "node.kubernetes.io/not-ready";
/// The node's Ready condition is Unknown: no heartbeat.
pub(crate) const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
/// The node is cordoned.
pub(crate) const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
/// The node's NetworkUnavailable condition is True.
pub(crate) const NETWORK_UNAVAILABLE: &str = "node.kubernetes.io/network-unavailable";
/// The node's MemoryPressure condition is True.
pub(crate) const MEMORY_PRESSURE: &str = "node.kubernetes.io/memory-pressure";
/// The node's DiskPressure condition is True.
pub(crate) const DISK_PRESSURE: &str = "node.kubernetes.io/disk-pressure";
/// The node's PIDPressure condition is True.
pub(crate) const PID_PRESSURE: &str = "node.kubernetes.io/pid-pressure";

/// Keeps new pods away.
pub(crate) const NO_SCHEDULE: &str = "NoSchedule";
/// Keeps new pods away and evicts those that are there.
pub(crate) const NO_EXECUTE: &str = "NoExecute";
/// New pods go elsewhere if they can.
pub(crate) const PREFER_NO_SCHEDULE: &str = "PreferNoSchedule";

/// The node's taints.
pub(crate) fn of(node: &Node) -> &[Taint] {
    node.spec
        .as_ref()
        .and_then(|spec| spec.taints.as_deref())
        .unwrap_or_default()
}

/// The pod's tolerations.
pub(crate) fn tolerations(pod: &Pod) -> &[Toleration] {
    pod.spec
        .as_ref()
        .and_then(|spec| spec.tolerations.as_deref())
        .unwrap_or_default()
}

/// Whether one toleration tolerates one taint (KEP-166; an empty key with
/// `Exists` tolerates everything, an empty effect every effect).
pub(crate) fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let set = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    if set(&toleration.effect).is_some_and(|effect| effect != taint.effect) {
        return false;
    }
    let key = set(&toleration.key);
    if key.as_ref().is_some_and(|key| *key != taint.key) {
        return false;
    }
    match set(&toleration.operator).as_deref() {
        Some("Exists") => true,
        None | Some("Equal") => {
            key.is_some()
                && toleration.value.as_deref().unwrap_or_default()
                    == taint.value.as_deref().unwrap_or_default()
        }
        Some(_) => false,
    }
}

/// Whether any of the tolerations tolerates the taint.
pub(crate) fn is_tolerated(tolerations: &[Toleration], taint: &Taint) -> bool {
    tolerations
        .iter()
        .any(|toleration| tolerates(toleration, taint))
}

/// A taint without a value.
pub(crate) fn taint(key: &str, effect: &str) -> Taint {
    Taint {
        key: key.into(),
        effect: effect.into(),
        value: None,
        time_added: None,
    }
}

/// The taint in the words of the scheduler's messages: `{key: value}`.
pub(crate) fn describe(taint: &Taint) -> String {
    format!(
        "{{{}: {}}}",
        taint.key,
        taint.value.as_deref().unwrap_or_default()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use serde_json::{Value, json};

    #[rstest]
    #[case::same(json!({"key": "a", "value": "1", "effect": "NoSchedule"}), true)]
    #[case::every_effect(json!({"key": "a", "value": "1"}), true)]
    #[case::other_value(json!({"key": "a", "value": "2"}), false)]
    #[case::other_effect(json!({"key": "a", "value": "1", "effect": "NoExecute"}), false)]
    #[case::exists(json!({"key": "a", "operator": "Exists"}), true)]
    #[case::everything(json!({"operator": "Exists"}), true)]
    #[case::no_key_needs_exists(json!({"value": "1"}), false)]
    #[case::other_key(json!({"key": "b", "operator": "Exists"}), false)]
    fn tolerations_match_taints(#[case] toleration: Value, #[case] expected: bool) {
        let toleration: Toleration = serde_json::from_value(toleration).unwrap();
        let taint: Taint =
            serde_json::from_value(json!({"key": "a", "value": "1", "effect": "NoSchedule"}))
                .unwrap();
        assert_eq!(tolerates(&toleration, &taint), expected);
    }
}
