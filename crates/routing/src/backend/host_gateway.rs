//! Static routes between nodes of one subnet.

use ipnet::IpNet;

use super::{Backend, Families, Here, route_mtu};
use crate::model::{Family, Node, RouteKey, RouteTarget, State};
use crate::plan::Reason;

/// Every node is the gateway to its own pods (`host-gw`). Nothing is added to a
/// packet. Works where all nodes share a subnet; peers elsewhere are left to the
/// next back end in the list, if there is one (`cross-subnet`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostGateway;

impl Backend for HostGateway {
    fn name(&self) -> &'static str {
        "host-gw"
    }

    fn owns(&self) -> &'static str {
        "one route of protocol 112 for each pod range"
    }

    fn overhead(&self, _: Family) -> u32 {
        0
    }

    fn carrier(&self, underlay: Families, pods: Family) -> Option<Family> {
        underlay.has(pods).then_some(pods)
    }

    fn send(
        &self,
        here: &Here<'_>,
        peer: &Node,
        range: IpNet,
        state: &mut State,
    ) -> Result<(), Reason> {
        let target = gateway(self, here, peer, Family::of_range(&range))?;
        state.routes.insert(RouteKey::to(range), target);
        Ok(())
    }
}

/// The peer as the gateway, on the subnet it shares with this node.
pub(super) fn gateway(
    backend: &dyn Backend,
    here: &Here<'_>,
    peer: &Node,
    pods: Family,
) -> Result<RouteTarget, Reason> {
    let address = peer.address(pods).ok_or(Reason::NoAddress)?;
    let subnet = here
        .underlay
        .subnet_of(address)
        .ok_or(Reason::OtherSubnet { address })?;
    let interface = subnet.interface;
    // A node with a subnet but no address known of the family can still send.
    let path = here
        .path(backend, peer, pods)
        .map_or(u32::MAX, |path| path.mtu);
    let device = here
        .underlay
        .interfaces
        .get(&interface)
        .map_or(u32::MAX, |interface| interface.mtu);
    Ok(RouteTarget::Gateway {
        address,
        interface,
        mtu: route_mtu(path, device),
    })
}
