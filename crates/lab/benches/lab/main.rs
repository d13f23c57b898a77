//! How fast a lab is, beside the floor: the same kernel objects made by bare
//! netlink calls in the same run.
//!
//! Run as root by `cargo xtask bench lab`, which builds the programs and names
//! the binary in `PODWIRE_BIN`. `PODWIRE_BENCH_NODES` changes the size of the
//! large lab (50).

mod floor;
mod measured;
mod memory;

use std::time::Duration;

use anyhow::Context;
use comfy_table::{Cell, CellAlignment, Table, presets::UTF8_FULL_CONDENSED};

/// Pods on each node of the large lab.
const PODS_PER_NODE: usize = 10;
/// What is brought up on two nodes.
const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/shop.yaml");
/// How often the small figures are taken; the table shows the median.
const ROUNDS: usize = 5;

fn main() -> anyhow::Result<()> {
    let podwire = std::env::var("PODWIRE_BIN")
        .context("PODWIRE_BIN does not name the podwire binary: run `cargo xtask bench lab`")?;
    let nodes: usize = match std::env::var("PODWIRE_BENCH_NODES") {
        Ok(text) => text
            .parse()
            .context("PODWIRE_BENCH_NODES is not a number")?,
        Err(_) => 50,
    };
    let mut table = Table::new();
    table
        .load_preset(UTF8_FULL_CONDENSED)
        .set_header(["what", "podwire", "floor", "the floor is"]);

    let example = measured::median(3, || {
        measured::Lab::up(&podwire, "bench-example", 2, EXAMPLE).map(|lab| (lab.took, lab))
    })?;
    // The example has five pods on its two nodes.
    row(
        &mut table,
        "2 nodes and examples/shop.yaml, ready",
        example,
        Some(floor::cluster(2, 5)?),
        "their namespaces, links, addresses and routes",
    );

    let manifest = measured::deployment(nodes * PODS_PER_NODE)?;
    let large = measured::Lab::up(
        &podwire,
        "bench-large",
        nodes,
        &manifest.path().to_string_lossy(),
    )?;
    let floor = floor::cluster(nodes, nodes * PODS_PER_NODE)?;
    row(
        &mut table,
        &format!("{nodes} nodes with {PODS_PER_NODE} pods each, ready"),
        large.took,
        Some(floor),
        "their namespaces, links, addresses and routes",
    );
    let pods = u32::try_from(nodes * PODS_PER_NODE)?;
    row(
        &mut table,
        "  that is, per pod",
        large.took / pods,
        Some(floor / pods),
        "",
    );

    let memory = memory::of_agents(&large.name)?;
    memory_row(&mut table, "agent's resident memory, median", memory.median);
    memory_row(
        &mut table,
        "agent's resident memory, highest",
        memory.highest,
    );
    drop(large);

    let lab = measured::Lab::up(&podwire, "bench-changes", 2, EXAMPLE)?;
    row(
        &mut table,
        "one more node, ready",
        measured::median(ROUNDS, || lab.node_added())?,
        Some(floor::median(ROUNDS, floor::one_node)?),
        "its namespace, veth, addresses and routes",
    );
    row(
        &mut table,
        "one more pod, from apply to ready",
        measured::median(ROUNDS, || lab.pod_added())?,
        Some(floor::median(ROUNDS, floor::one_pod)?),
        "its namespace, veth, addresses and routes",
    );
    row(
        &mut table,
        "one more Service, from apply to an answer",
        measured::median(ROUNDS, || lab.service_added())?,
        Some(floor::median(ROUNDS, floor::one_service)?),
        "its map elements, one batch",
    );
    row(
        &mut table,
        "apply it unchanged, then a request",
        measured::median(ROUNDS, || lab.service_asked())?,
        None,
        "",
    );
    drop(lab);
    println!("{table}");
    Ok(())
}

fn row(table: &mut Table, what: &str, podwire: Duration, floor: Option<Duration>, of: &str) {
    table.add_row([
        Cell::new(what),
        Cell::new(shown(podwire)).set_alignment(CellAlignment::Right),
        Cell::new(floor.map(shown).unwrap_or_default()).set_alignment(CellAlignment::Right),
        Cell::new(of),
    ]);
}

fn memory_row(table: &mut Table, what: &str, kibibytes: u64) {
    table.add_row([
        Cell::new(what),
        Cell::new(format!("{:.1} MiB", kibibytes as f64 / 1024.0))
            .set_alignment(CellAlignment::Right),
        Cell::new(""),
        Cell::new(""),
    ]);
}

/// A duration with three digits that mean something.
fn shown(duration: Duration) -> String {
    let micros = duration.as_secs_f64() * 1e6;
    if micros < 1e3 {
        format!("{micros:.0} µs")
    } else if micros < 1e6 {
        format!("{:.1} ms", micros / 1e3)
    } else {
        format!("{:.2} s", micros / 1e6)
    }
}
