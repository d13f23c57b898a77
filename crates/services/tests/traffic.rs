//! Real packets through the rules: pods, their node and a host outside, both
//! attachments, both families, TCP and UDP.

mod world;

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use podwire_services::{Proxy, ServiceName, TrafficPolicy};
use rstest::rstest;
use world::{
    Attach, BRIDGE4, BRIDGE6, NODE4, NODE6, OUTSIDE4, OUTSIDE6, Space, World, pod4, pod6, service,
    slice,
};

const PATIENCE: Duration = Duration::from_secs(3);

/// Answers each connection and datagram at port 8080 with its own name and the
/// address it was asked from, until the test's process ends.
fn serve(space: &Space, name: &str) {
    let any: SocketAddr = (Ipv6Addr::UNSPECIFIED, 8080).into();
    let (tcp, udp) = space
        .namespace
        .run(|| (TcpListener::bind(any), UdpSocket::bind(any)))
        .expect("entered");
    let (tcp, udp) = (tcp.expect("free port"), udp.expect("free port"));
    let answer = |name: &str, peer: SocketAddr| {
        let ip = peer.ip().to_canonical();
        format!("{name} {ip}")
    };
    let tcp_name = name.to_owned();
    std::thread::spawn(move || {
        for stream in tcp.incoming() {
            let mut stream = stream?;
            let peer = stream.peer_addr()?;
            // The client may have gone already; the next one is served all the same.
            let _ = stream.write_all(answer(&tcp_name, peer).as_bytes());
        }
        io::Result::Ok(())
    });
    let udp_name = name.to_owned();
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        loop {
            let (_, peer) = udp.recv_from(&mut buffer)?;
            let _ = udp.send_to(answer(&udp_name, peer).as_bytes(), peer);
        }
        #[allow(unreachable_code, reason = "gives the closure its type")]
        io::Result::Ok(())
    });
}

/// Who answered, and from which address it was asked.
type Answer = io::Result<(String, IpAddr)>;

fn parse(text: &str) -> Answer {
    let (name, peer) = text
        .split_once(' ')
        .ok_or_else(|| io::Error::other(format!("answer {text:?}")))?;
    Ok((name.to_owned(), peer.parse().map_err(io::Error::other)?))
}

fn ask_tcp(from: &Space, to: SocketAddr) -> Answer {
    from.namespace
        .run(|| {
            let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            parse(&text)
        })
        .expect("entered")
}

fn ask_udp(from: &Space, to: SocketAddr) -> Answer {
    from.namespace
        .run(|| {
            let any: IpAddr = match to {
                SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
            };
            let socket = UdpSocket::bind((any, 0))?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.connect(to)?;
            socket.send(b"?")?;
            let mut buffer = [0; 64];
            let length = socket.recv(&mut buffer)?;
            parse(&String::from_utf8_lossy(&buffer[..length]))
        })
        .expect("entered")
}

/// A world whose first two pods serve, with the Service `web` in front of them.
struct Stage {
    world: World,
    proxy: Proxy,
}

const CLUSTER4: &str = "10.96.0.10";
const CLUSTER6: &str = "fd00:96::10";

impl Stage {
    fn new(attach: Attach) -> Self {
        let world = World::with(attach, 3);
        for n in 0..2 {
            serve(&world.pods[n], &format!("pod{n}"));
        }
        let proxy = started(&world);
        let mut stage = Self { world, proxy };
        stage.proxy.service_changed(web());
        stage.endpoints(&[0, 1]);
        stage
    }

    /// A new run of the proxy takes over; it knows of no objects yet.
    fn restart(&mut self) {
        self.proxy = started(&self.world);
    }

    /// Makes these pods the endpoints of `web`.
    fn endpoints(&mut self, pods: &[usize]) {
        let v4: Vec<String> = pods.iter().map(|n| pod4(*n)).collect();
        let v6: Vec<String> = pods.iter().map(|n| pod6(*n)).collect();
        let refs = |list: &[String]| -> Vec<String> { list.to_vec() };
        for (name, list) in [("web-4", refs(&v4)), ("web-6", refs(&v6))] {
            let list: Vec<&str> = list.iter().map(String::as_str).collect();
            self.proxy
                .endpoint_slice_changed(&slice("web", name, &list, 8080));
        }
        self.proxy.sync().expect("the kernel takes it");
    }
}

/// The proxy, on the node.
fn started(world: &World) -> Proxy {
    let facts = world.facts();
    let proxy = world.node.namespace.run(|| Proxy::start(facts));
    proxy.expect("entered").expect("root")
}

fn web() -> podwire_services::Service {
    service("web", &[CLUSTER4, CLUSTER6], 80, Some(30080))
}

fn at(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse().expect("a literal"), port)
}

fn ip(address: &str) -> IpAddr {
    address.parse().expect("an address")
}

/// The same question in both families: (cluster address, node's address, pod's address by number).
type Side = (&'static str, &'static str, fn(usize) -> String);
const SIDES: [Side; 2] = [(CLUSTER4, NODE4, pod4), (CLUSTER6, NODE6, pod6)];

#[rstest]
fn pod_reaches_both_backends_with_its_own_address(
    #[values(Attach::Routed, Attach::Bridge)] attach: Attach,
) {
    let stage = Stage::new(attach);
    for (cluster, _, pod) in SIDES {
        let mut shares: BTreeMap<String, usize> = BTreeMap::new();
        for _ in 0..200 {
            let (who, source) = ask_tcp(&stage.world.pods[2], at(cluster, 80)).expect("an answer");
            assert_eq!(source, ip(&pod(2)), "a pod's source is kept");
            *shares.entry(who).or_default() += 1;
        }
        // The odds of a fair draw falling outside are below one in a million.
        assert!(
            shares.len() == 2 && shares.values().all(|n| (65..=135).contains(n)),
            "{shares:?}"
        );
        let (_, source) = ask_udp(&stage.world.pods[2], at(cluster, 80)).expect("an answer");
        assert_eq!(source, ip(&pod(2)));
    }
}

#[rstest]
fn an_endpoint_reaches_itself_through_its_service(
    #[values(Attach::Routed, Attach::Bridge)] attach: Attach,
) {
    let mut stage = Stage::new(attach);
    stage.endpoints(&[0]);
    for (cluster, _, pod) in SIDES {
        for ask in [ask_tcp, ask_udp] {
            let (who, source) = ask(&stage.world.pods[0], at(cluster, 80)).expect("an answer");
            assert_eq!(who, "pod0");
            assert_ne!(
                source,
                ip(&pod(0)),
                "masqueraded, or the answer would be lost"
            );
        }
    }
}

#[rstest]
fn node_reaches_cluster_address_and_node_port(
    #[values(Attach::Routed, Attach::Bridge)] attach: Attach,
) {
    let stage = Stage::new(attach);
    for (cluster, node, _) in SIDES {
        for ask in [ask_tcp, ask_udp] {
            for to in [at(cluster, 80), at(node, 30080)] {
                let (who, _) =
                    ask(&stage.world.node, to).unwrap_or_else(|error| panic!("{to}: {error}"));
                assert!(who.starts_with("pod"), "{who}");
            }
        }
    }
}

#[rstest]
fn outside_reaches_node_port_under_the_nodes_address(
    #[values(Attach::Routed, Attach::Bridge)] attach: Attach,
) {
    let stage = Stage::new(attach);
    let mine = [NODE4, NODE6, BRIDGE4, BRIDGE6, "169.254.1.1"].map(ip);
    for (_, node, _) in SIDES {
        for ask in [ask_tcp, ask_udp] {
            let (_, source) = ask(&stage.world.outside, at(node, 30080)).expect("an answer");
            assert!(mine.contains(&source), "{source} is not the node's");
        }
    }
}

#[rstest]
fn pod_reaches_node_port_under_the_nodes_address(
    #[values(Attach::Routed, Attach::Bridge)] attach: Attach,
) {
    let stage = Stage::new(attach);
    for (_, node, pod) in SIDES {
        let (_, source) = ask_tcp(&stage.world.pods[2], at(node, 30080)).expect("an answer");
        assert_ne!(source, ip(&pod(2)));
    }
}

#[rstest]
fn external_policy_local_keeps_the_source(
    #[values(Attach::Routed, Attach::Bridge)] attach: Attach,
) {
    let mut stage = Stage::new(attach);
    let mut local = web();
    local.external_policy = TrafficPolicy::Local;
    stage.proxy.service_changed(local);
    stage.proxy.sync().expect("the kernel takes it");
    for ((_, node, pod), outside) in SIDES.into_iter().zip([OUTSIDE4, OUTSIDE6]) {
        let (_, source) = ask_tcp(&stage.world.outside, at(node, 30080)).expect("an answer");
        assert_eq!(source, ip(outside));
        let (_, source) = ask_tcp(&stage.world.pods[2], at(node, 30080)).expect("an answer");
        assert_eq!(
            source,
            ip(&pod(2)),
            "a pod's own node is asked as if directly"
        );
        ask_tcp(&stage.world.node, at(node, 30080)).expect("an answer");
    }
}

/// The ICMP errors "destination unreachable" that this namespace has received, of
/// both families.
fn unreachables(space: &Space) -> u64 {
    let listed = space.command(
        "nstat",
        &["-asz", "IcmpInDestUnreachs", "Icmp6InDestUnreachs"],
    );
    let counts: Vec<u64> = listed
        .lines()
        .filter(|line| line.starts_with("Icmp"))
        .map(|line| {
            let count = line.split_whitespace().nth(1).expect("name, count, rate");
            count.parse().expect("a count")
        })
        .collect();
    assert_eq!(counts.len(), 2, "{listed}");
    counts.iter().sum()
}

/// A kernel sends few ICMP errors to one address, about one a second: a caller that
/// depended on one would wait. A reset always comes.
#[rstest]
fn a_service_without_endpoints_resets_tcp_and_sends_an_error_for_udp(
    #[values(Attach::Routed, Attach::Bridge)] attach: Attach,
) {
    let mut stage = Stage::new(attach);
    stage.endpoints(&[]);
    let world = &stage.world;
    for (cluster, node, _) in SIDES {
        for (from, to) in [
            (&world.pods[2], at(cluster, 80)),
            (&world.pods[2], at(node, 30080)),
            (&world.node, at(cluster, 80)),
            (&world.node, at(node, 30080)),
            (&world.outside, at(node, 30080)),
        ] {
            let before = unreachables(from);
            for _ in 0..3 {
                let error = ask_tcp(from, to).expect_err("nobody is there");
                assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{to}: {error}");
            }
            assert_eq!(unreachables(from), before, "{to} was not refused by resets");
        }
        let pod = &world.pods[2];
        let before = unreachables(pod);
        let error = ask_udp(pod, at(cluster, 80)).expect_err("nobody is there");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
        assert_eq!(unreachables(pod), before + 1, "refused by an ICMP error");
    }
    stage.endpoints(&[1]);
    for (cluster, _, _) in SIDES {
        ask_tcp(&stage.world.pods[2], at(cluster, 80)).expect("an answer");
        ask_udp(&stage.world.pods[2], at(cluster, 80)).expect("an answer");
    }
}

#[test]
fn unknown_port_is_refused_and_unallocated_address_dropped() {
    let stage = Stage::new(Attach::Routed);
    for (cluster, _, _) in SIDES {
        let error = ask_tcp(&stage.world.pods[2], at(cluster, 81)).expect_err("no such port");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
    }
    for free in ["10.96.7.7", "fd00:96::77"] {
        let error = ask_tcp(&stage.world.pods[2], at(free, 80)).expect_err("no such address");
        assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
    }
    let listed = stage
        .world
        .nft(&["list", "chain", "inet", "podwire", "service-discard"]);
    assert!(!listed.contains("packets 0 "), "not dropped here: {listed}");
}

#[rstest]
fn pods_keep_their_address_inside_and_take_the_nodes_outside(
    #[values(Attach::Routed, Attach::Bridge)] attach: Attach,
) {
    let stage = Stage::new(attach);
    serve(&stage.world.outside, "outside");
    serve(&stage.world.node, "node");
    for ((_, node, pod), outside) in SIDES.into_iter().zip([OUTSIDE4, OUTSIDE6]) {
        let seen = |to: &str| {
            ask_tcp(&stage.world.pods[2], at(to, 8080))
                .expect("an answer")
                .1
        };
        assert_eq!(seen(outside), ip(node), "what leaves the cluster");
        assert_eq!(seen(node), ip(&pod(2)), "pod to node");
        assert_eq!(seen(&pod(0)), ip(&pod(2)), "pod to pod");
    }
}

#[test]
fn a_removed_service_is_gone_and_others_stay() {
    let mut stage = Stage::new(Attach::Routed);
    stage
        .proxy
        .service_changed(service("other", &["10.96.0.11"], 80, None));
    stage
        .proxy
        .endpoint_slice_changed(&slice("other", "other-4", &[&pod4(0)], 8080));
    stage
        .proxy
        .service_removed(&ServiceName::new("default", "web"));
    stage.proxy.sync().expect("the kernel takes it");
    ask_tcp(&stage.world.pods[2], at("10.96.0.11", 80)).expect("an answer");
    let error = ask_tcp(&stage.world.outside, at(NODE4, 30080)).expect_err("gone");
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
}

/// A client that keeps its source port, so that conntrack takes all it sends
/// for one conversation.
fn keep_asking(from: &Space, to: SocketAddr) -> UdpSocket {
    from.namespace
        .run(|| {
            let any: IpAddr = match to {
                SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
            };
            let socket = UdpSocket::bind((any, 0)).expect("a port");
            socket
                .set_read_timeout(Some(Duration::from_millis(500)))
                .expect("not zero");
            socket.connect(to).expect("a route");
            socket
        })
        .expect("entered")
}

fn ask_again(socket: &UdpSocket) -> Answer {
    socket.send(b"?")?;
    let mut buffer = [0; 64];
    let length = socket.recv(&mut buffer)?;
    parse(&String::from_utf8_lossy(&buffer[..length]))
}

/// Clients of each family that the first pod has answered.
fn conversations(stage: &Stage) -> [UdpSocket; SIDES.len()] {
    SIDES.map(|(cluster, _, _)| {
        let client = keep_asking(&stage.world.pods[2], at(cluster, 80));
        assert_eq!(ask_again(&client).expect("an answer").0, "pod0");
        client
    })
}

#[test]
fn a_udp_conversation_follows_its_endpoints() {
    let mut stage = Stage::new(Attach::Routed);
    stage.endpoints(&[0]);
    let clients = conversations(&stage);
    stage.endpoints(&[1]);
    for client in &clients {
        assert_eq!(ask_again(client).expect("an answer").0, "pod1", "replaced");
    }
    stage.endpoints(&[]);
    for client in &clients {
        let error = ask_again(client).expect_err("nobody is there");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    }
    stage.endpoints(&[0]);
    for client in &clients {
        assert_eq!(
            ask_again(client).expect("an answer").0,
            "pod0",
            "back again"
        );
    }
    // The endpoint's port changes: nobody listens at the new one.
    for (name, pod) in [("web-4", pod4(0)), ("web-6", pod6(0))] {
        stage
            .proxy
            .endpoint_slice_changed(&slice("web", name, &[&pod], 8081));
    }
    stage.proxy.sync().expect("the kernel takes it");
    for client in &clients {
        let error = ask_again(client).expect_err("nobody listens there");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    }
    stage.endpoints(&[0]);
    for client in &clients {
        assert_eq!(ask_again(client).expect("an answer").0, "pod0");
    }
    // An endpoint that ends but still serves keeps what it has.
    let mut ending = slice("web", "web-4", &[&pod4(0)], 8080);
    ending.endpoints[0].ready = Some(false);
    ending.endpoints[0].serving = Some(true);
    ending.endpoints[0].terminating = Some(true);
    ending
        .endpoints
        .extend(slice("web", "web-4", &[&pod4(1)], 8080).endpoints);
    stage.proxy.endpoint_slice_changed(&ending);
    let stats = stage.proxy.sync().expect("the kernel takes it");
    assert_eq!(stats.conversations, 0);
    assert_eq!(ask_again(&clients[0]).expect("an answer").0, "pod0");
    assert_eq!(
        ask_udp(&stage.world.pods[2], at(CLUSTER4, 80))
            .expect("an answer")
            .0,
        "pod1"
    );
}

#[test]
fn a_restart_ends_udp_conversations_with_endpoints_that_went_meanwhile_and_no_others() {
    let mut stage = Stage::new(Attach::Routed);
    stage.endpoints(&[0]);
    let clients = conversations(&stage);
    for (pod, name, ended) in [(0, "pod0", 0), (1, "pod1", clients.len())] {
        stage.restart();
        stage.proxy.service_changed(web());
        for (slice_name, address) in [("web-4", pod4(pod)), ("web-6", pod6(pod))] {
            let slice = slice("web", slice_name, &[&address], 8080);
            stage.proxy.endpoint_slice_changed(&slice);
        }
        let stats = stage.proxy.sync().expect("the kernel takes it");
        assert_eq!(stats.conversations, ended, "{name}");
        for client in &clients {
            assert_eq!(ask_again(client).expect("an answer").0, name);
        }
    }
}

#[test]
fn an_open_connection_outlives_its_endpoint_and_the_proxy() {
    let mut stage = Stage::new(Attach::Routed);
    let listener = stage.world.pods[0]
        .namespace
        .run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 9090)))
        .expect("entered")
        .expect("free port");
    let long = |pods: &[usize]| {
        let list: Vec<String> = pods.iter().map(|n| pod4(*n)).collect();
        let list: Vec<&str> = list.iter().map(String::as_str).collect();
        slice("long", "long-4", &list, 9090)
    };
    stage
        .proxy
        .service_changed(service("long", &["10.96.0.20"], 90, None));
    stage.proxy.endpoint_slice_changed(&long(&[0]));
    stage.proxy.sync().expect("the kernel takes it");
    let mut client = stage.world.pods[2]
        .namespace
        .run(|| TcpStream::connect_timeout(&at("10.96.0.20", 90), PATIENCE))
        .expect("entered")
        .expect("an endpoint");
    client.set_read_timeout(Some(PATIENCE)).expect("not zero");
    let (mut server, _) = listener.accept().expect("a client");
    let mut exchange = || {
        let mut buffer = [0; 4];
        client.write_all(b"ping").expect("open");
        server.read_exact(&mut buffer).expect("open");
        server.write_all(b"pong").expect("open");
        client.read_exact(&mut buffer).expect("open");
        assert_eq!(&buffer, b"pong");
    };
    exchange();
    stage.proxy.endpoint_slice_changed(&long(&[]));
    stage.proxy.sync().expect("the kernel takes it");
    exchange();
    let error = ask_tcp(&stage.world.pods[2], at("10.96.0.20", 90)).expect_err("no endpoint");
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    stage.restart();
    exchange();
    // The new run knows of no Service: all of them go, the connection stays.
    stage.proxy.sync().expect("the kernel takes it");
    exchange();
}
