//! Back ends whose devices some kernels lack, at work on one that has them: this
//! machine's, or that of a virtual machine.

mod common;

use vm::{Feature, Guest};

#[test]
fn ipip_and_wireguard() {
    let report = Guest::new()
        .needs(Feature::Ipip)
        .needs(Feature::Ip6Tunnel)
        .needs(Feature::WireGuard)
        .program("tcpdump")
        .run_cases("guest::")
        .unwrap_or_else(|error| panic!("{error}"));
    print!("{report}");
}

mod guest {
    use std::net::{IpAddr, UdpSocket};
    use std::time::Duration;

    use linux::wireguard::{Change, Ranges, WireGuard};
    use podwire_routing::Family;
    use rstest::rstest;

    use crate::common::{Capture, Cluster, Host, ok};

    /// All pods reach each other, the MTU is exact in both families, and a
    /// restart adopts everything.
    fn carries(backend: &str, mtu: [u32; 2], devices: &[&str]) {
        let mut cluster = Cluster::new(3);
        cluster.set_all(&[backend]);
        cluster.apply_all();
        assert_eq!(cluster.hosts[0].devices(), devices);
        cluster.assert_connected();
        let plan = cluster.plan(1);
        for (at, family) in Family::BOTH.into_iter().enumerate() {
            assert_eq!(plan.mtu.get(family), Some(mtu[at]));
            cluster.assert_mtu(at, mtu[at]);
        }
        cluster.hosts[0].kernel.invalidate();
        let difference = cluster.hosts[0].kernel.difference(&plan.state);
        let difference = difference.expect("the kernel answers");
        assert_eq!(difference.lines(), Vec::<String>::new());
        cluster.hosts.pop();
        cluster.assert_tunnelled_with_addresses_kept();
    }

    #[test]
    #[ignore = "run by ipip_and_wireguard"]
    fn ipip_carries_both_families() {
        carries("ipip", [1480, 1460], &["pw-ip6tnl", "pw-ipip"]);
    }

    #[test]
    #[ignore = "run by ipip_and_wireguard"]
    fn wireguard_carries_both_families() {
        carries("wireguard", [1440, 1440], &["pw-wg"]);
    }

    #[test]
    #[ignore = "run by ipip_and_wireguard"]
    fn a_new_wireguard_key_is_taken_up_by_the_peers() {
        let mut cluster = Cluster::new(2);
        cluster.set_all(&["wireguard"]);
        cluster.apply_all();
        cluster.assert_connected();
        cluster.hosts[0].new_key();
        cluster.set(1, &["wireguard"]);
        cluster.apply_all();
        cluster.assert_connected();
        assert_eq!(cluster.plan(2).state.tunnel_peers.len(), 1);
        cluster.hosts[1].kernel.invalidate();
        assert_eq!(cluster.apply(2).changed, 0);
    }

    #[test]
    #[ignore = "run by ipip_and_wireguard"]
    fn nodes_change_from_ipip_to_wireguard_one_by_one() {
        let mut cluster = Cluster::new(2);
        cluster.set_all(&["ipip"]);
        cluster.apply_all();
        cluster.set(1, &["wireguard", "ipip"]);
        cluster.apply_all();
        cluster.assert_connected();
        cluster.set(2, &["wireguard", "ipip"]);
        cluster.apply_all();
        cluster.assert_connected();
        cluster.set_all(&["wireguard"]);
        cluster.apply_all();
        cluster.assert_connected();
        assert_eq!(cluster.hosts[0].devices(), ["pw-wg"]);
    }

    /// The second node goes over to the back end at once, before the first has read
    /// that it has a key.
    fn goes_over_at_once(cluster: &mut Cluster) {
        cluster.set_all(&["vxlan"]);
        cluster.apply_all();
        for number in [1, 3] {
            cluster.set(number, &["wireguard", "vxlan"]);
        }
        cluster.apply_all();
        cluster.set(2, &["wireguard"]);
        cluster.apply(2);
    }

    /// The second node, which has talked with the first, takes a new key.
    fn takes_a_new_key(cluster: &mut Cluster) {
        cluster.set_all(&["wireguard"]);
        cluster.apply_all();
        ping(cluster, 2);
        cluster.hosts[1].new_key();
        cluster.set(2, &["wireguard"]);
        cluster.apply(2);
    }

    /// A pod asks that of the first node.
    fn ping(cluster: &Cluster, number: usize) {
        let to = cluster.hosts[0].node.pods[0];
        let command = format!("ping -n -c 1 -w 20 {to}");
        ok(&cluster.hosts[number - 1].pod, &command);
    }

    /// Only the second node sends, and its first message is dropped. WireGuard would
    /// send it again after five seconds; the first node begins itself before that.
    #[rstest]
    #[ignore = "run by ipip_and_wireguard"]
    fn a_node_that_learns_of_a_key_late_begins_the_handshake(
        #[values(goes_over_at_once, takes_a_new_key)] change: fn(&mut Cluster),
        #[values(Family::V4, Family::V6)] underlay: Family,
    ) {
        let mut cluster = Cluster::new(3);
        for host in &mut cluster.hosts {
            host.node.addresses.retain(|a| Family::of(*a) == underlay);
        }
        change(&mut cluster);
        let [first, second] = [0, 1].map(|at| &cluster.hosts[at]);
        let [target, sender] = [first, second].map(|host| host.node.addresses[0]);
        let mut capture = Capture::start(&second.namespace);
        let bound = |host: &Host, address: IpAddr| {
            let socket = host.pod.run(|| UdpSocket::bind((address, 7000)));
            socket.expect("enterable").expect("a socket")
        };
        let pairs: Vec<_> = (0..2)
            .map(|at| [first, second].map(|host| bound(host, host.node.pods[at])))
            .collect();
        for [to, from] in &pairs {
            let to = to.local_addr().expect("it is bound");
            from.send_to(&[7], to).expect("the pod has a route");
        }
        let initiation = "UDP, length 148";
        let lost = capture.lines_until(initiation);
        // Handshakes are taken in order: after this one that one is dropped.
        ping(&cluster, 3);
        cluster.apply(1);
        for [to, _] in &pairs {
            let patience = Duration::from_secs(20);
            to.set_read_timeout(Some(patience)).expect("a time");
            to.recv(&mut [0]).expect("it arrives");
        }
        let mark = "ping -n -c 1 -w 20 192.168.64.11";
        ok(&cluster.hosts[1].namespace, mark);
        let seen = capture.lines_until("ICMP echo reply");
        let (there, back) = (
            format!("{sender}.51820 > {target}.51820: {initiation}"),
            format!("{target}.51820 > {sender}.51820: {initiation}"),
        );
        let begun: Vec<bool> = lost
            .iter()
            .chain(&seen)
            .filter(|line| line.contains(&there) || line.contains(&back))
            .map(|line| line.contains(&there))
            .collect();
        assert_eq!(begun, [true, false], "{seen:?}");
    }

    #[test]
    #[ignore = "run by ipip_and_wireguard"]
    fn a_keepalive_interval_that_is_not_podwires_is_found_and_taken_away() {
        let mut cluster = Cluster::new(2);
        cluster.set_all(&["wireguard"]);
        cluster.apply_all();
        let plan = cluster.plan(1);
        let host = &mut cluster.hosts[0];
        let mut wireguard = host.namespace.run(WireGuard::open).unwrap().unwrap();
        let key = wireguard.device("pw-wg").unwrap().unwrap().peers[0].key;
        let change = Change::Set {
            key,
            endpoint: None,
            keepalive: Some(25),
            ranges: Ranges::Add(vec![]),
        };
        wireguard.change("pw-wg", &[change]).unwrap();
        let (_, lines) = host.kernel.audit(&plan.state).unwrap();
        assert_eq!(lines, [format!("peer {key} of pw-wg")]);
        let device = wireguard.device("pw-wg").unwrap().unwrap();
        assert_eq!(device.peers[0].keepalive, 0);
    }
}
