//! Applies the plan of a Service's slices.

use super::desired::{desired, is_selecting};
use super::plan::{Changes, MANAGED_BY, MANAGER, SERVICE_NAME, plan};
use super::trigger::Triggers;
use crate::cluster::Cluster;
use crate::mirror::{Failure, Mirror};
use crate::object::{self, Key};
use crate::pods;
use crate::queue::Queue;
use crate::selector;
use crate::work::{self, Outcome};
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::watch;
use tokio::task::JoinSet;

const COMPONENT: &str = "endpoint-slice-controller";
/// A burst of changes is answered this often.
const PACE: std::time::Duration = std::time::Duration::from_millis(10);

/// Starts the controller.
pub(crate) fn run(cluster: &Arc<Cluster>, tasks: &mut JoinSet<()>, start: &watch::Receiver<bool>) {
    let queue: Arc<Queue<Key>> = Queue::paced(PACE);
    cluster.services.subscribe({
        let queue = queue.clone();
        move |change| queue.add(change.key.clone())
    });
    cluster.pods.subscribe({
        let queue = queue.clone();
        let services = Arc::downgrade(&cluster.services);
        move |change| {
            let Some(services) = services.upgrade() else {
                return;
            };
            if let (Some(old), Some(new)) = (&change.old, &change.new)
                && essence(old) == essence(new)
            {
                return;
            }
            add_services_of(&services, change.both(), &queue);
        }
    });
    cluster.nodes.subscribe({
        let queue = queue.clone();
        let (services, pods) = (
            Arc::downgrade(&cluster.services),
            Arc::downgrade(&cluster.pods),
        );
        move |change| {
            let labels = |node: &Option<Arc<Node>>| {
                node.as_ref()
                    .map(|node| selector::labels(&node.metadata).clone())
            };
            if labels(&change.old) == labels(&change.new) {
                return;
            }
            let (Some(services), Some(pods)) = (services.upgrade(), pods.upgrade()) else {
                return;
            };
            let pods = pods.all();
            let here = pods
                .iter()
                .filter(|pod| pods::node(pod) == Some(change.key.name.as_str()));
            add_services_of(&services, here, &queue);
        }
    });
    // Somebody else may change or delete our slices.
    cluster.slices.subscribe({
        let queue = queue.clone();
        move |change| {
            for slice in change.both() {
                if is_ours(slice)
                    && let Some(service) = object::label(&slice.metadata, SERVICE_NAME)
                {
                    queue.add(Key::new(&change.key.namespace, service));
                }
            }
        }
    });
    let triggers = Arc::new(Mutex::new(Triggers::default()));
    work::spawn(tasks, COMPONENT, 8, &queue, start, {
        let cluster = cluster.clone();
        move |key| {
            let (cluster, triggers) = (cluster.clone(), triggers.clone());
            async move { reconcile(&cluster, &triggers, &key).await }
        }
    });
}

fn is_ours(slice: &EndpointSlice) -> bool {
    object::label(&slice.metadata, MANAGED_BY) == Some(MANAGER)
}

/// What of a pod shows in slices.
fn essence(pod: &Pod) -> impl PartialEq {
    let status = pod.status.as_ref();
    (
        pod.metadata.labels.clone(),
        object::is_deleting(&pod.metadata),
        pods::is_finished(pod),
        pods::is_ready(pod),
        pods::node(pod).map(str::to_owned),
        status.and_then(|status| status.pod_ip.clone()),
        status.and_then(|status| status.pod_ips.clone()),
    )
}

fn selects(service: &Service, pod: &Pod) -> bool {
    let Some(spec) = &service.spec else {
        return false;
    };
    let labels = selector::labels(&pod.metadata);
    is_selecting(spec)
        && spec
            .selector
            .iter()
            .flatten()
            .all(|(key, value)| labels.get(key) == Some(value))
}

fn add_services_of<'a>(
    services: &Mirror<Service>,
    pods: impl Iterator<Item = &'a Arc<Pod>>,
    queue: &Queue<Key>,
) {
    let mut added = HashSet::new();
    for pod in pods {
        for service in services.in_namespace(object::namespace(&pod.metadata)) {
            if !added.contains(object::uid(&service.metadata)) && selects(&service, pod) {
                added.insert(object::uid(&service.metadata).to_owned());
                queue.add(Key::of(&service.metadata));
            }
        }
    }
}

async fn reconcile(cluster: &Cluster, triggers: &Mutex<Triggers>, key: &Key) -> Outcome {
    let triggers = || triggers.lock().unwrap_or_else(PoisonError::into_inner);
    let existing: Vec<_> = cluster
        .slices
        .in_namespace(&key.namespace)
        .into_iter()
        .filter(|slice| {
            is_ours(slice)
                && object::label(&slice.metadata, SERVICE_NAME) == Some(key.name.as_str())
        })
        .collect();
    let service = cluster.services.get(key);
    let changes = match &service {
        // Its slices go with it; there is no need to wait for the garbage
        // collector.
        None => {
            triggers().forget(key);
            Changes {
                delete: existing,
                ..Changes::default()
            }
        }
        Some(service) if !service.spec.as_ref().is_some_and(is_selecting) => return Ok(None),
        Some(service) if object::is_deleting(&service.metadata) => return Ok(None),
        Some(service) => {
            let selected: Vec<_> = cluster
                .pods
                .in_namespace(&key.namespace)
                .into_iter()
                .filter(|pod| selects(service, pod))
                .collect();
            let desired = desired(service, &selected, |node| {
                cluster.nodes.get(&Key::cluster(node))
            });
            let trigger = triggers().look(key, service, &selected);
            plan(service, desired, &existing, trigger)
        }
    };
    apply(cluster, changes).await?;
    Ok(None)
}

async fn apply(cluster: &Cluster, changes: Changes) -> Result<(), Failure> {
    // New places first, so that no endpoint is missing in between.
    for slice in &changes.create {
        cluster.slices.create(slice).await?;
    }
    for slice in &changes.update {
        cluster.slices.replace(slice).await?;
    }
    for slice in &changes.delete {
        cluster.slices.delete(slice).await?;
    }
    Ok(())
}
