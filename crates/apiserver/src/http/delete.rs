//! Deletion of one object or of a collection.

use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use futures::stream::{FuturesUnordered, StreamExt};
use http::StatusCode;
use serde_json::{Value, json};

use super::Call;
use super::body;
use super::change::is_released;
use super::read::Selection;
use crate::object;
use crate::registry::{DEFINITIONS, Resource};
use crate::status::ApiError;
use crate::store::{Expect, Key, StoreError, Stored, Write};

/// What a client wishes of a deletion.
#[derive(Debug, Default, Clone)]
pub(super) struct Options {
    grace: Option<i64>,
    propagation: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    dry_run: bool,
}

impl Options {
    /// From a `DeleteOptions` document.
    pub(super) fn of(value: &Value) -> Result<Self, ApiError> {
        let grace = match &value["gracePeriodSeconds"] {
            Value::Null => None,
            v => Some(v.as_i64().filter(|g| *g >= 0).ok_or_else(|| {
                ApiError::bad_request(format!(
                    "gracePeriodSeconds: Invalid value: {v}: must be greater than or equal to 0"
                ))
            })?),
        };
        let text = |v: &Value| v.as_str().map(str::to_owned);
        let orphan = value["orphanDependents"]
            .as_bool()
            .map(|o| if o { "Orphan" } else { "Background" }.to_owned());
        Ok(Self {
            grace,
            propagation: text(&value["propagationPolicy"]).or(orphan),
            uid: text(&value["preconditions"]["uid"]),
            resource_version: text(&value["preconditions"]["resourceVersion"]),
            dry_run: value["dryRun"]
                .as_array()
                .is_some_and(|d| d.iter().any(|d| d == "All")),
        })
    }

    /// From a request's body and query.
    fn read(call: &Call, bytes: &[u8]) -> Result<Self, ApiError> {
        let mut options = if bytes.is_empty() {
            Self::default()
        } else {
            Self::of(&body::parse(&body::media_type(&call.headers), bytes)?.value)?
        };
        if let Some(grace) = call.query.number("gracePeriodSeconds")? {
            options.grace = Some(grace);
        }
        if let Some(policy) = call.query.get("propagationPolicy") {
            options.propagation = Some(policy.to_owned());
        }
        options.dry_run |= call.dry_run()?;
        if let Some(policy) = &options.propagation
            && !matches!(policy.as_str(), "Orphan" | "Background" | "Foreground")
        {
            return Err(ApiError::bad_request(format!(
                "propagationPolicy: Unsupported value: {policy:?}: supported values: \"Background\", \"Foreground\", \"Orphan\""
            )));
        }
        Ok(options)
    }
}

/// How a deletion went.
enum Deleted {
    /// The object is gone; its last state.
    Gone(Arc<Stored>),
    /// It waits for its grace period or finalizers.
    Waiting(Arc<Stored>),
}

/// Answers a DELETE of an object.
pub(super) async fn one(call: Call, body: Body) -> Result<Response, ApiError> {
    let bytes = body::read(body).await?;
    let options = Options::read(&call, &bytes)?;
    let name = call.name().to_owned();
    match delete(&call, &name, &options).await? {
        Deleted::Gone(stored) => {
            // These kinds answer with the object itself, as in Kubernetes.
            let resource = call.resource();
            if resource.is_core("pods") || resource.is_core("services") {
                return call.stored(StatusCode::OK, &stored);
            }
            let mut details = json!({
                "name": name, "kind": resource.plural, "uid": object::uid(&stored.value),
            });
            if !resource.gvk.group.is_empty() {
                details["group"] = resource.gvk.group.clone().into();
            }
            let status = json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
                "details": details,
            });
            Ok(call.document(StatusCode::OK, status.to_string().into()))
        }
        Deleted::Waiting(stored) => call.stored(StatusCode::OK, &stored),
    }
}

/// Answers a DELETE of a collection: what is selected is deleted one by one,
/// and the answer lists it.
pub(super) async fn collection(call: Call, body: Body) -> Result<Response, ApiError> {
    let bytes = body::read(body).await?;
    let options = Options::read(&call, &bytes)?;
    let selection = Selection::of(&call)?;
    if call.resource().namespaced && call.target.namespace.is_none() {
        return Err(ApiError::method_not_allowed());
    }
    let snapshot = call.app.store.list(
        &call.resource().collection,
        call.target.namespace.as_deref(),
    );
    // Side by side, so that they share commits.
    let mut deletions: FuturesUnordered<_> = snapshot
        .objects
        .iter()
        .filter(|o| selection.matches(&o.value))
        .map(|o| delete(&call, &o.key.name, &options))
        .collect();
    let mut deleted = Vec::new();
    while let Some(result) = deletions.next().await {
        match result {
            Ok(Deleted::Gone(stored) | Deleted::Waiting(stored)) => deleted.push(stored),
            // Somebody else deleted it meanwhile.
            Err(e) if e.reason == "NotFound" => {}
            Err(e) => return Err(e),
        }
    }
    deleted.sort_by(|a, b| a.key.cmp(&b.key));
    let metadata = json!({"resourceVersion": call.app.store.revision().to_string()});
    let body = call
        .renderer()?
        .list(deleted.iter().map(AsRef::as_ref), &metadata);
    Ok(call.document(StatusCode::OK, body))
}

/// Deletes for another path: an eviction.
pub(super) async fn evict(call: &Call, name: &str, options: &Options) -> Result<(), ApiError> {
    delete(call, name, options).await.map(drop)
}

async fn delete(call: &Call, name: &str, options: &Options) -> Result<Deleted, ApiError> {
    let resource = &call.target.resource;
    let key = Key::new(call.namespace(), name);
    if &*resource.collection == DEFINITIONS && !options.dry_run {
        return delete_definition(call, &key, options).await;
    }
    delete_at(call, resource, &key, options).await
}

/// Deletes the object at a key, or marks it for deletion.
async fn delete_at(
    call: &Call,
    resource: &Arc<Resource>,
    key: &Key,
    options: &Options,
) -> Result<Deleted, ApiError> {
    let store = &call.app.store;
    loop {
        let current = store
            .get(&resource.collection, key)
            .ok_or_else(|| ApiError::not_found(resource, &key.name))?;
        check_preconditions(resource, &current, options)?;
        let mut marked = current.value.clone();
        mark(resource, &mut marked, options);
        let gone = is_released(&marked);
        if options.dry_run {
            return Ok(if gone {
                Deleted::Gone(current)
            } else {
                Deleted::Waiting(current)
            });
        }
        if !gone && marked == current.value {
            return Ok(Deleted::Waiting(current));
        }
        let mut services = None;
        if gone && resource.is_core("services") {
            services = Some(call.app.services.lock().await);
        }
        let written = store
            .write(Write {
                collection: resource.collection.clone(),
                key: key.clone(),
                expect: Expect::Revision(current.revision),
                value: (!gone).then_some(marked),
                live_namespace: None,
            })
            .await;
        if let Some(services) = &mut services {
            let stored = store.get(&resource.collection, key);
            services.settle(key, stored.as_deref().map(|s| &s.value));
        }
        match written {
            Ok(stored) if gone => return Ok(Deleted::Gone(stored)),
            Ok(stored) => return Ok(Deleted::Waiting(stored)),
            Err(StoreError::Modified) => {}
            Err(e) => return Err(ApiError::store(&e, resource, &key.namespace, &key.name)),
        }
    }
}

fn check_preconditions(
    resource: &Resource,
    current: &Stored,
    options: &Options,
) -> Result<(), ApiError> {
    let conflict = |what: &str, wanted: &str, found: &str| {
        Err(ApiError::conflict(
            resource,
            &current.key.name,
            &format!(
                "Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {found}"
            ),
        ))
    };
    let uid = object::uid(&current.value);
    if let Some(wanted) = &options.uid
        && wanted != uid
    {
        return conflict("UID", wanted, uid);
    }
    let version = object::resource_version(&current.value);
    if let Some(wanted) = &options.resource_version
        && wanted != version
    {
        return conflict("ResourceVersion", wanted, version);
    }
    Ok(())
}

/// Writes the marks of a deletion into an object: time, grace period, the
/// finalizers that propagation asks for.
fn mark(resource: &Resource, marked: &mut Value, options: &Options) {
    let grace = if resource.is_core("pods") {
        pod_grace(marked, options.grace)
    } else {
        0
    };
    let finalizer = match options.propagation.as_deref() {
        Some("Foreground") => Some("foregroundDeletion"),
        Some("Orphan") => Some("orphan"),
        _ => None,
    };
    let already = object::is_deleting(marked);
    if let Some(policy) = options.propagation.as_deref() {
        let mut finalizers: Vec<String> = object::finalizers(marked)
            .into_iter()
            .filter(|f| *f != "foregroundDeletion" && *f != "orphan")
            .map(str::to_owned)
            .collect();
        // A deletion that is under way keeps its policy unless a new one is
        // given.
        if let Some(finalizer) = finalizer {
            finalizers.push(finalizer.to_owned());
        }
        tracing::trace!(policy, ?finalizers, "propagation of a deletion");
        let value = (!finalizers.is_empty()).then(|| finalizers.into());
        object::set_meta(marked, "finalizers", value);
    }
    let shorter = marked["metadata"]["deletionGracePeriodSeconds"]
        .as_i64()
        .is_none_or(|g| grace < g);
    if !already || shorter {
        if !already && resource.generation {
            let generation = marked["metadata"]["generation"].as_i64().unwrap_or(1);
            object::set_meta(marked, "generation", Some((generation + 1).into()));
        }
        object::set_meta(
            marked,
            "deletionTimestamp",
            Some(object::after(grace).into()),
        );
        object::set_meta(marked, "deletionGracePeriodSeconds", Some(grace.into()));
    }
    if resource.is_core("namespaces") {
        object::set_meta(marked, "deletionGracePeriodSeconds", None);
        marked["status"]["phase"] = "Terminating".into();
    }
}

/// How long a pod may take to end: nothing if no kubelet has it or it has
/// ended.
fn pod_grace(pod: &Value, asked: Option<i64>) -> i64 {
    let phase = object::text(pod, "/status/phase");
    if object::text(pod, "/spec/nodeName").is_empty() || matches!(phase, "Succeeded" | "Failed") {
        return 0;
    }
    asked
        .or_else(|| pod["spec"]["terminationGracePeriodSeconds"].as_i64())
        .unwrap_or(30)
        .max(0)
}

/// Deletes a definition after all objects of its kind.
async fn delete_definition(call: &Call, key: &Key, options: &Options) -> Result<Deleted, ApiError> {
    let resource = &call.target.resource;
    let catalogue = call.app.registry.current();
    let instances = catalogue
        .all()
        .iter()
        .find(|r| r.custom.is_some() && r.qualified() == key.name)
        .cloned();
    let current = call
        .app
        .store
        .get(&resource.collection, key)
        .ok_or_else(|| ApiError::not_found(resource, &key.name))?;
    check_preconditions(resource, &current, options)?;
    if let Some(instances) = instances {
        for object in call.app.store.list(&instances.collection, None).objects {
            match delete_at(call, &instances, &object.key, &Options::default()).await {
                Ok(_) => {}
                Err(e) if e.reason == "NotFound" => {}
                Err(e) => return Err(e),
            }
        }
    }
    let result = delete_at(call, resource, key, options).await;
    call.app.registry.reload(&call.app.store);
    result
}
