//! Pods run by the kubelet: real containers, Debian's CNI plugins, a real API
//! server, each test in a node of its own.
#![allow(clippy::unwrap_used, reason = "tests say what they expect")]

mod node;

use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, Service};
use node::{condition, container, eventually, is_ready, nothing_is_left, phase, shell};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

#[test]
fn a_pod_runs_to_its_end_and_its_output_and_code_are_kept() {
    node::test(
        "a_pod_runs_to_its_end_and_its_output_and_code_are_kept",
        |node| async move {
            let spec = json!({"restartPolicy": "Never", "containers": [
                shell("a", "echo to stdout; echo to stderr >&2; exit 3"),
                shell("b", "hostname; grep -c : /proc/net/dev"),
            ]});
            node.run_pod("once", spec).await;
            let pod = node.wait("once", |pod| phase(pod) == "Failed").await;
            let ended = container(&pod, "a")
                .unwrap()
                .state
                .unwrap()
                .terminated
                .unwrap();
            assert_eq!(ended.exit_code, 3);
            assert_eq!(ended.reason.as_deref(), Some("Error"));
            let log = node.log(&pod, "a", 0);
            assert!(
                log.contains("to stdout\n") && log.contains("to stderr\n"),
                "{log}"
            );
            // Its own host name, and two links: lo and eth0.
            assert_eq!(node.log(&pod, "b", 0), "once\n2\n");
            node.delete("once", 1).await;
            nothing_is_left().await;
        },
    );
}

#[test]
fn a_ready_pod_has_addresses_of_both_families_and_conditions() {
    node::test(
        "a_ready_pod_has_addresses_of_both_families_and_conditions",
        |node| async move {
            node.run_pod("web", json!({"containers": [shell("a", "sleep 1000")]}))
                .await;
            let pod = node.ready("web").await;
            let status = pod.status.clone().unwrap();
            assert_eq!(status.phase.as_deref(), Some("Running"));
            assert_eq!(status.host_ip.as_deref(), Some("192.168.64.11"));
            let ips: Vec<String> = status
                .pod_ips
                .unwrap()
                .into_iter()
                .map(|ip| ip.ip)
                .collect();
            assert!(ips[0].starts_with("10.200.1."), "{ips:?}");
            assert!(ips[1].starts_with("fd00:200:0:1:"), "{ips:?}");
            for kind in [
                "PodReadyToStartContainers",
                "Initialized",
                "ContainersReady",
            ] {
                assert_eq!(condition(&pod, kind).as_deref(), Some("True"), "{kind}");
            }
            node.delete("web", 1).await;
            nothing_is_left().await;
        },
    );
}

#[test]
fn a_crash_leaves_the_address_and_the_other_containers_connections_alone() {
    node::test(
        "a_crash_leaves_the_address_and_the_other_containers_connections_alone",
        |node| async move {
            let spec = json!({"containers": [
                {"name": "server", "image": "podwire.dev/toolbox", "args": ["serve", "--tcp", "7000", "--http", "8080"]},
                // Each run first sees the other on localhost, then waits to be told to crash.
                shell("crasher", "until exec 3<>/dev/tcp/127.0.0.1/8080; do :; done 2>/dev/null; echo met; while [ ! -e /dev/shm/crash ]; do sleep 0.05; done; rm /dev/shm/crash; exit 7"),
            ]});
            let mut spec = spec;
            spec["containers"][1]["command"][0] = json!("/bin/bash");
            node.run_pod("pair", spec).await;
            let pod = node.ready("pair").await;
            let ip = pod.status.clone().unwrap().pod_ip.unwrap();
            let mut connection = TcpStream::connect((ip.as_str(), 7000)).await.unwrap();
            echo(&mut connection, "before").await;
            let uid = pod.metadata.uid.clone().unwrap();
            std::fs::write(format!("/var/lib/kubelet/pods/{uid}/shm/crash"), "").unwrap();
            let pod = node
                .wait("pair", |pod| {
                    is_ready(pod) && container(pod, "crasher").is_some_and(|c| c.restart_count == 1)
                })
                .await;
            echo(&mut connection, "after").await;
            assert_eq!(pod.status.clone().unwrap().pod_ip.unwrap(), ip);
            assert_eq!(container(&pod, "server").unwrap().restart_count, 0);
            let last = container(&pod, "crasher").unwrap().last_state.unwrap();
            assert_eq!(last.terminated.unwrap().exit_code, 7);
            eventually("the second run has not met the server", || {
                node.log(&pod, "crasher", 1).contains("met\n")
            })
            .await;
            // The second crash earns a delay, which is shown.
            std::fs::write(format!("/var/lib/kubelet/pods/{uid}/shm/crash"), "").unwrap();
            let waiting = node
                .wait("pair", |pod| {
                    let state = container(pod, "crasher").and_then(|c| c.state);
                    state
                        .and_then(|s| s.waiting)
                        .and_then(|w| w.reason)
                        .as_deref()
                        == Some("CrashLoopBackOff")
                })
                .await;
            assert!(!is_ready(&waiting));
            assert_eq!(phase(&waiting), "Running");
            node.delete("pair", 1).await;
            nothing_is_left().await;
        },
    );
}

async fn echo(connection: &mut TcpStream, word: &str) {
    connection
        .write_all(format!("{word}\n").as_bytes())
        .await
        .unwrap();
    let mut answer = vec![0; word.len() + 1];
    connection.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, format!("{word}\n").into_bytes());
}

#[test]
fn init_containers_run_in_order_and_sidecars_stay() {
    node::test(
        "init_containers_run_in_order_and_sidecars_stay",
        |node| async move {
            let work = |name: &str, script: &str| {
                let mut container = shell(name, script);
                container["volumeMounts"] = json!([{"name": "work", "mountPath": "/work"}]);
                container
            };
            let mut sidecar = work("side", "echo side >>/work/order; sleep 1000");
            sidecar["restartPolicy"] = json!("Always");
            sidecar["startupProbe"] =
                json!({"exec": {"command": ["test", "-s", "/work/order"]}, "periodSeconds": 1});
            let spec = json!({
                "volumes": [{"name": "work", "emptyDir": {}}],
                "initContainers": [
                    work("one", "sleep 0.3; echo one >>/work/order"),
                    sidecar,
                    // Fails once: it is run again before the pod goes on.
                    work("two", "echo two >>/work/order; [ $(grep -c two /work/order) = 2 ]"),
                ],
                "containers": [work("main", "echo main >>/work/order; cat /work/order; exit 0")],
                "restartPolicy": "OnFailure",
            });
            node.run_pod("ordered", spec).await;
            let pod = node.wait("ordered", |pod| phase(pod) == "Succeeded").await;
            assert_eq!(node.log(&pod, "main", 0), "one\nside\ntwo\ntwo\nmain\n");
            assert_eq!(container(&pod, "two").unwrap().restart_count, 1);
            node.delete("ordered", 1).await;
            nothing_is_left().await;
        },
    );
}

#[test]
fn a_killed_kubelet_finds_its_pods_again_undisturbed() {
    node::test(
        "a_killed_kubelet_finds_its_pods_again_undisturbed",
        |mut node| async move {
            node.run_pod("stays", json!({"containers": [
                {"name": "a", "image": "podwire.dev/toolbox", "args": ["serve", "--tcp", "7000"]},
                shell("b", "while [ ! -e /dev/shm/go ]; do sleep 0.05; done; exit 5"),
            ]})).await;
            let before = node.ready("stays").await;
            let ip = before.status.clone().unwrap().pod_ip.unwrap();
            let mut connection = TcpStream::connect((ip.as_str(), 7000)).await.unwrap();
            echo(&mut connection, "before").await;
            node.kill_kubelet();
            echo(&mut connection, "between").await;
            // One container ends while nobody looks.
            let uid = before.metadata.uid.clone().unwrap();
            std::fs::write(format!("/var/lib/kubelet/pods/{uid}/shm/go"), "").unwrap();
            eventually("the monitor has not noted the end", || {
                std::fs::exists(format!("/var/lib/podwire/containers/{uid}-b-0/exit.json")).unwrap()
            })
            .await;
            std::fs::remove_file(format!("/var/lib/kubelet/pods/{uid}/shm/go")).unwrap();
            node.start_kubelet();
            let after = node
                .wait("stays", |pod| {
                    is_ready(pod) && container(pod, "b").is_some_and(|c| c.restart_count == 1)
                })
                .await;
            echo(&mut connection, "after").await;
            let ended = container(&after, "b")
                .unwrap()
                .last_state
                .unwrap()
                .terminated
                .unwrap();
            assert_eq!(ended.exit_code, 5);
            assert_eq!(
                container(&after, "a").unwrap().container_id,
                container(&before, "a").unwrap().container_id
            );
            node.delete("stays", 1).await;
            nothing_is_left().await;
        },
    );
}

#[test]
fn pods_deleted_while_the_kubelet_was_away_are_cleaned_up() {
    node::test(
        "pods_deleted_while_the_kubelet_was_away_are_cleaned_up",
        |mut node| async move {
            node.run_pod("forced", json!({"containers": [shell("a", "sleep 1000")]}))
                .await;
            node.ready("forced").await;
            node.kill_kubelet();
            // Grace 0: the API forgets it at once.
            node.delete("forced", 0).await;
            node.start_kubelet();
            nothing_is_left().await;
        },
    );
}

#[test]
fn a_dead_pause_process_gets_the_pod_a_new_sandbox() {
    node::test(
        "a_dead_pause_process_gets_the_pod_a_new_sandbox",
        |node| async move {
            node.run_pod("again", json!({"containers": [shell("a", "sleep 1000")]}))
                .await;
            let before = node.ready("again").await;
            let uid = before.metadata.uid.clone().unwrap();
            let record = std::fs::read(format!("/var/lib/kubelet/pods/{uid}/pod.json")).unwrap();
            let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
            let pause = i32::try_from(record["sandbox"]["pause"]["pid"].as_i64().unwrap()).unwrap();
            rustix::process::kill_process(
                rustix::process::Pid::from_raw(pause).unwrap(),
                rustix::process::Signal::KILL,
            )
            .unwrap();
            let after = node
                .wait("again", |pod| {
                    is_ready(pod) && container(pod, "a").is_some_and(|c| c.restart_count == 1)
                })
                .await;
            assert!(after.status.unwrap().pod_ip.is_some());
            node.delete("again", 1).await;
            nothing_is_left().await;
        },
    );
}

#[test]
fn readiness_follows_its_probe_and_liveness_restarts() {
    node::test(
        "readiness_follows_its_probe_and_liveness_restarts",
        |node| async move {
            let spec = json!({"containers": [{
                "name": "web", "image": "podwire.dev/toolbox",
                "args": ["serve", "--http", "8080", "--ready-file", "/dev/shm/ready"],
                "ports": [{"name": "web", "containerPort": 8080}],
                "readinessProbe": {"exec": {"command": ["cat", "/dev/shm/ready"]}, "periodSeconds": 1, "failureThreshold": 1},
                "livenessProbe": {"tcpSocket": {"port": "web"}, "periodSeconds": 1},
            }, {
                "name": "live", "image": "host:", "command": ["sleep", "1000"],
                "livenessProbe": {"exec": {"command": ["test", "!", "-e", "/dev/shm/dead"]}, "periodSeconds": 1, "failureThreshold": 1, "terminationGracePeriodSeconds": 1},
            }]});
            node.run_pod("probed", spec).await;
            let pod = node
                .wait("probed", |pod| {
                    container(pod, "web").is_some_and(|c| c.started == Some(true))
                        && container(pod, "live").is_some_and(|c| c.ready)
                })
                .await;
            assert!(!container(&pod, "web").unwrap().ready);
            let shm = format!(
                "/var/lib/kubelet/pods/{}/shm",
                pod.metadata.uid.clone().unwrap()
            );
            std::fs::write(format!("{shm}/ready"), "").unwrap();
            node.ready("probed").await;
            std::fs::remove_file(format!("{shm}/ready")).unwrap();
            node.wait("probed", |pod| !is_ready(pod)).await;
            std::fs::write(format!("{shm}/dead"), "").unwrap();
            node.wait("probed", |pod| {
                container(pod, "live").is_some_and(|c| c.last_state.is_some())
            })
            .await;
            std::fs::remove_file(format!("{shm}/dead")).unwrap();
            node.wait("probed", |pod| {
                container(pod, "live").is_some_and(|c| c.restart_count >= 1 && c.ready)
            })
            .await;
            let events = node.events("probed").await;
            assert!(
                events
                    .iter()
                    .any(|e| e.starts_with("Unhealthy: Liveness probe failed")),
                "{events:?}"
            );
            assert!(
                events.iter().any(|e| e.contains("will be restarted")),
                "{events:?}"
            );
            node.delete("probed", 1).await;
            nothing_is_left().await;
        },
    );
}

#[test]
fn the_grace_lets_hooks_and_handlers_finish_and_then_ends() {
    node::test(
        "the_grace_lets_hooks_and_handlers_finish_and_then_ends",
        |node| async move {
            std::fs::create_dir("/run/out").unwrap();
            let mut polite = shell(
                "polite",
                "trap 'echo term >>/out/log; exit 0' TERM; while :; do sleep 0.05; done",
            );
            polite["volumeMounts"] = json!([{"name": "out", "mountPath": "/out"}]);
            polite["lifecycle"] = json!({
                "preStop": {"exec": {"command": ["/bin/sh", "-c", "echo stop >>/out/log"]}},
                "postStart": {"exec": {"command": ["/bin/sh", "-c", "echo start >>/out/log"]}},
            });
            let spec = json!({
                "volumes": [{"name": "out", "hostPath": {"path": "/run/out", "type": "Directory"}}],
                "containers": [polite, shell("stubborn", "trap '' TERM; while :; do sleep 0.05; done")],
            });
            node.run_pod("ends", spec).await;
            node.ready("ends").await;
            let begun = std::time::Instant::now();
            let deletion = kube::api::DeleteParams::default().grace_period(2);
            node.pods().delete("ends", &deletion).await.unwrap();
            // Unready once one of its containers has ended, while it is still there.
            let pod = node.wait("ends", |pod| !is_ready(pod)).await;
            assert!(pod.metadata.deletion_timestamp.is_some());
            node.gone("ends").await;
            assert!(begun.elapsed().as_millis() >= 1000, "{:?}", begun.elapsed());
            assert_eq!(
                std::fs::read_to_string("/run/out/log").unwrap(),
                "start\nstop\nterm\n"
            );
            nothing_is_left().await;
        },
    );
}

#[test]
fn variables_files_and_volumes_are_as_the_manifest_has_them() {
    node::test(
        "variables_files_and_volumes_are_as_the_manifest_has_them",
        |node| async move {
            let _: ConfigMap = node
                .create(
                    json!({"metadata": {"name": "conf"}, "data": {"key": "value", "other": "x"}}),
                )
                .await;
            let _: Secret = node
                .create(json!({"metadata": {"name": "sec"}, "stringData": {"password": "hush"}}))
                .await;
            let _: Service = node
                .create(json!({"metadata": {"name": "my-db"}, "spec": {"ports": [{"port": 5432}]}}))
                .await;
            let script = "echo $KEY $PASSWORD $POD_IP $MY_DB_SERVICE_PORT $KUBERNETES_SERVICE_PORT; cat /conf/key /sec/pw; echo; stat -Lc %a /sec/pw; id -u; id -G; cat /etc/resolv.conf; grep vars /etc/hosts; cat /sub/file; touch /ro 2>&1 | grep -o 'Read-only file system'; df /mem | tail -1 | cut -d' ' -f1; grep CapEff /proc/self/status; echo done >/dev/termination-log; exit 1";
            let mut main = shell("main", script);
            main["env"] = json!([
                {"name": "KEY", "valueFrom": {"configMapKeyRef": {"name": "conf", "key": "key"}}},
                {"name": "PASSWORD", "valueFrom": {"secretKeyRef": {"name": "sec", "key": "password"}}},
                {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            ]);
            main["volumeMounts"] = json!([
                {"name": "conf", "mountPath": "/conf"},
                {"name": "sec", "mountPath": "/sec"},
                {"name": "mem", "mountPath": "/mem"},
                {"name": "conf", "mountPath": "/sub/file", "subPath": "other"},
            ]);
            main["securityContext"] =
                json!({"readOnlyRootFilesystem": true, "runAsUser": 1000, "runAsGroup": 1001});
            let spec = json!({
                "restartPolicy": "Never",
                "securityContext": {"fsGroup": 2000},
                "volumes": [
                    {"name": "conf", "configMap": {"name": "conf"}},
                    {"name": "sec", "secret": {"secretName": "sec", "items": [{"key": "password", "path": "pw"}], "defaultMode": 256}},
                    {"name": "mem", "emptyDir": {"medium": "Memory"}},
                ],
                "containers": [main],
            });
            node.run_pod("vars", spec).await;
            let pod = node.wait("vars", |pod| phase(pod) == "Failed").await;
            let ip = pod.status.clone().unwrap().pod_ip.unwrap();
            let log = node.log(&pod, "main", 0);
            let mut lines = log.lines();
            assert_eq!(
                lines.next().unwrap(),
                format!("value hush {ip} 5432 443"),
                "{log}"
            );
            assert_eq!(lines.next().unwrap(), "valuehush");
            assert_eq!(lines.next().unwrap(), "440");
            assert_eq!(lines.next().unwrap(), "1000");
            assert_eq!(lines.next().unwrap(), "1001 2000");
            assert!(
                log.contains("search default.svc.cluster.local svc.cluster.local cluster.local"),
                "{log}"
            );
            assert!(log.contains("nameserver 10.96.0.10"), "{log}");
            assert!(log.contains(&format!("{ip}\tvars")), "{log}");
            assert!(log.contains("\nx"), "{log}");
            assert!(log.contains("Read-only file system"), "{log}");
            assert!(log.contains("\ntmpfs\n"), "{log}");
            assert!(log.contains("CapEff:\t0000000000000000"), "{log}");
            let ended = container(&pod, "main")
                .unwrap()
                .state
                .unwrap()
                .terminated
                .unwrap();
            assert_eq!(ended.message.as_deref(), Some("done\n"));
            node.delete("vars", 1).await;
            nothing_is_left().await;
        },
    );
}

#[test]
fn what_can_not_be_started_says_why() {
    node::test("what_can_not_be_started_says_why", |node| async move {
        node.run_pod(
            "nofile",
            json!({"restartPolicy": "Never", "containers": [
                {"name": "a", "image": "host:", "command": ["/no/such/program"]},
            ]}),
        )
        .await;
        let pod = node.wait("nofile", |pod| phase(pod) == "Failed").await;
        let ended = container(&pod, "a")
            .unwrap()
            .state
            .unwrap()
            .terminated
            .unwrap();
        assert_eq!(ended.reason.as_deref(), Some("StartError"));
        assert!(
            ended.message.clone().unwrap().contains("/no/such/program"),
            "{ended:?}"
        );

        node.run_pod(
            "noconf",
            json!({"containers": [
                {"name": "a", "image": "host:", "command": ["sleep", "1000"],
                 "envFrom": [{"configMapRef": {"name": "late"}}]},
            ]}),
        )
        .await;
        let reason = |pod: &Pod| container(pod, "a")?.state?.waiting?.message;
        let pod = node.wait("noconf", |pod| reason(pod).is_some()).await;
        assert_eq!(reason(&pod).unwrap(), "configmap \"late\" not found");
        let _: ConfigMap = node.create(json!({"metadata": {"name": "late"}})).await;
        node.ready("noconf").await;
    });
}

#[test]
fn a_pod_that_is_ready_soon_after_its_start_does_not_wait_for_the_next_beat() {
    node::test(
        "a_pod_that_is_ready_soon_after_its_start_does_not_wait_for_the_next_beat",
        |node| async move {
            let mut container = shell("a", "sleep 0.2; touch /dev/shm/ready; exec sleep 1000");
            container["readinessProbe"] =
                json!({"exec": {"command": ["cat", "/dev/shm/ready"]}, "periodSeconds": 3600});
            node.run_pod("soon", json!({"containers": [container]}))
                .await;
            node.ready("soon").await;
            node.delete("soon", 0).await;
            nothing_is_left().await;
        },
    );
}

#[test]
fn a_pod_on_the_nodes_network_has_the_nodes_address() {
    node::test(
        "a_pod_on_the_nodes_network_has_the_nodes_address",
        |node| async move {
            node.run_pod("host", json!({"hostNetwork": true, "containers": [
            {"name": "a", "image": "podwire.dev/toolbox", "args": ["serve", "--http", "8081"],
             "readinessProbe": {"httpGet": {"port": 8081, "path": "/"}, "periodSeconds": 1}},
        ]})).await;
            let pod = node.ready("host").await;
            assert_eq!(pod.status.unwrap().pod_ip.as_deref(), Some("192.168.64.11"));
            node.delete("host", 1).await;
            nothing_is_left().await;
        },
    );
}

#[test]
fn a_changed_configmap_reaches_the_running_container() {
    node::test(
        "a_changed_configmap_reaches_the_running_container",
        |node| async move {
            let _: ConfigMap = node
                .create(json!({"metadata": {"name": "conf"}, "data": {"key": "old"}}))
                .await;
            let mut watcher = shell(
                "a",
                "until grep -q new /conf/key; do sleep 0.05; done; cat /conf/key",
            );
            watcher["volumeMounts"] = json!([{"name": "conf", "mountPath": "/conf"}]);
            let spec = json!({
                "restartPolicy": "Never",
                "volumes": [{"name": "conf", "configMap": {"name": "conf"}}],
                "containers": [watcher],
            });
            node.run_pod("follows", spec).await;
            node.ready("follows").await;
            let maps: kube::Api<ConfigMap> = kube::Api::default_namespaced(node.client.clone());
            let patch = kube::api::Patch::Merge(json!({"data": {"key": "new"}}));
            maps.patch("conf", &Default::default(), &patch)
                .await
                .unwrap();
            let pod = node.wait("follows", |pod| phase(pod) == "Succeeded").await;
            assert_eq!(node.log(&pod, "a", 0), "new\n");
        },
    );
}
