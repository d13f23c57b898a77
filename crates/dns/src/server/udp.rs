//! UDP: one thread's loop.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use linux::datagram::{Inbox, Outbox};
use rustix::event::{PollFd, PollFlags, poll};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::mpsc;

use super::cores::Core;
use super::hot::Hot;
use super::tcp::UdpJob;
use super::{Begun, Shared};
use crate::basis::Part;
use crate::metrics::Transport;

/// The largest datagram of a client worth reading; more is cut and does not parse.
const LARGEST: usize = 4096;
/// How often one socket's datagrams are taken before the others get their turn.
const TURNS: usize = 4;
/// Asked of the kernel: room for a burst of a few thousand questions.
const RECEIVE_BUFFER: usize = 4 << 20;

/// A socket at `address`, one of several: for what is sent on `core`.
pub(super) fn listen(address: SocketAddr, core: Core) -> io::Result<UdpSocket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::DGRAM,
        Some(Protocol::UDP),
    )?;
    prepare(&socket, address)?;
    socket.set_reuse_port(true)?;
    // Less is given where the system's limit is lower.
    socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    core.prefer(&socket)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// What sockets of both transports need before they are bound.
pub(super) fn prepare(socket: &Socket, address: SocketAddr) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    // The address may be given to the node only after, or later taken and given again.
    match address {
        SocketAddr::V4(_) => socket.set_freebind_v4(true),
        SocketAddr::V6(_) => {
            socket.set_only_v6(true)?;
            socket.set_freebind_v6(true)
        }
    }
}

/// Answers until `stop` is signalled. About twice `kept` answers are kept ready.
pub(super) fn serve(
    shared: &Shared,
    sockets: &[Arc<UdpSocket>],
    stop: &OwnedFd,
    jobs: &mpsc::Sender<UdpJob>,
    kept: usize,
) {
    let mut desk = Desk {
        shared,
        jobs,
        inbox: Inbox::new(LARGEST),
        outbox: Outbox::default(),
        hot: Hot::new(kept),
    };
    let mut fds: Vec<PollFd<'_>> = std::iter::once(PollFd::new(stop, PollFlags::IN))
        .chain(
            sockets
                .iter()
                .map(|socket| PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN)),
        )
        .collect();
    loop {
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                tracing::error!("waiting for DNS questions: {error}; this thread ends");
                return;
            }
        }
        if !fds[0].revents().is_empty() {
            return;
        }
        for (fd, socket) in fds[1..].iter().zip(sockets) {
            if !fd.revents().is_empty() {
                desk.drain(socket);
            }
        }
    }
}

/// What one thread answers with.
struct Desk<'a> {
    shared: &'a Shared,
    jobs: &'a mpsc::Sender<UdpJob>,
    inbox: Inbox,
    outbox: Outbox,
    hot: Hot,
}

impl Desk<'_> {
    /// Answers what a socket holds.
    fn drain(&mut self, socket: &Arc<UdpSocket>) {
        for _ in 0..TURNS {
            let count = match self.inbox.receive(socket.as_fd()) {
                Ok(count) => count,
                // Nothing left, or an ICMP error of an answer sent before.
                Err(_) => return,
            };
            let since = Instant::now();
            for index in 0..count {
                self.answer(socket, index, since);
            }
            self.outbox.send(socket.as_fd(), |client, error| {
                tracing::debug!("answering {client:?}: {error}");
            });
            if count < self.inbox.room() {
                return;
            }
        }
    }

    /// Answers one of the questions taken last, or gives it away.
    fn answer(&mut self, socket: &Arc<UdpSocket>, index: usize, since: Instant) {
        let (shared, hot) = (self.shared, &mut self.hot);
        let (question, peer) = self.inbox.get(index);
        let Some(client) = peer.address() else { return };
        if !shared.admits(client, since) {
            return;
        }
        // Read before the client's search list is: an answer made with another list
        // than it was looked for with is not kept.
        let lists = || shared.changes.of(Part::Pods);
        let before = lists();
        let class = |key: &mut Vec<u8>| shared.class(client.ip(), key);
        let again = self.outbox.add(peer, |out| {
            hot.find(&shared.changes, question, since, class, out)
        });
        if let Some(about) = again {
            shared.answered_again(client, about, since);
            return;
        }
        let reply = match shared.begin(question, client, Transport::Udp, since) {
            Begun::Silence => return,
            Begun::Reply(reply, lasting) => {
                if let Some((about, basis)) = lasting.filter(|_| lists() == before) {
                    hot.keep(&reply, about, basis, since);
                }
                reply
            }
            Begun::Ask(job) => match self.jobs.try_send(UdpJob {
                job,
                socket: socket.clone(),
            }) {
                Ok(()) => return,
                Err(mpsc::error::TrySendError::Full(UdpJob { job, .. })) => shared.overloaded(&job),
                Err(mpsc::error::TrySendError::Closed(_)) => return,
            },
        };
        self.outbox.add(peer, |out| {
            out.extend_from_slice(&reply);
            Some(())
        });
    }
}

/// Sends an answer. One that cannot be sent is lost, as datagrams are.
pub(super) fn send(socket: &UdpSocket, reply: &[u8], client: SocketAddr) {
    if let Err(error) = socket.send_to(reply, client) {
        tracing::debug!("answering {client}: {error}");
    }
}
