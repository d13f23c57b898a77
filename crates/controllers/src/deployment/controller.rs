//! Applies the plan of a Deployment.

use super::plan::{Plan, REVISION, plan, split};
use super::scale::size;
use super::status::status;
use crate::claim;
use crate::cluster::Cluster;
use crate::mirror::Failure;
use crate::object::{self, Key};
use crate::pods;
use crate::queue::Queue;
use crate::work::{self, Outcome};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::jiff::Timestamp;
use serde_json::json;
use std::sync::Arc;
use tokio::sync::watch;
use tokio::task::JoinSet;

const COMPONENT: &str = "deployment-controller";
/// Most plans carried out in one go; a rollout that wants more comes again with
/// the next change of its sets.
const STEPS: usize = 8;
/// A burst of changes is answered this often.
const PACE: std::time::Duration = std::time::Duration::from_millis(20);

/// Starts the controller.
pub(crate) fn run(cluster: &Arc<Cluster>, tasks: &mut JoinSet<()>, start: &watch::Receiver<bool>) {
    let queue: Arc<Queue<Key>> = Queue::paced(PACE);
    cluster.deployments.subscribe({
        let queue = queue.clone();
        move |change| queue.add(change.key.clone())
    });
    cluster.replica_sets.subscribe({
        let queue = queue.clone();
        move |change| {
            for set in change.both() {
                if let Some(owner) = object::controller(&set.metadata)
                    && owner.kind == "Deployment"
                {
                    queue.add(Key::new(&change.key.namespace, &owner.name));
                }
            }
        }
    });
    // A Recreate waits for the last old pod.
    cluster.pods.subscribe({
        let queue = queue.clone();
        let sets = Arc::downgrade(&cluster.replica_sets);
        move |change| {
            if change.new.is_some() {
                return;
            }
            let Some(pod) = &change.old else { return };
            let owner = object::controller(&pod.metadata)
                .filter(|owner| owner.kind == "ReplicaSet")
                .zip(sets.upgrade())
                .and_then(|(owner, sets)| {
                    let set = sets.get(&Key::new(&change.key.namespace, &owner.name))?;
                    object::controller(&set.metadata).cloned()
                });
            if let Some(owner) = owner {
                queue.add(Key::new(&change.key.namespace, owner.name));
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

async fn reconcile(cluster: &Cluster, key: &Key) -> Outcome {
    let Some(deployment) = cluster.deployments.get(key) else {
        return Ok(None);
    };
    let Some(spec) = &deployment.spec else {
        return Ok(None);
    };
    if crate::selector::is_empty(&spec.selector) {
        let text = "This deployment is selecting all pods. A non-empty selector is required.";
        cluster
            .recorder
            .warning(COMPONENT, &*deployment, "SelectingAll", text.into());
        return Ok(None);
    }
    let reference = object::controller_reference("Deployment", &deployment.metadata);
    let claims = claim::plan(
        &deployment.metadata,
        &spec.selector,
        cluster.replica_sets.in_namespace(&key.namespace),
    );
    claim::apply(&cluster.replica_sets, &reference, claims).await?;
    let uid = object::uid(&deployment.metadata);
    let mut created = false;
    for _ in 0..STEPS {
        let Some(deployment) = cluster.deployments.get(key) else {
            return Ok(None);
        };
        let sets = cluster.replica_sets.owned_by(uid);
        let plan = plan(
            &deployment,
            &sets,
            old_pods_remain(cluster, &deployment, &sets),
        );
        if plan.is_empty() {
            break;
        }
        created |= plan.create.is_some();
        apply(cluster, &deployment, &sets, plan).await?;
    }
    let Some(deployment) = cluster.deployments.get(key) else {
        return Ok(None);
    };
    let sets = cluster.replica_sets.owned_by(uid);
    let (status, deadline) = status(&deployment, &sets, created, Timestamp::now());
    if deployment.status.as_ref() != Some(&status) {
        let mut changed = (*deployment).clone();
        changed.status = Some(status);
        match cluster.deployments.replace_status(&changed).await {
            Err(failure) if failure.is_not_found() => {}
            result => result?,
        }
    }
    Ok(deadline)
}

/// Whether pods of old sets are there still, terminating ones too.
fn old_pods_remain(cluster: &Cluster, deployment: &Deployment, sets: &[Arc<ReplicaSet>]) -> bool {
    let Some(spec) = &deployment.spec else {
        return false;
    };
    let (_, old) = split(spec, sets);
    old.iter()
        .flat_map(|set| cluster.pods.owned_by(object::uid(&set.metadata)))
        .any(|pod| !pods::is_finished(&pod))
}

async fn apply(
    cluster: &Cluster,
    deployment: &Deployment,
    sets: &[Arc<ReplicaSet>],
    plan: Plan,
) -> Result<(), Failure> {
    let key = Key::of(&deployment.metadata);
    if let Some(revision) = plan.revision {
        let change = json!({"metadata": {
            "uid": deployment.metadata.uid,
            "annotations": {REVISION: revision},
        }});
        cluster.deployments.merge(&key, change).await?;
    }
    if let Some(set) = plan.create {
        match cluster.replica_sets.create(&set).await {
            Ok(_) => say(cluster, deployment, &set, 0),
            Err(failure) if failure.already_exists() => {
                collision(cluster, deployment, &set).await?;
            }
            Err(failure) => return Err(failure),
        }
    }
    for set in plan.update {
        let before = sets
            .iter()
            .find(|old| old.metadata.name == set.metadata.name)
            .map_or(0, |old| size(old));
        cluster.replica_sets.replace(&set).await?;
        if before != size(&set) {
            say(cluster, deployment, &set, before);
        }
    }
    for set in plan.delete {
        cluster.replica_sets.delete(&set).await?;
    }
    Ok(())
}

fn say(cluster: &Cluster, deployment: &Deployment, set: &ReplicaSet, before: i32) {
    let direction = if size(set) >= before { "up" } else { "down" };
    let text = format!(
        "Scaled {direction} replica set {} from {before} to {}",
        object::name(&set.metadata),
        size(set)
    );
    cluster
        .recorder
        .normal(COMPONENT, deployment, "ScalingReplicaSet", text);
}

/// The name is taken: by our own set, which the watch will tell of, or by
/// another template with the same hash; then the next hash is another.
async fn collision(
    cluster: &Cluster,
    deployment: &Deployment,
    set: &ReplicaSet,
) -> Result<(), Failure> {
    let key = Key::of(&set.metadata);
    let Some(there) = cluster.replica_sets.get(&key) else {
        return Ok(());
    };
    let uid = object::uid(&deployment.metadata);
    let ours = object::is_controlled_by(&there.metadata, uid)
        && deployment
            .spec
            .as_ref()
            .is_some_and(|spec| split(spec, std::slice::from_ref(&there)).0.is_some());
    if ours {
        return Ok(());
    }
    let mut changed = deployment.clone();
    let count = &mut changed.status.get_or_insert_default().collision_count;
    *count = Some(count.unwrap_or(0) + 1);
    cluster.deployments.replace_status(&changed).await
}
