//! A thread for each core, which answers what is asked there.
//!
//! A client and the server that wakes for it on another core cost each other
//! the way out of that core's sleep, twice a question, and in a virtual machine
//! that is most of the time an answer takes. A datagram that does not leave the
//! node is received on the core that sent it. The kernel gives it to the socket
//! of that core (`SO_INCOMING_CPU` in a group of `SO_REUSEPORT`, Linux 6.2; an
//! older one spreads clients over the sockets), and the thread of that socket
//! runs there as soon as the client waits.

use std::fmt;
use std::io;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use socket2::Socket;

/// A core, by the kernel's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Core(Option<usize>);

/// The cores this process may run on, at most so many of them, and at least one.
/// With more, what is sent on the others is spread over these.
pub(super) fn usable(most: usize) -> Vec<Core> {
    let mut cores: Vec<Core> = match sched_getaffinity(None) {
        Ok(set) => (0..CpuSet::MAX_CPU)
            .filter(|core| set.is_set(*core))
            .take(most)
            .map(|core| Core(Some(core)))
            .collect(),
        // A machine with more cores than such a set has room for.
        Err(_) => Vec::new(),
    };
    if cores.is_empty() {
        cores.push(Core(None));
    }
    cores
}

impl Core {
    /// Gives a socket of several at one address what is sent on this core.
    pub(super) fn prefer(self, socket: &Socket) -> io::Result<()> {
        match self.0 {
            Some(core) => socket.set_cpu_affinity(core),
            None => Ok(()),
        }
    }

    /// Keeps the calling thread on this core.
    pub(super) fn stay(self) {
        let Some(core) = self.0 else { return };
        let mut set = CpuSet::new();
        set.set(core);
        // A core taken away since: it runs where it may then.
        if let Err(error) = sched_setaffinity(None, &set) {
            tracing::debug!("keeping a thread of DNS on core {core}: {error}");
        }
    }
}

impl fmt::Display for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(core) => core.fmt(f),
            None => f.write_str("any"),
        }
    }
}
