//! From the table to chains of iptables. Pure.
//!
//! Rules are written just as `iptables-save` prints them, so that what the
//! kernel holds can be compared with what is wanted line by line. Each Service
//! has chains of its own ([`Part::chains`]) and lines in chains that all share
//! ([`Part::lines`]).

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use sha2::{Digest, Sha256};

use crate::difference::Ranges;
use crate::model::{Backend, Family, FrontendKey, NodeFacts, Protocol, TrafficPolicy};
use crate::table::{Frontend, FrontendKind, Table};

/// What the names of all our chains begin with.
pub const PREFIX: &str = "PODWIRE-";

/// Entered from `PREROUTING` and `OUTPUT`: one rule for each frontend.
pub const SERVICES: &str = "PODWIRE-SERVICES";
/// The frontends at the node's own addresses.
pub const NODE_PORTS: &str = "PODWIRE-NODEPORTS";
/// Entered from `POSTROUTING`: who gets the node's address as source.
pub const POSTROUTING: &str = "PODWIRE-POSTROUTING";
/// Translated connections: by the frontend they were addressed to.
pub const MASQUERADE: &str = "PODWIRE-MASQUERADE";
/// Of those to cluster addresses.
pub const MASQUERADE_CLUSTER: &str = "PODWIRE-MASQ-CLUSTER";
/// Endpoints of this node that called themselves.
pub const HAIRPIN: &str = "PODWIRE-HAIRPIN";
/// Pods that call something outside the cluster.
pub const LEAVING: &str = "PODWIRE-LEAVING";
/// Entered from `INPUT`, `FORWARD` and `OUTPUT` with new connections that were
/// not translated: what has no endpoint.
pub const FIREWALL: &str = "PODWIRE-FIREWALL";
/// New connections to Service addresses that no endpoint took.
pub const UNSERVED: &str = "PODWIRE-UNSERVED";
/// Tells the caller that nobody is there.
pub const REFUSE: &str = "PODWIRE-REFUSE";
/// Entered from `FORWARD`.
pub const FORWARD: &str = "PODWIRE-FORWARD";

/// A table of iptables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IptablesTable {
    /// Translation; sees the first packet of each connection.
    Nat,
    /// Verdicts.
    Filter,
}

impl IptablesTable {
    /// Both, in the order in which they are written: connections are translated
    /// again before they are no longer refused, and refused once they are no
    /// longer translated.
    pub const ALL: [Self; 2] = [Self::Nat, Self::Filter];

    /// As iptables calls it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nat => "nat",
            Self::Filter => "filter",
        }
    }
}

impl fmt::Display for IptablesTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A chain of ours: its table and its name.
pub type ChainKey = (IptablesTable, String);

/// The rules of a chain, as `iptables-save` prints them after `-A CHAIN `.
pub type Rules = Vec<String>;

/// The chain that every Service's lines of one kind stand in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Shared {
    /// [`SERVICES`].
    Services,
    /// [`NODE_PORTS`].
    NodePorts,
    /// [`MASQUERADE`].
    Masquerade,
    /// [`FIREWALL`].
    Firewall,
    /// [`UNSERVED`].
    Unserved,
}

impl Shared {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Services,
        Self::NodePorts,
        Self::Masquerade,
        Self::Firewall,
        Self::Unserved,
    ];

    /// Table and name of the chain.
    #[must_use]
    pub fn key(self) -> ChainKey {
        let (table, name) = match self {
            Self::Services => (IptablesTable::Nat, SERVICES),
            Self::NodePorts => (IptablesTable::Nat, NODE_PORTS),
            Self::Masquerade => (IptablesTable::Nat, MASQUERADE),
            Self::Firewall => (IptablesTable::Filter, FIREWALL),
            Self::Unserved => (IptablesTable::Filter, UNSERVED),
        };
        (table, name.to_owned())
    }
}

/// What one Service comes to in one family.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Part {
    /// Chains of its own, all in table nat.
    pub chains: BTreeMap<String, Rules>,
    /// Its lines in the chains that all Services share.
    pub lines: Vec<(Shared, String)>,
}

/// The rules by which the kernel's own chains lead to ours: (table, chain, rule).
#[must_use]
pub fn jumps() -> [(IptablesTable, &'static str, String); 7] {
    use IptablesTable::{Filter, Nat};
    let to = |chain: &str| format!("-m comment --comment \"podwire Services\" -j {chain}");
    let new = format!("-m conntrack --ctstate NEW {}", to(FIREWALL));
    [
        (Nat, "PREROUTING", to(SERVICES)),
        (Nat, "OUTPUT", to(SERVICES)),
        (Nat, "POSTROUTING", to(POSTROUTING)),
        (Filter, "INPUT", new.clone()),
        (Filter, "FORWARD", to(FORWARD)),
        (Filter, "FORWARD", new.clone()),
        (Filter, "OUTPUT", new),
    ]
}

/// How the addresses of a family are written.
#[derive(Debug, Clone, Copy)]
struct Words {
    length: u8,
    mask: &'static str,
    unreachable: &'static str,
}

const fn words(family: Family) -> Words {
    match family {
        Family::V4 => Words {
            length: 32,
            mask: "255.255.255.255",
            unreachable: "icmp-port-unreachable",
        },
        Family::V6 => Words {
            length: 128,
            mask: "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
            unreachable: "icmp6-port-unreachable",
        },
    }
}

fn host(address: IpAddr) -> String {
    format!("{address}/{}", words(Family::of(address)).length)
}

/// As matches of conntrack print a network: without the length of a host's.
fn bare(network: IpNet) -> String {
    if network.prefix_len() == network.max_prefix_len() {
        network.addr().to_string()
    } else {
        network.to_string()
    }
}

const fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    }
}

/// The most characters of a comment, less than `XT_MAX_COMMENT_LEN`.
const COMMENT: usize = 250;

fn comment(text: &str) -> String {
    let clean: String = text
        .chars()
        .map(|c| match c {
            'a'..='z' | 'A'..='Z' | '0'..='9' | '-' | '.' | '_' | ':' | '/' | ' ' | '[' | ']' => c,
            _ => '_',
        })
        .take(COMMENT)
        .collect();
    format!("-m comment --comment \"{clean}\"")
}

const MASQUERADE_TARGET: &str = "-j MASQUERADE --random-fully";

/// Sixteen characters for anything: 80 bits of its SHA-256.
fn hash(parts: &[&str]) -> String {
    const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let mut digest = Sha256::new();
    for part in parts {
        digest.update(part.as_bytes());
        digest.update([0]);
    }
    let digest = digest.finalize();
    let mut bits = 0u128;
    for byte in &digest[..10] {
        bits = bits << 8 | u128::from(*byte);
    }
    (0..16)
        .rev()
        .map(|n| char::from(ALPHABET[(bits >> (n * 5) & 31) as usize]))
        .collect()
}

/// A Service's port, as names and comments have it.
struct Port<'a> {
    title: String,
    frontend: &'a Frontend,
    protocol: &'static str,
    family: Family,
}

impl<'a> Port<'a> {
    fn of(key: &FrontendKey, frontend: &'a Frontend) -> Self {
        let title = if frontend.port_name.is_empty() {
            frontend.service.to_string()
        } else {
            format!("{}:{}", frontend.service, frontend.port_name)
        };
        Self {
            title,
            frontend,
            protocol: protocol_name(key.protocol),
            family: Family::of(key.address),
        }
    }

    fn chain(&self, kind: &str) -> String {
        format!("{PREFIX}{kind}-{}", hash(&[&self.title, self.protocol]))
    }

    fn endpoint_chain(&self, backend: &Backend) -> String {
        let backend = format!("{} {}", backend.address, backend.port);
        format!(
            "{PREFIX}SEP-{}",
            hash(&[&self.title, self.protocol, &backend])
        )
    }

    /// The chain that chooses one of `backends`, and theirs.
    fn choose(&self, kind: &str, backends: &[Backend], part: &mut Part) -> String {
        let name = self.chain(kind);
        if part.chains.contains_key(&name) {
            return name;
        }
        let mut rules = Vec::with_capacity(backends.len());
        let mask = words(self.family).mask;
        let recent = |endpoint: &str, what: &str| {
            format!("-m recent {what} --name {endpoint} --mask {mask} --rsource")
        };
        // A client that came before goes where it went, for as long as that is
        // an endpoint.
        if let Some(seconds) = self.frontend.affinity {
            rules.extend(backends.iter().map(|backend| {
                let endpoint = self.endpoint_chain(backend);
                format!(
                    "{} {} -j {endpoint}",
                    comment(&format!("{} back to {backend}", self.title)),
                    recent(&endpoint, &format!("--rcheck --seconds {seconds} --reap")),
                )
            }));
        }
        for (index, backend) in backends.iter().enumerate() {
            let endpoint = self.endpoint_chain(backend);
            let mut rule = comment(&format!("{} to {backend}", self.title));
            let left = backends.len() - index;
            if left > 1 {
                rule.push_str(&format!(
                    " -m statistic --mode random --probability {}",
                    probability(left)
                ));
            }
            rule.push_str(&format!(" -j {endpoint}"));
            rules.push(rule);
            let remember = match self.frontend.affinity {
                Some(_) => format!("{} ", recent(&endpoint, "--set")),
                None => String::new(),
            };
            part.chains.entry(endpoint).or_insert_with(|| {
                vec![format!(
                    "-p {protocol} {} {remember}-m {protocol} -j DNAT --to-destination {backend}",
                    comment(&self.title),
                    protocol = self.protocol,
                )]
            });
        }
        part.chains.insert(name.clone(), rules);
        name
    }
}

/// 1/`left` as the kernel keeps it, in 31 bits, and as `iptables-save` prints that.
fn probability(left: usize) -> String {
    const ONE: f64 = 2_147_483_648.0;
    format!("{:.11}", (ONE / left as f64).round() / ONE)
}

/// Chains and lines of one Service's frontends of one family.
#[must_use]
pub fn service(frontends: &[(FrontendKey, Frontend)], facts: &NodeFacts, family: Family) -> Part {
    let mut part = Part::default();
    for (key, frontend) in frontends
        .iter()
        .filter(|(key, _)| Family::of(key.address) == family)
    {
        one(key, frontend, facts, &mut part);
    }
    part.lines.sort_unstable();
    part
}

fn one(key: &FrontendKey, frontend: &Frontend, facts: &NodeFacts, part: &mut Part) {
    let port = Port::of(key, frontend);
    let (cluster, local) = (&*frontend.cluster, &*frontend.local);
    let what = match frontend.kind {
        FrontendKind::ClusterIp => "cluster address",
        FrontendKind::NodePort => "node port",
        FrontendKind::LoadBalancer => "load balancer",
        FrontendKind::ExternalIp => "external",
    };
    let title = comment(&format!("{} {what}", port.title));
    let covered = facts
        .service_cidrs
        .iter()
        .any(|range| range.contains(&key.address));
    let packet = format!(
        "-d {} -p {protocol} {title} -m {protocol} --dport {}",
        host(key.address),
        key.port,
        protocol = port.protocol,
    );
    let target = match (frontend.kind.is_external(), frontend.policy) {
        (false, TrafficPolicy::Local) => {
            (!local.is_empty()).then(|| port.choose("SVL", local, part))
        }
        (_, TrafficPolicy::Cluster) => {
            (!cluster.is_empty()).then(|| port.choose("SVC", cluster, part))
        }
        (true, TrafficPolicy::Local) => {
            (!cluster.is_empty() || !local.is_empty()).then(|| split(&port, facts, part))
        }
    };
    let elsewhere =
        frontend.policy == TrafficPolicy::Local && local.is_empty() && !cluster.is_empty();
    // Without an endpoint, or with one that not everybody may use.
    let filtered = target.is_some() && frontend.sources.is_some();
    let refusal = match (&target, elsewhere || filtered, frontend.kind.is_external()) {
        (_, true, _) => Some("DROP"),
        (None, false, true) => Some(REFUSE),
        // At a cluster address all is refused that is not taken.
        (None, false, false) | (Some(_), false, _) => None,
    };
    if let Some(verdict) = refusal {
        let list = if !frontend.kind.is_external() || covered {
            Shared::Unserved
        } else {
            Shared::Firewall
        };
        part.lines.push((list, format!("{packet} -j {verdict}")));
    }
    if let Some(mut target) = target {
        if let Some(sources) = &frontend.sources {
            target = filter(&port, key, sources, &target, part);
        }
        let list = match frontend.kind {
            FrontendKind::NodePort => Shared::NodePorts,
            _ => Shared::Services,
        };
        part.lines.push((list, format!("{packet} -j {target}")));
        if let Some(rule) = masquerade(key, frontend, &title, covered) {
            part.lines.push((Shared::Masquerade, rule));
        }
    }
    if !frontend.kind.is_external() {
        // Whatever else is sent to the address.
        let address = host(key.address);
        push_once(part, Shared::Unserved, format!("-d {address} -j {REFUSE}"));
        if !covered {
            push_once(
                part,
                Shared::Firewall,
                format!("-d {address} -j {UNSERVED}"),
            );
        }
    }
}

/// Lets only `sources` go on to `target`, and the node itself when it sends from
/// the frontend's own address.
fn filter(
    port: &Port<'_>,
    key: &FrontendKey,
    sources: &[IpNet],
    target: &str,
    part: &mut Part,
) -> String {
    let address = key.address.to_string();
    let name = format!(
        "{PREFIX}FW-{}",
        hash(&[&port.title, port.protocol, &address])
    );
    let mut rules: Rules = of_family(sources, port.family)
        .into_iter()
        .map(|range| {
            let who = comment(&format!("{} for {range}", port.title));
            format!("-s {range} {who} -j {target}")
        })
        .collect();
    rules.push(format!(
        "-s {} {} -m addrtype --src-type LOCAL -j {target}",
        host(key.address),
        comment(&format!("{} from its own address", port.title))
    ));
    part.chains.insert(name.clone(), rules);
    name
}

fn push_once(part: &mut Part, shared: Shared, rule: String) {
    if !part.lines.contains(&(shared, rule.clone())) {
        part.lines.push((shared, rule));
    }
}

/// `externalTrafficPolicy: Local`: pods and the node reach all endpoints,
/// others only the local ones.
fn split(port: &Port<'_>, facts: &NodeFacts, part: &mut Part) -> String {
    let name = port.chain("EXT");
    if part.chains.contains_key(&name) {
        return name;
    }
    let (cluster, local) = (&*port.frontend.cluster, &*port.frontend.local);
    let near = (!local.is_empty()).then(|| port.choose("SVL", local, part));
    let anywhere = if cluster.is_empty() {
        near.clone()
    } else {
        Some(port.choose("SVC", cluster, part))
    };
    let mut rules = Vec::new();
    if let Some(anywhere) = anywhere {
        for range in known_pods(facts, port.family) {
            rules.push(format!(
                "-s {range} {} -j {anywhere}",
                comment(&format!("{} from pods", port.title))
            ));
        }
        rules.push(format!(
            "{} -m addrtype --src-type LOCAL -j {anywhere}",
            comment(&format!("{} from the node", port.title))
        ));
    }
    if let Some(near) = near {
        rules.push(format!(
            "{} -j {near}",
            comment(&format!("{} from outside", port.title))
        ));
    }
    part.chains.insert(name.clone(), rules);
    name
}

/// Whether a translated connection gets the node's address as its source is
/// asked in `POSTROUTING` of conntrack, which still knows where the connection
/// was addressed to: no mark has to carry the answer there.
fn masquerade(
    key: &FrontendKey,
    frontend: &Frontend,
    title: &str,
    covered: bool,
) -> Option<String> {
    let original = format!(
        "-p {} {title} -m conntrack --ctorigdst {} --ctorigdstport {}",
        protocol_name(key.protocol),
        key.address,
        key.port,
    );
    match (frontend.kind.is_external(), frontend.policy) {
        (false, _) if covered => None,
        (false, _) => Some(format!("{original} -g {MASQUERADE_CLUSTER}")),
        (true, TrafficPolicy::Cluster) => Some(format!("{original} {MASQUERADE_TARGET}")),
        (true, TrafficPolicy::Local) => Some(format!(
            "{original} -m addrtype --src-type LOCAL {MASQUERADE_TARGET}"
        )),
    }
}

/// The ranges by which this node's pods are told from others.
fn known_pods(facts: &NodeFacts, family: Family) -> Vec<IpNet> {
    if facts.no_local_detection {
        return Vec::new();
    }
    of_family(&facts.pod_cidrs, family)
}

/// Networks of a family, written as `iptables-save` does, sorted, each once.
fn of_family(networks: &[IpNet], family: Family) -> Vec<IpNet> {
    let mut list: Vec<IpNet> = networks
        .iter()
        .filter(|network| Family::of(network.addr()) == family)
        .map(IpNet::trunc)
        .collect();
    list.sort_unstable();
    list.dedup();
    list
}

/// The rules of a shared chain: what it begins with, the Services' lines, what
/// it ends with.
#[must_use]
pub fn shared(chain: Shared, mut lines: Vec<&str>, facts: &NodeFacts, family: Family) -> Rules {
    lines.sort_unstable();
    lines.dedup();
    let owned = lines.into_iter().map(str::to_owned);
    let services = of_family(&facts.service_cidrs, family);
    match chain {
        Shared::NodePorts => owned.collect(),
        Shared::Services => owned
            .chain([format!("-m addrtype --dst-type LOCAL -j {NODE_PORTS}")])
            .collect(),
        Shared::Masquerade => services
            .iter()
            .map(|range| {
                format!(
                    "-m conntrack --ctorigdst {} -g {MASQUERADE_CLUSTER}",
                    bare(*range)
                )
            })
            .chain(owned)
            .chain([format!("-j {HAIRPIN}")])
            .collect(),
        Shared::Firewall => services
            .iter()
            .map(|range| format!("-d {range} -j {UNSERVED}"))
            .chain(owned)
            .collect(),
        Shared::Unserved => {
            // What is dropped, then what is refused, then addresses nobody has.
            let (dropped, refused): (Rules, Rules) =
                owned.partition(|line| line.ends_with(" -j DROP"));
            dropped
                .into_iter()
                .chain(refused)
                .chain(["-j DROP".to_owned()])
                .collect()
        }
    }
}

/// The chains that depend on the node and not on single Services.
#[must_use]
pub fn fixed(table: &Table, family: Family) -> BTreeMap<ChainKey, Rules> {
    use IptablesTable::{Filter, Nat};
    let facts = table.facts();
    let pods = of_family(&facts.pod_cidrs, family);
    let words = words(family);
    let mut chains = BTreeMap::new();
    let mut add = |table, name: &str, rules: Rules| {
        chains.insert((table, name.to_owned()), rules);
    };
    let mut rules = vec![
        "-o lo -j RETURN".to_owned(),
        format!("-m conntrack --ctstate DNAT -j {MASQUERADE}"),
    ];
    rules.extend(pods.iter().map(|range| format!("-s {range} -j {LEAVING}")));
    add(Nat, POSTROUTING, rules);
    let rules = match (facts.masquerade_all, facts.no_local_detection) {
        (true, _) => vec![MASQUERADE_TARGET.to_owned()],
        (false, true) => vec![format!("-j {HAIRPIN}")],
        (false, false) => known_pods(facts, family)
            .iter()
            .map(|range| format!("-s {range} -g {HAIRPIN}"))
            .chain([MASQUERADE_TARGET.to_owned()])
            .collect(),
    };
    add(Nat, MASQUERADE_CLUSTER, rules);
    let mut local: Vec<IpAddr> = table
        .local_endpoints()
        .filter(|address| Family::of(*address) == family)
        .collect();
    local.sort_unstable();
    add(
        Nat,
        HAIRPIN,
        local
            .into_iter()
            .map(|address| format!("-s {0} -d {0} {MASQUERADE_TARGET}", host(address)))
            .collect(),
    );
    let mut rules: Rules = of_family(&Ranges::inside(facts), family)
        .into_iter()
        .map(|range| format!("-d {range} -j RETURN"))
        .collect();
    rules.push(format!(
        "{} {MASQUERADE_TARGET}",
        comment("leaves the cluster")
    ));
    add(Nat, LEAVING, rules);
    add(
        Filter,
        REFUSE,
        vec![
            "-p tcp -m tcp -j REJECT --reject-with tcp-reset".to_owned(),
            format!("-j REJECT --reject-with {}", words.unreachable),
        ],
    );
    add(
        Filter,
        FORWARD,
        vec!["-m conntrack --ctstate INVALID -j DROP".to_owned()],
    );
    chains
}
