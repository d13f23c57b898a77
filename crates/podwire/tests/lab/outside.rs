//! What leaves the cluster, and what never does.

use std::{
    process::{Command, Stdio},
    time::Duration,
};

use rstest::rstest;

use crate::support::{Lab, client, eventually, url};

const OUTSIDE: [&str; 2] = ["203.0.113.10", "2001:db8:113::10"];

#[rstest]
#[case::bridge("bridge")]
#[case::routed("routed")]
fn the_outside_sees_the_nodes_address(#[case] attach: &str) {
    let lab = Lab::up(
        &["--nodes", "2", "--attach", attach],
        &[client("one", "node-1"), client("two", "node-2")].concat(),
    );
    for (pod, node) in [("one", "node-1"), ("two", "node-2")] {
        for (address, node_address) in OUTSIDE.iter().zip(lab.node_addresses(node)) {
            let seen = lab.exec(
                pod,
                &[
                    "curl",
                    "-sS",
                    "--max-time",
                    "5",
                    &url(address, 8080, "/clientip"),
                ],
            );
            assert_eq!(
                seen.trim().parse::<std::net::IpAddr>().ok(),
                node_address.parse().ok(),
                "{pod} on {node} asks {address}"
            );
        }
    }
}

#[test]
fn not_one_packet_of_a_closed_lab_is_seen_on_the_machines_interfaces() {
    let ranges = "net 10.200.0.0/16 or net 10.96.0.0/12 or net 192.168.64.0/24 \
                  or net 203.0.113.0/24 or net 198.51.100.0/24 \
                  or net fd00:200::/48 or net fd00:96::/112 or net fd00:64::/64 \
                  or net 2001:db8::/32";
    let capture = std::env::temp_dir().join(format!("podwire-closed-{}.pcap", std::process::id()));
    let mut tcpdump = Command::new("tcpdump")
        .args(["-i", "any", "-n", "-U", "--immediate-mode", "-w"])
        .arg(&capture)
        .arg(ranges)
        .stderr(Stdio::piped())
        .spawn()
        .expect("tcpdump is installed by cargo xtask test");
    // Its file has a header as soon as it listens.
    eventually(
        "tcpdump listens",
        Duration::from_secs(10),
        || match std::fs::metadata(&capture) {
            Ok(file) if file.len() >= 24 => Ok(()),
            other => Err(format!("{other:?}")),
        },
    );

    let lab = Lab::up(
        &["--nodes", "2"],
        &[client("one", "node-1"), client("two", "node-2")].concat(),
    );
    for address in lab.pod_addresses("two") {
        lab.exec("one", &["ping", "-c", "3", "-i", "0.2", &address]);
    }
    for address in OUTSIDE {
        lab.exec(
            "one",
            &[
                "curl",
                "-sS",
                "--max-time",
                "5",
                &url(address, 8080, "/hostname"),
            ],
        );
    }
    // Addresses that exist nowhere in the lab: refused or lost inside it.
    for address in ["198.51.100.1", "2001:db8:ffff::1"] {
        let lost = lab.exec_output(
            "one",
            &["curl", "-sS", "--max-time", "1", &url(address, 80, "/")],
        );
        assert!(!lost.status.success(), "{address} must not be reachable");
    }
    drop(lab);

    rustix::process::kill_process(
        rustix::process::Pid::from_child(&tcpdump),
        rustix::process::Signal::INT,
    )
    .expect("tcpdump still runs");
    tcpdump.wait().expect("tcpdump ends");
    let seen = crate::support::success(
        "tcpdump reads its capture",
        &crate::support::output("tcpdump", &["-n", "-r", &capture.to_string_lossy()]),
    );
    std::fs::remove_file(&capture).ok();
    assert_eq!(seen, "", "packets of the lab on the machine's interfaces");
}
