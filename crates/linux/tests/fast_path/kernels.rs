//! Kernels that are not this one: cases of the other modules, and some of their own,
//! in virtual machines.

/// Kernels of distributions: conntrack is a module, which describes its types itself.
#[test]
fn a_kernel_whose_conntrack_is_a_module() {
    let report = vm::Guest::new()
        .program("conntrack")
        .program("bridge")
        .run_cases_in_machine("guest::")
        .unwrap_or_else(|error| panic!("{error}"));
    print!("{report}");
}

mod guest {
    use podwire_linux::fast_path;
    use rstest::rstest;

    use crate::connections;
    use crate::nodes::Attach;
    use crate::wire::Wire;

    #[test]
    #[ignore = "run by a_kernel_whose_conntrack_is_a_module"]
    fn it_can_be_had() {
        assert!(std::path::Path::new("/sys/kernel/btf/nf_conntrack").exists());
        fast_path::probe().unwrap();
    }

    #[rstest]
    #[case(Attach::Routed, Wire::Plain, false)]
    #[case(Attach::Bridge, Wire::Vxlan { over_v6: true }, true)]
    #[case(Attach::Routed, Wire::Gpe { over_v6: false }, true)]
    #[ignore = "run by a_kernel_whose_conntrack_is_a_module"]
    fn tcp_takes_it(#[case] attach: Attach, #[case] wire: Wire, #[case] v6: bool) {
        connections::tcp_takes_the_fast_path_from_handshake_to_close(attach, wire, v6);
    }

    #[test]
    #[ignore = "run by a_kernel_whose_conntrack_is_a_module"]
    fn udp_takes_it() {
        connections::udp_takes_it_over(Wire::Plain);
    }

    #[test]
    #[ignore = "run by a_kernel_whose_conntrack_is_a_module"]
    fn connections_are_kept() {
        connections::conntrack_keeps_a_connection_as_if_the_stack_saw_its_packets(false);
    }

    #[test]
    #[ignore = "run by a_kernel_whose_conntrack_is_a_module"]
    fn services_are_translated() {
        connections::a_service_on_the_other_node_is_translated_both_ways(Attach::Routed, false);
    }
}

/// As of a node that has just booted, where nobody has asked for conntrack yet.
#[test]
fn a_kernel_that_has_not_loaded_conntrack() {
    let report = vm::Guest::new()
        .without_module("nf_conntrack")
        .run_cases_in_machine("unloaded::")
        .unwrap_or_else(|error| panic!("{error}"));
    print!("{report}");
}

mod unloaded {
    use std::os::unix::fs::PermissionsExt;

    use podwire_linux::fast_path;

    #[test]
    #[ignore = "run by a_kernel_that_has_not_loaded_conntrack"]
    fn the_kernel_is_made_to_look_for_it_and_what_it_does_not_find_is_named() {
        // In the place of modprobe.
        let (program, asked) = ("/run/modprobe", "/run/asked");
        std::fs::write(
            program,
            format!("#!/usr/bin/bash\necho \"$@\" >> {asked}\n"),
        )
        .unwrap();
        std::fs::set_permissions(program, PermissionsExt::from_mode(0o755)).unwrap();
        std::fs::write("/proc/sys/kernel/modprobe", program).unwrap();
        let error = fast_path::probe().unwrap_err().to_string();
        assert!(error.contains("nf_conntrack"), "{error}");
        // NFNL_SUBSYS_CTNETLINK of linux/netfilter/nfnetlink.h
        let asked = std::fs::read_to_string(asked).unwrap_or_default();
        assert!(asked.contains("nfnetlink-subsys-1"), "{asked}");
    }
}

#[test]
fn a_kernel_with_wireguard() {
    let report = vm::Guest::new()
        .needs(vm::Feature::WireGuard)
        .program("conntrack")
        .run_cases("wireguard::")
        .unwrap_or_else(|error| panic!("{error}"));
    print!("{report}");
}

mod wireguard {
    use rstest::rstest;

    use crate::nodes::Attach;
    use crate::wire::Wire;
    use crate::{connections, peers, tunnels};

    const OVER_V4: Wire = Wire::Wireguard { over_v6: false };
    const OVER_V6: Wire = Wire::Wireguard { over_v6: true };

    #[rstest]
    #[case(Attach::Routed, OVER_V4, true)]
    #[case(Attach::Bridge, OVER_V6, false)]
    #[ignore = "run by a_kernel_with_wireguard"]
    fn tcp_takes_it(#[case] attach: Attach, #[case] wire: Wire, #[case] v6: bool) {
        connections::tcp_takes_the_fast_path_from_handshake_to_close(attach, wire, v6);
    }

    #[test]
    #[ignore = "run by a_kernel_with_wireguard"]
    fn udp_takes_it() {
        connections::udp_takes_it_over(OVER_V4);
    }

    #[rstest]
    #[case(OVER_V4, true)]
    #[case(OVER_V6, false)]
    #[ignore = "run by a_kernel_with_wireguard"]
    fn a_range_is_forgotten(#[case] wire: Wire, #[case] v6: bool) {
        peers::a_peers_range_that_is_forgotten_is_the_stacks(wire, v6);
    }

    #[rstest]
    #[case(OVER_V4, false)]
    #[case(OVER_V6, true)]
    #[ignore = "run by a_kernel_with_wireguard"]
    fn nothing_in_clear_is_taken(#[case] wire: Wire, #[case] v6: bool) {
        tunnels::a_source_that_came_past_its_tunnel_is_left_to_the_stack(wire, v6);
    }

    #[test]
    #[ignore = "run by a_kernel_with_wireguard"]
    fn a_device_is_made_anew() {
        tunnels::a_tunnel_that_is_made_anew_is_the_stacks_until_it_is_known(OVER_V4);
    }

    #[rstest]
    #[case(OVER_V4, false)]
    #[case(OVER_V4, true)]
    #[case(OVER_V6, false)]
    #[case(OVER_V6, true)]
    #[ignore = "run by a_kernel_with_wireguard"]
    fn headers_are_as_the_stack_has_them(#[case] wire: Wire, #[case] v6: bool) {
        tunnels::a_tunnels_header_is_as_the_stack_has_it(wire, v6);
    }
}
