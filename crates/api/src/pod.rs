//! Pod (core/v1).

use std::net::IpAddr;

use serde::{Deserialize, Deserializer};

use crate::decode::{address, null_default};
use crate::meta::{Metadata, Protocol, Resource};

/// A pod: where it runs, its addresses, its named ports.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Pod {
    /// Name and labels.
    pub metadata: Metadata,
    /// What is wanted.
    #[serde(deserialize_with = "null_default")]
    pub spec: PodSpec,
    /// What the kubelet reported.
    #[serde(deserialize_with = "null_default")]
    pub status: PodStatus,
}

/// What is wanted of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PodSpec {
    /// The node it is bound to; empty when not yet.
    pub node_name: Box<str>,
    /// How its resolver is set up (`ClusterFirst` and others); empty: not told.
    pub dns_policy: Box<str>,
    /// What its resolver is told besides.
    #[serde(deserialize_with = "null_default")]
    pub dns_config: PodDnsConfig,
    /// It shares the node's network.
    pub host_network: bool,
    /// Containers.
    #[serde(deserialize_with = "null_default")]
    pub containers: Vec<Container>,
    /// Init containers; sidecars are among them.
    #[serde(deserialize_with = "null_default")]
    pub init_containers: Vec<Container>,
}

/// What a pod's resolver is told besides what its policy says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct PodDnsConfig {
    /// Search domains, which come after those of the policy.
    #[serde(deserialize_with = "null_default")]
    pub searches: Vec<Box<str>>,
}

/// A container, of which only ports matter here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Container {
    /// Ports.
    #[serde(deserialize_with = "null_default")]
    pub ports: Vec<ContainerPort>,
}

/// A port of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ContainerPort {
    /// Name; may be empty.
    pub name: Box<str>,
    /// Number.
    pub container_port: u16,
    /// Transport protocol.
    pub protocol: Protocol,
}

/// What the kubelet reported of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct PodStatus {
    /// Phase.
    pub phase: Phase,
    /// Addresses, at most one a family.
    #[serde(rename = "podIPs", deserialize_with = "pod_ips")]
    pub pod_ips: Vec<IpAddr>,
}

/// Where a pod is in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
pub enum Phase {
    /// Not all containers have started.
    #[default]
    Pending,
    /// Bound and started.
    Running,
    /// All containers ended well; the addresses may belong to another by now.
    Succeeded,
    /// All containers ended, one badly; the addresses may belong to another by now.
    Failed,
    /// The node cannot be asked, or a phase this version does not know.
    #[serde(other)]
    Unknown,
}

impl Pod {
    /// Whether the pod has ended, so that its addresses are no longer its own.
    pub fn is_finished(&self) -> bool {
        matches!(self.status.phase, Phase::Succeeded | Phase::Failed)
    }
}

fn pod_ips<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<IpAddr>, D::Error> {
    #[derive(Deserialize)]
    struct PodIp {
        #[serde(default, deserialize_with = "address")]
        ip: Option<IpAddr>,
    }
    let entries = Option::<Vec<PodIp>>::deserialize(from)?.unwrap_or_default();
    Ok(entries.into_iter().filter_map(|entry| entry.ip).collect())
}

impl Resource for Pod {
    const KIND: &'static str = "Pod";
    const API: &'static str = "/api/v1";
    const PLURAL: &'static str = "pods";
    const NAMESPACED: bool = true;

    fn metadata(&self) -> &Metadata {
        &self.metadata
    }
}
