//! Numbered datagrams between two pods, which nobody sends again: each that is lost
//! is known.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use linux::link;
use linux::namespace::NetworkNamespace;

use crate::changes::{two, wait_for_backends};
use crate::fast_path::taken;
use crate::world::{World, wait};

const PORT: u16 = 7100;
/// Between two datagrams of a stream.
const PACE: Duration = Duration::from_millis(1);
/// For how long the last ones may be under way.
const UNDER_WAY: Duration = Duration::from_millis(500);

/// Datagrams to a pod from another.
struct Stream {
    to: IpAddr,
    /// When each was sent.
    sender: JoinHandle<Vec<Instant>>,
    receiver: JoinHandle<BTreeSet<u32>>,
}

fn bind(pod: &NetworkNamespace, at: IpAddr, peer: IpAddr) -> UdpSocket {
    let socket = pod.run(|| UdpSocket::bind((at, PORT))).expect("entered");
    let socket = socket.expect("a free port");
    socket.connect((peer, PORT)).expect("an address");
    socket.set_read_timeout(Some(UNDER_WAY)).expect("a time");
    socket
}

/// Sends until it is to stop.
fn send(socket: &UdpSocket, stop: &AtomicBool) -> Vec<Instant> {
    let mut sent: Vec<Instant> = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let number = u32::try_from(sent.len()).expect("few");
        sent.push(Instant::now());
        // What is refused is lost.
        let _ = socket.send(&number.to_be_bytes());
        std::thread::sleep(PACE);
    }
    sent
}

/// Receives until nothing more comes.
fn receive(socket: &UdpSocket, stop: &AtomicBool) -> BTreeSet<u32> {
    let mut received = BTreeSet::new();
    let mut number = [0; 4];
    loop {
        match socket.recv(&mut number) {
            Ok(_) => drop(received.insert(u32::from_be_bytes(number))),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if stop.load(Ordering::Relaxed) {
                    return received;
                }
            }
            // What became of one that was sent.
            Err(error) => eprintln!("{error}"),
        }
    }
}

/// Streams from some pods to the other, in both families.
struct Streams {
    stop: Arc<AtomicBool>,
    streams: Vec<Stream>,
    steps: Vec<(Instant, String)>,
}

impl Streams {
    fn start(world: &World, from_pods: &[usize]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let [one, other] = [0, 1].map(|pod| &world.pods[pod]);
        let mut streams = Vec::new();
        for (mine, theirs) in one.addresses.iter().zip(&other.addresses) {
            let here = bind(&one.namespace, *mine, *theirs);
            let there = bind(&other.namespace, *theirs, *mine);
            let ways = [(&here, &there, theirs), (&there, &here, mine)];
            for (from, at, to) in from_pods.iter().map(|pod| ways[*pod]) {
                let [from, at] = [from, at].map(|socket| socket.try_clone().expect("a socket"));
                let stops = [&stop, &stop].map(Arc::clone);
                let [first, second] = stops;
                streams.push(Stream {
                    to: *to,
                    sender: std::thread::spawn(move || send(&from, &first)),
                    receiver: std::thread::spawn(move || receive(&at, &second)),
                });
            }
        }
        Self {
            stop,
            streams,
            steps: Vec::new(),
        }
    }

    fn step(&mut self, what: String) {
        self.steps.push((Instant::now(), what));
    }

    /// How many were sent, and what was lost.
    fn end(self) -> (usize, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        let (mut count, mut lost) = (0, Vec::new());
        for stream in self.streams {
            let sent = stream.sender.join().expect("no panic");
            let received = stream.receiver.join().expect("no panic");
            count += sent.len();
            for (number, when) in sent.iter().enumerate() {
                if received.contains(&(number as u32)) {
                    continue;
                }
                let step = self.steps.iter().rev().find(|(start, _)| start <= when);
                let step = step
                    .map(|(start, what)| format!("{:?} after {what}", when.duration_since(*start)));
                lost.push(format!(
                    "{number} to {}, {}",
                    stream.to,
                    step.unwrap_or_default()
                ));
            }
        }
        (count, lost)
    }
}

/// Every back end this kernel has. Where both ends have two, they take the one that
/// encrypts or adds less: changes come both from that one and to it.
const CHANGES: [&str; 6] = [
    "host-gw",
    "vxlan-gpe",
    "vxlan",
    "vxlan-multicast",
    "static",
    "host-gw",
];

#[test]
fn nodes_change_their_back_end_one_by_one_and_lose_no_datagram() {
    change(&CHANGES, &[0, 1]);
}

/// Nodes change from each back end to the next, the first one first, while some pods
/// send to the other.
pub(crate) fn change(changes: &[&str], senders: &[usize]) {
    let mut world = two(changes[0]);
    let mut streams = Streams::start(&world, senders);
    let taken_on_both = |world: &World| {
        // No connection is established that nobody answers.
        if senders.len() < 2 {
            return;
        }
        wait("fast path", || {
            let counts = [0, 1].map(|node| taken(world, node));
            let all = counts.as_flattened().iter().all(|count| *count > 0);
            all.then_some(()).ok_or_else(|| format!("{counts:?}"))
        });
    };
    taken_on_both(&world);
    for pair in changes.windows(2) {
        let [from, to] = [pair[0], pair[1]];
        for node in 0..2 {
            streams.step(format!("node {node} began to go from {from} to {to}"));
            world.start(node, |options| options.backend = to.to_owned());
            if node == 0 {
                wait_for_backends(&world, 0, &[to, from]);
                wait_for_backends(&world, 1, &[from, to]);
            }
        }
        for node in 0..2 {
            wait_for_backends(&world, node, &[to]);
        }
        taken_on_both(&world);
    }
    for node in 0..2 {
        wait("old devices to be gone", || {
            let mut socket = world.nodes[node].namespace.route_socket().expect("netlink");
            let links = link::list(&mut socket).expect("readable");
            let names = links.iter().map(|link| &*link.name);
            let left: Vec<&str> = names.filter(|name| name.starts_with("pw-")).collect();
            match left[..] {
                [] => Ok(()),
                _ => Err(format!("{left:?}")),
            }
        });
    }
    let (count, lost) = streams.end();
    assert!(lost.is_empty(), "{} of {count}: {lost:#?}", lost.len());
}
