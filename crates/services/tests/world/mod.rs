//! Namespaces for tests: a node with two pods on routed veths, and an outside host.

#![allow(dead_code, unreachable_pub, reason = "shared by several test binaries")]

use std::io::Write as _;
use std::net::IpAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use linux::namespace::NetworkNamespace;
use podwire_services::{
    Endpoint, EndpointSlice, Family, NodeFacts, Protocol, Service, ServiceName, ServicePort,
    SlicePort,
};

/// A namespace that external programs can be run in: a sleeping process holds it.
pub struct Space {
    pub namespace: NetworkNamespace,
    holder: Child,
}

impl Space {
    pub fn new() -> Self {
        let namespace = NetworkNamespace::create().expect("tests need root");
        let holder = namespace
            .run(|| {
                Command::new("sleep")
                    .arg("infinity")
                    .stdin(Stdio::null())
                    .stdout(Stdio::null())
                    .stderr(Stdio::null())
                    .spawn()
            })
            .expect("entered")
            .expect("coreutils are installed");
        let space = Self { namespace, holder };
        space.ip("link set lo up");
        space
    }

    pub fn pid(&self) -> u32 {
        self.holder.id()
    }

    pub fn enter(&self) -> std::io::Result<()> {
        self.namespace.enter()
    }

    /// Runs a program inside and returns what it printed.
    pub fn command(&self, program: &str, arguments: &[&str]) -> String {
        let output = self
            .namespace
            .run(|| Command::new(program).args(arguments).output())
            .expect("entered")
            .unwrap_or_else(|error| panic!("{program}: {error}"));
        assert!(
            output.status.success(),
            "{program} {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    pub fn ip(&self, line: &str) {
        let arguments: Vec<&str> = line.split_whitespace().collect();
        self.command("ip", &arguments);
    }

    /// Many lines by one process: in an emulated machine starting one takes long.
    pub fn ip_batch(&self, lines: &[String]) {
        let mut child = self
            .namespace
            .run(|| {
                Command::new("ip")
                    .args(["-batch", "-"])
                    .stdin(Stdio::piped())
                    .stderr(Stdio::piped())
                    .spawn()
            })
            .expect("entered")
            .expect("ip is installed");
        let mut stdin = child.stdin.take().expect("it is piped");
        let written = stdin.write_all((lines.join("\n") + "\n").as_bytes());
        drop(stdin);
        let output = child.wait_with_output().expect("it ends");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{lines:#?}: {said}");
        written.expect("ip reads all lines");
    }

    /// Waits until the kernel has taken up an IPv6 address: it notices a link's
    /// carrier in the background, and drops what comes and goes before.
    fn wait_for(&self, address: &str) {
        let address: std::net::Ipv6Addr = address.parse().expect("a literal");
        let text: String = address.octets().map(|byte| format!("{byte:02x}")).concat();
        let deadline = Instant::now() + Duration::from_secs(20);
        let route = format!("{text} 80 ");
        let is_there = || {
            let routes = std::fs::read_to_string("/proc/thread-self/net/ipv6_route");
            routes.is_ok_and(|routes| routes.lines().any(|line| line.starts_with(&route)))
        };
        while !self.namespace.run(is_there).expect("entered") {
            assert!(Instant::now() < deadline, "{address} is not taken up");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub fn set(&self, path: &str, value: &str) {
        self.namespace
            .run(|| std::fs::write(format!("/proc/sys/{path}"), value))
            .expect("entered")
            .unwrap_or_else(|error| panic!("{path}: {error}"));
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// The node's address, and that of the host outside.
pub const NODE4: &str = "192.168.64.11";
pub const NODE6: &str = "fd00:64::11";
pub const OUTSIDE4: &str = "192.168.64.1";
pub const OUTSIDE6: &str = "fd00:64::1";
/// The node's address on the bridge, where there is one.
pub const BRIDGE4: &str = "10.200.1.1";
pub const BRIDGE6: &str = "fd00:200:0:1::1";

/// How pods hang on the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attach {
    Routed,
    Bridge,
}

pub struct World {
    pub node: Space,
    pub pods: Vec<Space>,
    pub outside: Space,
}

/// The addresses of pod `n`.
pub fn pod4(n: usize) -> String {
    format!("10.200.1.{}", n + 10)
}
pub fn pod6(n: usize) -> String {
    format!("fd00:200:0:1::{:x}", n + 10)
}

impl World {
    /// A node without pods.
    pub fn new() -> Self {
        Self::with(Attach::Routed, 0)
    }

    pub fn with(attach: Attach, pods: usize) -> Self {
        let node = Space::new();
        let outside = Space::new();
        node.set("net/ipv4/ip_forward", "1");
        node.set("net/ipv6/conf/all/forwarding", "1");
        let spaces: Vec<Space> = (0..pods).map(|_| Space::new()).collect();
        let end = |name: &str, space: &Space| {
            let pid = space.pid();
            format!("link add {name} type veth peer name eth0 netns {pid}")
        };
        let mut links = vec![end("eth0", &outside)];
        if attach == Attach::Bridge {
            links.push("link add pwbr0 type bridge".to_owned());
        }
        links.extend(
            spaces
                .iter()
                .enumerate()
                .map(|(n, pod)| end(&format!("pw{n}"), pod)),
        );
        let uplink = |v4: &str, v6: &str| {
            [
                format!("addr add {v4}/24 dev eth0"),
                format!("addr add {v6}/64 dev eth0 nodad"),
                "link set eth0 up".to_owned(),
            ]
        };
        // The node's end is up before the other gets its carrier.
        links.extend(uplink(NODE4, NODE6));
        node.ip_batch(&links);
        if attach == Attach::Bridge {
            node.set("net/ipv6/conf/pwbr0/accept_dad", "0");
        }
        outside.ip_batch(&uplink(OUTSIDE4, OUTSIDE6));
        let mut on_node = Vec::new();
        on_node.push(format!("route add default via {OUTSIDE4}"));
        on_node.push(format!("route add default via {OUTSIDE6}"));
        if attach == Attach::Bridge {
            on_node.push(format!("addr add {BRIDGE4}/24 dev pwbr0"));
            on_node.push(format!("addr add {BRIDGE6}/64 dev pwbr0 nodad"));
            on_node.push("link set pwbr0 up".to_owned());
        }
        for (n, pod) in spaces.iter().enumerate() {
            let (v4, v6) = (pod4(n), pod6(n));
            let up = "link set eth0 up".to_owned();
            match attach {
                Attach::Routed => {
                    pod.ip_batch(&[
                        format!("addr add {v4}/32 dev eth0"),
                        format!("addr add {v6}/128 dev eth0 nodad"),
                        up,
                        "route add 169.254.1.1 dev eth0".to_owned(),
                        "route add default via 169.254.1.1".to_owned(),
                        "route add default via fe80::1 dev eth0".to_owned(),
                    ]);
                    on_node.extend([
                        format!("addr add 169.254.1.1/32 dev pw{n}"),
                        format!("addr add fe80::1/64 dev pw{n} nodad"),
                        format!("link set pw{n} up"),
                        format!("route add {v4}/32 dev pw{n}"),
                        format!("route add {v6}/128 dev pw{n}"),
                    ]);
                }
                Attach::Bridge => {
                    pod.ip_batch(&[
                        format!("addr add {v4}/24 dev eth0"),
                        format!("addr add {v6}/64 dev eth0 nodad"),
                        up,
                        format!("route add default via {BRIDGE4}"),
                        format!("route add default via {BRIDGE6}"),
                    ]);
                    on_node.extend([
                        format!("link set pw{n} master pwbr0"),
                        format!("link set pw{n} type bridge_slave hairpin on"),
                        format!("link set pw{n} up"),
                    ]);
                }
            }
        }
        node.ip_batch(&on_node);
        node.wait_for(NODE6);
        outside.wait_for(OUTSIDE6);
        for (n, pod) in spaces.iter().enumerate() {
            pod.wait_for(&pod6(n));
        }
        Self {
            node,
            pods: spaces,
            outside,
        }
    }

    pub fn facts(&self) -> NodeFacts {
        Self::plain_facts()
    }

    /// Those of a node, without making one.
    pub fn plain_facts() -> NodeFacts {
        NodeFacts {
            node: "node-1".to_owned(),
            zone: None,
            addresses: vec![address(NODE4), address(NODE6)],
            pod_cidrs: ["10.200.1.0/24", "fd00:200:0:1::/64"].map(cidr).to_vec(),
            cluster_cidrs: ["10.200.0.0/16", "fd00:200::/48"].map(cidr).to_vec(),
            node_addresses: vec![address(NODE4), address(NODE6)],
            service_cidrs: ["10.96.0.0/12", "fd00:96::/112"].map(cidr).to_vec(),
            ..NodeFacts::default()
        }
    }

    pub fn nft(&self, arguments: &[&str]) -> String {
        self.node.command("nft", arguments)
    }
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("a literal")
}

fn cidr(text: &str) -> ipnet::IpNet {
    text.parse().expect("a literal")
}

/// A Service with one TCP and one UDP port of the same number.
pub fn service(name: &str, ips: &[&str], port: i32, node_port: Option<i32>) -> Service {
    Service {
        name: ServiceName::new("default", name),
        cluster_ips: ips.iter().map(|ip| (*ip).to_owned()).collect(),
        ports: [("tcp", Protocol::Tcp), ("udp", Protocol::Udp)]
            .into_iter()
            .map(|(name, protocol)| ServicePort {
                name: name.to_owned(),
                protocol,
                port,
                node_port,
            })
            .collect(),
        ..Service::default()
    }
}

/// A slice of ready endpoints on this node.
pub fn slice(service: &str, name: &str, addresses: &[&str], port: i32) -> EndpointSlice {
    EndpointSlice {
        namespace: "default".to_owned(),
        name: name.to_owned(),
        service: service.to_owned(),
        family: if name.ends_with('6') {
            Family::V6
        } else {
            Family::V4
        },
        ports: [("tcp", Protocol::Tcp), ("udp", Protocol::Udp)]
            .into_iter()
            .map(|(name, protocol)| SlicePort {
                name: name.to_owned(),
                protocol,
                port: Some(port),
            })
            .collect(),
        endpoints: addresses
            .iter()
            .map(|address| Endpoint {
                address: (*address).to_owned(),
                node: Some("node-1".to_owned()),
                ..Endpoint::default()
            })
            .collect(),
    }
}
