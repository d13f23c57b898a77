//! Claiming: which objects an owner has, adopts, and lets go, by its selector
//! and by the controller reference.

use crate::mirror::{Failure, Kind, Mirror};
use crate::object::{self, Key};
use crate::selector;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};
use serde_json::json;
use std::sync::Arc;

/// What an owner makes of the objects of its namespace.
#[derive(Debug)]
pub(crate) struct Claims<K> {
    /// Owned and wanted.
    pub(crate) kept: Vec<Arc<K>>,
    /// Wanted and owned by nobody.
    pub(crate) adopt: Vec<Arc<K>>,
    /// Owned but no longer wanted.
    pub(crate) release: Vec<Arc<K>>,
}

/// Sorts objects into claims. An owner that is being deleted takes nothing and
/// lets nothing go.
pub(crate) fn plan<K: Kind>(
    owner: &ObjectMeta,
    wanted: &LabelSelector,
    objects: impl IntoIterator<Item = Arc<K>>,
) -> Claims<K> {
    let mut claims = Claims {
        kept: Vec::new(),
        adopt: Vec::new(),
        release: Vec::new(),
    };
    let deleting = object::is_deleting(owner);
    let nothing = selector::is_empty(wanted);
    for candidate in objects {
        let meta = candidate.meta();
        let matches = !nothing && selector::matches(wanted, selector::labels(meta));
        match object::controller(meta) {
            Some(reference) if reference.uid != object::uid(owner) => {}
            Some(_) if matches || deleting => claims.kept.push(candidate),
            Some(_) => claims.release.push(candidate),
            None if matches && !deleting && !object::is_deleting(meta) => {
                claims.adopt.push(candidate);
            }
            None => {}
        }
    }
    claims
}

/// Writes the claims into the objects and returns those the owner has.
pub(crate) async fn apply<K: Kind>(
    mirror: &Mirror<K>,
    reference: &OwnerReference,
    claims: Claims<K>,
) -> Result<Vec<Arc<K>>, Failure> {
    let mut kept = claims.kept;
    for candidate in claims.adopt {
        let meta = candidate.meta();
        let key = Key::of(meta);
        let mut owners = meta.owner_references.clone().unwrap_or_default();
        owners.push(reference.clone());
        change_owners(mirror, &key, meta, &owners).await?;
        kept.extend(mirror.get(&key));
    }
    for candidate in claims.release {
        let meta = candidate.meta();
        let mut owners = meta.owner_references.clone().unwrap_or_default();
        owners.retain(|owner| owner.uid != reference.uid);
        change_owners(mirror, &Key::of(meta), meta, &owners).await?;
    }
    Ok(kept)
}

async fn change_owners<K: Kind>(
    mirror: &Mirror<K>,
    key: &Key,
    meta: &ObjectMeta,
    owners: &[OwnerReference],
) -> Result<(), Failure> {
    let change = json!({"metadata": {
        "uid": meta.uid,
        "resourceVersion": meta.resource_version,
        "ownerReferences": if owners.is_empty() { None } else { Some(owners) },
    }});
    match mirror.merge(key, change).await {
        Err(failure) if failure.is_not_found() => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Pod;
    use rstest::rstest;
    use serde_json::Value;

    #[rstest]
    #[case::owned_and_matching("web", Some("me"), false, (1, 0, 0))]
    #[case::owned_by_another("web", Some("other"), false, (0, 0, 0))]
    #[case::owned_but_relabelled("db", Some("me"), false, (0, 0, 1))]
    #[case::a_stray_is_adopted("web", None, false, (0, 1, 0))]
    #[case::a_stranger_is_left_alone("db", None, false, (0, 0, 0))]
    #[case::a_dying_stray_is_not_adopted("web", None, true, (0, 0, 0))]
    fn claims(
        #[case] app: &str,
        #[case] owner: Option<&str>,
        #[case] deleting: bool,
        #[case] expected: (usize, usize, usize),
    ) {
        let owners: Vec<Value> = owner
            .map(|uid| json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "rs", "uid": uid, "controller": true}))
            .into_iter()
            .collect();
        let mut pod: Pod = serde_json::from_value(json!({"metadata": {"name": "a",
            "labels": {"app": app}, "ownerReferences": owners}}))
        .unwrap();
        if deleting {
            pod.metadata.deletion_timestamp =
                Some(object::time(k8s_openapi::jiff::Timestamp::UNIX_EPOCH));
        }
        let me: ObjectMeta = serde_json::from_value(json!({"name": "rs", "uid": "me"})).unwrap();
        let wanted = serde_json::from_value(json!({"matchLabels": {"app": "web"}})).unwrap();
        let claims = plan(&me, &wanted, [Arc::new(pod)]);
        assert_eq!(
            (claims.kept.len(), claims.adopt.len(), claims.release.len()),
            expected
        );
    }
}
