//! Nodes join and leave while traffic runs.

use std::{
    process::{Command, Stdio},
    time::Duration,
};

use crate::support::{Lab, PODWIRE, client, eventually, output, server, service, success, url};

#[test]
fn a_node_joins_and_leaves_while_traffic_runs() {
    let lab = Lab::up(
        &["--nodes", "2"],
        &[
            service("shop", "10.96.0.20"),
            server("shop-1", "shop", "node-1"),
            client("one", "node-1"),
            client("two", "node-2"),
        ]
        .concat(),
    );
    let steady_target = lab.pod_addresses("shop-1")[0].clone();
    // Ten requests a second from the other node, all through what follows.
    let steady = Command::new(PODWIRE)
        .args(["lab", "exec", "--name", &lab.name, "two", "--", "sh", "-c"])
        .arg(format!(
            "n=0; while [ $n -lt 80 ]; do curl -sS -o /dev/null --max-time 2 {} || exit 1; \
             sleep 0.1; n=$((n+1)); done; echo $n",
            url(&steady_target, 8080, "/hostname")
        ))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("podwire was built by cargo for this test");

    success(
        "node add",
        &output(PODWIRE, &["lab", "node", "add", "--name", &lab.name]),
    );
    lab.apply(
        &[
            client("three", "node-3"),
            server("shop-3", "shop", "node-3"),
        ]
        .concat(),
    );
    lab.kubectl(&[
        "wait",
        "--for=condition=Ready",
        "pod/three",
        "pod/shop-3",
        "--timeout=60s",
    ]);
    for address in lab.pod_addresses("shop-3") {
        for pod in ["one", "two", "three"] {
            let answer = lab.exec(
                pod,
                &[
                    "curl",
                    "-sS",
                    "--max-time",
                    "5",
                    &url(&address, 8080, "/hostname"),
                ],
            );
            assert_eq!(answer.trim(), "shop-3", "{pod} → {address}");
        }
    }
    for address in lab.pod_addresses("shop-1") {
        lab.exec(
            "three",
            &[
                "curl",
                "-sS",
                "--max-time",
                "5",
                &url(&address, 8080, "/hostname"),
            ],
        );
    }
    let ranges: Vec<String> = lab.get(&["node", "node-3"])["spec"]["podCIDRs"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|range| range.as_str().map(str::to_owned))
        .collect();
    assert_eq!(ranges.len(), 2, "a range of each family: {ranges:?}");

    success(
        "node remove",
        &output(
            PODWIRE,
            &["lab", "node", "remove", "--name", &lab.name, "node-3"],
        ),
    );
    eventually(
        "the node's routes, pods and endpoints are gone",
        Duration::from_secs(15),
        || {
            for node in ["node-1", "node-2"] {
                for family in ["-4", "-6"] {
                    let routes = lab.node(node, &["ip", family, "route", "show"]);
                    if let Some(left) = ranges.iter().find(|range| routes.contains(range.as_str()))
                    {
                        return Err(format!("{node} still has a route to {left}"));
                    }
                }
            }
            let pods = lab.kubectl(&["get", "pods", "-o", "wide"]);
            if pods.contains("node-3") {
                return Err(pods);
            }
            let slices = lab.kubectl(&["get", "endpointslices", "-o", "yaml"]);
            if slices.contains("shop-3") {
                return Err(slices);
            }
            Ok(())
        },
    );
    let answer = lab.exec(
        "two",
        &[
            "curl",
            "-sS",
            "--max-time",
            "5",
            "http://10.96.0.20/hostname",
        ],
    );
    assert_eq!(answer.trim(), "shop-1");
    let steady = steady.wait_with_output().expect("the steady traffic ends");
    assert_eq!(
        success("the steady traffic", &steady).trim(),
        "80",
        "not one request failed"
    );
}
