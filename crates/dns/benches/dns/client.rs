//! The clients: dnsperf, and a resolver that walks a search list.

use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};

/// Rate and mean latency.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measured {
    pub(crate) rate: f64,
    pub(crate) latency: Duration,
}

impl Default for Measured {
    fn default() -> Self {
        Self {
            rate: 0.0,
            latency: Duration::MAX,
        }
    }
}

impl Measured {
    /// Keeps the better rate.
    pub(crate) fn improve(&mut self, other: Measured) {
        self.rate = self.rate.max(other.rate);
    }

    /// Keeps the better latency.
    pub(crate) fn improve_latency(&mut self, other: Measured) {
        self.latency = self.latency.min(other.latency);
    }
}

/// One run of dnsperf on the second core with `outstanding` questions under way.
pub(crate) fn measure(
    questions: &Path,
    server: SocketAddr,
    seconds: u32,
    outstanding: u32,
) -> anyhow::Result<Measured> {
    let output = Command::new("taskset")
        .args(["--cpu-list", "1", "dnsperf"])
        .args([
            "-s",
            &server.ip().to_string(),
            "-p",
            &server.port().to_string(),
        ])
        .args(["-l", &seconds.to_string(), "-q", &outstanding.to_string()])
        .arg("-d")
        .arg(questions)
        .output()
        .context("starting dnsperf: install the package dnsperf")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let figure = |label: &str| -> anyhow::Result<f64> {
        text.lines()
            .find_map(|line| line.trim().strip_prefix(label))
            .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
            .with_context(|| format!("no {label:?} in what dnsperf printed: {text}"))
    };
    ensure!(
        figure("Queries lost:")? < figure("Queries sent:")? / 1000.0,
        "dnsperf lost questions: {text}"
    );
    Ok(Measured {
        rate: figure("Queries per second:")?,
        latency: Duration::from_secs_f64(figure("Average Latency (s):")?),
    })
}

/// Asks A and AAAA for `wanted` below each domain of a search list and then
/// alone, until an answer says it exists: the median of many times.
pub(crate) fn walk(
    server: SocketAddr,
    from: &str,
    wanted: &str,
    list: &[&str],
) -> anyhow::Result<Duration> {
    let socket = UdpSocket::bind((from, 0))?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut buffer = [0; 4096];
    let names: Vec<Name> = list
        .iter()
        .map(|domain| format!("{wanted}.{domain}."))
        .chain([format!("{wanted}.")])
        .map(Name::from_ascii)
        .collect::<Result<_, _>>()?;
    let mut times = Vec::new();
    for _ in 0..1000 {
        let start = Instant::now();
        let mut found = false;
        for name in &names {
            for kind in [RecordType::A, RecordType::AAAA] {
                let mut message = Message::new(1, MessageType::Query, OpCode::Query);
                message.metadata.recursion_desired = true;
                message.add_query(Query::query(name.clone(), kind));
                socket.send(&message.to_vec()?)?;
            }
            for _ in 0..2 {
                let length = socket.recv(&mut buffer)?;
                let reply = Message::from_vec(&buffer[..length])?;
                found |= reply.metadata.response_code == ResponseCode::NoError;
            }
            if found {
                break;
            }
        }
        ensure!(found, "{wanted} is found");
        times.push(start.elapsed());
    }
    times.sort();
    Ok(times[times.len() / 2])
}
