//! Reads the kernel and carries out the difference.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use linux::events::Event;
use linux::link::Link;
use linux::netlink::{Request, Socket};
use linux::route::{self, Filter, Kind, TABLE_MAIN};
use linux::{address, link};

use crate::difference::{Difference, Foreign, KernelRoute, PROTOCOL, difference};
use crate::model::{Route, RouteKey, RouteTarget, Subnet, default_metric};

/// Names of podwire's own interfaces begin with this.
pub const OWN_INTERFACES: &str = "pw";

/// A failure to read the kernel or to change it.
pub type Error = linux::netlink::Error;

/// The interfaces and addresses of this node that are not podwire's own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Underlay {
    /// Subnets this node is directly connected to.
    pub subnets: Vec<Subnet>,
    /// Names and largest packets (bytes) of interfaces, by index.
    pub interfaces: BTreeMap<u32, Interface>,
}

/// An interface of the underlay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its largest packet, bytes.
    pub mtu: u32,
}

impl Underlay {
    /// Reads the interfaces of the socket's network namespace that are up.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn read(socket: &mut Socket) -> Result<Underlay, Error> {
        let mut underlay = Underlay::default();
        for link in link::list(socket)? {
            if link.up && !link.loopback && !link.name.starts_with(OWN_INTERFACES) {
                let interface = Interface {
                    name: link.name,
                    mtu: link.mtu,
                };
                underlay.interfaces.insert(link.index, interface);
            }
        }
        for address in address::list(socket, None)? {
            let net = address.address;
            // A single address is connected to nothing, and link-local ones
            // are on every link.
            let connected = net.prefix_len() < net.max_prefix_len() && !is_link_local(net.addr());
            if connected && underlay.interfaces.contains_key(&address.link) {
                underlay.subnets.push(Subnet {
                    address: net,
                    interface: address.link,
                });
            }
        }
        underlay
            .subnets
            .sort_by_key(|subnet| (subnet.interface, subnet.address));
        Ok(underlay)
    }

    /// The largest packet every subnet with one of these addresses carries, and
    /// where none of them is on any: every interface. `None` without interfaces.
    pub fn mtu(&self, addresses: &[IpAddr]) -> Option<u32> {
        let of = |subnet: &Subnet| self.interfaces.get(&subnet.interface).map(|i| i.mtu);
        let own = self
            .subnets
            .iter()
            .filter(|s| addresses.contains(&s.address.addr()));
        own.filter_map(of)
            .min()
            .or_else(|| self.interfaces.values().map(|i| i.mtu).min())
    }
}

/// What came of carrying out a difference.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Routes added, replaced and removed.
    pub changed: usize,
    /// What the kernel refused.
    pub failures: Vec<Error>,
}

/// The main table, and what this process knows of it.
pub struct RouteTable {
    socket: Socket,
    /// The table as it was read and as it became by what was applied since;
    /// absent when it has to be read.
    shadow: Option<Vec<KernelRoute>>,
    /// Indexes of podwire's own interfaces, as read and as notified since.
    own: BTreeSet<u32>,
    /// The others, likewise: name, MTU, whether up.
    others: BTreeMap<u32, (String, u32, bool)>,
}

impl RouteTable {
    /// The main table of the calling thread's network namespace.
    ///
    /// # Errors
    /// When no netlink socket can be had.
    pub fn open() -> Result<RouteTable, Error> {
        Ok(RouteTable {
            socket: Socket::open_route()?,
            shadow: None,
            own: BTreeSet::new(),
            others: BTreeMap::new(),
        })
    }

    /// The socket, for reading what is not a route.
    pub fn socket(&mut self) -> &mut Socket {
        &mut self.socket
    }

    /// Forgets what is known: the next use reads the kernel.
    pub fn invalidate(&mut self) {
        self.shadow = None;
    }

    /// The main table.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn routes(&mut self) -> Result<&[KernelRoute], Error> {
        if self.shadow.is_none() {
            let (own, others): (Vec<Link>, Vec<Link>) = link::list(&mut self.socket)?
                .into_iter()
                .partition(|link| link.name.starts_with(OWN_INTERFACES));
            self.own = own.into_iter().map(|link| link.index).collect();
            self.others = others
                .into_iter()
                .map(|link| (link.index, facts(link)))
                .collect();
            let filter = Filter {
                table: Some(TABLE_MAIN),
                ..Filter::default()
            };
            let routes = route::list(&mut self.socket, filter)?;
            let routes = routes
                .iter()
                .map(|route| from_kernel(route, &self.own))
                .collect();
            self.shadow = Some(routes);
        }
        Ok(self.shadow.as_deref().unwrap_or_default())
    }

    /// Whether a route somebody else made leads from here to all of a range.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn is_routed_by_others(&mut self, range: &IpNet) -> Result<bool, Error> {
        Ok(self.routes()?.iter().any(|route| {
            route.protocol != PROTOCOL
                && route.key.destination.contains(range)
                && route.target != Some(RouteTarget::Unreachable)
        }))
    }

    /// What has to change so that the table holds what is wanted.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn difference(
        &mut self,
        wanted: &BTreeMap<RouteKey, RouteTarget>,
    ) -> Result<Difference, Error> {
        Ok(difference(wanted, self.routes()?))
    }

    /// Makes the table hold what is wanted.
    ///
    /// A refusal by the kernel is tried once more after the table was read
    /// again (somebody else may have changed it), and then part of the outcome.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn apply(
        &mut self,
        wanted: &BTreeMap<RouteKey, RouteTarget>,
    ) -> Result<(Outcome, Vec<Foreign>), Error> {
        let mut outcome = Outcome::default();
        for _ in 0..2 {
            let difference = self.difference(wanted)?;
            outcome.failures.clear();
            if difference.is_empty() {
                return Ok((outcome, difference.foreign));
            }
            self.carry_out(&difference, &mut outcome)?;
            if outcome.failures.is_empty() {
                return Ok((outcome, difference.foreign));
            }
            self.invalidate();
        }
        let foreign = self.difference(wanted)?.foreign;
        Ok((outcome, foreign))
    }

    fn carry_out(&mut self, difference: &Difference, outcome: &mut Outcome) -> Result<(), Error> {
        let mut requests: Vec<Request> = Vec::new();
        requests.extend(difference.add.iter().map(|r| route::add(&to_kernel(r))));
        requests.extend(
            difference
                .replace
                .iter()
                .map(|r| route::replace(&to_kernel(r))),
        );
        let shadow = self.shadow.as_deref().unwrap_or_default();
        requests.extend(difference.remove.iter().map(|key| {
            let held = shadow.iter().find(|h| h.key == *key && h.is_routings());
            let mut gone = route::Route::to(key.destination).metric(key.metric);
            if held.is_some_and(|held| held.target == Some(RouteTarget::Unreachable)) {
                gone = gone.kind(Kind::Unreachable);
            }
            route::delete(&gone)
        }));
        let outcomes = match self.socket.attempt_all(&requests) {
            Ok(outcomes) => outcomes,
            Err(error) => {
                // What was carried out is unknown.
                self.invalidate();
                return Err(error);
            }
        };
        for result in outcomes {
            match result {
                Ok(()) => outcome.changed += 1,
                Err(error) => outcome.failures.push(error),
            }
        }
        if let Some(shadow) = &mut self.shadow {
            let written = difference.add.iter().chain(&difference.replace);
            let written: BTreeMap<RouteKey, RouteTarget> =
                written.map(|route| (route.key, route.target)).collect();
            shadow.retain(|held| {
                !held.is_routings()
                    || !(written.contains_key(&held.key) || difference.remove.contains(&held.key))
            });
            shadow.extend(written.into_iter().map(|(key, target)| KernelRoute {
                key,
                protocol: PROTOCOL,
                target: Some(target),
                over_own_interface: false,
            }));
        }
        Ok(())
    }

    /// Takes notice of a change in the kernel. Returns whether it concerns
    /// routing: whether what is wanted should be computed and applied again.
    /// The echo of what this process did itself does not.
    pub fn notice(&mut self, event: &Event) -> bool {
        let concerns = match event {
            Event::Link(link) if link.name.starts_with(OWN_INTERFACES) => {
                self.own.insert(link.index);
                false
            }
            Event::LinkGone(link) if self.own.remove(&link.index) => false,
            // The kernel repeats itself, and tells of much nobody here uses.
            Event::Link(link) => {
                let now = facts(link.clone());
                !link.loopback && self.others.insert(link.index, now.clone()) != Some(now)
            }
            Event::LinkGone(link) => self.others.remove(&link.index).is_some(),
            Event::Address(address) | Event::AddressGone(address) => {
                !self.own.contains(&address.link) && !is_link_local(address.address.addr())
            }
            Event::Route(route) => self.is_news(route, true),
            Event::RouteGone(route) => self.is_news(route, false),
            Event::Neighbour(_) | Event::NeighbourGone(_) => false,
            Event::Lost => true,
        };
        if concerns {
            self.invalidate();
        }
        concerns
    }

    fn is_news(&self, route: &route::Route, there: bool) -> bool {
        if route.table != TABLE_MAIN {
            return false;
        }
        let changed = from_kernel(route, &self.own);
        let pods = changed.protocol == PROTOCOL && !changed.is_routings();
        if pods || changed.over_own_interface || is_link_local(route.destination.addr()) {
            return false;
        }
        let Some(shadow) = &self.shadow else {
            return true;
        };
        let known = shadow
            .iter()
            .find(|known| known.key == changed.key && known.protocol == changed.protocol);
        match known {
            Some(known) => !there || known.target != changed.target,
            None => there,
        }
    }
}

/// What matters of an interface.
fn facts(link: Link) -> (String, u32, bool) {
    (link.name, link.mtu, link.up)
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

fn from_kernel(route: &route::Route, own_interfaces: &BTreeSet<u32>) -> KernelRoute {
    let target = match (route.kind, route.gateway, route.link, route.source) {
        // IPv6 shows the loopback interface as the link of an unreachable route.
        (Kind::Unreachable, None, _, None) => Some(RouteTarget::Unreachable),
        _ if route.mtu.is_some() || route.onlink => None,
        (Kind::Unicast, Some(address), Some(interface), None) => {
            Some(RouteTarget::Gateway { address, interface })
        }
        (Kind::Unicast, None, Some(interface), Some(source)) => {
            Some(RouteTarget::Link { interface, source })
        }
        _ => None,
    };
    KernelRoute {
        key: RouteKey {
            destination: route.destination,
            metric: route
                .metric
                .unwrap_or_else(|| default_metric(&route.destination)),
        },
        protocol: route.protocol,
        target,
        over_own_interface: route
            .link
            .is_some_and(|link| own_interfaces.contains(&link)),
    }
}

fn to_kernel(route: &Route) -> route::Route {
    let RouteKey {
        destination,
        metric,
    } = route.key;
    let bare = route::Route::to(destination).metric(metric);
    match route.target {
        RouteTarget::Gateway { address, interface } => bare.via(address).dev(interface),
        RouteTarget::Link { interface, source } => bare.dev(interface).source(source),
        RouteTarget::Unreachable => bare.kind(Kind::Unreachable),
    }
}

/// Removes every route of podwire's protocol, in all tables, those of pods
/// included. Returns what was removed.
///
/// # Errors
/// When the kernel cannot be asked or refuses.
pub fn remove_all(socket: &mut Socket) -> Result<Vec<IpNet>, Error> {
    let routes = route::list(socket, Filter::own())?;
    let requests: Vec<Request> = routes.iter().map(route::delete).collect();
    for outcome in socket.attempt_all(&requests)? {
        match outcome {
            // Gone with its link meanwhile.
            Err(error) if error.not_found() => {}
            outcome => outcome?,
        }
    }
    Ok(routes.into_iter().map(|route| route.destination).collect())
}
