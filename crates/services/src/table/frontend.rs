//! Frontends: what the table comes to.

use std::sync::Arc;

use ipnet::IpNet;
use serde::Serialize;

use crate::model::{Backend, ServiceName, TrafficPolicy};

/// What kind of address a frontend has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum FrontendKind {
    /// A cluster address.
    ClusterIp,
    /// An address of the node.
    NodePort,
    /// An address of a load balancer.
    LoadBalancer,
    /// One of `spec.externalIPs`.
    ExternalIp,
}

impl FrontendKind {
    /// Whether it is meant to be asked from outside: its policy is the external one.
    #[must_use]
    pub const fn is_external(self) -> bool {
        !matches!(self, Self::ClusterIp)
    }
}

/// A frontend: where traffic is sent for, and where it may go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frontend {
    /// The Service it belongs to.
    pub service: Arc<ServiceName>,
    /// The Service's name for the port; empty if it has none.
    pub port_name: Arc<str>,
    /// What kind of address it has.
    pub kind: FrontendKind,
    /// Which of the lists below applies to its traffic.
    pub policy: TrafficPolicy,
    /// Usable backends of the whole cluster, sorted.
    pub cluster: Arc<[Backend]>,
    /// Usable backends on this node, sorted; empty unless `policy` is `Local`.
    pub local: Arc<[Backend]>,
    /// All backends that still serve, whatever policy, topology and
    /// termination say, sorted: UDP conversations with them may go on.
    pub serving: Arc<[Backend]>,
    /// Session affinity by client address, in seconds since a client's last
    /// connection; 1 to 86,400.
    pub affinity: Option<u32>,
    /// Sources that may use it, sorted; `None` is everybody. A packet of the
    /// node itself whose source is the frontend's own address may use it anyhow.
    pub sources: Option<Arc<[IpNet]>>,
}

/// What a load balancer asks at a Service's health-check node port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct HealthCheck {
    /// The port, at the node's addresses.
    pub port: u16,
    /// Ready endpoints on this node; of a Service of both families, the
    /// greater of the two counts.
    pub local_endpoints: usize,
}
