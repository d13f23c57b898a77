//! Which peers' pods are reached directly: their packets leave this node as they
//! are, on an Ethernet it is connected to, to the next node. Only those can take
//! the fast path ([`linux::fast_path`]), which does what the kernel's route would
//! do and nothing else. Pure.

use std::collections::BTreeMap;
use std::fmt;

use ipnet::IpNet;
use linux::fast_path::NextHop;

use crate::difference::Foreign;
use crate::model::{RouteTable, RouteTarget, State, overlap};
use crate::underlay::Underlay;

/// Why a peer's pods are not reached directly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotDirect {
    /// By a device of a back end.
    Tunnel,
    /// The way takes smaller packets than the interface it begins at.
    Smaller {
        /// Bytes.
        mtu: u32,
    },
    /// The interface is none whose packets have Ethernet headers.
    NotEthernet,
    /// Somebody else's route leads elsewhere, or is in the way.
    Foreign {
        /// Where it leads to.
        destination: IpNet,
    },
}

impl fmt::Display for NotDirect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NotDirect::Tunnel => f.write_str("through a tunnel"),
            NotDirect::Smaller { mtu } => write!(
                f,
                "packets of at most {mtu} bytes, which is less than the interface sends"
            ),
            NotDirect::NotEthernet => f.write_str("the interface is not Ethernet"),
            NotDirect::Foreign { destination } => {
                write!(f, "somebody else's route to {destination}")
            }
        }
    }
}

/// The destinations of a plan's routes to pods of peers, and how each is reached
/// directly, if it is. `state` is the plan's, `foreign` what the kernel was found to
/// hold of others.
pub fn ways(
    state: &State,
    foreign: &[Foreign],
    underlay: &Underlay,
) -> BTreeMap<IpNet, Result<NextHop, NotDirect>> {
    state
        .routes
        .iter()
        // The other table leads to peers themselves.
        .filter(|(key, _)| key.table == RouteTable::Main)
        .filter_map(|(key, target)| {
            let (address, interface, mtu) = match *target {
                RouteTarget::Gateway {
                    address,
                    interface,
                    mtu,
                } => (address, interface, mtu),
                RouteTarget::Device { .. } => {
                    return Some((key.destination, Err(NotDirect::Tunnel)));
                }
                // Of this node.
                RouteTarget::Link { .. } | RouteTarget::Unreachable => return None,
            };
            let other = foreign
                .iter()
                .find(|foreign| overlap(&foreign.key.destination, &key.destination));
            let ethernet = underlay
                .interfaces
                .get(&interface)
                .is_some_and(|interface| interface.ethernet);
            let way = match (other, mtu) {
                (Some(other), _) => Err(NotDirect::Foreign {
                    destination: other.key.destination,
                }),
                (None, Some(mtu)) => Err(NotDirect::Smaller { mtu }),
                (None, None) if !ethernet => Err(NotDirect::NotEthernet),
                (None, None) => Ok(NextHop { interface, address }),
            };
            Some((key.destination, way))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use rstest::rstest;

    use super::*;
    use crate::model::{self, LAST_RESORT_METRIC, RouteKey, RouteTable};
    use crate::underlay::Interface;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn gateway(text: &str, interface: u32, mtu: Option<u32>) -> RouteTarget {
        RouteTarget::Gateway {
            address: address(text),
            interface,
            mtu,
        }
    }

    fn tunnel() -> RouteTarget {
        RouteTarget::Device {
            device: model::DeviceName::new("pw-vxlan"),
            next_hop: model::NextHop::Direct,
            source: None,
            mtu: None,
        }
    }

    fn foreign(destination: &str) -> Foreign {
        Foreign {
            key: RouteKey::to(net(destination)),
            protocol: 4,
            range: net("10.1.1.0/24"),
            occupies: false,
        }
    }

    fn underlay() -> Underlay {
        let interface = |name: &str, ethernet| Interface {
            name: name.to_owned(),
            mtu: 1500,
            ethernet,
        };
        Underlay {
            interfaces: [(2, interface("eth0", true)), (3, interface("tun0", false))].into(),
            ..Underlay::default()
        }
    }

    #[rstest]
    #[case("10.1.1.0/24", gateway("192.0.2.2", 2, None), Some(Ok(("192.0.2.2", 2))))]
    #[case("fd00:1::/64", gateway("2001:db8::2", 2, None), Some(Ok(("2001:db8::2", 2))))]
    #[case("10.1.1.0/24", gateway("192.0.2.2", 2, Some(1400)), Some(Err(NotDirect::Smaller { mtu: 1400 })))]
    #[case(
        "10.1.1.0/24",
        gateway("192.0.2.2", 3, None),
        Some(Err(NotDirect::NotEthernet))
    )]
    #[case(
        "10.1.1.0/24",
        gateway("192.0.2.2", 4, None),
        Some(Err(NotDirect::NotEthernet))
    )]
    #[case("10.1.1.0/24", tunnel(), Some(Err(NotDirect::Tunnel)))]
    #[case("10.1.1.0/24", RouteTarget::Unreachable, None)]
    fn what_leaves_by_ethernet_as_it_is_is_direct(
        #[case] range: &str,
        #[case] target: RouteTarget,
        #[case] expected: Option<Result<(&str, u32), NotDirect>>,
    ) {
        let mut state = State::default();
        state.routes.insert(RouteKey::of_peer(net(range)), target);
        let found = ways(&state, &[], &underlay());
        let expected = expected.map(|way| {
            way.map(|(to, interface)| NextHop {
                interface,
                address: address(to),
            })
        });
        assert_eq!(found.get(&net(range)).copied(), expected);
    }

    #[test]
    fn a_foreign_route_into_a_range_keeps_the_range_from_the_fast_path() {
        let mut state = State::default();
        for range in ["10.1.1.0/24", "10.1.2.0/24"] {
            let target = gateway("192.0.2.2", 2, None);
            state.routes.insert(RouteKey::of_peer(net(range)), target);
        }
        let own = RouteKey {
            table: RouteTable::Main,
            destination: net("10.1.0.0/24"),
            metric: LAST_RESORT_METRIC,
        };
        state.routes.insert(own, RouteTarget::Unreachable);
        let found = ways(&state, &[foreign("10.1.1.128/25")], &underlay());
        let destination = net("10.1.1.128/25");
        assert_eq!(
            found[&net("10.1.1.0/24")],
            Err(NotDirect::Foreign { destination })
        );
        assert!(found[&net("10.1.2.0/24")].is_ok());
        assert_eq!(found.len(), 2);
    }

    #[test]
    fn the_routes_to_peers_themselves_lead_to_no_pods() {
        let mut state = State::default();
        let key = RouteKey::of_node(address("192.0.2.2"));
        state.routes.insert(key, tunnel());
        assert_eq!(ways(&state, &[], &underlay()), BTreeMap::new());
    }
}
