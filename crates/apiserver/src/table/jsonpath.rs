//! The part of JSONPath that printer columns use.
//!
//! Fields (`.a.b`, `['a.b']`, `.a\.b`), indices (`[0]`, `[-1]`), all (`[*]`,
//! `.*`) and filters that compare a field (`[?(@.type=="Ready")]`, `!=`, or
//! presence). Source: kubernetes.io, "JSONPath Support".

use serde_json::Value;

/// One step of a path.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Step {
    Field(String),
    Index(i64),
    All,
    Filter {
        path: Vec<Step>,
        /// Whether they must be equal or differ, and from what.
        compare: Option<(bool, Value)>,
    },
}

/// Parses a path, with or without `{}` around it; `None` when it is none.
pub(super) fn parse(text: &str) -> Option<Vec<Step>> {
    let text = text.trim();
    let text = text
        .strip_prefix('{')
        .and_then(|text| text.strip_suffix('}'))
        .unwrap_or(text);
    let mut rest = text.strip_prefix(['$', '@']).unwrap_or(text);
    let mut steps = Vec::new();
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix('.') {
            if after.is_empty() && steps.is_empty() {
                break;
            }
            let (name, after) = field(after);
            match name.as_str() {
                "" => return None,
                "*" => steps.push(Step::All),
                _ => steps.push(Step::Field(name)),
            }
            rest = after;
        } else if let Some(after) = rest.strip_prefix('[') {
            let end = closing(after)?;
            steps.push(bracket(after[..end].trim())?);
            rest = &after[end + 1..];
        } else if steps.is_empty() {
            let (name, after) = field(rest);
            steps.push(Step::Field(name));
            rest = after;
        } else {
            return None;
        }
    }
    Some(steps)
}

/// A name up to the next dot or bracket; a backslash keeps what follows it.
fn field(text: &str) -> (String, &str) {
    let mut name = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '\\' => {
                if let Some((_, escaped)) = characters.next() {
                    name.push(escaped);
                }
            }
            '.' | '[' => return (name, &text[at..]),
            other => name.push(other),
        }
    }
    (name, "")
}

/// Where the bracket closes, quotes and inner brackets skipped.
fn closing(text: &str) -> Option<usize> {
    let mut quote = None;
    let mut depth = 0;
    for (at, character) in text.char_indices() {
        match (quote, character) {
            (Some(open), _) if open == character => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"') => quote = Some(character),
            (None, '[') => depth += 1,
            (None, ']') if depth == 0 => return Some(at),
            (None, ']') => depth -= 1,
            _ => {}
        }
    }
    None
}

fn quoted(text: &str) -> Option<&str> {
    ['\'', '"'].into_iter().find_map(|quote| {
        text.strip_prefix(quote)
            .and_then(|text| text.strip_suffix(quote))
    })
}

fn bracket(text: &str) -> Option<Step> {
    if text == "*" {
        return Some(Step::All);
    }
    if let Some(name) = quoted(text) {
        return Some(Step::Field(name.to_owned()));
    }
    if let Some(filter) = text
        .strip_prefix("?(")
        .and_then(|text| text.strip_suffix(')'))
    {
        let (left, compare) = match (filter.split_once("=="), filter.split_once("!=")) {
            (Some((left, right)), _) => (left, Some((true, literal(right)?))),
            (None, Some((left, right))) => (left, Some((false, literal(right)?))),
            (None, None) => (filter, None),
        };
        return Some(Step::Filter {
            path: parse(left.trim())?,
            compare,
        });
    }
    text.parse().ok().map(Step::Index)
}

fn literal(text: &str) -> Option<Value> {
    let text = text.trim();
    match quoted(text) {
        Some(text) => Some(Value::from(text)),
        None => serde_json::from_str(text).ok(),
    }
}

/// All values the path leads to.
pub(super) fn find<'a>(path: &[Step], value: &'a Value) -> Vec<&'a Value> {
    let mut found = vec![value];
    for step in path {
        found = found
            .into_iter()
            .flat_map(|value| follow(step, value))
            .collect();
    }
    found
}

fn follow<'a>(step: &Step, value: &'a Value) -> Vec<&'a Value> {
    match (step, value) {
        (Step::Field(name), Value::Object(map)) => map.get(name).into_iter().collect(),
        (Step::All, Value::Object(map)) => map.values().collect(),
        (Step::All, Value::Array(list)) => list.iter().collect(),
        (Step::Index(index), Value::Array(list)) => {
            let length = i64::try_from(list.len()).unwrap_or(i64::MAX);
            let index = if *index < 0 {
                length.saturating_add(*index)
            } else {
                *index
            };
            usize::try_from(index)
                .ok()
                .and_then(|index| list.get(index))
                .into_iter()
                .collect()
        }
        (Step::Filter { path, compare }, Value::Array(list)) => list
            .iter()
            .filter(|item| {
                let found = find(path, item);
                match compare {
                    None => !found.is_empty(),
                    Some((equal, literal)) => found
                        .first()
                        .is_some_and(|value| (*value == literal) == *equal),
                }
            })
            .collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rstest::rstest;
    use serde_json::json;

    #[rstest]
    #[case(".spec.a", json!(["x"]))]
    #[case("{.spec.a}", json!(["x"]))]
    #[case("$.spec.a", json!(["x"]))]
    #[case(".spec.missing", json!([]))]
    #[case(".list[0].n", json!([1]))]
    #[case(".list[-1].n", json!([2]))]
    #[case(".list[9].n", json!([]))]
    #[case(".list[*].n", json!([1, 2]))]
    #[case(".list[?(@.type==\"b\")].n", json!([2]))]
    #[case(".list[?(@.type=='a')].n", json!([1]))]
    #[case(".list[?(@.type != 'a')].n", json!([2]))]
    #[case(".list[?(@.n==2)].type", json!(["b"]))]
    #[case(".list[?(@.extra)].n", json!([2]))]
    #[case(".labels.a\\.b/c", json!(["dotted"]))]
    #[case(".labels['a.b/c']", json!(["dotted"]))]
    fn paths(#[case] path: &str, #[case] expected: Value) {
        let object = json!({
            "spec": {"a": "x"},
            "list": [{"type": "a", "n": 1}, {"type": "b", "n": 2, "extra": [1]}],
            "labels": {"a.b/c": "dotted"},
        });
        assert_eq!(json!(find(&parse(path).unwrap(), &object)), expected);
    }

    #[rstest]
    #[case(".a[")]
    #[case(".a..b")]
    #[case(".a[x]")]
    #[case(".a[?(@.b==c)]")]
    fn what_is_no_path(#[case] path: &str) {
        assert_eq!(parse(path), None);
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "[.$@{}\\[\\]'\"?()=!*a0\\\\ é-]{0,16}") {
            parse(&text);
        }
    }
}
