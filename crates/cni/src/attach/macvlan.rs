//! Macvlan: pods beside the node on the network of one of its interfaces. The
//! network's own router is their gateway. By the kernel's design a node does
//! not reach its own macvlan pods through that interface.

use linux::link::{self, VethEnd};
use linux::netlink::Socket;

use super::pod::{Leg, Wire};
use super::{Order, pod, result};
use crate::error::Error;
use crate::result::AddResult;

pub(super) fn attach(
    socket: &mut Socket,
    inside: &mut Socket,
    order: &Order<'_>,
) -> Result<AddResult, Error> {
    let configuration = order.configuration;
    let master = configuration.master.as_deref().unwrap_or_default();
    let Some(parent) = link::get(socket, master)? else {
        return Err(Error::Configuration(format!(
            "the node has no interface {master}, which \"master\" names"
        )));
    };
    let mtu = configuration.mtu.unwrap_or(parent.mtu);
    let end = VethEnd {
        name: &order.attachment.interface,
        mtu: Some(mtu),
        mac: Some(order.pod_mac()),
        namespace: Some(order.namespace),
    };
    socket.execute(&link::add_macvlan(&end, parent.index, configuration.mode))?;
    let mut legs: Vec<_> = order
        .addresses
        .iter()
        .map(|reserved| Leg {
            address: reserved.address,
            on_wire: true,
            gateway: Some(reserved.gateway),
            gateway_mac: None,
            further: None,
        })
        .collect();
    let own = pod::interface(inside, order)?.index;
    pod::furnish(inside, order, own, Wire::Shared, &mut legs)?;
    pod::wait(inside, order, own, &legs)?;
    Ok(result(order, Vec::new(), mtu, &legs))
}
