//! What is not ours.

use std::collections::HashSet;
use std::time::Duration;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{Name, RData, Record, RecordType, rdata::SOA};
use podwire_dns::config::{CacheLimits, Policy};
use podwire_dns::model::{Addressing, Service, ServiceKey};

use crate::support::{
    PATIENCE, Upstream, addresses, ask, config, name, question, refusal, reply, start, wait_for,
};

#[test]
fn a_name_outside_is_asked_once_and_then_known() {
    let upstream = Upstream::start(|message, _, _| vec![reply(message, 2)]);
    let mut config = config();
    config.forwarding.upstreams = vec![upstream.address];
    let (_shared, server) = start(config);
    wait_for("the loop probe is over", || upstream.asked() == 1);
    for (letters, ttl) in [("www.example.com", 60), ("WWW.Example.com", 30)] {
        let answer = ask(server.addresses()[0], letters);
        assert_eq!(addresses(&answer).len(), 2);
        assert!(!answer.metadata.authoritative);
        assert_eq!(answer.answers[0].name.to_string(), format!("{letters}."));
        // Sixty seconds were given, thirty are kept.
        assert!(answer.answers[0].ttl <= ttl);
    }
    assert_eq!(upstream.asked(), 2);
}

#[test]
fn absence_is_kept_as_long_as_the_soa_says() {
    let upstream = Upstream::start(|message, _, _| {
        let mut reply = refusal(message, ResponseCode::NXDomain);
        let soa = SOA::new(name("ns.example"), name("h.example"), 1, 1, 1, 1, 600);
        reply.add_authority(Record::from_rdata(name("example"), 600, RData::SOA(soa)));
        vec![reply]
    });
    let mut config = config();
    config.forwarding.upstreams = vec![upstream.address];
    let (_shared, server) = start(config);
    wait_for("the loop probe is over", || upstream.asked() == 1);
    for _ in 0..3 {
        let answer = ask(server.addresses()[0], "no.example");
        assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
        assert_eq!(answer.authorities.len(), 1);
    }
    assert_eq!(upstream.asked(), 2);
}

#[test]
fn an_answer_cut_short_is_asked_for_by_tcp() {
    let upstream = Upstream::start(|message, _, _| {
        let mut reply = reply(message, 0);
        reply.metadata.truncation = true;
        vec![reply]
    });
    let mut config = config();
    config.forwarding.upstreams = vec![upstream.address];
    let (shared, _server) = start(config);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let answer = runtime.block_on(shared.query(&name("big.example"), RecordType::A, None));
    assert_eq!(answer.answers.len(), 200);
}

#[test]
fn a_server_that_fails_is_passed_over_and_taken_again_when_it_answers() {
    let good = Upstream::start(|message, _, _| vec![reply(message, 1)]);
    // A port nobody listens at any more.
    let gone = std::net::UdpSocket::bind(("127.0.0.1", 0)).unwrap();
    let gone_address = gone.local_addr().unwrap();
    drop(gone);
    let mut config = config();
    config.forwarding.upstreams = vec![gone_address, good.address];
    config.forwarding.policy = Policy::Sequential;
    config.forwarding.timeout = Duration::from_secs(1);
    let (shared, server) = start(config);
    for n in 0..4 {
        let answer = ask(server.addresses()[0], &format!("n{n}.example"));
        assert_eq!(addresses(&answer).len(), 1);
    }
    assert_eq!(shared.problems().len(), 1, "{:?}", shared.problems());
    assert!(shared.problems()[0].contains(&gone_address.to_string()));
    // It comes back.
    let socket = std::net::UdpSocket::bind(gone_address).unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            if let Ok(message) = hickory_proto::op::Message::from_vec(&buffer[..length]) {
                let _ = socket.send_to(&reply(&message, 1).to_vec().unwrap(), from);
            }
        }
    });
    wait_for("it is used again", || shared.problems().is_empty());
}

#[test]
fn when_no_server_answers_the_client_is_told_so() {
    let silent = Upstream::start(|_, _, _| Vec::new());
    let mut config = config();
    config.forwarding.upstreams = vec![silent.address];
    config.forwarding.timeout = Duration::from_millis(200);
    let (shared, server) = start(config);
    let answer = ask(server.addresses()[0], "www.example.com");
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
    let notes = shared.journal().notes();
    let note = notes.last().expect("it is noted");
    assert!(
        note.reason.contains("no answer within 200 ms"),
        "{}",
        note.reason
    );
    assert!(
        note.reason.contains(&silent.address.to_string()),
        "{}",
        note.reason
    );
}

#[test]
fn what_was_known_is_given_past_its_time_while_servers_fail() {
    let works = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
    let flag = works.clone();
    let upstream = Upstream::start(move |message, _, _| {
        if flag.load(std::sync::atomic::Ordering::SeqCst) {
            vec![reply(message, 1)]
        } else {
            vec![refusal(message, ResponseCode::ServFail)]
        }
    });
    let mut config = config();
    config.forwarding.upstreams = vec![upstream.address];
    config.forwarding.cache = CacheLimits {
        longest: Duration::from_millis(1),
        shortest: Duration::ZERO,
        serve_stale: Duration::from_secs(3600),
        ..CacheLimits::default()
    };
    let (_shared, server) = start(config);
    let server = server.addresses()[0];
    assert_eq!(addresses(&ask(server, "www.example.com")).len(), 1);
    works.store(false, std::sync::atomic::Ordering::SeqCst);
    std::thread::sleep(Duration::from_millis(5));
    assert_eq!(addresses(&ask(server, "www.example.com")).len(), 1);
    let unknown = ask(server, "other.example.com");
    assert_eq!(unknown.metadata.response_code, ResponseCode::ServFail);
}

#[test]
fn what_is_in_use_is_asked_for_again_before_its_time_is_over() {
    let upstream = Upstream::start(|message, _, _| vec![reply(message, 1)]);
    let mut config = config();
    config.forwarding.upstreams = vec![upstream.address];
    config.forwarding.cache = CacheLimits {
        longest: Duration::from_secs(1),
        shortest: Duration::ZERO,
        prefetch: true,
        ..CacheLimits::default()
    };
    let (shared, server) = start(config);
    let server = server.addresses()[0];
    let prefetched = || shared.metrics().cache_prefetch.get();
    wait_for("a question in the last tenth of its time", || {
        assert_eq!(addresses(&ask(server, "www.example.com")).len(), 1);
        prefetched() > 0
    });
    // The probe for loops, what was not known, and what was asked for early.
    wait_for("the question ahead of time", || {
        let asked = 1 + shared.metrics().cache_misses.get() + prefetched();
        u64::try_from(upstream.asked()).unwrap() == asked
    });
}

#[test]
fn stub_domains_have_servers_of_their_own_the_longest_match_counts() {
    let servers: Vec<Upstream> = (1..=3)
        .map(|n| Upstream::start(move |message, _, _| vec![reply(message, n)]))
        .collect();
    let mut config = config();
    config.forwarding.upstreams = vec![servers[0].address];
    config.forwarding.stubs = vec![
        (name("corp.example"), vec![servers[1].address]),
        (name("deep.corp.example"), vec![servers[2].address]),
    ];
    let (_shared, server) = start(config);
    let count = |text: &str| addresses(&ask(server.addresses()[0], text)).len();
    assert_eq!(count("www.example"), 1);
    assert_eq!(count("xcorp.example"), 1);
    assert_eq!(count("www.corp.example"), 2);
    assert_eq!(count("corp.example"), 2);
    assert_eq!(count("www.deep.corp.example"), 3);
}

#[test]
fn an_external_name_comes_with_what_it_leads_to() {
    let upstream = Upstream::start(|message, _, _| vec![reply(message, 1)]);
    let mut config = config();
    config.forwarding.upstreams = vec![upstream.address];
    let (shared, server) = start(config);
    shared.change(|zone| {
        zone.set_service(Service {
            key: ServiceKey::new("default", "out"),
            addressing: Addressing::External(name("www.example.com").into()),
            ports: Vec::new(),
        });
    });
    let answer = ask(server.addresses()[0], "out.default.svc.cluster.local");
    let lines: Vec<String> = answer.answers.iter().map(ToString::to_string).collect();
    assert_eq!(
        lines,
        [
            "out.default.svc.cluster.local. 5 IN CNAME www.example.com.",
            "www.example.com. 60 IN A 192.0.2.0"
        ]
    );
}

#[test]
fn a_whole_search_list_takes_one_round_trip() {
    let upstream = Upstream::start(|message, _, _| {
        let exists = message.queries[0].name() == &name("www.example.com");
        vec![if exists {
            reply(message, 1)
        } else {
            refusal(message, ResponseCode::NXDomain)
        }]
    });
    let mut config = config();
    config.forwarding.upstreams = vec![upstream.address];
    let (shared, server) = start(config);
    shared.change(|zone| zone.set_node_search(vec![name("corp.example")]));
    let first = "www.example.com.default.svc.cluster.local";
    let answer = ask(server.addresses()[0], first);
    assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
    let owners: Vec<Name> = answer.answers.iter().map(|r| r.name.clone()).collect();
    assert_eq!(owners, [name(first), name("www.example.com")]);
    // Names in none of the lists do not exist, and that is the cluster's own word.
    let missing = ask(
        server.addresses()[0],
        "no.example.com.default.svc.cluster.local",
    );
    assert_eq!(missing.metadata.response_code, ResponseCode::NXDomain);
    assert!(missing.metadata.authoritative);
    let mut text = String::new();
    let mut registry = prometheus_client::registry::Registry::default();
    shared.metrics().register(&mut registry);
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    assert!(
        text.contains("podwire_dns_search_completed_total 1\n"),
        "{text}"
    );
    assert!(
        text.contains("coredns_dns_requests_total{proto=\"udp\",family=\"1\",type=\"A\"} 2\n"),
        "{text}"
    );
}

#[rstest::rstest]
#[case::other_views_of_the_world(true)]
#[case::servers_of_one_cluster(false)]
fn other_servers_end_what_the_old_ones_said_unless_they_know_the_same(#[case] authoritative: bool) {
    let servers = [1, 2].map(|n| Upstream::start(move |message, _, _| vec![reply(message, n)]));
    let mut config = config();
    config.authoritative = authoritative;
    config.forwarding.upstreams = vec![servers[0].address];
    let mut forwarding = config.forwarding.clone();
    let (shared, server) = start(config);
    let count = |text: &str| addresses(&ask(server.addresses()[0], text)).len();
    assert_eq!([count("old.example"), count("old.example")], [1, 1]);
    forwarding.upstreams = vec![servers[1].address];
    shared.set_servers(&forwarding);
    assert_eq!(count("new.example"), 2);
    assert_eq!(count("old.example"), if authoritative { 2 } else { 1 });
    // With none left, a cache cannot send its clients elsewhere.
    forwarding.upstreams.clear();
    shared.set_servers(&forwarding);
    let code = ask(server.addresses()[0], "unknown.example")
        .metadata
        .response_code;
    let expected = match authoritative {
        true => ResponseCode::Refused,
        false => ResponseCode::ServFail,
    };
    assert_eq!(code, expected);
}

#[test]
fn a_server_that_leads_back_is_noticed_though_it_came_later() {
    let (shared, server) = start(config());
    let mut forwarding = shared.config().forwarding.clone();
    // Itself.
    forwarding.upstreams = vec![server.addresses()[0]];
    shared.set_servers(&forwarding);
    wait_for("the loop is noticed", || {
        shared
            .problems()
            .iter()
            .any(|problem| problem.contains("back here"))
    });
}

#[test]
fn who_wants_signatures_gets_the_answer_with_them() {
    let upstream = Upstream::start(|message, _, _| {
        let wanted = message
            .edns
            .as_ref()
            .is_some_and(|edns| edns.flags().dnssec_ok);
        vec![reply(message, if wanted { 2 } else { 1 })]
    });
    let mut config = config();
    config.forwarding.upstreams = vec![upstream.address];
    let (_shared, server) = start(config);
    let count = |wanted: bool| {
        let mut message = Message::from_vec(&question(7, "www.example", RecordType::A)).unwrap();
        let mut edns = hickory_proto::op::Edns::new();
        edns.set_dnssec_ok(wanted);
        message.edns = Some(edns);
        let socket = std::net::UdpSocket::bind(("127.0.0.1", 0)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let bytes = message.to_vec().unwrap();
        socket.send_to(&bytes, server.addresses()[0]).unwrap();
        let mut buffer = [0; 4096];
        let length = socket.recv(&mut buffer).unwrap();
        let answer = Message::from_vec(&buffer[..length]).unwrap();
        let echoed = answer.edns.as_ref().expect("echoed").flags().dnssec_ok;
        assert_eq!(echoed, wanted);
        answer.answers.len()
    };
    assert_eq!([true, false, true, false].map(count), [2, 1, 2, 1]);
}

#[test]
fn clients_that_ask_the_same_at_once_cost_one_question() {
    let upstream = Upstream::start(|message, _, _| {
        std::thread::sleep(Duration::from_millis(200));
        vec![reply(message, 1)]
    });
    let mut config = config();
    config.forwarding.upstreams = vec![upstream.address];
    let (_shared, server) = start(config);
    wait_for("the loop probe is over", || upstream.asked() == 1);
    let server = server.addresses()[0];
    let clients: Vec<_> = (0..20)
        .map(|_| std::thread::spawn(move || addresses(&ask(server, "www.example.com")).len()))
        .collect();
    for client in clients {
        assert_eq!(client.join().unwrap(), 1);
    }
    assert_eq!(upstream.asked(), 2);
}

#[test]
fn questions_cannot_be_foreseen() {
    let upstream = Upstream::start(|message, _, _| vec![reply(message, 1)]);
    let mut config = config();
    config.forwarding.upstreams = vec![upstream.address];
    let (_shared, server) = start(config);
    for n in 0..200 {
        ask(server.addresses()[0], &format!("n{n}.example"));
    }
    let seen = upstream.seen.lock().unwrap();
    let ids: HashSet<u16> = seen.iter().map(|(id, _)| *id).collect();
    let ports: HashSet<u16> = seen.iter().map(|(_, port)| *port).collect();
    // 200 of 65,536 collide sometimes, of 28,000 ports more often.
    assert!(
        ids.len() > 190 && ports.len() > 180,
        "{} {}",
        ids.len(),
        ports.len()
    );
    let in_a_row = seen
        .windows(2)
        .filter(|pair| pair[0].1.abs_diff(pair[1].1) <= 2)
        .count();
    assert!(in_a_row < 20, "ports follow each other: {in_a_row}");
}
