//! UDP and TCP, and clients that are other people's.

use std::collections::HashSet;
use std::io::Write as _;
use std::net::TcpStream;
use std::process::Command;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use podwire_dns::model::{Addressing, Endpoint, EndpointSlice, Service, ServiceKey};
use podwire_dns::{Server, Shared};

use crate::support::{PATIENCE, addresses, ask, config, question, receive, send, service, start};

fn dig(server: std::net::SocketAddr, arguments: &[&str]) -> String {
    let output = Command::new("dig")
        .arg(format!("@{}", server.ip()))
        .args(["-p", &server.port().to_string(), "+tries=2", "+time=15"])
        .args(arguments)
        .output()
        .expect("dig runs");
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn both_families_and_both_transports_answer() {
    let mut config = config();
    config.listen.push("[::1]:0".parse().unwrap());
    let (_shared, server) = start(config);
    for address in server.addresses() {
        for transport in ["+notcp", "+tcp"] {
            let text = dig(
                *address,
                &["+short", transport, "web.default.svc.cluster.local"],
            );
            assert_eq!(text, "10.96.0.20\n", "{address} {transport}");
        }
    }
}

#[test]
fn dig_understands_the_header_and_the_options() {
    let (_shared, server) = start(config());
    let text = dig(server.addresses()[0], &["WEB.default.svc.cluster.local"]);
    assert!(text.contains("flags: qr aa rd ra;"), "{text}");
    assert!(text.contains("EDNS: version: 0"), "{text}");
    let line = "WEB.default.svc.cluster.local. 5 IN A 10.96.0.20";
    let words: Vec<&str> = text.split_whitespace().collect();
    assert!(words.join(" ").contains(line), "{text}");
    let text = dig(
        server.addresses()[0],
        &["CH", "TXT", "version.bind", "+short"],
    );
    assert!(text.contains("podwire "), "{text}");
    for refused in [&["AXFR", "cluster.local"][..], &["HS", "A", "web"]] {
        let text = dig(server.addresses()[0], refused);
        let told = text.contains("REFUSED") || text.contains("Transfer failed");
        assert!(told, "{refused:?}: {text}");
    }
    // Nobody's name, and nobody to ask.
    let text = dig(server.addresses()[0], &["example.com"]);
    assert!(text.contains("REFUSED"), "{text}");
}

#[test]
fn an_answer_too_long_for_a_datagram_comes_whole_by_tcp() {
    let (shared, server) = start(config());
    shared.change(|zone| {
        let key = ServiceKey::new("default", "db");
        zone.set_service(Service {
            key: key.clone(),
            addressing: Addressing::Headless,
            ports: Vec::new(),
        });
        zone.set_slice(EndpointSlice {
            name: "db-1".into(),
            service: key,
            endpoints: (0..1000u32)
                .map(|n| Endpoint {
                    address: std::net::Ipv4Addr::from_bits(0x0ac8_0000 + n).into(),
                    hostname: None,
                })
                .collect(),
            ports: Vec::new(),
        });
    });
    let name = "db.default.svc.cluster.local";
    let cut = ask(server.addresses()[0], name);
    assert!(cut.metadata.truncation && !cut.answers.is_empty());
    // dig asks again by TCP by itself.
    let text = dig(server.addresses()[0], &["+short", name]);
    let lines: HashSet<&str> = text.lines().filter(|line| !line.starts_with(';')).collect();
    assert_eq!(lines.len(), 1000);
}

#[test]
fn questions_of_one_connection_may_come_all_at_once() {
    let (_shared, server) = start(config());
    let mut stream = TcpStream::connect(server.addresses()[0]).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut all = Vec::new();
    for id in 0..300u16 {
        let question = question(id, "web.default.svc.cluster.local", RecordType::A);
        all.extend(u16::try_from(question.len()).unwrap().to_be_bytes());
        all.extend(question);
    }
    // In pieces that end anywhere.
    for piece in all.chunks(1000) {
        stream.write_all(piece).unwrap();
    }
    let mut ids = HashSet::new();
    for _ in 0..300 {
        let reply = receive(&mut stream).expect("an answer");
        assert_eq!(addresses(&reply), ["10.96.0.20"]);
        ids.insert(reply.metadata.id);
    }
    assert_eq!(ids.len(), 300);
}

#[test]
fn a_connection_with_nonsense_ends_and_others_go_on() {
    let (_shared, server) = start(config());
    let mut good = TcpStream::connect(server.addresses()[0]).unwrap();
    let mut bad = TcpStream::connect(server.addresses()[0]).unwrap();
    bad.set_read_timeout(Some(PATIENCE)).unwrap();
    send(&mut bad, &[1, 2, 3]);
    assert!(receive(&mut bad).is_none());
    send(
        &mut good,
        &question(1, "web.default.svc.cluster.local", RecordType::A),
    );
    assert_eq!(
        addresses(&receive(&mut good).expect("an answer")),
        ["10.96.0.20"]
    );
}

#[test]
fn before_the_zone_is_known_nothing_is_said_not_to_exist() {
    let shared = Shared::new(config());
    let server = Server::start(&shared).unwrap();
    let address = server.addresses()[0];
    let code = || {
        ask(address, "web.default.svc.cluster.local")
            .metadata
            .response_code
    };
    assert_eq!(code(), ResponseCode::ServFail);
    shared.set_ready();
    assert_eq!(code(), ResponseCode::NXDomain);
    assert_eq!(
        shared.journal().notes().len(),
        1,
        "the failed question is noted"
    );
}

#[test]
fn what_was_absent_is_there_with_the_change_that_makes_it() {
    let (shared, server) = start(config());
    let address = server.addresses()[0];
    // The client is a pod: its search list is walked for the second name.
    for name in [
        "new.default.svc.cluster.local",
        "new.default.default.svc.cluster.local",
    ] {
        for _ in 0..3 {
            let code = ask(address, name).metadata.response_code;
            assert_eq!(code, ResponseCode::NXDomain, "{name}");
        }
        shared.change(|zone| zone.set_service(service("new", "10.96.0.30")));
        for _ in 0..3 {
            assert_eq!(addresses(&ask(address, name)), ["10.96.0.30"], "{name}");
        }
        shared.change(|zone| zone.remove_service(&ServiceKey::new("default", "new")));
    }
}

#[test]
fn a_server_that_ends_frees_its_addresses() {
    let (shared, server) = start(config());
    let address = server.addresses()[0];
    drop(server);
    drop(shared);
    let mut config = config();
    config.listen = vec![address];
    let (_shared, server) = start(config);
    assert_eq!(
        addresses(&ask(server.addresses()[0], "web.default.svc.cluster.local")),
        ["10.96.0.20"]
    );
}

#[test]
fn an_address_that_is_taken_is_named() {
    let taken = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let mut config = config();
    config.listen = vec![taken.local_addr().unwrap()];
    let error = Server::start(&Shared::new(config)).unwrap_err().to_string();
    assert!(
        error.contains(&taken.local_addr().unwrap().to_string()),
        "{error}"
    );
    assert!(error.contains("another DNS server"), "{error}");
}
