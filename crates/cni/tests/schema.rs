//! The schema that `podwire config schema --cni` prints is of the
//! configurations there are.
#![allow(clippy::unwrap_used, reason = "tests say what they expect with unwrap")]

use podwire_cni::configuration::{AttachMode, schema};
use podwire_cni::install::ConfigList;
use serde_json::{Value, json};

fn problems(configuration: &Value) -> Vec<String> {
    let validator = jsonschema::validator_for(&schema()).unwrap();
    validator
        .iter_errors(configuration)
        .map(|error| format!("{}: {error}", error.instance_path()))
        .collect()
}

/// Configurations in the documentation: indented blocks that are JSON.
fn documented() -> Vec<Value> {
    let text = include_str!("../README.md");
    let mut found = Vec::new();
    let mut block = String::new();
    for line in text.lines().chain([""]) {
        if let Some(code) = line.strip_prefix("    ") {
            block.push_str(code);
        } else {
            found.extend(serde_json::from_str(&block).ok());
            block.clear();
        }
    }
    found
}

#[test]
fn it_accepts_the_examples_and_what_podwire_writes_itself() {
    let documented = documented();
    assert!(!documented.is_empty());
    for example in documented {
        assert_eq!(problems(&example), Vec::<String>::new(), "{example}");
    }
    let list = ConfigList {
        attach: Some(AttachMode::Bridge),
        proxy_arp: true,
        mtu: Some(1450),
        ranges: vec!["10.200.1.0/24".parse().unwrap()],
    };
    for list in [list, ConfigList::default()] {
        let list: Value = serde_json::from_str(&list.text()).unwrap();
        let mut plugin = list["plugins"][0].clone();
        // A runtime copies these from the list.
        plugin["name"] = list["name"].clone();
        plugin["cniVersion"] = list["cniVersion"].clone();
        assert_eq!(problems(&plugin), Vec::<String>::new(), "{plugin}");
    }
    let full = json!({
        "cniVersion": "0.4.0", "name": "n.1_a-b", "type": "podwire-cni", "attach": "macvlan",
        "master": "eth0", "mode": "private", "mtu": 1400, "bridge": "br0", "isolatePorts": true, "proxyArp": false,
        "dns": {"nameservers": ["10.0.0.10"]}, "unknown": 1,
        "ipam": {
            "type": "host-local", "dataDir": "/run/x",
            "ranges": [[{"subnet": "10.0.0.0/24", "rangeStart": "10.0.0.9", "rangeEnd": "10.0.0.19",
                         "gateway": "10.0.0.1", "exclusions": ["10.0.0.10", "10.0.0.12/30"]}]],
            "routes": [{"dst": "192.0.2.0/24"}, {"dst": "198.51.100.0/24", "gw": "10.0.0.3"}],
        },
        "runtimeConfig": {"ips": ["10.0.0.9/24"], "mac": "0a:00:00:00:00:01"},
        "args": {"cni": {"ips": ["10.0.0.9"]}},
    });
    assert_eq!(problems(&full), Vec::<String>::new());
}

#[test]
fn it_refuses_what_the_plugin_refuses() {
    let good = json!({"cniVersion": "1.1.0", "name": "pods", "type": "podwire-cni"});
    assert_eq!(problems(&good), Vec::<String>::new());
    for (key, value) in [
        ("cniVersion", json!("7.0.0")),
        ("name", json!("../up")),
        ("attach", json!("teleport")),
        ("mtu", json!("big")),
        ("mtu", json!(70000)),
        ("bridge", json!("much-too-long-a-name")),
        ("mode", json!("vepa")),
        ("ipam", json!({"ranges": [[{"rangeStart": "10.0.0.9"}]]})),
        ("ipam", json!({"ranges": [{"subnet": "10.0.0.0/24"}]})),
    ] {
        let mut bad = good.clone();
        bad[key] = value;
        assert!(!problems(&bad).is_empty(), "{bad}");
    }
    let mut nameless = good;
    nameless.as_object_mut().unwrap().remove("name");
    assert!(!problems(&nameless).is_empty());
}
