//! When what led to a change of endpoints happened, for the annotation
//! `endpoints.kubernetes.io/last-change-trigger-time` of slices. As in Kubernetes
//! (`pkg/controller/util/endpoint`, `TriggerTimeTracker`): of all that is new
//! since the Service was looked at last, the earliest. No I/O.

use crate::object::{self, Key};
use crate::pods;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::jiff::Timestamp;
use std::collections::HashMap;
use std::sync::Arc;

/// What has been looked at of each Service.
#[derive(Debug, Default)]
pub(super) struct Triggers(HashMap<Key, Seen>);

#[derive(Debug, Default)]
struct Seen {
    /// When the Service was made.
    service: Option<Timestamp>,
    /// When pods became ready or unready, by name.
    pods: HashMap<String, Timestamp>,
}

impl Triggers {
    /// Looks at a Service and its pods: the earliest of the times that are later
    /// than what was seen of the same before; none if there is none.
    pub(super) fn look(
        &mut self,
        key: &Key,
        service: &Service,
        selected: &[Arc<Pod>],
    ) -> Option<Timestamp> {
        let made = service
            .metadata
            .creation_timestamp
            .as_ref()
            .map(|time| time.0);
        let turned: HashMap<String, Timestamp> = selected
            .iter()
            .filter_map(|pod| {
                let ready = pods::condition(pod, "Ready")?;
                let time = ready.last_transition_time.as_ref()?.0;
                Some((object::name(&pod.metadata).to_owned(), time))
            })
            .collect();
        let seen = self.0.entry(key.clone()).or_default();
        let new_pods = turned
            .iter()
            .filter(|(name, time)| seen.pods.get(*name).is_none_or(|before| *time > before))
            .map(|(_, time)| *time);
        let new_service = made.filter(|made| seen.service.is_none_or(|before| *made > before));
        let earliest = new_pods.chain(new_service).min();
        *seen = Seen {
            service: made,
            pods: turned,
        };
        earliest
    }

    /// Forgets a Service that is gone.
    pub(super) fn forget(&mut self, key: &Key) {
        self.0.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn time(second: u8) -> String {
        format!("2026-01-01T00:00:{second:02}Z")
    }

    fn service(made: u8) -> Service {
        serde_json::from_value(json!({"metadata": {"creationTimestamp": time(made)}})).unwrap()
    }

    fn pod(name: &str, turned: Option<u8>) -> Arc<Pod> {
        let conditions = turned.map(|second| {
            json!([{"type": "Ready", "status": "True", "lastTransitionTime": time(second)}])
        });
        Arc::new(
            serde_json::from_value(json!({"metadata": {"name": name},
                "status": {"conditions": conditions}}))
            .unwrap(),
        )
    }

    #[test]
    fn the_earliest_of_what_is_new_triggered_the_change() {
        let mut triggers = Triggers::default();
        let key = Key::new("ns", "web");
        let mut look = |pods: &[Arc<Pod>]| {
            triggers
                .look(&key, &service(5), pods)
                .map(|time| time.to_string())
        };
        assert_eq!(look(&[]), Some(time(5)), "the Service itself");
        assert_eq!(look(&[pod("a", None)]), None, "a pod that was never ready");
        let both = [pod("a", Some(20)), pod("b", Some(10))];
        assert_eq!(look(&both), Some(time(10)));
        assert_eq!(look(&both), None);
        let one_turned = [pod("a", Some(20)), pod("b", Some(30))];
        assert_eq!(look(&one_turned), Some(time(30)));
        assert_eq!(look(&one_turned[..1]), None, "who leaves names no time");
        assert_eq!(
            look(&one_turned),
            Some(time(30)),
            "and is new when it returns"
        );
    }

    #[test]
    fn a_service_made_anew_under_a_name_is_new() {
        let mut triggers = Triggers::default();
        let key = Key::new("ns", "web");
        triggers.look(&key, &service(5), &[]);
        triggers.forget(&key);
        let again = triggers.look(&key, &service(5), &[]);
        assert_eq!(again.map(|time| time.to_string()), Some(time(5)));
    }
}
