//! Five thousand nodes that are only objects, and one agent.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

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

/// CPU time used so far by each of the agent's threads, milliseconds
/// (Documentation/scheduler/sched-stats.rst).
fn cpu_time() -> BTreeMap<String, f64> {
    let mut threads = BTreeMap::new();
    for thread in std::fs::read_dir("/proc/self/task").expect("readable") {
        let thread = thread.expect("readable").path();
        let read = |file| std::fs::read_to_string(thread.join(file));
        // One that has just ended.
        let (Ok(name), Ok(times)) = (read("comm"), read("schedstat")) else {
            continue;
        };
        let running = times.split(' ').next().and_then(|text| text.parse().ok());
        let running: f64 = running.expect("nanoseconds");
        if ["agent", "routes", "services", "fast-path", "kernel-events"].contains(&name.trim()) {
            *threads.entry(name.trim().to_owned()).or_default() += running / 1e6;
        }
    }
    threads
}

/// The same once the agent seems to be at rest: for figures that nothing depends on.
fn settle() -> BTreeMap<String, f64> {
    let mut last = (cpu_time(), Instant::now());
    loop {
        std::thread::sleep(Duration::from_millis(20));
        let now = cpu_time();
        let sum = |times: &BTreeMap<String, f64>| times.values().sum::<f64>();
        // Looking at others' rules now and then takes less.
        if sum(&now) - sum(&last.0) > 2.0 {
            last = (now, Instant::now());
        } else if last.1.elapsed() > Duration::from_millis(700) {
            return now;
        }
    }
}

/// Prints what a change costs.
fn cost(world: &World, what: &str, change: impl FnOnce()) {
    let requests = || snapshot(world).expect("it answers").requests;
    let sent = requests();
    let before = settle();
    change();
    let after = settle();
    let sent = requests() - sent;
    let used = after.iter().map(|(name, time)| (name, time - before[name]));
    let used: Vec<(&String, f64)> = used.collect();
    let sum: f64 = used.iter().map(|(_, time)| time).sum();
    println!("{what}: {sent} requests, {sum:.1} ms of CPU time: {used:.1?}");
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
    for number in [100, 101] {
        let name = format!("peer{number}");
        cost(&world, "one peer less", || {
            world.api.delete::<Node>("", &name)
        });
        let again = || world.api.put::<Node>(peer(number, number));
        cost(&world, "one peer more", again);
    }
}
