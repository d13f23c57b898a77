//! Services: from Services and endpoint slices to the rules that send packets
//! to endpoints.
//!
//! - [`model`]: what the proxy is told;
//! - [`table`]: the service table, pure and incremental;
//! - [`endpoints`]: which endpoints of a Service are used and why others are not, pure;
//! - [`report`]: what cannot be programmed and why;
//! - [`by_family`]: hash maps by addresses that take no more room than they need;
//! - [`compile`]: from the table to nftables objects, pure;
//! - [`difference`]: from what the kernel has to what it should have, pure;
//! - [`conversations`]: which UDP and SCTP entries of conntrack are wrong, pure but for the deletion;
//! - [`simulate`]: what the planned rules would do with a packet, pure;
//! - [`data_plane`]: what each proxy is to the rest;
//! - [`nftables`]: the nftables proxy: applies differences, adopts what a previous run left, audits;
//! - [`iptables`]: the iptables proxy;
//! - [`ipvs`]: the IPVS proxy;
//! - [`settings`]: which proxy to run, and changing from one to another;
//! - [`proxy`]: takes events, holds the table, and looks after conversations.

mod adopt;
pub mod by_family;
pub mod compile;
pub mod conversations;
pub mod data_plane;
pub mod difference;
pub mod endpoints;
pub mod iptables;
pub mod ipvs;
pub mod model;
pub mod nftables;
pub mod proxy;
pub mod report;
pub mod settings;
pub mod simulate;
pub mod table;

pub use data_plane::{DataPlane, Limit, ProxyMode, Traffic};
pub use model::{
    Backend, Endpoint, EndpointSlice, Family, FrontendKey, NodeFacts, NodePortAddresses, Protocol,
    Service, ServiceName, ServicePort, SlicePort, TrafficPolicy,
};
pub use proxy::{Error, Proxy, Stats};
pub use settings::ProxySettings;
