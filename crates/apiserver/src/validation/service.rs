//! Rules of Services and their endpoints.

use super::metadata;
use super::names;
use super::{
    Errors, FieldError, FieldErrorKind, cidr, immutable, ip, is_empty, items, not_negative, one_of,
    port_number, port_or_name, push_all, required_one_of, text,
};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::ops::RangeInclusive;

/// The node ports Kubernetes gives out by default.
const NODE_PORTS: RangeInclusive<i64> = 30_000..=32_767;
/// The longest time a client may be kept with its endpoint, seconds.
const AFFINITY_LIMIT: i64 = 86_400;
const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];

pub(super) fn service(new: &Value, old: Option<&Value>, errors: &mut Errors) {
    let spec = &new["spec"];
    let kind = text(spec, "type");
    required_one_of(
        "spec.type",
        &spec["type"],
        &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"],
        errors,
    );
    let headless = text(spec, "clusterIP") == "None";
    if is_empty(&spec["ports"]) && !headless && kind != "ExternalName" {
        errors.push(FieldError::required("spec.ports", ""));
    }
    ports(spec, kind, errors);
    metadata::labels("spec.selector", &spec["selector"], errors);
    required_one_of(
        "spec.sessionAffinity",
        &spec["sessionAffinity"],
        &["ClientIP", "None"],
        errors,
    );
    if let Some(seconds) = spec["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"].as_i64()
        && !(1..=AFFINITY_LIMIT).contains(&seconds)
    {
        errors.push(FieldError::invalid(
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
            seconds,
            format!("must be greater than 0 and less than {AFFINITY_LIMIT}"),
        ));
    }
    if kind == "ExternalName" {
        let name = text(spec, "externalName");
        if name.is_empty() {
            errors.push(FieldError::required("spec.externalName", ""));
        } else {
            // One trailing dot makes a name absolute.
            let relative = name.strip_suffix('.').unwrap_or(name);
            push_all(
                "spec.externalName",
                name,
                names::subdomain(relative),
                errors,
            );
        }
    }
    if headless && matches!(kind, "NodePort" | "LoadBalancer") {
        errors.push(FieldError::invalid(
            "spec.clusterIPs[0]",
            "None",
            format!("may not be set to 'None' for {kind} services"),
        ));
    }
    addresses(spec, kind, errors);
    outside(spec, kind, errors);
    if let Some(old) = old {
        change(&old["spec"], spec, errors);
    }
}

fn ports(spec: &Value, kind: &str, errors: &mut Errors) {
    let several = spec["ports"]
        .as_array()
        .is_some_and(|ports| ports.len() > 1);
    let mut port_names = BTreeSet::new();
    let mut numbers = BTreeSet::new();
    let mut node_ports = BTreeSet::new();
    for (index, port) in items(spec, "ports") {
        let field = format!("spec.ports[{index}]");
        let name = text(port, "name");
        if name.is_empty() {
            if several {
                errors.push(FieldError::required(format!("{field}.name"), ""));
            }
        } else {
            push_all(&format!("{field}.name"), name, names::label(name), errors);
            if !port_names.insert(name) {
                errors.push(FieldError::duplicate(format!("{field}.name"), name));
            }
        }
        match &port["port"] {
            Value::Null => errors.push(FieldError::required(format!("{field}.port"), "")),
            number => port_number(&format!("{field}.port"), number, errors),
        }
        required_one_of(
            &format!("{field}.protocol"),
            &port["protocol"],
            PROTOCOLS,
            errors,
        );
        if !port["targetPort"].is_null() {
            port_or_name(&format!("{field}.targetPort"), &port["targetPort"], errors);
        }
        let protocol = text(port, "protocol");
        if let Some(number) = port["port"].as_i64()
            && !numbers.insert((protocol, number))
        {
            errors.push(FieldError::duplicate(
                field.clone(),
                json!({"port": number, "protocol": protocol}),
            ));
        }
        let Some(node_port) = port["nodePort"].as_i64().filter(|number| *number != 0) else {
            continue;
        };
        let field = format!("{field}.nodePort");
        if matches!(kind, "ClusterIP" | "ExternalName") {
            errors.push(FieldError::forbidden(
                field,
                format!("may not be used when `type` is '{kind}'"),
            ));
            continue;
        }
        if !NODE_PORTS.contains(&node_port) {
            errors.push(FieldError::invalid(
                field.clone(),
                node_port,
                format!(
                    "provided port is not in the valid range. The range of valid ports is {}-{}",
                    NODE_PORTS.start(),
                    NODE_PORTS.end()
                ),
            ));
        }
        if !node_ports.insert((protocol, node_port)) {
            errors.push(FieldError::duplicate(field, node_port));
        }
    }
}

fn family(address: &IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

fn addresses(spec: &Value, kind: &str, errors: &mut Errors) {
    const FAMILIES: &[&str] = &["IPv4", "IPv6"];
    one_of(
        "spec.ipFamilyPolicy",
        &spec["ipFamilyPolicy"],
        &["SingleStack", "PreferDualStack", "RequireDualStack"],
        errors,
    );
    let mut seen = BTreeSet::new();
    for (index, family) in items(spec, "ipFamilies") {
        let field = format!("spec.ipFamilies[{index}]");
        one_of(&field, family, FAMILIES, errors);
        if !seen.insert(family.as_str().unwrap_or_default()) {
            errors.push(FieldError::duplicate(field, family.clone()));
        }
    }
    if kind == "ExternalName" {
        for name in ["clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            if !is_empty(&spec[name]) {
                errors.push(FieldError::forbidden(
                    format!("spec.{name}"),
                    "may not be set for ExternalName services",
                ));
            }
        }
        if !text(spec, "clusterIP").is_empty() {
            errors.push(FieldError::forbidden(
                "spec.clusterIP",
                "may not be set for ExternalName services",
            ));
        }
        return;
    }
    let first = text(spec, "clusterIP");
    let list = spec["clusterIPs"].as_array();
    match list.and_then(|list| list.first()) {
        Some(listed) if *listed != json!(first) => errors.push(FieldError::invalid(
            "spec.clusterIPs",
            spec["clusterIPs"].clone(),
            "first value must match `clusterIP`",
        )),
        Some(_) => {}
        None if !first.is_empty() && first != "None" => ip("spec.clusterIP", first, errors),
        None => {}
    }
    let length = list.map_or(0, Vec::len);
    if length > 2 {
        errors.push(FieldError::invalid(
            "spec.clusterIPs",
            spec["clusterIPs"].clone(),
            "may only hold up to 2 values",
        ));
    }
    let mut families = BTreeSet::new();
    for (index, address) in items(spec, "clusterIPs") {
        let address = address.as_str().unwrap_or_default();
        let field = format!("spec.clusterIPs[{index}]");
        if address == "None" {
            if length > 1 {
                errors.push(FieldError::invalid(
                    field,
                    address,
                    "'None' must be the first and only value",
                ));
            }
            continue;
        }
        let Ok(parsed) = address.parse::<IpAddr>() else {
            ip(&field, address, errors);
            continue;
        };
        if !families.insert(family(&parsed)) {
            errors.push(FieldError::invalid(
                "spec.clusterIPs",
                spec["clusterIPs"].clone(),
                "may specify no more than one IP for each IP family, i.e. 192.168.10.1 or fd00::1",
            ));
        }
        if let Some(wanted) = spec["ipFamilies"][index].as_str()
            && wanted != family(&parsed)
        {
            errors.push(FieldError::invalid(
                field,
                address,
                format!("expected an {wanted} value as indicated by `ipFamilies[{index}]`"),
            ));
        }
    }
}

/// What makes a Service reachable from outside of the cluster.
fn outside(spec: &Value, kind: &str, errors: &mut Errors) {
    for (index, address) in items(spec, "externalIPs") {
        let address = address.as_str().unwrap_or_default();
        let field = format!("spec.externalIPs[{index}]");
        match address.parse::<IpAddr>() {
            Err(_) => ip(&field, address, errors),
            Ok(parsed) if parsed.is_unspecified() => {
                errors.push(FieldError::invalid(
                    field,
                    address,
                    "may not be unspecified",
                ));
            }
            Ok(parsed) if parsed.is_loopback() => {
                errors.push(FieldError::invalid(
                    field,
                    address,
                    "may not be in the loopback range",
                ));
            }
            Ok(parsed) if parsed.is_multicast() => {
                errors.push(FieldError::invalid(
                    field,
                    address,
                    "may not be in the multicast range",
                ));
            }
            Ok(_) => {}
        }
    }
    one_of(
        "spec.externalTrafficPolicy",
        &spec["externalTrafficPolicy"],
        &["Cluster", "Local"],
        errors,
    );
    one_of(
        "spec.internalTrafficPolicy",
        &spec["internalTrafficPolicy"],
        &["Cluster", "Local"],
        errors,
    );
    one_of(
        "spec.trafficDistribution",
        &spec["trafficDistribution"],
        &["PreferClose", "PreferSameZone", "PreferSameNode"],
        errors,
    );
    let reachable = matches!(kind, "NodePort" | "LoadBalancer")
        || (kind == "ClusterIP" && !is_empty(&spec["externalIPs"]));
    if !reachable && !is_empty(&spec["externalTrafficPolicy"]) {
        errors.push(FieldError::invalid(
            "spec.externalTrafficPolicy",
            spec["externalTrafficPolicy"].clone(),
            "may only be set for externally-accessible services",
        ));
    }
    if kind != "LoadBalancer" {
        for name in ["loadBalancerSourceRanges", "loadBalancerClass"] {
            if !is_empty(&spec[name]) {
                errors.push(FieldError::forbidden(
                    format!("spec.{name}"),
                    "may only be used when `type` is 'LoadBalancer'",
                ));
            }
        }
    }
    for (index, range) in items(spec, "loadBalancerSourceRanges") {
        cidr(
            &format!("spec.loadBalancerSourceRanges[{index}]"),
            range.as_str().unwrap_or_default().trim(),
            errors,
        );
    }
    let health = spec["healthCheckNodePort"].as_i64().unwrap_or(0);
    if health != 0 && !(kind == "LoadBalancer" && text(spec, "externalTrafficPolicy") == "Local") {
        errors.push(FieldError::invalid(
            "spec.healthCheckNodePort",
            health,
            "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'",
        ));
    }
    not_negative(
        "spec.healthCheckNodePort",
        &spec["healthCheckNodePort"],
        errors,
    );
}

fn change(old: &Value, new: &Value, errors: &mut Errors) {
    let external = |spec: &Value| text(spec, "type") == "ExternalName";
    if external(old) || external(new) {
        return;
    }
    let (before, after) = (text(old, "clusterIP"), text(new, "clusterIP"));
    if !before.is_empty() && before != after {
        errors.push(if after.is_empty() {
            FieldError::invalid(
                "spec.clusterIPs[0]",
                after,
                "primary clusterIP can not be unset",
            )
        } else {
            FieldError::invalid("spec.clusterIPs[0]", after, "may not change once set")
        });
    }
    let second = (&old["clusterIPs"][1], &new["clusterIPs"][1]);
    // Giving up the second family releases its address; another one may not
    // take its place.
    if let (Some(before), Some(after)) = (second.0.as_str(), second.1.as_str())
        && before != after
    {
        errors.push(FieldError::invalid(
            "spec.clusterIPs[1]",
            after,
            "may not change once set",
        ));
    }
    if let (Some(before), Some(after)) =
        (old["ipFamilies"][0].as_str(), new["ipFamilies"][0].as_str())
        && before != after
    {
        errors.push(FieldError::invalid(
            "spec.ipFamilies[0]",
            after,
            "may not change once set",
        ));
    }
}

pub(super) fn endpoints(object: &Value, errors: &mut Errors) {
    for (index, subset) in items(object, "subsets") {
        let field = format!("subsets[{index}]");
        for list in ["addresses", "notReadyAddresses"] {
            for (index, address) in items(subset, list) {
                endpoint_address(
                    &format!("{field}.{list}[{index}].ip"),
                    text(address, "ip"),
                    errors,
                );
            }
        }
        for (index, port) in items(subset, "ports") {
            port_number(
                &format!("{field}.ports[{index}].port"),
                &port["port"],
                errors,
            );
            one_of(
                &format!("{field}.ports[{index}].protocol"),
                &port["protocol"],
                PROTOCOLS,
                errors,
            );
        }
    }
}

/// An address traffic can be sent to.
fn endpoint_address(field: &str, address: &str, errors: &mut Errors) {
    let Ok(parsed) = address.parse::<IpAddr>() else {
        ip(field, address, errors);
        return;
    };
    let link_local = match parsed {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    for (wrong, why) in [
        (parsed.is_unspecified(), "may not be unspecified"),
        (
            parsed.is_loopback(),
            "may not be in the loopback range (127.0.0.0/8, ::1/128)",
        ),
        (
            link_local,
            "may not be in the link-local range (169.254.0.0/16, fe80::/10)",
        ),
        (
            parsed.is_multicast(),
            "may not be in the multicast range (224.0.0.0/4, ff00::/8)",
        ),
    ] {
        if wrong {
            errors.push(FieldError::invalid(field, address, why));
        }
    }
}

pub(super) fn endpoint_slice(new: &Value, old: Option<&Value>, errors: &mut Errors) {
    const ENDPOINTS: usize = 1000;
    const ADDRESSES: usize = 100;
    let kind = text(new, "addressType");
    required_one_of(
        "addressType",
        &new["addressType"],
        &["FQDN", "IPv4", "IPv6"],
        errors,
    );
    too_many("endpoints", &new["endpoints"], ENDPOINTS, errors);
    for (index, endpoint) in items(new, "endpoints") {
        let field = format!("endpoints[{index}]");
        if is_empty(&endpoint["addresses"]) {
            errors.push(FieldError::required(
                format!("{field}.addresses"),
                "must contain at least 1 address",
            ));
        }
        too_many(
            &format!("{field}.addresses"),
            &endpoint["addresses"],
            ADDRESSES,
            errors,
        );
        for (index, address) in items(endpoint, "addresses") {
            let address = address.as_str().unwrap_or_default();
            let field = format!("{field}.addresses[{index}]");
            match (kind, address.parse::<IpAddr>()) {
                ("FQDN", _) => push_all(&field, address, names::subdomain(address), errors),
                ("IPv4", Ok(IpAddr::V4(_))) | ("IPv6", Ok(IpAddr::V6(_))) => {
                    endpoint_address(&field, address, errors);
                }
                ("IPv4" | "IPv6", _) => errors.push(FieldError::invalid(
                    field,
                    address,
                    format!("must be an {kind} address"),
                )),
                _ => {}
            }
        }
        let node = text(endpoint, "nodeName");
        if !node.is_empty() {
            push_all(
                &format!("{field}.nodeName"),
                node,
                names::subdomain(node),
                errors,
            );
        }
        let hostname = text(endpoint, "hostname");
        if !hostname.is_empty() {
            push_all(
                &format!("{field}.hostname"),
                hostname,
                names::label(hostname),
                errors,
            );
        }
    }
    too_many("ports", &new["ports"], 100, errors);
    let mut port_names = BTreeSet::new();
    for (index, port) in items(new, "ports") {
        let field = format!("ports[{index}]");
        let name = text(port, "name");
        if !name.is_empty() {
            push_all(&format!("{field}.name"), name, names::label(name), errors);
        }
        if !port_names.insert(name) {
            errors.push(FieldError::duplicate(format!("{field}.name"), name));
        }
        required_one_of(
            &format!("{field}.protocol"),
            &port["protocol"],
            PROTOCOLS,
            errors,
        );
        port_number(&format!("{field}.port"), &port["port"], errors);
    }
    if let Some(old) = old {
        immutable(
            "addressType",
            &old["addressType"],
            &new["addressType"],
            errors,
        );
    }
}

fn too_many(field: &str, list: &Value, limit: usize, errors: &mut Errors) {
    let length = list.as_array().map_or(0, Vec::len);
    if length > limit {
        errors.push(FieldError::new(
            field,
            FieldErrorKind::TooMany,
            length,
            format!("must have at most {limit} items"),
        ));
    }
}
