//! The chains that are made on demand, for frontends of one number each: a
//! backend is chosen there, at random or by affinity.

use linux::nftables::{Chain, Expression, Found, Header, Meta, Register, Rule};

use super::expressions::{Registers, both, copy, from_this_node, goto, lookup, regular};
use super::number::{DISCARD_CHAIN, IDS, NEAR_IDS, NEAR_SLOTS, Number, near_name, pick_name};
use super::sets::SetNames;
use crate::model::Family;

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

/// Draws one of `count` slots and translates the destination.
fn draw(name: String, count: u32, places: Places) -> Chain {
    let rules = both(|registers, names| {
        let mut rule = registers.frontend().to_vec();
        rule.push(Expression::RandomNumber {
            modulus: count,
            offset: places.slots,
            into: Register(registers.words + 2),
        });
        rule.push(registers.look_up_place(names.backends));
        rule.push(registers.to_place());
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
