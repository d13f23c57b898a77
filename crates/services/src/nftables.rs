//! The nftables proxy: applies differences to the maps of table `inet podwire`,
//! adopts what a previous run left, audits.

use std::collections::HashMap;

use linux::nftables::{
    self, Batch, Chain, Count, Family as TableFamily, LiveRule, Nftables, Rule, render_chain,
    render_set,
};

use crate::Error;
use crate::adopt::{self, Observed};
use crate::compile::{self, SetNames, TABLE};
use crate::data_plane::{Applied, DataPlane, ProxyMode, Traffic};
use crate::difference::{Difference, Shadow, difference, everything};
use crate::model::{Backend, Family, FrontendKey};
use crate::table::{Changes, Table};

/// So many frontends are compared at once.
const PART: usize = 1_000;

/// How often a refused batch is worked out anew from what the kernel then holds.
const ATTEMPTS: usize = 3;

/// The rules and maps in the kernel of one network namespace.
#[derive(Debug)]
pub struct NftablesDataPlane {
    nft: Nftables,
    shadow: Shadow,
    /// What the kernel held when it was last read, until it is compared.
    observed: Option<Observed>,
    /// The generation after our last commit; another one means that somebody
    /// else committed since.
    generation: Option<u32>,
    /// Whether a commit failed, so that the shadow cannot be trusted.
    stale: bool,
}

impl NftablesDataPlane {
    /// Connects to the calling thread's network namespace and reads what a
    /// previous run left there.
    ///
    /// # Errors
    /// If nftables cannot be used.
    pub fn start() -> Result<Self, Error> {
        let mut nft = Nftables::open()?;
        let observed = adopt::observe(&mut nft)?;
        Ok(Self {
            nft,
            shadow: Shadow::default(),
            observed: Some(observed),
            generation: None,
            stale: false,
        })
    }

    fn sync_once(&mut self, table: &Table, changes: &Changes) -> Result<Applied, nftables::Error> {
        let generation = self.observed.as_ref().map(|observed| observed.generation);
        let mut batch = Batch::new(TableFamily::Inet, TABLE, generation);
        let full = self.observed.is_some();
        let first = self.generation.is_none();
        let mut repaired = Vec::new();
        if let Some(observed) = self.observed.take() {
            (self.shadow, repaired) = observed.repair(&mut batch);
            // What the shadow says is true only once the batch is in.
        }
        let asked = !changes.is_empty();
        let mut changes = changes.clone();
        if full {
            changes.merge(everything(table, &self.shadow));
        }
        let mut differs = false;
        // In parts, so that not all elements are in memory twice. The shadow is
        // ahead of the kernel until the commit; if that fails, it is read anew.
        for part in changes.parts(PART) {
            let difference = difference(table, &self.shadow, &part);
            differs |= !difference.is_empty();
            write(&difference, &mut batch);
            self.shadow.apply(difference);
        }
        if full && !asked && differs {
            repaired.push("elements were added or deleted".to_owned());
        }
        let applied = Applied {
            elements: batch.elements(),
            bytes: if batch.is_empty() { 0 } else { batch.len() },
            full,
            repaired: if first { Vec::new() } else { repaired },
            frontends: changes.frontends,
        };
        if !batch.is_empty()
            && let Err(error) = self.nft.commit(batch)
        {
            self.stale = true;
            return Err(error);
        }
        self.generation = match (applied.bytes, generation, self.generation) {
            (0, Some(read), _) => Some(read),
            (0, None, known) => known,
            (_, Some(read), _) => Some(read.wrapping_add(1)),
            (_, None, known) => known.map(|known| known.wrapping_add(1)),
        };
        for text in &applied.repaired {
            tracing::warn!(
                table = TABLE,
                "somebody changed podwire's rules: {text}; put right"
            );
        }
        Ok(applied)
    }

    /// Deletes the numbers and chains that no frontend needs any more.
    fn collect(&mut self) -> Result<(), nftables::Error> {
        let unused = self.shadow.unused();
        if unused.numbers.is_empty() && unused.chains.is_empty() {
            return Ok(());
        }
        let mut batch = Batch::new(TableFamily::Inet, TABLE, None);
        let elements: Vec<_> = unused
            .numbers
            .iter()
            .map(|number| compile::dispatch_element(*number))
            .collect();
        batch.delete_elements(compile::DISPATCH, &elements);
        for chain in &unused.chains {
            batch.flush_chain(chain);
        }
        for chain in &unused.chains {
            batch.delete_chain(chain);
        }
        if let Err(error) = self.nft.commit(batch) {
            self.stale = true;
            return Err(error);
        }
        self.generation = self.generation.map(|known| known.wrapping_add(1));
        self.shadow.forget(&unused);
        Ok(())
    }
}

/// Puts a difference into a batch.
fn write(difference: &Difference, batch: &mut Batch) {
    for chain in &difference.chains {
        batch.add_chain(chain);
    }
    for chain in &difference.chains {
        for rule in &chain.rules {
            batch.add_rule(&chain.name, rule);
        }
    }
    for (set, elements) in &difference.delete {
        batch.delete_elements(set, elements);
    }
    for (set, elements) in &difference.add {
        batch.add_elements(set, elements);
    }
}

impl DataPlane for NftablesDataPlane {
    fn mode(&self) -> ProxyMode {
        ProxyMode::Nftables
    }

    /// One atomic batch: all of it or, on an error, nothing.
    fn sync(&mut self, table: &Table, changes: &Changes) -> Result<Applied, Error> {
        let mut attempt = 1;
        loop {
            if self.stale {
                self.observed = Some(adopt::observe(&mut self.nft)?);
                self.stale = false;
            }
            match self.sync_once(table, changes) {
                Ok(applied) => return Ok(applied),
                // Somebody changed what is ours: look, and begin again from there.
                Err(
                    error @ (nftables::Error::GenerationChanged | nftables::Error::Refused { .. }),
                ) if attempt < ATTEMPTS => {
                    tracing::debug!(%error, attempt, "comparing everything with the kernel");
                    attempt += 1;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Costs one small message while nobody commits to nftables but podwire.
    fn audit(&mut self, table: &Table) -> Result<Applied, Error> {
        let now = self.nft.generation()?;
        if self.generation == Some(now.id) && !self.stale {
            self.collect()?;
            return Ok(Applied::default());
        }
        tracing::debug!(
            process = now.process,
            name = now.process_name,
            "nftables changed; comparing everything with the kernel"
        );
        self.observed = Some(adopt::observe(&mut self.nft)?);
        self.sync(table, &Changes::default())
    }

    fn traffic(&mut self) -> Result<Vec<Traffic>, Error> {
        // With the policy Local a backend has two elements for one frontend.
        let mut found: HashMap<(FrontendKey, Backend), Count> = HashMap::new();
        for family in Family::ALL {
            let set = SetNames::of(family).backends;
            for (element, count) in self.nft.counts(TableFamily::Inet, TABLE, set)? {
                if let Some((key, _, backend)) = adopt::read_backend(&element, family) {
                    let total = found.entry((key, backend)).or_default();
                    total.packets += count.packets;
                    total.bytes += count.bytes;
                }
            }
        }
        let mut traffic: Vec<Traffic> = found
            .into_iter()
            .map(|((key, backend), count)| Traffic::new(key, backend, count))
            .collect();
        traffic.sort_unstable_by_key(|one| (one.frontend, one.backend));
        Ok(traffic)
    }
}

/// The rules of this proxy as the kernel of the calling thread's network
/// namespace has them, in the syntax of the `nft` program; of the elements
/// those `wanted` of their frontend, or of none.
///
/// # Errors
/// If the kernel cannot be read.
pub fn listing(wanted: &dyn Fn(Option<&FrontendKey>) -> bool) -> Result<String, Error> {
    let mut nft = Nftables::open()?;
    let inet = TableFamily::Inet;
    let sets = compile::sets();
    let mut text = format!("table inet {TABLE} {{\n");
    let live = nft.sets(inet, TABLE)?;
    for set in sets
        .iter()
        .filter(|set| live.iter().any(|l| l.name == set.name))
    {
        let mut elements = nft.elements(inet, TABLE, &set.name)?;
        elements.retain(|element| wanted(adopt::frontend_of(&set.name, element).as_ref()));
        text.push_str(&render_set(set, &elements));
        text.push('\n');
    }
    let mut rules = nft.rules(inet, TABLE)?;
    for chain in nft.chains(inet, TABLE)? {
        let (own, others) = rules.into_iter().partition(|r| r.chain == chain.name);
        let own: Vec<LiveRule> = own;
        rules = others;
        let unreadable = own.iter().filter(|rule| rule.expressions.is_none()).count();
        let chain = Chain {
            name: chain.name,
            base: chain.base,
            rules: own
                .into_iter()
                .filter_map(|rule| rule.expressions)
                .map(Rule::new)
                .collect(),
        };
        text.push_str(&render_chain(&chain, &sets));
        text.push('\n');
        if unreadable > 0 {
            text.push_str(&format!("# {unreadable} rule(s) of others are left out\n"));
        }
    }
    text.push_str("}\n");
    Ok(text)
}

/// Removes what this proxy made in the calling thread's network namespace: its
/// chains and sets, and table `inet podwire` if nothing else is in it. Returns
/// whether there was anything.
///
/// # Errors
/// If the kernel cannot be read, or refuses.
pub fn remove() -> Result<bool, Error> {
    let mut nft = Nftables::open()?;
    // First the ways in. A packet that is in the chains meanwhile takes rules of
    // the old generation and asks maps of the new one: with the maps gone, it
    // would look as if its Service had no endpoints.
    let mut batch = Batch::new(TableFamily::Inet, TABLE, None);
    adopt::observe(&mut nft)?.close(&mut batch);
    if !batch.is_empty() {
        nft.commit(batch)?;
    }
    let observed = adopt::observe(&mut nft)?;
    let mut batch = Batch::new(TableFamily::Inet, TABLE, Some(observed.generation));
    observed.remove(&mut batch);
    if batch.is_empty() {
        return Ok(false);
    }
    nft.commit(batch)?;
    Ok(true)
}
