//! Rules of pods and pod templates.

use super::container;
use super::metadata;
use super::names;
use super::volume;
use super::{Errors, FieldError, ip, is_empty, items, not_negative, one_of, push_all, text};
use serde_json::{Value, json};
use std::collections::BTreeSet;

const UPDATE: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

pub(super) fn pod(new: &Value, old: Option<&Value>, errors: &mut Errors) {
    spec("spec", &new["spec"], errors);
    if let Some(old) = old {
        unchanged(&old["spec"], &new["spec"], errors);
    }
}

/// A pod's spec changes only where the running pod can follow.
fn unchanged(old: &Value, new: &Value, errors: &mut Errors) {
    let comparable = |spec: &Value| {
        let mut spec = spec.clone();
        if let Some(fields) = spec.as_object_mut() {
            fields.remove("activeDeadlineSeconds");
            fields.remove("tolerations");
            fields.remove("schedulingGates");
            // Added by the ephemeralcontainers subresource.
            fields.remove("ephemeralContainers");
            // Set once, by binding.
            if is_empty(&old["nodeName"]) {
                fields.remove("nodeName");
            }
            for list in ["containers", "initContainers"] {
                for container in fields
                    .get_mut(list)
                    .and_then(Value::as_array_mut)
                    .into_iter()
                    .flatten()
                    .filter_map(Value::as_object_mut)
                {
                    container.remove("image");
                }
            }
            fields.retain(|_, value| !value.is_null());
        }
        spec
    };
    let (before, after) = (comparable(old), comparable(new));
    if before != after {
        let changed: Vec<String> = before
            .as_object()
            .into_iter()
            .chain(after.as_object())
            .flat_map(|fields| fields.keys())
            .filter(|key| before[key.as_str()] != after[key.as_str()])
            .collect::<BTreeSet<_>>()
            .into_iter()
            .map(|key| format!("spec.{key}"))
            .collect();
        errors.push(FieldError::forbidden(
            "spec",
            format!("{UPDATE}; changed: {}", changed.join(", ")),
        ));
    }
    for (_, toleration) in items(old, "tolerations") {
        let kept = new["tolerations"]
            .as_array()
            .is_some_and(|list| list.contains(toleration));
        if !kept {
            errors.push(FieldError::forbidden(
                "spec.tolerations",
                "existing toleration can not be modified except its tolerationSeconds",
            ));
            break;
        }
    }
}

/// The pod template of a workload.
pub(super) fn template(field: &str, template: &Value, errors: &mut Errors) {
    metadata::labels(
        &format!("{field}.metadata.labels"),
        &template["metadata"]["labels"],
        errors,
    );
    spec(&format!("{field}.spec"), &template["spec"], errors);
    one_of(
        &format!("{field}.spec.restartPolicy"),
        &template["spec"]["restartPolicy"],
        &["Always"],
        errors,
    );
    if !template["spec"]["activeDeadlineSeconds"].is_null() {
        errors.push(FieldError::forbidden(
            format!("{field}.spec.activeDeadlineSeconds"),
            "activeDeadlineSeconds in a pod template of a workload is not supported",
        ));
    }
}

/// A pod's spec.
pub(super) fn spec(field: &str, spec: &Value, errors: &mut Errors) {
    let volumes = volume::volumes(&format!("{field}.volumes"), spec, errors);
    if is_empty(&spec["containers"]) {
        errors.push(FieldError::required(format!("{field}.containers"), ""));
    }
    let host_network = spec["hostNetwork"] == json!(true);
    let mut container_names = BTreeSet::new();
    let mut host_ports = BTreeSet::new();
    // Containers first: an init container may not take a container's name.
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        for (index, container) in items(spec, list) {
            let field = format!("{field}.{list}[{index}]");
            let name = text(container, "name");
            if name.is_empty() {
                errors.push(FieldError::required(format!("{field}.name"), ""));
            } else {
                push_all(&format!("{field}.name"), name, names::label(name), errors);
                if !container_names.insert(name) {
                    errors.push(FieldError::duplicate(format!("{field}.name"), name));
                }
            }
            one_of(
                &format!("{field}.restartPolicy"),
                &container["restartPolicy"],
                &["Always"],
                errors,
            );
            container::container(&field, container, &volumes, errors);
            container::ports(&field, container, host_network, &mut host_ports, errors);
        }
    }
    let at = |name: &str| format!("{field}.{name}");
    one_of(
        &at("restartPolicy"),
        &spec["restartPolicy"],
        &["Always", "OnFailure", "Never"],
        errors,
    );
    one_of(
        &at("dnsPolicy"),
        &spec["dnsPolicy"],
        &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"],
        errors,
    );
    dns(field, spec, errors);
    for name in ["hostname", "subdomain"] {
        let value = text(spec, name);
        if !value.is_empty() {
            push_all(&at(name), value, names::label(value), errors);
        }
    }
    for name in [
        "nodeName",
        "serviceAccountName",
        "priorityClassName",
        "runtimeClassName",
    ] {
        let value = text(spec, name);
        if !value.is_empty() {
            push_all(&at(name), value, names::subdomain(value), errors);
        }
    }
    metadata::labels(&at("nodeSelector"), &spec["nodeSelector"], errors);
    not_negative(
        &at("terminationGracePeriodSeconds"),
        &spec["terminationGracePeriodSeconds"],
        errors,
    );
    if spec["activeDeadlineSeconds"]
        .as_i64()
        .is_some_and(|seconds| seconds < 1)
    {
        errors.push(FieldError::invalid(
            at("activeDeadlineSeconds"),
            spec["activeDeadlineSeconds"].clone(),
            "must be between 1 and 2147483647, inclusive",
        ));
    }
    for (index, alias) in items(spec, "hostAliases") {
        ip(
            &format!("{field}.hostAliases[{index}].ip"),
            text(alias, "ip"),
            errors,
        );
        for (name_index, name) in items(alias, "hostnames") {
            let name = name.as_str().unwrap_or_default();
            push_all(
                &format!("{field}.hostAliases[{index}].hostnames[{name_index}]"),
                name,
                names::subdomain(name),
                errors,
            );
        }
    }
    tolerations(field, spec, errors);
    for (index, constraint) in items(spec, "topologySpreadConstraints") {
        let field = format!("{field}.topologySpreadConstraints[{index}]");
        if constraint["maxSkew"].as_i64().is_none_or(|skew| skew < 1) {
            errors.push(FieldError::invalid(
                format!("{field}.maxSkew"),
                constraint["maxSkew"].clone(),
                "must be greater than zero",
            ));
        }
        if text(constraint, "topologyKey").is_empty() {
            errors.push(FieldError::required(
                format!("{field}.topologyKey"),
                "can not be empty",
            ));
        }
        one_of(
            &format!("{field}.whenUnsatisfiable"),
            &constraint["whenUnsatisfiable"],
            &["DoNotSchedule", "ScheduleAnyway"],
            errors,
        );
        metadata::selector(
            &format!("{field}.labelSelector"),
            &constraint["labelSelector"],
            errors,
        );
    }
}

fn dns(field: &str, spec: &Value, errors: &mut Errors) {
    let config = &spec["dnsConfig"];
    if text(spec, "dnsPolicy") == "None" && is_empty(&config["nameservers"]) {
        errors.push(FieldError::required(
            format!("{field}.dnsConfig.nameservers"),
            "must provide at least one DNS nameserver when `dnsPolicy` is None",
        ));
    }
    for (index, server) in items(config, "nameservers") {
        ip(
            &format!("{field}.dnsConfig.nameservers[{index}]"),
            server.as_str().unwrap_or_default(),
            errors,
        );
    }
}

fn tolerations(field: &str, spec: &Value, errors: &mut Errors) {
    for (index, toleration) in items(spec, "tolerations") {
        let field = format!("{field}.tolerations[{index}]");
        let key = text(toleration, "key");
        let operator = text(toleration, "operator");
        if !key.is_empty() {
            push_all(&format!("{field}.key"), key, names::qualified(key), errors);
        } else if operator != "Exists" {
            errors.push(FieldError::invalid(
                format!("{field}.operator"),
                operator,
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
            ));
        }
        one_of(
            &format!("{field}.operator"),
            &toleration["operator"],
            &["", "Equal", "Exists", "Lt", "Gt"],
            errors,
        );
        one_of(
            &format!("{field}.effect"),
            &toleration["effect"],
            &["", "NoSchedule", "PreferNoSchedule", "NoExecute"],
            errors,
        );
        if operator == "Exists" && !text(toleration, "value").is_empty() {
            errors.push(FieldError::invalid(
                format!("{field}.operator"),
                operator,
                "value must be empty when `operator` is 'Exists'",
            ));
        }
    }
}
