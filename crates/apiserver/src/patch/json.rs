//! JSON patch (RFC 6902).

use super::PatchError;
use serde_json::Value;

/// Applies a JSON patch, all of it or nothing.
///
/// # Errors
/// [`PatchError::Malformed`] when the patch is no list of operations,
/// [`PatchError::Mismatch`] when an operation does not fit the document.
pub fn apply(doc: &Value, patch: &Value) -> Result<Value, PatchError> {
    let patch: json_patch::Patch = serde_json::from_value(patch.clone())
        .map_err(|error| PatchError::Malformed(error.to_string()))?;
    let mut result = doc.clone();
    json_patch::patch(&mut result, &patch)
        .map_err(|error| PatchError::Mismatch(error.to_string()))?;
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use serde_json::json;

    /// The examples of RFC 6902, appendix A.
    #[rstest]
    #[case(json!({"foo": "bar"}), json!([{"op": "add", "path": "/baz", "value": "qux"}]), json!({"baz": "qux", "foo": "bar"}))]
    #[case(json!({"foo": ["bar", "baz"]}), json!([{"op": "add", "path": "/foo/1", "value": "qux"}]), json!({"foo": ["bar", "qux", "baz"]}))]
    #[case(json!({"baz": "qux", "foo": "bar"}), json!([{"op": "remove", "path": "/baz"}]), json!({"foo": "bar"}))]
    #[case(json!({"foo": ["bar", "qux", "baz"]}), json!([{"op": "remove", "path": "/foo/1"}]), json!({"foo": ["bar", "baz"]}))]
    #[case(json!({"baz": "qux", "foo": "bar"}), json!([{"op": "replace", "path": "/baz", "value": "boo"}]), json!({"baz": "boo", "foo": "bar"}))]
    #[case(json!({"foo": {"bar": "baz", "waldo": "fred"}, "qux": {"corge": "grault"}}),
        json!([{"op": "move", "from": "/foo/waldo", "path": "/qux/thud"}]),
        json!({"foo": {"bar": "baz"}, "qux": {"corge": "grault", "thud": "fred"}}))]
    #[case(json!({"foo": ["all", "grass", "cows", "eat"]}), json!([{"op": "move", "from": "/foo/1", "path": "/foo/3"}]),
        json!({"foo": ["all", "cows", "eat", "grass"]}))]
    #[case(json!({"baz": "qux", "foo": ["a", 2, "c"]}),
        json!([{"op": "test", "path": "/baz", "value": "qux"}, {"op": "test", "path": "/foo/1", "value": 2}]),
        json!({"baz": "qux", "foo": ["a", 2, "c"]}))]
    #[case(json!({"foo": "bar"}), json!([{"op": "add", "path": "/child", "value": {"grandchild": {}}}]), json!({"foo": "bar", "child": {"grandchild": {}}}))]
    #[case(json!({"/": 9, "~1": 10}), json!([{"op": "test", "path": "/~01", "value": 10}]), json!({"/": 9, "~1": 10}))]
    #[case(json!({"foo": ["bar"]}), json!([{"op": "add", "path": "/foo/-", "value": ["abc", "def"]}]), json!({"foo": ["bar", ["abc", "def"]]}))]
    fn rfc_6902_examples(#[case] doc: Value, #[case] patch: Value, #[case] expected: Value) {
        assert_eq!(apply(&doc, &patch).unwrap(), expected);
    }

    #[rstest]
    #[case(json!([{"op": "test", "path": "/baz", "value": "bar"}]))]
    #[case(json!([{"op": "add", "path": "/a/b", "value": "qux"}]))]
    #[case(json!([{"op": "remove", "path": "/missing"}]))]
    fn operations_that_do_not_fit_are_mismatches(#[case] patch: Value) {
        let error = apply(&json!({"baz": "qux"}), &patch).unwrap_err();
        assert!(matches!(error, PatchError::Mismatch(_)), "{error}");
    }

    #[rstest]
    #[case(json!({"op": "add"}))]
    #[case(json!([{"op": "frob", "path": "/a"}]))]
    fn other_documents_are_malformed(#[case] patch: Value) {
        let error = apply(&json!({}), &patch).unwrap_err();
        assert!(matches!(error, PatchError::Malformed(_)), "{error}");
    }
}
