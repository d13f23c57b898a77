//! The nftables rules beside the virtual servers: who is refused or dropped
//! before a server is asked, and whose source is translated after. Pure.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use linux::nftables::{
    Chain, ChainKind, DataType, Element, Expression, Found, Hook, Rule, Set, Value, Verdict,
    ct_state, priority,
};

use super::plan::{Admission, Masqueraded, Wanted};
use crate::adopt;
use crate::compile::{
    self, DISCARD_CHAIN, FROM_NODE_CHAIN, FROM_OTHERS_CHAIN, HAIRPIN_CHAIN, REFUSE_CHAIN,
    Registers, SetNames,
};
use crate::difference::Ranges;
use crate::model::{Backend, Family, FrontendKey, NodeFacts};

/// The table all of these rules are in (family `inet`).
pub const TABLE: &str = "podwire_ipvs";

/// Names of the sets of frontends, which exist once for each family.
#[derive(Debug)]
pub struct FrontendSets {
    /// Those that have a virtual server of ours in IPVS: written before it is
    /// made and until it is gone, since IPVS itself keeps no owners.
    pub servers: &'static str,
    /// New connections to these are for IPVS.
    pub served: &'static str,
    /// New connections to these are refused.
    pub refused: &'static str,
    /// New connections to these are dropped.
    pub discarded: &'static str,
    /// Only some sources may use these.
    pub filtered: &'static str,
    /// Pods and the node are sent from these to others: a map.
    pub twins: &'static str,
    /// Addresses that our interface holds.
    pub held: &'static str,
    /// Every connection's source is translated.
    pub from_all: &'static str,
    /// That of connections of others than this node's pods.
    pub from_others: &'static str,
    /// That of connections of the node itself.
    pub from_node: &'static str,
}

const SETS4: FrontendSets = FrontendSets {
    servers: "servers4",
    served: "served4",
    refused: "refused4",
    discarded: "discarded4",
    filtered: "filtered4",
    twins: "twins4",
    held: "held4",
    from_all: "masquerade-all4",
    from_others: "masquerade-others4",
    from_node: "masquerade-node4",
};

const SETS6: FrontendSets = FrontendSets {
    servers: "servers6",
    served: "served6",
    refused: "refused6",
    discarded: "discarded6",
    filtered: "filtered6",
    twins: "twins6",
    held: "held6",
    from_all: "masquerade-all6",
    from_others: "masquerade-others6",
    from_node: "masquerade-node6",
};

impl FrontendSets {
    /// Those of both families.
    pub const ALL: [&'static Self; 2] = [&SETS4, &SETS6];

    /// Those of a family.
    #[must_use]
    pub const fn of(family: Family) -> &'static Self {
        match family {
            Family::V4 => &SETS4,
            Family::V6 => &SETS6,
        }
    }

    /// Those that hold frontends and nothing else.
    fn names(&self) -> [&'static str; 8] {
        [
            self.servers,
            self.served,
            self.refused,
            self.discarded,
            self.filtered,
            self.from_all,
            self.from_others,
            self.from_node,
        ]
    }
}

/// Elements by the name of their set.
pub type Elements = HashMap<&'static str, HashSet<Element>>;

/// The sets of ranges, which are exchanged whole.
#[must_use]
pub fn range_sets(facts: &NodeFacts) -> Vec<(&'static str, Vec<Element>)> {
    let mut sets = Vec::new();
    for family in Family::ALL {
        let names = SetNames::of(family);
        let ranges = Ranges::of(facts, family);
        for (set, ranges) in [
            (names.local_pods, ranges.local),
            (names.pod_ranges, ranges.pods),
            (names.cluster_ranges, ranges.cluster),
            (names.service_ranges, ranges.services),
        ] {
            let elements = ranges
                .into_iter()
                .flat_map(|range| compile::range_elements(range, family));
            sets.push((set, elements.collect()));
        }
    }
    sets
}

/// All sets.
#[must_use]
pub fn sets() -> Vec<Set> {
    use DataType::{Ipv4Address, Ipv6Address, Port, Protocol};
    let mut sets = Vec::new();
    for family in Family::ALL {
        let names = SetNames::of(family);
        let address = match family {
            Family::V4 => Ipv4Address,
            Family::V6 => Ipv6Address,
        };
        sets.extend(
            FrontendSets::of(family)
                .names()
                .map(|name| Set::of_values(name, &[address, Protocol, Port])),
        );
        sets.extend([
            Set::map(
                FrontendSets::of(family).twins,
                &[address, Protocol, Port],
                &[address, Port],
            ),
            Set::of_values(FrontendSets::of(family).held, &[address]),
            Set::ranges(names.local_pods, address),
            Set::concatenated_ranges(names.sources, &[address, Protocol, Port, address]),
            Set::of_values(names.cluster_ips, &[address]),
            Set::of_values(names.hairpin, &[address, address]),
            Set::ranges(names.pod_ranges, address),
            Set::ranges(names.cluster_ranges, address),
            Set::ranges(names.service_ranges, address),
        ]);
    }
    sets
}

/// The names of the sets whose elements are compared one by one.
pub fn compared_sets() -> impl Iterator<Item = &'static str> {
    Family::ALL.into_iter().flat_map(|family| {
        let names = SetNames::of(family);
        let sets = FrontendSets::of(family);
        sets.names().into_iter().chain([
            sets.twins,
            sets.held,
            names.sources,
            names.cluster_ips,
            names.hairpin,
        ])
    })
}

/// The element that stands for a frontend in each of [`FrontendSets`].
#[must_use]
pub fn element(key: &FrontendKey) -> Element {
    Element::key(compile::frontend_bytes(key))
}

/// What a frontend is in the sets, but for [`FrontendSets::servers`].
#[must_use]
pub fn elements(key: &FrontendKey, wanted: &Wanted) -> Vec<(&'static str, Element)> {
    let family = Family::of(key.address);
    let sets = FrontendSets::of(family);
    let admission = match wanted.admission {
        Admission::Serve => sets.served,
        Admission::Refuse => sets.refused,
        Admission::Discard => sets.discarded,
    };
    let masqueraded = match wanted.masqueraded {
        Masqueraded::Always => Some(sets.from_all),
        Masqueraded::UnlessPod => Some(sets.from_others),
        Masqueraded::FromNode => Some(sets.from_node),
        Masqueraded::Never => None,
    };
    let mut elements = vec![(admission, element(key))];
    elements.extend(masqueraded.map(|set| (set, element(key))));
    elements.extend(
        wanted
            .twin
            .map(|twin| (sets.twins, twin_element(key, &twin))),
    );
    if let Some(sources) = &wanted.sources {
        elements.push((sets.filtered, element(key)));
        elements.extend(compile::allowed(key, sources).into_iter().map(|range| {
            (
                SetNames::of(family).sources,
                compile::source_element(key, range),
            )
        }));
    }
    elements
}

fn twin_element(key: &FrontendKey, twin: &FrontendKey) -> Element {
    let value = Backend {
        address: twin.address,
        port: twin.port,
    };
    Element::pair(compile::frontend_bytes(key), compile::backend_bytes(value))
}

/// Reads what [`elements`] writes of a twin: whose it is, and where it stands.
#[must_use]
pub fn read_twin(element: &Element, family: Family) -> Option<(FrontendKey, FrontendKey)> {
    let (key, _) = adopt::read_key(&element.key, family)?;
    let Some(Value::Bytes(value)) = &element.value else {
        return None;
    };
    let place = adopt::read_place(value, family)?;
    let twin = FrontendKey {
        address: place.address,
        port: place.port,
        ..key
    };
    Some((key, twin))
}

/// The element of an address that our interface holds.
#[must_use]
pub fn held(address: IpAddr) -> (&'static str, Element) {
    let set = FrontendSets::of(Family::of(address)).held;
    (set, compile::cluster_ip_element(address))
}

/// The element of an address among those that Services hold.
#[must_use]
pub fn cluster_ip(address: IpAddr) -> (&'static str, Element) {
    let set = SetNames::of(Family::of(address)).cluster_ips;
    (set, compile::cluster_ip_element(address))
}

/// The element of an endpoint of this node.
#[must_use]
pub fn hairpin(address: IpAddr) -> (&'static str, Element) {
    let set = SetNames::of(Family::of(address)).hairpin;
    (set, compile::hairpin_element(address))
}

const FRONTENDS: &str = "frontends";
/// After conntrack, and before destinations are translated and IPVS
/// (`NF_IP_PRI_NAT_DST` + 1) takes what the node sends.
const BEFORE_TRANSLATION: i32 = priority::DSTNAT - 10;

/// One rule for each family.
fn both(rule: impl Fn(&Registers, &SetNames, &FrontendSets) -> Vec<Expression>) -> Vec<Rule> {
    Family::ALL
        .into_iter()
        .map(|family| {
            let registers = Registers::of(family);
            let mut expressions = registers.only().to_vec();
            expressions.extend(rule(
                &registers,
                SetNames::of(family),
                FrontendSets::of(family),
            ));
            Rule::new(expressions)
        })
        .collect()
}

/// All chains, those that others name first.
#[must_use]
pub fn chains() -> Vec<Chain> {
    let member = |set: &str| compile::lookup(set, 0, Found::Membership);
    let frontend = |registers: &Registers, set: &str, verdict: Expression| {
        let mut rule = registers.frontend().to_vec();
        rule.extend([member(set), verdict]);
        rule
    };
    let discard = || compile::goto(DISCARD_CHAIN);
    let refuse = || compile::goto(REFUSE_CHAIN);
    let mut frontends = both(|registers, names, sets| {
        let mut rule = registers.frontend().to_vec();
        rule.extend([
            member(sets.filtered),
            registers.source(registers.words + 2),
            compile::lookup(names.sources, 0, Found::Absence),
            discard(),
        ]);
        rule
    });
    let accepted = || Expression::Verdict(Verdict::Return);
    frontends.extend(both(|registers, names, sets| {
        let mut rule = vec![registers.source(0), member(names.local_pods)];
        rule.extend(registers.frontend());
        rule.extend([registers.look_up_place(sets.twins), accepted()]);
        rule
    }));
    frontends.extend(both(|registers, _, sets| {
        let mut rule = compile::from_this_node().to_vec();
        rule.extend(registers.frontend());
        rule.extend([registers.look_up_place(sets.twins), accepted()]);
        rule
    }));
    frontends.extend(both(|registers, _, sets| {
        frontend(registers, sets.discarded, discard())
    }));
    frontends.extend(both(|registers, _, sets| {
        frontend(registers, sets.refused, refuse())
    }));
    frontends.extend(both(|registers, _, sets| {
        frontend(registers, sets.served, accepted())
    }));
    frontends.extend(both(|registers, names, _| {
        vec![
            registers.destination(0),
            member(names.cluster_ips),
            refuse(),
        ]
    }));
    frontends.extend(both(|registers, names, _| {
        vec![
            registers.destination(0),
            member(names.service_ranges),
            discard(),
        ]
    }));
    // Not the node's own, though it holds them.
    frontends.extend(both(|registers, _, sets| {
        vec![registers.destination(0), member(sets.held), refuse()]
    }));
    let enter = || {
        let mut rule = compile::in_state(ct_state::NEW);
        rule.push(Expression::Verdict(Verdict::Jump(FRONTENDS.to_owned())));
        Rule::new(rule)
    };
    let filter = |name: &str, hook, priority, rules| {
        compile::base(name, ChainKind::Filter, hook, priority, rules)
    };
    let nat = |name: &str, hook, priority, rules| {
        compile::base(name, ChainKind::Nat, hook, priority, rules)
    };
    vec![
        compile::refuse_chain(),
        compile::regular(DISCARD_CHAIN, vec![compile::discard_rule()]),
        compile::regular(FRONTENDS, frontends),
        filter(
            "new-prerouting",
            Hook::Prerouting,
            BEFORE_TRANSLATION,
            vec![enter()],
        ),
        filter(
            "service-forward",
            Hook::Forward,
            priority::FILTER,
            vec![compile::invalid_rule()],
        ),
        filter(
            "new-output",
            Hook::Output,
            BEFORE_TRANSLATION,
            vec![enter()],
        ),
        nat(
            "twins-prerouting",
            Hook::Prerouting,
            priority::DSTNAT,
            both(|registers, names, sets| {
                let mut rule = vec![registers.source(0), member(names.local_pods)];
                rule.extend(to_twin(registers, sets));
                rule
            }),
        ),
        nat(
            "twins-output",
            Hook::Output,
            priority::DSTNAT,
            both(|registers, _, sets| to_twin(registers, sets)),
        ),
        compile::regular(HAIRPIN_CHAIN, compile::hairpin()),
        compile::regular(FROM_OTHERS_CHAIN, compile::unless_pod()),
        compile::regular(FROM_NODE_CHAIN, compile::if_node()),
        nat(
            "sources",
            Hook::Postrouting,
            priority::SRCNAT,
            postrouting(),
        ),
    ]
}

/// From the frontend a packet is for to its twin. Only the first packet of a
/// connection comes to a virtual server at all then: IPVS tells conntrack which
/// endpoint it chose, and the others are translated straight to that.
fn to_twin(registers: &Registers, sets: &FrontendSets) -> Vec<Expression> {
    let mut rule = registers.frontend().to_vec();
    rule.extend([registers.look_up_place(sets.twins), registers.to_place()]);
    rule
}

/// IPVS leaves no trace in the packet: conntrack knows where the connection was
/// addressed to.
fn postrouting() -> Vec<Rule> {
    let asked = |set: fn(&FrontendSets) -> &'static str, then: Expression| {
        let rules = both(|registers, _, sets| {
            let mut rule = registers.original_frontend().to_vec();
            rule.extend([
                compile::lookup(set(sets), 0, Found::Membership),
                then.clone(),
            ]);
            rule
        });
        rules
            .into_iter()
            .map(|rule| rule.comment("not the present port: the one that was asked"))
    };
    let mut rules = vec![compile::stays_here()];
    rules.extend(asked(|sets| sets.from_all, compile::masquerade()));
    rules.extend(asked(|sets| sets.from_node, compile::goto(FROM_NODE_CHAIN)));
    rules.extend(asked(
        |sets| sets.from_others,
        compile::goto(FROM_OTHERS_CHAIN),
    ));
    rules.extend(compile::hairpin());
    rules.extend(compile::leaving());
    rules
}
