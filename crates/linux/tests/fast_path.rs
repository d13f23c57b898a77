//! The fast path against the kernel: two nodes with a pod each, and real traffic
//! between the pods, with the program's counters, nftables and conntrack as
//! witnesses. Needs root.
#![allow(clippy::unwrap_used, reason = "tests say what they expect with unwrap")]

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use podwire_linux::fast_path::{
    self, Attached, Direction, FastPath, Outcome, Place, Pod, Via, Way,
};
use podwire_linux::link;
use podwire_linux::namespace::NetworkNamespace;
use podwire_linux::sysctl::{Family, Setting};
use podwire_linux::wireguard::{Change, PrivateKey, Ranges, Settings, WireGuard};
use rstest::rstest;

/// Longer than anything here takes on a machine that is busy with other things.
const DEADLINE: Duration = Duration::from_secs(20);
const PORT: u16 = 8080;

/// Runs a program inside a namespace and gives what it prints.
fn run(namespace: &NetworkNamespace, program: &str, arguments: &[&str], input: &str) -> String {
    let output = namespace
        .run(|| {
            let mut child = Command::new(program)
                .args(arguments)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            let mut stdin = child.stdin.take().unwrap();
            stdin.write_all(input.as_bytes()).unwrap();
            drop(stdin);
            child.wait_with_output().unwrap()
        })
        .unwrap();
    assert!(output.status.success(), "{program}: {input}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn ip(namespace: &NetworkNamespace, commands: &str) {
    run(namespace, "ip", &["-batch", "-"], commands);
}

fn nft(namespace: &NetworkNamespace, rules: &str) {
    run(namespace, "nft", &["-f", "-"], rules);
}

/// What a counter of table `inet witness` has seen.
fn seen(namespace: &NetworkNamespace, counter: &str) -> u64 {
    let text = run(
        namespace,
        "nft",
        &["-j", "list", "counter", "inet", "witness", counter],
        "",
    );
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    json["nftables"][1]["counter"]["packets"].as_u64().unwrap()
}

#[derive(Clone, Copy, PartialEq)]
enum Attach {
    Routed,
    Bridge,
}

/// How packets get from node to node.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Wire {
    /// As they are.
    Plain,
    /// As Ethernet frames in VXLAN, over IPv4 or IPv6.
    Vxlan { over_v6: bool },
    /// In VXLAN by routes with a lightweight tunnel.
    Gpe { over_v6: bool },
    /// As frames of a bridge whose port is a VXLAN with a multicast group.
    Multicast,
    /// Encrypted by WireGuard, over IPv4 or IPv6.
    Wireguard { over_v6: bool },
}

impl Wire {
    /// The tunnel's longest packet.
    fn mtu(self) -> u32 {
        match self {
            Wire::Plain => 1500,
            Wire::Vxlan { over_v6: false } | Wire::Multicast => 1450,
            Wire::Vxlan { over_v6: true } => 1430,
            Wire::Gpe { over_v6: false } => 1464,
            Wire::Gpe { over_v6: true } => 1444,
            Wire::Wireguard { over_v6: false } => 1440,
            Wire::Wireguard { over_v6: true } => 1420,
        }
    }

    /// The interface that leads to the other node.
    fn interface(self) -> &'static str {
        match self {
            Wire::Plain => "eth0",
            Wire::Vxlan { .. } | Wire::Gpe { .. } | Wire::Multicast | Wire::Wireguard { .. } => {
                "tunnel"
            }
        }
    }
}

/// A node with a pod.
struct Node {
    number: u8,
    attach: Attach,
    wire: Wire,
    here: NetworkNamespace,
    pod: NetworkNamespace,
    /// The program, and where it is attached.
    fast: Option<(FastPath, Vec<Attached>)>,
}

fn address(number: u8, v6: bool) -> IpAddr {
    match v6 {
        false => [192, 0, 2, number].into(),
        true => [0x2001, 0xdb8, 0, 0, 0, 0, 0, number.into()].into(),
    }
}

fn pod_address(number: u8, v6: bool) -> IpAddr {
    match v6 {
        false => [198, 51, number, 5].into(),
        true => [0x2001, 0xdb8, 1, number.into(), 0, 0, 0, 5].into(),
    }
}

/// The range of a node's pods.
fn range(number: u8, v6: bool) -> IpNet {
    let bits = if v6 { 64 } else { 24 };
    IpNet::new(pod_address(number, v6), bits).unwrap().trunc()
}

/// The tunnel's address of a node.
fn tunnel_address(number: u8, v6: bool) -> IpAddr {
    match v6 {
        false => [198, 51, number, 0].into(),
        true => [0xfe80, 0, 0, 0, 0, 0, 0, number.into()].into(),
    }
}

const POD_MAC: &str = "0a:58:00:00:00:05";
const GATEWAY_MAC: &str = "0a:58:00:00:00:01";

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
        let other = 3 - number;
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

    /// Makes the pod's interface.
    fn add_pod(&self) {
        let (n, pod) = (self.number, |v6| pod_address(self.number, v6));
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
            Attach::Routed => {
                ip(
                    &self.here,
                    &format!(
                        "link set pwpod up
                        neighbour replace {v4} lladdr {POD_MAC} dev pwpod nud permanent
                        neighbour replace {v6} lladdr {POD_MAC} dev pwpod nud permanent
                        route replace {v4} dev pwpod
                        route replace {v6} dev pwpod",
                        v4 = pod(false),
                        v6 = pod(true)
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
                        route replace default via fe80::1 dev eth0",
                        v4 = pod(false),
                        v6 = pod(true)
                    ),
                );
            }
            Attach::Bridge => {
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
                        v4 = pod(false),
                        v6 = pod(true)
                    ),
                );
            }
        }
    }

    /// Sets up the way to the other node.
    fn connect(&self) {
        let (n, other) = (self.number, 3 - self.number);
        let mtu = self.wire.mtu();
        let ranges = [false, true].map(|v6| (v6, range(other, v6)));
        match self.wire {
            Wire::Plain => {
                for (v6, range) in ranges {
                    let via = address(other, v6);
                    ip(&self.here, &format!("route add {range} via {via}"));
                }
            }
            Wire::Vxlan { over_v6 } => {
                let mac = |n| format!("0a:00:00:00:00:0{n}");
                ip(
                    &self.here,
                    &format!(
                        "link add tunnel address {} mtu {mtu} type vxlan id 1 dstport 8472 \
                            local {} nolearning noudpcsum
                        link set tunnel up",
                        mac(n),
                        address(n, over_v6)
                    ),
                );
                let (mac, remote) = (mac(other), address(other, over_v6).to_string());
                run(
                    &self.here,
                    "bridge",
                    &["fdb", "add", &mac, "dev", "tunnel", "dst", &remote],
                    "",
                );
                for (v6, range) in ranges {
                    let via = tunnel_address(other, v6);
                    ip(
                        &self.here,
                        &format!(
                            "neighbour add {via} lladdr {mac} dev tunnel nud permanent
                            route add {range} via {via} dev tunnel onlink"
                        ),
                    );
                }
            }
            Wire::Multicast => {
                ip(
                    &self.here,
                    &format!(
                        "link add tunnel address 0a:00:00:00:00:0{n} mtu {mtu} type bridge \
                            mcast_snooping 0
                        link add port mtu {mtu} master tunnel type vxlan id 1 dstport 4789 \
                            local {} group 239.112.0.1 dev eth0 noudpcsum
                        link set port up
                        link set tunnel up",
                        address(n, false)
                    ),
                );
                for (v6, range) in ranges {
                    let pod = pod_address(other, v6);
                    ip(
                        &self.here,
                        &format!(
                            "neighbour add {pod} lladdr 0a:00:00:00:00:0{other} dev tunnel \
                                nud permanent
                            route add {range} dev tunnel"
                        ),
                    );
                }
            }
            Wire::Gpe { over_v6 } => {
                ip(
                    &self.here,
                    &format!(
                        "link add tunnel mtu {mtu} type vxlan dstport 4790 gpe external
                        link set tunnel up"
                    ),
                );
                // As podwire's routes have it.
                let (kind, checksum) = match over_v6 {
                    false => ("ip", ""),
                    true => ("ip6", "csum"),
                };
                let remote = address(other, over_v6);
                for (_, range) in ranges {
                    ip(
                        &self.here,
                        &format!(
                            "route add {range} encap {kind} id 1 dst {remote} {checksum} \
                                dev tunnel"
                        ),
                    );
                }
            }
            Wire::Wireguard { over_v6 } => {
                ip(
                    &self.here,
                    &format!("link add tunnel mtu {mtu} type wireguard"),
                );
                let mut wireguard = self.here.run(WireGuard::open).unwrap().unwrap();
                let mut key = |number| {
                    let settings = Settings {
                        private_key: Some(PrivateKey::from_bytes([number; 32])),
                        port: Some(51820),
                        mark: None,
                    };
                    wireguard.configure("tunnel", &settings).unwrap();
                    let device = wireguard.device("tunnel").unwrap().unwrap();
                    device.public_key.unwrap()
                };
                // The other's, and at last its own.
                let [key, _] = [other, n].map(&mut key);
                let peer = Change::Set {
                    key,
                    endpoint: Some((address(other, over_v6), 51820).into()),
                    keepalive: None,
                    ranges: Ranges::Replace(ranges.map(|(_, range)| range).into()),
                };
                wireguard.change("tunnel", &[peer]).unwrap();
                ip(&self.here, "link set tunnel up");
                for (_, range) in ranges {
                    ip(&self.here, &format!("route add {range} dev tunnel"));
                }
            }
        }
    }

    /// Sets the pod's longest packet.
    fn limit(&self, mtu: u32) {
        ip(&self.here, &format!("link set pwpod mtu {mtu}"));
        ip(&self.pod, &format!("link set eth0 mtu {mtu}"));
    }

    /// How the other node's pods of a family are reached.
    fn way(&self, v6: bool) -> Way {
        let other = 3 - self.number;
        Way {
            interface: self.index(self.wire.interface()),
            mtu: None,
            via: match self.wire {
                Wire::Plain => Via::Neighbour(address(other, v6)),
                Wire::Vxlan { .. } => Via::Neighbour(tunnel_address(other, v6)),
                Wire::Multicast => Via::OnLink,
                Wire::Gpe { over_v6 } => Via::Tunnel {
                    id: 1,
                    remote: address(other, over_v6),
                },
                Wire::Wireguard { .. } => Via::Device,
            },
        }
    }

    fn index(&self, name: &str) -> u32 {
        let mut socket = self.here.route_socket().unwrap();
        link::get(&mut socket, name).unwrap().unwrap().index
    }

    /// What an agent does that starts.
    fn start(&mut self) {
        let fast = FastPath::load().unwrap();
        let pod = self.index("pwpod");
        let attached = self.here.run(|| {
            fast.follow_timeouts().unwrap();
            let way = self.way(false);
            [
                fast.attach(way.place(), way.interface).unwrap(),
                fast.attach(Place::Pod, pod).unwrap(),
            ]
        });
        for v6 in [false, true] {
            let mine = Pod {
                interface: pod,
                mac: POD_MAC.parse().unwrap(),
                gateway: GATEWAY_MAC.parse().unwrap(),
            };
            fast.set_pod(pod_address(self.number, v6), &mine).unwrap();
            let range = range(3 - self.number, v6);
            fast.set_range(range, &self.way(v6)).unwrap();
        }
        self.fast = Some((fast, attached.unwrap().into()));
    }

    /// What the kernel does when an agent dies.
    fn stop(&mut self) {
        self.fast = None;
    }

    fn count(&self, direction: Direction, outcome: Outcome) -> u64 {
        let (fast, _) = self.fast.as_ref().unwrap();
        fast.count(direction, outcome).unwrap()
    }

    fn taken(&self) -> [u64; 2] {
        Direction::BOTH.map(|direction| self.count(direction, Outcome::Taken))
    }

    fn counters(&self) -> String {
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
fn nodes(attach: Attach) -> [Node; 2] {
    nodes_on(attach, Wire::Plain)
}

fn nodes_on(attach: Attach, wire: Wire) -> [Node; 2] {
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

fn listen(namespace: &NetworkNamespace, address: IpAddr) -> TcpListener {
    namespace
        .run(|| TcpListener::bind((address, PORT)).unwrap())
        .unwrap()
}

fn limit(stream: TcpStream) -> TcpStream {
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_write_timeout(Some(DEADLINE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

fn connect(namespace: &NetworkNamespace, to: IpAddr) -> TcpStream {
    let to = SocketAddr::from((to, PORT));
    limit(
        namespace
            .run(|| TcpStream::connect_timeout(&to, DEADLINE).unwrap())
            .unwrap(),
    )
}

/// Connects from a port that several connections share.
fn connect_from(namespace: &NetworkNamespace, from: IpAddr, to: IpAddr) -> TcpStream {
    use rustix::net::{AddressFamily, SocketType, bind, connect, socket, sockopt};
    let family = match to {
        IpAddr::V4(_) => AddressFamily::INET,
        IpAddr::V6(_) => AddressFamily::INET6,
    };
    let stream = namespace.run(|| {
        let socket = socket(family, SocketType::STREAM, None).unwrap();
        sockopt::set_socket_reuseaddr(&socket, true).unwrap();
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(DEADLINE)).unwrap();
        bind(&socket, &SocketAddr::from((from, 40_000))).unwrap();
        connect(&socket, &SocketAddr::from((to, PORT))).unwrap();
        TcpStream::from(socket)
    });
    limit(stream.unwrap())
}

/// A connection from the first node's pod to the second's.
fn connection(nodes: &[Node; 2], v6: bool) -> (TcpStream, TcpStream) {
    let to = pod_address(2, v6);
    let listener = listen(&nodes[1].pod, to);
    let client = connect(&nodes[0].pod, to);
    (client, limit(listener.accept().unwrap().0))
}

/// A byte there and one back.
fn ask((client, server): &mut (TcpStream, TcpStream)) {
    let mut byte = [0];
    client.write_all(&[7]).unwrap();
    server.read_exact(&mut byte).unwrap();
    server.write_all(&[8]).unwrap();
    client.read_exact(&mut byte).unwrap();
    assert_eq!(byte, [8]);
}

/// Asks until the packets of the connection take the fast path on both nodes,
/// both ways: the first ones go before the stack has seen the handshake's end.
fn ask_until_taken(nodes: &[Node; 2], pair: &mut (TcpStream, TcpStream)) {
    let before = nodes.each_ref().map(Node::taken);
    for _ in 0..50 {
        ask(pair);
        let now = nodes.each_ref().map(Node::taken);
        let both = before.as_flattened().iter().zip(now.as_flattened());
        if both.into_iter().all(|(before, now)| before < now) {
            return;
        }
    }
    panic!(
        "no fast path:\n{}\n{}",
        nodes[0].counters(),
        nodes[1].counters()
    );
}

/// Sends so many bytes and gives how many arrive.
fn transfer((client, server): &mut (TcpStream, TcpStream), bytes: usize) -> usize {
    let mut from = client.try_clone().unwrap();
    let sender = std::thread::spawn(move || {
        let piece = vec![3; 1 << 16];
        for _ in 0..bytes / piece.len() {
            from.write_all(&piece).unwrap();
        }
        from.shutdown(std::net::Shutdown::Write).unwrap();
    });
    let mut count = 0;
    let mut buffer = vec![0; 1 << 16];
    loop {
        match server.read(&mut buffer).unwrap() {
            0 => break,
            length => count += length,
        }
    }
    sender.join().unwrap();
    count
}

#[rstest]
fn tcp_takes_the_fast_path_from_handshake_to_close(
    #[values(Attach::Routed, Attach::Bridge)] attach: Attach,
    #[values(
        Wire::Plain,
        Wire::Vxlan { over_v6: false },
        Wire::Vxlan { over_v6: true },
        Wire::Gpe { over_v6: false },
        Wire::Gpe { over_v6: true },
        Wire::Multicast
    )]
    wire: Wire,
    #[values(false, true)] v6: bool,
) {
    let nodes = nodes_on(attach, wire);
    // Every packet is one hop of each node, and is for the pod's hardware.
    for node in &nodes {
        nft(
            &node.pod,
            &format!(
                "table inet witness {{
                    counter far {{}}
                    counter hops {{}}
                    chain input {{
                        type filter hook input priority 0;
                        meta l4proto tcp ip ttl 62 counter name far
                        meta l4proto tcp ip6 hoplimit 62 counter name far
                        meta l4proto tcp ip ttl != 62 counter name hops
                        meta l4proto tcp ip6 hoplimit != 62 counter name hops
                    }}
                }}
                table netdev witness {{
                    counter mac {{}}
                    chain ingress {{
                        type filter hook ingress device eth0 priority 0;
                        meta l4proto tcp ether daddr != {POD_MAC} counter name mac
                        meta l4proto tcp ether saddr != {GATEWAY_MAC} counter name mac
                        meta l4proto tcp @ll,96,16 != {} counter name mac
                    }}
                }}",
                // The type of the Ethernet header.
                if v6 { "0x86dd" } else { "0x0800" }
            ),
        );
    }
    let mut pair = connection(&nodes, v6);
    ask_until_taken(&nodes, &mut pair);
    const BYTES: usize = 64 << 20;
    assert_eq!(transfer(&mut pair, BYTES), BYTES);
    // The handshake's packets, the first data, and the end with the acknowledgements
    // that are then still on their way: not the 64 MiB.
    for node in &nodes {
        for direction in Direction::BOTH {
            let by_stack = node.count(direction, Outcome::Connection);
            let few = 60.max(node.count(direction, Outcome::Taken) / 20);
            assert!(by_stack < few, "{}", node.counters());
            assert_eq!(node.count(direction, Outcome::Length), 0);
        }
        assert!(seen(&node.pod, "far") > 50);
        assert_eq!(seen(&node.pod, "hops"), 0);
        let mac = run(
            &node.pod,
            "nft",
            &["list", "counter", "netdev", "witness", "mac"],
            "",
        );
        assert!(mac.contains("packets 0 "), "{mac}");
    }
    // The way back ends too, and the stack knows that it has.
    let (mut client, server) = pair;
    drop(server);
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    for node in &nodes {
        assert_eq!(seen(&node.here, "invalid"), 0);
        let entries = run(&node.here, "conntrack", &["-L", "-p", "tcp"], "");
        assert!(!entries.contains("ESTABLISHED"), "{entries}");
    }
}

/// The times are printed for comparison, not judged.
#[test]
fn there_is_room_for_the_ranges_of_five_thousand_peers() {
    let fast = FastPath::load().unwrap();
    let ranges: Vec<IpNet> = (0..5000)
        .flat_map(|peer| {
            let four = format!("10.{}.{}.0/24", peer / 256, peer % 256);
            [four, format!("fd00:200:0:{peer:x}::/64")]
        })
        .map(|range| range.parse().unwrap())
        .collect();
    let way = Way {
        interface: 2,
        mtu: None,
        via: Via::Neighbour(address(2, false)),
    };
    let started = Instant::now();
    for range in &ranges {
        fast.set_range(*range, &way).unwrap();
    }
    let all = started.elapsed();
    let started = Instant::now();
    fast.set_range(ranges[77], &way).unwrap();
    let one = started.elapsed();
    println!("{} ranges: {all:?}, one: {one:?}", ranges.len());
    for range in &ranges {
        fast.remove_range(*range).unwrap();
    }
}

#[test]
fn a_reset_ends_a_connection_that_took_the_fast_path() {
    let nodes = nodes(Attach::Routed);
    for v6 in [false, true] {
        let (client, mut server) = {
            let mut pair = connection(&nodes, v6);
            ask_until_taken(&nodes, &mut pair);
            pair
        };
        rustix::net::sockopt::set_socket_linger(&client, Some(Duration::ZERO)).unwrap();
        drop(client);
        let error = server.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }
}

#[rstest]
fn connections_outlive_the_program_and_take_it_again(
    #[values(Attach::Routed, Attach::Bridge)] attach: Attach,
) {
    let mut nodes = nodes(attach);
    let mut pairs = [false, true].map(|v6| connection(&nodes, v6));
    for pair in &mut pairs {
        ask_until_taken(&nodes, pair);
    }
    // The second node's agent dies, then the first one's.
    for index in [1, 0] {
        nodes[index].stop();
        pairs.iter_mut().for_each(ask);
    }
    for index in [1, 0] {
        nodes[index].start();
        pairs.iter_mut().for_each(ask);
    }
    for pair in &mut pairs {
        ask_until_taken(&nodes, pair);
    }
    let [mut four, _] = pairs;
    nodes[0].stop();
    assert_eq!(transfer(&mut four, 1 << 20), 1 << 20);
    nodes
        .iter()
        .for_each(|node| assert_eq!(seen(&node.here, "invalid"), 0));
}

/// The time after which conntrack forgets the one connection there is, in seconds.
fn left(node: &Node, protocol: &str, v6: bool) -> u64 {
    let text = conntrack(node, "-L", protocol, v6, &[]);
    let words: Vec<_> = text.split_whitespace().collect();
    words[2].parse().unwrap_or_else(|_| panic!("{text}"))
}

/// Lets the connection have been without a packet for a long time.
fn shorten(node: &Node, protocol: &str, v6: bool) {
    conntrack(node, "-U", protocol, v6, &["--timeout", "90"]);
    assert!(left(node, protocol, v6) <= 90);
}

fn conntrack(node: &Node, what: &str, protocol: &str, v6: bool, more: &[&str]) -> String {
    let family = if v6 { "ipv6" } else { "ipv4" };
    let arguments = [what, "-f", family, "-p", protocol];
    run(&node.here, "conntrack", &[&arguments, more].concat(), "")
}

#[rstest]
fn conntrack_keeps_a_connection_as_if_the_stack_saw_its_packets(#[values(false, true)] v6: bool) {
    let nodes = nodes(Attach::Routed);
    let mut pair = connection(&nodes, v6);
    ask_until_taken(&nodes, &mut pair);
    let by_stack =
        |node: &Node| Direction::BOTH.map(|direction| node.count(direction, Outcome::Connection));
    let before = nodes.each_ref().map(by_stack);
    for node in &nodes {
        shorten(node, "tcp", v6);
    }
    ask(&mut pair);
    assert_eq!(nodes.each_ref().map(by_stack), before);
    for node in &nodes {
        let whole = node.here.run(|| {
            let setting = "netfilter/nf_conntrack_tcp_timeout_established";
            Setting::new(setting).read().unwrap() as u64
        });
        assert!(whole.unwrap() - left(node, "tcp", v6) < 60);
    }
    // One that has ended one way is the stack's, which does not keep it for long.
    pair.0.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(pair.1.read(&mut [0]).unwrap(), 0);
    let taken = nodes.each_ref().map(Node::taken);
    pair.1.write_all(&[1; 1000]).unwrap();
    pair.0.read_exact(&mut [0; 1000]).unwrap();
    assert_eq!(nodes.each_ref().map(Node::taken), taken);
    for node in &nodes {
        assert!(left(node, "tcp", v6) <= 3600);
    }
}

#[test]
fn udp_takes_the_fast_path_once_conntrack_has_seen_a_conversation() {
    let nodes = nodes(Attach::Routed);
    std::thread::scope(|scope| {
        for v6 in [false, true] {
            let nodes = &nodes;
            scope.spawn(move || udp_until_taken(nodes, v6));
        }
    });
}

/// Conntrack takes UDP for a conversation when it has gone on for two seconds.
fn udp_until_taken(nodes: &[Node; 2], v6: bool) {
    let bind = |index: usize| {
        let at = pod_address(index as u8 + 1, v6);
        let socket = nodes[index]
            .pod
            .run(|| UdpSocket::bind((at, PORT)).unwrap());
        let socket = socket.unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        socket
    };
    let (client, server) = (bind(0), bind(1));
    client.connect((pod_address(2, v6), PORT)).unwrap();
    server.connect((pod_address(1, v6), PORT)).unwrap();
    let started = Instant::now();
    let before = nodes.each_ref().map(Node::taken);
    let mut answer = [0; 1000];
    let mut converse = || {
        client.send(&[1; 1000]).unwrap();
        assert_eq!(server.recv(&mut answer).unwrap(), 1000);
        server.send(&[2; 1000]).unwrap();
        assert_eq!(client.recv(&mut answer).unwrap(), 1000);
    };
    loop {
        converse();
        let now = nodes.each_ref().map(Node::taken);
        let mut both = before.as_flattened().iter().zip(now.as_flattened());
        if both.all(|(before, now)| before < now) {
            break;
        }
        assert!(started.elapsed() < DEADLINE, "{}", nodes[0].counters());
    }
    // It is kept as if the stack saw its packets.
    shorten(&nodes[0], "udp", v6);
    converse();
    assert!((110..=120).contains(&left(&nodes[0], "udp", v6)));
    // In fragments, longer than any device here sends at once.
    let headers = nodes[0].count(Direction::Outbound, Outcome::Header);
    client.send(&[1; 4000]).unwrap();
    let mut long = [0; 5000];
    assert_eq!(server.recv(&mut long).unwrap(), 4000);
    assert!(nodes[0].count(Direction::Outbound, Outcome::Header) >= headers + 3);
}

#[rstest]
fn what_is_too_long_is_answered_by_the_stack(
    #[values(
        Wire::Plain,
        Wire::Vxlan { over_v6: false },
        Wire::Vxlan { over_v6: true },
        Wire::Gpe { over_v6: false },
        Wire::Gpe { over_v6: true },
        Wire::Multicast
    )]
    wire: Wire,
    #[values(false, true)] v6: bool,
) {
    let nodes = nodes_on(Attach::Routed, wire);
    for node in &nodes {
        match wire {
            Wire::Plain => ip(&node.here, "link set eth0 mtu 1400"),
            // As a pod has it from before the tunnel.
            _ => node.limit(1500),
        }
    }
    nft(
        &nodes[0].pod,
        "table inet witness {
            counter long {}
            chain input {
                type filter hook input priority 0;
                icmp code 4 icmp type destination-unreachable counter name long
                icmpv6 type packet-too-big counter name long
            }
        }",
    );
    let mut pair = connection(&nodes, v6);
    ask_until_taken(&nodes, &mut pair);
    assert_eq!(transfer(&mut pair, 8 << 20), 8 << 20);
    assert!(nodes[0].count(Direction::Outbound, Outcome::Length) > 0);
    assert!(seen(&nodes[0].pod, "long") > 0);
}

#[rstest]
fn what_has_no_hop_left_is_answered_by_the_stack(#[values(false, true)] v6: bool) {
    let nodes = nodes(Attach::Routed);
    let mut pair = connection(&nodes, v6);
    ask_until_taken(&nodes, &mut pair);
    // As the first node's packets arrive at the second: with one hop.
    let before = nodes[1].count(Direction::Inbound, Outcome::HopLimit);
    let set = |client: &TcpStream, hops: u8| match v6 {
        false => rustix::net::sockopt::set_ip_ttl(client, hops.into()),
        true => rustix::net::sockopt::set_ipv6_unicast_hops(client, Some(hops)),
    };
    set(&pair.0, 2).unwrap();
    pair.0.write_all(&[1]).unwrap();
    let started = Instant::now();
    while nodes[1].count(Direction::Inbound, Outcome::HopLimit) == before {
        assert!(started.elapsed() < DEADLINE, "{}", nodes[1].counters());
        std::thread::yield_now();
    }
    // With one more it gets there.
    set(&pair.0, 3).unwrap();
    pair.1.read_exact(&mut [0]).unwrap();
}

#[rstest]
fn a_service_on_the_other_node_is_translated_both_ways(
    #[values(Attach::Routed, Attach::Bridge)] attach: Attach,
    #[values(false, true)] v6: bool,
) {
    let nodes = nodes(attach);
    let backend = pod_address(2, v6);
    let service: IpAddr = match v6 {
        false => [203, 0, 113, 1].into(),
        true => [0x2001, 0xdb8, 0x96, 0, 0, 0, 0, 1].into(),
    };
    let listener = listen(&nodes[1].pod, backend);
    let mut through = {
        let client = connect_from(&nodes[0].pod, pod_address(1, v6), service);
        (client, limit(listener.accept().unwrap().0))
    };
    for _ in 0..50 {
        ask(&mut through);
    }
    assert_eq!(nodes[0].taken(), [0, 0], "{}", nodes[0].counters());
    // The other node translates nothing.
    assert!(nodes[1].taken().into_iter().all(|taken| taken > 0));
    // The same ports without translation are another connection: conntrack knows
    // both, and gives one of them another port on the wire.
    let client = connect_from(&nodes[0].pod, pod_address(1, v6), backend);
    let mut direct = (client, limit(listener.accept().unwrap().0));
    for _ in 0..50 {
        ask(&mut direct);
        ask(&mut through);
    }
}

#[rstest]
fn a_source_that_is_not_the_pods_is_left_to_the_stack(
    #[values(Attach::Routed, Attach::Bridge)] attach: Attach,
) {
    let nodes = nodes(attach);
    let mut pair = connection(&nodes, false);
    ask_until_taken(&nodes, &mut pair);
    let (fast, _) = nodes[0].fast.as_ref().unwrap();
    // To the program the address is another interface's.
    let pod = Pod {
        interface: 1,
        mac: POD_MAC.parse().unwrap(),
        gateway: GATEWAY_MAC.parse().unwrap(),
    };
    fast.set_pod(pod_address(1, false), &pod).unwrap();
    let taken = nodes[0].taken();
    let sources = nodes[0].count(Direction::Outbound, Outcome::Source);
    pair.0.write_all(&[1]).unwrap();
    pair.1.read_exact(&mut [0]).unwrap();
    assert_eq!(nodes[0].taken()[0], taken[0]);
    assert!(nodes[0].count(Direction::Outbound, Outcome::Source) > sources);
}

#[rstest]
fn a_pod_that_is_forgotten_is_the_stacks(#[values(false, true)] v6: bool) {
    let nodes = nodes(Attach::Routed);
    let mut pair = connection(&nodes, v6);
    ask_until_taken(&nodes, &mut pair);
    let (fast, _) = nodes[0].fast.as_ref().unwrap();
    // The second time it is gone already.
    for _ in 0..2 {
        fast.remove_pod(pod_address(1, v6)).unwrap();
    }
    let before = nodes[0].taken();
    ask(&mut pair);
    assert_eq!(nodes[0].taken(), before);
}

#[rstest]
fn a_pod_that_is_replaced_is_reached_by_the_stack_until_it_is_known(
    #[values(Attach::Routed, Attach::Bridge)] attach: Attach,
) {
    let mut nodes = nodes(attach);
    let mut pair = connection(&nodes, false);
    ask_until_taken(&nodes, &mut pair);
    drop(pair);
    ip(&nodes[1].here, "link delete pwpod");
    nodes[1].pod = NetworkNamespace::create().unwrap();
    nodes[1].add_pod();
    // The program still knows the interface that is gone.
    let taken = nodes[1].taken();
    let mut pair = connection(&nodes, false);
    (0..20).for_each(|_| ask(&mut pair));
    assert_eq!(nodes[1].taken(), taken, "{}", nodes[1].counters());
    assert!(nodes[1].count(Direction::Inbound, Outcome::Length) > 0);
    nodes[1].start();
    ask_until_taken(&nodes, &mut pair);
}

#[rstest]
fn a_peers_range_that_is_forgotten_is_the_stacks(
    #[values(
        Wire::Plain,
        Wire::Vxlan { over_v6: false },
        Wire::Vxlan { over_v6: true },
        Wire::Gpe { over_v6: false },
        Wire::Gpe { over_v6: true },
        Wire::Multicast
    )]
    wire: Wire,
    #[values(false, true)] v6: bool,
) {
    let nodes = nodes_on(Attach::Routed, wire);
    let mut pair = connection(&nodes, v6);
    ask_until_taken(&nodes, &mut pair);
    let (fast, _) = nodes[0].fast.as_ref().unwrap();
    fast.remove_range(range(2, v6)).unwrap();
    let taken = nodes[0].taken();
    ask(&mut pair);
    assert_eq!(nodes[0].taken(), taken);
    assert!(nodes[0].count(Direction::Outbound, Outcome::Destination) > 0);
    assert!(nodes[0].count(Direction::Inbound, Outcome::Source) > 0);
    // Known again, and to be forgotten once more, which is no error.
    fast.set_range(range(2, v6), &nodes[0].way(v6)).unwrap();
    ask_until_taken(&nodes, &mut pair);
    fast.remove_range(range(2, v6)).unwrap();
    fast.remove_range(range(2, v6)).unwrap();
}

#[rstest]
fn what_is_longer_than_the_route_takes_is_the_stacks(#[values(false, true)] v6: bool) {
    let nodes = nodes(Attach::Routed);
    let mut pair = connection(&nodes, v6);
    ask_until_taken(&nodes, &mut pair);
    let (fast, _) = nodes[0].fast.as_ref().unwrap();
    // IP's and TCP's headers with timestamps, and so many bytes.
    let headers = if v6 { 40 + 32 } else { 20 + 32 };
    let mtu = Some(headers + 100);
    let way = Way {
        mtu,
        ..nodes[0].way(v6)
    };
    fast.set_range(range(2, v6), &way).unwrap();
    for (length, too_long) in [(100, 0), (101, 1)] {
        let taken = nodes[0].taken()[0];
        pair.0.write_all(&vec![1; length]).unwrap();
        pair.1.read_exact(&mut vec![0; length]).unwrap();
        let by_stack = nodes[0].count(Direction::Outbound, Outcome::Length);
        assert_eq!(by_stack, too_long, "{}", nodes[0].counters());
        assert_eq!(nodes[0].taken()[0], taken + 1 - too_long);
    }
    // Many segments at once count each for itself.
    assert_eq!(transfer(&mut pair, 1 << 20), 1 << 20);
    assert!(nodes[0].count(Direction::Outbound, Outcome::Length) > 10);
}

#[rstest]
fn a_source_that_came_past_its_tunnel_is_left_to_the_stack(
    #[values(
        Wire::Vxlan { over_v6: false },
        Wire::Vxlan { over_v6: true },
        Wire::Gpe { over_v6: false },
        Wire::Gpe { over_v6: true },
        Wire::Multicast
    )]
    wire: Wire,
    #[values(false, true)] v6: bool,
) {
    let mut nodes = nodes_on(Attach::Routed, wire);
    let mut pair = connection(&nodes, v6);
    ask_until_taken(&nodes, &mut pair);
    let (fast, _) = nodes[0].fast.as_ref().unwrap();
    let underlay = nodes[0].index("eth0");
    let attach = || fast.attach(Place::Ethernet, underlay).unwrap();
    let _also = nodes[0].here.run(attach).unwrap();
    // What the other node's pods send comes as it is.
    nodes[1].stop();
    let (to, via) = (range(1, v6), address(1, v6));
    ip(&nodes[1].here, &format!("route replace {to} via {via}"));
    let taken = nodes[0].taken()[1];
    let sources = nodes[0].count(Direction::Inbound, Outcome::Source);
    ask(&mut pair);
    assert_eq!(nodes[0].taken()[1], taken);
    assert!(nodes[0].count(Direction::Inbound, Outcome::Source) > sources);
}

#[rstest]
fn a_tunnel_that_is_made_anew_is_the_stacks_until_it_is_known(
    #[values(
        Wire::Vxlan { over_v6: false },
        Wire::Vxlan { over_v6: true },
        Wire::Gpe { over_v6: false },
        Wire::Gpe { over_v6: true },
        Wire::Multicast
    )]
    wire: Wire,
) {
    let mut nodes = nodes_on(Attach::Routed, wire);
    let mut pairs = [false, true].map(|v6| connection(&nodes, v6));
    for pair in &mut pairs {
        ask_until_taken(&nodes, pair);
    }
    ip(&nodes[0].here, "link delete tunnel");
    if wire == Wire::Multicast {
        ip(&nodes[0].here, "link delete port");
    }
    nodes[0].connect();
    // The program still knows the device that is gone.
    let taken = nodes[0].taken();
    pairs.iter_mut().for_each(ask);
    assert_eq!(nodes[0].taken(), taken);
    assert!(nodes[0].count(Direction::Outbound, Outcome::Length) >= 2);
    nodes[0].start();
    for pair in &mut pairs {
        ask_until_taken(&nodes, pair);
    }
}

#[rstest]
fn a_tunnels_header_is_as_the_stack_has_it(
    #[values(
        Wire::Vxlan { over_v6: false },
        Wire::Vxlan { over_v6: true },
        Wire::Gpe { over_v6: false },
        Wire::Gpe { over_v6: true },
        Wire::Multicast
    )]
    wire: Wire,
    #[values(false, true)] v6: bool,
) {
    let mut nodes = nodes_on(Attach::Routed, wire);
    for node in &nodes {
        let congestion = Setting::new("ipv4/tcp_ecn");
        node.pod.run(|| congestion.write(1).unwrap()).unwrap();
    }
    // Traffic class, hop limit, fragmentation, checksum, identifier; of those that
    // carry data there is the mark of congestion notification from the inner header.
    nft(
        &nodes[1].here,
        "table netdev witness {
            counter marked {}
            counter unmarked {}
            counter other {}
            chain known {
                ip ecn ect0 counter name marked accept
                ip ecn not-ect counter name unmarked accept
                ip6 ecn ect0 counter name marked accept
                ip6 ecn not-ect counter name unmarked accept
                counter name other
            }
            chain outer {
                udp dport 51820 ip dscp cs0 ip ttl 64 ip frag-off & 0x4000 == 0 \
                    udp checksum != 0 @th,64,32 0x04000000 goto known
                udp dport 51820 ip6 dscp cs0 ip6 hoplimit 64 ip6 flowlabel 0 \
                    udp checksum != 0 @th,64,32 0x04000000 goto known
                ip dscp cs0 ip ttl 64 ip frag-off & 0x4000 == 0 udp checksum 0 @th,96,24 1 \
                    goto known
                ip6 dscp cs0 ip6 hoplimit 64 ip6 flowlabel 0 udp checksum != 0 @th,96,24 1 \
                    goto known
                counter name other
            }
            chain ingress {
                type filter hook ingress device eth0 priority 0;
                # What a device that is new tells its neighbours.
                ip daddr 239.112.0.1 accept
                udp dport { 8472, 4789, 4790, 51820 } goto outer
            }
        }",
    );
    nft(
        &nodes[1].pod,
        "table inet witness {
            counter met {}
            chain input {
                type filter hook input priority 0;
                ip ecn ce counter name met
                ip6 ecn ce counter name met
            }
        }",
    );
    let counted = |namespace: &NetworkNamespace, counter: &str| {
        let text = ["-j", "list", "counter", "netdev", "witness", counter];
        let text = run(namespace, "nft", &text, "");
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        json["nftables"][1]["counter"]["packets"].as_u64().unwrap()
    };
    let mut pair = connection(&nodes, v6);
    for fast in [false, true] {
        match fast {
            false => nodes[0].stop(),
            true => {
                nodes[0].start();
                ask_until_taken(&nodes, &mut pair);
            }
        }
        let marked = counted(&nodes[1].here, "marked");
        ask(&mut pair);
        let text = run(&nodes[1].here, "nft", &["list", "ruleset"], "");
        assert!(counted(&nodes[1].here, "marked") > marked, "{text}");
        assert_eq!(counted(&nodes[1].here, "other"), 0, "{text}");
    }
    // Congestion that the tunnel met is told to the pod.
    let met = seen(&nodes[1].pod, "met");
    nft(
        &nodes[0].here,
        "table inet congestion {
            chain output {
                type filter hook output priority 0;
                udp dport { 8472, 4789, 4790, 51820 } ip ecn ect0 ip ecn set ce
                udp dport { 8472, 4789, 4790, 51820 } ip6 ecn ect0 ip6 ecn set ce
            }
        }",
    );
    ask(&mut pair);
    assert!(seen(&nodes[1].pod, "met") > met);
    assert!(nodes[1].taken()[1] > 0);
}

/// Kernels of distributions: conntrack is a module, which describes its types itself.
#[test]
fn a_kernel_whose_conntrack_is_a_module() {
    let report = vm::Guest::new()
        .program("conntrack")
        .program("bridge")
        .run_cases_in_machine("guest::")
        .unwrap_or_else(|error| panic!("{error}"));
    print!("{report}");
}

mod guest {
    use super::*;

    #[test]
    #[ignore = "run by a_kernel_whose_conntrack_is_a_module"]
    fn it_can_be_had() {
        assert!(std::path::Path::new("/sys/kernel/btf/nf_conntrack").exists());
        fast_path::probe().unwrap();
    }

    #[rstest]
    #[case(Attach::Routed, Wire::Plain, false)]
    #[case(Attach::Bridge, Wire::Vxlan { over_v6: true }, true)]
    #[case(Attach::Routed, Wire::Gpe { over_v6: false }, true)]
    #[ignore = "run by a_kernel_whose_conntrack_is_a_module"]
    fn tcp_takes_it(#[case] attach: Attach, #[case] wire: Wire, #[case] v6: bool) {
        tcp_takes_the_fast_path_from_handshake_to_close(attach, wire, v6);
    }

    #[test]
    #[ignore = "run by a_kernel_whose_conntrack_is_a_module"]
    fn udp_takes_it() {
        udp_takes_the_fast_path_once_conntrack_has_seen_a_conversation();
    }

    #[test]
    #[ignore = "run by a_kernel_whose_conntrack_is_a_module"]
    fn connections_are_kept() {
        conntrack_keeps_a_connection_as_if_the_stack_saw_its_packets(false);
    }

    #[test]
    #[ignore = "run by a_kernel_whose_conntrack_is_a_module"]
    fn services_are_translated() {
        a_service_on_the_other_node_is_translated_both_ways(Attach::Routed, false);
    }
}

/// As of a node that has just booted, where nobody has asked for conntrack yet.
#[test]
fn a_kernel_that_has_not_loaded_conntrack() {
    let report = vm::Guest::new()
        .without_module("nf_conntrack")
        .run_cases_in_machine("unloaded::")
        .unwrap_or_else(|error| panic!("{error}"));
    print!("{report}");
}

mod unloaded {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    #[ignore = "run by a_kernel_that_has_not_loaded_conntrack"]
    fn the_kernel_is_made_to_look_for_it_and_what_it_does_not_find_is_named() {
        // In the place of modprobe.
        let (program, asked) = ("/run/modprobe", "/run/asked");
        std::fs::write(
            program,
            format!("#!/usr/bin/bash\necho \"$@\" >> {asked}\n"),
        )
        .unwrap();
        std::fs::set_permissions(program, PermissionsExt::from_mode(0o755)).unwrap();
        std::fs::write("/proc/sys/kernel/modprobe", program).unwrap();
        let error = fast_path::probe().unwrap_err().to_string();
        assert!(error.contains("nf_conntrack"), "{error}");
        // NFNL_SUBSYS_CTNETLINK of linux/netfilter/nfnetlink.h
        let asked = std::fs::read_to_string(asked).unwrap_or_default();
        assert!(asked.contains("nfnetlink-subsys-1"), "{asked}");
    }
}

#[test]
fn a_kernel_with_wireguard() {
    let report = vm::Guest::new()
        .needs(vm::Feature::WireGuard)
        .program("conntrack")
        .run_cases("wireguard::")
        .unwrap_or_else(|error| panic!("{error}"));
    print!("{report}");
}

mod wireguard {
    use super::*;

    const OVER_V4: Wire = Wire::Wireguard { over_v6: false };
    const OVER_V6: Wire = Wire::Wireguard { over_v6: true };

    #[rstest]
    #[case(Attach::Routed, OVER_V4, true)]
    #[case(Attach::Bridge, OVER_V6, false)]
    #[ignore = "run by a_kernel_with_wireguard"]
    fn tcp_takes_it(#[case] attach: Attach, #[case] wire: Wire, #[case] v6: bool) {
        tcp_takes_the_fast_path_from_handshake_to_close(attach, wire, v6);
    }

    #[rstest]
    #[case(OVER_V4, true)]
    #[case(OVER_V6, false)]
    #[ignore = "run by a_kernel_with_wireguard"]
    fn a_range_is_forgotten(#[case] wire: Wire, #[case] v6: bool) {
        a_peers_range_that_is_forgotten_is_the_stacks(wire, v6);
    }

    #[rstest]
    #[case(OVER_V4, false)]
    #[case(OVER_V6, true)]
    #[ignore = "run by a_kernel_with_wireguard"]
    fn nothing_in_clear_is_taken(#[case] wire: Wire, #[case] v6: bool) {
        a_source_that_came_past_its_tunnel_is_left_to_the_stack(wire, v6);
    }

    #[test]
    #[ignore = "run by a_kernel_with_wireguard"]
    fn a_device_is_made_anew() {
        a_tunnel_that_is_made_anew_is_the_stacks_until_it_is_known(OVER_V4);
    }

    #[rstest]
    #[case(OVER_V4, false)]
    #[case(OVER_V4, true)]
    #[case(OVER_V6, false)]
    #[case(OVER_V6, true)]
    #[ignore = "run by a_kernel_with_wireguard"]
    fn headers_are_as_the_stack_has_them(#[case] wire: Wire, #[case] v6: bool) {
        a_tunnels_header_is_as_the_stack_has_it(wire, v6);
    }
}
