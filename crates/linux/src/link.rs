//! Network interfaces: veth pairs, bridges, bridge ports, macvlan.
//!
//! Functions that change something return a [`Request`]; send several together
//! with [`Socket::execute_all`]. Functions that read take the socket.
//!
//! Sources: rtnetlink(7), `include/uapi/linux/if_link.h`.

use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use netlink_packet_core::{DecodeError, DefaultNla, NLM_F_CREATE, NLM_F_EXCL, NlasIterator};
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoBridge, InfoBridgePort, InfoData, InfoKind,
    InfoMacVlan, InfoPortData, InfoPortKind, InfoVeth, LinkAttribute, LinkExtentMask, LinkFlags,
    LinkInfo, LinkMessage, MacVlanMode,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::events::{self, Group};
pub use crate::mac::{MacAddress, ParseMacError};
use crate::namespace::NetworkNamespace;
use crate::netlink::{Error, Message, Request, Socket};
use crate::tunnel::{self, Tunnel};

/// Longest interface name in bytes (`IFNAMSIZ` without the final zero).
pub const NAME_LENGTH: usize = 15;

/// Longest alias in bytes (`IFALIASZ` without the final zero).
pub const ALIAS_LENGTH: usize = 255;

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_QDISC: u16 = 6;
const IFLA_MASTER: u16 = 10;
const IFLA_OPERSTATE: u16 = 16;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_GROUP: u16 = 27;
const IFLA_LINK_NETNSID: u16 = 37;
/// `IF_OPER_UP` of RFC 2863.
const IF_OPER_UP: u8 = 6;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_INFO_PORT_KIND: u16 = 4;
const IFLA_INFO_PORT_DATA: u16 = 5;
const IFLA_BRPORT_MODE: u16 = 4;
const IFLA_BRPORT_MCAST_FLOOD: u16 = 27;
const IFLA_BRPORT_ISOLATED: u16 = 33;
const IFLA_INET_CONF: u16 = 1;
/// Of `include/uapi/linux/ip.h`.
const IPV4_DEVCONF_ACCEPT_REDIRECTS: u16 = 4;
const IPV4_DEVCONF_ROUTE_LOCALNET: u16 = 26;
/// `IPV4_MIN_MTU` (RFC 791); IPv6's is larger.
const LEAST_IPV4_MTU: u32 = 68;

/// A network interface as the kernel describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Interface index, unique in its namespace.
    pub index: u32,
    /// Name.
    pub name: String,
    /// Hardware address, of Ethernet-like devices.
    pub mac: Option<MacAddress>,
    /// Largest packet in bytes, without the link-layer header.
    pub mtu: u32,
    /// Whether it is administratively up (`IFF_UP`).
    pub up: bool,
    /// Whether it can carry packets (`IFF_LOWER_UP`): up, and for a veth its
    /// peer too.
    pub carrier: bool,
    /// Whether it passes packets (`IF_OPER_UP`). Behind [`Self::carrier`] by
    /// the time the kernel takes to notice.
    pub operational: bool,
    /// Whether it is a loopback device.
    pub loopback: bool,
    /// Index of the bridge (or other master) it is a port of.
    pub master: Option<u32>,
    /// Index of the related device: a veth's peer, a macvlan's parent. In the
    /// namespace [`Self::peer_namespace`] names, else in the own one.
    pub peer: Option<u32>,
    /// Id, in the namespace of this link, of the namespace where the peer is;
    /// `None` when it is the same.
    pub peer_namespace: Option<i32>,
    /// Kind of virtual device: `veth`, `bridge`, ….
    pub kind: Option<String>,
    /// Group, 0 for most.
    pub group: u32,
    /// Free text set by [`set_alias`].
    pub alias: Option<String>,
    /// Whether it may bring packets from and to 127.0.0.0/8 ([`set_route_localnet`]).
    pub route_localnet: bool,
    /// Kind of the queue packets wait in that leave by it: `noqueue`, `tbf`, ….
    pub qdisc: Option<String>,
    /// Settings as a port of a bridge.
    pub port: Option<BridgePort>,
    /// Settings as a tunnel.
    pub tunnel: Option<Tunnel>,
}

/// Settings of a bridge's port that podwire uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BridgePort {
    /// Frames to multicast addresses that came in by another port leave by this
    /// one; those of the bridge's own host always do.
    pub multicast: bool,
    /// A frame may leave by the port it came in.
    pub hairpin: bool,
    /// No frames to and from other isolated ports.
    pub isolated: bool,
}

/// Whether the kernel would accept `name` for an interface
/// (`dev_valid_name` in `net/core/dev.c`), and not as a name template.
pub fn valid_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= NAME_LENGTH
        && name != "."
        && name != ".."
        && !name
            .bytes()
            .any(|byte| matches!(byte, b'/' | b':' | b'%' | 0 | 9..=13 | b' '))
}

/// An interface to be made: one end of a veth pair, or a macvlan.
#[derive(Debug, Clone, Copy, Default)]
pub struct VethEnd<'a> {
    /// Interface name.
    pub name: &'a str,
    /// MTU in bytes; the kernel's default (1500) when absent.
    pub mtu: Option<u32>,
    /// Hardware address; a random one when absent.
    pub mac: Option<MacAddress>,
    /// Where the end is made; the socket's namespace when absent. It must stay
    /// open until the request has been sent.
    pub namespace: Option<&'a NetworkNamespace>,
}

impl VethEnd<'_> {
    fn message(&self) -> LinkMessage {
        let mut message = LinkMessage::default();
        message
            .attributes
            .push(LinkAttribute::IfName(self.name.to_owned()));
        if let Some(mtu) = self.mtu {
            message.attributes.push(LinkAttribute::Mtu(mtu));
        }
        if let Some(mac) = self.mac {
            message
                .attributes
                .push(LinkAttribute::Address(mac.0.to_vec()));
        }
        if let Some(namespace) = self.namespace {
            message.attributes.push(in_namespace(namespace));
        }
        message
    }
}

/// Makes a veth pair, each end where it belongs, in one message: no end is
/// ever seen elsewhere or half configured. The near end is up, and a port of
/// the bridge with index `master` (of its namespace) if one is given; the
/// peer is down: the kernel cannot set it up before the pair is tied.
pub fn add_veth(near: &VethEnd<'_>, master: Option<u32>, peer: &VethEnd<'_>) -> Request {
    let mut message = near.message();
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    veth(message, near, master, peer.message(), peer)
}

/// Like [`add_veth`], for a pod: both ends are down, and have one queue each way. The
/// kernel's default is a queue for each CPU, each with objects in sysfs that are made,
/// announced and deleted one by one. A veth has no lock and no ring of its own that
/// queues would spread (its packets are handed on by the sending CPU), and with a single
/// one no packet's queue is to be computed.
pub fn add_cable(near: &VethEnd<'_>, master: Option<u32>, peer: &VethEnd<'_>) -> Request {
    let one_queue = |end: &VethEnd<'_>| {
        let mut message = end.message();
        message.attributes.push(LinkAttribute::NumTxQueues(1));
        message.attributes.push(LinkAttribute::NumRxQueues(1));
        message
    };
    veth(one_queue(near), near, master, one_queue(peer), peer)
}

fn veth(
    mut message: LinkMessage,
    near: &VethEnd<'_>,
    master: Option<u32>,
    far: LinkMessage,
    peer: &VethEnd<'_>,
) -> Request {
    if let Some(master) = master {
        message.attributes.push(LinkAttribute::Controller(master));
    }
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(far))),
    ]));
    create(
        format!("make the veth pair {} and {}", near.name, peer.name),
        message,
    )
    .needing("veth devices", "veth")
}

/// A bridge to be made.
#[derive(Debug, Clone, Copy, Default)]
pub struct Bridge<'a> {
    /// Interface name.
    pub name: &'a str,
    /// Hardware address. Give one: without, the bridge takes the lowest of its
    /// ports' and changes it as ports come and go, which breaks neighbours'
    /// caches.
    pub mac: Option<MacAddress>,
    /// Seconds after which an address learned on a port is forgotten.
    pub ageing_seconds: Option<u32>,
    /// Whether multicast goes only to ports that asked for it (IGMP and MLD
    /// snooping). Off floods it, which needs no querier.
    pub multicast_snooping: bool,
}

/// Kernel ticks a second in netlink attributes of bridges (`USER_HZ`).
const USER_HZ: u32 = 100;

/// Makes a bridge that is up, without spanning tree, forwarding on its ports at
/// once, and with its own netfilter calls off (the namespace-wide sysctl
/// `net.bridge.bridge-nf-call-iptables` counts besides). Its MTU follows the
/// lowest of its ports' until it is set by [`set_mtu`].
pub fn add_bridge(bridge: &Bridge<'_>) -> Request {
    let mut message = LinkMessage::default();
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    message
        .attributes
        .push(LinkAttribute::IfName(bridge.name.to_owned()));
    if let Some(mac) = bridge.mac {
        message
            .attributes
            .push(LinkAttribute::Address(mac.0.to_vec()));
    }
    let mut data = vec![
        InfoBridge::ForwardDelay(0),
        InfoBridge::MulticastSnooping(bridge.multicast_snooping),
        InfoBridge::NfCallIpTables(false),
        InfoBridge::NfCallIp6Tables(false),
        InfoBridge::NfCallArpTables(false),
    ];
    if let Some(seconds) = bridge.ageing_seconds {
        data.push(InfoBridge::AgeingTime(seconds.saturating_mul(USER_HZ)));
    }
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Bridge),
        LinkInfo::Data(InfoData::Bridge(data)),
    ]));
    create(format!("make the bridge {}", bridge.name), message).needing("bridges", "bridge")
}

/// How a macvlan's frames reach others on the same parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MacvlanMode {
    /// Directly.
    Bridge,
    /// Not at all.
    Private,
}

/// Makes a macvlan on the parent with index `parent` (of the socket's
/// namespace), directly in the namespace `end` names. It is down.
pub fn add_macvlan(end: &VethEnd<'_>, parent: u32, mode: MacvlanMode) -> Request {
    let mut message = end.message();
    message.attributes.push(LinkAttribute::Link(parent));
    let mode = match mode {
        MacvlanMode::Bridge => MacVlanMode::Bridge,
        MacvlanMode::Private => MacVlanMode::Private,
    };
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::MacVlan),
        LinkInfo::Data(InfoData::MacVlan(vec![InfoMacVlan::Mode(mode)])),
    ]));
    create(format!("make the macvlan {}", end.name), message).needing("macvlan devices", "macvlan")
}

/// Makes an intermediate functional block device, which is up: what is
/// redirected to it passes its queueing discipline and goes on where it was, whatever
/// its length. Nobody speaks IP on it: its MTU is one that the kernel sets up neither
/// IPv4 nor IPv6 for, with their addresses, groups and routes.
pub fn add_ifb(name: &str) -> Request {
    let mut message = LinkMessage::default();
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    message.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Mtu(LEAST_IPV4_MTU - 1),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Ifb)]),
    ];
    create(format!("make the IFB device {name}"), message)
}

fn create(purpose: String, message: LinkMessage) -> Request {
    Request::route(
        purpose,
        &RouteNetlinkMessage::NewLink(message),
        NLM_F_CREATE | NLM_F_EXCL,
    )
}

fn in_namespace(namespace: &NetworkNamespace) -> LinkAttribute {
    let fd: RawFd = namespace.as_raw_fd();
    LinkAttribute::NetNsFd(fd)
}

fn change(purpose: String, index: u32, attributes: Vec<LinkAttribute>) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = attributes;
    Request::route(purpose, &RouteNetlinkMessage::SetLink(message), 0)
}

fn set_flag(index: u32, up: bool) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.change_mask = LinkFlags::Up;
    if up {
        message.header.flags = LinkFlags::Up;
    }
    let state = if up { "up" } else { "down" };
    Request::route(
        format!("set link {index} {state}"),
        &RouteNetlinkMessage::SetLink(message),
        0,
    )
}

/// Sets a link up.
pub fn set_up(index: u32) -> Request {
    set_flag(index, true)
}

/// Sets a link down.
pub fn set_down(index: u32) -> Request {
    set_flag(index, false)
}

/// Sets a link's MTU in bytes.
pub fn set_mtu(index: u32, mtu: u32) -> Request {
    change(
        format!("set the MTU of link {index} to {mtu}"),
        index,
        vec![LinkAttribute::Mtu(mtu)],
    )
}

/// Sets a link's hardware address.
pub fn set_mac(index: u32, mac: MacAddress) -> Request {
    change(
        format!("set the address of link {index} to {mac}"),
        index,
        vec![LinkAttribute::Address(mac.0.to_vec())],
    )
}

/// Makes a link a port of the bridge with index `master`, or of none.
pub fn set_master(index: u32, master: Option<u32>) -> Request {
    let purpose = match master {
        Some(master) => format!("make link {index} a port of link {master}"),
        None => format!("take link {index} off its bridge"),
    };
    change(
        purpose,
        index,
        vec![LinkAttribute::Controller(master.unwrap_or(0))],
    )
}

/// Renames a link.
pub fn set_name(index: u32, name: &str) -> Request {
    change(
        format!("rename link {index} to {name}"),
        index,
        vec![LinkAttribute::IfName(name.to_owned())],
    )
}

/// Sets a link's alias, a free text of at most [`ALIAS_LENGTH`] bytes for those who look at
/// the link.
pub fn set_alias(index: u32, alias: &str) -> Request {
    change(
        format!("set the alias of link {index}"),
        index,
        vec![LinkAttribute::IfAlias(alias.to_owned())],
    )
}

/// Moves a link to another namespace, which must stay open until the request
/// has been sent.
pub fn move_to(index: u32, namespace: &NetworkNamespace) -> Request {
    change(
        format!("move link {index} to another network namespace"),
        index,
        vec![in_namespace(namespace)],
    )
}

/// Keeps the kernel from giving a link that is down an IPv6 link-local address when it
/// comes up: for links that have no use for one, such as ports of a bridge.
pub fn set_no_link_local(index: u32) -> Request {
    change(
        format!("keep link {index} without a link-local address"),
        index,
        vec![LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(
            vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)],
        )])],
    )
}

/// Lets a link bring packets from and to 127.0.0.0/8: the setting `route_localnet` of
/// IPv4. A link that is up tells its multicast groups again then. Over netlink it takes
/// a moment, however many namespaces there are, whereas a path below `/proc/sys/net` is
/// walked the longer the more there are.
pub fn set_route_localnet(index: u32) -> Request {
    set_ipv4(
        format!("let link {index} bring packets of 127.0.0.0/8"),
        index,
        IPV4_DEVCONF_ROUTE_LOCALNET,
        1,
    )
}

/// Has a link take no notice of IPv4 redirects: its setting `accept_redirects`. A host
/// heeds them all the same while that of `all` is on.
pub fn set_no_redirects(index: u32) -> Request {
    set_ipv4(
        format!("keep link {index} from heeding redirects"),
        index,
        IPV4_DEVCONF_ACCEPT_REDIRECTS,
        0,
    )
}

/// Changes one of a link's IPv4 settings. The kernel takes no other family's so.
fn set_ipv4(purpose: String, index: u32, setting: u16, value: u32) -> Request {
    let attribute = |kind: u16, value: &[u8]| {
        let length = u16::try_from(value.len() + 4).expect("a few bytes");
        [&length.to_ne_bytes(), &kind.to_ne_bytes(), value].concat()
    };
    let setting = attribute(setting, &value.to_ne_bytes());
    let settings = attribute(IFLA_INET_CONF, &setting);
    let family = attribute(u16::from(u8::from(AddressFamily::Inet)), &settings);
    change(
        purpose,
        index,
        vec![LinkAttribute::Other(DefaultNla::new(IFLA_AF_SPEC, family))],
    )
}

/// Changes a bridge port's settings.
pub fn set_port(index: u32, port: BridgePort) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::PortKind(InfoPortKind::Bridge),
        LinkInfo::PortData(InfoPortData::BridgePort(vec![
            InfoBridgePort::HairpinMode(port.hairpin),
            InfoBridgePort::Isolated(port.isolated),
            InfoBridgePort::MulticastFlood(port.multicast),
        ])),
    ]));
    // The kernel takes port attributes of RTM_NEWLINK only (rtnl_newlink).
    Request::route(
        format!("set up link {index} as a bridge port"),
        &RouteNetlinkMessage::NewLink(message),
        0,
    )
}

/// Deletes a link (a veth with its peer). Takes 20 to 30 ms: the kernel waits
/// for all readers (an RCU barrier).
pub fn delete(index: u32) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index;
    Request::route(
        format!("delete link {index}"),
        &RouteNetlinkMessage::DelLink(message),
        0,
    )
}

/// Takes a link out of use until [`delete_group`] deletes it: down, in a group. The
/// kernel forgets the routes and neighbours of a link that is down.
pub fn retire(index: u32, group: u32) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.change_mask = LinkFlags::Up;
    message.attributes.push(LinkAttribute::Group(group));
    Request::route(
        format!("set link {index} aside"),
        &RouteNetlinkMessage::SetLink(message),
        0,
    )
}

/// Like [`retire`], and gives the link's name free for a new one, which takes the
/// kernel as long again.
pub fn retire_as(index: u32, name: &str, group: u32) -> [Request; 2] {
    [
        set_down(index),
        change(
            format!("set link {index} aside as {name}"),
            index,
            vec![
                LinkAttribute::IfName(name.to_owned()),
                LinkAttribute::Group(group),
            ],
        ),
    ]
}

/// Moves a link to another namespace under a new name, to be deleted there with
/// a group. The namespace must stay open until the request has been sent.
pub fn retire_to(index: u32, namespace: &NetworkNamespace, name: &str, group: u32) -> [Request; 2] {
    [
        set_down(index),
        change(
            format!("set link {index} aside as {name} in another namespace"),
            index,
            vec![
                in_namespace(namespace),
                LinkAttribute::IfName(name.to_owned()),
                LinkAttribute::Group(group),
            ],
        ),
    ]
}

/// Makes a link what `end` says, in the namespace it names: moved, renamed, with
/// another address and MTU. It is down then.
pub fn hand_over(index: u32, end: &VethEnd<'_>) -> [Request; 2] {
    let mut message = end.message();
    message.header.index = index;
    [
        set_down(index),
        Request::route(
            format!("hand link {index} over as {}", end.name),
            &RouteNetlinkMessage::SetLink(message),
            0,
        ),
    ]
}

/// Deletes all links of a group (not 0, which all others are in) at once: many
/// for the price of one, see [`delete`]. `not_found` when there is none.
pub fn delete_group(group: u32) -> Request {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::Group(group));
    Request::route(
        format!("delete the links of group {group:#x}"),
        &RouteNetlinkMessage::DelLink(message),
        0,
    )
}

/// Deletes a link by name; fine when there is none.
pub fn delete_by_name(socket: &mut Socket, name: &str) -> Result<(), Error> {
    let mut message = LinkMessage::default();
    message
        .attributes
        .push(LinkAttribute::IfName(name.to_owned()));
    let request = Request::route(
        format!("delete link {name}"),
        &RouteNetlinkMessage::DelLink(message),
        0,
    );
    crate::netlink::gone(socket.execute(&request))
}

/// Finds a link by name.
pub fn get(socket: &mut Socket, name: &str) -> Result<Option<Link>, Error> {
    let mut message = LinkMessage::default();
    message
        .attributes
        .push(LinkAttribute::IfName(name.to_owned()));
    find(socket, format!("look up link {name}"), message)
}

/// Finds a link by index.
pub fn get_by_index(socket: &mut Socket, index: u32) -> Result<Option<Link>, Error> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    find(socket, format!("look up link {index}"), message)
}

fn find(
    socket: &mut Socket,
    purpose: String,
    mut message: LinkMessage,
) -> Result<Option<Link>, Error> {
    message.attributes.push(without_counters());
    let request = Request::route(purpose, &RouteNetlinkMessage::GetLink(message), 0);
    match socket.query(&request, decode) {
        Ok(found) => Ok(found.into_iter().next()),
        Err(error) if error.not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Spares the kernel adding up a link's counters, which are kept for each CPU and which
/// nobody here looks at.
fn without_counters() -> LinkAttribute {
    LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats])
}

/// Waits until a link passes packets: `false` when it does not before the
/// deadline. A veth whose peer was just set up says it has a carrier, and yet
/// drops what is sent until the kernel's link watch has run; that takes
/// milliseconds on a busy machine, and a second for a TCP connection that
/// starts within. Since Linux 6.8 asking for the link makes it run at once;
/// before, its notification is waited for.
///
/// Call it on a thread that is in the socket's namespace.
pub fn wait_until_operational(
    socket: &mut Socket,
    index: u32,
    deadline: Duration,
) -> Result<bool, Error> {
    events::wait_for(&[Group::Links], deadline, || {
        Ok(get_by_index(socket, index)?.is_some_and(|link| link.operational))
    })
}

/// Lists all links.
pub fn list(socket: &mut Socket) -> Result<Vec<Link>, Error> {
    dump(socket, "list links", LinkMessage::default())
}

/// Lists the ports of a bridge.
pub fn list_ports(socket: &mut Socket, bridge: u32) -> Result<Vec<Link>, Error> {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::Controller(bridge));
    let mut links = dump(socket, "list the ports of a bridge", message)?;
    links.retain(|link| link.master == Some(bridge));
    Ok(links)
}

fn dump(socket: &mut Socket, purpose: &str, mut message: LinkMessage) -> Result<Vec<Link>, Error> {
    message.attributes.push(without_counters());
    let request = Request::route(purpose, &RouteNetlinkMessage::GetLink(message), 0);
    socket.dump(request, decode)
}

fn decode(message: Message<'_>) -> Result<Option<Link>, DecodeError> {
    if message.message_type != RTM_NEWLINK {
        return Ok(None);
    }
    parse(message.payload)
}

/// Whether a route netlink message tells of a link, and if so whether of one
/// that is there (`true`) or gone.
pub(crate) fn notification(message_type: u16) -> Option<bool> {
    match message_type {
        RTM_NEWLINK => Some(true),
        RTM_DELLINK => Some(false),
        _ => None,
    }
}

/// Decodes a link message. Only the attributes used are looked at, so that no
/// kernel, however new, can make a listing fail with one that is not.
/// `None` for messages of the bridge family, which tell of ports only.
pub(crate) fn parse(payload: &[u8]) -> Result<Option<Link>, DecodeError> {
    let Some((header, attributes)) = payload.split_first_chunk::<16>() else {
        return Err(DecodeError::from("a link message shorter than its header"));
    };
    if header[0] != u8::from(AddressFamily::Unspec) {
        return Ok(None);
    }
    let flags = LinkFlags::from_bits_retain(word(&header[8..12])?);
    let mut link = Link {
        index: word(&header[4..8])?,
        name: String::new(),
        mac: None,
        mtu: 0,
        up: flags.contains(LinkFlags::Up),
        carrier: flags.contains(LinkFlags::LowerUp),
        operational: false,
        loopback: flags.contains(LinkFlags::Loopback),
        master: None,
        peer: None,
        peer_namespace: None,
        kind: None,
        group: 0,
        alias: None,
        route_localnet: false,
        qdisc: None,
        port: None,
        tunnel: None,
    };
    for attribute in NlasIterator::new(attributes) {
        let attribute = attribute?;
        let value = attribute.value();
        match attribute.kind() {
            IFLA_IFNAME => link.name = text(value),
            IFLA_ADDRESS => link.mac = MacAddress::from_slice(value),
            IFLA_MTU => link.mtu = word(value)?,
            IFLA_MASTER => link.master = Some(word(value)?),
            IFLA_LINK => link.peer = Some(word(value)?),
            IFLA_LINK_NETNSID => link.peer_namespace = Some(word(value)?.cast_signed()),
            IFLA_OPERSTATE => link.operational = value == [IF_OPER_UP],
            IFLA_GROUP => link.group = word(value)?,
            IFLA_QDISC => link.qdisc = Some(text(value)),
            IFLA_IFALIAS => link.alias = Some(text(value)),
            IFLA_AF_SPEC => link.route_localnet = parse_route_localnet(value)?,
            IFLA_LINKINFO => {
                let mut port = None;
                let mut data = Vec::new();
                for info in NlasIterator::new(value) {
                    let info = info?;
                    match info.kind() {
                        IFLA_INFO_KIND => link.kind = Some(text(info.value())),
                        IFLA_INFO_DATA => data = info.value().to_vec(),
                        IFLA_INFO_PORT_KIND if text(info.value()) == "bridge" => {
                            port.get_or_insert_default();
                        }
                        IFLA_INFO_PORT_DATA => {
                            if let Some(port) = &mut port {
                                parse_port(info.value(), port)?;
                            }
                        }
                        _ => {}
                    }
                }
                link.port = port;
                if let Some(kind) = &link.kind {
                    link.tunnel = tunnel::parse(kind, &data)?;
                }
            }
            _ => {}
        }
    }
    Ok(Some(link))
}

/// All IPv4 settings of a link come as an array, the first of which is number 1.
fn parse_route_localnet(payload: &[u8]) -> Result<bool, DecodeError> {
    let place = usize::from(IPV4_DEVCONF_ROUTE_LOCALNET - 1) * 4;
    for family in NlasIterator::new(payload) {
        let family = family?;
        if family.kind() != u16::from(u8::from(AddressFamily::Inet)) {
            continue;
        }
        for settings in NlasIterator::new(family.value()) {
            let settings = settings?;
            if settings.kind() == IFLA_INET_CONF
                && let Some(value) = settings.value().get(place..place + 4)
            {
                return Ok(word(value)? != 0);
            }
        }
    }
    Ok(false)
}

fn parse_port(payload: &[u8], port: &mut BridgePort) -> Result<(), DecodeError> {
    for attribute in NlasIterator::new(payload) {
        let attribute = attribute?;
        let on = attribute.value().first().is_some_and(|byte| *byte != 0);
        match attribute.kind() {
            IFLA_BRPORT_MODE => port.hairpin = on,
            IFLA_BRPORT_ISOLATED => port.isolated = on,
            IFLA_BRPORT_MCAST_FLOOD => port.multicast = on,
            _ => {}
        }
    }
    Ok(())
}

fn word(bytes: &[u8]) -> Result<u32, DecodeError> {
    netlink_packet_core::parse_u32(bytes)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes)
        .trim_end_matches('\0')
        .to_owned()
}
