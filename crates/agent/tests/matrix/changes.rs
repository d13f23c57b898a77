//! What happens while the cluster runs: nodes change their back end, somebody
//! meddles, a peer comes back as another.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::time::Duration;

use api::Node;
use linux::sysctl::{Family, Setting};
use linux::{fdb, link, route};
use podwire_agent::{
    ForwardingEntry, ForwardingOrigin as Origin, ForwardingTable as Table, RoutingSnapshot,
};
use serde_json::json;

use crate::capture::{Capture, Seen};
use crate::packet::{Answer, ping};
use crate::traffic;
use crate::world::{World, wait};

/// A world whose first two nodes run with a back end and have a pod each.
pub(crate) fn two(backend: &str) -> World {
    let mut world = World::new();
    for node in 0..2 {
        world.start(node, |options| options.backend = backend.to_owned());
    }
    for node in 0..2 {
        world.wait_until_ready(node);
    }
    for node in 0..2 {
        world.add_pod(node);
    }
    talk(&world);
    world
}

/// Waits until both pods' addresses are reached from the other node.
fn talk(world: &World) {
    for (from, to) in [(0, 1), (1, 0)] {
        for address in &world.pods[to].addresses {
            wait(&format!("answer from {address}"), || {
                let pod = &world.pods[from].namespace;
                match ping(pod, *address, 100, Duration::from_secs(1))? {
                    Answer::Echo => Ok(()),
                    other => Err(format!("{other:?}: {}", world.nodes[from].health())),
                }
            });
        }
    }
}

fn snapshot(world: &World, node: usize) -> RoutingSnapshot {
    podwire_agent::admin::get(&world.nodes[node].socket(), "/v1/routes", &[]).expect("it answers")
}

pub(crate) fn wait_for_backends(world: &World, node: usize, expected: &[&str]) {
    wait(&format!("back ends {expected:?}"), || {
        let path = world.nodes[node].socket();
        let found: RoutingSnapshot =
            podwire_agent::admin::get(&path, "/v1/routes", &[]).map_err(|e| e.to_string())?;
        let names: Vec<&str> = found.backends.iter().map(|name| &**name).collect();
        if names == expected {
            Ok(())
        } else {
            Err(format!("{names:?}"))
        }
    });
}

#[test]
fn an_agent_that_ends_in_the_middle_of_a_change_leaves_pods_talking_and_the_next_one_finishes() {
    let mut world = two("vxlan");
    world.start(0, |options| options.backend = "host-gw".into());
    world.stop(0);
    talk(&world);
    world.start(1, |options| options.backend = "host-gw".into());
    talk(&world);
    world.start(0, |options| options.backend = "host-gw".into());
    for node in 0..2 {
        wait_for_backends(&world, node, &["host-gw"]);
    }
    talk(&world);
}

#[test]
fn what_is_removed_by_hand_comes_back_and_is_named_once() {
    let world = two("vxlan");
    let namespace = &world.nodes[0].namespace;
    let mut socket = namespace.route_socket().expect("netlink");
    let device = link::get(&mut socket, "pw-vxlan")
        .expect("readable")
        .expect("the tunnel's device")
        .index;
    let entries = |socket: &mut linux::netlink::Socket| {
        let entries = fdb::list(socket, Some(device)).expect("readable");
        entries.into_iter().find(|entry| entry.remote.is_some())
    };
    for _ in 0..2 {
        let entry = entries(&mut socket).expect("the peer's");
        socket
            .execute(&fdb::delete(device, entry.mac))
            .expect("deleted");
        wait("the forwarding entry", || {
            entries(&mut socket).map(drop).ok_or_else(|| "none".into())
        });
    }
    let destination = "10.200.2.0/24".parse().expect("a range");
    socket
        .execute(&route::delete(&route::Route::to(destination)))
        .expect("deleted");
    wait("the route", || {
        let routes = route::list(&mut socket, route::Filter::own()).expect("readable");
        let there = routes.iter().any(|route| route.destination == destination);
        there.then_some(()).ok_or_else(|| format!("{routes:?}"))
    });
    talk(&world);
    wait("the report", || {
        let restored = snapshot(&world, 0).restored;
        let named = |part: &str| restored.keys().filter(|line| line.contains(part)).count();
        match (named("forwarding entry"), named("route to 10.200.2.0/24")) {
            (1, 1) => Ok(()),
            _ => Err(format!("{restored:?}")),
        }
    });
}

#[test]
fn forwarding_tables_say_what_was_learned_and_what_was_programmed_for_which_node() {
    let about = |world: &World, table, origin| -> BTreeSet<(String, String, Option<Box<str>>)> {
        let path = world.nodes[0].socket();
        let entries: Vec<ForwardingEntry> =
            podwire_agent::admin::get(&path, "/v1/fdb", &[]).expect("it answers");
        let entries = entries.into_iter();
        entries
            .filter(|entry| entry.table == table && entry.origin == origin)
            .map(|entry| (entry.device, entry.to, entry.node))
            .collect()
    };
    let expect = |world: &World, table, origin, rows: &[(&str, &str, Option<&str>)]| {
        let rows: BTreeSet<_> = rows
            .iter()
            .map(|(device, to, node)| (device.to_string(), to.to_string(), node.map(Into::into)))
            .collect();
        // What is learned may be a frame behind in one of the tables.
        wait(&format!("{rows:?}"), || {
            let found = about(world, table, origin);
            if found == rows {
                Ok(())
            } else {
                Err(format!("{found:?}"))
            }
        });
    };
    let world = two("vxlan");
    let programmed = [
        ("pw-vxlan", "192.168.64.12", Some("node2")),
        ("pw-vxlan6", "fd00:64::12", Some("node2")),
    ];
    expect(&world, Table::Tunnel, Origin::Programmed, &programmed);
    expect(&world, Table::Tunnel, Origin::Learned, &[]);
    let world = two("vxlan-multicast");
    let behind_port = [("pw-mcast-br", "pw-mcast", Some("node2"))];
    let other_end = [("pw-mcast", "192.168.64.12", Some("node2"))];
    let group = [("pw-mcast", "239.112.0.1", None)];
    expect(&world, Table::Bridge, Origin::Learned, &behind_port);
    expect(&world, Table::Tunnel, Origin::Learned, &other_end);
    expect(&world, Table::Tunnel, Origin::Device, &group);
    expect(&world, Table::Tunnel, Origin::Programmed, &[]);
}

#[test]
fn an_uplink_that_goes_down_and_up_and_a_peer_that_starts_anew_are_followed() {
    let mut world = two("vxlan");
    let mut socket = world.nodes[0].namespace.route_socket().expect("netlink");
    let uplink = link::get(&mut socket, "eth0")
        .expect("readable")
        .expect("there");
    // As whoever configured the address would have it.
    let keep = Setting::of_interface(Family::V6, "eth0", "keep_addr_on_down");
    world.nodes[0]
        .namespace
        .run(|| keep.write(1))
        .expect("entered")
        .expect("a setting of the own namespace");
    socket.execute(&link::set_down(uplink.index)).expect("down");
    socket.execute(&link::set_up(uplink.index)).expect("up");
    // What the kernel forgot with the link is the administrator's: the default
    // routes. Those to the pods are podwire's, and come back.
    talk(&world);
    // A machine that boots has nothing of what it had.
    world.stop(1);
    let mut peer = world.nodes[1].namespace.route_socket().expect("netlink");
    link::delete_by_name(&mut peer, "pw-vxlan").expect("deleted");
    link::delete_by_name(&mut peer, "pw-vxlan6").expect("deleted");
    world.start(1, |options| options.backend = "vxlan".into());
    talk(&world);
}

#[test]
fn a_peer_is_followed_when_its_address_or_range_changes_or_it_comes_back_by_the_same_name() {
    let world = two("vxlan");
    let remotes = || {
        let mut socket = world.nodes[0].namespace.route_socket().expect("netlink");
        let device = link::get(&mut socket, "pw-vxlan")
            .expect("readable")
            .expect("there");
        let entries = fdb::list(&mut socket, Some(device.index)).expect("readable");
        let remotes = entries.iter().filter_map(|entry| entry.remote);
        let mut remotes: Vec<String> = remotes.map(|r| r.address.to_string()).collect();
        remotes.sort();
        let routes = route::list(&mut socket, route::Filter::own()).expect("readable");
        let mut routed = routes
            .iter()
            .filter(|route| route.link == Some(device.index))
            .map(|route| route.destination.to_string())
            .collect::<Vec<_>>();
        routed.sort();
        (remotes, routed)
    };
    let wait_for = |remote: &str, range: &str| {
        wait(&format!("{range} by {remote}"), || {
            let (found, routed) = remotes();
            // Its pods, and itself.
            if found == [remote] && routed == [range, &format!("{remote}/32")] {
                Ok(())
            } else {
                Err(format!("{found:?} {routed:?}"))
            }
        });
    };
    wait_for("192.168.64.12", "10.200.2.0/24");
    let present = || world.api.get::<Node>("", "node2").expect("it is there");
    let mut moved = present();
    moved["status"]["addresses"][0]["address"] = json!("192.168.64.99");
    world.api.put::<Node>(moved);
    wait_for("192.168.64.99", "10.200.2.0/24");
    let mut renumbered = present();
    renumbered["spec"]["podCIDRs"][0] = json!("10.200.77.0/24");
    world.api.put::<Node>(renumbered);
    wait_for("192.168.64.99", "10.200.77.0/24");
    // Without its annotation, which its own agent writes again.
    world.api.delete::<Node>("", "node2");
    world.register(1);
    wait_for("192.168.64.12", "10.200.2.0/24");
    let pod = &world.pods[0].namespace;
    let answer = ping(
        pod,
        world.pods[1].addresses[0],
        100,
        Duration::from_secs(30),
    );
    assert_eq!(answer, Ok(Answer::Echo));
}

/// What `nft` makes of a script in a namespace.
pub(crate) fn nft(namespace: &linux::namespace::NetworkNamespace, script: &str) {
    let output = namespace
        .run(|| std::process::Command::new("nft").arg(script).output())
        .expect("entered")
        .expect("nft is there");
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn an_underlay_without_multicast_is_reported_until_it_carries_the_group() {
    let world = two("vxlan-multicast");
    let silent = |line: &str| {
        ["239.112.0.1", "eth0", "pw-mcast-br", "node2 (10.200.2.0)"]
            .iter()
            .all(|part| line.contains(part))
    };
    assert!(!world.nodes[0].health().lines().any(silent));
    nft(
        &world.router,
        "add table bridge blocked
         add chain bridge blocked f { type filter hook forward priority 0; }
         add rule bridge blocked f ip daddr 239.112.0.1 drop",
    );
    // What was known is asked anew when the peer is: as one that comes back after
    // it was seen to be gone.
    world.api.delete::<Node>("", "node2");
    wait("the peer to be forgotten", || {
        let path = world.nodes[0].socket();
        let entries: Vec<ForwardingEntry> =
            podwire_agent::admin::get(&path, "/v1/fdb", &[]).map_err(|e| e.to_string())?;
        let named = entries.iter().any(|entry| entry.node.is_some());
        (!named).then_some(()).ok_or_else(|| format!("{entries:?}"))
    });
    world.register(1);
    wait("the report", || {
        let health = world.nodes[0].health();
        health.lines().any(silent).then_some(()).ok_or(health)
    });
    nft(&world.router, "delete table bridge blocked");
    wait("the end of the report", || {
        let health = world.nodes[0].health();
        (!health.lines().any(silent)).then_some(()).ok_or(health)
    });
    talk(&world);
}

/// What a switch between two nodes sees of a pod that fetches from another.
pub(crate) fn on_the_wire(backend: &str) -> Seen {
    let world = two(backend);
    let pods = world.pods.iter().flat_map(|pod| pod.addresses.clone());
    let capture = Capture::start(&world.router, pods.collect());
    for target in &world.pods[1].addresses {
        traffic::get(&world.pods[0].namespace, *target, 100_000).expect("an answer");
    }
    capture.stop()
}

#[test]
fn the_capture_sees_what_is_not_encrypted() {
    let seen = on_the_wire("host-gw");
    assert!(seen.of_pods > 0 && seen.clear > 0, "{seen:?}");
    assert_eq!(seen.wireguard, 0, "{seen:?}");
}

/// Nodes take new keys again and again, and pods go on talking.
pub(crate) fn rotate() {
    let mut world = two("wireguard");
    let key = |world: &World| {
        let node = world.api.get::<Node>("", "node1").expect("it is there");
        let text = node["metadata"]["annotations"]["podwire.dev/routing"].clone();
        let data: serde_json::Value =
            serde_json::from_str(text.as_str().expect("its agent wrote it")).expect("JSON");
        data["wireguard"].clone()
    };
    let first = key(&world);
    world.start(0, |options| {
        options.backend = "wireguard".to_owned();
        options.wireguard_rotate = Some(podwire_agent::Period(Duration::from_secs(5)));
    });
    wait("a new key", || {
        let now = key(&world);
        if now == first {
            Err(now.to_string())
        } else {
            Ok(())
        }
    });
    let second = key(&world);
    assert!(!second.is_null());
    talk(&world);
    wait("another key", || {
        let now = key(&world);
        if now == second {
            Err(now.to_string())
        } else {
            Ok(())
        }
    });
    talk(&world);
}

#[test]
fn who_removes_routes_again_and_again_is_named_once() {
    let world = two("vxlan");
    // `ip` by another name, which lives as long as it is given commands.
    let directory = tempfile::tempdir().expect("a directory");
    let program = directory.path().join("meddler");
    std::fs::copy("/usr/sbin/ip", &program).expect("ip is there");
    let mut meddler = world.nodes[0]
        .namespace
        .run(|| {
            std::process::Command::new(&program)
                .args(["-force", "-batch", "-"])
                .stdin(std::process::Stdio::piped())
                .spawn()
        })
        .expect("entered")
        .expect("started");
    let mut commands = meddler.stdin.take().expect("piped");
    let destination = "10.200.2.0/24".parse().expect("a range");
    let mut socket = world.nodes[0].namespace.route_socket().expect("netlink");
    for times in 1..=3 {
        writeln!(commands, "route del {destination}").expect("it reads");
        wait("the culprit", || {
            let found = snapshot(&world, 0).culprits;
            let expected = [("process meddler".to_owned(), times)];
            if found.iter().map(|(n, t)| (n.clone(), *t)).eq(expected) {
                Ok(())
            } else {
                Err(format!("{found:?}"))
            }
        });
        wait("the route", || {
            let routes = route::list(&mut socket, route::Filter::own()).expect("readable");
            let there = routes.iter().any(|route| route.destination == destination);
            there.then_some(()).ok_or_else(|| format!("{routes:?}"))
        });
    }
    drop(commands);
    meddler.wait().expect("it ends with its commands");
    talk(&world);
}

/// A program that has to succeed in a namespace.
pub(crate) fn command(namespace: &linux::namespace::NetworkNamespace, line: &str) {
    let mut words = line.split(' ');
    let program = words.next().expect("a program");
    let output = namespace
        .run(|| std::process::Command::new(program).args(words).output())
        .expect("entered")
        .expect("it is there");
    assert!(output.status.success(), "{line}: {output:?}");
}

#[test]
fn a_node_of_flannel_talks_with_those_of_podwire_until_podwire_takes_it_over() {
    const PREFIX: &str = "flannel.alpha.coreos.com";
    let mac = "82:4b:b6:2f:54:4e";
    let mut world = two("vxlan");
    // The second node as flannel would have it: nothing of podwire's …
    world.stop(1);
    let namespace = world.nodes[1].namespace.clone();
    for device in ["pw-vxlan", "pw-vxlan6"] {
        command(&namespace, &format!("ip link del {device}"));
    }
    let mut object = world.nodes[1].object();
    let end = json!({"VNI": 1, "VtepMAC": mac}).to_string();
    object["metadata"]["annotations"] = json!({
        format!("{PREFIX}/kube-subnet-manager"): "true",
        format!("{PREFIX}/backend-type"): "vxlan",
        format!("{PREFIX}/backend-data"): end,
        format!("{PREFIX}/backend-v6-data"): end,
        format!("{PREFIX}/public-ip"): "192.168.64.12",
        format!("{PREFIX}/public-ipv6"): "fd00:64::12",
    });
    world.api.put::<Node>(object);
    // … and what it makes of what the first node tells.
    let annotation = |name: &str| -> Result<String, String> {
        let node = world.api.get::<Node>("", "node1").expect("it is there");
        let text = &node["metadata"]["annotations"][format!("{PREFIX}/{name}")];
        text.as_str()
            .map(str::to_owned)
            .ok_or_else(|| node.to_string())
    };
    wait("the annotations of flannel", || {
        annotation("backend-v6-data").map(drop)
    });
    assert_eq!(annotation("backend-type").as_deref(), Ok("vxlan"));
    for (device, data, address, local, first, far, range) in [
        (
            "flannel.1",
            "backend-data",
            "public-ip",
            "192.168.64.12",
            "10.200.2.0/32",
            "10.200.1.0",
            "10.200.1.0/24",
        ),
        (
            "flannel-v6.1",
            "backend-v6-data",
            "public-ipv6",
            "fd00:64::12",
            "fd00:200:0:2::/128",
            "fd00:200:0:1::",
            "fd00:200:0:1::/64",
        ),
    ] {
        let told: serde_json::Value =
            serde_json::from_str(&annotation(data).expect("told")).expect("JSON");
        let remote = annotation(address).expect("told");
        let peer = told["VtepMAC"].as_str().expect("a hardware address");
        for line in [
            format!(
                "ip link add {device} address {mac} type vxlan id {} dstport 8472 local {local} \
                 dev eth0 nolearning",
                told["VNI"]
            ),
            format!("ip addr add {first} dev {device}"),
            format!("ip link set {device} up"),
            format!("ip neigh add {far} lladdr {peer} dev {device} nud permanent"),
            format!("bridge fdb add {peer} dev {device} dst {remote}"),
            format!("ip route replace {range} via {far} dev {device} onlink"),
        ] {
            command(&namespace, &line);
        }
    }
    talk(&world);
    // Podwire takes the node over, once flannel's devices are out of the way.
    world.start(1, |options| options.backend = "vxlan".into());
    wait("the conflict to be named", || {
        let health = world.nodes[1].health();
        health.contains("pw-vxlan").then_some(()).ok_or(health)
    });
    for device in ["flannel.1", "flannel-v6.1"] {
        command(&namespace, &format!("ip link del {device}"));
    }
    talk(&world);
    wait("an end of the conflict", || {
        let health = world.nodes[1].health();
        (!health.contains("pw-vxlan")).then_some(()).ok_or(health)
    });
}
