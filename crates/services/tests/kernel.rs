//! The proxy against the kernel, in namespaces of the tests' own.

mod world;

use linux::nftables::{Batch, Family as TableFamily, Nftables};
use podwire_services::Proxy;
use podwire_services::ipvs::rules;
use world::{World, service, slice};

#[test]
fn first_sync_makes_what_nft_can_list() {
    let world = World::new();
    world.node.enter().expect("a namespace of our own");
    let mut proxy = Proxy::start(world.facts()).expect("root");
    proxy.service_changed(service(
        "web",
        &["10.96.0.10", "fd00:96::10"],
        80,
        Some(30080),
    ));
    proxy.endpoint_slice_changed(&slice("web", "web-4", &["10.200.1.2", "10.200.1.3"], 8080));
    proxy.endpoint_slice_changed(&slice("web", "web-6", &["fd00:200:0:1::2"], 8080));
    let stats = proxy.sync().expect("a kernel with nf_tables");
    assert!(stats.full && stats.elements > 0, "{stats:?}");
    let listed = world.nft(&["list", "ruleset"]);
    for line in [
        "192.168.64.11 . udp . 30080 : 0x00000201 . 0x00000000",
        "fd00:96::10 . tcp . 80 . 0x00000000 counter packets 0 bytes 0 : fd00:200:0:1::2 . 8080",
        "elements = { 10.200.0.0/16, 192.168.64.11 }",
        "0x00000200 . 0x00000000 : goto pick-2",
        "dnat ip to ip daddr . meta l4proto . th dport . numgen random mod 2 map @backends4",
    ] {
        assert!(listed.contains(line), "{line:?} is not in\n{listed}");
    }
}

/// A Service with all there is.
fn tell_everything(world: &World, proxy: &mut Proxy) {
    let mut facts = world.facts();
    facts.external_ip_cidrs = vec!["203.0.113.0/24".parse().expect("a literal")];
    proxy.facts_changed(facts);
    let both = podwire_services::Service {
        load_balancer_ips: vec!["203.0.113.80".to_owned(), "2001:db8:113::80".to_owned()],
        external_ips: vec!["203.0.113.81".to_owned()],
        source_ranges: ["198.51.100.0/24", "198.51.101.0/25", "2001:db8:7::/64"]
            .map(str::to_owned)
            .to_vec(),
        affinity: Some(10_800),
        external_policy: podwire_services::TrafficPolicy::Local,
        ..service("web", &["10.96.0.10", "fd00:96::10"], 80, Some(30080))
    };
    proxy.service_changed(both);
    proxy.endpoint_slice_changed(&slice("web", "web-4", &["10.200.1.2", "10.200.1.3"], 8080));
    proxy.endpoint_slice_changed(&slice("web", "web-6", &["fd00:200:0:1::2"], 8080));
}

#[test]
fn everything_there_is_can_be_listed_by_nft() {
    let world = World::new();
    let mut proxy = started(&world);
    tell_everything(&world, &mut proxy);
    proxy.sync().expect("a kernel with nf_tables");
    let listed = world.nft(&["list", "ruleset"]);
    for line in [
        "203.0.113.80 . tcp . 80 . 198.51.100.0-198.51.101.127",
        "2001:db8:113::80 . udp . 80 . 2001:db8:7::/64",
        "10.96.0.10 . tcp . 80 : 0x00000200 . 0x00002a30",
        "10.96.0.10 . tcp . 80 . 0x00000001 : 0x00000001",
        "10.96.0.10 . tcp . 80 . 0x00020000 counter packets 0 bytes 0 : 10.200.1.2 . 8080",
        "chain keep-2-10800",
        "chain keep-local-2-10800",
        "chain split-2-2-10800",
        "chain allow-split-2-2-10800",
        "timeout 3h",
    ] {
        assert!(listed.contains(line), "{line:?} is not in\n{listed}");
    }
    // A restart takes all of it over.
    drop(proxy);
    let mut proxy = started(&world);
    tell_everything(&world, &mut proxy);
    let stats = proxy.sync().expect("the kernel takes it");
    assert_eq!((stats.elements, stats.bytes), (0, 0), "{stats:?}");
}

/// The rules beside virtual servers, also on a kernel without those.
#[test]
fn what_admits_and_translates_beside_ipvs_can_be_listed_by_nft() {
    let world = World::new();
    let chains = rules::chains();
    world
        .node
        .namespace
        .run(|| {
            let mut batch = Batch::new(TableFamily::Inet, rules::TABLE, None);
            batch.add_table();
            for set in rules::sets() {
                batch.add_set(&set);
            }
            for chain in &chains {
                batch.add_chain(chain);
            }
            for chain in &chains {
                for rule in &chain.rules {
                    batch.add_rule(&chain.name, rule);
                }
            }
            Nftables::open()?.commit(batch)
        })
        .expect("entered")
        .expect("the kernel takes them");
    let listed = world.nft(&["list", "ruleset"]);
    for rule in [
        "ip daddr . meta l4proto . th dport @refused4 goto service-refuse",
        "ip6 saddr @local-pods6 dnat ip6 to ip6 daddr . meta l4proto . th dport map @twins6",
        "ip daddr @held4 goto service-refuse",
        "ct original ip daddr . meta l4proto . th dport @masquerade-all4 masquerade",
        "ct original ip6 daddr . meta l4proto . th dport @masquerade-node6 goto masquerade-if-node",
    ] {
        assert!(listed.contains(rule), "{rule} in\n{listed}");
    }
}

/// What a previous run left, told again to a new one.
fn tell(proxy: &mut Proxy) {
    proxy.service_changed(service(
        "web",
        &["10.96.0.10", "fd00:96::10"],
        80,
        Some(30080),
    ));
    proxy.service_changed(service("idle", &["10.96.0.11"], 80, None));
    proxy.endpoint_slice_changed(&slice(
        "web",
        "web-4",
        &["10.200.1.2", "10.200.1.3", "10.200.1.4"],
        8080,
    ));
    proxy.endpoint_slice_changed(&slice("web", "web-6", &["fd00:200:0:1::2"], 8080));
}

fn started(world: &World) -> Proxy {
    let facts = world.facts();
    world
        .node
        .namespace
        .run(|| Proxy::start(facts))
        .expect("entered")
        .expect("root")
}

#[test]
fn a_restart_changes_nothing() {
    let world = World::new();
    let mut first = started(&world);
    tell(&mut first);
    // A history, so that slots are not in the order a fresh plan would choose.
    first.endpoint_slice_changed(&slice(
        "web",
        "web-4",
        &["10.200.1.9", "10.200.1.3", "10.200.1.4"],
        8080,
    ));
    first.sync().expect("the kernel takes it");
    tell(&mut first);
    first.sync().expect("the kernel takes it");
    drop(first);
    let before = world.nft(&["list", "ruleset"]);
    let mut monitor = world
        .node
        .namespace
        .run(|| {
            std::process::Command::new("nft")
                .arg("monitor")
                .stdout(std::process::Stdio::piped())
                .spawn()
        })
        .expect("entered")
        .expect("nft is installed");
    let mut second = started(&world);
    tell(&mut second);
    let stats = second.sync().expect("the kernel takes it");
    assert!(stats.full);
    assert_eq!((stats.elements, stats.bytes), (0, 0), "{stats:?}");
    assert_eq!(world.nft(&["list", "ruleset"]), before);
    // A change of somebody else's makes the monitor print what it saw until then.
    world.nft(&["add", "table", "ip", "witness"]);
    let mut line = String::new();
    std::io::BufRead::read_line(
        &mut std::io::BufReader::new(monitor.stdout.take().expect("piped")),
        &mut line,
    )
    .expect("text");
    monitor.kill().expect("ours");
    monitor.wait().expect("ours");
    assert!(line.contains("witness"), "something changed: {line}");
}

#[test]
fn a_restart_changes_only_what_differs() {
    let world = World::new();
    let mut first = started(&world);
    tell(&mut first);
    first.sync().expect("the kernel takes it");
    drop(first);
    let mut second = started(&world);
    tell(&mut second);
    second.endpoint_slice_changed(&slice(
        "web",
        "web-4",
        &["10.200.1.2", "10.200.1.5", "10.200.1.4"],
        8080,
    ));
    let stats = second.sync().expect("the kernel takes it");
    // One slot deleted and added in each of four frontends; one hairpin pair.
    assert_eq!(stats.elements, 4 * 2 + 2, "{stats:?}");
    assert!(stats.repaired.is_empty());
}

#[test]
fn foreign_damage_is_found_and_put_right() {
    let world = World::new();
    let mut proxy = started(&world);
    tell(&mut proxy);
    proxy.sync().expect("the kernel takes it");
    let healthy = world.nft(&["list", "ruleset"]);
    assert_eq!(
        proxy.audit().expect("readable"),
        podwire_services::Stats::default(),
        "nobody committed: nothing is read"
    );
    for damage in [
        "delete element inet podwire backends4 { 10.96.0.10 . tcp . 80 . 1 }",
        "add element inet podwire backends6 { fd00:96::9 . tcp . 80 . 0 : fd00::9 . 80 }",
        // As many as there should be, but not the same.
        "delete element inet podwire backends4 { 10.96.0.10 . tcp . 80 . 1 } ; \
         add element inet podwire backends4 { 10.96.0.10 . tcp . 80 . 9 : 10.200.1.9 . 80 }",
        "add element inet podwire turns4 { 10.96.0.10 . tcp . 80 . 0 : 5 }",
        // A number that promises more backends than there can be.
        "add element inet podwire services6 { fd00:96::99 . tcp . 80 : 0xffffff00 . 0 }",
        "add element inet podwire cluster-ips4 { 10.96.0.99 }",
        "flush chain inet podwire pick-3",
        "insert rule inet podwire services ip daddr 10.96.0.10 drop",
        "flush map inet podwire masquerade-kinds",
        "add element inet podwire cluster-ranges4 { 10.210.0.0/16 }",
        "delete table inet podwire",
        "flush ruleset",
    ] {
        world.nft(&damage.split(' ').collect::<Vec<_>>());
        assert_ne!(world.nft(&["list", "ruleset"]), healthy, "{damage}");
        let stats = proxy.audit().expect("repairable");
        assert_eq!(
            sorted(&world.nft(&["list", "ruleset"])),
            sorted(&healthy),
            "{damage}"
        );
        assert!(!stats.repaired.is_empty(), "said nothing of: {damage}");
        assert_eq!(proxy.audit().expect("readable").bytes, 0, "{damage}");
    }
    // Somebody else's commit that does not touch us is none of our business.
    world.nft(&["add", "table", "ip", "other"]);
    let stats = proxy.audit().expect("readable");
    assert_eq!(stats.bytes, 0);
    assert!(stats.repaired.is_empty());
}

#[test]
fn a_sync_survives_damage_it_runs_into() {
    let world = World::new();
    let mut proxy = started(&world);
    tell(&mut proxy);
    proxy.sync().expect("the kernel takes it");
    world.nft(&["flush", "map", "inet", "podwire", "backends4"]);
    proxy.endpoint_slice_changed(&slice("web", "web-4", &["10.200.1.2"], 8080));
    proxy.sync().expect("compared and done again");
    let listed = world.nft(&["list", "map", "inet", "podwire", "backends4"]);
    assert!(
        listed.contains(
            "10.96.0.10 . tcp . 80 . 0x00000000 counter packets 0 bytes 0 : 10.200.1.2 . 8080"
        ),
        "{listed}"
    );
    assert!(!listed.contains("10.200.1.3"), "{listed}");
}

#[test]
fn others_in_the_table_are_left_alone() {
    let world = World::new();
    world.nft(&["add", "table", "inet", "podwire"]);
    world.nft(&["add", "chain", "inet", "podwire", "policy-other"]);
    let mut proxy = started(&world);
    tell(&mut proxy);
    proxy.sync().expect("the kernel takes it");
    // A set of an older layout makes all of ours be made anew, and nothing else.
    world.nft(&[
        "add",
        "set",
        "inet",
        "podwire",
        "kept",
        "{ type ipv4_addr; }",
    ]);
    drop(proxy);
    world.nft(&["flush", "chain", "inet", "podwire", "service-postrouting"]);
    let mut proxy = started(&world);
    tell(&mut proxy);
    proxy.sync().expect("the kernel takes it");
    let listed = world.nft(&["list", "ruleset"]);
    assert!(listed.contains("chain policy-other") && listed.contains("set kept"));
    assert!(listed.contains("oifname \"lo\" return"));
}

#[test]
fn chains_that_nobody_needs_are_collected() {
    let world = World::new();
    let mut proxy = started(&world);
    tell(&mut proxy);
    let mut local = service("near", &["10.96.0.12"], 80, Some(30081));
    local.external_policy = podwire_services::TrafficPolicy::Local;
    proxy.service_changed(local);
    proxy.endpoint_slice_changed(&slice(
        "near",
        "near-4",
        &["10.200.1.2", "10.200.1.7"],
        8080,
    ));
    proxy.sync().expect("the kernel takes it");
    let chains = || {
        let listed = world.nft(&["list", "ruleset"]);
        listed
            .lines()
            .filter_map(|line| line.trim().strip_prefix("chain "))
            .filter(|name| name.starts_with("pick") || name.starts_with("split"))
            .map(|name| name.trim_end_matches(" {").to_owned())
            .collect::<std::collections::BTreeSet<String>>()
    };
    let names = |list: &[&str]| list.iter().map(|n| (*n).to_owned()).collect();
    assert_eq!(
        chains(),
        names(&["pick-1", "pick-2", "pick-3", "pick-local-2", "split-2-2"])
    );
    proxy.service_removed(&podwire_services::ServiceName::new("default", "near"));
    proxy.endpoint_slice_changed(&slice("web", "web-4", &["10.200.1.2"], 8080));
    proxy.sync().expect("the kernel takes it");
    proxy.audit().expect("the kernel takes it");
    assert_eq!(chains(), names(&["pick-1"]));
    // They come back when needed.
    tell(&mut proxy);
    proxy.sync().expect("the kernel takes it");
    assert_eq!(chains(), names(&["pick-1", "pick-3"]));
    assert_eq!(proxy.audit().expect("readable").bytes, 0);
}

#[test]
fn ranges_follow_the_cluster() {
    let world = World::new();
    let mut proxy = started(&world);
    tell(&mut proxy);
    proxy.sync().expect("the kernel takes it");
    let mut facts = world.facts();
    facts
        .node_addresses
        .push("192.168.64.12".parse().expect("a literal"));
    facts.cluster_cidrs = ["10.200.0.0/17", "10.210.0.0/16", "fd00:200::/48"]
        .map(|cidr| cidr.parse().expect("a literal"))
        .to_vec();
    proxy.facts_changed(facts);
    proxy.sync().expect("the kernel takes it");
    let listed = world.nft(&["list", "set", "inet", "podwire", "cluster-ranges4"]);
    for range in [
        "10.200.0.0/17",
        "10.210.0.0/16",
        "192.168.64.11-192.168.64.12",
    ] {
        assert!(listed.contains(range), "{range} is not in {listed}");
    }
    proxy.facts_changed(world.facts());
    proxy.sync().expect("the kernel takes it");
    let listed = world.nft(&["list", "set", "inet", "podwire", "cluster-ranges4"]);
    assert!(
        listed.contains("elements = { 10.200.0.0/16, 192.168.64.11 }"),
        "{listed}"
    );
}

/// Lines in order, since elements are listed in no order.
fn sorted(listing: &str) -> Vec<String> {
    let mut lines: Vec<String> = listing
        .lines()
        .map(|line| {
            line.trim()
                .trim_start_matches("elements = {")
                .trim_end_matches('}')
                .trim_end_matches([',', ' '])
                .trim()
                .to_owned()
        })
        .collect();
    lines.sort();
    lines
}
