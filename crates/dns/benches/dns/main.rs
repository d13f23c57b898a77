//! How fast names are answered, beside unbound with the same local data, measured
//! in turn with it by dnsperf, and beside a program that sends questions back.
//!
//! Run by `cargo xtask bench dns`. Each server has one thread on one core, the
//! client the other core; each pair of figures is from alternate short rounds
//! and the better of each is shown, since a machine is only ever slowed down.

mod client;
mod floor;
mod server;
mod unbound;
mod upstream;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use comfy_table::{Table, presets::UTF8_FULL_CONDENSED};

/// Services, each with so many endpoints.
const SERVICES: u32 = 10_000;
const ENDPOINTS: u32 = 10;
/// Names outside.
const OUTSIDE: u32 = 1000;
/// Rounds of each figure.
const ROUNDS: usize = 3;
/// Length of a round.
const SECONDS: u32 = 2;
/// A pod's search list.
const LIST: [&str; 5] = [
    "default.svc.cluster.local",
    "svc.cluster.local",
    "cluster.local",
    "corp.example",
    "example",
];
/// A client that is no pod.
const STRANGER: Ipv4Addr = Ipv4Addr::LOCALHOST;

fn main() -> anyhow::Result<()> {
    // The benchmark is its own servers and client: a process of its own has its own
    // memory and core.
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let told = |address: SocketAddr| println!("{address}");
    match arguments.as_slice() {
        ["serve", upstream] => return server::serve(upstream.parse()?, told),
        ["floor"] => return floor::serve(told),
        ["ask", server, from, questions] => {
            return client::ask(server.parse()?, from.parse()?, Path::new(questions));
        }
        _ => {}
    }
    let directory = tempfile::tempdir()?;
    let external = upstream::Upstream::start()?;
    let podwire = server::Process::start(&["serve", &external.address.to_string()])?;
    let floor = server::Process::start(&["floor"])?;
    let unbound = unbound::Unbound::start(directory.path(), external.address)?;
    let servers = [
        Contestant {
            name: "podwire",
            address: podwire.address,
            process: podwire.id(),
        },
        Contestant {
            name: "unbound",
            address: unbound.address,
            process: unbound.id(),
        },
        Contestant {
            name: "echo",
            address: floor.address,
            process: floor.id(),
        },
    ];
    let mut table = Table::new();
    table.load_preset(UTF8_FULL_CONDENSED).set_header([
        "questions",
        "server",
        "/s",
        "CPU µs each",
        "median µs",
        "median µs, one core",
    ]);
    for subject in subjects(directory.path())? {
        for (server, row) in servers.iter().zip(measure(&servers, &subject)?) {
            eprintln!("{}: {}: {row:?}", subject.what, server.name);
            let micro = |time: Duration| format!("{:.0}", time.as_secs_f64() * 1e6);
            table.add_row([
                subject.what.to_owned(),
                server.name.to_owned(),
                format!("{:.0}", row.rate),
                format!("{:.1}", row.cpu.as_secs_f64() * 1e6),
                micro(row.across),
                micro(row.on_one),
            ]);
        }
    }
    let wanted = "host-1.example.com";
    let list = client::walk(podwire.address, server::SEARCHING, wanted, &LIST)?;
    let alone = client::walk(podwire.address, STRANGER, wanted, &LIST)?;
    println!("{table}");
    println!(
        "/s: one server thread on one core, 100 questions under way, dnsperf on the other, \
         which is as fast as dnsperf is; the server's CPU time for each. Of the search list: \
         names found, for which clients of unbound ask six questions one after the other. \
         Median: one question at a time, client on the other core, or on the same. echo: a \
         program that sends each question back, by two system calls."
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
        "Resident with {SERVICES} Services of {ENDPOINTS} endpoints: podwire {:.1} MB, unbound \
         (addresses of the Services only) {:.1} MB",
        podwire.resident()?,
        unbound.resident()?
    );
    Ok(())
}

/// One row of the table.
struct Subject {
    what: &'static str,
    /// Who asks podwire.
    from: Ipv4Addr,
    questions: PathBuf,
    /// What is asked of a server that does not walk search lists, where that
    /// differs, and how many questions make one name.
    walked: Option<(PathBuf, f64)>,
}

/// The kinds of questions, as files of dnsperf.
fn subjects(directory: &Path) -> anyhow::Result<Vec<Subject>> {
    let file = |name: &str, names: Vec<String>| -> anyhow::Result<PathBuf> {
        let path = directory.join(name);
        let lines: String = names.iter().map(|name| format!("{name} A\n")).collect();
        std::fs::write(&path, lines).with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    };
    let host = |n: u32| format!("host-{n}.example.com");
    let subject = |what, questions| Subject {
        what,
        from: STRANGER,
        questions,
        walked: None,
    };
    let cluster = (0..5000).map(|n| server::service_name(n * 2)).collect();
    let missing = (0..5000).map(|n| format!("missing-{n}.default.svc.cluster.local"));
    let outside = (0..OUTSIDE).map(host).collect();
    let listed = (0..OUTSIDE).map(|n| format!("{}.{}", host(n), LIST[0]));
    let walked = (0..OUTSIDE).flat_map(|n| {
        let below = LIST
            .iter()
            .map(move |domain| format!("{}.{domain}", host(n)));
        below.chain([host(n)])
    });
    Ok(vec![
        subject("cluster names", file("cluster", cluster)?),
        subject(
            "cluster names that do not exist",
            file("missing", missing.collect())?,
        ),
        subject("names outside, from the cache", file("outside", outside)?),
        Subject {
            what: "names outside, search list of five",
            from: server::SEARCHING,
            questions: file("listed", listed.collect())?,
            walked: Some((file("walked", walked.collect())?, LIST.len() as f64 + 1.0)),
        },
    ])
}

#[derive(Clone, Copy)]
struct Contestant {
    name: &'static str,
    address: SocketAddr,
    process: u32,
}

#[derive(Clone, Copy, Debug)]
struct Row {
    rate: f64,
    /// CPU time of the server for each question.
    cpu: Duration,
    /// Client and server on a core each.
    across: Duration,
    /// Both on one core.
    on_one: Duration,
}

/// One kind of questions to each server, in turn.
fn measure(servers: &[Contestant; 3], subject: &Subject) -> anyhow::Result<[Row; 3]> {
    let asked = servers.map(|server| match (&subject.walked, server.name) {
        (Some((file, each)), "unbound") => (STRANGER, file, *each),
        (_, "podwire") => (subject.from, &subject.questions, 1.0),
        _ => (STRANGER, &subject.questions, 1.0),
    });
    // Fills the caches.
    for (server, (from, file, _)) in servers.iter().zip(asked) {
        client::rate(file, server.address, from, 1, 20)?;
    }
    let mut rows = [Row {
        rate: 0.0,
        cpu: Duration::MAX,
        across: Duration::MAX,
        on_one: Duration::MAX,
    }; 3];
    for _ in 0..ROUNDS {
        for ((server, row), (from, file, each)) in servers.iter().zip(&mut rows).zip(asked) {
            let before = server::cpu_time(server.process)?;
            let rate = client::rate(file, server.address, from, SECONDS, 100)? / each;
            let used = server::cpu_time(server.process)? - before;
            row.rate = row.rate.max(rate);
            row.cpu = row.cpu.min(used.div_f64(rate * f64::from(SECONDS)));
            for (core, best) in [(1, &mut row.across), (0, &mut row.on_one)] {
                let time = client::latency(file, server.address, from, core)?;
                *best = time.mul_f64(each).min(*best);
            }
        }
    }
    Ok(rows)
}
