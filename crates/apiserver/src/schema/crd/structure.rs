//! Whether a schema is structural, that is: usable for pruning and defaults.

use super::{INT_OR_STRING, PRESERVE, flag};
use crate::validation::FieldError;
use serde_json::Value;

/// Adds what keeps a schema from being structural; `path` is where it stands.
pub fn structural_errors(path: &str, schema: &Value, errors: &mut Vec<FieldError>) {
    if let Some(reference) = schema.get("$ref") {
        errors.push(FieldError::forbidden(
            format!("{path}.$ref"),
            format!("$ref is not supported: {reference}"),
        ));
    }
    if schema["type"].is_null() && !flag(schema, INT_OR_STRING) && !flag(schema, PRESERVE) {
        errors.push(FieldError::required(
            format!("{path}.type"),
            "must not be empty for specified object fields",
        ));
    }
    if schema["type"] == "array" && !schema["items"].is_object() {
        errors.push(FieldError::required(
            format!("{path}.items"),
            "must be specified",
        ));
    }
    if schema["properties"]
        .as_object()
        .is_some_and(|map| !map.is_empty())
        && schema["additionalProperties"].is_object()
    {
        errors.push(FieldError::forbidden(
            format!("{path}.additionalProperties"),
            "additionalProperties and properties are mutual exclusive",
        ));
    }
    if let Some(pattern) = schema["pattern"].as_str()
        && let Err(error) = regex_lite::Regex::new(pattern)
    {
        // Unicode classes are the one part of RE2 the engine lacks.
        if !pattern.contains("\\p") && !pattern.contains("\\P") {
            errors.push(FieldError::invalid(
                format!("{path}.pattern"),
                pattern,
                format!("must be a valid regular expression, but isn't: {error}"),
            ));
        }
    }
    for (name, child) in schema["properties"].as_object().into_iter().flatten() {
        structural_errors(&format!("{path}.properties[{name}]"), child, errors);
    }
    for name in ["items", "additionalProperties"] {
        if schema[name].is_object() {
            structural_errors(&format!("{path}.{name}"), &schema[name], errors);
        }
    }
}
