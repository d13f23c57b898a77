//! The objects in the syntax of the `nft` program, for people and for golden
//! tests. Pure: nothing is read from the kernel.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};

use super::expression::{
    Comparison, Conntrack, Expression, FibAddress, Found, Header, Meta, NAT_FULLY_RANDOM,
    NatFamily, Register, Reject, Verdict, ct_state, ct_status,
};
use super::object::{Chain, DataType, Element, MapData, Rule, Set, Value};

/// How the bytes in a register are written as a constant.
#[derive(Debug, Clone, Copy)]
enum Format {
    Address4,
    Address6,
    EtherType,
    Protocol,
    Port,
    Family,
    Interface,
    InterfaceType,
    State,
    Status,
    RouteType,
    Number,
}

impl From<DataType> for Format {
    fn from(data: DataType) -> Self {
        match data {
            DataType::Ipv4Address => Self::Address4,
            DataType::Ipv6Address => Self::Address6,
            DataType::Protocol => Self::Protocol,
            DataType::Port => Self::Port,
            DataType::Number => Self::Number,
        }
    }
}

fn host_number(bytes: &[u8]) -> u32 {
    let mut four = [0; 4];
    let length = bytes.len().min(4);
    four[..length].copy_from_slice(&bytes[..length]);
    u32::from_ne_bytes(four)
}

fn constant(format: Format, bytes: &[u8]) -> String {
    let raw = || {
        bytes.iter().fold("0x".to_owned(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    };
    let bits = |names: &[(u32, &str)]| {
        let number = host_number(bytes);
        names
            .iter()
            .filter(|(bit, _)| number & bit != 0)
            .map(|(_, name)| *name)
            .collect::<Vec<_>>()
            .join(",")
    };
    match format {
        Format::Address4 => <[u8; 4]>::try_from(bytes)
            .map_or_else(|_| raw(), |octets| Ipv4Addr::from(octets).to_string()),
        Format::Address6 => <[u8; 16]>::try_from(bytes)
            .map_or_else(|_| raw(), |octets| Ipv6Addr::from(octets).to_string()),
        Format::EtherType => match bytes {
            [0x08, 0x00] => "ip".to_owned(),
            [0x86, 0xdd] => "ip6".to_owned(),
            [0x81, 0x00] => "8021q".to_owned(),
            [0x88, 0xa8] => "8021ad".to_owned(),
            _ => raw(),
        },
        Format::Protocol => match bytes.first() {
            Some(1) => "icmp".to_owned(),
            Some(6) => "tcp".to_owned(),
            Some(17) => "udp".to_owned(),
            Some(58) => "ipv6-icmp".to_owned(),
            Some(132) => "sctp".to_owned(),
            Some(other) => other.to_string(),
            None => raw(),
        },
        Format::Port => match bytes {
            [high, low, ..] => u16::from_be_bytes([*high, *low]).to_string(),
            _ => raw(),
        },
        Format::Family => match bytes.first() {
            Some(2) => "ipv4".to_owned(),
            Some(10) => "ipv6".to_owned(),
            _ => raw(),
        },
        Format::Interface => {
            let end = bytes.iter().position(|b| *b == 0);
            let name = String::from_utf8_lossy(&bytes[..end.unwrap_or(bytes.len())]);
            // A name cut short, without its zero, matches what begins with it.
            format!("\"{name}{}\"", if end.is_none() { "*" } else { "" })
        }
        Format::InterfaceType => match bytes {
            [low, high] if u16::from_ne_bytes([*low, *high]) == 772 => "loopback".to_owned(),
            _ => raw(),
        },
        Format::State => bits(&[
            (ct_state::INVALID, "invalid"),
            (ct_state::ESTABLISHED, "established"),
            (ct_state::RELATED, "related"),
            (ct_state::NEW, "new"),
        ]),
        Format::Status => bits(&[(ct_status::DNAT, "dnat")]),
        Format::RouteType => match host_number(bytes) {
            1 => "unicast".to_owned(),
            2 => "local".to_owned(),
            3 => "broadcast".to_owned(),
            5 => "multicast".to_owned(),
            other => other.to_string(),
        },
        Format::Number => format!("{:#010x}", host_number(bytes)),
    }
}

/// A concatenation of ranges, field by field; what is no range is written once.
fn ranges(types: &[DataType], first: &[u8], last: &[u8]) -> String {
    let mut parts = Vec::new();
    let mut offset = 0;
    for kind in types {
        let part = |bytes: &'_ [u8]| {
            let value = bytes
                .get(offset..offset + kind.length())
                .unwrap_or_default();
            constant((*kind).into(), value)
        };
        let (from, to) = (part(first), part(last));
        parts.push(if from == to {
            from
        } else {
            format!("{from}-{to}")
        });
        offset += kind.padded();
    }
    parts.join(" . ")
}

/// A concatenated value, field by field.
fn fields(types: &[DataType], bytes: &[u8]) -> String {
    let mut rest = bytes;
    let mut parts = Vec::new();
    for kind in types {
        let value = rest.get(..kind.length()).unwrap_or(rest);
        parts.push(constant((*kind).into(), value));
        rest = rest.get(kind.padded()..).unwrap_or_default();
    }
    parts.join(" . ")
}

#[derive(Debug, Clone)]
struct Loaded {
    text: String,
    format: Format,
    /// Bytes of it; those that fill its last register are zero.
    length: usize,
    /// `& mask`, where a bitwise step came between.
    mask: Option<Vec<u8>>,
}

/// What the registers hold, as text.
#[derive(Default)]
struct Registers([Option<Loaded>; 16]);

impl Registers {
    fn load(&mut self, register: Register, text: String, format: Format, length: usize) {
        if let Some(slot) = self.0.get_mut(usize::from(register.0)) {
            *slot = Some(Loaded {
                text,
                format,
                length,
                mask: None,
            });
        }
    }

    fn at(&self, register: Register) -> Option<&Loaded> {
        self.0.get(usize::from(register.0))?.as_ref()
    }

    fn text(&self, register: Register) -> String {
        self.at(register)
            .map_or_else(|| format!("reg {}", register.0), |l| l.text.clone())
    }

    /// The fields from `register` on that make up `length` bytes.
    fn concatenation(&self, register: Register, length: usize) -> String {
        let mut parts = Vec::new();
        let mut slot = register.0;
        let end = register.0 + length.div_ceil(4) as u8;
        while slot < end {
            match self.at(Register(slot)) {
                Some(loaded) => {
                    parts.push(match &loaded.mask {
                        Some(mask) => {
                            format!("{} & {}", loaded.text, constant(loaded.format, mask))
                        }
                        None => loaded.text.clone(),
                    });
                    slot += loaded.length.div_ceil(4).max(1) as u8;
                }
                None => {
                    parts.push(format!("reg {slot}"));
                    slot += 1;
                }
            }
        }
        parts.join(" . ")
    }
}

fn verdict(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Accept => "accept".to_owned(),
        Verdict::Drop => "drop".to_owned(),
        Verdict::Jump(chain) => format!("jump {chain}"),
        Verdict::Goto(chain) => format!("goto {chain}"),
        Verdict::Return => "return".to_owned(),
    }
}

/// A rule on one line. `sets` are those of its table, by whose types keys are read.
#[must_use]
pub fn render_rule(rule: &Rule, sets: &[Set]) -> String {
    let mut registers = Registers::default();
    let mut parts: Vec<String> = Vec::new();
    let find = |name: &str| sets.iter().find(|set| set.name == name);
    let key_length =
        |name: &str| find(name).map_or(4, |set| set.key.iter().map(|f| f.padded()).sum::<usize>());
    for expression in &rule.expressions {
        match expression {
            Expression::Payload {
                header,
                offset,
                length,
                into,
            } => {
                let (text, format) = match (header, offset, length) {
                    (Header::Network, 12, 4) => ("ip saddr".into(), Format::Address4),
                    (Header::Network, 16, 4) => ("ip daddr".into(), Format::Address4),
                    (Header::Network, 8, 16) => ("ip6 saddr".into(), Format::Address6),
                    (Header::Network, 24, 16) => ("ip6 daddr".into(), Format::Address6),
                    (Header::Transport, 0, 2) => ("th sport".into(), Format::Port),
                    (Header::Transport, 2, 2) => ("th dport".into(), Format::Port),
                    (header, offset, length) => (
                        format!(
                            "@{},{},{}",
                            match header {
                                Header::Network => "nh",
                                Header::Transport => "th",
                            },
                            offset * 8,
                            length * 8
                        ),
                        Format::Number,
                    ),
                };
                registers.load(*into, text, format, *length as usize);
            }
            Expression::Meta { key, into } => {
                let (text, format, length) = match key {
                    Meta::Protocol => ("meta protocol", Format::EtherType, 2),
                    Meta::Mark => ("meta mark", Format::Number, 4),
                    Meta::OutInterfaceName => ("oifname", Format::Interface, 16),
                    Meta::InInterfaceName => ("iifname", Format::Interface, 16),
                    Meta::OutInterfaceType => ("meta oiftype", Format::InterfaceType, 2),
                    Meta::NetworkFamily => ("meta nfproto", Format::Family, 1),
                    Meta::TransportProtocol => ("meta l4proto", Format::Protocol, 1),
                };
                registers.load(*into, text.into(), format, length);
            }
            Expression::Conntrack { key, into } => {
                let (text, format, length) = match key {
                    Conntrack::State => ("ct state", Format::State, 4),
                    Conntrack::Status => ("ct status", Format::Status, 4),
                    Conntrack::OriginalSource4 => ("ct original ip saddr", Format::Address4, 4),
                    Conntrack::OriginalDestination4 => {
                        ("ct original ip daddr", Format::Address4, 4)
                    }
                    Conntrack::OriginalSource6 => ("ct original ip6 saddr", Format::Address6, 16),
                    Conntrack::OriginalDestination6 => {
                        ("ct original ip6 daddr", Format::Address6, 16)
                    }
                    Conntrack::OriginalDestinationPort => {
                        ("ct original proto-dst", Format::Port, 2)
                    }
                };
                registers.load(*into, text.into(), format, length);
            }
            Expression::FibType { address, into } => {
                let text = match address {
                    FibAddress::Source => "fib saddr type",
                    FibAddress::Destination => "fib daddr type",
                };
                registers.load(*into, text.into(), Format::RouteType, 4);
            }
            Expression::RandomNumber {
                modulus,
                offset,
                into,
            } => {
                let text = if *offset == 0 {
                    format!("numgen random mod {modulus}")
                } else {
                    format!("numgen random mod {modulus} offset {offset}")
                };
                registers.load(*into, text, Format::Number, 4);
            }
            Expression::Lookup { set, from, found } => {
                let key = registers.concatenation(*from, key_length(set));
                match found {
                    Found::Membership => parts.push(format!("{key} @{set}")),
                    Found::Absence => parts.push(format!("{key} != @{set}")),
                    Found::Verdict => parts.push(format!("{key} vmap @{set}")),
                    Found::Data(into) => {
                        let types = match find(set).and_then(|s| s.data.as_ref()) {
                            Some(MapData::Value(types)) => types.as_slice(),
                            _ => &[DataType::Number],
                        };
                        let mut place = into.0;
                        for (index, kind) in types.iter().enumerate() {
                            let text = match index {
                                0 => format!("{key} map @{set}"),
                                further => format!("its field {}", further + 1),
                            };
                            registers.load(Register(place), text, (*kind).into(), kind.length());
                            place += kind.length().div_ceil(4) as u8;
                        }
                    }
                }
            }
            Expression::Update {
                set,
                key,
                data,
                timeout,
            } => {
                let mut text = format!(
                    "update @{set} {{ {}",
                    registers.concatenation(*key, key_length(set))
                );
                if *timeout != 0 {
                    let _ = write!(text, " timeout {timeout}ms");
                }
                if let Some(data) = data {
                    let _ = write!(text, " : {}", registers.text(*data));
                }
                text.push_str(" }");
                parts.push(text);
            }
            Expression::Forget { set, key, .. } => parts.push(format!(
                "delete @{set} {{ {} }}",
                registers.concatenation(*key, key_length(set))
            )),
            Expression::Verdict(v) => parts.push(verdict(v)),
            Expression::Compare {
                comparison,
                from,
                value,
            } => {
                let Some(left) = registers.at(*from) else {
                    continue;
                };
                let zero = value.iter().all(|b| *b == 0);
                let text = match (&left.mask, comparison) {
                    (Some(mask), Comparison::NotEqual) if zero => {
                        format!("{} {}", left.text, constant(left.format, mask))
                    }
                    (Some(mask), comparison) => format!(
                        "{} & {} {} {}",
                        left.text,
                        constant(left.format, mask),
                        sign(*comparison),
                        constant(left.format, value)
                    ),
                    (None, Comparison::Equal) => {
                        format!("{} {}", left.text, constant(left.format, value))
                    }
                    (None, Comparison::NotEqual) => {
                        format!("{} != {}", left.text, constant(left.format, value))
                    }
                };
                parts.push(text);
            }
            Expression::Bitwise {
                from, into, mask, ..
            } => {
                for (word, mask) in (0..).zip(mask.chunks(4)) {
                    let copied = registers.at(Register(from.0 + word)).cloned();
                    if let (Some(mut loaded), Some(slot)) =
                        (copied, registers.0.get_mut(usize::from(into.0 + word)))
                    {
                        if mask.iter().take(loaded.length).any(|byte| *byte != 0xff) {
                            loaded.mask = Some(mask.to_vec());
                        }
                        *slot = Some(loaded);
                    }
                }
            }
            Expression::DestinationNat {
                family, address, ..
            } => parts.push(format!(
                "dnat {} to {}",
                match family {
                    NatFamily::V4 => "ip",
                    NatFamily::V6 => "ip6",
                },
                registers.text(*address)
            )),
            Expression::Masquerade { flags } => {
                parts.push(if flags & NAT_FULLY_RANDOM != 0 {
                    "masquerade fully-random".to_owned()
                } else {
                    "masquerade".to_owned()
                });
            }
            Expression::Reject(Reject::TcpReset) => parts.push("reject with tcp reset".to_owned()),
            Expression::Reject(Reject::PortUnreachable) => {
                parts.push("reject with icmpx type port-unreachable".to_owned());
            }
            Expression::Counter => parts.push("counter".to_owned()),
            Expression::NoTrack => parts.push("notrack".to_owned()),
            // `nft` writes the three that belong together as one.
            Expression::PathSegmentSize { .. } | Expression::NetworkOrder { .. } => {}
            Expression::LowerSegmentSize { .. } => {
                parts.push("tcp option maxseg size set rt mtu".to_owned());
            }
        }
    }
    if let Some(comment) = &rule.comment {
        parts.push(format!("comment \"{comment}\""));
    }
    parts.join(" ")
}

fn sign(comparison: Comparison) -> &'static str {
    match comparison {
        Comparison::Equal => "==",
        Comparison::NotEqual => "!=",
    }
}

/// A chain with its rules, indented for a table.
#[must_use]
pub fn render_chain(chain: &Chain, sets: &[Set]) -> String {
    let mut text = format!("\tchain {} {{\n", chain.name);
    if let Some(base) = chain.base {
        let _ = writeln!(
            text,
            "\t\ttype {} hook {} priority {}; policy {};",
            base.kind.name(),
            base.hook.name(),
            base.priority,
            if base.drop { "drop" } else { "accept" }
        );
    }
    for rule in &chain.rules {
        let _ = writeln!(text, "\t\t{}", render_rule(rule, sets));
    }
    text.push_str("\t}\n");
    text
}

/// A set or map with elements, indented for a table.
#[must_use]
pub fn render_set<'a>(set: &Set, elements: impl IntoIterator<Item = &'a Element>) -> String {
    let types = |list: &[DataType]| {
        list.iter()
            .map(|t| t.name())
            .collect::<Vec<_>>()
            .join(" . ")
    };
    let mut text = format!(
        "\t{} {} {{\n\t\ttype {}",
        if set.data.is_some() { "map" } else { "set" },
        set.name,
        types(&set.key)
    );
    match &set.data {
        None => {}
        Some(MapData::Verdict) => text.push_str(" : verdict"),
        Some(MapData::Value(list)) => {
            let _ = write!(text, " : {}", types(list));
        }
    }
    text.push('\n');
    if let Some(size) = set.size {
        let _ = writeln!(text, "\t\tsize {size}");
    }
    if set.interval {
        text.push_str("\t\tflags interval\n");
    }
    if set.dynamic {
        text.push_str("\t\tflags dynamic,timeout\n");
    }
    if set.counter {
        text.push_str("\t\tcounter\n");
    }
    let mut lines: Vec<String> = Vec::new();
    for element in elements {
        if element.end {
            // The end names the first key after the range.
            if let Some(last) = lines.last_mut() {
                let _ = write!(last, "-{}", fields(&set.key, &predecessor(&element.key)));
            }
        } else {
            lines.push(render_element(set, element));
        }
    }
    if !lines.is_empty() {
        let _ = writeln!(
            text,
            "\t\telements = {{ {} }}",
            lines.join(",\n\t\t\t     ")
        );
    }
    text.push_str("\t}\n");
    text
}

fn predecessor(key: &[u8]) -> Vec<u8> {
    let mut key = key.to_vec();
    for byte in key.iter_mut().rev() {
        let (value, borrow) = byte.overflowing_sub(1);
        *byte = value;
        if !borrow {
            break;
        }
    }
    key
}

/// One element without the end of its range.
#[must_use]
pub fn render_element(set: &Set, element: &Element) -> String {
    let mut text = match &element.to {
        None => fields(&set.key, &element.key),
        Some(to) => ranges(&set.key, &element.key, to),
    };
    match (&element.value, &set.data) {
        (Some(Value::Verdict(v)), _) => {
            let _ = write!(text, " : {}", verdict(v));
        }
        (Some(Value::Bytes(bytes)), Some(MapData::Value(types))) => {
            let _ = write!(text, " : {}", fields(types, bytes));
        }
        _ => {}
    }
    text
}
