//! The IPVS proxy: on this kernel where it has IPVS, in a virtual machine otherwise.

#[path = "edges/mod.rs"]
mod cases;
#[path = "udp/mod.rs"]
mod clients;
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
fn changes_of_address_and_conversation_on_a_kernel_with_ipvs() {
    run("guest_cases::");
}

#[test]
fn rows_of_routed_pods_on_a_kernel_with_ipvs() {
    run("guest_rows_routed::");
}

#[test]
fn rows_of_bridged_pods_on_a_kernel_with_ipvs() {
    run("guest_rows_bridge::");
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

mod guest_rows_routed {
    use podwire_services::{Protocol, ProxyMode, ProxySettings};

    use super::ipvs;
    use crate::rows;
    use crate::rows::plan::PROTOCOLS;
    use crate::world::Attach;

    #[test]
    #[ignore = "run by rows_of_routed_pods_on_a_kernel_with_ipvs"]
    fn who_reaches_what() {
        rows::check(ipvs(), Attach::Routed, &PROTOCOLS);
    }

    /// Here, since this kernel has sockets of SCTP.
    #[test]
    #[ignore = "run by rows_of_routed_pods_on_a_kernel_with_ipvs"]
    fn who_reaches_what_by_sctp_and_nftables() {
        let nftables = ProxySettings::new(ProxyMode::Nftables);
        rows::check(nftables, Attach::Routed, &[Protocol::Sctp]);
    }
}

mod guest_rows_bridge {
    use super::ipvs;
    use crate::rows;
    use crate::rows::plan::PROTOCOLS;
    use crate::world::Attach;

    #[test]
    #[ignore = "run by rows_of_bridged_pods_on_a_kernel_with_ipvs"]
    fn who_reaches_what() {
        rows::check(ipvs(), Attach::Bridge, &PROTOCOLS);
    }
}

/// What the boot of `guest_changes` has no time for.
mod guest_cases {
    use super::ipvs;

    #[test]
    #[ignore = "run by changes_of_address_and_conversation_on_a_kernel_with_ipvs"]
    fn a_udp_client_with_a_fixed_port_keeps_being_answered() {
        crate::clients::conversations_follow_their_endpoints(ipvs());
    }

    #[test]
    #[ignore = "run by changes_of_address_and_conversation_on_a_kernel_with_ipvs"]
    fn ports_nobody_has_host_endpoints_source_ranges_and_invalid_packets() {
        crate::cases::check(ipvs());
    }
}

mod guest_changes {
    use std::net::{IpAddr, SocketAddr};
    use std::time::{Duration, Instant};

    use podwire_services::ipvs::{INTERFACE, Scheduler};
    use podwire_services::{FrontendKey, ProxyMode, ProxySettings, TrafficPolicy};

    use super::ipvs;
    use crate::switching::{self, CLUSTER};
    use crate::world::{Attach, NODE4, World, pod4, service, slice};

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
        // IPVS keeps what was closed for two minutes, and what was reset for ten
        // seconds (`tcp_timeouts` in net/netfilter/ipvs/ip_vs_proto_tcp.c).
        socket2::SockRef::from(&long)
            .set_linger(Some(Duration::ZERO))
            .expect("a TCP socket");
        drop(long);
        let deadline = Instant::now() + switching::PATIENCE * 3;
        while servers(&world).contains(&old) {
            assert!(Instant::now() < deadline, "{}", servers(&world));
            std::thread::sleep(Duration::from_millis(200));
            proxy.audit().expect("read");
        }
    }

    #[test]
    #[ignore = "run by proxies_on_a_kernel_with_ipvs"]
    fn the_node_is_silent_about_held_addresses_when_arp_is_left_to_others() {
        const BALANCER: &str = "198.51.100.1";
        let world = World::with(Attach::Routed, 2);
        switching::echo(&world, 0);
        switching::echo(&world, 1);
        // As if it were on the outside host's own link.
        world.outside.ip(&format!("route add {BALANCER} dev eth0"));
        let to = SocketAddr::new(BALANCER.parse::<IpAddr>().expect("a literal"), 80);
        for strict_arp in [false, true] {
            let mut proxy = switching::proxy(
                &world,
                ProxySettings {
                    strict_arp,
                    ..ipvs()
                },
            );
            let mut web = service("web", &CLUSTER, 80, Some(30080));
            web.load_balancer_ips = vec![BALANCER.to_owned()];
            proxy.service_changed(web);
            proxy.sync().expect("taken");
            world.outside.ip("neigh flush all");
            let connected = world
                .outside
                .namespace
                .run(|| switching::connect(to))
                .expect("entered");
            assert_eq!(connected.is_ok(), !strict_arp, "{connected:?}");
        }
        // Who knows the way is served.
        world
            .outside
            .ip(&format!("route replace {BALANCER} via {NODE4}"));
        let connected = world.outside.namespace.run(|| switching::connect(to));
        connected.expect("entered").expect("an endpoint");
    }

    /// Pods reach both endpoints of an address whose external policy is Local,
    /// and people see by which server.
    #[test]
    #[ignore = "run by proxies_on_a_kernel_with_ipvs"]
    fn a_twin_serves_pods_and_is_listed_counted_and_taken_over() {
        const BALANCER: &str = "198.51.100.1";
        let world = World::with(Attach::Routed, 3);
        switching::echo(&world, 0);
        switching::echo(&world, 1);
        let mut web = service("web", &CLUSTER, 80, Some(30080));
        web.external_policy = TrafficPolicy::Local;
        web.load_balancer_ips = vec![BALANCER.to_owned()];
        let mut endpoints = slice("web", "web-4", &[&pod4(0), &pod4(1)], 8080);
        endpoints.endpoints[1].node = Some("node-2".to_owned());
        let started = || {
            let mut proxy = switching::proxy(&world, ipvs());
            proxy.service_changed(web.clone());
            proxy.endpoint_slice_changed(&endpoints);
            proxy
        };
        let mut proxy = started();
        proxy.sync().expect("taken");
        let to = SocketAddr::new(BALANCER.parse::<IpAddr>().expect("a literal"), 80);
        for _ in 0..4 {
            let connected = world.pods[2].namespace.run(|| switching::connect(to));
            let mut stream = connected.expect("entered").expect("an endpoint");
            switching::exchange(&mut stream).expect("open");
        }
        let listing = || {
            let wanted = |key: &FrontendKey| key.address == to.ip();
            world
                .node
                .namespace
                .run(|| podwire_services::ipvs::listing(&wanted))
                .expect("entered")
                .expect("read")
        };
        // The kernel adds its counters up every other second.
        let deadline = Instant::now() + switching::PATIENCE;
        while listing().matches("connections 2,").count() < 2 {
            assert!(Instant::now() < deadline, "{}", listing());
            std::thread::sleep(Duration::from_millis(200));
        }
        let text = listing();
        println!("{text}");
        assert!(
            text.contains(&format!("for pods and the node that ask {to}/tcp")),
            "{text}"
        );
        assert!(text.lines().all(|line| line.len() <= 100), "{text}");
        let counted: Vec<_> = proxy
            .traffic()
            .expect("read")
            .into_iter()
            .filter(|one| one.frontend.address == to.ip() && one.packets > 0)
            .collect();
        assert_eq!(counted.len(), 2, "{counted:?}");
        // Another run finds it where it is.
        let before = servers(&world);
        drop(proxy);
        let mut proxy = started();
        proxy.sync().expect("taken");
        assert_eq!(servers(&world), before);
        // With all endpoints here there is nothing to tell apart.
        proxy.endpoint_slice_changed(&slice("web", "web-4", &[&pod4(0), &pod4(1)], 8080));
        proxy.sync().expect("taken");
        assert!(
            !world
                .nft(&["list", "map", "inet", "podwire_ipvs", "twins4"])
                .contains(BALANCER)
        );
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
