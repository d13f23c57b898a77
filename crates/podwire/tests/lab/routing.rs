//! How pods' packets get from node to node: subnets, back ends, changing
//! between them.

use std::{process::Stdio, time::Duration};

use serde_json::Value;

use crate::support::{Lab, PODWIRE, client, eventually, output, printed, server, success, url};

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
fn a_running_lab_changes_its_back_end_node_by_node_while_pods_talk() {
    let lab = Lab::up(&["--nodes", "2", "--backend", "vxlan"], &pods());
    eventually("the start", PATIENCE, || reaches(&lab, "client", "web"));
    let change = |node: &str| {
        let arguments = [
            "lab", "backend", "--name", &lab.name, "host-gw", "--node", node,
        ];
        success("lab backend", &output(PODWIRE, &arguments));
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
    for node in ["node-1", "node-2"] {
        eventually("the old devices to be gone", PATIENCE, || {
            let links = lab.node(node, &["ip", "-o", "link", "show", "type", "vxlan"]);
            links.is_empty().then_some(()).ok_or(links)
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
