//! What the planned rules would do with a packet, without the kernel: the
//! verdict for a new connection, with the rules that gave it. Of each proxy.

mod iptables;
mod ipvs;

use std::net::IpAddr;

use linux::nftables::walker::{self, Impossible, Packet, Ruleset};

use crate::compile;
use crate::data_plane::ProxyMode;
use crate::difference::{Difference, Shadow, difference, everything};
use crate::model::{Backend, NodeFacts, Protocol};
use crate::table::Table;
pub use iptables::{Chains, Unreadable};
pub use ipvs::Servers;

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
    /// Rules that matched, in order, for people: `CHAIN rule N`, counted from 1.
    pub steps: Vec<String>,
}

/// What rules do with a packet at one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It goes on as it is.
    Accepted,
    /// It goes on to a backend.
    Translated(Backend),
    /// It goes on with the address of the interface it leaves by.
    Masqueraded,
    /// It is refused.
    Refused,
    /// It is dropped.
    Dropped,
}

/// A packet's way past one place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Walk {
    /// What became of it.
    pub fate: Fate,
    /// The rules that matched, in order, for people.
    pub steps: Vec<String>,
}

impl Walk {
    /// Nothing was asked.
    const fn past() -> Self {
        Self {
            fate: Fate::Accepted,
            steps: Vec::new(),
        }
    }
}

/// Gives the number of backends and is told which to take.
pub type Draw<'a> = &'a mut dyn FnMut(u32) -> u32;

/// A proxy's rules, by the places where they see the first packet of a connection.
pub trait Rules {
    /// Before it is routed; of the node's own when it is sent.
    fn enter(&self, packet: &Packet, draw: Draw<'_>) -> Walk;

    /// Once it is known where it goes: to the node itself, or on.
    fn pass(&self, packet: &Packet, to_node: bool) -> Walk;

    /// When it leaves.
    fn leave(&self, packet: &Packet) -> Walk;
}

/// The planned rules of one of the proxies.
#[derive(Debug, Clone)]
pub enum Planned {
    /// Sets and chains of nftables.
    Nftables(Ruleset),
    /// Chains of iptables.
    Iptables(Chains),
    /// Virtual servers, and the rules beside them.
    Ipvs(Servers),
}

/// Why there is nothing to send a packet through: a fault of this crate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Senseless {
    /// Sets that contradict themselves.
    #[error(transparent)]
    Impossible(#[from] Impossible),
    /// A rule of iptables that cannot be read.
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
}

impl Planned {
    /// The rules of a proxy as they would be after a first sync.
    ///
    /// # Errors
    /// Never for what this crate plans; said by the same strict models that tests use.
    pub fn of(mode: ProxyMode, table: &Table) -> Result<Self, Senseless> {
        Ok(match mode {
            ProxyMode::Nftables => Self::Nftables(planned(table)?),
            ProxyMode::Iptables => Self::Iptables(Chains::planned(table)?),
            ProxyMode::Ipvs => Self::Ipvs(Servers::planned(table)?),
        })
    }
}

impl Rules for Planned {
    fn enter(&self, packet: &Packet, draw: Draw<'_>) -> Walk {
        match self {
            Self::Nftables(rules) => rules.enter(packet, draw),
            Self::Iptables(rules) => rules.enter(packet, draw),
            Self::Ipvs(rules) => rules.enter(packet, draw),
        }
    }

    fn pass(&self, packet: &Packet, to_node: bool) -> Walk {
        match self {
            Self::Nftables(rules) => rules.pass(packet, to_node),
            Self::Iptables(rules) => rules.pass(packet, to_node),
            Self::Ipvs(rules) => rules.pass(packet, to_node),
        }
    }

    fn leave(&self, packet: &Packet) -> Walk {
        match self {
            Self::Nftables(rules) => rules.leave(packet),
            Self::Iptables(rules) => rules.leave(packet),
            Self::Ipvs(rules) => rules.leave(packet),
        }
    }
}

/// The rules of the nftables proxy as they would be after a first sync.
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

/// Past one base chain of nftables.
fn through(rules: &Ruleset, chain: &str, packet: &Packet, draw: Draw<'_>) -> Walk {
    let walk = walker::walk(rules, chain, packet, draw);
    Walk {
        fate: match walk.fate {
            walker::Fate::Accepted => Fate::Accepted,
            walker::Fate::Dropped => Fate::Dropped,
            walker::Fate::Rejected(_) => Fate::Refused,
            walker::Fate::Translated(address, port) => Fate::Translated(Backend { address, port }),
            walker::Fate::Masqueraded => Fate::Masqueraded,
        },
        steps: walk
            .steps
            .iter()
            .map(|step| format!("{} rule {}", step.chain, step.rule + 1))
            .collect(),
    }
}

/// For chains that choose nothing.
fn none(_: u32) -> u32 {
    0
}

impl Rules for Ruleset {
    fn enter(&self, packet: &Packet, draw: Draw<'_>) -> Walk {
        let chain = match packet.from_this_host {
            true => "service-output",
            false => "service-prerouting",
        };
        through(self, chain, packet, draw)
    }

    fn pass(&self, _: &Packet, _: bool) -> Walk {
        // Only packets that fit no connection are asked for there.
        Walk::past()
    }

    fn leave(&self, packet: &Packet) -> Walk {
        through(self, "service-postrouting", packet, &mut none)
    }
}

/// Sends the first packet of a connection through the rules. `draw` is given
/// the number of backends and returns which to take.
pub fn simulate(
    rules: &impl Rules,
    facts: &NodeFacts,
    source: IpAddr,
    destination: (IpAddr, u16),
    protocol: Protocol,
    draw: Draw<'_>,
) -> Simulation {
    let from_node = facts.addresses.contains(&source);
    let mut packet = Packet::new((source, 40_000), destination, protocol.number());
    packet.from_this_host = from_node;
    let mut steps = Vec::new();
    let mut step = |walk: Walk| {
        steps.extend(walk.steps);
        walk.fate
    };
    let mut backend = None;
    let mut end = None;
    match step(rules.enter(&packet, draw)) {
        Fate::Translated(to) => {
            backend = Some(to);
            packet.destination = to.address;
            packet.destination_port = to.port;
        }
        Fate::Dropped => end = Some(Verdict::Dropped),
        Fate::Refused => end = Some(Verdict::Refused),
        Fate::Accepted | Fate::Masqueraded => {}
    }
    let to_node = facts.addresses.contains(&packet.destination);
    if end.is_none() {
        end = match step(rules.pass(&packet, to_node)) {
            Fate::Dropped => Some(Verdict::Dropped),
            Fate::Refused => Some(Verdict::Refused),
            Fate::Accepted | Fate::Translated(_) | Fate::Masqueraded => None,
        };
    }
    if let Some(verdict) = end {
        return Simulation { verdict, steps };
    }
    // To the node itself: it leaves only if it also comes from there, by loopback.
    let masqueraded = (from_node || !to_node) && {
        if to_node {
            "lo".clone_into(&mut packet.out_interface);
        }
        step(rules.leave(&packet)) == Fate::Masqueraded
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
