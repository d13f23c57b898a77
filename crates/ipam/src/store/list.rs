//! Looking at what is reserved.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::PathBuf;

use super::files::{entries, inode, read, unlink};
use super::{ATTACHMENTS, Attachment, Entry, Error, Locked, RELEASING, Reservation, Store};
use crate::ranges::RangeSet;

impl Store {
    /// What an attachment holds.
    pub fn find(&self, attachment: &Attachment) -> Result<Option<Reservation>, Error> {
        let Some(_lock) = self.lock_if_present()? else {
            return Ok(None);
        };
        let file = self.attachment_file(attachment);
        match read(&file)? {
            Some(found) if self.is_complete(&found, &file)? => Ok(Some(found)),
            _ => Ok(None),
        }
    }

    /// All reservations, ordered by address.
    pub fn list(&self) -> Result<Vec<Reservation>, Error> {
        let entries = self.entries()?;
        Ok(entries.into_iter().map(|entry| entry.reservation).collect())
    }

    /// All reservations with their times, ordered by address.
    pub fn entries(&self) -> Result<Vec<Entry>, Error> {
        let mut found = Vec::new();
        for (path, _) in entries(&self.directory.join(ATTACHMENTS))? {
            let Some(reservation) = read(&path)? else {
                continue;
            };
            let since = match fs::symlink_metadata(&path).and_then(|m| m.modified()) {
                Ok(since) => since,
                // Released meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(source) => {
                    return Err(Error::Io {
                        action: "look at",
                        path,
                        source,
                    });
                }
            };
            found.push(Entry { reservation, since });
        }
        found.sort_by(|a: &Entry, b| a.reservation.addresses.cmp(&b.reservation.addresses));
        Ok(found)
    }

    /// Addresses whose files belong to no attachment, and attachments' files
    /// that are damaged: the remains of others' work on the folder.
    pub fn strays(&self) -> Result<Vec<PathBuf>, Error> {
        match self.lock_if_present()? {
            Some(lock) => self.find_strays(&lock),
            None => Ok(Vec::new()),
        }
    }

    /// Removes what [`Store::strays`] finds, and says what that was.
    pub fn remove_strays(&self) -> Result<Vec<PathBuf>, Error> {
        let Some(lock) = self.lock_if_present()? else {
            return Ok(Vec::new());
        };
        let strays = self.find_strays(&lock)?;
        for path in &strays {
            unlink(path)?;
        }
        Ok(strays)
    }

    fn find_strays(&self, _lock: &Locked) -> Result<Vec<PathBuf>, Error> {
        let mut owners = HashSet::new();
        let mut strays = Vec::new();
        for (path, _) in entries(&self.directory.join(ATTACHMENTS))? {
            match read(&path)? {
                Some(found) if path == self.attachment_file(&found.attachment) => {
                    owners.extend(inode(&path)?);
                }
                _ => strays.push(path),
            }
        }
        for (path, _) in entries(&self.directory.join(RELEASING))? {
            owners.extend(inode(&path)?);
        }
        for address in self.held()? {
            let path = self.address_file(address);
            if inode(&path)?.is_some_and(|own| !owners.contains(&own)) {
                strays.push(path);
            }
        }
        strays.sort();
        Ok(strays)
    }

    /// How many addresses are held.
    pub fn count(&self) -> Result<usize, Error> {
        Ok(self.held()?.len())
    }

    /// Whether every one of `sets` has an address to give, now or as soon as
    /// retired reservations are freed, to a claim that is `apart` or not.
    pub fn has_room(&self, sets: &[RangeSet], apart: bool) -> Result<(), Error> {
        let others = self.others(apart)?;
        let mut held = self.held()?;
        for retired in self.releasing()? {
            for address in retired.reservation.iter().flat_map(|r| &r.addresses) {
                held.remove(address);
            }
        }
        for other in &others {
            let theirs = other.list()?.into_iter().filter(|r| !r.apart);
            held.extend(theirs.flat_map(|r| r.addresses));
        }
        for set in sets {
            if set.addresses().all(|address| held.contains(&address)) {
                return Err(self.full(set, &others));
            }
        }
        Ok(())
    }
}
