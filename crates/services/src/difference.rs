//! From what the kernel has to what it should have: the smallest change. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use linux::nftables::{Chain, Element};

use crate::by_family::FamilyMap;
use crate::compile::{self, IDS, Masqueraded, NEAR_IDS, NEAR_SLOTS, Number, SetNames};
use crate::model::{Backend, Family, FrontendKey, NodeFacts};
use crate::table::{Changes, Frontend, Table};

/// A frontend as the kernel's maps hold it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Programmed {
    /// Its number; absent if only leftovers of slots are there.
    pub number: Option<Number>,
    /// Backends by slot; with affinity also by id.
    pub slots: Slots,
}

/// Backends by slot, in as little memory as most need: there may be a hundred
/// thousand lists of them.
#[derive(Debug, Clone)]
pub enum Slots {
    /// Slot n has the n-th, all of IPv4.
    InOrder(Box<[(Ipv4Addr, u16)]>),
    /// Sorted by slot.
    Each(Box<[(u32, Backend)]>),
}

impl Slots {
    /// Of a list sorted by slot.
    #[must_use]
    pub fn of(slots: &[(u32, Backend)]) -> Self {
        let in_order = (0..)
            .zip(slots)
            .map(|(place, (slot, backend))| match backend.address {
                IpAddr::V4(address) if *slot == place => Some((address, backend.port)),
                _ => None,
            });
        match in_order.collect() {
            Some(in_order) => Self::InOrder(in_order),
            None => Self::Each(slots.into()),
        }
    }

    /// Slots and their backends, sorted by slot.
    pub fn iter(&self) -> impl Iterator<Item = (u32, Backend)> {
        let (in_order, each) = match self {
            Self::InOrder(list) => (&**list, &[][..]),
            Self::Each(each) => (&[][..], &**each),
        };
        let in_order = in_order.iter().map(|(address, port)| Backend {
            address: IpAddr::V4(*address),
            port: *port,
        });
        (0..).zip(in_order).chain(each.iter().copied())
    }
}

impl Default for Slots {
    fn default() -> Self {
        Self::InOrder(Box::default())
    }
}

impl PartialEq for Slots {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for Slots {}

/// What an element about a backend yields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Yield {
    /// In the backends map, for a slot or an id.
    Backend(Backend),
    /// In the turns map, for a slot: an id.
    Id(u32),
}

impl Programmed {
    fn is_sticky(&self) -> bool {
        self.number.is_some_and(Number::is_sticky)
    }

    /// The id of a backend, where there is affinity.
    fn id(&self, backend: &Backend) -> Option<u32> {
        self.slots
            .iter()
            .find(|(slot, known)| *slot >= IDS && *known == *backend)
            .map(|(slot, _)| slot & (IDS - 1) & !NEAR_SLOTS)
    }

    /// What its elements yield, sorted by slot.
    fn yields(&self) -> impl Iterator<Item = (u32, Yield)> {
        self.slots.iter().map(|(slot, backend)| {
            let id = (self.is_sticky() && slot < IDS)
                .then(|| self.id(&backend))
                .flatten();
            (slot, id.map_or(Yield::Backend(backend), Yield::Id))
        })
    }
}

/// The ranges of one family, sorted and joined.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ranges {
    /// This node's pods, where those are told from others.
    pub local: Vec<(u128, u128)>,
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
        let pods = compile::ranges(facts.pod_cidrs.iter().copied(), family);
        Self {
            local: if facts.no_local_detection {
                Vec::new()
            } else {
                pods.clone()
            },
            pods,
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
    fn named(&self, family: Family) -> [(&'static str, &[(u128, u128)]); 4] {
        let names = SetNames::of(family);
        [
            (names.local_pods, &self.local),
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
    pub frontends: FamilyMap<FrontendKey, Box<Programmed>>,
    /// Cluster addresses.
    pub cluster_ips: FamilyMap<IpAddr, ()>,
    /// Addresses of local endpoints.
    pub hairpin: FamilyMap<IpAddr, ()>,
    /// Permitted sources of those frontends that not everybody may use.
    pub sources: HashMap<FrontendKey, Vec<(u128, u128)>>,
    /// Ranges of IPv4 and IPv6.
    pub ranges: [Ranges; 2],
    /// Who asks cluster addresses under the node's address.
    pub masqueraded: Masqueraded,
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
    sources: Vec<(FrontendKey, Vec<(u128, u128)>)>,
    ranges: Option<[Ranges; 2]>,
    masqueraded: Option<Masqueraded>,
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
fn assign(old: &Slots, wanted: &[Backend], first: u32, slots: &mut Vec<(u32, Backend)>) {
    let end = first + wanted.len() as u32;
    let mut places: Vec<Option<Backend>> = vec![None; wanted.len()];
    let mut missing: BTreeSet<Backend> = wanted.iter().copied().collect();
    for (slot, backend) in old.iter() {
        if (first..end).contains(&slot) && missing.remove(&backend) {
            places[(slot - first) as usize] = Some(backend);
        }
    }
    let mut missing = missing.into_iter();
    for (index, place) in places.into_iter().enumerate() {
        if let Some(backend) = place.or_else(|| missing.next()) {
            slots.push((first + index as u32, backend));
        }
    }
}

/// Gives each wanted backend an id. One that has an id keeps it; others get the
/// lowest that are free.
fn assign_ids(
    old: &Programmed,
    all: &[Backend],
    near: &[Backend],
    slots: &mut Vec<(u32, Backend)>,
) {
    let wanted: BTreeSet<Backend> = all.iter().chain(near).copied().collect();
    let mut ids: BTreeMap<u32, Backend> = BTreeMap::new();
    let mut missing = Vec::new();
    for backend in wanted {
        match old.id(&backend) {
            Some(id) => {
                ids.insert(id, backend);
            }
            None => missing.push(backend),
        }
    }
    let mut next = 0;
    for backend in missing {
        while ids.contains_key(&next) {
            next += 1;
        }
        ids.insert(next, backend);
    }
    for (list, first) in [(all, IDS), (near, NEAR_IDS)] {
        slots.extend(
            ids.iter()
                .filter(|(_, backend)| list.binary_search(backend).is_ok())
                .map(|(id, backend)| (first + id, *backend)),
        );
    }
}

/// Works out what has to change for the keys in `changes`.
#[must_use]
pub fn difference(table: &Table, shadow: &Shadow, changes: &Changes) -> Difference {
    let mut difference = Difference::default();
    let nothing = Programmed::default();
    for key in &changes.frontends {
        let frontend = table.frontend(key);
        source_elements(&mut difference, key, frontend.as_ref(), shadow);
        let old = shadow.frontends.get(*key).map_or(&nothing, |old| &**old);
        let new = frontend.map(|frontend| {
            let wanted = compile::frontend(&frontend);
            let mut slots = Vec::with_capacity(wanted.backends.len() + wanted.near.len());
            assign(&old.slots, wanted.backends, 0, &mut slots);
            assign(&old.slots, wanted.near, NEAR_SLOTS, &mut slots);
            if wanted.number.is_sticky() {
                assign_ids(old, wanted.backends, wanted.near, &mut slots);
            }
            Programmed {
                number: Some(wanted.number),
                slots: Slots::of(&slots),
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
        if wanted != shadow.cluster_ips.contains(*address) {
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
        if wanted != shadow.hairpin.contains(*address) {
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
        let masqueraded = Masqueraded::of(table.facts());
        if masqueraded != shadow.masqueraded {
            difference.delete(compile::MASQUERADE_KINDS, shadow.masqueraded.element());
            difference.add(compile::MASQUERADE_KINDS, masqueraded.element());
            difference.masqueraded = Some(masqueraded);
        }
    }
    difference
}

/// Everything that either side knows of: for the first comparison after a start.
#[must_use]
pub fn everything(table: &Table, shadow: &Shadow) -> Changes {
    Changes {
        frontends: table
            .holders()
            .map(|(key, _)| key)
            .chain(shadow.frontends.keys())
            .chain(shadow.sources.keys().copied())
            .collect(),
        cluster_ips: table
            .cluster_ips()
            .chain(shadow.cluster_ips.keys())
            .collect(),
        local_endpoints: table
            .local_endpoints()
            .chain(shadow.hairpin.keys())
            .collect(),
        facts: true,
    }
}

/// The sources that may use a frontend, if not everybody may.
fn source_elements(
    difference: &mut Difference,
    key: &FrontendKey,
    frontend: Option<&Frontend>,
    shadow: &Shadow,
) {
    let wanted = frontend
        .and_then(|frontend| frontend.sources.as_deref())
        .map(|sources| compile::allowed(key, sources))
        .unwrap_or_default();
    let old = shadow.sources.get(key).map_or(&[][..], Vec::as_slice);
    if wanted == old {
        return;
    }
    let set = SetNames::of(Family::of(key.address)).sources;
    for range in old.iter().filter(|range| !wanted.contains(range)) {
        difference.delete(set, compile::source_element(key, *range));
    }
    for range in wanted.iter().filter(|range| !old.contains(range)) {
        difference.add(set, compile::source_element(key, *range));
    }
    difference.sources.push((*key, wanted));
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
    let element = |slot: u32, yields: Yield| match yields {
        Yield::Backend(backend) => (names.backends, compile::backend_element(key, slot, backend)),
        Yield::Id(id) => (names.turns, compile::turn_element(key, slot, id)),
    };
    let mut before = old.yields().peekable();
    let mut after = new.yields().peekable();
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
        if let Some((slot, yields)) = gone {
            let (set, element) = element(slot, yields);
            difference.delete(set, element);
        }
        if let Some((slot, yields)) = come {
            let (set, element) = element(slot, yields);
            difference.add(set, element);
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
            // In order both: of a large cluster's nodes there are thousands.
            let is_in = |ranges: &[(u128, u128)], range| ranges.binary_search(range).is_ok();
            for range in old.iter().filter(|range| !is_in(new, range)) {
                for element in compile::range_elements(*range, family) {
                    difference.delete(set, element);
                }
            }
            for range in new.iter().filter(|range| !is_in(old, range)) {
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
                Some(programmed) => self.frontends.insert(key, Box::new(programmed)),
                None => self.frontends.remove(key),
            };
        }
        for (list, set) in [
            (difference.cluster_ips, &mut self.cluster_ips),
            (difference.hairpin, &mut self.hairpin),
        ] {
            for (address, present) in list {
                if present {
                    set.insert(address, ());
                } else {
                    set.remove(address);
                }
            }
        }
        for (key, sources) in difference.sources {
            if sources.is_empty() {
                self.sources.remove(&key);
            } else {
                self.sources.insert(key, sources);
            }
        }
        if let Some(ranges) = difference.ranges {
            self.ranges = ranges;
        }
        if let Some(masqueraded) = difference.masqueraded {
            self.masqueraded = masqueraded;
        }
        self.numbers.extend(difference.numbers);
        self.chains
            .extend(difference.chains.into_iter().map(|chain| chain.name));
    }
}
