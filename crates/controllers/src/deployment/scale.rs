//! How many replicas each ReplicaSet of a Deployment should have. No I/O.

use crate::intstr;
use crate::object;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, ReplicaSet};
use std::cmp::Reverse;
use std::sync::Arc;

/// The Deployment's size when the set was last scaled.
pub(super) const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
/// Most pods the Deployment allowed then.
pub(super) const MOST: &str = "deployment.kubernetes.io/max-replicas";

/// Replicas asked for.
pub(super) fn replicas(spec: &DeploymentSpec) -> i32 {
    spec.replicas.unwrap_or(1).max(0)
}

/// Whether old pods all go before new ones come.
pub(super) fn is_recreate(spec: &DeploymentSpec) -> bool {
    spec.strategy
        .as_ref()
        .and_then(|strategy| strategy.type_.as_deref())
        == Some("Recreate")
}

/// Pods above the wanted number and pods missing that a rollout may have; never
/// both zero, or nothing would ever move.
pub(super) fn surge_and_unavailable(spec: &DeploymentSpec) -> (i32, i32) {
    if is_recreate(spec) {
        return (0, 0);
    }
    let rolling = spec
        .strategy
        .as_ref()
        .and_then(|strategy| strategy.rolling_update.clone())
        .unwrap_or_default();
    let quarter = intstr::percent(25);
    let total = replicas(spec);
    let surge = intstr::scaled(rolling.max_surge.as_ref().unwrap_or(&quarter), total, true);
    let missing = intstr::scaled(
        rolling.max_unavailable.as_ref().unwrap_or(&quarter),
        total,
        false,
    );
    if surge == 0 && missing == 0 {
        (0, 1)
    } else {
        (surge, missing.min(total))
    }
}

/// Replicas the set has been told to have.
pub(super) fn size(set: &ReplicaSet) -> i32 {
    set.spec
        .as_ref()
        .and_then(|spec| spec.replicas)
        .unwrap_or(1)
}

fn available(set: &ReplicaSet) -> i32 {
    set.status
        .as_ref()
        .and_then(|status| status.available_replicas)
        .unwrap_or(0)
}

fn annotated(set: &ReplicaSet, key: &str) -> Option<i32> {
    object::annotation(&set.metadata, key)?.parse().ok()
}

/// Whether the Deployment was resized since its sets were scaled.
pub(super) fn is_resized(spec: &DeploymentSpec, sets: &[Arc<ReplicaSet>]) -> bool {
    sets.iter()
        .filter(|set| size(set) > 0)
        .any(|set| annotated(set, DESIRED).is_some_and(|desired| desired != replicas(spec)))
}

/// Size of the newest set in a rolling update, given the sizes of all.
pub(super) fn next_new_size(spec: &DeploymentSpec, new: i32, all: i32) -> i32 {
    let wanted = replicas(spec);
    if is_recreate(spec) || new >= wanted {
        return wanted;
    }
    let (surge, _) = surge_and_unavailable(spec);
    let room = (wanted + surge - all).max(0);
    new + room.min(wanted - new)
}

/// New sizes of old sets in a rolling update: pods that do not serve go first,
/// then as many as may be missing.
pub(super) fn shrink_old(
    spec: &DeploymentSpec,
    new: Option<&ReplicaSet>,
    old: &[Arc<ReplicaSet>],
) -> Vec<(Arc<ReplicaSet>, i32)> {
    let (_, missing) = surge_and_unavailable(spec);
    let least = replicas(spec) - missing;
    let old_total: i32 = old.iter().map(|set| size(set)).sum();
    let total = old_total + new.map_or(0, size);
    let new_unavailable = new.map_or(0, |set| size(set) - available(set));
    let mut budget = total - least - new_unavailable;
    if budget <= 0 {
        return Vec::new();
    }
    let mut by_age = old.to_vec();
    by_age.sort_by_key(|set| (object::created(&set.metadata), set.metadata.name.clone()));
    let mut sizes: Vec<_> = by_age.iter().map(|set| size(set)).collect();
    for (set, size) in by_age.iter().zip(&mut sizes) {
        let useless = (*size - available(set)).max(0).min(budget);
        *size -= useless;
        budget -= useless;
    }
    // What is left must come from pods that serve; some are always needed.
    let serving: i32 = by_age
        .iter()
        .map(|set| available(set))
        .chain(new.map(available))
        .sum();
    let mut spare = serving - least;
    for (set, size) in by_age.iter().zip(&mut sizes) {
        let serve = available(set).min(*size);
        let goes = serve.min(spare).max(0);
        *size -= goes;
        spare -= goes;
    }
    by_age
        .into_iter()
        .zip(sizes)
        .filter(|(set, new)| size(set) != *new)
        .collect()
}

/// New sizes when the Deployment was resized in the middle of a rollout: each
/// set gets its share, the largest what is left over.
pub(super) fn proportional(
    deployment: &Deployment,
    spec: &DeploymentSpec,
    active: &[Arc<ReplicaSet>],
) -> Vec<(Arc<ReplicaSet>, i32)> {
    let wanted = replicas(spec);
    let (surge, _) = surge_and_unavailable(spec);
    let allowed = if wanted > 0 { wanted + surge } else { 0 };
    let total: i32 = active.iter().map(|set| size(set)).sum();
    let add = allowed - total;
    let mut sets = active.to_vec();
    if add >= 0 {
        sets.sort_by_key(|set| (Reverse(size(set)), Reverse(object::created(&set.metadata))));
    } else {
        sets.sort_by_key(|set| (Reverse(size(set)), object::created(&set.metadata)));
    }
    let before = deployment
        .status
        .as_ref()
        .and_then(|status| status.replicas)
        .unwrap_or(0);
    let mut left = add;
    let mut sizes: Vec<i32> = sets
        .iter()
        .map(|set| {
            if left == 0 || size(set) == 0 {
                return size(set);
            }
            let base = annotated(set, MOST)
                .filter(|most| *most > 0)
                .unwrap_or(before);
            let share = if base > 0 {
                let share = f64::from(size(set)) * f64::from(allowed) / f64::from(base)
                    - f64::from(size(set));
                // Shares are small whole numbers; the cast saturates.
                share.round() as i32
            } else {
                0
            };
            let share = if add > 0 {
                share.clamp(0, left.max(0))
            } else {
                share.clamp(left.min(0), 0)
            };
            left -= share;
            size(set) + share
        })
        .collect();
    if let Some(first) = sizes.first_mut() {
        *first = (*first + left).max(0);
    }
    sets.into_iter().zip(sizes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rstest::rstest;
    use serde_json::{Value, json};

    fn spec(replicas: i32, surge: Value, unavailable: Value) -> DeploymentSpec {
        serde_json::from_value(json!({"replicas": replicas, "selector": {}, "template": {},
            "strategy": {"rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}}}))
        .unwrap()
    }

    fn set(name: &str, replicas: i32, available: i32, most: Option<i32>) -> Arc<ReplicaSet> {
        let annotations = most.map(|most| json!({MOST: most.to_string()}));
        Arc::new(
            serde_json::from_value(
                json!({"metadata": {"name": name, "annotations": annotations},
                "spec": {"replicas": replicas, "selector": {}},
                "status": {"replicas": replicas, "availableReplicas": available}}),
            )
            .unwrap(),
        )
    }

    fn sizes(changes: Vec<(Arc<ReplicaSet>, i32)>) -> Vec<(String, i32)> {
        changes
            .into_iter()
            .map(|(set, size)| (object::name(&set.metadata).to_owned(), size))
            .collect()
    }

    #[rstest]
    #[case::default(10, json!(null), json!(null), (3, 2))]
    #[case::absolute(10, json!(1), json!(0), (1, 0))]
    #[case::both_zero(10, json!(0), json!(0), (0, 1))]
    #[case::both_round_to_something(1, json!("25%"), json!("25%"), (1, 0))]
    #[case::never_more_missing_than_there_are(2, json!(0), json!(5), (0, 2))]
    fn the_bounds_of_a_rollout(
        #[case] replicas: i32,
        #[case] surge: Value,
        #[case] unavailable: Value,
        #[case] expected: (i32, i32),
    ) {
        assert_eq!(
            surge_and_unavailable(&spec(replicas, surge, unavailable)),
            expected
        );
    }

    #[rstest]
    #[case::room_for_the_surge(0, 10, 3)]
    #[case::no_room(3, 13, 3)]
    #[case::after_old_ones_went(3, 11, 5)]
    #[case::not_beyond_the_wanted(9, 9, 10)]
    #[case::too_many(12, 12, 10)]
    fn the_new_set_grows_into_the_room_there_is(
        #[case] new: i32,
        #[case] all: i32,
        #[case] expected: i32,
    ) {
        assert_eq!(
            next_new_size(&spec(10, json!(3), json!(2)), new, all),
            expected
        );
    }

    #[test]
    fn old_sets_shrink_by_what_may_be_missing() {
        let spec = spec(10, json!(3), json!(2));
        let new = set("new", 3, 0, None);
        let old = [set("old", 10, 10, None)];
        assert_eq!(
            sizes(shrink_old(&spec, Some(&new), &old)),
            [("old".to_owned(), 8)]
        );
    }

    #[test]
    fn old_pods_that_do_not_serve_go_first() {
        let spec = spec(10, json!(3), json!(2));
        let new = set("new", 3, 3, None);
        let old = [set("old-a", 5, 5, None), set("old-b", 5, 0, None)];
        assert_eq!(
            sizes(shrink_old(&spec, Some(&new), &old)),
            [("old-b".to_owned(), 0)]
        );
    }

    #[test]
    fn a_new_set_that_does_not_come_up_stops_the_rollout() {
        let spec = spec(10, json!(3), json!(2));
        let new = set("new", 5, 0, None);
        let old = [set("old", 8, 8, None)];
        assert_eq!(sizes(shrink_old(&spec, Some(&new), &old)), []);
    }

    #[test]
    fn a_resize_in_a_rollout_is_shared_out() {
        let deployment = Deployment::default();
        let spec = spec(20, json!(0), json!(1));
        let sets = [set("a", 6, 6, Some(10)), set("b", 4, 4, Some(10))];
        assert_eq!(
            sizes(proportional(&deployment, &spec, &sets)),
            [("a".to_owned(), 12), ("b".to_owned(), 8)]
        );
    }

    proptest! {
        /// Step by step, with pods that come up at once or not, a rollout never
        /// leaves its bounds, and ends.
        #[test]
        fn a_rollout_stays_within_its_bounds_and_ends(
            replicas in 1_i32..20, surge in 0_i32..5, unavailable in 0_i32..5
        ) {
            let spec = spec(replicas, json!(surge), json!(unavailable));
            let (surge, unavailable) = surge_and_unavailable(&spec);
            let (mut new, mut old) = (0, replicas);
            let (mut new_ready, mut old_ready) = (0, replicas);
            for _ in 0..200 {
                new = next_new_size(&spec, new, new + old);
                let sets = [set("old", old, old_ready, None)];
                for (_, size) in shrink_old(&spec, Some(&set("new", new, new_ready, None)), &sets) {
                    old = size;
                    old_ready = old_ready.min(old);
                }
                prop_assert!(new + old <= replicas + surge);
                prop_assert!(new_ready + old_ready >= replicas - unavailable);
                new_ready = new;
            }
            prop_assert_eq!((new, old), (replicas, 0));
        }

        /// Shares add up to what is allowed.
        #[test]
        fn shares_add_up(sizes in prop::collection::vec(0_i32..20, 1..5), wanted in 0_i32..60) {
            let spec = spec(wanted, json!(0), json!(1));
            let total: i32 = sizes.iter().sum();
            let sets: Vec<_> = sizes.iter().enumerate()
                .map(|(index, size)| set(&index.to_string(), *size, *size, Some(total.max(1))))
                .collect();
            let shared: i32 = proportional(&Deployment::default(), &spec, &sets).iter().map(|(_, size)| size).sum();
            prop_assert_eq!(shared, wanted);
        }
    }
}
