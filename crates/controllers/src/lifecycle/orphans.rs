//! Pods without a node to run on: their node is gone, or they were deleted
//! before they had one. No kubelet will ever finish them.

use crate::cluster::Cluster;
use crate::object::{self, Key};
use crate::pods;
use crate::queue::Queue;
use crate::work::{self, Outcome};
use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;

const COMPONENT: &str = "pod-garbage-collector";

#[derive(Default)]
struct State {
    /// Names of nodes seen to go.
    gone: HashSet<String>,
    /// When pods were first seen with a node nobody has ever seen, by uid.
    waiting: std::collections::HashMap<String, tokio::time::Instant>,
}

/// Starts the controller.
pub(super) fn run(
    cluster: &Arc<Cluster>,
    grace: Duration,
    tasks: &mut JoinSet<()>,
    start: &watch::Receiver<bool>,
) {
    let queue: Arc<Queue<Key>> = Arc::default();
    let state: Arc<Mutex<State>> = Arc::default();
    let nodes = Arc::downgrade(&cluster.nodes);
    cluster.pods.subscribe({
        let (queue, state) = (queue.clone(), state.clone());
        move |change| {
            let Some(pod) = &change.new else {
                if let Some(old) = &change.old {
                    let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
                    state.waiting.remove(object::uid(&old.metadata));
                }
                return;
            };
            let suspicious = match pods::node(pod) {
                None => object::is_deleting(&pod.metadata),
                Some(node) => nodes
                    .upgrade()
                    .is_some_and(|nodes| nodes.get(&Key::cluster(node)).is_none()),
            };
            if suspicious {
                queue.add(change.key.clone());
            }
        }
    });
    cluster.nodes.subscribe({
        let (queue, state) = (queue.clone(), state.clone());
        let pods = Arc::downgrade(&cluster.pods);
        move |change| {
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            if change.new.is_some() {
                state.gone.remove(&change.key.name);
                return;
            }
            state.gone.insert(change.key.name.clone());
            drop(state);
            for pod in pods.upgrade().iter().flat_map(|pods| pods.all()) {
                if pods::node(&pod) == Some(change.key.name.as_str()) {
                    queue.add(Key::of(&pod.metadata));
                }
            }
        }
    });
    work::spawn(tasks, COMPONENT, 16, &queue, start, {
        let cluster = cluster.clone();
        move |key| {
            let (cluster, state) = (cluster.clone(), state.clone());
            async move { reconcile(&cluster, &state, &key, grace).await }
        }
    });
}

async fn reconcile(cluster: &Cluster, state: &Mutex<State>, key: &Key, grace: Duration) -> Outcome {
    let Some(pod) = cluster.pods.get(key) else {
        return Ok(None);
    };
    match pods::node(&pod) {
        None if object::is_deleting(&pod.metadata) => {
            tracing::info!(pod = %key, "deleted before it had a node");
        }
        Some(node) if cluster.nodes.get(&Key::cluster(node)).is_none() => {
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            if !state.gone.contains(node) {
                let since = *state
                    .waiting
                    .entry(object::uid(&pod.metadata).to_owned())
                    .or_insert_with(tokio::time::Instant::now);
                let left = grace.saturating_sub(since.elapsed());
                if !left.is_zero() {
                    return Ok(Some(left));
                }
            }
            tracing::info!(pod = %key, node, "the pod's node is gone");
        }
        _ => return Ok(None),
    }
    cluster.pods.delete_now(&pod).await?;
    Ok(None)
}
