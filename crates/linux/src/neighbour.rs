//! Neighbours: which hardware address answers for an IP address on a link, and
//! for which addresses this host answers itself (proxy ARP and NDP).
//!
//! Sources: rtnetlink(7), `include/uapi/linux/neighbour.h`.

use std::net::IpAddr;

use netlink_packet_core::{DecodeError, NLM_F_CREATE, NLM_F_REPLACE, Parseable};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::address::family;
use crate::mac::MacAddress;
use crate::netlink::{Error, Message, Request, Socket};

const RTM_NEWNEIGH: u16 = 28;
const RTM_DELNEIGH: u16 = 29;

/// An entry of the neighbour table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neighbour {
    /// Index of the interface.
    pub link: u32,
    /// The neighbour's address.
    pub address: IpAddr,
    /// Its hardware address, once known; none for proxy entries.
    pub mac: Option<MacAddress>,
    /// Whether the entry was set by hand and never changes by itself.
    pub permanent: bool,
    /// Whether this host answers for the address on the link.
    pub proxy: bool,
}

/// Sets a permanent entry: no question is ever asked for the address.
pub fn set_permanent(link: u32, address: IpAddr, mac: MacAddress) -> Request {
    let mut message = message(link, address);
    message.header.state = NeighbourState::Permanent;
    message
        .attributes
        .push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
    Request::route(
        format!("set the neighbour {address} on link {link} to {mac}"),
        &RouteNetlinkMessage::NewNeighbour(message),
        NLM_F_CREATE | NLM_F_REPLACE,
    )
}

/// Makes this host answer for `address` on a link. IPv6 needs the sysctl
/// `proxy_ndp` of the link as well.
pub fn set_proxy(link: u32, address: IpAddr) -> Request {
    let mut message = message(link, address);
    message.header.flags = NeighbourFlags::Proxy;
    Request::route(
        format!("answer for {address} on link {link}"),
        &RouteNetlinkMessage::NewNeighbour(message),
        NLM_F_CREATE | NLM_F_REPLACE,
    )
}

/// Lets the kernel ask by ARP or NDP who has `address` on a link, as if there
/// were a packet for it. It asks everybody when it does not know yet, and tells
/// of the answer by a notification ([`crate::events`]).
pub fn ask(link: u32, address: IpAddr) -> Request {
    let mut message = message(link, address);
    message.header.flags = NeighbourFlags::Use;
    Request::route(
        format!("ask for the neighbour {address} on link {link}"),
        &RouteNetlinkMessage::NewNeighbour(message),
        NLM_F_CREATE | NLM_F_REPLACE,
    )
}

/// Deletes an entry.
pub fn delete(link: u32, address: IpAddr) -> Request {
    Request::route(
        format!("delete the neighbour {address} on link {link}"),
        &RouteNetlinkMessage::DelNeighbour(message(link, address)),
        0,
    )
}

/// Deletes a proxy entry.
pub fn delete_proxy(link: u32, address: IpAddr) -> Request {
    let mut message = message(link, address);
    message.header.flags = NeighbourFlags::Proxy;
    Request::route(
        format!("stop answering for {address} on link {link}"),
        &RouteNetlinkMessage::DelNeighbour(message),
        0,
    )
}

fn message(link: u32, address: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(&address);
    message.header.ifindex = link;
    message
        .attributes
        .push(NeighbourAttribute::Destination(address.into()));
    message
}

/// Lists the entries of both families, of one interface or of all.
pub fn list(socket: &mut Socket, link: Option<u32>) -> Result<Vec<Neighbour>, Error> {
    dump(socket, link, NeighbourFlags::empty())
}

/// Lists the proxy entries of both families, of one interface or of all.
pub fn list_proxies(socket: &mut Socket, link: Option<u32>) -> Result<Vec<Neighbour>, Error> {
    dump(socket, link, NeighbourFlags::Proxy)
}

fn dump(
    socket: &mut Socket,
    link: Option<u32>,
    flags: NeighbourFlags,
) -> Result<Vec<Neighbour>, Error> {
    let mut message = NeighbourMessage::default();
    message.header.flags = flags;
    // Strict checking: the interface is an attribute here, not in the header,
    // and proxy dumps take no filter at all.
    if let Some(link) = link
        && flags.is_empty()
    {
        message.attributes.push(NeighbourAttribute::IfIndex(link));
    }
    let request = Request::route(
        "list neighbours",
        &RouteNetlinkMessage::GetNeighbour(message),
        0,
    );
    let mut found = socket.dump(request, decode)?;
    found.retain(|neighbour| link.is_none_or(|index| index == neighbour.link));
    Ok(found)
}

fn decode(message: Message<'_>) -> Result<Option<Neighbour>, DecodeError> {
    if message.message_type != RTM_NEWNEIGH {
        return Ok(None);
    }
    parse(message.payload)
}

/// Whether a route netlink message tells of a neighbour, and if so whether of
/// one that is there (`true`) or gone.
pub(crate) fn notification(message_type: u16) -> Option<bool> {
    match message_type {
        RTM_NEWNEIGH => Some(true),
        RTM_DELNEIGH => Some(false),
        _ => None,
    }
}

/// `None` for families other than IP (a bridge's forwarding table).
pub(crate) fn parse(payload: &[u8]) -> Result<Option<Neighbour>, DecodeError> {
    let message = NeighbourMessage::parse(payload)?;
    if !matches!(
        message.header.family,
        AddressFamily::Inet | AddressFamily::Inet6
    ) {
        return Ok(None);
    }
    let mut address = None;
    let mut mac = None;
    for attribute in message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => {
                address = Some(IpAddr::from(ip));
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => {
                address = Some(IpAddr::from(ip));
            }
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = MacAddress::from_slice(&bytes),
            _ => {}
        }
    }
    Ok(address.map(|address| Neighbour {
        link: message.header.ifindex,
        address,
        mac,
        permanent: message.header.state == NeighbourState::Permanent,
        proxy: message.header.flags.contains(NeighbourFlags::Proxy),
    }))
}
