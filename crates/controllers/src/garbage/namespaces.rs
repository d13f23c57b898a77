//! Namespaces that are being deleted: first all that is in them, then they.

use super::graph::Resource;
use super::inventory::Inventory;
use crate::cluster::Cluster;
use crate::mirror::{Failure, MANAGER};
use crate::object::{self, Key};
use crate::work::Outcome;
use k8s_openapi::api::core::v1::Namespace;
use kube::Api;
use kube::api::{DeleteParams, ListParams, PostParams};
use std::sync::Arc;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// The finalizer that this controller takes away.
const KUBERNETES: &str = "kubernetes";

/// Starts the controller.
pub(super) fn run(
    cluster: &Arc<Cluster>,
    inventory: &Arc<Inventory>,
    tasks: &mut JoinSet<()>,
    known: &watch::Receiver<bool>,
) {
    cluster.namespaces.subscribe({
        let inventory = Arc::downgrade(inventory);
        move |change| {
            if let Some(inventory) = inventory.upgrade() {
                inventory.namespaces.add(change.key.name.clone());
            }
        }
    });
    for _ in 0..4 {
        let (cluster, inventory) = (cluster.clone(), inventory.clone());
        let mut known = known.clone();
        tasks.spawn(async move {
            if known.wait_for(|known| *known).await.is_err() {
                return;
            }
            loop {
                let name = inventory.namespaces.next().await;
                match reconcile(&cluster, &inventory, &name).await {
                    Ok(_) => inventory.namespaces.forget(&name),
                    Err(failure) => {
                        let pause = inventory.namespaces.retry(name.clone());
                        tracing::debug!(%failure, ?pause, "namespace deletion tries again");
                    }
                }
                inventory.namespaces.done(&name);
            }
        });
    }
}

async fn reconcile(cluster: &Cluster, inventory: &Inventory, name: &str) -> Outcome {
    let Some(namespace) = cluster.namespaces.get(&Key::cluster(name)) else {
        return Ok(None);
    };
    let waits = namespace
        .spec
        .iter()
        .flat_map(|spec| spec.finalizers.iter().flatten())
        .any(|finalizer| finalizer == KUBERNETES);
    if !object::is_deleting(&namespace.metadata) || !waits {
        return Ok(None);
    }
    let resources: Vec<_> = inventory
        .resources()
        .into_iter()
        .filter(|resource| resource.namespaced)
        .collect();
    // What is known to be there, and not yet told to go, is told now.
    let (mut untold, mut known) = (Vec::<Arc<Resource>>::new(), 0);
    for item in inventory.graph().in_namespace(name) {
        known += 1;
        if !item.deleting && !untold.contains(&item.resource) {
            untold.push(item.resource.clone());
        }
    }
    for resource in &untold {
        empty(inventory, resource, name).await?;
    }
    // Each object that goes wakes this again; the last one lets it through.
    if known > 0 {
        return Ok(None);
    }
    // Then the API server's own word counts: nothing must be left behind.
    let mut left = 0;
    for resource in &resources {
        left += count(inventory, resource, name).await?;
    }
    if left > 0 {
        for resource in &resources {
            empty(inventory, resource, name).await?;
        }
        return Ok(None);
    }
    finalize(cluster, &namespace).await?;
    Ok(None)
}

async fn empty(inventory: &Inventory, resource: &Resource, name: &str) -> Result<(), Failure> {
    inventory
        .api(resource, name)
        .delete_collection(&DeleteParams::background(), &ListParams::default())
        .await
        .map(drop)
        .map_err(|error| Failure::new("delete all", &*resource.api.plural, name, error))
}

async fn count(inventory: &Inventory, resource: &Resource, name: &str) -> Result<usize, Failure> {
    let list = inventory
        .api(resource, name)
        .list_metadata(&ListParams::default().limit(1))
        .await;
    match list {
        Ok(list) => Ok(list.items.len()),
        // The kind is going away itself.
        Err(kube::Error::Api(status)) if status.reason == "NotFound" => Ok(0),
        Err(error) => Err(Failure::new("list", &*resource.api.plural, name, error)),
    }
}

async fn finalize(cluster: &Cluster, namespace: &Namespace) -> Result<(), Failure> {
    let name = object::name(&namespace.metadata);
    let mut wanted = namespace.clone();
    if let Some(finalizers) = wanted
        .spec
        .as_mut()
        .and_then(|spec| spec.finalizers.as_mut())
    {
        finalizers.retain(|finalizer| finalizer != KUBERNETES);
    }
    let params = PostParams {
        field_manager: Some(MANAGER.into()),
        ..PostParams::default()
    };
    let api: Api<Namespace> = Api::all(cluster.client.clone());
    let result = api
        .replace_subresource("finalize", name, &params, &wanted)
        .await
        .map_err(|error| Failure::new("finalize", "Namespace", name, error));
    match result {
        Ok(_) => {
            tracing::info!(namespace = name, "namespace is empty and may go");
            Ok(())
        }
        Err(failure) if failure.is_not_found() => Ok(()),
        Err(failure) => Err(failure),
    }
}
