//! What changed in the table.

use std::collections::HashSet;
use std::net::IpAddr;

use crate::model::FrontendKey;

/// What changed since it was last asked: keys whose present value is in the table.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Changes {
    /// Frontends made, changed or gone.
    pub frontends: HashSet<FrontendKey>,
    /// Cluster addresses allocated or freed.
    pub cluster_ips: HashSet<IpAddr>,
    /// Local endpoints that came or went.
    pub local_endpoints: HashSet<IpAddr>,
    /// Whether the node's facts changed.
    pub facts: bool,
}

impl Changes {
    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.frontends.is_empty()
            && self.cluster_ips.is_empty()
            && self.local_endpoints.is_empty()
            && !self.facts
    }

    /// The same in parts of at most so many frontends; the rest is with the first.
    pub fn parts(&self, frontends: usize) -> impl Iterator<Item = Self> {
        let mut keys = self.frontends.iter().copied();
        let mut first = Some(Self {
            frontends: HashSet::new(),
            cluster_ips: self.cluster_ips.clone(),
            local_endpoints: self.local_endpoints.clone(),
            facts: self.facts,
        });
        std::iter::from_fn(move || {
            let part: HashSet<FrontendKey> = keys.by_ref().take(frontends).collect();
            let rest = first.take();
            (rest.is_some() || !part.is_empty()).then(|| Self {
                frontends: part,
                ..rest.unwrap_or_default()
            })
        })
    }

    /// Takes up changes that could not be applied.
    pub fn merge(&mut self, other: Self) {
        self.frontends.extend(other.frontends);
        self.cluster_ips.extend(other.cluster_ips);
        self.local_endpoints.extend(other.local_endpoints);
        self.facts |= other.facts;
    }
}
