//! From the table to virtual servers, and to the sets of the few nftables rules
//! beside them. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use ipnet::IpNet;
use linux::ipvs::{self, Change, Destination, Persistence};

use crate::model::{Backend, Family, FrontendKey, NodeFacts, Protocol, TrafficPolicy};
use crate::table::{Frontend, FrontendKind, Table};

/// How a virtual server chooses an endpoint.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Scheduler {
    /// One after the other.
    #[default]
    RoundRobin,
    /// The one with the fewest connections.
    LeastConnections,
    /// By a hash of the client's address.
    SourceHash,
}

impl Scheduler {
    /// The kernel's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::RoundRobin => "rr",
            Self::LeastConnections => "lc",
            Self::SourceHash => "sh",
        }
    }
}

impl fmt::Display for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What the rules do with new connections to a frontend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Leave them to its virtual server.
    Serve,
    /// Tell the caller that nobody is there.
    Refuse,
    /// Drop them.
    Discard,
}

/// Whose connections get the node's address as source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Masqueraded {
    /// Those of others than pods of this node.
    UnlessPod,
    /// All.
    Always,
    /// Those of the node itself.
    FromNode,
    /// Only those of endpoints that ask themselves.
    Never,
}

/// What a frontend comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// What the rules do with new connections.
    pub admission: Admission,
    /// Whose source is translated.
    pub masqueraded: Masqueraded,
    /// The endpoints of its virtual server, sorted.
    pub backends: Vec<Backend>,
    /// Session affinity, in seconds.
    pub affinity: Option<u32>,
    /// Sources that may use it; `None` is everybody.
    pub sources: Option<Arc<[IpNet]>>,
    /// Whether its address is to be held by our interface, if no other has it:
    /// the node's own are held by others.
    pub bound: bool,
    /// Where pods and the node are sent instead, see [`twin`].
    pub twin: Option<FrontendKey>,
}

/// Whether pods and the node have more endpoints to go to than others. A virtual
/// server cannot tell who asks, so there is a second one for them, its twin.
#[must_use]
pub fn has_twin(frontend: &Frontend) -> bool {
    frontend.kind.is_external()
        && frontend.policy == TrafficPolicy::Local
        && !frontend.cluster.is_empty()
        && frontend.cluster != frontend.local
}

/// Where a frontend's twin stands: at the Service's cluster address, which
/// nobody else has, at a port that the Service does not have. `before` is where
/// it stood so far, where it stays if it can; `used` knows those of others.
#[must_use]
pub fn twin(
    key: &FrontendKey,
    frontend: &Frontend,
    table: &Table,
    before: Option<FrontendKey>,
    used: impl Fn(&FrontendKey) -> bool,
) -> Option<FrontendKey> {
    if !has_twin(frontend) {
        return None;
    }
    let own = |other: &FrontendKey, one: &Frontend| {
        one.kind == FrontendKind::ClusterIp
            && other.protocol == key.protocol
            && Family::of(other.address) == Family::of(key.address)
    };
    let frontends = table.frontends_of(&frontend.service);
    let (own, _) = frontends.iter().find(|(other, one)| own(other, one))?;
    let free = |place: &FrontendKey| table.holder(place).is_none();
    before
        .filter(|before| before.address == own.address && free(before))
        .or_else(|| {
            (1..=u16::MAX)
                .rev()
                .map(|port| FrontendKey { port, ..*own })
                .find(|place| free(place) && !used(place))
        })
}

/// What the twin of a frontend comes to.
#[must_use]
pub fn of_twin(frontend: &Frontend) -> Wanted {
    Wanted {
        admission: Admission::Serve,
        masqueraded: Masqueraded::Never,
        backends: frontend.cluster.to_vec(),
        affinity: frontend.affinity,
        sources: None,
        bound: true,
        twin: None,
    }
}

/// What a frontend comes to. With `externalTrafficPolicy: Local` its virtual
/// server has local endpoints only, and pods and the node are sent to a [`twin`].
#[must_use]
pub fn frontend(frontend: &Frontend, facts: &NodeFacts, twin: Option<FrontendKey>) -> Wanted {
    let backends = match frontend.policy {
        TrafficPolicy::Cluster => &frontend.cluster,
        TrafficPolicy::Local => &frontend.local,
    };
    let admission = if !backends.is_empty() {
        Admission::Serve
    } else if frontend.cluster.is_empty() {
        Admission::Refuse
    } else {
        Admission::Discard
    };
    Wanted {
        admission,
        masqueraded: match (frontend.kind.is_external(), frontend.policy) {
            (false, _) if facts.masquerade_all => Masqueraded::Always,
            (false, _) if facts.no_local_detection => Masqueraded::Never,
            (false, _) => Masqueraded::UnlessPod,
            (true, TrafficPolicy::Cluster) => Masqueraded::Always,
            (true, TrafficPolicy::Local) => Masqueraded::FromNode,
        },
        backends: backends.to_vec(),
        affinity: frontend.affinity,
        sources: frontend.sources.clone(),
        bound: frontend.kind != FrontendKind::NodePort,
        twin,
    }
}

/// A virtual server as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// Its scheduler's name.
    pub scheduler: String,
    /// Its persistence, in seconds.
    pub persistence: Option<u32>,
    /// Its destinations and their weights. Those of weight 0 are on their way
    /// out: they keep the connections they have and get no others.
    pub destinations: BTreeMap<Backend, u16>,
}

/// A frontend's name in IPVS.
#[must_use]
pub const fn name(key: &FrontendKey) -> ipvs::Frontend {
    ipvs::Frontend {
        address: key.address,
        protocol: match key.protocol {
            Protocol::Tcp => ipvs::Protocol::Tcp,
            Protocol::Udp => ipvs::Protocol::Udp,
            Protocol::Sctp => ipvs::Protocol::Sctp,
        },
        port: key.port,
    }
}

/// The frontend of a name in IPVS.
#[must_use]
pub const fn key(name: &ipvs::Frontend) -> FrontendKey {
    FrontendKey {
        address: name.address,
        protocol: match name.protocol {
            ipvs::Protocol::Tcp => Protocol::Tcp,
            ipvs::Protocol::Udp => Protocol::Udp,
            ipvs::Protocol::Sctp => Protocol::Sctp,
        },
        port: name.port,
    }
}

const fn backend(backend: &Backend) -> ipvs::Backend {
    ipvs::Backend {
        address: backend.address,
        port: backend.port,
    }
}

/// The backend of a place in IPVS.
#[must_use]
pub const fn backend_of(place: &ipvs::Backend) -> Backend {
    Backend {
        address: place.address,
        port: place.port,
    }
}

fn service(key: &FrontendKey, server: &Server) -> ipvs::Service {
    ipvs::Service {
        persistence: server
            .persistence
            .map(|seconds| Persistence::of_clients(seconds, key.address)),
        ..ipvs::Service::new(name(key), &server.scheduler)
    }
}

/// What a virtual server should be: with what is on its way out left in place.
/// Datagrams have no connection that could end: their endpoints go at once.
#[must_use]
pub fn server(
    key: &FrontendKey,
    old: Option<&Server>,
    wanted: Option<&Wanted>,
    scheduler: Scheduler,
) -> Option<Server> {
    let backends: BTreeSet<Backend> = wanted
        .map(|wanted| wanted.backends.iter().copied().collect())
        .unwrap_or_default();
    let mut destinations: BTreeMap<Backend, u16> =
        backends.iter().map(|backend| (*backend, 1)).collect();
    if key.protocol != Protocol::Udp {
        for backend in old.iter().flat_map(|old| old.destinations.keys()) {
            destinations.entry(*backend).or_insert(0);
        }
    }
    if destinations.is_empty() {
        return None;
    }
    Some(match (wanted, old) {
        (None, Some(old)) => Server {
            destinations,
            ..old.clone()
        },
        _ => Server {
            scheduler: scheduler.name().to_owned(),
            persistence: wanted.and_then(|wanted| wanted.affinity),
            destinations,
        },
    })
}

/// The changes that make one of a virtual server the other: first what makes
/// and adds, then what takes away.
#[must_use]
pub fn changes(
    key: &FrontendKey,
    old: Option<&Server>,
    new: Option<&Server>,
) -> (Vec<Change>, Vec<Change>) {
    let (mut give, mut take) = (Vec::new(), Vec::new());
    let name = name(key);
    match (old, new) {
        (None, None) => {}
        (Some(_), None) => take.push(Change::DeleteService(name)),
        (None, Some(new)) => {
            give.push(Change::AddService(service(key, new)));
            give.extend(new.destinations.iter().map(|(to, weight)| {
                Change::AddDestination(name, Destination::new(backend(to), *weight))
            }));
        }
        (Some(old), Some(new)) => {
            if (&old.scheduler, old.persistence) != (&new.scheduler, new.persistence) {
                give.push(Change::EditService(service(key, new)));
            }
            for (to, weight) in &new.destinations {
                let destination = Destination::new(backend(to), *weight);
                match old.destinations.get(to) {
                    None => give.push(Change::AddDestination(name, destination)),
                    Some(had) if had == weight => {}
                    Some(0) => give.push(Change::EditDestination(name, destination)),
                    Some(_) => take.push(Change::EditDestination(name, destination)),
                }
            }
            for to in old.destinations.keys() {
                if !new.destinations.contains_key(to) {
                    take.push(Change::DeleteDestination(name, backend(to)));
                }
            }
        }
    }
    (give, take)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(protocol: Protocol) -> FrontendKey {
        FrontendKey {
            address: [10, 96, 0, 10].into(),
            protocol,
            port: 80,
        }
    }

    fn endpoint(n: u8) -> Backend {
        Backend {
            address: [10, 200, 1, n].into(),
            port: 8080,
        }
    }

    fn wanted(endpoints: &[u8]) -> Wanted {
        Wanted {
            admission: Admission::Serve,
            masqueraded: Masqueraded::UnlessPod,
            backends: endpoints.iter().map(|n| endpoint(*n)).collect(),
            affinity: None,
            sources: None,
            bound: true,
            twin: None,
        }
    }

    fn next(protocol: Protocol, old: Option<&Server>, endpoints: &[u8]) -> Option<Server> {
        let wanted = wanted(endpoints);
        server(&at(protocol), old, Some(&wanted), Scheduler::RoundRobin)
    }

    #[test]
    fn an_endpoint_of_tcp_leaves_by_weight_0_and_one_of_udp_at_once() {
        for (protocol, left) in [(Protocol::Tcp, Some(&0)), (Protocol::Udp, None)] {
            let first = next(protocol, None, &[1, 2]).expect("it has endpoints");
            let second = next(protocol, Some(&first), &[2]).expect("it has one");
            assert_eq!(second.destinations.get(&endpoint(1)), left);
            assert_eq!(second.destinations.get(&endpoint(2)), Some(&1));
            let (give, take) = changes(&at(protocol), Some(&first), Some(&second));
            assert_eq!((give.len(), take.len()), (0, 1));
            // And comes back before it is gone.
            let third = next(protocol, Some(&second), &[1, 2]).expect("it has endpoints");
            assert_eq!(third, first);
        }
    }

    #[test]
    fn a_frontend_that_is_gone_keeps_its_server_while_connections_may_last() {
        let first = next(Protocol::Tcp, None, &[1]).expect("it has an endpoint");
        let gone = server(
            &at(Protocol::Tcp),
            Some(&first),
            None,
            Scheduler::RoundRobin,
        );
        assert_eq!(
            gone.expect("it drains").destinations.get(&endpoint(1)),
            Some(&0)
        );
        let first = next(Protocol::Udp, None, &[1]).expect("it has an endpoint");
        let gone = server(
            &at(Protocol::Udp),
            Some(&first),
            None,
            Scheduler::RoundRobin,
        );
        assert_eq!(gone, None);
        let (give, take) = changes(&at(Protocol::Udp), Some(&first), None);
        assert!(give.is_empty());
        assert_eq!(take, [Change::DeleteService(name(&at(Protocol::Udp)))]);
    }

    #[test]
    fn affinity_and_scheduler_change_the_server_and_not_its_endpoints() {
        let first = next(Protocol::Tcp, None, &[1]).expect("it has an endpoint");
        let mut sticky = wanted(&[1]);
        sticky.affinity = Some(600);
        let second = server(
            &at(Protocol::Tcp),
            Some(&first),
            Some(&sticky),
            Scheduler::SourceHash,
        );
        let (give, take) = changes(&at(Protocol::Tcp), Some(&first), second.as_ref());
        assert!(matches!(&give[..], [Change::EditService(service)] if service.scheduler == "sh"));
        assert!(take.is_empty());
    }
}
