//! OpenAPI 2.0 (Swagger), one document for everything.

use super::gnostic::Document;
use super::{CrdInfo, REFERENCE, Served, VERSION, paths};
use crate::schema::Schemas;
use prost::Message;
use serde_json::{Map, Value, json};
use std::sync::LazyLock;

/// The document as JSON.
pub fn v2_json(crds: &[CrdInfo]) -> Value {
    let mut document = built_in();
    for (part, entries) in custom(crds) {
        if let Some(map) = document[part].as_object_mut() {
            map.extend(entries);
        }
    }
    document
}

/// The document as protobuf (`openapi.v2.Document`), media type
/// [`V2_PROTOBUF`](super::V2_PROTOBUF).
///
/// The part of the built-in kinds is encoded once; that of the custom ones
/// follows it, since a message may come in pieces.
pub fn v2_protobuf(crds: &[CrdInfo]) -> Vec<u8> {
    static BUILT_IN: LazyLock<Vec<u8>> =
        LazyLock::new(|| Document::from_json(&built_in()).encode_to_vec());
    let mut encoded = BUILT_IN.clone();
    if !crds.is_empty() {
        let rest: Map<String, Value> = custom(crds)
            .into_iter()
            .map(|(part, entries)| (part.to_owned(), Value::Object(entries)))
            .collect();
        encoded.extend(Document::from_json(&Value::Object(rest)).encode_to_vec());
    }
    encoded
}

fn add_paths(paths: &mut Map<String, Value>, served: &Served<'_>) {
    paths::add(
        paths,
        served,
        |name, kind, description| json!({"name": name, "in": "query", "type": kind, "uniqueItems": true, "description": description}),
    );
}

fn built_in() -> Value {
    let mut paths = Map::new();
    for served in Served::built_in() {
        add_paths(&mut paths, &served);
    }
    let definitions: Map<String, Value> = Schemas::builtin()
        .definitions()
        .iter()
        .map(|(name, schema)| {
            let mut converted = convert(schema);
            // An amount is written as a string or a number.
            if name.ends_with(".Quantity") {
                converted = json!({"type": "string", "description": schema["description"]});
            }
            (name.clone(), converted)
        })
        .collect();
    json!({
        "swagger": "2.0",
        "info": {"title": "Kubernetes", "version": VERSION},
        "paths": paths,
        "definitions": definitions,
    })
}

fn custom(crds: &[CrdInfo]) -> [(&'static str, Map<String, Value>); 2] {
    let mut paths = Map::new();
    let mut definitions = Map::new();
    for crd in crds {
        add_paths(&mut paths, &Served::custom(crd));
        for (name, schema) in crd.definitions() {
            definitions.insert(name, convert(&schema));
        }
    }
    [("paths", paths), ("definitions", definitions)]
}

/// What OpenAPI 2.0 has of a schema. What it cannot say (unions, null, free
/// form) is left out: no type at all means any value.
fn convert(schema: &Value) -> Value {
    let mut converted = Map::new();
    for (key, value) in schema.as_object().into_iter().flatten() {
        if key == "description" || key.starts_with("x-kubernetes-") {
            converted.insert(key.clone(), value.clone());
        }
    }
    if let Some(Value::String(reference)) = schema.get("$ref") {
        let name = reference.strip_prefix(REFERENCE).unwrap_or(reference);
        converted.insert("$ref".into(), json!(format!("#/definitions/{name}")));
        return Value::Object(converted);
    }
    let flag = |name: &str| schema[name] == json!(true);
    if flag("x-kubernetes-int-or-string") {
        converted.insert("type".into(), json!("string"));
        converted.insert("format".into(), json!("int-or-string"));
        return Value::Object(converted);
    }
    if flag("x-kubernetes-preserve-unknown-fields") || flag("nullable") {
        return Value::Object(converted);
    }
    let Some(kind) = schema["type"].as_str().filter(|kind| {
        matches!(
            *kind,
            "object" | "array" | "string" | "integer" | "number" | "boolean"
        )
    }) else {
        return Value::Object(converted);
    };
    converted.insert("type".into(), json!(kind));
    for key in ["format", "required", "default"] {
        if let Some(value) = schema.get(key) {
            converted.insert(key.into(), value.clone());
        }
    }
    if kind == "array" {
        converted.insert("items".into(), convert(&schema["items"]));
    }
    if let Some(properties) = schema["properties"].as_object() {
        let properties: Map<String, Value> = properties
            .iter()
            .map(|(name, schema)| (name.clone(), convert(schema)))
            .collect();
        converted.insert("properties".into(), Value::Object(properties));
    }
    if schema["additionalProperties"].is_object() {
        converted.insert(
            "additionalProperties".into(),
            convert(&schema["additionalProperties"]),
        );
    }
    Value::Object(converted)
}
