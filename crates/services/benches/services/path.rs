//! What a Service costs on the way of packets: connections, a stream, requests.
//!
//! Each node is a namespace of its own with two pods on routed links; all of
//! them are there at once. What is compared is measured in turn in short rounds,
//! everything on one core, and compared within each round: a machine is not as
//! fast in one minute as in the next.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use linux::namespace::NetworkNamespace;
use podwire_services::Proxy;
use rustix::thread::{CpuSet, sched_setaffinity};
use socket2::{Domain, Protocol, Socket, Type};

use crate::cluster::{self, ENDPOINTS, PORT, TARGET_PORT};
use crate::show::Times;
use crate::world::{Attach, World};

/// Rounds of each figure.
const ROUNDS: usize = 31;
/// Connections in a round.
const CONNECTIONS: usize = 400;
/// Length of a round of a stream and of requests.
const WINDOW: Duration = Duration::from_millis(100);

/// What is between the two pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rules {
    /// A single rule made by hand.
    ByHand,
    /// podwire with so many Services.
    Podwire(usize),
}

/// A node with a client and a server.
struct Node {
    rules: Rules,
    world: World,
    listener: TcpListener,
    service: SocketAddr,
}

/// The server's addresses: one for each endpoint of the Service.
fn servers() -> [Ipv4Addr; ENDPOINTS] {
    [0, 1, 2].map(|index| Ipv4Addr::new(10, 200, 1, 100 + index))
}

impl Node {
    fn new(rules: Rules) -> anyhow::Result<Self> {
        let world = World::with(Attach::Routed, 2);
        for server in servers() {
            world.pods[1].ip(&format!("addr add {server}/32 dev eth0"));
            world.node.ip(&format!("route add {server}/32 dev pw1"));
        }
        let listener = world.pods[1]
            .namespace
            .run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, TARGET_PORT)))??;
        let number = match rules {
            Rules::ByHand => {
                let (address, server) = (cluster::address(0), servers()[0]);
                for command in [
                    "add table ip hand".to_owned(),
                    "add chain ip hand prerouting { type nat hook prerouting priority dstnat; }"
                        .to_owned(),
                    format!(
                        "add rule ip hand prerouting ip daddr {address} tcp dport {PORT} \
                         dnat to {server}:{TARGET_PORT}"
                    ),
                ] {
                    world.nft(&[&command]);
                }
                0
            }
            Rules::Podwire(services) => {
                let last = services - 1;
                let facts = world.facts();
                // The rules stay when the proxy is gone.
                world.node.namespace.run(|| {
                    let mut proxy = Proxy::start(facts)?;
                    cluster::tell(&mut proxy, services);
                    proxy.endpoint_slice_changed(&cluster::slice(last, servers()));
                    proxy.sync()
                })??;
                last
            }
        };
        Ok(Self {
            rules,
            world,
            listener,
            service: SocketAddr::new(cluster::address(number).into(), PORT),
        })
    }

    fn client(&self) -> &NetworkNamespace {
        &self.world.pods[0].namespace
    }
}

/// Through the Service, and directly to one of its endpoints on the same node.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Both<T> {
    pub(crate) through: T,
    pub(crate) direct: T,
}

/// Figures of one node, each by round.
#[derive(Debug)]
pub(crate) struct Figures {
    pub(crate) rules: Rules,
    /// From the first packet to an established connection, in seconds: the
    /// median of a round.
    pub(crate) connect: Vec<Both<f64>>,
    /// Bits a second of one stream.
    pub(crate) stream: Vec<Both<f64>>,
    /// Requests a second on one connection.
    pub(crate) requests: Vec<Both<f64>>,
}

/// Measures nodes with these rules.
pub(crate) fn measure(rules: &[Rules]) -> anyhow::Result<Vec<Figures>> {
    let nodes = rules
        .iter()
        .map(|rules| Node::new(*rules).with_context(|| format!("making a node with {rules:?}")))
        .collect::<anyhow::Result<Vec<Node>>>()?;
    // Threads made from here on stay there too.
    let mut core = CpuSet::new();
    core.set(0);
    let before = rustix::thread::sched_getaffinity(None)?;
    sched_setaffinity(None, &core)?;
    let figures = rounds(&nodes);
    sched_setaffinity(None, &before)?;
    figures
}

fn rounds(nodes: &[Node]) -> anyhow::Result<Vec<Figures>> {
    let mut figures: Vec<Figures> = nodes
        .iter()
        .map(|node| Figures {
            rules: node.rules,
            connect: Vec::new(),
            stream: Vec::new(),
            requests: Vec::new(),
        })
        .collect();
    for round in 0..ROUNDS {
        // All nodes' connections before the rest: they are compared too.
        for (node, figures) in nodes.iter().zip(&mut figures) {
            let connect = both(node, round, |node, target| {
                Ok(connections(node, target)?.median.as_secs_f64())
            })?;
            figures.connect.push(connect);
        }
        for (node, figures) in nodes.iter().zip(&mut figures) {
            figures.stream.push(both(node, round, stream)?);
            figures.requests.push(both(node, round, requests)?);
        }
    }
    Ok(figures)
}

/// Measures through the Service and directly; which of them comes first changes
/// from round to round.
fn both(
    node: &Node,
    round: usize,
    measure: impl Fn(&Node, SocketAddr) -> anyhow::Result<f64>,
) -> anyhow::Result<Both<f64>> {
    let target = SocketAddr::new(IpAddr::V4(servers()[0]), TARGET_PORT);
    if round.is_multiple_of(2) {
        let through = measure(node, node.service)?;
        let direct = measure(node, target)?;
        return Ok(Both { through, direct });
    }
    let direct = measure(node, target)?;
    let through = measure(node, node.service)?;
    Ok(Both { through, direct })
}

/// Connects again and again. The kernel does all of a handshake within the
/// client's call, so one thread is enough.
fn connections(node: &Node, target: SocketAddr) -> anyhow::Result<Times> {
    let times = node.client().run(|| {
        let mut times = Vec::with_capacity(CONNECTIONS);
        for _ in 0..CONNECTIONS {
            let socket = Socket::new(
                Domain::for_address(target),
                Type::STREAM,
                Some(Protocol::TCP),
            )?;
            // Ended by a reset, which leaves no closed socket behind.
            socket.set_linger(Some(Duration::ZERO))?;
            let started = Instant::now();
            socket.connect_timeout(&target.into(), Duration::from_secs(5))?;
            times.push(started.elapsed());
            let (accepted, _) = node.listener.accept()?;
            drop(socket);
            drop(accepted);
        }
        Ok::<_, std::io::Error>(times)
    })?;
    Ok(Times::of(times.with_context(|| {
        format!("connecting to {target} with {:?}", node.rules)
    })?))
}

/// A connection and its far end.
fn connect(node: &Node, target: SocketAddr) -> anyhow::Result<(TcpStream, TcpStream)> {
    let near = node
        .client()
        .run(|| TcpStream::connect_timeout(&target, Duration::from_secs(5)))?
        .with_context(|| format!("connecting to {target} with {:?}", node.rules))?;
    let (far, _) = node.listener.accept()?;
    for end in [&near, &far] {
        end.set_nodelay(true)?;
        end.set_read_timeout(Some(Duration::from_secs(5)))?;
        end.set_write_timeout(Some(Duration::from_secs(5)))?;
    }
    Ok((near, far))
}

/// Bits a second that arrive.
fn stream(node: &Node, target: SocketAddr) -> anyhow::Result<f64> {
    let (mut near, mut far) = connect(node, target)?;
    let (arrived, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let sink = scope.spawn(|| -> std::io::Result<()> {
            let mut buffer = vec![0; 1 << 18];
            loop {
                match far.read(&mut buffer)? {
                    0 => return Ok(()),
                    length => arrived.fetch_add(length as u64, Ordering::Relaxed),
                };
            }
        });
        let (arrived, stop) = (&arrived, &stop);
        let source = scope.spawn(move || -> std::io::Result<()> {
            let buffer = vec![0; 1 << 17];
            while !stop.load(Ordering::Relaxed) {
                near.write_all(&buffer)?;
            }
            Ok(())
        });
        std::thread::sleep(WINDOW / 4);
        let (started, before) = (Instant::now(), arrived.load(Ordering::Relaxed));
        std::thread::sleep(WINDOW);
        let bytes = arrived.load(Ordering::Relaxed) - before;
        let rate = bytes as f64 * 8.0 / started.elapsed().as_secs_f64();
        stop.store(true, Ordering::Relaxed);
        for thread in [source, sink] {
            thread
                .join()
                .map_err(|_| anyhow::anyhow!("a thread panicked"))??;
        }
        Ok(rate)
    })
}

/// Requests of one byte answered with one byte, one at a time, a second.
fn requests(node: &Node, target: SocketAddr) -> anyhow::Result<f64> {
    let (mut near, mut far) = connect(node, target)?;
    std::thread::scope(|scope| {
        let answering = scope.spawn(move || -> std::io::Result<()> {
            let mut byte = [0];
            while far.read(&mut byte)? > 0 {
                far.write_all(&byte)?;
            }
            Ok(())
        });
        let (started, mut count) = (Instant::now(), 0_u32);
        let mut byte = [0];
        while started.elapsed() < WINDOW {
            near.write_all(&byte)?;
            near.read_exact(&mut byte)?;
            count += 1;
        }
        let rate = f64::from(count) / started.elapsed().as_secs_f64();
        drop(near);
        answering
            .join()
            .map_err(|_| anyhow::anyhow!("a thread panicked"))??;
        Ok(rate)
    })
}
