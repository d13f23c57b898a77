//! The proxy: takes events, and brings the kernel to what they ask for.

use std::collections::HashSet;

use linux::conntrack::{self, Conntrack};
use linux::nftables::{self, Batch, Family as TableFamily, Nftables};

use crate::adopt::{self, Observed};
use crate::compile::{self, TABLE};
use crate::conversations;
use crate::difference::{Shadow, difference, everything};
use crate::model::{EndpointSlice, FrontendKey, NodeFacts, Service, ServiceName};
use crate::table::Table;

/// How often a refused batch is worked out anew from what the kernel then holds.
const ATTEMPTS: usize = 3;

/// Why Services could not be brought into the kernel.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The packet filter did not take the rules, or could not be read. What was
    /// to be done is kept and tried again with the next sync.
    #[error("programming Services: {0}")]
    Nftables(#[from] nftables::Error),
    /// Conntrack cannot be used at all.
    #[error("looking after UDP conversations of Services: {0}")]
    Conntrack(#[from] conntrack::Error),
}

/// What a sync did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stats {
    /// Frontends that were looked at.
    pub frontends: usize,
    /// Elements added and deleted.
    pub elements: usize,
    /// Bytes sent to the kernel; 0 if it needed no change.
    pub bytes: usize,
    /// Whether this sync compared everything: the first one, and those after
    /// somebody else changed what is ours.
    pub full: bool,
    /// UDP and SCTP conversations with endpoints that are gone, ended.
    pub conversations: usize,
    /// What others had damaged and this sync put right.
    pub repaired: Vec<String>,
}

/// Services in the kernel of one network namespace.
///
/// Blocking; meant for a thread of its own. Events are taken up at once and
/// reach the kernel together, in one atomic batch, with the next [`Self::sync`].
#[derive(Debug)]
pub struct Proxy {
    nft: Nftables,
    table: Table,
    shadow: Shadow,
    /// What the kernel held when it was last read, until it is compared.
    observed: Option<Observed>,
    /// The generation after our last commit; another one means that somebody
    /// else committed since.
    generation: Option<u32>,
    conntrack: Conntrack,
    /// Frontends whose conversations are yet to be looked at.
    unchecked: HashSet<FrontendKey>,
    /// Whether a commit failed, so that the shadow cannot be trusted.
    stale: bool,
}

impl Proxy {
    /// Connects to the calling thread's network namespace and reads what a
    /// previous run left there. Changes nothing yet: tell it all Services and
    /// slices there are, then call [`Self::sync`].
    ///
    /// # Errors
    /// If nftables cannot be used.
    pub fn start(facts: NodeFacts) -> Result<Self, Error> {
        let mut nft = Nftables::open()?;
        let observed = adopt::observe(&mut nft)?;
        Ok(Self {
            nft,
            table: Table::new(facts),
            shadow: Shadow::default(),
            observed: Some(observed),
            generation: None,
            conntrack: Conntrack::open()?,
            unchecked: HashSet::new(),
            stale: false,
        })
    }

    /// The table, for reports.
    #[must_use]
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// A Service was made or changed.
    pub fn service_changed(&mut self, service: Service) {
        self.table.set_service(service);
    }

    /// A Service is gone.
    pub fn service_removed(&mut self, name: &ServiceName) {
        self.table.remove_service(name);
    }

    /// A slice was made or changed.
    pub fn endpoint_slice_changed(&mut self, slice: &EndpointSlice) {
        self.table.set_slice(slice);
    }

    /// A slice is gone.
    pub fn endpoint_slice_removed(&mut self, namespace: &str, name: &str) {
        self.table.remove_slice(namespace, name);
    }

    /// The facts of node or cluster changed.
    pub fn facts_changed(&mut self, facts: NodeFacts) {
        self.table.set_facts(facts);
    }

    /// Brings the kernel to what the events so far ask for, in one batch: all
    /// of it or, on an error, nothing.
    ///
    /// # Errors
    /// If the kernel refuses; the changes are kept for the next call.
    pub fn sync(&mut self) -> Result<Stats, Error> {
        let mut attempt = 1;
        loop {
            if self.stale {
                self.observed = Some(adopt::observe(&mut self.nft)?);
                self.stale = false;
            }
            match self.sync_once() {
                Ok(mut stats) => {
                    stats.conversations = self.check_conversations();
                    return Ok(stats);
                }
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

    fn sync_once(&mut self) -> Result<Stats, nftables::Error> {
        let generation = self.observed.as_ref().map(|observed| observed.generation);
        let mut batch = Batch::new(TableFamily::Inet, TABLE, generation);
        let full = self.observed.is_some();
        let first = self.generation.is_none();
        let mut repaired = Vec::new();
        if let Some(observed) = self.observed.take() {
            (self.shadow, repaired) = observed.repair(&mut batch);
            // What the shadow says is true only once the batch is in.
        }
        let mut changes = self.table.take_changes();
        let asked = !changes.is_empty();
        if full {
            changes.merge(everything(&self.table, &self.shadow));
        }
        let difference = difference(&self.table, &self.shadow, &changes);
        if full && !asked && !difference.is_empty() {
            repaired.push("elements were added or deleted".to_owned());
        }
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
        let stats = Stats {
            frontends: changes.frontends.len(),
            conversations: 0,
            elements: batch.elements(),
            bytes: if batch.is_empty() { 0 } else { batch.len() },
            full,
            repaired: if first { Vec::new() } else { repaired },
        };
        if !batch.is_empty()
            && let Err(error) = self.nft.commit(batch)
        {
            self.table.return_changes(changes);
            self.stale = true;
            return Err(error);
        }
        self.shadow.apply(difference);
        self.unchecked.extend(
            changes
                .frontends
                .into_iter()
                .filter(conversations::concerns),
        );
        self.generation = match (stats.bytes, generation, self.generation) {
            (0, Some(read), _) => Some(read),
            (0, None, known) => known,
            (_, Some(read), _) => Some(read.wrapping_add(1)),
            (_, None, known) => known.map(|known| known.wrapping_add(1)),
        };
        for text in &stats.repaired {
            tracing::warn!(
                table = TABLE,
                "somebody changed podwire's rules: {text}; put right"
            );
        }
        Ok(stats)
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

    /// Ends conversations with endpoints that are gone. If conntrack cannot be
    /// read now, the next sync or audit tries again: the rules are right anyhow.
    fn check_conversations(&mut self) -> usize {
        if self.unchecked.is_empty() {
            return 0;
        }
        match conversations::clean(&mut self.conntrack, &self.unchecked, &self.table) {
            Ok(deleted) => {
                self.unchecked.clear();
                deleted
            }
            Err(error) => {
                tracing::warn!(%error, "UDP conversations with old endpoints may go on for a while");
                0
            }
        }
    }

    /// Looks whether somebody else changed what is ours and puts it right.
    /// Costs one small message while nobody commits to nftables but podwire.
    ///
    /// # Errors
    /// If the kernel cannot be read, or refuses the repair.
    pub fn audit(&mut self) -> Result<Stats, Error> {
        let now = self.nft.generation()?;
        if self.generation == Some(now.id) && !self.stale {
            self.collect()?;
            return Ok(Stats {
                conversations: self.check_conversations(),
                ..Stats::default()
            });
        }
        tracing::debug!(
            process = now.process,
            name = now.process_name,
            "nftables changed; comparing everything with the kernel"
        );
        self.observed = Some(adopt::observe(&mut self.nft)?);
        self.sync()
    }
}
