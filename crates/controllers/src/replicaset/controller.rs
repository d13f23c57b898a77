//! Applies the plan of a ReplicaSet.

use super::plan;
use crate::claim;
use crate::cluster::Cluster;
use crate::create;
use crate::object::{self, Key};
use crate::pods;
use crate::queue::Queue;
use crate::selector;
use crate::work::{self, Outcome};
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use std::sync::Arc;
use tokio::sync::watch;
use tokio::task::JoinSet;

const COMPONENT: &str = "replicaset-controller";
/// A burst of changes is answered this often.
const PACE: std::time::Duration = std::time::Duration::from_millis(20);

/// Starts the controller.
pub(crate) fn run(cluster: &Arc<Cluster>, tasks: &mut JoinSet<()>, start: &watch::Receiver<bool>) {
    let queue: Arc<Queue<Key>> = Queue::paced(PACE);
    cluster.replica_sets.subscribe({
        let queue = queue.clone();
        move |change| queue.add(change.key.clone())
    });
    cluster.pods.subscribe({
        let queue = queue.clone();
        let sets = Arc::downgrade(&cluster.replica_sets);
        move |change| {
            for pod in change.both() {
                let meta = &pod.metadata;
                match object::controller(meta) {
                    Some(owner) if owner.kind == "ReplicaSet" => {
                        queue.add(Key::new(object::namespace(meta), &owner.name));
                    }
                    Some(_) => {}
                    // A stray: who would adopt it?
                    None => {
                        for set in sets
                            .upgrade()
                            .iter()
                            .flat_map(|sets| sets.in_namespace(object::namespace(meta)))
                        {
                            let wants = set.spec.as_ref().is_some_and(|spec| {
                                !selector::is_empty(&spec.selector)
                                    && selector::matches(&spec.selector, selector::labels(meta))
                            });
                            if wants {
                                queue.add(Key::of(&set.metadata));
                            }
                        }
                    }
                }
            }
        }
    });
    work::spawn(tasks, COMPONENT, 8, &queue, start, {
        let cluster = cluster.clone();
        move |key| {
            let cluster = cluster.clone();
            async move { reconcile(&cluster, &key).await }
        }
    });
}

fn active(pods: &[Arc<Pod>]) -> Vec<Arc<Pod>> {
    pods.iter()
        .filter(|pod| pods::is_active(pod))
        .cloned()
        .collect()
}

async fn reconcile(cluster: &Cluster, key: &Key) -> Outcome {
    let Some(set) = cluster.replica_sets.get(key) else {
        return Ok(None);
    };
    let Some(spec) = &set.spec else {
        return Ok(None);
    };
    let reference = object::controller_reference("ReplicaSet", &set.metadata);
    let claims = claim::plan(
        &set.metadata,
        &spec.selector,
        cluster.pods.in_namespace(&key.namespace),
    );
    let owned = claim::apply(&cluster.pods, &reference, claims).await?;
    let related: Vec<_> = match object::controller(&set.metadata) {
        None => active(&owned),
        Some(owner) => cluster
            .replica_sets
            .owned_by(&owner.uid)
            .iter()
            .flat_map(|sibling| cluster.pods.owned_by(object::uid(&sibling.metadata)))
            .filter(|pod| pods::is_active(pod))
            .collect(),
    };
    let difference = plan::difference(&set, &active(&owned), &related);
    let made = match &spec.template {
        Some(template) => {
            let pods = (0..difference.create)
                .map(|_| {
                    let mut pod = create::pod(&set.metadata, &reference, template);
                    pod.metadata.generate_name = Some(format!("{}-", key.name));
                    pod
                })
                .collect();
            create::all(cluster, COMPONENT, &*set, pods).await
        }
        None => Ok(()),
    };
    let result = match made {
        Ok(()) => create::delete(cluster, COMPONENT, &*set, difference.delete).await,
        failed => failed,
    };
    // The mirror holds what was just written.
    let Some(current) = cluster.replica_sets.get(key) else {
        return Ok(None);
    };
    let owned = cluster.pods.owned_by(object::uid(&set.metadata));
    let message = result.as_ref().err().map(crate::mirror::Failure::message);
    let (status, deadline) = plan::status(&set, &owned, message.as_deref(), Timestamp::now());
    let written = write_status(cluster, &current, status).await;
    result?;
    written?;
    Ok(deadline)
}

async fn write_status(
    cluster: &Cluster,
    set: &ReplicaSet,
    status: k8s_openapi::api::apps::v1::ReplicaSetStatus,
) -> Result<(), crate::mirror::Failure> {
    if set.status.as_ref() == Some(&status) {
        return Ok(());
    }
    let mut set = set.clone();
    set.status = Some(status);
    match cluster.replica_sets.replace_status(&set).await {
        Err(failure) if failure.is_not_found() => Ok(()),
        result => result,
    }
}
