//! What others change in the kernel.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::Sender;

use linux::events::{Event, EventSocket, Group};
use linux::ipsec;
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

/// What notifications come by.
pub(crate) struct Sockets {
    events: EventSocket,
    /// Absent where the kernel has no IPsec.
    policies: Option<ipsec::Changes>,
}

/// Subscribes to changes of links, addresses, routes, policy rules, neighbours,
/// forwarding entries, queueing disciplines and IPsec policies.
///
/// # Errors
/// When the kernel does not let us.
pub(crate) fn subscribe() -> Result<Sockets, linux::netlink::Error> {
    Ok(Sockets {
        events: EventSocket::open(&GROUPS)?,
        policies: ipsec::Changes::open()?,
    })
}

/// Tells the routes thread of changes, and the services thread of those of
/// addresses, until the other end of `stop` is closed or nobody listens.
pub(crate) fn run(
    mut sockets: Sockets,
    stop: &UnixStream,
    routes: &Sender<Message>,
    services: &Sender<proxy::Message>,
) {
    loop {
        match forward(&mut sockets, stop, routes, services) {
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
    sockets: &mut Sockets,
    stop: &UnixStream,
    routes: &Sender<Message>,
    services: &Sender<proxy::Message>,
) -> io::Result<bool> {
    {
        let mut waiting = vec![
            PollFd::new(stop, PollFlags::IN),
            PollFd::new(&sockets.events, PollFlags::IN),
        ];
        let policies = sockets.policies.iter();
        waiting.extend(policies.map(|policies| PollFd::new(policies, PollFlags::IN)));
        match poll(&mut waiting, None) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(true),
            Err(errno) => return Err(errno.into()),
        }
        if !waiting[0].revents().is_empty() {
            return Ok(false);
        }
    }
    if let Some(policies) = &mut sockets.policies
        && policies.any()?
        && routes
            .send(Message::Kernel(vec![Event::IpsecPolicies]))
            .is_err()
    {
        return Ok(false);
    }
    while let Some(events) = sockets.events.receive()? {
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
