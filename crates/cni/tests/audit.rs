//! What vanished sandboxes and dead plugins left behind is found and freed,
//! and nothing else.
#![allow(clippy::unwrap_used, reason = "tests say what they expect with unwrap")]

mod common;

use std::net::IpAddr;
use std::process::Command;

use common::{Node, Pod, addresses, assert_pings};
use podwire_cni::audit::{self, Findings, Reclaimed, State, Stray};
use rstest::rstest;

fn examine(node: &Node) -> Findings {
    let root = node.state.path();
    node.namespace
        .run(|| audit::examine(root))
        .unwrap()
        .unwrap()
}

fn reclaim(node: &Node) -> Reclaimed {
    let root = node.state.path();
    node.namespace
        .run(|| audit::reclaim(root))
        .unwrap()
        .unwrap()
}

fn shell(node: &Node, command: &str) {
    let status = node
        .namespace
        .run(|| Command::new("sh").args(["-c", command]).status().unwrap())
        .unwrap();
    assert!(status.success(), "{command}");
}

#[rstest]
#[case::bridge("bridge")]
#[case::routed("routed")]
fn reservations_of_vanished_sandboxes_are_found_and_freed(#[case] mode: &str) {
    let node = Node::new();
    let configuration = node.configuration(mode);
    let living = Pod::new("living");
    let vanished = Pod::new("vanished");
    let kept = addresses(&node.call("ADD", &configuration, &living).ok());
    node.call("ADD", &configuration, &vanished).ok();
    let findings = examine(&node);
    assert!(findings.is_clean(), "{findings:?}");
    assert_eq!(findings.reservations.len(), 2);
    assert_eq!(
        findings.reservations[0].pod.as_ref().unwrap().name,
        "living"
    );

    // The namespace goes without DEL; its links go with it, in the background.
    let cable = findings.reservations[1].host_interface.clone().unwrap();
    drop(vanished);
    common::eventually("the cable goes with its namespace", || {
        let links = node.links();
        if links.contains(&cable) {
            Err(links)
        } else {
            Ok(())
        }
    });
    let findings = examine(&node);
    let leaks: Vec<_> = findings.leaks().collect();
    assert_eq!(leaks.len(), 1, "{findings:?}");
    assert_eq!(leaks[0].attachment.container_id, "vanished");

    let freed = reclaim(&node);
    assert_eq!(freed.reservations.len(), 1, "{freed:?}");
    assert!(
        freed.failures.is_empty() && freed.files.is_empty(),
        "{freed:?}"
    );
    assert!(examine(&node).is_clean());
    for address in kept {
        assert_pings(&node.namespace, address);
    }
    assert_eq!(reclaim(&node), Reclaimed::default());
    node.call("DEL", &configuration, &living).ok();
    node.assert_clean();
}

#[test]
fn a_reservation_in_use_by_an_add_is_no_leak() {
    let node = Node::new();
    let pod = Pod::new("one");
    let configuration = node.configuration("routed");
    node.call("ADD", &configuration, &pod).ok();
    let store = ipam::Store::new(node.state.path(), "pods").unwrap();
    let attachment = ipam::Attachment::new("one", "eth0");
    let hold = store.try_hold(&attachment).unwrap().unwrap();
    let cable = node.links().pop().unwrap();
    shell(&node, &format!("ip link del {cable}"));
    assert_eq!(examine(&node).reservations[0].state, State::InProgress);
    assert_eq!(reclaim(&node), Reclaimed::default());
    drop(hold);
    assert_eq!(examine(&node).reservations[0].state, State::NoInterface);
    assert_eq!(reclaim(&node).reservations.len(), 1);
    node.assert_clean();
}

#[test]
fn a_macvlan_pod_is_judged_by_its_sandbox_and_left_to_gc() {
    let node = Node::new();
    shell(
        &node,
        "ip link add parent type veth peer name other && ip link set parent up",
    );
    let mut configuration = node.configuration("macvlan");
    configuration["master"] = "parent".into();
    let pod = Pod::new("one");
    let mut holder = pod
        .namespace
        .run(|| Command::new("sleep").arg("600").spawn().unwrap())
        .unwrap();
    let path = format!("/proc/{}/ns/net", holder.id());
    let variables = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "one"),
        ("CNI_NETNS", &path),
        ("CNI_IFNAME", "eth0"),
    ];
    node.plugin(&configuration, &variables).ok();
    let entry = examine(&node).reservations.remove(0);
    assert_eq!((entry.state, entry.host_interface), (State::Attached, None));
    holder.kill().unwrap();
    holder.wait().unwrap();
    assert_eq!(examine(&node).reservations[0].state, State::NoSandbox);
    // Who audits may not see the runtime's files.
    assert_eq!(reclaim(&node), Reclaimed::default());
    configuration["cni.dev/valid-attachments"] = serde_json::json!([]);
    node.plugin(&configuration, &[("CNI_COMMAND", "GC")]).ok();
    assert!(examine(&node).reservations.is_empty());
}

#[test]
fn what_belongs_to_no_reservation_is_named() {
    let node = Node::new();
    let pods = ["bridge", "routed"].map(|mode| {
        let pod = Pod::new(mode);
        node.call("ADD", &node.configuration(mode), &pod).ok();
        pod
    });
    let store = ipam::Store::new(node.state.path(), "pods").unwrap();
    for pod in &pods {
        store
            .release(&ipam::Attachment::new(&pod.id, "eth0"))
            .unwrap();
    }
    std::fs::write(node.state.path().join("pods/10.200.1.99.json"), "{}").unwrap();
    let findings = examine(&node);
    let strays = findings.strays;
    let cables = strays
        .iter()
        .filter(|s| matches!(s, Stray::Interface { .. }));
    assert_eq!(cables.count(), 2, "{strays:?}");
    let mut routed: Vec<IpAddr> = Vec::new();
    let mut bridged: Vec<IpAddr> = Vec::new();
    for stray in &strays {
        match stray {
            Stray::Route { address, .. } => routed.push(*address),
            Stray::Neighbour { address, .. } => bridged.push(*address),
            _ => {}
        }
    }
    let texts = |addresses: &[IpAddr]| -> Vec<_> {
        let mut texts: Vec<_> = addresses.iter().map(IpAddr::to_string).collect();
        texts.sort();
        texts
    };
    assert_eq!(texts(&bridged), ["10.200.1.2", "fd00:200:0:1::2"]);
    assert_eq!(texts(&routed), ["10.200.1.3", "fd00:200:0:1::3"]);
    assert!(
        matches!(strays.last(), Some(Stray::File { path }) if path.ends_with("10.200.1.99.json"))
    );
    assert_eq!(reclaim(&node).files.len(), 1);
    for (mode, pod) in ["bridge", "routed"].iter().zip(&pods) {
        node.call("DEL", &node.configuration(mode), pod).ok();
    }
}
