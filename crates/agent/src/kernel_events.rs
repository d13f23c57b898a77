//! What others change in the kernel.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::Sender;

use linux::events::{Event, EventSocket, Group};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use crate::proxy;
use crate::routes::Message;

const GROUPS: [Group; 9] = [
    Group::Links,
    Group::Neighbours,
    Group::Qdiscs,
    Group::Addresses4,
    Group::Addresses6,
    Group::Routes4,
    Group::Routes6,
    Group::Rules4,
    Group::Rules6,
];

/// Subscribes to changes of links, addresses, routes, policy rules, neighbours,
/// forwarding entries and queueing disciplines.
///
/// # Errors
/// When the kernel does not let us.
pub(crate) fn subscribe() -> Result<EventSocket, linux::netlink::Error> {
    EventSocket::open(&GROUPS)
}

/// Tells the routes thread of changes, and the services thread of those of
/// addresses, until the other end of `stop` is closed or nobody listens.
pub(crate) fn run(
    mut socket: EventSocket,
    stop: &UnixStream,
    routes: &Sender<Message>,
    services: &Sender<proxy::Message>,
) {
    loop {
        match forward(&mut socket, stop, routes, services) {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => {
                tracing::error!(
                    "the kernel's notifications broke off: {error}; changes others make to routes \
                     are not noticed until podwire is restarted"
                );
                return;
            }
        }
    }
}

fn forward(
    socket: &mut EventSocket,
    stop: &UnixStream,
    routes: &Sender<Message>,
    services: &Sender<proxy::Message>,
) -> io::Result<bool> {
    {
        let mut waiting = [
            PollFd::new(&*socket, PollFlags::IN),
            PollFd::new(stop, PollFlags::IN),
        ];
        match poll(&mut waiting, None) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(true),
            Err(errno) => return Err(errno.into()),
        }
        if !waiting[1].revents().is_empty() {
            return Ok(false);
        }
    }
    while let Some(events) = socket.receive()? {
        let addresses = events.iter().any(|event| {
            matches!(
                event,
                Event::Address(_) | Event::AddressGone(_) | Event::Lost
            )
        });
        if addresses && services.send(proxy::Message::LocalAddresses).is_err() {
            return Ok(false);
        }
        if routes.send(Message::Kernel(events)).is_err() {
            return Ok(false);
        }
    }
    Ok(true)
}
