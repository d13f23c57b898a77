//! A blocking NETLINK_NETFILTER socket.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use rustix::net::{RecvFlags, SendFlags, sockopt};

use super::wire::{Message, Messages, NLM_F_DUMP_INTR, NLMSG_DONE, NLMSG_ERROR};

/// Room for the answers to a batch of which many messages are refused.
const RECEIVE_BUFFER: usize = 8 * 1024 * 1024;
/// The kernel's own bound of one dump datagram is 32 KiB.
const DATAGRAM: usize = 64 * 1024;
/// Bookkeeping that the kernel counts against the send buffer besides the bytes.
const SEND_SLACK: usize = 4096;

/// How a dump ended.
pub(crate) enum DumpEnd {
    /// All was read and nothing changed meanwhile.
    Complete,
    /// Something changed while it was read: what was read may be inconsistent.
    Interrupted,
}

/// An answer that says no.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) sequence: u32,
    pub(crate) errno: i32,
    pub(crate) text: Option<String>,
    pub(crate) offset: Option<usize>,
}

impl Refusal {
    fn of(message: Message<'_>) -> Self {
        let (text, offset) = message.explanation();
        Self {
            sequence: message.sequence,
            errno: message.errno(),
            text,
            offset,
        }
    }

    pub(crate) fn error(&self) -> io::Error {
        io::Error::from_raw_os_error(self.errno)
    }
}

impl AsFd for NetfilterSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[derive(Debug)]
pub(crate) struct NetfilterSocket {
    socket: Socket,
    buffer: Vec<u8>,
    send_buffer: usize,
    sequence: u32,
}

impl NetfilterSocket {
    /// Opens it in the network namespace of the calling thread, where it stays.
    pub(crate) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // Older kernels know neither; answers are then only longer or less clear.
        let _ = socket.set_ext_ack(true);
        let _ = socket.set_cap_ack(true);
        // Outside the first user namespace only the unprivileged limit is allowed.
        if sockopt::set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER).is_err() {
            sockopt::set_socket_recv_buffer_size(&socket, RECEIVE_BUFFER)?;
        }
        let send_buffer = sockopt::socket_send_buffer_size(&socket)?;
        Ok(Self {
            socket,
            buffer: vec![0; DATAGRAM],
            send_buffer,
            // Far from the numbers of batches, which count from zero.
            sequence: 0x4000_0000,
        })
    }

    pub(crate) fn next_sequence(&mut self) -> u32 {
        self.sequence = 0x4000_0000 | self.sequence.wrapping_add(1);
        self.sequence
    }

    /// Sends bytes as one datagram, raising the send buffer above its length
    /// first. Answers that an earlier, failed request left are thrown away: the
    /// kernel answers within the call, so none of them can come later.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        while rustix::net::recv(&self.socket, &mut self.buffer, RecvFlags::DONTWAIT).is_ok() {}
        let wanted = bytes.len() + SEND_SLACK;
        if wanted > self.send_buffer {
            if sockopt::set_socket_send_buffer_size_force(&self.socket, wanted).is_err() {
                sockopt::set_socket_send_buffer_size(&self.socket, wanted)?;
            }
            self.send_buffer = sockopt::socket_send_buffer_size(&self.socket)?;
        }
        loop {
            match rustix::net::send(&self.socket, bytes, SendFlags::empty()) {
                Ok(_) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn receive(&mut self) -> io::Result<&[u8]> {
        loop {
            match rustix::net::recv(&self.socket, &mut self.buffer, RecvFlags::TRUNC) {
                Ok((_, length)) if length > self.buffer.len() => {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "the kernel's answer is longer than any it is known to send",
                    ));
                }
                Ok((_, length)) => return Ok(&self.buffer[..length]),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Sends a batch and reads its answers up to that of the message `last`.
    pub(crate) fn commit(&mut self, bytes: &[u8], last: u32) -> io::Result<Vec<Refusal>> {
        self.send(bytes)?;
        let mut refusals = Vec::new();
        loop {
            let datagram = self.receive()?;
            for message in Messages(datagram) {
                if message.kind != NLMSG_ERROR || message.sequence > last {
                    continue; // the tail of an earlier request
                }
                let errno = message.errno();
                if errno != 0 {
                    refusals.push(Refusal::of(message));
                }
                // A refusal of BATCH_BEGIN is one of the whole batch. If it came
                // from the commit, the answer to `last` still follows, and says yes.
                if message.sequence == last || (message.sequence == 0 && errno != 0) {
                    return Ok(refusals);
                }
            }
        }
    }

    /// Sends one request and hands over the messages that answer it; ends at
    /// the acknowledgement, or after the first message if `single`.
    pub(crate) fn request(
        &mut self,
        bytes: &[u8],
        sequence: u32,
        single: bool,
        mut each: impl FnMut(Message<'_>),
    ) -> io::Result<Result<(), Refusal>> {
        self.send(bytes)?;
        loop {
            let datagram = self.receive()?;
            for message in Messages(datagram) {
                if message.sequence != sequence {
                    continue;
                }
                if message.kind == NLMSG_ERROR {
                    return Ok(if message.errno() == 0 {
                        Ok(())
                    } else {
                        Err(Refusal::of(message))
                    });
                }
                each(message);
                if single {
                    return Ok(Ok(()));
                }
            }
        }
    }

    /// Sends `count` requests, numbered from `first` on, each of which the kernel
    /// answers by one message or refuses, and hands the answers over with their
    /// places.
    pub(crate) fn ask(
        &mut self,
        bytes: &[u8],
        first: u32,
        count: usize,
        mut each: impl FnMut(usize, Result<Message<'_>, Refusal>),
    ) -> io::Result<()> {
        self.send(bytes)?;
        let mut missing = count;
        while missing > 0 {
            let datagram = self.receive()?;
            for message in Messages(datagram) {
                let Some(at) = message
                    .sequence
                    .checked_sub(first)
                    .and_then(|at| usize::try_from(at).ok())
                    .filter(|at| *at < count)
                else {
                    continue;
                };
                missing = missing.saturating_sub(1);
                match message.kind {
                    NLMSG_ERROR => each(at, Err(Refusal::of(message))),
                    _ => each(at, Ok(message)),
                }
            }
        }
        Ok(())
    }

    /// Sends a dump request and hands over each message of the answer.
    pub(crate) fn dump(
        &mut self,
        bytes: &[u8],
        sequence: u32,
        mut each: impl FnMut(Message<'_>),
    ) -> io::Result<Result<DumpEnd, Refusal>> {
        self.send(bytes)?;
        let mut interrupted = false;
        loop {
            let datagram = self.receive()?;
            for message in Messages(datagram) {
                if message.sequence != sequence {
                    continue;
                }
                interrupted |= message.flags & NLM_F_DUMP_INTR != 0;
                match message.kind {
                    NLMSG_ERROR | NLMSG_DONE if message.errno() != 0 => {
                        return Ok(Err(Refusal::of(message)));
                    }
                    NLMSG_DONE => {
                        return Ok(Ok(if interrupted {
                            DumpEnd::Interrupted
                        } else {
                            DumpEnd::Complete
                        }));
                    }
                    NLMSG_ERROR => {}
                    _ => each(message),
                }
            }
        }
    }
}
