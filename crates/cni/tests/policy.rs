//! ADD waits until the agent says that the pod's policies are in force, where
//! the configuration says so: an agent that is there, late, slow, gone, or
//! something else altogether.
#![allow(clippy::unwrap_used, reason = "tests say what they expect with unwrap")]

mod common;

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use common::{Node, Pod, assert_pings, finish};
use rstest::rstest;
use serde_json::{Value, json};

const IN_FORCE: &str = "{\"version\":1,\"inForce\":true}\n";

/// A node whose ADD asks an agent, and has `seconds` to wait for it.
fn node(seconds: u32) -> (Node, Value, PathBuf) {
    let node = Node::new();
    let path = node.state.path().join("cni.sock");
    let mut configuration = node.configuration("routed");
    configuration["policySocket"] = json!(path);
    configuration["policySeconds"] = json!(seconds);
    (node, configuration, path)
}

fn question(stream: &UnixStream) -> Value {
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    serde_json::from_str(&line).unwrap()
}

fn spawn(node: &Node, configuration: &Value, pod: &Pod) -> std::process::Child {
    node.spawn(
        configuration,
        &[
            ("CNI_COMMAND", "ADD"),
            ("CNI_CONTAINERID", &pod.id),
            ("CNI_NETNS", &pod.path()),
            ("CNI_IFNAME", "eth0"),
            ("CNI_ARGS", "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0"),
        ],
    )
}

#[test]
fn no_packet_passes_before_the_agent_says_so() {
    let (node, configuration, path) = node(60);
    let listener = UnixListener::bind(&path).unwrap();
    let pod = Pod::new("one");
    let add = spawn(&node, &configuration, &pod);
    let (mut stream, _) = listener.accept().unwrap();
    let asked = question(&stream);
    assert_eq!(asked["version"], 1);
    assert_eq!(asked["pod"]["name"], "web-0");
    assert_eq!(asked["containerID"], "one");
    assert_eq!(asked["addresses"], json!(["10.200.1.2", "fd00:200:0:1::2"]));
    // Nothing of the pod is attached yet.
    assert_eq!(node.links(), Vec::<String>::new());
    stream.write_all(IN_FORCE.as_bytes()).unwrap();
    let result = finish(add).ok();
    assert_eq!(node.links(), [asked["hostInterface"].as_str().unwrap()]);
    for address in common::addresses(&result) {
        assert_pings(&node.namespace, address);
    }
    // DEL asks nobody.
    drop(listener);
    node.call("DEL", &configuration, &pod).ok();
    node.assert_clean();
}

#[test]
fn an_agent_that_starts_or_is_replaced_meanwhile_is_waited_for() {
    let (node, configuration, path) = node(60);
    let pod = Pod::new("one");
    let add = spawn(&node, &configuration, &pod);
    let listener = UnixListener::bind(&path).unwrap();
    // Killed with the question in its hands.
    let (stream, _) = listener.accept().unwrap();
    question(&stream);
    drop(listener);
    drop(stream);
    std::fs::remove_file(&path).unwrap();
    let listener = UnixListener::bind(&path).unwrap();
    let (mut stream, _) = listener.accept().unwrap();
    question(&stream);
    // In two parts, as sockets may deliver it.
    let (one, other) = IN_FORCE.split_at(9);
    stream.write_all(one.as_bytes()).unwrap();
    stream.write_all(other.as_bytes()).unwrap();
    finish(add).ok();
    node.call("DEL", &configuration, &pod).ok();
    node.assert_clean();
}

#[rstest]
#[case::absent(false)]
#[case::silent(true)]
fn past_the_deadline_add_says_try_again_and_leaves_nothing(#[case] listens: bool) {
    let (node, configuration, path) = node(1);
    let listener = listens.then(|| UnixListener::bind(&path).unwrap());
    let pod = Pod::new("one");
    let outcome = finish(spawn(&node, &configuration, &pod));
    assert_eq!(outcome.code(), 11);
    let message = outcome.stdout["msg"].as_str().unwrap();
    let words = if listens {
        "within 1 s"
    } else {
        "start podwire agent"
    };
    assert!(message.contains(words), "{message}");
    drop(listener);
    node.assert_clean();
    assert_eq!(
        node.plugin(&configuration, &[("CNI_COMMAND", "STATUS")])
            .code(),
        50
    );
}

#[rstest]
#[case("garbage\n")]
#[case("no line's end")]
#[case("{\"version\":2,\"inForce\":true}\n")]
#[case("{\"version\":1,\"inForce\":false}\n")]
#[case("{\"version\":1,\"error\":\"policy shop/web is wrong\"}\n")]
#[case("\u{0}\u{0}\n")]
fn an_answer_that_is_no_yes_fails_at_once_and_leaves_nothing(#[case] answer: &str) {
    let (node, configuration, path) = node(60);
    let listener = UnixListener::bind(&path).unwrap();
    let pod = Pod::new("one");
    let add = spawn(&node, &configuration, &pod);
    let (mut stream, _) = listener.accept().unwrap();
    question(&stream);
    stream.write_all(answer.as_bytes()).unwrap();
    drop(stream);
    let outcome = finish(add);
    assert_eq!(outcome.code(), 50, "{outcome:?}");
    if answer.contains("shop/web") {
        assert!(
            outcome.stderr.contains("policy shop/web is wrong"),
            "{outcome:?}"
        );
    }
    node.assert_clean();
}

#[test]
fn an_endless_answer_ends() {
    let (node, configuration, path) = node(60);
    let listener = UnixListener::bind(&path).unwrap();
    let pod = Pod::new("one");
    let add = spawn(&node, &configuration, &pod);
    let (mut stream, _) = listener.accept().unwrap();
    let writer = std::thread::spawn(move || while stream.write_all(&[b'x'; 4096]).is_ok() {});
    assert_eq!(finish(add).code(), 50);
    writer.join().unwrap();
    node.assert_clean();
}
