//! Discovery: which groups, versions and resources are served.

use http::HeaderMap;
use serde_json::{Value, json};

use super::negotiation;
use crate::registry::{Catalogue, Resource};

/// A kind that exists only in requests.
struct Virtual {
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    plural: &'static str,
}

const VIRTUAL: &[Virtual] = &[
    Virtual {
        group: "authentication.k8s.io",
        version: "v1",
        kind: "SelfSubjectReview",
        plural: "selfsubjectreviews",
    },
    Virtual {
        group: "authorization.k8s.io",
        version: "v1",
        kind: "SelfSubjectAccessReview",
        plural: "selfsubjectaccessreviews",
    },
    Virtual {
        group: "authorization.k8s.io",
        version: "v1",
        kind: "SelfSubjectRulesReview",
        plural: "selfsubjectrulesreviews",
    },
];

/// A group that clients look for although it has no resources of its own:
/// they evict only where they find it.
const EVICTION_GROUP: (&str, &str) = ("policy", "v1");

/// The kind of a resource that only takes reviews.
pub(super) fn review_kind(group: &str, version: &str, plural: &str) -> Option<&'static str> {
    VIRTUAL
        .iter()
        .find(|v| v.group == group && v.version == version && v.plural == plural)
        .map(|v| v.kind)
}

/// All groups but the core one, with their versions, preferred first.
fn groups(catalogue: &Catalogue) -> Vec<(String, Vec<String>)> {
    let mut groups = catalogue.groups();
    groups.retain(|(name, _)| !name.is_empty());
    let more = VIRTUAL
        .iter()
        .map(|v| (v.group, v.version))
        .chain([EVICTION_GROUP]);
    for (group, version) in more {
        if !groups.iter().any(|(name, _)| name == group) {
            groups.push((group.to_owned(), vec![version.to_owned()]));
        }
    }
    groups
}

/// `/api`, or the core group in aggregated form.
pub(super) fn core(catalogue: &Catalogue, headers: &HeaderMap) -> (Value, Option<&'static str>) {
    match negotiation::wants_aggregated_discovery(headers) {
        Some(version) => {
            let groups = vec![(String::new(), vec!["v1".to_owned()])];
            (aggregated(catalogue, &groups, version), Some(version))
        }
        None => (
            json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}),
            None,
        ),
    }
}

/// `/apis`, or all groups in aggregated form.
pub(super) fn named(catalogue: &Catalogue, headers: &HeaderMap) -> (Value, Option<&'static str>) {
    let groups = groups(catalogue);
    match negotiation::wants_aggregated_discovery(headers) {
        Some(version) => (aggregated(catalogue, &groups, version), Some(version)),
        None => {
            let list: Vec<Value> = groups.iter().map(|(g, v)| group_document(g, v)).collect();
            (
                json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": list}),
                None,
            )
        }
    }
}

fn group_document(group: &str, versions: &[String]) -> Value {
    let versions: Vec<Value> = versions
        .iter()
        .map(|v| json!({"groupVersion": format!("{group}/{v}"), "version": v}))
        .collect();
    json!({"name": group, "versions": versions, "preferredVersion": versions[0]})
}

/// `/apis/GROUP`.
pub(super) fn group(catalogue: &Catalogue, group: &str) -> Option<Value> {
    let (name, versions) = groups(catalogue).into_iter().find(|(g, _)| g == group)?;
    let mut document = group_document(&name, &versions);
    document["kind"] = "APIGroup".into();
    document["apiVersion"] = "v1".into();
    Some(document)
}

/// `/api/v1` and `/apis/GROUP/VERSION`.
pub(super) fn version(catalogue: &Catalogue, group: &str, version: &str) -> Option<Value> {
    let known = group.is_empty() && version == "v1"
        || groups(catalogue)
            .iter()
            .any(|(g, v)| g == group && v.iter().any(|v| v == version));
    if !known {
        return None;
    }
    let mut resources = Vec::new();
    for r in catalogue.of(group, version) {
        let mut entry = json!({
            "name": r.plural,
            "singularName": r.singular,
            "namespaced": r.namespaced,
            "kind": r.gvk.kind,
            "verbs": r.verbs(),
        });
        if !r.short_names.is_empty() {
            entry["shortNames"] = r.short_names.clone().into();
        }
        if !r.categories.is_empty() {
            entry["categories"] = r.categories.clone().into();
        }
        resources.push(entry);
        for sub in subresources(r) {
            let mut entry = json!({
                "name": format!("{}/{}", r.plural, sub.name),
                "singularName": "",
                "namespaced": r.namespaced,
                "kind": sub.kind,
                "verbs": sub.verbs,
            });
            if (sub.group, sub.version) != (group, version) {
                entry["group"] = sub.group.into();
                entry["version"] = sub.version.into();
            }
            resources.push(entry);
        }
    }
    for v in VIRTUAL
        .iter()
        .filter(|v| v.group == group && v.version == version)
    {
        resources.push(json!({
            "name": v.plural, "singularName": v.kind.to_lowercase(), "namespaced": false,
            "kind": v.kind, "verbs": ["create"],
        }));
    }
    let group_version = if group.is_empty() {
        version.to_owned()
    } else {
        format!("{group}/{version}")
    };
    Some(json!({
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": group_version,
        "resources": resources,
    }))
}

struct Subresource<'a> {
    name: &'a str,
    group: &'a str,
    version: &'a str,
    kind: &'a str,
    verbs: &'a [&'a str],
}

const READ_WRITE: &[&str] = &["get", "patch", "update"];

fn subresources(r: &Resource) -> Vec<Subresource<'_>> {
    let mut list = Vec::new();
    for action in r.actions() {
        list.push(Subresource {
            name: action.name,
            group: action.group,
            version: action.version,
            kind: action.kind,
            verbs: action.verbs,
        });
    }
    if r.scale {
        list.push(Subresource {
            name: "scale",
            group: "autoscaling",
            version: "v1",
            kind: "Scale",
            verbs: READ_WRITE,
        });
    }
    if r.status {
        list.push(Subresource {
            name: "status",
            group: &r.gvk.group,
            version: &r.gvk.version,
            kind: &r.gvk.kind,
            verbs: READ_WRITE,
        });
    }
    list
}

/// `APIGroupDiscoveryList`: everything in one document.
fn aggregated(catalogue: &Catalogue, groups: &[(String, Vec<String>)], form: &str) -> Value {
    let items: Vec<Value> = groups
        .iter()
        .map(|(group, versions)| {
            let versions: Vec<Value> = versions
                .iter()
                .map(|version| {
                    json!({
                        "version": version,
                        "freshness": "Current",
                        "resources": aggregated_resources(catalogue, group, version),
                    })
                })
                .collect();
            let metadata = if group.is_empty() {
                json!({"creationTimestamp": null})
            } else {
                json!({"name": group, "creationTimestamp": null})
            };
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": format!("apidiscovery.k8s.io/{form}"),
        "metadata": {},
        "items": items,
    })
}

fn aggregated_resources(catalogue: &Catalogue, group: &str, version: &str) -> Vec<Value> {
    let kind = |group: &str, version: &str, kind: &str| json!({"group": group, "version": version, "kind": kind});
    let mut resources: Vec<Value> = catalogue
        .of(group, version)
        .map(|r| {
            let subresources: Vec<Value> = subresources(r)
                .iter()
                .map(|s| {
                    json!({
                        "subresource": s.name,
                        "responseKind": kind(s.group, s.version, s.kind),
                        "verbs": s.verbs,
                    })
                })
                .collect();
            let mut entry = json!({
                "resource": r.plural,
                "responseKind": kind(group, version, &r.gvk.kind),
                "scope": if r.namespaced { "Namespaced" } else { "Cluster" },
                "singularResource": r.singular,
                "verbs": r.verbs(),
            });
            if !r.short_names.is_empty() {
                entry["shortNames"] = r.short_names.clone().into();
            }
            if !r.categories.is_empty() {
                entry["categories"] = r.categories.clone().into();
            }
            if !subresources.is_empty() {
                entry["subresources"] = subresources.into();
            }
            entry
        })
        .collect();
    for v in VIRTUAL
        .iter()
        .filter(|v| v.group == group && v.version == version)
    {
        resources.push(json!({
            "resource": v.plural,
            "responseKind": kind(group, version, v.kind),
            "scope": "Cluster",
            "singularResource": v.kind.to_lowercase(),
            "verbs": ["create"],
        }));
    }
    resources
}
