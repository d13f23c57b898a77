//! Choosing and holding addresses.

use std::fs::{self, File, TryLockError};
use std::net::IpAddr;
use std::ops::Deref;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use ipnet::IpNet;

use super::files::{inode, inode_of, open, read};
use super::memory::Memory;
use super::{
    ATTACHMENTS, Attachment, Claim, Error, Locked, RELEASING, Reservation, Reserved, Store,
};
use crate::ranges::RangeSet;

/// The addresses of a reservation, by who made it. Until it is dropped (or its
/// process dies) the reservation counts as one that is being put to use, which
/// nobody takes for a leak.
#[derive(Debug)]
pub struct Lease {
    addresses: Vec<Reserved>,
    _hold: Hold,
}

impl Deref for Lease {
    type Target = [Reserved];

    fn deref(&self) -> &[Reserved] {
        &self.addresses
    }
}

/// A reservation that nobody else can hold at the same time. Its end gives it
/// free, and does not release the addresses.
#[derive(Debug)]
pub struct Hold {
    _file: File,
}

impl Store {
    /// Reserves one address of each of `sets` for the claim's attachment. An
    /// attachment that holds addresses of all sets already keeps them. Nothing
    /// is reserved when it fails. Waits while another holds the attachment's
    /// reservation.
    pub fn reserve(&self, claim: &Claim, sets: &[RangeSet]) -> Result<Lease, Error> {
        // Both now: on a disk that is full by then, giving back takes no room.
        for folder in [ATTACHMENTS, RELEASING] {
            let folder = self.directory.join(folder);
            if folder.is_dir() {
                continue;
            }
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(&folder)
                .map_err(|source| Error::Io {
                    action: "make the folder",
                    path: folder,
                    source,
                })?;
        }
        let file = self.attachment_file(&claim.attachment);
        let (lock, hold) = self.lock_and_hold(&file, claim.apart)?;
        if let Some(hold) = hold {
            let found = read(&file)?;
            if let Some(found) = &found
                && self.is_complete(found, &file)?
                && let Some(addresses) = describe(&found.addresses, sets)
                && claim.wanted.iter().all(|a| found.addresses.contains(a))
            {
                return Ok(Lease {
                    addresses,
                    _hold: hold,
                });
            }
            // Half made by one that died, or of an earlier configuration.
            self.remove(&file, found.as_ref())?;
        }

        let others = self.others(claim.apart)?;
        let mut memory = Memory::of(self, &lock);
        let mut addresses = Vec::with_capacity(sets.len());
        for set in sets {
            addresses.push(self.choose(set, &claim.wanted, &mut memory, &others)?);
        }
        if let Some(stray) = claim.wanted.iter().find(|a| !addresses.contains(a)) {
            return Err(Error::NotInRanges(*stray));
        }
        let reservation = Reservation {
            attachment: claim.attachment.clone(),
            pod: claim.pod.clone(),
            addresses,
            apart: claim.apart,
            notes: claim.notes.clone(),
        };
        let hold = self.write(&reservation, &file, &memory)?;
        drop(lock);
        Ok(Lease {
            addresses: describe(&reservation.addresses, sets)
                .expect("the addresses were chosen from these sets a moment ago"),
            _hold: hold,
        })
    }

    /// Takes the lock when nobody holds the reservation in `file`, and holds
    /// that reservation if there is one. Nobody else reserves what is not apart
    /// meanwhile, in any network.
    fn lock_and_hold(&self, file: &Path, apart: bool) -> Result<(Locked, Option<Hold>), Error> {
        loop {
            let lock = if apart {
                self.lock()?
            } else {
                self.lock_among_all()?
            };
            let Some(held) = open(file)? else {
                return Ok((lock, None));
            };
            match held.try_lock() {
                Ok(()) => return Ok((lock, Some(Hold { _file: held }))),
                // Waited for without the lock, which the holder may need.
                Err(TryLockError::WouldBlock) => {
                    drop(lock);
                    held.lock()
                }
                Err(TryLockError::Error(source)) => Err(source),
            }
            .map_err(|source| Error::Io {
                action: "hold",
                path: file.to_owned(),
                source,
            })?;
        }
    }

    /// Holds an attachment's reservation; `None` when there is none or another
    /// holds it: it is being put to use.
    pub fn try_hold(&self, attachment: &Attachment) -> Result<Option<Hold>, Error> {
        let path = self.attachment_file(attachment);
        let Some(file) = open(&path)? else {
            return Ok(None);
        };
        match file.try_lock() {
            // What was opened may be an earlier reservation's file.
            Ok(()) if inode(&path)? == Some(inode_of(&file, &path)?) => {
                Ok(Some(Hold { _file: file }))
            }
            Ok(()) | Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(source)) => Err(Error::Io {
                action: "hold",
                path,
                source,
            }),
        }
    }

    /// Chooses an address. What it costs does not depend on how many are held:
    /// files are looked for one by one, of addresses that are likely to be free.
    fn choose(
        &self,
        set: &RangeSet,
        wanted: &[IpAddr],
        memory: &mut Memory<'_>,
        others: &[Self],
    ) -> Result<IpAddr, Error> {
        let is_held = |address| Ok::<_, Error>(self.holder(address, others)?.is_some());
        if let Some(wanted) = wanted.iter().find(|address| set.contains(**address)) {
            if !set.allows(*wanted) {
                return Err(Error::NotInRanges(*wanted));
            }
            if let Some(file) = self.holder(*wanted, others)? {
                let holder = read(&file)?;
                return Err(Error::Taken {
                    address: *wanted,
                    holder: holder.map_or_else(|| "somebody".to_owned(), |r| r.to_string()),
                });
            }
            return Ok(*wanted);
        }
        let last = memory.last_fresh(set);
        for address in set.addresses_after(last) {
            // One that was asked for may have been in use before its turn.
            if !memory.is_resting(address) && !is_held(address)? {
                memory.set_fresh(set, address);
                return Ok(address);
            }
        }
        // All were in use once: the one that has rested longest.
        for address in memory.resting() {
            if set.allows(address) && !is_held(address)? {
                return Ok(address);
            }
        }
        // Not remembered as given back.
        for address in set.addresses() {
            if !is_held(address)? {
                return Ok(address);
            }
        }
        Err(self.full(set, others))
    }

    /// The file that says who holds an address, here or, not apart, in one of `others`.
    fn holder(&self, address: IpAddr, others: &[Self]) -> Result<Option<PathBuf>, Error> {
        let own = self.address_file(address);
        if inode(&own)?.is_some() {
            return Ok(Some(own));
        }
        for other in others {
            let file = other.address_file(address);
            if read(&file)?.is_some_and(|holder| !holder.apart) {
                return Ok(Some(file));
            }
        }
        Ok(None)
    }

    pub(super) fn full(&self, set: &RangeSet, others: &[Self]) -> Error {
        let held = |store: &Self| {
            let retired = store.releasing().unwrap_or_default();
            let retired = retired.into_iter().filter_map(|r| r.reservation);
            let mut held = store.list().unwrap_or_default();
            held.extend(retired);
            held
        };
        let theirs = others.iter().flat_map(held).filter(|r| !r.apart);
        Error::Full {
            ranges: set.describe(),
            held: held(self)
                .into_iter()
                .chain(theirs)
                .filter(|r| r.addresses.iter().any(|a| set.contains(*a)))
                .collect(),
        }
    }

    fn write(
        &self,
        reservation: &Reservation,
        file: &Path,
        memory: &Memory<'_>,
    ) -> Result<Hold, Error> {
        let mut text = serde_json::to_vec_pretty(reservation)
            .expect("a reservation is text, lists and maps of text");
        text.push(b'\n');
        let hold = Hold {
            _file: self.write_whole(file, &text)?,
        };
        for address in &reservation.addresses {
            let path = self.address_file(*address);
            if let Err(source) = fs::hard_link(file, &path) {
                let error = Error::Io {
                    action: "make the reservation",
                    path,
                    source,
                };
                // Undone as far as possible; the first failure is the one to tell.
                let _ = self.remove(file, Some(reservation));
                return Err(error);
            }
        }
        // Taken out of the list of resting ones, so that its next rest counts
        // from its next release.
        if reservation.addresses.iter().any(|a| memory.is_resting(*a)) {
            let rest: Vec<_> = memory
                .resting()
                .filter(|address| !reservation.addresses.contains(address))
                .collect();
            // A full disk must not undo what is complete.
            let _ = self.write_released(&rest);
        }
        memory.save();
        Ok(hold)
    }
}

/// Addresses with subnet and gateway; `None` unless there is one of each set.
fn describe(addresses: &[IpAddr], sets: &[RangeSet]) -> Option<Vec<Reserved>> {
    if addresses.len() != sets.len() {
        return None;
    }
    addresses
        .iter()
        .zip(sets)
        .map(|(address, set)| {
            let (subnet, gateway) = set.subnet_of(*address)?;
            Some(Reserved {
                address: IpNet::new(*address, subnet.prefix_len()).ok()?,
                gateway,
            })
        })
        .collect()
}
