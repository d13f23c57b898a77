//! Services while things change: endpoints replaced under load, agents killed,
//! UDP clients that keep their port, affinity switched, health checks, and what
//! `podwire inspect` says of all that.
//!
//! The Services have no selector: the test writes their slices, so no endpoint
//! ever dies and not one connection may fail.

use std::{
    collections::BTreeSet,
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::support::{Lab, PODWIRE, client, eventually, output, printed, success, url};
use crate::survival::{kill_on_node, runs_again};

const PATIENCE: Duration = Duration::from_secs(60);
const WEB: &str = "10.96.0.40";
const ECHO: &str = "10.96.0.41";
const LOCAL: &str = "10.96.0.42";
const OTHER: &str = "10.96.0.43";
const PODS: [&str; 3] = ["shop-1", "shop-2", "shop-3"];

/// A Service without selector.
fn service(name: &str, cluster_ip: &str, spec: &str) -> String {
    format!(
        "---
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec:
  clusterIP: {cluster_ip}
{spec}"
    )
}

/// The one slice of a Service, with an endpoint for each pod's address and node.
fn slice(service: &str, protocol: &str, port: u16, endpoints: &[(&str, &str)]) -> String {
    let endpoints: Vec<Value> = endpoints
        .iter()
        .map(|(address, node)| {
            serde_json::json!({"addresses": [address], "nodeName": node,
                "conditions": {"ready": true}})
        })
        .collect();
    format!(
        "---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: {service}-1, labels: {{kubernetes.io/service-name: {service}}}}}
addressType: IPv4
endpoints: {}
ports: [{{name: '', protocol: {protocol}, port: {port}}}]
",
        Value::from(endpoints)
    )
}

/// A pod that serves HTTP on 8080 and echoes UDP on 8053 and 8054.
fn server(name: &str, node: &str) -> String {
    crate::support::server(name, "none", node).replace(
        "    ports:",
        "    args: [serve, --http, '8080', --udp, '8053', --udp, '8054']\n    ports:",
    )
}

fn lab() -> Lab {
    let web = "  ports: [{port: 80, targetPort: 8080}]\n";
    let echo = "  ports: [{port: 53, protocol: UDP, targetPort: 8053}]\n";
    let local = "  type: LoadBalancer\n  externalTrafficPolicy: Local\n  \
                 healthCheckNodePort: 31990\n  ports: [{port: 80, targetPort: 8080}]\n";
    Lab::up(
        &["--nodes", "2"],
        &[
            service("web", WEB, web),
            service("echo", ECHO, echo),
            service("local", LOCAL, local),
            server(PODS[0], "node-1"),
            server(PODS[1], "node-2"),
            server(PODS[2], "node-1"),
            client("client", "node-2"),
            client("beside", "node-1"),
        ]
        .concat(),
    )
}

/// A program in the client's pod that goes on beside the test.
fn start(lab: &Lab, command: &[&str]) -> Child {
    Command::new(PODWIRE)
        .args(["lab", "exec", "--name", &lab.name, "client", "--"])
        .args(command)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("podwire was built by cargo for this test")
}

/// Who answers how many of the requests made one after another, each over a
/// connection of its own; an error if one fails.
fn ask(lab: &Lab, address: &str, count: usize) -> Result<Vec<String>, String> {
    let count = count.to_string();
    let target = url(address, 80, "/hostname");
    let asked = lab.exec_output(
        "client",
        &[
            PODWIRE, "toolbox", "get", &target, "-n", &count, "-o", "json",
        ],
    );
    let all: Value = serde_json::from_slice(&asked.stdout).map_err(|_| printed(&asked))?;
    if all["failed"] != 0 {
        return Err(all.to_string());
    }
    let answers = all["answers"].as_object().into_iter().flatten();
    Ok(answers.map(|(name, _)| name.clone()).collect())
}

fn answered_by(lab: &Lab, address: &str, expected: &[&str]) {
    eventually(&format!("{expected:?} answer"), PATIENCE, || {
        let names = ask(lab, address, 60)?;
        if names == expected {
            Ok(())
        } else {
            Err(format!("{names:?}"))
        }
    });
}

/// `podwire inspect` of a node, from outside the lab.
fn inspect(lab: &Lab, arguments: &[&str]) -> String {
    let mut all = vec!["inspect"];
    all.extend(arguments);
    all.extend(["--lab", &lab.name, "--node", "node-2"]);
    success(&format!("podwire {all:?}"), &output(PODWIRE, &all))
}

#[test]
fn services_hold_while_everything_about_them_changes() {
    let lab = lab();
    let addresses: Vec<String> = PODS
        .iter()
        .map(|pod| lab.pod_addresses(pod)[0].clone())
        .collect();
    let at = |index: usize| (&*addresses[index], ["node-1", "node-2", "node-1"][index]);

    nothing_fails_under_load(&lab, &at);
    affinity_is_switched_live(&lab);
    labels_are_followed_live(&lab);
    a_udp_client_keeps_being_answered(&lab, &at);
    the_health_check_follows_the_local_endpoints(&lab, &at);
    a_node_that_goes_is_not_healthy_but_alive(&lab);
    inspection_tells_what_is(&lab, &addresses);
    what_is_refused_is_an_event_and_harms_no_other(&lab, &at);
    a_flushed_ruleset_comes_back_with_the_agent(&lab);
}

/// Connections from a pod of each node until the changes are over.
struct Load<'scope> {
    stop: &'scope AtomicBool,
}

/// Also when the test fails meanwhile: the scope waits for the load.
impl Drop for Load<'_> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Requests one after another until it is to stop, each over a connection of its
/// own: how many there were, and who answered. They are of one program as long as
/// possible: starting it in the pod takes as long as twenty requests.
fn request_until(lab: &Lab, pod: &str, stop: &AtomicBool) -> (u64, BTreeSet<String>) {
    let target = url(WEB, 80, "/hostname");
    let (mut total, mut names) = (0, BTreeSet::new());
    while !stop.load(Ordering::Relaxed) {
        let asked = lab.exec_output(
            pod,
            &[
                PODWIRE,
                "toolbox",
                "get",
                &target,
                "-n",
                "500",
                "--interval",
                "8ms",
                "-o",
                "json",
            ],
        );
        let all: Value = serde_json::from_slice(&asked.stdout)
            .unwrap_or_else(|error| panic!("{pod}: {error}: {}", printed(&asked)));
        assert_eq!(all["failed"], 0, "{pod}: {all}");
        total += all["total"].as_u64().unwrap_or_default();
        let answers = all["answers"].as_object().into_iter().flatten();
        names.extend(answers.map(|(name, _)| name.clone()));
    }
    (total, names)
}

/// At least two hundred connections a second, on a machine that can, while endpoints are replaced, agents die and
/// the proxy is another one: none fails, for no endpoint dies.
fn nothing_fails_under_load<'a>(lab: &Lab, at: &impl Fn(usize) -> (&'a str, &'a str)) {
    lab.apply(&slice("web", "TCP", 8080, &[at(0)]));
    answered_by(lab, WEB, &PODS[..1]);
    let stop = AtomicBool::new(false);
    let started = Instant::now();
    std::thread::scope(|scope| {
        let loads = ["client", "beside", "client", "beside"]
            .map(|pod| scope.spawn(|| request_until(lab, pod, &stop)));
        let load = Load { stop: &stop };
        lab.apply(&slice("web", "TCP", 8080, &[at(1)]));
        for node in ["node-2", "node-1"] {
            let before = kill_on_node(lab, node, "agent");
            lab.apply(&slice("web", "TCP", 8080, &[at(2), at(0)]));
            runs_again(lab, node, "agent", &before);
            lab.apply(&slice("web", "TCP", 8080, &[at(1), at(2)]));
        }
        for proxy in ["iptables", "nftables"] {
            change_proxy(lab, proxy);
            lab.apply(&slice("web", "TCP", 8080, &[at(0)]));
            answered_by(lab, WEB, &PODS[..1]);
            if proxy == "iptables" {
                inspection_tells_what_iptables_has(lab);
            }
            lab.apply(&slice("web", "TCP", 8080, &[at(1), at(2)]));
            answered_by(lab, WEB, &PODS[1..]);
        }
        lab.apply(&slice("web", "TCP", 8080, &[at(0), at(1), at(2)]));
        // What was changed while the agent was dead is in force, too.
        answered_by(lab, WEB, &PODS);
        drop(load);
        let mut sum = 0;
        for load in loads {
            let (total, names) = load.join().expect("no connection failed");
            assert_eq!(
                names.len(),
                PODS.len(),
                "endpoints were replaced: {names:?}"
            );
            sum += total;
        }
        let seconds = started.elapsed().as_secs_f64();
        println!(
            "{sum} connections, {:.0} a second, none failed",
            sum as f64 / seconds
        );
    });
}

/// Has all nodes go on with another proxy, and waits until the rules of the one
/// before are gone.
fn change_proxy(lab: &Lab, proxy: &str) {
    let told = success(
        "lab proxy",
        &output(PODWIRE, &["lab", "proxy", "--name", &lab.name, proxy]),
    );
    let rules = "nft list tables inet; for v in nft legacy; do iptables-$v-save; done 2>/dev/null";
    for node in ["node-1", "node-2"] {
        assert!(
            told.contains(&format!("{node} goes on with {proxy}")),
            "{told}"
        );
        eventually(
            &format!("{node} goes on with {proxy} alone"),
            PATIENCE,
            || {
                let rules = lab.node(node, &["sh", "-c", rules]);
                let now = (
                    rules.lines().any(|line| line == "table inet podwire"),
                    rules.contains(":PODWIRE-SERVICES"),
                );
                if now == (proxy == "nftables", proxy == "iptables") {
                    Ok(())
                } else {
                    Err(format!("{now:?}"))
                }
            },
        );
    }
}

/// Rules and counters of the iptables proxy.
fn inspection_tells_what_iptables_has(lab: &Lab) {
    let rules = inspect(lab, &["services", "default/web", "-o", "iptables"]);
    for part in ["PODWIRE-SERVICES", "--to-destination", "default/web"] {
        assert!(rules.contains(part), "{part} in\n{rules}");
    }
    let json: Value =
        serde_json::from_str(&inspect(lab, &["services", "default/web", "-o", "json"]))
            .expect("JSON");
    let frontend = &json[0]["frontends"][0];
    for counted in [&frontend["counted"], &frontend["backends"][0]["counted"]] {
        assert!(counted["packets"].as_u64() > Some(0), "{json}");
        assert!(counted["bytes"].as_u64() > Some(0), "{json}");
    }
    // This proxy does not run here.
    assert_eq!(inspect(lab, &["services", "-o", "ipvs"]), "");
    let source = &lab.pod_addresses("client")[0];
    let verdict = inspect(lab, &["service", "--simulate", source, "10.96.0.40:80"]);
    for part in [
        "for Service default/web: goes to one of",
        "PODWIRE-SERVICES rule",
    ] {
        assert!(verdict.contains(part), "{part} in\n{verdict}");
    }
    fits(&verdict);
}

fn affinity_is_switched_live(lab: &Lab) {
    let set = |affinity: &str| {
        let patch = format!("{{\"spec\":{{\"sessionAffinity\":\"{affinity}\"}}}}");
        lab.kubectl(&["patch", "service", "web", "--type=merge", "-p", &patch]);
    };
    set("ClientIP");
    eventually("15 requests go to one endpoint", PATIENCE, || {
        match &ask(lab, WEB, 15)?[..] {
            [_] => Ok(()),
            several => Err(format!("{several:?}")),
        }
    });
    set("None");
    answered_by(lab, WEB, &PODS);
}

/// One socket, thus one source port and, but for the clean-up, one conversation
/// the kernel keeps to the endpoint of its first packet.
fn a_udp_client_keeps_being_answered<'a>(lab: &Lab, at: &impl Fn(usize) -> (&'a str, &'a str)) {
    lab.apply(&slice("echo", "UDP", 8053, &[at(0)]));
    let script = format!(
        "exec 3<>/dev/udp/{ECHO}/53; while :; do printf hostname >&3; \
         timeout 0.5 dd bs=99 count=1 status=none <&3 || echo lost; sleep 0.05; done 2>/dev/null"
    );
    let mut child = start(lab, &["bash", "-c", &script]);
    let last = Arc::new(Mutex::new(String::new()));
    let heard = last.clone();
    let stdout = child.stdout.take().expect("standard output is piped");
    let reader = std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            *heard.lock().expect("nobody panics with it") = line;
        }
    });
    let answers = |when: &str, expected: &str| {
        eventually(&format!("{when}: {expected}"), PATIENCE, || {
            let last = last.lock().expect("nobody panics with it").clone();
            if last == expected { Ok(()) } else { Err(last) }
        });
    };
    answers("at first", PODS[0]);
    lab.apply(&slice("echo", "UDP", 8053, &[at(1)]));
    answers("the only endpoint replaced", PODS[1]);
    lab.apply(&slice("echo", "UDP", 8053, &[]));
    answers("none left", "lost");
    lab.apply(&slice("echo", "UDP", 8053, &[at(2)]));
    answers("one again", PODS[2]);
    // The other port of another pod, so that the answer tells which.
    lab.apply(&slice("echo", "UDP", 8054, &[at(0)]));
    answers("another target port", PODS[0]);
    child.kill().expect("the client still runs");
    child.wait().expect("it ends");
    // Its end in the pod goes with the lab; this one saw its pipe close or will.
    drop(reader);
}

fn the_health_check_follows_the_local_endpoints<'a>(
    lab: &Lab,
    at: &impl Fn(usize) -> (&'a str, &'a str),
) {
    let ask = |node: &str| {
        let address = lab.node_addresses(node)[0].clone();
        let target = url(&address, 31990, "/");
        lab.node_output(
            "outside",
            &["curl", "-sSi", "-m", "5", "-w", "\n%{http_code}", &target],
        )
    };
    let check = |node: &str, code: &str, count: &str| {
        let header = format!("x-load-balancing-endpoint-weight:{count}");
        let body = format!("\"localEndpoints\":{count}");
        eventually(&format!("{node} says {code}"), PATIENCE, || {
            let asked = ask(node);
            let text = String::from_utf8_lossy(&asked.stdout).replace(' ', "");
            if text.ends_with(code) && text.contains(&body) && text.to_lowercase().contains(&header)
            {
                Ok(())
            } else {
                Err(printed(&asked))
            }
        });
    };
    lab.apply(&slice("local", "TCP", 8080, &[at(0), at(2)]));
    check("node-1", "200", "2");
    check("node-2", "503", "0");
    lab.apply(&slice("local", "TCP", 8080, &[at(1)]));
    check("node-1", "503", "0");
    check("node-2", "200", "1");
    // The port is closed with the policy, and open again with it.
    let policy = |policy: &str| {
        let patch = format!("{{\"spec\":{{\"externalTrafficPolicy\":\"{policy}\"}}}}");
        lab.kubectl(&["patch", "service", "local", "--type=merge", "-p", &patch]);
    };
    policy("Cluster");
    eventually("nobody listens", PATIENCE, || {
        let asked = ask("node-2");
        match asked.status.code() {
            Some(7) => Ok(()),
            _ => Err(printed(&asked)),
        }
    });
    policy("Local");
    lab.kubectl(&[
        "patch",
        "service",
        "local",
        "--type=merge",
        "-p",
        "{\"spec\":{\"healthCheckNodePort\":31990}}",
    ]);
    check("node-2", "200", "1");
}

/// A node that the autoscaler takes away wants no more traffic, and lives.
fn a_node_that_goes_is_not_healthy_but_alive(lab: &Lab) {
    let taints = |list: &str| {
        let patch = format!("{{\"spec\":{{\"taints\":{list}}}}}");
        lab.kubectl(&["patch", "node", "node-2", "--type=merge", "-p", &patch]);
    };
    let says = |healthz: &str| {
        eventually(&format!("healthz {healthz}"), PATIENCE, || {
            let code = |path: &str| {
                let target = format!("http://127.0.0.1:10256/{path}");
                lab.node(
                    "node-2",
                    &[
                        "curl",
                        "-s",
                        "-o",
                        "/dev/null",
                        "-w",
                        "%{http_code}",
                        &target,
                    ],
                )
            };
            let codes = (code("healthz"), code("livez"));
            if codes == (healthz.to_owned(), "200".to_owned()) {
                Ok(())
            } else {
                Err(format!("{codes:?}"))
            }
        });
    };
    taints("[{\"key\":\"ToBeDeletedByClusterAutoscaler\",\"effect\":\"NoSchedule\"}]");
    says("503");
    taints("[]");
    says("200");
}

/// A label that gives a Service to another proxy counts at once, and so does its end.
fn labels_are_followed_live(lab: &Lab) {
    for label in [
        "service.kubernetes.io/service-proxy-name",
        "service.kubernetes.io/headless",
    ] {
        lab.kubectl(&["label", "service", "web", &format!("{label}=other")]);
        eventually(&format!("{label} takes it away"), PATIENCE, || {
            match ask(lab, WEB, 1) {
                Ok(names) => Err(format!("{names:?}")),
                Err(_) => Ok(()),
            }
        });
        lab.kubectl(&["label", "service", "web", &format!("{label}-")]);
        answered_by(lab, WEB, &PODS);
    }
}

/// What is for people fits a hundred columns.
fn fits(text: &str) {
    for line in text.lines() {
        assert!(line.chars().count() <= 100, "too wide: {line}");
    }
}

fn inspection_tells_what_is(lab: &Lab, addresses: &[String]) {
    let list = inspect(lab, &["services"]);
    fits(&list);
    for part in [
        "default/web",
        "10.96.0.40:80/tcp",
        "default/echo",
        "10.96.0.41:53/udp",
    ] {
        assert!(list.contains(part), "{part} in\n{list}");
    }
    let detail = inspect(lab, &["services", "default/local"]);
    fits(&detail);
    assert!(
        detail.contains("Health check at port 31990: 1 endpoint"),
        "{detail}"
    );
    let json: Value =
        serde_json::from_str(&inspect(lab, &["services", "default/web", "-o", "json"]))
            .expect("JSON");
    let frontend = &json[0]["frontends"][0];
    let backends = frontend["backends"].as_array().expect("a list");
    assert_eq!(backends.len(), 3, "{json}");
    assert!(frontend["counted"]["packets"].as_u64() > Some(0), "{json}");
    let rules = inspect(lab, &["services", "default/web", "-o", "nft"]);
    let verdict = inspect(
        lab,
        &[
            "service",
            "--simulate",
            &lab.pod_addresses("client")[0],
            "10.96.0.40:80",
        ],
    );
    assert!(
        verdict.contains("for Service default/web: goes to one of"),
        "{verdict}"
    );
    fits(&verdict);
    let simulated = inspect(
        lab,
        &[
            "service",
            "--simulate",
            &lab.pod_addresses("client")[0],
            "10.96.0.40:81",
            "-o",
            "json",
        ],
    );
    let simulated: Value = serde_json::from_str(&simulated).expect("JSON");
    assert_eq!(simulated["verdict"], "refused", "no such port: {simulated}");
    assert!(simulated["steps"].as_array().is_some_and(|s| !s.is_empty()));
    for address in addresses {
        assert!(rules.contains(address.as_str()), "{address} in\n{rules}");
        assert!(
            verdict.contains(address.as_str()),
            "{address} in\n{verdict}"
        );
    }
    let unknown = output(
        PODWIRE,
        &[
            "inspect",
            "services",
            "default/no",
            "--lab",
            &lab.name,
            "--node",
            "node-2",
        ],
    );
    assert_eq!(unknown.status.code(), Some(1), "{}", printed(&unknown));
}

fn what_is_refused_is_an_event_and_harms_no_other<'a>(
    lab: &Lab,
    at: &impl Fn(usize) -> (&'a str, &'a str),
) {
    lab.apply(&service(
        "other",
        OTHER,
        "  externalIPs: [198.51.100.77]\n  ports: [{port: 80, targetPort: 8080}]\n",
    ));
    eventually("an Event of the refused address", PATIENCE, || {
        let events = lab.kubectl(&["get", "events"]);
        if events.contains("ExternalIPRefused") && events.contains("198.51.100.77") {
            Ok(())
        } else {
            Err(events)
        }
    });
    lab.apply(&slice("other", "TCP", 8080, &[at(0)]));
    answered_by(lab, OTHER, &PODS[..1]);
    answered_by(lab, WEB, &PODS);
}

fn a_flushed_ruleset_comes_back_with_the_agent(lab: &Lab) {
    lab.node("node-2", &["nft", "flush", "ruleset"]);
    let before = kill_on_node(lab, "node-2", "agent");
    runs_again(lab, "node-2", "agent", &before);
    answered_by(lab, WEB, &PODS);
}
