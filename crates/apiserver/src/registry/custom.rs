//! CustomResourceDefinitions: what they add to the catalogue and the status
//! that says so.

use std::cmp::Ordering;
use std::sync::Arc;

use serde_json::{Value, json};

use super::{Catalogue, Resource};
use crate::object;
use crate::resource::GroupVersionKind;

/// What the definition of a custom resource says about one version.
#[derive(Debug)]
pub(crate) struct Custom {
    /// `schema.openAPIV3Schema` of the version.
    pub(crate) schema: Option<Value>,
    /// `additionalPrinterColumns` of the version.
    pub(crate) printer_columns: Option<Value>,
    /// JSON paths of the scale subresource.
    pub(crate) scale: Option<ScalePaths>,
    /// Fields that field selectors may use, as JSON paths.
    pub(crate) selectable: Vec<String>,
    /// Warning for clients of a deprecated version.
    pub(crate) deprecation: Option<String>,
}

/// Where a custom resource keeps its number of replicas, as JSON pointers.
#[derive(Debug, Clone)]
pub(crate) struct ScalePaths {
    /// Wanted replicas.
    pub(crate) spec: String,
    /// Observed replicas.
    pub(crate) status: String,
    /// Label selector in its string form.
    pub(crate) selector: Option<String>,
}

/// A JSON path of the simple form `.spec.replicas` as a JSON pointer.
fn pointer(path: &str) -> String {
    path.replace('.', "/")
}

fn strings(value: &Value) -> Vec<String> {
    value
        .as_array()
        .map(|list| {
            list.iter()
                .filter_map(Value::as_str)
                .map(str::to_owned)
                .collect()
        })
        .unwrap_or_default()
}

/// The resources that a definition adds, one for each served version.
pub(super) fn resources(definition: &Value) -> Vec<Resource> {
    let spec = &definition["spec"];
    let established = definition["status"]["conditions"]
        .as_array()
        .is_some_and(|c| {
            c.iter()
                .any(|c| c["type"] == "Established" && c["status"] == "True")
        });
    let versions = spec["versions"].as_array();
    let (true, Some(versions)) = (established, versions) else {
        return Vec::new();
    };
    let group = object::text(spec, "/group");
    let names = &spec["names"];
    let kind = object::text(names, "/kind");
    let plural = object::text(names, "/plural");
    let storage = versions
        .iter()
        .find(|v| v["storage"] == true)
        .map_or("", |v| object::text(v, "/name"));
    let mut resources: Vec<Resource> = versions
        .iter()
        .filter(|v| v["served"] == true)
        .map(|v| {
            let subresources = &v["subresources"];
            let scale = subresources.get("scale").map(|s| ScalePaths {
                spec: pointer(object::text(s, "/specReplicasPath")),
                status: pointer(object::text(s, "/statusReplicasPath")),
                selector: s["labelSelectorPath"].as_str().map(pointer),
            });
            let version = object::text(v, "/name");
            let deprecation = (v["deprecated"] == true).then(|| {
                v["deprecationWarning"].as_str().map_or_else(
                    || format!("{group}/{version} {kind} is deprecated"),
                    str::to_owned,
                )
            });
            Resource {
                gvk: GroupVersionKind::new(group, version, kind),
                plural: plural.to_owned(),
                singular: names["singular"]
                    .as_str()
                    .map_or_else(|| kind.to_lowercase(), str::to_owned),
                short_names: strings(&names["shortNames"]),
                categories: strings(&names["categories"]),
                list_kind: names["listKind"]
                    .as_str()
                    .map_or_else(|| format!("{kind}List"), str::to_owned),
                namespaced: spec["scope"] != "Cluster",
                status: subresources.get("status").is_some(),
                scale: scale.is_some(),
                generation: true,
                collection: format!("{plural}.{group}").into(),
                stored_as: GroupVersionKind::new(group, storage, kind),
                custom: Some(Arc::new(Custom {
                    schema: v["schema"].get("openAPIV3Schema").cloned(),
                    printer_columns: v.get("additionalPrinterColumns").cloned(),
                    scale,
                    selectable: v["selectableFields"]
                        .as_array()
                        .map(|f| {
                            f.iter()
                                .filter_map(|f| f["jsonPath"].as_str())
                                .map(|p| p.trim_start_matches('.').to_owned())
                                .collect()
                        })
                        .unwrap_or_default(),
                    deprecation,
                })),
            }
        })
        .collect();
    resources.sort_by(|a, b| compare_versions(&b.gvk.version, &a.gvk.version));
    resources
}

/// Writes the status of a definition: its names are accepted if no other
/// resource of the group has them, and then it is established at once.
pub(crate) fn establish(definition: &mut Value, catalogue: &Catalogue, now: &str) {
    let spec = definition["spec"].clone();
    let group = object::text(&spec, "/group");
    let names = &spec["names"];
    let plural = object::text(names, "/plural");
    let kind = object::text(names, "/kind");
    let taken = catalogue
        .all()
        .iter()
        .filter(|r| r.gvk.group == group && r.plural != plural)
        .find_map(|r| {
            if r.gvk.kind == kind {
                Some(("KindConflict", format!("\"{kind}\" is already in use")))
            } else {
                strings(&names["shortNames"])
                    .iter()
                    .find(|s| r.short_names.contains(s))
                    .map(|s| ("ShortNamesConflict", format!("\"{s}\" is already in use")))
            }
        });
    let mut accepted = names.clone();
    if let Some(names) = accepted.as_object_mut() {
        names
            .entry("singular")
            .or_insert_with(|| kind.to_lowercase().into());
        names
            .entry("listKind")
            .or_insert_with(|| format!("{kind}List").into());
    }
    definition["spec"]["names"] = accepted.clone();
    let (names_accepted, established) = match &taken {
        None => (
            ("True", "NoConflicts", "no conflicts found".to_owned()),
            (
                "True",
                "InitialNamesAccepted",
                "the initial names have been accepted".to_owned(),
            ),
        ),
        Some((reason, message)) => (
            ("False", *reason, message.clone()),
            (
                "False",
                "NotAccepted",
                "not all names are accepted".to_owned(),
            ),
        ),
    };
    let old = definition["status"]["conditions"].clone();
    let condition = |kind: &str, (status, reason, message): (&str, &str, String)| {
        let since = old
            .as_array()
            .and_then(|c| {
                c.iter()
                    .find(|c| c["type"] == kind && c["status"] == status)
            })
            .and_then(|c| c["lastTransitionTime"].as_str())
            .unwrap_or(now);
        json!({
            "type": kind, "status": status, "reason": reason, "message": message,
            "lastTransitionTime": since,
        })
    };
    let conditions = json!([
        condition("NamesAccepted", names_accepted),
        condition("Established", established),
    ]);
    let storage = spec["versions"]
        .as_array()
        .and_then(|v| v.iter().find(|v| v["storage"] == true))
        .map(|v| v["name"].clone());
    let mut stored: Vec<Value> = definition["status"]["storedVersions"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    if let Some(storage) = storage
        && !stored.contains(&storage)
    {
        stored.push(storage);
    }
    definition["status"] = json!({
        "acceptedNames": if taken.is_none() { accepted } else { json!({"kind": "", "plural": ""}) },
        "conditions": conditions,
        "storedVersions": stored,
    });
}

/// Kubernetes' order of versions: `v2` > `v1` > `v1beta2` > `v1alpha1` >
/// others by name.
pub(super) fn compare_versions(a: &str, b: &str) -> Ordering {
    fn rank(version: &str) -> Option<(u8, u64, u64)> {
        let rest = version.strip_prefix('v')?;
        let end = rest
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(rest.len());
        let major = rest[..end].parse().ok()?;
        let tail = &rest[end..];
        if tail.is_empty() {
            return Some((2, major, 0));
        }
        for (level, name) in [(1, "beta"), (0, "alpha")] {
            if let Some(minor) = tail.strip_prefix(name) {
                return Some((level, major, minor.parse().ok()?));
            }
        }
        None
    }
    match (rank(a), rank(b)) {
        (Some(a), Some(b)) => a.cmp(&b),
        (Some(_), None) => Ordering::Greater,
        (None, Some(_)) => Ordering::Less,
        (None, None) => b.cmp(a),
    }
}
