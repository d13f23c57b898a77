//! From the API's kinds to what the zone is made of. Pure.

use std::net::IpAddr;

use ::dns::model;
use api::{AddressType, ServiceType};
use hickory_proto::rr::Name;

/// A Service; `None` for one that has no name: without an address (yet), or
/// with an external name that is none.
pub(super) fn service(service: &api::Service) -> Option<model::Service> {
    let spec = &service.spec;
    let addressing = match spec.kind {
        ServiceType::ExternalName => {
            let mut name = Name::from_ascii(&*spec.external_name).ok()?;
            if name.is_root() {
                return None;
            }
            name.set_fqdn(true);
            model::Addressing::External(name.into())
        }
        ServiceType::Unknown => return None,
        _ if spec.cluster_ips.iter().any(|text| &**text == "None") => model::Addressing::Headless,
        _ => {
            let addresses: Vec<IpAddr> = spec
                .cluster_ips
                .iter()
                .filter_map(|text| text.parse().ok())
                .collect();
            if addresses.is_empty() {
                return None;
            }
            model::Addressing::Cluster(addresses)
        }
    };
    let ports = spec.ports.iter().filter_map(|port| {
        Some(model::Port {
            name: port.name.clone(),
            protocol: protocol(port.protocol),
            number: u16::try_from(port.port).ok()?,
        })
    });
    Some(model::Service {
        key: model::ServiceKey::new(&service.metadata.namespace, &service.metadata.name),
        addressing,
        ports: ports.collect(),
    })
}

/// An endpoint slice; `None` for one of names and one of no Service.
pub(super) fn slice(slice: &api::EndpointSlice) -> Option<model::EndpointSlice> {
    if slice.address_type == AddressType::Other {
        return None;
    }
    let service = slice.service_name()?;
    let endpoints = slice
        .endpoints
        .iter()
        .filter(|endpoint| endpoint.conditions.is_ready())
        .filter_map(|endpoint| {
            Some(model::Endpoint {
                address: endpoint.addresses.first()?.parse().ok()?,
                hostname: endpoint.hostname.clone().filter(|name| !name.is_empty()),
            })
        });
    let ports = slice.ports.iter().map(|port| model::Port {
        name: port.name.clone(),
        protocol: protocol(port.protocol),
        number: port
            .port
            .and_then(|number| u16::try_from(number).ok())
            .unwrap_or(0),
    });
    Some(model::EndpointSlice {
        name: slice.metadata.name.clone(),
        service: model::ServiceKey::new(&slice.metadata.namespace, service),
        endpoints: endpoints.collect(),
        ports: ports.collect(),
    })
}

/// A pod; `None` for one without addresses of its own.
pub(super) fn pod(pod: &api::Pod) -> Option<model::Pod> {
    if pod.spec.host_network || pod.is_finished() || pod.status.pod_ips.is_empty() {
        return None;
    }
    Some(model::Pod {
        namespace: pod.metadata.namespace.clone(),
        name: pod.metadata.name.clone(),
        addresses: pod.status.pod_ips.clone(),
        cluster_first: matches!(
            &*pod.spec.dns_policy,
            "" | "ClusterFirst" | "ClusterFirstWithHostNet"
        ),
        searches: searches(&pod.spec.dns_config.searches),
    })
}

/// Domains that are none are left out, as a resolver does.
fn searches(domains: &[Box<str>]) -> Box<[Name]> {
    let name = |domain: &str| {
        let mut name = Name::from_ascii(domain).ok()?;
        name.set_fqdn(true);
        (!name.is_root()).then_some(name)
    };
    domains.iter().filter_map(|domain| name(domain)).collect()
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
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;

    #[rstest]
    #[case(json!({"clusterIPs": ["10.96.0.1", "fd00:96::1"]}), Some(2))]
    #[case(json!({"clusterIPs": ["None"]}), Some(0))]
    #[case(json!({"type": "ExternalName", "externalName": "www.example.com"}), Some(9))]
    #[case(json!({"type": "ExternalName", "externalName": "not..a name"}), None)]
    #[case(json!({"type": "Next", "clusterIPs": ["10.96.0.1"]}), None)]
    #[case(json!({"clusterIPs": []}), None)]
    fn a_service_has_the_name_its_type_gives_it(#[case] spec: Value, #[case] kind: Option<usize>) {
        let object = json!({"metadata": {"name": "s", "namespace": "d"}, "spec": spec});
        let read = service(&serde_json::from_value(object).unwrap());
        let seen = read.map(|service| match service.addressing {
            model::Addressing::Cluster(addresses) => addresses.len(),
            model::Addressing::Headless => 0,
            model::Addressing::External(name) => {
                assert!(name.is_fqdn());
                9
            }
        });
        assert_eq!(seen, kind);
    }

    #[test]
    fn endpoints_that_are_ready_or_do_not_say_are_published_with_their_host_names() {
        let object = json!({
            "metadata": {"name": "s-1", "namespace": "d",
                "labels": {"kubernetes.io/service-name": "s"}},
            "addressType": "IPv6",
            "endpoints": [
                {"addresses": ["fd00::1"], "hostname": "web-0"},
                {"addresses": ["fd00::2"], "conditions": {"ready": false}},
                {"addresses": ["fd00::3"], "conditions": {"ready": true}},
                {"addresses": ["nonsense"]}],
            "ports": [{"name": "http", "port": 80}, {"name": "all"}],
        });
        let read = slice(&serde_json::from_value(object).unwrap()).unwrap();
        let endpoints: Vec<(String, Option<&str>)> = read
            .endpoints
            .iter()
            .map(|endpoint| (endpoint.address.to_string(), endpoint.hostname.as_deref()))
            .collect();
        assert_eq!(
            endpoints,
            [
                ("fd00::1".to_owned(), Some("web-0")),
                ("fd00::3".to_owned(), None)
            ]
        );
        let numbers: Vec<u16> = read.ports.iter().map(|port| port.number).collect();
        assert_eq!(numbers, [80, 0]);
    }

    #[rstest]
    #[case(json!({}), json!({"podIPs": [{"ip": "10.1.0.1"}]}), Some(true))]
    #[case(json!({"dnsPolicy": "Default"}), json!({"podIPs": [{"ip": "10.1.0.1"}]}), Some(false))]
    #[case(json!({"hostNetwork": true}), json!({"podIPs": [{"ip": "10.1.0.1"}]}), None)]
    #[case(json!({}), json!({}), None)]
    #[case(json!({}), json!({"phase": "Succeeded", "podIPs": [{"ip": "10.1.0.1"}]}), None)]
    fn a_pod_is_known_while_it_has_addresses_of_its_own(
        #[case] spec: Value,
        #[case] status: Value,
        #[case] expected: Option<bool>,
    ) {
        let object =
            json!({"metadata": {"name": "p", "namespace": "d"}, "spec": spec, "status": status});
        let read = pod(&serde_json::from_value(object).unwrap());
        assert_eq!(read.map(|pod| pod.cluster_first), expected);
    }

    #[test]
    fn a_pods_own_search_domains_are_known() {
        let object = json!({"metadata": {"name": "p", "namespace": "d"},
            "spec": {"dnsConfig": {"searches": ["own.example", "two.example.", ".", "no..name"]}},
            "status": {"podIPs": [{"ip": "10.1.0.1"}]}});
        let read = pod(&serde_json::from_value(object).unwrap()).unwrap();
        let domains: Vec<String> = read.searches.iter().map(Name::to_ascii).collect();
        assert_eq!(domains, ["own.example.", "two.example."]);
    }
}
