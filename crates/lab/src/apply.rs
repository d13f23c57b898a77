//! Manifests into the API.

use futures::stream::{self, StreamExt, TryStreamExt};
use kube::api::{Api, DynamicObject, Patch, PatchParams};

use crate::cluster::{api_resource, message};
use crate::manifests::Object;

/// Who the API server notes as the owner of what is applied.
const MANAGER: &str = "podwire-lab";
/// Requests under way at once.
const AT_ONCE: usize = 8;

/// An object the API server did not take.
#[derive(Debug, thiserror::Error)]
#[error("{source_place}: {title}: {why}")]
pub(crate) struct Error {
    source_place: String,
    title: String,
    why: String,
}

/// Applies all objects, whatever others need first.
///
/// # Errors
/// The API server's answer for the first object it refuses.
pub(crate) async fn apply(client: &kube::Client, objects: &[Object]) -> Result<(), Error> {
    let needed = |object: &&Object| {
        matches!(
            object.kind.kind.as_str(),
            "Namespace" | "CustomResourceDefinition"
        )
    };
    for object in objects.iter().filter(needed) {
        one(client, object).await?;
    }
    stream::iter(objects.iter().filter(|object| !needed(object)))
        .map(|object| one(client, object))
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await
}

async fn one(client: &kube::Client, object: &Object) -> Result<(), Error> {
    let kind = &object.kind;
    let resource = api_resource(
        &kind.group,
        &kind.version,
        &kind.kind,
        &object.resource.plural,
    );
    let api: Api<DynamicObject> = match object.namespace() {
        "" => Api::all_with(client.clone(), &resource),
        namespace => Api::namespaced_with(client.clone(), namespace, &resource),
    };
    // What the user's files say holds, also against others' fields.
    let parameters = PatchParams::apply(MANAGER).force();
    let applied = api
        .patch(object.name(), &parameters, &Patch::Apply(&object.value))
        .await;
    applied.map(drop).map_err(|error| Error {
        source_place: object.source.to_string(),
        title: object.title(),
        why: message(&error),
    })
}
