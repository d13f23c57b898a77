//! The thread that keeps what carries packets between nodes, and kernel settings.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use std::time::Instant;

use ipnet::IpNet;
use linux::events::Event;
use routing::backend::{Families, Wireguard};
use routing::model::{RouteTable, default_metric};
use routing::{
    Backend, Family, Kernel, NodeData, Plan, RouteKey, Settings, State, Underlay, choose,
    service_range,
};
use tokio::sync::mpsc::UnboundedSender;

use crate::admin::{Question, Refusal};
use crate::cluster::Cluster;
use crate::culprits::Culprits;
use crate::fast_path;
use crate::options::{Attach, FastPath};
use crate::publish::{self, Told};
use crate::run::News;
use crate::silence::{self, Questions};
use crate::snapshot::{Applied, Snapshots};
use crate::worker::{Problems, Retry, gather_until};
use crate::{flannel, forwarding};

/// What the thread is told.
#[derive(Debug)]
pub(crate) enum Message {
    /// The nodes changed.
    Cluster(Arc<Cluster>),
    /// Where Services are changed.
    ServiceRanges(Vec<IpNet>),
    /// The pods of the cluster changed; only some back ends ask for them.
    Pods(Arc<PodAddresses>),
    /// The kernel changed.
    Kernel(Vec<Event>),
    /// It is time to compare the kernel with what was written.
    Audit,
    /// It is time for a new WireGuard key.
    Rotate,
    /// Somebody asks for the forwarding tables.
    Forwarding(Question),
    /// What the fast path's thread has done.
    FastPath(fast_path::Done),
    /// Somebody asks what the fast path knows and has done.
    AskFastPath(Question),
}

/// Addresses of pods, by node.
pub(crate) type PodAddresses = BTreeMap<Box<str>, Vec<IpAddr>>;

/// Back ends that have to know the cluster's pods.
const NEED_PODS: [&str; 2] = ["static", "vxlan-multicast"];

/// How packets are to be carried.
#[derive(Clone, Debug)]
pub(crate) struct Way {
    /// Names of the back ends wanted, the preferred one first.
    pub(crate) configured: Vec<&'static str>,
    /// Their settings; those of wireguard are made of the following.
    pub(crate) settings: Settings,
    /// File of this node's WireGuard key.
    pub(crate) wireguard_key: PathBuf,
    /// UDP port of WireGuard.
    pub(crate) wireguard_port: u16,
    /// How pods are attached.
    pub(crate) attach: Attach,
    /// Whether established connections take the fast path.
    pub(crate) fast_path: FastPath,
    /// For how long conntrack keeps TCP connections.
    pub(crate) timeouts: crate::settings::Timeouts,
}

/// How things stand after an application.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Report {
    /// What pods may send at most, bytes; `None` when no interface is up.
    pub(crate) mtu: Option<u32>,
    /// This node's ranges that can be given to pods.
    pub(crate) ranges: Vec<IpNet>,
    /// Routes wanted.
    pub(crate) routes: usize,
    /// What peers have to know of this node.
    pub(crate) data: Option<Told>,
    /// Whether the pods of other nodes have to be known.
    pub(crate) needs_pods: bool,
    /// Whether the kernel holds all that is wanted.
    pub(crate) in_force: bool,
    /// Whether it was known where Services are, so that their routes were among them.
    pub(crate) complete: bool,
    /// What is not as it should be.
    pub(crate) problems: Vec<String>,
}

/// Runs until nobody can send it anything any more. `jobs` is for the thread of
/// the fast path, if there is to be one.
pub(crate) fn run(
    kernel: Kernel,
    way: Way,
    jobs: Option<Sender<fast_path::Job>>,
    inbox: &Receiver<Message>,
    reports: &UnboundedSender<News>,
    snapshots: &Snapshots,
) {
    let mut keeper = Keeper::new(kernel, way, jobs);
    let mut retry = Retry::default();
    let mut problems = Problems::default();
    let mut last = Report::default();
    loop {
        let fast = keeper.fast.keeper().and_then(|fast| fast.due());
        let next = [retry.due(), keeper.questions.due(), fast];
        let Some(messages) = gather_until(inbox, next.into_iter().flatten().min()) else {
            return;
        };
        let mut due = retry.is_due();
        for message in messages {
            due |= keeper.take(message);
        }
        let cluster = keeper.cluster.clone().filter(|_| due);
        if let Some(cluster) = &cluster {
            last = match keeper.apply(cluster, snapshots) {
                Ok(report) => report,
                Err(error) => Report {
                    problems: vec![error.to_string()],
                    ..Report::default()
                },
            };
            if last.in_force {
                retry.succeeded();
            } else {
                retry.failed();
            }
        }
        // What an application has not done: pods come and go more often.
        keeper.update_fast_path();
        let heard = keeper.listen();
        if cluster.is_none() && !heard {
            continue;
        }
        let mut report = last.clone();
        report.problems.extend(keeper.questions.problem());
        report.problems.extend(keeper.fast_problems.iter().cloned());
        problems.set(report.problems.clone());
        if reports.send(News::Routes(report)).is_err() {
            return;
        }
    }
}

/// The fast path.
enum Fast {
    /// There is none, with the reason.
    None(String),
    /// The thread that takes the jobs is about to say whether it can be had.
    Starting(Sender<fast_path::Job>),
    /// It is there.
    Kept(Box<fast_path::Keeper>),
}

impl Fast {
    fn keeper(&mut self) -> Option<&mut fast_path::Keeper> {
        match self {
            Fast::Kept(keeper) => Some(keeper),
            Fast::None(_) | Fast::Starting(_) => None,
        }
    }
}

struct Keeper {
    kernel: Kernel,
    way: Way,
    cluster: Option<Arc<Cluster>>,
    /// Absent until they are known.
    pods: Option<Arc<PodAddresses>>,
    service_ranges: Option<Vec<IpNet>>,
    /// As read; absent when it has to be read.
    underlay: Option<Underlay>,
    /// Names of the back ends in use.
    ways: Vec<Box<str>>,
    /// Names of those this kernel is known to be able to do.
    able: BTreeSet<&'static str>,
    /// What is to be in force, as far as it was applied.
    applied: Option<Arc<Plan>>,
    /// The next application looks at the kernel first.
    audit: bool,
    /// What was found changed and restored, and how often.
    restored: BTreeMap<String, u64>,
    /// Who removed routes.
    culprits: Culprits,
    fast: Fast,
    /// What is not as it should be there.
    fast_problems: Vec<String>,
    /// Peers that are asked whether they are there.
    questions: Questions,
    /// Whether what is to be reported of them has changed.
    heard: bool,
}

impl Keeper {
    fn new(kernel: Kernel, way: Way, jobs: Option<Sender<fast_path::Job>>) -> Keeper {
        let off = || Fast::None("it is switched off".to_owned());
        Keeper {
            fast: jobs.map_or_else(off, Fast::Starting),
            fast_problems: Vec::new(),
            kernel,
            way,
            cluster: None,
            pods: None,
            service_ranges: None,
            underlay: None,
            ways: Vec::new(),
            able: BTreeSet::new(),
            applied: None,
            audit: false,
            restored: BTreeMap::new(),
            culprits: Culprits::default(),
            questions: Questions::default(),
            heard: false,
        }
    }

    /// Makes the fast path know the pods there are.
    fn update_fast_path(&mut self) {
        let Some(fast) = self.fast.keeper() else {
            return;
        };
        let problems = match fast.apply(self.kernel.socket()) {
            Ok(problems) => problems,
            Err(error) => vec![format!("fast path: {error}")],
        };
        self.heard |= problems != self.fast_problems;
        self.fast_problems = problems;
    }

    fn fast_path_report(&self) -> Result<fast_path::Report, linux::fast_path::Error> {
        let mut report = match &self.fast {
            Fast::Kept(fast) => fast.report()?,
            Fast::Starting(_) => fast_path::Report::starting(),
            Fast::None(why) => fast_path::Report::without(why),
        };
        report.problems.clone_from(&self.fast_problems);
        Ok(report)
    }

    /// Takes notice of what the fast path's thread has done. Returns whether there is
    /// something to do: one that has just started knows nothing.
    fn take_fast_path(&mut self, done: fast_path::Done) -> bool {
        match (done, &mut self.fast) {
            (fast_path::Done::Started(Ok(fast)), Fast::Starting(jobs)) => {
                let yields = self.way.fast_path == FastPath::Auto;
                let keeper = fast_path::Keeper::new(fast, jobs.clone(), yields);
                self.fast = Fast::Kept(Box::new(keeper));
                return true;
            }
            (fast_path::Done::Started(Err(error)), _) => {
                let why = format!("no fast path, packets of pods take the IP stack: {error}");
                tracing::info!("{why}");
                if self.way.fast_path == FastPath::Ebpf {
                    self.fast_problems = vec![why.clone()];
                    self.heard = true;
                }
                self.fast = Fast::None(why);
            }
            (done, Fast::Kept(fast)) => fast.done(done),
            (_, Fast::None(_) | Fast::Starting(_)) => {}
        }
        false
    }

    /// Asks the peers it is time to ask. Returns whether what is to be reported
    /// of them has changed.
    fn listen(&mut self) -> bool {
        match self.questions.ask(&mut self.kernel, Instant::now()) {
            Ok(news) => self.heard |= news,
            Err(error) => tracing::warn!("cannot ask whether peers are there: {error}"),
        }
        std::mem::take(&mut self.heard)
    }

    /// Returns whether there is something to do.
    fn take(&mut self, message: Message) -> bool {
        match message {
            Message::Cluster(cluster) => {
                self.cluster = Some(cluster);
                true
            }
            Message::ServiceRanges(ranges) => {
                let before = self.service_ranges.replace(ranges);
                before != self.service_ranges
            }
            Message::Pods(pods) => {
                let changed = self.pods.as_ref() != Some(&pods);
                self.pods = Some(pods);
                changed
            }
            Message::Kernel(events) => {
                for event in &events {
                    self.blame(event);
                    self.heard |= self.questions.notice(event);
                    if let Some(fast) = self.fast.keeper() {
                        fast.notice(event);
                    }
                }
                // Each must be noticed: no short circuit.
                let concerning = events
                    .iter()
                    .filter(|event| self.kernel.notice(event))
                    .count();
                if concerning > 0 {
                    self.underlay = None;
                    self.audit = true;
                }
                concerning > 0
            }
            Message::FastPath(done) => self.take_fast_path(done),
            Message::Audit => {
                self.audit = true;
                self.questions.ask_anew(Instant::now());
                true
            }
            Message::Forwarding(question) => {
                let cluster = self.cluster.as_deref();
                match forwarding::read(self.kernel.socket(), cluster) {
                    Ok(entries) => question.answer(&entries),
                    Err(error) => question.refuse(Refusal::Failed(error.to_string())),
                }
                false
            }
            Message::AskFastPath(question) => {
                match self.fast_path_report() {
                    Ok(report) => question.answer(&report),
                    Err(error) => question.refuse(Refusal::Failed(error.to_string())),
                }
                false
            }
            Message::Rotate => match routing::keys::rotate(&self.way.wireguard_key) {
                Ok(_) => {
                    tracing::info!("took a new WireGuard key");
                    self.way.settings.wireguard = None;
                    true
                }
                Err(error) => {
                    tracing::error!("{error}; the old WireGuard key stays");
                    false
                }
            },
        }
    }

    /// Notes who removed a route that is to be there.
    fn blame(&mut self, event: &Event) {
        let Event::RouteGone(route, port) = event else {
            return;
        };
        let Some(table) = RouteTable::of(route.table) else {
            return;
        };
        let wanted = self.applied.as_ref().is_some_and(|applied| {
            let metric = route.metric;
            applied.state.routes.contains_key(&RouteKey {
                table,
                destination: route.destination,
                metric: metric.unwrap_or_else(|| default_metric(&route.destination)),
            })
        });
        let of_ours = route.protocol == linux::PODWIRE_ROUTE_PROTOCOL;
        // Without a number it went with its interface.
        if wanted && of_ours && *port != 0 && *port != self.kernel.socket().port() {
            self.culprits.removed(*port, &route.destination);
        }
    }

    /// The back ends this node has now: those it is told to have, and those
    /// peers prefer that have none of them yet.
    ///
    /// # Errors
    /// Why this node cannot do what it is told. Peers' ways it cannot do are
    /// left out, and the reason is among `problems`.
    fn backends(
        &mut self,
        ways: &[Box<str>],
        own: &routing::Node,
        problems: &mut Vec<String>,
    ) -> Result<Vec<Box<dyn Backend>>, String> {
        let mut backends = Vec::new();
        for name in ways {
            match self.backend(name, own) {
                Ok(backend) => backends.extend(backend),
                Err(why) if self.way.configured.contains(&&**name) => return Err(why),
                Err(why) => problems.push(format!("{why}; some peers prefer it")),
            }
        }
        let names: Vec<Box<str>> = backends.iter().map(|b| b.name().into()).collect();
        if names != self.ways {
            for backend in &backends {
                tracing::info!("back end {}: owns {}", backend.name(), backend.about().owns);
            }
            self.ways = names;
        }
        Ok(backends)
    }

    /// Back ends that are no longer this node's, by which peers may still send to it.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    fn leaving(
        &mut self,
        ways: &[Box<str>],
        own: &routing::Node,
        peers: &[routing::Node],
        underlay: &Underlay,
    ) -> Result<Vec<Box<dyn Backend>>, routing::apply::Error> {
        let told = peers.iter().filter_map(|peer| peer.data.as_ref());
        let named: BTreeSet<&str> = told.flat_map(|data| &data.ways).map(|way| &**way).collect();
        let others = named
            .into_iter()
            .filter(|name| !ways.iter().any(|way| &**way == *name));
        // One that cannot be had here has nothing here either.
        let others: Vec<_> = others
            .filter_map(|name| self.make(name).ok().flatten())
            .collect();
        let held = self.kernel.held()?;
        Ok(routing::leaving(others, own, peers, underlay, held))
    }

    /// The back end of a name, once this kernel has shown that it can do it;
    /// none when it is of another version of podwire.
    fn backend(
        &mut self,
        name: &str,
        own: &routing::Node,
    ) -> Result<Option<Box<dyn Backend>>, String> {
        let Some(backend) = self.make(name)? else {
            return Ok(None);
        };
        let known = backend.name();
        if self.able.contains(known) {
            return Ok(Some(backend));
        }
        routing::probe::probe(backend, Families::of(own)).map_err(|error| error.to_string())?;
        self.able.insert(known);
        self.make(name)
    }

    /// The back end of a name with this node's settings.
    fn make(&mut self, name: &str) -> Result<Option<Box<dyn Backend>>, String> {
        if name == "wireguard" && self.way.settings.wireguard.is_none() {
            let key = routing::keys::load_or_make(&self.way.wireguard_key);
            let key = key.map_err(|error| error.to_string())?;
            let public_key = routing::keys::public_key(&key).map_err(|error| error.to_string())?;
            self.way.settings.wireguard = Some(Wireguard {
                private_key: key,
                public_key,
                port: self.way.wireguard_port,
            });
        }
        Ok(routing::backend::by_name(name, &self.way.settings))
    }

    fn apply(
        &mut self,
        cluster: &Cluster,
        snapshots: &Snapshots,
    ) -> Result<Report, routing::apply::Error> {
        let reads = self.underlay.is_none() || self.audit || !self.kernel.is_known();
        let underlay = match self.underlay.take() {
            Some(underlay) => underlay,
            None => Underlay::read(self.kernel.socket())?,
        };
        let mut problems = crate::settings::apply(&underlay, self.way.attach, self.way.timeouts);
        let told = cluster.peers.values().filter_map(|peer| peer.data.as_ref());
        let mut ways = choose::ways(&self.way.configured, told);
        let needs_pods = ways.iter().any(|way| NEED_PODS.contains(&&**way));
        if needs_pods && self.pods.is_none() {
            // What is there goes on meanwhile. Without routes to the pods there are,
            // or an answer to where this node's are, packets would be lost.
            let configured = &self.way.configured;
            if self.applied.is_none() || configured.iter().any(|way| NEED_PODS.contains(way)) {
                problems.push("waiting to be told of the cluster's pods".to_owned());
                self.underlay = Some(underlay);
                return Ok(Report {
                    needs_pods,
                    problems,
                    ..Report::default()
                });
            }
            ways.retain(|way| !NEED_PODS.contains(&&**way));
        }
        let pods = self.pods.clone().unwrap_or_default();
        let own_pods = pods.get(&cluster.own_name);
        let own_pods = own_pods.map_or(&[][..], Vec::as_slice);
        let own = cluster.own.to_routing(&cluster.own_name, own_pods);
        let backends = match self.backends(&ways, &own, &mut problems) {
            Ok(backends) => backends,
            Err(problem) => {
                problems.push(problem);
                self.underlay = Some(underlay);
                return Ok(Report {
                    problems,
                    ..Report::default()
                });
            }
        };
        problems.extend(cluster.own.problems.iter().cloned());
        let peers: Vec<routing::Node> = cluster
            .peers
            .iter()
            .map(|(name, peer)| {
                let pods = pods.get(name).map_or(&[][..], Vec::as_slice);
                peer.to_routing(name, pods)
            })
            .collect();
        problems.extend(
            cluster
                .peers
                .values()
                .flat_map(|peer| peer.problems.iter().cloned()),
        );
        let leaving = self.leaving(&ways, &own, &peers, &underlay)?;
        let held = self.kernel.held()?;
        let mut plan = routing::plan_leaving(&backends, &leaving, &own, &peers, &underlay, held);
        problems.extend(plan.refusals.iter().map(|refusal| {
            if refusal.node == own.name {
                format!("this node's own range cannot be used: {refusal}")
            } else {
                refusal.to_string()
            }
        }));
        problems.extend(
            plan.unusable
                .iter()
                .map(|(name, reason)| format!("the back end {name} cannot be used here: {reason}")),
        );
        let mut unrouted = Vec::new();
        for range in self.service_ranges.iter().flatten() {
            if !self.kernel.is_routed_by_others(range)? {
                unrouted.push(*range);
            }
        }
        let primary = cluster.own.primary_addresses();
        plan.state.routes.extend(service_range::routes(
            &unrouted,
            &primary,
            &underlay.subnets,
        ));
        let mut ways = fast_path::Ways::new();
        if let Some(fast) = self.fast.keeper() {
            ways = routing::ways::ways(&plan, &[], &underlay);
            fast.leave(&ways);
        }
        let outcome = self.carry_out(&plan.state)?;
        // The underlay is read before the rest: of what came in between, the rest knows
        // already when its notification comes, and it would be no news.
        if reads && Underlay::read(self.kernel.socket())? != underlay {
            return self.apply(cluster, snapshots);
        }
        problems.extend(outcome.failures.iter().map(ToString::to_string));
        problems.extend(outcome.foreign.iter().map(ToString::to_string));
        if let Some(fast) = self.fast.keeper() {
            if !outcome.foreign.is_empty() {
                ways = routing::ways::ways(&plan, &outcome.foreign, &underlay);
            }
            if let Err(error) = fast.settle() {
                problems.push(format!("fast path: {error}"));
                ways.clear();
            }
            fast.set_ways(ways);
        }
        let refused = |range: &IpNet| {
            plan.refusals
                .iter()
                .any(|refusal| refusal.node == own.name && refusal.range == *range)
        };
        let data = routing::backend::publish(&backends, &own, &underlay);
        let mut told = flannel::tell(cluster, &data);
        told.insert(publish::ROUTING.to_owned(), text(&data));
        let report = Report {
            // Pods have one MTU for both families, and a node without addresses
            // of its own still has interfaces.
            mtu: Family::BOTH
                .into_iter()
                .filter_map(|family| plan.mtu.get(family))
                .min()
                .or_else(|| underlay.mtu(&primary)),
            ranges: own
                .ranges
                .iter()
                .copied()
                .filter(|range| !refused(range))
                .collect(),
            routes: plan.state.routes.len(),
            data: Some(told),
            needs_pods,
            in_force: outcome.failures.is_empty(),
            complete: self.service_ranges.is_some(),
            problems,
        };
        self.questions.set(
            silence::Ethernet::of(&plan, &underlay),
            &silence::addresses(&plan, &peers),
            Instant::now(),
        );
        let plan = Arc::new(plan);
        snapshots.set(Applied {
            backends: self.ways.clone(),
            plan: plan.clone(),
            mtu: report.mtu,
            requests: self.kernel.requests_sent(),
            restored: self.restored.clone(),
            culprits: self.culprits.found().clone(),
        });
        self.applied = Some(plan);
        self.underlay = Some(underlay);
        Ok(report)
    }

    /// Makes the kernel hold a state. What others did to what was applied
    /// before is named, once, when it is restored.
    fn carry_out(
        &mut self,
        wanted: &State,
    ) -> Result<routing::apply::Outcome, routing::apply::Error> {
        if std::mem::take(&mut self.audit)
            && let Some(applied) = &self.applied
        {
            self.kernel.invalidate();
            for line in self.kernel.difference(&applied.state)?.lines() {
                let times = self.restored.entry(line.clone()).or_default();
                *times += 1;
                // Somebody who does it again and again is named once.
                if *times == 1 {
                    tracing::warn!("changed by somebody else and restored: {line}");
                } else {
                    tracing::debug!("changed again ({times} times) and restored: {line}");
                }
            }
        }
        let outcome = self.kernel.apply(wanted)?;
        if outcome.changed > 0 {
            tracing::info!(
                changed = outcome.changed,
                routes = wanted.routes.len(),
                "routes applied"
            );
        }
        Ok(outcome)
    }
}

fn text(data: &NodeData) -> String {
    serde_json::to_string(data).expect("names, numbers and addresses are JSON")
}
