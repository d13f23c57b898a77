//! Plugins, driven as a runtime drives them: one process a plugin and
//! operation, the result of one being the next one's `prevResult`.

use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use linux::namespace::NetworkNamespace;
use podwire_cni::bridge_guard::{self, BridgeGuard, Holding};
use podwire_cni::install;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::Subject;

/// podwire's plugin, installed as on a node.
pub(crate) struct Installed {
    plugin: String,
    _directory: TempDir,
}

impl Installed {
    /// Installs it on the disk it was built on. A file that was written as a whole is
    /// in memory in larger pieces than one that a linker wrote, and mapped sooner.
    pub(crate) fn new() -> anyhow::Result<Self> {
        let directory = TempDir::new_in(env!("CARGO_TARGET_TMPDIR"))?;
        let built = Path::new(env!("CARGO_BIN_EXE_podwire-cni"));
        let plugin = install::plugin(built, directory.path())?.context("it was there already")?;
        Ok(Self {
            plugin: plugin.display().to_string(),
            _directory: directory,
        })
    }
}

/// Where Debian's containernetworking-plugins are.
const REFERENCE: &str = "/usr/lib/cni";

/// A config list.
struct Chain {
    /// Program and configuration of each plugin.
    plugins: Vec<(String, Value)>,
    /// What each pod's ADD answered, for its DEL.
    results: Mutex<Vec<(usize, Value)>>,
    mappings: bool,
    /// Whether there is podwire's agent.
    agent: bool,
    state: TempDir,
}

/// Where podwire's reservations and the reference's are kept: in memory, as
/// podwire's are on a node, so that no disk is compared.
const STATE: &str = "/dev/shm";

fn ranges() -> Value {
    json!([[{"subnet": "10.200.0.0/22"}], [{"subnet": "fd00:200::/64"}]])
}

/// podwire's own plugin, which maps ports and shapes by itself.
pub(crate) fn podwire(
    installed: &Installed,
    attach: &str,
    mappings: bool,
    agent: bool,
) -> anyhow::Result<Box<dyn Subject>> {
    let state = TempDir::new_in(STATE)?;
    let configuration = json!({
        "cniVersion": "1.0.0", "name": "bench", "type": "podwire-cni", "attach": attach,
        "logFile": state.path().join("cni.log"),
        "ipam": {"ranges": ranges(), "dataDir": state.path().join("ipam")},
    });
    Ok(Box::new(Chain {
        plugins: vec![(installed.plugin.clone(), configuration)],
        results: Mutex::default(),
        mappings,
        agent,
        state,
    }))
}

/// The reference chain.
pub(crate) fn reference(mappings: bool) -> anyhow::Result<Box<dyn Subject>> {
    let state = TempDir::new_in(STATE)?;
    let bridge = json!({
        "cniVersion": "1.0.0", "name": "bench", "type": "bridge", "bridge": "cni0",
        "isGateway": true, "hairpinMode": true,
        "ipam": {
            "type": "host-local", "ranges": ranges(), "dataDir": state.path(),
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
        },
    });
    let mut plugins = vec![(format!("{REFERENCE}/bridge"), bridge)];
    if mappings {
        for name in ["portmap", "bandwidth"] {
            let configuration = json!({"cniVersion": "1.0.0", "name": "bench", "type": name});
            plugins.push((format!("{REFERENCE}/{name}"), configuration));
        }
    }
    Ok(Box::new(Chain {
        plugins,
        results: Mutex::default(),
        mappings,
        agent: false,
        state,
    }))
}

impl Chain {
    fn configuration(&self, plugin: &Value, number: usize, previous: Option<&Value>) -> Value {
        let mut configuration = plugin.clone();
        if let Some(previous) = previous {
            configuration["prevResult"] = previous.clone();
        }
        if self.mappings {
            configuration["runtimeConfig"] = json!({
                "portMappings": [{"hostPort": 10_000 + number, "containerPort": 80, "protocol": "tcp"}],
                "bandwidth": {"ingressRate": 1_000_000_000, "ingressBurst": 10_000_000,
                              "egressRate": 1_000_000_000, "egressBurst": 10_000_000},
            });
        }
        configuration
    }
}

impl Subject for Chain {
    fn add(&self, number: usize, pod: &NetworkNamespace) -> anyhow::Result<()> {
        let mut result = None;
        for (program, plugin) in &self.plugins {
            let configuration = self.configuration(plugin, number, result.as_ref());
            let answer = call(program, "ADD", &configuration, number, pod)?;
            result = Some(serde_json::from_slice(&answer)?);
        }
        if let (Some(result), Ok(mut results)) = (result, self.results.lock()) {
            results.push((number, result));
        }
        Ok(())
    }

    fn delete(&self, number: usize, pod: &NetworkNamespace) -> anyhow::Result<()> {
        let result = self.results.lock().ok().and_then(|mut results| {
            let at = results.iter().position(|(of, _)| *of == number)?;
            Some(results.swap_remove(at).1)
        });
        for (program, plugin) in self.plugins.iter().rev() {
            let configuration = self.configuration(plugin, number, result.as_ref());
            call(program, "DEL", &configuration, number, pod)?;
        }
        Ok(())
    }

    fn agent(&self) -> anyhow::Result<Option<BridgeGuard>> {
        if !self.agent {
            return Ok(None);
        }
        Ok(match bridge_guard::hold(&self.state.path().join("ipam"))? {
            Holding::Held(guard) => Some(guard),
            // It gets along without.
            Holding::Taken | Holding::Impossible(_) => None,
        })
    }
}

fn call(
    program: &str,
    command: &str,
    configuration: &Value,
    number: usize,
    pod: &NetworkNamespace,
) -> anyhow::Result<Vec<u8>> {
    let mut child = Command::new(program)
        .env("CNI_COMMAND", command)
        .env("CNI_CONTAINERID", format!("bench-{number}"))
        .env("CNI_IFNAME", "eth0")
        .env(
            "CNI_NETNS",
            format!("/proc/{}/fd/{}", std::process::id(), pod.as_raw_fd()),
        )
        .env("CNI_PATH", REFERENCE)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {program}"))?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(configuration.to_string().as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!(
            "{program} {command}: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(output.stdout)
}

/// One process of the plugin that does nothing.
pub(crate) fn exec(installed: &Installed, rounds: usize) -> anyhow::Result<Vec<Duration>> {
    let pod = NetworkNamespace::create()?;
    (0..rounds)
        .map(|number| {
            let start = Instant::now();
            call(
                &installed.plugin,
                "VERSION",
                &json!({"cniVersion": "1.0.0"}),
                number,
                &pod,
            )?;
            Ok(start.elapsed())
        })
        .collect()
}
