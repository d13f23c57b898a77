//! The planned virtual servers of IPVS, and the rules beside them.

use std::collections::{BTreeMap, HashSet};

use linux::nftables::Element;
use linux::nftables::walker::{Impossible, Packet, Ruleset};

use super::{Draw, Fate, Rules, Walk, none, through};
use crate::ipvs::{self, plan, rules};
use crate::model::{Backend, FrontendKey, Protocol};
use crate::table::Table;

/// Virtual servers with the rules that admit to them.
#[derive(Debug, Clone, Default)]
pub struct Servers {
    rules: Ruleset,
    servers: BTreeMap<FrontendKey, Vec<Backend>>,
}

impl Servers {
    /// Those of a first sync.
    ///
    /// # Errors
    /// Never for what this crate plans; said by a model as strict as the kernel.
    pub fn planned(table: &Table) -> Result<Self, Impossible> {
        let mut planned = Self::default();
        let rules = &mut planned.rules;
        for set in rules::sets() {
            rules.add_set(&set);
        }
        for chain in rules::chains() {
            rules.add_chain(chain);
        }
        for (set, elements) in rules::range_sets(table.facts()) {
            rules.add_elements(set, &elements)?;
        }
        let mut elements: HashSet<(&'static str, Element)> = HashSet::new();
        for (key, wanted) in ipvs::planned(table) {
            // A twin is a server and nothing else.
            if table.frontend(&key).is_some() {
                elements.extend(rules::elements(&key, &wanted));
            }
            if wanted.bound && !table.facts().addresses.contains(&key.address) {
                elements.insert(rules::held(key.address));
            }
            if let Some(server) =
                plan::server(&key, None, Some(&wanted), plan::Scheduler::default())
            {
                let backends = server.destinations.into_keys().collect();
                planned.servers.insert(key, backends);
            }
        }
        elements.extend(table.cluster_ips().map(rules::cluster_ip));
        elements.extend(table.local_endpoints().map(rules::hairpin));
        for (set, element) in &elements {
            rules.add_elements(set, [element])?;
        }
        Ok(planned)
    }
}

impl Rules for Servers {
    fn enter(&self, packet: &Packet, draw: Draw<'_>) -> Walk {
        let hook = |hook: &str| {
            let place = match packet.from_this_host {
                true => "output",
                false => "prerouting",
            };
            format!("{hook}-{place}")
        };
        let mut walk = through(&self.rules, &hook("new"), packet, &mut none);
        if walk.fate != Fate::Accepted {
            return walk;
        }
        let twins = through(&self.rules, &hook("twins"), packet, &mut none);
        walk.steps.extend(twins.steps);
        let (address, port) = match twins.fate {
            Fate::Translated(twin) => (twin.address, twin.port),
            _ => (packet.destination, packet.destination_port),
        };
        let protocol = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp]
            .into_iter()
            .find(|protocol| protocol.number() == packet.protocol);
        let server = protocol.and_then(|protocol| {
            let key = FrontendKey {
                address,
                protocol,
                port,
            };
            Some((key, self.servers.get(&key)?))
        });
        if let Some((key, backends)) = server {
            let count = u32::try_from(backends.len()).unwrap_or(u32::MAX);
            let index = usize::try_from(draw(count)).unwrap_or(usize::MAX);
            if let Some(backend) = backends.get(index) {
                walk.steps
                    .push(format!("virtual server {key} destination {}", index + 1));
                walk.fate = Fate::Translated(*backend);
            }
        }
        walk
    }

    fn pass(&self, _: &Packet, _: bool) -> Walk {
        // Only packets that fit no connection are asked for there.
        Walk::past()
    }

    fn leave(&self, packet: &Packet) -> Walk {
        through(&self.rules, "sources", packet, &mut none)
    }
}
