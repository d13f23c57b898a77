//! What rules of others do to packets that ours are about.

use std::collections::BTreeSet;

use super::batch::{
    MSG_GETCHAIN, MSG_GETRULE, MSG_NEWCHAIN, MSG_NEWRULE, message, read_expressions,
};
use super::expression::{Comparison, Conntrack, Expression, Verdict, ct_state};
use super::object::Family;
use super::socket::{Error, Nftables};
use crate::netfilter::wire::{Attributes, Message};

/// Something of another table that can keep packets from going where our rules
/// send them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Obstacle {
    /// Family of the table, as `nft` names it.
    pub family: &'static str,
    /// Its table.
    pub table: String,
    /// Its chain.
    pub chain: String,
    /// Whether it is the policy of a base chain; else it is a rule that drops
    /// or rejects.
    pub policy: bool,
}

impl std::fmt::Display for Obstacle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "chain {} of table {} {} {}",
            self.chain,
            self.family,
            self.table,
            if self.policy {
                "drops what its rules do not accept"
            } else {
                "has a rule that drops or rejects"
            }
        )
    }
}

/// A chain of another table that packets of established connections go through on
/// their way from one interface to another, and that may do something about them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Checkpoint {
    /// Family of the table, as `nft` names it.
    pub family: &'static str,
    /// Its table.
    pub table: String,
    /// Its chain.
    pub chain: String,
}

impl std::fmt::Display for Checkpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Checkpoint {
            family,
            table,
            chain,
        } = self;
        write!(f, "chain {chain} of table {family} {table}")
    }
}

/// `NFPROTO_*` of families whose base chains forwarded packets may meet, and the
/// hooks where they do.
const PASSED: [(u8, &str, &[u32]); 5] = [
    // Prerouting, forward, postrouting; ingress (`NF_INET_INGRESS`).
    (1, "inet", &[0, 2, 4, 5]),
    (2, "ip", &[0, 2, 4]),
    (10, "ip6", &[0, 2, 4]),
    (7, "bridge", &[0, 2, 4]),
    // Ingress. What leaves by an interface meets egress with the fast path too.
    (5, "netdev", &[0]),
];

impl Nftables {
    /// Chains of all tables but `own` (of family `inet`) that can drop what
    /// passes IPv4 and IPv6 hooks, sorted, each once.
    ///
    /// # Errors
    /// If the socket fails.
    pub fn obstacles(&mut self, own: &str) -> Result<Vec<Obstacle>, Error> {
        let place = |m: &Message<'_>| -> Option<(&'static str, String)> {
            let family = [Family::Inet, Family::Ip, Family::Ip6]
                .into_iter()
                .find(|family| m.payload.first() == Some(&family.number()))?;
            let table = m.attributes().text(1)?.into_owned();
            (family != Family::Inet || table != own).then(|| (family.name(), table))
        };
        let mut found = BTreeSet::new();
        for family in [Family::Inet, Family::Ip, Family::Ip6] {
            found.extend(self.dump(
                "listing the chains of all tables",
                MSG_GETCHAIN,
                family,
                |_| {},
                |m, found| {
                    let attributes = m.attributes();
                    if m.kind == message(MSG_NEWCHAIN)
                        && attributes.find(4).is_some()
                        && attributes.u32(5) == Some(0) // NF_DROP
                        && let (Some((family, table)), Some(chain)) = (place(&m), attributes.text(3))
                    {
                        found.push(Obstacle {
                            family,
                            table,
                            chain: chain.into_owned(),
                            policy: true,
                        });
                    }
                },
            )?);
            found.extend(self.dump(
                "listing the rules of all tables",
                MSG_GETRULE,
                family,
                |_| {},
                |m, found| {
                    let attributes = m.attributes();
                    if m.kind == message(MSG_NEWRULE)
                        && attributes.nested(4).is_some_and(refuses)
                        && let (Some((family, table)), Some(chain)) =
                            (place(&m), attributes.text(2))
                    {
                        found.push(Obstacle {
                            family,
                            table,
                            chain: chain.into_owned(),
                            policy: false,
                        });
                    }
                },
            )?);
        }
        Ok(found.into_iter().collect())
    }

    /// Chains of others that may do something about forwarded packets of established
    /// connections, sorted. Tables of families `inet` and `bridge` are ours if `own` says
    /// so of their names, rules that lead to a chain if its name begins with `own_chains`. A chain is passed
    /// over that is for translation, which is decided with a connection's first
    /// packet, has no rules and accepts, or begins with accepting all established
    /// connections in nftables' own words.
    ///
    /// # Errors
    /// If the socket fails.
    pub fn checkpoints(
        &mut self,
        own: impl Fn(&str) -> bool,
        own_chains: &str,
    ) -> Result<Vec<Checkpoint>, Error> {
        let chains = self.dump_of(
            "listing the chains of all tables",
            MSG_GETCHAIN,
            0,
            |_| {},
            |m, found| {
                let attributes = m.attributes();
                let family = PASSED
                    .iter()
                    .find(|(number, ..)| m.payload.first() == Some(number));
                if m.kind == message(MSG_NEWCHAIN)
                    && let Some((number, family, hooks)) = family
                    && let Some(hook) = attributes.nested(4).and_then(|hook| hook.u32(1))
                    && hooks.contains(&hook)
                    && attributes.text(7).as_deref() != Some("nat")
                    && let (Some(table), Some(chain)) = (attributes.text(1), attributes.text(3))
                    && !(["inet", "bridge"].contains(family) && own(&table))
                {
                    let drops = attributes.u32(5) == Some(0); // NF_DROP
                    let checkpoint = Checkpoint {
                        family,
                        table: table.into_owned(),
                        chain: chain.into_owned(),
                    };
                    found.push((*number, drops, checkpoint));
                }
            },
        )?;
        let mut found = BTreeSet::new();
        for (family, drops, checkpoint) in chains {
            let mut rules = self
                .dump_of(
                    &format!("listing the rules of {checkpoint}"),
                    MSG_GETRULE,
                    family,
                    |w| {
                        w.put_text(1, &checkpoint.table);
                        w.put_text(2, &checkpoint.chain);
                    },
                    |m, found| {
                        let attributes = m.attributes();
                        if m.kind == message(MSG_NEWRULE)
                            && attributes.text(1).as_deref() == Some(&checkpoint.table)
                            && attributes.text(2).as_deref() == Some(&checkpoint.chain)
                        {
                            found.push(Says::of(attributes.nested(4), own_chains));
                        }
                    },
                )?
                .into_iter()
                .filter(|says| *says != Says::Ours);
            let passes = match rules.next() {
                Some(Says::Established) => true,
                Some(_) => false,
                None => !drops,
            };
            if !passes {
                found.insert(checkpoint);
            }
        }
        Ok(found.into_iter().collect())
    }
}

/// What a rule says of packets of established connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Says {
    /// It leads to a chain of ours.
    Ours,
    /// It accepts them all.
    Established,
    /// Something else.
    Other,
}

impl Says {
    fn of(expressions: Option<Attributes<'_>>, own_chains: &str) -> Self {
        let Some(expressions) = expressions else {
            return Self::Other;
        };
        let last = |(_, bytes): (u16, _)| verdict(Attributes(bytes));
        if let Some(Verdict::Jump(chain) | Verdict::Goto(chain)) =
            expressions.filter_map(last).last()
            && chain.starts_with(own_chains)
        {
            return Self::Ours;
        }
        let mut known = read_expressions(expressions).unwrap_or_default();
        known.retain(|expression| *expression != Expression::Counter);
        match &known[..] {
            [
                Expression::Conntrack {
                    key: Conntrack::State,
                    ..
                },
                Expression::Bitwise { mask, xor, .. },
                Expression::Compare {
                    comparison: Comparison::NotEqual,
                    value,
                    ..
                },
                Expression::Verdict(Verdict::Accept),
            ] if mask
                .first_chunk()
                .is_some_and(|mask| u32::from_ne_bytes(*mask) & ct_state::ESTABLISHED != 0)
                && xor.iter().chain(value).all(|byte| *byte == 0) =>
            {
                Self::Established
            }
            _ => Self::Other,
        }
    }
}

/// The verdict of an expression that is nothing else.
fn verdict(expression: Attributes<'_>) -> Option<Verdict> {
    if expression.text(1).as_deref() != Some("immediate") {
        return None;
    }
    let data = expression.nested(2)?;
    Verdict::read(data.nested(2)?.nested(2)?)
}

/// Whether one of the expressions of a rule drops or rejects.
fn refuses(mut expressions: Attributes<'_>) -> bool {
    expressions.any(|(_, bytes)| {
        let expression = Attributes(bytes);
        match expression.text(1).as_deref() {
            Some("reject") => true,
            Some("immediate") => expression
                .nested(2)
                .and_then(|data| data.nested(2)?.nested(2)?.u32(1))
                .is_some_and(|verdict| verdict == 0), // NF_DROP
            _ => false,
        }
    })
}
