//! The state wanted, and why some of it is not to be had.

mod basis;
mod claims;
mod leaving;
mod planner;
mod refusal;

use std::collections::BTreeMap;
use std::sync::Arc;

use ipnet::IpNet;

pub use basis::Basis;
pub use leaving::leaving;
pub use planner::Planner;
pub use refusal::{Reason, Refusal};

use crate::backend::Backend;
use crate::difference::Held;
use crate::model::{Name, Node, PerFamily, State};
use crate::underlay::Underlay;

/// The state wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// What the kernel is to hold.
    pub state: State,
    /// What was refused: of this node's own ranges, then by node name and range.
    pub refusals: Vec<Refusal>,
    /// Back ends this node cannot use at all, by name.
    pub unusable: Vec<(&'static str, Reason)>,
    /// By which back end each range of a peer is reached, and each address of a peer
    /// that this node's pods reach through a tunnel.
    pub ways: BTreeMap<IpNet, Way>,
    /// The largest packet pods may send, bytes, for each family: the least any
    /// back end of this node takes. `None` where none takes that family.
    pub mtu: PerFamily<u32>,
}

/// How a range is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way {
    /// The node whose range it is.
    pub node: Name,
    /// The back end.
    pub backend: &'static str,
}

/// The state this node needs, planned by a [`Planner`] that was told of all at once.
///
/// `backends` are those of this node, the preferred one first. The order of peers does
/// not matter; each has a name of its own. A range claimed twice goes to the node whose
/// name comes first.
pub fn plan<'a>(
    backends: &[Arc<dyn Backend>],
    own: &Node,
    peers: impl IntoIterator<Item = &'a Node>,
    underlay: &Underlay,
) -> Plan {
    let basis = Basis {
        backends: backends.to_vec(),
        own: own.clone(),
        underlay: underlay.clone(),
        ..Basis::default()
    };
    plan_on(basis, peers, &Held::default())
}

/// The same on a basis, of a node whose kernel holds something already: where two back
/// ends are as good as each other it goes on by the one its kernel sends by.
pub fn plan_on<'a>(basis: Basis, peers: impl IntoIterator<Item = &'a Node>, held: &Held) -> Plan {
    let mut planner = Planner::new();
    planner.set_basis(basis);
    for peer in peers {
        planner.set_peer(peer.clone());
    }
    planner.into_plan(held)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;
    use crate::backend::{Settings, by_name};
    use crate::choose::Told;
    use crate::difference::HeldDevice;
    use crate::model::{Route, RouteKey, RouteTable, overlap};
    use crate::underlay::Interface;
    use crate::underlay::Subnet;

    fn node(name: &str, addresses: &[&str], ranges: &[&str]) -> Node {
        Node {
            name: name.into(),
            addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
            ranges: ranges.iter().map(|text| text.parse().unwrap()).collect(),
            ..Node::default()
        }
    }

    /// `plan` with back ends by name.
    fn planned<'a>(
        backends: &[&str],
        own: &Node,
        peers: impl IntoIterator<Item = &'a Node>,
        underlay: &Underlay,
    ) -> Plan {
        let make = |name: &&str| by_name(name, &Settings::default()).expect("a back end");
        let backends: Vec<_> = backends.iter().map(make).collect();
        plan(&backends, own, peers, underlay)
    }

    fn connected(subnets: impl IntoIterator<Item = (&'static str, u32)>) -> Underlay {
        let mut underlay = Underlay::default();
        for (address, interface) in subnets {
            let address = address.parse().unwrap();
            underlay.subnets.push(Subnet { address, interface });
            let name = format!("eth{interface}");
            let mtu = 1500;
            underlay.interfaces.insert(
                interface,
                Interface {
                    name,
                    mtu,
                    ethernet: true,
                },
            );
        }
        underlay
    }

    fn underlay() -> Underlay {
        connected([
            ("192.168.64.11/24", 2),
            ("fd00:64::11/64", 2),
            ("172.16.5.1/16", 3),
        ])
    }

    fn own() -> Node {
        node(
            "node-1",
            &["192.168.64.11", "fd00:64::11"],
            &["10.200.1.0/24", "fd00:200:0:1::/64"],
        )
    }

    /// Those of the main table.
    fn routes(plan: &Plan) -> Vec<String> {
        routes_of(plan, RouteTable::Main)
    }

    fn routes_of(plan: &Plan, table: RouteTable) -> Vec<String> {
        let routes = plan.state.routes.iter();
        routes
            .filter(|(key, _)| key.table == table)
            .map(|(key, target)| {
                // Without the metrics of routes to peers, which say nothing.
                let mut key = *key;
                if key.metric == RouteKey::of_peer(key.destination).metric {
                    key.metric = RouteKey::to(key.destination).metric;
                }
                let target = *target;
                Route { key, target }.to_string()
            })
            .collect()
    }

    #[test]
    fn a_peer_is_the_gateway_to_its_ranges_in_both_families() {
        let peer = node(
            "node-2",
            &["fd00:64::12", "192.168.64.12"],
            &["10.200.2.0/24", "fd00:200:0:2::/64"],
        );
        let plan = planned(&["host-gw"], &own(), [&peer], &underlay());
        assert_eq!(
            routes(&plan),
            [
                "unreachable 10.200.1.0/24 metric 4000000000",
                "10.200.2.0/24 via 192.168.64.12 (interface 2)",
                "unreachable fd00:200:0:1::/64 metric 4000000000",
                "fd00:200:0:2::/64 via fd00:64::12 (interface 2)",
            ]
        );
        assert_eq!(plan.refusals, []);
    }

    #[test]
    fn host_bits_of_a_range_do_not_matter() {
        let peer = node("p", &["192.168.64.12"], &["10.200.2.77/24"]);
        let plan = planned(&["host-gw"], &node("o", &[], &[]), [&peer], &underlay());
        assert_eq!(
            routes(&plan),
            ["10.200.2.0/24 via 192.168.64.12 (interface 2)"]
        );
    }

    #[rstest]
    #[case::no_address_of_the_family(&["fd00:64::12"], "10.200.2.0/24", Reason::NoAddress)]
    #[case::other_subnet(&["192.168.65.12"], "10.200.2.0/24",
        Reason::OtherSubnet { address: "192.168.65.12".parse().unwrap() })]
    #[case::other_subnet_six(&["fd00:65::12"], "fd00:200:0:2::/64",
        Reason::OtherSubnet { address: "fd00:65::12".parse().unwrap() })]
    #[case::own_address(&["172.16.5.1"], "10.200.2.0/24",
        Reason::OwnAddress { address: "172.16.5.1".parse().unwrap() })]
    #[case::own_range(&["192.168.64.12"], "10.200.1.128/25",
        Reason::OwnRange { own: "10.200.1.0/24".parse().unwrap() })]
    #[case::own_range_inside(&["192.168.64.12"], "10.200.0.0/16",
        Reason::OwnRange { own: "10.200.1.0/24".parse().unwrap() })]
    #[case::underlay(&["192.168.64.12"], "192.168.0.0/16",
        Reason::Underlay { subnet: "192.168.64.0/24".parse().unwrap() })]
    #[case::underlay_part(&["192.168.64.12"], "172.16.9.0/24",
        Reason::Underlay { subnet: "172.16.0.0/16".parse().unwrap() })]
    #[case::single_address(&["192.168.64.12"], "10.200.2.1/32", Reason::Unusable)]
    #[case::everything(&["192.168.64.12"], "0.0.0.0/0", Reason::Unusable)]
    #[case::loopback(&["192.168.64.12"], "127.0.0.0/8", Reason::Unusable)]
    #[case::multicast(&["fd00:64::12"], "ff00::/8", Reason::Unusable)]
    #[case::link_local(&["fd00:64::12"], "fe80::/64", Reason::Unusable)]
    fn a_peer_that_cannot_be_reached_is_refused_with_the_reason(
        #[case] addresses: &[&str],
        #[case] range: &str,
        #[case] reason: Reason,
    ) {
        let good = node("good", &["192.168.64.13"], &["10.200.3.0/24"]);
        let bad = node("bad", addresses, &[range]);
        let plan = planned(&["host-gw"], &own(), [&bad, &good], &underlay());
        assert_eq!(
            plan.refusals,
            [Refusal {
                node: "bad".into(),
                range: range.parse().unwrap(),
                reason
            }]
        );
        // One bad peer costs nobody else anything.
        assert!(routes(&plan).contains(&"10.200.3.0/24 via 192.168.64.13 (interface 2)".into()));
        assert_eq!(plan.state.routes.len(), 3);
    }

    #[test]
    fn a_range_claimed_twice_goes_to_the_first_by_name() {
        let one = node("a", &["192.168.64.12"], &["10.200.2.0/24"]);
        let other = node("b", &["192.168.64.13"], &["10.200.2.128/25"]);
        for peers in [[&one, &other], [&other, &one]] {
            let plan = planned(&["host-gw"], &own(), peers, &underlay());
            assert_eq!(plan.refusals.len(), 1);
            assert_eq!(&*plan.refusals[0].node, "b");
            assert!(
                plan.refusals[0]
                    .to_string()
                    .contains("overlaps 10.200.2.0/24 of node a")
            );
        }
    }

    #[test]
    fn the_longest_matching_subnet_decides_the_interface() {
        let underlay = connected([
            ("192.168.0.1/16", 7),
            ("192.168.64.11/24", 2),
            ("192.168.64.9/24", 5),
        ]);
        let peer = node("p", &["192.168.64.12"], &["10.200.2.0/24"]);
        let plan = planned(&["host-gw"], &node("o", &[], &[]), [&peer], &underlay);
        assert_eq!(
            routes(&plan),
            ["10.200.2.0/24 via 192.168.64.12 (interface 2)"]
        );
    }

    #[test]
    fn a_node_alone_has_only_its_own_range() {
        let plan = planned(&["host-gw"], &own(), [], &underlay());
        assert_eq!(plan.state.routes.len(), 2);
        let bare = planned(&["host-gw"], &node("o", &[], &[]), [], &Underlay::default());
        assert_eq!(bare, Plan::default());
    }

    /// What a node with these back ends tells.
    fn told(node: Node, backends: &[&str], underlay: &Underlay) -> Node {
        let backends = made(backends);
        let data = crate::backend::publish(&backends, &node, underlay);
        Node {
            data: Some(data),
            ..node
        }
    }

    fn told_by<'a>(peers: impl IntoIterator<Item = &'a Node>) -> Told {
        let mut told = Told::default();
        let peers = peers.into_iter().filter_map(|peer| peer.data.as_ref());
        peers.for_each(|data| told.add(data));
        told
    }

    fn made(names: &[&str]) -> Vec<Arc<dyn Backend>> {
        let key = linux::wireguard::PrivateKey::from_bytes([7; 32]);
        let mut settings = Settings {
            wireguard: Some(crate::backend::Wireguard {
                private_key: key,
                public_key: crate::model::PublicKey([9; 32]),
                port: 51820,
            }),
            ..Settings::default()
        };
        settings.vxlan_multicast.cluster = vec![
            "10.200.0.0/16".parse().unwrap(),
            "fd00:200::/48".parse().unwrap(),
        ];
        let make = |name: &&str| by_name(name, &settings).expect("a back end");
        names.iter().map(make).collect()
    }

    #[rstest]
    #[case::host_gw("host-gw", 1500, 1500)]
    #[case::fixed("static", 1500, 1500)]
    #[case::ipip("ipip", 1480, 1460)]
    #[case::vxlan("vxlan", 1450, 1430)]
    #[case::vxlan_gpe("vxlan-gpe", 1464, 1444)]
    #[case::vxlan_multicast("vxlan-multicast", 1450, 1450)]
    #[case::wireguard("wireguard", 1440, 1440)]
    fn the_mtu_is_the_underlays_less_the_exact_overhead(
        #[case] backend: &str,
        #[case] v4: u32,
        #[case] v6: u32,
    ) {
        let plan = plan(&made(&[backend]), &own(), [], &underlay());
        assert_eq!(plan.unusable, []);
        assert_eq!((plan.mtu.v4, plan.mtu.v6), (Some(v4), Some(v6)));
        for (name, device) in &plan.state.devices {
            assert!([v4, v6].contains(&device.mtu), "{name}");
        }
    }

    #[test]
    fn with_cross_subnet_peers_are_direct_within_a_subnet_and_by_tunnel_across() {
        let ways = ["host-gw", "vxlan"];
        let near = node("near", &["192.168.64.12"], &["10.200.2.0/24"]);
        let far = node("far", &["192.168.65.12"], &["10.200.3.0/24"]);
        let peers = [near, far].map(|peer| told(peer, &ways, &underlay()));
        let plan = planned(&ways, &own(), &peers, &underlay());
        let routes = routes(&plan);
        assert!(
            routes.contains(&"10.200.2.0/24 via 192.168.64.12 (interface 2)".into()),
            "{routes:?}"
        );
        let tunnel = "10.200.3.0/24 via 10.200.3.0 on pw-vxlan from 10.200.1.0";
        assert!(routes.contains(&tunnel.into()), "{routes:?}");
        let of_peers = plan.ways.values();
        let of_peers: Vec<_> = of_peers.map(|way| (&*way.node, way.backend)).collect();
        // The last: the far one's own address. The near one is reached directly.
        let expected = [("near", "host-gw"), ("far", "vxlan"), ("far", "vxlan")];
        assert_eq!(of_peers, expected);
        let to_nodes = routes_of(&plan, RouteTable::OfPods);
        assert_eq!(
            to_nodes,
            ["192.168.65.12/32 via 10.200.3.0 on pw-vxlan table 1120"]
        );
        // Pods have one MTU for all peers.
        assert_eq!(plan.mtu.v4, Some(1450));
    }

    #[rstest]
    #[case::vxlan("vxlan", &["192.168.64.12/32 via 10.200.2.0 on pw-vxlan",
        "fd00:64::12/128 via fe80::80a:53ff:fe01:d05d on pw-vxlan6"])]
    #[case::vxlan_gpe("vxlan-gpe", &["192.168.64.12/32 to 192.168.64.12 with id 1 on pw-gpe",
        "fd00:64::12/128 to fd00:64::12 with id 1 on pw-gpe mtu 1444"])]
    #[case::ipip("ipip", &["192.168.64.12/32 via 192.168.64.12 on pw-ipip",
        "fd00:64::12/128 to fd00:64::12 with id 0 on pw-ip6tnl"])]
    #[case::wireguard("wireguard", &["192.168.64.12/32 on pw-wg", "fd00:64::12/128 on pw-wg"])]
    #[case::host_gw("host-gw", &[])]
    #[case::fixed("static", &[])]
    #[case::vxlan_multicast("vxlan-multicast", &[])]
    fn pods_reach_a_peer_itself_by_the_tunnel_to_its_pods(
        #[case] backend: &str,
        #[case] expected: &[&str],
    ) {
        let plan = plan(&made(&[backend]), &own(), [&dual(&[backend])], &underlay());
        assert_eq!(plan.refusals, []);
        let expected: Vec<_> = expected.iter().map(|r| format!("{r} table 1120")).collect();
        assert_eq!(routes_of(&plan, RouteTable::OfPods), expected);
        // Without routes into a tunnel no packet needs to be looked at twice.
        let rules: Vec<_> = plan.state.rules.iter().map(|rule| rule.from).collect();
        let ranges = if expected.is_empty() {
            vec![]
        } else {
            own().ranges
        };
        assert_eq!(rules, ranges);
    }

    /// A peer with everything, and a WireGuard key of its own.
    fn dual(backends: &[&str]) -> Node {
        let addresses = ["fd00:64::12", "192.168.64.12"];
        let peer = node("p", &addresses, &["10.200.2.0/24", "fd00:200:0:2::/64"]);
        let mut peer = told(peer, backends, &underlay());
        if let Some(wireguard) = &mut peer.data.as_mut().unwrap().wireguard {
            wireguard.public_key.0 = [8; 32];
        }
        peer
    }

    #[rstest]
    #[case::an_address_of_ours(|peer: &mut Node| peer.addresses.push("192.168.64.11".parse().unwrap()),
        &["192.168.64.12/32", "fd00:64::12/128"])]
    #[case::an_address_of_another(|peer: &mut Node| peer.addresses.push("192.168.64.13".parse().unwrap()),
        &["192.168.64.12/32", "fd00:64::12/128"])]
    #[case::a_second_address(|peer: &mut Node| peer.addresses.push("192.168.64.14".parse().unwrap()),
        &["192.168.64.12/32", "192.168.64.14/32", "fd00:64::12/128"])]
    #[case::no_pods_of_a_family(|peer: &mut Node| peer.ranges.truncate(1),
        &["192.168.64.12/32", "fd00:64::12/128"])]
    #[case::a_refused_range(|peer: &mut Node| peer.ranges[0] = "192.168.64.0/25".parse().unwrap(),
        &["fd00:64::12/128"])]
    fn of_a_peers_addresses_those_that_are_its_alone_are_reached_by_the_tunnel(
        #[case] change: impl FnOnce(&mut Node),
        #[case] expected: &[&str],
    ) {
        let mut peer = dual(&["wireguard"]);
        change(&mut peer);
        let other = node("a", &["192.168.64.13"], &["10.200.3.0/24"]);
        let backends = made(&["wireguard"]);
        let plan = plan(&backends, &own(), [&peer, &other], &underlay());
        let keys = plan.state.routes.keys();
        let of_pods = keys.filter(|key| key.table == RouteTable::OfPods);
        let reached: Vec<_> = of_pods.map(|key| key.destination.to_string()).collect();
        assert_eq!(reached, expected);
        // WireGuard sends to and accepts from a peer what is among its ranges.
        let [accepted] = &plan.state.tunnel_peers.values().collect::<Vec<_>>()[..] else {
            panic!("one peer has told its key")
        };
        let addresses = accepted
            .ranges
            .iter()
            .filter(|r| r.prefix_len() == r.max_prefix_len());
        let addresses: BTreeSet<_> = addresses.map(ToString::to_string).collect();
        assert!(
            expected.iter().all(|address| addresses.contains(*address)),
            "{addresses:?}"
        );
        assert!(!addresses.contains("192.168.64.11/32") && !addresses.contains("192.168.64.13/32"));
    }

    #[test]
    fn a_peer_with_a_smaller_underlay_has_it_in_its_routes() {
        let small = || {
            let peer = node("p", &["192.168.64.12"], &["10.200.2.0/24"]);
            let mut peer = told(peer, &["host-gw", "vxlan"], &underlay());
            peer.data.as_mut().unwrap().mtu.v4 = Some(1400);
            peer
        };
        for (backend, mtu) in [("host-gw", " mtu 1400"), ("vxlan", " mtu 1350")] {
            let plan = planned(&[backend], &own(), [&small()], &underlay());
            let mut routes = routes(&plan);
            routes.extend(routes_of(&plan, RouteTable::OfPods));
            let small = routes.iter().filter(|route| route.contains(mtu));
            let expected = if backend == "vxlan" { 2 } else { 1 };
            assert_eq!(small.count(), expected, "{routes:?}");
        }
    }

    #[test]
    fn pods_of_a_family_the_underlay_lacks_take_the_other() {
        let four = node("p", &["192.168.64.12"], &["fd00:200:0:2::/64"]);
        let planned = |backend: &str| {
            let peer = told(four.clone(), &[backend], &underlay());
            let plan = plan(&made(&[backend]), &own(), [&peer], &underlay());
            (routes(&plan).len() - 2, plan.refusals)
        };
        for backend in ["vxlan", "vxlan-gpe"] {
            assert_eq!(planned(backend), (1, vec![]), "{backend}");
        }
        for backend in ["host-gw", "static", "ipip"] {
            let (routes, refusals) = planned(backend);
            assert_eq!((routes, refusals.len()), (0, 1), "{backend}");
            assert_eq!(refusals[0].reason, Reason::NoAddress);
        }
    }

    fn with(change: impl FnOnce(&mut crate::data::NodeData)) -> Node {
        let peer = node("p", &["192.168.64.12"], &["10.200.2.0/24"]);
        let ways = ["vxlan", "vxlan-gpe", "wireguard"];
        let backends = made(&ways);
        let mut data = crate::backend::publish(&backends, &peer, &underlay());
        change(&mut data);
        Node {
            data: Some(data),
            ..peer
        }
    }

    #[rstest]
    #[case::the_peer_names_it(&["host-gw", "vxlan"], true, true)]
    #[case::the_peer_has_left_it(&["host-gw"], true, false)]
    #[case::it_was_never_here(&["host-gw", "vxlan"], false, false)]
    fn what_a_peer_may_still_send_by_is_received_and_nothing_sent_by_it(
        #[case] theirs: &[&str],
        #[case] is_there: bool,
        #[case] stays: bool,
    ) {
        let peer = node("p", &["192.168.64.12"], &["10.200.2.0/24"]);
        let peer = told(peer, theirs, &underlay());
        let before = plan(&made(&["vxlan"]), &own(), [&peer], &underlay()).state;
        let mut held = Held::default();
        for name in before.devices.into_keys().filter(|_| is_there) {
            let device = HeldDevice {
                index: 9,
                kind: None,
                mtu: 1450,
                mac: None,
                up: true,
                addresses: BTreeSet::new(),
                bridge: None,
                checksum_offload: true,
                wireguard: None,
            };
            held.devices.insert(name, device);
        }
        let (underlay, backends) = (underlay(), made(&["host-gw"]));
        let old = leaving(
            made(&["vxlan", "static"]),
            &own(),
            &told_by([&peer]),
            &underlay,
            &held,
        );
        let names: Vec<_> = old.iter().map(|backend| backend.name()).collect();
        assert_eq!(names, if stays { &["vxlan"][..] } else { &[] });
        let basis = Basis {
            backends: backends.clone(),
            leaving: old,
            own: own(),
            underlay: underlay.clone(),
            ..Basis::default()
        };
        let with = plan_on(basis, [&peer], &held);
        let mut without = plan(&backends, &own(), [&peer], &underlay);
        assert_eq!(with.state.devices.is_empty(), !stays);
        without.state.devices.clone_from(&with.state.devices);
        assert_eq!(with, without);
    }

    #[test]
    fn where_two_back_ends_are_as_good_the_one_the_kernel_sends_by_stays() {
        let addresses = ["fd00:64::12", "192.168.64.12"];
        let peer = node("p", &addresses, &["10.200.2.0/24", "fd00:200:0:2::/64"]);
        let peer = told(peer, &["host-gw", "vxlan"], &underlay());
        let mine = ["vxlan", "host-gw"];
        for (in_use, expected) in [
            (&mine[..1], "vxlan"),
            (&mine[1..], "host-gw"),
            (&[], "host-gw"),
        ] {
            let before = planned(in_use, &own(), [&peer], &underlay());
            let routes = before.state.routes.into_iter();
            let held = Held {
                routes: routes.map(|(key, target)| (key, Some(target))).collect(),
                ..Held::default()
            };
            let basis = Basis {
                backends: made(&mine),
                own: own(),
                underlay: underlay(),
                ..Basis::default()
            };
            let plan = plan_on(basis, [&peer], &held);
            let ways = plan.ways.iter();
            let mut of_pods = ways.filter(|(range, _)| peer.ranges.contains(range));
            assert!(of_pods.all(|(_, way)| way.backend == expected), "{plan:?}");
        }
    }

    #[rstest]
    #[case::nothing_in_common("host-gw", with(|_| {}), Reason::NothingInCommon {
        theirs: ["vxlan", "vxlan-gpe", "wireguard"].map(Into::into).to_vec() })]
    #[case::no_tunnel_end("vxlan", with(|data| data.vxlan = None), Reason::NoData)]
    #[case::told_nothing("vxlan", Node { data: None, ..with(|_| {}) }, Reason::NoData)]
    #[case::other_port("vxlan-gpe", with(|data| data.vxlan_gpe.as_mut().unwrap().port = 1),
        Reason::OtherPort { ours: 4790, theirs: 1 })]
    #[case::own_key("wireguard", with(|_| {}), Reason::OwnKey)]
    #[case::holds_a_node("host-gw",
        node("p", &["192.168.64.12", "10.200.2.9"], &["10.200.2.0/24"]),
        Reason::HoldsNode { node: "p".into(), address: "10.200.2.9".parse().unwrap() })]
    fn what_a_peer_lacks_is_named(
        #[case] backend: &str,
        #[case] peer: Node,
        #[case] reason: Reason,
    ) {
        let plan = plan(&made(&[backend]), &own(), [&peer], &underlay());
        assert_eq!(plan.refusals.len(), 1);
        assert_eq!(plan.refusals[0].reason, reason);
        assert!(!plan.refusals[0].to_string().is_empty());
    }

    #[test]
    fn two_nodes_with_the_same_hardware_address_do_not_share_an_entry() {
        let peers = [("a", 2), ("b", 3)].map(|(name, number)| {
            let range = format!("10.200.{number}.0/24");
            let peer = node("same", &[&format!("192.168.64.1{number}")], &[&range]);
            let peer = told(peer, &["vxlan"], &underlay());
            Node {
                name: name.into(),
                ..peer
            }
        });
        let plan = planned(&["vxlan"], &own(), &peers, &underlay());
        assert_eq!(plan.state.forwarding.len(), 1);
        let refused: Vec<_> = plan
            .refusals
            .iter()
            .map(|r| (&*r.node, &r.reason))
            .collect();
        assert_eq!(refused, [("b", &Reason::SameMac { node: "a".into() })]);
    }

    #[test]
    fn a_vxlan_setting_changed_node_by_node_is_followed() {
        let peer = with(|data| {
            let vxlan = data.vxlan.as_mut().unwrap();
            (vxlan.vni, vxlan.port) = (7, 4789);
        });
        let plan = planned(&["vxlan"], &own(), [&peer], &underlay());
        let remote = plan.state.forwarding.values().next().unwrap();
        assert_eq!((remote.vni, remote.port), (Some(7), Some(4789)));
    }

    fn any_node() -> impl Strategy<Value = Node> {
        ("[a-f]", 10_u8..20, 0_u8..12, 22_u8..27).prop_map(|(name, host, third, length)| {
            node(
                &name,
                &[&format!("192.168.64.{host}")],
                &[&format!("10.200.{third}.0/{length}")],
            )
        })
    }

    proptest! {
        #[test]
        fn the_order_of_peers_does_not_matter(
            peers in prop::collection::btree_map("[a-z]{1,3}", any_node(), 0..12)
                .prop_map(|nodes| nodes.into_iter()
                    .map(|(name, node)| Node { name: name.into(), ..node })
                    .collect::<Vec<_>>())
                .prop_flat_map(|nodes| (Just(nodes.clone()), Just(nodes).prop_shuffle()))
        ) {
            let (one, other) = peers;
            prop_assert_eq!(
                planned(&["host-gw"], &own(), &one, &underlay()),
                planned(&["host-gw"], &own(), &other, &underlay())
            );
        }

        #[test]
        fn the_order_of_peers_does_not_matter_whatever_their_back_ends(
            peers in prop::collection::btree_map("[a-z]{1,3}", (any_node(), 0..4_usize), 0..10)
                .prop_map(|nodes| nodes.into_iter()
                    .map(|(name, (node, ways))| {
                        let node = Node { name: name.into(), ..node };
                        let chosen: &[&str] = match ways {
                            0 => &["vxlan"],
                            1 => &["host-gw", "vxlan"],
                            2 => &["vxlan-gpe", "host-gw"],
                            _ => &["ipip"],
                        };
                        told(node, chosen, &underlay())
                    })
                    .collect::<Vec<_>>())
                .prop_flat_map(|nodes| (Just(nodes.clone()), Just(nodes).prop_shuffle()))
        ) {
            let (one, other) = peers;
            let ways = ["vxlan", "vxlan-gpe", "host-gw"];
            prop_assert_eq!(
                planned(&ways, &own(), &one, &underlay()),
                planned(&ways, &own(), &other, &underlay())
            );
        }

        #[test]
        fn no_two_routes_overlap_and_every_range_is_routed_or_refused(
            peers in prop::collection::btree_map("[a-f]", any_node(), 0..7)
        ) {
            let peers = peers.into_iter().map(|(name, node)| Node { name: name.into(), ..node });
            let peers: Vec<Node> = peers.collect();
            let plan = planned(&["host-gw"], &own(), &peers, &underlay());
            let ranges: Vec<IpNet> = plan.state.routes.keys().map(|key| key.destination).collect();
            for (i, one) in ranges.iter().enumerate() {
                for other in &ranges[i + 1..] {
                    prop_assert!(!overlap(one, other), "{} {}", one, other);
                }
            }
            let wanted: usize = peers.iter().map(|peer| peer.ranges.len()).sum();
            prop_assert_eq!(plan.state.routes.len() - 2 + plan.refusals.len(), wanted);
        }
    }
}
