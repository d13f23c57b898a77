//! unbound with the same names as local data, one thread on the first core.

use std::fmt::Write as _;
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use crate::SERVICES;
use crate::server::{resident, service_address, service_name};

pub(crate) struct Unbound {
    child: Child,
    pub(crate) address: SocketAddr,
}

impl Unbound {
    /// Starts one with a thread for each of `cores`.
    pub(crate) fn start(
        directory: &Path,
        cores: &[u32],
        upstream: SocketAddr,
    ) -> anyhow::Result<Self> {
        let address = UdpSocket::bind(("127.0.0.1", 0))?.local_addr()?;
        let mut text = format!(
            "server:\n interface: {}@{}\n do-daemonize: no\n username: \"\"\n chroot: \"\"\n \
             pidfile: \"\"\n use-syslog: no\n logfile: \"\"\n verbosity: 0\n num-threads: {}\n \
             do-not-query-localhost: no\n module-config: \"iterator\"\n so-reuseport: yes\n \
             local-zone: \"cluster.local.\" static\n \
             local-data: \"cluster.local. 5 SOA ns.dns.cluster.local. h.cluster.local. 1 2 3 4 5\"\n",
            address.ip(),
            address.port(),
            cores.len()
        );
        for number in 0..SERVICES {
            writeln!(
                text,
                " local-data: \"{}. 5 A {}\"",
                service_name(number),
                service_address(number)
            )?;
        }
        write!(
            text,
            "forward-zone:\n name: \".\"\n forward-addr: {}@{}\nremote-control:\n control-enable: no\n",
            upstream.ip(),
            upstream.port()
        )?;
        let file = directory.join(format!("unbound-{}.conf", cores.len()));
        std::fs::write(&file, text)?;
        let child = Command::new("taskset")
            .args(["--cpu-list", &crate::list(cores), "unbound", "-d", "-c"])
            .arg(&file)
            .stdin(Stdio::null())
            .spawn()
            .context("starting unbound: install the package unbound")?;
        let unbound = Self { child, address };
        unbound.wait()?;
        Ok(unbound)
    }

    /// Waits until it answers.
    fn wait(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(30);
        let socket = UdpSocket::bind(("127.0.0.1", 0))?;
        socket.connect(self.address)?;
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        let mut buffer = [0; 512];
        // A question for the root's servers, which it answers or refuses.
        let question = [0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1];
        loop {
            ensure!(Instant::now() < deadline, "unbound does not answer");
            let sent = socket.send(&question);
            if sent.is_ok() && socket.recv(&mut buffer).is_ok() {
                return Ok(());
            }
        }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn resident(&self) -> anyhow::Result<f64> {
        resident(self.child.id())
    }
}

impl Drop for Unbound {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
