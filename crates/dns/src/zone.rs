//! The zone: what the API says, arranged by name.
//!
//! It is kept one Service at a time, since that is how names are made: the two
//! labels left of `svc.<domain>` lead to an entry, which holds all there is
//! below them. A change of a slice replaces that slice in its Service's entry;
//! its cost does not depend on the size of the zone.
//!
//! A large cluster has a hundred thousand endpoints and hardly any that has a
//! name of its own: they are kept as bare addresses, lists of ports that are
//! alike once, and entries under numbers by which addresses lead to them.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use hickory_proto::rr::Name;

use crate::basis::{Changes, Part};
use crate::model::{Addressing, EndpointSlice, Pod, Port, Service, ServiceKey};
use crate::names::dashed;

/// The records of a cluster, without the fixed ones.
#[derive(Debug, Default)]
pub struct Zone {
    namespaces: HashMap<Arc<str>, Namespace>,
    entries: Entries,
    owners: Owners,
    ports: PortLists,
    pods: HashMap<IpAddr, Arc<Pod>>,
    /// Addresses of a pod by namespace and name.
    pod_addresses: HashMap<(Box<str>, Box<str>), Vec<IpAddr>>,
    node_search: Vec<Name>,
    serial: u32,
    changes: Arc<Changes>,
}

#[derive(Debug, Default)]
struct Namespace {
    exists: bool,
    services: HashMap<Arc<str>, Number>,
    /// The Service a slice was last seen with.
    slices: HashMap<Arc<str>, Number>,
}

impl Namespace {
    fn is_empty(&self) -> bool {
        !self.exists && self.services.is_empty()
    }
}

/// Stands for an entry while it is there.
type Number = u32;

/// Entries by number; numbers of those that are gone are given again.
#[derive(Debug, Default)]
struct Entries {
    all: Vec<Option<Entry>>,
    free: Vec<Number>,
}

impl Entries {
    fn get(&self, number: Number) -> Option<&Entry> {
        self.all.get(number as usize)?.as_ref()
    }

    fn get_mut(&mut self, number: Number) -> Option<&mut Entry> {
        self.all.get_mut(number as usize)?.as_mut()
    }

    fn add(&mut self, entry: Entry) -> Number {
        if let Some(number) = self.free.pop() {
            self.all[number as usize] = Some(entry);
            return number;
        }
        self.all.push(Some(entry));
        Number::try_from(self.all.len() - 1).expect("memory ends before numbers do")
    }

    fn remove(&mut self, number: Number) {
        if self.all[number as usize].take().is_some() {
            self.free.push(number);
        }
    }
}

/// All that has the name of one Service.
#[derive(Debug)]
pub struct Entry {
    key: ServiceKey,
    service: Option<ServiceFacts>,
    /// By name.
    slices: Vec<(Arc<str>, Slice)>,
}

#[derive(Debug)]
struct ServiceFacts {
    addressing: Addressing,
    ports: Arc<[Port]>,
}

/// Endpoints that have the same ports: first those of IPv4, then those of IPv6.
#[derive(Debug)]
struct Slice {
    v4: Box<[Ipv4Addr]>,
    v6: Box<[Ipv6Addr]>,
    /// A host name for each, or empty where none has one.
    hostnames: Box<[Option<Box<str>>]>,
    ports: Arc<[Port]>,
}

impl Slice {
    fn new(endpoints: Vec<crate::model::Endpoint>, ports: Arc<[Port]>) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        let (mut names4, mut names6) = (Vec::new(), Vec::new());
        for endpoint in endpoints {
            match endpoint.address {
                IpAddr::V4(address) => {
                    v4.push(address);
                    names4.push(endpoint.hostname);
                }
                IpAddr::V6(address) => {
                    v6.push(address);
                    names6.push(endpoint.hostname);
                }
            }
        }
        names4.append(&mut names6);
        if names4.iter().all(Option::is_none) {
            names4.clear();
        }
        Self {
            v4: v4.into(),
            v6: v6.into(),
            hostnames: names4.into(),
            ports,
        }
    }

    fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let v4 = self.v4.iter().copied().map(IpAddr::V4);
        v4.chain(self.v6.iter().copied().map(IpAddr::V6))
    }

    fn endpoints(&self) -> impl Iterator<Item = Endpoint<'_>> {
        self.addresses()
            .enumerate()
            .map(|(index, address)| Endpoint {
                address,
                hostname: self.hostnames.get(index).and_then(Option::as_deref),
            })
    }
}

/// One endpoint of the zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint<'a> {
    /// Its address.
    pub address: IpAddr,
    /// Its host name.
    pub hostname: Option<&'a str>,
}

/// Which entries an address leads to: once for each slice it is in, and for
/// being a Service's own.
#[derive(Debug, Default)]
struct Owners {
    /// Almost every address belongs to one Service.
    v4: HashMap<Ipv4Addr, Number>,
    v6: HashMap<Ipv6Addr, Number>,
    /// The further ones of those that belong to several.
    more: HashMap<IpAddr, Vec<Number>>,
}

impl Owners {
    fn first(&self, address: IpAddr) -> Option<Number> {
        match address {
            IpAddr::V4(address) => self.v4.get(&address).copied(),
            IpAddr::V6(address) => self.v6.get(&address).copied(),
        }
    }

    fn add(&mut self, address: IpAddr, owner: Number) {
        let before = match address {
            IpAddr::V4(address) => add_first(&mut self.v4, address, owner),
            IpAddr::V6(address) => add_first(&mut self.v6, address, owner),
        };
        if before {
            self.more.entry(address).or_default().push(owner);
        }
    }

    fn remove(&mut self, address: IpAddr, owner: Number) {
        if let Some(more) = self.more.get_mut(&address) {
            if let Some(index) = more.iter().position(|one| *one == owner) {
                more.swap_remove(index);
            } else if self.first(address) == Some(owner)
                && let Some(next) = self.more.get_mut(&address).and_then(Vec::pop)
            {
                match address {
                    IpAddr::V4(address) => self.v4.insert(address, next),
                    IpAddr::V6(address) => self.v6.insert(address, next),
                };
            }
            if self.more.get(&address).is_some_and(Vec::is_empty) {
                self.more.remove(&address);
            }
        } else if self.first(address) == Some(owner) {
            match address {
                IpAddr::V4(address) => self.v4.remove(&address),
                IpAddr::V6(address) => self.v6.remove(&address),
            };
        }
    }

    /// The owners of an address, each once.
    fn of(&self, address: IpAddr) -> Vec<Number> {
        let mut all = Vec::from_iter(self.first(address));
        for owner in self.more.get(&address).into_iter().flatten() {
            if !all.contains(owner) {
                all.push(*owner);
            }
        }
        all
    }
}

/// Returns whether there was one already, which is left then.
fn add_first<A: Eq + Hash>(map: &mut HashMap<A, Number>, address: A, owner: Number) -> bool {
    match map.entry(address) {
        std::collections::hash_map::Entry::Occupied(_) => true,
        std::collections::hash_map::Entry::Vacant(place) => {
            place.insert(owner);
            false
        }
    }
}

/// Lists of ports, each kept once.
#[derive(Debug, Default)]
struct PortLists {
    all: HashSet<Arc<[Port]>>,
}

impl PortLists {
    fn keep(&mut self, ports: Vec<Port>) -> Arc<[Port]> {
        if let Some(known) = self.all.get(ports.as_slice()) {
            return known.clone();
        }
        let new: Arc<[Port]> = ports.into();
        self.all.insert(new.clone());
        new
    }

    /// A list that was kept is used once less.
    fn forget(&mut self, ports: Arc<[Port]>) {
        // Its own and this one.
        if Arc::strong_count(&ports) == 2 {
            self.all.remove(&*ports);
        }
    }
}

impl Entry {
    /// Namespace and name.
    #[must_use]
    pub fn key(&self) -> &ServiceKey {
        &self.key
    }

    /// How the name resolves; `None` while only slices are known.
    #[must_use]
    pub fn addressing(&self) -> Option<&Addressing> {
        self.service.as_ref().map(|service| &service.addressing)
    }

    /// The Service's ports.
    #[must_use]
    pub fn ports(&self) -> &[Port] {
        self.service.as_ref().map_or(&[], |service| &service.ports)
    }

    /// The endpoints, each with its slice's name and ports. An address may come
    /// more than once.
    pub fn endpoints(&self) -> impl Iterator<Item = (&str, Endpoint<'_>, &[Port])> {
        self.slices.iter().flat_map(|(name, slice)| {
            slice
                .endpoints()
                .map(move |endpoint| (&**name, endpoint, &*slice.ports))
        })
    }

    /// Whether there is no endpoint.
    #[must_use]
    pub fn is_without_endpoints(&self) -> bool {
        self.slices.iter().all(|(_, slice)| slice.is_empty())
    }

    /// The Service's own addresses.
    fn own_addresses(&self) -> &[IpAddr] {
        match self.addressing() {
            Some(Addressing::Cluster(addresses)) => addresses,
            Some(Addressing::Headless | Addressing::External(_)) | None => &[],
        }
    }

    fn is_empty(&self) -> bool {
        self.service.is_none() && self.slices.is_empty()
    }
}

/// The label of an endpoint below its Service's name: its host name or, without
/// one, its address.
#[must_use]
pub fn endpoint_label(endpoint: Endpoint<'_>) -> String {
    match endpoint.hostname {
        Some(hostname) => hostname.to_ascii_lowercase(),
        None => dashed(endpoint.address),
    }
}

impl Zone {
    /// An empty zone.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Grows by one with every change (SOA, RFC 1982 arithmetic).
    #[must_use]
    pub fn serial(&self) -> u32 {
        self.serial
    }

    /// How often each part has changed.
    #[must_use]
    pub fn changes(&self) -> &Arc<Changes> {
        &self.changes
    }

    /// What is made from a part no longer holds.
    fn changed(&mut self, part: Part<'_>) {
        self.serial = self.serial.wrapping_add(1);
        self.changes.count(Part::Anything);
        self.changes.count(part);
    }

    /// A Service was made or changed.
    pub fn set_service(&mut self, service: Service) {
        let Service {
            key,
            addressing,
            ports,
        } = service;
        let facts = ServiceFacts {
            addressing,
            ports: self.ports.keep(ports),
        };
        let number = self.entry(&key);
        self.set_facts(number, Some(facts));
    }

    /// A Service is gone.
    pub fn remove_service(&mut self, key: &ServiceKey) {
        if let Some(number) = self.number(&key.namespace, &key.name) {
            self.set_facts(number, None);
            self.tidy(number);
        }
    }

    /// A slice was made or changed, perhaps to another Service.
    pub fn set_slice(&mut self, slice: EndpointSlice) {
        let EndpointSlice {
            name,
            service,
            endpoints,
            ports,
        } = slice;
        let ports = self.ports.keep(ports);
        let number = self.entry(&service);
        let namespace = self
            .namespaces
            .get_mut(&*service.namespace)
            .expect("an entry's namespace is there");
        let name = match namespace.slices.get_key_value(&*name) {
            Some((known, _)) => known.clone(),
            None => Arc::from(name),
        };
        let before = namespace.slices.insert(name.clone(), number);
        if let Some(before) = before.filter(|before| *before != number) {
            self.put_slice(before, &name, None);
            self.tidy(before);
        }
        self.put_slice(number, &name, Some(Slice::new(endpoints, ports)));
    }

    /// A slice is gone.
    pub fn remove_slice(&mut self, namespace: &str, name: &str) {
        let Some(held) = self.namespaces.get_mut(namespace) else {
            return;
        };
        if let Some((name, number)) = held.slices.remove_entry(name) {
            self.put_slice(number, &name, None);
            self.tidy(number);
        }
    }

    /// A namespace was made.
    pub fn add_namespace(&mut self, name: &str) {
        if !self.has_namespace(name) {
            self.changed(Part::Namespace(name));
        }
        self.namespaces.entry(name.into()).or_default().exists = true;
    }

    /// A namespace is gone.
    pub fn remove_namespace(&mut self, name: &str) {
        self.changed(Part::Namespace(name));
        if let Some(namespace) = self.namespaces.get_mut(name) {
            namespace.exists = false;
            if namespace.is_empty() {
                self.namespaces.remove(name);
            }
        }
    }

    /// A pod was made or changed. Pods that have ended or share their node's
    /// network must not be given.
    pub fn set_pod(&mut self, pod: Pod) {
        self.remove_pod(&pod.namespace, &pod.name);
        let addresses = pod.addresses.clone();
        let id = (pod.namespace.clone(), pod.name.clone());
        let pod = Arc::new(pod);
        for address in &addresses {
            self.pods.insert(*address, pod.clone());
        }
        self.pod_addresses.insert(id, addresses);
    }

    /// A pod is gone, or has ended.
    pub fn remove_pod(&mut self, namespace: &str, name: &str) {
        self.changed(Part::Pods);
        let id = (Box::from(namespace), Box::from(name));
        for address in self.pod_addresses.remove(&id).unwrap_or_default() {
            // The address may be another pod's by now.
            if self
                .pods
                .get(&address)
                .is_some_and(|pod| *pod.namespace == *namespace && *pod.name == *name)
            {
                self.pods.remove(&address);
            }
        }
    }

    /// Search domains pods have beside the cluster's: the node's own.
    pub fn set_node_search(&mut self, domains: Vec<Name>) {
        self.changed(Part::NodeSearch);
        self.node_search = domains;
    }

    /// Search domains pods have beside the cluster's.
    #[must_use]
    pub fn node_search(&self) -> &[Name] {
        &self.node_search
    }

    /// The pod with an address.
    #[must_use]
    pub fn pod(&self, address: IpAddr) -> Option<&Pod> {
        self.pods.get(&address).map(|pod| &**pod)
    }

    /// The pod with a name.
    #[must_use]
    pub fn pod_named(&self, namespace: &str, name: &str) -> Option<&Pod> {
        let addresses = self.pod_addresses.get(&(namespace.into(), name.into()))?;
        addresses.iter().find_map(|address| self.pod(*address))
    }

    /// Whether a namespace exists. One that has Services does, whether or not
    /// namespaces are told of yet.
    #[must_use]
    pub fn has_namespace(&self, name: &str) -> bool {
        self.namespaces.contains_key(name)
    }

    /// The entry of a Service that exists.
    #[must_use]
    pub fn service(&self, namespace: &str, name: &str) -> Option<&Entry> {
        let entry = self.entries.get(self.number(namespace, name)?)?;
        entry.service.is_some().then_some(entry)
    }

    /// All Services there are.
    pub fn services(&self) -> impl Iterator<Item = &Entry> {
        self.entries
            .all
            .iter()
            .flatten()
            .filter(|entry| entry.service.is_some())
    }

    /// The Services an address belongs to: their own or an endpoint's.
    pub fn owners(&self, address: IpAddr) -> impl Iterator<Item = &Entry> {
        self.owners
            .of(address)
            .into_iter()
            .filter_map(|number| self.entries.get(number))
            // Without a Service endpoints have no names, and a name for a name has none.
            .filter(|entry| {
                matches!(
                    entry.addressing(),
                    Some(Addressing::Cluster(_) | Addressing::Headless)
                )
            })
    }

    fn number(&self, namespace: &str, name: &str) -> Option<Number> {
        self.namespaces.get(namespace)?.services.get(name).copied()
    }

    /// The entry of a Service, made if it is not there.
    fn entry(&mut self, key: &ServiceKey) -> Number {
        if let Some(number) = self.number(&key.namespace, &key.name) {
            return number;
        }
        let namespace = match self.namespaces.get_key_value(&*key.namespace) {
            Some((known, _)) => known.clone(),
            None => key.namespace.clone(),
        };
        let entry = Entry {
            key: ServiceKey {
                namespace: namespace.clone(),
                name: key.name.clone(),
            },
            service: None,
            slices: Vec::new(),
        };
        let number = self.entries.add(entry);
        if !self.namespaces.contains_key(&namespace) {
            self.changed(Part::Namespace(&namespace));
        }
        self.namespaces
            .entry(namespace)
            .or_default()
            .services
            .insert(key.name.clone(), number);
        number
    }

    /// What an entry says, and which addresses lead to it, no longer holds.
    fn entry_changed(&mut self, number: Number) {
        let entry = self.entries.get(number).expect("it was just found");
        let ServiceKey { namespace, name } = entry.key.clone();
        self.changed(Part::Service(&namespace, &name));
        self.changes.count(Part::Addresses);
    }

    /// Gives an entry what is known of its Service.
    fn set_facts(&mut self, number: Number, facts: Option<ServiceFacts>) {
        self.entry_changed(number);
        let entry = self.entries.get_mut(number).expect("it was just found");
        for address in entry.own_addresses() {
            self.owners.remove(*address, number);
        }
        let before = std::mem::replace(&mut entry.service, facts);
        for address in entry.own_addresses() {
            self.owners.add(*address, number);
        }
        if let Some(before) = before {
            self.ports.forget(before.ports);
        }
    }

    /// Gives an entry a slice, or takes it away.
    fn put_slice(&mut self, number: Number, name: &Arc<str>, slice: Option<Slice>) {
        self.entry_changed(number);
        let entry = self.entries.get_mut(number).expect("it was just found");
        for address in slice.iter().flat_map(Slice::addresses) {
            self.owners.add(address, number);
        }
        let found = entry.slices.binary_search_by(|(held, _)| held.cmp(name));
        let before = match (found, slice) {
            (Ok(index), Some(slice)) => Some(std::mem::replace(&mut entry.slices[index].1, slice)),
            (Ok(index), None) => Some(entry.slices.remove(index).1),
            (Err(index), Some(slice)) => {
                // Most Services have one slice, or one a family.
                entry.slices.reserve_exact(1);
                entry.slices.insert(index, (name.clone(), slice));
                None
            }
            (Err(_), None) => None,
        };
        if let Some(before) = before {
            for address in before.addresses() {
                self.owners.remove(address, number);
            }
            self.ports.forget(before.ports);
        }
    }

    /// Removes an entry nothing is known of any more.
    fn tidy(&mut self, number: Number) {
        let Some(entry) = self.entries.get(number).filter(|entry| entry.is_empty()) else {
            return;
        };
        let ServiceKey { namespace, name } = entry.key.clone();
        self.entries.remove(number);
        if let Some(held) = self.namespaces.get_mut(&namespace) {
            held.services.remove(&name);
            if held.is_empty() {
                self.namespaces.remove(&namespace);
                self.changed(Part::Namespace(&namespace));
            }
        }
    }
}
