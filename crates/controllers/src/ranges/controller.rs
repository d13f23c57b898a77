//! Applies the ranges to Node objects.

use super::plan::Ranges;
use super::pool::{ClusterCidr, RangeError};
use crate::cluster::Cluster;
use crate::object::{self, Key};
use crate::queue::Queue;
use crate::work::{self, Outcome};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::jiff::Timestamp;
use serde_json::json;
use std::sync::Arc;
use tokio::sync::{Mutex, watch};
use tokio::task::JoinSet;

const COMPONENT: &str = "node-ipam-controller";

struct State {
    ranges: Ranges,
    /// Whether the nodes that were there at the start have been adopted: none
    /// may get a new range before all old ones are known.
    adopted: bool,
}

/// Starts the controller.
pub(crate) fn run(
    cluster: &Arc<Cluster>,
    cidrs: &[ClusterCidr],
    tasks: &mut JoinSet<()>,
    start: &watch::Receiver<bool>,
) -> Result<(), RangeError> {
    let queue: Arc<Queue<String>> = Arc::default();
    let state = Arc::new(Mutex::new(State {
        ranges: Ranges::new(cidrs)?,
        adopted: false,
    }));
    cluster.nodes.subscribe({
        let queue = queue.clone();
        let cluster = Arc::downgrade(cluster);
        move |change| {
            let has_range = |node: &Arc<Node>| !ranges_of(node).is_empty();
            let settled = change.old.as_ref().is_some_and(has_range)
                && change.new.as_ref().is_some_and(has_range);
            if !settled {
                queue.add(change.key.name.clone());
            }
            // A range may be free now for those that found none.
            if change.new.is_none()
                && let Some(cluster) = cluster.upgrade()
            {
                for node in cluster.nodes.all() {
                    if ranges_of(&node).is_empty() {
                        queue.add(object::name(&node.metadata).to_owned());
                    }
                }
            }
        }
    });
    // One worker: who comes first gets the lower range.
    work::spawn(tasks, COMPONENT, 1, &queue, start, {
        let cluster = cluster.clone();
        move |node| {
            let (cluster, state) = (cluster.clone(), state.clone());
            async move { reconcile(&cluster, &mut *state.lock().await, &node).await }
        }
    });
    Ok(())
}

fn ranges_of(node: &Node) -> Vec<IpNet> {
    let Some(spec) = &node.spec else {
        return Vec::new();
    };
    let texts = match &spec.pod_cidrs {
        Some(many) if !many.is_empty() => many.as_slice(),
        _ => spec.pod_cidr.as_slice(),
    };
    texts.iter().filter_map(|text| text.parse().ok()).collect()
}

async fn reconcile(cluster: &Cluster, state: &mut State, name: &str) -> Outcome {
    if !state.adopted {
        let mut nodes = cluster.nodes.all();
        nodes.sort_by_key(|node| object::created(&node.metadata));
        for node in nodes {
            adopt(cluster, &mut state.ranges, &node);
        }
        state.adopted = true;
    }
    let key = Key::cluster(name);
    let Some(node) = cluster.nodes.get(&key) else {
        state.ranges.release(name);
        return Ok(None);
    };
    if !ranges_of(&node).is_empty() {
        adopt(cluster, &mut state.ranges, &node);
        return Ok(None);
    }
    let uid = object::uid(&node.metadata);
    match state.ranges.assign(name, uid) {
        Ok(ranges) => {
            let texts: Vec<_> = ranges.iter().map(IpNet::to_string).collect();
            let change = json!({
                "metadata": {"uid": uid},
                "spec": {"podCIDR": texts.first(), "podCIDRs": texts},
            });
            cluster.nodes.merge(&key, change).await?;
            tracing::info!(node = name, ranges = ?texts, "node has its ranges");
            if network_condition(&node) == Some(("True", "CIDRNotAvailable")) {
                let text = "the node has its pod ranges";
                set_network(cluster, &key, "False", "CIDRAssigned", text).await?;
            }
        }
        Err(error) => {
            let text = error.to_string();
            tracing::warn!(node = name, %error, "node gets no range");
            cluster
                .recorder
                .warning(COMPONENT, &*node, "CIDRNotAvailable", text.clone());
            if network_condition(&node) != Some(("True", "CIDRNotAvailable")) {
                set_network(cluster, &key, "True", "CIDRNotAvailable", &text).await?;
            }
        }
    }
    Ok(None)
}

fn adopt(cluster: &Cluster, ranges: &mut Ranges, node: &Node) {
    let has = ranges_of(node);
    if has.is_empty() {
        return;
    }
    let name = object::name(&node.metadata);
    for problem in ranges.adopt(name, object::uid(&node.metadata), &has) {
        tracing::warn!(node = name, %problem, "node has a range that is not right");
        let reason = match problem {
            RangeError::Taken { .. } => "CIDROverlap",
            _ => "CIDROutsideCluster",
        };
        cluster
            .recorder
            .warning(COMPONENT, node, reason, problem.to_string());
    }
}

fn network_condition(node: &Node) -> Option<(&str, &str)> {
    let conditions = node.status.as_ref()?.conditions.as_ref()?;
    let network = conditions
        .iter()
        .find(|condition| condition.type_ == "NetworkUnavailable")?;
    Some((
        network.status.as_str(),
        network.reason.as_deref().unwrap_or_default(),
    ))
}

async fn set_network(
    cluster: &Cluster,
    key: &Key,
    status: &str,
    reason: &str,
    message: &str,
) -> Result<(), crate::mirror::Failure> {
    let now = object::time(Timestamp::now());
    let change = json!({"status": {"conditions": [{
        "type": "NetworkUnavailable",
        "status": status,
        "reason": reason,
        "message": message,
        "lastHeartbeatTime": now,
        "lastTransitionTime": now,
    }]}});
    cluster.nodes.merge_status(key, change).await
}
