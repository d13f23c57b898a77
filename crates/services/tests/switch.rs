//! Changing the proxy of a live node: no moment without rules, connections stay,
//! nothing of the one before is left, wherever it is interrupted.

mod world;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use podwire_services::iptables::Variant;
use podwire_services::table::Table;
use podwire_services::{Proxy, ProxyMode, ProxySettings};
use world::{Attach, World, pod4, pod6, service, slice};

const PATIENCE: Duration = Duration::from_secs(20);
const CLUSTER: [&str; 2] = ["10.96.0.10", "fd00:96::10"];

fn settings() -> [ProxySettings; 3] {
    let iptables = |variant| ProxySettings {
        iptables: Some(variant),
        ..ProxySettings::new(ProxyMode::Iptables)
    };
    [
        ProxySettings::new(ProxyMode::Nftables),
        iptables(Variant::Nft),
        iptables(Variant::Legacy),
    ]
}

fn proxy(world: &World, settings: ProxySettings) -> Proxy {
    let facts = world.facts();
    let mut proxy = world
        .node
        .namespace
        .run(|| Proxy::start_as(&settings, facts))
        .expect("entered")
        .expect("everything it needs is here");
    proxy.service_changed(service("web", &CLUSTER, 80, Some(30080)));
    proxy.endpoint_slice_changed(&slice("web", "web-4", &[&pod4(0), &pod4(1)], 8080));
    proxy.endpoint_slice_changed(&slice("web", "web-6", &[&pod6(0), &pod6(1)], 8080));
    proxy
}

/// Answers each connection at port 8080 with what it sends, byte by byte.
fn echo(world: &World, pod: usize) {
    let any: SocketAddr = (std::net::Ipv6Addr::UNSPECIFIED, 8080).into();
    let listener = world.pods[pod]
        .namespace
        .run(|| TcpListener::bind(any))
        .expect("entered")
        .expect("free port");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            std::thread::spawn(move || {
                let mut byte = [0];
                while matches!(stream.read(&mut byte), Ok(1)) {
                    if stream.write_all(&byte).is_err() {
                        return;
                    }
                }
            });
        }
    });
}

fn exchange(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(b"x")?;
    stream.read_exact(&mut [0])
}

fn connect(to: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// What each proxy has in the node's namespace, by witnesses: table inet
/// podwire, chains of iptables-nft, chains of iptables-legacy.
fn present(world: &World) -> [bool; 3] {
    let has = |program: &str| world.node.command(program, &[]).contains(":PODWIRE-");
    [
        world.nft(&["list", "tables"]).contains("inet podwire"),
        has("iptables-nft-save") || has("ip6tables-nft-save"),
        has("iptables-legacy-save") || has("ip6tables-legacy-save"),
    ]
}

#[test]
fn no_connection_fails_while_the_proxy_is_changed() {
    let world = World::with(Attach::Routed, 3);
    echo(&world, 0);
    echo(&world, 1);
    let [nftables, ipt_nft, ipt_legacy] = settings();
    proxy(&world, nftables).sync().expect("taken");
    let targets = CLUSTER.map(|ip| SocketAddr::new(ip.parse::<IpAddr>().expect("a literal"), 80));
    let stop = AtomicBool::new(false);
    let made = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let (world, stop, made) = (&world, &stop, &made);
        let clients: Vec<_> = targets
            .into_iter()
            .map(|to| {
                scope.spawn(move || {
                    world.pods[2]
                        .namespace
                        .run(|| {
                            let mut long = connect(to).expect("an endpoint");
                            let started = Instant::now();
                            let mut count = 0;
                            while !stop.load(Ordering::Relaxed) {
                                let mut short =
                                    connect(to).unwrap_or_else(|e| panic!("{count} to {to}: {e}"));
                                exchange(&mut short)
                                    .unwrap_or_else(|e| panic!("{count} with {to}: {e}"));
                                exchange(&mut long)
                                    .unwrap_or_else(|e| panic!("the long one with {to}: {e}"));
                                made.fetch_add(1, Ordering::Relaxed);
                                count += 1;
                                // A hundred a second of each family.
                                let due = started + Duration::from_millis(10) * count;
                                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                            }
                        })
                        .expect("entered");
                })
            })
            .collect();
        let enough = |more: usize| {
            let until = made.load(Ordering::Relaxed) + more;
            while made.load(Ordering::Relaxed) < until
                && clients.iter().all(|client| !client.is_finished())
            {
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        for (index, next) in [
            (1, ipt_nft),
            (0, nftables),
            (2, ipt_legacy),
            (1, ipt_nft),
            (0, nftables),
        ] {
            enough(100);
            proxy(world, next).sync().expect("taken");
            let mut expected = [false; 3];
            expected[index] = true;
            assert_eq!(present(world), expected, "after the change to {next:?}");
            enough(50);
        }
        stop.store(true, Ordering::Relaxed);
        for client in clients {
            client.join().expect("no connection failed");
        }
    });
    println!("{} connections, none failed", made.load(Ordering::Relaxed));
}

#[test]
fn a_change_that_was_interrupted_is_finished_by_the_next_start() {
    let world = World::with(Attach::Routed, 2);
    let settings = settings();
    // All three at once: as if each change had been killed before it cleared up.
    for one in settings {
        let mut table = Table::new(world.facts());
        table.set_service(service("web", &CLUSTER, 80, None));
        let changes = table.take_changes();
        world
            .node
            .namespace
            .run(|| one.start()?.sync(&table, &changes).map(drop))
            .expect("entered")
            .expect("taken");
    }
    assert_eq!(present(&world), [true; 3]);
    proxy(&world, settings[0]).sync().expect("taken");
    assert_eq!(present(&world), [true, false, false]);
}
