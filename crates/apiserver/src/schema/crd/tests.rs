use super::*;
use proptest::prelude::*;
use rstest::rstest;
use serde_json::json;

fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "spec": {
                "type": "object",
                "required": ["size"],
                "properties": {
                    "size": {"type": "integer", "minimum": 1, "maximum": 10},
                    "mode": {"type": "string", "enum": ["a", "b"], "default": "a"},
                    "name": {"type": "string", "pattern": "^[a-z]+$", "minLength": 2, "maxLength": 4},
                    "port": {"x-kubernetes-int-or-string": true},
                    "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 2, "x-kubernetes-list-type": "set"},
                    "parts": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["id"],
                        "items": {"type": "object", "properties": {"id": {"type": "string"}, "n": {"type": "integer", "default": 7}}}},
                    "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true,
                        "properties": {"known": {"type": "object", "properties": {"x": {"type": "string"}}}}},
                    "map": {"type": "object", "additionalProperties": {"type": "object", "properties": {"x": {"type": "string", "default": "d"}}}},
                    "object": {"type": "object", "x-kubernetes-embedded-resource": true, "properties": {"spec": {"type": "object"}}},
                    "maybe": {"type": "string", "nullable": true, "default": "m"},
                    "when": {"type": "string", "format": "date-time"},
                    "one": {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "string"}},
                        "oneOf": [{"required": ["a"]}, {"required": ["b"]}]},
                    "not": {"type": "string", "not": {"enum": ["bad"]}, "allOf": [{"maxLength": 5}]},
                },
            },
        },
    })
}

#[rstest]
#[case::unknown(json!({"size": 1, "x": 2}), json!({"size": 1}), &["spec.x"])]
#[case::preserved(json!({"free": {"x": {"y": 1}, "known": {"x": "1", "z": 2}}}),
    json!({"free": {"x": {"y": 1}, "known": {"x": "1"}}}), &["spec.free.known.z"])]
#[case::maps(json!({"map": {"k": {"x": "1", "y": 2}}}), json!({"map": {"k": {"x": "1"}}}), &["spec.map.k.y"])]
#[case::lists(json!({"parts": [{"id": "1", "y": 2}]}), json!({"parts": [{"id": "1"}]}), &["spec.parts[0].y"])]
#[case::embedded(json!({"object": {"apiVersion": "v1", "kind": "X", "metadata": {"name": "n"}, "spec": {"q": 1}, "z": 1}}),
    json!({"object": {"apiVersion": "v1", "kind": "X", "metadata": {"name": "n"}, "spec": {}}}),
    &["spec.object.spec.q", "spec.object.z"])]
fn pruning(#[case] spec: Value, #[case] expected: Value, #[case] removed: &[&str]) {
    let mut object =
        json!({"apiVersion": "v1", "kind": "Foo", "metadata": {"name": "x"}, "spec": spec});
    let mut found = prune(&schema(), &mut object);
    found.sort();
    assert_eq!(found, removed);
    assert_eq!(
        object,
        json!({"apiVersion": "v1", "kind": "Foo", "metadata": {"name": "x"}, "spec": expected})
    );
}

#[rstest]
#[case::absent(json!({}), json!({"mode": "a", "maybe": "m"}))]
#[case::given(json!({"mode": "b", "maybe": null}), json!({"mode": "b", "maybe": null}))]
#[case::null_is_absent(json!({"mode": null, "maybe": "x"}), json!({"mode": "a", "maybe": "x"}))]
#[case::nested(json!({"mode": "a", "maybe": "m", "parts": [{"id": "1"}], "map": {"k": {}}}),
    json!({"mode": "a", "maybe": "m", "parts": [{"id": "1", "n": 7}], "map": {"k": {"x": "d"}}}))]
fn defaults(#[case] spec: Value, #[case] expected: Value) {
    let mut object = json!({"spec": spec});
    default(&schema(), &mut object);
    assert_eq!(object, json!({"spec": expected}));
}

#[rstest]
#[case(json!({"size": 1, "port": 80, "when": "2026-11-21T02:00:00Z", "one": {"a": "x"}, "not": "ok"}), &[])]
#[case(json!({"size": 1, "port": "http"}), &[])]
#[case(json!({}), &["spec.size: Required value"])]
#[case(json!({"size": "1"}), &["spec.size: Invalid value: \"1\": spec.size in body must be of type integer: \"string\""])]
#[case(json!({"size": 0}), &["spec.size: Invalid value: 0: spec.size in body should be greater than or equal to 1"])]
#[case(json!({"size": 11}), &["spec.size: Invalid value: 11: spec.size in body should be less than or equal to 10"])]
#[case(json!({"size": 1, "mode": "c"}), &["spec.mode: Unsupported value: \"c\": supported values: \"a\", \"b\""])]
#[case(json!({"size": 1, "name": "a1"}), &["spec.name: Invalid value: \"a1\": spec.name in body should match '^[a-z]+$'"])]
#[case(json!({"size": 1, "name": "a"}), &["spec.name: Invalid value: \"a\": spec.name in body should be at least 2 chars long"])]
#[case(json!({"size": 1, "name": "abcde"}), &["spec.name: Too long: may not be more than 4 bytes"])]
#[case(json!({"size": 1, "port": true}), &["spec.port: Invalid value: true: spec.port in body must be of type integer,string: \"boolean\""])]
#[case(json!({"size": 1, "tags": ["a", "b", "c"]}), &["spec.tags: Too many: 3: must have at most 2 items"])]
#[case(json!({"size": 1, "tags": ["a", "a"]}), &["spec.tags[1]: Duplicate value: \"a\""])]
#[case(json!({"size": 1, "parts": [{"id": "1"}, {"id": "1"}]}), &["spec.parts[1]: Duplicate value: {\"id\":\"1\"}"])]
#[case(json!({"size": 1, "when": "yesterday"}), &["spec.when: Invalid value: \"yesterday\": spec.when in body must be of type date-time: \"yesterday\""])]
#[case(json!({"size": 1, "one": {}}), &["spec.one: Invalid value: \"\": \"spec.one\" must validate one and only one schema (oneOf). Found none valid"])]
#[case(json!({"size": 1, "one": {"a": "", "b": ""}}),
    &["spec.one: Invalid value: \"\": \"spec.one\" must validate one and only one schema (oneOf). Found 2 valid alternatives"])]
#[case(json!({"size": 1, "not": "bad"}), &["spec.not: Invalid value: \"bad\": \"spec.not\" must not validate the schema (not)"])]
#[case(json!({"size": 1, "not": "toolong"}), &["spec.not: Too long: may not be more than 5 bytes"])]
#[case(json!({"size": 1, "map": {"k": {"x": 1}}}), &["spec.map.k.x: Invalid value: 1: spec.map.k.x in body must be of type string: \"integer\""])]
fn validation(#[case] spec: Value, #[case] expected: &[&str]) {
    let found: Vec<String> = validate(&schema(), &json!({"spec": spec}))
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(found, expected);
}

#[rstest]
#[case(json!({"type": "object", "properties": {"a": {}}}), "s.properties[a].type: Required value: must not be empty for specified object fields")]
#[case(json!({"type": "array"}), "s.items: Required value: must be specified")]
#[case(json!({"type": "string", "pattern": "("}), "s.pattern: Invalid value: \"(\": must be a valid regular expression")]
#[case(json!({"type": "object", "$ref": "#/x"}), "s.$ref: Forbidden")]
fn schemas_that_are_not_structural(#[case] schema: Value, #[case] expected: &str) {
    let mut errors = Vec::new();
    structural_errors("s", &schema, &mut errors);
    assert!(errors[0].to_string().starts_with(expected), "{}", errors[0]);
}

/// Patterns of the kinds that well-known definitions use.
#[rstest]
#[case(
    r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$",
    "a.b",
    "A"
)]
#[case(r"^(\*\.)?[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "*.a", "*a")]
#[case(
    r"^(?:[-A-Za-z0-9/._~!$&'()*+,;=:@]|[%][0-9a-fA-F]{2})+$",
    "/a%2F",
    "/a b"
)]
#[case(r"^[A-Za-z0-9!#$%&'*+\-.^_\x60|~]+$", "x`", "a b")]
#[case(r"^([0-9]{1,5}(h|m|s|ms)){1,4}$", "10s", "10")]
#[case(r"^[a-zA-Z0-9]([-a-zA-Z0-9]{0,61}[a-zA-Z0-9])?\/[\w]+$", "b/c", "b")]
#[case(r"^\S+\d{3}$", "a123", "a12")]
#[case(r"^\p{L}+$", "anything", "")]
fn patterns(#[case] pattern: &str, #[case] fits: &str, #[case] not: &str) {
    let schema = json!({"type": "string", "pattern": pattern});
    let mut errors = Vec::new();
    structural_errors("s", &schema, &mut errors);
    assert_eq!(errors, []);
    assert_eq!(validate(&schema, &json!(fits)), []);
    if !pattern.contains("\\p") {
        assert_eq!(validate(&schema, &json!(not)).len(), 1);
    }
}

#[test]
fn the_schema_of_these_tests_is_structural() {
    let mut errors = Vec::new();
    structural_errors("s", &schema(), &mut errors);
    assert_eq!(errors, []);
}

fn values() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        Just(json!(1)),
        Just(json!("x")),
        Just(json!(true))
    ];
    let key = proptest::sample::select(vec![
        "spec", "size", "mode", "tags", "parts", "id", "free", "known", "map", "maybe", "object",
        "one", "a",
    ]);
    leaf.prop_recursive(5, 32, 4, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            proptest::collection::btree_map(key.clone().prop_map(str::to_owned), inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    /// Also: no value, however wrong its types, makes them panic.
    #[test]
    fn pruning_and_defaults_are_idempotent(value in values()) {
        let schema = schema();
        let mut once = value;
        prune(&schema, &mut once);
        default(&schema, &mut once);
        validate(&schema, &once);
        let mut twice = once.clone();
        prop_assert!(prune(&schema, &mut twice).is_empty());
        default(&schema, &mut twice);
        prop_assert_eq!(once, twice);
    }
}
