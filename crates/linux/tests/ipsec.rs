//! Policies of IPsec as `ip xfrm` makes them. Needs root.
#![allow(clippy::unwrap_used, reason = "tests say what they expect with unwrap")]

use std::process::Command;

use podwire_linux::ipsec::{self, Changes};
use podwire_linux::namespace::NetworkNamespace;

fn xfrm(namespace: &NetworkNamespace, arguments: &str) {
    let output = namespace.run(|| {
        Command::new("ip")
            .arg("xfrm")
            .args(arguments.split_whitespace())
            .output()
            .unwrap()
    });
    let output = output.unwrap();
    assert!(output.status.success(), "{arguments}: {output:?}");
}

#[test]
fn policies_about_forwarded_packets_are_listed_and_each_change_is_told() {
    let namespace = NetworkNamespace::create().unwrap();
    let (mut socket, mut changes) = namespace
        .run(|| (ipsec::open().unwrap(), Changes::open().unwrap()))
        .map(|(socket, changes)| (socket.unwrap(), changes.unwrap()))
        .unwrap();
    let mut list = || -> Vec<String> {
        let found = ipsec::list(&mut socket).unwrap();
        found.iter().map(ToString::to_string).collect()
    };
    assert!(list().is_empty());
    assert!(!changes.any().unwrap());
    let tunnel = "tmpl src 192.0.2.1 dst 192.0.2.2 proto esp mode tunnel";
    for (dir, template, from, to) in [
        ("out", tunnel, "10.1.0.0/16", "10.2.0.0/16"),
        ("fwd", tunnel, "fd00:2::/64", "fd00:1::/64"),
        ("in", tunnel, "10.2.0.0/16", "10.1.0.0/16"),
        ("out", "", "10.1.0.0/16", "10.3.0.0/16"),
    ] {
        let policy = format!("policy add src {from} dst {to} dir {dir} {template}");
        xfrm(&namespace, &policy);
        assert!(changes.any().unwrap(), "{policy}");
    }
    assert_eq!(
        list(),
        [
            "IPsec policy out from 10.1.0.0/16 to 10.2.0.0/16",
            "IPsec policy fwd from fd00:2::/64 to fd00:1::/64",
        ]
    );
    for (change, left) in [
        ("policy delete src 10.1.0.0/16 dst 10.2.0.0/16 dir out", 1),
        ("policy flush", 0),
        // In both families.
        ("policy setdefault fwd block", 2),
        ("policy setdefault fwd accept", 0),
    ] {
        xfrm(&namespace, change);
        assert!(changes.any().unwrap(), "{change}");
        assert_eq!(list().len(), left, "{change}");
    }
    assert!(!changes.any().unwrap());
}
