//! A full disk and a read-only state directory: a clear error, nothing half
//! done, and DEL works as soon and as far as it can.
#![allow(clippy::unwrap_used, reason = "tests say what they expect with unwrap")]

mod common;

use std::path::Path;

use common::{Node, Pod, assert_pings};
use linux::{mount, process};
use rstest::rstest;
use serde_json::{Value, json};

/// A node whose state directory is a file system of its own, mounted for this
/// test's thread and its children only.
fn node(options: &str, mode: &str) -> (Node, Value) {
    let node = Node::new();
    process::unshare_mounts().unwrap();
    mount::make_private(Path::new("/")).unwrap();
    let state = node.state.path();
    mount::tmpfs(state, options).unwrap();
    let mut configuration = node.configuration(mode);
    configuration["logFile"] = json!("");
    (node, configuration)
}

fn interfaces(pod: &Pod) -> usize {
    let links = common::ip(&pod.namespace, "link show");
    links.as_array().unwrap().len()
}

#[rstest]
#[case::bridge("bridge")]
#[case::routed("routed")]
fn on_a_full_disk_add_fails_whole_and_del_works(#[case] mode: &str) {
    let mut failures = 0;
    // Room for no, one, two, … files and folders.
    for inodes in 2.. {
        let (node, configuration) = node(&format!("size=64k,nr_inodes={inodes}"), mode);
        let pod = Pod::new("one");
        let outcome = node.call("ADD", &configuration, &pod);
        let added = outcome.success;
        if added {
            for address in common::addresses(&outcome.stdout) {
                assert_pings(&node.namespace, address);
            }
        } else {
            assert_eq!(outcome.code(), 5, "{outcome:?}");
            let message = outcome.stdout["msg"].as_str().unwrap();
            assert!(message.contains("No space left on device"), "{message}");
            assert_eq!(interfaces(&pod), 1);
            node.assert_clean();
            failures += 1;
        }
        node.call("DEL", &configuration, &pod).ok();
        node.assert_clean();
        mount::unmount(node.state.path(), true).unwrap();
        if added {
            break;
        }
    }
    assert!(failures > 3, "{failures}");
}

#[test]
fn with_no_room_for_a_byte_add_fails_whole_and_what_is_there_can_go() {
    let (node, configuration) = node("size=64k", "routed");
    let (one, two) = (Pod::new("one"), Pod::new("two"));
    node.call("ADD", &configuration, &one).ok();
    let filler = node.state.path().join("filler");
    std::fs::write(&filler, vec![0; 64 * 1024]).unwrap_err();
    let outcome = node.call("ADD", &configuration, &two);
    assert_eq!(outcome.code(), 5, "{outcome:?}");
    assert_eq!(interfaces(&two), 1);
    assert_eq!(node.reservations().len(), 2);
    node.call("DEL", &configuration, &two).ok();
    node.call("DEL", &configuration, &one).ok();
    node.assert_clean();
    std::fs::remove_file(&filler).unwrap();
    node.call("ADD", &configuration, &two).ok();
    node.call("DEL", &configuration, &two).ok();
    node.assert_clean();
    mount::unmount(node.state.path(), true).unwrap();
}

#[test]
fn a_read_only_state_directory_is_named_and_nothing_is_made() {
    let (node, configuration) = node("", "routed");
    let pod = Pod::new("one");
    // Only a bind mount can be made read-only for a test alone.
    mount::bind(node.state.path(), node.state.path()).unwrap();
    mount::remount_read_only(node.state.path()).unwrap();
    let outcome = node.call("ADD", &configuration, &pod);
    assert_eq!(outcome.code(), 5, "{outcome:?}");
    let message = outcome.stdout["msg"].as_str().unwrap();
    assert!(message.contains("Read-only file system"), "{message}");
    assert!(
        message.contains(node.state.path().to_str().unwrap()),
        "{message}"
    );
    assert_eq!(interfaces(&pod), 1);
    node.call("DEL", &configuration, &pod).ok();
    node.assert_clean();
    mount::unmount(node.state.path(), true).unwrap();
    mount::unmount(node.state.path(), true).unwrap();
}
