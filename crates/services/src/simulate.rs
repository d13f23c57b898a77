//! What the planned rules would do with a packet, without the kernel: the
//! verdict for a new connection, with the rules that gave it.

use std::net::IpAddr;

use linux::nftables::walker::{self, Fate, Impossible, Packet, Ruleset, Step};

use crate::compile;
use crate::difference::{Difference, Shadow, difference, everything};
use crate::model::{Backend, NodeFacts, Protocol};
use crate::table::Table;

/// What becomes of a new connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is no Service's; it goes where it is addressed to.
    Direct {
        /// Whether its source becomes the node's address.
        masqueraded: bool,
    },
    /// It goes to a backend.
    Service {
        /// Which.
        backend: Backend,
        /// Whether its source becomes the node's address.
        masqueraded: bool,
    },
    /// It is refused at once.
    Refused,
    /// It is dropped.
    Dropped,
}

/// A verdict and the rules that led to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Simulation {
    /// The verdict.
    pub verdict: Verdict,
    /// Rules that matched, in order.
    pub steps: Vec<Step>,
}

/// The rules as they would be after a first sync.
///
/// # Errors
/// Never for what this crate plans; said by the same strict model that tests use.
pub fn planned(table: &Table) -> Result<Ruleset, Impossible> {
    let mut rules = Ruleset::default();
    for set in compile::sets() {
        rules.add_set(&set);
    }
    for chain in compile::chains() {
        rules.add_chain(chain);
    }
    rules.add_elements(
        compile::MASQUERADE_KINDS,
        &compile::masquerade_kinds(compile::Masqueraded::default()),
    )?;
    let shadow = Shadow::default();
    let first = difference(table, &shadow, &everything(table, &shadow));
    change(&mut rules, &first)?;
    Ok(rules)
}

/// Applies a difference to rules, as strictly as the kernel would.
///
/// # Errors
/// If it adds what is there or deletes what is not.
pub fn change(rules: &mut Ruleset, difference: &Difference) -> Result<(), Impossible> {
    for chain in &difference.chains {
        rules.add_chain(chain.clone());
    }
    for (set, elements) in &difference.delete {
        rules.delete_elements(set, elements)?;
    }
    for (set, elements) in &difference.add {
        rules.add_elements(set, elements)?;
    }
    Ok(())
}

/// Sends the first packet of a connection through the rules. `draw` is given
/// the number of backends and returns which to take.
pub fn simulate(
    rules: &Ruleset,
    facts: &NodeFacts,
    source: IpAddr,
    destination: (IpAddr, u16),
    protocol: Protocol,
    draw: &mut dyn FnMut(u32) -> u32,
) -> Simulation {
    let from_node = facts.addresses.contains(&source);
    let mut packet = Packet::new((source, 40_000), destination, protocol.number());
    packet.from_this_host = from_node;
    let hook = if from_node {
        "service-output"
    } else {
        "service-prerouting"
    };
    let first = walker::walk(rules, hook, &packet, draw);
    let mut steps = first.steps;
    let backend = match first.fate {
        Fate::Translated(address, port) => Some(Backend { address, port }),
        Fate::Dropped => {
            return Simulation {
                verdict: Verdict::Dropped,
                steps,
            };
        }
        Fate::Rejected(_) => {
            return Simulation {
                verdict: Verdict::Refused,
                steps,
            };
        }
        Fate::Accepted | Fate::Masqueraded => None,
    };
    if let Some(backend) = backend {
        packet.destination = backend.address;
        packet.destination_port = backend.port;
    }
    // To the node itself: no postrouting unless it also comes from there, by loopback.
    let to_node = facts.addresses.contains(&packet.destination);
    let masqueraded = (from_node || !to_node) && {
        if to_node {
            "lo".clone_into(&mut packet.out_interface);
        }
        let last = walker::walk(rules, "service-postrouting", &packet, draw);
        steps.extend(last.steps);
        last.fate == Fate::Masqueraded
    };
    Simulation {
        verdict: match backend {
            Some(backend) => Verdict::Service {
                backend,
                masqueraded,
            },
            None => Verdict::Direct { masqueraded },
        },
        steps,
    }
}
