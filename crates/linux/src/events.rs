//! Notifications of changes to links, addresses, routes, policy rules, neighbours and
//! queueing disciplines.
//!
//! [`EventSocket`] is non-blocking and has a file descriptor that becomes
//! readable: drive it with `poll` or an asynchronous runtime's wrapper of
//! descriptors.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use crate::address::Address;
use crate::link::Link;
use crate::neighbour::Neighbour;
use crate::netlink::{Error, Messages, Socket};
use crate::qdisc::Qdisc;
use crate::route::Route;
use crate::rule::Rule;
use crate::{address, fdb, link, neighbour, qdisc, route, rule};

/// What to be told of. Numbers are those of `RTNLGRP_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// Links come, change and go.
    Links = 1,
    /// Neighbour entries of both families, and forwarding entries.
    Neighbours = 3,
    /// Queueing disciplines.
    Qdiscs = 4,
    /// IPv4 addresses of interfaces.
    Addresses4 = 5,
    /// IPv4 routes.
    Routes4 = 7,
    /// IPv4 policy rules.
    Rules4 = 8,
    /// IPv6 addresses of interfaces.
    Addresses6 = 9,
    /// IPv6 routes.
    Routes6 = 11,
    /// IPv6 policy rules.
    Rules6 = 19,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A link came or changed.
    Link(Link),
    /// A link went.
    LinkGone(Link),
    /// An address came or changed.
    Address(Address),
    /// An address went.
    AddressGone(Address),
    /// A route came or was replaced.
    Route(Route),
    /// A route went, and the number of the netlink socket that asked for it: the
    /// process's id for its first socket, zero when the kernel does not say.
    RouteGone(Route, u32),
    /// A policy rule came.
    Rule(Rule),
    /// A policy rule went.
    RuleGone(Rule),
    /// A neighbour entry came or changed.
    Neighbour(Neighbour),
    /// A neighbour entry went.
    NeighbourGone(Neighbour),
    /// A forwarding entry of a bridge or VXLAN device came or changed.
    Forwarding(fdb::Entry),
    /// A forwarding entry of a bridge or VXLAN device went.
    ForwardingGone(fdb::Entry),
    /// A queueing discipline came or changed.
    Qdisc(Qdisc),
    /// A queueing discipline went.
    QdiscGone(Qdisc),
    /// IPsec policies came, changed or went ([`crate::ipsec::Changes`]).
    IpsecPolicies,
    /// Notifications were lost because they came faster than they were read:
    /// list the tables again.
    Lost,
}

/// Receive queue asked for, in bytes: thousands of notifications.
const QUEUE: usize = 4 * 1024 * 1024;

/// A socket that receives notifications of one network namespace.
#[derive(Debug)]
pub struct EventSocket {
    socket: Socket,
}

impl AsFd for EventSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for EventSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl EventSocket {
    /// Subscribes to `groups` in the calling thread's network namespace.
    /// Notifications start with this call: list the tables afterwards, so
    /// that nothing falls between.
    pub fn open(groups: &[Group]) -> Result<Self, Error> {
        let mut socket = Socket::open_route()?;
        let failed = |source| Error::Open {
            protocol: "route notifications",
            source,
        };
        // Needs CAP_NET_ADMIN; the default queue serves as well, with more
        // losses in a storm.
        let _ = rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, QUEUE);
        let inner = socket.inner();
        inner.set_non_blocking(true).map_err(failed)?;
        for group in groups {
            inner.add_membership(*group as u32).map_err(failed)?;
        }
        Ok(Self { socket })
    }

    /// Reads what has arrived: the changes of one datagram, or `None` when
    /// there is nothing to read now. Call it until it gives `None` before
    /// waiting for the descriptor again.
    pub fn receive(&mut self) -> io::Result<Option<Vec<Event>>> {
        let datagram = match self.socket.receive() {
            Ok(datagram) => datagram,
            Err(error) => {
                return match Errno::from_io_error(&error) {
                    Some(Errno::AGAIN) => Ok(None),
                    Some(Errno::NOBUFS | Errno::MSGSIZE) => Ok(Some(vec![Event::Lost])),
                    _ => Err(error),
                };
            }
        };
        let mut events = Vec::new();
        for message in Messages::new(datagram) {
            let (kind, payload) = (message.message_type, message.payload);
            let event = if let Some(there) = link::notification(kind) {
                let wrap = if there { Event::Link } else { Event::LinkGone };
                link::parse(payload).map(|link| link.map(wrap))
            } else if let Some(there) = address::notification(kind) {
                let wrap = if there {
                    Event::Address
                } else {
                    Event::AddressGone
                };
                address::parse(payload).map(|address| address.map(wrap))
            } else if let Some(there) = route::notification(kind) {
                let wrap = |route| match there {
                    true => Event::Route(route),
                    false => Event::RouteGone(route, message.port),
                };
                route::parse(payload).map(|route| route.map(wrap))
            } else if let Some(there) = rule::notification(kind) {
                let wrap = if there { Event::Rule } else { Event::RuleGone };
                rule::parse(payload).map(|rule| rule.map(wrap))
            } else if let Some(there) = qdisc::notification(kind) {
                let wrap = if there {
                    Event::Qdisc
                } else {
                    Event::QdiscGone
                };
                qdisc::parse(payload).map(|qdisc| Some(wrap(qdisc)))
            } else if let Some(there) = neighbour::notification(kind) {
                let wrap = if there {
                    Event::Neighbour
                } else {
                    Event::NeighbourGone
                };
                match neighbour::parse(payload) {
                    Ok(None) => {
                        let wrap = if there {
                            Event::Forwarding
                        } else {
                            Event::ForwardingGone
                        };
                        fdb::parse(payload).map(|entry| entry.map(wrap))
                    }
                    neighbour => neighbour.map(|neighbour| neighbour.map(wrap)),
                }
            } else {
                Ok(None)
            };
            match event {
                Ok(Some(event)) => events.push(event),
                Ok(None) => {}
                // What cannot be read may be what the caller waits for.
                Err(_) => events.push(Event::Lost),
            }
        }
        Ok(Some(events))
    }
}

/// Waits until `condition` holds, looking again after each notification of
/// `groups`; `false` when it does not before the deadline. Call it on a thread
/// that is in the network namespace in question.
pub fn wait_for(
    groups: &[Group],
    deadline: Duration,
    mut condition: impl FnMut() -> Result<bool, Error>,
) -> Result<bool, Error> {
    if condition()? {
        return Ok(true);
    }
    let end = Instant::now() + deadline;
    let mut events = EventSocket::open(groups)?;
    // What is waited for may have come before the subscription.
    while !condition()? {
        let rest = end.saturating_duration_since(Instant::now());
        if rest.is_zero() {
            return Ok(false);
        }
        let failed = |source: io::Error| Error::Transport {
            purpose: "wait for a notification".to_owned(),
            source,
        };
        let timeout = Timespec::try_from(rest).map_err(|error| failed(io::Error::other(error)))?;
        let mut fds = [PollFd::new(&events, PollFlags::IN)];
        match rustix::event::poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(failed(errno.into())),
        }
        while events.receive().map_err(failed)?.is_some() {}
    }
    Ok(true)
}
