//! Ports of the node that lead to pods: the capability `portMappings`, and the
//! reference plugin chained behind this one.
#![allow(clippy::unwrap_used, reason = "tests say what they expect with unwrap")]

mod common;

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::time::Duration;

use common::{NODE, Node, Pod, addresses, ip};
use linux::namespace::NetworkNamespace;
use rstest::rstest;
use serde_json::{Value, json};

/// A network outside of the node, whose way to everything is the node.
fn outside(node: &Node) -> NetworkNamespace {
    let outside = NetworkNamespace::create().unwrap();
    let mut socket = node.namespace.route_socket().unwrap();
    let end = |name, namespace| linux::link::VethEnd {
        name,
        namespace,
        ..linux::link::VethEnd::default()
    };
    socket
        .execute(&linux::link::add_veth(
            &end("uplink", None),
            None,
            &end("lan", Some(&outside)),
        ))
        .unwrap();
    shell(
        &node.namespace,
        "ip address add 198.51.100.1/24 dev uplink
         ip address add 2001:db8:51::1/64 dev uplink nodad",
    );
    shell(
        &outside,
        "ip link set lan up
         ip address add 198.51.100.2/24 dev lan
         ip address add 2001:db8:51::2/64 dev lan nodad
         ip route add default via 198.51.100.1
         ip route add default via 2001:db8:51::1",
    );
    outside
}

fn with_ports(mut configuration: Value, mappings: Value) -> Value {
    configuration["runtimeConfig"] = json!({"portMappings": mappings});
    configuration
}

/// A server that tells every TCP and UDP client the address it sees, and its
/// own name.
fn serve(pod: &Pod, port: u16) {
    let name = pod.id.clone();
    let (tcp, udp) = pod
        .namespace
        .run(|| {
            let any: SocketAddr = format!("[::]:{port}").parse().unwrap();
            (
                TcpListener::bind(any).unwrap(),
                UdpSocket::bind(any).unwrap(),
            )
        })
        .unwrap();
    let answer = move |from: SocketAddr| format!("{name} {}", from.ip().to_canonical());
    let words = answer.clone();
    std::thread::spawn(move || {
        for stream in tcp.incoming() {
            let mut stream = stream.unwrap();
            let from = stream.peer_addr().unwrap();
            let _ = stream.write_all(words(from).as_bytes());
        }
    });
    std::thread::spawn(move || {
        let mut buffer = [0; 100];
        while let Ok((_, from)) = udp.recv_from(&mut buffer) {
            let _ = udp.send_to(answer(from).as_bytes(), from);
        }
    });
}

/// What the server at the address answers: its name and what it saw.
fn ask(from: &NetworkNamespace, to: &str) -> Option<String> {
    ask_from(from, None, to)
}

fn ask_from(from: &NetworkNamespace, source: Option<&str>, to: &str) -> Option<String> {
    let to: SocketAddr = to.parse().unwrap();
    from.run(|| {
        let Some(source) = source else {
            let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(3)).ok()?;
            let mut text = String::new();
            stream.read_to_string(&mut text).ok()?;
            return Some(text);
        };
        // As `curl --interface` does.
        let output = Command::new("curl")
            .args(["-s", "--http0.9", "-m", "5", "--interface", source])
            .arg(format!("http://{to}/"))
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        (!text.is_empty()).then_some(text)
    })
    .unwrap()
}

fn ask_udp(socket: &UdpSocket, to: &str) -> Option<String> {
    socket
        .set_read_timeout(Some(Duration::from_secs(1)))
        .unwrap();
    // UDP may lose packets anywhere.
    (0..3).find_map(|_| {
        socket.send_to(b"?", to).unwrap();
        let mut buffer = [0; 100];
        let (length, _) = socket.recv_from(&mut buffer).ok()?;
        Some(String::from_utf8(buffer[..length].to_vec()).unwrap())
    })
}

/// Where `br_netfilter` looks at frames, the one way that does not work is from
/// ::1 to ::1 to a pod on the bridge.
#[rstest]
#[case::bridge("bridge", false)]
#[case::bridge_with_br_netfilter("bridge", true)]
#[case::routed("routed", false)]
fn a_mapped_port_is_reached_from_everywhere_in_both_families(
    #[case] mode: &str,
    #[case] bridged: bool,
) {
    let node = Node::new();
    node.namespace
        .run(|| {
            for family in ["", "6"] {
                let setting = format!("/proc/sys/net/bridge/bridge-nf-call-ip{family}tables");
                std::fs::write(setting, if bridged { "1" } else { "0" }).unwrap();
            }
        })
        .unwrap();
    let outside = outside(&node);
    let plain = node.configuration(mode);
    let configuration = with_ports(
        plain.clone(),
        json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
               {"hostPort": 8053, "containerPort": 80, "protocol": "UDP", "hostIP": ""}]),
    );
    let (server, client) = (Pod::new("server"), Pod::new("client"));
    let own = addresses(&node.call("ADD", &configuration, &server).ok());
    let other = addresses(&node.call("ADD", &plain, &client).ok());
    serve(&server, 80);
    let seen = |address: &str| Some(format!("server {address}"));

    // From outside, with the source kept.
    assert_eq!(ask(&outside, "198.51.100.1:8080"), seen("198.51.100.2"));
    assert_eq!(
        ask(&outside, "[2001:db8:51::1]:8080"),
        seen("2001:db8:51::2")
    );
    // From another pod, and from the pod itself by way of the node.
    for (at, address) in NODE.iter().enumerate() {
        let target = SocketAddr::new(address.parse().unwrap(), 8080).to_string();
        assert_eq!(
            ask(&client.namespace, &target),
            seen(&other[at].to_string())
        );
        let hairpin = ask(&server.namespace, &target).unwrap();
        assert!(hairpin.starts_with("server "), "{hairpin}");
        assert_ne!(Some(hairpin), seen(&own[at].to_string()));
    }
    // From the node: by its addresses, and at loopback from those.
    for (address, loopback) in NODE.iter().zip(["127.0.0.1", "::1"]) {
        let at = |address: &str| SocketAddr::new(address.parse().unwrap(), 8080).to_string();
        assert_eq!(ask(&node.namespace, &at(address)), seen(address));
        let answer = ask_from(&node.namespace, Some(address), &at(loopback));
        assert_eq!(answer, seen(address));
    }
    // From loopback to loopback: the pod sees one of the node's other addresses.
    for loopback in ["127.0.0.1", "::1"] {
        if loopback == "::1" && bridged {
            // Refused at once, not lost.
            let refused = node
                .namespace
                .run(|| TcpStream::connect((loopback, 8080)))
                .unwrap()
                .unwrap_err();
            assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
            continue;
        }
        let target = |port| SocketAddr::new(loopback.parse().unwrap(), port).to_string();
        let socket = node
            .namespace
            .run(|| UdpSocket::bind((loopback, 0)).unwrap())
            .unwrap();
        for answer in [
            ask(&node.namespace, &target(8080)),
            ask_udp(&socket, &target(8053)),
        ] {
            let answer = answer.unwrap_or_else(|| panic!("no answer at {loopback}"));
            let from = answer.strip_prefix("server ").unwrap();
            assert!(has_address(&node.namespace, from), "{from}");
            assert_ne!(from, loopback);
        }
    }
    // UDP.
    for (bind, to, from) in [
        ("198.51.100.2:0", "198.51.100.1:8053", "198.51.100.2"),
        (
            "[2001:db8:51::2]:0",
            "[2001:db8:51::1]:8053",
            "2001:db8:51::2",
        ),
    ] {
        let socket = outside.run(|| UdpSocket::bind(bind).unwrap()).unwrap();
        assert_eq!(ask_udp(&socket, to), seen(from));
    }

    node.call("DEL", &configuration, &server).ok();
    assert_eq!(ask(&outside, "198.51.100.1:8080"), None);
    node.settle();
    assert_eq!(elements(&node), 0);
}

fn shell(namespace: &NetworkNamespace, command: &str) {
    namespace
        .run(|| {
            let status = Command::new("sh").args(["-ec", command]).status().unwrap();
            assert!(status.success(), "{command}");
        })
        .unwrap();
}

/// Whether an interface of the namespace has the address.
fn has_address(namespace: &NetworkNamespace, address: &str) -> bool {
    ip(namespace, "address show")
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|link| link["addr_info"].as_array().unwrap())
        .any(|info| info["local"] == address)
}

/// Runs `nft` with a script.
fn nft(namespace: &NetworkNamespace, script: &str) {
    let output = namespace
        .run(|| Command::new("nft").arg(script).output().unwrap())
        .unwrap();
    assert!(output.status.success(), "{script}: {output:?}");
}

/// What the node's processes serve on loopback is theirs, whatever a neighbour
/// sends: also where a pod with mapped ports has opened the way for answers.
#[rstest]
#[case::bridge("bridge")]
#[case::routed("routed")]
fn nobody_reaches_what_the_node_serves_on_loopback(#[case] mode: &str) {
    const PORT: u16 = 9999;
    let node = Node::new();
    let outside = outside(&node);
    let configuration = with_ports(
        node.configuration(mode),
        json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]),
    );
    let pod = Pod::new("neighbour");
    node.call("ADD", &configuration, &pod).ok();
    let bind = |address: &str| {
        let socket = node
            .namespace
            .run(|| UdpSocket::bind((address, PORT)).unwrap())
            .unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        socket
    };
    let loopback = [bind("127.0.0.1"), bind("::1")];
    let own = NODE.map(bind);
    // Sent to an address beyond the node, the packets get another one after they
    // were routed: what a hostile neighbour writes on the wire. The one to the
    // node's own address comes after it, by the same way.
    let attack = |from: &NetworkNamespace, at: usize| {
        let (family, beyond, header) = [
            ("ip", "192.0.2.99:0", "ip"),
            ("ip6", "[2001:db8::99]:0", "ip6"),
        ][at];
        let target = ["127.0.0.1", "::1"][at];
        let script = format!(
            "add table {family} attack; add chain {family} attack out \
             {{ type filter hook postrouting priority 0; }}; flush chain {family} attack out; \
             add rule {family} attack out udp dport {PORT} {header} daddr {beyond} \
             {header} daddr set {target}",
            beyond = beyond.trim_end_matches(":0").trim_matches(['[', ']'])
        );
        nft(from, &script);
        let mut beyond: SocketAddr = beyond.parse().unwrap();
        beyond.set_port(PORT);
        let control = SocketAddr::new(NODE[at].parse().unwrap(), PORT);
        from.run(|| {
            let any = ["0.0.0.0:0", "[::]:0"][at];
            let socket = UdpSocket::bind(any).unwrap();
            socket.send_to(b"attack", beyond).unwrap();
            socket.send_to(b"control", control).unwrap();
        })
        .unwrap();
        let mut buffer = [0; 20];
        let length = own[at].recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"control");
        loopback[at].set_nonblocking(true).unwrap();
        loopback[at].recv(&mut buffer).is_ok()
    };
    for from in [&pod.namespace, &outside] {
        assert!(!attack(from, 0));
        assert!(!attack(from, 1));
    }
    // The attack is a real one: of IPv4 the guard alone keeps it off, of IPv6
    // the kernel.
    nft(&node.namespace, "flush chain inet podwire_hostports guard");
    assert!(attack(&pod.namespace, 0));
    assert!(!attack(&pod.namespace, 1));
}

/// Elements of the table's sets, as nft counts them.
fn elements(node: &Node) -> usize {
    let output = node
        .namespace
        .run(|| {
            Command::new("nft")
                .args(["-j", "list", "table", "inet", "podwire_hostports"])
                .output()
                .unwrap()
        })
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let listing: Value = serde_json::from_slice(&output.stdout).unwrap();
    let objects = listing["nftables"].as_array().unwrap();
    objects
        .iter()
        .filter_map(|object| object.get("map").or_else(|| object.get("set")))
        .map(|set| set["elem"].as_array().map_or(0, Vec::len))
        .sum()
}

#[test]
fn one_port_number_serves_three_pods_by_address_and_protocol() {
    let node = Node::new();
    let base = node.configuration("routed");
    let mapping = |host_ip: &str, protocol: &str| {
        with_ports(
            base.clone(),
            json!([{"hostPort": 54323, "containerPort": 80, "protocol": protocol, "hostIP": host_ip}]),
        )
    };
    let pods = ["pod1", "pod2", "pod3"].map(Pod::new);
    for (pod, (host_ip, protocol)) in pods.iter().zip([
        ("127.0.0.1", "tcp"),
        ("192.0.2.9", "tcp"),
        ("192.0.2.9", "udp"),
    ]) {
        node.call("ADD", &mapping(host_ip, protocol), pod).ok();
        serve(pod, 80);
    }
    let name = |answer: Option<String>| answer.unwrap().split(' ').next().unwrap().to_owned();
    assert_eq!(
        name(ask_from(
            &node.namespace,
            Some("192.0.2.9"),
            "127.0.0.1:54323"
        )),
        "pod1"
    );
    assert_eq!(name(ask(&node.namespace, "192.0.2.9:54323")), "pod2");
    let socket = node
        .namespace
        .run(|| UdpSocket::bind("192.0.2.9:0").unwrap())
        .unwrap();
    assert_eq!(name(ask_udp(&socket, "192.0.2.9:54323")), "pod3");
    // Each of several pods answers to loopback addresses.
    let mapping_of_all = with_ports(
        base.clone(),
        json!([{"hostPort": 54324, "containerPort": 80, "protocol": "tcp"}]),
    );
    let others = [
        (Pod::new("pod4"), mapping("::1", "tcp")),
        (Pod::new("pod5"), mapping_of_all),
    ];
    for (pod, configuration) in &others {
        node.call("ADD", configuration, pod).ok();
        serve(pod, 80);
    }
    for (at, who) in [
        ("127.0.0.1:54323", "pod1"),
        ("127.0.0.1:54324", "pod5"),
        ("[::1]:54323", "pod4"),
        ("[::1]:54324", "pod5"),
    ] {
        assert_eq!(name(ask(&node.namespace, at)), who, "{at}");
    }
    // Another pod cannot have what is taken, and is told by whom.
    let late = Pod::new("late");
    let outcome = node.call("ADD", &mapping("192.0.2.9", "udp"), &late);
    assert_eq!(outcome.code(), 104);
    let message = outcome.stdout["msg"].as_str().unwrap().to_owned();
    assert!(
        message.contains("shop/pod3") && message.contains("54323/udp"),
        "{message}"
    );
    node.call("DEL", &mapping("192.0.2.9", "udp"), &late).ok();
    assert_eq!(name(ask_udp(&socket, "192.0.2.9:54323")), "pod3");
}

#[test]
fn a_udp_client_reaches_the_next_pod_with_the_socket_of_the_last() {
    let node = Node::new();
    let outside = outside(&node);
    let configuration = with_ports(
        node.configuration("bridge"),
        json!([{"hostPort": 5353, "containerPort": 53, "protocol": "udp"}]),
    );
    let sockets = ["198.51.100.2:4000", "[2001:db8:51::2]:4000"]
        .map(|bind| outside.run(|| UdpSocket::bind(bind).unwrap()).unwrap());
    let targets = ["198.51.100.1:5353", "[2001:db8:51::1]:5353"];
    // Before there is a mapping, the kernel remembers the client's packets as
    // meant for the node.
    for (socket, target) in sockets.iter().zip(targets) {
        assert_eq!(ask_udp(socket, target), None);
    }
    for name in ["first", "second"] {
        let pod = Pod::new(name);
        node.call("ADD", &configuration, &pod).ok();
        serve(&pod, 53);
        for (socket, target) in sockets.iter().zip(targets) {
            let answer = ask_udp(socket, target).unwrap_or_default();
            assert!(answer.starts_with(name), "{name}: {answer:?}");
        }
        node.call("DEL", &configuration, &pod).ok();
    }
}

/// Firewall services do that when they are started again.
#[rstest]
#[case::bridge("bridge")]
#[case::routed("routed")]
fn ports_are_opened_again_when_all_tables_were_flushed(#[case] mode: &str) {
    let node = Node::new();
    let configuration = with_ports(
        node.configuration(mode),
        json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]),
    );
    let pods = ["one", "gone"].map(Pod::new);
    node.call("ADD", &configuration, &pods[0]).ok();
    serve(&pods[0], 80);
    // What has no interface any more is freed, and its ports stay closed.
    let mut other = configuration.clone();
    other["runtimeConfig"]["portMappings"][0]["hostPort"] = json!(8081);
    node.call("ADD", &other, &pods[1]).ok();
    let cable = node.links().pop().unwrap();
    shell(&node.namespace, &format!("ip link del {cable}"));

    let reclaim = || {
        let root = node.state.path();
        node.namespace
            .run(|| podwire_cni::audit::reclaim(root).unwrap())
            .unwrap()
    };
    shell(&node.namespace, "nft flush ruleset");
    assert_eq!(ask(&node.namespace, "127.0.0.1:8080"), None);
    let reclaimed = reclaim();
    assert_eq!(reclaimed.failures, Vec::<String>::new());
    let names = |found: &[ipam::Reservation]| -> Vec<String> {
        found
            .iter()
            .map(|r| r.attachment.container_id.clone())
            .collect()
    };
    assert_eq!(names(&reclaimed.reopened), ["one"]);
    assert_eq!(names(&reclaimed.reservations), ["gone"]);
    assert!(ask(&node.namespace, "127.0.0.1:8080").is_some());
    assert_eq!(ask(&node.namespace, "127.0.0.1:8081"), None);
    let reclaimed = reclaim();
    assert!(reclaimed.reopened.is_empty() && reclaimed.failures.is_empty());
    node.call("DEL", &configuration, &pods[0]).ok();
    node.settle();
    assert_eq!(elements(&node), 0);
}

#[test]
fn check_and_gc_know_the_ports_of_a_pod() {
    let node = Node::new();
    let mut configuration = with_ports(
        node.configuration("routed"),
        json!([{"hostPort": 7000, "containerPort": 70, "protocol": "sctp"}]),
    );
    let pod = Pod::new("one");
    configuration["prevResult"] = node.call("ADD", &configuration, &pod).ok();
    node.call("CHECK", &configuration, &pod).ok();
    assert_eq!(elements(&node), 4);
    // The ways back to the node's loopback addresses.
    let cable = node.links().remove(0);
    for (damage, repair, words) in [
        (
            format!("sysctl -qw net.ipv4.conf.{cable}.route_localnet=0"),
            format!("sysctl -qw net.ipv4.conf.{cable}.route_localnet=1"),
            "127.0.0.1",
        ),
        (
            format!("ip -6 route del local ::1 dev {cable} table local"),
            format!("ip -6 route add local ::1 dev {cable} table local proto 112"),
            "::1",
        ),
    ] {
        shell(&node.namespace, &damage);
        let outcome = node.call("CHECK", &configuration, &pod);
        assert_eq!(outcome.code(), 103);
        let message = outcome.stdout["msg"].as_str().unwrap();
        assert!(message.contains(words), "{message}");
        shell(&node.namespace, &repair);
        node.call("CHECK", &configuration, &pod).ok();
    }
    nft(&node.namespace, "flush map inet podwire_hostports ports6");
    let outcome = node.call("CHECK", &configuration, &pod);
    assert_eq!(outcome.code(), 103);
    assert!(
        outcome.stdout["msg"]
            .as_str()
            .unwrap()
            .contains("7000/sctp")
    );

    // The reservation is lost, the ports are not.
    std::fs::remove_dir_all(node.state.path().join("pods")).unwrap();
    configuration["cni.dev/valid-attachments"] = json!([]);
    node.plugin(&configuration, &[("CNI_COMMAND", "GC")]).ok();
    assert_eq!(elements(&node), 0);
    // A pod that is not there cannot keep a port.
    node.call("ADD", &configuration, &Pod::new("two")).ok();
    std::fs::remove_dir_all(node.state.path().join("pods")).unwrap();
    configuration["ipam"]["ranges"] = json!([[{"subnet": "10.200.9.0/24"}]]);
    node.call("ADD", &configuration, &Pod::new("three")).ok();
}

#[rstest]
#[case(json!([{"hostPort": 0, "containerPort": 80}]), "0 is no port")]
#[case(json!([{"hostPort": 80, "containerPort": 99999}]), "99999 is no port")]
#[case(json!([{"hostPort": 80, "containerPort": 80, "protocol": "icmp"}]), "icmp")]
#[case(json!([{"hostPort": 80, "containerPort": 80, "hostIP": "here"}]), "here")]
fn wrong_mappings_are_refused_with_the_reason(#[case] mappings: Value, #[case] words: &str) {
    let node = Node::new();
    let pod = Pod::new("one");
    let configuration = with_ports(node.configuration("routed"), mappings);
    let outcome = node.call("ADD", &configuration, &pod);
    assert_eq!(outcome.code(), 6);
    let message = outcome.stdout["msg"].as_str().unwrap();
    assert!(message.contains(words), "{message}");
    node.assert_clean();
}

#[test]
fn a_mapping_given_twice_counts_once_and_one_that_contradicts_is_refused() {
    let node = Node::new();
    let pod = Pod::new("server");
    let mapping = |to: u16| json!({"hostPort": 8080, "containerPort": to, "protocol": "tcp"});
    let twice = |one, other| {
        with_ports(
            node.configuration("routed"),
            json!([mapping(one), mapping(other)]),
        )
    };
    let outcome = node.call("ADD", &twice(80, 81), &pod);
    assert_eq!(outcome.code(), 7, "{outcome:?}");
    let message = outcome.stdout["msg"].as_str().unwrap();
    assert!(
        message.contains("8080/tcp leads to containerPort 80 and to 81"),
        "{message}"
    );
    node.call("ADD", &twice(80, 80), &pod).ok();
    node.call("DEL", &twice(80, 80), &pod).ok();
    node.assert_clean();
}

#[test]
fn a_container_has_its_ports_once_though_a_runtime_asks_in_each_of_its_networks() {
    let node = Node::new();
    let outside = outside(&node);
    let pod = Pod::new("server");
    let path = pod.path();
    let mapping = json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]);
    let one = with_ports(node.configuration("routed"), mapping);
    let mut two = one.clone();
    two["name"] = json!("more");
    two["ipam"]["ranges"] = json!([[{"subnet": "10.201.1.0/24"}]]);
    let call = |command: &str, configuration: &Value, interface: &str| {
        let variables = [
            ("CNI_COMMAND", command),
            ("CNI_CONTAINERID", "server"),
            ("CNI_NETNS", &path),
            ("CNI_IFNAME", interface),
        ];
        node.plugin(configuration, &variables).ok()
    };
    let answers = [("eth0", &one), ("net1", &two)].map(|(interface, configuration)| {
        let answer = call("ADD", configuration, interface);
        (interface, configuration, answer)
    });
    serve(&pod, 80);
    let seen = || ask(&outside, "198.51.100.1:8080");
    assert_eq!(seen(), Some("server 198.51.100.2".to_owned()));
    for (interface, configuration, answer) in &answers {
        let mut check = (*configuration).clone();
        check["prevResult"] = answer.clone();
        call("CHECK", &check, interface);
    }
    // Nobody else gets it, and DEL of the second takes nothing from the first.
    assert_eq!(node.call("ADD", &two, &Pod::new("other")).code(), 104);
    call("DEL", &two, "net1");
    node.settle();
    assert_eq!(seen(), Some("server 198.51.100.2".to_owned()));
    call("DEL", &one, "eth0");
    node.settle();
    assert_eq!((seen(), elements(&node)), (None, 0));
}

/// Runs a reference plugin as the next of a chain.
fn reference(node: &Node, command: &str, name: &str, pod: &Pod, configuration: &Value) -> Value {
    let mut child = node
        .namespace
        .run(|| {
            Command::new(format!("/usr/lib/cni/{name}"))
                .env("CNI_COMMAND", command)
                .env("CNI_CONTAINERID", &pod.id)
                .env("CNI_NETNS", pod.path())
                .env("CNI_IFNAME", "eth0")
                .env("CNI_PATH", "/usr/lib/cni")
                .stdin(std::process::Stdio::piped())
                .stdout(std::process::Stdio::piped())
                .spawn()
                .unwrap()
        })
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    input
        .write_all(configuration.to_string().as_bytes())
        .unwrap();
    drop(input);
    common::finish(child).ok()
}

#[rstest]
#[case::bridge("bridge")]
#[case::routed("routed")]
fn the_reference_portmap_bandwidth_and_sbr_work_behind_this_plugin(#[case] mode: &str) {
    let node = Node::new();
    let outside = outside(&node);
    let mut configuration = node.configuration(mode);
    configuration["cniVersion"] = json!("1.0.0");
    let pod = Pod::new("server");
    let result = node.call("ADD", &configuration, &pod).ok();
    let portmap = json!({
        "cniVersion": "1.0.0", "name": "pods", "type": "portmap", "prevResult": result,
        "runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]},
    });
    let passed = reference(&node, "ADD", "portmap", &pod, &portmap);
    assert_eq!(passed["ips"], result["ips"]);
    let bandwidth = json!({
        "cniVersion": "1.0.0", "name": "pods", "type": "bandwidth", "prevResult": passed,
        "runtimeConfig": {"bandwidth": {"ingressRate": 8_000_000, "ingressBurst": 800_000}},
    });
    let last = reference(&node, "ADD", "bandwidth", &pod, &bandwidth);
    let sbr = json!({
        "cniVersion": "1.0.0", "name": "pods", "type": "sbr", "prevResult": last,
    });
    let last = reference(&node, "ADD", "sbr", &pod, &sbr);
    serve(&pod, 80);
    let seen = |address: &str| Some(format!("server {address}"));
    assert_eq!(ask(&outside, "198.51.100.1:8080"), seen("198.51.100.2"));
    let cable = last["interfaces"]
        .as_array()
        .unwrap()
        .iter()
        .find(|i| i["name"].as_str().unwrap().starts_with("pw") && i["name"] != "pwbr0")
        .unwrap();
    let qdiscs = node
        .namespace
        .run(|| {
            let output = Command::new("tc")
                .args(["qdisc", "show", "dev", cable["name"].as_str().unwrap()])
                .output();
            String::from_utf8(output.unwrap().stdout).unwrap()
        })
        .unwrap();
    assert!(qdiscs.contains("tbf"), "{qdiscs}");

    // CHECK is given the last result in all positions, DEL in reverse order.
    // (The CHECK of Debian's portmap fails for pods with both families: it looks
    // for the IPv4 rule among those of IPv6.)
    let mut check = bandwidth.clone();
    check["prevResult"] = last.clone();
    reference(&node, "CHECK", "bandwidth", &pod, &check);
    configuration["prevResult"] = last.clone();
    node.call("CHECK", &configuration, &pod).ok();
    reference(&node, "DEL", "sbr", &pod, &sbr);
    reference(&node, "DEL", "bandwidth", &pod, &bandwidth);
    reference(&node, "DEL", "portmap", &pod, &portmap);
    node.call("DEL", &configuration, &pod).ok();
    node.settle();
    assert_eq!(node.reservations(), Vec::<String>::new());
}

#[test]
fn this_plugin_behind_a_reference_plugin_passes_the_result_on() {
    let node = Node::new();
    let pod = Pod::new("one");
    let loopback = json!({"cniVersion": "1.0.0", "name": "pods", "type": "loopback"});
    let first = {
        let mut child = node
            .namespace
            .run(|| {
                Command::new("/usr/lib/cni/loopback")
                    .env("CNI_COMMAND", "ADD")
                    .env("CNI_CONTAINERID", "one")
                    .env("CNI_NETNS", pod.path())
                    .env("CNI_IFNAME", "lo")
                    .env("CNI_PATH", "/usr/lib/cni")
                    .stdin(std::process::Stdio::piped())
                    .stdout(std::process::Stdio::piped())
                    .spawn()
                    .unwrap()
            })
            .unwrap();
        let mut input = child.stdin.take().unwrap();
        input.write_all(loopback.to_string().as_bytes()).unwrap();
        drop(input);
        common::finish(child).ok()
    };
    let mut configuration = with_ports(
        node.configuration("routed"),
        json!([{"hostPort": 8080, "containerPort": 80}]),
    );
    configuration["cniVersion"] = json!("1.0.0");
    configuration["prevResult"] = first.clone();
    let result = node.call("ADD", &configuration, &pod).ok();
    assert_eq!(result["interfaces"][0], first["interfaces"][0]);
    assert_eq!(result["ips"][0], first["ips"][0]);
    let last = result["ips"].as_array().unwrap().last().unwrap();
    let owner = usize::try_from(last["interface"].as_u64().unwrap()).unwrap();
    assert_eq!(result["interfaces"][owner]["name"], "eth0");
    configuration["prevResult"] = result.clone();
    node.call("CHECK", &configuration, &pod).ok();
    let own: Vec<IpAddr> = addresses(&result)
        .into_iter()
        .skip(first["ips"].as_array().unwrap().len())
        .collect();
    assert_eq!(own.len(), 2);
    node.call("DEL", &configuration, &pod).ok();
    node.assert_clean();
}
