//! The pod's status from what the kubelet knows of its containers.

use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as k8s;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::record::{Container, Exit, Pod, Stage};

/// The conditions this kubelet writes; all others belong to others.
const OWN_CONDITIONS: [&str; 4] = [
    "PodReadyToStartContainers",
    "Initialized",
    "ContainersReady",
    "Ready",
];

/// Whether an init container stays beside the pod's containers (KEP-753).
pub(crate) fn is_sidecar(container: &k8s::Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// The restart policy that counts for a container.
pub(crate) fn restart_policy<'a>(
    spec: &'a k8s::PodSpec,
    container: &'a k8s::Container,
    init: bool,
) -> &'a str {
    if init && is_sidecar(container) {
        return "Always";
    }
    let policy = spec.restart_policy.as_deref().unwrap_or("Always");
    // An init container that succeeded is done.
    if init && policy == "Always" {
        "OnFailure"
    } else {
        policy
    }
}

/// Whether a container that ended with this code is started again.
pub(crate) fn restarts(policy: &str, code: i32) -> bool {
    match policy {
        "Never" => false,
        "OnFailure" => code != 0,
        _ => true,
    }
}

/// The pod's phase, as the kubelet of Kubernetes derives it.
pub(crate) fn phase(spec: &k8s::PodSpec, record: &Pod) -> &'static str {
    if record.failed.is_some() {
        return "Failed";
    }
    let inits = spec.init_containers.as_deref().unwrap_or_default();
    for container in inits.iter().filter(|container| !is_sidecar(container)) {
        if let Some(Stage::Terminated(exit)) =
            record.containers.get(&container.name).map(|c| &c.stage)
            && exit.code != 0
            && spec.restart_policy.as_deref() == Some("Never")
        {
            return "Failed";
        }
    }
    if !record.initialized {
        return "Pending";
    }
    let (mut running, mut unstarted, mut succeeded, mut failed) = (0, 0, 0, 0);
    for container in &spec.containers {
        let state = record.containers.get(&container.name);
        match state.map(|state| (&state.stage, &state.last)) {
            Some((Stage::Running { .. }, _)) => running += 1,
            Some((Stage::Terminated(exit), _)) | Some((Stage::Waiting { .. }, Some(exit))) => {
                if exit.code == 0 {
                    succeeded += 1;
                } else {
                    failed += 1;
                }
            }
            _ => unstarted += 1,
        }
    }
    if unstarted > 0 {
        return "Pending";
    }
    if running > 0 {
        return "Running";
    }
    match spec.restart_policy.as_deref().unwrap_or("Always") {
        "Never" if failed > 0 => "Failed",
        "OnFailure" if failed > 0 => "Running",
        "Never" | "OnFailure" if succeeded > 0 => "Succeeded",
        _ => "Running",
    }
}

/// The whole status of a pod; `now` stamps what changes.
pub(crate) fn pod_status(
    pod: &k8s::Pod,
    record: &Pod,
    host_ips: &[IpAddr],
    now: Timestamp,
) -> k8s::PodStatus {
    let empty = k8s::PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&empty);
    let phase = phase(spec, record);
    let deleted = pod.metadata.deletion_timestamp.is_some();
    let inits = spec.init_containers.as_deref().unwrap_or_default();
    let statuses = |containers: &[k8s::Container]| -> Vec<k8s::ContainerStatus> {
        containers
            .iter()
            .map(|container| container_status(container, record))
            .collect()
    };
    let container_statuses = statuses(&spec.containers);
    let init_container_statuses = statuses(inits);

    let mut unready: Vec<&str> = container_statuses
        .iter()
        .filter(|status| !status.ready)
        .map(|status| status.name.as_str())
        .collect();
    for (container, status) in inits.iter().zip(&init_container_statuses) {
        if is_sidecar(container) && !status.ready {
            unready.push(&status.name);
        }
    }
    let done = matches!(phase, "Succeeded" | "Failed");
    let containers_ready = if phase == "Succeeded" {
        Err(("PodCompleted", String::new()))
    } else if phase == "Failed" {
        Err(("PodFailed", String::new()))
    } else if unready.is_empty() {
        Ok(())
    } else {
        Err((
            "ContainersNotReady",
            format!("containers with unready status: [{}]", unready.join(" ")),
        ))
    };
    let initialized = if record.initialized {
        if phase == "Succeeded" {
            Ok(Some("PodCompleted"))
        } else {
            Ok(None)
        }
    } else {
        let waiting: Vec<&str> = inits
            .iter()
            .zip(&init_container_statuses)
            .filter(|(_, status)| !status.ready)
            .map(|(container, _)| container.name.as_str())
            .collect();
        Err((
            "ContainersNotInitialized",
            format!("containers with incomplete status: [{}]", waiting.join(" ")),
        ))
    };
    let gates_open = spec.readiness_gates.iter().flatten().find(|gate| {
        existing(pod, &gate.condition_type).is_none_or(|condition| condition.status != "True")
    });
    let ready = match (&containers_ready, gates_open) {
        (Ok(()), Some(gate)) => Err((
            "ReadinessGatesNotReady",
            format!(
                "corresponding condition of pod readiness gate \"{}\" does not exist or is not True",
                gate.condition_type
            ),
        )),
        (other, _) => other.clone(),
    };
    let sandbox = record.sandbox.as_ref().is_some_and(|sandbox| sandbox.ready);

    let mut conditions: Vec<k8s::PodCondition> = pod
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten())
        .filter(|condition| !OWN_CONDITIONS.contains(&condition.type_.as_str()))
        .cloned()
        .collect();
    let mut add = |kind: &str, outcome: Result<Option<&str>, (&str, String)>| {
        let (status, reason, message) = match outcome {
            Ok(reason) => ("True", reason, None),
            Err((reason, message)) => (
                "False",
                (!reason.is_empty()).then_some(reason),
                (!message.is_empty()).then_some(message),
            ),
        };
        let before = existing(pod, kind);
        let since = before
            .filter(|condition| condition.status == status)
            .and_then(|condition| condition.last_transition_time.clone())
            .unwrap_or(Time(now));
        conditions.push(k8s::PodCondition {
            type_: kind.into(),
            status: status.into(),
            reason: reason.map(Into::into),
            message,
            last_transition_time: Some(since),
            observed_generation: pod.metadata.generation,
            ..k8s::PodCondition::default()
        });
    };
    add(
        "PodReadyToStartContainers",
        if sandbox {
            Ok(None)
        } else {
            Err(("", String::new()))
        },
    );
    add("Initialized", initialized);
    add("ContainersReady", containers_ready.map(|()| None));
    add("Ready", ready.map(|()| None));

    let host_network = spec.host_network == Some(true);
    let pod_ips: &[IpAddr] = if host_network { host_ips } else { &record.ips };
    k8s::PodStatus {
        phase: Some(phase.into()),
        conditions: Some(conditions),
        reason: record.failed.as_ref().map(|(reason, _)| reason.clone()),
        message: record.failed.as_ref().map(|(_, message)| message.clone()),
        host_ip: host_ips.first().map(ToString::to_string),
        host_ips: Some(
            host_ips
                .iter()
                .map(|ip| k8s::HostIP { ip: ip.to_string() })
                .collect(),
        ),
        pod_ip: pod_ips.first().map(ToString::to_string),
        pod_ips: (!pod_ips.is_empty()).then(|| {
            pod_ips
                .iter()
                .map(|ip| k8s::PodIP { ip: ip.to_string() })
                .collect()
        }),
        start_time: Some(Time(record.started_at)),
        container_statuses: Some(container_statuses),
        init_container_statuses: (!inits.is_empty()).then_some(init_container_statuses),
        qos_class: Some(qos_class(spec).into()),
        observed_generation: pod.metadata.generation.filter(|_| !done || !deleted),
        ..k8s::PodStatus::default()
    }
}

fn existing<'a>(pod: &'a k8s::Pod, kind: &str) -> Option<&'a k8s::PodCondition> {
    pod.status
        .as_ref()?
        .conditions
        .as_ref()?
        .iter()
        .find(|condition| condition.type_ == kind)
}

fn terminated(exit: &Exit) -> k8s::ContainerStateTerminated {
    k8s::ContainerStateTerminated {
        container_id: Some(container_id(&exit.container_id)),
        exit_code: exit.code,
        signal: exit.signal,
        reason: Some(exit.reason.clone()),
        message: exit.message.clone(),
        started_at: exit.started_at.map(Time),
        finished_at: Some(Time(exit.finished_at)),
    }
}

fn container_id(id: &str) -> String {
    format!("crun://{id}")
}

fn container_status(container: &k8s::Container, record: &Pod) -> k8s::ContainerStatus {
    let fresh = Container::waiting("ContainerCreating");
    let state = record.containers.get(&container.name).unwrap_or(&fresh);
    let now = match &state.stage {
        Stage::Waiting { reason, message } => k8s::ContainerState {
            waiting: Some(k8s::ContainerStateWaiting {
                reason: Some(reason.clone()),
                message: message.clone(),
            }),
            ..k8s::ContainerState::default()
        },
        Stage::Running { started_at } => k8s::ContainerState {
            running: Some(k8s::ContainerStateRunning {
                started_at: Some(Time(*started_at)),
            }),
            ..k8s::ContainerState::default()
        },
        Stage::Terminated(exit) => k8s::ContainerState {
            terminated: Some(terminated(exit)),
            ..k8s::ContainerState::default()
        },
    };
    let current = match (&state.instance, &state.stage, &state.last) {
        (Some(instance), ..) => Some(instance.id.as_str()),
        (None, Stage::Terminated(exit), _) | (None, _, Some(exit)) => {
            Some(exit.container_id.as_str())
        }
        _ => None,
    };
    k8s::ContainerStatus {
        name: container.name.clone(),
        state: Some(now),
        last_state: state.last.as_ref().map(|exit| k8s::ContainerState {
            terminated: Some(terminated(exit)),
            ..k8s::ContainerState::default()
        }),
        ready: state.ready,
        started: Some(state.started),
        restart_count: i32::try_from(state.restarts).unwrap_or(i32::MAX),
        image: if state.image.is_empty() {
            container.image.clone().unwrap_or_default()
        } else {
            state.image.clone()
        },
        image_id: state.image_id.clone(),
        container_id: current.map(container_id),
        ..k8s::ContainerStatus::default()
    }
}

/// The pod's quality of service class, from requests and limits of cpu and
/// memory.
fn qos_class(spec: &k8s::PodSpec) -> &'static str {
    let mut any = false;
    let mut guaranteed = true;
    let inits = spec.init_containers.iter().flatten();
    for container in spec.containers.iter().chain(inits) {
        let resources = container.resources.clone().unwrap_or_default();
        let (limits, requests) = (
            resources.limits.unwrap_or_default(),
            resources.requests.unwrap_or_default(),
        );
        for kind in ["cpu", "memory"] {
            let limit = limits.get(kind);
            let request = requests.get(kind).or(limit);
            any |= limit.is_some() || request.is_some();
            guaranteed &= limit.is_some() && limit == request;
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use serde_json::{Value, json};

    fn at(second: i64) -> Timestamp {
        Timestamp::new(second, 0).unwrap()
    }

    fn exit(code: i32) -> Exit {
        Exit {
            code,
            signal: None,
            reason: if code == 0 { "Completed" } else { "Error" }.into(),
            message: None,
            started_at: Some(at(1)),
            finished_at: at(2),
            container_id: "id".into(),
        }
    }

    fn container(stage: Stage, last: Option<Exit>, ready: bool) -> Container {
        Container {
            stage,
            last,
            ready,
            started: ready,
            ..Container::waiting("")
        }
    }

    fn running() -> Container {
        container(Stage::Running { started_at: at(1) }, None, true)
    }

    fn record(containers: Vec<(&str, Container)>, initialized: bool) -> Pod {
        Pod {
            namespace: "n".into(),
            name: "p".into(),
            uid: "u".into(),
            started_at: at(0),
            sandbox: None,
            sandboxes: 1,
            ips: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
            containers: containers
                .into_iter()
                .map(|(name, state)| (name.into(), state))
                .collect(),
            initialized,
            failed: None,
        }
    }

    fn pod(spec: Value) -> k8s::Pod {
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap()
    }

    fn crash_loop() -> Container {
        container(
            Stage::Waiting {
                reason: "CrashLoopBackOff".into(),
                message: None,
            },
            Some(exit(1)),
            false,
        )
    }

    #[rstest]
    #[case::all_run("Always", vec![("a", running()), ("b", running())], "Running")]
    #[case::one_has_not_started("Always", vec![("a", running())], "Pending")]
    #[case::one_backs_off("Always", vec![("a", running()), ("b", crash_loop())], "Running")]
    #[case::all_back_off("Always", vec![("a", crash_loop()), ("b", crash_loop())], "Running")]
    #[case::all_done("Never", vec![("a", container(Stage::Terminated(exit(0)), None, false)), ("b", container(Stage::Terminated(exit(0)), None, false))], "Succeeded")]
    #[case::one_failed("Never", vec![("a", container(Stage::Terminated(exit(0)), None, false)), ("b", container(Stage::Terminated(exit(3)), None, false))], "Failed")]
    #[case::one_failed_but_comes_again("OnFailure", vec![("a", container(Stage::Terminated(exit(0)), None, false)), ("b", crash_loop())], "Running")]
    fn phase_follows_containers_and_policy(
        #[case] policy: &str,
        #[case] containers: Vec<(&str, Container)>,
        #[case] expected: &str,
    ) {
        let pod =
            pod(json!({"restartPolicy": policy, "containers": [{"name": "a"}, {"name": "b"}]}));
        assert_eq!(
            phase(pod.spec.as_ref().unwrap(), &record(containers, true)),
            expected
        );
    }

    #[test]
    fn init_containers_hold_the_pod_pending_or_fail_it() {
        let spec = json!({"restartPolicy": "Never", "initContainers": [{"name": "i"}], "containers": [{"name": "a"}]});
        let pod = pod(spec);
        let spec = pod.spec.as_ref().unwrap();
        let waiting = record(vec![("i", running())], false);
        assert_eq!(phase(spec, &waiting), "Pending");
        let failed = record(
            vec![("i", container(Stage::Terminated(exit(1)), None, false))],
            false,
        );
        assert_eq!(phase(spec, &failed), "Failed");
    }

    fn condition(status: &k8s::PodStatus, kind: &str) -> k8s::PodCondition {
        status
            .conditions
            .iter()
            .flatten()
            .find(|condition| condition.type_ == kind)
            .cloned()
            .unwrap()
    }

    #[test]
    fn ready_says_of_a_terminating_pod_whether_it_serves() {
        let mut pod = pod(json!({"containers": [{"name": "a"}]}));
        let mut record = record(vec![("a", running())], true);
        let status = pod_status(&pod, &record, &["192.0.2.1".parse().unwrap()], at(9));
        assert_eq!(condition(&status, "Ready").status, "True");
        assert_eq!(status.pod_ip.as_deref(), Some("10.0.0.1"));
        assert_eq!(status.pod_ips.unwrap().len(), 2);
        pod.metadata.deletion_timestamp = Some(Time(at(5)));
        let status = pod_status(&pod, &record, &[], at(9));
        assert_eq!(condition(&status, "Ready").status, "True");
        record.containers.get_mut("a").unwrap().ready = false;
        let status = pod_status(&pod, &record, &[], at(9));
        assert_eq!(condition(&status, "Ready").status, "False");
        assert!(!status.container_statuses.unwrap()[0].ready);
    }

    #[test]
    fn others_conditions_stay_and_times_change_only_with_the_status() {
        let mut pod = pod(json!({"containers": [{"name": "a"}]}));
        pod.status = Some(
            serde_json::from_value(json!({"conditions": [
                {"type": "PodScheduled", "status": "True"},
                {"type": "Ready", "status": "False", "lastTransitionTime": "1970-01-01T00:00:03Z"},
                {"type": "Initialized", "status": "True", "lastTransitionTime": "1970-01-01T00:00:03Z"}
            ]}))
            .unwrap(),
        );
        let status = pod_status(&pod, &record(vec![("a", running())], true), &[], at(9));
        assert_eq!(condition(&status, "PodScheduled").status, "True");
        assert_eq!(
            condition(&status, "Ready").last_transition_time,
            Some(Time(at(9)))
        );
        assert_eq!(
            condition(&status, "Initialized").last_transition_time,
            Some(Time(at(3)))
        );
    }

    #[test]
    fn readiness_gates_hold_ready_back() {
        let pod = pod(
            json!({"readinessGates": [{"conditionType": "x/lb"}], "containers": [{"name": "a"}]}),
        );
        let status = pod_status(&pod, &record(vec![("a", running())], true), &[], at(9));
        assert_eq!(condition(&status, "ContainersReady").status, "True");
        assert_eq!(condition(&status, "Ready").status, "False");
    }

    #[rstest]
    #[case(json!([{"name": "a"}]), "BestEffort")]
    #[case(json!([{"name": "a", "resources": {"limits": {"cpu": "1", "memory": "1Mi"}}}]), "Guaranteed")]
    #[case(json!([{"name": "a", "resources": {"requests": {"cpu": "1"}}}]), "Burstable")]
    fn quality_of_service(#[case] containers: Value, #[case] class: &str) {
        let pod = pod(json!({"containers": containers}));
        assert_eq!(qos_class(pod.spec.as_ref().unwrap()), class);
    }

    #[rstest]
    #[case("Always", 0, true)]
    #[case("OnFailure", 0, false)]
    #[case("OnFailure", 1, true)]
    #[case("Never", 1, false)]
    fn restart_by_policy(#[case] policy: &str, #[case] code: i32, #[case] again: bool) {
        assert_eq!(restarts(policy, code), again);
    }
}
