//! Which endpoints of a Service port are used, and why others are not. The rules
//! are those of kube-proxy (`pkg/proxy/topology.go` and its tests). Pure.

use serde::Serialize;

use crate::model::Backend;

/// What an endpoint of a slice comes to on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct State {
    /// Takes new connections.
    pub ready: bool,
    /// Answers, be it ending or not.
    pub serving: bool,
    /// Is being deleted.
    pub terminating: bool,
    /// Runs on this node.
    pub local: bool,
    /// Whether its zone hints name this node's zone.
    pub zone_hint: Hint,
    /// Whether its node hints name this node.
    pub node_hint: Hint,
}

/// Whom a hint of an endpoint is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Hint {
    /// It has none.
    Absent,
    /// Others.
    Elsewhere,
    /// This node, or its zone.
    Here,
}

/// Why an endpoint gets no new connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Excluded {
    /// It is not ready (and does not end).
    NotReady,
    /// It ends; while others are ready, or because it has ceased to serve.
    Terminating,
    /// It is not on this node, and the policy is `Local`.
    NotLocal,
    /// Its hints are for other nodes.
    OtherNode,
    /// Its hints are for other zones.
    OtherZone,
}

impl Excluded {
    /// For people.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::NotReady => "not ready",
            Self::Terminating => "terminating",
            Self::NotLocal => "not on this node",
            Self::OtherNode => "meant for other nodes",
            Self::OtherZone => "meant for other zones",
        }
    }
}

/// An endpoint of a Service port with its state.
pub type Candidate = (Backend, State);

/// Which of two entries for one address counts; the same whichever came first.
/// Where an address was given to a new pod while a slice still names the old
/// one, the entry that lives wins.
pub(crate) fn better(a: State, b: State) -> State {
    let rank = |s: &State| {
        (
            !s.terminating,
            s.ready,
            s.serving,
            s.local,
            s.node_hint as u8,
            s.zone_hint as u8,
        )
    };
    if rank(&b) > rank(&a) { b } else { a }
}

/// Which hints narrow a list down.
#[derive(Clone, Copy)]
enum Narrowing {
    None,
    Node,
    Zone,
}

/// For each endpoint, why it is not used for traffic to the whole cluster:
/// the ready ones are used, narrowed to the nearest that hints name; if none is
/// ready, those that still serve while they end.
pub fn judge_cluster(candidates: &[Candidate]) -> impl Iterator<Item = Option<Excluded>> {
    let ready = || {
        candidates
            .iter()
            .filter(|(_, s)| s.ready)
            .map(|(_, state)| state)
    };
    let hinted = |hint: fn(&State) -> Hint| {
        ready().all(|s| hint(s) != Hint::Absent) && ready().any(|s| hint(s) == Hint::Here)
    };
    let any_ready = ready().next().is_some();
    let narrowing = if hinted(|s| s.node_hint) {
        Narrowing::Node
    } else if hinted(|s| s.zone_hint) {
        Narrowing::Zone
    } else {
        Narrowing::None
    };
    candidates.iter().map(move |(_, state)| {
        readiness(state, any_ready).or(match narrowing {
            _ if !any_ready => None,
            Narrowing::Node if state.node_hint != Hint::Here => Some(Excluded::OtherNode),
            Narrowing::Zone if state.zone_hint != Hint::Here => Some(Excluded::OtherZone),
            _ => None,
        })
    })
}

/// For each endpoint, why it is not used for traffic to this node only: the
/// ready ones here are used, or else those here that still serve while they end.
pub fn judge_local(candidates: &[Candidate]) -> impl Iterator<Item = Option<Excluded>> {
    let any_ready = candidates.iter().any(|(_, s)| s.local && s.ready);
    candidates.iter().map(move |(_, state)| {
        if state.local {
            readiness(state, any_ready)
        } else {
            Some(Excluded::NotLocal)
        }
    })
}

fn readiness(state: &State, any_ready: bool) -> Option<Excluded> {
    if state.ready || (!any_ready && state.serving && state.terminating) {
        None
    } else if state.terminating {
        Some(Excluded::Terminating)
    } else {
        Some(Excluded::NotReady)
    }
}

/// The endpoints that a judgement leaves.
pub(crate) fn used(
    candidates: &[Candidate],
    judgement: impl Iterator<Item = Option<Excluded>>,
) -> Vec<Backend> {
    candidates
        .iter()
        .zip(judgement)
        .filter(|(_, excluded)| excluded.is_none())
        .map(|((backend, _), _)| *backend)
        .collect()
}
