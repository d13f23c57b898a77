//! Five thousand nodes that are only objects, and one agent.

use std::time::Instant;

use api::Node;
use podwire_agent::{FastPathReport, RoutingSnapshot};
use serde_json::json;

use crate::world::{World, wait};

const PEERS: usize = 5000;
/// Requests to the kernel one changed node may cost: its entries of both
/// families and the looks around that do not depend on how many there are.
/// A pass may read the kernel first, which takes some thirty requests.
const PER_CHANGE: u64 = 60;

fn peer(number: usize, address: usize) -> serde_json::Value {
    let routing = json!({
        "ways": ["vxlan"], "mtu": {"v4": 1500, "v6": 1500},
        "vxlan": {"vni": 1, "port": 8472, "mac": {
            "v4": format!("0a:00:00:00:{:02x}:{:02x}", number / 256, number % 256),
            "v6": format!("0a:00:00:00:{:02x}:{:02x}", number / 256, number % 256)}},
    });
    json!({
        "metadata": {"name": format!("peer{number}"),
            "annotations": {"podwire.dev/routing": routing.to_string()}},
        "spec": {"podCIDRs": [
            format!("10.{}.{}.0/24", 100 + number / 256, number % 256),
            format!("fd00:300:{number:x}::/64")]},
        "status": {"addresses": [
            {"type": "InternalIP", "address": format!("172.16.{}.{}", address / 250, 1 + address % 250)},
            {"type": "InternalIP", "address": format!("fd00:65::{address:x}")}]},
    })
}

fn snapshot(world: &World) -> Result<RoutingSnapshot, String> {
    podwire_agent::admin::get(&world.nodes[0].socket(), "/v1/routes", &[])
        .map_err(|error| error.to_string())
}

/// Memory of this process, MiB.
fn memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("readable");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.trim().split(' ').next()?.parse::<u64>().ok());
    number.expect("a number of KiB") / 1024
}

/// The agent and the API server share this process, and the build is not
/// optimised: the times are printed for comparison, not judged.
#[test]
fn a_change_among_five_thousand_nodes_costs_what_changed() {
    let mut world = World::new();
    for node in 1..3 {
        world.api.delete::<Node>("", &format!("node{}", node + 1));
    }
    for number in 0..PEERS {
        world.api.put::<Node>(peer(number, number));
    }
    let (start, before) = (Instant::now(), memory());
    world.start(0, |options| options.backend = "vxlan".into());
    wait("everything of 5,000 peers", || {
        let found = snapshot(&world)?.counts;
        // Forwarding and neighbour entries, and routes, of both families.
        match (found.forwarding, found.neighbours) == (2 * PEERS, 2 * PEERS) {
            true => Ok(()),
            false => Err(format!("{found:?}")),
        }
    });
    let (took, grown) = (start.elapsed(), memory().saturating_sub(before));
    let before = snapshot(&world).expect("it answers");
    println!(
        "{PEERS} peers from cold: {took:?}, {grown} MiB more, {} requests, {:?}",
        before.requests, before.counts
    );
    let start = Instant::now();
    world.api.put::<Node>(peer(7, PEERS + 7));
    wait("the changed peer", || {
        let entries = snapshot(&world)?.entries;
        let remote = format!("172.16.{}.{}", (PEERS + 7) / 250, 1 + (PEERS + 7) % 250);
        let there = entries.iter().any(|entry| entry.entry.ends_with(&remote));
        there.then_some(()).ok_or(remote)
    });
    let took = start.elapsed();
    let after = snapshot(&world).expect("it answers");
    let requests = after.requests - before.requests;
    println!("one peer changed: {took:?}, {requests} requests");
    assert!((1..PER_CHANGE).contains(&requests), "{requests} requests");
    // The fast path is told what changed, and nothing else.
    let fast = || -> Result<FastPathReport, String> {
        podwire_agent::admin::get(&world.nodes[0].socket(), "/v1/fast-path", &[])
            .map_err(|error| error.to_string())
    };
    wait("all ranges", || {
        let known = fast()?.ranges.len();
        (known == 2 * PEERS).then_some(()).ok_or(known.to_string())
    });
    let before = fast().expect("it answers");
    let mut other = peer(7, PEERS + 7);
    other["spec"]["podCIDRs"] = json!(["10.99.0.0/24", "fd00:301::/64"]);
    world.api.put::<Node>(other);
    let new = ["10.99.0.0/24", "fd00:301::/64"].map(|range| range.parse().expect("a range"));
    wait("the other ranges", || {
        let ranges = fast()?.ranges;
        let there = new.iter().all(|range| ranges.contains(range));
        (there && ranges.len() == 2 * PEERS)
            .then_some(())
            .ok_or_else(|| format!("{}", ranges.len()))
    });
    // Two come, two go.
    assert_eq!(fast().expect("it answers").changes - before.changes, 4);
}
