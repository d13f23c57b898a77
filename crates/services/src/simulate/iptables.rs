//! The planned chains of iptables. Rules are read from their text, which is all
//! that the proxy says to `iptables-restore`.

use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use linux::nftables::walker::Packet;

use super::{Draw, Fate, Rules, Walk, none};
use crate::iptables::compile::{self, ChainKey, IptablesTable};
use crate::iptables::difference::State;
use crate::iptables::save::Saved;
use crate::model::{Backend, Family, Protocol};
use crate::table::{Changes, Table};

/// A rule that is not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("of the rule {rule:?} the part {part:?} is not understood")]
pub struct Unreadable {
    /// The rule, as `iptables-save` has it.
    rule: String,
    part: String,
}

/// Chains of both families.
#[derive(Debug, Clone, Default)]
pub struct Chains {
    /// By table, name and family.
    chains: BTreeMap<(Family, ChainKey), Vec<Rule>>,
    /// The node's own addresses.
    local: HashSet<IpAddr>,
}

#[derive(Debug, Clone, PartialEq)]
struct Rule {
    matches: Vec<Match>,
    target: Target,
}

#[derive(Debug, Clone, PartialEq)]
enum Match {
    Source(IpNet),
    Destination(IpNet),
    Protocol(u8),
    Port(u16),
    SourceIsLocal,
    DestinationIsLocal,
    IsTranslated,
    OriginalDestination(IpNet),
    OriginalPort(u16),
    Leaves(String),
    /// One of so many.
    Chance(u32),
    /// For packets of another state, and clients that came before.
    Never,
}

#[derive(Debug, Clone, PartialEq)]
enum Target {
    Jump(String),
    Goto(String),
    Return,
    Drop,
    Reject,
    Translate(SocketAddr),
    Masquerade,
}

impl Chains {
    /// Those of a first sync, with the rules that lead to them.
    ///
    /// # Errors
    /// Never for what this crate plans: if a rule is none of those it writes.
    pub fn planned(table: &Table) -> Result<Self, Unreadable> {
        let facts = table.facts();
        let mut planned = Self {
            local: facts
                .addresses
                .iter()
                .chain(&facts.local_addresses)
                .copied()
                .collect(),
            ..Self::default()
        };
        for family in Family::ALL {
            let state = State::read(Saved::default());
            let first = state.difference(table, &Changes::default(), family);
            for (table, chain, rule) in first.insert {
                let rules = planned.chains.entry((family, (table, chain))).or_default();
                rules.push(read(&rule)?);
            }
            for (key, rules) in first.write {
                let rules = rules.iter().map(|rule| read(rule));
                planned
                    .chains
                    .insert((family, key), rules.collect::<Result<_, _>>()?);
            }
        }
        Ok(planned)
    }

    fn walk(&self, table: IptablesTable, chain: &str, packet: &Packet, draw: Draw<'_>) -> Walk {
        let mut walker = Walker {
            chains: self,
            table,
            packet,
            draw,
            steps: Vec::new(),
        };
        let fate = walker.chain(chain, 0).unwrap_or(Fate::Accepted);
        Walk {
            fate,
            steps: walker.steps,
        }
    }
}

impl Rules for Chains {
    fn enter(&self, packet: &Packet, draw: Draw<'_>) -> Walk {
        let chain = match packet.from_this_host {
            true => "OUTPUT",
            false => "PREROUTING",
        };
        self.walk(IptablesTable::Nat, chain, packet, draw)
    }

    fn pass(&self, packet: &Packet, to_node: bool) -> Walk {
        let chain = match (packet.from_this_host, to_node) {
            (true, _) => "OUTPUT",
            (false, true) => "INPUT",
            (false, false) => "FORWARD",
        };
        self.walk(IptablesTable::Filter, chain, packet, &mut none)
    }

    fn leave(&self, packet: &Packet) -> Walk {
        self.walk(IptablesTable::Nat, "POSTROUTING", packet, &mut none)
    }
}

/// How deep chains may call each other: far more than ours do.
const DEEPEST: usize = 32;

struct Walker<'a> {
    chains: &'a Chains,
    table: IptablesTable,
    packet: &'a Packet,
    draw: Draw<'a>,
    steps: Vec<String>,
}

impl Walker<'_> {
    fn chain(&mut self, name: &str, depth: usize) -> Option<Fate> {
        let (chains, family) = (self.chains, Family::of(self.packet.destination));
        let key = (family, (self.table, name.to_owned()));
        let rules = chains.chains.get(&key).filter(|_| depth < DEEPEST)?;
        // Which of the backends of this chain it is, and how many it has.
        let mut drawn: Option<(u32, u32)> = None;
        for (index, rule) in rules.iter().enumerate() {
            if !rule.matches.iter().all(|one| self.matches(one, &mut drawn)) {
                continue;
            }
            self.steps
                .push(format!("{} {name} rule {}", self.table, index + 1));
            match &rule.target {
                Target::Jump(to) => {
                    if let Some(fate) = self.chain(to, depth + 1) {
                        return Some(fate);
                    }
                }
                Target::Goto(to) => return self.chain(to, depth + 1),
                Target::Return => return None,
                Target::Drop => return Some(Fate::Dropped),
                Target::Reject => return Some(Fate::Refused),
                Target::Translate(to) => {
                    return Some(Fate::Translated(Backend {
                        address: to.ip(),
                        port: to.port(),
                    }));
                }
                Target::Masquerade => return Some(Fate::Masqueraded),
            }
        }
        None
    }

    fn matches(&mut self, one: &Match, drawn: &mut Option<(u32, u32)>) -> bool {
        let packet = self.packet;
        match one {
            Match::Source(range) => range.contains(&packet.source),
            Match::Destination(range) => range.contains(&packet.destination),
            Match::Protocol(number) => packet.protocol == *number,
            Match::Port(port) => packet.destination_port == *port,
            Match::SourceIsLocal => packet.from_this_host,
            Match::DestinationIsLocal => self.chains.local.contains(&packet.destination),
            Match::IsTranslated => {
                (packet.original_destination, packet.original_port)
                    != (packet.destination, packet.destination_port)
            }
            Match::OriginalDestination(range) => range.contains(&packet.original_destination),
            Match::OriginalPort(port) => packet.original_port == *port,
            Match::Leaves(interface) => packet.out_interface == *interface,
            Match::Chance(left) => {
                let (number, count) = *drawn.get_or_insert_with(|| ((self.draw)(*left), *left));
                number == count - left
            }
            Match::Never => false,
        }
    }
}

/// Words of a rule; what is between quotes is one.
fn words(rule: &str) -> Vec<&str> {
    let mut words = Vec::new();
    for (index, part) in rule.split('"').enumerate() {
        if index % 2 == 1 {
            words.push(part);
        } else {
            words.extend(part.split_whitespace());
        }
    }
    words
}

/// Reads a rule, strictly: of what is not known nothing is guessed.
fn read(rule: &str) -> Result<Rule, Unreadable> {
    let unreadable = |part: &str| Unreadable {
        rule: rule.to_owned(),
        part: part.to_owned(),
    };
    let mut matches = Vec::new();
    let mut target = None;
    let words = words(rule);
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| unreadable(word));
        let network = |text: &str| {
            text.parse::<IpNet>()
                .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
                .map_err(|_| unreadable(text))
        };
        match word {
            "-s" => matches.push(Match::Source(network(value()?)?)),
            "-d" => matches.push(Match::Destination(network(value()?)?)),
            "--ctorigdst" => matches.push(Match::OriginalDestination(network(value()?)?)),
            "-p" => {
                let name = value()?;
                let protocol = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp]
                    .into_iter()
                    .find(|protocol| protocol.name() == name)
                    .ok_or_else(|| unreadable(name))?;
                matches.push(Match::Protocol(protocol.number()));
            }
            "--dport" | "--ctorigdstport" => {
                let text = value()?;
                let port = text.parse().map_err(|_| unreadable(text))?;
                matches.push(match word {
                    "--dport" => Match::Port(port),
                    _ => Match::OriginalPort(port),
                });
            }
            "-o" => matches.push(Match::Leaves(value()?.to_owned())),
            "--ctstate" => match value()? {
                // What is sent through is the first packet of a connection.
                "NEW" => {}
                "DNAT" => matches.push(Match::IsTranslated),
                "INVALID" => matches.push(Match::Never),
                other => return Err(unreadable(other)),
            },
            "--src-type" | "--dst-type" => match (word, value()?) {
                ("--src-type", "LOCAL") => matches.push(Match::SourceIsLocal),
                ("--dst-type", "LOCAL") => matches.push(Match::DestinationIsLocal),
                (_, other) => return Err(unreadable(other)),
            },
            "--probability" => {
                let text = value()?;
                let probability: f64 = text.parse().map_err(|_| unreadable(text))?;
                let left = (1.0 / probability).round();
                if !(1.0..=f64::from(u32::MAX)).contains(&left) {
                    return Err(unreadable(text));
                }
                matches.push(Match::Chance(left as u32));
            }
            // Nobody has come before.
            "--rcheck" => matches.push(Match::Never),
            // What is remembered changes nothing for the first; how a module's
            // match goes on is read by itself.
            "--set" | "--reap" | "--rsource" | "--random-fully" => {}
            "-m" | "--comment" | "--mode" | "--name" | "--mask" | "--seconds" | "--reject-with" => {
                value()?;
            }
            "-j" => {
                target = Some(match value()? {
                    "RETURN" => Target::Return,
                    "DROP" => Target::Drop,
                    "REJECT" => Target::Reject,
                    "MASQUERADE" => Target::Masquerade,
                    // Where to is said by the next words.
                    "DNAT" => continue,
                    chain if chain.starts_with(compile::PREFIX) => Target::Jump(chain.to_owned()),
                    other => return Err(unreadable(other)),
                });
            }
            "-g" => target = Some(Target::Goto(value()?.to_owned())),
            "--to-destination" => {
                let text = value()?;
                let to = text.parse().map_err(|_| unreadable(text))?;
                target = Some(Target::Translate(to));
            }
            other => return Err(unreadable(other)),
        }
    }
    Ok(Rule {
        matches,
        target: target.ok_or_else(|| unreadable("the end"))?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_that_is_not_ours_is_named_and_not_guessed() {
        for (rule, part) in [
            ("-d 10.0.0.0/33 -j DROP", "10.0.0.0/33"),
            ("-p tcp --sport 80 -j DROP", "--sport"),
            ("-j OTHERS", "OTHERS"),
            ("-p tcp", "the end"),
            ("-m statistic --mode random --probability 0 -j DROP", "0"),
            ("-p", "-p"),
        ] {
            let said = read(rule).expect_err(rule);
            assert_eq!((said.rule.as_str(), said.part.as_str()), (rule, part));
        }
    }

    #[test]
    fn what_is_between_quotes_is_one_word() {
        let rule = "-m comment --comment \"default/web -j DROP\" -j RETURN";
        let read = read(rule).expect("ours");
        assert_eq!((read.matches, read.target), (vec![], Target::Return));
    }
}
