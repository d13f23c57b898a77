//! How pods' packets get from node to node: subnets, back ends, changing
//! between them.

use std::{process::Stdio, time::Duration};

use serde_json::Value;

use crate::support::{Lab, PODWIRE, client, eventually, output, printed, server, success, url};
use crate::survival::{kill_on_node, runs_again};

/// Everything on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn pods() -> String {
    [client("client", "node-1"), server("web", "web", "node-2")].concat()
}

/// Fetches from each address of a pod.
fn reaches(lab: &Lab, from: &str, to: &str) -> Result<(), String> {
    for address in lab.pod_addresses(to) {
        let target = url(&address, 8080, "/");
        let fetched = lab.exec_output(from, &["curl", "-sS", "--max-time", "5", &target]);
        if !fetched.status.success() {
            return Err(printed(&fetched));
        }
    }
    Ok(())
}

/// A node's ranges, IPv4 first.
fn ranges(lab: &Lab, node: &str) -> [String; 2] {
    let node = lab.get(&["node", node]);
    let of = |index: usize| node["spec"]["podCIDRs"][index].as_str().map(str::to_owned);
    let mut ranges = [of(0), of(1)].map(|range| range.expect("one of each family"));
    ranges.sort_by_key(|range| range.contains(':'));
    ranges
}

/// What a command prints of a node, which fits a window of 100 columns.
fn shown(lab: &Lab, node: &str, command: &[&str]) -> String {
    let place = ["--lab", &lab.name, "--node", node];
    let arguments = [command, &place].concat();
    let text = printed(&output(PODWIRE, &arguments));
    let wide = text.lines().find(|line| line.chars().count() > 100);
    assert_eq!(wide, None, "{command:?}");
    text
}

/// The findings of `podwire doctor` on a node by one of its checks.
fn findings(lab: &Lab, node: &str, check: &str) -> Vec<String> {
    let arguments = ["doctor", "--lab", &lab.name, "--node", node, "-o", "json"];
    let found = output(PODWIRE, &arguments);
    let report: Value = serde_json::from_slice(&found.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", printed(&found)));
    let all = report["findings"].as_array().expect("a list").iter();
    let of_check = all.filter(|finding| finding["check"] == check);
    of_check.map(|finding| finding.to_string()).collect()
}

fn inspect(lab: &Lab, node: &str) -> Value {
    inspect_output(lab, node).unwrap_or_else(|why| panic!("podwire inspect routes: {why}"))
}

#[test]
fn nodes_of_other_subnets_are_refused_by_host_gw_with_the_reason() {
    let lab = Lab::up(&["--nodes", "2", "--subnets", "2"], &pods());
    assert_eq!(
        lab.node_addresses("node-2"),
        ["192.168.65.12", "fd00:64:0:1::12"]
    );
    assert!(reaches(&lab, "client", "web").is_err());
    let refused = eventually("the reason", PATIENCE, || {
        let refused = inspect(&lab, "node-1")["refused"].to_string();
        match refused.contains("192.168.65.12") {
            true => Ok(refused),
            false => Err(refused),
        }
    });
    assert!(refused.contains("subnet"), "{refused}");
    let arguments = ["doctor", "--lab", &lab.name, "--node", "node-1"];
    let found = output(PODWIRE, &arguments);
    assert_eq!(found.status.code(), Some(1), "{}", printed(&found));
    assert!(
        printed(&found).contains("192.168.65.12"),
        "{}",
        printed(&found)
    );
    let text = shown(&lab, "node-1", &["inspect", "routes"]);
    for range in ranges(&lab, "node-2") {
        let line = format!("- no route to {range} of node node-2");
        assert!(text.contains(&line), "{text}");
    }
    let refused = findings(&lab, "node-1", "agent");
    assert_eq!(refused.len(), 2, "one for each family: {refused:?}");
}

#[test]
fn agents_of_a_lab_leave_out_the_fast_path_when_it_is_to_be_off() {
    let off = "it is switched off";
    for (arguments, expected) in [(&[][..], false), (&["--fast-path", "off"], true)] {
        let lab = Lab::up(&[&["--nodes", "1"], arguments].concat(), "");
        let report = inspect(&lab, "node-1")["fastPath"].clone();
        assert!(report.is_object(), "{report}");
        assert_eq!(report["off"] == off, expected, "{arguments:?}: {report}");
    }
}

#[test]
fn a_tunnel_that_somebody_deletes_takes_the_fast_path_again() {
    for (backend, devices) in [
        ("vxlan", &["pw-vxlan", "pw-vxlan6"][..]),
        ("vxlan-gpe", &["pw-gpe"]),
    ] {
        let lab = Lab::up(&["--nodes", "2", "--backend", backend], &pods());
        let report = eventually("its start", PATIENCE, || {
            let report = inspect_output(&lab, "node-1")?["fastPath"].clone();
            let starting = report["starting"] == true;
            if starting {
                Err(report.to_string())
            } else {
                Ok(report)
            }
        });
        if let Some(why) = report["off"].as_str() {
            println!("not tested: no fast path, {why}");
            return;
        }
        let mut peers = ranges(&lab, "node-2");
        peers.sort();
        let taken = || -> Result<[Option<u64>; 2], String> {
            let report = inspect_output(&lab, "node-1")?["fastPath"].clone();
            let all = report["ranges"] == serde_json::json!(peers);
            let taken = ["outbound", "inbound"].map(|way| report[way]["taken"].as_u64());
            all.then_some(taken).ok_or(report.to_string())
        };
        let takes = |when: &str| {
            eventually(&format!("{backend} {when}"), PATIENCE, || {
                let before = taken()?;
                reaches(&lab, "client", "web")?;
                let after = taken()?;
                let mut both = before.iter().zip(&after);
                let more = both.all(|(before, after)| before < after);
                more.then_some(()).ok_or(format!("{before:?} {after:?}"))
            });
        };
        takes("at first");
        for device in devices {
            lab.node("node-1", &["ip", "link", "delete", device]);
        }
        takes("made anew");
    }
}

/// What the kernel itself says, asked by another program.
fn makes(kind: &str) -> bool {
    let command = format!("unshare --net ip link add name probe type {kind}");
    output("sh", &["-c", &command]).status.success()
}

#[test]
fn the_forwarding_entries_and_what_is_wrong_with_a_node_are_shown_by_commands() {
    let lab = Lab::up(&["--nodes", "2", "--backend", "vxlan-multicast"], &pods());
    eventually("the start", PATIENCE, || reaches(&lab, "client", "web"));
    // What was learned and what belongs to the device, of bridge and tunnel.
    let text = eventually("both tables", PATIENCE, || {
        let text = shown(&lab, "node-1", &["inspect", "fdb"]);
        let (bridge, tunnel) = text
            .split_once("table of the tunnel pw-mcast\n")
            .ok_or_else(|| text.clone())?;
        let learned = |table: &str| {
            table
                .lines()
                .any(|line| line.contains("learned") && line.ends_with("node-2"))
        };
        match bridge.contains("table of the bridge pw-mcast-br\n")
            && learned(bridge)
            && learned(tunnel)
        {
            true => Ok(text),
            false => Err(text),
        }
    });
    assert!(text.contains("239.112.0.1"), "{text}");
    let place = ["--lab", &lab.name, "--node", "node-1", "-o", "json"];
    let entries = output(PODWIRE, &[&["inspect", "fdb"], &place[..]].concat());
    let entries: Value = serde_json::from_slice(&entries.stdout).expect("JSON");
    let of_peer = |entry: &&Value| entry["origin"] == "learned" && entry["to"] == "192.168.64.12";
    let found = entries.as_array().expect("a list").iter().find(of_peer);
    assert!(found.is_some(), "{entries}");

    // The kernel, as another program finds it.
    let kernel = findings(&lab, "node-1", "kernel").concat();
    for (kind, backend) in [("ipip local 127.0.0.1", "ipip"), ("wireguard", "wireguard")] {
        let named = kernel.contains(&format!("back end {backend}\""));
        assert_eq!(named, !makes(kind), "{kernel}");
    }
    assert!(!kernel.contains("back end vxlan"), "{kernel}");
    assert!(!kernel.contains("proxy nftables"), "{kernel}");

    // A route of somebody else's in the middle of a peer's range.
    let [range, _] = ranges(&lab, "node-2");
    let half = range.replace(".0/24", ".128/25");
    assert_eq!(
        findings(&lab, "node-1", "foreign-routes"),
        Vec::<String>::new()
    );
    let route = ["ip", "route", "add", &*half, "dev", "eth0"];
    lab.node("node-1", &[&route[..], &["proto", "static"]].concat());
    let found = findings(&lab, "node-1", "foreign-routes").concat();
    assert!(found.contains(&half), "{found}");
    eventually("the agent's own word", PATIENCE, || {
        let found = findings(&lab, "node-1", "agent").concat();
        let named = found.contains(&half) && found.contains("proto");
        named.then_some(()).ok_or(found)
    });
    // Reported, and left alone.
    let left = lab.node("node-1", &["ip", "route", "show", &half]);
    assert!(left.contains("proto static"), "{left}");
}

#[test]
fn across_subnets_a_tunnel_is_taken_and_within_one_none() {
    let lab = Lab::up(
        &["--nodes", "3", "--subnets", "2", "--cross-subnet"],
        &[pods(), server("near", "near", "node-3")].concat(),
    );
    for target in ["web", "near"] {
        eventually(target, PATIENCE, || reaches(&lab, "client", target));
    }
    let snapshot = inspect(&lab, "node-1");
    let way = |node: &str| {
        let entries = snapshot["entries"].as_array().expect("entries").iter();
        let mut of_node = entries.filter(|entry| entry["node"] == node && entry["kind"] == "route");
        of_node.next().map(|entry| entry["backend"].clone())
    };
    assert_eq!(way("node-2"), Some("vxlan".into()), "{snapshot}");
    assert_eq!(way("node-3"), Some("host-gw".into()), "{snapshot}");
    let doctor = ["doctor", "--lab", &lab.name, "--node", "node-1"];
    eventually("a doctor without findings", PATIENCE, || {
        let found = output(PODWIRE, &doctor);
        found
            .status
            .success()
            .then_some(())
            .ok_or_else(|| printed(&found))
    });
}

#[test]
fn a_running_lab_changes_its_back_end_node_by_node_while_pods_talk_and_agents_are_killed() {
    let lab = Lab::up(&["--nodes", "2", "--backend", "vxlan"], &pods());
    eventually("the start", PATIENCE, || reaches(&lab, "client", "web"));
    let routes = shown(&lab, "node-1", &["inspect", "routes"]);
    let [own, peer] = ["node-1", "node-2"].map(|node| {
        let [range, _] = ranges(&lab, node);
        range.replace("/24", "")
    });
    for part in [
        "back ends: vxlan; MTU of pods: 1430",
        "this node\n  device      pw-vxlan mtu 1450",
        &format!("node-2, by vxlan\n  route       {peer}/24 via {peer} on pw-vxlan from {own}"),
        &format!("  route       192.168.64.12/32 via {peer} on pw-vxlan metric 58 table 1120"),
        &format!("  rule        1120: from {own}/24 lookup 1120"),
    ] {
        assert!(routes.contains(part), "{part:?} in {routes}");
    }
    let entries = shown(&lab, "node-1", &["inspect", "fdb"]);
    for (device, end) in [("pw-vxlan", "192.168.64.12"), ("pw-vxlan6", "fd00:64::12")] {
        let heading = format!("table of the tunnel {device}\n");
        let rest = entries.split(&heading).nth(1).unwrap_or_default();
        let line = rest.lines().nth(1).unwrap_or_default();
        assert!(
            line.contains(end) && line.contains("programmed") && line.ends_with("node-2"),
            "{entries}"
        );
    }
    // The agents of both nodes are killed meanwhile, wherever they are.
    let change = |node: &str| {
        let arguments = [
            "lab", "backend", "--name", &lab.name, "host-gw", "--node", node,
        ];
        std::thread::scope(|scope| {
            let changing = scope.spawn(|| success("lab backend", &output(PODWIRE, &arguments)));
            for victim in ["node-1", "node-2"] {
                let before = kill_on_node(&lab, victim, "agent");
                runs_again(&lab, victim, "agent", &before);
            }
            changing.join().expect("lab backend");
        });
        kill_on_node(&lab, node, "agent");
    };
    let is = |node: &str, wanted: &[&str]| {
        eventually(&format!("{node} with {wanted:?}"), PATIENCE, || {
            let backends = inspect_output(&lab, node)?["backends"].clone();
            match backends == serde_json::json!(wanted) {
                true => Ok(()),
                false => Err(backends.to_string()),
            }
        });
    };
    // One connection that lasts through it all.
    let address = lab.pod_addresses("web")[0].clone();
    let asking = std::process::Command::new(PODWIRE)
        .args([
            "lab", "exec", "--name", &lab.name, "client", "--", "sh", "-c",
        ])
        .arg(format!(
            "while [ ! -e /tmp/enough ]; do curl -sS -o /dev/null --max-time 5 {} || echo lost; done",
            url(&address, 8080, "/")
        ))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("podwire was built by cargo for this test");
    change("node-1");
    is("node-1", &["host-gw", "vxlan"]);
    is("node-2", &["vxlan", "host-gw"]);
    eventually("both kinds", PATIENCE, || reaches(&lab, "client", "web"));
    change("node-2");
    is("node-1", &["host-gw"]);
    is("node-2", &["host-gw"]);
    eventually("the end", PATIENCE, || reaches(&lab, "client", "web"));
    lab.exec("client", &["touch", "/tmp/enough"]);
    let asked = asking.wait_with_output().expect("it ends");
    assert_eq!(
        String::from_utf8_lossy(&asked.stdout),
        "",
        "requests were lost"
    );
    // The pod was attached for the tunnel.
    let older = eventually("the older MTU", PATIENCE, || {
        let found = findings(&lab, "node-1", "mtu").concat();
        found.contains("1500").then_some(found.clone()).ok_or(found)
    });
    assert!(
        older.contains("default/client") && older.contains("1430"),
        "{older}"
    );
    for node in ["node-1", "node-2"] {
        eventually("the old devices to be gone", PATIENCE, || {
            let links = lab.node(node, &["ip", "-o", "link", "show", "type", "vxlan"]);
            let rules = lab.node(node, &["ip", "rule", "show", "priority", "1120"]);
            let left = links + &rules;
            left.is_empty().then_some(()).ok_or(left)
        });
    }
}

fn inspect_output(lab: &Lab, node: &str) -> Result<Value, String> {
    let arguments = [
        "inspect", "--lab", &lab.name, "--node", node, "routes", "-o", "json",
    ];
    let found = output(PODWIRE, &arguments);
    if !found.status.success() {
        return Err(printed(&found));
    }
    serde_json::from_slice(&found.stdout).map_err(|error| error.to_string())
}
