//! IP in IP, whose devices many kernels lack.

use rstest::rstest;

use crate::nodes::{Attach, nodes_on};
use crate::traffic::{taken_connection, transfer};
use crate::wire::Wire;
use crate::{connections, limits, peers, tunnels};

#[test]
fn a_kernel_with_ipip() {
    let report = vm::Guest::new()
        .needs(vm::Feature::Ipip)
        .needs(vm::Feature::Ip6Tunnel)
        .program("conntrack")
        .run_cases("ipip::")
        .unwrap_or_else(|error| panic!("{error}"));
    print!("{report}");
}

#[rstest]
#[case(Attach::Bridge, false)]
#[case(Attach::Routed, true)]
#[ignore = "run by a_kernel_with_ipip"]
fn tcp_takes_it(#[case] attach: Attach, #[case] v6: bool) {
    connections::tcp_takes_the_fast_path_from_handshake_to_close(attach, Wire::Ipip, v6);
}

#[test]
#[ignore = "run by a_kernel_with_ipip"]
fn udp_takes_it() {
    connections::udp_until_taken(&nodes_on(Attach::Routed, Wire::Ipip), false);
}

#[test]
#[ignore = "run by a_kernel_with_ipip"]
fn one_node_takes_it_and_the_other_does_not() {
    let mut nodes = nodes_on(Attach::Routed, Wire::Ipip);
    let mut pair = taken_connection(&nodes, false);
    nodes[1].stop();
    let before = nodes[0].taken();
    assert_eq!(transfer(&mut pair, 1 << 20), 1 << 20);
    let mut both = before.iter().zip(nodes[0].taken());
    assert!(both.all(|(before, now)| now > before + 10));
}

#[rstest]
#[ignore = "run by a_kernel_with_ipip"]
fn what_the_path_does_not_take_is_answered(#[values(false, true)] v6: bool) {
    limits::what_the_path_does_not_take_is_answered_by_the_device(Wire::Ipip, v6);
}

#[rstest]
#[ignore = "run by a_kernel_with_ipip"]
fn a_range_is_forgotten(#[values(false, true)] v6: bool) {
    peers::a_peers_range_that_is_forgotten_is_the_stacks(Wire::Ipip, v6);
}

#[rstest]
#[ignore = "run by a_kernel_with_ipip"]
fn nothing_past_the_tunnel_is_taken(#[values(false, true)] v6: bool) {
    tunnels::a_source_that_came_past_its_tunnel_is_left_to_the_stack(Wire::Ipip, v6);
}

#[test]
#[ignore = "run by a_kernel_with_ipip"]
fn a_device_is_made_anew() {
    tunnels::a_tunnel_that_is_made_anew_is_the_stacks_until_it_is_known(Wire::Ipip);
}

#[rstest]
#[ignore = "run by a_kernel_with_ipip"]
fn headers_are_as_the_stack_has_them(#[values(false, true)] v6: bool) {
    tunnels::a_tunnels_header_is_as_the_stack_has_it(Wire::Ipip, v6);
}
