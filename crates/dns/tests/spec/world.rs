//! A zone in a few lines, and its answers as text.

use std::net::IpAddr;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, Record, RecordType};
use podwire_dns::model::{
    Addressing, Endpoint, EndpointSlice, Pod, Port, Protocol, Service, ServiceKey,
};
use podwire_dns::resolver::{Purpose, Step, resolve};
use podwire_dns::{Config, PodRecords, Zone};

pub(crate) struct World {
    pub(crate) zone: Zone,
    pub(crate) config: Config,
}

pub(crate) fn name(text: &str) -> Name {
    let mut name = Name::from_ascii(text).expect("a name");
    name.set_fqdn(true);
    name
}

pub(crate) fn addresses(text: &str) -> Vec<IpAddr> {
    text.split_whitespace()
        .map(|address| address.parse().expect("an address"))
        .collect()
}

/// `name/protocol:number`, the name may be empty.
pub(crate) fn ports(text: &str) -> Vec<Port> {
    text.split_whitespace()
        .map(|port| {
            let (name, rest) = port.split_once('/').expect("name/protocol:number");
            let (protocol, number) = rest.split_once(':').expect("protocol:number");
            Port {
                name: name.into(),
                protocol: match protocol {
                    "tcp" => Protocol::Tcp,
                    "udp" => Protocol::Udp,
                    _ => Protocol::Sctp,
                },
                number: number.parse().expect("a number"),
            }
        })
        .collect()
}

impl World {
    pub(crate) fn new() -> Self {
        let mut config = Config::new(name("cluster.local"));
        config.pods = PodRecords::Insecure;
        config.reverse = [
            "10.96.0.0/12",
            "10.200.0.0/16",
            "fd00:96::/112",
            "fd00:200::/48",
        ]
        .map(|range| range.parse().expect("a range"))
        .to_vec();
        config.listen = vec![
            "10.96.0.10:53".parse().expect("an address"),
            "[fd00:96::a]:53".parse().expect("an address"),
        ];
        let mut zone = Zone::new();
        zone.set_node_search(vec![name("corp.example")]);
        zone.add_namespace("default");
        zone.add_namespace("empty");
        Self { zone, config }
    }

    fn service(mut self, service: &str, addressing: Addressing, list: &str) -> Self {
        self.zone.set_service(Service {
            key: ServiceKey::new("default", service),
            addressing,
            ports: ports(list),
        });
        self
    }

    pub(crate) fn cluster(self, service: &str, own: &str, list: &str) -> Self {
        self.service(service, Addressing::Cluster(addresses(own)), list)
    }

    pub(crate) fn headless(self, service: &str) -> Self {
        self.service(service, Addressing::Headless, "")
    }

    pub(crate) fn external(self, service: &str, target: &str) -> Self {
        self.service(service, Addressing::External(name(target).into()), "")
    }

    /// `endpoints`: an address, or `hostname=address`.
    pub(crate) fn slice(mut self, slice: &str, service: &str, endpoints: &str, list: &str) -> Self {
        self.zone.set_slice(EndpointSlice {
            name: slice.into(),
            service: ServiceKey::new("default", service),
            endpoints: endpoints
                .split_whitespace()
                .map(|endpoint| {
                    let (hostname, address) = match endpoint.split_once('=') {
                        Some((hostname, address)) => (Some(hostname.into()), address),
                        None => (None, endpoint),
                    };
                    Endpoint {
                        address: address.parse().expect("an address"),
                        hostname,
                    }
                })
                .collect(),
            ports: ports(list),
        });
        self
    }

    pub(crate) fn pod(mut self, pod: &str, own: &str) -> Self {
        self.zone.set_pod(Pod {
            namespace: "default".into(),
            name: pod.into(),
            addresses: addresses(own),
            cluster_first: true,
            searches: Box::default(),
        });
        self
    }

    pub(crate) fn step(&self, question: &str, kind: RecordType, client: Option<&str>) -> Step {
        let client = client.map(|client| client.parse().expect("an address"));
        resolve(
            &podwire_dns::View::new(&self.zone),
            &self.config,
            &name(question),
            kind,
            client,
        )
    }

    /// The answer: the code unless it is NOERROR, then the records of the answer
    /// section sorted, each as `TYPE data` or, under another name than the
    /// question's, `name TYPE data`. `ask NAME…` where others are to be asked.
    pub(crate) fn ask(&self, question: &str, kind: RecordType) -> String {
        self.ask_as(question, kind, None)
    }

    pub(crate) fn ask_as(&self, question: &str, kind: RecordType, client: Option<&str>) -> String {
        match self.step(question, kind, client) {
            Step::Done(answer) => {
                if answer.answers.is_empty() {
                    assert!(
                        answer.authorities.len() == 1
                            && answer.authorities[0].record_type() == RecordType::SOA,
                        "a negative answer has a SOA: {answer:?}"
                    );
                }
                let mut lines = Vec::new();
                if answer.code != ResponseCode::NoError {
                    lines.push(code(answer.code));
                }
                lines.extend(records(&answer.answers, question));
                if lines.is_empty() {
                    lines.push("NODATA".to_owned());
                }
                lines.join(", ")
            }
            Step::Ask(pending) => {
                let mut lines = match &pending.purpose {
                    Purpose::Alias(before) => records(&before.answers, question),
                    Purpose::Same | Purpose::Search(_) => Vec::new(),
                };
                let names: Vec<String> = pending.names.iter().map(Name::to_ascii).collect();
                lines.push(format!("ask {}", names.join(" ")));
                lines.join(", ")
            }
        }
    }

    /// The additional section.
    pub(crate) fn additional(&self, question: &str, kind: RecordType) -> String {
        let Step::Done(answer) = self.step(question, kind, None) else {
            panic!("answered from the zone");
        };
        records(&answer.additionals, question).join(", ")
    }
}

pub(crate) fn code(code: ResponseCode) -> String {
    match code {
        ResponseCode::NXDomain => "NXDOMAIN".to_owned(),
        ResponseCode::ServFail => "SERVFAIL".to_owned(),
        other => format!("{other:?}"),
    }
}

fn records(records: &[Record], question: &str) -> Vec<String> {
    let mut lines: Vec<String> = records
        .iter()
        .map(|record| {
            let text = format!("{} {}", record.record_type(), record.data);
            if record.name == name(question) {
                text
            } else {
                format!("{} {text}", record.name)
            }
        })
        .collect();
    // Aliases stand before what they lead to.
    if !lines.iter().any(|line| line.contains("CNAME")) {
        lines.sort();
    }
    lines
}
