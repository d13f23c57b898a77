//! Objects as the table keeps them: addresses and numbers read, names shared,
//! what cannot be read noted.

use std::borrow::Borrow;
use std::collections::HashSet;
use std::hash::Hash;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;

use crate::endpoints::{Hint, State};
use crate::model::{
    Endpoint, EndpointSlice, Family, NodeFacts, Protocol, Service, TrafficPolicy, parse_address,
    parse_port, parse_range,
};
use crate::report::{AddressField, Problem};

/// A slice, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Slice {
    pub(super) name: Arc<str>,
    pub(super) ports: Arc<[SlicePort]>,
    endpoints: Endpoints,
    pub(super) problems: Box<[Problem]>,
}

/// The endpoints of a slice, all of one family.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Endpoints {
    V4(Box<[Known<Ipv4Addr>]>),
    V6(Box<[Known<Ipv6Addr>]>),
}

/// Name, protocol and number of a port that all endpoints of a slice have.
pub(super) type SlicePort = (Arc<str>, Protocol, u16);

/// An endpoint of a slice, read. What it comes to depends on the node's facts,
/// which may become known after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Known<A, P = Arc<Place>> {
    pub(super) address: A,
    pub(super) ready: bool,
    pub(super) serving: bool,
    pub(super) terminating: bool,
    pub(super) place: P,
}

/// Where an endpoint is, and for whom it is meant. One for many endpoints.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Place {
    pub(super) node: Option<Arc<str>>,
    zone_hints: Box<[Arc<str>]>,
    node_hints: Box<[Arc<str>]>,
}

impl Slice {
    pub(super) fn family(&self) -> Family {
        match self.endpoints {
            Endpoints::V4(_) => Family::V4,
            Endpoints::V6(_) => Family::V6,
        }
    }

    pub(super) fn endpoints(&self) -> impl Iterator<Item = Known<IpAddr, &Place>> {
        let (v4, v6) = match &self.endpoints {
            Endpoints::V4(list) => (&**list, &[][..]),
            Endpoints::V6(list) => (&[][..], &**list),
        };
        let v4 = v4.iter().map(|known| known.at(IpAddr::V4(known.address)));
        v4.chain(v6.iter().map(|known| known.at(IpAddr::V6(known.address))))
    }
}

impl<A> Known<A> {
    fn at(&self, address: IpAddr) -> Known<IpAddr, &Place> {
        Known {
            address,
            ready: self.ready,
            serving: self.serving,
            terminating: self.terminating,
            place: &self.place,
        }
    }
}

impl Known<IpAddr, &Place> {
    pub(super) fn state(&self, facts: &NodeFacts) -> State {
        State {
            ready: self.ready,
            serving: self.serving,
            terminating: self.terminating,
            local: self.is_on(facts),
            zone_hint: hint(&self.place.zone_hints, facts.zone.as_deref()),
            node_hint: hint(&self.place.node_hints, Some(&facts.node)),
        }
    }

    /// Whether it runs on this node.
    pub(super) fn is_on(&self, facts: &NodeFacts) -> bool {
        self.place.node.as_deref() == Some(facts.node.as_str())
    }
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

/// A Service, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) cluster_ips: Box<[IpAddr]>,
    /// Most Services have none.
    pub(super) outside: Option<Box<Outside>>,
    pub(super) ports: Box<[Port]>,
    pub(super) internal_policy: TrafficPolicy,
    pub(super) external_policy: TrafficPolicy,
    pub(super) affinity: Option<u32>,
    pub(super) foreign: bool,
    pub(super) problems: Box<[Problem]>,
}

/// What a Service has for callers from outside, apart from node ports.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Outside {
    load_balancer_ips: Box<[IpAddr]>,
    external_ips: Box<[IpAddr]>,
    /// For each family; `None` is everybody.
    sources: [Option<Arc<[IpNet]>>; 2],
    health_check_node_port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Port {
    pub(super) name: Arc<str>,
    pub(super) protocol: Protocol,
    pub(super) port: Option<u16>,
    pub(super) node_port: Option<u16>,
}

impl Wanted {
    pub(super) fn load_balancer_ips(&self) -> &[IpAddr] {
        self.outside
            .as_ref()
            .map_or(&[], |outside| &outside.load_balancer_ips)
    }

    pub(super) fn external_ips(&self) -> &[IpAddr] {
        self.outside
            .as_ref()
            .map_or(&[], |outside| &outside.external_ips)
    }

    /// Who may use the load-balancer addresses of a family; `None` is everybody.
    pub(super) fn sources(&self, family: Family) -> Option<&Arc<[IpNet]>> {
        self.outside.as_ref()?.sources[family as usize].as_ref()
    }

    pub(super) fn health_check_node_port(&self) -> Option<u16> {
        self.outside.as_ref()?.health_check_node_port
    }

    /// Why nothing of it is to be programmed.
    pub(super) fn not_programmed(&self) -> Option<&'static str> {
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

/// Keeps one copy of what many objects say alike.
#[derive(Debug)]
pub(super) struct Shared<T: ?Sized> {
    all: HashSet<Arc<T>>,
    /// At this size unused ones are thrown out.
    limit: usize,
}

impl<T: ?Sized> Default for Shared<T> {
    fn default() -> Self {
        Self {
            all: HashSet::new(),
            limit: 0,
        }
    }
}

impl<T: ?Sized + Eq + Hash> Shared<T> {
    pub(super) fn get(&mut self, value: impl Borrow<T> + Into<Arc<T>>) -> Arc<T> {
        if let Some(known) = self.all.get(value.borrow()) {
            return Arc::clone(known);
        }
        if self.all.len() >= self.limit {
            self.all.retain(|value| Arc::strong_count(value) > 1);
            self.limit = (self.all.len() * 2).max(1024);
        }
        let value = value.into();
        self.all.insert(Arc::clone(&value));
        value
    }
}

/// What objects share: there are few nodes, zones and names of ports, and many
/// endpoints.
#[derive(Debug, Default)]
pub(super) struct Names {
    texts: Shared<str>,
    places: Shared<Place>,
    ports: Shared<[SlicePort]>,
}

impl Names {
    pub(super) fn get(&mut self, name: &str) -> Arc<str> {
        self.texts.get(name)
    }

    fn list(&mut self, names: &[String]) -> Box<[Arc<str>]> {
        names.iter().map(|name| self.get(name)).collect()
    }

    fn place(&mut self, endpoint: &Endpoint) -> Arc<Place> {
        let place = Place {
            node: endpoint.node.as_deref().map(|node| self.get(node)),
            zone_hints: self.list(&endpoint.zone_hints),
            node_hints: self.list(&endpoint.node_hints),
        };
        self.places.get(place)
    }
}

/// Reads a Service.
pub(super) fn read_service(names: &mut Names, service: &Service) -> Wanted {
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
    let outside = Outside {
        load_balancer_ips,
        external_ips,
        sources,
        health_check_node_port,
    };
    Wanted {
        cluster_ips,
        outside: (outside != Outside::default()).then(|| Box::new(outside)),
        ports,
        internal_policy: service.internal_policy,
        external_policy: service.external_policy,
        affinity: service
            .affinity
            .map(|seconds| seconds.clamp(1, LONGEST_AFFINITY)),
        foreign: service.foreign,
        problems: problems.into(),
    }
}

/// Reads a slice; `name` is its own.
pub(super) fn read_slice(names: &mut Names, slice: &EndpointSlice, name: Arc<str>) -> Slice {
    let mut problems = Vec::new();
    let ports: Vec<SlicePort> = slice
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
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for endpoint in &slice.endpoints {
        match slice_address(slice, &endpoint.address) {
            Some(IpAddr::V4(address)) => v4.push(read_endpoint(names, endpoint, address)),
            Some(IpAddr::V6(address)) => v6.push(read_endpoint(names, endpoint, address)),
            None => {}
        }
    }
    Slice {
        name,
        ports: names.ports.get(ports),
        endpoints: match slice.family {
            Family::V4 => Endpoints::V4(v4.into()),
            Family::V6 => Endpoints::V6(v6.into()),
        },
        problems: problems.into(),
    }
}

fn read_endpoint<A>(names: &mut Names, endpoint: &Endpoint, address: A) -> Known<A> {
    let ready = endpoint.ready.unwrap_or(true);
    Known {
        address,
        ready,
        serving: endpoint.serving.unwrap_or(ready),
        terminating: endpoint.terminating.unwrap_or(false),
        place: names.place(endpoint),
    }
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
