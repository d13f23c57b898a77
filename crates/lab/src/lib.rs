//! The cluster on one machine: `podwire lab`.
//!
//! A lab is a tree of processes below a supervisor (see ARCHITECTURE.md):
//! [`supervisor`] is the first process of the lab's PID namespace and holds its
//! network, [`node`] that of each node, [`control_plane`] the API server and
//! the controllers. The commands here talk to the supervisor over a socket and
//! to the cluster through its API.

mod apply;
mod cgroup;
mod cluster;
mod command;
pub mod config;
pub mod control_plane;
mod down;
mod exec;
mod features;
mod init;
mod internet;
mod lock;
pub mod manifests;
pub mod node;
pub mod paths;
mod progress;
mod protocol;
mod publish;
mod readiness;
mod summary;
pub mod supervisor;
mod underlay;
mod up;

pub use command::{Error, Options, run, run_on_node};
