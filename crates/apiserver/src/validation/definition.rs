//! Rules of CustomResourceDefinitions.

use super::names;
use super::{Errors, FieldError, immutable, is_empty, items, push_all, required_one_of, text};
use serde_json::{Value, json};
use std::collections::BTreeSet;

pub(super) fn definition(new: &Value, old: Option<&Value>, errors: &mut Errors) {
    let spec = &new["spec"];
    let group = text(spec, "group");
    if group.is_empty() {
        errors.push(FieldError::required("spec.group", ""));
    } else {
        push_all("spec.group", group, names::subdomain(group), errors);
        if !group.contains('.') {
            errors.push(FieldError::invalid(
                "spec.group",
                group,
                "should be a domain with at least one dot",
            ));
        }
    }
    required_one_of(
        "spec.scope",
        &spec["scope"],
        &["Cluster", "Namespaced"],
        errors,
    );
    kind_names(spec, errors);
    let expected = format!("{}.{group}", text(&spec["names"], "plural"));
    let name = text(&new["metadata"], "name");
    if name != expected {
        errors.push(FieldError::invalid(
            "metadata.name",
            name,
            "must be spec.names.plural+\".\"+spec.group",
        ));
    }
    versions(spec, errors);
    if spec["preserveUnknownFields"] == json!(true) {
        errors.push(FieldError::invalid(
            "spec.preserveUnknownFields",
            true,
            "must be false in order to use defaults in the schema; use x-kubernetes-preserve-unknown-fields there instead",
        ));
    }
    if let Some(old) = old {
        let old = &old["spec"];
        immutable("spec.group", &old["group"], &spec["group"], errors);
        immutable("spec.scope", &old["scope"], &spec["scope"], errors);
        for name in ["plural", "kind"] {
            immutable(
                &format!("spec.names.{name}"),
                &old["names"][name],
                &spec["names"][name],
                errors,
            );
        }
    }
}

fn kind_names(spec: &Value, errors: &mut Errors) {
    let kinds = &spec["names"];
    for name in ["plural", "singular", "kind", "listKind"] {
        let value = text(kinds, name);
        let field = format!("spec.names.{name}");
        if value.is_empty() {
            errors.push(FieldError::required(field, ""));
            continue;
        }
        // Kinds are in CamelCase; their lower case is what is checked.
        let checked = if name.to_lowercase().contains("kind") {
            value.to_lowercase()
        } else {
            value.to_owned()
        };
        push_all(&field, value, names::label_1035(&checked), errors);
    }
    for (index, short) in items(kinds, "shortNames") {
        let short = short.as_str().unwrap_or_default();
        push_all(
            &format!("spec.names.shortNames[{index}]"),
            short,
            names::label_1035(short),
            errors,
        );
    }
}

fn versions(spec: &Value, errors: &mut Errors) {
    if is_empty(&spec["versions"]) {
        errors.push(FieldError::required(
            "spec.versions",
            "must have at least one version",
        ));
        return;
    }
    let mut seen = BTreeSet::new();
    let mut storage = 0;
    for (index, version) in items(spec, "versions") {
        let field = format!("spec.versions[{index}]");
        let name = text(version, "name");
        push_all(
            &format!("{field}.name"),
            name,
            names::label_1035(name),
            errors,
        );
        if !seen.insert(name) {
            errors.push(FieldError::invalid(
                format!("{field}.name"),
                name,
                "must contain unique version names",
            ));
        }
        storage += usize::from(version["storage"] == json!(true));
        let schema = &version["schema"]["openAPIV3Schema"];
        let at = format!("{field}.schema.openAPIV3Schema");
        if schema.is_null() {
            errors.push(FieldError::required(at, "schemas are required"));
            continue;
        }
        if text(schema, "type") != "object" {
            errors.push(FieldError::invalid(
                format!("{at}.type"),
                schema["type"].clone(),
                "must be object at the root",
            ));
        }
        crate::schema::crd::structural_errors(&at, schema, errors);
    }
    if storage != 1 {
        errors.push(FieldError::invalid(
            "spec.versions",
            spec["versions"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|version| version["name"].clone())
                .collect::<Value>(),
            "must have exactly one version marked as storage version",
        ));
    }
}
