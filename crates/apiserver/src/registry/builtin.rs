//! The built-in kinds.

use serde_json::Value;

use super::{Action, Resource};
use crate::resource::GroupVersionKind;

struct Kind {
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    plural: &'static str,
    short_names: &'static [&'static str],
    categories: &'static [&'static str],
    features: u8,
}

const NAMESPACED: u8 = 1;
const STATUS: u8 = 2;
const SCALE: u8 = 4;
const GENERATION: u8 = 8;

const fn kind(
    group: &'static str,
    kind: &'static str,
    plural: &'static str,
    short_names: &'static [&'static str],
    categories: &'static [&'static str],
    features: u8,
) -> Kind {
    Kind {
        group,
        version: "v1",
        kind,
        plural,
        short_names,
        categories,
        features,
    }
}

const ALL: &[&str] = &["all"];
const APPS: &str = "apps";
const NETWORKING: &str = "networking.k8s.io";
/// Kept, so that manifests apply as they are; nothing asks them who may do what.
const RBAC: &str = "rbac.authorization.k8s.io";
const EVENTS: &str = "events.k8s.io";

const KINDS: &[Kind] = &[
    kind("", "ConfigMap", "configmaps", &["cm"], &[], NAMESPACED),
    kind("", "Endpoints", "endpoints", &["ep"], &[], NAMESPACED),
    kind("", "Event", "events", &["ev"], &[], NAMESPACED),
    kind("", "Namespace", "namespaces", &["ns"], &[], STATUS),
    kind("", "Node", "nodes", &["no"], &[], STATUS),
    kind(
        "",
        "Pod",
        "pods",
        &["po"],
        ALL,
        NAMESPACED | STATUS | GENERATION,
    ),
    kind("", "Secret", "secrets", &[], &[], NAMESPACED),
    kind(
        "",
        "ServiceAccount",
        "serviceaccounts",
        &["sa"],
        &[],
        NAMESPACED,
    ),
    kind(
        "",
        "Service",
        "services",
        &["svc"],
        ALL,
        NAMESPACED | STATUS,
    ),
    kind(
        APPS,
        "ControllerRevision",
        "controllerrevisions",
        &[],
        &[],
        NAMESPACED,
    ),
    kind(
        APPS,
        "DaemonSet",
        "daemonsets",
        &["ds"],
        ALL,
        NAMESPACED | STATUS | GENERATION,
    ),
    kind(
        APPS,
        "Deployment",
        "deployments",
        &["deploy"],
        ALL,
        NAMESPACED | STATUS | SCALE | GENERATION,
    ),
    kind(
        APPS,
        "ReplicaSet",
        "replicasets",
        &["rs"],
        ALL,
        NAMESPACED | STATUS | SCALE | GENERATION,
    ),
    kind(
        APPS,
        "StatefulSet",
        "statefulsets",
        &["sts"],
        ALL,
        NAMESPACED | STATUS | SCALE | GENERATION,
    ),
    kind(EVENTS, "Event", "events", &["ev"], &[], NAMESPACED),
    kind(
        NETWORKING,
        "IngressClass",
        "ingressclasses",
        &[],
        &[],
        GENERATION,
    ),
    kind(
        NETWORKING,
        "Ingress",
        "ingresses",
        &["ing"],
        &[],
        NAMESPACED | STATUS | GENERATION,
    ),
    kind(
        NETWORKING,
        "NetworkPolicy",
        "networkpolicies",
        &["netpol"],
        &[],
        NAMESPACED | GENERATION,
    ),
    kind(
        "coordination.k8s.io",
        "Lease",
        "leases",
        &[],
        &[],
        NAMESPACED,
    ),
    kind(
        "discovery.k8s.io",
        "EndpointSlice",
        "endpointslices",
        &[],
        &[],
        NAMESPACED | GENERATION,
    ),
    kind(RBAC, "ClusterRole", "clusterroles", &[], &[], 0),
    kind(
        RBAC,
        "ClusterRoleBinding",
        "clusterrolebindings",
        &[],
        &[],
        0,
    ),
    kind(RBAC, "Role", "roles", &[], &[], NAMESPACED),
    kind(RBAC, "RoleBinding", "rolebindings", &[], &[], NAMESPACED),
    kind(
        "apiextensions.k8s.io",
        "CustomResourceDefinition",
        "customresourcedefinitions",
        &["crd", "crds"],
        &["api-extensions"],
        STATUS | GENERATION,
    ),
];

pub(super) const POD_ACTIONS: &[Action] = &[
    Action {
        name: "binding",
        group: "",
        version: "v1",
        kind: "Binding",
        verbs: &["create"],
    },
    Action {
        name: "eviction",
        group: "policy",
        version: "v1",
        kind: "Eviction",
        verbs: &["create"],
    },
    Action {
        name: "log",
        group: "",
        version: "v1",
        kind: "Pod",
        verbs: &["get"],
    },
];

pub(super) const NAMESPACE_ACTIONS: &[Action] = &[Action {
    name: "finalize",
    group: "",
    version: "v1",
    kind: "Namespace",
    verbs: &["update"],
}];

/// The built-in resources in the order of discovery.
pub(super) fn resources() -> impl Iterator<Item = Resource> {
    KINDS.iter().map(|k| {
        let owned = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
        let gvk = GroupVersionKind::new(k.group, k.version, k.kind);
        // Both APIs of events show the same objects.
        let stored_as = if k.group == EVENTS {
            GroupVersionKind::new("", "v1", "Event")
        } else {
            gvk.clone()
        };
        let collection = if stored_as.group.is_empty() {
            k.plural.to_owned()
        } else {
            format!("{}.{}", k.plural, stored_as.group)
        };
        Resource {
            plural: k.plural.to_owned(),
            singular: k.kind.to_lowercase(),
            short_names: owned(k.short_names),
            categories: owned(k.categories),
            list_kind: format!("{}List", k.kind),
            namespaced: k.features & NAMESPACED != 0,
            status: k.features & STATUS != 0,
            scale: k.features & SCALE != 0,
            generation: k.features & GENERATION != 0,
            collection: collection.into(),
            stored_as,
            gvk,
            custom: None,
        }
    })
}

/// How the fields of `v1` Events are named in `events.k8s.io/v1`.
pub(super) const EVENT_FIELDS: &[(&str, &str)] = &[
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("count", "deprecatedCount"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("reportingComponent", "reportingController"),
];

/// Renames top-level fields.
pub(super) fn rename<'a>(object: &mut Value, names: impl Iterator<Item = (&'a str, &'a str)>) {
    if let Some(fields) = object.as_object_mut() {
        for (from, to) in names {
            if let Some(value) = fields.remove(from) {
                fields.insert(to.to_owned(), value);
            }
        }
    }
}
