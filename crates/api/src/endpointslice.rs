//! EndpointSlice (discovery.k8s.io/v1).

use serde::Deserialize;

use crate::decode::null_default;
use crate::meta::{Metadata, Protocol, Resource};

/// Some of the endpoints of a Service: one family, at most a hundred or so.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct EndpointSlice {
    /// Name and labels; the label `kubernetes.io/service-name` names the Service.
    pub metadata: Metadata,
    /// Family of the addresses.
    pub address_type: AddressType,
    /// Endpoints.
    #[serde(deserialize_with = "null_default")]
    pub endpoints: Vec<Endpoint>,
    /// Ports of all endpoints in this slice.
    #[serde(deserialize_with = "null_default")]
    pub ports: Vec<EndpointPort>,
}

/// What the addresses of a slice are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
pub enum AddressType {
    /// IPv4 addresses.
    #[serde(rename = "IPv4")]
    V4,
    /// IPv6 addresses.
    #[serde(rename = "IPv6")]
    V6,
    /// Names, or a type this version does not know; not for a proxy.
    #[default]
    #[serde(other)]
    Other,
}

/// One endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Endpoint {
    /// Addresses, all of the same endpoint; consumers use the first. As text, so
    /// that one that cannot be read can be named.
    #[serde(deserialize_with = "null_default")]
    pub addresses: Vec<Box<str>>,
    /// State.
    #[serde(deserialize_with = "null_default")]
    pub conditions: Conditions,
    /// Host name of the pod, where its `subdomain` is the Service's name.
    pub hostname: Option<Box<str>>,
    /// The node it runs on.
    pub node_name: Option<Box<str>>,
    /// The zone it runs in.
    pub zone: Option<Box<str>>,
    /// Who should use it.
    pub hints: Option<Hints>,
}

/// State of an endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(default)]
pub struct Conditions {
    /// Takes new connections; absent means yes.
    pub ready: Option<bool>,
    /// Answers, be it terminating or not; absent means the same as `ready`.
    pub serving: Option<bool>,
    /// Being deleted; absent means no.
    pub terminating: Option<bool>,
}

impl Conditions {
    /// Takes new connections.
    pub fn is_ready(&self) -> bool {
        self.ready.unwrap_or(true)
    }

    /// Answers, be it terminating or not.
    pub fn is_serving(&self) -> bool {
        self.serving.unwrap_or_else(|| self.is_ready())
    }

    /// Being deleted.
    pub fn is_terminating(&self) -> bool {
        self.terminating.unwrap_or(false)
    }
}

/// Who should use an endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Hints {
    /// Zones whose clients should.
    #[serde(deserialize_with = "null_default")]
    pub for_zones: Vec<Hint>,
    /// Nodes whose clients should.
    #[serde(deserialize_with = "null_default")]
    pub for_nodes: Vec<Hint>,
}

/// A zone or node a hint names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Hint {
    /// Its name.
    pub name: Box<str>,
}

/// A port of a slice's endpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct EndpointPort {
    /// The Service port's name; absent means empty.
    #[serde(deserialize_with = "null_default")]
    pub name: Box<str>,
    /// Transport protocol.
    #[serde(deserialize_with = "null_default")]
    pub protocol: Protocol,
    /// Port number; absent: all ports, which a proxy cannot program.
    pub port: Option<i32>,
}

impl EndpointSlice {
    /// The label that names the Service.
    pub const SERVICE_LABEL: &'static str = "kubernetes.io/service-name";

    /// The annotation that says when what led to the endpoints' last change
    /// happened (RFC 3339).
    pub(crate) const TRIGGER_ANNOTATION: &'static str =
        "endpoints.kubernetes.io/last-change-trigger-time";

    /// When what led to the endpoints' last change happened: text as the
    /// controller wrote it, RFC 3339.
    pub fn last_change_trigger(&self) -> Option<&str> {
        let annotation = self.metadata.annotations.get(Self::TRIGGER_ANNOTATION)?;
        Some(annotation)
    }

    /// The Service the endpoints belong to.
    pub fn service_name(&self) -> Option<&str> {
        self.metadata.label(EndpointSlice::SERVICE_LABEL)
    }
}

impl Resource for EndpointSlice {
    const KIND: &'static str = "EndpointSlice";
    const API: &'static str = "/apis/discovery.k8s.io/v1";
    const PLURAL: &'static str = "endpointslices";
    const NAMESPACED: bool = true;

    fn metadata(&self) -> &Metadata {
        &self.metadata
    }
}
