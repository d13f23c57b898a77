//! What an answer was made from: whether it still holds.
//!
//! The zone counts the changes of each of its parts. Whoever answers notes which
//! parts were looked at and how often they had changed by then: while the counts
//! are the same, so is the answer, whatever else changes. Parts share counts where
//! there are more parts than counts; an answer is then made anew once too often.

use std::cell::RefCell;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use hickory_proto::rr::Name;

use crate::model::Pod;
use crate::zone::{Entry, Zone};

/// Counts, each of eight bytes.
const COUNTS: usize = 4096;
/// Counts of parts that have their own.
const OWN: usize = 5;

/// A part of what answers are made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part<'a> {
    /// The servers that others' names are asked of.
    Servers,
    /// Anything of the zone.
    Anything,
    /// Which Services and endpoints addresses belong to.
    Addresses,
    /// The pods.
    Pods,
    /// The node's search domains.
    NodeSearch,
    /// Whether a namespace exists.
    Namespace(&'a str),
    /// A Service, by namespace and name, and its endpoints.
    Service(&'a str, &'a str),
}

impl Part<'_> {
    fn index(self) -> u16 {
        let mut hasher = DefaultHasher::new();
        match self {
            Self::Servers => return 0,
            Self::Anything => return 1,
            Self::Addresses => return 2,
            Self::Pods => return 3,
            Self::NodeSearch => return 4,
            Self::Namespace(name) => name.hash(&mut hasher),
            Self::Service(namespace, name) => (namespace, name).hash(&mut hasher),
        }
        let rest = (COUNTS - OWN) as u64;
        let index = OWN as u64 + hasher.finish() % rest;
        u16::try_from(index).expect("there are fewer counts")
    }
}

/// How often each part has changed.
#[derive(Debug)]
pub struct Changes {
    counts: Box<[AtomicU64]>,
}

impl Default for Changes {
    fn default() -> Self {
        Self {
            counts: (0..COUNTS).map(|_| AtomicU64::new(0)).collect(),
        }
    }
}

impl Changes {
    /// A part has changed.
    pub(crate) fn count(&self, part: Part<'_>) {
        self.counts[usize::from(part.index())].fetch_add(1, Ordering::AcqRel);
    }

    /// How often a part has changed, or one that shares its count.
    #[must_use]
    pub fn of(&self, part: Part<'_>) -> u64 {
        self.sum(&[part.index()])
    }

    /// Whether what has this basis still is as it was.
    #[must_use]
    pub fn hold(&self, basis: &Basis) -> bool {
        self.sum(&basis.parts) == basis.sum
    }

    /// Counts only grow: of the same counts the sum is the same only if each is.
    fn sum(&self, parts: &[u16]) -> u64 {
        let count = |part: &u16| self.counts[usize::from(*part)].load(Ordering::Acquire);
        parts.iter().map(count).fold(0, u64::wrapping_add)
    }
}

/// What an answer was made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Basis {
    parts: Box<[u16]>,
    sum: u64,
}

/// A zone that is read, and what has been read of it.
#[derive(Debug)]
pub struct View<'a> {
    zone: &'a Zone,
    parts: RefCell<Vec<u16>>,
}

impl<'a> View<'a> {
    /// Nothing has been read yet. What others say is part of any answer.
    #[must_use]
    pub fn new(zone: &'a Zone) -> Self {
        Self {
            zone,
            parts: vec![Part::Servers.index()].into(),
        }
    }

    fn note(&self, part: Part<'_>) {
        let index = part.index();
        let mut parts = self.parts.borrow_mut();
        if !parts.contains(&index) {
            parts.push(index);
        }
    }

    /// What has been read, as it is now: to be asked for before the zone may change.
    #[must_use]
    pub fn basis(self) -> Basis {
        let parts: Box<[u16]> = self.parts.into_inner().into();
        Basis {
            sum: self.zone.changes().sum(&parts),
            parts,
        }
    }

    /// The entry of a Service that exists.
    #[must_use]
    pub fn service(&self, namespace: &str, name: &str) -> Option<&'a Entry> {
        self.note(Part::Service(namespace, name));
        self.zone.service(namespace, name)
    }

    /// Whether a namespace exists.
    #[must_use]
    pub fn has_namespace(&self, name: &str) -> bool {
        self.note(Part::Namespace(name));
        self.zone.has_namespace(name)
    }

    /// The Services an address belongs to.
    pub fn owners(&self, address: IpAddr) -> impl Iterator<Item = &'a Entry> {
        self.note(Part::Addresses);
        self.zone.owners(address)
    }

    /// The pod with an address.
    #[must_use]
    pub fn pod(&self, address: IpAddr) -> Option<&'a Pod> {
        self.note(Part::Pods);
        self.zone.pod(address)
    }

    /// The pod that asks, which is no part of the answer: who keeps answers keeps
    /// them for clients that are alike.
    #[must_use]
    pub fn client(&self, address: IpAddr) -> Option<&'a Pod> {
        self.zone.pod(address)
    }

    /// Search domains pods have beside the cluster's.
    #[must_use]
    pub fn node_search(&self) -> &'a [Name] {
        self.note(Part::NodeSearch);
        self.zone.node_search()
    }

    /// Grows with every change.
    #[must_use]
    pub fn serial(&self) -> u32 {
        self.note(Part::Anything);
        self.zone.serial()
    }

    /// The serial that stands beside the absence of something. One of before will
    /// do: it is compared by nobody (RFC 2308 2.1 takes only times from there).
    #[must_use]
    pub fn some_serial(&self) -> u32 {
        self.zone.serial()
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::model::{Addressing, EndpointSlice, Service, ServiceKey};

    fn service(namespace: &str, name: &str) -> Service {
        Service {
            key: ServiceKey::new(namespace, name),
            addressing: Addressing::Headless,
            ports: Vec::new(),
        }
    }

    type Read = fn(&View<'_>, IpAddr);

    fn slice() -> EndpointSlice {
        EndpointSlice {
            name: "web-1".into(),
            service: ServiceKey::new("shop", "web"),
            endpoints: Vec::new(),
            ports: Vec::new(),
        }
    }

    fn pod() -> Pod {
        Pod {
            namespace: "shop".into(),
            name: "one".into(),
            addresses: vec![],
            cluster_first: true,
            searches: Box::default(),
        }
    }

    /// Which of these hold after a change: a Service, another, one's namespace,
    /// another, addresses, pods, the node's search list, the serial.
    #[rstest]
    #[case::the_service(|zone: &mut Zone| zone.set_service(service("shop", "web")), "-bnm-psx")]
    #[case::one_gone(|zone: &mut Zone| zone.remove_service(&ServiceKey::new("shop", "web")), "-bnm-psx")]
    #[case::its_endpoints(|zone: &mut Zone| zone.set_slice(slice()), "-bnm-psx")]
    #[case::one_of_a_new_namespace(|zone: &mut Zone| zone.set_service(service("new", "db")), "a-n--psx")]
    #[case::a_namespace(|zone: &mut Zone| zone.add_namespace("new"), "abn-dpsx")]
    #[case::a_namespace_gone(|zone: &mut Zone| zone.remove_namespace("empty"), "abnmdpsx")]
    #[case::a_pod(|zone: &mut Zone| zone.set_pod(pod()), "abnmd-sx")]
    #[case::a_pod_gone(|zone: &mut Zone| zone.remove_pod("shop", "one"), "abnmd-sx")]
    #[case::search_domains(|zone: &mut Zone| zone.set_node_search(vec![]), "abnmdp-x")]
    fn what_is_made_from_one_part_holds_while_others_change(
        #[case] change: fn(&mut Zone),
        #[case] expected: &str,
    ) {
        let mut zone = Zone::new();
        zone.add_namespace("shop");
        zone.add_namespace("empty");
        zone.set_service(service("shop", "web"));
        let address = IpAddr::from([10, 0, 0, 1]);
        let reads: [(char, Read); 8] = [
            ('a', |view, _| {
                assert!(view.service("shop", "web").is_some())
            }),
            ('b', |view, _| assert!(view.service("new", "db").is_none())),
            ('n', |view, _| assert!(view.has_namespace("shop"))),
            ('m', |view, _| assert!(!view.has_namespace("new"))),
            ('d', |view, address| {
                assert_eq!(view.owners(address).count(), 0)
            }),
            ('p', |view, address| assert!(view.pod(address).is_none())),
            ('s', |view, _| assert!(view.node_search().is_empty())),
            ('x', |view, _| assert!(view.some_serial() > 0)),
        ];
        let bases = reads.map(|(letter, read)| {
            let view = View::new(&zone);
            read(&view, address);
            (letter, view.basis())
        });
        let view = View::new(&zone);
        let _ = view.serial();
        let anything = view.basis();
        change(&mut zone);
        let held: String = bases
            .iter()
            .map(|(letter, basis)| {
                if zone.changes().hold(basis) {
                    *letter
                } else {
                    '-'
                }
            })
            .collect();
        assert_eq!(held, expected);
        assert!(!zone.changes().hold(&anything), "the serial has changed");
    }

    #[test]
    fn a_namespace_there_was_changes_nothing() {
        let mut zone = Zone::new();
        zone.add_namespace("shop");
        let view = View::new(&zone);
        let _ = view.serial();
        let anything = view.basis();
        zone.add_namespace("shop");
        assert!(zone.changes().hold(&anything));
    }

    #[test]
    fn other_servers_are_part_of_every_answer() {
        let zone = Zone::new();
        let basis = View::new(&zone).basis();
        assert!(zone.changes().hold(&basis));
        zone.changes().count(Part::Servers);
        assert!(!zone.changes().hold(&basis));
    }
}
