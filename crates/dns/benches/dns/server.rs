//! podwire's server with a large zone, in a process of its own.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use hickory_proto::rr::Name;
use podwire_dns::model::{
    Addressing, Endpoint, EndpointSlice, Pod, Port, Protocol, Service, ServiceKey,
};
use podwire_dns::{Config, Server, Shared};

use crate::{ENDPOINTS, SERVICES};

/// The client whose search list is walked for it.
pub(crate) const SEARCHING: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 3);

/// The name of a Service.
pub(crate) fn service_name(number: u32) -> String {
    format!("service-{number}.default.svc.cluster.local")
}

/// Its address.
pub(crate) fn service_address(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(0x0a60_0100 + number)
}

/// Serves until standard input ends, by at most `threads` threads. Each line there
/// begins or ends changes of endpoints, a thousand a second.
pub(crate) fn serve(
    upstream: SocketAddr,
    threads: usize,
    told: impl FnOnce(SocketAddr),
) -> anyhow::Result<()> {
    let mut config = Config::new(Name::from_ascii("cluster.local.")?);
    config.listen = vec!["127.0.0.1:0".parse()?];
    config.threads = threads;
    config.forwarding.upstreams = vec![upstream];
    let search = vec![
        Name::from_ascii("corp.example.")?,
        Name::from_ascii("example.")?,
    ];
    let shared = Shared::new(config);
    shared.change(|zone| {
        zone.add_namespace("default");
        zone.set_node_search(search);
        zone.set_pod(Pod {
            namespace: "default".into(),
            name: "client".into(),
            addresses: vec![IpAddr::V4(SEARCHING)],
            cluster_first: true,
            searches: Box::default(),
        });
        for number in 0..SERVICES {
            let key = ServiceKey::new("default", &format!("service-{number}"));
            let ports = ports();
            zone.set_service(Service {
                key,
                addressing: Addressing::Cluster(vec![service_address(number).into()]),
                ports,
            });
            zone.set_slice(slice(number, 0x0b00_0000));
        }
    });
    shared.set_ready();
    let server = Server::start(&shared)?;
    told(server.addresses()[0]);
    let (lines, toggles) = std::sync::mpsc::channel();
    let changer = std::thread::spawn(move || change(&shared, &toggles));
    for line in std::io::stdin().lines() {
        lines.send(line?)?;
    }
    drop(lines);
    changer.join().expect("it does not panic");
    Ok(())
}

/// Changes the endpoints of one Service after the other, one each millisecond,
/// between each first and second line.
fn change(shared: &Shared, toggles: &Receiver<String>) {
    while toggles.recv().is_ok() {
        let start = Instant::now();
        for count in 1u32.. {
            let due = start + Duration::from_millis(count.into());
            match toggles.recv_timeout(due.saturating_duration_since(Instant::now())) {
                Err(RecvTimeoutError::Timeout) => {}
                Ok(_) => break,
                Err(RecvTimeoutError::Disconnected) => return,
            }
            let first = if (count / SERVICES).is_multiple_of(2) {
                0x0c00_0000
            } else {
                0x0b00_0000
            };
            shared.change(|zone| zone.set_slice(slice(count % SERVICES, first)));
        }
    }
}

fn ports() -> Vec<Port> {
    vec![Port {
        name: "http".into(),
        protocol: Protocol::Tcp,
        number: 80,
    }]
}

/// A Service's endpoints, from the addresses that begin with `first`.
fn slice(number: u32, first: u32) -> EndpointSlice {
    EndpointSlice {
        name: format!("service-{number}-abcde").into(),
        service: ServiceKey::new("default", &format!("service-{number}")),
        endpoints: (0..ENDPOINTS)
            .map(|n| Endpoint {
                address: Ipv4Addr::from_bits(first + number * ENDPOINTS + n).into(),
                hostname: None,
            })
            .collect(),
        ports: ports(),
    }
}

/// A server in a process of its own.
pub(crate) struct Process {
    child: Child,
    pub(crate) address: SocketAddr,
}

impl Process {
    /// Starts this program with `arguments` on `cores`; it prints its address when
    /// it serves.
    pub(crate) fn start(cores: &str, arguments: &[&str]) -> anyhow::Result<Self> {
        let mut child = Command::new("taskset")
            .args(["--cpu-list", cores])
            .arg(std::env::current_exe()?)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdout = child.stdout.take().context("it is piped")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        Ok(Self {
            address: line.trim().parse().context("the server's address")?,
            child,
        })
    }

    /// Begins or ends the changes of endpoints.
    pub(crate) fn toggle_changes(&mut self) -> anyhow::Result<()> {
        let stdin = self.child.stdin.as_mut().context("it is piped")?;
        Ok(stdin.write_all(b"\n")?)
    }

    /// The process's number.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Resident memory in MB.
    pub(crate) fn resident(&self) -> anyhow::Result<f64> {
        resident(self.child.id())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// Resident memory of a process in MB (10^6 bytes).
pub(crate) fn resident(process: u32) -> anyhow::Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let kibibytes: f64 = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .context("VmRSS in /proc/PID/status")?;
    Ok(kibibytes * 1024.0 / 1e6)
}

/// CPU time a process has used, of all its threads (`schedstat`, proc(5)).
pub(crate) fn cpu_time(process: u32) -> anyhow::Result<Duration> {
    let mut nanoseconds = 0;
    for thread in std::fs::read_dir(format!("/proc/{process}/task"))? {
        let text = std::fs::read_to_string(thread?.path().join("schedstat"))?;
        let first = text.split_whitespace().next().context("schedstat")?;
        nanoseconds += first.parse::<u64>()?;
    }
    Ok(Duration::from_nanos(nanoseconds))
}
