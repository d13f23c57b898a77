//! The lab's controllers and scheduler. They see the cluster by list + watch
//! alone and change it through the API alone.

mod claim;
mod cluster;
mod create;
mod daemonset;
mod deployment;
mod endpoints;
mod events;
mod garbage;
mod hash;
mod intstr;
mod lifecycle;
mod mirror;
mod object;
mod pods;
mod quantity;
mod queue;
mod ranges;
mod replicaset;
mod revision;
mod scheduler;
mod selector;
mod statefulset;
mod table;
mod taints;
mod upkeep;
mod work;

use cluster::Cluster;
use events::Recorder;
pub use object::Key;
pub use ranges::{ClusterCidr, RangeError, check as check_cidrs};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// What the controllers must know of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Cluster CIDRs, one a family; the first is the primary family.
    pub cluster_cidrs: Vec<ClusterCidr>,
    /// How long a node may be silent (neither Lease nor status renewed) before
    /// its conditions become Unknown.
    pub node_grace: Duration,
    /// How long pods without a toleration of their own stay on a node that is
    /// not ready or unreachable.
    pub eviction_after: Duration,
    /// How long a pod may name a node that has never been seen before it is
    /// deleted. Pods of a node that is removed go at once.
    pub orphan_grace: Duration,
    /// How long Events are kept.
    pub event_ttl: Duration,
}

impl Default for Config {
    fn default() -> Self {
        let cidr = |cidr: ipnet::IpNet, node_prefix| ClusterCidr { cidr, node_prefix };
        let v4 = ipnet::Ipv4Net::new_assert(std::net::Ipv4Addr::new(10, 200, 0, 0), 16);
        let v6 = ipnet::Ipv6Net::new_assert(
            std::net::Ipv6Addr::new(0xfd00, 0x200, 0, 0, 0, 0, 0, 0),
            48,
        );
        Self {
            cluster_cidrs: vec![cidr(v4.into(), 24), cidr(v6.into(), 64)],
            node_grace: Duration::from_secs(40),
            eviction_after: Duration::from_secs(300),
            orphan_grace: Duration::from_secs(40),
            event_ttl: Duration::from_secs(3600),
        }
    }
}

/// Why the controllers cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The cluster CIDRs cannot be used.
    #[error(transparent)]
    Ranges(#[from] RangeError),
    /// A task of theirs died, which is a fault of the program.
    #[error("a controller task died: {0}; its work is not done any more, restart the process")]
    Task(#[source] tokio::task::JoinError),
}

/// Runs all controllers until an error or until dropped, which ends them all.
///
/// # Errors
/// When the configuration is wrong, or a task panics.
pub async fn run(client: kube::Client, config: Config) -> Result<(), Error> {
    let mut tasks = JoinSet::new();
    let (recorder, writer) = Recorder::new(client.clone());
    tasks.spawn(writer);
    let cluster = Cluster::new(client, recorder);
    let (started, start) = watch::channel(false);

    ranges::run(&cluster, &config.cluster_cidrs, &mut tasks, &start)?;
    lifecycle::run(&cluster, &config, &mut tasks, &start);
    scheduler::run(&cluster, &mut tasks, &start);
    garbage::run(&cluster, &mut tasks, &start);
    upkeep::run(&cluster, config.event_ttl, &mut tasks, &start);
    statefulset::run(&cluster, &mut tasks, &start);
    daemonset::run(&cluster, &mut tasks, &start);
    deployment::run(&cluster, &mut tasks, &start);
    endpoints::run(&cluster, &mut tasks, &start);
    replicaset::run(&cluster, &mut tasks, &start);

    cluster.follow(&mut tasks);
    cluster.complete().await;
    started.send_replace(true);
    while let Some(ended) = tasks.join_next().await {
        ended.map_err(Error::Task)?;
    }
    Ok(())
}
