//! The CNI plugin `podwire-cni`: attaches pods to a node's network.
//!
//! A runtime starts the plugin with its order in environment variables and the
//! configuration on stdin, and reads the result (or the error) as JSON from
//! stdout. See the CNI specification, versions 0.1.0 to 1.1.0.
//!
//! [`plugin::run`] is all of it; the other modules are the protocol
//! ([`arguments`], [`configuration`], [`result`], [`version`], [`error`]), the
//! ways to attach a pod ([`attach`]), asking the agent about policies ([`policy`]), putting the plugin on a node ([`install`],
//! [`unmanaged`]), what pods of a bridge are spared ([`bridge_guard`]), and finding and freeing what vanished
//! sandboxes left behind ([`audit`]).

pub mod arguments;
pub mod attach;
pub mod audit;
pub mod bandwidth;
pub mod bridge_guard;
pub mod configuration;
pub mod error;
pub mod hostports;
pub mod install;
pub mod log;
pub mod plugin;
pub mod policy;
pub mod reaper;
pub mod resolv_conf;
pub mod result;
pub mod unmanaged;
pub mod version;
