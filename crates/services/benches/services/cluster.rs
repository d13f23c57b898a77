//! The Services that are measured: each has one port and three endpoints.

use std::net::Ipv4Addr;

use podwire_services::{
    Endpoint, EndpointSlice, Family, NodeFacts, Protocol, Proxy, Service, ServiceName, ServicePort,
    SlicePort,
};
use serde_json::{Value, json};

/// Endpoints of a Service.
pub(crate) const ENDPOINTS: usize = 3;
/// Port of all Services.
pub(crate) const PORT: u16 = 80;
/// Port of all endpoints.
pub(crate) const TARGET_PORT: u16 = 8080;
/// Namespace of all Services.
pub(crate) const NAMESPACE: &str = "default";

/// The name of a Service.
pub(crate) fn name(number: usize) -> String {
    format!("service-{number}")
}

/// The cluster address of a Service.
pub(crate) fn address(number: usize) -> Ipv4Addr {
    nth(Ipv4Addr::new(10, 96, 0, 1), number)
}

/// The endpoints of a Service. With another `generation` the last one is
/// another.
pub(crate) fn endpoints(number: usize, generation: usize) -> [Ipv4Addr; ENDPOINTS] {
    let first = Ipv4Addr::new(10, 128, 0, 1);
    let mut endpoints = [0, 1, 2].map(|index| nth(first, number * ENDPOINTS + index));
    if generation > 0 {
        endpoints[ENDPOINTS - 1] = nth(Ipv4Addr::new(10, 192, 0, 0), generation);
    }
    endpoints
}

fn nth(first: Ipv4Addr, number: usize) -> Ipv4Addr {
    Ipv4Addr::from_bits(first.to_bits() + number as u32)
}

/// A node without pods.
pub(crate) fn facts() -> NodeFacts {
    NodeFacts {
        node: "node-1".to_owned(),
        addresses: vec![[192, 168, 64, 11].into()],
        ..NodeFacts::default()
    }
}

/// A Service.
pub(crate) fn service(number: usize) -> Service {
    Service {
        name: ServiceName::new(NAMESPACE, name(number)),
        cluster_ips: vec![address(number).to_string()],
        ports: vec![ServicePort {
            name: "http".to_owned(),
            protocol: Protocol::Tcp,
            port: PORT.into(),
            node_port: None,
        }],
        ..Service::default()
    }
}

/// Its slice.
pub(crate) fn slice(number: usize, endpoints: [Ipv4Addr; ENDPOINTS]) -> EndpointSlice {
    EndpointSlice {
        namespace: NAMESPACE.to_owned(),
        name: format!("{}-abcde", name(number)),
        service: name(number),
        family: Family::V4,
        ports: vec![SlicePort {
            name: "http".to_owned(),
            protocol: Protocol::Tcp,
            port: Some(TARGET_PORT.into()),
        }],
        endpoints: endpoints
            .into_iter()
            .map(|address| Endpoint {
                address: address.to_string(),
                node: Some("node-2".to_owned()),
                ..Endpoint::default()
            })
            .collect(),
    }
}

/// Tells a proxy of so many Services.
pub(crate) fn tell(proxy: &mut Proxy, services: usize) {
    for number in 0..services {
        proxy.service_changed(service(number));
        proxy.endpoint_slice_changed(&slice(number, endpoints(number, 0)));
    }
}

/// A Service as the API server has it, with what kubectl and the controllers
/// write into one.
pub(crate) fn service_object(number: usize) -> Value {
    let address = address(number).to_string();
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": name(number), "namespace": NAMESPACE,
            "uid": uid(number, 1), "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {"app": name(number)},
        },
        "spec": {
            "type": "ClusterIP", "clusterIP": address, "clusterIPs": [address],
            "internalTrafficPolicy": "Cluster", "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack", "sessionAffinity": "None",
            "selector": {"app": name(number)},
            "ports": [{"name": "http", "port": PORT, "protocol": "TCP", "targetPort": TARGET_PORT}],
        },
        "status": {"loadBalancer": {}},
    })
}

/// A slice as the EndpointSlice controller writes it.
pub(crate) fn slice_object(number: usize, endpoints: [Ipv4Addr; ENDPOINTS]) -> Value {
    let endpoints: Vec<Value> = endpoints
        .iter()
        .enumerate()
        .map(|(index, address)| {
            json!({
                "addresses": [address.to_string()],
                "conditions": {"ready": true, "serving": true, "terminating": false},
                "nodeName": "node-2", "zone": "zone-a",
                "targetRef": {
                    "kind": "Pod", "namespace": NAMESPACE,
                    "name": format!("{}-5d8f7c9b4-{index:05}", name(number)),
                    "uid": uid(number, 2 + index),
                },
            })
        })
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": format!("{}-abcde", name(number)), "namespace": NAMESPACE,
            "uid": uid(number, 9), "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {
                "kubernetes.io/service-name": name(number),
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                "app": name(number),
            },
            "annotations": {
                "endpoints.kubernetes.io/last-change-trigger-time": "2026-01-01T00:00:00Z",
            },
            "ownerReferences": [{
                "apiVersion": "v1", "kind": "Service", "name": name(number),
                "uid": uid(number, 1), "controller": true, "blockOwnerDeletion": true,
            }],
        },
        "addressType": "IPv4", "endpoints": endpoints,
        "ports": [{"name": "http", "port": TARGET_PORT, "protocol": "TCP"}],
    })
}

fn uid(number: usize, kind: usize) -> String {
    format!("{number:08x}-0000-4000-8000-{kind:012x}")
}
