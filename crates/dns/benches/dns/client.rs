//! The clients: dnsperf, one that asks a question at a time, and a resolver that
//! walks a search list.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};

/// Questions of one measurement of latency.
const QUESTIONS: usize = 5000;

/// One run of dnsperf on the second core with `outstanding` questions under way:
/// questions a second.
pub(crate) fn rate(
    questions: &Path,
    server: SocketAddr,
    from: Ipv4Addr,
    seconds: u32,
    outstanding: u32,
) -> anyhow::Result<f64> {
    let output = Command::new("taskset")
        .args(["--cpu-list", "1", "dnsperf"])
        .args(["-s", &server.ip().to_string()])
        .args(["-p", &server.port().to_string()])
        .args(["-a", &from.to_string()])
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
    figure("Queries per second:")
}

/// The median time of one question at a time, by a process of its own on one of
/// `cores`.
pub(crate) fn latency(
    questions: &Path,
    server: SocketAddr,
    from: Ipv4Addr,
    cores: &[u32],
) -> anyhow::Result<Duration> {
    let output = Command::new("taskset")
        .args(["--cpu-list", &crate::list(cores)])
        .arg(std::env::current_exe()?)
        .args(["ask", &server.to_string(), &from.to_string()])
        .arg(questions)
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let nanoseconds = text.trim().parse().with_context(|| {
        let errors = String::from_utf8_lossy(&output.stderr);
        format!("asking {server}: {text}{errors}")
    })?;
    Ok(Duration::from_nanos(nanoseconds))
}

/// What such a process does: asks, and prints the median in nanoseconds.
pub(crate) fn ask(server: SocketAddr, from: Ipv4Addr, questions: &Path) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(questions)?;
    let questions: Vec<Vec<u8>> = text
        .lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(name, _)| question(&Name::from_ascii(name)?, RecordType::A))
        .collect::<anyhow::Result<_>>()?;
    let socket = UdpSocket::bind((from, 0))?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut buffer = [0; 4096];
    let mut times = Vec::with_capacity(QUESTIONS);
    for question in questions.iter().cycle().take(QUESTIONS) {
        let start = Instant::now();
        socket.send(question)?;
        socket.recv(&mut buffer)?;
        times.push(start.elapsed());
    }
    times.sort();
    println!("{}", times[times.len() / 2].as_nanos());
    Ok(())
}

fn question(name: &Name, kind: RecordType) -> anyhow::Result<Vec<u8>> {
    let mut name = name.clone();
    name.set_fqdn(true);
    let mut message = Message::new(1, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name, kind));
    Ok(message.to_vec()?)
}

/// Asks A and AAAA for `wanted` below each domain of a search list and then
/// alone, until an answer says it exists: the median of many times.
pub(crate) fn walk(
    server: SocketAddr,
    from: Ipv4Addr,
    wanted: &str,
    list: &[&str],
) -> anyhow::Result<Duration> {
    let socket = UdpSocket::bind((from, 0))?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut buffer = [0; 4096];
    let names: Vec<Name> = list
        .iter()
        .map(|domain| format!("{wanted}.{domain}"))
        .chain([wanted.to_owned()])
        .map(Name::from_ascii)
        .collect::<Result<_, _>>()?;
    let mut times = Vec::new();
    for _ in 0..1000 {
        let start = Instant::now();
        let mut found = false;
        for name in &names {
            for kind in [RecordType::A, RecordType::AAAA] {
                socket.send(&question(name, kind)?)?;
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
