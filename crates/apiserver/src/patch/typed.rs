//! Objects seen through their schema: which paths they have, how two differ,
//! how they merge.
//!
//! Objects are granular unless declared atomic; lists are atomic unless
//! declared sets or maps. That holds without a schema too.

use super::field_set::{FieldSet, Step};
use crate::resource::GroupVersionKind;
use crate::schema::{ListType, SchemaNode, Schemas};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// A place in an object's schema, where known.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    node: Option<SchemaNode<'a>>,
    root: bool,
}

impl<'a> Place<'a> {
    /// The root of an object: of a built-in kind, or with a custom schema.
    pub(super) fn root(gvk: &GroupVersionKind, schema: Option<&'a Value>) -> Place<'a> {
        Place {
            node: match schema {
                Some(schema) => Some(SchemaNode::new(schema, None)),
                None => Schemas::builtin().node(gvk),
            },
            root: true,
        }
    }

    fn field(self, name: &str) -> Self {
        // Custom schemas say only that there is metadata.
        let node = if self.root && name == "metadata" {
            Schemas::builtin().object_meta()
        } else {
            self.node.and_then(|node| node.field(name))
        };
        Self { node, root: false }
    }

    fn items(self) -> Self {
        Self {
            node: self.node.and_then(SchemaNode::items),
            root: false,
        }
    }

    fn is_atomic_map(self) -> bool {
        self.node.is_some_and(SchemaNode::is_atomic_map)
    }

    /// Whether the name is of a declared field, not a key of a map.
    fn declares(self, name: &str) -> bool {
        self.node.is_some_and(|node| node.property(name).is_some())
    }

    fn list_type(self) -> ListType<'a> {
        self.node.map_or(ListType::Atomic, SchemaNode::list_type)
    }

    fn is_atomic(self, value: &Value) -> bool {
        match value {
            Value::Object(_) => self.is_atomic_map(),
            Value::Array(_) => self.list_type() == ListType::Atomic,
            _ => true,
        }
    }

    /// What identifies an element of the list; `None` for an element without
    /// any of its keys.
    fn identity(self, item: &Value) -> Option<Step> {
        match self.list_type() {
            ListType::Atomic => None,
            ListType::Set => Some(Step::Value(item.to_string())),
            ListType::Map(keys) => {
                let item_place = self.items();
                let mut given = false;
                let mut found = BTreeMap::new();
                for key in keys {
                    if let Some(value) = item.get(key).filter(|value| !value.is_null()) {
                        given = true;
                        found.insert(key, value.clone());
                    } else if let Some(default) = item_place
                        .field(key)
                        .node
                        .and_then(|node| node.keyword("default"))
                    {
                        found.insert(key, default.clone());
                    }
                }
                given.then(|| Step::key(found))
            }
        }
    }
}

/// A list's element lacks what tells it from others.
#[derive(Debug, PartialEq)]
pub(super) struct MissingKey {
    pub(super) path: String,
}

/// The paths an object has.
pub(super) fn paths(place: Place<'_>, value: &Value) -> FieldSet {
    let mut set = FieldSet::default();
    collect(place, value, &mut set);
    set.member = false;
    set.normalize();
    set
}

fn collect(place: Place<'_>, value: &Value, set: &mut FieldSet) {
    match value {
        Value::Object(map) if !place.is_atomic_map() => {
            for (name, value) in map {
                let below = set.entry(Step::Field(name.clone()));
                collect(place.field(name), value, below);
                let empty = value.as_object().is_some_and(Map::is_empty) || value.is_null();
                if empty || !place.declares(name) && !place.root {
                    below.member = true;
                }
            }
        }
        Value::Array(list) if place.list_type() != ListType::Atomic => {
            for item in list {
                let Some(step) = place.identity(item) else {
                    continue;
                };
                let below = set.entry(step);
                collect(place.items(), item, below);
                below.member = true;
            }
        }
        _ => set.member = true,
    }
}

/// Finds an element of an applied list that lacks its keys.
pub(super) fn check_keys(place: Place<'_>, value: &Value, path: &str) -> Result<(), MissingKey> {
    match value {
        Value::Object(map) if !place.is_atomic_map() => {
            for (name, value) in map {
                check_keys(place.field(name), value, &format!("{path}.{name}"))?;
            }
        }
        Value::Array(list) if place.list_type() != ListType::Atomic => {
            for (index, item) in list.iter().enumerate() {
                let path = format!("{path}[{index}]");
                if place.identity(item).is_none() {
                    return Err(MissingKey { path });
                }
                check_keys(place.items(), item, &path)?;
            }
        }
        _ => {}
    }
    Ok(())
}

/// How one object became another.
#[derive(Debug, Default)]
pub(super) struct Difference {
    /// Paths that are new or have another value.
    pub(super) changed: FieldSet,
    /// Paths that are gone.
    pub(super) removed: FieldSet,
}

pub(super) fn difference(place: Place<'_>, old: &Value, new: &Value) -> Difference {
    let mut difference = Difference::default();
    compare(
        place,
        Some(old),
        Some(new),
        &mut difference.changed,
        &mut difference.removed,
    );
    for set in [&mut difference.changed, &mut difference.removed] {
        set.member = false;
        set.normalize();
    }
    difference
}

/// By identity, in order; elements without one are left out.
fn elements<'v>(place: Place<'_>, value: Option<&'v Value>) -> Vec<(Step, &'v Value)> {
    let mut found: Vec<(Step, &Value)> = Vec::new();
    for item in value.and_then(Value::as_array).into_iter().flatten() {
        if let Some(step) = place.identity(item)
            && !found.iter().any(|(other, _)| *other == step)
        {
            found.push((step, item));
        }
    }
    found
}

fn compare(
    place: Place<'_>,
    old: Option<&Value>,
    new: Option<&Value>,
    changed: &mut FieldSet,
    removed: &mut FieldSet,
) {
    if old == new {
        return;
    }
    match (old, new) {
        (None, Some(_)) => changed.member = true,
        (Some(_), None) => removed.member = true,
        _ => {}
    }
    let granular = |value: Option<&Value>| value.is_none_or(|value| !place.is_atomic(value));
    let both = |check: fn(&Value) -> bool| old.is_none_or(check) && new.is_none_or(check);
    if granular(old) && granular(new) && both(Value::is_object) {
        let nothing = Map::new();
        let (old, new) = (
            old.and_then(Value::as_object).unwrap_or(&nothing),
            new.and_then(Value::as_object).unwrap_or(&nothing),
        );
        let names = old
            .keys()
            .chain(new.keys().filter(|name| !old.contains_key(*name)));
        for name in names {
            if old.get(name) == new.get(name) {
                continue;
            }
            let step = Step::Field(name.clone());
            compare(
                place.field(name),
                old.get(name),
                new.get(name),
                changed.entry(step.clone()),
                removed.entry(step),
            );
        }
    } else if granular(old) && granular(new) && both(Value::is_array) {
        let (old, new) = (elements(place, old), elements(place, new));
        fn find<'v>(list: &[(Step, &'v Value)], step: &Step) -> Option<&'v Value> {
            list.iter()
                .find(|(other, _)| other == step)
                .map(|(_, value)| *value)
        }
        let steps = old
            .iter()
            .chain(new.iter().filter(|(step, _)| find(&old, step).is_none()))
            .map(|(step, _)| step);
        for step in steps {
            if find(&old, step) == find(&new, step) {
                continue;
            }
            compare(
                place.items(),
                find(&old, step),
                find(&new, step),
                changed.entry(step.clone()),
                removed.entry(step.clone()),
            );
        }
    } else if old.is_some() && new.is_some() {
        changed.member = true;
    }
}

/// Puts what was applied over what is there.
pub(super) fn merge(place: Place<'_>, live: &Value, applied: &Value) -> Value {
    match (live, applied) {
        (Value::Object(live), Value::Object(applied)) if !place.is_atomic_map() => {
            let mut merged = live.clone();
            for (name, value) in applied {
                let merged_value = match live.get(name) {
                    Some(before) => merge(place.field(name), before, value),
                    None => value.clone(),
                };
                merged.insert(name.clone(), merged_value);
            }
            Value::Object(merged)
        }
        (Value::Array(_), Value::Array(_)) if place.list_type() != ListType::Atomic => {
            let (live, applied) = (elements(place, Some(live)), elements(place, Some(applied)));
            Value::Array(merge_elements(place, &live, &applied))
        }
        _ => applied.clone(),
    }
}

/// In the order applied; what only the live list has keeps its place relative
/// to its neighbours.
fn merge_elements(
    place: Place<'_>,
    live: &[(Step, &Value)],
    applied: &[(Step, &Value)],
) -> Vec<Value> {
    let position = |step: &Step| live.iter().position(|(other, _)| other == step);
    let mut others = live
        .iter()
        .enumerate()
        .filter(|(_, (step, _))| !applied.iter().any(|(other, _)| other == step))
        .peekable();
    let mut merged = Vec::with_capacity(live.len() + applied.len());
    for (step, value) in applied {
        match position(step) {
            Some(here) => {
                while let Some((_, (_, other))) = others.next_if(|(there, _)| *there < here) {
                    merged.push((*other).clone());
                }
                merged.push(merge(place.items(), live[here].1, value));
            }
            None => merged.push((*value).clone()),
        }
    }
    merged.extend(others.map(|(_, (_, other))| (*other).clone()));
    merged
}

/// Removes the paths in `gone` that nobody in `kept` owns, and objects and
/// lists that become empty by that. An element of a list goes as a whole when
/// nobody owns anything of it.
pub(super) fn remove(place: Place<'_>, value: &mut Value, gone: &FieldSet, kept: &FieldSet) {
    let nothing = FieldSet::default();
    match value {
        Value::Object(map) => {
            for (step, gone) in &gone.children {
                let Step::Field(name) = step else { continue };
                let kept = kept.children.get(step).unwrap_or(&nothing);
                let Some(below) = map.get_mut(name) else {
                    continue;
                };
                if gone.member && kept.is_empty() {
                    map.remove(name);
                    continue;
                }
                let before = size(below);
                remove(place.field(name), below, gone, kept);
                if before > 0 && size(below) == 0 && kept.is_empty() {
                    map.remove(name);
                }
            }
        }
        Value::Array(list) if place.list_type() != ListType::Atomic => {
            list.retain_mut(|item| {
                let Some(step) = place.identity(item) else {
                    return true;
                };
                let Some(gone) = gone.children.get(&step) else {
                    return true;
                };
                let kept = kept.children.get(&step).unwrap_or(&nothing);
                if gone.member && kept.is_empty() {
                    return false;
                }
                remove(place.items(), item, gone, kept);
                true
            });
        }
        _ => {}
    }
}

fn size(value: &Value) -> usize {
    match value {
        Value::Object(map) => map.len(),
        Value::Array(list) => list.len(),
        _ => 0,
    }
}
