//! What is known of the objects of one kind.

use crate::object::Key;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

/// Anything with Kubernetes metadata.
pub(crate) trait HasMeta {
    /// The object's metadata.
    fn object_meta(&self) -> &ObjectMeta;
}

impl<K: kube::Resource> HasMeta for K {
    fn object_meta(&self) -> &ObjectMeta {
        self.meta()
    }
}

/// One object before and after.
#[derive(Clone, Debug)]
pub(crate) struct Change<K> {
    pub(crate) key: Key,
    pub(crate) old: Option<Arc<K>>,
    pub(crate) new: Option<Arc<K>>,
}

impl<K> Change<K> {
    /// The object before and after, as far as there.
    pub(crate) fn both(&self) -> impl Iterator<Item = &Arc<K>> {
        self.old.iter().chain(self.new.iter())
    }
}

/// The objects of one kind, fed from two sides: by the watch, and by the
/// answers to our own writes. The second makes a controller see what it wrote
/// before the watch tells it, which is what keeps it from making a pod twice.
/// Resource versions are compared as numbers (KEP-5504), so the older news
/// never replaces the newer.
#[derive(Debug)]
pub(crate) struct Table<K> {
    objects: HashMap<Key, Arc<K>>,
    namespaces: HashMap<String, BTreeSet<Key>>,
    /// Objects by the uid of the owner that manages them.
    owned: HashMap<String, BTreeSet<Key>>,
    /// Uids that a write of ours has removed and whose removal the watch has
    /// still to tell: older news of them must not bring them back.
    buried: HashSet<String>,
    /// Writes of ours that have no answer yet.
    writes: usize,
    /// Uids whose removal the watch or a list has told of while a write was
    /// under way: its answer, which is older, must not bring them back. Empty
    /// when no write is.
    departed: HashSet<String>,
    /// Lists that were completed.
    lists: u64,
    relist: Option<Relist<K>>,
}

/// A write of our own that is under way; see [`Table::begin`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Begun {
    /// Lists that were complete when it began.
    lists: u64,
}

#[derive(Debug)]
struct Relist<K> {
    listed: Vec<K>,
    /// Keys our own writes touched since the list began; the list may be older.
    touched: HashSet<Key>,
    buried: HashSet<String>,
}

impl<K> Default for Table<K> {
    fn default() -> Self {
        Self {
            objects: HashMap::new(),
            namespaces: HashMap::new(),
            owned: HashMap::new(),
            buried: HashSet::new(),
            writes: 0,
            departed: HashSet::new(),
            lists: 0,
            relist: None,
        }
    }
}

fn version(meta: &ObjectMeta) -> Option<u64> {
    meta.resource_version.as_deref()?.parse().ok()
}

/// Whether `a` is certainly older than `b`, or with `or_same` the same.
fn is_older(a: &ObjectMeta, b: &ObjectMeta, or_same: bool) -> bool {
    match (version(a), version(b)) {
        (Some(a), Some(b)) => a < b || (or_same && a == b),
        _ => false,
    }
}

impl<K: HasMeta> Table<K> {
    pub(crate) fn get(&self, key: &Key) -> Option<&Arc<K>> {
        self.objects.get(key)
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Arc<K>> {
        self.objects.values()
    }

    pub(crate) fn in_namespace(&self, namespace: &str) -> impl Iterator<Item = &Arc<K>> {
        self.select(self.namespaces.get(namespace))
    }

    pub(crate) fn owned_by(&self, uid: &str) -> impl Iterator<Item = &Arc<K>> {
        self.select(self.owned.get(uid))
    }

    fn select<'a>(&'a self, keys: Option<&'a BTreeSet<Key>>) -> impl Iterator<Item = &'a Arc<K>> {
        keys.into_iter()
            .flatten()
            .filter_map(|key| self.objects.get(key))
    }

    fn put(&mut self, object: K) -> Change<K> {
        let key = Key::of(object.object_meta());
        let old = self.take(&key);
        let object = Arc::new(object);
        let meta = object.object_meta();
        self.namespaces
            .entry(key.namespace.clone())
            .or_default()
            .insert(key.clone());
        if let Some(owner) = crate::object::controller(meta) {
            self.owned
                .entry(owner.uid.clone())
                .or_default()
                .insert(key.clone());
        }
        self.objects.insert(key.clone(), object.clone());
        Change {
            key,
            old,
            new: Some(object),
        }
    }

    fn take(&mut self, key: &Key) -> Option<Arc<K>> {
        let old = self.objects.remove(key)?;
        remove_from(&mut self.namespaces, &key.namespace, key);
        if let Some(owner) = crate::object::controller(old.object_meta()) {
            remove_from(&mut self.owned, &owner.uid, key);
        }
        Some(old)
    }

    /// Takes in an object the watch has told of.
    pub(crate) fn observe(&mut self, object: K) -> Option<Change<K>> {
        let meta = object.object_meta();
        if self.buried.contains(crate::object::uid(meta)) {
            return None;
        }
        let known = self.objects.get(&Key::of(meta));
        if known.is_some_and(|known| is_older(meta, known.object_meta(), true)) {
            return None;
        }
        Some(self.put(object))
    }

    /// Takes in a removal the watch has told of.
    pub(crate) fn observe_removed(&mut self, object: &K) -> Option<Change<K>> {
        let meta = object.object_meta();
        self.buried.remove(crate::object::uid(meta));
        self.depart(meta);
        let key = Key::of(meta);
        let known = self.objects.get(&key)?;
        // Its successor of the same name may be here already.
        if known.object_meta().uid != meta.uid {
            return None;
        }
        let old = self.take(&key);
        Some(Change {
            key,
            old,
            new: None,
        })
    }

    fn depart(&mut self, meta: &ObjectMeta) {
        if self.writes > 0 {
            self.departed.insert(crate::object::uid(meta).to_owned());
        }
    }

    /// A write of our own is about to be sent; [`end`](Self::end) must follow.
    pub(crate) fn begin(&mut self) -> Begun {
        self.writes += 1;
        Begun { lists: self.lists }
    }

    /// A write has its answer, or will never have one.
    pub(crate) fn end(&mut self) {
        self.writes = self.writes.saturating_sub(1);
        if self.writes == 0 {
            self.departed.clear();
        }
    }

    /// Takes in the answer to a write of our own, before that ends.
    pub(crate) fn wrote(&mut self, begun: Begun, object: K) -> Option<Change<K>> {
        let meta = object.object_meta();
        let key = Key::of(meta);
        let uid = crate::object::uid(meta);
        if self.buried.contains(uid) || self.departed.contains(uid) {
            return None;
        }
        let known = self.objects.get(&key);
        // A list was completed meanwhile and lacks it. What it is too new for
        // the watch will tell; what has come and gone before it, nobody.
        if known.is_none() && begun.lists != self.lists {
            return None;
        }
        if known.is_some_and(|known| is_older(meta, known.object_meta(), false)) {
            return None;
        }
        if let Some(relist) = &mut self.relist {
            relist.touched.insert(key);
        }
        Some(self.put(object))
    }

    /// Takes in that a write of our own has removed the object.
    pub(crate) fn removed(&mut self, key: &Key, uid: &str) -> Option<Change<K>> {
        let known = self.objects.get(key)?;
        if crate::object::uid(known.object_meta()) != uid {
            return None;
        }
        let old = self.take(key);
        self.buried.insert(uid.to_owned());
        if let Some(relist) = &mut self.relist {
            relist.touched.insert(key.clone());
            relist.buried.insert(uid.to_owned());
        }
        Some(Change {
            key: key.clone(),
            old,
            new: None,
        })
    }

    /// A new list begins.
    pub(crate) fn relist(&mut self) {
        self.relist = Some(Relist {
            listed: Vec::new(),
            touched: HashSet::new(),
            buried: HashSet::new(),
        });
    }

    /// One object of the new list.
    pub(crate) fn listed(&mut self, object: K) {
        if let Some(relist) = &mut self.relist {
            relist.listed.push(object);
        }
    }

    /// The new list is complete: what it lacks is gone.
    pub(crate) fn relisted(&mut self) -> Vec<Change<K>> {
        let Some(relist) = self.relist.take() else {
            return Vec::new();
        };
        self.buried = relist.buried;
        self.lists += 1;
        let mut keep = relist.touched;
        let mut changes = Vec::new();
        for object in relist.listed {
            keep.insert(Key::of(object.object_meta()));
            changes.extend(self.observe(object));
        }
        let gone: Vec<Key> = self
            .objects
            .keys()
            .filter(|key| !keep.contains(*key))
            .cloned()
            .collect();
        for key in gone {
            let old = self.take(&key);
            if let Some(old) = &old {
                self.depart(old.object_meta());
            }
            changes.push(Change {
                key,
                old,
                new: None,
            });
        }
        changes
    }
}

fn remove_from(index: &mut HashMap<String, BTreeSet<Key>>, entry: &str, key: &Key) {
    if let Some(keys) = index.get_mut(entry) {
        keys.remove(key);
        if keys.is_empty() {
            index.remove(entry);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::ConfigMap;

    fn object(name: &str, uid: &str, version: u64) -> ConfigMap {
        ConfigMap {
            metadata: ObjectMeta {
                name: Some(name.into()),
                namespace: Some("ns".into()),
                uid: Some(uid.into()),
                resource_version: Some(version.to_string()),
                ..Default::default()
            },
            ..Default::default()
        }
    }

    fn key(name: &str) -> Key {
        Key::new("ns", name)
    }

    fn known(table: &Table<ConfigMap>, name: &str) -> Option<u64> {
        version(table.get(&key(name))?.object_meta())
    }

    /// A write that is answered at once.
    fn write(table: &mut Table<ConfigMap>, object: ConfigMap) {
        let begun = table.begin();
        table.wrote(begun, object);
        table.end();
    }

    #[test]
    fn older_news_never_replaces_newer() {
        let mut table = Table::default();
        write(&mut table, object("a", "1", 7));
        assert!(table.observe(object("a", "1", 5)).is_none());
        assert!(table.observe(object("a", "1", 7)).is_none());
        assert_eq!(known(&table, "a"), Some(7));
        assert!(table.observe(object("a", "1", 10)).is_some());
        assert_eq!(known(&table, "a"), Some(10));
    }

    #[test]
    fn a_removed_object_does_not_come_back_by_older_news() {
        let mut table = Table::default();
        table.observe(object("a", "1", 7));
        assert!(table.removed(&key("a"), "1").is_some());
        assert!(table.observe(object("a", "1", 8)).is_none());
        assert!(table.observe_removed(&object("a", "1", 9)).is_none());
        assert!(table.buried.is_empty());
        assert!(table.observe(object("a", "2", 10)).is_some());
    }

    #[test]
    fn a_write_answered_after_the_news_of_the_removal_brings_nothing_back() {
        let mut table = Table::default();
        table.observe(object("a", "1", 7));
        let first = table.begin();
        table.observe_removed(&object("a", "1", 9));
        let second = table.begin();
        table.end();
        assert!(table.wrote(first, object("a", "1", 8)).is_none());
        assert!(table.wrote(second, object("a", "2", 10)).is_some());
        table.end();
        assert!(table.departed.is_empty());
    }

    #[test]
    fn a_write_answered_after_a_list_that_lacks_the_object_brings_nothing_back() {
        let mut table = Table::default();
        table.observe(object("a", "1", 7));
        let (update, create) = (table.begin(), table.begin());
        table.relist();
        table.relisted();
        assert!(table.wrote(update, object("a", "1", 8)).is_none());
        assert!(table.wrote(create, object("b", "2", 9)).is_none());
        // The watch tells of it if it is there.
        assert!(table.observe(object("b", "2", 9)).is_some());
        assert!(table.wrote(create, object("b", "2", 10)).is_some());
    }

    #[test]
    fn the_late_news_of_a_removal_leaves_the_successor_alone() {
        let mut table = Table::default();
        table.observe(object("a", "1", 7));
        table.removed(&key("a"), "1");
        write(&mut table, object("a", "2", 9));
        assert!(table.observe_removed(&object("a", "1", 8)).is_none());
        assert_eq!(known(&table, "a"), Some(9));
    }

    #[test]
    fn a_new_list_removes_what_it_lacks_but_not_what_was_written_meanwhile() {
        let mut table = Table::default();
        for (name, uid) in [("stays", "1"), ("goes", "2"), ("deleted", "3")] {
            table.observe(object(name, uid, 5));
        }
        table.relist();
        table.listed(object("stays", "1", 6));
        table.listed(object("deleted", "3", 5));
        write(&mut table, object("new", "4", 9));
        table.removed(&key("deleted"), "3");
        let changes = table.relisted();
        let mut names: Vec<_> = table
            .all()
            .map(|object| crate::object::name(&object.metadata).to_owned())
            .collect();
        names.sort();
        assert_eq!(names, ["new", "stays"]);
        assert_eq!(known(&table, "stays"), Some(6));
        assert_eq!(changes.len(), 2);
    }

    #[test]
    fn objects_are_found_by_namespace_and_by_owner() {
        let mut table = Table::default();
        let mut owned = object("a", "1", 1);
        owned.metadata.owner_references = Some(vec![crate::object::controller_reference(
            "ReplicaSet",
            &object("rs", "owner", 1).metadata,
        )]);
        table.observe(owned);
        table.observe(object("b", "2", 2));
        assert_eq!(table.in_namespace("ns").count(), 2);
        assert_eq!(table.owned_by("owner").count(), 1);
        table.observe(object("a", "1", 3));
        assert_eq!(table.owned_by("owner").count(), 0);
        table.removed(&key("a"), "1");
        table.removed(&key("b"), "2");
        assert!(table.namespaces.is_empty());
    }
}
