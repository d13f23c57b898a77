//! The slow end of DEL. Deleting a link makes the kernel wait for all readers
//! (an RCU barrier of 20 to 30 ms), for many links as long as for one. So DEL
//! takes a pod's links out of use and sets them aside: down, in a
//! group of their own. A process in the background (a copy of the plugin's,
//! [`linux::background`]), one at a time for each state directory, closes the
//! ports of the node that led to its pods in one transaction, deletes the whole
//! group with one request, then gives the addresses back, and begins anew if more
//! came meanwhile. A port leads nowhere from the moment the link is down; to be
//! closed it waits for the process in the background, since changes of rules wait
//! for the kernel's barriers too.
//!
//! What is set aside is in the kernel and in the state directory, not in a
//! process: when the one in the background is killed, the next DEL, GC or ADD
//! that finds no address free goes on with its work.
//!
//! Order makes this safe. Links are set aside before the reservation is
//! retired; so the links of every retired reservation are in the group (or gone)
//! when the group is deleted afterwards.

use std::ffi::CStr;
use std::fs::{File, OpenOptions, TryLockError};
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use ipam::{Releasing, Store};
use linux::netlink::Socket;
use linux::{background, link};

use crate::error::Error;
use crate::hostports::{self, Withdrawal};

/// The group of links that are to be deleted: "pwx" and a zero.
pub const GROUP: u32 = 0x7077_7800;

/// Name of the process in the background, as `ps -c` shows it.
const NAME: &CStr = c"podwire-reaper";

/// A name for a link that is set aside while its own is wanted by another: `pwx` and
/// 12 hexadecimal digits that no other has.
pub fn aside_name() -> String {
    // Seeded by the kernel's random numbers, as hash maps are.
    let random = RandomState::new().hash_one(std::process::id());
    format!("pwx{:012x}", random & 0xffff_ffff_ffff)
}

/// Who holds this is the only one to give addresses back for a state directory.
/// The lock belongs to the open file, and goes with its last descriptor.
#[derive(Debug)]
struct Turn {
    file: File,
}

impl Turn {
    fn open(root: &Path) -> Result<Self, Error> {
        let path = root.join("reaper.lock");
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(|error| Error::Io(format!("cannot open {}: {error}", path.display())))?;
        Ok(Self { file })
    }

    /// Whether no other has it.
    fn attempt(&self) -> Result<bool, Error> {
        match self.file.try_lock() {
            Ok(()) => Ok(true),
            Err(TryLockError::WouldBlock) => Ok(false),
            Err(TryLockError::Error(error)) => Err(failed(&error)),
        }
    }
}

fn failed(error: &io::Error) -> Error {
    Error::Io(format!("cannot lock reaper.lock: {error}"))
}

/// Deletes what is set aside now; whether there was anything.
fn work(root: &Path, ports: &mut Withdrawal) -> Result<bool, Error> {
    // Before the links: theirs are in the group by now.
    let retired = retired(root)?;
    let pods: Vec<_> = retired
        .iter()
        .flat_map(|(_, retired)| retired)
        .filter_map(|retired| retired.reservation.as_ref())
        .filter_map(|pod| {
            // A note that cannot be read must not hold up all others; GC finds
            // ports by the addresses they lead to.
            let mappings = hostports::of(pod).ok()?;
            Some((mappings, pod.addresses.as_slice()))
        })
        .collect();
    // Before their addresses are another pod's.
    let closed = ports.withdraw(&pods);
    let links = delete_links()?;
    closed?;
    for (store, retired) in &retired {
        store.free(retired)?;
    }
    Ok(links || !retired.is_empty())
}

fn delete_links() -> Result<bool, Error> {
    match Socket::open_route()?.execute(&link::delete_group(GROUP)) {
        Ok(()) => Ok(true),
        Err(error) if error.not_found() => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Retired reservations of all networks below `root`.
fn retired(root: &Path) -> Result<Vec<(Store, Vec<Releasing>)>, Error> {
    let mut found = Vec::new();
    for store in Store::all(root)? {
        let retired = store.releasing()?;
        if !retired.is_empty() {
            found.push((store, retired));
        }
    }
    Ok(found)
}

/// Has what is set aside deleted in the background: by the process that is at
/// it, else by a new one. Where there can be none, deletes it here and now.
pub(crate) fn start(root: &Path) -> Result<(), Error> {
    let Ok(turn) = Turn::open(root) else {
        return reap(root);
    };
    if !turn.attempt()? {
        // The other looks again after it has given its turn back.
        return Ok(());
    }
    // The new process has the turn from its first moment; the end of this one
    // does not give it back.
    let started = background::run(&[turn.file.as_fd()], || {
        let _ = rustix::thread::set_name(NAME);
        // What fails is left to the next one.
        let _ = take(&turn, root);
    });
    match started {
        Err(_) => work(root, &mut Withdrawal::default()).map(drop),
        Ok(()) => Ok(()),
    }
}

/// What the process in the background does.
fn take(turn: &Turn, root: &Path) -> Result<(), Error> {
    let mut ports = Withdrawal::default();
    while turn.attempt()? {
        work(root, &mut ports)?;
        turn.file.unlock().map_err(|error| failed(&error))?;
        // Who came while the turn was taken left the work to this process.
        if !delete_links()? && retired(root)?.is_empty() {
            break;
        }
    }
    Ok(())
}

/// Deletes what is set aside, here and now, after whoever is at it.
///
/// # Errors
///
/// When the kernel or the state directory refuses.
pub fn reap(root: &Path) -> Result<(), Error> {
    let mut ports = Withdrawal::default();
    if let Ok(turn) = Turn::open(root) {
        turn.file.lock().map_err(|error| failed(&error))?;
        return work(root, &mut ports).map(drop);
    }
    work(root, &mut ports).map(drop)
}
