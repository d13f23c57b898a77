//! Rules of a pod's volumes.

use super::names;
use super::{Errors, FieldError, is_empty, items, push_all, text};
use serde_json::Value;
use std::collections::BTreeSet;

/// Checks the volumes and returns their names.
pub(super) fn volumes<'a>(field: &str, spec: &'a Value, errors: &mut Errors) -> BTreeSet<&'a str> {
    let mut known = BTreeSet::new();
    for (index, volume) in items(spec, "volumes") {
        let field = format!("{field}[{index}]");
        let name = text(volume, "name");
        if name.is_empty() {
            errors.push(FieldError::required(format!("{field}.name"), ""));
        } else {
            push_all(&format!("{field}.name"), name, names::label(name), errors);
            if !known.insert(name) {
                errors.push(FieldError::duplicate(format!("{field}.name"), name));
            }
        }
        source(&field, volume, errors);
    }
    known
}

fn source(field: &str, volume: &Value, errors: &mut Errors) {
    let sources: Vec<&str> = volume
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(key, value)| *key != "name" && !value.is_null())
        .map(|(key, _)| key.as_str())
        .collect();
    for extra in sources.iter().skip(1) {
        errors.push(FieldError::forbidden(
            format!("{field}.{extra}"),
            "may not specify more than 1 volume type",
        ));
    }
    let required = |at: &str, value: &Value, errors: &mut Errors| {
        if is_empty(value) {
            errors.push(FieldError::required(format!("{field}.{at}"), ""));
        }
    };
    match sources.first().copied() {
        None => errors.push(FieldError::required(field, "must specify a volume type")),
        Some("hostPath") => {
            let path = text(&volume["hostPath"], "path");
            required("hostPath.path", &volume["hostPath"]["path"], errors);
            if path.split('/').any(|part| part == "..") {
                errors.push(FieldError::invalid(
                    format!("{field}.hostPath.path"),
                    path,
                    "must not contain '..'",
                ));
            }
            super::one_of(
                &format!("{field}.hostPath.type"),
                &volume["hostPath"]["type"],
                &[
                    "",
                    "BlockDevice",
                    "CharDevice",
                    "Directory",
                    "DirectoryOrCreate",
                    "File",
                    "FileOrCreate",
                    "Socket",
                ],
                errors,
            );
        }
        Some("configMap") => {
            required("configMap.name", &volume["configMap"]["name"], errors);
            files(&format!("{field}.configMap"), &volume["configMap"], errors);
        }
        Some("secret") => {
            required("secret.secretName", &volume["secret"]["secretName"], errors);
            files(&format!("{field}.secret"), &volume["secret"], errors);
        }
        Some("downwardAPI") => {
            mode(
                &format!("{field}.downwardAPI.defaultMode"),
                &volume["downwardAPI"]["defaultMode"],
                errors,
            );
        }
        Some("projected") => {
            mode(
                &format!("{field}.projected.defaultMode"),
                &volume["projected"]["defaultMode"],
                errors,
            );
        }
        Some("persistentVolumeClaim") => required(
            "persistentVolumeClaim.claimName",
            &volume["persistentVolumeClaim"]["claimName"],
            errors,
        ),
        Some(_) => {}
    }
}

fn files(field: &str, source: &Value, errors: &mut Errors) {
    mode(
        &format!("{field}.defaultMode"),
        &source["defaultMode"],
        errors,
    );
    for (index, item) in items(source, "items") {
        let field = format!("{field}.items[{index}]");
        for key in ["key", "path"] {
            if text(item, key).is_empty() {
                errors.push(FieldError::required(format!("{field}.{key}"), ""));
            }
        }
        relative_path(&format!("{field}.path"), text(item, "path"), errors);
        mode(&format!("{field}.mode"), &item["mode"], errors);
    }
}

/// A path below the volume.
pub(super) fn relative_path(field: &str, path: &str, errors: &mut Errors) {
    if path.starts_with('/') {
        errors.push(FieldError::invalid(field, path, "must be a relative path"));
    }
    if path.split('/').any(|part| part == "..") {
        errors.push(FieldError::invalid(field, path, "must not contain '..'"));
    }
}

fn mode(field: &str, value: &Value, errors: &mut Errors) {
    if value
        .as_i64()
        .is_some_and(|mode| !(0..=0o777).contains(&mode))
    {
        errors.push(FieldError::invalid(
            field,
            value.clone(),
            "must be a number between 0 and 0777 (octal), both inclusive",
        ));
    }
}
