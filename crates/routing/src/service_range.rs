//! The route that lets processes of the node itself reach Services.
//!
//! A process's packet to a Service is translated in the kernel's OUTPUT hook,
//! after the route lookup: without any route that matches the Service's
//! address the connection fails with ENETUNREACH before anything can be
//! translated. A default route is such a route, and most nodes have one. Where
//! there is none, podwire makes one for the range the Services are in.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::model::{LAST_RESORT_METRIC, RouteKey, RouteTarget};
use crate::underlay::Subnet;

/// An API server hands out Service addresses from ranges of at most 2²⁰
/// addresses (kube-apiserver, `--service-cluster-ip-range`), so addresses that
/// differ above that are of different ranges.
const HOST_BITS: u8 = 20;

/// The smallest ranges that hold all Service addresses seen, one for each
/// Service range they can be from. They only grow: a Service that goes is no
/// reason to change a route.
#[derive(Clone, Debug, Default)]
pub struct ServiceRanges {
    known: Vec<IpNet>,
    /// Lowest and highest address of each block of 2²⁰.
    blocks: BTreeMap<IpNet, (IpAddr, IpAddr)>,
}

impl ServiceRanges {
    /// With ranges that are known whatever Services there are.
    pub fn new(mut known: Vec<IpNet>) -> ServiceRanges {
        for range in &mut known {
            *range = range.trunc();
        }
        known.sort();
        known.dedup();
        ServiceRanges {
            known,
            blocks: BTreeMap::new(),
        }
    }

    /// An address of a Service.
    pub fn insert(&mut self, address: IpAddr) {
        if self.known.iter().any(|range| range.contains(&address)) {
            return;
        }
        let block = net(address, bits(address) - HOST_BITS);
        self.blocks
            .entry(block)
            .and_modify(|(low, high)| {
                *low = (*low).min(address);
                *high = (*high).max(address);
            })
            .or_insert((address, address));
    }

    /// The ranges, known ones first. The order of addresses does not matter.
    pub fn get(&self) -> Vec<IpNet> {
        let seen = self
            .blocks
            .values()
            .map(|(low, high)| covering(*low, *high));
        self.known.iter().copied().chain(seen).collect()
    }
}

/// The routes to the Service ranges, over the subnet of the node's own address
/// of the family. A family without such an address has none.
///
/// They lose against any other route, and what is not translated ends on the
/// subnet, where nobody answers.
pub fn routes(
    ranges: &[IpNet],
    own_addresses: &[IpAddr],
    subnets: &[Subnet],
) -> BTreeMap<RouteKey, RouteTarget> {
    let mut routes = BTreeMap::new();
    for range in ranges {
        let is_v4 = range.addr().is_ipv4();
        let subnet = own_addresses
            .iter()
            .filter(|address| address.is_ipv4() == is_v4)
            .find_map(|address| {
                subnets
                    .iter()
                    .find(|subnet| subnet.address.addr() == *address)
            });
        if let Some(subnet) = subnet {
            let key = RouteKey {
                metric: LAST_RESORT_METRIC + 1,
                ..RouteKey::to(*range)
            };
            let target = RouteTarget::Link {
                interface: subnet.interface,
                source: subnet.address.addr(),
            };
            routes.insert(key, target);
        }
    }
    routes
}

fn bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// The range of a length that holds an address.
fn net(address: IpAddr, length: u8) -> IpNet {
    const FITS: &str = "the length is at most the family's";
    match address {
        IpAddr::V4(address) => Ipv4Net::new(address, length).expect(FITS).trunc().into(),
        IpAddr::V6(address) => Ipv6Net::new(address, length).expect(FITS).trunc().into(),
    }
}

/// The smallest range that holds two addresses of a family, never a single
/// address: host routes are the pods'.
fn covering(low: IpAddr, high: IpAddr) -> IpNet {
    let common = match (low, high) {
        (IpAddr::V4(low), IpAddr::V4(high)) => (low.to_bits() ^ high.to_bits()).leading_zeros(),
        (IpAddr::V6(low), IpAddr::V6(high)) => (low.to_bits() ^ high.to_bits()).leading_zeros(),
        // Unreachable by construction; no range is the harmless answer.
        _ => return net(low, bits(low) - 1),
    };
    let most = bits(low) - 1;
    net(
        low,
        u8::try_from(common).map_or(most, |common| common.min(most)),
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    fn ranges(addresses: impl IntoIterator<Item = IpAddr>) -> Vec<IpNet> {
        let mut ranges = ServiceRanges::default();
        for address in addresses {
            ranges.insert(address);
        }
        ranges.get()
    }

    #[test]
    fn what_is_known_is_not_guessed() {
        let mut ranges = ServiceRanges::new(vec!["10.96.0.1/16".parse().unwrap()]);
        ranges.insert("10.96.200.7".parse().unwrap());
        ranges.insert("fd00:96::1".parse().unwrap());
        let texts: Vec<String> = ranges.get().iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["10.96.0.0/16", "fd00:96::/127"]);
    }

    fn addresses(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[rstest]
    #[case::none(&[], &[])]
    #[case::one_is_no_host_route(&["10.96.0.1"], &["10.96.0.0/31"])]
    #[case::two(&["10.96.0.1", "10.96.0.10"], &["10.96.0.0/28"])]
    #[case::a_whole_range(&["10.96.0.1", "10.111.255.254"], &["10.96.0.0/12"])]
    #[case::two_ranges(&["10.96.0.1", "10.96.0.2", "172.30.0.1"], &["10.96.0.0/30", "172.30.0.0/31"])]
    #[case::both_families(&["10.96.0.1", "fd00:96::1", "fd00:96::a"], &["10.96.0.0/31", "fd00:96::/124"])]
    fn ranges_hold_what_they_must_and_little_else(
        #[case] given: &[&str],
        #[case] expected: &[&str],
    ) {
        let expected: Vec<IpNet> = expected.iter().map(|text| text.parse().unwrap()).collect();
        assert_eq!(ranges(addresses(given)), expected);
    }

    #[test]
    fn the_route_leaves_by_the_subnet_of_the_nodes_address() {
        let subnets =
            [("10.9.0.1/24", 4), ("192.168.64.11/24", 2)].map(|(address, interface)| Subnet {
                address: address.parse().unwrap(),
                interface,
            });
        let ranges = ranges(addresses(&["10.96.0.1", "fd00:96::1"]));
        let routes = routes(
            &ranges,
            &addresses(&["fd00:64::11", "192.168.64.11"]),
            &subnets,
        );
        let targets: Vec<_> = routes.values().copied().collect();
        let source = "192.168.64.11".parse().unwrap();
        assert_eq!(
            targets,
            [RouteTarget::Link {
                interface: 2,
                source
            }]
        );
    }

    proptest! {
        #[test]
        fn every_address_is_in_exactly_one_range(
            given in prop::collection::vec(any::<IpAddr>(), 0..40)
        ) {
            let ranges = ranges(given.iter().copied());
            for address in given {
                prop_assert_eq!(ranges.iter().filter(|range| range.contains(&address)).count(), 1);
            }
        }
    }
}
