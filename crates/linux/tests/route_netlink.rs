//! Route netlink against the kernel, with `ip -j` as the witness. Needs root;
//! each test makes its own network namespaces, which go with it.
#![allow(clippy::unwrap_used, reason = "tests say what they expect with unwrap")]

use std::net::IpAddr;
use std::process::Command;
use std::time::Duration;

use ipnet::IpNet;
use podwire_linux::address::{self, Address};
use podwire_linux::events::{Event, EventSocket, Group};
use podwire_linux::link::{self, Bridge, BridgePort, MacAddress, VethEnd};
use podwire_linux::namespace::NetworkNamespace;
use podwire_linux::netlink::Socket;
use podwire_linux::route::{self, Filter, Kind, Route};
use podwire_linux::rule::{self, Rule};
use podwire_linux::{PODWIRE_ROUTE_PROTOCOL, neighbour};
use rstest::rstest;
use serde_json::Value;

/// The output of `ip -j` with `arguments`, run inside `namespace`.
fn ip(namespace: &NetworkNamespace, arguments: &str) -> Value {
    let output = namespace
        .run(|| {
            Command::new("ip")
                .args(["-j", "-d"])
                .args(arguments.split_whitespace())
                .output()
                .unwrap()
        })
        .unwrap();
    assert!(output.status.success(), "ip {arguments}: {output:?}");
    if output.stdout.is_empty() {
        return Value::Array(Vec::new());
    }
    serde_json::from_slice(&output.stdout).unwrap()
}

fn namespace() -> (NetworkNamespace, Socket) {
    let namespace = NetworkNamespace::create().unwrap();
    let socket = namespace.route_socket().unwrap();
    (namespace, socket)
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn addr(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A veth pair between two namespaces, both ends up; gives the indexes.
fn wire(near: &mut Socket, far: &NetworkNamespace, far_socket: &mut Socket) -> (u32, u32) {
    near.execute(&link::add_veth(
        &VethEnd {
            name: "near",
            ..VethEnd::default()
        },
        None,
        &VethEnd {
            name: "far",
            namespace: Some(far),
            ..VethEnd::default()
        },
    ))
    .unwrap();
    let far = link::get(far_socket, "far").unwrap().unwrap().index;
    far_socket.execute(&link::set_up(far)).unwrap();
    (link::get(near, "near").unwrap().unwrap().index, far)
}

#[test]
fn a_veth_peer_is_made_in_the_other_namespace_with_all_its_settings_at_once() {
    let (here, mut socket) = namespace();
    let (there, mut there_socket) = namespace();
    let mac = MacAddress([0x0a, 0x58, 1, 2, 3, 4]);
    socket
        .execute(&link::add_veth(
            &VethEnd {
                name: "pwtest",
                mtu: Some(1400),
                ..VethEnd::default()
            },
            None,
            &VethEnd {
                name: "eth0",
                mtu: Some(1400),
                mac: Some(mac),
                namespace: Some(&there),
            },
        ))
        .unwrap();
    let peer = link::get(&mut there_socket, "eth0").unwrap().unwrap();
    there_socket.execute(&link::set_up(peer.index)).unwrap();
    let near = &ip(&here, "link show pwtest")[0];
    let far = &ip(&there, "link show eth0")[0];
    assert_eq!(near["mtu"], 1400);
    assert_eq!(far["mtu"], 1400);
    assert_eq!(far["address"], mac.to_string());
    assert_eq!(near["linkinfo"]["info_kind"], "veth");
    assert_eq!(near["operstate"], "UP");
    assert_eq!(far["operstate"], "UP");

    let seen = link::get(&mut there_socket, "eth0").unwrap().unwrap();
    assert_eq!(seen.mac, Some(mac));
    assert_eq!(seen.mtu, 1400);
    assert!(seen.up && seen.carrier);
    assert_eq!(seen.kind.as_deref(), Some("veth"));
    let near_seen = link::get(&mut socket, "pwtest").unwrap().unwrap();
    assert_eq!(seen.peer, Some(near_seen.index));
    assert!(seen.peer_namespace.is_some());

    link::delete_by_name(&mut socket, "pwtest").unwrap();
    assert_eq!(link::get(&mut there_socket, "eth0").unwrap(), None);
    link::delete_by_name(&mut socket, "pwtest").unwrap();
}

#[test]
fn a_bridge_keeps_its_address_when_ports_come() {
    let (here, mut socket) = namespace();
    let mac = MacAddress([0x0e, 0, 0, 0, 0, 1]);
    socket
        .execute(&link::add_bridge(&Bridge {
            name: "br0",
            mac: Some(mac),
            ageing_seconds: Some(120),
            ..Bridge::default()
        }))
        .unwrap();
    let bridge = link::get(&mut socket, "br0").unwrap().unwrap();
    socket.execute(&link::set_mtu(bridge.index, 1450)).unwrap();
    socket
        .execute(&link::add_veth(
            &VethEnd {
                name: "port",
                mac: Some(MacAddress([2, 0, 0, 0, 0, 1])),
                ..VethEnd::default()
            },
            Some(bridge.index),
            &VethEnd {
                name: "end",
                ..VethEnd::default()
            },
        ))
        .unwrap();
    let port = link::get(&mut socket, "port").unwrap().unwrap();
    let settings = BridgePort {
        multicast: false,
        hairpin: true,
        isolated: true,
    };
    socket
        .execute(&link::set_port(port.index, settings))
        .unwrap();

    let shown = &ip(&here, "link show br0")[0];
    assert_eq!(shown["address"], mac.to_string());
    assert_eq!(shown["mtu"], 1450);
    let data = &shown["linkinfo"]["info_data"];
    assert_eq!(data["ageing_time"], 12000);
    assert_eq!(data["stp_state"], 0);
    assert_eq!(data["mcast_snooping"], 0);
    assert_eq!(data["nf_call_iptables"], 0);
    assert_eq!(data["nf_call_ip6tables"], 0);
    let shown = &ip(&here, "link show port")[0];
    assert_eq!(shown["master"], "br0");
    let data = &shown["linkinfo"]["info_slave_data"];
    assert_eq!(data["hairpin"], true);
    assert_eq!(data["isolated"], true);
    assert_eq!(data["mcast_flood"], false);

    let ports = link::list_ports(&mut socket, bridge.index).unwrap();
    assert_eq!(ports.len(), 1);
    assert_eq!(ports[0].port, Some(settings));
    assert_eq!(ports[0].master, Some(bridge.index));

    socket.execute(&link::set_master(port.index, None)).unwrap();
    assert!(
        link::list_ports(&mut socket, bridge.index)
            .unwrap()
            .is_empty()
    );
    assert_eq!(ip(&here, "link show port")[0]["master"], Value::Null);
}

#[test]
fn a_link_is_renamed_moved_and_changed() {
    let (here, mut socket) = namespace();
    let (there, mut there_socket) = namespace();
    socket
        .execute(&link::add_veth(
            &VethEnd {
                name: "a",
                ..VethEnd::default()
            },
            None,
            &VethEnd {
                name: "b",
                ..VethEnd::default()
            },
        ))
        .unwrap();
    let a = link::get(&mut socket, "a").unwrap().unwrap().index;
    let mac = MacAddress([2, 0, 0, 0, 0, 9]);
    socket
        .execute_all(&[
            link::set_alias(a, "who I am"),
            link::set_mtu(a, 1280),
            link::set_mac(a, mac),
            link::set_name(a, "c"),
            link::move_to(a, &there),
        ])
        .unwrap();
    assert_eq!(ip(&here, "link show").as_array().unwrap().len(), 2);
    let moved = link::get(&mut there_socket, "c").unwrap().unwrap();
    assert_eq!(moved.mtu, 1280);
    assert_eq!(moved.mac, Some(mac));
    assert_eq!(moved.alias.as_deref(), Some("who I am"));
    assert!(!moved.route_localnet);
    let localnet = || {
        let file = "/proc/sys/net/ipv4/conf/c/route_localnet";
        there
            .run(|| std::fs::read_to_string(file).unwrap())
            .unwrap()
    };
    assert_eq!(localnet(), "0\n");
    there_socket
        .execute(&link::set_route_localnet(moved.index))
        .unwrap();
    assert_eq!(localnet(), "1\n");
    let changed = link::get(&mut there_socket, "c").unwrap().unwrap();
    assert!(changed.route_localnet);
    there_socket
        .execute_all(&[link::set_up(moved.index), link::set_down(moved.index)])
        .unwrap();
    assert!(
        !link::get_by_index(&mut there_socket, moved.index)
            .unwrap()
            .unwrap()
            .up
    );
    there_socket.execute(&link::delete(moved.index)).unwrap();
    assert_eq!(
        link::get_by_index(&mut there_socket, moved.index).unwrap(),
        None
    );
}

#[rstest]
#[case::v4("10.1.2.3/24", "inet")]
#[case::v6("fd00:1::3/64", "inet6")]
fn an_address_can_be_used_at_once_and_makes_a_route_only_when_wanted(
    #[case] text: &str,
    #[case] family: &str,
) {
    let (here, mut socket) = namespace();
    let (there, mut there_socket) = namespace();
    let (near, _) = wire(&mut socket, &there, &mut there_socket);
    let plain = Address::new(near, net(text));
    socket
        .execute(&address::add(&plain.clone().without_prefix_route()))
        .unwrap();
    let shown = ip(&here, "address show dev near");
    let found = shown[0]["addr_info"]
        .as_array()
        .unwrap()
        .iter()
        .find(|a| a["family"] == family && a["scope"] == "global")
        .unwrap();
    assert_eq!(found["local"], net(text).addr().to_string());
    assert_eq!(found["prefixlen"], net(text).prefix_len());
    assert_eq!(found["noprefixroute"], true);
    assert_eq!(found["tentative"], Value::Null);
    let listed = address::list(&mut socket, Some(near)).unwrap();
    assert!(
        listed
            .iter()
            .any(|a| a.address == net(text) && a.no_prefix_route && !a.tentative)
    );
    let connected = |socket: &mut Socket| {
        route::list(
            socket,
            Filter {
                link: Some(near),
                ..Filter::default()
            },
        )
        .unwrap()
        .iter()
        .any(|r| r.destination == net(text).trunc())
    };
    assert!(!connected(&mut socket));

    let error = socket.execute(&address::add(&plain)).unwrap_err();
    assert!(error.already_exists(), "{error}");
    socket.execute(&address::delete(near, net(text))).unwrap();
    assert!(
        socket
            .execute(&address::delete(near, net(text)))
            .unwrap_err()
            .not_found()
    );
    socket.execute(&address::add(&plain)).unwrap();
    assert!(connected(&mut socket));
}

#[rstest]
#[case::v4("10.9.0.0/24", "10.9.1.0/24", "192.0.2.1", "192.0.2.9/24", "")]
#[case::v6("fd00:9::/64", "fd00:9:1::/64", "2001:db8::1", "2001:db8::9/64", "-6")]
fn routes_are_added_replaced_listed_by_protocol_and_deleted(
    #[case] one: &str,
    #[case] other: &str,
    #[case] gateway: &str,
    #[case] own: &str,
    #[case] flag: &str,
) {
    let (here, mut socket) = namespace();
    let (there, mut there_socket) = namespace();
    let (near, _) = wire(&mut socket, &there, &mut there_socket);
    socket
        .execute(&address::add(
            &Address::new(near, net(own)).without_prefix_route(),
        ))
        .unwrap();

    let onlink = Route::to(net(one))
        .via(addr(gateway))
        .dev(near)
        .onlink()
        .source(net(own).addr())
        .mtu(1400)
        .metric(77);
    let hole = Route::to(net(other)).kind(Kind::Blackhole);
    socket
        .execute_all(&[route::add(&onlink), route::add(&hole)])
        .unwrap();
    let shown = ip(&here, &format!("{flag} route show proto 112"));
    let shown = shown.as_array().unwrap();
    assert_eq!(shown.len(), 2, "{shown:?}");
    let first = shown.iter().find(|r| r["dst"] == one).unwrap();
    assert_eq!(first["gateway"], gateway);
    assert_eq!(first["dev"], "near");
    assert_eq!(first["metric"], 77);
    assert_eq!(first["prefsrc"], net(own).addr().to_string());
    assert_eq!(first["metrics"][0]["mtu"], 1400);
    assert!(
        first["flags"]
            .as_array()
            .unwrap()
            .contains(&"onlink".into())
    );
    let second = shown.iter().find(|r| r["dst"] == other).unwrap();
    assert_eq!(second["type"], "blackhole");

    let listed = route::list(&mut socket, Filter::own()).unwrap();
    assert_eq!(listed.len(), 2);
    let seen = listed.iter().find(|r| r.destination == net(one)).unwrap();
    assert_eq!(seen, &onlink);
    assert!(listed.iter().all(|r| r.protocol == PODWIRE_ROUTE_PROTOCOL));

    assert!(
        socket
            .execute(&route::add(&onlink))
            .unwrap_err()
            .already_exists()
    );
    let changed = onlink.clone().mtu(1300);
    socket.execute(&route::replace(&changed)).unwrap();
    let listed = route::list(&mut socket, Filter::own()).unwrap();
    assert_eq!(listed.len(), 2);
    assert!(listed.contains(&changed));

    // Deleting by what was wanted, and by what the kernel lists.
    socket.execute(&route::delete(&onlink)).unwrap();
    let listed = route::list(&mut socket, Filter::own()).unwrap();
    assert_eq!(listed.len(), 1);
    socket.execute(&route::delete(&listed[0])).unwrap();
    assert!(route::list(&mut socket, Filter::own()).unwrap().is_empty());
    assert!(
        socket
            .execute(&route::delete(&onlink))
            .unwrap_err()
            .not_found()
    );

    let elsewhere = Route::to(net(one)).dev(near).table(1000);
    socket.execute(&route::add(&elsewhere)).unwrap();
    let filter = Filter {
        table: Some(1000),
        ..Filter::default()
    };
    assert_eq!(route::list(&mut socket, filter).unwrap().len(), 1);
    let filter = Filter {
        table: Some(1001),
        ..Filter::default()
    };
    assert!(route::list(&mut socket, filter).unwrap().is_empty());
}

#[rstest]
#[case::v4("-4", "10.9.0.0/24")]
#[case::v6("-6", "fd00:9::/64")]
fn own_policy_rules_are_made_listed_and_removed_and_others_are_told_apart(
    #[case] family: &str,
    #[case] from: &str,
) {
    let (here, mut socket) = namespace();
    let groups = [Group::Rules4, Group::Rules6];
    let mut events = here.run(|| EventSocket::open(&groups)).unwrap().unwrap();
    let own = Rule::new(1120, net(from), 1120);
    socket.execute(&rule::add(&own)).unwrap();
    let again = socket.execute(&rule::add(&own)).unwrap_err();
    assert!(again.already_exists(), "{again}");
    assert_eq!(events.receive().unwrap(), Some(vec![Event::Rule(own)]));
    let shown = ip(&here, &format!("-N {family} rule show priority 1120"));
    let (address, length) = from.split_once('/').unwrap();
    assert_eq!(shown[0]["src"], address);
    assert_eq!(shown[0]["srclen"].to_string(), length);
    assert_eq!(shown[0]["table"], "1120");
    assert_eq!(shown[0]["protocol"], "112");

    // Another's, and one that asks for more than ours ever do.
    for rule in ["protocol 4", "protocol 112 iif lo"] {
        let add = format!("{family} rule add priority 7 from {from} lookup 1120 {rule}");
        ip(&here, &add);
    }
    let listed = rule::list_own(&mut socket).unwrap();
    let more = Rule {
        priority: 7,
        plain: false,
        ..own
    };
    assert_eq!(listed, [more, own]);
    socket.execute(&rule::delete(&own)).unwrap();
    let twice = socket.execute(&rule::delete(&own)).unwrap_err();
    assert!(twice.not_found(), "{twice}");
    assert_eq!(rule::list_own(&mut socket).unwrap(), [more]);
    let mut seen = Vec::new();
    while let Some(more) = events.receive().unwrap() {
        seen.extend(more);
    }
    assert_eq!(seen.last(), Some(&Event::RuleGone(own)));
}

#[rstest]
#[case::v4("192.0.2.7", "192.0.2.8")]
#[case::v6("2001:db8::7", "2001:db8::8")]
fn neighbours_are_permanent_or_proxies(#[case] permanent: &str, #[case] proxy: &str) {
    let (here, mut socket) = namespace();
    let (there, mut there_socket) = namespace();
    let (near, _) = wire(&mut socket, &there, &mut there_socket);
    let mac = MacAddress([2, 0, 0, 0, 0, 7]);
    socket
        .execute_all(&[
            neighbour::set_permanent(near, addr(permanent), mac),
            neighbour::set_permanent(near, addr(permanent), mac),
            neighbour::set_proxy(near, addr(proxy)),
        ])
        .unwrap();
    let shown = ip(&here, &format!("neighbour show to {permanent}"));
    assert_eq!(shown[0]["lladdr"], mac.to_string());
    assert_eq!(shown[0]["state"][0], "PERMANENT");
    let shown = ip(&here, "neighbour show proxy");
    assert_eq!(shown[0]["dst"], proxy);
    assert_eq!(shown[0]["dev"], "near");

    let listed = neighbour::list(&mut socket, Some(near)).unwrap();
    let seen = listed
        .iter()
        .find(|n| n.address == addr(permanent))
        .unwrap();
    assert_eq!(seen.mac, Some(mac));
    assert!(seen.permanent && !seen.proxy);
    let proxies = neighbour::list_proxies(&mut socket, Some(near)).unwrap();
    assert_eq!(proxies.len(), 1);
    assert!(proxies[0].proxy);

    socket
        .execute_all(&[
            neighbour::delete(near, addr(permanent)),
            neighbour::delete_proxy(near, addr(proxy)),
        ])
        .unwrap();
    assert!(
        neighbour::list_proxies(&mut socket, None)
            .unwrap()
            .is_empty()
    );
    assert!(
        !neighbour::list(&mut socket, None)
            .unwrap()
            .iter()
            .any(|n| n.address == addr(permanent))
    );
}

#[test]
fn a_refusal_carries_the_purpose_and_the_kernels_words() {
    let (_here, mut socket) = namespace();
    let route = Route::to(net("10.9.0.0/24")).via(addr("192.0.2.1"));
    let text = socket.execute(&route::add(&route)).unwrap_err().to_string();
    assert!(
        text.contains("add route 10.9.0.0/24 via 192.0.2.1"),
        "{text}"
    );
    assert!(text.contains("Nexthop has invalid gateway"), "{text}");
}

#[test]
fn every_one_of_many_requests_has_its_own_outcome() {
    let (here, mut socket) = namespace();
    let (there, mut there_socket) = namespace();
    let (near, _) = wire(&mut socket, &there, &mut there_socket);
    // Several pipelines full, every tenth one impossible.
    let requests: Vec<_> = (0..1000u32)
        .map(|n| {
            let destination = net(&format!("10.{}.{}.0/24", n / 256, n % 256));
            let link = if n % 10 == 3 { 9999 } else { near };
            route::add(&Route::to(destination).dev(link))
        })
        .collect();
    let outcomes = socket.attempt_all(&requests).unwrap();
    assert_eq!(outcomes.len(), 1000);
    for (n, outcome) in outcomes.iter().enumerate() {
        assert_eq!(outcome.is_err(), n % 10 == 3, "{n}: {outcome:?}");
    }
    let shown = ip(&here, "route show proto 112");
    assert_eq!(shown.as_array().unwrap().len(), 900);
    assert_eq!(route::list(&mut socket, Filter::own()).unwrap().len(), 900);
}

#[test]
fn a_listing_is_complete_while_the_table_changes() {
    let (here, mut socket) = namespace();
    let (there, mut there_socket) = namespace();
    let (near, _) = wire(&mut socket, &there, &mut there_socket);
    let steady: Vec<_> = (0..500u32)
        .map(|n| route::add(&Route::to(net(&format!("10.{}.{}.0/24", n / 256, n % 256))).dev(near)))
        .collect();
    socket.execute_all(&steady).unwrap();
    let mut other = here.route_socket().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let flicker = Route::to(net("10.250.0.0/24")).dev(near).protocol(99);
            for _ in 0..500 {
                other.execute(&route::add(&flicker)).unwrap();
                other.execute(&route::delete(&flicker)).unwrap();
            }
        });
        for _ in 0..20 {
            let listed = route::list(&mut socket, Filter::own()).unwrap();
            assert_eq!(listed.len(), 500);
        }
    });
}

#[test]
fn changes_are_notified_in_order() {
    let (here, mut socket) = namespace();
    let (there, mut there_socket) = namespace();
    let groups = [
        Group::Links,
        Group::Addresses4,
        Group::Addresses6,
        Group::Routes4,
        Group::Routes6,
        Group::Neighbours,
    ];
    let mut events = here.run(|| EventSocket::open(&groups)).unwrap().unwrap();
    assert!(events.receive().unwrap().is_none());
    let (near, _) = wire(&mut socket, &there, &mut there_socket);
    let route4 = Route::to(net("10.9.0.0/24")).dev(near);
    let route6 = Route::to(net("fd00:9::/64")).dev(near);
    socket
        .execute_all(&[
            address::add(&Address::new(near, net("192.0.2.1/24"))),
            route::add(&route4),
            route::add(&route6),
            neighbour::set_permanent(near, addr("192.0.2.7"), MacAddress([2; 6])),
            route::delete(&route4),
        ])
        .unwrap();
    link::delete_by_name(&mut socket, "near").unwrap();

    let port = socket.port();
    // Notifications are queued before the acknowledgement: all are here now.
    let mut seen = Vec::new();
    while let Some(more) = events.receive().unwrap() {
        seen.extend(more);
    }
    let position = |what: &dyn Fn(&Event) -> bool| {
        seen.iter()
            .position(what)
            .unwrap_or_else(|| panic!("not notified: {seen:#?}"))
    };
    let order = [
        position(&|e| matches!(e, Event::Link(l) if l.name == "near" && l.up)),
        position(&|e| matches!(e, Event::Address(a) if a.address == net("192.0.2.1/24"))),
        position(&|e| matches!(e, Event::Route(r) if *r == route4)),
        position(
            &|e| matches!(e, Event::Route(r) if r.destination == route6.destination && r.protocol == 112),
        ),
        position(
            &|e| matches!(e, Event::Neighbour(n) if n.permanent && n.address == addr("192.0.2.7")),
        ),
        position(&|e| matches!(e, Event::RouteGone(r, by) if *r == route4 && *by == port)),
        position(&|e| matches!(e, Event::LinkGone(l) if l.name == "near")),
    ];
    assert!(order.is_sorted(), "{order:?}: {seen:#?}");
    assert!(!seen.contains(&Event::Lost));
}

#[test]
fn a_storm_of_changes_that_nobody_reads_is_told_as_a_loss() {
    let (here, mut socket) = namespace();
    let (there, mut there_socket) = namespace();
    let mut events = here
        .run(|| EventSocket::open(&[Group::Routes4]))
        .unwrap()
        .unwrap();
    let (near, _) = wire(&mut socket, &there, &mut there_socket);
    let storm: Vec<_> = (0..20_000u32)
        .map(|n| {
            let route = Route::to(net(&format!("10.0.{}.0/24", n % 200))).dev(near);
            if n / 200 % 2 == 0 {
                route::add(&route)
            } else {
                route::delete(&route)
            }
        })
        .collect();
    socket.execute_all(&storm).unwrap();
    let mut lost = false;
    while let Some(more) = events.receive().unwrap() {
        lost |= more.contains(&Event::Lost);
    }
    assert!(lost);
    // And goes on afterwards.
    socket
        .execute(&route::add(&Route::to(net("10.1.0.0/24")).dev(near)))
        .unwrap();
    assert!(matches!(
        events.receive().unwrap().as_deref(),
        Some([Event::Route(_)])
    ));
}

#[test]
fn a_link_is_waited_for_until_it_passes_packets() {
    let (here, mut socket) = namespace();
    let (there, mut there_socket) = namespace();
    socket
        .execute(&link::add_veth(
            &VethEnd {
                name: "near",
                ..VethEnd::default()
            },
            None,
            &VethEnd {
                name: "far",
                namespace: Some(&there),
                ..VethEnd::default()
            },
        ))
        .unwrap();
    let near = link::get(&mut socket, "near").unwrap().unwrap().index;
    let far = link::get(&mut there_socket, "far").unwrap().unwrap().index;
    let mut wait = |milliseconds| {
        here.run(|| {
            link::wait_until_operational(&mut socket, near, Duration::from_millis(milliseconds))
        })
        .unwrap()
        .unwrap()
    };
    assert!(!wait(20), "the far end is down");
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| wait(10_000));
        there_socket.execute(&link::set_up(far)).unwrap();
        assert!(waiting.join().unwrap());
    });
    let up = ip(&here, "link show");
    assert!(
        up.as_array()
            .unwrap()
            .iter()
            .any(|l| l["ifname"] == "near" && l["operstate"] == "UP")
    );
}

#[test]
fn an_ipv6_address_is_waited_for_until_packets_to_it_are_delivered() {
    let (here, mut socket) = namespace();
    let (there, mut there_socket) = namespace();
    let (near, _) = wire(&mut socket, &there, &mut there_socket);
    let own = net("fd00::1/64");
    let wait = |socket: &mut Socket, milliseconds| {
        here.run(|| {
            let deadline = Duration::from_millis(milliseconds);
            address::wait_until_usable(socket, near, &[own.addr()], deadline)
        })
        .unwrap()
        .unwrap()
    };
    assert!(!wait(&mut socket, 20), "no such address");
    socket
        .execute(&address::add(&Address::new(near, own)))
        .unwrap();
    assert!(wait(&mut socket, 10_000));
    let local = ip(&here, "-6 route show table local");
    assert!(
        local
            .as_array()
            .unwrap()
            .iter()
            .any(|r| r["dst"] == "fd00::1"),
        "{local}"
    );
}
