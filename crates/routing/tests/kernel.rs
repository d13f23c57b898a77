//! The route table of a network namespace of the test's own, checked with `ip -j`.

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::Arc;

use linux::events::{Event, EventSocket, Group};
use linux::namespace::NetworkNamespace;
use podwire_routing::apply::remove_all;
use podwire_routing::{
    Backend, Basis, HostGateway, Kernel, Node, Planner, RouteKey, State, Subnet, Underlay, plan,
};

/// A node's namespace: `eth0` on 192.168.64.11/24 and fd00:64::11/64.
struct Host {
    namespace: NetworkNamespace,
}

impl Host {
    fn new() -> Host {
        let host = Host {
            namespace: NetworkNamespace::create().expect("root makes namespaces"),
        };
        host.ip("link set lo up");
        host.ip("link add eth0 mtu 1400 type veth peer name wire0");
        host.ip("link set eth0 up");
        host.ip("link set wire0 up");
        host.ip("addr add 192.168.64.11/24 dev eth0");
        host.ip("addr add fd00:64::11/64 dev eth0 nodad");
        host
    }

    fn ip(&self, arguments: &str) -> String {
        let output = self
            .namespace
            .run(|| Command::new("ip").args(arguments.split(' ')).output())
            .expect("the namespace can be entered")
            .expect("iproute2 is installed");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "ip {arguments}: {errors}");
        String::from_utf8(output.stdout).expect("ip writes text")
    }

    /// Routes of the main table as `DESTINATION [via GATEWAY] [TYPE]`.
    fn routes(&self, protocol: &str) -> BTreeSet<String> {
        let mut routes = BTreeSet::new();
        for family in ["-4", "-6"] {
            let text = self.ip(&format!(
                "-j -N {family} route show table main proto {protocol}"
            ));
            let list: serde_json::Value =
                serde_json::from_str(if text.trim().is_empty() { "[]" } else { &text })
                    .expect("ip writes JSON");
            for route in list.as_array().expect("a list") {
                let mut line = route["dst"].as_str().expect("a destination").to_owned();
                for field in ["gateway", "dev", "prefsrc", "type"] {
                    if let Some(value) = route[field].as_str().filter(|v| *v != "1") {
                        // IPv6 shows the loopback interface for unreachable routes.
                        if value != "lo" {
                            line.push_str(&format!(" {field}={value}"));
                        }
                    }
                }
                routes.insert(line);
            }
        }
        routes
    }

    fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.namespace
            .run(work)
            .expect("the namespace can be entered")
    }

    fn kernel(&self) -> Kernel {
        self.run(Kernel::open).expect("a socket")
    }
}

fn node(name: &str, number: u8) -> Node {
    let text = |text: String| text.parse().expect("an address");
    Node {
        name: name.into(),
        addresses: vec![
            text(format!("192.168.64.{number}")),
            text(format!("fd00:64::{number}")),
        ],
        ranges: vec![
            format!("10.200.{number}.0/24").parse().expect("a range"),
            format!("fd00:200:0:{number}::/64")
                .parse()
                .expect("a range"),
        ],
        ..Node::default()
    }
}

fn wanted(kernel: &mut Kernel, peers: &[Node]) -> State {
    let underlay = Underlay::read(kernel.socket()).expect("the kernel answers");
    let backends: [Arc<dyn Backend>; 1] = [Arc::new(HostGateway)];
    plan(&backends, &node("own", 11), peers, &underlay).state
}

fn set(lines: &[&str]) -> BTreeSet<String> {
    lines.iter().map(|line| (*line).to_owned()).collect()
}

fn events(socket: &mut EventSocket) -> Vec<Event> {
    let mut all = Vec::new();
    while let Some(some) = socket.receive().expect("the socket can be read") {
        all.extend(some);
    }
    all
}

const ALL: [Group; 5] = [
    Group::Links,
    Group::Addresses4,
    Group::Addresses6,
    Group::Routes4,
    Group::Routes6,
];

#[test]
fn routes_of_peers_follow_them_in_both_families() {
    let host = Host::new();
    let mut kernel = host.kernel();
    let first = wanted(&mut kernel, &[node("a", 12), node("b", 13)]);
    let outcome = kernel.apply(&first).unwrap();
    assert!(outcome.failures.is_empty(), "{:?}", outcome.failures);
    assert_eq!((outcome.changed, outcome.foreign.len()), (6, 0));
    assert_eq!(
        host.routes("112"),
        set(&[
            "10.200.11.0/24 type=7",
            "10.200.12.0/24 gateway=192.168.64.12 dev=eth0",
            "10.200.13.0/24 gateway=192.168.64.13 dev=eth0",
            "fd00:200:0:11::/64 type=7",
            "fd00:200:0:12::/64 gateway=fd00:64::12 dev=eth0",
            "fd00:200:0:13::/64 gateway=fd00:64::13 dev=eth0",
        ])
    );

    // One changes its address, one goes, one comes.
    let mut moved = node("a", 12);
    moved.addresses = node("a", 22).addresses;
    let second = wanted(&mut kernel, &[moved, node("c", 14)]);
    let outcome = kernel.apply(&second).unwrap();
    assert!(outcome.failures.is_empty(), "{:?}", outcome.failures);
    assert_eq!(outcome.changed, 6);
    assert_eq!(
        host.routes("112"),
        set(&[
            "10.200.11.0/24 type=7",
            "10.200.12.0/24 gateway=192.168.64.22 dev=eth0",
            "10.200.14.0/24 gateway=192.168.64.14 dev=eth0",
            "fd00:200:0:11::/64 type=7",
            "fd00:200:0:12::/64 gateway=fd00:64::22 dev=eth0",
            "fd00:200:0:14::/64 gateway=fd00:64::14 dev=eth0",
        ])
    );
}

#[test]
fn a_restart_adopts_and_changes_nothing() {
    let host = Host::new();
    let mut kernel = host.kernel();
    let subnets = Underlay::read(kernel.socket()).unwrap().subnets;
    let mut wanted = wanted(&mut kernel, &[node("a", 12), node("b", 13)]);
    let ranges = [
        "10.96.0.0/12".parse().unwrap(),
        "fd00:96::/112".parse().unwrap(),
    ];
    wanted.routes.extend(podwire_routing::service_range::routes(
        &ranges,
        &node("own", 11).addresses,
        &subnets,
    ));
    kernel.apply(&wanted).unwrap();
    assert!(
        host.routes("112")
            .contains("10.96.0.0/12 dev=eth0 prefsrc=192.168.64.11")
    );
    assert!(
        host.routes("112")
            .contains("fd00:96::/112 dev=eth0 prefsrc=fd00:64::11")
    );
    drop(kernel);

    let mut monitor = host.run(|| EventSocket::open(&ALL)).unwrap();
    let mut kernel = host.kernel();
    let outcome = kernel.apply(&wanted).unwrap();
    assert_eq!(
        (
            outcome.changed,
            outcome.failures.len(),
            outcome.foreign.len()
        ),
        (0, 0, 0)
    );
    assert_eq!(events(&mut monitor), []);
}

#[test]
fn routes_of_pods_and_of_others_stay() {
    let host = Host::new();
    host.ip("link add pwabc type veth peer name other0");
    host.ip("link set pwabc up");
    host.ip("link set other0 up");
    host.ip("route add 10.200.11.5/32 dev pwabc proto 112");
    host.ip("-6 route add fd00:200:0:11::5/128 dev pwabc proto 112");
    host.ip("route add 10.200.11.0/25 dev pwabc proto 112");
    host.ip("route add 10.200.12.128/25 via 192.168.64.77 proto static");
    let place = RouteKey::of_peer("10.200.13.0/24".parse().unwrap());
    let metric = place.metric;
    host.ip(&format!(
        "route add 10.200.13.0/24 via 192.168.64.78 proto static metric {metric}"
    ));
    host.ip("route add 10.99.0.0/16 via 192.168.64.12 proto 112");
    let mut kernel = host.kernel();
    let wanted = wanted(&mut kernel, &[node("a", 12), node("b", 13)]);
    let outcome = kernel.apply(&wanted).unwrap();
    assert!(outcome.failures.is_empty(), "{:?}", outcome.failures);
    let own = host.routes("112");
    assert!(own.contains("10.200.11.5 dev=pwabc"), "{own:?}");
    assert!(own.contains("fd00:200:0:11::5 dev=pwabc"), "{own:?}");
    assert!(own.contains("10.200.11.0/25 dev=pwabc"), "{own:?}");
    assert!(
        own.contains("10.200.12.0/24 gateway=192.168.64.12 dev=eth0"),
        "{own:?}"
    );
    // Left over from a node that went while the agent was down.
    assert!(
        !own.iter().any(|route| route.starts_with("10.99.")),
        "{own:?}"
    );
    assert_eq!(
        host.routes("4"),
        set(&[
            "10.200.12.128/25 gateway=192.168.64.77 dev=eth0",
            "10.200.13.0/24 gateway=192.168.64.78 dev=eth0",
        ])
    );
    let reports: Vec<String> = outcome.foreign.iter().map(ToString::to_string).collect();
    assert_eq!(reports.len(), 2, "{reports:?}");
    assert!(reports[0].contains("10.200.12.128/25") && reports[0].contains("takes traffic"));
    assert!(reports[1].contains("10.200.13.0/24") && reports[1].contains("from being made"));

    // Once the stranger is gone, ours takes its place.
    host.ip("route del 10.200.13.0/24 via 192.168.64.78");
    kernel.invalidate();
    kernel.apply(&wanted).unwrap();
    assert!(
        host.routes("112")
            .contains("10.200.13.0/24 gateway=192.168.64.13 dev=eth0")
    );
}

#[test]
fn a_table_changed_behind_our_back_is_put_right_by_one_apply() {
    let host = Host::new();
    let mut kernel = host.kernel();
    let first = wanted(&mut kernel, &[node("a", 12), node("b", 13)]);
    kernel.apply(&first).unwrap();
    // What the shadow knows is now wrong in both directions.
    host.ip("route del 10.200.12.0/24");
    host.ip("route add 10.200.14.0/24 via 192.168.64.14 proto 112");
    let second = wanted(&mut kernel, &[node("b", 13), node("c", 14)]);
    let outcome = kernel.apply(&second).unwrap();
    assert!(outcome.failures.is_empty(), "{:?}", outcome.failures);
    let routes = host.routes("112");
    assert!(
        !routes.iter().any(|route| route.starts_with("10.200.12.")),
        "{routes:?}"
    );
    assert!(
        routes.contains("10.200.14.0/24 gateway=192.168.64.14 dev=eth0"),
        "{routes:?}"
    );
}

#[test]
fn a_planner_tells_the_kernel_what_has_changed_and_a_reading_what_others_did() {
    let host = Host::new();
    let mut kernel = host.kernel();
    let mut planner = Planner::new();
    planner.set_basis(Basis {
        backends: vec![Arc::new(HostGateway)],
        own: node("own", 11),
        underlay: Underlay::read(kernel.socket()).expect("the kernel answers"),
        ..Basis::default()
    });
    let apply = |planner: &mut Planner, kernel: &mut Kernel| {
        planner.plan(kernel.held().expect("the kernel answers"));
        let (plan, changes) = planner.planned();
        let outcome = kernel.apply_changes(&plan.state, changes).unwrap();
        assert!(outcome.failures.is_empty(), "{:?}", outcome.failures);
        planner.took_up();
        let foreign: Vec<String> = outcome
            .foreign
            .iter()
            .map(|f| f.range.to_string())
            .collect();
        (outcome.changed, foreign)
    };
    host.ip("route add 10.200.13.128/25 via 192.168.64.99 proto static");
    host.ip("route add 10.200.14.128/25 via 192.168.64.99 proto static");
    for (name, number) in [("a", 12), ("b", 13)] {
        planner.set_peer(node(name, number));
    }
    let in_the_way = |range: &str| vec![range.to_owned()];
    assert_eq!(
        apply(&mut planner, &mut kernel),
        (6, in_the_way("10.200.13.0/24"))
    );
    // What is not said to have changed is not looked at, and foreign routes are
    // remembered as long as what they are in the way of.
    let before = kernel.requests_sent();
    assert_eq!(
        apply(&mut planner, &mut kernel),
        (0, in_the_way("10.200.13.0/24"))
    );
    planner.set_peer(node("a", 15));
    assert_eq!(
        apply(&mut planner, &mut kernel),
        (4, in_the_way("10.200.13.0/24"))
    );
    assert_eq!(kernel.requests_sent() - before, 4);
    planner.set_peer(node("b", 14));
    assert_eq!(
        apply(&mut planner, &mut kernel),
        (4, in_the_way("10.200.14.0/24"))
    );
    planner.remove_peer("b");
    assert_eq!(apply(&mut planner, &mut kernel), (2, vec![]));
    // Once it was read, the kernel is looked at as a whole.
    host.ip("route del 10.200.15.0/24");
    kernel.invalidate();
    assert_eq!(apply(&mut planner, &mut kernel), (1, vec![]));
    let (plan, _) = planner.planned();
    assert!(kernel.difference(&plan.state).unwrap().is_empty());
}

#[test]
fn notices_tell_changes_by_others_from_the_own_echo() {
    let host = Host::new();
    let mut monitor = host.run(|| EventSocket::open(&ALL)).unwrap();
    let mut kernel = host.kernel();
    let wanted = wanted(&mut kernel, &[node("a", 12)]);
    let mut concerns = |kernel: &mut Kernel| {
        let events = events(&mut monitor);
        assert!(!events.is_empty(), "the kernel tells of every change");
        events
            .into_iter()
            .filter(|event| kernel.notice(event))
            .collect::<Vec<Event>>()
    };
    kernel.apply(&wanted).unwrap();
    assert_eq!(concerns(&mut kernel), [], "our own routes");
    host.ip("link add pwabc type veth peer name pwdef");
    host.ip("link set pwabc up");
    host.ip("link set pwdef up");
    host.ip("addr add 169.254.1.1/32 dev pwabc");
    host.ip("route add 10.200.11.5/32 dev pwabc proto 112");
    assert_eq!(concerns(&mut kernel), [], "pods come");
    host.ip("link del pwabc");
    assert_eq!(concerns(&mut kernel), [], "pods go");
    host.ip("route del 10.200.12.0/24");
    assert!(
        !concerns(&mut kernel).is_empty(),
        "somebody removed our route"
    );
    kernel.apply(&wanted).unwrap();
    assert!(
        host.routes("112")
            .contains("10.200.12.0/24 gateway=192.168.64.12 dev=eth0")
    );
    assert_eq!(concerns(&mut kernel), []);
    host.ip("route add default via 192.168.64.1");
    assert!(!concerns(&mut kernel).is_empty(), "a default route came");
    kernel.held().unwrap();
    host.ip("link set eth0 mtu 1300");
    assert!(
        !concerns(&mut kernel).is_empty(),
        "the underlay's MTU changed"
    );
    kernel.held().unwrap();
    host.ip("addr add 192.168.65.11/24 dev eth0");
    assert!(!concerns(&mut kernel).is_empty(), "another subnet came");
}

#[test]
fn the_underlay_is_what_is_up_and_not_ours() {
    let host = Host::new();
    host.ip("link add pwbr0 type bridge");
    host.ip("addr add 10.200.11.1/24 dev pwbr0");
    host.ip("link set pwbr0 up");
    host.ip("link add down0 type veth peer name down1");
    host.ip("addr add 192.168.99.1/24 dev down0");
    host.ip("addr add 203.0.113.1/32 dev eth0");
    let mut kernel = host.kernel();
    let underlay = Underlay::read(kernel.socket()).unwrap();
    let index = *underlay
        .interfaces
        .iter()
        .find(|(_, i)| i.name == "eth0")
        .unwrap()
        .0;
    let subnets = ["192.168.64.11/24", "fd00:64::11/64"].map(|address| Subnet {
        address: address.parse().unwrap(),
        interface: index,
    });
    assert_eq!(underlay.subnets, subnets);
    assert_eq!(
        underlay.mtu(&["192.168.64.11".parse().unwrap()]),
        Some(1400)
    );
}

#[test]
fn a_default_route_of_others_is_enough_for_services() {
    let host = Host::new();
    let range = "10.96.0.0/12".parse().unwrap();
    let mut kernel = host.kernel();
    assert!(!kernel.is_routed_by_others(&range).unwrap());
    host.ip("route add unreachable default metric 9999");
    kernel.invalidate();
    assert!(!kernel.is_routed_by_others(&range).unwrap());
    host.ip("route add default via 192.168.64.1");
    kernel.invalidate();
    assert!(kernel.is_routed_by_others(&range).unwrap());
    assert!(
        !kernel
            .is_routed_by_others(&"fd00:96::/112".parse().unwrap())
            .unwrap()
    );
}

#[test]
fn everything_of_podwires_can_be_removed_and_nothing_else_is() {
    let host = Host::new();
    let mut kernel = host.kernel();
    let wanted = wanted(&mut kernel, &[node("a", 12)]);
    kernel.apply(&wanted).unwrap();
    host.ip("route add 10.200.11.5/32 dev eth0 proto 112");
    host.ip("route add 10.1.0.0/16 dev eth0 proto 112 table 77");
    host.ip("route add default via 192.168.64.1 proto static");
    for family in ["-4", "-6"] {
        host.ip(&format!(
            "{family} rule add priority 1120 lookup 1120 protocol 112"
        ));
        host.ip(&format!(
            "{family} rule add priority 1121 lookup 1120 protocol 4"
        ));
    }
    let removed = remove_all(kernel.socket()).unwrap();
    assert_eq!(removed.len(), 6);
    assert_eq!(host.routes("112"), set(&[]));
    assert_eq!(host.ip("route show table all proto 112"), "");
    for family in ["-4", "-6"] {
        let rules = host.ip(&format!("{family} rule show"));
        assert!(
            !rules.contains("1120:") && rules.contains("1121:"),
            "{rules}"
        );
    }
    assert_eq!(
        host.routes("4"),
        set(&["default gateway=192.168.64.1 dev=eth0"])
    );
    assert!(remove_all(kernel.socket()).unwrap().is_empty());
}
