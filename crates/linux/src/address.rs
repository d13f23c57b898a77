//! Addresses of interfaces.
//!
//! Sources: rtnetlink(7), `include/uapi/linux/if_addr.h`.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};
use netlink_packet_core::{DecodeError, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, Parseable};
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::events::{self, Group};
use crate::netlink::{Error, Message, Request, Socket};
use crate::route;

const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;

/// An address of an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// Index of the interface.
    pub link: u32,
    /// The address with its prefix length (host bits kept).
    pub address: IpNet,
    /// Whether the kernel makes no route for the prefix.
    pub no_prefix_route: bool,
    /// IPv6: whether duplicate-address detection is skipped. Without this an
    /// address cannot be used for about a second.
    pub no_dad: bool,
    /// IPv6: whether duplicate-address detection is still going on.
    pub tentative: bool,
}

impl Address {
    /// An address that can be used at once: without duplicate-address
    /// detection, with the kernel's route for its prefix.
    pub fn new(link: u32, address: IpNet) -> Self {
        Self {
            link,
            address,
            no_prefix_route: false,
            no_dad: true,
            tentative: false,
        }
    }

    /// The same without the kernel's route for its prefix.
    pub fn without_prefix_route(mut self) -> Self {
        self.no_prefix_route = true;
        self
    }

    fn message(&self) -> AddressMessage {
        let mut message = AddressMessage::default();
        let ip = self.address.addr();
        message.header.family = family(&ip);
        message.header.prefix_len = self.address.prefix_len();
        message.header.index = self.link;
        message.header.scope = scope(&ip);
        message.attributes.push(AddressAttribute::Address(ip));
        message.attributes.push(AddressAttribute::Local(ip));
        message
    }
}

/// Adds an address. Fails when the interface has it already.
pub fn add(address: &Address) -> Request {
    set(address, NLM_F_CREATE | NLM_F_EXCL)
}

/// Adds an address, or changes the flags of an existing one.
pub fn replace(address: &Address) -> Request {
    set(address, NLM_F_CREATE | NLM_F_REPLACE)
}

fn set(address: &Address, flags: u16) -> Request {
    let mut message = address.message();
    let mut set = AddressFlags::empty();
    if address.no_dad {
        set |= AddressFlags::Nodad;
    }
    if address.no_prefix_route {
        set |= AddressFlags::Noprefixroute;
    }
    // The header holds the low eight flags, the attribute all; the attribute
    // alone would do, and older readers look at the header.
    message.header.flags =
        AddressHeaderFlags::from_bits_truncate(u8::try_from(set.bits() & 0xff).unwrap_or(0));
    message.attributes.push(AddressAttribute::Flags(set));
    if let IpNet::V4(net) = address.address
        && let Some(broadcast) = broadcast(net)
    {
        message
            .attributes
            .push(AddressAttribute::Broadcast(broadcast));
    }
    Request::route(
        format!("add address {} to link {}", address.address, address.link),
        &RouteNetlinkMessage::NewAddress(message),
        flags,
    )
}

/// Deletes an address of an interface.
pub fn delete(link: u32, address: IpNet) -> Request {
    Request::route(
        format!("delete address {address} from link {link}"),
        &RouteNetlinkMessage::DelAddress(Address::new(link, address).message()),
        0,
    )
}

/// Waits until packets to `addresses` of the interface are delivered: `false`
/// when they are not before the deadline. The kernel makes the local route of
/// an IPv6 address in the background, even without duplicate-address
/// detection; what arrives before is lost.
///
/// Call it on a thread that is in the socket's namespace.
pub fn wait_until_usable(
    socket: &mut Socket,
    link: u32,
    addresses: &[IpAddr],
    deadline: Duration,
) -> Result<bool, Error> {
    events::wait_for(&[Group::Routes6], deadline, || {
        are_usable(socket, link, addresses)
    })
}

/// Whether packets to `addresses` of the interface are delivered.
pub fn are_usable(socket: &mut Socket, link: u32, addresses: &[IpAddr]) -> Result<bool, Error> {
    // Routes of IPv4 addresses are made with the address.
    for address in addresses.iter().filter(|address| address.is_ipv6()) {
        let route = route::to(socket, *address)?;
        if !route.is_some_and(|route| {
            route.kind == route::Kind::Local
                && route.link == Some(link)
                && route.destination == IpNet::from(*address)
        }) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Lists addresses of both families, of one interface or of all.
pub fn list(socket: &mut Socket, link: Option<u32>) -> Result<Vec<Address>, Error> {
    let mut message = AddressMessage::default();
    message.header.index = link.unwrap_or(0);
    let request = Request::route(
        "list addresses",
        &RouteNetlinkMessage::GetAddress(message),
        0,
    );
    let mut found = socket.dump(request, decode)?;
    found.retain(|address| link.is_none_or(|index| index == address.link));
    Ok(found)
}

fn decode(message: Message<'_>) -> Result<Option<Address>, DecodeError> {
    if message.message_type != RTM_NEWADDR {
        return Ok(None);
    }
    parse(message.payload)
}

/// Whether a route netlink message tells of an address, and if so whether of
/// one that is there (`true`) or gone.
pub(crate) fn notification(message_type: u16) -> Option<bool> {
    match message_type {
        RTM_NEWADDR => Some(true),
        RTM_DELADDR => Some(false),
        _ => None,
    }
}

pub(crate) fn parse(payload: &[u8]) -> Result<Option<Address>, DecodeError> {
    let message = AddressMessage::parse(payload)?;
    let mut prefix = None;
    let mut local = None;
    let mut flags = AddressFlags::from_bits_retain(u32::from(message.header.flags.bits()));
    for attribute in message.attributes {
        match attribute {
            AddressAttribute::Address(address) => prefix = Some(address),
            AddressAttribute::Local(address) => local = Some(address),
            AddressAttribute::Flags(all) => flags = all,
            _ => {}
        }
    }
    // IPv6 gives IFA_ADDRESS alone; IPv4 gives both, which differ on
    // point-to-point links, where the local one is the interface's own.
    let Some(ip) = local.or(prefix) else {
        return Ok(None);
    };
    let Ok(address) = IpNet::new(ip, message.header.prefix_len) else {
        return Ok(None);
    };
    Ok(Some(Address {
        link: message.header.index,
        address,
        no_prefix_route: flags.contains(AddressFlags::Noprefixroute),
        no_dad: flags.contains(AddressFlags::Nodad),
        tentative: flags.contains(AddressFlags::Tentative),
    }))
}

pub(crate) fn family(ip: &IpAddr) -> AddressFamily {
    match ip {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

fn scope(ip: &IpAddr) -> AddressScope {
    match ip {
        IpAddr::V4(ip) if ip.is_loopback() => AddressScope::Host,
        IpAddr::V4(ip) if ip.is_link_local() => AddressScope::Link,
        IpAddr::V6(ip) if ip.is_unicast_link_local() => AddressScope::Link,
        _ => AddressScope::Universe,
    }
}

fn broadcast(net: Ipv4Net) -> Option<Ipv4Addr> {
    (net.prefix_len() < 31 && !net.addr().is_loopback()).then(|| net.broadcast())
}
