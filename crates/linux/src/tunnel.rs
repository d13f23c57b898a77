//! Tunnel devices: VXLAN, IP-in-IP, IPv6 tunnels, WireGuard.
//!
//! Sources: `include/uapi/linux/if_link.h`, `include/uapi/linux/if_tunnel.h`,
//! RFC 7348 (VXLAN), RFC 2003 (IPv4 in IPv4), RFC 2473 (IPv6 tunnels).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_core::{DecodeError, NLM_F_CREATE, NLM_F_EXCL, NlasIterator};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoData, InfoIpTunnel, InfoKind, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};

use crate::mac::MacAddress;
use crate::netlink::Request;

const IFLA_VXLAN_ID: u16 = 1;
const IFLA_VXLAN_GROUP: u16 = 2;
const IFLA_VXLAN_LINK: u16 = 3;
const IFLA_VXLAN_LOCAL: u16 = 4;
const IFLA_VXLAN_TTL: u16 = 5;
const IFLA_VXLAN_LEARNING: u16 = 7;
const IFLA_VXLAN_PORT: u16 = 15;
const IFLA_VXLAN_GROUP6: u16 = 16;
const IFLA_VXLAN_LOCAL6: u16 = 17;
const IFLA_VXLAN_UDP_CSUM: u16 = 18;
const IFLA_VXLAN_UDP_ZERO_CSUM6_TX: u16 = 19;
const IFLA_VXLAN_UDP_ZERO_CSUM6_RX: u16 = 20;
const IFLA_VXLAN_COLLECT_METADATA: u16 = 25;
const IFLA_VXLAN_GPE: u16 = 27;
const IFLA_IPTUN_LOCAL: u16 = 2;
const IFLA_IPTUN_REMOTE: u16 = 3;
const IFLA_IPTUN_TTL: u16 = 4;
const IFLA_IPTUN_COLLECT_METADATA: u16 = 19;

/// `IPPROTO_IPV6`: what an IPv6-in-IPv6 tunnel carries.
const IP6_IN_IP6: u8 = 41;

/// What a tunnel device is and how it is set. Two devices with equal settings
/// are the same to the kernel, but for name, addresses and MTU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Tunnel {
    /// Ethernet (or, with the generic protocol extension, IP) in UDP.
    Vxlan(Vxlan),
    /// IPv4 in IPv4.
    Ipip(Ipip),
    /// IPv6 in IPv6 in external mode: lightweight-tunnel routes say where a
    /// packet goes. (The kernel takes no gateway on another device than the
    /// one it is on, even as onlink, so routes cannot say it as for [`Ipip`].)
    /// One in a namespace. It adds no encapsulation limit option (RFC 2473,
    /// section 4.1.1), which would take 8 bytes.
    Ip6Tunnel,
    /// WireGuard. Keys, port and peers are set by generic netlink afterwards.
    Wireguard,
}

/// A VXLAN device. The default has nothing set and everything off.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Vxlan {
    /// VXLAN network identifier, 24 bits. 0 in external mode, where routes give it.
    pub vni: u32,
    /// UDP port the device receives on and sends to.
    pub port: u16,
    /// Source address of outer packets. Its family is the underlay's: without
    /// one and without a group it is IPv4 (in external mode both).
    pub local: Option<IpAddr>,
    /// Multicast group joined, and the destination of frames for addresses not
    /// in the forwarding table. Needs `parent`.
    pub group: Option<IpAddr>,
    /// Index of the interface outer packets leave by; any when absent.
    pub parent: Option<u32>,
    /// Hop limit of outer packets. 0: the host's default (1 for multicast).
    pub ttl: u8,
    /// Whether the forwarding table learns from what is received.
    pub learning: bool,
    /// External mode: destination and VNI come with each packet from a
    /// lightweight-tunnel route (`IFLA_VXLAN_COLLECT_METADATA`).
    pub external: bool,
    /// Generic protocol extension (draft-ietf-nvo3-vxlan-gpe): carries IP packets
    /// without Ethernet headers.
    pub gpe: bool,
    /// UDP checksums over IPv4. RFC 7348: should be absent.
    pub udp_checksum: bool,
    /// No UDP checksums over IPv6, sent and accepted (RFC 6935).
    pub zero_checksum6: bool,
}

/// An IPv4-in-IPv4 device without a fixed remote end: the gateway of a route is
/// the remote end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ipip {
    /// Source address of outer packets, and which of them it takes.
    pub local: Ipv4Addr,
    /// Hop limit of outer packets.
    pub ttl: u8,
}

impl Tunnel {
    /// The kernel's name of the kind (`ip link add … type KIND`).
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Vxlan(_) => "vxlan",
            Self::Ipip(_) => "ipip",
            Self::Ip6Tunnel => "ip6tnl",
            Self::Wireguard => "wireguard",
        }
    }

    fn info(&self) -> Vec<LinkInfo> {
        match self {
            Self::Vxlan(vxlan) => vec![
                LinkInfo::Kind(InfoKind::Vxlan),
                LinkInfo::Data(InfoData::Vxlan(vxlan.info())),
            ],
            Self::Ipip(ipip) => vec![
                LinkInfo::Kind(InfoKind::IpIp),
                LinkInfo::Data(InfoData::IpTunnel(vec![
                    InfoIpTunnel::Local(ipip.local.into()),
                    InfoIpTunnel::Ttl(ipip.ttl),
                    // Path MTU discovery: the outer header says "don't fragment".
                    InfoIpTunnel::PMtuDisc(true),
                ])),
            ],
            Self::Ip6Tunnel => vec![
                LinkInfo::Kind(InfoKind::Ip6Tnl),
                LinkInfo::Data(InfoData::IpTunnel(vec![
                    InfoIpTunnel::Protocol(IP6_IN_IP6.into()),
                    InfoIpTunnel::CollectMetadata,
                ])),
            ],
            Self::Wireguard => vec![LinkInfo::Kind(InfoKind::Wireguard)],
        }
    }
}

impl Vxlan {
    fn info(&self) -> Vec<InfoVxlan> {
        let mut info = vec![
            InfoVxlan::Id(self.vni),
            InfoVxlan::Port(self.port),
            InfoVxlan::Ttl(self.ttl),
            InfoVxlan::Learning(self.learning),
            InfoVxlan::UDPCsum(self.udp_checksum),
            InfoVxlan::UDPZeroCsumTX(self.zero_checksum6),
            InfoVxlan::UDPZeroCsumRX(self.zero_checksum6),
        ];
        match self.local {
            Some(IpAddr::V4(local)) => info.push(InfoVxlan::Local(local)),
            Some(IpAddr::V6(local)) => info.push(InfoVxlan::Local6(local)),
            None => {}
        }
        match self.group {
            Some(IpAddr::V4(group)) => info.push(InfoVxlan::Group(group)),
            Some(IpAddr::V6(group)) => info.push(InfoVxlan::Group6(group)),
            None => {}
        }
        if let Some(parent) = self.parent {
            info.push(InfoVxlan::Link(parent));
        }
        if self.external {
            info.push(InfoVxlan::CollectMetadata(true));
        }
        if self.gpe {
            info.push(InfoVxlan::Gpe);
        }
        info
    }
}

impl fmt::Display for Tunnel {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vxlan(vxlan) => {
                write!(formatter, "vxlan id {} port {}", vxlan.vni, vxlan.port)?;
                if let Some(local) = vxlan.local {
                    write!(formatter, " local {local}")?;
                }
                if let Some(group) = vxlan.group {
                    write!(formatter, " group {group}")?;
                }
                if vxlan.external {
                    formatter.write_str(" external")?;
                }
                if vxlan.gpe {
                    formatter.write_str(" gpe")?;
                }
                Ok(())
            }
            Self::Ipip(ipip) => write!(formatter, "ipip local {}", ipip.local),
            Self::Ip6Tunnel => formatter.write_str("ip6tnl external"),
            Self::Wireguard => formatter.write_str("wireguard"),
        }
    }
}

/// Makes a tunnel device that is down. `mtu` is in bytes, without the tunnel's
/// own headers; `mac` of Ethernet-like kinds, a random one when absent. A kernel
/// without the kind answers with [`crate::netlink::Error::Missing`].
pub fn add(name: &str, tunnel: &Tunnel, mtu: u32, mac: Option<MacAddress>) -> Request {
    let mut message = LinkMessage::default();
    message.header.change_mask = LinkFlags::Up;
    let attributes = &mut message.attributes;
    attributes.push(LinkAttribute::IfName(name.to_owned()));
    attributes.push(LinkAttribute::Mtu(mtu));
    if let Some(mac) = mac {
        attributes.push(LinkAttribute::Address(mac.0.to_vec()));
    }
    attributes.push(LinkAttribute::LinkInfo(tunnel.info()));
    let (feature, module) = match tunnel {
        Tunnel::Vxlan(_) => ("VXLAN devices", "vxlan"),
        Tunnel::Ipip(_) => ("IP-in-IP devices", "ipip"),
        Tunnel::Ip6Tunnel => ("IPv6 tunnel devices", "ip6_tunnel"),
        Tunnel::Wireguard => ("WireGuard devices", "wireguard"),
    };
    Request::route(
        format!("make the tunnel device {name} ({tunnel})"),
        &RouteNetlinkMessage::NewLink(message),
        NLM_F_CREATE | NLM_F_EXCL,
    )
    .needing(feature, module)
}

/// Decodes `IFLA_INFO_DATA` of a kind; `None` for kinds that are no tunnels,
/// and for tunnels with a fixed remote end, which podwire does not make.
pub(crate) fn parse(kind: &str, data: &[u8]) -> Result<Option<Tunnel>, DecodeError> {
    Ok(match kind {
        "vxlan" => Some(Tunnel::Vxlan(parse_vxlan(data)?)),
        "ipip" => parse_ip_tunnel(data)?.and_then(|(local, ttl)| match local {
            IpAddr::V4(local) => Some(Tunnel::Ipip(Ipip { local, ttl })),
            IpAddr::V6(_) => None,
        }),
        "ip6tnl" => is_external(data)?.then_some(Tunnel::Ip6Tunnel),
        "wireguard" => Some(Tunnel::Wireguard),
        _ => None,
    })
}

fn parse_vxlan(data: &[u8]) -> Result<Vxlan, DecodeError> {
    let mut vxlan = Vxlan::default();
    for attribute in NlasIterator::new(data) {
        let attribute = attribute?;
        let value = attribute.value();
        let on = value.first().is_some_and(|byte| *byte != 0);
        match attribute.kind() {
            IFLA_VXLAN_ID => vxlan.vni = netlink_packet_core::parse_u32(value)?,
            IFLA_VXLAN_GROUP | IFLA_VXLAN_GROUP6 => vxlan.group = ip(value),
            IFLA_VXLAN_LOCAL | IFLA_VXLAN_LOCAL6 => vxlan.local = ip(value),
            IFLA_VXLAN_LINK => vxlan.parent = Some(netlink_packet_core::parse_u32(value)?),
            IFLA_VXLAN_TTL => vxlan.ttl = value.first().copied().unwrap_or(0),
            IFLA_VXLAN_LEARNING => vxlan.learning = on,
            IFLA_VXLAN_PORT => vxlan.port = netlink_packet_core::parse_u16_be(value)?,
            IFLA_VXLAN_UDP_CSUM => vxlan.udp_checksum = on,
            IFLA_VXLAN_UDP_ZERO_CSUM6_TX => vxlan.zero_checksum6 = on,
            IFLA_VXLAN_UDP_ZERO_CSUM6_RX if !on => vxlan.zero_checksum6 = false,
            IFLA_VXLAN_COLLECT_METADATA => vxlan.external = on,
            IFLA_VXLAN_GPE => vxlan.gpe = true,
            _ => {}
        }
    }
    Ok(vxlan)
}

/// Local end and hop limit of a tunnel whose remote end is open.
fn parse_ip_tunnel(data: &[u8]) -> Result<Option<(IpAddr, u8)>, DecodeError> {
    let (mut local, mut remote, mut ttl) = (None, None, 0);
    for attribute in NlasIterator::new(data) {
        let attribute = attribute?;
        let value = attribute.value();
        match attribute.kind() {
            IFLA_IPTUN_LOCAL => local = ip(value),
            IFLA_IPTUN_REMOTE => remote = ip(value),
            IFLA_IPTUN_TTL => ttl = value.first().copied().unwrap_or(0),
            _ => {}
        }
    }
    let open = remote.is_none_or(|remote: IpAddr| remote.is_unspecified());
    Ok(local.filter(|_| open).map(|local| (local, ttl)))
}

fn is_external(data: &[u8]) -> Result<bool, DecodeError> {
    for attribute in NlasIterator::new(data) {
        if attribute?.kind() == IFLA_IPTUN_COLLECT_METADATA {
            return Ok(true);
        }
    }
    Ok(false)
}

/// An address attribute: 4 or 16 bytes.
pub(crate) fn ip(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(four) = <[u8; 4]>::try_from(bytes) {
        return Some(Ipv4Addr::from(four).into());
    }
    <[u8; 16]>::try_from(bytes)
        .ok()
        .map(|sixteen| Ipv6Addr::from(sixteen).into())
}
