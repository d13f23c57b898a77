//! DEL takes reachability away at once and leaves the deletion of links to the
//! background, where nothing is used again too early and nothing is forgotten.
#![allow(clippy::unwrap_used, reason = "tests say what they expect with unwrap")]

mod common;

use std::fs::File;

use common::{Node, Pod, addresses, connect, eventually, ip, pings};
use rstest::rstest;
use serde_json::json;

/// Keeps the background from its work, as one that is at it does.
fn hold(node: &Node) -> File {
    let turn = File::create(node.state.path().join("reaper.lock")).unwrap();
    turn.lock().unwrap();
    turn
}

#[rstest]
#[case::bridge("bridge")]
#[case::routed("routed")]
fn a_deleted_pod_is_unreachable_before_its_link_goes_and_can_come_back_at_once(#[case] mode: &str) {
    let node = Node::new();
    let configuration = node.configuration(mode);
    let (one, two) = (Pod::new("one"), Pod::new("two"));
    let first = addresses(&node.call("ADD", &configuration, &one).ok());
    node.call("ADD", &configuration, &two).ok();
    let turn = hold(&node);
    node.call("DEL", &configuration, &one).ok();
    for address in &first {
        assert!(!pings(&two.namespace, *address));
        assert!(!pings(&node.namespace, *address));
    }
    let left = node.aside();
    assert_eq!(left.len(), 1);
    assert_eq!(left[0]["operstate"], "DOWN");
    for family in ["-4", "-6"] {
        let routes = ip(&node.namespace, &format!("{family} route show proto 112"));
        assert!(
            !routes.to_string().contains(&first[0].to_string()),
            "{routes}"
        );
    }
    // The same container and interface, in the namespace that still has the
    // other end of the old cable.
    let again = addresses(&node.call("ADD", &configuration, &one).ok());
    for (old, new) in first.iter().zip(&again) {
        assert_ne!(old, new, "an address whose link is there was given again");
        connect(&two.namespace, &one.namespace, *new);
    }
    assert_eq!(node.aside().len(), 1);
    drop(turn);
    node.call("DEL", &configuration, &one).ok();
    node.call("DEL", &configuration, &two).ok();
    node.assert_clean();
    let links = ip(&one.namespace, "link show");
    assert_eq!(links.as_array().unwrap().len(), 1, "{links}");
}

#[test]
fn the_only_address_is_given_again_as_soon_as_its_link_is_gone() {
    let node = Node::new();
    let mut configuration = node.configuration("routed");
    configuration["ipam"]["ranges"] = json!([
        [{"subnet": "10.200.1.0/24", "rangeStart": "10.200.1.9", "rangeEnd": "10.200.1.9"}],
    ]);
    let (one, two) = (Pod::new("one"), Pod::new("two"));
    let first = addresses(&node.call("ADD", &configuration, &one).ok());
    let turn = hold(&node);
    node.call("DEL", &configuration, &one).ok();
    let waiting = node.spawn(
        &configuration,
        &[
            ("CNI_COMMAND", "ADD"),
            ("CNI_CONTAINERID", "two"),
            ("CNI_NETNS", &two.path()),
            ("CNI_IFNAME", "eth0"),
        ],
    );
    assert_eq!(node.aside().len(), 1);
    drop(turn);
    assert_eq!(addresses(&common::finish(waiting).ok()), first);
    assert!(node.aside().is_empty());
}

#[test]
fn what_a_killed_process_left_is_deleted_by_the_next_one() {
    let node = Node::new();
    let mut configuration = node.configuration("bridge");
    let pods: Vec<_> = ["a", "b", "c"].map(Pod::new).into_iter().collect();
    for pod in &pods {
        node.call("ADD", &configuration, pod).ok();
    }
    // The background dies with its work undone.
    let turn = hold(&node);
    node.call("DEL", &configuration, &pods[0]).ok();
    node.call("DEL", &configuration, &pods[1]).ok();
    drop(turn);
    assert_eq!(node.aside().len(), 2);
    node.call("DEL", &configuration, &pods[2]).ok();
    node.assert_clean();

    // And by GC, which answers when all is gone.
    node.call("ADD", &configuration, &pods[0]).ok();
    let turn = hold(&node);
    node.call("DEL", &configuration, &pods[0]).ok();
    drop(turn);
    configuration["cni.dev/valid-attachments"] = json!([]);
    node.plugin(&configuration, &[("CNI_COMMAND", "GC")]).ok();
    assert!(node.aside().is_empty());
    node.assert_clean();
}

#[test]
fn many_links_are_deleted_by_one_process_that_looks_again() {
    let node = Node::new();
    let configuration = node.configuration("routed");
    let pods: Vec<_> = (0..20).map(|n| Pod::new(&format!("p{n}"))).collect();
    for pod in &pods {
        node.call("ADD", &configuration, pod).ok();
    }
    for pod in &pods {
        node.call("DEL", &configuration, pod).ok();
    }
    // The last ones came while the first were being deleted.
    node.assert_clean();
    eventually("every pod has lost its interface", || {
        let left: Vec<_> = pods
            .iter()
            .filter(|pod| ip(&pod.namespace, "link show").as_array().unwrap().len() > 1)
            .map(|pod| pod.id.clone())
            .collect();
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
}

#[test]
fn a_link_of_others_in_no_group_of_ours_stays() {
    let node = Node::new();
    let configuration = node.configuration("bridge");
    let mut socket = node.namespace.route_socket().unwrap();
    let other = linux::link::add_bridge(&linux::link::Bridge {
        name: "other0",
        ..linux::link::Bridge::default()
    });
    socket.execute(&other).unwrap();
    let pod = Pod::new("one");
    node.call("ADD", &configuration, &pod).ok();
    node.call("DEL", &configuration, &pod).ok();
    node.settle();
    assert!(node.links().contains(&"other0".to_owned()));
}
