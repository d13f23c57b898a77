//! Containers of a pod: one network, lives of their own.

use std::{
    process::{Command, Stdio},
    time::Duration,
};

use crate::support::{Lab, PODWIRE, eventually, url};

const TWO_CONTAINERS: &str = "---
apiVersion: v1
kind: Pod
metadata: {name: pair}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: server
    image: podwire.dev/toolbox
    ports: [{containerPort: 8080}]
    readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}
  - name: other
    image: 'host:'
    command: [sh, -c, 'trap ''exit 3'' TERM; sleep infinity & wait']
---
apiVersion: v1
kind: Pod
metadata: {name: caller}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: shell, image: 'host:', command: [sleep, infinity]}
";

#[test]
fn containers_of_a_pod_talk_over_localhost_and_one_outlives_the_others_crash() {
    let lab = Lab::up(&["--nodes", "1"], TWO_CONTAINERS);
    let in_other = |command: &[&str]| {
        let mut all = vec![
            "lab", "exec", "--name", &lab.name, "pair", "-c", "other", "--",
        ];
        all.extend(command);
        crate::support::output(PODWIRE, &all)
    };

    for host in ["127.0.0.1", "::1"] {
        let answer = in_other(&[
            "curl",
            "-sS",
            "--max-time",
            "5",
            &url(host, 8080, "/hostname"),
        ]);
        let answer = crate::support::success(host, &answer);
        assert_eq!(
            answer.trim(),
            "pair",
            "containers share the pod's host name"
        );
    }
    // File systems of their own.
    assert!(in_other(&["touch", "/tmp/mine"]).status.success());
    let seen = crate::support::output(
        PODWIRE,
        &[
            "lab",
            "exec",
            "--name",
            &lab.name,
            "pair",
            "-c",
            "server",
            "--",
            "cat",
            "/tmp/mine",
        ],
    );
    assert!(!seen.status.success(), "a container sees another's files");

    // A long answer from the server to another pod, while the other container crashes.
    let before = lab.get(&["pod", "pair"]);
    let address = &lab.pod_addresses("pair")[0];
    let download = Command::new(PODWIRE)
        .args(["lab", "exec", "--name", &lab.name, "caller", "--"])
        .args([
            "curl",
            "-sS",
            "--limit-rate",
            "40k",
            "-o",
            "/dev/null",
            "-w",
            "%{size_download}",
        ])
        .arg(url(address, 8080, "/bytes?n=400000"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("podwire was built by cargo for this test");
    in_other(&["sh", "-c", "kill -TERM 1"]);

    let after = eventually(
        "the crashed container runs again",
        Duration::from_secs(30),
        || {
            let pod = lab.get(&["pod", "pair"]);
            let statuses = pod["status"]["containerStatuses"]
                .as_array()
                .cloned()
                .unwrap_or_default();
            let other = statuses
                .iter()
                .find(|status| status["name"] == "other")
                .cloned();
            match other {
                Some(other)
                    if other["restartCount"].as_u64() >= Some(1)
                        && other["state"]["running"].is_object() =>
                {
                    Ok(pod)
                }
                other => Err(format!("{other:?}")),
            }
        },
    );
    assert_eq!(
        before["status"]["podIPs"], after["status"]["podIPs"],
        "the pod keeps its addresses"
    );
    let server = after["status"]["containerStatuses"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|status| status["name"] == "server")
        .cloned();
    assert_eq!(
        server.map(|status| status["restartCount"].clone()),
        Some(0.into()),
        "the other container is left alone"
    );
    let download = download.wait_with_output().expect("the download ends");
    let size = crate::support::success("the open connection", &download);
    assert_eq!(
        size.trim(),
        "400000",
        "the open connection lives through the crash"
    );
}
