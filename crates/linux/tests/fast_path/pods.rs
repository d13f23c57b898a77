//! What the fast path knows of a node's own pods.

use std::io::{Read as _, Write as _};

use podwire_linux::fast_path::{Direction, Outcome, Pod};
use podwire_linux::namespace::NetworkNamespace;
use rstest::rstest;

use crate::nodes::{Attach, GATEWAY_MAC, POD_MAC, nodes, pod_address};
use crate::traffic::{ask, ask_until_taken, connection, taken_connection};
use crate::witness::ip;

#[rstest]
fn a_source_that_is_not_the_pods_is_left_to_the_stack(
    #[values(Attach::Routed, Attach::Bridge)] attach: Attach,
) {
    let nodes = nodes(attach);
    let mut pair = taken_connection(&nodes, false);
    let (fast, _) = nodes[0].fast.as_ref().unwrap();
    // To the program the address is another interface's.
    let pod = Pod {
        interface: 1,
        mac: POD_MAC.parse().unwrap(),
        gateway: GATEWAY_MAC.parse().unwrap(),
    };
    fast.set_pod(pod_address(1, false), &pod).unwrap();
    let taken = nodes[0].taken();
    let sources = nodes[0].count(Direction::Outbound, Outcome::Source);
    pair.0.write_all(&[1]).unwrap();
    pair.1.read_exact(&mut [0]).unwrap();
    assert_eq!(nodes[0].taken()[0], taken[0]);
    assert!(nodes[0].count(Direction::Outbound, Outcome::Source) > sources);
}

#[rstest]
fn a_pod_that_is_forgotten_is_the_stacks(#[values(false, true)] v6: bool) {
    let nodes = nodes(Attach::Routed);
    let mut pair = taken_connection(&nodes, v6);
    let (fast, _) = nodes[0].fast.as_ref().unwrap();
    // The second time it is gone already.
    for _ in 0..2 {
        fast.remove_pod(pod_address(1, v6)).unwrap();
    }
    let before = nodes[0].taken();
    ask(&mut pair);
    assert_eq!(nodes[0].taken(), before);
}

#[rstest]
fn a_pod_that_is_replaced_is_reached_by_the_stack_until_it_is_known(
    #[values(Attach::Routed, Attach::Bridge)] attach: Attach,
) {
    let mut nodes = nodes(attach);
    drop(taken_connection(&nodes, false));
    ip(&nodes[1].here, "link delete pwpod");
    nodes[1].pod = NetworkNamespace::create().unwrap();
    nodes[1].add_pod();
    // The program still knows the interface that is gone.
    let taken = nodes[1].taken();
    let mut pair = connection(&nodes, false);
    (0..20).for_each(|_| ask(&mut pair));
    assert_eq!(nodes[1].taken(), taken, "{}", nodes[1].counters());
    assert!(nodes[1].count(Direction::Inbound, Outcome::Length) > 0);
    nodes[1].start();
    ask_until_taken(&nodes, &mut pair);
}
