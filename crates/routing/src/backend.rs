//! Ways to carry packets from node to node.

use ipnet::IpNet;

use crate::model::{Node, Route, RouteKey, RouteTarget, Subnet, default_metric};
use crate::plan::Reason;

/// A way to carry packets from node to node.
pub trait Backend {
    /// Its name in configuration and reports.
    fn name(&self) -> &'static str;

    /// What it makes in the kernel, for people.
    fn owns(&self) -> &'static str;

    /// Bytes it adds to every packet between nodes whose underlay has the
    /// family of `address`; pods' MTU is the underlay's less this.
    fn overhead(&self, address: std::net::IpAddr) -> u32;

    /// The route to one range of a peer. `range` is known to be sound: it
    /// overlaps no other node's range and nothing of the underlay.
    ///
    /// # Errors
    /// Why this peer cannot be reached this way.
    fn route(&self, peer: &Node, range: IpNet, subnets: &[Subnet]) -> Result<Route, Reason>;
}

/// Static routes: every node is the gateway to its own pods ("host-gw").
/// Nothing is added to a packet. Works where all nodes share a subnet.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostGateway;

impl Backend for HostGateway {
    fn name(&self) -> &'static str {
        "host-gw"
    }

    fn owns(&self) -> &'static str {
        "one route of protocol 112 for each pod range"
    }

    fn overhead(&self, _: std::net::IpAddr) -> u32 {
        0
    }

    fn route(&self, peer: &Node, range: IpNet, subnets: &[Subnet]) -> Result<Route, Reason> {
        let address = peer.address_like(&range).ok_or(Reason::NoAddress)?;
        // The subnet the kernel would choose; of equal ones the oldest interface.
        let subnet = subnets
            .iter()
            .filter(|subnet| subnet.address.contains(&address))
            .max_by_key(|s| (s.address.prefix_len(), std::cmp::Reverse(s.interface)))
            .ok_or(Reason::OtherSubnet { address })?;
        Ok(Route {
            key: RouteKey {
                destination: range,
                metric: default_metric(&range),
            },
            target: RouteTarget::Gateway {
                address,
                interface: subnet.interface,
            },
        })
    }
}
