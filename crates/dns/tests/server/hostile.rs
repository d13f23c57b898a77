//! Input that means no good.

use std::net::UdpSocket;
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use podwire_dns::message;
use proptest::prelude::*;

use crate::support::{
    PATIENCE, Upstream, addresses, ask, config, name, question, refusal, reply, start, try_ask,
    wait_for,
};

proptest! {
    #[test]
    fn no_message_makes_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let _ = message::read(&bytes);
    }

    #[test]
    fn no_damaged_question_makes_the_reader_panic(
        at in 0usize..60,
        byte in any::<u8>(),
        cut in 0usize..60,
    ) {
        let mut bytes = question(7, "web.default.svc.cluster.local", RecordType::A);
        let length = bytes.len();
        bytes[at % length] = byte;
        let _ = message::read(&bytes);
        bytes.truncate(cut);
        let _ = message::read(&bytes);
    }

    #[test]
    fn no_name_makes_the_lookup_panic(
        labels in prop::collection::vec("[a-zA-Z0-9_*.-]{1,20}|_tcp|_udp|svc|pod|default|web|in-addr|ip6|arpa", 0..12),
        ours in any::<bool>(),
    ) {
        let mut text = labels.join(".");
        if ours {
            text.push_str(".cluster.local");
        }
        if let Ok(name) = hickory_proto::rr::Name::from_ascii(&text) {
            let zone = podwire_dns::Zone::new();
            let config = config();
            for kind in [RecordType::A, RecordType::SRV, RecordType::PTR, RecordType::ANY] {
                let _ = podwire_dns::lookup(&podwire_dns::View::new(&zone), &config, &name, kind);
            }
        }
    }
}

#[test]
fn a_server_fed_with_rubbish_serves_others() {
    let (_shared, server) = start(config());
    let server = server.addresses()[0];
    let socket = UdpSocket::bind(("127.0.0.1", 0)).unwrap();
    let mut state = 1u64;
    for length in 0..2000usize {
        let rubbish: Vec<u8> = (0..length % 700)
            .map(|_| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                state.to_be_bytes()[0]
            })
            .collect();
        socket.send_to(&rubbish, server).unwrap();
        // And questions with a byte of rubbish.
        let name = "web.default.svc.cluster.local";
        let mut damaged = question(7, name, RecordType::A);
        if let Some(byte) = rubbish.first() {
            let at = usize::from(*byte) % damaged.len();
            damaged[at] ^= rubbish[rubbish.len() - 1] | 1;
        }
        socket.send_to(&damaged, server).unwrap();
    }
    assert_eq!(
        addresses(&ask(server, "web.default.svc.cluster.local")),
        ["10.96.0.20"]
    );
}

/// A message whose question's name leads to itself, and one whose name is longer
/// than names are.
fn endless(id: u16, is_reply: bool) -> Vec<Vec<u8>> {
    let mut head = id.to_be_bytes().to_vec();
    head.extend([
        if is_reply { 0x81 } else { 1 },
        0,
        0,
        1,
        0,
        u8::from(is_reply),
        0,
        0,
        0,
        0,
    ]);
    let mut huge = head.clone();
    for _ in 0..10 {
        huge.push(63);
        huge.extend([b'a'; 63]);
    }
    huge.extend([0, 0, 1, 0, 1]);
    let mut itself = head.clone();
    itself.extend([0xc0, 12, 0, 1, 0, 1]);
    let mut each_other = head;
    each_other.extend([0xc0, 14, 0xc0, 12, 0, 1, 0, 1]);
    vec![huge, itself, each_other]
}

#[test]
fn names_that_lead_to_themselves_or_are_too_long_are_malformed() {
    let (_shared, server) = start(config());
    let socket = UdpSocket::bind(("127.0.0.1", 0)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    for bytes in endless(7, false) {
        socket.send_to(&bytes, server.addresses()[0]).unwrap();
        let mut buffer = [0; 512];
        let length = socket.recv(&mut buffer).unwrap();
        assert_eq!(
            (length, buffer[3] & 15),
            (12, 1),
            "FORMERR, the header alone"
        );
    }
}

#[test]
fn an_upstream_server_that_sends_rubbish_first_is_waited_for() {
    let upstream = Upstream::start(|message, from, socket| {
        for bytes in endless(message.metadata.id, true) {
            socket.send_to(&bytes, from).expect("sent");
        }
        socket.send_to(&[], from).expect("sent");
        socket.send_to(&[0xff; 4000], from).expect("sent");
        vec![reply(message, 1)]
    });
    let mut config = config();
    config.forwarding.upstreams = vec![upstream.address];
    let (_shared, server) = start(config);
    let answer = ask(server.addresses()[0], "www.example.com");
    assert_eq!(addresses(&answer), ["192.0.2.0"]);
}

#[test]
fn replies_that_are_not_the_servers_are_ignored() {
    let upstream = Upstream::start(|message, from, _| {
        // From another port.
        let stranger = UdpSocket::bind(("127.0.0.1", 0)).expect("a socket");
        let _ = stranger.send_to(&reply(message, 9).to_vec().expect("written"), from);
        // With another id, to another question, and as a question.
        let mut id = reply(message, 9);
        id.metadata.id = id.metadata.id.wrapping_add(1);
        let mut other = reply(message, 9);
        other.queries[0].set_name(name("evil.example"));
        let mut kind = reply(message, 9);
        kind.queries[0].set_query_type(RecordType::TXT);
        let mut none = reply(message, 9);
        none.queries.clear();
        vec![id, other, kind, none, message.clone(), reply(message, 1)]
    });
    let mut config = config();
    config.forwarding.upstreams = vec![upstream.address];
    let (_shared, server) = start(config);
    for n in 0..20 {
        let answer = ask(server.addresses()[0], &format!("n{n}.example"));
        assert_eq!(addresses(&answer), ["192.0.2.0"]);
    }
}

#[test]
fn a_server_that_asks_itself_notices() {
    // The upstream server is this one: its address is known once it listens.
    let relay = std::sync::Arc::new(std::sync::Mutex::new(None));
    let back = relay.clone();
    let upstream = Upstream::start(move |message, _, _| {
        let to: Option<std::net::SocketAddr> = *back.lock().expect("nobody panics");
        if let Some(to) = to {
            let socket = UdpSocket::bind(("127.0.0.1", 0)).expect("a socket");
            let _ = socket.send_to(&message.to_vec().expect("written"), to);
        }
        Vec::new()
    });
    let mut config = config();
    let port = UdpSocket::bind(("127.0.0.1", 0))
        .unwrap()
        .local_addr()
        .unwrap();
    config.listen = vec![port];
    *relay.lock().unwrap() = Some(port);
    config.forwarding.upstreams = vec![upstream.address];
    config.forwarding.timeout = Duration::from_millis(300);
    let (shared, server) = start(config);
    wait_for("the loop is noticed", || {
        shared
            .problems()
            .iter()
            .any(|problem| problem.contains("back here"))
    });
    let answer = ask(server.addresses()[0], "www.example.com");
    assert_eq!(answer.metadata.response_code, ResponseCode::Refused);
    let asked = upstream.asked();
    ask(server.addresses()[0], "other.example.com");
    assert_eq!(upstream.asked(), asked, "nothing goes round");
}

#[test]
fn a_flood_of_names_leaves_memory_and_others_alone() {
    let slow = Upstream::start(|message, _, _| {
        std::thread::sleep(Duration::from_millis(1));
        vec![refusal(message, ResponseCode::NXDomain)]
    });
    let mut config = config();
    config.forwarding.upstreams = vec![slow.address];
    config.forwarding.concurrent = 50;
    config.forwarding.cache.bytes = 64 << 10;
    let (shared, server) = start(config);
    let server = server.addresses()[0];
    let socket = UdpSocket::bind(("127.0.0.1", 0)).unwrap();
    for n in 0..5000u16 {
        let question = question(n, &format!("x{n}.flood.example"), RecordType::A);
        socket.send_to(&question, server).unwrap();
        if n % 500 == 0 {
            // While it goes on.
            let answer = ask(server, "web.default.svc.cluster.local");
            assert_eq!(addresses(&answer), ["10.96.0.20"]);
        }
    }
    shared.measure();
    let metrics = shared.metrics();
    assert!(metrics.cache_bytes.get() <= 64 << 10);
    assert!(
        metrics.too_many.get() > 0,
        "more than 50 at once were refused"
    );
}

#[test]
fn a_client_that_asks_too_much_is_not_answered_for_a_while() {
    let mut config = config();
    config.client_rate = 5;
    let (shared, server) = start(config);
    let server = server.addresses()[0];
    let name = "web.default.svc.cluster.local";
    let socket = UdpSocket::bind(("127.0.0.1", 0)).unwrap();
    for n in 0..200 {
        socket
            .send_to(&question(n, name, RecordType::A), server)
            .unwrap();
    }
    wait_for("the limit is met", || shared.metrics().limited.get() >= 100);
    // Another client of the same machine.
    let other = UdpSocket::bind(("127.0.0.2", 0)).unwrap();
    other.set_read_timeout(Some(PATIENCE)).unwrap();
    other
        .send_to(&question(1, name, RecordType::A), server)
        .unwrap();
    let mut buffer = [0; 512];
    assert!(other.recv(&mut buffer).is_ok());
    // It may ask again later.
    wait_for("it may ask again", || {
        try_ask(server, name, Duration::from_millis(300)).is_some()
    });
}
