//! The server: sockets, threads, limits.
//!
//! Each core has a thread that answers UDP, with a socket of its own for every
//! address ([`cores`]). It takes what has gathered by one system call and answers
//! it by another. A question of ours, or one the cache knows, is answered by the
//! thread that read it; one it has answered since what it is made from changed
//! last, as it did then. The others go to one more thread, with an event loop,
//! that also serves TCP.

mod cores;
mod hot;
mod tcp;
mod udp;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Instant, SystemTime};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{DNSClass, Name, RecordType};
use rustix::event::{EventfdFlags, eventfd};
use tokio::sync::mpsc;

use crate::basis::{Basis, Changes, Part, View};
use crate::config::{Config, Forwarding};
use crate::forward::{Flags, Forwarder, Known};
use crate::journal::{Journal, Note};
use crate::limit::Limiter;
use crate::lookup::{Answer, Reason};
use crate::message::{self, Request, Unusable, plain};
use crate::metrics::{Metrics, Transport};
use crate::resolver::{Pending, Purpose, Step, resolve};
use crate::zone::Zone;
use cores::Core;
use hot::{About, Scope};

/// Questions that may wait for the event loop, beside those it has taken up.
const WAITING: usize = 4096;

/// Why the server did not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An address cannot be listened at.
    #[error(
        "listening for DNS at {address} ({transport}): {source}{}",
        hint(source)
    )]
    Listen {
        /// The address.
        address: SocketAddr,
        /// UDP or TCP.
        transport: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// The system gives no thread or event loop.
    #[error("starting the DNS server: {0}")]
    Start(#[source] io::Error),
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            "; another DNS server listens there (dnsmasq, systemd-resolved, node-local-dns?): \
             stop it or choose another address"
        }
        io::ErrorKind::PermissionDenied => "; a port below 1024 needs CAP_NET_BIND_SERVICE",
        _ => "",
    }
}

/// What the threads share with whoever feeds the zone.
#[derive(Debug)]
pub struct Shared {
    config: Config,
    /// Readers hold it for the microseconds of a lookup, writers for those of a
    /// change to one Service: a copy of the zone for each change would cost what
    /// the zone costs.
    zone: RwLock<Zone>,
    /// What of the zone and the servers has changed, to be read without waiting.
    changes: Arc<Changes>,
    ready: AtomicBool,
    forwarder: Arc<Forwarder>,
    limiter: Limiter,
    metrics: Arc<Metrics>,
    journal: Journal,
}

/// What becomes of a message.
enum Begun {
    /// Nothing is sent.
    Silence,
    /// This is sent. With what is known of it: others may get it too, while what
    /// it was made from holds.
    Reply(Vec<u8>, Option<(About, Basis)>),
    /// Others have to be asked.
    Ask(Box<Job>),
}

/// A question others have to be asked for.
struct Job {
    request: Request,
    pending: Pending,
    client: SocketAddr,
    transport: Transport,
    since: Instant,
}

impl Job {
    fn flags(&self) -> Flags {
        flags(&self.request)
    }
}

fn flags(request: &Request) -> Flags {
    Flags {
        dnssec_ok: request.dnssec_ok(),
        checking_disabled: request.metadata.checking_disabled,
    }
}

impl Shared {
    /// An empty zone, which is answered SERVFAIL for until it is ready.
    #[must_use]
    pub fn new(config: Config) -> Arc<Self> {
        let metrics = Arc::new(Metrics::default());
        let zone = Zone::new();
        Arc::new(Self {
            forwarder: Arc::new(Forwarder::new(&config.forwarding, metrics.clone())),
            limiter: Limiter::new(config.client_rate),
            changes: zone.changes().clone(),
            zone: RwLock::new(zone),
            // A cache knows all it has to.
            ready: AtomicBool::new(!config.authoritative),
            metrics,
            journal: Journal::default(),
            config,
        })
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The metrics, all but how full the cache is as of the last
    /// [`measure`](Self::measure).
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Puts into the metrics how full the cache is.
    pub fn measure(&self) {
        self.forwarder.measure();
    }

    /// The last questions that were slow or failed.
    #[must_use]
    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    /// Changes the zone. Answers follow from the moment this returns.
    pub fn change<T>(&self, change: impl FnOnce(&mut Zone) -> T) -> T {
        change(&mut self.zone.write().unwrap_or_else(PoisonError::into_inner))
    }

    /// Appends what stands for the search list that is walked for a client:
    /// nothing, or its namespace and the domains of its own.
    fn class(&self, client: IpAddr, key: &mut Vec<u8>) {
        if !self.config.search_completion {
            return;
        }
        self.read(|zone| {
            if let Some(pod) = zone.pod(client).filter(|pod| pod.cluster_first) {
                key.extend_from_slice(pod.namespace.as_bytes());
                for domain in &pod.searches {
                    // Labels with their lengths, so that no two lists look alike.
                    key.push(b'/');
                    key.extend(domain.iter().flat_map(|label| {
                        [u8::try_from(label.len()).unwrap_or(u8::MAX)]
                            .into_iter()
                            .chain(label.iter().copied())
                    }));
                }
            }
        });
    }

    /// Reads the zone.
    pub fn read<T>(&self, read: impl FnOnce(&Zone) -> T) -> T {
        read(&self.zone.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The zone holds all there is: from now on names that are not in it do not exist.
    pub fn set_ready(&self) {
        self.ready.store(true, Ordering::Release);
    }

    /// Whether the zone has been read.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    /// Other upstream servers from now on. What the old ones said is forgotten,
    /// but by a cache: the servers of the cluster come and go and know the same.
    pub fn set_servers(&self, forwarding: &Forwarding) {
        let same = !self.config.authoritative;
        self.forwarder.set_servers(forwarding, same);
        self.changes.count(Part::Servers);
    }

    /// Upstream servers that do not answer or lead back here, for people.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        self.forwarder
            .pool()
            .servers()
            .filter_map(|server| {
                let address = server.address;
                if server.leads_back() {
                    Some(format!(
                        "DNS server {address} sends what it is asked back here; it is not used"
                    ))
                } else if server.is_healthy() {
                    None
                } else {
                    Some(format!("DNS server {address} does not answer"))
                }
            })
            .collect()
    }

    /// Answers a question as the server would answer `client`.
    pub async fn query(&self, name: &Name, kind: RecordType, client: Option<IpAddr>) -> Answer {
        match self.step(name, kind, client).0 {
            Step::Done(answer) => answer,
            Step::Ask(pending) => {
                let flags = Flags {
                    dnssec_ok: false,
                    checking_disabled: false,
                };
                self.forwarder
                    .finish(&self.config, &pending, kind, flags)
                    .await
            }
        }
    }

    /// The first step of a question, and what of the zone it was made from.
    fn step(&self, name: &Name, kind: RecordType, client: Option<IpAddr>) -> (Step, Basis) {
        let (step, basis) = self.read(|zone| {
            let view = View::new(zone);
            let step = resolve(&view, &self.config, name, kind, client);
            (step, view.basis())
        });
        // What is known already holds, what is not known may yet be.
        let unknown = match &step {
            Step::Done(answer) => answer.answers.is_empty(),
            Step::Ask(pending) => matches!(pending.purpose, Purpose::Search(_)),
        };
        if unknown && !self.is_ready() {
            let answer = Answer {
                reason: Reason::NotReady,
                ..plain(ResponseCode::ServFail)
            };
            return (Step::Done(answer), basis);
        }
        (step, basis)
    }

    /// Whether a client may ask one more question.
    fn admits(&self, client: SocketAddr, now: Instant) -> bool {
        let allowed = self.limiter.allows(client.ip(), now);
        if !allowed {
            self.metrics.limited.inc();
        }
        allowed
    }

    /// Reads a message and answers it if that needs nobody else.
    fn begin(
        &self,
        bytes: &[u8],
        client: SocketAddr,
        transport: Transport,
        since: Instant,
    ) -> Begun {
        let request = match message::read(bytes) {
            Ok(request) => request,
            Err(Unusable::Silence) => return Begun::Silence,
            Err(Unusable::Reply(reply)) => return Begun::Reply(reply, None),
        };
        let (name, kind) = (request.query.name(), request.query.query_type());
        self.metrics.request(transport, client.is_ipv4(), kind);
        let other = match request.query.query_class() {
            DNSClass::IN if is_refused(kind) => Some(plain(ResponseCode::Refused)),
            DNSClass::IN if kind == RecordType::HINFO && self.is_own_probe(name) => {
                Some(plain(ResponseCode::Refused))
            }
            DNSClass::IN => None,
            DNSClass::CH => Some(message::chaos(&request)),
            _ => Some(plain(ResponseCode::Refused)),
        };
        if let Some(answer) = other {
            let reply = self.reply(&request, &answer, client, transport, since);
            return Begun::Reply(reply, None);
        }
        let (pending, basis) = match self.step(name, kind, Some(client.ip())) {
            (Step::Done(answer), basis) => {
                let reply = self.reply(&request, &answer, client, transport, since);
                return Begun::Reply(reply, about(&answer, kind).map(|about| (about, basis)));
            }
            (Step::Ask(pending), basis) => (pending, basis),
        };
        // RFC 1035 4.1.1: who does not desire recursion is told what is known here.
        if !request.metadata.recursion_desired {
            let answer = plain(ResponseCode::Refused);
            let reply = self.reply(&request, &answer, client, transport, since);
            return Begun::Reply(reply, None);
        }
        let flags = flags(&request);
        match self
            .forwarder
            .finish_from_cache(&self.config, &pending, kind, flags)
        {
            Some(Known {
                answer,
                until,
                hits,
            }) => {
                let reply = self.reply(&request, &answer, client, transport, since);
                let about = About {
                    kind,
                    code: answer.code,
                    scope: match pending.purpose {
                        Purpose::Same | Purpose::Alias(_) => Scope::All,
                        Purpose::Search(_) => Scope::Class,
                    },
                    until: Some(until),
                    from_cache: hits,
                    completed: matches!(answer.reason, Reason::Search { .. }),
                };
                let lasts = matches!(answer.code, ResponseCode::NoError | ResponseCode::NXDomain);
                Begun::Reply(reply, lasts.then_some((about, basis)))
            }
            None => Begun::Ask(Box::new(Job {
                request,
                pending,
                client,
                transport,
                since,
            })),
        }
    }

    /// A question was answered as one before it.
    fn answered_again(&self, client: SocketAddr, about: About, since: Instant) {
        let metrics = &self.metrics;
        metrics.request(Transport::Udp, client.is_ipv4(), about.kind);
        metrics.response(about.code, since.elapsed());
        let (hits, denials) = about.from_cache;
        metrics.cache_hits.inc_by(hits.into());
        metrics.cache_denials.inc_by(denials.into());
        if about.completed {
            metrics.completed.inc();
        }
    }

    fn is_own_probe(&self, name: &Name) -> bool {
        self.forwarder.pool().is_own_probe(name)
    }

    /// Answers what others had to be asked for.
    async fn finish(&self, job: &Job) -> Vec<u8> {
        let kind = job.request.query.query_type();
        let answer = self
            .forwarder
            .finish(&self.config, &job.pending, kind, job.flags())
            .await;
        self.reply(&job.request, &answer, job.client, job.transport, job.since)
    }

    /// Answers that too much is asked.
    fn overloaded(&self, job: &Job) -> Vec<u8> {
        self.metrics.too_many.inc();
        let answer = Answer {
            reason: Reason::UpstreamFailed("too many questions wait already".to_owned()),
            ..plain(ResponseCode::ServFail)
        };
        self.reply(&job.request, &answer, job.client, job.transport, job.since)
    }

    fn reply(
        &self,
        request: &Request,
        answer: &Answer,
        client: SocketAddr,
        transport: Transport,
        since: Instant,
    ) -> Vec<u8> {
        let limit = match transport {
            Transport::Udp => request.datagram_size().into(),
            Transport::Tcp => usize::from(u16::MAX),
        };
        let bytes = message::write(request, answer, limit);
        let took = since.elapsed();
        self.metrics.response(answer.code, took);
        if matches!(answer.reason, Reason::Search { .. }) {
            self.metrics.completed.inc();
        }
        let failed = matches!(answer.code, ResponseCode::ServFail);
        if failed || took >= self.config.slow {
            let note = Note {
                at: SystemTime::now(),
                client,
                name: request.query.name().to_ascii(),
                kind: request.query.query_type().to_string(),
                code: answer.code.to_string(),
                took,
                reason: answer.reason.to_string(),
            };
            tracing::info!(
                client = %note.client, name = %note.name, kind = %note.kind,
                took_ms = took.as_millis(), code = %note.code, reason = %note.reason,
                "{} question", if failed { "failed" } else { "slow" }
            );
            self.journal.add(note);
        }
        bytes
    }
}

/// What is known of an answer of the zone that others may get too. What exists is
/// the same for all; absence is where the search lists of pods begin.
fn about(answer: &Answer, kind: RecordType) -> Option<About> {
    let completed = matches!(answer.reason, Reason::Search { .. });
    let scope = match answer.code {
        ResponseCode::NoError if !completed => Scope::All,
        ResponseCode::NoError | ResponseCode::NXDomain => Scope::Class,
        _ => return None,
    };
    answer.authoritative.then_some(About {
        kind,
        code: answer.code,
        scope,
        until: None,
        from_cache: (0, 0),
        completed,
    })
}

/// Types that are no records: whole zones, and what only servers ask each other.
fn is_refused(kind: RecordType) -> bool {
    matches!(
        kind,
        RecordType::AXFR | RecordType::IXFR | RecordType::OPT | RecordType::TSIG
    )
}

/// The sockets of a server that does not answer yet: what it is asked waits in them.
#[derive(Debug)]
pub struct Sockets {
    addresses: Vec<SocketAddr>,
    listeners: Vec<std::net::TcpListener>,
    /// The core of each thread, and its sockets, one for each address.
    datagrams: Vec<(Core, Vec<Arc<std::net::UdpSocket>>)>,
}

impl Sockets {
    /// Listens at the configured addresses, in the network namespace of the
    /// calling thread.
    ///
    /// # Errors
    /// If an address cannot be listened at; nothing is left behind then.
    pub fn open(config: &Config) -> Result<Self, Error> {
        let mut sockets = Self {
            addresses: Vec::new(),
            listeners: Vec::new(),
            datagrams: cores::usable(config.threads)
                .into_iter()
                .map(|core| (core, Vec::new()))
                .collect(),
        };
        for address in &config.listen {
            // TCP first: where the port is left to the kernel, UDP gets the same.
            let listener = tcp::listen(*address).map_err(|source| Error::Listen {
                address: *address,
                transport: "TCP",
                source,
            })?;
            let address = listener.local_addr().map_err(Error::Start)?;
            sockets.listeners.push(listener);
            sockets.addresses.push(address);
            for (core, thread) in &mut sockets.datagrams {
                let socket = udp::listen(address, *core).map_err(|source| Error::Listen {
                    address,
                    transport: "UDP",
                    source,
                })?;
                thread.push(Arc::new(socket));
            }
        }
        Ok(sockets)
    }

    /// Answers from `shared` from now on.
    ///
    /// # Errors
    /// If a thread cannot be started; nothing is left behind then.
    pub fn answer(self, shared: &Arc<Shared>) -> Result<Server, Error> {
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|error| Error::Start(error.into()))?;
        let mut server = Server {
            stop: Arc::new(stop),
            threads: Vec::new(),
            addresses: self.addresses,
        };
        let (jobs, inbox) = mpsc::channel(WAITING);
        let (ended, ending) = tokio::sync::oneshot::channel::<()>();
        let (loop_shared, start) = (shared.clone(), std::thread::Builder::new());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(Error::Start)?;
        let listeners = self.listeners;
        // It ends when the threads that hold the other end do.
        let holder = Arc::new(ended);
        server.threads.push(
            start
                .name("dns".to_owned())
                .spawn(move || {
                    runtime.block_on(async {
                        let serve = tcp::serve(loop_shared, listeners, inbox);
                        tokio::select! {
                            () = serve => {}
                            _ = ending => {}
                        }
                    });
                })
                .map_err(Error::Start)?,
        );
        let kept = hot::KEPT / self.datagrams.len();
        for (core, sockets) in self.datagrams {
            let (shared, jobs, holder, stop) = (
                shared.clone(),
                jobs.clone(),
                holder.clone(),
                server.stop.clone(),
            );
            server.threads.push(
                std::thread::Builder::new()
                    .name(format!("dns-udp-{core}"))
                    .spawn(move || {
                        core.stay();
                        udp::serve(&shared, &sockets, &stop, &jobs, kept);
                        drop(holder);
                    })
                    .map_err(Error::Start)?,
            );
        }
        Ok(server)
    }
}

/// A server that runs. Ends when it is dropped.
#[derive(Debug)]
pub struct Server {
    stop: Arc<OwnedFd>,
    threads: Vec<JoinHandle<()>>,
    addresses: Vec<SocketAddr>,
}

impl Server {
    /// Listens at the configured addresses, in the network namespace of the
    /// calling thread, and answers from `shared`.
    ///
    /// # Errors
    /// If an address cannot be listened at or a thread not be started; nothing
    /// is left behind then.
    pub fn start(shared: &Arc<Shared>) -> Result<Self, Error> {
        Sockets::open(&shared.config)?.answer(shared)
    }

    /// Where it listens, with the ports the kernel chose.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Cannot fail: the counter is far from its limit.
        let _ = rustix::io::write(&*self.stop, &1u64.to_ne_bytes());
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the DNS server panicked");
            }
        }
    }
}
