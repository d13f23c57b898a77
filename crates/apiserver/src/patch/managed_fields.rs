//! Who set which fields (`metadata.managedFields`).

use super::field_set::FieldSet;
use super::typed::{self, Place};
use crate::resource::GroupVersionKind;
use serde_json::{Map, Value, json};

/// Who wrote: entries with equal identity are one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Manager {
    pub(super) name: String,
    /// `Apply`, or `Update` for all other writes.
    pub(super) operation: &'static str,
    pub(super) api_version: String,
    /// Empty for the object itself.
    pub(super) subresource: String,
}

impl Manager {
    /// The manager as conflicts name it.
    pub(super) fn describe(&self, time: &str) -> String {
        let mut text = format!("{:?}", self.name);
        if !self.subresource.is_empty() {
            text.push_str(&format!(" with subresource {:?}", self.subresource));
        }
        if self.operation == UPDATE {
            text.push_str(&format!(" using {}", self.api_version));
            if !time.is_empty() {
                text.push_str(&format!(" at {time}"));
            }
        }
        text
    }
}

pub(super) const APPLY: &str = "Apply";
pub(super) const UPDATE: &str = "Update";

/// One entry of the list.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Entry {
    pub(super) manager: Manager,
    /// RFC 3339; empty when unknown.
    pub(super) time: String,
    pub(super) set: FieldSet,
}

/// The whole list.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Managed(pub(super) Vec<Entry>);

impl Managed {
    /// Reads the list of an object; `None` when an entry is not of the form.
    pub(super) fn decode(list: &Value) -> Option<Self> {
        let mut entries = Vec::new();
        for entry in list.as_array().map_or(&[][..], Vec::as_slice) {
            let text = |key: &str| entry[key].as_str().unwrap_or_default().to_owned();
            let operation = match entry["operation"].as_str()? {
                APPLY => APPLY,
                UPDATE => UPDATE,
                _ => return None,
            };
            entries.push(Entry {
                manager: Manager {
                    name: text("manager"),
                    operation,
                    api_version: text("apiVersion"),
                    subresource: text("subresource"),
                },
                time: text("time"),
                set: match &entry["fieldsV1"] {
                    Value::Null => FieldSet::default(),
                    fields => FieldSet::decode(fields)?,
                },
            });
        }
        Some(Self(entries))
    }

    pub(super) fn of(object: &Value) -> Self {
        Self::decode(&object["metadata"]["managedFields"]).unwrap_or_default()
    }

    pub(super) fn get(&self, manager: &Manager) -> Option<&Entry> {
        self.0.iter().find(|entry| entry.manager == *manager)
    }

    /// Sets what a manager owns; the time changes only when that does.
    pub(super) fn set(&mut self, manager: Manager, set: FieldSet, now: &str) {
        match self.0.iter_mut().find(|entry| entry.manager == manager) {
            Some(entry) if entry.set == set => {}
            Some(entry) => {
                entry.set = set;
                entry.time = now.to_owned();
            }
            None => self.0.push(Entry {
                manager,
                time: now.to_owned(),
                set,
            }),
        }
    }

    /// All paths owned by managers other than this one.
    pub(super) fn owned_by_others(&self, manager: &Manager) -> FieldSet {
        let mut owned = FieldSet::default();
        for entry in &self.0 {
            if entry.manager != *manager {
                owned.union(&entry.set);
            }
        }
        owned
    }

    /// Takes paths away from all managers other than this one.
    pub(super) fn take_from_others(&mut self, manager: &Manager, taken: &FieldSet) {
        for entry in &mut self.0 {
            if entry.manager != *manager {
                entry.set.subtract(taken);
            }
        }
    }

    /// Writes the list into an object, without managers that own nothing.
    pub(super) fn store(mut self, object: &mut Value) {
        self.0.retain(|entry| !entry.set.is_empty());
        self.0.sort_by(|one, two| {
            let key = |entry: &Entry| {
                (
                    entry.manager.operation,
                    entry.time.clone(),
                    entry.manager.name.clone(),
                    entry.manager.api_version.clone(),
                    entry.manager.subresource.clone(),
                )
            };
            key(one).cmp(&key(two))
        });
        let list: Vec<Value> = self
            .0
            .into_iter()
            .map(|entry| {
                let mut value = json!({
                    "manager": entry.manager.name,
                    "operation": entry.manager.operation,
                    "apiVersion": entry.manager.api_version,
                    "fieldsType": "FieldsV1",
                    "fieldsV1": entry.set.encode(),
                });
                if !entry.time.is_empty() {
                    value["time"] = json!(entry.time);
                }
                if !entry.manager.subresource.is_empty() {
                    value["subresource"] = json!(entry.manager.subresource);
                }
                value
            })
            .collect();
        let Some(object) = object.as_object_mut() else {
            return;
        };
        let metadata = object.entry("metadata").or_insert_with(|| json!({}));
        if let Some(metadata) = metadata.as_object_mut() {
            if list.is_empty() {
                metadata.remove("managedFields");
            } else {
                metadata.insert("managedFields".into(), Value::Array(list));
            }
        }
    }
}

/// What nobody owns: identity, and what the server sets.
pub(super) fn strip(object: &Value) -> Value {
    let mut map: Map<String, Value> = object.as_object().cloned().unwrap_or_default();
    map.remove("apiVersion");
    map.remove("kind");
    if let Some(Value::Object(metadata)) = map.get_mut("metadata") {
        for name in [
            "clusterName",
            "creationTimestamp",
            "deletionGracePeriodSeconds",
            "deletionTimestamp",
            "generation",
            "managedFields",
            "name",
            "namespace",
            "resourceVersion",
            "selfLink",
            "uid",
        ] {
            metadata.remove(name);
        }
        // An object without metadata and one with nothing of interest in it
        // are the same.
        if metadata.is_empty() {
            map.remove("metadata");
        }
    }
    Value::Object(map)
}

/// `metadata` as such is nobody's.
pub(super) fn without_metadata_itself(set: &mut FieldSet) {
    let step = super::field_set::Step::Field("metadata".to_owned());
    if let Some(metadata) = set.children.get_mut(&step) {
        metadata.member = false;
        if metadata.is_empty() {
            set.children.remove(&step);
        }
    }
}

/// Whether a write asks to forget all managers: `[]` or `[{}]`.
fn asks_for_reset(list: &Value) -> bool {
    match list.as_array().map(Vec::as_slice) {
        Some([]) => true,
        Some([only]) => only.as_object().is_some_and(Map::is_empty),
        _ => false,
    }
}

/// Records in `new.metadata.managedFields` what a write other than an apply
/// changed: its manager owns what it changed, nobody what it removed.
///
/// `old` is `None` at creation; `now` is RFC 3339 in UTC, in whole seconds. A
/// write that sets `managedFields` itself (as clients do that move from
/// client-side to server-side apply) has its say, unless it goes through a
/// subresource; `[]` or `[{}]` starts anew.
pub fn track_update(
    gvk: &GroupVersionKind,
    old: Option<&Value>,
    new: &mut Value,
    manager: &str,
    now: &str,
    subresource: Option<&str>,
) {
    track(
        Place::root(gvk, None),
        gvk,
        old,
        new,
        (manager, now, subresource),
    );
}

/// [`track_update`] for a custom resource with the schema of its version.
pub fn track_custom_update(
    gvk: &GroupVersionKind,
    schema: &Value,
    old: Option<&Value>,
    new: &mut Value,
    manager: &str,
    now: &str,
    subresource: Option<&str>,
) {
    let place = Place::root(gvk, Some(schema));
    track(place, gvk, old, new, (manager, now, subresource));
}

fn track(
    place: Place<'_>,
    gvk: &GroupVersionKind,
    old: Option<&Value>,
    new: &mut Value,
    (manager, now, subresource): (&str, &str, Option<&str>),
) {
    let before = old.map(Managed::of).unwrap_or_default();
    let given = &new["metadata"]["managedFields"];
    let mut managed = if subresource.is_some() {
        before
    } else if asks_for_reset(given) {
        Managed::default()
    } else {
        match Managed::decode(given) {
            Some(managed) if !managed.0.is_empty() => managed,
            _ => before,
        }
    };
    let manager = Manager {
        name: manager.to_owned(),
        operation: UPDATE,
        api_version: gvk.api_version(),
        subresource: subresource.unwrap_or_default().to_owned(),
    };
    let old = old.map_or_else(|| json!({}), strip);
    let mut difference = typed::difference(place, &old, &strip(new));
    without_metadata_itself(&mut difference.changed);
    managed.take_from_others(&manager, &difference.changed);
    managed.take_from_others(&manager, &difference.removed);
    let mut owned = managed
        .get(&manager)
        .map(|entry| entry.set.clone())
        .unwrap_or_default();
    owned.subtract(&difference.removed);
    owned.union(&difference.changed);
    managed.set(manager, owned, now);
    managed.store(new);
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "2026-11-21T02:00:00Z";
    const LATER: &str = "2026-11-21T03:00:00Z";

    fn gvk() -> GroupVersionKind {
        GroupVersionKind::new("apps", "v1", "Deployment")
    }

    fn fields<'a>(object: &'a Value, manager: &str) -> &'a Value {
        object["metadata"]["managedFields"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|entry| entry["manager"] == manager)
            .map_or(&Value::Null, |entry| &entry["fieldsV1"])
    }

    fn deployment() -> Value {
        json!({"metadata": {"name": "d", "labels": {"a": "b"}, "uid": "1"}, "spec": {"replicas": 1, "template": {"spec": {
            "containers": [{"name": "c", "image": "x", "ports": [{"containerPort": 80}], "command": ["a", "b"]}]}}}})
    }

    #[test]
    fn the_creator_owns_all_but_identity() {
        let mut new = deployment();
        track_update(&gvk(), None, &mut new, "kubectl-create", NOW, None);
        assert_eq!(
            new["metadata"]["managedFields"],
            json!([{"manager": "kubectl-create", "operation": "Update", "apiVersion": "apps/v1", "time": NOW,
            "fieldsType": "FieldsV1", "fieldsV1": {
                "f:metadata": {"f:labels": {".": {}, "f:a": {}}},
                "f:spec": {".": {}, "f:replicas": {}, "f:template": {".": {}, "f:spec": {".": {}, "f:containers": {".": {},
                    "k:{\"name\":\"c\"}": {".": {}, "f:name": {}, "f:image": {}, "f:command": {},
                        "f:ports": {".": {}, "k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}}}}}}}}
            }}])
        );
    }

    #[test]
    fn who_changes_a_field_owns_it_alone() {
        let mut old = deployment();
        track_update(&gvk(), None, &mut old, "one", NOW, None);
        let mut new = old.clone();
        new["spec"]["replicas"] = json!(5);
        track_update(&gvk(), Some(&old), &mut new, "two", LATER, None);
        assert_eq!(fields(&new, "two"), &json!({"f:spec": {"f:replicas": {}}}));
        assert!(fields(&new, "one")["f:spec"].get("f:replicas").is_none());
    }

    #[test]
    fn what_is_removed_belongs_to_nobody() {
        let mut old = deployment();
        track_update(&gvk(), None, &mut old, "one", NOW, None);
        let mut new = old.clone();
        new["metadata"]["labels"] = json!({});
        new["spec"].as_object_mut().unwrap().remove("template");
        track_update(&gvk(), Some(&old), &mut new, "two", LATER, None);
        assert_eq!(
            fields(&new, "one")["f:spec"],
            json!({".": {}, "f:replicas": {}})
        );
        assert_eq!(fields(&new, "two"), &Value::Null);
    }

    #[test]
    fn a_write_without_changes_changes_nothing() {
        let mut old = deployment();
        track_update(&gvk(), None, &mut old, "one", NOW, None);
        let mut new = old.clone();
        track_update(&gvk(), Some(&old), &mut new, "one", LATER, None);
        assert_eq!(new, old);
        let mut other = old.clone();
        track_update(&gvk(), Some(&old), &mut other, "two", LATER, None);
        assert_eq!(other, old);
    }

    #[test]
    fn clients_that_do_not_know_the_list_do_not_lose_it() {
        let mut old = deployment();
        track_update(&gvk(), None, &mut old, "one", NOW, None);
        let mut new = deployment();
        track_update(&gvk(), Some(&old), &mut new, "two", LATER, None);
        assert_eq!(
            new["metadata"]["managedFields"],
            old["metadata"]["managedFields"]
        );
    }

    #[test]
    fn the_list_can_be_set_and_reset() {
        let mut old = deployment();
        track_update(&gvk(), None, &mut old, "one", NOW, None);
        let mut new = old.clone();
        new["metadata"]["managedFields"][0]["manager"] = json!("renamed");
        track_update(&gvk(), Some(&old), &mut new, "two", LATER, None);
        assert_eq!(fields(&new, "renamed"), fields(&old, "one"));
        for reset in [json!([]), json!([{}])] {
            let mut new = old.clone();
            new["metadata"]["managedFields"] = reset;
            track_update(&gvk(), Some(&old), &mut new, "two", LATER, None);
            assert!(new["metadata"].get("managedFields").is_none());
        }
    }

    #[test]
    fn subresources_have_entries_of_their_own() {
        let mut old = deployment();
        track_update(&gvk(), None, &mut old, "one", NOW, None);
        let mut new = old.clone();
        new["status"] =
            json!({"replicas": 1, "conditions": [{"type": "Available", "status": "True"}]});
        track_update(&gvk(), Some(&old), &mut new, "one", LATER, Some("status"));
        let entries = new["metadata"]["managedFields"].as_array().unwrap();
        assert_eq!(entries.len(), 2);
        assert_eq!(entries[1]["subresource"], "status");
        assert_eq!(
            entries[1]["fieldsV1"],
            json!({"f:status": {".": {}, "f:replicas": {}, "f:conditions": {".": {},
                "k:{\"type\":\"Available\"}": {".": {}, "f:type": {}, "f:status": {}}}}})
        );
    }
}
