//! The thread that keeps routes and kernel settings.

use std::sync::Arc;
use std::sync::mpsc::Receiver;

use ipnet::IpNet;
use linux::events::Event;
use routing::{Backend, HostGateway, Kernel, Underlay, service_range};
use tokio::sync::mpsc::UnboundedSender;

use crate::cluster::Cluster;
use crate::options::Attach;
use crate::run::News;
use crate::worker::{Problems, Retry, gather};

/// What the thread is told.
#[derive(Debug)]
pub(crate) enum Message {
    /// The nodes changed.
    Cluster(Arc<Cluster>),
    /// Where Services are changed.
    ServiceRanges(Vec<IpNet>),
    /// The kernel changed.
    Kernel(Vec<Event>),
}

/// How things stand after an application.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Report {
    /// What pods may send at most, bytes; `None` when no interface is up.
    pub(crate) mtu: Option<u32>,
    /// This node's ranges that can be given to pods.
    pub(crate) ranges: Vec<IpNet>,
    /// Routes wanted.
    pub(crate) routes: usize,
    /// Whether the kernel holds all of them.
    pub(crate) in_force: bool,
    /// Whether it was known where Services are, so that their routes were among them.
    pub(crate) complete: bool,
    /// What is not as it should be.
    pub(crate) problems: Vec<String>,
}

/// Runs until nobody can send it anything any more.
pub(crate) fn run(
    mut kernel: Kernel,
    attach: Attach,
    inbox: &Receiver<Message>,
    reports: &UnboundedSender<News>,
) {
    let backends: [Box<dyn Backend>; 1] = [Box::new(HostGateway)];
    let mut state = State::default();
    let mut retry = Retry::default();
    let mut problems = Problems::default();
    for backend in &backends {
        tracing::debug!("routes: {}, owning {}", backend.name(), backend.owns());
    }
    while let Some(messages) = gather(inbox, &retry) {
        let mut due = retry.is_due();
        for message in messages {
            due |= state.take(message, &mut kernel);
        }
        let Some(cluster) = state.cluster.clone().filter(|_| due) else {
            continue;
        };
        let report = match apply(&mut state, &mut kernel, &backends, &cluster, attach) {
            Ok(report) => report,
            Err(error) => Report {
                mtu: None,
                ranges: Vec::new(),
                routes: 0,
                in_force: false,
                complete: false,
                problems: vec![error.to_string()],
            },
        };
        problems.set(report.problems.clone());
        if report.in_force {
            retry.succeeded();
        } else {
            retry.failed();
        }
        if reports.send(News::Routes(report)).is_err() {
            return;
        }
    }
}

#[derive(Default)]
struct State {
    cluster: Option<Arc<Cluster>>,
    service_ranges: Option<Vec<IpNet>>,
    /// As read; absent when it has to be read.
    underlay: Option<Underlay>,
}

impl State {
    /// Returns whether there is something to do.
    fn take(&mut self, message: Message, kernel: &mut Kernel) -> bool {
        match message {
            Message::Cluster(cluster) => {
                self.cluster = Some(cluster);
                true
            }
            Message::ServiceRanges(ranges) => {
                let before = self.service_ranges.replace(ranges);
                before != self.service_ranges
            }
            Message::Kernel(events) => {
                // Each must be noticed: no short circuit.
                let concerning = events.iter().filter(|event| kernel.notice(event)).count();
                if concerning > 0 {
                    self.underlay = None;
                }
                concerning > 0
            }
        }
    }
}

fn apply(
    state: &mut State,
    kernel: &mut Kernel,
    backends: &[Box<dyn Backend>],
    cluster: &Cluster,
    attach: Attach,
) -> Result<Report, routing::apply::Error> {
    let underlay = match state.underlay.take() {
        Some(underlay) => underlay,
        None => Underlay::read(kernel.socket())?,
    };
    let mut problems = crate::settings::apply(&underlay, attach);
    let own = cluster.own.to_routing("");
    problems.extend(cluster.own.problems.iter().cloned());
    let peers: Vec<routing::Node> = cluster
        .peers
        .iter()
        .map(|(name, peer)| peer.to_routing(name))
        .collect();
    problems.extend(
        cluster
            .peers
            .values()
            .flat_map(|peer| peer.problems.iter().cloned()),
    );
    let mut plan = routing::plan(backends, &own, &peers, &underlay);
    problems.extend(plan.refusals.iter().map(|refusal| match &*refusal.node {
        "" => format!("this node's own range cannot be used: {refusal}"),
        _ => refusal.to_string(),
    }));
    let mut unrouted = Vec::new();
    for range in state.service_ranges.iter().flatten() {
        if !kernel.is_routed_by_others(range)? {
            unrouted.push(*range);
        }
    }
    let primary = cluster.own.primary_addresses();
    plan.state.routes.extend(service_range::routes(
        &unrouted,
        &primary,
        &underlay.subnets,
    ));
    let outcome = kernel.apply(&plan.state)?;
    if outcome.changed > 0 {
        tracing::info!(
            changed = outcome.changed,
            routes = plan.state.routes.len(),
            "routes applied"
        );
    }
    problems.extend(outcome.failures.iter().map(ToString::to_string));
    problems.extend(outcome.foreign.iter().map(ToString::to_string));
    let refused = |range: &IpNet| {
        plan.refusals
            .iter()
            .any(|refusal| refusal.node.is_empty() && refusal.range == *range)
    };
    let report = Report {
        // Pods have one MTU for both families, and a node without addresses of
        // its own still has interfaces.
        mtu: [plan.mtu.v4, plan.mtu.v6]
            .into_iter()
            .flatten()
            .min()
            .or_else(|| underlay.mtu(&primary)),
        ranges: own
            .ranges
            .iter()
            .copied()
            .filter(|range| !refused(range))
            .collect(),
        routes: plan.state.routes.len(),
        in_force: outcome.failures.is_empty(),
        complete: state.service_ranges.is_some(),
        problems,
    };
    state.underlay = Some(underlay);
    Ok(report)
}
