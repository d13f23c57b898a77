//! What routing is about: nodes, the underlay's subnets, routes.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

/// A node of the cluster, this one or a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name, for reports.
    pub name: Box<str>,
    /// Its addresses on the underlay, the primary one of each family first.
    pub addresses: Vec<IpAddr>,
    /// Its pod ranges, at most one a family.
    pub ranges: Vec<IpNet>,
}

impl Node {
    /// The primary address of the family `of` belongs to.
    pub fn address_like(&self, of: &IpNet) -> Option<IpAddr> {
        self.addresses
            .iter()
            .copied()
            .find(|address| address.is_ipv4() == of.addr().is_ipv4())
    }
}

/// A subnet this node is directly connected to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subnet {
    /// This node's address in it, with the subnet's prefix length.
    pub address: IpNet,
    /// Index of the interface.
    pub interface: u32,
}

/// What tells one route of the main table from another (the kernel's own key,
/// at type of service 0).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RouteKey {
    /// Destination; host bits are zero.
    pub destination: IpNet,
    /// Metric (`RTA_PRIORITY`): of several routes to a destination the lowest wins.
    pub metric: u32,
}

/// A route podwire wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Route {
    /// Destination and metric.
    pub key: RouteKey,
    /// Where it leads.
    pub target: RouteTarget,
}

/// Where a route leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RouteTarget {
    /// To a gateway on the subnet of an interface.
    Gateway {
        /// The gateway.
        address: IpAddr,
        /// Index of the interface.
        interface: u32,
    },
    /// To the subnet of an interface itself.
    Link {
        /// Index of the interface.
        interface: u32,
        /// The source address of packets that have none yet.
        source: IpAddr,
    },
    /// Nowhere: the sender gets an ICMP error.
    Unreachable,
}

/// The metric a route to a peer's range has: what the kernel itself assigns
/// when none is given (0 for IPv4; `IP6_RT_PRIO_USER` for IPv6, include/uapi/linux/ipv6_route.h).
pub const fn default_metric(destination: &IpNet) -> u32 {
    match destination {
        IpNet::V4(_) => 0,
        IpNet::V6(_) => 1024,
    }
}

/// The metric of routes that must lose against any other to the same
/// destination. Below the kernel's own last resort (2³²-1).
pub const LAST_RESORT_METRIC: u32 = 4_000_000_000;

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RouteKey {
            destination,
            metric,
        } = self.key;
        match self.target {
            RouteTarget::Gateway { address, interface } => {
                write!(f, "{destination} via {address} (interface {interface})")?;
            }
            RouteTarget::Link { interface, source } => {
                write!(f, "{destination} on interface {interface} from {source}")?;
            }
            RouteTarget::Unreachable => write!(f, "unreachable {destination}")?,
        }
        if metric != default_metric(&destination) {
            write!(f, " metric {metric}")?;
        }
        Ok(())
    }
}

/// Whether two ranges have an address in common.
pub(crate) fn overlap(one: &IpNet, other: &IpNet) -> bool {
    one.contains(&other.network()) || other.contains(&one.network())
}
