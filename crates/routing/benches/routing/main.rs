//! How fast pods on two nodes talk over each back end, beside plain routing
//! between the nodes and beside the same set up by hand with iproute2, all in
//! the same run; and how long it takes to program many peers from cold.
//!
//! Run as root by `cargo xtask bench routing`; everything happens in network
//! namespaces of its own. `PODWIRE_BENCH_ROUNDS` changes the rounds (5),
//! `PODWIRE_BENCH_PEERS` the peers (5,000).

mod by_hand;
mod cold;
#[path = "../../tests/common/mod.rs"]
mod common;
mod traffic;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, ensure};
use comfy_table::{Cell, CellAlignment, Table, presets::UTF8_FULL_CONDENSED};
use common::{Cluster, ok};
use linux::namespace::NetworkNamespace;
use podwire_routing::backend::{Families, NAMES, by_name};
use podwire_routing::{Family, Node, Settings, probe};
use traffic::Best;

fn main() -> anyhow::Result<()> {
    let rounds = number("PODWIRE_BENCH_ROUNDS", 5)?;
    let peers = number("PODWIRE_BENCH_PEERS", 5000)?;
    let (able, lacking): (Vec<&str>, Vec<&str>) = NAMES.into_iter().partition(|name| able(name));
    throughput(&able, &lacking, rounds)?;
    cold(&able, &lacking, peers)
}

fn number(variable: &str, default: u16) -> anyhow::Result<u16> {
    match std::env::var(variable) {
        Ok(text) => text
            .parse()
            .with_context(|| format!("{variable} is not a number below 65536")),
        Err(_) => Ok(default),
    }
}

/// Whether this kernel can do it: a device of each kind is made and removed.
fn able(name: &str) -> bool {
    let Ok(namespace) = NetworkNamespace::create() else {
        return false;
    };
    let settings = Settings {
        wireguard: cold::wireguard(&namespace),
        ..Settings::default()
    };
    let both = Node {
        addresses: vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
        ..Node::default()
    };
    by_name(name, &settings)
        .is_some_and(|backend| probe::probe(backend, Families::of(&both)).is_ok())
}

/// Two ends between which is measured.
struct Pair {
    /// Back end, or what it is.
    name: &'static str,
    by_hand: bool,
    cluster: Cluster,
    between_nodes: bool,
    best: Best,
}

impl Pair {
    fn ends(&self) -> (&NetworkNamespace, &NetworkNamespace, IpAddr) {
        let (from, to) = (&self.cluster.hosts[0], &self.cluster.hosts[1]);
        if self.between_nodes {
            (&from.namespace, &to.namespace, to.node.addresses[0])
        } else {
            (&from.pod, &to.pod, to.node.pods[0])
        }
    }

    fn measure(&mut self) -> anyhow::Result<()> {
        let (from, to, address) = self.ends();
        let what = || format!("measuring {} to {address}", self.name);
        let figures = traffic::measure(from, to, address).with_context(what)?;
        self.best.improve(figures);
        Ok(())
    }
}

/// A figure of the table: which, how many digits, in what unit.
type Figure = (fn(&Best) -> f64, usize, f64);

const FIGURES: [Figure; 3] = [
    (|best| best.one_stream, 2, 1e9),
    (|best| best.eight_streams, 2, 1e9),
    (|best| best.requests, 0, 1.0),
];

fn throughput(able: &[&'static str], lacking: &[&str], rounds: u16) -> anyhow::Result<()> {
    let mut pairs = vec![Pair {
        name: "plain",
        by_hand: false,
        cluster: Cluster::new(2),
        between_nodes: true,
        best: Best::default(),
    }];
    for name in able.iter().copied() {
        let mut cluster = Cluster::new(2);
        cluster.set_all(&[name]);
        cluster.apply_all();
        let mtu = cluster.plan(1).mtu.get(Family::V4);
        let mtu = mtu.context("the plan has an MTU for IPv4")?;
        limit(&cluster, mtu);
        pairs.push(pair(name, false, cluster));
        let mut same = Cluster::new(2);
        if by_hand::set_up(name, &mut same, mtu) {
            limit(&same, mtu);
            pairs.push(pair(name, true, same));
        }
    }
    for pair in pairs.iter().filter(|pair| !pair.between_nodes) {
        let (from, _, address) = pair.ends();
        ok(from, &format!("ping -n -c 1 -i 0.2 -w 20 {address}"));
    }
    for round in 0..rounds {
        for pair in &mut pairs {
            pair.measure()?;
            if round == 0 {
                eprintln!("{}, by hand {}: {:?}", pair.name, pair.by_hand, pair.best);
            }
        }
    }
    let mut table = new_table(&[
        "back end",
        "1 stream Gbit/s",
        "of plain",
        "of by hand",
        "8 streams Gbit/s",
        "of plain",
        "of by hand",
        "requests /s",
        "of plain",
        "of by hand",
    ]);
    let plain = pairs.first().context("the plain pair")?.best;
    ensure!(plain.requests > 0.0, "nothing passes between the nodes");
    for pair in pairs.iter().filter(|pair| !pair.by_hand) {
        let by_hand = pairs.iter().find(|p| p.by_hand && p.name == pair.name);
        let mut row = vec![if pair.between_nodes {
            Cell::new("plain, node to node")
        } else {
            Cell::new(pair.name)
        }];
        for (figure, digits, unit) in FIGURES {
            let own = figure(&pair.best);
            row.push(right(format!("{:.digits$}", own / unit)));
            row.push(right(format!("{:.2}", own / figure(&plain))));
            row.push(right(by_hand.map_or_else(
                || "-".to_owned(),
                |other| format!("{:.2}", own / figure(&other.best)),
            )));
        }
        table.add_row(row);
    }
    for name in lacking {
        table.add_row([*name, "this kernel lacks it"]);
    }
    println!("{table}");
    println!(
        "TCP over IPv4 from a pod on one node to a pod on another; plain: between the nodes \
         themselves. Best of {rounds} rounds in turn."
    );
    Ok(())
}

fn pair(name: &'static str, by_hand: bool, cluster: Cluster) -> Pair {
    Pair {
        name,
        by_hand,
        cluster,
        between_nodes: false,
        best: Best::default(),
    }
}

/// Gives the pods the MTU they would be attached with.
fn limit(cluster: &Cluster, mtu: u32) {
    for host in &cluster.hosts {
        host.ip(&format!("link set pwpod0 mtu {mtu}"));
        ok(&host.pod, &format!("ip link set eth0 mtu {mtu}"));
    }
}

fn cold(able: &[&'static str], lacking: &[&str], peers: u16) -> anyhow::Result<()> {
    let mut table = new_table(&[
        "back end",
        "entries",
        "plan ms",
        "from cold ms",
        "of it CPU ms",
        "as many bare routes ms",
        "one peer less ms",
        "requests",
        "adopt ms",
    ]);
    for name in able {
        let row = cold::measure(name, peers).with_context(|| format!("programming {name}"))?;
        eprintln!("{name}: {row:?}");
        table.add_row([
            Cell::new(name),
            right(row.entries.to_string()),
            right(ms(row.planned)),
            right(ms(row.cold)),
            right(ms(row.cpu)),
            right(ms(row.floor)),
            right(ms(row.one)),
            right(row.requests.to_string()),
            right(ms(row.adopt)),
        ]);
    }
    for name in lacking {
        table.add_row([*name, "this kernel lacks it"]);
    }
    println!("{table}");
    println!("{peers} peers with a range of each family (static: and a pod of each).");
    Ok(())
}

fn new_table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_preset(UTF8_FULL_CONDENSED)
        .set_header(header.iter().copied());
    table
}

fn right(text: String) -> Cell {
    Cell::new(text).set_alignment(CellAlignment::Right)
}

fn ms(time: std::time::Duration) -> String {
    format!("{:.1}", time.as_secs_f64() * 1000.0)
}
