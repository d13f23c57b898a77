//! What the zone is made of.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use hickory_proto::rr::Name;

/// Namespace and name of a Service.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceKey {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name in the namespace.
    pub name: Arc<str>,
}

impl ServiceKey {
    /// The key of `name` in `namespace`.
    #[must_use]
    pub fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Transport protocol of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// The label of it in SRV names (RFC 2782), `_tcp` for TCP.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Tcp => "_tcp",
            Self::Udp => "_udp",
            Self::Sctp => "_sctp",
        }
    }
}

/// A port of a Service or of a slice's endpoints.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Port {
    /// Name; empty for the only port of a Service without port names.
    pub name: Box<str>,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Port number.
    pub number: u16,
}

/// How the name of a Service resolves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Addressing {
    /// To its cluster addresses, at most one a family.
    Cluster(Vec<IpAddr>),
    /// To the addresses of its endpoints.
    Headless,
    /// To another name (type `ExternalName`).
    External(Box<Name>),
}

/// A Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Namespace and name.
    pub key: ServiceKey,
    /// How its name resolves.
    pub addressing: Addressing,
    /// Its ports.
    pub ports: Vec<Port>,
}

/// Endpoints of a Service: an EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Name of the slice in the Service's namespace.
    pub name: Box<str>,
    /// The Service it belongs to.
    pub service: ServiceKey,
    /// The endpoints DNS publishes: those that are ready, and with
    /// `publishNotReadyAddresses` all (the slice says ready then).
    pub endpoints: Vec<Endpoint>,
    /// Ports of each endpoint; a number of 0 stands for "not given".
    pub ports: Vec<Port>,
}

/// One endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its address.
    pub address: IpAddr,
    /// Its host name (`hostname` of the pod with a matching `subdomain`).
    pub hostname: Option<Box<str>>,
}

/// What is known of a pod, for its own name and for its searches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Namespace.
    pub namespace: Box<str>,
    /// Name.
    pub name: Box<str>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Whether its resolver searches the cluster's domains first (dnsPolicy
    /// `ClusterFirst` or `ClusterFirstWithHostNet`).
    pub cluster_first: bool,
    /// Search domains of its own (`dnsConfig.searches`), after the node's.
    pub searches: Box<[Name]>,
}
