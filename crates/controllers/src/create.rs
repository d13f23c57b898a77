//! Making pods from templates, several at once.

use crate::cluster::Cluster;
use crate::mirror::Failure;
use crate::object;
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Resource;

/// Requests under way at once for one owner.
const AT_ONCE: usize = 16;

/// A pod from a template; the caller names it.
pub(crate) fn pod(
    owner: &ObjectMeta,
    reference: &OwnerReference,
    template: &PodTemplateSpec,
) -> Pod {
    let like = template.metadata.clone().unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            namespace: owner.namespace.clone(),
            labels: like.labels,
            annotations: like.annotations,
            finalizers: like.finalizers,
            owner_references: Some(vec![reference.clone()]),
            ..Default::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

/// Creates pods for an owner. The first goes alone: when it is refused the
/// others would be too.
pub(crate) async fn all<K: Resource<DynamicType = ()>>(
    cluster: &Cluster,
    component: &'static str,
    owner: &K,
    pods: Vec<Pod>,
) -> Result<(), Failure> {
    let mut pods = pods.into_iter();
    let Some(first) = pods.next() else {
        return Ok(());
    };
    one(cluster, component, owner, first).await?;
    futures::stream::iter(pods)
        .map(|pod| one(cluster, component, owner, pod))
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await
}

/// Creates one pod for an owner and says so in an Event of the owner.
pub(crate) async fn one<K: Resource<DynamicType = ()>>(
    cluster: &Cluster,
    component: &'static str,
    owner: &K,
    pod: Pod,
) -> Result<(), Failure> {
    match cluster.pods.create(&pod).await {
        Ok(made) => {
            let name = object::name(&made.metadata);
            let text = format!("Created pod: {name}");
            cluster
                .recorder
                .normal(component, owner, "SuccessfulCreate", text);
            Ok(())
        }
        Err(failure) => {
            let text = format!("Error creating: {}", failure.message());
            cluster
                .recorder
                .warning(component, owner, "FailedCreate", text);
            Err(failure)
        }
    }
}

/// Deletes pods of an owner, several at once.
pub(crate) async fn delete<K: Resource<DynamicType = ()>>(
    cluster: &Cluster,
    component: &'static str,
    owner: &K,
    pods: impl IntoIterator<Item = std::sync::Arc<Pod>>,
) -> Result<(), Failure> {
    futures::stream::iter(pods)
        .map(|pod| async move {
            cluster.pods.delete(&pod).await?;
            let text = format!("Deleted pod: {}", object::name(&pod.metadata));
            cluster
                .recorder
                .normal(component, owner, "SuccessfulDelete", text);
            Ok(())
        })
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await
}
