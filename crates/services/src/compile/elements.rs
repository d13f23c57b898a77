//! The elements of sets and maps that stand for a frontend or an address.

use std::net::IpAddr;

use ipnet::IpNet;
use linux::nftables::{Element, Verdict, push_field};

use super::number::Number;
use crate::model::{Backend, Family, FrontendKey};

/// The bytes of an address.
fn address_bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

pub(crate) fn frontend_bytes(key: &FrontendKey) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(28);
    push_field(&mut bytes, &address_bytes(key.address));
    push_field(&mut bytes, &[key.protocol.number()]);
    push_field(&mut bytes, &key.port.to_be_bytes());
    bytes
}

/// The element of the services map.
#[must_use]
pub fn service_element(key: &FrontendKey, number: Number) -> Element {
    Element::pair(frontend_bytes(key), number.bytes())
}

/// The key of a slot or an id in the maps of backends and turns.
pub(crate) fn slot_bytes(key: &FrontendKey, slot: u32) -> Vec<u8> {
    let mut bytes = frontend_bytes(key);
    push_field(&mut bytes, &slot.to_ne_bytes());
    bytes
}

/// The element of the backends map.
#[must_use]
pub fn backend_element(key: &FrontendKey, slot: u32, backend: Backend) -> Element {
    Element::pair(slot_bytes(key, slot), backend_bytes(backend))
}

/// Address and port as a map yields them.
pub(crate) fn backend_bytes(backend: Backend) -> Vec<u8> {
    let mut value = Vec::with_capacity(20);
    push_field(&mut value, &address_bytes(backend.address));
    push_field(&mut value, &backend.port.to_be_bytes());
    value
}

/// The element of the turns map.
#[must_use]
pub fn turn_element(key: &FrontendKey, slot: u32, id: u32) -> Element {
    Element::pair(slot_bytes(key, slot), id.to_ne_bytes().to_vec())
}

/// First and last addresses that may use a frontend whose sources are
/// restricted, sorted and joined. Its own address is one of them: where the
/// node has it on an interface, the node asks itself with it.
#[must_use]
pub fn allowed(key: &FrontendKey, sources: &[IpNet]) -> Vec<(u128, u128)> {
    let own = IpNet::from(key.address);
    ranges(
        sources.iter().copied().chain([own]),
        Family::of(key.address),
    )
}

/// The element of the set of permitted sources.
#[must_use]
pub fn source_element(key: &FrontendKey, range: (u128, u128)) -> Element {
    let family = Family::of(key.address);
    let end = |number| {
        let mut bytes = frontend_bytes(key);
        push_field(&mut bytes, &number_bytes(number, family));
        bytes
    };
    Element::range(end(range.0), end(range.1))
}

/// The element of the set of cluster addresses.
#[must_use]
pub fn cluster_ip_element(address: IpAddr) -> Element {
    Element::key(address_bytes(address))
}

/// The element of the hairpin set.
#[must_use]
pub fn hairpin_element(address: IpAddr) -> Element {
    let mut bytes = address_bytes(address);
    bytes.extend(address_bytes(address));
    Element::key(bytes)
}

/// The element of the dispatch map.
#[must_use]
pub fn dispatch_element(number: Number) -> Element {
    Element::verdict(number.bytes(), Verdict::Goto(number.chain()))
}

/// First and last address of the ranges that cover these networks, sorted,
/// overlapping and neighbouring ones joined.
#[must_use]
pub fn ranges(networks: impl IntoIterator<Item = IpNet>, family: Family) -> Vec<(u128, u128)> {
    let mut all: Vec<(u128, u128)> = networks
        .into_iter()
        .filter(|network| Family::of(network.addr()) == family)
        .map(|network| (to_number(network.network()), to_number(network.broadcast())))
        .collect();
    all.sort_unstable();
    let mut joined: Vec<(u128, u128)> = Vec::with_capacity(all.len());
    for (first, last) in all {
        match joined.last_mut() {
            Some((_, end)) if first <= end.saturating_add(1) => *end = (*end).max(last),
            _ => joined.push((first, last)),
        }
    }
    joined
}

fn to_number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

fn number_bytes(number: u128, family: Family) -> Vec<u8> {
    match family {
        Family::V4 => (number as u32).to_be_bytes().to_vec(),
        Family::V6 => number.to_be_bytes().to_vec(),
    }
}

/// The two elements of a range; one if it reaches the last address there is.
#[must_use]
pub fn range_elements(range: (u128, u128), family: Family) -> Vec<Element> {
    let mut elements = vec![Element::key(number_bytes(range.0, family))];
    let greatest = match family {
        Family::V4 => u128::from(u32::MAX),
        Family::V6 => u128::MAX,
    };
    if range.1 < greatest {
        elements.push(Element::range_end(number_bytes(range.1 + 1, family)));
    }
    elements
}
