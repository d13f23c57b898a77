//! The iptables proxy: the chains it writes, and that it finds, keeps, repairs
//! and removes what is its own, in both variants of iptables.

mod switching;
mod world;

use std::net::SocketAddr;

use podwire_services::iptables::difference::State;
use podwire_services::iptables::save::{Saved, render};
use podwire_services::iptables::{self, IptablesDataPlane, Variant};
use podwire_services::table::Table;
use podwire_services::{
    DataPlane, Endpoint, Family, NodeFacts, Protocol, Proxy, ProxyMode, ProxySettings, ServiceName,
    TrafficPolicy,
};
use rstest::rstest;
use world::{Attach, World, pod4, pod6, service, slice};

fn facts() -> NodeFacts {
    World::plain_facts()
}

/// A Service of each shape: with endpoints here and elsewhere, without any, for
/// local traffic only.
fn tell(
    mut set_service: impl FnMut(podwire_services::Service),
    mut set_slice: impl FnMut(&podwire_services::EndpointSlice),
) {
    set_service(service(
        "web",
        &["10.96.0.10", "fd00:96::10"],
        80,
        Some(30080),
    ));
    let mut three = slice("web", "web-4", &[&pod4(0), &pod4(1)], 8080);
    three.endpoints.push(Endpoint {
        address: "10.200.2.10".to_owned(),
        node: Some("node-2".to_owned()),
        ..Endpoint::default()
    });
    set_slice(&three);
    set_slice(&slice("web", "web-6", &[&pod6(0)], 8080));
    set_service(service("none", &["10.96.0.11"], 80, Some(30081)));
    let mut sticky = service("sticky", &["10.96.0.13", "fd00:96::13"], 80, None);
    sticky.affinity = Some(600);
    sticky.load_balancer_ips = ["198.51.100.1", "2001:db8::1"].map(str::to_owned).to_vec();
    sticky.source_ranges = ["203.0.113.0/24", "2001:db8:1::/48"]
        .map(str::to_owned)
        .to_vec();
    set_service(sticky);
    set_slice(&slice("sticky", "sticky-4", &[&pod4(0), &pod4(1)], 8080));
    set_slice(&slice("sticky", "sticky-6", &[&pod6(0), &pod6(1)], 8080));
    let mut local = service("local", &["10.96.0.12"], 80, Some(30082));
    local.external_policy = TrafficPolicy::Local;
    local.internal_policy = TrafficPolicy::Local;
    set_service(local);
    let mut far = slice("local", "local-4", &["10.200.2.11"], 8080);
    far.endpoints[0].node = Some("node-2".to_owned());
    set_slice(&far);
}

fn table() -> Table {
    let mut table = Table::new(facts());
    let cell = std::cell::RefCell::new(&mut table);
    tell(
        |service| cell.borrow_mut().set_service(service),
        |slice| _ = cell.borrow_mut().set_slice(slice),
    );
    table
}

#[test]
fn the_chains_are_those_people_know() {
    let mut table = table();
    let changes = table.take_changes();
    let text = |family| {
        let state = State::read(Saved::default());
        render(&state.difference(&table, &changes, family))
    };
    insta::assert_snapshot!("iptables-v4", text(Family::V4));
    insta::assert_snapshot!("iptables-v6", text(Family::V6));
}

#[test]
fn a_change_writes_the_chains_that_change() {
    let mut table = table();
    let changes = table.take_changes();
    let mut state = State::read(Saved::default());
    let first = state.difference(&table, &changes, Family::V4);
    state.apply(first);
    // One endpoint more: its chain and the one that chooses, for TCP and UDP.
    table.set_slice(&slice("none", "none-4", &[&pod4(0)], 8080));
    let changes = table.take_changes();
    let difference = state.difference(&table, &changes, Family::V4);
    state.apply(difference);
    table.set_slice(&slice("none", "none-4", &[&pod4(0), &pod4(1)], 8080));
    let changes = table.take_changes();
    let difference = state.difference(&table, &changes, Family::V4);
    let kinds: Vec<&str> = difference
        .write
        .keys()
        .map(|(_, name)| name.rsplit_once('-').map_or("", |(kind, _)| kind))
        .collect();
    assert_eq!(
        kinds,
        ["PODWIRE-SEP", "PODWIRE-SEP", "PODWIRE-SVC", "PODWIRE-SVC"]
    );
    assert!(difference.delete.is_empty());
    state.apply(difference);
    // And one less: as many, two of them deleted.
    table.set_slice(&slice("none", "none-4", &[&pod4(1)], 8080));
    let changes = table.take_changes();
    let difference = state.difference(&table, &changes, Family::V4);
    assert_eq!((difference.write.len(), difference.delete.len()), (2, 2));
    assert!(
        state.difference(&table, &changes, Family::V6).is_empty(),
        "the other family has nothing to do with it"
    );
}

fn proxy(world: &World, variant: Variant) -> Proxy {
    let facts = world.facts();
    let mut proxy = world
        .node
        .namespace
        .run(|| {
            let settings = ProxySettings {
                iptables: Some(variant),
                ..ProxySettings::new(ProxyMode::Iptables)
            };
            Proxy::start_as(&settings, facts)
        })
        .expect("entered")
        .expect("iptables is installed");
    let cell = std::cell::RefCell::new(&mut proxy);
    tell(
        |service| cell.borrow_mut().service_changed(service),
        |slice| _ = cell.borrow_mut().endpoint_slice_changed(slice),
    );
    proxy
}

fn saved(world: &World, variant: Variant) -> String {
    ["iptables", "ip6tables"]
        .map(|program| {
            let text = world
                .node
                .command(&format!("{program}-{variant}-save"), &[]);
            // Without what counts: the chains' packets, and the time of day.
            let lines: Vec<&str> = text
                .lines()
                .filter(|line| !line.starts_with('#'))
                .map(|line| {
                    line.split(" [")
                        .next()
                        .filter(|_| line.starts_with(':'))
                        .unwrap_or(line)
                })
                .collect();
            lines.join("\n")
        })
        .join("\n")
}

fn run(world: &World, variant: Variant, line: &str) {
    let arguments: Vec<&str> = line.split_whitespace().collect();
    world
        .node
        .command(&format!("iptables-{variant}"), &arguments);
}

#[rstest]
fn a_restart_takes_over_what_it_finds(#[values(Variant::Nft, Variant::Legacy)] variant: Variant) {
    let world = World::new();
    let stats = proxy(&world, variant).sync().expect("taken");
    assert!(stats.full && stats.bytes > 0);
    let before = saved(&world, variant);
    let mut second = proxy(&world, variant);
    let stats = second.sync().expect("taken");
    assert_eq!((stats.full, stats.bytes), (true, 0), "nothing to write");
    assert_eq!(saved(&world, variant), before);
    // What the previous run had and this one does not want goes.
    second.service_removed(&ServiceName::new("default", "web"));
    second.sync().expect("taken");
    assert!(!saved(&world, variant).contains("default/web"));
}

#[rstest]
fn damage_by_others_is_put_right_and_told(
    #[values(Variant::Nft, Variant::Legacy)] variant: Variant,
    #[values(
        "-t nat -F PODWIRE-SERVICES",
        "-t nat -F PREROUTING",
        "-F",
        "-t nat -A PODWIRE-NODEPORTS -j RETURN",
        "-t nat -D OUTPUT 1",
        "-t nat -A POSTROUTING -j PODWIRE-POSTROUTING"
    )]
    damage: &str,
) {
    let world = World::new();
    let mut proxy = proxy(&world, variant);
    proxy.sync().expect("taken");
    let before = saved(&world, variant);
    let quiet = proxy.audit().expect("read");
    assert!(quiet.repaired.is_empty(), "{:?}", quiet.repaired);
    run(&world, variant, damage);
    let stats = proxy.audit().expect("put right");
    assert!(!stats.repaired.is_empty());
    assert_eq!(saved(&world, variant), before);
    let quiet = proxy.audit().expect("read");
    assert!(quiet.repaired.is_empty(), "{:?}", quiet.repaired);
}

#[rstest]
fn others_rules_stay_and_ours_can_be_removed(
    #[values(Variant::Nft, Variant::Legacy)] variant: Variant,
) {
    let world = World::new();
    run(&world, variant, "-N OTHERS");
    run(&world, variant, "-A INPUT -s 192.0.2.1/32 -j OTHERS");
    run(
        &world,
        variant,
        "-t nat -A PREROUTING -d 192.0.2.2/32 -j RETURN",
    );
    let mut proxy = proxy(&world, variant);
    proxy.sync().expect("taken");
    let text = saved(&world, variant);
    assert!(
        text.contains("-A INPUT -s 192.0.2.1/32 -j OTHERS"),
        "{text}"
    );
    let removed = world
        .node
        .namespace
        .run(|| iptables::remove(None))
        .expect("entered")
        .expect("removed");
    assert!(removed);
    let text = saved(&world, variant);
    assert!(!text.contains("PODWIRE"), "{text}");
    assert!(
        text.contains("-A INPUT -s 192.0.2.1/32 -j OTHERS"),
        "{text}"
    );
    assert!(
        text.contains("-A PREROUTING -d 192.0.2.2/32 -j RETURN"),
        "{text}"
    );
}

#[test]
fn a_kubelets_hint_decides_on_the_variant() {
    for variant in Variant::ALL {
        let world = World::new();
        run(&world, variant, "-t mangle -N KUBE-IPTABLES-HINT");
        let chosen = world
            .node
            .namespace
            .run(|| IptablesDataPlane::start(None))
            .expect("entered")
            .expect("installed");
        assert_eq!(
            (chosen.variant(), chosen.reason()),
            (Some(variant), iptables::Reason::Hint)
        );
    }
}

#[rstest]
fn three_endpoints_share_three_thousand_connections(
    #[values(Variant::Nft, Variant::Legacy)] variant: Variant,
) {
    let world = World::with(Attach::Routed, 4);
    for pod in 0..3 {
        switching::echo(&world, pod);
    }
    let settings = ProxySettings {
        iptables: Some(variant),
        ..ProxySettings::new(ProxyMode::Iptables)
    };
    let mut proxy = switching::proxy(&world, settings);
    let pods = [0, 1, 2].map(pod4);
    let pods: Vec<&str> = pods.iter().map(String::as_str).collect();
    proxy.endpoint_slice_changed(&slice("web", "web-4", &pods, 8080));
    proxy.sync().expect("taken");
    let to = SocketAddr::new(switching::CLUSTER[0].parse().expect("a literal"), 80);
    world.pods[3]
        .namespace
        .run(|| {
            for _ in 0..3000 {
                switching::exchange(&mut switching::connect(to).expect("an endpoint"))
                    .expect("an answer");
            }
        })
        .expect("entered");
    let shares: Vec<u64> = proxy
        .traffic()
        .expect("read")
        .into_iter()
        .filter(|one| SocketAddr::new(one.frontend.address, one.frontend.port) == to)
        .filter(|one| one.frontend.protocol == Protocol::Tcp)
        .map(|one| one.packets)
        .collect();
    assert_eq!(shares.iter().sum::<u64>(), 3000, "{shares:?}");
    // Five and a half standard deviations: once in ten million.
    assert!(
        shares.len() == 3 && shares.iter().all(|n| (858..=1142).contains(n)),
        "{shares:?}"
    );
}
