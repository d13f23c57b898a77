//! Rules that objects must keep to be stored.
//!
//! Objects are expected to have the right types (see
//! [`Schemas::type_errors`](crate::schema::Schemas::type_errors)) and their
//! defaults. A field of a wrong type counts as absent here.
//!
//! What needs other objects (does the namespace exist, is the address free) is
//! for admission.

mod container;
mod definition;
mod error;
mod metadata;
mod names;
mod network;
mod node;
mod pod;
mod quantity;
mod service;
mod storage;
mod volume;
mod workload;

pub use error::{FieldError, FieldErrorKind};
pub use quantity::parse as parse_quantity;

use crate::resource::GroupVersionKind;
use crate::schema::Schemas;
use serde_json::Value;

type Errors = Vec<FieldError>;

/// What is wrong with a new object. Kinds that are not built in are checked
/// for their metadata only.
pub fn create(gvk: &GroupVersionKind, object: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let namespaced = Schemas::builtin().kind(gvk).map(|kind| kind.namespaced);
    metadata::create(gvk, namespaced, &object["metadata"], &mut errors);
    content(gvk, object, None, &mut errors);
    errors
}

/// What is wrong with a changed object, rules about change included. `new` is
/// the whole object as it would be stored.
pub fn update(gvk: &GroupVersionKind, old: &Value, new: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let namespaced = Schemas::builtin().kind(gvk).map(|kind| kind.namespaced);
    metadata::create(gvk, namespaced, &new["metadata"], &mut errors);
    metadata::update(&old["metadata"], &new["metadata"], &mut errors);
    content(gvk, new, Some(old), &mut errors);
    errors
}

fn content(gvk: &GroupVersionKind, new: &Value, old: Option<&Value>, errors: &mut Errors) {
    match (gvk.group.as_str(), gvk.version.as_str(), gvk.kind.as_str()) {
        ("", "v1", "Pod") => pod::pod(new, old, errors),
        ("", "v1", "Service") => service::service(new, old, errors),
        ("", "v1", "Endpoints") => service::endpoints(new, errors),
        ("", "v1", "Node") => node::node(new, old, errors),
        ("", "v1", "ConfigMap") => storage::config_map(new, old, errors),
        ("", "v1", "Secret") => storage::secret(new, old, errors),
        ("", "v1", "Event") => storage::event(new, errors),
        ("apps", "v1", "Deployment") => workload::deployment(new, old, errors),
        ("apps", "v1", "ReplicaSet") => workload::replica_set(new, old, errors),
        ("apps", "v1", "DaemonSet") => workload::daemon_set(new, old, errors),
        ("apps", "v1", "StatefulSet") => workload::stateful_set(new, old, errors),
        ("apps", "v1", "ControllerRevision") => workload::revision(new, old, errors),
        ("discovery.k8s.io", "v1", "EndpointSlice") => service::endpoint_slice(new, old, errors),
        ("networking.k8s.io", "v1", "NetworkPolicy") => network::policy(new, errors),
        ("networking.k8s.io", "v1", "Ingress") => network::ingress(new, errors),
        ("networking.k8s.io", "v1", "IngressClass") => network::ingress_class(new, old, errors),
        ("coordination.k8s.io", "v1", "Lease") => node::lease(new, errors),
        ("rbac.authorization.k8s.io", "v1", "RoleBinding" | "ClusterRoleBinding") => {
            if let Some(old) = old {
                immutable("roleRef", &old["roleRef"], &new["roleRef"], errors);
            }
        }
        ("autoscaling", "v1", "Scale") => {
            not_negative("spec.replicas", &new["spec"]["replicas"], errors);
        }
        ("apiextensions.k8s.io", "v1", "CustomResourceDefinition") => {
            definition::definition(new, old, errors);
        }
        _ => {}
    }
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

fn items<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = (usize, &'a Value)> {
    value[key].as_array().into_iter().flatten().enumerate()
}

fn entries<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = (&'a str, &'a Value)> {
    value[key]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, value)| (key.as_str(), value))
}

/// Whether a field is absent, null, or an empty string, list or object.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

const IMMUTABLE: &str = "field is immutable";
const NOT_NEGATIVE: &str = "must be greater than or equal to 0";
const PORT_RANGE: &str = "must be between 1 and 65535, inclusive";

fn immutable(field: &str, old: &Value, new: &Value, errors: &mut Errors) {
    if old != new && !(is_empty(old) && is_empty(new)) {
        errors.push(FieldError::invalid(field, new.clone(), IMMUTABLE));
    }
}

fn not_negative(field: &str, value: &Value, errors: &mut Errors) {
    if value.as_i64().is_some_and(|number| number < 0) {
        errors.push(FieldError::invalid(field, value.clone(), NOT_NEGATIVE));
    }
}

/// Checks a field that must hold one of a few words; absent is fine.
fn one_of(field: &str, value: &Value, supported: &[&str], errors: &mut Errors) {
    if let Some(word) = value.as_str()
        && !supported.contains(&word)
    {
        errors.push(FieldError::not_supported(field, word, supported));
    }
}

/// Checks a field that must be there and hold one of a few words.
fn required_one_of(field: &str, value: &Value, supported: &[&str], errors: &mut Errors) {
    if is_empty(value) {
        errors.push(FieldError::required(
            field,
            format!("supported values: {}", supported.join(", ")),
        ));
    } else {
        one_of(field, value, supported, errors);
    }
}

fn port_number(field: &str, value: &Value, errors: &mut Errors) {
    if let Some(number) = value.as_i64()
        && !(1..=65_535).contains(&number)
    {
        errors.push(FieldError::invalid(field, number, PORT_RANGE));
    }
}

/// A port given by number or by name.
fn port_or_name(field: &str, value: &Value, errors: &mut Errors) {
    match value {
        Value::String(name) => push_all(field, name, names::port_name(name), errors),
        Value::Null => errors.push(FieldError::required(field, "")),
        other => port_number(field, other, errors),
    }
}

/// Adds one error per broken rule of a name.
fn push_all(field: &str, value: &str, rules: Vec<String>, errors: &mut Errors) {
    for rule in rules {
        errors.push(FieldError::invalid(field, value, rule));
    }
}

fn ip(field: &str, value: &str, errors: &mut Errors) {
    if value.parse::<std::net::IpAddr>().is_err() {
        errors.push(FieldError::invalid(
            field,
            value,
            "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
        ));
    }
}

/// Parses a CIDR, with an error when it is none.
fn cidr(field: &str, value: &str, errors: &mut Errors) -> Option<ipnet::IpNet> {
    match value.parse() {
        Ok(range) => Some(range),
        Err(_) => {
            errors.push(FieldError::invalid(
                field,
                value,
                "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
            ));
            None
        }
    }
}

#[cfg(test)]
mod tests;
