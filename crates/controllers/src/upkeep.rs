//! Small duties: the default ServiceAccount of every namespace, and the end of
//! old Events.

use crate::cluster::Cluster;
use crate::mirror::Failure;
use crate::object::{self, Key};
use crate::queue::Queue;
use crate::work::{self, Outcome};
use k8s_openapi::api::core::v1::{Event, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// The account of pods that name none.
const DEFAULT: &str = "default";

/// Starts the controllers.
pub(crate) fn run(
    cluster: &Arc<Cluster>,
    event_ttl: Duration,
    tasks: &mut JoinSet<()>,
    start: &watch::Receiver<bool>,
) {
    accounts(cluster, tasks, start);
    events(cluster, event_ttl, tasks, start);
}

fn accounts(cluster: &Arc<Cluster>, tasks: &mut JoinSet<()>, start: &watch::Receiver<bool>) {
    let queue: Arc<Queue<String>> = Arc::default();
    cluster.namespaces.subscribe({
        let queue = queue.clone();
        move |change| {
            if change.old.is_none() {
                queue.add(change.key.name.clone());
            }
        }
    });
    cluster.service_accounts.subscribe({
        let queue = queue.clone();
        move |change| {
            if change.new.is_none() && change.key.name == DEFAULT {
                queue.add(change.key.namespace.clone());
            }
        }
    });
    work::spawn(tasks, "serviceaccount-controller", 4, &queue, start, {
        let cluster = cluster.clone();
        move |namespace| {
            let cluster = cluster.clone();
            async move { account(&cluster, &namespace).await }
        }
    });
}

async fn account(cluster: &Cluster, namespace: &str) -> Outcome {
    let Some(object) = cluster.namespaces.get(&Key::cluster(namespace)) else {
        return Ok(None);
    };
    let key = Key::new(namespace, DEFAULT);
    if object::is_deleting(&object.metadata) || cluster.service_accounts.get(&key).is_some() {
        return Ok(None);
    }
    let account = ServiceAccount {
        metadata: ObjectMeta {
            name: Some(key.name),
            namespace: Some(key.namespace),
            ..Default::default()
        },
        ..Default::default()
    };
    match cluster.service_accounts.create(&account).await {
        Err(failure) if !is_moot(&failure) => Err(failure),
        _ => Ok(None),
    }
}

/// Somebody else made it, or the namespace is going.
fn is_moot(failure: &Failure) -> bool {
    failure.already_exists() || failure.is_not_found()
}

fn events(
    cluster: &Arc<Cluster>,
    ttl: Duration,
    tasks: &mut JoinSet<()>,
    start: &watch::Receiver<bool>,
) {
    let queue: Arc<Queue<Key>> = Arc::default();
    cluster.events.subscribe({
        let queue = queue.clone();
        move |change| {
            if let (None, Some(event)) = (&change.old, &change.new) {
                queue.add_after(change.key.clone(), left(event, ttl, Timestamp::now()));
            }
        }
    });
    work::spawn(tasks, "event-ttl", 1, &queue, start, {
        let cluster = cluster.clone();
        move |key| {
            let cluster = cluster.clone();
            async move {
                let Some(event) = cluster.events.get(&key) else {
                    return Ok(None);
                };
                let left = left(&event, ttl, Timestamp::now());
                if !left.is_zero() {
                    return Ok(Some(left));
                }
                cluster.events.delete(&event).await?;
                Ok(None)
            }
        }
    });
}

/// How long an event lives still, counted from when it last happened.
fn left(event: &Event, ttl: Duration, now: Timestamp) -> Duration {
    let last = [
        event.last_timestamp.as_ref().map(|time| time.0),
        event.event_time.as_ref().map(|time| time.0),
        event
            .series
            .as_ref()
            .and_then(|series| series.last_observed_time.as_ref())
            .map(|time| time.0),
        Some(object::created(&event.metadata)),
    ]
    .into_iter()
    .flatten()
    .max()
    .unwrap_or(now);
    ttl.saturating_sub(object::since(now, last))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_event_lives_from_when_it_last_happened() {
        let event: Event = serde_json::from_value(json!({
            "metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"},
            "involvedObject": {},
            "lastTimestamp": "2026-01-01T00:50:00Z"}))
        .unwrap();
        let left = |now: &str| left(&event, Duration::from_secs(3600), now.parse().unwrap());
        assert_eq!(left("2026-01-01T01:00:00Z"), Duration::from_secs(3000));
        assert_eq!(left("2026-01-01T02:00:00Z"), Duration::ZERO);
    }
}
