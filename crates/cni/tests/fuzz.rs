//! Whatever a runtime, a user or a broken disk hands the plugin: it answers as
//! the specification says, does not panic, and touches nothing outside its own
//! directories. The inputs of `corpus` are those that once were or might be
//! trouble; proptest makes more.
#![allow(clippy::unwrap_used, reason = "tests say what they expect with unwrap")]

mod common;

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::{Node, Pod};
use linux::{mount, process};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};

const COMMANDS: [&str; 6] = ["ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION"];

/// A node on a machine whose `/run` and `/var/log` are this test's own, so that
/// configurations without directories do no harm either.
fn node() -> Node {
    process::unshare_mounts().unwrap();
    mount::make_private(Path::new("/")).unwrap();
    for folder in ["/run", "/var/log"] {
        mount::tmpfs(Path::new(folder), "size=16m").unwrap();
    }
    Node::new()
}

fn corpus(kind: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/corpus")
        .join(kind);
    let mut files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect();
    files.sort();
    assert!(!files.is_empty());
    files
}

/// Runs the plugin; what it answers must be one of the specification's answers.
#[track_caller]
fn run(node: &Node, input: &[u8], variables: &[(&str, String)]) -> bool {
    let mut child = node
        .namespace
        .run(|| {
            Command::new(env!("CARGO_BIN_EXE_podwire-cni"))
                .env_clear()
                .envs(variables.iter().map(|(name, value)| (*name, value)))
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .unwrap();
    // It may end before it reads.
    let _ = child.stdin.take().unwrap().write_all(input);
    let output = child.wait_with_output().unwrap();
    let shown = || {
        format!(
            "{variables:?} {}: {output:?}",
            String::from_utf8_lossy(input)
        )
    };
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!stderr.contains("panicked"), "{}", shown());
    match output.status.code() {
        Some(0) => assert!(
            output.stdout.is_empty() || serde_json::from_slice::<Value>(&output.stdout).is_ok(),
            "{}",
            shown()
        ),
        Some(1) => {
            let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
            assert!(
                answer["code"].is_u64() && answer["msg"].is_string(),
                "{}",
                shown()
            );
        }
        _ => panic!("{}", shown()),
    }
    output.status.success()
}

fn variables(command: &str, container: &str, netns: &str) -> Vec<(&'static str, String)> {
    vec![
        ("CNI_COMMAND", command.to_owned()),
        ("CNI_CONTAINERID", container.to_owned()),
        ("CNI_NETNS", netns.to_owned()),
        ("CNI_IFNAME", "eth0".to_owned()),
    ]
}

/// Nothing but what the plugin may make is there.
#[track_caller]
fn assert_confined(node: &Node) {
    let names = |folder: &Path| -> Vec<String> {
        let Ok(listing) = fs::read_dir(folder) else {
            return Vec::new();
        };
        let mut names: Vec<_> = listing
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    };
    let allowed = |folder: &str, known: &[&str]| {
        for name in names(Path::new(folder)) {
            assert!(known.contains(&name.as_str()), "{folder}/{name}");
        }
    };
    allowed("/run", &["podwire"]);
    allowed("/run/podwire", &["ipam"]);
    allowed("/var/log", &["podwire"]);
    allowed("/var/log/podwire", &["cni.log", "cni.log.1"]);
    allowed(
        node.state.path().to_str().unwrap(),
        &["pods", "cni.log", "cni.log.1", "reaper.lock", "node.json"],
    );
}

#[test]
fn the_corpus_of_configurations_gets_answers() {
    let node = node();
    let pod = Pod::new("one");
    for (path, input) in corpus("stdin") {
        for command in COMMANDS {
            println!("{command} {}", path.display());
            run(&node, &input, &variables(command, "one", &pod.path()));
        }
        run(&node, &input, &variables("DEL", "one", &pod.path()));
        assert_confined(&node);
    }
}

#[test]
fn the_corpus_of_arguments_gets_answers() {
    let node = node();
    let configuration = node.configuration("routed").to_string();
    for (path, arguments) in corpus("args") {
        println!("{}", path.display());
        let pod = Pod::new("one");
        for command in ["ADD", "CHECK", "DEL"] {
            let mut variables = variables(command, "one", &pod.path());
            variables.push(("CNI_ARGS", String::from_utf8(arguments.clone()).unwrap()));
            run(&node, configuration.as_bytes(), &variables);
        }
        run(
            &node,
            configuration.as_bytes(),
            &variables("DEL", "one", &pod.path()),
        );
        node.assert_clean();
        assert_confined(&node);
    }
}

/// The plugin works with a state file of some content: DEL succeeds, and what
/// is damaged does not keep ADD from it.
fn with_state(node: &Node, content: &[u8]) {
    let mut configuration = node.configuration("routed");
    configuration["cni.dev/valid-attachments"] = json!([]);
    let input = configuration.to_string();
    let folder = node.state.path().join("pods");
    let key = ipam::Attachment::new("one", "eth0").key();
    for file in [
        format!("pods/attachments/{key}.json"),
        "pods/attachments/x.json".to_owned(),
        "pods/releasing/x.json".to_owned(),
        "pods/10.200.1.2.json".to_owned(),
        "pods/released".to_owned(),
        "pods/new".to_owned(),
        "node.json".to_owned(),
    ] {
        let pod = Pod::new("one");
        let _ = fs::remove_dir_all(&folder);
        for below in ["attachments", "releasing"] {
            fs::create_dir_all(folder.join(below)).unwrap();
        }
        fs::write(node.state.path().join(&file), content).unwrap();
        let call = |command: &str| {
            run(
                node,
                input.as_bytes(),
                &variables(command, "one", &pod.path()),
            )
        };
        assert!(call("ADD"), "ADD with {file}");
        assert!(call("DEL"), "DEL with {file}");
        call("CHECK");
        call("STATUS");
        call("GC");
        fs::write(node.state.path().join(&file), content).unwrap();
        assert!(call("DEL"), "DEL with {file}");
        let _ = node
            .namespace
            .run(|| podwire_cni::audit::reclaim(node.state.path()))
            .unwrap();
        assert_confined(node);
        let _ = fs::remove_file(node.state.path().join("node.json"));
    }
}

#[test]
fn the_corpus_of_state_files_keeps_nobody_from_work() {
    let node = node();
    for (path, content) in corpus("state") {
        println!("{}", path.display());
        with_state(&node, &content);
    }
}

#[test]
fn random_state_files_keep_nobody_from_work() {
    let node = node();
    let good = json!({"containerID": "one", "ifname": "eth0", "addresses": ["10.200.1.2"]});
    let good = good.to_string().into_bytes();
    let contents = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..200),
        // A good one with a byte changed.
        (0..good.len(), any::<u8>()).prop_map(move |(at, byte)| {
            let mut text = good.clone();
            text[at] = byte;
            text
        }),
    ];
    let mut runner = TestRunner::new(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(8)
    });
    runner
        .run(&contents, |content| {
            with_state(&node, &content);
            Ok(())
        })
        .unwrap();
}

#[test]
fn random_orders_get_answers_and_no_name_leads_out() {
    let node = node();
    let pod = Pod::new("one");
    let text = || {
        prop_oneof![
            Just("../../../../etc/passwd".to_owned()),
            Just("/".to_owned()),
            Just("..".to_owned()),
            Just(String::new()),
            Just("x".repeat(3000)),
            Just("one".to_owned()),
            "[^\u{0}]{0,20}",
        ]
    };
    let netns = prop_oneof![
        Just(String::new()),
        Just("/nowhere/at/all".to_owned()),
        Just("/etc/passwd".to_owned()),
        Just("/proc/self/ns/mnt".to_owned()),
        Just("/proc/self/ns/net".to_owned()),
        Just("/".to_owned()),
        Just(pod.path()),
    ];
    let key = prop_oneof![
        Just("name"),
        Just("attach"),
        Just("mtu"),
        Just("bridge"),
        Just("prevResult"),
        Just("runtimeConfig"),
        Just("args"),
        Just("dns"),
        Just("cniVersion"),
        Just("isolatePorts"),
        Just("proxyArp"),
        Just("cni.dev/valid-attachments"),
        Just("policySeconds"),
        Just("logLevel"),
    ];
    let value = prop_oneof![
        Just(Value::Null),
        any::<i64>().prop_map(Value::from),
        any::<bool>().prop_map(Value::from),
        "[ -~]{0,12}".prop_map(Value::from),
        Just(json!([])),
        Just(json!({})),
        Just(json!([{"containerID": "../x", "ifname": "y"}])),
        Just(json!({"ips": ["10.200.1.9", "::1"], "mac": "zz"})),
        Just(json!("../../x")),
    ];
    let orders = (
        prop_oneof![
            proptest::sample::select(&COMMANDS[..]).prop_map(str::to_owned),
            text()
        ],
        text(),
        text(),
        netns,
        text(),
        proptest::collection::vec((key, value), 0..3),
    );
    let mut runner = TestRunner::new(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(150)
    });
    let base = node.configuration("routed");
    runner
        .run(
            &orders,
            |(command, container, interface, netns, arguments, changes)| {
                let mut configuration = base.clone();
                for (key, value) in changes {
                    configuration[key] = value;
                }
                let variables = [
                    ("CNI_COMMAND", command),
                    ("CNI_CONTAINERID", container),
                    ("CNI_IFNAME", interface),
                    ("CNI_NETNS", netns),
                    ("CNI_ARGS", arguments),
                ];
                run(&node, configuration.to_string().as_bytes(), &variables);
                let stray: Vec<_> = fs::read_dir(node.state.path())
                    .unwrap()
                    .map(|entry| entry.unwrap().path())
                    .filter(|path| path.to_string_lossy().contains("passwd"))
                    .collect();
                prop_assert!(stray.is_empty(), "{stray:?}");
                Ok(())
            },
        )
        .unwrap();
}
