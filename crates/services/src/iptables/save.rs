//! What is said to `iptables-restore`, and what `iptables-save` says. Pure.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::compile::{ChainKey, IptablesTable};
use super::difference::Difference;

/// What `iptables-save` printed of the tables nat and filter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Saved {
    /// Chains with their rules: what stands after `-A CHAIN `.
    pub chains: Vec<(IptablesTable, String, Vec<String>)>,
}

/// Packets and bytes that a rule counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

/// Reads the output of `iptables-save`, with counters or without.
#[must_use]
pub fn parse(text: &str) -> Saved {
    let mut chains: BTreeMap<ChainKey, Vec<String>> = BTreeMap::new();
    for (table, line) in tables(text) {
        if let Some(rest) = line.strip_prefix(':') {
            let name = rest.split(' ').next().unwrap_or_default();
            chains.entry((table, name.to_owned())).or_default();
        } else if let Some((chain, rule, _)) = rule(line) {
            chains
                .entry((table, chain.to_owned()))
                .or_default()
                .push(rule.to_owned());
        }
    }
    Saved {
        chains: chains
            .into_iter()
            .map(|((table, name), rules)| (table, name, rules))
            .collect(),
    }
}

/// The lines of tables nat and filter, each with its table.
fn tables(text: &str) -> impl Iterator<Item = (IptablesTable, &str)> {
    text.lines()
        .scan(None, |table, line| {
            if let Some(name) = line.strip_prefix('*') {
                *table = IptablesTable::ALL.into_iter().find(|t| t.name() == name);
            }
            Some(table.map(|table| (table, line)))
        })
        .flatten()
}

/// Chain, rule and counters of a line that is a rule.
fn rule(line: &str) -> Option<(&str, &str, Count)> {
    let (count, line) = match line.strip_prefix('[') {
        Some(rest) => {
            let (count, line) = rest.split_once("] ")?;
            let (packets, bytes) = count.split_once(':')?;
            let count = Count {
                packets: packets.parse().ok()?,
                bytes: bytes.parse().ok()?,
            };
            (count, line)
        }
        None => (Count::default(), line),
    };
    let rest = line.strip_prefix("-A ")?;
    let (chain, rule) = rest.split_once(' ')?;
    Some((chain, rule, count))
}

/// What makes iptables take up a difference: each table in one transaction.
#[must_use]
pub fn render(difference: &Difference) -> String {
    let mut text = String::new();
    for table in IptablesTable::ALL {
        let of = |key: &ChainKey| key.0 == table;
        let write: Vec<_> = difference.write.iter().filter(|(key, _)| of(key)).collect();
        let delete: Vec<_> = difference.delete.iter().filter(|key| of(key)).collect();
        let insert: Vec<_> = difference.insert.iter().filter(|i| i.0 == table).collect();
        let remove: Vec<_> = difference.remove.iter().filter(|r| r.0 == table).collect();
        if write.is_empty() && delete.is_empty() && insert.is_empty() && remove.is_empty() {
            continue;
        }
        // Writing to a string cannot fail.
        let _ = writeln!(text, "*{table}");
        // A chain that is named here is emptied, or made.
        for (_, chain) in write
            .iter()
            .map(|(key, _)| *key)
            .chain(delete.iter().copied())
        {
            let _ = writeln!(text, ":{chain} - [0:0]");
        }
        for (_, chain, rule) in remove {
            let _ = writeln!(text, "-D {chain} {rule}");
        }
        for ((_, chain), rules) in &write {
            for rule in *rules {
                let _ = writeln!(text, "-A {chain} {rule}");
            }
        }
        for (_, chain, rule) in insert {
            let _ = writeln!(text, "-I {chain} {rule}");
        }
        for (_, chain) in delete {
            let _ = writeln!(text, "-X {chain}");
        }
        text.push_str("COMMIT\n");
    }
    text
}

/// Adds up the counters of our chains: by chain and rule.
#[must_use]
pub fn counters(text: &str) -> BTreeMap<(String, String), Count> {
    tables(text)
        .filter_map(|(_, line)| rule(line))
        .filter(|(chain, ..)| chain.starts_with(super::compile::PREFIX))
        .map(|(chain, rule, count)| ((chain.to_owned(), rule.to_owned()), count))
        .collect()
}
