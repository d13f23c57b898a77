//! Endpoints come and go; new connections follow within a second.

use std::{collections::BTreeSet, time::Duration};

use serde_json::Value;

use crate::support::{Lab, client, eventually, printed, service, url};

const CLUSTER_IP: &str = "10.96.0.20";

fn deployment(replicas: u32) -> String {
    format!(
        "---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: shop}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: shop}}}}
  template:
    metadata: {{labels: {{app: shop}}}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: http
        image: podwire.dev/toolbox
        ports: [{{containerPort: 8080}}]
        readinessProbe: {{httpGet: {{path: /ready, port: 8080}}, periodSeconds: 1, failureThreshold: 1}}
"
    )
}

/// The names of the pods of the shop that are ready.
fn ready_pods(lab: &Lab) -> BTreeSet<String> {
    lab.get(&["pods", "-l", "app=shop"])["items"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null())
        .filter(|pod| {
            pod["status"]["conditions"]
                .as_array()
                .into_iter()
                .flatten()
                .any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
        })
        .filter_map(|pod| pod["metadata"]["name"].as_str().map(str::to_owned))
        .collect()
}

/// Who answers 40 connections made one after another.
fn answering(lab: &Lab) -> Result<BTreeSet<String>, String> {
    let output = lab.exec_output(
        "client",
        &[
            "curl",
            "-sS",
            "--max-time",
            "10",
            "-H",
            "Connection: close",
            "-w",
            "\\n",
            &url(CLUSTER_IP, 80, "/hostname?n=[1-40]"),
        ],
    );
    if !output.status.success() {
        return Err(printed(&output));
    }
    Ok(String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(|line| line.trim().to_owned())
        .filter(|line| !line.is_empty())
        .collect())
}

/// Within two seconds exactly the ready pods answer.
fn exactly_the_ready_answer(lab: &Lab, when: &str, count: usize) {
    eventually(
        &format!("{when}: {count} pods ready"),
        Duration::from_secs(30),
        || {
            let ready = ready_pods(lab);
            if ready.len() == count {
                Ok(())
            } else {
                Err(format!("{ready:?}"))
            }
        },
    );
    eventually(
        &format!("{when}: the ready pods answer"),
        Duration::from_secs(2),
        || {
            let (ready, answering) = (ready_pods(lab), answering(lab)?);
            if ready == answering {
                Ok(())
            } else {
                Err(format!("{ready:?}, answering {answering:?}"))
            }
        },
    );
}

#[test]
fn new_connections_go_to_ready_endpoints_only() {
    let lab = Lab::up(
        &["--nodes", "2"],
        &[
            service("shop", CLUSTER_IP),
            deployment(2),
            client("client", "node-1"),
        ]
        .concat(),
    );
    exactly_the_ready_answer(&lab, "at first", 2);

    lab.kubectl(&["scale", "deployment/shop", "--replicas=4"]);
    exactly_the_ready_answer(&lab, "scaled up", 4);

    lab.kubectl(&["scale", "deployment/shop", "--replicas=2"]);
    exactly_the_ready_answer(&lab, "scaled down", 2);

    // One of them says it is not ready: only the other is asked.
    let names: Vec<String> = ready_pods(&lab).into_iter().collect();
    let unready = &names[0];
    let address = &lab.pod_addresses(unready)[0];
    lab.exec(
        "client",
        &[
            "curl",
            "-sS",
            "-X",
            "POST",
            &url(address, 8080, "/ready?ok=false"),
        ],
    );
    exactly_the_ready_answer(&lab, "one not ready", 1);
    lab.exec(
        "client",
        &[
            "curl",
            "-sS",
            "-X",
            "POST",
            &url(address, 8080, "/ready?ok=true"),
        ],
    );
    exactly_the_ready_answer(&lab, "ready again", 2);

    // A crash: restarted, and asked again.
    lab.exec_output(
        "client",
        &[
            "curl",
            "-sS",
            "-m",
            "2",
            &url(address, 8080, "/exit?code=3"),
        ],
    );
    eventually("the crash is counted", Duration::from_secs(20), || {
        let pod = lab.get(&["pod", unready]);
        let count = pod["status"]["containerStatuses"][0]["restartCount"].as_u64();
        if count >= Some(1) {
            Ok(())
        } else {
            Err(format!("{count:?}"))
        }
    });
    exactly_the_ready_answer(&lab, "after a crash", 2);

    // None left: refused at once, not timed out.
    lab.kubectl(&["scale", "deployment/shop", "--replicas=0"]);
    eventually("no endpoint is left", Duration::from_secs(20), || {
        let slices = lab.get(&["endpointslices", "-l", "kubernetes.io/service-name=shop"]);
        let left: Vec<Value> = slices["items"]
            .as_array()
            .into_iter()
            .flatten()
            .flat_map(|slice| slice["endpoints"].as_array().cloned().unwrap_or_default())
            .collect();
        if left.is_empty() {
            Ok(())
        } else {
            Err(format!("{left:?}"))
        }
    });
    for address in lab.cluster_ips("shop") {
        eventually(
            "a Service without endpoints refuses",
            Duration::from_secs(2),
            || {
                let output = lab.exec_output(
                    "client",
                    &[
                        "curl",
                        "-sS",
                        "-o",
                        "/dev/null",
                        "-w",
                        "%{time_total}",
                        "--max-time",
                        "5",
                        &url(&address, 80, "/"),
                    ],
                );
                // 7: the connection was refused.
                if output.status.code() == Some(7) {
                    Ok(())
                } else {
                    Err(printed(&output))
                }
            },
        );
    }
}
