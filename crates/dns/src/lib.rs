//! Cluster DNS on every node: names of Services and pods, answered from the
//! same watch that programs the Services.
//!
//! - [`model`]: what the zone is made of, free of Kubernetes types;
//! - [`zone`]: the records, kept one Service at a time; a change of an endpoint
//!   touches its Service's entry and nothing else;
//! - [`basis`]: what an answer was made from, to know whether it still holds;
//! - [`lookup`]: a pure function from a zone, a question and what is known of
//!   the client to an answer, with the reason;
//! - [`search`]: the client's search list walked here instead of there;
//! - [`forward`]: what is not ours, with [`cache`] and [`upstream`];
//! - [`server`]: sockets, threads, limits.
//!
//! The rules are those of the Kubernetes DNS-Based Service Discovery
//! Specification 1.1.0 and of RFC 1034, 1035, 2308, 6891, 7766, 8020 and 8482.

pub mod basis;
pub mod cache;
pub mod config;
pub mod forward;
pub mod journal;
pub mod limit;
pub mod lookup;
pub mod message;
pub mod metrics;
pub mod model;
pub mod names;
pub mod resolv_conf;
pub mod resolver;
pub mod search;
pub mod server;
pub mod upstream;
pub mod zone;

pub use basis::View;
pub use config::{Config, PodRecords};
pub use lookup::{Answer, Outcome, Reason, lookup};
pub use server::{Server, Shared, Sockets};
pub use zone::Zone;
