//! Cluster DNS on this node: what the watches say goes into the zone, the
//! server answers from it.

mod inspect;
mod kernel;
mod options;
mod translate;
mod upstreams;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ::dns::config::Forwarding;
use ::dns::model::{Protocol, ServiceKey};
use ::dns::resolv_conf::PORT;
use ::dns::{PodRecords, Shared, Sockets};
use api::{Event, Key};
use hickory_proto::rr::Name;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::watch;

use crate::admin::Admin;
use crate::run::News;

pub use inspect::{Answer, Note, Record, Records};
pub(crate) use kernel::remove_table;
pub use options::{DnsOptions, Mode, Pods};

/// Before a server that could not start is tried again: somebody else listens,
/// and nothing tells when that ends.
const AGAIN: Duration = Duration::from_secs(5);
/// How long what is asked waits for the cluster's state to be read. After that
/// it is answered SERVFAIL, as CoreDNS does.
const PATIENCE: Duration = Duration::from_secs(5);

/// Kinds the zone waits for.
const SERVICES: u8 = 1;
const SLICES: u8 = 2;
const NAMESPACES: u8 = 4;

/// The node's DNS, as those see it who feed it and ask about it.
#[derive(Debug)]
pub(crate) struct Dns {
    pub(crate) shared: Arc<Shared>,
    pub(crate) all_pods: bool,
    /// Addresses it is reached at in the cluster.
    cluster: Vec<IpAddr>,
    /// Its forwarding, with the servers that are known now.
    forwarding: Mutex<Forwarding>,
    /// In front of another cluster DNS: who that is.
    behind: Option<Mutex<Behind>>,
    synced: AtomicU8,
    ready: watch::Sender<bool>,
    problem: Mutex<Option<String>>,
    core: UnboundedSender<News>,
}

/// The endpoints of the Service in front of which this is a cache.
#[derive(Debug)]
struct Behind {
    service: ServiceKey,
    slices: HashMap<Box<str>, Vec<SocketAddr>>,
}

/// What is to be served, still without a server; `None` where DNS is off.
pub(crate) fn prepare(options: &crate::Options, core: &UnboundedSender<News>) -> Option<Arc<Dns>> {
    let wanted = &options.dns;
    if wanted.dns == Mode::Off {
        // Where an agent before this one answered, others do now.
        if let Err(error) = kernel::release() {
            tracing::warn!(
                "giving back the addresses of DNS: {error}; pods of this node may not reach it"
            );
        }
        return None;
    }
    let own: Vec<IpAddr> = wanted.addresses();
    let node = wanted.resolv_conf();
    let config = wanted.config(options, &own, &node);
    let forwarding = config.forwarding.clone();
    let all_pods = config.pods == PodRecords::Verified;
    let shared = Shared::new(config);
    shared.change(|zone| zone.set_node_search(node.search));
    Some(Arc::new(Dns {
        all_pods,
        shared,
        cluster: wanted.cluster_dns.clone(),
        forwarding: Mutex::new(forwarding),
        behind: (wanted.dns == Mode::Cache).then(|| {
            Mutex::new(Behind {
                service: ServiceKey::new("kube-system", "kube-dns"),
                slices: HashMap::new(),
            })
        }),
        synced: AtomicU8::new(0),
        ready: watch::Sender::new(false),
        problem: Mutex::default(),
        core: core.clone(),
    }))
}

/// Starts the server, and the watch of the node's resolv.conf. They end with
/// the event loop.
pub(crate) fn start(dns: &Arc<Dns>, wanted: &DnsOptions, admin: &mut Admin) {
    inspect::add(admin, dns);
    tokio::spawn(serve(dns.clone(), wanted.addresses()));
    if wanted.dns == Mode::Replace {
        tokio::spawn(upstreams::follow(dns.clone(), wanted.clone()));
    }
}

/// Keeps the server running until the event loop ends.
///
/// It listens at once: what is asked while an agent takes over from the one before
/// waits in the sockets. The addresses are taken only when there are answers:
/// whoever answered at them until then goes on so long.
async fn serve(dns: Arc<Dns>, addresses: Vec<IpAddr>) {
    loop {
        match Sockets::open(dns.shared.config()).map_err(|error| error.to_string()) {
            Ok(sockets) => {
                dns.wait_until_ready().await;
                let started = kernel::ensure(&addresses)
                    .map_err(|error| error.to_string())
                    .and_then(|()| {
                        sockets
                            .answer(&dns.shared)
                            .map_err(|error| error.to_string())
                    });
                match started {
                    Ok(server) => {
                        dns.set_problem(None);
                        tracing::info!("DNS answers at {:?}", server.addresses());
                        // Nothing ends it but the end of this task.
                        std::future::pending::<()>().await;
                    }
                    Err(error) => dns.set_problem(Some(error)),
                }
            }
            Err(error) => dns.set_problem(Some(error)),
        }
        tokio::time::sleep(AGAIN).await;
    }
}

impl Dns {
    /// Returns when the cluster's state has been read, or is late.
    async fn wait_until_ready(&self) {
        let mut ready = self.ready.subscribe();
        let read = tokio::time::timeout(PATIENCE, ready.wait_for(|ready| *ready)).await;
        if read.is_err() {
            tracing::warn!(
                "the cluster's state has not been read within {} s; DNS answers SERVFAIL until it is",
                PATIENCE.as_secs()
            );
        }
    }

    fn set_problem(&self, problem: Option<String>) {
        let mut held = self.problem.lock().unwrap_or_else(PoisonError::into_inner);
        if *held != problem {
            if let Some(problem) = &problem {
                tracing::warn!("{problem}");
            }
            *held = problem;
            drop(held);
            // The loop may have ended.
            let _ = self.core.send(News::Dns);
        }
    }

    /// What is not as it should be, for people.
    pub(crate) fn problems(&self) -> Vec<String> {
        let own = self.problem.lock().unwrap_or_else(PoisonError::into_inner);
        let mut problems = Vec::from_iter(own.clone());
        problems.extend(self.shared.problems());
        problems
    }

    /// Takes up what happened to a Service.
    pub(crate) fn service(&self, event: &Event<api::Service>) {
        match event {
            Event::Applied(service) => {
                let key = service_key(&service.metadata.namespace, &service.metadata.name);
                match translate::service(service) {
                    Some(service) => self.shared.change(|zone| zone.set_service(service)),
                    None => self.shared.change(|zone| zone.remove_service(&key)),
                }
            }
            Event::Deleted(key) => {
                let key = service_key(&key.namespace, &key.name);
                self.shared.change(|zone| zone.remove_service(&key));
            }
            Event::Synced => self.set_synced(SERVICES),
        }
    }

    /// Takes up what happened to an endpoint slice.
    pub(crate) fn slice(&self, event: &Event<api::EndpointSlice>) {
        let (namespace, name) = match event {
            Event::Applied(slice) => {
                let metadata = &slice.metadata;
                if let Some(slice) = translate::slice(slice) {
                    self.set_behind(&slice);
                    self.shared.change(|zone| zone.set_slice(slice));
                    return;
                }
                (&metadata.namespace, &metadata.name)
            }
            Event::Deleted(Key { namespace, name }) => (namespace, name),
            Event::Synced => return self.set_synced(SLICES),
        };
        self.forget_behind(namespace, name);
        self.shared
            .change(|zone| zone.remove_slice(namespace, name));
    }

    /// Takes up what happened to a namespace.
    pub(crate) fn namespace(&self, event: &Event<api::Namespace>) {
        match event {
            Event::Applied(namespace) => self
                .shared
                .change(|zone| zone.add_namespace(&namespace.metadata.name)),
            Event::Deleted(key) => self.shared.change(|zone| zone.remove_namespace(&key.name)),
            Event::Synced => self.set_synced(NAMESPACES),
        }
    }

    /// Takes up what happened to a pod.
    pub(crate) fn pod(&self, event: &Event<api::Pod>) {
        match event {
            Event::Applied(pod) => match translate::pod(pod) {
                Some(pod) => self.shared.change(|zone| zone.set_pod(pod)),
                None => self.shared.change(|zone| {
                    zone.remove_pod(&pod.metadata.namespace, &pod.metadata.name);
                }),
            },
            Event::Deleted(key) => self
                .shared
                .change(|zone| zone.remove_pod(&key.namespace, &key.name)),
            Event::Synced => {}
        }
    }

    fn set_synced(&self, kind: u8) {
        let all = SERVICES | SLICES | NAMESPACES;
        if self.synced.fetch_or(kind, Ordering::AcqRel) | kind == all {
            self.shared.set_ready();
            self.ready.send_replace(true);
            // The loop may have ended.
            let _ = self.core.send(News::Dns);
        }
    }

    /// Whether a proxy is to leave a port of a Service alone, because the
    /// questions to it are answered here.
    pub(crate) fn takes(&self, service: &api::Service, port: i32) -> bool {
        port == i32::from(PORT)
            && service.spec.cluster_ips.iter().any(|text| {
                text.parse()
                    .is_ok_and(|address: IpAddr| self.cluster.contains(&address))
            })
    }

    fn set_behind(&self, slice: &::dns::model::EndpointSlice) {
        let Some(behind) = &self.behind else { return };
        let mut behind = behind.lock().unwrap_or_else(PoisonError::into_inner);
        if slice.service != behind.service {
            return;
        }
        let port = slice
            .ports
            .iter()
            .find(|port| port.protocol == Protocol::Udp)
            .map_or(PORT, |port| port.number);
        let servers = slice
            .endpoints
            .iter()
            .map(|endpoint| SocketAddr::new(endpoint.address, port))
            .collect();
        behind.slices.insert(slice.name.clone(), servers);
        self.use_behind(&behind);
    }

    fn forget_behind(&self, namespace: &str, name: &str) {
        let Some(behind) = &self.behind else { return };
        let mut behind = behind.lock().unwrap_or_else(PoisonError::into_inner);
        if *behind.service.namespace == *namespace && behind.slices.remove(name).is_some() {
            self.use_behind(&behind);
        }
    }

    fn use_behind(&self, behind: &Behind) {
        let mut servers: Vec<SocketAddr> = behind.slices.values().flatten().copied().collect();
        servers.sort();
        self.set_upstreams(servers);
    }

    /// The node's search domains from now on, if they are others.
    fn set_node_search(&self, domains: Vec<Name>) {
        if self.shared.read(|zone| zone.node_search() != domains) {
            self.shared.change(|zone| zone.set_node_search(domains));
        }
    }

    /// Other upstream servers from now on, if they are others.
    fn set_upstreams(&self, servers: Vec<SocketAddr>) {
        let mut forwarding = self
            .forwarding
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if forwarding.upstreams != servers {
            forwarding.upstreams = servers;
            self.shared.set_servers(&forwarding);
        }
    }
}

fn service_key(namespace: &str, name: &str) -> ServiceKey {
    ServiceKey::new(namespace, name)
}
