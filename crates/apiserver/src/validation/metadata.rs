//! Rules of `metadata`, and of label selectors.

use super::names;
use super::{Errors, FieldError, FieldErrorKind, entries, immutable, items, push_all, text};
use crate::resource::GroupVersionKind;
use serde_json::Value;

/// Keys and values of all annotations together, bytes.
const ANNOTATIONS_LIMIT: usize = 256 * 1024;

/// `namespaced` is `None` for kinds the server does not know by itself.
pub(super) fn create(
    gvk: &GroupVersionKind,
    namespaced: Option<bool>,
    metadata: &Value,
    errors: &mut Errors,
) {
    let check = name_rule(gvk);
    let name = text(metadata, "name");
    let generate = text(metadata, "generateName");
    if name.is_empty() && generate.is_empty() {
        errors.push(FieldError::required(
            "metadata.name",
            "name or generateName is required",
        ));
    }
    if !generate.is_empty() {
        // What will follow the prefix may end it, so a trailing dash is fine.
        let sample = format!("{}x", generate.strip_suffix('-').unwrap_or(generate));
        push_all("metadata.generateName", generate, check(&sample), errors);
    }
    if !name.is_empty() {
        push_all("metadata.name", name, check(name), errors);
    }
    let namespace = text(metadata, "namespace");
    if !namespace.is_empty() {
        if namespaced == Some(false) {
            errors.push(FieldError::forbidden(
                "metadata.namespace",
                "not allowed on this type",
            ));
        } else {
            push_all(
                "metadata.namespace",
                namespace,
                names::label(namespace),
                errors,
            );
        }
    }
    labels("metadata.labels", &metadata["labels"], errors);
    annotations(metadata, errors);
    owner_references(metadata, errors);
    for (index, finalizer) in items(metadata, "finalizers") {
        let finalizer = finalizer.as_str().unwrap_or_default();
        let field = format!("metadata.finalizers[{index}]");
        push_all(&field, finalizer, names::qualified(finalizer), errors);
        let standard = ["orphan", "foregroundDeletion", "kubernetes"].contains(&finalizer);
        if !standard && !finalizer.contains('/') {
            errors.push(FieldError::invalid(
                field,
                finalizer,
                "name is neither a standard finalizer name nor is it fully qualified",
            ));
        }
    }
}

pub(super) fn update(old: &Value, new: &Value, errors: &mut Errors) {
    for field in ["name", "namespace", "uid", "creationTimestamp"] {
        // What a client leaves out is carried over, it is no change.
        if !new[field].is_null() {
            immutable(
                &format!("metadata.{field}"),
                &old[field],
                &new[field],
                errors,
            );
        }
    }
    if !old["deletionTimestamp"].is_null() {
        let before = old["finalizers"].as_array();
        let added: Vec<&str> = items(new, "finalizers")
            .filter(|(_, finalizer)| !before.is_some_and(|before| before.contains(finalizer)))
            .filter_map(|(_, finalizer)| finalizer.as_str())
            .collect();
        if !added.is_empty() {
            errors.push(FieldError::forbidden(
                "metadata.finalizers",
                format!("no new finalizers can be added if the object is being deleted, found new finalizers {added:?}"),
            ));
        }
    }
}

fn name_rule(gvk: &GroupVersionKind) -> fn(&str) -> Vec<String> {
    match (gvk.group.as_str(), gvk.kind.as_str()) {
        ("", "Namespace") => names::label,
        ("", "Service") => names::label_1035,
        ("rbac.authorization.k8s.io", _) => names::path_segment,
        _ => names::subdomain,
    }
}

/// Labels, or anything that has their form.
pub(super) fn labels(field: &str, labels: &Value, errors: &mut Errors) {
    for (key, value) in labels.as_object().into_iter().flatten() {
        push_all(field, key, names::qualified(key), errors);
        let value = value.as_str().unwrap_or_default();
        push_all(
            &format!("{field}[{key}]"),
            value,
            names::label_value(value),
            errors,
        );
    }
}

fn annotations(metadata: &Value, errors: &mut Errors) {
    let mut size = 0;
    for (key, value) in entries(metadata, "annotations") {
        push_all(
            "metadata.annotations",
            key,
            names::qualified(&key.to_lowercase()),
            errors,
        );
        size += key.len() + value.as_str().map_or(0, str::len);
    }
    if size > ANNOTATIONS_LIMIT {
        errors.push(FieldError::new(
            "metadata.annotations",
            FieldErrorKind::TooLong,
            Value::Null,
            format!("may not be more than {ANNOTATIONS_LIMIT} bytes"),
        ));
    }
}

fn owner_references(metadata: &Value, errors: &mut Errors) {
    let mut controller: Option<&str> = None;
    for (index, owner) in items(metadata, "ownerReferences") {
        let field = format!("metadata.ownerReferences[{index}]");
        for key in ["apiVersion", "kind", "name", "uid"] {
            if text(owner, key).is_empty() {
                errors.push(FieldError::required(
                    format!("{field}.{key}"),
                    "must not be empty",
                ));
            }
        }
        if owner["controller"] == Value::Bool(true) {
            let name = text(owner, "name");
            match controller {
                Some(first) => errors.push(FieldError::invalid(
                    "metadata.ownerReferences",
                    name,
                    format!("Only one reference can have Controller set to true. Found \"true\" in references for {first} and {name}"),
                )),
                None => controller = Some(name),
            }
        }
    }
}

/// A label selector with `matchLabels` and `matchExpressions`.
pub(super) fn selector(field: &str, selector: &Value, errors: &mut Errors) {
    labels(
        &format!("{field}.matchLabels"),
        &selector["matchLabels"],
        errors,
    );
    for (index, expression) in items(selector, "matchExpressions") {
        let field = format!("{field}.matchExpressions[{index}]");
        let key = text(expression, "key");
        push_all(&format!("{field}.key"), key, names::qualified(key), errors);
        let values = expression["values"].as_array().map_or(0, Vec::len);
        match text(expression, "operator") {
            "In" | "NotIn" if values == 0 => errors.push(FieldError::required(
                format!("{field}.values"),
                "must be specified when `operator` is 'In' or 'NotIn'",
            )),
            "Exists" | "DoesNotExist" if values > 0 => errors.push(FieldError::forbidden(
                format!("{field}.values"),
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            )),
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => errors.push(FieldError::invalid(
                format!("{field}.operator"),
                other,
                "not a valid selector operator",
            )),
        }
        for (index, value) in items(expression, "values") {
            let value = value.as_str().unwrap_or_default();
            push_all(
                &format!("{field}.values[{index}]"),
                value,
                names::label_value(value),
                errors,
            );
        }
    }
}

/// Whether labels satisfy a selector. An empty selector matches everything.
pub(super) fn matches(selector: &Value, labels: &Value) -> bool {
    let equal = entries(selector, "matchLabels").all(|(key, value)| labels[key] == *value);
    equal
        && items(selector, "matchExpressions").all(|(_, expression)| {
            let value = &labels[text(expression, "key")];
            let listed = expression["values"]
                .as_array()
                .is_some_and(|values| values.contains(value));
            match text(expression, "operator") {
                "In" => listed,
                "NotIn" => !listed,
                "Exists" => !value.is_null(),
                "DoesNotExist" => value.is_null(),
                _ => false,
            }
        })
}
