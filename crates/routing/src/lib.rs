//! Node-to-node pod routing: what the kernel has to hold so that a packet for
//! a pod of another node gets there.
//!
//! In three parts, each in its own module:
//!
//! - [`plan`](mod@plan): a pure function from this node, its peers and the
//!   underlay to the routes wanted, with a reason for everything refused. How a
//!   peer is reached is a [`backend::Backend`]'s decision;
//! - [`difference`](mod@difference): what has to change, given what the kernel
//!   holds;
//! - [`apply`]: reads the kernel and carries out the difference.
//!
//! A restart adopts what is there. Routes made by others are reported when they
//! divert pod traffic, and never touched.

pub mod apply;
pub mod backend;
pub mod difference;
pub mod model;
pub mod plan;
pub mod service_range;

pub use apply::{Interface, RouteTable, Underlay};
pub use backend::{Backend, HostGateway};
pub use difference::{Difference, Foreign, KernelRoute, difference};
pub use model::{Node, Route, RouteKey, RouteTarget, Subnet};
pub use plan::{Plan, Reason, Refusal, plan};
