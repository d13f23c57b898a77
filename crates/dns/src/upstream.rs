//! Servers that are asked what is not ours.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};

use crate::config::{Forwarding, Policy};
use crate::lookup::{Answer, Reason};
use crate::message;
use crate::metrics::Metrics;
use crate::names::Labels;

/// Failures in a row after which a server is asked only when all are down.
const FAILURES: u32 = 2;
/// The first and longest pause between health checks of a server that is down.
const CHECK: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));
/// Domain of the names by which a loop is noticed; nobody else's (RFC 6761 6.4).
const PROBE: &str = "loop-probe.podwire.invalid.";

/// Why upstream servers gave no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// None is configured for the name.
    #[error("no upstream server is configured for {0}")]
    None(Name),
    /// All were asked.
    #[error("{0}")]
    All(String),
    /// Too many questions wait already.
    #[error("too many questions wait for upstream servers already")]
    TooMany,
}

/// One server.
#[derive(Debug)]
pub struct Upstream {
    /// Its address.
    pub address: SocketAddr,
    failures: AtomicU32,
    checking: AtomicBool,
    /// It asked us what we asked it.
    loops: AtomicBool,
}

impl Upstream {
    fn new(address: SocketAddr) -> Arc<Self> {
        Arc::new(Self {
            address,
            failures: AtomicU32::new(0),
            checking: AtomicBool::new(false),
            loops: AtomicBool::new(false),
        })
    }

    /// Whether it answered lately, and does not lead back here.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        self.failures.load(Ordering::Relaxed) < FAILURES && !self.leads_back()
    }

    /// Whether it leads back here.
    #[must_use]
    pub fn leads_back(&self) -> bool {
        self.loops.load(Ordering::Relaxed)
    }
}

/// The servers of a domain.
#[derive(Debug)]
struct Group {
    domain: Domain,
    servers: Vec<Arc<Upstream>>,
}

/// A domain kept for comparison.
#[derive(Debug)]
struct Domain(Name);

impl Domain {
    fn contains(&self, name: &Name) -> bool {
        Labels::of(name).before(&Labels::of(&self.0)).is_some()
    }
}

/// All servers.
#[derive(Debug)]
pub struct Pool {
    groups: Vec<Group>,
    policy: Policy,
    timeout: Duration,
    /// Names under way by which a loop would be noticed, and for which server.
    probes: Mutex<Vec<(Name, Arc<Upstream>)>>,
}

impl Pool {
    /// The servers of a configuration.
    #[must_use]
    pub fn new(forwarding: &Forwarding) -> Self {
        let mut known: Vec<Arc<Upstream>> = Vec::new();
        let mut servers = |addresses: &[SocketAddr]| {
            let mut group: Vec<Arc<Upstream>> = Vec::new();
            for address in addresses {
                let server = match known.iter().find(|server| server.address == *address) {
                    Some(server) => server.clone(),
                    None => {
                        known.push(Upstream::new(*address));
                        known[known.len() - 1].clone()
                    }
                };
                if !group.iter().any(|other| other.address == *address) {
                    group.push(server);
                }
            }
            group
        };
        let mut groups: Vec<Group> = forwarding
            .stubs
            .iter()
            .map(|(domain, addresses)| Group {
                domain: Domain(domain.clone()),
                servers: servers(addresses),
            })
            .collect();
        groups.push(Group {
            domain: Domain(Name::root()),
            servers: servers(&forwarding.upstreams),
        });
        // The first that matches is the longest.
        groups.sort_by_key(|group| std::cmp::Reverse(group.domain.0.num_labels()));
        Self {
            groups,
            policy: forwarding.policy,
            timeout: forwarding.timeout,
            probes: Mutex::default(),
        }
    }

    /// Every server once.
    pub fn servers(&self) -> impl Iterator<Item = &Arc<Upstream>> {
        let mut seen = Vec::new();
        self.groups
            .iter()
            .flat_map(|group| &group.servers)
            .filter(move |server| {
                let new = !seen.contains(&server.address);
                seen.push(server.address);
                new
            })
    }

    /// The servers for a name, in the order they are to be asked.
    fn order(&self, name: &Name) -> Vec<Arc<Upstream>> {
        let Some(group) = self.groups.iter().find(|group| group.domain.contains(name)) else {
            return Vec::new();
        };
        let mut servers: Vec<_> = group
            .servers
            .iter()
            .filter(|server| !server.leads_back())
            .cloned()
            .collect();
        if self.policy == Policy::Random && servers.len() > 1 {
            let by = usize::from(random_u16()) % servers.len();
            servers.rotate_left(by);
        }
        // Stable: those that are down come last, in case they are up again.
        servers.sort_by_key(|server| !server.is_healthy());
        servers
    }

    /// Asks the servers for a name, one after the other until one answers.
    ///
    /// # Errors
    /// If none does.
    pub async fn ask(
        self: &Arc<Self>,
        query: &Query,
        dnssec_ok: bool,
        checking_disabled: bool,
        metrics: &Arc<Metrics>,
    ) -> Result<Answer, Failure> {
        let servers = self.order(query.name());
        if servers.is_empty() {
            return Err(Failure::None(query.name().clone()));
        }
        let mut problems = Vec::new();
        let mut failed: Option<Answer> = None;
        // A server that answers SERVFAIL may be the only one that does.
        for server in &servers {
            metrics.forward(server.address);
            let exchange = exchange(
                server.address,
                query,
                dnssec_ok,
                checking_disabled,
                self.timeout,
            );
            match exchange.await {
                Ok(answer) => {
                    server.failures.store(0, Ordering::Relaxed);
                    match answer.code {
                        ResponseCode::ServFail | ResponseCode::Refused | ResponseCode::NotImp => {
                            problems.push(format!("{} says {}", server.address, answer.code));
                            failed.get_or_insert(answer);
                        }
                        _ => return Ok(answer),
                    }
                }
                Err(problem) => {
                    problems.push(format!("{}: {problem}", server.address));
                    let failures = server.failures.fetch_add(1, Ordering::Relaxed) + 1;
                    if failures >= FAILURES {
                        self.check(server, metrics);
                    }
                }
            }
        }
        match failed {
            Some(answer) => Ok(answer),
            None => Err(Failure::All(problems.join("; "))),
        }
    }

    /// Asks a server that is down again and again until it answers.
    fn check(&self, server: &Arc<Upstream>, metrics: &Arc<Metrics>) {
        if server.checking.swap(true, Ordering::Relaxed) {
            return;
        }
        tracing::warn!("DNS server {} does not answer", server.address);
        let (server, metrics, timeout) = (server.clone(), metrics.clone(), self.timeout);
        // Ends when the server answers or nobody uses it any more.
        tokio::spawn(async move {
            let (mut pause, longest) = CHECK;
            while Arc::strong_count(&server) > 1 {
                tokio::time::sleep(pause).await;
                let query = Query::query(Name::root(), RecordType::NS);
                match exchange(server.address, &query, false, false, timeout).await {
                    Ok(_) => {
                        server.failures.store(0, Ordering::Relaxed);
                        tracing::info!("DNS server {} answers again", server.address);
                        break;
                    }
                    Err(_) => metrics.health_failure(server.address),
                }
                pause = (pause * 2).min(longest);
            }
            server.checking.store(false, Ordering::Relaxed);
        });
    }

    /// Sends each server a name nobody knows. If we are asked for it, that
    /// server, or one behind it, asks us: every question to it would go round
    /// for ever.
    pub async fn probe_for_loops(&self) {
        let probes: Vec<(Name, Arc<Upstream>)> = self
            .servers()
            .filter_map(|server| {
                let random: String = (0..4).map(|_| format!("{:04x}", random_u16())).collect();
                let name = Name::from_ascii(format!("{random}.{PROBE}")).ok()?;
                Some((name, server.clone()))
            })
            .collect();
        self.probes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone_from(&probes);
        for (name, server) in probes {
            let query = Query::query(name, RecordType::HINFO);
            // Whatever it answers, what counts is whether we are asked.
            let _ = exchange(server.address, &query, false, false, self.timeout).await;
        }
        self.probes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
    }

    /// Whether a name we are asked for is one of our probes; its server is
    /// not asked any more.
    #[must_use]
    pub fn is_own_probe(&self, name: &Name) -> bool {
        let probes = self.probes.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((_, server)) = probes.iter().find(|(probe, _)| probe == name) else {
            return false;
        };
        if !server.loops.swap(true, Ordering::Relaxed) {
            tracing::error!(
                "DNS server {} sends what it is asked back here: a loop. It is not used; give \
                 this node's resolv.conf, or --dns-upstream, a server outside the cluster",
                server.address
            );
        }
        true
    }
}

/// A random number an attacker cannot foresee.
fn random_u16() -> u16 {
    let mut bytes = [0; 2];
    // Fails only before the machine has gathered any randomness: the port of the
    // socket, which the kernel draws, is still unknown then.
    let _ = rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty());
    u16::from_ne_bytes(bytes)
}

/// Asks one server: by UDP from a port of its own with a random id, and by TCP
/// if the answer was cut.
async fn exchange(
    server: SocketAddr,
    query: &Query,
    dnssec_ok: bool,
    checking_disabled: bool,
    timeout: Duration,
) -> Result<Answer, String> {
    let id = random_u16();
    let question = message::question(id, query, dnssec_ok, checking_disabled);
    let reply = tokio::time::timeout(timeout, by_udp(server, id, query, &question))
        .await
        .map_err(|_| format!("no answer within {} ms", timeout.as_millis()))?
        .map_err(|error| error.to_string())?;
    if !reply.metadata.truncation {
        return Ok(answer(reply));
    }
    let reply = tokio::time::timeout(timeout, by_tcp(server, id, query, &question))
        .await
        .map_err(|_| format!("no answer by TCP within {} ms", timeout.as_millis()))?
        .map_err(|error| format!("by TCP: {error}"))?;
    Ok(answer(reply))
}

fn answer(reply: Message) -> Answer {
    Answer {
        code: reply.metadata.response_code,
        answers: reply.answers,
        authorities: reply.authorities,
        additionals: reply.additionals,
        authoritative: false,
        reason: Reason::Upstream,
    }
}

async fn by_udp(
    server: SocketAddr,
    id: u16,
    query: &Query,
    question: &[u8],
) -> std::io::Result<Message> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    // A port drawn by the kernel for this question alone, and nobody's packets
    // but the server's (RFC 5452).
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(question).await?;
    let mut buffer = vec![0; 4096];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if let Some(reply) = reply(&buffer[..length], id, query) {
            return Ok(reply);
        }
    }
}

async fn by_tcp(
    server: SocketAddr,
    id: u16,
    query: &Query,
    question: &[u8],
) -> std::io::Result<Message> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(question.len()).unwrap_or(u16::MAX);
    let mut framed = length.to_be_bytes().to_vec();
    framed.extend_from_slice(question);
    stream.write_all(&framed).await?;
    loop {
        let length = stream.read_u16().await?;
        let mut buffer = vec![0; usize::from(length)];
        stream.read_exact(&mut buffer).await?;
        if let Some(reply) = reply(&buffer, id, query) {
            return Ok(reply);
        }
    }
}

/// Reads a reply to our question; anything else is somebody's attempt.
fn reply(bytes: &[u8], id: u16, query: &Query) -> Option<Message> {
    let message = Message::from_vec(bytes).ok()?;
    let same = message.metadata.id == id
        && message.metadata.message_type == MessageType::Response
        && match message.queries.as_slice() {
            [question] => {
                question.name() == query.name()
                    && question.query_type() == query.query_type()
                    && question.query_class() == query.query_class()
            }
            _ => false,
        };
    same.then_some(message)
}
