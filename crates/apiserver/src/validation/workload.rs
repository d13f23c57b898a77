//! Rules of the kinds that make pods.

use super::metadata;
use super::pod;
use super::{Errors, FieldError, immutable, is_empty, not_negative, one_of, required_one_of, text};
use serde_json::Value;

/// What all of them share: selector and template.
fn common(spec: &Value, kind: &str, errors: &mut Errors) {
    let selector = &spec["selector"];
    if selector.is_null() {
        errors.push(FieldError::required("spec.selector", ""));
    } else {
        metadata::selector("spec.selector", selector, errors);
        if is_empty(&selector["matchLabels"]) && is_empty(&selector["matchExpressions"]) {
            errors.push(FieldError::invalid(
                "spec.selector",
                selector.clone(),
                format!("empty selector is invalid for {kind}"),
            ));
        }
    }
    if spec["template"].is_null() {
        errors.push(FieldError::required("spec.template", ""));
        return;
    }
    let labels = &spec["template"]["metadata"]["labels"];
    if !selector.is_null() && !metadata::matches(selector, labels) {
        errors.push(FieldError::invalid(
            "spec.template.metadata.labels",
            labels.clone(),
            "`selector` does not match template `labels`",
        ));
    }
    pod::template("spec.template", &spec["template"], errors);
    for field in ["replicas", "minReadySeconds", "revisionHistoryLimit"] {
        not_negative(&format!("spec.{field}"), &spec[field], errors);
    }
}

fn selector_unchanged(old: Option<&Value>, spec: &Value, errors: &mut Errors) {
    if let Some(old) = old {
        immutable(
            "spec.selector",
            &old["spec"]["selector"],
            &spec["selector"],
            errors,
        );
    }
}

pub(super) fn deployment(new: &Value, old: Option<&Value>, errors: &mut Errors) {
    let spec = &new["spec"];
    common(spec, "deployment", errors);
    selector_unchanged(old, spec, errors);
    let strategy = &spec["strategy"];
    required_one_of(
        "spec.strategy.type",
        &strategy["type"],
        &["Recreate", "RollingUpdate"],
        errors,
    );
    match text(strategy, "type") {
        "Recreate" if !strategy["rollingUpdate"].is_null() => errors.push(FieldError::forbidden(
            "spec.strategy.rollingUpdate",
            "may not be specified when strategy `type` is 'Recreate'",
        )),
        "RollingUpdate" => rolling(
            "spec.strategy.rollingUpdate",
            &strategy["rollingUpdate"],
            errors,
        ),
        _ => {}
    }
    if let Some(deadline) = spec["progressDeadlineSeconds"].as_i64() {
        not_negative(
            "spec.progressDeadlineSeconds",
            &spec["progressDeadlineSeconds"],
            errors,
        );
        if deadline <= spec["minReadySeconds"].as_i64().unwrap_or(0) {
            errors.push(FieldError::invalid(
                "spec.progressDeadlineSeconds",
                deadline,
                "must be greater than minReadySeconds",
            ));
        }
    }
}

/// `maxSurge` and `maxUnavailable`: numbers or percentages, not both zero.
fn rolling(field: &str, rolling: &Value, errors: &mut Errors) {
    let mut zero = 0;
    for name in ["maxUnavailable", "maxSurge"] {
        let value = &rolling[name];
        let at = format!("{field}.{name}");
        match value {
            Value::Null => zero += 1,
            Value::String(percent) => match percent.strip_suffix('%').map(str::parse::<u32>) {
                Some(Ok(number)) => {
                    zero += u32::from(number == 0);
                    if name == "maxUnavailable" && number > 100 {
                        errors.push(FieldError::invalid(at, percent.as_str(), "must not be greater than 100%"));
                    }
                }
                _ => errors.push(FieldError::invalid(
                    at,
                    percent.as_str(),
                    "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')",
                )),
            },
            number => {
                not_negative(&at, number, errors);
                zero += u32::from(number.as_i64() == Some(0));
            }
        }
    }
    if zero == 2 {
        errors.push(FieldError::invalid(
            format!("{field}.maxUnavailable"),
            rolling["maxUnavailable"].clone(),
            "may not be 0 when `maxSurge` is 0",
        ));
    }
}

pub(super) fn replica_set(new: &Value, old: Option<&Value>, errors: &mut Errors) {
    let spec = &new["spec"];
    common(spec, "replicaset", errors);
    selector_unchanged(old, spec, errors);
}

pub(super) fn daemon_set(new: &Value, old: Option<&Value>, errors: &mut Errors) {
    let spec = &new["spec"];
    common(spec, "daemonset", errors);
    selector_unchanged(old, spec, errors);
    let strategy = &spec["updateStrategy"];
    required_one_of(
        "spec.updateStrategy.type",
        &strategy["type"],
        &["OnDelete", "RollingUpdate"],
        errors,
    );
    if text(strategy, "type") == "RollingUpdate" {
        rolling(
            "spec.updateStrategy.rollingUpdate",
            &strategy["rollingUpdate"],
            errors,
        );
    }
}

pub(super) fn stateful_set(new: &Value, old: Option<&Value>, errors: &mut Errors) {
    let spec = &new["spec"];
    common(spec, "statefulset", errors);
    required_one_of(
        "spec.podManagementPolicy",
        &spec["podManagementPolicy"],
        &["OrderedReady", "Parallel"],
        errors,
    );
    let strategy = &spec["updateStrategy"];
    required_one_of(
        "spec.updateStrategy.type",
        &strategy["type"],
        &["OnDelete", "RollingUpdate"],
        errors,
    );
    not_negative(
        "spec.updateStrategy.rollingUpdate.partition",
        &strategy["rollingUpdate"]["partition"],
        errors,
    );
    for name in ["whenDeleted", "whenScaled"] {
        one_of(
            &format!("spec.persistentVolumeClaimRetentionPolicy.{name}"),
            &spec["persistentVolumeClaimRetentionPolicy"][name],
            &["Delete", "Retain"],
            errors,
        );
    }
    let Some(old) = old else { return };
    const CHANGEABLE: [&str; 7] = [
        "replicas",
        "ordinals",
        "template",
        "updateStrategy",
        "revisionHistoryLimit",
        "persistentVolumeClaimRetentionPolicy",
        "minReadySeconds",
    ];
    let fixed = |spec: &Value| {
        let mut spec = spec.clone();
        if let Some(fields) = spec.as_object_mut() {
            fields.retain(|key, value| !CHANGEABLE.contains(&key.as_str()) && !value.is_null());
        }
        spec
    };
    if fixed(&old["spec"]) != fixed(spec) {
        errors.push(FieldError::forbidden(
            "spec",
            "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden",
        ));
    }
}

pub(super) fn revision(new: &Value, old: Option<&Value>, errors: &mut Errors) {
    not_negative("revision", &new["revision"], errors);
    if let Some(old) = old {
        immutable("data", &old["data"], &new["data"], errors);
    }
}
