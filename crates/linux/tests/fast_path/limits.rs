//! Packets that are too long, or have come too far.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Instant;

use podwire_linux::fast_path::{Direction, Outcome, Way};
use rstest::rstest;

use crate::nodes::{Attach, Node, address, nodes, nodes_on, range};
use crate::traffic::{DEADLINE, taken_connection, transfer};
use crate::wire::Wire;
use crate::witness::{ip, nft, seen};

/// Counts what tells the node's pod that a packet was too long.
fn count_answers(node: &Node) {
    nft(
        &node.pod,
        "table inet witness {
            counter long {}
            chain input {
                type filter hook input priority 0;
                icmp code 4 icmp type destination-unreachable counter name long
                icmpv6 type packet-too-big counter name long
            }
        }",
    );
}

/// Of a tunnel whose packets must not be fragmented: the device knows the path to its end.
pub(crate) fn what_the_path_does_not_take_is_answered_by_the_device(wire: Wire, v6: bool) {
    let nodes = nodes_on(Attach::Routed, wire);
    let mut pair = taken_connection(&nodes, v6);
    let remote = address(2, v6);
    ip(
        &nodes[0].here,
        &format!("route add {remote} dev eth0 mtu 1400"),
    );
    count_answers(&nodes[0]);
    let taken = nodes[0].taken()[0];
    assert_eq!(transfer(&mut pair, 1 << 20), 1 << 20);
    assert!(seen(&nodes[0].pod, "inet", "long") > 0);
    assert_eq!(nodes[0].count(Direction::Outbound, Outcome::Length), 0);
    assert!(nodes[0].taken()[0] > taken + 10);
}

#[rstest]
fn what_is_too_long_is_answered_by_the_stack(
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
    let nodes = nodes_on(Attach::Routed, wire);
    for node in &nodes {
        match wire {
            Wire::Plain => ip(&node.here, "link set eth0 mtu 1400"),
            // As a pod has it from before the tunnel.
            _ => node.limit(1500),
        }
    }
    count_answers(&nodes[0]);
    let mut pair = taken_connection(&nodes, v6);
    assert_eq!(transfer(&mut pair, 8 << 20), 8 << 20);
    assert!(nodes[0].count(Direction::Outbound, Outcome::Length) > 0);
    assert!(seen(&nodes[0].pod, "inet", "long") > 0);
}

/// The path's longest packet is not the interface's: only the last hop knows.
#[rstest]
fn what_is_too_long_for_the_other_pod_is_answered_by_the_other_nodes_stack(
    #[values(false, true)] v6: bool,
) {
    let nodes = nodes(Attach::Routed);
    let mut pair = taken_connection(&nodes, v6);
    nodes[1].limit(1300);
    count_answers(&nodes[0]);
    assert_eq!(transfer(&mut pair, 8 << 20), 8 << 20);
    assert!(seen(&nodes[0].pod, "inet", "long") > 0);
    // What is sent since takes the fast path there, too.
    let [taken, length] = [Outcome::Taken, Outcome::Length]
        .map(|outcome| nodes[1].count(Direction::Inbound, outcome));
    assert!(length > 0 && taken > length, "{}", nodes[1].counters());
}

#[rstest]
fn what_has_no_hop_left_is_answered_by_the_stack(#[values(false, true)] v6: bool) {
    let nodes = nodes(Attach::Routed);
    let mut pair = taken_connection(&nodes, v6);
    // As the first node's packets arrive at the second: with one hop.
    let before = nodes[1].count(Direction::Inbound, Outcome::HopLimit);
    let set = |client: &TcpStream, hops: u8| match v6 {
        false => rustix::net::sockopt::set_ip_ttl(client, hops.into()),
        true => rustix::net::sockopt::set_ipv6_unicast_hops(client, Some(hops)),
    };
    set(&pair.0, 2).unwrap();
    pair.0.write_all(&[1]).unwrap();
    let started = Instant::now();
    while nodes[1].count(Direction::Inbound, Outcome::HopLimit) == before {
        assert!(started.elapsed() < DEADLINE, "{}", nodes[1].counters());
        std::thread::yield_now();
    }
    // With one more it gets there.
    set(&pair.0, 3).unwrap();
    pair.1.read_exact(&mut [0]).unwrap();
}

#[rstest]
fn what_is_longer_than_the_route_takes_is_the_stacks(#[values(false, true)] v6: bool) {
    let nodes = nodes(Attach::Routed);
    let mut pair = taken_connection(&nodes, v6);
    let (fast, _) = nodes[0].fast.as_ref().unwrap();
    // IP's and TCP's headers with timestamps, and so many bytes.
    let headers = if v6 { 40 + 32 } else { 20 + 32 };
    let mtu = Some(headers + 100);
    let way = Way {
        mtu,
        ..nodes[0].way(v6)
    };
    fast.set_range(range(2, v6), &way).unwrap();
    for (length, too_long) in [(100, 0), (101, 1)] {
        let taken = nodes[0].taken()[0];
        pair.0.write_all(&vec![1; length]).unwrap();
        pair.1.read_exact(&mut vec![0; length]).unwrap();
        let by_stack = nodes[0].count(Direction::Outbound, Outcome::Length);
        assert_eq!(by_stack, too_long, "{}", nodes[0].counters());
        assert_eq!(nodes[0].taken()[0], taken + 1 - too_long);
    }
    // Many segments at once count each for itself.
    assert_eq!(transfer(&mut pair, 1 << 20), 1 << 20);
    assert!(nodes[0].count(Direction::Outbound, Outcome::Length) > 10);
}
