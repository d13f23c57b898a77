//! The fast path of pods' packets to pods of other nodes: BPF programs that carry
//! the packets of established, untranslated connections between the pod's
//! interface and that which leads to the other node, the underlay's or a
//! tunnel's, past the node's IP stack. What they take and what they leave to the
//! stack is told in `bpf/fast_path.c`.
//!
//! When the process ends, its programs go, at once or a little later, and all
//! packets take the stack, which knows their connections.
//!
//! The stack sees only the beginning and the end of such a connection, so it must
//! not judge TCP's sequence numbers: see [`LIBERAL`].

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;
use rustix::time::{ClockId, clock_getres};

pub use crate::bpf::Error;
use crate::bpf::{self, Link, Links, Map, Needs, Object, PerCpu, Program};
use crate::conntrack::Conntrack;
use crate::link::MacAddress;
use crate::namespace::{self, NetworkNamespace};
use crate::sysctl::{self, Setting};

/// What `cargo xtask bpf` made of `bpf/fast_path.c`.
static OBJECT: &[u8] = include_bytes!("../bpf/fast_path.o");

/// Functions of conntrack that the programs call, of module `nf_conntrack`.
const LOOKUP: &str = "bpf_skb_ct_lookup";
const RENEW: &str = "bpf_ct_change_timeout";
const RELEASE: &str = "bpf_ct_release";

/// Settings that make conntrack take packets of a connection whose sequence
/// numbers it has not followed. Without them the end of a connection that took
/// the fast path would be INVALID to the stack, and dropped.
///
/// Source: `Documentation/networking/nf_conntrack-sysctl.rst`.
pub const LIBERAL: [&str; 2] = [
    "netfilter/nf_conntrack_tcp_be_liberal",
    "netfilter/nf_conntrack_tcp_ignore_invalid_rst",
];

/// For how long, in seconds, conntrack keeps an established connection of TCP and a
/// conversation of UDP without a packet. In the order of the program's map.
///
/// Source: `Documentation/networking/nf_conntrack-sysctl.rst`.
const TIMEOUTS: [&str; 2] = [
    "netfilter/nf_conntrack_tcp_timeout_established",
    "netfilter/nf_conntrack_udp_timeout_stream",
];

/// Makes the settings of [`LIBERAL`] in the calling thread's network namespace.
pub fn be_liberal() -> Result<(), sysctl::Error> {
    LIBERAL
        .into_iter()
        .try_for_each(|name| Setting::new(name).write(1))
}

/// What the kernel lacks for the fast path.
#[derive(Debug, thiserror::Error)]
pub enum Lacking {
    /// The programs cannot be loaded or attached.
    #[error(transparent)]
    Program(#[from] Error),
    /// Conntrack's settings cannot be made.
    #[error(transparent)]
    Setting(#[from] sysctl::Error),
    /// No namespace could be made to try it in.
    #[error(transparent)]
    Namespace(#[from] namespace::Error),
}

/// Loads the programs, once the kernel has shown, in a network namespace made for
/// it, that it can do what they need. Nothing is attached: each time would have all
/// who change links, in all namespaces, wait until the kernel is done with it.
///
/// # Errors
/// What the kernel lacks.
pub fn probe() -> Result<FastPath, Lacking> {
    NetworkNamespace::create()?.run(|| {
        // Asked anything about connections, a kernel loads the module that knows
        // them. What follows needs it and would not.
        let _ = Conntrack::open().and_then(|mut conntrack| conntrack.usage());
        be_liberal()?;
        let fast = FastPath::load()?;
        fast.follow_timeouts()?;
        for program in [&fast.outbound, &fast.inbound, &fast.inbound_ip] {
            program.can_be_attached()?;
        }
        Ok(fast)
    })?
}

/// A pod's interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pod {
    /// Index of the host side of its veth.
    pub interface: u32,
    /// The pod's hardware address.
    pub mac: MacAddress,
    /// The hardware address to which the pod sends what leaves it.
    pub gateway: MacAddress,
}

/// The way to pods of a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Way {
    /// Index of the interface that packets to them leave by, and packets from
    /// them come in by.
    pub interface: u32,
    /// Longest packet in bytes, where it is below the interface's.
    pub mtu: Option<u32>,
    /// How the interface is told where they go.
    pub via: Via,
}

/// Where packets go by an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Via {
    /// To a next hop on an Ethernet, a tunnel's included.
    Neighbour(IpAddr),
    /// On an Ethernet, a tunnel's included, the pods' addresses themselves are
    /// neighbours on.
    OnLink,
    /// To the end of a tunnel, by a device without Ethernet headers that is told
    /// it with each packet: one in external mode, or of ipip without a fixed end.
    Tunnel {
        /// Key of the tunnel (for VXLAN the network identifier).
        id: u32,
        /// Its other end on the underlay.
        remote: IpAddr,
    },
    /// By a device without Ethernet headers that knows itself where each address
    /// is: WireGuard's, by its peers' allowed ranges.
    Device,
}

/// Where programs are attached: what arrives there is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Place {
    /// The host side of a pod's veth.
    Pod,
    /// An interface with Ethernet headers that leads to other nodes.
    Ethernet,
    /// One without, where packets begin with the header of IP.
    Ip,
}

impl Place {
    /// All.
    pub const ALL: [Self; 3] = [Self::Pod, Self::Ethernet, Self::Ip];
}

impl Way {
    /// Where packets from the range arrive.
    pub fn place(&self) -> Place {
        match self.via {
            Via::Neighbour(_) | Via::OnLink => Place::Ethernet,
            Via::Tunnel { .. } | Via::Device => Place::Ip,
        }
    }
}

/// The way of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// From a pod of this node.
    Outbound,
    /// To a pod of this node.
    Inbound,
}

impl Direction {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::Outbound, Self::Inbound];
}

/// What became of a packet: `enum outcome` of the program.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// It took the fast path.
    Taken,
    /// To the stack: not TCP or UDP directly over IP, a fragment, with options or
    /// in a VLAN.
    Header,
    /// To the stack: the destination is in no range and no pod's.
    Destination,
    /// To the stack: the source is not the pod's that sent it, or in no range
    /// that is reached by the interface it came in by.
    Source,
    /// To the stack: it has no hop left.
    HopLimit,
    /// To the stack: its connection is not established, is translated, or opens or
    /// ends with it.
    Connection,
    /// To the stack: it is longer than the way takes, or the device it would go to
    /// is gone.
    Length,
}

impl Outcome {
    /// All, in the order of the program.
    pub const ALL: [Self; 7] = [
        Self::Taken,
        Self::Header,
        Self::Destination,
        Self::Source,
        Self::HopLimit,
        Self::Connection,
        Self::Length,
    ];
}

impl fmt::Display for Outcome {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Taken => "taken",
            Self::Header => "other header",
            Self::Destination => "other destination",
            Self::Source => "other source",
            Self::HopLimit => "hop limit",
            Self::Connection => "connection not established, or translated",
            Self::Length => "too long",
        })
    }
}

/// A program at an interface. It is taken away when this is dropped, and soon after
/// the process has ended, which does not wait for it.
#[derive(Debug)]
pub struct Attached {
    _link: Link,
}

/// The programs and what they know.
#[derive(Debug)]
pub struct FastPath {
    pods: Map,
    ranges: Map,
    timeouts: Map,
    counters: PerCpu,
    outbound: Program,
    inbound: Program,
    inbound_ip: Program,
    links: Arc<Links>,
}

impl FastPath {
    /// Loads the programs, which see nothing before they are attached.
    ///
    /// # Errors
    /// What the kernel lacks.
    pub fn load() -> Result<Self, Error> {
        let object = Object::parse(OBJECT)?;
        let needs = Needs {
            functions: &[LOOKUP, RENEW, RELEASE],
            module: "nf_conntrack",
            offsets: &[
                ("nf_conn_status_offset", LOOKUP, "status"),
                ("nf_conn_timeout_offset", LOOKUP, "timeout"),
                ("nf_conn_tcp_state_offset", LOOKUP, "proto.tcp.state"),
            ],
            numbers: &[("jiffies_per_second", jiffies_per_second())],
        };
        let mut loaded = bpf::load(&object, &needs)?;
        let damaged = |name: &str| Error::Object(format!("it has no {name}"));
        let mut map = |name| loaded.maps.remove(name).ok_or_else(|| damaged(name));
        let (pods, ranges) = (map("pods")?, map("ranges")?);
        let (timeouts, counters) = (map("timeouts")?, map("counters")?);
        let mut program = |name| loaded.programs.remove(name).ok_or_else(|| damaged(name));
        Ok(Self {
            pods,
            ranges,
            timeouts,
            counters: PerCpu::new(counters, Direction::BOTH.len() * Outcome::ALL.len())?,
            outbound: program("tcx/outbound")?,
            inbound: program("tcx/inbound")?,
            inbound_ip: program("tcx/inbound_ip")?,
            links: Links::new()?,
        })
    }

    /// Has packets looked at that arrive at an interface of the calling thread's
    /// network namespace. That takes as long as the kernel needs to be sure that
    /// nobody handles a packet by what was before, some milliseconds (an RCU grace
    /// period), and so does dropping what this returns. Whoever changes links
    /// meanwhile waits.
    pub fn attach(&self, place: Place, interface: u32) -> Result<Attached, Error> {
        let program = match place {
            Place::Pod => &self.outbound,
            Place::Ethernet => &self.inbound,
            Place::Ip => &self.inbound_ip,
        };
        let link = self.links.attach(program, interface)?;
        Ok(Attached { _link: link })
    }

    /// Has conntrack keep the connections whose packets take the fast path as the
    /// calling thread's network namespace has it now. Until this is called their
    /// time runs off.
    ///
    /// # Errors
    /// When the settings cannot be read, or the map not be written.
    pub fn follow_timeouts(&self) -> Result<(), Lacking> {
        for (index, name) in TIMEOUTS.into_iter().enumerate() {
            let seconds = Setting::new(name).read()?;
            let milliseconds = seconds.saturating_mul(1000);
            let milliseconds = u32::try_from(milliseconds).unwrap_or(u32::MAX);
            let key = (index as u32).to_ne_bytes();
            self.timeouts.set(&key, &milliseconds.to_ne_bytes())?;
        }
        Ok(())
    }

    /// Most addresses of pods, and most ranges.
    pub fn capacity(&self) -> (u32, u32) {
        (self.pods.capacity(), self.ranges.capacity())
    }

    /// Makes an address known as a pod's of this node.
    pub fn set_pod(&self, address: IpAddr, pod: &Pod) -> Result<(), Error> {
        let mut value = [0; 16];
        value[..4].copy_from_slice(&pod.interface.to_ne_bytes());
        value[4..10].copy_from_slice(&pod.mac.0);
        value[10..].copy_from_slice(&pod.gateway.0);
        self.pods.set(&octets(address), &value)
    }

    /// Forgets a pod's address. That it is not known is no error.
    pub fn remove_pod(&self, address: IpAddr) -> Result<(), Error> {
        unless_gone(self.pods.remove(&octets(address)))
    }

    /// Makes the way to a range known.
    pub fn set_range(&self, range: IpNet, way: &Way) -> Result<(), Error> {
        self.ranges.set(&range_key(range), &range_value(way))
    }

    /// Forgets a range. That it is not known is no error.
    pub fn remove_range(&self, range: IpNet) -> Result<(), Error> {
        unless_gone(self.ranges.remove(&range_key(range)))
    }

    /// How many packets had this outcome since the programs were loaded. A
    /// packet that the network card or the sender put together from several
    /// segments is one.
    pub fn count(&self, direction: Direction, outcome: Outcome) -> Result<u64, Error> {
        let index = direction as u32 * Outcome::ALL.len() as u32 + outcome as u32;
        self.counters.sum(index)
    }
}

fn unless_gone(result: Result<(), Error>) -> Result<(), Error> {
    match result {
        Err(error) if error.is_gone() => Ok(()),
        other => other,
    }
}

/// An address as the maps have it, IPv4 mapped into IPv6 (RFC 4291, 2.5.5.2).
fn octets(address: IpAddr) -> [u8; 16] {
    let six: Ipv6Addr = match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    };
    six.octets()
}

/// `struct range` of the program.
fn range_value(way: &Way) -> [u8; 36] {
    let (kind, to, id): (u32, _, _) = match way.via {
        Via::Neighbour(address) => (0, address, 0),
        Via::Tunnel { id, remote } => (1, remote, id),
        Via::OnLink => (2, Ipv4Addr::UNSPECIFIED.into(), 0),
        Via::Device => (3, Ipv4Addr::UNSPECIFIED.into(), 0),
    };
    let mut value = [0; 36];
    let mut put = |at: usize, bytes: &[u8]| value[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &way.interface.to_ne_bytes());
    put(4, &way.mtu.unwrap_or(u32::MAX).to_ne_bytes());
    put(8, &kind.to_ne_bytes());
    match to {
        IpAddr::V4(address) => {
            put(12, &libc::AF_INET.to_ne_bytes());
            put(16, &address.octets());
        }
        IpAddr::V6(address) => {
            put(12, &libc::AF_INET6.to_ne_bytes());
            put(16, &address.octets());
        }
    }
    put(32, &id.to_ne_bytes());
    value
}

fn range_key(range: IpNet) -> [u8; 20] {
    let bits = match range {
        IpNet::V4(range) => range.prefix_len() + 96,
        IpNet::V6(range) => range.prefix_len(),
    };
    let mut key = [0; 20];
    key[..4].copy_from_slice(&u32::from(bits).to_ne_bytes());
    key[4..].copy_from_slice(&octets(range.network()));
    key
}

/// The rate of the clock in which conntrack counts (`CONFIG_HZ`): the coarse clocks
/// are set once a tick.
fn jiffies_per_second() -> u64 {
    let tick = clock_getres(ClockId::MonotonicCoarse);
    // A tick is some milliseconds, rounded.
    (1_000_000_000 + tick.tv_nsec / 2) as u64 / (tick.tv_nsec.max(1) as u64)
}

#[cfg(test)]
mod tests {
    use sha2::{Digest as _, Sha256};

    use super::*;

    #[test]
    fn the_object_is_of_the_source_beside_it() {
        let source = Sha256::digest(include_bytes!("../bpf/fast_path.c"));
        let digest: String = source.iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(
            OBJECT
                .windows(digest.len())
                .any(|part| part == digest.as_bytes()),
            "bpf/fast_path.o is of another source: run `cargo xtask bpf`"
        );
    }

    #[test]
    fn outcomes_are_numbered_as_the_program_numbers_them() {
        for (index, outcome) in Outcome::ALL.into_iter().enumerate() {
            assert_eq!(outcome as usize, index);
        }
    }

    #[test]
    fn a_range_of_ipv4_is_one_of_mapped_addresses() {
        let key = range_key("10.1.2.0/24".parse().unwrap());
        assert_eq!(key[..4], 120u32.to_ne_bytes());
        assert_eq!(key[14..], [0xff, 0xff, 10, 1, 2, 0]);
        let key = range_key("fd00:1::/64".parse().unwrap());
        assert_eq!(key[..4], 64u32.to_ne_bytes());
        assert_eq!(key[4..8], [0xfd, 0, 0, 1]);
    }
}
