//! From the API's kinds to what the Service proxy is told. Pure.

use api::service::{ServiceType, SessionAffinity};
use api::{AddressType, TrafficPolicy};
use services::model;

use crate::cluster::Member;
use crate::options::{NodePortAddress, Options};

/// How long a client keeps its endpoint where the Service does not say, in
/// seconds (`v1.DefaultClientIPServiceAffinitySeconds`).
const DEFAULT_AFFINITY: u32 = 10_800;

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
        load_balancer_ips: balancer
            .filter_map(|entry| Some(entry.ip?.into()))
            .filter(|text: &String| !text.is_empty())
            .collect(),
        external_ips: texts(&spec.external_ips),
        source_ranges: if spec.kind == ServiceType::LoadBalancer {
            texts(&spec.load_balancer_source_ranges)
        } else {
            Vec::new()
        },
        affinity: (spec.session_affinity == SessionAffinity::ClientIP).then(|| {
            spec.session_affinity_config
                .and_then(|config| config.client_ip?.timeout_seconds)
                .unwrap_or(DEFAULT_AFFINITY)
        }),
        health_check_node_port: spec
            .health_check_node_port
            .filter(|_| spec.kind == ServiceType::LoadBalancer),
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
pub(crate) fn facts<'a>(
    options: &Options,
    own: &'a Member,
    peers: impl Iterator<Item = &'a Member> + Clone,
) -> model::NodeFacts {
    let members = || std::iter::once(own).chain(peers.clone());
    let ranges = |member: &Member| member.ranges.clone();
    model::NodeFacts {
        node: options.node.clone(),
        zone: own.zone.clone().map(Into::into),
        addresses: own.primary_addresses(),
        pod_cidrs: own.ranges.clone(),
        cluster_cidrs: if options.cluster_cidr.is_empty() {
            members().flat_map(ranges).collect()
        } else {
            options.cluster_cidr.clone()
        },
        node_addresses: members()
            .flat_map(|member| member.addresses.iter().copied())
            .collect(),
        service_cidrs: options.service_cidr.clone(),
        external_ip_cidrs: options.external_ip_cidr.clone(),
        node_port_addresses: node_port_addresses(&options.nodeport_addresses),
        masquerade_all: options.masquerade_all,
        no_local_detection: options.no_local_detection,
        // The kernel tells: see `proxy`.
        local_addresses: Vec::new(),
    }
}

fn texts(texts: &[Box<str>]) -> Vec<String> {
    texts.iter().map(|text| text.to_string()).collect()
}

/// Everything, if that is among them; else the ranges; primary if there is none.
fn node_port_addresses(options: &[NodePortAddress]) -> model::NodePortAddresses {
    let ranges: Vec<ipnet::IpNet> = options
        .iter()
        .filter_map(|option| match option {
            NodePortAddress::Range(range) => Some(*range),
            NodePortAddress::Primary | NodePortAddress::All => None,
        })
        .collect();
    if options.contains(&NodePortAddress::All) {
        model::NodePortAddresses::All
    } else if ranges.is_empty() {
        model::NodePortAddresses::Primary
    } else {
        model::NodePortAddresses::Ranges(ranges)
    }
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
            read(spec, json!({}), status.clone()).load_balancer_ips,
            ["203.0.113.1", "203.0.113.2"]
        );
        let spec = json!({"type": "ClusterIP", "externalIPs": ["203.0.113.9"]});
        let service = read(spec, json!({}), status);
        assert_eq!(service.load_balancer_ips, [""; 0]);
        assert_eq!(service.external_ips, ["203.0.113.9"]);
    }

    #[test]
    fn affinity_filter_and_health_check_are_taken_over() {
        let spec = json!({"type": "LoadBalancer", "sessionAffinity": "ClientIP",
            "loadBalancerSourceRanges": ["10.0.0.0/8", "nonsense"], "healthCheckNodePort": 32000});
        let service = read(spec, json!({}), json!({}));
        assert_eq!(service.affinity, Some(10_800));
        assert_eq!(service.source_ranges, ["10.0.0.0/8", "nonsense"]);
        assert_eq!(service.health_check_node_port, Some(32_000));
        let spec = json!({"type": "NodePort", "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 15}},
            "loadBalancerSourceRanges": ["10.0.0.0/8"], "healthCheckNodePort": 32000});
        let service = read(spec, json!({}), json!({}));
        assert_eq!(service.affinity, Some(15));
        assert_eq!(service.source_ranges, [""; 0]);
        assert_eq!(service.health_check_node_port, None);
        assert_eq!(read(json!({}), json!({}), json!({})).affinity, None);
    }

    #[test]
    fn an_object_with_numbers_that_are_no_ports_is_read_all_the_same() {
        let spec = json!({"clusterIPs": ["10.96.0.1", "nonsense"],
            "ports": [{"port": 70_000, "nodePort": -1}, {"port": 80}]});
        let service = read(spec, json!({}), json!({}));
        assert_eq!(service.ports[0].port, 70_000);
        assert_eq!(service.cluster_ips, ["10.96.0.1", "nonsense"]);
    }

    #[rstest::rstest]
    #[case(&[], model::NodePortAddresses::Primary)]
    #[case(&["primary"], model::NodePortAddresses::Primary)]
    #[case(&["all"], model::NodePortAddresses::All)]
    #[case(&["10.0.0.0/8"], model::NodePortAddresses::Ranges(vec!["10.0.0.0/8".parse().unwrap()]))]
    fn node_port_addresses_are_read(
        #[case] given: &[&str],
        #[case] expected: model::NodePortAddresses,
    ) {
        let given: Vec<NodePortAddress> = given.iter().map(|t| t.parse().unwrap()).collect();
        assert_eq!(node_port_addresses(&given), expected);
        assert!("10.0.0.0/33".parse::<NodePortAddress>().is_err());
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
    fn a_slice_keeps_what_decides_and_the_text_of_addresses() {
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
            slice.endpoints[1].address, "nonsense",
            "the table reports it"
        );
        assert_eq!(
            slice.endpoints[..1],
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
