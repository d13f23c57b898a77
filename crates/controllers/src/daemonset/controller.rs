//! Applies the plan of a DaemonSet.

use super::plan::plan;
use crate::claim;
use crate::cluster::Cluster;
use crate::create;
use crate::mirror::Failure;
use crate::object::{self, Key};
use crate::queue::Queue;
use crate::revision::{self, Synced};
use crate::selector;
use crate::work::{self, Outcome};
use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetStatus};
use k8s_openapi::jiff::Timestamp;
use std::collections::HashSet;
use std::sync::Arc;
use tokio::sync::watch;
use tokio::task::JoinSet;

const COMPONENT: &str = "daemonset-controller";
/// A burst of changes is answered this often.
const PACE: std::time::Duration = std::time::Duration::from_millis(20);

/// Starts the controller.
pub(crate) fn run(cluster: &Arc<Cluster>, tasks: &mut JoinSet<()>, start: &watch::Receiver<bool>) {
    let queue: Arc<Queue<Key>> = Queue::paced(PACE);
    cluster.daemon_sets.subscribe({
        let queue = queue.clone();
        move |change| queue.add(change.key.clone())
    });
    cluster.pods.subscribe({
        let queue = queue.clone();
        move |change| {
            for pod in change.both() {
                if let Some(owner) = object::controller(&pod.metadata)
                    && owner.kind == "DaemonSet"
                {
                    queue.add(Key::new(&change.key.namespace, &owner.name));
                }
            }
        }
    });
    cluster.nodes.subscribe({
        let queue = queue.clone();
        let sets = Arc::downgrade(&cluster.daemon_sets);
        move |change| {
            if let (Some(old), Some(new)) = (&change.old, &change.new) {
                let same = selector::labels(&old.metadata) == selector::labels(&new.metadata)
                    && crate::scheduler::implied_taints(old)
                        == crate::scheduler::implied_taints(new);
                if same {
                    return;
                }
            }
            for set in sets.upgrade().iter().flat_map(|sets| sets.all()) {
                queue.add(Key::of(&set.metadata));
            }
        }
    });
    work::spawn(tasks, COMPONENT, 4, &queue, start, {
        let cluster = cluster.clone();
        move |key| {
            let cluster = cluster.clone();
            async move { reconcile(&cluster, &key).await }
        }
    });
}

async fn reconcile(cluster: &Cluster, key: &Key) -> Outcome {
    let Some(set) = cluster.daemon_sets.get(key) else {
        return Ok(None);
    };
    let Some(spec) = &set.spec else {
        return Ok(None);
    };
    if selector::is_empty(&spec.selector) {
        let text = "This daemon set is selecting all pods. A non-empty selector is required.";
        cluster
            .recorder
            .warning(COMPONENT, &*set, "SelectingAll", text.into());
        return Ok(None);
    }
    let reference = object::controller_reference("DaemonSet", &set.metadata);
    let claims = claim::plan(
        &set.metadata,
        &spec.selector,
        cluster.pods.in_namespace(&key.namespace),
    );
    let pods = claim::apply(&cluster.pods, &reference, claims).await?;
    let history = cluster.revisions.owned_by(object::uid(&set.metadata));
    let old = set.status.clone().unwrap_or_default();
    let next = revision::next(
        &set.metadata,
        &reference,
        &spec.template,
        old.collision_count.unwrap_or(0),
        &history,
    );
    let update = match revision::sync(cluster, next).await? {
        Synced::Revision(revision) => revision,
        Synced::Collision => {
            let status = DaemonSetStatus {
                collision_count: Some(old.collision_count.unwrap_or(0) + 1),
                ..old
            };
            write_status(cluster, &set, status).await?;
            return Ok(None);
        }
    };
    let hash = object::label(&update.metadata, revision::HASH).unwrap_or_default();
    let nodes = cluster.nodes.all();
    let plan = plan(&set, &nodes, &pods, hash, Timestamp::now());
    let written = write_status(cluster, &set, plan.status).await;
    create::all(cluster, COMPONENT, &*set, plan.create).await?;
    create::delete(cluster, COMPONENT, &*set, plan.delete).await?;
    written?;
    let name = object::name(&set.metadata);
    let mut used: HashSet<String> = [object::name(&update.metadata).to_owned()].into();
    used.extend(
        pods.iter()
            .filter_map(|pod| object::label(&pod.metadata, revision::HASH))
            .map(|hash| format!("{name}-{hash}")),
    );
    revision::forget(cluster, &history, &used, spec.revision_history_limit).await?;
    Ok(plan.deadline)
}

async fn write_status(
    cluster: &Cluster,
    set: &DaemonSet,
    status: DaemonSetStatus,
) -> Result<(), Failure> {
    if set.status.as_ref() == Some(&status) {
        return Ok(());
    }
    let mut set = set.clone();
    set.status = Some(status);
    match cluster.daemon_sets.replace_status(&set).await {
        Err(failure) if failure.is_not_found() => Ok(()),
        result => result,
    }
}
