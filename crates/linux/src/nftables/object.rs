//! Tables, chains, sets, maps and rules as values.

use super::expression::{Expression, Verdict};

/// The packets a table sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4 and IPv6.
    Inet,
    /// IPv4 only.
    Ip,
    /// IPv6 only.
    Ip6,
    /// Frames on bridges.
    Bridge,
}

impl Family {
    /// `NFPROTO_*`.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Inet => 1,
            Self::Ip => 2,
            Self::Ip6 => 10,
            Self::Bridge => 7,
        }
    }

    /// The word `nft` uses.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Inet => "inet",
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
            Self::Bridge => "bridge",
        }
    }
}

/// What a base chain may do, and when conntrack consults it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ChainKind {
    /// Sees every packet.
    Filter,
    /// Sees the first packet of each connection and may translate it.
    Nat,
    /// Sees every packet of this host and routes it again if it changed.
    Route,
}

impl ChainKind {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Nat => "nat",
            Self::Route => "route",
        }
    }
}

/// Where in a packet's way a base chain stands (`enum nf_inet_hooks`, which the hooks of
/// bridges are numbered like).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hook {
    /// Just received, not routed yet.
    Prerouting,
    /// Received, for this host.
    Input,
    /// Received, for somebody else; of bridges, from one port to another.
    Forward,
    /// Made by this host; of bridges, also what this host routes there.
    Output,
    /// About to leave.
    Postrouting,
}

impl Hook {
    pub(super) const fn number(self) -> u32 {
        match self {
            Self::Prerouting => 0,
            Self::Input => 1,
            Self::Forward => 2,
            Self::Output => 3,
            Self::Postrouting => 4,
        }
    }

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Prerouting => "prerouting",
            Self::Input => "input",
            Self::Forward => "forward",
            Self::Output => "output",
            Self::Postrouting => "postrouting",
        }
    }
}

/// Priorities of base chains that other software knows (`enum nf_ip_hook_priorities`).
pub mod priority {
    /// Before conntrack: where packets are kept out of it.
    pub const RAW: i32 = -300;
    /// Destination translation in prerouting and output.
    pub const DSTNAT: i32 = -100;
    /// Where packets are changed before they are filtered.
    pub const MANGLE: i32 = -150;
    /// Filtering.
    pub const FILTER: i32 = 0;
    /// Filtering of frames on bridges (`enum nf_br_hook_priorities`).
    pub const FILTER_BRIDGED: i32 = -200;
    /// Source translation in postrouting.
    pub const SRCNAT: i32 = 100;
}

/// How a chain hooks into the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Base {
    /// Its kind.
    pub kind: ChainKind,
    /// Its hook.
    pub hook: Hook,
    /// Its place among the chains of that hook, lower first.
    pub priority: i32,
    /// Whether what reaches its end is dropped instead of accepted.
    pub drop: bool,
}

/// A chain with its rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Unique in its table.
    pub name: String,
    /// Present for base chains.
    pub base: Option<Base>,
    /// In order.
    pub rules: Vec<Rule>,
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Run in order until one does not match or gives a verdict.
    pub expressions: Vec<Expression>,
    /// Shown by `nft list`; at most 127 bytes are kept.
    pub comment: Option<String>,
}

impl Rule {
    /// A rule without a comment.
    #[must_use]
    pub fn new(expressions: Vec<Expression>) -> Self {
        Self {
            expressions,
            comment: None,
        }
    }

    /// The same rule with a comment.
    #[must_use]
    pub fn comment(mut self, text: impl Into<String>) -> Self {
        let mut text = text.into();
        while text.len() > 127 {
            text.pop();
        }
        self.comment = Some(text);
        self
    }
}

/// The types of keys and data, with the numbers by which `nft` knows them, so
/// that it can list our sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DataType {
    /// IPv4 address.
    Ipv4Address,
    /// IPv6 address.
    Ipv6Address,
    /// Transport protocol number, one byte.
    Protocol,
    /// Port, two bytes in network order.
    Port,
    /// A number of four bytes in host order. `nft` calls this type `mark`; its
    /// true integer type cannot be named in a set.
    Number,
}

impl DataType {
    pub(super) const fn number(self) -> u32 {
        match self {
            Self::Ipv4Address => 7,
            Self::Ipv6Address => 8,
            Self::Protocol => 12,
            Self::Port => 13,
            Self::Number => 19,
        }
    }

    /// Bytes of a value.
    #[must_use]
    pub const fn length(self) -> usize {
        match self {
            Self::Ipv4Address | Self::Number => 4,
            Self::Ipv6Address => 16,
            Self::Protocol => 1,
            Self::Port => 2,
        }
    }

    /// Bytes of a value as a field of a concatenation.
    #[must_use]
    pub const fn padded(self) -> usize {
        (self.length() + 3) & !3
    }

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Ipv4Address => "ipv4_addr",
            Self::Ipv6Address => "ipv6_addr",
            Self::Protocol => "inet_proto",
            Self::Port => "inet_service",
            Self::Number => "mark",
        }
    }
}

/// The type number and the length of a value of one or more fields.
pub(super) fn concatenation(fields: &[DataType]) -> (u32, usize) {
    match fields {
        [single] => (single.number(), single.length()),
        _ => fields.iter().fold((0, 0), |(number, length), field| {
            (number << 6 | field.number(), length + field.padded())
        }),
    }
}

/// What a map yields.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum MapData {
    /// A value of these fields.
    Value(Vec<DataType>),
    /// A verdict. Every commit that adds such an element makes the kernel
    /// validate the whole table: not for maps that grow.
    Verdict,
}

/// A set, or a map if it has data.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Set {
    /// Unique in its table.
    pub name: String,
    /// Fields of the key; several make a concatenation, each padded to four bytes.
    pub key: Vec<DataType>,
    /// What a map yields.
    pub data: Option<MapData>,
    /// Whether elements are ranges. With a key of one field: a start, and an end
    /// marked [`Element::end`]. With several: one element from [`Element::key`]
    /// to [`Element::to`], each field a range of its own.
    pub interval: bool,
    /// Whether rules add elements, which go by themselves after a time-out.
    pub dynamic: bool,
    /// Whether each element counts the lookups that find it, in packets and bytes.
    pub counter: bool,
    /// The most elements it may hold; `None` is no limit (a limit is needed for
    /// dynamic sets, and makes the kernel choose a fixed-size table for others).
    pub size: Option<u32>,
}

impl Set {
    /// A set of single values.
    #[must_use]
    pub fn of_values(name: impl Into<String>, key: &[DataType]) -> Self {
        Self {
            name: name.into(),
            key: key.to_vec(),
            data: None,
            interval: false,
            dynamic: false,
            counter: false,
            size: None,
        }
    }

    /// A set of ranges.
    #[must_use]
    pub fn ranges(name: impl Into<String>, key: DataType) -> Self {
        Self {
            interval: true,
            ..Self::of_values(name, &[key])
        }
    }

    /// A set of which each field of an element is a range.
    #[must_use]
    pub fn concatenated_ranges(name: impl Into<String>, key: &[DataType]) -> Self {
        Self {
            interval: true,
            ..Self::of_values(name, key)
        }
    }

    /// The same, counting.
    #[must_use]
    pub fn counting(self) -> Self {
        Self {
            counter: true,
            ..self
        }
    }

    /// The same, filled by rules; elements go after a time-out. `size` is the
    /// most it may hold.
    #[must_use]
    pub fn filled_by_rules(self, size: u32) -> Self {
        Self {
            dynamic: true,
            size: Some(size),
            ..self
        }
    }

    /// Whether each field of an element is a range.
    pub(super) fn is_concatenated(&self) -> bool {
        self.interval && self.key.len() > 1
    }

    /// A map from key to value.
    #[must_use]
    pub fn map(name: impl Into<String>, key: &[DataType], data: &[DataType]) -> Self {
        Self {
            data: Some(MapData::Value(data.to_vec())),
            ..Self::of_values(name, key)
        }
    }

    /// A map from key to verdict.
    #[must_use]
    pub fn verdict_map(name: impl Into<String>, key: &[DataType]) -> Self {
        Self {
            data: Some(MapData::Verdict),
            ..Self::of_values(name, key)
        }
    }

    /// `NFT_SET_*` flags.
    pub(super) fn flags(&self) -> u32 {
        let mut flags = 0;
        if self.interval {
            flags |= 0x4;
        }
        if self.is_concatenated() {
            flags |= 0x80;
        }
        if self.data.is_some() {
            flags |= 0x8;
        }
        if self.dynamic {
            flags |= 0x10 | 0x20;
        }
        flags
    }
}

/// What an element of a map holds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Value {
    /// Bytes, fields padded as in keys.
    Bytes(Vec<u8>),
    /// A verdict.
    Verdict(Verdict),
}

/// An element of a set or map.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Element {
    /// The key's bytes: fields in order, each padded to four bytes if there are several.
    pub key: Vec<u8>,
    /// For sets of concatenated ranges: the last key of the range.
    pub to: Option<Vec<u8>>,
    /// For maps.
    pub value: Option<Value>,
    /// For sets of ranges: the first key after a range.
    pub end: bool,
}

impl Element {
    /// An element of a set.
    #[must_use]
    pub fn key(key: Vec<u8>) -> Self {
        Self {
            key,
            to: None,
            value: None,
            end: false,
        }
    }

    /// An element of a set of concatenated ranges: every field from that of
    /// `key` to that of `to`.
    #[must_use]
    pub fn range(key: Vec<u8>, to: Vec<u8>) -> Self {
        Self {
            to: Some(to),
            ..Self::key(key)
        }
    }

    /// An element of a data map.
    #[must_use]
    pub fn pair(key: Vec<u8>, value: Vec<u8>) -> Self {
        Self {
            value: Some(Value::Bytes(value)),
            ..Self::key(key)
        }
    }

    /// An element of a verdict map.
    #[must_use]
    pub fn verdict(key: Vec<u8>, verdict: Verdict) -> Self {
        Self {
            value: Some(Value::Verdict(verdict)),
            ..Self::key(key)
        }
    }

    /// The end mark of a range.
    #[must_use]
    pub fn range_end(key: Vec<u8>) -> Self {
        Self {
            end: true,
            ..Self::key(key)
        }
    }
}

/// How often an element was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Appends one field to a concatenated key, padded to four bytes.
pub fn push_field(key: &mut Vec<u8>, field: &[u8]) {
    key.extend_from_slice(field);
    key.resize((key.len() + 3) & !3, 0);
}
