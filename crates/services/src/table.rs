//! The service table: Services and endpoint slices in, frontends with their
//! backends out. Pure; one event recomputes the Services it touches and notes
//! which frontends changed.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, hash_map};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use serde::Serialize;

use crate::endpoints::{
    Candidate, Excluded, Hint, State, better, judge_cluster, judge_local, used,
};
use crate::model::{
    Backend, EndpointSlice, Family, FrontendKey, NodeFacts, NodePortAddresses, Protocol, Service,
    ServiceName, TrafficPolicy, parse_address, parse_port, parse_range,
};
use crate::report::{AddressField, Problem};

/// What kind of address a frontend has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum FrontendKind {
    /// A cluster address.
    ClusterIp,
    /// An address of the node.
    NodePort,
    /// An address of a load balancer.
    LoadBalancer,
    /// One of `spec.externalIPs`.
    ExternalIp,
}

impl FrontendKind {
    /// Whether it is meant to be asked from outside: its policy is the external one.
    #[must_use]
    pub const fn is_external(self) -> bool {
        !matches!(self, Self::ClusterIp)
    }
}

/// A frontend: where traffic is sent for, and where it may go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frontend {
    /// The Service it belongs to.
    pub service: Arc<ServiceName>,
    /// The Service's name for the port; empty if it has none.
    pub port_name: Arc<str>,
    /// What kind of address it has.
    pub kind: FrontendKind,
    /// Which of the lists below applies to its traffic.
    pub policy: TrafficPolicy,
    /// Usable backends of the whole cluster, sorted.
    pub cluster: Arc<[Backend]>,
    /// Usable backends on this node, sorted; empty unless `policy` is `Local`.
    pub local: Arc<[Backend]>,
    /// All backends that still serve, whatever policy, topology and
    /// termination say, sorted: UDP conversations with them may go on.
    pub serving: Arc<[Backend]>,
    /// Session affinity by client address, in seconds since a client's last
    /// connection; 1 to 86,400.
    pub affinity: Option<u32>,
    /// Sources that may use it, sorted; `None` is everybody. A packet of the
    /// node itself whose source is the frontend's own address may use it anyhow.
    pub sources: Option<Arc<[IpNet]>>,
}

/// What a load balancer asks at a Service's health-check node port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct HealthCheck {
    /// The port, at the node's addresses.
    pub port: u16,
    /// Ready endpoints on this node; of a Service of both families, the
    /// greater of the two counts.
    pub local_endpoints: usize,
}

/// A Service with all that decides about its endpoints, for people.
#[derive(Debug, Clone, Serialize)]
pub struct Explanation {
    /// The Service.
    pub service: ServiceName,
    /// Why nothing of it is programmed, if so.
    pub not_programmed: Option<&'static str>,
    /// Its frontends, sorted; those that another Service holds are left out.
    pub frontends: Vec<FrontendKey>,
    /// Its ports, for each family it has.
    pub ports: Vec<ExplainedPort>,
    /// What of it is left out.
    pub problems: Vec<Problem>,
}

/// A port of a Service for one family.
#[derive(Debug, Clone, Serialize)]
pub struct ExplainedPort {
    /// Its name.
    pub name: String,
    /// Its protocol.
    pub protocol: Protocol,
    /// The family.
    pub family: Family,
    /// All endpoints that slices name for it, sorted.
    pub endpoints: Vec<ExplainedEndpoint>,
}

/// An endpoint and why it is or is not used.
#[derive(Debug, Clone, Serialize)]
pub struct ExplainedEndpoint {
    /// Address and port.
    pub backend: Backend,
    /// Its state.
    pub state: State,
    /// The node it runs on.
    pub node: Option<Arc<str>>,
    /// Why traffic of policy `Cluster` does not go to it; `None` if it does.
    pub cluster: Option<Excluded>,
    /// Why traffic of policy `Local` does not go to it; `None` if it does.
    pub local: Option<Excluded>,
}

fn hint(hints: &[Arc<str>], here: Option<&str>) -> Hint {
    if hints.is_empty() {
        Hint::Absent
    } else if here.is_some_and(|here| hints.iter().any(|hint| **hint == *here)) {
        Hint::Here
    } else {
        Hint::Elsewhere
    }
}

/// A slice, read.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Slice {
    name: Arc<str>,
    family: Family,
    ports: Box<[(Arc<str>, Protocol, u16)]>,
    endpoints: Box<[Known]>,
    problems: Box<[Problem]>,
}

/// An endpoint of a slice, read. What it comes to depends on the node's facts,
/// which may become known after it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Known {
    address: IpAddr,
    ready: bool,
    serving: bool,
    terminating: bool,
    node: Option<Arc<str>>,
    /// Most endpoints have none.
    hints: Option<Box<Hints>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Hints {
    zones: Box<[Arc<str>]>,
    nodes: Box<[Arc<str>]>,
}

impl Known {
    fn state(&self, facts: &NodeFacts) -> State {
        let (zone_hint, node_hint) = match &self.hints {
            None => (Hint::Absent, Hint::Absent),
            Some(hints) => (
                hint(&hints.zones, facts.zone.as_deref()),
                hint(&hints.nodes, Some(&facts.node)),
            ),
        };
        State {
            ready: self.ready,
            serving: self.serving,
            terminating: self.terminating,
            local: self.node.as_deref() == Some(facts.node.as_str()),
            zone_hint,
            node_hint,
        }
    }
}

/// A Service, read.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Wanted {
    cluster_ips: Box<[IpAddr]>,
    load_balancer_ips: Box<[IpAddr]>,
    external_ips: Box<[IpAddr]>,
    /// For each family; `None` is everybody.
    sources: [Option<Arc<[IpNet]>>; 2],
    ports: Box<[Port]>,
    internal_policy: TrafficPolicy,
    external_policy: TrafficPolicy,
    affinity: Option<u32>,
    health_check_node_port: Option<u16>,
    foreign: bool,
    problems: Box<[Problem]>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Port {
    name: Arc<str>,
    protocol: Protocol,
    port: Option<u16>,
    node_port: Option<u16>,
}

impl Wanted {
    /// Why nothing of it is to be programmed.
    fn not_programmed(&self) -> Option<&'static str> {
        if self.foreign {
            Some("a label gives it to another proxy, or says that it is headless")
        } else if self.cluster_ips.is_empty() {
            Some("it has no cluster address")
        } else {
            None
        }
    }
}

/// The longest affinity Kubernetes allows, in seconds.
const LONGEST_AFFINITY: u32 = 86_400;

/// Keeps one copy of each name of a node, zone or port: there are few of them
/// and many endpoints.
#[derive(Debug, Default)]
struct Names {
    all: HashSet<Arc<str>>,
    /// At this size unused ones are thrown out.
    limit: usize,
}

impl Names {
    fn get(&mut self, name: &str) -> Arc<str> {
        if let Some(known) = self.all.get(name) {
            return Arc::clone(known);
        }
        if self.all.len() >= self.limit {
            self.all.retain(|name| Arc::strong_count(name) > 1);
            self.limit = (self.all.len() * 2).max(1024);
        }
        let name: Arc<str> = name.into();
        self.all.insert(Arc::clone(&name));
        name
    }

    fn list(&mut self, names: &[String]) -> Box<[Arc<str>]> {
        names.iter().map(|name| self.get(name)).collect()
    }
}

/// What is known under a Service's name: the Service may come before or after
/// its slices.
#[derive(Debug, Default)]
struct Entry {
    service: Option<Box<Wanted>>,
    /// Sorted by name. A list, since most Services have one or two.
    slices: Vec<Slice>,
    computed: Computed,
    /// Whether something of it was left out when last computed.
    troubled: bool,
}

/// What a Service comes to, apart from its frontends.
#[derive(Debug, Default, PartialEq, Eq)]
struct Computed {
    /// Frontends it claims, sorted.
    claims: Box<[FrontendKey]>,
    /// Cluster addresses it holds.
    cluster_ips: Box<[IpAddr]>,
    /// Load-balancer and permitted external addresses it holds.
    external_ips: Box<[IpAddr]>,
    /// Addresses of its endpoints on this node.
    local: Box<[IpAddr]>,
    health_check: Option<HealthCheck>,
    /// External addresses that are not permitted.
    refused: Box<[IpAddr]>,
}

/// What changed since it was last asked: keys whose present value is in the table.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Changes {
    /// Frontends made, changed or gone.
    pub frontends: HashSet<FrontendKey>,
    /// Cluster addresses allocated or freed.
    pub cluster_ips: HashSet<IpAddr>,
    /// Local endpoints that came or went.
    pub local_endpoints: HashSet<IpAddr>,
    /// Whether the node's facts changed.
    pub facts: bool,
}

impl Changes {
    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.frontends.is_empty()
            && self.cluster_ips.is_empty()
            && self.local_endpoints.is_empty()
            && !self.facts
    }

    /// The same in parts of at most so many frontends; the rest is with the first.
    pub fn parts(&self, frontends: usize) -> impl Iterator<Item = Self> {
        let mut keys = self.frontends.iter().copied();
        let mut first = Some(Self {
            frontends: HashSet::new(),
            cluster_ips: self.cluster_ips.clone(),
            local_endpoints: self.local_endpoints.clone(),
            facts: self.facts,
        });
        std::iter::from_fn(move || {
            let part: HashSet<FrontendKey> = keys.by_ref().take(frontends).collect();
            let rest = first.take();
            (rest.is_some() || !part.is_empty()).then(|| Self {
                frontends: part,
                ..rest.unwrap_or_default()
            })
        })
    }

    /// Takes up changes that could not be applied.
    pub fn merge(&mut self, other: Self) {
        self.frontends.extend(other.frontends);
        self.cluster_ips.extend(other.cluster_ips);
        self.local_endpoints.extend(other.local_endpoints);
        self.facts |= other.facts;
    }
}

/// The table.
#[derive(Debug)]
pub struct Table {
    facts: NodeFacts,
    /// Addresses at which node ports answer.
    node_port_addresses: Vec<IpAddr>,
    names: Names,
    /// Boxed, here and below: up to half the places of a hash table are empty.
    entries: HashMap<Arc<ServiceName>, Box<Entry>>,
    /// Which Service a slice belongs to: (namespace, slice) → name.
    slices: HashMap<(Arc<str>, Arc<str>), Arc<ServiceName>>,
    /// Of the Services that claim a frontend, the first by name holds it,
    /// whatever the order of events was.
    frontends: HashMap<FrontendKey, Box<Frontend>>,
    /// What the others that claim it want of it, by their names.
    waiting: HashMap<FrontendKey, BTreeMap<Arc<ServiceName>, Frontend>>,
    /// How many Services hold an address.
    cluster_ips: HashMap<IpAddr, u32>,
    /// How many Services have an address for traffic from outside.
    external_ips: HashMap<IpAddr, u32>,
    /// How many Services have a local endpoint at an address.
    local_endpoints: HashMap<IpAddr, u32>,
    health_checks: Arc<BTreeMap<ServiceName, HealthCheck>>,
    changes: Changes,
    /// Services whose problems may have changed.
    reports: BTreeSet<Arc<ServiceName>>,
}

impl Table {
    /// An empty table of a node.
    #[must_use]
    pub fn new(facts: NodeFacts) -> Self {
        let mut table = Self {
            facts,
            node_port_addresses: Vec::new(),
            names: Names::default(),
            entries: HashMap::new(),
            slices: HashMap::new(),
            frontends: HashMap::new(),
            waiting: HashMap::new(),
            cluster_ips: HashMap::new(),
            external_ips: HashMap::new(),
            local_endpoints: HashMap::new(),
            health_checks: Arc::default(),
            changes: Changes::default(),
            reports: BTreeSet::new(),
        };
        table.node_port_addresses = table.wanted_node_port_addresses();
        table
    }

    /// The node's facts.
    #[must_use]
    pub fn facts(&self) -> &NodeFacts {
        &self.facts
    }

    /// Addresses at which node ports answer, sorted.
    #[must_use]
    pub fn node_port_addresses(&self) -> &[IpAddr] {
        &self.node_port_addresses
    }

    /// The frontend that holds a key.
    #[must_use]
    pub fn frontend(&self, key: &FrontendKey) -> Option<&Frontend> {
        self.frontends.get(key).map(|frontend| &**frontend)
    }

    /// All frontends, in no order.
    pub fn frontends(&self) -> impl Iterator<Item = (&FrontendKey, &Frontend)> {
        self.frontends
            .iter()
            .map(|(key, frontend)| (key, &**frontend))
    }

    /// The frontends a Service holds, sorted by key.
    #[must_use]
    pub fn frontends_of(&self, name: &ServiceName) -> Vec<(FrontendKey, &Frontend)> {
        let claims = self
            .entries
            .get(name)
            .map_or(&[][..], |entry| &entry.computed.claims);
        claims
            .iter()
            .filter_map(|key| Some((*key, self.frontend(key)?)))
            .filter(|(_, frontend)| *frontend.service == *name)
            .collect()
    }

    /// All cluster addresses, in no order.
    pub fn cluster_ips(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.cluster_ips.keys().copied()
    }

    /// Whether a Service holds a cluster address.
    #[must_use]
    pub fn has_cluster_ip(&self, address: IpAddr) -> bool {
        self.cluster_ips.contains_key(&address)
    }

    /// Addresses of all endpoints on this node, in no order.
    pub fn local_endpoints(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.local_endpoints.keys().copied()
    }

    /// Whether an endpoint of this node has an address.
    #[must_use]
    pub fn has_local_endpoint(&self, address: IpAddr) -> bool {
        self.local_endpoints.contains_key(&address)
    }

    /// Services with a health-check node port. Another pointer than last time
    /// means that something changed.
    #[must_use]
    pub fn health_checks(&self) -> Arc<BTreeMap<ServiceName, HealthCheck>> {
        Arc::clone(&self.health_checks)
    }

    /// Names of all Services that were told, in no order.
    pub fn services(&self) -> impl Iterator<Item = &ServiceName> {
        self.entries
            .iter()
            .filter(|(_, entry)| entry.service.is_some())
            .map(|(name, _)| &**name)
    }

    /// Whether nothing changed since [`Self::take_changes`].
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.changes.is_empty()
    }

    /// What changed since the last call.
    pub fn take_changes(&mut self) -> Changes {
        std::mem::take(&mut self.changes)
    }

    /// Puts back changes that could not be applied.
    pub fn return_changes(&mut self, changes: Changes) {
        self.changes.merge(changes);
    }

    /// Services whose [`Self::problems`] may be others than at the last call.
    pub fn take_reports(&mut self) -> BTreeSet<Arc<ServiceName>> {
        std::mem::take(&mut self.reports)
    }

    /// What of a Service and its slices is left out, sorted; nothing if there
    /// is no such Service.
    #[must_use]
    pub fn problems(&self, name: &ServiceName) -> Vec<Problem> {
        self.entries
            .get_key_value(name)
            .map_or_else(Vec::new, |(name, entry)| self.problems_of(name, entry))
    }

    fn problems_of(&self, name: &Arc<ServiceName>, entry: &Entry) -> Vec<Problem> {
        let Some(service) = entry.service.as_ref().filter(|s| !s.foreign) else {
            return Vec::new();
        };
        let mut problems: Vec<Problem> = service.problems.to_vec();
        problems.extend(
            entry
                .computed
                .refused
                .iter()
                .map(|address| Problem::ExternalIpRefused { address: *address }),
        );
        problems.extend(
            entry
                .slices
                .iter()
                .flat_map(|slice| slice.problems.to_vec()),
        );
        problems.extend(entry.computed.claims.iter().filter_map(|key| {
            let holder = &self.frontends.get(key)?.service;
            (holder != name).then(|| Problem::Taken {
                frontend: *key,
                holder: (**holder).clone(),
            })
        }));
        problems.sort_unstable();
        problems.dedup();
        problems
    }

    /// All that decides about a Service's endpoints; `None` if there is no such
    /// Service.
    #[must_use]
    pub fn explain(&self, name: &ServiceName) -> Option<Explanation> {
        let (name, entry) = self.entries.get_key_value(name)?;
        let service = entry.service.as_ref()?;
        let mut ports = Vec::new();
        for family in families(&service.cluster_ips) {
            for port in &service.ports {
                let candidates = collect(entry, &self.facts, family, port);
                let endpoints = candidates
                    .iter()
                    .zip(judge_cluster(&candidates))
                    .zip(judge_local(&candidates))
                    .map(|((&(backend, state), cluster), local)| ExplainedEndpoint {
                        backend,
                        state,
                        node: node_of(entry, backend.address),
                        cluster,
                        local,
                    })
                    .collect();
                ports.push(ExplainedPort {
                    name: port.name.to_string(),
                    protocol: port.protocol,
                    family,
                    endpoints,
                });
            }
        }
        Some(Explanation {
            service: (**name).clone(),
            not_programmed: service.not_programmed(),
            frontends: self
                .frontends_of(name)
                .into_iter()
                .map(|(key, _)| key)
                .collect(),
            ports,
            problems: self.problems(name),
        })
    }

    /// A Service was made or changed.
    pub fn set_service(&mut self, service: Service) {
        let read = self.read_service(&service);
        let name = Arc::new(service.name);
        let entry = self.entries.entry(Arc::clone(&name)).or_default();
        if entry.service.as_deref() == Some(&read) {
            return;
        }
        entry.service = Some(Box::new(read));
        self.recompute(&name);
    }

    /// A Service is gone.
    pub fn remove_service(&mut self, name: &ServiceName) {
        if let Some(entry) = self.entries.get_mut(name) {
            entry.service = None;
            self.recompute(name);
        }
    }

    /// A slice was made or changed.
    pub fn set_slice(&mut self, slice: &EndpointSlice) {
        let name = ServiceName::new(&*slice.namespace, &*slice.service);
        let name = match self.entries.get_key_value(&name) {
            Some((known, _)) => Arc::clone(known),
            None => Arc::new(name),
        };
        let key = (self.names.get(&slice.namespace), slice.name.as_str().into());
        let (own, before) = match self.slices.entry(key) {
            hash_map::Entry::Occupied(mut known) => {
                let own = Arc::clone(&known.key().1);
                (own, Some(known.insert(Arc::clone(&name))))
            }
            hash_map::Entry::Vacant(new) => {
                let own = Arc::clone(&new.key().1);
                new.insert(Arc::clone(&name));
                (own, None)
            }
        };
        if let Some(before) = before.filter(|before| *before != name) {
            self.drop_slice(&before, &slice.name);
        }
        let read = self.read_slice(slice, own);
        let entry = self.entries.entry(Arc::clone(&name)).or_default();
        match entry
            .slices
            .binary_search_by(|known| (*known.name).cmp(&slice.name))
        {
            Ok(place) if entry.slices[place] == read => return,
            Ok(place) => entry.slices[place] = read,
            Err(place) => {
                entry.slices.reserve_exact(1);
                entry.slices.insert(place, read);
            }
        }
        self.recompute(&name);
    }

    /// A slice is gone.
    pub fn remove_slice(&mut self, namespace: &str, name: &str) {
        let key = (self.names.get(namespace), name.into());
        if let Some(service) = self.slices.remove(&key) {
            self.drop_slice(&service, name);
        }
    }

    fn drop_slice(&mut self, service: &ServiceName, slice: &str) {
        if let Some(entry) = self.entries.get_mut(service)
            && let Ok(place) = entry
                .slices
                .binary_search_by(|known| (*known.name).cmp(slice))
        {
            entry.slices.remove(place);
            self.recompute(service);
        }
    }

    /// The node's facts changed.
    pub fn set_facts(&mut self, facts: NodeFacts) {
        if facts == self.facts {
            return;
        }
        self.changes.facts = true;
        let all = facts.node != self.facts.node || facts.zone != self.facts.zone;
        let external = facts.external_ip_cidrs != self.facts.external_ip_cidrs;
        self.facts = facts;
        let addresses = self.wanted_node_port_addresses();
        let node_ports = addresses != self.node_port_addresses;
        self.node_port_addresses = addresses;
        self.recompute_those(|service| {
            all || (external && !service.external_ips.is_empty())
                || (node_ports && has_node_port(service))
        });
    }

    fn recompute_those(&mut self, concerned: impl Fn(&Wanted) -> bool) {
        let names: Vec<Arc<ServiceName>> = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.service.as_deref().is_some_and(&concerned))
            .map(|(name, _)| Arc::clone(name))
            .collect();
        for name in names {
            self.recompute(&name);
        }
    }

    /// Where node ports are to answer, as facts and Services are now.
    fn wanted_node_port_addresses(&self) -> Vec<IpAddr> {
        let facts = &self.facts;
        let known = facts.addresses.iter().chain(&facts.local_addresses);
        // A Service's address that the node happens to have is none of its own.
        let known =
            known.filter(|address| facts.addresses.contains(address) || !self.is_service(address));
        let mut addresses: Vec<IpAddr> = match &facts.node_port_addresses {
            NodePortAddresses::Primary => facts.addresses.clone(),
            NodePortAddresses::All => known.copied().collect(),
            NodePortAddresses::Ranges(ranges) => known
                .filter(|address| ranges.iter().any(|range| range.contains(*address)))
                .copied()
                .collect(),
        };
        addresses.retain(|address| !address.is_loopback() && !is_link_local(address));
        addresses.sort_unstable();
        addresses.dedup();
        addresses
    }

    /// Whether an address belongs to a Service.
    fn is_service(&self, address: &IpAddr) -> bool {
        self.cluster_ips.contains_key(address) || self.external_ips.contains_key(address)
    }

    fn read_service(&mut self, service: &Service) -> Wanted {
        let mut problems = Vec::new();
        let mut addresses = |field: AddressField, texts: &[String]| -> Box<[IpAddr]> {
            let mut addresses = Vec::with_capacity(texts.len());
            for text in texts {
                match parse_address(text) {
                    Some(address) => addresses.push(address),
                    // Says that there is none.
                    None if text.is_empty() || text == "None" => {}
                    None => problems.push(Problem::Address {
                        field,
                        text: text.clone(),
                    }),
                }
            }
            addresses.sort_unstable();
            addresses.dedup();
            addresses.into()
        };
        let cluster_ips = addresses(AddressField::ClusterIp, &service.cluster_ips);
        let load_balancer_ips = addresses(AddressField::LoadBalancer, &service.load_balancer_ips);
        let external_ips = addresses(AddressField::ExternalIp, &service.external_ips);
        let sources = read_sources(&service.source_ranges, &mut problems);
        let names = &mut self.names;
        let mut number = |field: &'static str, name: &str, number: i32| {
            let port = parse_port(number);
            if port.is_none() {
                problems.push(Problem::Port {
                    field,
                    name: name.to_owned(),
                    number,
                });
            }
            port
        };
        let ports = service
            .ports
            .iter()
            .map(|port| Port {
                name: names.get(&port.name),
                protocol: port.protocol,
                port: number("spec.ports.port", &port.name, port.port),
                node_port: port
                    .node_port
                    .filter(|number| *number != 0)
                    .and_then(|node_port| number("spec.ports.nodePort", &port.name, node_port)),
            })
            .collect();
        let health_check_node_port = service
            .health_check_node_port
            .filter(|number| *number != 0)
            .and_then(|port| number("spec.healthCheckNodePort", "", port));
        Wanted {
            cluster_ips,
            load_balancer_ips,
            external_ips,
            sources,
            ports,
            internal_policy: service.internal_policy,
            external_policy: service.external_policy,
            affinity: service
                .affinity
                .map(|seconds| seconds.clamp(1, LONGEST_AFFINITY)),
            health_check_node_port,
            foreign: service.foreign,
            problems: problems.into(),
        }
    }

    fn read_slice(&mut self, slice: &EndpointSlice, name: Arc<str>) -> Slice {
        let names = &mut self.names;
        let mut problems = Vec::new();
        let ports = slice
            .ports
            .iter()
            .filter_map(|port| {
                let Some(number) = parse_port(port.port?) else {
                    problems.push(Problem::SlicePort {
                        slice: slice.name.clone(),
                        name: port.name.clone(),
                        number: port.port?,
                    });
                    return None;
                };
                Some((names.get(&port.name), port.protocol, number))
            })
            .collect();
        let mut unreadable = slice
            .endpoints
            .iter()
            .filter(|endpoint| slice_address(slice, &endpoint.address).is_none());
        if let Some(first) = unreadable.next() {
            problems.push(Problem::EndpointAddresses {
                slice: slice.name.clone(),
                example: first.address.clone(),
                count: 1 + unreadable.count(),
            });
        }
        let endpoints = slice
            .endpoints
            .iter()
            .filter_map(|endpoint| {
                let ready = endpoint.ready.unwrap_or(true);
                let hinted = !endpoint.zone_hints.is_empty() || !endpoint.node_hints.is_empty();
                Some(Known {
                    address: slice_address(slice, &endpoint.address)?,
                    ready,
                    serving: endpoint.serving.unwrap_or(ready),
                    terminating: endpoint.terminating.unwrap_or(false),
                    node: endpoint.node.as_deref().map(|node| names.get(node)),
                    hints: hinted.then(|| {
                        Box::new(Hints {
                            zones: names.list(&endpoint.zone_hints),
                            nodes: names.list(&endpoint.node_hints),
                        })
                    }),
                })
            })
            .collect();
        Slice {
            name,
            family: slice.family,
            ports,
            endpoints,
            problems: problems.into(),
        }
    }

    /// Works out a Service anew and notes what differs.
    fn recompute(&mut self, name: &ServiceName) {
        let Some((name, mut entry)) = self.entries.remove_entry(name) else {
            return;
        };
        let (frontends, computed) = compute(&entry, &name, &self.facts, &self.node_port_addresses);
        let old = std::mem::replace(&mut entry.computed, computed);
        let new = &entry.computed;

        let mut external = HashSet::new();
        for (counts, changed, old, new) in [
            (
                &mut self.cluster_ips,
                &mut self.changes.cluster_ips,
                &old.cluster_ips,
                &new.cluster_ips,
            ),
            (
                &mut self.external_ips,
                &mut external,
                &old.external_ips,
                &new.external_ips,
            ),
            (
                &mut self.local_endpoints,
                &mut self.changes.local_endpoints,
                &old.local,
                &new.local,
            ),
        ] {
            recount(counts, changed, old, new);
        }
        if old.health_check != new.health_check {
            let checks = Arc::make_mut(&mut self.health_checks);
            match new.health_check {
                Some(check) => checks.insert((*name).clone(), check),
                None => checks.remove(&*name),
            };
        }
        for key in &old.claims {
            if new.claims.binary_search(key).is_err() {
                self.unclaim(key, &name);
            }
        }
        for (key, frontend) in frontends {
            self.claim(key, frontend);
        }
        let addresses_moved =
            old.cluster_ips != new.cluster_ips || old.external_ips != new.external_ips;
        let was_troubled = entry.troubled;
        let known = entry.service.is_some() || !entry.slices.is_empty();
        entry.troubled = known && !self.problems_of(&name, &entry).is_empty();
        if was_troubled || entry.troubled {
            self.reports.insert(Arc::clone(&name));
        }
        if known {
            self.entries.insert(name, entry);
        }
        if addresses_moved && self.facts.node_port_addresses != NodePortAddresses::Primary {
            let addresses = self.wanted_node_port_addresses();
            if addresses != self.node_port_addresses {
                self.node_port_addresses = addresses;
                self.recompute_those(has_node_port);
            }
        }
    }

    /// A Service wants a frontend. The first by name gets it.
    fn claim(&mut self, key: FrontendKey, frontend: Frontend) {
        let Some(holder) = self.frontends.get_mut(&key) else {
            self.frontends.insert(key, Box::new(frontend));
            self.changes.frontends.insert(key);
            return;
        };
        if holder.service == frontend.service {
            if **holder != frontend {
                **holder = frontend;
                self.changes.frontends.insert(key);
            }
            return;
        }
        let loser = if frontend.service < holder.service {
            self.changes.frontends.insert(key);
            std::mem::replace(&mut **holder, frontend)
        } else {
            frontend
        };
        let waiting = self.waiting.entry(key).or_default();
        // One that waited and comes first now waits no more.
        waiting.remove(&holder.service);
        self.reports.insert(Arc::clone(&loser.service));
        waiting.insert(Arc::clone(&loser.service), loser);
    }

    /// A Service wants a frontend no more: who waits longest by name gets it.
    fn unclaim(&mut self, key: &FrontendKey, name: &Arc<ServiceName>) {
        if let Some(waiting) = self.waiting.get_mut(key) {
            waiting.remove(name);
            if self.frontends.get(key).is_some_and(|f| f.service == *name)
                && let Some((_, next)) = waiting.pop_first()
            {
                self.reports.extend(waiting.keys().cloned());
                self.reports.insert(Arc::clone(&next.service));
                self.frontends.insert(*key, Box::new(next));
                self.changes.frontends.insert(*key);
            }
            if waiting.is_empty() {
                self.waiting.remove(key);
            }
        }
        if self.frontends.get(key).is_some_and(|f| f.service == *name) {
            self.frontends.remove(key);
            self.changes.frontends.insert(*key);
        }
    }
}

fn has_node_port(service: &Wanted) -> bool {
    service.ports.iter().any(|port| port.node_port.is_some())
}

const fn is_link_local(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

/// The families of cluster addresses, in order.
fn families(cluster_ips: &[IpAddr]) -> impl Iterator<Item = Family> {
    Family::ALL
        .into_iter()
        .filter(|family| cluster_ips.iter().any(|a| Family::of(*a) == *family))
}

fn slice_address(slice: &EndpointSlice, text: &str) -> Option<IpAddr> {
    parse_address(text).filter(|address| Family::of(*address) == slice.family)
}

/// Who may use load-balancer addresses of each family. An entry of the other
/// family is as if it were not there; one that cannot be read admits nobody, but
/// a filter remains a filter.
fn read_sources(texts: &[String], problems: &mut Vec<Problem>) -> [Option<Arc<[IpNet]>>; 2] {
    let mut ranges = Vec::new();
    let mut unreadable = false;
    for text in texts.iter().filter(|text| !text.trim().is_empty()) {
        match parse_range(text) {
            Some(range) => ranges.push(range),
            None => {
                unreadable = true;
                problems.push(Problem::SourceRange { text: text.clone() });
            }
        }
    }
    ranges.sort_unstable();
    ranges.dedup();
    Family::ALL.map(|family| {
        let own: Vec<IpNet> = ranges
            .iter()
            .filter(|range| Family::of(range.addr()) == family)
            .copied()
            .collect();
        let everybody = own.iter().any(|range| range.prefix_len() == 0);
        (!everybody && (unreadable || !own.is_empty())).then(|| own.into())
    })
}

/// Moves counts from an old list of addresses to a new one; notes those that
/// appear and vanish.
fn recount(
    counts: &mut HashMap<IpAddr, u32>,
    changed: &mut HashSet<IpAddr>,
    old: &[IpAddr],
    new: &[IpAddr],
) {
    for address in new {
        let count = counts.entry(*address).or_insert(0);
        *count += 1;
        if *count == 1 {
            changed.insert(*address);
        }
    }
    for address in old {
        if let Some(count) = counts.get_mut(address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(address);
                changed.insert(*address);
            }
        }
    }
}

/// What one Service comes to.
fn compute(
    entry: &Entry,
    name: &Arc<ServiceName>,
    facts: &NodeFacts,
    node_port_addresses: &[IpAddr],
) -> (BTreeMap<FrontendKey, Frontend>, Computed) {
    let mut frontends = BTreeMap::new();
    let mut computed = Computed::default();
    let Some(service) = entry
        .service
        .as_deref()
        .filter(|service| service.not_programmed().is_none())
    else {
        return (frontends, computed);
    };
    let permitted = |address: &IpAddr| {
        facts
            .external_ip_cidrs
            .iter()
            .any(|range| range.contains(address))
    };
    let (external, refused): (Vec<IpAddr>, Vec<IpAddr>) =
        service.external_ips.iter().partition(|ip| permitted(ip));
    let mut local = Vec::new();
    let mut local_endpoints = 0;
    for family in families(&service.cluster_ips) {
        let of_family = |list: &[IpAddr]| -> Vec<IpAddr> {
            list.iter()
                .copied()
                .filter(|a| Family::of(*a) == family)
                .collect()
        };
        let mut ready_here = BTreeSet::new();
        for port in &service.ports {
            let candidates = collect(entry, facts, family, port);
            for (backend, state) in candidates.iter().filter(|(_, state)| state.local) {
                local.push(backend.address);
                if state.ready {
                    ready_here.insert(backend.address);
                }
            }
            let cluster: Arc<[Backend]> = used(&candidates, judge_cluster(&candidates)).into();
            let near: Arc<[Backend]> = used(&candidates, judge_local(&candidates)).into();
            let serving: Vec<Backend> = candidates
                .iter()
                .filter(|(_, state)| state.serving)
                .map(|(backend, _)| *backend)
                .collect();
            let serving = if *serving == *cluster {
                Arc::clone(&cluster)
            } else {
                serving.into()
            };
            let mut claim = |address: IpAddr, number: u16, kind: FrontendKind| {
                let policy = if kind.is_external() {
                    service.external_policy
                } else {
                    service.internal_policy
                };
                let key = FrontendKey {
                    address,
                    protocol: port.protocol,
                    port: number,
                };
                frontends.entry(key).or_insert_with(|| Frontend {
                    service: Arc::clone(name),
                    port_name: Arc::clone(&port.name),
                    kind,
                    policy,
                    cluster: Arc::clone(&cluster),
                    local: match policy {
                        TrafficPolicy::Local => Arc::clone(&near),
                        TrafficPolicy::Cluster => Arc::default(),
                    },
                    serving: Arc::clone(&serving),
                    affinity: service.affinity,
                    sources: match kind {
                        FrontendKind::LoadBalancer => service.sources[family as usize].clone(),
                        _ => None,
                    },
                });
            };
            if let Some(number) = port.port {
                for (list, kind) in [
                    (&*service.cluster_ips, FrontendKind::ClusterIp),
                    (&*service.load_balancer_ips, FrontendKind::LoadBalancer),
                    (&*external, FrontendKind::ExternalIp),
                ] {
                    for address in of_family(list) {
                        claim(address, number, kind);
                    }
                }
            }
            if let Some(node_port) = port.node_port {
                for address in of_family(node_port_addresses) {
                    claim(address, node_port, FrontendKind::NodePort);
                }
            }
        }
        local_endpoints = local_endpoints.max(ready_here.len());
    }
    local.sort_unstable();
    local.dedup();
    computed.claims = frontends.keys().copied().collect();
    computed.cluster_ips = service.cluster_ips.clone();
    computed.external_ips = service
        .load_balancer_ips
        .iter()
        .chain(&external)
        .copied()
        .collect();
    computed.local = local.into();
    computed.refused = refused.into();
    computed.health_check = service
        .health_check_node_port
        .filter(|_| service.external_policy == TrafficPolicy::Local)
        .map(|port| HealthCheck {
            port,
            local_endpoints,
        });
    (frontends, computed)
}

/// The endpoints of one port over all slices, sorted, each address and port
/// once.
fn collect(entry: &Entry, facts: &NodeFacts, family: Family, port: &Port) -> Vec<Candidate> {
    let mut found: BTreeMap<Backend, State> = BTreeMap::new();
    for slice in entry.slices.iter().filter(|s| s.family == family) {
        for (_, _, number) in slice
            .ports
            .iter()
            .filter(|(name, protocol, _)| *name == port.name && *protocol == port.protocol)
        {
            for endpoint in &slice.endpoints {
                let backend = Backend {
                    address: endpoint.address,
                    port: *number,
                };
                let state = endpoint.state(facts);
                found
                    .entry(backend)
                    .and_modify(|known| *known = better(*known, state))
                    .or_insert(state);
            }
        }
    }
    found.into_iter().collect()
}

/// The node of an endpoint: of several entries, that of one that lives.
fn node_of(entry: &Entry, address: IpAddr) -> Option<Arc<str>> {
    entry
        .slices
        .iter()
        .flat_map(|slice| &slice.endpoints)
        .filter(|known| known.address == address)
        .min_by_key(|known| known.terminating)
        .and_then(|known| known.node.clone())
}
