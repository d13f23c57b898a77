//! The next writes of a rollout. No I/O.

use super::scale::{
    DESIRED, MOST, is_recreate, is_resized, next_new_size, proportional, replicas, shrink_old,
    size, surge_and_unavailable,
};
use crate::hash;
use crate::object;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Label that tells the pods of one template from those of another.
pub(super) const TEMPLATE_HASH: &str = "pod-template-hash";
/// The number of a rollout.
pub(super) const REVISION: &str = "deployment.kubernetes.io/revision";
const HISTORY: &str = "deployment.kubernetes.io/revision-history";
/// Annotations that are not the sets' business, or are their own.
const NOT_COPIED: [&str; 5] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    HISTORY,
    DESIRED,
    MOST,
];

/// The next writes; all empty when nothing is to be done until something
/// changes.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) create: Option<ReplicaSet>,
    pub(super) update: Vec<ReplicaSet>,
    pub(super) delete: Vec<Arc<ReplicaSet>>,
    /// The Deployment's revision annotation, when it is another now.
    pub(super) revision: Option<String>,
}

impl Plan {
    pub(super) fn is_empty(&self) -> bool {
        self.create.is_none()
            && self.update.is_empty()
            && self.delete.is_empty()
            && self.revision.is_none()
    }
}

/// The set with the Deployment's template (the oldest, should there be
/// several), and the others.
pub(super) fn split(
    spec: &DeploymentSpec,
    sets: &[Arc<ReplicaSet>],
) -> (Option<Arc<ReplicaSet>>, Vec<Arc<ReplicaSet>>) {
    let mut sets = sets.to_vec();
    sets.sort_by_key(|set| (object::created(&set.metadata), set.metadata.name.clone()));
    let new = sets
        .iter()
        .position(|set| {
            set.spec
                .as_ref()
                .and_then(|spec| spec.template.as_ref())
                .is_some_and(|template| {
                    hash::same_template(template, &spec.template, TEMPLATE_HASH)
                })
        })
        .map(|index| sets.remove(index));
    (new, sets)
}

fn revision(set: &ReplicaSet) -> i64 {
    object::annotation(&set.metadata, REVISION)
        .and_then(|text| text.parse().ok())
        .unwrap_or(0)
}

/// Plans the next writes. `old_pods_remain`: pods of old sets are still there.
pub(super) fn plan(
    deployment: &Deployment,
    sets: &[Arc<ReplicaSet>],
    old_pods_remain: bool,
) -> Plan {
    let mut plan = Plan::default();
    let Some(spec) = &deployment.spec else {
        return plan;
    };
    if object::is_deleting(&deployment.metadata) {
        return plan;
    }
    let (new, old) = split(spec, sets);
    let paused = spec.paused == Some(true);
    if paused || is_resized(spec, sets) {
        rescale(&mut plan, deployment, spec, new.as_deref(), sets);
        return plan;
    }
    let active: Vec<_> = old.iter().filter(|set| size(set) > 0).cloned().collect();
    if is_recreate(spec) {
        if !active.is_empty() {
            plan.update
                .extend(active.iter().map(|set| resized(set, spec, 0)));
            return plan;
        }
        let ours = new.as_ref().is_some_and(|set| size(set) > 0);
        if old_pods_remain && !ours {
            return plan;
        }
    }
    let others: i32 = old.iter().map(|set| size(set)).sum();
    let next = next_new_size(
        spec,
        new.as_deref().map_or(0, size),
        others + new.as_deref().map_or(0, size),
    );
    let latest = old.iter().map(|set| revision(set)).max().unwrap_or(0) + 1;
    let number = match &new {
        Some(set) => {
            let mut wanted = resized(set, spec, next);
            renew(&mut wanted, deployment, spec, latest);
            let number = revision(&wanted);
            if wanted != **set {
                plan.update.push(wanted);
            }
            number
        }
        None => {
            plan.create = Some(first(deployment, spec, next, latest));
            latest
        }
    };
    let known = object::annotation(&deployment.metadata, REVISION);
    if known != Some(number.to_string().as_str()) {
        plan.revision = Some(number.to_string());
    }
    // As upstream: first the new set grows, then the old ones shrink, so that
    // each step counts what the one before has made.
    if plan.create.is_none() && plan.update.is_empty() && !is_recreate(spec) {
        plan.update.extend(
            shrink_old(spec, new.as_deref(), &active)
                .into_iter()
                .map(|(set, size)| resized(&set, spec, size)),
        );
    }
    if is_complete(deployment, spec) {
        plan.delete = forgotten(spec, &old);
    }
    plan
}

fn rescale(
    plan: &mut Plan,
    deployment: &Deployment,
    spec: &DeploymentSpec,
    new: Option<&ReplicaSet>,
    sets: &[Arc<ReplicaSet>],
) {
    let wanted = replicas(spec);
    let active: Vec<_> = sets.iter().filter(|set| size(set) > 0).cloned().collect();
    let push = |plan: &mut Plan, set: &Arc<ReplicaSet>, size: i32| {
        let resized = resized(set, spec, size);
        if resized != **set {
            plan.update.push(resized);
        }
    };
    let only = match active.as_slice() {
        [only] => Some(only.clone()),
        // Nobody runs: it is the latest that would.
        [] => sets
            .iter()
            .filter(|set| new.is_none_or(|new| new.metadata.name == set.metadata.name))
            .max_by_key(|set| object::created(&set.metadata))
            .cloned(),
        _ => None,
    };
    if let Some(only) = only {
        push(plan, &only, wanted);
        return;
    }
    let saturated = new.is_some_and(|new| {
        let available = new
            .status
            .as_ref()
            .and_then(|status| status.available_replicas)
            .unwrap_or(0);
        size(new) == wanted && available == wanted
    });
    if saturated {
        for set in active
            .iter()
            .filter(|set| new.is_some_and(|new| new.metadata.name != set.metadata.name))
        {
            push(plan, set, 0);
        }
        if let Some(set) = active
            .iter()
            .find(|set| new.is_some_and(|new| new.metadata.name == set.metadata.name))
        {
            push(plan, set, wanted);
        }
    } else if is_recreate(spec) {
        for set in &active {
            let is_new = new.is_some_and(|new| new.metadata.name == set.metadata.name);
            push(plan, set, if is_new { wanted } else { size(set) });
        }
    } else {
        for (set, size) in proportional(deployment, spec, &active) {
            push(plan, &set, size);
        }
    }
}

/// The set with another size, and a note of what the Deployment's was.
fn resized(set: &ReplicaSet, spec: &DeploymentSpec, size: i32) -> ReplicaSet {
    let mut set = set.clone();
    set.spec.get_or_insert_default().replicas = Some(size);
    let annotations = set.metadata.annotations.get_or_insert_default();
    annotations.extend(size_notes(spec));
    set
}

fn size_notes(spec: &DeploymentSpec) -> [(String, String); 2] {
    let (surge, _) = surge_and_unavailable(spec);
    let wanted = replicas(spec);
    [
        (DESIRED.to_owned(), wanted.to_string()),
        (MOST.to_owned(), (wanted + surge).to_string()),
    ]
}

fn copied(deployment: &Deployment) -> BTreeMap<String, String> {
    let mut annotations = deployment.metadata.annotations.clone().unwrap_or_default();
    annotations.retain(|key, _| !NOT_COPIED.contains(&key.as_str()));
    annotations
}

/// Brings the set up to date with what may change of a Deployment without
/// another template.
fn renew(set: &mut ReplicaSet, deployment: &Deployment, spec: &DeploymentSpec, latest: i64) {
    set.spec.get_or_insert_default().min_ready_seconds = spec.min_ready_seconds;
    let old = revision(set);
    let annotations = set.metadata.annotations.get_or_insert_default();
    annotations.extend(copied(deployment));
    if old < latest {
        if old > 0 {
            let history = annotations.entry(HISTORY.to_owned()).or_default();
            if !history.is_empty() {
                history.push(',');
            }
            history.push_str(&old.to_string());
        }
        annotations.insert(REVISION.to_owned(), latest.to_string());
    }
}

fn first(deployment: &Deployment, spec: &DeploymentSpec, size: i32, revision: i64) -> ReplicaSet {
    let collisions = deployment
        .status
        .as_ref()
        .and_then(|status| status.collision_count)
        .unwrap_or(0);
    let hash = hash::of(
        &hash::without_label(&spec.template, TEMPLATE_HASH),
        collisions,
    );
    let mut template = spec.template.clone();
    let labels = template
        .metadata
        .get_or_insert_default()
        .labels
        .get_or_insert_default();
    labels.insert(TEMPLATE_HASH.to_owned(), hash.clone());
    let labels = labels.clone();
    let mut selector = spec.selector.clone();
    selector
        .match_labels
        .get_or_insert_default()
        .insert(TEMPLATE_HASH.to_owned(), hash.clone());
    let mut annotations = copied(deployment);
    annotations.extend(size_notes(spec));
    annotations.insert(REVISION.to_owned(), revision.to_string());
    ReplicaSet {
        metadata: ObjectMeta {
            name: Some(format!("{}-{hash}", object::name(&deployment.metadata))),
            namespace: deployment.metadata.namespace.clone(),
            labels: Some(labels),
            annotations: Some(annotations),
            owner_references: Some(vec![object::controller_reference(
                "Deployment",
                &deployment.metadata,
            )]),
            ..Default::default()
        },
        spec: Some(ReplicaSetSpec {
            replicas: Some(size),
            min_ready_seconds: spec.min_ready_seconds,
            selector,
            template: Some(template),
        }),
        status: None,
    }
}

/// Whether all pods are new and serve.
pub(super) fn is_complete(deployment: &Deployment, spec: &DeploymentSpec) -> bool {
    let wanted = replicas(spec);
    let Some(status) = &deployment.status else {
        return false;
    };
    status.updated_replicas.unwrap_or(0) == wanted
        && status.replicas.unwrap_or(0) == wanted
        && status.available_replicas.unwrap_or(0) == wanted
        && status.observed_generation >= deployment.metadata.generation
}

/// Old sets beyond the history's limit, the oldest.
fn forgotten(spec: &DeploymentSpec, old: &[Arc<ReplicaSet>]) -> Vec<Arc<ReplicaSet>> {
    let limit = usize::try_from(spec.revision_history_limit.unwrap_or(10)).unwrap_or(0);
    let mut idle: Vec<_> = old
        .iter()
        .filter(|set| {
            let status = set.status.as_ref();
            size(set) == 0
                && status.is_none_or(|status| status.replicas == 0)
                && !object::is_deleting(&set.metadata)
                && status.and_then(|status| status.observed_generation) >= set.metadata.generation
        })
        .cloned()
        .collect();
    idle.sort_by_key(|set| revision(set));
    idle.truncate(idle.len().saturating_sub(limit));
    idle
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn deployment(spec: Value) -> Deployment {
        let mut all = json!({"replicas": 4, "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "c", "image": "one"}]}},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 1}}});
        all.as_object_mut()
            .unwrap()
            .extend(spec.as_object().unwrap().clone());
        serde_json::from_value(
            json!({"metadata": {"name": "web", "namespace": "ns", "uid": "d",
            "generation": 1, "annotations": {"note": "hello", REVISION: "1"}}, "spec": all}),
        )
        .unwrap()
    }

    fn image(deployment: &mut Deployment, image: &str) {
        let spec = deployment.spec.as_mut().unwrap();
        spec.template.spec.as_mut().unwrap().containers[0].image = Some(image.into());
    }

    /// A little world: sets come up as told.
    struct World {
        deployment: Deployment,
        sets: Vec<Arc<ReplicaSet>>,
        serial: i64,
    }

    impl World {
        fn new(deployment: Deployment) -> Self {
            Self {
                deployment,
                sets: Vec::new(),
                serial: 0,
            }
        }

        fn step(&mut self) -> bool {
            let plan = plan(&self.deployment, &self.sets, false);
            if plan.is_empty() {
                return false;
            }
            for set in plan.update {
                let place = self
                    .sets
                    .iter_mut()
                    .find(|old| old.metadata.name == set.metadata.name)
                    .unwrap();
                *place = Arc::new(set);
            }
            if let Some(mut set) = plan.create {
                self.serial += 1;
                set.metadata.creation_timestamp = Some(object::time(
                    k8s_openapi::jiff::Timestamp::from_second(self.serial).unwrap(),
                ));
                self.sets.push(Arc::new(set));
            }
            self.sets.retain(|set| {
                !plan
                    .delete
                    .iter()
                    .any(|gone| gone.metadata.name == set.metadata.name)
            });
            if let Some(revision) = plan.revision {
                self.deployment
                    .metadata
                    .annotations
                    .get_or_insert_default()
                    .insert(REVISION.into(), revision);
            }
            true
        }

        fn pods_come_up(&mut self) {
            for set in &mut self.sets {
                let size = size(set);
                let mut new = (**set).clone();
                let status = new.status.get_or_insert_default();
                status.replicas = size;
                status.available_replicas = Some(size);
                *set = Arc::new(new);
            }
        }

        fn settle(&mut self) {
            for _ in 0..100 {
                while self.step() {}
                self.pods_come_up();
                if !self.step() {
                    let total: i32 = self.sets.iter().map(|set| size(set)).sum();
                    let status = self.deployment.status.get_or_insert_default();
                    status.replicas = Some(total);
                    status.updated_replicas = Some(total);
                    status.available_replicas = Some(total);
                    status.observed_generation = Some(1);
                    if !self.step() {
                        return;
                    }
                }
            }
            panic!("does not settle");
        }

        fn sizes(&self) -> Vec<i32> {
            self.sets.iter().map(|set| size(set)).collect()
        }

        fn revision(&self) -> &str {
            object::annotation(&self.deployment.metadata, REVISION).unwrap_or_default()
        }
    }

    #[test]
    fn the_first_set_has_hash_selector_labels_owner_and_notes() {
        let plan = plan(&deployment(json!({})), &[], false);
        let set = plan.create.unwrap();
        let hash = object::label(&set.metadata, TEMPLATE_HASH)
            .unwrap()
            .to_owned();
        assert_eq!(set.metadata.name.as_deref(), Some(&*format!("web-{hash}")));
        let spec = set.spec.as_ref().unwrap();
        assert_eq!(spec.replicas, Some(4));
        assert_eq!(
            spec.selector.match_labels.as_ref().unwrap()[TEMPLATE_HASH],
            hash
        );
        let template = spec.template.as_ref().unwrap().metadata.as_ref().unwrap();
        assert_eq!(object::label(template, TEMPLATE_HASH), Some(&*hash));
        assert!(object::is_controlled_by(&set.metadata, "d"));
        assert_eq!(
            serde_json::to_value(&set.metadata.annotations).unwrap(),
            json!({"note": "hello", REVISION: "1", DESIRED: "4", MOST: "5"})
        );
    }

    #[test]
    fn a_rollout_and_its_undo_reuse_the_old_set_with_a_new_revision() {
        let mut world = World::new(deployment(json!({})));
        world.settle();
        assert_eq!((world.sizes(), world.revision()), (vec![4], "1"));
        image(&mut world.deployment, "two");
        world.settle();
        assert_eq!((world.sizes(), world.revision()), (vec![0, 4], "2"));
        image(&mut world.deployment, "one");
        world.settle();
        assert_eq!((world.sizes(), world.revision()), (vec![4, 0], "3"));
        assert_eq!(
            object::annotation(&world.sets[0].metadata, HISTORY),
            Some("1")
        );
    }

    #[test]
    fn the_history_is_no_longer_than_its_limit() {
        let mut world = World::new(deployment(json!({"revisionHistoryLimit": 1})));
        for name in ["one", "two", "three", "four"] {
            image(&mut world.deployment, name);
            world.settle();
        }
        assert_eq!(world.sizes(), [0, 4]);
    }

    #[test]
    fn a_paused_deployment_is_scaled_but_not_rolled_out() {
        let mut world = World::new(deployment(json!({})));
        world.settle();
        let spec = world.deployment.spec.as_mut().unwrap();
        spec.paused = Some(true);
        spec.replicas = Some(6);
        image(&mut world.deployment, "two");
        world.settle();
        assert_eq!(world.sizes(), [6]);
        world.deployment.spec.as_mut().unwrap().paused = None;
        world.settle();
        assert_eq!(world.sizes(), [0, 6]);
    }

    #[test]
    fn recreate_waits_until_the_last_old_pod_is_gone() {
        let mut world = World::new(deployment(json!({"strategy": {"type": "Recreate"}})));
        world.settle();
        image(&mut world.deployment, "two");
        assert!(world.step());
        assert_eq!(world.sizes(), [0]);
        assert!(plan(&world.deployment, &world.sets, true).is_empty());
        assert!(plan(&world.deployment, &world.sets, false).create.is_some());
    }

    #[test]
    fn scaling_to_zero_and_back_keeps_one_set() {
        let mut world = World::new(deployment(json!({})));
        world.settle();
        world.deployment.spec.as_mut().unwrap().replicas = Some(0);
        world.settle();
        assert_eq!(world.sizes(), [0]);
        world.deployment.spec.as_mut().unwrap().replicas = Some(3);
        world.settle();
        assert_eq!(world.sizes(), [3]);
    }
}
