//! podwire's server with a large zone, in a process of its own on the first core.

use std::io::{BufRead as _, BufReader};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

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

/// Serves until standard input ends.
pub(crate) fn serve(upstream: SocketAddr, told: impl FnOnce(SocketAddr)) -> anyhow::Result<()> {
    let mut config = Config::new(Name::from_ascii("cluster.local.")?);
    config.listen = vec!["127.0.0.1:0".parse()?];
    config.threads = 1;
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
            let ports = vec![Port {
                name: "http".into(),
                protocol: Protocol::Tcp,
                number: 80,
            }];
            zone.set_service(Service {
                key: key.clone(),
                addressing: Addressing::Cluster(vec![service_address(number).into()]),
                ports: ports.clone(),
            });
            zone.set_slice(EndpointSlice {
                name: format!("service-{number}-abcde").into(),
                service: key,
                endpoints: (0..ENDPOINTS)
                    .map(|n| Endpoint {
                        address: Ipv4Addr::from_bits(0x0b00_0000 + number * ENDPOINTS + n).into(),
                        hostname: None,
                    })
                    .collect(),
                ports,
            });
        }
    });
    shared.set_ready();
    let server = Server::start(&shared)?;
    told(server.addresses()[0]);
    std::io::stdin().lines().for_each(drop);
    Ok(())
}

/// A server in a process of its own, on the first core.
pub(crate) struct Process {
    child: Child,
    pub(crate) address: SocketAddr,
}

impl Process {
    /// Starts this program with `arguments`; it prints its address when it serves.
    pub(crate) fn start(arguments: &[&str]) -> anyhow::Result<Self> {
        let mut child = Command::new("taskset")
            .args(["--cpu-list", "0"])
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
