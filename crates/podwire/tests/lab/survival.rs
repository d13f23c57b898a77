//! Any part may die; the rest goes on, and the part takes up where it was.

use std::{
    process::{Command, Stdio},
    time::Duration,
};

use crate::support::{Lab, PODWIRE, client, eventually, server, service, success, url};

const CLUSTER_IP: &str = "10.96.0.20";

/// Kills a part of a node with SIGKILL, as soon as it runs; its number before.
pub(crate) fn kill_on_node(lab: &Lab, node: &str, part: &str) -> String {
    let command = format!("{FIND} kill -9 $pid && echo $pid");
    eventually(&format!("{part} to kill"), Duration::from_secs(20), || {
        let killed = lab.node_output(node, &["sh", "-c", &command, "sh", part]);
        if killed.status.success() {
            Ok(String::from_utf8_lossy(&killed.stdout).trim().to_owned())
        } else {
            Err(format!("{killed:?}"))
        }
    })
}

/// The number of a part of a node, by its first argument.
const FIND: &str = "pid=; for p in /proc/[0-9]*; do \
    set -- \"$1\" $(tr '\\0' ' ' <$p/cmdline 2>/dev/null); \
    [ \"$3\" = \"$1\" ] && pid=${p#/proc/}; done; [ -n \"$pid\" ] || exit 9;";

/// Waits until a part of a node runs that is not the one of before.
pub(crate) fn runs_again(lab: &Lab, node: &str, part: &str, before: &str) {
    eventually(
        &format!("{part} runs again"),
        Duration::from_secs(20),
        || {
            let found = lab.node_output(
                node,
                &["sh", "-c", &format!("{FIND} echo $pid"), "sh", part],
            );
            let found = String::from_utf8_lossy(&found.stdout).trim().to_owned();
            if !found.is_empty() && found != before {
                Ok(())
            } else {
                Err(found)
            }
        },
    );
}

/// The number of the lab's control plane: the one process with this lab's
/// directory and the control plane among its arguments.
pub(crate) fn control_plane(lab: &Lab) -> i32 {
    let mark = format!("/{}", lab.name);
    std::fs::read_dir("/proc")
        .expect("/proc is mounted")
        .filter_map(Result::ok)
        .filter_map(|entry| entry.file_name().to_string_lossy().parse::<i32>().ok())
        .find(|pid| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let words: Vec<_> = line
                .split(|byte| *byte == 0)
                .map(String::from_utf8_lossy)
                .collect();
            words.get(1).is_some_and(|word| word == "control-plane")
                && words
                    .iter()
                    .any(|word| word.ends_with(&mark) || *word == lab.name)
        })
        .expect("the control plane runs")
}

/// Waits until each node's agent holds the table that spares pods of a bridge settings
/// of their own.
fn guards_are_held(lab: &Lab) {
    for node in ["node-1", "node-2"] {
        eventually("the agent holds its table", Duration::from_secs(20), || {
            let table = ["nft", "list", "table", "bridge", "podwire_bridge"];
            let listed = crate::support::printed(&lab.node_output(node, &table));
            if listed.contains("flags owner") {
                Ok(())
            } else {
                Err(format!("{node}: {listed}"))
            }
        });
    }
}

fn two_nodes() -> Lab {
    Lab::up(
        &["--nodes", "2"],
        &[
            service("shop", CLUSTER_IP),
            server("shop-1", "shop", "node-1"),
            client("client", "node-2"),
        ]
        .concat(),
    )
}

fn answers(lab: &Lab, address: &str) {
    let answer = lab.exec(
        "client",
        &[
            "curl",
            "-sS",
            "--max-time",
            "5",
            &url(address, 80, "/hostname"),
        ],
    );
    assert_eq!(answer.trim(), "shop-1");
}

#[test]
fn a_killed_agent_is_replaced_and_adopts_what_it_finds() {
    let lab = two_nodes();
    guards_are_held(&lab);
    let stop = format!(
        "n=0; while [ $n -lt 50 ]; do curl -sS -o /dev/null --max-time 2 http://{CLUSTER_IP}/ \
         || exit 1; sleep 0.05; n=$((n+1)); done; echo $n"
    );
    let steady = Command::new(PODWIRE)
        .args([
            "lab", "exec", "--name", &lab.name, "client", "--", "sh", "-c", &stop,
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("podwire was built by cargo for this test");
    // One connection, past all Services: it takes the fast path where there is one.
    let [shop, ..] = &lab.pod_addresses("shop-1")[..] else {
        panic!("it has an address");
    };
    let urls = url(shop, 8080, "/hostname?[1-60]");
    let long = Command::new(PODWIRE)
        .args(["lab", "exec", "--name", &lab.name, "client", "--"])
        .args(["curl", "-sS", "-o", "/dev/null", "--rate", "20/s"])
        .args(["-w", "%{num_connects}", &urls])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("podwire was built by cargo for this test");
    for node in ["node-1", "node-2"] {
        let before = kill_on_node(&lab, node, "agent");
        runs_again(&lab, node, "agent", &before);
    }
    let [steady, long] =
        [steady, long].map(|traffic| traffic.wait_with_output().expect("the traffic ends"));
    assert_eq!(success("traffic while agents die", &steady).trim(), "50");
    let connects = success("a connection while agents die", &long);
    assert_eq!(connects, format!("1{}", "0".repeat(59)));

    // The new agents do their work.
    guards_are_held(&lab);
    lab.apply(&client("spared", "node-1"));
    lab.kubectl(&[
        "wait",
        "--for=condition=Ready",
        "pod/spared",
        "--timeout=30s",
    ]);
    // The plugin knows that they hold it, and leaves the kernel's defaults.
    let heeds = ["cat", "/proc/sys/net/ipv6/conf/eth0/accept_ra"];
    assert_eq!(lab.exec("spared", &heeds).trim(), "1");
    lab.apply(&service("late", "10.96.0.21").replace("app: late", "app: shop"));
    eventually(
        "a Service made after the restart answers",
        Duration::from_secs(10),
        || {
            let output = lab.exec_output(
                "client",
                &[
                    "curl",
                    "-sS",
                    "--max-time",
                    "2",
                    "http://10.96.0.21/hostname",
                ],
            );
            if output.status.success() {
                Ok(())
            } else {
                Err(crate::support::printed(&output))
            }
        },
    );
}

#[test]
fn a_killed_kubelet_leaves_its_pods_alone_and_takes_them_up_again() {
    let lab = two_nodes();
    let before = lab.get(&["pod", "shop-1"]);
    let number = kill_on_node(&lab, "node-1", "kubelet");
    runs_again(&lab, "node-1", "kubelet", &number);
    for address in lab.cluster_ips("shop") {
        answers(&lab, &address);
    }
    // It takes orders again.
    lab.apply(&client("late", "node-1"));
    lab.kubectl(&["wait", "--for=condition=Ready", "pod/late", "--timeout=30s"]);
    let after = lab.get(&["pod", "shop-1"]);
    for field in ["containerID", "restartCount"] {
        assert_eq!(
            before["status"]["containerStatuses"][0][field],
            after["status"]["containerStatuses"][0][field],
            "{field}"
        );
    }
    assert_eq!(before["status"]["podIPs"], after["status"]["podIPs"]);
    // What it adopted it can also end.
    lab.kubectl(&["delete", "pod", "shop-1", "--timeout=30s"]);
}

#[test]
fn a_killed_control_plane_goes_on_from_its_store() {
    let lab = two_nodes();
    lab.kubectl(&["create", "configmap", "kept", "--from-literal=a=1"]);
    let uid = lab.get(&["configmap", "kept"])["metadata"]["uid"].clone();
    let pid = control_plane(&lab);
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(pid).expect("a process has a number"),
        rustix::process::Signal::KILL,
    )
    .expect("the control plane still runs");

    // The data plane does not need it.
    answers(&lab, CLUSTER_IP);
    eventually("the API answers again", Duration::from_secs(20), || {
        let output = lab.kubectl_output(&["get", "configmap", "kept", "-o", "name"]);
        if output.status.success() {
            Ok(())
        } else {
            Err(crate::support::printed(&output))
        }
    });
    assert_eq!(lab.get(&["configmap", "kept"])["metadata"]["uid"], uid);
    // Watches have been taken up: a new pod is scheduled, started and served.
    lab.apply(&server("shop-2", "shop", "node-2"));
    lab.kubectl(&[
        "wait",
        "--for=condition=Ready",
        "pod/shop-2",
        "--timeout=60s",
    ]);
    eventually("both endpoints answer", Duration::from_secs(10), || {
        let seen = lab.exec(
            "client",
            &[
                "curl",
                "-sS",
                "--max-time",
                "10",
                "-H",
                "Connection: close",
                &format!("http://{CLUSTER_IP}/hostname?n=[1-30]"),
            ],
        );
        if seen.contains("shop-1") && seen.contains("shop-2") {
            Ok(())
        } else {
            Err(seen)
        }
    });
}
