//! VXLAN with programmed entries.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;
use linux::link::MacAddress;
use sha2::{Digest, Sha256};

use super::{Backend, Families, Here, route_mtu, tunnel_addresses};
use crate::data::{NodeData, VxlanData};
use crate::model::{
    Device, DeviceKind, DeviceName, Family, NextHop, Node, PerFamily, Remote, RouteKey,
    RouteTarget, State, Vxlan,
};
use crate::plan::Reason;

/// VXLAN (RFC 7348) with every entry programmed (`vxlan`): a route via the
/// peer's tunnel address, a neighbour entry that says whose hardware address
/// that is, a forwarding entry that says where to tunnel frames for it. Nothing
/// is learned, nothing flooded. On the wire this is what flannel speaks: one
/// device for each family of the underlay, the first address of a node's range
/// as the tunnel's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VxlanProgrammed {
    /// VXLAN network identifier.
    pub vni: u32,
    /// UDP port. Linux's own default, and flannel's, not the registered 4789.
    pub port: u16,
    /// Whether checksums of packets in the tunnel may be left to the network
    /// card. Some get them wrong, which shows as connections that stall.
    pub checksum_offload: bool,
}

impl Default for VxlanProgrammed {
    fn default() -> VxlanProgrammed {
        VxlanProgrammed {
            vni: 1,
            port: 8472,
            checksum_offload: true,
        }
    }
}

/// The device for an underlay of each family.
const fn device(carrier: Family) -> DeviceName {
    match carrier {
        Family::V4 => DeviceName::new("pw-vxlan"),
        Family::V6 => DeviceName::new("pw-vxlan6"),
    }
}

/// Outer IP and UDP headers, VXLAN header, inner Ethernet header.
pub(super) const fn overhead(carrier: Family) -> u32 {
    let ip = match carrier {
        Family::V4 => 20,
        Family::V6 => 40,
    };
    ip + 8 + 8 + 14
}

/// The hardware address of a node's tunnel end: the same after every restart
/// and every reboot, and another for each node, since it comes from its name.
pub(super) fn mac(node: &str) -> MacAddress {
    let digest = Sha256::new()
        .chain_update("podwire vxlan ")
        .chain_update(node)
        .finalize();
    let mut low = [0; 5];
    low.copy_from_slice(&digest[..5]);
    MacAddress::local(low)
}

/// By which address on the device a range is reached. What goes out does not
/// depend on it. IPv4: the peer's tunnel address, as people know it. The kernel
/// refuses such a gateway for IPv6 while another route leads to it, which is so
/// during a change of back ends; it takes a link-local one always, and of these
/// each hardware address has its own (RFC 4291, appendix A).
fn gateway(range: &IpNet, MacAddress([a, b, c, d, e, f]): MacAddress) -> IpAddr {
    match range {
        IpNet::V4(range) => range.network().into(),
        IpNet::V6(_) => {
            let words = [[a ^ 2, b], [c, 0xff], [0xfe, d], [e, f]];
            let [one, two, three, four] = words.map(u16::from_be_bytes);
            Ipv6Addr::new(0xfe80, 0, 0, 0, one, two, three, four).into()
        }
    }
}

impl Backend for VxlanProgrammed {
    fn name(&self) -> &'static str {
        "vxlan"
    }

    fn owns(&self) -> &'static str {
        "the device pw-vxlan (pw-vxlan6 over IPv6) with its addresses, and for each peer a route \
         of protocol 112 and a neighbour entry a family and a forwarding entry"
    }

    fn overhead(&self, carrier: Family) -> u32 {
        overhead(carrier)
    }

    fn publish(&self, own: &Node, data: &mut NodeData) {
        let families = Families::of(own);
        let of = |family| families.has(family).then(|| mac(&own.name));
        data.vxlan = Some(VxlanData {
            vni: self.vni,
            port: self.port,
            mac: PerFamily {
                v4: of(Family::V4),
                v6: of(Family::V6),
            },
        });
    }

    fn node(&self, here: &Here<'_>, state: &mut State) -> Result<(), Reason> {
        let families = Families::of(here.own);
        for carrier in Family::BOTH {
            let Some(local) = here.own.address(carrier) else {
                continue;
            };
            let pods: Vec<Family> = Family::BOTH
                .into_iter()
                .filter(|pods| self.carrier(families, *pods) == Some(carrier))
                .collect();
            let mtu = here.device_mtu(self, &[carrier])?;
            let kind = DeviceKind::Vxlan(Vxlan {
                vni: self.vni,
                port: self.port,
                local: Some(local),
                group: None,
                parent: None,
                ttl: 0,
                learning: false,
                external: false,
                gpe: false,
                udp_checksum: false,
                zero_checksum6: false,
            });
            let mut made = Device::new(kind, mtu);
            made.mac = Some(mac(&here.own.name));
            made.checksum_offload = self.checksum_offload;
            made.addresses = tunnel_addresses(here.own, &pods);
            state.devices.insert(device(carrier), made);
        }
        if families == Families::default() {
            return Err(Reason::NoAddress);
        }
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
        let data = peer.data.as_ref().and_then(|data| data.vxlan.as_ref());
        let data = data.ok_or(Reason::NoData)?;
        let mac = data.mac.get(path.carrier).ok_or(Reason::NoData)?;
        let device = device(path.carrier);
        let device_mtu = here.device_mtu(self, &[path.carrier])?;
        let gateway = gateway(&range, mac);
        let remote = Remote {
            address: path.remote,
            // The peer's own settings count: while they are being changed node
            // by node, each sends as the other receives.
            port: (data.port != self.port).then_some(data.port),
            vni: (data.vni != self.vni).then_some(data.vni),
        };
        state.forwarding.insert((device, mac), remote);
        state.neighbours.insert((device, gateway), mac);
        let target = RouteTarget::Device {
            device,
            next_hop: NextHop::OnLink(gateway),
            source: here.own.tunnel_address(pods),
            mtu: route_mtu(path.mtu, device_mtu),
        };
        state.routes.insert(RouteKey::to(range), target);
        Ok(())
    }
}
