//! The addresses of the rows, and the objects that make them.

#![allow(dead_code, reason = "shared by several test binaries")]

use super::rule::{Caller, Endpoints, Policy, Report, Target};
use crate::world::{NODE4, NODE6, OUTSIDE4, OUTSIDE6, World, pod4, pod6, service, slice};
use podwire_services::{
    EndpointSlice, Family, NodeFacts, Protocol, Service, ServicePort, SlicePort, TrafficPolicy,
};

/// One family's addresses.
pub(crate) struct Plan {
    pub(crate) family: Family,
    pub(crate) cluster: &'static str,
    pub(crate) node: &'static str,
    pub(crate) load_balancer: &'static str,
    pub(crate) external: &'static str,
    pub(crate) outside: &'static str,
    pub(crate) remote: &'static str,
    pub(crate) pod: fn(usize) -> String,
}

pub(crate) const PLANS: [Plan; 2] = [
    Plan {
        family: Family::V4,
        cluster: "10.96.0.10",
        node: NODE4,
        load_balancer: "198.51.100.1",
        external: "198.51.100.9",
        outside: OUTSIDE4,
        remote: "10.200.2.10",
        pod: pod4,
    },
    Plan {
        family: Family::V6,
        cluster: "fd00:96::10",
        node: NODE6,
        load_balancer: "2001:db8::1",
        external: "2001:db8::9",
        outside: OUTSIDE6,
        remote: "fd00:200:0:2::a",
        pod: pod6,
    },
];

pub(crate) const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

impl Plan {
    /// A caller's own address.
    pub(crate) fn caller(&self, caller: Caller) -> String {
        match caller {
            Caller::Pod => (self.pod)(1),
            Caller::Endpoint => (self.pod)(0),
            Caller::Node => self.node.to_owned(),
            Caller::Outside => self.outside.to_owned(),
        }
    }

    /// Address and port that are asked.
    pub(crate) const fn target(&self, target: Target) -> (&'static str, u16) {
        match target {
            Target::ClusterIp => (self.cluster, 80),
            Target::NodePort => (self.node, 30080),
            Target::LoadBalancer => (self.load_balancer, 80),
            Target::ExternalIp => (self.external, 80),
        }
    }
}

/// What a row is seen by.
pub(crate) fn columns(
    protocols: &'static [Protocol],
) -> impl Iterator<Item = (Protocol, &'static Plan)> {
    protocols
        .iter()
        .flat_map(|protocol| PLANS.iter().map(move |plan| (*protocol, plan)))
}

/// A report with these columns.
pub(crate) fn report(protocols: &'static [Protocol]) -> Report {
    Report::new(columns(protocols).map(|(protocol, plan)| {
        let family = match plan.family {
            Family::V4 => 4,
            Family::V6 => 6,
        };
        format!("{}{family}", protocol.name())
    }))
}

/// The Service of the rows.
pub(crate) fn web(policy: Policy) -> Service {
    let mut web = service("web", &PLANS.map(|plan| plan.cluster), 80, Some(30080));
    web.ports.push(ServicePort {
        name: "sctp".to_owned(),
        protocol: Protocol::Sctp,
        port: 80,
        node_port: Some(30080),
    });
    web.load_balancer_ips = PLANS.map(|plan| plan.load_balancer.to_owned()).to_vec();
    web.external_ips = PLANS.map(|plan| plan.external.to_owned()).to_vec();
    let chosen = |local| match local {
        true => TrafficPolicy::Local,
        false => TrafficPolicy::Cluster,
    };
    web.external_policy = chosen(policy.is_local(false));
    web.internal_policy = chosen(policy.is_local(true));
    web
}

/// Its slices.
pub(crate) fn slices(endpoints: Endpoints) -> [EndpointSlice; 2] {
    PLANS.map(|plan| {
        let local = (plan.pod)(0);
        let list: Vec<&str> = endpoints
            .names()
            .iter()
            .map(|name| match *name {
                "local" => &*local,
                _ => plan.remote,
            })
            .collect();
        let name = match plan.family {
            Family::V4 => "web-4",
            Family::V6 => "web-6",
        };
        let mut slice = slice("web", name, &list, 8080);
        slice.ports.push(SlicePort {
            name: "sctp".to_owned(),
            protocol: Protocol::Sctp,
            port: Some(8080),
        });
        for endpoint in &mut slice.endpoints {
            if endpoint.address == plan.remote {
                endpoint.node = Some("node-2".to_owned());
            }
        }
        slice
    })
}

/// The node of the rows.
pub(crate) fn facts() -> NodeFacts {
    NodeFacts {
        external_ip_cidrs: PLANS
            .map(|plan| {
                format!(
                    "{}/{}",
                    plan.external,
                    if plan.external.contains(':') { 128 } else { 32 }
                )
            })
            .map(|range| range.parse().expect("a literal"))
            .to_vec(),
        ..World::plain_facts()
    }
}
