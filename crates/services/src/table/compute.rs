//! From one Service and its slices to the frontends it claims.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::Entry;
use super::frontend::{Frontend, FrontendKind, HealthCheck};
use super::reading::Port;
use crate::endpoints::{Candidate, State, better, judge_cluster, judge_local, used};
use crate::model::{Backend, Family, FrontendKey, NodeFacts, ServiceName, TrafficPolicy};

/// What a Service comes to, apart from its frontends.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Computed {
    /// Frontends it claims, sorted.
    pub(super) claims: Box<[FrontendKey]>,
    /// Cluster addresses it holds.
    pub(super) cluster_ips: Box<[IpAddr]>,
    /// Load-balancer and permitted external addresses it holds.
    pub(super) external_ips: Box<[IpAddr]>,
    /// Addresses of its endpoints on this node.
    pub(super) local: Box<[IpAddr]>,
    pub(super) health_check: Option<HealthCheck>,
    /// External addresses that are not permitted.
    pub(super) refused: Box<[IpAddr]>,
}

/// The families of cluster addresses, in order.
pub(super) fn families(cluster_ips: &[IpAddr]) -> impl Iterator<Item = Family> {
    Family::ALL
        .into_iter()
        .filter(|family| cluster_ips.iter().any(|a| Family::of(*a) == *family))
}

/// What one Service comes to.
pub(super) fn compute(
    entry: &Entry,
    name: &Arc<ServiceName>,
    facts: &NodeFacts,
    node_port_addresses: &[IpAddr],
) -> (BTreeMap<FrontendKey, Frontend>, Computed) {
    let mut frontends = BTreeMap::new();
    let mut computed = Computed::default();
    let Some(service) = entry
        .service
        .as_deref()
        .filter(|service| service.not_programmed().is_none())
    else {
        return (frontends, computed);
    };
    let permitted = |address: &IpAddr| {
        facts
            .external_ip_cidrs
            .iter()
            .any(|range| range.contains(address))
    };
    let (external, refused): (Vec<IpAddr>, Vec<IpAddr>) =
        service.external_ips.iter().partition(|ip| permitted(ip));
    let mut local = Vec::new();
    let mut local_endpoints = 0;
    for family in families(&service.cluster_ips) {
        let of_family = |list: &[IpAddr]| -> Vec<IpAddr> {
            list.iter()
                .copied()
                .filter(|a| Family::of(*a) == family)
                .collect()
        };
        let mut ready_here = BTreeSet::new();
        for port in &service.ports {
            let candidates = collect(entry, facts, family, port);
            for (backend, state) in candidates.iter().filter(|(_, state)| state.local) {
                local.push(backend.address);
                if state.ready {
                    ready_here.insert(backend.address);
                }
            }
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
            let mut claim = |address: IpAddr, number: u16, kind: FrontendKind| {
                let policy = if kind.is_external() {
                    service.external_policy
                } else {
                    service.internal_policy
                };
                let key = FrontendKey {
                    address,
                    protocol: port.protocol,
                    port: number,
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
                        FrontendKind::LoadBalancer => service.sources[family as usize].clone(),
                        _ => None,
                    },
                });
            };
            if let Some(number) = port.port {
                for (list, kind) in [
                    (&*service.cluster_ips, FrontendKind::ClusterIp),
                    (&*service.load_balancer_ips, FrontendKind::LoadBalancer),
                    (&*external, FrontendKind::ExternalIp),
                ] {
                    for address in of_family(list) {
                        claim(address, number, kind);
                    }
                }
            }
            if let Some(node_port) = port.node_port {
                for address in of_family(node_port_addresses) {
                    claim(address, node_port, FrontendKind::NodePort);
                }
            }
        }
        local_endpoints = local_endpoints.max(ready_here.len());
    }
    local.sort_unstable();
    local.dedup();
    computed.claims = frontends.keys().copied().collect();
    computed.cluster_ips = service.cluster_ips.clone();
    computed.external_ips = service
        .load_balancer_ips
        .iter()
        .chain(&external)
        .copied()
        .collect();
    computed.local = local.into();
    computed.refused = refused.into();
    computed.health_check = service
        .health_check_node_port
        .filter(|_| service.external_policy == TrafficPolicy::Local)
        .map(|port| HealthCheck {
            port,
            local_endpoints,
        });
    (frontends, computed)
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
