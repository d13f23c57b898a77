//! What pods serve and ask: a little HTTP and UDP, both of which say who asked.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use linux::namespace::NetworkNamespace;

/// How long a client waits.
const PATIENCE: Duration = Duration::from_secs(10);
/// Where pods serve.
pub(crate) const PORT: u16 = 80;

/// Serves until the test's process ends.
pub(crate) fn serve(pod: &NetworkNamespace) {
    let any: SocketAddr = (Ipv6Addr::UNSPECIFIED, PORT).into();
    let (tcp, udp) = pod
        .run(|| (TcpListener::bind(any), UdpSocket::bind(any)))
        .expect("entered");
    let (tcp, udp) = (tcp.expect("a free port"), udp.expect("a free port"));
    std::thread::spawn(move || {
        for stream in tcp.incoming().flatten() {
            // A client may be gone; the next one is served all the same.
            std::thread::spawn(move || answer(stream));
        }
    });
    std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((_, peer)) = udp.recv_from(&mut buffer) {
            let _ = udp.send_to(peer.ip().to_canonical().to_string().as_bytes(), peer);
        }
    });
}

/// `GET /N` is answered with N bytes.
fn answer(stream: TcpStream) -> io::Result<()> {
    let peer = stream.peer_addr()?.ip().to_canonical();
    let mut lines = BufReader::new(&stream).lines();
    let line = lines.next().transpose()?.unwrap_or_default();
    while lines
        .next()
        .transpose()?
        .is_some_and(|line| !line.is_empty())
    {}
    let wanted = line
        .split(' ')
        .nth(1)
        .and_then(|path| path[1..].parse().ok());
    let length: usize = wanted.unwrap_or(0);
    let mut out = &stream;
    write!(
        out,
        "HTTP/1.0 200 OK\r\nX-Peer: {peer}\r\nContent-Length: {length}\r\n\r\n"
    )?;
    out.write_all(&vec![b'p'; length])
}

/// Fetches so many bytes and returns who the server says asked.
pub(crate) fn get(from: &NetworkNamespace, to: IpAddr, length: usize) -> Result<IpAddr, String> {
    let fetched = from.run(|| -> io::Result<(Vec<u8>, usize)> {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::new(to, PORT), PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        write!(stream, "GET /{length} HTTP/1.0\r\nHost: pod\r\n\r\n")?;
        let mut text = Vec::new();
        stream.read_to_end(&mut text)?;
        let end = text.windows(4).position(|bytes| bytes == b"\r\n\r\n");
        let end = end.ok_or_else(|| io::Error::other("no answer in the form of HTTP"))?;
        let body = text.len() - end - 4;
        text.truncate(end);
        Ok((text, body))
    });
    let (head, body) = fetched
        .map_err(|error| error.to_string())?
        .map_err(|error| format!("GET http://{to}/{length}: {error}"))?;
    if body != length {
        return Err(format!("{body} bytes of {length} came from {to}"));
    }
    let head = String::from_utf8_lossy(&head);
    let peer = head.lines().find_map(|line| line.strip_prefix("X-Peer: "));
    peer.and_then(|peer| peer.parse().ok())
        .ok_or_else(|| format!("no peer in {head:?}"))
}

/// Sends a datagram and returns who the server says sent it.
pub(crate) fn ask(from: &NetworkNamespace, to: IpAddr) -> Result<IpAddr, String> {
    let any: IpAddr = match to {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let answer = from.run(|| -> io::Result<String> {
        let socket = UdpSocket::bind((any, 0))?;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        socket.connect((to, PORT))?;
        let mut buffer = [0; 64];
        let mut last = io::Error::other("not asked");
        for _ in 0..5 {
            socket.send(b"?")?;
            match socket.recv(&mut buffer) {
                Ok(length) => return Ok(String::from_utf8_lossy(&buffer[..length]).into_owned()),
                Err(error) => last = error,
            }
        }
        Err(last)
    });
    let text = answer
        .map_err(|error| error.to_string())?
        .map_err(|error| format!("datagram to {to}: {error}"))?;
    text.parse().map_err(|_| format!("no peer in {text:?}"))
}
