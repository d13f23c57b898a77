//! Agents that keep the fast path of established connections while pods come and
//! go, back ends change and others interfere.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

use linux::fast_path::Outcome;
use linux::link;
use linux::namespace::NetworkNamespace;
use podwire_agent::{Attach, FastPath, FastPathReport as Report, Proxy};
use rstest::rstest;
use serde_json::json;

use crate::capture::Capture;
use crate::changes::{command, nft, two, wait_for_backends};
use crate::world::{World, attempt, wait};

const DEADLINE: Duration = Duration::from_secs(20);
const PORT: u16 = 7000;

/// What an agent says that may just be starting.
fn report(world: &World, node: usize) -> Report {
    let socket = world.nodes[node].socket();
    let ask = || podwire_agent::admin::get(&socket, "/v1/fast-path", &[]);
    attempt(|| ask().map_err(|error| error.to_string())).expect("it answers")
}

/// Waits until what is to be is, and programs are where it has them.
fn wait_for(world: &World, node: usize, what: &str, is: impl Fn(&Report) -> bool) {
    wait(what, || {
        let found = report(world, node);
        if is(&found) && found.pending == 0 {
            Ok(())
        } else {
            Err(format!("{found:?}"))
        }
    });
}

/// Packets that took the fast path of a node, from pods and to pods.
pub(crate) fn taken(world: &World, node: usize) -> [u64; 2] {
    let found = report(world, node);
    let taken = |counts: &BTreeMap<Outcome, u64>| counts.get(&Outcome::Taken).copied();
    [&found.outbound, &found.inbound].map(|counts| taken(counts).unwrap_or_default())
}

/// Packets a node's programs have seen arrive at the underlay.
fn seen_arriving(world: &World, node: usize) -> u64 {
    report(world, node).inbound.values().sum()
}

fn limited(stream: TcpStream) -> TcpStream {
    stream.set_read_timeout(Some(DEADLINE)).expect("a time");
    stream.set_write_timeout(Some(DEADLINE)).expect("a time");
    stream.set_nodelay(true).expect("TCP");
    stream
}

/// A connection and both its ends.
struct Conversation(TcpStream, TcpStream);

impl Conversation {
    fn between(world: &World, from: usize, to: usize, address: IpAddr) -> Self {
        let [from, to] = [from, to].map(|pod| &world.pods[pod].namespace);
        Self::by_way_of(from, to, SocketAddr::new(address, PORT))
    }

    /// To an address that leads to the port in `to`.
    fn by_way_of(from: &NetworkNamespace, to: &NetworkNamespace, address: SocketAddr) -> Self {
        let any: SocketAddr = (Ipv6Addr::UNSPECIFIED, PORT).into();
        let listener = to.run(|| TcpListener::bind(any)).expect("entered");
        let listener = listener.expect("a free port");
        let client = from.run(|| TcpStream::connect_timeout(&address, DEADLINE));
        let client = client.expect("entered").expect("a connection");
        Self(
            limited(client),
            limited(listener.accept().expect("the client").0),
        )
    }

    /// A byte there and one back.
    fn ask(&mut self) -> io::Result<()> {
        self.0.write_all(&[1])?;
        self.1.read_exact(&mut [0])?;
        self.1.write_all(&[2])?;
        self.0.read_exact(&mut [0])
    }

    fn ask_often(&mut self) {
        (0..20).for_each(|_| self.ask().expect("an answer"));
    }

    /// Asks until packets take the fast path of both nodes, both ways.
    fn ask_until_taken(&mut self, world: &World) {
        let before = [0, 1].map(|node| taken(world, node));
        wait("fast path", || {
            self.ask_often();
            let now = [0, 1].map(|node| taken(world, node));
            let mut both = before.as_flattened().iter().zip(now.as_flattened());
            if both.all(|(before, now)| before < now) {
                return Ok(());
            }
            Err(format!("{:?} {:?}", report(world, 0), report(world, 1)))
        });
    }

    /// Asks, with all packets taking the stack of a node.
    fn ask_by_stack(&mut self, world: &World, node: usize) {
        let before = taken(world, node);
        self.ask_often();
        assert_eq!(taken(world, node), before, "{:?}", report(world, node));
    }
}

fn v4(world: &World, pod: usize) -> IpAddr {
    let addresses = &world.pods[pod].addresses;
    *addresses
        .iter()
        .find(|address| address.is_ipv4())
        .expect("dual-stack")
}

#[rstest]
fn pods_take_the_fast_path_while_they_are_there(
    #[values(Attach::Routed, Attach::Bridge)] attach: Attach,
) {
    let mut world = World::new();
    for node in 0..2 {
        world.start(node, |options| options.attach = attach);
    }
    (0..2).for_each(|node| world.wait_until_ready(node));
    let first = world.add_pod(0);
    let second = world.add_pod(1);
    for node in 0..2 {
        wait_for(&world, node, "both addresses", |found| found.pods == 2);
    }
    for address in world.pods[second].addresses.clone() {
        Conversation::between(&world, first, second, address).ask_until_taken(&world);
    }
    // With its last pod the node has no use for programs.
    world.delete_pod(second);
    wait_for(&world, 1, "end of the pod", |found| {
        found.pods == 0 && found.other_pods.is_empty()
    });
    let before = seen_arriving(&world, 1);
    let ping = "ping -nqc3 -i0.01 -w20 192.168.64.12";
    command(&world.nodes[0].namespace, ping);
    assert_eq!(seen_arriving(&world, 1), before);
    // Another pod with its addresses gets all that is sent there.
    let ips = json!({ "ips": world.pods[second].addresses });
    let third = world.add_pod_with(1, &ips);
    assert_eq!(world.pods[third].addresses, world.pods[second].addresses);
    wait_for(&world, 1, "both addresses", |found| found.pods == 2);
    for address in world.pods[third].addresses.clone() {
        Conversation::between(&world, first, third, address).ask_until_taken(&world);
    }
}

/// A directory in the place of that where the kernel describes itself: what is read
/// there is what is written to a pipe.
struct Description {
    directory: tempfile::TempDir,
}

impl Description {
    const PLACE: &str = "/sys/kernel/btf";
    const NAME: &str = "vmlinux";

    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let kind = rustix::fs::FileType::Fifo;
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        let pipe = directory.path().join(Self::NAME);
        rustix::fs::mknodat(rustix::fs::CWD, pipe, kind, mode, 0).expect("a pipe");
        Self { directory }
    }

    /// For the calling thread and those it starts.
    fn show(directory: &Path) {
        linux::process::unshare_mounts().expect("root unshares");
        linux::mount::make_private(Path::new("/")).expect("root mounts");
        linux::mount::bind(directory, Path::new(Self::PLACE)).expect("root mounts");
    }

    /// Lets whoever reads it have the text.
    fn write(&self, text: &[u8]) {
        std::fs::write(self.directory.path().join(Self::NAME), text).expect("somebody reads");
    }
}

impl Drop for Description {
    fn drop(&mut self) {
        // Whoever still waits for the beginning finds the end.
        let pipe = self.directory.path().join(Self::NAME);
        let _ = std::fs::File::options().read(true).write(true).open(pipe);
    }
}

#[test]
fn nobody_waits_for_a_fast_path_that_is_slow_to_start_or_cannot_be_had() {
    let mut world = World::new();
    let description = Description::new();
    let directory = description.directory.path().to_owned();
    let slow = || {
        let directory = directory.clone();
        move || Description::show(&directory)
    };
    world.start_after(0, slow(), |_| {});
    world.start(1, |_| {});
    (0..2).for_each(|node| world.wait_until_ready(node));
    let [first, second] = [0, 1].map(|node| world.add_pod(node));
    let mut pair = Conversation::between(&world, first, second, v4(&world, second));
    pair.ask_often();
    let found = report(&world, 0);
    assert!(found.starting && found.off.is_none(), "{found:?}");
    // It comes, and knows what has happened before.
    let real = Path::new(Description::PLACE).join(Description::NAME);
    description.write(&std::fs::read(real).expect("the kernel's own"));
    pair.ask_until_taken(&world);
    world.start_after(0, slow(), |options| options.fast_path = FastPath::Ebpf);
    pair.ask_often();
    description.write(b"nothing of the kind");
    let why = "/sys/kernel/btf/vmlinux cannot be read";
    wait_for(&world, 0, "its end", |found| {
        let off = found.off.as_ref().is_some_and(|off| off.contains(why));
        off && found.problems.iter().any(|problem| problem.contains(why))
    });
    pair.ask_by_stack(&world, 0);
}

#[test]
fn a_capture_in_a_pod_sees_what_takes_the_fast_path() {
    let world = two("host-gw");
    let mut pair = Conversation::between(&world, 0, 1, v4(&world, 1));
    pair.ask_until_taken(&world);
    let before = [0, 1].map(|node| taken(&world, node));
    let captures = [0, 1].map(|pod| {
        let pod = &world.pods[pod];
        Capture::start(&pod.namespace, pod.addresses.clone())
    });
    pair.ask_often();
    // Each of them in both directions.
    let taken = [0, 1].map(|node| taken(&world, node));
    for (node, seen) in captures.map(Capture::stop).into_iter().enumerate() {
        let [out, into] = [0, 1].map(|way| taken[node][way] - before[node][way]);
        assert!(out >= 20 && into >= 20, "{taken:?} {before:?}");
        assert!(seen.of_pods as u64 >= out + into, "{seen:?} {taken:?}");
    }
}

#[test]
fn a_pods_bandwidth_limit_holds() {
    const RATE: u64 = 8_000_000;
    const BYTES: usize = 1_000_000;
    let mut world = two("host-gw");
    let wishes = json!({"bandwidth": {
        "ingressRate": RATE, "ingressBurst": RATE / 10, "egressRate": RATE, "egressBurst": RATE / 10,
    }});
    let slow = world.add_pod_with(1, &wishes);
    wait_for(&world, 1, "pod with limits", |found| {
        found.pods == 2 && found.other_pods.values().eq(["its bandwidth is limited"])
    });
    let mut pair = Conversation::between(&world, 0, slow, v4(&world, slow));
    pair.ask_by_stack(&world, 1);
    let Conversation(client, server) = &mut pair;
    for (from, to) in [(&*client, &*server), (&*server, &*client)] {
        let start = Instant::now();
        let mut from = from.try_clone().expect("a socket");
        let sender = std::thread::spawn(move || from.write_all(&vec![0; BYTES]));
        let mut to = to;
        to.read_exact(&mut vec![0; BYTES]).expect("all of it");
        sender.join().expect("no panic").expect("sent");
        // A second, less what goes at once.
        assert!(
            start.elapsed() > Duration::from_millis(600),
            "{:?}",
            start.elapsed()
        );
    }
    // Its neighbour is as fast as ever.
    Conversation::between(&world, 0, 1, v4(&world, 1)).ask_until_taken(&world);
}

#[test]
fn conversations_go_on_while_back_ends_change_and_agents_end_and_start() {
    let mut world = two("host-gw");
    let mut pair = Conversation::between(&world, 0, 1, v4(&world, 1));
    pair.ask_until_taken(&world);
    for (from, way) in [("host-gw", "vxlan"), ("vxlan", "host-gw")] {
        world.start(0, |options| options.backend = way.to_owned());
        wait_for_backends(&world, 0, &[way, from]);
        wait_for_backends(&world, 1, &[from, way]);
        pair.ask_often();
        world.start(1, |options| options.backend = way.to_owned());
        for node in 0..2 {
            wait_for_backends(&world, node, &[way]);
        }
        pair.ask_until_taken(&world);
    }
    for node in 0..2 {
        world.stop(node);
        pair.ask_often();
    }
    for node in 0..2 {
        world.start(node, |options| options.fast_path = FastPath::Off);
        assert!(report(&world, node).off.is_some());
        pair.ask_often();
    }
}

/// Packets the second node's stack has sent to the interface of its pod.
fn sent_to_pod(world: &World) -> u64 {
    let namespace = &world.nodes[1].namespace;
    let mut socket = namespace.route_socket().expect("netlink");
    let links = link::list(&mut socket).expect("readable");
    let cable = links
        .iter()
        .find(|link| cni::attach::is_host_interface(&link.name));
    let name = &cable.expect("the pod's").name;
    let output = namespace
        .run(|| {
            std::process::Command::new("ip")
                .args(["-s", "-j", "link", "show", name])
                .output()
        })
        .expect("entered")
        .expect("it is there");
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    json[0]["stats64"]["tx"]["packets"]
        .as_u64()
        .expect("a number")
}

#[test]
fn switched_off_nothing_of_it_is_left() {
    let mut world = two("host-gw");
    let mut pair = Conversation::between(&world, 0, 1, v4(&world, 1));
    pair.ask_until_taken(&world);
    let before = sent_to_pod(&world);
    pair.ask_often();
    assert!(
        sent_to_pod(&world) < before + 20,
        "the fast path shows there"
    );
    world.start(1, |options| options.fast_path = FastPath::Off);
    world.wait_until_ready(1);
    let found = report(&world, 1);
    assert_eq!(found.off.as_deref(), Some("it is switched off"));
    let before = sent_to_pod(&world);
    pair.ask_often();
    assert!(sent_to_pod(&world) >= before + 20);
}

#[test]
fn mapped_ports_take_the_stack_of_the_node_that_maps_them() {
    let mut world = two("host-gw");
    let mapping = json!([{"hostPort": 8000, "containerPort": PORT, "protocol": "tcp"}]);
    let server = world.add_pod_with(1, &json!({"portMappings": mapping}));
    wait_for(&world, 1, "both pods", |found| found.pods == 4);
    let to = &world.pods[server].namespace;
    let node: IpAddr = [192, 168, 64, 12].into();
    // From a pod, and from outside.
    for from in [&world.pods[0].namespace, &world.router] {
        let mut pair = Conversation::by_way_of(from, to, SocketAddr::new(node, 8000));
        pair.ask_by_stack(&world, 1);
    }
}

#[test]
fn forged_sources_take_the_stack() {
    let mut world = World::new();
    // All pods of a bridge send to one hardware address, which tells nothing of them.
    for node in 0..2 {
        world.start(node, |options| options.attach = Attach::Bridge);
    }
    (0..2).for_each(|node| world.wait_until_ready(node));
    for node in 0..2 {
        world.add_pod(node);
    }
    let other = world.add_pod(0);
    for (node, addresses) in [(0, 4), (1, 2)] {
        wait_for(&world, node, "pods", |found| found.pods == addresses);
    }
    let (own, victim, target) = (v4(&world, 0), v4(&world, other), v4(&world, 1));
    let bind = |from: &NetworkNamespace, source: IpAddr| {
        let socket = from.run(|| UdpSocket::bind((source, PORT)));
        let socket = socket.expect("entered").expect("a free port");
        socket.set_read_timeout(Some(DEADLINE)).expect("a time");
        socket
    };
    // What is forged is of a conversation that takes the fast path.
    let [client, server] = [(other, victim), (1, target)]
        .map(|(pod, address)| bind(&world.pods[pod].namespace, address));
    let before = taken(&world, 0);
    wait("fast path", || {
        client.send_to(&[1], (target, PORT)).expect("sent");
        let (_, from) = server.recv_from(&mut [0]).expect("it arrives");
        server.send_to(&[2], from).expect("sent");
        client.recv(&mut [0]).expect("an answer");
        let now = taken(&world, 0);
        if now[0] > before[0] && now[1] > before[1] {
            return Ok(());
        }
        Err(format!("{:?}", report(&world, 0)))
    });
    let source = |node: usize| report(&world, node).outbound[&Outcome::Source];
    let arrived = |node: usize| report(&world, node).inbound[&Outcome::Source];
    let send = |from: &NetworkNamespace, source: IpAddr, to: IpAddr| {
        let sent = bind(from, source).send_to(&[0; 100], (to, PORT));
        sent.expect("sent");
    };
    // A pod with its neighbour's address.
    let pod = &world.pods[0].namespace;
    command(pod, &format!("ip addr add {victim}/32 dev eth0"));
    let before = (source(0), taken(&world, 0));
    send(pod, victim, target);
    wait("packet", || {
        if source(0) > before.0 {
            Ok(())
        } else {
            Err(format!("{:?}", report(&world, 0)))
        }
    });
    assert_eq!(taken(&world, 0), before.1);
    command(pod, &format!("ip addr del {victim}/32 dev eth0"));
    // A host that is no node, with the address of a pod of the node it sends to.
    let outside = &world.router;
    command(outside, &format!("ip addr add {victim}/32 dev lo"));
    command(outside, &format!("ip route add {own}/32 via 192.168.64.11"));
    let before = (arrived(0), taken(&world, 0));
    send(outside, victim, own);
    wait("packet", || {
        if arrived(0) > before.0 {
            Ok(())
        } else {
            Err(format!("{:?}", report(&world, 0)))
        }
    });
    assert_eq!(taken(&world, 0), before.1);
}

/// Sends a byte that does not arrive.
fn refused(pair: &mut Conversation) {
    pair.0.write_all(&[1]).expect("a buffer");
    let short = Some(Duration::from_millis(500));
    pair.1.set_read_timeout(short).expect("a time");
    pair.1.read_exact(&mut [0]).expect_err("it is dropped");
    pair.1.set_read_timeout(Some(DEADLINE)).expect("a time");
}

#[test]
fn while_others_judge_packets_all_take_the_stack() {
    let world = two("host-gw");
    let node = &world.nodes[1].namespace;
    let mut pair = Conversation::between(&world, 0, 1, v4(&world, 1));
    pair.ask_until_taken(&world);
    let judged = |by: &str| {
        wait_for(&world, 1, by, |found| {
            found.judges == BTreeSet::from([by.to_owned()]) && found.ranges.is_empty()
        });
    };
    let free = || wait_for(&world, 1, "end of it", |found| !found.ranges.is_empty());
    // A rule that is added to what is there drops what was let through.
    let peer = v4(&world, 0);
    nft(
        node,
        &format!(
            "add table inet others
             add chain inet others guard {{ type filter hook forward priority 0; }}
             add rule inet others guard ip saddr {peer} drop"
        ),
    );
    judged("chain guard of table inet others");
    refused(&mut pair);
    nft(node, "delete table inet others");
    free();
    pair.1.read_exact(&mut [0]).expect("sent again");
    pair.ask_until_taken(&world);
    command(node, "ip rule add pref 100 from all tos 0x10 lookup 100");
    judged("policy rule 100: from 0.0.0.0/0 lookup 100");
    pair.ask_by_stack(&world, 1);
    command(node, "ip rule del pref 100");
    free();
    pair.ask_until_taken(&world);
    // Policies of IPsec: packets that have to come transformed are refused as they are.
    let own = v4(&world, 1);
    let policy = format!("src {peer} dst {own} dir fwd");
    let template = "tmpl src 192.168.64.11 dst 192.168.64.12 proto esp mode tunnel";
    command(node, &format!("ip xfrm policy add {policy} {template}"));
    judged(&format!("IPsec policy fwd from {peer}/32 to {own}/32"));
    refused(&mut pair);
    command(node, &format!("ip xfrm policy delete {policy}"));
    free();
    pair.1.read_exact(&mut [0]).expect("sent again");
    pair.ask_until_taken(&world);
    // Rules that are about others' packets, or let established connections be.
    command(node, "ip rule add pref 100 from 192.168.64.12 lookup 100");
    nft(
        node,
        "add table inet others
         add chain inet others own { type filter hook input priority 0; policy drop; }
         add rule inet others own accept
         add chain inet others guard { type filter hook forward priority 0; policy drop; }
         add rule inet others guard ct state established,related accept",
    );
    // Later than the agent looks.
    let before = report(&world, 1).changes;
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(report(&world, 1).changes, before);
    pair.ask_until_taken(&world);
}

#[test]
fn an_iptables_proxy_of_the_old_kind_leaves_all_packets_to_the_stack() {
    let mut world = two("host-gw");
    let mut pair = Conversation::between(&world, 0, 1, v4(&world, 1));
    pair.ask_until_taken(&world);
    // Whose rules there are decides by which program the agent writes its own. Those
    // of translation alone are in nobody's way.
    let trace = "iptables-legacy -t nat -A OUTPUT -j RETURN";
    command(&world.nodes[1].namespace, trace);
    world.start(1, |options| options.proxy = Proxy::Iptables);
    wait_for(&world, 1, "podwire's own rules", |found| {
        found.judges.contains("table filter of iptables-legacy") && found.ranges.is_empty()
    });
    pair.ask_by_stack(&world, 1);
}

#[test]
fn whoever_asks_for_the_fast_path_by_name_has_it_in_spite_of_others() {
    let mut world = two("host-gw");
    for node in 0..2 {
        world.start(node, |options| options.fast_path = FastPath::Ebpf);
        world.wait_until_ready(node);
        let rule = "add table inet others
                    add chain inet others guard { type filter hook forward priority 0; }
                    add rule inet others guard counter";
        nft(&world.nodes[node].namespace, rule);
    }
    Conversation::between(&world, 0, 1, v4(&world, 1)).ask_until_taken(&world);
}

#[test]
fn what_passes_somebody_elses_filters_or_queues_takes_the_stack() {
    let world = two("host-gw");
    let node = &world.nodes[1].namespace;
    let mut pair = Conversation::between(&world, 0, 1, v4(&world, 1));
    pair.ask_until_taken(&world);
    command(node, "tc qdisc add dev eth0 clsact");
    wait_for(&world, 1, "filters", |found| {
        found.ranges.is_empty()
            && found
                .other_ranges
                .values()
                .all(|why| why.contains("filters"))
    });
    pair.ask_by_stack(&world, 1);
    command(node, "tc qdisc del dev eth0 clsact");
    pair.ask_until_taken(&world);
    let mut socket = node.route_socket().expect("netlink");
    let links = link::list(&mut socket).expect("readable");
    let cable = links
        .iter()
        .find(|link| cni::attach::is_host_interface(&link.name));
    let cable = &cable.expect("the pod's").name;
    for queue in ["root tbf rate 1gbit burst 1mb latency 1s", "clsact"] {
        command(node, &format!("tc qdisc add dev {cable} {queue}"));
        wait_for(&world, 1, queue, |found| {
            found.pods == 0 && found.other_pods.len() == 1
        });
        pair.ask_by_stack(&world, 1);
        let kind = queue.split(' ').next().expect("a word");
        command(node, &format!("tc qdisc del dev {cable} {kind}"));
        wait_for(&world, 1, "end of it", |found| found.pods == 2);
        pair.ask_until_taken(&world);
    }
}
