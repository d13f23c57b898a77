//! The paths of a kind: as much as clients look at, which is the kind of each
//! operation and the query parameters of patches.

use super::Served;
use serde_json::{Map, Value, json};

/// Query parameters of a patch. kubectl leaves the check of fields to a server
/// whose patches know `fieldValidation`.
const PATCH_PARAMETERS: [(&str, &str, &str); 4] = [
    ("dryRun", "string", "With All nothing is stored."),
    ("fieldManager", "string", "Name of who makes the change."),
    (
        "fieldValidation",
        "string",
        "What to do about unknown fields: Ignore, Warn or Strict.",
    ),
    (
        "force",
        "boolean",
        "Whether an apply takes fields from other managers.",
    ),
];

/// How the two versions of OpenAPI write a parameter.
pub(super) type Parameter = fn(name: &str, kind: &str, description: &str) -> Value;

/// Adds the paths of a kind.
pub(super) fn add(paths: &mut Map<String, Value>, served: &Served<'_>, parameter: Parameter) {
    let Served {
        group,
        version,
        kind,
        plural,
        namespaced,
    } = served;
    let base = if group.is_empty() {
        format!("/api/{version}")
    } else {
        format!("/apis/{group}/{version}")
    };
    let operation = |action: &str| {
        json!({
            "x-kubernetes-action": action,
            "x-kubernetes-group-version-kind": {"group": group, "version": version, "kind": kind},
            "responses": {"200": {"description": "OK"}},
        })
    };
    let mut patch = operation("patch");
    patch["parameters"] = PATCH_PARAMETERS
        .iter()
        .map(|(name, kind, description)| parameter(name, kind, description))
        .collect();
    let collection = if *namespaced {
        paths.insert(
            format!("{base}/{plural}"),
            json!({"get": operation("list")}),
        );
        format!("{base}/namespaces/{{namespace}}/{plural}")
    } else {
        format!("{base}/{plural}")
    };
    paths.insert(
        format!("{collection}/{{name}}"),
        json!({
            "get": operation("get"),
            "put": operation("put"),
            "patch": patch,
            "delete": operation("delete"),
        }),
    );
    paths.insert(
        collection,
        json!({
            "get": operation("list"),
            "post": operation("post"),
            "delete": operation("deletecollection"),
        }),
    );
}
