//! A Deployment's status and conditions. No I/O.

use super::plan::{is_complete, split};
use super::scale::{replicas, size, surge_and_unavailable};
use crate::object;
use k8s_openapi::api::apps::v1::{
    Deployment, DeploymentCondition, DeploymentSpec, DeploymentStatus, ReplicaSet,
};
use k8s_openapi::jiff::Timestamp;
use std::sync::Arc;
use std::time::Duration;

const PROGRESSING: &str = "Progressing";
const AVAILABLE: &str = "Available";
const FAILURE: &str = "ReplicaFailure";
const DONE: &str = "NewReplicaSetAvailable";
const TIMED_OUT: &str = "ProgressDeadlineExceeded";
const PAUSED: &str = "DeploymentPaused";

fn sum(sets: &[Arc<ReplicaSet>], of: impl Fn(&ReplicaSet) -> Option<i32>) -> Option<i32> {
    let total: i32 = sets.iter().filter_map(|set| of(set)).sum();
    Some(total).filter(|total| *total != 0)
}

/// The status by the Deployment's sets, and when to look again because the
/// progress deadline will have passed. `created`: the new set was made just now.
pub(super) fn status(
    deployment: &Deployment,
    sets: &[Arc<ReplicaSet>],
    created: bool,
    now: Timestamp,
) -> (DeploymentStatus, Option<Duration>) {
    let old = deployment.status.clone().unwrap_or_default();
    let Some(spec) = &deployment.spec else {
        return (old, None);
    };
    let (new, _) = split(spec, sets);
    let available = sum(sets, |set| set.status.as_ref()?.available_replicas);
    let total: i32 = sets.iter().map(|set| size(set)).sum();
    let missing = (total - available.unwrap_or(0)).max(0);
    let mut status = DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: sum(sets, |set| Some(set.status.as_ref()?.replicas)),
        updated_replicas: new
            .as_ref()
            .and_then(|set| Some(set.status.as_ref()?.replicas))
            .filter(|count| *count != 0),
        ready_replicas: sum(sets, |set| set.status.as_ref()?.ready_replicas),
        available_replicas: available,
        unavailable_replicas: Some(missing).filter(|count| *count != 0),
        terminating_replicas: sum(sets, |set| set.status.as_ref()?.terminating_replicas),
        collision_count: old.collision_count,
        conditions: old.conditions.clone(),
    };
    let conditions = status.conditions.get_or_insert_default();
    let (_, may_miss) = surge_and_unavailable(spec);
    let enough = available.unwrap_or(0) >= replicas(spec) - may_miss;
    set(
        conditions,
        now,
        AVAILABLE,
        if enough { "True" } else { "False" },
        if enough {
            "MinimumReplicasAvailable"
        } else {
            "MinimumReplicasUnavailable"
        },
        if enough {
            "Deployment has minimum availability."
        } else {
            "Deployment does not have minimum availability."
        },
        false,
    );
    let failure = new
        .iter()
        .flat_map(|set| set.status.iter())
        .flat_map(|status| status.conditions.iter().flatten())
        .find(|condition| condition.type_ == FAILURE);
    match failure {
        None => conditions.retain(|condition| condition.type_ != FAILURE),
        Some(failure) => set(
            conditions,
            now,
            FAILURE,
            &failure.status,
            failure.reason.as_deref().unwrap_or_default(),
            failure.message.as_deref().unwrap_or_default(),
            false,
        ),
    }
    let deadline = progress(
        deployment,
        spec,
        &old,
        &mut status,
        new.as_deref(),
        created,
        now,
    );
    (status, deadline)
}

fn progress(
    deployment: &Deployment,
    spec: &DeploymentSpec,
    old: &DeploymentStatus,
    status: &mut DeploymentStatus,
    new: Option<&ReplicaSet>,
    created: bool,
    now: Timestamp,
) -> Option<Duration> {
    let seconds = spec.progress_deadline_seconds.unwrap_or(600);
    let with_status = Deployment {
        metadata: deployment.metadata.clone(),
        spec: None,
        status: Some(status.clone()),
    };
    let complete = is_complete(&with_status, spec);
    let known = status
        .conditions
        .iter()
        .flatten()
        .find(|condition| condition.type_ == PROGRESSING)
        .cloned();
    let reason = known
        .as_ref()
        .and_then(|condition| condition.reason.as_deref())
        .unwrap_or_default();
    let all_new = status.replicas == status.updated_replicas;
    let moved = status.updated_replicas > old.updated_replicas
        || status.ready_replicas > old.ready_replicas
        || status.available_replicas > old.available_replicas
        || others(status) < others(old);
    let conditions = status.conditions.get_or_insert_default();
    if spec.paused == Some(true) {
        if reason != TIMED_OUT {
            let text = "Deployment is paused";
            set(conditions, now, PROGRESSING, "Unknown", PAUSED, text, false);
        }
        return None;
    }
    let name = new.map(|set| object::name(&set.metadata));
    let subject = name.map_or_else(
        || format!("Deployment {:?}", object::name(&deployment.metadata)),
        |name| format!("ReplicaSet {name:?}"),
    );
    // All is well until somebody wants something new.
    let settled = reason == DONE && all_new && !created;
    let mut say = |value: &str, reason: &str, text: String, renew: bool| {
        set(conditions, now, PROGRESSING, value, reason, &text, renew);
    };
    if created {
        let text = format!("Created new replica set {:?}", name.unwrap_or_default());
        say("True", "NewReplicaSetCreated", text, true);
    } else if settled {
    } else if complete {
        let text = format!("{subject} has successfully progressed.");
        say("True", DONE, text, true);
    } else if reason == PAUSED {
        let text = "Deployment is resumed".to_owned();
        say("Unknown", "DeploymentResumed", text, true);
    } else if moved {
        let text = format!("{subject} is progressing.");
        say("True", "ReplicaSetUpdated", text, true);
    } else if let Some(known) = &known {
        let since = known.last_update_time.as_ref().map_or(now, |time| time.0);
        let left = object::until(now, object::after(since, i64::from(seconds)));
        if left.is_zero() {
            if reason != TIMED_OUT {
                let text = format!("{subject} has timed out progressing.");
                say("False", TIMED_OUT, text, false);
            }
            return None;
        }
        return Some(left);
    } else if let Some(name) = name {
        let text = format!("Found new replica set {name:?}");
        say("True", "FoundNewReplicaSet", text, true);
    }
    (!complete && !settled).then(|| Duration::from_secs(u64::try_from(seconds).unwrap_or(600)))
}

fn others(status: &DeploymentStatus) -> i32 {
    status.replicas.unwrap_or(0) - status.updated_replicas.unwrap_or(0)
}

/// Sets a condition. What says the same stays as it is; `renew` makes even
/// that count as news.
fn set(
    conditions: &mut Vec<DeploymentCondition>,
    now: Timestamp,
    kind: &str,
    status: &str,
    reason: &str,
    message: &str,
    renew: bool,
) {
    let known = conditions
        .iter()
        .position(|condition| condition.type_ == kind);
    let mut transition = object::time(now);
    if let Some(index) = known {
        let old = &conditions[index];
        let same = old.status == status && old.reason.as_deref() == Some(reason);
        if same && !renew {
            return;
        }
        if old.status == status
            && let Some(time) = &old.last_transition_time
        {
            transition = time.clone();
        }
    }
    let condition = DeploymentCondition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_update_time: Some(object::time(now)),
        last_transition_time: Some(transition),
    };
    match known {
        Some(index) => conditions[index] = condition,
        None => conditions.push(condition),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use serde_json::json;

    fn deployment() -> Deployment {
        serde_json::from_value(json!({"metadata": {"name": "web", "generation": 2},
            "spec": {"replicas": 3, "selector": {}, "template": {}, "progressDeadlineSeconds": 60}}))
        .unwrap()
    }

    fn set_of(replicas: i32, ready: i32) -> Vec<Arc<ReplicaSet>> {
        vec![Arc::new(
            serde_json::from_value(json!({"metadata": {"name": "web-1"},
                "spec": {"replicas": 3, "selector": {}, "template": {}},
                "status": {"replicas": replicas, "readyReplicas": ready, "availableReplicas": ready}}))
            .unwrap(),
        )]
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn reason<'a>(status: &'a DeploymentStatus, kind: &str) -> (&'a str, &'a str) {
        let condition = status
            .conditions
            .iter()
            .flatten()
            .find(|condition| condition.type_ == kind)
            .unwrap();
        (&condition.status, condition.reason.as_deref().unwrap())
    }

    #[test]
    fn a_rollout_goes_from_created_over_updated_to_available() {
        let mut deployment = deployment();
        let (status, deadline) = super::status(&deployment, &set_of(0, 0), true, at(0));
        assert_eq!(
            reason(&status, PROGRESSING),
            ("True", "NewReplicaSetCreated")
        );
        assert_eq!(
            reason(&status, AVAILABLE),
            ("False", "MinimumReplicasUnavailable")
        );
        assert_eq!(status.unavailable_replicas, Some(3));
        assert_eq!(deadline, Some(Duration::from_secs(60)));
        deployment.status = Some(status);
        let (status, _) = super::status(&deployment, &set_of(3, 1), false, at(5));
        assert_eq!(reason(&status, PROGRESSING), ("True", "ReplicaSetUpdated"));
        deployment.status = Some(status);
        let (status, deadline) = super::status(&deployment, &set_of(3, 3), false, at(9));
        assert_eq!(reason(&status, PROGRESSING), ("True", DONE));
        assert_eq!(
            reason(&status, AVAILABLE),
            ("True", "MinimumReplicasAvailable")
        );
        assert_eq!(status.unavailable_replicas, None);
        assert_eq!(deadline, None);
        deployment.status = Some(status.clone());
        assert_eq!(
            super::status(&deployment, &set_of(3, 3), false, at(500)),
            (status, None)
        );
    }

    #[rstest]
    #[case::in_time(30, "NewReplicaSetCreated", Some(30))]
    #[case::too_late(61, TIMED_OUT, None)]
    fn no_progress_within_the_deadline_is_a_failure(
        #[case] later: i64,
        #[case] expected: &str,
        #[case] left: Option<u64>,
    ) {
        let mut deployment = deployment();
        let (status, _) = super::status(&deployment, &set_of(0, 0), true, at(0));
        deployment.status = Some(status);
        let (status, deadline) = super::status(&deployment, &set_of(0, 0), false, at(later));
        assert_eq!(reason(&status, PROGRESSING).1, expected);
        assert_eq!(deadline, left.map(Duration::from_secs));
    }

    #[test]
    fn a_paused_rollout_has_no_deadline() {
        let mut deployment = deployment();
        deployment.spec.as_mut().unwrap().paused = Some(true);
        let (status, deadline) = super::status(&deployment, &set_of(0, 0), false, at(0));
        assert_eq!(reason(&status, PROGRESSING), ("Unknown", PAUSED));
        assert_eq!(deadline, None);
    }
}
