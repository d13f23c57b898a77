//! What the state of a node means: conditions, taints, evictions. No I/O.

use crate::object;
use crate::taints::{self, NO_EXECUTE, NO_SCHEDULE};
use k8s_openapi::api::core::v1::{Node, NodeCondition, Pod, Taint};
use k8s_openapi::jiff::Timestamp;
use std::time::Duration;

/// Conditions a silent kubelet no longer vouches for.
const VOUCHED: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];

/// A condition of the node.
pub(super) fn condition<'a>(node: &'a Node, kind: &str) -> Option<&'a NodeCondition> {
    node.status
        .as_ref()?
        .conditions
        .as_ref()?
        .iter()
        .find(|condition| condition.type_ == kind)
}

/// The status of the node's Ready condition; without one, False for new nodes.
pub(super) fn ready(node: &Node) -> &str {
    condition(node, "Ready").map_or("False", |ready| ready.status.as_str())
}

/// The conditions to write when the node has been silent for too long; empty
/// when they say so already.
pub(super) fn silent_conditions(node: &Node, now: Timestamp) -> Vec<NodeCondition> {
    VOUCHED
        .iter()
        .filter_map(|kind| {
            let known = condition(node, kind);
            if known.is_some_and(|known| known.status == "Unknown") {
                return None;
            }
            let (reason, message) = match known {
                Some(_) => ("NodeStatusUnknown", "Kubelet stopped posting node status."),
                None => (
                    "NodeStatusNeverUpdated",
                    "Kubelet never posted node status.",
                ),
            };
            Some(NodeCondition {
                type_: (*kind).into(),
                status: "Unknown".into(),
                reason: Some(reason.into()),
                message: Some(message.into()),
                last_heartbeat_time: known.and_then(|known| known.last_heartbeat_time.clone()),
                last_transition_time: Some(object::time(now)),
            })
        })
        .collect()
}

/// Taints that the node's conditions and cordon mean.
pub(crate) fn state_taints(node: &Node) -> Vec<Taint> {
    let mut all = Vec::new();
    match ready(node) {
        "True" => {}
        "Unknown" => {
            all.extend([NO_SCHEDULE, NO_EXECUTE].map(|effect| (taints::UNREACHABLE, effect)))
        }
        _ => all.extend([NO_SCHEDULE, NO_EXECUTE].map(|effect| (taints::NOT_READY, effect))),
    }
    for (kind, key) in [
        ("MemoryPressure", taints::MEMORY_PRESSURE),
        ("DiskPressure", taints::DISK_PRESSURE),
        ("PIDPressure", taints::PID_PRESSURE),
        ("NetworkUnavailable", taints::NETWORK_UNAVAILABLE),
    ] {
        if condition(node, kind).is_some_and(|condition| condition.status == "True") {
            all.push((key, NO_SCHEDULE));
        }
    }
    if node
        .spec
        .as_ref()
        .is_some_and(|spec| spec.unschedulable == Some(true))
    {
        all.push((taints::UNSCHEDULABLE, NO_SCHEDULE));
    }
    all.into_iter()
        .map(|(key, effect)| taints::taint(key, effect))
        .collect()
}

fn is_managed(taint: &Taint) -> bool {
    [
        taints::NOT_READY,
        taints::UNREACHABLE,
        taints::MEMORY_PRESSURE,
        taints::DISK_PRESSURE,
        taints::PID_PRESSURE,
        taints::NETWORK_UNAVAILABLE,
        taints::UNSCHEDULABLE,
    ]
    .contains(&taint.key.as_str())
}

/// The node's taints as they should be; none when they are.
pub(super) fn wanted_taints(node: &Node, now: Timestamp) -> Option<Vec<Taint>> {
    let known = taints::of(node);
    let wanted = state_taints(node);
    let same = |a: &Taint, b: &Taint| a.key == b.key && a.effect == b.effect;
    let right = known
        .iter()
        .filter(|taint| is_managed(taint))
        .all(|taint| wanted.iter().any(|other| same(taint, other)))
        && wanted
            .iter()
            .all(|taint| known.iter().any(|other| same(taint, other)));
    if right {
        return None;
    }
    let mut all: Vec<_> = known
        .iter()
        .filter(|taint| !is_managed(taint) || wanted.iter().any(|other| same(taint, other)))
        .cloned()
        .collect();
    for mut taint in wanted {
        if !all.iter().any(|other| same(other, &taint)) {
            if taint.effect == NO_EXECUTE {
                taint.time_added = Some(object::time(now));
            }
            all.push(taint);
        }
    }
    Some(all)
}

/// When a pod has to leave its node because of the node's taints: none if it
/// may stay, zero for at once. Like the admission plug-in of a real cluster,
/// a pod that says nothing about nodes that are not ready or unreachable
/// stays on them for `default`.
pub(super) fn eviction(
    pod: &Pod,
    taints_of_node: &[Taint],
    default: Duration,
    now: Timestamp,
) -> Option<Duration> {
    let tolerations = taints::tolerations(pod);
    let mut leave: Option<Duration> = None;
    for taint in taints_of_node {
        if taint.effect != NO_EXECUTE {
            continue;
        }
        let matching: Vec<_> = tolerations
            .iter()
            .filter(|toleration| taints::tolerates(toleration, taint))
            .collect();
        let stay = if matching.is_empty() {
            let of_state = taint.key == taints::NOT_READY || taint.key == taints::UNREACHABLE;
            Some(if of_state { default } else { Duration::ZERO })
        } else {
            // The shortest holds; those without a number hold for ever.
            matching
                .iter()
                .filter_map(|toleration| toleration.toleration_seconds)
                .min()
                .map(|seconds| Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
        };
        let Some(stay) = stay else {
            continue;
        };
        let since = taint.time_added.as_ref().map_or(now, |time| time.0);
        let left = stay.saturating_sub(object::since(now, since));
        leave = object::earliest(leave, Some(left));
    }
    leave
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use serde_json::{Value, json};

    fn node(value: Value) -> Node {
        serde_json::from_value(value).unwrap()
    }

    fn now() -> Timestamp {
        "2026-01-01T00:01:40Z".parse().unwrap()
    }

    fn keys(taints: &[Taint]) -> Vec<String> {
        taints
            .iter()
            .map(|taint| format!("{}:{}", taint.key, taint.effect))
            .collect()
    }

    #[rstest]
    #[case::ready("True", &[])]
    #[case::not_ready("False", &["node.kubernetes.io/not-ready:NoSchedule", "node.kubernetes.io/not-ready:NoExecute"])]
    #[case::silent("Unknown", &["node.kubernetes.io/unreachable:NoSchedule", "node.kubernetes.io/unreachable:NoExecute"])]
    fn the_ready_condition_shows_in_taints(#[case] status: &str, #[case] expected: &[&str]) {
        let node = node(json!({"status": {"conditions": [{"type": "Ready", "status": status}]}}));
        assert_eq!(keys(&state_taints(&node)), expected);
    }

    #[test]
    fn taints_of_others_stay_and_stale_ones_go() {
        let node = node(json!({
            "spec": {"unschedulable": true, "taints": [
                {"key": "gpu", "effect": "NoSchedule"},
                {"key": "node.kubernetes.io/not-ready", "effect": "NoExecute"}]},
            "status": {"conditions": [{"type": "Ready", "status": "True"}]}}));
        assert_eq!(
            keys(&wanted_taints(&node, now()).unwrap()),
            [
                "gpu:NoSchedule",
                "node.kubernetes.io/unschedulable:NoSchedule"
            ]
        );
    }

    #[test]
    fn right_taints_are_not_written_again() {
        let mut node =
            node(json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}}));
        let taints = wanted_taints(&node, now()).unwrap();
        assert!(taints[1].time_added.is_some());
        node.spec.get_or_insert_default().taints = Some(taints);
        assert_eq!(wanted_taints(&node, now()), None);
    }

    #[test]
    fn a_silent_node_is_unknown_and_only_once() {
        let mut node =
            node(json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}}));
        let conditions = silent_conditions(&node, now());
        assert_eq!(conditions.len(), 4);
        assert_eq!(conditions[0].reason.as_deref(), Some("NodeStatusUnknown"));
        assert_eq!(
            conditions[1].reason.as_deref(),
            Some("NodeStatusNeverUpdated")
        );
        node.status.get_or_insert_default().conditions = Some(conditions);
        assert!(silent_conditions(&node, now()).is_empty());
    }

    #[rstest]
    #[case::default_of_unreachable(json!([]), "node.kubernetes.io/unreachable", Some(200))]
    #[case::other_taints_evict_at_once(json!([]), "maintenance", Some(0))]
    #[case::for_ever(json!([{"operator": "Exists"}]), "maintenance", None)]
    #[case::own_seconds(json!([{"key": "node.kubernetes.io/unreachable", "operator": "Exists", "tolerationSeconds": 130}]),
        "node.kubernetes.io/unreachable", Some(30))]
    #[case::past(json!([{"operator": "Exists", "tolerationSeconds": 5}]), "maintenance", Some(0))]
    #[case::shortest_holds(json!([{"operator": "Exists", "tolerationSeconds": 500},
        {"key": "maintenance", "operator": "Exists", "tolerationSeconds": 110}]), "maintenance", Some(10))]
    fn pods_leave_when_their_toleration_ends(
        #[case] tolerations: Value,
        #[case] key: &str,
        #[case] expected: Option<u64>,
    ) {
        let pod: Pod =
            serde_json::from_value(json!({"spec": {"containers": [], "tolerations": tolerations}}))
                .unwrap();
        let mut taint = taints::taint(key, NO_EXECUTE);
        taint.time_added = Some(object::time("2026-01-01T00:00:00Z".parse().unwrap()));
        let taints = [taint, taints::taint("other", NO_SCHEDULE)];
        assert_eq!(
            eviction(&pod, &taints, Duration::from_secs(300), now()),
            expected.map(Duration::from_secs)
        );
    }
}
