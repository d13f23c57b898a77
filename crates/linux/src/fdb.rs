//! Forwarding tables of bridges and VXLAN devices: where frames for an Ethernet
//! address are sent.
//!
//! Sources: `include/uapi/linux/neighbour.h`, bridge(8).

use std::net::IpAddr;

use netlink_packet_core::{DecodeError, NLM_F_CREATE, NLM_F_REPLACE, NlasIterator};
use netlink_packet_route::neighbour::{
    NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::mac::MacAddress;
use crate::netlink::{Error, Message, Request, Socket};
use crate::tunnel::ip;

const RTM_NEWNEIGH: u16 = 28;
/// Length of `struct ndmsg`.
const HEADER: usize = 12;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NDA_PORT: u16 = 6;
const NDA_VNI: u16 = 7;
const NDA_MASTER: u16 = 9;
const NUD_NOARP: u16 = 0x40;
const NUD_PERMANENT: u16 = 0x80;
const NTF_SELF: u8 = 0x02;

/// The other end of a VXLAN tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Remote {
    /// Its address on the underlay.
    pub address: IpAddr,
    /// Its UDP port; the device's own when absent.
    pub port: Option<u16>,
    /// Its VXLAN network identifier; the device's own when absent.
    pub vni: Option<u32>,
}

/// How long an entry lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lifetime {
    /// Until it is deleted (`permanent`, `static`).
    Permanent,
    /// Learned from a frame; ages.
    Learned,
}

/// An entry of a forwarding table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Index of the VXLAN device, or of the bridge's port.
    pub link: u32,
    /// Index of the bridge, for entries of a bridge's table.
    pub bridge: Option<u32>,
    /// Destination of frames; all zero: any other.
    pub mac: MacAddress,
    /// Where frames are tunnelled to, for entries of a VXLAN device's table.
    pub remote: Option<Remote>,
    /// How long it lasts.
    pub lifetime: Lifetime,
    /// Whether it is in the device's own table (`NTF_SELF`), not in its bridge's.
    pub of_device: bool,
}

/// Sends frames for `mac` on the VXLAN device `link` to `remote`, for good.
/// Replaces what the entry said before.
pub fn set(link: u32, mac: MacAddress, remote: Remote) -> Request {
    let mut message = message(link, mac);
    message.header.state = NeighbourState::Other(NUD_PERMANENT | NUD_NOARP);
    let attributes = &mut message.attributes;
    attributes.push(NeighbourAttribute::Destination(remote.address.into()));
    if let Some(port) = remote.port {
        attributes.push(NeighbourAttribute::Port(port));
    }
    if let Some(vni) = remote.vni {
        attributes.push(NeighbourAttribute::Vni(vni));
    }
    Request::route(
        format!("send frames for {mac} on link {link} to {}", remote.address),
        &RouteNetlinkMessage::NewNeighbour(message),
        NLM_F_CREATE | NLM_F_REPLACE,
    )
}

/// Deletes the entry of `mac` from the table of the VXLAN device `link`.
pub fn delete(link: u32, mac: MacAddress) -> Request {
    Request::route(
        format!("delete the forwarding entry of {mac} on link {link}"),
        &RouteNetlinkMessage::DelNeighbour(message(link, mac)),
        0,
    )
}

fn message(link: u32, mac: MacAddress) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = link;
    message.header.flags = NeighbourFlags::Own;
    message
        .attributes
        .push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
    message
}

/// Lists forwarding entries: of one device (its own table, and as a port that
/// of its bridge), or of all.
pub fn list(socket: &mut Socket, link: Option<u32>) -> Result<Vec<Entry>, Error> {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    if let Some(link) = link {
        message.header.ifindex = link;
    }
    let request = Request::route(
        "list forwarding entries",
        &RouteNetlinkMessage::GetNeighbour(message),
        0,
    );
    let mut found = socket.dump(request, decode)?;
    found.retain(|entry| link.is_none_or(|index| index == entry.link));
    Ok(found)
}

fn decode(message: Message<'_>) -> Result<Option<Entry>, DecodeError> {
    if message.message_type != RTM_NEWNEIGH {
        return Ok(None);
    }
    parse(message.payload)
}

/// `None` for messages of other families (neighbours).
pub(crate) fn parse(payload: &[u8]) -> Result<Option<Entry>, DecodeError> {
    let Some((header, attributes)) = payload.split_first_chunk::<HEADER>() else {
        return Err(DecodeError::from(
            "a neighbour message shorter than its header",
        ));
    };
    if header[0] != u8::from(AddressFamily::Bridge) {
        return Ok(None);
    }
    let state = u16::from_ne_bytes([header[8], header[9]]);
    let (mut mac, mut address, mut port, mut vni, mut bridge) = (None, None, None, None, None);
    for attribute in NlasIterator::new(attributes) {
        let attribute = attribute?;
        let value = attribute.value();
        match attribute.kind() {
            NDA_LLADDR => mac = MacAddress::from_slice(value),
            NDA_DST => address = ip(value),
            NDA_PORT => port = Some(netlink_packet_core::parse_u16_be(value)?),
            NDA_VNI => vni = Some(netlink_packet_core::parse_u32(value)?),
            NDA_MASTER => bridge = Some(netlink_packet_core::parse_u32(value)?),
            _ => {}
        }
    }
    // Entries of nexthop groups and of devices that are not Ethernet.
    let Some(mac) = mac else {
        return Ok(None);
    };
    Ok(Some(Entry {
        link: netlink_packet_core::parse_u32(&header[4..8])?,
        bridge,
        mac,
        remote: address.map(|address| Remote { address, port, vni }),
        lifetime: if state & (NUD_PERMANENT | NUD_NOARP) == 0 {
            Lifetime::Learned
        } else {
            Lifetime::Permanent
        },
        of_device: header[10] & NTF_SELF != 0,
    }))
}
