//! Many at once, and killed at any moment: nothing is given twice, nothing is
//! left behind.
#![allow(clippy::unwrap_used, reason = "tests say what they expect with unwrap")]

mod common;

use std::collections::HashSet;
use std::time::{Duration, Instant};

use common::{Node, Pod, addresses, assert_pings, finish};
use rstest::rstest;
use serde_json::{Value, json};

fn variables<'a>(command: &'a str, pod: &'a Pod, path: &'a str) -> [(&'a str, &'a str); 4] {
    [
        ("CNI_COMMAND", command),
        ("CNI_CONTAINERID", &pod.id),
        ("CNI_NETNS", path),
        ("CNI_IFNAME", "eth0"),
    ]
}

fn spawn(node: &Node, command: &str, configuration: &Value, pod: &Pod) -> std::process::Child {
    node.spawn(configuration, &variables(command, pod, &pod.path()))
}

#[rstest]
#[case::bridge("bridge")]
#[case::routed("routed")]
fn fifty_pods_at_once_get_fifty_addresses_and_go_at_once(#[case] mode: &str) {
    let node = Node::new();
    let configuration = node.configuration(mode);
    let pods: Vec<_> = (0..50).map(|n| Pod::new(&format!("pod-{n}"))).collect();
    let running: Vec<_> = pods
        .iter()
        .map(|pod| spawn(&node, "ADD", &configuration, pod))
        .collect();
    let mut given = HashSet::new();
    for child in running {
        for address in addresses(&finish(child).ok()) {
            assert!(given.insert(address), "{address} was given twice");
        }
    }
    assert_eq!(given.len(), 100);
    assert_eq!(node.reservations().len(), 100);
    for address in given.iter().take(10) {
        assert_pings(&pods[0].namespace, *address);
        assert_pings(&node.namespace, *address);
    }
    let running: Vec<_> = pods
        .iter()
        .map(|pod| spawn(&node, "DEL", &configuration, pod))
        .collect();
    for child in running {
        finish(child).ok();
    }
    node.assert_clean();
}

#[rstest]
#[case::bridge("bridge")]
#[case::routed("routed")]
fn an_operation_killed_at_any_moment_leaves_nothing_after_del(#[case] mode: &str) {
    let node = Node::new();
    let configuration = node.configuration(mode);
    // How long the operations take here and now, to spread the kills over.
    let pod = Pod::new("probe");
    let start = Instant::now();
    node.call("ADD", &configuration, &pod).ok();
    let add = start.elapsed();
    let start = Instant::now();
    node.call("DEL", &configuration, &pod).ok();
    let delete = start.elapsed();

    let rounds = 40;
    for round in 0..rounds {
        let pod = Pod::new(&format!("add-{round}"));
        kill_after(
            spawn(&node, "ADD", &configuration, &pod),
            add * round / rounds,
        );
        node.call("DEL", &configuration, &pod).ok();
        node.settle();
        assert_eq!(
            common::ip(&pod.namespace, "link show")
                .as_array()
                .unwrap()
                .len(),
            1
        );
        // The same container can be attached after all.
        node.call("ADD", &configuration, &pod).ok();
        kill_after(
            spawn(&node, "DEL", &configuration, &pod),
            delete * round / rounds,
        );
        node.call("DEL", &configuration, &pod).ok();
    }
    node.assert_clean();
}

#[rstest]
#[case::bridge("bridge")]
#[case::routed("routed")]
fn an_add_killed_at_any_moment_can_be_repeated_or_collected(#[case] mode: &str) {
    let node = Node::new();
    let mut configuration = node.configuration(mode);
    let pod = Pod::new("probe");
    let start = Instant::now();
    node.call("ADD", &configuration, &pod).ok();
    let add = start.elapsed();
    node.call("DEL", &configuration, &pod).ok();

    let rounds = 30;
    for round in 0..rounds {
        let pod = Pod::new(&format!("add-{round}"));
        kill_after(
            spawn(&node, "ADD", &configuration, &pod),
            add * round / rounds,
        );
        if interfaces(&pod) == 1 {
            // A fresh sandbox of the same name, as after a runtime's restart.
            let result = node.call("ADD", &configuration, &pod).ok();
            for address in addresses(&result) {
                assert_pings(&node.namespace, address);
            }
        }
    }
    configuration["cni.dev/valid-attachments"] = json!([]);
    node.plugin(&configuration, &[("CNI_COMMAND", "GC")]).ok();
    node.assert_clean();
}

/// System calls that change something, as `strace` names them, and settings
/// of the pod, which are written on a thread of their own.
const CHANGES: [&[&str]; 7] = [
    &["sendto"],
    &["linkat"],
    &["rename"],
    &["unlink"],
    &["mkdir"],
    &["write"],
    &["openat", "-P", "/proc/sys/net/ipv6/conf/eth0/accept_dad"],
];

#[rstest]
#[case::bridge("bridge")]
#[case::routed("routed")]
fn killed_before_any_system_call_that_changes_something_leaves_nothing(#[case] mode: &str) {
    let node = Node::new();
    let configuration = node.configuration(mode);
    let mut collect = configuration.clone();
    collect["cni.dev/valid-attachments"] = json!([]);
    let pod = Pod::new("victim");
    let path = pod.path();
    let mut kills = 0;
    for (command, change) in ["ADD", "DEL"]
        .into_iter()
        .flat_map(|command| CHANGES.map(|change| (command, change)))
    {
        for nth in 1.. {
            if command == "DEL" {
                node.call("ADD", &configuration, &pod).ok();
            }
            let inject = format!("inject={}:signal=SIGKILL:when={nth}", change[0]);
            let mut strace = vec!["strace", "-f", "-o", "/dev/null"];
            let trace = format!("trace={}", change[0]);
            strace.extend(["-e", &trace, "-e", &inject]);
            strace.extend(&change[1..]);
            let mut variables = variables(command, &pod, &path).to_vec();
            variables.push(("PATH", "/usr/bin:/bin"));
            let child = node.spawn_under(&strace, &configuration, &variables);
            let survived = child.wait_with_output().unwrap().status.success();
            // Half of them are removed by the runtime's DEL, half by its GC.
            if nth % 2 == 0 {
                node.call("DEL", &configuration, &pod).ok();
            } else {
                node.plugin(&collect, &[("CNI_COMMAND", "GC")]).ok();
            }
            node.assert_clean();
            assert_eq!(interfaces(&pod), 1, "{command} {change:?} {nth}");
            if survived {
                break;
            }
            kills += 1;
        }
    }
    // The other operations of the loop must not hide that nothing was killed.
    assert!(kills > 20, "{kills}");
}

fn interfaces(pod: &Pod) -> usize {
    let links = common::ip(&pod.namespace, "link show");
    links.as_array().unwrap().len()
}

fn kill_after(mut child: std::process::Child, time: Duration) {
    std::thread::sleep(time);
    // It may have ended: then this is the case of a kill after all was done.
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_reservation_that_cannot_be_written_fails_and_leaves_nothing() {
    let node = Node::new();
    let mut configuration = node.configuration("routed");
    let file = node.state.path().join("a-file");
    std::fs::write(&file, "").unwrap();
    configuration["ipam"]["dataDir"] = json!(file);
    let pod = Pod::new("one");
    let outcome = node.call("ADD", &configuration, &pod);
    assert_eq!(outcome.code(), 5);
    let message = outcome.stdout["msg"].as_str().unwrap();
    assert!(message.contains("a-file"), "{message}");
    node.assert_clean();
    assert_eq!(
        common::ip(&pod.namespace, "link show")
            .as_array()
            .unwrap()
            .len(),
        1
    );
}
