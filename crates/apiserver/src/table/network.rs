//! Services, endpoints, policies and ingresses.

use super::{NONE, abbreviated, age, labels, list, name, selector, string, text_or_none};
use jiff::Timestamp;
use serde_json::{Value, json};

pub(super) fn service(object: &Value, now: Timestamp) -> Vec<Value> {
    let spec = &object["spec"];
    let kind = spec["type"].as_str().unwrap_or_default();
    let address = spec["clusterIPs"][0]
        .as_str()
        .or(spec["clusterIP"].as_str());
    let ports: Vec<String> = list(&spec["ports"])
        .iter()
        .map(|port| {
            let number = &port["port"];
            let protocol = port["protocol"].as_str().unwrap_or("TCP");
            match port["nodePort"].as_i64() {
                Some(node_port) if node_port > 0 => format!("{number}:{node_port}/{protocol}"),
                _ => format!("{number}/{protocol}"),
            }
        })
        .collect();
    let ports = ports.join(",");
    vec![
        name(object),
        json!(kind),
        text_or_none(address),
        json!(external(object, kind)),
        text_or_none(Some(&ports)),
        age(object, now),
        json!(labels(&spec["selector"])),
    ]
}

fn external(object: &Value, kind: &str) -> String {
    let spec = &object["spec"];
    let mut addresses: Vec<&str> = Vec::new();
    if kind == "ExternalName" {
        return spec["externalName"].as_str().unwrap_or_default().to_owned();
    }
    if kind == "LoadBalancer" {
        addresses.extend(balancer_addresses(object));
    }
    addresses.extend(list(&spec["externalIPs"]).iter().filter_map(Value::as_str));
    match (addresses.is_empty(), kind) {
        (true, "LoadBalancer") => "<pending>".to_owned(),
        (true, _) => NONE.to_owned(),
        (false, _) => addresses.join(","),
    }
}

fn balancer_addresses(object: &Value) -> impl Iterator<Item = &str> {
    list(&object["status"]["loadBalancer"]["ingress"])
        .iter()
        .filter_map(|ingress| ingress["ip"].as_str().or(ingress["hostname"].as_str()))
}

/// `address:port`, in brackets for IPv6.
fn endpoint(address: &str, port: Option<i64>) -> String {
    match port {
        Some(port) if address.contains(':') => format!("[{address}]:{port}"),
        Some(port) => format!("{address}:{port}"),
        None => address.to_owned(),
    }
}

pub(super) fn endpoints(object: &Value, now: Timestamp) -> Vec<Value> {
    let mut found = Vec::new();
    for subset in list(&object["subsets"]) {
        let addresses = list(&subset["addresses"])
            .iter()
            .filter_map(|address| address["ip"].as_str());
        for address in addresses {
            if list(&subset["ports"]).is_empty() {
                found.push(endpoint(address, None));
            }
            for port in list(&subset["ports"]) {
                found.push(endpoint(address, port["port"].as_i64()));
            }
        }
    }
    vec![
        name(object),
        json!(abbreviated(&found, NONE)),
        age(object, now),
    ]
}

pub(super) fn endpoint_slice(object: &Value, now: Timestamp) -> Vec<Value> {
    const UNSET: &str = "<unset>";
    let ports: Vec<String> = list(&object["ports"])
        .iter()
        .map(|port| {
            port["port"]
                .as_i64()
                .map_or("*".to_owned(), |port| port.to_string())
        })
        .collect();
    let addresses: Vec<String> = list(&object["endpoints"])
        .iter()
        .flat_map(|endpoint| list(&endpoint["addresses"]))
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect();
    vec![
        name(object),
        string(object["addressType"].as_str()),
        json!(abbreviated(&ports, UNSET)),
        json!(abbreviated(&addresses, UNSET)),
        age(object, now),
    ]
}

pub(super) fn policy(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        name(object),
        json!(selector(&object["spec"]["podSelector"])),
        age(object, now),
    ]
}

pub(super) fn ingress(object: &Value, now: Timestamp) -> Vec<Value> {
    let spec = &object["spec"];
    let hosts: Vec<String> = list(&spec["rules"])
        .iter()
        .filter_map(|rule| rule["host"].as_str())
        .filter(|host| !host.is_empty())
        .map(str::to_owned)
        .collect();
    let addresses: Vec<&str> = balancer_addresses(object).collect();
    let ports = if list(&spec["tls"]).is_empty() {
        "80"
    } else {
        "80, 443"
    };
    vec![
        name(object),
        text_or_none(spec["ingressClassName"].as_str()),
        json!(abbreviated(&hosts, "*")),
        json!(addresses.join(",")),
        json!(ports),
        age(object, now),
    ]
}

pub(super) fn ingress_class(object: &Value, now: Timestamp) -> Vec<Value> {
    let parameters = &object["spec"]["parameters"];
    let shown = if parameters.is_null() {
        NONE.to_owned()
    } else {
        let kind = parameters["kind"].as_str().unwrap_or_default();
        let kind = match parameters["apiGroup"].as_str() {
            Some(group) => format!("{kind}.{group}"),
            None => kind.to_owned(),
        };
        format!("{kind}/{}", parameters["name"].as_str().unwrap_or_default())
    };
    vec![
        name(object),
        string(object["spec"]["controller"].as_str()),
        json!(shown),
        age(object, now),
    ]
}
