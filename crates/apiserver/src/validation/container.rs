//! Rules of a pod's containers.

use super::names;
use super::quantity;
use super::volume;
use super::{
    Errors, FieldError, entries, ip, is_empty, items, not_negative, one_of, port_number,
    port_or_name, push_all, text,
};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// A container without its ports.
pub(super) fn container(
    field: &str,
    container: &Value,
    volumes: &BTreeSet<&str>,
    errors: &mut Errors,
) {
    let image = text(container, "image");
    if image.is_empty() {
        errors.push(FieldError::required(format!("{field}.image"), ""));
    } else if image.trim() != image {
        errors.push(FieldError::invalid(
            format!("{field}.image"),
            image,
            "must not have leading or trailing whitespace",
        ));
    }
    one_of(
        &format!("{field}.imagePullPolicy"),
        &container["imagePullPolicy"],
        &["Always", "IfNotPresent", "Never"],
        errors,
    );
    one_of(
        &format!("{field}.terminationMessagePolicy"),
        &container["terminationMessagePolicy"],
        &["File", "FallbackToLogsOnError"],
        errors,
    );
    environment(field, container, errors);
    mounts(field, container, volumes, errors);
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if !container[name].is_null() {
            probe(&format!("{field}.{name}"), name, &container[name], errors);
        }
    }
    for name in ["postStart", "preStop"] {
        let hook = &container["lifecycle"][name];
        if !hook.is_null() {
            handler(
                &format!("{field}.lifecycle.{name}"),
                hook,
                &["exec", "httpGet", "tcpSocket", "sleep"],
                errors,
            );
        }
    }
    resources(field, &container["resources"], errors);
}

/// A container's ports; `host_ports` gathers those of the whole pod.
pub(super) fn ports<'a>(
    field: &str,
    container: &'a Value,
    host_network: bool,
    host_ports: &mut BTreeSet<(i64, &'a str, &'a str)>,
    errors: &mut Errors,
) {
    let mut port_names = BTreeSet::new();
    for (index, port) in items(container, "ports") {
        let field = format!("{field}.ports[{index}]");
        let name = text(port, "name");
        if !name.is_empty() {
            push_all(
                &format!("{field}.name"),
                name,
                names::port_name(name),
                errors,
            );
            if !port_names.insert(name) {
                errors.push(FieldError::duplicate(format!("{field}.name"), name));
            }
        }
        let number = &port["containerPort"];
        if number.is_null() || *number == json!(0) {
            errors.push(FieldError::required(format!("{field}.containerPort"), ""));
        } else {
            port_number(&format!("{field}.containerPort"), number, errors);
        }
        if text(port, "protocol").is_empty() {
            errors.push(FieldError::required(format!("{field}.protocol"), ""));
        }
        one_of(
            &format!("{field}.protocol"),
            &port["protocol"],
            &["SCTP", "TCP", "UDP"],
            errors,
        );
        let host_ip = text(port, "hostIP");
        if !host_ip.is_empty() {
            ip(&format!("{field}.hostIP"), host_ip, errors);
        }
        let Some(host) = port["hostPort"].as_i64().filter(|number| *number != 0) else {
            continue;
        };
        port_number(&format!("{field}.hostPort"), &port["hostPort"], errors);
        if host_network && port["hostPort"] != *number {
            errors.push(FieldError::invalid(
                format!("{field}.containerPort"),
                number.clone(),
                "must match `hostPort` when `hostNetwork` is true",
            ));
        }
        let protocol = text(port, "protocol");
        if !host_ports.insert((host, protocol, host_ip)) {
            errors.push(FieldError::duplicate(
                format!("{field}.hostPort"),
                format!("{protocol}/{host_ip}/{host}"),
            ));
        }
    }
}

fn environment(field: &str, container: &Value, errors: &mut Errors) {
    for (index, variable) in items(container, "env") {
        let field = format!("{field}.env[{index}]");
        let name = text(variable, "name");
        if name.is_empty() {
            errors.push(FieldError::required(format!("{field}.name"), ""));
        } else {
            push_all(
                &format!("{field}.name"),
                name,
                names::env_name(name),
                errors,
            );
        }
        let from = &variable["valueFrom"];
        if from.is_null() {
            continue;
        }
        let field = format!("{field}.valueFrom");
        if !text(variable, "value").is_empty() {
            errors.push(FieldError::invalid(
                field.clone(),
                "",
                "may not be specified when `value` is not empty",
            ));
        }
        let sources: Vec<&str> = from
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(_, source)| !source.is_null())
            .map(|(key, _)| key.as_str())
            .collect();
        match sources.as_slice() {
            [] => errors.push(FieldError::invalid(
                field.clone(),
                "",
                "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef`",
            )),
            [_] => {}
            _ => errors.push(FieldError::invalid(
                field.clone(),
                "",
                "may not have more than one field specified at a time",
            )),
        }
        for reference in ["configMapKeyRef", "secretKeyRef"] {
            let source = &from[reference];
            if source.is_null() {
                continue;
            }
            for key in ["name", "key"] {
                if text(source, key).is_empty() {
                    errors.push(FieldError::required(
                        format!("{field}.{reference}.{key}"),
                        "",
                    ));
                }
            }
        }
        if !from["fieldRef"].is_null() {
            field_path(
                &format!("{field}.fieldRef.fieldPath"),
                text(&from["fieldRef"], "fieldPath"),
                errors,
            );
        }
        if !from["resourceFieldRef"].is_null()
            && text(&from["resourceFieldRef"], "resource").is_empty()
        {
            errors.push(FieldError::required(
                format!("{field}.resourceFieldRef.resource"),
                "",
            ));
        }
    }
    for (index, source) in items(container, "envFrom") {
        let field = format!("{field}.envFrom[{index}]");
        match (
            source["configMapRef"].is_null(),
            source["secretRef"].is_null(),
        ) {
            (true, true) => errors.push(FieldError::invalid(
                field,
                "",
                "must specify one of: `configMapRef` or `secretRef`",
            )),
            (false, false) => errors.push(FieldError::invalid(
                field,
                "",
                "may not have more than one field specified at a time",
            )),
            (no_map, _) => {
                let reference = if no_map { "secretRef" } else { "configMapRef" };
                if text(&source[reference], "name").is_empty() {
                    errors.push(FieldError::required(
                        format!("{field}.{reference}.name"),
                        "",
                    ));
                }
            }
        }
    }
}

fn field_path(field: &str, path: &str, errors: &mut Errors) {
    const PATHS: [&str; 11] = [
        "metadata.name",
        "metadata.namespace",
        "metadata.uid",
        "spec.nodeName",
        "spec.serviceAccountName",
        "status.hostIP",
        "status.hostIPs",
        "status.podIP",
        "status.podIPs",
        "metadata.labels",
        "metadata.annotations",
    ];
    if path.is_empty() {
        errors.push(FieldError::required(field, ""));
        return;
    }
    let subscript = ["metadata.labels['", "metadata.annotations['"]
        .iter()
        .any(|prefix| path.starts_with(prefix) && path.ends_with("']"));
    // The two maps as a whole are for volumes only.
    if !subscript && !PATHS[..9].contains(&path) {
        errors.push(FieldError::not_supported(field, path, &PATHS[..9]));
    }
}

fn mounts(field: &str, container: &Value, volumes: &BTreeSet<&str>, errors: &mut Errors) {
    let mut paths = BTreeSet::new();
    for (index, mount) in items(container, "volumeMounts") {
        let field = format!("{field}.volumeMounts[{index}]");
        let name = text(mount, "name");
        if name.is_empty() {
            errors.push(FieldError::required(format!("{field}.name"), ""));
        } else if !volumes.contains(name) {
            errors.push(FieldError::not_found(format!("{field}.name"), name));
        }
        let path = text(mount, "mountPath");
        if path.is_empty() {
            errors.push(FieldError::required(format!("{field}.mountPath"), ""));
        } else if !paths.insert(path) {
            errors.push(FieldError::invalid(
                format!("{field}.mountPath"),
                path,
                "must be unique",
            ));
        }
        volume::relative_path(&format!("{field}.subPath"), text(mount, "subPath"), errors);
    }
}

fn probe(field: &str, name: &str, probe: &Value, errors: &mut Errors) {
    handler(
        field,
        probe,
        &["exec", "httpGet", "tcpSocket", "grpc"],
        errors,
    );
    for key in [
        "initialDelaySeconds",
        "timeoutSeconds",
        "periodSeconds",
        "successThreshold",
        "failureThreshold",
    ] {
        not_negative(&format!("{field}.{key}"), &probe[key], errors);
    }
    if name != "readinessProbe"
        && probe["successThreshold"]
            .as_i64()
            .is_some_and(|count| count != 1)
    {
        errors.push(FieldError::invalid(
            format!("{field}.successThreshold"),
            probe["successThreshold"].clone(),
            "must be 1",
        ));
    }
}

fn handler(field: &str, handler: &Value, kinds: &[&str], errors: &mut Errors) {
    let given: Vec<&&str> = kinds
        .iter()
        .filter(|kind| !handler[**kind].is_null())
        .collect();
    if given.is_empty() {
        errors.push(FieldError::required(field, "must specify a handler type"));
    }
    for extra in given.iter().skip(1) {
        errors.push(FieldError::forbidden(
            format!("{field}.{extra}"),
            "may not specify more than 1 handler type",
        ));
    }
    if !handler["exec"].is_null() && is_empty(&handler["exec"]["command"]) {
        errors.push(FieldError::required(format!("{field}.exec.command"), ""));
    }
    if !handler["httpGet"].is_null() {
        let get = &handler["httpGet"];
        if text(get, "path").is_empty() {
            errors.push(FieldError::required(format!("{field}.httpGet.path"), ""));
        }
        port_or_name(&format!("{field}.httpGet.port"), &get["port"], errors);
        one_of(
            &format!("{field}.httpGet.scheme"),
            &get["scheme"],
            &["HTTP", "HTTPS"],
            errors,
        );
    }
    if !handler["tcpSocket"].is_null() {
        port_or_name(
            &format!("{field}.tcpSocket.port"),
            &handler["tcpSocket"]["port"],
            errors,
        );
    }
    if !handler["grpc"].is_null() {
        port_number(
            &format!("{field}.grpc.port"),
            &handler["grpc"]["port"],
            errors,
        );
    }
}

fn resources(field: &str, resources: &Value, errors: &mut Errors) {
    for list in ["limits", "requests"] {
        for (name, value) in entries(resources, list) {
            let field = format!("{field}.resources.{list}[{name}]");
            let text = value.as_str().unwrap_or_default();
            match quantity::parse(text) {
                None => errors.push(FieldError::invalid(
                    field,
                    value.clone(),
                    "must be a quantity: a number with an optional suffix such as m, k, M, G, Ki, Mi, Gi",
                )),
                Some(amount) if amount < 0 => errors.push(FieldError::invalid(
                    field,
                    value.clone(),
                    super::NOT_NEGATIVE,
                )),
                Some(amount) if list == "requests" => {
                    let limit = resources["limits"][name].as_str().unwrap_or_default();
                    if quantity::parse(limit).is_some_and(|limit| amount > limit) {
                        errors.push(FieldError::invalid(
                            field,
                            value.clone(),
                            format!("must be less than or equal to {name} limit of {limit}"),
                        ));
                    }
                }
                Some(_) => {}
            }
        }
    }
}
