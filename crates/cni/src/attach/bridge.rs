//! Bridge: pods on a bridge of the node, which has the gateway's address of
//! each range.
//!
//! The pods' packets to each other go by the gateway like all others (see the
//! module above). Where `br_netfilter` is active, it translates addresses of
//! Services while frames are still on the bridge, which then sends them to the
//! endpoint's port directly: for that, ports are in hairpin mode, so that a pod
//! can reach itself, and are not isolated unless the configuration says so.
//!
//! A pod's multicast reaches the node and not the other pods, unless the
//! configuration says so: each pod that comes tells its groups several times, and
//! every pod there is would have to look at it, while the kernel holds the lock that
//! the next pod's ADD waits for.

use std::net::IpAddr;

use ipam::{Reservation, Store};
use ipnet::IpNet;
use linux::address::{self, Address};
use linux::link::{self, Bridge, BridgePort, Link, MacAddress};
use linux::neighbour;
use linux::netlink::{Request, Socket};
use linux::sysctl::{Family, Setting};
use sha2::{Digest as _, Sha256};

use super::pod::{Leg, Wire};
use super::{
    Order, execute_without_link_local, inner_index, label, make_cable, node, pod, result,
    wait_for_carrier,
};
use crate::bridge_guard;
use crate::configuration::{AttachMode, Configuration, Network};
use crate::error::Error;
use crate::plugin::{NOTE_ATTACH, NOTE_BRIDGE, NOTE_MAC};
use crate::result::{AddResult, Interface};

pub(super) fn attach(
    socket: &mut Socket,
    inside: &mut Socket,
    order: &Order<'_>,
) -> Result<AddResult, Error> {
    serveable(order.configuration)?;
    node::enable_forwarding(socket, order.addresses)?;
    let bridge = ensure_bridge(socket, order.configuration)?;
    let cable = make_cable(socket, order, Some(bridge.index))?;
    let mut requests = vec![set_port(&cable, order.configuration)];
    requests.extend(label(order, cable.index));
    requests.push(link::set_up(cable.index));
    requests.extend(order.addresses.iter().map(|reserved| {
        neighbour::set_permanent(bridge.index, reserved.address.addr(), order.pod_mac())
    }));
    execute_without_link_local(socket, &cable, requests)?;
    let mut legs: Vec<_> = order
        .addresses
        .iter()
        .map(|reserved| Leg {
            address: reserved.address,
            on_wire: false,
            gateway: Some(reserved.gateway),
            // The bridge may be made anew under a living pod: it asks.
            gateway_mac: None,
            further: None,
        })
        .collect();
    let own = inner_index(inside, order, &cable)?;
    let wire = match bridge_guard::is_held(&order.configuration.network.state, order.home) {
        true => Wire::Guarded,
        false => Wire::Shared,
    };
    pod::furnish(inside, order, own, wire, &mut legs)?;
    wait_for_carrier(socket, &[&cable, &bridge])?;
    pod::wait(inside, order, own, &legs)?;
    let interfaces = vec![
        Interface::of_node(&bridge.name, bridge.mac, bridge.mtu),
        Interface::of_node(&cable.name, cable.mac, cable.mtu),
    ];
    Ok(result(order, interfaces, cable.mtu, &legs))
}

fn set_port(cable: &Link, configuration: &Configuration) -> Request {
    let port = BridgePort {
        multicast: configuration.multicast,
        hairpin: true,
        isolated: configuration.isolate_ports,
    };
    link::set_port(cable.index, port)
}

/// Isolated ports and `br_netfilter` do not go together: with it, a packet to a
/// Service is translated while it is on the bridge, and sent to the endpoint's
/// port directly, which isolation forbids.
pub(super) fn serveable(configuration: &Configuration) -> Result<(), Error> {
    if !configuration.isolate_ports {
        return Ok(());
    }
    for (v4, leaf) in [
        (true, "bridge-nf-call-iptables"),
        (false, "bridge-nf-call-ip6tables"),
    ] {
        let used = configuration.ranges.iter().any(|set| set.is_v4() == v4);
        let setting = Setting::new(format!("bridge/{leaf}"));
        if used && setting.read().is_ok_and(|value| value != 0) {
            return Err(Error::Configuration(format!(
                "isolatePorts keeps pods from Services of the same node while \
                 net.bridge.{leaf} is 1; set that to 0, or isolatePorts to false"
            )));
        }
    }
    Ok(())
}

/// Finds or makes the bridge, with the gateways' addresses and no others (a
/// node that was given a new range must not keep the old one's) but those of pods
/// that are there: of other networks, or of ranges that only they were given.
fn ensure_bridge(socket: &mut Socket, configuration: &Configuration) -> Result<Link, Error> {
    let name = &configuration.network.bridge;
    let mut made = false;
    let bridge = loop {
        if let Some(found) = link::get(socket, name)? {
            break found;
        }
        let request = link::add_bridge(&Bridge {
            name,
            mac: Some(mac_of_bridge(configuration)),
            ..Bridge::default()
        });
        match socket.execute(&request) {
            // Another ADD was faster.
            Err(error) if error.already_exists() => {}
            other => {
                other?;
                made = true;
            }
        }
    };
    if bridge.kind.as_deref() != Some("bridge") {
        return Err(Error::Configuration(format!(
            "interface {name} exists and is no bridge; name another with \"bridge\""
        )));
    }
    if made {
        settings(name)?;
    }
    let wanted: Vec<_> = configuration
        .ranges
        .iter()
        .flat_map(|set| set.gateways())
        .filter_map(|(subnet, gateway)| IpNet::new(gateway, subnet.prefix_len()).ok())
        .collect();
    let present = address::list(socket, Some(bridge.index))?;
    let mut requests = Vec::new();
    let foreign = |address: &IpNet| {
        let link_local = matches!(address.addr(), IpAddr::V6(ip) if ip.is_unicast_link_local());
        !wanted.contains(address) && !link_local
    };
    let others: Vec<_> = present
        .iter()
        .map(|address| address.address)
        .filter(foreign)
        .collect();
    let unplugged = made || !bridge.operational;
    // Both are rare, and asking takes longer the more pods there are.
    if unplugged || !others.is_empty() {
        let pods = pods(socket, &configuration.network)?;
        let ports = pods.iter().filter(|(_, cable)| cable.master.is_some());
        let served: Vec<_> = ports.flat_map(|(pod, _)| &pod.addresses).collect();
        for other in others {
            if !served.iter().any(|address| other.contains(*address)) {
                requests.push(address::delete(bridge.index, other));
            }
        }
        plug_in(socket, configuration, &bridge, &pods)?;
    }
    for address in wanted {
        if !present.iter().any(|a| a.address == address && !a.tentative) {
            requests.push(address::replace(&Address::new(bridge.index, address)));
        }
    }
    if !bridge.up {
        requests.push(link::set_up(bridge.index));
    }
    for outcome in socket.attempt_all(&requests)? {
        match outcome {
            // Another ADD was faster.
            Err(error) if !error.not_found() && !error.already_exists() => {
                return Err(error.into());
            }
            _ => {}
        }
    }
    Ok(bridge)
}

/// The pods of a network's bridge whose cables the node has, with these.
fn pods(socket: &mut Socket, network: &Network) -> Result<Vec<(Reservation, Link)>, Error> {
    let mut cables = super::cables(socket)?;
    let mut pods = Vec::new();
    for store in Store::all(&network.state)? {
        pods.extend(store.list()?.into_iter().filter_map(|pod| {
            let has = |note, value: &str| pod.notes.get(note).is_some_and(|v| v == value);
            let here =
                has(NOTE_ATTACH, AttachMode::Bridge.as_str()) && has(NOTE_BRIDGE, &network.bridge);
            let name = super::host_interface(&pod.attachment);
            let cable = here.then(|| cables.remove(&name)).flatten()?;
            Some((pod, cable))
        }));
    }
    Ok(pods)
}

/// Makes pods ports of the bridge that it lost: somebody deleted it, and it was made
/// anew. What the kernel refuses of them must not keep the pod from coming for which it
/// was made.
fn plug_in(
    socket: &mut Socket,
    configuration: &Configuration,
    bridge: &Link,
    pods: &[(Reservation, Link)],
) -> Result<(), Error> {
    let mut requests = Vec::new();
    for (pod, cable) in pods.iter().filter(|(_, cable)| cable.master.is_none()) {
        let mac = pod.notes.get(NOTE_MAC).and_then(|mac| mac.parse().ok());
        let mac = super::pod_mac(&pod.attachment, mac);
        requests.push(link::set_master(cable.index, Some(bridge.index)));
        requests.push(set_port(cable, configuration));
        let neighbour = |address: &IpAddr| neighbour::set_permanent(bridge.index, *address, mac);
        requests.extend(pod.addresses.iter().map(neighbour));
    }
    socket.attempt_all(&requests)?;
    Ok(())
}

/// The bridge routes between its own ports: it must not tell pods that they
/// could reach each other directly, nor listen to router advertisements.
fn settings(name: &str) -> Result<(), Error> {
    Setting::of_interface(Family::V4, name, "send_redirects").write_if_present(0)?;
    Setting::of_interface(Family::V6, name, "accept_ra").write_if_present(0)?;
    Setting::of_interface(Family::V6, name, "accept_dad").write_if_present(0)?;
    Ok(())
}

/// The same address each time the bridge is made, so that pods which outlive
/// it find their gateway again.
fn mac_of_bridge(configuration: &Configuration) -> MacAddress {
    let mut hash = Sha256::new();
    hash.update(&configuration.network.bridge);
    for (subnet, gateway) in configuration.ranges.iter().flat_map(|set| set.gateways()) {
        hash.update(format!(" {subnet} {gateway}"));
    }
    let digest = hash.finalize();
    MacAddress::local([digest[0], digest[1], digest[2], digest[3], digest[4]])
}

/// Verifies that the pod's cable is a port of the bridge, and that the bridge
/// has the gateways' addresses.
pub(super) fn verify(
    socket: &mut Socket,
    configuration: &Configuration,
    cable: &Link,
) -> Result<(), Error> {
    let name = &configuration.network.bridge;
    let Some(bridge) = link::get(socket, name)? else {
        return Err(Error::Mismatch(format!("the node has no bridge {name}")));
    };
    if !bridge.up || cable.master != Some(bridge.index) {
        return Err(Error::Mismatch(format!(
            "{} is not a port of the bridge {name}, or the bridge is down",
            cable.name
        )));
    }
    if !cable.port.is_some_and(|port| port.hairpin) {
        return Err(Error::Mismatch(format!(
            "hairpin mode of {} was switched off",
            cable.name
        )));
    }
    let present = address::list(socket, Some(bridge.index))?;
    for (_, gateway) in configuration.ranges.iter().flat_map(|set| set.gateways()) {
        if !present.iter().any(|a| a.address.addr() == gateway) {
            return Err(Error::Mismatch(format!(
                "the bridge {name} has lost the gateway's address {gateway}"
            )));
        }
    }
    Ok(())
}
