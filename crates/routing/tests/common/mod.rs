//! A cluster of network namespaces: nodes on a switch, a pod on each.
#![allow(dead_code, reason = "each test file uses a part")]

use std::io::{BufRead as _, BufReader};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use linux::namespace::NetworkNamespace;
use podwire_routing::apply::Outcome;
use podwire_routing::backend::{self, Wireguard, by_name};
use podwire_routing::{Backend, Family, Kernel, Node, Plan, Settings, Underlay, keys, plan};

/// Runs a command in a namespace; its exit code and what it wrote.
pub(crate) fn run(namespace: &NetworkNamespace, command: &str) -> (bool, String) {
    let output = namespace
        .run(|| {
            let mut words = command.split_whitespace();
            Command::new(words.next().expect("a command"))
                .args(words)
                .output()
        })
        .expect("the namespace can be entered")
        .unwrap_or_else(|error| panic!("{command}: {error}"));
    let text = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8_lossy(&text).into_owned(),
    )
}

/// Runs a command that has to succeed.
pub(crate) fn ok(namespace: &NetworkNamespace, command: &str) -> String {
    let (success, text) = run(namespace, command);
    assert!(success, "{command}: {text}");
    text
}

/// A node, its pod and its plan.
pub(crate) struct Host {
    pub(crate) namespace: NetworkNamespace,
    pub(crate) pod: NetworkNamespace,
    pub(crate) node: Node,
    pub(crate) kernel: Kernel,
    backends: Vec<Arc<dyn Backend>>,
    pub(crate) settings: Settings,
}

/// Nodes 1…n: 192.168.64.1n and fd00:64::1n on the underlay, 10.200.n.0/24 and
/// fd00:200:0:n::/64 for pods, of which .5 and ::5 is one.
pub(crate) struct Cluster {
    switch: NetworkNamespace,
    pub(crate) hosts: Vec<Host>,
}

impl Cluster {
    pub(crate) fn new(count: usize) -> Cluster {
        let switch = NetworkNamespace::create().expect("root makes namespaces");
        ok(&switch, "ip link add br0 type bridge mcast_snooping 0");
        ok(&switch, "ip link set br0 up");
        let mut cluster = Cluster {
            switch,
            hosts: Vec::new(),
        };
        for number in 1..=count {
            cluster.add(number);
        }
        cluster
    }

    fn add(&mut self, number: usize) {
        let namespace = NetworkNamespace::create().expect("root makes namespaces");
        let pod = NetworkNamespace::create().expect("root makes namespaces");
        let port = format!("port{number}");
        cable(&self.switch, &port, &namespace, "eth0");
        ok(&self.switch, &format!("ip link set {port} master br0 up"));
        let host = |command: &str| ok(&namespace, command);
        host("ip link set lo up");
        host(&format!("ip addr add 192.168.64.1{number}/18 dev eth0"));
        host(&format!("ip addr add fd00:64::1{number}/64 dev eth0 nodad"));
        host("ip link set eth0 up");
        for setting in ["ipv4.ip_forward", "ipv6.conf.all.forwarding"] {
            let path = format!("/proc/sys/net/{}", setting.replace('.', "/"));
            namespace
                .run(|| std::fs::write(path, "1"))
                .expect("the namespace can be entered")
                .expect("forwarding can be turned on");
        }
        cable(&namespace, "pwpod0", &pod, "eth0");
        let addresses = [
            format!("10.200.{number}.5"),
            format!("fd00:200:0:{number}::5"),
        ];
        host("ip addr add 169.254.1.1/32 dev pwpod0");
        host("ip addr add fe80::1/64 dev pwpod0 nodad");
        host("ip link set pwpod0 up");
        let inside = |command: &str| ok(&pod, command);
        inside("ip link set lo up");
        inside(&format!("ip addr add {}/32 dev eth0", addresses[0]));
        inside(&format!("ip addr add {}/128 dev eth0 nodad", addresses[1]));
        inside("ip link set eth0 up");
        inside("ip route add default via 169.254.1.1 dev eth0 onlink");
        inside("ip -6 route add default via fe80::1 dev eth0");
        host(&format!(
            "ip route add {}/32 dev pwpod0 proto 112",
            addresses[0]
        ));
        host(&format!(
            "ip -6 route add {}/128 dev pwpod0 proto 112",
            addresses[1]
        ));
        let parse = |text: String| text.parse().expect("an address");
        let range = |text: String| text.parse().expect("a range");
        let node = Node {
            name: format!("node-{number}").into(),
            addresses: vec![
                parse(format!("192.168.64.1{number}")),
                parse(format!("fd00:64::1{number}")),
            ],
            ranges: vec![
                range(format!("10.200.{number}.0/24")),
                range(format!("fd00:200:0:{number}::/64")),
            ],
            data: None,
            pods: addresses.map(parse).to_vec(),
        };
        let kernel = namespace
            .run(Kernel::open)
            .expect("the namespace can be entered")
            .expect("a socket");
        let mut settings = Settings::default();
        settings.vxlan_multicast.cluster =
            vec![range("10.200.0.0/16".into()), range("fd00:200::/48".into())];
        self.hosts.push(Host {
            namespace,
            pod,
            node,
            kernel,
            backends: Vec::new(),
            settings,
        });
    }

    /// Gives a node its back ends, the preferred one first, and tells the others.
    pub(crate) fn set(&mut self, number: usize, backends: &[&str]) {
        let host = &mut self.hosts[number - 1];
        if backends.contains(&"wireguard") && host.settings.wireguard.is_none() {
            host.new_key();
        }
        let make = |name: &&str| by_name(name, &host.settings).expect("a back end");
        host.backends = backends.iter().map(make).collect();
        let underlay = host.underlay();
        host.node.data = Some(backend::publish(&host.backends, &host.node, &underlay));
    }

    pub(crate) fn set_all(&mut self, backends: &[&str]) {
        for number in 1..=self.hosts.len() {
            self.set(number, backends);
        }
    }

    /// What a node wants now.
    pub(crate) fn plan(&mut self, number: usize) -> Plan {
        let underlay = self.hosts[number - 1].underlay();
        let host = &self.hosts[number - 1];
        let nodes = self.hosts.iter().map(|host| &host.node);
        let peers = nodes.filter(|node| node.name != host.node.name);
        plan(&host.backends, &host.node, peers, &underlay)
    }

    /// What a node wants when its peers are those given.
    pub(crate) fn plan_for(&mut self, number: usize, peers: &[Node]) -> Plan {
        let underlay = self.hosts[number - 1].underlay();
        let host = &self.hosts[number - 1];
        plan(&host.backends, &host.node, peers, &underlay)
    }

    /// A peer that is nowhere but in what this says of it, with the back ends
    /// of the first node.
    pub(crate) fn made_up(&mut self, number: usize) -> Node {
        let host = &mut self.hosts[0];
        let underlay = host.underlay();
        let (high, low) = (10 + number / 256, number % 256);
        let parse = |text: String| text.parse().expect("an address");
        let range = |text: String| text.parse().expect("a range");
        let mut node = Node {
            name: format!("peer-{number}").into(),
            // All on the switch.
            addresses: vec![
                parse(format!(
                    "192.168.{}.{}",
                    65 + number / 250,
                    1 + number % 250
                )),
                parse(format!("fd00:64::{:x}", 0x1000 + number)),
            ],
            ranges: vec![
                range(format!("10.{high}.{low}.0/24")),
                range(format!("fd00:300:{high:x}:{low:x}::/64")),
            ],
            ..Node::default()
        };
        node.data = Some(backend::publish(&host.backends, &node, &underlay));
        node
    }

    /// Carries out what a node wants now. Nothing may be refused or fail.
    pub(crate) fn apply(&mut self, number: usize) -> Outcome {
        let plan = self.plan(number);
        assert_eq!(plan.refusals, []);
        assert_eq!(plan.unusable, []);
        let outcome = self.hosts[number - 1].kernel.apply(&plan.state);
        let outcome = outcome.expect("the kernel answers");
        assert!(outcome.failures.is_empty(), "{:?}", outcome.failures);
        outcome
    }

    pub(crate) fn apply_all(&mut self) {
        for number in 1..=self.hosts.len() {
            self.apply(number);
        }
    }

    /// Every pod reaches every other, and every other node, in both families, by one
    /// answered ping.
    pub(crate) fn assert_connected(&self) {
        for from in &self.hosts {
            for to in self.hosts.iter().filter(|to| to.node != from.node) {
                for address in to.node.pods.iter().chain(&to.node.addresses) {
                    // One answer is enough, within the deadline.
                    ok(&from.pod, &format!("ping -n -c 1 -i 0.2 -w 20 {address}"));
                }
            }
        }
    }

    /// A process of the first node that has bound to the node's address is heard from
    /// that by the second's pod, and the first's pod from its own by a process of the
    /// second node; with strict reverse path filters on both nodes, and nothing of it
    /// is on the underlay but in a tunnel.
    pub(crate) fn assert_tunnelled_with_addresses_kept(&self) {
        let [from, to] = &self.hosts[..] else {
            panic!("of two nodes")
        };
        for host in [from, to] {
            let strict = || {
                for entry in std::fs::read_dir("/proc/sys/net/ipv4/conf")? {
                    std::fs::write(entry?.path().join("rp_filter"), "1")?;
                }
                Ok(())
            };
            let outcome: Result<std::io::Result<()>, _> = host.namespace.run(strict);
            outcome.expect("enterable").expect("they can be set");
        }
        let capture = Capture::start(&from.namespace);
        for (at, family) in Family::BOTH.into_iter().enumerate() {
            let pod = from.node.pods[at];
            let own = from.node.address(family).expect("it has both");
            let theirs = to.node.address(family).expect("it has both");
            let heard = sender(&from.namespace, Some(own), &to.pod, to.node.pods[at]);
            assert_eq!(heard, own);
            let heard = sender(&from.pod, None, &to.namespace, theirs);
            assert_eq!(heard, pod);
        }
        // A packet in clear, which the capture has to show.
        let theirs = to.node.address(Family::V4).expect("it has both");
        ok(&from.namespace, &format!("ping -n -c 1 -w 20 {theirs}"));
        assert_eq!(capture.until("ICMP echo reply"), Vec::<String>::new());
    }

    /// Whether packets of exactly `mtu` bytes pass from the first pod to the second,
    /// and one byte more gets the ICMP error that names the MTU.
    pub(crate) fn assert_mtu(&self, family: usize, mtu: u32) {
        let address = self.hosts[1].node.pods[family];
        let headers = if family == 0 { 28 } else { 48 };
        let ping = |bytes: u32| {
            let payload = bytes - headers;
            let command = format!("ping -n -c 1 -i 0.2 -w 20 -M do -s {payload} {address}");
            run(&self.hosts[0].pod, &command)
        };
        let (passed, text) = ping(mtu);
        assert!(passed, "{mtu} bytes to {address}: {text}");
        let payload = mtu + 1 - headers;
        let command = format!("ping -n -c 2 -i 0.2 -W 5 -M do -s {payload} {address}");
        let (passed, text) = run(&self.hosts[0].pod, &command);
        assert!(
            !passed && text.contains(&format!("{mtu}")),
            "{mtu}+1 to {address}: {text}"
        );
    }
}

impl Host {
    pub(crate) fn ip(&self, command: &str) -> String {
        ok(&self.namespace, &format!("ip {command}"))
    }

    fn underlay(&mut self) -> Underlay {
        Underlay::read(self.kernel.socket()).expect("the kernel answers")
    }

    /// A WireGuard key that was never used.
    pub(crate) fn new_key(&mut self) {
        let private_key = linux::wireguard::PrivateKey::generate().expect("random numbers");
        self.settings.wireguard = Some(Wireguard {
            public_key: keys::public_key(&private_key).expect("the kernel has WireGuard"),
            private_key,
            port: 51820,
        });
    }

    /// Names of the interfaces routing made.
    pub(crate) fn devices(&self) -> Vec<String> {
        let text = self.ip("-br link show");
        let names = text
            .lines()
            .filter_map(|line| line.split([' ', '@']).next());
        let mut names: Vec<String> = names
            .filter(|name| name.starts_with("pw-"))
            .map(str::to_owned)
            .collect();
        names.sort();
        names
    }
}

/// Whom a listener in one namespace hears when a connection to its address is made
/// in another, and a byte passes each way.
pub(crate) fn sender(
    from: &NetworkNamespace,
    bound: Option<IpAddr>,
    to: &NetworkNamespace,
    address: IpAddr,
) -> IpAddr {
    use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
    const PATIENCE: Duration = Duration::from_secs(20);
    let listener = to.run(|| TcpListener::bind((address, 0)));
    let listener = listener.expect("enterable").expect("a socket");
    let target = listener.local_addr().expect("it is bound");
    let open = || {
        let family = match address {
            IpAddr::V4(_) => AddressFamily::INET,
            IpAddr::V6(_) => AddressFamily::INET6,
        };
        let socket = socket(family, SocketType::STREAM, None)?;
        rustix::net::sockopt::set_socket_timeout(
            &socket,
            rustix::net::sockopt::Timeout::Send,
            Some(PATIENCE),
        )?;
        if let Some(bound) = bound {
            bind(&socket, &SocketAddr::new(bound, 0))?;
        }
        connect(&socket, &target)?;
        Ok(TcpStream::from(socket))
    };
    let near: Result<rustix::io::Result<TcpStream>, _> = from.run(open);
    let mut near = near
        .expect("enterable")
        .unwrap_or_else(|error| panic!("{bound:?} to {target}: {error}"));
    let (mut far, sender) = listener.accept().expect("it is connected");
    let pass = |one: &mut TcpStream, other: &mut TcpStream| {
        other.set_read_timeout(Some(PATIENCE)).expect("settable");
        std::io::Write::write_all(one, &[7]).expect("it can be written to");
        std::io::Read::read_exact(other, &mut [0]).expect("it arrives");
    };
    pass(&mut near, &mut far);
    pass(&mut far, &mut near);
    sender.ip()
}

/// What is on a node's link to the underlay: TCP and ICMP outside of tunnels, and
/// WireGuard's first message of a handshake.
pub(crate) struct Capture {
    tcpdump: std::process::Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl Capture {
    pub(crate) fn start(namespace: &NetworkNamespace) -> Capture {
        let spawn = || {
            Command::new("tcpdump")
                // A machine need not have the user it would change to.
                .args("-Z root -n -i eth0 -l --immediate-mode".split(' '))
                .arg("tcp or icmp or (udp port 51820 and (ip[2:2] = 176 or ip6[4:2] = 156))")
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
        };
        let spawned = namespace.run(spawn).expect("enterable");
        let mut tcpdump = spawned.expect("tcpdump is installed");
        // It says on its error output when it listens.
        let mut errors = BufReader::new(tcpdump.stderr.take().expect("it was asked for"));
        let mut said = String::new();
        while !said.contains("listening on") {
            let length = errors.read_line(&mut said).expect("readable");
            assert!(length > 0, "tcpdump ended: {said}");
        }
        let lines = BufReader::new(tcpdump.stdout.take().expect("it was asked for"));
        Capture { tcpdump, lines }
    }

    /// The TCP packets before the first that shows `mark`.
    fn until(mut self, mark: &str) -> Vec<String> {
        let mut seen = self.lines_until(mark);
        seen.retain(|line| line.contains("Flags"));
        seen
    }

    /// All up to the first that shows `mark`.
    pub(crate) fn lines_until(&mut self, mark: &str) -> Vec<String> {
        let mut seen = Vec::new();
        while !seen.last().is_some_and(|line: &String| line.contains(mark)) {
            let mut line = String::new();
            let length = self.lines.read_line(&mut line).expect("readable");
            assert!(length > 0, "tcpdump ended");
            seen.push(line);
        }
        seen
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        // One that has ended already is no matter.
        let _ = self.tcpdump.kill();
        let _ = self.tcpdump.wait();
    }
}

fn cable(one: &NetworkNamespace, near: &str, other: &NetworkNamespace, far: &str) {
    use linux::link::{VethEnd, add_veth, set_up};
    let end = |name| VethEnd {
        name,
        ..VethEnd::default()
    };
    let peer = VethEnd {
        namespace: Some(other),
        ..end(far)
    };
    let mut socket = one.route_socket().expect("a socket");
    socket
        .execute(&add_veth(&end(near), None, &peer))
        .expect("a veth pair");
    let mut socket = other.route_socket().expect("a socket");
    let link = linux::link::get(&mut socket, far).expect("the kernel answers");
    let index = link.expect("it was made just now").index;
    socket.execute(&set_up(index)).expect("it can be set up");
}
