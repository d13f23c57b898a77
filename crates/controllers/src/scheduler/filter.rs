//! Where a pod may run.

use super::affinity::Terms;
use super::spread::Spread;
use super::view::{HostPort, Place, View, host_ports, requests};
use crate::selector;
use crate::taints;
use k8s_openapi::api::core::v1::{Node, Pod, Taint};
use std::sync::Arc;

/// The node's taints and those its state implies. The lifecycle controller
/// writes the latter into the spec soon; until then they hold all the same.
pub(crate) fn implied_taints(node: &Node) -> Vec<Taint> {
    let mut all = taints::of(node).to_vec();
    for taint in crate::lifecycle::state_taints(node) {
        let there = all
            .iter()
            .any(|known| known.key == taint.key && known.effect == taint.effect);
        if !there {
            all.push(taint);
        }
    }
    all
}

/// The first taint that keeps new pods away and that the pod does not tolerate.
pub(super) fn repelling<'a>(pod: &Pod, all: &'a [Taint]) -> Option<&'a Taint> {
    all.iter()
        .filter(|taint| taint.effect != taints::PREFER_NO_SCHEDULE)
        .find(|taint| !taints::is_tolerated(taints::tolerations(pod), taint))
}

/// Whether the pod's node selector and required node affinity match.
pub(super) fn selects_node(pod: &Pod, node: &Node) -> bool {
    let Some(spec) = &pod.spec else {
        return true;
    };
    let labels = selector::labels(&node.metadata);
    let plain = spec
        .node_selector
        .iter()
        .flatten()
        .all(|(key, value)| labels.get(key) == Some(value));
    let required = spec
        .affinity
        .as_ref()
        .and_then(|affinity| affinity.node_affinity.as_ref())
        .and_then(|affinity| {
            affinity
                .required_during_scheduling_ignored_during_execution
                .as_ref()
        });
    plain && required.is_none_or(|required| selector::node_matches(required, node))
}

/// What a DaemonSet asks about a node, with the pod it would put there: does
/// the node want such a pod, and may one that is there stay?
pub(crate) fn admits(pod: &Pod, node: &Node) -> (bool, bool) {
    if !selects_node(pod, node) {
        return (false, false);
    }
    let all = implied_taints(node);
    let tolerations = taints::tolerations(pod);
    let run = repelling(pod, &all).is_none();
    let stay = all
        .iter()
        .filter(|taint| taint.effect == taints::NO_EXECUTE)
        .all(|taint| taints::is_tolerated(tolerations, taint));
    (run, stay)
}

/// A pod's demands, read once for all nodes.
#[derive(Debug)]
pub(super) struct Demands {
    ports: Vec<HostPort>,
    requests: [i128; 2],
    pub(super) spread: Spread,
    pub(super) terms: Terms,
}

impl Demands {
    pub(super) fn new(view: &View, pod: &Arc<Pod>) -> Self {
        Self {
            ports: host_ports(pod),
            requests: requests(pod),
            spread: Spread::new(view, pod),
            terms: Terms::new(view, pod),
        }
    }

    /// Why the pod may not run at the place, in the words of upstream.
    pub(super) fn refuse(&self, view: &View, pod: &Pod, place: &Place) -> Option<String> {
        if let Some(taint) = repelling(pod, &place.taints) {
            return Some(if taint.key == taints::UNSCHEDULABLE {
                "node(s) were unschedulable".into()
            } else {
                format!("node(s) had untolerated taint {}", taints::describe(taint))
            });
        }
        if !selects_node(pod, &place.node) {
            return Some("node(s) didn't match Pod's node affinity/selector".into());
        }
        let taken = |port: &HostPort| place.ports.iter().any(|other| port.meets(other));
        if self.ports.iter().any(taken) {
            return Some("node(s) didn't have free ports for the requested pod ports".into());
        }
        if place.pods.len() >= place.capacity {
            return Some("Too many pods".into());
        }
        if let Some(resource) = place.lacks(&self.requests) {
            return Some(format!("Insufficient {resource}"));
        }
        self.spread
            .refuse(place)
            .or_else(|| self.terms.refuse(view, place))
            .map(str::to_owned)
    }
}
