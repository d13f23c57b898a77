//! The commands that look after a node's CNI plugin and addresses, run as
//! programs: what they print, and their exit codes.
#![allow(clippy::unwrap_used, reason = "tests say what they expect with unwrap")]

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use ipam::{Attachment, Claim, Pod, Range, RangeSet, Store};
use serde_json::{Value, json};

fn podwire(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_podwire"))
        .args(arguments)
        .output()
        .unwrap()
}

#[track_caller]
fn success(arguments: &[&str]) -> String {
    let output = podwire(arguments);
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Reserves an address of each family for a pod that has no interface.
fn reserve(root: &Path) {
    let ranges = json!([[{"subnet": "10.200.1.0/24"}], [{"subnet": "fd00:200::/64"}]]);
    let ranges: Vec<Vec<Range>> = serde_json::from_value(ranges).unwrap();
    let claim = Claim {
        attachment: Attachment::new("gone", "eth0"),
        pod: Some(Pod {
            namespace: "shop".to_owned(),
            name: "web-0".to_owned(),
            uid: String::new(),
        }),
        wanted: Vec::new(),
        apart: false,
        notes: HashMap::new(),
    };
    let store = Store::new(root, "pods").unwrap();
    store
        .reserve(&claim, &RangeSet::all(&ranges).unwrap())
        .unwrap();
}

#[test]
fn ipam_lists_reservations_and_its_check_fails_when_one_leaks() {
    let root = tempfile::tempdir().unwrap();
    let state = root.path().to_str().unwrap();
    assert_eq!(
        success(&["ipam", "show", "--state-dir", state])
            .lines()
            .count(),
        1
    );
    reserve(root.path());

    let text = success(&["ipam", "show", "--state-dir", state]);
    for word in [
        "10.200.1.2",
        "fd00:200::2",
        "shop/web-0",
        "leaked: no interface",
    ] {
        assert!(text.contains(word), "{word}: {text}");
    }
    let json = success(&["ipam", "show", "--state-dir", state, "-o", "json"]);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["reservations"][0]["state"], "no-interface");

    let output = podwire(&["ipam", "check", "--state-dir", state]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("1 of 1 reservations leak"), "{text}");
}

#[test]
fn ipam_of_a_node_that_is_in_no_lab_is_refused() {
    let output = podwire(&["ipam", "show", "--lab", "no-such-lab", "--node", "n1"]);
    assert!(!output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("no-such-lab"), "{text}");
    // One without the other says nothing.
    let output = podwire(&["ipam", "show", "--node", "n1"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}

#[test]
fn the_plugin_is_installed_with_its_list_and_uninstalled_without_a_trace() {
    let root = tempfile::tempdir().unwrap();
    let path = |name: &str| root.path().join(name).display().to_string();
    let (plugin, dest, conf) = (path("podwire-cni"), path("bin"), path("net.d"));
    fs::write(&plugin, "plugin").unwrap();
    let text = success(&[
        "install",
        "cni",
        "--plugin",
        &plugin,
        "--dest",
        &dest,
        "--conf-dir",
        &conf,
    ]);
    assert!(text.contains("installed"), "{text}");
    assert_eq!(fs::read(path("bin/podwire-cni")).unwrap(), b"plugin");
    let list = fs::read_to_string(path("net.d/10-podwire.conflist")).unwrap();
    let list: Value = serde_json::from_str(&list).unwrap();
    assert_eq!(list["plugins"][0]["type"], "podwire-cni");

    success(&["uninstall", "cni", "--dest", &dest, "--conf-dir", &conf]);
    for folder in [&dest, &conf] {
        assert_eq!(fs::read_dir(folder).unwrap().count(), 0, "{folder}");
    }

    // A list of somebody else's that sorts first.
    fs::write(path("net.d/05-other.conflist"), "{}").unwrap();
    let output = podwire(&[
        "install",
        "cni",
        "--plugin",
        &plugin,
        "--dest",
        &dest,
        "--conf-dir",
        &conf,
    ]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("05-other.conflist"), "{text}");
}

#[test]
fn the_schema_of_the_plugins_configuration_is_printed() {
    let schema: Value = serde_json::from_str(&success(&["config", "schema", "--cni"])).unwrap();
    assert_eq!(schema["type"], "object");
    for key in ["attach", "ipam", "mtu"] {
        assert!(schema["properties"][key].is_object(), "{key}: {schema}");
    }
    assert_eq!(podwire(&["config", "schema"]).status.code(), Some(2));
}
