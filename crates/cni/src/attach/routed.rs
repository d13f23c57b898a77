//! Routed: each pod on a cable of its own, and a route of the node to each of
//! its addresses. The gateway is the same link-local address for all pods; it
//! is configured nowhere, since both ends know each other's hardware address. Or,
//! with `proxyArp`, since the node answers for it (RFC 1027; for IPv6 RFC 4389).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use linux::link::{self, Link};
use linux::neighbour;
use linux::netlink::{Request, Socket};
use linux::route::{self, Filter, Route};
use linux::sysctl::{Family, Setting};

use super::pod::{Leg, Wire};
use super::{
    Order, execute_without_link_local, family, inner_index, label, mac_of, make_cable, node, pod,
    result, wait_for_carrier,
};
use crate::error::Error;
use crate::result::{AddResult, Interface};

/// The pods' IPv4 gateway.
const GATEWAY_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 1, 1));
/// The pods' IPv6 gateway.
const GATEWAY_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1));

fn gateway(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => GATEWAY_V4,
        IpAddr::V6(_) => GATEWAY_V6,
    }
}

pub(super) fn attach(
    socket: &mut Socket,
    inside: &mut Socket,
    order: &Order<'_>,
) -> Result<AddResult, Error> {
    node::enable_forwarding(socket, order.addresses)?;
    let cable = make_cable(socket, order, None)?;
    let proxy_arp = order.configuration.proxy_arp;
    let mut legs: Vec<_> = order
        .addresses
        .iter()
        .map(|reserved| Leg {
            address: IpNet::from(reserved.address.addr()),
            on_wire: false,
            gateway: Some(gateway(reserved.address.addr())),
            gateway_mac: (!proxy_arp).then(|| mac_of(order.attachment, "node")),
            further: None,
        })
        .collect();
    // The node's side first: the pod is reachable the moment it can speak. The label
    // before the link is up: a link that is up and waits for its peer has the kernel
    // look through all IPv6 routes of the node at each change.
    let mut requests = Vec::from_iter(label(order, cable.index));
    requests.push(link::set_up(cable.index));
    for leg in &legs {
        requests.push(neighbour::set_permanent(
            cable.index,
            leg.address.addr(),
            order.pod_mac(),
        ));
        requests.push(route::replace(&Route::to(leg.address).dev(cable.index)));
    }
    if proxy_arp {
        requests.extend(answer_for_gateways(&cable, &legs)?);
        // It answers for the IPv6 gateway from its link-local address.
        socket.execute_all(&requests)?;
    } else {
        execute_without_link_local(socket, &cable, requests)?;
    }
    let own = inner_index(inside, order, &cable)?;
    pod::furnish(inside, order, own, Wire::Node, &mut legs)?;
    wait_for_carrier(socket, &[&cable])?;
    pod::wait(inside, order, own, &legs)?;
    let interfaces = vec![Interface::of_node(&cable.name, cable.mac, cable.mtu)];
    Ok(result(order, interfaces, cable.mtu, &legs))
}

/// Has the node answer the pod's questions for its gateways. For IPv4 that is for
/// every address the node has a route to over another interface, as its default
/// route is one to the gateway's.
fn answer_for_gateways(cable: &Link, legs: &[Leg]) -> Result<Option<Request>, Error> {
    let mut proxy = None;
    for leg in legs {
        let family = family(&leg.address.addr());
        let (leaf, settings) = match family {
            Family::V4 => ("proxy_arp", "ipv4"),
            Family::V6 => {
                proxy = Some(neighbour::set_proxy(cable.index, GATEWAY_V6));
                ("proxy_ndp", "ipv6")
            }
        };
        Setting::of_interface(family, &cable.name, leaf).write(1)?;
        // Otherwise an answer on behalf of another waits up to 0.8 s.
        Setting::new(format!("{settings}/neigh/{}/proxy_delay", cable.name)).write_if_present(0)?;
    }
    Ok(proxy)
}

/// Verifies the node's routes to the pod.
pub(super) fn verify(socket: &mut Socket, cable: &Link, addresses: &[IpAddr]) -> Result<(), Error> {
    let routes = route::list(
        socket,
        Filter {
            link: Some(cable.index),
            ..Filter::own()
        },
    )?;
    for address in addresses {
        let destination = IpNet::from(*address);
        if !routes.iter().any(|route| route.destination == destination) {
            return Err(Error::Mismatch(format!(
                "the node has lost its route to {address} on {}",
                cable.name
            )));
        }
    }
    Ok(())
}
