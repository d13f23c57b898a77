//! VXLAN with the generic protocol extension and lightweight-tunnel routes.

use ipnet::IpNet;

use super::{Backend, Families, Here, route_mtu, tunnel_addresses};
use crate::data::{NodeData, VxlanGpeData};
use crate::model::{
    Device, DeviceKind, DeviceName, Family, NextHop, Node, RouteKey, RouteTarget, State, Vxlan,
    default_metric,
};
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

const DEVICE: DeviceName = DeviceName::new("pw-gpe");

impl Backend for VxlanGpe {
    fn name(&self) -> &'static str {
        "vxlan-gpe"
    }

    fn owns(&self) -> &'static str {
        "the device pw-gpe with its addresses, and a route of protocol 112 for each pod range"
    }

    /// Outer IP and UDP headers and the VXLAN header.
    fn overhead(&self, carrier: Family) -> u32 {
        match carrier {
            Family::V4 => 20 + 8 + 8,
            Family::V6 => 40 + 8 + 8,
        }
    }

    fn publish(&self, _own: &Node, data: &mut NodeData) {
        data.vxlan_gpe = Some(VxlanGpeData {
            vni: self.vni,
            port: self.port,
        });
    }

    fn node(&self, here: &Here<'_>, state: &mut State) -> Result<(), Reason> {
        if Families::of(here.own) == Families::default() {
            return Err(Reason::NoAddress);
        }
        let kind = DeviceKind::Vxlan(Vxlan {
            vni: 0,
            port: self.port,
            local: None,
            group: None,
            parent: None,
            ttl: 0,
            learning: false,
            external: true,
            gpe: true,
            udp_checksum: false,
            zero_checksum6: false,
        });
        let mut device = Device::new(kind, here.device_mtu(self, &Family::BOTH)?);
        device.addresses = tunnel_addresses(here.own, &Family::BOTH);
        state.devices.insert(DEVICE, device);
        Ok(())
    }

    fn send(
        &self,
        here: &Here<'_>,
        peer: &Node,
        range: IpNet,
        state: &mut State,
    ) -> Result<(), Reason> {
        let pods = Family::of_range(&range);
        let path = here.path(self, peer, pods)?;
        let data = peer.data.as_ref().and_then(|data| data.vxlan_gpe.as_ref());
        if let Some(data) = data.filter(|data| data.port != self.port) {
            return Err(Reason::OtherPort {
                ours: self.port,
                theirs: data.port,
            });
        }
        let target = RouteTarget::Device {
            device: DEVICE,
            next_hop: NextHop::Encapsulated {
                id: data.map_or(self.vni, |data| data.vni),
                remote: path.remote,
            },
            source: here.own.tunnel_address(pods),
            mtu: route_mtu(path.mtu, here.device_mtu(self, &Family::BOTH)?),
        };
        let key = RouteKey {
            metric: metric(&range),
            ..RouteKey::to(range)
        };
        state.routes.insert(key, target);
        Ok(())
    }
}

/// The metric of a range's route. The kernel compares a new IPv4 route's next
/// hop with all of the same device, metric and source (`fib_find_info` in
/// net/ipv4/fib_semantics.c), and here all have the same device: 5,000 of them
/// took a second of that alone. No two routes lead to the same range, so the
/// metric is free to keep the next hops apart.
fn metric(range: &IpNet) -> u32 {
    match range {
        IpNet::V4(range) => {
            // Multiplicative hashing (Knuth, volume 3, section 6.4): the upper six bits.
            let spread = range.network().to_bits().wrapping_mul(0x9e37_79b1);
            1 + (spread >> 26)
        }
        IpNet::V6(_) => default_metric(range),
    }
}
