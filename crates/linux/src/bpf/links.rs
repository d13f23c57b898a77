//! Attached programs, kept so that nobody waits for them when their process ends.
//!
//! Each time a program is taken away from an interface, the kernel waits until nobody
//! handles a packet by what was before (an RCU grace period, some 10 ms), with the lock
//! held that whoever changes links needs (`tcx_link_release` of `kernel/bpf/tcx.c`): there
//! is no way to wait once for several. A process whose descriptors are the last to
//! know the attachments ends only after the last of them, and so does the PID
//! namespace it is in. What is forgotten by a file system the kernel takes away in
//! the background.

use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, unlinkat};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

use super::Error;
use super::system_call::{self, Program};

/// A BPF file system that is mounted nowhere, and gone with its last descriptor.
#[derive(Debug)]
pub(crate) struct Links {
    root: OwnedFd,
    /// How many there were.
    count: AtomicU64,
}

impl Links {
    pub(crate) fn new() -> Result<Arc<Self>, Error> {
        let make = || {
            let context = fsopen("bpf", FsOpenFlags::FSOPEN_CLOEXEC)?;
            fsconfig_create(&context)?;
            let flags = FsMountFlags::FSMOUNT_CLOEXEC;
            fsmount(&context, flags, MountAttrFlags::empty())
        };
        let root = make().map_err(|errno: rustix::io::Errno| Error::FileSystem(errno.into()))?;
        Ok(Arc::new(Self {
            root,
            count: AtomicU64::new(0),
        }))
    }

    /// Attaches a program to what arrives at an interface of the calling thread's
    /// network namespace, behind programs that are there already.
    pub(crate) fn attach(
        self: &Arc<Self>,
        program: &Program,
        interface: u32,
    ) -> Result<Link, Error> {
        let link = program.attach(interface)?;
        let name = self.count.fetch_add(1, Ordering::Relaxed).to_string();
        // Digits only, and so no 0 byte.
        let name = CString::new(name).unwrap_or_default();
        system_call::pin(&link, &self.root, &name).map_err(Error::FileSystem)?;
        Ok(Link {
            all: self.clone(),
            name,
        })
    }
}

/// A program at an interface, for as long as this lives and the interface does.
/// Dropping it waits; the end of the process does not, and takes it away soon.
#[derive(Debug)]
pub(crate) struct Link {
    all: Arc<Links>,
    name: CString,
}

impl Drop for Link {
    fn drop(&mut self) {
        // Many that are only forgotten would hold up whoever changes links for as
        // long as all of them take. What fails here is done by forgetting it.
        let found = system_call::pinned(&self.all.root, &self.name);
        let _ = found.and_then(|link| system_call::detach(&link));
        let _ = unlinkat(&self.all.root, &self.name, AtFlags::empty());
    }
}
