//! From the chains iptables has to those it should have. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use super::compile::{self, ChainKey, IptablesTable, Part, Rules, Shared};
use super::save::Saved;
use crate::model::{Family, FrontendKey, ServiceName};
use crate::table::{Changes, Table};

/// Stands for the rules of a chain; the rules themselves are not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Digest(u64);

impl Digest {
    /// That of some rules. The same in every run of one build.
    #[must_use]
    pub fn of<T: AsRef<str>>(rules: &[T]) -> Self {
        let mut hasher = DefaultHasher::new();
        for rule in rules {
            rule.as_ref().hash(&mut hasher);
        }
        Self(hasher.finish())
    }
}

/// What a Service has in the kernel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Known {
    frontends: Vec<FrontendKey>,
    chains: BTreeMap<String, Digest>,
    lines: Vec<(Shared, String)>,
}

/// What one family's iptables hold of ours, as far as podwire knows.
#[derive(Debug, Default)]
pub struct State {
    chains: HashMap<ChainKey, Digest>,
    services: BTreeMap<Arc<ServiceName>, Known>,
    owners: HashMap<FrontendKey, Arc<ServiceName>>,
    /// Which of [`compile::jumps`] are there.
    jumps: [bool; 7],
    /// Rules in others' chains that lead to chains of ours but are not ours of
    /// today: (table, chain, rule).
    stray: Vec<(IptablesTable, String, String)>,
    /// Whether `chains` was read and not yet compared.
    unseen: bool,
}

/// A change of one family's chains.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Chains to write anew, with all their rules.
    pub write: BTreeMap<ChainKey, Rules>,
    /// Chains to delete.
    pub delete: BTreeSet<ChainKey>,
    /// Rules to put before all others of the kernel's own chains: (table, chain, rule).
    pub insert: Vec<(IptablesTable, String, String)>,
    /// Rules to delete from the kernel's own chains: (table, chain, rule).
    pub remove: Vec<(IptablesTable, String, String)>,
    services: Vec<(Arc<ServiceName>, Option<Known>)>,
}

impl Difference {
    /// Whether the kernel needs no change.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.write.is_empty()
            && self.delete.is_empty()
            && self.insert.is_empty()
            && self.remove.is_empty()
    }

    /// Rules written, and chains and rules deleted.
    #[must_use]
    pub fn size(&self) -> usize {
        self.write.values().map(Vec::len).sum::<usize>()
            + self.delete.len()
            + self.insert.len()
            + self.remove.len()
    }

    /// In words: what of the kernel's was not as it should be.
    #[must_use]
    pub fn describe(&self) -> Vec<String> {
        let name = |(table, chain): &ChainKey| format!("chain {chain} of table {table}");
        let mut told: Vec<String> = self
            .write
            .keys()
            .map(|key| format!("{} was missing or changed", name(key)))
            .chain(
                self.delete
                    .iter()
                    .map(|key| format!("{} was not podwire's", name(key))),
            )
            .collect();
        told.extend(self.insert.iter().map(|(table, chain, _)| {
            format!("a rule of chain {chain} of table {table} was missing")
        }));
        told.extend(self.remove.iter().map(|(table, chain, _)| {
            format!("chain {chain} of table {table} had a rule too many")
        }));
        told
    }
}

impl State {
    /// The state that was read back. Nothing of it is known to be right.
    #[must_use]
    pub fn read(saved: Saved) -> Self {
        let mut state = Self {
            unseen: true,
            ..Self::default()
        };
        let jumps = compile::jumps();
        for (table, chain, rules) in saved.chains {
            if chain.starts_with(compile::PREFIX) {
                state.chains.insert((table, chain), Digest::of(&rules));
                continue;
            }
            for rule in rules.into_iter().filter(|rule| leads_to_ours(rule)) {
                let place = jumps
                    .iter()
                    .position(|(t, c, r)| *t == table && *c == chain && *r == rule);
                match place {
                    Some(place) if !state.jumps[place] => state.jumps[place] = true,
                    _ => state.stray.push((table, chain.clone(), rule)),
                }
            }
        }
        state
    }

    /// Whether there is nothing of ours.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.chains.is_empty() && self.stray.is_empty() && !self.jumps.contains(&true)
    }

    /// Works out what has to change: for the frontends in `changes`, or for
    /// everything if what the kernel holds was just read.
    #[must_use]
    pub fn difference(&self, table: &Table, changes: &Changes, family: Family) -> Difference {
        let mut difference = Difference::default();
        let facts = table.facts();
        let full = self.unseen || changes.facts;
        let dirty: BTreeSet<Arc<ServiceName>> = if full {
            table
                .holders()
                .chain(self.owners.iter().map(|(key, service)| (*key, service)))
                .filter(|(key, _)| Family::of(key.address) == family)
                .map(|(_, service)| Arc::clone(service))
                .collect()
        } else {
            changes
                .frontends
                .iter()
                .filter(|key| Family::of(key.address) == family)
                .flat_map(|key| {
                    let now = table.holder(key);
                    self.owners.get(key).into_iter().chain(now)
                })
                .map(Arc::clone)
                .collect()
        };
        let mut shared: BTreeSet<Shared> = BTreeSet::new();
        if full {
            shared.extend(Shared::ALL);
        }
        let nothing = Known::default();
        for service in dirty {
            let frontends: Vec<_> = table
                .frontends_of(&service)
                .into_iter()
                .filter(|(key, _)| Family::of(key.address) == family)
                .collect();
            let Part { chains, lines } = compile::service(&frontends, facts, family);
            let old = self.services.get(&service).unwrap_or(&nothing);
            if old.lines != lines {
                shared.extend(old.lines.iter().chain(&lines).map(|(chain, _)| *chain));
            }
            let mut known = Known {
                frontends: frontends.iter().map(|(key, _)| *key).collect(),
                chains: BTreeMap::new(),
                lines,
            };
            for (name, rules) in chains {
                let digest = Digest::of(&rules);
                known.chains.insert(name.clone(), digest);
                difference.want(self, (IptablesTable::Nat, name), rules, digest);
            }
            for name in old.chains.keys() {
                if !known.chains.contains_key(name) {
                    difference.delete.insert((IptablesTable::Nat, name.clone()));
                }
            }
            let gone = known.frontends.is_empty();
            difference
                .services
                .push((service, (!gone).then_some(known)));
        }
        let mut wanted: BTreeSet<ChainKey> = BTreeSet::new();
        for chain in shared {
            let rules = compile::shared(chain, self.lines(chain, &difference), facts, family);
            let digest = Digest::of(&rules);
            wanted.insert(chain.key());
            difference.want(self, chain.key(), rules, digest);
        }
        if full || !changes.local_endpoints.is_empty() {
            for (key, rules) in compile::fixed(table, family) {
                let digest = Digest::of(&rules);
                wanted.insert(key.clone());
                difference.want(self, key, rules, digest);
            }
        }
        if self.unseen {
            let known: BTreeSet<&String> = difference
                .services
                .iter()
                .flat_map(|(_, known)| known.iter().flat_map(|known| known.chains.keys()))
                .collect();
            let of_services =
                |key: &ChainKey| key.0 == IptablesTable::Nat && known.contains(&key.1);
            let unknown = self
                .chains
                .keys()
                .filter(|key| !wanted.contains(*key))
                .filter(|key| !of_services(key));
            difference.delete.extend(unknown.cloned());
            difference.remove.clone_from(&self.stray);
            difference.insert = compile::jumps()
                .into_iter()
                .zip(self.jumps)
                .filter(|(_, there)| !there)
                .map(|((table, chain, rule), _)| (table, chain.to_owned(), rule))
                .collect();
        }
        difference
    }

    /// All Services' lines of a chain, with those that `difference` changes.
    fn lines<'a>(&'a self, chain: Shared, difference: &'a Difference) -> Vec<&'a str> {
        let changed: BTreeMap<&ServiceName, Option<&Known>> = difference
            .services
            .iter()
            .map(|(name, known)| (&**name, known.as_ref()))
            .collect();
        let kept = self
            .services
            .iter()
            .filter(|(name, _)| !changed.contains_key(&***name))
            .map(|(_, known)| known);
        kept.chain(changed.values().flatten().copied())
            .flat_map(|known| &known.lines)
            .filter(|(of, _)| *of == chain)
            .map(|(_, line)| line.as_str())
            .collect()
    }

    /// Takes up a difference that the kernel has taken.
    pub fn apply(&mut self, difference: Difference) {
        for (key, rules) in difference.write {
            self.chains.insert(key, Digest::of(&rules));
        }
        for key in difference.delete {
            self.chains.remove(&key);
        }
        for (name, known) in difference.services {
            let old = self.services.remove(&name);
            for key in old.iter().flat_map(|known| &known.frontends) {
                if self.owners.get(key) == Some(&name) {
                    self.owners.remove(key);
                }
            }
            if let Some(known) = known {
                for key in &known.frontends {
                    self.owners.insert(*key, Arc::clone(&name));
                }
                self.services.insert(name, known);
            }
        }
        if self.unseen {
            self.unseen = false;
            self.jumps = [true; 7];
            self.stray.clear();
        }
    }

    /// What takes all of ours away.
    #[must_use]
    pub fn removal(&self) -> Difference {
        let jumps = compile::jumps()
            .into_iter()
            .zip(self.jumps)
            .filter(|(_, there)| *there)
            .map(|((table, chain, rule), _)| (table, chain.to_owned(), rule));
        Difference {
            delete: self.chains.keys().cloned().collect(),
            remove: jumps.chain(self.stray.iter().cloned()).collect(),
            ..Difference::default()
        }
    }
}

impl Difference {
    fn want(&mut self, state: &State, key: ChainKey, rules: Rules, digest: Digest) {
        if state.chains.get(&key) != Some(&digest) {
            self.write.insert(key, rules);
        }
    }
}

fn leads_to_ours(rule: &str) -> bool {
    rule.split(' ')
        .zip(rule.split(' ').skip(1))
        .any(|(flag, target)| matches!(flag, "-j" | "-g") && target.starts_with(compile::PREFIX))
}
