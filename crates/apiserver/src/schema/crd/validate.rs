//! Validation of a value against a structural schema.

use super::{INT_OR_STRING, flag};
use crate::schema::unknown::{is_integer, json_type};
use crate::validation::{FieldError, FieldErrorKind};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use regex_lite::Regex;
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::sync::{LazyLock, RwLock};

/// What is wrong with an object. `metadata` is for the rules that all kinds
/// share, and skipped here.
pub fn validate(schema: &Value, object: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    check(schema, object, "", &mut errors);
    errors
}

fn shown_path(path: &str) -> &str {
    if path.is_empty() { "object" } else { path }
}

fn check(schema: &Value, value: &Value, path: &str, errors: &mut Vec<FieldError>) {
    if value.is_null() && flag(schema, "nullable") {
        return;
    }
    if !type_fits(schema, value, path, errors) {
        return;
    }
    if let Some(allowed) = schema["enum"].as_array()
        && !allowed.contains(value)
    {
        let list: Vec<String> = allowed.iter().map(Value::to_string).collect();
        errors.push(FieldError::new(
            path,
            FieldErrorKind::NotSupported,
            value.clone(),
            format!("supported values: {}", list.join(", ")),
        ));
    }
    match value {
        Value::Object(map) => object(schema, map, path, errors),
        Value::Array(items) => list(schema, items, path, errors),
        Value::String(text) => string(schema, text, path, errors),
        Value::Number(_) => number(schema, value, path, errors),
        _ => {}
    }
    combined(schema, value, path, errors);
}

/// Checks the type; an error is added when it does not fit.
fn type_fits(schema: &Value, value: &Value, path: &str, errors: &mut Vec<FieldError>) -> bool {
    let expected = if flag(schema, INT_OR_STRING) {
        "integer,string"
    } else {
        match schema["type"].as_str() {
            Some(name) => name,
            None => return true,
        }
    };
    let fits = match expected {
        "integer,string" => value.is_string() || is_integer(value) && value.is_number(),
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_number() && is_integer(value),
        "number" => value.is_number(),
        _ => true,
    };
    if !fits {
        let found = json_type(value);
        errors.push(FieldError::new(
            path,
            FieldErrorKind::TypeInvalid,
            match value {
                Value::Array(_) | Value::Object(_) => Value::from(found.as_str()),
                other => other.clone(),
            },
            format!(
                "{} in body must be of type {expected}: {found:?}",
                shown_path(path)
            ),
        ));
    }
    fits
}

fn object(schema: &Value, map: &Map<String, Value>, path: &str, errors: &mut Vec<FieldError>) {
    let at = |name: &str| {
        if path.is_empty() {
            name.to_owned()
        } else {
            format!("{path}.{name}")
        }
    };
    for name in schema["required"].as_array().into_iter().flatten() {
        let name = name.as_str().unwrap_or_default();
        if !map.contains_key(name) {
            errors.push(FieldError::required(at(name), ""));
        }
    }
    for (name, value) in map {
        if path.is_empty() && matches!(name.as_str(), "metadata" | "apiVersion" | "kind") {
            continue;
        }
        if let Some(child) = schema["properties"].get(name) {
            check(child, value, &at(name), errors);
        } else if schema["additionalProperties"].is_object() {
            check(&schema["additionalProperties"], value, &at(name), errors);
        }
    }
    let length = map.len() as u64;
    if schema["minProperties"]
        .as_u64()
        .is_some_and(|limit| length < limit)
    {
        errors.push(FieldError::invalid(
            path,
            length,
            format!(
                "{} in body should have at least {} properties",
                shown_path(path),
                schema["minProperties"]
            ),
        ));
    }
    if let Some(limit) = schema["maxProperties"]
        .as_u64()
        .filter(|limit| length > *limit)
    {
        errors.push(FieldError::new(
            path,
            FieldErrorKind::TooMany,
            length,
            format!("must have at most {limit} items"),
        ));
    }
}

fn list(schema: &Value, items: &[Value], path: &str, errors: &mut Vec<FieldError>) {
    for (index, item) in items.iter().enumerate() {
        if schema["items"].is_object() {
            check(&schema["items"], item, &format!("{path}[{index}]"), errors);
        }
    }
    let length = items.len() as u64;
    if schema["minItems"]
        .as_u64()
        .is_some_and(|limit| length < limit)
    {
        errors.push(FieldError::invalid(
            path,
            length,
            format!(
                "{} in body should have at least {} items",
                shown_path(path),
                schema["minItems"]
            ),
        ));
    }
    if let Some(limit) = schema["maxItems"].as_u64().filter(|limit| length > *limit) {
        errors.push(FieldError::new(
            path,
            FieldErrorKind::TooMany,
            length,
            format!("must have at most {limit} items"),
        ));
    }
    let keys: Option<Vec<&str>> = match schema["x-kubernetes-list-type"].as_str() {
        Some("set") => Some(Vec::new()),
        Some("map") => schema["x-kubernetes-list-map-keys"]
            .as_array()
            .map(|keys| keys.iter().filter_map(Value::as_str).collect()),
        _ if flag(schema, "uniqueItems") => Some(Vec::new()),
        _ => None,
    };
    let Some(keys) = keys else { return };
    let identity = |item: &Value| -> Value {
        if keys.is_empty() {
            return item.clone();
        }
        keys.iter()
            .map(|key| ((*key).to_owned(), item[*key].clone()))
            .collect()
    };
    let mut seen: Vec<Value> = Vec::with_capacity(items.len());
    for (index, item) in items.iter().enumerate() {
        let identity = identity(item);
        if seen.contains(&identity) {
            errors.push(FieldError::duplicate(format!("{path}[{index}]"), identity));
        } else {
            seen.push(identity);
        }
    }
}

fn string(schema: &Value, text: &str, path: &str, errors: &mut Vec<FieldError>) {
    let length = text.chars().count() as u64;
    if schema["minLength"]
        .as_u64()
        .is_some_and(|limit| length < limit)
    {
        errors.push(FieldError::invalid(
            path,
            text,
            format!(
                "{} in body should be at least {} chars long",
                shown_path(path),
                schema["minLength"]
            ),
        ));
    }
    if let Some(limit) = schema["maxLength"].as_u64().filter(|limit| length > *limit) {
        errors.push(FieldError::new(
            path,
            FieldErrorKind::TooLong,
            Value::Null,
            format!("may not be more than {limit} bytes"),
        ));
    }
    if let Some(pattern) = schema["pattern"].as_str()
        && !pattern_matches(pattern, text)
    {
        errors.push(FieldError::invalid(
            path,
            text,
            format!("{} in body should match '{pattern}'", shown_path(path)),
        ));
    }
    if let Some(format) = schema["format"].as_str()
        && !format_fits(format, text)
    {
        errors.push(FieldError::invalid(
            path,
            text,
            format!(
                "{} in body must be of type {format}: {text:?}",
                shown_path(path)
            ),
        ));
    }
}

/// Whether the text matches somewhere, as RE2 searches. A pattern that this
/// engine cannot read (Unicode classes) matches everything.
fn pattern_matches(pattern: &str, text: &str) -> bool {
    /// Patterns come from definitions; the bound is for many generations of them.
    const CACHED: usize = 4096;
    static CACHE: LazyLock<RwLock<HashMap<String, Option<Regex>>>> = LazyLock::new(RwLock::default);
    let fits = |regex: &Option<Regex>| regex.as_ref().is_none_or(|regex| regex.is_match(text));
    if let Ok(cache) = CACHE.read()
        && let Some(regex) = cache.get(pattern)
    {
        return fits(regex);
    }
    let regex = Regex::new(pattern).ok();
    let result = fits(&regex);
    if let Ok(mut cache) = CACHE.write() {
        if cache.len() >= CACHED {
            cache.clear();
        }
        cache.insert(pattern.to_owned(), regex);
    }
    result
}

/// The formats Kubernetes checks that occur in practice; others are free text.
fn format_fits(format: &str, text: &str) -> bool {
    match format {
        "date-time" | "datetime" => text.parse::<jiff::Timestamp>().is_ok(),
        "date" => text.parse::<jiff::civil::Date>().is_ok(),
        "ipv4" => text.parse::<std::net::Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<std::net::Ipv6Addr>().is_ok(),
        "cidr" => text.parse::<ipnet::IpNet>().is_ok(),
        "byte" => BASE64.decode(text).is_ok(),
        "uuid" | "uuid3" | "uuid4" | "uuid5" => {
            let groups: Vec<&str> = text.split('-').collect();
            groups.iter().map(|group| group.len()).eq([8, 4, 4, 4, 12])
                && groups.concat().bytes().all(|c| c.is_ascii_hexdigit())
        }
        _ => true,
    }
}

fn number(schema: &Value, value: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let Some(amount) = value.as_f64() else { return };
    let mut broken = |text: String| {
        errors.push(FieldError::invalid(
            path,
            value.clone(),
            format!("{} in body should be {text}", shown_path(path)),
        ));
    };
    let limit = &schema["minimum"];
    if let Some(minimum) = limit.as_f64() {
        if flag(schema, "exclusiveMinimum") {
            if amount <= minimum {
                broken(format!("greater than {limit}"));
            }
        } else if amount < minimum {
            broken(format!("greater than or equal to {limit}"));
        }
    }
    let limit = &schema["maximum"];
    if let Some(maximum) = limit.as_f64() {
        if flag(schema, "exclusiveMaximum") {
            if amount >= maximum {
                broken(format!("less than {limit}"));
            }
        } else if amount > maximum {
            broken(format!("less than or equal to {limit}"));
        }
    }
    if let Some(divisor) = schema["multipleOf"]
        .as_f64()
        .filter(|divisor| *divisor != 0.0)
        && (amount / divisor).fract() != 0.0
    {
        broken(format!("a multiple of {}", schema["multipleOf"]));
    }
    match schema["format"].as_str() {
        Some("int32")
            if value
                .as_i64()
                .is_none_or(|number| i32::try_from(number).is_err()) =>
        {
            broken("a 32-bit integer".to_owned());
        }
        Some("int64")
            if value.as_i64().is_none() && amount.fract() == 0.0 && amount.abs() > 9.3e18 =>
        {
            broken("a 64-bit integer".to_owned());
        }
        _ => {}
    }
}

fn combined(schema: &Value, value: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let fits = |schema: &Value| {
        let mut found = Vec::new();
        check(schema, value, path, &mut found);
        found.is_empty()
    };
    let mut broken = |text: &str| {
        errors.push(FieldError::invalid(
            path,
            match value {
                Value::Array(_) | Value::Object(_) => Value::from(""),
                other => other.clone(),
            },
            format!("{:?} {text}", path),
        ));
    };
    if let Some(schemas) = schema["oneOf"].as_array() {
        match schemas.iter().filter(|schema| fits(schema)).count() {
            0 => broken("must validate one and only one schema (oneOf). Found none valid"),
            1 => {}
            count => broken(&format!(
                "must validate one and only one schema (oneOf). Found {count} valid alternatives"
            )),
        }
    }
    if let Some(schemas) = schema["anyOf"].as_array()
        && !schemas.is_empty()
        && !schemas.iter().any(fits)
    {
        broken("must validate at least one schema (anyOf)");
    }
    if schema["not"].is_object() && fits(&schema["not"]) {
        broken("must not validate the schema (not)");
    }
    for schema in schema["allOf"].as_array().into_iter().flatten() {
        check(schema, value, path, errors);
    }
}
