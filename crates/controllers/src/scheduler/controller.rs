//! Applies the decisions: binds pods, and says why others wait.

use super::plan::{Decision, plan};
use super::view::View;
use crate::cluster::Cluster;
use crate::mirror::Failure;
use crate::object::{self, Key};
use crate::pods;
use crate::queue::Queue;
use crate::work::{self, Outcome};
use futures::StreamExt;
use k8s_openapi::api::core::v1::{Binding, Node, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Status};
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::PostParams;
use serde_json::json;
use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::watch;
use tokio::task::JoinSet;

const COMPONENT: &str = "default-scheduler";
/// A burst of new pods is placed this often.
const PACE: std::time::Duration = std::time::Duration::from_millis(5);
/// Requests under way at once.
const AT_ONCE: usize = 32;

type Pending = Arc<Mutex<HashSet<Key>>>;

/// Whether the pod waits for this scheduler.
fn is_pending(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else {
        return false;
    };
    pods::node(pod).is_none()
        && pods::is_active(pod)
        && matches!(
            spec.scheduler_name.as_deref(),
            None | Some("" | "default-scheduler")
        )
        && spec
            .scheduling_gates
            .as_ref()
            .is_none_or(|gates| gates.is_empty())
}

/// Starts the scheduler.
pub(crate) fn run(cluster: &Arc<Cluster>, tasks: &mut JoinSet<()>, start: &watch::Receiver<bool>) {
    let queue: Arc<Queue<()>> = Queue::paced(PACE);
    let pending = Pending::default();
    cluster.pods.subscribe({
        let (queue, pending) = (queue.clone(), pending.clone());
        let pods = Arc::downgrade(&cluster.pods);
        move |change| {
            let mut pending = pending.lock().unwrap_or_else(PoisonError::into_inner);
            // Changes may be told in another order than they happened: what
            // counts is what the mirror holds now.
            let current = pods.upgrade().and_then(|pods| pods.get(&change.key));
            let waits = current.is_some_and(|pod| is_pending(&pod));
            if waits {
                pending.insert(change.key.clone());
            } else {
                pending.remove(&change.key);
            }
            let key = &change.key;
            let again = match (&change.old, &change.new) {
                // Our own note about a pod that cannot be placed is no news.
                (Some(old), Some(new)) if waits => {
                    old.spec != new.spec || old.metadata.labels != new.metadata.labels
                }
                (None, Some(_)) => waits,
                // One that ends, moves or is relabelled may make room for others.
                (Some(old), Some(new)) => {
                    pods::is_finished(old) != pods::is_finished(new)
                        || pods::node(old) != pods::node(new)
                        || old.metadata.labels != new.metadata.labels
                        || object::is_deleting(&old.metadata) != object::is_deleting(&new.metadata)
                }
                (_, None) => true,
            };
            if again && !pending.is_empty() {
                tracing::trace!(%key, "scheduling");
                queue.add(());
            }
        }
    });
    cluster.nodes.subscribe({
        let (queue, pending) = (queue.clone(), pending.clone());
        move |change| {
            let matters = match (&change.old, &change.new) {
                (Some(old), Some(new)) => essence(old) != essence(new),
                _ => true,
            };
            let waiting = !pending
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .is_empty();
            if matters && waiting {
                queue.add(());
            }
        }
    });
    work::spawn(tasks, COMPONENT, 1, &queue, start, {
        let cluster = cluster.clone();
        move |()| {
            let (cluster, pending) = (cluster.clone(), pending.clone());
            async move { schedule(&cluster, &pending).await }
        }
    });
}

/// What of a node decides about pods.
fn essence(node: &Node) -> impl PartialEq {
    (
        super::filter::implied_taints(node),
        node.metadata.labels.clone(),
        node.status
            .as_ref()
            .and_then(|status| status.allocatable.clone()),
    )
}

async fn schedule(cluster: &Cluster, pending: &Pending) -> Outcome {
    let waiting: Vec<_> = pending
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .iter()
        .cloned()
        .collect();
    let waiting: Vec<_> = waiting
        .iter()
        .filter_map(|key| cluster.pods.get(key))
        .filter(|pod| is_pending(pod))
        .collect();
    if waiting.is_empty() {
        return Ok(None);
    }
    let namespaces = cluster
        .namespaces
        .all()
        .iter()
        .map(|namespace| {
            (
                object::name(&namespace.metadata).to_owned(),
                crate::selector::labels(&namespace.metadata).clone(),
            )
        })
        .collect();
    let mut view = View::new(
        cluster.nodes.all(),
        cluster.pods.all(),
        &cluster.services.all(),
        namespaces,
    );
    let decisions = plan(&mut view, waiting);
    let mut results = futures::stream::iter(decisions)
        .map(|(pod, decision)| apply(cluster, pod, decision))
        .buffer_unordered(AT_ONCE);
    let mut outcome = Ok(None);
    while let Some(result) = results.next().await {
        if let Err(failure) = result {
            outcome = Err(failure);
        }
    }
    outcome
}

async fn apply(cluster: &Cluster, pod: Arc<Pod>, decision: Decision) -> Result<(), Failure> {
    let result = match decision {
        Ok(node) => bind(cluster, &pod, &node).await,
        Err(message) => explain(cluster, &pod, &message).await,
    };
    match result {
        // Gone or bound meanwhile: the watch tells.
        Err(failure) if failure.is_not_found() || failure.is_conflict() => {
            tracing::debug!(%failure, "pod is not ours to place any more");
            Ok(())
        }
        result => result,
    }
}

async fn bind(cluster: &Cluster, pod: &Pod, node: &str) -> Result<(), Failure> {
    let key = Key::of(&pod.metadata);
    let failure = |error| Failure::new("bind", "Pod", &key, error);
    let binding = Binding {
        metadata: ObjectMeta {
            name: Some(key.name.clone()),
            namespace: Some(key.namespace.clone()),
            uid: pod.metadata.uid.clone(),
            ..Default::default()
        },
        target: ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Node".into()),
            name: Some(node.to_owned()),
            ..Default::default()
        },
    };
    let api: Api<Pod> = Api::namespaced(cluster.client.clone(), &key.namespace);
    let params = PostParams::default();
    let write = cluster.pods.begin();
    api.create_subresource::<Binding, Status>("binding", &key.name, &params, &binding)
        .await
        .map_err(failure)?;
    // The answer is not the pod: note in the mirror what the watch will tell.
    let mut bound = pod.clone();
    bound.spec.get_or_insert_default().node_name = Some(node.to_owned());
    write.answered(bound);
    cluster.recorder.normal(
        COMPONENT,
        pod,
        "Scheduled",
        format!("Successfully assigned {key} to {node}"),
    );
    Ok(())
}

async fn explain(cluster: &Cluster, pod: &Pod, message: &str) -> Result<(), Failure> {
    let known = pods::condition(pod, "PodScheduled").is_some_and(|condition| {
        condition.status == "False" && condition.message.as_deref() == Some(message)
    });
    if known {
        return Ok(());
    }
    cluster
        .recorder
        .warning(COMPONENT, pod, "FailedScheduling", message.to_owned());
    let change = json!({
        "metadata": {"uid": pod.metadata.uid},
        "status": {"conditions": [{
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": message,
            "lastProbeTime": null,
            "lastTransitionTime": object::time(Timestamp::now()),
        }]},
    });
    cluster
        .pods
        .merge_status(&Key::of(&pod.metadata), change)
        .await
}
