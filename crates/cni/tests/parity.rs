//! Where the reference plugins do the same job, the same input gives the same
//! result: `bridge` and `ptp` with `host-local`, of Debian's
//! containernetworking-plugins (1.1, which speak versions up to 1.0.0).
#![allow(clippy::unwrap_used, reason = "tests say what they expect with unwrap")]

mod common;

use std::io::{ErrorKind, Write as _};
use std::process::{Command, Stdio};

use common::{Node, Outcome, Pod, assert_pings, eventually, finish, ip, pings};
use rstest::rstest;
use serde_json::{Value, json};

const REFERENCE: &str = "/usr/lib/cni";

fn variables<'a>(command: &'a str, pod: &'a Pod, path: &'a str) -> [(&'a str, &'a str); 5] {
    [
        ("CNI_COMMAND", command),
        ("CNI_CONTAINERID", &pod.id),
        ("CNI_NETNS", path),
        ("CNI_IFNAME", "eth0"),
        ("CNI_PATH", REFERENCE),
    ]
}

/// Runs the reference plugin of a configuration as the own one is run.
fn reference(node: &Node, configuration: &Value, variables: &[(&str, &str)]) -> Outcome {
    run(
        node,
        configuration["type"].as_str().unwrap(),
        configuration,
        variables,
    )
}

fn run(node: &Node, program: &str, configuration: &Value, variables: &[(&str, &str)]) -> Outcome {
    let program = format!("{REFERENCE}/{program}");
    let child = node
        .namespace
        .run(|| {
            let mut child = Command::new(program)
                .env_clear()
                .envs(variables.iter().copied())
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            let text = configuration.to_string();
            // A plugin that refuses its environment ends before it reads.
            if let Err(error) = child.stdin.take().unwrap().write_all(text.as_bytes()) {
                assert_eq!(error.kind(), ErrorKind::BrokenPipe);
            }
            child
        })
        .unwrap();
    finish(child)
}

fn ipam(node: &Node, ranges: Value) -> Value {
    json!({
        "type": "host-local", "ranges": ranges, "dataDir": node.state.path(),
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
    })
}

fn bridge(node: &Node, version: &str, ranges: Value) -> (Value, Value) {
    let reference = json!({
        "cniVersion": version, "name": "pods", "type": "bridge", "bridge": "br0",
        "isGateway": true, "hairpinMode": true, "ipam": ipam(node, ranges.clone()),
    });
    let mut own = reference.clone();
    own["type"] = json!("podwire-cni");
    own["attach"] = json!("bridge");
    own["logFile"] = json!("");
    (own, reference)
}

fn both() -> Value {
    json!([[{"subnet": "10.200.1.0/24"}], [{"subnet": "fd00:200:0:1::/64"}]])
}

/// What of a result is the job's and not the implementation's choice: the names
/// of the node's ends and hardware addresses are made up by each.
fn essence(mut result: Value) -> Value {
    let pod = result["interfaces"]
        .as_array()
        .map(|all| all.iter().position(|i| i["name"] == "eth0").unwrap());
    if let Some(interfaces) = result["interfaces"].as_array_mut() {
        for interface in interfaces.iter_mut() {
            let name = interface["name"].as_str().unwrap().to_owned();
            interface.as_object_mut().unwrap().remove("mac");
            if name.starts_with("veth") || name.starts_with("pw") {
                interface["name"] = json!("the node's end");
            }
            // Its own namespace's path, of which there is one for each pod.
            if let Some(sandbox) = interface.get_mut("sandbox") {
                *sandbox = json!(!sandbox.as_str().unwrap().is_empty());
            }
        }
    }
    for ip in result["ips"].as_array_mut().into_iter().flatten() {
        assert_eq!(
            ip["interface"]
                .as_u64()
                .map(|n| usize::try_from(n).unwrap()),
            pod
        );
    }
    // Whether a route that is the default's names the gateway again is a
    // matter of taste: it is in `ips`.
    for routes in ["/routes", "/ip4/routes", "/ip6/routes"] {
        for route in result
            .pointer_mut(routes)
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
        {
            route.as_object_mut().unwrap().remove("gw");
        }
    }
    if result["dns"] == json!({}) {
        result.as_object_mut().unwrap().remove("dns");
    }
    result
}

#[rstest]
#[case("0.1.0")]
#[case("0.2.0")]
#[case("0.3.0")]
#[case("0.3.1")]
#[case("0.4.0")]
#[case("1.0.0")]
fn bridge_gives_the_result_of_bridge_and_host_local(#[case] version: &str) {
    let (ours, theirs) = (Node::new(), Node::new());
    let (pod, other) = (Pod::new("one"), Pod::new("one"));
    let (own, _) = bridge(&ours, version, both());
    let (_, configuration) = bridge(&theirs, version, both());
    let result = ours.plugin(&own, &variables("ADD", &pod, &pod.path())).ok();
    let expected = reference(
        &theirs,
        &configuration,
        &variables("ADD", &other, &other.path()),
    )
    .ok();
    assert_eq!(essence(result.clone()), essence(expected.clone()));
    // Inside the pods: the same addresses and default routes.
    for family in ["-4", "-6"] {
        let defaults = [&pod, &other].map(|pod| {
            let routes = ip(&pod.namespace, &format!("{family} route show default"));
            routes[0]["gateway"].clone()
        });
        assert_eq!(defaults[0], defaults[1]);
        assert!(defaults[0].is_string());
    }
    if version >= "0.4.0" {
        for (node, configuration, pod, result, run) in [
            (&ours, &own, &pod, &result, None),
            (&theirs, &configuration, &other, &expected, Some(())),
        ] {
            let mut configuration = configuration.clone();
            configuration["prevResult"] = result.clone();
            let path = pod.path();
            let variables = variables("CHECK", pod, &path);
            match run {
                None => node.plugin(&configuration, &variables).ok(),
                Some(()) => reference(node, &configuration, &variables).ok(),
            };
        }
    }
    let deleted = ours.plugin(&own, &variables("DEL", &pod, &pod.path()));
    let expected = reference(
        &theirs,
        &configuration,
        &variables("DEL", &other, &other.path()),
    );
    assert_eq!(deleted.ok(), expected.ok());
}

#[test]
fn addresses_come_in_host_locals_order() {
    let (ours, theirs) = (Node::new(), Node::new());
    let ranges = json!([[
        {"subnet": "10.200.1.0/29", "rangeStart": "10.200.1.3", "gateway": "10.200.1.5"},
        {"subnet": "10.200.2.0/29", "rangeEnd": "10.200.2.4"},
    ]]);
    let (own, _) = bridge(&ours, "1.0.0", ranges.clone());
    let (_, configuration) = bridge(&theirs, "1.0.0", ranges);
    // Fresh ones first, in order; one that was given back rests; never network,
    // gateway, broadcast.
    for step in ["+a", "+b", "-a", "+c", "+d", "+e", "-c", "-b", "+f"] {
        let (operation, name) = step.split_at(1);
        let command = if operation == "+" { "ADD" } else { "DEL" };
        let (pod, other) = (Pod::new(name), Pod::new(name));
        // Only addresses count here: DEL of a namespace that is another one.
        let result = ours
            .plugin(&own, &variables(command, &pod, &pod.path()))
            .ok();
        let path = other.path();
        let variables = variables(command, &other, &path);
        let expected = run(&theirs, "host-local", &configuration, &variables).ok();
        if command == "ADD" {
            assert_eq!(
                result["ips"][0]["address"], expected["ips"][0]["address"],
                "{step}"
            );
            assert_eq!(
                result["ips"][0]["gateway"], expected["ips"][0]["gateway"],
                "{step}"
            );
        }
    }
}

#[test]
fn wrong_input_is_refused_by_both_and_del_of_nothing_by_none() {
    let (ours, theirs) = (Node::new(), Node::new());
    let pod = Pod::new("one");
    let path = pod.path();
    let (own, configuration) = bridge(&ours, "1.0.0", both());
    let twice = |change: &dyn Fn(&mut Value), variables: &[(&str, &str)]| {
        let (mut own, mut configuration) = (own.clone(), configuration.clone());
        configuration["ipam"]["dataDir"] = json!(theirs.state.path());
        change(&mut own);
        change(&mut configuration);
        (
            ours.plugin(&own, variables),
            reference(&theirs, &configuration, variables),
        )
    };
    let add = variables("ADD", &pod, &path);
    for (pointer, value) in [
        ("/cniVersion", json!("9.9.9")),
        ("/ipam/ranges", json!([[{"subnet": "10.200.1.7/24"}]])),
        (
            "/ipam/ranges",
            json!([[{"subnet": "10.200.1.0/24", "rangeStart": "10.9.9.9"}]]),
        ),
        ("/ipam/ranges", json!("everything")),
        ("/name", json!("../up")),
    ] {
        let change = |configuration: &mut Value| {
            *configuration.pointer_mut(pointer).unwrap() = value.clone();
        };
        let (own, expected) = twice(&change, &add);
        assert!(
            !own.success && !expected.success,
            "{pointer} {value}: {own:?} {expected:?}"
        );
    }
    for missing in ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"] {
        let rest: Vec<_> = add
            .iter()
            .copied()
            .filter(|(name, _)| *name != missing)
            .collect();
        let (own, expected) = twice(&|_| {}, &rest);
        assert_eq!(own.code(), expected.code(), "{missing}");
    }
    for netns in ["", "/nowhere"] {
        let delete = variables("DEL", &pod, netns);
        let (own, expected) = twice(&|_| {}, &delete);
        assert!(own.success && expected.success, "{own:?} {expected:?}");
    }
    ours.assert_clean();
}

#[test]
fn resolv_conf_is_read_as_host_local_reads_it() {
    let (ours, theirs) = (Node::new(), Node::new());
    let (own, reference_configuration) = bridge(&ours, "1.0.0", both());
    let file = ours.state.path().join("resolv.conf");
    for text in [
        "# a comment\nnameserver 10.0.0.10 extra\nnameserver fd00::10\ndomain one.test\n\
         search a.test b.test\nsearch c.test\noptions ndots:5 edns0\nsortlist 10.0.0.0\n",
        "; nothing\n",
    ] {
        std::fs::write(&file, text).unwrap();
        let (mut own, mut configuration) = (own.clone(), reference_configuration.clone());
        configuration["ipam"]["dataDir"] = json!(theirs.state.path());
        for configuration in [&mut own, &mut configuration] {
            configuration["ipam"]["resolvConf"] = json!(file);
        }
        let (pod, other) = (Pod::new("one"), Pod::new("one"));
        let result = ours.plugin(&own, &variables("ADD", &pod, &pod.path())).ok();
        let path = other.path();
        let expected = run(
            &theirs,
            "host-local",
            &configuration,
            &variables("ADD", &other, &path),
        )
        .ok();
        assert_eq!(result["dns"], expected["dns"], "{text}");
        run(
            &theirs,
            "host-local",
            &configuration,
            &variables("DEL", &other, &path),
        )
        .ok();
        // What the configuration itself says counts before, as does the runtime.
        ours.plugin(&own, &variables("DEL", &pod, &pod.path())).ok();
        own["dns"] = json!({"nameservers": ["10.96.0.10"]});
        let result = ours.plugin(&own, &variables("ADD", &pod, &pod.path())).ok();
        assert_eq!(result["dns"], own["dns"]);
        ours.plugin(&own, &variables("DEL", &pod, &pod.path())).ok();
    }
    let mut own = own.clone();
    own["ipam"]["resolvConf"] = json!("/nowhere/resolv.conf");
    let pod = Pod::new("two");
    let refused = ours.plugin(&own, &variables("ADD", &pod, &pod.path()));
    assert_eq!(refused.code(), 5);
    let message = refused.stdout["msg"].as_str().unwrap();
    assert!(message.contains("/nowhere/resolv.conf"), "{message}");
    ours.settle();
    assert!(ours.reservations().is_empty());
}

#[test]
fn a_pods_loopback_is_as_the_reference_plugin_makes_it_in_either_order() {
    let node = Node::new();
    let loopback = json!({"cniVersion": "1.0.0", "name": "lo", "type": "loopback"});
    let own = node.configuration("routed");
    let of = |pod: &Pod| {
        let shown = ip(&pod.namespace, "address show lo")[0].clone();
        let addresses: Vec<_> = shown["addr_info"].as_array().unwrap().iter().collect();
        let addresses: Vec<_> = addresses.iter().map(|a| a["local"].clone()).collect();
        (shown["flags"].clone(), addresses)
    };
    let pods = ["ours", "theirs", "before", "after"].map(Pod::new);
    let run_loopback = |command: &str, pod: &Pod| {
        let path = pod.path();
        let mut variables = variables(command, pod, &path);
        variables[3].1 = "lo";
        run(&node, "loopback", &loopback, &variables).ok()
    };
    for (pod, order) in pods.iter().zip(["o", "l", "lo", "ol"]) {
        for plugin in order.chars() {
            match plugin {
                'l' => drop(run_loopback("ADD", pod)),
                _ => drop(node.call("ADD", &own, pod).ok()),
            }
        }
        assert_eq!(of(pod), of(&pods[0]), "{order}");
    }
    assert_eq!(of(&pods[0]).1, [json!("127.0.0.1"), json!("::1")]);
    // Theirs takes it down; what is ours goes all the same.
    run_loopback("DEL", &pods[2]);
    for pod in &pods {
        node.call("DEL", &own, pod).ok();
    }
    node.assert_clean();
}

#[test]
fn routed_reaches_what_ptp_reaches_with_the_same_addresses() {
    let (ours, theirs) = (Node::new(), Node::new());
    let (pod, other) = (Pod::new("one"), Pod::new("one"));
    let configuration = json!({
        "cniVersion": "1.0.0", "name": "pods", "type": "ptp", "ipam": ipam(&theirs, both()),
    });
    let mut own = configuration.clone();
    own["type"] = json!("podwire-cni");
    own["attach"] = json!("routed");
    own["logFile"] = json!("");
    own["ipam"]["dataDir"] = json!(ours.state.path());
    let result = ours.plugin(&own, &variables("ADD", &pod, &pod.path())).ok();
    let expected = reference(
        &theirs,
        &configuration,
        &variables("ADD", &other, &other.path()),
    )
    .ok();
    let given = [&result, &expected].map(common::addresses);
    assert_eq!(given[0], given[1]);
    for (inside, outside) in given[0].iter().zip(common::NODE) {
        let outside = outside.parse().unwrap();
        assert_pings(&ours.namespace, *inside);
        assert_pings(&pod.namespace, outside);
        // ptp answers before duplicate-address detection on the node's end is over.
        for (from, to) in [(&theirs.namespace, *inside), (&other.namespace, outside)] {
            eventually("the reference's pod is reached", || {
                pings(from, to).then_some(()).ok_or(to)
            });
        }
    }
}
