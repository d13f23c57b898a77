//! The same kernel objects, by bare netlink calls one after another.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::{Duration, Instant},
};

use anyhow::Context;
use ipnet::IpNet;
use linux::{
    address::{self, Address},
    link::{self, Bridge, VethEnd},
    namespace::NetworkNamespace,
    netlink::Socket,
    nftables::{Batch, DataType, Element, Family, Nftables, Set},
    route::{self, Route},
};

/// Makes the namespaces, links, addresses and routes of a cluster, with a
/// route from each node to each other node's ranges, and says how long that took.
pub(crate) fn cluster(nodes: usize, pods: usize) -> anyhow::Result<Duration> {
    let start = Instant::now();
    let mut switch = Switch::new()?;
    let mut made = Vec::new();
    for number in 0..nodes {
        made.push(Node::new(&mut switch, number, nodes)?);
    }
    for number in 0..pods {
        let node = number % nodes;
        made[node].add_pod(number / nodes)?;
    }
    Ok(start.elapsed())
}

/// One more node on an empty switch.
pub(crate) fn one_node() -> anyhow::Result<Duration> {
    let mut switch = Switch::new()?;
    let start = Instant::now();
    let node = Node::new(&mut switch, 0, 3)?;
    let took = start.elapsed();
    drop(node);
    Ok(took)
}

/// One more pod on a node.
pub(crate) fn one_pod() -> anyhow::Result<Duration> {
    let mut switch = Switch::new()?;
    let mut node = Node::new(&mut switch, 0, 2)?;
    let start = Instant::now();
    node.add_pod(0)?;
    Ok(start.elapsed())
}

/// Three elements in a data map (a frontend and two backends) as one batch.
pub(crate) fn one_service() -> anyhow::Result<Duration> {
    NetworkNamespace::create()?.run(|| {
        let mut nftables = Nftables::open()?;
        let mut batch = Batch::new(Family::Inet, "floor", None);
        batch.add_table();
        batch.add_set(&Set::map(
            "frontends",
            &[DataType::Ipv4Address],
            &[DataType::Ipv4Address],
        ));
        nftables.commit(batch)?;
        let start = Instant::now();
        let mut batch = Batch::new(Family::Inet, "floor", None);
        let elements =
            [1u8, 2, 3].map(|last| Element::pair(vec![10, 96, 0, last], vec![10, 200, 0, last]));
        batch.add_elements("frontends", &elements);
        nftables.commit(batch)?;
        Ok(start.elapsed())
    })?
}

/// The median of several takes.
pub(crate) fn median(
    rounds: usize,
    mut take: impl FnMut() -> anyhow::Result<Duration>,
) -> anyhow::Result<Duration> {
    let mut all = (0..rounds).map(|_| take()).collect::<Result<Vec<_>, _>>()?;
    all.sort();
    all.get(rounds / 2).copied().context("no rounds")
}

struct Switch {
    socket: Socket,
    bridge: u32,
}

impl Switch {
    fn new() -> anyhow::Result<Self> {
        let namespace = NetworkNamespace::create()?;
        let mut socket = namespace.route_socket()?;
        socket.execute(&link::add_bridge(&Bridge {
            name: "br0",
            ..Bridge::default()
        }))?;
        let bridge = index(&mut socket, "br0")?;
        Ok(Self { socket, bridge })
    }
}

struct Node {
    socket: Socket,
    number: usize,
    /// Kept alive as a cluster's pods would be.
    pods: Vec<NetworkNamespace>,
}

impl Node {
    fn new(switch: &mut Switch, number: usize, nodes: usize) -> anyhow::Result<Self> {
        let namespace = NetworkNamespace::create()?;
        let mut socket = namespace.route_socket()?;
        let name = format!("node{number}");
        switch.socket.execute(&link::add_veth(
            &VethEnd {
                name: &name,
                ..VethEnd::default()
            },
            Some(switch.bridge),
            &VethEnd {
                name: "eth0",
                namespace: Some(&namespace),
                ..VethEnd::default()
            },
        ))?;
        let (lo, eth0) = (index(&mut socket, "lo")?, index(&mut socket, "eth0")?);
        let mut requests = vec![link::set_up(lo), link::set_up(eth0)];
        for address in node_addresses(number) {
            requests.push(address::add(&Address::new(eth0, address)));
        }
        for peer in (0..nodes).filter(|peer| *peer != number) {
            for (range, via) in pod_ranges(peer).into_iter().zip(node_addresses(peer)) {
                requests.push(route::add(&Route::to(range).via(via.addr()).dev(eth0)));
            }
        }
        socket.execute_all(&requests)?;
        Ok(Self {
            socket,
            number,
            pods: Vec::new(),
        })
    }

    /// A pod attached by a veth with a host route, as `--attach routed` does.
    fn add_pod(&mut self, slot: usize) -> anyhow::Result<()> {
        let pod = NetworkNamespace::create()?;
        let name = format!("pw{slot}");
        self.socket.execute(&link::add_veth(
            &VethEnd {
                name: &name,
                ..VethEnd::default()
            },
            None,
            &VethEnd {
                name: "eth0",
                namespace: Some(&pod),
                ..VethEnd::default()
            },
        ))?;
        let near = index(&mut self.socket, &name)?;
        let mut socket = pod.route_socket()?;
        let (lo, eth0) = (index(&mut socket, "lo")?, index(&mut socket, "eth0")?);
        let addresses = pod_addresses(self.number, slot);
        let mut requests = vec![link::set_up(lo), link::set_up(eth0)];
        requests.extend(addresses.map(|ip| address::add(&Address::new(eth0, ip.into()))));
        for everything in ["0.0.0.0/0", "::/0"] {
            let everything: IpNet = everything.parse().context("a constant")?;
            requests.push(route::add(&Route::to(everything).dev(eth0)));
        }
        socket.execute_all(&requests)?;
        let routes = addresses.map(|ip| route::add(&Route::to(ip.into()).dev(near)));
        self.socket.execute_all(&routes)?;
        self.pods.push(pod);
        Ok(())
    }
}

fn index(socket: &mut Socket, name: &str) -> anyhow::Result<u32> {
    Ok(link::get(socket, name)?
        .with_context(|| format!("link {name} is gone"))?
        .index)
}

fn number16(number: usize) -> u16 {
    u16::try_from(number).unwrap_or(u16::MAX)
}

fn node_addresses(node: usize) -> [IpNet; 2] {
    let n = number16(node);
    let v4 = Ipv4Addr::new(192, 168, 64u8.wrapping_add((n >> 8) as u8), (n & 255) as u8);
    let v6 = Ipv6Addr::new(0xfd00, 0x64, 0, 0, 0, 0, 1, n);
    [net(v4.into(), 18), net(v6.into(), 64)]
}

fn pod_ranges(node: usize) -> [IpNet; 2] {
    let n = number16(node);
    [
        net(Ipv4Addr::new(10, 200, (n & 255) as u8, 0).into(), 24),
        net(Ipv6Addr::new(0xfd00, 0x200, 0, n, 0, 0, 0, 0).into(), 64),
    ]
}

fn pod_addresses(node: usize, slot: usize) -> [IpAddr; 2] {
    let (n, s) = (number16(node), number16(slot + 2));
    [
        Ipv4Addr::new(10, 200, (n & 255) as u8, (s & 255) as u8).into(),
        Ipv6Addr::new(0xfd00, 0x200, 0, n, 0, 0, 0, s).into(),
    ]
}

fn net(address: IpAddr, prefix: u8) -> IpNet {
    IpNet::new_assert(address, prefix)
}
