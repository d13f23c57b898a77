//! The pod's resolv.conf, hosts and host name.

use std::net::IpAddr;

use k8s_openapi::api::core::v1 as k8s;

/// The kernel's limit on host names less the final zero (uname(2)), as
/// Kubernetes cuts them.
const HOSTNAME_LIMIT: usize = 63;

/// The pod's host name.
pub(crate) fn hostname(pod: &k8s::Pod) -> String {
    let spec = pod.spec.as_ref();
    let name = spec
        .and_then(|spec| spec.hostname.as_deref())
        .filter(|name| !name.is_empty())
        .or(pod.metadata.name.as_deref())
        .unwrap_or_default();
    let cut: String = name.chars().take(HOSTNAME_LIMIT).collect();
    cut.trim_end_matches(['-', '.']).to_owned()
}

/// The cluster's DNS, as the kubelet's command line has it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ClusterDns<'a> {
    pub(crate) servers: &'a [IpAddr],
    pub(crate) domain: &'a str,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Resolv {
    servers: Vec<String>,
    searches: Vec<String>,
    options: Vec<String>,
}

impl Resolv {
    fn parse(text: &str) -> Self {
        let mut resolv = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace().map(str::to_owned);
            match words.next().as_deref() {
                Some("nameserver") => resolv.servers.extend(words.next()),
                Some("search") => resolv.searches = words.collect(),
                Some("options") => resolv.options = words.collect(),
                _ => {}
            }
        }
        resolv
    }

    fn render(&self) -> String {
        let mut text = String::new();
        if !self.searches.is_empty() {
            text.push_str(&format!("search {}\n", self.searches.join(" ")));
        }
        for server in &self.servers {
            text.push_str(&format!("nameserver {server}\n"));
        }
        if !self.options.is_empty() {
            text.push_str(&format!("options {}\n", self.options.join(" ")));
        }
        text
    }
}

/// The pod's resolv.conf by its dnsPolicy and dnsConfig; `node` is the text of
/// the node's own.
pub(crate) fn resolv_conf(pod: &k8s::Pod, cluster: ClusterDns<'_>, node: &str) -> String {
    let spec = pod.spec.as_ref();
    let host_network = spec.and_then(|spec| spec.host_network) == Some(true);
    let policy = spec
        .and_then(|spec| spec.dns_policy.as_deref())
        .unwrap_or("ClusterFirst");
    let use_cluster = match policy {
        "None" | "Default" => false,
        "ClusterFirstWithHostNet" => true,
        _ => !host_network,
    } && !cluster.servers.is_empty();
    let mut resolv = match policy {
        "None" => Resolv::default(),
        _ => Resolv::parse(node),
    };
    if use_cluster {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
        let domain = cluster.domain;
        let own = std::mem::take(&mut resolv.searches);
        resolv = Resolv {
            servers: cluster.servers.iter().map(ToString::to_string).collect(),
            searches: vec![
                format!("{namespace}.svc.{domain}"),
                format!("svc.{domain}"),
                domain.to_owned(),
            ],
            options: vec!["ndots:5".into()],
        };
        resolv.searches.extend(own.into_iter().filter(|s| s != "."));
    }
    if let Some(config) = spec.and_then(|spec| spec.dns_config.as_ref()) {
        let add = |list: &mut Vec<String>, more: &Option<Vec<String>>| {
            for entry in more.iter().flatten() {
                if !list.contains(entry) {
                    list.push(entry.clone());
                }
            }
        };
        add(&mut resolv.servers, &config.nameservers);
        add(&mut resolv.searches, &config.searches);
        for option in config.options.iter().flatten() {
            let Some(name) = &option.name else { continue };
            // The pod's own option wins over one of the same name.
            resolv
                .options
                .retain(|have| have.split(':').next() != Some(name.as_str()));
            resolv.options.push(match &option.value {
                Some(value) if !value.is_empty() => format!("{name}:{value}"),
                _ => name.clone(),
            });
        }
    }
    // What the resolver reads at most (resolv.conf(5)), as Kubernetes cuts it.
    resolv.servers.truncate(3);
    resolv.searches.truncate(32);
    resolv.render()
}

/// The pod's /etc/hosts; `node` is the text of the node's own, which a pod on
/// the node's network sees.
pub(crate) fn hosts(pod: &k8s::Pod, ips: &[IpAddr], domain: &str, node: &str) -> String {
    let spec = pod.spec.as_ref();
    let mut text = String::new();
    if spec.and_then(|spec| spec.host_network) == Some(true) {
        text.push_str(node);
        if !node.is_empty() && !node.ends_with('\n') {
            text.push('\n');
        }
    } else {
        text.push_str(
            "# The pod's hosts file, kept by podwire.\n\
             127.0.0.1\tlocalhost\n\
             ::1\tlocalhost ip6-localhost ip6-loopback\n\
             fe00::0\tip6-localnet\n\
             ff00::0\tip6-mcastprefix\n\
             ff02::1\tip6-allnodes\n\
             ff02::2\tip6-allrouters\n",
        );
        let name = hostname(pod);
        let subdomain = spec
            .and_then(|spec| spec.subdomain.as_deref())
            .filter(|subdomain| !subdomain.is_empty());
        for ip in ips {
            match subdomain {
                Some(subdomain) => {
                    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
                    text.push_str(&format!(
                        "{ip}\t{name}.{subdomain}.{namespace}.svc.{domain}\t{name}\n"
                    ));
                }
                None => text.push_str(&format!("{ip}\t{name}\n")),
            }
        }
    }
    for alias in spec
        .iter()
        .flat_map(|spec| spec.host_aliases.iter().flatten())
    {
        let names = alias.hostnames.as_deref().unwrap_or_default();
        if !names.is_empty() {
            text.push_str(&format!("{}\t{}\n", alias.ip, names.join("\t")));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use serde_json::json;

    const NODE: &str = "nameserver 9.9.9.9\nsearch corp.example\noptions timeout:1\n";

    fn pod(spec: serde_json::Value) -> k8s::Pod {
        let mut spec = spec;
        spec["containers"] = json!([]);
        serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "ns"}, "spec": spec}))
            .unwrap()
    }

    #[rstest]
    #[case::cluster_first(
        json!({}),
        "search ns.svc.cluster.local svc.cluster.local cluster.local corp.example\nnameserver 10.96.0.10\nnameserver fd00:96::a\noptions ndots:5\n"
    )]
    #[case::default_policy(
        json!({"dnsPolicy": "Default"}),
        "search corp.example\nnameserver 9.9.9.9\noptions timeout:1\n"
    )]
    #[case::host_network_falls_back_to_the_node(
        json!({"hostNetwork": true}),
        "search corp.example\nnameserver 9.9.9.9\noptions timeout:1\n"
    )]
    #[case::own_configuration(
        json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["1.1.1.1"], "searches": ["a"], "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]}}),
        "search a\nnameserver 1.1.1.1\noptions ndots:2 edns0\n"
    )]
    #[case::own_option_wins(
        json!({"dnsConfig": {"options": [{"name": "ndots", "value": "1"}]}}),
        "search ns.svc.cluster.local svc.cluster.local cluster.local corp.example\nnameserver 10.96.0.10\nnameserver fd00:96::a\noptions ndots:1\n"
    )]
    fn resolv_conf_follows_policy_and_config(#[case] spec: serde_json::Value, #[case] text: &str) {
        let servers = ["10.96.0.10".parse().unwrap(), "fd00:96::a".parse().unwrap()];
        let cluster = ClusterDns {
            servers: &servers,
            domain: "cluster.local",
        };
        assert_eq!(resolv_conf(&pod(spec), cluster, NODE), text);
    }

    #[test]
    fn hosts_name_the_pod_in_both_families_and_its_aliases() {
        let pod = pod(
            json!({"hostname": "db-0", "subdomain": "db", "hostAliases": [{"ip": "10.1.1.1", "hostnames": ["a", "b"]}]}),
        );
        let text = hosts(
            &pod,
            &["10.2.0.3".parse().unwrap(), "fd00::3".parse().unwrap()],
            "cluster.local",
            "",
        );
        assert!(text.contains("10.2.0.3\tdb-0.db.ns.svc.cluster.local\tdb-0\n"));
        assert!(text.contains("fd00::3\tdb-0.db.ns.svc.cluster.local\tdb-0\n"));
        assert!(text.ends_with("10.1.1.1\ta\tb\n"));
    }

    #[test]
    fn a_pod_on_the_nodes_network_sees_the_nodes_hosts() {
        let pod = pod(json!({"hostNetwork": true}));
        assert_eq!(
            hosts(&pod, &[], "cluster.local", "127.0.0.1 x"),
            "127.0.0.1 x\n"
        );
    }

    #[test]
    fn long_names_are_cut_to_a_valid_host_name() {
        let mut pod = pod(json!({}));
        pod.metadata.name = Some(format!("{}-tail", "a".repeat(62)));
        assert_eq!(hostname(&pod), "a".repeat(62));
    }
}
