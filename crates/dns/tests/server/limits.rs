//! What the server does for nobody, and what it does while nobody asks.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, RecordType};

use crate::support::{PATIENCE, ask, config, name, receive, send, start};

/// The answers to the same question by UDP and by TCP.
fn ask_both(server: SocketAddr, op_code: OpCode, query: Query) -> [Message; 2] {
    let mut question = Message::new(7, MessageType::Query, op_code);
    question.metadata.recursion_desired = true;
    question.add_query(query);
    let question = question.to_vec().expect("it can be written");
    let socket = UdpSocket::bind(("127.0.0.1", 0)).expect("a socket");
    socket.set_read_timeout(Some(PATIENCE)).expect("settable");
    socket.send_to(&question, server).expect("sent");
    let mut buffer = [0; 4096];
    let length = socket.recv(&mut buffer).expect("an answer");
    let mut stream = TcpStream::connect(server).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("settable");
    send(&mut stream, &question);
    [
        Message::from_vec(&buffer[..length]).expect("a message"),
        receive(&mut stream).expect("an answer"),
    ]
}

fn query(text: &str, kind: RecordType, class: DNSClass) -> Query {
    let mut query = Query::query(name(text), kind);
    query.set_query_class(class);
    query
}

#[test]
fn zones_are_handed_over_to_nobody() {
    let (_shared, server) = start(config());
    for kind in [RecordType::AXFR, RecordType::IXFR] {
        for zone in ["cluster.local", "default.svc.cluster.local", "example.com"] {
            let query = query(zone, kind, DNSClass::IN);
            for reply in ask_both(server.addresses()[0], OpCode::Query, query) {
                let code = reply.metadata.response_code;
                assert_eq!(code, ResponseCode::Refused, "{kind} {zone}");
                assert!(reply.answers.is_empty(), "{kind} {zone}: {reply:?}");
            }
        }
    }
}

#[test]
fn notices_and_updates_are_not_implemented() {
    let (_shared, server) = start(config());
    for op_code in [OpCode::Notify, OpCode::Update] {
        let query = query("cluster.local", RecordType::SOA, DNSClass::IN);
        for reply in ask_both(server.addresses()[0], op_code, query) {
            let code = reply.metadata.response_code;
            assert_eq!(code, ResponseCode::NotImp, "{op_code:?}");
            assert_eq!(reply.metadata.op_code, op_code);
        }
    }
}

#[test]
fn class_chaos_knows_the_version_and_nothing_else() {
    let (_shared, server) = start(config());
    let server = server.addresses()[0];
    let web = "web.default.svc.cluster.local";
    // The answer to this one lies ready: it is of another class.
    for _ in 0..3 {
        ask(server, web);
    }
    for (text, kind, told) in [
        ("version.bind", RecordType::TXT, true),
        ("version.server", RecordType::TXT, true),
        ("VERSION.Bind", RecordType::TXT, true),
        ("version.bind", RecordType::ANY, true),
        ("version.bind", RecordType::A, false),
        ("hostname.bind", RecordType::TXT, false),
        ("id.server", RecordType::TXT, false),
        (web, RecordType::A, false),
    ] {
        for reply in ask_both(server, OpCode::Query, query(text, kind, DNSClass::CH)) {
            let (expected, count) = match told {
                true => (ResponseCode::NoError, 1),
                false => (ResponseCode::Refused, 0),
            };
            assert_eq!(reply.metadata.response_code, expected, "{text} {kind}");
            assert_eq!(reply.answers.len(), count, "{text} {kind}: {reply:?}");
            for record in reply.answers {
                assert_eq!(record.dns_class, DNSClass::CH, "{text} {kind}");
                let version = format!("podwire {}", env!("CARGO_PKG_VERSION"));
                assert_eq!(record.data.to_string(), version, "{text} {kind}");
            }
        }
    }
}

/// For how long each thread of this process but the caller's has run, and how often.
fn ran() -> BTreeMap<String, String> {
    let own = std::fs::read_link("/proc/thread-self").expect("of Linux");
    let own = own.file_name().expect("the thread's number").to_owned();
    std::fs::read_dir("/proc/self/task")
        .expect("of Linux")
        .map(|thread| thread.expect("readable"))
        .filter(|thread| thread.file_name() != own)
        // A thread may end meanwhile.
        .filter_map(|thread| {
            let text = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
            let mut numbers = text.split_whitespace();
            // On a core, waiting for one, times on one.
            let (on, times) = (numbers.next()?, numbers.nth(1)?);
            Some((
                thread.file_name().to_string_lossy().into_owned(),
                format!("{on} {times}"),
            ))
        })
        .collect()
}

#[test]
fn while_nobody_asks_no_thread_runs() {
    let (_shared, server) = start(config());
    let server = server.addresses()[0];
    let socket = UdpSocket::bind(("127.0.0.1", 0)).expect("a socket");
    socket
        .set_read_timeout(Some(Duration::from_millis(500)))
        .expect("settable");
    // What begins with the server, and with its first question, may take a while on
    // a busy machine; in one of these spells all of it is over.
    let mut spells = Vec::new();
    let quiet = (0..60).any(|_| {
        let before = ran();
        assert!(before.len() > 1, "the server has threads: {before:?}");
        assert!(
            socket.recv(&mut [0]).is_err(),
            "nobody was asked for anything"
        );
        let after = ran();
        let quiet = before == after;
        spells.push((before, after));
        quiet
    });
    assert!(quiet, "threads always ran: {:?}", spells.last());
    // They were asleep and not gone.
    ask(server, "web.default.svc.cluster.local");
}
