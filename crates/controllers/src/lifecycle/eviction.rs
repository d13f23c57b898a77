//! Eviction: pods leave nodes whose taints they no longer tolerate.

use super::plan::eviction;
use crate::cluster::Cluster;
use crate::object::{self, Key};
use crate::pods;
use crate::queue::Queue;
use crate::taints;
use crate::work::{self, Outcome};
use k8s_openapi::jiff::Timestamp;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;

const COMPONENT: &str = "taint-eviction-controller";

/// Starts the controller.
pub(super) fn run(
    cluster: &Arc<Cluster>,
    default: Duration,
    tasks: &mut JoinSet<()>,
    start: &watch::Receiver<bool>,
) {
    let queue: Arc<Queue<Key>> = Arc::default();
    cluster.pods.subscribe({
        let queue = queue.clone();
        let nodes = Arc::downgrade(&cluster.nodes);
        move |change| {
            let Some(pod) = &change.new else { return };
            let moved = change.old.as_ref().is_none_or(|old| old.spec != pod.spec);
            let tainted = || {
                let node = nodes.upgrade()?.get(&Key::cluster(pods::node(pod)?))?;
                Some(has_no_execute(&node))
            };
            if moved && tainted() == Some(true) {
                queue.add(change.key.clone());
            }
        }
    });
    cluster.nodes.subscribe({
        let queue = queue.clone();
        let pods = Arc::downgrade(&cluster.pods);
        move |change| {
            let (Some(node), Some(pods)) = (&change.new, pods.upgrade()) else {
                return;
            };
            let same = change
                .old
                .as_ref()
                .is_some_and(|old| taints::of(old) == taints::of(node));
            if same || !has_no_execute(node) {
                return;
            }
            for pod in pods.all() {
                if pods::node(&pod) == Some(change.key.name.as_str()) {
                    queue.add(Key::of(&pod.metadata));
                }
            }
        }
    });
    work::spawn(tasks, COMPONENT, 4, &queue, start, {
        let cluster = cluster.clone();
        move |key| {
            let cluster = cluster.clone();
            async move { reconcile(&cluster, &key, default).await }
        }
    });
}

fn has_no_execute(node: &k8s_openapi::api::core::v1::Node) -> bool {
    taints::of(node)
        .iter()
        .any(|taint| taint.effect == taints::NO_EXECUTE)
}

async fn reconcile(cluster: &Cluster, key: &Key, default: Duration) -> Outcome {
    let Some(pod) = cluster.pods.get(key) else {
        return Ok(None);
    };
    if object::is_deleting(&pod.metadata) || pods::is_finished(&pod) {
        return Ok(None);
    }
    let Some(node) = pods::node(&pod).and_then(|node| cluster.nodes.get(&Key::cluster(node)))
    else {
        return Ok(None);
    };
    match eviction(&pod, taints::of(&node), default, Timestamp::now()) {
        None => Ok(None),
        Some(left) if !left.is_zero() => Ok(Some(left)),
        Some(_) => {
            cluster.recorder.normal(
                COMPONENT,
                &*pod,
                "TaintManagerEviction",
                format!("Marking for deletion Pod {key}"),
            );
            cluster.pods.delete(&pod).await?;
            Ok(None)
        }
    }
}
