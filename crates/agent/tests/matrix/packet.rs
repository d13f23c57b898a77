//! Echo requests of an exact size, and what comes back: made by hand, so that
//! the same binary runs where there is no `ping`.

use std::io::{ErrorKind, Read as _};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use linux::namespace::NetworkNamespace;
use socket2::{Domain, Protocol, Socket, Type};

/// How long one request waits for its answer.
const PATIENCE: Duration = Duration::from_millis(500);

/// What became of an echo request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It was echoed whole.
    Echo,
    /// A router on the way says that packets may have this many bytes.
    TooBig(u32),
    /// A router or the target says that it cannot be reached.
    Unreachable,
    /// Nothing came in time.
    Silence,
}

/// Sends an echo request that is, with its IP header, `size` bytes long and
/// may not be fragmented, until something comes back or `patience` is over.
pub(crate) fn ping(
    from: &NetworkNamespace,
    to: IpAddr,
    size: u32,
    patience: Duration,
) -> Result<Answer, String> {
    from.run(|| attempts(to, size, patience))
        .map_err(|error| error.to_string())?
        .map_err(|error| format!("echo request of {size} bytes to {to}: {error}"))
}

fn attempts(to: IpAddr, size: u32, patience: Duration) -> std::io::Result<Answer> {
    let (domain, protocol) = match to {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
    };
    let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
    // One for each call: what is late for one is not taken for an answer to the next.
    static CALLS: AtomicU16 = AtomicU16::new(0);
    let deadline = Instant::now() + patience;
    let mark = CALLS.fetch_add(1, Ordering::Relaxed);
    let mut sequence = 0_u16;
    loop {
        sequence += 1;
        let packet = request(to, size, mark, sequence);
        match socket.send_to(&packet, &SocketAddr::new(to, 0).into()) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NetworkUnreachable => {
                return Ok(Answer::Unreachable);
            }
            Err(error) if error.kind() == ErrorKind::HostUnreachable => {
                return Ok(Answer::Unreachable);
            }
            Err(error) => return Err(error),
        }
        let until = (Instant::now() + PATIENCE).min(deadline);
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            socket.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
            let mut buffer = vec![0; 1 << 16];
            match (&socket).read(&mut buffer) {
                Ok(length) => {
                    if let Some(answer) = understand(to, &buffer[..length], &packet) {
                        return Ok(answer);
                    }
                }
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) => return Err(error),
            }
        }
        if Instant::now() >= deadline {
            return Ok(Answer::Silence);
        }
    }
}

fn request(to: IpAddr, size: u32, mark: u16, sequence: u16) -> Vec<u8> {
    let (header, kind) = if to.is_ipv4() { (20, 8) } else { (40, 128) };
    let length = size.saturating_sub(header).max(8) as usize;
    let mut packet = vec![0_u8; length];
    packet[0] = kind;
    packet[4..6].copy_from_slice(&mark.to_be_bytes());
    packet[6..8].copy_from_slice(&sequence.to_be_bytes());
    for (index, byte) in packet[8..].iter_mut().enumerate() {
        *byte = index as u8;
    }
    // The kernel sums up those of IPv6, whose addresses are part of it.
    if to.is_ipv4() {
        let sum: u32 = packet
            .chunks(2)
            .map(|pair| u32::from(pair[0]) << 8 | pair.get(1).copied().map_or(0, u32::from))
            .sum();
        let folded = (sum & 0xffff) + (sum >> 16);
        let folded = (folded & 0xffff) + (folded >> 16);
        packet[2..4].copy_from_slice(&(!(folded as u16)).to_be_bytes());
    }
    packet
}

/// `None` when it has nothing to do with the request, or an earlier one of the
/// same call: on a busy machine an answer may come after the next request.
fn understand(to: IpAddr, received: &[u8], sent: &[u8]) -> Option<Answer> {
    let mark = &sent[4..6];
    let echoed = |message: &[u8]| {
        let same = message.get(4..6)? == mark && message.get(8..)? == &sent[8..];
        same.then_some(Answer::Echo)
    };
    match to {
        IpAddr::V4(_) => {
            // Raw IPv4 sockets show the IP header.
            let message = received.get(usize::from(received.first()? & 15) * 4..)?;
            match (message.first()?, message.get(1)?) {
                (0, 0) => echoed(message),
                (3, code) => {
                    let inner = message.get(8..)?;
                    let inner = inner.get(usize::from(inner.first()? & 15) * 4..)?;
                    (inner.get(4..6)? == mark).then_some(())?;
                    let mtu = u32::from(message[6]) << 8 | u32::from(message[7]);
                    Some(match code {
                        4 => Answer::TooBig(mtu),
                        _ => Answer::Unreachable,
                    })
                }
                _ => None,
            }
        }
        IpAddr::V6(_) => match received.first()? {
            129 => echoed(received),
            kind @ (1 | 2) => {
                (received.get(8 + 40 + 4..8 + 40 + 6)? == mark).then_some(())?;
                let mtu = received
                    .get(4..8)?
                    .iter()
                    .fold(0, |sum, byte| sum << 8 | u32::from(*byte));
                Some(match kind {
                    2 => Answer::TooBig(mtu),
                    _ => Answer::Unreachable,
                })
            }
            _ => None,
        },
    }
}
