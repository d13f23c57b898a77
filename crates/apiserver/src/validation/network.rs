//! Rules of NetworkPolicies, Ingresses and IngressClasses.

use super::metadata;
use super::names;
use super::{
    Errors, FieldError, cidr, immutable, is_empty, items, one_of, port_number, port_or_name,
    push_all, text,
};
use serde_json::Value;
use std::net::IpAddr;

pub(super) fn policy(object: &Value, errors: &mut Errors) {
    let spec = &object["spec"];
    metadata::selector("spec.podSelector", &spec["podSelector"], errors);
    for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
        for (index, rule) in items(spec, direction) {
            let field = format!("spec.{direction}[{index}]");
            for (index, port) in items(rule, "ports") {
                policy_port(&format!("{field}.ports[{index}]"), port, errors);
            }
            for (index, peer) in items(rule, peers) {
                policy_peer(&format!("{field}.{peers}[{index}]"), peer, errors);
            }
        }
    }
    if spec["policyTypes"]
        .as_array()
        .is_some_and(|types| types.len() > 2)
    {
        errors.push(FieldError::invalid(
            "spec.policyTypes",
            spec["policyTypes"].clone(),
            "may not specify more than two policyTypes",
        ));
        return;
    }
    for (index, kind) in items(spec, "policyTypes") {
        one_of(
            &format!("spec.policyTypes[{index}]"),
            kind,
            &["Egress", "Ingress"],
            errors,
        );
    }
}

fn policy_port(field: &str, port: &Value, errors: &mut Errors) {
    one_of(
        &format!("{field}.protocol"),
        &port["protocol"],
        &["SCTP", "TCP", "UDP"],
        errors,
    );
    if !port["port"].is_null() {
        port_or_name(&format!("{field}.port"), &port["port"], errors);
    }
    let end = &port["endPort"];
    if end.is_null() {
        return;
    }
    let field = format!("{field}.endPort");
    match &port["port"] {
        Value::Null => errors.push(FieldError::invalid(
            field,
            end.clone(),
            "may not be specified when `port` is not specified",
        )),
        Value::String(_) => errors.push(FieldError::invalid(
            field,
            end.clone(),
            "may not be specified when `port` is non-numeric",
        )),
        start => {
            if end.as_i64() < start.as_i64() {
                errors.push(FieldError::invalid(
                    field.clone(),
                    end.clone(),
                    "must be greater than or equal to `port`",
                ));
            }
            port_number(&field, end, errors);
        }
    }
}

fn policy_peer(field: &str, peer: &Value, errors: &mut Errors) {
    let mut given = 0;
    for name in ["podSelector", "namespaceSelector"] {
        if !peer[name].is_null() {
            given += 1;
            metadata::selector(&format!("{field}.{name}"), &peer[name], errors);
        }
    }
    let block = &peer["ipBlock"];
    if block.is_null() {
        if given == 0 {
            errors.push(FieldError::required(field, "must specify a peer"));
        }
        return;
    }
    if given > 0 {
        errors.push(FieldError::forbidden(
            field,
            "may not specify both ipBlock and another peer",
        ));
    }
    let text_range = text(block, "cidr");
    if text_range.is_empty() {
        errors.push(FieldError::required(format!("{field}.ipBlock.cidr"), ""));
        return;
    }
    let Some(range) = cidr(&format!("{field}.ipBlock.cidr"), text_range, errors) else {
        return;
    };
    for (index, except) in items(block, "except") {
        let except = except.as_str().unwrap_or_default();
        let field = format!("{field}.ipBlock.except[{index}]");
        let Some(inner) = cidr(&field, except, errors) else {
            continue;
        };
        if !range.contains(&inner) || range.prefix_len() == inner.prefix_len() {
            errors.push(FieldError::invalid(
                field,
                except,
                "must be a strict subset of `cidr`",
            ));
        }
    }
}

pub(super) fn ingress(object: &Value, errors: &mut Errors) {
    let spec = &object["spec"];
    if is_empty(&spec["rules"]) && spec["defaultBackend"].is_null() {
        errors.push(FieldError::invalid(
            "spec",
            "",
            "either `defaultBackend` or `rules` must be specified",
        ));
    }
    if !spec["defaultBackend"].is_null() {
        backend("spec.defaultBackend", &spec["defaultBackend"], errors);
    }
    let class = text(spec, "ingressClassName");
    if !class.is_empty() {
        push_all(
            "spec.ingressClassName",
            class,
            names::subdomain(class),
            errors,
        );
    }
    for (index, tls) in items(spec, "tls") {
        for (host_index, host) in items(tls, "hosts") {
            hostname(
                &format!("spec.tls[{index}].hosts[{host_index}]"),
                host.as_str().unwrap_or_default(),
                errors,
            );
        }
    }
    for (index, rule) in items(spec, "rules") {
        let field = format!("spec.rules[{index}]");
        let host = text(rule, "host");
        if !host.is_empty() {
            if host.parse::<IpAddr>().is_ok() {
                errors.push(FieldError::invalid(
                    format!("{field}.host"),
                    host,
                    "must be a DNS name, not an IP address",
                ));
            } else {
                hostname(&format!("{field}.host"), host, errors);
            }
        }
        if rule["http"].is_null() {
            continue;
        }
        if is_empty(&rule["http"]["paths"]) {
            errors.push(FieldError::required(format!("{field}.http.paths"), ""));
        }
        for (index, path) in items(&rule["http"], "paths") {
            ingress_path(&format!("{field}.http.paths[{index}]"), path, errors);
        }
    }
}

fn hostname(field: &str, host: &str, errors: &mut Errors) {
    let broken = if host.contains('*') {
        names::wildcard(host)
    } else {
        names::subdomain(host)
    };
    push_all(field, host, broken, errors);
}

fn ingress_path(field: &str, path: &Value, errors: &mut Errors) {
    const KINDS: &[&str] = &["Exact", "ImplementationSpecific", "Prefix"];
    let kind = text(path, "pathType");
    let value = text(path, "path");
    if kind.is_empty() {
        errors.push(FieldError::required(
            format!("{field}.pathType"),
            "pathType must be specified",
        ));
    }
    one_of(
        &format!("{field}.pathType"),
        &path["pathType"],
        KINDS,
        errors,
    );
    let field_path = format!("{field}.path");
    match kind {
        "Exact" | "Prefix" => {
            if !value.starts_with('/') {
                errors.push(FieldError::invalid(
                    field_path.clone(),
                    value,
                    "must be an absolute path",
                ));
            }
            for sequence in ["//", "/./", "/../", "%2f", "%2F"] {
                if value.contains(sequence) {
                    errors.push(FieldError::invalid(
                        field_path.clone(),
                        value,
                        format!("must not contain '{sequence}'"),
                    ));
                }
            }
            for suffix in ["/..", "/."] {
                if value.ends_with(suffix) {
                    errors.push(FieldError::invalid(
                        field_path.clone(),
                        value,
                        format!("cannot end with '{suffix}'"),
                    ));
                }
            }
        }
        _ if !value.is_empty() && !value.starts_with('/') => {
            errors.push(FieldError::invalid(
                field_path,
                value,
                "must be an absolute path",
            ));
        }
        _ => {}
    }
    backend(&format!("{field}.backend"), &path["backend"], errors);
}

fn backend(field: &str, backend: &Value, errors: &mut Errors) {
    let (service, resource) = (&backend["service"], &backend["resource"]);
    match (service.is_null(), resource.is_null()) {
        (true, true) => {
            errors.push(FieldError::required(
                field,
                "one of `service` or `resource` must be specified",
            ));
        }
        (false, false) => errors.push(FieldError::invalid(
            field,
            "",
            "cannot set both resource and service backends",
        )),
        (false, true) => {
            let name = text(service, "name");
            if name.is_empty() {
                errors.push(FieldError::required(format!("{field}.service.name"), ""));
            } else {
                push_all(
                    &format!("{field}.service.name"),
                    name,
                    names::label_1035(name),
                    errors,
                );
            }
            let port = &service["port"];
            let port_name = text(port, "name");
            let number = port["number"].as_i64().unwrap_or(0);
            let field = format!("{field}.service.port");
            match (port_name.is_empty(), number == 0) {
                (true, true) => errors.push(FieldError::required(
                    field,
                    "port name or number is required",
                )),
                (false, false) => errors.push(FieldError::invalid(
                    field,
                    "",
                    "cannot set both port name & port number",
                )),
                (false, true) => {
                    push_all(
                        &format!("{field}.name"),
                        port_name,
                        names::port_name(port_name),
                        errors,
                    );
                }
                (true, false) => port_number(&format!("{field}.number"), &port["number"], errors),
            }
        }
        (true, false) => {
            for key in ["kind", "name"] {
                if text(resource, key).is_empty() {
                    errors.push(FieldError::required(format!("{field}.resource.{key}"), ""));
                }
            }
        }
    }
}

pub(super) fn ingress_class(new: &Value, old: Option<&Value>, errors: &mut Errors) {
    let controller = text(&new["spec"], "controller");
    if controller.is_empty() {
        errors.push(FieldError::required("spec.controller", ""));
    } else if !controller.contains('/') {
        errors.push(FieldError::invalid(
            "spec.controller",
            controller,
            "must be a domain-prefixed path (such as \"acme.io/foo\")",
        ));
    }
    if let Some(old) = old {
        immutable(
            "spec.controller",
            &old["spec"]["controller"],
            &new["spec"]["controller"],
            errors,
        );
    }
}
