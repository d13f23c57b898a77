use super::*;
use crate::patch::managed_fields::track_update;
use proptest::prelude::*;
use rstest::rstest;

const NOW: &str = "2026-11-21T02:00:00Z";
const LATER: &str = "2026-11-21T03:00:00Z";

fn gvk(group: &str, kind: &str) -> GroupVersionKind {
    GroupVersionKind::new(group, "v1", kind)
}

fn deployment(spec: Value) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": spec})
}

fn apply_as(manager: &str, live: Option<&Value>, applied: &Value) -> Result<Value, ApplyError> {
    apply(
        &gvk("apps", "Deployment"),
        live,
        applied,
        manager,
        false,
        LATER,
        None,
    )
}

fn fields<'a>(object: &'a Value, manager: &str) -> &'a Value {
    object["metadata"]["managedFields"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|entry| entry["manager"] == manager)
        .map_or(&Value::Null, |entry| &entry["fieldsV1"])
}

fn without_managers(mut object: Value) -> Value {
    object["metadata"]
        .as_object_mut()
        .unwrap()
        .remove("managedFields");
    object
}

#[test]
fn the_first_apply_creates_and_owns() {
    let applied = deployment(
        json!({"replicas": 2, "template": {"spec": {"containers": [{"name": "a", "image": "x",
        "ports": [{"containerPort": 80}]}], "tolerations": [{"key": "k"}]}}}),
    );
    let result = apply_as("one", None, &applied).unwrap();
    assert_eq!(without_managers(result.clone()), applied);
    assert_eq!(
        result["metadata"]["managedFields"],
        json!([{"manager": "one", "operation": "Apply", "apiVersion": "apps/v1", "time": LATER, "fieldsType": "FieldsV1",
            "fieldsV1": {"f:spec": {"f:replicas": {}, "f:template": {"f:spec": {
                "f:containers": {"k:{\"name\":\"a\"}": {".": {}, "f:name": {}, "f:image": {},
                    "f:ports": {"k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}}}}},
                "f:tolerations": {}}}}}}])
    );
}

#[test]
fn what_is_no_longer_applied_goes() {
    let first = deployment(
        json!({"replicas": 2, "paused": true, "template": {"spec": {"containers": [
        {"name": "a", "image": "x"}, {"name": "b", "image": "y"}], "nodeSelector": {"a": "b"}}}}),
    );
    let live = apply_as("one", None, &first).unwrap();
    let second = deployment(
        json!({"replicas": 2, "template": {"spec": {"containers": [{"name": "b", "image": "y"}]}}}),
    );
    let result = apply_as("one", Some(&live), &second).unwrap();
    assert_eq!(without_managers(result), second);
}

#[test]
fn what_others_own_too_stays() {
    let first = deployment(
        json!({"replicas": 2, "template": {"spec": {"containers": [{"name": "a", "image": "x", "tty": true}]}}}),
    );
    let live = apply_as("one", None, &first).unwrap();
    let other = deployment(
        json!({"replicas": 2, "template": {"spec": {"containers": [{"name": "a", "image": "x"}]}}}),
    );
    let live = apply_as("two", Some(&live), &other).unwrap();
    // One lets go of all of it: only what two does not want goes.
    let result = apply_as("one", Some(&live), &deployment(json!({"paused": true}))).unwrap();
    assert_eq!(
        result["spec"],
        json!({"replicas": 2, "paused": true, "template": {"spec": {"containers": [{"name": "a", "image": "x"}]}}})
    );
}

#[test]
fn elements_only_the_live_list_has_stay_in_place() {
    let live = deployment(
        json!({"template": {"spec": {"containers": [{"name": "side", "image": "s"}, {"name": "a", "image": "x"}]}}}),
    );
    let mut live_tracked = live.clone();
    track_update(
        &gvk("apps", "Deployment"),
        None,
        &mut live_tracked,
        "injector",
        NOW,
        None,
    );
    let applied = deployment(
        json!({"template": {"spec": {"containers": [{"name": "a", "tty": true}, {"name": "b", "image": "y"}]}}}),
    );
    let result = apply_as("one", Some(&live_tracked), &applied).unwrap();
    assert_eq!(
        result["spec"]["template"]["spec"]["containers"],
        json!([{"name": "side", "image": "s"}, {"name": "a", "image": "x", "tty": true}, {"name": "b", "image": "y"}])
    );
}

#[test]
fn equal_values_are_no_conflict_but_owned_together() {
    let applied = deployment(json!({"replicas": 2}));
    let live = apply_as("one", None, &applied).unwrap();
    let result = apply_as("two", Some(&live), &applied).unwrap();
    assert_eq!(fields(&result, "one"), fields(&result, "two"));
}

#[test]
fn a_conflict_names_manager_and_field() {
    let live = apply_as("one", None, &deployment(json!({"replicas": 2}))).unwrap();
    let error = apply_as("two", Some(&live), &deployment(json!({"replicas": 3}))).unwrap_err();
    assert_eq!(
        error.to_string(),
        "Apply failed with 1 conflict: conflict with \"one\": .spec.replicas"
    );
}

#[test]
fn conflicts_are_listed_by_manager() {
    let mut live = deployment(
        json!({"replicas": 2, "template": {"spec": {"containers": [{"name": "a", "image": "x"}]}}}),
    );
    track_update(
        &gvk("apps", "Deployment"),
        None,
        &mut live,
        "kubectl-edit",
        NOW,
        None,
    );
    let applied = deployment(
        json!({"replicas": 3, "template": {"spec": {"containers": [{"name": "a", "image": "y"}]}}}),
    );
    let error = apply_as("two", Some(&live), &applied).unwrap_err();
    assert_eq!(
        error.to_string(),
        "Apply failed with 2 conflicts: conflicts with \"kubectl-edit\" using apps/v1 at 2026-11-21T02:00:00Z:\n\
         - .spec.replicas\n- .spec.template.spec.containers[name=\"a\"].image"
    );
}

#[test]
fn force_takes_the_field() {
    let live = apply_as(
        "one",
        None,
        &deployment(json!({"replicas": 2, "paused": true})),
    )
    .unwrap();
    let applied = deployment(json!({"replicas": 3}));
    let result = apply(
        &gvk("apps", "Deployment"),
        Some(&live),
        &applied,
        "two",
        true,
        LATER,
        None,
    )
    .unwrap();
    assert_eq!(result["spec"], json!({"replicas": 3, "paused": true}));
    assert_eq!(fields(&result, "one"), &json!({"f:spec": {"f:paused": {}}}));
    assert_eq!(
        fields(&result, "two"),
        &json!({"f:spec": {"f:replicas": {}}})
    );
}

#[test]
fn objects_without_managers_belong_to_before_first_apply() {
    let live = deployment(json!({"replicas": 2}));
    let error = apply_as("one", Some(&live), &deployment(json!({"replicas": 3}))).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("conflict with \"before-first-apply\" using apps/v1"),
        "{error}"
    );
    let result = apply_as("one", Some(&live), &deployment(json!({"paused": true}))).unwrap();
    assert_eq!(
        fields(&result, "before-first-apply"),
        &json!({"f:spec": {"f:replicas": {}}})
    );
}

/// What `kubectl apply` and then `kubectl apply --server-side` send.
#[test]
fn kubectl_moves_from_client_side_to_server_side() {
    let gvk = gvk("", "ConfigMap");
    let mut first = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}, "data": {"a": "1", "b": "2"}});
    first["metadata"]["annotations"] = json!({LAST_APPLIED: format!("{first}\n")});
    track_update(
        &gvk,
        None,
        &mut first,
        "kubectl-client-side-apply",
        NOW,
        None,
    );

    let applied = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}, "data": {"a": "changed", "b": "2"}});
    let second = apply(&gvk, Some(&first), &applied, "kubectl", false, LATER, None).unwrap();
    assert_eq!(second["data"], json!({"a": "changed", "b": "2"}));
    let annotation = second["metadata"]["annotations"][LAST_APPLIED]
        .as_str()
        .unwrap();
    assert_eq!(serde_json::from_str::<Value>(annotation).unwrap(), applied);
    assert_eq!(
        fields(&second, "kubectl"),
        &json!({"f:data": {"f:a": {}, "f:b": {}}})
    );

    // Others may not do so.
    let error = apply(&gvk, Some(&first), &applied, "other", false, LATER, None).unwrap_err();
    assert!(matches!(error, ApplyError::Conflicts(_)));

    // The client hands the fields of its old manager to the new one and
    // applies again without a key: it goes.
    let mut upgraded = second.clone();
    let list = upgraded["metadata"]["managedFields"]
        .as_array()
        .unwrap()
        .clone();
    let mine: Vec<Value> = list
        .into_iter()
        .filter(|entry| entry["operation"] == "Apply")
        .collect();
    upgraded["metadata"]["managedFields"] = json!(mine);
    track_update(&gvk, Some(&second), &mut upgraded, "kubectl", LATER, None);
    let applied = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}, "data": {"a": "changed"}});
    let third = apply(
        &gvk,
        Some(&upgraded),
        &applied,
        "kubectl",
        false,
        LATER,
        None,
    )
    .unwrap();
    assert_eq!(third["data"], json!({"a": "changed"}));
}

#[test]
fn the_status_is_applied_through_its_subresource_only() {
    let applied = json!({"metadata": {"name": "d", "labels": {"x": "y"}}, "spec": {"replicas": 9}, "status": {"replicas": 1}});
    let live = apply_as("one", None, &deployment(json!({"replicas": 2}))).unwrap();
    let gvk = gvk("apps", "Deployment");
    let result = apply(
        &gvk,
        Some(&live),
        &applied,
        "two",
        false,
        LATER,
        Some("status"),
    )
    .unwrap();
    assert_eq!(result["spec"], json!({"replicas": 2}));
    assert_eq!(result["status"], json!({"replicas": 1}));
    assert!(result["metadata"].get("labels").is_none());
    assert_eq!(
        fields(&result, "two"),
        &json!({"f:status": {"f:replicas": {}}})
    );
    let result = apply(&gvk, None, &applied, "two", false, LATER, None).unwrap();
    assert!(result.get("status").is_none());
}

#[rstest]
#[case(json!([]), "must be an object")]
#[case(json!({"metadata": {"managedFields": [{"manager": "x"}]}}), "managedFields must be nil")]
#[case(deployment(json!({"template": {"spec": {"containers": [{"image": "x"}]}}})), ".spec.template.spec.containers[0]")]
fn what_cannot_be_applied(#[case] applied: Value, #[case] text: &str) {
    let error = apply_as("one", None, &applied).unwrap_err();
    assert!(
        matches!(&error, ApplyError::Invalid(why) if why.contains(text)),
        "{error}"
    );
}

#[test]
fn service_ports_are_told_apart_by_port_and_protocol() {
    let service = |ports: Value| json!({"metadata": {"name": "s"}, "spec": {"ports": ports}});
    let gvk = gvk("", "Service");
    let live = apply(
        &gvk,
        None,
        &service(json!([{"port": 53, "protocol": "UDP", "name": "udp"}])),
        "one",
        false,
        NOW,
        None,
    )
    .unwrap();
    let result = apply(
        &gvk,
        Some(&live),
        &service(json!([{"port": 53, "name": "tcp"}])),
        "two",
        false,
        LATER,
        None,
    )
    .unwrap();
    assert_eq!(
        result["spec"]["ports"],
        json!([{"port": 53, "name": "tcp"}, {"port": 53, "protocol": "UDP", "name": "udp"}])
    );
}

#[test]
fn custom_resources_merge_by_their_schema() {
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
        "listeners": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
            "items": {"type": "object", "properties": {"name": {"type": "string"}, "port": {"type": "integer"}}}},
        "hosts": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
        "plain": {"type": "array", "items": {"type": "string"}},
    }}}});
    let gvk = GroupVersionKind::new("gateway.networking.k8s.io", "v1", "Gateway");
    let request = |manager: &'static str| Request {
        gvk: &gvk,
        schema: Some(&schema),
        manager,
        force: false,
        now: NOW,
        subresource: None,
    };
    let live = request("one")
        .apply(
            None,
            &json!({"metadata": {"name": "g", "finalizers": ["a/a"]}, "spec": {
        "listeners": [{"name": "a", "port": 80}], "hosts": ["x"], "plain": ["p"]}}),
        )
        .unwrap();
    let result = request("two")
        .apply(
            Some(&live),
            &json!({"metadata": {"name": "g", "finalizers": ["b/b"]}, "spec": {
        "listeners": [{"name": "b", "port": 81}], "hosts": ["y"]}}),
        )
        .unwrap();
    assert_eq!(
        result["spec"],
        json!({"listeners": [{"name": "b", "port": 81}, {"name": "a", "port": 80}],
        "hosts": ["y", "x"], "plain": ["p"]})
    );
    assert_eq!(result["metadata"]["finalizers"], json!(["b/b", "a/a"]));
    let error = request("two")
        .apply(
            Some(&live),
            &json!({"metadata": {"name": "g"}, "spec": {"plain": ["q"]}}),
        )
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "Apply failed with 1 conflict: conflict with \"one\": .spec.plain"
    );
}

fn specs() -> impl Strategy<Value = Value> {
    let container = ("[ab]", "[xy]", any::<bool>()).prop_map(|(name, image, tty)| {
        if tty {
            json!({"name": name, "image": image, "tty": true})
        } else {
            json!({"name": name, "image": image})
        }
    });
    (
        proptest::option::of(0..3),
        proptest::collection::vec(container, 0..3),
        proptest::collection::btree_map("[ab]", "[cd]", 0..3),
    )
        .prop_map(|(replicas, mut containers, labels)| {
            containers.sort_by_key(|container| container["name"].to_string());
            containers.dedup_by_key(|container| container["name"].to_string());
            let mut spec = json!({"template": {"metadata": {"labels": labels}, "spec": {"containers": containers}}});
            if let Some(replicas) = replicas {
                spec["replicas"] = json!(replicas);
            }
            deployment(spec)
        })
}

proptest! {
    #[test]
    fn applying_twice_is_applying_once(live in specs(), applied in specs()) {
        let gvk = gvk("apps", "Deployment");
        let live = apply(&gvk, None, &live, "other", false, NOW, None).unwrap();
        let once = apply(&gvk, Some(&live), &applied, "one", true, NOW, None).unwrap();
        let twice = apply(&gvk, Some(&once), &applied, "one", false, LATER, None).unwrap();
        prop_assert_eq!(once, twice);
    }

    /// A sole manager gets what it asks for, whatever it had asked for before.
    #[test]
    fn the_last_configuration_of_a_sole_manager_is_the_object(first in specs(), second in specs()) {
        let live = apply_as("one", None, &first).unwrap();
        let result = apply_as("one", Some(&live), &second).unwrap();
        let direct = apply_as("one", None, &second).unwrap();
        // Order within lists may keep that of the live object; here names are sorted.
        prop_assert_eq!(result["metadata"]["managedFields"][0]["fieldsV1"].clone(), direct["metadata"]["managedFields"][0]["fieldsV1"].clone());
        let containers = |object: &Value| object["spec"]["template"]["spec"]["containers"].as_array().cloned().unwrap_or_default();
        prop_assert_eq!(containers(&result), containers(&direct));
        prop_assert_eq!(&result["spec"]["replicas"], &direct["spec"]["replicas"]);
    }
}
