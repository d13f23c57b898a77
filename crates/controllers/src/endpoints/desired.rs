//! The endpoints a Service should have. No I/O.

use crate::object;
use crate::pods;
use k8s_openapi::api::core::v1::{Node, ObjectReference, Pod, Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::{
    Endpoint, EndpointConditions, EndpointHints, EndpointPort, ForNode, ForZone,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

/// A node's zone.
const ZONE: &str = "topology.kubernetes.io/zone";

/// An IP family as slices name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    /// The slice's `addressType`.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

/// A port as slices list it, comparable: name, number, protocol, application
/// protocol.
pub(super) type PortKey = (String, Option<i32>, String, Option<String>);

/// The ports that all endpoints of a slice share.
pub(super) type Ports = Vec<PortKey>;

/// Endpoints by family and ports.
pub(super) type Desired = BTreeMap<(Family, Ports), Vec<Endpoint>>;

/// Whether slices are this controller's business: a selector, and not only a
/// name for something else.
pub(super) fn is_selecting(spec: &ServiceSpec) -> bool {
    spec.type_.as_deref() != Some("ExternalName")
        && spec
            .selector
            .as_ref()
            .is_some_and(|selector| !selector.is_empty())
}

/// Whether the Service has no address of its own.
pub(super) fn is_headless(spec: &ServiceSpec) -> bool {
    spec.cluster_ip.as_deref() == Some("None")
}

/// The families the Service is for: as it says, or as its address is.
pub(super) fn families(spec: &ServiceSpec) -> Vec<Family> {
    let mut families: Vec<_> = spec
        .ip_families
        .iter()
        .flatten()
        .filter_map(|name| match name.as_str() {
            "IPv4" => Some(Family::V4),
            "IPv6" => Some(Family::V6),
            _ => None,
        })
        .collect();
    if families.is_empty() {
        let address = spec.cluster_ip.as_deref().and_then(|ip| ip.parse().ok());
        families.push(address.map_or(Family::V4, Family::of));
    }
    families.sort_unstable();
    families.dedup();
    families
}

/// What an endpoint port is called in comparisons.
pub(super) fn port_key(port: &EndpointPort) -> PortKey {
    (
        port.name.clone().unwrap_or_default(),
        port.port,
        port.protocol.clone().unwrap_or_else(|| "TCP".into()),
        port.app_protocol.clone(),
    )
}

/// The endpoint port of a comparison key.
pub(super) fn port_of(key: &PortKey) -> EndpointPort {
    EndpointPort {
        name: Some(key.0.clone()),
        port: key.1,
        protocol: Some(key.2.clone()),
        app_protocol: key.3.clone(),
    }
}

/// The port's number in the pod: a number is itself, a name is looked up in
/// the pod's containers.
fn target_port(port: &ServicePort, pod: &Pod) -> Option<i32> {
    let protocol = port.protocol.as_deref().unwrap_or("TCP");
    match &port.target_port {
        None => Some(port.port),
        Some(IntOrString::Int(0)) => Some(port.port),
        Some(IntOrString::Int(number)) => Some(*number),
        Some(IntOrString::String(name)) => {
            if let Ok(number) = name.parse() {
                return Some(number);
            }
            pods::lasting_containers(pod.spec.as_ref()?)
                .flat_map(|container| container.ports.iter().flatten())
                .find(|candidate| {
                    candidate.name.as_deref() == Some(name)
                        && candidate.protocol.as_deref().unwrap_or("TCP") == protocol
                })
                .map(|candidate| candidate.container_port)
        }
    }
}

/// The Service's ports as this pod serves them; one the pod has not is left
/// out.
fn ports(spec: &ServiceSpec, pod: &Pod) -> Ports {
    let mut ports: Ports = spec
        .ports
        .iter()
        .flatten()
        .filter_map(|port| {
            Some((
                port.name.clone().unwrap_or_default(),
                Some(target_port(port, pod)?),
                port.protocol.clone().unwrap_or_else(|| "TCP".into()),
                port.app_protocol.clone(),
            ))
        })
        .collect();
    ports.sort();
    ports.dedup();
    ports
}

fn addresses(pod: &Pod, family: Family) -> Vec<String> {
    let Some(status) = &pod.status else {
        return Vec::new();
    };
    let many: Vec<&str> = match &status.pod_ips {
        Some(ips) if !ips.is_empty() => ips.iter().map(|ip| ip.ip.as_str()).collect(),
        _ => status.pod_ip.as_deref().into_iter().collect(),
    };
    many.into_iter()
        .filter_map(|text| text.parse::<IpAddr>().ok())
        .filter(|address| Family::of(*address) == family)
        .map(|address| address.to_string())
        .collect()
}

/// Hints by the Service's `trafficDistribution` (KEP-3015): a ready endpoint is
/// for its own zone, and with PreferSameNode for its own node first.
fn hints(spec: &ServiceSpec, endpoint: &Endpoint, ready: bool) -> Option<EndpointHints> {
    let wish = spec.traffic_distribution.as_deref()?;
    let zones = || endpoint.zone.clone().map(|name| vec![ForZone { name }]);
    match wish {
        _ if !ready => None,
        "PreferClose" | "PreferSameZone" => zones().map(|zones| EndpointHints {
            for_zones: Some(zones),
            for_nodes: None,
        }),
        "PreferSameNode" => {
            let name = endpoint.node_name.clone()?;
            Some(EndpointHints {
                for_zones: zones(),
                for_nodes: Some(vec![ForNode { name }]),
            })
        }
        _ => None,
    }
}

/// One pod as an endpoint. Terminating pods stay, so that there is somebody
/// left to ask when all are terminating.
fn endpoint(
    service: &Service,
    spec: &ServiceSpec,
    pod: &Pod,
    node: Option<&Node>,
    addresses: Vec<String>,
) -> Endpoint {
    let pod_spec = pod.spec.as_ref();
    let serving = pods::is_ready(pod);
    let terminating = object::is_deleting(&pod.metadata);
    let ready = spec.publish_not_ready_addresses == Some(true) || (serving && !terminating);
    let named =
        pod_spec.and_then(|spec| spec.subdomain.as_deref()) == service.metadata.name.as_deref();
    let mut endpoint = Endpoint {
        addresses,
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hostname: pod_spec
            .and_then(|spec| spec.hostname.clone())
            .filter(|hostname| named && !hostname.is_empty()),
        node_name: pods::node(pod).map(str::to_owned),
        target_ref: Some(ObjectReference {
            kind: Some("Pod".into()),
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            ..Default::default()
        }),
        zone: node
            .and_then(|node| object::label(&node.metadata, ZONE))
            .map(str::to_owned),
        ..Default::default()
    };
    endpoint.hints = hints(spec, &endpoint, ready);
    endpoint
}

/// The endpoints of a Service by the pods it selects. `node` finds a node by
/// its name: pods whose node is gone are left out, unless unready ones are
/// published too.
pub(super) fn desired(
    service: &Service,
    selected: &[Arc<Pod>],
    node: impl Fn(&str) -> Option<Arc<Node>>,
) -> Desired {
    let mut desired = Desired::new();
    let Some(spec) = &service.spec else {
        return desired;
    };
    for pod in selected {
        if pods::is_finished(pod) {
            continue;
        }
        let host = pods::node(pod).and_then(&node);
        let lost = pods::node(pod).is_some() && host.is_none();
        if lost && spec.publish_not_ready_addresses != Some(true) {
            continue;
        }
        let ports = ports(spec, pod);
        for family in families(spec) {
            let addresses = addresses(pod, family);
            if addresses.is_empty() {
                continue;
            }
            desired
                .entry((family, ports.clone()))
                .or_default()
                .push(endpoint(service, spec, pod, host.as_deref(), addresses));
        }
    }
    for endpoints in desired.values_mut() {
        endpoints.sort_by(|a, b| a.addresses.cmp(&b.addresses));
    }
    desired
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use serde_json::{Value, json};

    fn service(spec: Value) -> Service {
        serde_json::from_value(
            json!({"metadata": {"name": "web", "namespace": "ns"}, "spec": spec}),
        )
        .unwrap()
    }

    fn plain(extra: Value) -> Service {
        let mut spec = json!({"selector": {"app": "web"}, "ipFamilies": ["IPv4"],
            "ports": [{"port": 80, "targetPort": 8080}]});
        spec.as_object_mut()
            .unwrap()
            .extend(extra.as_object().unwrap().clone());
        service(spec)
    }

    fn pod(name: &str, change: impl FnOnce(&mut Value)) -> Arc<Pod> {
        let mut pod = json!({
            "metadata": {"name": name, "namespace": "ns", "uid": name},
            "spec": {"nodeName": "node-1", "containers": [{"name": "c", "ports": [
                {"name": "http", "containerPort": 8000}]}]},
            "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}],
                "conditions": [{"type": "Ready", "status": "True"}]},
        });
        change(&mut pod);
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    fn node(name: &str) -> Option<Arc<Node>> {
        (name == "node-1").then(|| {
            Arc::new(
                serde_json::from_value(json!({"metadata": {"name": "node-1",
                    "labels": {"topology.kubernetes.io/zone": "a"}}}))
                .unwrap(),
            )
        })
    }

    fn only(desired: Desired) -> Endpoint {
        assert_eq!(desired.len(), 1, "{desired:?}");
        desired.into_values().next().unwrap().remove(0)
    }

    #[rstest]
    #[case::ready(true, false, false, (true, true, false))]
    #[case::not_ready(false, false, false, (false, false, false))]
    #[case::terminating_and_serving(true, true, false, (false, true, true))]
    #[case::terminating(false, true, false, (false, false, true))]
    #[case::published_though_not_ready(false, false, true, (true, false, false))]
    #[case::published_though_terminating(true, true, true, (true, true, true))]
    fn conditions_follow_the_pod(
        #[case] ready: bool,
        #[case] deleting: bool,
        #[case] publish: bool,
        #[case] expected: (bool, bool, bool),
    ) {
        let pod = pod("a", |pod| {
            if !ready {
                pod["status"]["conditions"] = json!([]);
            }
            if deleting {
                pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            }
        });
        let service = plain(json!({"publishNotReadyAddresses": publish}));
        let conditions = only(desired(&service, &[pod], node)).conditions.unwrap();
        assert_eq!(
            (
                conditions.ready.unwrap(),
                conditions.serving.unwrap(),
                conditions.terminating.unwrap()
            ),
            expected
        );
    }

    #[rstest]
    #[case("Succeeded")]
    #[case("Failed")]
    fn finished_pods_leave_at_once(#[case] phase: &str) {
        let pod = pod("a", |pod| pod["status"]["phase"] = json!(phase));
        assert!(desired(&plain(json!({})), &[pod], node).is_empty());
    }

    #[test]
    fn pods_without_an_address_or_of_a_removed_node_are_left_out() {
        let without = pod("a", |pod| pod["status"]["podIPs"] = json!([]));
        let lost = pod("b", |pod| pod["spec"]["nodeName"] = json!("gone"));
        assert!(desired(&plain(json!({})), &[without, lost.clone()], node).is_empty());
        let publish = plain(json!({"publishNotReadyAddresses": true}));
        assert_eq!(desired(&publish, &[lost], node).len(), 1);
    }

    #[test]
    fn each_family_has_its_own_endpoints() {
        let service = plain(json!({"ipFamilies": ["IPv6", "IPv4"]}));
        let desired = desired(&service, &[pod("a", |_| {})], node);
        let found: Vec<_> = desired
            .iter()
            .map(|((family, _), endpoints)| (family.name(), endpoints[0].addresses[0].as_str()))
            .collect();
        assert_eq!(found, [("IPv4", "10.0.0.1"), ("IPv6", "fd00::1")]);
    }

    #[test]
    fn a_named_target_port_is_each_pods_own() {
        let service = plain(json!({"ports": [{"port": 80, "targetPort": "http"}]}));
        let other = pod("b", |pod| {
            pod["spec"]["containers"][0]["ports"][0]["containerPort"] = json!(9000);
        });
        let numbers: Vec<_> = desired(&service, &[pod("a", |_| {}), other], node)
            .keys()
            .map(|(_, ports)| ports[0].1)
            .collect();
        assert_eq!(numbers, [Some(8000), Some(9000)]);
    }

    #[test]
    fn a_named_port_of_another_protocol_or_unknown_is_left_out() {
        let service = plain(json!({"ports": [
            {"name": "u", "port": 80, "targetPort": "http", "protocol": "UDP"},
            {"name": "t", "port": 81, "targetPort": 8000}]}));
        let desired = desired(&service, &[pod("a", |_| {})], node);
        let (_, ports) = desired.keys().next().unwrap();
        assert_eq!(ports.len(), 1);
        assert_eq!(ports[0].0, "t");
    }

    #[test]
    fn a_sidecar_serves_named_ports_too() {
        let service = plain(json!({"ports": [{"port": 80, "targetPort": "side"}]}));
        let pod = pod("a", |pod| {
            pod["spec"]["initContainers"] = json!([
                {"name": "first", "ports": [{"name": "side", "containerPort": 1}]},
                {"name": "sidecar", "restartPolicy": "Always", "ports": [{"name": "side", "containerPort": 2}]}]);
        });
        let desired = desired(&service, &[pod], node);
        assert_eq!(desired.keys().next().unwrap().1[0].1, Some(2));
    }

    #[rstest]
    #[case::of_this_service("web", Some("a-0"))]
    #[case::of_another("db", None)]
    fn a_hostname_is_for_the_service_of_its_subdomain(
        #[case] subdomain: &str,
        #[case] expected: Option<&str>,
    ) {
        let pod = pod("a", |pod| {
            pod["spec"]["hostname"] = json!("a-0");
            pod["spec"]["subdomain"] = json!(subdomain);
        });
        let endpoint = only(desired(&plain(json!({})), &[pod], node));
        assert_eq!(endpoint.hostname.as_deref(), expected);
        assert_eq!(endpoint.zone.as_deref(), Some("a"));
        assert_eq!(endpoint.node_name.as_deref(), Some("node-1"));
    }

    #[rstest]
    #[case::none(json!({}), None, None)]
    #[case::close(json!({"trafficDistribution": "PreferClose"}), Some("a"), None)]
    #[case::zone(json!({"trafficDistribution": "PreferSameZone"}), Some("a"), None)]
    #[case::node(json!({"trafficDistribution": "PreferSameNode"}), Some("a"), Some("node-1"))]
    fn traffic_distribution_gives_hints(
        #[case] spec: Value,
        #[case] zone: Option<&str>,
        #[case] host: Option<&str>,
    ) {
        let hints = only(desired(&plain(spec), &[pod("a", |_| {})], node)).hints;
        let hints = hints.unwrap_or_default();
        let zones = hints.for_zones.unwrap_or_default();
        let nodes = hints.for_nodes.unwrap_or_default();
        assert_eq!(zones.first().map(|zone| zone.name.as_str()), zone);
        assert_eq!(nodes.first().map(|node| node.name.as_str()), host);
    }

    #[rstest]
    #[case::selector(json!({"selector": {"a": "b"}}), true)]
    #[case::no_selector(json!({}), false)]
    #[case::empty_selector(json!({"selector": {}}), false)]
    #[case::external_name(json!({"selector": {"a": "b"}, "type": "ExternalName"}), false)]
    fn only_selecting_services_have_slices(#[case] spec: Value, #[case] expected: bool) {
        assert_eq!(is_selecting(&service(spec).spec.unwrap()), expected);
    }
}
