//! Default values of fields that a client left out.
//!
//! Defaults are those of the versioned API types of Kubernetes 1.31 and later.
//! What depends on other objects or on the cluster (addresses, node ports, IP
//! families) is given out at admission, not here.

mod pod;
mod service;
mod workload;

use crate::resource::GroupVersionKind;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Map, Value, json};

/// Fills in the defaults of a built-in kind; does nothing for other kinds
/// (see [`crate::schema::crd`] for those). Applying it twice is applying it
/// once.
///
/// Fields that are `null` are removed, as a decoder into typed objects does.
/// Call it after [`Schemas::type_errors`](crate::schema::Schemas::type_errors)
/// (a field of the wrong type may be replaced) and before validation (which
/// expects defaults to be there).
pub fn apply(gvk: &GroupVersionKind, object: &mut Value) {
    let Value::Object(object) = object else {
        return;
    };
    let kind = (gvk.group.as_str(), gvk.version.as_str(), gvk.kind.as_str());
    // These two hold documents of others, where a null means something.
    if crate::schema::Schemas::builtin().kind(gvk).is_some()
        && !matches!(
            kind,
            ("apps", "v1", "ControllerRevision")
                | ("apiextensions.k8s.io", "v1", "CustomResourceDefinition")
        )
    {
        remove_nulls(object);
    }
    match kind {
        ("", "v1", "Pod") => pod::pod(object),
        ("", "v1", "Service") => service::service(object),
        ("", "v1", "Endpoints") => service::endpoints(object),
        ("", "v1", "Namespace") => namespace(object),
        ("", "v1", "Node") => node(object),
        ("", "v1", "Secret") => secret(object),
        ("apps", "v1", "Deployment") => workload::deployment(object),
        ("apps", "v1", "ReplicaSet") => workload::replica_set(object),
        ("apps", "v1", "DaemonSet") => workload::daemon_set(object),
        ("apps", "v1", "StatefulSet") => workload::stateful_set(object),
        ("discovery.k8s.io", "v1", "EndpointSlice") => service::endpoint_slice(object),
        ("networking.k8s.io", "v1", "NetworkPolicy") => network_policy(object),
        ("networking.k8s.io", "v1", "IngressClass") => ingress_class(object),
        ("rbac.authorization.k8s.io", "v1", "RoleBinding" | "ClusterRoleBinding") => {
            role_binding(object);
        }
        ("autoscaling", "v1", "Scale") => {
            set(child(object, "spec"), "replicas", json!(0));
        }
        ("apiextensions.k8s.io", "v1", "CustomResourceDefinition") => definition(object),
        _ => {}
    }
}

fn remove_nulls(object: &mut Map<String, Value>) {
    fn walk(value: &mut Value) {
        match value {
            Value::Object(map) => remove_nulls(map),
            Value::Array(list) => list.iter_mut().for_each(walk),
            _ => {}
        }
    }
    object.retain(|_, value| !value.is_null());
    object.values_mut().for_each(walk);
}

/// Whether a field is left out: absent, null or the empty string.
fn unset(map: &Map<String, Value>, key: &str) -> bool {
    match map.get(key) {
        None | Some(Value::Null) => true,
        Some(Value::String(text)) => text.is_empty(),
        Some(_) => false,
    }
}

/// Sets a field that was left out.
fn set(map: &mut Map<String, Value>, key: &str, value: Value) {
    if unset(map, key) {
        map.insert(key.to_owned(), value);
    }
}

/// The object in a field, made when it is absent. A field that holds something
/// else is replaced: the server checks types before it fills in defaults.
fn child<'a>(map: &'a mut Map<String, Value>, key: &str) -> &'a mut Map<String, Value> {
    let value = map
        .entry(key)
        .and_modify(|value| {
            if value.is_null() {
                *value = json!({});
            }
        })
        .or_insert_with(|| json!({}));
    if !value.is_object() {
        *value = json!({});
    }
    value
        .as_object_mut()
        .expect("the value was made an object just above")
}

/// The object in a field, if there is one.
fn existing<'a>(map: &'a mut Map<String, Value>, key: &str) -> Option<&'a mut Map<String, Value>> {
    map.get_mut(key).and_then(Value::as_object_mut)
}

/// The objects in a list field.
fn each<'a>(
    map: &'a mut Map<String, Value>,
    key: &str,
) -> impl Iterator<Item = &'a mut Map<String, Value>> {
    map.get_mut(key)
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
        .filter_map(Value::as_object_mut)
}

fn text<'a>(map: &'a Map<String, Value>, key: &str) -> &'a str {
    map.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// Quantities given as numbers become strings, the form all clients read.
fn quantities(map: &mut Map<String, Value>, key: &str) {
    for value in existing(map, key).into_iter().flat_map(Map::values_mut) {
        if value.is_number() {
            *value = Value::String(value.to_string());
        }
    }
}

/// Keeps a single value and the list that begins with it in step.
fn pair(map: &mut Map<String, Value>, single: &str, list: &str, wrap: fn(Value) -> Value) {
    let has_list = map
        .get(list)
        .and_then(Value::as_array)
        .is_some_and(|list| !list.is_empty());
    if !unset(map, single) && !has_list {
        let value = wrap(map[single].clone());
        map.insert(list.to_owned(), json!([value]));
    } else if unset(map, single) && has_list {
        let first = &map[list][0];
        let value = first.get("ip").unwrap_or(first).clone();
        map.insert(single.to_owned(), value);
    }
}

fn namespace(object: &mut Map<String, Value>) {
    let metadata = child(object, "metadata");
    let name = text(metadata, "name").to_owned();
    if !name.is_empty() {
        child(metadata, "labels").insert("kubernetes.io/metadata.name".into(), json!(name));
    }
    set(child(object, "status"), "phase", json!("Active"));
}

fn node(object: &mut Map<String, Value>) {
    pair(child(object, "spec"), "podCIDR", "podCIDRs", |value| value);
    if let Some(status) = existing(object, "status") {
        quantities(status, "capacity");
        if let Some(capacity) = status.get("capacity").cloned() {
            set(status, "allocatable", capacity);
        }
        quantities(status, "allocatable");
    }
}

fn secret(object: &mut Map<String, Value>) {
    set(object, "type", json!("Opaque"));
    // Write-only: it ends up in data, encoded.
    if object.get("stringData").is_some_and(Value::is_object)
        && let Some(Value::Object(plain)) = object.remove("stringData")
    {
        let data = child(object, "data");
        for (key, value) in plain {
            // Anything but a string is left for the type check to report.
            let value = match value {
                Value::String(text) => Value::String(BASE64.encode(text)),
                other => other,
            };
            data.insert(key, value);
        }
    }
}

fn network_policy(object: &mut Map<String, Value>) {
    let spec = child(object, "spec");
    set(spec, "podSelector", json!({}));
    let has_egress = spec
        .get("egress")
        .and_then(Value::as_array)
        .is_some_and(|rules| !rules.is_empty());
    let types = if has_egress {
        json!(["Ingress", "Egress"])
    } else {
        json!(["Ingress"])
    };
    if spec
        .get("policyTypes")
        .and_then(Value::as_array)
        .is_none_or(Vec::is_empty)
    {
        spec.insert("policyTypes".into(), types);
    }
    for direction in ["ingress", "egress"] {
        for rule in each(spec, direction) {
            for port in each(rule, "ports") {
                set(port, "protocol", json!("TCP"));
            }
        }
    }
}

fn ingress_class(object: &mut Map<String, Value>) {
    if let Some(spec) = existing(object, "spec")
        && let Some(parameters) = existing(spec, "parameters")
    {
        set(parameters, "scope", json!("Cluster"));
    }
}

fn role_binding(object: &mut Map<String, Value>) {
    const GROUP: &str = "rbac.authorization.k8s.io";
    set(child(object, "roleRef"), "apiGroup", json!(GROUP));
    let subjects = object.get_mut("subjects").and_then(Value::as_array_mut);
    for subject in subjects.into_iter().flatten() {
        // A ServiceAccount is of the group without a name.
        if let Some(subject) = subject.as_object_mut()
            && ["User", "Group"].contains(&text(subject, "kind"))
        {
            set(subject, "apiGroup", json!(GROUP));
        }
    }
}

fn definition(object: &mut Map<String, Value>) {
    let spec = child(object, "spec");
    set(child(spec, "conversion"), "strategy", json!("None"));
    let names = child(spec, "names");
    let kind = text(names, "kind").to_owned();
    if !kind.is_empty() {
        set(names, "singular", json!(kind.to_lowercase()));
        set(names, "listKind", json!(format!("{kind}List")));
    }
}

#[cfg(test)]
mod tests;
