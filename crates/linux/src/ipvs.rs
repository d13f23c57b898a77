//! IP Virtual Server: virtual services, their destinations, counters, time-outs.
//!
//! All of it is a network namespace's own. Changes go out many at a time
//! ([`Ipvs::apply`]); listing is for adopting and auditing.
//!
//! Sources: `include/uapi/linux/ip_vs.h`; `net/netfilter/ipvs/ip_vs_ctl.c`
//! (`ip_vs_genl_parse_service`, `ip_vs_genl_parse_dest`: which attributes a
//! change must have); `Documentation/networking/ipvs-sysctl.rst`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_core::DecodeError;
use rustix::io::Errno;

use crate::generic::{Description, Family, attributes_of};
use crate::netfilter::wire::{Attributes, Writer};
use crate::netlink::{self, Error, Message, Request, Socket};

const FAMILY: Description = Description {
    name: "IPVS",
    version: 1,
    feature: "IPVS",
    module: "ip_vs",
};

/// `IPVS_CMD_*`.
mod command {
    pub(super) const NEW_SERVICE: u8 = 1;
    pub(super) const SET_SERVICE: u8 = 2;
    pub(super) const DEL_SERVICE: u8 = 3;
    pub(super) const GET_SERVICE: u8 = 4;
    pub(super) const NEW_DEST: u8 = 5;
    pub(super) const SET_DEST: u8 = 6;
    pub(super) const DEL_DEST: u8 = 7;
    pub(super) const GET_DEST: u8 = 8;
    pub(super) const SET_CONFIG: u8 = 12;
    pub(super) const GET_CONFIG: u8 = 13;
}

/// `IPVS_CMD_ATTR_*`.
mod attribute {
    pub(super) const SERVICE: u16 = 1;
    pub(super) const DEST: u16 = 2;
    pub(super) const TIMEOUT_TCP: u16 = 4;
    pub(super) const TIMEOUT_TCP_FIN: u16 = 5;
    pub(super) const TIMEOUT_UDP: u16 = 6;
}

/// `IPVS_SVC_ATTR_*`.
mod service {
    pub(super) const AF: u16 = 1;
    pub(super) const PROTOCOL: u16 = 2;
    pub(super) const ADDR: u16 = 3;
    pub(super) const PORT: u16 = 4;
    pub(super) const SCHED_NAME: u16 = 6;
    pub(super) const FLAGS: u16 = 7;
    pub(super) const TIMEOUT: u16 = 8;
    pub(super) const NETMASK: u16 = 9;
    pub(super) const STATS64: u16 = 12;
}

/// `IPVS_DEST_ATTR_*`.
mod destination {
    pub(super) const ADDR: u16 = 1;
    pub(super) const PORT: u16 = 2;
    pub(super) const FWD_METHOD: u16 = 3;
    pub(super) const WEIGHT: u16 = 4;
    pub(super) const U_THRESH: u16 = 5;
    pub(super) const L_THRESH: u16 = 6;
    pub(super) const ACTIVE_CONNS: u16 = 7;
    pub(super) const INACT_CONNS: u16 = 8;
    pub(super) const PERSIST_CONNS: u16 = 9;
    pub(super) const ADDR_FAMILY: u16 = 11;
    pub(super) const STATS64: u16 = 12;
}

/// `IPVS_STATS_ATTR_*`.
mod stats {
    pub(super) const CONNS: u16 = 1;
    pub(super) const INPKTS: u16 = 2;
    pub(super) const OUTPKTS: u16 = 3;
    pub(super) const INBYTES: u16 = 4;
    pub(super) const OUTBYTES: u16 = 5;
}

/// `IP_VS_SVC_F_PERSISTENT`.
const PERSISTENT: u32 = 0x1;
/// `IP_VS_SVC_F_ONEPACKET`.
const ONE_PACKET: u32 = 0x4;
/// `IP_VS_SVC_F_SCHED1`: for sh and mh, fall back to another destination.
const SCHEDULER_FALLBACK: u32 = 0x8;
/// `IP_VS_SVC_F_SCHED2`: for sh and mh, the port counts too.
const SCHEDULER_PORT: u32 = 0x10;
/// `IP_VS_CONN_F_FWD_MASK`.
const FORWARDING: u32 = 0x7;
/// `IP_VS_SCHEDNAME_MAXLEN`, with the final zero.
const SCHEDULER_LENGTH: usize = 16;

/// `AF_INET` and `AF_INET6`.
const INET: u16 = 2;
const INET6: u16 = 10;

/// Transport protocols IPVS balances.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// RFC 9293.
    Tcp,
    /// RFC 768.
    Udp,
    /// RFC 9260.
    Sctp,
}

impl Protocol {
    fn number(self) -> u16 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    fn of(number: u16) -> Option<Self> {
        match number {
            6 => Some(Self::Tcp),
            17 => Some(Self::Udp),
            132 => Some(Self::Sctp),
            _ => None,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        })
    }
}

/// What a virtual service answers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Frontend {
    /// Virtual address, of either family.
    pub address: IpAddr,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Virtual port; 0, of persistent services only, stands for all ports.
    pub port: u16,
}

impl fmt::Display for Frontend {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            address,
            protocol,
            port,
        } = self;
        write!(formatter, "{protocol} ")?;
        Backend {
            address: *address,
            port: *port,
        }
        .fmt(formatter)
    }
}

/// Which destination of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Backend {
    /// Its address; of the service's family where it is reached by
    /// [`Forwarding::Masquerade`].
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
}

impl fmt::Display for Backend {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        std::net::SocketAddr::new(self.address, self.port).fmt(formatter)
    }
}

/// How long a client keeps its destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Persistence {
    /// Seconds after the client's last connection ended.
    pub seconds: u32,
    /// Clients that share so many leading bits of their addresses count as
    /// one: 32 (of IPv6, 128) for each on its own.
    pub prefix_length: u8,
}

impl Persistence {
    /// Each client on its own.
    pub fn of_clients(seconds: u32, service: IpAddr) -> Self {
        Self {
            seconds,
            prefix_length: whole(service),
        }
    }
}

/// A virtual service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// What it answers to.
    pub frontend: Frontend,
    /// The scheduler's name: `rr`, `wrr`, `lc`, `wlc`, `sh`, `mh`, ….
    pub scheduler: String,
    /// Whether clients keep their destination.
    pub persistence: Option<Persistence>,
    /// Each datagram is scheduled on its own, UDP only.
    pub one_packet: bool,
    /// Schedulers sh and mh: another destination where the chosen one has
    /// weight 0.
    pub fallback: bool,
    /// Schedulers sh and mh: clients are told apart by their ports too.
    pub by_port: bool,
}

impl Service {
    /// One without persistence and flags.
    pub fn new(frontend: Frontend, scheduler: &str) -> Self {
        Self {
            frontend,
            scheduler: scheduler.to_owned(),
            persistence: None,
            one_packet: false,
            fallback: false,
            by_port: false,
        }
    }
}

/// How packets reach a destination (`IP_VS_CONN_F_MASQ` and those that follow).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forwarding {
    /// By translating the destination address.
    Masquerade,
    /// By handing them to this machine's own stack, as they are.
    Local,
    /// In IP-in-IP.
    Tunnel,
    /// By sending them to the destination's link-layer address, as they are.
    Direct,
}

impl Forwarding {
    fn number(self) -> u32 {
        match self {
            Self::Masquerade => 0,
            Self::Local => 1,
            Self::Tunnel => 2,
            Self::Direct => 3,
        }
    }

    fn of(number: u32) -> Option<Self> {
        match number & FORWARDING {
            0 => Some(Self::Masquerade),
            1 => Some(Self::Local),
            2 => Some(Self::Tunnel),
            3 => Some(Self::Direct),
            _ => None,
        }
    }
}

/// A destination of a virtual service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Destination {
    /// Which.
    pub backend: Backend,
    /// How it is reached.
    pub forwarding: Forwarding,
    /// Its share, of schedulers that weigh. With 0 it gets no new connections
    /// and keeps those it has: the graceful way out.
    pub weight: u16,
}

impl Destination {
    /// One reached by address translation.
    pub fn new(backend: Backend, weight: u16) -> Self {
        Self {
            backend,
            forwarding: Forwarding::Masquerade,
            weight,
        }
    }
}

/// Counters of a service or destination since it was made, as of two seconds
/// ago or less: the kernel adds them up that often.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Connections scheduled.
    pub connections: u64,
    /// Packets from clients.
    pub packets_in: u64,
    /// Packets to clients.
    pub packets_out: u64,
    /// Bytes from clients.
    pub bytes_in: u64,
    /// Bytes to clients.
    pub bytes_out: u64,
}

/// A service as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceState {
    /// The service.
    pub service: Service,
    /// What went through it.
    pub counters: Counters,
}

/// A destination as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DestinationState {
    /// The destination.
    pub destination: Destination,
    /// Connections that are open.
    pub active: u32,
    /// Connections that end, and of UDP those that are not forgotten yet.
    pub inactive: u32,
    /// Clients that are kept to it.
    pub persistent: u32,
    /// What went to it.
    pub counters: Counters,
}

/// Seconds after which a silent connection is forgotten, for a whole network
/// namespace. 0 in a change leaves what is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// Established TCP.
    pub tcp: u32,
    /// TCP after a FIN.
    pub tcp_fin: u32,
    /// UDP.
    pub udp: u32,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Makes a service that is not there.
    AddService(Service),
    /// Changes scheduler, persistence and flags; connections stay.
    EditService(Service),
    /// Removes a service with its destinations.
    DeleteService(Frontend),
    /// Adds a destination that is not there.
    AddDestination(Frontend, Destination),
    /// Changes weight and forwarding; connections stay.
    EditDestination(Frontend, Destination),
    /// Removes a destination. Packets of its connections are dropped from then
    /// on until it comes back; with the sysctl `net.ipv4.vs.expire_nodest_conn`
    /// set, the connections are forgotten instead.
    DeleteDestination(Frontend, Backend),
}

impl Change {
    /// The scheduler the change asks for.
    fn scheduler(&self) -> Option<&str> {
        match self {
            Self::AddService(service) | Self::EditService(service) => Some(&service.scheduler),
            _ => None,
        }
    }
}

/// A way to the IPVS of one network namespace.
#[derive(Debug)]
pub struct Ipvs {
    socket: Socket,
    family: Family,
}

impl Ipvs {
    /// Opens it in the calling thread's network namespace. A kernel without
    /// IPVS is an [`Error::Missing`].
    pub fn open() -> Result<Self, Error> {
        let mut socket = Socket::open(netlink::Protocol::Generic)?;
        let family = Family::resolve(&mut socket, &FAMILY)?;
        Ok(Self { socket, family })
    }

    /// Carries out changes in order, many in one system call, with an outcome
    /// for each; one that fails does not keep those behind it from being done.
    /// A scheduler the kernel lacks is an [`Error::Missing`]. The outer error
    /// is one of the socket, after which outcomes are unknown.
    pub fn apply(&mut self, changes: &[Change]) -> Result<Vec<Result<(), Error>>, Error> {
        let requests = changes
            .iter()
            .map(|change| encode(self.family, change))
            .collect::<Result<Vec<_>, _>>()?;
        let mut outcomes = self.socket.attempt_all(&requests)?;
        for ((change, request), outcome) in changes.iter().zip(&requests).zip(&mut outcomes) {
            if let (Some(scheduler), Err(error)) = (change.scheduler(), &outcome)
                && error.errno() == Some(Errno::NOENT)
            {
                *outcome = Err(Error::Missing {
                    purpose: request.purpose().to_owned(),
                    feature: format!("IPVS scheduler {scheduler}"),
                    module: format!("ip_vs_{scheduler}"),
                });
            }
        }
        Ok(outcomes)
    }

    /// Lists all services but those of packet marks, and of protocols other
    /// than [`Protocol`]'s.
    pub fn services(&mut self) -> Result<Vec<ServiceState>, Error> {
        let request = self
            .family
            .request("list IPVS services", command::GET_SERVICE, 0, &[]);
        self.socket.dump(request, decode_service)
    }

    /// Lists the destinations of a service; none when there is no such service.
    pub fn destinations(&mut self, of: &Frontend) -> Result<Vec<DestinationState>, Error> {
        let mut attributes = Writer::default();
        put_frontend(&mut attributes, of, |_| ());
        let request = self.family.request(
            format!("list the destinations of the IPVS service {of}"),
            command::GET_DEST,
            0,
            &attributes.bytes,
        );
        self.socket
            .dump(request, |message| decode_destination(message, of.address))
    }

    /// Reads the time-outs.
    pub fn timeouts(&mut self) -> Result<Timeouts, Error> {
        let purpose = "read the time-outs of IPVS";
        let request = self.family.request(purpose, command::GET_CONFIG, 0, &[]);
        let found = self.socket.query(&request, |message| {
            let attributes = Attributes(attributes_of(message));
            let seconds = |kind| host_u32(attributes, kind).unwrap_or(0);
            Ok(Some(Timeouts {
                tcp: seconds(attribute::TIMEOUT_TCP),
                tcp_fin: seconds(attribute::TIMEOUT_TCP_FIN),
                udp: seconds(attribute::TIMEOUT_UDP),
            }))
        })?;
        found.first().copied().ok_or_else(|| Error::Malformed {
            purpose: purpose.to_owned(),
            reason: "it is empty".to_owned(),
        })
    }

    /// Sets the time-outs.
    pub fn set_timeouts(&mut self, timeouts: &Timeouts) -> Result<(), Error> {
        let mut attributes = Writer::default();
        for (kind, seconds) in [
            (attribute::TIMEOUT_TCP, timeouts.tcp),
            (attribute::TIMEOUT_TCP_FIN, timeouts.tcp_fin),
            (attribute::TIMEOUT_UDP, timeouts.udp),
        ] {
            attributes.put(kind, &seconds.to_ne_bytes());
        }
        self.socket.execute(&self.family.request(
            "set the time-outs of IPVS",
            command::SET_CONFIG,
            0,
            &attributes.bytes,
        ))
    }
}

fn encode(family: Family, change: &Change) -> Result<Request, Error> {
    let mut attributes = Writer::default();
    let (verb, number) = match change {
        Change::AddService(_) => ("add", command::NEW_SERVICE),
        Change::EditService(_) => ("change", command::SET_SERVICE),
        Change::DeleteService(_) => ("remove", command::DEL_SERVICE),
        Change::AddDestination(..) => ("add", command::NEW_DEST),
        Change::EditDestination(..) => ("change", command::SET_DEST),
        Change::DeleteDestination(..) => ("remove", command::DEL_DEST),
    };
    let purpose = match change {
        Change::AddService(service) | Change::EditService(service) => {
            let purpose = format!("{verb} the IPVS service {}", service.frontend);
            check(&purpose, service)?;
            put_frontend(&mut attributes, &service.frontend, |attributes| {
                put_settings(attributes, service);
            });
            purpose
        }
        Change::DeleteService(frontend) => {
            put_frontend(&mut attributes, frontend, |_| ());
            format!("{verb} the IPVS service {frontend}")
        }
        Change::AddDestination(frontend, destination)
        | Change::EditDestination(frontend, destination) => {
            put_frontend(&mut attributes, frontend, |_| ());
            put_backend(&mut attributes, &destination.backend, |attributes| {
                let method = destination.forwarding.number();
                attributes.put(destination::FWD_METHOD, &method.to_ne_bytes());
                let weight = u32::from(destination.weight);
                attributes.put(destination::WEIGHT, &weight.to_ne_bytes());
                attributes.put(destination::U_THRESH, &0u32.to_ne_bytes());
                attributes.put(destination::L_THRESH, &0u32.to_ne_bytes());
            });
            let backend = destination.backend;
            format!("{verb} the destination {backend} of the IPVS service {frontend}")
        }
        Change::DeleteDestination(frontend, backend) => {
            put_frontend(&mut attributes, frontend, |_| ());
            put_backend(&mut attributes, backend, |_| ());
            format!("{verb} the destination {backend} of the IPVS service {frontend}")
        }
    };
    Ok(family.request(purpose, number, 0, &attributes.bytes))
}

/// What the kernel would cut off or misread.
fn check(purpose: &str, service: &Service) -> Result<(), Error> {
    let refuse = |reason: String| {
        Err(Error::Argument {
            purpose: purpose.to_owned(),
            reason,
        })
    };
    let scheduler = &service.scheduler;
    if scheduler.is_empty() || scheduler.len() >= SCHEDULER_LENGTH || scheduler.contains('\0') {
        return refuse(format!("{scheduler:?} is not the name of a scheduler"));
    }
    let most = whole(service.frontend.address);
    match service.persistence {
        Some(Persistence { prefix_length, .. }) if !(1..=most).contains(&prefix_length) => refuse(
            format!("clients cannot be grouped by {prefix_length} bits, only by 1 to {most}"),
        ),
        _ => Ok(()),
    }
}

/// Bits of an address of the family.
fn whole(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

fn put_frontend(writer: &mut Writer, frontend: &Frontend, more: impl FnOnce(&mut Writer)) {
    let open = writer.open(attribute::SERVICE);
    writer.put(service::AF, &family_of(frontend.address).to_ne_bytes());
    writer.put(service::PROTOCOL, &frontend.protocol.number().to_ne_bytes());
    writer.put(service::ADDR, &address_bytes(frontend.address));
    writer.put(service::PORT, &frontend.port.to_be_bytes());
    more(writer);
    writer.close(open);
}

fn put_settings(writer: &mut Writer, service: &Service) {
    writer.put_text(service::SCHED_NAME, &service.scheduler);
    let flags = [
        (service.persistence.is_some(), PERSISTENT),
        (service.one_packet, ONE_PACKET),
        (service.fallback, SCHEDULER_FALLBACK),
        (service.by_port, SCHEDULER_PORT),
    ];
    let set = flags
        .iter()
        .filter(|(set, _)| *set)
        .fold(0u32, |all, (_, flag)| all | flag);
    // struct ip_vs_flags: the flags, then which of them count.
    let mut bytes = set.to_ne_bytes().to_vec();
    bytes.extend(u32::MAX.to_ne_bytes());
    writer.put(service::FLAGS, &bytes);
    let persistence = service
        .persistence
        .unwrap_or_else(|| Persistence::of_clients(0, service.frontend.address));
    writer.put(service::TIMEOUT, &persistence.seconds.to_ne_bytes());
    let length = u32::from(persistence.prefix_length);
    // A mask in network order; of IPv6 a length in host order.
    let mask = match service.frontend.address {
        IpAddr::V4(_) => u32::MAX.checked_shl(32 - length).unwrap_or(0).to_be_bytes(),
        IpAddr::V6(_) => length.to_ne_bytes(),
    };
    writer.put(service::NETMASK, &mask);
}

fn put_backend(writer: &mut Writer, backend: &Backend, more: impl FnOnce(&mut Writer)) {
    let open = writer.open(attribute::DEST);
    writer.put(
        destination::ADDR_FAMILY,
        &family_of(backend.address).to_ne_bytes(),
    );
    writer.put(destination::ADDR, &address_bytes(backend.address));
    writer.put(destination::PORT, &backend.port.to_be_bytes());
    more(writer);
    writer.close(open);
}

fn family_of(address: IpAddr) -> u16 {
    match address {
        IpAddr::V4(_) => INET,
        IpAddr::V6(_) => INET6,
    }
}

/// `union nf_inet_addr`: IPv4 takes the first four of its sixteen bytes.
fn address_bytes(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&address.octets());
            bytes
        }
        IpAddr::V6(address) => address.octets(),
    }
}

fn decode_service(message: Message<'_>) -> Result<Option<ServiceState>, DecodeError> {
    let attributes = Attributes(attributes_of(message))
        .nested(attribute::SERVICE)
        .ok_or("an answer without a service")?;
    let Some(protocol) = host_u16(attributes, service::PROTOCOL).and_then(Protocol::of) else {
        return Ok(None);
    };
    let family = host_u16(attributes, service::AF).ok_or("a service without a family")?;
    let address = decode_address(attributes.find(service::ADDR), family)
        .ok_or("a service without an address")?;
    let flags = attributes
        .find(service::FLAGS)
        .and_then(|bytes| bytes.first_chunk())
        .map_or(0, |bytes| u32::from_ne_bytes(*bytes));
    let mask = attributes
        .find(service::NETMASK)
        .and_then(|bytes| bytes.first_chunk())
        .copied();
    let prefix_length = match (mask, address) {
        (Some(mask), IpAddr::V4(_)) => u32::from_be_bytes(mask).leading_ones(),
        (Some(mask), IpAddr::V6(_)) => u32::from_ne_bytes(mask),
        (None, _) => u32::from(whole(address)),
    };
    let persistence = Persistence {
        seconds: host_u32(attributes, service::TIMEOUT).unwrap_or(0),
        prefix_length: u8::try_from(prefix_length)
            .map_err(|_| DecodeError::from("a netmask longer than an address"))?,
    };
    Ok(Some(ServiceState {
        service: Service {
            frontend: Frontend {
                address,
                protocol,
                port: network_u16(attributes, service::PORT).unwrap_or(0),
            },
            scheduler: attributes
                .text(service::SCHED_NAME)
                .unwrap_or_default()
                .into_owned(),
            persistence: (flags & PERSISTENT != 0).then_some(persistence),
            one_packet: flags & ONE_PACKET != 0,
            fallback: flags & SCHEDULER_FALLBACK != 0,
            by_port: flags & SCHEDULER_PORT != 0,
        },
        counters: decode_counters(attributes.nested(service::STATS64)),
    }))
}

fn decode_destination(
    message: Message<'_>,
    service: IpAddr,
) -> Result<Option<DestinationState>, DecodeError> {
    let attributes = Attributes(attributes_of(message))
        .nested(attribute::DEST)
        .ok_or("an answer without a destination")?;
    let number = |kind| host_u32(attributes, kind).unwrap_or(0);
    // Kernels before 3.18 do not say: it was always the service's then.
    let family =
        host_u16(attributes, destination::ADDR_FAMILY).unwrap_or_else(|| family_of(service));
    let address = decode_address(attributes.find(destination::ADDR), family)
        .ok_or("a destination without an address")?;
    let forwarding = Forwarding::of(number(destination::FWD_METHOD))
        .ok_or("a destination with an unknown way to it")?;
    Ok(Some(DestinationState {
        destination: Destination {
            backend: Backend {
                address,
                port: network_u16(attributes, destination::PORT).unwrap_or(0),
            },
            forwarding,
            // Others may have set more than we ever do.
            weight: u16::try_from(number(destination::WEIGHT)).unwrap_or(u16::MAX),
        },
        active: number(destination::ACTIVE_CONNS),
        inactive: number(destination::INACT_CONNS),
        persistent: number(destination::PERSIST_CONNS),
        counters: decode_counters(attributes.nested(destination::STATS64)),
    }))
}

fn decode_counters(attributes: Option<Attributes<'_>>) -> Counters {
    let count = |kind| {
        attributes
            .and_then(|attributes| attributes.find(kind))
            .and_then(|bytes| bytes.first_chunk())
            .map_or(0, |bytes| u64::from_ne_bytes(*bytes))
    };
    Counters {
        connections: count(stats::CONNS),
        packets_in: count(stats::INPKTS),
        packets_out: count(stats::OUTPKTS),
        bytes_in: count(stats::INBYTES),
        bytes_out: count(stats::OUTBYTES),
    }
}

fn decode_address(bytes: Option<&[u8]>, family: u16) -> Option<IpAddr> {
    match family {
        INET => Some(Ipv4Addr::from(*bytes?.first_chunk::<4>()?).into()),
        INET6 => Some(Ipv6Addr::from(*bytes?.first_chunk::<16>()?).into()),
        _ => None,
    }
}

fn host_u16(attributes: Attributes<'_>, kind: u16) -> Option<u16> {
    Some(u16::from_ne_bytes(*attributes.find(kind)?.first_chunk()?))
}

fn host_u32(attributes: Attributes<'_>, kind: u16) -> Option<u32> {
    Some(u32::from_ne_bytes(*attributes.find(kind)?.first_chunk()?))
}

fn network_u16(attributes: Attributes<'_>, kind: u16) -> Option<u16> {
    Some(u16::from_be_bytes(*attributes.find(kind)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;
    use crate::netlink::Messages;

    fn frontend(address: &str) -> Frontend {
        Frontend {
            address: address.parse().unwrap(),
            protocol: Protocol::Tcp,
            port: 80,
        }
    }

    fn payload(change: &Change) -> Vec<u8> {
        let bytes = encode(Family::numbered(0x1f), change).unwrap().encoded();
        Messages::new(&bytes).next().unwrap().payload.to_vec()
    }

    fn message<'a>(payload: &'a [u8]) -> Message<'a> {
        Message {
            message_type: 0x1f,
            flags: 0,
            sequence: 1,
            port: 0,
            payload,
        }
    }

    #[test]
    fn the_bytes_of_a_destination_are_those_of_the_kernels_header() {
        let change = Change::AddDestination(
            frontend("10.96.0.1"),
            Destination::new(
                Backend {
                    address: "10.200.1.2".parse().unwrap(),
                    port: 8080,
                },
                3,
            ),
        );
        let mut expected: Vec<u8> = vec![5, 1, 0, 0]; // IPVS_CMD_NEW_DEST, version
        expected.extend([48, 0, 1, 0x80]); // IPVS_CMD_ATTR_SERVICE, nested
        expected.extend([6, 0, 1, 0, 2, 0, 0, 0]); // AF_INET
        expected.extend([6, 0, 2, 0, 6, 0, 0, 0]); // TCP
        expected.extend([20, 0, 3, 0, 10, 96, 0, 1]);
        expected.extend([0; 12]);
        expected.extend([6, 0, 4, 0, 0, 80, 0, 0]);
        expected.extend([72, 0, 2, 0x80]); // IPVS_CMD_ATTR_DEST, nested
        expected.extend([6, 0, 11, 0, 2, 0, 0, 0]);
        expected.extend([20, 0, 1, 0, 10, 200, 1, 2]);
        expected.extend([0; 12]);
        expected.extend([6, 0, 2, 0, 0x1f, 0x90, 0, 0]);
        expected.extend([8, 0, 3, 0, 0, 0, 0, 0]); // IP_VS_CONN_F_MASQ
        expected.extend([8, 0, 4, 0, 3, 0, 0, 0]); // weight
        expected.extend([8, 0, 5, 0, 0, 0, 0, 0]);
        expected.extend([8, 0, 6, 0, 0, 0, 0, 0]);
        assert_eq!(payload(&change), expected);
    }

    #[rstest]
    #[case("10.96.0.1", None)]
    #[case("10.96.0.1", Some(24))]
    #[case("fd00:96::1", None)]
    #[case("fd00:96::1", Some(64))]
    fn a_service_is_read_as_it_is_written(
        #[case] address: &str,
        #[case] prefix_length: Option<u8>,
        #[values(false, true)] flag: bool,
    ) {
        let service = Service {
            persistence: prefix_length.map(|prefix_length| Persistence {
                seconds: 10800,
                prefix_length,
            }),
            fallback: flag,
            by_port: !flag,
            ..Service::new(frontend(address), "sh")
        };
        let bytes = payload(&Change::AddService(service.clone()));
        let read = decode_service(message(&bytes)).unwrap().unwrap();
        assert_eq!(read.service, service);
    }

    #[rstest]
    #[case("", None, "\"\" is not the name of a scheduler")]
    #[case("a-name-that-is-too-long", None, "is not the name of a scheduler")]
    #[case("rr", Some(33), "only by 1 to 32")]
    #[case("rr", Some(0), "only by 1 to 32")]
    fn what_the_kernel_would_misread_is_refused(
        #[case] scheduler: &str,
        #[case] prefix_length: Option<u8>,
        #[case] reason: &str,
    ) {
        let service = Service {
            persistence: prefix_length.map(|prefix_length| Persistence {
                seconds: 1,
                prefix_length,
            }),
            ..Service::new(frontend("10.96.0.1"), scheduler)
        };
        let error = encode(Family::numbered(1), &Change::AddService(service)).unwrap_err();
        assert!(error.to_string().contains(reason), "{error}");
    }

    proptest! {
        #[test]
        fn no_answer_makes_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode_service(message(&bytes));
            let _ = decode_destination(message(&bytes), Ipv4Addr::LOCALHOST.into());
        }

        #[test]
        fn no_damaged_answer_makes_the_reader_panic(at in 0usize..100, byte in any::<u8>()) {
            let mut bytes = payload(&Change::AddService(Service::new(frontend("fd00::1"), "rr")));
            let at = at.min(bytes.len() - 1);
            bytes[at] = byte;
            let _ = decode_service(message(&bytes));
        }
    }
}
