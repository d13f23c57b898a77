//! Tables as `kubectl get` prints them (`meta.k8s.io/v1` `Table`).

mod custom;
mod duration;
mod event;
mod jsonpath;
mod network;
mod pod;
mod workload;

pub use duration::human_duration;

use crate::resource::GroupVersionKind;
use jiff::Timestamp;
use serde_json::{Value, json};

/// What each row carries of its object (`includeObject` in the request).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IncludeObject {
    /// Nothing.
    None,
    /// Its metadata, as `PartialObjectMetadata`.
    #[default]
    Metadata,
    /// All of it.
    Object,
}

/// Renders objects of a kind as a Table. `printer_columns` is the list
/// `additionalPrinterColumns` of a custom resource's version; `now` is what
/// ages are counted to. The list's own metadata is for the caller to add.
pub fn render(
    gvk: &GroupVersionKind,
    printer_columns: Option<&Value>,
    items: &[Value],
    include_object: IncludeObject,
    now: Timestamp,
) -> Value {
    let printer = printer_columns
        .filter(|columns| columns.as_array().is_some_and(|list| !list.is_empty()))
        .map_or_else(|| built_in(gvk), custom::printer);
    let rows: Vec<Value> = items
        .iter()
        .map(|object| {
            let mut row = json!({"cells": (printer.cells)(object, now)});
            match include_object {
                IncludeObject::None => {}
                IncludeObject::Metadata => {
                    row["object"] = json!({
                        "apiVersion": "meta.k8s.io/v1",
                        "kind": "PartialObjectMetadata",
                        "metadata": object["metadata"],
                    });
                }
                IncludeObject::Object => row["object"] = object.clone(),
            }
            row
        })
        .collect();
    json!({
        "apiVersion": "meta.k8s.io/v1",
        "kind": "Table",
        "metadata": {},
        "columnDefinitions": printer.columns,
        "rows": rows,
    })
}

type Cells = Box<dyn Fn(&Value, Timestamp) -> Vec<Value>>;

/// How one kind is printed.
struct Printer {
    columns: Vec<Value>,
    cells: Cells,
}

/// A printer from columns as `name:type`; those with a `+` before them are
/// shown only with `-o wide`.
fn printer(columns: &str, cells: fn(&Value, Timestamp) -> Vec<Value>) -> Printer {
    let columns = columns
        .split(',')
        .map(|column| {
            let (column, priority) = column
                .strip_prefix('+')
                .map_or((column, 0), |column| (column, 1));
            let (name, kind) = column.split_once(':').unwrap_or((column, "string"));
            let format = if name == "Name" { "name" } else { "" };
            column_definition(name, kind, format, "", priority)
        })
        .collect();
    Printer {
        columns,
        cells: Box::new(cells),
    }
}

fn column_definition(
    name: &str,
    kind: &str,
    format: &str,
    description: &str,
    priority: i32,
) -> Value {
    json!({
        "name": name,
        "type": kind,
        "format": format,
        "description": description,
        "priority": priority,
    })
}

fn built_in(gvk: &GroupVersionKind) -> Printer {
    match (gvk.group.as_str(), gvk.kind.as_str()) {
        ("", "Pod") => printer(
            "Name,Ready,Status,Restarts,Age,+IP,+Node,+Nominated Node,+Readiness Gates",
            pod::pod,
        ),
        ("", "Service") => printer(
            "Name,Type,Cluster-IP,External-IP,Port(s),Age,+Selector",
            network::service,
        ),
        ("", "Endpoints") => printer("Name,Endpoints,Age", network::endpoints),
        ("", "Node") => printer(
            "Name,Status,Roles,Age,Version,+Internal-IP,+External-IP,+OS-Image,+Kernel-Version,+Container-Runtime",
            pod::node,
        ),
        ("", "Namespace") => printer("Name,Status,Age", |object, now| {
            vec![
                name(object),
                string(object["status"]["phase"].as_str()),
                age(object, now),
            ]
        }),
        ("", "ConfigMap") => printer("Name,Data:integer,Age", |object, now| {
            let count = size(&object["data"]) + size(&object["binaryData"]);
            vec![name(object), json!(count), age(object, now)]
        }),
        ("", "Secret") => printer("Name,Type,Data:integer,Age", |object, now| {
            vec![
                name(object),
                string(object["type"].as_str()),
                json!(size(&object["data"])),
                age(object, now),
            ]
        }),
        ("", "ServiceAccount") => printer("Name,Secrets:integer,Age", |object, now| {
            vec![
                name(object),
                json!(size(&object["secrets"])),
                age(object, now),
            ]
        }),
        ("" | "events.k8s.io", "Event") => printer(
            "Last Seen,Type,Reason,Object,+Subobject,+Source,Message,+First Seen,+Count:integer,+Name",
            event::event,
        ),
        ("apps", "Deployment") => printer(
            "Name,Ready,Up-to-date:integer,Available:integer,Age,+Containers,+Images,+Selector",
            workload::deployment,
        ),
        ("apps", "ReplicaSet") => printer(
            "Name,Desired:integer,Current:integer,Ready:integer,Age,+Containers,+Images,+Selector",
            workload::replica_set,
        ),
        ("apps", "DaemonSet") => printer(
            "Name,Desired:integer,Current:integer,Ready:integer,Up-to-date:integer,Available:integer,Node Selector,Age,+Containers,+Images,+Selector",
            workload::daemon_set,
        ),
        ("apps", "StatefulSet") => {
            printer("Name,Ready,Age,+Containers,+Images", workload::stateful_set)
        }
        ("apps", "ControllerRevision") => {
            printer("Name,Controller,Revision:integer,Age", workload::revision)
        }
        ("discovery.k8s.io", "EndpointSlice") => printer(
            "Name,AddressType,Ports,Endpoints,Age",
            network::endpoint_slice,
        ),
        ("networking.k8s.io", "NetworkPolicy") => printer("Name,Pod-Selector,Age", network::policy),
        ("networking.k8s.io", "Ingress") => {
            printer("Name,Class,Hosts,Address,Ports,Age", network::ingress)
        }
        ("networking.k8s.io", "IngressClass") => {
            printer("Name,Controller,Parameters,Age", network::ingress_class)
        }
        ("coordination.k8s.io", "Lease") => printer("Name,Holder,Age", |object, now| {
            vec![
                name(object),
                string(object["spec"]["holderIdentity"].as_str()),
                age(object, now),
            ]
        }),
        ("rbac.authorization.k8s.io", "RoleBinding" | "ClusterRoleBinding") => {
            printer("Name,Role,Age", |object, now| {
                let role = |field: &str| object["roleRef"][field].as_str().unwrap_or_default();
                vec![
                    name(object),
                    string(Some(&format!("{}/{}", role("kind"), role("name")))),
                    age(object, now),
                ]
            })
        }
        ("apiextensions.k8s.io", "CustomResourceDefinition")
        | ("rbac.authorization.k8s.io", "Role" | "ClusterRole") => {
            printer("Name,Created At", |object, _| {
                vec![
                    name(object),
                    string(object["metadata"]["creationTimestamp"].as_str()),
                ]
            })
        }
        _ => printer("Name,Age", |object, now| {
            vec![name(object), age(object, now)]
        }),
    }
}

const NONE: &str = "<none>";
const UNKNOWN: &str = "<unknown>";

fn string(text: Option<&str>) -> Value {
    json!(text.unwrap_or_default())
}

fn text_or_none(text: Option<&str>) -> Value {
    json!(text.filter(|text| !text.is_empty()).unwrap_or(NONE))
}

fn name(object: &Value) -> Value {
    string(object["metadata"]["name"].as_str())
}

fn age(object: &Value, now: Timestamp) -> Value {
    json!(since(&object["metadata"]["creationTimestamp"], now))
}

/// The time since a timestamp field, `<unknown>` when there is none.
fn since(timestamp: &Value, now: Timestamp) -> String {
    timestamp
        .as_str()
        .and_then(|text| text.parse::<Timestamp>().ok())
        .map_or_else(
            || UNKNOWN.to_owned(),
            |then| human_duration(now.as_second() - then.as_second()),
        )
}

fn number(value: &Value) -> i64 {
    value.as_i64().unwrap_or(0)
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn size(value: &Value) -> usize {
    match value {
        Value::Array(list) => list.len(),
        Value::Object(map) => map.len(),
        _ => 0,
    }
}

/// Labels as `a=b,c=d`, `<none>` when there are none.
fn labels(labels: &Value) -> String {
    let list: Vec<String> = labels
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    if list.is_empty() {
        NONE.to_owned()
    } else {
        list.join(",")
    }
}

/// A label selector as `a=b,c in (d,e),!f`.
fn selector(selector: &Value) -> String {
    let mut parts = Vec::new();
    for (key, value) in selector["matchLabels"].as_object().into_iter().flatten() {
        parts.push(format!("{key}={}", value.as_str().unwrap_or_default()));
    }
    for expression in list(&selector["matchExpressions"]) {
        let key = expression["key"].as_str().unwrap_or_default();
        let values: Vec<&str> = list(&expression["values"])
            .iter()
            .filter_map(Value::as_str)
            .collect();
        let values = values.join(",");
        parts.push(match expression["operator"].as_str().unwrap_or_default() {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "DoesNotExist" => format!("!{key}"),
            _ => key.to_owned(),
        });
    }
    if parts.is_empty() {
        NONE.to_owned()
    } else {
        parts.join(",")
    }
}

/// At most three entries, then how many more there are.
fn abbreviated(list: &[String], empty: &str) -> String {
    const SHOWN: usize = 3;
    match list.len() {
        0 => empty.to_owned(),
        length if length <= SHOWN => list.join(","),
        length => format!("{} + {} more...", list[..SHOWN].join(","), length - SHOWN),
    }
}

#[cfg(test)]
mod tests;
