//! What the rows of the matrix leave out, for one proxy after the other: ports and
//! addresses nobody has, endpoints on the node's own network, source ranges where
//! callers are treated differently, packets that fit no connection.

use std::io::{ErrorKind, Result as IoResult};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use crate::rows::plan::{PLANS, Plan, facts};
use crate::rows::{ask, serve};
use crate::world::{Attach, Space, World, service, slice};
use podwire_services::{Family, Protocol, Proxy, ProxySettings, Service, TrafficPolicy};
use socket2::{Domain, Socket, Type};

const PATIENCE: Duration = Duration::from_secs(20);
const SILENCE: Duration = Duration::from_millis(400);

/// Addresses of a family's Services.
struct Addresses {
    plan: &'static Plan,
    web: &'static str,
    nobody: &'static str,
    host: [&'static str; 2],
    filtered: [&'static str; 2],
}

const ADDRESSES: [Addresses; 2] = [
    Addresses {
        plan: &PLANS[0],
        web: "10.96.0.10",
        nobody: "10.96.0.99",
        host: ["10.96.0.20", "198.51.100.2"],
        filtered: ["10.96.0.30", "198.51.100.3"],
    },
    Addresses {
        plan: &PLANS[1],
        web: "fd00:96::10",
        nobody: "fd00:96::99",
        host: ["fd00:96::20", "2001:db8::2"],
        filtered: ["fd00:96::30", "2001:db8::3"],
    },
];

const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

/// Two endpoints and a caller.
struct Stage {
    world: World,
    proxy: Proxy,
}

fn balanced(name: &str, at: impl Fn(&Addresses) -> [&'static str; 2], node_port: i32) -> Service {
    let cluster = ADDRESSES.each_ref().map(|a| at(a)[0]);
    Service {
        load_balancer_ips: ADDRESSES.iter().map(|a| at(a)[1].to_owned()).collect(),
        ..service(name, &cluster, 80, Some(node_port))
    }
}

impl Stage {
    fn new(settings: ProxySettings) -> Self {
        let world = World::with(Attach::Routed, 3);
        world.node.set("net/ipv4/icmp_ratelimit", "0");
        world.node.set("net/ipv6/icmp/ratelimit", "0");
        for a in &ADDRESSES {
            let v6 = match a.plan.family {
                Family::V4 => "",
                Family::V6 => "-6 ",
            };
            for to in [[a.web, a.nobody], a.host, a.filtered].concat() {
                let node = a.plan.node;
                world.outside.ip(&format!("{v6}route add {to} via {node}"));
            }
            serve(&world.pods[0], "pod0", &(a.plan.pod)(0));
            serve(&world.pods[1], "pod1", &(a.plan.pod)(1));
            serve(&world.node, "host", a.plan.node);
        }
        let mut proxy = world
            .node
            .namespace
            .run(|| Proxy::start_as(&settings, facts()))
            .expect("entered")
            .expect("everything it needs is here");
        proxy.service_changed(service(
            "web",
            &ADDRESSES.each_ref().map(|a| a.web),
            80,
            None,
        ));
        proxy.service_changed(balanced("host", |a| a.host, 30081));
        proxy.service_changed(Service {
            external_policy: TrafficPolicy::Local,
            source_ranges: ADDRESSES
                .iter()
                .map(|a| format!("{}/{}", (a.plan.pod)(2), a.length()))
                .collect(),
            ..balanced("filtered", |a| a.filtered, 30082)
        });
        for (a, number) in ADDRESSES.iter().zip(["4", "6"]) {
            let pods = [(a.plan.pod)(0), (a.plan.pod)(1)];
            let mut filtered = slice(
                "filtered",
                &format!("filtered-{number}"),
                &[&pods[0], &pods[1]],
                8080,
            );
            // The second endpoint counts as one of another node.
            filtered.endpoints[1].node = Some("node-2".to_owned());
            proxy.endpoint_slice_changed(&filtered);
            let web = format!("web-{number}");
            proxy.endpoint_slice_changed(&slice("web", &web, &[&pods[0]], 8080));
            let host = format!("host-{number}");
            proxy.endpoint_slice_changed(&slice("host", &host, &[a.plan.node], 8080));
        }
        proxy.sync().expect("the kernel takes it");
        Self { world, proxy }
    }
}

fn callers(world: &World) -> [(&'static str, &Space); 3] {
    [
        ("pod", &world.pods[2]),
        ("node", &world.node),
        ("outside", &world.outside),
    ]
}

impl Addresses {
    const fn length(&self) -> u8 {
        match self.plan.family {
            Family::V4 => 32,
            Family::V6 => 128,
        }
    }
}

fn at(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse().expect("a literal"), port)
}

fn asked(from: &Space, protocol: Protocol, to: SocketAddr, patience: Duration) -> IoResult<String> {
    from.namespace
        .run(|| ask(protocol, to, patience))
        .expect("entered")
        .map(|(name, _)| name)
}

/// Walks through all of it, both families and protocols at the same time.
pub(crate) fn check(settings: ProxySettings) {
    let stage = Stage::new(settings);
    let world = &stage.world;
    std::thread::scope(|scope| {
        for a in &ADDRESSES {
            for protocol in PROTOCOLS {
                scope.spawn(move || {
                    all_are_served_refused_or_left_waiting(world, a, protocol);
                    sources_are_looked_at_before_policies(world, a, protocol);
                });
            }
            scope.spawn(move || packets_of_no_connection_are_dropped(world, a.plan));
        }
    });
    drop(stage.proxy);
}

fn all_are_served_refused_or_left_waiting(world: &World, a: &Addresses, protocol: Protocol) {
    for (who, from) in callers(world) {
        let what = |to: SocketAddr| format!("{who} to {to} by {protocol:?}");
        let to = at(a.web, 81);
        let error = asked(from, protocol, to, PATIENCE).expect_err(&what(to));
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{}", what(to));
        for to in [at(a.host[0], 80), at(a.host[1], 80), at(a.plan.node, 30081)] {
            let name = asked(from, protocol, to, PATIENCE)
                .unwrap_or_else(|error| panic!("{}: {error}", what(to)));
            assert_eq!(name, "host", "{}", what(to));
        }
        let to = at(a.nobody, 80);
        let error = asked(from, protocol, to, SILENCE).expect_err(&what(to));
        assert_ne!(error.kind(), ErrorKind::ConnectionRefused, "{}", what(to));
    }
}

/// The one who may is a pod and thus reaches both endpoints; from outside nobody
/// gets in by that address, and by the node port to the local endpoint.
fn sources_are_looked_at_before_policies(world: &World, a: &Addresses, protocol: Protocol) {
    let [(_, pod), _, (_, outside)] = callers(world);
    let balancer = at(a.filtered[1], 80);
    let mut names: Vec<String> = (0..40)
        .map(|_| asked(pod, protocol, balancer, PATIENCE).expect("it may"))
        .collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names, ["pod0", "pod1"], "{balancer} by {protocol:?}");
    let others = [("outside", outside), ("pod0", &world.pods[0])];
    for (who, from) in others {
        let error = asked(from, protocol, balancer, SILENCE).expect_err("it may not");
        assert_ne!(error.kind(), ErrorKind::ConnectionRefused, "{who}");
    }
    let node_port = at(a.plan.node, 30082);
    for _ in 0..5 {
        let name = asked(outside, protocol, node_port, PATIENCE).expect("no filter there");
        assert_eq!(name, "pod0", "{node_port} by {protocol:?}");
    }
}

const SYN: u8 = 2;
const RST: u8 = 4;

/// A segment that no TCP sends, then one that opens a connection: only the second
/// is forwarded.
fn packets_of_no_connection_are_dropped(world: &World, plan: &Plan) {
    let raw = |space: &Space, own: String, peer: String| {
        let (own, peer): (IpAddr, IpAddr) = (ip(&own), ip(&peer));
        space
            .namespace
            .run(|| {
                let domain = Domain::for_address(SocketAddr::new(own, 0));
                let socket = Socket::new(domain, Type::RAW, Some(socket2::Protocol::TCP))?;
                socket.bind(&SocketAddr::new(own, 0).into())?;
                socket.connect(&SocketAddr::new(peer, 0).into())?;
                socket.set_read_timeout(Some(PATIENCE))?;
                IoResult::Ok(UdpSocket::from(socket))
            })
            .expect("entered")
            .expect("tests need root")
    };
    let (here, there) = ((plan.pod)(2), (plan.pod)(0));
    let sender = raw(&world.pods[2], here.clone(), there.clone());
    let receiver = raw(&world.pods[0], there.clone(), here.clone());
    for flags in [SYN | RST, SYN] {
        let segment = segment(ip(&here), ip(&there), flags);
        sender.send(&segment).expect("a route");
    }
    let mut bytes = [0; 2048];
    loop {
        let count = receiver.recv(&mut bytes).expect("the second comes");
        let start = match plan.family {
            Family::V4 => usize::from(bytes[0] & 0xf) * 4,
            Family::V6 => 0,
        };
        let tcp = &bytes[start..count];
        if tcp[2..4] == 7777u16.to_be_bytes() {
            assert_eq!(tcp[13], SYN, "the invalid one was forwarded");
            return;
        }
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("a literal")
}

/// A TCP header from port 7776 to port 7777 with its checksum.
fn segment(from: IpAddr, to: IpAddr, flags: u8) -> Vec<u8> {
    let mut header = Vec::new();
    header.extend(7776u16.to_be_bytes());
    header.extend(7777u16.to_be_bytes());
    header.extend([
        0,
        0,
        0,
        1,
        0,
        0,
        0,
        0,
        5 << 4,
        flags,
        0xff,
        0xff,
        0,
        0,
        0,
        0,
    ]);
    let mut summed = Vec::new();
    for address in [from, to] {
        match address {
            IpAddr::V4(v4) => summed.extend(v4.octets()),
            IpAddr::V6(v6) => summed.extend(v6.octets()),
        }
    }
    summed.extend((header.len() as u32).to_be_bytes());
    summed.extend([0, 0, 0, 6]);
    summed.extend(&header);
    let mut sum: u32 = summed
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    header[16..18].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    header
}
