//! From a question to an answer. Pure: no I/O, no clock, no randomness.

use std::fmt;
use std::net::IpAddr;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::{A, AAAA, CNAME, HINFO, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use crate::basis::View;
use crate::config::{Config, PodRecords};
use crate::model::{Addressing, Port, Protocol, ServiceKey};
use crate::names::{Labels, Reverse, dashed, reverse, undashed};
use crate::zone::{Endpoint, Entry, endpoint_label};

/// Version of the specification the zone follows.
pub const SCHEMA_VERSION: &str = "1.1.0";
/// How many names of the zone an `ExternalName` may lead through.
const CHAIN: usize = 8;

/// What a question leads to.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// An answer.
    Answer(Answer),
    /// The zone knows a beginning: a CNAME to a name that is not ours. The answer
    /// is this followed by what that name leads to.
    Chase(Answer, Name),
    /// The name is none of ours.
    Elsewhere,
}

/// An answer, complete or not.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// Response code.
    pub code: ResponseCode,
    /// Answer section.
    pub answers: Vec<Record>,
    /// Authority section.
    pub authorities: Vec<Record>,
    /// Additional section, without OPT.
    pub additionals: Vec<Record>,
    /// Whether it comes from our own zone.
    pub authoritative: bool,
    /// Why it is so.
    pub reason: Reason,
}

impl Answer {
    /// Whether the name exists, with or without records of the type.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.code == ResponseCode::NoError
    }
}

/// Why an answer is what it is, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A record every zone has.
    Fixed(&'static str),
    /// Addresses of a Service.
    ClusterAddress(ServiceKey),
    /// Endpoints of a headless Service.
    Endpoints(ServiceKey),
    /// One endpoint of a Service.
    Endpoint(ServiceKey),
    /// Ports of a Service.
    Ports(ServiceKey),
    /// An `ExternalName` Service.
    External(ServiceKey),
    /// `ExternalName` Services that lead to each other.
    Loop(ServiceKey),
    /// The name of a pod's address.
    Pod,
    /// The reverse name of an address of a Service or endpoint.
    Reverse,
    /// The name exists, but has no records of the type.
    NoData(&'static str),
    /// There is no such Service.
    NoService(ServiceKey),
    /// The headless Service has no endpoint that is ready.
    NoEndpoints(ServiceKey),
    /// The Service has no such endpoint.
    NoEndpoint(ServiceKey),
    /// The Service has no port of that name and protocol.
    NoPort(ServiceKey),
    /// There is no such namespace.
    NoNamespace(Box<str>),
    /// There is no pod with that address in the namespace.
    NoPod,
    /// Pod records are turned off.
    PodsDisabled,
    /// Nothing has this address.
    NobodysAddress(IpAddr),
    /// Nothing of the cluster has such a name.
    NoSuchName,
    /// A search list was walked: the position in it that had the name.
    Search {
        /// The name found.
        found: Name,
        /// Why it exists.
        because: Box<Reason>,
    },
    /// It came from an upstream server.
    Upstream,
    /// It was in the cache.
    Cached,
    /// Its time was over, and upstreams fail.
    Stale,
    /// Upstreams failed.
    UpstreamFailed(String),
    /// No upstream is configured for the name.
    NoUpstream,
    /// The cluster DNS in front of which this is a cache has no endpoint.
    NobodyBehind,
    /// The zone is not known yet.
    NotReady,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(what) => f.write_str(what),
            Self::ClusterAddress(key) => write!(f, "cluster addresses of Service {key}"),
            Self::Endpoints(key) => write!(f, "ready endpoints of the headless Service {key}"),
            Self::Endpoint(key) => write!(f, "an endpoint of Service {key}"),
            Self::Ports(key) => write!(f, "ports of Service {key}"),
            Self::External(key) => write!(f, "the external name of Service {key}"),
            Self::Loop(key) => write!(
                f,
                "Service {key} is an ExternalName that leads back to itself or through more \
                 than {CHAIN} others; change its externalName"
            ),
            Self::Pod => f.write_str("the name of a pod's address"),
            Self::Reverse => f.write_str("the name of an address"),
            Self::NoData(what) => {
                write!(f, "the name exists ({what}), without records of this type")
            }
            Self::NoService(key) => write!(f, "there is no Service {key}"),
            Self::NoEndpoints(key) => write!(
                f,
                "the headless Service {key} has no ready endpoint (publishNotReadyAddresses \
                 would show others)"
            ),
            Self::NoEndpoint(key) => write!(f, "Service {key} has no ready endpoint of that name"),
            Self::NoPort(key) => write!(f, "Service {key} has no port of that name and protocol"),
            Self::NoNamespace(name) => write!(f, "there is no namespace {name}"),
            Self::NoPod => f.write_str("the namespace has no pod with that address"),
            Self::PodsDisabled => f.write_str("names of pods are turned off (--dns-pods)"),
            Self::NobodysAddress(address) => {
                write!(f, "no Service and no endpoint has the address {address}")
            }
            Self::NoSuchName => f.write_str("nothing in a cluster has such a name"),
            Self::Search { found, because } => {
                write!(f, "found as {found} by the client's search list: {because}")
            }
            Self::Upstream => f.write_str("asked an upstream server"),
            Self::Cached => f.write_str("an upstream server's answer, from the cache"),
            Self::Stale => f.write_str("from the cache, past its time: upstream servers fail"),
            Self::UpstreamFailed(why) => write!(f, "upstream servers failed: {why}"),
            Self::NoUpstream => f.write_str(
                "the name is not the cluster's and no upstream server is configured for it",
            ),
            Self::NobodyBehind => f.write_str(
                "the cluster's DNS, in front of which this is a cache, has no ready endpoint",
            ),
            Self::NotReady => f.write_str("the cluster's state has not been read yet"),
        }
    }
}

/// Answers `kind` of `name` from the zone. Of a name's several addresses, the
/// order is the zone's: mix them where that matters.
#[must_use]
pub fn lookup(zone: &View<'_>, config: &Config, name: &Name, kind: RecordType) -> Outcome {
    if !config.authoritative {
        return Outcome::Elsewhere;
    }
    let mut look = Lookup {
        zone,
        config,
        kind,
        domain: Labels::of(&config.domain),
    };
    look.run(name)
}

/// Whether a name is answered from the zone, with data or without.
#[must_use]
pub fn is_ours(config: &Config, name: &Name) -> bool {
    config.authoritative
        && Labels::of(name)
            .before(&Labels::of(&config.domain))
            .is_some()
}

struct Lookup<'a> {
    zone: &'a View<'a>,
    config: &'a Config,
    kind: RecordType,
    domain: Labels,
}

/// What a name of the zone leads to.
enum Found {
    /// Records of the type asked for, with the reason, and the type-independent
    /// description of the name should there be none.
    Records(Vec<RData>, Reason, &'static str),
    /// An alias.
    Alias(Name, ServiceKey),
    /// The name does not exist.
    Nothing(Reason),
}

impl<'a> Lookup<'a> {
    fn run(&mut self, name: &Name) -> Outcome {
        let labels = Labels::of(name);
        if let Some(left) = labels.before(&self.domain) {
            return self.chain(name, &labels, left);
        }
        match reverse(&labels) {
            Some(reverse) => self.reverse(name, reverse),
            None => Outcome::Elsewhere,
        }
    }

    /// Follows aliases as far as they stay in the zone.
    fn chain(&self, name: &Name, labels: &Labels, left: usize) -> Outcome {
        let mut aliases: Vec<Record> = Vec::new();
        let mut found = self.find(labels, left);
        let mut owner = name.clone();
        let mut first = None;
        loop {
            match found {
                Found::Alias(target, key) => {
                    aliases.push(self.record(owner, RData::CNAME(CNAME(target.clone()))));
                    let reason = first.get_or_insert(Reason::External(key.clone())).clone();
                    if self.kind == RecordType::CNAME || self.kind == RecordType::ANY {
                        return Outcome::Answer(self.answer(aliases, reason));
                    }
                    if aliases.len() >= CHAIN {
                        return Outcome::Answer(Answer {
                            code: ResponseCode::ServFail,
                            ..self.answer(aliases, Reason::Loop(key))
                        });
                    }
                    let next = Labels::of(&target);
                    let Some(left) = next.before(&self.domain) else {
                        return Outcome::Chase(self.answer(aliases, reason), target);
                    };
                    found = self.find(&next, left);
                    owner = target;
                }
                Found::Nothing(reason) => {
                    return Outcome::Answer(Answer {
                        code: ResponseCode::NXDomain,
                        authorities: vec![self.soa(&self.config.domain)],
                        ..self.answer(aliases, reason)
                    });
                }
                Found::Records(data, reason, what) => {
                    let negative = data.is_empty();
                    let targets = self.additionals(&data);
                    aliases.extend(
                        data.into_iter()
                            .map(|data| self.record(owner.clone(), data)),
                    );
                    let reason = match (negative, first) {
                        (true, _) => Reason::NoData(what),
                        (false, Some(first)) => first,
                        (false, None) => reason,
                    };
                    let mut answer = self.answer(aliases, reason);
                    answer.additionals = targets;
                    if negative {
                        answer.authorities = vec![self.soa(&self.config.domain)];
                    }
                    return Outcome::Answer(answer);
                }
            }
        }
    }

    fn answer(&self, answers: Vec<Record>, reason: Reason) -> Answer {
        Answer {
            code: ResponseCode::NoError,
            answers,
            authorities: Vec::new(),
            additionals: Vec::new(),
            authoritative: true,
            reason,
        }
    }

    fn record(&self, owner: Name, data: RData) -> Record {
        Record::from_rdata(owner, self.config.ttl, data)
    }

    /// A name of the zone that has `left` labels left of the domain.
    fn find(&self, labels: &Labels, left: usize) -> Found {
        let first = |index: usize| labels.get(index);
        match left {
            0 => self.apex(),
            1 => match first(0) {
                b"dns-version" => self.fixed(
                    RecordType::TXT,
                    || vec![RData::TXT(TXT::new(vec![SCHEMA_VERSION.to_owned()]))],
                    "the version of the specification",
                ),
                b"svc" => self.nothing_of_type("names of Services stand below"),
                b"dns" => self.nothing_of_type("the name server stands below"),
                b"pod" if self.config.pods != PodRecords::Disabled => {
                    self.nothing_of_type("names of pods stand below")
                }
                b"pod" => Found::Nothing(Reason::PodsDisabled),
                _ => Found::Nothing(Reason::NoSuchName),
            },
            2 if first(1) == b"dns" && first(0) == b"ns" => self
                .addresses(self.config.server_addresses().into_iter(), || {
                    Reason::Fixed("the zone's name server")
                }),
            _ => match first(left - 1) {
                b"svc" => self.below_svc(labels, left - 1),
                b"pod" => self.below_pod(labels, left - 1),
                _ => Found::Nothing(Reason::NoSuchName),
            },
        }
    }

    fn apex(&self) -> Found {
        let what = "the cluster's domain";
        match self.kind {
            RecordType::SOA => {
                let data = self.soa_data(self.zone.serial());
                Found::Records(vec![data], Reason::Fixed(what), what)
            }
            RecordType::NS => Found::Records(
                vec![RData::NS(NS(self.server_name()))],
                Reason::Fixed(what),
                what,
            ),
            _ => self.nothing_of_type(what),
        }
    }

    fn fixed(&self, kind: RecordType, data: impl Fn() -> Vec<RData>, what: &'static str) -> Found {
        if self.kind == kind {
            Found::Records(data(), Reason::Fixed(what), what)
        } else {
            self.nothing_of_type(what)
        }
    }

    /// A name that exists, without records of the type; for ANY the least that
    /// RFC 8482 allows.
    fn nothing_of_type(&self, what: &'static str) -> Found {
        if self.kind == RecordType::ANY {
            let data = RData::HINFO(HINFO::new("RFC8482".to_owned(), String::new()));
            return Found::Records(vec![data], Reason::Fixed(what), what);
        }
        Found::Records(Vec::new(), Reason::NoData(what), what)
    }

    /// Addresses of the family asked for.
    fn addresses(
        &self,
        addresses: impl Iterator<Item = IpAddr>,
        reason: impl FnOnce() -> Reason,
    ) -> Found {
        let what = "with addresses of the other family, or records of another type";
        let data: Vec<RData> = match self.kind {
            RecordType::A | RecordType::AAAA => addresses
                .filter(|address| address.is_ipv4() == (self.kind == RecordType::A))
                .map(address_data)
                .collect(),
            _ => return self.nothing_of_type(what),
        };
        Found::Records(data, reason(), what)
    }

    /// `left` labels stand left of `svc`.
    fn below_svc(&self, labels: &Labels, left: usize) -> Found {
        let Some(namespace) = labels.text(left - 1) else {
            return Found::Nothing(Reason::NoSuchName);
        };
        if left == 1 {
            return if self.zone.has_namespace(namespace) {
                self.nothing_of_type("a namespace")
            } else {
                Found::Nothing(Reason::NoNamespace(namespace.into()))
            };
        }
        let Some(name) = labels.text(left - 2) else {
            return Found::Nothing(Reason::NoSuchName);
        };
        let Some(entry) = self.zone.service(namespace, name) else {
            return Found::Nothing(if self.zone.has_namespace(namespace) {
                Reason::NoService(ServiceKey::new(namespace, name))
            } else {
                Reason::NoNamespace(namespace.into())
            });
        };
        match left {
            2 => self.service(entry),
            3 => self.below_service(entry, labels.get(0)),
            4 => self.port(entry, labels.get(0), labels.get(1)),
            _ => Found::Nothing(Reason::NoSuchName),
        }
    }

    fn service(&self, entry: &Entry) -> Found {
        let key = || entry.key().clone();
        match entry.addressing() {
            Some(Addressing::External(target)) => Found::Alias((**target).clone(), key()),
            Some(Addressing::Headless) if entry.is_without_endpoints() => {
                Found::Nothing(Reason::NoEndpoints(key()))
            }
            Some(_) if self.kind == RecordType::SRV => {
                let data = self.srv(entry, |_| true);
                Found::Records(data, Reason::Ports(key()), "a Service")
            }
            Some(Addressing::Headless) => {
                let mut seen = std::collections::HashSet::new();
                let addresses = entry
                    .endpoints()
                    .map(|(_, endpoint, _)| endpoint.address)
                    .filter(|address| seen.insert(*address));
                self.addresses(addresses, || Reason::Endpoints(key()))
            }
            Some(Addressing::Cluster(addresses)) => {
                self.addresses(addresses.iter().copied(), || Reason::ClusterAddress(key()))
            }
            None => Found::Nothing(Reason::NoService(key())),
        }
    }

    /// `label` stands left of a Service's name: a protocol or an endpoint.
    fn below_service(&self, entry: &Entry, label: &[u8]) -> Found {
        if let Some(protocol) = protocol(label) {
            return if self
                .ports(entry)
                .any(|port| port.protocol == protocol && !port.name.is_empty())
            {
                self.nothing_of_type("names of ports stand below")
            } else {
                Found::Nothing(Reason::NoPort(entry.key().clone()))
            };
        }
        let mut addresses: Vec<IpAddr> = Vec::new();
        if !matches!(entry.addressing(), Some(Addressing::External(_))) {
            for (_, endpoint, _) in entry.endpoints() {
                if is_label_of(label, endpoint) && !addresses.contains(&endpoint.address) {
                    addresses.push(endpoint.address);
                }
            }
        }
        if addresses.is_empty() {
            return Found::Nothing(Reason::NoEndpoint(entry.key().clone()));
        }
        self.addresses(addresses.into_iter(), || {
            Reason::Endpoint(entry.key().clone())
        })
    }

    /// `_port._protocol` left of a Service's name.
    fn port(&self, entry: &Entry, port: &[u8], label: &[u8]) -> Found {
        let missing = || Found::Nothing(Reason::NoPort(entry.key().clone()));
        let (Some(protocol), [b'_', name @ ..]) = (protocol(label), port) else {
            return missing();
        };
        let matches = |port: &Port| {
            port.protocol == protocol
                && !port.name.is_empty()
                && port.name.as_bytes().eq_ignore_ascii_case(name)
        };
        if !self.ports(entry).any(matches) {
            return missing();
        }
        if self.kind != RecordType::SRV {
            return self.nothing_of_type("a port of a Service");
        }
        let data = self.srv(entry, matches);
        Found::Records(
            data,
            Reason::Ports(entry.key().clone()),
            "a port of a Service",
        )
    }

    /// The ports that have SRV names: of a headless Service its endpoints' ports,
    /// since with no endpoint there is nothing to name.
    fn ports<'e>(&self, entry: &'e Entry) -> Box<dyn Iterator<Item = &'e Port> + 'e> {
        match entry.addressing() {
            Some(Addressing::Cluster(_)) => Box::new(entry.ports().iter()),
            Some(Addressing::Headless) => {
                Box::new(entry.endpoints().flat_map(|(_, _, ports)| ports))
            }
            Some(Addressing::External(_)) | None => Box::new(std::iter::empty()),
        }
    }

    /// SRV records (RFC 2782) of the ports that `matches`.
    fn srv(&self, entry: &Entry, matches: impl Fn(&Port) -> bool) -> Vec<RData> {
        let key = entry.key();
        let service = self.service_name(key);
        let mut records: Vec<(Name, u16)> = Vec::new();
        match entry.addressing() {
            Some(Addressing::Cluster(_)) => {
                for port in entry.ports().iter().filter(|port| matches(port)) {
                    records.push((service.clone(), port.number));
                }
            }
            Some(Addressing::Headless) => {
                let mut seen = std::collections::HashSet::new();
                for (_, endpoint, ports) in entry.endpoints() {
                    for port in ports
                        .iter()
                        .filter(|port| matches(port) && port.number != 0)
                    {
                        let label = endpoint_label(endpoint);
                        if seen.insert((label.clone(), port.number))
                            && let Ok(target) = service.prepend_label(label.as_bytes())
                        {
                            records.push((target, port.number));
                        }
                    }
                }
            }
            Some(Addressing::External(_)) | None => {}
        }
        // All alike: clients choose one at random, each with the same chance.
        let weight = u16::try_from(100 / records.len().max(1))
            .unwrap_or(1)
            .max(1);
        records
            .into_iter()
            .map(|(target, port)| RData::SRV(SRV::new(0, weight, port, target)))
            .collect()
    }

    /// Addresses of the targets of SRV records, so that nobody has to ask again.
    fn additionals(&self, data: &[RData]) -> Vec<Record> {
        let mut additionals = Vec::new();
        let mut seen: Vec<&Name> = Vec::new();
        let targets = data.iter().filter_map(|data| match data {
            RData::SRV(srv) => Some(&srv.target),
            RData::NS(ns) => Some(&ns.0),
            _ => None,
        });
        for target in targets {
            if seen.contains(&target) {
                continue;
            }
            seen.push(target);
            let labels = Labels::of(target);
            let Some(left) = labels.before(&self.domain) else {
                continue;
            };
            for kind in [RecordType::A, RecordType::AAAA] {
                let look = Lookup {
                    kind,
                    domain: Labels::of(&self.config.domain),
                    ..*self
                };
                if let Found::Records(data, ..) = look.find(&labels, left) {
                    additionals.extend(
                        data.into_iter()
                            .map(|data| self.record(target.clone(), data)),
                    );
                }
            }
        }
        additionals
    }

    /// `left` labels stand left of `pod`.
    fn below_pod(&self, labels: &Labels, left: usize) -> Found {
        if self.config.pods == PodRecords::Disabled {
            return Found::Nothing(Reason::PodsDisabled);
        }
        let Some(namespace) = labels.text(left - 1) else {
            return Found::Nothing(Reason::NoSuchName);
        };
        if !self.zone.has_namespace(namespace) {
            return Found::Nothing(Reason::NoNamespace(namespace.into()));
        }
        let address = match left {
            1 => return self.nothing_of_type("a namespace"),
            2 => labels.text(0).and_then(undashed),
            _ => None,
        };
        let Some(address) = address else {
            return Found::Nothing(Reason::NoSuchName);
        };
        let is_there = || {
            self.zone
                .pod(address)
                .is_some_and(|pod| *pod.namespace == *namespace)
        };
        if self.config.pods == PodRecords::Verified && !is_there() {
            return Found::Nothing(Reason::NoPod);
        }
        self.addresses(std::iter::once(address), || Reason::Pod)
    }

    fn reverse(&self, name: &Name, reverse: Reverse) -> Outcome {
        let inside = |address: IpAddr| {
            self.config
                .reverse
                .iter()
                .any(|range| range.contains(&address))
        };
        // The zone of a negative answer has to stand above the name.
        let negative = |code, v4: bool, reason| {
            let zone = if v4 { "in-addr.arpa." } else { "ip6.arpa." };
            let zone = Name::from_ascii(zone).expect("it is a name");
            Outcome::Answer(Answer {
                code,
                authorities: vec![self.soa(&zone)],
                ..self.answer(Vec::new(), reason)
            })
        };
        match reverse {
            Reverse::Address(address) => {
                let names = self.names_of(address);
                if names.is_empty() {
                    if !inside(address) {
                        return Outcome::Elsewhere;
                    }
                    let reason = Reason::NobodysAddress(address);
                    return negative(ResponseCode::NXDomain, address.is_ipv4(), reason);
                }
                match self.kind {
                    RecordType::PTR => {
                        let records = names
                            .into_iter()
                            .map(|target| self.record(name.clone(), RData::PTR(PTR(target))))
                            .collect();
                        Outcome::Answer(self.answer(records, Reason::Reverse))
                    }
                    _ => negative(
                        ResponseCode::NoError,
                        address.is_ipv4(),
                        Reason::NoData("an address"),
                    ),
                }
            }
            // Above an address of ours, or in the middle of our range.
            Reverse::Range(range) if range.prefix_len() > 0 => {
                let ours = |own: &&ipnet::IpNet| {
                    own.contains(&range.network()) || range.contains(&own.network())
                };
                match self.config.reverse.iter().find(ours) {
                    Some(own) if own.contains(&range.network()) => negative(
                        ResponseCode::NoError,
                        range.addr().is_ipv4(),
                        Reason::NoData("the beginning of addresses"),
                    ),
                    _ => Outcome::Elsewhere,
                }
            }
            Reverse::Range(_) | Reverse::Nonsense { .. } => Outcome::Elsewhere,
        }
    }

    /// The names an address has: of Services themselves before those of endpoints.
    fn names_of(&self, address: IpAddr) -> Vec<Name> {
        let mut names = Vec::new();
        for entry in self.zone.owners(address) {
            if let Some(Addressing::Cluster(addresses)) = entry.addressing()
                && addresses.contains(&address)
            {
                names.insert(0, self.service_name(entry.key()));
                continue;
            }
            let endpoint = entry
                .endpoints()
                .find(|(_, endpoint, _)| endpoint.address == address);
            if let Some((_, endpoint, _)) = endpoint
                && let Ok(name) = self
                    .service_name(entry.key())
                    .prepend_label(endpoint_label(endpoint).as_bytes())
            {
                names.push(name);
            }
        }
        names
    }

    /// `name.namespace.svc.domain`.
    fn service_name(&self, key: &ServiceKey) -> Name {
        service_name(self.config, key)
    }

    fn server_name(&self) -> Name {
        below(&self.config.domain, &["ns", "dns"])
    }

    /// The record that stands beside the absence of something.
    fn soa(&self, zone: &Name) -> Record {
        self.record(zone.clone(), self.soa_data(self.zone.some_serial()))
    }

    fn soa_data(&self, serial: u32) -> RData {
        RData::SOA(SOA::new(
            self.server_name(),
            below(&self.config.domain, &["hostmaster"]),
            serial,
            7200,
            1800,
            86400,
            // How long the absence of a name may be believed (RFC 2308 4).
            self.config.ttl,
        ))
    }
}

/// `name.namespace.svc.domain`.
#[must_use]
pub fn service_name(config: &Config, key: &ServiceKey) -> Name {
    below(&config.domain, &[&key.name, &key.namespace, "svc"])
}

/// `labels` below `domain`. A name that would be too long is the domain alone:
/// the API allows none.
fn below(domain: &Name, labels: &[&str]) -> Name {
    Name::from_labels(labels.iter().map(|label| label.as_bytes()))
        .and_then(|name| name.append_domain(domain))
        .unwrap_or_else(|_| domain.clone())
}

fn protocol(label: &[u8]) -> Option<Protocol> {
    [Protocol::Tcp, Protocol::Udp, Protocol::Sctp]
        .into_iter()
        .find(|protocol| protocol.label().as_bytes() == label)
}

fn is_label_of(label: &[u8], endpoint: Endpoint<'_>) -> bool {
    match endpoint.hostname {
        Some(hostname) => hostname.as_bytes().eq_ignore_ascii_case(label),
        None => dashed(endpoint.address).as_bytes() == label,
    }
}

/// A or AAAA.
fn address_data(address: IpAddr) -> RData {
    match address {
        IpAddr::V4(address) => RData::A(A(address)),
        IpAddr::V6(address) => RData::AAAA(AAAA(address)),
    }
}
