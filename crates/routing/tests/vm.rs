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
    use podwire_routing::Family;

    use crate::common::Cluster;

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
}
