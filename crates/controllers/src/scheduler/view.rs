//! The scheduler's view of the cluster: nodes with the pods on them.

use super::affinity::{self, Term};
use super::filter;
use crate::object;
use crate::pods;
use crate::quantity;
use crate::selector::Labels;
use k8s_openapi::api::core::v1::{Node, Pod, Service, Taint};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

/// Pods a node takes when it does not say.
const DEFAULT_PODS: usize = 110;

/// Resources that are counted.
const COUNTED: [&str; 2] = ["cpu", "memory"];

/// A port of the node itself that a pod takes: address (`0.0.0.0` for all),
/// protocol, number.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct HostPort {
    pub(super) address: String,
    pub(super) protocol: String,
    pub(super) port: i32,
}

impl HostPort {
    /// Two pods cannot have ports that meet: same protocol and number, and one
    /// of them on all addresses or both on the same.
    pub(super) fn meets(&self, other: &Self) -> bool {
        let all = |port: &Self| matches!(port.address.as_str(), "" | "0.0.0.0" | "::");
        self.protocol == other.protocol
            && self.port == other.port
            && (all(self) || all(other) || self.address == other.address)
    }
}

/// The node ports a pod asks for; with the host's network, all its ports.
pub(super) fn host_ports(pod: &Pod) -> Vec<HostPort> {
    let Some(spec) = &pod.spec else {
        return Vec::new();
    };
    let on_host = spec.host_network == Some(true);
    pods::lasting_containers(spec)
        .flat_map(|container| container.ports.iter().flatten())
        .filter_map(|port| {
            let number = match port.host_port {
                Some(number) if number > 0 => number,
                _ if on_host => port.container_port,
                _ => return None,
            };
            Some(HostPort {
                address: port.host_ip.clone().unwrap_or_default(),
                protocol: port.protocol.clone().unwrap_or_else(|| "TCP".into()),
                port: number,
            })
        })
        .collect()
}

/// Requested amounts in thousandths, in the order of [`COUNTED`]: the sum of
/// the containers, or the largest init container when that is more.
pub(super) fn requests(pod: &Pod) -> [i128; 2] {
    let Some(spec) = &pod.spec else {
        return [0; 2];
    };
    COUNTED.map(|resource| {
        let of = |container: &k8s_openapi::api::core::v1::Container| {
            container
                .resources
                .as_ref()
                .and_then(|resources| resources.requests.as_ref()?.get(resource))
                .and_then(quantity::milli)
                .unwrap_or(0)
        };
        let lasting: i128 = pods::lasting_containers(spec).map(of).sum();
        let first = spec.init_containers.iter().flatten().map(of).max();
        lasting.max(first.unwrap_or(0))
    })
}

/// A node and what runs on it.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) node: Arc<Node>,
    pub(super) name: String,
    /// Taints, with those its conditions imply.
    pub(super) taints: Vec<Taint>,
    pub(super) pods: Vec<Arc<Pod>>,
    pub(super) ports: HashSet<HostPort>,
    pub(super) capacity: usize,
    /// What may be requested, by [`COUNTED`]; none when the node does not say.
    pub(super) allocatable: [Option<i128>; 2],
    pub(super) requested: [i128; 2],
}

impl Place {
    fn new(node: Arc<Node>) -> Self {
        let allocatable = node
            .status
            .as_ref()
            .and_then(|status| status.allocatable.as_ref());
        let amount = |name| quantity::milli(allocatable?.get(name)?);
        Self {
            name: object::name(&node.metadata).to_owned(),
            taints: filter::implied_taints(&node),
            pods: Vec::new(),
            ports: HashSet::new(),
            capacity: amount("pods")
                .and_then(|pods| usize::try_from(pods / 1000).ok())
                .unwrap_or(DEFAULT_PODS),
            allocatable: COUNTED.map(amount),
            requested: [0; 2],
            node,
        }
    }

    /// The node's value of a topology key.
    pub(super) fn domain(&self, key: &str) -> Option<&str> {
        object::label(&self.node.metadata, key)
    }

    /// The resource of which there is too little for these requests.
    pub(super) fn lacks(&self, requests: &[i128; 2]) -> Option<&'static str> {
        (0..COUNTED.len())
            .find(|index| {
                requests[*index] > 0
                    && self.allocatable[*index]
                        .is_some_and(|most| self.requested[*index] + requests[*index] > most)
            })
            .map(|index| COUNTED[index])
    }
}

/// All nodes, and what else decides about a place.
#[derive(Clone, Debug, Default)]
pub(super) struct View {
    pub(super) places: Vec<Place>,
    by_name: HashMap<String, usize>,
    /// Required anti-affinity of pods that have a node, with the node's index.
    pub(super) repelled_by: Vec<(usize, Arc<Pod>, Term)>,
    pub(super) namespaces: BTreeMap<String, Labels>,
    /// Selectors of Services by namespace.
    services: HashMap<String, Vec<Labels>>,
}

impl View {
    /// The view over these objects.
    pub(super) fn new(
        nodes: impl IntoIterator<Item = Arc<Node>>,
        pods: impl IntoIterator<Item = Arc<Pod>>,
        services: &[Arc<Service>],
        namespaces: BTreeMap<String, Labels>,
    ) -> Self {
        let mut places: Vec<_> = nodes.into_iter().map(Place::new).collect();
        places.sort_by(|a, b| natural(&a.name).cmp(&natural(&b.name)));
        let by_name = places
            .iter()
            .enumerate()
            .map(|(index, place)| (place.name.clone(), index))
            .collect();
        let mut selectors: HashMap<String, Vec<Labels>> = HashMap::new();
        for service in services {
            let selector = service.spec.as_ref().and_then(|spec| spec.selector.clone());
            if let Some(selector) = selector.filter(|selector| !selector.is_empty()) {
                selectors
                    .entry(object::namespace(&service.metadata).to_owned())
                    .or_default()
                    .push(selector);
            }
        }
        let mut view = Self {
            places,
            by_name,
            repelled_by: Vec::new(),
            namespaces,
            services: selectors,
        };
        for pod in pods {
            if pods::is_finished(&pod) {
                continue;
            }
            if let Some(index) = pods::node(&pod).and_then(|node| view.by_name.get(node)) {
                view.put(*index, pod);
            }
        }
        view
    }

    /// Counts a pod as one of the node's.
    pub(super) fn put(&mut self, index: usize, pod: Arc<Pod>) {
        for term in affinity::required_anti(&pod) {
            self.repelled_by.push((index, pod.clone(), term));
        }
        let Some(place) = self.places.get_mut(index) else {
            return;
        };
        place.ports.extend(host_ports(&pod));
        for (sum, amount) in place.requested.iter_mut().zip(requests(&pod)) {
            *sum += amount;
        }
        place.pods.push(pod);
    }

    /// Selectors of the Services a pod belongs to.
    pub(super) fn services_of(&self, pod: &Pod) -> Vec<&Labels> {
        let labels = crate::selector::labels(&pod.metadata);
        self.services
            .get(object::namespace(&pod.metadata))
            .into_iter()
            .flatten()
            .filter(|selector| selects(selector, labels))
            .collect()
    }
}

/// Whether a plain label map selects these labels.
pub(super) fn selects(selector: &Labels, labels: &Labels) -> bool {
    selector
        .iter()
        .all(|(key, value)| labels.get(key) == Some(value))
}

/// Orders `node-2` before `node-10`.
fn natural(name: &str) -> (&str, u64, &str) {
    let stem = name.trim_end_matches(|c: char| c.is_ascii_digit());
    (
        stem,
        name[stem.len()..].parse().unwrap_or(0),
        &name[stem.len()..],
    )
}
