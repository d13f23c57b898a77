//! Names, by the resolvers that pods really have.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use rstest::rstest;
use rustix::process::{Pid, Signal, kill_process};

use crate::support::{
    Lab, PODWIRE, client, eventually, output, printed, server, service, success, url,
};
use crate::survival::{control_plane, kill_on_node, runs_again};

const WITHIN: Duration = Duration::from_secs(60);

/// Services of each kind, a StatefulSet, and a pod on its node's network.
fn manifests() -> String {
    let more = "---
apiVersion: v1
kind: Service
metadata: {name: db}
spec: {clusterIP: None, selector: {app: db}, ipFamilyPolicy: PreferDualStack, ports: [{name: sql, port: 5432}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  serviceName: db
  replicas: 2
  podManagementPolicy: Parallel
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{name: shell, image: 'host:', command: [sleep, infinity]}]
---
apiVersion: v1
kind: Service
metadata: {name: alias}
spec: {type: ExternalName, externalName: shop.default.svc.cluster.local}
---
apiVersion: v1
kind: Pod
metadata: {name: on-node}
spec:
  nodeName: node-1
  hostNetwork: true
  dnsPolicy: ClusterFirstWithHostNet
  terminationGracePeriodSeconds: 0
  containers: [{name: shell, image: 'host:', command: [sleep, infinity]}]
";
    [
        service("shop", "10.96.0.20"),
        server("shop-1", "shop", "node-1"),
        client("client", "node-2"),
        dnsmasq(
            "outside-dns",
            "default",
            &[
                "--domain-needed",
                "--local=/com/",
                "--host-record=www.example.com,192.0.2.1",
            ],
        ),
        more.to_owned(),
    ]
    .concat()
}

fn podwire(arguments: &[&str]) -> String {
    success(&format!("{arguments:?}"), &output(PODWIRE, arguments))
}

/// The answer's data, one record a line, as dig prints it.
fn dig(lab: &Lab, pod: &str, arguments: &[&str]) -> Vec<String> {
    let mut command = vec!["dig", "+short", "+tries=1", "+time=10"];
    command.extend(arguments);
    let mut lines: Vec<String> = lab
        .exec(pod, &command)
        .lines()
        .map(|line| line.trim().to_owned())
        .collect();
    lines.sort();
    lines
}

fn sorted(mut addresses: Vec<String>) -> Vec<String> {
    addresses.sort();
    addresses
}

/// A pod of node-1 with a DNS server that knows what its arguments say.
fn dnsmasq(name: &str, namespace: &str, arguments: &[&str]) -> String {
    let arguments: Vec<String> = arguments.iter().map(|a| format!("'{a}'")).collect();
    format!(
        "---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: {namespace}, labels: {{k8s-app: kube-dns}}}}
spec:
  nodeName: node-1
  dnsPolicy: Default
  terminationGracePeriodSeconds: 0
  containers:
  - name: dnsmasq
    image: 'host:'
    command: [dnsmasq, --keep-in-foreground, --user=root, --pid-file, --conf-file=/dev/null,
      --no-resolv, --no-hosts, --log-queries, --log-facility=-, --local-ttl=600, '--local=/example/',
      {}]
    readinessProbe: {{tcpSocket: {{port: 53}}, periodSeconds: 1}}
",
        arguments.join(", ")
    )
}

/// Pods with the node's search domains, with its whole configuration, and with a
/// list of its own: more than six domains, and than 256 characters.
fn searching() -> String {
    let long: Vec<String> = (0..8)
        .map(|n| format!("    - {}-{n}.default.svc.cluster.local", "long".repeat(10)))
        .collect();
    let own = "---
apiVersion: v1
kind: Pod
metadata: {name: as-the-node}
spec:
  nodeName: node-2
  dnsPolicy: Default
  terminationGracePeriodSeconds: 0
  containers: [{name: shell, image: 'host:', command: [sleep, infinity]}]
---
apiVersion: v1
kind: Pod
metadata: {name: own-list}
spec:
  nodeName: node-2
  dnsPolicy: None
  dnsConfig:
    nameservers: [169.254.20.10]
    searches:
    - .
    - _sip._tcp.abc_d.default.svc.cluster.local
LONG
    - default.svc.cluster.local
    options: [{name: ndots, value: '5'}]
  terminationGracePeriodSeconds: 0
  containers: [{name: shell, image: 'host:', command: [sleep, infinity]}]
";
    [
        client("late", "node-2"),
        own.replace("LONG", &long.join("\n")),
    ]
    .concat()
}

/// A program that looks names up, linked with musl, where pods of the machine's
/// own file system find it.
fn musl_resolver() -> PathBuf {
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let program = directory.join(format!("resolve-{}", std::process::id()));
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/lab/resolve.c");
    let to = program.display().to_string();
    success(
        "musl-gcc",
        &output("musl-gcc", &["-static", "-O", "-o", &to, source]),
    );
    program
}

/// How many questions a node's DNS was asked.
fn asked(lab: &Lab, node: &str) -> u64 {
    let metrics = lab.node(node, &["curl", "-sS", "http://127.0.0.1:10249/metrics"]);
    metrics
        .lines()
        .filter(|line| line.starts_with("coredns_dns_requests_total{"))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
        .sum()
}

#[rstest]
#[case::bridge("bridge")]
#[case::routed("routed")]
fn pods_find_services_and_each_other_by_name_with_every_resolver(#[case] attach: &str) {
    let lab = Lab::up(&["--nodes", "2", "--attach", attach], &manifests());
    let shop = lab.cluster_ips("shop");
    let (db_0, db_1) = (lab.pod_addresses("db-0"), lab.pod_addresses("db-1"));

    // Each family by each server, over UDP and TCP.
    for server in ["10.96.0.10", "fd00:96::a", "169.254.20.10", "fd00:20::10"] {
        let at = format!("@{server}");
        for (kind, expected) in [("A", &shop[0]), ("AAAA", &shop[1])] {
            for transport in ["+notcp", "+tcp"] {
                let name = "shop.default.svc.cluster.local";
                let found = dig(&lab, "client", &[&at, transport, kind, name]);
                assert_eq!(
                    found,
                    std::slice::from_ref(expected),
                    "{at} {transport} {kind}"
                );
            }
        }
    }
    let srv = dig(
        &lab,
        "client",
        &["SRV", "_http._tcp.shop.default.svc.cluster.local"],
    );
    assert_eq!(srv, ["0 100 80 shop.default.svc.cluster.local."]);
    let ptr = dig(&lab, "client", &["-x", &shop[1]]);
    assert_eq!(ptr, ["shop.default.svc.cluster.local."]);
    let headless = dig(&lab, "client", &["A", "db.default.svc.cluster.local"]);
    assert_eq!(headless, sorted(vec![db_0[0].clone(), db_1[0].clone()]));
    let alias = dig(&lab, "client", &["A", "alias.default.svc.cluster.local"]);
    assert!(alias.contains(&shop[0]), "{alias:?}");

    // glibc, busybox, and a program, by short names.
    let ahosts = lab.exec("client", &["getent", "ahosts", "shop"]);
    assert!(
        ahosts.contains(&shop[0]) && ahosts.contains(&shop[1]),
        "{ahosts}"
    );
    let nslookup = lab.exec(
        "client",
        &["busybox", "nslookup", "shop.default.svc.cluster.local"],
    );
    assert!(
        nslookup.contains(&shop[0]) && nslookup.contains(&shop[1]),
        "{nslookup}"
    );
    let target = url("shop", 80, "/hostname");
    let answer = lab.exec("client", &["curl", "-sS", "--max-time", "20", &target]);
    assert_eq!(answer.trim(), "shop-1");
    // musl, many times: A and AAAA go to both servers at once, from one socket. None
    // is asked again.
    let musl = musl_resolver();
    let resolve = musl.display().to_string();
    let before = asked(&lab, "node-2");
    let found = lab.exec("client", &[&resolve, "shop", "50"]);
    assert!(
        found.contains(&shop[0]) && found.contains(&shop[1]),
        "{found}"
    );
    assert_eq!(asked(&lab, "node-2") - before, 50 * 2 * 2);
    // Another namespace's name is found by the first questions of the list, too.
    let before = asked(&lab, "node-2");
    let found = lab.exec("client", &[&resolve, "kubernetes.default"]);
    assert!(found.contains("10.96.0.1"), "{found}");
    assert_eq!(asked(&lab, "node-2") - before, 2 * 2);
    // A node with servers and search domains of its own, which are followed; pods
    // made since have five domains to search.
    let outside = lab.pod_addresses("outside-dns");
    let conf = format!("nameserver {}\nsearch corp.example example\n", outside[0]);
    lab.node(
        "node-2",
        &["sh", "-c", &format!("printf '{conf}' > /etc/resolv.conf")],
    );
    eventually("names outside are found", WITHIN, || {
        let found = dig(&lab, "client", &["A", "www.example.com"]);
        (found == ["192.0.2.1"])
            .then_some(())
            .ok_or(format!("{found:?}"))
    });
    lab.apply(&searching());
    let ready = [
        "wait",
        "--for=condition=Ready",
        "--timeout=60s",
        "pod/late",
        "pod/own-list",
        "pod/as-the-node",
    ];
    lab.kubectl(&ready);
    let list = lab.exec("late", &["cat", "/etc/resolv.conf"]);
    let domains =
        "search default.svc.cluster.local svc.cluster.local cluster.local corp.example example\n";
    assert!(list.contains(domains), "{list}");
    eventually("the node's DNS knows the pod", WITHIN, || {
        let first = "www.example.com.default.svc.cluster.local";
        let found = dig(&lab, "late", &["A", first]);
        found
            .contains(&"192.0.2.1".to_owned())
            .then_some(())
            .ok_or(format!("{found:?}"))
    });
    // Of six names, each by A and AAAA, one is asked for: by glibc at one server,
    // by musl at both.
    for (program, questions) in [(&["getent", "ahosts"][..], 2), (&[&resolve], 4)] {
        let before = asked(&lab, "node-2");
        let found = lab.exec("late", &[program, &["www.example.com"]].concat());
        assert!(found.contains("192.0.2.1"), "{program:?}: {found}");
        assert_eq!(asked(&lab, "node-2") - before, questions, "{program:?}");
    }
    std::fs::remove_file(musl).expect("it was just run");

    // Long lists, lists with a dot alone and with underscores.
    let found = lab.exec("own-list", &["getent", "ahosts", "shop"]);
    assert!(
        found.contains(&shop[0]) && found.contains(&shop[1]),
        "{found}"
    );
    // Each policy's resolv.conf, and the hosts file.
    let node = lab.node("node-2", &["cat", "/etc/resolv.conf"]);
    let own = |pod: &str| lab.exec(pod, &["cat", "/etc/resolv.conf"]);
    let servers = |text: &str| -> Vec<String> {
        let lines = text.lines().filter(|line| line.starts_with("nameserver"));
        lines.map(str::to_owned).collect()
    };
    assert_eq!(servers(&own("as-the-node")), servers(&node));
    let cluster = ["nameserver 10.96.0.10", "nameserver fd00:96::a"];
    for pod in ["client", "on-node"] {
        assert_eq!(servers(&own(pod)), cluster, "{pod}");
    }
    assert_eq!(servers(&own("own-list")), ["nameserver 169.254.20.10"]);
    let hosts = lab.exec("db-0", &["cat", "/etc/hosts"]);
    for address in &db_0 {
        let line = format!("{address}\tdb-0.db.default.svc.cluster.local\tdb-0");
        assert!(hosts.contains(&line), "{hosts}");
    }

    // A StatefulSet's pods by host name, in both directions.
    for (from, to, addresses) in [("db-0", "db-1.db", &db_1), ("db-1", "db-0.db", &db_0)] {
        let found = lab.exec(from, &["getent", "ahosts", to]);
        for address in addresses {
            assert!(found.contains(address.as_str()), "{from} → {to}: {found}");
        }
    }
    let on_node = lab.exec("on-node", &["getent", "ahosts", "shop"]);
    assert!(on_node.contains(&shop[0]), "{on_node}");
    let node = lab.node(
        "node-2",
        &[
            "dig",
            "+short",
            "@10.96.0.10",
            "shop.default.svc.cluster.local",
        ],
    );
    assert_eq!(node.trim(), shop[0]);

    // A name that changes its target.
    lab.apply(
        "---
apiVersion: v1
kind: Service
metadata: {name: alias}
spec: {type: ExternalName, externalName: db-0.db.default.svc.cluster.local}
",
    );
    eventually("the alias leads to its new target", WITHIN, || {
        let found = dig(&lab, "client", &["A", "alias.default.svc.cluster.local"]);
        found
            .contains(&db_0[0])
            .then_some(())
            .ok_or(format!("{found:?}"))
    });
    // And that gets an address of its own.
    lab.apply(
        "---
apiVersion: v1
kind: Service
metadata: {name: alias}
spec: {type: ClusterIP, externalName: null, clusterIP: 10.96.0.22, ports: [{port: 80}]}
",
    );
    eventually("the name has an address of its own", WITHIN, || {
        let found = dig(&lab, "client", &["A", "alias.default.svc.cluster.local"]);
        (found == ["10.96.0.22"])
            .then_some(())
            .ok_or(format!("{found:?}"))
    });

    for node in ["node-1", "node-2"] {
        for (family, protocol) in [
            ("ipv4", "udp"),
            ("ipv4", "tcp"),
            ("ipv6", "udp"),
            ("ipv6", "tcp"),
        ] {
            let entries = lab.node(
                node,
                &[
                    "conntrack",
                    "-L",
                    "-f",
                    family,
                    "-p",
                    protocol,
                    "--orig-port-dst",
                    "53",
                ],
            );
            // What the nodes ask the server outside is theirs, and no pod's.
            let of_pods: Vec<&str> = entries
                .lines()
                .filter(|line| !line.contains(&format!("dst={}", outside[0])))
                .collect();
            assert_eq!(of_pods, [""; 0], "conntrack follows DNS on {node}");
        }
    }
}

#[test]
fn names_hold_after_the_agent_was_killed_and_say_why() {
    let lab = Lab::up(&["--nodes", "2"], &manifests());
    let shop = lab.cluster_ips("shop");
    let ask = || dig(&lab, "client", &["A", "shop.default.svc.cluster.local"]);
    assert_eq!(ask(), [shop[0].clone()]);

    // Why, and from what.
    let here = ["--lab", &lab.name, "--node", "node-2"];
    let query = podwire(
        &[
            &["dns", "query"],
            &here[..],
            &["shop.default.svc.cluster.local"],
        ]
        .concat(),
    );
    assert!(
        query.contains("cluster addresses of Service default/shop"),
        "{query}"
    );
    assert!(query.contains(&shop[0]), "{query}");
    // As a pod: its search list is walked for the first name of it.
    let first = "shop.default.default.svc.cluster.local";
    let as_client = ["--from", "client", "-o", "json"];
    let query = [&["dns", "query", first], &here[..], &as_client].concat();
    eventually("the node's DNS knows the pod", WITHIN, || {
        let answer = podwire(&query);
        let is_json = serde_json::from_str::<serde_json::Value>(&answer).is_ok();
        (is_json && answer.contains(&shop[0]))
            .then_some(())
            .ok_or(answer)
    });
    let of_nobody = podwire(&[&["dns", "query", first], &here[..]].concat());
    assert!(!of_nobody.contains(&shop[0]), "{of_nobody}");
    let records = podwire(&[&["inspect"], &here[..], &["dns"]].concat());
    assert!(records.contains("Service default/shop"), "{records}");
    assert!(records.contains("EndpointSlice default/db-"), "{records}");

    // A new Service's name resolves no later than its address answers.
    let race = "until curl -sS --max-time 5 http://10.96.0.21/hostname 2>/dev/null; do :; done; \
                getent ahostsv4 later";
    let pod = Command::new(PODWIRE)
        .args(["lab", "exec", "--name", &lab.name, "client", "--"])
        .args(["timeout", "60", "sh", "-c", race])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("podwire was built by cargo for this test");
    lab.apply(&service("later", "10.96.0.21").replace("{app: later}", "{app: shop}"));
    let found = pod.wait_with_output().expect("it ends");
    let found = success("the address answered, and the name", &found);
    assert!(
        found.contains("shop-1") && found.contains("10.96.0.21"),
        "{found}"
    );

    // Without the API server: what is known is answered.
    let control = Pid::from_raw(control_plane(&lab)).expect("a process has a number");
    kill_process(control, Signal::STOP).expect("it runs");
    let api = lab.kubectl_output(&["get", "nodes", "--request-timeout=1s"]);
    assert!(!api.status.success(), "it is away: {}", printed(&api));
    // (A command in a pod would need it.)
    let ask = |node: &str, name: &str| {
        let name = format!("{name}.default.svc.cluster.local");
        lab.node(node, &["dig", "@10.96.0.10", &name])
    };
    for node in ["node-1", "node-2"] {
        assert!(ask(node, "shop").contains("10.96.0.20"));
        assert!(ask(node, "later").contains("10.96.0.21"));
        assert!(ask(node, "no").contains("NXDOMAIN"));
    }
    kill_process(control, Signal::CONT).expect("it is stopped");
    eventually("the API answers again, and news arrive", WITHIN, || {
        let made = lab.kubectl_with(
            "kubectl",
            &["apply", "-f", "-"],
            &service("news", "10.96.0.23"),
        );
        let found = dig(&lab, "client", &["A", "news.default.svc.cluster.local"]);
        (found == ["10.96.0.23"])
            .then_some(())
            .ok_or(format!("{found:?} {}", printed(&made)))
    });

    // While an agent takes over from one that was killed, what is asked waits.
    let before = kill_on_node(&lab, "node-2", "agent");
    runs_again(&lab, "node-2", "agent", &before);
    eventually("the next agent answers", WITHIN, || {
        let output = lab.exec_output(
            "client",
            &[
                "dig",
                "+short",
                "+tries=1",
                "+time=1",
                "shop.default.svc.cluster.local",
            ],
        );
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        (text == shop[0]).then_some(()).ok_or(text)
    });
}

#[test]
fn in_front_of_another_dns_what_it_said_is_kept_and_nothing_is_without_an_answer() {
    // The cluster's own DNS: a pod behind the Service kube-dns.
    let behind = |shop: &str, outside: &str| {
        let shop = format!("--host-record=shop.default.svc.cluster.local,{shop},fd00:96::20");
        let outside = format!("--host-record={outside}");
        dnsmasq(
            "dns",
            "kube-system",
            &["--local=/cluster.local/", &shop, &outside],
        )
    };
    let manifests = [
        behind("10.96.0.20", "www.example,192.0.2.1"),
        client("client", "node-2"),
        client("neighbour", "node-1"),
    ];
    let lab = Lab::up(&["--nodes", "2", "--dns", "cache"], &manifests.concat());
    let shop = "shop.default.svc.cluster.local";
    let log = || {
        lab.kubectl(&["logs", "dns", "--namespace", "kube-system"])
            .lines()
            .filter(|line| line.contains(&format!("query[A] {shop} ")))
            .count()
    };

    // At each address of the node, by both transports, on both nodes.
    for pod in ["client", "neighbour"] {
        for server in ["@10.96.0.10", "@fd00:96::a", "@169.254.20.10"] {
            for transport in ["+notcp", "+tcp"] {
                let found = dig(&lab, pod, &[server, transport, "A", shop]);
                assert_eq!(found, ["10.96.0.20"], "{pod} {server} {transport}");
            }
        }
        let found = lab.exec(pod, &["getent", "ahosts", "shop"]);
        assert!(found.contains("fd00:96::20"), "{found}");
    }
    // Fourteen questions of pods became one of each node, or two where this took
    // longer than answers are kept.
    eventually("the log tells", WITHIN, || {
        let asked = log();
        (asked >= 2)
            .then_some(())
            .ok_or(format!("asked {asked} times"))
    });
    assert!(log() <= 6, "asked {} times", log());
    assert_eq!(dig(&lab, "client", &["A", "www.example"]), ["192.0.2.1"]);
    let none = lab.exec("client", &["dig", "no.default.svc.cluster.local"]);
    assert!(none.contains("NXDOMAIN"), "{none}");
    let why = |name: &str| {
        let here = ["--lab", &lab.name, "--node", "node-2"];
        podwire(&[&["dns", "query"], &here[..], &[name]].concat())
    };
    assert!(why(shop).contains("from the cache"), "{}", why(shop));

    // Without it, what is not known fails at once, and it is said why.
    lab.kubectl(&["delete", "pod", "dns", "--namespace", "kube-system"]);
    eventually("the nodes know", WITHIN, || {
        let told = why("new.example");
        told.contains("no ready endpoint").then_some(()).ok_or(told)
    });
    let failed = lab.exec("client", &["dig", "+tries=1", "new.example"]);
    assert!(failed.contains("SERVFAIL"), "{failed}");

    // Another one, at another address.
    lab.apply(&behind("10.96.0.21", "new.example,192.0.2.2"));
    eventually("the next one's answers arrive", WITHIN, || {
        let found = dig(&lab, "client", &["A", "new.example"]);
        (found == ["192.0.2.2"])
            .then_some(())
            .ok_or(format!("{found:?}"))
    });

    // The manifests for a real cluster are objects an API server takes; the one
    // that takes the cluster's DNS over leaves its Service where it is.
    let deploy = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/");
    let agent = std::fs::read_to_string(format!("{deploy}podwire.yaml")).expect("it is there");
    let checked = lab.kubectl_with("kubectl", &["apply", "--dry-run=server", "-f", "-"], &agent);
    let checked = success("the agent's manifest", &checked);
    for object in [
        "serviceaccount/podwire",
        "clusterrole.rbac.authorization.k8s.io/podwire",
        "clusterrolebinding.rbac.authorization.k8s.io/podwire",
        "daemonset.apps/podwire",
    ] {
        assert!(checked.contains(&format!("{object} created")), "{checked}");
    }
    let service =
        || lab.get(&["service", "kube-dns", "--namespace", "kube-system"])["spec"].clone();
    let before = service();
    for file in ["dns-cache.yaml", "dns-replace.yaml"] {
        lab.kubectl(&["apply", "-f", &format!("{deploy}{file}")]);
    }
    let after = service();
    for field in ["clusterIPs", "selector"] {
        assert_eq!(before[field], after[field], "{field}");
    }
    let settings = lab.get(&["configmap", "podwire-dns", "--namespace", "kube-system"]);
    assert_eq!(settings["data"]["PODWIRE_DNS"], "replace");
}
