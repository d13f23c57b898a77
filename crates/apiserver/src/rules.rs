//! The rules of a resource's schema, built-in or custom, behind one face.

use serde_json::Value;

use crate::patch::managed_fields;
use crate::registry::Resource;
use crate::schema::{SchemaNode, Schemas, crd};
use crate::validation::{self, FieldError};

/// The structural schema of a custom resource.
fn custom_schema(resource: &Resource) -> Option<&Value> {
    resource.custom.as_ref()?.schema.as_ref()
}

/// Paths of fields that the kind does not have.
pub(crate) fn unknown_fields(resource: &Resource, object: &Value) -> Vec<String> {
    match custom_schema(resource) {
        Some(schema) => crd::prune(schema, &mut object.clone()),
        None => Schemas::builtin().unknown_fields(&resource.gvk, object),
    }
}

/// Fields whose values have the wrong type. Custom resources are checked when
/// they are validated.
pub(crate) fn type_errors(resource: &Resource, object: &Value) -> Vec<FieldError> {
    let mut errors = Schemas::builtin().type_errors(&resource.gvk, object);
    if resource.gvk.kind == "CustomResourceDefinition" {
        // Schemas hold documents of any type (`default`, `enum`) and fields of
        // several (`items`); validation knows which of them are structural.
        errors.retain(|e| !e.field.contains(".openAPIV3Schema"));
    }
    errors
}

/// Removes fields that the kind does not have.
pub(crate) fn prune(resource: &Resource, object: &mut Value) {
    if let Some(schema) = custom_schema(resource) {
        crd::prune(schema, object);
    } else if let Some(node) = Schemas::builtin().node(&resource.gvk) {
        prune_node(node, object);
    }
}

fn prune_node(node: SchemaNode<'_>, value: &mut Value) {
    match value {
        Value::Object(fields) => {
            let closed = node.has_properties()
                && !node.flag("x-kubernetes-preserve-unknown-fields")
                && node.additional().is_none()
                && node.schema().get("additionalProperties") != Some(&Value::Bool(true));
            if closed {
                fields.retain(|name, _| node.field(name).is_some());
            }
            for (name, value) in fields {
                if let Some(child) = node.field(name) {
                    prune_node(child, value);
                }
            }
        }
        Value::Array(list) => {
            if let Some(items) = node.items() {
                for value in list {
                    prune_node(items, value);
                }
            }
        }
        _ => {}
    }
}

/// Fills in default values.
pub(crate) fn default(resource: &Resource, object: &mut Value) {
    match custom_schema(resource) {
        Some(schema) => crd::default(schema, object),
        None => crate::defaulting::apply(&resource.gvk, object),
    }
}

/// The rules that a new object breaks.
pub(crate) fn validate_new(resource: &Resource, object: &Value) -> Vec<FieldError> {
    let mut errors = validation::create(&resource.gvk, object);
    if let Some(schema) = custom_schema(resource) {
        errors.extend(crd::validate(schema, object));
    }
    errors
}

/// The rules that a changed object breaks.
pub(crate) fn validate_change(
    resource: &Resource,
    old: &Value,
    new: &Value,
    subresource: Option<&str>,
) -> Vec<FieldError> {
    // A binding is the one change of a pod that its own rules forbid.
    if subresource == Some("binding") {
        return Vec::new();
    }
    let mut errors = validation::update(&resource.gvk, old, new);
    if let Some(schema) = custom_schema(resource) {
        errors.extend(crd::validate(schema, new));
    }
    errors
}

/// Writes down which fields the manager owns after a plain write.
pub(crate) fn track(
    resource: &Resource,
    old: Option<&Value>,
    new: &mut Value,
    manager: &str,
    now: &str,
    subresource: Option<&str>,
) {
    let gvk = &resource.gvk;
    match custom_schema(resource) {
        Some(schema) => {
            managed_fields::track_custom_update(gvk, schema, old, new, manager, now, subresource);
        }
        None => managed_fields::track_update(gvk, old, new, manager, now, subresource),
    }
}

/// Whether two states differ in nothing but the times of field ownership:
/// such a write is no change.
pub(crate) fn same_but_managed_times(old: &Value, new: &Value) -> bool {
    let (Some(old), Some(new)) = (old.as_object(), new.as_object()) else {
        return false;
    };
    let fields = |object: &serde_json::Map<String, Value>| {
        let mut metadata = object.get("metadata").cloned().unwrap_or_default();
        if let Some(entries) = metadata["managedFields"].as_array_mut() {
            for entry in entries {
                if let Some(entry) = entry.as_object_mut() {
                    entry.remove("time");
                }
            }
        } else if let Some(metadata) = metadata.as_object_mut() {
            metadata.remove("managedFields");
        }
        metadata
    };
    old.len() == new.len()
        && old
            .iter()
            .all(|(field, value)| field == "metadata" || new.get(field) == Some(value))
        && fields(old) == fields(new)
}
