//! Many at once, and killed at any moment: nothing is given twice, nothing is
//! left behind.
#![allow(clippy::unwrap_used, reason = "tests say what they expect with unwrap")]

mod common;

use std::collections::HashSet;
use std::process::Command;
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

/// System calls that change something that outlasts the process, as `strace`
/// names them: `openat` makes files and opens settings, `clone` starts the
/// process in the background.
const CHANGES: [&str; 9] = [
    "sendto", "linkat", "rename", "unlink", "mkdir", "write", "pwrite64", "openat", "clone",
];

/// System calls that change nothing but the process itself.
const HARMLESS: [&str; 50] = [
    "access",
    "arch_prctl",
    "bind",
    "brk",
    "close",
    "close_range",
    "connect",
    "dup2",
    "execve",
    "exit",
    "exit_group",
    "fcntl",
    "flock",
    "fstat",
    "futex",
    "getdents64",
    "getpid",
    "getrandom",
    "getsockname",
    "getsockopt",
    "gettid",
    "ioctl",
    "madvise",
    "mmap",
    "mprotect",
    "munmap",
    "newfstatat",
    "poll",
    "ppoll",
    "pread64",
    "prctl",
    "prlimit64",
    "read",
    "readlink",
    "readlinkat",
    "recvfrom",
    "recvmsg",
    "restart_syscall",
    "rseq",
    "rt_sigaction",
    "rt_sigprocmask",
    "sched_getaffinity",
    "set_robust_list",
    "set_tid_address",
    "setns",
    "setsid",
    "setsockopt",
    "sigaltstack",
    "socket",
    "statx",
];

/// The interface whose network macvlan pods are on: the one that stays.
const MASTER: &str = "pwbr0";

/// What is there to undo altogether: port mappings and shaping too.
fn everything(node: &Node, mode: &str) -> Value {
    let mut configuration = node.configuration(mode.trim_end_matches('+'));
    configuration["pair"] = json!("two");
    configuration["master"] = json!(MASTER);
    if mode == "macvlan" {
        let parent = linux::link::add_bridge(&linux::link::Bridge {
            name: MASTER,
            ..linux::link::Bridge::default()
        });
        node.namespace
            .route_socket()
            .unwrap()
            .execute(&parent)
            .unwrap();
    }
    if mode.ends_with('+') {
        configuration["runtimeConfig"] = json!({
            "portMappings": [
                {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
                {"hostPort": 8053, "containerPort": 53, "protocol": "udp"},
            ],
            "bandwidth": {"ingressRate": 1_000_000, "ingressBurst": 1_000_000,
                          "egressRate": 1_000_000, "egressBurst": 1_000_000},
        });
    }
    configuration
}

#[track_caller]
fn assert_no_mappings(node: &Node) {
    let output = node
        .namespace
        .run(|| {
            Command::new("nft")
                .args(["list", "ruleset"])
                .output()
                .unwrap()
        })
        .unwrap();
    let rules = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success() && !rules.contains("elements"),
        "{rules}"
    );
}

#[rstest]
#[case::bridge("bridge+")]
#[case::routed("routed+")]
#[case::macvlan("macvlan")]
#[case::direct("direct")]
fn every_system_call_is_known_to_change_something_or_not(#[case] mode: &str) {
    let node = Node::new();
    let configuration = everything(&node, mode);
    let pod = Pod::new("traced");
    let path = pod.path();
    for command in ["ADD", "DEL"] {
        let trace = node.state.path().join("trace");
        let strace = ["strace", "-f", "-o", trace.to_str().unwrap()];
        let mut variables = variables(command, &pod, &path).to_vec();
        variables.push(("PATH", "/usr/bin:/bin"));
        finish(node.spawn_under(&strace, &configuration, &variables)).ok();
        let text = std::fs::read_to_string(&trace).unwrap();
        let calls: HashSet<_> = text
            .lines()
            // PID name(…, or PID <... name resumed>….
            .filter_map(|line| line.split_once(' '))
            .map(|(_, call)| call.trim_start().trim_start_matches("<... "))
            .filter_map(|call| call.split(['(', ' ']).next())
            .filter(|name| name.starts_with(|first: char| first.is_ascii_lowercase()))
            .collect();
        assert!(calls.contains("sendto"), "{calls:?}");
        for call in calls {
            assert!(
                CHANGES.contains(&call) || HARMLESS.contains(&call),
                "{command} calls {call}: list it where it belongs"
            );
        }
    }
    node.assert_clean();
}

#[rstest]
#[case::bridge("bridge")]
#[case::routed("routed")]
#[case::everything("routed+")]
#[case::macvlan("macvlan")]
#[case::direct("direct")]
fn killed_before_any_system_call_that_changes_something_leaves_nothing(#[case] mode: &str) {
    let node = Node::new();
    let configuration = everything(&node, mode);
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
            let inject = format!("inject={change}:signal=SIGKILL:when={nth}");
            let mut strace = vec!["strace", "-f", "-o", "/dev/null"];
            let trace = format!("trace={change}");
            strace.extend(["-e", &trace, "-e", &inject]);
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
            assert_no_mappings(&node);
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
