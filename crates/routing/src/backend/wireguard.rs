//! WireGuard.

use std::net::SocketAddr;

use ipnet::IpNet;
use linux::wireguard::{PrivateKey, PublicKey};

use super::{Backend, Families, Here, route_mtu, tunnel_addresses};
use crate::data::{NodeData, WireguardData};
use crate::model::{
    Device, DeviceKind, DeviceName, Family, NextHop, Node, RouteKey, RouteTarget, State,
    TunnelPeer, WireguardSettings,
};
use crate::plan::Reason;

/// An encrypted tunnel (`wireguard`): one device, a WireGuard peer for each
/// node with the node's pod ranges as its allowed IPs, a route a range. Packets
/// between nodes can go nowhere but to the peer whose range it is, and are
/// accepted from nobody else.
///
/// The tunnel's own packets never enter it: only pod ranges are routed to the
/// device, and a range that holds a node's address is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wireguard {
    /// This node's private key.
    pub private_key: PrivateKey,
    /// The public key that belongs to it.
    pub public_key: PublicKey,
    /// UDP port. 51820 is the customary one.
    pub port: u16,
}

const DEVICE: DeviceName = DeviceName::new("pw-wg");

impl Backend for Wireguard {
    fn name(&self) -> &'static str {
        "wireguard"
    }

    fn owns(&self) -> &'static str {
        "the device pw-wg with its addresses and a WireGuard peer for each node, and a route of \
         protocol 112 for each pod range"
    }

    /// Outer IP and UDP headers, WireGuard's header and authentication tag.
    fn overhead(&self, carrier: Family) -> u32 {
        match carrier {
            Family::V4 => 20 + 8 + 16 + 16,
            Family::V6 => 40 + 8 + 16 + 16,
        }
    }

    /// A peer has one endpoint, for pods of both families.
    fn carrier(&self, underlay: Families, _pods: Family) -> Option<Family> {
        Family::BOTH
            .into_iter()
            .find(|family| underlay.has(*family))
    }

    fn publish(&self, _own: &Node, data: &mut NodeData) {
        data.wireguard = Some(WireguardData {
            public_key: self.public_key,
            port: self.port,
        });
    }

    fn node(&self, here: &Here<'_>, state: &mut State) -> Result<(), Reason> {
        if Families::of(here.own) == Families::default() {
            return Err(Reason::NoAddress);
        }
        let mtu = here.device_mtu(self, &Family::BOTH)?;
        let mut device = Device::new(DeviceKind::Wireguard, mtu);
        device.addresses = tunnel_addresses(here.own, &Family::BOTH);
        device.wireguard = Some(WireguardSettings {
            private_key: self.private_key.clone(),
            port: self.port,
        });
        state.devices.insert(DEVICE, device);
        Ok(())
    }

    fn accept(
        &self,
        here: &Here<'_>,
        peer: &Node,
        ranges: &[IpNet],
        state: &mut State,
    ) -> Result<(), Reason> {
        let data = peer.data.as_ref().and_then(|data| data.wireguard.as_ref());
        let data = data.ok_or(Reason::NoData)?;
        if data.public_key == self.public_key {
            return Err(Reason::OwnKey);
        }
        let path = here.path(self, peer, Family::V4)?;
        let tunnel_peer = TunnelPeer {
            endpoint: SocketAddr::new(path.remote, data.port),
            ranges: ranges.iter().copied().collect(),
        };
        state
            .tunnel_peers
            .insert((DEVICE, data.public_key), tunnel_peer);
        Ok(())
    }

    fn send(
        &self,
        here: &Here<'_>,
        peer: &Node,
        range: IpNet,
        state: &mut State,
    ) -> Result<(), Reason> {
        // Without a peer that has the range, the device would drop the packet.
        self.accept(here, peer, &[range], &mut State::default())?;
        let pods = Family::of_range(&range);
        let path = here.path(self, peer, pods)?;
        let target = RouteTarget::Device {
            device: DEVICE,
            next_hop: NextHop::Direct,
            source: here.own.tunnel_address(pods),
            mtu: route_mtu(path.mtu, here.device_mtu(self, &Family::BOTH)?),
        };
        state.routes.insert(RouteKey::to(range), target);
        Ok(())
    }
}
