//! How long it takes to program many peers from cold, and one change after
//! that: `cargo run --release -p podwire-routing --example peers [COUNT] [BACKEND]`
//! (root; everything happens in a network namespace of its own).
//!
//! The floor beside it is the same number of bare IPv4 routes added by the same
//! socket without anything else. CPU time is that of the one thread, for machines
//! that do something else too.

use std::error::Error;
use std::time::{Duration, Instant};

use linux::address::{self, Address};
use linux::link::{self, Bridge};
use linux::namespace::NetworkNamespace;
use linux::netlink::Request;
use linux::route::{self, Route};
use podwire_routing::backend::{self, by_name};
use podwire_routing::{Kernel, Node, Settings, Underlay, plan};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let count = arguments
        .next()
        .map_or(Ok(5000), |count| count.parse::<u16>())?;
    let backends = match arguments.next() {
        Some(name) => vec![name],
        None => ["host-gw", "vxlan-gpe", "vxlan"]
            .map(str::to_owned)
            .to_vec(),
    };
    println!(
        "{:<16}{:>7}{:>9}{:>9}{:>9}{:>10}{:>10}{:>8}{:>10}{:>10}",
        "back end",
        "peers",
        "entries",
        "plan ms",
        "cold ms",
        "(cpu ms)",
        "floor ms",
        "one ms",
        "requests",
        "adopt ms"
    );
    for name in backends {
        measure(&name, count)?;
    }
    Ok(())
}

fn measure(name: &str, count: u16) -> Result<(), Box<dyn Error>> {
    let namespace = NetworkNamespace::create()?;
    let mut kernel = namespace.run(Kernel::open)??;
    let socket = kernel.socket();
    let wire = Bridge {
        name: "wire",
        ..Bridge::default()
    };
    socket.execute(&link::add_bridge(&wire))?;
    let wire = link::get(socket, wire.name)?.ok_or("the bridge is gone")?;
    for net in ["172.16.0.0/12", "fd00:64::1/64"] {
        socket.execute(&address::add(&Address::new(wire.index, net.parse()?)))?;
    }
    let underlay = Underlay::read(socket)?;
    let settings = Settings::default();
    let backends = [by_name(name, &settings).ok_or("no back end of that name")?];
    let own = node(0)?;
    let mut peers = Vec::new();
    for number in 1..=count {
        let mut peer = node(number)?;
        peer.data = Some(backend::publish(&backends, &peer, &underlay));
        peers.push(peer);
    }

    let start = Instant::now();
    let wanted = plan(&backends, &own, &peers, &underlay);
    let planned = start.elapsed();
    let (start, cpu) = (Instant::now(), cpu_time()?);
    let outcome = kernel.apply(&wanted.state)?;
    let (cold, cpu) = (start.elapsed(), cpu_time()? - cpu);
    if let Some(failure) = outcome.failures.first() {
        return Err(failure.to_string().into());
    }

    let before = kernel.requests_sent();
    let start = Instant::now();
    let fewer = plan(&backends, &own, &peers[1..], &underlay);
    kernel.apply(&fewer.state)?;
    let one = start.elapsed();
    let requests = kernel.requests_sent() - before;

    kernel.invalidate();
    let start = Instant::now();
    kernel.apply(&fewer.state)?;
    let adopt = start.elapsed();

    println!(
        "{name:<16}{count:>7}{:>9}{:>9}{:>9}{:>10}{:>10}{:>8}{requests:>10}{:>10}",
        outcome.changed,
        ms(planned),
        ms(cold),
        ms(cpu),
        ms(floor(outcome.changed)?),
        ms(one),
        ms(adopt),
    );
    Ok(())
}

/// The time for as many bare routes.
fn floor(count: usize) -> Result<Duration, Box<dyn Error>> {
    let namespace = NetworkNamespace::create()?;
    let mut socket = namespace.route_socket()?;
    let wire = Bridge {
        name: "wire",
        ..Bridge::default()
    };
    socket.execute(&link::add_bridge(&wire))?;
    let wire = link::get(&mut socket, wire.name)?.ok_or("the bridge is gone")?;
    let routes = (0..u32::try_from(count)?).map(|number| {
        let address = std::net::Ipv4Addr::from_bits(0x0a00_0000 + (number << 8));
        let net = ipnet::Ipv4Net::new(address, 24)?;
        Ok(route::add(&Route::to(net.into()).dev(wire.index)))
    });
    let requests: Vec<Request> = routes.collect::<Result<_, ipnet::PrefixLenError>>()?;
    let start = Instant::now();
    socket.execute_all(&requests)?;
    Ok(start.elapsed())
}

fn node(number: u16) -> Result<Node, Box<dyn Error>> {
    let [high, low] = number.to_be_bytes();
    Ok(Node {
        name: format!("node-{number}").into(),
        addresses: vec![
            format!("172.{}.{high}.{low}", if number == 0 { 16 } else { 17 }).parse()?,
            format!("fd00:64::{number:x}:1").parse()?,
        ],
        ranges: vec![
            format!("10.{high}.{low}.0/24").parse()?,
            format!("fd00:200:0:{number:x}::/64").parse()?,
        ],
        ..Node::default()
    })
}

/// How long this thread has run so far (Documentation/scheduler/sched-stats.rst).
fn cpu_time() -> Result<Duration, Box<dyn Error>> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanoseconds = text.split(' ').next().ok_or("no figures")?;
    Ok(Duration::from_nanos(nanoseconds.parse()?))
}

fn ms(time: Duration) -> String {
    format!("{:.1}", time.as_secs_f64() * 1000.0)
}
