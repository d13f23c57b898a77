//! Connections between the nodes' pods.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use podwire_linux::namespace::NetworkNamespace;

use crate::nodes::{Node, pod_address};

/// Longer than anything here takes on a machine that is busy with other things.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);
pub(crate) const PORT: u16 = 8080;

pub(crate) fn listen(namespace: &NetworkNamespace, address: IpAddr) -> TcpListener {
    namespace
        .run(|| TcpListener::bind((address, PORT)).unwrap())
        .unwrap()
}

pub(crate) fn limit(stream: TcpStream) -> TcpStream {
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_write_timeout(Some(DEADLINE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

fn connect(namespace: &NetworkNamespace, to: IpAddr) -> TcpStream {
    let to = SocketAddr::from((to, PORT));
    limit(
        namespace
            .run(|| TcpStream::connect_timeout(&to, DEADLINE).unwrap())
            .unwrap(),
    )
}

/// Connects from a port that several connections share.
pub(crate) fn connect_from(namespace: &NetworkNamespace, from: IpAddr, to: IpAddr) -> TcpStream {
    use rustix::net::{AddressFamily, SocketType, bind, connect, socket, sockopt};
    let family = match to {
        IpAddr::V4(_) => AddressFamily::INET,
        IpAddr::V6(_) => AddressFamily::INET6,
    };
    let stream = namespace.run(|| {
        let socket = socket(family, SocketType::STREAM, None).unwrap();
        sockopt::set_socket_reuseaddr(&socket, true).unwrap();
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(DEADLINE)).unwrap();
        bind(&socket, &SocketAddr::from((from, 40_000))).unwrap();
        connect(&socket, &SocketAddr::from((to, PORT))).unwrap();
        TcpStream::from(socket)
    });
    limit(stream.unwrap())
}

/// A connection from the first node's pod to the second's.
pub(crate) fn connection(nodes: &[Node; 2], v6: bool) -> (TcpStream, TcpStream) {
    let to = pod_address(2, v6);
    let listener = listen(&nodes[1].pod, to);
    let client = connect(&nodes[0].pod, to);
    (client, limit(listener.accept().unwrap().0))
}

/// A byte there and one back.
pub(crate) fn ask((client, server): &mut (TcpStream, TcpStream)) {
    let mut byte = [0];
    client.write_all(&[7]).unwrap();
    server.read_exact(&mut byte).unwrap();
    server.write_all(&[8]).unwrap();
    client.read_exact(&mut byte).unwrap();
    assert_eq!(byte, [8]);
}

/// Asks until the packets of the connection take the fast path on both nodes,
/// both ways: the first ones go before the stack has seen the handshake's end.
pub(crate) fn ask_until_taken(nodes: &[Node; 2], pair: &mut (TcpStream, TcpStream)) {
    let before = nodes.each_ref().map(Node::taken);
    for _ in 0..50 {
        ask(pair);
        let now = nodes.each_ref().map(Node::taken);
        let both = before.as_flattened().iter().zip(now.as_flattened());
        if both.into_iter().all(|(before, now)| before < now) {
            return;
        }
    }
    panic!(
        "no fast path:\n{}\n{}",
        nodes[0].counters(),
        nodes[1].counters()
    );
}

/// A connection whose packets take the fast path.
pub(crate) fn taken_connection(nodes: &[Node; 2], v6: bool) -> (TcpStream, TcpStream) {
    let mut pair = connection(nodes, v6);
    ask_until_taken(nodes, &mut pair);
    pair
}

/// Sends so many bytes and gives how many arrive.
pub(crate) fn transfer((client, server): &mut (TcpStream, TcpStream), bytes: usize) -> usize {
    let mut from = client.try_clone().unwrap();
    let sender = std::thread::spawn(move || {
        let piece = vec![3; 1 << 16];
        for _ in 0..bytes / piece.len() {
            from.write_all(&piece).unwrap();
        }
        from.shutdown(std::net::Shutdown::Write).unwrap();
    });
    let mut count = 0;
    let mut buffer = vec![0; 1 << 16];
    loop {
        match server.read(&mut buffer).unwrap() {
            0 => break,
            length => count += length,
        }
    }
    sender.join().unwrap();
    count
}
