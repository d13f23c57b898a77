//! The HostPort conformance row: three pods with one port number, told apart by
//! address and protocol, called from a pod on the host's network.

use std::time::Duration;

use crate::support::{Lab, PODWIRE, eventually, printed, url};

const PORT: u16 = 54323;

/// A pod with a port of its node.
fn pod(name: &str, host_ip: &str, protocol: &str) -> String {
    format!(
        "---
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  nodeName: node-1
  terminationGracePeriodSeconds: 0
  containers:
  - name: server
    image: podwire.dev/toolbox
    args: [serve, --http, '8080', --udp, '8081']
    ports:
    - containerPort: {port}
      hostPort: {PORT}
      hostIP: '{host_ip}'
      protocol: {protocol}
    readinessProbe: {{httpGet: {{path: /healthz, port: 8080}}, periodSeconds: 1}}
",
        port = if protocol == "UDP" { 8081 } else { 8080 },
    )
}

const HOST: &str = "---
apiVersion: v1
kind: Pod
metadata: {name: host}
spec:
  nodeName: node-1
  hostNetwork: true
  terminationGracePeriodSeconds: 0
  containers:
  - {name: shell, image: 'host:', command: [sleep, infinity]}
";

/// Waits until the pod of this name answers.
fn answers(lab: &Lab, pod: &str, command: &[&str]) {
    let what = format!("{pod} answers {command:?}");
    eventually(&what, Duration::from_secs(60), || {
        let output = lab.exec_output("host", command);
        match String::from_utf8_lossy(&output.stdout).contains(pod) {
            true => Ok(()),
            false => Err(printed(&output)),
        }
    });
}

#[test]
fn one_port_number_serves_three_pods_by_address_and_protocol() {
    let lab = Lab::up(&["--nodes", "1"], HOST);
    let nodes = lab.node_addresses("node-1");
    for (node, loopback) in nodes.iter().zip(["127.0.0.1", "::1"]) {
        let pods = [
            pod("pod1", loopback, "TCP"),
            pod("pod2", node, "TCP"),
            pod("pod3", node, "UDP"),
        ];
        lab.apply(&pods.concat());
        lab.kubectl(&[
            "wait",
            "--for=condition=Ready",
            "--timeout=120s",
            "pod/pod1",
            "pod/pod2",
            "pod/pod3",
        ]);
        let local = url(loopback, PORT, "/hostname");
        let from_node = [
            "curl",
            "-sS",
            "--max-time",
            "5",
            "--interface",
            node,
            &local,
        ];
        answers(&lab, "pod1", &from_node);
        if loopback == "127.0.0.1" {
            // Beyond what conformance asks: with a loopback address as source.
            answers(&lab, "pod1", &["curl", "-sS", "--max-time", "5", &local]);
        }
        let own = url(node, PORT, "/hostname");
        answers(&lab, "pod2", &["curl", "-sS", "--max-time", "5", &own]);
        let to = match node.contains(':') {
            true => format!("[{node}]:{PORT}"),
            false => format!("{node}:{PORT}"),
        };
        answers(&lab, "pod3", &[PODWIRE, "toolbox", "connect", "udp", &to]);
        lab.kubectl(&["delete", "pod", "pod1", "pod2", "pod3", "--wait"]);
    }
}
