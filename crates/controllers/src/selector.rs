//! Label and node selectors.

use k8s_openapi::api::core::v1::{Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use std::collections::BTreeMap;

/// Labels of an object.
pub(crate) type Labels = BTreeMap<String, String>;

static NO_LABELS: Labels = BTreeMap::new();

/// An object's labels, an empty map when it has none.
pub(crate) fn labels(meta: &ObjectMeta) -> &Labels {
    meta.labels.as_ref().unwrap_or(&NO_LABELS)
}

/// Whether a label selector matches. An empty one matches everything; one with
/// an operator nobody knows matches nothing.
pub(crate) fn matches(selector: &LabelSelector, labels: &Labels) -> bool {
    selector
        .match_labels
        .iter()
        .flatten()
        .all(|(key, value)| labels.get(key) == Some(value))
        && selector.match_expressions.iter().flatten().all(|rule| {
            let values = rule.values.as_deref().unwrap_or_default();
            requirement(labels.get(&rule.key), &rule.operator, values)
        })
}

/// Whether a selector says nothing and so matches everything: owners with such
/// a selector are left alone, they would adopt the whole namespace.
pub(crate) fn is_empty(selector: &LabelSelector) -> bool {
    selector
        .match_labels
        .as_ref()
        .is_none_or(|map| map.is_empty())
        && selector
            .match_expressions
            .as_ref()
            .is_none_or(|list| list.is_empty())
}

fn requirement(value: Option<&String>, operator: &str, values: &[String]) -> bool {
    match operator {
        "In" => value.is_some_and(|value| values.contains(value)),
        "NotIn" => value.is_none_or(|value| !values.contains(value)),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" | "Lt" => {
            let number = |text: &String| text.parse::<i64>().ok();
            let (Some(value), Some(bound)) =
                (value.and_then(number), values.first().and_then(number))
            else {
                return false;
            };
            if operator == "Gt" {
                value > bound
            } else {
                value < bound
            }
        }
        _ => false,
    }
}

/// Whether a node matches a required node affinity: any of its terms.
pub(crate) fn node_matches(selector: &NodeSelector, node: &Node) -> bool {
    selector
        .node_selector_terms
        .iter()
        .any(|term| node_matches_term(term, node))
}

/// Whether a node matches all of a term; an empty term matches nothing.
pub(crate) fn node_matches_term(term: &NodeSelectorTerm, node: &Node) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    let labels = labels(&node.metadata);
    let check = |value: Option<&String>, rule: &NodeSelectorRequirement| {
        let values = rule.values.as_deref().unwrap_or_default();
        requirement(value, &rule.operator, values)
    };
    expressions
        .iter()
        .all(|rule| check(labels.get(&rule.key), rule))
        && fields
            .iter()
            .all(|rule| rule.key == "metadata.name" && check(node.metadata.name.as_ref(), rule))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use serde_json::{Value, json};

    fn map(value: Value) -> Labels {
        serde_json::from_value(value).unwrap()
    }

    #[rstest]
    #[case::empty_matches_all(json!({}), true)]
    #[case::same(json!({"matchLabels": {"app": "web"}}), true)]
    #[case::other(json!({"matchLabels": {"app": "db"}}), false)]
    #[case::all_must_match(json!({"matchLabels": {"app": "web", "x": "y"}}), false)]
    #[case::one_of(json!({"matchExpressions": [{"key": "app", "operator": "In", "values": ["a", "web"]}]}), true)]
    #[case::none_of(json!({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["web"]}]}), false)]
    #[case::absent_is_not_in(json!({"matchExpressions": [{"key": "x", "operator": "NotIn", "values": ["web"]}]}), true)]
    #[case::exists(json!({"matchExpressions": [{"key": "app", "operator": "Exists"}]}), true)]
    #[case::absent(json!({"matchExpressions": [{"key": "app", "operator": "DoesNotExist"}]}), false)]
    #[case::unknown_operator(json!({"matchExpressions": [{"key": "app", "operator": "Like"}]}), false)]
    fn label_selectors(#[case] selector: Value, #[case] expected: bool) {
        let selector: LabelSelector = serde_json::from_value(selector).unwrap();
        assert_eq!(matches(&selector, &map(json!({"app": "web"}))), expected);
    }

    #[rstest]
    #[case::no_terms(json!([]), false)]
    #[case::empty_term(json!([{}]), false)]
    #[case::any_term(json!([{"matchExpressions": [{"key": "no", "operator": "Exists"}]},
        {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["node-1"]}]}]), true)]
    #[case::greater(json!([{"matchExpressions": [{"key": "cores", "operator": "Gt", "values": ["3"]}]}]), true)]
    #[case::less(json!([{"matchExpressions": [{"key": "cores", "operator": "Lt", "values": ["3"]}]}]), false)]
    #[case::not_a_number(json!([{"matchExpressions": [{"key": "zone", "operator": "Gt", "values": ["3"]}]}]), false)]
    #[case::unknown_field(json!([{"matchFields": [{"key": "spec.x", "operator": "Exists"}]}]), false)]
    fn node_selectors(#[case] terms: Value, #[case] expected: bool) {
        let selector: NodeSelector =
            serde_json::from_value(json!({"nodeSelectorTerms": terms})).unwrap();
        let node: Node = serde_json::from_value(json!({"metadata": {"name": "node-1",
            "labels": {"cores": "4", "zone": "a"}}}))
        .unwrap();
        assert_eq!(node_matches(&selector, &node), expected);
    }
}
