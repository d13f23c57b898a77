//! A node and its pods made of throw-away namespaces, and the plugin driven as
//! a runtime drives it. Needs root.
#![allow(
    clippy::unwrap_used,
    dead_code,
    unreachable_pub,
    reason = "tests say what they expect with unwrap, and each uses a part of this"
)]

pub mod packets;

use std::io::Write as _;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use linux::namespace::NetworkNamespace;
use serde_json::{Value, json};
use tempfile::TempDir;

/// The node's own addresses.
pub const NODE: [&str; 2] = ["192.0.2.9", "2001:db8::9"];

pub struct Node {
    pub namespace: NetworkNamespace,
    pub state: TempDir,
}

pub struct Pod {
    pub namespace: NetworkNamespace,
    pub id: String,
}

impl Pod {
    pub fn new(id: &str) -> Self {
        Self {
            namespace: NetworkNamespace::create().unwrap(),
            id: id.to_owned(),
        }
    }

    pub fn path(&self) -> String {
        path_of(&self.namespace)
    }
}

/// A path that leads to a namespace held by this process.
pub fn path_of(namespace: &NetworkNamespace) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), namespace.as_raw_fd())
}

/// How a plugin run ended.
#[derive(Debug)]
pub struct Outcome {
    pub success: bool,
    pub stdout: Value,
    pub stderr: String,
}

impl Outcome {
    #[track_caller]
    pub fn ok(self) -> Value {
        assert!(self.success, "{self:?}");
        self.stdout
    }

    #[track_caller]
    pub fn code(&self) -> u64 {
        assert!(!self.success, "{self:?}");
        self.stdout["code"].as_u64().unwrap()
    }
}

impl Node {
    /// A node with an address of each family on none of the pods' links.
    pub fn new() -> Self {
        let namespace = NetworkNamespace::create().unwrap();
        let mut socket = namespace.route_socket().unwrap();
        let addresses = NODE.map(|address| {
            linux::address::add(&linux::address::Address::new(
                1,
                address.parse::<IpAddr>().unwrap().into(),
            ))
        });
        socket.execute(&linux::link::set_up(1)).unwrap();
        socket.execute_all(&addresses).unwrap();
        Self {
            namespace,
            state: TempDir::new().unwrap(),
        }
    }

    /// A configuration of both families.
    pub fn configuration(&self, attach: &str) -> Value {
        json!({
            "cniVersion": "1.1.0", "name": "pods", "type": "podwire-cni", "attach": attach,
            "logFile": self.state.path().join("cni.log"),
            "ipam": {
                "ranges": [[{"subnet": "10.200.1.0/24"}], [{"subnet": "fd00:200:0:1::/64"}]],
                "dataDir": self.state.path(),
            },
        })
    }

    pub fn spawn(&self, configuration: &Value, variables: &[(&str, &str)]) -> Child {
        self.spawn_under(&[], configuration, variables)
    }

    /// Runs the plugin under another program.
    pub fn spawn_under(
        &self,
        wrapper: &[&str],
        configuration: &Value,
        variables: &[(&str, &str)],
    ) -> Child {
        let plugin = env!("CARGO_BIN_EXE_podwire-cni");
        let words: Vec<_> = wrapper.iter().copied().chain([plugin]).collect();
        let mut child = self
            .namespace
            .run(|| {
                Command::new(words[0])
                    .args(&words[1..])
                    .env_clear()
                    .envs(variables.iter().copied())
                    .stdin(Stdio::piped())
                    .stdout(Stdio::piped())
                    .stderr(Stdio::piped())
                    .spawn()
                    .unwrap()
            })
            .unwrap();
        // A plugin may end before it reads.
        let _ = child
            .stdin
            .take()
            .unwrap()
            .write_all(configuration.to_string().as_bytes());
        child
    }

    pub fn plugin(&self, configuration: &Value, variables: &[(&str, &str)]) -> Outcome {
        finish(self.spawn(configuration, variables))
    }

    pub fn call(&self, command: &str, configuration: &Value, pod: &Pod) -> Outcome {
        self.plugin(
            configuration,
            &[
                ("CNI_COMMAND", command),
                ("CNI_CONTAINERID", &pod.id),
                ("CNI_NETNS", &pod.path()),
                ("CNI_IFNAME", "eth0"),
                (
                    "CNI_ARGS",
                    &format!(
                        "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME={}",
                        pod.id
                    ),
                ),
                ("CNI_PATH", "/opt/cni/bin"),
            ],
        )
    }

    /// Links of the node besides loopback.
    pub fn links(&self) -> Vec<String> {
        ip(&self.namespace, "link show")
            .as_array()
            .unwrap()
            .iter()
            .map(|link| link["ifname"].as_str().unwrap().to_owned())
            .filter(|name| name != "lo")
            .collect()
    }

    /// Files that stand for an address.
    pub fn reservations(&self) -> Vec<String> {
        let Ok(listing) = std::fs::read_dir(self.state.path().join("pods")) else {
            return Vec::new();
        };
        let mut names: Vec<_> = listing
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.ends_with(".json"))
            .collect();
        names.sort();
        names
    }

    /// Links that wait to be deleted.
    pub fn aside(&self) -> Vec<Value> {
        let group = podwire_cni::reaper::GROUP;
        let links = ip(&self.namespace, &format!("link show group {group}"));
        links
            .as_array()
            .into_iter()
            .flatten()
            // Others are shown as empty objects.
            .filter(|link| link["ifname"].is_string())
            .cloned()
            .collect()
    }

    /// Waits until what DEL left to the background is done.
    #[track_caller]
    pub fn settle(&self) {
        let left = || {
            let links = self
                .aside()
                .into_iter()
                .map(|link| link["ifname"].to_string());
            let retired = std::fs::read_dir(self.state.path().join("pods/releasing"));
            let retired = retired.into_iter().flatten().flatten();
            links
                .chain(retired.map(|f| f.path().display().to_string()))
                .collect::<Vec<_>>()
        };
        eventually("the links of deleted pods go", || {
            let left = left();
            if left.is_empty() { Ok(()) } else { Err(left) }
        });
    }

    /// Nothing of any pod is left, at the latest when the background is done;
    /// the bridge may stay.
    #[track_caller]
    pub fn assert_clean(&self) {
        self.settle();
        assert_eq!(self.reservations(), Vec::<String>::new());
        let left: Vec<_> = self.links().into_iter().filter(|l| l != "pwbr0").collect();
        assert_eq!(left, Vec::<String>::new());
        for family in ["-4", "-6"] {
            let routes = ip(&self.namespace, &format!("{family} route show proto 112"));
            assert_eq!(routes, json!([]));
        }
        let neighbours = ip(&self.namespace, "neighbour show nud permanent");
        let neighbours: Vec<_> = neighbours
            .as_array()
            .unwrap()
            .iter()
            .filter(|n| {
                n["dst"]
                    .as_str()
                    .is_some_and(|d| d.starts_with("10.") || d.starts_with("fd00:"))
            })
            .collect();
        assert!(neighbours.is_empty(), "{neighbours:?}");
    }
}

/// Waits until a condition holds; fails with what was seen last.
#[track_caller]
pub fn eventually<T, E: std::fmt::Debug>(what: &str, mut check: impl FnMut() -> Result<T, E>) -> T {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match check() {
            Ok(value) => return value,
            Err(seen) if Instant::now() > deadline => panic!("{what}: {seen:?}"),
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

pub fn finish(child: Child) -> Outcome {
    let output = child.wait_with_output().unwrap();
    Outcome {
        success: output.status.success(),
        stdout: if output.stdout.is_empty() {
            Value::Null
        } else {
            serde_json::from_slice(&output.stdout).unwrap()
        },
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// The output of `ip -j` with `arguments`, run inside `namespace`.
pub fn ip(namespace: &NetworkNamespace, arguments: &str) -> Value {
    let output = namespace
        .run(|| {
            Command::new("ip")
                .args(["-j", "-d"])
                .args(arguments.split_whitespace())
                .output()
                .unwrap()
        })
        .unwrap();
    assert!(output.status.success(), "ip {arguments}: {output:?}");
    if output.stdout.iter().all(u8::is_ascii_whitespace) {
        return json!([]);
    }
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Addresses of a result, without prefix lengths.
pub fn addresses(result: &Value) -> Vec<IpAddr> {
    result["ips"]
        .as_array()
        .unwrap()
        .iter()
        .map(|ip| {
            let text = ip["address"].as_str().unwrap();
            text.split('/').next().unwrap().parse().unwrap()
        })
        .collect()
}

#[track_caller]
pub fn assert_pings(from: &NetworkNamespace, to: IpAddr) {
    let output = from
        .run(|| {
            Command::new("ping")
                .args(["-n", "-c", "1", "-W", "20", &to.to_string()])
                .output()
                .unwrap()
        })
        .unwrap();
    assert!(output.status.success(), "ping {to}: {output:?}");
}

pub fn pings(from: &NetworkNamespace, to: IpAddr) -> bool {
    from.run(|| {
        Command::new("ping")
            .args(["-n", "-c", "1", "-W", "1", &to.to_string()])
            .output()
            .unwrap()
            .status
            .success()
    })
    .unwrap()
}

/// Connects from one namespace to a server in another; gives the address the
/// server saw.
#[track_caller]
pub fn connect(client: &NetworkNamespace, server: &NetworkNamespace, address: IpAddr) -> IpAddr {
    let listener = server
        .run(|| TcpListener::bind(SocketAddr::new(address, 0)).unwrap())
        .unwrap();
    let target = listener.local_addr().unwrap();
    let stream = client
        .run(|| TcpStream::connect_timeout(&target, Duration::from_secs(3)))
        .unwrap()
        .unwrap_or_else(|error| panic!("connect to {target}: {error}"));
    let (mut accepted, seen) = listener.accept().unwrap();
    accepted.write_all(b"hello").unwrap();
    drop(accepted);
    let text = std::io::read_to_string(stream).unwrap();
    assert_eq!(text, "hello");
    seen.ip()
}
