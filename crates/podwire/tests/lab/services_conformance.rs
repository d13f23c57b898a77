//! What Kubernetes' end-to-end suites ask of Services (`test/e2e/network`) and
//! other tests here do not: from `kubectl` to answers, in one lab of three nodes.

use std::{
    collections::BTreeSet,
    process::Output,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use serde_json::{Value, json};

use crate::support::{Lab, PODWIRE, client, eventually, output, printed, server, success, url};

const PATIENCE: Duration = Duration::from_secs(60);
const NEAR: [&str; 2] = ["10.96.0.70", "fd00:96::70"];
const NEAR_PODS: [&str; 3] = ["near-1", "near-2", "near-3"];
const NODES: [&str; 3] = ["node-1", "node-2", "node-3"];
const ALIAS: &str = "near.default.svc.cluster.local";
const STICKY: &str = "10.96.0.71";
const STICKY_PORT: u16 = 30471;
const ROLL_PORTS: [u16; 2] = [30472, 30473];

/// A pod that is ready while `/ready` says so.
fn switchable(name: &str, app: &str, node: &str) -> String {
    server(name, app, node).replace(
        "path: /healthz, port: 8080}, periodSeconds: 1",
        "path: /ready, port: 8080}, periodSeconds: 1, failureThreshold: 1",
    )
}

/// A Service for pods of an app at port 80.
fn service(name: &str, app: &str, target_port: &str, more: &str) -> String {
    format!(
        "---
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec:
  ipFamilyPolicy: PreferDualStack
  selector: {{app: {app}}}
  ports: [{{port: 80, targetPort: {target_port}}}]
{more}"
    )
}

/// Pods whose port of one name has another number in each, one of them a sidecar's.
fn named() -> String {
    let sidecar = "---
apiVersion: v1
kind: Pod
metadata: {name: named-side, labels: {app: named}}
spec:
  nodeName: node-2
  terminationGracePeriodSeconds: 0
  initContainers:
  - name: side
    image: podwire.dev/toolbox
    restartPolicy: Always
    args: [serve, --http, '9001']
    ports: [{name: http, containerPort: 9001}]
  containers:
  - {name: main, image: podwire.dev/toolbox, args: [sleep, infinity]}
";
    let other = server("named-2", "named", "node-1")
        .replace("8080", "9000")
        .replace(
            "    ports:",
            "    args: [serve, --http, '9000']\n    ports:",
        );
    [
        service("named", "named", "http", ""),
        server("named-1", "named", "node-1"),
        other,
        sidecar.to_owned(),
    ]
    .concat()
}

/// A Deployment on one node whose pods serve on for a while when they are told to end.
fn rolling() -> String {
    let node_port = |name: &str, number: u16, policy: &str| {
        service(
            name,
            "roll",
            "8080",
            &format!("  type: NodePort\n  externalTrafficPolicy: {policy}\n"),
        )
        .replace(
            "targetPort: 8080",
            &format!("targetPort: 8080, nodePort: {number}"),
        )
    };
    let deployment = "---
apiVersion: apps/v1
kind: Deployment
metadata: {name: roll}
spec:
  replicas: 2
  strategy: {rollingUpdate: {maxSurge: 1, maxUnavailable: 0}}
  selector: {matchLabels: {app: roll}}
  template:
    metadata: {labels: {app: roll}}
    spec:
      nodeSelector: {kubernetes.io/hostname: node-1}
      terminationGracePeriodSeconds: 30
      containers:
      - name: http
        image: podwire.dev/toolbox
        args: [serve, --drain, 20s]
        readinessProbe: {httpGet: {path: /ready, port: 8080}, periodSeconds: 1}
";
    [
        node_port("roll-cluster", ROLL_PORTS[0], "Cluster"),
        node_port("roll-local", ROLL_PORTS[1], "Local"),
        deployment.to_owned(),
    ]
    .concat()
}

/// A pod with the machine's tools that serves on when it is told to end.
fn ending() -> String {
    server("ending", "ending", "node-3")
        .replace(
            "terminationGracePeriodSeconds: 0",
            "terminationGracePeriodSeconds: 60",
        )
        .replace("podwire.dev/toolbox", "'host:'")
        .replace(
            "    ports:",
            &format!("    command: [{PODWIRE}, toolbox, serve, --drain, 60s]\n    ports:"),
        )
}

/// A pod that is ready only once somebody says so in its status.
fn gated() -> String {
    server("gated", "gated", "node-2").replace(
        "  containers:",
        "  readinessGates: [{conditionType: example.com/live}]\n  containers:",
    )
}

fn lab() -> Lab {
    let near = format!("  clusterIPs: ['{}', '{}']\n", NEAR[0], NEAR[1]);
    let sticky = format!("  clusterIP: {STICKY}\n  type: NodePort\n");
    let unready = "  publishNotReadyAddresses: true\n";
    let lab = Lab::up(
        &["--nodes", "3", "--attach", "routed"],
        &[
            service("near", "near", "8080", &near),
            service("sticky", "near", "8080", &sticky).replace(
                "targetPort: 8080",
                &format!("targetPort: 8080, nodePort: {STICKY_PORT}"),
            ),
            switchable(NEAR_PODS[0], "near", NODES[0]),
            switchable(NEAR_PODS[1], "near", NODES[1]),
            switchable(NEAR_PODS[2], "near", NODES[2]),
            client("client", NODES[0]),
            named(),
            rolling(),
            service("ending", "ending", "8080", ""),
            ending(),
            service("evicted", "evicted", "8080", "  type: NodePort\n"),
            server("evicted", "evicted", "node-2"),
            service("gated", "gated", "8080", ""),
            service("early", "gated", "8080", unready),
        ]
        .concat(),
    );
    for (node, zone) in NODES.iter().zip(["a", "b", "c"]) {
        zone_of(&lab, node, zone);
    }
    lab.apply(&gated());
    lab
}

fn zone_of(lab: &Lab, node: &str, zone: &str) {
    let label = format!("topology.kubernetes.io/zone={zone}");
    lab.kubectl(&["label", "--overwrite", "node", node, &label]);
}

fn patch(lab: &Lab, kind: &str, name: &str, change: &Value) {
    let change = change.to_string();
    lab.kubectl(&["patch", kind, name, "--type=merge", "-p", &change]);
}

/// Tells a `switchable` pod, from its node, what to say of itself.
fn set_ready(lab: &Lab, node: &str, pod: &str, ready: bool) {
    let address = &lab.pod_addresses(pod)[0];
    let target = url(address, 8080, &format!("/ready?ok={ready}"));
    lab.node(node, &["curl", "-sS", "-X", "POST", &target]);
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
enum From<'a> {
    Pod(&'a str),
    /// A node, or the host outside.
    Node(&'a str),
}

impl From<'_> {
    fn run(self, lab: &Lab, command: &[&str]) -> Output {
        match self {
            From::Pod(pod) => lab.exec_output(pod, command),
            From::Node(node) => lab.node_output(node, command),
        }
    }
}

/// Who answers the requests made one after another, each over a connection of its
/// own; an error if one fails.
fn ask(lab: &Lab, from: From<'_>, target: &str, count: u32) -> Result<BTreeSet<String>, String> {
    let all = format!("{target}?n=[1-{count}]");
    let close = ["-H", "Connection: close", "-w", "\\n"];
    let mut command = vec!["curl", "-sSf", "--fail-early", "-m", "5"];
    command.extend(close);
    command.push(&all);
    let asked = from.run(lab, &command);
    if !asked.status.success() {
        return Err(printed(&asked));
    }
    let text = String::from_utf8_lossy(&asked.stdout).into_owned();
    let names = text.lines().filter(|line| !line.is_empty());
    Ok(names.map(str::to_owned).collect())
}

fn answered_by(lab: &Lab, from: From<'_>, target: &str, expected: &[&str]) {
    let what = format!("{from:?} → {target}: {expected:?} answer");
    let expected: BTreeSet<String> = expected.iter().map(|name| (*name).to_owned()).collect();
    eventually(&what, PATIENCE, || {
        let names = ask(lab, from, target, 40)?;
        if names == expected {
            Ok(())
        } else {
            Err(format!("{names:?}"))
        }
    });
}

/// What curl says of a connection: 7 refused, 28 nothing came back.
fn ends_with(lab: &Lab, from: From<'_>, target: &str, code: i32) {
    eventually(
        &format!("{from:?} → {target}: curl says {code}"),
        PATIENCE,
        || {
            let asked = from.run(lab, &["curl", "-sS", "-m", "2", "-o", "/dev/null", target]);
            if asked.status.code() == Some(code) {
                Ok(())
            } else {
                Err(printed(&asked))
            }
        },
    );
}

#[test]
fn what_end_to_end_suites_ask_of_services() {
    let lab = lab();
    a_port_of_one_name_has_another_number_in_each_pod(&lab);
    traffic_stays_near_and_goes_on_when_that_is_lost(&lab);
    a_client_keeps_its_endpoint_for_fifteen_requests(&lab);
    a_service_changes_its_type_and_back(&lab);
    large_requests_come_through(&lab);
    gates_hold_a_pod_back_unless_it_is_published_early(&lab);
    an_evicted_pod_is_asked_no_more(&lab);
    a_terminating_pod_talks_and_is_asked_when_there_is_no_other(&lab);
    a_health_check_port_comes_and_goes_with_the_policy(&lab);
    malformed_slices_are_refused_or_left_out(&lab);
    a_collection_of_services_is_deleted(&lab);
    a_rolling_update_loses_no_connection(&lab);
    programming_latency_is_measured(&lab);
}

fn a_port_of_one_name_has_another_number_in_each_pod(lab: &Lab) {
    for address in lab.cluster_ips("named") {
        answered_by(
            lab,
            From::Pod("client"),
            &url(&address, 80, "/hostname"),
            &["named-1", "named-2", "named-side"],
        );
    }
}

/// Three zones, a node and an endpoint in each; hints by the Service's
/// `trafficDistribution`.
fn traffic_stays_near_and_goes_on_when_that_is_lost(lab: &Lab) {
    let targets = NEAR.map(|address| url(address, 80, "/hostname"));
    let from_all = |expected: [&[&str]; 3]| {
        for (node, expected) in NODES.iter().zip(expected) {
            for target in &targets {
                answered_by(lab, From::Node(node), target, expected);
            }
        }
        answered_by(lab, From::Pod("client"), &targets[0], expected[0]);
    };
    let first_is_ready = |ready: bool| set_ready(lab, NODES[0], NEAR_PODS[0], ready);
    let all: &[&str] = &NEAR_PODS;
    let own = [&NEAR_PODS[..1], &NEAR_PODS[1..2], &NEAR_PODS[2..]];
    let distribute = |wish: &Value| {
        patch(
            lab,
            "service",
            "near",
            &json!({"spec": {"trafficDistribution": wish}}),
        );
    };
    from_all([all; 3]);
    for wish in ["PreferClose", "PreferSameZone", "PreferSameNode"] {
        distribute(&json!(wish));
        from_all(own);
        first_is_ready(false);
        // With nobody near, everybody who is left; the others stay with theirs.
        from_all([&NEAR_PODS[1..], own[1], own[2]]);
        if wish == "PreferSameNode" {
            // Two nodes in a zone: the zone comes before everybody.
            zone_of(lab, NODES[1], "a");
            from_all([own[1], own[1], own[2]]);
            zone_of(lab, NODES[1], "b");
        }
        first_is_ready(true);
        from_all(own);
    }
    distribute(&Value::Null);
    from_all([all; 3]);
}

fn a_client_keeps_its_endpoint_for_fifteen_requests(lab: &Lab) {
    let node = &lab.node_addresses(NODES[1])[0];
    let callers = [
        (From::Pod("client"), url(STICKY, 80, "/hostname")),
        (From::Node("outside"), url(node, STICKY_PORT, "/hostname")),
    ];
    for affinity in ["ClientIP", "None", "ClientIP"] {
        patch(
            lab,
            "service",
            "sticky",
            &json!({"spec": {"sessionAffinity": affinity}}),
        );
        for (from, target) in &callers {
            eventually(&format!("{from:?}: affinity {affinity}"), PATIENCE, || {
                let names = ask(lab, *from, target, 15)?;
                if (names.len() == 1) == (affinity == "ClientIP") {
                    Ok(())
                } else {
                    Err(format!("{names:?}"))
                }
            });
        }
    }
}

/// What `dig` says of the Service's name in a pod.
fn records(lab: &Lab) -> Vec<String> {
    let name = "kind.default.svc.cluster.local";
    let answer = lab.exec("client", &["dig", "+short", "+tries=1", "+time=10", name]);
    answer.lines().map(str::to_owned).collect()
}

/// An alias, an address, a node port, in every order in which one becomes another.
fn a_service_changes_its_type_and_back(lab: &Lab) {
    let node = &lab.node_addresses(NODES[2])[0];
    let (by_name, by_alias) = ("http://kind:81/hostname", "http://kind/hostname");
    let port = json!({"port": 81, "targetPort": 8080, "protocol": "TCP"});
    lab.apply(
        &json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "kind"},
            "spec": {"type": "ExternalName", "externalName": ALIAS, "selector": {"app": "near"}}})
        .to_string(),
    );
    // Where it answered before, to see that it does no more.
    let mut before: Vec<String> = Vec::new();
    for kind in [
        "ExternalName",
        "ClusterIP",
        "ExternalName",
        "NodePort",
        "ClusterIP",
        "NodePort",
        "ExternalName",
    ] {
        let change = match kind {
            "ExternalName" => json!({"type": kind, "externalName": ALIAS}),
            _ => json!({"type": kind, "externalName": null, "ports": [port]}),
        };
        patch(lab, "service", "kind", &json!({"spec": change}));
        let spec = lab.get(&["service", "kind"])["spec"].clone();
        let address = spec["clusterIP"].as_str().unwrap_or_default();
        let number = spec["ports"][0]["nodePort"].as_u64();
        assert_eq!(address.is_empty(), kind == "ExternalName", "{kind}: {spec}");
        assert_eq!(number.is_some(), kind == "NodePort", "{kind}: {spec}");
        eventually(&format!("{kind}: the name"), PATIENCE, || {
            let records = records(lab);
            let right = match kind {
                "ExternalName" => records.contains(&format!("{ALIAS}.")),
                _ => records == [address],
            };
            if right {
                Ok(())
            } else {
                Err(format!("{records:?}"))
            }
        });
        match kind {
            "ExternalName" => answered_by(lab, From::Pod("client"), by_alias, &NEAR_PODS),
            _ => answered_by(lab, From::Pod("client"), by_name, &NEAR_PODS),
        }
        let now: Vec<String> = number
            .map(|number| {
                let number = u16::try_from(number).expect("a port");
                url(node, number, "/hostname")
            })
            .into_iter()
            .collect();
        for target in &now {
            answered_by(lab, From::Node("outside"), target, &NEAR_PODS);
        }
        for target in before.iter().filter(|target| !now.contains(target)) {
            ends_with(lab, From::Node("outside"), target, 7);
        }
        before = now;
    }
}

/// `dual_stack.go`: more than a packet holds, both ways, at cluster addresses.
fn large_requests_come_through(lab: &Lab) {
    for address in NEAR {
        let target = url(address, 80, "/echo");
        let script = format!(
            "head -c 300000 /dev/zero | tr '\\0' x | curl -sS -m 20 --data-binary @- {target} | wc -c"
        );
        assert_eq!(
            lab.exec("client", &["sh", "-c", &script]).trim(),
            "300000",
            "{target}"
        );
    }
}

/// A new version behind a gate, and a Service that publishes what is not ready.
fn gates_hold_a_pod_back_unless_it_is_published_early(lab: &Lab) {
    let [gated, early] = ["gated", "early"].map(|name| lab.cluster_ips(name));
    for address in &early {
        let target = url(address, 80, "/hostname");
        answered_by(lab, From::Pod("client"), &target, &["gated"]);
    }
    for address in &gated {
        ends_with(lab, From::Pod("client"), &url(address, 80, "/hostname"), 7);
    }
    let condition = json!({"status": {"conditions": [
        {"type": "example.com/live", "status": "True"}]}})
    .to_string();
    lab.kubectl(&[
        "patch",
        "pod",
        "gated",
        "--subresource=status",
        "-p",
        &condition,
    ]);
    for address in &gated {
        let target = url(address, 80, "/hostname");
        answered_by(lab, From::Pod("client"), &target, &["gated"]);
    }
}

fn an_evicted_pod_is_asked_no_more(lab: &Lab) {
    let service = lab.get(&["service", "evicted"]);
    let number = service["spec"]["ports"][0]["nodePort"].as_u64();
    let number = u16::try_from(number.expect("a node port")).expect("a port");
    let mut targets: Vec<(From<'_>, String)> = Vec::new();
    for address in lab.cluster_ips("evicted") {
        let target = url(&address, 80, "/hostname");
        targets.push((From::Pod("client"), target.clone()));
        targets.push((From::Node(NODES[0]), target));
    }
    for address in lab.node_addresses(NODES[2]) {
        targets.push((From::Node("outside"), url(&address, number, "/hostname")));
    }
    for (from, target) in &targets {
        answered_by(lab, *from, target, &["evicted"]);
    }
    // As the kubelet says it of a pod that had to go.
    let status = json!({"status": {"phase": "Failed", "reason": "Evicted"}}).to_string();
    lab.kubectl(&[
        "patch",
        "pod",
        "evicted",
        "--subresource=status",
        "--type=merge",
        "-p",
        &status,
    ]);
    for (from, target) in &targets {
        ends_with(lab, *from, target, 7);
    }
}

fn a_terminating_pod_talks_and_is_asked_when_there_is_no_other(lab: &Lab) {
    let addresses = lab.pod_addresses("ending");
    lab.kubectl(&["delete", "pod", "ending", "--wait=false"]);
    eventually("its slices say that it ends", PATIENCE, || {
        let slices = lab.get(&["endpointslices", "-l", "kubernetes.io/service-name=ending"]);
        let ends = slices["items"]
            .as_array()
            .into_iter()
            .flatten()
            .all(|slice| {
                let conditions = &slice["endpoints"][0]["conditions"];
                conditions["terminating"] == true && conditions["ready"] == false
            });
        if ends {
            Ok(())
        } else {
            Err(slices.to_string())
        }
    });
    for address in &addresses {
        let target = url(address, 8080, "/hostname");
        answered_by(lab, From::Pod("client"), &target, &["ending"]);
    }
    for address in lab.cluster_ips("ending") {
        let target = url(&address, 80, "/hostname");
        answered_by(lab, From::Pod("client"), &target, &["ending"]);
    }
    for address in NEAR {
        let target = url(address, 80, "/hostname");
        answered_by(lab, From::Pod("ending"), &target, &NEAR_PODS);
    }
}

/// The port is the API server's to choose.
fn a_health_check_port_comes_and_goes_with_the_policy(lab: &Lab) {
    lab.apply(&service(
        "checked",
        "near",
        "8080",
        "  type: LoadBalancer\n",
    ));
    let node = &lab.node_addresses(NODES[0])[0];
    let mut before = None;
    for policy in ["Local", "Cluster", "Local"] {
        patch(
            lab,
            "service",
            "checked",
            &json!({"spec": {"externalTrafficPolicy": policy}}),
        );
        let port = lab.get(&["service", "checked"])["spec"]["healthCheckNodePort"].as_u64();
        let port = port.filter(|port| *port != 0);
        assert_eq!(port.is_some(), policy == "Local", "{policy}: {port:?}");
        let at = |port: u64| url(node, u16::try_from(port).expect("a port"), "/");
        match (port, before) {
            (Some(port), _) => ends_with(lab, From::Node("outside"), &at(port), 0),
            (None, Some(before)) => ends_with(lab, From::Node("outside"), &at(before), 7),
            (None, None) => {}
        }
        before = port.or(before);
    }
}

/// A slice of a Service without selector, applied: what the API server says.
fn apply_slice(lab: &Lab, name: &str, kind: &str, port: i64, addresses: &[String]) -> Output {
    let endpoints: Vec<Value> = addresses
        .iter()
        .map(|address| json!({"addresses": [address], "conditions": {"ready": true}}))
        .collect();
    let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": name, "labels": {"kubernetes.io/service-name": "many"}},
        "addressType": kind, "endpoints": endpoints,
        "ports": [{"port": port, "protocol": "TCP"}]});
    lab.kubectl_with(
        "kubectl",
        &["apply", "--server-side", "-f", "-"],
        &slice.to_string(),
    )
}

/// What the API server knows to be wrong it refuses with the field's name; the rest
/// harms nobody. What servers that take more let through is for the agent's tests.
fn malformed_slices_are_refused_or_left_out(lab: &Lab) {
    lab.apply("apiVersion: v1\nkind: Service\nmetadata: {name: many}\nspec: {ports: [{port: 80}]}");
    let text = |text: &str| vec![text.to_owned()];
    for (kind, port, address, field) in [
        ("IPv4", 8080, "010.0.0.1", "endpoints[0].addresses[0]"),
        ("IPv4", 8080, "fd00::1", "endpoints[0].addresses[0]"),
        ("IPv4", 8080, "127.0.0.1", "endpoints[0].addresses[0]"),
        ("IPv4", 70_000, "10.0.0.1", "ports[0].port"),
    ] {
        let said = apply_slice(lab, "bad", kind, port, &text(address));
        assert!(!said.status.success(), "{address}:{port}");
        assert!(printed(&said).contains(field), "{}", printed(&said));
    }
    for (kind, address) in [("FQDN", "a.example.com"), ("IPv6", "2001:db8::1")] {
        let name = format!("other-{}", kind.to_lowercase());
        success(kind, &apply_slice(lab, &name, kind, 8080, &text(address)));
    }
    let thousand: Vec<String> = (0..1000)
        .map(|n| format!("10.200.{}.{}", 200 + n / 200, 1 + n % 200))
        .collect();
    success(
        "a thousand",
        &apply_slice(lab, "many", "IPv4", 8080, &thousand),
    );
    eventually("a thousand backends and no other", PATIENCE, || {
        let told = output(
            PODWIRE,
            &[
                "inspect",
                "services",
                "default/many",
                "-o",
                "json",
                "--lab",
                &lab.name,
                "--node",
                NODES[0],
            ],
        );
        let all: Value = serde_json::from_slice(&told.stdout).map_err(|_| printed(&told))?;
        let frontends = all[0]["frontends"].as_array().cloned().unwrap_or_default();
        let counts: Vec<usize> = frontends
            .iter()
            .map(|frontend| frontend["backends"].as_array().map_or(0, Vec::len))
            .collect();
        if counts == [1000] {
            Ok(())
        } else {
            Err(format!("{counts:?}"))
        }
    });
    let target = url(NEAR[0], 80, "/hostname");
    answered_by(lab, From::Pod("client"), &target, &NEAR_PODS);
}

fn a_collection_of_services_is_deleted(lab: &Lab) {
    for name in ["evicted", "ending", "named"] {
        lab.kubectl(&["label", "service", name, "batch=gone"]);
    }
    let address = &lab.cluster_ips("named")[0];
    let target = url(address, 80, "/hostname");
    let path = "/api/v1/namespaces/default/services?labelSelector=batch%3Dgone";
    lab.kubectl(&["delete", "--raw", path]);
    let left = lab.get(&["services", "-l", "batch=gone"]);
    assert_eq!(left["items"], json!([]));
    // Nobody has the address any more.
    ends_with(lab, From::Pod("client"), &target, 28);
    answered_by(
        lab,
        From::Pod("client"),
        &url(NEAR[0], 80, "/hostname"),
        &NEAR_PODS,
    );
}

/// Pods are replaced while the host outside asks: by any node, and by the pods'
/// own node alone.
fn a_rolling_update_loses_no_connection(lab: &Lab) {
    let before = lab.get(&["pods", "-l", "app=roll"]);
    let targets = [(NODES[1], ROLL_PORTS[0]), (NODES[0], ROLL_PORTS[1])]
        .map(|(node, port)| url(&lab.node_addresses(node)[0], port, "/hostname"));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let stop = &stop;
        let loads: Vec<_> = targets
            .iter()
            .map(|target| {
                scope.spawn(move || {
                    let mut names = BTreeSet::new();
                    loop {
                        // Once more when all is over.
                        let last = stop.load(Ordering::Relaxed);
                        match ask(lab, From::Node("outside"), target, 50) {
                            Ok(more) => names.extend(more),
                            Err(failed) => return Err(failed),
                        }
                        if last {
                            return Ok(names);
                        }
                    }
                })
            })
            .collect();
        let changed = lab.kubectl_output(&["set", "env", "deployment/roll", "VERSION=2"]);
        let rolled = lab.kubectl_output(&["rollout", "status", "deployment/roll", "--timeout=60s"]);
        stop.store(true, Ordering::Relaxed);
        for load in loads {
            let names = load
                .join()
                .expect("it can ask")
                .expect("no connection failed");
            for pod in before["items"].as_array().into_iter().flatten() {
                let old = pod["metadata"]["name"].as_str().unwrap_or_default();
                assert!(names.iter().any(|name| name != old), "{names:?}");
            }
        }
        success("set env", &changed);
        success("rollout status", &rolled);
    });
    for target in &targets {
        let after = lab.get(&["pods", "-l", "app=roll"]);
        let live: Vec<&str> = after["items"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null())
            .filter_map(|pod| pod["metadata"]["name"].as_str())
            .collect();
        answered_by(lab, From::Node("outside"), target, &live);
    }
}

/// The controller says in slices what triggered a change, and agents measure from
/// there. A change that no pod's condition triggered, as the end of a pod, leaves it
/// out again: one that has a trigger is made here.
fn programming_latency_is_measured(lab: &Lab) {
    let [_, pod, _] = NEAR_PODS;
    for ready in [false, true] {
        set_ready(lab, NODES[1], pod, ready);
        eventually(
            &format!("{pod}'s slices name the trigger of ready: {ready}"),
            PATIENCE,
            || trigger_named(lab, "near", pod, ready),
        );
    }
    for node in NODES {
        let metrics = lab.node(node, &["curl", "-sS", "http://127.0.0.1:10249/metrics"]);
        let count = metrics
            .lines()
            .find_map(|line| {
                line.strip_prefix("kubeproxy_network_programming_duration_seconds_count ")
            })
            .and_then(|count| count.parse::<u64>().ok());
        assert!(count > Some(0), "{node}: {count:?}");
    }
}

/// Whether all slices of a Service hold the pod in that state, and the time of what
/// made it so.
fn trigger_named(lab: &Lab, service: &str, pod: &str, ready: bool) -> Result<(), String> {
    let label = format!("kubernetes.io/service-name={service}");
    let slices = lab.get(&["endpointslices", "-l", &label]);
    let holds = |slice: &Value| {
        let endpoints = slice["endpoints"].as_array();
        slice["metadata"]["annotations"]["endpoints.kubernetes.io/last-change-trigger-time"]
            .is_string()
            && endpoints.into_iter().flatten().any(|endpoint| {
                endpoint["targetRef"]["name"] == pod && endpoint["conditions"]["ready"] == ready
            })
    };
    let slices_of_it = slices["items"].as_array().map_or(&[][..], Vec::as_slice);
    if !slices_of_it.is_empty() && slices_of_it.iter().all(holds) {
        Ok(())
    } else {
        Err(slices.to_string())
    }
}
