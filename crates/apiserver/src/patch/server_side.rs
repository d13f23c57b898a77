//! Server-side apply: each manager says what it wants of an object, and owns
//! that.
//!
//! Source: KEP-555 and the merge rules at kubernetes.io, "Server-Side Apply".

use super::field_set::FieldSet;
use super::managed_fields::{
    APPLY, Entry, Managed, Manager, UPDATE, strip, without_metadata_itself,
};
use super::typed::{self, Place};
use crate::resource::GroupVersionKind;
use crate::schema::Schemas;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt;
use thiserror::Error;

const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// A field that somebody else owns and would lose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// Who owns it, for instance `"kubectl-edit" using apps/v1 at 2026-…`.
    pub manager: String,
    /// Path of the field, for instance `.spec.replicas`.
    pub field: String,
}

impl Conflict {
    /// The message of a Status' cause.
    pub fn message(&self) -> String {
        format!("conflict with {}", self.manager)
    }
}

/// Why something could not be applied.
#[derive(Debug, Error, PartialEq)]
pub enum ApplyError {
    /// Others own fields that would change; answer 409, with one cause of
    /// reason `FieldManagerConflict` each.
    #[error("{}", Listed(.0))]
    Conflicts(Vec<Conflict>),
    /// What was sent cannot be applied to anything; answer 400.
    #[error("cannot apply: {0}")]
    Invalid(String),
}

struct Listed<'a>(&'a [Conflict]);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let [only] = self.0 {
            return write!(
                f,
                "Apply failed with 1 conflict: {}: {}",
                only.message(),
                only.field
            );
        }
        let mut by_manager: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for conflict in self.0 {
            by_manager
                .entry(&conflict.manager)
                .or_default()
                .push(&conflict.field);
        }
        let mut lines = Vec::new();
        for (manager, fields) in by_manager {
            lines.push(format!("conflicts with {manager}:"));
            lines.extend(fields.iter().map(|field| format!("- {field}")));
        }
        write!(
            f,
            "Apply failed with {} conflicts: {}",
            self.0.len(),
            lines.join("\n")
        )
    }
}

/// Applies a configuration to an object of a built-in kind.
///
/// `live` is `None` when the object is not there yet; `now` is RFC 3339 in UTC,
/// in whole seconds; `force` takes fields from other managers. The result has
/// no defaults filled in and is to be stored without
/// [`track_update`](super::managed_fields::track_update).
///
/// # Errors
/// [`ApplyError::Conflicts`] when others own what would change,
/// [`ApplyError::Invalid`] when what was sent is no configuration.
pub fn apply(
    gvk: &GroupVersionKind,
    live: Option<&Value>,
    applied: &Value,
    manager: &str,
    force: bool,
    now: &str,
    subresource: Option<&str>,
) -> Result<Value, ApplyError> {
    let request = Request {
        gvk,
        schema: None,
        manager,
        force,
        now,
        subresource,
    };
    request.apply(live, applied)
}

/// An apply with all its circumstances; see [`apply`] for their meaning.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Kind of the object.
    pub gvk: &'a GroupVersionKind,
    /// Schema of a custom resource's version, whose `x-kubernetes-list-type`
    /// and relatives say what merges; `None` for built-in kinds.
    pub schema: Option<&'a Value>,
    /// Who applies.
    pub manager: &'a str,
    /// Whether to take fields from other managers.
    pub force: bool,
    /// The time to record, RFC 3339.
    pub now: &'a str,
    /// The subresource written to, for instance `status`.
    pub subresource: Option<&'a str>,
}

impl Request<'_> {
    /// Applies a configuration. `status` in it is ignored for built-in kinds
    /// unless the subresource is `status`; for a custom resource with that
    /// subresource the caller removes it.
    ///
    /// # Errors
    /// See [`apply`].
    pub fn apply(&self, live: Option<&Value>, applied: &Value) -> Result<Value, ApplyError> {
        let applied = self.relevant(applied)?;
        let place = Place::root(self.gvk, self.schema);
        let empty = json!({});
        let base = live.unwrap_or(&empty);
        let manager = Manager {
            name: self.manager.to_owned(),
            operation: APPLY,
            api_version: self.gvk.api_version(),
            subresource: self.subresource.unwrap_or_default().to_owned(),
        };
        let mut managed = Managed::of(base);
        if live.is_some() && managed.0.is_empty() {
            // From before managers were recorded: somebody owns all of it.
            managed.0.push(Entry {
                manager: Manager {
                    name: "before-first-apply".to_owned(),
                    operation: UPDATE,
                    api_version: self.gvk.api_version(),
                    subresource: String::new(),
                },
                time: self.now.to_owned(),
                set: typed::paths(place, &strip(base)),
            });
        }
        let mut wanted = typed::paths(place, &strip(&applied));
        without_metadata_itself(&mut wanted);

        let mut merged = typed::merge(place, base, &applied);
        if let Some(before) = managed.get(&manager) {
            let mut gone = before.set.clone();
            gone.subtract(&wanted);
            let mut kept = managed.owned_by_others(&manager);
            kept.union(&wanted);
            typed::remove(place, &mut merged, &gone, &kept);
        }

        let mut difference = typed::difference(place, &strip(base), &strip(&merged));
        without_metadata_itself(&mut difference.changed);
        let conflicts = self.conflicts(base, place, &managed, &manager, &difference.changed);
        if !self.force && !conflicts.is_empty() {
            return Err(ApplyError::Conflicts(conflicts));
        }
        managed.take_from_others(&manager, &difference.changed);
        managed.take_from_others(&manager, &difference.removed);
        managed.set(manager, wanted, self.now);
        self.refresh_last_applied(base, &applied, &mut merged);
        managed.store(&mut merged);
        Ok(merged)
    }

    /// What of the configuration is this request's to set.
    fn relevant(&self, applied: &Value) -> Result<Value, ApplyError> {
        let Value::Object(fields) = applied else {
            return Err(ApplyError::Invalid(
                "the configuration must be an object".to_owned(),
            ));
        };
        if fields
            .get("metadata")
            .and_then(|metadata| metadata.get("managedFields"))
            .and_then(Value::as_array)
            .is_some_and(|list| !list.is_empty())
        {
            return Err(ApplyError::Invalid(
                "metadata.managedFields must be nil: leave it out of what you apply".to_owned(),
            ));
        }
        let mut fields = fields.clone();
        let built_in = Schemas::builtin().kind(self.gvk).is_some();
        match self.subresource {
            Some("status") => {
                fields.retain(|name, _| {
                    matches!(name.as_str(), "apiVersion" | "kind" | "metadata" | "status")
                });
                if let Some(Value::Object(metadata)) = fields.get_mut("metadata") {
                    metadata.retain(|name, _| {
                        matches!(
                            name.as_str(),
                            "name" | "namespace" | "uid" | "resourceVersion"
                        )
                    });
                }
            }
            _ if built_in => {
                fields.remove("status");
            }
            _ => {}
        }
        let mut applied = Value::Object(fields);
        if built_in {
            remove_nulls(&mut applied);
        }
        let place = Place::root(self.gvk, self.schema);
        typed::check_keys(place, &applied, "").map_err(|missing| {
            ApplyError::Invalid(format!(
                "{}: the element has none of the fields that tell it from others in the list",
                missing.path
            ))
        })?;
        Ok(applied)
    }

    fn conflicts(
        &self,
        base: &Value,
        place: Place<'_>,
        managed: &Managed,
        manager: &Manager,
        changed: &FieldSet,
    ) -> Vec<Conflict> {
        // The manager kubectl takes over what its client-side form applied.
        let allowed = (self.manager == "kubectl")
            .then(|| last_applied(base))
            .flatten()
            .map(|configuration| typed::paths(place, &strip(&configuration)));
        let mut conflicts = Vec::new();
        for entry in &managed.0 {
            if entry.manager == *manager {
                continue;
            }
            let mut lost = entry.set.intersection(changed);
            if let Some(allowed) = &allowed {
                lost.subtract(allowed);
            }
            conflicts.extend(lost.paths().into_iter().map(|field| Conflict {
                manager: entry.manager.describe(&entry.time),
                field,
            }));
        }
        conflicts
    }

    /// Keeps the annotation of client-side apply in step, so that a person can
    /// go back to it.
    fn refresh_last_applied(&self, base: &Value, applied: &Value, merged: &mut Value) {
        if self.manager != "kubectl" || last_applied(base).is_none() {
            return;
        }
        if let Some(annotations) = merged["metadata"]["annotations"].as_object_mut() {
            annotations.insert(LAST_APPLIED.to_owned(), json!(format!("{applied}\n")));
        }
    }
}

fn last_applied(object: &Value) -> Option<Value> {
    let text = object["metadata"]["annotations"][LAST_APPLIED].as_str()?;
    serde_json::from_str(text).ok()
}

fn remove_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(remove_nulls);
        }
        Value::Array(list) => list.iter_mut().for_each(remove_nulls),
        _ => {}
    }
}

#[cfg(test)]
mod tests;
