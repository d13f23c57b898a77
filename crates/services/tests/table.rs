//! The service table: what it makes of every field of Services and slices, and
//! what it says of those that cannot be used.

use std::net::IpAddr;

use podwire_services::endpoints::Excluded;
use podwire_services::report::{AddressField, Problem};
use podwire_services::table::{FrontendKind, Table};
use podwire_services::{
    Backend, Endpoint, EndpointSlice, Family, FrontendKey, NodeFacts, NodePortAddresses, Protocol,
    Service, ServiceName, ServicePort, SlicePort, TrafficPolicy,
};
use rstest::rstest;

fn ip(text: &str) -> IpAddr {
    text.parse().expect("a literal")
}

fn facts() -> NodeFacts {
    NodeFacts {
        node: "node-1".to_owned(),
        zone: Some("zone-a".to_owned()),
        addresses: vec![ip("192.168.64.11"), ip("fd00:64::11")],
        ..NodeFacts::default()
    }
}

fn name() -> ServiceName {
    ServiceName::new("shop", "web")
}

fn service() -> Service {
    Service {
        name: name(),
        cluster_ips: vec!["10.96.0.10".to_owned(), "fd00:96::10".to_owned()],
        ports: vec![port("http", 80, Some(30080))],
        ..Service::default()
    }
}

fn port(name: &str, port: i32, node_port: Option<i32>) -> ServicePort {
    ServicePort {
        name: name.to_owned(),
        protocol: Protocol::Tcp,
        port,
        node_port,
    }
}

fn slice(name: &str, addresses: &[&str]) -> EndpointSlice {
    EndpointSlice {
        namespace: "shop".to_owned(),
        name: name.to_owned(),
        service: "web".to_owned(),
        family: Family::V4,
        ports: vec![SlicePort {
            name: "http".to_owned(),
            protocol: Protocol::Tcp,
            port: Some(8080),
        }],
        endpoints: addresses
            .iter()
            .map(|address| Endpoint {
                address: (*address).to_owned(),
                node: Some("node-1".to_owned()),
                ..Endpoint::default()
            })
            .collect(),
    }
}

fn key(address: &str, port: u16) -> FrontendKey {
    FrontendKey {
        address: ip(address),
        protocol: Protocol::Tcp,
        port,
    }
}

fn table(service: Service) -> Table {
    let mut table = Table::new(facts());
    table.set_service(service);
    table.set_slice(&slice("web-1", &["10.200.1.2"]));
    table
}

fn texts(list: &[&str]) -> Vec<String> {
    list.iter().map(|text| (*text).to_owned()).collect()
}

/// Addresses at which a node port answers.
fn node_ports(table: &Table) -> Vec<IpAddr> {
    let mut list: Vec<IpAddr> = table
        .frontends()
        .filter(|(key, frontend)| {
            assert_eq!(key.port == 30080, frontend.kind == FrontendKind::NodePort);
            key.port == 30080
        })
        .map(|(key, _)| key.address)
        .collect();
    list.sort_unstable();
    list
}

#[rstest]
#[case::nobody_asked(&[], ["everybody", "everybody"])]
#[case::of_each_family(&["10.0.0.0/8", "fd00::/8"], ["10.0.0.0/8", "fd00::/8"])]
#[case::spaces(&["  10.0.0.0/8 ", ""], ["10.0.0.0/8", "everybody"])]
#[case::other_family_is_ignored(&["fd00::/8"], ["everybody", "fd00::/8"])]
#[case::everybody(&["10.0.0.0/8", "0.0.0.0/0"], ["everybody", "everybody"])]
#[case::everybody_of_one(&["0.0.0.0/0", "fd00::/8"], ["everybody", "fd00::/8"])]
#[case::unreadable_stays_a_filter(&["10.0.0.0"], ["", ""])]
#[case::unreadable_among_others(&["10.0.0.0/8", "x"], ["10.0.0.0/8", ""])]
#[case::host_bits(&["10.1.2.3/8"], ["10.0.0.0/8", "everybody"])]
fn source_ranges_restrict_load_balancer_addresses(
    #[case] ranges: &[&str],
    #[case] expected: [&str; 2],
) {
    let table = table(Service {
        load_balancer_ips: texts(&["203.0.113.1", "2001:db8::1"]),
        source_ranges: texts(ranges),
        ..service()
    });
    for (address, expected) in ["203.0.113.1", "2001:db8::1"].into_iter().zip(expected) {
        let frontend = table.frontend(&key(address, 80)).expect("programmed");
        assert_eq!(frontend.kind, FrontendKind::LoadBalancer);
        let sources = frontend.sources.as_ref().map(|list| {
            let list: Vec<String> = list.iter().map(ToString::to_string).collect();
            list.join(" ")
        });
        assert_eq!(sources.as_deref().unwrap_or("everybody"), expected);
    }
    for other in [key("10.96.0.10", 80), key("192.168.64.11", 30080)] {
        let frontend = table.frontend(&other).expect("programmed");
        assert_eq!(frontend.sources, None, "only load-balancer addresses");
    }
}

#[test]
fn external_addresses_are_those_the_operator_permits() {
    let with = Service {
        external_ips: texts(&["203.0.113.9", "198.51.100.9"]),
        ..service()
    };
    let mut table = table(with);
    assert_eq!(table.frontend(&key("203.0.113.9", 80)), None);
    table.set_facts(NodeFacts {
        external_ip_cidrs: vec!["203.0.113.0/24".parse().expect("a literal")],
        ..facts()
    });
    let frontend = table.frontend(&key("203.0.113.9", 80)).expect("permitted");
    assert_eq!(frontend.kind, FrontendKind::ExternalIp);
    assert_eq!(table.frontend(&key("198.51.100.9", 80)), None);
    assert_eq!(
        table.problems(&name()),
        [Problem::ExternalIpRefused {
            address: ip("198.51.100.9")
        }]
    );
}

#[test]
fn node_ports_answer_where_they_are_told_to_and_follow_the_node() {
    let mut table = table(Service {
        load_balancer_ips: texts(&["192.168.64.99"]),
        ..service()
    });
    let with = |policy: NodePortAddresses, local: &[&str]| NodeFacts {
        node_port_addresses: policy,
        local_addresses: local.iter().map(|text| ip(text)).collect(),
        ..facts()
    };
    let local = [
        "127.0.0.1",
        "::1",
        "fe80::1",
        "169.254.1.1",
        "192.168.64.11",
        "192.168.64.99",
        "10.0.0.5",
        "fd00:64::11",
    ];
    assert_eq!(node_ports(&table), facts().addresses);
    table.set_facts(with(NodePortAddresses::All, &local));
    let all = ["10.0.0.5", "192.168.64.11", "fd00:64::11"].map(ip);
    assert_eq!(node_ports(&table), all, "no load-balancer address");
    let range = vec!["10.0.0.0/8".parse().expect("a literal")];
    table.set_facts(with(NodePortAddresses::Ranges(range.clone()), &local));
    assert_eq!(node_ports(&table), [ip("10.0.0.5")]);
    table.set_facts(with(NodePortAddresses::Ranges(range), &["10.0.0.6"]));
    assert_eq!(node_ports(&table), [ip("10.0.0.6")], "the node's moved");
    // An address becomes a Service's, and is the node's own again.
    table.set_facts(with(NodePortAddresses::All, &["10.0.0.6"]));
    let other = Service {
        name: ServiceName::new("shop", "other"),
        cluster_ips: texts(&["10.96.0.11"]),
        load_balancer_ips: texts(&["10.0.0.6"]),
        ..Service::default()
    };
    table.set_service(other.clone());
    assert_eq!(node_ports(&table), facts().addresses);
    table.remove_service(&other.name);
    assert_eq!(node_ports(&table).len(), 3);
}

#[test]
fn affinity_is_held_within_what_kubernetes_allows() {
    for (given, expected) in [
        (None, None),
        (Some(0), Some(1)),
        (Some(10_800), Some(10_800)),
        (Some(u32::MAX), Some(86_400)),
    ] {
        let table = table(Service {
            affinity: given,
            ..service()
        });
        for key in [key("10.96.0.10", 80), key("192.168.64.11", 30080)] {
            assert_eq!(table.frontend(&key).expect("programmed").affinity, expected);
        }
    }
}

#[test]
fn health_checks_count_ready_endpoints_of_this_node() {
    let local = Service {
        external_policy: TrafficPolicy::Local,
        health_check_node_port: Some(32_000),
        ..service()
    };
    let mut table = table(local.clone());
    let count = |table: &Table| {
        table
            .health_checks()
            .get(&name())
            .map(|check| (check.port, check.local_endpoints))
    };
    assert_eq!(count(&table), Some((32_000, 1)));
    let before = table.health_checks();
    table.set_slice(&slice("web-1", &["10.200.1.2"]));
    assert!(std::sync::Arc::ptr_eq(&before, &table.health_checks()));
    let mut ending = slice("web-1", &["10.200.1.2", "10.200.1.3", "10.200.2.4"]);
    ending.endpoints[0].ready = Some(false);
    ending.endpoints[0].serving = Some(true);
    ending.endpoints[0].terminating = Some(true);
    ending.endpoints[2].node = Some("node-2".to_owned());
    table.set_slice(&ending);
    assert_eq!(
        count(&table),
        Some((32_000, 1)),
        "neither ending nor remote"
    );
    // One that several ports and slices name counts once.
    table.set_slice(&slice("web-2", &["10.200.1.3"]));
    assert_eq!(count(&table), Some((32_000, 1)));
    table.set_service(Service {
        external_policy: TrafficPolicy::Cluster,
        ..local.clone()
    });
    assert_eq!(count(&table), None, "the policy changed");
    table.set_service(local);
    table.remove_slice("shop", "web-1");
    table.remove_slice("shop", "web-2");
    assert_eq!(count(&table), Some((32_000, 0)));
    table.remove_service(&name());
    assert_eq!(count(&table), None);
}

#[test]
fn what_cannot_be_used_is_said_and_harms_nothing_else() {
    let mut table = Table::new(facts());
    table.set_service(Service {
        cluster_ips: texts(&["010.096.000.010", "nonsense"]),
        load_balancer_ips: texts(&["0.0.0.0"]),
        source_ranges: texts(&["10.0.0.0/40"]),
        ports: vec![
            port("http", 80, Some(30080)),
            port("bad", 0, None),
            port("worse", 90, Some(70_000)),
        ],
        ..service()
    });
    let mut bad = slice("web-bad", &["10.200.1.2", "10.200.1.300", "fd00::1"]);
    bad.ports.push(SlicePort {
        name: "worse".to_owned(),
        protocol: Protocol::Tcp,
        port: Some(65_536),
    });
    bad.ports.push(SlicePort {
        name: "any".to_owned(),
        protocol: Protocol::Tcp,
        port: None,
    });
    table.set_slice(&bad);
    let frontend = table.frontend(&key("10.96.0.10", 80)).expect("programmed");
    assert_eq!(frontend.cluster.len(), 1);
    assert!(table.frontend(&key("10.96.0.10", 90)).is_some());
    let mut expected = vec![
        Problem::Address {
            field: AddressField::ClusterIp,
            text: "nonsense".to_owned(),
        },
        Problem::Address {
            field: AddressField::LoadBalancer,
            text: "0.0.0.0".to_owned(),
        },
        Problem::SourceRange {
            text: "10.0.0.0/40".to_owned(),
        },
        Problem::Port {
            field: "spec.ports.port",
            name: "bad".to_owned(),
            number: 0,
        },
        Problem::Port {
            field: "spec.ports.nodePort",
            name: "worse".to_owned(),
            number: 70_000,
        },
        Problem::SlicePort {
            slice: "web-bad".to_owned(),
            name: "worse".to_owned(),
            number: 65_536,
        },
        Problem::EndpointAddresses {
            slice: "web-bad".to_owned(),
            example: "10.200.1.300".to_owned(),
            count: 2,
        },
    ];
    expected.sort_unstable();
    assert_eq!(table.problems(&name()), expected);
    for problem in expected {
        assert!(problem.to_string().len() > 30, "{problem}");
    }
    assert_eq!(table.take_reports().len(), 1);
    assert!(table.take_reports().is_empty());
    // Put right, it is told once more, with nothing.
    table.set_service(service());
    table.set_slice(&slice("web-bad", &["10.200.1.2"]));
    assert_eq!(table.take_reports().len(), 1);
    assert!(table.problems(&name()).is_empty());
}

#[test]
fn of_two_that_claim_a_frontend_the_first_by_name_has_it() {
    let mut table = table(service());
    let rival = |name: &str| Service {
        name: ServiceName::new("shop", name),
        cluster_ips: texts(&["10.96.0.77"]),
        ..service()
    };
    let node_port = key("192.168.64.11", 30080);
    let holder = |table: &Table| {
        table
            .frontend(&node_port)
            .expect("held")
            .service
            .name
            .clone()
    };
    table.take_reports();
    for name in ["zzz", "aaa", "mmm"] {
        table.set_service(rival(name));
    }
    assert_eq!(&*holder(&table), "aaa");
    let taken = table.problems(&name());
    assert!(
        taken.contains(&Problem::Taken {
            frontend: node_port,
            holder: ServiceName::new("shop", "aaa"),
        }),
        "{taken:?}"
    );
    assert!(table.take_reports().iter().any(|told| **told == name()));
    assert!(
        table
            .frontends_of(&name())
            .iter()
            .all(|(key, _)| *key != node_port)
    );
    table.remove_service(&ServiceName::new("shop", "aaa"));
    assert_eq!(&*holder(&table), "mmm");
    table.remove_service(&ServiceName::new("shop", "mmm"));
    assert_eq!(&*holder(&table), "web");
    assert!(table.problems(&name()).is_empty());
    table.remove_service(&name());
    assert_eq!(&*holder(&table), "zzz");
}

#[test]
fn each_endpoint_says_why_it_is_not_used() {
    let mut table = table(service());
    let mut many = slice(
        "web-1",
        &[
            "10.200.1.1",
            "10.200.1.2",
            "10.200.1.3",
            "10.200.2.4",
            "10.200.1.5",
        ],
    );
    for endpoint in &mut many.endpoints {
        endpoint.zone_hints = texts(&["zone-a"]);
    }
    many.endpoints[1].ready = Some(false);
    many.endpoints[2].ready = Some(false);
    many.endpoints[2].serving = Some(true);
    many.endpoints[2].terminating = Some(true);
    many.endpoints[3].node = Some("node-2".to_owned());
    many.endpoints[4].zone_hints = texts(&["zone-b"]);
    table.set_slice(&many);
    let explanation = table.explain(&name()).expect("there");
    assert_eq!(explanation.not_programmed, None);
    assert_eq!(explanation.frontends.len(), 4);
    let port = &explanation.ports[0];
    assert_eq!((port.name.as_str(), port.family), ("http", Family::V4));
    let reasons: Vec<_> = port
        .endpoints
        .iter()
        .map(|endpoint| (endpoint.cluster, endpoint.local))
        .collect();
    assert_eq!(
        reasons,
        [
            (None, None),
            (Some(Excluded::NotReady), Some(Excluded::NotReady)),
            (Some(Excluded::Terminating), Some(Excluded::Terminating)),
            // Sorted by address: this one is on the node, its hint is not.
            (Some(Excluded::OtherZone), None),
            (None, Some(Excluded::NotLocal)),
        ]
    );
    // What is said is what is done.
    let used: Vec<Backend> = port
        .endpoints
        .iter()
        .filter(|endpoint| endpoint.cluster.is_none())
        .map(|endpoint| endpoint.backend)
        .collect();
    let frontend = table.frontend(&key("10.96.0.10", 80)).expect("programmed");
    assert_eq!(*frontend.cluster, *used);
    table.set_service(Service {
        foreign: true,
        ..service()
    });
    let explanation = table.explain(&name()).expect("there");
    assert!(explanation.not_programmed.is_some() && explanation.frontends.is_empty());
}

#[test]
fn a_thousand_endpoints_in_ten_slices_are_all_used_and_one_is_taken_away() {
    let mut table = table(service());
    let address = |n: usize| format!("10.201.{}.{}", n / 250, n % 250 + 1);
    let part = |index: usize, skip: Option<usize>| {
        let list: Vec<String> = (index * 100..index * 100 + 100)
            .filter(|n| Some(*n) != skip)
            .map(address)
            .collect();
        let list: Vec<&str> = list.iter().map(String::as_str).collect();
        slice(&format!("web-{index}"), &list)
    };
    for index in 0..12 {
        table.set_slice(&part(index, None));
    }
    let count = |table: &Table| {
        let frontend = table.frontend(&key("10.96.0.10", 80)).expect("programmed");
        frontend.cluster.len()
    };
    assert_eq!(count(&table), 1200);
    table.set_slice(&part(7, Some(742)));
    assert_eq!(count(&table), 1199);
}

#[test]
fn ports_without_names_belong_together() {
    let mut table = Table::new(facts());
    table.set_service(Service {
        ports: vec![port("", 80, None)],
        ..service()
    });
    let mut unnamed = slice("web-1", &["10.200.1.2"]);
    unnamed.ports[0].name = String::new();
    table.set_slice(&unnamed);
    let backends = |table: &Table| {
        let frontend = table.frontend(&key("10.96.0.10", 80)).expect("programmed");
        frontend.cluster.len()
    };
    assert_eq!(backends(&table), 1);
    table.set_slice(&slice("web-1", &["10.200.1.2"]));
    assert_eq!(backends(&table), 0, "a name is not the lack of one");
}
