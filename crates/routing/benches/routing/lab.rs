//! Labs of two nodes with a pod on each, brought up by the built binary. Their
//! namespaces are entered directly: no process of a pod has a part in it.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io::Write as _;
use std::net::IpAddr;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use linux::namespace::{Identity, NetworkNamespace};
use linux::{address, link};
use serde_json::Value;

/// Which program is measured.
pub(crate) const PODWIRE: &str = "PODWIRE_BIN";

const NODES: [&str; 2] = ["node-1", "node-2"];
/// How long the fast path may take to come, and how often it is asked for.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// A node or a pod.
pub(crate) struct End {
    pub(crate) namespace: NetworkNamespace,
    /// IPv4 first.
    pub(crate) addresses: [IpAddr; 2],
}

/// A running lab; taken down when dropped.
pub(crate) struct Lab {
    podwire: String,
    name: String,
}

/// Both nodes and the pod on each.
pub(crate) struct Ends {
    pub(crate) nodes: [End; 2],
    pub(crate) pods: [End; 2],
    /// The MTU of the pods.
    pub(crate) mtu: u32,
}

/// Packets from pods or to them.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Packets {
    pub(crate) fast: u64,
    pub(crate) all: u64,
}

impl Lab {
    /// Brings one up; its name is no other's.
    pub(crate) fn up(backend: &str, fast_path: &str) -> anyhow::Result<(Self, Ends)> {
        let podwire = std::env::var(PODWIRE).with_context(|| {
            format!("{PODWIRE} does not name the podwire binary: run `cargo xtask bench routing`")
        })?;
        let lab = Self {
            podwire,
            name: format!("bench-{}-{backend}-{fast_path}", std::process::id()),
        };
        let up = [
            "up",
            "--nodes",
            "2",
            "--attach",
            "routed",
            "--backend",
            backend,
            "--fast-path",
            fast_path,
            "--wait-timeout",
            "180s",
            "-o",
            "json",
            "-f",
            "-",
        ];
        let pods = NODES.map(|node| {
            format!(
                "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: on-{node}}}, spec: {{nodeName: \
                 {node}, terminationGracePeriodSeconds: 0, containers: [{{name: idle, image: \
                 podwire.dev/toolbox}}]}}}}\n"
            )
        });
        let summary = lab.command(&["lab"], &up, &pods.concat())?;
        let ends = lab.ends(&serde_json::from_slice(&summary.stdout)?)?;
        lab.wait_for_programs()?;
        Ok((lab, ends))
    }

    /// Pods are ready before the programs of the fast path are where they are to be.
    fn wait_for_programs(&self) -> anyhow::Result<()> {
        let start = Instant::now();
        for node in NODES {
            loop {
                let report = self.report(node)?;
                if report["starting"] != true && report["pending"] == 0 {
                    break;
                }
                ensure!(start.elapsed() < PATIENCE, "no fast path yet: {report}");
                std::thread::sleep(LOOK_AGAIN);
            }
        }
        Ok(())
    }

    /// What a node says of its fast path.
    fn report(&self, node: &str) -> anyhow::Result<Value> {
        let place = ["routes", "--lab", &self.name, "--node", node, "-o", "json"];
        let output = self.run(&["inspect"], &place, "")?;
        let report: Value = serde_json::from_slice(&output.stdout)?;
        Ok(report["fastPath"].clone())
    }

    /// Finds out what is where.
    fn ends(&self, summary: &Value) -> anyhow::Result<Ends> {
        let namespaces = namespaces(&self.name)?;
        let end = |kind: &str, name: &str| {
            let objects = summary[kind].as_array().into_iter().flatten();
            let mut of_name = objects.filter(|object| object["name"] == name);
            let object = of_name.next().context("it is not there")?;
            let texts = object["addresses"].as_array().into_iter().flatten();
            let texts = texts.filter_map(|text| text.as_str());
            let mut addresses = texts.map(str::parse).collect::<Result<Vec<IpAddr>, _>>()?;
            addresses.sort();
            let addresses: [IpAddr; 2] = addresses
                .try_into()
                .map_err(|has| anyhow::anyhow!("it has not an address of each family: {has:?}"))?;
            let mut with = namespaces
                .iter()
                .filter(|(_, all)| all.contains(&addresses[0]));
            let (namespace, _) = with.next().context("its namespace is not found")?;
            Ok::<End, anyhow::Error>(End {
                namespace: namespace.clone(),
                addresses,
            })
        };
        let of = |kind: &str, name: &str| end(kind, name).with_context(|| name.to_owned());
        let pods = NODES.map(|node| of("pods", &format!("on-{node}")));
        let [one, other] = pods;
        let pods = [one?, other?];
        let [one, other] = NODES.map(|node| of("nodes", node));
        let mut socket = pods[0].namespace.route_socket()?;
        let cable = link::get(&mut socket, "eth0")?.context("the pod has no eth0")?;
        Ok(Ends {
            nodes: [one?, other?],
            pods,
            mtu: cable.mtu,
        })
    }

    /// How many packets from and to pods went past the IP stack of their node, of
    /// both nodes together; or why none did.
    pub(crate) fn fast_path(&self) -> anyhow::Result<Result<[Packets; 2], String>> {
        let mut sums = [Packets::default(); 2];
        for node in NODES {
            let report = self.report(node)?;
            if let Some(why) = report["off"].as_str() {
                return Ok(Err(why.to_owned()));
            }
            for (way, sum) in ["outbound", "inbound"].into_iter().zip(&mut sums) {
                let counts: BTreeMap<String, u64> = serde_json::from_value(report[way].clone())?;
                for (outcome, count) in counts {
                    match &*outcome {
                        "taken" => {
                            sum.fast += count;
                            sum.all += count;
                        }
                        // To the node itself: that measured as plain.
                        "destination" if way == "inbound" => {}
                        _ => sum.all += count,
                    }
                }
            }
        }
        Ok(Ok(sums))
    }

    /// A command about the lab, which has to succeed.
    fn command(&self, first: &[&str], then: &[&str], input: &str) -> anyhow::Result<Output> {
        self.run(first, &[then, &["--name", &self.name]].concat(), input)
    }

    fn run(&self, first: &[&str], then: &[&str], input: &str) -> anyhow::Result<Output> {
        let mut command = Command::new(&self.podwire);
        command.args(first).args(then);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input.as_bytes())?;
        }
        let output = child.wait_with_output()?;
        ensure!(
            output.status.success(),
            "{command:?}: {}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(output)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Err(error) = self.command(&["lab"], &["down"], "") {
            eprintln!("{error:#}");
        }
    }
}

/// The network namespaces of a lab's processes, with the addresses in each.
fn namespaces(lab: &str) -> anyhow::Result<Vec<(NetworkNamespace, Vec<IpAddr>)>> {
    let mut parents = BTreeMap::new();
    let mut supervisor = None;
    for entry in std::fs::read_dir("/proc")? {
        let path = entry?.path();
        // One that ended meanwhile is none of those that are looked for.
        let Some((process, parent, words)) = process(&path) else {
            continue;
        };
        parents.insert(process, parent);
        let is_first = words.iter().any(|word| word == "lab-supervisor");
        if is_first && words.iter().any(|word| word == lab) {
            supervisor = Some(process);
        }
    }
    let supervisor = supervisor.with_context(|| format!("the lab {lab} does not run"))?;
    let is_below = |process: u32| {
        let above = std::iter::successors(Some(process), |process| parents.get(process).copied());
        above.into_iter().any(|process| process == supervisor)
    };
    let mut found: BTreeMap<Identity, (NetworkNamespace, Vec<IpAddr>)> = BTreeMap::new();
    for process in parents.keys().copied().filter(|process| is_below(*process)) {
        let Ok(namespace) = NetworkNamespace::of_process(process) else {
            continue;
        };
        if let Entry::Vacant(entry) = found.entry(namespace.identity()?) {
            let mut socket = namespace.route_socket()?;
            let addresses = address::list(&mut socket, None)?;
            let addresses = addresses.iter().map(|address| address.address.addr());
            entry.insert((namespace, addresses.collect()));
        }
    }
    Ok(found.into_values().collect())
}

/// A process of `/proc`, its parent and its command line (proc_pid_stat(5)).
fn process(path: &Path) -> Option<(u32, u32, Vec<String>)> {
    let number = path.file_name()?.to_str()?.parse().ok()?;
    let stat = std::fs::read_to_string(path.join("stat")).ok()?;
    // The name in parentheses may have any character in it.
    let (_, rest) = stat.rsplit_once(") ")?;
    let parent = rest.split(' ').nth(1)?.parse().ok()?;
    let line = std::fs::read_to_string(path.join("cmdline")).ok()?;
    Some((
        number,
        parent,
        line.split('\0').map(str::to_owned).collect(),
    ))
}
