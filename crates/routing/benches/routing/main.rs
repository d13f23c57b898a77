//! How fast pods on two nodes talk over each back end, beside plain routing
//! between the nodes and beside the same set up by hand with iproute2, all in
//! the same run; and how long it takes to program many peers from cold. What
//! this kernel lacks is measured in a virtual machine.
//!
//! Run as root by `cargo xtask bench routing`; everything happens in network
//! namespaces of its own. `PODWIRE_BENCH_ROUNDS` changes the rounds (20),
//! `PODWIRE_BENCH_PEERS` the peers (5,000), `PODWIRE_BENCH_BACKENDS` the back
//! ends (a list with commas; all).

mod by_hand;
mod cold;
#[path = "../../tests/common/mod.rs"]
mod common;
mod machine;
mod traffic;

use std::net::IpAddr;

use anyhow::{Context as _, ensure};
use comfy_table::{Cell, CellAlignment, Table, presets::UTF8_FULL_CONDENSED};
use common::{Cluster, ok};
use linux::namespace::NetworkNamespace;
use podwire_routing::backend::NAMES;
use podwire_routing::{Family, probe};
use traffic::Figures;

fn main() -> anyhow::Result<()> {
    let rounds = number("PODWIRE_BENCH_ROUNDS", 20)?;
    let peers = number("PODWIRE_BENCH_PEERS", 5000)?;
    let wanted = std::env::var(machine::BACKENDS).ok();
    let wanted = |name: &str| {
        let list = wanted.as_ref();
        list.is_none_or(|list| list.split(',').any(|word| word == name))
    };
    let refused = probe::lacking();
    let (lacking, able): (Vec<&str>, Vec<&str>) = NAMES
        .into_iter()
        .filter(|name| wanted(name))
        .partition(|name| refused.iter().any(|(refused, _)| refused == name));
    // Before any namespace of the other part is taken down, which goes on in
    // the background and keeps the kernel's lock.
    let cold = cold(&able, peers)?;
    let throughput = throughput(&able, rounds)?;
    if vm::in_guest() {
        ensure!(lacking.is_empty(), "the guest lacks {lacking:?}, too");
        println!("{0}\n{throughput}\n{cold}\n{0}", machine::MARK);
        return Ok(());
    }
    println!("{throughput}\n{cold}");
    if !lacking.is_empty() {
        println!(
            "This kernel lacks what {} need. In a virtual machine, whose processor is emulated by \
             software, so that only ratios within its tables say something:",
            lacking.join(" and ")
        );
        println!("{}", machine::measure(&lacking)?);
    }
    Ok(())
}

fn number(variable: &str, default: u16) -> anyhow::Result<u16> {
    match std::env::var(variable) {
        Ok(text) => text
            .parse()
            .with_context(|| format!("{variable} is not a number below 65536")),
        Err(_) => Ok(default),
    }
}

/// Who set up what is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    /// Nobody: between the nodes themselves.
    Plain,
    Podwire,
    /// An administrator with iproute2.
    Hand,
    /// The same, and the nodes' own packets get the tunnel's address: where podwire
    /// does that too.
    HandTranslating,
}

/// Two ends between which is measured.
struct Pair {
    /// Back end, or what it is.
    name: &'static str,
    by: By,
    cluster: Cluster,
    /// For pods of each family, by round.
    rounds: [Vec<Figures>; 2],
}

impl Pair {
    fn ends(&self, family: usize) -> (&NetworkNamespace, &NetworkNamespace, IpAddr) {
        let (from, to) = (&self.cluster.hosts[0], &self.cluster.hosts[1]);
        if self.by == By::Plain {
            (&from.namespace, &to.namespace, to.node.addresses[family])
        } else {
            (&from.pod, &to.pod, to.node.pods[family])
        }
    }

    fn measure(&mut self, family: usize) -> anyhow::Result<()> {
        let (from, to, address) = self.ends(family);
        let what = || format!("measuring {} to {address}", self.name);
        let figures = traffic::measure(from, to, address).with_context(what)?;
        self.rounds[family].push(figures);
        Ok(())
    }

    /// The median of all rounds.
    fn median(&self, family: usize, figure: fn(&Figures) -> f64) -> f64 {
        median(self.rounds[family].iter().map(figure))
    }

    /// The median of what it is of the other in each round: what slows the
    /// machine down for a while slows both.
    fn of(&self, other: &Pair, family: usize, figure: fn(&Figures) -> f64) -> f64 {
        let both = self.rounds[family].iter().zip(&other.rounds[family]);
        median(both.map(|(own, other)| figure(own) / figure(other)))
    }
}

/// The middle value; not a number where there is none.
fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        length if length % 2 == 0 => f64::midpoint(values[middle - 1], values[middle]),
        _ => values[middle],
    }
}

/// A figure: what it is, which, how many digits, in what unit.
type Figure = (&'static str, fn(&Figures) -> f64, usize, f64);

const FIGURES: [Figure; 3] = [
    ("one stream, Gbit/s", |figures| figures.one_stream, 2, 1e9),
    ("8 streams, Gbit/s", |figures| figures.eight_streams, 2, 1e9),
    ("requests a second", |figures| figures.requests, 0, 1.0),
];

fn throughput(able: &[&'static str], rounds: u16) -> anyhow::Result<String> {
    let mut pairs = vec![pair("plain", By::Plain, Cluster::new(2))];
    for name in able.iter().copied() {
        let mut cluster = Cluster::new(2);
        cluster.set_all(&[name]);
        cluster.apply_all();
        let plan = cluster.plan(1);
        let of = |family| plan.mtu.get(family).context("the plan has an MTU");
        let mtu = [of(Family::V4)?, of(Family::V6)?];
        limit(&cluster, mtu);
        pairs.push(pair(name, By::Podwire, cluster));
        for by in [By::Hand, By::HandTranslating] {
            if by == By::HandTranslating && name != "vxlan-multicast" {
                continue;
            }
            let mut same = Cluster::new(2);
            if by_hand::set_up(name, &mut same, mtu) {
                if by == By::HandTranslating {
                    by_hand::translate_own(&same);
                }
                limit(&same, mtu);
                pairs.push(pair(name, by, same));
            }
        }
    }
    for pair in &pairs {
        for family in 0..2 {
            let (from, _, address) = pair.ends(family);
            ok(from, &format!("ping -n -c 1 -i 0.2 -w 20 {address}"));
        }
    }
    // A thread of its own, so that what comes afterwards may use all cores.
    std::thread::scope(|scope| {
        let measuring = scope.spawn(|| -> anyhow::Result<()> {
            traffic::stay_on_one_core()?;
            for _ in 0..rounds {
                for family in 0..2 {
                    for pair in &mut pairs {
                        pair.measure(family)?;
                    }
                }
                // There and back, so that a machine that gets slower or faster
                // favours none. Those by hand stay beside theirs.
                pairs.reverse();
            }
            Ok(())
        });
        let outcome = measuring.join();
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;
    if rounds % 2 == 1 {
        pairs.reverse();
    }
    let mut text = String::new();
    for (what, figure, digits, unit) in FIGURES {
        let header = [
            "back end",
            "pods",
            what,
            "of plain",
            "of by hand",
            "of translating",
        ];
        let mut table = new_table(&header);
        for (index, family) in Family::BOTH.into_iter().enumerate() {
            for pair in pairs
                .iter()
                .filter(|pair| matches!(pair.by, By::Plain | By::Podwire))
            {
                let ratio = |by: By| {
                    let mut others = pairs.iter().filter(|other| other.by == by);
                    let other = others.find(|other| by == By::Plain || other.name == pair.name);
                    let ratio = other.map(|other| pair.of(other, index, figure));
                    right(ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}")))
                };
                table.add_row([
                    Cell::new(pair.name),
                    Cell::new(family),
                    right(format!("{:.digits$}", pair.median(index, figure) / unit)),
                    ratio(By::Plain),
                    ratio(By::Hand),
                    ratio(By::HandTranslating),
                ]);
            }
        }
        text.push_str(&format!("{table}\n"));
    }
    Ok(format!(
        "{text}TCP from a pod on one node to a pod on another, all on one core. Plain: between the \
         nodes\nthemselves. By hand: set up with iproute2; translating: and a rule that gives the \
         nodes' own\npackets the tunnel's address, as podwire's does there. Medians of {rounds} rounds in \
         turn; of a ratio,\nof the rounds' ratios."
    ))
}

fn pair(name: &'static str, by: By, cluster: Cluster) -> Pair {
    Pair {
        name,
        by,
        cluster,
        rounds: [Vec::new(), Vec::new()],
    }
}

/// Gives the pods the MTU they would be attached with: the less of both families'.
fn limit(cluster: &Cluster, mtu: [u32; 2]) {
    let mtu = mtu[0].min(mtu[1]);
    for host in &cluster.hosts {
        host.ip(&format!("link set pwpod0 mtu {mtu}"));
        ok(&host.pod, &format!("ip link set eth0 mtu {mtu}"));
    }
}

fn cold(able: &[&'static str], peers: u16) -> anyhow::Result<String> {
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
    Ok(format!(
        "{table}\n{peers} peers with a range of each family (static: and a pod of each)."
    ))
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
