//! What a lab looks like: nodes, pods and Services, for people and as JSON.

use std::io::IsTerminal;
use std::path::PathBuf;

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;
use serde_json::Value;

use crate::cluster::{Cluster, condition, elements, number, text, texts};
use crate::readiness::{Problem, ready_endpoints};

/// A lab at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Summary {
    name: String,
    kubeconfig: PathBuf,
    ready: bool,
    nodes: Vec<Node>,
    pods: Vec<Pod>,
    services: Vec<Service>,
    problems: Vec<Problem>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Node {
    name: String,
    addresses: Vec<String>,
    pod_ranges: Vec<String>,
    ready: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Pod {
    namespace: String,
    name: String,
    ready: bool,
    status: String,
    restarts: i64,
    addresses: Vec<String>,
    node: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Service {
    namespace: String,
    name: String,
    #[serde(rename = "type")]
    kind: String,
    addresses: Vec<String>,
    ports: Vec<String>,
    endpoints: Vec<String>,
    /// Each node answers itself, and needs no endpoints for it.
    #[serde(skip)]
    on_nodes: bool,
}

impl Summary {
    /// Reads it off the cluster.
    pub(crate) fn new(
        name: &str,
        kubeconfig: PathBuf,
        cluster: &Cluster,
        problems: Vec<Problem>,
    ) -> Self {
        let owned = |values: Vec<&str>| values.into_iter().map(str::to_owned).collect();
        let nodes = cluster
            .all("Node")
            .map(|node| Node {
                name: text(node, "/metadata/name").to_owned(),
                addresses: elements(node, "/status/addresses")
                    .filter(|address| text(address, "/type") == "InternalIP")
                    .map(|address| text(address, "/address").to_owned())
                    .collect(),
                pod_ranges: owned(texts(node, "/spec/podCIDRs").collect()),
                ready: matches!(condition(node, "Ready"), Some(("True", _))),
            })
            .collect();
        let pods = cluster.all("Pod").map(pod).collect();
        let services = cluster
            .all("Service")
            .map(|service| Service {
                namespace: text(service, "/metadata/namespace").to_owned(),
                name: text(service, "/metadata/name").to_owned(),
                kind: text(service, "/spec/type").to_owned(),
                addresses: owned(texts(service, "/spec/clusterIPs").collect()),
                ports: elements(service, "/spec/ports").map(port).collect(),
                endpoints: endpoints(service, cluster),
                on_nodes: is_cluster_dns(service),
            })
            .collect();
        Self {
            name: name.to_owned(),
            kubeconfig,
            ready: problems.is_empty(),
            nodes,
            pods,
            services,
            problems,
        }
    }

    /// As tables.
    pub(crate) fn tables(&self) -> String {
        let mut out = String::new();
        let mut add = |title: &str, header: &[&str], rows: Vec<Vec<String>>| {
            if rows.is_empty() {
                return;
            }
            let mut table = Table::new();
            table.load_preset(presets::NOTHING);
            // As wide as it gets when it is not for eyes.
            table.set_content_arrangement(if std::io::stdout().is_terminal() {
                ContentArrangement::Dynamic
            } else {
                ContentArrangement::Disabled
            });
            table.set_header(header);
            table.add_rows(rows);
            if !out.is_empty() {
                out.push('\n');
            }
            out.push_str(title);
            out.push('\n');
            for line in table.lines() {
                out.push_str(line.trim_end());
                out.push('\n');
            }
        };
        let yes = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
        let title = |namespace: &str, name: &str| match namespace {
            "default" => name.to_owned(),
            namespace => format!("{namespace}/{name}"),
        };
        add(
            "Nodes",
            &["NAME", "READY", "ADDRESSES", "POD RANGES"],
            self.nodes
                .iter()
                .map(|node| {
                    vec![
                        node.name.clone(),
                        yes(node.ready),
                        node.addresses.join(" "),
                        node.pod_ranges.join(" "),
                    ]
                })
                .collect(),
        );
        add(
            "Pods",
            &["NAME", "READY", "STATUS", "RESTARTS", "ADDRESSES", "NODE"],
            self.pods
                .iter()
                .map(|pod| {
                    vec![
                        title(&pod.namespace, &pod.name),
                        yes(pod.ready),
                        pod.status.clone(),
                        pod.restarts.to_string(),
                        pod.addresses.join(" "),
                        pod.node.clone(),
                    ]
                })
                .collect(),
        );
        add(
            "Services",
            &["NAME", "TYPE", "ADDRESSES", "PORTS", "ENDPOINTS"],
            self.services
                .iter()
                .map(|service| {
                    vec![
                        title(&service.namespace, &service.name),
                        service.kind.clone(),
                        service.addresses.join(" "),
                        service.ports.join(" "),
                        if service.on_nodes && service.endpoints.is_empty() {
                            "each node itself".into()
                        } else {
                            shortened(&service.endpoints)
                        },
                    ]
                })
                .collect(),
        );
        out
    }
}

/// At most four, and how many more there are.
fn shortened(list: &[String]) -> String {
    match list.get(..4) {
        Some(first) if list.len() > 4 => format!("{} +{} more", first.join(" "), list.len() - 4),
        _ if list.is_empty() => "none".into(),
        _ => list.join(" "),
    }
}

fn pod(pod: &Value) -> Pod {
    let statuses = || elements(pod, "/status/containerStatuses");
    let waiting = statuses()
        .map(|status| text(status, "/state/waiting/reason"))
        .find(|reason| !reason.is_empty());
    let status = if pod.pointer("/metadata/deletionTimestamp").is_some() {
        "Terminating"
    } else {
        waiting.unwrap_or_else(|| text(pod, "/status/phase"))
    };
    Pod {
        namespace: text(pod, "/metadata/namespace").to_owned(),
        name: text(pod, "/metadata/name").to_owned(),
        ready: matches!(condition(pod, "Ready"), Some(("True", _))),
        status: status.to_owned(),
        restarts: statuses()
            .map(|status| number(status, "/restartCount"))
            .sum(),
        addresses: elements(pod, "/status/podIPs")
            .map(|entry| text(entry, "/ip").to_owned())
            .collect(),
        node: text(pod, "/spec/nodeName").to_owned(),
    }
}

fn port(port: &Value) -> String {
    let protocol = match text(port, "/protocol") {
        "" => "TCP",
        protocol => protocol,
    };
    let (number, node) = (number(port, "/port"), number(port, "/nodePort"));
    match node {
        0 => format!("{number}/{protocol}"),
        node => format!("{number}:{node}/{protocol}"),
    }
}

/// Whether it is the Service of the DNS that the agents are.
fn is_cluster_dns(service: &Value) -> bool {
    text(service, "/metadata/namespace") == "kube-system"
        && text(service, "/metadata/name") == "kube-dns"
        && service.pointer("/spec/selector").is_none()
}

fn endpoints(service: &Value, cluster: &Cluster) -> Vec<String> {
    let (namespace, name) = (
        text(service, "/metadata/namespace"),
        text(service, "/metadata/name"),
    );
    let mut endpoints: Vec<String> = ready_endpoints(namespace, name, cluster)
        .flat_map(|(address, ports)| {
            ports.into_iter().map(move |port| {
                if address.contains(':') {
                    format!("[{address}]:{port}")
                } else {
                    format!("{address}:{port}")
                }
            })
        })
        .collect();
    endpoints.sort_by_key(|endpoint| (endpoint.starts_with('['), endpoint.clone()));
    endpoints.dedup();
    endpoints
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_lab_shows_its_nodes_pods_and_services() {
        let cluster = Cluster::of([
            json!({"kind": "Node", "metadata": {"name": "node-1"},
                "spec": {"podCIDRs": ["10.200.0.0/24", "fd00:200::/64"]},
                "status": {"addresses": [{"type": "Hostname", "address": "node-1"},
                    {"type": "InternalIP", "address": "192.168.64.11"}],
                    "conditions": [{"type": "Ready", "status": "True"}]}}),
            json!({"kind": "Pod", "metadata": {"name": "web-0", "namespace": "shop"},
                "spec": {"nodeName": "node-1"},
                "status": {"phase": "Running", "podIPs": [{"ip": "10.200.0.2"}],
                    "conditions": [{"type": "Ready", "status": "True"}],
                    "containerStatuses": [{"restartCount": 2}, {"restartCount": 1}]}}),
            json!({"kind": "Service", "metadata": {"name": "web", "namespace": "shop"},
                "spec": {"type": "NodePort", "clusterIPs": ["10.96.0.20"],
                    "ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"}]}}),
            json!({"kind": "EndpointSlice", "metadata": {"name": "web-a", "namespace": "shop",
                "labels": {"kubernetes.io/service-name": "web"}},
                "ports": [{"port": 8080}],
                "endpoints": [{"addresses": ["10.200.0.2"]}, {"addresses": ["fd00:200::2"]}]}),
            json!({"kind": "Service", "metadata": {"name": "kube-dns", "namespace": "kube-system"},
                "spec": {"type": "ClusterIP", "clusterIPs": ["10.96.0.10"],
                    "ports": [{"port": 53, "protocol": "UDP"}]}}),
            json!({"kind": "Service", "metadata": {"name": "idle", "namespace": "shop"},
                "spec": {"type": "ClusterIP", "clusterIPs": ["10.96.0.21"],
                    "ports": [{"port": 80, "protocol": "TCP"}]}}),
        ]);
        let summary = Summary::new("lab", "/k".into(), &cluster, Vec::new());
        assert_eq!(
            summary.tables(),
            "\
Nodes
 NAME    READY  ADDRESSES      POD RANGES
 node-1  yes    192.168.64.11  10.200.0.0/24 fd00:200::/64

Pods
 NAME        READY  STATUS   RESTARTS  ADDRESSES   NODE
 shop/web-0  yes    Running  3         10.200.0.2  node-1

Services
 NAME                  TYPE       ADDRESSES   PORTS         ENDPOINTS
 kube-system/kube-dns  ClusterIP  10.96.0.10  53/UDP        each node itself
 shop/idle             ClusterIP  10.96.0.21  80/TCP        none
 shop/web              NodePort   10.96.0.20  80:30080/TCP  10.200.0.2:8080 [fd00:200::2]:8080
"
        );
        let json = serde_json::to_value(&summary).unwrap();
        assert_eq!(json["nodes"][0]["podRanges"][0], "10.200.0.0/24");
        assert_eq!(json["ready"], true);
    }

    #[test]
    fn long_lists_are_shortened() {
        let list: Vec<String> = (0..6).map(|n| n.to_string()).collect();
        assert_eq!(shortened(&list), "0 1 2 3 +2 more");
        assert_eq!(shortened(&list[..4]), "0 1 2 3");
        assert_eq!(shortened(&[]), "none");
    }
}
