//! VXLAN with programmed entries.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;
use linux::link::MacAddress;
use sha2::{Digest, Sha256};

use super::{About, Backend, Carrier, Entries, Families, Here, Peer, Tunnel};
use crate::data::{NodeData, VxlanData};
use crate::model::{
    DeviceKind, DeviceName, Family, NextHop, Node, PerFamily, Remote, RouteKey, State, Vxlan,
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

/// The device for an underlay of a family.
const fn tunnel(carrier: Family) -> Tunnel {
    match carrier {
        Family::V4 => Tunnel {
            device: DeviceName::new("pw-vxlan"),
            carriers: &[Family::V4],
        },
        Family::V6 => Tunnel {
            device: DeviceName::new("pw-vxlan6"),
            carriers: &[Family::V6],
        },
    }
}

/// Outer IP and UDP headers, VXLAN header, inner Ethernet header.
pub(super) const OVERHEAD: [u32; 2] = [20 + 8 + 8 + 14, 40 + 8 + 8 + 14];

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
    fn about(&self) -> About {
        About {
            name: "vxlan",
            owns: "the device pw-vxlan (pw-vxlan6 over IPv6) with its addresses, and for each peer \
                   two routes of protocol 112 and a neighbour entry a family and a forwarding entry",
            overhead: OVERHEAD,
            carrier: Carrier::Either,
        }
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
        for carrier in Family::BOTH {
            let Some(local) = here.own.address(carrier) else {
                continue;
            };
            let kind = DeviceKind::Vxlan(Vxlan {
                vni: self.vni,
                port: self.port,
                local: Some(local),
                ..Vxlan::default()
            });
            let tunnel = tunnel(carrier);
            let mut made = here.device(tunnel, self, kind)?;
            made.mac = Some(mac(&here.own.name));
            made.checksum_offload = self.checksum_offload;
            state.devices.insert(tunnel.device, made);
        }
        if state.devices.is_empty() {
            return Err(Reason::NoAddress);
        }
        Ok(())
    }

    fn send(&self, peer: &Peer<'_>, range: IpNet, entries: &mut Entries) -> Result<(), Reason> {
        let path = peer.path(self, Family::of_range(&range))?;
        let data = peer.node.data.as_ref();
        let data = data.and_then(|data| data.vxlan.as_ref());
        let data = data.ok_or(Reason::NoData)?;
        let mac = data.mac.get(path.carrier).ok_or(Reason::NoData)?;
        let tunnel = tunnel(path.carrier);
        // The same for the peer's own addresses as for its pods.
        let pods = peer.node.range(Family::of_range(&range));
        let gateway = gateway(&pods.unwrap_or(range), mac);
        let target = peer.over(tunnel, self, &range, NextHop::OnLink(gateway))?;
        let remote = Remote {
            address: path.remote,
            // The peer's own settings count: while they are being changed node
            // by node, each sends as the other receives.
            port: (data.port != self.port).then_some(data.port),
            vni: (data.vni != self.vni).then_some(data.vni),
        };
        entries.forwarding.push(((tunnel.device, mac), remote));
        entries.neighbours.push(((tunnel.device, gateway), mac));
        entries.routes.push((RouteKey::of_peer(range), target));
        Ok(())
    }
}
