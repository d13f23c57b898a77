//! A cursor over a JSON schema, with references resolved.

use serde_json::{Map, Value};

/// How the elements of a list are told apart when two parties write to it
/// (`x-kubernetes-list-type`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListType<'a> {
    /// The list is one value.
    Atomic,
    /// Each scalar stands for itself.
    Set,
    /// Objects told apart by these fields.
    Map(Vec<&'a str>),
}

/// A place in a schema.
///
/// A property may be `{"$ref": …}` with extensions of its own beside the
/// reference; those win over the ones of the definition referred to.
#[derive(Clone, Copy, Debug)]
pub struct SchemaNode<'a> {
    own: &'a Value,
    target: &'a Value,
    definitions: Option<&'a Map<String, Value>>,
}

impl<'a> SchemaNode<'a> {
    /// The root of a schema; `definitions` is where `$ref` looks names up.
    pub fn new(schema: &'a Value, definitions: Option<&'a Map<String, Value>>) -> Self {
        Self {
            own: schema,
            target: resolve(schema, definitions),
            definitions,
        }
    }

    fn at(self, schema: &'a Value) -> Self {
        Self::new(schema, self.definitions)
    }

    /// The schema itself, with a reference resolved.
    pub fn schema(self) -> &'a Value {
        self.target
    }

    /// A keyword of the property, else of the definition it refers to.
    pub fn keyword(self, key: &str) -> Option<&'a Value> {
        self.own.get(key).or_else(|| self.target.get(key))
    }

    /// The schema of a declared property.
    pub fn property(self, name: &str) -> Option<Self> {
        self.target
            .get("properties")
            .and_then(|properties| properties.get(name))
            .map(|schema| self.at(schema))
    }

    /// Whether the schema declares any properties.
    pub fn has_properties(self) -> bool {
        self.target
            .get("properties")
            .and_then(Value::as_object)
            .is_some_and(|properties| !properties.is_empty())
    }

    /// The schema of a map's values.
    pub fn additional(self) -> Option<Self> {
        self.target
            .get("additionalProperties")
            .filter(|schema| schema.is_object())
            .map(|schema| self.at(schema))
    }

    /// The schema of a declared property or, failing that, of a map's values.
    pub fn field(self, name: &str) -> Option<Self> {
        self.property(name).or_else(|| self.additional())
    }

    /// The schema of a list's elements.
    pub fn items(self) -> Option<Self> {
        self.target
            .get("items")
            .filter(|schema| schema.is_object())
            .map(|schema| self.at(schema))
    }

    /// Whether a boolean extension is set.
    pub fn flag(self, key: &str) -> bool {
        self.keyword(key).and_then(Value::as_bool).unwrap_or(false)
    }

    /// The declared type, if there is exactly one.
    pub fn type_name(self) -> Option<&'a str> {
        self.target.get("type").and_then(Value::as_str)
    }

    /// How the list's elements are told apart.
    pub fn list_type(self) -> ListType<'a> {
        match self
            .keyword("x-kubernetes-list-type")
            .and_then(Value::as_str)
        {
            Some("set") => ListType::Set,
            Some("map") => {
                let keys: Vec<&str> = self
                    .keyword("x-kubernetes-list-map-keys")
                    .and_then(Value::as_array)
                    .map(|keys| keys.iter().filter_map(Value::as_str).collect())
                    .unwrap_or_default();
                if keys.is_empty() {
                    ListType::Atomic
                } else {
                    ListType::Map(keys)
                }
            }
            _ => ListType::Atomic,
        }
    }

    /// Whether the object is written as one value.
    pub fn is_atomic_map(self) -> bool {
        self.keyword("x-kubernetes-map-type")
            .and_then(Value::as_str)
            == Some("atomic")
    }

    /// The merge key a strategic merge patch uses for the list.
    pub fn patch_merge_key(self) -> Option<&'a str> {
        self.own
            .get("x-kubernetes-patch-merge-key")
            .and_then(Value::as_str)
    }

    /// Whether the field's strategic merge patch strategy has this word.
    pub fn has_patch_strategy(self, word: &str) -> bool {
        self.own
            .get("x-kubernetes-patch-strategy")
            .and_then(Value::as_str)
            .is_some_and(|strategy| strategy.split(',').any(|part| part == word))
    }
}

/// Follows references by the last segment of their path. Chains are short; the
/// bound keeps a reference to itself from looping.
fn resolve<'a>(mut schema: &'a Value, definitions: Option<&'a Map<String, Value>>) -> &'a Value {
    let Some(definitions) = definitions else {
        return schema;
    };
    for _ in 0..8 {
        let Some(reference) = schema.get("$ref").and_then(Value::as_str) else {
            break;
        };
        let name = reference.rsplit('/').next().unwrap_or(reference);
        let Some(next) = definitions.get(name) else {
            break;
        };
        schema = next;
    }
    schema
}
