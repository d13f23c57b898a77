//! The table `inet podwire_hostports`: its maps, and the chains that look into
//! them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use linux::nftables::{
    Base, Batch, Chain, ChainKind, Comparison, Conntrack, DataType, Element, Expression, Family,
    FibAddress, Found, Header, Hook, Meta, NAT_FULLY_RANDOM, NatFamily, RTN_LOCAL, Register,
    Reject, Rule, Set, Value, Verdict, ct_status, priority, push_field,
};

/// The table's name.
pub const TABLE: &str = "podwire_hostports";
/// Its family.
pub(super) const FAMILY: Family = Family::Inet;

/// The sets of one IP family.
pub(super) struct Names {
    /// (protocol, port) of any of the node's addresses → (address, port).
    pub(super) any: &'static str,
    /// (address, protocol, port) → (address, port).
    pub(super) single: &'static str,
    /// (address, the same address) of pods with mappings.
    pub(super) hairpin: &'static str,
}

/// Pods whose answers do not come back to ::1, see [`super::loopback`].
pub(super) const UNANSWERED6: &str = "unanswered6";

const NAMES4: Names = Names {
    any: "ports4",
    single: "address-ports4",
    hairpin: "hairpin4",
};
const NAMES6: Names = Names {
    any: "ports6",
    single: "address-ports6",
    hairpin: "hairpin6",
};

/// All sets.
pub(super) const SETS: [&str; 7] = [
    NAMES4.any,
    NAMES4.single,
    NAMES4.hairpin,
    NAMES6.any,
    NAMES6.single,
    NAMES6.hairpin,
    UNANSWERED6,
];

/// The sets of an address's family.
pub(super) const fn names(address: IpAddr) -> &'static Names {
    match address {
        IpAddr::V4(_) => &NAMES4,
        IpAddr::V6(_) => &NAMES6,
    }
}

pub(super) fn bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

pub(super) fn port_key(protocol: u8, port: u16) -> Vec<u8> {
    let mut key = Vec::new();
    push_field(&mut key, &[protocol]);
    push_field(&mut key, &port.to_be_bytes());
    key
}

pub(super) fn address_key(address: IpAddr, protocol: u8, port: u16) -> Vec<u8> {
    let mut key = bytes(address);
    key.extend(port_key(protocol, port));
    key
}

pub(super) fn pair_key(address: IpAddr) -> Vec<u8> {
    [bytes(address), bytes(address)].concat()
}

pub(super) fn target(address: IpAddr, port: u16) -> Vec<u8> {
    let mut value = bytes(address);
    push_field(&mut value, &port.to_be_bytes());
    value
}

/// The pod's address in a map's value.
pub(super) fn target_address(value: &Value) -> Option<IpAddr> {
    match value {
        Value::Bytes(bytes) => address(bytes.get(..bytes.len().checked_sub(4)?)?),
        Value::Verdict(_) => None,
    }
}

/// The pod an element is for.
pub(super) fn pod_of(element: &Element) -> Option<IpAddr> {
    match &element.value {
        Some(value) => target_address(value),
        None => address(&element.key).or_else(|| address(&element.key[..element.key.len() / 2])),
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(Ipv4Addr::from(v4).into());
    }
    Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into())
}

/// A change of the table, in one generation of the rules or in any.
pub(super) fn batch(generation: Option<u32>) -> Batch {
    Batch::new(FAMILY, TABLE, generation)
}

/// Makes the table.
pub(super) fn make(batch: &mut Batch) {
    batch.add_table();
    for set in sets() {
        batch.add_set(&set);
    }
    for chain in chains() {
        batch.add_chain_with_rules(&chain);
    }
}

fn sets() -> Vec<Set> {
    use DataType::{Ipv4Address, Ipv6Address, Port, Protocol};
    [(&NAMES4, Ipv4Address), (&NAMES6, Ipv6Address)]
        .into_iter()
        .flat_map(|(names, address)| {
            [
                Set::map(names.any, &[Protocol, Port], &[address, Port]),
                Set::map(names.single, &[address, Protocol, Port], &[address, Port]),
                Set::of_values(names.hairpin, &[address, address]),
            ]
        })
        .chain([Set::of_values(UNANSWERED6, &[Ipv6Address])])
        .collect()
}

const LOOKUP_CHAIN: &str = "host-ports";

fn chains() -> Vec<Chain> {
    let enter = || {
        Rule::new(vec![Expression::Verdict(Verdict::Jump(
            LOOKUP_CHAIN.to_owned(),
        ))])
    };
    // Before Services are looked at, which may have the same address and port.
    let translate = |name: &str, hook, rules| Chain {
        name: name.to_owned(),
        base: Some(Base {
            kind: ChainKind::Nat,
            hook,
            priority: priority::DSTNAT - 1,
            drop: false,
        }),
        rules,
    };
    vec![
        Chain {
            name: LOOKUP_CHAIN.to_owned(),
            base: None,
            rules: lookup_rules(),
        },
        Chain {
            name: "guard".to_owned(),
            base: Some(Base {
                kind: ChainKind::Filter,
                hook: Hook::Prerouting,
                // Before answers to loopback addresses are translated back.
                priority: priority::RAW,
                drop: false,
            }),
            rules: guard_rules(),
        },
        translate("prerouting", Hook::Prerouting, vec![enter()]),
        translate("output", Hook::Output, vec![enter()]),
        Chain {
            name: "refuse".to_owned(),
            base: Some(Base {
                kind: ChainKind::Filter,
                hook: Hook::Output,
                priority: priority::FILTER,
                drop: false,
            }),
            rules: vec![refuse_rule()],
        },
        Chain {
            name: "postrouting".to_owned(),
            base: Some(Base {
                kind: ChainKind::Nat,
                hook: Hook::Postrouting,
                priority: priority::SRCNAT - 1,
                drop: false,
            }),
            rules: source_rules(),
        },
    ]
}

/// An IP family in the rules' registers.
struct Registers {
    family: NatFamily,
    names: &'static Names,
    /// Registers of an address.
    words: u8,
    /// Offsets of source and destination in the header.
    offsets: [u32; 2],
}

const FAMILIES: [Registers; 2] = [
    Registers {
        family: NatFamily::V4,
        names: &NAMES4,
        words: 1,
        offsets: [12, 16],
    },
    Registers {
        family: NatFamily::V6,
        names: &NAMES6,
        words: 4,
        offsets: [8, 24],
    },
];

impl Registers {
    fn only(&self) -> [Expression; 2] {
        [
            Expression::Meta {
                key: Meta::NetworkFamily,
                into: Register(15),
            },
            Expression::equal(Register(15), [self.family.number()]),
        ]
    }

    fn address(&self, which: usize, into: u8) -> Expression {
        Expression::Payload {
            header: Header::Network,
            offset: self.offsets[which],
            length: u32::from(self.words) * 4,
            into: Register(into),
        }
    }

    /// Protocol and destination port, from a register on.
    fn port(from: u8) -> [Expression; 2] {
        [
            Expression::Meta {
                key: Meta::TransportProtocol,
                into: Register(from),
            },
            Expression::Payload {
                header: Header::Transport,
                offset: 2,
                length: 2,
                into: Register(from + 1),
            },
        ]
    }

    /// Looks the key in register 0 up and translates the destination.
    fn translate(&self, set: &str) -> [Expression; 2] {
        // Aligned, so that the address may be read from it.
        let found = 8;
        [
            Expression::Lookup {
                set: set.to_owned(),
                from: Register(0),
                found: Found::Data(Register(found)),
            },
            Expression::DestinationNat {
                family: self.family,
                address: Register(found),
                port: Some(Register(found + self.words)),
            },
        ]
    }
}

fn masked(register: u8, mask: Vec<u8>) -> Expression {
    Expression::Bitwise {
        from: Register(register),
        into: Register(register),
        xor: vec![0; mask.len()],
        mask,
    }
}

fn lookup_rules() -> Vec<Rule> {
    let mut rules = Vec::new();
    // A mapping of one address counts before one of all.
    for registers in &FAMILIES {
        let mut rule = registers.only().to_vec();
        rule.push(registers.address(1, 0));
        rule.extend(Registers::port(registers.words));
        rule.extend(registers.translate(registers.names.single));
        rules.push(Rule::new(rule));
    }
    for registers in &FAMILIES {
        let mut rule = registers.only().to_vec();
        rule.push(Expression::FibType {
            address: FibAddress::Destination,
            into: Register(0),
        });
        rule.push(Expression::equal(Register(0), RTN_LOCAL.to_ne_bytes()));
        rule.extend(Registers::port(0));
        rule.extend(registers.translate(registers.names.any));
        rules.push(Rule::new(rule));
    }
    rules
}

/// The kernel's own interface for packets to itself, as registers hold its name.
fn loopback_name() -> Vec<u8> {
    let mut name = b"lo".to_vec();
    name.resize(16, 0);
    name
}

/// Whether the source (0) or destination (1) is in 127.0.0.0/8.
fn loopback4(which: usize) -> [Expression; 3] {
    [
        FAMILIES[0].address(which, 0),
        masked(0, vec![255, 0, 0, 0]),
        Expression::equal(Register(0), [127, 0, 0, 0]),
    ]
}

/// What comes to or from 127.0.0.0/8 by any interface but loopback is dropped, as
/// the kernel itself does where `route_localnet` is off (RFC 1122, 3.2.1.3;
/// CVE-2020-8558). Of ::1 it does so everywhere (`ip6_rcv_core`).
fn guard_rules() -> Vec<Rule> {
    [0, 1]
        .into_iter()
        .map(|which| {
            let mut rule = FAMILIES[0].only().to_vec();
            rule.extend([
                Expression::Meta {
                    key: Meta::InInterfaceName,
                    into: Register(0),
                },
                Expression::Compare {
                    comparison: Comparison::NotEqual,
                    from: Register(0),
                    value: loopback_name(),
                },
            ]);
            rule.extend(loopback4(which));
            rule.push(Expression::Verdict(Verdict::Drop));
            Rule::new(rule)
        })
        .collect()
}

/// Better refused than lost.
fn refuse_rule() -> Rule {
    let [_, v6] = &FAMILIES;
    let mut rule = v6.only().to_vec();
    rule.extend([
        v6.address(0, 0),
        Expression::equal(Register(0), Ipv6Addr::LOCALHOST.octets()),
        v6.address(1, 0),
        Expression::Lookup {
            set: UNANSWERED6.to_owned(),
            from: Register(0),
            found: Found::Membership,
        },
        Expression::Reject(Reject::PortUnreachable),
    ]);
    Rule::new(rule)
}

fn source_rules() -> Vec<Rule> {
    let masquerade = Expression::Masquerade {
        flags: NAT_FULLY_RANDOM,
    };
    let mut rules = vec![Rule::new(vec![
        Expression::Conntrack {
            key: Conntrack::Status,
            into: Register(0),
        },
        masked(0, ct_status::DNAT.to_ne_bytes().to_vec()),
        Expression::equal(Register(0), [0; 4]),
        Expression::Verdict(Verdict::Return),
    ])];
    for registers in &FAMILIES {
        let mut rule = registers.only().to_vec();
        rule.extend([
            registers.address(0, 0),
            registers.address(1, registers.words),
            Expression::Lookup {
                set: registers.names.hairpin.to_owned(),
                from: Register(0),
                found: Found::Membership,
            },
            masquerade.clone(),
        ]);
        rules.push(Rule::new(rule));
    }
    // A loopback address leaves the node by no link.
    for (registers, from_loopback) in FAMILIES.iter().zip([
        loopback4(0).to_vec(),
        vec![
            FAMILIES[1].address(0, 0),
            Expression::equal(Register(0), Ipv6Addr::LOCALHOST.octets()),
        ],
    ]) {
        let mut rule = registers.only().to_vec();
        rule.extend(from_loopback);
        rule.extend([
            Expression::Meta {
                key: Meta::OutInterfaceName,
                into: Register(0),
            },
            Expression::Compare {
                comparison: Comparison::NotEqual,
                from: Register(0),
                value: loopback_name(),
            },
            masquerade.clone(),
        ]);
        rules.push(Rule::new(rule));
    }
    rules
}
