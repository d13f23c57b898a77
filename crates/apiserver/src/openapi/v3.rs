//! OpenAPI 3.0, one document per group and version.

use super::{CrdInfo, REFERENCE, Served, VERSION, paths};
use crate::schema::Schemas;
use serde_json::{Map, Value, json};

fn document_path(group: &str, version: &str) -> String {
    if group.is_empty() {
        format!("api/{version}")
    } else {
        format!("apis/{group}/{version}")
    }
}

/// The document at `/openapi/v3`: which documents there are.
pub fn v3_index(crds: &[CrdInfo]) -> Value {
    let mut paths = Map::new();
    for served in Served::all(crds) {
        let path = document_path(served.group, served.version);
        let url = format!("/openapi/v3/{path}");
        paths.insert(path, json!({"serverRelativeURL": url}));
    }
    json!({"paths": paths})
}

/// The document of a group (empty for the core group) and version; `None` when
/// nothing of it is served.
pub fn v3_group(group: &str, version: &str, crds: &[CrdInfo]) -> Option<Value> {
    let builtin = Schemas::builtin();
    let mut paths = Map::new();
    let mut schemas = Map::new();
    let mut wanted: Vec<String> = Vec::new();
    let served =
        Served::all(crds).filter(|served| served.group == group && served.version == version);
    for served in served {
        paths::add(
            &mut paths,
            &served,
            |name, kind, description| json!({"name": name, "in": "query", "description": description, "schema": {"type": kind, "uniqueItems": true}}),
        );
    }
    if paths.is_empty() {
        return None;
    }
    for kind in builtin.kinds() {
        if kind.gvk.group == group && kind.gvk.version == version {
            wanted.push(kind.definition.clone());
        }
    }
    for crd in crds {
        if crd.group == group && crd.version == version {
            for (name, schema) in crd.definitions() {
                add(&mut schemas, &mut wanted, name, &schema);
            }
        }
    }
    while let Some(name) = wanted.pop() {
        if !schemas.contains_key(&name)
            && let Some(schema) = builtin.definitions().get(&name)
        {
            add(&mut schemas, &mut wanted, name, schema);
        }
    }
    Some(json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": VERSION},
        "paths": paths,
        "components": {"schemas": schemas},
    }))
}

fn add(schemas: &mut Map<String, Value>, wanted: &mut Vec<String>, name: String, schema: &Value) {
    let mut converted = convert(schema, wanted);
    // Both are unions that the generated types name by an extension only.
    if name.ends_with(".IntOrString") {
        converted["oneOf"] = json!([{"type": "integer"}, {"type": "string"}]);
    } else if name.ends_with(".Quantity") {
        converted["oneOf"] = json!([{"type": "string"}, {"type": "number"}]);
    }
    schemas.insert(name, converted);
}

/// References may have nothing beside them in OpenAPI 3.0: those that do are
/// wrapped. The names referred to are added to `wanted`.
fn convert(schema: &Value, wanted: &mut Vec<String>) -> Value {
    match schema {
        Value::Object(map) => {
            let mut converted: Map<String, Value> = Map::new();
            for (key, value) in map {
                // Examples and defaults are values, not schemas.
                let value = match key.as_str() {
                    "default" | "enum" | "example" => value.clone(),
                    _ => convert(value, wanted),
                };
                converted.insert(key.clone(), value);
            }
            if let Some(Value::String(reference)) = map.get("$ref") {
                if let Some(name) = reference.strip_prefix(REFERENCE) {
                    wanted.push(name.to_owned());
                }
                if map.len() > 1
                    && let Some(reference) = converted.remove("$ref")
                {
                    converted.insert("allOf".into(), json!([{"$ref": reference}]));
                }
            }
            Value::Object(converted)
        }
        Value::Array(list) => list.iter().map(|value| convert(value, wanted)).collect(),
        other => other.clone(),
    }
}
