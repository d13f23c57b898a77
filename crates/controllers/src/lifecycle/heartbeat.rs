//! Heartbeats: a node lives while its Lease or its status is renewed.

use super::plan::{ready, silent_conditions, wanted_taints};
use crate::cluster::Cluster;
use crate::object::{self, Key};
use crate::pods;
use crate::queue::Queue;
use crate::work::{self, Outcome};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::jiff::Timestamp;
use serde_json::json;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

const COMPONENT: &str = "node-controller";
/// Namespace of the nodes' Leases (KEP-589).
const LEASES: &str = "kube-node-lease";

/// When each node was last heard of, by our own clock: the nodes' clocks do not
/// matter. What a node says is only compared with what it said before.
type Heard = Arc<Mutex<HashMap<String, Instant>>>;

fn heard(heard: &Heard, node: &str) {
    heard
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .insert(node.to_owned(), Instant::now());
}

fn heartbeats(node: &Node) -> Vec<Option<Timestamp>> {
    node.status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten())
        .map(|condition| condition.last_heartbeat_time.as_ref().map(|time| time.0))
        .collect()
}

/// Starts the controller.
pub(super) fn run(
    cluster: &Arc<Cluster>,
    grace: Duration,
    tasks: &mut JoinSet<()>,
    start: &watch::Receiver<bool>,
) {
    let queue: Arc<Queue<String>> = Arc::default();
    let times = Heard::default();
    cluster.leases.subscribe({
        let times = times.clone();
        move |change| {
            if change.key.namespace == LEASES
                && let Some(new) = &change.new
            {
                let renewed = change.old.as_ref().is_none_or(|old| old.spec != new.spec);
                if renewed {
                    heard(&times, &change.key.name);
                }
            }
        }
    });
    cluster.nodes.subscribe({
        let (queue, times) = (queue.clone(), times.clone());
        move |change| {
            let name = &change.key.name;
            match (&change.old, &change.new) {
                (_, None) => {
                    times
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .remove(name);
                }
                (None, Some(_)) => heard(&times, name),
                (Some(old), Some(new)) => {
                    if heartbeats(old) != heartbeats(new) {
                        heard(&times, name);
                    }
                }
            }
            queue.add(name.clone());
        }
    });
    work::spawn(tasks, COMPONENT, 4, &queue, start, {
        let cluster = cluster.clone();
        move |node| {
            let (cluster, times) = (cluster.clone(), times.clone());
            async move {
                let last = times
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .get(&node)
                    .copied();
                reconcile(&cluster, &Key::cluster(node), last, grace).await
            }
        }
    });
}

async fn reconcile(
    cluster: &Cluster,
    key: &Key,
    last: Option<Instant>,
    grace: Duration,
) -> Outcome {
    let Some(node) = cluster.nodes.get(key) else {
        return Ok(None);
    };
    let now = Timestamp::now();
    let silence = last.map_or(Duration::ZERO, |last| last.elapsed());
    let mut deadline = grace.checked_sub(silence).filter(|left| !left.is_zero());
    if deadline.is_none() {
        let conditions = silent_conditions(&node, now);
        if !conditions.is_empty() {
            tracing::warn!(node = %key, ?silence, "node is silent");
            cluster.recorder.normal(
                COMPONENT,
                &*node,
                "NodeNotReady",
                format!("Node {key} status is now: NodeNotReady"),
            );
            // If it spoke up just now, the version is another and this fails.
            let change = json!({
                "metadata": {"uid": node.metadata.uid, "resourceVersion": node.metadata.resource_version},
                "status": {"conditions": conditions},
            });
            cluster.nodes.merge_status(key, change).await?;
        }
        // Any sign of life comes by the watch of the node.
        deadline = None;
    }
    let Some(node) = cluster.nodes.get(key) else {
        return Ok(None);
    };
    if let Some(taints) = wanted_taints(&node, now) {
        let change = json!({
            "metadata": {"uid": node.metadata.uid, "resourceVersion": node.metadata.resource_version},
            "spec": {"taints": if taints.is_empty() { None } else { Some(taints) }},
        });
        cluster.nodes.merge(key, change).await?;
    }
    if ready(&node) == "Unknown" {
        mark_pods_not_ready(cluster, &key.name, now).await?;
    }
    Ok(deadline)
}

/// Nobody vouches for the pods of a silent node: they leave the EndpointSlices.
async fn mark_pods_not_ready(
    cluster: &Cluster,
    node: &str,
    now: Timestamp,
) -> Result<(), crate::mirror::Failure> {
    let ready: Vec<_> = cluster
        .pods
        .all()
        .into_iter()
        .filter(|pod| pods::node(pod) == Some(node) && pods::is_ready(pod))
        .collect();
    futures::stream::iter(ready)
        .map(|pod| async move {
            let change = json!({
                "metadata": {"uid": pod.metadata.uid},
                "status": {"conditions": [{
                    "type": "Ready",
                    "status": "False",
                    "reason": "NodeNotReady",
                    "message": format!("node {node} is silent"),
                    "lastTransitionTime": object::time(now),
                }]},
            });
            let key = Key::of(&pod.metadata);
            match cluster.pods.merge_status(&key, change).await {
                Err(failure) if failure.is_not_found() || failure.is_conflict() => Ok(()),
                result => result,
            }
        })
        .buffer_unordered(16)
        .try_collect()
        .await
}
