//! The agent as it runs on a node, fed by an API server in this process: its
//! memory, and how long a change takes from the API server to the kernel.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use api::fake::FakeApi;
use api::{EndpointSlice, Node, Service};
use linux::namespace::NetworkNamespace;
use linux::nftables::Nftables;
use serde_json::json;

use crate::cluster;
use crate::show::Times;

/// Changes of one endpoint.
const CHANGES: usize = 200;
/// Between two of them: the agent rests for as long as this after each.
const PAUSE: Duration = Duration::from_millis(15);
/// How long the agent may take to be ready.
const PATIENCE: Duration = Duration::from_secs(60);

/// What was seen.
#[derive(Debug)]
pub(crate) struct Figures {
    /// From the process's start until everything is in force.
    pub(crate) ready: Duration,
    /// Resident memory then, and the most so far, in bytes.
    pub(crate) resident: usize,
    pub(crate) peak: usize,
    /// From the API server's write to the kernel's new rules.
    pub(crate) change: Option<Times>,
}

/// A node with this many Services.
pub(crate) fn measure(services: usize) -> anyhow::Result<Figures> {
    let namespace = NetworkNamespace::create()?;
    for arguments in [
        "link set lo up",
        "link add eth0 type veth peer name wire0",
        "link set eth0 up",
        "link set wire0 up",
        "addr add 192.168.64.11/24 dev eth0",
    ] {
        let status = namespace
            .run(|| Command::new("ip").args(arguments.split(' ')).status())?
            .context("starting ip")?;
        if !status.success() {
            bail!("ip {arguments}: {status}");
        }
    }
    let inside = namespace.clone();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .on_thread_start(move || inside.enter().expect("root enters namespaces"))
        .enable_all()
        .build()?;
    // On a worker, which is in the namespace.
    let api = runtime.block_on(runtime.spawn(FakeApi::start()))?;
    api.put::<Node>(json!({
        "metadata": {"name": "node-1"},
        "spec": {"podCIDRs": ["10.200.1.0/24"]},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.168.64.11"}]},
    }));
    for number in 0..services {
        api.put::<Service>(cluster::service_object(number));
        let endpoints = cluster::endpoints(number, 0);
        api.put::<EndpointSlice>(cluster::slice_object(number, endpoints));
    }
    let files = tempfile::tempdir()?;
    std::fs::write(files.path().join("kubeconfig"), api.kubeconfig())?;
    let started = Instant::now();
    let agent = Agent::start(&namespace, files.path())?;
    agent.wait_until_ready(&namespace, started + PATIENCE)?;
    let ready = started.elapsed();
    let resident = agent.status("VmRSS:")?;
    let change = match services.checked_sub(1) {
        Some(last) => Some(changes(&namespace, &api, last)?),
        None => None,
    };
    let figures = Figures {
        ready,
        resident,
        peak: agent.status("VmHWM:")?,
        change,
    };
    drop(agent);
    // Its tasks end within the runtime they run on.
    let _guard = runtime.enter();
    drop(api);
    Ok(figures)
}

fn changes(namespace: &NetworkNamespace, api: &FakeApi, last: usize) -> anyhow::Result<Times> {
    namespace.run(|| {
        let mut nft = Nftables::open()?;
        let mut times = Vec::with_capacity(CHANGES);
        for generation in 1..=CHANGES {
            std::thread::sleep(PAUSE);
            let before = nft.generation()?.id;
            let slice = cluster::slice_object(last, cluster::endpoints(last, generation));
            let started = Instant::now();
            api.put::<EndpointSlice>(slice);
            while nft.generation()?.id == before {
                if started.elapsed() > PATIENCE {
                    bail!("the agent did not take up a change");
                }
            }
            times.push(started.elapsed());
        }
        Ok(Times::of(times))
    })?
}

struct Agent {
    process: Child,
}

impl Agent {
    fn start(namespace: &NetworkNamespace, files: &std::path::Path) -> anyhow::Result<Self> {
        let program = std::env::var_os("PODWIRE_BIN")
            .context("PODWIRE_BIN names no program: run this by `cargo xtask bench services`")?;
        let mut command = Command::new(&program);
        command
            .args(["agent", "--node", "node-1"])
            .stdin(Stdio::null());
        for (option, file) in [
            ("--kubeconfig", "kubeconfig"),
            ("--cni-conf-dir", "net.d"),
            ("--admin-socket", "agent.sock"),
            ("--policy-socket", "cni.sock"),
            ("--ipam-dir", "ipam"),
        ] {
            command.arg(option).arg(files.join(file));
        }
        let log = std::fs::File::create(files.join("log"))?;
        command.stdout(log.try_clone()?).stderr(log);
        let process = namespace
            .run(|| command.spawn())?
            .with_context(|| format!("starting {}", program.display()))?;
        Ok(Self { process })
    }

    fn wait_until_ready(&self, namespace: &NetworkNamespace, until: Instant) -> anyhow::Result<()> {
        while Instant::now() < until {
            if namespace.run(is_ready)? {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        bail!("the agent is not ready after {} s", PATIENCE.as_secs())
    }

    /// A line of `/proc/PID/status`, in bytes.
    fn status(&self, line: &str) -> anyhow::Result<usize> {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.process.id()))?;
        let kibibytes: usize = text
            .lines()
            .find_map(|l| {
                l.strip_prefix(line)?
                    .split_whitespace()
                    .next()?
                    .parse()
                    .ok()
            })
            .with_context(|| format!("{line} in /proc/PID/status"))?;
        Ok(kibibytes * 1024)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn is_ready() -> bool {
    use std::io::{Read as _, Write as _};
    let ask = || -> std::io::Result<bool> {
        let mut stream = std::net::TcpStream::connect("127.0.0.1:10256")?;
        stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer.split(' ').nth(1) == Some("200"))
    };
    ask().unwrap_or(false)
}
