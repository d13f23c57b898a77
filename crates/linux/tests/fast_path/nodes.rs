//! Two nodes with a pod each, a wire between them, and the fast path on both.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use podwire_linux::fast_path::{self, Attached, Direction, FastPath, Outcome, Place, Pod};
use podwire_linux::link;
use podwire_linux::namespace::NetworkNamespace;
use podwire_linux::sysctl::{Family, Setting};

use crate::wire::Wire;
use crate::witness::{ip, nft, run};

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Attach {
    Routed,
    Bridge,
}

/// A node with a pod.
pub(crate) struct Node {
    pub(crate) number: u8,
    attach: Attach,
    pub(crate) wire: Wire,
    pub(crate) here: NetworkNamespace,
    pub(crate) pod: NetworkNamespace,
    /// The program, and where it is attached.
    pub(crate) fast: Option<(FastPath, Vec<Attached>)>,
}

pub(crate) fn address(number: u8, v6: bool) -> IpAddr {
    match v6 {
        false => [192, 0, 2, number].into(),
        true => [0x2001, 0xdb8, 0, 0, 0, 0, 0, number.into()].into(),
    }
}

pub(crate) fn pod_address(number: u8, v6: bool) -> IpAddr {
    match v6 {
        false => [198, 51, number, 5].into(),
        true => [0x2001, 0xdb8, 1, number.into(), 0, 0, 0, 5].into(),
    }
}

/// The range of a node's pods.
pub(crate) fn range(number: u8, v6: bool) -> IpNet {
    let bits = if v6 { 64 } else { 24 };
    IpNet::new(pod_address(number, v6), bits).unwrap().trunc()
}

pub(crate) const POD_MAC: &str = "0a:58:00:00:00:05";
pub(crate) const GATEWAY_MAC: &str = "0a:58:00:00:00:01";

/// Has questions for an IPv6 neighbour repeated at once, and long enough: an interface
/// that is new hears none for a while.
fn ask_again_soon(namespace: &NetworkNamespace) {
    let set = || {
        for (setting, value) in [("retrans_time_ms", 20), ("mcast_solicit", 500)] {
            let setting = Setting::new(format!("ipv6/neigh/eth0/{setting}"));
            setting.write(value).unwrap();
        }
    };
    namespace.run(set).unwrap();
}

impl Node {
    fn new(number: u8, attach: Attach, wire: Wire) -> Self {
        let node = Self {
            number,
            attach,
            wire,
            here: NetworkNamespace::create().unwrap(),
            pod: NetworkNamespace::create().unwrap(),
            fast: None,
        };
        node.here
            .run(|| {
                Setting::forwarding(Family::V4).write(1).unwrap();
                Setting::forwarding(Family::V6).write(1).unwrap();
                fast_path::be_liberal().unwrap();
            })
            .unwrap();
        // As podwire's table does it; and a Service of this node's other side.
        let other = node.other();
        nft(
            &node.here,
            &format!(
                "table inet witness {{
                    counter invalid {{}}
                    chain forward {{
                        type filter hook forward priority 0;
                        ct state invalid counter name invalid drop
                    }}
                    chain service {{
                        type nat hook prerouting priority dstnat;
                        ip daddr 203.0.113.1 dnat ip to {}
                        ip6 daddr 2001:db8:96::1 dnat ip6 to {}
                    }}
                }}",
                pod_address(other, false),
                pod_address(other, true)
            ),
        );
        node.add_pod();
        node
    }

    /// The other node's number.
    pub(crate) fn other(&self) -> u8 {
        3 - self.number
    }

    /// Makes the pod's interface.
    pub(crate) fn add_pod(&self) {
        let mut socket = self.here.route_socket().unwrap();
        let end = |name, mac: &str, namespace| link::VethEnd {
            name,
            mac: Some(mac.parse().unwrap()),
            namespace,
            ..link::VethEnd::default()
        };
        let near = end(
            "pwpod",
            match self.attach {
                Attach::Routed => GATEWAY_MAC,
                Attach::Bridge => "0a:58:00:00:00:02",
            },
            None,
        );
        let far = end("eth0", POD_MAC, Some(&self.pod));
        socket.execute(&link::add_veth(&near, None, &far)).unwrap();
        self.limit(self.wire.mtu());
        ask_again_soon(&self.pod);
        match self.attach {
            Attach::Routed => self.add_routes(),
            Attach::Bridge => self.add_port(),
        }
    }

    fn add_routes(&self) {
        let [v4, v6] = [false, true].map(|v6| pod_address(self.number, v6));
        ip(
            &self.here,
            &format!(
                "link set pwpod up
                neighbour replace {v4} lladdr {POD_MAC} dev pwpod nud permanent
                neighbour replace {v6} lladdr {POD_MAC} dev pwpod nud permanent
                route replace {v4} dev pwpod
                route replace {v6} dev pwpod"
            ),
        );
        ip(
            &self.pod,
            &format!(
                "link set lo up
                link set eth0 up
                address add {v4}/32 dev eth0
                address add {v6}/128 dev eth0 nodad
                neighbour replace 169.254.1.1 lladdr {GATEWAY_MAC} dev eth0 nud permanent
                neighbour replace fe80::1 lladdr {GATEWAY_MAC} dev eth0 nud permanent
                route replace default via 169.254.1.1 dev eth0 onlink
                route replace default via fe80::1 dev eth0"
            ),
        );
    }

    fn add_port(&self) {
        let n = self.number;
        let mut socket = self.here.route_socket().unwrap();
        if link::get(&mut socket, "pwbr0").unwrap().is_none() {
            ip(
                &self.here,
                &format!(
                    "link add pwbr0 address {GATEWAY_MAC} type bridge mcast_snooping 0
                    link set pwbr0 up
                    address add 198.51.{n}.1/24 dev pwbr0
                    address add 2001:db8:1:{n}::1/64 dev pwbr0 nodad"
                ),
            );
        }
        ip(&self.here, "link set pwpod master pwbr0 up");
        ip(
            &self.pod,
            &format!(
                "link set lo up
                link set eth0 up
                address add {v4}/24 dev eth0
                address add {v6}/64 dev eth0 nodad
                route replace default via 198.51.{n}.1
                route replace default via 2001:db8:1:{n}::1",
                v4 = pod_address(n, false),
                v6 = pod_address(n, true)
            ),
        );
    }

    /// Sets the pod's longest packet.
    pub(crate) fn limit(&self, mtu: u32) {
        ip(&self.here, &format!("link set pwpod mtu {mtu}"));
        ip(&self.pod, &format!("link set eth0 mtu {mtu}"));
    }

    pub(crate) fn index(&self, name: &str) -> u32 {
        let mut socket = self.here.route_socket().unwrap();
        link::get(&mut socket, name).unwrap().unwrap().index
    }

    /// What an agent does that starts.
    pub(crate) fn start(&mut self) {
        let fast = FastPath::load().unwrap();
        let pod = self.index("pwpod");
        let attached = self.here.run(|| {
            fast.follow_timeouts().unwrap();
            let mut places = BTreeSet::from([(Place::Pod, pod)]);
            places.extend([false, true].map(|v6| {
                let way = self.way(v6);
                (way.place(), way.interface)
            }));
            let places = places.into_iter();
            places
                .map(|(place, interface)| fast.attach(place, interface).unwrap())
                .collect()
        });
        for v6 in [false, true] {
            let mine = Pod {
                interface: pod,
                mac: POD_MAC.parse().unwrap(),
                gateway: GATEWAY_MAC.parse().unwrap(),
            };
            fast.set_pod(pod_address(self.number, v6), &mine).unwrap();
            let range = range(self.other(), v6);
            fast.set_range(range, &self.way(v6)).unwrap();
        }
        self.fast = Some((fast, attached.unwrap()));
    }

    /// What the kernel does when an agent dies.
    pub(crate) fn stop(&mut self) {
        self.fast = None;
    }

    pub(crate) fn count(&self, direction: Direction, outcome: Outcome) -> u64 {
        let (fast, _) = self.fast.as_ref().unwrap();
        fast.count(direction, outcome).unwrap()
    }

    pub(crate) fn taken(&self) -> [u64; 2] {
        Direction::BOTH.map(|direction| self.count(direction, Outcome::Taken))
    }

    pub(crate) fn counters(&self) -> String {
        let mut text = String::new();
        for direction in Direction::BOTH {
            for outcome in Outcome::ALL {
                let count = self.count(direction, outcome);
                text += &format!("{direction:?} {outcome}: {count}\n");
            }
        }
        text
    }
}

/// Two nodes on a wire, with the fast path on both.
pub(crate) fn nodes(attach: Attach) -> [Node; 2] {
    nodes_on(attach, Wire::Plain)
}

pub(crate) fn nodes_on(attach: Attach, wire: Wire) -> [Node; 2] {
    let mut nodes = [Node::new(1, attach, wire), Node::new(2, attach, wire)];
    let mut socket = nodes[0].here.route_socket().unwrap();
    let end = |namespace| link::VethEnd {
        name: "eth0",
        namespace,
        ..link::VethEnd::default()
    };
    socket
        .execute(&link::add_veth(
            &end(None),
            None,
            &end(Some(&nodes[1].here)),
        ))
        .unwrap();
    for node in &nodes {
        ask_again_soon(&node.here);
        ip(
            &node.here,
            &format!(
                "link set eth0 up
                address add {}/24 dev eth0
                address add {}/64 dev eth0 nodad",
                address(node.number, false),
                address(node.number, true),
            ),
        );
        node.connect();
    }
    nodes.iter_mut().for_each(Node::start);
    // An interface that is new is not at once ready for IPv6.
    for v6 in [false, true] {
        let to = pod_address(2, v6).to_string();
        run(&nodes[0].pod, "ping", &["-nqc1", "-i0.01", "-w20", &to], "");
    }
    nodes
}
