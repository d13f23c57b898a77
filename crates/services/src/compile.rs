//! From the table to nftables objects: the fixed sets and chains, the number a
//! frontend gets, and the elements that stand for it. Pure.
//!
//! A packet's way, for the first packet of a connection only (nat chains see no
//! others): `services` looks (address, protocol, port) up and gets a number;
//! `dispatch` sends that number to a chain shared by all frontends alike; there
//! a slot is drawn, and (address, protocol, port, slot) yields the backend.
//!
//! With session affinity the slot yields the backend's id, which `affinity`
//! remembers for (client, address, protocol, port) until its time is over, and
//! the id yields the backend. An id stays with a backend for as long as that is
//! used, whatever happens to the slots; an id that no backend has is forgotten
//! when it is found.

use std::net::IpAddr;

use ipnet::IpNet;
use linux::nftables::{
    Base, Chain, ChainKind, Comparison, Conntrack, DataType, Element, Expression, FibAddress,
    Found, Header, Hook, Meta, NAT_FULLY_RANDOM, NatFamily, RTN_LOCAL, Register, Reject, Rule, Set,
    Verdict, ct_state, ct_status, priority, push_field,
};

use crate::model::{Backend, Family, FrontendKey, NodeFacts, TrafficPolicy};
use crate::table::Frontend;

/// The table all of podwire's rules are in (family `inet`).
pub const TABLE: &str = "podwire";

/// Names of sets that exist once for each family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SetNames {
    /// (address, protocol, port) → number.
    pub services: &'static str,
    /// (address, protocol, port, slot or id) → (address, port). Counts.
    pub backends: &'static str,
    /// (address, protocol, port, slot) → id, of frontends with affinity.
    pub turns: &'static str,
    /// (client, address, protocol, port) → id. Filled by rules.
    pub affinity: &'static str,
    /// (address, protocol, port, source range) that may use a frontend whose
    /// sources are restricted.
    pub sources: &'static str,
    /// Cluster addresses that a Service has.
    pub cluster_ips: &'static str,
    /// (address, address) of local endpoints: a packet with such a source and
    /// destination was sent by an endpoint to itself.
    pub hairpin: &'static str,
    /// Ranges of this node's pods, where those are told from others.
    pub local_pods: &'static str,
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
    turns: "turns4",
    affinity: "affinity4",
    sources: "sources4",
    cluster_ips: "cluster-ips4",
    hairpin: "hairpin4",
    local_pods: "local-pods4",
    pod_ranges: "pod-ranges4",
    cluster_ranges: "cluster-ranges4",
    service_ranges: "service-ranges4",
};

const NAMES6: SetNames = SetNames {
    services: "services6",
    backends: "backends6",
    turns: "turns6",
    affinity: "affinity6",
    sources: "sources6",
    cluster_ips: "cluster-ips6",
    hairpin: "hairpin6",
    local_pods: "local-pods6",
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Number {
    /// From the highest bit: 8 bits count of local backends, 16 bits count of
    /// backends, 8 bits flags.
    pub word: u32,
    /// For how many seconds a client keeps its backend; 0 without affinity.
    pub affinity: u32,
}

impl Number {
    const COUNT: u32 = 0xffff;
    const NEAR: u32 = 0xff;
    const COUNT_SHIFT: u32 = 8;
    const NEAR_SHIFT: u32 = 24;
    /// A node port, load-balancer or external address.
    pub const EXTERNAL: u32 = 1;
    /// Traffic from outside goes to local backends only.
    pub const LOCAL: u32 = 1 << 1;
    /// Without backends: dropped instead of refused.
    pub const DISCARD: u32 = 1 << 2;
    /// Only some sources may use it.
    pub const FILTERED: u32 = 1 << 3;

    /// The most backends a frontend is given; further ones are left out.
    pub const MOST: usize = Self::COUNT as usize;
    /// The most local backends a frontend is given.
    pub const MOST_LOCAL: usize = Self::NEAR as usize;

    /// A number without affinity.
    #[must_use]
    pub const fn plain(word: u32) -> Self {
        Self { word, affinity: 0 }
    }

    /// The number for all that are dispatched to the same chain.
    #[must_use]
    pub const fn dispatch(self) -> Self {
        Self {
            word: self.word & !Self::EXTERNAL,
            ..self
        }
    }

    /// Backends to draw from.
    #[must_use]
    pub const fn count(self) -> u32 {
        self.word >> Self::COUNT_SHIFT & Self::COUNT
    }

    /// Local backends to draw from.
    #[must_use]
    pub const fn near(self) -> u32 {
        self.word >> Self::NEAR_SHIFT
    }

    /// Whether clients keep their backend.
    #[must_use]
    pub const fn is_sticky(self) -> bool {
        self.affinity != 0
    }

    /// The bytes by which the maps know it: host order.
    #[must_use]
    pub fn bytes(self) -> Vec<u8> {
        [self.word.to_ne_bytes(), self.affinity.to_ne_bytes()].concat()
    }

    /// Reads what [`Self::bytes`] writes.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (word, affinity) = bytes.split_at_checked(4)?;
        Some(Self {
            word: u32::from_ne_bytes(word.try_into().ok()?),
            affinity: u32::from_ne_bytes(affinity.try_into().ok()?),
        })
    }

    /// The same for everybody.
    const fn unfiltered(self) -> Self {
        Self {
            word: self.word & !Self::FILTERED,
            ..self
        }
    }

    /// The chain it is sent to.
    #[must_use]
    pub fn chain(self) -> String {
        let count = self.count();
        if self.word & Self::FILTERED != 0 {
            let inner = self.unfiltered().chain();
            let inner = inner.strip_prefix(SERVICE_PREFIX).unwrap_or(&inner);
            format!("{ALLOW_PREFIX}{inner}")
        } else if self.word & Self::LOCAL != 0 {
            let affinity = match self.affinity {
                0 => String::new(),
                seconds => format!("-{seconds}"),
            };
            format!("split-{count}-{}{affinity}", self.near())
        } else if count != 0 {
            pick_name(count, self.affinity)
        } else if self.word & Self::DISCARD != 0 {
            DISCARD_CHAIN.to_owned()
        } else {
            REFUSE_CHAIN.to_owned()
        }
    }
}

/// Slots of local backends are counted from here, out of the others' way.
pub const NEAR_SLOTS: u32 = 0x1_0000;
/// With affinity: the ids of backends are counted from here.
pub const IDS: u32 = 0x2_0000;
/// With affinity: the ids of local backends are counted from here; a backend
/// has the same in both.
pub const NEAR_IDS: u32 = 0x3_0000;

/// The most clients that are remembered, of each family. Beyond that, new ones
/// are sent anywhere each time.
const AFFINITY_SIZE: u32 = 1 << 20;

const SERVICE_PREFIX: &str = "service-";
const ALLOW_PREFIX: &str = "allow-";
pub(crate) const REFUSE_CHAIN: &str = "service-refuse";
pub(crate) const DISCARD_CHAIN: &str = "service-discard";
const SERVICES_CHAIN: &str = "services";
const MASQUERADE_CHAIN: &str = "service-masquerade";
const FROM_OTHERS_CHAIN: &str = "masquerade-unless-pod";
const ALWAYS_CHAIN: &str = "masquerade-always";
const FROM_NODE_CHAIN: &str = "masquerade-if-node";
const HAIRPIN_CHAIN: &str = "masquerade-hairpin";

fn pick_name(count: u32, affinity: u32) -> String {
    match affinity {
        0 => format!("pick-{count}"),
        seconds => format!("keep-{count}-{seconds}"),
    }
}

fn near_name(count: u32, affinity: u32) -> String {
    match affinity {
        0 => format!("pick-local-{count}"),
        seconds => format!("keep-local-{count}-{seconds}"),
    }
}

/// Whether a chain is made on demand for a number.
#[must_use]
pub fn is_number_chain(name: &str) -> bool {
    let (allow, inner) = match name.strip_prefix(ALLOW_PREFIX) {
        Some(inner) => (true, inner),
        None => (false, name),
    };
    (allow && [REFUSE_CHAIN, DISCARD_CHAIN].contains(&format!("{SERVICE_PREFIX}{inner}").as_str()))
        || ["pick-local-", "pick-", "keep-local-", "keep-", "split-"]
            .iter()
            .find_map(|prefix| inner.strip_prefix(prefix))
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
    let filtered = match frontend.sources {
        Some(_) => Number::FILTERED,
        None => 0,
    };
    let word = (backends.len() as u32) << Number::COUNT_SHIFT
        | (near.len() as u32) << Number::NEAR_SHIFT
        | flags
        | filtered;
    let drawn = !backends.is_empty() || !near.is_empty();
    Wanted {
        number: Number {
            word,
            affinity: frontend.affinity.filter(|_| drawn).unwrap_or(0),
        },
        backends,
        near,
    }
}

/// The bytes of an address.
pub(crate) fn address_bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

pub(crate) fn frontend_bytes(key: &FrontendKey) -> Vec<u8> {
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

/// The element of the turns map.
#[must_use]
pub fn turn_element(key: &FrontendKey, slot: u32, id: u32) -> Element {
    let mut bytes = frontend_bytes(key);
    push_field(&mut bytes, &slot.to_ne_bytes());
    Element::pair(bytes, id.to_ne_bytes().to_vec())
}

/// First and last addresses that may use a frontend whose sources are
/// restricted, sorted and joined. Its own address is one of them: where the
/// node has it on an interface, the node asks itself with it.
#[must_use]
pub fn allowed(key: &FrontendKey, sources: &[IpNet]) -> Vec<(u128, u128)> {
    let own = IpNet::from(key.address);
    ranges(
        sources.iter().copied().chain([own]),
        Family::of(key.address),
    )
}

/// The element of the set of permitted sources.
#[must_use]
pub fn source_element(key: &FrontendKey, range: (u128, u128)) -> Element {
    let family = Family::of(key.address);
    let end = |number| {
        let mut bytes = frontend_bytes(key);
        push_field(&mut bytes, &number_bytes(number, family));
        bytes
    };
    Element::range(end(range.0), end(range.1))
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
            Set::map(
                names.services,
                &[address, Protocol, Port],
                &[Number, Number],
            ),
            Set::map(
                names.backends,
                &[address, Protocol, Port, Number],
                &[address, Port],
            )
            .counting(),
            Set::map(names.turns, &[address, Protocol, Port, Number], &[Number]),
            Set::map(
                names.affinity,
                &[address, address, Protocol, Port],
                &[Number],
            )
            .filled_by_rules(AFFINITY_SIZE),
            Set::concatenated_ranges(names.sources, &[address, Protocol, Port, address]),
            Set::ranges(names.local_pods, address),
            Set::of_values(names.cluster_ips, &[address]),
            Set::of_values(names.hairpin, &[address, address]),
            Set::ranges(names.pod_ranges, address),
            Set::ranges(names.cluster_ranges, address),
            Set::ranges(names.service_ranges, address),
        ]);
    }
    sets.push(Set::verdict_map(DISPATCH, &[Number, Number]));
    sets.push(Set::verdict_map(MASQUERADE_KINDS, &[Number]));
    sets
}

/// Where an address of `family` goes and which registers follow it.
pub(crate) struct Registers {
    family: NatFamily,
    pub(crate) words: u8,
    address: DataType,
}

impl Registers {
    pub(crate) fn of(family: Family) -> Self {
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
    pub(crate) fn only(&self) -> [Expression; 2] {
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

    pub(crate) fn source(&self, into: u8) -> Expression {
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

    pub(crate) fn destination(&self, into: u8) -> Expression {
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
    pub(crate) fn frontend(&self) -> [Expression; 3] {
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
    pub(crate) fn original_frontend(&self) -> [Expression; 6] {
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
            copy(aside, self.words, &[u32::MAX; 2], &[0; 2]),
        ]
    }

    /// Registers that hold no key.
    const ASIDE: u8 = 8;
    /// Where [`Self::number`] leaves the number.
    const NUMBER: u8 = Self::ASIDE + 1;

    /// Looks up the number for the key in register 0, keeps the bits of `mask`
    /// of its first word and puts it into register [`Self::NUMBER`], its second
    /// word into the next.
    ///
    /// It too is copied there together with its neighbour, over something that
    /// nft believes to be there still: nft 1.0.6 aborts when it lists a rule in
    /// which a map's result is looked up in another map. What it lists instead
    /// is said in the rule's comment.
    fn number(&self, names: &SetNames, mask: u32) -> [Expression; 4] {
        let found = self.words + 2;
        let mark = |into| Expression::Meta {
            key: Meta::Mark,
            into: Register(into),
        };
        [
            mark(Self::NUMBER),
            mark(Self::NUMBER + 1),
            lookup(names.services, 0, Found::Data(Register(found))),
            copy(found - 1, Self::ASIDE, &[u32::MAX, mask, u32::MAX], &[0; 3]),
        ]
    }
}

/// Copies registers, each with a mask and with bits turned over.
fn copy(from: u8, into: u8, masks: &[u32], xors: &[u32]) -> Expression {
    let bytes = |words: &[u32]| words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    Expression::Bitwise {
        from: Register(from),
        into: Register(into),
        mask: bytes(masks),
        xor: bytes(xors),
    }
}

fn number_comment(family: Family) -> String {
    format!(
        "not the mark: what {} yields for address, protocol, port",
        SetNames::of(family).services
    )
}

pub(crate) fn lookup(set: &str, from: u8, found: Found) -> Expression {
    Expression::Lookup {
        set: set.to_owned(),
        from: Register(from),
        found,
    }
}

pub(crate) fn goto(chain: impl Into<String>) -> Expression {
    Expression::Verdict(Verdict::Goto(chain.into()))
}

pub(crate) fn masquerade() -> Expression {
    Expression::Masquerade {
        flags: NAT_FULLY_RANDOM,
    }
}

pub(crate) fn from_this_node() -> [Expression; 2] {
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

pub(crate) fn regular(name: impl Into<String>, rules: Vec<Rule>) -> Chain {
    Chain {
        name: name.into(),
        base: None,
        rules,
    }
}

pub(crate) fn base(
    name: &str,
    kind: ChainKind,
    hook: Hook,
    priority: i32,
    rules: Vec<Rule>,
) -> Chain {
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
pub(crate) fn refuse_chain() -> Chain {
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

pub(crate) fn discard_rule() -> Rule {
    Rule::new(vec![
        Expression::Counter,
        Expression::Verdict(Verdict::Drop),
    ])
}

/// Packets that fit no connection carry addresses that were never translated
/// back: let through, they would make the receiver reset a healthy connection.
pub(crate) fn invalid_rule() -> Rule {
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

/// What stays in this namespace keeps its source.
pub(crate) fn stays_here() -> Rule {
    let mut loopback = b"lo".to_vec();
    loopback.resize(16, 0);
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
    ])
}

fn postrouting_rules() -> Vec<Rule> {
    let mut rules = vec![
        stays_here(),
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
            lookup(names.local_pods, 0, Found::Membership),
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

/// Who asks cluster addresses under the node's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Masqueraded {
    /// All but this node's pods.
    #[default]
    Others,
    /// Everybody.
    All,
    /// Nobody but an endpoint that asks itself.
    Hairpin,
}

impl Masqueraded {
    /// All there are.
    pub const ALL: [Self; 3] = [Self::Others, Self::All, Self::Hairpin];

    /// What the node's facts ask for.
    #[must_use]
    pub const fn of(facts: &NodeFacts) -> Self {
        match (facts.masquerade_all, facts.no_local_detection) {
            (true, _) => Self::All,
            (false, true) => Self::Hairpin,
            (false, false) => Self::Others,
        }
    }

    /// The element that says so.
    #[must_use]
    pub fn element(self) -> Element {
        kind(
            0,
            match self {
                Self::Others => FROM_OTHERS_CHAIN,
                Self::All => ALWAYS_CHAIN,
                Self::Hairpin => HAIRPIN_CHAIN,
            },
        )
    }
}

fn kind(flags: u32, chain: &str) -> Element {
    Element::verdict(
        flags.to_ne_bytes().to_vec(),
        Verdict::Goto(chain.to_owned()),
    )
}

/// The elements of the map of masquerade kinds.
#[must_use]
pub fn masquerade_kinds(cluster_addresses: Masqueraded) -> [Element; 3] {
    [
        cluster_addresses.element(),
        kind(Number::EXTERNAL, ALWAYS_CHAIN),
        kind(Number::EXTERNAL | Number::LOCAL, FROM_NODE_CHAIN),
    ]
}

/// A backend's place in the maps: whether of all or of the local ones.
#[derive(Clone, Copy)]
struct Places {
    slots: u32,
    ids: u32,
}

const ALL_PLACES: Places = Places { slots: 0, ids: IDS };
const NEAR_PLACES: Places = Places {
    slots: NEAR_SLOTS,
    ids: NEAR_IDS,
};

impl Registers {
    /// The next aligned register after a key with a slot, so that the address
    /// may be read from it.
    const fn found(&self) -> u8 {
        match self.family {
            NatFamily::V4 => 4,
            NatFamily::V6 => 8,
        }
    }

    fn translate(&self, found: u8) -> Expression {
        Expression::DestinationNat {
            family: self.family,
            address: Register(found),
            port: Some(Register(found + self.words)),
        }
    }
}

/// Draws one of `count` slots and translates the destination.
fn draw(name: String, count: u32, places: Places) -> Chain {
    let rules = both(|registers, names| {
        let mut rule = registers.frontend().to_vec();
        rule.push(Expression::RandomNumber {
            modulus: count,
            offset: places.slots,
            into: Register(registers.words + 2),
        });
        rule.push(lookup(
            names.backends,
            0,
            Found::Data(Register(registers.found())),
        ));
        rule.push(registers.translate(registers.found()));
        rule
    });
    regular(name, rules)
}

/// The registers of a rule about affinity: client, address, protocol, port,
/// slot or id, then two by two a place from which and one to which a value is
/// copied behind nft's back, as in [`Registers::number`].
struct Sticky {
    address: u8,
    slot: u8,
    aside: u8,
    second: u8,
}

impl Sticky {
    const fn of(registers: &Registers) -> Self {
        let address = registers.words;
        let slot = 2 * registers.words + 2;
        Self {
            address,
            slot,
            aside: slot + 2,
            // Of IPv6 these are the last two.
            second: slot + 4,
        }
    }

    /// Loads client, address, protocol and port, and what nft is to see.
    fn load(&self, registers: &Registers) -> Vec<Expression> {
        let port = |into| Expression::Payload {
            header: Header::Transport,
            offset: 2,
            length: 2,
            into: Register(into),
        };
        vec![
            registers.source(0),
            registers.destination(self.address),
            Expression::Meta {
                key: Meta::TransportProtocol,
                into: Register(self.slot - 2),
            },
            port(self.slot - 1),
            Expression::Meta {
                key: Meta::Mark,
                into: Register(self.slot),
            },
            Expression::Meta {
                key: Meta::Mark,
                into: Register(self.second + 1),
            },
            port(self.aside),
        ]
    }

    /// Register of the id that was looked up.
    const fn id(&self) -> u8 {
        self.aside + 1
    }

    /// Makes the id the last field of the backend's key.
    fn id_into_key(&self, places: Places) -> Expression {
        copy(self.aside, self.slot - 1, &[u32::MAX; 2], &[0, places.ids])
    }

    /// Puts the id where nft does not see that it is looked up.
    fn id_into_second(&self) -> Expression {
        copy(self.aside, self.second, &[u32::MAX; 2], &[0; 2])
    }

    /// Looks the backend up by the id in the key, and goes there.
    fn go(&self, registers: &Registers, names: &SetNames, rule: &mut Vec<Expression>) {
        // Aligned, so that the address may be read from it. What it covers of
        // the key has been read by then.
        const FOUND: u8 = 8;
        rule.push(lookup(
            names.backends,
            self.address,
            Found::Data(Register(FOUND)),
        ));
        rule.push(registers.translate(FOUND));
    }
}
/// Sends a client to the backend it is remembered with, or else draws one of
/// `count` slots and remembers its backend for `seconds`.
fn keep(name: String, count: u32, seconds: u32, places: Places) -> Chain {
    let comment = |family: Family, what: &str| {
        let names = SetNames::of(family);
        format!("not the mark: {what} {}", names.affinity)
    };
    let timeout = u64::from(seconds) * 1000;
    let update = |names: &SetNames, sticky: &Sticky| Expression::Update {
        set: names.affinity.to_owned(),
        key: Register(0),
        data: Some(Register(sticky.second + 1)),
        timeout,
    };
    let turn = |registers: &Registers, names: &SetNames, sticky: &Sticky| {
        let mut rule = sticky.load(registers);
        rule.push(Expression::RandomNumber {
            modulus: count,
            offset: places.slots,
            into: Register(sticky.slot),
        });
        rule.push(lookup(
            names.turns,
            sticky.address,
            Found::Data(Register(sticky.id())),
        ));
        rule
    };
    let remembered = both_families(|registers, names, family| {
        let sticky = Sticky::of(registers);
        let mut rule = sticky.load(registers);
        rule.push(lookup(
            names.affinity,
            0,
            Found::Data(Register(sticky.id())),
        ));
        rule.push(sticky.id_into_second());
        rule.push(update(names, &sticky));
        rule.push(sticky.id_into_key(places));
        sticky.go(registers, names, &mut rule);
        (rule, comment(family, "the id from"))
    });
    let remember = both_families(|registers, names, family| {
        let sticky = Sticky::of(registers);
        let mut rule = turn(registers, names, &sticky);
        rule.push(sticky.id_into_second());
        // Nobody, or a backend that is no longer used.
        rule.push(Expression::Forget {
            set: names.affinity.to_owned(),
            key: Register(0),
            data: Some(Register(sticky.second + 1)),
        });
        rule.push(update(names, &sticky));
        (rule, comment(family, "the id goes into"))
    });
    // Where no more clients can be remembered.
    let anybody = both_families(|registers, names, family| {
        let sticky = Sticky::of(registers);
        let mut rule = turn(registers, names, &sticky);
        rule.push(sticky.id_into_key(places));
        sticky.go(registers, names, &mut rule);
        (rule, comment(family, "the id, without"))
    });
    let rules = [remembered.clone(), remember, remembered, anybody].concat();
    regular(name, rules)
}

/// One commented rule for each family.
fn both_families(
    rule: impl Fn(&Registers, &SetNames, Family) -> (Vec<Expression>, String),
) -> Vec<Rule> {
    Family::ALL
        .iter()
        .map(|family| {
            let registers = Registers::of(*family);
            let (expressions, comment) = rule(&registers, SetNames::of(*family), *family);
            Rule::new([registers.only().to_vec(), expressions].concat()).comment(comment)
        })
        .collect()
}

/// The chain that chooses among all or among the local backends.
fn choose(count: u32, affinity: u32, places: Places) -> Chain {
    let near = places.slots == NEAR_SLOTS;
    let name = if near {
        near_name(count, affinity)
    } else {
        pick_name(count, affinity)
    };
    match affinity {
        0 => draw(name, count, places),
        seconds => keep(name, count, seconds, places),
    }
}

/// The chains a number needs besides those that are always there, those that
/// others name first.
#[must_use]
pub fn number_chains(number: Number) -> Vec<Chain> {
    let mut chains = Vec::new();
    let affinity = number.affinity;
    if number.word & Number::FILTERED != 0 {
        let inner = number.unfiltered();
        chains = number_chains(inner);
        let mut rules = both(|registers, names| {
            let mut rule = registers.frontend().to_vec();
            rule.push(registers.source(registers.words + 2));
            rule.push(lookup(names.sources, 0, Found::Membership));
            rule.push(goto(inner.chain()));
            rule
        });
        rules.push(Rule::new(vec![goto(DISCARD_CHAIN)]));
        chains.push(regular(number.chain(), rules));
        return chains;
    }
    if number.count() != 0 {
        chains.push(choose(number.count(), affinity, ALL_PLACES));
    }
    if number.word & Number::LOCAL == 0 {
        return chains;
    }
    if number.near() != 0 {
        chains.push(choose(number.near(), affinity, NEAR_PLACES));
    }
    let anywhere = if number.count() == 0 {
        // Only local endpoints are left, and those are still serving: pods and
        // the node may use them too.
        near_name(number.near(), affinity)
    } else {
        pick_name(number.count(), affinity)
    };
    let mut rules = both(|registers, names| {
        vec![
            registers.source(0),
            lookup(names.local_pods, 0, Found::Membership),
            goto(anywhere.clone()),
        ]
    });
    let mut node = from_this_node().to_vec();
    node.push(goto(anywhere.clone()));
    rules.push(Rule::new(node));
    rules.push(Rule::new(vec![if number.near() == 0 {
        goto(DISCARD_CHAIN)
    } else {
        goto(near_name(number.near(), affinity))
    }]));
    chains.push(regular(number.chain(), rules));
    chains
}
