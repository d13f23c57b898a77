//! Rules of ConfigMaps, Secrets and Events.

use super::names;
use super::{Errors, FieldError, FieldErrorKind, entries, immutable, push_all, text};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

/// All values of a ConfigMap or Secret together, bytes.
const SIZE_LIMIT: usize = 1024 * 1024;
const FROZEN: &str = "field is immutable when `immutable` is set";

pub(super) fn config_map(new: &Value, old: Option<&Value>, errors: &mut Errors) {
    let mut size = 0;
    for (key, value) in entries(new, "data") {
        let field = format!("data[{key}]");
        push_all(&field, key, names::config_key(key), errors);
        if !new["binaryData"][key].is_null() {
            errors.push(FieldError::invalid(
                field,
                key,
                "duplicate of key present in binaryData",
            ));
        }
        size += value.as_str().map_or(0, str::len);
    }
    size += binary("binaryData", new, errors);
    too_long("", size, errors);
    if let Some(old) = old {
        frozen(old, new, &["data", "binaryData"], errors);
    }
}

pub(super) fn secret(new: &Value, old: Option<&Value>, errors: &mut Errors) {
    let size = binary("data", new, errors);
    too_long("data", size, errors);
    let required: &[&str] = match text(new, "type") {
        "kubernetes.io/tls" => &["tls.crt", "tls.key"],
        "kubernetes.io/dockerconfigjson" => &[".dockerconfigjson"],
        "kubernetes.io/dockercfg" => &[".dockercfg"],
        "kubernetes.io/ssh-auth" => &["ssh-privatekey"],
        _ => &[],
    };
    for key in required {
        if new["data"][*key].is_null() {
            errors.push(FieldError::required(format!("data[{key}]"), ""));
        }
    }
    if let Some(old) = old {
        immutable("type", &old["type"], &new["type"], errors);
        frozen(old, new, &["data"], errors);
    }
}

/// Checks keys and base64 values; returns their decoded size.
fn binary(name: &str, object: &Value, errors: &mut Errors) -> usize {
    let mut size = 0;
    for (key, value) in entries(object, name) {
        let field = format!("{name}[{key}]");
        push_all(&field, key, names::config_key(key), errors);
        let encoded = value.as_str().unwrap_or_default();
        match BASE64.decode(encoded) {
            Ok(decoded) => size += decoded.len(),
            // The value itself may be a secret: it is not shown.
            Err(error) => errors.push(FieldError::invalid(
                field,
                "<hidden>",
                format!("must be base64 (use stringData for plain text): {error}"),
            )),
        }
    }
    size
}

fn too_long(field: &str, size: usize, errors: &mut Errors) {
    if size > SIZE_LIMIT {
        errors.push(FieldError::new(
            field,
            FieldErrorKind::TooLong,
            Value::Null,
            format!("may not be more than {SIZE_LIMIT} bytes"),
        ));
    }
}

fn frozen(old: &Value, new: &Value, fields: &[&str], errors: &mut Errors) {
    if old["immutable"] != json!(true) {
        return;
    }
    if new["immutable"] != json!(true) {
        errors.push(FieldError::forbidden("immutable", FROZEN));
    }
    for field in fields {
        if old[*field] != new[*field] {
            errors.push(FieldError::forbidden(*field, FROZEN));
        }
    }
}

pub(super) fn event(object: &Value, errors: &mut Errors) {
    let about = text(&object["involvedObject"], "namespace");
    let namespace = text(&object["metadata"], "namespace");
    // Events about objects without a namespace live in the default one.
    let expected = if about.is_empty() { "default" } else { about };
    if !namespace.is_empty()
        && namespace != expected
        && !(about.is_empty() && namespace == "kube-system")
    {
        errors.push(FieldError::invalid(
            "involvedObject.namespace",
            about,
            "does not match event.namespace",
        ));
    }
}
