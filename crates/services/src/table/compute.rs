//! From one Service and its slices to the frontends it claims.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::Entry;
use super::frontend::{Frontend, FrontendKind, HealthCheck};
use super::reading::{Port, Wanted};
use crate::endpoints::{Candidate, State, better, judge_cluster, judge_local, used};
use crate::model::{Backend, Family, FrontendKey, NodeFacts, ServiceName, TrafficPolicy};

/// What a Service comes to, apart from what its frontends are. It is worked out
/// before a change and after it instead of being kept: there are many Services
/// and few changes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Outline {
    /// Frontends it claims, sorted.
    pub(super) claims: Vec<FrontendKey>,
    /// Cluster addresses it holds.
    pub(super) cluster_ips: Vec<IpAddr>,
    /// Load-balancer and permitted external addresses it holds.
    pub(super) external_ips: Vec<IpAddr>,
    /// Addresses of its endpoints on this node, sorted.
    pub(super) local: Vec<IpAddr>,
    pub(super) health_check: Option<HealthCheck>,
    /// External addresses that are not permitted.
    pub(super) refused: Vec<IpAddr>,
}

/// The families of cluster addresses, in order.
pub(super) fn families(cluster_ips: &[IpAddr]) -> impl Iterator<Item = Family> {
    Family::ALL
        .into_iter()
        .filter(|family| cluster_ips.iter().any(|a| Family::of(*a) == *family))
}

/// The Service, if anything of it is programmed.
fn programmed(entry: &Entry) -> Option<&Wanted> {
    entry
        .service
        .as_ref()
        .filter(|service| service.not_programmed().is_none())
}

/// Its external addresses: those that are permitted, and the others.
fn external_ips(service: &Wanted, facts: &NodeFacts) -> (Vec<IpAddr>, Vec<IpAddr>) {
    service.external_ips().iter().partition(|address| {
        facts
            .external_ip_cidrs
            .iter()
            .any(|range| range.contains(*address))
    })
}

/// The frontends that one port of a Service claims in a family; of two with the
/// same key the first counts.
fn claimed<'a>(
    service: &'a Wanted,
    external: &'a [IpAddr],
    node_port_addresses: &'a [IpAddr],
    family: Family,
    port: &'a Port,
) -> impl Iterator<Item = (FrontendKey, FrontendKind)> + 'a {
    let balancer = service.load_balancer_ips();
    let lists = [
        (port.port, &*service.cluster_ips, FrontendKind::ClusterIp),
        (port.port, balancer, FrontendKind::LoadBalancer),
        (port.port, external, FrontendKind::ExternalIp),
        (port.node_port, node_port_addresses, FrontendKind::NodePort),
    ];
    lists
        .into_iter()
        .filter_map(|(number, list, kind)| Some((number?, list, kind)))
        .flat_map(move |(number, list, kind)| {
            let own = list.iter().filter(move |a| Family::of(**a) == family);
            own.map(move |address| {
                let key = FrontendKey {
                    address: *address,
                    protocol: port.protocol,
                    port: number,
                };
                (key, kind)
            })
        })
}

/// What one Service comes to, apart from what its frontends are.
pub(super) fn outline(entry: &Entry, facts: &NodeFacts, node_port_addresses: &[IpAddr]) -> Outline {
    let Some(service) = programmed(entry) else {
        return Outline::default();
    };
    let (external, refused) = external_ips(service, facts);
    let mut claims = Vec::new();
    let mut local = Vec::new();
    let mut local_endpoints = 0;
    let any_here = entry
        .slices
        .iter()
        .flat_map(|slice| &slice.endpoints)
        .any(|endpoint| endpoint.is_on(facts));
    for family in families(&service.cluster_ips) {
        let mut ready_here = BTreeSet::new();
        for port in &service.ports {
            let own = claimed(service, &external, node_port_addresses, family, port);
            claims.extend(own.map(|(key, _)| key));
            if !any_here {
                continue;
            }
            let candidates = collect(entry, facts, family, port);
            for (backend, state) in candidates.iter().filter(|(_, state)| state.local) {
                local.push(backend.address);
                if state.ready {
                    ready_here.insert(backend.address);
                }
            }
        }
        local_endpoints = local_endpoints.max(ready_here.len());
    }
    local.sort_unstable();
    local.dedup();
    claims.sort_unstable();
    claims.dedup();
    let balancer = service.load_balancer_ips().iter();
    Outline {
        claims,
        cluster_ips: service.cluster_ips.to_vec(),
        external_ips: balancer.chain(&external).copied().collect(),
        local,
        health_check: service
            .health_check_node_port()
            .filter(|_| service.external_policy == TrafficPolicy::Local)
            .map(|port| HealthCheck {
                port,
                local_endpoints,
            }),
        refused,
    }
}

/// The frontends one Service claims.
pub(super) fn frontends(
    entry: &Entry,
    name: &Arc<ServiceName>,
    facts: &NodeFacts,
    node_port_addresses: &[IpAddr],
) -> BTreeMap<FrontendKey, Frontend> {
    let mut frontends = BTreeMap::new();
    let Some(service) = programmed(entry) else {
        return frontends;
    };
    let (external, _) = external_ips(service, facts);
    for family in families(&service.cluster_ips) {
        for port in &service.ports {
            let candidates = collect(entry, facts, family, port);
            let cluster: Arc<[Backend]> = used(&candidates, judge_cluster(&candidates)).into();
            let near: Arc<[Backend]> = used(&candidates, judge_local(&candidates)).into();
            let serving: Vec<Backend> = candidates
                .iter()
                .filter(|(_, state)| state.serving)
                .map(|(backend, _)| *backend)
                .collect();
            let serving = if *serving == *cluster {
                Arc::clone(&cluster)
            } else {
                serving.into()
            };
            for (key, kind) in claimed(service, &external, node_port_addresses, family, port) {
                let policy = if kind.is_external() {
                    service.external_policy
                } else {
                    service.internal_policy
                };
                frontends.entry(key).or_insert_with(|| Frontend {
                    service: Arc::clone(name),
                    port_name: Arc::clone(&port.name),
                    kind,
                    policy,
                    cluster: Arc::clone(&cluster),
                    local: match policy {
                        TrafficPolicy::Local => Arc::clone(&near),
                        TrafficPolicy::Cluster => Arc::default(),
                    },
                    serving: Arc::clone(&serving),
                    affinity: service.affinity,
                    sources: match kind {
                        FrontendKind::LoadBalancer => service.sources(family).cloned(),
                        _ => None,
                    },
                });
            }
        }
    }
    frontends
}

/// The endpoints of one port over all slices, sorted, each address and port
/// once.
pub(super) fn collect(
    entry: &Entry,
    facts: &NodeFacts,
    family: Family,
    port: &Port,
) -> Vec<Candidate> {
    let mut found: BTreeMap<Backend, State> = BTreeMap::new();
    for slice in entry.slices.iter().filter(|s| s.family == family) {
        for (_, _, number) in slice
            .ports
            .iter()
            .filter(|(name, protocol, _)| *name == port.name && *protocol == port.protocol)
        {
            for endpoint in &slice.endpoints {
                let backend = Backend {
                    address: endpoint.address,
                    port: *number,
                };
                let state = endpoint.state(facts);
                found
                    .entry(backend)
                    .and_modify(|known| *known = better(*known, state))
                    .or_insert(state);
            }
        }
    }
    found.into_iter().collect()
}
