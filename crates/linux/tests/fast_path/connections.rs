//! A connection from its beginning to its end.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, UdpSocket};
use std::time::{Duration, Instant};

use podwire_linux::fast_path::{Direction, Outcome};
use podwire_linux::sysctl::Setting;
use rstest::rstest;

use crate::nodes::{Attach, GATEWAY_MAC, Node, POD_MAC, nodes, nodes_on, pod_address};
use crate::traffic::{
    DEADLINE, PORT, ask, ask_until_taken, connect_from, limit, listen, taken_connection, transfer,
};
use crate::wire::Wire;
use crate::witness::{nft, run, seen};

#[rstest]
pub(crate) fn tcp_takes_the_fast_path_from_handshake_to_close(
    #[values(Attach::Routed, Attach::Bridge)] attach: Attach,
    #[values(
        Wire::Plain,
        Wire::Vxlan { over_v6: false },
        Wire::Vxlan { over_v6: true },
        Wire::Gpe { over_v6: false },
        Wire::Gpe { over_v6: true },
        Wire::Multicast
    )]
    wire: Wire,
    #[values(false, true)] v6: bool,
) {
    let nodes = nodes_on(attach, wire);
    // Every packet is one hop of each node, and is for the pod's hardware.
    for node in &nodes {
        nft(
            &node.pod,
            &format!(
                "table inet witness {{
                    counter far {{}}
                    counter hops {{}}
                    chain input {{
                        type filter hook input priority 0;
                        meta l4proto tcp ip ttl 62 counter name far
                        meta l4proto tcp ip6 hoplimit 62 counter name far
                        meta l4proto tcp ip ttl != 62 counter name hops
                        meta l4proto tcp ip6 hoplimit != 62 counter name hops
                    }}
                }}
                table netdev witness {{
                    counter mac {{}}
                    chain ingress {{
                        type filter hook ingress device eth0 priority 0;
                        meta l4proto tcp ether daddr != {POD_MAC} counter name mac
                        meta l4proto tcp ether saddr != {GATEWAY_MAC} counter name mac
                        meta l4proto tcp @ll,96,16 != {} counter name mac
                    }}
                }}",
                // The type of the Ethernet header.
                if v6 { "0x86dd" } else { "0x0800" }
            ),
        );
    }
    let mut pair = taken_connection(&nodes, v6);
    const BYTES: usize = 64 << 20;
    assert_eq!(transfer(&mut pair, BYTES), BYTES);
    // The handshake's packets, the first data, and the end with the acknowledgements
    // that are then still on their way: not the 64 MiB.
    for node in &nodes {
        for direction in Direction::BOTH {
            let by_stack = node.count(direction, Outcome::Connection);
            let few = 60.max(node.count(direction, Outcome::Taken) / 20);
            assert!(by_stack < few, "{}", node.counters());
            assert_eq!(node.count(direction, Outcome::Length), 0);
        }
        assert!(seen(&node.pod, "inet", "far") > 50);
        assert_eq!(seen(&node.pod, "inet", "hops"), 0);
        assert_eq!(seen(&node.pod, "netdev", "mac"), 0);
    }
    // The way back ends too, and the stack knows that it has.
    let (mut client, server) = pair;
    drop(server);
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    for node in &nodes {
        assert_eq!(seen(&node.here, "inet", "invalid"), 0);
        let entries = run(&node.here, "conntrack", &["-L", "-p", "tcp"], "");
        assert!(!entries.contains("ESTABLISHED"), "{entries}");
    }
}

#[test]
fn a_reset_ends_a_connection_that_took_the_fast_path() {
    let nodes = nodes(Attach::Routed);
    for v6 in [false, true] {
        let (client, mut server) = taken_connection(&nodes, v6);
        rustix::net::sockopt::set_socket_linger(&client, Some(Duration::ZERO)).unwrap();
        drop(client);
        let error = server.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }
}

#[rstest]
fn connections_outlive_the_program_and_take_it_again(
    #[values(Attach::Routed, Attach::Bridge)] attach: Attach,
) {
    let mut nodes = nodes(attach);
    let mut pairs = [false, true].map(|v6| taken_connection(&nodes, v6));
    // The second node's agent dies, then the first one's.
    for index in [1, 0] {
        nodes[index].stop();
        pairs.iter_mut().for_each(ask);
    }
    for index in [1, 0] {
        nodes[index].start();
        pairs.iter_mut().for_each(ask);
    }
    for pair in &mut pairs {
        ask_until_taken(&nodes, pair);
    }
    let [mut four, _] = pairs;
    nodes[0].stop();
    assert_eq!(transfer(&mut four, 1 << 20), 1 << 20);
    nodes
        .iter()
        .for_each(|node| assert_eq!(seen(&node.here, "inet", "invalid"), 0));
}

/// The time after which conntrack forgets the first pod's one connection, in seconds.
fn left(node: &Node, protocol: &str, v6: bool) -> u64 {
    let text = conntrack(node, "-L", protocol, v6, &[]);
    let words: Vec<_> = text.split_whitespace().collect();
    words[2].parse().unwrap_or_else(|_| panic!("{text}"))
}

/// Lets the connection have been without a packet for a long time.
fn shorten(node: &Node, protocol: &str, v6: bool) {
    conntrack(node, "-U", protocol, v6, &["--timeout", "90"]);
    assert!(left(node, protocol, v6) <= 90);
}

/// Does something with what the first pod has begun. A tunnel's own packets, also those
/// of the other family's test, are a connection too.
fn conntrack(node: &Node, what: &str, protocol: &str, v6: bool, more: &[&str]) -> String {
    let family = if v6 { "ipv6" } else { "ipv4" };
    let pod = pod_address(1, v6).to_string();
    let arguments = [what, "-f", family, "-p", protocol, "-s", &pod];
    run(&node.here, "conntrack", &[&arguments, more].concat(), "")
}

#[rstest]
pub(crate) fn conntrack_keeps_a_connection_as_if_the_stack_saw_its_packets(
    #[values(false, true)] v6: bool,
) {
    let nodes = nodes(Attach::Routed);
    let mut pair = taken_connection(&nodes, v6);
    let by_stack =
        |node: &Node| Direction::BOTH.map(|direction| node.count(direction, Outcome::Connection));
    let before = nodes.each_ref().map(by_stack);
    for node in &nodes {
        shorten(node, "tcp", v6);
    }
    ask(&mut pair);
    assert_eq!(nodes.each_ref().map(by_stack), before);
    for node in &nodes {
        let whole = node.here.run(|| {
            let setting = "netfilter/nf_conntrack_tcp_timeout_established";
            Setting::new(setting).read().unwrap() as u64
        });
        assert!(whole.unwrap() - left(node, "tcp", v6) < 60);
    }
    // One that has ended one way is the stack's, which does not keep it for long.
    pair.0.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(pair.1.read(&mut [0]).unwrap(), 0);
    let taken = nodes.each_ref().map(Node::taken);
    pair.1.write_all(&[1; 1000]).unwrap();
    pair.0.read_exact(&mut [0; 1000]).unwrap();
    assert_eq!(nodes.each_ref().map(Node::taken), taken);
    for node in &nodes {
        assert!(left(node, "tcp", v6) <= 3600);
    }
}

#[test]
fn udp_takes_the_fast_path_once_conntrack_has_seen_a_conversation() {
    udp_takes_it_over(Wire::Plain);
}

pub(crate) fn udp_takes_it_over(wire: Wire) {
    let nodes = nodes_on(Attach::Routed, wire);
    std::thread::scope(|scope| {
        for v6 in [false, true] {
            let nodes = &nodes;
            scope.spawn(move || udp_until_taken(nodes, v6));
        }
    });
}

/// Conntrack takes UDP for a conversation when it has gone on for two seconds.
pub(crate) fn udp_until_taken(nodes: &[Node; 2], v6: bool) {
    let bind = |index: usize| {
        let at = pod_address(index as u8 + 1, v6);
        let socket = nodes[index]
            .pod
            .run(|| UdpSocket::bind((at, PORT)).unwrap());
        let socket = socket.unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        socket
    };
    let (client, server) = (bind(0), bind(1));
    client.connect((pod_address(2, v6), PORT)).unwrap();
    server.connect((pod_address(1, v6), PORT)).unwrap();
    let started = Instant::now();
    let before = nodes.each_ref().map(Node::taken);
    let mut answer = [0; 1000];
    let mut converse = || {
        client.send(&[1; 1000]).unwrap();
        assert_eq!(server.recv(&mut answer).unwrap(), 1000);
        server.send(&[2; 1000]).unwrap();
        assert_eq!(client.recv(&mut answer).unwrap(), 1000);
    };
    loop {
        converse();
        let now = nodes.each_ref().map(Node::taken);
        let mut both = before.as_flattened().iter().zip(now.as_flattened());
        if both.all(|(before, now)| before < now) {
            break;
        }
        assert!(started.elapsed() < DEADLINE, "{}", nodes[0].counters());
    }
    // It is kept as if the stack saw its packets.
    shorten(&nodes[0], "udp", v6);
    converse();
    assert!((110..=120).contains(&left(&nodes[0], "udp", v6)));
    // In fragments, longer than any device here sends at once.
    let headers = nodes[0].count(Direction::Outbound, Outcome::Header);
    client.send(&[1; 4000]).unwrap();
    let mut long = [0; 5000];
    assert_eq!(server.recv(&mut long).unwrap(), 4000);
    assert!(nodes[0].count(Direction::Outbound, Outcome::Header) >= headers + 3);
}

#[rstest]
pub(crate) fn a_service_on_the_other_node_is_translated_both_ways(
    #[values(Attach::Routed, Attach::Bridge)] attach: Attach,
    #[values(false, true)] v6: bool,
) {
    let nodes = nodes(attach);
    let backend = pod_address(2, v6);
    let service: IpAddr = match v6 {
        false => [203, 0, 113, 1].into(),
        true => [0x2001, 0xdb8, 0x96, 0, 0, 0, 0, 1].into(),
    };
    let listener = listen(&nodes[1].pod, backend);
    let mut through = {
        let client = connect_from(&nodes[0].pod, pod_address(1, v6), service);
        (client, limit(listener.accept().unwrap().0))
    };
    for _ in 0..50 {
        ask(&mut through);
    }
    assert_eq!(nodes[0].taken(), [0, 0], "{}", nodes[0].counters());
    // The other node translates nothing.
    assert!(nodes[1].taken().into_iter().all(|taken| taken > 0));
    // The same ports without translation are another connection: conntrack knows
    // both, and gives one of them another port on the wire.
    let client = connect_from(&nodes[0].pod, pod_address(1, v6), backend);
    let mut direct = (client, limit(listener.accept().unwrap().0));
    for _ in 0..50 {
        ask(&mut direct);
        ask(&mut through);
    }
}
