//! What all kinds have in common: names, labels, selectors, protocols.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use serde::de::{DeserializeOwned, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::decode::null_default;
use crate::endpointslice::EndpointSlice;

/// Labels of an object, or the equalities of a selector.
pub type Labels = BTreeMap<Box<str>, Box<str>>;

/// A kind that can be listed and watched.
pub trait Resource: DeserializeOwned + 'static {
    /// The kind's name, as in `kind:`.
    const KIND: &'static str;
    /// The group and version part of the path: `/api/v1` or `/apis/GROUP/VERSION`.
    const API: &'static str;
    /// The plural used in paths.
    const PLURAL: &'static str;
    /// Whether objects live in namespaces.
    const NAMESPACED: bool;

    /// The object's metadata.
    fn metadata(&self) -> &Metadata;

    /// Namespace and name.
    fn key(&self) -> Key {
        self.metadata().key()
    }
}

/// What the names of podwire's own annotations begin with.
pub const OWN_ANNOTATIONS: &str = "podwire.dev/";

/// What the names of flannel's annotations begin with.
pub const FLANNEL_ANNOTATIONS: &str = "flannel.alpha.coreos.com/";

/// The part of `metadata` podwire reads. Few annotations, no managed fields.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Metadata {
    /// Name, unique among the kind's objects in the namespace.
    pub name: Box<str>,
    /// Namespace; empty for a kind that has none.
    pub namespace: Box<str>,
    /// Identity over time: a deleted and recreated object has another.
    pub uid: Box<str>,
    /// Version of this state of the object. Opaque: only equality means something.
    pub resource_version: Box<str>,
    /// Labels.
    #[serde(deserialize_with = "null_default")]
    pub labels: Labels,
    /// Annotations whose names begin with [`OWN_ANNOTATIONS`], without that; and, by
    /// their whole names, flannel's ([`FLANNEL_ANNOTATIONS`]) and
    /// `endpoints.kubernetes.io/last-change-trigger-time`.
    #[serde(deserialize_with = "few_annotations")]
    pub annotations: Labels,
    /// Set once deletion has begun (RFC 3339).
    pub deletion_timestamp: Option<Box<str>>,
}

impl Metadata {
    /// Namespace and name.
    pub fn key(&self) -> Key {
        Key {
            namespace: self.namespace.clone(),
            name: self.name.clone(),
        }
    }

    /// The value of a label.
    pub fn label(&self, name: &str) -> Option<&str> {
        self.labels.get(name).map(|value| &**value)
    }

    /// Whether deletion has begun.
    pub fn is_terminating(&self) -> bool {
        self.deletion_timestamp.is_some()
    }
}

/// Keeps the annotations podwire reads; others can be large and are not even
/// copied.
fn few_annotations<'de, D: Deserializer<'de>>(from: D) -> Result<Labels, D::Error> {
    struct Few;

    impl<'de> Visitor<'de> for Few {
        type Value = Labels;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("annotations")
        }

        fn visit_unit<E>(self) -> Result<Labels, E> {
            Ok(Labels::new())
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Labels, A::Error> {
            let mut few = Labels::new();
            while let Some(name) = map.next_key::<Cow<'de, str>>()? {
                let known = match &*name {
                    EndpointSlice::TRIGGER_ANNOTATION => Some(&*name),
                    name if name.starts_with(FLANNEL_ANNOTATIONS) => Some(name),
                    name => name.strip_prefix(OWN_ANNOTATIONS),
                };
                match known {
                    Some(name) => {
                        few.insert(name.into(), map.next_value()?);
                    }
                    None => {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
            }
            Ok(few)
        }
    }

    from.deserialize_any(Few)
}

/// Namespace and name of an object; the namespace is empty for a kind that has none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Namespace, or empty.
    pub namespace: Box<str>,
    /// Name.
    pub name: Box<str>,
}

impl Key {
    /// A key from its parts.
    pub fn new(namespace: impl Into<Box<str>>, name: impl Into<Box<str>>) -> Key {
        Key {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.namespace.is_empty() {
            write!(f, "{}/", self.namespace)?;
        }
        f.write_str(&self.name)
    }
}

/// Transport protocol of a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
pub enum Protocol {
    /// TCP, also the meaning of an absent field.
    #[default]
    #[serde(rename = "TCP")]
    Tcp,
    /// UDP.
    #[serde(rename = "UDP")]
    Udp,
    /// SCTP.
    #[serde(rename = "SCTP")]
    Sctp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
            Protocol::Sctp => "SCTP",
        })
    }
}

/// A label selector (`matchLabels` and `matchExpressions`, all of which must hold).
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LabelSelector {
    /// Labels that must be there with these values.
    #[serde(deserialize_with = "null_default")]
    pub match_labels: Labels,
    /// Further conditions.
    #[serde(deserialize_with = "null_default")]
    pub match_expressions: Vec<LabelRequirement>,
}

/// One condition of a selector.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct LabelRequirement {
    /// The label's name.
    pub key: Box<str>,
    /// How it is compared.
    pub operator: LabelOperator,
    /// The values of `In` and `NotIn`.
    #[serde(default, deserialize_with = "null_default")]
    pub values: Vec<Box<str>>,
}

/// How a selector's condition compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum LabelOperator {
    /// The label is there with one of the values.
    In,
    /// The label is absent or has none of the values.
    NotIn,
    /// The label is there.
    Exists,
    /// The label is absent.
    DoesNotExist,
}

impl LabelSelector {
    /// Whether labels satisfy all conditions. An empty selector matches everything.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.match_labels
            .iter()
            .all(|(name, value)| labels.get(name) == Some(value))
            && self.match_expressions.iter().all(|requirement| {
                let value = labels.get(&requirement.key);
                match requirement.operator {
                    LabelOperator::In => value.is_some_and(|v| requirement.values.contains(v)),
                    LabelOperator::NotIn => !value.is_some_and(|v| requirement.values.contains(v)),
                    LabelOperator::Exists => value.is_some(),
                    LabelOperator::DoesNotExist => value.is_none(),
                }
            })
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::none("{}", &[])]
    #[case::null(r#"{"annotations":null}"#, &[])]
    #[case::trigger(
        r#"{"annotations":{"endpoints.kubernetes.io/last-change-trigger-time":"2026-01-01T00:00:00Z"}}"#,
        &[("endpoints.kubernetes.io/last-change-trigger-time", "2026-01-01T00:00:00Z")]
    )]
    #[case::own(
        r#"{"annotations":{"a/b":"large","podwire.dev/x":"1","podwire.dev":"2"}}"#,
        &[("x", "1")]
    )]
    #[case::flannels(
        r#"{"annotations":{"flannel.alpha.coreos.com/x":"1","podwire.dev/x":"2"}}"#,
        &[("flannel.alpha.coreos.com/x", "1"), ("x", "2")]
    )]
    fn annotations_that_nobody_reads_are_left_out(
        #[case] text: &str,
        #[case] expected: &[(&str, &str)],
    ) {
        let metadata: Metadata = serde_json::from_str(text).unwrap();
        let expected: Labels = expected
            .iter()
            .map(|(name, value)| ((*name).into(), (*value).into()))
            .collect();
        assert_eq!(metadata.annotations, expected);
    }

    #[rstest]
    #[case::empty_matches_all(r#"{}"#, true)]
    #[case::equal(r#"{"matchLabels":{"app":"web"}}"#, true)]
    #[case::other_value(r#"{"matchLabels":{"app":"db"}}"#, false)]
    #[case::absent(r#"{"matchLabels":{"tier":"db"}}"#, false)]
    #[case::in_list(
        r#"{"matchExpressions":[{"key":"app","operator":"In","values":["a","web"]}]}"#,
        true
    )]
    #[case::not_in_list(
        r#"{"matchExpressions":[{"key":"app","operator":"In","values":["a"]}]}"#,
        false
    )]
    #[case::in_of_absent(
        r#"{"matchExpressions":[{"key":"x","operator":"In","values":["a"]}]}"#,
        false
    )]
    #[case::not_in_of_absent(
        r#"{"matchExpressions":[{"key":"x","operator":"NotIn","values":["a"]}]}"#,
        true
    )]
    #[case::not_in(
        r#"{"matchExpressions":[{"key":"app","operator":"NotIn","values":["web"]}]}"#,
        false
    )]
    #[case::exists(r#"{"matchExpressions":[{"key":"app","operator":"Exists"}]}"#, true)]
    #[case::does_not_exist(
        r#"{"matchExpressions":[{"key":"app","operator":"DoesNotExist","values":null}]}"#,
        false
    )]
    #[case::all_must_hold(
        r#"{"matchLabels":{"app":"web"},"matchExpressions":[{"key":"x","operator":"Exists"}]}"#,
        false
    )]
    fn selector_conditions_are_anded(#[case] selector: &str, #[case] expected: bool) {
        let labels: Labels = [("app".into(), "web".into())].into_iter().collect();
        let selector: LabelSelector = serde_json::from_str(selector).unwrap();
        assert_eq!(selector.matches(&labels), expected);
    }
}
