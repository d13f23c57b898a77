//! Strategic merge patch: a merge patch that knows which lists merge by key.
//!
//! Directives: `$patch: replace|delete|merge` in an object or as a list's
//! element, `$deleteFromPrimitiveList/FIELD`, `$setElementOrder/FIELD` and
//! `$retainKeys`.

use super::PatchError;
use crate::resource::GroupVersionKind;
use crate::schema::{SchemaNode, Schemas};
use serde_json::{Map, Value};

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";
const ORDER: &str = "$setElementOrder/";

/// Applies a strategic merge patch to an object of a built-in kind.
///
/// # Errors
/// [`PatchError::UnsupportedKind`] for a kind that is not built in,
/// [`PatchError::Malformed`] for an unknown directive or an element without
/// its merge key.
pub fn apply(gvk: &GroupVersionKind, doc: &Value, patch: &Value) -> Result<Value, PatchError> {
    let node = Schemas::builtin()
        .node(gvk)
        .ok_or_else(|| PatchError::UnsupportedKind {
            api_version: gvk.api_version(),
            kind: gvk.kind.clone(),
        })?;
    let Value::Object(patch) = patch else {
        return Err(malformed("a strategic merge patch must be an object"));
    };
    let original = doc.as_object().cloned().unwrap_or_default();
    merge_object(Some(node), original, patch, "").map(Value::Object)
}

fn malformed(text: impl Into<String>) -> PatchError {
    PatchError::Malformed(text.into())
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() {
        name.to_owned()
    } else {
        format!("{path}.{name}")
    }
}

fn merge_object(
    node: Option<SchemaNode<'_>>,
    mut original: Map<String, Value>,
    patch: &Map<String, Value>,
    path: &str,
) -> Result<Map<String, Value>, PatchError> {
    match patch.get(DIRECTIVE) {
        None => {}
        Some(Value::String(word)) if word == "merge" => {}
        // What remains of the patch stands for itself; merged into nothing so
        // that directives further down do not end up in the object.
        Some(Value::String(word)) if word == "replace" => original = Map::new(),
        Some(Value::String(word)) if word == "delete" => return Ok(Map::new()),
        Some(other) => {
            return Err(malformed(format!(
                "unknown $patch directive {other} at {path:?}: use replace, merge or delete"
            )));
        }
    }
    if let Some(keys) = patch.get(RETAIN_KEYS) {
        let keys = keys
            .as_array()
            .ok_or_else(|| malformed(format!("$retainKeys at {path:?} must be a list")))?;
        original.retain(|name, _| keys.iter().any(|key| key.as_str() == Some(name)));
    }
    // Lists that only get a new order or lose scalars have no entry of their own.
    for key in patch.keys() {
        let Some(name) = key
            .strip_prefix(DELETE_FROM)
            .or_else(|| key.strip_prefix(ORDER))
        else {
            continue;
        };
        if patch.contains_key(name) {
            continue;
        }
        if let Some(Value::Array(list)) = original.get(name).cloned() {
            let child = node.and_then(|node| node.field(name));
            let merged = merge_list(child, list, &[], patch, name, &join(path, name))?;
            original.insert(name.to_owned(), Value::Array(merged));
        }
    }
    for (name, value) in patch {
        if name.starts_with('$') {
            if name != DIRECTIVE
                && name != RETAIN_KEYS
                && !name.starts_with(DELETE_FROM)
                && !name.starts_with(ORDER)
            {
                return Err(malformed(format!("unknown directive {name} at {path:?}")));
            }
            continue;
        }
        let child = node.and_then(|node| node.field(name));
        let path = join(path, name);
        match value {
            Value::Null => {
                original.remove(name);
            }
            Value::Object(value) => {
                let current = match original.remove(name) {
                    Some(Value::Object(current))
                        if !child.is_some_and(|child| child.has_patch_strategy("replace")) =>
                    {
                        current
                    }
                    _ => Map::new(),
                };
                let deleted = value.get(DIRECTIVE).and_then(Value::as_str) == Some("delete");
                let merged = merge_object(child, current, value, &path)?;
                if !deleted {
                    original.insert(name.clone(), Value::Object(merged));
                }
            }
            Value::Array(list) => {
                let current = match original.remove(name) {
                    Some(Value::Array(current)) => current,
                    _ => Vec::new(),
                };
                let merged = merge_list(child, current, list, patch, name, &path)?;
                original.insert(name.clone(), Value::Array(merged));
            }
            scalar => {
                original.insert(name.clone(), scalar.clone());
            }
        }
    }
    Ok(original)
}

/// Merges `patch` into `current` by the field's strategy; `directives` is the
/// object that holds the list and the directives about it.
fn merge_list(
    node: Option<SchemaNode<'_>>,
    current: Vec<Value>,
    patch: &[Value],
    directives: &Map<String, Value>,
    name: &str,
    path: &str,
) -> Result<Vec<Value>, PatchError> {
    let merges = node.is_some_and(|node| node.has_patch_strategy("merge"));
    let has_directive = |key: &str| directives.contains_key(&format!("{key}{name}"));
    if !merges {
        if has_directive(DELETE_FROM) || has_directive(ORDER) {
            return Err(malformed(format!(
                "{path} is not a list that merges: it takes no directives"
            )));
        }
        return Ok(patch
            .iter()
            .filter(|item| item.get(DIRECTIVE).is_none())
            .cloned()
            .collect());
    }
    let order = list_directive(directives, ORDER, name, path)?;
    match node.and_then(SchemaNode::patch_merge_key) {
        Some(key) => {
            let items = node.and_then(SchemaNode::items);
            let server_order: Vec<Value> = identities(&current, key);
            let merged = merge_keyed(items, current, patch, key, path)?;
            let Some(order) = order else {
                return Ok(merged);
            };
            let order = identities(order, key);
            Ok(reorder(merged, &order, &server_order, |item| {
                item.get(key).cloned().unwrap_or(Value::Null)
            }))
        }
        None => {
            let server_order = current.clone();
            let mut merged = current;
            if let Some(removed) = list_directive(directives, DELETE_FROM, name, path)? {
                merged.retain(|item| !removed.contains(item));
            }
            for item in patch {
                if !merged.contains(item) {
                    merged.push(item.clone());
                }
            }
            Ok(match order {
                Some(order) => reorder(merged, order, &server_order, Value::clone),
                None => merged,
            })
        }
    }
}

fn list_directive<'a>(
    directives: &'a Map<String, Value>,
    directive: &str,
    name: &str,
    path: &str,
) -> Result<Option<&'a [Value]>, PatchError> {
    match directives.get(&format!("{directive}{name}")) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Array(list)) => Ok(Some(list)),
        Some(_) => Err(malformed(format!(
            "{directive}{name} beside {path} must be a list"
        ))),
    }
}

fn identities(list: &[Value], key: &str) -> Vec<Value> {
    list.iter()
        .map(|item| item.get(key).cloned().unwrap_or(Value::Null))
        .collect()
}

fn merge_keyed(
    items: Option<SchemaNode<'_>>,
    mut current: Vec<Value>,
    patch: &[Value],
    key: &str,
    path: &str,
) -> Result<Vec<Value>, PatchError> {
    let directive = |item: &Value| {
        item.get(DIRECTIVE)
            .and_then(Value::as_str)
            .map(str::to_owned)
    };
    // An element `{"$patch": "replace"}` makes the whole list replace.
    if patch
        .iter()
        .any(|item| directive(item).as_deref() == Some("replace") && item.get(key).is_none())
    {
        current.clear();
    }
    for item in patch {
        let Value::Object(fields) = item else {
            return Err(malformed(format!("elements of {path} must be objects")));
        };
        let word = directive(item);
        let Some(identity) = fields.get(key) else {
            match word.as_deref() {
                Some("replace") => continue,
                Some("delete") => {
                    return Err(malformed(format!(
                        "an element of {path} to delete does not contain the merge key {key:?}"
                    )));
                }
                _ => {
                    return Err(malformed(format!(
                        "map {item} in {path} does not contain declared merge key: {key}"
                    )));
                }
            }
        };
        let position = current
            .iter()
            .position(|other| other.get(key) == Some(identity));
        if word.as_deref() == Some("delete") {
            current.retain(|other| other.get(key) != Some(identity));
            continue;
        }
        let before = match position.and_then(|position| current.get(position)) {
            Some(Value::Object(before)) => before.clone(),
            _ => Map::new(),
        };
        let merged = Value::Object(merge_object(items, before, fields, path)?);
        match position {
            Some(position) => current[position] = merged,
            None => current.push(merged),
        }
    }
    Ok(current)
}

/// Puts the elements named in `order` into that order; the others (which only
/// the server has) keep their place relative to what stood around them.
fn reorder(
    list: Vec<Value>,
    order: &[Value],
    server_order: &[Value],
    identity: impl Fn(&Value) -> Value,
) -> Vec<Value> {
    let place = |order: &[Value], item: &Value| {
        let identity = identity(item);
        order.iter().position(|other| *other == identity)
    };
    let (mut ordered, others): (Vec<Value>, Vec<Value>) = list
        .into_iter()
        .partition(|item| place(order, item).is_some());
    ordered.sort_by_key(|item| place(order, item));
    let mut result = Vec::with_capacity(ordered.len() + others.len());
    let mut others = others.into_iter().peekable();
    for item in ordered {
        if let Some(here) = place(server_order, &item) {
            while let Some(other) =
                others.next_if(|other| place(server_order, other).is_some_and(|there| there < here))
            {
                result.push(other);
            }
        }
        result.push(item);
    }
    result.extend(others);
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rstest::rstest;
    use serde_json::json;

    fn gvk(group: &str, kind: &str) -> GroupVersionKind {
        GroupVersionKind::new(group, "v1", kind)
    }

    #[rstest]
    #[case::containers_merge_by_name(
        json!({"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "2"}]}),
        json!({"containers": [{"name": "b", "image": "3"}]}),
        json!({"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "3"}]}))]
    #[case::new_element_is_appended(
        json!({"containers": [{"name": "a"}]}),
        json!({"containers": [{"name": "b", "command": ["x"]}]}),
        json!({"containers": [{"name": "a"}, {"name": "b", "command": ["x"]}]}))]
    #[case::element_deleted(
        json!({"containers": [{"name": "a"}, {"name": "b"}]}),
        json!({"containers": [{"name": "a", "$patch": "delete"}]}),
        json!({"containers": [{"name": "b"}]}))]
    #[case::deleting_what_is_not_there_is_fine(
        json!({"containers": [{"name": "b"}]}),
        json!({"containers": [{"name": "a", "$patch": "delete"}]}),
        json!({"containers": [{"name": "b"}]}))]
    #[case::list_replaced(
        json!({"containers": [{"name": "a"}, {"name": "b"}]}),
        json!({"containers": [{"$patch": "replace"}, {"name": "c"}]}),
        json!({"containers": [{"name": "c"}]}))]
    #[case::element_replaced(
        json!({"containers": [{"name": "a", "image": "1", "tty": true}]}),
        json!({"containers": [{"name": "a", "image": "2", "$patch": "replace"}]}),
        json!({"containers": [{"name": "a", "image": "2"}]}))]
    #[case::object_replaced(
        json!({"securityContext": {"runAsUser": 1, "fsGroup": 2}}),
        json!({"securityContext": {"$patch": "replace", "runAsUser": 3}}),
        json!({"securityContext": {"runAsUser": 3}}))]
    #[case::object_deleted(
        json!({"securityContext": {"runAsUser": 1}, "hostname": "x"}),
        json!({"securityContext": {"$patch": "delete"}}),
        json!({"hostname": "x"}))]
    #[case::null_removes(
        json!({"hostname": "x", "nodeName": "n"}),
        json!({"hostname": null}),
        json!({"nodeName": "n"}))]
    #[case::null_in_a_new_object_leaves_nothing(
        json!({}),
        json!({"securityContext": {"runAsUser": null, "fsGroup": 1}}),
        json!({"securityContext": {"fsGroup": 1}}))]
    #[case::tolerations_are_atomic(
        json!({"tolerations": [{"key": "a"}]}),
        json!({"tolerations": [{"key": "b"}]}),
        json!({"tolerations": [{"key": "b"}]}))]
    #[case::env_by_name_ports_by_number_mounts_by_path(
        json!({"containers": [{"name": "a", "env": [{"name": "X", "value": "1"}], "ports": [{"containerPort": 80}],
            "volumeMounts": [{"mountPath": "/a", "name": "v"}]}]}),
        json!({"containers": [{"name": "a", "env": [{"name": "X", "value": "2"}, {"name": "Y", "value": "3"}],
            "ports": [{"containerPort": 80, "name": "http"}, {"containerPort": 81}],
            "volumeMounts": [{"mountPath": "/a", "readOnly": true}]}]}),
        json!({"containers": [{"name": "a", "env": [{"name": "X", "value": "2"}, {"name": "Y", "value": "3"}],
            "ports": [{"containerPort": 80, "name": "http"}, {"containerPort": 81}],
            "volumeMounts": [{"mountPath": "/a", "name": "v", "readOnly": true}]}]}))]
    #[case::volume_source_changes_by_retain_keys(
        json!({"volumes": [{"name": "v", "emptyDir": {}}]}),
        json!({"volumes": [{"name": "v", "$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/x"}}]}),
        json!({"volumes": [{"name": "v", "hostPath": {"path": "/x"}}]}))]
    #[case::order_without_changes(
        json!({"containers": [{"name": "a"}, {"name": "b"}, {"name": "c"}]}),
        json!({"$setElementOrder/containers": [{"name": "c"}, {"name": "a"}, {"name": "b"}]}),
        json!({"containers": [{"name": "c"}, {"name": "a"}, {"name": "b"}]}))]
    #[case::order_with_an_element_only_the_server_has(
        json!({"containers": [{"name": "sidecar"}, {"name": "a"}]}),
        json!({"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}], "containers": [{"name": "b"}]}),
        json!({"containers": [{"name": "b"}, {"name": "sidecar"}, {"name": "a"}]}))]
    fn pod_spec(#[case] doc: Value, #[case] patch: Value, #[case] expected: Value) {
        let wrap = |spec: Value| json!({"spec": spec});
        let pod = gvk("", "Pod");
        let once = apply(&pod, &wrap(doc), &wrap(patch.clone())).unwrap();
        assert_eq!(once, wrap(expected));
        assert_eq!(
            apply(&pod, &once, &wrap(patch)).unwrap(),
            once,
            "twice is once"
        );
    }

    #[rstest]
    #[case::finalizers_are_a_set(
        json!({"finalizers": ["a", "b"]}), json!({"finalizers": ["b", "c"]}), json!({"finalizers": ["a", "b", "c"]}))]
    #[case::finalizer_deleted(
        json!({"finalizers": ["a", "b"]}), json!({"$deleteFromPrimitiveList/finalizers": ["a"]}), json!({"finalizers": ["b"]}))]
    #[case::finalizers_ordered(
        json!({"finalizers": ["a", "b"]}),
        json!({"$setElementOrder/finalizers": ["c", "b"], "$deleteFromPrimitiveList/finalizers": ["a"], "finalizers": ["c"]}),
        json!({"finalizers": ["c", "b"]}))]
    #[case::owner_references_by_uid(
        json!({"ownerReferences": [{"uid": "1", "controller": true}]}),
        json!({"ownerReferences": [{"uid": "1", "controller": false}, {"uid": "2"}]}),
        json!({"ownerReferences": [{"uid": "1", "controller": false}, {"uid": "2"}]}))]
    #[case::labels_merge(
        json!({"labels": {"a": "1", "b": "2"}}), json!({"labels": {"a": null, "c": "3"}}), json!({"labels": {"b": "2", "c": "3"}}))]
    fn metadata(#[case] doc: Value, #[case] patch: Value, #[case] expected: Value) {
        let wrap = |metadata: Value| json!({"metadata": metadata});
        assert_eq!(
            apply(&gvk("", "ConfigMap"), &wrap(doc), &wrap(patch)).unwrap(),
            wrap(expected)
        );
    }

    #[test]
    fn service_ports_merge_by_port() {
        let result = apply(
            &gvk("", "Service"),
            &json!({"spec": {"ports": [{"port": 80, "name": "http", "nodePort": 30000}]}}),
            &json!({"spec": {"ports": [{"port": 80, "targetPort": 8080}]}}),
        );
        assert_eq!(
            result.unwrap(),
            json!({"spec": {"ports": [{"port": 80, "name": "http", "nodePort": 30000, "targetPort": 8080}]}})
        );
    }

    #[test]
    fn node_conditions_and_addresses_merge_by_type() {
        let result = apply(
            &gvk("", "Node"),
            &json!({"status": {"conditions": [{"type": "Ready", "status": "False"}, {"type": "X"}],
                "addresses": [{"type": "InternalIP", "address": "1"}]}}),
            &json!({"status": {"conditions": [{"type": "Ready", "status": "True"}],
                "addresses": [{"type": "Hostname", "address": "n"}]}}),
        );
        assert_eq!(
            result.unwrap(),
            json!({"status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "X"}],
                "addresses": [{"type": "InternalIP", "address": "1"}, {"type": "Hostname", "address": "n"}]}})
        );
    }

    #[test]
    fn deployment_templates_merge_and_strategies_retain_keys() {
        let result = apply(
            &gvk("apps", "Deployment"),
            &json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}},
                "template": {"spec": {"containers": [{"name": "a", "image": "1"}]}}}}),
            &json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"},
                "template": {"spec": {"containers": [{"name": "a", "image": "2"}]}}}}),
        );
        assert_eq!(
            result.unwrap(),
            json!({"spec": {"strategy": {"type": "Recreate"},
                "template": {"spec": {"containers": [{"name": "a", "image": "2"}]}}}})
        );
    }

    #[rstest]
    #[case(json!({"spec": {"$patch": "frobnicate"}}), "unknown $patch directive")]
    #[case(json!({"spec": {"containers": [{"image": "x"}]}}), "does not contain declared merge key: name")]
    #[case(json!({"spec": {"containers": ["x"]}}), "must be objects")]
    #[case(json!([]), "must be an object")]
    fn bad_patches_are_malformed(#[case] patch: Value, #[case] text: &str) {
        let error = apply(&gvk("", "Pod"), &json!({"spec": {}}), &patch).unwrap_err();
        assert!(
            matches!(&error, PatchError::Malformed(why) if why.contains(text)),
            "{error}"
        );
    }

    #[test]
    fn unknown_kinds_are_unsupported() {
        let error = apply(&gvk("example.org", "Foo"), &json!({}), &json!({})).unwrap_err();
        assert!(matches!(error, PatchError::UnsupportedKind { .. }));
    }

    fn containers() -> impl Strategy<Value = Value> {
        let directive =
            proptest::option::of(proptest::sample::select(vec!["delete", "replace", "merge"]));
        let container = ("[a-c]", proptest::option::of("[xy]"), directive);
        proptest::collection::vec(container, 0..4).prop_map(|list| {
            let mut seen = Vec::new();
            list.into_iter()
                .filter_map(|(name, image, directive)| {
                    if seen.contains(&name) {
                        return None;
                    }
                    seen.push(name.clone());
                    let mut item = json!({"name": name});
                    if let Some(image) = image {
                        item["image"] = json!(image);
                    }
                    if let Some(directive) = directive {
                        item["$patch"] = json!(directive);
                    }
                    Some(item)
                })
                .collect()
        })
    }

    proptest! {
        #[test]
        fn applying_twice_is_applying_once(
            doc in containers(),
            patch in containers(),
            order in proptest::option::of(proptest::collection::btree_set("[a-d]", 0..4)),
        ) {
            let pod = gvk("", "Pod");
            let wrap = |list: &Value| json!({"spec": {"containers": list}});
            // An object without directives: what applying to nothing makes.
            let doc = apply(&pod, &json!({}), &wrap(&doc)).unwrap();
            let mut patch = wrap(&patch);
            if let Some(order) = order {
                let order: Vec<Value> = order.iter().map(|name| json!({"name": name})).collect();
                patch["spec"]["$setElementOrder/containers"] = json!(order);
            }
            let once = apply(&pod, &doc, &patch).unwrap();
            prop_assert!(!once.to_string().contains('$'), "{once}");
            prop_assert_eq!(apply(&pod, &once, &patch).unwrap(), once);
        }
    }
}
