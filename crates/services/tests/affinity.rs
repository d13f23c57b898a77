//! Session affinity, source ranges, counters and fairness by real packets, and
//! what happens to them at changes and restarts.

mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use podwire_services::{Proxy, ProxyMode, ProxySettings, Service, TrafficPolicy};
use rstest::rstest;
use world::{Attach, NODE4, NODE6, OUTSIDE4, OUTSIDE6, Space, World, pod4, pod6, service, slice};

/// For what is to happen; a busy machine takes its time.
const PATIENCE: Duration = Duration::from_secs(30);
/// For what is not to happen.
const SILENCE: Duration = Duration::from_millis(700);

const CLUSTER: [&str; 2] = ["10.96.0.10", "fd00:96::10"];
const BALANCER: [&str; 2] = ["198.51.100.1", "2001:db8::1"];

fn serve(space: &Space, name: &'static str) {
    let any: SocketAddr = (Ipv6Addr::UNSPECIFIED, 8080).into();
    let listener = space
        .namespace
        .run(|| TcpListener::bind(any))
        .expect("entered")
        .expect("free port");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            // A client that is gone needs no answer.
            let _ = stream.write_all(name.as_bytes());
        }
    });
}

fn ask_in_place(to: SocketAddr, patience: Duration) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&to, patience)?;
    stream.set_read_timeout(Some(patience))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

fn ask(from: &Space, to: SocketAddr) -> std::io::Result<String> {
    from.namespace
        .run(|| ask_in_place(to, PATIENCE))
        .expect("entered")
}

fn at(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse().expect("a literal"), port)
}

/// A node with three pods that serve and one that asks.
struct Stage {
    world: World,
    proxy: Proxy,
}

impl Stage {
    fn new() -> Self {
        let world = World::with(Attach::Routed, 4);
        for (n, name) in ["pod0", "pod1", "pod2"].into_iter().enumerate() {
            serve(&world.pods[n], name);
        }
        for (v6, node, balancer, length) in [
            ("", NODE4, BALANCER[0], 32),
            ("-6 ", NODE6, BALANCER[1], 128),
        ] {
            world
                .outside
                .ip(&format!("{v6}route add {balancer}/{length} via {node}"));
        }
        let proxy = started(&world, &ProxySettings::new(ProxyMode::Nftables));
        let mut stage = Self { world, proxy };
        stage.tell(web(), &[0, 1, 2]);
        stage
    }

    fn tell(&mut self, service: Service, pods: &[usize]) {
        self.proxy.service_changed(service);
        let lists: [Vec<String>; 2] = [
            pods.iter().map(|n| pod4(*n)).collect(),
            pods.iter().map(|n| pod6(*n)).collect(),
        ];
        for (name, list) in ["web-4", "web-6"].into_iter().zip(lists) {
            let list: Vec<&str> = list.iter().map(String::as_str).collect();
            self.proxy
                .endpoint_slice_changed(&slice("web", name, &list, 8080));
        }
        self.proxy.sync().expect("the kernel takes it");
    }

    fn client(&self) -> &Space {
        &self.world.pods[3]
    }

    /// Who answers a number of connections.
    fn answers(&self, from: &Space, to: SocketAddr, count: usize) -> BTreeMap<String, usize> {
        from.namespace
            .run(|| {
                let mut answers = BTreeMap::new();
                for _ in 0..count {
                    let who = ask_in_place(to, PATIENCE).expect("an answer");
                    *answers.entry(who).or_default() += 1;
                }
                answers
            })
            .expect("entered")
    }

    /// Who alone answers.
    fn only(&self, from: &Space, to: SocketAddr) -> String {
        let answers = self.answers(from, to, 15);
        assert_eq!(answers.len(), 1, "{to}: {answers:?}");
        answers.into_keys().next().expect("one")
    }
}

fn started(world: &World, settings: &ProxySettings) -> Proxy {
    let facts = world.facts();
    world
        .node
        .namespace
        .run(|| Proxy::start_as(settings, facts))
        .expect("entered")
        .expect("root")
}

fn web() -> Service {
    Service {
        load_balancer_ips: BALANCER.map(str::to_owned).to_vec(),
        ..service("web", &CLUSTER, 80, Some(30080))
    }
}

fn sticky(seconds: u32) -> Service {
    Service {
        affinity: Some(seconds),
        ..web()
    }
}

#[rstest]
#[case::cluster(TrafficPolicy::Cluster)]
#[case::local(TrafficPolicy::Local)]
fn a_client_keeps_its_endpoint_at_every_kind_of_address(#[case] external: TrafficPolicy) {
    let mut stage = Stage::new();
    let service = Service {
        external_policy: external,
        ..sticky(10_800)
    };
    stage.tell(service, &[0, 1, 2]);
    for family in 0..2 {
        let node = [NODE4, NODE6][family];
        for (from, to) in [
            (stage.client(), at(CLUSTER[family], 80)),
            (stage.client(), at(node, 30080)),
            (&stage.world.node, at(CLUSTER[family], 80)),
            (&stage.world.outside, at(node, 30080)),
            (&stage.world.outside, at(BALANCER[family], 80)),
        ] {
            stage.only(from, to);
        }
    }
}

#[test]
fn affinity_is_turned_on_and_off_live_and_outlives_restarts_and_other_endpoints() {
    let mut stage = Stage::new();
    for address in CLUSTER {
        let to = at(address, 80);
        stage.tell(web(), &[0, 1, 2]);
        assert!(stage.answers(stage.client(), to, 100).len() > 1);
        stage.tell(sticky(10_800), &[0, 1, 2]);
        let kept = stage.only(stage.client(), to);
        let own: usize = kept[3..].parse().expect("its number");
        let others: Vec<usize> = (0..3).filter(|n| *n != own).collect();
        // The proxy restarts.
        stage.proxy = started(&stage.world, &ProxySettings::new(ProxyMode::Nftables));
        stage.tell(sticky(10_800), &[0, 1, 2]);
        assert_eq!(stage.only(stage.client(), to), kept, "after a restart");
        // Others go and come, so that slots are dealt anew.
        stage.tell(sticky(10_800), &[own]);
        stage.tell(sticky(10_800), &[own, others[1]]);
        stage.tell(sticky(10_800), &[0, 1, 2]);
        assert_eq!(stage.only(stage.client(), to), kept, "others came and went");
        // Its own goes: another takes over, and keeps the client.
        stage.tell(sticky(10_800), &others);
        let next = stage.only(stage.client(), to);
        assert_ne!(next, kept);
        stage.tell(sticky(10_800), &[0, 1, 2]);
        assert_eq!(stage.only(stage.client(), to), next);
        stage.tell(web(), &[0, 1, 2]);
        assert!(
            stage.answers(stage.client(), to, 100).len() > 1,
            "turned off"
        );
    }
}

#[test]
fn a_client_is_forgotten_when_its_time_is_over_and_each_connection_starts_it_anew() {
    let mut stage = Stage::new();
    stage.tell(sticky(3), &[0, 1, 2]);
    let to = at(CLUSTER[0], 80);
    let kept = ask(stage.client(), to).expect("an answer");
    // Longer than three seconds in all, with no gap that long.
    let started = Instant::now();
    let mut last = Instant::now();
    while started.elapsed() < Duration::from_secs(5) {
        let who = ask(stage.client(), to).expect("an answer");
        if last.elapsed() < Duration::from_secs(3) {
            assert_eq!(who, kept);
        } else {
            return; // the machine slept: nothing can be said
        }
        last = Instant::now();
        std::thread::park_timeout(Duration::from_millis(300));
    }
    // The element goes by itself.
    let deadline = Instant::now() + PATIENCE;
    while stage
        .world
        .nft(&["list", "map", "inet", "podwire", "affinity4"])
        .contains("expires")
    {
        assert!(Instant::now() < deadline, "still remembered");
        std::thread::park_timeout(Duration::from_millis(100));
    }
}

#[test]
fn source_ranges_keep_others_from_load_balancer_addresses_only() {
    let mut stage = Stage::new();
    let allow = |ranges: &[&str]| Service {
        source_ranges: ranges.iter().map(|text| (*text).to_owned()).collect(),
        ..web()
    };
    let expect = |from: &Space, to: SocketAddr, expected: &str| {
        let patience = match expected {
            "silence" => SILENCE,
            _ => PATIENCE,
        };
        let seen = match from
            .namespace
            .run(|| ask_in_place(to, patience))
            .expect("entered")
        {
            Ok(_) => "answered",
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => "refused",
            Err(_) => "silence",
        };
        assert_eq!(seen, expected, "{to}");
    };
    let check = |stage: &Stage, pod: &str, outside: &str| {
        for family in 0..2 {
            let to = at(BALANCER[family], 80);
            expect(stage.client(), to, pod);
            expect(&stage.world.outside, to, outside);
            // What else the Service has is open to all.
            let to = at([NODE4, NODE6][family], 30080);
            ask(&stage.world.outside, to).expect("an answer");
            ask(stage.client(), at(CLUSTER[family], 80)).expect("an answer");
        }
    };
    let outside4 = format!("{OUTSIDE4}/32");
    let outside6 = format!("{OUTSIDE6}/128");
    stage.tell(allow(&[&outside4, &outside6]), &[0, 1]);
    check(&stage, "silence", "answered");
    stage.tell(allow(&["10.200.1.0/24", "fd00:200:0:1::/64"]), &[0, 1]);
    check(&stage, "answered", "silence");
    stage.tell(allow(&["not a range"]), &[0, 1]);
    check(&stage, "silence", "silence");
    stage.tell(allow(&[&outside4, &outside6]), &[]);
    for to in BALANCER {
        // Nobody is there, and it may know.
        expect(&stage.world.outside, at(to, 80), "refused");
        expect(stage.client(), at(to, 80), "silence");
    }
    stage.tell(allow(&["0.0.0.0/0", "::/0"]), &[0, 1]);
    check(&stage, "answered", "answered");
    stage.tell(allow(&[]), &[0, 1]);
    check(&stage, "answered", "answered");
}

#[test]
fn the_node_that_has_the_load_balancers_address_may_ask_it() {
    let mut stage = Stage::new();
    for (length, address) in [(32, BALANCER[0]), (128, BALANCER[1])] {
        stage
            .world
            .node
            .ip(&format!("addr add {address}/{length} dev lo"));
    }
    stage.tell(
        Service {
            source_ranges: vec!["192.0.2.0/24".to_owned(), "2001:db8:2::/64".to_owned()],
            ..web()
        },
        &[0, 1],
    );
    for address in BALANCER {
        ask(&stage.world.node, at(address, 80)).expect("an answer");
    }
}

/// A draw of 3,000 among n is a multinomial: no share is off by five standard
/// deviations in any run anybody will see.
#[rstest]
#[case::two(&[0, 1])]
#[case::three(&[0, 1, 2])]
fn backends_are_drawn_fairly(#[case] pods: &[usize]) {
    const DRAWS: usize = 3_000;
    let mut stage = Stage::new();
    stage.tell(web(), pods);
    let answers = stage.answers(stage.client(), at(CLUSTER[0], 80), DRAWS);
    let share = DRAWS as f64 / pods.len() as f64;
    let deviation = (share * (1.0 - 1.0 / pods.len() as f64)).sqrt();
    assert_eq!(answers.len(), pods.len(), "{answers:?}");
    for (who, count) in &answers {
        let off = (*count as f64 - share).abs();
        assert!(off < 5.0 * deviation, "{who}: {answers:?}");
    }
    // The kernel's counters say the same.
    let traffic = stage.proxy.traffic().expect("readable");
    let counted: Vec<u64> = traffic
        .iter()
        .filter(|one| one.frontend.to_string() == format!("{}:80/tcp", CLUSTER[0]))
        .map(|one| one.packets)
        .collect();
    let mut seen: Vec<u64> = answers.values().map(|count| *count as u64).collect();
    let mut sorted = counted.clone();
    sorted.sort_unstable();
    seen.sort_unstable();
    assert_eq!(sorted, seen, "{traffic:?}");
    assert!(traffic.iter().all(|one| one.bytes >= one.packets * 40));
}

#[test]
fn connections_to_an_endpoint_that_is_gone_are_cut_on_demand() {
    for cut in [false, true] {
        let mut stage = Stage::new();
        let settings = ProxySettings {
            cut_connections: cut,
            ..ProxySettings::new(ProxyMode::Nftables)
        };
        stage.proxy = started(&stage.world, &settings);
        stage.tell(web(), &[]);
        let listener = stage.world.pods[0]
            .namespace
            .run(|| TcpListener::bind((IpAddr::from(Ipv6Addr::UNSPECIFIED), 9090)))
            .expect("entered")
            .expect("free port");
        let long = |pods: &[String]| {
            let list: Vec<&str> = pods.iter().map(String::as_str).collect();
            slice("long", "long-4", &list, 9090)
        };
        stage
            .proxy
            .service_changed(service("long", &["10.96.0.20"], 90, None));
        stage.proxy.endpoint_slice_changed(&long(&[pod4(0)]));
        stage.proxy.sync().expect("the kernel takes it");
        let mut client = stage
            .client()
            .namespace
            .run(|| TcpStream::connect_timeout(&at("10.96.0.20", 90), PATIENCE))
            .expect("entered")
            .expect("an endpoint");
        client.set_read_timeout(Some(PATIENCE)).expect("not zero");
        let (mut server, _) = listener.accept().expect("a client");
        server.write_all(b"!").expect("open");
        client.read_exact(&mut [0]).expect("open");
        stage.proxy.endpoint_slice_changed(&long(&[]));
        let stats = stage.proxy.sync().expect("the kernel takes it");
        assert_eq!(stats.conversations, usize::from(cut));
        client.write_all(b"?").expect("buffered");
        if cut {
            let error = client.read(&mut [0]).expect_err("cut");
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        } else {
            server.read_exact(&mut [0]).expect("open");
            server.write_all(b"!").expect("open");
            client.read_exact(&mut [0]).expect("not cut");
        }
    }
}

#[test]
fn what_others_drop_is_said_by_the_audit() {
    let mut stage = Stage::new();
    assert_eq!(
        stage.proxy.audit().expect("readable").obstacles,
        [""; 0],
        "nothing of others"
    );
    stage.world.nft(&["add", "table", "ip", "evil"]);
    stage.world.nft(&[
        "add",
        "chain",
        "ip",
        "evil",
        "early",
        "{ type filter hook prerouting priority -250; }",
    ]);
    stage.world.nft(&[
        "add",
        "rule",
        "ip",
        "evil",
        "early",
        "ip",
        "daddr",
        "10.96.0.10",
        "counter",
        "drop",
    ]);
    stage.world.nft(&["add", "table", "inet", "wall"]);
    stage.world.nft(&[
        "add",
        "chain",
        "inet",
        "wall",
        "forward",
        "{ type filter hook forward priority 0; policy drop; }",
    ]);
    let stats = stage.proxy.audit().expect("readable");
    assert_eq!(
        stats.obstacles,
        [
            "chain forward of table inet wall drops what its rules do not accept",
            "chain early of table ip evil has a rule that drops or rejects",
        ]
    );
    assert!(stats.repaired.is_empty());
    let named: BTreeSet<&String> = stage.proxy.obstacles().iter().collect();
    assert_eq!(named.len(), 2);
}
