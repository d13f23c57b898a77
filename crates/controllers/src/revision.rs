//! The history of StatefulSets and DaemonSets: a ControllerRevision a template.

use crate::cluster::Cluster;
use crate::hash;
use crate::mirror::Failure;
use crate::object;
use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::sync::Arc;

/// Label of pods and revisions: which template a pod is of.
pub(crate) const HASH: &str = "controller-revision-hash";

/// What the history lacks.
#[derive(Debug)]
pub(crate) enum Next {
    /// The template's revision is there and the latest.
    Known(Arc<ControllerRevision>),
    /// It is there but was not the latest: somebody went back to it.
    Again(ControllerRevision),
    /// It is new.
    New(ControllerRevision),
}

/// The template as revisions hold it: a strategic merge patch that puts it
/// back, which is what `kubectl rollout undo` applies.
fn data(template: &PodTemplateSpec) -> Value {
    let mut template = serde_json::to_value(template).unwrap_or_default();
    if let Some(fields) = template.as_object_mut() {
        fields.insert("$patch".into(), "replace".into());
    }
    json!({"spec": {"template": template}})
}

/// The template a revision holds.
pub(crate) fn template(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    let template = revision.data.as_ref()?.0.pointer("/spec/template")?;
    serde_json::from_value(template.clone()).ok()
}

/// The revision of the template, given the owner's history.
pub(crate) fn next(
    owner: &ObjectMeta,
    reference: &OwnerReference,
    template: &PodTemplateSpec,
    collisions: i32,
    history: &[Arc<ControllerRevision>],
) -> Next {
    let data = data(template);
    let latest = history
        .iter()
        .map(|revision| revision.revision)
        .max()
        .unwrap_or(0);
    let known = history
        .iter()
        .filter(|revision| revision.data.as_ref().is_some_and(|known| known.0 == data))
        .max_by_key(|revision| revision.revision);
    match known {
        Some(known) if known.revision == latest => Next::Known(known.clone()),
        Some(known) => Next::Again(ControllerRevision {
            revision: latest + 1,
            ..(**known).clone()
        }),
        None => {
            let hash = hash::of(&data, collisions);
            let mut labels = template
                .metadata
                .as_ref()
                .and_then(|meta| meta.labels.clone())
                .unwrap_or_default();
            labels.insert(HASH.into(), hash.clone());
            Next::New(ControllerRevision {
                metadata: ObjectMeta {
                    name: Some(format!("{}-{hash}", object::name(owner))),
                    namespace: owner.namespace.clone(),
                    labels: Some(labels),
                    owner_references: Some(vec![reference.clone()]),
                    ..Default::default()
                },
                data: Some(RawExtension(data)),
                revision: latest + 1,
            })
        }
    }
}

/// Revisions beyond the limit that nothing uses, the oldest.
pub(crate) fn forgotten(
    history: &[Arc<ControllerRevision>],
    in_use: impl Fn(&ControllerRevision) -> bool,
    limit: Option<i32>,
) -> Vec<Arc<ControllerRevision>> {
    let limit = usize::try_from(limit.unwrap_or(10)).unwrap_or(0);
    let mut idle: Vec<_> = history
        .iter()
        .filter(|revision| !in_use(revision))
        .cloned()
        .collect();
    idle.sort_by_key(|revision| revision.revision);
    idle.truncate(idle.len().saturating_sub(limit));
    idle
}

/// The outcome of bringing the history up to date.
#[derive(Debug)]
pub(crate) enum Synced {
    /// The template's revision.
    Revision(Arc<ControllerRevision>),
    /// Its name is taken by another one: the owner must count a collision.
    Collision,
}

/// Writes what the history lacks.
pub(crate) async fn sync(cluster: &Cluster, next: Next) -> Result<Synced, Failure> {
    let revisions = &cluster.revisions;
    match next {
        Next::Known(revision) => Ok(Synced::Revision(revision)),
        Next::Again(revision) => {
            revisions.replace(&revision).await?;
            let key = object::Key::of(&revision.metadata);
            let written = revisions.get(&key);
            Ok(Synced::Revision(
                written.unwrap_or_else(|| Arc::new(revision)),
            ))
        }
        Next::New(revision) => match revisions.create(&revision).await {
            Ok(made) => Ok(Synced::Revision(Arc::new(made))),
            Err(failure) if failure.already_exists() => {
                let key = object::Key::of(&revision.metadata);
                match revisions.get(&key) {
                    Some(there) if there.data == revision.data => Ok(Synced::Revision(there)),
                    Some(_) => Ok(Synced::Collision),
                    None => Err(failure),
                }
            }
            Err(failure) => Err(failure),
        },
    }
}

/// Deletes old revisions.
pub(crate) async fn forget(
    cluster: &Cluster,
    history: &[Arc<ControllerRevision>],
    used: &HashSet<String>,
    limit: Option<i32>,
) -> Result<(), Failure> {
    let in_use = |revision: &ControllerRevision| used.contains(object::name(&revision.metadata));
    for revision in forgotten(history, in_use, limit) {
        cluster.revisions.delete(&revision).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner() -> ObjectMeta {
        serde_json::from_value(json!({"name": "web", "namespace": "ns", "uid": "u"})).unwrap()
    }

    fn of(image: &str) -> PodTemplateSpec {
        serde_json::from_value(json!({"metadata": {"labels": {"app": "web"}},
            "spec": {"containers": [{"name": "c", "image": image}]}}))
        .unwrap()
    }

    fn step(history: &mut Vec<Arc<ControllerRevision>>, image: &str) -> i64 {
        let reference = object::controller_reference("StatefulSet", &owner());
        match next(&owner(), &reference, &of(image), 0, history) {
            Next::Known(known) => known.revision,
            Next::Again(again) => {
                history.retain(|old| old.metadata.name != again.metadata.name);
                history.push(Arc::new(again.clone()));
                again.revision
            }
            Next::New(new) => {
                history.push(Arc::new(new.clone()));
                new.revision
            }
        }
    }

    #[test]
    fn each_template_is_a_revision_and_an_old_one_becomes_the_latest_again() {
        let mut history = Vec::new();
        assert_eq!(step(&mut history, "one"), 1);
        assert_eq!(step(&mut history, "one"), 1);
        assert_eq!(step(&mut history, "two"), 2);
        assert_eq!(step(&mut history, "one"), 3);
        assert_eq!(history.len(), 2);
        assert_eq!(template(history.last().unwrap()), Some(of("one")));
    }

    #[test]
    fn the_history_is_no_longer_than_its_limit_and_keeps_what_is_used() {
        let mut history = Vec::new();
        for image in ["one", "two", "three", "four"] {
            step(&mut history, image);
        }
        let gone: Vec<_> = forgotten(&history, |revision| revision.revision == 1, Some(1))
            .iter()
            .map(|revision| revision.revision)
            .collect();
        assert_eq!(gone, [2, 3]);
    }
}
