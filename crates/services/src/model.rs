//! What the proxy is told: Services, their endpoint slices and this node's
//! facts, reduced to the fields that matter here. Addresses stay text until the
//! table reads them, so that one that is not an address spoils nothing else.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;

/// IP version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both, in order.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// That of an address.
    #[must_use]
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

/// Transport protocol of a Service port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// The protocol number in the IP header.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    /// The protocol of a number.
    #[must_use]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            6 => Some(Self::Tcp),
            17 => Some(Self::Udp),
            132 => Some(Self::Sctp),
            _ => None,
        }
    }

    /// The protocol of a word as Kubernetes writes it; absent means TCP.
    #[must_use]
    pub fn from_name(name: Option<&str>) -> Option<Self> {
        match name {
            None | Some("" | "TCP") => Some(Self::Tcp),
            Some("UDP") => Some(Self::Udp),
            Some("SCTP") => Some(Self::Sctp),
            Some(_) => None,
        }
    }
}

/// A Service's namespace and name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceName {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl ServiceName {
    /// From its two parts.
    #[must_use]
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

impl std::fmt::Display for ServiceName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Which endpoints a kind of traffic may go to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TrafficPolicy {
    /// Any.
    #[default]
    Cluster,
    /// Only those on this node.
    Local,
}

/// A port of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name; empty for the only port of a Service.
    pub name: String,
    /// Its protocol.
    pub protocol: Protocol,
    /// The port at the Service's addresses.
    pub port: u16,
    /// The port at the node's addresses, for Services that have one.
    pub node_port: Option<u16>,
}

/// A Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Its name.
    pub name: ServiceName,
    /// `spec.clusterIPs`; without an address (empty, `None`) the Service is not proxied.
    pub cluster_ips: Vec<String>,
    /// Addresses for traffic from outside: load-balancer addresses whose
    /// `ipMode` is not `Proxy`, and permitted external addresses.
    pub external_ips: Vec<String>,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// `spec.internalTrafficPolicy`: of traffic to the cluster addresses.
    pub internal_policy: TrafficPolicy,
    /// `spec.externalTrafficPolicy`: of traffic to node ports and external addresses.
    pub external_policy: TrafficPolicy,
    /// Labelled `service.kubernetes.io/headless` or `…/service-proxy-name`:
    /// somebody else's business, not programmed.
    pub foreign: bool,
}

/// A port of an endpoint slice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlicePort {
    /// The Service port's name it belongs to; empty if that has none.
    pub name: String,
    /// Its protocol.
    pub protocol: Protocol,
    /// The port at the endpoint's address; slices without one are not proxied.
    pub port: Option<u16>,
}

/// An endpoint of a slice.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Endpoint {
    /// Its address: the first of `addresses`, as all are of the same endpoint.
    pub address: String,
    /// `conditions.ready`; absent counts as true.
    pub ready: Option<bool>,
    /// `conditions.serving`; absent counts as `ready` does.
    pub serving: Option<bool>,
    /// `conditions.terminating`; absent counts as false.
    pub terminating: Option<bool>,
    /// The node it runs on.
    pub node: Option<String>,
    /// `hints.forZones`.
    pub zone_hints: Vec<String>,
    /// `hints.forNodes`.
    pub node_hints: Vec<String>,
}

/// An endpoint slice of type IPv4 or IPv6 (those of type FQDN are not proxied).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Namespace of slice and Service.
    pub namespace: String,
    /// The slice's own name.
    pub name: String,
    /// The Service's name: label `kubernetes.io/service-name`.
    pub service: String,
    /// Its `addressType`.
    pub family: Family,
    /// Ports, the same for all endpoints of the slice.
    pub ports: Vec<SlicePort>,
    /// Endpoints.
    pub endpoints: Vec<Endpoint>,
}

/// What the proxy has to know of its node and of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeFacts {
    /// This node's name.
    pub node: String,
    /// Its `topology.kubernetes.io/zone`.
    pub zone: Option<String>,
    /// Its primary addresses, at which node ports answer; one per family.
    pub addresses: Vec<IpAddr>,
    /// The ranges of its own pods.
    pub pod_cidrs: Vec<IpNet>,
    /// Ranges to which pods talk with their own address: cluster CIDRs, or the
    /// pod ranges of all nodes where those are not known.
    pub cluster_cidrs: Vec<IpNet>,
    /// Addresses of all nodes, to which pods talk with their own address too.
    pub node_addresses: Vec<IpAddr>,
    /// Ranges of Service addresses, where known: what is sent to an address of
    /// them that no Service has is dropped.
    pub service_cidrs: Vec<IpNet>,
}

/// A place traffic is sent to: one address and port of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Backend {
    /// Address.
    pub address: IpAddr,
    /// Port.
    pub port: u16,
}

/// A place traffic is sent for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrontendKey {
    /// Address.
    pub address: IpAddr,
    /// Protocol.
    pub protocol: Protocol,
    /// Port.
    pub port: u16,
}

/// Reads an address as the API server may hold it: old objects have IPv4
/// addresses with leading zeros, which Kubernetes reads as decimal. `None` for
/// what is no address, or none that can be sent to.
#[must_use]
pub fn parse_address(text: &str) -> Option<IpAddr> {
    let address = match text.parse() {
        Ok(address) => address,
        Err(_) => {
            let mut octets = [0u8; 4];
            let mut parts = text.split('.');
            for octet in &mut octets {
                let part = parts.next()?;
                if part.is_empty() || part.len() > 16 || !part.bytes().all(|b| b.is_ascii_digit()) {
                    return None;
                }
                *octet = part
                    .trim_start_matches('0')
                    .parse()
                    .or_else(|error| {
                        if part.bytes().all(|b| b == b'0') {
                            Ok(0)
                        } else {
                            Err(error)
                        }
                    })
                    .ok()?;
            }
            if parts.next().is_some() {
                return None;
            }
            IpAddr::V4(Ipv4Addr::from(octets))
        }
    };
    let address = match address {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), IpAddr::V4),
        v4 => v4,
    };
    (!address.is_unspecified() && !address.is_multicast()).then_some(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[rstest::rstest]
    #[case("10.0.0.1", Some("10.0.0.1"))]
    #[case("010.000.0.01", Some("10.0.0.1"))]
    #[case("::ffff:10.0.0.1", Some("10.0.0.1"))]
    #[case("fd00::1", Some("fd00::1"))]
    #[case("10.0.0", None)]
    #[case("10.0.0.256", None)]
    #[case("10.0.0.1.1", None)]
    #[case("0.0.0.0", None)]
    #[case("::", None)]
    #[case("ff02::1", None)]
    #[case("None", None)]
    #[case("", None)]
    fn addresses_are_read_leniently_or_not_at_all(
        #[case] text: &str,
        #[case] expected: Option<&str>,
    ) {
        assert_eq!(
            parse_address(text),
            expected.map(|e| e.parse().expect("a literal"))
        );
    }
}
