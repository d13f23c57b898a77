//! The whole agent in a network namespace of the test's own, fed by an API
//! server in the same process, checked with `ip`, `nft` and the files it writes.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use api::fake::FakeApi;
use api::{EndpointSlice, Node, Service};
use cni::bridge_guard;
use ipnet::IpNet;
use linux::events::{Event, EventSocket, Group};
use linux::namespace::NetworkNamespace;
use podwire_agent::{Attach, DnsMode as Mode, Options, Period, cleanup, run_until};
use serde_json::{Value, json};
use tokio::sync::oneshot;

const PATIENCE: Duration = Duration::from_secs(20);

/// A node: a namespace with `eth0` on 192.168.64.11/24 and fd00:64::11/64, and an
/// API server on its loopback.
struct Host {
    namespace: NetworkNamespace,
    api: FakeApi,
    runtime: tokio::runtime::Runtime,
    files: tempfile::TempDir,
}

impl Host {
    fn new() -> Host {
        let namespace = NetworkNamespace::create().expect("root makes namespaces");
        let inside = namespace.clone();
        let ip = |arguments: &str| {
            run(&namespace, "ip", arguments);
        };
        ip("link set lo up");
        ip("link add eth0 mtu 1400 type veth peer name wire0");
        ip("link set eth0 up");
        ip("link set wire0 up");
        ip("addr add 192.168.64.11/24 dev eth0");
        ip("addr add fd00:64::11/64 dev eth0 nodad");
        ip("route add default via 192.168.64.1");
        ip("route add default via fd00:64::1");
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .on_thread_start(move || inside.enter().expect("root enters namespaces"))
            .enable_all()
            .build()
            .expect("a runtime");
        // On a worker, which is in the namespace.
        let api = runtime
            .block_on(runtime.spawn(FakeApi::start()))
            .expect("the API server starts");
        let files = tempfile::tempdir().expect("a directory");
        std::fs::write(files.path().join("kubeconfig"), api.kubeconfig()).expect("writable");
        Host {
            namespace,
            api,
            runtime,
            files,
        }
    }

    fn options(&self) -> Options {
        Options {
            kubeconfig: Some(self.files.path().join("kubeconfig")),
            cni_conf_dir: self.files.path().join("net.d"),
            admin_socket: self.files.path().join("agent.sock"),
            policy_socket: self.files.path().join("cni.sock"),
            ipam_dir: self.files.path().join("ipam"),
            ..Options::new("own")
        }
    }

    fn start(&self) -> Agent {
        self.start_with(self.options())
    }

    fn start_with(&self, options: Options) -> Agent {
        let (stop, stopped) = oneshot::channel::<()>();
        let namespace = self.namespace.clone();
        let thread = std::thread::spawn(move || {
            namespace.enter().expect("root enters namespaces");
            run_until(options, async {
                let _ = stopped.await;
            })
            .expect("the agent runs");
        });
        Agent {
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    fn conflist(&self) -> PathBuf {
        self.files.path().join("net.d/10-podwire.conflist")
    }

    fn ip(&self, arguments: &str) -> String {
        run(&self.namespace, "ip", arguments)
    }

    /// Routes of protocol 112 as `DESTINATION [via GATEWAY]`.
    fn routes(&self) -> BTreeSet<String> {
        let mut routes = BTreeSet::new();
        for family in ["-4", "-6"] {
            let text = self.ip(&format!("-j {family} route show proto 112"));
            let list: Vec<Value> = serde_json::from_str(&text).unwrap_or_default();
            for route in list {
                let destination = route["dst"].as_str().expect("a destination");
                routes.insert(match route["gateway"].as_str() {
                    Some(gateway) => format!("{destination} via {gateway}"),
                    None => destination.to_owned(),
                });
            }
        }
        routes
    }

    fn wait_for_routes(&self, expected: &[&str]) {
        let expected: BTreeSet<String> = expected.iter().map(|text| (*text).into()).collect();
        wait(&format!("routes {expected:?}"), || {
            let routes = self.routes();
            if routes == expected {
                Ok(())
            } else {
                Err(format!("{routes:?}"))
            }
        });
    }

    fn wait_for_conflist(&self, expected: &Value) {
        wait("the CNI configuration", || {
            let text = std::fs::read_to_string(self.conflist()).map_err(|e| e.to_string())?;
            let list: Value = serde_json::from_str(&text).expect("never half a file");
            if &list == expected { Ok(()) } else { Err(text) }
        });
    }

    /// Elements of a map or set in podwire's table.
    fn nft(&self) -> String {
        run(&self.namespace, "nft", "list table inet podwire")
    }

    fn get(&self, path: &str) -> (u16, String) {
        self.get_at("127.0.0.1:10256", path)
    }

    /// Two clients with one port left for both: conntrack cannot enter the second.
    fn lose_a_packet(&self) {
        for command in [
            "add table ip probe",
            "add chain ip probe out { type nat hook postrouting priority 100 ; }",
            "add rule ip probe out udp dport 2 snat to 127.0.0.1:5000",
        ] {
            run(&self.namespace, "nft", command);
        }
        let sent = self.namespace.run(|| {
            [0, 1].map(|_| {
                std::net::UdpSocket::bind("127.0.0.1:0")
                    .expect("a port")
                    .send_to(b"?", "127.0.0.1:2")
                    .is_ok()
            })
        });
        assert_eq!(sent.expect("enterable"), [true, false]);
        run(&self.namespace, "nft", "delete table ip probe");
    }

    fn get_at(&self, address: &str, path: &str) -> (u16, String) {
        self.namespace
            .run(|| {
                use std::io::{Read as _, Write as _};
                let mut stream = std::net::TcpStream::connect(address).expect("it listens");
                write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").expect("writable");
                let mut answer = String::new();
                stream.read_to_string(&mut answer).expect("readable");
                let code = answer.split(' ').nth(1).and_then(|code| code.parse().ok());
                (code.expect("a status code"), answer)
            })
            .expect("the namespace can be entered")
    }

    fn put_own(&self) {
        self.api.put::<Node>(node("own", 11));
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // The API server's tasks end within the runtime they run on.
        let _guard = self.runtime.enter();
    }
}

/// A running agent; stopped and joined when dropped.
struct Agent {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            let (done, finished) = mpsc::channel();
            std::thread::spawn(move || {
                let outcome = thread.join();
                let _ = done.send(outcome.is_ok());
            });
            let outcome = finished.recv_timeout(PATIENCE);
            if !std::thread::panicking() {
                assert_eq!(outcome, Ok(true), "the agent ends when it is told to");
            }
        }
    }
}

fn run(namespace: &NetworkNamespace, program: &str, arguments: &str) -> String {
    let output = namespace
        .run(|| Command::new(program).args(arguments.split(' ')).output())
        .expect("the namespace can be entered")
        .expect("the program is installed");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments}: {errors}");
    String::from_utf8(output.stdout).expect("text")
}

/// Asks the kernel or the file system again until it answers as wanted; they
/// have no event that fits all of what is asked here.
fn wait(what: &str, mut check: impl FnMut() -> Result<(), String>) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match check() {
            Ok(()) => return,
            Err(last) if Instant::now() > deadline => panic!("no {what}; last: {last}"),
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

fn node(name: &str, number: u8) -> Value {
    json!({
        "metadata": {"name": name},
        "spec": {"podCIDRs": [format!("10.200.{number}.0/24"), format!("fd00:200:0:{number}::/64")]},
        "status": {"addresses": [
            {"type": "InternalIP", "address": format!("192.168.64.{number}")},
            {"type": "InternalIP", "address": format!("fd00:64::{number}")},
        ]},
    })
}

fn service(name: &str, ip: &str) -> Value {
    json!({"metadata": {"namespace": "shop", "name": name},
        "spec": {"clusterIPs": [ip], "ports": [{"port": 80, "protocol": "TCP"}]}})
}

fn slice(service: &str, addresses: &[&str]) -> Value {
    let endpoints: Vec<Value> = addresses
        .iter()
        .map(|address| json!({"addresses": [address], "conditions": {"ready": true}}))
        .collect();
    json!({"metadata": {"namespace": "shop", "name": format!("{service}-1"),
            "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4", "endpoints": endpoints, "ports": [{"port": 8080, "protocol": "TCP"}]})
}

fn conflist(mtu: u32, ranges: &[&str]) -> Value {
    let ranges: Vec<Value> = ranges
        .iter()
        .map(|range| json!([{"subnet": range}]))
        .collect();
    json!({"cniVersion": "1.0.0", "cniVersions": ["1.0.0", "1.1.0"], "name": "podwire", "plugins": [{
        "type": "podwire-cni", "capabilities": {"bandwidth": true, "portMappings": true},
        "attach": "routed", "mtu": mtu, "ipam": {"ranges": ranges}}]})
}

const OWN: [&str; 2] = ["10.200.11.0/24", "fd00:200:0:11::/64"];

#[test]
fn addresses_of_pods_that_vanished_are_freed_and_the_ranges_noted() {
    let host = Host::new();
    host.put_own();
    let root = host.files.path().join("ipam");
    let store = ipam::Store::new(&root, "podwire").expect("a name");
    let claim = ipam::Claim {
        attachment: ipam::Attachment::new("gone", "eth0"),
        pod: None,
        wanted: Vec::new(),
        apart: false,
        notes: std::collections::HashMap::new(),
    };
    let ranges = ipam::Range::of("10.200.11.0/24".parse().expect("a range"));
    let ranges = [ipam::RangeSet::new(&[ranges]).expect("good")];
    drop(store.reserve(&claim, &ranges).expect("room"));
    let _agent = host.start();
    host.wait_for_conflist(&conflist(1400, &OWN));
    wait("the address to be free", || {
        match store.count().expect("readable") {
            0 => Ok(()),
            held => Err(format!("{held} held")),
        }
    });
    let note = ipam::NodeRanges::read(&root)
        .expect("readable")
        .expect("noted");
    assert_eq!(note.mtu, Some(1400));
    assert_eq!(
        note.ranges
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>(),
        OWN
    );
    let gate = cni::policy::Gate {
        socket: host.files.path().join("cni.sock"),
        patience: Duration::from_secs(60),
    };
    gate.probe().expect("the agent listens");
}

#[test]
fn nodes_come_change_and_go_and_routes_follow() {
    let host = Host::new();
    host.put_own();
    host.api.put::<Node>(node("a", 12));
    let _agent = host.start();
    host.wait_for_conflist(&conflist(1400, &OWN));
    host.wait_for_routes(&[
        OWN[0],
        OWN[1],
        "10.200.12.0/24 via 192.168.64.12",
        "fd00:200:0:12::/64 via fd00:64::12",
    ]);
    let forwarding = |path| run(&host.namespace, "cat", path);
    assert_eq!(forwarding("/proc/sys/net/ipv4/ip_forward"), "1\n");
    assert_eq!(forwarding("/proc/sys/net/ipv6/conf/all/forwarding"), "1\n");

    host.api.put::<Node>(node("b", 13));
    let mut moved = node("a", 12);
    moved["status"] = node("a", 22)["status"].clone();
    host.api.put::<Node>(moved);
    host.wait_for_routes(&[
        OWN[0],
        OWN[1],
        "10.200.12.0/24 via 192.168.64.22",
        "fd00:200:0:12::/64 via fd00:64::22",
        "10.200.13.0/24 via 192.168.64.13",
        "fd00:200:0:13::/64 via fd00:64::13",
    ]);
    host.api.delete::<Node>("", "a");
    host.api.delete::<Node>("", "b");
    host.wait_for_routes(&OWN);
}

#[test]
fn settings_that_would_stop_pod_traffic_are_changed() {
    let host = Host::new();
    let setting = |name: &str| format!("/proc/sys/net/{name}");
    let write = |name: &str, value: &str| {
        let path = setting(name);
        host.namespace
            .run(|| std::fs::write(&path, value))
            .expect("enterable")
            .unwrap_or_else(|error| panic!("{path}: {error}"));
    };
    write("ipv4/conf/eth0/rp_filter", "1");
    write("ipv6/conf/eth0/accept_ra", "1");
    write("ipv6/conf/all/forwarding", "0");
    write("bridge/bridge-nf-call-iptables", "0");
    write("netfilter/nf_conntrack_tcp_timeout_close_wait", "60");
    host.put_own();
    let _agent = host.start_with(Options {
        attach: Attach::Bridge,
        ..host.options()
    });
    let mut expected = conflist(1400, &OWN);
    expected["plugins"][0]["attach"] = json!("bridge");
    host.wait_for_conflist(&expected);
    let read = |name: &str| {
        run(&host.namespace, "cat", &setting(name))
            .trim()
            .to_owned()
    };
    assert_eq!(read("ipv4/conf/eth0/rp_filter"), "2");
    assert_eq!(read("ipv6/conf/eth0/accept_ra"), "2");
    assert_eq!(read("ipv6/conf/all/forwarding"), "1");
    assert_eq!(read("bridge/bridge-nf-call-iptables"), "1");
    // As kube-proxy sets them.
    for (state, seconds) in [("close_wait", "3600"), ("established", "86400")] {
        let setting = format!("netfilter/nf_conntrack_tcp_timeout_{state}");
        assert_eq!(read(&setting), seconds, "{state}");
    }
}

#[test]
fn a_kubeconfig_that_cannot_be_used_is_named() {
    let host = Host::new();
    let options = Options {
        kubeconfig: Some("/nowhere/kubeconfig".into()),
        ..host.options()
    };
    let error = host
        .namespace
        .run(|| run_until(options, std::future::pending()))
        .expect("enterable")
        .expect_err("there is no such file");
    assert!(error.to_string().contains("/nowhere/kubeconfig"), "{error}");
}

#[test]
fn nothing_is_promised_before_the_node_has_its_range() {
    let host = Host::new();
    host.lose_a_packet();
    let agent = host.start();
    wait("health", || {
        host.namespace
            .run(|| {
                std::net::TcpStream::connect("127.0.0.1:10256")
                    .map(|_| ())
                    .map_err(|e| e.to_string())
            })
            .expect("enterable")
    });
    assert_eq!(host.get("/readyz").0, 503);
    assert_eq!(host.get("/healthz").0, 200);
    let mut without = node("own", 11);
    without["spec"] = json!({});
    host.api.put::<Node>(without);
    host.api.put::<Node>(node("a", 12));
    // All kinds are watched, so the first lists have been read.
    host.runtime.block_on(
        host.api
            .until(|log| log.iter().filter(|p| p.contains("watch=true")).count() >= 3),
    );
    assert!(!host.conflist().exists());
    host.put_own();
    host.wait_for_conflist(&conflist(1400, &OWN));
    assert!(host.routes().contains("10.200.12.0/24 via 192.168.64.12"));
    wait("readiness", || match host.get("/readyz") {
        (200, _) => Ok(()),
        (_, answer) => Err(answer),
    });
    let (_, metrics) = host.get_at("127.0.0.1:10249", "/metrics");
    for line in [
        "podwire_peers 1\n",
        "podwire_conntrack_insert_failed_total 1\n",
        "podwire_conntrack_dropped_total 1\n",
    ] {
        assert!(metrics.contains(line), "{line}{metrics}");
    }
    drop(agent);
}

#[test]
fn a_change_of_endpoints_is_measured_from_its_trigger() {
    let host = Host::new();
    host.put_own();
    let triggered = |addresses: &[&str], trigger: &str| {
        let mut slice = slice("web", addresses);
        slice["metadata"]["annotations"] =
            json!({"endpoints.kubernetes.io/last-change-trigger-time": trigger});
        slice
    };
    host.api.put::<Service>(service("web", "10.96.0.20"));
    // Before the agent's time.
    host.api
        .put::<EndpointSlice>(triggered(&["10.200.12.5"], "2026-01-01T00:00:00Z"));
    let _agent = host.start();
    host.wait_for_conflist(&conflist(1400, &OWN));
    let measured = |count: u32| {
        wait(&format!("{count} measured changes"), || {
            let (_, metrics) = host.get_at("127.0.0.1:10249", "/metrics");
            let line = format!("kubeproxy_network_programming_duration_seconds_count {count}\n");
            metrics.contains(&line).then_some(()).ok_or(metrics)
        });
    };
    measured(0);
    let now = jiff::Timestamp::now().to_string();
    host.api
        .put::<EndpointSlice>(triggered(&["10.200.12.6"], &now));
    measured(1);
    // Nothing that matters to a proxy is other than before.
    let mut same = triggered(&["10.200.12.6"], &now);
    same["metadata"]["labels"]["colour"] = json!("blue");
    host.api.put::<EndpointSlice>(same);
    host.api
        .put::<EndpointSlice>(triggered(&["10.200.12.7"], &now));
    measured(2);
}

#[test]
fn a_malformed_object_is_an_event_and_harms_no_other() {
    let host = Host::new();
    host.put_own();
    let put = |name: &str, ip: &str, change: &dyn Fn(&mut Value, &mut Value)| {
        let (mut service, mut slice) = (service(name, ip), slice(name, &["10.200.12.9"]));
        change(&mut service, &mut slice);
        host.api.put::<Service>(service);
        host.api.put::<EndpointSlice>(slice);
    };
    put("web", "10.96.0.20", &|_, _| {});
    let _agent = host.start();
    host.wait_for_conflist(&conflist(1400, &OWN));
    put("address", "10.96.0.21", &|service, _| {
        service["spec"]["clusterIPs"] = json!(["10.96.0.300", "fd00::1::2", ""]);
    });
    put("port", "10.96.0.22", &|service, _| {
        service["spec"]["ports"] = json!([{"port": 70_000}, {"name": "n", "port": -1}]);
    });
    put("family", "10.96.0.23", &|_, slice| {
        slice["endpoints"][0]["addresses"] = json!(["fd00::1"]);
    });
    put("number", "10.96.0.24", &|_, slice| {
        slice["ports"] = json!([{"port": 65_536}]);
    });
    put("range", "10.96.0.25", &|service, _| {
        service["spec"]["type"] = json!("LoadBalancer");
        service["spec"]["loadBalancerSourceRanges"] = json!(["10.0.0.0/40"]);
    });
    // What can be understood is in force, whatever it looks like.
    put("zeros", "010.096.000.026", &|_, slice| {
        slice["endpoints"][0]["addresses"] = json!(["010.200.012.026"]);
    });
    put("nameless", "10.96.0.27", &|service, slice| {
        service["spec"]["ports"] =
            json!([{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]);
        slice["ports"] =
            json!([{"port": 5327, "protocol": "UDP"}, {"port": 5327, "protocol": "TCP"}]);
    });
    put("many", "10.96.0.28", &|_, slice| {
        let all = (0..1000).map(|n| format!("10.201.{}.{}", n / 250, n % 250));
        slice["endpoints"] = all.map(|one| json!({"addresses": [one]})).collect();
    });
    put("nothing", "10.96.0.29", &|service, slice| {
        service["spec"]["ports"] = Value::Null;
        slice["endpoints"] = json!([{"addresses": []}, {"addresses": null, "conditions": null}]);
        slice["ports"] = Value::Null;
    });
    let expected = [
        ("address", "InvalidAddress"),
        ("family", "InvalidEndpoint"),
        ("number", "InvalidPort"),
        ("port", "InvalidPort"),
        ("range", "InvalidSourceRange"),
    ]
    .map(|(service, reason)| (service.to_owned(), reason.to_owned()));
    wait("an Event of each", || {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let told: BTreeSet<(String, String)> = host
            .api
            .collection("/api/v1/events")
            .iter()
            .filter(|event| event["involvedObject"]["kind"] == "Service")
            .map(|event| {
                (
                    text(&event["involvedObject"]["name"]),
                    text(&event["reason"]),
                )
            })
            .collect();
        if told == BTreeSet::from(expected.clone()) {
            Ok(())
        } else {
            Err(format!("{told:?}"))
        }
    });
    for event in host.api.collection("/api/v1/events") {
        let service = event["involvedObject"]["name"].as_str().unwrap_or_default();
        let uid = format!("uid-of-shop/{service}");
        assert_eq!(event["involvedObject"]["uid"], uid, "{event}");
        assert_eq!(event["type"], "Warning");
    }
    // The others, and those that come after.
    put("late", "10.96.0.30", &|_, _| {});
    wait("all others", || {
        let rules = host.nft();
        let wanted = [
            "10.96.0.20",
            "10.96.0.26",
            "10.200.12.26",
            "10.96.0.27",
            "10.201.0.0",
            "10.201.3.249",
            "10.96.0.30",
        ];
        match wanted.iter().find(|part| !rules.contains(**part)) {
            Some(part) => Err(format!("{part} is not in\n{rules}")),
            None => Ok(()),
        }
    });
    assert_eq!(host.get("/livez").0, 200);
}

fn is_link_local(range: &IpNet) -> bool {
    matches!(range, IpNet::V6(range) if range.addr().is_unicast_link_local())
}

#[test]
fn a_restart_changes_nothing_and_the_data_plane_stays_meanwhile() {
    let host = Host::new();
    host.put_own();
    host.api.put::<Node>(node("a", 12));
    host.api.put::<Service>(service("web", "10.96.0.20"));
    host.api
        .put::<EndpointSlice>(slice("web", &["10.200.11.5", "10.200.12.5"]));
    let agent = host.start();
    host.wait_for_conflist(&conflist(1400, &OWN));
    drop(agent);
    let routes = host.routes();
    assert_eq!(routes.len(), 4, "{routes:?}");
    let rules = host.nft();
    assert!(rules.contains("10.96.0.20"), "{rules}");
    let written = std::fs::metadata(host.conflist())
        .and_then(|m| m.modified())
        .expect("it is there");

    let groups = [
        Group::Links,
        Group::Addresses4,
        Group::Addresses6,
        Group::Routes4,
        Group::Routes6,
    ];
    let mut monitor = host
        .namespace
        .run(|| EventSocket::open(&groups))
        .expect("enterable")
        .expect("a socket");
    // A node went and one came while no agent ran.
    host.api.delete::<Node>("", "a");
    host.api.put::<Node>(node("b", 13));
    let _agent = host.start();
    host.wait_for_routes(&[
        OWN[0],
        OWN[1],
        "10.200.13.0/24 via 192.168.64.13",
        "fd00:200:0:13::/64 via fd00:64::13",
    ]);
    let mut touched = BTreeSet::new();
    while let Some(events) = monitor.receive().expect("readable") {
        for event in events {
            match event {
                // The kernel's own, once nobody else has the link-local address (RFC 4862).
                Event::Route(route) if is_link_local(&route.destination) => {}
                Event::Route(route) | Event::RouteGone(route, _) => {
                    touched.insert(route.destination.to_string());
                }
                Event::Lost => panic!("events were lost"),
                _ => {}
            }
        }
    }
    let expected = [
        "10.200.12.0/24",
        "10.200.13.0/24",
        "fd00:200:0:12::/64",
        "fd00:200:0:13::/64",
    ];
    assert_eq!(touched, expected.map(String::from).into());
    assert_eq!(
        std::fs::metadata(host.conflist())
            .and_then(|m| m.modified())
            .expect("still there"),
        written
    );
    assert!(host.nft().contains("10.96.0.20"));
}

#[test]
fn services_are_in_force_before_the_node_is_ready_and_follow() {
    let host = Host::new();
    host.put_own();
    host.api.put::<Service>(service("web", "10.96.0.20"));
    host.api
        .put::<EndpointSlice>(slice("web", &["10.200.11.5"]));
    let _agent = host.start();
    host.wait_for_conflist(&conflist(1400, &OWN));
    let rules = host.nft();
    assert!(
        rules.contains("10.96.0.20") && rules.contains("10.200.11.5"),
        "{rules}"
    );
    host.api
        .put::<EndpointSlice>(slice("web", &["10.200.11.6"]));
    let holds = |what: &'static str, not: &'static str| {
        wait(what, || {
            let rules = host.nft();
            if rules.contains(what) && !rules.contains(not) {
                Ok(())
            } else {
                Err(rules)
            }
        });
    };
    holds("10.200.11.6", "10.200.11.5");
    host.api.put::<Service>(service("db", "10.96.0.30"));
    host.api.delete::<Service>("shop", "web");
    holds("10.96.0.30", "10.96.0.20");
}

#[test]
fn a_lost_api_server_takes_nothing_away_and_what_was_missed_is_made_up() {
    let host = Host::new();
    host.put_own();
    host.api.put::<Node>(node("a", 12));
    host.api.put::<Service>(service("web", "10.96.0.20"));
    let _agent = host.start();
    host.wait_for_conflist(&conflist(1400, &OWN));
    host.api.outage(Some(503));
    host.api.disconnect();
    host.api.delete::<Node>("", "a");
    host.api.put::<Node>(node("b", 13));
    host.api.delete::<Service>("shop", "web");
    host.api.compact();
    let before = host.api.requests().len();
    host.runtime
        .block_on(host.api.until(|log| log.len() >= before + 6));
    let (routes, rules) = (host.routes(), host.nft());
    assert!(
        routes.contains("10.200.12.0/24 via 192.168.64.12"),
        "{routes:?}"
    );
    assert!(rules.contains("10.96.0.20"), "{rules}");
    host.api.outage(None);
    host.wait_for_routes(&[
        OWN[0],
        OWN[1],
        "10.200.13.0/24 via 192.168.64.13",
        "fd00:200:0:13::/64 via fd00:64::13",
    ]);
    wait("the Service to go", || {
        let rules = host.nft();
        if rules.contains("10.96.0.20") {
            Err(rules)
        } else {
            Ok(())
        }
    });
}

#[test]
fn the_own_nodes_object_may_go_and_its_range_may_change() {
    let host = Host::new();
    host.put_own();
    host.api.put::<Node>(node("a", 12));
    let _agent = host.start();
    host.wait_for_conflist(&conflist(1400, &OWN));
    host.api.delete::<Node>("", "own");
    host.api.delete::<Node>("", "a");
    host.wait_for_routes(&OWN);
    assert!(host.conflist().exists());
    let mut changed = node("own", 11);
    changed["spec"] = json!({"podCIDR": "10.200.77.0/24"});
    host.api.put::<Node>(changed);
    host.wait_for_routes(&["10.200.77.0/24"]);
    host.wait_for_conflist(&conflist(1400, &["10.200.77.0/24"]));
}

#[test]
fn what_others_do_to_the_kernel_is_followed_or_put_right() {
    let host = Host::new();
    host.put_own();
    host.api.put::<Node>(node("a", 12));
    let _agent = host.start();
    host.wait_for_conflist(&conflist(1400, &OWN));
    let all = [
        OWN[0],
        OWN[1],
        "10.200.12.0/24 via 192.168.64.12",
        "fd00:200:0:12::/64 via fd00:64::12",
    ];
    host.wait_for_routes(&all);
    host.ip("route del 10.200.12.0/24");
    host.wait_for_routes(&all);
    host.ip("link set eth0 mtu 1300");
    host.wait_for_conflist(&conflist(1300, &OWN));
    // The kernel takes an interface's routes away with its state.
    host.ip("link set eth0 down");
    wait("routes to go with the link", || {
        let routes = host.routes();
        if routes.contains(all[2]) {
            Err(format!("{routes:?}"))
        } else {
            Ok(())
        }
    });
    host.ip("link set eth0 up");
    host.ip("addr replace fd00:64::11/64 dev eth0 nodad");
    host.wait_for_routes(&all);
    // A pod's route is not the agent's.
    host.ip("link add pwpod type veth peer name pod0");
    host.ip("link set pwpod up");
    host.ip("route add 10.200.11.5/32 dev pwpod proto 112");
    host.api.put::<Node>(node("b", 13));
    wait("routes to b", || {
        let routes = host.routes();
        if routes.contains("10.200.13.0/24 via 192.168.64.13") {
            Ok(())
        } else {
            Err(format!("{routes:?}"))
        }
    });
    assert!(host.routes().contains("10.200.11.5"));
}

#[test]
fn damage_to_the_rules_of_services_is_put_right_within_the_audit_period() {
    let host = Host::new();
    host.put_own();
    host.api.put::<Service>(service("web", "10.96.0.20"));
    host.api
        .put::<EndpointSlice>(slice("web", &["10.200.11.5"]));
    let _agent = host.start_with(Options {
        audit_period: Period(Duration::from_millis(200)),
        ..host.options()
    });
    host.wait_for_conflist(&conflist(1400, &OWN));
    for damage in [
        "flush ruleset",
        "flush table inet podwire",
        "delete table inet podwire",
    ] {
        run(&host.namespace, "nft", damage);
        wait(&format!("the rules after {damage}"), || {
            let rules = run(&host.namespace, "nft", "list ruleset");
            let whole = ["10.96.0.20", "10.200.11.5", "dnat"];
            match whole.iter().all(|part| rules.contains(part)) {
                true => Ok(()),
                false => Err(rules),
            }
        });
    }
}

#[test]
fn a_node_without_default_route_gets_one_to_the_services() {
    let host = Host::new();
    host.ip("route del default");
    host.put_own();
    host.api.put::<Service>(service("a", "10.96.0.1"));
    host.api.put::<Service>(service("b", "10.96.0.20"));
    let mut six = service("c", "fd00:96::7");
    six["spec"]["clusterIPs"] = json!(["fd00:96::7"]);
    host.api.put::<Service>(six);
    let _agent = host.start();
    // Before the node is ready, the route is there; IPv6 still has its default route.
    host.wait_for_conflist(&conflist(1400, &OWN));
    let expected = [OWN[0], OWN[1], "10.96.0.0/27"].map(String::from);
    assert_eq!(host.routes(), expected.into());
    host.ip("-4 route get 10.96.0.20");
    host.ip("route add default via 192.168.64.1");
    host.wait_for_routes(&OWN);
}

#[test]
fn a_peer_that_cannot_be_reached_is_reported_and_harms_nobody() {
    let host = Host::new();
    host.put_own();
    let mut far = node("far", 12);
    far["status"]["addresses"][0]["address"] = json!("192.168.99.12");
    host.api.put::<Node>(far);
    host.api.put::<Node>(node("near", 13));
    let _agent = host.start();
    host.wait_for_conflist(&conflist(1400, &OWN));
    host.wait_for_routes(&[
        OWN[0],
        OWN[1],
        "fd00:200:0:12::/64 via fd00:64::12",
        "10.200.13.0/24 via 192.168.64.13",
        "fd00:200:0:13::/64 via fd00:64::13",
    ]);
    wait("the report", || {
        let (_, answer) = host.get("/healthz");
        if answer.contains("192.168.99.12 is on no subnet of this node") {
            Ok(())
        } else {
            Err(answer)
        }
    });
}

#[test]
fn without_cni_configuration_none_is_written() {
    let host = Host::new();
    host.put_own();
    let _agent = host.start_with(Options {
        no_cni_conf: true,
        ..host.options()
    });
    host.wait_for_routes(&OWN);
    wait("readiness", || match host.get("/readyz") {
        (200, _) => Ok(()),
        (_, answer) => Err(answer),
    });
    assert!(!host.conflist().exists());
}

#[test]
fn dns_is_not_refused_while_an_agent_is_replaced_and_off_gives_its_addresses_back() {
    let host = Host::new();
    host.put_own();
    host.api.put::<Service>(service("web", "10.96.0.20"));
    let mut options = host.options();
    options.dns.dns = Mode::Replace;
    options.dns.cluster_dns = ["10.96.0.10", "fd00:96::a"]
        .map(|address| address.parse().expect("an address"))
        .to_vec();
    let agent = host.start_with(options.clone());
    host.wait_for_conflist(&conflist(1400, &OWN));
    let ask = |server: &str| {
        let name = "web.shop.svc.cluster.local";
        run(&host.namespace, "dig", &format!("+short @{server} {name}"))
    };
    for server in ["10.96.0.10", "fd00:96::a", "169.254.20.10", "fd00:20::10"] {
        wait(server, || match ask(server) {
            answer if answer == "10.96.0.20\n" => Ok(()),
            answer => Err(answer),
        });
    }
    drop(agent);
    // A socket that is refused says so at once, and at the latest when it is read.
    let refused = |address: &str, port: u16| {
        host.namespace
            .run(|| {
                let any = if address.contains(':') {
                    "::"
                } else {
                    "0.0.0.0"
                };
                let socket = std::net::UdpSocket::bind((any, 0)).expect("a socket");
                socket.connect((address, port)).expect("there is a route");
                let patience = Duration::from_millis(300);
                socket.set_read_timeout(Some(patience)).expect("settable");
                socket.send(&[0; 12]).expect("sent");
                let error = socket.recv(&mut [0; 12]).expect_err("nobody answers");
                error.kind() == std::io::ErrorKind::ConnectionRefused
            })
            .expect("the namespace can be entered")
    };
    for address in ["10.96.0.10", "fd00:96::a", "169.254.20.10"] {
        assert!(!refused(address, 53), "{address}: questions wait");
        assert!(refused(address, 54), "{address}: other ports are refused");
    }
    let local = || {
        let text = ["-4", "-6"]
            .map(|family| host.ip(&format!("{family} route show table local proto 112")));
        text.concat().lines().count()
    };
    assert_eq!(local(), 4);

    options.dns.dns = Mode::Off;
    std::fs::remove_file(host.conflist()).expect("it is there");
    let _agent = host.start_with(options);
    host.wait_for_conflist(&conflist(1400, &OWN));
    assert_eq!(local(), 0);
    let tables = run(&host.namespace, "nft", "list tables");
    assert!(!tables.contains("podwire_dns"), "{tables}");
}

#[test]
fn where_pods_are_attached_to_a_bridge_the_agent_holds_its_guard() {
    let host = Host::new();
    host.put_own();
    let held = || {
        let directory = host.options().ipam_dir;
        bridge_guard::is_held(&directory, &host.namespace)
    };
    let wait_until_held = || {
        wait("the guard to be held", || match held() {
            true => Ok(()),
            false => Err("it is not".to_owned()),
        });
    };
    let agent = host.start_with(Options {
        attach: Attach::Bridge,
        ..host.options()
    });
    wait_until_held();
    run(&host.namespace, "nft", "flush ruleset");
    let listed = || run(&host.namespace, "nft", "list table bridge podwire_bridge");
    let whole = listed();
    assert!(whole.contains("nd-router-advert"), "{whole}");
    drop(agent);
    assert!(!held());
    // The pods that rely on it do so still.
    assert!(listed().contains("nd-router-advert"));
    // Also when pods are attached in another way from now on.
    let agent = host.start();
    wait_until_held();
    assert_eq!(listed(), whole);
    drop(agent);
    run(&host.namespace, "nft", "delete table bridge podwire_bridge");
    let _agent = host.start();
    host.wait_for_conflist(&conflist(1400, &OWN));
    let tables = run(&host.namespace, "nft", "list tables");
    assert!(!tables.contains("bridge"), "{tables}");
}

#[test]
fn cleanup_removes_all_of_podwires_and_nothing_else() {
    let host = Host::new();
    host.put_own();
    host.api.put::<Node>(node("a", 12));
    host.api.put::<Service>(service("web", "10.96.0.20"));
    let agent = host.start_with(Options {
        attach: Attach::Bridge,
        ..host.options()
    });
    wait("the CNI configuration", || match host.conflist().exists() {
        true => Ok(()),
        false => Err("it is not there".to_owned()),
    });
    drop(agent);
    run(&host.namespace, "nft", "add table inet podwire_hostports");
    host.ip("link add pwbr0 type bridge");
    host.ip("link add pw1 type veth peer name pw2");
    run(&host.namespace, "nft", "add table inet other");
    let directory = host.files.path().join("net.d");
    let removed = host
        .namespace
        .run(|| cleanup(&directory))
        .expect("enterable")
        .expect("it works");
    assert_eq!(removed.routes.len(), 4);
    assert!(removed.table && removed.host_ports && removed.bridge_guard);
    assert!(removed.interfaces.contains(&"pwbr0".to_owned()));
    assert!(!host.conflist().exists());
    assert_eq!(host.routes().len(), 0);
    assert_eq!(
        run(&host.namespace, "nft", "list tables").trim(),
        "table inet other"
    );
    let links = host.ip("-o link show");
    assert!(!links.contains("pw") && links.contains("eth0"), "{links}");
    assert!(host.ip("route show default").contains("192.168.64.1"));
    let again = host
        .namespace
        .run(|| cleanup(&directory))
        .expect("enterable")
        .expect("it works");
    assert_eq!(again, podwire_agent::Removed::default());
}
