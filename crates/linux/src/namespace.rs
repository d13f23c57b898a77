//! Network namespaces: opening, making, entering.
//!
//! A namespace is held by a file descriptor; it lives as long as a descriptor,
//! a process or a bind mount refers to it. Entering is done on threads of
//! their own, so that no thread is ever left in the wrong namespace.
//!
//! Sources: namespaces(7), setns(2), ioctl_ns(2).

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::thread::{LinkNameSpaceType, UnshareFlags};

use crate::netlink;

/// `NS_GET_NSTYPE` of `include/uapi/linux/nsfs.h`: `_IO(0xb7, 3)`.
const NS_GET_NSTYPE: rustix::ioctl::Opcode = 0xb703;
/// `SIOCGSKNS` of `include/uapi/linux/sockios.h`: the network namespace of a socket.
const SIOCGSKNS: rustix::ioctl::Opcode = 0x894c;
/// `CLONE_NEWNET`, what `NS_GET_NSTYPE` answers for a network namespace.
const CLONE_NEWNET: i32 = 0x4000_0000;

/// A failure to open, make or enter a network namespace.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The path cannot be opened.
    #[error("cannot open the network namespace {path}: {source}")]
    Open {
        /// What was opened.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The file is something else.
    #[error(
        "{path} is not a network namespace; give a path such as /proc/PID/ns/net or /run/netns/NAME"
    )]
    NotANamespace {
        /// What was opened.
        path: PathBuf,
    },
    /// No new namespace could be made.
    #[error("cannot make a network namespace (it needs CAP_SYS_ADMIN): {0}")]
    Create(io::Error),
    /// The namespace could not be entered.
    #[error("cannot enter a network namespace (it needs CAP_SYS_ADMIN): {0}")]
    Enter(io::Error),
    /// A netlink socket could not be opened inside the namespace.
    #[error(transparent)]
    Socket(#[from] netlink::Error),
}

impl Error {
    /// Whether the namespace's path does not exist or leads to no namespace:
    /// the namespace is gone.
    pub fn is_gone(&self) -> bool {
        match self {
            Self::Open { source, .. } => matches!(
                rustix::io::Errno::from_io_error(source),
                Some(
                    rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR | rustix::io::Errno::SRCH
                )
            ),
            Self::NotANamespace { .. } => true,
            _ => false,
        }
    }
}

/// What tells two namespaces apart: device and inode of the namespace's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity {
    /// Device number of nsfs.
    pub device: u64,
    /// Inode number.
    pub inode: u64,
}

impl fmt::Display for Identity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "net:[{}]", self.inode)
    }
}

/// A handle on a network namespace that keeps it alive. Clones share the
/// descriptor.
#[derive(Debug, Clone)]
pub struct NetworkNamespace {
    fd: Arc<OwnedFd>,
}

impl AsFd for NetworkNamespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for NetworkNamespace {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl NetworkNamespace {
    /// Opens a namespace by path: a bind mount or `/proc/PID/ns/net`.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let file = File::open(path).map_err(|source| Error::Open {
            path: path.to_owned(),
            source,
        })?;
        Self::verified(file.into(), path)
    }

    /// Opens the network namespace of a process.
    pub fn of_process(pid: u32) -> Result<Self, Error> {
        Self::open(format!("/proc/{pid}/ns/net"))
    }

    /// Opens the calling thread's namespace.
    pub fn current() -> Result<Self, Error> {
        Self::open("/proc/thread-self/ns/net")
    }

    /// Opens the namespace that a socket was opened in: for a netlink socket of
    /// its own a thread has the answer sooner than by [`Self::current`]. Needs
    /// `CAP_NET_ADMIN`.
    pub fn of_socket(socket: impl AsFd) -> Result<Self, Error> {
        let opened = ask(socket.as_fd(), SIOCGSKNS).map_err(|source| Error::Open {
            path: PathBuf::from("of a socket"),
            source,
        })?;
        #[allow(unsafe_code)]
        // SAFETY: SIOCGSKNS answers with a new descriptor, which nobody else has.
        let fd = unsafe { OwnedFd::from_raw_fd(opened) };
        Ok(Self { fd: Arc::new(fd) })
    }

    /// Takes over an open descriptor of a namespace.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, Error> {
        let path = PathBuf::from(format!("file descriptor {}", fd.as_raw_fd()));
        Self::verified(fd, &path)
    }

    fn verified(fd: OwnedFd, path: &Path) -> Result<Self, Error> {
        // Fails with `ENOTTY` for files that are no namespaces.
        if ask(fd.as_fd(), NS_GET_NSTYPE).ok() == Some(CLONE_NEWNET) {
            Ok(Self { fd: Arc::new(fd) })
        } else {
            Err(Error::NotANamespace {
                path: path.to_owned(),
            })
        }
    }

    /// Makes a fresh namespace, holding nothing but a loopback interface that
    /// is down. It is gone when the last handle, process and socket in it are.
    pub fn create() -> Result<Self, Error> {
        on_a_thread(|| {
            #[allow(unsafe_code)]
            // SAFETY: only the network namespace of this short-lived thread
            // changes; descriptors stay shared.
            let made = unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) };
            made.map_err(|errno| Error::Create(errno.into()))?;
            Self::current()
        })
        .map_err(Error::Create)?
    }

    /// Runs `work` inside the namespace, on a thread of its own, and waits for
    /// it. What `work` opens (sockets, files under /proc/sys/net) belongs to
    /// the namespace and can be taken out and used anywhere. A panic of `work`
    /// goes on in the caller.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
        on_a_thread(|| {
            self.enter().map_err(Error::Enter)?;
            Ok(work())
        })
        .map_err(Error::Enter)?
    }

    /// Moves the calling thread into the namespace, for good. Meant for a
    /// thread or process that is to live there; to visit, use [`Self::run`].
    pub fn enter(&self) -> io::Result<()> {
        rustix::thread::move_into_link_name_space(self.fd.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(Into::into)
    }

    /// Runs `work` inside the namespace on the calling thread, which is back in
    /// its own afterwards, whatever happens: a thread that cannot come back ends
    /// its process. Ten times as fast as [`Self::run`]; for programs of one
    /// thread.
    pub fn visit<T>(&self, work: impl FnOnce() -> T) -> Result<T, Error> {
        self.visit_from(&Self::current()?, work)
    }

    /// Like [`Self::visit`], by a thread that is in `home` now.
    pub fn visit_from<T>(&self, home: &Self, work: impl FnOnce() -> T) -> Result<T, Error> {
        struct Home<'a>(&'a NetworkNamespace);
        impl Drop for Home<'_> {
            fn drop(&mut self) {
                if self.0.enter().is_err() {
                    std::process::abort();
                }
            }
        }
        let home = Home(home);
        self.enter().map_err(Error::Enter)?;
        let outcome = work();
        drop(home);
        Ok(outcome)
    }

    /// Opens a netlink socket inside the namespace.
    pub fn netlink(&self, protocol: netlink::Protocol) -> Result<netlink::Socket, Error> {
        Ok(self.run(|| netlink::Socket::open(protocol))??)
    }

    /// Opens a route netlink socket inside the namespace.
    pub fn route_socket(&self) -> Result<netlink::Socket, Error> {
        self.netlink(netlink::Protocol::Route)
    }

    /// Device and inode of the namespace.
    pub fn identity(&self) -> io::Result<Identity> {
        let status = rustix::fs::fstat(&self.fd)?;
        Ok(Identity {
            device: status.st_dev,
            inode: status.st_ino,
        })
    }

    /// Whether both handles refer to the same namespace.
    pub fn is_same_as(&self, other: &Self) -> io::Result<bool> {
        Ok(self.identity()? == other.identity()?)
    }
}

/// Runs `work` on a new thread and waits. The outer error is a failure to
/// start the thread.
fn on_a_thread<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("namespace".to_owned())
            .spawn_scoped(scope, work)?;
        match thread.join() {
            Ok(outcome) => Ok(outcome),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Asks a question that has no argument, [`NS_GET_NSTYPE`] or [`SIOCGSKNS`], for the
/// number that answers it.
fn ask(fd: BorrowedFd<'_>, question: rustix::ioctl::Opcode) -> io::Result<i32> {
    struct Question(rustix::ioctl::Opcode);
    #[allow(unsafe_code)]
    // SAFETY: both take no argument and answer in the return value.
    unsafe impl rustix::ioctl::Ioctl for Question {
        type Output = i32;
        const IS_MUTATING: bool = false;
        fn opcode(&self) -> rustix::ioctl::Opcode {
            self.0
        }
        fn as_ptr(&mut self) -> *mut std::ffi::c_void {
            std::ptr::null_mut()
        }
        unsafe fn output_from_ptr(
            answer: rustix::ioctl::IoctlOutput,
            _: *mut std::ffi::c_void,
        ) -> rustix::io::Result<i32> {
            Ok(answer)
        }
    }
    #[allow(unsafe_code)]
    // SAFETY: any descriptor may be asked; those it means nothing to refuse.
    let answer = unsafe { rustix::ioctl::ioctl(fd, Question(question)) };
    Ok(answer?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_no_namespace_is_refused() {
        let error = NetworkNamespace::open("/proc/self/status").unwrap_err();
        assert!(matches!(error, Error::NotANamespace { .. }), "{error}");
        let error = NetworkNamespace::open("/proc/self/ns/mnt").unwrap_err();
        assert!(matches!(error, Error::NotANamespace { .. }), "{error}");
        assert!(
            NetworkNamespace::open("/nowhere/at/all")
                .unwrap_err()
                .is_gone()
        );
    }

    #[test]
    fn a_socket_tells_the_namespace_it_was_opened_in() {
        let fresh = NetworkNamespace::create().unwrap();
        let socket = fresh.route_socket().unwrap();
        let of = NetworkNamespace::of_socket(&socket).unwrap();
        assert!(of.is_same_as(&fresh).unwrap());
        let error = NetworkNamespace::of_socket(&fresh).unwrap_err();
        assert!(error.to_string().contains("socket"), "{error}");
    }

    #[test]
    fn a_visitor_comes_home_also_when_its_work_panics() {
        let home = NetworkNamespace::current().unwrap();
        let other = NetworkNamespace::create().unwrap();
        let there = other.visit(NetworkNamespace::current).unwrap().unwrap();
        assert!(there.is_same_as(&other).unwrap());
        let panicked = std::panic::catch_unwind(|| other.visit(|| panic!("on purpose")));
        assert!(panicked.is_err());
        let now = NetworkNamespace::current().unwrap();
        assert!(now.is_same_as(&home).unwrap());
    }

    #[test]
    fn a_fresh_namespace_is_another_one_and_the_caller_stays_where_it_was() {
        let before = NetworkNamespace::current().unwrap();
        let fresh = NetworkNamespace::create().unwrap();
        assert!(!fresh.is_same_as(&before).unwrap());
        let inside = fresh.run(NetworkNamespace::current).unwrap().unwrap();
        assert!(inside.is_same_as(&fresh).unwrap());
        assert!(
            NetworkNamespace::current()
                .unwrap()
                .is_same_as(&before)
                .unwrap()
        );
    }
}
