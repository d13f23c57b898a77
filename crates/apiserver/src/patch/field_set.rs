//! Sets of field paths, and their form in `managedFields` (`FieldsV1`).
//!
//! In that form `f:NAME` is a field, `k:{…}` an element of a list by its keys,
//! `v:VALUE` an element of a set, `i:N` an element by its place; `.` says that
//! the path itself is in the set when paths below it are too.

use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// One step of a path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Step {
    /// A field of an object.
    Field(String),
    /// An element of a list, by the JSON of its keys in order of their names.
    Key(String),
    /// An element of a set, by its JSON.
    Value(String),
    /// An element by its place.
    Index(u64),
}

impl Step {
    /// An element by its keys.
    pub(super) fn key(keys: BTreeMap<&str, Value>) -> Self {
        // A BTreeMap keeps the order of names whatever serde_json's map does.
        Self::Key(serde_json::to_string(&keys).unwrap_or_default())
    }

    fn encode(&self) -> String {
        match self {
            Self::Field(name) => format!("f:{name}"),
            Self::Key(keys) => format!("k:{keys}"),
            Self::Value(value) => format!("v:{value}"),
            Self::Index(index) => format!("i:{index}"),
        }
    }

    fn decode(text: &str) -> Option<Self> {
        let (kind, rest) = text.split_once(':')?;
        match kind {
            "f" => Some(Self::Field(rest.to_owned())),
            "k" => {
                let keys: BTreeMap<String, Value> = serde_json::from_str(rest).ok()?;
                Some(Self::Key(serde_json::to_string(&keys).ok()?))
            }
            "v" => {
                let value: Value = serde_json::from_str(rest).ok()?;
                Some(Self::Value(value.to_string()))
            }
            "i" => rest.parse().ok().map(Self::Index),
            _ => None,
        }
    }

    /// The step as conflicts show it: `.name`, `[name="web"]`, `[="x"]`, `[0]`.
    fn display(&self) -> String {
        match self {
            Self::Field(name) => format!(".{name}"),
            Self::Key(keys) => {
                let keys: BTreeMap<String, Value> = serde_json::from_str(keys).unwrap_or_default();
                let list: Vec<String> = keys
                    .iter()
                    .map(|(name, value)| format!("{name}={value}"))
                    .collect();
                format!("[{}]", list.join(","))
            }
            Self::Value(value) => format!("[={value}]"),
            Self::Index(index) => format!("[{index}]"),
        }
    }
}

/// A set of paths, as a tree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct FieldSet {
    /// Whether the path that leads here is in the set.
    pub(super) member: bool,
    /// What follows it.
    pub(super) children: BTreeMap<Step, FieldSet>,
}

impl FieldSet {
    /// Whether there is no path in the set.
    pub(super) fn is_empty(&self) -> bool {
        !self.member && self.children.values().all(Self::is_empty)
    }

    /// Drops branches without paths, so that equal sets are equal trees.
    pub(super) fn normalize(&mut self) {
        self.children.retain(|_, below| {
            below.normalize();
            below.member || !below.children.is_empty()
        });
    }

    /// The tree below a step, made when it is not there.
    pub(super) fn entry(&mut self, step: Step) -> &mut Self {
        self.children.entry(step).or_default()
    }

    pub(super) fn union(&mut self, other: &Self) {
        self.member |= other.member;
        for (step, below) in &other.children {
            self.entry(step.clone()).union(below);
        }
    }

    /// Removes the paths of the other set.
    pub(super) fn subtract(&mut self, other: &Self) {
        self.member &= !other.member;
        self.children.retain(|step, below| {
            if let Some(removed) = other.children.get(step) {
                below.subtract(removed);
            }
            !below.is_empty()
        });
    }

    /// The paths that are in both.
    pub(super) fn intersection(&self, other: &Self) -> Self {
        let children = self
            .children
            .iter()
            .filter_map(|(step, below)| {
                let both = below.intersection(other.children.get(step)?);
                (!both.is_empty()).then(|| (step.clone(), both))
            })
            .collect();
        Self {
            member: self.member && other.member,
            children,
        }
    }

    /// All paths, as conflicts show them.
    pub(super) fn paths(&self) -> Vec<String> {
        fn walk(set: &FieldSet, path: &str, found: &mut Vec<String>) {
            if set.member {
                found.push(path.to_owned());
            }
            for (step, below) in &set.children {
                walk(below, &format!("{path}{}", step.display()), found);
            }
        }
        let mut found = Vec::new();
        walk(self, "", &mut found);
        found
    }

    /// The form in `fieldsV1`.
    pub(super) fn encode(&self) -> Value {
        let mut map = Map::new();
        for (step, below) in &self.children {
            if below.is_empty() {
                continue;
            }
            let mut inner = below.encode();
            if below.member
                && below.children.values().any(|child| !child.is_empty())
                && let Some(inner) = inner.as_object_mut()
            {
                inner.insert(".".to_owned(), Value::Object(Map::new()));
            }
            map.insert(step.encode(), inner);
        }
        Value::Object(map)
    }

    /// Reads `fieldsV1`; `None` when it is not of that form.
    pub(super) fn decode(value: &Value) -> Option<Self> {
        let mut set = Self::default();
        for (key, below) in value.as_object()? {
            if key == "." {
                continue;
            }
            let mut child = Self::decode(below)?;
            let below = below.as_object()?;
            child.member = below.is_empty() || below.contains_key(".");
            set.children.insert(Step::decode(key)?, child);
        }
        Some(set)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use serde_json::json;

    #[rstest]
    #[case(json!({"f:a": {}}), &[".a"])]
    #[case(json!({"f:a": {".": {}, "f:b": {}}}), &[".a", ".a.b"])]
    #[case(json!({"f:a": {"f:b": {}}}), &[".a.b"])]
    #[case(json!({"f:c": {"k:{\"name\":\"x\"}": {".": {}, "f:image": {}}}}), &[".c[name=\"x\"]", ".c[name=\"x\"].image"])]
    #[case(json!({"f:p": {"k:{\"port\":80,\"protocol\":\"TCP\"}": {}}}), &[".p[port=80,protocol=\"TCP\"]"])]
    #[case(json!({"f:f": {"v:\"a/b\"": {}}}), &[".f[=\"a/b\"]"])]
    #[case(json!({"f:l": {"i:0": {}}}), &[".l[0]"])]
    fn the_form_of_managed_fields(#[case] fields: Value, #[case] paths: &[&str]) {
        let set = FieldSet::decode(&fields).unwrap();
        assert_eq!(set.paths(), paths);
        assert_eq!(set.encode(), fields);
    }

    #[test]
    fn the_order_of_keys_does_not_matter() {
        let one = FieldSet::decode(&json!({"k:{\"b\":1,\"a\":2}": {}}));
        let two = FieldSet::decode(&json!({"k:{\"a\":2,\"b\":1}": {}}));
        assert_eq!(one, two);
    }

    #[rstest]
    #[case(json!([]))]
    #[case(json!({"x:a": {}}))]
    #[case(json!({"f:a": 1}))]
    #[case(json!({"k:nonsense": {}}))]
    fn other_forms_are_refused(#[case] fields: Value) {
        assert_eq!(FieldSet::decode(&fields), None);
    }

    #[test]
    fn set_operations() {
        let decode = |value: Value| FieldSet::decode(&value).unwrap();
        let one = decode(json!({"f:a": {}, "f:b": {".": {}, "f:c": {}, "f:d": {}}}));
        let two = decode(json!({"f:b": {"f:c": {}}, "f:e": {}}));
        let mut union = one.clone();
        union.union(&two);
        assert_eq!(union.paths(), [".a", ".b", ".b.c", ".b.d", ".e"]);
        assert_eq!(one.intersection(&two).paths(), [".b.c"]);
        let mut rest = one.clone();
        rest.subtract(&two);
        assert_eq!(rest.paths(), [".a", ".b", ".b.d"]);
        rest.subtract(&one);
        assert!(rest.is_empty());
    }
}
