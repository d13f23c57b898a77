//! The chains that are always there: the way to a frontend's number, refusals,
//! and who gets another source.

use linux::nftables::{
    Chain, ChainKind, Comparison, Conntrack, Element, Expression, Found, Hook, Meta, Register,
    Reject, Rule, Verdict, ct_state, ct_status, priority,
};

use super::expressions::{
    Registers, base, both, from_this_node, goto, lookup, masquerade, number_comment, regular,
};
use super::number::{DISCARD_CHAIN, Number, REFUSE_CHAIN};
use super::sets::{DISPATCH, MASQUERADE_KINDS};
use crate::model::{Family, NodeFacts};

const SERVICES_CHAIN: &str = "services";
const MASQUERADE_CHAIN: &str = "service-masquerade";
pub(crate) const FROM_OTHERS_CHAIN: &str = "masquerade-unless-pod";
const ALWAYS_CHAIN: &str = "masquerade-always";
pub(crate) const FROM_NODE_CHAIN: &str = "masquerade-if-node";
pub(crate) const HAIRPIN_CHAIN: &str = "masquerade-hairpin";

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
                Expression::equal(Register(0), [6]),
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
    let mut rule = in_state(ct_state::INVALID);
    rule.extend([Expression::Counter, Expression::Verdict(Verdict::Drop)]);
    Rule::new(rule)
}

/// Goes on with packets whose connection is in one of these states, bits of
/// [`ct_state`].
pub(crate) fn in_state(states: u32) -> Vec<Expression> {
    vec![
        Expression::Conntrack {
            key: Conntrack::State,
            into: Register(0),
        },
        Expression::Bitwise {
            from: Register(0),
            into: Register(0),
            mask: states.to_ne_bytes().to_vec(),
            xor: vec![0; 4],
        },
        Expression::Compare {
            comparison: Comparison::NotEqual,
            from: Register(0),
            value: vec![0; 4],
        },
    ]
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
        Expression::equal(Register(0), loopback),
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
    rules.extend(leaving());
    rules
}

/// What leaves the cluster gets the node's address.
pub(crate) fn leaving() -> Vec<Rule> {
    both(|registers, names| {
        vec![
            registers.source(0),
            lookup(names.pod_ranges, 0, Found::Membership),
            registers.destination(0),
            lookup(names.cluster_ranges, 0, Found::Absence),
            masquerade(),
        ]
    })
}

/// An endpoint that called itself gets the node's address.
pub(crate) fn hairpin() -> Vec<Rule> {
    both(|registers, names| {
        vec![
            registers.source(0),
            registers.destination(registers.words),
            lookup(names.hairpin, 0, Found::Membership),
            masquerade(),
        ]
    })
}

/// Everybody but this node's pods gets the node's address; those only if they
/// called themselves.
pub(crate) fn unless_pod() -> Vec<Rule> {
    let mut rules = both(|registers, names| {
        vec![
            registers.source(0),
            lookup(names.local_pods, 0, Found::Membership),
            goto(HAIRPIN_CHAIN),
        ]
    });
    rules.push(Rule::new(vec![masquerade()]));
    rules
}

/// The node itself gets the node's address, whatever it sent from; others only
/// if they called themselves.
pub(crate) fn if_node() -> Vec<Rule> {
    let mut node = from_this_node().to_vec();
    node.push(masquerade());
    vec![Rule::new(node), Rule::new(vec![goto(HAIRPIN_CHAIN)])]
}

/// The chains that decide whether a translated connection also gets a new
/// source. Which question is asked depends on the flags of the frontend's number.
fn masquerade_chains() -> Vec<Chain> {
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
        regular(HAIRPIN_CHAIN, hairpin()),
        regular(FROM_OTHERS_CHAIN, unless_pod()),
        regular(ALWAYS_CHAIN, vec![Rule::new(vec![masquerade()])]),
        regular(FROM_NODE_CHAIN, if_node()),
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
