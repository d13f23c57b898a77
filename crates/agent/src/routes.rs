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
use routing::model::{Name, RouteTable, default_metric};
use routing::{
    Backend, Basis, Changes, Family, Foreign, Kernel, NodeData, Plan, Planner, RouteKey, Settings,
    Underlay, choose, service_range,
};
use tokio::sync::mpsc::UnboundedSender;

use crate::admin::{Question, Refusal};
use crate::cluster::{self, Member};
use crate::culprits::Culprits;
use crate::fast_path;
use crate::options::{Attach, FastPath};
use crate::publish::{self, Told};
use crate::run::News;
use crate::silence::{self, Questions};
use crate::snapshot::Snapshot;
use crate::worker::{Problems, Retry, gather_until};
use crate::{flannel, forwarding};

/// What the thread is told.
#[derive(Debug)]
pub(crate) enum Message {
    /// Nodes changed.
    Nodes(cluster::Change),
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
    /// Somebody asks what routing has in the kernel.
    Snapshot(Question),
    /// Somebody asks for the forwarding tables.
    Forwarding(Question),
    /// What the fast path's thread has done.
    FastPath(fast_path::Done),
    /// Somebody asks what the fast path knows and has done.
    AskFastPath(Question),
}

/// Addresses of pods, by node.
pub(crate) type PodAddresses = BTreeMap<Name, Vec<IpAddr>>;

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
    /// This node's name.
    pub(crate) node: Name,
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
        let own = keeper.own.clone().filter(|_| due);
        if let Some(own) = &own {
            last = match keeper.apply(own) {
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
        if own.is_none() && !heard {
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
    /// This node, once it is known.
    own: Option<Arc<Member>>,
    /// What has changed of peers and was not taken up yet.
    changed: BTreeMap<Name, Option<Arc<Member>>>,
    planner: Planner,
    /// What of peers cannot be used, and why.
    unusable: BTreeMap<Name, Vec<String>>,
    /// The back ends of nodes that flannel looks after.
    of_flannel: BTreeMap<Name, Box<str>>,
    /// Absent until they are known.
    pods: Option<Arc<PodAddresses>>,
    /// Those the planner knows.
    planned_pods: Arc<PodAddresses>,
    service_ranges: Option<Vec<IpNet>>,
    /// As read; absent when it has to be read.
    underlay: Option<Underlay>,
    /// Names of the back ends in use.
    ways: Vec<Box<str>>,
    /// Names of those this kernel is known to be able to do.
    able: BTreeSet<&'static str>,
    /// What the planner's basis was made of.
    basis: Option<(Vec<&'static str>, Settings)>,
    /// Whether anything was applied yet.
    is_applied: bool,
    /// The next application looks at the kernel first.
    audit: bool,
    /// What was found changed and restored, and how often.
    restored: BTreeMap<String, u64>,
    /// Who removed routes.
    culprits: Culprits,
    /// With the last application: the largest packet of new pods in bytes, and how many
    /// requests were sent to the kernel until then.
    mtu: Option<u32>,
    requests: u64,
    fast: Fast,
    /// Routes of others that are in the way, as the fast path was told; `None` when it
    /// is to be told of all ways.
    foreign: Option<Vec<Foreign>>,
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
            foreign: None,
            fast_problems: Vec::new(),
            kernel,
            way,
            own: None,
            changed: BTreeMap::new(),
            planner: Planner::new(),
            unusable: BTreeMap::new(),
            of_flannel: BTreeMap::new(),
            pods: None,
            planned_pods: Arc::default(),
            service_ranges: None,
            underlay: None,
            ways: Vec::new(),
            able: BTreeSet::new(),
            basis: None,
            is_applied: false,
            audit: false,
            restored: BTreeMap::new(),
            culprits: Culprits::default(),
            mtu: None,
            requests: 0,
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
                self.foreign = None;
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
            Message::Nodes(change) => {
                self.own = change.own.or(self.own.take());
                self.changed.extend(change.peers);
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
            Message::Snapshot(question) => {
                question.answer(&self.snapshot());
                false
            }
            Message::Forwarding(question) => {
                let planner = &self.planner;
                let node_at = |address| Some((**planner.node_at(address)?).into());
                match forwarding::read(self.kernel.socket(), node_at) {
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
        let (plan, _) = self.planner.planned();
        let metric = route.metric;
        let wanted = plan.state.routes.contains_key(&RouteKey {
            table,
            destination: route.destination,
            metric: metric.unwrap_or_else(|| default_metric(&route.destination)),
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
    ) -> Result<Vec<Arc<dyn Backend>>, String> {
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
        underlay: &Underlay,
    ) -> Result<Vec<Arc<dyn Backend>>, routing::apply::Error> {
        let named = self.planner.told().named();
        let others = named.filter(|name| !ways.iter().any(|way| &**way == *name));
        let others: Vec<Box<str>> = others.map(Into::into).collect();
        // One that cannot be had here has nothing here either.
        let others: Vec<_> = others
            .iter()
            .filter_map(|name| self.make(name).ok().flatten())
            .collect();
        let (told, held) = (self.planner.told(), self.kernel.held()?);
        Ok(routing::leaving(others, own, told, underlay, held))
    }

    /// The back end of a name, once this kernel has shown that it can do it;
    /// none when it is of another version of podwire.
    fn backend(
        &mut self,
        name: &str,
        own: &routing::Node,
    ) -> Result<Option<Arc<dyn Backend>>, String> {
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
    fn make(&mut self, name: &str) -> Result<Option<Arc<dyn Backend>>, String> {
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

    /// Has the planner know what has changed of peers and of their pods.
    fn take_up(&mut self) {
        let pods = self.pods.clone().unwrap_or_default();
        let pods_of = |name: &Name| pods.get(name).map_or(&[][..], Vec::as_slice);
        for (name, peer) in std::mem::take(&mut self.changed) {
            self.unusable.remove(&name);
            self.of_flannel.remove(&name);
            let Some(peer) = peer else {
                self.planner.remove_peer(&name);
                continue;
            };
            self.planner
                .set_peer(peer.to_routing(&name, pods_of(&name)));
            if !peer.problems.is_empty() {
                self.unusable.insert(name.clone(), peer.problems.clone());
            }
            let way = peer.data.as_ref().and_then(|data| data.ways.first());
            if let Some(way) = way.filter(|_| peer.of_flannel) {
                self.of_flannel.insert(name, way.clone());
            }
        }
        if Arc::ptr_eq(&self.planned_pods, &pods) {
            return;
        }
        let names = self.planned_pods.keys().chain(pods.keys());
        let names: BTreeSet<&Name> = names
            .filter(|name| self.planned_pods.get(*name) != pods.get(*name))
            .collect();
        for name in names {
            if let Some(peer) = self.planner.peer(name) {
                let pods = pods_of(name).to_vec();
                let peer = routing::Node {
                    pods,
                    ..peer.clone()
                };
                self.planner.set_peer(peer);
            }
        }
        self.planned_pods = pods;
    }

    fn apply(&mut self, member: &Member) -> Result<Report, routing::apply::Error> {
        let reads = self.underlay.is_none() || self.audit || !self.kernel.is_known();
        let underlay = match self.underlay.take() {
            Some(underlay) => underlay,
            None => Underlay::read(self.kernel.socket())?,
        };
        self.restore()?;
        let mut problems = crate::settings::apply(&underlay, self.way.attach, self.way.timeouts);
        self.take_up();
        let mut ways = choose::ways(&self.way.configured, self.planner.told());
        let needs_pods = ways.iter().any(|way| NEED_PODS.contains(&&**way));
        if needs_pods && self.pods.is_none() {
            // What is there goes on meanwhile. Without routes to the pods there are,
            // or an answer to where this node's are, packets would be lost.
            let configured = &self.way.configured;
            if !self.is_applied || configured.iter().any(|way| NEED_PODS.contains(way)) {
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
        let own_pods = self.planned_pods.get(&self.way.node);
        let own_pods = own_pods.map_or(&[][..], Vec::as_slice);
        let own = member.to_routing(&self.way.node, own_pods);
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
        problems.extend(member.problems.iter().cloned());
        problems.extend(self.unusable.values().flatten().cloned());
        let leaving = self.leaving(&ways, &own, &underlay)?;
        let mut unrouted = Vec::new();
        for range in self.service_ranges.iter().flatten() {
            if !self.kernel.is_routed_by_others(range)? {
                unrouted.push(*range);
            }
        }
        let primary = member.primary_addresses();
        let data = routing::backend::publish(&backends, &own, &underlay);
        self.set_basis(Basis {
            backends,
            leaving,
            own,
            further: service_range::routes(&unrouted, &primary, &underlay.subnets),
            underlay,
        });
        self.planner.plan(self.kernel.held()?);
        let (plan, changes) = self.planner.planned();
        let underlay = &self.planner.basis().underlay;
        let own = &self.planner.basis().own;
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
        if let Some(fast) = self.fast.keeper() {
            let told = self.foreign.is_some();
            fast.leave(&fast_ways(fast, plan, changes, told, &[], underlay));
        }
        let outcome = self.kernel.apply_changes(&plan.state, changes)?;
        if outcome.changed > 0 {
            tracing::info!(
                changed = outcome.changed,
                routes = plan.state.routes.len(),
                "routes applied"
            );
        }
        // The underlay is read before the rest: of what came in between, the rest knows
        // already when its notification comes, and it would be no news.
        if reads && Underlay::read(self.kernel.socket())? != *underlay {
            return self.apply(member);
        }
        problems.extend(outcome.failures.iter().map(ToString::to_string));
        problems.extend(outcome.foreign.iter().map(ToString::to_string));
        if let Some(fast) = self.fast.keeper() {
            match fast.settle() {
                Ok(()) => {
                    let told = self.foreign.as_ref() == Some(&outcome.foreign);
                    let ways = fast_ways(fast, plan, changes, told, &outcome.foreign, underlay);
                    fast.set_ways(ways);
                    self.foreign = Some(outcome.foreign);
                }
                Err(error) => {
                    problems.push(format!("fast path: {error}"));
                    fast.set_ways(fast.all(fast_path::Ways::new()));
                    self.foreign = None;
                }
            }
        }
        let refused: BTreeSet<IpNet> = plan
            .refusals
            .iter()
            // This node's own come first.
            .take_while(|refusal| refusal.node == own.name)
            .map(|refusal| refusal.range)
            .collect();
        let mut told = flannel::tell(member, self.of_flannel.values(), &data);
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
                .filter(|range| !refused.contains(range))
                .collect(),
            routes: plan.state.routes.len(),
            data: Some(told),
            needs_pods,
            in_force: outcome.failures.is_empty(),
            complete: self.service_ranges.is_some(),
            problems,
        };
        self.ask_peers(Instant::now());
        self.planner.took_up();
        self.is_applied = true;
        self.mtu = report.mtu;
        self.requests = self.kernel.requests_sent();
        self.underlay = Some(self.planner.basis().underlay.clone());
        Ok(report)
    }

    /// Has all planned anew if what all plans depend on is another than before.
    fn set_basis(&mut self, basis: Basis) {
        let backends = basis.backends.iter().map(|backend| backend.name());
        // Of two lists with the same names in a row the second begins elsewhere.
        let names = backends.chain(["leaving"]);
        let names = names.chain(basis.leaving.iter().map(|backend| backend.name()));
        let made_of = Some((names.collect(), self.way.settings.clone()));
        let known = self.planner.basis();
        let is_same = self.basis == made_of
            && known.own == basis.own
            && known.underlay == basis.underlay
            && known.further == basis.further;
        if !is_same {
            self.basis = made_of;
            self.planner.set_basis(basis);
        }
    }

    /// Has those peers asked that are to be asked whether they are there.
    fn ask_peers(&mut self, now: Instant) {
        let (plan, changes) = self.planner.planned();
        let ethernet = silence::Ethernet::of(plan, &self.planner.basis().underlay);
        let nodes: Vec<Name> = match (&ethernet, changes.everything) {
            (None, _) => self.questions.peers().cloned().collect(),
            (Some(_), false) => changes.nodes.iter().cloned().collect(),
            (Some(_), true) => {
                let peers = self.planner.peers().map(|peer| &peer.name);
                peers.chain(self.questions.peers()).cloned().collect()
            }
        };
        let is_there = ethernet.is_some();
        self.questions.set_ethernet(ethernet, now);
        for name in nodes {
            let peer = self.planner.peer(&name).filter(|_| is_there);
            let address = peer.and_then(|peer| silence::address(plan, peer));
            self.questions.set_peer(&name, address, now);
        }
    }

    /// Before it is planned anew: names, once, what others did to what was applied. That
    /// is restored with what is applied next.
    fn restore(&mut self) -> Result<(), routing::apply::Error> {
        if !std::mem::take(&mut self.audit) {
            return Ok(());
        }
        self.kernel.invalidate();
        let (plan, changes) = self.planner.planned();
        // What was never applied is not what others changed.
        if !self.is_applied || *changes != Changes::default() {
            return Ok(());
        }
        for line in self.kernel.difference(&plan.state)?.lines() {
            let times = self.restored.entry(line.clone()).or_default();
            *times += 1;
            // Somebody who does it again and again is named once.
            if *times == 1 {
                tracing::warn!("changed by somebody else and restored: {line}");
            } else {
                tracing::debug!("changed again ({times} times) and restored: {line}");
            }
        }
        Ok(())
    }

    fn snapshot(&self) -> Snapshot {
        let (plan, _) = self.planner.planned();
        if !self.is_applied {
            return Snapshot::default();
        }
        Snapshot {
            backends: self.ways.clone(),
            mtu: self.mtu,
            requests: self.requests,
            restored: self.restored.clone(),
            culprits: self.culprits.found().clone(),
            ..Snapshot::new(plan)
        }
    }
}

/// The ways to peers' pods that may be others than the fast path knows. It has been
/// `told` of all before: what changes since says which.
fn fast_ways(
    fast: &fast_path::Keeper,
    plan: &Plan,
    changes: &Changes,
    told: bool,
    foreign: &[Foreign],
    underlay: &Underlay,
) -> fast_path::ChangedWays {
    if told && !changes.everything {
        routing::ways::changed_ways(plan, changes, foreign, underlay)
    } else {
        fast.all(routing::ways::ways(plan, foreign, underlay))
    }
}

fn text(data: &NodeData) -> String {
    serde_json::to_string(data).expect("names, numbers and addresses are JSON")
}
