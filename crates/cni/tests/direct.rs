//! A cable between exactly two pods: the attach mode `direct`.
#![allow(clippy::unwrap_used, reason = "tests say what they expect with unwrap")]

mod common;

use common::{Node, Pod, addresses, connect, eventually, ip};
use serde_json::{Value, json};

fn configuration(node: &Node, pair: &str) -> Value {
    let mut configuration = node.configuration("direct");
    configuration["pair"] = json!(pair);
    configuration
}

fn interfaces(pod: &Pod) -> Vec<String> {
    let links = ip(&pod.namespace, "link show");
    let links = links.as_array().unwrap().iter();
    links
        .map(|link| link["ifname"].as_str().unwrap().to_owned())
        .filter(|name| name != "lo")
        .collect()
}

#[test]
fn two_pods_share_a_cable_and_a_third_is_refused() {
    let node = Node::new();
    let pair = configuration(&node, "one");
    let [left, right, third] = ["left", "right", "third"].map(Pod::new);
    let first = node.call("ADD", &pair, &left).ok();
    // Half a cable: the other end waits.
    assert_eq!(node.links().len(), 1);
    assert_eq!(first["ips"][0]["gateway"], Value::Null);
    let second = node.call("ADD", &pair, &right).ok();
    assert_eq!(node.links(), Vec::<String>::new());
    for (near, far) in addresses(&first).into_iter().zip(addresses(&second)) {
        assert_eq!(connect(&left.namespace, &right.namespace, far), near);
        assert_eq!(connect(&right.namespace, &left.namespace, near), far);
    }
    let mut check = pair.clone();
    check["prevResult"] = first;
    node.call("CHECK", &check, &left).ok();
    let outcome = node.call("ADD", &pair, &third);
    assert_eq!(outcome.code(), 11);
    let message = outcome.stdout["msg"].as_str().unwrap();
    assert!(
        message.contains("shop/left") && message.contains("shop/right"),
        "{message}"
    );
    // Another pair is another cable.
    node.call("ADD", &configuration(&node, "two"), &third).ok();
    assert_eq!(interfaces(&left), ["eth0"]);

    for pod in [&left, &right, &third] {
        node.call("DEL", &pair, pod).ok();
        node.call("DEL", &pair, pod).ok();
    }
    node.assert_clean();
    eventually("no pod has an interface", || {
        let found = [&left, &right, &third].map(interfaces).concat();
        if found.is_empty() { Ok(()) } else { Err(found) }
    });
}

#[test]
fn the_pod_that_stays_is_joined_by_the_next() {
    let node = Node::new();
    let pair = configuration(&node, "one");
    let [left, right, next] = ["left", "right", "next"].map(Pod::new);
    node.call("ADD", &pair, &left).ok();
    let stays = addresses(&node.call("ADD", &pair, &right).ok());
    node.call("DEL", &pair, &left).ok();
    node.call("DEL", &pair, &left).ok();
    assert_eq!(interfaces(&left), Vec::<String>::new());
    assert_eq!(interfaces(&right), ["eth0"]);
    let comes = addresses(&node.call("ADD", &pair, &next).ok());
    for (near, far) in stays.iter().zip(&comes) {
        assert_eq!(connect(&right.namespace, &next.namespace, *far), *near);
    }
    // The kernel deletes the cable with the namespace of an end.
    drop(next);
    eventually("the other end is gone", || match interfaces(&right) {
        left if left.is_empty() => Ok(()),
        left => Err(left),
    });
    node.plugin(
        &pair,
        &[
            ("CNI_COMMAND", "DEL"),
            ("CNI_CONTAINERID", "next"),
            ("CNI_IFNAME", "eth0"),
        ],
    )
    .ok();
    let mut collect = pair.clone();
    collect["cni.dev/valid-attachments"] = json!([]);
    node.plugin(&collect, &[("CNI_COMMAND", "GC")]).ok();
    node.assert_clean();
}

#[test]
fn a_cable_without_a_name_is_refused() {
    let node = Node::new();
    let pod = Pod::new("one");
    assert_eq!(
        node.call("ADD", &node.configuration("direct"), &pod).code(),
        7
    );
    let outcome = node.call("ADD", &configuration(&node, "../x"), &pod);
    assert_eq!(outcome.code(), 7);
    node.assert_clean();
}
