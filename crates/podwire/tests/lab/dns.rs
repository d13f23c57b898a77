//! Names, by the resolvers that pods really have.

use std::time::Duration;

use rstest::rstest;

use crate::support::{Lab, PODWIRE, client, eventually, output, server, service, success, url};

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
        &service("shop", "10.96.0.20"),
        &server("shop-1", "shop", "node-1"),
        &client("client", "node-2"),
        more,
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

    // glibc, musl's way of asking (busybox), and a program, by short names.
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
            assert_eq!(entries, "", "conntrack follows DNS on {node}");
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
    let records = podwire(&[&["inspect"], &here[..], &["dns"]].concat());
    assert!(records.contains("Service default/shop"), "{records}");
    assert!(records.contains("EndpointSlice default/db-"), "{records}");

    // The first name a pod asks for, as soon as its Service is there.
    lab.apply(&service("later", "10.96.0.21").replace("{app: later}", "{app: shop}"));
    let target = url("later", 80, "/hostname");
    eventually("a new Service answers by its name", WITHIN, || {
        let found = lab.exec_output("client", &["getent", "ahostsv4", "later"]);
        found
            .status
            .success()
            .then_some(())
            .ok_or_else(|| "no such name".to_owned())
    });
    eventually("and by its address", WITHIN, || {
        let got = lab.exec_output("client", &["curl", "-sS", "--max-time", "5", &target]);
        got.status
            .success()
            .then_some(())
            .ok_or_else(|| String::from_utf8_lossy(&got.stderr).into_owned())
    });

    let agent = lab.node("node-2", &["pgrep", "-f", "podwire agent"]);
    let agent = agent.lines().next().expect("it runs");
    lab.node("node-2", &["kill", "-KILL", agent]);
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
