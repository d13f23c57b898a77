//! Pods on a node in every attach mode and both families, with real traffic.
#![allow(clippy::unwrap_used, reason = "tests say what they expect with unwrap")]

mod common;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;

use common::packets::{icmp, icmpv6, received, redirect, router_advertisement, send4, send6};
use common::{NODE, Node, Pod, addresses, assert_pings, connect, eventually, ip, pings};
use rstest::rstest;
use serde_json::{Value, json};

#[rstest]
#[case::bridge("bridge")]
#[case::routed("routed")]
fn pods_and_their_node_reach_each_other_without_translation(#[case] mode: &str) {
    let node = Node::new();
    let configuration = node.configuration(mode);
    let (one, two) = (Pod::new("one"), Pod::new("two"));
    let first = addresses(&node.call("ADD", &configuration, &one).ok());
    let second = addresses(&node.call("ADD", &configuration, &two).ok());
    for (near, far) in first.iter().zip(&second) {
        assert_pings(&one.namespace, *far);
        assert_eq!(connect(&one.namespace, &two.namespace, *far), *near);
        assert_eq!(connect(&two.namespace, &one.namespace, *near), *far);
        assert_pings(&node.namespace, *near);
        connect(&node.namespace, &one.namespace, *near);
        // A pod reaches itself by its own address, and its loopback is up.
        assert_eq!(connect(&one.namespace, &one.namespace, *near), *near);
    }
    assert_eq!(
        connect(&one.namespace, &one.namespace, [127, 0, 0, 1].into()),
        std::net::IpAddr::from([127, 0, 0, 1])
    );

    for (address, pod) in NODE.into_iter().zip(&first) {
        let seen = connect(&one.namespace, &node.namespace, address.parse().unwrap());
        assert_eq!(seen, *pod);
    }
}

#[rstest]
#[case::bridge("bridge")]
#[case::routed("routed")]
fn the_first_packet_needs_no_waiting_and_no_neighbour_question_on_the_node(#[case] mode: &str) {
    let node = Node::new();
    let pod = Pod::new("one");
    let result = node.call("ADD", &node.configuration(mode), &pod).ok();
    let inside = ip(&pod.namespace, "address show dev eth0");
    for address in inside[0]["addr_info"].as_array().unwrap() {
        if address["scope"] == "global" {
            assert_eq!(address["tentative"], Value::Null, "{address}");
        }
    }
    // What the kernel does in the background is done: the node's interfaces
    // pass packets (a listing, unlike a question for one link, does not make
    // it do so), and the pod's addresses have their local routes.
    for link in ip(&node.namespace, "link show").as_array().unwrap() {
        if link["ifname"] != "lo" {
            assert_eq!(link["operstate"], "UP", "{link}");
        }
    }
    for (family, address) in ["-4", "-6"].into_iter().zip(addresses(&result)) {
        let local = ip(
            &pod.namespace,
            &format!("{family} route show table local dev eth0"),
        );
        let found = local
            .as_array()
            .unwrap()
            .iter()
            .any(|route| route["type"] == "local" && route["dst"] == address.to_string());
        assert!(found, "{local}");
    }
    let neighbours = ip(&node.namespace, "neighbour show nud permanent");
    for address in addresses(&result) {
        let entry = neighbours
            .as_array()
            .unwrap()
            .iter()
            .find(|n| n["dst"] == address.to_string())
            .unwrap();
        assert_eq!(entry["lladdr"], inside[0]["address"]);
    }
}

/// How many answer a pod's question to all on its link, itself aside.
fn answers_to_all(pod: &Pod) -> usize {
    let asked = pod
        .namespace
        .run(|| {
            Command::new("ping")
                .args(["-6", "-c", "3", "-i", "0.2", "-w", "2", "ff02::1%eth0"])
                .output()
                .unwrap()
        })
        .unwrap();
    let text = String::from_utf8(asked.stdout).unwrap();
    let from: BTreeSet<_> = text
        .lines()
        .filter_map(|line| line.split(" bytes from ").nth(1)?.split('%').next())
        .collect();
    from.len()
}

#[test]
fn multicast_of_a_pod_reaches_the_node_and_other_pods_only_when_asked_for() {
    let (here, there) = (Node::new(), Node::new());
    let mut asked = there.configuration("bridge");
    asked["multicast"] = json!(true);
    let mut counts = Vec::new();
    for (node, configuration) in [(&here, here.configuration("bridge")), (&there, asked)] {
        let pods = ["one", "two", "three"].map(Pod::new);
        for pod in &pods {
            node.call("ADD", &configuration, pod).ok();
        }
        // Link-local addresses come after ADD.
        for pod in &pods {
            eventually("the pod has a link-local address", || {
                let shown = ip(&pod.namespace, "-6 address show dev eth0 scope link");
                let mut all = shown[0]["addr_info"].as_array().into_iter().flatten();
                let there = all.any(|address| address["local"].is_string());
                there.then_some(()).ok_or(shown)
            });
        }
        counts.push(answers_to_all(&pods[0]));
    }
    // Itself and the node; then the two others as well.
    assert_eq!(counts, [2, 4]);
}

#[rstest]
#[case::bridge("bridge", "10.200.1.1", "fd00:200:0:1::1")]
#[case::routed("routed", "169.254.1.1", "fe80::1")]
fn configured_routes_have_all_their_details_in_the_pod_the_result_and_check(
    #[case] mode: &str,
    #[case] via4: &str,
    #[case] via6: &str,
) {
    let node = Node::new();
    let pod = Pod::new("one");
    let mut configuration = node.configuration(mode);
    configuration["ipam"]["routes"] = json!([
        {"dst": "0.0.0.0/0", "mtu": 1400},
        {"dst": "::/0"},
        {"dst": "192.0.2.0/24", "mtu": 1300, "advmss": 1200, "priority": 50, "table": 77, "scope": 0},
        {"dst": "2001:db8::/64", "mtu": 1350, "advmss": 1210, "priority": 51, "table": 78},
        {"dst": "198.51.100.0/24", "scope": 253},
    ]);
    let result = node.call("ADD", &configuration, &pod).ok();
    let route = |show: &str| {
        let shown = ip(&pod.namespace, &format!("-d {show}"));
        assert_eq!(shown.as_array().unwrap().len(), 1, "{show}: {shown}");
        shown[0].clone()
    };
    let v4 = route("-4 route show table 77");
    assert_eq!(
        (&v4["dst"], &v4["gateway"]),
        (&json!("192.0.2.0/24"), &json!(via4))
    );
    assert_eq!(
        (&v4["metric"], &v4["scope"]),
        (&json!(50), &json!("global"))
    );
    assert_eq!(v4["metrics"], json!([{"mtu": 1300, "advmss": 1200}]));
    let v6 = route("-6 route show table 78");
    assert_eq!(
        (&v6["dst"], &v6["gateway"]),
        (&json!("2001:db8::/64"), &json!(via6))
    );
    assert_eq!(v6["metric"], json!(51));
    assert_eq!(v6["metrics"], json!([{"mtu": 1350, "advmss": 1210}]));
    let default = route("-4 route show default");
    assert_eq!(
        (&default["gateway"], &default["metrics"]),
        (&json!(via4), &json!([{"mtu": 1400}]))
    );
    let near = route("-4 route show 198.51.100.0/24");
    assert_eq!(
        (&near["scope"], &near["gateway"]),
        (&json!("link"), &Value::Null)
    );

    let told = |dst: &str| {
        let routes = result["routes"].as_array().unwrap().iter();
        let found: Vec<_> = routes.filter(|route| route["dst"] == dst).collect();
        assert_eq!(found.len(), 1, "{result}");
        found[0].clone()
    };
    assert_eq!(
        told("0.0.0.0/0"),
        json!({"dst": "0.0.0.0/0", "gw": via4, "mtu": 1400})
    );
    assert_eq!(told("::/0"), json!({"dst": "::/0", "gw": via6}));
    for configured in [2, 3, 4] {
        let configured = &configuration["ipam"]["routes"][configured];
        assert_eq!(told(configured["dst"].as_str().unwrap()), *configured);
    }

    configuration["prevResult"] = result.clone();
    node.call("CHECK", &configuration, &pod).ok();
    for change in [
        format!("-4 route replace default via {via4} dev eth0"),
        format!(
            "-4 route replace table 77 192.0.2.0/24 via {via4} dev eth0 metric 50 mtu 1300 advmss 1100 onlink"
        ),
        "-6 route del table 78 2001:db8::/64".to_owned(),
        "-4 route del 198.51.100.0/24".to_owned(),
    ] {
        let words: Vec<_> = change.split(' ').collect();
        let changed = pod
            .namespace
            .run(|| Command::new("ip").args(&words).status().unwrap());
        assert!(changed.unwrap().success(), "{change}");
        let outcome = node.call("CHECK", &configuration, &pod);
        assert_eq!(outcome.code(), 103, "{change}");
        node.call("DEL", &configuration, &pod).ok();
        configuration["prevResult"] = node.call("ADD", &configuration, &pod).ok();
    }
    // Earlier versions know nothing of them.
    node.call("DEL", &configuration, &pod).ok();
    configuration["cniVersion"] = json!("1.0.0");
    let result = node.call("ADD", &configuration, &pod).ok();
    assert!(!result["routes"].to_string().contains("mtu"), "{result}");
}

#[test]
fn the_bridge_has_the_gateways_and_keeps_its_address_and_settings() {
    let node = Node::new();
    let configuration = node.configuration("bridge");
    let (one, two) = (Pod::new("one"), Pod::new("two"));
    let result = node.call("ADD", &configuration, &one).ok();
    let before = ip(&node.namespace, "address show dev pwbr0");
    node.call("ADD", &configuration, &two).ok();
    node.call("DEL", &configuration, &one).ok();
    let after = ip(&node.namespace, "address show dev pwbr0");
    assert_eq!(before[0]["address"], after[0]["address"]);
    let has = |text: &str| {
        after[0]["addr_info"]
            .as_array()
            .unwrap()
            .iter()
            .any(|a| a["local"] == text)
    };
    assert!(has("10.200.1.1") && has("fd00:200:0:1::1"), "{after}");
    assert_eq!(after[0]["promiscuity"], 0);

    assert_eq!(result["interfaces"][0]["name"], "pwbr0");
    assert_eq!(result["interfaces"][0]["mac"], before[0]["address"]);
    assert_eq!(result["ips"][0]["address"], "10.200.1.2/24");
    assert_eq!(result["ips"][0]["gateway"], "10.200.1.1");
    assert_eq!(result["ips"][0]["interface"], 2);
    assert_eq!(result["ips"][1]["address"], "fd00:200:0:1::2/64");
    let port = result["interfaces"][1]["name"].as_str().unwrap();
    assert_eq!(port.len(), 13);
    assert!(port.starts_with("pw"));
    node.settle();
    assert!(!node.links().contains(&port.to_owned()));
    let other = node.links().into_iter().find(|l| l != "pwbr0").unwrap();
    let shown = ip(&node.namespace, &format!("link show {other}"));
    assert_eq!(shown[0]["master"], "pwbr0");
    assert_eq!(shown[0]["linkinfo"]["info_slave_data"]["hairpin"], true);
    assert_eq!(shown[0]["linkinfo"]["info_slave_data"]["isolated"], false);
    assert_eq!(
        shown[0]["linkinfo"]["info_slave_data"]["mcast_flood"],
        false
    );
}

#[test]
fn a_node_with_a_new_range_loses_the_old_ones_gateway() {
    let node = Node::new();
    let mut configuration = node.configuration("bridge");
    let one = Pod::new("one");
    node.call("ADD", &configuration, &one).ok();
    node.call("DEL", &configuration, &one).ok();
    configuration["ipam"]["ranges"] =
        json!([[{"subnet": "10.200.7.0/24"}], [{"subnet": "fd00:200:0:7::/64"}]]);
    let two = Pod::new("two");
    let result = node.call("ADD", &configuration, &two).ok();
    let shown = ip(&node.namespace, "address show dev pwbr0").to_string();
    assert!(
        !shown.contains("10.200.1.1") && !shown.contains("fd00:200:0:1::1"),
        "{shown}"
    );
    for address in addresses(&result) {
        assert_pings(&node.namespace, address);
    }
}

#[test]
fn routed_pods_have_a_link_local_gateway_and_the_node_a_route_each() {
    let node = Node::new();
    let pod = Pod::new("one");
    let result = node.call("ADD", &node.configuration("routed"), &pod).ok();
    assert_eq!(result["ips"][0]["address"], "10.200.1.2/32");
    assert_eq!(result["ips"][0]["gateway"], "169.254.1.1");
    assert_eq!(result["ips"][1]["address"], "fd00:200:0:1::2/128");
    assert_eq!(result["ips"][1]["gateway"], "fe80::1");
    let cable = result["interfaces"][0]["name"].as_str().unwrap();
    assert_eq!(result["interfaces"][1]["sandbox"], pod.path());
    for (family, address) in [("-4", "10.200.1.2"), ("-6", "fd00:200:0:1::2")] {
        let routes = ip(&node.namespace, &format!("{family} route show proto 112"));
        assert_eq!(routes.as_array().unwrap().len(), 1);
        assert_eq!(routes[0]["dst"], address);
        assert_eq!(routes[0]["dev"], cable);
    }
    assert_eq!(node.links(), [cable]);
}

#[test]
fn with_proxy_arp_routed_pods_ask_for_their_gateway_and_the_node_answers() {
    let node = Node::new();
    // A way to everywhere, which is what the node answers by.
    let uplink = ["link add uplink type bridge", "link set uplink up"];
    let routes = [
        "addr add 192.0.2.1/24 dev uplink",
        "route add default via 192.0.2.254 dev uplink onlink",
    ];
    for command in uplink.iter().chain(&routes) {
        ip(&node.namespace, command);
    }
    let pods = ["one", "two"].map(Pod::new);
    let mut configuration = node.configuration("routed");
    configuration["proxyArp"] = json!(true);
    let results = pods
        .each_ref()
        .map(|pod| node.call("ADD", &configuration, pod).ok());
    let neighbours = |family: &str| ip(&pods[0].namespace, &format!("{family} neigh show"));
    for family in ["-4", "-6"] {
        assert_eq!(neighbours(family), json!([]), "nothing is known beforehand");
    }
    for address in addresses(&results[1]) {
        assert_pings(&pods[0].namespace, address);
    }
    let node_mac = results[0]["interfaces"][0]["mac"].as_str().unwrap();
    for (family, gateway) in [("-4", "169.254.1.1"), ("-6", "fe80::1")] {
        let known = neighbours(family);
        let of_gateway = known.as_array().unwrap().iter();
        let of_gateway = of_gateway.filter(|entry| entry["dst"] == gateway);
        let macs: Vec<_> = of_gateway.map(|entry| &entry["lladdr"]).collect();
        assert_eq!(macs, [node_mac], "{known}");
    }
    configuration["attach"] = json!("bridge");
    let refused = node.call("ADD", &configuration, &Pod::new("three"));
    assert!(!refused.success);
    assert!(
        refused.stdout.to_string().contains("proxyArp"),
        "{refused:?}"
    );
}

#[rstest]
#[case::bridge("bridge")]
#[case::routed("routed")]
fn a_pod_has_ipv6_at_once_also_where_a_runtime_switched_it_off(#[case] mode: &str) {
    let node = Node::new();
    for off in ["0", "1"] {
        let pod = Pod::new(&format!("off-{off}"));
        let write = || std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", off);
        pod.namespace.run(write).unwrap().unwrap();
        let result = node.call("ADD", &node.configuration(mode), &pod).ok();
        let shown = ip(&pod.namespace, "-6 address show dev eth0");
        let all = shown[0]["addr_info"].as_array().unwrap();
        let mut found: Vec<_> = all.iter().map(|a| a["local"].as_str().unwrap()).collect();
        found.sort_unstable();
        let mac = shown[0]["address"].as_str().unwrap();
        let mac: linux::link::MacAddress = mac.parse().unwrap();
        let link_local = mac.link_local().to_string();
        let given = addresses(&result)[1].to_string();
        assert_eq!(found, [given.as_str(), link_local.as_str()], "{shown}");
        let nowhere = |a: &Value| a["tentative"].is_null() && a["dadfailed"].is_null();
        assert!(all.iter().all(nowhere), "{shown}");
        connect(&node.namespace, &pod.namespace, addresses(&result)[1]);
        // Nothing is looked for in the background that this one would be beside.
        let node_end = &result["interfaces"]
            .as_array()
            .unwrap()
            .iter()
            .rev()
            .nth(1)
            .unwrap()["name"];
        let shown = ip(
            &node.namespace,
            &format!("-6 address show dev {}", node_end.as_str().unwrap()),
        );
        assert!(!shown.to_string().contains("fe80"), "{shown}");
    }
}

#[rstest]
#[case::of_ipv4_alone(&["10.200.1.0/24"])]
#[case::of_both_families(&["10.200.1.0/24", "fd00:200:0:1::/64"])]
fn a_pod_of_a_bridge_heeds_no_router_advertisement_of_another(#[case] subnets: &[&str]) {
    let node = Node::new();
    let mut configuration = node.configuration("bridge");
    let ranges = subnets.iter().map(|subnet| json!([{"subnet": subnet}]));
    configuration["ipam"]["ranges"] = ranges.collect();
    configuration["multicast"] = json!(true);
    let (victim, rogue) = (Pod::new("victim"), Pod::new("rogue"));
    for pod in [&victim, &rogue] {
        node.call("ADD", &configuration, pod).ok();
    }
    let before = ip(&victim.namespace, "-6 route show default");
    ip(&rogue.namespace, "address add fe80::bad/64 dev eth0 nodad");
    let (source, all) = ("fe80::bad".parse().unwrap(), "ff02::1".parse().unwrap());
    let advertisement = router_advertisement("2001:db8:bad::".parse().unwrap());
    let packet = icmpv6(source, all, &[], &advertisement);
    // When the second has arrived, the first has been looked at.
    send6(&rogue.namespace, "eth0", all, &[packet.clone(), packet]);
    eventually("the advertisements arrive", || {
        let seen = received(&victim, "snmp6", "Icmp6InRouterAdvertisements");
        if seen >= 2 { Ok(()) } else { Err(seen) }
    });
    assert_eq!(ip(&victim.namespace, "-6 route show default"), before);
    let shown = ip(&victim.namespace, "-6 address show dev eth0").to_string();
    assert!(!shown.contains("2001:db8:bad"), "{shown}");
}

/// Sends a pod an ICMP redirect in the name of its gateway: to send what is for
/// `destination` to `router`.
fn send_redirect(
    from: &linux::namespace::NetworkNamespace,
    pod: &Pod,
    address: Ipv4Addr,
    gateway: Ipv4Addr,
    destination: Ipv4Addr,
    router: Ipv4Addr,
) {
    let packet = icmp(gateway, address, &redirect(address, destination, router));
    let before = received(pod, "snmp", "InRedirects");
    // When the second has arrived, the first has been looked at.
    send4(from, address, &[packet.clone(), packet]);
    eventually("the redirects arrive", || {
        let seen = received(pod, "snmp", "InRedirects");
        if seen >= before + 2 {
            Ok(())
        } else {
            Err(seen)
        }
    });
}

fn v4(address: &IpAddr) -> Ipv4Addr {
    match address {
        IpAddr::V4(address) => *address,
        IpAddr::V6(address) => panic!("{address} is none of IPv4"),
    }
}

#[test]
fn a_pod_of_a_bridge_heeds_no_redirect() {
    let node = Node::new();
    let configuration = node.configuration("bridge");
    let (victim, rogue) = (Pod::new("victim"), Pod::new("rogue"));
    let results = [&victim, &rogue].map(|pod| node.call("ADD", &configuration, pod).ok());
    let [near, far] = results.each_ref().map(|result| addresses(result)[0]);
    let mac = |pod: &Pod| ip(&pod.namespace, "link show eth0")[0]["address"].clone();
    // Each has the other for a neighbour: the kernel heeds a redirect to none other.
    for (pod, other, address) in [(&victim, &rogue, far), (&rogue, &victim, near)] {
        let mac = mac(other);
        let entry = format!(
            "neighbour add {address} lladdr {} dev eth0",
            mac.as_str().unwrap()
        );
        ip(&pod.namespace, &entry);
    }
    ip(&rogue.namespace, &format!("route add {near} dev eth0"));
    let (gateway, destination) = ([10, 200, 1, 1].into(), [198, 51, 100, 7].into());
    send_redirect(
        &rogue.namespace,
        &victim,
        v4(&near),
        gateway,
        destination,
        v4(&far),
    );
    let way = ip(&victim.namespace, &format!("route get {destination}"));
    assert_eq!(way[0]["gateway"], "10.200.1.1", "{way}");
}

#[test]
fn no_redirect_leads_a_routed_pod_away_from_its_node() {
    let node = Node::new();
    let configuration = node.configuration("routed");
    let (victim, rogue) = (Pod::new("victim"), Pod::new("rogue"));
    let results = [&victim, &rogue].map(|pod| node.call("ADD", &configuration, pod).ok());
    let [near, far] = results.each_ref().map(|result| addresses(result)[0]);
    let (gateway, destination) = ([169, 254, 1, 1].into(), NODE[0].parse().unwrap());
    // As a forwarded one would come; the node itself sends none by that name. Neither
    // another pod nobody answers for, nor the node by another of its addresses.
    for router in [v4(&far), destination] {
        send_redirect(
            &node.namespace,
            &victim,
            v4(&near),
            gateway,
            destination,
            router,
        );
        assert_pings(&victim.namespace, destination.into());
    }
    assert_pings(&victim.namespace, far);
}

#[rstest]
#[case::bridge("bridge")]
#[case::routed("routed")]
fn both_ends_of_a_cable_have_one_queue(#[case] mode: &str) {
    let node = Node::new();
    let pod = Pod::new("one");
    let result = node.call("ADD", &node.configuration(mode), &pod).ok();
    let interfaces = result["interfaces"].as_array().unwrap();
    let cable = &interfaces[interfaces.len() - 2]["name"];
    let cable = cable.as_str().unwrap();
    for (namespace, name) in [(&node.namespace, cable), (&pod.namespace, "eth0")] {
        let shown = ip(namespace, &format!("link show {name}"));
        assert_eq!(shown[0]["num_tx_queues"], 1, "{shown}");
        assert_eq!(shown[0]["num_rx_queues"], 1, "{shown}");
    }
}

#[rstest]
#[case::bridge("bridge")]
#[case::routed("routed")]
fn the_mtu_is_the_configured_one_on_both_ends(#[case] mode: &str) {
    let node = Node::new();
    let pod = Pod::new("one");
    let mut configuration = node.configuration(mode);
    configuration["mtu"] = json!(1400);
    let result = node.call("ADD", &configuration, &pod).ok();
    assert_eq!(ip(&pod.namespace, "link show eth0")[0]["mtu"], 1400);
    for link in node.links() {
        assert_eq!(
            ip(&node.namespace, &format!("link show {link}"))[0]["mtu"],
            1400
        );
    }
    let last = result["interfaces"]
        .as_array()
        .unwrap()
        .last()
        .unwrap()
        .clone();
    assert_eq!(last["mtu"], 1400);
}

#[rstest]
#[case::bridge("bridge")]
#[case::routed("routed")]
fn a_pod_that_is_deleted_is_unreachable_and_leaves_nothing(#[case] mode: &str) {
    let node = Node::new();
    let configuration = node.configuration(mode);
    let (one, two) = (Pod::new("one"), Pod::new("two"));
    let first = addresses(&node.call("ADD", &configuration, &one).ok());
    node.call("ADD", &configuration, &two).ok();
    node.call("DEL", &configuration, &one).ok();
    for address in first {
        assert!(!pings(&two.namespace, address));
    }
    node.settle();
    assert_eq!(ip(&one.namespace, "link show").as_array().unwrap().len(), 1);
    node.call("DEL", &configuration, &one).ok();
    node.call("DEL", &configuration, &two).ok();
    node.assert_clean();
}

#[rstest]
#[case::bridge("bridge")]
#[case::routed("routed")]
fn an_address_used_again_reaches_the_new_pod_at_once(#[case] mode: &str) {
    let node = Node::new();
    let mut configuration = node.configuration(mode);
    // One pod's worth of addresses.
    configuration["ipam"]["ranges"] = json!([
        [{"subnet": "10.200.1.0/24", "rangeStart": "10.200.1.9", "rangeEnd": "10.200.1.9"}],
        [{"subnet": "fd00:200:0:1::/64", "rangeStart": "fd00:200:0:1::9", "rangeEnd": "fd00:200:0:1::9"}],
    ]);
    for round in ["a", "b", "c"] {
        let pod = Pod::new(round);
        let given = addresses(&node.call("ADD", &configuration, &pod).ok());
        for address in &given {
            connect(&node.namespace, &pod.namespace, *address);
        }
        node.call("DEL", &configuration, &pod).ok();
    }
    node.assert_clean();
}

#[test]
fn macvlan_pods_are_beside_the_node_on_the_network_of_an_interface() {
    // A router on the wire that the node's interface is plugged into.
    let node = Node::new();
    let router = linux::namespace::NetworkNamespace::create().unwrap();
    let mut inside = router.route_socket().unwrap();
    let mut socket = node.namespace.route_socket().unwrap();
    let end = |name, namespace| linux::link::VethEnd {
        name,
        namespace,
        ..linux::link::VethEnd::default()
    };
    socket
        .execute(&linux::link::add_veth(
            &end("uplink", None),
            None,
            &end("lan", Some(&router)),
        ))
        .unwrap();
    let lan = linux::link::get(&mut inside, "lan").unwrap().unwrap().index;
    let gateways = ["10.200.1.1/24", "fd00:200:0:1::1/64"].map(|address| {
        linux::address::add(&linux::address::Address::new(lan, address.parse().unwrap()))
    });
    inside.execute(&linux::link::set_up(lan)).unwrap();
    inside.execute_all(&gateways).unwrap();

    let mut configuration = node.configuration("macvlan");
    let (one, two) = (Pod::new("one"), Pod::new("two"));
    assert_eq!(node.call("ADD", &configuration, &one).code(), 7);
    configuration["master"] = json!("uplink");
    let result = node.call("ADD", &configuration, &one).ok();
    let first = addresses(&result);
    assert_eq!(result["interfaces"].as_array().unwrap().len(), 1);
    let second = addresses(&node.call("ADD", &configuration, &two).ok());
    for (near, far) in first.iter().zip(&second) {
        assert_eq!(connect(&one.namespace, &two.namespace, *far), *near);
        connect(&router, &one.namespace, *near);
    }
    for gateway in ["10.200.1.1", "fd00:200:0:1::1"] {
        assert_pings(&one.namespace, gateway.parse().unwrap());
    }
    configuration["prevResult"] = result;
    node.call("CHECK", &configuration, &one).ok();
    let shown = ip(&one.namespace, "link show eth0");
    assert_eq!(shown[0]["linkinfo"]["info_data"]["mode"], "bridge");

    // Else the next pod's result would begin with this one's.
    configuration.as_object_mut().unwrap().remove("prevResult");
    configuration["mode"] = json!("private");
    let three = Pod::new("three");
    let third = addresses(&node.call("ADD", &configuration, &three).ok());
    assert_pings(&router, third[0]);
    let shown = ip(&three.namespace, "link show eth0");
    assert_eq!(shown[0]["linkinfo"]["info_data"]["mode"], "private");
    // The kernel passes nothing between a private pod and any other of the
    // same parent, whatever that one's mode.
    let four = Pod::new("four");
    let fourth = addresses(&node.call("ADD", &configuration, &four).ok());
    for family in [0, 1] {
        assert!(!pings(&one.namespace, third[family]));
        assert!(!pings(&three.namespace, first[family]));
        assert!(!pings(&three.namespace, fourth[family]));
        assert_pings(&router, fourth[family]);
    }

    for pod in [&one, &two, &three, &four] {
        node.call("DEL", &configuration, pod).ok();
        assert_eq!(ip(&pod.namespace, "link show").as_array().unwrap().len(), 1);
        node.call("DEL", &configuration, pod).ok();
    }
    node.settle();
    assert_eq!(node.reservations(), Vec::<String>::new());
}

/// What every pod of these reaches: its gateways, and the node.
#[track_caller]
fn assert_served(node: &Node, pods: &[(&Pod, &Value)]) {
    for (pod, result) in pods {
        for own in result["ips"].as_array().unwrap() {
            let gateway = own["gateway"].as_str().unwrap().parse().unwrap();
            assert_pings(&pod.namespace, gateway);
        }
        for address in addresses(result) {
            assert_pings(&node.namespace, address);
        }
    }
}

#[test]
fn a_pod_that_comes_takes_no_other_pods_gateway_away() {
    let node = Node::new();
    let one = node.configuration("bridge");
    let mut two = one.clone();
    two["name"] = json!("more");
    two["ipam"]["ranges"] = json!([[{"subnet": "10.201.1.0/24"}], [{"subnet": "fd00:201::/64"}]]);
    // Of one network, where each pod is given its own range.
    let mut three = one.clone();
    three["ipam"]["ranges"] = json!([[{"subnet": "fd00:202::/64"}]]);
    three["runtimeConfig"] = json!({"ipRanges": [[{"subnet": "10.202.1.0/24"}]]});
    let networks = [("one", &one), ("two", &two), ("three", &three)];
    let pods = networks.map(|(id, network)| {
        let pod = Pod::new(id);
        let result = node.call("ADD", network, &pod).ok();
        (pod, network, result)
    });
    assert_served(
        &node,
        &[
            (&pods[0].0, &pods[0].2),
            (&pods[1].0, &pods[1].2),
            (&pods[2].0, &pods[2].2),
        ],
    );
    for (pod, network, _) in &pods[..2] {
        node.call("DEL", network, pod).ok();
    }
    node.call("ADD", &three, &Pod::new("four")).ok();
    let shown = ip(&node.namespace, "address show dev pwbr0").to_string();
    assert!(
        !shown.contains("10.200.1.1") && !shown.contains("fd00:201::1"),
        "{shown}"
    );
}

#[test]
fn the_pod_for_which_a_lost_bridge_is_made_anew_brings_it_back_to_all() {
    let node = Node::new();
    let mut configuration = node.configuration("bridge");
    let (one, two) = (Pod::new("one"), Pod::new("two"));
    let first = node.call("ADD", &configuration, &one).ok();
    shell(&node, "ip link del pwbr0");
    assert_eq!(
        node.plugin(&configuration, &[("CNI_COMMAND", "STATUS")])
            .code(),
        51
    );
    let second = node.call("ADD", &configuration, &two).ok();
    assert_served(&node, &[(&one, &first), (&two, &second)]);
    for (near, far) in addresses(&first).into_iter().zip(addresses(&second)) {
        assert_eq!(connect(&one.namespace, &two.namespace, far), near);
    }
    // All is as the first ADD made it.
    configuration["prevResult"] = first;
    node.call("CHECK", &configuration, &one).ok();
    for pod in [&one, &two] {
        node.call("DEL", &configuration, pod).ok();
    }
    node.assert_clean();
}

fn shell(node: &Node, command: &str) {
    let run = || Command::new("sh").args(["-c", command]).status().unwrap();
    assert!(node.namespace.run(run).unwrap().success(), "{command}");
}

/// Runs the plugin for one of a pod's interfaces.
fn call(node: &Node, command: &str, configuration: &Value, pod: &Pod, interface: &str) -> Value {
    let outcome = node.plugin(
        configuration,
        &[
            ("CNI_COMMAND", command),
            ("CNI_CONTAINERID", &pod.id),
            ("CNI_NETNS", &pod.path()),
            ("CNI_IFNAME", interface),
        ],
    );
    outcome.ok()
}

#[rstest]
fn a_pod_has_interfaces_of_several_networks_and_leads_everywhere_by_the_first(
    #[values("bridge", "routed")] first: &str,
    #[values("bridge", "routed")] second: &str,
) {
    let node = Node::new();
    let one = node.configuration(first);
    let mut two = node.configuration(second);
    two["name"] = json!("more");
    two["bridge"] = json!("pwbr1");
    two["ipam"]["ranges"] = json!([[{"subnet": "10.201.1.0/24"}], [{"subnet": "fd00:201::/64"}]]);
    two["ipam"]["routes"] = json!([{"dst": "0.0.0.0/0", "mtu": 1400}]);
    let (both, peer) = (Pod::new("both"), Pod::new("peer"));
    let there = addresses(&call(&node, "ADD", &two, &peer, "eth0"));
    let attachments = [("eth0", &one), ("net1", &two), ("net2", &two)];
    let results = attachments.map(|(interface, network)| {
        let result = call(&node, "ADD", network, &both, interface);
        (interface, network, result)
    });
    let own: Vec<_> = results.iter().map(|(.., r)| addresses(r)).collect();
    let leads = |target: &str| {
        let shown = ip(&both.namespace, &format!("route get {target}"));
        shown[0]["dev"].as_str().unwrap().to_owned()
    };
    for (family, everywhere) in ["203.0.113.1", "2001:db8:1::1"].into_iter().enumerate() {
        assert_eq!(leads(everywhere), "eth0");
        // The networks' own pods, by the networks' own interfaces.
        assert_eq!(
            connect(&both.namespace, &peer.namespace, there[family]),
            own[1][family]
        );
        for address in &own {
            assert_pings(&node.namespace, address[family]);
            assert_pings(&peer.namespace, address[family]);
        }
    }
    for (interface, network, result) in &results {
        let mut network = (*network).clone();
        network["prevResult"] = result.clone();
        call(&node, "CHECK", &network, &both, interface);
    }
    // What is left leads everywhere when the first one goes.
    call(&node, "DEL", &one, &both, "eth0");
    assert_eq!([leads("203.0.113.1"), leads("2001:db8:1::1")], ["net1"; 2]);
    for pod in [&both, &peer] {
        for interface in ["eth0", "net1", "net2"] {
            call(&node, "DEL", &two, pod, interface);
        }
    }
    node.settle();
    let more = std::fs::read_dir(node.state.path().join("more/attachments")).unwrap();
    assert_eq!(more.count(), 0);
}

#[rstest]
fn pods_of_two_networks_with_the_same_ranges_have_each_an_address_of_its_own(
    #[values("bridge", "routed")] first: &str,
) {
    let node = Node::new();
    let mut one = node.configuration(first);
    // The node's own ranges.
    one["ipam"]["ranges"] = json!([]);
    let note = ipam::NodeRanges {
        ranges: vec!["10.200.1.0/29".parse().unwrap()],
        mtu: None,
    };
    note.write(node.state.path()).unwrap();
    let mut two = one.clone();
    two["name"] = json!("more");
    two["attach"] = json!("routed");
    two["runtimeConfig"] = json!({
        "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}],
    });
    let (here, there) = (Pod::new("one"), Pod::new("two"));
    let mut given: Vec<_> = [(&one, &here), (&two, &there)]
        .into_iter()
        .map(|(network, pod)| addresses(&node.call("ADD", network, pod).ok())[0])
        .collect();
    for address in &given {
        assert_pings(&node.namespace, *address);
    }
    // GC of the one closes no ports of the other.
    one["cni.dev/valid-attachments"] = json!([{"containerID": "one", "ifname": "eth0"}]);
    node.plugin(&one, &[("CNI_COMMAND", "GC")]).ok();
    let mut check = two.clone();
    check["prevResult"] =
        json!({"cniVersion": "1.1.0", "ips": [{"address": format!("{}/32", given[1])}]});
    node.call("CHECK", &check, &there).ok();
    two["runtimeConfig"] = json!({});
    let more = ["three", "four", "five"].map(Pod::new);
    given.extend(
        more.iter()
            .map(|pod| addresses(&node.call("ADD", &two, pod).ok())[0]),
    );
    let all: BTreeSet<_> = given.iter().copied().collect();
    assert_eq!(all.len(), 5, "{given:?}");
    // All five are held: so it is told by the network that holds one.
    let full = node.call("ADD", &one, &Pod::new("six"));
    assert_eq!(full.code(), 11, "{full:?}");
    assert!(
        full.stdout["msg"].to_string().contains("5 held"),
        "{full:?}"
    );
    assert_eq!(node.plugin(&one, &[("CNI_COMMAND", "STATUS")]).code(), 50);
    // One is given again as soon as the other network's pod is gone.
    node.call("DEL", &two, &there).ok();
    let again = node.call("ADD", &one, &Pod::new("six")).ok();
    assert_eq!(addresses(&again)[0], given[1]);
}
