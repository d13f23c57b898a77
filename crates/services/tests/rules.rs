//! The rules of Services, as tables: who may go where, under which address,
//! said by the packet walker over the planned rules.

use std::collections::BTreeSet;
use std::net::IpAddr;

use TrafficPolicy::Local;
use podwire_services::compile::Number;
use podwire_services::difference::{Shadow, difference, everything};
use podwire_services::simulate::{Planned, Verdict, planned, simulate};
use podwire_services::table::Table;
use podwire_services::{
    Backend, Endpoint, EndpointSlice, Family, FrontendKey, NodeFacts, Protocol, ProxyMode, Service,
    ServiceName, ServicePort, SlicePort, TrafficPolicy,
};
use rstest::rstest;

/// The addresses of one family.
struct Plan {
    family: Family,
    node: &'static str,
    cluster_ip: &'static str,
    external_ip: &'static str,
    free_ip: &'static str,
    local: &'static str,
    other_local: &'static str,
    remote: &'static str,
    outside: &'static str,
}

const V4: Plan = Plan {
    family: Family::V4,
    node: "192.168.64.11",
    cluster_ip: "10.96.0.10",
    external_ip: "203.0.113.80",
    free_ip: "10.96.0.99",
    local: "10.200.1.10",
    other_local: "10.200.1.11",
    remote: "10.200.2.10",
    outside: "198.51.100.7",
};

const V6: Plan = Plan {
    family: Family::V6,
    node: "fd00:64::11",
    cluster_ip: "fd00:96::10",
    external_ip: "2001:db8:113::80",
    free_ip: "fd00:96::99",
    local: "fd00:200:0:1::10",
    other_local: "fd00:200:0:1::11",
    remote: "fd00:200:0:2::10",
    outside: "2001:db8:7::7",
};

const PORT: u16 = 80;
const NODE_PORT: u16 = 30080;
const TARGET: u16 = 8080;

fn ip(text: &str) -> IpAddr {
    text.parse().expect("a literal")
}

fn facts() -> NodeFacts {
    let cidrs = |list: &[&str]| {
        list.iter()
            .map(|text| text.parse().expect("a literal"))
            .collect()
    };
    NodeFacts {
        node: "node-1".to_owned(),
        zone: Some("zone-a".to_owned()),
        addresses: vec![ip(V4.node), ip(V6.node)],
        pod_cidrs: cidrs(&["10.200.1.0/24", "fd00:200:0:1::/64"]),
        cluster_cidrs: cidrs(&["10.200.0.0/16", "fd00:200::/48"]),
        node_addresses: vec![
            ip(V4.node),
            ip(V6.node),
            ip("192.168.64.12"),
            ip("fd00:64::12"),
        ],
        service_cidrs: cidrs(&["10.96.0.0/12", "fd00:96::/112"]),
        ..NodeFacts::default()
    }
}

fn service() -> Service {
    Service {
        name: ServiceName::new("default", "web"),
        cluster_ips: vec![V4.cluster_ip.to_owned(), V6.cluster_ip.to_owned()],
        load_balancer_ips: vec![V4.external_ip.to_owned(), V6.external_ip.to_owned()],
        ports: vec![ServicePort {
            name: "http".to_owned(),
            protocol: Protocol::Tcp,
            port: PORT.into(),
            node_port: Some(NODE_PORT.into()),
        }],
        ..Service::default()
    }
}

fn slice(name: &str, family: Family, endpoints: Vec<Endpoint>) -> EndpointSlice {
    EndpointSlice {
        namespace: "default".to_owned(),
        name: name.to_owned(),
        service: "web".to_owned(),
        family,
        ports: vec![SlicePort {
            name: "http".to_owned(),
            protocol: Protocol::Tcp,
            port: Some(TARGET.into()),
        }],
        endpoints,
    }
}

fn endpoint(address: &str, node: &str) -> Endpoint {
    Endpoint {
        address: address.to_owned(),
        node: Some(node.to_owned()),
        ..Endpoint::default()
    }
}

/// A table with the Service and, per family, these endpoints.
fn table(service: Service, endpoints: impl Fn(&Plan) -> Vec<Endpoint>) -> Table {
    let mut table = Table::new(facts());
    table.set_service(service);
    for plan in [&V4, &V6] {
        table.set_slice(&slice(
            &format!("web-{:?}", plan.family),
            plan.family,
            endpoints(plan),
        ));
    }
    table
}

fn local_and_remote(plan: &Plan) -> Vec<Endpoint> {
    vec![
        endpoint(plan.local, "node-1"),
        endpoint(plan.remote, "node-2"),
    ]
}

/// All that can become of a connection, whatever is drawn. The proxies are of one
/// mind.
fn outcomes(table: &Table, source: &str, to: (&str, u16), protocol: Protocol) -> BTreeSet<String> {
    let of = |mode| outcomes_of(mode, table, source, to, protocol);
    let said = of(ProxyMode::Nftables);
    for mode in [ProxyMode::Iptables, ProxyMode::Ipvs] {
        assert_eq!(of(mode), said, "{mode}: {source} to {to:?}");
    }
    said
}

fn outcomes_of(
    mode: ProxyMode,
    table: &Table,
    source: &str,
    to: (&str, u16),
    protocol: Protocol,
) -> BTreeSet<String> {
    let rules = Planned::of(mode, table).expect("a plan the strict model takes");
    (0..8)
        .map(|drawn| {
            let simulation = simulate(
                &rules,
                table.facts(),
                ip(source),
                (ip(to.0), to.1),
                protocol,
                &mut |modulus| drawn % modulus,
            );
            match simulation.verdict {
                Verdict::Direct { masqueraded } => format!("direct{}", mark(masqueraded)),
                Verdict::Service {
                    backend,
                    masqueraded,
                } => format!("{}{}", backend.address, mark(masqueraded)),
                Verdict::Refused => "refused".to_owned(),
                Verdict::Dropped => "dropped".to_owned(),
            }
        })
        .collect()
}

fn mark(masqueraded: bool) -> &'static str {
    if masqueraded { " m" } else { "" }
}

/// The three columns of the table: both Cluster, external Local, internal Local.
fn columns() -> [Service; 3] {
    [
        service(),
        Service {
            external_policy: Local,
            ..service()
        },
        Service {
            internal_policy: Local,
            ..service()
        },
    ]
}

#[rstest]
#[case::pod_to_cluster_ip("pod", "cluster", ["LR", "LR", "L"])]
#[case::pod_to_node_port("pod", "node port", ["LR m", "LR", "LR m"])]
#[case::pod_to_external_ip("pod", "external", ["LR m", "LR", "LR m"])]
#[case::node_to_cluster_ip("node", "cluster", ["LR m", "LR m", "L m"])]
#[case::node_to_node_port("node", "node port", ["LR m", "LR m", "LR m"])]
#[case::node_to_external_ip("node", "external", ["LR m", "LR m", "LR m"])]
#[case::outside_to_cluster_ip("outside", "cluster", ["LR m", "LR m", "L m"])]
#[case::outside_to_node_port("outside", "node port", ["LR m", "L", "LR m"])]
#[case::outside_to_external_ip("outside", "external", ["LR m", "L", "LR m"])]
fn who_reaches_what_under_which_address(
    #[case] from: &str,
    #[case] to: &str,
    #[case] expected: [&str; 3],
) {
    for plan in [&V4, &V6] {
        let (source, destination) = ends(plan, from, to);
        for (service, expected) in columns().into_iter().zip(expected) {
            let table = table(service, local_and_remote);
            assert_eq!(
                outcomes(&table, source, destination, Protocol::Tcp),
                wanted(plan, expected),
                "{from} to {to}, expected {expected}"
            );
        }
    }
}

/// The same with the options that change it. Of an endpoint that asks itself
/// see below: it is masqueraded whatever the options say.
#[rstest]
#[case::pod_to_cluster_ip_all("pod", "cluster", true, false, ["LR m", "LR m", "L m"])]
#[case::pod_to_node_port_all("pod", "node port", true, false, ["LR m", "LR", "LR m"])]
#[case::node_to_cluster_ip_all("node", "cluster", true, false, ["LR m", "LR m", "L m"])]
#[case::outside_to_node_port_all("outside", "node port", true, false, ["LR m", "L", "LR m"])]
#[case::pod_to_cluster_ip_blind("pod", "cluster", false, true, ["LR", "LR", "L"])]
#[case::node_to_cluster_ip_blind("node", "cluster", false, true, ["LR", "LR", "L"])]
#[case::outside_to_cluster_ip_blind("outside", "cluster", false, true, ["LR", "LR", "L"])]
#[case::pod_to_node_port_blind("pod", "node port", false, true, ["LR m", "L", "LR m"])]
#[case::pod_to_external_ip_blind("pod", "external", false, true, ["LR m", "L", "LR m"])]
#[case::node_to_node_port_blind("node", "node port", false, true, ["LR m", "LR m", "LR m"])]
#[case::outside_to_external_ip_blind("outside", "external", false, true, ["LR m", "L", "LR m"])]
fn options_change_who_is_masqueraded(
    #[case] from: &str,
    #[case] to: &str,
    #[case] masquerade_all: bool,
    #[case] no_local_detection: bool,
    #[case] expected: [&str; 3],
) {
    for plan in [&V4, &V6] {
        let (source, destination) = ends(plan, from, to);
        for (service, expected) in columns().into_iter().zip(expected) {
            let mut table = table(service, local_and_remote);
            table.set_facts(NodeFacts {
                masquerade_all,
                no_local_detection,
                ..facts()
            });
            assert_eq!(
                outcomes(&table, source, destination, Protocol::Tcp),
                wanted(plan, expected),
                "{from} to {to}, expected {expected}"
            );
            // Endpoints ask themselves under the node's address all the same.
            let own = outcomes(&table, plan.local, (plan.cluster_ip, PORT), Protocol::Tcp);
            assert!(own.contains(&format!("{} m", plan.local)), "{own:?}");
        }
    }
}

/// Who asks what: source, and address with port.
fn ends(plan: &Plan, from: &str, to: &str) -> (&'static str, (&'static str, u16)) {
    let source = match from {
        "pod" => plan.other_local,
        "node" => plan.node,
        _ => plan.outside,
    };
    let destination = match to {
        "cluster" => (plan.cluster_ip, PORT),
        "external" => (plan.external_ip, PORT),
        _ => (plan.node, NODE_PORT),
    };
    (source, destination)
}

/// What a cell of the table means: L and R are endpoints, m is masqueraded.
fn wanted(plan: &Plan, cell: &str) -> BTreeSet<String> {
    let masquerade = mark(cell.ends_with('m'));
    let mut wanted = BTreeSet::new();
    if cell.contains('L') {
        wanted.insert(format!("{}{masquerade}", plan.local));
    }
    if cell.contains('R') {
        wanted.insert(format!("{}{masquerade}", plan.remote));
    }
    wanted
}

#[test]
fn affinity_and_permitted_sources_change_nothing_in_the_table() {
    let all = [
        ("pod", "cluster"),
        ("pod", "node port"),
        ("pod", "external"),
        ("node", "cluster"),
        ("node", "node port"),
        ("node", "external"),
        ("outside", "cluster"),
        ("outside", "node port"),
        ("outside", "external"),
    ];
    for service in columns() {
        let plain = table(service.clone(), local_and_remote);
        let more = table(
            Service {
                affinity: Some(10_800),
                source_ranges: vec![
                    "0.0.0.0/1".into(),
                    "128.0.0.0/1".into(),
                    "::/1".into(),
                    "8000::/1".into(),
                ],
                ..service
            },
            local_and_remote,
        );
        for plan in [&V4, &V6] {
            for (from, to) in all {
                let (source, destination) = ends(plan, from, to);
                assert_eq!(
                    outcomes(&more, source, destination, Protocol::Tcp),
                    outcomes(&plain, source, destination, Protocol::Tcp),
                    "{from} to {to}"
                );
            }
        }
    }
}

#[rstest]
#[case::permitted("outside", "external", &["198.51.100.0/24", "2001:db8:7::/64"], "LR m")]
#[case::others("pod", "external", &["198.51.100.0/24", "2001:db8:7::/64"], "dropped")]
#[case::not_of_node_ports("pod", "node port", &["198.51.100.0/24", "2001:db8:7::/64"], "LR m")]
#[case::not_of_cluster_addresses("pod", "cluster", &["198.51.100.0/24", "2001:db8:7::/64"], "LR")]
#[case::none_can_be_read("outside", "external", &["nonsense"], "dropped")]
fn load_balancer_addresses_have_a_filter(
    #[case] from: &str,
    #[case] to: &str,
    #[case] ranges: &[&str],
    #[case] expected: &str,
) {
    let table = table(
        Service {
            source_ranges: ranges.iter().map(|text| (*text).to_owned()).collect(),
            ..service()
        },
        local_and_remote,
    );
    for plan in [&V4, &V6] {
        let (source, destination) = ends(plan, from, to);
        let expected = match expected {
            "dropped" => BTreeSet::from(["dropped".to_owned()]),
            cell => wanted(plan, cell),
        };
        assert_eq!(
            outcomes(&table, source, destination, Protocol::Tcp),
            expected
        );
    }
}

#[test]
fn every_protocol_has_its_own_port_of_the_same_number() {
    for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
        let mut only = service();
        only.ports[0].protocol = protocol;
        let mut table = table(only, |_| Vec::new());
        for plan in [&V4, &V6] {
            let mut slice = slice(
                &format!("web-{:?}", plan.family),
                plan.family,
                local_and_remote(plan),
            );
            slice.ports[0].protocol = protocol;
            table.set_slice(&slice);
        }
        for plan in [&V4, &V6] {
            for asked in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
                let seen = outcomes(&table, plan.other_local, (plan.cluster_ip, PORT), asked);
                let expected = if asked == protocol {
                    wanted(plan, "LR")
                } else {
                    BTreeSet::from(["refused".to_owned()])
                };
                assert_eq!(seen, expected, "{protocol:?} asked by {asked:?}");
            }
        }
    }
}

#[rstest]
#[case::none_anywhere(service(), "outside", "node port", &[], "refused")]
#[case::none_anywhere_local(Service { external_policy: Local, internal_policy: Local, ..service() }, "outside", "node port", &[], "refused")]
#[case::none_anywhere_pod(Service { external_policy: Local, internal_policy: Local, ..service() }, "pod", "cluster", &[], "refused")]
#[case::external_local_none_here(Service { external_policy: Local, ..service() }, "outside", "node port", &["R"], "dropped")]
#[case::internal_local_none_here(Service { internal_policy: Local, ..service() }, "pod", "cluster", &["R"], "dropped")]
#[case::internal_local_none_here_node(Service { internal_policy: Local, ..service() }, "node", "cluster", &["R"], "dropped")]
#[case::external_local_none_here_pod(Service { external_policy: Local, ..service() }, "pod", "node port", &["R"], "R")]
#[case::external_local_none_here_node(Service { external_policy: Local, ..service() }, "node", "node port", &["R"], "R m")]
fn empty_lists_refuse_or_drop(
    #[case] service: Service,
    #[case] from: &str,
    #[case] to: &str,
    #[case] endpoints: &[&str],
    #[case] expected: &str,
) {
    let table = table(service, |plan| {
        endpoints
            .iter()
            .map(|_| endpoint(plan.remote, "node-2"))
            .collect()
    });
    for plan in [&V4, &V6] {
        let source = match from {
            "pod" => plan.other_local,
            "node" => plan.node,
            _ => plan.outside,
        };
        let destination = match to {
            "cluster" => (plan.cluster_ip, PORT),
            _ => (plan.node, NODE_PORT),
        };
        let wanted = expected.replace('R', plan.remote);
        assert_eq!(
            outcomes(&table, source, destination, Protocol::Tcp),
            BTreeSet::from([wanted])
        );
    }
}

#[test]
fn what_no_service_has_is_refused_dropped_or_left_alone() {
    let table = table(service(), local_and_remote);
    for plan in [&V4, &V6] {
        for (to, protocol, expected) in [
            ((plan.cluster_ip, 81), Protocol::Tcp, "refused"),
            // The same number of another protocol is another port.
            ((plan.cluster_ip, PORT), Protocol::Udp, "refused"),
            ((plan.free_ip, PORT), Protocol::Tcp, "dropped"),
            ((plan.node, 30081), Protocol::Tcp, "direct"),
            ((plan.node, NODE_PORT), Protocol::Udp, "direct"),
            ((plan.remote, TARGET), Protocol::Tcp, "direct"),
            ((plan.outside, 443), Protocol::Tcp, "direct m"),
        ] {
            assert_eq!(
                outcomes(&table, plan.other_local, to, protocol),
                BTreeSet::from([expected.to_owned()]),
                "{to:?}"
            );
        }
        // What is not a pod of this node leaves under its own address.
        assert_eq!(
            outcomes(&table, plan.remote, (plan.outside, 443), Protocol::Tcp),
            BTreeSet::from(["direct".to_owned()])
        );
    }
}

#[test]
fn an_endpoint_that_draws_itself_is_masqueraded() {
    for plan in [&V4, &V6] {
        for service in columns() {
            let external_local = service.external_policy == Local;
            let internal_local = service.internal_policy == Local;
            let table = table(service, local_and_remote);
            let mut wanted = BTreeSet::from([format!("{} m", plan.local)]);
            if !internal_local {
                wanted.insert(plan.remote.to_owned());
            }
            let to = (plan.cluster_ip, PORT);
            assert_eq!(outcomes(&table, plan.local, to, Protocol::Tcp), wanted);
            if external_local {
                let to = (plan.node, NODE_PORT);
                assert_eq!(outcomes(&table, plan.local, to, Protocol::Tcp), wanted);
            }
        }
    }
}

fn key4() -> FrontendKey {
    FrontendKey {
        address: ip(V4.cluster_ip),
        protocol: Protocol::Tcp,
        port: PORT,
    }
}

/// Addresses of the backends of the IPv4 cluster address.
fn backends(table: &Table) -> Vec<String> {
    table
        .frontend(&key4())
        .expect("programmed")
        .cluster
        .iter()
        .map(|backend| backend.address.to_string())
        .collect()
}

fn with(change: impl FnOnce(&mut Endpoint)) -> Endpoint {
    let mut endpoint = endpoint("10.200.2.20", "node-2");
    change(&mut endpoint);
    endpoint
}

#[rstest]
#[case::ready_unset_is_ready(vec![with(|_| ())], &["10.200.2.20"])]
#[case::not_ready(vec![with(|e| e.ready = Some(false))], &[])]
#[case::ending_is_used_alone(
    vec![with(|e| { e.ready = Some(false); e.serving = Some(true); e.terminating = Some(true); })],
    &["10.200.2.20"])]
#[case::ending_without_serving(
    vec![with(|e| { e.ready = Some(false); e.serving = Some(false); e.terminating = Some(true); })],
    &[])]
#[case::serving_but_not_ending_is_not_a_fallback(
    vec![with(|e| { e.ready = Some(false); e.serving = Some(true); })],
    &[])]
#[case::ready_beats_ending(
    vec![endpoint("10.200.2.21", "node-2"), with(|e| { e.ready = Some(false); e.serving = Some(true); e.terminating = Some(true); })],
    &["10.200.2.21"])]
#[case::bad_addresses_are_skipped(
    vec![with(|e| e.address = "nonsense".to_owned()), with(|e| e.address = "fd00::1".to_owned()), with(|e| e.address = "010.200.002.022".to_owned())],
    &["10.200.2.22"])]
#[case::zone_hints(
    vec![with(|e| e.zone_hints = vec!["zone-a".to_owned()]), with(|e| { e.address = "10.200.2.21".to_owned(); e.zone_hints = vec!["zone-b".to_owned()]; })],
    &["10.200.2.20"])]
#[case::a_missing_hint_turns_hints_off(
    vec![with(|e| e.zone_hints = vec!["zone-a".to_owned()]), with(|e| e.address = "10.200.2.21".to_owned())],
    &["10.200.2.20", "10.200.2.21"])]
#[case::hints_of_other_zones_only(
    vec![with(|e| e.zone_hints = vec!["zone-b".to_owned()])],
    &["10.200.2.20"])]
#[case::node_hints_before_zone_hints(
    vec![with(|e| { e.zone_hints = vec!["zone-a".to_owned()]; e.node_hints = vec!["node-2".to_owned()]; }),
         with(|e| { e.address = "10.200.2.21".to_owned(); e.zone_hints = vec!["zone-a".to_owned()]; e.node_hints = vec!["node-1".to_owned()]; })],
    &["10.200.2.21"])]
#[case::node_hints_of_other_nodes_leave_it_to_the_zone(
    vec![with(|e| { e.zone_hints = vec!["zone-a".to_owned()]; e.node_hints = vec!["node-2".to_owned()]; }),
         with(|e| { e.address = "10.200.2.21".to_owned(); e.zone_hints = vec!["zone-b".to_owned()]; e.node_hints = vec!["node-3".to_owned()]; })],
    &["10.200.2.20"])]
#[case::those_not_ready_have_no_say_about_hints(
    vec![with(|e| e.zone_hints = vec!["zone-a".to_owned()]),
         with(|e| { e.address = "10.200.2.21".to_owned(); e.ready = Some(false); })],
    &["10.200.2.20"])]
fn which_endpoints_are_used(#[case] endpoints: Vec<Endpoint>, #[case] expected: &[&str]) {
    let table = table(service(), |plan| match plan.family {
        Family::V4 => endpoints.clone(),
        Family::V6 => Vec::new(),
    });
    assert_eq!(backends(&table), expected);
}

#[test]
fn a_node_without_a_zone_takes_no_zone_hints() {
    let mut table = table(service(), |plan| {
        vec![
            Endpoint {
                zone_hints: vec!["zone-a".to_owned()],
                ..endpoint(plan.local, "node-1")
            },
            Endpoint {
                zone_hints: vec!["zone-b".to_owned()],
                ..endpoint(plan.remote, "node-2")
            },
        ]
    });
    assert_eq!(backends(&table), [V4.local]);
    table.set_facts(NodeFacts {
        zone: None,
        ..facts()
    });
    assert_eq!(backends(&table), [V4.local, V4.remote]);
}

/// The endpoint here is meant for another zone: callers that must stay on this
/// node get it all the same, and the others do not.
#[test]
fn topology_narrows_one_list_and_locality_the_other() {
    let hinted = |address: &str, node: &str, zone: &str| Endpoint {
        zone_hints: vec![zone.to_owned()],
        ..endpoint(address, node)
    };
    let service = Service {
        external_policy: Local,
        ..service()
    };
    let table = table(service, |plan| {
        vec![
            hinted(plan.local, "node-1", "zone-b"),
            hinted(plan.remote, "node-2", "zone-a"),
        ]
    });
    for plan in [&V4, &V6] {
        let reached = |from| outcomes(&table, from, (plan.node, NODE_PORT), Protocol::Tcp);
        assert_eq!(reached(plan.outside), [plan.local.to_owned()].into());
        assert_eq!(reached(plan.other_local), [plan.remote.to_owned()].into());
    }
}

#[test]
fn terminating_fallback_is_decided_for_local_endpoints_on_their_own() {
    let ending = Endpoint {
        ready: Some(false),
        serving: Some(true),
        terminating: Some(true),
        ..endpoint(V4.local, "node-1")
    };
    let table = table(
        Service {
            external_policy: Local,
            ..service()
        },
        |plan| match plan.family {
            Family::V4 => vec![ending.clone(), endpoint(V4.remote, "node-2")],
            Family::V6 => Vec::new(),
        },
    );
    let to = (V4.node, NODE_PORT);
    assert_eq!(
        outcomes(&table, V4.outside, to, Protocol::Tcp),
        BTreeSet::from([V4.local.to_owned()])
    );
    assert_eq!(
        outcomes(&table, V4.other_local, to, Protocol::Tcp),
        BTreeSet::from([V4.remote.to_owned()])
    );
}

#[test]
fn slices_are_joined_and_each_has_its_own_ports() {
    let mut table = table(service(), |_| Vec::new());
    let mut other = slice("second", Family::V4, vec![endpoint(V4.remote, "node-2")]);
    other.ports[0].port = Some(9090);
    table.set_slice(&slice(
        "first",
        Family::V4,
        vec![endpoint(V4.local, "node-1"), endpoint(V4.local, "node-1")],
    ));
    table.set_slice(&other);
    let frontend = table.frontend(&key4()).expect("programmed");
    let all: Vec<(String, u16)> = frontend
        .cluster
        .iter()
        .map(|b| (b.address.to_string(), b.port))
        .collect();
    assert_eq!(
        all,
        [(V4.local.to_owned(), 8080), (V4.remote.to_owned(), 9090)]
    );
    // A slice that moves to another Service takes its endpoints along.
    other.service = "elsewhere".to_owned();
    table.set_slice(&other);
    assert_eq!(backends(&table), [V4.local]);
    table.remove_slice("default", "first");
    assert!(backends(&table).is_empty());
}

#[test]
fn a_reused_address_counts_as_what_lives() {
    let mut table = table(service(), |_| Vec::new());
    let old = Endpoint {
        ready: Some(false),
        serving: Some(false),
        terminating: Some(true),
        ..endpoint(V4.local, "node-1")
    };
    table.set_slice(&slice("a", Family::V4, vec![endpoint(V4.local, "node-1")]));
    table.set_slice(&slice("b", Family::V4, vec![old.clone()]));
    assert_eq!(backends(&table), [V4.local]);
    table.set_slice(&slice("0", Family::V4, vec![old]));
    assert_eq!(backends(&table), [V4.local]);
}

#[test]
fn headless_foreign_and_external_services_are_not_programmed() {
    for change in [
        Service {
            cluster_ips: vec!["None".to_owned()],
            ..service()
        },
        Service {
            cluster_ips: Vec::new(),
            ..service()
        },
        Service {
            foreign: true,
            ..service()
        },
    ] {
        let mut table = table(service(), local_and_remote);
        assert_eq!(table.frontends().count(), 6);
        table.set_service(change);
        assert_eq!(table.frontends().count(), 0);
        assert_eq!(table.cluster_ips().count(), 0);
        assert_eq!(table.local_endpoints().count(), 0);
        table.set_service(service());
        assert_eq!(table.frontends().count(), 6);
    }
}

#[test]
fn a_service_of_one_family_has_frontends_of_one_family() {
    let table = table(
        Service {
            cluster_ips: vec![V6.cluster_ip.to_owned()],
            load_balancer_ips: Vec::new(),
            ..service()
        },
        local_and_remote,
    );
    assert!(table.frontends().all(|(key, _)| key.address.is_ipv6()));
    assert_eq!(table.frontends().count(), 2);
}

#[test]
fn node_ports_follow_the_nodes_addresses() {
    let mut table = table(service(), local_and_remote);
    let mut facts = facts();
    facts.addresses = vec![ip("192.168.64.77")];
    table.set_facts(facts);
    let ports: Vec<String> = table
        .frontends()
        .filter(|(key, _)| key.port == NODE_PORT)
        .map(|(key, _)| key.address.to_string())
        .collect();
    assert_eq!(ports, ["192.168.64.77"]);
}

#[test]
fn facts_may_become_known_last_and_change() {
    let mut table = Table::new(NodeFacts::default());
    let local = Service {
        internal_policy: Local,
        ..service()
    };
    table.set_service(local.clone());
    let mut zoned = local_and_remote(&V4);
    zoned[0].zone_hints = vec!["zone-a".to_owned()];
    zoned[1].zone_hints = vec!["zone-b".to_owned()];
    table.set_slice(&slice("web-V4", Family::V4, zoned));
    assert_eq!(table.local_endpoints().count(), 0);
    table.set_facts(facts());
    assert_eq!(table.local_endpoints().collect::<Vec<_>>(), [ip(V4.local)]);
    assert_eq!(table.frontend(&key4()).expect("programmed").local.len(), 1);
    assert_eq!(backends(&table), [V4.local]);
    assert!(table.frontends().any(|(key, _)| key.port == NODE_PORT));
    table.set_facts(NodeFacts {
        zone: Some("zone-b".to_owned()),
        ..facts()
    });
    assert_eq!(backends(&table), [V4.remote]);
}

#[test]
fn one_endpoint_among_many_costs_a_few_elements() {
    let many = |skip: Option<usize>| {
        let endpoints = (1..=100)
            .filter(|n| Some(*n) != skip)
            .map(|n| endpoint(&format!("10.200.2.{n}"), "node-2"))
            .collect();
        slice("web-V4", Family::V4, endpoints)
    };
    let mut table = table(service(), |_| Vec::new());
    table.set_slice(&many(None));
    let mut shadow = Shadow::default();
    shadow.apply(difference(&table, &shadow, &everything(&table, &shadow)));
    table.take_changes();
    table.set_slice(&many(Some(50)));
    let changes = table.take_changes();
    let small = difference(&table, &shadow, &changes);
    let count: usize = small
        .add
        .values()
        .chain(small.delete.values())
        .map(Vec::len)
        .sum();
    // Per frontend: the number anew, the last slot into the gap. Three IPv4
    // frontends, and one new number to dispatch.
    assert!(count <= 3 * 5 + 1, "{count} elements");
    // Undone before it is applied, it costs nothing.
    table.set_slice(&many(None));
    let mut changes = table.take_changes();
    changes.merge(everything(&table, &shadow));
    assert!(difference(&table, &shadow, &changes).is_empty());
}

#[test]
fn numbers_say_how_many_and_how() {
    let table = table(
        Service {
            external_policy: Local,
            ..service()
        },
        local_and_remote,
    );
    let node_port = FrontendKey {
        address: ip(V4.node),
        protocol: Protocol::Tcp,
        port: NODE_PORT,
    };
    let number = |key: &FrontendKey| {
        podwire_services::compile::frontend(&table.frontend(key).expect("programmed")).number
    };
    assert_eq!(number(&key4()), Number::plain(2 << 8));
    assert_eq!(number(&key4()).chain(), "pick-2");
    assert_eq!(
        number(&node_port),
        Number::plain(1 << 24 | 2 << 8 | Number::EXTERNAL | Number::LOCAL)
    );
    assert_eq!(number(&node_port).chain(), "split-2-1");
}

#[test]
fn backends_are_sorted_and_serving_keeps_those_that_end() {
    let ending = Endpoint {
        ready: Some(false),
        serving: Some(true),
        terminating: Some(true),
        ..endpoint("10.200.2.5", "node-2")
    };
    let table = table(service(), |plan| match plan.family {
        Family::V4 => vec![
            endpoint("10.200.2.9", "node-2"),
            ending.clone(),
            endpoint("10.200.2.7", "node-2"),
        ],
        Family::V6 => Vec::new(),
    });
    assert_eq!(backends(&table), ["10.200.2.7", "10.200.2.9"]);
    let serving: Vec<Backend> = ["10.200.2.5", "10.200.2.7", "10.200.2.9"]
        .map(|address| Backend {
            address: ip(address),
            port: TARGET,
        })
        .to_vec();
    let frontend = table.frontend(&key4()).expect("programmed");
    assert_eq!(*frontend.serving, *serving);
}

#[test]
fn the_plan_can_be_read() {
    let mut table = Table::new(facts());
    table.set_service(Service {
        cluster_ips: vec![V4.cluster_ip.to_owned()],
        load_balancer_ips: Vec::new(),
        external_policy: Local,
        ..service()
    });
    table.set_slice(&slice("web-V4", Family::V4, local_and_remote(&V4)));
    let text = planned(&table).expect("strict").to_string();
    for part in [
        "\tmap services4 {\n\
         \t\ttype ipv4_addr . inet_proto . inet_service : mark . mark\n\
         \t\telements = { 10.96.0.10 . tcp . 80 : 0x00000200 . 0x00000000,\n\
         \t\t\t     192.168.64.11 . tcp . 30080 : 0x01000203 . 0x00000000 }\n\t}\n",
        "\t\telements = { 10.200.0.0-10.200.255.255,\n\
         \t\t\t     192.168.64.11-192.168.64.12 }\n",
        "\tchain services {\n\
         \t\tmeta nfproto ipv4 ip daddr . meta l4proto . th dport map @services4 & 0xfffffffe . its field 2 vmap @service-dispatch",
        "\tchain service-masquerade {\n\
         \t\tmeta nfproto ipv4 ct original ip daddr . meta l4proto . ct original proto-dst map @services4 & 0x00000003 vmap @masquerade-kinds",
        "\tchain split-2-1 {\n\
         \t\tmeta nfproto ipv4 ip saddr @local-pods4 goto pick-2\n\
         \t\tmeta nfproto ipv6 ip6 saddr @local-pods6 goto pick-2\n\
         \t\tfib saddr type local goto pick-2\n\
         \t\tgoto pick-local-1\n\t}\n",
        "\tchain pick-local-1 {\n\
         \t\tmeta nfproto ipv4 dnat ip to ip daddr . meta l4proto . th dport . numgen random mod 1 offset 65536 map @backends4\n",
    ] {
        assert!(text.contains(part), "{part}\nis not in\n{text}");
    }
}
