//! The kubelet in miniature: runs the pods that the API binds to its node.
//!
//! Per pod a [`pause`] process holds the namespaces, which a CNI plugin chain
//! connects; per container a [`monitor`] process runs an OCI runtime (`crun`)
//! and keeps log and exit code. Both outlive the kubelet, which adopts them
//! when it starts again.

mod backoff;
mod cgroup;
mod cni;
mod container;
mod disk;
mod error;
mod events;
pub mod images;
mod kubelet;
pub mod logs;
pub mod monitor;
mod node;
mod options;
pub mod paths;
pub mod pause;
mod plan;
mod pod;
mod probe;
pub mod record;

pub use error::Error;
pub use kubelet::run;
pub use options::Options;
