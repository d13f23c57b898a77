//! Which nodes get a pod, which pods go. No I/O.

use crate::create;
use crate::intstr;
use crate::object;
use crate::pods;
use crate::revision::HASH;
use crate::scheduler;
use crate::taints::{self, NO_EXECUTE, NO_SCHEDULE};
use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetSpec, DaemonSetStatus};
use k8s_openapi::api::core::v1::{
    Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, Toleration,
};
use k8s_openapi::jiff::Timestamp;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// A failed pod is replaced no sooner than this (seconds) after it was made.
const FAILED_PAUSE: i64 = 10;

/// The next writes and the status, and when to look again.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) create: Vec<Pod>,
    pub(super) delete: Vec<Arc<Pod>>,
    pub(super) status: DaemonSetStatus,
    pub(super) deadline: Option<Duration>,
}

/// The pod for a node: bound to it by affinity, as the scheduler places it.
fn pod_for(set: &DaemonSet, spec: &DaemonSetSpec, hash: &str, node: Option<&str>) -> Pod {
    let reference = object::controller_reference("DaemonSet", &set.metadata);
    let mut pod = create::pod(&set.metadata, &reference, &spec.template);
    pod.metadata.generate_name = Some(format!("{}-", object::name(&set.metadata)));
    pod.metadata
        .labels
        .get_or_insert_default()
        .insert(HASH.into(), hash.to_owned());
    let pod_spec = pod.spec.get_or_insert_default();
    let on_host = pod_spec.host_network == Some(true);
    let tolerations = pod_spec.tolerations.get_or_insert_default();
    let mut add = |key: &str, effect: &str| {
        let toleration = Toleration {
            key: Some(key.into()),
            operator: Some("Exists".into()),
            effect: Some(effect.into()),
            ..Default::default()
        };
        if !tolerations.contains(&toleration) {
            tolerations.push(toleration);
        }
    };
    add(taints::NOT_READY, NO_EXECUTE);
    add(taints::UNREACHABLE, NO_EXECUTE);
    add(taints::DISK_PRESSURE, NO_SCHEDULE);
    add(taints::MEMORY_PRESSURE, NO_SCHEDULE);
    add(taints::PID_PRESSURE, NO_SCHEDULE);
    add(taints::UNSCHEDULABLE, NO_SCHEDULE);
    if on_host {
        add(taints::NETWORK_UNAVAILABLE, NO_SCHEDULE);
    }
    if let Some(node) = node {
        let required = pod_spec
            .affinity
            .get_or_insert_default()
            .node_affinity
            .get_or_insert_default()
            .required_during_scheduling_ignored_during_execution
            .get_or_insert(NodeSelector {
                node_selector_terms: vec![NodeSelectorTerm::default()],
            });
        // The controller has matched the terms itself; the name is enough.
        required.node_selector_terms = vec![NodeSelectorTerm {
            match_fields: Some(vec![NodeSelectorRequirement {
                key: "metadata.name".into(),
                operator: "In".into(),
                values: Some(vec![node.to_owned()]),
            }]),
            match_expressions: None,
        }];
    }
    pod
}

/// The node a pod of a DaemonSet is for, bound yet or not.
pub(super) fn target(pod: &Pod) -> Option<&str> {
    pods::node(pod).or_else(|| {
        pod.spec
            .as_ref()?
            .affinity
            .as_ref()?
            .node_affinity
            .as_ref()?
            .required_during_scheduling_ignored_during_execution
            .as_ref()?
            .node_selector_terms
            .iter()
            .flat_map(|term| term.match_fields.iter().flatten())
            .find(|rule| rule.key == "metadata.name")?
            .values
            .as_ref()?
            .first()
            .map(String::as_str)
    })
}

fn most_unavailable(spec: &DaemonSetSpec, nodes: i32) -> i32 {
    spec.update_strategy
        .as_ref()
        .and_then(|strategy| strategy.rolling_update.as_ref()?.max_unavailable.as_ref())
        .map_or(1, |most| intstr::scaled(most, nodes, true))
        // With a surge instead, pods are replaced one at a time all the same.
        .max(1)
}

/// Plans the next writes; `hash` is the template's.
pub(super) fn plan(
    set: &DaemonSet,
    nodes: &[Arc<Node>],
    pods: &[Arc<Pod>],
    hash: &str,
    now: Timestamp,
) -> Plan {
    let mut plan = Plan::default();
    let Some(spec) = &set.spec else {
        return plan;
    };
    let mut by_node: BTreeMap<&str, Vec<&Arc<Pod>>> = BTreeMap::new();
    for pod in pods {
        if let Some(node) = target(pod) {
            by_node.entry(node).or_default().push(pod);
        }
    }
    let probe = pod_for(set, spec, hash, None);
    let fixed = spec
        .template
        .spec
        .as_ref()
        .and_then(|spec| spec.node_name.as_deref())
        .filter(|name| !name.is_empty());
    let min_ready = spec.min_ready_seconds.unwrap_or(0);
    let (mut desired, mut current, mut misplaced) = (0, 0, 0);
    let (mut ready, mut available, mut updated) = (0, 0, 0);
    let mut outdated: Vec<(bool, Arc<Pod>)> = Vec::new();
    let mut nodes = nodes.to_vec();
    nodes.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
    for node in &nodes {
        let name = object::name(&node.metadata);
        let (run, stay) = if fixed.is_some_and(|fixed| fixed != name) {
            (false, false)
        } else {
            scheduler::admits(&probe, node)
        };
        let mut here = by_node.remove(name).unwrap_or_default();
        here.sort_by_key(|pod| {
            (
                pods::node(pod).is_none(),
                object::created(&pod.metadata),
                pod.metadata.name.clone(),
            )
        });
        let mut kept: Option<&Arc<Pod>> = None;
        for pod in here {
            if object::is_deleting(&pod.metadata) {
                // Its successor waits until it is gone.
                kept = kept.or(Some(pod));
            } else if pods::is_finished(pod) {
                let again = object::after(object::created(&pod.metadata), FAILED_PAUSE);
                let left = object::until(now, again);
                if left.is_zero() {
                    plan.delete.push(pod.clone());
                } else {
                    plan.deadline = object::earliest(plan.deadline, Some(left));
                }
                kept = kept.or(Some(pod));
            } else if !stay || kept.is_some_and(|kept| pods::is_active(kept)) {
                plan.delete.push(pod.clone());
                misplaced += i32::from(!run);
                continue;
            } else {
                kept = Some(pod);
            }
        }
        desired += i32::from(run);
        let Some(pod) = kept else {
            if run {
                plan.create.push(pod_for(set, spec, hash, Some(name)));
            }
            continue;
        };
        if !run {
            misplaced += 1;
            continue;
        }
        current += 1;
        let left = pods::available_in(pod, min_ready, now);
        let serves = left == Some(Duration::ZERO) && pods::is_active(pod);
        if let Some(left) = left.filter(|left| !left.is_zero()) {
            plan.deadline = object::earliest(plan.deadline, Some(left));
        }
        ready += i32::from(pods::is_ready(pod));
        available += i32::from(serves);
        if object::label(&pod.metadata, HASH) == Some(hash) {
            updated += 1;
        } else if pods::is_active(pod) {
            outdated.push((serves, pod.clone()));
        }
    }
    plan.status = DaemonSetStatus {
        desired_number_scheduled: desired,
        current_number_scheduled: current,
        number_misscheduled: misplaced,
        number_ready: ready,
        number_available: Some(available).filter(|count| *count != 0),
        number_unavailable: Some(desired - available).filter(|count| *count > 0),
        updated_number_scheduled: Some(updated).filter(|count| *count != 0),
        observed_generation: set.metadata.generation,
        ..set.status.clone().unwrap_or_default()
    };
    let rolling = spec
        .update_strategy
        .as_ref()
        .and_then(|strategy| strategy.type_.as_deref())
        != Some("OnDelete");
    if rolling {
        let mut budget = most_unavailable(spec, desired) - (desired - available);
        for (serves, pod) in outdated {
            // One that does not serve is missing already.
            if serves {
                if budget <= 0 {
                    continue;
                }
                budget -= 1;
            }
            plan.delete.push(pod);
        }
    }
    if object::is_deleting(&set.metadata) {
        plan.create.clear();
        plan.delete.clear();
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use serde_json::{Value, json};

    fn set(spec: Value) -> DaemonSet {
        let mut all = json!({"selector": {}, "template": {"metadata": {"labels": {"app": "agent"}},
            "spec": {"containers": []}}});
        all.as_object_mut()
            .unwrap()
            .extend(spec.as_object().unwrap().clone());
        serde_json::from_value(json!({"metadata": {"name": "agent", "uid": "u"}, "spec": all}))
            .unwrap()
    }

    fn node(name: &str, ready: &str, taints: Value) -> Arc<Node> {
        Arc::new(
            serde_json::from_value(json!({"metadata": {"name": name, "labels": {"name": name}},
                "spec": {"taints": taints},
                "status": {"conditions": [{"type": "Ready", "status": ready}]}}))
            .unwrap(),
        )
    }

    fn pod(name: &str, node: &str, hash: &str, ready: bool) -> Arc<Pod> {
        let ready = if ready { "True" } else { "False" };
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {"name": name, "labels": {HASH: hash}},
                "spec": {"nodeName": node, "containers": []},
                "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": ready}]}}))
            .unwrap(),
        )
    }

    fn step(set: &DaemonSet, nodes: &[Arc<Node>], pods: &[Arc<Pod>]) -> (Vec<String>, Vec<String>) {
        let plan = plan(set, nodes, pods, "new", Timestamp::UNIX_EPOCH);
        (
            plan.create
                .iter()
                .map(|pod| target(pod).unwrap().to_owned())
                .collect(),
            plan.delete
                .iter()
                .map(|pod| object::name(&pod.metadata).to_owned())
                .collect(),
        )
    }

    fn none() -> Vec<String> {
        Vec::new()
    }

    #[test]
    fn each_node_gets_one_pod() {
        let nodes = [node("a", "True", json!([])), node("b", "True", json!([]))];
        let (create, delete) = step(&set(json!({})), &nodes, &[pod("p", "a", "new", true)]);
        assert_eq!((create, delete), (vec!["b".to_owned()], none()));
    }

    #[rstest]
    #[case::plain(json!([]), true)]
    #[case::cordoned(json!([{"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}]), true)]
    #[case::not_tolerated(json!([{"key": "gpu", "effect": "NoSchedule"}]), false)]
    fn taints_decide_about_new_pods(#[case] taints: Value, #[case] expected: bool) {
        let (create, _) = step(&set(json!({})), &[node("a", "True", taints)], &[]);
        assert_eq!(!create.is_empty(), expected);
    }

    #[rstest]
    #[case::unreachable("node.kubernetes.io/unreachable", true)]
    #[case::other("drain", false)]
    fn pods_stay_on_nodes_in_trouble_but_not_against_other_taints(
        #[case] key: &str,
        #[case] stays: bool,
    ) {
        let nodes = [node(
            "a",
            "True",
            json!([{"key": key, "effect": "NoExecute"}]),
        )];
        let (_, delete) = step(&set(json!({})), &nodes, &[pod("p", "a", "new", true)]);
        assert_eq!(delete.is_empty(), stays);
    }

    #[test]
    fn a_node_selector_limits_the_nodes() {
        let spec = json!({"template": {"spec": {"containers": [], "nodeSelector": {"name": "b"}}}});
        let nodes = [node("a", "True", json!([])), node("b", "True", json!([]))];
        let pods = [pod("p", "a", "new", true)];
        let (create, delete) = step(&set(spec), &nodes, &pods);
        assert_eq!(
            (create, delete),
            (vec!["b".to_owned()], vec!["p".to_owned()])
        );
    }

    #[test]
    fn two_pods_on_one_node_are_one_too_many() {
        let nodes = [node("a", "True", json!([]))];
        let pods = [pod("p", "a", "new", true), pod("q", "a", "new", true)];
        assert_eq!(
            step(&set(json!({})), &nodes, &pods),
            (none(), vec!["q".to_owned()])
        );
    }

    #[test]
    fn a_failed_pod_is_replaced_after_a_pause() {
        let nodes = [node("a", "True", json!([]))];
        let mut failed = (*pod("p", "a", "new", false)).clone();
        failed.status.as_mut().unwrap().phase = Some("Failed".into());
        failed.metadata.creation_timestamp = Some(object::time(Timestamp::UNIX_EPOCH));
        let pods = [Arc::new(failed)];
        let at = |second| {
            let now = Timestamp::from_second(second).unwrap();
            plan(&set(json!({})), &nodes, &pods, "new", now)
        };
        let early = at(4);
        assert!(early.delete.is_empty() && early.create.is_empty());
        assert_eq!(early.deadline, Some(Duration::from_secs(6)));
        assert_eq!(at(10).delete.len(), 1);
    }

    #[rstest]
    #[case::one_at_a_time(json!({}), &[true, true, true], 1)]
    #[case::not_while_one_is_missing(json!({}), &[true, true, false], 1)]
    #[case::as_many_as_told(json!({"updateStrategy": {"rollingUpdate": {"maxUnavailable": 2}}}), &[true, true, true], 2)]
    #[case::on_delete(json!({"updateStrategy": {"type": "OnDelete"}}), &[true, true, true], 0)]
    fn an_update_replaces_pods(
        #[case] spec: Value,
        #[case] ready: &[bool],
        #[case] expected: usize,
    ) {
        let names = ["a", "b", "c"];
        let nodes = names.map(|name| node(name, "True", json!([])));
        let pods: Vec<_> = names
            .iter()
            .zip(ready)
            .map(|(name, ready)| pod(&format!("p{name}"), name, "old", *ready))
            .collect();
        assert_eq!(step(&set(spec), &nodes, &pods).1.len(), expected);
    }

    #[test]
    fn the_status_counts_nodes() {
        let nodes = [
            node("a", "True", json!([])),
            node("b", "True", json!([])),
            node("c", "True", json!([{"key": "gpu", "effect": "NoSchedule"}])),
        ];
        let pods = [
            pod("p", "a", "new", true),
            pod("q", "b", "old", false),
            pod("r", "c", "new", true),
        ];
        let status = plan(&set(json!({})), &nodes, &pods, "new", Timestamp::UNIX_EPOCH).status;
        assert_eq!(
            (
                status.desired_number_scheduled,
                status.current_number_scheduled,
                status.number_misscheduled,
                status.number_ready,
                status.number_available,
                status.number_unavailable,
                status.updated_number_scheduled
            ),
            (2, 2, 1, 1, Some(1), Some(1), Some(1))
        );
    }
}
