//! How fast names are answered, beside unbound with the same local data and
//! measured in turn with it, by dnsperf.
//!
//! Run by `cargo xtask bench dns`. Each server has one thread on one core, the
//! client the other core; each pair of figures is from alternate short rounds
//! and the better of each is shown, since a machine is only ever slowed down.

mod client;
mod server;
mod unbound;
mod upstream;

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use comfy_table::{Table, presets::UTF8_FULL_CONDENSED};

/// Services, each with so many endpoints.
const SERVICES: u32 = 10_000;
const ENDPOINTS: u32 = 10;
/// Rounds of each figure.
const ROUNDS: usize = 3;
/// Length of a round.
const SECONDS: u32 = 4;

fn main() -> anyhow::Result<()> {
    // The benchmark is its own server: a process of its own has its own memory.
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() == Some("serve") {
        return server::serve(
            arguments
                .next()
                .context("the upstream's address")?
                .parse()?,
        );
    }
    let directory = tempfile::tempdir()?;
    let external = upstream::Upstream::start()?;
    let podwire = server::Process::start(external.address)?;
    let unbound = unbound::Unbound::start(directory.path(), external.address)?;
    let mut table = Table::new();
    table.load_preset(UTF8_FULL_CONDENSED).set_header([
        "questions",
        "podwire /s",
        "unbound /s",
        "podwire µs",
        "unbound µs",
    ]);
    for (what, names) in questions() {
        let file = directory.path().join("questions");
        std::fs::write(&file, names.join("\n") + "\n")?;
        let row = measure(&file, podwire.address, unbound.address)?;
        eprintln!("{what}: {row:?}");
        table.add_row([
            what.to_owned(),
            format!("{:.0}", row.ours.rate),
            format!("{:.0}", row.theirs.rate),
            format!("{:.0}", row.ours.latency.as_secs_f64() * 1e6),
            format!("{:.0}", row.theirs.latency.as_secs_f64() * 1e6),
        ]);
    }
    let (list, alone) = search_list(podwire.address)?;
    println!("{table}");
    println!(
        "Rates: one server thread, 100 questions under way. Latency: one question at a time, mean."
    );
    println!(
        "CoreDNS publishes 33,669 /s for cluster names on two vCPU, cache off (its deployment notes)."
    );
    println!(
        "A name outside, by a pod with a search list of five domains, A and AAAA: {:.0} µs in one \
         round trip; {:.0} µs where the client walks the list",
        list.as_secs_f64() * 1e6,
        alone.as_secs_f64() * 1e6
    );
    println!(
        "Resident with {SERVICES} Services of {ENDPOINTS} endpoints: podwire {:.1} MiB, unbound \
         (addresses of the Services only) {:.1} MiB",
        podwire.resident()?,
        unbound.resident()?
    );
    Ok(())
}

/// The kinds of questions.
fn questions() -> Vec<(&'static str, Vec<String>)> {
    let cluster = (0..5000)
        .map(|n| format!("{} A", server::service_name(n * 2)))
        .collect();
    let missing = (0..5000)
        .map(|n| format!("missing-{n}.default.svc.cluster.local A"))
        .collect();
    let cached = (0..1000)
        .map(|n| format!("host-{n}.example.com A"))
        .collect();
    vec![
        ("cluster names", cluster),
        ("cluster names that do not exist", missing),
        ("names outside, from the cache", cached),
    ]
}

#[derive(Debug)]
struct Row {
    ours: client::Measured,
    theirs: client::Measured,
}

fn measure(
    questions: &Path,
    ours: std::net::SocketAddr,
    theirs: std::net::SocketAddr,
) -> anyhow::Result<Row> {
    let mut row = Row {
        ours: client::Measured::default(),
        theirs: client::Measured::default(),
    };
    // Fills the caches.
    for server in [ours, theirs] {
        client::measure(questions, server, 1, 20)?;
    }
    for _ in 0..ROUNDS {
        row.ours
            .improve(client::measure(questions, ours, SECONDS, 100)?);
        row.theirs
            .improve(client::measure(questions, theirs, SECONDS, 100)?);
        row.ours
            .improve_latency(client::measure(questions, ours, 1, 1)?);
        row.theirs
            .improve_latency(client::measure(questions, theirs, 1, 1)?);
    }
    Ok(row)
}

/// A name outside by a client with a search list of five: with completion, and
/// as a client that the server does not know.
fn search_list(server: std::net::SocketAddr) -> anyhow::Result<(Duration, Duration)> {
    let wanted = "host-1.example.com";
    let list = [
        "default.svc.cluster.local",
        "svc.cluster.local",
        "cluster.local",
        "corp.example",
        "example",
    ];
    Ok((
        client::walk(server, &server::SEARCHING.to_string(), wanted, &list)?,
        client::walk(server, "127.0.0.2", wanted, &list)?,
    ))
}
