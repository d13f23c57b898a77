//! Routes of both families.
//!
//! Sources: rtnetlink(7), `include/uapi/linux/rtnetlink.h`.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{
    DecodeError, NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, Parseable,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteIp6Tunnel, RouteIp6TunnelFlags,
    RouteIpTunnel, RouteIpTunnelFlags, RouteLwEnCapType, RouteLwTunnelEncap, RouteMessage,
    RouteMetric, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rustix::io::Errno;

use crate::address::family;
use crate::netlink::{Error, Message, Request, Socket};

const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;

/// The main routing table (`RT_TABLE_MAIN`).
pub const TABLE_MAIN: u32 = 254;
/// The kernel's own table of local addresses (`RT_TABLE_LOCAL`).
pub const TABLE_LOCAL: u32 = 255;

/// What happens to packets a route matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum Kind {
    /// They are sent on.
    #[default]
    Unicast,
    /// They are delivered here.
    Local,
    /// They vanish.
    Blackhole,
    /// They are refused with "host unreachable".
    Unreachable,
    /// They are refused with "administratively prohibited".
    Prohibit,
    /// Any other `RTN_*`.
    Other(u8),
}

/// How far away a route's destination is (`RT_SCOPE_*`, IPv4 only).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum Scope {
    /// Anywhere.
    #[default]
    Global,
    /// On a directly attached link.
    Link,
    /// On this host.
    Host,
    /// Any other number.
    Other(u8),
}

impl Scope {
    /// The number of [`Self::Link`], `RT_SCOPE_LINK`; from it on there is no next hop.
    pub const LINK: u8 = 253;

    /// The scope of a number.
    pub fn from_number(number: u8) -> Self {
        RouteScope::from(number).into()
    }

    /// Its number.
    pub fn number(self) -> u8 {
        RouteScope::from(self).into()
    }
}

/// A lightweight tunnel: the outer header a route gives its packets, for a
/// device in external mode (`include/uapi/linux/lwtunnel.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Encapsulation {
    /// Key of the tunnel (for VXLAN the network identifier).
    pub id: u64,
    /// The other end.
    pub remote: IpAddr,
    /// Whether the outer UDP header has a checksum. IPv6 receivers drop packets
    /// without unless told otherwise.
    pub checksum: bool,
}

/// A route. IPv6 fills in some fields when it lists a route: scope is always
/// global there, and the metric of a route added without one is 1024.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Route {
    /// Destination; `0.0.0.0/0` and `::/0` are default routes.
    pub destination: IpNet,
    /// Next hop, of the same family.
    pub gateway: Option<IpAddr>,
    /// Index of the outgoing interface.
    pub link: Option<u32>,
    /// Source address preferred for packets that originate here.
    pub source: Option<IpAddr>,
    /// Whether the gateway counts as reachable on `link` though no route says so.
    pub onlink: bool,
    /// Largest packet in bytes; the interface's when absent.
    pub mtu: Option<u32>,
    /// Largest TCP segment in bytes told to the other end; worked out of the MTU when
    /// absent.
    pub advmss: Option<u32>,
    /// Priority among routes to the same destination, lowest first.
    pub metric: Option<u32>,
    /// Routing table.
    pub table: u32,
    /// Who made it (`RTPROT_*`): [`crate::PODWIRE_ROUTE_PROTOCOL`] is podwire.
    pub protocol: u8,
    /// What it does.
    pub kind: Kind,
    /// Scope.
    pub scope: Scope,
    /// The outer header packets get.
    pub encapsulation: Option<Encapsulation>,
}

impl Route {
    /// A route of podwire's to `destination` in the main table; set the next
    /// hop with [`Self::via`], [`Self::dev`], or both.
    pub fn to(destination: IpNet) -> Self {
        Self {
            destination: destination.trunc(),
            gateway: None,
            link: None,
            source: None,
            onlink: false,
            mtu: None,
            advmss: None,
            metric: None,
            table: TABLE_MAIN,
            protocol: crate::PODWIRE_ROUTE_PROTOCOL,
            kind: Kind::Unicast,
            scope: Scope::Global,
            encapsulation: None,
        }
    }

    /// A default route of podwire's.
    pub fn default_of(gateway: IpAddr) -> Self {
        let any: IpAddr = match gateway {
            IpAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
        };
        Self::to(IpNet::new(any, 0).expect("zero is a prefix length of both families")).via(gateway)
    }

    /// Sends packets to `gateway`.
    pub fn via(mut self, gateway: IpAddr) -> Self {
        self.gateway = Some(gateway);
        self.scope = Scope::Global;
        self
    }

    /// Sends packets out of the interface with index `link`. Without a
    /// gateway the destination counts as attached to the link.
    pub fn dev(mut self, link: u32) -> Self {
        self.link = Some(link);
        if self.gateway.is_none() && self.destination.addr().is_ipv4() {
            self.scope = Scope::Link;
        }
        self
    }

    /// Takes the gateway as reachable on the route's link.
    pub fn onlink(mut self) -> Self {
        self.onlink = true;
        self
    }

    /// Prefers `source` for packets that originate here.
    pub fn source(mut self, source: IpAddr) -> Self {
        self.source = Some(source);
        self
    }

    /// Limits packets to `mtu` bytes.
    pub fn mtu(mut self, mtu: u32) -> Self {
        self.mtu = Some(mtu);
        self
    }

    /// Gives packets an outer header.
    pub fn encapsulated(mut self, encapsulation: Encapsulation) -> Self {
        self.encapsulation = Some(encapsulation);
        self
    }

    /// Sets the priority, lowest first.
    pub fn metric(mut self, metric: u32) -> Self {
        self.metric = Some(metric);
        self
    }

    /// Puts it into another table.
    pub fn table(mut self, table: u32) -> Self {
        self.table = table;
        self
    }

    /// Marks it as made by another protocol.
    pub fn protocol(mut self, protocol: u8) -> Self {
        self.protocol = protocol;
        self
    }

    /// Makes packets to the destination vanish (or be refused).
    pub fn kind(mut self, kind: Kind) -> Self {
        self.kind = kind;
        self
    }

    fn message(&self) -> RouteMessage {
        let mut message = RouteMessage::default();
        let destination = self.destination.addr();
        message.header.address_family = family(&destination);
        message.header.destination_prefix_length = self.destination.prefix_len();
        message.header.table = u8::try_from(self.table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC);
        message.header.protocol = RouteProtocol::from(self.protocol);
        message.header.kind = self.kind.into();
        message.header.scope = self.scope.into();
        let attributes = &mut message.attributes;
        if self.destination.prefix_len() > 0 {
            attributes.push(RouteAttribute::Destination(RouteAddress::from(destination)));
        }
        attributes.push(RouteAttribute::Table(self.table));
        if let Some(gateway) = self.gateway {
            attributes.push(RouteAttribute::Gateway(RouteAddress::from(gateway)));
        }
        if let Some(link) = self.link {
            attributes.push(RouteAttribute::Oif(link));
        }
        if let Some(source) = self.source {
            attributes.push(RouteAttribute::PrefSource(RouteAddress::from(source)));
        }
        if let Some(metric) = self.metric {
            attributes.push(RouteAttribute::Priority(metric));
        }
        let metrics: Vec<_> = [
            self.mtu.map(RouteMetric::Mtu),
            self.advmss.map(RouteMetric::Advmss),
        ]
        .into_iter()
        .flatten()
        .collect();
        if !metrics.is_empty() {
            attributes.push(RouteAttribute::Metrics(metrics));
        }
        if let Some(encapsulation) = self.encapsulation {
            let (kind, headers) = encapsulation.attributes();
            attributes.push(RouteAttribute::EncapType(kind));
            attributes.push(RouteAttribute::Encap(headers));
        }
        if self.onlink {
            message.header.flags = RouteFlags::Onlink;
        }
        message
    }
}

impl Encapsulation {
    fn attributes(&self) -> (RouteLwEnCapType, Vec<RouteLwTunnelEncap>) {
        match self.remote {
            IpAddr::V4(remote) => {
                let mut flags = RouteIpTunnelFlags::Key;
                flags.set(RouteIpTunnelFlags::Checksum, self.checksum);
                let headers = [
                    RouteIpTunnel::Id(self.id),
                    RouteIpTunnel::Destination(remote),
                    RouteIpTunnel::Flags(flags),
                ];
                let headers = headers.map(RouteLwTunnelEncap::Ip).to_vec();
                (RouteLwEnCapType::Ip, headers)
            }
            IpAddr::V6(remote) => {
                let mut flags = RouteIp6TunnelFlags::Key;
                flags.set(RouteIp6TunnelFlags::Checksum, self.checksum);
                let headers = [
                    RouteIp6Tunnel::Id(self.id),
                    RouteIp6Tunnel::Destination(remote),
                    RouteIp6Tunnel::Flags(flags),
                ];
                let headers = headers.map(RouteLwTunnelEncap::Ip6).to_vec();
                (RouteLwEnCapType::Ip6, headers)
            }
        }
    }

    /// `None` for other kinds of lightweight tunnels.
    fn parse(headers: &[RouteLwTunnelEncap]) -> Option<Encapsulation> {
        let (mut id, mut remote, mut checksum) = (0, None, false);
        for header in headers {
            match header {
                RouteLwTunnelEncap::Ip(RouteIpTunnel::Id(key))
                | RouteLwTunnelEncap::Ip6(RouteIp6Tunnel::Id(key)) => id = *key,
                RouteLwTunnelEncap::Ip(RouteIpTunnel::Destination(address)) => {
                    remote = Some(IpAddr::from(*address));
                }
                RouteLwTunnelEncap::Ip6(RouteIp6Tunnel::Destination(address)) => {
                    remote = Some(IpAddr::from(*address));
                }
                RouteLwTunnelEncap::Ip(RouteIpTunnel::Flags(flags)) => {
                    checksum = flags.contains(RouteIpTunnelFlags::Checksum);
                }
                RouteLwTunnelEncap::Ip6(RouteIp6Tunnel::Flags(flags)) => {
                    checksum = flags.contains(RouteIp6TunnelFlags::Checksum);
                }
                _ => {}
            }
        }
        remote.map(|remote| Encapsulation {
            id,
            remote,
            checksum,
        })
    }
}

impl fmt::Display for Route {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Kind::Unicast => {}
            Kind::Local => formatter.write_str("local ")?,
            Kind::Blackhole => formatter.write_str("blackhole ")?,
            Kind::Unreachable => formatter.write_str("unreachable ")?,
            Kind::Prohibit => formatter.write_str("prohibit ")?,
            Kind::Other(number) => write!(formatter, "type {number} ")?,
        }
        write!(formatter, "{}", self.destination)?;
        if let Some(gateway) = self.gateway {
            write!(formatter, " via {gateway}")?;
        }
        if let Some(link) = self.link {
            write!(formatter, " dev #{link}")?;
        }
        if let Some(encapsulation) = self.encapsulation {
            write!(
                formatter,
                " to {} in tunnel {}",
                encapsulation.remote, encapsulation.id
            )?;
        }
        if let Some(metric) = self.metric {
            write!(formatter, " metric {metric}")?;
        }
        if self.table != TABLE_MAIN {
            write!(formatter, " table {}", self.table)?;
        }
        Ok(())
    }
}

/// Adds a route; fails when one to the same destination with the same metric
/// and table exists.
pub fn add(route: &Route) -> Request {
    new("add", route, NLM_F_CREATE | NLM_F_EXCL)
}

/// Adds a route, or replaces the one to the same destination with the same
/// metric and table, without a moment in between.
pub fn replace(route: &Route) -> Request {
    new("replace", route, NLM_F_CREATE | NLM_F_REPLACE)
}

/// Adds a route behind others to the same destination with the same metric
/// (IPv6: as a further next hop).
pub fn append(route: &Route) -> Request {
    new("append", route, NLM_F_CREATE | NLM_F_APPEND)
}

fn new(verb: &str, route: &Route, flags: u16) -> Request {
    Request::route(
        format!("{verb} route {route}"),
        &RouteNetlinkMessage::NewRoute(route.message()),
        flags,
    )
}

/// Deletes a route: the one that agrees in destination, table, protocol and
/// what else is given.
pub fn delete(route: &Route) -> Request {
    let mut message = route.message();
    // Metrics are no key: IPv4 would compare them and miss the route when a
    // default was filled in.
    message
        .attributes
        .retain(|attribute| !matches!(attribute, RouteAttribute::Metrics(_)));
    if message.header.address_family == AddressFamily::Inet {
        // "Nowhere" is IPv4's wildcard of scopes.
        message.header.scope = RouteScope::NoWhere;
    }
    Request::route(
        format!("delete route {route}"),
        &RouteNetlinkMessage::DelRoute(message),
        0,
    )
}

/// Which routes to list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Filter {
    /// Only this table (else all).
    pub table: Option<u32>,
    /// Only those made by this protocol.
    pub protocol: Option<u8>,
    /// Only those leaving by the interface with this index.
    pub link: Option<u32>,
}

impl Filter {
    /// Podwire's own routes, in all tables.
    pub fn own() -> Self {
        Self {
            protocol: Some(crate::PODWIRE_ROUTE_PROTOCOL),
            ..Self::default()
        }
    }

    fn accepts(&self, route: &Route) -> bool {
        self.table.is_none_or(|table| table == route.table)
            && self
                .protocol
                .is_none_or(|protocol| protocol == route.protocol)
            && self.link.is_none_or(|link| Some(link) == route.link)
    }
}

/// Lists routes of both families. The kernel filters; its exception tables and
/// multipath routes (not made by podwire) are left out.
pub fn list(socket: &mut Socket, filter: Filter) -> Result<Vec<Route>, Error> {
    let mut found = list_family(socket, AddressFamily::Inet, filter)?;
    found.extend(list_family(socket, AddressFamily::Inet6, filter)?);
    Ok(found)
}

/// The route by which packets to an address leave or, of kind [`Kind::Local`], are
/// delivered. None when there is none.
pub fn to(socket: &mut Socket, address: IpAddr) -> Result<Option<Route>, Error> {
    let destination = IpNet::from(address);
    let mut message = RouteMessage::default();
    message.header.address_family = family(&address);
    message.header.destination_prefix_length = destination.prefix_len();
    // The route itself, not what a packet's way is made of it.
    message.header.flags = RouteFlags::FibMatch;
    message
        .attributes
        .push(RouteAttribute::Destination(RouteAddress::from(address)));
    let request = Request::route(
        format!("look up the route to {address}"),
        &RouteNetlinkMessage::GetRoute(message),
        0,
    );
    match socket.query(&request, decode) {
        Ok(found) => Ok(found.into_iter().next()),
        Err(error) if matches!(error.errno(), Some(Errno::NETUNREACH | Errno::HOSTUNREACH)) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Like [`list`], of one family.
fn list_family(
    socket: &mut Socket,
    family: AddressFamily,
    filter: Filter,
) -> Result<Vec<Route>, Error> {
    let mut message = RouteMessage::default();
    message.header.address_family = family;
    if let Some(protocol) = filter.protocol {
        message.header.protocol = RouteProtocol::from(protocol);
    }
    if let Some(table) = filter.table {
        message.header.table = u8::try_from(table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC);
        message.attributes.push(RouteAttribute::Table(table));
    }
    if let Some(link) = filter.link {
        message.attributes.push(RouteAttribute::Oif(link));
    }
    let request = Request::route("list routes", &RouteNetlinkMessage::GetRoute(message), 0);
    let mut found = match socket.dump(request, decode) {
        Ok(routes) => routes,
        // The kernel was told to look into a table that does not exist.
        Err(error) if filter.table.is_some() && error.not_found() => Vec::new(),
        Err(error) => return Err(error),
    };
    found.retain(|route| filter.accepts(route));
    Ok(found)
}

fn decode(message: Message<'_>) -> Result<Option<Route>, DecodeError> {
    if message.message_type != RTM_NEWROUTE {
        return Ok(None);
    }
    parse(message.payload)
}

/// Whether a route netlink message tells of a route, and if so whether of one
/// that is there (`true`) or gone.
pub(crate) fn notification(message_type: u16) -> Option<bool> {
    match message_type {
        RTM_NEWROUTE => Some(true),
        RTM_DELROUTE => Some(false),
        _ => None,
    }
}

/// `None` for cached routes and for families other than IP.
pub(crate) fn parse(payload: &[u8]) -> Result<Option<Route>, DecodeError> {
    let message = RouteMessage::parse(payload)?;
    let header = message.header;
    if header.flags.contains(RouteFlags::Cloned) {
        return Ok(None);
    }
    let any: IpAddr = match header.address_family {
        AddressFamily::Inet => std::net::Ipv4Addr::UNSPECIFIED.into(),
        AddressFamily::Inet6 => std::net::Ipv6Addr::UNSPECIFIED.into(),
        _ => return Ok(None),
    };
    let Ok(destination) = IpNet::new(any, header.destination_prefix_length) else {
        return Ok(None);
    };
    let mut route = Route {
        destination,
        gateway: None,
        link: None,
        source: None,
        onlink: header.flags.contains(RouteFlags::Onlink),
        mtu: None,
        advmss: None,
        metric: None,
        table: u32::from(header.table),
        protocol: header.protocol.into(),
        kind: header.kind.into(),
        scope: header.scope.into(),
        encapsulation: None,
    };
    for attribute in message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => {
                if let Some(ip) = ip(&address)
                    && let Ok(net) = IpNet::new(ip, header.destination_prefix_length)
                {
                    route.destination = net;
                }
            }
            RouteAttribute::Gateway(address) => route.gateway = ip(&address),
            RouteAttribute::PrefSource(address) => route.source = ip(&address),
            RouteAttribute::Oif(link) => route.link = Some(link),
            RouteAttribute::Table(table) => route.table = table,
            RouteAttribute::Priority(metric) => route.metric = Some(metric),
            RouteAttribute::Encap(headers) => {
                route.encapsulation = Encapsulation::parse(&headers);
            }
            RouteAttribute::Metrics(metrics) => {
                for metric in metrics {
                    match metric {
                        RouteMetric::Mtu(mtu) => route.mtu = Some(mtu),
                        RouteMetric::Advmss(size) => route.advmss = Some(size),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Ok(Some(route))
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some((*ip).into()),
        RouteAddress::Inet6(ip) => Some((*ip).into()),
        _ => None,
    }
}

impl From<Kind> for RouteType {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Unicast => Self::Unicast,
            Kind::Local => Self::Local,
            Kind::Blackhole => Self::BlackHole,
            Kind::Unreachable => Self::Unreachable,
            Kind::Prohibit => Self::Prohibit,
            Kind::Other(number) => Self::from(number),
        }
    }
}

impl From<RouteType> for Kind {
    fn from(kind: RouteType) -> Self {
        match kind {
            RouteType::Unicast => Self::Unicast,
            RouteType::Local => Self::Local,
            RouteType::BlackHole => Self::Blackhole,
            RouteType::Unreachable => Self::Unreachable,
            RouteType::Prohibit => Self::Prohibit,
            other => Self::Other(other.into()),
        }
    }
}

impl From<Scope> for RouteScope {
    fn from(scope: Scope) -> Self {
        match scope {
            Scope::Global => Self::Universe,
            Scope::Link => Self::Link,
            Scope::Host => Self::Host,
            Scope::Other(number) => Self::from(number),
        }
    }
}

impl From<RouteScope> for Scope {
    fn from(scope: RouteScope) -> Self {
        match scope {
            RouteScope::Universe => Self::Global,
            RouteScope::Link => Self::Link,
            RouteScope::Host => Self::Host,
            other => Self::Other(other.into()),
        }
    }
}
