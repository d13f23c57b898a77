//! The protocol: versions, errors, chains, CHECK, STATUS and GC.
#![allow(clippy::unwrap_used, reason = "tests say what they expect with unwrap")]

mod common;

use std::process::Command;

use common::{Node, Pod, addresses, ip};
use linux::namespace::NetworkNamespace;
use rstest::rstest;
use serde_json::{Value, json};

const VERSIONS: [&str; 7] = [
    "0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0",
];

#[rstest]
#[case("0.1.0")]
#[case("0.2.0")]
#[case("0.3.0")]
#[case("0.3.1")]
#[case("0.4.0")]
#[case("1.0.0")]
#[case("1.1.0")]
fn the_result_is_in_the_schema_of_the_version_asked_for(#[case] version: &str) {
    let node = Node::new();
    let mut configuration = node.configuration("bridge");
    configuration["cniVersion"] = json!(version);
    let pod = Pod::new("one");
    let result = node.call("ADD", &configuration, &pod).ok();
    assert_eq!(result["cniVersion"], version);
    let mac = &ip(&pod.namespace, "link show eth0")[0]["address"];
    if version < "0.3.0" {
        assert_eq!(result["ip4"]["ip"], "10.200.1.2/24");
        assert_eq!(result["ip4"]["gateway"], "10.200.1.1");
        assert_eq!(result["ip4"]["routes"][0]["dst"], "0.0.0.0/0");
        assert_eq!(result["ip6"]["ip"], "fd00:200:0:1::2/64");
        assert_eq!(result.get("ips"), None);
    } else {
        assert_eq!(result["ips"][0]["address"], "10.200.1.2/24");
        assert_eq!(result["ips"][1]["gateway"], "fd00:200:0:1::1");
        assert_eq!(result["interfaces"][2]["name"], "eth0");
        assert_eq!(&result["interfaces"][2]["mac"], mac);
        assert_eq!(result["interfaces"][2]["sandbox"], pod.path());
        let family = if version < "1.0.0" {
            json!("4")
        } else {
            Value::Null
        };
        assert_eq!(result["ips"][0]["version"], family);
        let mtu = if version < "1.1.0" {
            Value::Null
        } else {
            json!(1500)
        };
        assert_eq!(result["interfaces"][2]["mtu"], mtu);
    }
    // DEL takes the result of ADD in the same version.
    configuration["prevResult"] = result;
    assert_eq!(node.call("DEL", &configuration, &pod).ok(), Value::Null);
    node.assert_clean();
}

/// CHECK came with 0.4.0, GC and STATUS with 1.1.0; a runtime that asks for them
/// with an older configuration is told so, as by the reference plugins.
#[test]
fn each_version_has_its_operations() {
    let node = Node::new();
    let pod = Pod::new("one");
    for version in VERSIONS {
        let mut configuration = node.configuration("routed");
        configuration["cniVersion"] = json!(version);
        configuration["prevResult"] = node.call("ADD", &configuration, &pod).ok();
        let attachment = json!({"containerID": "one", "ifname": "eth0"});
        configuration["cni.dev/valid-attachments"] = json!([attachment]);
        for (command, since) in [("CHECK", "0.4.0"), ("GC", "1.1.0"), ("STATUS", "1.1.0")] {
            let outcome = node.call(command, &configuration, &pod);
            if version >= since {
                outcome.ok();
                continue;
            }
            assert_eq!(outcome.code(), 1, "{version} {command}");
            let message = outcome.stdout["msg"].as_str().unwrap();
            assert!(
                message.contains(command) && message.contains(since),
                "{message}"
            );
        }
        node.call("DEL", &configuration, &pod).ok();
    }
    node.assert_clean();
}

#[test]
fn version_lists_all_versions_and_echoes_the_one_asked_with() {
    let node = Node::new();
    for version in ["0.3.1", "1.1.0", "9.9.9"] {
        let answer = node
            .plugin(
                &json!({"cniVersion": version}),
                &[("CNI_COMMAND", "VERSION")],
            )
            .ok();
        assert_eq!(
            answer,
            json!({"cniVersion": version, "supportedVersions": VERSIONS})
        );
    }
}

#[test]
fn errors_have_the_specifications_codes_and_name_what_is_wrong() {
    let node = Node::new();
    let pod = Pod::new("one");
    let good = node.configuration("bridge");
    let with = |key: &str, value: Value| {
        let mut configuration = good.clone();
        configuration[key] = value;
        configuration
    };
    let ipam = |ranges: Value| {
        with(
            "ipam",
            json!({"ranges": ranges, "dataDir": node.state.path()}),
        )
    };
    for (configuration, code, words) in [
        (with("cniVersion", json!("7.0.0")), 1, "7.0.0"),
        (with("attach", json!("teleport")), 2, "attach"),
        (
            with("vlan", json!(100)),
            2,
            "vlan in the network configuration: 100",
        ),
        (with("macspoofchk", json!(true)), 2, "macspoofchk"),
        (with("ipMasq", json!(true)), 2, "ipMasq"),
        (json!([1]), 6, "configuration"),
        (with("mtu", json!("big")), 6, "big"),
        (with("name", json!("../up")), 7, "name"),
        (with("mtu", json!(40)), 7, "mtu 40"),
        (with("mtu", json!(1200)), 7, "1280"),
        (with("bridge", json!("a/b")), 7, "a/b"),
        (
            with("ipam", json!({"dataDir": node.state.path()})),
            11,
            "ipam.ranges",
        ),
        (with("bridge", json!(5)), 6, "integer"),
        (ipam(json!([])), 11, "node.json"),
        (ipam(json!([[{"subnet": "10.0.0.1/24"}]])), 7, "host bits"),
        (
            ipam(json!([[{"subnet": "10.0.0.0/24", "gateway": "192.0.2.1"}]])),
            7,
            "192.0.2.1 is not in subnet 10.0.0.0/24, as the address of the bridge must be",
        ),
        (
            ipam(json!([[{"subnet": "10.0.0.0/24"}], [{"subnet": "10.0.1.0/24"}]])),
            7,
            "one family",
        ),
        (
            with("runtimeConfig", json!({"ips": ["10.9.9.9"]})),
            7,
            "10.9.9.9",
        ),
        (
            with("runtimeConfig", json!({"mac": "01:00:5e:00:00:01"})),
            7,
            "mac",
        ),
        (with("prevResult", json!({"ips": 1})), 6, "prevResult"),
    ] {
        let outcome = node.call("ADD", &configuration, &pod);
        assert_eq!(outcome.code(), code, "{configuration}: {outcome:?}");
        let message = outcome.stdout["msg"].as_str().unwrap();
        assert!(message.contains(words), "{message}");
        assert!(outcome.stderr.contains(message));
        if code != 1 && configuration.is_object() {
            assert_eq!(outcome.stdout["cniVersion"], "1.1.0");
        }
    }
    let variables = |name: &'static str, value: &'static str| {
        let path = pod.path();
        let mut variables = vec![
            ("CNI_COMMAND", "ADD".to_owned()),
            ("CNI_CONTAINERID", "one".to_owned()),
            ("CNI_NETNS", path),
            ("CNI_IFNAME", "eth0".to_owned()),
        ];
        variables.retain(|(n, _)| *n != name);
        if !value.is_empty() {
            variables.push((name, value.to_owned()));
        }
        variables
    };
    for (name, value, words) in [
        ("CNI_COMMAND", "", "CNI_COMMAND"),
        ("CNI_COMMAND", "JUMP", "JUMP"),
        ("CNI_CONTAINERID", "", "CNI_CONTAINERID"),
        ("CNI_CONTAINERID", "../../etc", "CNI_CONTAINERID"),
        ("CNI_IFNAME", "", "CNI_IFNAME"),
        ("CNI_IFNAME", "a/b", "CNI_IFNAME"),
        ("CNI_IFNAME", "sixteen-bytes-xx", "CNI_IFNAME"),
        ("CNI_NETNS", "", "CNI_NETNS"),
        ("CNI_NETNS", "/proc/self/ns/net", "own network namespace"),
        ("CNI_NETNS", "/etc/passwd", "not a network namespace"),
        ("CNI_NETNS", "/nowhere", "/nowhere"),
        ("CNI_ARGS", "COLOUR=red", "COLOUR"),
        ("CNI_ARGS", "nonsense", "nonsense"),
    ] {
        let variables = variables(name, value);
        let variables: Vec<_> = variables.iter().map(|(n, v)| (*n, v.as_str())).collect();
        let outcome = node.plugin(&good, &variables);
        assert_eq!(outcome.code(), 4, "{name}={value}: {outcome:?}");
        let message = outcome.stdout["msg"].as_str().unwrap();
        assert!(message.contains(words), "{message}");
    }
    node.assert_clean();
}

#[rstest]
#[case::bridge("bridge")]
#[case::routed("routed")]
fn an_interface_that_exists_is_refused_and_left_alone(#[case] mode: &str) {
    let node = Node::new();
    let configuration = node.configuration(mode);
    let pod = Pod::new("one");
    let given = addresses(&node.call("ADD", &configuration, &pod).ok());
    assert_eq!(node.call("ADD", &configuration, &pod).code(), 4);
    for address in given {
        common::assert_pings(&node.namespace, address);
    }
    assert_eq!(node.reservations().len(), 2);
}

#[rstest]
#[case::bridge("bridge")]
#[case::routed("routed")]
fn a_failing_add_undoes_everything(#[case] mode: &str) {
    let node = Node::new();
    let pod = Pod::new("one");
    let mut configuration = node.configuration(mode);
    // The last step fails: a route by a gateway that cannot be one.
    configuration["ipam"]["routes"] = json!([{"dst": "198.51.100.0/24", "gw": "224.0.0.1"}]);
    let outcome = node.call("ADD", &configuration, &pod);
    assert_eq!(outcome.code(), 100, "{outcome:?}");
    let message = outcome.stdout["msg"].as_str().unwrap();
    assert!(
        message.contains("198.51.100.0/24 via 224.0.0.1"),
        "{message}"
    );
    node.assert_clean();
    assert_eq!(ip(&pod.namespace, "link show").as_array().unwrap().len(), 1);
}

#[rstest]
#[case::bridge("bridge")]
#[case::routed("routed")]
fn del_succeeds_with_anything_gone(#[case] mode: &str) {
    let node = Node::new();
    let configuration = node.configuration(mode);
    // Never added.
    node.call("DEL", &configuration, &Pod::new("never")).ok();

    // Namespace gone, path dangling.
    let pod = Pod::new("one");
    node.call("ADD", &configuration, &pod).ok();
    let path = pod.path();
    drop(pod);
    let variables = |netns: &'static str, id: &'static str| {
        [
            ("CNI_COMMAND", "DEL"),
            ("CNI_CONTAINERID", id),
            ("CNI_NETNS", netns),
            ("CNI_IFNAME", "eth0"),
        ]
    };
    assert!(!std::path::Path::new(&path).exists());
    node.plugin(&configuration, &variables("/proc/1/fd/99999", "one"))
        .ok();
    node.assert_clean();

    // No namespace given, cable gone, then the state too.
    let pod = Pod::new("two");
    node.call("ADD", &configuration, &pod).ok();
    let cable = node.links().into_iter().find(|l| l != "pwbr0").unwrap();
    let mut socket = node.namespace.route_socket().unwrap();
    linux::link::delete_by_name(&mut socket, &cable).unwrap();
    node.plugin(&configuration, &variables("", "two")).ok();
    node.assert_clean();
    let pod = Pod::new("three");
    node.call("ADD", &configuration, &pod).ok();
    std::fs::remove_dir_all(node.state.path().join("pods")).unwrap();
    node.call("DEL", &configuration, &pod).ok();
    node.settle();
    let left: Vec<_> = node.links().into_iter().filter(|l| l != "pwbr0").collect();
    assert_eq!(left, Vec::<String>::new());
}

#[test]
fn del_needs_no_ranges_and_finds_what_an_earlier_configuration_made() {
    let node = Node::new();
    let mut configuration = node.configuration("bridge");
    configuration["bridge"] = json!("pwother");
    let pod = Pod::new("one");
    node.call("ADD", &configuration, &pod).ok();
    let mut changed = node.configuration("routed");
    changed["ipam"].as_object_mut().unwrap().remove("ranges");
    node.call("DEL", &changed, &pod).ok();
    node.settle();
    assert_eq!(node.links(), ["pwother"]);
    assert_eq!(node.reservations(), Vec::<String>::new());
    let neighbours = ip(&node.namespace, "neighbour show nud permanent").to_string();
    assert!(!neighbours.contains("10.200.1.2"), "{neighbours}");
}

#[test]
fn what_an_earlier_plugin_of_the_chain_answered_is_passed_on() {
    let node = Node::new();
    let pod = Pod::new("one");
    let mut configuration = node.configuration("routed");
    configuration["prevResult"] = json!({
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "lo", "sandbox": "/x"}],
        "ips": [{"address": "192.0.2.7/24", "interface": 0}],
        "routes": [{"dst": "192.0.2.0/24", "mtu": 1300}],
        "dns": {"nameservers": ["192.0.2.53"]},
    });
    let result = node.call("ADD", &configuration, &pod).ok();
    assert_eq!(
        result["interfaces"][0],
        json!({"name": "lo", "sandbox": "/x"})
    );
    assert_eq!(result["interfaces"][2]["name"], "eth0");
    assert_eq!(
        result["ips"][0],
        json!({"address": "192.0.2.7/24", "interface": 0})
    );
    assert_eq!(result["ips"][1]["interface"], 2);
    assert_eq!(
        result["routes"][0],
        json!({"dst": "192.0.2.0/24", "mtu": 1300})
    );
    assert_eq!(result["dns"]["nameservers"][0], "192.0.2.53");
}

#[test]
fn addresses_and_hardware_addresses_can_be_asked_for() {
    let node = Node::new();
    let mut configuration = node.configuration("bridge");
    configuration["runtimeConfig"] = json!({
        "ips": ["10.200.1.77/24", "fd00:200:0:1::77"],
        "mac": "0a:58:0a:c8:01:4d",
        "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}],
        "bandwidth": {"ingressRate": 1000000},
        "aliases": ["web"],
        "dns": {"servers": ["10.96.0.10"], "searches": ["shop.svc.cluster.local"], "options": ["ndots:5"]},
    });
    let pod = Pod::new("one");
    let result = node.call("ADD", &configuration, &pod).ok();
    assert_eq!(result["ips"][0]["address"], "10.200.1.77/24");
    assert_eq!(result["ips"][1]["address"], "fd00:200:0:1::77/64");
    assert_eq!(
        result["dns"],
        json!({"nameservers": ["10.96.0.10"], "search": ["shop.svc.cluster.local"], "options": ["ndots:5"]})
    );
    assert_eq!(
        ip(&pod.namespace, "link show eth0")[0]["address"],
        "0a:58:0a:c8:01:4d"
    );
    let outcome = node.call("ADD", &configuration, &Pod::new("two"));
    let message = outcome.stdout["msg"].as_str().unwrap();
    assert!(message.contains("shop/one"), "{message}");
}

/// Says 51 when what is missing is missing to attached pods too, 50 when only
/// new ones suffer.
#[rstest]
#[case::bridge("bridge", "pwbr0")]
#[case::macvlan("macvlan", "up0")]
fn status_tells_pods_that_suffer_from_pods_that_cannot_come(
    #[case] mode: &str,
    #[case] shared: &str,
) {
    let node = Node::new();
    let change = |command: &str| {
        let words = command.split(' ');
        let done = node
            .namespace
            .run(|| Command::new("ip").args(words).status().unwrap());
        assert!(done.unwrap().success(), "{command}");
    };
    let mut configuration = node.configuration(mode);
    if mode == "macvlan" {
        configuration["master"] = json!(shared);
        change("link add up0 type veth peer name far0");
        change("link set far0 up");
    }
    let status = || {
        let outcome = node.plugin(&configuration, &[("CNI_COMMAND", "STATUS")]);
        match outcome.success {
            true => (0, String::new()),
            false => (outcome.code(), outcome.stdout["msg"].to_string()),
        }
    };
    // Without pods: the bridge comes with the first, a macvlan's parent must be there.
    let (code, message) = status();
    assert_eq!(code, if mode == "bridge" { 0 } else { 50 }, "{message}");
    if mode == "macvlan" {
        change("link set up0 up");
        assert_eq!(status().0, 0);
    }
    let pod = Pod::new("one");
    node.call("ADD", &configuration, &pod).ok();
    assert_eq!(status().0, 0);
    change(&format!("link set {shared} down"));
    let (code, message) = status();
    assert_eq!(code, 51, "{message}");
    assert!(
        message.contains(shared) && message.contains("down"),
        "{message}"
    );
    change(&format!("link set {shared} up"));
    assert_eq!(status().0, 0);
    change(&format!("link del {shared}"));
    let (code, message) = status();
    assert_eq!(code, 51, "{message}");
    assert!(
        message.contains("gone") && message.contains("1 attached pod"),
        "{message}"
    );
    node.call("DEL", &configuration, &pod).ok();
    assert_eq!(status().0, if mode == "bridge" { 0 } else { 50 });
}

#[test]
fn without_ranges_status_says_not_available() {
    let node = Node::new();
    let mut configuration = node.configuration("routed");
    configuration["ipam"]["ranges"] = json!([]);
    let outcome = node.plugin(&configuration, &[("CNI_COMMAND", "STATUS")]);
    assert_eq!(outcome.code(), 50, "{outcome:?}");
}

#[test]
fn status_asks_for_the_agent_where_policies_are_enforced() {
    let node = Node::new();
    let mut configuration = node.configuration("routed");
    let status = |configuration: &Value| {
        let outcome = node.plugin(configuration, &[("CNI_COMMAND", "STATUS")]);
        if outcome.success { 0 } else { outcome.code() }
    };
    let mut enforced = configuration.clone();
    enforced["policySocket"] = json!(node.state.path().join("agent.sock"));
    assert_eq!(status(&enforced), 50);
    // Attached before policies were enforced, say.
    node.call("ADD", &configuration, &Pod::new("one")).ok();
    assert_eq!(status(&configuration), 0);
    assert_eq!(status(&enforced), 51);
    configuration["policySocket"] = json!("");
    assert_eq!(status(&configuration), 0);
}

#[test]
fn a_full_pool_says_who_holds_it_and_status_that_it_is_full() {
    let node = Node::new();
    let mut configuration = node.configuration("bridge");
    configuration["ipam"]["ranges"] = json!([[{"subnet": "10.200.1.0/30"}]]);
    let pod = Pod::new("web-0");
    node.plugin(&configuration, &[("CNI_COMMAND", "STATUS")])
        .ok();
    node.call("ADD", &configuration, &pod).ok();
    let outcome = node.call("ADD", &configuration, &Pod::new("web-1"));
    assert_eq!(outcome.code(), 11);
    let message = outcome.stdout["msg"].as_str().unwrap();
    assert!(
        message.contains("1 held, by shop/web-0 (eth0 10.200.1.2)"),
        "{message}"
    );
    let outcome = node.plugin(&configuration, &[("CNI_COMMAND", "STATUS")]);
    assert_eq!(outcome.code(), 50);
    let message = outcome.stdout["msg"].as_str().unwrap();
    assert!(!message.contains("leak"), "{message}");
    // Its runtime forgot the pod.
    let cable = node
        .links()
        .into_iter()
        .find(|name| name.starts_with("pw") && name != "pwbr0");
    let mut socket = node.namespace.route_socket().unwrap();
    linux::link::delete_by_name(&mut socket, &cable.unwrap()).unwrap();
    let outcome = node.plugin(&configuration, &[("CNI_COMMAND", "STATUS")]);
    assert_eq!(outcome.code(), 50);
    let message = outcome.stdout["msg"].as_str().unwrap();
    assert!(message.contains("1 of them leak"), "{message}");
    node.call("DEL", &configuration, &pod).ok();
    node.plugin(&configuration, &[("CNI_COMMAND", "STATUS")])
        .ok();
}

#[test]
fn the_log_tells_what_was_done_and_never_fails_it() {
    let node = Node::new();
    let mut configuration = node.configuration("routed");
    let pod = Pod::new("one");
    node.call("ADD", &configuration, &pod).ok();
    node.call("ADD", &configuration, &pod).code();
    node.plugin(&configuration, &[("CNI_COMMAND", "STATUS")])
        .ok();
    node.call("DEL", &configuration, &pod).ok();
    let log = std::fs::read_to_string(node.state.path().join("cni.log")).unwrap();
    let lines: Vec<_> = log.lines().collect();
    assert_eq!(lines.len(), 3, "{log}");
    for (line, words) in lines.iter().zip([
        [
            "info ADD CONTAINERID=one IFNAME=eth0",
            "K8S_POD_NAME=one",
            "10.200.1.2",
        ],
        [
            "error ADD CONTAINERID=one",
            "code 4",
            "has an interface eth0 already",
        ],
        ["info DEL CONTAINERID=one", ": ok (", " ms)"],
    ]) {
        assert!(
            words.iter().all(|word| line.contains(word)),
            "{line}: {words:?}"
        );
    }
    for unwritable in ["/proc/cni.log", "/dev/full", "relative", ""] {
        configuration["logFile"] = json!(unwritable);
        node.call("ADD", &configuration, &pod).ok();
        let deleted = node.call("DEL", &configuration, &pod);
        assert_eq!(
            deleted.stderr.contains("cannot write the log"),
            unwritable.starts_with('/'),
            "{deleted:?}"
        );
        deleted.ok();
    }
}

#[rstest]
#[case::bridge("bridge")]
#[case::routed("routed")]
fn check_finds_every_change(#[case] mode: &str) {
    let shell = |namespace: &NetworkNamespace, command: &str| {
        let status = namespace
            .run(|| Command::new("sh").args(["-c", command]).status().unwrap())
            .unwrap();
        assert!(status.success(), "{command}");
    };
    let pod_side = [
        "ip link set eth0 down",
        "ip link set eth0 address 0a:00:00:00:00:99",
        "ip address flush dev eth0 scope global",
        "ip route del default",
        "ip -6 route del default",
    ];
    let node_side: &[&str] = if mode == "bridge" {
        &[
            "ip link set CABLE nomaster",
            "ip address del 10.200.1.1/24 dev pwbr0",
            "ip link set pwbr0 down",
        ]
    } else {
        &[
            "ip route del 10.200.1.2 proto 112",
            "ip -6 route del fd00:200:0:1::2 proto 112",
        ]
    };
    let changes = pod_side
        .iter()
        .map(|change| (true, *change))
        .chain(node_side.iter().map(|change| (false, *change)));
    for (in_pod, change) in changes {
        let node = Node::new();
        let mut configuration = node.configuration(mode);
        let pod = Pod::new("one");
        configuration["prevResult"] = node.call("ADD", &configuration, &pod).ok();
        node.call("CHECK", &configuration, &pod).ok();
        if in_pod {
            shell(&pod.namespace, change);
        } else {
            let cable = node.links().into_iter().find(|l| l != "pwbr0").unwrap();
            shell(&node.namespace, &change.replace("CABLE", &cable));
        }
        let outcome = node.call("CHECK", &configuration, &pod);
        assert_eq!(outcome.code(), 103, "{change}: {outcome:?}");
    }
    let node = Node::new();
    let mut configuration = node.configuration(mode);
    let pod = Pod::new("one");
    assert_eq!(node.call("CHECK", &configuration, &pod).code(), 7);
    configuration["prevResult"] = node.call("ADD", &configuration, &pod).ok();
    node.call("DEL", &configuration, &pod).ok();
    assert_eq!(node.call("CHECK", &configuration, &pod).code(), 3);
}

#[rstest]
#[case::bridge("bridge")]
#[case::routed("routed")]
fn gc_keeps_the_valid_attachments_and_removes_the_rest(#[case] mode: &str) {
    let node = Node::new();
    let mut configuration = node.configuration(mode);
    let pods = ["one", "two", "three"].map(Pod::new);
    let mut given = Vec::new();
    for pod in &pods {
        given.push(addresses(&node.call("ADD", &configuration, pod).ok()));
    }
    assert_eq!(
        node.plugin(&configuration, &[("CNI_COMMAND", "GC")]).code(),
        7
    );
    configuration["cni.dev/valid-attachments"] = json!([{"containerID": "two", "ifname": "eth0"}]);
    node.plugin(&configuration, &[("CNI_COMMAND", "GC")]).ok();
    for address in &given[1] {
        common::assert_pings(&node.namespace, *address);
    }
    assert!(!common::pings(&node.namespace, given[0][0]));
    assert_eq!(node.reservations().len(), 2);
    let cables: Vec<_> = node.links().into_iter().filter(|l| l != "pwbr0").collect();
    assert_eq!(cables.len(), 1);
    // As libcni writes an empty list.
    configuration["cni.dev/valid-attachments"] = Value::Null;
    node.plugin(&configuration, &[("CNI_COMMAND", "GC")]).ok();
    node.assert_clean();
}

#[rstest]
#[case::del("DEL")]
#[case::gc("GC")]
fn a_pod_whose_reservation_was_lost_leaves_nothing(
    #[case] command: &str,
    #[values("bridge", "routed")] mode: &str,
) {
    let node = Node::new();
    let mut configuration = node.configuration(mode);
    let pod = Pod::new("one");
    node.call("ADD", &configuration, &pod).ok();
    std::fs::remove_dir_all(node.state.path().join("pods")).unwrap();
    configuration["cni.dev/valid-attachments"] = json!([]);
    node.call(command, &configuration, &pod).ok();
    node.assert_clean();
}

#[test]
fn gc_finds_cables_whose_reservations_were_lost() {
    let node = Node::new();
    let mut configuration = node.configuration("routed");
    let pods = ["one", "two"].map(Pod::new);
    for pod in &pods {
        node.call("ADD", &configuration, pod).ok();
    }
    let mut other = configuration.clone();
    other["name"] = json!("other");
    other["ipam"]["ranges"] = json!([[{"subnet": "10.200.9.0/24"}]]);
    let foreign = Pod::new("foreign");
    node.call("ADD", &other, &foreign).ok();
    std::fs::remove_dir_all(node.state.path().join("pods")).unwrap();
    configuration["cni.dev/valid-attachments"] = json!([{"containerID": "two", "ifname": "eth0"}]);
    node.plugin(&configuration, &[("CNI_COMMAND", "GC")]).ok();
    let left: Vec<_> = node.links();
    assert_eq!(left.len(), 2, "{left:?}");
    let interfaces = |pod: &Pod| ip(&pod.namespace, "link show").as_array().unwrap().len();
    assert_eq!([&pods[0], &pods[1], &foreign].map(interfaces), [1, 2, 2]);
    let shown = ip(&node.namespace, "link show").to_string();
    assert!(shown.contains("podwire pods two eth0"), "{shown}");
}

#[test]
fn del_after_a_refused_add_leaves_the_interface_that_was_there() {
    let node = Node::new();
    let pod = Pod::new("one");
    pod.namespace
        .run(|| {
            let status = Command::new("ip")
                .args([
                    "link", "add", "eth0", "type", "veth", "peer", "name", "other",
                ])
                .status()
                .unwrap();
            assert!(status.success());
        })
        .unwrap();
    let configuration = node.configuration("bridge");
    assert_eq!(node.call("ADD", &configuration, &pod).code(), 4);
    node.call("DEL", &configuration, &pod).ok();
    assert_eq!(ip(&pod.namespace, "link show").as_array().unwrap().len(), 3);
}
