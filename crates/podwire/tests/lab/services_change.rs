//! Services while things change: endpoints replaced under load, agents killed,
//! UDP clients that keep their port, affinity switched, health checks, and what
//! `podwire inspect` says of all that.
//!
//! The Services have no selector: the test writes their slices, so no endpoint
//! ever dies and not one connection may fail.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
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
    a_udp_client_keeps_being_answered(&lab, &at);
    the_health_check_follows_the_local_endpoints(&lab, &at);
    inspection_tells_what_is(&lab, &addresses);
    what_is_refused_is_an_event_and_harms_no_other(&lab);
    a_flushed_ruleset_comes_back_with_the_agent(&lab);
}

/// Connections one after another, two hundred a second as far as the machine
/// goes, while endpoints are replaced and agents die: none fails, for no
/// endpoint dies.
fn nothing_fails_under_load<'a>(lab: &Lab, at: &impl Fn(usize) -> (&'a str, &'a str)) {
    lab.apply(&slice("web", "TCP", 8080, &[at(0)]));
    answered_by(lab, WEB, &PODS[..1]);
    let target = url(WEB, 80, "/hostname");
    let load = start(
        lab,
        &[
            PODWIRE,
            "toolbox",
            "get",
            &target,
            "-n",
            "2500",
            "--interval",
            "5ms",
            "-o",
            "json",
        ],
    );
    lab.apply(&slice("web", "TCP", 8080, &[at(1)]));
    for node in ["node-2", "node-1"] {
        let before = kill_on_node(lab, node, "agent");
        lab.apply(&slice("web", "TCP", 8080, &[at(2), at(0)]));
        runs_again(lab, node, "agent", &before);
        lab.apply(&slice("web", "TCP", 8080, &[at(1), at(2)]));
    }
    lab.apply(&slice("web", "TCP", 8080, &[at(0), at(1), at(2)]));
    // What was changed while the agent was dead is in force, too.
    answered_by(lab, WEB, &PODS);
    let load = load.wait_with_output().expect("the load ends");
    let all: Value =
        serde_json::from_str(&success("load under change", &load)).expect("one JSON object");
    assert_eq!(all["failed"], 0, "{all}");
    assert_eq!(all["total"], 2500, "{all}");
    let answers = all["answers"].as_object().expect("answers by name");
    assert!(answers.len() >= 2, "endpoints were replaced: {all}");
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
    let check = |node: &str, code: &str, count: &str| {
        let address = lab.node_addresses(node)[0].clone();
        let target = url(&address, 31990, "/");
        eventually(&format!("{node} says {code}"), PATIENCE, || {
            let asked = lab.node_output(
                "outside",
                &["curl", "-sS", "-m", "5", "-w", "\n%{http_code}", &target],
            );
            let text = String::from_utf8_lossy(&asked.stdout).replace(' ', "");
            if text.ends_with(code) && text.contains(&format!("\"localEndpoints\":{count}")) {
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
}

fn inspection_tells_what_is(lab: &Lab, addresses: &[String]) {
    let list = inspect(lab, &["services"]);
    for part in [
        "default/web",
        "10.96.0.40:80/tcp",
        "default/echo",
        "10.96.0.41:53/udp",
    ] {
        assert!(list.contains(part), "{part} in\n{list}");
    }
    let detail = inspect(lab, &["services", "default/local"]);
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

fn what_is_refused_is_an_event_and_harms_no_other(lab: &Lab) {
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
    answered_by(lab, WEB, &PODS);
}

fn a_flushed_ruleset_comes_back_with_the_agent(lab: &Lab) {
    lab.node("node-2", &["nft", "flush", "ruleset"]);
    let before = kill_on_node(lab, "node-2", "agent");
    runs_again(lab, "node-2", "agent", &before);
    answered_by(lab, WEB, &PODS);
}
