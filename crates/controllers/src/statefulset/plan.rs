//! The next step of a StatefulSet. No I/O.

use crate::create;
use crate::intstr;
use crate::object;
use crate::pods;
use crate::revision::HASH;
use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetSpec, StatefulSetStatus};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::jiff::Timestamp;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";
const POD_INDEX: &str = "apps.kubernetes.io/pod-index";

/// A template and the name of its revision.
#[derive(Clone, Debug)]
pub(super) struct Version {
    pub(super) name: String,
    pub(super) template: PodTemplateSpec,
}

/// The next writes and the status, and when to look again because a pod will
/// have been ready for long enough.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) create: Vec<Pod>,
    pub(super) delete: Vec<Arc<Pod>>,
    pub(super) status: StatefulSetStatus,
    pub(super) deadline: Option<Duration>,
}

/// The pod's number in the set, if its name is one of the set's.
pub(super) fn ordinal(set: &StatefulSet, pod: &Pod) -> Option<i32> {
    let name = object::name(&pod.metadata);
    let number = name
        .strip_prefix(object::name(&set.metadata))?
        .strip_prefix('-')?;
    let parsed: i32 = number.parse().ok()?;
    (parsed >= 0 && parsed.to_string() == number).then_some(parsed)
}

fn partition(spec: &StatefulSetSpec) -> i32 {
    spec.update_strategy
        .as_ref()
        .and_then(|strategy| strategy.rolling_update.as_ref()?.partition)
        .unwrap_or(0)
}

fn is_on_delete(spec: &StatefulSetSpec) -> bool {
    spec.update_strategy
        .as_ref()
        .and_then(|strategy| strategy.type_.as_deref())
        == Some("OnDelete")
}

/// A pod of the set: its name is its identity, its host name the same, under
/// the set's Service.
fn pod(set: &StatefulSet, spec: &StatefulSetSpec, version: &Version, ordinal: i32) -> Pod {
    let reference = object::controller_reference("StatefulSet", &set.metadata);
    let mut pod = create::pod(&set.metadata, &reference, &version.template);
    let name = format!("{}-{ordinal}", object::name(&set.metadata));
    pod.metadata.labels.get_or_insert_default().extend([
        (POD_NAME.to_owned(), name.clone()),
        (POD_INDEX.to_owned(), ordinal.to_string()),
        (HASH.to_owned(), version.name.clone()),
    ]);
    let pod_spec = pod.spec.get_or_insert_default();
    pod_spec.hostname = Some(name.clone());
    pod_spec.subdomain = spec
        .service_name
        .clone()
        .filter(|service| !service.is_empty());
    pod.metadata.name = Some(name);
    pod
}

/// Plans the next step. `current` is what the pods below the partition are of,
/// `update` what the template is now.
pub(super) fn plan(
    set: &StatefulSet,
    pods: &[Arc<Pod>],
    current: &Version,
    update: &Version,
    now: Timestamp,
) -> Plan {
    let mut plan = Plan::default();
    let Some(spec) = &set.spec else {
        return plan;
    };
    let start = spec.ordinals.as_ref().and_then(|o| o.start).unwrap_or(0);
    let wanted = spec.replicas.unwrap_or(1).max(0);
    let range = start..start.saturating_add(wanted);
    let numbered: BTreeMap<i32, Arc<Pod>> = pods
        .iter()
        .filter_map(|pod| Some((ordinal(set, pod)?, pod.clone())))
        .collect();
    plan.status = status(set, spec, &numbered, current, update, now);
    let min_ready = spec.min_ready_seconds.unwrap_or(0);
    plan.deadline = numbered
        .values()
        .filter_map(|pod| pods::available_in(pod, min_ready, now))
        .filter(|left| !left.is_zero())
        .min();
    if object::is_deleting(&set.metadata) {
        return plan;
    }
    let serves = |pod: &Pod| {
        pods::phase(pod) == "Running"
            && !object::is_deleting(&pod.metadata)
            && pods::is_available(pod, min_ready, now)
    };
    let in_order = spec.pod_management_policy.as_deref() != Some("Parallel");
    // Up: each pod only when all before it serve.
    for number in range.clone() {
        match numbered.get(&number) {
            None => {
                let version =
                    if number < start.saturating_add(partition(spec)) && !is_on_delete(spec) {
                        current
                    } else {
                        update
                    };
                plan.create.push(pod(set, spec, version, number));
            }
            Some(there) if pods::is_finished(there) && !object::is_deleting(&there.metadata) => {
                plan.delete.push(there.clone());
            }
            Some(there) if serves(there) => continue,
            Some(_) => {}
        }
        if in_order {
            return plan;
        }
    }
    // Down: the highest first.
    for (number, there) in numbered.iter().rev() {
        if range.contains(number) {
            continue;
        }
        if !object::is_deleting(&there.metadata) {
            plan.delete.push(there.clone());
        }
        if in_order {
            return plan;
        }
    }
    if is_on_delete(spec) || !plan.create.is_empty() || !plan.delete.is_empty() {
        return plan;
    }
    roll(&mut plan, spec, &range, &numbered, &update.name, serves);
    plan
}

/// Replaces pods of another revision, the highest first, as many at a time as
/// may be missing.
fn roll(
    plan: &mut Plan,
    spec: &StatefulSetSpec,
    range: &std::ops::Range<i32>,
    numbered: &BTreeMap<i32, Arc<Pod>>,
    revision: &str,
    serves: impl Fn(&Pod) -> bool,
) {
    let most = spec
        .update_strategy
        .as_ref()
        .and_then(|strategy| strategy.rolling_update.as_ref()?.max_unavailable.as_ref())
        .map_or(1, |most| {
            intstr::scaled(most, spec.replicas.unwrap_or(1), false).max(1)
        });
    let replicas = || range.clone().filter_map(|number| numbered.get(&number));
    let missing = replicas().filter(|pod| !serves(pod)).count();
    let mut budget = most - i32::try_from(missing).unwrap_or(i32::MAX);
    let first = range.start.saturating_add(partition(spec));
    for number in (first.min(range.end)..range.end).rev() {
        let Some(pod) = numbered.get(&number) else {
            continue;
        };
        if object::label(&pod.metadata, HASH) == Some(revision)
            || object::is_deleting(&pod.metadata)
        {
            continue;
        }
        // One that does not serve is missing already.
        if serves(pod) {
            if budget <= 0 {
                continue;
            }
            budget -= 1;
        }
        plan.delete.push(pod.clone());
    }
}

fn status(
    set: &StatefulSet,
    spec: &StatefulSetSpec,
    numbered: &BTreeMap<i32, Arc<Pod>>,
    current: &Version,
    update: &Version,
    now: Timestamp,
) -> StatefulSetStatus {
    let old = set.status.clone().unwrap_or_default();
    let min_ready = spec.min_ready_seconds.unwrap_or(0);
    let (mut replicas, mut ready, mut available) = (0, 0, 0);
    let (mut of_current, mut of_update) = (0, 0);
    for pod in numbered.values() {
        replicas += 1;
        let revision = object::label(&pod.metadata, HASH);
        if !object::is_deleting(&pod.metadata) {
            of_current += i32::from(revision == Some(current.name.as_str()));
            of_update += i32::from(revision == Some(update.name.as_str()));
        }
        if pods::phase(pod) == "Running" && pods::is_ready(pod) {
            ready += 1;
            available += i32::from(pods::is_available(pod, min_ready, now));
        }
    }
    let wanted = spec.replicas.unwrap_or(1);
    let done =
        !is_on_delete(spec) && of_update == replicas && replicas == wanted && ready == wanted;
    let current_name = if done { &update.name } else { &current.name };
    StatefulSetStatus {
        replicas,
        ready_replicas: some_if(ready),
        available_replicas: some_if(available),
        current_replicas: some_if(if done { of_update } else { of_current }),
        updated_replicas: some_if(of_update),
        current_revision: Some(current_name.clone()),
        update_revision: Some(update.name.clone()),
        observed_generation: set.metadata.generation,
        collision_count: old.collision_count,
        conditions: old.conditions,
    }
}

fn some_if(count: i32) -> Option<i32> {
    Some(count).filter(|count| *count != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use serde_json::{Value, json};

    fn set(spec: Value) -> StatefulSet {
        let mut all = json!({"replicas": 3, "serviceName": "db", "selector": {}, "template": {}});
        all.as_object_mut()
            .unwrap()
            .extend(spec.as_object().unwrap().clone());
        serde_json::from_value(
            json!({"metadata": {"name": "db", "namespace": "ns", "uid": "u"},
            "spec": all}),
        )
        .unwrap()
    }

    fn version(name: &str) -> Version {
        Version {
            name: name.into(),
            template: serde_json::from_value(json!({"metadata": {"labels": {"app": "db"}},
                "spec": {"containers": [{"name": "c", "image": name}]}}))
            .unwrap(),
        }
    }

    /// Pods as `number revision state`: `+` serves, `-` does not, `x` goes,
    /// `f` failed.
    fn pods(text: &str) -> Vec<Arc<Pod>> {
        text.split_whitespace()
            .map(|word| {
                let (number, rest) = word.split_at(1);
                let (revision, state) = rest.split_at(1);
                let ready = if state == "-" { "False" } else { "True" };
                let phase = if state == "f" { "Failed" } else { "Running" };
                let mut pod: Pod = serde_json::from_value(json!({
                    "metadata": {"name": format!("db-{number}"), "labels": {HASH: revision}},
                    "status": {"phase": phase, "conditions": [{"type": "Ready", "status": ready}]}}))
                .unwrap();
                if state == "x" {
                    pod.metadata.deletion_timestamp = Some(object::time(Timestamp::UNIX_EPOCH));
                }
                Arc::new(pod)
            })
            .collect()
    }

    /// The plan as text: `+2b` creates number 2 of revision b, `-1` deletes.
    fn step(set: &StatefulSet, there: &str) -> String {
        let plan = plan(
            set,
            &pods(there),
            &version("a"),
            &version("b"),
            Timestamp::UNIX_EPOCH,
        );
        let number = |pod: &Pod| object::name(&pod.metadata)[3..].to_owned();
        let mut words: Vec<_> = plan
            .create
            .iter()
            .map(|pod| {
                let revision = object::label(&pod.metadata, HASH).unwrap();
                format!("+{}{revision}", number(pod))
            })
            .collect();
        words.extend(plan.delete.iter().map(|pod| format!("-{}", number(pod))));
        words.join(" ")
    }

    #[rstest]
    #[case::first("", "+0b")]
    #[case::waits_for_the_one_before("0b-", "")]
    #[case::then_the_next("0b+", "+1b")]
    #[case::a_lost_one_comes_back("0b+ 2b+", "+1b")]
    #[case::waits_while_one_goes("0bx 1b+ 2b+", "")]
    #[case::a_failed_one_is_deleted("0bf 1b+ 2b+", "-0")]
    #[case::complete("0b+ 1b+ 2b+", "")]
    #[case::too_many_the_highest_first("0b+ 1b+ 2b+ 3b+ 4b+", "-4")]
    #[case::one_at_a_time("0b+ 1b+ 2b+ 3b+ 4bx", "")]
    #[case::update_from_the_highest("0a+ 1a+ 2a+", "-2")]
    #[case::update_waits_for_the_new_one("0a+ 1a+ 2b-", "")]
    #[case::update_goes_on("0a+ 1a+ 2b+", "-1")]
    fn in_order(#[case] there: &str, #[case] expected: &str) {
        assert_eq!(step(&set(json!({})), there), expected);
    }

    #[rstest]
    #[case::all_at_once("", "+0b +1b +2b")]
    #[case::gaps("1b-", "+0b +2b")]
    #[case::all_surplus_at_once("0b+ 1b+ 2b+ 3b+ 4b-", "-4 -3")]
    #[case::update_one_at_a_time("0a+ 1a+ 2a+", "-2")]
    fn in_parallel(#[case] there: &str, #[case] expected: &str) {
        assert_eq!(
            step(&set(json!({"podManagementPolicy": "Parallel"})), there),
            expected
        );
    }

    #[rstest]
    #[case::only_from_the_partition_on(json!({"partition": 2}), "0a+ 1a+ 2b+", "")]
    #[case::below_it_the_old_revision(json!({"partition": 2}), "0a+ 2b+", "+1a")]
    #[case::several_at_once(json!({"maxUnavailable": 2}), "0a+ 1a+ 2a+", "-2 -1")]
    fn rolling_update(#[case] rolling: Value, #[case] there: &str, #[case] expected: &str) {
        let set =
            set(json!({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": rolling}}));
        assert_eq!(step(&set, there), expected);
    }

    #[rstest]
    #[case::nothing_is_replaced("0a+ 1a+ 2a+", "")]
    #[case::what_was_deleted_comes_back_new("0a+ 2a+", "+1b")]
    fn on_delete(#[case] there: &str, #[case] expected: &str) {
        let set = set(json!({"updateStrategy": {"type": "OnDelete"}}));
        assert_eq!(step(&set, there), expected);
    }

    #[test]
    fn ordinals_may_start_elsewhere() {
        let set = set(json!({"ordinals": {"start": 5}, "podManagementPolicy": "Parallel"}));
        assert_eq!(step(&set, "0b+"), "+5b +6b +7b -0");
    }

    #[test]
    fn a_pod_has_name_host_name_subdomain_and_labels() {
        let plan = plan(
            &set(json!({})),
            &[],
            &version("a"),
            &version("b"),
            Timestamp::UNIX_EPOCH,
        );
        let pod = &plan.create[0];
        assert_eq!(
            serde_json::to_value(&pod.metadata.labels).unwrap(),
            json!({"app": "db", POD_NAME: "db-0", POD_INDEX: "0", HASH: "b"})
        );
        let spec = pod.spec.as_ref().unwrap();
        assert_eq!(spec.hostname.as_deref(), Some("db-0"));
        assert_eq!(spec.subdomain.as_deref(), Some("db"));
    }

    #[test]
    fn the_status_tells_how_far_the_update_is() {
        let status = |there: &str| {
            let plan = plan(
                &set(json!({})),
                &pods(there),
                &version("a"),
                &version("b"),
                Timestamp::UNIX_EPOCH,
            );
            let status = plan.status;
            (
                status.current_revision.unwrap(),
                status.current_replicas,
                status.updated_replicas,
                status.ready_replicas,
            )
        };
        assert_eq!(
            status("0a+ 1a- 2b+"),
            ("a".into(), Some(2), Some(1), Some(2))
        );
        assert_eq!(status("0b+ 1b+ 2b-"), ("a".into(), None, Some(3), Some(2)));
        assert_eq!(
            status("0b+ 1b+ 2b+"),
            ("b".into(), Some(3), Some(3), Some(3))
        );
    }

    #[rstest]
    #[case("db-0", Some(0))]
    #[case("db-12", Some(12))]
    #[case("db-01", None)]
    #[case("db-x", None)]
    #[case("other-0", None)]
    fn ordinals_are_read_from_names(#[case] name: &str, #[case] expected: Option<i32>) {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": name}})).unwrap();
        assert_eq!(ordinal(&set(json!({})), &pod), expected);
    }
}
