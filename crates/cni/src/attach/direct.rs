//! Direct: a cable between exactly two pods, without the node.
//!
//! Two pods with the same `pair` share a cable. The first that is attached has
//! one end; the other waits on the node, down, until the second comes. When one
//! of the two is detached while its namespace is there, its end goes back to
//! waiting, for whoever takes its place.

use ipam::{Attachment, Reservation, Store};
use linux::link::{self, VethEnd};
use linux::netlink::Socket;
use sha2::{Digest as _, Sha256};

use super::pod::{Leg, Wire};
use super::{Order, Remains, attempt, pod, result};
use crate::error::Error;
use crate::plugin::NOTE_PAIR;
use crate::reaper;
use crate::result::AddResult;

/// How often an end is looked for that another ADD takes or makes meanwhile.
const ATTEMPTS: usize = 10;
/// Pods of a cable.
const ENDS: usize = 2;

/// Name of the end that waits: `pwd` and 11 hexadecimal digits of a hash of
/// network and pair.
pub fn waiting_interface(network: &str, pair: &str) -> String {
    let mut hash = Sha256::new();
    hash.update(network);
    hash.update([0]);
    hash.update(pair);
    let digits: String = hash.finalize()[..6]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("pwd{}", &digits[..11])
}

pub(super) fn attach(
    socket: &mut Socket,
    inside: &mut Socket,
    order: &Order<'_>,
) -> Result<AddResult, Error> {
    let configuration = order.configuration;
    let pair = configuration.pair.as_deref().unwrap_or_default();
    refuse_a_third(order, pair)?;
    let waiting = waiting_interface(&configuration.network.name, pair);
    let mut done = false;
    for _ in 0..ATTEMPTS {
        let end = VethEnd {
            name: &order.attachment.interface,
            mtu: configuration.mtu,
            mac: Some(order.pod_mac()),
            namespace: Some(order.namespace),
        };
        let outcome = match link::get(socket, &waiting)? {
            Some(found) => socket.execute_all(&link::hand_over(found.index, &end)),
            None => {
                let near = VethEnd {
                    name: &waiting,
                    mtu: configuration.mtu,
                    ..VethEnd::default()
                };
                socket.execute(&link::add_cable(&near, None, &end))
            }
        };
        match outcome {
            // The other pod's ADD was faster.
            Err(error) if error.not_found() || error.already_exists() => {}
            other => {
                other?;
                done = true;
                break;
            }
        }
    }
    if !done {
        return Err(Error::NotAvailable(format!(
            "the cable of pair {pair:?} is taken and made again all the time"
        )));
    }
    let mut legs: Vec<_> = order
        .addresses
        .iter()
        .map(|reserved| Leg {
            address: reserved.address,
            on_wire: true,
            gateway: None,
            gateway_mac: None,
            further: None,
        })
        .collect();
    let own = pod::interface(inside, order)?;
    pod::furnish(inside, order, own.index, Wire::Shared, &mut legs)?;
    pod::wait(inside, order, own.index, &legs)?;
    Ok(result(order, Vec::new(), own.mtu, &legs))
}

/// Reservations of other pods with the same pair.
fn others(store: &Store, pair: &str, attachment: &Attachment) -> Result<Vec<Reservation>, Error> {
    let mut found = store.list()?;
    found.retain(|reservation| {
        reservation.attachment != *attachment
            && reservation.notes.get(NOTE_PAIR).map(String::as_str) == Some(pair)
    });
    Ok(found)
}

fn refuse_a_third(order: &Order<'_>, pair: &str) -> Result<(), Error> {
    let network = &order.configuration.network;
    let store = Store::new(&network.state, &network.name)?;
    let others = others(&store, pair, order.attachment)?;
    if others.len() < ENDS {
        return Ok(());
    }
    let names: Vec<_> = others.iter().map(Reservation::to_string).collect();
    Err(Error::Full(format!(
        "pair {pair:?} is complete: {}",
        names.join(" and ")
    )))
}

/// A cable one of whose pods is detached.
#[derive(Debug)]
pub struct Shared {
    /// Name of an end that waits on the node.
    waiting: String,
    /// Whether the other pod is still there.
    wanted: bool,
}

impl Shared {
    /// The cable of a pod whose reservation names a pair.
    pub fn of(store: &Store, reservation: &Reservation) -> Result<Option<Self>, Error> {
        let Some(pair) = reservation.notes.get(NOTE_PAIR) else {
            return Ok(None);
        };
        Ok(Some(Self {
            waiting: waiting_interface(store.network(), pair),
            wanted: !others(store, pair, &reservation.attachment)?.is_empty(),
        }))
    }
}

/// Takes a pod off its cable. Its end waits for another pod as long as the
/// other one is there; else the cable goes. Whether it was set aside.
pub(super) fn detach(
    socket: &mut Socket,
    cable: &Shared,
    remains: &Remains<'_>,
) -> Result<bool, Error> {
    let mut aside = false;
    if !cable.wanted
        && let Some(left) = link::get(socket, &cable.waiting)?
    {
        let requests = link::retire_as(left.index, &reaper::aside_name(), reaper::GROUP);
        attempt(socket, &requests)?;
        aside = true;
    }
    let Some(namespace) = remains.namespace else {
        return Ok(aside);
    };
    let mut inside = namespace.visit_from(remains.home, Socket::open_route)??;
    let own = link::get(&mut inside, &remains.attachment.interface)?;
    let Some(own) = own.filter(|own| own.mac == Some(remains.mac)) else {
        return Ok(aside);
    };
    if cable.wanted {
        let end = VethEnd {
            name: &cable.waiting,
            namespace: Some(remains.home),
            ..VethEnd::default()
        };
        attempt(&mut inside, &link::hand_over(own.index, &end))?;
        return Ok(false);
    }
    // Both ends, when the other waits on the node, or the one that is left.
    let name = reaper::aside_name();
    let requests = link::retire_to(own.index, remains.home, &name, reaper::GROUP);
    attempt(&mut inside, &requests)?;
    Ok(true)
}
