//! UDP: one thread's loop.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, poll};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::mpsc;

use super::hot::Hot;
use super::tcp::UdpJob;
use super::{Begun, Shared};
use crate::metrics::Transport;

/// The largest datagram of a client worth reading; more is cut and does not parse.
const LARGEST: usize = 4096;
/// Datagrams read from one socket before the others get their turn.
const TURN: usize = 64;
/// Asked of the kernel: room for a burst of a few thousand questions.
const RECEIVE_BUFFER: usize = 4 << 20;

/// A socket at `address`, one of several.
pub(super) fn listen(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::DGRAM,
        Some(Protocol::UDP),
    )?;
    prepare(&socket, address)?;
    socket.set_reuse_port(true)?;
    // Less is given where the system's limit is lower.
    socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
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

/// Answers until `stop` is signalled.
pub(super) fn serve(
    shared: &Shared,
    sockets: &[Arc<UdpSocket>],
    stop: &OwnedFd,
    jobs: &mpsc::Sender<UdpJob>,
) {
    let mut buffer = vec![0; LARGEST];
    let mut hot = Hot::default();
    loop {
        let mut fds: Vec<PollFd<'_>> = std::iter::once(PollFd::new(stop, PollFlags::IN))
            .chain(
                sockets
                    .iter()
                    .map(|socket| PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN)),
            )
            .collect();
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
        let ready: Vec<usize> = (1..fds.len())
            .filter(|index| !fds[*index].revents().is_empty())
            .collect();
        drop(fds);
        for index in ready {
            drain(shared, &sockets[index - 1], &mut buffer, &mut hot, jobs);
        }
    }
}

/// Answers what a socket holds.
fn drain(
    shared: &Shared,
    socket: &Arc<UdpSocket>,
    buffer: &mut [u8],
    hot: &mut Hot,
    jobs: &mpsc::Sender<UdpJob>,
) {
    for _ in 0..TURN {
        let (length, client) = match socket.recv_from(buffer) {
            Ok(received) => received,
            // Nothing left, or an ICMP error of an answer sent before.
            Err(_) => return,
        };
        let since = Instant::now();
        if !shared.admits(client, since) {
            continue;
        }
        let question = &buffer[..length];
        // Read before the zone is: an answer made from an older zone is not kept.
        let serial = shared.serial();
        if let Some((reply, kind)) = hot.find(serial, question) {
            send(socket, reply, client);
            shared.answered_again(client, kind, since);
            continue;
        }
        let reply = match shared.begin(question, client, Transport::Udp, since) {
            Begun::Silence => continue,
            Begun::Reply(reply, kind) => {
                if let Some(kind) = kind {
                    hot.keep(serial, question, &reply, kind);
                }
                reply
            }
            Begun::Ask(job) => match jobs.try_send(UdpJob {
                job,
                socket: socket.clone(),
            }) {
                Ok(()) => continue,
                Err(mpsc::error::TrySendError::Full(UdpJob { job, .. })) => shared.overloaded(&job),
                Err(mpsc::error::TrySendError::Closed(_)) => return,
            },
        };
        send(socket, &reply, client);
    }
}

/// Sends an answer. One that cannot be sent is lost, as datagrams are.
pub(super) fn send(socket: &UdpSocket, reply: &[u8], client: SocketAddr) {
    if let Err(error) = socket.send_to(reply, client) {
        tracing::debug!("answering {client}: {error}");
    }
}
