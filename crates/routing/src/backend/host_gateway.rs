//! Static routes between nodes of one subnet.

use ipnet::IpNet;

use super::{About, Backend, Carrier, Entries, Peer, route_mtu};
use crate::model::{Family, RouteKey, RouteTarget};
use crate::plan::Reason;

/// Every node is the gateway to its own pods (`host-gw`). Nothing is added to a
/// packet. Works where all nodes share a subnet; peers elsewhere are left to the
/// next back end in the list, if there is one (`cross-subnet`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostGateway;

impl Backend for HostGateway {
    fn about(&self) -> About {
        About {
            name: "host-gw",
            owns: "one route of protocol 112 for each pod range",
            overhead: [0, 0],
            carrier: Carrier::Same,
        }
    }

    fn send(&self, peer: &Peer<'_>, range: IpNet, entries: &mut Entries) -> Result<(), Reason> {
        let target = gateway(self, peer, Family::of_range(&range))?;
        entries.routes.push((RouteKey::of_peer(range), target));
        Ok(())
    }
}

/// The peer as the gateway, on the subnet it shares with this node.
pub(super) fn gateway(
    backend: &dyn Backend,
    peer: &Peer<'_>,
    pods: Family,
) -> Result<RouteTarget, Reason> {
    let address = peer.node.address(pods).ok_or(Reason::NoAddress)?;
    let underlay = peer.here.underlay;
    let subnet = underlay
        .subnet_of(address)
        .ok_or(Reason::OtherSubnet { address })?;
    let interface = subnet.interface;
    // A node with a subnet but no address known of the family can still send.
    let path = peer.path(backend, pods).map_or(u32::MAX, |path| path.mtu);
    let device = underlay
        .interfaces
        .get(&interface)
        .map_or(u32::MAX, |interface| interface.mtu);
    Ok(RouteTarget::Gateway {
        address,
        interface,
        mtu: route_mtu(path, device),
    })
}
