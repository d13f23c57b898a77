//! How many pods to make, which ones to delete, and what to report. No I/O.

use crate::object;
use crate::pods;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// Most pods made or deleted in one go.
const BURST: usize = 500;

/// The difference between the pods asked for and those there are.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Difference {
    pub(super) create: usize,
    pub(super) delete: Vec<Arc<Pod>>,
}

pub(super) fn replicas(set: &ReplicaSet) -> i32 {
    set.spec
        .as_ref()
        .and_then(|spec| spec.replicas)
        .unwrap_or(1)
        .max(0)
}

/// The difference for a set with these active pods. `related` are the active
/// pods of all sets of the same owner: a pod that shares its node with many of
/// them goes before one that stands alone.
pub(super) fn difference(
    set: &ReplicaSet,
    active: &[Arc<Pod>],
    related: &[Arc<Pod>],
) -> Difference {
    if object::is_deleting(&set.metadata) {
        return Difference::default();
    }
    let wanted = usize::try_from(replicas(set)).unwrap_or(0);
    if active.len() <= wanted {
        return Difference {
            create: (wanted - active.len()).min(BURST),
            delete: Vec::new(),
        };
    }
    let mut crowd: HashMap<&str, usize> = HashMap::new();
    for pod in related {
        *crowd
            .entry(pods::node(pod).unwrap_or_default())
            .or_default() += 1;
    }
    let mut ranked: Vec<_> = active.to_vec();
    ranked.sort_by_cached_key(|pod| Rank::of(pod, &crowd));
    ranked.truncate((active.len() - wanted).min(BURST));
    Difference {
        create: 0,
        delete: ranked,
    }
}

/// What makes a pod go before others: the least goes first (the order of
/// upstream's ActivePodsWithRanks).
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    has_node: bool,
    phase: u8,
    ready: bool,
    cost: i32,
    crowd: Reverse<usize>,
    ready_since: Reverse<Option<Timestamp>>,
    restarts: Reverse<i32>,
    created: Reverse<Timestamp>,
    name: String,
}

impl Rank {
    fn of(pod: &Pod, crowd: &HashMap<&str, usize>) -> Self {
        let ready = pods::is_ready(pod);
        let since = pods::condition(pod, "Ready")
            .and_then(|condition| condition.last_transition_time.as_ref())
            .map(|time| time.0);
        Self {
            has_node: pods::node(pod).is_some(),
            phase: match pods::phase(pod) {
                "Running" => 2,
                "Unknown" => 1,
                _ => 0,
            },
            ready,
            cost: object::annotation(&pod.metadata, "controller.kubernetes.io/pod-deletion-cost")
                .and_then(|cost| cost.parse().ok())
                .unwrap_or(0),
            crowd: Reverse(
                crowd
                    .get(pods::node(pod).unwrap_or_default())
                    .copied()
                    .unwrap_or(0),
            ),
            ready_since: Reverse(since.filter(|_| ready)),
            restarts: Reverse(pods::restarts(pod)),
            created: Reverse(object::created(&pod.metadata)),
            name: object::name(&pod.metadata).to_owned(),
        }
    }
}

/// The set's status by the pods it has, and when to look again because a pod
/// will have been ready for long enough.
pub(super) fn status(
    set: &ReplicaSet,
    owned: &[Arc<Pod>],
    failure: Option<&str>,
    now: Timestamp,
) -> (ReplicaSetStatus, Option<Duration>) {
    let spec = set.spec.clone().unwrap_or_default();
    let min_ready = spec.min_ready_seconds.unwrap_or(0);
    let wanted_labels = spec
        .template
        .and_then(|template| template.metadata)
        .and_then(|meta| meta.labels)
        .unwrap_or_default();
    let (mut replicas, mut labelled, mut ready, mut available, mut terminating) = (0, 0, 0, 0, 0);
    let mut deadline = None;
    for pod in owned {
        if pods::is_finished(pod) {
            continue;
        }
        if object::is_deleting(&pod.metadata) {
            terminating += 1;
            continue;
        }
        replicas += 1;
        let labels = crate::selector::labels(&pod.metadata);
        if wanted_labels
            .iter()
            .all(|(key, value)| labels.get(key) == Some(value))
        {
            labelled += 1;
        }
        if let Some(left) = pods::available_in(pod, min_ready, now) {
            ready += 1;
            if left.is_zero() {
                available += 1;
            } else {
                deadline = object::earliest(deadline, Some(left));
            }
        }
    }
    let old = set.status.clone().unwrap_or_default();
    let mut conditions = old.conditions.unwrap_or_default();
    match failure {
        None => conditions.retain(|condition| condition.type_ != "ReplicaFailure"),
        Some(message) => {
            let known = conditions
                .iter()
                .any(|condition| condition.type_ == "ReplicaFailure");
            if !known {
                conditions.push(ReplicaSetCondition {
                    type_: "ReplicaFailure".into(),
                    status: "True".into(),
                    reason: Some("FailedCreate".into()),
                    message: Some(message.to_owned()),
                    last_transition_time: Some(object::time(now)),
                });
            }
        }
    }
    let status = ReplicaSetStatus {
        replicas,
        fully_labeled_replicas: some_if(labelled),
        ready_replicas: some_if(ready),
        available_replicas: some_if(available),
        terminating_replicas: some_if(terminating),
        observed_generation: set.metadata.generation,
        conditions: Some(conditions).filter(|conditions| !conditions.is_empty()),
    };
    (status, deadline)
}

/// Counts of zero are left out, as upstream does.
fn some_if(count: i32) -> Option<i32> {
    Some(count).filter(|count| *count != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rstest::rstest;
    use serde_json::{Value, json};

    fn set(replicas: i32) -> ReplicaSet {
        serde_json::from_value(json!({"metadata": {"name": "web", "generation": 3},
            "spec": {"replicas": replicas, "minReadySeconds": 10, "selector": {"matchLabels": {"app": "web"}},
                "template": {"metadata": {"labels": {"app": "web"}}}}}))
        .unwrap()
    }

    fn pod(name: &str, node: Option<&str>, phase: &str, ready: Option<&str>) -> Arc<Pod> {
        let conditions: Vec<Value> = ready
            .map(|since| json!({"type": "Ready", "status": "True", "lastTransitionTime": since}))
            .into_iter()
            .collect();
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {"name": name, "labels": {"app": "web"}},
                "spec": {"containers": [], "nodeName": node},
                "status": {"phase": phase, "conditions": conditions},
            }))
            .unwrap(),
        )
    }

    fn first_to_go(pods: &[Arc<Pod>]) -> String {
        let left = i32::try_from(pods.len()).unwrap() - 1;
        let difference = difference(&set(left), pods, pods);
        assert_eq!(difference.delete.len(), 1);
        object::name(&difference.delete[0].metadata).to_owned()
    }

    const EARLY: &str = "2026-01-01T00:00:00Z";
    const LATE: &str = "2026-01-01T01:00:00Z";

    #[rstest]
    #[case::without_a_node(pod("a", None, "Pending", None), pod("b", Some("n"), "Pending", None))]
    #[case::pending(
        pod("a", Some("n"), "Pending", None),
        pod("b", Some("n"), "Running", None)
    )]
    #[case::not_ready(
        pod("a", Some("n"), "Running", None),
        pod("b", Some("n"), "Running", Some(EARLY))
    )]
    #[case::ready_for_a_shorter_time(
        pod("a", Some("n"), "Running", Some(LATE)),
        pod("b", Some("n"), "Running", Some(EARLY))
    )]
    fn the_less_useful_pod_goes_first(#[case] goes: Arc<Pod>, #[case] stays: Arc<Pod>) {
        assert_eq!(first_to_go(&[stays.clone(), goes.clone()]), "a");
        assert_eq!(first_to_go(&[goes, stays]), "a");
    }

    #[test]
    fn pods_go_from_the_fullest_node_first() {
        let pods = [
            pod("a", Some("n1"), "Running", Some(EARLY)),
            pod("b", Some("n2"), "Running", Some(EARLY)),
            pod("c", Some("n2"), "Running", Some(EARLY)),
        ];
        assert_eq!(first_to_go(&pods), "b");
    }

    #[test]
    fn the_deletion_cost_decides_between_ready_pods() {
        let mut cheap = (*pod("z", Some("n"), "Running", Some(EARLY))).clone();
        cheap.metadata.annotations = Some(
            [(
                "controller.kubernetes.io/pod-deletion-cost".to_owned(),
                "-5".to_owned(),
            )]
            .into(),
        );
        let pods = [pod("a", Some("n"), "Running", Some(LATE)), Arc::new(cheap)];
        assert_eq!(first_to_go(&pods), "z");
    }

    #[test]
    fn newer_pods_go_before_older_ones() {
        let with_age = |name: &str, created: &str| {
            let mut pod = (*pod(name, Some("n"), "Running", Some(EARLY))).clone();
            pod.metadata.creation_timestamp = Some(object::time(created.parse().unwrap()));
            Arc::new(pod)
        };
        assert_eq!(
            first_to_go(&[with_age("old", EARLY), with_age("young", LATE)]),
            "young"
        );
    }

    #[test]
    fn a_set_that_is_being_deleted_does_nothing() {
        let mut set = set(3);
        set.metadata.deletion_timestamp = Some(object::time(Timestamp::UNIX_EPOCH));
        assert_eq!(difference(&set, &[], &[]), Difference::default());
    }

    #[test]
    fn the_status_counts_what_is_ready_for_long_enough_and_wakes_for_the_rest() {
        let now = "2026-01-01T01:00:04Z".parse().unwrap();
        let mut dying = (*pod("d", Some("n"), "Running", Some(EARLY))).clone();
        dying.metadata.deletion_timestamp = Some(object::time(now));
        let pods = [
            pod("a", Some("n"), "Running", Some(EARLY)),
            pod("b", Some("n"), "Running", Some(LATE)),
            pod("c", None, "Pending", None),
            Arc::new(dying),
            pod("e", Some("n"), "Failed", None),
        ];
        let (status, deadline) = status(&set(3), &pods, None, now);
        assert_eq!(status.replicas, 3);
        assert_eq!(status.ready_replicas, Some(2));
        assert_eq!(status.available_replicas, Some(1));
        assert_eq!(status.terminating_replicas, Some(1));
        assert_eq!(status.observed_generation, Some(3));
        assert_eq!(deadline, Some(Duration::from_secs(6)));
    }

    #[test]
    fn a_failure_is_a_condition_and_goes_again() {
        let now = Timestamp::UNIX_EPOCH;
        let mut set = set(1);
        let (failed, _) = status(&set, &[], Some("no"), now);
        assert_eq!(
            failed.conditions.as_ref().unwrap()[0].type_,
            "ReplicaFailure"
        );
        set.status = Some(failed);
        let (status, _) = status(&set, &[], None, now);
        assert_eq!(status.conditions, None);
    }

    proptest! {
        /// Applying the difference gives exactly the pods asked for.
        #[test]
        fn the_difference_leads_to_the_wanted_number(wanted in 0_i32..40, there in 0_usize..40) {
            let pods: Vec<_> = (0..there)
                .map(|index| pod(&format!("p{index}"), (index % 3 > 0).then_some("n"), "Running", None))
                .collect();
            let difference = difference(&set(wanted), &pods, &pods);
            prop_assert!(difference.create == 0 || difference.delete.is_empty());
            prop_assert_eq!(there + difference.create - difference.delete.len(), usize::try_from(wanted).unwrap());
        }
    }
}
