//! Applies the plan of a StatefulSet.

use super::plan::{Version, ordinal, plan};
use crate::claim;
use crate::cluster::Cluster;
use crate::create;
use crate::mirror::Failure;
use crate::object::{self, Key};
use crate::queue::Queue;
use crate::revision::{self, Synced};
use crate::work::{self, Outcome};
use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetStatus};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::jiff::Timestamp;
use std::collections::HashSet;
use std::sync::Arc;
use tokio::sync::watch;
use tokio::task::JoinSet;

const COMPONENT: &str = "statefulset-controller";

/// Starts the controller.
pub(crate) fn run(cluster: &Arc<Cluster>, tasks: &mut JoinSet<()>, start: &watch::Receiver<bool>) {
    let queue: Arc<Queue<Key>> = Arc::default();
    cluster.stateful_sets.subscribe({
        let queue = queue.clone();
        move |change| queue.add(change.key.clone())
    });
    cluster.pods.subscribe({
        let queue = queue.clone();
        let sets = Arc::downgrade(&cluster.stateful_sets);
        move |change| {
            for pod in change.both() {
                match object::controller(&pod.metadata) {
                    Some(owner) if owner.kind == "StatefulSet" => {
                        queue.add(Key::new(&change.key.namespace, &owner.name));
                    }
                    Some(_) => {}
                    // A stray by the name of one of our pods.
                    None => {
                        let owner = change.key.name.rsplit_once('-').map(|(name, _)| name);
                        let key = Key::new(&change.key.namespace, owner.unwrap_or_default());
                        if sets.upgrade().is_some_and(|sets| sets.get(&key).is_some()) {
                            queue.add(key);
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

async fn reconcile(cluster: &Cluster, key: &Key) -> Outcome {
    let Some(set) = cluster.stateful_sets.get(key) else {
        return Ok(None);
    };
    let Some(spec) = &set.spec else {
        return Ok(None);
    };
    let claimed = spec
        .volume_claim_templates
        .as_ref()
        .is_some_and(|claims| !claims.is_empty());
    if claimed {
        let text = "spec.volumeClaimTemplates: the lab has no persistent volumes, so no pods \
                    are made; use a volume of kind emptyDir or hostPath in spec.template instead";
        cluster
            .recorder
            .warning(COMPONENT, &*set, "VolumeClaimsNotSupported", text.into());
        return Ok(None);
    }
    let reference = object::controller_reference("StatefulSet", &set.metadata);
    let candidates: Vec<_> = cluster
        .pods
        .in_namespace(&key.namespace)
        .into_iter()
        .filter(|pod| {
            // A stray is adopted only if its name is one of the set's.
            object::controller(&pod.metadata).is_some() || ordinal(&set, pod).is_some()
        })
        .collect();
    let claims = claim::plan(&set.metadata, &spec.selector, candidates);
    let pods = claim::apply(&cluster.pods, &reference, claims).await?;
    let uid = object::uid(&set.metadata);
    let history = cluster.revisions.owned_by(uid);
    let old = set.status.clone().unwrap_or_default();
    let next = revision::next(
        &set.metadata,
        &reference,
        &spec.template,
        old.collision_count.unwrap_or(0),
        &history,
    );
    let update = match revision::sync(cluster, next).await? {
        Synced::Revision(revision) => Version {
            name: object::name(&revision.metadata).to_owned(),
            template: spec.template.clone(),
        },
        Synced::Collision => {
            let status = StatefulSetStatus {
                collision_count: Some(old.collision_count.unwrap_or(0) + 1),
                ..old
            };
            write_status(cluster, &set, status).await?;
            return Ok(None);
        }
    };
    let current = current(cluster, key, old.current_revision.as_deref(), &update);
    let plan = plan(&set, &pods, &current, &update, Timestamp::now());
    let written = write_status(cluster, &set, plan.status).await;
    create::all(cluster, COMPONENT, &*set, plan.create).await?;
    create::delete(cluster, COMPONENT, &*set, plan.delete).await?;
    written?;
    let mut used: HashSet<String> = [current.name, update.name].into();
    used.extend(
        pods.iter()
            .filter_map(|pod| object::label(&pod.metadata, revision::HASH))
            .map(str::to_owned),
    );
    revision::forget(cluster, &history, &used, spec.revision_history_limit).await?;
    Ok(plan.deadline)
}

/// What the pods were of before the update: the revision the status names, or
/// the update's own for a new set.
fn current(cluster: &Cluster, key: &Key, name: Option<&str>, update: &Version) -> Version {
    let template: Option<PodTemplateSpec> = name
        .filter(|name| *name != update.name)
        .and_then(|name| cluster.revisions.get(&Key::new(&key.namespace, name)))
        .and_then(|revision| revision::template(&revision));
    match (name, template) {
        (Some(name), Some(template)) => Version {
            name: name.to_owned(),
            template,
        },
        _ => update.clone(),
    }
}

async fn write_status(
    cluster: &Cluster,
    set: &StatefulSet,
    status: StatefulSetStatus,
) -> Result<(), Failure> {
    if set.status.as_ref() == Some(&status) {
        return Ok(());
    }
    let mut set = set.clone();
    set.status = Some(status);
    match cluster.stateful_sets.replace_status(&set).await {
        Err(failure) if failure.is_not_found() => Ok(()),
        result => result,
    }
}
