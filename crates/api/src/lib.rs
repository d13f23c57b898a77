//! The Kubernetes kinds podwire's daemons read, trimmed to the fields they
//! read, and the list + watch that feeds them.
//!
//! The types here are *slim*: a field nobody uses is not decoded and costs no
//! memory. Addresses that appear by the thousand are parsed while decoding, so
//! that a Service or an endpoint holds no strings it does not need.
//!
//! [`watch::watch`] keeps a consumer informed about all objects of a kind; what
//! it does when the API server is lost, restarted or compacted is described
//! there.

mod decode;

pub mod client;
pub mod endpointslice;
#[cfg(feature = "fake")]
pub mod fake;
pub mod meta;
pub mod namespace;
pub mod networkpolicy;
pub mod node;
pub mod patch;
pub mod pod;
pub mod service;
pub mod watch;

pub use decode::parse_address;
pub use endpointslice::{AddressType, Endpoint, EndpointPort, EndpointSlice};
pub use meta::{Key, LabelSelector, Metadata, Protocol, Resource};
pub use namespace::Namespace;
pub use networkpolicy::NetworkPolicy;
pub use node::Node;
pub use pod::Pod;
pub use service::{Service, ServicePort, ServiceType, TrafficPolicy};
pub use watch::{Event, Scope};
