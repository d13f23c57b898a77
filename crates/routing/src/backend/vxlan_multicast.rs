//! VXLAN as in the textbooks: in a bridge, with a multicast group.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::{About, Backend, Carrier, Entries, Families, Here, Peer, Tunnel, vxlan};
use crate::model::{
    Device, DeviceKind, DeviceName, Family, NextHop, PerFamily, RouteKey, RouteTarget, State,
    Vxlan, overlap,
};
use crate::plan::Reason;

/// VXLAN as a port of a bridge, with a multicast group that carries what has
/// no known destination, and a forwarding table that learns (`vxlan-multicast`).
/// All nodes are on one Ethernet: one route for the whole cluster range leads to
/// the bridge, nodes ask on it for the pods' addresses by ARP and NDP, and each
/// answers for its own pods. A node that joins changes nothing on the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VxlanMulticast {
    /// VXLAN network identifier.
    pub vni: u32,
    /// UDP port. The registered one, and not that of `vxlan`, which takes
    /// everything of its port.
    pub port: u16,
    /// The group, for each family of the underlay.
    pub group: PerFamily<IpAddr>,
    /// Hop limit of packets to the group: 1 stays within the subnet.
    pub ttl: u8,
    /// The ranges all pods of the cluster are in.
    pub cluster: Vec<IpNet>,
}

impl Default for VxlanMulticast {
    fn default() -> VxlanMulticast {
        VxlanMulticast {
            vni: 1,
            port: 4789,
            // Organisation-local scope (RFC 2365), site-local scope (RFC 4291).
            group: PerFamily {
                v4: Some(Ipv4Addr::new(239, 112, 0, 1).into()),
                v6: Some(Ipv6Addr::new(0xff05, 0, 0, 0, 0, 0, 0x0112, 1).into()),
            },
            ttl: 1,
            cluster: Vec::new(),
        }
    }
}

/// The bridge, which has the addresses.
const BRIDGE: Tunnel = Tunnel {
    device: DeviceName::new("pw-mcast-br"),
    carriers: &Family::BOTH,
};
/// The tunnel that is the bridge's only port.
const PORT: DeviceName = DeviceName::new("pw-mcast");

impl Backend for VxlanMulticast {
    fn about(&self) -> About {
        About {
            name: "vxlan-multicast",
            owns: "the bridge pw-mcast-br with its addresses, its port pw-mcast, a route of \
                   protocol 112 for each cluster range and a proxy entry for each pod of this node",
            overhead: vxlan::OVERHEAD,
            // One Ethernet for all pods.
            carrier: Carrier::One,
        }
    }

    fn node(&self, here: &Here<'_>, state: &mut State) -> Result<(), Reason> {
        let carrier = Carrier::One.of(Families::of(here.own), Family::V4);
        let carrier = carrier.ok_or(Reason::NoAddress)?;
        let local = here.own.address(carrier).ok_or(Reason::NoAddress)?;
        let subnet = here.underlay.subnet_of(local).ok_or(Reason::NoInterface)?;
        if self.cluster.is_empty() {
            return Err(Reason::NoClusterRange);
        }
        let mtu = here.device_mtu(self, &[carrier])?;
        let mut bridge = here.device(BRIDGE, self, DeviceKind::Bridge)?;
        bridge.mtu = mtu;
        bridge.mac = Some(vxlan::mac(&here.own.name));
        bridge.answers = true;
        state.devices.insert(BRIDGE.device, bridge);
        let kind = DeviceKind::Vxlan(Vxlan {
            vni: self.vni,
            port: self.port,
            local: Some(local),
            group: self.group.get(carrier),
            parent: Some(subnet.interface),
            ttl: self.ttl,
            learning: true,
            ..Vxlan::default()
        });
        let mut port = Device::new(kind, mtu);
        port.bridge = Some(BRIDGE.device);
        state.devices.insert(PORT, port);
        for range in self.cluster.iter().map(IpNet::trunc) {
            let subnets = &here.underlay.subnets;
            if let Some(subnet) = subnets.iter().find(|s| overlap(&s.address, &range)) {
                return Err(Reason::Underlay {
                    subnet: subnet.address.trunc(),
                });
            }
            let target = RouteTarget::Device {
                device: BRIDGE.device,
                next_hop: NextHop::Direct,
                source: here.own.tunnel_address(Family::of_range(&range)),
                mtu: None,
            };
            state.routes.insert(RouteKey::to(range), target);
        }
        let own_pods = here.own.pods.iter();
        let own_pods = own_pods.filter(|pod| here.own.ranges.iter().any(|r| r.contains(*pod)));
        // The node's own end answers for its own address without being told.
        state.proxies = own_pods.map(|pod| (BRIDGE.device, *pod)).collect();
        Ok(())
    }

    fn send(&self, peer: &Peer<'_>, range: IpNet, _: &mut Entries) -> Result<(), Reason> {
        let path = peer.path(self, Family::of_range(&range))?;
        // Routers take one from the hop limit.
        let Peer { here, .. } = peer;
        let subnet = |address| here.underlay.subnet_of(address);
        let local = here.own.address(path.carrier).and_then(subnet);
        if self.ttl <= 1 && local != subnet(path.remote) {
            return Err(Reason::BeyondGroup {
                address: path.remote,
            });
        }
        let within = |cluster: &IpNet| cluster.contains(&range);
        if !self.cluster.iter().any(within) {
            return Err(Reason::NoClusterRange);
        }
        Ok(())
    }
}
