//! Every back end × attach mode × family × {same node, other node, other
//! subnet}: what a pod can expect of the network between nodes.
//!
//! A test is one world: real agents in namespaces, pods attached by the plugin.
//! It goes on after a failure and names all that failed in the end.

mod capture;
mod changes;
mod datagrams;
mod fast_path;
mod packet;
mod scale;
mod traffic;
mod world;

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use packet::{Answer, ping};
use podwire_agent::Attach;
use rstest::rstest;
use world::World;

/// Bytes of a large answer.
const LARGE: usize = 1 << 20;
/// The underlay's largest packet.
const UNDERLAY: u32 = 1500;

/// Where a target is, seen from the first node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    SameNode,
    OtherNode,
    OtherSubnet,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Place::SameNode => "same node",
            Place::OtherNode => "other node",
            Place::OtherSubnet => "other subnet",
        })
    }
}

/// A way to run the cluster, and what can be expected of it.
#[derive(Clone, Copy, Debug)]
struct Way {
    backend: &'static str,
    cross_subnet: bool,
    attach: Attach,
    /// Bytes of overhead in the MTU.
    overhead: u32,
    /// Whether it reaches the other subnet.
    across: bool,
}

fn check(way: Way) {
    let mut world = World::new();
    for node in 0..3 {
        world.start(node, |options| {
            options.backend = way.backend.to_owned();
            options.cross_subnet = way.cross_subnet;
            options.attach = way.attach;
        });
    }
    for node in 0..3 {
        world.wait_until_ready(node);
    }
    let pod = world.add_pod(0);
    let targets = [
        (Place::SameNode, world.add_pod(0)),
        (Place::OtherNode, world.add_pod(1)),
        (Place::OtherSubnet, world.add_pod(2)),
    ];
    let mut failures = Vec::new();
    let mut count = 0;
    let mut note = |place: Place, family: &str, what: &str, outcome: Result<(), String>| {
        count += 1;
        let sign = if outcome.is_ok() { "ok" } else { "FAILED" };
        println!("{family} to {place}: {what}: {sign}");
        if let Err(why) = outcome {
            failures.push(format!("{family} to {place}: {what}: {why}"));
        }
    };

    let mtu = UNDERLAY - way.overhead;
    let sender = &world.pods[pod].namespace;
    let own = &world.pods[pod].addresses;
    note(
        Place::SameNode,
        "both families",
        "the pods' MTU",
        same(world.pods[pod].mtu, mtu),
    );
    for (place, target) in targets {
        for (index, to) in world.pods[target].addresses.iter().copied().enumerate() {
            let family = if to.is_ipv4() { "IPv4" } else { "IPv6" };
            let mut note = |what: &str, outcome| note(place, family, what, outcome);
            if place == Place::OtherSubnet && !way.across {
                let answer = ping(sender, to, 100, Duration::from_secs(2));
                note(
                    "is refused",
                    match answer {
                        Ok(Answer::Unreachable | Answer::Silence) => Ok(()),
                        other => Err(format!("{other:?}")),
                    },
                );
                let health = world.nodes[0].health();
                let named = health
                    .lines()
                    .any(|line| line.contains("node3") && line.contains("subnet"));
                note("with the reason", named.then_some(()).ok_or(health));
                continue;
            }
            // The agents of the other nodes learn of each other in their own time.
            let outcome = ping(sender, to, 100, world::PATIENCE);
            let reached = outcome == Ok(Answer::Echo);
            note(
                "ping",
                same(outcome, Ok(Answer::Echo))
                    .map_err(|why| format!("{why}; the agent says: {}", world.nodes[0].health())),
            );
            if !reached {
                continue;
            }
            note(
                "TCP, sender's address kept",
                from_own(traffic::get(sender, to, 10), own),
            );
            note(
                "UDP, sender's address kept",
                from_own(traffic::ask(sender, to), own),
            );
            note(
                "an answer of 1 MB",
                from_own(traffic::get(sender, to, LARGE), own),
            );
            // So does this node's of the Service, which was made with the pod.
            let service = world.pods[target].services[index];
            let asked = world::attempt(|| traffic::get(sender, service, LARGE));
            note("a Service, sender's address kept", from_own(asked, own));
            let exact = ping(sender, to, mtu, Duration::from_secs(10));
            note("a packet of exactly the MTU", same(exact, Ok(Answer::Echo)));
        }
    }
    world.raise_mtu(pod, mtu + 100);
    for (place, target) in targets {
        if place == Place::OtherSubnet && !way.across {
            continue;
        }
        for to in world.pods[target].addresses.iter().copied() {
            let family = if to.is_ipv4() { "IPv4" } else { "IPv6" };
            let more = ping(sender, to, mtu + 1, Duration::from_secs(10));
            let outcome = same(more, Ok(Answer::TooBig(mtu)));
            note(
                place,
                family,
                "one byte more is refused with the MTU",
                outcome,
            );
        }
    }
    assert!(
        failures.is_empty(),
        "{} of {count} failed with {way:?}:\n{}",
        failures.len(),
        failures.join("\n")
    );
}

fn same<T: fmt::Debug + PartialEq>(found: T, expected: T) -> Result<(), String> {
    if found == expected {
        Ok(())
    } else {
        Err(format!("{found:?}, not {expected:?}"))
    }
}

fn from_own(peer: Result<IpAddr, String>, own: &[IpAddr]) -> Result<(), String> {
    let peer = peer?;
    if own.contains(&peer) {
        Ok(())
    } else {
        Err(format!("seen as {peer}"))
    }
}

type Test = (&'static str, bool, u32, bool);

/// Back end, whether with `--cross-subnet`, bytes of overhead in the pods' MTU
/// (that of the family that costs more), whether it reaches the other subnet.
fn run((backend, cross_subnet, overhead, across): Test, attach: Attach) {
    check(Way {
        backend,
        cross_subnet,
        attach,
        overhead,
        across,
    });
}

#[rstest]
#[case::host_gw(("host-gw", false, 0, false))]
#[case::host_gw_and_vxlan_across(("host-gw", true, 70, true))]
#[case::static_routes(("static", false, 0, false))]
#[case::vxlan(("vxlan", false, 70, true))]
#[case::vxlan_gpe(("vxlan-gpe", false, 56, true))]
#[case::vxlan_gpe_across_only(("vxlan-gpe", true, 56, true))]
#[case::vxlan_multicast(("vxlan-multicast", false, 50, false))]
fn pods_reach_each_other(
    #[case] test: Test,
    #[values(Attach::Bridge, Attach::Routed)] attach: Attach,
) {
    run(test, attach);
}

/// What many kernels lack: one boot of a virtual machine for all of it.
#[test]
fn ipip_and_wireguard() {
    use vm::{Feature, Guest};
    let report = Guest::new()
        .needs(Feature::Ipip)
        .needs(Feature::Ip6Tunnel)
        .needs(Feature::WireGuard)
        // A client of an API server wants to have some, whatever the server.
        .file("/etc/ssl/certs/ca-certificates.crt")
        .run_cases("guest::")
        .unwrap_or_else(|error| panic!("{error}"));
    print!("{report}");
}

/// In a machine of its own: agents start anew and anew there, which takes its time.
#[test]
fn changes_to_wireguard_and_back() {
    use vm::{Feature, Guest};
    let report = Guest::new()
        .needs(Feature::Ipip)
        .needs(Feature::Ip6Tunnel)
        .needs(Feature::WireGuard)
        .file("/etc/ssl/certs/ca-certificates.crt")
        .run_cases("changing::")
        .unwrap_or_else(|error| panic!("{error}"));
    print!("{report}");
}

mod changing {
    /// Only the pod on the node that is changed last sends. WireGuard keeps the last 128
    /// packets for a peer it has no keys with: had some to wait for seconds, the others
    /// would be lost.
    #[test]
    #[ignore = "run by changes_to_wireguard_and_back"]
    fn nodes_change_to_wireguard_and_back_one_by_one_and_lose_no_datagram() {
        crate::datagrams::change(&["ipip", "wireguard", "host-gw"], &[1]);
    }
}

mod guest {
    use super::*;

    #[rstest]
    #[case::ipip(("ipip", false, 40, true))]
    #[case::wireguard(("wireguard", false, 60, true))]
    #[ignore = "run by ipip_and_wireguard"]
    fn pods_reach_each_other(
        #[case] test: Test,
        #[values(Attach::Bridge, Attach::Routed)] attach: Attach,
    ) {
        run(test, attach);
    }

    #[test]
    #[ignore = "run by ipip_and_wireguard"]
    fn with_wireguard_nothing_of_a_pod_leaves_in_clear() {
        let seen = changes::on_the_wire("wireguard");
        assert!(seen.wireguard > 0, "{seen:?}");
        assert_eq!((seen.of_pods, seen.clear), (0, 0), "{seen:?}");
    }

    #[test]
    #[ignore = "run by ipip_and_wireguard"]
    fn new_wireguard_keys_are_followed_by_the_peers() {
        changes::rotate();
    }
}
