//! Affinity and anti-affinity between pods.

use super::view::{Place, View};
use crate::object;
use crate::selector;
use k8s_openapi::api::core::v1::{Pod, PodAffinityTerm, WeightedPodAffinityTerm};
use std::sync::Arc;

/// A term with the namespaces it means made explicit.
#[derive(Clone, Debug)]
pub(super) struct Term {
    term: PodAffinityTerm,
    own_namespace: String,
}

impl Term {
    fn new(pod: &Pod, term: &PodAffinityTerm) -> Self {
        let mut term = term.clone();
        // KEP-3633: the pod's own values of these labels narrow the selector.
        let labels = selector::labels(&pod.metadata);
        for (keys, operator) in [
            (term.match_label_keys.take(), "In"),
            (term.mismatch_label_keys.take(), "NotIn"),
        ] {
            for key in keys.into_iter().flatten() {
                let Some(value) = labels.get(&key) else {
                    continue;
                };
                term.label_selector
                    .get_or_insert_default()
                    .match_expressions
                    .get_or_insert_default()
                    .push(
                        k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelectorRequirement {
                            key,
                            operator: operator.into(),
                            values: Some(vec![value.clone()]),
                        },
                    );
            }
        }
        Self {
            term,
            own_namespace: object::namespace(&pod.metadata).to_owned(),
        }
    }

    pub(super) fn key(&self) -> &str {
        &self.term.topology_key
    }

    /// Whether the term means this pod.
    pub(super) fn means(&self, view: &View, pod: &Pod) -> bool {
        let namespace = object::namespace(&pod.metadata);
        let named = self.term.namespaces.as_deref().unwrap_or_default();
        let in_namespace = match &self.term.namespace_selector {
            Some(wanted) => {
                named.iter().any(|name| name == namespace)
                    || view
                        .namespaces
                        .get(namespace)
                        .is_some_and(|labels| selector::matches(wanted, labels))
            }
            None if named.is_empty() => namespace == self.own_namespace,
            None => named.iter().any(|name| name == namespace),
        };
        in_namespace
            && self
                .term
                .label_selector
                .as_ref()
                .is_some_and(|wanted| selector::matches(wanted, selector::labels(&pod.metadata)))
    }

    /// How many pods that the term means run in the same domain as the place.
    fn neighbours(&self, view: &View, place: &Place) -> usize {
        let Some(domain) = place.domain(self.key()) else {
            return 0;
        };
        view.places
            .iter()
            .filter(|other| other.domain(self.key()) == Some(domain))
            .flat_map(|other| &other.pods)
            .filter(|pod| self.means(view, pod))
            .count()
    }

    fn means_any(&self, view: &View) -> bool {
        view.places
            .iter()
            .filter(|place| place.domain(self.key()).is_some())
            .flat_map(|place| &place.pods)
            .any(|pod| self.means(view, pod))
    }
}

fn affinity(pod: &Pod) -> Option<&k8s_openapi::api::core::v1::Affinity> {
    pod.spec.as_ref()?.affinity.as_ref()
}

/// Terms the pod's place must satisfy.
pub(super) fn required(pod: &Pod) -> Vec<Term> {
    affinity(pod)
        .and_then(|affinity| affinity.pod_affinity.as_ref())
        .and_then(|terms| {
            terms
                .required_during_scheduling_ignored_during_execution
                .as_ref()
        })
        .into_iter()
        .flatten()
        .map(|term| Term::new(pod, term))
        .collect()
}

/// Terms that must not hold at the pod's place.
pub(super) fn required_anti(pod: &Pod) -> Vec<Term> {
    affinity(pod)
        .and_then(|affinity| affinity.pod_anti_affinity.as_ref())
        .and_then(|terms| {
            terms
                .required_during_scheduling_ignored_during_execution
                .as_ref()
        })
        .into_iter()
        .flatten()
        .map(|term| Term::new(pod, term))
        .collect()
}

/// Wishes with their weights, negative for those to stay away.
pub(super) fn preferred(pod: &Pod) -> Vec<(i64, Term)> {
    let Some(affinity) = affinity(pod) else {
        return Vec::new();
    };
    let near = affinity.pod_affinity.as_ref().and_then(|terms| {
        terms
            .preferred_during_scheduling_ignored_during_execution
            .as_deref()
    });
    let far = affinity.pod_anti_affinity.as_ref().and_then(|terms| {
        terms
            .preferred_during_scheduling_ignored_during_execution
            .as_deref()
    });
    let weigh = |terms: Option<&[WeightedPodAffinityTerm]>, sign: i64| {
        terms
            .unwrap_or_default()
            .iter()
            .map(|wish| {
                (
                    sign * i64::from(wish.weight),
                    Term::new(pod, &wish.pod_affinity_term),
                )
            })
            .collect::<Vec<_>>()
    };
    let mut wishes = weigh(near, 1);
    wishes.extend(weigh(far, -1));
    wishes
}

/// The pod's terms, read once.
#[derive(Debug)]
pub(super) struct Terms {
    near: Vec<Term>,
    /// The first of a group of pods that want to be together may go anywhere.
    first: bool,
    far: Vec<Term>,
    /// Domains closed by the anti-affinity of pods that are there.
    closed: Vec<(String, String)>,
    wishes: Vec<(i64, Term)>,
}

impl Terms {
    pub(super) fn new(view: &View, pod: &Arc<Pod>) -> Self {
        let near = required(pod);
        let first = !near.is_empty()
            && near.iter().all(|term| term.means(view, pod))
            && !near.iter().any(|term| term.means_any(view));
        let closed = view
            .repelled_by
            .iter()
            .filter(|(_, _, term)| term.means(view, pod))
            .filter_map(|(index, _, term)| {
                let domain = view.places.get(*index)?.domain(term.key())?;
                Some((term.key().to_owned(), domain.to_owned()))
            })
            .collect();
        Self {
            near,
            first,
            far: required_anti(pod),
            closed,
            wishes: preferred(pod),
        }
    }

    /// Why the pod may not run at the place.
    pub(super) fn refuse(&self, view: &View, place: &Place) -> Option<&'static str> {
        for term in &self.near {
            let here = place.domain(term.key()).is_some();
            if !here || (!self.first && term.neighbours(view, place) == 0) {
                return Some("node(s) didn't match pod affinity rules");
            }
        }
        if self.far.iter().any(|term| term.neighbours(view, place) > 0) {
            return Some("node(s) didn't match pod anti-affinity rules");
        }
        self.closed
            .iter()
            .any(|(key, domain)| place.domain(key) == Some(domain))
            .then_some("node(s) didn't satisfy existing pods anti-affinity rules")
    }

    /// How well the wishes are met.
    pub(super) fn score(&self, view: &View, place: &Place) -> i64 {
        self.wishes
            .iter()
            .map(|(weight, term)| {
                let count = i64::try_from(term.neighbours(view, place)).unwrap_or(i64::MAX);
                weight.saturating_mul(count)
            })
            .sum()
    }
}
