//! Label and field selectors of lists and watches.

use serde_json::Value;

use crate::registry::Resource;

/// A selector that cannot be used; the text names the part.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct SelectorError(String);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Test {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    Missing,
    Greater(i64),
    Less(i64),
}

/// A label selector: all requirements must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct LabelSelector(Vec<(String, Test)>);

impl LabelSelector {
    /// Reads the string form: `a=b,c!=d,e in (f,g),h notin (i),j,!k,l>1`.
    ///
    /// # Errors
    /// Says which part cannot be understood.
    pub(crate) fn parse(text: &str) -> Result<Self, SelectorError> {
        split_outside_parentheses(text)
            .into_iter()
            .map(str::trim)
            .filter(|p| !p.is_empty())
            .map(parse_requirement)
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// Whether the object's labels meet all requirements.
    pub(crate) fn matches(&self, object: &Value) -> bool {
        let labels = &object["metadata"]["labels"];
        self.0.iter().all(|(key, test)| {
            let value = labels.get(key).and_then(Value::as_str);
            match test {
                Test::In(values) => value.is_some_and(|v| values.iter().any(|w| w == v)),
                Test::NotIn(values) => !value.is_some_and(|v| values.iter().any(|w| w == v)),
                Test::Exists => value.is_some(),
                Test::Missing => value.is_none(),
                Test::Greater(n) => value
                    .and_then(|v| v.parse::<i64>().ok())
                    .is_some_and(|v| v > *n),
                Test::Less(n) => value
                    .and_then(|v| v.parse::<i64>().ok())
                    .is_some_and(|v| v < *n),
            }
        })
    }
}

fn split_outside_parentheses(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut depth, mut start) = (0_i32, 0);
    for (i, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth <= 0 => {
                parts.push(&text[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn parse_requirement(part: &str) -> Result<(String, Test), SelectorError> {
    let bad = || SelectorError(format!("unable to parse requirement: {part:?}"));
    let key = |k: &str| -> Result<String, SelectorError> {
        let k = k.trim();
        let fine = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
        if k.is_empty() || !k.chars().all(fine) {
            return Err(bad());
        }
        Ok(k.to_owned())
    };
    let value = |v: &str| -> Result<String, SelectorError> {
        let v = v.trim();
        let fine = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if v.len() > 63 || !v.chars().all(fine) {
            return Err(bad());
        }
        Ok(v.to_owned())
    };
    if let Some(rest) = part.strip_prefix('!')
        && !rest.contains('=')
    {
        return Ok((key(rest)?, Test::Missing));
    }
    if let Some(open) = part.find('(') {
        let (head, list) = part.split_at(open);
        let list = list
            .strip_prefix('(')
            .and_then(|l| l.strip_suffix(')'))
            .ok_or_else(bad)?;
        let values = list.split(',').map(value).collect::<Result<_, _>>()?;
        let mut words = head.split_whitespace();
        return match (words.next(), words.next(), words.next()) {
            (Some(k), Some("in"), None) => Ok((key(k)?, Test::In(values))),
            (Some(k), Some("notin"), None) => Ok((key(k)?, Test::NotIn(values))),
            _ => Err(bad()),
        };
    }
    if let Some((k, v)) = part.split_once("!=") {
        return Ok((key(k)?, Test::NotIn(vec![value(v)?])));
    }
    if let Some((k, v)) = part.split_once("==").or_else(|| part.split_once('=')) {
        return Ok((key(k)?, Test::In(vec![value(v)?])));
    }
    if let Some((k, v)) = part.split_once('>') {
        return Ok((key(k)?, Test::Greater(v.trim().parse().map_err(|_| bad())?)));
    }
    if let Some((k, v)) = part.split_once('<') {
        return Ok((key(k)?, Test::Less(v.trim().parse().map_err(|_| bad())?)));
    }
    Ok((key(part)?, Test::Exists))
}

/// A field selector: all fields must (not) have the values.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct FieldSelector(Vec<FieldTest>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct FieldTest {
    field: String,
    pointer: String,
    value: String,
    equal: bool,
}

impl FieldSelector {
    /// Reads the string form: `a.b=c,d.e!=f`, and checks that the fields may
    /// be used with the resource.
    ///
    /// # Errors
    /// Says which part or field cannot be used.
    pub(crate) fn parse(text: &str, resource: &Resource) -> Result<Self, SelectorError> {
        let mut tests = Vec::new();
        for part in split_unescaped(text) {
            let (field, value, equal) = if let Some((f, v)) = part.split_once("!=") {
                (f, v, false)
            } else if let Some((f, v)) = part.split_once("==").or_else(|| part.split_once('=')) {
                (f, v, true)
            } else {
                return Err(SelectorError(format!(
                    "invalid selector: '{text}'; can't understand '{part}'"
                )));
            };
            if !is_selectable(field, resource) {
                return Err(SelectorError(format!("field label not supported: {field}")));
            }
            tests.push(FieldTest {
                field: field.to_owned(),
                pointer: pointer(field, resource),
                value: unescape(value),
                equal,
            });
        }
        Ok(Self(tests))
    }

    /// Whether the object (in its storage form) has the values.
    pub(crate) fn matches(&self, object: &Value) -> bool {
        self.0.iter().all(|test| {
            let found = match object.pointer(&test.pointer) {
                Some(Value::String(s)) => s.clone(),
                None | Some(Value::Null) => default_of(&test.field).to_owned(),
                Some(other) => other.to_string(),
            };
            (found == test.value) == test.equal
        })
    }
}

fn split_unescaped(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut escaped = false;
    for c in text.chars() {
        if c == ',' && !escaped {
            parts.push(String::new());
            continue;
        }
        escaped = c == '\\' && !escaped;
        if let Some(last) = parts.last_mut() {
            last.push(c);
        }
    }
    parts.retain(|p| !p.is_empty());
    parts
}

fn unescape(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        if c == '\\' {
            out.extend(chars.next());
        } else {
            out.push(c);
        }
    }
    out
}

/// What a field that is left out counts as.
fn default_of(field: &str) -> &'static str {
    match field {
        "spec.unschedulable" | "spec.hostNetwork" => "false",
        "status.replicas" => "0",
        _ => "",
    }
}

fn pointer(field: &str, resource: &Resource) -> String {
    let field = match (resource.stored_as.kind.as_str(), field) {
        // The old and the new API of events name fields differently; both are
        // looked up in the stored form.
        ("Event", "source") => "source.component",
        ("Event", "reportingController") => "reportingComponent",
        ("Event", f) if f.starts_with("regarding.") => {
            return format!(
                "/involvedObject/{}",
                f["regarding.".len()..].replace('.', "/")
            );
        }
        ("Pod", "status.podIPs") => "status.podIP",
        (_, field) => field,
    };
    format!("/{}", field.replace('.', "/"))
}

fn is_selectable(field: &str, resource: &Resource) -> bool {
    if field == "metadata.name" || (field == "metadata.namespace" && resource.namespaced) {
        return true;
    }
    if let Some(custom) = &resource.custom {
        return custom.selectable.iter().any(|f| f == field);
    }
    let fields: &[&str] = match resource.stored_as.kind.as_str() {
        "Pod" => &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.podIPs",
            "status.nominatedNodeName",
        ],
        "Event" => &[
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "regarding.kind",
            "regarding.namespace",
            "regarding.name",
            "regarding.uid",
            "regarding.apiVersion",
            "regarding.resourceVersion",
            "regarding.fieldPath",
            "reason",
            "reportingComponent",
            "reportingController",
            "source",
            "type",
        ],
        "Node" => &["spec.unschedulable"],
        "Namespace" => &["status.phase"],
        "Secret" => &["type"],
        "Service" => &["spec.clusterIP", "spec.type"],
        "ReplicaSet" => &["status.replicas"],
        _ => &[],
    };
    fields.contains(&field)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use serde_json::json;

    #[rstest]
    #[case("app=web", true)]
    #[case("app==web,tier!=db", true)]
    #[case("app!=web", false)]
    #[case("app in (web, api)", true)]
    #[case("app notin (web)", false)]
    #[case("missing notin (x)", true)]
    #[case("missing!=x", true)]
    #[case("app", true)]
    #[case("!app", false)]
    #[case("!missing", true)]
    #[case("size>3,size<9", true)]
    #[case("size>8", false)]
    #[case("", true)]
    fn label_selectors_select(#[case] text: &str, #[case] expected: bool) {
        let object = json!({"metadata": {"labels": {"app": "web", "size": "5"}}});
        assert_eq!(
            LabelSelector::parse(text).unwrap().matches(&object),
            expected
        );
    }

    #[rstest]
    #[case("app in web")]
    #[case("app in (web")]
    #[case("a b=c")]
    #[case("=x")]
    #[case("a=b c")]
    #[case("a>b")]
    fn broken_label_selectors_are_refused(#[case] text: &str) {
        assert!(LabelSelector::parse(text).is_err(), "{text}");
    }
}
