//! Who owns whom. No I/O.

use crate::object::{self, Key};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::core::ApiResource;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

/// The finalizer of an owner that goes after its dependents.
pub(super) const FOREGROUND: &str = "foregroundDeletion";
/// The finalizer of an owner that leaves its dependents behind.
pub(super) const ORPHAN: &str = "orphan";

/// A kind of objects as the API serves it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Resource {
    pub(super) api: ApiResource,
    pub(super) namespaced: bool,
}

/// What decides about one object.
#[derive(Clone, Debug)]
pub(super) struct Item {
    pub(super) resource: Arc<Resource>,
    pub(super) key: Key,
    pub(super) uid: String,
    pub(super) owners: Vec<OwnerReference>,
    pub(super) deleting: bool,
    pub(super) finalizers: Vec<String>,
}

impl Item {
    pub(super) fn new(resource: &Arc<Resource>, meta: &ObjectMeta) -> Self {
        Self {
            resource: resource.clone(),
            key: Key::of(meta),
            uid: object::uid(meta).to_owned(),
            owners: meta.owner_references.clone().unwrap_or_default(),
            deleting: object::is_deleting(meta),
            finalizers: meta.finalizers.clone().unwrap_or_default(),
        }
    }

    fn has(&self, finalizer: &str) -> bool {
        self.finalizers.iter().any(|name| name == finalizer)
    }

    /// Waits for its dependents to go first.
    fn is_foreground(&self) -> bool {
        self.deleting && self.has(FOREGROUND)
    }
}

/// How an object is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Policy {
    Background,
    Foreground,
    Orphan,
}

/// What to do about one object.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Verdict {
    /// Nothing.
    Keep,
    /// Ask the API server whether these owners are there.
    LookUp(Vec<OwnerReference>),
    /// Nobody owns it any more.
    Delete(Policy),
    /// Some of its owners are gone, others not.
    DropOwners(Vec<String>),
    /// It waits for these dependents, which have to be looked at.
    Await(Vec<String>),
    /// Its dependents are gone: it may go.
    Finish,
    /// These dependents have to be freed of it, then it may go.
    Orphan(Vec<String>),
}

/// All objects that are known, with the references between them.
#[derive(Debug, Default)]
pub(super) struct Graph {
    items: HashMap<String, Item>,
    /// Uids of dependents by the owner's uid, whether that is known or not.
    dependents: HashMap<String, BTreeSet<String>>,
    namespaces: HashMap<String, HashSet<String>>,
}

impl Graph {
    pub(super) fn get(&self, uid: &str) -> Option<&Item> {
        self.items.get(uid)
    }

    /// The objects in a namespace.
    pub(super) fn in_namespace(&self, namespace: &str) -> impl Iterator<Item = &Item> {
        self.namespaces
            .get(namespace)
            .into_iter()
            .flatten()
            .filter_map(|uid| self.items.get(uid))
    }

    /// Objects of one kind.
    pub(super) fn of(&self, resource: &Resource) -> Vec<String> {
        self.items
            .values()
            .filter(|item| *item.resource == *resource)
            .map(|item| item.uid.clone())
            .collect()
    }

    /// Takes an object in; returns the uids of those to look at.
    pub(super) fn set(&mut self, item: Item) -> Vec<String> {
        let mut look: Vec<String> = Vec::new();
        let old = self.unlink(&item.uid);
        let same = old.as_ref().is_some_and(|old| {
            old.owners == item.owners
                && old.deleting == item.deleting
                && old.finalizers == item.finalizers
        });
        if !same {
            let waits = item.deleting && (item.has(FOREGROUND) || item.has(ORPHAN));
            if waits || !item.owners.is_empty() {
                look.push(item.uid.clone());
            }
            // An owner in foreground deletion may have waited for this one.
            look.extend(
                old.iter()
                    .flat_map(|old| &old.owners)
                    .filter(|owner| self.is_waiting(&owner.uid))
                    .map(|owner| owner.uid.clone()),
            );
        }
        for owner in &item.owners {
            self.dependents
                .entry(owner.uid.clone())
                .or_default()
                .insert(item.uid.clone());
        }
        self.namespaces
            .entry(item.key.namespace.clone())
            .or_default()
            .insert(item.uid.clone());
        self.items.insert(item.uid.clone(), item);
        look
    }

    /// An object is gone; returns the uids of those to look at.
    pub(super) fn remove(&mut self, uid: &str) -> Vec<String> {
        let Some(item) = self.unlink(uid) else {
            return Vec::new();
        };
        let mut look: Vec<String> = self.dependents_of(uid);
        look.extend(
            item.owners
                .iter()
                .filter(|owner| self.is_waiting(&owner.uid))
                .map(|owner| owner.uid.clone()),
        );
        look
    }

    fn unlink(&mut self, uid: &str) -> Option<Item> {
        let item = self.items.remove(uid)?;
        for owner in &item.owners {
            if let Some(dependents) = self.dependents.get_mut(&owner.uid) {
                dependents.remove(uid);
                if dependents.is_empty() {
                    self.dependents.remove(&owner.uid);
                }
            }
        }
        if let Some(uids) = self.namespaces.get_mut(&item.key.namespace) {
            uids.remove(uid);
            if uids.is_empty() {
                self.namespaces.remove(&item.key.namespace);
            }
        }
        Some(item)
    }

    fn dependents_of(&self, uid: &str) -> Vec<String> {
        self.dependents
            .get(uid)
            .into_iter()
            .flatten()
            .cloned()
            .collect()
    }

    fn is_waiting(&self, uid: &str) -> bool {
        self.items.get(uid).is_some_and(Item::is_foreground)
    }

    /// Dependents that keep their owner from going.
    fn blocking(&self, uid: &str) -> Vec<String> {
        self.dependents_of(uid)
            .into_iter()
            .filter(|dependent| {
                self.items.get(dependent).is_some_and(|item| {
                    item.owners
                        .iter()
                        .any(|owner| owner.uid == uid && owner.block_owner_deletion == Some(true))
                })
            })
            .collect()
    }

    /// What to do about an object. `absent` are uids the API server has been
    /// asked about and does not know; an owner that is neither known nor
    /// absent has to be looked up: its kind's watch may just be slower.
    pub(super) fn verdict(&self, uid: &str, absent: &HashSet<String>) -> Verdict {
        let Some(item) = self.items.get(uid) else {
            return Verdict::Keep;
        };
        if item.deleting {
            if item.has(ORPHAN) {
                return Verdict::Orphan(self.dependents_of(uid));
            }
            if item.has(FOREGROUND) {
                let blocking = self.blocking(uid);
                return if blocking.is_empty() {
                    Verdict::Finish
                } else {
                    Verdict::Await(self.dependents_of(uid))
                };
            }
            return Verdict::Keep;
        }
        if item.owners.is_empty() {
            return Verdict::Keep;
        }
        let unknown: Vec<_> = item
            .owners
            .iter()
            .filter(|owner| !self.items.contains_key(&owner.uid) && !absent.contains(&owner.uid))
            .cloned()
            .collect();
        if !unknown.is_empty() {
            return Verdict::LookUp(unknown);
        }
        let (mut solid, mut waiting, mut dangling) = (0, Vec::new(), Vec::new());
        for owner in &item.owners {
            match self.items.get(&owner.uid) {
                None => dangling.push(owner.uid.clone()),
                Some(there) if there.is_foreground() => waiting.push(owner.uid.clone()),
                Some(_) => solid += 1,
            }
        }
        if solid > 0 {
            dangling.extend(waiting);
            return if dangling.is_empty() {
                Verdict::Keep
            } else {
                Verdict::DropOwners(dangling)
            };
        }
        Verdict::Delete(if item.has(ORPHAN) {
            Policy::Orphan
        } else if item.has(FOREGROUND)
            || (!waiting.is_empty() && !self.dependents_of(uid).is_empty())
        {
            Policy::Foreground
        } else {
            Policy::Background
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn resource() -> Arc<Resource> {
        Arc::new(Resource {
            api: ApiResource::erase::<k8s_openapi::api::core::v1::ConfigMap>(&()),
            namespaced: true,
        })
    }

    /// An item from text: `name owner,owner! +finalizer x`, where `!` is a
    /// reference that blocks and `x` means it is being deleted.
    fn item(text: &str) -> Item {
        let mut words = text.split_whitespace();
        let name = words.next().unwrap();
        let mut item = Item {
            resource: resource(),
            key: Key::new("ns", name),
            uid: name.into(),
            owners: Vec::new(),
            deleting: false,
            finalizers: Vec::new(),
        };
        for word in words {
            if word == "x" {
                item.deleting = true;
            } else if let Some(finalizer) = word.strip_prefix('+') {
                item.finalizers.push(finalizer.into());
            } else {
                item.owners = word
                    .split(',')
                    .map(|owner| OwnerReference {
                        uid: owner.trim_end_matches('!').into(),
                        block_owner_deletion: Some(owner.ends_with('!')),
                        ..Default::default()
                    })
                    .collect();
            }
        }
        item
    }

    fn graph(items: &[&str]) -> Graph {
        let mut graph = Graph::default();
        for text in items {
            graph.set(item(text));
        }
        graph
    }

    fn uids(list: &[&str]) -> Vec<String> {
        list.iter().map(|uid| (*uid).to_owned()).collect()
    }

    #[rstest]
    #[case::no_owner(&["a"], Verdict::Keep)]
    #[case::owner_there(&["o", "a o"], Verdict::Keep)]
    #[case::owner_gone(&["a gone"], Verdict::Delete(Policy::Background))]
    #[case::one_of_two_gone(&["o", "a o,gone"], Verdict::DropOwners(uids(&["gone"])))]
    #[case::both_gone(&["a gone,gone2"], Verdict::Delete(Policy::Background))]
    #[case::owner_going_in_the_background(&["o x", "a o"], Verdict::Keep)]
    #[case::owner_waits(&["o x +foregroundDeletion", "a o!"], Verdict::Delete(Policy::Background))]
    #[case::owner_waits_and_it_has_dependents_itself(
        &["o x +foregroundDeletion", "a o!", "b a!"], Verdict::Delete(Policy::Foreground))]
    #[case::one_owner_waits_the_other_stays(
        &["p", "o x +foregroundDeletion", "a o!,p"], Verdict::DropOwners(uids(&["o"])))]
    #[case::foreground_with_dependents(&["a x +foregroundDeletion", "b a!", "c a"], Verdict::Await(uids(&["b", "c"])))]
    #[case::foreground_with_dependents_that_do_not_block(&["a x +foregroundDeletion", "c a"], Verdict::Finish)]
    #[case::foreground_without_dependents(&["a x +foregroundDeletion"], Verdict::Finish)]
    #[case::orphan(&["a x +orphan", "b a"], Verdict::Orphan(uids(&["b"])))]
    #[case::going_already(&["a gone x"], Verdict::Keep)]
    fn verdicts(#[case] items: &[&str], #[case] expected: Verdict) {
        let absent = ["gone".to_owned(), "gone2".to_owned()].into();
        assert_eq!(graph(items).verdict("a", &absent), expected);
    }

    #[test]
    fn an_owner_nobody_has_seen_is_looked_up_before_anything_is_deleted() {
        let verdict = graph(&["a late"]).verdict("a", &HashSet::new());
        assert!(matches!(verdict, Verdict::LookUp(owners) if owners[0].uid == "late"));
    }

    #[test]
    fn when_an_owner_goes_its_dependents_are_looked_at() {
        let mut graph = graph(&["o", "a o", "b o", "c"]);
        assert_eq!(graph.remove("o"), ["a", "b"]);
    }

    #[test]
    fn when_a_dependent_goes_its_waiting_owner_is_looked_at() {
        let mut graph = graph(&["o x +foregroundDeletion", "a o!"]);
        assert_eq!(graph.remove("a"), ["o"]);
        assert_eq!(graph.verdict("o", &HashSet::new()), Verdict::Finish);
    }

    #[test]
    fn news_that_change_nothing_wake_nobody() {
        let mut graph = graph(&["o", "a o"]);
        assert!(graph.set(item("a o")).is_empty());
        assert_eq!(graph.set(item("a o x +orphan")), ["a"]);
    }

    #[test]
    fn objects_are_counted_by_namespace() {
        let mut graph = graph(&["a", "b"]);
        graph.remove("a");
        assert_eq!(graph.in_namespace("ns").count(), 1);
        graph.remove("b");
        assert!(graph.namespaces.is_empty() && graph.dependents.is_empty());
    }
}
