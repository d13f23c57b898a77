//! Pods reach each other and their nodes with their own addresses.

use rstest::rstest;

use crate::support::{Lab, client, server, url};

/// Asks `path` of a server from a pod by the real curl.
fn ask(lab: &Lab, pod: &str, address: &str, path: &str) -> String {
    lab.exec(
        pod,
        &["curl", "-sS", "--max-time", "5", &url(address, 8080, path)],
    )
    .trim()
    .to_owned()
}

/// Two addresses in whatever form each is written.
fn same_address(one: &str, other: &str) -> bool {
    one.parse::<std::net::IpAddr>().ok() == other.parse().ok()
}

#[rstest]
#[case::bridge("bridge")]
#[case::routed("routed")]
fn a_pod_sees_the_senders_own_address_from_its_node_and_from_another(#[case] attach: &str) {
    let lab = Lab::up(
        &["--nodes", "2", "--attach", attach],
        &[
            client("near", "node-1"),
            client("far", "node-2"),
            server("server", "server", "node-1"),
        ]
        .concat(),
    );
    let addresses = lab.pod_addresses("server");
    assert_eq!(
        addresses.len(),
        2,
        "a pod has one address of each family: {addresses:?}"
    );

    for (family, address) in addresses.iter().enumerate() {
        for pod in ["near", "far"] {
            let sender = &lab.pod_addresses(pod)[family];
            let seen = ask(&lab, pod, address, "/clientip");
            assert!(
                same_address(&seen, sender),
                "{pod} is {sender}, {address} sees {seen}"
            );
        }
        // The node to its pod, and to a pod of another node: its own address, no NAT.
        for node in ["node-1", "node-2"] {
            lab.node(
                node,
                &[
                    "curl",
                    "-sS",
                    "--max-time",
                    "5",
                    &url(address, 8080, "/hostname"),
                ],
            );
        }
        // The other node's address is what the pod sees of it.
        let sender = &lab.node_addresses("node-2")[family];
        let seen = lab.node(
            "node-2",
            &[
                "curl",
                "-sS",
                "--max-time",
                "5",
                &url(address, 8080, "/clientip"),
            ],
        );
        assert!(
            same_address(seen.trim(), sender),
            "node-2 is {sender}, the pod sees {seen}"
        );
        // A pod to its own node and to another.
        for node in ["node-1", "node-2"] {
            let node_address = &lab.node_addresses(node)[family];
            lab.exec("near", &["ping", "-c", "1", "-W", "2", node_address]);
        }
    }
}

#[test]
fn a_lab_of_one_family_has_only_that_family() {
    for (family, sign) in [("v4", '.'), ("v6", ':')] {
        let lab = Lab::up(
            &["--nodes", "2", "--family", family],
            &[
                client("client", "node-1"),
                server("server", "server", "node-2"),
            ]
            .concat(),
        );
        let addresses = lab.pod_addresses("server");
        assert_eq!(addresses.len(), 1, "{family}: {addresses:?}");
        assert!(addresses[0].contains(sign), "{family}: {addresses:?}");
        assert_eq!(ask(&lab, "client", &addresses[0], "/hostname"), "server");
    }
}
