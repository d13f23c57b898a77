//! The thread that keeps Services.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use std::time::{Duration, Instant};

use api::{AddressType, Key};
use ipnet::IpNet;
use jiff::Timestamp;
use linux::address;
use linux::netlink::Socket;
use routing::service_range::ServiceRanges;
use services::report::Problem;
use services::{NodeFacts, NodePortAddresses, Proxy, ProxySettings, ServiceName, Stats};
use tokio::sync::mpsc::UnboundedSender;

use crate::admin::Question;
use crate::event_writer::{About, Recorder, Warning};
use crate::health;
use crate::healthcheck::Wanted;
use crate::inspection::{self, Asked};
use crate::latest::Latest;
use crate::metrics::Metrics;
use crate::programming::Triggers;
use crate::routes;
use crate::run::News;
use crate::runner::{Pace, Runner};
use crate::translate;
use crate::worker::{Problems, gather_until};

/// What the thread is told.
#[derive(Debug)]
pub(crate) enum Message {
    /// There are news of a Service among [`Changed::services`].
    Service(Key),
    /// All Services there are have been told.
    ServicesSynced,
    /// There are news of an endpoint slice among [`Changed::slices`].
    Slice(Key),
    /// All endpoint slices there are have been told.
    SlicesSynced,
    /// The node or the cluster changed.
    Facts(Box<NodeFacts>),
    /// Addresses of this node's interfaces came or went.
    LocalAddresses,
    /// Time to look whether others changed what is ours.
    Audit,
    /// Somebody wants to know.
    Ask(Asked, Question),
}

/// What changed of the objects and was not taken up yet. Each is named by one message:
/// however often an object changes while the thread is busy, it waits once.
#[derive(Debug, Default)]
pub(crate) struct Changed {
    services: Latest<Option<api::Service>>,
    slices: Latest<SliceNews>,
}

#[derive(Debug)]
struct SliceNews {
    now: Option<api::EndpointSlice>,
    /// What triggered the first of the changes that this one overtook.
    first_trigger: Option<Box<str>>,
}

impl Changed {
    /// A Service is now so, or gone. Returns the message to send; none if one is on
    /// its way that will do.
    #[must_use]
    pub(crate) fn service(&self, key: Key, now: Option<api::Service>) -> Option<Message> {
        let before = self.services.put(key.clone(), |_| now);
        before.is_none().then_some(Message::Service(key))
    }

    /// An endpoint slice is now so, or gone. Returns a message as [`Self::service`] does.
    #[must_use]
    pub(crate) fn slice(&self, key: Key, now: Option<api::EndpointSlice>) -> Option<Message> {
        let news = |before: Option<&SliceNews>| SliceNews {
            now,
            first_trigger: before.and_then(|before| {
                let trigger = || before.now.as_ref()?.last_change_trigger();
                before
                    .first_trigger
                    .as_deref()
                    .or_else(trigger)
                    .map(Into::into)
            }),
        };
        let before = self.slices.put(key.clone(), news);
        before.is_none().then_some(Message::Slice(key))
    }
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
    /// Which health checks are to be answered; as it was where nothing is in force.
    pub(crate) health_checks: Wanted,
}

/// What the thread works with.
pub(crate) struct Context {
    /// Which proxy, and how.
    pub(crate) settings: ProxySettings,
    /// Ranges Service addresses are from, as far as they are known.
    pub(crate) known_ranges: Vec<IpNet>,
    /// Who is told where Services are.
    pub(crate) routes: Sender<routes::Message>,
    /// Who is told how things stand.
    pub(crate) reports: UnboundedSender<News>,
    /// What is told to users.
    pub(crate) events: Recorder,
    /// What is told to Prometheus.
    pub(crate) metrics: Arc<Metrics>,
    /// What is told to health checks.
    pub(crate) status: health::Shared,
}

/// Runs until nobody can send it anything any more.
pub(crate) fn run(context: &Context, inbox: &Receiver<Message>, changed: &Changed) {
    let mut state = State::new(context.known_ranges.clone());
    let mut runner = Runner::new(Pace::default());
    let mut problems = Problems::default();
    let mut proxy: Option<Proxy> = None;
    // What arrives while the packet filter cannot be used yet.
    let mut backlog: Vec<Message> = Vec::new();
    // Reading all objects takes far more memory than what is kept of them.
    let mut after_lists = true;
    loop {
        let due = state.due(&runner, proxy.is_some(), Instant::now());
        let Some(messages) = gather_until(inbox, due) else {
            return;
        };
        if !messages.is_empty() {
            context.status.lock().changes.begin();
        }
        for message in messages {
            match message {
                Message::Ask(asked, question) => {
                    inspection::answer(proxy.as_mut(), &asked, question);
                }
                message => backlog.push(message),
            }
        }
        let mut started = Instant::now();
        if proxy.is_none() && (runner.due(started).is_none() || runner.is_due(started)) {
            match Proxy::start_as(&context.settings, NodeFacts::default()) {
                Ok(new) => {
                    for limit in new.limits() {
                        tracing::info!(proxy = new.mode().name(), "limit: {limit}");
                    }
                    proxy = Some(new);
                }
                Err(error) => {
                    runner.finished(started, Instant::now(), false);
                    let report = failure(problems.set(vec![error.to_string()]));
                    if context.reports.send(News::Services(report)).is_err() {
                        return;
                    }
                }
            }
        }
        let Some(proxy) = &mut proxy else { continue };
        // With its room: a list of everything may have passed.
        for message in std::mem::take(&mut backlog) {
            if state.take(proxy, changed, message) {
                runner.request();
            }
        }
        started = Instant::now();
        if !state.is_complete() || !runner.is_due(started) {
            continue;
        }
        let result = state.apply(proxy);
        let now = Instant::now();
        runner.finished(started, now, result.is_ok());
        state.tell_problems(proxy, &context.events);
        if let Some(ranges) = state.changed_ranges()
            && context
                .routes
                .send(routes::Message::ServiceRanges(ranges))
                .is_err()
        {
            return;
        }
        let succeeded = result.is_ok();
        let report = match result {
            Ok(stats) => {
                problems.set(Vec::new());
                state.count(&stats, now - started, context);
                Report {
                    in_force: true,
                    problems: Vec::new(),
                    elements: stats.elements,
                    health_checks: Wanted {
                        checks: proxy.table().health_checks(),
                        addresses: proxy.table().node_port_addresses().to_vec(),
                    },
                }
            }
            Err(error) => {
                context.metrics.sync_failures.inc();
                failure(problems.set(vec![error.to_string()]))
            }
        };
        if context.reports.send(News::Services(report)).is_err() {
            return;
        }
        if succeeded && std::mem::take(&mut after_lists) {
            linux::memory::give_back();
        }
    }
}

fn failure(problems: &[String]) -> Report {
    Report {
        in_force: false,
        problems: problems.to_vec(),
        elements: 0,
        health_checks: Wanted::default(),
    }
}

/// What has to be known before the first application.
struct State {
    services_synced: bool,
    slices_synced: bool,
    facts_known: bool,
    ranges: ServiceRanges,
    ranges_sent: Option<Vec<IpNet>>,
    /// Whether the next application is to look whether others changed something.
    audit: bool,
    /// What users were told of Services.
    told: BTreeMap<ServiceName, Vec<Problem>>,
    /// Changes taken up since the last application: of Services, of slices.
    taken: (i64, i64),
    /// What triggered them.
    triggers: Triggers,
}

impl State {
    fn new(known_ranges: Vec<IpNet>) -> State {
        State {
            services_synced: false,
            slices_synced: false,
            facts_known: false,
            ranges: ServiceRanges::new(known_ranges),
            ranges_sent: None,
            audit: false,
            told: BTreeMap::new(),
            taken: (0, 0),
            triggers: Triggers::since(Timestamp::now()),
        }
    }

    fn is_complete(&self) -> bool {
        self.services_synced && self.slices_synced && self.facts_known
    }

    /// When there is something to do without a message. Before everything is
    /// known only starting the proxy is tried again.
    fn due(&self, runner: &Runner, started: bool, now: Instant) -> Option<Instant> {
        if started && !self.is_complete() {
            return None;
        }
        runner.due(now)
    }

    /// Brings the kernel to what is known, and looks after it when that is due.
    fn apply(&mut self, proxy: &mut Proxy) -> Result<Stats, services::Error> {
        let stats = match std::mem::take(&mut self.audit) && proxy.table().is_clean() {
            true => proxy.audit()?,
            false => proxy.sync()?,
        };
        tracing::debug!(
            frontends = stats.frontends,
            elements = stats.elements,
            bytes = stats.bytes,
            full = stats.full,
            "Services applied"
        );
        for repaired in &stats.repaired {
            tracing::warn!("somebody else changed the rules of Services; put right: {repaired}");
        }
        Ok(stats)
    }

    /// Numbers of an application.
    fn count(&mut self, stats: &Stats, took: Duration, context: &Context) {
        let metrics = &context.metrics;
        context.status.lock().changes.done();
        metrics.synced(took, stats.full);
        let (services, slices) = std::mem::take(&mut self.taken);
        metrics.services_pending.dec_by(services);
        metrics.slices_pending.dec_by(slices);
        for seconds in self.triggers.in_force(Timestamp::now()) {
            metrics.programmed(seconds);
        }
        let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
        metrics.elements.inc_by(count(stats.elements));
        metrics.repairs.inc_by(count(stats.repaired.len()));
    }

    /// Tells users what of their Services is left out, once.
    fn tell_problems(&mut self, proxy: &mut Proxy, events: &Recorder) {
        for name in proxy.take_reports() {
            let problems = proxy.table().problems(&name);
            let told = self.told.get(&*name).map_or(&[][..], Vec::as_slice);
            for problem in problems.iter().filter(|problem| !told.contains(problem)) {
                events.warn(Warning {
                    about: About::service(&name),
                    reason: problem.reason(),
                    message: problem.to_string(),
                });
            }
            if problems.is_empty() {
                self.told.remove(&*name);
            } else {
                self.told.insert((*name).clone(), problems);
            }
        }
    }

    /// Takes up what has arrived. Returns whether something is to be applied.
    fn take(&mut self, proxy: &mut Proxy, changed: &Changed, message: Message) -> bool {
        match message {
            Message::Service(key) => {
                self.taken.0 += 1;
                // A message comes for each time that nothing waited.
                if let Some(now) = changed.services.take(&key) {
                    self.take_service(proxy, &key, now);
                }
            }
            Message::ServicesSynced => self.services_synced = true,
            Message::Slice(key) => {
                self.taken.1 += 1;
                if let Some(news) = changed.slices.take(&key) {
                    self.take_slice(proxy, key, news);
                }
            }
            Message::SlicesSynced => self.slices_synced = true,
            Message::Facts(facts) => {
                self.facts_known = true;
                proxy.facts_changed(with_local_addresses(*facts));
            }
            Message::LocalAddresses => {
                proxy.facts_changed(with_local_addresses(proxy.table().facts().clone()));
            }
            Message::Audit => self.audit = true,
            // Answered where it arrives.
            Message::Ask(..) => return false,
        }
        true
    }

    fn take_service(&mut self, proxy: &mut Proxy, key: &Key, now: Option<api::Service>) {
        match now {
            Some(service) => {
                for text in &service.spec.cluster_ips {
                    if let Some(address) = services::model::parse_address(text) {
                        self.ranges.insert(address);
                    }
                }
                proxy.service_changed(translate::service(service));
            }
            None => proxy.service_removed(&ServiceName::new(&*key.namespace, &*key.name)),
        }
    }

    fn take_slice(&mut self, proxy: &mut Proxy, key: Key, news: SliceNews) {
        let Some(slice) = news.now else {
            return self.remove_slice(proxy, &key);
        };
        let trigger = slice.last_change_trigger().map(ToOwned::to_owned);
        match (slice.address_type, translate::slice(slice)) {
            (AddressType::V4 | AddressType::V6, Some(slice)) => {
                if proxy.endpoint_slice_changed(&slice) {
                    if let Some(first) = news.first_trigger {
                        self.triggers.changed(key.clone(), Some(&first));
                    }
                    self.triggers.changed(key, trigger.as_deref());
                }
            }
            // Of names, or of no Service (any more).
            _ => self.remove_slice(proxy, &key),
        }
    }

    fn remove_slice(&mut self, proxy: &mut Proxy, key: &Key) {
        proxy.endpoint_slice_removed(&key.namespace, &key.name);
        self.triggers.removed(key);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_due_before_everything_is_known() {
        let mut runner = Runner::new(Pace::default());
        let mut state = State::new(Vec::new());
        let now = Instant::now();
        runner.request();
        assert_eq!(state.due(&runner, true, now), None);
        (
            state.services_synced,
            state.slices_synced,
            state.facts_known,
        ) = (true, true, true);
        assert_eq!(state.due(&runner, true, now), Some(now));
    }

    #[test]
    fn an_object_that_changes_again_while_it_waits_is_named_once_with_all_its_triggers() {
        let slice = |second: u32| -> api::EndpointSlice {
            let trigger = format!("2026-01-01T00:00:{second:02}Z");
            serde_json::from_value(serde_json::json!({
                "metadata": {"annotations": {
                    "endpoints.kubernetes.io/last-change-trigger-time": trigger,
                }},
                "addressType": "IPv4",
            }))
            .expect("a slice")
        };
        let changed = Changed::default();
        let key = Key::new("d", "a");
        let named = changed.slice(key.clone(), Some(slice(1)));
        assert!(matches!(named, Some(Message::Slice(named)) if named == key));
        for second in 2..=9 {
            assert!(changed.slice(key.clone(), Some(slice(second))).is_none());
        }
        let news = changed.slices.take(&key).expect("some wait");
        assert_eq!(news.first_trigger.as_deref(), Some("2026-01-01T00:00:01Z"));
        let now = news.now.expect("it is there");
        assert_eq!(now.last_change_trigger(), Some("2026-01-01T00:00:09Z"));
        assert!(changed.slice(key.clone(), None).is_some(), "named again");
        assert!(changed.service(key.clone(), None).is_some());
        assert!(changed.service(key, None).is_none());
    }

    #[test]
    fn a_proxy_that_could_not_start_is_tried_again() {
        let mut runner = Runner::new(Pace::default());
        let now = Instant::now();
        runner.finished(now, now, false);
        let state = State::new(Vec::new());
        assert!(state.due(&runner, false, now).is_some_and(|due| due > now));
    }
}
