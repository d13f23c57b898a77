//! The service table: Services and endpoint slices in, frontends with their
//! backends out. Pure; one event recomputes the Services it touches and notes
//! which frontends changed.

mod changes;
mod compute;
mod explanation;
mod frontend;
mod reading;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

pub use changes::Changes;
use compute::{Outline, View, frontends};
pub use explanation::{ExplainedEndpoint, ExplainedPort, Explanation};
pub use frontend::{Frontend, FrontendKind, HealthCheck};
use reading::{Names, Slice, Wanted, read_service, read_slice};

use crate::by_family::FamilyMap;
use crate::model::{
    EndpointSlice, FrontendKey, NodeFacts, NodePortAddresses, Service, ServiceName,
};

/// What is known under a Service's name: the Service may come before or after
/// its slices.
#[derive(Debug, Default)]
struct Entry {
    service: Option<Wanted>,
    /// Sorted by name. A list, since most Services have one or two.
    slices: Vec<Slice>,
    /// Whether something of it was left out when last looked at.
    troubled: bool,
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
    /// Which Service a slice belongs to: namespace → slice → name.
    slices: HashMap<Arc<str>, HashMap<Arc<str>, Arc<ServiceName>>>,
    /// Of the Services that claim a frontend, the first by name holds it,
    /// whatever the order of events was. What the frontend is, is worked out when
    /// somebody asks: there are many, and few are asked for twice.
    holders: FamilyMap<FrontendKey, Arc<ServiceName>>,
    /// The others that claim it.
    waiting: HashMap<FrontendKey, BTreeSet<Arc<ServiceName>>>,
    /// How many Services hold an address.
    cluster_ips: FamilyMap<IpAddr, u32>,
    /// How many Services have an address for traffic from outside.
    external_ips: FamilyMap<IpAddr, u32>,
    /// How many Services have a local endpoint at an address.
    local_endpoints: FamilyMap<IpAddr, u32>,
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
            holders: FamilyMap::default(),
            waiting: HashMap::new(),
            cluster_ips: FamilyMap::default(),
            external_ips: FamilyMap::default(),
            local_endpoints: FamilyMap::default(),
            health_checks: Arc::default(),
            changes: Changes::default(),
            reports: BTreeSet::new(),
        };
        table.node_port_addresses = table.wanted_node_port_addresses(&table.facts);
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

    /// The frontend at a key, worked out anew each time.
    #[must_use]
    pub fn frontend(&self, key: &FrontendKey) -> Option<Frontend> {
        let name = self.holder(key)?;
        let entry = self.entries.get(name)?;
        compute::frontend(entry, name, self.view(), key)
    }

    /// The Service that holds a frontend.
    #[must_use]
    pub fn holder(&self, key: &FrontendKey) -> Option<&Arc<ServiceName>> {
        self.holders.get(*key)
    }

    /// The keys of all frontends and the Services that hold them, in no order.
    pub fn holders(&self) -> impl Iterator<Item = (FrontendKey, &Arc<ServiceName>)> {
        self.holders.iter()
    }

    /// All frontends, in no order.
    pub fn frontends(&self) -> impl Iterator<Item = (FrontendKey, Frontend)> {
        self.holders
            .keys()
            .filter_map(|key| Some((key, self.frontend(&key)?)))
    }

    /// The frontends a Service holds, sorted by key.
    #[must_use]
    pub fn frontends_of(&self, name: &ServiceName) -> Vec<(FrontendKey, Frontend)> {
        let Some((name, entry)) = self.entries.get_key_value(name) else {
            return Vec::new();
        };
        frontends(entry, name, self.view())
            .into_iter()
            .filter(|(key, _)| self.holder(key) == Some(name))
            .collect()
    }

    /// What decides with the objects.
    fn view(&self) -> View<'_> {
        View {
            facts: &self.facts,
            node_port_addresses: &self.node_port_addresses,
        }
    }

    /// All cluster addresses, in no order.
    pub fn cluster_ips(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.cluster_ips.keys()
    }

    /// Whether a Service holds a cluster address.
    #[must_use]
    pub fn has_cluster_ip(&self, address: IpAddr) -> bool {
        self.cluster_ips.contains(address)
    }

    /// Addresses of all endpoints on this node, in no order.
    pub fn local_endpoints(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.local_endpoints.keys()
    }

    /// Whether an endpoint of this node has an address.
    #[must_use]
    pub fn has_local_endpoint(&self, address: IpAddr) -> bool {
        self.local_endpoints.contains(address)
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

    /// A Service was made or changed.
    pub fn set_service(&mut self, service: Service) {
        let read = read_service(&mut self.names, &service);
        let ServiceName { namespace, name } = service.name;
        let name = ServiceName::new(self.names.get(&namespace), name);
        let name = match self.entries.get_key_value(&name) {
            Some((known, _)) => Arc::clone(known),
            None => Arc::new(name),
        };
        let entry = self.entries.get(&name);
        if entry.and_then(|entry| entry.service.as_ref()) != Some(&read) {
            self.change(name, |entry| entry.service = Some(read));
        }
    }

    /// A Service is gone.
    pub fn remove_service(&mut self, name: &ServiceName) {
        if let Some((name, _)) = self.entries.get_key_value(name) {
            let name = Arc::clone(name);
            self.change(name, |entry| entry.service = None);
        }
    }

    /// A slice was made or changed. Returns whether it is other than before.
    pub fn set_slice(&mut self, slice: &EndpointSlice) -> bool {
        let namespace = self.names.get(&slice.namespace);
        let name = ServiceName::new(Arc::clone(&namespace), &*slice.service);
        let name = match self.entries.get_key_value(&name) {
            Some((known, _)) => Arc::clone(known),
            None => Arc::new(name),
        };
        let siblings = self.slices.entry(namespace).or_default();
        let own = match siblings.get_key_value(slice.name.as_str()) {
            Some((known, _)) => Arc::clone(known),
            None => slice.name.as_str().into(),
        };
        let before = siblings.insert(Arc::clone(&own), Arc::clone(&name));
        if let Some(before) = before.filter(|before| *before != name) {
            self.drop_slice(&before, &slice.name);
        }
        let read = read_slice(&mut self.names, slice, own);
        let place = self.entries.get(&name).map_or(Err(0), |entry| {
            entry
                .slices
                .binary_search_by(|known| known.name.cmp(&read.name))
                .map(|place| (place, entry.slices[place] == read))
        });
        match place {
            Ok((_, true)) => return false,
            Ok((place, false)) => self.change(name, |entry| entry.slices[place] = read),
            Err(place) => self.change(name, |entry| {
                entry.slices.reserve_exact(1);
                entry.slices.insert(place, read);
            }),
        }
        true
    }

    /// A slice is gone.
    pub fn remove_slice(&mut self, namespace: &str, name: &str) {
        let Some(siblings) = self.slices.get_mut(namespace) else {
            return;
        };
        let service = siblings.remove(name);
        if siblings.is_empty() {
            self.slices.remove(namespace);
        }
        if let Some(service) = service {
            self.drop_slice(&service, name);
        }
    }

    fn drop_slice(&mut self, service: &ServiceName, slice: &str) {
        if let Some((name, entry)) = self.entries.get_key_value(service)
            && let Ok(place) = entry
                .slices
                .binary_search_by(|known| (*known.name).cmp(slice))
        {
            let name = Arc::clone(name);
            self.change(name, |entry| _ = entry.slices.remove(place));
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
        let addresses = self.wanted_node_port_addresses(&facts);
        let node_ports = addresses != self.node_port_addresses;
        let concerned = self.those(|service| {
            all || (external && !service.external_ips().is_empty())
                || (node_ports && has_node_port(service))
        });
        let facts = std::mem::replace(&mut self.facts, facts);
        let addresses = std::mem::replace(&mut self.node_port_addresses, addresses);
        let before = View {
            facts: &facts,
            node_port_addresses: &addresses,
        };
        self.settle_all(concerned, before);
    }

    /// Services of a kind.
    fn those(&self, concerned: impl Fn(&Wanted) -> bool) -> Vec<Arc<ServiceName>> {
        self.entries
            .iter()
            .filter(|(_, entry)| entry.service.as_ref().is_some_and(&concerned))
            .map(|(name, _)| Arc::clone(name))
            .collect()
    }

    /// Works these Services out anew: `before` is what decided so far.
    fn settle_all(&mut self, concerned: Vec<Arc<ServiceName>>, before: View<'_>) {
        let mut moved = false;
        for name in concerned {
            if let Some((name, entry)) = self.entries.remove_entry(&name) {
                let old = Outline::of(&entry, &name, before);
                moved |= self.settle(name, entry, &old);
            }
        }
        self.follow(moved);
    }

    /// Changes what is known under a name.
    fn change(&mut self, name: Arc<ServiceName>, change: impl FnOnce(&mut Entry)) {
        let (name, mut entry) = self
            .entries
            .remove_entry(&name)
            .unwrap_or_else(|| (name, Box::default()));
        let old = self.outline(&name, &entry);
        change(&mut entry);
        let moved = self.settle(name, entry, &old);
        self.follow(moved);
    }

    /// Services' addresses moved, or did not: node ports may answer at others.
    fn follow(&mut self, moved: bool) {
        if !moved || self.facts.node_port_addresses == NodePortAddresses::Primary {
            return;
        }
        let addresses = self.wanted_node_port_addresses(&self.facts);
        if addresses != self.node_port_addresses {
            let concerned = self.those(has_node_port);
            let addresses = std::mem::replace(&mut self.node_port_addresses, addresses);
            let facts = self.facts.clone();
            let before = View {
                facts: &facts,
                node_port_addresses: &addresses,
            };
            // Moves no address of a Service, so nothing more follows.
            self.settle_all(concerned, before);
        }
    }

    /// Where node ports are to answer with these facts and Services as they are.
    fn wanted_node_port_addresses(&self, facts: &NodeFacts) -> Vec<IpAddr> {
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
        self.cluster_ips.contains(*address) || self.external_ips.contains(*address)
    }

    /// Works out a Service anew, notes what differs and puts it back. Returns
    /// whether addresses of it came or went.
    fn settle(&mut self, name: Arc<ServiceName>, mut entry: Box<Entry>, old: &Outline) -> bool {
        let new = &self.outline(&name, &entry);
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
        for key in old.frontends.keys() {
            if !new.frontends.contains_key(key) {
                self.unclaim(key, &name);
            }
        }
        for (key, frontend) in &new.frontends {
            let changed = old.frontends.get(key) != Some(frontend);
            self.claim(key, &name, changed);
        }
        let moved = old.cluster_ips != new.cluster_ips || old.external_ips != new.external_ips;
        let was_troubled = entry.troubled;
        let known = entry.service.is_some() || !entry.slices.is_empty();
        entry.troubled = known && !self.problems_of(&name, &entry, new).is_empty();
        if was_troubled || entry.troubled {
            self.reports.insert(Arc::clone(&name));
        }
        if known {
            self.entries.insert(name, entry);
        }
        moved
    }

    /// A Service wants a frontend, another one than so far if it has `changed`.
    /// The first by name gets it.
    fn claim(&mut self, key: &FrontendKey, name: &Arc<ServiceName>, changed: bool) {
        let Some(holder) = self.holders.get_mut(*key) else {
            self.holders.insert(*key, Arc::clone(name));
            self.changes.frontends.insert(*key);
            return;
        };
        if holder == name {
            if changed {
                self.changes.frontends.insert(*key);
            }
            return;
        }
        let loser = if name < holder {
            self.changes.frontends.insert(*key);
            std::mem::replace(holder, Arc::clone(name))
        } else {
            Arc::clone(name)
        };
        let waiting = self.waiting.entry(*key).or_default();
        // One that waited and comes first now waits no more.
        waiting.remove(holder);
        self.reports.insert(Arc::clone(&loser));
        waiting.insert(loser);
    }

    /// A Service wants a frontend no more: who waits longest by name gets it.
    fn unclaim(&mut self, key: &FrontendKey, name: &Arc<ServiceName>) {
        let held = self.holders.get(*key) == Some(name);
        let mut next = None;
        if let Some(waiting) = self.waiting.get_mut(key) {
            waiting.remove(name);
            if held {
                next = waiting.pop_first();
                self.reports.extend(waiting.iter().cloned());
                self.reports.extend(next.clone());
            }
            if waiting.is_empty() {
                self.waiting.remove(key);
            }
        }
        if held {
            match next {
                Some(next) => self.holders.insert(*key, next),
                None => self.holders.remove(*key),
            };
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

/// Moves counts from an old list of addresses to a new one; notes those that
/// appear and vanish.
fn recount(
    counts: &mut FamilyMap<IpAddr, u32>,
    changed: &mut HashSet<IpAddr>,
    old: &[IpAddr],
    new: &[IpAddr],
) {
    for address in new {
        let count = counts.get_or_default(*address);
        *count += 1;
        if *count == 1 {
            changed.insert(*address);
        }
    }
    for address in old {
        if let Some(count) = counts.get_mut(*address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(*address);
                changed.insert(*address);
            }
        }
    }
}
