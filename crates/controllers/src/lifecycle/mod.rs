//! Node lifecycle: silent nodes become Unknown, the state of a node shows in
//! its taints, and pods leave nodes they do not tolerate or that are gone.

mod eviction;
mod heartbeat;
mod orphans;
mod plan;

pub(crate) use plan::state_taints;

use crate::Config;
use crate::cluster::Cluster;
use std::sync::Arc;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Starts the controllers.
pub(crate) fn run(
    cluster: &Arc<Cluster>,
    config: &Config,
    tasks: &mut JoinSet<()>,
    start: &watch::Receiver<bool>,
) {
    heartbeat::run(cluster, config.node_grace, tasks, start);
    eviction::run(cluster, config.eviction_after, tasks, start);
    orphans::run(cluster, config.orphan_grace, tasks, start);
}
