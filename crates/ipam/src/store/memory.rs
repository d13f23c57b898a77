//! Which addresses were in use before, and when.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::FileExt as _;

use super::{Error, Locked, Store};
use crate::ranges::RangeSet;

/// Addresses remembered as given back. Ranges with fewer addresses are
/// remembered whole; larger ones take fresh addresses first anyway.
const REMEMBERED: usize = 1024;

/// Bytes of the note in the lock's file, and how many sets it is of at most:
/// longer addresses do not exist.
const FRESH_BYTES: usize = 512;
const FRESH_SETS: usize = 8;

/// Which addresses were in use before: hints, whose loss or damage means nothing
/// worse than an address used again a little early, or found a little late.
pub(super) struct Memory<'a> {
    lock: &'a Locked,
    /// Of each set the last address that was given for the first time.
    fresh: Vec<IpAddr>,
    /// Whether that changed.
    changed: bool,
    /// The file `released`: addresses given back, oldest first, one a line.
    released: String,
}

impl<'a> Memory<'a> {
    pub(super) fn of(store: &Store, lock: &'a Locked) -> Self {
        let mut text = [0; FRESH_BYTES];
        let length = lock.file.read_at(&mut text, 0).unwrap_or(0);
        let text = String::from_utf8_lossy(&text[..length]);
        Self {
            lock,
            // What follows fills the note up.
            fresh: text
                .trim_end()
                .lines()
                .filter_map(|line| line.parse().ok())
                .collect(),
            changed: false,
            released: store.released_text(),
        }
    }

    pub(super) fn last_fresh(&self, set: &RangeSet) -> Option<IpAddr> {
        self.fresh.iter().copied().find(|a| set.contains(*a))
    }

    pub(super) fn set_fresh(&mut self, set: &RangeSet, address: IpAddr) {
        self.fresh.retain(|earlier| !set.contains(*earlier));
        self.fresh.push(address);
        self.changed = true;
    }

    pub(super) fn is_resting(&self, address: IpAddr) -> bool {
        let text = address.to_string();
        self.released.lines().any(|line| line == text)
    }

    pub(super) fn resting(&self) -> impl Iterator<Item = IpAddr> {
        self.released.lines().filter_map(|line| line.parse().ok())
    }

    /// Remembers what was given for the first time, by one write.
    pub(super) fn save(&self) {
        if !self.changed {
            return;
        }
        let newest = self.fresh.iter().rev().take(FRESH_SETS);
        let mut text: String = newest.map(|address| format!("{address}\n")).collect();
        // Over all that was there before.
        text.extend(std::iter::repeat_n(
            '\n',
            FRESH_BYTES.saturating_sub(text.len()),
        ));
        let _ = self.lock.file.write_all_at(text.as_bytes(), 0);
    }
}

impl Store {
    /// Addresses given back, oldest first. A missing or damaged file means
    /// nothing worse than an address used again a little early.
    pub(super) fn released(&self) -> Vec<IpAddr> {
        self.released_text()
            .lines()
            .filter_map(|line| line.parse().ok())
            .collect()
    }

    fn released_text(&self) -> String {
        fs::read_to_string(self.directory.join("released")).unwrap_or_default()
    }

    pub(super) fn write_released(&self, addresses: &[IpAddr]) -> Result<(), Error> {
        let skip = addresses.len().saturating_sub(REMEMBERED);
        let text: String = addresses[skip..]
            .iter()
            .map(|address| format!("{address}\n"))
            .collect();
        self.write_whole(&self.directory.join("released"), text.as_bytes())
            .map(drop)
    }
}
