//! By which way peers' pods are reached, where it is one the fast path knows
//! ([`linux::fast_path`]), which does what the kernel's route would do and nothing
//! else. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use ipnet::IpNet;
use linux::fast_path::{self, Via};

use crate::changes::Changes;
use crate::difference::Foreign;
use crate::model::{
    Device, DeviceKind, DeviceName, NextHop, RouteKey, RouteTable, RouteTarget, State, overlap,
};
use crate::plan::Plan;
use crate::underlay::Underlay;

/// A way to pods of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// What packets leave by.
    pub interface: Leaving,
    /// Longest packet in bytes, where it is below the interface's.
    pub mtu: Option<u32>,
    /// Where they go there.
    pub via: Via,
}

/// What packets leave by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaving {
    /// An interface of the underlay, by its index.
    Underlay(u32),
    /// A device of a back end, which may be made anew at any time.
    Tunnel(DeviceName),
}

impl Way {
    /// The tunnel's device, if it leads through one.
    pub fn device(&self) -> Option<DeviceName> {
        match self.interface {
            Leaving::Tunnel(device) => Some(device),
            Leaving::Underlay(_) => None,
        }
    }

    /// The underlay's interface, if it leads through none.
    pub fn underlay(&self) -> Option<u32> {
        match self.interface {
            Leaving::Underlay(interface) => Some(interface),
            Leaving::Tunnel(_) => None,
        }
    }

    /// The way as the fast path has it. `index` gives the interface of a name, if
    /// there is one.
    ///
    /// # Errors
    /// That there is none.
    pub fn resolve(
        &self,
        index: impl FnOnce(DeviceName) -> Option<u32>,
    ) -> Result<fast_path::Way, NoWay> {
        Ok(fast_path::Way {
            interface: match self.interface {
                Leaving::Underlay(interface) => interface,
                Leaving::Tunnel(device) => index(device).ok_or(NoWay::Gone { device })?,
            },
            mtu: self.mtu,
            via: self.via,
        })
    }
}

/// Why packets to a peer's pods stay with the kernel's IP stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoWay {
    /// The fast path does not know such a tunnel.
    Tunnel {
        /// The device of the back end.
        device: DeviceName,
    },
    /// The device of the back end is not there, or is down.
    Gone {
        /// The device.
        device: DeviceName,
    },
    /// The interface is none whose packets have Ethernet headers.
    NotEthernet,
    /// Somebody else's route leads elsewhere, or is in the way.
    Foreign {
        /// Where it leads to.
        destination: IpNet,
    },
}

impl fmt::Display for NoWay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NoWay::Tunnel { device } => {
                write!(f, "through {device}, a kind of tunnel it does not know")
            }
            NoWay::Gone { device } => write!(f, "{device} is not there"),
            NoWay::NotEthernet => f.write_str("the interface is not Ethernet"),
            NoWay::Foreign { destination } => {
                write!(f, "somebody else's route to {destination}")
            }
        }
    }
}

/// How a range of peers' pods is reached; `None` for one the plan has no route to.
pub type RangeWay = Option<Result<Way, NoWay>>;

/// The ranges of peers' pods a plan has routes to, and by which way each is reached.
/// `foreign` is what the kernel was found to hold of others.
pub fn ways(
    plan: &Plan,
    foreign: &[Foreign],
    underlay: &Underlay,
) -> BTreeMap<IpNet, Result<Way, NoWay>> {
    let routes = plan.state.routes.keys();
    let ranges = ranges(routes, plan.ways.keys());
    let ways = ranges
        .into_iter()
        .map(|range| (range, way(plan, &range, foreign, underlay)));
    ways.filter_map(|(range, way)| Some((range, way?)))
        .collect()
}

/// The same of what may have changed.
pub fn changed_ways(
    plan: &Plan,
    changes: &Changes,
    foreign: &[Foreign],
    underlay: &Underlay,
) -> BTreeMap<IpNet, RangeWay> {
    let ranges = ranges(changes.routes.iter(), changes.ways.iter());
    let ways = ranges
        .into_iter()
        .map(|range| (range, way(plan, &range, foreign, underlay)));
    ways.collect()
}

/// The ranges that routes to pods, and back ends, lead to.
fn ranges<'a>(
    routes: impl Iterator<Item = &'a RouteKey>,
    ways: impl Iterator<Item = &'a IpNet>,
) -> BTreeSet<IpNet> {
    // The other table leads to peers themselves.
    let main = routes.filter(|key| key.table == RouteTable::Main);
    main.map(|key| key.destination)
        .chain(ways.copied())
        .collect()
}

fn way(plan: &Plan, range: &IpNet, foreign: &[Foreign], underlay: &Underlay) -> RangeWay {
    let way = match target(plan, range)? {
        RouteTarget::Gateway {
            address,
            interface,
            mtu,
        } if is_ethernet(underlay, interface) => Ok(Way {
            interface: Leaving::Underlay(interface),
            mtu,
            via: Via::Neighbour(address),
        }),
        RouteTarget::Gateway { .. } => Err(NoWay::NotEthernet),
        RouteTarget::Device {
            device,
            next_hop,
            mtu,
            ..
        } => through(plan.state.devices.get(&device), next_hop)
            .map(|via| Way {
                interface: Leaving::Tunnel(device),
                mtu,
                via,
            })
            .ok_or(NoWay::Tunnel { device }),
        // Of this node.
        RouteTarget::Link { .. } | RouteTarget::Unreachable => return None,
    };
    let other = foreign
        .iter()
        .find(|foreign| overlap(&foreign.key.destination, range));
    Some(match other {
        Some(other) => Err(NoWay::Foreign {
            destination: other.key.destination,
        }),
        None => way,
    })
}

/// Where packets to a range of a peer's pods go.
fn target(plan: &Plan, range: &IpNet) -> Option<RouteTarget> {
    let to = |destination| {
        let of = move |metric| RouteKey {
            table: RouteTable::Main,
            destination,
            metric,
        };
        let routes = plan.state.routes.range(of(0)..=of(u32::MAX));
        routes.map(|(_, target)| *target)
    };
    let mut single = to(*range).filter(|target| !is_on_bridge(&plan.state, target));
    if let Some(target) = single.next_back() {
        return Some(target);
    }
    // A route to all pods of the cluster is to each peer's, and to none of this node's.
    let mut devices = plan.state.devices.values();
    if !devices.any(|device| device.kind == DeviceKind::Bridge) || !plan.ways.contains_key(range) {
        return None;
    }
    (0..=range.prefix_len()).find_map(|length| {
        let around = IpNet::new(range.network(), length).ok()?.trunc();
        to(around).find(|target| is_on_bridge(&plan.state, target))
    })
}

fn is_on_bridge(state: &State, target: &RouteTarget) -> bool {
    let RouteTarget::Device { device, .. } = target else {
        return false;
    };
    let device = state.devices.get(device);
    device.is_some_and(|device| device.kind == DeviceKind::Bridge)
}

fn is_ethernet(underlay: &Underlay, interface: u32) -> bool {
    let interface = underlay.interfaces.get(&interface);
    interface.is_some_and(|interface| interface.ethernet)
}

/// Where packets go on a back end's device, where the device needs to be told no
/// more than that.
fn through(device: Option<&Device>, next_hop: NextHop) -> Option<Via> {
    match (device?.kind, next_hop) {
        (DeviceKind::Bridge, NextHop::Direct) => Some(Via::OnLink),
        (DeviceKind::Wireguard, NextHop::Direct) => Some(Via::Device),
        (DeviceKind::Vxlan(vxlan), NextHop::OnLink(gateway)) if !vxlan.external => {
            Some(Via::Neighbour(gateway))
        }
        (DeviceKind::Vxlan(vxlan), NextHop::Encapsulated { id, remote })
            if vxlan.external && vxlan.gpe =>
        {
            Some(Via::Tunnel { id, remote })
        }
        (DeviceKind::Ip6Tunnel, NextHop::Encapsulated { id, remote }) => {
            Some(Via::Tunnel { id, remote })
        }
        // Without a fixed end it takes that of a packet where there is one, and the
        // route's gateway where there is none (Linux: ip_tunnel_xmit).
        (DeviceKind::Ipip(_), NextHop::OnLink(remote)) => Some(Via::Tunnel { id: 0, remote }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use rstest::rstest;

    use super::*;
    use crate::model::{Ipip, LAST_RESORT_METRIC, Vxlan};
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

    fn neighbour(text: &str, interface: u32, mtu: Option<u32>) -> Result<Way, NoWay> {
        Ok(Way {
            interface: Leaving::Underlay(interface),
            mtu,
            via: Via::Neighbour(address(text)),
        })
    }

    const TUNNEL: DeviceName = DeviceName::new("pw-tunnel");

    fn over(next_hop: NextHop, mtu: Option<u32>) -> RouteTarget {
        RouteTarget::Device {
            device: TUNNEL,
            next_hop,
            source: None,
            mtu,
        }
    }

    fn encapsulated() -> NextHop {
        NextHop::Encapsulated {
            id: 7,
            remote: address("2001:db8::2"),
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

    fn of(state: State) -> Plan {
        Plan {
            state,
            ..Plan::default()
        }
    }

    /// The only way of a plan with this route.
    fn way(mut state: State, range: &str, target: RouteTarget) -> Option<Result<Way, NoWay>> {
        state.routes.insert(RouteKey::of_peer(net(range)), target);
        let found = ways(&of(state), &[], &underlay());
        assert!(found.len() <= 1);
        found.get(&net(range)).copied()
    }

    #[rstest]
    #[case(
        "10.1.1.0/24",
        gateway("192.0.2.2", 2, None),
        Some(neighbour("192.0.2.2", 2, None))
    )]
    #[case(
        "fd00:1::/64",
        gateway("2001:db8::2", 2, None),
        Some(neighbour("2001:db8::2", 2, None))
    )]
    #[case(
        "10.1.1.0/24",
        gateway("192.0.2.2", 2, Some(1400)),
        Some(neighbour("192.0.2.2", 2, Some(1400)))
    )]
    #[case(
        "10.1.1.0/24",
        gateway("192.0.2.2", 3, None),
        Some(Err(NoWay::NotEthernet))
    )]
    #[case(
        "10.1.1.0/24",
        gateway("192.0.2.2", 4, None),
        Some(Err(NoWay::NotEthernet))
    )]
    #[case("10.1.1.0/24", RouteTarget::Unreachable, None)]
    fn the_underlay_has_to_be_ethernet(
        #[case] range: &str,
        #[case] target: RouteTarget,
        #[case] expected: Option<Result<Way, NoWay>>,
    ) {
        assert_eq!(way(State::default(), range, target), expected);
    }

    fn vxlan(external: bool, gpe: bool) -> DeviceKind {
        DeviceKind::Vxlan(Vxlan {
            external,
            gpe,
            ..Vxlan::default()
        })
    }

    fn ipip() -> DeviceKind {
        DeviceKind::Ipip(Ipip {
            local: [192, 0, 2, 1].into(),
            ttl: 64,
        })
    }

    #[rstest]
    // As the back ends make them: vxlan, vxlan-gpe, wireguard, ipip.
    #[case(
        Some(vxlan(false, false)),
        NextHop::OnLink(address("10.1.1.0")),
        Some(Via::Neighbour(address("10.1.1.0")))
    )]
    #[case(
        Some(vxlan(true, true)),
        encapsulated(),
        Some(Via::Tunnel { id: 7, remote: address("2001:db8::2") })
    )]
    #[case(Some(DeviceKind::Wireguard), NextHop::Direct, Some(Via::Device))]
    #[case(
        Some(DeviceKind::Ip6Tunnel),
        encapsulated(),
        Some(Via::Tunnel { id: 7, remote: address("2001:db8::2") })
    )]
    #[case(
        Some(ipip()),
        NextHop::OnLink(address("192.0.2.2")),
        Some(Via::Tunnel { id: 0, remote: address("192.0.2.2") })
    )]
    // None of them makes these.
    #[case(Some(ipip()), encapsulated(), None)]
    #[case(Some(ipip()), NextHop::Direct, None)]
    #[case(
        Some(DeviceKind::Ip6Tunnel),
        NextHop::OnLink(address("2001:db8::2")),
        None
    )]
    #[case(Some(vxlan(true, false)), encapsulated(), None)]
    #[case(Some(vxlan(true, true)), NextHop::OnLink(address("10.1.1.0")), None)]
    #[case(Some(vxlan(false, false)), NextHop::Direct, None)]
    #[case(Some(DeviceKind::Wireguard), encapsulated(), None)]
    #[case(None, encapsulated(), None)]
    fn a_tunnel_has_to_be_told_no_more_than_where_to(
        #[case] kind: Option<DeviceKind>,
        #[case] next_hop: NextHop,
        #[case] via: Option<Via>,
    ) {
        let mut state = State::default();
        let devices = kind.map(|kind| (TUNNEL, Device::new(kind, 1450)));
        state.devices.extend(devices);
        let mtu = Some(1400);
        let expected = via.map(|via| Way {
            interface: Leaving::Tunnel(TUNNEL),
            mtu,
            via,
        });
        assert_eq!(
            way(state, "10.1.1.0/24", over(next_hop, mtu)),
            Some(expected.ok_or(NoWay::Tunnel { device: TUNNEL }))
        );
    }

    #[test]
    fn a_tunnel_is_known_by_the_device_that_is_there() {
        let way = Way {
            interface: Leaving::Tunnel(TUNNEL),
            mtu: Some(1400),
            via: Via::Neighbour(address("10.1.1.0")),
        };
        let gone = NoWay::Gone { device: TUNNEL };
        assert_eq!(way.resolve(|_| None), Err(gone));
        let resolved = way.resolve(|name| (name == TUNNEL).then_some(7)).unwrap();
        assert_eq!((resolved.interface, resolved.mtu), (7, way.mtu));
        assert_eq!(resolved.via, way.via);
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
        let found = ways(&of(state), &[foreign("10.1.1.128/25")], &underlay());
        let destination = net("10.1.1.128/25");
        assert_eq!(
            found[&net("10.1.1.0/24")],
            Err(NoWay::Foreign { destination })
        );
        assert!(found[&net("10.1.2.0/24")].is_ok());
        assert_eq!(found.len(), 2);
    }

    #[test]
    fn the_routes_to_peers_themselves_lead_to_no_pods() {
        let mut state = State::default();
        let key = RouteKey::of_node(address("192.0.2.2"));
        state.routes.insert(key, gateway("192.0.2.2", 2, None));
        assert_eq!(ways(&of(state), &[], &underlay()), BTreeMap::new());
    }

    #[test]
    fn of_a_route_to_all_pods_each_peer_has_its_part_and_this_node_none() {
        let mut state = State::default();
        let bridge = Device::new(DeviceKind::Bridge, 1450);
        state.devices.insert(TUNNEL, bridge);
        for (range, target) in [
            ("10.1.0.0/16", over(NextHop::Direct, None)),
            // Reached otherwise, and this node's own.
            ("10.1.3.0/24", gateway("192.0.2.2", 2, None)),
            ("10.1.0.0/24", RouteTarget::Unreachable),
        ] {
            state.routes.insert(RouteKey::to(net(range)), target);
        }
        let mut plan = of(state);
        for range in ["10.1.1.0/24", "10.1.2.0/24", "10.1.3.0/24", "10.2.0.0/24"] {
            let way = crate::plan::Way {
                node: "peer".into(),
                backend: "vxlan-multicast",
            };
            plan.ways.insert(net(range), way);
        }
        let found = ways(&plan, &[foreign("10.1.2.0/25")], &underlay());
        let on_link = Way {
            interface: Leaving::Tunnel(TUNNEL),
            mtu: None,
            via: Via::OnLink,
        };
        let destination = net("10.1.2.0/25");
        let expected = [
            ("10.1.1.0/24", Ok(on_link)),
            ("10.1.2.0/24", Err(NoWay::Foreign { destination })),
            ("10.1.3.0/24", neighbour("192.0.2.2", 2, None)),
        ];
        assert_eq!(found, expected.map(|(range, way)| (net(range), way)).into());
    }
}
