//! Limits of what a pod receives and sends: the capability `bandwidth`.
#![allow(clippy::unwrap_used, reason = "tests say what they expect with unwrap")]

mod common;

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use common::{Node, Pod, addresses};
use linux::namespace::NetworkNamespace;
use rstest::rstest;
use serde_json::{Value, json};

fn limited(mut configuration: Value, bandwidth: Value) -> Value {
    configuration["runtimeConfig"] = json!({"bandwidth": bandwidth});
    configuration
}

/// What `tc -j` says of the node.
fn tc(node: &Node, arguments: &str) -> Value {
    let output = node
        .namespace
        .run(|| {
            Command::new("tc")
                .arg("-j")
                .args(arguments.split_whitespace())
                .output()
                .unwrap()
        })
        .unwrap();
    assert!(output.status.success(), "tc {arguments}: {output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Sends so many bytes; how long they took.
fn transfer(from: &NetworkNamespace, to: &NetworkNamespace, at: IpAddr, bytes: usize) -> Duration {
    let listener = to
        .run(|| TcpListener::bind(SocketAddr::new(at, 0)).unwrap())
        .unwrap();
    let target = listener.local_addr().unwrap();
    let mut stream = from.run(|| TcpStream::connect(target).unwrap()).unwrap();
    let start = Instant::now();
    let sender = std::thread::spawn(move || {
        stream.write_all(&vec![0; bytes]).unwrap();
    });
    let mut received = Vec::new();
    listener
        .accept()
        .unwrap()
        .0
        .read_to_end(&mut received)
        .unwrap();
    sender.join().unwrap();
    assert_eq!(received.len(), bytes);
    start.elapsed()
}

#[rstest]
#[case::bridge("bridge")]
#[case::routed("routed")]
fn a_pod_receives_and_sends_no_faster_than_its_limits(#[case] mode: &str) {
    let node = Node::new();
    let plain = node.configuration(mode);
    // A megabyte and half a megabyte a second.
    let configuration = limited(
        plain.clone(),
        json!({"ingressRate": 8_000_000, "ingressBurst": 400_000,
               "egressRate": 4_000_000, "egressBurst": 400_000}),
    );
    let (slow, fast) = (Pod::new("slow"), Pod::new("fast"));
    let own = addresses(&node.call("ADD", &configuration, &slow).ok());
    let other = addresses(&node.call("ADD", &plain, &fast).ok());
    for (own, other) in own.iter().zip(&other) {
        // Less than the rate allows, never more: a busy machine only slows down.
        let received = transfer(&fast.namespace, &slow.namespace, *own, 1_000_000);
        assert!(received > Duration::from_millis(800), "{received:?}");
        let sent = transfer(&slow.namespace, &fast.namespace, *other, 500_000);
        assert!(sent > Duration::from_millis(750), "{sent:?}");
    }

    let mut check = configuration.clone();
    check["prevResult"] = json!({
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "eth0", "sandbox": slow.path()}],
        "ips": own.iter().map(|ip| {
            let length = match (mode, ip) {
                ("bridge", IpAddr::V4(_)) => 24,
                ("bridge", IpAddr::V6(_)) => 64,
                (_, IpAddr::V4(_)) => 32,
                (_, IpAddr::V6(_)) => 128,
            };
            json!({"address": format!("{ip}/{length}"), "interface": 0})
        }).collect::<Vec<_>>(),
    });
    node.call("CHECK", &check, &slow).ok();
    let buckets: Vec<_> = tc(&node, "qdisc show")
        .as_array()
        .unwrap()
        .iter()
        .filter(|qdisc| qdisc["kind"] == "tbf")
        .cloned()
        .collect();
    assert_eq!(buckets.len(), 2, "{buckets:?}");
    for bucket in &buckets {
        let rate = bucket["options"]["rate"].as_u64().unwrap();
        let device = bucket["dev"].as_str().unwrap();
        let wanted = if device.starts_with("pwi") {
            500_000
        } else {
            1_000_000
        };
        assert_eq!(rate, wanted, "{bucket}");
        assert_eq!(bucket["options"]["burst"], 50_000, "{bucket}");
    }

    // CHECK finds a limit that is gone.
    let queue = node
        .links()
        .into_iter()
        .find(|l| l.starts_with("pwi"))
        .unwrap();
    // Nobody speaks IP on it: no addresses and no routes, which each pod would add to.
    for what in ["address", "route"] {
        let shown = common::ip(&node.namespace, &format!("-6 {what} show dev {queue}"));
        assert!(!shown.to_string().contains("fe80"), "{shown}");
    }
    node.namespace
        .run(|| {
            let status = Command::new("tc")
                .args(["qdisc", "del", "dev", &queue, "root"])
                .status();
            assert!(status.unwrap().success());
        })
        .unwrap();
    let outcome = node.call("CHECK", &check, &slow);
    assert_eq!(outcome.code(), 103);
    assert!(outcome.stdout["msg"].as_str().unwrap().contains("4000000"));
    node.call("DEL", &plain, &slow).ok();
    node.call("DEL", &plain, &fast).ok();
    node.assert_clean();
}

#[test]
fn gc_removes_the_queues_of_a_pod() {
    let node = Node::new();
    let mut configuration = limited(
        node.configuration("routed"),
        json!({"egressRate": 1_000_000}),
    );
    let pod = Pod::new("one");
    node.call("ADD", &configuration, &pod).ok();
    assert_eq!(node.links().len(), 2);
    configuration["cni.dev/valid-attachments"] = json!([]);
    node.plugin(&configuration, &[("CNI_COMMAND", "GC")]).ok();
    assert_eq!(node.links(), Vec::<String>::new());
    // What an ADD that died left is in nobody's way.
    node.call("ADD", &configuration, &pod).ok();
}

#[rstest]
#[case("routed", json!({"ingressRate": 8, "ingressBurst": 99_999_999_999_u64}), 7, "4 GiB")]
#[case("routed", json!({"egressRate": 5}), 7, "less than a byte")]
#[case("routed", json!({"egressBurst": 5}), 7, "needs egressRate")]
#[case("macvlan", json!({"ingressRate": 8000}), 2, "bandwidth")]
fn limits_that_cannot_be_kept_are_refused_with_the_reason(
    #[case] mode: &str,
    #[case] bandwidth: Value,
    #[case] code: u64,
    #[case] words: &str,
) {
    let node = Node::new();
    let mut configuration = limited(node.configuration(mode), bandwidth);
    configuration["master"] = json!("lo");
    let outcome = node.call("ADD", &configuration, &Pod::new("one"));
    assert_eq!(outcome.code(), code);
    let message = outcome.stdout["msg"].as_str().unwrap();
    assert!(message.contains(words), "{message}");
    node.assert_clean();
}
