//! Structural schemas of custom resources: pruning, defaults, validation.
//!
//! The order for an object that comes in: [`prune`], [`default`], [`validate`].
//! All three take the version's `openAPIV3Schema` as the definition has it.
//!
//! Rules in CEL (`x-kubernetes-validations`) are **not** evaluated: an object
//! that breaks only such a rule is accepted here and refused by a full
//! Kubernetes.

mod structure;
mod validate;

pub use structure::structural_errors;
pub use validate::validate;

use serde_json::{Map, Value};

const PRESERVE: &str = "x-kubernetes-preserve-unknown-fields";
const EMBEDDED: &str = "x-kubernetes-embedded-resource";
const INT_OR_STRING: &str = "x-kubernetes-int-or-string";

fn flag(schema: &Value, name: &str) -> bool {
    schema[name].as_bool().unwrap_or(false)
}

/// The schema of one field: declared, or that of the map's values.
fn field<'a>(schema: &'a Value, name: &str) -> Option<&'a Value> {
    schema["properties"]
        .get(name)
        .or_else(|| Some(&schema["additionalProperties"]).filter(|schema| schema.is_object()))
}

/// Removes fields that the schema does not have and returns their paths.
///
/// Kept are `apiVersion`, `kind` and `metadata` of the object and of embedded
/// resources, everything below `x-kubernetes-preserve-unknown-fields` that the
/// schema does not name, and maps with `additionalProperties`.
pub fn prune(schema: &Value, object: &mut Value) -> Vec<String> {
    let mut removed = Vec::new();
    prune_value(schema, object, true, &mut String::new(), &mut removed);
    removed
}

fn prune_value(
    schema: &Value,
    value: &mut Value,
    resource: bool,
    path: &mut String,
    removed: &mut Vec<String>,
) {
    let length = path.len();
    match value {
        Value::Object(map) => prune_map(schema, map, resource, path, removed),
        Value::Array(list) => {
            for (index, item) in list.iter_mut().enumerate() {
                path.push_str(&format!("[{index}]"));
                prune_value(
                    &schema["items"],
                    item,
                    flag(&schema["items"], EMBEDDED),
                    path,
                    removed,
                );
                path.truncate(length);
            }
        }
        _ => {}
    }
}

fn prune_map(
    schema: &Value,
    map: &mut Map<String, Value>,
    resource: bool,
    path: &mut String,
    removed: &mut Vec<String>,
) {
    let keep_unknown =
        flag(schema, PRESERVE) || schema["additionalProperties"] == Value::Bool(true);
    let length = path.len();
    let names: Vec<String> = map.keys().cloned().collect();
    for name in names {
        if resource && matches!(name.as_str(), "apiVersion" | "kind" | "metadata") {
            continue;
        }
        if !path.is_empty() {
            path.push('.');
        }
        path.push_str(&name);
        match field(schema, &name) {
            Some(child) => {
                if let Some(value) = map.get_mut(&name) {
                    prune_value(child, value, flag(child, EMBEDDED), path, removed);
                }
            }
            None if keep_unknown => {}
            None => {
                map.remove(&name);
                removed.push(path.clone());
            }
        }
        path.truncate(length);
    }
}

/// Fills in the schema's defaults. A `null` in a field that is not nullable
/// counts as absent.
pub fn default(schema: &Value, object: &mut Value) {
    match object {
        Value::Object(map) => {
            map.retain(|name, value| {
                !value.is_null() || field(schema, name).is_none_or(|child| flag(child, "nullable"))
            });
            for (name, child) in schema["properties"].as_object().into_iter().flatten() {
                if let Some(value) = child.get("default")
                    && !map.contains_key(name)
                {
                    map.insert(name.clone(), value.clone());
                }
            }
            for (name, value) in map {
                if let Some(child) = field(schema, name) {
                    default(child, value);
                }
            }
        }
        Value::Array(list) => {
            for item in list {
                default(&schema["items"], item);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests;
