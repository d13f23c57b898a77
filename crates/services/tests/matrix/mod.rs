//! Who reaches what, and under which address, as real packets. Printed row by row.

#![allow(dead_code, reason = "shared by several test binaries")]

pub(crate) mod plan;
pub(crate) mod rule;
mod sctp;

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use crate::world::{Attach, Space, World};
use plan::{PLANS, Plan, columns};
use podwire_services::{Protocol, Proxy, ProxyMode, ProxySettings};
use rule::{Caller, Endpoints, Outcome, Policy, Row};

const PATIENCE: Duration = Duration::from_secs(20);
/// How long the absence of an answer is waited for.
const SILENCE: Duration = Duration::from_millis(400);
/// After how long a datagram is sent again.
const AGAIN: Duration = Duration::from_millis(500);

/// The node with one pod that serves and one that calls, and an endpoint
/// elsewhere, which lives in the namespace of the outside host.
struct Stage {
    world: World,
    proxy: Proxy,
}

impl Stage {
    fn new(settings: ProxySettings, attach: Attach) -> Self {
        let world = World::with(attach, 2);
        let (mut on_node, mut outside) = (Vec::new(), Vec::new());
        for (plan, nodad) in [(&PLANS[0], ""), (&PLANS[1], "nodad")] {
            outside.push(format!("addr add {} dev lo {nodad}", plan.remote));
            on_node.push(format!("route add {} via {}", plan.remote, plan.outside));
            for to in [
                (plan.pod)(0),
                (plan.pod)(1),
                plan.cluster.into(),
                plan.load_balancer.into(),
                plan.external.into(),
            ] {
                outside.push(format!("route add {to} via {}", plan.node));
            }
        }
        world.outside.ip_batch(&outside);
        world.node.ip_batch(&on_node);
        // Refusals come as fast as they are asked for.
        world.node.set("net/ipv4/icmp_ratelimit", "0");
        world.node.set("net/ipv6/icmp/ratelimit", "0");
        for plan in &PLANS {
            serve(&world.pods[0], "local", &(plan.pod)(0));
            serve(&world.outside, "remote", plan.remote);
        }
        let proxy = world
            .node
            .namespace
            .run(|| Proxy::start_as(&settings, plan::facts()))
            .expect("entered")
            .expect("everything it needs is here");
        Self { world, proxy }
    }

    fn tell(&mut self, policy: Policy, endpoints: Endpoints) {
        self.proxy.service_changed(plan::web(policy));
        for slice in plan::slices(endpoints) {
            self.proxy.endpoint_slice_changed(&slice);
        }
        self.proxy.sync().expect("the kernel takes it");
    }
}

fn space(world: &World, caller: Caller) -> &Space {
    match caller {
        Caller::Endpoint => &world.pods[0],
        Caller::Pod => &world.pods[1],
        Caller::Node => &world.node,
        Caller::Outside => &world.outside,
    }
}

/// Asks from the caller's namespace, which this thread is in, until all that are
/// expected have answered, and a few times more.
fn look(mode: ProxyMode, row: &Row, protocol: Protocol, plan: &Plan) -> Outcome {
    let expected = row.rule();
    let (patience, wanted) = match &expected {
        Outcome::Silence => (SILENCE, 0),
        Outcome::Answered(by) => (PATIENCE, by.len()),
        Outcome::Refused => (PATIENCE, 0),
    };
    let (address, port) = plan.target(row.target);
    let to = SocketAddr::new(address.parse().expect("a literal"), port);
    let own: IpAddr = plan.caller(row.caller).parse().expect("a literal");
    // In turn at least as often as there are endpoints; by chance more often.
    let rounds = match mode {
        ProxyMode::Ipvs => 2,
        ProxyMode::Nftables | ProxyMode::Iptables => 5,
    };
    let mut seen: BTreeMap<String, bool> = BTreeMap::new();
    for round in 1.. {
        match ask(protocol, to, patience) {
            Ok((name, from)) => {
                let own = from == own && row.caller != Caller::Node;
                let before = seen.insert(name, own);
                assert!(before.is_none_or(|before| before == own), "{row:?} to {to}");
            }
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                return Outcome::Refused;
            }
            Err(error) if matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock) => {
                return Outcome::Silence;
            }
            Err(error) => panic!("{row:?} to {to} by {protocol:?}: {error}"),
        }
        // The odds that one of two is never drawn in sixty are nil.
        if round >= rounds && (seen.len() >= wanted || round >= 60) {
            break;
        }
    }
    Outcome::Answered(seen)
}

/// Answers at port 8080 of an address with a name and who asks.
pub(crate) fn serve(space: &Space, name: &'static str, address: &str) {
    let address: IpAddr = address.parse().expect("an address");
    let answer = move |peer: IpAddr| format!("{name} {}", peer.to_canonical());
    let (tcp, udp) = space
        .namespace
        .run(|| {
            sctp::serve(address, answer);
            (
                TcpListener::bind((address, 8080)),
                UdpSocket::bind((address, 8080)),
            )
        })
        .expect("entered");
    let (tcp, udp) = (tcp.expect("free port"), udp.expect("free port"));
    std::thread::spawn(move || answer_all(&tcp, answer));
    std::thread::spawn(move || {
        let mut buffer = [0; 8];
        while let Ok((_, peer)) = udp.recv_from(&mut buffer) {
            let _ = udp.send_to(answer(peer.ip()).as_bytes(), peer);
        }
    });
}

fn answer_all(listener: &TcpListener, answer: impl Fn(IpAddr) -> String) {
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { return };
        if let Ok(peer) = stream.peer_addr() {
            // A client that is gone needs no answer.
            let _ = stream.write_all(answer(peer.ip()).as_bytes());
        }
    }
}

/// The name of who answers, and the address it was asked from.
pub(crate) fn ask(
    protocol: Protocol,
    to: SocketAddr,
    patience: Duration,
) -> std::io::Result<(String, IpAddr)> {
    static ASKED: AtomicU16 = AtomicU16::new(0);
    // Each from a port of its own: conntrack remembers datagrams of states before.
    let seed = ASKED.fetch_add(1, Ordering::Relaxed) % 20_000;
    let text = match protocol {
        Protocol::Tcp => ask_tcp(to, patience)?,
        Protocol::Udp => ask_udp(to, patience, 40_000 + seed)?,
        Protocol::Sctp => sctp::ask(to, patience, 20_000 + seed)?,
    };
    let (name, peer) = text.split_once(' ').ok_or(ErrorKind::InvalidData)?;
    Ok((
        name.to_owned(),
        peer.parse().map_err(|_| ErrorKind::InvalidData)?,
    ))
}

fn ask_tcp(to: SocketAddr, patience: Duration) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&to, patience)?;
    stream.set_read_timeout(Some(patience))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// What the node itself sends and a rule refuses is no longer sent at all, which
/// the call says; what the refusal was is said by the next one.
pub(crate) fn refusal_may_follow(sent: std::io::Result<usize>) -> std::io::Result<()> {
    match sent {
        Err(error) if error.kind() != ErrorKind::PermissionDenied => Err(error),
        _ => Ok(()),
    }
}

fn ask_udp(to: SocketAddr, patience: Duration, port: u16) -> std::io::Result<String> {
    let any: IpAddr = match to {
        SocketAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, port))?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(AGAIN.min(patience)))?;
    let until = Instant::now() + patience;
    let mut buffer = [0; 128];
    loop {
        refusal_may_follow(socket.send(b"who"))?;
        match socket.recv(&mut buffer) {
            Ok(count) => return Ok(String::from_utf8_lossy(&buffer[..count]).into_owned()),
            Err(error)
                if matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock)
                    && Instant::now() < until => {}
            Err(error) => return Err(error),
        }
    }
}

/// All cells of a row. What gives no answer is waited for at the same time.
fn cells(mode: ProxyMode, row: &Row, protocols: &'static [Protocol]) -> Vec<Outcome> {
    let one = |(protocol, plan)| look(mode, row, protocol, plan);
    if matches!(row.rule(), Outcome::Answered(_)) {
        return columns(protocols).map(one).collect();
    }
    std::thread::scope(|scope| {
        let waiting: Vec<_> = columns(protocols)
            .map(|column| scope.spawn(move || one(column)))
            .collect();
        waiting
            .into_iter()
            .map(|cell| cell.join().expect("it does not panic"))
            .collect()
    })
}

/// Walks through all rows; a row that is wrong does not hide those behind it.
pub(crate) fn check(settings: ProxySettings, attach: Attach, protocols: &'static [Protocol]) {
    let mut stage = Stage::new(settings, attach);
    let mut report = plan::report(protocols);
    for endpoints in Endpoints::ALL {
        for policy in Policy::ALL {
            stage.tell(policy, endpoints);
            let world = &stage.world;
            // At the same time: most of it is waiting for what is dropped.
            let seen: Vec<(Row, Vec<Outcome>)> = std::thread::scope(|scope| {
                let rows: Vec<_> = Row::of(endpoints, policy)
                    .map(|row| {
                        let cells = scope.spawn(move || {
                            space(world, row.caller)
                                .namespace
                                .run(|| cells(settings.mode, &row, protocols))
                        });
                        (row, cells)
                    })
                    .collect();
                rows.into_iter()
                    .map(|(row, cells)| {
                        (
                            row,
                            cells.join().expect("it does not panic").expect("entered"),
                        )
                    })
                    .collect()
            });
            for (row, seen) in seen {
                report.add(&row, &seen);
            }
        }
    }
    let variant = match settings.iptables {
        Some(variant) => format!(" ({})", variant.name()),
        None => String::new(),
    };
    let sockets = if sctp::is_real() {
        "sockets"
    } else {
        "raw packets"
    };
    report.finish(&format!(
        "{}{variant}, pods {}, SCTP by {sockets}",
        settings.mode,
        format!("{attach:?}").to_lowercase(),
    ));
}
