//! The node daemon: learns the wanted state of the cluster's network from the
//! Kubernetes API and keeps this node's kernel at it.
//!
//! One process a node, the same on a real cluster and in a lab. The parts:
//!
//! - `feed`: watches Nodes, Services and EndpointSlices;
//! - `cluster`: this node and its peers, validated, from Node objects;
//! - `routes`: a thread that keeps what carries packets between nodes, and
//!   kernel settings; `publish` tells the others how this node is reached;
//! - `proxy`: a thread that keeps Services;
//! - `dns`: names of Services and pods, answered on the node;
//! - `run`: the loop, which writes the CNI configuration, whose presence says
//!   that the node is ready for pods, when everything else is in force for the
//!   first time;
//! - `bridge_guard`: holds what spares pods of a bridge settings of their own;
//! - `ipam_audit`: frees the addresses of pods that vanished without a trace;
//! - `policy_socket`: tells the CNI plugin when a pod's policies are in force;
//! - `health`: what it says about itself over HTTP, and `metrics`;
//! - `silence`: which peers do not answer where a back end relies on multicast;
//! - `flannel`: nodes of flannel in the same cluster, while podwire replaces it;
//! - `culprits`: who removes routes of ours;
//! - `healthcheck`: what it answers load balancers about Services;
//! - `event_writer`: what it tells users about their objects, as Events;
//! - `runner`: when what has changed is applied;
//! - [`admin`]: what it tells commands about its state, over a Unix socket.
//!
//! Changes are taken up at once and applied together: while one change is being
//! applied those that arrive gather, and then go into the kernel in one go.
//! When the agent ends, for whatever reason, the data plane stays as it is; the
//! next one adopts it.

pub mod admin;
mod bridge_guard;
mod cleanup;
mod cluster;
mod conntrack_watch;
mod culprits;
mod dns;
mod error;
mod event_writer;
mod fast_path;
mod feed;
mod flannel;
mod forwarding;
mod health;
mod healthcheck;
mod http;
pub mod inspection;
mod ipam_audit;
mod kernel_events;
mod latest;
mod metrics;
mod options;
mod pods;
mod policy_socket;
mod privileges;
mod programming;
mod proxy;
mod publish;
mod routes;
mod run;
mod runner;
mod settings;
mod silence;
mod snapshot;
mod translate;
mod worker;

pub use cleanup::{Removed, cleanup};
pub use dns::{
    Answer as DnsAnswer, DnsOptions, Mode as DnsMode, Note as DnsNote, Pods as DnsPods,
    Record as DnsRecord, Records as DnsRecords,
};
pub use error::Error;
pub use fast_path::Report as FastPathReport;
pub use forwarding::{
    Entry as ForwardingEntry, Origin as ForwardingOrigin, Table as ForwardingTable,
};
pub use health::Snapshot as Status;
pub use options::{Attach, FastPath, Options, Period, Proxy};
pub use run::{run, run_until};
pub use snapshot::{Entry as RoutingEntry, Snapshot as RoutingSnapshot};
