//! The store: every object once, one rising revision for all, and a bounded
//! history for watches.
//!
//! One thread writes. It takes the writes that wait, checks each against the
//! state that those before it leave behind, commits all in one database
//! transaction, and only then shows them to readers: nobody ever sees what a
//! crash could take back, and a burst of writes costs one commit.

mod disk;
mod history;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, RwLock, mpsc};
use std::thread::JoinHandle;

use bytes::Bytes;
use serde_json::Value;
use tokio::sync::{oneshot, watch};

use disk::{Disk, Put};
use history::History;
pub(crate) use history::{Change, Event, line};

/// Errors of the store.
#[derive(Debug, thiserror::Error, Clone)]
pub enum StoreError {
    /// The file cannot be opened as a database.
    #[error(
        "cannot open the store {path}: {reason}; if the file is damaged, remove it to start with an empty cluster"
    )]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system or the database said.
        reason: String,
    },
    /// Another process holds the file.
    #[error("the store {path} is in use by another API server")]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// Reading back failed.
    #[error("cannot read the store: {0}")]
    Read(String),
    /// A commit failed.
    #[error("cannot write to the store: {0}")]
    Write(String),
    /// The object is there already.
    #[error("the object exists already")]
    Exists,
    /// The object is not there.
    #[error("the object does not exist")]
    Missing,
    /// The object has changed since it was read.
    #[error("the object has been modified")]
    Modified,
    /// The namespace to write to does not exist.
    #[error("the namespace does not exist")]
    NoNamespace,
    /// The namespace to write to is being deleted.
    #[error("the namespace is being terminated")]
    NamespaceTerminating,
    /// A watch or a continued list asks for a revision that is forgotten.
    #[error("revision {asked} is too old, the oldest known is {oldest}")]
    Expired {
        /// The revision asked for.
        asked: u64,
        /// The oldest revision from which events are known.
        oldest: u64,
    },
    /// The store is shutting down.
    #[error("the store is closed")]
    Closed,
}

/// Name of the collection that holds namespaces.
pub(crate) const NAMESPACES: &str = "namespaces";

/// Place of an object in its collection.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key {
    /// Namespace; empty for cluster-wide kinds.
    pub(crate) namespace: String,
    /// Name.
    pub(crate) name: String,
}

impl Key {
    /// Makes a key; an empty namespace for cluster-wide kinds.
    pub(crate) fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

/// An object as it is stored: parsed for the server's own use and serialised
/// for everybody who reads it.
#[derive(Debug)]
pub(crate) struct Stored {
    /// Where it is.
    pub(crate) key: Key,
    /// The object in its storage version.
    pub(crate) value: Value,
    /// The same, serialised.
    pub(crate) bytes: Bytes,
    /// The revision of its last change.
    pub(crate) revision: u64,
}

/// What must hold for a write to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expect {
    /// The object must not exist.
    Absent,
    /// The object must exist with this revision.
    Revision(u64),
}

/// One change of one object.
#[derive(Debug)]
pub(crate) struct Write {
    /// Collection: `plural` or `plural.group`.
    pub(crate) collection: Arc<str>,
    /// The object's place.
    pub(crate) key: Key,
    /// Condition on the present state.
    pub(crate) expect: Expect,
    /// The new object, whose `metadata.resourceVersion` the store sets; none
    /// deletes.
    pub(crate) value: Option<Value>,
    /// A namespace that must exist and not be terminating.
    pub(crate) live_namespace: Option<String>,
}

/// A consistent view of (a part of) one collection.
#[derive(Debug)]
pub(crate) struct Snapshot {
    /// The revision that the view shows.
    pub(crate) revision: u64,
    /// The objects, by namespace and name.
    pub(crate) objects: Vec<Arc<Stored>>,
}

struct Collection {
    objects: BTreeMap<Key, Arc<Stored>>,
    history: History,
    changed: watch::Sender<u64>,
}

impl Collection {
    fn new(start: u64) -> Self {
        Self {
            objects: BTreeMap::new(),
            history: History::new(start),
            changed: watch::Sender::new(start),
        }
    }
}

struct State {
    revision: u64,
    /// The revision at start: nothing older is in the history.
    start: u64,
    collections: HashMap<Arc<str>, Collection>,
}

type Reply = Result<Arc<Stored>, StoreError>;

struct Job {
    write: Write,
    reply: oneshot::Sender<Reply>,
}

/// The store. Cheap to share by `Arc`.
pub(crate) struct Store {
    state: Arc<RwLock<State>>,
    jobs: Mutex<Option<mpsc::Sender<Job>>>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

/// A watch's place in the history of a collection.
pub(crate) struct Cursor {
    collection: Arc<str>,
    revision: u64,
    changed: watch::Receiver<u64>,
}

impl Cursor {
    /// The revision up to which all events were handed out.
    pub(crate) fn revision(&self) -> u64 {
        self.revision
    }

    /// Waits until the collection may have something new. False when the
    /// store is closed.
    pub(crate) async fn changed(&mut self) -> bool {
        self.changed.changed().await.is_ok()
    }
}

/// At most this many writes share a commit.
const BATCH: usize = 256;

impl Store {
    /// Opens the store and reads all objects into memory.
    pub(crate) fn open(path: &Path) -> Result<Self, StoreError> {
        let disk = Disk::open(path)?;
        let (revision, rows) = disk.load()?;
        // The first revision is 1, since 0 means "any" in requests.
        let revision = revision.max(1);
        let mut state = State {
            revision,
            start: revision,
            collections: HashMap::new(),
        };
        for row in rows {
            let value: Value = serde_json::from_slice(&row.document)
                .map_err(|e| StoreError::Read(format!("{}: {e}", row.name)))?;
            let key = Key::new(row.namespace, row.name);
            let stored = Stored {
                revision: crate::object::revision(&value).unwrap_or(revision),
                key: key.clone(),
                value,
                bytes: row.document.into(),
            };
            state
                .collections
                .entry(row.collection.into())
                .or_insert_with(|| Collection::new(revision))
                .objects
                .insert(key, Arc::new(stored));
        }
        let state = Arc::new(RwLock::new(state));
        let (sender, receiver) = mpsc::channel();
        let shared = Arc::clone(&state);
        let writer = std::thread::Builder::new()
            .name("store".into())
            .spawn(move || write_loop(&disk, &shared, &receiver))
            .map_err(|e| StoreError::Open {
                path: path.to_owned(),
                reason: format!("no thread for the writer: {e}"),
            })?;
        Ok(Self {
            state,
            jobs: Mutex::new(Some(sender)),
            writer: Mutex::new(Some(writer)),
        })
    }

    fn state(&self) -> std::sync::RwLockReadGuard<'_, State> {
        // A poisoned lock means that the writer panicked between two map
        // inserts; the maps themselves are sound.
        self.state.read().unwrap_or_else(|e| e.into_inner())
    }

    /// Does one write and returns the object as it is stored now (of a
    /// deletion: its last state with the deletion's revision).
    pub(crate) async fn write(&self, write: Write) -> Reply {
        let (reply, answer) = oneshot::channel();
        {
            let jobs = self.jobs.lock().unwrap_or_else(|e| e.into_inner());
            let sender = jobs.as_ref().ok_or(StoreError::Closed)?;
            sender
                .send(Job { write, reply })
                .map_err(|_| StoreError::Closed)?;
        }
        answer.await.unwrap_or(Err(StoreError::Closed))
    }

    /// The last revision given out.
    pub(crate) fn revision(&self) -> u64 {
        self.state().revision
    }

    /// One object.
    pub(crate) fn get(&self, collection: &str, key: &Key) -> Option<Arc<Stored>> {
        self.state()
            .collections
            .get(collection)?
            .objects
            .get(key)
            .cloned()
    }

    /// The objects of a collection, of one namespace or of all.
    pub(crate) fn list(&self, collection: &str, namespace: Option<&str>) -> Snapshot {
        let state = self.state();
        Snapshot {
            revision: state.revision,
            objects: state
                .collections
                .get(collection)
                .map(|c| in_namespace(&c.objects, namespace).cloned().collect())
                .unwrap_or_default(),
        }
    }

    /// The same as it was at an earlier revision.
    ///
    /// # Errors
    /// [`StoreError::Expired`] when the history does not reach back so far.
    pub(crate) fn list_at(
        &self,
        collection: &str,
        namespace: Option<&str>,
        revision: u64,
    ) -> Result<Snapshot, StoreError> {
        let state = self.state();
        let Some(found) = state.collections.get(collection) else {
            return Ok(Snapshot {
                revision,
                objects: Vec::new(),
            });
        };
        found.history.reaches(revision)?;
        let mut objects: BTreeMap<&Key, &Arc<Stored>> = in_namespace(&found.objects, namespace)
            .map(|o| (&o.key, o))
            .collect();
        for event in found.history.newest_first(revision) {
            if namespace.is_some_and(|n| n != event.object.key.namespace) {
                continue;
            }
            match &event.previous {
                Some(previous) => objects.insert(&previous.key, previous),
                None => objects.remove(&event.object.key),
            };
        }
        Ok(Snapshot {
            revision,
            objects: objects.into_values().cloned().collect(),
        })
    }

    /// Starts a watch with the present objects.
    pub(crate) fn watch_now(
        &self,
        collection: &str,
        namespace: Option<&str>,
    ) -> (Snapshot, Cursor) {
        self.ensure(collection);
        let state = self.state();
        let found = &state.collections[collection];
        let objects = in_namespace(&found.objects, namespace).cloned().collect();
        let cursor = Cursor {
            collection: collection.into(),
            revision: state.revision,
            changed: found.changed.subscribe(),
        };
        (
            Snapshot {
                revision: state.revision,
                objects,
            },
            cursor,
        )
    }

    /// Starts a watch after a known revision.
    ///
    /// # Errors
    /// [`StoreError::Expired`] when events after it are forgotten, or when it
    /// lies in the future, as after the store was replaced by an empty one.
    pub(crate) fn watch_from(&self, collection: &str, revision: u64) -> Result<Cursor, StoreError> {
        self.ensure(collection);
        let state = self.state();
        let found = &state.collections[collection];
        found.history.reaches(revision)?;
        if revision > state.revision {
            return Err(StoreError::Expired {
                asked: revision,
                oldest: state.start,
            });
        }
        let mut changed = found.changed.subscribe();
        // What lies between the revision and now has to be looked at too.
        changed.mark_changed();
        Ok(Cursor {
            collection: collection.into(),
            revision,
            changed,
        })
    }

    /// The events since the cursor, at most a bounded number of them; the
    /// cursor moves on.
    ///
    /// # Errors
    /// [`StoreError::Expired`] when the watcher was so slow that the history
    /// has lost events that it has not seen.
    pub(crate) fn events(&self, cursor: &mut Cursor) -> Result<Vec<Arc<Event>>, StoreError> {
        let state = self.state();
        let Some(found) = state.collections.get(&cursor.collection) else {
            return Ok(Vec::new());
        };
        found.history.reaches(cursor.revision)?;
        let events = found.history.after(cursor.revision, BATCH);
        cursor.revision = match events.last() {
            Some(last) if events.len() == BATCH => {
                // There may be more: look again at once.
                cursor.changed.mark_changed();
                last.revision
            }
            // Everything up to now concerns other collections.
            _ => state.revision,
        };
        Ok(events)
    }

    /// Makes an empty collection, so that it can be watched.
    fn ensure(&self, collection: &str) {
        if self.state().collections.contains_key(collection) {
            return;
        }
        let mut state = self.state.write().unwrap_or_else(|e| e.into_inner());
        let start = state.start;
        state
            .collections
            .entry(collection.into())
            .or_insert_with(|| Collection::new(start));
    }

    /// Ends the writer after what it has begun, and closes the file.
    pub(crate) fn close(&self) {
        drop(self.jobs.lock().unwrap_or_else(|e| e.into_inner()).take());
        let writer = self.writer.lock().unwrap_or_else(|e| e.into_inner()).take();
        if let Some(writer) = writer
            && writer.join().is_err()
        {
            tracing::error!("the writer of the store has panicked");
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.close();
    }
}

fn in_namespace<'a>(
    objects: &'a BTreeMap<Key, Arc<Stored>>,
    namespace: Option<&'a str>,
) -> impl Iterator<Item = &'a Arc<Stored>> {
    let first = Key::new(namespace.unwrap_or_default(), "");
    objects
        .range(first..)
        .map(|(_, object)| object)
        .take_while(move |o| namespace.is_none_or(|n| o.key.namespace == n))
}

/// A write that has passed its checks and waits for the commit.
struct Accepted {
    collection: Arc<str>,
    event: Event,
    reply: oneshot::Sender<Reply>,
}

fn write_loop(disk: &Disk, state: &RwLock<State>, jobs: &mpsc::Receiver<Job>) {
    while let Ok(first) = jobs.recv() {
        let mut batch = vec![first];
        while batch.len() < BATCH
            && let Ok(job) = jobs.try_recv()
        {
            batch.push(job);
        }
        write_batch(disk, state, batch);
    }
}

fn write_batch(disk: &Disk, state: &RwLock<State>, batch: Vec<Job>) {
    let mut accepted: Vec<Accepted> = Vec::with_capacity(batch.len());
    let revision = {
        let state = state.read().unwrap_or_else(|e| e.into_inner());
        let mut revision = state.revision;
        // What this batch has changed so far; none stands for deleted.
        let mut overlay: HashMap<(Arc<str>, Key), Option<Arc<Stored>>> = HashMap::new();
        for Job { write, reply } in batch {
            match check(&state, &overlay, write, revision + 1) {
                Ok((collection, event)) => {
                    revision += 1;
                    overlay.insert(
                        (Arc::clone(&collection), event.object.key.clone()),
                        (event.change != Change::Deleted).then(|| Arc::clone(&event.object)),
                    );
                    accepted.push(Accepted {
                        collection,
                        event,
                        reply,
                    });
                }
                // Nobody waits any more when the request was given up.
                Err(error) => drop(reply.send(Err(error))),
            }
        }
        revision
    };
    if accepted.is_empty() {
        return;
    }
    let puts: Vec<Put<'_>> = accepted
        .iter()
        .map(|a| Put {
            collection: &a.collection,
            namespace: &a.event.object.key.namespace,
            name: &a.event.object.key.name,
            document: (a.event.change != Change::Deleted).then_some(&a.event.object.bytes[..]),
        })
        .collect();
    if let Err(error) = disk.commit(revision, &puts) {
        tracing::error!(%error, "a commit failed");
        for a in accepted {
            drop(a.reply.send(Err(error.clone())));
        }
        return;
    }
    let mut replies = Vec::with_capacity(accepted.len());
    {
        let mut state = state.write().unwrap_or_else(|e| e.into_inner());
        state.revision = revision;
        let start = state.start;
        let mut touched: Vec<Arc<str>> = Vec::new();
        for a in accepted {
            let collection = state
                .collections
                .entry(Arc::clone(&a.collection))
                .or_insert_with(|| Collection::new(start));
            let object = Arc::clone(&a.event.object);
            if a.event.change == Change::Deleted {
                collection.objects.remove(&object.key);
            } else {
                collection
                    .objects
                    .insert(object.key.clone(), Arc::clone(&object));
            }
            collection.history.push(a.event);
            if !touched.contains(&a.collection) {
                touched.push(a.collection);
            }
            replies.push((a.reply, object));
        }
        for name in touched {
            if let Some(collection) = state.collections.get(&name) {
                collection.changed.send_replace(revision);
            }
        }
    }
    for (reply, object) in replies {
        drop(reply.send(Ok(object)));
    }
}

/// Checks a write against the state and makes its event.
fn check(
    state: &State,
    overlay: &HashMap<(Arc<str>, Key), Option<Arc<Stored>>>,
    write: Write,
    revision: u64,
) -> Result<(Arc<str>, Event), StoreError> {
    let find = |collection: &Arc<str>, key: &Key| -> Option<Arc<Stored>> {
        match overlay.get(&(Arc::clone(collection), key.clone())) {
            Some(changed) => changed.clone(),
            None => state
                .collections
                .get(collection)
                .and_then(|c| c.objects.get(key))
                .cloned(),
        }
    };
    if let Some(namespace) = &write.live_namespace {
        match find(&NAMESPACES.into(), &Key::new("", namespace.as_str())) {
            None => return Err(StoreError::NoNamespace),
            Some(n) if crate::object::is_deleting(&n.value) => {
                return Err(StoreError::NamespaceTerminating);
            }
            Some(_) => {}
        }
    }
    let previous = find(&write.collection, &write.key);
    match (write.expect, &previous) {
        (Expect::Absent, Some(_)) => return Err(StoreError::Exists),
        (Expect::Revision(_), None) => return Err(StoreError::Missing),
        (Expect::Revision(r), Some(p)) if r != p.revision => return Err(StoreError::Modified),
        _ => {}
    }
    let change = match (&previous, &write.value) {
        (None, Some(_)) => Change::Added,
        (Some(_), Some(_)) => Change::Modified,
        (Some(_), None) => Change::Deleted,
        (None, None) => return Err(StoreError::Missing),
    };
    let mut value = match (write.value, &previous) {
        (Some(value), _) => value,
        (None, Some(previous)) => previous.value.clone(),
        (None, None) => return Err(StoreError::Missing),
    };
    crate::object::set_revision(&mut value, revision);
    let bytes = serde_json::to_vec(&value)
        .map_err(|e| StoreError::Write(format!("cannot serialise: {e}")))?;
    let object = Stored {
        key: write.key,
        value,
        bytes: bytes.into(),
        revision,
    };
    Ok((
        write.collection,
        Event::new(revision, change, Arc::new(object), previous),
    ))
}

#[cfg(test)]
mod tests;
