//! Where a pod runs best.

use super::filter::Demands;
use super::view::{Place, View, selects};
use crate::object;
use crate::selector::{self, Labels};
use crate::taints;
use k8s_openapi::api::core::v1::Pod;
use std::collections::HashMap;

/// A zone's label.
const ZONE: &str = "topology.kubernetes.io/zone";

/// How bad a place is: the least is the best. Compared field by field, so an
/// earlier one outweighs all later ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Badness {
    /// Taints that say: rather not.
    taints: usize,
    /// Unmet wishes about the node.
    node: i64,
    /// Unmet wishes about neighbours.
    neighbours: i64,
    /// By the pod's own spread constraints.
    crowd: i64,
    /// Pods of the same owner or Service on the node, then in the zone.
    same_on_node: usize,
    same_in_zone: usize,
    /// Pods on the node.
    pods: usize,
}

/// What pods of the same owner or the same Services are where.
#[derive(Debug)]
pub(super) struct Siblings<'a> {
    owner: Option<&'a str>,
    namespace: &'a str,
    services: Vec<&'a Labels>,
    zones: HashMap<&'a str, usize>,
    wishes: bool,
}

impl<'a> Siblings<'a> {
    pub(super) fn new(view: &'a View, pod: &'a Pod) -> Self {
        let mut siblings = Self {
            owner: object::controller(&pod.metadata).map(|owner| owner.uid.as_str()),
            namespace: object::namespace(&pod.metadata),
            services: view.services_of(pod),
            zones: HashMap::new(),
            wishes: pod
                .spec
                .as_ref()
                .is_some_and(|spec| spec.affinity.is_some()),
        };
        for place in &view.places {
            if let Some(zone) = place.domain(ZONE) {
                *siblings.zones.entry(zone).or_default() += siblings.at(place);
            }
        }
        siblings
    }

    fn at(&self, place: &Place) -> usize {
        if self.owner.is_none() && self.services.is_empty() {
            return 0;
        }
        place
            .pods
            .iter()
            .filter(|pod| {
                let meta = &pod.metadata;
                if object::namespace(meta) != self.namespace || object::is_deleting(meta) {
                    return false;
                }
                let owner = object::controller(meta).map(|owner| owner.uid.as_str());
                (self.owner.is_some() && owner == self.owner) || {
                    let labels = selector::labels(meta);
                    self.services.iter().any(|service| selects(service, labels))
                }
            })
            .count()
    }

    pub(super) fn badness(
        &self,
        view: &View,
        pod: &Pod,
        demands: &Demands,
        place: &Place,
    ) -> Badness {
        let tolerations = taints::tolerations(pod);
        Badness {
            taints: place
                .taints
                .iter()
                .filter(|taint| taint.effect == taints::PREFER_NO_SCHEDULE)
                .filter(|taint| !taints::is_tolerated(tolerations, taint))
                .count(),
            node: if self.wishes {
                -node_wishes(pod, place)
            } else {
                0
            },
            neighbours: -demands.terms.score(view, place),
            crowd: demands.spread.crowd(place),
            same_on_node: self.at(place),
            same_in_zone: place
                .domain(ZONE)
                .and_then(|zone| self.zones.get(zone))
                .copied()
                .unwrap_or(0),
            pods: place.pods.len(),
        }
    }
}

fn node_wishes(pod: &Pod, place: &Place) -> i64 {
    pod.spec
        .as_ref()
        .and_then(|spec| spec.affinity.as_ref()?.node_affinity.as_ref())
        .and_then(|affinity| {
            affinity
                .preferred_during_scheduling_ignored_during_execution
                .as_ref()
        })
        .into_iter()
        .flatten()
        .filter(|wish| selector::node_matches_term(&wish.preference, &place.node))
        .map(|wish| i64::from(wish.weight))
        .sum()
}
