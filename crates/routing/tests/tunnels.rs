//! Back ends at work between network namespaces, with `ip`, `bridge` and `ping`
//! as witnesses.

mod common;

use common::Cluster;
use podwire_routing::Family;
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
