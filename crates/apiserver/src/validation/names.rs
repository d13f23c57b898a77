//! Forms of names; each function returns the rules a name breaks.

const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const LABEL_1035: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const WILDCARD: &str = "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character (e.g. '*.example.com', regex used for validation is '\\*\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const QUALIFIED_PART: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const CONFIG_KEY: &str = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";
const ENV_NAME: &str = "a valid environment variable name must consist only of printable ASCII characters other than '='";

fn too_long(limit: usize) -> String {
    format!("must be no more than {limit} bytes")
}

fn is_label(text: &str) -> bool {
    let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    !text.is_empty() && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

fn is_subdomain(text: &str) -> bool {
    text.split('.').all(is_label)
}

fn is_qualified_part(text: &str) -> bool {
    let inner = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.');
    let ends = |c: Option<u8>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    text.bytes().all(inner) && ends(text.bytes().next()) && ends(text.bytes().last())
}

fn check(fits: bool, length: usize, limit: usize, rule: &str) -> Vec<String> {
    let mut broken = Vec::new();
    if length > limit {
        broken.push(too_long(limit));
    }
    if !fits {
        broken.push(rule.to_owned());
    }
    broken
}

/// A label of RFC 1123: namespaces, containers, volumes.
pub(super) fn label(text: &str) -> Vec<String> {
    check(is_label(text), text.len(), 63, LABEL)
}

/// A label of RFC 1035: Services.
pub(super) fn label_1035(text: &str) -> Vec<String> {
    let fits = is_label(text) && text.starts_with(|c: char| c.is_ascii_lowercase());
    check(fits, text.len(), 63, LABEL_1035)
}

/// A subdomain of RFC 1123: most names.
pub(super) fn subdomain(text: &str) -> Vec<String> {
    check(is_subdomain(text), text.len(), 253, SUBDOMAIN)
}

/// What can stand between two slashes of a path, such as `system:node`
/// (`IsValidPathSegmentName`, k8s.io/apimachinery).
pub(super) fn path_segment(text: &str) -> Vec<String> {
    if [".", ".."].contains(&text) {
        return vec![format!("may not be '{text}'")];
    }
    ['/', '%']
        .into_iter()
        .filter(|letter| text.contains(*letter))
        .map(|letter| format!("may not contain '{letter}'"))
        .collect()
}

/// A subdomain after `*.`.
pub(super) fn wildcard(text: &str) -> Vec<String> {
    let fits = text.strip_prefix("*.").is_some_and(is_subdomain);
    check(fits, text.len(), 253, WILDCARD)
}

/// A key of a label or annotation: an optional domain, a slash, a name.
pub(super) fn qualified(text: &str) -> Vec<String> {
    let mut broken = Vec::new();
    let name = match text.split_once('/') {
        None => text,
        Some((_, rest)) if rest.contains('/') => {
            return vec![format!(
                "a qualified name {QUALIFIED_PART} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
            )];
        }
        Some(("", name)) => {
            broken.push("prefix part must be non-empty".to_owned());
            name
        }
        Some((prefix, name)) => {
            broken.extend(
                subdomain(prefix)
                    .into_iter()
                    .map(|rule| format!("prefix part {rule}")),
            );
            name
        }
    };
    if name.is_empty() {
        broken.push("name part must be non-empty".to_owned());
    } else {
        broken.extend(
            check(is_qualified_part(name), name.len(), 63, QUALIFIED_PART)
                .into_iter()
                .map(|rule| format!("name part {rule}")),
        );
    }
    broken
}

/// The value of a label.
pub(super) fn label_value(text: &str) -> Vec<String> {
    check(
        text.is_empty() || is_qualified_part(text),
        text.len(),
        63,
        LABEL_VALUE,
    )
}

/// A key of a ConfigMap or Secret.
pub(super) fn config_key(text: &str) -> Vec<String> {
    let inner = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.');
    let mut broken = check(
        !text.is_empty() && text.bytes().all(inner),
        text.len(),
        253,
        CONFIG_KEY,
    );
    if text == "." || text == ".." {
        broken.push(format!("must not be '{text}'"));
    } else if text.starts_with("..") {
        broken.push("must not start with '..'".to_owned());
    }
    broken
}

/// The name of an environment variable.
pub(super) fn env_name(text: &str) -> Vec<String> {
    let fits = !text.is_empty()
        && text
            .bytes()
            .all(|c| (b' '..=b'~').contains(&c) && c != b'=');
    if fits {
        Vec::new()
    } else {
        vec![ENV_NAME.to_owned()]
    }
}

/// The name of a container's port (RFC 6335).
pub(super) fn port_name(text: &str) -> Vec<String> {
    let mut broken = Vec::new();
    if text.len() > 15 {
        broken.push(too_long(15));
    }
    if !text
        .bytes()
        .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-')
    {
        broken.push(
            "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned(),
        );
    }
    if !text.bytes().any(|c| c.is_ascii_lowercase()) {
        broken.push("must contain at least one letter (a-z)".to_owned());
    }
    if text.contains("--") {
        broken.push("must not contain consecutive hyphens".to_owned());
    }
    if text.starts_with('-') || text.ends_with('-') {
        broken.push("must not begin or end with a hyphen".to_owned());
    }
    broken
}
