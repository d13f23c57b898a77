//! Node-to-node pod routing: what the kernel has to hold so that a packet for
//! a pod of another node gets there.
//!
//! In three parts, each in its own module:
//!
//! - [`plan`](mod@plan): a pure function from this node, its peers and the
//!   underlay to the [state](model::State) wanted, with a reason for everything
//!   refused. How a peer is reached is a [`backend::Backend`]'s decision; which
//!   of several back ends two nodes use is [`choose`]'s;
//! - [`difference`](mod@difference): what has to change, given what the kernel
//!   holds;
//! - [`apply`]: reads the kernel and carries out the difference.
//!
//! A restart adopts what is there. Routes made by others are reported when they
//! divert pod traffic, and never touched.

pub mod apply;
pub mod backend;
pub mod changes;
pub mod choose;
pub mod data;
pub mod difference;
pub mod keys;
pub mod model;
pub mod plan;
pub mod probe;
pub mod service_range;
pub mod table;
pub mod underlay;
pub mod ways;

pub use apply::Kernel;
pub use backend::{Backend, HostGateway, Settings};
pub use changes::Changes;
pub use data::NodeData;
pub use difference::{Difference, Foreign, difference};
pub use model::{Family, Node, PerFamily, Route, RouteKey, RouteTarget, State};
pub use plan::{Basis, Plan, Planner, Reason, Refusal, leaving, plan, plan_on};
pub use underlay::{Interface, Subnet, Underlay};
