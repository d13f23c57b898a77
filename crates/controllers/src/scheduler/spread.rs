//! Topology spread constraints.

use super::filter;
use super::view::{Place, View};
use crate::object;
use crate::selector::{self, Labels};
use k8s_openapi::api::core::v1::{Pod, TopologySpreadConstraint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use std::collections::HashMap;

/// One constraint with the pods counted in each domain.
#[derive(Debug)]
struct Counted {
    key: String,
    max_skew: i64,
    hard: bool,
    /// The pod itself counts once it is placed.
    own: i64,
    counts: HashMap<String, i64>,
    least: i64,
}

/// The pod's constraints, counted once for all nodes.
#[derive(Debug)]
pub(super) struct Spread {
    constraints: Vec<Counted>,
}

impl Spread {
    pub(super) fn new(view: &View, pod: &Pod) -> Self {
        let constraints = pod
            .spec
            .as_ref()
            .and_then(|spec| spec.topology_spread_constraints.as_deref())
            .unwrap_or_default();
        Self {
            constraints: constraints
                .iter()
                .map(|constraint| Counted::new(view, pod, constraint))
                .collect(),
        }
    }

    /// Why the pod may not run at the place.
    pub(super) fn refuse(&self, place: &Place) -> Option<&'static str> {
        for constraint in self.constraints.iter().filter(|constraint| constraint.hard) {
            let Some(domain) = place.domain(&constraint.key) else {
                return Some(
                    "node(s) didn't match pod topology spread constraints (missing required label)",
                );
            };
            let count = constraint.counts.get(domain).copied().unwrap_or(0);
            if count + constraint.own - constraint.least > constraint.max_skew {
                return Some("node(s) didn't match pod topology spread constraints");
            }
        }
        None
    }

    /// How crowded the place is by the soft constraints: less is better.
    pub(super) fn crowd(&self, place: &Place) -> i64 {
        self.constraints
            .iter()
            .map(|constraint| {
                place.domain(&constraint.key).map_or(1000, |domain| {
                    constraint.counts.get(domain).copied().unwrap_or(0)
                })
            })
            .sum()
    }
}

impl Counted {
    fn new(view: &View, pod: &Pod, constraint: &TopologySpreadConstraint) -> Self {
        let own_labels = selector::labels(&pod.metadata);
        let narrow: Labels = constraint
            .match_label_keys
            .iter()
            .flatten()
            .filter_map(|key| Some((key.clone(), own_labels.get(key)?.clone())))
            .collect();
        let nothing = LabelSelector::default();
        let wanted = constraint.label_selector.as_ref();
        let counts_pod = |labels: &Labels| {
            wanted.is_some_and(|wanted| selector::matches(wanted, labels))
                && narrow
                    .iter()
                    .all(|(key, value)| labels.get(key) == Some(value))
        };
        let honour = |policy: &Option<String>, default: &str| {
            policy.as_deref().unwrap_or(default) == "Honor"
        };
        let by_affinity = honour(&constraint.node_affinity_policy, "Honor");
        let by_taints = honour(&constraint.node_taints_policy, "Ignore");
        let namespace = object::namespace(&pod.metadata);
        let mut counts: HashMap<String, i64> = HashMap::new();
        for place in &view.places {
            let Some(domain) = place.domain(&constraint.topology_key) else {
                continue;
            };
            if (by_affinity && !filter::selects_node(pod, &place.node))
                || (by_taints && filter::repelling(pod, &place.taints).is_some())
            {
                continue;
            }
            let here = place
                .pods
                .iter()
                .filter(|other| {
                    object::namespace(&other.metadata) == namespace
                        && !object::is_deleting(&other.metadata)
                        && counts_pod(selector::labels(&other.metadata))
                })
                .count();
            *counts.entry(domain.to_owned()).or_default() += i64::try_from(here).unwrap_or(0);
        }
        let domains = i32::try_from(counts.len()).unwrap_or(i32::MAX);
        let least = if domains < constraint.min_domains.unwrap_or(1) {
            0
        } else {
            counts.values().copied().min().unwrap_or(0)
        };
        Self {
            key: constraint.topology_key.clone(),
            max_skew: i64::from(constraint.max_skew),
            hard: constraint.when_unsatisfiable != "ScheduleAnyway",
            own: i64::from(counts_pod(own_labels) && wanted != Some(&nothing)),
            counts,
            least,
        }
    }
}
