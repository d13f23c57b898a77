//! How fast pods on two nodes talk over each back end, beside plain routing
//! between the nodes and beside the same set up by hand with iproute2, all in
//! the same run; and how long it takes to program many peers from cold. What
//! this kernel lacks is measured in a virtual machine.
//!
//! Run as root by `cargo xtask bench routing`, which builds the programs and
//! names the binary in `PODWIRE_BIN`. Nodes are those of labs of its own, those
//! set up by hand bare network namespaces. `PODWIRE_BENCH_ROUNDS` changes the
//! rounds (30; in the virtual machine 9 at most; with 0 only the programming of peers is
//! measured), `PODWIRE_BENCH_PEERS` the peers (5,000; there 1,000 at most), `PODWIRE_BENCH_BACKENDS` the back ends (a list with commas; all).
//! With `PODWIRE_BENCH_INSTRUCTIONS=1` all of them are measured in the virtual machine,
//! whose clock counts instructions: ratios that differ little from run to run.

mod by_hand;
mod cold;
#[path = "../../tests/common/mod.rs"]
mod common;
mod lab;
mod machine;
mod stop;
mod traffic;

use std::net::IpAddr;

use anyhow::{Context as _, ensure};
use comfy_table::{Cell, CellAlignment, Table, presets::UTF8_FULL_CONDENSED};
use common::{Cluster, ok};
use lab::{End, Lab, Packets};
use linux::namespace::NetworkNamespace;
use podwire_routing::backend::NAMES;
use podwire_routing::{Family, probe};
use traffic::Figures;

fn main() -> anyhow::Result<()> {
    stop::watch()?;
    let rounds = number("PODWIRE_BENCH_ROUNDS", 30)?;
    let peers = number("PODWIRE_BENCH_PEERS", 5000)?;
    let wanted = std::env::var(machine::BACKENDS).ok();
    let wanted = |name: &str| {
        let list = wanted.as_ref();
        list.is_none_or(|list| list.split(',').any(|word| word == name))
    };
    let refused = probe::lacking();
    let instructions =
        !vm::in_guest() && std::env::var("PODWIRE_BENCH_INSTRUCTIONS").is_ok_and(|is| is == "1");
    let (elsewhere, able): (Vec<&str>, Vec<&str>) = NAMES
        .into_iter()
        .filter(|name| wanted(name))
        .partition(|name| instructions || refused.iter().any(|(refused, _)| refused == name));
    if !able.is_empty() {
        // Before any namespace of the other part is taken down, which goes on in
        // the background and keeps the kernel's lock.
        let cold = cold(&able, peers)?;
        let throughput = match rounds {
            0 => String::new(),
            rounds => throughput(&able, rounds)?,
        };
        let measured = format!("{throughput}\n{cold}");
        if vm::in_guest() {
            ensure!(elsewhere.is_empty(), "the guest lacks {elsewhere:?}, too");
            println!("{0}\n{measured}\n{0}", machine::MARK);
            return Ok(());
        }
        println!("{measured}");
    }
    if !elsewhere.is_empty() {
        println!(
            "{}, in a virtual machine, whose processor is emulated by software and whose clock \
             counts instructions, so that only ratios within its tables say something:",
            elsewhere.join(" and ")
        );
        println!("{}", machine::measure(&elsewhere, rounds, peers)?);
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

/// What is between the two ends that are measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// The underlay alone: the ends are the lab's nodes themselves.
    Plain,
    /// All that podwire has: the ends are pods, as below.
    FastPath,
    /// podwire without the fast path.
    Stack,
    /// What an administrator sets up with iproute2 for the same pods.
    Hand,
    /// The same on nodes that track connections, as each node with Services does.
    HandTracking,
}

impl Way {
    const ALL: [Way; 5] = [
        Way::Plain,
        Way::FastPath,
        Way::Stack,
        Way::Hand,
        Way::HandTracking,
    ];

    const fn name(self) -> &'static str {
        match self {
            Way::Plain => "plain, node to node",
            Way::FastPath => "podwire",
            Way::Stack => "podwire, fast path off",
            Way::Hand => "by hand",
            Way::HandTracking => "by hand, tracking",
        }
    }
}

/// Two ends between which is measured.
struct Pair {
    backend: &'static str,
    way: Way,
    from: NetworkNamespace,
    to: NetworkNamespace,
    /// Addresses of the latter, IPv4 first.
    addresses: [IpAddr; 2],
    /// By family and round.
    rounds: [Vec<Figures>; 2],
}

impl Pair {
    fn measure(&mut self, family: usize) -> anyhow::Result<()> {
        let address = self.addresses[family];
        let what = || {
            format!(
                "measuring {}, {}, to {address}",
                self.backend,
                self.way.name()
            )
        };
        let figures = traffic::measure(&self.from, &self.to, address).with_context(what)?;
        self.rounds[family].push(figures);
        Ok(())
    }

    /// The median of all rounds.
    fn median(&self, family: usize, figure: fn(&Figures) -> f64) -> f64 {
        let [_, median, _] = quartiles(self.rounds[family].iter().map(figure));
        median
    }

    /// What it is of the other in each round: what slows the machine down for a
    /// while slows both.
    fn of(&self, other: &Pair, family: usize, figure: fn(&Figures) -> f64) -> [f64; 3] {
        let both = self.rounds[family].iter().zip(&other.rounds[family]);
        quartiles(both.map(|(own, other)| figure(own) / figure(other)))
    }
}

/// The lower quartile, the median and the upper one; not numbers where there is
/// nothing.
fn quartiles(values: impl Iterator<Item = f64>) -> [f64; 3] {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let Some(last) = values.len().checked_sub(1) else {
        return [f64::NAN; 3];
    };
    [1, 2, 3].map(|quarter| {
        let (below, rest) = (last * quarter / 4, last * quarter % 4);
        let above = (below + 1).min(last);
        values[below] + (values[above] - values[below]) * rest as f64 / 4.0
    })
}

/// A figure: what it is, which, how many digits, in what unit.
type Figure = (&'static str, fn(&Figures) -> f64, usize, f64);

const FIGURES: [Figure; 3] = [
    ("one stream, Gbit/s", |figures| figures.one_stream, 2, 1e9),
    ("8 streams, Gbit/s", |figures| figures.eight_streams, 2, 1e9),
    ("requests a second", |figures| figures.requests, 0, 1.0),
];

/// What is measured, and what goes when this does: labs with their back ends, and
/// what was set up by hand.
#[derive(Default)]
struct Stage {
    pairs: Vec<Pair>,
    /// Those with the fast path, and the others.
    fast: Vec<(&'static str, Lab)>,
    stack: Vec<Lab>,
    by_hand: Vec<Cluster>,
}

impl Stage {
    fn add(&mut self, backend: &'static str, way: Way, from: &NetworkNamespace, to: End) {
        self.pairs.push(Pair {
            backend,
            way,
            from: from.clone(),
            to: to.namespace,
            addresses: to.addresses,
            rounds: [Vec::new(), Vec::new()],
        });
    }

    /// All ways of a back end.
    fn set_up(&mut self, backend: &'static str) -> anyhow::Result<()> {
        stop::check()?;
        let (lab, ends) = Lab::up(backend, "auto")?;
        self.fast.push((backend, lab));
        let [from, to] = ends.nodes;
        self.add(backend, Way::Plain, &from.namespace, to);
        let [from, to] = ends.pods;
        self.add(backend, Way::FastPath, &from.namespace, to);
        let mtu = ends.mtu;

        stop::check()?;
        let (lab, ends) = Lab::up(backend, "off")?;
        self.stack.push(lab);
        let [from, to] = ends.pods;
        self.add(backend, Way::Stack, &from.namespace, to);

        for way in [Way::Hand, Way::HandTracking] {
            stop::check()?;
            let mut cluster = Cluster::new(2);
            cluster.set_all(&[backend]);
            let plan = cluster.plan(1);
            let of = |family| plan.mtu.get(family).context("the plan has an MTU");
            let tunnel = [of(Family::V4)?, of(Family::V6)?];
            ensure!(
                tunnel[0].min(tunnel[1]) == mtu,
                "the lab's pods have an MTU of {mtu}, planned are {tunnel:?}"
            );
            if !by_hand::set_up(backend, &mut cluster, tunnel) {
                return Ok(());
            }
            if way == Way::HandTracking {
                by_hand::track(&cluster);
                if backend == "vxlan-multicast" {
                    by_hand::translate_own(&cluster);
                }
            }
            limit(&cluster, mtu);
            let [from, to] = &cluster.hosts[..] else {
                anyhow::bail!("a cluster of two has two nodes");
            };
            let to = End {
                namespace: to.pod.clone(),
                addresses: [to.node.pods[0], to.node.pods[1]],
            };
            let from = from.pod.clone();
            self.add(backend, way, &from, to);
            self.by_hand.push(cluster);
        }
        Ok(())
    }

    fn find(&self, backend: &str, way: Way) -> Option<&Pair> {
        let mut found = self.pairs.iter();
        found.find(|pair| pair.backend == backend && pair.way == way)
    }

    /// A row for each way of each back end.
    fn table(&self, able: &[&'static str], (what, figure, digits, unit): Figure) -> Table {
        let header = [
            "back end",
            "family",
            "way",
            what,
            "of plain",
            "of by hand",
            "of tracking",
        ];
        let mut table = new_table(&header);
        for (index, family) in Family::BOTH.into_iter().enumerate() {
            for backend in able {
                let of_backend = Way::ALL.iter().filter_map(|way| self.find(backend, *way));
                for pair in of_backend {
                    let ratio = |way: Way| {
                        let other = self
                            .find(backend, way)
                            .filter(|other| other.way != pair.way);
                        let ratio = other.map(|other| pair.of(other, index, figure));
                        right(ratio.map_or_else(
                            || "-".to_owned(),
                            |[low, middle, high]| format!("{middle:.2} ({low:.2}–{high:.2})"),
                        ))
                    };
                    table.add_row([
                        Cell::new(backend),
                        Cell::new(family),
                        Cell::new(pair.way.name()),
                        right(format!("{:.digits$}", pair.median(index, figure) / unit)),
                        ratio(Way::Plain),
                        ratio(Way::Hand),
                        ratio(Way::HandTracking),
                    ]);
                }
            }
        }
        table
    }

    /// What the fast path took, a line for each back end.
    fn fast_path(&self) -> anyhow::Result<String> {
        let share = |packets: Packets| match packets.all {
            0 => "none".to_owned(),
            all => format!("{:.2} %", 100.0 * packets.fast as f64 / all as f64),
        };
        let mut text = String::new();
        for (backend, lab) in &self.fast {
            text.push_str(&match lab.fast_path()? {
                Ok([from, to]) => format!(
                    "  {backend}: {} on their way from pods, {} on their way to pods\n",
                    share(from),
                    share(to)
                ),
                Err(why) => format!("  {backend}: {why}\n"),
            });
        }
        Ok(text)
    }
}

fn throughput(able: &[&'static str], rounds: u16) -> anyhow::Result<String> {
    let mut stage = Stage::default();
    for backend in able {
        stage.set_up(backend)?;
    }
    for pair in &stage.pairs {
        for address in pair.addresses {
            ok(&pair.from, &format!("ping -n -c 1 -i 0.2 -w 20 {address}"));
        }
    }
    let pairs = &mut stage.pairs;
    // A thread of its own, so that what comes afterwards may use all cores.
    std::thread::scope(|scope| {
        let measuring = scope.spawn(|| -> anyhow::Result<()> {
            traffic::stay_on_one_core()?;
            for _ in 0..rounds {
                for family in 0..2 {
                    for pair in &mut *pairs {
                        stop::check()?;
                        pair.measure(family)?;
                    }
                }
                // There and back, so that a machine that gets slower or faster
                // favours none. All ways of a back end stay beside each other.
                pairs.reverse();
            }
            Ok(())
        });
        let outcome = measuring.join();
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;
    let mut text = String::new();
    for figure in FIGURES {
        text.push_str(&format!("{}\n", stage.table(able, figure)));
    }
    Ok(format!(
        "{text}TCP, all on one core. Plain: between the nodes of a lab themselves. podwire: between \
         pods on these\nnodes. By hand: between pods on two nodes set up with iproute2; tracking: and a \
         rule that has them\ntrack connections, as the nodes of a lab do, also for plain (of \
         vxlan-multicast: and one that gives\nthe nodes' own packets the tunnel's address, as podwire's \
         does there). Medians of {rounds} rounds in turn;\nof a ratio, of the rounds' ratios, with their \
         quartiles.\nWent past the IP stack, of all packets of podwire's pods:\n{}",
        stage.fast_path()?
    ))
}

/// Gives the pods the MTU they would be attached with.
fn limit(cluster: &Cluster, mtu: u32) {
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
