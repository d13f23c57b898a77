//! Service (core/v1).

use serde::Deserialize;

use crate::decode::null_default;
use crate::meta::{Metadata, Protocol, Resource};

/// A Service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Service {
    /// Name and labels (`service.kubernetes.io/service-proxy-name` and
    /// `service.kubernetes.io/headless` keep a proxy away).
    pub metadata: Metadata,
    /// What is wanted.
    #[serde(deserialize_with = "null_default")]
    pub spec: ServiceSpec,
    /// What a load balancer reported.
    #[serde(deserialize_with = "null_default")]
    pub status: ServiceStatus,
}

/// What is wanted of a Service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ServiceSpec {
    /// Type.
    #[serde(rename = "type")]
    pub kind: ServiceType,
    /// Cluster addresses, at most one a family; `None` for a headless Service.
    /// As text, here and below, so that one that cannot be read can be named.
    #[serde(rename = "clusterIPs", deserialize_with = "null_default")]
    pub cluster_ips: Vec<Box<str>>,
    /// The name a Service of type `ExternalName` stands for; else empty.
    #[serde(deserialize_with = "null_default")]
    pub external_name: Box<str>,
    /// Further addresses the Service answers on, where the operator allows it.
    #[serde(rename = "externalIPs", deserialize_with = "null_default")]
    pub external_ips: Vec<Box<str>>,
    /// Ports.
    #[serde(deserialize_with = "null_default")]
    pub ports: Vec<ServicePort>,
    /// Which endpoints traffic from outside may reach.
    pub external_traffic_policy: TrafficPolicy,
    /// Which endpoints traffic from pods and nodes may reach.
    pub internal_traffic_policy: TrafficPolicy,
    /// `ClientIP` or `None`.
    pub session_affinity: SessionAffinity,
    /// Parameters of the affinity.
    pub session_affinity_config: Option<SessionAffinityConfig>,
    /// Sources allowed to use the load balancer addresses. Kept as text: a
    /// filter that cannot be read must not become no filter.
    #[serde(deserialize_with = "null_default")]
    pub load_balancer_source_ranges: Vec<Box<str>>,
    /// Port of the health check of a load balancer, when there is one. A number
    /// as it stands there, here and below: one that is no port must not make the
    /// whole object unreadable.
    pub health_check_node_port: Option<i32>,
    /// `PreferSameZone` (or its older name `PreferClose`) or `PreferSameNode`.
    pub traffic_distribution: Option<Box<str>>,
}

/// Type of a Service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
pub enum ServiceType {
    /// An address inside the cluster.
    #[default]
    ClusterIP,
    /// Also a port on every node.
    NodePort,
    /// Also an address of a load balancer.
    LoadBalancer,
    /// A name in DNS only.
    ExternalName,
    /// A type this version does not know; nothing is programmed for it.
    #[serde(other)]
    Unknown,
}

/// Which endpoints may be chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
pub enum TrafficPolicy {
    /// Those on the node that decides.
    Local,
    /// All of them.
    #[default]
    #[serde(other)]
    Cluster,
}

/// Whether a client keeps its endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
pub enum SessionAffinity {
    /// By the client's address.
    ClientIP,
    /// No.
    #[default]
    #[serde(other)]
    None,
}

/// Parameters of session affinity.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct SessionAffinityConfig {
    /// Of the affinity by address.
    #[serde(rename = "clientIP")]
    pub client_ip: Option<ClientIpConfig>,
}

/// Parameters of the affinity by the client's address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ClientIpConfig {
    /// How long a client keeps its endpoint after its last packet, in seconds.
    pub timeout_seconds: Option<u32>,
}

/// One port of a Service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ServicePort {
    /// Name; may be empty when it is the only port.
    pub name: Box<str>,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Port on the Service's addresses.
    pub port: i32,
    /// Port on the nodes' addresses; 0 or absent: none.
    pub node_port: Option<i32>,
}

/// What a load balancer reported.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ServiceStatus {
    /// The load balancer.
    #[serde(deserialize_with = "null_default")]
    pub load_balancer: LoadBalancerStatus,
}

/// State of a load balancer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct LoadBalancerStatus {
    /// Where traffic comes in.
    #[serde(deserialize_with = "null_default")]
    pub ingress: Vec<LoadBalancerIngress>,
}

/// One entry of a load balancer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LoadBalancerIngress {
    /// Address; an entry with a host name has none.
    pub ip: Option<Box<str>>,
    /// `VIP` (or absent): the node programs the address; `Proxy`: it does not.
    pub ip_mode: Option<Box<str>>,
}

impl Resource for Service {
    const KIND: &'static str = "Service";
    const API: &'static str = "/api/v1";
    const PLURAL: &'static str = "services";
    const NAMESPACED: bool = true;

    fn metadata(&self) -> &Metadata {
        &self.metadata
    }
}
