//! Reservations beside the namespaces and interfaces that exist: what leaks,
//! and freeing it.
//!
//! A runtime that loses a sandbox without DEL (a crash, a reset of its state)
//! leaves a reservation behind. The kernel removes a pod's cable together with
//! its namespace, so a reservation without a cable is one whose pod is gone. A
//! macvlan has no end on the node: there, the sandbox's path says it, as far as
//! who asks sees the runtime's files.
//!
//! An ADD at work holds its reservation ([`ipam::store::Hold`]), and so is never taken for a
//! leak: what is held by nobody and has no cable was left by one that ended.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use ipam::{Attachment, Pod, Reservation, Store};
use linux::link::{self, Link};
use linux::namespace::NetworkNamespace;
use linux::netlink::Socket;
use linux::{neighbour, route};
use serde::Serialize;

use crate::attach;
use crate::configuration::{AttachMode, DEFAULT_BRIDGE};
use crate::error::Error;
use crate::plugin::{self, NOTE_ATTACH, NOTE_BRIDGE, NOTE_NAMESPACE, NOTE_SANDBOX};
use crate::reaper;

/// How a reservation stands to what exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// The pod's interface exists.
    Attached,
    /// An ADD is at work on it.
    InProgress,
    /// Leaked: no interface belongs to it.
    NoInterface,
    /// Leaked: the sandbox's namespace is gone from its path.
    NoSandbox,
}

impl State {
    /// Whether nobody will ever give the addresses back.
    pub fn is_leak(self) -> bool {
        matches!(self, Self::NoInterface | Self::NoSandbox)
    }

    /// In words.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Attached => "attached",
            Self::InProgress => "in progress",
            Self::NoInterface => "leaked: no interface",
            Self::NoSandbox => "leaked: sandbox gone",
        }
    }
}

/// A reservation and how it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// The network it is of.
    pub network: String,
    /// The addresses, one of each family.
    pub addresses: Vec<IpAddr>,
    /// The pod, when the runtime named it.
    pub pod: Option<Pod>,
    /// Container and interface inside.
    #[serde(flatten)]
    pub attachment: Attachment,
    /// The node's end of the pod's cable; none of a macvlan.
    pub host_interface: Option<String>,
    /// Seconds since it was made.
    pub age_seconds: u64,
    /// How it stands.
    pub state: State,
}

/// Something of podwire's that belongs to no reservation.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum Stray {
    /// The node's end of a cable.
    Interface {
        /// Its name.
        name: String,
        /// The network it was made for.
        network: String,
        /// The container it was made for.
        container: String,
    },
    /// A route to one address on a pod's interface.
    Route {
        /// The address.
        address: IpAddr,
        /// The interface.
        interface: String,
    },
    /// A permanent neighbour on a bridge.
    Neighbour {
        /// The address.
        address: IpAddr,
        /// The bridge.
        interface: String,
    },
    /// A file of an address or an attachment.
    File {
        /// Where it lies.
        path: PathBuf,
    },
}

impl std::fmt::Display for Stray {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Interface {
                name,
                network,
                container,
            } => write!(
                formatter,
                "interface {name} of container {container}, network {network}, has no reservation"
            ),
            Self::Route { address, interface } => write!(
                formatter,
                "route to {address} on {interface} is of no reservation"
            ),
            Self::Neighbour { address, interface } => write!(
                formatter,
                "permanent neighbour {address} on {interface} is of no reservation"
            ),
            Self::File { path } => {
                write!(
                    formatter,
                    "file {} belongs to no attachment",
                    path.display()
                )
            }
        }
    }
}

/// All reservations, and what belongs to none.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Findings {
    /// The reservations, by network and address.
    pub reservations: Vec<Entry>,
    /// What belongs to none.
    pub strays: Vec<Stray>,
}

impl Findings {
    /// Reservations that leak.
    pub fn leaks(&self) -> impl Iterator<Item = &Entry> {
        self.reservations
            .iter()
            .filter(|entry| entry.state.is_leak())
    }

    /// Whether nothing leaks.
    pub fn is_clean(&self) -> bool {
        self.strays.is_empty() && self.leaks().next().is_none()
    }
}

/// Compares the reservations below `root` with the network namespace of the
/// caller. Changes nothing.
///
/// # Errors
/// When files or the kernel's tables cannot be read.
pub fn examine(root: &Path) -> Result<Findings, Error> {
    let now = SystemTime::now();
    let mut socket = Socket::open_route()?;
    let mut findings = Findings::default();
    let mut reserved = HashSet::new();
    let mut bridges = BTreeSet::from([DEFAULT_BRIDGE.to_owned()]);
    let mut files = Vec::new();
    for store in Store::all(root)? {
        // The reservations first: what is added meanwhile has its interface then.
        let entries = store.entries()?;
        let cables = attach::cables(&mut socket)?;
        for entry in entries {
            let reservation = entry.reservation;
            let Some(state) = state(&mut socket, &store, &cables, &reservation)? else {
                continue;
            };
            reserved.extend(reservation.addresses.iter().copied());
            bridges.extend(reservation.notes.get(NOTE_BRIDGE).cloned());
            findings.reservations.push(Entry {
                network: store.network().to_owned(),
                host_interface: has_cable(&reservation)
                    .then(|| attach::host_interface(&reservation.attachment)),
                addresses: reservation.addresses,
                pod: reservation.pod,
                attachment: reservation.attachment,
                age_seconds: now
                    .duration_since(entry.since)
                    .map_or(0, |age| age.as_secs()),
                state,
            });
        }
        files.extend(store.strays()?.into_iter().map(|path| Stray::File { path }));
    }
    findings.strays = interfaces_without_reservation(&mut socket, root)?;
    findings
        .strays
        .extend(ways_without_reservation(&mut socket, &bridges, &reserved)?);
    findings.strays.extend(files);
    // What a DEL took away or an ADD made since the reservations were read.
    let mut held = HashSet::new();
    for store in Store::all(root)? {
        for reservation in store.list()? {
            held.extend(reservation.addresses);
        }
    }
    findings.strays.retain(|stray| match stray {
        Stray::Route { address, .. } | Stray::Neighbour { address, .. } => !held.contains(address),
        Stray::File { path } => path.exists(),
        Stray::Interface { .. } => true,
    });
    Ok(findings)
}

/// How many reservations of a network leak.
pub(crate) fn leaks(store: &Store) -> Result<usize, Error> {
    let mut socket = Socket::open_route()?;
    // The reservations first, see [`examine`].
    let reservations = store.list()?;
    let cables = attach::cables(&mut socket)?;
    let mut leaks = 0;
    for reservation in reservations {
        let state = state(&mut socket, store, &cables, &reservation)?;
        leaks += usize::from(state.is_some_and(State::is_leak));
    }
    Ok(leaks)
}

/// What was freed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reclaimed {
    /// Reservations of vanished sandboxes.
    pub reservations: Vec<Reservation>,
    /// Those of pods whose mapped ports were closed, and are open again.
    pub reopened: Vec<Reservation>,
    /// Files of nobody.
    pub files: Vec<PathBuf>,
    /// Reservations that could not be freed or opened again, and why.
    pub failures: Vec<String>,
}

/// Frees what vanished sandboxes hold in the stores below `root`, removes what
/// is left of them on the node, deletes what DELs left to a background
/// process that died, and opens mapped ports again that somebody closed, as
/// services do that flush all nftables tables when they start. Reservations of macvlan pods are left to
/// the runtime's GC: only who sees the runtime's files can judge them.
///
/// # Errors
/// When the stores or the kernel's tables cannot be read. A reservation that
/// cannot be freed does not keep the others.
pub fn reclaim(root: &Path) -> Result<Reclaimed, Error> {
    let mut socket = Socket::open_route()?;
    let mut reclaimed = Reclaimed::default();
    for store in Store::all(root)? {
        let reservations = store.list()?;
        let cables = attach::cables(&mut socket)?;
        for reservation in reservations {
            let attachment = &reservation.attachment;
            if !has_cable(&reservation) {
                continue;
            }
            if cables.contains_key(&attach::host_interface(attachment)) {
                match plugin::reopen(root, &store, &reservation) {
                    Ok(false) => {}
                    Ok(true) => reclaimed.reopened.push(reservation),
                    Err(error) => reclaimed.failures.push(format!("{reservation}: {error}")),
                }
                continue;
            }
            // From here on no ADD can put it to use.
            let Some(_hold) = store.try_hold(attachment)? else {
                continue;
            };
            if link::get(&mut socket, &attach::host_interface(attachment))?.is_some() {
                continue;
            }
            match plugin::free(&store, &reservation) {
                Ok(()) => reclaimed.reservations.push(reservation),
                Err(error) => reclaimed.failures.push(format!("{reservation}: {error}")),
            }
        }
        reclaimed.files.extend(store.remove_strays()?);
    }
    if let Err(error) = reaper::reap(root) {
        reclaimed.failures.push(error.to_string());
    }
    Ok(reclaimed)
}

/// Whether the node has an end of the pod's interface.
fn has_cable(reservation: &Reservation) -> bool {
    let mode = reservation.notes.get(NOTE_ATTACH);
    [AttachMode::Macvlan, AttachMode::Direct]
        .into_iter()
        .all(|without| mode.map(String::as_str) != Some(without.as_str()))
}

/// Whether the sandbox's path leads to its namespace no more.
fn sandbox_gone(reservation: &Reservation) -> bool {
    let Some(path) = reservation.notes.get(NOTE_SANDBOX) else {
        return false;
    };
    match NetworkNamespace::open(path) {
        Ok(namespace) => match (namespace.identity(), reservation.notes.get(NOTE_NAMESPACE)) {
            (Ok(identity), Some(noted)) => identity.to_string() != *noted,
            _ => false,
        },
        Err(error) => error.is_gone(),
    }
}

/// `None` when the reservation went away meanwhile.
fn state(
    socket: &mut Socket,
    store: &Store,
    cables: &HashMap<String, Link>,
    reservation: &Reservation,
) -> Result<Option<State>, Error> {
    let attachment = &reservation.attachment;
    let sandbox_gone = sandbox_gone(reservation);
    let name = attach::host_interface(attachment);
    let attached = if has_cable(reservation) {
        cables.contains_key(&name)
    } else {
        !sandbox_gone
    };
    if attached && !sandbox_gone {
        return Ok(Some(State::Attached));
    }
    let Some(_hold) = store.try_hold(attachment)? else {
        let released = store.find(attachment)?.is_none();
        return Ok((!released).then_some(State::InProgress));
    };
    // Again, now that no ADD is at work.
    Ok(match (has_cable(reservation), sandbox_gone) {
        (_, true) => Some(State::NoSandbox),
        (true, false) if attach::cable(socket, attachment)?.is_some() => Some(State::Attached),
        (_, false) => Some(State::NoInterface),
    })
}

fn interfaces_without_reservation(socket: &mut Socket, root: &Path) -> Result<Vec<Stray>, Error> {
    let mut strays = Vec::new();
    for (network, attachment) in attach::labelled(socket)? {
        // Looked up after the interface was seen: an ADD reserves first.
        let store = Store::new(root, &network)?;
        let reserved = store.find(&attachment)?.is_some()
            || store.releasing()?.into_iter().any(|retired| {
                retired
                    .reservation
                    .is_some_and(|reservation| reservation.attachment == attachment)
            });
        let name = attach::host_interface(&attachment);
        if !reserved && attach::cable(socket, &attachment)?.is_some() {
            strays.push(Stray::Interface {
                name,
                network,
                container: attachment.container_id,
            });
        }
    }
    Ok(strays)
}

/// Routes and neighbours of single addresses that nobody reserved.
fn ways_without_reservation(
    socket: &mut Socket,
    bridges: &BTreeSet<String>,
    reserved: &HashSet<IpAddr>,
) -> Result<Vec<Stray>, Error> {
    let links: HashMap<u32, String> = link::list(socket)?
        .into_iter()
        .map(|link| (link.index, link.name))
        .collect();
    let mut strays = Vec::new();
    let filter = route::Filter {
        table: Some(route::TABLE_MAIN),
        ..route::Filter::own()
    };
    for route in route::list(socket, filter)? {
        let Some(interface) = route.link.and_then(|index| links.get(&index)) else {
            continue;
        };
        let single = route.destination.prefix_len() == route.destination.max_prefix_len();
        let address = route.destination.addr();
        if single && attach::is_host_interface(interface) && !reserved.contains(&address) {
            strays.push(Stray::Route {
                address,
                interface: interface.clone(),
            });
        }
    }
    for bridge in bridges {
        let Some(link) = link::get(socket, bridge)? else {
            continue;
        };
        for entry in neighbour::list(socket, Some(link.index))? {
            // The kernel's own entries for groups are no pods.
            let pod = entry.permanent && !entry.proxy && !entry.address.is_multicast();
            if pod && !reserved.contains(&entry.address) {
                strays.push(Stray::Neighbour {
                    address: entry.address,
                    interface: bridge.clone(),
                });
            }
        }
    }
    Ok(strays)
}
