//! VXLAN with the generic protocol extension and lightweight-tunnel routes.

use ipnet::IpNet;

use super::{About, Backend, Carrier, Entries, Here, Peer, Tunnel};
use crate::data::{NodeData, VxlanGpeData};
use crate::model::{DeviceKind, DeviceName, Family, NextHop, Node, RouteKey, State, Vxlan};
use crate::plan::Reason;

/// VXLAN that carries IP packets without Ethernet headers
/// (draft-ietf-nvo3-vxlan-gpe), each route saying itself where the tunnel ends
/// (`vxlan-gpe`): one device for both families, one route for each range of a
/// peer, no hardware address, no neighbour, no forwarding entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VxlanGpe {
    /// VXLAN network identifier.
    pub vni: u32,
    /// UDP port; all nodes need the same. 4790 is the registered one, and not
    /// that of `vxlan`: a socket takes one of the two formats.
    pub port: u16,
}

impl Default for VxlanGpe {
    fn default() -> VxlanGpe {
        VxlanGpe { vni: 1, port: 4790 }
    }
}

const TUNNEL: Tunnel = Tunnel {
    device: DeviceName::new("pw-gpe"),
    carriers: &Family::BOTH,
};

impl Backend for VxlanGpe {
    fn about(&self) -> About {
        About {
            name: "vxlan-gpe",
            owns: "the device pw-gpe with its addresses, and a route of protocol 112 for each pod \
                   range and each peer's address",
            // Outer IP and UDP headers and the VXLAN header.
            overhead: [20 + 8 + 8, 40 + 8 + 8],
            carrier: Carrier::Either,
        }
    }

    fn publish(&self, _own: &Node, data: &mut NodeData) {
        data.vxlan_gpe = Some(VxlanGpeData {
            vni: self.vni,
            port: self.port,
        });
    }

    fn node(&self, here: &Here<'_>, state: &mut State) -> Result<(), Reason> {
        let kind = DeviceKind::Vxlan(Vxlan {
            port: self.port,
            external: true,
            gpe: true,
            ..Vxlan::default()
        });
        let device = here.device(TUNNEL, self, kind)?;
        state.devices.insert(TUNNEL.device, device);
        Ok(())
    }

    fn send(&self, peer: &Peer<'_>, range: IpNet, entries: &mut Entries) -> Result<(), Reason> {
        let path = peer.path(self, Family::of_range(&range))?;
        let data = peer.node.data.as_ref();
        let data = data.and_then(|data| data.vxlan_gpe.as_ref());
        if let Some(data) = data.filter(|data| data.port != self.port) {
            return Err(Reason::OtherPort {
                ours: self.port,
                theirs: data.port,
            });
        }
        let next_hop = NextHop::Encapsulated {
            id: data.map_or(self.vni, |data| data.vni),
            remote: path.remote,
        };
        let target = peer.over(TUNNEL, self, &range, next_hop)?;
        entries.routes.push((RouteKey::of_peer(range), target));
        Ok(())
    }
}
