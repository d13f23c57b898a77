//! Ports of the node that lead to ports of pods (capability `portMappings`).
//!
//! All mappings are elements of a few data maps in a table of their own,
//! `inet podwire_hostports`; its chains are the same for one mapping and for a
//! thousand, and are made with the first. The destination is translated in
//! prerouting, and in output for the node's own processes, just before Services
//! are looked at.
//!
//! The source stays as it is but for a pod that reaches itself, to which the
//! answer would not come back, and for the node's loopback addresses, which the
//! pod sees as one of the node's others. Answers to those come by the pod's link
//! and are let in there, and only there, by [`loopback`].

pub(crate) mod loopback;
mod table;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::net::IpAddr;
use std::path::Path;

use ipam::{Reservation, Store};
use linux::conntrack::{self, Conntrack};
use linux::nftables::{Batch, Element, Nftables, Value};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::Error;
pub use table::TABLE;

/// The kernel's error numbers for a table that is not there, and for an element
/// that is.
const ENOENT: i32 = 2;
const EEXIST: i32 = 17;

/// How often a change is begun anew because somebody else's came between.
const ATTEMPTS: usize = 100;

/// A transport protocol with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// `IPPROTO_*`.
    const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

/// A port of the node that leads to a port of the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(try_from = "Raw", rename_all = "camelCase")]
pub struct Mapping {
    /// Port of the node.
    pub host_port: u16,
    /// Port of the pod.
    pub container_port: u16,
    /// Of this protocol.
    pub protocol: Protocol,
    /// The only address of the node it is for; all of both families when absent.
    #[serde(rename = "hostIP", skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<IpAddr>,
}

/// A port of the node that leads to a port of the pod.
#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct Raw {
    /// Port of the node, 1 to 65535.
    host_port: i64,
    /// Port of the pod, 1 to 65535.
    container_port: i64,
    /// "tcp", "udp" or "sctp"; "tcp" when it is missing or empty.
    #[serde(default)]
    protocol: String,
    /// The only address of the node it is for. Missing, empty, 0.0.0.0 and :: are all addresses
    /// of both families.
    #[serde(default, rename = "hostIP")]
    host_ip: String,
}

impl TryFrom<Raw> for Mapping {
    type Error = String;

    fn try_from(raw: Raw) -> Result<Self, String> {
        let port = |number: i64| match u16::try_from(number) {
            Ok(port) if port != 0 => Ok(port),
            _ => Err(format!("portMappings: {number} is no port")),
        };
        Ok(Self {
            host_port: port(raw.host_port)?,
            container_port: port(raw.container_port)?,
            protocol: match raw.protocol.to_ascii_lowercase().as_str() {
                "" | "tcp" => Protocol::Tcp,
                "udp" => Protocol::Udp,
                "sctp" => Protocol::Sctp,
                other => {
                    return Err(format!(
                        "portMappings: protocol {other:?} is none of tcp, udp and sctp"
                    ));
                }
            },
            host_ip: match raw.host_ip.as_str() {
                "" => None,
                text => Some(
                    text.parse::<IpAddr>()
                        .map_err(|_| format!("portMappings: hostIP {text:?} is no address"))?,
                )
                .filter(|address| !address.is_unspecified()),
            },
        })
    }
}

impl fmt::Display for Mapping {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "hostPort {}/{}",
            self.host_port,
            self.protocol.name()
        )?;
        match self.host_ip {
            Some(address) => write!(formatter, " of {address}"),
            None => Ok(()),
        }
    }
}

/// Mappings without those that are given twice.
///
/// # Errors
///
/// When a port of the node is to lead to two of the pod's.
pub(crate) fn distinct(mappings: Vec<Mapping>) -> Result<Vec<Mapping>, Error> {
    let mut distinct: Vec<Mapping> = Vec::with_capacity(mappings.len());
    for mapping in mappings {
        let node = |m: &Mapping| (m.host_ip, m.protocol.number(), m.host_port);
        match distinct.iter().find(|known| node(known) == node(&mapping)) {
            None => distinct.push(mapping),
            Some(known) if *known == mapping => {}
            Some(known) => {
                return Err(Error::Configuration(format!(
                    "portMappings: {mapping} leads to containerPort {} and to {}",
                    known.container_port, mapping.container_port
                )));
            }
        }
    }
    Ok(distinct)
}

/// Elements of one set.
type Elements = HashMap<&'static str, Vec<Element>>;

/// What a pod's mappings come to. `unanswered6` says that its answers do not come
/// back to ::1.
fn elements(mappings: &[Mapping], pod: &[IpAddr], unanswered6: bool) -> Elements {
    let mut elements = Elements::new();
    for address in pod {
        let names = table::names(*address);
        let before = elements.len();
        for mapping in mappings {
            let target = table::target(*address, mapping.container_port);
            let protocol = mapping.protocol.number();
            match mapping.host_ip {
                None => elements.entry(names.any).or_default().push(Element::pair(
                    table::port_key(protocol, mapping.host_port),
                    target,
                )),
                Some(host) if host.is_ipv4() == address.is_ipv4() => {
                    elements
                        .entry(names.single)
                        .or_default()
                        .push(Element::pair(
                            table::address_key(host, protocol, mapping.host_port),
                            target,
                        ));
                }
                Some(_) => {}
            }
        }
        if elements.len() != before {
            let pair = Element::key(table::pair_key(*address));
            elements.entry(names.hairpin).or_default().push(pair);
            if unanswered6 && address.is_ipv6() {
                let key = Element::key(table::bytes(*address));
                elements.entry(table::UNANSWERED6).or_default().push(key);
            }
        }
    }
    elements
}

/// Opens the mappings of a pod with these addresses. `root` is where
/// reservations say which pods there are. A pod that has them already keeps
/// them, also by another of its interfaces: runtimes ask for a container's ports in each
/// of its networks. `unanswered6` says that its answers do not come back to ::1.
///
/// # Errors
///
/// [`Error::HostPort`] when a port is another pod's; when the kernel refuses.
pub(crate) fn publish(
    root: &Path,
    container: &str,
    mappings: &[Mapping],
    pod: &[IpAddr],
    unanswered6: bool,
) -> Result<(), Error> {
    let wanted = elements(mappings, pod, unanswered6);
    if wanted.is_empty() {
        return Ok(());
    }
    let mut nftables = Nftables::open()?;
    change(&mut nftables, |nftables, generation| {
        let Some(generation) = generation else {
            let mut batch = table::batch(None);
            add(&mut batch, &wanted);
            return Ok(Some(batch));
        };
        let mut batch = table::batch(Some(generation));
        if nftables.sets(table::FAMILY, TABLE)?.is_empty() {
            table::make(&mut batch);
            add(&mut batch, &wanted);
            return Ok(Some(batch));
        }
        let mut missing = Elements::new();
        for (set, element, present) in find(nftables, &wanted)? {
            match present {
                Some(present) if present.value == element.value => continue,
                Some(present) => {
                    if let Some(holder) = holder(root, present.value.as_ref())? {
                        if holder.attachment.container_id == container {
                            continue;
                        }
                        return Err(taken(mappings, &holder));
                    }
                    batch.delete_elements(set, [element]);
                }
                None => {}
            }
            missing.entry(set).or_default().push(element.clone());
        }
        add(&mut batch, &missing);
        Ok((!missing.is_empty()).then_some(batch))
    })?;
    forget(&mut None, mappings, pod, |mapping, connection| {
        let target = (connection.reply.source, connection.reply.source_port);
        !pod.iter()
            .any(|pod| target == (*pod, mapping.container_port))
    })
}

fn add(batch: &mut Batch, elements: &Elements) {
    for (set, elements) in elements {
        batch.add_elements(set, elements);
    }
}

/// An element, its set, and what the table holds of its key.
type Comparison<'a> = (&'static str, &'a Element, Option<Element>);

/// Compares elements with the table.
fn find<'a>(nftables: &mut Nftables, elements: &'a Elements) -> Result<Vec<Comparison<'a>>, Error> {
    let wanted: Vec<_> = elements
        .iter()
        .flat_map(|(set, elements)| elements.iter().map(move |element| (*set, element)))
        .collect();
    let keys: Vec<_> = wanted
        .iter()
        .map(|(set, element)| (*set, element.key.as_slice()))
        .collect();
    let found = nftables.find(table::FAMILY, TABLE, &keys)?;
    Ok(wanted
        .into_iter()
        .zip(found)
        .map(|((set, element), found)| (set, element, found))
        .collect())
}

/// The pod that a mapping leads to. One whose pod is gone was left by one that died and
/// may be replaced.
fn holder(root: &Path, target: Option<&Value>) -> Result<Option<Reservation>, Error> {
    let Some(address) = target.and_then(table::target_address) else {
        return Ok(None);
    };
    for store in Store::all(root)? {
        let mut pods = store.list()?.into_iter();
        if let Some(pod) = pods.find(|pod| !pod.apart && pod.addresses.contains(&address)) {
            return Ok(Some(pod));
        }
    }
    Ok(None)
}

fn taken(mappings: &[Mapping], holder: &Reservation) -> Error {
    let asked: Vec<_> = mappings.iter().map(Mapping::to_string).collect();
    Error::HostPort(format!(
        "cannot open {}: a port is taken by {holder}",
        asked.join(", ")
    ))
}

/// Makes a change: at first without looking, then, when something is in the
/// way, by what is there in one generation of the rules.
fn change(
    nftables: &mut Nftables,
    mut plan: impl FnMut(&mut Nftables, Option<u32>) -> Result<Option<Batch>, Error>,
) -> Result<(), Error> {
    let mut generation = None;
    for _ in 0..ATTEMPTS {
        let Some(batch) = plan(nftables, generation)? else {
            return Ok(());
        };
        match nftables.commit(batch) {
            Ok(()) => return Ok(()),
            Err(linux::nftables::Error::GenerationChanged) => {}
            Err(error)
                if generation.is_none() && matches!(error.errno(), Some(ENOENT | EEXIST)) => {}
            Err(error) => return Err(error.into()),
        }
        generation = Some(nftables.generation()?.id);
    }
    Err(linux::nftables::Error::GenerationChanged.into())
}

/// Note of a reservation: its pod's mappings, as JSON.
pub(crate) const NOTE: &str = "portMappings";

/// The mappings of a pod.
///
/// # Errors
///
/// When its reservation's note cannot be read.
pub(crate) fn of(reservation: &Reservation) -> Result<Vec<Mapping>, Error> {
    match reservation.notes.get(NOTE) {
        None => Ok(Vec::new()),
        Some(ports) => serde_json::from_str(ports)
            .map_err(|error| Error::Io(format!("cannot read the reservation's ports: {error}"))),
    }
}

/// Closes mappings of pods that are gone. Its sockets stay open until it ends:
/// closing one makes the kernel wait until no packet can use what was deleted, for
/// 10 to 20 ms, and every other change of rules with it.
#[derive(Default)]
pub(crate) struct Withdrawal {
    nftables: Option<Nftables>,
    conntrack: Option<Conntrack>,
}

impl Withdrawal {
    /// Closes the mappings of pods with these addresses, in one transaction; those
    /// that lead elsewhere by now stay.
    ///
    /// # Errors
    ///
    /// When the kernel refuses. It may be repeated.
    pub(crate) fn withdraw(&mut self, pods: &[(Vec<Mapping>, &[IpAddr])]) -> Result<(), Error> {
        let mut ours = Elements::new();
        for (mappings, pod) in pods {
            for (set, elements) in elements(mappings, pod, true) {
                ours.entry(set).or_default().extend(elements);
            }
        }
        if ours.is_empty() {
            return Ok(());
        }
        let nftables = match &mut self.nftables {
            Some(nftables) => nftables,
            none => none.insert(Nftables::open()?),
        };
        let mut first = Some(nftables.generation()?.id);
        change(nftables, |nftables, generation| {
            let mut batch = table::batch(generation.or(first.take()));
            let mut any = false;
            for (set, element, present) in find(nftables, &ours)? {
                if present.is_some_and(|present| present.value == element.value) {
                    any = true;
                    batch.delete_elements(set, [element]);
                }
            }
            Ok(any.then_some(batch))
        })?;
        for (mappings, pod) in pods {
            forget(&mut self.conntrack, mappings, pod, |_, connection| {
                pod.contains(&connection.reply.source)
            })?;
        }
        Ok(())
    }
}

/// Closes what leads to an address in `ranges` that nobody holds.
pub(crate) fn collect(
    in_ranges: impl Fn(IpAddr) -> bool,
    held: &HashSet<IpAddr>,
) -> Result<(), Error> {
    let mut nftables = Nftables::open()?;
    let stray = |address: IpAddr| in_ranges(address) && !held.contains(&address);
    change(&mut nftables, |nftables, _| {
        let generation = nftables.generation()?.id;
        let mut batch = table::batch(Some(generation));
        let mut any = false;
        for set in table::SETS {
            let elements: Vec<_> = nftables
                .elements(table::FAMILY, TABLE, set)?
                .into_iter()
                .filter(|element| table::pod_of(element).is_some_and(stray))
                .collect();
            any |= !elements.is_empty();
            batch.delete_elements(set, &elements);
        }
        Ok(any.then_some(batch))
    })
}

/// Whether all mappings of a pod are open, to this or another of its interfaces.
pub(crate) fn verify(
    root: &Path,
    container: &str,
    mappings: &[Mapping],
    pod: &[IpAddr],
) -> Result<(), Error> {
    let wanted = elements(mappings, pod, false);
    if wanted.is_empty() {
        return Ok(());
    }
    let mut nftables = Nftables::open()?;
    for (set, element, present) in find(&mut nftables, &wanted)? {
        let led = match present {
            None => false,
            Some(present) if present.value == element.value => true,
            Some(present) => holder(root, present.value.as_ref())?
                .is_some_and(|holder| holder.attachment.container_id == container),
        };
        if !led {
            let asked: Vec<_> = mappings.iter().map(Mapping::to_string).collect();
            return Err(Error::Mismatch(format!(
                "the node's table inet {TABLE} lacks what {} needs in {set}",
                asked.join(", ")
            )));
        }
    }
    Ok(())
}

/// Deletes the connections without a handshake that a change made wrong: the
/// kernel would go on sending their packets where it sent the first.
fn forget(
    socket: &mut Option<Conntrack>,
    mappings: &[Mapping],
    pod: &[IpAddr],
    wrong: impl Fn(&Mapping, &conntrack::Connection) -> bool,
) -> Result<(), Error> {
    for mapping in mappings.iter().filter(|m| m.protocol != Protocol::Tcp) {
        let conntrack = match &mut *socket {
            Some(conntrack) => conntrack,
            none => none.insert(Conntrack::open()?),
        };
        for address in pod {
            let family = match address {
                IpAddr::V4(_) => conntrack::Family::V4,
                IpAddr::V6(_) => conntrack::Family::V6,
            };
            let protocol = mapping.protocol.number();
            for connection in conntrack.list_to_port(family, protocol, mapping.host_port)? {
                let concerned = mapping
                    .host_ip
                    .is_none_or(|host| host == connection.original.destination)
                    && wrong(mapping, &connection);
                if concerned {
                    conntrack.delete(&connection)?;
                }
            }
        }
    }
    Ok(())
}
