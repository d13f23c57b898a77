//! The socket itself.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use netlink_packet_core::{
    DecodeError, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_MULTIPART, NLMSG_DONE, NLMSG_ERROR,
};
use netlink_sys::{SocketAddr, protocols};
use rustix::buffer::spare_capacity;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use super::{Error, Message, Messages, Refusal, Request};

/// The kernel sends dumps in pieces of at most 32 KiB when the reader's buffer
/// allows it; single messages stay below 64 KiB but for a few huge attributes.
const RECEIVE_BUFFER: usize = 64 * 1024;
/// Requests sent before their answers are read. A refusal takes about 800 bytes
/// of the socket's receive queue; the default queue of 208 KiB holds this many
/// with room to spare, so that none is ever lost.
const PIPELINE: usize = 128;
/// Bytes sent in one `sendmsg`; the default send buffer is 208 KiB.
const PIPELINE_BYTES: usize = 64 * 1024;
/// How often a dump is repeated when the table changes below it.
const DUMP_ATTEMPTS: u32 = 64;

/// Netlink families podwire speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Links, addresses, routes, neighbours (`NETLINK_ROUTE`).
    Route,
    /// nf_tables and conntrack (`NETLINK_NETFILTER`).
    Netfilter,
    /// Generic netlink (`NETLINK_GENERIC`).
    Generic,
    /// IPsec (`NETLINK_XFRM`).
    Ipsec,
}

impl Protocol {
    fn number(self) -> isize {
        match self {
            Self::Route => protocols::NETLINK_ROUTE,
            Self::Netfilter => protocols::NETLINK_NETFILTER,
            Self::Generic => protocols::NETLINK_GENERIC,
            Self::Ipsec => protocols::NETLINK_XFRM,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Route => "route",
            Self::Netfilter => "netfilter",
            Self::Generic => "generic",
            Self::Ipsec => "IPsec",
        }
    }
}

/// A netlink socket of the network namespace it was opened in, whatever
/// namespace the thread that uses it is in later.
#[derive(Debug)]
pub struct Socket {
    inner: netlink_sys::Socket,
    sequence: u32,
    sent: u64,
    send_buffer: Vec<u8>,
    /// Of a capacity that is never touched where nothing was received: zeroing it
    /// would take longer than opening the socket.
    receive_buffer: Vec<u8>,
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.as_fd()
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.inner.as_raw_fd()
    }
}

impl Socket {
    /// Opens a socket in the calling thread's network namespace, with
    /// extended acknowledgements and, for route netlink, strict checking (so
    /// that the kernel refuses attributes it does not know and filters dumps).
    pub fn open(protocol: Protocol) -> Result<Self, Error> {
        let failed = |source| Error::Open {
            protocol: protocol.name(),
            source,
        };
        let mut inner = netlink_sys::Socket::new(protocol.number()).map_err(failed)?;
        inner.bind(&SocketAddr::new(0, 0)).map_err(failed)?;
        inner.set_cap_ack(true).map_err(failed)?;
        inner.set_ext_ack(true).map_err(failed)?;
        if protocol == Protocol::Route {
            inner.set_netlink_get_strict_chk(true).map_err(failed)?;
        }
        Ok(Self {
            inner,
            sequence: 0,
            sent: 0,
            send_buffer: Vec::new(),
            receive_buffer: Vec::with_capacity(RECEIVE_BUFFER),
        })
    }

    /// Opens a route netlink socket in the calling thread's network namespace.
    pub fn open_route() -> Result<Self, Error> {
        Self::open(Protocol::Route)
    }

    pub(crate) fn inner(&mut self) -> &mut netlink_sys::Socket {
        &mut self.inner
    }

    /// The number of this socket, which notifications give as that of who asked
    /// for a change. Zero when it cannot be found out.
    pub fn port(&self) -> u32 {
        let mut address = SocketAddr::new(0, 0);
        match self.inner.get_address(&mut address) {
            Ok(()) => address.port_number(),
            Err(_) => 0,
        }
    }

    /// A sequence number not used on this socket for the last four thousand
    /// million messages, never zero (which marks notifications).
    pub fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1).max(1);
        self.sequence
    }

    /// How many requests this socket has sent, each question and each order
    /// counted once: the measure of what a change costs.
    pub fn requests_sent(&self) -> u64 {
        self.sent
    }

    /// Sends `datagram`, one or several encoded messages, to the kernel.
    pub fn send(&self, datagram: &[u8]) -> io::Result<()> {
        loop {
            match rustix::net::send(&self.inner, datagram, SendFlags::empty()) {
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Receives one datagram from the kernel, waiting for it unless the
    /// socket is non-blocking. Datagrams of other processes are dropped.
    /// Fails with `ENOBUFS` when messages were lost and with `EMSGSIZE` when
    /// one did not fit; both leave the socket usable.
    pub fn receive(&mut self) -> io::Result<&[u8]> {
        loop {
            self.receive_buffer.clear();
            let received = rustix::net::recvfrom(
                &self.inner,
                spare_capacity(&mut self.receive_buffer),
                RecvFlags::TRUNC,
            );
            match received {
                Ok((copied, real, sender)) => {
                    if !sender.is_some_and(is_kernel) {
                        continue;
                    }
                    if real > copied {
                        return Err(Errno::MSGSIZE.into());
                    }
                    return Ok(&self.receive_buffer);
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Sends one request and waits for its acknowledgement.
    pub fn execute(&mut self, request: &Request) -> Result<(), Error> {
        self.execute_all(std::slice::from_ref(request))
    }

    /// Sends all requests, many in one `sendmsg`, and waits until they are carried
    /// out. The kernel carries out every request in order, also
    /// those behind a failed one; the first failure is returned.
    pub fn execute_all(&mut self, requests: &[Request]) -> Result<(), Error> {
        self.attempt_all(requests)?.into_iter().collect()
    }

    /// Like [`Self::execute_all`], with an outcome for each request. The outer
    /// error is one of the socket, after which outcomes are unknown.
    pub fn attempt_all(&mut self, requests: &[Request]) -> Result<Vec<Result<(), Error>>, Error> {
        let mut outcomes = Vec::with_capacity(requests.len());
        let mut rest = requests;
        while !rest.is_empty() {
            let mut bytes = std::mem::take(&mut self.send_buffer);
            bytes.clear();
            let mut sequences = Vec::new();
            let mut rest_of_pipeline = rest.iter().take(PIPELINE).peekable();
            while let Some(request) = rest_of_pipeline.next() {
                let sequence = self.next_sequence();
                sequences.push(sequence);
                let last = rest_of_pipeline.peek().is_none() || bytes.len() >= PIPELINE_BYTES;
                request.encode(sequence, last, &mut bytes);
                if last {
                    break;
                }
            }
            let (now, later) = rest.split_at(sequences.len());
            self.sent += u64::try_from(now.len()).unwrap_or(u64::MAX);
            let sent = self.send(&bytes);
            self.send_buffer = bytes;
            sent.map_err(|source| transport(now[0].purpose(), source))?;
            self.acknowledgements(now, &sequences, &mut outcomes)?;
            rest = later;
        }
        Ok(outcomes)
    }

    /// Reads the answers to `requests`: the kernel carries them out one after the
    /// other while they are sent, refuses some, and acknowledges the last.
    fn acknowledgements(
        &mut self,
        requests: &[Request],
        sequences: &[u32],
        outcomes: &mut Vec<Result<(), Error>>,
    ) -> Result<(), Error> {
        let mut found: Vec<Result<(), Refusal>> = vec![Ok(()); requests.len()];
        let mut complete = requests.is_empty();
        while !complete {
            let datagram = self
                .receive()
                .map_err(|source| transport(requests[0].purpose(), source))?;
            for message in Messages::new(datagram) {
                let Some(at) = sequences.iter().position(|s| *s == message.sequence) else {
                    // Left over from an operation that failed half way.
                    continue;
                };
                if message.message_type != NLMSG_ERROR {
                    continue;
                }
                if let Some(outcome) = message.outcome() {
                    found[at] = outcome;
                    complete |= at + 1 == requests.len();
                }
            }
        }
        for (request, outcome) in requests.iter().zip(found) {
            outcomes.push(outcome.map_err(|refusal| request.refused(refusal)));
        }
        Ok(())
    }

    /// Sends one request that the kernel answers with data, and decodes the
    /// answer. `None` from `decode` means "not what I asked for".
    pub fn query<T>(
        &mut self,
        request: &Request,
        mut decode: impl FnMut(Message<'_>) -> Result<Option<T>, DecodeError>,
    ) -> Result<Vec<T>, Error> {
        self.converse(request, &mut decode)?
            .ok_or_else(|| Error::Unsettled {
                purpose: request.purpose().to_owned(),
                attempts: 1,
            })
    }

    /// Lists a table: sends `request` as a dump and decodes every message of
    /// the answer. A dump during which the table changed (`NLM_F_DUMP_INTR`)
    /// or of which messages were lost (`ENOBUFS`) is repeated.
    pub fn dump<T>(
        &mut self,
        request: Request,
        mut decode: impl FnMut(Message<'_>) -> Result<Option<T>, DecodeError>,
    ) -> Result<Vec<T>, Error> {
        let request = request.with_flags(NLM_F_DUMP);
        for _ in 0..DUMP_ATTEMPTS {
            match self.converse(&request, &mut decode) {
                Ok(Some(found)) => return Ok(found),
                Ok(None) => {}
                Err(error) => return Err(error),
            }
        }
        Err(Error::Unsettled {
            purpose: request.purpose().to_owned(),
            attempts: DUMP_ATTEMPTS,
        })
    }

    /// One request and all its answers; `None` when the dump is inconsistent.
    fn converse<T>(
        &mut self,
        request: &Request,
        decode: &mut impl FnMut(Message<'_>) -> Result<Option<T>, DecodeError>,
    ) -> Result<Option<Vec<T>>, Error> {
        let purpose = request.purpose();
        let sequence = self.next_sequence();
        self.sent += 1;
        let mut bytes = std::mem::take(&mut self.send_buffer);
        bytes.clear();
        request.encode(sequence, false, &mut bytes);
        let sent = self.send(&bytes);
        self.send_buffer = bytes;
        sent.map_err(|source| transport(purpose, source))?;

        let mut found = Vec::new();
        let mut interrupted = false;
        // A decoding error must not leave the rest of the answer in the socket.
        let mut malformed = None;
        loop {
            let datagram = match self.receive() {
                Ok(datagram) => datagram,
                // Something was lost, but the dump itself goes on: the kernel
                // pauses it while the queue is full. Read it to its end, then
                // ask again (a second dump beside it would be refused).
                Err(error) if Errno::from_io_error(&error) == Some(Errno::NOBUFS) => {
                    interrupted = true;
                    continue;
                }
                Err(source) => return Err(transport(purpose, source)),
            };
            for message in Messages::new(datagram) {
                if message.sequence != sequence {
                    continue;
                }
                interrupted |= message.flags & NLM_F_DUMP_INTR != 0;
                let complete;
                match message.message_type {
                    NLMSG_ERROR | NLMSG_DONE => match message.outcome() {
                        Some(Ok(())) => complete = true,
                        Some(Err(refusal)) => {
                            return Err(request.refused(refusal));
                        }
                        None => {
                            return Err(Error::Malformed {
                                purpose: purpose.to_owned(),
                                reason: "an acknowledgement without a code".to_owned(),
                            });
                        }
                    },
                    _ => {
                        match decode(message) {
                            Ok(Some(item)) => found.push(item),
                            Ok(None) => {}
                            Err(error) => malformed = Some(error.to_string()),
                        }
                        // One of several is followed by NLMSG_DONE.
                        complete = message.flags & NLM_F_MULTIPART == 0;
                    }
                }
                if let (true, Some(reason)) = (complete, malformed.take()) {
                    return Err(Error::Malformed {
                        purpose: purpose.to_owned(),
                        reason,
                    });
                }
                if complete {
                    return Ok((!interrupted).then_some(found));
                }
            }
        }
    }
}

/// Whether a datagram's sender is the kernel (port 0): any process may send to
/// a netlink port it guesses.
fn is_kernel(sender: rustix::net::SocketAddrAny) -> bool {
    rustix::net::netlink::SocketAddrNetlink::try_from(sender)
        .is_ok_and(|address| address.pid() == 0)
}

fn transport(purpose: &str, source: io::Error) -> Error {
    Error::Transport {
        purpose: purpose.to_owned(),
        source,
    }
}
