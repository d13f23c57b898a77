//! NetworkPolicy (networking.k8s.io/v1).

use serde::Deserialize;

use crate::decode::null_default;
use crate::meta::{LabelSelector, Metadata, Protocol, Resource};

/// A NetworkPolicy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct NetworkPolicy {
    /// Name.
    pub metadata: Metadata,
    /// Rules.
    #[serde(deserialize_with = "null_default")]
    pub spec: NetworkPolicySpec,
}

/// Rules of a policy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct NetworkPolicySpec {
    /// The pods of the policy's namespace it isolates; empty selects all.
    #[serde(deserialize_with = "null_default")]
    pub pod_selector: LabelSelector,
    /// Directions it isolates. Absent: ingress, and egress when there are egress rules.
    #[serde(deserialize_with = "null_default")]
    pub policy_types: Vec<PolicyType>,
    /// What may come in.
    #[serde(deserialize_with = "null_default")]
    pub ingress: Vec<IngressRule>,
    /// What may go out.
    #[serde(deserialize_with = "null_default")]
    pub egress: Vec<EgressRule>,
}

/// A direction a policy isolates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
pub enum PolicyType {
    /// Into the pod.
    Ingress,
    /// Out of the pod.
    Egress,
}

/// What may come in. Empty lists mean any.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct IngressRule {
    /// Sources.
    #[serde(deserialize_with = "null_default")]
    pub from: Vec<Peer>,
    /// Ports of the pod.
    #[serde(deserialize_with = "null_default")]
    pub ports: Vec<PolicyPort>,
}

/// What may go out. Empty lists mean any.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct EgressRule {
    /// Destinations.
    #[serde(deserialize_with = "null_default")]
    pub to: Vec<Peer>,
    /// Ports of the destination.
    #[serde(deserialize_with = "null_default")]
    pub ports: Vec<PolicyPort>,
}

/// A source or destination: an address block, or pods by selectors (both given: both must match).
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Peer {
    /// Pods; in the policy's own namespace when there is no namespace selector.
    pub pod_selector: Option<LabelSelector>,
    /// Namespaces.
    pub namespace_selector: Option<LabelSelector>,
    /// Addresses.
    pub ip_block: Option<IpBlock>,
}

/// An address range with exceptions, as written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct IpBlock {
    /// The range.
    pub cidr: Box<str>,
    /// Parts of it left out.
    #[serde(deserialize_with = "null_default")]
    pub except: Vec<Box<str>>,
}

/// A port or a range of ports.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PolicyPort {
    /// Transport protocol.
    #[serde(deserialize_with = "null_default")]
    pub protocol: Protocol,
    /// Number or name; absent: all.
    pub port: Option<PortReference>,
    /// Last number of a range.
    pub end_port: Option<u16>,
}

/// A port by number or by the name a pod gives it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(untagged)]
pub enum PortReference {
    /// By number.
    Number(u16),
    /// By name.
    Name(Box<str>),
}

impl Resource for NetworkPolicy {
    const KIND: &'static str = "NetworkPolicy";
    const API: &'static str = "/apis/networking.k8s.io/v1";
    const PLURAL: &'static str = "networkpolicies";
    const NAMESPACED: bool = true;

    fn metadata(&self) -> &Metadata {
        &self.metadata
    }
}
