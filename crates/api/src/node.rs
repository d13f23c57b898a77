//! Node (core/v1).

use serde::Deserialize;

use crate::decode::null_default;
use crate::meta::{Metadata, Resource};

/// A node: its pod ranges and addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Node {
    /// Name and labels (`topology.kubernetes.io/zone` among them).
    pub metadata: Metadata,
    /// What the control plane decided.
    #[serde(deserialize_with = "null_default")]
    pub spec: NodeSpec,
    /// What the kubelet reported.
    #[serde(deserialize_with = "null_default")]
    pub status: NodeStatus,
}

/// What the control plane decided about a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct NodeSpec {
    /// The older single range; the first of `pod_cidrs` when both are there.
    #[serde(rename = "podCIDR")]
    pub pod_cidr: Box<str>,
    /// Pod ranges, at most one a family. Kept as text: an unreadable one is the
    /// reader's to report.
    #[serde(rename = "podCIDRs", deserialize_with = "null_default")]
    pub pod_cidrs: Vec<Box<str>>,
    /// What keeps pods away.
    #[serde(deserialize_with = "null_default")]
    pub taints: Vec<Taint>,
}

/// What keeps pods away from a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Taint {
    /// Its name.
    pub key: Box<str>,
}

/// What the kubelet reported.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct NodeStatus {
    /// Addresses in the kubelet's order: the first of a family is the primary one.
    #[serde(deserialize_with = "null_default")]
    pub addresses: Vec<NodeAddress>,
}

/// One address of a node.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct NodeAddress {
    /// `InternalIP`, `ExternalIP`, `Hostname`, ...
    #[serde(rename = "type")]
    pub kind: Box<str>,
    /// The address, or a name.
    pub address: Box<str>,
}

impl Node {
    /// The label that names a node's zone.
    pub const ZONE_LABEL: &'static str = "topology.kubernetes.io/zone";

    /// The pod ranges as written, also of a node that has only the older field.
    pub fn pod_cidrs(&self) -> impl Iterator<Item = &str> {
        let older = Some(&*self.spec.pod_cidr)
            .filter(|cidr| self.spec.pod_cidrs.is_empty() && !cidr.is_empty());
        self.spec.pod_cidrs.iter().map(|cidr| &**cidr).chain(older)
    }

    /// The node's internal addresses, the primary one of each family first.
    pub fn internal_addresses(&self) -> impl Iterator<Item = std::net::IpAddr> {
        self.status
            .addresses
            .iter()
            .filter(|address| &*address.kind == "InternalIP")
            .filter_map(|address| crate::parse_address(&address.address))
    }

    /// The node's zone.
    pub fn zone(&self) -> Option<&str> {
        self.metadata.label(Node::ZONE_LABEL)
    }
}

impl Resource for Node {
    const KIND: &'static str = "Node";
    const API: &'static str = "/api/v1";
    const PLURAL: &'static str = "nodes";
    const NAMESPACED: bool = false;

    fn metadata(&self) -> &Metadata {
        &self.metadata
    }
}
