//! From what the kernel has to what it should have: the smallest change. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;

use ipnet::IpNet;
use linux::nftables::{Chain, Element};

use crate::compile::{self, NEAR_SLOTS, Number, SetNames};
use crate::model::{Backend, Family, FrontendKey, NodeFacts};
use crate::table::{Changes, Table};

/// A frontend as the kernel's maps hold it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Programmed {
    /// Its number; absent if only leftovers of slots are there.
    pub number: Option<Number>,
    /// Backends by slot, sorted by slot.
    pub slots: Box<[(u32, Backend)]>,
}

/// The ranges of one family, sorted and joined.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ranges {
    /// This node's pods.
    pub pods: Vec<(u128, u128)>,
    /// Where pods go with their own address.
    pub cluster: Vec<(u128, u128)>,
    /// Where Service addresses come from.
    pub services: Vec<(u128, u128)>,
}

impl Ranges {
    /// Those the node's facts ask for.
    #[must_use]
    pub fn of(facts: &NodeFacts, family: Family) -> Self {
        Self {
            pods: compile::ranges(facts.pod_cidrs.iter().copied(), family),
            cluster: compile::ranges(Self::inside(facts), family),
            services: compile::ranges(facts.service_cidrs.iter().copied(), family),
        }
    }

    /// Where pods go with their own address, as it is written in the facts.
    pub(crate) fn inside(facts: &NodeFacts) -> Vec<IpNet> {
        let nodes = facts.node_addresses.iter().chain(&facts.addresses);
        facts
            .cluster_cidrs
            .iter()
            .chain(&facts.pod_cidrs)
            .copied()
            .chain(nodes.map(|address| IpNet::from(*address)))
            .collect()
    }

    /// With the names of their sets.
    fn named(&self, family: Family) -> [(&'static str, &[(u128, u128)]); 3] {
        let names = SetNames::of(family);
        [
            (names.pod_ranges, &self.pods),
            (names.cluster_ranges, &self.cluster),
            (names.service_ranges, &self.services),
        ]
    }
}

/// What the kernel's sets and maps hold, as far as podwire knows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Shadow {
    /// Frontends.
    pub frontends: HashMap<FrontendKey, Programmed>,
    /// Cluster addresses.
    pub cluster_ips: HashSet<IpAddr>,
    /// Addresses of local endpoints.
    pub hairpin: HashSet<IpAddr>,
    /// Ranges of IPv4 and IPv6.
    pub ranges: [Ranges; 2],
    /// Numbers that the dispatch map knows.
    pub numbers: BTreeSet<Number>,
    /// Chains made for numbers.
    pub chains: BTreeSet<String>,
}

/// A change of the kernel's sets and maps, and of the shadow with it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Elements to delete, by set.
    pub delete: BTreeMap<&'static str, Vec<Element>>,
    /// Elements to add, by set, after those were deleted.
    pub add: BTreeMap<&'static str, Vec<Element>>,
    /// Chains to make first, in order.
    pub chains: Vec<Chain>,
    numbers: BTreeSet<Number>,
    /// What becomes of frontends in the shadow.
    frontends: Vec<(FrontendKey, Option<Programmed>)>,
    cluster_ips: Vec<(IpAddr, bool)>,
    hairpin: Vec<(IpAddr, bool)>,
    ranges: Option<[Ranges; 2]>,
}

impl Difference {
    /// Whether the kernel's sets need no change.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.delete.is_empty() && self.add.is_empty()
    }

    fn delete(&mut self, set: &'static str, element: Element) {
        self.delete.entry(set).or_default().push(element);
    }

    fn add(&mut self, set: &'static str, element: Element) {
        self.add.entry(set).or_default().push(element);
    }
}

/// Gives each wanted backend a slot from `first` on without a gap. One that has
/// a slot in that range keeps it; so a change costs the slots it must, and what
/// a previous agent left is taken over as it is.
fn assign(old: &[(u32, Backend)], wanted: &[Backend], first: u32, slots: &mut Vec<(u32, Backend)>) {
    let end = first + wanted.len() as u32;
    let mut places: Vec<Option<Backend>> = vec![None; wanted.len()];
    let mut missing: BTreeSet<Backend> = wanted.iter().copied().collect();
    for (slot, backend) in old {
        if (first..end).contains(slot) && missing.remove(backend) {
            places[(slot - first) as usize] = Some(*backend);
        }
    }
    let mut missing = missing.into_iter();
    for (index, place) in places.into_iter().enumerate() {
        if let Some(backend) = place.or_else(|| missing.next()) {
            slots.push((first + index as u32, backend));
        }
    }
}

/// Works out what has to change for the keys in `changes`.
#[must_use]
pub fn difference(table: &Table, shadow: &Shadow, changes: &Changes) -> Difference {
    let mut difference = Difference::default();
    let nothing = Programmed::default();
    for key in &changes.frontends {
        let old = shadow.frontends.get(key).unwrap_or(&nothing);
        let new = table.frontend(key).map(|frontend| {
            let wanted = compile::frontend(frontend);
            let mut slots = Vec::with_capacity(wanted.backends.len() + wanted.near.len());
            assign(&old.slots, wanted.backends, 0, &mut slots);
            assign(&old.slots, wanted.near, NEAR_SLOTS, &mut slots);
            Programmed {
                number: Some(wanted.number),
                slots: slots.into(),
            }
        });
        if new.as_ref().unwrap_or(&nothing) == old {
            continue;
        }
        frontend_elements(&mut difference, key, old, new.as_ref().unwrap_or(&nothing));
        if let Some(number) = new.as_ref().and_then(|new| Some(new.number?.dispatch()))
            && !shadow.numbers.contains(&number)
            && difference.numbers.insert(number)
        {
            difference.add(compile::DISPATCH, compile::dispatch_element(number));
            for chain in compile::number_chains(number) {
                if !shadow.chains.contains(&chain.name)
                    && !difference.chains.iter().any(|c| c.name == chain.name)
                {
                    difference.chains.push(chain);
                }
            }
        }
        difference.frontends.push((*key, new));
    }
    for address in &changes.cluster_ips {
        let names = SetNames::of(Family::of(*address));
        let wanted = table.has_cluster_ip(*address);
        if wanted != shadow.cluster_ips.contains(address) {
            let element = compile::cluster_ip_element(*address);
            if wanted {
                difference.add(names.cluster_ips, element);
            } else {
                difference.delete(names.cluster_ips, element);
            }
            difference.cluster_ips.push((*address, wanted));
        }
    }
    for address in &changes.local_endpoints {
        let names = SetNames::of(Family::of(*address));
        let wanted = table.has_local_endpoint(*address);
        if wanted != shadow.hairpin.contains(address) {
            let element = compile::hairpin_element(*address);
            if wanted {
                difference.add(names.hairpin, element);
            } else {
                difference.delete(names.hairpin, element);
            }
            difference.hairpin.push((*address, wanted));
        }
    }
    if changes.facts {
        range_elements(&mut difference, table.facts(), shadow);
    }
    difference
}

/// Everything that either side knows of: for the first comparison after a start.
#[must_use]
pub fn everything(table: &Table, shadow: &Shadow) -> Changes {
    Changes {
        frontends: table
            .frontends()
            .map(|(key, _)| *key)
            .chain(shadow.frontends.keys().copied())
            .collect(),
        cluster_ips: table
            .cluster_ips()
            .chain(shadow.cluster_ips.iter().copied())
            .collect(),
        local_endpoints: table
            .local_endpoints()
            .chain(shadow.hairpin.iter().copied())
            .collect(),
        facts: true,
    }
}

fn frontend_elements(
    difference: &mut Difference,
    key: &FrontendKey,
    old: &Programmed,
    new: &Programmed,
) {
    let names = SetNames::of(Family::of(key.address));
    if old.number != new.number {
        if let Some(number) = old.number {
            difference.delete(names.services, compile::service_element(key, number));
        }
        if let Some(number) = new.number {
            difference.add(names.services, compile::service_element(key, number));
        }
    }
    let mut before = old.slots.iter().peekable();
    let mut after = new.slots.iter().peekable();
    loop {
        let (gone, come) = match (before.peek(), after.peek()) {
            (None, None) => break,
            (Some(b), Some(a)) if b.0 == a.0 => {
                let pair = (*b, *a);
                before.next();
                after.next();
                if pair.0 == pair.1 {
                    continue;
                }
                (Some(pair.0), Some(pair.1))
            }
            (Some(b), Some(a)) if b.0 > a.0 => (None, after.next()),
            (None, Some(_)) => (None, after.next()),
            (Some(_), _) => (before.next(), None),
        };
        if let Some((slot, backend)) = gone {
            difference.delete(
                names.backends,
                compile::backend_element(key, *slot, *backend),
            );
        }
        if let Some((slot, backend)) = come {
            difference.add(
                names.backends,
                compile::backend_element(key, *slot, *backend),
            );
        }
    }
}

/// Ranges are exchanged whole: the kernel checks the two ends of each against
/// the others.
fn range_elements(difference: &mut Difference, facts: &NodeFacts, shadow: &Shadow) {
    let wanted = Family::ALL.map(|family| Ranges::of(facts, family));
    if wanted == shadow.ranges {
        return;
    }
    for (index, family) in Family::ALL.into_iter().enumerate() {
        let old = shadow.ranges[index].named(family);
        let new = wanted[index].named(family);
        for ((set, old), (_, new)) in old.into_iter().zip(new) {
            for range in old.iter().filter(|range| !new.contains(range)) {
                for element in compile::range_elements(*range, family) {
                    difference.delete(set, element);
                }
            }
            for range in new.iter().filter(|range| !old.contains(range)) {
                for element in compile::range_elements(*range, family) {
                    difference.add(set, element);
                }
            }
        }
    }
    difference.ranges = Some(wanted);
}

/// What no frontend needs any more: numbers and the chains made for them.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Unused {
    /// Numbers to take out of the dispatch map.
    pub numbers: Vec<Number>,
    /// Chains to delete after that.
    pub chains: Vec<String>,
}

impl Shadow {
    /// Numbers and chains that no frontend needs. Looks at every frontend: for
    /// the background, not for the way of a change.
    #[must_use]
    pub fn unused(&self) -> Unused {
        let used: BTreeSet<Number> = self
            .frontends
            .values()
            .filter_map(|programmed| Some(programmed.number?.dispatch()))
            .collect();
        let needed: HashSet<String> = used
            .iter()
            .flat_map(|number| compile::number_chains(*number))
            .map(|chain| chain.name)
            .collect();
        Unused {
            numbers: self.numbers.difference(&used).copied().collect(),
            chains: self
                .chains
                .iter()
                .filter(|name| !needed.contains(*name))
                .cloned()
                .collect(),
        }
    }

    /// Forgets what was deleted as unused.
    pub fn forget(&mut self, unused: &Unused) {
        for number in &unused.numbers {
            self.numbers.remove(number);
        }
        for chain in &unused.chains {
            self.chains.remove(chain);
        }
    }

    /// Takes up a difference that the kernel has taken.
    pub fn apply(&mut self, difference: Difference) {
        for (key, programmed) in difference.frontends {
            match programmed {
                Some(programmed) => self.frontends.insert(key, programmed),
                None => self.frontends.remove(&key),
            };
        }
        for (list, set) in [
            (difference.cluster_ips, &mut self.cluster_ips),
            (difference.hairpin, &mut self.hairpin),
        ] {
            for (address, present) in list {
                if present {
                    set.insert(address);
                } else {
                    set.remove(&address);
                }
            }
        }
        if let Some(ranges) = difference.ranges {
            self.ranges = ranges;
        }
        self.numbers.extend(difference.numbers);
        self.chains
            .extend(difference.chains.into_iter().map(|chain| chain.name));
    }
}
