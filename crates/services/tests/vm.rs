//! The IPVS proxy: on this kernel where it has IPVS, in a virtual machine otherwise.

#[path = "matrix/mod.rs"]
mod rows;
mod switching;
mod world;

use podwire_services::{ProxyMode, ProxySettings};
use vm::{Feature, Guest};

#[test]
fn proxies_on_a_kernel_with_ipvs() {
    run("guest_changes::");
}

#[test]
fn rows_on_a_kernel_with_ipvs() {
    run("guest_rows::");
}

fn run(cases: &str) {
    let report = Guest::new()
        .needs(Feature::Ipvs)
        .program("ipvsadm")
        .run_cases(cases)
        .unwrap_or_else(|error| panic!("{error}"));
    print!("{report}");
}

fn ipvs() -> ProxySettings {
    ProxySettings::new(ProxyMode::Ipvs)
}

mod guest_rows {
    use super::ipvs;
    use crate::rows;
    use crate::world::Attach;

    #[test]
    #[ignore = "run by rows_on_a_kernel_with_ipvs"]
    fn who_reaches_what_routed() {
        rows::check(ipvs(), Attach::Routed);
    }

    #[test]
    #[ignore = "run by rows_on_a_kernel_with_ipvs"]
    fn who_reaches_what_bridge() {
        rows::check(ipvs(), Attach::Bridge);
    }
}

mod guest_changes {
    use std::net::{IpAddr, SocketAddr};
    use std::time::{Duration, Instant};

    use podwire_services::ipvs::{INTERFACE, Scheduler};
    use podwire_services::{ProxyMode, ProxySettings};

    use super::ipvs;
    use crate::switching::{self, CLUSTER};
    use crate::world::{Attach, World, pod4, slice};

    #[test]
    #[ignore = "run by proxies_on_a_kernel_with_ipvs"]
    fn no_connection_fails_while_ipvs_is_changed_for_another_and_back() {
        let nftables = ProxySettings::new(ProxyMode::Nftables);
        switching::under_load(&[nftables, ipvs(), nftables, ipvs()], |_, _| {});
    }

    fn servers(world: &World) -> String {
        world.node.command("ipvsadm", &["-S", "-n"])
    }

    #[test]
    #[ignore = "run by proxies_on_a_kernel_with_ipvs"]
    fn an_endpoint_leaves_when_its_last_connection_has_ended() {
        let world = World::with(Attach::Routed, 3);
        switching::echo(&world, 0);
        switching::echo(&world, 1);
        let mut proxy = switching::proxy(&world, ipvs());
        proxy.endpoint_slice_changed(&slice("web", "web-4", &[&pod4(0)], 8080));
        proxy.sync().expect("taken");
        let to = SocketAddr::new(CLUSTER[0].parse::<IpAddr>().expect("a literal"), 80);
        let connect = || {
            world.pods[2]
                .namespace
                .run(|| switching::connect(to))
                .expect("entered")
        };
        let mut long = connect().expect("an endpoint");
        switching::exchange(&mut long).expect("open");
        proxy.endpoint_slice_changed(&slice("web", "web-4", &[&pod4(1)], 8080));
        proxy.sync().expect("taken");
        let old = format!("-a -t {to} -r {}:8080 -m -w 0", pod4(0));
        assert!(servers(&world).contains(&old), "{}", servers(&world));
        for _ in 0..4 {
            let mut short = connect().expect("an endpoint");
            switching::exchange(&mut short).expect("open");
            assert_eq!(short.peer_addr().expect("open"), to);
        }
        switching::exchange(&mut long).expect("it is not cut");
        proxy.audit().expect("read");
        switching::exchange(&mut long).expect("nor by the audit");
        drop(long);
        // IPVS keeps what was closed for two minutes; here it is told to forget.
        world.node.command("ipvsadm", &["--set", "1", "1", "1"]);
        let deadline = Instant::now() + switching::PATIENCE * 9;
        while servers(&world).contains(&old) {
            assert!(Instant::now() < deadline, "{}", servers(&world));
            std::thread::sleep(Duration::from_millis(200));
            proxy.audit().expect("read");
        }
    }

    #[test]
    #[ignore = "run by proxies_on_a_kernel_with_ipvs"]
    fn a_restart_takes_over_its_servers_and_others_keep_theirs() {
        let world = World::with(Attach::Routed, 1);
        let other = "-A -t 192.0.2.1:80 -s wlc";
        world
            .node
            .command("ipvsadm", &other.split(' ').collect::<Vec<_>>());
        switching::proxy(&world, ipvs()).sync().expect("taken");
        let before = servers(&world);
        assert!(before.contains(other), "{before}");
        switching::proxy(&world, ipvs()).sync().expect("taken");
        assert_eq!(servers(&world), before);
        // Another run wants another scheduler and no Service: by name, in place.
        let source = ProxySettings {
            scheduler: Scheduler::SourceHash,
            ..ipvs()
        };
        switching::proxy(&world, source).sync().expect("taken");
        assert_eq!(servers(&world), before.replace("-s rr", "-s sh"));
        // Somebody flushes and somebody edits: put right, and said.
        let mut proxy = switching::proxy(&world, ipvs());
        proxy.sync().expect("taken");
        world
            .node
            .command("ipvsadm", &["-D", "-t", &format!("{}:80", CLUSTER[0])]);
        world.node.ip("link set pwipvs0 down");
        world.nft(&["delete", "table", "inet", "podwire_ipvs"]);
        let stats = proxy.audit().expect("put right");
        assert!(!stats.repaired.is_empty());
        // All goes but what others made.
        world
            .node
            .namespace
            .run(podwire_services::settings::remove_all)
            .expect("entered")
            .expect("removed");
        assert_eq!(servers(&world).trim(), other);
        assert!(!world.nft(&["list", "tables"]).contains("podwire"));
        assert!(!world.node.command("ip", &["link"]).contains(INTERFACE));
    }
}
