//! Whether what the manifests ask for is there and works, and if not, why. Pure.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::Value;

use crate::cluster::{Cluster, condition, elements, number, text};
use crate::manifests::Object;

/// Something that is not ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Problem {
    /// What, for instance `Deployment web`.
    pub(crate) what: String,
    /// Why, as far as it is known.
    pub(crate) why: String,
    /// The pods that are the reason: namespace and name.
    #[serde(skip)]
    pub(crate) pods: Vec<(String, String)>,
}

impl Problem {
    fn new(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            why: why.into(),
            pods: Vec::new(),
        }
    }
}

/// What of the nodes and of the objects is not ready.
pub(crate) fn problems(nodes: &[String], objects: &[Object], cluster: &Cluster) -> Vec<Problem> {
    let mut problems: Vec<Problem> = nodes
        .iter()
        .filter_map(|name| node(name, cluster))
        .collect();
    for object in objects {
        let (namespace, name) = (object.namespace(), object.name());
        let kind = object.kind.kind.as_str();
        let found = match kind {
            "Deployment" | "ReplicaSet" | "StatefulSet" | "DaemonSet" | "Pod" => {
                match cluster.get(kind, namespace, name) {
                    None => Some(Problem::new("", "it is not there")),
                    Some(value) if kind == "Pod" => pod(value),
                    Some(value) => workload(kind, value, cluster),
                }
            }
            "Service" => service(object, objects, cluster),
            _ => None,
        };
        if let Some(problem) = found {
            problems.push(Problem {
                what: object.title(),
                ..problem
            });
        }
    }
    problems
}

fn node(name: &str, cluster: &Cluster) -> Option<Problem> {
    let what = format!("Node {name}");
    let Some(node) = cluster.get("Node", "", name) else {
        return Some(Problem::new(what, "its kubelet has not registered it"));
    };
    match condition(node, "Ready") {
        Some(("True", _)) => None,
        Some((_, message)) if !message.is_empty() => Some(Problem::new(what, message)),
        _ => Some(Problem::new(
            what,
            "its kubelet has not said that it is ready",
        )),
    }
}

fn workload(kind: &str, value: &Value, cluster: &Cluster) -> Option<Problem> {
    let wanted = match kind {
        "DaemonSet" => number(value, "/status/desiredNumberScheduled"),
        _ => value
            .pointer("/spec/replicas")
            .and_then(Value::as_i64)
            .unwrap_or(1),
    };
    let seen = number(value, "/status/observedGeneration") >= number(value, "/metadata/generation");
    let counts = match kind {
        "Deployment" => [
            "/status/replicas",
            "/status/updatedReplicas",
            "/status/availableReplicas",
        ],
        "DaemonSet" => [
            "/status/numberReady",
            "/status/updatedNumberScheduled",
            "/status/currentNumberScheduled",
        ],
        _ => [
            "/status/replicas",
            "/status/readyReplicas",
            "/status/readyReplicas",
        ],
    };
    if seen && counts.iter().all(|count| number(value, count) == wanted) {
        return None;
    }
    if !seen {
        return Some(Problem::new("", "its controller has not looked at it yet"));
    }
    let ready = number(
        value,
        match kind {
            "DaemonSet" => "/status/numberReady",
            "Deployment" => "/status/availableReplicas",
            _ => "/status/readyReplicas",
        },
    );
    let mut problem = Problem::new("", format!("{ready} of {wanted} pods are ready"));
    let namespace = text(value, "/metadata/namespace");
    let selector = labels(value, "/spec/selector/matchLabels");
    let unready: Vec<(&Value, Problem)> = cluster
        .all("Pod")
        .filter(|pod| text(pod, "/metadata/namespace") == namespace)
        .filter(|pod| selects(&selector, &labels(pod, "/metadata/labels")))
        .filter_map(|value| Some((value, pod(value)?)))
        .collect();
    for (value, reason) in &unready {
        problem.why.push_str(&format!(
            "\npod {}: {}",
            text(value, "/metadata/name"),
            reason.why
        ));
    }
    problem.pods = unready
        .into_iter()
        .flat_map(|(_, reason)| reason.pods)
        .collect();
    if problem.pods.is_empty()
        && let Some((_, message)) = elements(value, "/status/conditions")
            .map(|condition| (text(condition, "/type"), text(condition, "/message")))
            .find(|(kind, message)| *kind == "ReplicaFailure" && !message.is_empty())
    {
        problem.why.push_str(&format!("\n{message}"));
    }
    Some(problem)
}

fn pod(value: &Value) -> Option<Problem> {
    if text(value, "/status/phase") == "Succeeded" {
        return None;
    }
    if matches!(condition(value, "Ready"), Some(("True", _)))
        && value.pointer("/metadata/deletionTimestamp").is_none()
    {
        return None;
    }
    let mut problem = Problem::new("", pod_reason(value));
    problem.pods.push((
        text(value, "/metadata/namespace").to_owned(),
        text(value, "/metadata/name").to_owned(),
    ));
    Some(problem)
}

fn pod_reason(value: &Value) -> String {
    if value.pointer("/metadata/deletionTimestamp").is_some() {
        return "it is being deleted".into();
    }
    if let Some((status, message)) = condition(value, "PodScheduled")
        && status == "False"
    {
        return format!("no node takes it: {message}");
    }
    let node = text(value, "/spec/nodeName");
    if node.is_empty() {
        return "no node was chosen yet".into();
    }
    let mut reasons = Vec::new();
    let statuses = elements(value, "/status/initContainerStatuses")
        .chain(elements(value, "/status/containerStatuses"));
    for status in statuses {
        let name = text(status, "/name");
        let join = |reason: &str, message: &str| match message {
            "" => reason.to_owned(),
            message => format!("{reason}: {message}"),
        };
        if let Some(waiting) = status.pointer("/state/waiting") {
            let reason = join(text(waiting, "/reason"), text(waiting, "/message"));
            reasons.push(format!("container {name} waits ({reason})"));
        } else if let Some(ended) = status.pointer("/state/terminated") {
            let code = number(ended, "/exitCode");
            if code != 0 {
                let reason = join(text(ended, "/reason"), text(ended, "/message"));
                reasons.push(format!(
                    "container {name} ended with exit code {code} ({reason})"
                ));
            }
        } else if status.pointer("/ready") == Some(&Value::Bool(false)) {
            reasons.push(format!("container {name} runs but is not ready"));
        }
    }
    if let (true, Some((_, message))) = (reasons.is_empty(), condition(value, "Ready"))
        && !message.is_empty()
    {
        reasons.push(message.to_owned());
    }
    if reasons.is_empty() {
        let phase = match text(value, "/status/phase") {
            "" => "Pending",
            phase => phase,
        };
        reasons.push(format!("{phase} on {node}"));
    }
    reasons.join("; ")
}

/// A Service has to have a ready endpoint when the manifests hold pods for it.
fn service(object: &Object, objects: &[Object], cluster: &Cluster) -> Option<Problem> {
    let selector = labels(&object.value, "/spec/selector");
    if selector.is_empty() {
        return None;
    }
    let has_pods = objects.iter().any(|other| {
        let (template, replicas) = match other.kind.kind.as_str() {
            "Pod" => ("/metadata/labels", 1),
            "Deployment" | "ReplicaSet" | "StatefulSet" => (
                "/spec/template/metadata/labels",
                other
                    .value
                    .pointer("/spec/replicas")
                    .and_then(Value::as_i64)
                    .unwrap_or(1),
            ),
            "DaemonSet" => ("/spec/template/metadata/labels", 1),
            _ => return false,
        };
        replicas > 0
            && other.namespace() == object.namespace()
            && selects(&selector, &labels(&other.value, template))
    });
    if !has_pods {
        return None;
    }
    let endpoints: BTreeSet<&str> = ready_endpoints(object.namespace(), object.name(), cluster)
        .map(|(address, _)| address)
        .collect();
    if endpoints.is_empty() {
        return Some(Problem::new("", "it has no ready endpoint"));
    }
    // What has just become ready is to be among them too, in each family that
    // the Service has: slices are written one family after the other.
    let live = cluster.all("Service").find(|value| {
        text(value, "/metadata/namespace") == object.namespace()
            && text(value, "/metadata/name") == object.name()
    });
    let families: BTreeSet<&str> = live
        .into_iter()
        .flat_map(|value| elements(value, "/spec/ipFamilies"))
        .filter_map(Value::as_str)
        .collect();
    let missing = |address: &str| {
        let family = if address.contains(':') {
            "IPv6"
        } else {
            "IPv4"
        };
        families.contains(family) && !endpoints.contains(address)
    };
    cluster
        .all("Pod")
        .filter(|value| text(value, "/metadata/namespace") == object.namespace())
        .filter(|value| selects(&selector, &labels(value, "/metadata/labels")))
        .filter(|value| text(value, "/status/phase") == "Running" && pod(value).is_none())
        .find(|value| elements(value, "/status/podIPs").any(|entry| missing(text(entry, "/ip"))))
        .map(|value| {
            let name = text(value, "/metadata/name");
            Problem::new(
                "",
                format!("pod {name} is ready and not yet among its endpoints"),
            )
        })
}

/// The addresses of a Service's ready endpoints with their ports.
pub(crate) fn ready_endpoints<'a>(
    namespace: &str,
    name: &str,
    cluster: &'a Cluster,
) -> impl Iterator<Item = (&'a str, Vec<i64>)> {
    let (namespace, name) = (namespace.to_owned(), name.to_owned());
    cluster
        .all("EndpointSlice")
        .filter(move |slice| {
            text(slice, "/metadata/namespace") == namespace
                && text(slice, "/metadata/labels/kubernetes.io~1service-name") == name
        })
        .flat_map(|slice| {
            let ports: Vec<i64> = elements(slice, "/ports")
                .map(|port| number(port, "/port"))
                .collect();
            elements(slice, "/endpoints")
                // Absent counts as ready.
                .filter(|endpoint| {
                    endpoint.pointer("/conditions/ready") != Some(&Value::Bool(false))
                })
                .filter_map(move |endpoint| {
                    let address = endpoint.pointer("/addresses/0")?.as_str()?;
                    Some((address, ports.clone()))
                })
        })
}

fn labels<'a>(value: &'a Value, pointer: &str) -> BTreeMap<&'a str, &'a str> {
    value
        .pointer(pointer)
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| Some((key.as_str(), value.as_str()?)))
        .collect()
}

fn selects(selector: &BTreeMap<&str, &str>, labels: &BTreeMap<&str, &str>) -> bool {
    !selector.is_empty()
        && selector
            .iter()
            .all(|(key, value)| labels.get(key) == Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifests::{Resource, Source};
    use apiserver::resource::GroupVersionKind;
    use rstest::rstest;
    use serde_json::json;

    fn object(mut value: Value) -> Object {
        value["metadata"]["namespace"] = "default".into();
        Object {
            source: Source {
                file: "f".into(),
                line: 1,
            },
            kind: GroupVersionKind::new("", "v1", value["kind"].as_str().unwrap()),
            resource: Resource {
                plural: String::new(),
                namespaced: true,
            },
            value,
        }
    }

    fn deployment(status: Value) -> Value {
        json!({"kind": "Deployment",
            "metadata": {"name": "web", "namespace": "default", "generation": 2},
            "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "web"}},
                "template": {"metadata": {"labels": {"app": "web"}}}},
            "status": status})
    }

    fn web_pod(status: Value) -> Value {
        json!({"kind": "Pod",
            "metadata": {"name": "web-1", "namespace": "default", "labels": {"app": "web"}},
            "spec": {"nodeName": "node-1"}, "status": status})
    }

    #[rstest]
    #[case(json!({}), Some("its controller has not looked at it yet"))]
    #[case(json!({"observedGeneration": 1, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2}), Some("not looked"))]
    #[case(json!({"observedGeneration": 2, "replicas": 3, "updatedReplicas": 2, "availableReplicas": 2}), Some("2 of 2 pods"))]
    #[case(json!({"observedGeneration": 2, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 1}), Some("1 of 2 pods are ready\npod web-1: container c waits (ErrImagePull: no such image)"))]
    #[case(json!({"observedGeneration": 2, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2}), None)]
    fn a_deployment_is_ready_when_all_its_pods_are_new_and_available(
        #[case] status: Value,
        #[case] why: Option<&str>,
    ) {
        let waiting = json!({"containerStatuses": [{"name": "c", "ready": false,
            "state": {"waiting": {"reason": "ErrImagePull", "message": "no such image"}}}]});
        let live = deployment(status);
        let cluster = Cluster::of([live.clone(), web_pod(waiting)]);
        let found = problems(&[], &[object(live)], &cluster);
        match why {
            None => assert_eq!(found, []),
            Some(why) => {
                assert_eq!(found[0].what, "Deployment web");
                assert!(found[0].why.contains(why), "{}", found[0].why);
            }
        }
    }

    #[rstest]
    #[case(json!({"conditions": [{"type": "Ready", "status": "True"}]}), None)]
    #[case(json!({"phase": "Succeeded"}), None)]
    #[case(json!({"phase": "Running", "containerStatuses": [{"name": "c", "ready": false, "state": {"running": {}}}]}), Some("container c runs but is not ready"))]
    #[case(json!({"conditions": [{"type": "PodScheduled", "status": "False", "message": "no room"}]}), Some("no node takes it: no room"))]
    #[case(json!({"containerStatuses": [{"name": "c", "state": {"terminated": {"exitCode": 3, "reason": "Error"}}}]}), Some("container c ended with exit code 3 (Error)"))]
    #[case(json!({}), Some("Pending on node-1"))]
    fn a_pod_says_why_it_is_not_ready(#[case] status: Value, #[case] why: Option<&str>) {
        let live = web_pod(status);
        let found = problems(&[], &[object(live.clone())], &Cluster::of([live]));
        assert_eq!(found.first().map(|problem| problem.why.as_str()), why);
    }

    #[test]
    fn a_service_waits_for_pods_of_the_manifests_only() {
        let service = json!({"kind": "Service", "metadata": {"name": "web"},
            "spec": {"selector": {"app": "web"}}});
        let pods = object(deployment(json!({"observedGeneration": 2, "replicas": 2,
            "updatedReplicas": 2, "availableReplicas": 2})));
        let alone = problems(&[], &[object(service.clone())], &Cluster::default());
        assert_eq!(alone, []);
        let both = [object(service), pods.clone()];
        let slice = |ready: bool| {
            json!({"kind": "EndpointSlice", "metadata": {"name": "web-x", "namespace": "default",
                "labels": {"kubernetes.io/service-name": "web"}},
                "ports": [{"port": 8080}],
                "endpoints": [{"addresses": ["10.200.0.2"], "conditions": {"ready": ready}}]})
        };
        let found = problems(&[], &both, &Cluster::of([pods.value.clone(), slice(false)]));
        assert_eq!(found[0].why, "it has no ready endpoint");
        let found = problems(&[], &both, &Cluster::of([pods.value.clone(), slice(true)]));
        assert_eq!(found, []);
        // A second pod that is ready has to be among the endpoints as well, and
        // the first in both families where the Service has both.
        let live = |families: Value| {
            json!({"kind": "Service", "metadata": {"name": "web", "namespace": "default"},
                "spec": {"selector": {"app": "web"}, "ipFamilies": families}})
        };
        let pod = |ips: Value| {
            web_pod(json!({"phase": "Running", "podIPs": ips,
                "conditions": [{"type": "Ready", "status": "True"}]}))
        };
        let late = pod(json!([{"ip": "10.200.0.3"}]));
        let half = pod(json!([{"ip": "10.200.0.2"}, {"ip": "fd00:200::2"}]));
        for (families, pod, waits) in [
            (json!(["IPv4"]), &late, true),
            (json!(["IPv4", "IPv6"]), &half, true),
            (json!(["IPv4"]), &half, false),
        ] {
            let cluster =
                Cluster::of([pods.value.clone(), slice(true), live(families), pod.clone()]);
            let found = problems(&[], &both, &cluster);
            let why = "pod web-1 is ready and not yet among its endpoints";
            assert_eq!(
                found.first().map(|problem| problem.why.as_str()),
                waits.then_some(why)
            );
        }
    }

    #[test]
    fn a_node_is_ready_when_its_kubelet_says_so() {
        let nodes = ["node-1".to_owned(), "node-2".to_owned()];
        let cluster = Cluster::of([json!({"kind": "Node", "metadata": {"name": "node-1"},
            "status": {"conditions": [{"type": "Ready", "status": "False", "message": "no CNI yet"}]}})]);
        let whys: Vec<String> = problems(&nodes, &[], &cluster)
            .into_iter()
            .map(|problem| format!("{}: {}", problem.what, problem.why))
            .collect();
        assert_eq!(
            whys,
            [
                "Node node-1: no CNI yet",
                "Node node-2: its kubelet has not registered it"
            ]
        );
    }
}
