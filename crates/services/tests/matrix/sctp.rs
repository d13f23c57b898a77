//! SCTP for the rows: real associations where the kernel has SCTP sockets, else
//! the first two packets of one by raw sockets, with their checksums.

use std::io::{ErrorKind, Read};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use super::{answer_all, refusal_may_follow};

/// When an association is there if nothing is wrong.
const SOON: Duration = Duration::from_secs(1);

const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
/// The parameter "state cookie" (RFC 9260, 3.3.3).
const COOKIE: u16 = 7;

fn socket(address: IpAddr, kind: Type) -> std::io::Result<Socket> {
    let address = SocketAddr::new(address, 0);
    Socket::new(
        Domain::for_address(address),
        kind,
        Some(Protocol::from(132)),
    )
}

/// Whether the kernel has SCTP sockets.
pub(crate) fn is_real() -> bool {
    socket(std::net::Ipv4Addr::LOCALHOST.into(), Type::STREAM).is_ok()
}

/// Answers at port 8080 of an address of this network namespace.
pub(crate) fn serve(address: IpAddr, answer: impl Fn(IpAddr) -> String + Send + 'static) {
    if is_real() {
        let listener = socket(address, Type::STREAM).expect("it is real");
        let at = SocketAddr::new(address, 8080);
        listener.bind(&at.into()).expect("free port");
        listener.listen(128).expect("bound");
        let listener = TcpListener::from(listener);
        std::thread::spawn(move || answer_all(&listener, answer));
        return;
    }
    let raw = socket(address, Type::RAW).expect("tests need root");
    raw.bind(&SocketAddr::new(address, 0).into())
        .expect("an address of this namespace");
    // What it wraps does not matter for receiving and sending.
    let raw = UdpSocket::from(raw);
    std::thread::spawn(move || {
        while let Ok((packet, from)) = receive(&raw) {
            let Some(init) = packet.filter(|packet| packet.kind == INIT && packet.to == 8080)
            else {
                continue;
            };
            let text = answer(from);
            let ack = Packet {
                from: init.to,
                to: init.from,
                tag: init.initial_tag,
                kind: INIT_ACK,
                initial_tag: 1,
                cookie: text,
            };
            // A client that is gone needs no answer.
            let _ = raw.send_to(&ack.bytes(), SocketAddr::new(from, 0));
        }
    });
}

/// Asks from a port of this network namespace.
pub(crate) fn ask(to: SocketAddr, patience: Duration, port: u16) -> std::io::Result<String> {
    if !is_real() {
        return probe(to, patience, port);
    }
    match exchange(to, patience.min(SOON)) {
        // Sockets do not tell a refusal: they go on asking.
        Err(error) if matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock) => {
            probe(to, patience, port)?;
            exchange(to, patience)
        }
        other => other,
    }
}

fn exchange(to: SocketAddr, patience: Duration) -> std::io::Result<String> {
    let stream = socket(to.ip(), Type::STREAM)?;
    stream.connect_timeout(&to.into(), patience)?;
    let mut stream = TcpStream::from(stream);
    stream.set_read_timeout(Some(patience))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// Sends an INIT and waits for the INIT ACK, whose cookie it yields, or the refusal.
fn probe(to: SocketAddr, patience: Duration, port: u16) -> std::io::Result<String> {
    let raw = socket(to.ip(), Type::RAW)?;
    raw.connect(&SocketAddr::new(to.ip(), 0).into())?;
    let raw = UdpSocket::from(raw);
    let init = Packet {
        from: port,
        to: to.port(),
        tag: 0,
        kind: INIT,
        initial_tag: 0x1234_0000 + u32::from(port),
        cookie: String::new(),
    };
    let until = Instant::now() + patience;
    while Instant::now() < until {
        refusal_may_follow(raw.send(&init.bytes()))?;
        let again = (Instant::now() + Duration::from_secs(1)).min(until);
        while let Some(left) = again
            .checked_duration_since(Instant::now())
            .filter(|left| !left.is_zero())
        {
            raw.set_read_timeout(Some(left))?;
            match receive(&raw) {
                Ok((Some(packet), _))
                    if packet.kind == INIT_ACK
                        && packet.to == init.from
                        && packet.tag == init.initial_tag =>
                {
                    return Ok(packet.cookie);
                }
                Ok(_) => {}
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Err(ErrorKind::TimedOut.into())
}

/// The next packet at a raw socket, if it is whole and right, and its sender.
fn receive(raw: &UdpSocket) -> std::io::Result<(Option<Packet>, IpAddr)> {
    let mut bytes = [0; 2048];
    let (count, from) = raw.recv_from(&mut bytes)?;
    let start = match from {
        // IPv4 comes with its header.
        SocketAddr::V4(_) => usize::from(bytes[0] & 0xf) * 4,
        SocketAddr::V6(_) => 0,
    };
    let packet = bytes.get(start..count).and_then(Packet::read);
    Ok((packet, from.ip()))
}

#[derive(Debug)]
struct Packet {
    from: u16,
    to: u16,
    tag: u32,
    kind: u8,
    initial_tag: u32,
    cookie: String,
}

impl Packet {
    fn bytes(&self) -> Vec<u8> {
        let mut chunk = Vec::new();
        chunk.extend(self.initial_tag.to_be_bytes());
        // Window, streams out and in, first sequence number.
        chunk.extend(65_536u32.to_be_bytes());
        chunk.extend([0, 1, 0, 1]);
        chunk.extend(1u32.to_be_bytes());
        if !self.cookie.is_empty() {
            chunk.extend(COOKIE.to_be_bytes());
            chunk.extend((self.cookie.len() as u16 + 4).to_be_bytes());
            chunk.extend(self.cookie.as_bytes());
        }
        let length = chunk.len() as u16 + 4;
        let mut bytes = Vec::new();
        bytes.extend(self.from.to_be_bytes());
        bytes.extend(self.to.to_be_bytes());
        bytes.extend(self.tag.to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend([self.kind, 0]);
        bytes.extend(length.to_be_bytes());
        bytes.extend(chunk);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        let sum = crc32c(&bytes).to_le_bytes();
        bytes[8..12].copy_from_slice(&sum);
        bytes
    }

    /// `None` for what is cut, or whose checksum is wrong: translation has to
    /// put it right.
    fn read(bytes: &[u8]) -> Option<Self> {
        let short = |at: usize| Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
        let long = |at: usize| Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let mut cleared = bytes.to_vec();
        cleared.get_mut(8..12)?.fill(0);
        if crc32c(&cleared).to_le_bytes() != *bytes.get(8..12)? {
            return None;
        }
        let kind = *bytes.get(12)?;
        let cookie = match (kind, short(32)) {
            (INIT_ACK, Some(COOKIE)) => {
                let length = usize::from(short(34)?);
                String::from_utf8(bytes.get(36..32 + length)?.to_vec()).unwrap_or_default()
            }
            _ => String::new(),
        };
        Some(Self {
            from: short(0)?,
            to: short(2)?,
            tag: long(4)?,
            kind,
            initial_tag: long(16)?,
            cookie,
        })
    }
}

/// The checksum of SCTP (RFC 9260, appendix A).
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
            sum >> 1 ^ if sum & 1 == 1 { 0x82f6_3b78 } else { 0 }
        })
    })
}
