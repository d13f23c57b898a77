//! How fast names are answered, beside unbound with the same local data, measured
//! in turn with it by dnsperf, and beside a program that sends questions back.
//!
//! Run by `cargo xtask bench dns`. For rates and CPU time each server has one
//! thread on one core, the client the other core. How long one question takes is
//! asked of those, and of a second process of each that is as on a node: free to
//! run anywhere, with a thread for each core, as its client is. Figures to compare
//! are from alternate short rounds and the better of each is shown, since a machine
//! is only ever slowed down.

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
/// The machine's cores that are used.
const BOTH: [u32; 2] = [0, 1];
/// A client that is no pod.
const STRANGER: Ipv4Addr = Ipv4Addr::LOCALHOST;

fn main() -> anyhow::Result<()> {
    // The benchmark is its own servers and client: a process of its own has its own
    // memory and core.
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let told = |address: SocketAddr| println!("{address}");
    match arguments.as_slice() {
        ["serve", upstream, threads] => {
            return server::serve(upstream.parse()?, threads.parse()?, told);
        }
        ["floor"] => return floor::serve(told),
        ["ask", server, from, questions] => {
            return client::ask(server.parse()?, from.parse()?, Path::new(questions));
        }
        _ => {}
    }
    let directory = tempfile::tempdir()?;
    let external = upstream::Upstream::start()?;
    let upstream = external.address.to_string();
    let both = list(&BOTH);
    let mut podwire = server::Process::start("0", &["serve", &upstream, "1"])?;
    let podwire_free = server::Process::start(&both, &["serve", &upstream, "2"])?;
    let floor = server::Process::start("0", &["floor"])?;
    let floor_free = server::Process::start(&both, &["floor"])?;
    let unbound = unbound::Unbound::start(directory.path(), &[0], external.address)?;
    let unbound_free = unbound::Unbound::start(directory.path(), &BOTH, external.address)?;
    let servers = [
        Contestant {
            name: "podwire",
            address: podwire.address,
            free: podwire_free.address,
            process: podwire.id(),
        },
        Contestant {
            name: "unbound",
            address: unbound.address,
            free: unbound_free.address,
            process: unbound.id(),
        },
        Contestant {
            name: "echo",
            address: floor.address,
            free: floor_free.address,
            process: floor.id(),
        },
    ];
    let mut table = Table::new();
    table.load_preset(UTF8_FULL_CONDENSED).set_header([
        "questions",
        "server",
        "/s",
        "CPU µs each",
        "median µs, on the node",
        "one core",
        "two cores",
    ]);
    for subject in subjects(directory.path())? {
        if subject.changing {
            podwire.toggle_changes()?;
        }
        let rows = measure(&servers, &subject)?;
        if subject.changing {
            podwire.toggle_changes()?;
        }
        for (server, row) in servers.iter().zip(rows) {
            if subject.changing && server.name == "unbound" {
                continue;
            }
            eprintln!("{}: {}: {row:?}", subject.what, server.name);
            let micro = |time: Duration| format!("{:.0}", time.as_secs_f64() * 1e6);
            table.add_row([
                subject.what.to_owned(),
                server.name.to_owned(),
                format!("{:.0}", row.rate),
                format!("{:.1}", row.cpu.as_secs_f64() * 1e6),
                micro(row.free),
                micro(row.on_one),
                micro(row.across),
            ]);
        }
    }
    let wanted = "host-1.example.com";
    let listed = client::walk(podwire_free.address, server::SEARCHING, wanted, &LIST)?;
    let alone = client::walk(podwire_free.address, STRANGER, wanted, &LIST)?;
    println!("{table}");
    println!(
        "/s: one server thread on one core, 100 questions under way, dnsperf on the other, \
         which is as fast as dnsperf is; the server's CPU time for each. Of the search list: \
         names found, for which clients of unbound ask six questions one after the other. \
         Median: one question at a time. On the node: servers with a thread for each core, they \
         and the client where the kernel puts them; then the server of one thread, the client on \
         its core or on the other. echo: a program of one thread that sends each question back, \
         by two system calls."
    );
    println!(
        "CoreDNS publishes 33,669 /s for cluster names on two vCPU, cache off (its deployment notes)."
    );
    println!(
        "A name outside, by a pod with a search list of five domains, A and AAAA: {:.0} µs in one \
         round trip; {:.0} µs where the client walks the list",
        listed.as_secs_f64() * 1e6,
        alone.as_secs_f64() * 1e6
    );
    println!(
        "Resident with {SERVICES} Services of {ENDPOINTS} endpoints: podwire {:.1} MB, unbound \
         (addresses of the Services only) {:.1} MB",
        podwire.resident()?.max(podwire_free.resident()?),
        unbound.resident()?
    );
    Ok(())
}

/// Cores as taskset has them.
fn list(cores: &[u32]) -> String {
    let texts: Vec<String> = cores.iter().map(u32::to_string).collect();
    texts.join(",")
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
    /// Whether endpoints change meanwhile, a thousand a second.
    changing: bool,
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
        changing: false,
    };
    let cluster = (0..5000).map(|n| server::service_name(n * 2)).collect();
    let cluster = file("cluster", cluster)?;
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
        subject("cluster names", cluster.clone()),
        Subject {
            changing: true,
            ..subject("cluster names, 1,000 endpoints change a second", cluster)
        },
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
            changing: false,
        },
    ])
}

#[derive(Clone, Copy)]
struct Contestant {
    name: &'static str,
    address: SocketAddr,
    /// Of the one that is as on a node.
    free: SocketAddr,
    process: u32,
}

#[derive(Clone, Copy, Debug)]
struct Row {
    rate: f64,
    /// CPU time of the server for each question.
    cpu: Duration,
    /// Client and server wherever the kernel puts them.
    free: Duration,
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
        client::rate(file, server.free, from, 1, 20)?;
    }
    let mut rows = [Row {
        rate: 0.0,
        cpu: Duration::MAX,
        free: Duration::MAX,
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
            for (address, cores, best) in [
                (server.free, &BOTH[..], &mut row.free),
                (server.address, &[1], &mut row.across),
                (server.address, &[0], &mut row.on_one),
            ] {
                let time = client::latency(file, address, from, cores)?;
                *best = time.mul_f64(each).min(*best);
            }
        }
    }
    Ok(rows)
}
