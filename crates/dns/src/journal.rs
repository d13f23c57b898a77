//! The last questions that were slow or failed.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

/// How many are kept.
const KEPT: usize = 256;

/// One of them.
#[derive(Clone, Debug)]
pub struct Note {
    /// When it was answered.
    pub at: SystemTime,
    /// Who asked.
    pub client: std::net::SocketAddr,
    /// The name.
    pub name: String,
    /// The type.
    pub kind: String,
    /// How it was answered.
    pub code: String,
    /// How long it took.
    pub took: Duration,
    /// Why.
    pub reason: String,
}

/// A bounded list of notes.
#[derive(Debug, Default)]
pub struct Journal {
    notes: Mutex<VecDeque<Note>>,
}

impl Journal {
    /// Adds one; the oldest goes when there are too many.
    pub fn add(&self, note: Note) {
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        if notes.len() == KEPT {
            notes.pop_front();
        }
        notes.push_back(note);
    }

    /// All there are, the oldest first.
    #[must_use]
    pub fn notes(&self) -> Vec<Note> {
        let notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        notes.iter().cloned().collect()
    }
}
