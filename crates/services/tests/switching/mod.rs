//! Changing the proxy of a live node while connections are made through it.

#![allow(dead_code, reason = "shared by several test binaries")]

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::world::{Attach, World, pod4, pod6, service, slice};
use podwire_services::{Proxy, ProxySettings};

pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
pub(crate) const CLUSTER: [&str; 2] = ["10.96.0.10", "fd00:96::10"];

pub(crate) fn proxy(world: &World, settings: ProxySettings) -> Proxy {
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
pub(crate) fn echo(world: &World, pod: usize) {
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

pub(crate) fn exchange(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(b"x")?;
    stream.read_exact(&mut [0])
}

pub(crate) fn connect(to: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Changes from one of `proxies` to the next while two hundred connections a
/// second are made, and says what is left behind.
pub(crate) fn under_load(proxies: &[ProxySettings], check: impl Fn(&World, ProxySettings)) {
    let world = World::with(Attach::Routed, 3);
    echo(&world, 0);
    echo(&world, 1);
    proxy(&world, proxies[0]).sync().expect("taken");
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
        for next in &proxies[1..] {
            enough(100);
            println!(
                "{} connections, then to {next:?}",
                made.load(Ordering::Relaxed)
            );
            proxy(world, *next).sync().expect("taken");
            check(world, *next);
            enough(50);
        }
        stop.store(true, Ordering::Relaxed);
        for client in clients {
            client.join().expect("no connection failed");
        }
    });
    println!("{} connections, none failed", made.load(Ordering::Relaxed));
}
