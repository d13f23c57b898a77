//! The last events of a collection.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use super::{StoreError, Stored};

/// Events kept per collection. Enough for a client to come back after a
/// reconnect while 500 pods start; bounded, since each holds its object.
const LENGTH: usize = 8192;

/// What happened to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// It was created.
    Added,
    /// It was changed.
    Modified,
    /// It is gone.
    Deleted,
}

impl Change {
    /// The event type as watches write it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
        }
    }
}

/// A change with the object before and after it.
#[derive(Debug)]
pub(crate) struct Event {
    /// The revision that the change made.
    pub(crate) revision: u64,
    /// What happened.
    pub(crate) change: Change,
    /// The object after it; of a deletion its last state.
    pub(crate) object: Arc<Stored>,
    /// The object before it.
    pub(crate) previous: Option<Arc<Stored>>,
    line: OnceLock<Bytes>,
}

impl Event {
    pub(super) fn new(
        revision: u64,
        change: Change,
        object: Arc<Stored>,
        previous: Option<Arc<Stored>>,
    ) -> Self {
        Self {
            revision,
            change,
            object,
            previous,
            line: OnceLock::new(),
        }
    }

    /// The event as a line of a watch's answer, made once for all watchers.
    pub(crate) fn line(&self) -> Bytes {
        self.line
            .get_or_init(|| line(self.change, &self.object.bytes))
            .clone()
    }
}

/// A line of a watch's answer with an object serialised before.
pub(crate) fn line(change: Change, object: &[u8]) -> Bytes {
    let mut line = Vec::with_capacity(object.len() + 40);
    line.extend_from_slice(b"{\"type\":\"");
    line.extend_from_slice(change.name().as_bytes());
    line.extend_from_slice(b"\",\"object\":");
    line.extend_from_slice(object);
    line.extend_from_slice(b"}\n");
    line.into()
}

/// A bounded queue of events, oldest first.
#[derive(Debug)]
pub(super) struct History {
    events: VecDeque<Arc<Event>>,
    /// All events after this revision are known.
    complete_after: u64,
}

impl History {
    pub(super) fn new(start: u64) -> Self {
        Self {
            events: VecDeque::new(),
            complete_after: start,
        }
    }

    pub(super) fn push(&mut self, event: Event) {
        self.events.push_back(Arc::new(event));
        if self.events.len() > LENGTH
            && let Some(forgotten) = self.events.pop_front()
        {
            self.complete_after = forgotten.revision;
        }
    }

    /// Whether all events after a revision are known.
    pub(super) fn reaches(&self, revision: u64) -> Result<(), StoreError> {
        if revision < self.complete_after {
            return Err(StoreError::Expired {
                asked: revision,
                oldest: self.complete_after,
            });
        }
        Ok(())
    }

    /// The first events after a revision.
    pub(super) fn after(&self, revision: u64, limit: usize) -> Vec<Arc<Event>> {
        let from = self.events.partition_point(|e| e.revision <= revision);
        self.events.range(from..).take(limit).cloned().collect()
    }

    /// The events after a revision, newest first: to undo them.
    pub(super) fn newest_first(&self, revision: u64) -> impl Iterator<Item = &Arc<Event>> {
        self.events
            .iter()
            .rev()
            .take_while(move |e| e.revision > revision)
    }
}
