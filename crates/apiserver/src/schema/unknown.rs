//! Fields a schema does not have, and values of the wrong JSON type.

use super::node::SchemaNode;
use crate::validation::{FieldError, FieldErrorKind};
use serde_json::{Map, Value};

/// Paths of fields that the schema does not have, in the order of the object.
///
/// An object without declared properties is free-form, as is one with
/// `x-kubernetes-preserve-unknown-fields`.
pub fn unknown_fields(node: SchemaNode<'_>, value: &Value) -> Vec<String> {
    let mut found = Vec::new();
    walk_unknown(node, value, &mut String::new(), &mut found);
    found
}

fn walk_unknown(node: SchemaNode<'_>, value: &Value, path: &mut String, found: &mut Vec<String>) {
    let length = path.len();
    match value {
        Value::Object(map) => {
            let closed = node.has_properties()
                && !node.flag("x-kubernetes-preserve-unknown-fields")
                && node.additional().is_none()
                && node.schema().get("additionalProperties") != Some(&Value::Bool(true));
            for (name, value) in map {
                if !path.is_empty() {
                    path.push('.');
                }
                path.push_str(name);
                match node.field(name) {
                    Some(child) => walk_unknown(child, value, path, found),
                    None if closed => found.push(path.clone()),
                    None => {}
                }
                path.truncate(length);
            }
        }
        Value::Array(list) => {
            let Some(items) = node.items() else { return };
            for (index, value) in list.iter().enumerate() {
                path.push_str(&format!("[{index}]"));
                walk_unknown(items, value, path, found);
                path.truncate(length);
            }
        }
        _ => {}
    }
}

/// Values whose JSON type is not the one the schema asks for. `null` stands
/// for an absent field and is accepted everywhere but as a list's element.
pub fn type_errors(node: SchemaNode<'_>, value: &Value) -> Vec<FieldError> {
    let mut found = Vec::new();
    walk_types(node, value, &mut String::new(), &mut found);
    found
}

fn walk_types(node: SchemaNode<'_>, value: &Value, path: &mut String, found: &mut Vec<FieldError>) {
    if value.is_null() {
        return;
    }
    if let Some(expected) = mismatch(node, value) {
        found.push(FieldError::new(
            path.as_str(),
            FieldErrorKind::TypeInvalid,
            shown(value),
            format!("must be of type {expected}: {}", json_type(value)),
        ));
        return;
    }
    let length = path.len();
    match value {
        Value::Object(map) => walk_map(node, map, path, found),
        Value::Array(list) => {
            let Some(items) = node.items() else { return };
            for (index, value) in list.iter().enumerate() {
                path.push_str(&format!("[{index}]"));
                if value.is_null() && items.type_name().is_some() {
                    found.push(FieldError::new(
                        path.as_str(),
                        FieldErrorKind::TypeInvalid,
                        Value::Null,
                        format!(
                            "must be of type {}: null",
                            items.type_name().unwrap_or("object")
                        ),
                    ));
                }
                walk_types(items, value, path, found);
                path.truncate(length);
            }
        }
        _ => {}
    }
}

fn walk_map(
    node: SchemaNode<'_>,
    map: &Map<String, Value>,
    path: &mut String,
    found: &mut Vec<FieldError>,
) {
    let length = path.len();
    for (name, value) in map {
        let (child, declared) = match node.property(name) {
            Some(child) => (Some(child), true),
            None => (node.additional(), false),
        };
        let Some(child) = child else { continue };
        if declared {
            if !path.is_empty() {
                path.push('.');
            }
            path.push_str(name);
        } else {
            path.push_str(&format!("[{name}]"));
        }
        walk_types(child, value, path, found);
        path.truncate(length);
    }
}

/// The type the schema asks for, when the value has another one.
fn mismatch(node: SchemaNode<'_>, value: &Value) -> Option<&'static str> {
    if node.flag("x-kubernetes-int-or-string") {
        // A quantity may be a fraction; the union proper holds 32 bits.
        let union = node
            .keyword("format")
            .is_some_and(|format| format == "int-or-string");
        let fits = value.is_string()
            || if union {
                is_int32(value)
            } else {
                value.is_number()
            };
        return (!fits).then_some("integer or string");
    }
    let (expected, fits) = match node.type_name()? {
        "object" => ("object", value.is_object()),
        "array" => ("array", value.is_array()),
        "string"
            if node
                .keyword("format")
                .is_some_and(|format| format == "date-time") =>
        {
            (
                "date-time",
                value
                    .as_str()
                    .is_some_and(|text| text.parse::<jiff::Timestamp>().is_ok()),
            )
        }
        "string" => ("string", value.is_string()),
        "boolean" => ("boolean", value.is_boolean()),
        // Typed clients read no fractions, not even 3.0, and no more than 32 bits
        // where the field has that many.
        "integer"
            if node
                .keyword("format")
                .is_some_and(|format| format == "int32") =>
        {
            (
                "int32",
                value
                    .as_i64()
                    .is_some_and(|number| i32::try_from(number).is_ok()),
            )
        }
        "integer" => ("integer", value.is_i64() || value.is_u64()),
        "number" => ("number", value.is_number()),
        _ => return None,
    };
    (!fits).then_some(expected)
}

fn is_int32(value: &Value) -> bool {
    value
        .as_i64()
        .is_some_and(|number| i32::try_from(number).is_ok())
}

/// Whether a JSON number is whole: `3.0` is.
pub(super) fn is_integer(value: &Value) -> bool {
    value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|number| number.fract() == 0.0)
}

/// The JSON type of a value, as error messages name it.
pub(super) fn json_type(value: &Value) -> String {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) if is_integer(value) => "integer",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
    .to_owned()
}

/// What an error shows of a value: scalars as they are, others by their type.
fn shown(value: &Value) -> Value {
    match value {
        Value::Array(_) | Value::Object(_) => Value::String(json_type(value)),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use crate::resource::GroupVersionKind;
    use crate::schema::Schemas;
    use rstest::rstest;
    use serde_json::{Value, json};

    #[rstest]
    #[case(json!({"spec": {"containers": [{"name": "a", "foo": 1}]}}), &["spec.containers[0].foo"])]
    #[case(json!({"spec": {"containers": []}, "bar": 1}), &["bar"])]
    #[case(json!({"metadata": {"labels": {"anything": "x"}, "lable": {}}}), &["metadata.lable"])]
    #[case(json!({"spec": {"containers": [{"resources": {"limits": {"cpu": 1, "x/y": "2"}}}]}}), &[])]
    #[case(json!({"metadata": {"managedFields": [{"fieldsV1": {"f:x": {}}}]}}), &[])]
    fn unknown_fields_of_a_pod(#[case] pod: Value, #[case] expected: &[&str]) {
        let gvk = GroupVersionKind::new("", "v1", "Pod");
        assert_eq!(Schemas::builtin().unknown_fields(&gvk, &pod), expected);
    }

    #[test]
    fn unknown_fields_are_found_in_pod_templates() {
        let gvk = GroupVersionKind::new("apps", "v1", "Deployment");
        let deployment = json!({"spec": {"template": {"spec": {"containers": [{"foo": 1}]}}}});
        assert_eq!(
            Schemas::builtin().unknown_fields(&gvk, &deployment),
            ["spec.template.spec.containers[0].foo"]
        );
    }

    #[test]
    fn schemas_in_custom_resource_definitions_are_known_at_any_depth() {
        let gvk = GroupVersionKind::new("apiextensions.k8s.io", "v1", "CustomResourceDefinition");
        let crd = json!({"spec": {"versions": [{"schema": {"openAPIV3Schema": {
            "properties": {"a": {"properties": {"b": {"default": {"x": 1}, "typo": 1}}}}
        }}}]}});
        assert_eq!(
            Schemas::builtin().unknown_fields(&gvk, &crd),
            ["spec.versions[0].schema.openAPIV3Schema.properties.a.properties.b.typo"]
        );
    }

    #[rstest]
    #[case("2026-11-21T02:00:00Z", true)]
    #[case("2026-11-21T02:00:00.123456Z", true)]
    #[case("2026-11-21T02:00:00+01:00", true)]
    #[case("yesterday", false)]
    fn times_are_times(#[case] time: &str, #[case] fits: bool) {
        let gvk = GroupVersionKind::new("coordination.k8s.io", "v1", "Lease");
        let lease = json!({"spec": {"renewTime": time}});
        assert_eq!(
            Schemas::builtin().type_errors(&gvk, &lease).is_empty(),
            fits
        );
    }

    #[test]
    fn defaults_in_definitions_are_of_any_type() {
        let gvk = GroupVersionKind::new("apiextensions.k8s.io", "v1", "CustomResourceDefinition");
        let crd = json!({"spec": {"versions": [{"schema": {"openAPIV3Schema": {"properties": {
            "a": {"default": "x", "enum": ["x", 1], "maximum": 5},
            "b": {"default": [1], "additionalProperties": true},
            "c": {"type": "array", "items": {"type": "string"}, "example": 7},
        }}}}]}});
        assert_eq!(Schemas::builtin().type_errors(&gvk, &crd), []);
        assert!(Schemas::builtin().unknown_fields(&gvk, &crd).is_empty());
    }

    #[rstest]
    #[case(json!({"spec": {"ports": [{"port": "http"}]}}),
        &["spec.ports[0].port: Invalid value: \"http\": must be of type int32: string"])]
    #[case(json!({"spec": {"ports": [{"targetPort": "http"}, {"targetPort": 80}]}}), &[])]
    #[case(json!({"spec": {"ports": [{"targetPort": 80.5}]}}),
        &["spec.ports[0].targetPort: Invalid value: 80.5: must be of type integer or string: number"])]
    #[case(json!({"spec": {"ports": [{"targetPort": true}]}}),
        &["spec.ports[0].targetPort: Invalid value: true: must be of type integer or string: boolean"])]
    #[case(json!({"spec": {"ports": [{"port": 4294967376_i64}]}}),
        &["spec.ports[0].port: Invalid value: 4294967376: must be of type int32: integer"])]
    #[case(json!({"spec": []}), &["spec: Invalid value: \"array\": must be of type object: array"])]
    #[case(json!({"metadata": {"labels": {"a": 1}}}),
        &["metadata.labels[a]: Invalid value: 1: must be of type string: integer"])]
    #[case(json!({"spec": {"selector": null}}), &[])]
    fn type_errors_of_a_service(#[case] service: Value, #[case] expected: &[&str]) {
        let gvk = GroupVersionKind::new("", "v1", "Service");
        let found: Vec<String> = Schemas::builtin()
            .type_errors(&gvk, &service)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(found, expected);
    }
}
