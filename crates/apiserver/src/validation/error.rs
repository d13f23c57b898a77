//! Errors about one field of an object, worded as Kubernetes words them.

use serde_json::Value;
use std::fmt;

/// What is wrong with a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldErrorKind {
    /// A required field is missing or empty.
    Required,
    /// The value breaks a rule.
    Invalid,
    /// The value has the wrong JSON type.
    TypeInvalid,
    /// The value is not one of those allowed.
    NotSupported,
    /// The value occurs twice where it may only once.
    Duplicate,
    /// The field may not be set, or not be changed.
    Forbidden,
    /// The value is longer than allowed.
    TooLong,
    /// The list has more entries than allowed.
    TooMany,
    /// The value refers to something that is not there.
    NotFound,
}

impl FieldErrorKind {
    /// The `reason` of the cause in a Status (`FieldValueInvalid`, …).
    pub fn reason(self) -> &'static str {
        match self {
            Self::Required => "FieldValueRequired",
            Self::Invalid => "FieldValueInvalid",
            Self::TypeInvalid => "FieldValueTypeInvalid",
            Self::NotSupported => "FieldValueNotSupported",
            Self::Duplicate => "FieldValueDuplicate",
            Self::Forbidden => "FieldValueForbidden",
            Self::TooLong => "FieldValueTooLong",
            Self::TooMany => "FieldValueTooMany",
            Self::NotFound => "FieldValueNotFound",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::Required => "Required value",
            Self::Invalid | Self::TypeInvalid => "Invalid value",
            Self::NotSupported => "Unsupported value",
            Self::Duplicate => "Duplicate value",
            Self::Forbidden => "Forbidden",
            Self::TooLong => "Too long",
            Self::TooMany => "Too many",
            Self::NotFound => "Not found",
        }
    }
}

/// An error about one field. `Display` is `PATH: TITLE: VALUE: DETAIL`.
#[derive(Clone, Debug, PartialEq)]
pub struct FieldError {
    /// Path of the field, for instance `spec.containers[0].image`.
    pub field: String,
    /// What is wrong.
    pub kind: FieldErrorKind,
    /// The offending value; not shown where Kubernetes does not show it.
    pub value: Value,
    /// The rule that was broken; may be empty.
    pub detail: String,
}

impl FieldError {
    /// An error about a field.
    pub fn new(
        field: impl Into<String>,
        kind: FieldErrorKind,
        value: impl Into<Value>,
        detail: impl Into<String>,
    ) -> Self {
        Self {
            field: field.into(),
            kind,
            value: value.into(),
            detail: detail.into(),
        }
    }

    /// A missing field.
    pub fn required(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(field, FieldErrorKind::Required, Value::Null, detail)
    }

    /// A value that breaks a rule.
    pub fn invalid(
        field: impl Into<String>,
        value: impl Into<Value>,
        detail: impl Into<String>,
    ) -> Self {
        Self::new(field, FieldErrorKind::Invalid, value, detail)
    }

    /// A field that may not be set or changed.
    pub fn forbidden(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(field, FieldErrorKind::Forbidden, Value::Null, detail)
    }

    /// A value that occurs twice.
    pub fn duplicate(field: impl Into<String>, value: impl Into<Value>) -> Self {
        Self::new(field, FieldErrorKind::Duplicate, value, "")
    }

    /// A reference to something that is not there.
    pub fn not_found(field: impl Into<String>, value: impl Into<Value>) -> Self {
        Self::new(field, FieldErrorKind::NotFound, value, "")
    }

    /// A value outside of an enumeration.
    pub fn not_supported(
        field: impl Into<String>,
        value: impl Into<Value>,
        supported: &[&str],
    ) -> Self {
        let list: Vec<String> = supported.iter().map(|word| format!("{word:?}")).collect();
        Self::new(
            field,
            FieldErrorKind::NotSupported,
            value,
            format!("supported values: {}", list.join(", ")),
        )
    }

    /// The message without the field, as a Status' cause has it.
    pub fn message(&self) -> String {
        let mut text = self.kind.title().to_owned();
        match self.kind {
            FieldErrorKind::Required | FieldErrorKind::Forbidden | FieldErrorKind::TooLong => {}
            _ => {
                text.push_str(": ");
                text.push_str(&shown(&self.value));
            }
        }
        if !self.detail.is_empty() {
            text.push_str(": ");
            text.push_str(&self.detail);
        }
        text
    }
}

/// Strings in quotes, everything else as JSON; long values are cut.
fn shown(value: &Value) -> String {
    let mut text = match value {
        Value::String(text) => format!("{text:?}"),
        other => other.to_string(),
    };
    const LIMIT: usize = 1024;
    if text.len() > LIMIT {
        let mut end = LIMIT;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push('…');
    }
    text
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.field.is_empty() {
            write!(f, "{}", self.message())
        } else {
            write!(f, "{}: {}", self.field, self.message())
        }
    }
}

impl std::error::Error for FieldError {}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case(
        FieldError::required("spec.containers[0].image", ""),
        "spec.containers[0].image: Required value"
    )]
    #[case(
        FieldError::invalid("spec.ports[0].port", 0, "must be between 1 and 65535, inclusive"),
        "spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive"
    )]
    #[case(
        FieldError::invalid("metadata.name", "A_b", "x"),
        "metadata.name: Invalid value: \"A_b\": x"
    )]
    #[case(FieldError::forbidden("spec", "no"), "spec: Forbidden: no")]
    #[case(FieldError::duplicate("a", "b"), "a: Duplicate value: \"b\"")]
    #[case(FieldError::not_supported("a", "b", &["c", "d"]),
        "a: Unsupported value: \"b\": supported values: \"c\", \"d\"")]
    #[case(FieldError::not_found("a", "b"), "a: Not found: \"b\"")]
    fn errors_read_as_kubernetes_writes_them(#[case] error: FieldError, #[case] text: &str) {
        assert_eq!(error.to_string(), text);
    }
}
