//! Packets with a source that is not the pod's that sends them.

use std::net::{IpAddr, UdpSocket};
use std::time::Instant;

use podwire_linux::fast_path::{Direction, Outcome, Place, Pod};
use podwire_linux::link;
use podwire_linux::namespace::NetworkNamespace;
use podwire_linux::sysctl::Setting;
use rstest::rstest;

use crate::nodes::{Attach, GATEWAY_MAC, Node, nodes, pod_address};
use crate::traffic::{DEADLINE, PORT};
use crate::witness::{ip, rejected_sources};

const NAME: &str = "pwforger";
const MAC: &str = "0a:58:00:00:00:06";

/// Another pod of the node, which has the addresses it likes; the node knows it by its
/// own one only.
fn forger(node: &Node, own: IpAddr, forged: &[IpAddr]) -> NetworkNamespace {
    let pod = NetworkNamespace::create().unwrap();
    let end = |name, mac: &str, namespace| link::VethEnd {
        name,
        mac: Some(mac.parse().unwrap()),
        namespace,
        ..link::VethEnd::default()
    };
    let mut socket = node.here.route_socket().unwrap();
    let (near, far) = (end(NAME, GATEWAY_MAC, None), end("eth0", MAC, Some(&pod)));
    socket.execute(&link::add_veth(&near, None, &far)).unwrap();
    ip(
        &node.here,
        &format!(
            "link set {NAME} up
            neighbour replace {own} lladdr {MAC} dev {NAME} nud permanent
            route replace {own} dev {NAME}"
        ),
    );
    let gateway = if own.is_ipv6() {
        "fe80::1"
    } else {
        "169.254.1.1"
    };
    ip(
        &pod,
        &format!(
            "link set lo up
            link set eth0 up
            neighbour replace {gateway} lladdr {GATEWAY_MAC} dev eth0 nud permanent
            route replace default via {gateway} dev eth0 onlink"
        ),
    );
    for address in forged.iter().chain([&own]) {
        ip(&pod, &format!("address add {address} dev eth0 nodad"));
    }
    pod
}

/// A pod that has a program, as every one.
fn know(node: &Node, own: IpAddr) -> podwire_linux::fast_path::Attached {
    let (fast, _) = node.fast.as_ref().unwrap();
    let pod = Pod {
        interface: node.index(NAME),
        mac: MAC.parse().unwrap(),
        gateway: GATEWAY_MAC.parse().unwrap(),
    };
    fast.set_pod(own, &pod).unwrap();
    let attach = || fast.attach(Place::Pod, pod.interface).unwrap();
    node.here.run(attach).unwrap()
}

/// Whether the stack drops what comes by another interface than its source is
/// reached by.
fn judge_sources(nodes: &[Node; 2], strict: bool) {
    let set = || {
        for interface in ["all", "eth0", NAME] {
            let setting = Setting::new(format!("ipv4/conf/{interface}/rp_filter"));
            setting.write_if_present(strict.into()).unwrap();
        }
    };
    nodes.iter().for_each(|node| node.here.run(set).unwrap());
}

fn until(what: impl Fn() -> bool) {
    let started = Instant::now();
    while !what() {
        assert!(started.elapsed() < DEADLINE, "nothing happens");
        std::thread::yield_now();
    }
}

#[rstest]
#[case::strict(false, true)]
#[case::loose(false, false)]
// Its sources no stack judges.
#[case::v6(true, false)]
fn a_forged_source_is_the_stacks_to_judge(#[case] v6: bool, #[case] strict: bool) {
    let nodes = nodes(Attach::Routed);
    let (victim, target) = (pod_address(1, v6), pod_address(2, v6));
    let (own, neighbour, outside): (IpAddr, IpAddr, IpAddr) = match v6 {
        false => (
            [198, 51, 1, 6].into(),
            [198, 51, 2, 77].into(),
            [203, 0, 113, 9].into(),
        ),
        true => (
            "2001:db8:1:1::6".parse().unwrap(),
            "2001:db8:1:2::77".parse().unwrap(),
            "2001:db8:113::9".parse().unwrap(),
        ),
    };
    // Another pod of its node, one of another node, and none.
    let forged = [victim, neighbour, outside];
    let pod = forger(&nodes[0], own, &forged);
    judge_sources(&nodes, strict);
    let _attached = know(&nodes[0], own);
    let bind = |pod: &NetworkNamespace, at: IpAddr| {
        let socket = pod.run(|| UdpSocket::bind((at, PORT)).unwrap()).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        socket
    };
    let (client, server) = (bind(&nodes[0].pod, victim), bind(&nodes[1].pod, target));
    let mut room = [0; 10];
    let mut converse = || {
        client.send_to(b"true", (target, PORT)).unwrap();
        let (length, from) = server.recv_from(&mut room).unwrap();
        assert_eq!(
            (&room[..length], from),
            (&b"true"[..], (victim, PORT).into())
        );
        server.send_to(b"answer", from).unwrap();
        assert_eq!(client.recv(&mut room).unwrap(), 6);
    };
    let count = |outcome| nodes[0].count(Direction::Outbound, outcome);
    // The forged packets are of a connection that takes the fast path.
    let started = Instant::now();
    while count(Outcome::Taken) == 0 {
        converse();
        assert!(started.elapsed() < DEADLINE, "{}", nodes[0].counters());
    }
    for source in forged {
        let seen = || count(Outcome::Taken) + count(Outcome::Source);
        let (before, taken) = (seen(), count(Outcome::Taken));
        let rejected = rejected_sources(&nodes[0].here);
        let sent = bind(&pod, source).send_to(b"forged", (target, PORT));
        sent.unwrap();
        until(|| seen() > before);
        assert_eq!(count(Outcome::Taken), taken, "{source}");
        if strict {
            until(|| rejected_sources(&nodes[0].here) > rejected);
        } else {
            let from = server.recv_from(&mut [0; 10]).unwrap();
            assert_eq!(from, (6, (source, PORT).into()));
        }
        // Nothing else has come.
        converse();
    }
}
