//! The expressions of a rule: the small programs that the kernel runs for a
//! packet, over sixteen registers of four bytes (`linux/netfilter/nf_tables.h`).

use crate::netfilter::wire::{Attributes, Writer};

/// A four-byte register, 0 to 15. Wider values take the following ones too:
/// an IPv6 address in register 0 fills 0 to 3.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Register(pub u8);

impl Register {
    fn number(self) -> u32 {
        8 + u32::from(self.0) // NFT_REG32_00
    }

    fn from_number(number: u32) -> Option<Self> {
        match number {
            // The kernel names aligned registers by their 16-byte aliases.
            1..=4 => Some(Self((number as u8 - 1) * 4)),
            8..=23 => Some(Self(number as u8 - 8)),
            _ => None,
        }
    }
}

/// Which header a payload offset counts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Header {
    /// The IPv4 or IPv6 header.
    Network,
    /// The TCP, UDP, SCTP, ICMP … header.
    Transport,
}

/// Facts about a packet that are not in it (`enum nft_meta_keys`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meta {
    /// What a frame holds, by its innermost tag that is looked at (`ETH_P_*`), two bytes
    /// in network order.
    Protocol,
    /// The packet mark, four bytes in host order.
    Mark,
    /// Name of the interface it leaves by, 16 bytes, zero-padded.
    OutInterfaceName,
    /// Name of the interface it came by, 16 bytes, zero-padded.
    InInterfaceName,
    /// Kind of the interface it leaves by (`ARPHRD_*`), two bytes; 772 is loopback.
    OutInterfaceType,
    /// Its family, one byte: 2 for IPv4, 10 for IPv6.
    NetworkFamily,
    /// Its transport protocol, one byte.
    TransportProtocol,
}

impl Meta {
    const fn number(self) -> u32 {
        match self {
            Self::Protocol => 1,
            Self::Mark => 3,
            Self::InInterfaceName => 6,
            Self::OutInterfaceName => 7,
            Self::OutInterfaceType => 9,
            Self::NetworkFamily => 15,
            Self::TransportProtocol => 16,
        }
    }
}

const METAS: [Meta; 7] = [
    Meta::Protocol,
    Meta::Mark,
    Meta::InInterfaceName,
    Meta::OutInterfaceName,
    Meta::OutInterfaceType,
    Meta::NetworkFamily,
    Meta::TransportProtocol,
];

/// What conntrack knows of a packet's connection (`enum nft_ct_keys`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conntrack {
    /// State bits, four bytes in host order: see [`ct_state`].
    State,
    /// Status bits, four bytes in host order: see [`ct_status`].
    Status,
    /// IPv4 source address of the original direction.
    OriginalSource4,
    /// IPv4 destination of the original direction, before any DNAT.
    OriginalDestination4,
    /// IPv6 source address of the original direction.
    OriginalSource6,
    /// IPv6 destination of the original direction, before any DNAT.
    OriginalDestination6,
    /// Destination port of the original direction, two bytes in network order.
    OriginalDestinationPort,
}

impl Conntrack {
    /// Key and direction (0 is the original one).
    const fn number(self) -> (u32, Option<u8>) {
        match self {
            Self::State => (0, None),
            Self::Status => (2, None),
            Self::OriginalSource4 => (19, Some(0)),
            Self::OriginalDestination4 => (20, Some(0)),
            Self::OriginalSource6 => (21, Some(0)),
            Self::OriginalDestination6 => (22, Some(0)),
            Self::OriginalDestinationPort => (12, Some(0)),
        }
    }
}

const CONNTRACKS: [Conntrack; 7] = [
    Conntrack::State,
    Conntrack::Status,
    Conntrack::OriginalSource4,
    Conntrack::OriginalDestination4,
    Conntrack::OriginalSource6,
    Conntrack::OriginalDestination6,
    Conntrack::OriginalDestinationPort,
];

/// Bits of [`Conntrack::State`] (`NF_CT_STATE_*_BIT`).
pub mod ct_state {
    /// The packet fits no connection.
    pub const INVALID: u32 = 1;
    /// Packets were seen in both directions.
    pub const ESTABLISHED: u32 = 2;
    /// New, but belonging to a known connection (an ICMP error, for one).
    pub const RELATED: u32 = 4;
    /// First packet of a connection.
    pub const NEW: u32 = 8;
}

/// Bits of [`Conntrack::Status`] (`enum ip_conntrack_status`).
pub mod ct_status {
    /// The connection's destination was translated.
    pub const DNAT: u32 = 1 << 5;
}

/// Which address a route lookup is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FibAddress {
    /// The packet's source.
    Source,
    /// The packet's destination.
    Destination,
}

/// `RTN_LOCAL`: what [`Expression::FibType`] yields for an address of this host.
pub const RTN_LOCAL: u32 = 2;

/// Where a lookup puts what it found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// Only matches: the rule goes on if the key is in the set.
    Membership,
    /// Only matches the other way round: the rule goes on if the key is not in the set.
    Absence,
    /// The element's data goes to a register.
    Data(Register),
    /// The element's verdict is obeyed.
    Verdict,
}

/// How two values are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    /// Equal.
    Equal,
    /// Not equal.
    NotEqual,
}

/// What becomes of a packet.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// Goes on to the next base chain.
    Accept,
    /// Ends here, silently.
    Drop,
    /// Goes through another chain and comes back to the next rule.
    Jump(String),
    /// Goes through another chain and, at its end, back to where this chain was called from.
    Goto(String),
    /// Leaves this chain.
    Return,
}

impl Verdict {
    fn code(&self) -> i32 {
        match self {
            Self::Drop => 0,
            Self::Accept => 1,
            Self::Jump(_) => -3,
            Self::Goto(_) => -4,
            Self::Return => -5,
        }
    }

    /// Writes an attribute of kind `NFTA_DATA_VERDICT`.
    pub(super) fn write(&self, writer: &mut Writer) {
        let verdict = writer.open(2); // NFTA_DATA_VERDICT
        writer.put(1, &self.code().to_be_bytes());
        if let Self::Jump(chain) | Self::Goto(chain) = self {
            writer.put_text(2, chain);
        }
        writer.close(verdict);
    }

    pub(super) fn read(attributes: Attributes<'_>) -> Option<Self> {
        let chain = || attributes.text(2).map(|name| name.into_owned());
        match attributes.u32(1)? as i32 {
            0 => Some(Self::Drop),
            1 => Some(Self::Accept),
            -3 => Some(Self::Jump(chain()?)),
            -4 => Some(Self::Goto(chain()?)),
            -5 => Some(Self::Return),
            _ => None,
        }
    }
}

/// How a packet is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reject {
    /// By a TCP reset; only for TCP packets.
    TcpReset,
    /// By ICMP or ICMPv6 "port unreachable", after the packet's family.
    PortUnreachable,
}

/// IP version of a NAT expression in an `inet` table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NatFamily {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl NatFamily {
    /// `NFPROTO_IPV4` or `NFPROTO_IPV6`.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::V4 => 2,
            Self::V6 => 10,
        }
    }
}

/// `NF_NAT_RANGE_PROTO_RANDOM_FULLY`: ports of translated sources are drawn at
/// random, which avoids two processors choosing the same one at once.
pub const NAT_FULLY_RANDOM: u32 = 1 << 4;

/// One step of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Expression {
    /// Loads bytes of the packet.
    Payload {
        /// Header that `offset` counts from.
        header: Header,
        /// Bytes to skip.
        offset: u32,
        /// Bytes to load.
        length: u32,
        /// First register to fill.
        into: Register,
    },
    /// Loads a fact about the packet.
    Meta {
        /// Which.
        key: Meta,
        /// First register to fill.
        into: Register,
    },
    /// Loads a fact about the packet's connection.
    Conntrack {
        /// Which.
        key: Conntrack,
        /// First register to fill.
        into: Register,
    },
    /// Loads the route type (`RTN_*`, host order) of one of the packet's addresses.
    FibType {
        /// Which address is looked up.
        address: FibAddress,
        /// Register to fill.
        into: Register,
    },
    /// Draws a number from `offset` to `offset + modulus - 1`, host order.
    RandomNumber {
        /// How many numbers there are to draw from.
        modulus: u32,
        /// The smallest of them.
        offset: u32,
        /// Register to fill.
        into: Register,
    },
    /// Looks a key up in a named set or map.
    Lookup {
        /// Name of the set or map.
        set: String,
        /// First register of the key.
        from: Register,
        /// What to do with what was found.
        found: Found,
    },
    /// Writes a key (and data) from registers into a dynamic set or map, or
    /// starts its time-out anew.
    Update {
        /// Name of the set or map.
        set: String,
        /// First register of the key.
        key: Register,
        /// First register of the data, for maps.
        data: Option<Register>,
        /// Milliseconds until the element goes by itself; 0 takes the set's own.
        timeout: u64,
    },
    /// Takes a key from registers out of a dynamic set or map.
    Forget {
        /// Name of the set or map.
        set: String,
        /// First register of the key.
        key: Register,
        /// First register of data, for maps; the kernel asks for one that it
        /// does not look at.
        data: Option<Register>,
    },
    /// Ends the rule with a verdict.
    Verdict(Verdict),
    /// Goes on if the comparison holds.
    Compare {
        /// How.
        comparison: Comparison,
        /// First register of the left side.
        from: Register,
        /// The right side.
        value: Vec<u8>,
    },
    /// `into = (from & mask) ^ xor`.
    Bitwise {
        /// First register of the input.
        from: Register,
        /// First register of the result.
        into: Register,
        /// Bits to keep; its length is that of the value.
        mask: Vec<u8>,
        /// Bits to turn over; as long as `mask`.
        xor: Vec<u8>,
    },
    /// Translates the destination to address and port from registers.
    DestinationNat {
        /// IP version of the address.
        family: NatFamily,
        /// First register of the address.
        address: Register,
        /// Register of the port, network order.
        port: Option<Register>,
    },
    /// Translates the source to the address of the interface the packet leaves by.
    Masquerade {
        /// `NF_NAT_RANGE_*` bits.
        flags: u32,
    },
    /// Refuses the packet.
    Reject(Reject),
    /// Counts packets and bytes. Figures are not part of equality.
    Counter,
    /// Keeps the packet out of conntrack.
    NoTrack,
    /// Loads the largest TCP segment the packet's route and the route back
    /// carry, two bytes in host order (`NFT_RT_TCPMSS`).
    PathSegmentSize {
        /// Register to fill.
        into: Register,
    },
    /// Turns two bytes from host to network order.
    NetworkOrder {
        /// Register of the input.
        from: Register,
        /// Register of the result.
        into: Register,
    },
    /// Lowers the largest segment the packet's TCP option announces to that in a
    /// register, two bytes in network order. It is never raised.
    LowerSegmentSize {
        /// Register of the size.
        from: Register,
    },
}

/// `NFT_RT_TCPMSS`.
const RT_TCPMSS: u32 = 3;
/// `NFT_BYTEORDER_HTON`.
const BYTEORDER_HTON: u32 = 1;
/// `NFT_EXTHDR_OP_TCPOPT`.
const EXTHDR_OP_TCPOPT: u32 = 1;
/// `TCPOPT_MAXSEG` (RFC 9293, section 3.2); its value begins at byte 2.
const TCPOPT_MAXSEG: u8 = 2;

fn put_data(writer: &mut Writer, kind: u16, value: &[u8]) {
    let data = writer.open(kind);
    writer.put(1, value); // NFTA_DATA_VALUE
    writer.close(data);
}

fn read_data(attributes: Attributes<'_>, kind: u16) -> Option<Vec<u8>> {
    Some(attributes.nested(kind)?.find(1)?.to_vec())
}

impl Expression {
    /// Goes on if this value is in a register and those that follow it; of names the
    /// beginning will do.
    #[must_use]
    pub fn equal(from: Register, value: impl Into<Vec<u8>>) -> Self {
        Self::Compare {
            comparison: Comparison::Equal,
            from,
            value: value.into(),
        }
    }

    /// The kernel's name of the expression.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Payload { .. } => "payload",
            Self::Meta { .. } => "meta",
            Self::Conntrack { .. } => "ct",
            Self::FibType { .. } => "fib",
            Self::RandomNumber { .. } => "numgen",
            Self::Lookup { .. } => "lookup",
            Self::Update { .. } | Self::Forget { .. } => "dynset",
            Self::Verdict(_) => "immediate",
            Self::Compare { .. } => "cmp",
            Self::Bitwise { .. } => "bitwise",
            Self::DestinationNat { .. } => "nat",
            Self::Masquerade { .. } => "masq",
            Self::Reject(_) => "reject",
            Self::Counter => "counter",
            Self::NoTrack => "notrack",
            Self::PathSegmentSize { .. } => "rt",
            Self::NetworkOrder { .. } => "byteorder",
            Self::LowerSegmentSize { .. } => "exthdr",
        }
    }

    /// Writes `NFTA_LIST_ELEM { NFTA_EXPR_NAME, NFTA_EXPR_DATA }`.
    pub(super) fn write(&self, writer: &mut Writer) {
        let element = writer.open(1);
        self.write_content(writer);
        writer.close(element);
    }

    /// Writes `NFTA_EXPR_NAME` and `NFTA_EXPR_DATA`.
    pub(super) fn write_content(&self, writer: &mut Writer) {
        writer.put_text(1, self.name());
        let data = writer.open(2);
        self.write_data(writer);
        writer.close(data);
    }

    fn write_data(&self, writer: &mut Writer) {
        match self {
            Self::Payload {
                header,
                offset,
                length,
                into,
            } => {
                writer.put_u32(1, into.number());
                writer.put_u32(
                    2,
                    match header {
                        Header::Network => 1,
                        Header::Transport => 2,
                    },
                );
                writer.put_u32(3, *offset);
                writer.put_u32(4, *length);
            }
            Self::Meta { key, into } => {
                writer.put_u32(1, into.number());
                writer.put_u32(2, key.number());
            }
            Self::Conntrack { key, into } => {
                let (number, direction) = key.number();
                writer.put_u32(1, into.number());
                writer.put_u32(2, number);
                if let Some(direction) = direction {
                    writer.put(3, &[direction]);
                }
            }
            Self::FibType { address, into } => {
                writer.put_u32(1, into.number());
                writer.put_u32(2, 3); // NFT_FIB_RESULT_ADDRTYPE
                writer.put_u32(
                    3,
                    match address {
                        FibAddress::Source => 1,
                        FibAddress::Destination => 2,
                    },
                );
            }
            Self::RandomNumber {
                modulus,
                offset,
                into,
            } => {
                writer.put_u32(1, into.number());
                writer.put_u32(2, *modulus);
                writer.put_u32(3, 1); // NFT_NG_RANDOM
                writer.put_u32(4, *offset);
            }
            Self::Lookup { set, from, found } => {
                writer.put_text(1, set);
                writer.put_u32(2, from.number());
                match found {
                    Found::Membership => {}
                    Found::Absence => writer.put_u32(5, 1), // NFT_LOOKUP_F_INV
                    Found::Data(into) => writer.put_u32(3, into.number()),
                    Found::Verdict => writer.put_u32(3, 0), // NFT_REG_VERDICT
                }
            }
            Self::Update {
                set,
                key,
                data,
                timeout,
            } => {
                writer.put_text(1, set);
                writer.put_u32(3, 1); // NFT_DYNSET_OP_UPDATE
                writer.put_u32(4, key.number());
                if let Some(data) = data {
                    writer.put_u32(5, data.number());
                }
                if *timeout != 0 {
                    writer.put_u64(6, *timeout);
                }
            }
            Self::Forget { set, key, data } => {
                writer.put_text(1, set);
                writer.put_u32(3, 2); // NFT_DYNSET_OP_DELETE
                writer.put_u32(4, key.number());
                if let Some(data) = data {
                    writer.put_u32(5, data.number());
                }
            }
            Self::Verdict(verdict) => {
                writer.put_u32(1, 0); // NFT_REG_VERDICT
                let data = writer.open(2);
                verdict.write(writer);
                writer.close(data);
            }
            Self::Compare {
                comparison,
                from,
                value,
            } => {
                writer.put_u32(1, from.number());
                writer.put_u32(
                    2,
                    match comparison {
                        Comparison::Equal => 0,
                        Comparison::NotEqual => 1,
                    },
                );
                put_data(writer, 3, value);
            }
            Self::Bitwise {
                from,
                into,
                mask,
                xor,
            } => {
                writer.put_u32(1, from.number());
                writer.put_u32(2, into.number());
                writer.put_u32(3, mask.len() as u32);
                put_data(writer, 4, mask);
                put_data(writer, 5, xor);
            }
            Self::DestinationNat {
                family,
                address,
                port,
            } => {
                writer.put_u32(1, 1); // NFT_NAT_DNAT
                writer.put_u32(2, u32::from(family.number()));
                writer.put_u32(3, address.number());
                if let Some(port) = port {
                    writer.put_u32(5, port.number());
                }
            }
            Self::Masquerade { flags } => {
                if *flags != 0 {
                    writer.put_u32(1, *flags);
                }
            }
            Self::Reject(reject) => match reject {
                Reject::TcpReset => {
                    writer.put_u32(1, 1); // NFT_REJECT_TCP_RST
                    writer.put(2, &[0]);
                }
                Reject::PortUnreachable => {
                    writer.put_u32(1, 2); // NFT_REJECT_ICMPX_UNREACH
                    writer.put(2, &[1]); // NFT_REJECT_ICMPX_PORT_UNREACH
                }
            },
            Self::PathSegmentSize { into } => {
                writer.put_u32(1, into.number());
                writer.put_u32(2, RT_TCPMSS);
            }
            Self::NetworkOrder { from, into } => {
                writer.put_u32(1, from.number());
                writer.put_u32(2, into.number());
                writer.put_u32(3, BYTEORDER_HTON);
                writer.put_u32(4, 2);
                writer.put_u32(5, 2);
            }
            Self::LowerSegmentSize { from } => {
                writer.put(2, &[TCPOPT_MAXSEG]);
                writer.put_u32(3, 2);
                writer.put_u32(4, 2);
                writer.put_u32(6, EXTHDR_OP_TCPOPT);
                writer.put_u32(7, from.number());
            }
            Self::Counter | Self::NoTrack => {}
        }
    }

    /// Reads one `NFTA_LIST_ELEM`; `None` for an expression, or a form of one,
    /// that this crate never writes.
    pub(super) fn read(element: Attributes<'_>) -> Option<Self> {
        let name = element.text(1)?;
        let data = element.nested(2).unwrap_or(Attributes(&[]));
        let register = |kind| data.u32(kind).and_then(Register::from_number);
        let expression = match name.as_ref() {
            "payload" => Self::Payload {
                header: match data.u32(2)? {
                    1 => Header::Network,
                    2 => Header::Transport,
                    _ => return None,
                },
                offset: data.u32(3)?,
                length: data.u32(4)?,
                into: register(1)?,
            },
            "meta" => {
                let number = data.u32(2)?;
                Self::Meta {
                    key: *METAS.iter().find(|key| key.number() == number)?,
                    into: register(1)?,
                }
            }
            "ct" => {
                let number = data.u32(2)?;
                let direction = data.find(3).and_then(|d| d.first().copied());
                Self::Conntrack {
                    key: *CONNTRACKS
                        .iter()
                        .find(|key| key.number() == (number, direction))?,
                    into: register(1)?,
                }
            }
            "fib" if data.u32(2)? == 3 => Self::FibType {
                address: match data.u32(3)? {
                    1 => FibAddress::Source,
                    2 => FibAddress::Destination,
                    _ => return None,
                },
                into: register(1)?,
            },
            "numgen" if data.u32(3)? == 1 => Self::RandomNumber {
                modulus: data.u32(2)?,
                offset: data.u32(4).unwrap_or(0),
                into: register(1)?,
            },
            "lookup" => Self::Lookup {
                set: data.text(1)?.into_owned(),
                from: register(2)?,
                found: match (data.u32(3), data.u32(5).unwrap_or(0)) {
                    (None, 0) => Found::Membership,
                    (None, 1) => Found::Absence,
                    (Some(0), 0) => Found::Verdict,
                    (Some(_), 0) => Found::Data(register(3)?),
                    _ => return None,
                },
            },
            "dynset" if data.u32(3)? == 1 => Self::Update {
                set: data.text(1)?.into_owned(),
                key: register(4)?,
                data: register(5),
                timeout: data.u64(6).unwrap_or(0),
            },
            "dynset" if data.u32(3)? == 2 => Self::Forget {
                set: data.text(1)?.into_owned(),
                key: register(4)?,
                data: register(5),
            },
            "immediate" if data.u32(1)? == 0 => {
                Self::Verdict(Verdict::read(data.nested(2)?.nested(2)?)?)
            }
            "cmp" => Self::Compare {
                comparison: match data.u32(2)? {
                    0 => Comparison::Equal,
                    1 => Comparison::NotEqual,
                    _ => return None,
                },
                from: register(1)?,
                value: read_data(data, 3)?,
            },
            "bitwise" if data.u32(6).unwrap_or(0) == 0 => Self::Bitwise {
                from: register(1)?,
                into: register(2)?,
                mask: read_data(data, 4)?,
                xor: read_data(data, 5)?,
            },
            "nat" if data.u32(1)? == 1 => Self::DestinationNat {
                family: match data.u32(2)? {
                    2 => NatFamily::V4,
                    10 => NatFamily::V6,
                    _ => return None,
                },
                address: register(3)?,
                port: register(5),
            },
            "masq" => Self::Masquerade {
                flags: data.u32(1).unwrap_or(0),
            },
            "reject" => Self::Reject(match (data.u32(1)?, data.find(2)) {
                (1, _) => Reject::TcpReset,
                (2, Some([1])) => Reject::PortUnreachable,
                _ => return None,
            }),
            "counter" => Self::Counter,
            "notrack" => Self::NoTrack,
            "rt" if data.u32(2)? == RT_TCPMSS => Self::PathSegmentSize { into: register(1)? },
            "byteorder" if (data.u32(3)?, data.u32(4)?, data.u32(5)?) == (BYTEORDER_HTON, 2, 2) => {
                Self::NetworkOrder {
                    from: register(1)?,
                    into: register(2)?,
                }
            }
            "exthdr"
                if data.find(2) == Some(&[TCPOPT_MAXSEG][..])
                    && (data.u32(3)?, data.u32(4)?, data.u32(6)?) == (2, 2, EXTHDR_OP_TCPOPT) =>
            {
                Self::LowerSegmentSize { from: register(7)? }
            }
            _ => return None,
        };
        Some(expression)
    }
}
