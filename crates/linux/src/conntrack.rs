//! Connections as conntrack holds them: listed with a filter, deleted by tuple.
//!
//! Source: `linux/netfilter/nfnetlink_conntrack.h`.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::netfilter::socket::{DumpEnd, NetfilterSocket};
use crate::netfilter::wire::{Attributes, Message, NLM_F_ACK, NLM_F_DUMP, Writer};

/// `NFNL_SUBSYS_CTNETLINK`.
const SUBSYSTEM: u16 = 1;
const MSG_NEW: u16 = 0;
const MSG_GET: u16 = 1;
const MSG_DELETE: u16 = 2;
/// `IPCTNL_MSG_CT_GET_STATS_CPU`: what each core counted.
const MSG_GET_STATS_CPU: u16 = 4;
/// `IPCTNL_MSG_CT_GET_STATS`: of the whole table.
const MSG_GET_STATS: u16 = 5;

/// `CTA_FILTER_FLAG(CTA_PROTO_NUM)` of `net/netfilter/nf_conntrack_netlink.c`.
const FILTER_PROTOCOL: u32 = 1 << 3;
/// The same of `CTA_IP_DST` and of `CTA_PROTO_DST_PORT`.
const FILTER_DESTINATION: u32 = 1 << 1;
const FILTER_DESTINATION_PORT: u32 = 1 << 5;

/// Why conntrack could not be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket could not be opened.
    #[error(
        "opening the netfilter netlink socket: {0}; conntrack needs CAP_NET_ADMIN and a kernel with nf_conntrack_netlink"
    )]
    Open(#[source] io::Error),
    /// How full the table is could not be read.
    #[error("reading how full the conntrack table is: {0}")]
    Usage(#[source] io::Error),
    /// What conntrack counted could not be read.
    #[error("reading what conntrack counted: {0}")]
    Losses(#[source] io::Error),
    /// Connections could not be listed.
    #[error("listing connections of protocol {protocol}: {source}")]
    List {
        /// Transport protocol asked for.
        protocol: u8,
        /// What the kernel said.
        source: io::Error,
    },
    /// A connection could not be deleted.
    #[error(
        "deleting the conntrack entry from {}:{} to {}:{}: {source}",
        .tuple.source, .tuple.source_port, .tuple.destination, .tuple.destination_port
    )]
    Delete {
        /// Which.
        tuple: Tuple,
        /// What the kernel said.
        source: io::Error,
    },
}

/// One direction of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// Sender.
    pub source: IpAddr,
    /// Receiver.
    pub destination: IpAddr,
    /// Transport protocol number.
    pub protocol: u8,
    /// Sender's port; 0 for protocols without.
    pub source_port: u16,
    /// Receiver's port; 0 for protocols without.
    pub destination_port: u16,
}

/// A connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Connection {
    /// As its first packet came.
    pub original: Tuple,
    /// As answers come: its source is where packets are really sent.
    pub reply: Tuple,
    /// Tells it from a later connection with the same tuple.
    id: Option<u32>,
    zone: Option<u16>,
}

/// How full the conntrack table is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Connections it holds.
    pub connections: u32,
    /// The most it may hold (`net.netfilter.nf_conntrack_max`); when it is
    /// full, new connections are dropped. 0 is no limit.
    pub limit: u32,
}

impl Usage {
    /// From 0 (empty) to 1 (full).
    #[must_use]
    pub fn fill(self) -> f64 {
        if self.limit == 0 {
            return 0.0;
        }
        f64::from(self.connections) / f64::from(self.limit)
    }
}

/// Packets conntrack gave up, of both families, since the network namespace was
/// made. The kernel counts in 32 bits on each core and begins again at 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Losses {
    /// Firsts of connections that could not be entered: another was first with the
    /// same addresses and ports, in one of the directions (`insert_failed`).
    pub insert_failed: u64,
    /// Packets dropped for that, or because the table was full or memory short
    /// (`drop`).
    pub dropped: u64,
}

/// IP version of connections to list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// `AF_INET` or `AF_INET6`.
    const fn number(self) -> u8 {
        match self {
            Self::V4 => 2,
            Self::V6 => 10,
        }
    }
}

/// A connection to the conntrack of one network namespace.
///
/// Closing it can take as long as closing [`crate::nftables::Nftables`] does.
#[derive(Debug)]
pub struct Conntrack {
    socket: NetfilterSocket,
}

const fn message(kind: u16) -> u16 {
    SUBSYSTEM << 8 | kind
}

impl Conntrack {
    /// Connects to the network namespace of the calling thread; it stays with
    /// that namespace when the thread moves on.
    ///
    /// # Errors
    /// If the kernel has no netfilter or the process no right to it.
    pub fn open() -> Result<Self, Error> {
        Ok(Self {
            socket: NetfilterSocket::open().map_err(Error::Open)?,
        })
    }

    /// Connections of one family and transport protocol. The kernel sorts the
    /// others out where it can (5.8 and later). The table lives on while it is
    /// read: a connection may appear twice, and one made meanwhile not at all.
    ///
    /// # Errors
    /// If the kernel cannot list them.
    pub fn list(&mut self, family: Family, protocol: u8) -> Result<Vec<Connection>, Error> {
        self.list_filtered(family, protocol, None)
    }

    /// Connections whose first packet went to a port of any address. As
    /// [`Self::list`], but the kernel hands over no others where it can sort them
    /// out.
    ///
    /// # Errors
    /// If the kernel cannot list them.
    pub fn list_to_port(
        &mut self,
        family: Family,
        protocol: u8,
        port: u16,
    ) -> Result<Vec<Connection>, Error> {
        let mut found = self.list_filtered(family, protocol, Some((None, port)))?;
        found.retain(|connection| connection.original.destination_port == port);
        Ok(found)
    }

    /// Connections whose first packet went to an address and port. As
    /// [`Self::list`], but the kernel hands over few others.
    ///
    /// # Errors
    /// If the kernel cannot list them.
    pub fn list_to(
        &mut self,
        destination: IpAddr,
        protocol: u8,
        port: u16,
    ) -> Result<Vec<Connection>, Error> {
        let family = match destination {
            IpAddr::V4(_) => Family::V4,
            IpAddr::V6(_) => Family::V6,
        };
        let mut found = self.list_filtered(family, protocol, Some((Some(destination), port)))?;
        found.retain(|connection| {
            let original = &connection.original;
            (original.destination, original.destination_port) == (destination, port)
        });
        Ok(found)
    }

    fn list_filtered(
        &mut self,
        family: Family,
        protocol: u8,
        to: Option<(Option<IpAddr>, u16)>,
    ) -> Result<Vec<Connection>, Error> {
        let unsupported = [
            rustix::io::Errno::INVAL.raw_os_error(),
            rustix::io::Errno::OPNOTSUPP.raw_os_error(),
        ];
        match self.dump(family, protocol, Some(to)) {
            Err(error)
                if error
                    .raw_os_error()
                    .is_some_and(|e| unsupported.contains(&e)) =>
            {
                self.dump(family, protocol, None)
            }
            other => other,
        }
        .map_err(|source| Error::List { protocol, source })
    }

    /// `filter` is absent for kernels that cannot filter; in it is the receiver,
    /// if that is to be filtered by too.
    fn dump(
        &mut self,
        family: Family,
        protocol: u8,
        filter: Option<Option<(Option<IpAddr>, u16)>>,
    ) -> io::Result<Vec<Connection>> {
        let sequence = self.socket.next_sequence();
        let mut writer = Writer::default();
        let open = writer.open_message(message(MSG_GET), NLM_F_DUMP, sequence, family.number(), 0);
        if let Some(to) = filter {
            let mut flags = FILTER_PROTOCOL;
            let tuple = writer.open(1); // CTA_TUPLE_ORIG
            if let Some((address, _)) = to {
                flags |= FILTER_DESTINATION_PORT;
                // Of IPv6 addresses the kernel passes those that differ
                // (`ctnetlink_filter_match_tuple`): by port alone, then.
                if let Some(IpAddr::V4(v4)) = address {
                    flags |= FILTER_DESTINATION;
                    let addresses = writer.open(1); // CTA_TUPLE_IP
                    writer.put(2, &v4.octets()); // CTA_IP_V4_DST
                    writer.close(addresses);
                }
            }
            let transport = writer.open(2); // CTA_TUPLE_PROTO
            writer.put(1, &[protocol]); // CTA_PROTO_NUM
            if let Some((_, port)) = to {
                writer.put(3, &port.to_be_bytes()); // CTA_PROTO_DST_PORT
            }
            writer.close(transport);
            writer.close(tuple);
            let filter = writer.open(25); // CTA_FILTER
            writer.put(1, &flags.to_ne_bytes()); // CTA_FILTER_ORIG_FLAGS
            writer.put(2, &0u32.to_ne_bytes()); // CTA_FILTER_REPLY_FLAGS
            writer.close(filter);
        }
        writer.close_message(open);
        let mut found = Vec::new();
        let answer = self.socket.dump(&writer.bytes, sequence, |m| {
            found.extend(read(m).filter(|c| c.original.protocol == protocol));
        })?;
        match answer {
            Ok(DumpEnd::Complete | DumpEnd::Interrupted) => Ok(found),
            Err(refusal) => Err(refusal.error()),
        }
    }

    /// How full the table of this network namespace is.
    ///
    /// # Errors
    /// If the kernel does not say (before 5.8 it does not say the limit).
    pub fn usage(&mut self) -> Result<Usage, Error> {
        let sequence = self.socket.next_sequence();
        let mut writer = Writer::default();
        let open = writer.open_message(message(MSG_GET_STATS), 0, sequence, 0, 0);
        writer.close_message(open);
        let mut usage = None;
        self.socket
            .request(&writer.bytes, sequence, true, |m| {
                let attributes = m.attributes();
                // CTA_STATS_GLOBAL_ENTRIES, CTA_STATS_GLOBAL_MAX_ENTRIES
                if m.kind == message(MSG_GET_STATS)
                    && let (Some(connections), Some(limit)) = (attributes.u32(1), attributes.u32(2))
                {
                    usage = Some(Usage { connections, limit });
                }
            })
            .and_then(|answer| answer.map_err(|refusal| refusal.error()))
            .and_then(|()| usage.ok_or_else(|| io::ErrorKind::InvalidData.into()))
            .map_err(Error::Usage)
    }

    /// What was lost in this network namespace, all cores together.
    ///
    /// # Errors
    /// If the kernel does not say.
    pub fn losses(&mut self) -> Result<Losses, Error> {
        let sequence = self.socket.next_sequence();
        let mut writer = Writer::default();
        let kind = message(MSG_GET_STATS_CPU);
        let open = writer.open_message(kind, NLM_F_DUMP, sequence, 0, 0);
        writer.close_message(open);
        let mut losses = Losses::default();
        self.socket
            .dump(&writer.bytes, sequence, |m| {
                if m.kind == kind {
                    let attributes = m.attributes();
                    // CTA_STATS_INSERT_FAILED, CTA_STATS_DROP
                    let count = |kind| u64::from(attributes.u32(kind).unwrap_or(0));
                    losses.insert_failed += count(9);
                    losses.dropped += count(10);
                }
            })
            .and_then(|answer| answer.map_err(|refusal| refusal.error()))
            .map_err(Error::Losses)?;
        Ok(losses)
    }

    /// Deletes a connection; false if it was gone already.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn delete(&mut self, connection: &Connection) -> Result<bool, Error> {
        let sequence = self.socket.next_sequence();
        let tuple = &connection.original;
        let family = match tuple.source {
            IpAddr::V4(_) => Family::V4,
            IpAddr::V6(_) => Family::V6,
        };
        let mut writer = Writer::default();
        let open =
            writer.open_message(message(MSG_DELETE), NLM_F_ACK, sequence, family.number(), 0);
        write_tuple(&mut writer, tuple);
        if let Some(id) = connection.id {
            writer.put_u32(12, id); // CTA_ID
        }
        if let Some(zone) = connection.zone {
            writer.put(18, &zone.to_be_bytes()); // CTA_ZONE
        }
        writer.close_message(open);
        let failed = |source| Error::Delete {
            tuple: *tuple,
            source,
        };
        match self
            .socket
            .request(&writer.bytes, sequence, false, |_| {})
            .map_err(failed)?
        {
            Ok(()) => Ok(true),
            Err(refusal) if refusal.errno == rustix::io::Errno::NOENT.raw_os_error() => Ok(false),
            Err(refusal) => Err(failed(refusal.error())),
        }
    }
}

fn write_tuple(writer: &mut Writer, tuple: &Tuple) {
    let open = writer.open(1); // CTA_TUPLE_ORIG
    let addresses = writer.open(1); // CTA_TUPLE_IP
    for (offset, address) in [(0, tuple.source), (1, tuple.destination)] {
        match address {
            IpAddr::V4(v4) => writer.put(1 + offset, &v4.octets()),
            IpAddr::V6(v6) => writer.put(3 + offset, &v6.octets()),
        }
    }
    writer.close(addresses);
    let transport = writer.open(2); // CTA_TUPLE_PROTO
    writer.put(1, &[tuple.protocol]);
    writer.put(2, &tuple.source_port.to_be_bytes());
    writer.put(3, &tuple.destination_port.to_be_bytes());
    writer.close(transport);
    writer.close(open);
}

fn read(m: Message<'_>) -> Option<Connection> {
    if m.kind != message(MSG_NEW) {
        return None;
    }
    let attributes = m.attributes();
    Some(Connection {
        original: read_tuple(attributes.nested(1)?)?,
        reply: read_tuple(attributes.nested(2)?)?,
        id: attributes.u32(12),
        zone: attributes
            .find(18)
            .and_then(|bytes| bytes.try_into().ok())
            .map(u16::from_be_bytes),
    })
}

fn read_tuple(tuple: Attributes<'_>) -> Option<Tuple> {
    let addresses = tuple.nested(1)?;
    let address = |kind: u16| -> Option<IpAddr> {
        if let Some(bytes) = addresses.find(kind) {
            return Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into());
        }
        let bytes = addresses.find(kind + 2)?;
        Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into())
    };
    let transport = tuple.nested(2)?;
    let port = |kind: u16| {
        transport
            .find(kind)
            .and_then(|bytes| bytes.try_into().ok())
            .map_or(0, u16::from_be_bytes)
    };
    Some(Tuple {
        source: address(1)?,
        destination: address(2)?,
        protocol: *transport.find(1)?.first()?,
        source_port: port(2),
        destination_port: port(3),
    })
}
