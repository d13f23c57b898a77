//! What the rules are written with: where addresses and numbers are in registers,
//! and parts that many rules share.

use linux::nftables::{
    Base, Chain, ChainKind, Conntrack, DataType, Expression, FibAddress, Found, Header, Hook, Meta,
    NAT_FULLY_RANDOM, NatFamily, RTN_LOCAL, Register, Rule, Verdict,
};

use super::sets::SetNames;
use crate::model::Family;

/// Where an address of `family` goes and which registers follow it.
pub(crate) struct Registers {
    pub(super) family: NatFamily,
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
            Expression::equal(Register(15), [self.family.number()]),
        ]
    }

    /// The next aligned register after a key with a slot, so that the address
    /// may be read from it.
    pub(super) const fn found(&self) -> u8 {
        match self.family {
            NatFamily::V4 => 4,
            NatFamily::V6 => 8,
        }
    }

    /// Looks the key in register 0 up in a map of places, for
    /// [`Self::translate`] from [`Self::found`].
    pub(crate) fn look_up_place(&self, map: &str) -> Expression {
        lookup(map, 0, Found::Data(Register(self.found())))
    }

    /// Translates the destination to the place that begins in a register.
    pub(super) fn translate(&self, found: u8) -> Expression {
        Expression::DestinationNat {
            family: self.family,
            address: Register(found),
            port: Some(Register(found + self.words)),
        }
    }

    /// Translates the destination to the place that [`Self::look_up_place`] found.
    pub(crate) fn to_place(&self) -> Expression {
        self.translate(self.found())
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
    /// then believes to be there still: the protocol and the present port. It takes
    /// the copy for the protocol itself, and not for a part of it with a mask that
    /// it cannot print, because the mask ends in as many ones as the protocol has
    /// bits; the byte left out is one of those that fill the port's register.
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
            copy(
                aside,
                self.words,
                &[u32::MAX, u32::from_ne_bytes([0xff, 0xff, 0, 0xff])],
                &[0; 2],
            ),
        ]
    }

    /// Registers that hold no key.
    const ASIDE: u8 = 8;
    /// Where [`Self::number`] leaves the number.
    pub(super) const NUMBER: u8 = Self::ASIDE + 1;

    /// Looks up the number for the key in register 0, keeps the bits of `mask`
    /// of its first word and puts it into register [`Self::NUMBER`], its second
    /// word into the next.
    ///
    /// It too is copied there together with its neighbour, over something that
    /// nft believes to be there still: nft 1.0.6 aborts when it lists a rule in
    /// which a map's result is looked up in another map. What it lists instead
    /// is said in the rule's comment.
    pub(super) fn number(&self, names: &SetNames, mask: u32) -> [Expression; 4] {
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
pub(super) fn copy(from: u8, into: u8, masks: &[u32], xors: &[u32]) -> Expression {
    let bytes = |words: &[u32]| words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    Expression::Bitwise {
        from: Register(from),
        into: Register(into),
        mask: bytes(masks),
        xor: bytes(xors),
    }
}

pub(super) fn number_comment(family: Family) -> String {
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
        Expression::equal(Register(0), RTN_LOCAL.to_ne_bytes()),
    ]
}

/// One rule for each family.
pub(super) fn both(rule: impl Fn(&Registers, &SetNames) -> Vec<Expression>) -> Vec<Rule> {
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
