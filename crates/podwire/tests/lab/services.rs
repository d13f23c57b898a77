//! A Service reaches all its endpoints from everywhere.

use std::collections::BTreeMap;

use rstest::rstest;

use crate::support::{Lab, PODWIRE, client, server, service, url};

const CLUSTER_IP: &str = "10.96.0.20";

/// Who answered how often, over `count` connections opened one after another
/// by the real curl in a pod.
fn tally(lab: &Lab, pod: &str, url: &str, count: u32) -> BTreeMap<String, u32> {
    // One curl process, one connection an answer.
    let range = format!("{url}?n=[1-{count}]");
    let answers = lab.exec(
        pod,
        &[
            "curl",
            "-sS",
            "--max-time",
            "60",
            "-H",
            "Connection: close",
            "-w",
            "\\n",
            &range,
        ],
    );
    let mut tally = BTreeMap::new();
    for answer in answers
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
    {
        *tally.entry(answer.to_owned()).or_default() += 1;
    }
    tally
}

#[rstest]
#[case::bridge("bridge")]
#[case::routed("routed")]
fn both_endpoints_get_their_share_from_a_third_node_from_theirs_and_from_one_of_themselves(
    #[case] attach: &str,
) {
    let lab = Lab::up(
        &["--nodes", "3", "--attach", attach],
        &[
            service("shop", CLUSTER_IP),
            server("shop-1", "shop", "node-1"),
            // The second endpoint has the machine's own tools, to ask from.
            server("shop-2", "shop", "node-2")
                .replace("podwire.dev/toolbox", "'host:'")
                .replace(
                    "    ports:",
                    &format!("    command: [{}, toolbox, serve]\n    ports:", PODWIRE),
                ),
            client("third", "node-3"),
            client("beside", "node-1"),
        ]
        .concat(),
    );
    let addresses = lab.cluster_ips("shop");
    assert_eq!(
        addresses.len(),
        2,
        "one cluster address of each family: {addresses:?}"
    );
    for address in &addresses {
        for from in ["third", "beside", "shop-2"] {
            let tally = tally(&lab, from, &url(address, 80, "/hostname"), 200);
            assert_eq!(
                tally.values().sum::<u32>(),
                200,
                "{from} → {address}: {tally:?}"
            );
            for endpoint in ["shop-1", "shop-2"] {
                let share = tally.get(endpoint).copied().unwrap_or(0);
                // Fewer than 60 of 200 fair draws: less than one run in ten million.
                assert!(
                    share >= 60,
                    "{from} → {address}: {endpoint} got {share} of 200"
                );
            }
        }
    }
}

#[rstest]
#[case::bridge("bridge")]
#[case::routed("routed")]
fn a_node_port_answers_on_every_node_from_the_outside_and_from_pods(#[case] attach: &str) {
    let lab = Lab::up(
        &["--nodes", "2", "--attach", attach],
        &[
            service("shop", CLUSTER_IP)
                .replace("  selector:", "  type: NodePort\n  selector:")
                .replace("targetPort: 8080", "targetPort: 8080, nodePort: 30080"),
            server("shop-1", "shop", "node-1"),
            client("client", "node-2"),
        ]
        .concat(),
    );
    for node in ["node-1", "node-2"] {
        for address in lab.node_addresses(node) {
            let target = url(&address, 30080, "/hostname");
            let from_pod = lab.exec("client", &["curl", "-sS", "--max-time", "5", &target]);
            assert_eq!(from_pod.trim(), "shop-1", "{target}");
            let from_node = lab.node("node-2", &["curl", "-sS", "--max-time", "5", &target]);
            assert_eq!(from_node.trim(), "shop-1", "{target}");
            let from_outside = lab.node("outside", &["curl", "-sS", "--max-time", "5", &target]);
            assert_eq!(from_outside.trim(), "shop-1", "{target}");
        }
    }
}

#[test]
fn a_node_itself_reaches_a_cluster_address() {
    let lab = Lab::up(
        &["--nodes", "2"],
        &[
            service("shop", CLUSTER_IP),
            server("shop-1", "shop", "node-1"),
        ]
        .concat(),
    );
    for address in lab.cluster_ips("shop") {
        for node in ["node-1", "node-2"] {
            let answer = lab.node(
                node,
                &[
                    "curl",
                    "-sS",
                    "--max-time",
                    "5",
                    &url(&address, 80, "/hostname"),
                ],
            );
            assert_eq!(answer.trim(), "shop-1", "{node} → {address}");
        }
    }
}
