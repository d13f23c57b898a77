use super::gnostic::{Document, Schema};
use super::*;
use prost::Message;
use rstest::rstest;

fn crd() -> Value {
    json!({"spec": {"group": "example.org", "scope": "Namespaced", "names": {"plural": "foos", "kind": "Foo"}, "versions": [
        {"name": "v1", "served": true, "schema": {"openAPIV3Schema": {"type": "object", "description": "A foo.", "properties": {
            "spec": {"type": "object", "properties": {
                "size": {"type": "integer"},
                "port": {"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]},
                "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
                "maybe": {"type": "string", "nullable": true},
                "map": {"type": "object", "additionalProperties": {"type": "string"}},
                "evil": {"$ref": "#/components/schemas/nowhere", "type": "string"},
            }},
        }}}},
        {"name": "v2", "served": false},
    ]}})
}

fn crds() -> Vec<CrdInfo> {
    CrdInfo::from_definition(&crd())
}

fn definitions(document: &Document) -> std::collections::BTreeMap<String, Schema> {
    document
        .definitions
        .clone()
        .unwrap()
        .additional_properties
        .into_iter()
        .map(|named| (named.name, named.value.unwrap()))
        .collect()
}

#[test]
fn served_versions_of_a_definition() {
    let crds = crds();
    assert_eq!(crds.len(), 1);
    assert_eq!(
        (crds[0].version.as_str(), crds[0].list_kind.as_str()),
        ("v1", "FooList")
    );
}

/// Clients refuse the whole document when one reference dangles, when a list
/// does not say what it holds, or when a type is none of the known ones.
#[test]
fn the_protobuf_document_is_one_that_clients_accept() {
    fn check(name: &str, schema: &Schema, known: &std::collections::BTreeMap<String, Schema>) {
        if !schema.reference.is_empty() {
            let target = schema.reference.strip_prefix("#/definitions/").unwrap();
            assert!(known.contains_key(target), "{name}: {target}");
            return;
        }
        let types = schema.r#type.clone().unwrap_or_default().value;
        match types.first().map(String::as_str) {
            Some("array") => {
                let items = schema.items.as_ref().unwrap_or_else(|| panic!("{name}"));
                check(name, &items.schema[0], known);
            }
            None | Some("object" | "string" | "integer" | "number" | "boolean") => {}
            Some(other) => panic!("{name}: {other}"),
        }
        for property in schema
            .properties
            .iter()
            .flat_map(|properties| &properties.additional_properties)
        {
            check(
                &format!("{name}.{}", property.name),
                property.value.as_ref().unwrap(),
                known,
            );
        }
        if let Some(super::gnostic::AdditionalProperties::Schema(inner)) = schema
            .additional_properties
            .as_ref()
            .and_then(|item| item.oneof.as_ref())
        {
            check(name, inner, known);
        }
    }
    let document = Document::decode(v2_protobuf(&crds()).as_slice()).unwrap();
    assert_eq!(document.swagger, "2.0");
    let known = definitions(&document);
    for (name, schema) in &known {
        check(name, schema, &known);
    }
    assert!(known.contains_key("io.k8s.api.core.v1.Pod"));
    assert!(known.contains_key("org.example.v1.Foo"));
    assert!(known.contains_key("org.example.v1.FooList"));
}

#[test]
fn definitions_name_their_kind_and_their_merge_keys() {
    let known = definitions(&Document::decode(v2_protobuf(&[]).as_slice()).unwrap());
    let yaml = |schema: &Schema, name: &str| {
        let found = schema
            .vendor_extension
            .iter()
            .find(|extension| extension.name == name);
        let text = found.unwrap().value.clone().unwrap().yaml;
        serde_json::from_str::<Value>(&text).unwrap()
    };
    assert_eq!(
        yaml(
            &known["io.k8s.api.apps.v1.Deployment"],
            "x-kubernetes-group-version-kind"
        ),
        json!([{"group": "apps", "version": "v1", "kind": "Deployment"}])
    );
    let containers = known["io.k8s.api.core.v1.PodSpec"]
        .properties
        .as_ref()
        .unwrap()
        .additional_properties
        .iter()
        .find(|property| property.name == "containers")
        .unwrap()
        .value
        .clone()
        .unwrap();
    assert_eq!(
        yaml(&containers, "x-kubernetes-patch-merge-key"),
        json!("name")
    );
    assert_eq!(
        yaml(&containers, "x-kubernetes-patch-strategy"),
        json!("merge")
    );
}

#[test]
fn every_kind_has_a_patch_that_knows_dry_run_and_field_validation() {
    let document = v2_json(&crds());
    for served in Served::all(&crds()) {
        let wanted = json!({"group": served.group, "version": served.version, "kind": served.kind});
        let patch = document["paths"]
            .as_object()
            .unwrap()
            .values()
            .find_map(|item| {
                item.get("patch")
                    .filter(|patch| patch["x-kubernetes-group-version-kind"] == wanted)
            })
            .unwrap_or_else(|| panic!("{wanted}"));
        let names: Vec<&Value> = patch["parameters"]
            .as_array()
            .unwrap()
            .iter()
            .map(|parameter| &parameter["name"])
            .collect();
        assert_eq!(
            names,
            ["dryRun", "fieldManager", "fieldValidation", "force"]
        );
    }
}

#[rstest]
#[case("size", json!({"type": "integer"}))]
#[case("port", json!({"type": "string", "format": "int-or-string", "x-kubernetes-int-or-string": true}))]
#[case("free", json!({"x-kubernetes-preserve-unknown-fields": true}))]
#[case("maybe", json!({}))]
#[case("map", json!({"type": "object", "additionalProperties": {"type": "string"}}))]
#[case("evil", json!({"type": "string"}))]
fn custom_schemas_in_version_2(#[case] field: &str, #[case] expected: Value) {
    let document = v2_json(&crds());
    let spec = &document["definitions"]["org.example.v1.Foo"]["properties"]["spec"];
    assert_eq!(spec["properties"][field], expected);
}

#[test]
fn the_index_lists_every_group_and_version() {
    let index = v3_index(&crds());
    for (path, url) in [
        ("api/v1", "/openapi/v3/api/v1"),
        ("apis/apps/v1", "/openapi/v3/apis/apps/v1"),
        ("apis/example.org/v1", "/openapi/v3/apis/example.org/v1"),
    ] {
        assert_eq!(index["paths"][path]["serverRelativeURL"], url);
        let (group, version) = match path.split('/').collect::<Vec<_>>().as_slice() {
            ["apis", group, version] => ((*group).to_owned(), (*version).to_owned()),
            [_, version] => (String::new(), (*version).to_owned()),
            _ => unreachable!("paths have two or three parts"),
        };
        assert!(v3_group(&group, &version, &crds()).is_some());
    }
    assert_eq!(v3_group("apps", "v9", &[]), None);
}

#[rstest]
#[case("", "v1", "/api/v1/namespaces/{namespace}/pods")]
#[case("", "v1", "/api/v1/nodes")]
#[case("apps", "v1", "/apis/apps/v1/deployments")]
#[case(
    "example.org",
    "v1",
    "/apis/example.org/v1/namespaces/{namespace}/foos/{name}"
)]
fn documents_of_version_3_are_closed(
    #[case] group: &str,
    #[case] version: &str,
    #[case] path: &str,
) {
    fn references(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(map) => {
                if let Some(Value::String(reference)) = map.get("$ref") {
                    assert_eq!(map.len(), 1, "a reference stands alone: {map:?}");
                    found.push(reference.clone());
                }
                map.values().for_each(|value| references(value, found));
            }
            Value::Array(list) => list.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }
    let document = v3_group(group, version, &crds()).unwrap();
    assert!(document["paths"][path]["get"].is_object());
    let mut found = Vec::new();
    references(&document, &mut found);
    assert!(!found.is_empty());
    for reference in found {
        let name = reference.strip_prefix("#/components/schemas/").unwrap();
        assert!(
            document["components"]["schemas"][name].is_object(),
            "{name}"
        );
    }
}
