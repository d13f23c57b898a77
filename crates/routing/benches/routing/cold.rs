//! Programming many peers from cold, and one change after that.
//!
//! The floor is the same number of bare IPv4 routes added by one socket without
//! anything else. CPU time is that of the one thread, for machines that do
//! something else too.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use linux::address::{self, Address};
use linux::link::{self, Bridge};
use linux::namespace::NetworkNamespace;
use linux::netlink::Request;
use linux::route::{self, Route};
use podwire_routing::apply::Outcome;
use podwire_routing::backend::{self, Wireguard, by_name};
use podwire_routing::{Basis, Kernel, Node, Planner, Settings, Underlay, keys};

/// What it took.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) entries: usize,
    pub(crate) planned: Duration,
    pub(crate) cold: Duration,
    pub(crate) cpu: Duration,
    pub(crate) floor: Duration,
    pub(crate) one: Duration,
    pub(crate) requests: u64,
    pub(crate) adopt: Duration,
}

/// Settings with a new key; `None` on a kernel without WireGuard.
pub(crate) fn wireguard(namespace: &NetworkNamespace) -> Option<Wireguard> {
    namespace
        .run(|| {
            let private_key = linux::wireguard::PrivateKey::generate().ok()?;
            Some(Wireguard {
                public_key: keys::public_key(&private_key).ok()?,
                private_key,
                port: 51820,
            })
        })
        .ok()?
}

/// Programs the peers, takes one away, and starts anew with what is there.
pub(crate) fn measure(name: &str, count: u16) -> anyhow::Result<Row> {
    let namespace = NetworkNamespace::create()?;
    let mut kernel = namespace.run(Kernel::open)??;
    let socket = kernel.socket();
    let wire = Bridge {
        name: "wire",
        ..Bridge::default()
    };
    socket.execute(&link::add_bridge(&wire))?;
    let wire = link::get(socket, wire.name)?.context("the bridge is gone")?;
    for net in ["172.16.0.0/12", "fd00:64::1/64"] {
        socket.execute(&address::add(&Address::new(wire.index, net.parse()?)))?;
    }
    let underlay = Underlay::read(socket)?;
    let mut settings = Settings::default();
    settings.vxlan_multicast.cluster = vec!["10.0.0.0/8".parse()?, "fd00:200::/32".parse()?];
    let own = node(0)?;
    let mut peers = Vec::new();
    for number in 1..=count {
        let mut peer = node(number)?;
        // A key of its own.
        settings.wireguard = (name == "wireguard")
            .then(|| wireguard(&namespace))
            .flatten();
        let backends = [by_name(name, &settings).context("no back end of that name")?];
        peer.data = Some(backend::publish(&backends, &peer, &underlay));
        peers.push(peer);
    }
    let basis = Basis {
        backends: vec![by_name(name, &settings).context("no back end of that name")?],
        own,
        underlay,
        ..Basis::default()
    };
    let gone = peers.first().context("no peers")?.name.clone();

    kernel.held()?;
    let start = Instant::now();
    let mut planner = Planner::new();
    planner.set_basis(basis);
    peers.into_iter().for_each(|peer| planner.set_peer(peer));
    planner.plan(kernel.held()?);
    let planned = start.elapsed();
    let (start, cpu) = (Instant::now(), cpu_time()?);
    let outcome = apply(&mut planner, &mut kernel)?;
    let (cold, cpu) = (start.elapsed(), cpu_time()? - cpu);
    if let Some(failure) = outcome.failures.into_iter().next() {
        return Err(failure.into());
    }

    let before = kernel.requests_sent();
    let start = Instant::now();
    planner.remove_peer(&gone);
    planner.plan(kernel.held()?);
    apply(&mut planner, &mut kernel)?;
    let one = start.elapsed();
    let requests = kernel.requests_sent() - before;

    kernel.invalidate();
    let start = Instant::now();
    apply(&mut planner, &mut kernel)?;
    let adopt = start.elapsed();
    Ok(Row {
        entries: outcome.changed,
        planned,
        cold,
        cpu,
        floor: floor(outcome.changed)?,
        one,
        requests,
        adopt,
    })
}

/// Applies what has changed of a plan.
fn apply(planner: &mut Planner, kernel: &mut Kernel) -> anyhow::Result<Outcome> {
    let (plan, changes) = planner.planned();
    let outcome = kernel.apply_changes(&plan.state, changes)?;
    planner.took_up();
    Ok(outcome)
}

/// The time for as many bare routes.
fn floor(count: usize) -> anyhow::Result<Duration> {
    let namespace = NetworkNamespace::create()?;
    let mut socket = namespace.route_socket()?;
    let wire = Bridge {
        name: "wire",
        ..Bridge::default()
    };
    socket.execute(&link::add_bridge(&wire))?;
    let wire = link::get(&mut socket, wire.name)?.context("the bridge is gone")?;
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

fn node(number: u16) -> anyhow::Result<Node> {
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
        // Only `static` asks for them.
        pods: vec![
            format!("10.{high}.{low}.5").parse()?,
            format!("fd00:200:0:{number:x}::5").parse()?,
        ],
        ..Node::default()
    })
}

/// How long this thread has run so far (Documentation/scheduler/sched-stats.rst).
fn cpu_time() -> anyhow::Result<Duration> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanoseconds = text.split(' ').next().context("no figures")?;
    Ok(Duration::from_nanos(nanoseconds.parse()?))
}
