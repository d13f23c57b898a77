//! How lists and objects of the built-in kinds merge.
//!
//! The generated schemas leave out the extensions that say so; the tables are
//! those of Kubernetes' own type definitions (the `patchStrategy`,
//! `patchMergeKey`, `listType`, `listMapKey` and `mapType` markers).

use serde_json::{Map, Value, json};

/// One list field: how strategic merge patch and server-side apply treat it.
struct ListRule {
    /// Definition without its common prefix.
    owner: &'static str,
    field: &'static str,
    /// Strategic merge: `x-kubernetes-patch-strategy`, empty for replace.
    strategy: &'static str,
    /// Strategic merge: the merge key, empty for lists of scalars.
    merge_key: &'static str,
    /// Server-side apply: keys of a map list; empty with `set` for sets.
    apply: Apply,
}

enum Apply {
    Atomic,
    Set,
    Map(&'static [&'static str]),
}

const fn rule(
    owner: &'static str,
    field: &'static str,
    strategy: &'static str,
    merge_key: &'static str,
    apply: Apply,
) -> ListRule {
    ListRule {
        owner,
        field,
        strategy,
        merge_key,
        apply,
    }
}

const CORE: &str = "io.k8s.api.core.v1.";
const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.";

/// Definitions are named by their last part where that is unique among the
/// kinds served; [`annotate`] matches on the whole last part.
const LISTS: &[ListRule] = &[
    rule(
        "Container",
        "ports",
        "merge",
        "containerPort",
        Apply::Map(&["containerPort", "protocol"]),
    ),
    rule("Container", "env", "merge", "name", Apply::Map(&["name"])),
    rule(
        "Container",
        "volumeMounts",
        "merge",
        "mountPath",
        Apply::Map(&["mountPath"]),
    ),
    rule(
        "Container",
        "volumeDevices",
        "merge",
        "devicePath",
        Apply::Map(&["devicePath"]),
    ),
    rule(
        "EphemeralContainer",
        "ports",
        "merge",
        "containerPort",
        Apply::Map(&["containerPort", "protocol"]),
    ),
    rule(
        "EphemeralContainer",
        "env",
        "merge",
        "name",
        Apply::Map(&["name"]),
    ),
    rule(
        "EphemeralContainer",
        "volumeMounts",
        "merge",
        "mountPath",
        Apply::Map(&["mountPath"]),
    ),
    rule(
        "EphemeralContainer",
        "volumeDevices",
        "merge",
        "devicePath",
        Apply::Map(&["devicePath"]),
    ),
    rule(
        "ContainerStatus",
        "volumeMounts",
        "merge",
        "mountPath",
        Apply::Map(&["mountPath"]),
    ),
    rule(
        "ContainerStatus",
        "allocatedResourcesStatus",
        "merge",
        "name",
        Apply::Map(&["name"]),
    ),
    rule(
        "ResourceRequirements",
        "claims",
        "",
        "",
        Apply::Map(&["name"]),
    ),
    rule(
        "PodSpec",
        "containers",
        "merge",
        "name",
        Apply::Map(&["name"]),
    ),
    rule(
        "PodSpec",
        "initContainers",
        "merge",
        "name",
        Apply::Map(&["name"]),
    ),
    rule(
        "PodSpec",
        "ephemeralContainers",
        "merge",
        "name",
        Apply::Map(&["name"]),
    ),
    rule(
        "PodSpec",
        "volumes",
        "merge,retainKeys",
        "name",
        Apply::Map(&["name"]),
    ),
    rule(
        "PodSpec",
        "imagePullSecrets",
        "merge",
        "name",
        Apply::Map(&["name"]),
    ),
    rule("PodSpec", "hostAliases", "merge", "ip", Apply::Map(&["ip"])),
    rule(
        "PodSpec",
        "schedulingGates",
        "merge",
        "name",
        Apply::Map(&["name"]),
    ),
    rule(
        "PodSpec",
        "resourceClaims",
        "merge,retainKeys",
        "name",
        Apply::Map(&["name"]),
    ),
    rule(
        "PodSpec",
        "topologySpreadConstraints",
        "merge",
        "topologyKey",
        Apply::Map(&["topologyKey", "whenUnsatisfiable"]),
    ),
    rule(
        "PodStatus",
        "conditions",
        "merge",
        "type",
        Apply::Map(&["type"]),
    ),
    rule("PodStatus", "podIPs", "merge", "ip", Apply::Map(&["ip"])),
    rule("PodStatus", "hostIPs", "merge", "ip", Apply::Atomic),
    rule(
        "PodStatus",
        "resourceClaimStatuses",
        "merge,retainKeys",
        "name",
        Apply::Map(&["name"]),
    ),
    rule("NodeSpec", "podCIDRs", "merge", "", Apply::Set),
    rule(
        "NodeStatus",
        "conditions",
        "merge",
        "type",
        Apply::Map(&["type"]),
    ),
    rule(
        "NodeStatus",
        "addresses",
        "merge",
        "type",
        Apply::Map(&["type"]),
    ),
    rule(
        "NamespaceStatus",
        "conditions",
        "merge",
        "type",
        Apply::Map(&["type"]),
    ),
    rule(
        "PersistentVolumeClaimStatus",
        "conditions",
        "merge",
        "type",
        Apply::Map(&["type"]),
    ),
    rule(
        "ServiceSpec",
        "ports",
        "merge",
        "port",
        Apply::Map(&["port", "protocol"]),
    ),
    rule(
        "ServiceStatus",
        "conditions",
        "merge",
        "type",
        Apply::Map(&["type"]),
    ),
    rule(
        "ServiceAccount",
        "secrets",
        "merge",
        "name",
        Apply::Map(&["name"]),
    ),
    rule(
        "DeploymentStatus",
        "conditions",
        "merge",
        "type",
        Apply::Map(&["type"]),
    ),
    rule(
        "ReplicaSetStatus",
        "conditions",
        "merge",
        "type",
        Apply::Map(&["type"]),
    ),
    rule(
        "DaemonSetStatus",
        "conditions",
        "merge",
        "type",
        Apply::Map(&["type"]),
    ),
    rule(
        "StatefulSetStatus",
        "conditions",
        "merge",
        "type",
        Apply::Map(&["type"]),
    ),
    rule("Endpoint", "addresses", "", "", Apply::Set),
    rule(
        "CustomResourceDefinitionStatus",
        "conditions",
        "",
        "",
        Apply::Map(&["type"]),
    ),
    rule("ObjectMeta", "finalizers", "merge", "", Apply::Set),
    rule(
        "ObjectMeta",
        "ownerReferences",
        "merge",
        "uid",
        Apply::Map(&["uid"]),
    ),
];

/// Objects written as one value wherever they stand.
const ATOMIC_TYPES: &[&str] = &[
    "io.k8s.api.core.v1.ConfigMapKeySelector",
    "io.k8s.api.core.v1.EndpointAddress",
    "io.k8s.api.core.v1.EndpointPort",
    "io.k8s.api.core.v1.FileKeySelector",
    "io.k8s.api.core.v1.LocalObjectReference",
    "io.k8s.api.core.v1.NodeSelector",
    "io.k8s.api.core.v1.NodeSelectorTerm",
    "io.k8s.api.core.v1.ObjectFieldSelector",
    "io.k8s.api.core.v1.ObjectReference",
    "io.k8s.api.core.v1.ResourceFieldSelector",
    "io.k8s.api.core.v1.SecretKeySelector",
    "io.k8s.api.core.v1.TypedLocalObjectReference",
    "io.k8s.api.discovery.v1.EndpointPort",
    "io.k8s.apimachinery.pkg.apis.meta.v1.LabelSelector",
    "io.k8s.apimachinery.pkg.apis.meta.v1.OwnerReference",
];

/// Map fields written as one value.
const ATOMIC_FIELDS: &[(&str, &str)] = &[
    ("io.k8s.api.core.v1.PodSpec", "nodeSelector"),
    ("io.k8s.api.core.v1.ServiceSpec", "selector"),
];

/// Defaults that take part in the keys of map lists.
const KEY_DEFAULTS: &[(&str, &str, &str)] = &[
    ("io.k8s.api.core.v1.ContainerPort", "protocol", "TCP"),
    ("io.k8s.api.core.v1.ServicePort", "protocol", "TCP"),
];

/// Adds the extensions to the generated definitions.
pub(super) fn annotate(definitions: &mut Map<String, Value>) {
    for (name, definition) in definitions.iter_mut() {
        if ATOMIC_TYPES.contains(&name.as_str())
            && let Some(definition) = definition.as_object_mut()
        {
            definition.insert("x-kubernetes-map-type".into(), json!("atomic"));
        }
        let Some(properties) = definition
            .get_mut("properties")
            .and_then(Value::as_object_mut)
        else {
            continue;
        };
        let short = name.rsplit('.').next().unwrap_or(name);
        let known_home = name.starts_with(CORE)
            || name.starts_with(META)
            || name.starts_with("io.k8s.api.apps.v1.")
            || name.starts_with("io.k8s.api.discovery.v1.")
            || name.starts_with("io.k8s.apiextensions-apiserver.");
        for rule in LISTS {
            if !known_home || rule.owner != short {
                continue;
            }
            let Some(field) = properties
                .get_mut(rule.field)
                .and_then(Value::as_object_mut)
            else {
                continue;
            };
            if !rule.strategy.is_empty() {
                field.insert("x-kubernetes-patch-strategy".into(), json!(rule.strategy));
            }
            if !rule.merge_key.is_empty() {
                field.insert("x-kubernetes-patch-merge-key".into(), json!(rule.merge_key));
            }
            match rule.apply {
                Apply::Atomic => {
                    field.insert("x-kubernetes-list-type".into(), json!("atomic"));
                }
                Apply::Set => {
                    field.insert("x-kubernetes-list-type".into(), json!("set"));
                }
                Apply::Map(keys) => {
                    field.insert("x-kubernetes-list-type".into(), json!("map"));
                    field.insert("x-kubernetes-list-map-keys".into(), json!(keys));
                }
            }
        }
        for (owner, field) in ATOMIC_FIELDS {
            if owner == name
                && let Some(field) = properties.get_mut(*field).and_then(Value::as_object_mut)
            {
                field.insert("x-kubernetes-map-type".into(), json!("atomic"));
            }
        }
        for (owner, field, default) in KEY_DEFAULTS {
            if owner == name
                && let Some(field) = properties.get_mut(*field).and_then(Value::as_object_mut)
            {
                field.insert("default".into(), json!(default));
            }
        }
        if name == "io.k8s.api.apps.v1.DeploymentSpec"
            && let Some(field) = properties
                .get_mut("strategy")
                .and_then(Value::as_object_mut)
        {
            field.insert("x-kubernetes-patch-strategy".into(), json!("retainKeys"));
        }
    }
}

/// Fails when a rule of the tables matches no definition.
#[cfg(test)]
pub(super) fn assert_all_rules_match(definitions: &Map<String, Value>) {
    for rule in LISTS {
        let found = definitions.iter().any(|(name, definition)| {
            name.rsplit('.').next() == Some(rule.owner)
                && definition["properties"][rule.field]["x-kubernetes-list-type"].is_string()
        });
        assert!(found, "{}.{}", rule.owner, rule.field);
    }
    for name in ATOMIC_TYPES {
        assert!(definitions.contains_key(*name), "{name}");
    }
    for (owner, field) in ATOMIC_FIELDS {
        assert!(definitions[*owner]["properties"][*field].is_object());
    }
}
