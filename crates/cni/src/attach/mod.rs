//! Attaching a pod: what is made on the node and in the pod's namespace.
//!
//! `bridge` and `routed` tie the pod with a veth pair whose pod end is made directly in
//! the pod's namespace, and both have the node route *all* of a pod's packets,
//! also those to a pod of the same bridge (the pod has no route to its subnet
//! but by the gateway). So the node sees both directions of every connection,
//! and answers of Services are translated back, whether or not `br_netfilter`
//! looks at bridged frames.
//!
//! Neighbour entries are permanent on both sides where both addresses are
//! known: no question is asked, no answer can be forged, and an address used
//! again never meets a stale entry.

mod bridge;
mod direct;
mod macvlan;
mod node;
mod pod;
mod routed;

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use ipam::{Attachment, Reserved};
use linux::link::{self, MacAddress};
use linux::namespace::NetworkNamespace;
use linux::netlink::{Request, Socket};
use linux::{neighbour, sysctl};
use sha2::{Digest as _, Sha256};

use crate::configuration::{AttachMode, Configuration};
use crate::error::Error;
use crate::result::{AddResult, Address, Interface, Route};
use crate::{bandwidth, reaper};

pub use direct::{Shared, waiting_interface};
pub use pod::verify as verify_pod;

/// All that an attachment is made from.
#[derive(Debug, Clone, Copy)]
pub struct Order<'a> {
    /// The network.
    pub configuration: &'a Configuration,
    /// Container and interface.
    pub attachment: &'a Attachment,
    /// The node's namespace, in which the calling thread is.
    pub home: &'a NetworkNamespace,
    /// The pod's namespace.
    pub namespace: &'a NetworkNamespace,
    /// Its path, for the result.
    pub sandbox: &'a Path,
    /// The pod's addresses.
    pub addresses: &'a [Reserved],
}

/// Name of the node's end of a pod's cable: `pw` and 11 hexadecimal digits of
/// a hash, the same for every ADD and DEL of one container and interface.
pub fn host_interface(attachment: &Attachment) -> String {
    format!("{HOST_INTERFACE}{}", &attachment.key()[..11])
}

/// What the names of the node's ends of cables begin with.
pub(crate) const HOST_INTERFACE: &str = "pw";

/// The node's interface by which the packets of a `bridge` or `routed` pod come to
/// its IP.
pub(crate) fn node_interface(attach: AttachMode, bridge: &str, attachment: &Attachment) -> String {
    match attach {
        AttachMode::Bridge => bridge.to_owned(),
        _ => host_interface(attachment),
    }
}

/// Hardware address of one end of a pod's cable. A chosen address, unlike a
/// random one, is left alone by link managers, and is known before the
/// interface exists.
fn mac_of(attachment: &Attachment, end: &str) -> MacAddress {
    let mut hash = Sha256::new();
    hash.update(attachment.key());
    hash.update(end);
    let digest = hash.finalize();
    MacAddress::local([digest[0], digest[1], digest[2], digest[3], digest[4]])
}

/// The hardware address of a pod's interface: the one asked for, else one made
/// of container and interface.
pub fn pod_mac(attachment: &Attachment, wanted: Option<MacAddress>) -> MacAddress {
    wanted.unwrap_or_else(|| mac_of(attachment, "pod"))
}

impl Order<'_> {
    fn pod_mac(&self) -> MacAddress {
        pod_mac(self.attachment, self.configuration.mac)
    }
}

/// Attaches a pod: `socket` is of the node's namespace, `inside` of the pod's.
/// What was made when it fails is undone by [`detach`].
pub fn attach(
    socket: &mut Socket,
    inside: &mut Socket,
    order: &Order<'_>,
) -> Result<AddResult, Error> {
    match order.configuration.attach {
        AttachMode::Bridge => bridge::attach(socket, inside, order),
        AttachMode::Routed => routed::attach(socket, inside, order),
        AttachMode::Macvlan => macvlan::attach(socket, inside, order),
        AttachMode::Direct => direct::attach(socket, inside, order),
    }
}

/// What is known of an attachment that is to be removed.
#[derive(Debug)]
pub struct Remains<'a> {
    /// Container and interface.
    pub attachment: &'a Attachment,
    /// The cable it shares with another pod.
    pub cable: Option<&'a Shared>,
    /// Name of the bridge it may be attached to.
    pub bridge: Option<&'a str>,
    /// Whether there may be an interface that limits what the pod sends.
    pub limited: bool,
    /// Addresses it holds.
    pub addresses: &'a [IpAddr],
    /// The hardware address of the pod's interface.
    pub mac: MacAddress,
    /// The node's namespace, in which the calling thread is.
    pub home: &'a NetworkNamespace,
    /// The pod's namespace, when it is still there.
    pub namespace: Option<&'a NetworkNamespace>,
}

/// Detaches a pod, whatever of the attachment exists: it stops being reachable
/// at once, and its interfaces are set aside for the [`reaper`], their names
/// free for new ones. Whether there were any.
pub fn detach(socket: &mut Socket, remains: &Remains<'_>) -> Result<bool, Error> {
    if let Some(cable) = remains.cable {
        return direct::detach(socket, cable, remains);
    }
    let cable = link::get(socket, &host_interface(remains.attachment))?;
    let shaper = match remains.limited {
        true => link::get(socket, &bandwidth::interface(remains.attachment))?,
        false => None,
    };
    let mut requests = Vec::new();
    // Renaming takes as long again: an ADD that needs the name does it.
    requests.extend(
        cable
            .as_ref()
            .map(|cable| link::retire(cable.index, reaper::GROUP)),
    );
    if let Some(shaper) = &shaper {
        let name = reaper::aside_name();
        requests.extend(link::retire_as(shaper.index, &name, reaper::GROUP));
    }
    if !remains.addresses.is_empty()
        && let Some(name) = remains.bridge
    {
        let bridge = match cable.as_ref().and_then(|cable| cable.master) {
            Some(bridge) => Some(bridge),
            None => link::get(socket, name)?.map(|bridge| bridge.index),
        };
        requests.extend(bridge.into_iter().flat_map(|bridge| {
            let addresses = remains.addresses.iter();
            addresses.map(move |address| neighbour::delete(bridge, *address))
        }));
    }
    if remains.addresses.is_empty()
        && let Some(bridge) = cable.as_ref().and_then(|cable| cable.master)
    {
        // The reservation was lost, and with it which addresses these were.
        let entries = neighbour::list(socket, Some(bridge))?.into_iter();
        let ours = entries.filter(|entry| entry.permanent && entry.mac == Some(remains.mac));
        requests.extend(ours.map(|entry| neighbour::delete(bridge, entry.address)));
    }
    attempt(socket, &requests)?;
    let inside = match remains.namespace {
        Some(namespace) => detach_inside(namespace, remains, cable.as_ref())?,
        None => false,
    };
    Ok(cable.is_some() || shaper.is_some() || inside)
}

/// Frees the name of the pod's interface in its namespace, which may live on
/// and be attached again.
fn detach_inside(
    namespace: &NetworkNamespace,
    remains: &Remains<'_>,
    cable: Option<&link::Link>,
) -> Result<bool, Error> {
    let mut socket = namespace.visit_from(remains.home, Socket::open_route)??;
    let Some(own) = link::get(&mut socket, &remains.attachment.interface)? else {
        return Ok(false);
    };
    match own.kind.as_deref() {
        // The other end goes when the cable does.
        Some("veth") if cable.is_some_and(|c| c.peer == Some(own.index)) => {
            // Down, so that its addresses and routes are in no other's way.
            let requests = [
                link::set_down(own.index),
                link::set_name(own.index, &reaper::aside_name()),
            ];
            attempt(&mut socket, &requests)?;
            Ok(true)
        }
        // Known by its address: another interface of the name, for which ADD
        // was refused, is not ours to delete.
        Some("macvlan") if own.mac == Some(remains.mac) => {
            let name = reaper::aside_name();
            let requests = link::retire_to(own.index, remains.home, &name, reaper::GROUP);
            attempt(&mut socket, &requests)?;
            Ok(true)
        }
        _ => Ok(false),
    }
}

/// Carries requests out; what is not there any more is fine.
fn attempt(socket: &mut Socket, requests: &[Request]) -> Result<(), Error> {
    for outcome in socket.attempt_all(requests)? {
        match outcome {
            Err(error) if !error.not_found() => return Err(error.into()),
            _ => {}
        }
    }
    Ok(())
}

/// Names the network, container and interface on the node's end of a cable,
/// for GC and for those who list interfaces. None when it is too long for the
/// kernel: GC then knows the cable by its reservation alone.
fn label(order: &Order<'_>, cable: u32) -> Option<Request> {
    let text = format!(
        "{LABEL} {} {} {}",
        order.configuration.network.name, order.attachment.container_id, order.attachment.interface
    );
    (text.len() <= link::ALIAS_LENGTH).then(|| link::set_alias(cable, &text))
}

const LABEL: &str = "podwire";

/// Attachments of a network whose cables the node has.
pub fn attachments(socket: &mut Socket, network: &str) -> Result<Vec<Attachment>, Error> {
    Ok(labelled(socket)?
        .into_iter()
        .filter_map(|(of, attachment)| (of == network).then_some(attachment))
        .collect())
}

/// Attachments whose cables the node has, with the names of their networks.
pub fn labelled(socket: &mut Socket) -> Result<Vec<(String, Attachment)>, Error> {
    Ok(link::list(socket)?.iter().filter_map(label_of).collect())
}

/// The network and the attachment that a cable is labelled with; `None` of what is
/// no cable, or one set aside.
pub fn label_of(cable: &link::Link) -> Option<(String, Attachment)> {
    let mut words = cable.alias.as_deref()?.split(' ');
    let ours = words.next() == Some(LABEL);
    let network = words.next()?;
    let attachment = Attachment::new(words.next()?, words.next()?);
    let there = cable.name == host_interface(&attachment) && cable.group != reaper::GROUP;
    (ours && words.next().is_none() && there).then(|| (network.to_owned(), attachment))
}

/// The node's end of an attachment's cable, if it is not set aside.
pub fn cable(socket: &mut Socket, attachment: &Attachment) -> Result<Option<link::Link>, Error> {
    let found = link::get(socket, &host_interface(attachment))?;
    Ok(found.filter(|cable| cable.group != reaper::GROUP))
}

/// The node's interfaces that are not set aside, by name: ends of cables among them.
pub(crate) fn cables(socket: &mut Socket) -> Result<HashMap<String, link::Link>, Error> {
    let links = link::list(socket)?;
    Ok(links
        .into_iter()
        .filter(|link| link.group != reaper::GROUP)
        .map(|link| (link.name.clone(), link))
        .collect())
}

/// Whether an interface's name is that of a node's end of a cable.
pub fn is_host_interface(name: &str) -> bool {
    name.strip_prefix(HOST_INTERFACE)
        .is_some_and(|hash| hash.len() == 11 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// Compares the node's side of an attachment with what ADD made: the cable,
/// and the way to each of the pod's addresses.
pub fn verify_node(
    socket: &mut Socket,
    order: &Order<'_>,
    addresses: &[IpAddr],
) -> Result<(), Error> {
    if let AttachMode::Macvlan | AttachMode::Direct = order.configuration.attach {
        // All of it is in the pod.
        return Ok(());
    }
    let name = host_interface(order.attachment);
    let Some(cable) = cable(socket, order.attachment)? else {
        return Err(Error::Mismatch(format!("the node has no interface {name}")));
    };
    if !cable.up {
        return Err(Error::Mismatch(format!(
            "interface {name} of the node is down"
        )));
    }
    match order.configuration.attach {
        AttachMode::Bridge => bridge::verify(socket, order.configuration, &cable),
        AttachMode::Routed => routed::verify(socket, &cable, addresses),
        AttachMode::Macvlan | AttachMode::Direct => Ok(()),
    }?;
    bandwidth::verify(
        socket,
        order.attachment,
        &cable,
        &order.configuration.bandwidth,
    )
}

/// Verifies the interface of the node that all pods of the network share: that it is
/// there and up. The bridge comes with the first pod: without pods it may be missing.
pub fn verify_shared(
    socket: &mut Socket,
    configuration: &Configuration,
    pods: bool,
) -> Result<(), Error> {
    let (name, needed) = match configuration.attach {
        AttachMode::Bridge => (&configuration.network.bridge, pods),
        AttachMode::Macvlan => match &configuration.master {
            Some(master) => (master, true),
            None => return Ok(()),
        },
        AttachMode::Routed | AttachMode::Direct => return Ok(()),
    };
    match link::get(socket, name)? {
        Some(shared) if shared.up => Ok(()),
        None if !needed => Ok(()),
        found => Err(Error::NotAvailable(format!(
            "interface {name} of the node, which the pods are attached to, is {}",
            if found.is_some() { "down" } else { "gone" }
        ))),
    }
}

/// Refuses what cannot work on this node as it is set up.
pub fn serveable(configuration: &Configuration) -> Result<(), Error> {
    match configuration.attach {
        AttachMode::Bridge => bridge::serveable(configuration),
        AttachMode::Routed | AttachMode::Macvlan | AttachMode::Direct => Ok(()),
    }
}

/// How long the kernel may take to finish in the background what it was told:
/// it takes milliseconds on a busy machine.
const DEADLINE: Duration = Duration::from_secs(3);

/// Waits until the node's interfaces pass packets, in this order (a bridge has
/// a carrier when a port has), so that the pod's first packet is not lost.
fn wait_for_carrier(socket: &mut Socket, links: &[&link::Link]) -> Result<(), Error> {
    for link in links {
        if !link::wait_until_operational(socket, link.index, DEADLINE)? {
            return Err(Error::NotAvailable(format!(
                "interface {} does not get a carrier",
                link.name
            )));
        }
    }
    Ok(())
}

/// Makes the cable, both ends down, with their final names and addresses, and gives
/// the node's end. A leftover of the same attachment whose pod end is gone is
/// replaced.
fn make_cable(
    socket: &mut Socket,
    order: &Order<'_>,
    master: Option<u32>,
) -> Result<link::Link, Error> {
    let name = host_interface(order.attachment);
    let near = link::VethEnd {
        name: &name,
        mtu: order.configuration.mtu,
        mac: Some(mac_of(order.attachment, "node")),
        namespace: None,
    };
    let peer = link::VethEnd {
        name: &order.attachment.interface,
        mtu: order.configuration.mtu,
        mac: Some(order.pod_mac()),
        namespace: Some(order.namespace),
    };
    // Down: a link that is up and waits for its peer has the kernel look through
    // all IPv6 routes of the node.
    let request = link::add_cable(&near, master, &peer);
    match socket.execute(&request) {
        Err(error) if error.already_exists() => {
            // ADD looked into the pod first, so it is the node's end: left by
            // an ADD that died, or of a pod whose namespace was replaced.
            if let Some(left) = link::get(socket, &name)? {
                let requests = link::retire_as(left.index, &reaper::aside_name(), reaper::GROUP);
                attempt(socket, &requests)?;
                reaper::start(&order.configuration.network.state)?;
            }
            socket.execute(&request)?;
        }
        other => other?,
    }
    let cable = link::get(socket, &name)?.ok_or_else(|| {
        Error::Io(format!(
            "interface {name} vanished while it was being set up; something else on the node removes interfaces"
        ))
    })?;
    // Before the pod can send.
    bandwidth::limit(
        socket,
        order.attachment,
        &cable,
        &order.configuration.bandwidth,
    )?;
    Ok(cable)
}

/// Carries out what the node's end of a cable needs, which has no use for a link-local
/// IPv6 address: it comes with routes, which the kernel looks through, those of all
/// cables, when the next one is set up.
fn execute_without_link_local(
    socket: &mut Socket,
    cable: &link::Link,
    requests: Vec<Request>,
) -> Result<(), Error> {
    let mut all = vec![link::set_no_link_local(cable.index)];
    all.extend(requests);
    let mut outcomes = socket.attempt_all(&all)?.into_iter();
    match outcomes.next() {
        // A kernel that was started without IPv6 gives none anyway.
        Some(Err(error)) if !error.not_supported() => return Err(error.into()),
        _ => {}
    }
    Ok(outcomes.collect::<Result<_, _>>()?)
}

/// Index of the pod's end of a cable.
fn inner_index(inside: &mut Socket, order: &Order<'_>, cable: &link::Link) -> Result<u32, Error> {
    match cable.peer {
        Some(index) => Ok(index),
        None => Ok(pod::interface(inside, order)?.index),
    }
}

/// The result of an attachment: the node's interfaces, then the pod's.
fn result(
    order: &Order<'_>,
    mut interfaces: Vec<Interface>,
    mtu: u32,
    legs: &[pod::Leg],
) -> AddResult {
    let index = interfaces.len();
    interfaces.push(Interface {
        name: order.attachment.interface.clone(),
        mac: Some(order.pod_mac().to_string()),
        mtu: Some(mtu),
        sandbox: Some(order.sandbox.display().to_string()),
        ..Interface::default()
    });
    let mut result = AddResult {
        interfaces,
        ..AddResult::default()
    };
    for leg in legs {
        result.addresses.push(Address {
            address: leg.address,
            gateway: leg.gateway,
            interface: Some(index),
        });
        if let Some(gateway) = leg.gateway {
            let mut default = Route::new(pod::any(gateway), Some(gateway));
            if let Some(further) = leg.further {
                let subnet = further.subnet.map(|net| Route::new(net, Some(gateway)));
                result.routes.extend(subnet);
                let priority = further.metric.into();
                default.other.insert("priority".to_owned(), priority);
            }
            result.routes.push(default);
        }
    }
    for route in &order.configuration.routes {
        if !route.is_plain_default() && pod::is_of(route, legs) {
            pod::note(&mut result.routes, route);
        }
    }
    result
}

/// The settings' family of an address.
fn family(address: &IpAddr) -> sysctl::Family {
    match address {
        IpAddr::V4(_) => sysctl::Family::V4,
        IpAddr::V6(_) => sysctl::Family::V6,
    }
}
