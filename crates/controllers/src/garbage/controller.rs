//! Applies the verdicts of the graph.

use super::graph::{FOREGROUND, Item, ORPHAN, Policy, Verdict};
use super::inventory::{self, Inventory};
use super::namespaces;
use crate::cluster::Cluster;
use crate::mirror::Failure;
use crate::object::{self, Key};
use crate::work::Outcome;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::core::params::PropagationPolicy;
use serde_json::json;
use std::collections::HashSet;
use std::sync::Arc;
use tokio::sync::watch;
use tokio::task::JoinSet;

const WORKERS: usize = 16;

/// Starts the garbage collector and the namespace controller.
pub(crate) fn run(cluster: &Arc<Cluster>, tasks: &mut JoinSet<()>, start: &watch::Receiver<bool>) {
    let inventory = Inventory::new(cluster.client.clone());
    let known = inventory::run(cluster, &inventory, tasks, start);
    namespaces::run(cluster, &inventory, tasks, &known);
    for _ in 0..WORKERS {
        let inventory = inventory.clone();
        let mut known = known.clone();
        tasks.spawn(async move {
            if known.wait_for(|known| *known).await.is_err() {
                return;
            }
            loop {
                let uid = inventory.objects.next().await;
                match examine(&inventory, &uid).await {
                    Ok(_) => inventory.objects.forget(&uid),
                    Err(failure) => {
                        let pause = inventory.objects.retry(uid.clone());
                        tracing::debug!(%failure, ?pause, "garbage collection tries again");
                    }
                }
                inventory.objects.done(&uid);
            }
        });
    }
}

async fn examine(inventory: &Inventory, uid: &str) -> Outcome {
    let mut absent = HashSet::new();
    loop {
        let (item, verdict) = {
            let graph = inventory.graph();
            let Some(item) = graph.get(uid) else {
                return Ok(None);
            };
            (item.clone(), graph.verdict(uid, &absent))
        };
        match verdict {
            Verdict::Keep => {}
            Verdict::LookUp(owners) => {
                for owner in owners {
                    if is_there(inventory, &item, &owner).await? {
                        // Its watch will tell, and wakes nobody; look again
                        // only if it goes.
                        return Ok(None);
                    }
                    absent.insert(owner.uid);
                }
                continue;
            }
            Verdict::Delete(policy) => delete(inventory, &item, policy).await?,
            Verdict::DropOwners(owners) => drop_owners(inventory, &item, &owners).await?,
            Verdict::Await(dependents) => {
                for dependent in dependents {
                    inventory.objects.add(dependent);
                }
            }
            Verdict::Finish => drop_finalizer(inventory, &item, FOREGROUND).await?,
            Verdict::Orphan(dependents) => {
                for dependent in dependents {
                    let dependent = inventory.graph().get(&dependent).cloned();
                    if let Some(dependent) = dependent {
                        drop_owners(inventory, &dependent, std::slice::from_ref(&item.uid)).await?;
                    }
                }
                drop_finalizer(inventory, &item, ORPHAN).await?;
            }
        }
        return Ok(None);
    }
}

/// Asks the API server whether an owner is there. A kind nobody serves is no
/// proof of absence.
async fn is_there(
    inventory: &Inventory,
    item: &Item,
    owner: &OwnerReference,
) -> Result<bool, Failure> {
    let Some(resource) = inventory.resolve(&owner.api_version, &owner.kind) else {
        return Ok(true);
    };
    let key = Key::new(&item.key.namespace, &owner.name);
    let found = inventory
        .api(&resource, &key.namespace)
        .get_metadata_opt(&owner.name)
        .await
        .map_err(|error| Failure::new("get", &*owner.kind, &key, error))?;
    Ok(found.is_some_and(|found| object::uid(&found.metadata) == owner.uid))
}

/// What is gone or is another by now needs no change.
fn settled(result: Result<(), Failure>) -> Result<(), Failure> {
    match result {
        Err(failure) if failure.is_not_found() => Ok(()),
        result => result,
    }
}

async fn delete(inventory: &Inventory, item: &Item, policy: Policy) -> Result<(), Failure> {
    let params = DeleteParams {
        propagation_policy: Some(match policy {
            Policy::Background => PropagationPolicy::Background,
            Policy::Foreground => PropagationPolicy::Foreground,
            Policy::Orphan => PropagationPolicy::Orphan,
        }),
        preconditions: Some(Preconditions {
            uid: Some(item.uid.clone()),
            resource_version: None,
        }),
        ..DeleteParams::default()
    };
    let (kind, key) = Inventory::describe(item);
    tracing::info!(kind, %key, ?policy, "its owners are gone");
    let result = inventory
        .api(&item.resource, &key.namespace)
        .delete(&key.name, &params)
        .await
        .map(drop)
        .map_err(|error| Failure::new("delete", kind, &key, error));
    match result {
        // Of that name there is another one.
        Err(failure) if failure.is_conflict() => Ok(()),
        result => settled(result),
    }
}

async fn drop_owners(inventory: &Inventory, item: &Item, owners: &[String]) -> Result<(), Failure> {
    let left: Vec<_> = item
        .owners
        .iter()
        .filter(|owner| !owners.contains(&owner.uid))
        .collect();
    let left = if left.is_empty() { None } else { Some(left) };
    let change = json!({"metadata": {"uid": item.uid, "ownerReferences": left}});
    patch(inventory, item, change).await
}

async fn drop_finalizer(
    inventory: &Inventory,
    item: &Item,
    finalizer: &str,
) -> Result<(), Failure> {
    let left: Vec<_> = item
        .finalizers
        .iter()
        .filter(|name| *name != finalizer)
        .collect();
    let left = if left.is_empty() { None } else { Some(left) };
    let change = json!({"metadata": {"uid": item.uid, "finalizers": left}});
    patch(inventory, item, change).await
}

async fn patch(
    inventory: &Inventory,
    item: &Item,
    change: serde_json::Value,
) -> Result<(), Failure> {
    let (kind, key) = Inventory::describe(item);
    let result = inventory
        .api(&item.resource, &key.namespace)
        .patch_metadata(&key.name, &PatchParams::default(), &Patch::Merge(change))
        .await
        .map(drop)
        .map_err(|error| Failure::new("patch", kind, &key, error));
    settled(result)
}
