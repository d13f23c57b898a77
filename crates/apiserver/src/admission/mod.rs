//! What the server fills in and forces before an object is validated and
//! stored.

mod pod;
pub(crate) mod service;

use serde_json::{Value, json};

use crate::object;
use crate::registry::Resource;

/// Metadata of a new object: identity, time and first generation. What
/// clients may not choose is overwritten.
pub(crate) fn stamp_new(resource: &Resource, namespace: Option<&str>, new: &mut Value, now: &str) {
    force_kind(resource, new);
    for field in [
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "selfLink",
        "resourceVersion",
        "generation",
    ] {
        object::set_meta(new, field, None);
    }
    object::set_meta(new, "namespace", namespace.map(Into::into));
    object::set_meta(new, "uid", Some(object::new_uid().into()));
    object::set_meta(new, "creationTimestamp", Some(now.into()));
    if resource.generation {
        object::set_meta(new, "generation", Some(1.into()));
    }
}

fn force_kind(resource: &Resource, new: &mut Value) {
    if let Some(fields) = new.as_object_mut() {
        fields.insert("apiVersion".into(), resource.gvk.api_version().into());
        fields.insert("kind".into(), resource.gvk.kind.clone().into());
    }
}

/// What kinds start with. Runs before the defaults are filled in.
pub(crate) fn prepare_new(resource: &Resource, new: &mut Value) {
    // Nodes register with their status; all others get theirs from their
    // controller, through the status subresource.
    if resource.status && !resource.is_core("nodes") {
        put(new, "status", None);
    }
    prepare(resource, new);
    if resource.gvk.group.is_empty() {
        match resource.plural.as_str() {
            "namespaces" => {
                new["spec"] = json!({"finalizers": ["kubernetes"]});
                new["status"] = json!({"phase": "Active"});
            }
            "pods" => pod::prepare_new(new),
            "services" => new["status"] = json!({"loadBalancer": {}}),
            _ => {}
        }
    } else if resource.custom.is_none() && resource.status {
        new["status"] = match resource.plural.as_str() {
            "ingresses" => json!({"loadBalancer": {}}),
            "daemonsets" => json!({
                "currentNumberScheduled": 0,
                "numberMisscheduled": 0,
                "desiredNumberScheduled": 0,
                "numberReady": 0,
            }),
            "replicasets" => json!({"replicas": 0}),
            "statefulsets" => json!({"replicas": 0, "availableReplicas": 0}),
            _ => json!({}),
        };
    }
}

/// What holds for new and changed objects alike.
pub(crate) fn prepare(resource: &Resource, new: &mut Value) {
    if resource.is_core("secrets") {
        fold_string_data(new);
    }
    if resource.is_core("namespaces") {
        let name = object::name(new).to_owned();
        if let Some(metadata) = object::metadata_mut(new) {
            let labels = metadata.entry("labels").or_insert_with(|| json!({}));
            if let Some(labels) = labels.as_object_mut() {
                labels.insert("kubernetes.io/metadata.name".into(), name.into());
            }
        }
    }
}

/// `stringData` is a convenience of writing: it is stored in `data`.
fn fold_string_data(secret: &mut Value) {
    use base64::Engine;
    let Some(fields) = secret.as_object_mut() else {
        return;
    };
    let Some(Value::Object(plain)) = fields.remove("stringData") else {
        return;
    };
    let data = fields.entry("data").or_insert_with(|| json!({}));
    if !data.is_object() {
        *data = json!({});
    }
    for (key, value) in plain {
        if let Value::String(text) = value {
            data[key] = base64::engine::general_purpose::STANDARD
                .encode(text)
                .into();
        }
    }
}

/// Puts back what a write through the main path or a subresource may not
/// change.
pub(crate) fn keep_unwritable(
    resource: &Resource,
    old: &Value,
    new: &mut Value,
    subresource: Option<&str>,
) {
    for field in [
        "name",
        "namespace",
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "selfLink",
        "resourceVersion",
    ] {
        object::set_meta(new, field, old["metadata"].get(field).cloned());
    }
    force_kind(resource, new);
    match subresource {
        Some("status") => {
            let status = new.get("status").cloned();
            let mut metadata = new["metadata"].take();
            if resource.custom.is_some() || resource.gvk.group == "apps" {
                // Of these only the status can be written here.
                let managed = metadata.get("managedFields").cloned();
                metadata = old["metadata"].clone();
                put(&mut metadata, "managedFields", managed);
            }
            *new = old.clone();
            new["metadata"] = metadata;
            put(new, "status", status);
        }
        None if resource.status => put(new, "status", old.get("status").cloned()),
        _ => {}
    }
    if resource.is_core("namespaces")
        && subresource != Some("finalize")
        && let Some(finalizers) = old["spec"].get("finalizers")
    {
        // Only the finalize subresource lets a namespace go.
        if !new["spec"].is_object() {
            new["spec"] = json!({});
        }
        new["spec"]["finalizers"] = finalizers.clone();
    }
}

/// Sets or removes a field of an object.
fn put(object: &mut Value, field: &str, value: Option<Value>) {
    if let Some(fields) = object.as_object_mut() {
        match value {
            Some(value) => fields.insert(field.to_owned(), value),
            None => fields.remove(field),
        };
    }
}

/// Counts the generation up when the wanted state has changed.
pub(crate) fn count_generation(resource: &Resource, old: &Value, new: &mut Value) {
    if !resource.generation {
        return;
    }
    let generation = old["metadata"]["generation"].as_i64().unwrap_or(1);
    let next = if same_intent(old, new, resource.status) {
        generation
    } else {
        generation + 1
    };
    object::set_meta(new, "generation", Some(next.into()));
}

/// Whether all but the metadata (and the status) is the same.
fn same_intent(old: &Value, new: &Value, without_status: bool) -> bool {
    let (Some(old), Some(new)) = (old.as_object(), new.as_object()) else {
        return false;
    };
    let counts = |field: &str| field != "metadata" && !(without_status && field == "status");
    old.iter()
        .filter(|(f, _)| counts(f))
        .all(|(f, v)| new.get(f) == Some(v))
        && new
            .keys()
            .filter(|f| counts(f))
            .all(|f| old.contains_key(f))
}
