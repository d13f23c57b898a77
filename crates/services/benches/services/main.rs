//! How fast Services get into the kernel, what they cost packets, and what the
//! agent holds, at several numbers of Services of three endpoints; beside
//! kube-proxy's layouts fed to kube-proxy's programs, a single rule made by hand,
//! and no Service at all. All in the same run.
//!
//! Run as root by `cargo xtask bench services`; everything happens in network
//! namespaces of its own. `PODWIRE_BENCH_SERVICES` changes the numbers
//! (10,1000,10000,30000), `PODWIRE_BENCH_PARTS` what is measured
//! (programming,path,agent), `PODWIRE_BENCH_PATIENCE` the seconds a program of
//! kube-proxy's may take (60).

mod agent;
mod cluster;
mod kube_proxy;
mod path;
mod programming;
mod show;
#[path = "../../tests/world/mod.rs"]
mod world;

use std::time::Duration;

use anyhow::{Context as _, bail};
use kube_proxy::Program;
use path::{Both, Rules};
use show::{median, ms, right, spread, times, us};

const PARTS: [&str; 3] = ["programming", "path", "agent"];

fn main() -> anyhow::Result<()> {
    let list = |variable: &str, default: &str| {
        std::env::var(variable).unwrap_or_else(|_| default.to_owned())
    };
    let sizes = list("PODWIRE_BENCH_SERVICES", "10,1000,10000,30000")
        .split(',')
        .map(|text| match text.trim().parse() {
            Ok(0) | Err(_) => bail!("PODWIRE_BENCH_SERVICES: {text:?} is no number of Services"),
            Ok(size) => Ok(size),
        })
        .collect::<anyhow::Result<Vec<usize>>>()?;
    let parts = list("PODWIRE_BENCH_PARTS", &PARTS.join(","));
    let patience = list("PODWIRE_BENCH_PATIENCE", "60")
        .parse()
        .map(Duration::from_secs)
        .context("PODWIRE_BENCH_PATIENCE is no number of seconds")?;
    for part in parts.split(',') {
        match part.trim() {
            "programming" => programming(&sizes, patience)?,
            "path" => path(&sizes)?,
            "agent" => agent(&sizes)?,
            other => bail!(
                "PODWIRE_BENCH_PARTS: {other:?} is none of {}",
                PARTS.join(", ")
            ),
        }
    }
    Ok(())
}

/// Programs of kube-proxy at one size after the other, as long as they finish.
struct Peer {
    program: Program,
    /// The last that finished: Services, time.
    last: Option<(usize, Duration)>,
    gave_up: bool,
}

/// What became of a program at one size.
enum Outcome {
    Took(programming::Theirs),
    Unfinished,
    /// It would take longer than the patience even if its time grew no faster
    /// than the number of Services.
    NotTried,
}

impl Peer {
    fn measure(&mut self, services: usize, patience: Duration) -> anyhow::Result<Outcome> {
        let hopeless = self.last.is_some_and(|(size, took)| {
            services > size && took.mul_f64(services as f64 / size as f64) > patience
        });
        if self.gave_up || hopeless {
            self.gave_up = true;
            return Ok(Outcome::NotTried);
        }
        let theirs = programming::theirs(self.program, services, patience)
            .with_context(|| format!("{} with {services} Services", self.program.name()))?;
        Ok(match theirs.first {
            Some(first) => {
                self.last = Some((services, first));
                Outcome::Took(theirs)
            }
            None => {
                self.gave_up = true;
                Outcome::Unfinished
            }
        })
    }
}

fn programming(sizes: &[usize], patience: Duration) -> anyhow::Result<()> {
    let mut header = vec![
        "Services",
        "podwire",
        "of it processor",
        "elements",
        "restart",
        "nft -f",
        "times podwire",
    ];
    let mut changes = vec![
        "Services",
        "podwire, median",
        "99 %",
        "kernel's part, median",
        "99 %",
        "nft -f",
        "times podwire",
    ];
    for list in [&mut header, &mut changes] {
        for program in &Program::ALL[1..] {
            list.extend([program.name(), "times podwire"]);
        }
    }
    let (mut first, mut change) = (show::table(&header), show::table(&changes));
    let mut peers = Program::ALL.map(|program| Peer {
        program,
        last: None,
        gave_up: false,
    });
    for services in sizes.iter().copied() {
        let own = programming::own(services)
            .with_context(|| format!("podwire with {services} Services"))?;
        eprintln!("{services}: {own:?}");
        let mut row = vec![
            right(services),
            ms(own.first),
            ms(own.processor),
            right(own.elements),
            ms(own.adopted),
        ];
        let mut changed = vec![
            right(services),
            us(own.change.median),
            us(own.change.most),
            us(own.kernel.median),
            us(own.kernel.most),
        ];
        for peer in &mut peers {
            let none = |text: String| [right(text), right("")];
            match peer.measure(services, patience)? {
                Outcome::Took(theirs) => {
                    eprintln!("{services}: {}: {theirs:?}", peer.program.name());
                    for (row, theirs, own) in [
                        (&mut row, theirs.first, own.first),
                        (&mut changed, theirs.change, own.change.median),
                    ] {
                        match theirs {
                            Some(theirs) => row.extend([ms(theirs), times(theirs, own)]),
                            None => row.extend(none("-".to_owned())),
                        }
                    }
                }
                Outcome::Unfinished => {
                    let text = format!("not finished in {} s", patience.as_secs());
                    row.extend(none(text));
                    changed.extend(none("-".to_owned()));
                }
                Outcome::NotTried => {
                    row.extend(none("not tried".to_owned()));
                    changed.extend(none("-".to_owned()));
                }
            }
        }
        first.add_row(row);
        change.add_row(changed);
    }
    println!("Rules from nothing (Services of three endpoints):\n{first}");
    println!("restart: it finds all these rules, takes them over and changes nothing.");
    println!(
        "nft and iptables-restore: the same Services in kube-proxy's layouts, not finished or not \
         tried where that takes more than {} s.\n",
        patience.as_secs()
    );
    println!("One endpoint changed, from the event to the kernel's answer:\n{change}");
    println!("The kernel's part is that of the same batch made beforehand.\n");
    Ok(())
}

fn path(sizes: &[usize]) -> anyhow::Result<()> {
    let mut rules = vec![Rules::ByHand];
    rules.extend(sizes.iter().copied().map(Rules::Podwire));
    let figures = path::measure(&rules)?;
    let hand = figures.first().context("the rule made by hand")?;
    let mut table = show::table(&[
        "rules",
        "connection",
        "of one nft rule",
        "direct",
        "Gbit/s",
        "of direct",
        "requests /s",
        "of direct",
    ]);
    for of in &figures {
        let of_hand: Vec<f64> = std::iter::zip(&of.connect, &hand.connect)
            .map(|(own, hand)| own.through / hand.through)
            .collect();
        let through = |rounds: &[Both<f64>]| median(rounds.iter().map(|round| round.through));
        let of_direct = |rounds: &[Both<f64>]| -> Vec<f64> {
            let ratios = rounds.iter().map(|round| round.through / round.direct);
            ratios.collect()
        };
        table.add_row([
            match of.rules {
                Rules::ByHand => right("one nft rule"),
                Rules::Podwire(services) => right(format!("{services} Services")),
            },
            us(Duration::from_secs_f64(through(&of.connect))),
            spread(of_hand),
            us(Duration::from_secs_f64(median(
                of.connect.iter().map(|round| round.direct),
            ))),
            right(format!("{:.2}", through(&of.stream) / 1e9)),
            spread(of_direct(&of.stream)),
            right(format!("{:.0}", through(&of.requests))),
            spread(of_direct(&of.requests)),
        ]);
    }
    println!("From one pod of a node to another, through the last Service and directly:\n{table}");
    println!(
        "One core for both ends and the kernel, rounds in turn. All are medians of rounds, ratios of \
         what stands in the same round; in brackets the middle half of them.\n"
    );
    Ok(())
}

fn agent(sizes: &[usize]) -> anyhow::Result<()> {
    let base = agent::measure(0).context("the agent without Services")?;
    eprintln!("0: {base:?}");
    let mut table = show::table(&[
        "Services",
        "start to ready",
        "resident",
        "for an endpoint",
        "at most",
        "change, median",
        "99 %",
    ]);
    let megabytes = |bytes: usize| right(format!("{:.1} MB", bytes as f64 / 1e6));
    table.add_row([
        right(0),
        ms(base.ready),
        megabytes(base.resident),
        right(""),
        megabytes(base.peak),
    ]);
    for services in sizes.iter().copied() {
        let figures = agent::measure(services)
            .with_context(|| format!("the agent with {services} Services"))?;
        eprintln!("{services}: {figures:?}");
        let more = figures.resident.saturating_sub(base.resident);
        let mut row = vec![
            right(services),
            ms(figures.ready),
            megabytes(figures.resident),
            right(format!("{} B", more / (services * cluster::ENDPOINTS))),
            megabytes(figures.peak),
        ];
        if let Some(change) = figures.change {
            row.extend([us(change.median), us(change.most)]);
        }
        table.add_row(row);
    }
    println!("The agent, fed by an API server in another process:\n{table}");
    println!(
        "A change: from the API server's write to the kernel's new rules. Memory: after the first \
         sync; of an endpoint, what is more than without Services."
    );
    Ok(())
}
