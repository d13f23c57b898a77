//! Back ends at work between network namespaces, with `ip`, `bridge` and `ping`
//! as witnesses.

mod common;

use common::{Cluster, ok};
use podwire_routing::{Family, Kernel, Node};
use rstest::rstest;

#[rstest]
#[case::host_gw("host-gw", [1500, 1500], &[])]
#[case::static_routes("static", [1500, 1500], &[])]
#[case::vxlan("vxlan", [1450, 1430], &["pw-vxlan", "pw-vxlan6"])]
#[case::vxlan_gpe("vxlan-gpe", [1464, 1444], &["pw-gpe"])]
#[case::vxlan_multicast("vxlan-multicast", [1450, 1450], &["pw-mcast", "pw-mcast-br"])]
fn pods_of_all_nodes_reach_each_other(
    #[case] backend: &str,
    #[case] mtu: [u32; 2],
    #[case] devices: &[&str],
) {
    let mut cluster = Cluster::new(3);
    cluster.set_all(&[backend]);
    cluster.apply_all();
    assert_eq!(cluster.hosts[0].devices(), devices);
    cluster.assert_connected();
    let plan = cluster.plan(1);
    for (at, family) in Family::BOTH.into_iter().enumerate() {
        assert_eq!(plan.mtu.get(family), Some(mtu[at]));
        if mtu[at] < 1500 {
            cluster.assert_mtu(at, mtu[at]);
        }
    }
}

/// A forwarded packet's destination is asked for from the link-local address: while
/// that is tentative (RFC 4862, section 5.4), not at all.
#[test]
fn the_bridge_of_multicast_asks_for_pods_from_its_first_moment() {
    let mut cluster = Cluster::new(2);
    cluster.set_all(&["vxlan-multicast"]);
    cluster.apply_all();
    let address = (0..1000).find_map(|_| {
        let shown = cluster.hosts[0].ip("-6 -o address show dev pw-mcast-br scope link");
        (!shown.is_empty()).then_some(shown)
    });
    let address = address.expect("the kernel makes one when the bridge is up");
    assert!(!address.contains("tentative"), "{address}");
}

#[rstest]
fn a_restart_adopts_everything(
    #[values("vxlan", "vxlan-gpe", "vxlan-multicast", "host-gw")] backend: &str,
) {
    let mut cluster = Cluster::new(3);
    cluster.set_all(&[backend]);
    cluster.apply_all();
    cluster.hosts[0].kernel.invalidate();
    let plan = cluster.plan(1);
    let difference = cluster.hosts[0].kernel.difference(&plan.state).unwrap();
    assert_eq!(difference.lines(), Vec::<String>::new());
    assert_eq!(cluster.apply(1).changed, 0);
}

#[test]
fn what_flannel_speaks_is_what_the_kernel_holds() {
    let mut cluster = Cluster::new(2);
    cluster.set_all(&["vxlan"]);
    cluster.apply_all();
    let host = &cluster.hosts[0];
    let data = cluster.hosts[1].node.data.as_ref().unwrap();
    let mac = data.vxlan.as_ref().unwrap().mac.v4.unwrap().to_string();
    let route = host.ip("route show 10.200.2.0/24");
    assert!(
        route.contains("via 10.200.2.0 dev pw-vxlan") && route.contains("onlink"),
        "{route}"
    );
    let neighbour = host.ip("neigh show 10.200.2.0 dev pw-vxlan");
    assert!(
        neighbour.contains(&mac) && neighbour.contains("PERMANENT"),
        "{neighbour}"
    );
    let forwarding = ok(&host.namespace, "bridge fdb show dev pw-vxlan");
    assert!(
        forwarding.contains(&format!("{mac} dst 192.168.64.12 self permanent")),
        "{forwarding}"
    );
    let link = host.ip("-d link show pw-vxlan");
    for word in ["vxlan id 1", "dstport 8472", "nolearning", "mtu 1450"] {
        assert!(link.contains(word), "{word}: {link}");
    }
    let address = host.ip("addr show dev pw-vxlan");
    assert!(address.contains("10.200.1.0/32"), "{address}");
}

#[test]
fn each_node_sends_to_the_port_and_the_network_its_peer_receives_by() {
    let mut cluster = Cluster::new(2);
    let settings = &mut cluster.hosts[0].settings.vxlan;
    (settings.vni, settings.port) = (7, 4789);
    cluster.set_all(&["vxlan"]);
    cluster.apply_all();
    let link = cluster.hosts[0].ip("-d link show pw-vxlan");
    for word in ["vxlan id 7", "dstport 4789"] {
        assert!(link.contains(word), "{word}: {link}");
    }
    cluster.assert_connected();
    // The other node follows, as in a cluster that is changed node by node.
    cluster.hosts[1].settings = cluster.hosts[0].settings.clone();
    cluster.set(2, &["vxlan"]);
    cluster.apply_all();
    cluster.assert_connected();
}

#[test]
fn nothing_is_flooded_by_programmed_entries() {
    let mut cluster = Cluster::new(2);
    cluster.set_all(&["vxlan"]);
    cluster.apply_all();
    cluster.assert_connected();
    // A frame for anybody has nowhere to go: there is no entry for all others.
    for device in ["pw-vxlan", "pw-vxlan6"] {
        let forwarding = ok(
            &cluster.hosts[0].namespace,
            &format!("bridge fdb show dev {device}"),
        );
        assert!(!forwarding.contains("00:00:00:00:00:00"), "{forwarding}");
        assert_eq!(forwarding.lines().count(), 1, "{forwarding}");
    }
}

#[test]
fn checksum_offload_is_turned_off_on_the_tunnel_only() {
    let mut cluster = Cluster::new(2);
    cluster.hosts[0].settings.vxlan.checksum_offload = false;
    cluster.set_all(&["vxlan"]);
    cluster.apply_all();
    let offload = |device: &str| {
        cluster.hosts[0]
            .namespace
            .run(|| linux::ethtool::tx_checksum_offload(device))
            .unwrap()
            .unwrap()
    };
    assert!(!offload("pw-vxlan") && offload("eth0"));
    cluster.assert_connected();
    cluster.hosts[0].kernel.invalidate();
    assert_eq!(cluster.apply(1).changed, 0);
}

/// What somebody else removes or changes, and how it is reported.
#[rstest]
#[case::forwarding_entry("bridge fdb del MAC dev pw-vxlan", "forwarding entry of MAC")]
#[case::neighbour("ip neigh del 10.200.2.0 dev pw-vxlan", "neighbour 10.200.2.0")]
#[case::route("ip route del 10.200.2.0/24", "route to 10.200.2.0/24")]
#[case::route_six("ip -6 route del fd00:200:0:2::/64", "route to fd00:200:0:2::/64")]
#[case::rule(
    "ip rule del priority 1120",
    "policy rule 1120: from 10.200.1.0/24 lookup 1120"
)]
#[case::rule_six(
    "ip -6 rule del priority 1120",
    "policy rule 1120: from fd00:200:0:1::/64 lookup 1120"
)]
#[case::rule_of_nobody(
    "ip rule add priority 7 from 10.200.1.0/24 lookup 7 protocol 112",
    "unwanted policy rule 7: from 10.200.1.0/24 lookup 7"
)]
#[case::route_to_a_node(
    "ip route del 192.168.64.12 table 1120",
    "route to 192.168.64.12/32 via 10.200.2.0 on pw-vxlan"
)]
#[case::route_to_a_node_six("ip -6 route flush table 1120", "route to fd00:64::12/128 via fe80")]
#[case::address(
    "ip addr del 10.200.1.0/32 dev pw-vxlan",
    "settings of device pw-vxlan"
)]
#[case::mtu("ip link set pw-vxlan mtu 1300", "settings of device pw-vxlan")]
#[case::down("ip link set pw-vxlan down", "settings of device pw-vxlan")]
#[case::device("ip link del pw-vxlan", "device pw-vxlan")]
#[case::entry_of_nobody(
    "bridge fdb add 0a:00:00:00:00:77 dev pw-vxlan dst 192.168.64.77",
    "unwanted forwarding entry of 0a:00:00:00:00:77"
)]
fn an_audit_restores_what_others_changed_and_says_so(#[case] fault: &str, #[case] expected: &str) {
    let mut cluster = Cluster::new(2);
    cluster.set_all(&["vxlan"]);
    cluster.apply_all();
    let data = cluster.hosts[1].node.data.as_ref().unwrap();
    let mac = data.vxlan.as_ref().unwrap().mac.v4.unwrap().to_string();
    ok(&cluster.hosts[0].namespace, &fault.replace("MAC", &mac));
    let plan = cluster.plan(1);
    let kernel = &mut cluster.hosts[0].kernel;
    let (outcome, lines) = kernel.audit(&plan.state).unwrap();
    assert!(outcome.failures.is_empty(), "{:?}", outcome.failures);
    let expected = expected.replace("MAC", &mac);
    assert!(
        lines.iter().any(|line| line.starts_with(&expected)),
        "{lines:?}"
    );
    let (_, lines) = kernel.audit(&plan.state).unwrap();
    assert_eq!(lines, Vec::<String>::new());
    cluster.assert_connected();
}

#[test]
fn what_others_do_to_a_tunnel_is_noticed_and_the_own_echo_is_not() {
    use linux::events::{EventSocket, Group};
    let groups = [
        Group::Links,
        Group::Neighbours,
        Group::Addresses4,
        Group::Addresses6,
        Group::Routes4,
        Group::Routes6,
        Group::Rules4,
        Group::Rules6,
    ];
    let mut cluster = Cluster::new(2);
    cluster.set_all(&["vxlan"]);
    // Whatever the kernel does in the background of making links is over once
    // packets pass.
    cluster.apply_all();
    cluster.assert_connected();
    let host = &mut cluster.hosts[0];
    let mut monitor = host
        .namespace
        .run(|| EventSocket::open(&groups))
        .unwrap()
        .unwrap();
    let namespace = &host.namespace;
    let faults = [
        "ip route del 10.200.2.0/24",
        "ip route del 192.168.64.12 table 1120",
        "ip rule del priority 1120",
        "ip -6 rule add priority 7 from fd00:200:0:1::/64 lookup 7 protocol 112",
        "ip neigh del 10.200.2.0 dev pw-vxlan",
        "ip addr del 10.200.1.0/32 dev pw-vxlan",
        "ip link set pw-vxlan mtu 1300",
    ];
    for fault in faults {
        ok(namespace, fault);
        let mut concerns = false;
        while let Some(events) = monitor.receive().unwrap() {
            for event in &events {
                concerns |= host.kernel.notice(event);
            }
        }
        assert!(concerns, "{fault}");
        // What is known is read again before the next.
        host.kernel.held().unwrap();
    }
}

/// A node changes from one back end to another while the other has not yet, and
/// pods talk all the while; in the end nothing is left of the old one.
#[rstest]
#[case("host-gw", "vxlan")]
#[case("vxlan", "vxlan-gpe")]
#[case("vxlan-gpe", "host-gw")]
#[case("vxlan-multicast", "vxlan")]
#[case("vxlan", "vxlan-multicast")]
fn nodes_change_back_ends_one_by_one(#[case] old: &str, #[case] new: &str) {
    let mut cluster = Cluster::new(3);
    cluster.set_all(&[old]);
    cluster.apply_all();
    for number in 1..=3 {
        // The node itself: the new one first, the old one for the others.
        cluster.set(number, &[new, old]);
        for other in 1..=3 {
            if other > number {
                cluster.set(other, &[old, new]);
            }
        }
        cluster.apply_all();
        cluster.assert_connected();
    }
    cluster.set_all(&[new]);
    cluster.apply_all();
    cluster.assert_connected();
    let mut fresh = Cluster::new(3);
    fresh.set_all(&[new]);
    fresh.apply_all();
    for number in 1..=3 {
        let (then, now) = (&fresh.hosts[number - 1], &cluster.hosts[number - 1]);
        assert_eq!(now.devices(), then.devices());
        for family in ["-4", "-6"] {
            for what in ["route show table all proto 112", "rule show"] {
                let command = format!("{family} {what}");
                assert_eq!(now.ip(&command), then.ip(&command));
            }
        }
    }
}

#[test]
fn a_node_that_joins_changes_nothing_on_the_others_with_multicast() {
    let mut cluster = Cluster::new(3);
    cluster.set_all(&["vxlan-multicast"]);
    let newcomer = cluster.hosts.pop().unwrap();
    cluster.apply_all();
    cluster.assert_connected();
    let before = cluster.hosts[0].kernel.requests_sent();
    cluster.hosts.push(newcomer);
    cluster.apply(3);
    assert_eq!(cluster.apply(1).changed, 0);
    // The question for the underlay: links and addresses.
    assert!(cluster.hosts[0].kernel.requests_sent() - before <= 3);
    cluster.assert_connected();
    // Both tables learned by listening, and can be told apart.
    let mut socket = cluster.hosts[0].namespace.route_socket().unwrap();
    let learned = |entry: &linux::fdb::Entry| entry.lifetime == linux::fdb::Lifetime::Learned;
    let entries = linux::fdb::list(&mut socket, None).unwrap();
    let of_tunnel = entries.iter().filter(|e| learned(e) && e.remote.is_some());
    assert!(of_tunnel.count() >= 2, "{entries:?}");
    let of_bridge = entries.iter().filter(|e| learned(e) && e.bridge.is_some());
    assert!(of_bridge.count() >= 2, "{entries:?}");
}

/// Netlink messages are what a change costs: as many as entries from cold, and
/// those of the peer alone when one comes, changes or goes.
#[rstest]
#[case::host_gw("host-gw", 2, 2)]
#[case::vxlan("vxlan", 8, 6)]
#[case::vxlan_gpe("vxlan-gpe", 4, 6)]
fn a_change_costs_what_changed_however_many_peers_there_are(
    #[case] backend: &str,
    #[case] entries: usize,
    #[case] other_address: usize,
) {
    const PEERS: usize = 1000;
    let mut cluster = Cluster::new(1);
    cluster.set_all(&[backend]);
    let mut peers: Vec<Node> = (0..PEERS).map(|number| cluster.made_up(number)).collect();
    let mut kernel = cluster.hosts[0]
        .namespace
        .run(Kernel::open)
        .unwrap()
        .unwrap();
    let mut cost = |peers: &[Node]| {
        let plan = cluster.plan_for(1, peers);
        assert_eq!(plan.refusals, []);
        let before = kernel.requests_sent();
        let outcome = kernel.apply(&plan.state).unwrap();
        assert!(outcome.failures.is_empty(), "{:?}", outcome.failures);
        usize::try_from(kernel.requests_sent() - before).unwrap()
    };
    let cold = cost(&peers);
    // Reading the kernel and making the devices does not depend on the peers.
    assert!(
        (PEERS * entries..PEERS * entries + 50).contains(&cold),
        "{cold}"
    );
    assert_eq!(cost(&peers), 0);
    let gone = peers.pop().unwrap();
    assert_eq!(cost(&peers), entries);
    peers.push(gone);
    assert_eq!(cost(&peers), entries);
    // It has another address now.
    peers[7].addresses = vec![
        "192.168.64.253".parse().unwrap(),
        "fd00:64::fffd".parse().unwrap(),
    ];
    assert_eq!(cost(&peers), other_address);
}

#[rstest]
fn between_a_node_and_pods_elsewhere_addresses_are_kept_and_packets_stay_in_the_tunnel(
    #[values("vxlan", "vxlan-gpe")] backend: &str,
) {
    let mut cluster = Cluster::new(2);
    cluster.set_all(&[backend]);
    cluster.apply_all();
    cluster.assert_tunnelled_with_addresses_kept();
}

/// The back end that is to know nothing of single peers has no routes for answers to
/// their addresses.
#[test]
fn into_the_bridge_of_multicast_the_nodes_own_packets_get_its_tunnel_address() {
    let mut cluster = Cluster::new(2);
    cluster.set_all(&["vxlan-multicast"]);
    cluster.apply_all();
    let [from, to] = &cluster.hosts[..] else {
        unreachable!("two were made")
    };
    for (at, family) in Family::BOTH.into_iter().enumerate() {
        let own = from.node.address(family);
        let heard = common::sender(&from.namespace, own, &to.pod, to.node.pods[at]);
        assert_eq!(Some(heard), from.node.tunnel_address(family));
        let pod = from.node.pods[at];
        let heard = common::sender(&from.pod, Some(pod), &to.pod, to.node.pods[at]);
        assert_eq!(heard, pod);
    }
}

#[test]
fn connections_of_pods_with_an_older_mtu_get_segments_that_fit_the_tunnel() {
    let mut cluster = Cluster::new(2);
    cluster.set_all(&["vxlan"]);
    cluster.apply_all();
    let rules = ok(
        &cluster.hosts[0].namespace,
        "nft list table inet podwire_routing",
    );
    let clamp = "tcp option maxseg size set rt mtu";
    assert_eq!(rules.matches(clamp).count(), 2, "{rules}");
    assert!(
        rules.contains("oifname \"pw-*\"") && rules.contains("iifname \"pw-*\""),
        "{rules}"
    );
    // The pods' own links have 1500 bytes still.
    for (at, mss) in [(0, "mss 1410"), (1, "mss 1370")] {
        let address = cluster.hosts[1].node.pods[at];
        let any = if at == 0 { "0.0.0.0" } else { "::" };
        let seen = cluster.hosts[1]
            .pod
            .run(|| {
                let listener = std::net::TcpListener::bind((any, 8080)).unwrap();
                let mut tcpdump = std::process::Command::new("tcpdump")
                    .args("-n -i eth0 -c 1 -l --immediate-mode".split(' '))
                    .arg("tcp and dst port 8080")
                    .stdout(std::process::Stdio::piped())
                    .stderr(std::process::Stdio::piped())
                    .spawn()
                    .unwrap();
                // It says on its error output when it listens.
                let mut errors = std::io::BufReader::new(tcpdump.stderr.take().unwrap());
                let mut line = String::new();
                while !line.contains("listening on") {
                    line.clear();
                    assert!(std::io::BufRead::read_line(&mut errors, &mut line).unwrap() > 0);
                }
                let connection = cluster.hosts[0]
                    .pod
                    .run(|| std::net::TcpStream::connect((address, 8080)))
                    .unwrap();
                connection.unwrap();
                listener.accept().unwrap();
                let mut text = String::new();
                std::io::Read::read_to_string(tcpdump.stdout.as_mut().unwrap(), &mut text).unwrap();
                tcpdump.wait().unwrap();
                text
            })
            .unwrap();
        assert!(seen.contains(mss), "{seen}");
    }
}

#[rstest]
#[case::vxlan("vxlan", "8472")]
#[case::vxlan_gpe("vxlan-gpe", "4790")]
fn nothing_turns_tracking_on_and_where_it_is_on_a_tunnels_own_packets_are_exempt(
    #[case] backend: &str,
    #[case] port: &str,
) {
    let mut cluster = Cluster::new(2);
    cluster.set_all(&[backend]);
    cluster.apply_all();
    cluster.assert_connected();
    for host in &cluster.hosts {
        for family in ["ipv4", "ipv6"] {
            let tracked = ok(&host.namespace, &format!("conntrack -L -f {family}"));
            assert!(!tracked.contains("icmp"), "{tracked}");
        }
        // As Services do.
        for command in [
            "nft add table inet other",
            "nft add chain inet other any { type filter hook prerouting priority 0 ; }",
            "nft add rule inet other any ct state established accept",
        ] {
            ok(&host.namespace, command);
        }
    }
    cluster.assert_connected();
    for host in &cluster.hosts {
        for family in ["ipv4", "ipv6"] {
            let command = format!("conntrack -L -f {family}");
            let tracked = ok(&host.namespace, &command);
            assert!(tracked.contains("icmp"), "{tracked}");
            assert!(!tracked.contains(&format!("dport={port}")), "{tracked}");
        }
    }
}

#[test]
fn the_table_goes_with_the_last_device_and_comes_back_after_a_fault() {
    let mut cluster = Cluster::new(2);
    cluster.set_all(&["vxlan-gpe"]);
    cluster.apply_all();
    let tables = |cluster: &Cluster| ok(&cluster.hosts[0].namespace, "nft list tables");
    assert!(tables(&cluster).contains("podwire_routing"));
    let plan = cluster.plan(1);
    for fault in [
        "nft flush table inet podwire_routing",
        // Earlier versions had such a chain.
        "nft add chain inet podwire_routing sources { type nat hook postrouting priority 100 ; }",
    ] {
        ok(&cluster.hosts[0].namespace, fault);
        let (_, lines) = cluster.hosts[0].kernel.audit(&plan.state).unwrap();
        assert_eq!(lines, ["nftables table inet podwire_routing"]);
        let (_, lines) = cluster.hosts[0].kernel.audit(&plan.state).unwrap();
        assert_eq!(lines, Vec::<String>::new());
    }
    cluster.set_all(&["host-gw"]);
    cluster.apply_all();
    assert_eq!(tables(&cluster), "");
}
