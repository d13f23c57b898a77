//! From one Service and its slices to the frontends it claims.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::Entry;
use super::frontend::{Frontend, FrontendKind, HealthCheck};
use super::reading::{Port, Slice, Wanted};
use crate::endpoints::{Candidate, State, better, judge_cluster, judge_local, used};
use crate::model::{Backend, Family, FrontendKey, NodeFacts, ServiceName, TrafficPolicy};

/// What decides with a Service and its slices about what they come to.
#[derive(Debug, Clone, Copy)]
pub(super) struct View<'a> {
    pub(super) facts: &'a NodeFacts,
    /// Addresses at which node ports answer.
    pub(super) node_port_addresses: &'a [IpAddr],
}

/// What a Service comes to. It is worked out before a change and after it instead
/// of being kept: there are many Services and few changes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Outline {
    /// Frontends it claims.
    pub(super) frontends: BTreeMap<FrontendKey, Frontend>,
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

impl Outline {
    /// Of a Service with this name.
    pub(super) fn of(entry: &Entry, name: &Arc<ServiceName>, view: View<'_>) -> Self {
        let Some(service) = programmed(entry) else {
            return Self::default();
        };
        let facts = view.facts;
        let (external, refused) = external_ips(service, facts);
        let mut local = Vec::new();
        let mut local_endpoints = 0;
        let any_here = entry
            .slices
            .iter()
            .flat_map(Slice::endpoints)
            .any(|endpoint| endpoint.is_on(facts));
        for family in families(&service.cluster_ips).filter(|_| any_here) {
            let mut ready_here = BTreeSet::new();
            for port in &service.ports {
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
        let balancer = service.load_balancer_ips().iter();
        Self {
            frontends: frontends(entry, name, view),
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
}

/// The backends of one port of a Service.
struct Lists {
    cluster: Arc<[Backend]>,
    near: Arc<[Backend]>,
    serving: Arc<[Backend]>,
}

impl Lists {
    fn of(entry: &Entry, facts: &NodeFacts, family: Family, port: &Port) -> Self {
        let candidates = collect(entry, facts, family, port);
        let cluster: Arc<[Backend]> = used(&candidates, judge_cluster(&candidates)).into();
        let near = used(&candidates, judge_local(&candidates)).into();
        let all = candidates.iter().filter(|(_, state)| state.serving);
        let serving: Vec<Backend> = all.map(|(backend, _)| *backend).collect();
        let serving = if *serving == *cluster {
            Arc::clone(&cluster)
        } else {
            serving.into()
        };
        Self {
            cluster,
            near,
            serving,
        }
    }

    /// A frontend with them.
    fn frontend(
        &self,
        service: &Wanted,
        name: &Arc<ServiceName>,
        port: &Port,
        (key, kind): (&FrontendKey, FrontendKind),
    ) -> Frontend {
        let policy = if kind.is_external() {
            service.external_policy
        } else {
            service.internal_policy
        };
        Frontend {
            service: Arc::clone(name),
            port_name: Arc::clone(&port.name),
            kind,
            policy,
            cluster: Arc::clone(&self.cluster),
            local: match policy {
                TrafficPolicy::Local => Arc::clone(&self.near),
                TrafficPolicy::Cluster => Arc::default(),
            },
            serving: Arc::clone(&self.serving),
            affinity: service.affinity,
            sources: match kind {
                FrontendKind::LoadBalancer => service.sources(Family::of(key.address)).cloned(),
                _ => None,
            },
        }
    }
}

/// The frontends one Service claims.
pub(super) fn frontends(
    entry: &Entry,
    name: &Arc<ServiceName>,
    view: View<'_>,
) -> BTreeMap<FrontendKey, Frontend> {
    let mut frontends = BTreeMap::new();
    let Some(service) = programmed(entry) else {
        return frontends;
    };
    let (external, _) = external_ips(service, view.facts);
    for family in families(&service.cluster_ips) {
        for port in &service.ports {
            let lists = Lists::of(entry, view.facts, family, port);
            let own = claimed(service, &external, view.node_port_addresses, family, port);
            for (key, kind) in own {
                frontends
                    .entry(key)
                    .or_insert_with(|| lists.frontend(service, name, port, (&key, kind)));
            }
        }
    }
    frontends
}

/// One of the frontends a Service claims.
pub(super) fn frontend(
    entry: &Entry,
    name: &Arc<ServiceName>,
    view: View<'_>,
    key: &FrontendKey,
) -> Option<Frontend> {
    let service = programmed(entry)?;
    let (external, _) = external_ips(service, view.facts);
    let family = families(&service.cluster_ips).find(|f| *f == Family::of(key.address))?;
    service.ports.iter().find_map(|port| {
        let mut own = claimed(service, &external, view.node_port_addresses, family, port);
        let (_, kind) = own.find(|(claimed, _)| claimed == key)?;
        let lists = Lists::of(entry, view.facts, family, port);
        Some(lists.frontend(service, name, port, (key, kind)))
    })
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
    for slice in entry.slices.iter().filter(|s| s.family() == family) {
        for (_, _, number) in slice
            .ports
            .iter()
            .filter(|(name, protocol, _)| *name == port.name && *protocol == port.protocol)
        {
            for endpoint in slice.endpoints() {
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
