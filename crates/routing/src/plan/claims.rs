//! Which ranges a node may claim for its pods.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::Reason;
use crate::model::{Family, Node, overlap};
use crate::underlay::Subnet;

/// All nodes' addresses on the underlay.
pub(super) struct NodeAddresses<'a>(BTreeSet<(IpAddr, &'a str)>);

impl<'a> NodeAddresses<'a> {
    pub(super) fn of(nodes: impl Iterator<Item = &'a Node>) -> Self {
        let addresses = nodes.flat_map(|node| node.addresses.iter().map(|a| (*a, &*node.name)));
        NodeAddresses(addresses.collect())
    }

    /// The first node by name that has an address.
    pub(super) fn holder(&self, address: IpAddr) -> Option<&'a str> {
        let first = self.0.range((address, "")..).next();
        first
            .filter(|(found, _)| *found == address)
            .map(|(_, node)| *node)
    }

    /// None of them is in a range.
    pub(super) fn outside(&self, range: &IpNet) -> Result<(), Reason> {
        let first = (range.network(), "");
        match self.0.range(first..).next() {
            Some((address, node)) if range.contains(address) => Err(Reason::HoldsNode {
                node: (*node).into(),
                address: *address,
            }),
            _ => Ok(()),
        }
    }
}

/// Whether a range can be one of pods on this underlay at all.
pub(super) fn sound(range: &IpNet, subnets: &[Subnet]) -> Result<(), Reason> {
    let first = range.network();
    let link_local = match first {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    let single = range.prefix_len() == range.max_prefix_len();
    if single
        || range.prefix_len() == 0
        || link_local
        || first.is_loopback()
        || first.is_multicast()
        || first.is_unspecified()
    {
        return Err(Reason::Unusable);
    }
    match subnets
        .iter()
        .find(|subnet| overlap(&subnet.address, range))
    {
        Some(subnet) => Err(Reason::Underlay {
            subnet: subnet.address.trunc(),
        }),
        None => Ok(()),
    }
}

pub(super) fn not_own(
    own: &Node,
    peer: &Node,
    range: &IpNet,
    subnets: &[Subnet],
) -> Result<(), Reason> {
    if let Some(own) = own.ranges.iter().find(|own| overlap(own, range)) {
        return Err(Reason::OwnRange { own: own.trunc() });
    }
    match peer.address(Family::of_range(range)) {
        Some(address)
            if subnets
                .iter()
                .any(|subnet| subnet.address.addr() == address) =>
        {
            Err(Reason::OwnAddress { address })
        }
        _ => Ok(()),
    }
}

/// Disjoint ranges, by their first address.
#[derive(Default)]
pub(super) struct Ranges<'a>(BTreeMap<IpAddr, (IpNet, &'a str)>);

impl<'a> Ranges<'a> {
    pub(super) fn insert(&mut self, range: IpNet, node: &'a str) {
        self.0.insert(range.network(), (range, node));
    }

    /// Among disjoint ranges only the neighbours of a new one can overlap it.
    pub(super) fn free(&self, range: &IpNet) -> Result<(), Reason> {
        let before = self.0.range(..=range.network()).next_back();
        let after = self.0.range(range.network()..).next();
        match before
            .into_iter()
            .chain(after)
            .find(|(_, (other, _))| overlap(other, range))
        {
            Some((_, (range, node))) => Err(Reason::OtherNode {
                node: (*node).into(),
                range: *range,
            }),
            None => Ok(()),
        }
    }
}
