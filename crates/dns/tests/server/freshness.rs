//! Answers kept ready are those that would be made anew.

use hickory_proto::rr::RecordType;
use podwire_dns::config::PodRecords;
use podwire_dns::model::{
    Addressing, Endpoint, EndpointSlice, Pod, Port, Protocol, Service, ServiceKey,
};
use podwire_dns::{Server, Shared, Zone};

use crate::support::{config, name, question};

fn service(namespace: &str, called: &str, addressing: Addressing) -> Service {
    Service {
        key: ServiceKey::new(namespace, called),
        addressing,
        ports: vec![Port {
            name: "http".into(),
            protocol: Protocol::Tcp,
            number: 80,
        }],
    }
}

fn cluster(address: [u8; 4]) -> Addressing {
    Addressing::Cluster(vec![address.into()])
}

fn slice(last: u8, hostname: &str) -> EndpointSlice {
    EndpointSlice {
        name: "db-1".into(),
        service: ServiceKey::new("default", "db"),
        endpoints: vec![Endpoint {
            address: [10, 200, 0, last].into(),
            hostname: Some(hostname.into()),
        }],
        ports: Vec::new(),
    }
}

fn pod(address: [u8; 4], namespace: &str, called: &str) -> Pod {
    Pod {
        namespace: namespace.into(),
        name: called.into(),
        addresses: vec![address.into()],
        cluster_first: true,
        searches: Box::default(),
    }
}

const CHANGES: [fn(&mut Zone); 18] = [
    |zone| zone.set_service(service("default", "web", cluster([10, 96, 0, 1]))),
    |zone| zone.set_service(service("default", "web", cluster([10, 96, 0, 2]))),
    |zone| zone.set_service(service("default", "web", Addressing::Headless)),
    |zone| zone.remove_service(&ServiceKey::new("default", "web")),
    |zone| zone.set_service(service("other", "web", cluster([10, 96, 0, 3]))),
    |zone| zone.remove_service(&ServiceKey::new("other", "web")),
    |zone| zone.set_service(service("default", "db", Addressing::Headless)),
    |zone| zone.set_slice(slice(1, "one")),
    |zone| zone.set_slice(slice(2, "two")),
    |zone| zone.set_slice(slice(1, "two")),
    |zone| zone.remove_slice("default", "db-1"),
    |zone| {
        let target = Box::new(name("web.default.svc.cluster.local"));
        zone.set_service(service("default", "alias", Addressing::External(target)));
    },
    |zone| {
        let target = Box::new(name("db.default.svc.cluster.local"));
        zone.set_service(service("default", "alias", Addressing::External(target)));
    },
    |zone| zone.add_namespace("other"),
    |zone| zone.remove_namespace("other"),
    |zone| zone.set_pod(pod([10, 200, 0, 9], "default", "some")),
    |zone| zone.remove_pod("default", "some"),
    // The client, now of this namespace and now of that.
    |zone| {
        let namespace = match zone.pod([127, 0, 0, 1].into()) {
            Some(pod) if *pod.namespace == *"default" => "other",
            _ => "default",
        };
        zone.set_pod(pod([127, 0, 0, 1], namespace, "client"));
    },
];

const QUESTIONS: [(&str, RecordType); 14] = [
    ("web.default.svc.cluster.local", RecordType::A),
    ("web.default.svc.cluster.local", RecordType::AAAA),
    ("web.other.svc.cluster.local", RecordType::A),
    ("_http._tcp.web.default.svc.cluster.local", RecordType::SRV),
    ("db.default.svc.cluster.local", RecordType::A),
    ("two.db.default.svc.cluster.local", RecordType::A),
    ("alias.default.svc.cluster.local", RecordType::A),
    ("other.svc.cluster.local", RecordType::A),
    ("1.0.96.10.in-addr.arpa", RecordType::PTR),
    ("1.0.200.10.in-addr.arpa", RecordType::PTR),
    ("10-200-0-9.default.pod.cluster.local", RecordType::A),
    // For a pod of default found in the other namespace.
    ("web.other.default.svc.cluster.local", RecordType::A),
    ("web.default.other.svc.cluster.local", RecordType::A),
    ("cluster.local", RecordType::SOA),
];

/// Three hundred changes in an order that looks random; after each, all that is
/// asked is answered as if it were asked for the first time.
#[test]
fn an_answer_given_again_is_the_one_that_would_be_made() {
    let mut config = config();
    config.pods = PodRecords::Verified;
    config.reverse = vec!["10.0.0.0/8".parse().expect("a range")];
    let shared = Shared::new(config);
    shared.set_ready();
    let server = Server::start(&shared).expect("it starts");
    let socket = std::net::UdpSocket::bind(("127.0.0.1", 0)).expect("a socket");
    socket.connect(server.addresses()[0]).expect("loopback");
    socket
        .set_read_timeout(Some(crate::support::PATIENCE))
        .expect("settable");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("it starts");
    let mut state = 7u64;
    let mut kinds_of_answers = std::collections::HashSet::new();
    for step in 0..300u16 {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let choice = usize::try_from(state >> 33).expect("31 bits") % CHANGES.len();
        shared.change(CHANGES[choice]);
        for (asked, kind) in QUESTIONS {
            let fresh = runtime.block_on(shared.query(
                &name(asked),
                kind,
                Some(std::net::Ipv4Addr::LOCALHOST.into()),
            ));
            socket.send(&question(step, asked, kind)).expect("sent");
            let mut buffer = [0; 4096];
            let length = socket.recv(&mut buffer).expect("an answer");
            let given = hickory_proto::op::Message::from_vec(&buffer[..length]).expect("a message");
            let text = |records: &[hickory_proto::rr::Record]| {
                let mut texts: Vec<String> = records.iter().map(ToString::to_string).collect();
                texts.sort();
                texts
            };
            let (given, fresh) = (
                (given.metadata.response_code, text(&given.answers)),
                (fresh.code, text(&fresh.answers)),
            );
            assert_eq!(
                given, fresh,
                "{asked} {kind} after change {choice}, step {step}"
            );
            kinds_of_answers.insert((asked, kind, given));
        }
    }
    // Of almost all of them more than one answer has been seen.
    assert!(kinds_of_answers.len() > 2 * QUESTIONS.len());
}
