//! What has to change so that the kernel holds what is wanted.

use std::collections::BTreeMap;
use std::fmt;

use ipnet::IpNet;

use crate::model::{LAST_RESORT_METRIC, Route, RouteKey, RouteTarget, overlap};

/// The protocol number of podwire's routes (`rtm_protocol`).
pub const PROTOCOL: u8 = linux::PODWIRE_ROUTE_PROTOCOL;

/// A route of the main table as the kernel holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelRoute {
    /// Destination and metric.
    pub key: RouteKey,
    /// Who made it (`rtm_protocol`).
    pub protocol: u8,
    /// Where it leads; `None` for anything podwire would never make.
    pub target: Option<RouteTarget>,
    /// Whether it leads over an interface of podwire's (the pods' bridge and links).
    pub over_own_interface: bool,
}

impl KernelRoute {
    /// Whether this is a route routing made: of our protocol, and not one of
    /// those the CNI plugin makes for single pods, which are host routes or lead
    /// over podwire's own interfaces.
    pub fn is_routings(&self) -> bool {
        let destination = self.key.destination;
        self.protocol == PROTOCOL
            && !self.over_own_interface
            && destination.prefix_len() < destination.max_prefix_len()
    }
}

/// What has to change. Carried out in the order of the fields, no destination
/// is ever without a route it had and keeps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Not there yet.
    pub add: Vec<Route>,
    /// There, ours, but leading elsewhere.
    pub replace: Vec<Route>,
    /// Ours and not wanted.
    pub remove: Vec<RouteKey>,
    /// Made by others and in the way.
    pub foreign: Vec<Foreign>,
}

impl Difference {
    /// Whether the kernel already holds what is wanted.
    pub fn is_empty(&self) -> bool {
        self.add.is_empty() && self.replace.is_empty() && self.remove.is_empty()
    }
}

/// A route somebody else made that diverts traffic of a range podwire routes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Foreign {
    /// Destination and metric of the foreign route.
    pub key: RouteKey,
    /// Who made it (`rtm_protocol`; /etc/iproute2/rt_protos has names).
    pub protocol: u8,
    /// The range podwire routes.
    pub range: IpNet,
    /// Whether it stands exactly where podwire's own route belongs, so that
    /// podwire's cannot be made.
    pub occupies: bool,
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Foreign {
            key,
            protocol,
            range,
            occupies,
        } = self;
        let effect = if *occupies {
            "keeps podwire's route from being made"
        } else {
            "takes traffic"
        };
        write!(
            f,
            "the route to {} (metric {}, protocol {protocol}) was not made by podwire and {effect} \
             of the pod range {range}; find out who made it (`ip route show proto {protocol}`) and \
             remove it",
            key.destination, key.metric
        )
    }
}

/// Compares what is wanted with everything the main table holds.
pub fn difference(wanted: &BTreeMap<RouteKey, RouteTarget>, held: &[KernelRoute]) -> Difference {
    let mut difference = Difference::default();
    let mut ours: BTreeMap<RouteKey, Option<RouteTarget>> = BTreeMap::new();
    for route in held {
        if route.is_routings() {
            ours.insert(route.key, route.target);
        } else if !route.over_own_interface && route.protocol != PROTOCOL {
            difference.foreign.extend(foreign(wanted, route));
        }
    }
    difference
        .foreign
        .sort_by_key(|foreign| (foreign.key, foreign.protocol));
    for (key, target) in wanted {
        let route = Route {
            key: *key,
            target: *target,
        };
        match ours.remove(key) {
            Some(held) if held == Some(*target) => {}
            Some(_) => difference.replace.push(route),
            None if difference
                .foreign
                .iter()
                .any(|f| f.occupies && f.key == *key) => {}
            None => difference.add.push(route),
        }
    }
    difference.remove.extend(ours.into_keys());
    difference
}

/// Whether a route made by somebody else takes traffic from one of ours: it is
/// as specific or more so, and preferred.
fn foreign(wanted: &BTreeMap<RouteKey, RouteTarget>, route: &KernelRoute) -> Option<Foreign> {
    let destination = route.key.destination;
    // Wanted destinations are disjoint but for the Service range, which loses
    // to everything on purpose.
    let (key, _) = wanted.iter().find(|(key, target)| {
        let diverted = match target {
            RouteTarget::Link { .. } => false,
            RouteTarget::Gateway { .. } | RouteTarget::Unreachable => {
                overlap(&key.destination, &destination)
                    && destination.prefix_len() >= key.destination.prefix_len()
                    && (destination != key.destination || route.key.metric <= key.metric)
            }
        };
        diverted || **key == route.key
    })?;
    // A foreign last resort beside our own is no harm.
    if route.key.metric > LAST_RESORT_METRIC {
        return None;
    }
    Some(Foreign {
        key: route.key,
        protocol: route.protocol,
        range: key.destination,
        occupies: *key == route.key,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;
    use crate::model::default_metric;

    fn key(destination: &str) -> RouteKey {
        let destination: IpNet = destination.parse().unwrap();
        RouteKey {
            destination,
            metric: default_metric(&destination),
        }
    }

    fn via(gateway: &str) -> RouteTarget {
        RouteTarget::Gateway {
            address: gateway.parse().unwrap(),
            interface: 2,
        }
    }

    fn wanted(routes: &[(&str, &str)]) -> BTreeMap<RouteKey, RouteTarget> {
        routes
            .iter()
            .map(|(destination, gateway)| (key(destination), via(gateway)))
            .collect()
    }

    fn held(destination: &str, gateway: &str, protocol: u8) -> KernelRoute {
        KernelRoute {
            key: key(destination),
            protocol,
            target: Some(via(gateway)),
            over_own_interface: false,
        }
    }

    const STATIC: u8 = 4;

    #[test]
    fn what_is_there_already_is_adopted() {
        let wanted = wanted(&[
            ("10.200.2.0/24", "192.168.64.12"),
            ("fd00:200:0:2::/64", "fd00:64::12"),
        ]);
        let held = [
            held("10.200.2.0/24", "192.168.64.12", PROTOCOL),
            held("fd00:200:0:2::/64", "fd00:64::12", PROTOCOL),
        ];
        assert_eq!(difference(&wanted, &held), Difference::default());
    }

    #[test]
    fn only_what_differs_changes() {
        let wanted = wanted(&[
            ("10.200.2.0/24", "192.168.64.12"),
            ("10.200.3.0/24", "192.168.64.13"),
            ("10.200.4.0/24", "192.168.64.14"),
        ]);
        let held = [
            held("10.200.2.0/24", "192.168.64.12", PROTOCOL),
            held("10.200.3.0/24", "192.168.64.99", PROTOCOL),
            held("10.200.9.0/24", "192.168.64.19", PROTOCOL),
        ];
        let difference = difference(&wanted, &held);
        let route = |destination, gateway| Route {
            key: key(destination),
            target: via(gateway),
        };
        assert_eq!(difference.add, [route("10.200.4.0/24", "192.168.64.14")]);
        assert_eq!(
            difference.replace,
            [route("10.200.3.0/24", "192.168.64.13")]
        );
        assert_eq!(difference.remove, [key("10.200.9.0/24")]);
        assert_eq!(difference.foreign, []);
    }

    #[rstest]
    #[case::pod_four("10.200.1.5/32", false)]
    #[case::pod_six("fd00:200:0:1::5/128", false)]
    #[case::over_a_pods_link("10.200.1.0/24", true)]
    fn routes_of_pods_are_left_alone(#[case] destination: &str, #[case] over_own_interface: bool) {
        let pod = KernelRoute {
            target: None,
            over_own_interface,
            ..held(destination, "192.168.64.1", PROTOCOL)
        };
        assert_eq!(difference(&BTreeMap::new(), &[pod]), Difference::default());
    }

    #[rstest]
    #[case::same_destination("10.200.2.0/24", 0, Some(true))]
    #[case::more_specific("10.200.2.128/25", 0, Some(false))]
    #[case::more_specific_whatever_its_metric("10.200.2.7/32", 500, Some(false))]
    #[case::less_specific("10.0.0.0/8", 0, None)]
    #[case::default("0.0.0.0/0", 0, None)]
    #[case::elsewhere("10.200.3.0/24", 0, None)]
    #[case::same_destination_but_not_preferred("10.200.2.0/24", 100, None)]
    fn a_foreign_route_is_reported_when_it_takes_traffic(
        #[case] destination: &str,
        #[case] metric: u32,
        #[case] occupies: Option<bool>,
    ) {
        let wanted = wanted(&[("10.200.2.0/24", "192.168.64.12")]);
        let mut foreign = held(destination, "192.168.64.99", STATIC);
        foreign.key.metric = metric;
        let difference = difference(&wanted, &[foreign]);
        assert_eq!(
            difference.foreign.first().map(|foreign| foreign.occupies),
            occupies
        );
        // Never removed; and ours is made unless its very place is taken.
        assert_eq!(difference.remove, []);
        assert_eq!(difference.replace, []);
        assert_eq!(difference.add.len(), usize::from(occupies != Some(true)));
    }

    #[test]
    fn the_pods_bridge_inside_the_own_range_is_not_foreign() {
        let own = RouteKey {
            destination: "10.200.1.0/24".parse().unwrap(),
            metric: LAST_RESORT_METRIC,
        };
        let wanted = BTreeMap::from([(own, RouteTarget::Unreachable)]);
        let mut bridge = held("10.200.1.0/24", "10.200.1.1", 2);
        bridge.over_own_interface = true;
        assert_eq!(
            difference(&wanted, std::slice::from_ref(&bridge)).foreign,
            []
        );
        bridge.over_own_interface = false;
        assert_eq!(difference(&wanted, &[bridge]).foreign.len(), 1);
    }

    /// The kernel, as far as a difference concerns it.
    fn carry_out(difference: &Difference, held: &[KernelRoute]) -> Vec<KernelRoute> {
        let mut held = held.to_vec();
        for route in &difference.add {
            assert!(
                !held.iter().any(|h| h.key == route.key),
                "add of what is there: {route}"
            );
            held.push(KernelRoute {
                key: route.key,
                protocol: PROTOCOL,
                target: Some(route.target),
                over_own_interface: false,
            });
        }
        for route in &difference.replace {
            let old = held
                .iter_mut()
                .find(|h| h.key == route.key)
                .expect("it is there");
            assert_eq!(old.protocol, PROTOCOL, "a foreign route was replaced");
            old.target = Some(route.target);
        }
        for key in &difference.remove {
            let at = held
                .iter()
                .position(|h| h.key == *key)
                .expect("it is there");
            assert_eq!(
                held.remove(at).protocol,
                PROTOCOL,
                "a foreign route was removed"
            );
        }
        held
    }

    fn any_held() -> impl Strategy<Value = Vec<KernelRoute>> {
        let route = (
            0_u8..6,
            24_u8..33,
            10_u8..13,
            prop_oneof![Just(PROTOCOL), Just(STATIC)],
            any::<bool>(),
        );
        let route = route.prop_map(|(third, length, gateway, protocol, over_own_interface)| {
            let range: IpNet = format!("10.200.{third}.0/{length}").parse().unwrap();
            KernelRoute {
                over_own_interface,
                ..held(
                    &range.to_string(),
                    &format!("192.168.64.{gateway}"),
                    protocol,
                )
            }
        });
        // The kernel holds one route a key.
        prop::collection::vec(route, 0..12).prop_map(|routes| {
            let by_key: BTreeMap<RouteKey, KernelRoute> =
                routes.into_iter().map(|route| (route.key, route)).collect();
            by_key.into_values().collect()
        })
    }

    fn any_wanted() -> impl Strategy<Value = BTreeMap<RouteKey, RouteTarget>> {
        prop::collection::btree_map(0_u8..6, 10_u8..13, 0..6).prop_map(|routes| {
            routes
                .into_iter()
                .map(|(third, gateway)| {
                    (
                        key(&format!("10.200.{third}.0/24")),
                        via(&format!("192.168.64.{gateway}")),
                    )
                })
                .collect()
        })
    }

    proptest! {
        #[test]
        fn carried_out_it_gives_what_is_wanted_and_leaves_the_rest(
            wanted in any_wanted(), held in any_held()
        ) {
            // A route over our own interface at a wanted place is the plugin's business.
            let held: Vec<KernelRoute> = held
                .into_iter()
                .filter(|h| !(h.over_own_interface && wanted.contains_key(&h.key)))
                .collect();
            let first = difference(&wanted, &held);
            let after = carry_out(&first, &held);
            let second = difference(&wanted, &after);
            prop_assert!(second.is_empty(), "{second:?}");
            prop_assert_eq!(&second.foreign, &first.foreign);
            for (key, target) in &wanted {
                let at = after.iter().find(|h| h.key == *key);
                prop_assert!(at.is_some_and(|h| h.protocol != PROTOCOL || h.target == Some(*target)));
            }
            for before in held.iter().filter(|h| !h.is_routings()) {
                prop_assert!(after.contains(before));
            }
            for route in after.iter().filter(|h| h.is_routings()) {
                prop_assert!(wanted.contains_key(&route.key));
            }
        }
    }
}
