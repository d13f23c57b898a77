//! What the proxy is told: Services, their endpoint slices and this node's
//! facts, reduced to the fields that matter here. Addresses stay text until the
//! table reads them, so that one that is not an address spoils nothing else.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use ipnet::IpNet;
use serde::Serialize;

/// IP version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
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

    /// As `nft` and `iptables` name it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
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
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct ServiceName {
    /// Namespace. Shared: many Services are in one.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Box<str>,
}

impl ServiceName {
    /// From its two parts.
    #[must_use]
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Box<str>>) -> Self {
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub enum TrafficPolicy {
    /// Any.
    #[default]
    Cluster,
    /// Only those on this node.
    Local,
}

/// A port of a Service. Numbers are as the object has them; the table reports
/// those that are no ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name; empty for the only port of a Service.
    pub name: String,
    /// Its protocol.
    pub protocol: Protocol,
    /// The port at the Service's addresses.
    pub port: i32,
    /// The port at the node's addresses, for Services that have one.
    pub node_port: Option<i32>,
}

/// A Service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Service {
    /// Its name.
    pub name: ServiceName,
    /// `spec.clusterIPs`; without an address (empty, `None`) the Service is not proxied.
    pub cluster_ips: Vec<String>,
    /// Addresses of its load balancer: those of `status.loadBalancer` whose
    /// `ipMode` is not `Proxy`.
    pub load_balancer_ips: Vec<String>,
    /// `spec.externalIPs`; only those that [`NodeFacts::external_ip_cidrs`]
    /// permits are programmed.
    pub external_ips: Vec<String>,
    /// `spec.loadBalancerSourceRanges`: who may use the load-balancer addresses.
    /// Of each family, no range or one of length zero means everybody. One that
    /// cannot be read admits nobody, and keeps the filter in force.
    pub source_ranges: Vec<String>,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// `spec.internalTrafficPolicy`: of traffic to the cluster addresses.
    pub internal_policy: TrafficPolicy,
    /// `spec.externalTrafficPolicy`: of traffic to node ports, load-balancer
    /// and external addresses.
    pub external_policy: TrafficPolicy,
    /// Session affinity by client address: for how many seconds after its last
    /// connection a client keeps its endpoint. Held between 1 and 86,400.
    pub affinity: Option<u32>,
    /// `spec.healthCheckNodePort`, of a load balancer whose external policy is `Local`.
    pub health_check_node_port: Option<i32>,
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
    /// The port at the endpoint's address, as the object has it; slices without
    /// one are not proxied.
    pub port: Option<i32>,
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

/// At which of the node's addresses node ports answer. Never at loopback and
/// link-local addresses, and of Services' addresses only at a primary one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum NodePortAddresses {
    /// At its primary ones.
    #[default]
    Primary,
    /// At those of all its interfaces.
    All,
    /// At those within these ranges.
    Ranges(Vec<IpNet>),
}

/// What the proxy has to know of its node and of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeFacts {
    /// This node's name.
    pub node: String,
    /// Its `topology.kubernetes.io/zone`.
    pub zone: Option<String>,
    /// Its primary addresses; one per family.
    pub addresses: Vec<IpAddr>,
    /// All addresses of its interfaces; only needed where node ports answer at
    /// others than the primary ones.
    pub local_addresses: Vec<IpAddr>,
    /// At which of them node ports answer.
    pub node_port_addresses: NodePortAddresses,
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
    /// Ranges that `spec.externalIPs` may be of. None by default: whoever may
    /// make a Service could take any address with them (CVE-2020-8554).
    pub external_ip_cidrs: Vec<IpNet>,
    /// Pods ask cluster addresses under their node's address too.
    pub masquerade_all: bool,
    /// Pods of this node are not told from others: connections to cluster
    /// addresses keep their source, and pods that ask a Service whose external
    /// policy is `Local` from outside get local endpoints only.
    pub no_local_detection: bool,
}

/// A place traffic is sent to: one address and port of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Backend {
    /// Address.
    pub address: IpAddr,
    /// Port.
    pub port: u16,
}

/// A place traffic is sent for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct FrontendKey {
    /// Address.
    pub address: IpAddr,
    /// Protocol.
    pub protocol: Protocol,
    /// Port.
    pub port: u16,
}

impl std::fmt::Display for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::net::SocketAddr::new(self.address, self.port).fmt(f)
    }
}

impl std::fmt::Display for FrontendKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let address = std::net::SocketAddr::new(self.address, self.port);
        write!(f, "{address}/{}", self.protocol.name())
    }
}

/// A port number as objects have it; `None` outside 1 to 65,535.
#[must_use]
pub fn parse_port(number: i32) -> Option<u16> {
    u16::try_from(number).ok().filter(|number| *number != 0)
}

/// Reads a range of addresses as leniently as [`parse_address`]; host bits are
/// cleared. `None` for what is no range.
#[must_use]
pub fn parse_range(text: &str) -> Option<IpNet> {
    let (address, length) = text.trim().split_once('/')?;
    if length.is_empty() || !length.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let address = lenient_address(address)?;
    IpNet::new(address, length.parse().ok()?)
        .ok()
        .map(|range| range.trunc())
}

/// Reads an address as the API server may hold it: old objects have IPv4
/// addresses with leading zeros, which Kubernetes reads as decimal. `None` for
/// what is no address, or none that can be sent to.
#[must_use]
pub fn parse_address(text: &str) -> Option<IpAddr> {
    lenient_address(text).filter(|address| !address.is_unspecified() && !address.is_multicast())
}

fn lenient_address(text: &str) -> Option<IpAddr> {
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
    Some(match address {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), IpAddr::V4),
        v4 => v4,
    })
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

    #[rstest::rstest]
    #[case("10.0.0.0/8", Some("10.0.0.0/8"))]
    #[case(" 10.1.2.3/8 ", Some("10.0.0.0/8"))]
    #[case("010.001.000.000/016", Some("10.1.0.0/16"))]
    #[case("0.0.0.0/0", Some("0.0.0.0/0"))]
    #[case("::/0", Some("::/0"))]
    #[case("fd00::/64", Some("fd00::/64"))]
    #[case("10.0.0.0", None)]
    #[case("10.0.0.0/33", None)]
    #[case("10.0.0.0/-1", None)]
    #[case("10.0.0.0/+8", None)]
    #[case("/8", None)]
    #[case("", None)]
    fn ranges_are_read_leniently_or_not_at_all(#[case] text: &str, #[case] expected: Option<&str>) {
        assert_eq!(
            parse_range(text),
            expected.map(|e| e.parse().expect("a literal"))
        );
    }

    #[test]
    fn port_numbers_are_those_of_sixteen_bits_without_zero() {
        assert_eq!(
            [-1, 0, 1, 65_535, 65_536, i32::MAX].map(parse_port),
            [None, None, Some(1), Some(65_535), None, None]
        );
    }
}
