//! Changing the proxy of a live node: no moment without rules, connections stay,
//! nothing of the one before is left, wherever it is interrupted.

mod switching;
mod world;

use podwire_services::iptables::Variant;
use podwire_services::table::Table;
use podwire_services::{ProxyMode, ProxySettings};
use switching::{CLUSTER, proxy};
use world::{Attach, World, service};

fn settings() -> [ProxySettings; 3] {
    let iptables = |variant| ProxySettings {
        iptables: Some(variant),
        ..ProxySettings::new(ProxyMode::Iptables)
    };
    [
        ProxySettings::new(ProxyMode::Nftables),
        iptables(Variant::Nft),
        iptables(Variant::Legacy),
    ]
}

/// What each proxy has in the node's namespace, by witnesses: table inet
/// podwire, chains of iptables-nft, chains of iptables-legacy.
fn present(world: &World) -> [bool; 3] {
    let has = |program: &str| world.node.command(program, &[]).contains(":PODWIRE-");
    [
        world.nft(&["list", "tables"]).contains("inet podwire"),
        has("iptables-nft-save") || has("ip6tables-nft-save"),
        has("iptables-legacy-save") || has("ip6tables-legacy-save"),
    ]
}

#[test]
fn no_connection_fails_while_the_proxy_is_changed() {
    let [nftables, nft, legacy] = settings();
    switching::under_load(
        &[nftables, nft, nftables, legacy, nft, nftables],
        |world, now| {
            let expected = settings().map(|one| one == now);
            assert_eq!(present(world), expected, "after the change to {now:?}");
        },
    );
}

#[test]
fn a_change_that_was_interrupted_is_finished_by_the_next_start() {
    let world = World::with(Attach::Routed, 2);
    let settings = settings();
    // All three at once: as if each change had been killed before it cleared up.
    for one in settings {
        let mut table = Table::new(world.facts());
        table.set_service(service("web", &CLUSTER, 80, None));
        let changes = table.take_changes();
        world
            .node
            .namespace
            .run(|| one.start()?.sync(&table, &changes).map(drop))
            .expect("entered")
            .expect("taken");
    }
    assert_eq!(present(&world), [true; 3]);
    proxy(&world, settings[0]).sync().expect("taken");
    assert_eq!(present(&world), [true, false, false]);
}
