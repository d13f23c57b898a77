//! The service table: Services and endpoint slices in, frontends with their
//! backends out. Pure; one event recomputes the Services it touches and notes
//! which frontends changed.
//!
//! The rules are those of kube-proxy (`pkg/proxy/topology.go` and its tests).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::model::{
    Backend, EndpointSlice, Family, FrontendKey, NodeFacts, Protocol, Service, ServiceName,
    TrafficPolicy, parse_address,
};

/// From where a frontend is meant to be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrontendKind {
    /// A cluster address.
    Cluster,
    /// A node port or an external address.
    External,
}

/// A frontend: where traffic is sent for, and where it may go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frontend {
    /// The Service it belongs to.
    pub service: Arc<ServiceName>,
    /// The name of the Service's port; empty if it has none.
    pub port_name: Arc<str>,
    /// From where it is meant to be used.
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
}

/// What an endpoint of a slice comes to on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct State {
    ready: bool,
    serving: bool,
    terminating: bool,
    local: bool,
    zone_hint: Hint,
    node_hint: Hint,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hint {
    Absent,
    Elsewhere,
    Here,
}

impl Hint {
    fn of(hints: &[Arc<str>], here: Option<&str>) -> Self {
        if hints.is_empty() {
            Self::Absent
        } else if here.is_some_and(|here| hints.iter().any(|hint| **hint == *here)) {
            Self::Here
        } else {
            Self::Elsewhere
        }
    }
}

/// A slice, read.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Slice {
    family: Family,
    ports: Vec<(Arc<str>, Protocol, u16)>,
    endpoints: Box<[Known]>,
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
    zone_hints: Box<[Arc<str>]>,
    node_hints: Box<[Arc<str>]>,
}

impl Known {
    fn state(&self, facts: &NodeFacts) -> State {
        State {
            ready: self.ready,
            serving: self.serving,
            terminating: self.terminating,
            local: self.node.as_deref() == Some(facts.node.as_str()),
            zone_hint: Hint::of(&self.zone_hints, facts.zone.as_deref()),
            node_hint: Hint::of(&self.node_hints, Some(&facts.node)),
        }
    }
}

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
    service: Option<Service>,
    slices: BTreeMap<String, Slice>,
    /// Frontends it claims now.
    claims: Vec<FrontendKey>,
    /// Cluster addresses it holds now.
    addresses: Vec<IpAddr>,
    /// Addresses of its endpoints on this node.
    local: Vec<IpAddr>,
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
    names: Names,
    entries: HashMap<ServiceName, Entry>,
    /// Which Service a slice belongs to: (namespace, slice) → name.
    slices: HashMap<(String, String), String>,
    /// Claims on each frontend in order of the claimant's name: the first holds
    /// it, whatever the order of events was.
    frontends: HashMap<FrontendKey, Vec<Frontend>>,
    /// How many Services hold an address.
    cluster_ips: HashMap<IpAddr, u32>,
    /// How many Services have a local endpoint at an address.
    local_endpoints: HashMap<IpAddr, u32>,
    changes: Changes,
}

impl Table {
    /// An empty table of a node.
    #[must_use]
    pub fn new(facts: NodeFacts) -> Self {
        Self {
            facts,
            names: Names::default(),
            entries: HashMap::new(),
            slices: HashMap::new(),
            frontends: HashMap::new(),
            cluster_ips: HashMap::new(),
            local_endpoints: HashMap::new(),
            changes: Changes::default(),
        }
    }

    /// The node's facts.
    #[must_use]
    pub fn facts(&self) -> &NodeFacts {
        &self.facts
    }

    /// The frontend that holds a key.
    #[must_use]
    pub fn frontend(&self, key: &FrontendKey) -> Option<&Frontend> {
        self.frontends.get(key)?.first()
    }

    /// All frontends, in no order.
    pub fn frontends(&self) -> impl Iterator<Item = (&FrontendKey, &Frontend)> {
        self.frontends
            .iter()
            .filter_map(|(key, claims)| Some((key, claims.first()?)))
    }

    /// The frontends a Service holds, sorted by key.
    #[must_use]
    pub fn frontends_of(&self, name: &ServiceName) -> Vec<(FrontendKey, &Frontend)> {
        let claims = self.entries.get(name).map_or(&[][..], |e| &e.claims);
        let mut held: Vec<_> = claims
            .iter()
            .filter_map(|key| Some((*key, self.frontend(key)?)))
            .filter(|(_, frontend)| *frontend.service == *name)
            .collect();
        held.sort_unstable_by_key(|(key, _)| *key);
        held
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

    /// A Service was made or changed.
    pub fn set_service(&mut self, service: Service) {
        let name = service.name.clone();
        let entry = self.entries.entry(name.clone()).or_default();
        if entry.service.as_ref() == Some(&service) {
            return;
        }
        entry.service = Some(service);
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
        let name = ServiceName::new(&slice.namespace, &slice.service);
        let before = self.slices.insert(
            (slice.namespace.clone(), slice.name.clone()),
            slice.service.clone(),
        );
        if let Some(before) = before.filter(|before| *before != slice.service) {
            self.drop_slice(&ServiceName::new(&slice.namespace, before), &slice.name);
        }
        let read = self.read_slice(slice);
        let entry = self.entries.entry(name.clone()).or_default();
        if entry.slices.get(&slice.name) == Some(&read) {
            return;
        }
        entry.slices.insert(slice.name.clone(), read);
        self.recompute(&name);
    }

    /// A slice is gone.
    pub fn remove_slice(&mut self, namespace: &str, name: &str) {
        let key = (namespace.to_owned(), name.to_owned());
        if let Some(service) = self.slices.remove(&key) {
            self.drop_slice(&ServiceName::new(namespace, service), name);
        }
    }

    fn drop_slice(&mut self, service: &ServiceName, slice: &str) {
        if let Some(entry) = self.entries.get_mut(service)
            && entry.slices.remove(slice).is_some()
        {
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
        let node_ports = facts.addresses != self.facts.addresses;
        self.facts = facts;
        if !all && !node_ports {
            return;
        }
        let concerned = |entry: &Entry| {
            entry
                .service
                .as_ref()
                .is_some_and(|s| all || s.ports.iter().any(|p| p.node_port.is_some()))
        };
        let names: Vec<ServiceName> = self
            .entries
            .iter()
            .filter(|(_, entry)| concerned(entry))
            .map(|(name, _)| name.clone())
            .collect();
        for name in names {
            self.recompute(&name);
        }
    }

    fn read_slice(&mut self, slice: &EndpointSlice) -> Slice {
        let names = &mut self.names;
        let ports = slice
            .ports
            .iter()
            .filter_map(|port| {
                let number = port.port.filter(|number| *number != 0)?;
                Some((names.get(&port.name), port.protocol, number))
            })
            .collect();
        let endpoints = slice
            .endpoints
            .iter()
            .filter_map(|endpoint| {
                let address = parse_address(&endpoint.address)
                    .filter(|address| Family::of(*address) == slice.family)?;
                let ready = endpoint.ready.unwrap_or(true);
                Some(Known {
                    address,
                    ready,
                    serving: endpoint.serving.unwrap_or(ready),
                    terminating: endpoint.terminating.unwrap_or(false),
                    node: endpoint.node.as_deref().map(|node| names.get(node)),
                    zone_hints: names.list(&endpoint.zone_hints),
                    node_hints: names.list(&endpoint.node_hints),
                })
            })
            .collect();
        Slice {
            family: slice.family,
            ports,
            endpoints,
        }
    }

    /// Works out a Service anew and notes what differs.
    fn recompute(&mut self, name: &ServiceName) {
        let Some(mut entry) = self.entries.remove(name) else {
            return;
        };
        let (frontends, addresses, local) = compute(&entry, name, &self.facts);

        recount(
            &mut self.cluster_ips,
            &mut self.changes.cluster_ips,
            &entry.addresses,
            &addresses,
        );
        recount(
            &mut self.local_endpoints,
            &mut self.changes.local_endpoints,
            &entry.local,
            &local,
        );
        entry.addresses = addresses;
        entry.local = local;

        let old = std::mem::take(&mut entry.claims);
        for key in &old {
            if !frontends.contains_key(key)
                && let Some(claims) = self.frontends.get_mut(key)
            {
                claims.retain(|claim| *claim.service != *name);
                if claims.is_empty() {
                    self.frontends.remove(key);
                }
                self.changes.frontends.insert(*key);
            }
        }
        for (key, frontend) in frontends {
            entry.claims.push(key);
            let claims = self.frontends.entry(key).or_default();
            match claims.binary_search_by(|claim| claim.service.as_ref().cmp(name)) {
                Ok(place) if claims[place] == frontend => continue,
                Ok(place) => claims[place] = frontend,
                Err(place) => claims.insert(place, frontend),
            }
            if claims.len() > 1 {
                tracing::warn!(
                    address = %key.address,
                    port = key.port,
                    protocol = ?key.protocol,
                    holder = %claims[0].service,
                    service = %name,
                    "two Services claim the same address and port"
                );
            }
            self.changes.frontends.insert(key);
        }
        if entry.service.is_some() || !entry.slices.is_empty() {
            self.entries.insert(name.clone(), entry);
        }
    }
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

type Computed = (BTreeMap<FrontendKey, Frontend>, Vec<IpAddr>, Vec<IpAddr>);

/// The frontends, cluster addresses and local endpoints of one Service.
fn compute(entry: &Entry, name: &ServiceName, facts: &NodeFacts) -> Computed {
    let mut frontends = BTreeMap::new();
    let Some(service) = entry.service.as_ref().filter(|service| !service.foreign) else {
        return (frontends, Vec::new(), Vec::new());
    };
    let mut addresses: Vec<IpAddr> = service
        .cluster_ips
        .iter()
        .filter_map(|text| parse_address(text))
        .collect();
    addresses.sort_unstable();
    addresses.dedup();
    if addresses.is_empty() {
        return (frontends, addresses, Vec::new());
    }
    let external: Vec<IpAddr> = service
        .external_ips
        .iter()
        .filter_map(|text| parse_address(text))
        .collect();
    let service_name = Arc::new(name.clone());
    let mut local = Vec::new();
    for family in Family::ALL {
        if !addresses.iter().any(|a| Family::of(*a) == family) {
            continue;
        }
        for port in &service.ports {
            let endpoints = collect(entry, facts, family, (&port.name, port.protocol));
            local.extend(
                endpoints
                    .iter()
                    .filter(|(_, state)| state.local)
                    .map(|(backend, _)| backend.address),
            );
            let cluster: Arc<[Backend]> = cluster_list(&endpoints).into();
            let near: Arc<[Backend]> = local_list(&endpoints).into();
            let none: Arc<[Backend]> = Arc::new([]);
            let serving: Vec<Backend> = endpoints
                .iter()
                .filter(|(_, state)| state.serving)
                .map(|(backend, _)| *backend)
                .collect();
            let serving = if *serving == *cluster {
                Arc::clone(&cluster)
            } else {
                serving.into()
            };
            let port_name: Arc<str> = port.name.as_str().into();
            let mut claim = |address: IpAddr, number: u16, kind: FrontendKind| {
                let policy = match kind {
                    FrontendKind::Cluster => service.internal_policy,
                    FrontendKind::External => service.external_policy,
                };
                let key = FrontendKey {
                    address,
                    protocol: port.protocol,
                    port: number,
                };
                frontends.entry(key).or_insert_with(|| Frontend {
                    service: Arc::clone(&service_name),
                    port_name: Arc::clone(&port_name),
                    kind,
                    policy,
                    cluster: Arc::clone(&cluster),
                    local: match policy {
                        TrafficPolicy::Local => Arc::clone(&near),
                        TrafficPolicy::Cluster => Arc::clone(&none),
                    },
                    serving: Arc::clone(&serving),
                });
            };
            let of_family = |list: &[IpAddr]| -> Vec<IpAddr> {
                list.iter()
                    .copied()
                    .filter(|a| Family::of(*a) == family)
                    .collect()
            };
            if port.port != 0 {
                for address in of_family(&addresses) {
                    claim(address, port.port, FrontendKind::Cluster);
                }
                for address in of_family(&external) {
                    claim(address, port.port, FrontendKind::External);
                }
            }
            if let Some(node_port) = port.node_port.filter(|number| *number != 0) {
                for address in of_family(&facts.addresses) {
                    claim(address, node_port, FrontendKind::External);
                }
            }
        }
    }
    local.sort_unstable();
    local.dedup();
    (frontends, addresses, local)
}

/// The endpoints of one port over all slices, sorted, each address and port
/// once. Where an address appears twice, because it was given to a new pod
/// while the old one's slice still names it, the entry that lives wins.
fn collect(
    entry: &Entry,
    facts: &NodeFacts,
    family: Family,
    (port, protocol): (&str, Protocol),
) -> Vec<(Backend, State)> {
    let mut found: BTreeMap<Backend, State> = BTreeMap::new();
    for slice in entry.slices.values().filter(|s| s.family == family) {
        for (_, _, number) in slice
            .ports
            .iter()
            .filter(|(name, p, _)| **name == *port && *p == protocol)
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

/// Which of two entries for one address counts; the same whichever came first.
fn better(a: State, b: State) -> State {
    let rank = |s: &State| {
        (
            !s.terminating,
            s.ready,
            s.serving,
            s.local,
            s.node_hint as u8,
            s.zone_hint as u8,
        )
    };
    if rank(&b) > rank(&a) { b } else { a }
}

/// Usable endpoints of the whole cluster: the ready ones, narrowed to the
/// nearest that hints name; if none is ready, those that still serve while
/// they end.
fn cluster_list(endpoints: &[(Backend, State)]) -> Vec<Backend> {
    let ready: Vec<&(Backend, State)> = endpoints.iter().filter(|(_, s)| s.ready).collect();
    if ready.is_empty() {
        return endpoints
            .iter()
            .filter(|(_, s)| s.serving && s.terminating)
            .map(|(backend, _)| *backend)
            .collect();
    }
    let hinted = |hint: fn(&State) -> Hint| {
        ready.iter().all(|(_, s)| hint(s) != Hint::Absent)
            && ready.iter().any(|(_, s)| hint(s) == Hint::Here)
    };
    let keep: fn(&State) -> bool = if hinted(|s| s.node_hint) {
        |s| s.node_hint == Hint::Here
    } else if hinted(|s| s.zone_hint) {
        |s| s.zone_hint == Hint::Here
    } else {
        |_| true
    };
    ready
        .into_iter()
        .filter(|(_, s)| keep(s))
        .map(|(backend, _)| *backend)
        .collect()
}

/// Usable endpoints on this node: the ready ones, or else those that still
/// serve while they end.
fn local_list(endpoints: &[(Backend, State)]) -> Vec<Backend> {
    let here = || endpoints.iter().filter(|(_, s)| s.local);
    let ready: Vec<Backend> = here().filter(|(_, s)| s.ready).map(|(b, _)| *b).collect();
    if !ready.is_empty() {
        return ready;
    }
    here()
        .filter(|(_, s)| s.serving && s.terminating)
        .map(|(b, _)| *b)
        .collect()
}
