//! The zone: what the API says, arranged by name.
//!
//! It is kept one Service at a time, since that is how names are made: the two
//! labels left of `svc.<domain>` lead to an entry, which holds all there is
//! below them. A change of a slice replaces that slice in its Service's entry;
//! its cost does not depend on the size of the zone.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use crate::model::{Addressing, Endpoint, EndpointSlice, Pod, Port, Service, ServiceKey};
use crate::names::dashed;

/// The records of a cluster, without the fixed ones.
#[derive(Debug, Default)]
pub struct Zone {
    namespaces: HashMap<Box<str>, Namespace>,
    /// Which Services have an address: their own or an endpoint's.
    owners: HashMap<IpAddr, Owners>,
    /// Namespace of the Service a slice was last seen with.
    slices: HashMap<(Box<str>, Box<str>), ServiceKey>,
    pods: HashMap<IpAddr, Arc<Pod>>,
    /// Addresses of a pod by namespace and name.
    pod_addresses: HashMap<(Box<str>, Box<str>), Vec<IpAddr>>,
    serial: u32,
}

#[derive(Debug, Default)]
struct Namespace {
    exists: bool,
    services: HashMap<Box<str>, Entry>,
}

/// All that has the name of one Service.
#[derive(Debug)]
pub struct Entry {
    key: Arc<ServiceKey>,
    service: Option<ServiceFacts>,
    slices: BTreeMap<Box<str>, Slice>,
}

#[derive(Debug)]
struct ServiceFacts {
    addressing: Addressing,
    ports: Box<[Port]>,
}

#[derive(Debug)]
struct Slice {
    endpoints: Box<[Endpoint]>,
    ports: Box<[Port]>,
}

/// Almost every address belongs to one Service.
#[derive(Debug)]
enum Owners {
    One(Arc<ServiceKey>),
    Many(Vec<Arc<ServiceKey>>),
}

/// Where a record comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source<'a> {
    /// The Service itself.
    Service(&'a ServiceKey),
    /// An EndpointSlice of the Service.
    Slice(&'a ServiceKey, &'a str),
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
    pub fn endpoints(&self) -> impl Iterator<Item = (&str, &Endpoint, &[Port])> {
        self.slices.iter().flat_map(|(name, slice)| {
            slice
                .endpoints
                .iter()
                .map(move |endpoint| (&**name, endpoint, &*slice.ports))
        })
    }

    /// Whether there is no endpoint.
    #[must_use]
    pub fn is_without_endpoints(&self) -> bool {
        self.slices.values().all(|slice| slice.endpoints.is_empty())
    }

    /// Every address that leads to this entry by a reverse name.
    fn addresses(&self) -> BTreeSet<IpAddr> {
        let own = match self.addressing() {
            Some(Addressing::Cluster(addresses)) => addresses.as_slice(),
            // Without a Service, endpoints have no name.
            Some(Addressing::Headless) => &[],
            Some(Addressing::External(_)) | None => return BTreeSet::new(),
        };
        let endpoints = self.endpoints().map(|(_, endpoint, _)| endpoint.address);
        own.iter().copied().chain(endpoints).collect()
    }

    fn is_empty(&self) -> bool {
        self.service.is_none() && self.slices.is_empty()
    }
}

/// The label of an endpoint below its Service's name: its host name or, without
/// one, its address.
#[must_use]
pub fn endpoint_label(endpoint: &Endpoint) -> String {
    match &endpoint.hostname {
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

    /// A Service was made or changed.
    pub fn set_service(&mut self, service: Service) {
        let Service {
            key,
            addressing,
            ports,
        } = service;
        self.change(&key, |entry| {
            entry.service = Some(ServiceFacts {
                addressing,
                ports: ports.into(),
            });
        });
    }

    /// A Service is gone.
    pub fn remove_service(&mut self, key: &ServiceKey) {
        self.change(key, |entry| entry.service = None);
    }

    /// A slice was made or changed, perhaps to another Service.
    pub fn set_slice(&mut self, slice: EndpointSlice) {
        let EndpointSlice {
            name,
            service,
            endpoints,
            ports,
        } = slice;
        let id = (service.namespace.clone(), name.clone());
        match self.slices.get(&id) {
            Some(before) if *before == service => {}
            before => {
                if let Some(before) = before.cloned() {
                    self.change(&before, |entry| {
                        entry.slices.remove(&name);
                    });
                }
                self.slices.insert(id, service.clone());
            }
        }
        self.change(&service, |entry| {
            entry.slices.insert(
                name,
                Slice {
                    endpoints: endpoints.into(),
                    ports: ports.into(),
                },
            );
        });
    }

    /// A slice is gone.
    pub fn remove_slice(&mut self, namespace: &str, name: &str) {
        if let Some(service) = self.slices.remove(&(namespace.into(), name.into())) {
            self.change(&service, |entry| {
                entry.slices.remove(name);
            });
        }
    }

    /// A namespace was made.
    pub fn add_namespace(&mut self, name: &str) {
        self.serial = self.serial.wrapping_add(1);
        self.namespaces.entry(name.into()).or_default().exists = true;
    }

    /// A namespace is gone.
    pub fn remove_namespace(&mut self, name: &str) {
        self.serial = self.serial.wrapping_add(1);
        if let Some(namespace) = self.namespaces.get_mut(name) {
            namespace.exists = false;
            if namespace.services.is_empty() {
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
        self.serial = self.serial.wrapping_add(1);
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
        let entry = self.namespaces.get(namespace)?.services.get(name)?;
        entry.service.is_some().then_some(entry)
    }

    /// All Services there are.
    pub fn services(&self) -> impl Iterator<Item = &Entry> {
        self.namespaces
            .values()
            .flat_map(|namespace| namespace.services.values())
            .filter(|entry| entry.service.is_some())
    }

    /// The Services an address belongs to.
    pub fn owners(&self, address: IpAddr) -> impl Iterator<Item = &Entry> {
        let keys = match self.owners.get(&address) {
            None => &[],
            Some(Owners::One(key)) => std::slice::from_ref(key),
            Some(Owners::Many(keys)) => keys.as_slice(),
        };
        keys.iter()
            .filter_map(|key| self.service(&key.namespace, &key.name))
    }

    /// Changes one entry, and what leads to it.
    fn change(&mut self, key: &ServiceKey, how: impl FnOnce(&mut Entry)) {
        self.serial = self.serial.wrapping_add(1);
        let namespace = self.namespaces.entry(key.namespace.clone()).or_default();
        let entry = namespace
            .services
            .entry(key.name.clone())
            .or_insert_with(|| Entry {
                key: Arc::new(key.clone()),
                service: None,
                slices: BTreeMap::new(),
            });
        let before = entry.addresses();
        how(entry);
        let after = entry.addresses();
        let owner = entry.key.clone();
        if entry.is_empty() {
            namespace.services.remove(&key.name);
            if namespace.services.is_empty() && !namespace.exists {
                self.namespaces.remove(&key.namespace);
            }
        }
        for address in before.difference(&after) {
            self.disown(*address, key);
        }
        for address in after.difference(&before) {
            self.own(*address, owner.clone());
        }
    }

    fn own(&mut self, address: IpAddr, owner: Arc<ServiceKey>) {
        match self.owners.get_mut(&address) {
            None => {
                self.owners.insert(address, Owners::One(owner));
            }
            Some(owners) => match owners {
                Owners::One(first) => *owners = Owners::Many(vec![first.clone(), owner]),
                Owners::Many(all) => all.push(owner),
            },
        }
    }

    fn disown(&mut self, address: IpAddr, owner: &ServiceKey) {
        match self.owners.get_mut(&address) {
            Some(Owners::One(only)) if **only == *owner => {
                self.owners.remove(&address);
            }
            Some(Owners::Many(all)) => {
                all.retain(|one| **one != *owner);
                if let [only] = all.as_slice() {
                    let only = only.clone();
                    self.owners.insert(address, Owners::One(only));
                }
            }
            Some(Owners::One(_)) | None => {}
        }
    }
}
