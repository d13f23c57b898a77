//! Pods and nodes.

use super::{NONE, UNKNOWN, age, list, name, number, since, text_or_none};
use jiff::Timestamp;
use serde_json::{Value, json};

/// What the status of a pod's containers amounts to.
struct Summary {
    reason: String,
    ready: usize,
    total: usize,
    restarts: i64,
    /// When a container last ended before it was restarted.
    last_restart: Option<Timestamp>,
}

pub(super) fn pod(object: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let summary = summarize(object);
    let restarts = match summary.last_restart {
        Some(last) if summary.restarts != 0 => format!(
            "{} ({} ago)",
            summary.restarts,
            super::human_duration(now.as_second() - last.as_second())
        ),
        _ => summary.restarts.to_string(),
    };
    let gates = list(&spec["readinessGates"]);
    let passed = gates
        .iter()
        .filter(|gate| {
            gate["conditionType"]
                .as_str()
                .is_some_and(|kind| condition(status, kind) == Some("True"))
        })
        .count();
    let gates = if gates.is_empty() {
        NONE.to_owned()
    } else {
        format!("{passed}/{}", gates.len())
    };
    let address = status["podIPs"][0]["ip"]
        .as_str()
        .or(status["podIP"].as_str());
    vec![
        name(object),
        json!(format!("{}/{}", summary.ready, summary.total)),
        json!(summary.reason),
        json!(restarts),
        age(object, now),
        text_or_none(address),
        text_or_none(spec["nodeName"].as_str()),
        text_or_none(status["nominatedNodeName"].as_str()),
        json!(gates),
    ]
}

fn condition<'a>(status: &'a Value, kind: &str) -> Option<&'a str> {
    list(&status["conditions"])
        .iter()
        .find(|condition| condition["type"] == kind)
        .and_then(|condition| condition["status"].as_str())
}

/// `Signal:9` or `ExitCode:1`, for a container that ended without a reason.
fn exit(terminated: &Value) -> String {
    match number(&terminated["signal"]) {
        0 => format!("ExitCode:{}", number(&terminated["exitCode"])),
        signal => format!("Signal:{signal}"),
    }
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

fn summarize(object: &Value) -> Summary {
    let (spec, status) = (&object["spec"], &object["status"]);
    let phase = text(status, "phase");
    let sidecar = |name: &str| {
        list(&spec["initContainers"])
            .iter()
            .any(|container| container["name"] == name && container["restartPolicy"] == "Always")
    };
    let init_containers = list(&spec["initContainers"]);
    let sidecars = init_containers
        .iter()
        .filter(|container| container["restartPolicy"] == "Always")
        .count();
    let mut summary = Summary {
        reason: match text(status, "reason") {
            "" => phase.to_owned(),
            reason => reason.to_owned(),
        },
        ready: 0,
        total: list(&spec["containers"]).len() + sidecars,
        restarts: 0,
        last_restart: None,
    };
    let gated = list(&status["conditions"]).iter().any(|condition| {
        condition["type"] == "PodScheduled" && condition["reason"] == "SchedulingGated"
    });
    if gated {
        summary.reason = "SchedulingGated".to_owned();
    }
    let mut sidecar_restarts = 0;
    let mut sidecar_last = None;
    let mut initializing = false;
    for (index, container) in list(&status["initContainerStatuses"]).iter().enumerate() {
        let is_sidecar = sidecar(text(container, "name"));
        summary.restarts += number(&container["restartCount"]);
        let ended = last_end(container);
        summary.last_restart = summary.last_restart.max(ended);
        if is_sidecar {
            sidecar_restarts += number(&container["restartCount"]);
            sidecar_last = sidecar_last.max(ended);
        }
        let (waiting, terminated) = (
            &container["state"]["waiting"],
            &container["state"]["terminated"],
        );
        if !terminated.is_null() && number(&terminated["exitCode"]) == 0 {
            continue;
        }
        if is_sidecar && container["started"] == json!(true) {
            summary.ready += usize::from(container["ready"] == json!(true));
            continue;
        }
        summary.reason = if !terminated.is_null() {
            match text(terminated, "reason") {
                "" => format!("Init:{}", exit(terminated)),
                reason => format!("Init:{reason}"),
            }
        } else if !matches!(text(waiting, "reason"), "" | "PodInitializing") {
            format!("Init:{}", text(waiting, "reason"))
        } else {
            format!("Init:{index}/{}", init_containers.len())
        };
        initializing = true;
        break;
    }
    if !initializing || condition(status, "Initialized") == Some("True") {
        summary.restarts = sidecar_restarts;
        summary.last_restart = sidecar_last;
        let mut running = false;
        for container in list(&status["containerStatuses"]).iter().rev() {
            summary.restarts += number(&container["restartCount"]);
            summary.last_restart = summary.last_restart.max(last_end(container));
            let state = &container["state"];
            if !text(&state["waiting"], "reason").is_empty() {
                summary.reason = text(&state["waiting"], "reason").to_owned();
            } else if !state["terminated"].is_null() {
                summary.reason = match text(&state["terminated"], "reason") {
                    "" => exit(&state["terminated"]),
                    reason => reason.to_owned(),
                };
            } else if container["ready"] == json!(true) && !state["running"].is_null() {
                running = true;
                summary.ready += 1;
            }
        }
        // Some containers are done, others go on.
        if summary.reason == "Completed" && running {
            summary.reason = match condition(status, "Ready") {
                Some("True") => "Running".to_owned(),
                _ => "NotReady".to_owned(),
            };
        }
    }
    if !object["metadata"]["deletionTimestamp"].is_null() {
        if text(status, "reason") == "NodeLost" {
            summary.reason = "Unknown".to_owned();
        } else if !matches!(phase, "Succeeded" | "Failed") {
            summary.reason = "Terminating".to_owned();
        }
    }
    summary
}

fn last_end(container: &Value) -> Option<Timestamp> {
    container["lastState"]["terminated"]["finishedAt"]
        .as_str()?
        .parse()
        .ok()
}

pub(super) fn node(object: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let mut state = match condition(status, "Ready") {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }
    .to_owned();
    if spec["unschedulable"] == json!(true) {
        state.push_str(",SchedulingDisabled");
    }
    let mut roles: Vec<&str> = object["metadata"]["labels"]
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(
            |(key, value)| match key.strip_prefix("node-role.kubernetes.io/") {
                Some("") => None,
                Some(role) => Some(role),
                None if key == "kubernetes.io/role" => {
                    value.as_str().filter(|role| !role.is_empty())
                }
                None => None,
            },
        )
        .collect();
    roles.sort_unstable();
    roles.dedup();
    let address = |kind: &str| {
        text_or_none(
            list(&status["addresses"])
                .iter()
                .find(|address| address["type"] == kind)
                .and_then(|address| address["address"].as_str()),
        )
    };
    let info = |key: &str| {
        json!(
            status["nodeInfo"][key]
                .as_str()
                .filter(|text| !text.is_empty())
                .unwrap_or(UNKNOWN)
        )
    };
    vec![
        name(object),
        json!(state),
        text_or_none(Some(&roles.join(","))),
        json!(since(&object["metadata"]["creationTimestamp"], now)),
        json!(
            status["nodeInfo"]["kubeletVersion"]
                .as_str()
                .unwrap_or_default()
        ),
        address("InternalIP"),
        address("ExternalIP"),
        info("osImage"),
        info("kernelVersion"),
        info("containerRuntimeVersion"),
    ]
}
