//! What is said to `iptables-restore`, and what `iptables-save` says. Pure.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Write as _;
use std::net::SocketAddr;

use linux::nftables::Count;

use super::compile::{self, ChainKey, IptablesTable};
use super::difference::Difference;
use crate::data_plane::Traffic;
use crate::model::{Backend, FrontendKey, Protocol};

/// What `iptables-save` printed of the tables nat and filter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Saved {
    /// Chains with their rules: what stands after `-A CHAIN `.
    pub chains: Vec<(IptablesTable, String, Vec<String>)>,
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

/// What frontends have sent to backends, from the output of `iptables-save -c`.
/// A backend's chain is that of a Service's port: what it counted is told at the
/// first of the port's frontends, its cluster address if it has one.
#[must_use]
pub fn traffic(text: &str) -> Vec<Traffic> {
    let mut chains: HashMap<&str, Vec<(&str, Count)>> = HashMap::new();
    for (chain, rule, count) in tables(text)
        .filter(|(table, _)| *table == IptablesTable::Nat)
        .filter_map(|(_, line)| rule(line))
    {
        chains.entry(chain).or_default().push((rule, count));
    }
    let rules = |chain: &str| chains.get(chain).map_or(&[][..], Vec::as_slice);
    let mut found = Vec::new();
    let mut told: HashSet<&str> = HashSet::new();
    for (rule, _) in [compile::SERVICES, compile::NODE_PORTS]
        .into_iter()
        .flat_map(rules)
    {
        let Some(frontend) = frontend(rule) else {
            continue;
        };
        // Frontend, filter, choice, endpoint: no chain leads back.
        let mut next: Vec<&str> = word(rule, "-j").into_iter().collect();
        while let Some(chain) = next.pop() {
            if !told.insert(chain) {
                continue;
            }
            for (rule, count) in rules(chain) {
                match word(rule, "--to-destination").map(str::parse::<SocketAddr>) {
                    Some(Ok(to)) => found.push(Traffic::new(
                        frontend,
                        Backend {
                            address: to.ip(),
                            port: to.port(),
                        },
                        *count,
                    )),
                    _ => next.extend(word(rule, "-j")),
                }
            }
        }
    }
    found.sort_unstable_by_key(|one| (one.frontend, one.backend));
    found
}

/// The word after a flag.
fn word<'a>(rule: &'a str, flag: &str) -> Option<&'a str> {
    let mut words = rule.split(' ');
    words.find(|word| *word == flag)?;
    words.next()
}

/// The frontend that a rule of ours matches.
fn frontend(rule: &str) -> Option<FrontendKey> {
    let address = word(rule, "-d")?.split('/').next()?;
    Some(FrontendKey {
        address: address.parse().ok()?,
        protocol: Protocol::from_name(Some(&word(rule, "-p")?.to_uppercase()))?,
        port: word(rule, "--dport")?.parse().ok()?,
    })
}
