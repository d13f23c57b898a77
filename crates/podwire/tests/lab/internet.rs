//! The way to the machine's uplink. A network namespace plays the machine and
//! another the internet: the machine's own is never opened.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use serde_json::Value;

use crate::support::{PODWIRE, client, eventually, output, printed, success, unique_name, url};

/// Addresses of the machine's uplink.
const MACHINE: [&str; 2] = ["198.51.100.2", "2001:db8:51::2"];
/// Addresses of a host of the internet.
const SERVER: [&str; 2] = ["198.51.100.1", "2001:db8:51::1"];
/// Addresses of the same host that no lab may reach.
const PRIVATE: [&str; 2] = ["10.250.0.1", "fd00:99::1"];

/// A network namespace, held by a process that waits for the end of its input.
struct Namespace {
    holder: Child,
}

impl Namespace {
    fn new() -> Self {
        let mut holder = Command::new("unshare")
            .args(["--net", "--", "sh", "-c", "echo ready; exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare is part of the system");
        let mut line = String::new();
        BufReader::new(holder.stdout.take().expect("its output is piped"))
            .read_line(&mut line)
            .expect("its output can be read");
        assert_eq!(line, "ready\n");
        let namespace = Self { holder };
        namespace.success(&["ip", "link", "set", "lo", "up"]);
        namespace
    }

    fn pid(&self) -> String {
        self.holder.id().to_string()
    }

    /// A program inside.
    fn command(&self, command: &[&str]) -> Command {
        let mut all = Command::new("nsenter");
        all.arg(format!("--net=/proc/{}/ns/net", self.pid()))
            .arg("--")
            .args(command);
        all
    }

    fn output(&self, command: &[&str]) -> Output {
        self.command(command)
            .stdin(Stdio::null())
            .output()
            .expect("nsenter is part of the system")
    }

    fn success(&self, command: &[&str]) -> String {
        success(&format!("{command:?}"), &self.output(command))
    }

    fn json(&self, command: &[&str]) -> Value {
        serde_json::from_str(&self.success(command)).expect("it prints JSON")
    }

    fn forwarding(&self) -> [String; 2] {
        ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"]
            .map(|name| self.success(&["sysctl", "-n", name]).trim().to_owned())
    }

    /// Names of all links and tables.
    fn objects(&self) -> Vec<String> {
        let links = self.json(&["ip", "-j", "link"]);
        let rules = self.json(&["nft", "-j", "list", "tables"]);
        let mut names: Vec<String> = links
            .as_array()
            .into_iter()
            .flatten()
            .map(|link| format!("link {}", link["ifname"].as_str().unwrap_or_default()))
            .chain(
                rules["nftables"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter_map(|object| object["table"]["name"].as_str())
                    .map(|name| format!("table {name}")),
            )
            .collect();
        names.sort();
        names
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        self.holder.kill().ok();
        self.holder.wait().ok();
    }
}

/// A machine with an uplink, and a server that it reaches.
struct World {
    machine: Namespace,
    _internet: Namespace,
    server: Child,
    lab: String,
}

impl World {
    fn new() -> Self {
        let (machine, internet) = (Namespace::new(), Namespace::new());
        machine.success(&[
            "ip",
            "link",
            "add",
            "uplink",
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            &internet.pid(),
        ]);
        for (namespace, link, addresses) in [
            (
                &machine,
                "uplink",
                MACHINE.map(|a| prefixed(a, [24, 64])).to_vec(),
            ),
            (
                &internet,
                "eth0",
                SERVER
                    .map(|a| prefixed(a, [24, 64]))
                    .into_iter()
                    .chain(PRIVATE.map(|a| prefixed(a, [32, 128])))
                    .collect(),
            ),
        ] {
            for address in addresses {
                let mut add = vec!["ip", "address", "add", &address, "dev", link];
                if address.contains(':') {
                    add.push("nodad");
                }
                namespace.success(&add);
            }
            namespace.success(&["ip", "link", "set", link, "up"]);
        }
        for gateway in SERVER {
            machine.success(&["ip", "route", "add", "default", "via", gateway]);
        }
        machine.success(&["sysctl", "-qw", "net.ipv4.ip_forward=0"]);
        let server = internet
            .command(&[
                PODWIRE, "toolbox", "serve", "--name", "internet", "--http", "80",
            ])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("podwire was built by cargo for this test");
        let world = Self {
            machine,
            _internet: internet,
            server,
            lab: unique_name(),
        };
        // The private addresses too: it is not the world that lacks them.
        for address in SERVER.iter().chain(&PRIVATE) {
            let target = url(address, 80, "/hostname");
            eventually("the internet answers", Duration::from_secs(10), || {
                let curl = ["curl", "-sS", "--max-time", "2", &target];
                let answer = world.machine.output(&curl);
                match answer.status.success() {
                    true => Ok(()),
                    false => Err(printed(&answer)),
                }
            });
        }
        world
    }

    fn up(&self, arguments: &[&str]) {
        let mut all = vec![
            PODWIRE, "lab", "up", "--name", &self.lab, "--nodes", "1", "-f", "-",
        ];
        all.extend(arguments);
        let mut up = self
            .machine
            .command(&all)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("nsenter is part of the system");
        up.stdin
            .take()
            .expect("standard input is piped")
            .write_all(client("one", "node-1").as_bytes())
            .expect("podwire lab up reads its manifests");
        success(
            "lab up",
            &up.wait_with_output().expect("podwire lab up ends"),
        );
    }

    fn down(&self) -> Output {
        self.machine
            .output(&[PODWIRE, "lab", "down", "--name", &self.lab])
    }

    /// `curl` in the pod.
    fn ask(&self, address: &str) -> Output {
        self.machine.output(&[
            PODWIRE,
            "lab",
            "exec",
            "--name",
            &self.lab,
            "one",
            "--",
            "curl",
            "-sS",
            "--max-time",
            "5",
            &url(address, 80, "/clientip"),
        ])
    }

    fn kill_supervisor(&self) {
        let found = output(
            "pgrep",
            &["-f", &format!("lab-supervisor --name {} ", self.lab)],
        );
        let pid: i32 = String::from_utf8_lossy(&found.stdout)
            .trim()
            .parse()
            .unwrap_or_else(|_| panic!("one supervisor: {}", printed(&found)));
        rustix::process::kill_process(
            rustix::process::Pid::from_raw(pid).expect("pgrep prints process numbers"),
            rustix::process::Signal::KILL,
        )
        .expect("the supervisor runs");
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.down();
        self.server.kill().ok();
        self.server.wait().ok();
    }
}

fn prefixed(address: &str, lengths: [u8; 2]) -> String {
    format!("{address}/{}", lengths[usize::from(address.contains(':'))])
}

#[test]
fn an_open_lab_reaches_the_internet_as_the_machine_and_nothing_private() {
    let world = World::new();
    let before = world.machine.objects();
    let forwarding = world.machine.forwarding();
    assert_eq!(forwarding[0], "0");
    world.up(&["--internet"]);

    for (server, machine) in SERVER.iter().zip(MACHINE) {
        let seen = success("the pod asks", &world.ask(server));
        assert_eq!(seen.trim(), machine, "the source of what {server} gets");
    }
    // The machine itself reaches these, as was seen; and its own addresses.
    for refused in PRIVATE.iter().chain(&MACHINE) {
        let answer = world.ask(refused);
        let text = printed(&answer);
        // curl: 7 is a refused connection.
        assert_eq!(answer.status.code(), Some(7), "{refused}: {text}");
    }
    // The lab's own unused addresses end in the lab.
    let lost = world.ask("10.200.77.7");
    assert!(!lost.status.success());
    assert_eq!(world.machine.forwarding(), ["1", "1"]);
    let during = world.machine.objects();
    assert_eq!(during.len(), before.len() + 2, "{during:?}");
    let table = format!("table podwire_lab_{}", world.lab);
    assert!(during.contains(&table), "{during:?}");
    // No route into the lab but the link of the router.
    let routes = world.machine.json(&["ip", "-j", "route"]);
    let into_lab: Vec<&str> = routes
        .as_array()
        .into_iter()
        .flatten()
        .filter(|route| {
            route["dev"]
                .as_str()
                .is_some_and(|dev| dev.starts_with("pwl"))
        })
        .filter_map(|route| route["dst"].as_str())
        .collect();
    assert!(
        matches!(into_lab.as_slice(), [only] if only.starts_with("192.0.2.")),
        "{routes}"
    );

    success("lab down", &world.down());
    assert_eq!(world.machine.objects(), before);
    assert_eq!(world.machine.forwarding(), forwarding);
}

#[test]
fn nothing_of_an_open_lab_outlives_kill_9_of_its_supervisor_and_down() {
    let world = World::new();
    let before = world.machine.objects();
    let forwarding = world.machine.forwarding();
    world.up(&["--internet"]);
    world.kill_supervisor();
    success("lab down", &world.down());
    assert_eq!(world.machine.objects(), before);
    assert_eq!(world.machine.forwarding(), forwarding);

    // Nor does the next `up`, of a closed lab, find any of it.
    world.up(&["--internet"]);
    world.kill_supervisor();
    world.up(&[]);
    assert_eq!(world.machine.objects(), before);
    assert_eq!(world.machine.forwarding(), forwarding);
    assert!(!world.ask(SERVER[0]).status.success());
}
