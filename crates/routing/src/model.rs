//! What routing is about: nodes, and the state of a node's kernel wanted for them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
pub use linux::fdb::Remote;
pub use linux::link::MacAddress;
use linux::route::TABLE_MAIN;
pub use linux::rule::Rule;
pub use linux::tunnel::{Ipip, Vxlan};
pub use linux::wireguard::{PrivateKey, PublicKey};

use crate::data::NodeData;

/// An IP family: of pods, or of the underlay that carries their packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both, IPv4 first.
    pub const BOTH: [Family; 2] = [Family::V4, Family::V6];

    /// The family of an address.
    pub fn of(address: IpAddr) -> Family {
        if address.is_ipv4() {
            Family::V4
        } else {
            Family::V6
        }
    }

    /// The family of a range.
    pub fn of_range(range: &IpNet) -> Family {
        Family::of(range.addr())
    }

    /// The other family.
    pub fn other(self) -> Family {
        match self {
            Family::V4 => Family::V6,
            Family::V6 => Family::V4,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        })
    }
}

/// Something of each family, where there is one.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    serde::Serialize,
    serde::Deserialize,
)]
pub struct PerFamily<T> {
    /// Of IPv4.
    #[serde(default = "Option::default", skip_serializing_if = "Option::is_none")]
    pub v4: Option<T>,
    /// Of IPv6.
    #[serde(default = "Option::default", skip_serializing_if = "Option::is_none")]
    pub v6: Option<T>,
}

impl<T: Copy> PerFamily<T> {
    /// That of a family.
    pub fn get(&self, family: Family) -> Option<T> {
        match family {
            Family::V4 => self.v4,
            Family::V6 => self.v6,
        }
    }

    /// Sets that of a family.
    pub fn set(&mut self, family: Family, value: Option<T>) {
        match family {
            Family::V4 => self.v4 = value,
            Family::V6 => self.v6 = value,
        }
    }
}

/// The name of a node.
pub type Name = Arc<str>;

/// A node of the cluster, this one or a peer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: Name,
    /// Its addresses on the underlay, the primary one of each family first.
    pub addresses: Vec<IpAddr>,
    /// Its pod ranges, at most one a family.
    pub ranges: Vec<IpNet>,
    /// What it told about its back ends; `None` when it has not (yet).
    pub data: Option<NodeData>,
    /// Addresses of its pods. Only the back end `static` looks at them.
    pub pods: Vec<IpAddr>,
}

impl Node {
    /// Its primary address of a family.
    pub fn address(&self, family: Family) -> Option<IpAddr> {
        let mut addresses = self.addresses.iter().copied();
        addresses.find(|address| Family::of(*address) == family)
    }

    /// Its pod range of a family.
    pub fn range(&self, family: Family) -> Option<IpNet> {
        let mut ranges = self.ranges.iter().map(IpNet::trunc);
        ranges.find(|range| Family::of_range(range) == family)
    }

    /// The address its tunnel devices have: the first of its pod range, which no
    /// pod is given. What the node itself sends through a tunnel comes from it,
    /// so that the answer takes the same way back.
    pub fn tunnel_address(&self, family: Family) -> Option<IpAddr> {
        self.range(family).map(|range| range.network())
    }
}

/// A routing table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RouteTable {
    /// The one all packets are routed by.
    Main,
    /// The one looked into before that for packets of this node's pods
    /// ([`rule`]): addresses of nodes that are reached through a tunnel.
    OfPods,
}

impl RouteTable {
    /// Both.
    pub const ALL: [RouteTable; 2] = [RouteTable::Main, RouteTable::OfPods];

    /// Its number in the kernel.
    pub const fn number(self) -> u32 {
        match self {
            RouteTable::Main => TABLE_MAIN,
            // Above the numbers people give by hand, which are mostly below 256.
            RouteTable::OfPods => 1120,
        }
    }

    /// The table of a number; `None` for those routing has nothing in.
    pub fn of(number: u32) -> Option<RouteTable> {
        let mut all = RouteTable::ALL.into_iter();
        all.find(|table| table.number() == number)
    }
}

/// After the rule for the kernel's own local table (0), before that for the main
/// one (32766), and before those of programs that put a table of theirs in front of it.
const RULE_PRIORITY: u32 = 1120;

/// The rule that has packets of a pod range of this node looked up in
/// [`RouteTable::OfPods`] first.
///
/// The node's own packets never match: not the tunnels', which come from the
/// node's address, and not what goes to a node without a source chosen yet.
pub fn rule(range: IpNet) -> Rule {
    Rule::new(RULE_PRIORITY, range, RouteTable::OfPods.number())
}

/// What tells one route from another (the kernel's own key, at type of service 0).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RouteKey {
    /// The table it is in.
    pub table: RouteTable,
    /// Destination; host bits are zero.
    pub destination: IpNet,
    /// Metric (`RTA_PRIORITY`): of several routes to a destination the lowest wins.
    pub metric: u32,
}

impl RouteKey {
    /// The key of a route of the main table with the kernel's own metric.
    pub fn to(destination: IpNet) -> RouteKey {
        RouteKey {
            table: RouteTable::Main,
            destination: destination.trunc(),
            metric: default_metric(&destination),
        }
    }
}

impl RouteKey {
    /// The key of a route to pods of a peer. No two of these lead to the same
    /// range, so the metric is free for something else: the kernel compares a new
    /// IPv4 route's next hop with all that have the same device, metric and source
    /// (`fib_find_info` in net/ipv4/fib_semantics.c), and the device is the same
    /// for all. 64 metrics make 5,000 routes several times faster.
    pub fn of_peer(destination: IpNet) -> RouteKey {
        let key = RouteKey::to(destination);
        let metric = match key.destination {
            IpNet::V4(range) => {
                // Multiplicative hashing (Knuth, volume 3, section 6.4): the upper six bits.
                let spread = range.network().to_bits().wrapping_mul(0x9e37_79b1);
                1 + (spread >> 26)
            }
            IpNet::V6(_) => key.metric,
        };
        RouteKey { metric, ..key }
    }

    /// The key of the route that pods' packets to an address of a peer itself take.
    pub fn of_node(address: IpAddr) -> RouteKey {
        RouteKey {
            table: RouteTable::OfPods,
            ..RouteKey::of_peer(IpNet::from(address))
        }
    }
}

/// A route podwire wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Route {
    /// Destination and metric.
    pub key: RouteKey,
    /// Where it leads.
    pub target: RouteTarget,
}

/// Where a route leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RouteTarget {
    /// To a gateway on the subnet of an interface of the underlay.
    Gateway {
        /// The gateway.
        address: IpAddr,
        /// Index of the interface.
        interface: u32,
        /// Largest packet in bytes, where it is below the interface's.
        mtu: Option<u32>,
    },
    /// To the subnet of an interface of the underlay itself.
    Link {
        /// Index of the interface.
        interface: u32,
        /// The source address of packets that have none yet.
        source: IpAddr,
    },
    /// Over a device of [`State::devices`].
    Device {
        /// The device.
        device: DeviceName,
        /// Who takes the packet there.
        next_hop: NextHop,
        /// The source address of packets that have none yet.
        source: Option<IpAddr>,
        /// Largest packet in bytes, where it is below the device's.
        mtu: Option<u32>,
    },
    /// Nowhere: the sender gets an ICMP error.
    Unreachable,
}

/// Who takes a packet on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum NextHop {
    /// The packet's destination itself, or whoever the device knows for it.
    Direct,
    /// A gateway taken as reachable on the device, whatever other routes say.
    OnLink(IpAddr),
    /// The end of a tunnel, for a device in external mode.
    Encapsulated {
        /// Key of the tunnel (for VXLAN the network identifier).
        id: u32,
        /// Its other end on the underlay.
        remote: IpAddr,
    },
}

/// The metric a route to a peer's range has: what the kernel itself assigns
/// when none is given (0 for IPv4; `IP6_RT_PRIO_USER` for IPv6, include/uapi/linux/ipv6_route.h).
pub const fn default_metric(destination: &IpNet) -> u32 {
    match destination {
        IpNet::V4(_) => 0,
        IpNet::V6(_) => 1024,
    }
}

/// The metric of routes that must lose against any other to the same
/// destination. Below the kernel's own last resort (2³²-1).
pub const LAST_RESORT_METRIC: u32 = 4_000_000_000;

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RouteKey {
            table,
            destination,
            metric,
        } = self.key;
        let mut size = None;
        match self.target {
            RouteTarget::Gateway {
                address,
                interface,
                mtu,
            } => {
                write!(f, "{destination} via {address} (interface {interface})")?;
                size = mtu;
            }
            RouteTarget::Link { interface, source } => {
                write!(f, "{destination} on interface {interface} from {source}")?;
            }
            RouteTarget::Device {
                device,
                next_hop,
                source,
                mtu,
            } => {
                write!(f, "{destination}")?;
                match next_hop {
                    NextHop::Direct => {}
                    NextHop::OnLink(gateway) => write!(f, " via {gateway}")?,
                    NextHop::Encapsulated { id, remote } => {
                        write!(f, " to {remote} with id {id}")?;
                    }
                }
                write!(f, " on {device}")?;
                if let Some(source) = source {
                    write!(f, " from {source}")?;
                }
                size = mtu;
            }
            RouteTarget::Unreachable => write!(f, "unreachable {destination}")?,
        }
        if let Some(mtu) = size {
            write!(f, " mtu {mtu}")?;
        }
        if metric != default_metric(&destination) {
            write!(f, " metric {metric}")?;
        }
        if table != RouteTable::Main {
            write!(f, " table {}", table.number())?;
        }
        Ok(())
    }
}

/// Names of routing's own devices begin with this. (Names of pods' links begin
/// with `pw` and go on in letters and digits.)
pub const DEVICE_PREFIX: &str = "pw-";

/// The name of an interface.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceName {
    bytes: [u8; linux::link::NAME_LENGTH],
    length: u8,
}

impl DeviceName {
    /// A name; cut off where the kernel would not take more
    /// ([`linux::link::NAME_LENGTH`] bytes).
    pub const fn new(name: &str) -> DeviceName {
        let given = name.as_bytes();
        let mut bytes = [0; linux::link::NAME_LENGTH];
        let mut at = 0;
        while at < given.len() && at < bytes.len() {
            bytes[at] = given[at];
            at += 1;
        }
        // At most 15.
        #[allow(clippy::cast_possible_truncation)]
        let length = at as u8;
        DeviceName { bytes, length }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        let bytes = self.bytes.get(..usize::from(self.length));
        bytes
            .and_then(|bytes| std::str::from_utf8(bytes).ok())
            .unwrap_or_default()
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

/// A device routing makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// What it is. A device of the same name that is something else is replaced.
    pub kind: DeviceKind,
    /// Largest packet in bytes, without the tunnel's headers.
    pub mtu: u32,
    /// Hardware address, of Ethernet-like kinds.
    pub mac: Option<MacAddress>,
    /// Its addresses, without routes of their own.
    pub addresses: BTreeSet<IpNet>,
    /// The bridge it is a port of.
    pub bridge: Option<DeviceName>,
    /// Whether the kernel leaves checksums of packets in the tunnel to the
    /// network card (which some get wrong).
    pub checksum_offload: bool,
    /// Whether this node answers on it for others' addresses ([`State::proxies`]).
    pub answers: bool,
    /// Key and port, of WireGuard devices.
    pub wireguard: Option<WireguardSettings>,
}

/// Key and port of a WireGuard device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WireguardSettings {
    /// The private key.
    pub private_key: PrivateKey,
    /// UDP port.
    pub port: u16,
}

/// A peer of a WireGuard device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunnelPeer {
    /// Where it is on the underlay.
    pub endpoint: SocketAddr,
    /// What is sent to it and accepted from it (its allowed IPs).
    pub ranges: BTreeSet<IpNet>,
    /// Seconds between packets that keep translators in between from forgetting the
    /// way; 0 for none.
    pub keepalive: u16,
}

impl Device {
    /// A device without addresses.
    pub fn new(kind: DeviceKind, mtu: u32) -> Device {
        Device {
            kind,
            mtu,
            mac: None,
            addresses: BTreeSet::new(),
            bridge: None,
            checksum_offload: true,
            answers: false,
            wireguard: None,
        }
    }
}

/// What a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DeviceKind {
    /// VXLAN.
    Vxlan(Vxlan),
    /// IPv4 in IPv4.
    Ipip(Ipip),
    /// IPv6 in IPv6, in external mode.
    Ip6Tunnel,
    /// WireGuard.
    Wireguard,
    /// A bridge.
    Bridge,
}

/// What routing wants the kernel to hold, and all it owns there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Devices, by name.
    pub devices: BTreeMap<DeviceName, Device>,
    /// Routes, by what the kernel tells them apart by.
    pub routes: BTreeMap<RouteKey, RouteTarget>,
    /// Policy rules.
    pub rules: BTreeSet<Rule>,
    /// Permanent neighbours: whose hardware address answers for an address on a device.
    pub neighbours: BTreeMap<(DeviceName, IpAddr), MacAddress>,
    /// Forwarding entries: where a VXLAN device sends frames for a hardware address.
    pub forwarding: BTreeMap<(DeviceName, MacAddress), Remote>,
    /// Addresses this node answers for on a device (proxy ARP and NDP).
    pub proxies: BTreeSet<(DeviceName, IpAddr)>,
    /// Peers of WireGuard devices.
    pub tunnel_peers: BTreeMap<(DeviceName, PublicKey), TunnelPeer>,
}

/// How many of each there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Counts {
    /// Devices.
    pub devices: usize,
    /// Routes.
    pub routes: usize,
    /// Policy rules.
    #[serde(default)]
    pub rules: usize,
    /// Neighbours.
    pub neighbours: usize,
    /// Forwarding entries.
    pub forwarding: usize,
    /// Addresses answered for.
    pub proxies: usize,
    /// Peers of WireGuard devices.
    pub tunnel_peers: usize,
}

impl State {
    /// How many entries it has.
    pub fn counts(&self) -> Counts {
        Counts {
            devices: self.devices.len(),
            routes: self.routes.len(),
            rules: self.rules.len(),
            neighbours: self.neighbours.len(),
            forwarding: self.forwarding.len(),
            proxies: self.proxies.len(),
            tunnel_peers: self.tunnel_peers.len(),
        }
    }

    /// Takes up all entries of another.
    pub fn extend(&mut self, other: State) {
        let State {
            devices,
            routes,
            rules,
            neighbours,
            forwarding,
            proxies,
            tunnel_peers,
        } = other;
        self.devices.extend(devices);
        self.routes.extend(routes);
        self.rules.extend(rules);
        self.neighbours.extend(neighbours);
        self.forwarding.extend(forwarding);
        self.proxies.extend(proxies);
        self.tunnel_peers.extend(tunnel_peers);
    }
}

/// Whether two ranges have an address in common.
pub(crate) fn overlap(one: &IpNet, other: &IpNet) -> bool {
    one.contains(&other.network()) || other.contains(&one.network())
}
