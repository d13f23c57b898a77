//! The thread that keeps Services.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, Sender};
use std::time::{Duration, Instant};

use api::{AddressType, Event, Key};
use ipnet::IpNet;
use linux::address;
use linux::netlink::Socket;
use routing::service_range::ServiceRanges;
use services::{NodeFacts, NodePortAddresses, Proxy, ProxySettings, ServiceName, Stats};
use tokio::sync::mpsc::UnboundedSender;

use crate::routes;
use crate::run::News;
use crate::translate;
use crate::worker::{Problems, Retry, gather};

/// What the thread is told.
#[derive(Debug)]
pub(crate) enum Message {
    /// Of a Service.
    Service(Event<api::Service>),
    /// Of an endpoint slice.
    Slice(Event<api::EndpointSlice>),
    /// The node or the cluster changed.
    Facts(Box<NodeFacts>),
    /// Addresses of this node's interfaces came or went.
    LocalAddresses,
    /// Time to look whether others changed what is ours.
    Audit,
}

/// How things stand after an application.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Report {
    /// Whether the kernel holds what is wanted.
    pub(crate) in_force: bool,
    /// What is not as it should be.
    pub(crate) problems: Vec<String>,
    /// Elements added to and deleted from the kernel's maps.
    pub(crate) elements: usize,
    /// How long the last application took.
    pub(crate) took: Duration,
}

/// Runs until nobody can send it anything any more.
pub(crate) fn run(
    settings: &ProxySettings,
    known_ranges: Vec<IpNet>,
    inbox: &Receiver<Message>,
    routes: &Sender<routes::Message>,
    reports: &UnboundedSender<News>,
) {
    let mut state = State::new(known_ranges);
    let mut retry = Retry::default();
    let mut problems = Problems::default();
    let mut proxy: Option<Proxy> = None;
    // What arrives while the packet filter cannot be used yet.
    let mut backlog: VecDeque<Message> = VecDeque::new();
    while let Some(messages) = gather(inbox, &retry) {
        let due = retry.is_due();
        backlog.extend(messages);
        let now = Instant::now();
        let result = match &mut proxy {
            Some(proxy) => state.step(proxy, &mut backlog, due),
            None => match Proxy::start_as(settings, NodeFacts::default()) {
                Ok(started) => {
                    for limit in started.limits() {
                        tracing::info!(proxy = started.mode().name(), "limit: {limit}");
                    }
                    state.step(proxy.insert(started), &mut backlog, due)
                }
                Err(error) => Err(error),
            },
        };
        let (in_force, elements, found) = match result {
            Ok(None) => continue,
            Ok(Some(stats)) => (true, stats.elements, Vec::new()),
            Err(error) => (false, 0, vec![error.to_string()]),
        };
        if in_force {
            retry.succeeded();
        } else {
            retry.failed();
        }
        if let Some(ranges) = state.changed_ranges()
            && routes.send(routes::Message::ServiceRanges(ranges)).is_err()
        {
            return;
        }
        let report = Report {
            in_force,
            problems: problems.set(found).to_vec(),
            elements,
            took: now.elapsed(),
        };
        if reports.send(News::Services(report)).is_err() {
            return;
        }
    }
}

/// What has to be known before the first application.
#[derive(Default)]
struct State {
    services_synced: bool,
    slices_synced: bool,
    facts_known: bool,
    ranges: ServiceRanges,
    ranges_sent: Option<Vec<IpNet>>,
}

impl State {
    fn new(known_ranges: Vec<IpNet>) -> State {
        State {
            ranges: ServiceRanges::new(known_ranges),
            ..State::default()
        }
    }

    fn is_complete(&self) -> bool {
        self.services_synced && self.slices_synced && self.facts_known
    }

    /// Takes up what has arrived and applies it. Returns what that did, or
    /// `None` when it is not time yet.
    fn step(
        &mut self,
        proxy: &mut Proxy,
        backlog: &mut VecDeque<Message>,
        due: bool,
    ) -> Result<Option<Stats>, services::Error> {
        let mut changed = due;
        let mut audit = false;
        for message in backlog.drain(..) {
            changed |= !matches!(message, Message::Audit);
            audit |= matches!(message, Message::Audit);
            self.take(proxy, message);
        }
        if !self.is_complete() {
            return Ok(None);
        }
        let stats = match (changed, audit) {
            (true, _) => proxy.sync()?,
            (false, true) => proxy.audit()?,
            (false, false) => return Ok(None),
        };
        tracing::debug!(
            frontends = stats.frontends,
            elements = stats.elements,
            bytes = stats.bytes,
            full = stats.full,
            "Services applied"
        );
        Ok(Some(stats))
    }

    fn take(&mut self, proxy: &mut Proxy, message: Message) {
        match message {
            Message::Service(Event::Applied(service)) => {
                for text in &service.spec.cluster_ips {
                    if let Some(address) = services::model::parse_address(text) {
                        self.ranges.insert(address);
                    }
                }
                proxy.service_changed(translate::service(service));
            }
            Message::Service(Event::Deleted(Key { namespace, name })) => {
                proxy.service_removed(&ServiceName::new(namespace, name));
            }
            Message::Service(Event::Synced) => self.services_synced = true,
            Message::Slice(Event::Applied(slice)) => {
                let Key { namespace, name } = api::Resource::key(&slice);
                match (slice.address_type, translate::slice(slice)) {
                    (AddressType::V4 | AddressType::V6, Some(slice)) => {
                        proxy.endpoint_slice_changed(&slice);
                    }
                    // Of names, or of no Service (any more).
                    _ => proxy.endpoint_slice_removed(&namespace, &name),
                }
            }
            Message::Slice(Event::Deleted(Key { namespace, name })) => {
                proxy.endpoint_slice_removed(&namespace, &name);
            }
            Message::Slice(Event::Synced) => self.slices_synced = true,
            Message::Facts(facts) => {
                self.facts_known = true;
                proxy.facts_changed(with_local_addresses(*facts));
            }
            Message::LocalAddresses => {
                proxy.facts_changed(with_local_addresses(proxy.table().facts().clone()));
            }
            Message::Audit => {}
        }
    }

    fn changed_ranges(&mut self) -> Option<Vec<IpNet>> {
        let now = self.ranges.get();
        (self.ranges_sent.as_ref() != Some(&now)).then(|| {
            self.ranges_sent = Some(now.clone());
            now
        })
    }
}

/// The facts with the addresses of this network namespace's interfaces, if they
/// matter: where node ports answer at the primary ones alone, the others come and
/// go unnoticed.
fn with_local_addresses(facts: NodeFacts) -> NodeFacts {
    if facts.node_port_addresses == NodePortAddresses::Primary {
        return facts;
    }
    let read = Socket::open_route().and_then(|mut socket| address::list(&mut socket, None));
    match read {
        Ok(addresses) => NodeFacts {
            local_addresses: addresses
                .iter()
                .map(|address| address.address.addr())
                .collect(),
            ..facts
        },
        Err(error) => {
            tracing::warn!("node ports answer where they did before: {error}");
            facts
        }
    }
}
