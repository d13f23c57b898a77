//! Reading back what the kernel holds, and what of it can stay.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use linux::nftables::{
    Batch, Chain, Element, Error, Expression, Family as TableFamily, LiveChain, LiveRule, LiveSet,
    Nftables, Value,
};

use crate::compile::{self, Masqueraded, Number, SetNames, TABLE};
use crate::difference::{Programmed, Ranges, Shadow, Slots};
use crate::model::{Backend, Family, FrontendKey, Protocol};

/// How often reading is begun anew because somebody committed meanwhile.
const ATTEMPTS: usize = 10;

/// What the kernel holds of ours.
#[derive(Debug)]
pub(crate) struct Observed {
    /// Generation at which all of it was read.
    pub(crate) generation: u32,
    table: bool,
    chains: Vec<LiveChain>,
    rules: HashMap<String, Vec<Option<Vec<Expression>>>>,
    sets: Vec<LiveSet>,
    /// Elements of the fixed maps that are not what they should be.
    wrong_dispatch: Vec<Element>,
    kinds: Vec<Element>,
    /// Contents of the sets.
    pub(crate) shadow: Shadow,
    /// Elements whose bytes make no sense, by set.
    foreign: Vec<(&'static str, Element)>,
}

/// A frontend's elements, as they come.
#[derive(Debug, Default)]
struct ReadFrontend {
    number: Option<Number>,
    slots: Vec<(u32, Backend)>,
    /// Slot → id.
    turns: Vec<(u32, u32)>,
}

impl ReadFrontend {
    /// The slots its number draws from.
    fn drawn(&self) -> impl Iterator<Item = u32> + use<> {
        let (count, near) = self.number.map_or((0, 0), |n| (n.count(), n.near()));
        (0..count).chain(compile::NEAR_SLOTS..compile::NEAR_SLOTS + near)
    }

    /// The slots it should have in the turns map.
    fn turn_slots(&self) -> BTreeSet<u32> {
        match self.number.is_some_and(Number::is_sticky) {
            true => self.drawn().collect(),
            false => BTreeSet::new(),
        }
    }

    /// The slots and ids it should have in the backends map, once its turns are read.
    fn backend_slots(&self) -> BTreeSet<u32> {
        match self.number.is_some_and(Number::is_sticky) {
            true => self
                .turns
                .iter()
                .map(|(slot, id)| ids(*slot).wrapping_add(*id))
                .collect(),
            false => self.drawn().collect(),
        }
    }

    /// Puts the parts together. Elements that do not fit the number, or each
    /// other, are handed back by set.
    fn assemble(mut self, key: &FrontendKey) -> (Programmed, Vec<(&'static str, Element)>) {
        let names = SetNames::of(Family::of(key.address));
        let sticky = self.number.is_some_and(Number::is_sticky);
        let mut foreign = Vec::new();
        self.slots.retain(|(slot, backend)| {
            let fits = !sticky || *slot >= compile::IDS;
            if !fits {
                let element = compile::backend_element(key, *slot, *backend);
                foreign.push((names.backends, element));
            }
            fits
        });
        for (slot, id) in self.turns {
            let ids = ids(slot);
            let backend = self
                .slots
                .iter()
                .find(|(known, _)| sticky && id < compile::NEAR_SLOTS && *known == ids + id)
                .map(|(_, backend)| *backend);
            match backend {
                Some(backend) => self.slots.push((slot, backend)),
                None => foreign.push((names.turns, compile::turn_element(key, slot, id))),
            }
        }
        self.slots.sort_unstable();
        let programmed = Programmed {
            number: self.number,
            slots: Slots::of(&self.slots),
        };
        (programmed, foreign)
    }
}

/// Where ids are counted from for what is drawn from a slot.
const fn ids(slot: u32) -> u32 {
    if slot >= compile::NEAR_SLOTS {
        compile::NEAR_IDS
    } else {
        compile::IDS
    }
}

/// Reads until nothing changed from the first to the last answer.
pub(crate) fn observe(nft: &mut Nftables) -> Result<Observed, Error> {
    for _ in 0..ATTEMPTS {
        let before = nft.generation()?.id;
        let observed = read(nft, before)?;
        if nft.generation()?.id == before {
            return Ok(observed);
        }
    }
    Err(Error::Interrupted(format!(
        "reading back table inet {TABLE}"
    )))
}

fn read(nft: &mut Nftables, generation: u32) -> Result<Observed, Error> {
    let inet = TableFamily::Inet;
    let mut observed = Observed {
        generation,
        table: nft.tables(inet)?.iter().any(|name| name == TABLE),
        chains: Vec::new(),
        rules: HashMap::new(),
        sets: Vec::new(),
        wrong_dispatch: Vec::new(),
        kinds: Vec::new(),
        shadow: Shadow::default(),
        foreign: Vec::new(),
    };
    if !observed.table {
        return Ok(observed);
    }
    observed.chains = nft.chains(inet, TABLE)?;
    for LiveRule {
        chain, expressions, ..
    } in nft.rules(inet, TABLE)?
    {
        observed.rules.entry(chain).or_default().push(expressions);
    }
    observed.sets = nft.sets(inet, TABLE)?;
    if !observed.sets_match() {
        return Ok(observed); // rebuilt whole: contents do not matter
    }
    let mut programmed: HashMap<FrontendKey, ReadFrontend> = HashMap::new();
    for (index, family) in Family::ALL.into_iter().enumerate() {
        let names = SetNames::of(family);
        for element in nft.elements(inet, TABLE, names.services)? {
            match read_service(&element, family) {
                Some((key, number)) => programmed.entry(key).or_default().number = Some(number),
                None => observed.foreign.push((names.services, element)),
            }
        }
        let turns = wanted_keys(&programmed, family, ReadFrontend::turn_slots);
        for element in observed.by_key(nft, names.turns, turns)? {
            match read_turn(&element, family) {
                Some((key, slot, id)) => {
                    programmed.entry(key).or_default().turns.push((slot, id));
                }
                None => observed.foreign.push((names.turns, element)),
            }
        }
        let backends = wanted_keys(&programmed, family, ReadFrontend::backend_slots);
        for element in observed.by_key(nft, names.backends, backends)? {
            match read_backend(&element, family) {
                Some((key, slot, backend)) => {
                    programmed
                        .entry(key)
                        .or_default()
                        .slots
                        .push((slot, backend));
                }
                None => observed.foreign.push((names.backends, element)),
            }
        }
        for element in nft.elements(inet, TABLE, names.sources)? {
            match read_source(&element, family) {
                Some((key, range)) => {
                    let ranges = observed.shadow.sources.entry(key).or_default();
                    ranges.push(range);
                    ranges.sort_unstable();
                }
                None => observed.foreign.push((names.sources, element)),
            }
        }
        for element in nft.elements(inet, TABLE, names.cluster_ips)? {
            match read_address(&element.key, family) {
                Some(address) => {
                    observed.shadow.cluster_ips.insert(address, ());
                }
                None => observed.foreign.push((names.cluster_ips, element)),
            }
        }
        for element in nft.elements(inet, TABLE, names.hairpin)? {
            let half = element.key.len() / 2;
            match read_address(&element.key[..half], family) {
                Some(address) if element == compile::hairpin_element(address) => {
                    observed.shadow.hairpin.insert(address, ());
                }
                _ => observed.foreign.push((names.hairpin, element)),
            }
        }
        observed.shadow.ranges[index] = Ranges {
            local: read_ranges(nft.elements(inet, TABLE, names.local_pods)?, family),
            pods: read_ranges(nft.elements(inet, TABLE, names.pod_ranges)?, family),
            cluster: read_ranges(nft.elements(inet, TABLE, names.cluster_ranges)?, family),
            services: read_ranges(nft.elements(inet, TABLE, names.service_ranges)?, family),
        };
    }
    for (key, read) in programmed {
        let (programmed, foreign) = read.assemble(&key);
        observed.shadow.frontends.insert(key, Box::new(programmed));
        observed.foreign.extend(foreign);
    }
    for element in nft.elements(inet, TABLE, compile::DISPATCH)? {
        let number = Number::from_bytes(&element.key)
            .filter(|number| compile::dispatch_element(*number) == element);
        match number {
            Some(number) => {
                observed.shadow.numbers.insert(number);
            }
            None => observed.wrong_dispatch.push(element),
        }
    }
    observed.kinds = nft.elements(inet, TABLE, compile::MASQUERADE_KINDS)?;
    observed.shadow.masqueraded = Masqueraded::ALL
        .into_iter()
        .find(|masqueraded| observed.kinds.contains(&masqueraded.element()))
        .unwrap_or_default();
    observed.shadow.chains = observed
        .chains
        .iter()
        .filter(|chain| chain.base.is_none() && compile::is_number_chain(&chain.name))
        .map(|chain| chain.name.clone())
        .collect();
    Ok(observed)
}

/// The keys of the elements that frontends should have for their slots.
fn wanted_keys(
    frontends: &HashMap<FrontendKey, ReadFrontend>,
    family: Family,
    slots: impl Fn(&ReadFrontend) -> BTreeSet<u32>,
) -> impl Iterator<Item = Vec<u8>> {
    frontends
        .iter()
        .filter(move |(key, _)| Family::of(key.address) == family)
        .flat_map(move |(key, read)| {
            slots(read)
                .into_iter()
                .map(|slot| compile::slot_bytes(key, slot))
        })
}

impl Observed {
    /// All elements of a map that has most of ours, and that should have those with
    /// these keys.
    ///
    /// Listing a map takes time that grows with the square of what it holds. So where
    /// the kernel says that it holds as many elements as there should be, those are
    /// looked up; if all of them are there, there are no others.
    fn by_key(
        &self,
        nft: &mut Nftables,
        map: &str,
        wanted: impl Iterator<Item = Vec<u8>>,
    ) -> Result<Vec<Element>, Error> {
        let live = self.sets.iter().find(|live| live.name == map);
        if let Some(held) = live.and_then(|live| usize::try_from(live.elements?).ok()) {
            // Numbers that others wrote may ask for any number of elements.
            let keys: Vec<Vec<u8>> = wanted.take(held.saturating_add(1)).collect();
            if keys.len() == held {
                let keys: Vec<(&str, &[u8])> = keys.iter().map(|key| (map, &**key)).collect();
                let found = nft.find(TableFamily::Inet, TABLE, &keys)?;
                if let Some(all) = found.into_iter().collect() {
                    return Ok(all);
                }
            }
        }
        nft.elements(TableFamily::Inet, TABLE, map)
    }

    fn sets_match(&self) -> bool {
        compile::sets().iter().all(|wanted| {
            self.sets
                .iter()
                .any(|live| live.name == wanted.name && live.matches(wanted))
        })
    }

    fn chain(&self, name: &str) -> Option<&LiveChain> {
        self.chains.iter().find(|chain| chain.name == name)
    }

    fn same_rules(&self, chain: &Chain) -> bool {
        let live = self.rules.get(&chain.name).map_or(&[][..], Vec::as_slice);
        live.len() == chain.rules.len()
            && live
                .iter()
                .zip(&chain.rules)
                .all(|(live, wanted)| live.as_ref() == Some(&wanted.expressions))
    }

    /// Puts into `batch` what makes sets and chains what they should be, and
    /// returns what the sets hold after that and what had to be done, in words.
    pub(crate) fn repair(self, batch: &mut Batch) -> (Shadow, Vec<String>) {
        if !self.table {
            batch.add_table();
            build(batch);
            return (Shadow::default(), Vec::new());
        }
        let fixed = compile::chains();
        let same_hooks = fixed.iter().all(|wanted| {
            self.chain(&wanted.name)
                .is_none_or(|live| live.base == wanted.base)
        });
        if !self.sets_match() || !same_hooks {
            let known = self
                .sets
                .iter()
                .any(|live| compile::sets().iter().any(|set| set.name == live.name));
            self.tear_down(batch, &fixed, true);
            build(batch);
            let told = if known {
                vec!["sets or hooks of another layout: all made anew".to_owned()]
            } else {
                Vec::new()
            };
            return (Shadow::default(), told);
        }
        let mut told = Vec::new();
        let mut shadow = self.shadow.clone();
        let wanted: BTreeMap<String, Chain> = fixed
            .iter()
            .cloned()
            .chain(
                shadow
                    .numbers
                    .iter()
                    .flat_map(|number| compile::number_chains(*number)),
            )
            .map(|chain| (chain.name.clone(), chain))
            .collect();
        // All chains before all rules: rules name chains.
        for chain in wanted.values().filter(|c| self.chain(&c.name).is_none()) {
            told.push(format!("chain {} was missing", chain.name));
            batch.add_chain(chain);
        }
        for chain in wanted.values().filter(|chain| !self.same_rules(chain)) {
            if self.chain(&chain.name).is_some() {
                told.push(format!("chain {} had other rules", chain.name));
                batch.flush_chain(&chain.name);
            }
            for rule in &chain.rules {
                batch.add_rule(&chain.name, rule);
            }
        }
        // A number's chain that no element names is not checked above: made anew if needed.
        let unchecked: Vec<String> = shadow
            .chains
            .iter()
            .filter(|name| !wanted.contains_key(*name))
            .cloned()
            .collect();
        if !self.wrong_dispatch.is_empty() {
            told.push("the dispatch map had elements of others".to_owned());
            batch.delete_elements(compile::DISPATCH, &self.wrong_dispatch);
        }
        for name in &unchecked {
            batch.flush_chain(name);
        }
        for name in &unchecked {
            batch.delete_chain(name);
            shadow.chains.remove(name);
        }
        shadow.chains.extend(
            wanted
                .into_keys()
                .filter(|name| compile::is_number_chain(name)),
        );
        let kinds = compile::masquerade_kinds(shadow.masqueraded);
        let wrong: Vec<&Element> = self.kinds.iter().filter(|e| !kinds.contains(e)).collect();
        let missing: Vec<&Element> = kinds.iter().filter(|e| !self.kinds.contains(e)).collect();
        if !wrong.is_empty() || !missing.is_empty() {
            told.push("the map of masquerade kinds was changed".to_owned());
            batch.delete_elements(compile::MASQUERADE_KINDS, wrong);
            batch.add_elements(compile::MASQUERADE_KINDS, missing);
        }
        for (set, element) in &self.foreign {
            told.push(format!("{set} had an element of others"));
            batch.delete_elements(set, [element]);
        }
        (shadow, told)
    }

    /// Puts into `batch` what lets no further packet in.
    pub(crate) fn close(&self, batch: &mut Batch) {
        for chain in compile::chains().iter().filter(|c| c.base.is_some()) {
            if self.rules.get(&chain.name).is_some_and(|r| !r.is_empty()) {
                batch.flush_chain(&chain.name);
            }
        }
    }

    /// Puts into `batch` what takes all of ours away, and the table with it if
    /// nothing else is in it.
    pub(crate) fn remove(&self, batch: &mut Batch) {
        let fixed = compile::chains();
        let sets = compile::sets();
        let ours = |name: &str| {
            compile::is_number_chain(name) || fixed.iter().any(|chain| chain.name == name)
        };
        let others = self.chains.iter().any(|live| !ours(&live.name))
            || self
                .sets
                .iter()
                .any(|live| !sets.iter().any(|set| set.name == live.name));
        match (self.table, others) {
            (false, _) => {}
            (true, false) => batch.delete_table(),
            (true, true) => self.tear_down(batch, &fixed, false),
        }
    }

    /// Deletes all of ours, and nothing else that may be in the table; on demand
    /// not what rules remember, which nobody else knows.
    fn tear_down(&self, batch: &mut Batch, fixed: &[Chain], remember: bool) {
        let ours: Vec<&LiveChain> = self
            .chains
            .iter()
            .filter(|live| {
                compile::is_number_chain(&live.name)
                    || fixed.iter().any(|chain| chain.name == live.name)
            })
            .collect();
        for chain in &ours {
            batch.flush_chain(&chain.name);
        }
        let sets = compile::sets();
        for live in &self.sets {
            if let Some(set) = sets.iter().find(|set| set.name == live.name)
                && !(remember && set.dynamic && live.matches(set))
            {
                batch.delete_set(&set.name);
            }
        }
        for chain in &ours {
            batch.delete_chain(&chain.name);
        }
    }
}

/// All sets and fixed chains, into a table without them.
fn build(batch: &mut Batch) {
    for set in compile::sets() {
        batch.add_set(&set);
    }
    let chains = compile::chains();
    for chain in &chains {
        batch.add_chain(chain);
    }
    for chain in &chains {
        for rule in &chain.rules {
            batch.add_rule(&chain.name, rule);
        }
    }
    batch.add_elements(
        compile::MASQUERADE_KINDS,
        &compile::masquerade_kinds(Masqueraded::default()),
    );
}

const fn address_length(family: Family) -> usize {
    match family {
        Family::V4 => 4,
        Family::V6 => 16,
    }
}

fn read_address(bytes: &[u8], family: Family) -> Option<IpAddr> {
    match family {
        Family::V4 => Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into()),
        Family::V6 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into()),
    }
}

/// The frontend an element of one of our sets is about; `None` for those about
/// something else.
pub(crate) fn frontend_of(set: &str, element: &Element) -> Option<FrontendKey> {
    let family = Family::ALL.into_iter().find(|family| {
        let names = SetNames::of(*family);
        [names.services, names.backends, names.turns, names.sources].contains(&set)
    })?;
    Some(read_key(&element.key, family)?.0)
}

pub(crate) fn read_key(bytes: &[u8], family: Family) -> Option<(FrontendKey, &[u8])> {
    let (address, rest) = bytes.split_at_checked(address_length(family))?;
    let (protocol, rest) = rest.split_at_checked(4)?;
    let (port, rest) = rest.split_at_checked(4)?;
    let key = FrontendKey {
        address: read_address(address, family)?,
        protocol: Protocol::from_number(protocol[0])?,
        port: u16::from_be_bytes([port[0], port[1]]),
    };
    Some((key, rest))
}

/// Reads what [`compile::service_element`] writes.
fn read_service(element: &Element, family: Family) -> Option<(FrontendKey, Number)> {
    let (key, _) = read_key(&element.key, family)?;
    let Some(Value::Bytes(value)) = &element.value else {
        return None;
    };
    let number = Number::from_bytes(value)?;
    (compile::service_element(&key, number) == *element).then_some((key, number))
}

/// Reads what [`compile::turn_element`] writes.
fn read_turn(element: &Element, family: Family) -> Option<(FrontendKey, u32, u32)> {
    let (key, rest) = read_key(&element.key, family)?;
    let slot = u32::from_ne_bytes(rest.try_into().ok()?);
    let Some(Value::Bytes(value)) = &element.value else {
        return None;
    };
    let id = u32::from_ne_bytes(value.as_slice().try_into().ok()?);
    (compile::turn_element(&key, slot, id) == *element).then_some((key, slot, id))
}

/// Reads what [`compile::source_element`] writes.
fn read_source(element: &Element, family: Family) -> Option<(FrontendKey, (u128, u128))> {
    let number = |bytes: &[u8]| match read_address(bytes, family)? {
        IpAddr::V4(v4) => Some(u128::from(u32::from(v4))),
        IpAddr::V6(v6) => Some(u128::from(v6)),
    };
    let (key, first) = read_key(&element.key, family)?;
    let (_, last) = read_key(element.to.as_ref()?, family)?;
    let range = (number(first)?, number(last)?);
    (compile::source_element(&key, range) == *element).then_some((key, range))
}

/// Reads what [`compile::backend_element`] writes.
pub(crate) fn read_backend(
    element: &Element,
    family: Family,
) -> Option<(FrontendKey, u32, Backend)> {
    let (key, rest) = read_key(&element.key, family)?;
    let slot = u32::from_ne_bytes(rest.try_into().ok()?);
    let Some(Value::Bytes(value)) = &element.value else {
        return None;
    };
    let backend = read_place(value, family)?;
    (compile::backend_element(&key, slot, backend) == *element).then_some((key, slot, backend))
}

/// Reads what [`compile::backend_bytes`] writes.
pub(crate) fn read_place(value: &[u8], family: Family) -> Option<Backend> {
    let (address, port) = value.split_at_checked(address_length(family))?;
    Some(Backend {
        address: read_address(address, family)?,
        port: u16::from_be_bytes([*port.first()?, *port.get(1)?]),
    })
}

fn read_ranges(mut elements: Vec<Element>, family: Family) -> Vec<(u128, u128)> {
    // An end sorts before a start with the same key.
    elements.sort_by(|a, b| (&a.key, !a.end).cmp(&(&b.key, !b.end)));
    let number = |key: &[u8]| {
        read_address(key, family).map(|address| match address {
            IpAddr::V4(v4) => u128::from(u32::from(v4)),
            IpAddr::V6(v6) => u128::from(v6),
        })
    };
    let mut ranges: Vec<(u128, u128)> = Vec::new();
    let mut open: Option<u128> = None;
    for element in elements {
        let Some(value) = number(&element.key) else {
            continue;
        };
        match (element.end, open) {
            (false, _) => open = Some(value),
            (true, Some(first)) => {
                ranges.push((first, value.saturating_sub(1)));
                open = None;
            }
            (true, None) => {} // the end mark before the first range
        }
    }
    if let Some(first) = open {
        let greatest = match family {
            Family::V4 => u128::from(u32::MAX),
            Family::V6 => u128::MAX,
        };
        ranges.push((first, greatest));
    }
    ranges
}
