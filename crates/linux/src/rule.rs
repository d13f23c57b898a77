//! Policy rules: which routing table is looked into for which packets.
//!
//! Sources: ip-rule(8), `include/uapi/linux/fib_rules.h`.

use std::fmt;

use ipnet::IpNet;
use netlink_packet_core::{DecodeError, NLM_F_CREATE, NLM_F_EXCL, Parseable};
use netlink_packet_route::route::RouteProtocol;
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleHeader, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::address::family;
use crate::netlink::{Error, Message, Request, Socket};

const RTM_NEWRULE: u16 = 32;
const RTM_DELRULE: u16 = 33;

/// A rule that sends packets with a source address of a range to a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Rule {
    /// Rules are gone through by this, lowest first: 0 is that of the kernel's
    /// local table, 32766 that of the main one.
    pub priority: u32,
    /// The range the packets' source is in.
    pub from: IpNet,
    /// The table looked into. When it has no route, the next rule counts.
    pub table: u32,
    /// Who made it (`RTPROT_*`).
    pub protocol: u8,
    /// Whether it does exactly what the other fields say. False for one that asks
    /// for more or does something else.
    pub plain: bool,
}

impl Rule {
    /// A rule of podwire's.
    pub fn new(priority: u32, from: IpNet, table: u32) -> Self {
        Self {
            priority,
            from: from.trunc(),
            table,
            protocol: crate::PODWIRE_ROUTE_PROTOCOL,
            plain: true,
        }
    }

    fn message(&self) -> RuleMessage {
        let mut message = RuleMessage::default();
        let source = self.from.addr();
        message.header.family = family(&source);
        message.header.src_len = self.from.prefix_len();
        message.header.action = RuleAction::ToTable;
        message.header.table = u8::try_from(self.table).unwrap_or(TABLE_UNSPECIFIED);
        if self.from.prefix_len() > 0 {
            message.attributes.push(RuleAttribute::Source(source));
        }
        message.attributes.extend([
            RuleAttribute::Priority(self.priority),
            RuleAttribute::Table(self.table),
            RuleAttribute::Protocol(RouteProtocol::from(self.protocol)),
        ]);
        message
    }
}

/// `RT_TABLE_UNSPEC`: the number does not fit the header, an attribute has it.
const TABLE_UNSPECIFIED: u8 = 0;

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Rule {
            priority,
            from,
            table,
            ..
        } = self;
        write!(f, "{priority}: from {from} lookup {table}")
    }
}

/// Adds a rule; fails when the same is there already.
pub fn add(rule: &Rule) -> Request {
    Request::route(
        format!("add rule {rule}"),
        &RouteNetlinkMessage::NewRule(rule.message()),
        NLM_F_CREATE | NLM_F_EXCL,
    )
}

/// Deletes the first rule that agrees in all fields.
pub fn delete(rule: &Rule) -> Request {
    Request::route(
        format!("delete rule {rule}"),
        &RouteNetlinkMessage::DelRule(rule.message()),
        0,
    )
}

/// Lists podwire's own rules of both families.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn list_own(socket: &mut Socket) -> Result<Vec<Rule>, Error> {
    let mut found = list(socket)?;
    found.retain(|rule| rule.protocol == crate::PODWIRE_ROUTE_PROTOCOL);
    Ok(found)
}

/// Who made a rule (`RTPROT_KERNEL`) that leads to the tables every node has, or to
/// those of VRF devices.
pub const KERNEL: u8 = 2;

/// Lists all rules of both families.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn list(socket: &mut Socket) -> Result<Vec<Rule>, Error> {
    let mut found = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut message = RuleMessage::default();
        message.header.family = family;
        let request = Request::route("list rules", &RouteNetlinkMessage::GetRule(message), 0);
        match socket.dump(request, decode) {
            Ok(rules) => found.extend(rules),
            // A kernel without policy rules for the family has none.
            Err(error) if error.not_supported() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

fn decode(message: Message<'_>) -> Result<Option<Rule>, DecodeError> {
    if message.message_type != RTM_NEWRULE {
        return Ok(None);
    }
    parse(message.payload)
}

/// Whether a route netlink message tells of a rule, and if so whether of one
/// that is there (`true`) or gone.
pub(crate) fn notification(message_type: u16) -> Option<bool> {
    match message_type {
        RTM_NEWRULE => Some(true),
        RTM_DELRULE => Some(false),
        _ => None,
    }
}

/// `None` for families other than IP.
pub(crate) fn parse(payload: &[u8]) -> Result<Option<Rule>, DecodeError> {
    let RuleMessage {
        header, attributes, ..
    } = RuleMessage::parse(payload)?;
    let Some(any) = any(&header) else {
        return Ok(None);
    };
    let mut rule = Rule {
        priority: 0,
        from: any,
        table: u32::from(header.table),
        protocol: 0,
        plain: header.action == RuleAction::ToTable
            && header.flags.is_empty()
            && (header.dst_len, header.tos) == (0, 0),
    };
    for attribute in attributes {
        match attribute {
            RuleAttribute::Source(address) => match IpNet::new(address, header.src_len) {
                Ok(range) => rule.from = range,
                Err(_) => rule.plain = false,
            },
            RuleAttribute::Priority(priority) => rule.priority = priority,
            RuleAttribute::Table(table) => rule.table = table,
            RuleAttribute::Protocol(protocol) => rule.protocol = protocol.into(),
            // The kernel tells this of all: nothing is suppressed.
            RuleAttribute::SuppressPrefixLen(u32::MAX) => {}
            _ => rule.plain = false,
        }
    }
    Ok(Some(rule))
}

/// All addresses of a rule's family.
fn any(header: &RuleHeader) -> Option<IpNet> {
    let any: std::net::IpAddr = match header.family {
        AddressFamily::Inet => std::net::Ipv4Addr::UNSPECIFIED.into(),
        AddressFamily::Inet6 => std::net::Ipv6Addr::UNSPECIFIED.into(),
        _ => return None,
    };
    IpNet::new(any, 0).ok()
}
