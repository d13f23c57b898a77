//! What decides about a Service's endpoints and what of it is left out, for people.

use std::net::IpAddr;
use std::sync::Arc;

use serde::Serialize;

use super::compute::{Outline, collect, families};
use super::reading::Slice;
use super::{Entry, Table};
use crate::endpoints::{Excluded, State, judge_cluster, judge_local};
use crate::model::{Backend, Family, FrontendKey, Protocol, ServiceName};
use crate::report::Problem;

/// A Service with all that decides about its endpoints, for people.
#[derive(Debug, Clone, Serialize)]
pub struct Explanation {
    /// The Service.
    pub service: ServiceName,
    /// Why nothing of it is programmed, if so.
    pub not_programmed: Option<&'static str>,
    /// Its frontends, sorted; those that another Service holds are left out.
    pub frontends: Vec<FrontendKey>,
    /// Its ports, for each family it has.
    pub ports: Vec<ExplainedPort>,
    /// What of it is left out.
    pub problems: Vec<Problem>,
}

/// A port of a Service for one family.
#[derive(Debug, Clone, Serialize)]
pub struct ExplainedPort {
    /// Its name.
    pub name: String,
    /// Its protocol.
    pub protocol: Protocol,
    /// The family.
    pub family: Family,
    /// All endpoints that slices name for it, sorted.
    pub endpoints: Vec<ExplainedEndpoint>,
}

/// An endpoint and why it is or is not used.
#[derive(Debug, Clone, Serialize)]
pub struct ExplainedEndpoint {
    /// Address and port.
    pub backend: Backend,
    /// Its state.
    pub state: State,
    /// The node it runs on.
    pub node: Option<Arc<str>>,
    /// Why traffic of policy `Cluster` does not go to it; `None` if it does.
    pub cluster: Option<Excluded>,
    /// Why traffic of policy `Local` does not go to it; `None` if it does.
    pub local: Option<Excluded>,
}

impl Table {
    /// What of a Service and its slices is left out, sorted; nothing if there
    /// is no such Service.
    #[must_use]
    pub fn problems(&self, name: &ServiceName) -> Vec<Problem> {
        self.entries
            .get_key_value(name)
            .map_or_else(Vec::new, |(name, entry)| {
                self.problems_of(name, entry, &self.outline(name, entry))
            })
    }

    pub(super) fn outline(&self, name: &Arc<ServiceName>, entry: &Entry) -> Outline {
        Outline::of(entry, name, self.view())
    }

    pub(super) fn problems_of(
        &self,
        name: &Arc<ServiceName>,
        entry: &Entry,
        outline: &Outline,
    ) -> Vec<Problem> {
        let Some(service) = entry.service.as_ref().filter(|s| !s.foreign) else {
            return Vec::new();
        };
        let mut problems: Vec<Problem> = service.problems.to_vec();
        problems.extend(
            outline
                .refused
                .iter()
                .map(|address| Problem::ExternalIpRefused { address: *address }),
        );
        problems.extend(
            entry
                .slices
                .iter()
                .flat_map(|slice| slice.problems.to_vec()),
        );
        problems.extend(outline.frontends.keys().filter_map(|key| {
            let holder = self.holder(key)?;
            (holder != name).then(|| Problem::Taken {
                frontend: *key,
                holder: (**holder).clone(),
            })
        }));
        problems.sort_unstable();
        problems.dedup();
        problems
    }

    /// All that decides about a Service's endpoints; `None` if there is no such
    /// Service.
    #[must_use]
    pub fn explain(&self, name: &ServiceName) -> Option<Explanation> {
        let (name, entry) = self.entries.get_key_value(name)?;
        let service = entry.service.as_ref()?;
        let mut ports = Vec::new();
        for family in families(&service.cluster_ips) {
            for port in &service.ports {
                let candidates = collect(entry, &self.facts, family, port);
                let endpoints = candidates
                    .iter()
                    .zip(judge_cluster(&candidates))
                    .zip(judge_local(&candidates))
                    .map(|((&(backend, state), cluster), local)| ExplainedEndpoint {
                        backend,
                        state,
                        node: node_of(entry, backend.address),
                        cluster,
                        local,
                    })
                    .collect();
                ports.push(ExplainedPort {
                    name: port.name.to_string(),
                    protocol: port.protocol,
                    family,
                    endpoints,
                });
            }
        }
        Some(Explanation {
            service: (**name).clone(),
            not_programmed: service.not_programmed(),
            frontends: self
                .frontends_of(name)
                .into_iter()
                .map(|(key, _)| key)
                .collect(),
            ports,
            problems: self.problems(name),
        })
    }
}

/// The node of an endpoint: of several entries, that of one that lives.
fn node_of(entry: &Entry, address: IpAddr) -> Option<Arc<str>> {
    entry
        .slices
        .iter()
        .flat_map(Slice::endpoints)
        .filter(|known| known.address == address)
        .min_by_key(|known| known.terminating)
        .and_then(|known| known.place.node.clone())
}
