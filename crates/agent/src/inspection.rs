//! What `podwire inspect services` and `podwire inspect service` are told: the
//! service table in words, with the reasons. Made from the table and the
//! kernel's counters; the same table and rules the proxy works with.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};
use services::data_plane::Traffic;
use services::endpoints::Excluded;
use services::simulate::{Planned, Verdict, simulate};
use services::table::{Frontend, FrontendKind, Table};
use services::{
    Backend, FrontendKey, NodeFacts, Protocol, Proxy, ProxyMode, ServiceName, TrafficPolicy,
};

use crate::admin::{Question, Refusal};

/// What the kernel counted, by frontend and backend.
type Counts = HashMap<(FrontendKey, Backend), Counted>;

/// What can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// All Services, or the one of parameter `name`, `NAMESPACE/NAME`.
    Services,
    /// What becomes of a packet from parameter `source` to `destination`
    /// (`ADDRESS:PORT`) by `protocol`.
    Simulation,
}

/// A Service as the proxy sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// `NAMESPACE/NAME`.
    pub name: String,
    /// Why nothing of it is programmed, if so.
    pub not_programmed: Option<String>,
    /// Where it answers.
    pub frontends: Vec<FrontendView>,
    /// Its ports with all their endpoints; only when it was asked for by name.
    pub ports: Vec<Port>,
    /// Port and count of its health check, if it has one.
    pub health_check: Option<(u16, usize)>,
    /// What of it is left out, and why.
    pub problems: Vec<String>,
}

/// Where a Service answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrontendView {
    /// `ClusterIP`, `NodePort`, `LoadBalancer` or `ExternalIP`.
    pub kind: String,
    /// Address.
    pub address: IpAddr,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    /// Port.
    pub port: u16,
    /// The Service's name for the port; empty if it has none.
    pub port_name: String,
    /// `Cluster` or `Local`.
    pub policy: String,
    /// What becomes of a new connection, in words.
    pub verdict: String,
    /// For how long a client keeps its backend, in seconds.
    pub affinity_seconds: Option<u32>,
    /// Sources that may use it; everybody without.
    pub sources: Option<Vec<String>>,
    /// Where its traffic goes.
    pub backends: Vec<BackendView>,
    /// What the kernel counted for all its backends; absent if this proxy does not tell.
    pub counted: Option<Counted>,
}

/// A backend of a frontend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendView {
    /// Address and port.
    pub address: SocketAddr,
    /// What the kernel counted; absent if this proxy does not tell.
    pub counted: Option<Counted>,
}

/// What the kernel counted. Of the nftables and iptables proxies it is first packets
/// of connections, since translation sees no others; of IPVS all from clients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counted {
    /// Packets.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// A port of a Service for one family.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// Its name; empty if it has none.
    pub name: String,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    /// `IPv4` or `IPv6`.
    pub family: String,
    /// All endpoints that slices name for it.
    pub endpoints: Vec<EndpointView>,
}

/// An endpoint and why it is or is not used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointView {
    /// Address and port.
    pub address: SocketAddr,
    /// The node it runs on.
    pub node: Option<String>,
    /// Takes new connections.
    pub ready: bool,
    /// Answers.
    pub serving: bool,
    /// Is being deleted.
    pub terminating: bool,
    /// Why traffic of policy `Cluster` does not go to it; absent if it does.
    pub cluster_excluded: Option<String>,
    /// Why traffic of policy `Local` does not go to it; absent if it does.
    pub local_excluded: Option<String>,
}

/// What becomes of a packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Simulated {
    /// The Service it is for, if any.
    pub service: Option<String>,
    /// `direct`, `service`, `refused` or `dropped`.
    pub verdict: String,
    /// Where it may go: each backend that can be drawn.
    pub backends: Vec<SocketAddr>,
    /// Whether its source becomes the node's address; absent when it does not
    /// arrive anywhere. With several backends: for any of them.
    pub masqueraded: Option<bool>,
    /// The rules that matched on the way to the first backend, `CHAIN rule N`.
    pub steps: Vec<String>,
}

/// Answers from the thread that has the table.
pub(crate) fn answer(proxy: Option<&mut Proxy>, asked: &Asked, question: Question) {
    let Some(proxy) = proxy else {
        let why = "the packet filter cannot be used yet; podwire inspect status says why";
        return question.refuse(Refusal::Failed(why.into()));
    };
    let result = match asked {
        Asked::Services => services(proxy, question.parameter("name"))
            .map(|list| serde_json::to_value(list).unwrap_or_default()),
        Asked::Simulation => simulation(proxy.mode(), proxy.table(), &question)
            .map(|simulated| serde_json::to_value(simulated).unwrap_or_default()),
    };
    match result {
        Ok(value) => question.answer(&value),
        Err(refusal) => question.refuse(refusal),
    }
}

fn services(proxy: &mut Proxy, name: Option<&str>) -> Result<Vec<Service>, Refusal> {
    let traffic = proxy
        .traffic()
        .map_err(|error| Refusal::Failed(format!("cannot read the counters: {error}")))?;
    let counts: Counts = traffic.iter().map(counted).collect();
    let table = proxy.table();
    if let Some(name) = name {
        let (namespace, name) = name.split_once('/').ok_or_else(|| {
            Refusal::Invalid(format!("{name:?} is no Service: write NAMESPACE/NAME"))
        })?;
        let name = ServiceName::new(namespace, name);
        let service = view(table, &name, &counts, true).ok_or_else(|| {
            Refusal::NotFound(format!(
                "there is no Service {name} for this proxy; headless Services and those of \
                 other proxies (label service.kubernetes.io/service-proxy-name) are not watched"
            ))
        })?;
        return Ok(vec![service]);
    }
    let mut names: Vec<&ServiceName> = table.services().collect();
    names.sort_unstable();
    Ok(names
        .into_iter()
        .filter_map(|name| view(table, name, &counts, false))
        .collect())
}

/// A Service in words; `None` if there is none. Pure.
fn view(
    table: &Table,
    name: &ServiceName,
    counts: &Counts,
    with_endpoints: bool,
) -> Option<Service> {
    let explained = table.explain(name)?;
    let text = |excluded: Option<Excluded>| excluded.map(|e| e.text().to_owned());
    let ports = explained.ports.into_iter().filter(|_| with_endpoints);
    let ports = ports.map(|port| Port {
        name: port.name,
        protocol: port.protocol.name().to_owned(),
        family: match port.family {
            services::Family::V4 => "IPv4",
            services::Family::V6 => "IPv6",
        }
        .to_owned(),
        endpoints: port
            .endpoints
            .into_iter()
            .map(|endpoint| EndpointView {
                address: socket(endpoint.backend),
                node: endpoint.node.map(|node| node.to_string()),
                ready: endpoint.state.ready,
                serving: endpoint.state.serving,
                terminating: endpoint.state.terminating,
                cluster_excluded: text(endpoint.cluster),
                local_excluded: text(endpoint.local),
            })
            .collect(),
    });
    let frontends = table.frontends_of(name);
    Some(Service {
        name: name.to_string(),
        not_programmed: explained.not_programmed.map(str::to_owned),
        frontends: frontends
            .into_iter()
            .map(|(key, frontend)| frontend_view(key, &frontend, counts))
            .collect(),
        ports: ports.collect(),
        health_check: table
            .health_checks()
            .get(name)
            .map(|check| (check.port, check.local_endpoints)),
        problems: explained.problems.iter().map(ToString::to_string).collect(),
    })
}

fn frontend_view(key: FrontendKey, frontend: &Frontend, counts: &Counts) -> FrontendView {
    let local = frontend.policy == TrafficPolicy::Local;
    let used = if local {
        &frontend.local
    } else {
        &frontend.cluster
    };
    let verdict = match (used.len(), frontend.cluster.len()) {
        (0, 0) => "refused: no endpoint".to_owned(),
        (0, _) if local && frontend.kind.is_external() => {
            "dropped from outside: no endpoint on this node".to_owned()
        }
        (0, _) => "dropped: no endpoint on this node".to_owned(),
        (1, _) => "to 1 endpoint".to_owned(),
        (count, _) => format!("to {count} endpoints"),
    };
    // Pods and the node itself use endpoints elsewhere, too, where only
    // outside traffic must stay local.
    let mut all: Vec<Backend> = used.to_vec();
    if frontend.kind.is_external() {
        all.extend(frontend.cluster.iter());
        all.sort_unstable();
        all.dedup();
    }
    let backends: Vec<BackendView> = all
        .iter()
        .map(|backend| BackendView {
            address: socket(*backend),
            counted: counts.get(&(key, *backend)).copied(),
        })
        .collect();
    FrontendView {
        kind: match frontend.kind {
            FrontendKind::ClusterIp => "ClusterIP",
            FrontendKind::NodePort => "NodePort",
            FrontendKind::LoadBalancer => "LoadBalancer",
            FrontendKind::ExternalIp => "ExternalIP",
        }
        .to_owned(),
        address: key.address,
        protocol: key.protocol.name().to_owned(),
        port: key.port,
        port_name: frontend.port_name.to_string(),
        policy: if local { "Local" } else { "Cluster" }.to_owned(),
        verdict,
        affinity_seconds: frontend.affinity,
        sources: frontend
            .sources
            .as_ref()
            .map(|ranges| ranges.iter().map(ToString::to_string).collect()),
        counted: backends
            .iter()
            .filter_map(|backend| backend.counted)
            .reduce(|sum, one| Counted {
                packets: sum.packets.saturating_add(one.packets),
                bytes: sum.bytes.saturating_add(one.bytes),
            }),
        backends,
    }
}

fn counted(traffic: &Traffic) -> ((FrontendKey, Backend), Counted) {
    let counted = Counted {
        packets: traffic.packets,
        bytes: traffic.bytes,
    };
    ((traffic.frontend, traffic.backend), counted)
}

fn socket(backend: Backend) -> SocketAddr {
    SocketAddr::new(backend.address, backend.port)
}

fn simulation(mode: ProxyMode, table: &Table, question: &Question) -> Result<Simulated, Refusal> {
    fn parameter<T: std::str::FromStr>(question: &Question, name: &str) -> Result<T, Refusal> {
        let text = question
            .parameter(name)
            .ok_or_else(|| Refusal::Invalid(format!("the parameter {name} is missing")))?;
        text.parse()
            .map_err(|_| Refusal::Invalid(format!("{name} {text:?} cannot be read")))
    }
    let source: IpAddr = parameter(question, "source")?;
    let destination: SocketAddr = parameter(question, "destination")?;
    let protocol = match question.parameter("protocol").unwrap_or("tcp") {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "sctp" => Protocol::Sctp,
        other => {
            let why = format!("{other:?} is none of tcp, udp and sctp");
            return Err(Refusal::Invalid(why));
        }
    };
    if source.is_ipv4() != destination.is_ipv4() {
        let why = format!("{source} and {destination} are not of one family");
        return Err(Refusal::Invalid(why));
    }
    walk(mode, table, source, destination, protocol)
}

/// Sends a packet through the planned rules of a proxy once for each backend that can be
/// drawn. Pure.
fn walk(
    mode: ProxyMode,
    table: &Table,
    source: IpAddr,
    destination: SocketAddr,
    protocol: Protocol,
) -> Result<Simulated, Refusal> {
    let rules = Planned::of(mode, table)
        .map_err(|error| Refusal::Failed(format!("the planned rules make no sense: {error}")))?;
    let facts: &NodeFacts = table.facts();
    let to = (destination.ip(), destination.port());
    let mut choices = 1;
    let mut simulated: Option<Simulated> = None;
    let mut index = 0;
    while index < choices {
        let run = simulate(&rules, facts, source, to, protocol, &mut |count| {
            choices = choices.max(count);
            index.min(count.saturating_sub(1))
        });
        let (word, backend, masqueraded) = match run.verdict {
            Verdict::Direct { masqueraded } => ("direct", None, Some(masqueraded)),
            Verdict::Service {
                backend,
                masqueraded,
            } => ("service", Some(socket(backend)), Some(masqueraded)),
            Verdict::Refused => ("refused", None, None),
            Verdict::Dropped => ("dropped", None, None),
        };
        let simulated = simulated.get_or_insert_with(|| Simulated {
            service: None,
            verdict: word.to_owned(),
            backends: Vec::new(),
            masqueraded,
            steps: run.steps.clone(),
        });
        simulated.backends.extend(backend);
        simulated.masqueraded = simulated.masqueraded.max(masqueraded);
        index += 1;
    }
    let mut simulated =
        simulated.ok_or_else(|| Refusal::Failed("the packet met no rule at all".into()))?;
    simulated.backends.sort_unstable();
    simulated.backends.dedup();
    let key = FrontendKey {
        address: destination.ip(),
        protocol,
        port: destination.port(),
    };
    simulated.service = table
        .frontend(&key)
        .map(|frontend| frontend.service.to_string());
    Ok(simulated)
}

#[cfg(test)]
mod tests {
    use services::{Endpoint, EndpointSlice, ServicePort, SlicePort};

    use super::*;

    fn table() -> Table {
        let mut table = Table::new(NodeFacts {
            node: "node-1".into(),
            addresses: vec!["192.168.64.11".parse().unwrap()],
            pod_cidrs: vec!["10.200.1.0/24".parse().unwrap()],
            cluster_cidrs: vec!["10.200.0.0/16".parse().unwrap()],
            ..NodeFacts::default()
        });
        table.set_service(services::Service {
            name: ServiceName::new("shop", "web"),
            cluster_ips: vec!["10.96.0.7".into()],
            ports: vec![ServicePort {
                name: "http".into(),
                protocol: Protocol::Tcp,
                port: 80,
                node_port: None,
            }],
            ..services::Service::default()
        });
        let endpoint = |address: &str, ready: bool, node: &str| Endpoint {
            address: address.into(),
            ready: Some(ready),
            node: Some(node.into()),
            ..Endpoint::default()
        };
        table.set_slice(&EndpointSlice {
            namespace: "shop".into(),
            name: "web-1".into(),
            service: "web".into(),
            family: services::Family::V4,
            ports: vec![SlicePort {
                name: "http".into(),
                protocol: Protocol::Tcp,
                port: Some(8080),
            }],
            endpoints: vec![
                endpoint("10.200.1.5", true, "node-1"),
                endpoint("10.200.2.5", true, "node-2"),
                endpoint("10.200.2.6", false, "node-2"),
            ],
        });
        table
    }

    #[test]
    fn a_service_is_shown_with_each_endpoint_and_why_it_is_not_used() {
        let service = view(
            &table(),
            &ServiceName::new("shop", "web"),
            &Counts::new(),
            true,
        )
        .unwrap();
        let frontend = &service.frontends[0];
        assert_eq!((frontend.kind.as_str(), frontend.port), ("ClusterIP", 80));
        assert_eq!(frontend.verdict, "to 2 endpoints");
        assert_eq!(frontend.backends.len(), 2);
        let excluded: Vec<_> = service.ports[0]
            .endpoints
            .iter()
            .map(|e| (e.cluster_excluded.as_deref(), e.local_excluded.as_deref()))
            .collect();
        let expected = [
            (None, None),
            (None, Some("not on this node")),
            (Some("not ready"), Some("not on this node")),
        ];
        assert_eq!(excluded, expected);
        assert_eq!(
            view(
                &table(),
                &ServiceName::new("shop", "no"),
                &Counts::new(),
                true
            ),
            None
        );
    }

    #[test]
    fn a_simulated_packet_meets_the_planned_rules() {
        for (mode, step) in [
            (ProxyMode::Nftables, "service-prerouting rule 1"),
            (ProxyMode::Iptables, "nat PREROUTING rule 1"),
            (ProxyMode::Ipvs, "new-prerouting rule 1"),
        ] {
            let table = table();
            let to = |source: &str, destination: &str| {
                let (source, destination) = (source.parse().unwrap(), destination.parse().unwrap());
                walk(mode, &table, source, destination, Protocol::Tcp).unwrap()
            };
            let service = to("10.200.1.9", "10.96.0.7:80");
            assert_eq!(service.verdict, "service");
            assert_eq!(service.service.as_deref(), Some("shop/web"));
            let backends = ["10.200.1.5:8080", "10.200.2.5:8080"].map(|b| b.parse().unwrap());
            assert_eq!(service.backends, backends);
            assert_eq!(service.masqueraded, Some(false));
            assert_eq!(service.steps[0], step);
            assert_eq!(to("10.200.1.9", "10.96.0.7:81").verdict, "refused");
            assert_eq!(to("10.200.1.9", "10.200.2.5:8080").verdict, "direct");
        }
    }
}
