//! A client, a server to test and upstream servers.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, Record, RecordType, rdata::A};
use podwire_dns::model::{Addressing, Pod, Service, ServiceKey};
use podwire_dns::{Config, Server, Shared};

/// Longer than anything takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) fn name(text: &str) -> Name {
    let mut name = Name::from_ascii(text).expect("a name");
    name.set_fqdn(true);
    name
}

/// A configuration that listens on loopback.
pub(crate) fn config() -> Config {
    let mut config = Config::new(name("cluster.local"));
    config.listen = vec!["127.0.0.1:0".parse().expect("an address")];
    config
}

/// A server with `web` and `other` in namespace `default`, and the client at
/// 127.0.0.1 a pod of it.
pub(crate) fn start(config: Config) -> (Arc<Shared>, Server) {
    let shared = Shared::new(config);
    shared.change(|zone| {
        zone.add_namespace("default");
        zone.set_service(service("web", "10.96.0.20"));
        zone.set_service(service("other", "10.96.0.21"));
        zone.set_pod(Pod {
            namespace: "default".into(),
            name: "client".into(),
            addresses: vec![IpAddr::V4(Ipv4Addr::LOCALHOST)],
            cluster_first: true,
            searches: Box::default(),
        });
    });
    shared.set_ready();
    let server = Server::start(&shared).expect("it starts");
    (shared, server)
}

pub(crate) fn service(name: &str, address: &str) -> Service {
    Service {
        key: ServiceKey::new("default", name),
        addressing: Addressing::Cluster(vec![address.parse().expect("an address")]),
        ports: Vec::new(),
    }
}

pub(crate) fn question(id: u16, text: &str, kind: RecordType) -> Vec<u8> {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name(text), kind));
    message.to_vec().expect("it can be written")
}

/// Asks by UDP.
pub(crate) fn ask(server: SocketAddr, text: &str) -> Message {
    try_ask(server, text, PATIENCE).expect("an answer")
}

/// Asks by UDP and waits so long for an answer.
pub(crate) fn try_ask(server: SocketAddr, text: &str, patience: Duration) -> Option<Message> {
    let socket = UdpSocket::bind(("127.0.0.1", 0)).expect("a socket");
    socket.connect(server).expect("loopback");
    socket.set_read_timeout(Some(patience)).expect("settable");
    socket
        .send(&question(0x4242, text, RecordType::A))
        .expect("sent");
    let mut buffer = [0; 4096];
    let length = socket.recv(&mut buffer).ok()?;
    Some(Message::from_vec(&buffer[..length]).expect("a message"))
}

/// Addresses of an answer.
pub(crate) fn addresses(message: &Message) -> Vec<String> {
    message
        .answers
        .iter()
        .filter(|record| record.record_type() == RecordType::A)
        .map(|record| record.data.to_string())
        .collect()
}

/// What an upstream server does with a question.
pub(crate) type Behaviour = dyn Fn(&Message, SocketAddr, &UdpSocket) -> Vec<Message> + Send + Sync;

/// An upstream server on loopback, UDP and TCP on one port.
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    pub(crate) asked: Arc<AtomicUsize>,
    /// Ids and source ports of the questions.
    pub(crate) seen: Arc<Mutex<Vec<(u16, u16)>>>,
    stop: Arc<std::sync::atomic::AtomicBool>,
}

impl Upstream {
    /// One that answers as `behave` says, and any question by TCP with 200 addresses.
    pub(crate) fn start(
        behave: impl Fn(&Message, SocketAddr, &UdpSocket) -> Vec<Message> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let address = listener.local_addr().expect("bound");
        let socket = UdpSocket::bind(address).expect("the same port");
        let asked = Arc::new(AtomicUsize::new(0));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let behave: Arc<Behaviour> = Arc::new(behave);
        let (counter, list, stopping) = (asked.clone(), seen.clone(), stop.clone());
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                if stopping.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(message) = Message::from_vec(&buffer[..length]) else {
                    continue;
                };
                counter.fetch_add(1, Ordering::SeqCst);
                list.lock()
                    .expect("nobody panics")
                    .push((message.metadata.id, from.port()));
                for reply in behave(&message, from, &socket) {
                    let bytes = reply.to_vec().expect("it can be written");
                    socket.send_to(&bytes, from).expect("sent");
                }
            }
        });
        let stopping = stop.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopping.load(Ordering::SeqCst) {
                    return;
                }
                let mut stream = stream.expect("a connection");
                while let Some(message) = receive(&mut stream) {
                    send(
                        &mut stream,
                        &reply(&message, 200).to_vec().expect("written"),
                    );
                }
            }
        });
        Self {
            address,
            asked,
            seen,
            stop,
        }
    }

    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Both threads wake up and see it.
        if let Ok(socket) = UdpSocket::bind(("127.0.0.1", 0)) {
            let _ = socket.send_to(&[0], self.address);
        }
        let _ = TcpStream::connect(self.address);
    }
}

/// A reply with so many addresses from 192.0.2.0/24.
pub(crate) fn reply(question: &Message, addresses: u8) -> Message {
    let mut reply = Message::new(question.metadata.id, MessageType::Response, OpCode::Query);
    reply.metadata.recursion_available = true;
    reply.queries.clone_from(&question.queries);
    for n in 0..addresses {
        let data = RData::A(A::new(192, 0, 2, n));
        let owner = question.queries[0].name().clone();
        reply.add_answer(Record::from_rdata(owner, 60, data));
    }
    reply
}

/// A reply that is a code.
pub(crate) fn refusal(question: &Message, code: ResponseCode) -> Message {
    let mut reply = reply(question, 0);
    reply.metadata.response_code = code;
    reply
}

pub(crate) fn send(stream: &mut TcpStream, message: &[u8]) {
    let length = u16::try_from(message.len()).expect("short");
    let mut framed = length.to_be_bytes().to_vec();
    framed.extend_from_slice(message);
    stream.write_all(&framed).expect("sent");
}

pub(crate) fn receive(stream: &mut TcpStream) -> Option<Message> {
    let mut length = [0; 2];
    stream.read_exact(&mut length).ok()?;
    let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut message).ok()?;
    Some(Message::from_vec(&message).expect("a message"))
}

/// Waits until `condition` holds.
pub(crate) fn wait_for(what: &str, condition: impl Fn() -> bool) {
    let deadline = std::time::Instant::now() + PATIENCE;
    while !condition() {
        assert!(std::time::Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
