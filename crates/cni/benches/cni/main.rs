//! How fast pods are attached and detached: podwire's plugin beside the
//! reference plugins of Debian's containernetworking-plugins and beside the
//! floor, one process that makes the same objects by bare netlink calls. All of
//! them in the same run, in namespaces of the benchmark's own.
//!
//! Run as root by `cargo xtask bench cni`. `PODWIRE_BENCH_ROUNDS` changes how
//! many pods each figure is taken of (60), and `PODWIRE_BENCH_ROWS` takes only those
//! rows whose names have one of its words, which are apart by commas, and none of those
//! that begin with `-`.
//!
//! podwire's rows are of a node with an agent, but where it is said not to be. Of the agent
//! only that part is there which the plugin meets: it holds the table that spares pods of a
//! bridge settings of their own, and says so in a file.
//!
//! Below the table stands how far podwire is from its goal: ADD within one and a half
//! times the floor of its attach mode and one exec.

mod floor;
mod plugins;

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use comfy_table::{Cell, CellAlignment, Table, presets::UTF8_FULL_CONDENSED};
use ipnet::IpNet;
use linux::address::{self, Address};
use linux::events::{self, Group};
use linux::link::{self, VethEnd};
use linux::namespace::NetworkNamespace;
use linux::netlink::Socket;
use plugins::Installed;
use podwire_cni::bridge_guard::BridgeGuard;

/// Pods that are attached at the same time in the parallel rows.
const PARALLEL: usize = 8;
/// The floors, and what is judged by them, in the same order.
const FLOORS: [&str; 2] = [
    "floor: netlink calls of one process, routed",
    "floor: netlink calls of one process, bridge",
];
const JUDGED: [&str; 2] = ["podwire routed", "podwire bridge"];
/// Parts that the rows of one pod after the other are measured in.
const PARTS: usize = 4;
/// Pods a full node has.
const FULL: usize = 250;
/// The node's own addresses.
const NODE: [&str; 2] = ["192.0.2.9/32", "2001:db8::9/128"];
/// The kernel takes some 20 ms for a namespace.
const GOING: Duration = Duration::from_secs(60);

/// A way to attach pods to the node in whose namespace it is called.
pub(crate) trait Subject: Sync {
    /// Attaches pod `number`.
    fn add(&self, number: usize, pod: &NetworkNamespace) -> anyhow::Result<()>;
    /// Detaches it.
    fn delete(&self, number: usize, pod: &NetworkNamespace) -> anyhow::Result<()>;
    /// What its agent does on the node meanwhile.
    fn agent(&self) -> anyhow::Result<Option<BridgeGuard>> {
        Ok(None)
    }
}

/// How long each of many took, sorted.
struct Times(Vec<Duration>);

impl Times {
    fn of(mut all: Vec<Duration>) -> Self {
        all.sort();
        Self(all)
    }

    fn median(&self) -> Duration {
        self.0[self.0.len() / 2]
    }

    fn percentile_99(&self) -> Duration {
        self.0[(self.0.len() * 99 / 100).min(self.0.len() - 1)]
    }
}

fn main() -> anyhow::Result<()> {
    let rounds: usize = match std::env::var("PODWIRE_BENCH_ROUNDS") {
        Ok(text) => text.parse().context("PODWIRE_BENCH_ROUNDS is no number")?,
        Err(_) => 60,
    };
    let mut table = Table::new();
    table.load_preset(UTF8_FULL_CONDENSED).set_header([
        "what",
        "at once",
        "ADD median",
        "ADD 99 %",
        "DEL median",
        "DEL 99 %",
    ]);
    let installed = Installed::new()?;
    // Each a part at a time, in turn: the machine's speed changes from minute to minute.
    let mut exec = Vec::new();
    let mut serial = collected();
    let mut on_full = collected();
    for part in 0..PARTS {
        let rounds = rounds * (part + 1) / PARTS - rounds * part / PARTS;
        exec.extend(plugins::exec(&installed, rounds)?);
        for (index, (name, make)) in subjects().into_iter().enumerate() {
            let (add, delete) =
                measure(make, &installed, rounds, 1, 0).with_context(|| name.to_owned())?;
            serial[index].0.extend(add);
            serial[index].1.extend(delete);
            if name.starts_with("reference") {
                continue;
            }
            let (add, delete) = measure(make, &installed, rounds, 1, FULL.saturating_sub(rounds))
                .with_context(|| format!("{name}, full node"))?;
            on_full[index].0.extend(add);
            on_full[index].1.extend(delete);
        }
    }
    let exec = Times::of(exec);
    row(
        &mut table,
        "one exec of podwire-cni (VERSION)",
        "1",
        &exec,
        None,
    );
    let mut empty = HashMap::new();
    for ((name, _), (add, delete)) in subjects().into_iter().zip(serial) {
        let (add, delete) = (Times::of(add), Times::of(delete));
        row(&mut table, name, "1", &add, Some(&delete));
        empty.insert(name, add.median());
    }
    for (name, make) in subjects() {
        // One before many at once: the first of the reference's portmap makes
        // chains, of which two at once make one fail.
        let (add, delete) = measure(make, &installed, rounds, PARALLEL, 1)
            .with_context(|| format!("{name}, {PARALLEL} at once"))?;
        row(
            &mut table,
            name,
            &PARALLEL.to_string(),
            &Times::of(add),
            Some(&Times::of(delete)),
        );
    }
    let mut full = HashMap::new();
    for ((name, _), (add, delete)) in subjects().into_iter().zip(on_full) {
        if add.is_empty() {
            continue;
        }
        let (add, delete) = (Times::of(add), Times::of(delete));
        let label = format!("{name}, the last of {FULL} pods");
        row(&mut table, &label, "1", &add, Some(&delete));
        full.insert(name, add.median());
    }
    println!("{table}");
    println!("milliseconds; {rounds} pods a row, namespaces given");
    judge("empty node", &exec, &empty);
    judge(&format!("the last of {FULL} pods"), &exec, &full);
    let growth = |name| {
        let (empty, full) = (empty.get(name)?, full.get(name)?);
        Some(full.as_secs_f64() / empty.as_secs_f64())
    };
    for (floor, name) in FLOORS.into_iter().zip(JUDGED) {
        if let (Some(bare), Some(own)) = (growth(floor), growth(name)) {
            println!(
                "{name}: ADD of the last of {FULL} pods takes {own:.2} times the first's, the \
                 floor's {bare:.2}"
            );
        }
    }
    Ok(())
}

/// Says how far podwire is from its goal, by medians of the same kind of node.
fn judge(node: &str, exec: &Times, medians: &HashMap<&str, Duration>) {
    for (floor, name) in FLOORS.into_iter().zip(JUDGED) {
        let (Some(floor), Some(add)) = (medians.get(floor), medians.get(name)) else {
            continue;
        };
        let goal = 1.5 * floor.as_secs_f64() + exec.median().as_secs_f64();
        let ratio = add.as_secs_f64() / goal;
        println!(
            "{name}, {node}: ADD {ratio:.2} of the goal of {:.2} (1.5 × {:.2} + {:.2})",
            goal * 1e3,
            floor.as_secs_f64() * 1e3,
            exec.median().as_secs_f64() * 1e3,
        );
    }
}

/// For each subject the times of its ADDs and of its DELs.
fn collected() -> Vec<(Vec<Duration>, Vec<Duration>)> {
    subjects()
        .iter()
        .map(|_| (Vec::new(), Vec::new()))
        .collect()
}

type Make = fn(&Installed) -> anyhow::Result<Box<dyn Subject>>;

fn subjects() -> Vec<(&'static str, Make)> {
    let words = std::env::var("PODWIRE_BENCH_ROWS").unwrap_or_default();
    let without: Vec<_> = words
        .split(',')
        .filter_map(|w| w.strip_prefix('-'))
        .collect();
    let with: Vec<_> = words.split(',').filter(|w| !w.starts_with('-')).collect();
    let mut all = all_subjects();
    all.retain(|(name, _)| {
        let wanted = with.is_empty() || with.iter().any(|word| name.contains(word));
        wanted && !without.iter().any(|word| name.contains(word))
    });
    all
}

fn all_subjects() -> Vec<(&'static str, Make)> {
    vec![
        (FLOORS[0], |_| {
            Ok(Box::new(floor::Routed(floor::Cable::Plain)))
        }),
        (FLOORS[1], |_| {
            Ok(Box::new(floor::Bridged(floor::Cable::Plain)))
        }),
        ("lean floor, routed", |_| {
            Ok(Box::new(floor::Routed(floor::Cable::Lean)))
        }),
        ("lean floor, bridge", |_| {
            Ok(Box::new(floor::Bridged(floor::Cable::Lean)))
        }),
        (JUDGED[0], |p| plugins::podwire(p, "routed", false, true)),
        (JUDGED[1], |p| plugins::podwire(p, "bridge", false, true)),
        ("podwire bridge, no agent", |p| {
            plugins::podwire(p, "bridge", false, false)
        }),
        ("podwire routed + portMappings + bandwidth", |p| {
            plugins::podwire(p, "routed", true, true)
        }),
        ("podwire bridge + portMappings + bandwidth", |p| {
            plugins::podwire(p, "bridge", true, true)
        }),
        ("reference bridge + host-local", |_| {
            plugins::reference(false)
        }),
        (
            "reference bridge + host-local + portmap + bandwidth",
            |_| plugins::reference(true),
        ),
    ]
}

/// Attaches `before` pods, then times `rounds` more, and their detachment.
fn measure(
    make: Make,
    installed: &Installed,
    rounds: usize,
    parallel: usize,
    before: usize,
) -> anyhow::Result<(Vec<Duration>, Vec<Duration>)> {
    namespaces_are_gone()?;
    let node = NetworkNamespace::create()?;
    let subject = make(installed)?;
    let pods = (0..before + rounds)
        .map(|_| NetworkNamespace::create())
        .collect::<Result<Vec<_>, _>>()?;
    node.run(|| {
        // Every node has an address. On one without, the kernel looks for one on all
        // interfaces with each route that is made.
        let mut socket = Socket::open_route()?;
        socket.execute(&link::set_up(1))?;
        for address in NODE {
            let address: IpNet = address.parse()?;
            socket.execute(&address::add(&Address::new(1, address)))?;
        }
        let _guard = subject.agent()?;
        for (number, pod) in pods[..before].iter().enumerate() {
            subject.add(number, pod)?;
        }
        let each = |work: &(dyn Fn(usize) -> anyhow::Result<()> + Sync)| {
            each(before..before + rounds, parallel, work)
        };
        let add = each(&|number| subject.add(number, &pods[number]))?;
        let delete = each(&|number| subject.delete(number, &pods[number]))?;
        for (number, pod) in pods[..before].iter().enumerate() {
            subject.delete(number, pod)?;
        }
        Ok((add, delete))
    })?
}

/// Waits until the kernel has taken down the namespaces of what was measured before.
/// It does so in the background and holds locks meanwhile that every ADD needs.
fn namespaces_are_gone() -> anyhow::Result<()> {
    let here = NetworkNamespace::create()?;
    // Namespaces go in batches, one after the other: where the second cable goes, the
    // batch of the first is done.
    for name in ["first", "second"] {
        let there = NetworkNamespace::create()?;
        let gone = here.run(move || {
            let mut socket = Socket::open_route()?;
            let near = VethEnd {
                name,
                mtu: None,
                mac: None,
                namespace: None,
            };
            let far = VethEnd {
                namespace: Some(&there),
                ..near
            };
            socket.execute(&link::add_cable(&near, None, &far))?;
            drop(there);
            events::wait_for(&[Group::Links], GOING, || {
                Ok(link::get(&mut socket, name)?.is_none())
            })
        })??;
        ensure!(gone, "namespaces are not gone after {GOING:?}");
    }
    Ok(())
}

/// Does each of some works, so many at once, and times them.
fn each(
    numbers: std::ops::Range<usize>,
    parallel: usize,
    work: &(dyn Fn(usize) -> anyhow::Result<()> + Sync),
) -> anyhow::Result<Vec<Duration>> {
    let next = AtomicUsize::new(numbers.start);
    let worker = || {
        let mut times = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= numbers.end {
                return Ok(times);
            }
            let start = Instant::now();
            work(number)?;
            times.push(start.elapsed());
        }
    };
    if parallel == 1 {
        return worker();
    }
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..parallel).map(|_| scope.spawn(worker)).collect();
        let mut all = Vec::new();
        for worker in workers {
            let times: anyhow::Result<Vec<Duration>> = worker
                .join()
                .map_err(|_| anyhow::anyhow!("a worker panicked"))?;
            all.extend(times?);
        }
        Ok(all)
    })
}

fn row(table: &mut Table, name: &str, parallel: &str, add: &Times, delete: Option<&Times>) {
    let number = |time: Duration| {
        Cell::new(format!("{:.2}", time.as_secs_f64() * 1000.0)).set_alignment(CellAlignment::Right)
    };
    let mut cells = vec![
        Cell::new(name),
        Cell::new(parallel).set_alignment(CellAlignment::Right),
        number(add.median()),
        number(add.percentile_99()),
    ];
    cells.extend(
        delete
            .into_iter()
            .flat_map(|times| [number(times.median()), number(times.percentile_99())]),
    );
    table.add_row(cells);
}
