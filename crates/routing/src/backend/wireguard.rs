//! WireGuard.

use std::net::SocketAddr;

use ipnet::IpNet;
use linux::wireguard::{PrivateKey, PublicKey};

use super::{About, Accepted, Backend, Carrier, Entries, Here, Peer, Tunnel};
use crate::data::{NodeData, WireguardData};
use crate::model::{
    DeviceKind, DeviceName, Family, NextHop, Node, RouteKey, State, TunnelPeer, WireguardSettings,
};
use crate::plan::Reason;

/// An encrypted tunnel (`wireguard`): one device, a WireGuard peer for each
/// node with the node's pod ranges and addresses as its allowed IPs, a route a
/// range and an address. Packets between nodes can go nowhere but to the peer whose
/// range it is, and are accepted from nobody else.
///
/// The tunnel's own packets never enter it: only pod ranges are routed to the
/// device for all, a range that holds a node's address is refused, and the routes
/// to nodes' addresses count only for packets that come from pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wireguard {
    /// This node's private key.
    pub private_key: PrivateKey,
    /// The public key that belongs to it.
    pub public_key: PublicKey,
    /// UDP port. 51820 is the customary one.
    pub port: u16,
}

const TUNNEL: Tunnel = Tunnel {
    device: DeviceName::new("pw-wg"),
    carriers: &Family::BOTH,
};

impl Backend for Wireguard {
    fn about(&self) -> About {
        About {
            name: "wireguard",
            owns: "the device pw-wg with its addresses and a WireGuard peer for each node, and a \
                   route of protocol 112 for each pod range and each peer's address",
            // Outer IP and UDP headers, WireGuard's header and authentication tag.
            overhead: [20 + 8 + 16 + 16, 40 + 8 + 16 + 16],
            // A peer has one endpoint, for pods of both families.
            carrier: Carrier::One,
        }
    }

    fn publish(&self, _own: &Node, data: &mut NodeData) {
        data.wireguard = Some(WireguardData {
            public_key: self.public_key,
            port: self.port,
        });
    }

    fn node(&self, here: &Here<'_>, state: &mut State) -> Result<(), Reason> {
        let mut device = here.device(TUNNEL, self, DeviceKind::Wireguard)?;
        device.wireguard = Some(WireguardSettings {
            private_key: self.private_key.clone(),
            port: self.port,
        });
        state.devices.insert(TUNNEL.device, device);
        Ok(())
    }

    fn accept(&self, peer: &Peer<'_>, sources: &[IpNet]) -> Result<Option<Accepted>, Reason> {
        let data = peer.node.data.as_ref();
        let data = data.and_then(|data| data.wireguard.as_ref());
        let data = data.ok_or(Reason::NoData)?;
        if data.public_key == self.public_key {
            return Err(Reason::OwnKey);
        }
        let remote = peer.path(self, Family::V4)?.remote;
        let tunnel_peer = TunnelPeer {
            endpoint: SocketAddr::new(remote, data.port),
            ranges: sources.iter().copied().collect(),
            keepalive: 0,
        };
        let key = (TUNNEL.device, data.public_key);
        Ok(Some((key, tunnel_peer)))
    }

    fn send(&self, peer: &Peer<'_>, range: IpNet, entries: &mut Entries) -> Result<(), Reason> {
        // Without a peer that has the range, the device would drop the packet.
        self.accept(peer, &[range])?;
        let target = peer.over(TUNNEL, self, &range, NextHop::Direct)?;
        entries.routes.push((RouteKey::of_peer(range), target));
        Ok(())
    }
}
