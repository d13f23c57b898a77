//! From the API's kinds to what the Service proxy is told. Pure.

use api::service::ServiceType;
use api::{AddressType, TrafficPolicy};
use services::model;

use crate::cluster::{Cluster, Member};
use crate::options::Options;

/// A Service.
pub(crate) fn service(service: api::Service) -> model::Service {
    let metadata = service.metadata;
    let spec = service.spec;
    let proxied = matches!(
        spec.kind,
        ServiceType::ClusterIP | ServiceType::NodePort | ServiceType::LoadBalancer
    );
    let node_ports = matches!(spec.kind, ServiceType::NodePort | ServiceType::LoadBalancer);
    let foreign = metadata
        .label("service.kubernetes.io/service-proxy-name")
        .is_some()
        || metadata.label("service.kubernetes.io/headless").is_some();
    let balancer = service
        .status
        .load_balancer
        .ingress
        .into_iter()
        .filter(|entry| {
            spec.kind == ServiceType::LoadBalancer && entry.ip_mode.as_deref() != Some("Proxy")
        });
    model::Service {
        name: model::ServiceName::new(metadata.namespace, metadata.name),
        cluster_ips: if proxied {
            texts(&spec.cluster_ips)
        } else {
            Vec::new()
        },
        // Not spec.externalIPs: any user could hijack any address with them
        // (CVE-2020-8554).
        external_ips: balancer
            .filter_map(|entry| Some(entry.ip?.to_string()))
            .collect(),
        ports: spec
            .ports
            .into_iter()
            .map(|port| model::ServicePort {
                name: port.name.into(),
                protocol: protocol(port.protocol),
                port: port.port,
                node_port: port.node_port.filter(|number| node_ports && *number != 0),
            })
            .collect(),
        internal_policy: policy(spec.internal_traffic_policy),
        external_policy: policy(spec.external_traffic_policy),
        foreign,
    }
}

/// An endpoint slice; `None` for one of names and one of no Service.
pub(crate) fn slice(slice: api::EndpointSlice) -> Option<model::EndpointSlice> {
    let family = match slice.address_type {
        AddressType::V4 => model::Family::V4,
        AddressType::V6 => model::Family::V6,
        AddressType::Other => return None,
    };
    let service = slice.service_name()?.to_owned();
    let endpoints = slice.endpoints.into_iter().filter_map(|endpoint| {
        let hints = endpoint.hints.unwrap_or_default();
        let names = |hints: Vec<api::endpointslice::Hint>| {
            hints.into_iter().map(|hint| hint.name.into()).collect()
        };
        Some(model::Endpoint {
            address: endpoint.addresses.first()?.to_string(),
            ready: endpoint.conditions.ready,
            serving: endpoint.conditions.serving,
            terminating: endpoint.conditions.terminating,
            node: endpoint.node_name.map(Into::into),
            zone_hints: names(hints.for_zones),
            node_hints: names(hints.for_nodes),
        })
    });
    let ports = slice.ports.into_iter().map(|port| model::SlicePort {
        name: port.name.into(),
        protocol: protocol(port.protocol),
        port: port.port,
    });
    Some(model::EndpointSlice {
        endpoints: endpoints.collect(),
        ports: ports.collect(),
        namespace: slice.metadata.namespace.into(),
        name: slice.metadata.name.into(),
        service,
        family,
    })
}

/// What a proxy has to know of its node and of the cluster.
pub(crate) fn facts(options: &Options, cluster: &Cluster) -> model::NodeFacts {
    let members = || std::iter::once(&cluster.own).chain(cluster.peers.values());
    let ranges = |member: &Member| member.ranges.clone();
    model::NodeFacts {
        node: options.node.clone(),
        zone: cluster.own.zone.clone().map(Into::into),
        addresses: cluster.own.primary_addresses(),
        pod_cidrs: cluster.own.ranges.clone(),
        cluster_cidrs: if options.cluster_cidr.is_empty() {
            members().flat_map(ranges).collect()
        } else {
            options.cluster_cidr.clone()
        },
        node_addresses: members()
            .flat_map(|member| member.addresses.iter().copied())
            .collect(),
        service_cidrs: options.service_cidr.clone(),
    }
}

fn texts(addresses: &[std::net::IpAddr]) -> Vec<String> {
    addresses.iter().map(ToString::to_string).collect()
}

fn policy(policy: TrafficPolicy) -> model::TrafficPolicy {
    match policy {
        TrafficPolicy::Cluster => model::TrafficPolicy::Cluster,
        TrafficPolicy::Local => model::TrafficPolicy::Local,
    }
}

fn protocol(protocol: api::Protocol) -> model::Protocol {
    match protocol {
        api::Protocol::Tcp => model::Protocol::Tcp,
        api::Protocol::Udp => model::Protocol::Udp,
        api::Protocol::Sctp => model::Protocol::Sctp,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(spec: Value, labels: Value, status: Value) -> model::Service {
        let object = json!({
            "metadata": {"name": "s", "namespace": "d", "labels": labels},
            "spec": spec, "status": status,
        });
        service(serde_json::from_value(object).unwrap())
    }

    #[test]
    fn only_types_that_have_addresses_are_proxied() {
        for (kind, proxied) in [
            ("ClusterIP", true),
            ("NodePort", true),
            ("LoadBalancer", true),
            ("ExternalName", false),
            ("Next", false),
        ] {
            let service = read(
                json!({"type": kind, "clusterIPs": ["10.96.0.1"]}),
                json!({}),
                json!({}),
            );
            assert_eq!(!service.cluster_ips.is_empty(), proxied, "{kind}");
        }
    }

    #[test]
    fn node_ports_count_only_for_types_that_have_them() {
        for (kind, expected) in [
            ("ClusterIP", None),
            ("NodePort", Some(30080)),
            ("LoadBalancer", Some(30080)),
        ] {
            let spec = json!({"type": kind, "ports": [{"port": 80, "nodePort": 30080}]});
            assert_eq!(
                read(spec, json!({}), json!({})).ports[0].node_port,
                expected,
                "{kind}"
            );
        }
    }

    #[test]
    fn external_addresses_are_those_of_a_balancer_that_wants_it() {
        let status = json!({"loadBalancer": {"ingress": [
            {"ip": "203.0.113.1"}, {"ip": "203.0.113.2", "ipMode": "VIP"},
            {"ip": "203.0.113.3", "ipMode": "Proxy"}, {"hostname": "x"}]}});
        let spec = json!({"type": "LoadBalancer", "externalIPs": ["203.0.113.9"]});
        assert_eq!(
            read(spec, json!({}), status.clone()).external_ips,
            ["203.0.113.1", "203.0.113.2"]
        );
        let spec = json!({"type": "ClusterIP", "externalIPs": ["203.0.113.9"]});
        assert_eq!(read(spec, json!({}), status).external_ips, [""; 0]);
    }

    #[test]
    fn labels_keep_the_proxy_away() {
        assert!(!read(json!({}), json!({}), json!({})).foreign);
        for label in [
            "service.kubernetes.io/service-proxy-name",
            "service.kubernetes.io/headless",
        ] {
            assert!(
                read(json!({}), json!({label: ""}), json!({})).foreign,
                "{label}"
            );
        }
    }

    #[test]
    fn a_slice_keeps_what_decides_and_loses_endpoints_without_address() {
        let read = |kind: &str, labels: Value| {
            slice(serde_json::from_value(json!({
                "metadata": {"name": "s-1", "namespace": "d", "labels": labels}, "addressType": kind,
                "endpoints": [
                    {"addresses": ["10.1.0.5"], "nodeName": "n", "conditions": {"ready": false, "serving": true, "terminating": true},
                     "hints": {"forZones": [{"name": "z"}], "forNodes": [{"name": "n"}]}},
                    {"addresses": ["nonsense"]},
                ],
                "ports": [{"name": "web", "protocol": "UDP", "port": 80}],
            })).unwrap())
        };
        let owned = json!({"kubernetes.io/service-name": "s"});
        assert_eq!(read("FQDN", owned.clone()), None);
        assert_eq!(read("IPv4", json!({})), None);
        let slice = read("IPv4", owned).unwrap();
        assert_eq!(
            (slice.service.as_str(), slice.family),
            ("s", model::Family::V4)
        );
        assert_eq!(
            slice.ports[0],
            model::SlicePort {
                name: "web".into(),
                protocol: model::Protocol::Udp,
                port: Some(80)
            }
        );
        assert_eq!(
            slice.endpoints,
            [model::Endpoint {
                address: "10.1.0.5".into(),
                ready: Some(false),
                serving: Some(true),
                terminating: Some(true),
                node: Some("n".into()),
                zone_hints: vec!["z".into()],
                node_hints: vec!["n".into()],
            }]
        );
    }
}
