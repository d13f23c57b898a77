//! From the table to nftables objects: the fixed sets and chains, the number a
//! frontend gets, and the elements that stand for it. Pure.
//!
//! A packet's way, for the first packet of a connection only (nat chains see no
//! others): `services` looks (address, protocol, port) up and gets a number;
//! `dispatch` sends that number to a chain shared by all frontends alike; there
//! a slot is drawn, and (address, protocol, port, slot) yields the backend.

use std::net::IpAddr;

use ipnet::IpNet;
use linux::nftables::{
    Base, Chain, ChainKind, Comparison, Conntrack, DataType, Element, Expression, FibAddress,
    Found, Header, Hook, Meta, NAT_FULLY_RANDOM, NatFamily, RTN_LOCAL, Register, Reject, Rule, Set,
    Verdict, ct_state, ct_status, priority, push_field,
};

use crate::model::{Backend, Family, FrontendKey, TrafficPolicy};
use crate::table::Frontend;

/// The table all of podwire's rules are in (family `inet`).
pub const TABLE: &str = "podwire";

/// Names of sets that exist once for each family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SetNames {
    /// (address, protocol, port) → number.
    pub services: &'static str,
    /// (address, protocol, port, slot) → (address, port).
    pub backends: &'static str,
    /// Cluster addresses that a Service has.
    pub cluster_ips: &'static str,
    /// (address, address) of local endpoints: a packet with such a source and
    /// destination was sent by an endpoint to itself.
    pub hairpin: &'static str,
    /// Ranges of this node's pods.
    pub pod_ranges: &'static str,
    /// Ranges pods talk to with their own address.
    pub cluster_ranges: &'static str,
    /// Ranges Service addresses are given from.
    pub service_ranges: &'static str,
}

const NAMES4: SetNames = SetNames {
    services: "services4",
    backends: "backends4",
    cluster_ips: "cluster-ips4",
    hairpin: "hairpin4",
    pod_ranges: "pod-ranges4",
    cluster_ranges: "cluster-ranges4",
    service_ranges: "service-ranges4",
};

const NAMES6: SetNames = SetNames {
    services: "services6",
    backends: "backends6",
    cluster_ips: "cluster-ips6",
    hairpin: "hairpin6",
    pod_ranges: "pod-ranges6",
    cluster_ranges: "cluster-ranges6",
    service_ranges: "service-ranges6",
};

/// number → chain, for both families.
pub const DISPATCH: &str = "service-dispatch";
/// flags of a number → chain that decides on masquerade.
pub const MASQUERADE_KINDS: &str = "masquerade-kinds";

impl SetNames {
    /// Those of a family.
    #[must_use]
    pub const fn of(family: Family) -> &'static Self {
        match family {
            Family::V4 => &NAMES4,
            Family::V6 => &NAMES6,
        }
    }
}

/// What a frontend is to the rules: how many backends there are to draw from
/// and how it is to be treated. Frontends with the same number share a chain.
///
/// From the highest bit: 8 bits count of local backends, 16 bits count of
/// backends, 8 bits flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Number(pub u32);

impl Number {
    const COUNT: u32 = 0xffff;
    const NEAR: u32 = 0xff;
    const COUNT_SHIFT: u32 = 8;
    const NEAR_SHIFT: u32 = 24;
    /// A node port or external address.
    pub const EXTERNAL: u32 = 1;
    /// Traffic from outside goes to local backends only.
    pub const LOCAL: u32 = 1 << 1;
    /// Without backends: dropped instead of refused.
    pub const DISCARD: u32 = 1 << 2;

    /// The most backends a frontend is given; further ones are left out.
    pub const MOST: usize = Self::COUNT as usize;
    /// The most local backends a frontend is given.
    pub const MOST_LOCAL: usize = Self::NEAR as usize;

    /// The number for all that are dispatched to the same chain.
    #[must_use]
    pub const fn dispatch(self) -> Self {
        Self(self.0 & !Self::EXTERNAL)
    }

    /// Backends to draw from.
    #[must_use]
    pub const fn count(self) -> u32 {
        self.0 >> Self::COUNT_SHIFT & Self::COUNT
    }

    /// Local backends to draw from.
    #[must_use]
    pub const fn near(self) -> u32 {
        self.0 >> Self::NEAR_SHIFT
    }

    /// The bytes by which the maps know it: host order.
    #[must_use]
    pub fn bytes(self) -> Vec<u8> {
        self.0.to_ne_bytes().to_vec()
    }

    /// The chain it is sent to.
    #[must_use]
    pub fn chain(self) -> String {
        let count = self.count();
        if self.0 & Self::LOCAL != 0 {
            format!("split-{count}-{}", self.near())
        } else if count != 0 {
            pick_name(count)
        } else if self.0 & Self::DISCARD != 0 {
            DISCARD_CHAIN.to_owned()
        } else {
            REFUSE_CHAIN.to_owned()
        }
    }
}

/// Slots of local backends are counted from here, out of the others' way.
pub const NEAR_SLOTS: u32 = 0x1_0000;

const REFUSE_CHAIN: &str = "service-refuse";
const DISCARD_CHAIN: &str = "service-discard";
const SERVICES_CHAIN: &str = "services";
const MASQUERADE_CHAIN: &str = "service-masquerade";
const FROM_OTHERS_CHAIN: &str = "masquerade-unless-pod";
const ALWAYS_CHAIN: &str = "masquerade-always";
const FROM_NODE_CHAIN: &str = "masquerade-if-node";
const HAIRPIN_CHAIN: &str = "masquerade-hairpin";

fn pick_name(count: u32) -> String {
    format!("pick-{count}")
}

fn near_name(count: u32) -> String {
    format!("pick-local-{count}")
}

/// Whether a chain is made on demand for a number.
#[must_use]
pub fn is_number_chain(name: &str) -> bool {
    name.strip_prefix("pick-local-")
        .or_else(|| name.strip_prefix("pick-"))
        .or_else(|| name.strip_prefix("split-"))
        .is_some_and(|rest| {
            !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit() || b == b'-')
        })
}

/// A frontend as the maps hold it: its number and its backends, sorted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted<'a> {
    /// The number.
    pub number: Number,
    /// Drawn from by all, or by pods and the node if there are local ones.
    pub backends: &'a [Backend],
    /// Drawn from by traffic from outside.
    pub near: &'a [Backend],
}

/// What a frontend comes to.
#[must_use]
pub fn frontend(frontend: &Frontend) -> Wanted<'_> {
    fn at_most(list: &[Backend], most: usize) -> &[Backend] {
        &list[..list.len().min(most)]
    }
    let cluster = at_most(&frontend.cluster, Number::MOST);
    let local = at_most(&frontend.local, Number::MOST_LOCAL);
    let (backends, near, flags) = match (frontend.kind.is_external(), frontend.policy) {
        (false, TrafficPolicy::Cluster) => (cluster, &[][..], 0),
        (false, TrafficPolicy::Local) => {
            let elsewhere = local.is_empty() && !cluster.is_empty();
            let flags = if elsewhere { Number::DISCARD } else { 0 };
            (local, &[][..], flags)
        }
        (true, TrafficPolicy::Cluster) => (cluster, &[][..], Number::EXTERNAL),
        (true, TrafficPolicy::Local) => {
            if cluster.is_empty() && local.is_empty() {
                (cluster, local, Number::EXTERNAL)
            } else {
                (cluster, local, Number::EXTERNAL | Number::LOCAL)
            }
        }
    };
    Wanted {
        number: Number(
            (backends.len() as u32) << Number::COUNT_SHIFT
                | (near.len() as u32) << Number::NEAR_SHIFT
                | flags,
        ),
        backends,
        near,
    }
}

/// The bytes of an address.
fn address_bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn frontend_bytes(key: &FrontendKey) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(28);
    push_field(&mut bytes, &address_bytes(key.address));
    push_field(&mut bytes, &[key.protocol.number()]);
    push_field(&mut bytes, &key.port.to_be_bytes());
    bytes
}

/// The element of the services map.
#[must_use]
pub fn service_element(key: &FrontendKey, number: Number) -> Element {
    Element::pair(frontend_bytes(key), number.bytes())
}

/// The element of the backends map.
#[must_use]
pub fn backend_element(key: &FrontendKey, slot: u32, backend: Backend) -> Element {
    let mut bytes = frontend_bytes(key);
    push_field(&mut bytes, &slot.to_ne_bytes());
    let mut value = Vec::with_capacity(20);
    push_field(&mut value, &address_bytes(backend.address));
    push_field(&mut value, &backend.port.to_be_bytes());
    Element::pair(bytes, value)
}

/// The element of the set of cluster addresses.
#[must_use]
pub fn cluster_ip_element(address: IpAddr) -> Element {
    Element::key(address_bytes(address))
}

/// The element of the hairpin set.
#[must_use]
pub fn hairpin_element(address: IpAddr) -> Element {
    let mut bytes = address_bytes(address);
    bytes.extend(address_bytes(address));
    Element::key(bytes)
}

/// The element of the dispatch map.
#[must_use]
pub fn dispatch_element(number: Number) -> Element {
    Element::verdict(number.bytes(), Verdict::Goto(number.chain()))
}

/// First and last address of the ranges that cover these networks, sorted,
/// overlapping and neighbouring ones joined.
#[must_use]
pub fn ranges(networks: impl IntoIterator<Item = IpNet>, family: Family) -> Vec<(u128, u128)> {
    let mut all: Vec<(u128, u128)> = networks
        .into_iter()
        .filter(|network| Family::of(network.addr()) == family)
        .map(|network| (to_number(network.network()), to_number(network.broadcast())))
        .collect();
    all.sort_unstable();
    let mut joined: Vec<(u128, u128)> = Vec::with_capacity(all.len());
    for (first, last) in all {
        match joined.last_mut() {
            Some((_, end)) if first <= end.saturating_add(1) => *end = (*end).max(last),
            _ => joined.push((first, last)),
        }
    }
    joined
}

fn to_number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

fn number_bytes(number: u128, family: Family) -> Vec<u8> {
    match family {
        Family::V4 => (number as u32).to_be_bytes().to_vec(),
        Family::V6 => number.to_be_bytes().to_vec(),
    }
}

/// The two elements of a range; one if it reaches the last address there is.
#[must_use]
pub fn range_elements(range: (u128, u128), family: Family) -> Vec<Element> {
    let mut elements = vec![Element::key(number_bytes(range.0, family))];
    let greatest = match family {
        Family::V4 => u128::from(u32::MAX),
        Family::V6 => u128::MAX,
    };
    if range.1 < greatest {
        elements.push(Element::range_end(number_bytes(range.1 + 1, family)));
    }
    elements
}

/// The sets and maps, which never change while podwire runs.
#[must_use]
pub fn sets() -> Vec<Set> {
    use DataType::{Ipv4Address, Ipv6Address, Number, Port, Protocol};
    let mut sets = Vec::new();
    for family in Family::ALL {
        let names = SetNames::of(family);
        let address = match family {
            Family::V4 => Ipv4Address,
            Family::V6 => Ipv6Address,
        };
        sets.extend([
            Set::map(names.services, &[address, Protocol, Port], &[Number]),
            Set::map(
                names.backends,
                &[address, Protocol, Port, Number],
                &[address, Port],
            ),
            Set::of_values(names.cluster_ips, &[address]),
            Set::of_values(names.hairpin, &[address, address]),
            Set::ranges(names.pod_ranges, address),
            Set::ranges(names.cluster_ranges, address),
            Set::ranges(names.service_ranges, address),
        ]);
    }
    sets.push(Set::verdict_map(DISPATCH, &[Number]));
    sets.push(Set::verdict_map(MASQUERADE_KINDS, &[Number]));
    sets
}

/// Where an address of `family` goes and which registers follow it.
struct Registers {
    family: NatFamily,
    words: u8,
    address: DataType,
}

impl Registers {
    fn of(family: Family) -> Self {
        match family {
            Family::V4 => Self {
                family: NatFamily::V4,
                words: 1,
                address: DataType::Ipv4Address,
            },
            Family::V6 => Self {
                family: NatFamily::V6,
                words: 4,
                address: DataType::Ipv6Address,
            },
        }
    }

    /// The rule goes on for packets of this family only.
    fn only(&self) -> [Expression; 2] {
        [
            Expression::Meta {
                key: Meta::NetworkFamily,
                into: Register(15),
            },
            Expression::Compare {
                comparison: Comparison::Equal,
                from: Register(15),
                value: vec![self.family.number()],
            },
        ]
    }

    fn source(&self, into: u8) -> Expression {
        Expression::Payload {
            header: Header::Network,
            offset: match self.family {
                NatFamily::V4 => 12,
                NatFamily::V6 => 8,
            },
            length: self.address.length() as u32,
            into: Register(into),
        }
    }

    fn destination(&self, into: u8) -> Expression {
        Expression::Payload {
            header: Header::Network,
            offset: match self.family {
                NatFamily::V4 => 16,
                NatFamily::V6 => 24,
            },
            length: self.address.length() as u32,
            into: Register(into),
        }
    }

    /// Loads (address, protocol, port) from register 0 on.
    fn frontend(&self) -> [Expression; 3] {
        [
            self.destination(0),
            Expression::Meta {
                key: Meta::TransportProtocol,
                into: Register(self.words),
            },
            Expression::Payload {
                header: Header::Transport,
                offset: 2,
                length: 2,
                into: Register(self.words + 1),
            },
        ]
    }

    /// Loads (address, protocol, port) as they were before any translation.
    ///
    /// The port takes a detour: nft 1.0.6 takes `ct original proto-dst` for a
    /// value without length and aborts when it lists a key made with it. So
    /// protocol and port are loaded elsewhere and copied together over what nft
    /// then believes to be there still: the protocol and the present port.
    fn original_frontend(&self) -> [Expression; 6] {
        let aside = Self::ASIDE;
        [
            Expression::Conntrack {
                key: match self.family {
                    NatFamily::V4 => Conntrack::OriginalDestination4,
                    NatFamily::V6 => Conntrack::OriginalDestination6,
                },
                into: Register(0),
            },
            Expression::Payload {
                header: Header::Transport,
                offset: 2,
                length: 2,
                into: Register(self.words + 1),
            },
            Expression::Meta {
                key: Meta::TransportProtocol,
                into: Register(self.words),
            },
            Expression::Meta {
                key: Meta::TransportProtocol,
                into: Register(aside),
            },
            Expression::Conntrack {
                key: Conntrack::OriginalDestinationPort,
                into: Register(aside + 1),
            },
            copy(aside, self.words, [u32::MAX, u32::MAX]),
        ]
    }

    /// Registers that hold no key.
    const ASIDE: u8 = 8;
    /// Where [`Self::number`] leaves the number.
    const NUMBER: u8 = Self::ASIDE + 1;

    /// Looks up the number for the key in register 0, keeps the bits of `mask`
    /// and puts it into register [`Self::NUMBER`].
    ///
    /// It too is copied there together with its neighbour, over something that
    /// nft believes to be there still: nft 1.0.6 aborts when it lists a rule in
    /// which a map's result is looked up in another map. What it lists instead
    /// is said in the rule's comment.
    fn number(&self, names: &SetNames, mask: u32) -> [Expression; 3] {
        let found = self.words + 2;
        [
            Expression::Meta {
                key: Meta::Mark,
                into: Register(Self::NUMBER),
            },
            lookup(names.services, 0, Found::Data(Register(found))),
            copy(found - 1, Self::ASIDE, [u32::MAX, mask]),
        ]
    }
}

/// Copies two registers, each with a mask.
fn copy(from: u8, into: u8, masks: [u32; 2]) -> Expression {
    Expression::Bitwise {
        from: Register(from),
        into: Register(into),
        mask: masks.iter().flat_map(|mask| mask.to_ne_bytes()).collect(),
        xor: vec![0; 8],
    }
}

fn number_comment(family: Family) -> String {
    format!(
        "not the mark: what {} yields for address, protocol, port",
        SetNames::of(family).services
    )
}

fn lookup(set: &str, from: u8, found: Found) -> Expression {
    Expression::Lookup {
        set: set.to_owned(),
        from: Register(from),
        found,
    }
}

fn goto(chain: impl Into<String>) -> Expression {
    Expression::Verdict(Verdict::Goto(chain.into()))
}

fn masquerade() -> Expression {
    Expression::Masquerade {
        flags: NAT_FULLY_RANDOM,
    }
}

fn from_this_node() -> [Expression; 2] {
    [
        Expression::FibType {
            address: FibAddress::Source,
            into: Register(0),
        },
        Expression::Compare {
            comparison: Comparison::Equal,
            from: Register(0),
            value: RTN_LOCAL.to_ne_bytes().to_vec(),
        },
    ]
}

/// One rule for each family.
fn both(rule: impl Fn(&Registers, &SetNames) -> Vec<Expression>) -> Vec<Rule> {
    Family::ALL
        .iter()
        .map(|family| {
            let registers = Registers::of(*family);
            let mut expressions = registers.only().to_vec();
            expressions.extend(rule(&registers, SetNames::of(*family)));
            Rule::new(expressions)
        })
        .collect()
}

fn regular(name: impl Into<String>, rules: Vec<Rule>) -> Chain {
    Chain {
        name: name.into(),
        base: None,
        rules,
    }
}

fn base(name: &str, kind: ChainKind, hook: Hook, priority: i32, rules: Vec<Rule>) -> Chain {
    Chain {
        name: name.to_owned(),
        base: Some(Base {
            kind,
            hook,
            priority,
            drop: false,
        }),
        rules,
    }
}

/// The chains that are always there, those that others name first.
#[must_use]
pub fn chains() -> Vec<Chain> {
    let mut chains = vec![refuse_chain(), regular(DISCARD_CHAIN, vec![discard_rule()])];
    chains.extend(masquerade_chains());
    chains.push(services_chain());
    let enter = || {
        vec![Rule::new(vec![Expression::Verdict(Verdict::Jump(
            SERVICES_CHAIN.to_owned(),
        ))])]
    };
    chains.push(base(
        "service-prerouting",
        ChainKind::Nat,
        Hook::Prerouting,
        priority::DSTNAT,
        enter(),
    ));
    chains.push(base(
        "service-output",
        ChainKind::Nat,
        Hook::Output,
        priority::DSTNAT,
        enter(),
    ));
    chains.push(base(
        "service-postrouting",
        ChainKind::Nat,
        Hook::Postrouting,
        priority::SRCNAT,
        postrouting_rules(),
    ));
    chains.push(base(
        "service-forward",
        ChainKind::Filter,
        Hook::Forward,
        priority::FILTER,
        vec![invalid_rule()],
    ));
    chains
}

/// A reset for TCP: unlike ICMP errors resets are not limited in number, so
/// each of many callers hears at once that nobody is there.
fn refuse_chain() -> Chain {
    regular(
        REFUSE_CHAIN,
        vec![
            Rule::new(vec![
                Expression::Meta {
                    key: Meta::TransportProtocol,
                    into: Register(0),
                },
                Expression::Compare {
                    comparison: Comparison::Equal,
                    from: Register(0),
                    value: vec![6],
                },
                Expression::Counter,
                Expression::Reject(Reject::TcpReset),
            ]),
            Rule::new(vec![
                Expression::Counter,
                Expression::Reject(Reject::PortUnreachable),
            ]),
        ],
    )
}

fn discard_rule() -> Rule {
    Rule::new(vec![
        Expression::Counter,
        Expression::Verdict(Verdict::Drop),
    ])
}

/// Packets that fit no connection carry addresses that were never translated
/// back: let through, they would make the receiver reset a healthy connection.
fn invalid_rule() -> Rule {
    Rule::new(vec![
        Expression::Conntrack {
            key: Conntrack::State,
            into: Register(0),
        },
        Expression::Bitwise {
            from: Register(0),
            into: Register(0),
            mask: ct_state::INVALID.to_ne_bytes().to_vec(),
            xor: vec![0; 4],
        },
        Expression::Compare {
            comparison: Comparison::NotEqual,
            from: Register(0),
            value: vec![0; 4],
        },
        Expression::Counter,
        Expression::Verdict(Verdict::Drop),
    ])
}

fn services_chain() -> Chain {
    let mut rules = both(|registers, names| {
        let mut rule = registers.frontend().to_vec();
        rule.extend(registers.number(names, !Number::EXTERNAL));
        rule.push(lookup(DISPATCH, Registers::NUMBER, Found::Verdict));
        rule
    });
    for (rule, family) in rules.iter_mut().zip(Family::ALL) {
        rule.comment = Some(number_comment(family));
    }
    rules.extend(both(|registers, names| {
        vec![
            registers.destination(0),
            lookup(names.cluster_ips, 0, Found::Membership),
            goto(REFUSE_CHAIN),
        ]
    }));
    rules.extend(both(|registers, names| {
        vec![
            registers.destination(0),
            lookup(names.service_ranges, 0, Found::Membership),
            goto(DISCARD_CHAIN),
        ]
    }));
    regular(SERVICES_CHAIN, rules)
}

fn postrouting_rules() -> Vec<Rule> {
    let mut loopback = b"lo".to_vec();
    loopback.resize(16, 0);
    let mut rules = vec![
        // What stays in this namespace keeps its source.
        Rule::new(vec![
            Expression::Meta {
                key: Meta::OutInterfaceName,
                into: Register(0),
            },
            Expression::Compare {
                comparison: Comparison::Equal,
                from: Register(0),
                value: loopback,
            },
            Expression::Verdict(Verdict::Return),
        ]),
        Rule::new(vec![
            Expression::Conntrack {
                key: Conntrack::Status,
                into: Register(0),
            },
            Expression::Bitwise {
                from: Register(0),
                into: Register(0),
                mask: ct_status::DNAT.to_ne_bytes().to_vec(),
                xor: vec![0; 4],
            },
            Expression::Compare {
                comparison: Comparison::NotEqual,
                from: Register(0),
                value: vec![0; 4],
            },
            Expression::Verdict(Verdict::Jump(MASQUERADE_CHAIN.to_owned())),
        ]),
    ];
    // What leaves the cluster.
    rules.extend(both(|registers, names| {
        vec![
            registers.source(0),
            lookup(names.pod_ranges, 0, Found::Membership),
            registers.destination(0),
            lookup(names.cluster_ranges, 0, Found::Absence),
            masquerade(),
        ]
    }));
    rules
}

/// The chains that decide whether a translated connection also gets a new
/// source. Which question is asked depends on the flags of the frontend's number.
fn masquerade_chains() -> Vec<Chain> {
    let hairpin = both(|registers, names| {
        vec![
            registers.source(0),
            registers.destination(registers.words),
            lookup(names.hairpin, 0, Found::Membership),
            masquerade(),
        ]
    });
    let mut from_others = both(|registers, names| {
        vec![
            registers.source(0),
            lookup(names.pod_ranges, 0, Found::Membership),
            goto(HAIRPIN_CHAIN),
        ]
    });
    from_others.push(Rule::new(vec![masquerade()]));
    let mut from_node = from_this_node().to_vec();
    from_node.push(masquerade());
    let mut ask = both(|registers, names| {
        let mut rule = registers.original_frontend().to_vec();
        rule.extend(registers.number(names, Number::EXTERNAL | Number::LOCAL));
        rule.push(lookup(MASQUERADE_KINDS, Registers::NUMBER, Found::Verdict));
        rule
    });
    for (rule, family) in ask.iter_mut().zip(Family::ALL) {
        rule.comment = Some(number_comment(family));
    }
    vec![
        regular(HAIRPIN_CHAIN, hairpin),
        regular(FROM_OTHERS_CHAIN, from_others),
        regular(ALWAYS_CHAIN, vec![Rule::new(vec![masquerade()])]),
        regular(
            FROM_NODE_CHAIN,
            vec![Rule::new(from_node), Rule::new(vec![goto(HAIRPIN_CHAIN)])],
        ),
        regular(MASQUERADE_CHAIN, ask),
    ]
}

/// The elements that are always in the map of masquerade kinds.
#[must_use]
pub fn masquerade_kinds() -> Vec<Element> {
    [
        (0, FROM_OTHERS_CHAIN),
        (Number::EXTERNAL, ALWAYS_CHAIN),
        (Number::EXTERNAL | Number::LOCAL, FROM_NODE_CHAIN),
    ]
    .into_iter()
    .map(|(flags, chain)| Element::verdict(Number(flags).bytes(), Verdict::Goto(chain.to_owned())))
    .collect()
}

/// Draws one of `count` slots from `first` on and translates the destination.
fn draw(name: String, count: u32, first: u32) -> Chain {
    let rules = both(|registers, names| {
        let slot = registers.words + 2;
        // The next aligned register, so that the address may be read from it.
        let found = (slot + 1).next_multiple_of(4);
        let mut rule = registers.frontend().to_vec();
        rule.push(Expression::RandomNumber {
            modulus: count,
            offset: first,
            into: Register(slot),
        });
        rule.push(lookup(names.backends, 0, Found::Data(Register(found))));
        rule.push(Expression::DestinationNat {
            family: registers.family,
            address: Register(found),
            port: Some(Register(found + registers.words)),
        });
        rule
    });
    regular(name, rules)
}

/// The chains a number needs besides those that are always there, those that
/// others name first.
#[must_use]
pub fn number_chains(number: Number) -> Vec<Chain> {
    let mut chains = Vec::new();
    if number.count() != 0 {
        chains.push(draw(pick_name(number.count()), number.count(), 0));
    }
    if number.0 & Number::LOCAL == 0 {
        return chains;
    }
    if number.near() != 0 {
        chains.push(draw(near_name(number.near()), number.near(), NEAR_SLOTS));
    }
    let anywhere = if number.count() == 0 {
        // Only local endpoints are left, and those are still serving: pods and
        // the node may use them too.
        near_name(number.near())
    } else {
        pick_name(number.count())
    };
    let mut rules = both(|registers, names| {
        vec![
            registers.source(0),
            lookup(names.pod_ranges, 0, Found::Membership),
            goto(anywhere.clone()),
        ]
    });
    let mut node = from_this_node().to_vec();
    node.push(goto(anywhere.clone()));
    rules.push(Rule::new(node));
    rules.push(Rule::new(vec![if number.near() == 0 {
        goto(DISCARD_CHAIN)
    } else {
        goto(near_name(number.near()))
    }]));
    chains.push(regular(number.chain(), rules));
    chains
}
