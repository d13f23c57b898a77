//! What of an object cannot be programmed, and why. The rest of the object, and
//! all others, are programmed all the same.

use std::fmt;
use std::net::IpAddr;

use serde::Serialize;

use crate::model::{FrontendKey, ServiceName};

/// Where a text stands that should be an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum AddressField {
    /// `spec.clusterIPs`.
    ClusterIp,
    /// `spec.externalIPs`.
    ExternalIp,
    /// `status.loadBalancer.ingress`.
    LoadBalancer,
}

impl AddressField {
    const fn name(self) -> &'static str {
        match self {
            Self::ClusterIp => "spec.clusterIPs",
            Self::ExternalIp => "spec.externalIPs",
            Self::LoadBalancer => "status.loadBalancer.ingress",
        }
    }
}

/// Something of a Service, or of its slices, that is left out.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum Problem {
    /// A text that is no address, or none that can be sent to.
    Address {
        /// Where it stands.
        field: AddressField,
        /// The text.
        text: String,
    },
    /// An external address that the operator has not permitted.
    ExternalIpRefused {
        /// The address.
        address: IpAddr,
    },
    /// An entry of `spec.loadBalancerSourceRanges` that is no range: it admits nobody.
    SourceRange {
        /// The text.
        text: String,
    },
    /// A number that is no port.
    Port {
        /// The field it is in.
        field: &'static str,
        /// The port's name; empty if it has none.
        name: String,
        /// The number.
        number: i32,
    },
    /// A number in a slice that is no port.
    SlicePort {
        /// The slice's name.
        slice: String,
        /// The port's name; empty if it has none.
        name: String,
        /// The number.
        number: i32,
    },
    /// Endpoints of a slice whose addresses cannot be read, or are not of the
    /// slice's family.
    EndpointAddresses {
        /// The slice's name.
        slice: String,
        /// The first such address, as it stands there.
        example: String,
        /// How many there are.
        count: usize,
    },
    /// Another Service has the address and port; the first by namespace and
    /// name keeps it.
    Taken {
        /// What both claim.
        frontend: FrontendKey,
        /// Who has it.
        holder: ServiceName,
    },
}

impl Problem {
    /// A word for programs, as Events have it in `reason`.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Address { .. } => "InvalidAddress",
            Self::ExternalIpRefused { .. } => "ExternalIPRefused",
            Self::SourceRange { .. } => "InvalidSourceRange",
            Self::Port { .. } | Self::SlicePort { .. } => "InvalidPort",
            Self::EndpointAddresses { .. } => "InvalidEndpoint",
            Self::Taken { .. } => "PortTaken",
        }
    }
}

/// For people: what is left out, why, and what to do.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = |name: &str| match name {
            "" => String::new(),
            name => format!(" of port {name:?}"),
        };
        match self {
            Self::Address { field, text } => write!(
                f,
                "{} has {text:?}, which is no address traffic can be sent to; it is left out",
                field.name()
            ),
            Self::ExternalIpRefused { address } => write!(
                f,
                "external address {address} is not programmed: it is in no range that the \
                 operator permits (agent option --external-ip-cidr)"
            ),
            Self::SourceRange { text } => write!(
                f,
                "spec.loadBalancerSourceRanges has {text:?}, which is no range of addresses; it \
                 admits nobody, and the other ranges stay in force"
            ),
            Self::Port {
                field,
                name,
                number,
            } => write!(
                f,
                "{field}{} is {number}, which is no port (1 to 65535); it is left out",
                named(name)
            ),
            Self::SlicePort {
                slice,
                name,
                number,
            } => write!(
                f,
                "EndpointSlice {slice} gives {number} as the number{}, which is no port \
                 (1 to 65535); its endpoints are left out there",
                named(name)
            ),
            Self::EndpointAddresses {
                slice,
                example,
                count,
            } => write!(
                f,
                "EndpointSlice {slice} has {count} endpoint(s) whose address is no address of \
                 its addressType, such as {example:?}; they are left out"
            ),
            Self::Taken { frontend, holder } => write!(
                f,
                "{frontend} belongs to Service {holder} already; change the address or port of \
                 one of the two"
            ),
        }
    }
}
