//! What goes over the wire between nodes, as a switch sees it: every frame, read
//! by hand, so that the same binary runs where there is no `tcpdump`.

use std::io::{ErrorKind, Read as _};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use linux::namespace::NetworkNamespace;
use socket2::{Domain, Protocol, Socket, Type};

/// `ETH_P_ALL`, in network byte order as packet(7) wants it.
const ALL: i32 = (3_u16.to_be()) as i32;
const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];

/// What was seen.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// Frames whose own IP header has an address of a pod.
    pub(crate) of_pods: usize,
    /// Frames with the text pods send, anywhere.
    pub(crate) clear: usize,
    /// UDP datagrams to the port of WireGuard.
    pub(crate) wireguard: usize,
}

/// A capture at work.
pub(crate) struct Capture {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Seen>,
}

impl Capture {
    /// Captures on all interfaces of a namespace.
    pub(crate) fn start(namespace: &NetworkNamespace, pods: Vec<IpAddr>) -> Capture {
        let socket = namespace
            .run(|| Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(ALL))))
            .expect("entered")
            .expect("root captures");
        socket
            .set_recv_buffer_size(8 << 20)
            .expect("a size as any other");
        socket
            .set_read_timeout(Some(Duration::from_millis(100)))
            .expect("a time as any other");
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut seen = Seen::default();
            let mut buffer = vec![0; 1 << 16];
            loop {
                match (&socket).read(&mut buffer) {
                    Ok(length) => seen.take(&buffer[..length], &pods),
                    Err(error)
                        if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) =>
                    {
                        // What was sent before the stop has been read by now.
                        if stopped.load(Ordering::Relaxed) {
                            return seen;
                        }
                    }
                    Err(error) => panic!("cannot capture: {error}"),
                }
            }
        });
        Capture { stop, thread }
    }

    /// Ends the capture.
    pub(crate) fn stop(self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("no panic")
    }
}

impl Seen {
    fn take(&mut self, frame: &[u8], pods: &[IpAddr]) {
        let kind = frame.get(12..14);
        let (addresses, transport) = if kind == Some(&IPV4[..]) {
            (frame.get(26..34), (frame.get(23), frame.get(36..38)))
        } else if kind == Some(&IPV6[..]) {
            (frame.get(22..54), (frame.get(20), frame.get(56..58)))
        } else {
            return;
        };
        let addresses = addresses.unwrap_or_default();
        let is_of = |pod: &IpAddr| match pod {
            IpAddr::V4(pod) => {
                addresses.len() == 8 && addresses.chunks(4).any(|a| a == pod.octets())
            }
            IpAddr::V6(pod) => {
                addresses.len() == 32 && addresses.chunks(16).any(|a| a == pod.octets())
            }
        };
        self.of_pods += usize::from(pods.iter().any(is_of));
        self.clear += usize::from(frame.windows(32).any(|bytes| bytes == [b'p'; 32]));
        let (udp, port) = (Some(&17), 51820_u16.to_be_bytes());
        self.wireguard += usize::from(transport == (udp, Some(&port[..])));
    }
}
