//! Node ranges: every node gets its part of each cluster CIDR in
//! `spec.podCIDR` and `spec.podCIDRs`, no range is ever two nodes', and a
//! range is free again when its Node object is gone.

mod controller;
mod plan;
mod pool;

pub(crate) use controller::run;
pub use plan::check;
pub use pool::{ClusterCidr, RangeError};
