use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::api::core::v1 as k8s;
use linux::process::Process;
use serde_json::{Value, json};

use super::worker::{Delays, Worker};
use crate::container::{self, Shape};
use crate::plan::{names, quantity};
use crate::{cni, disk, paths};

impl Worker {
    /// The pod's running pause process, adopted or started and connected.
    pub(super) async fn ensure_sandbox(&self) -> Process {
        let existing = self.record.borrow().sandbox.clone();
        if let Some(sandbox) = existing {
            if let Some(process) = sandbox.pause.open()
                && sandbox.ready
            {
                return process;
            }
            self.lose_sandbox().await;
        }
        let mut delays = Delays::new(Duration::from_millis(250), Duration::from_secs(30));
        loop {
            match self.make_sandbox().await {
                Ok(process) => return process,
                Err(reason) => {
                    self.node.recorder.warning(
                        self.about(),
                        "FailedCreatePodSandBox",
                        format!("Failed to create pod sandbox: {reason}"),
                    );
                    self.remove_sandbox().await;
                    delays.wait().await;
                }
            }
        }
    }

    async fn make_sandbox(&self) -> Result<Process, String> {
        let pod = self.pod();
        let spec = pod.spec.as_ref().ok_or("the pod has no spec")?;
        let host_network = spec.host_network == Some(true);
        let network = if host_network {
            None
        } else {
            let mut network = self.node.network.clone();
            if network.borrow().is_none() {
                self.node.recorder.warning(
                    self.about(),
                    "NetworkNotReady",
                    "network is not ready: no CNI configuration in its folder yet".into(),
                );
            }
            let network = network.wait_for(Option::is_some).await;
            let network = network.map_err(|_| "the CNI configuration is no longer watched")?;
            network.clone()
        };
        let attempt = self.record.borrow().sandboxes;
        self.modify(|record| record.sandboxes += 1);
        let sysctls: BTreeMap<String, String> = spec
            .security_context
            .iter()
            .flat_map(|security| security.sysctls.iter().flatten())
            .map(|sysctl| (sysctl.name.clone(), sysctl.value.clone()))
            .collect();
        let shape = Shape {
            id: format!("{}-{attempt}", self.uid),
            hostname: names::hostname(&pod),
            host_network,
            host_ipc: spec.host_ipc == Some(true),
            sysctls,
        };
        let sandbox = container::start_sandbox(&shape).await?;
        let process = sandbox
            .pause
            .open()
            .ok_or("the pause process ended at once")?;
        let netns = sandbox.netns.clone();
        // Noted before anything else is made that hangs on it.
        self.modify(|record| record.sandbox = Some(sandbox));
        if let (Some(network), Some(netns)) = (&network, netns) {
            let attachment = cni::Attachment {
                container_id: shape.id.clone(),
                netns,
                namespace: pod.metadata.namespace.clone().unwrap_or_default(),
                name: pod.metadata.name.clone().unwrap_or_default(),
                uid: self.uid.clone(),
                settings: settings(
                    &pod,
                    &self.node.options.cluster_dns,
                    &self.node.options.cluster_domain,
                ),
            };
            let mut ips = cni::add(network, &self.node.options.cni_bin_dirs, &attachment)
                .await
                .map_err(|error| error.to_string())?;
            order(&mut ips, self.node.options.node_ips.first());
            self.modify(|record| {
                record.ips.clone_from(&ips);
                if let Some(sandbox) = &mut record.sandbox {
                    sandbox.ips = ips;
                }
            });
        }
        self.write_hosts(&pod)?;
        self.modify(|record| {
            if let Some(sandbox) = &mut record.sandbox {
                sandbox.ready = true;
            }
        });
        Ok(process)
    }

    /// Writes the pod's hosts, host name and resolv.conf files.
    fn write_hosts(&self, pod: &k8s::Pod) -> Result<(), String> {
        let options = &self.node.options;
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let dns = names::ClusterDns {
            servers: &options.cluster_dns,
            domain: &options.cluster_domain,
        };
        let host_network = pod.spec.as_ref().and_then(|spec| spec.host_network) == Some(true);
        let hostname = if host_network {
            read("/proc/sys/kernel/hostname").trim().to_owned()
        } else {
            names::hostname(pod)
        };
        let ips = self.record.borrow().ips.clone();
        let dir = paths::pod(&self.uid);
        for (name, text) in [
            (
                "etc-hosts",
                names::hosts(pod, &ips, &options.cluster_domain, &read("/etc/hosts")),
            ),
            ("hostname", format!("{hostname}\n")),
            (
                "resolv.conf",
                names::resolv_conf(pod, dns, &read("/etc/resolv.conf")),
            ),
        ] {
            let path = dir.join(name);
            disk::write_atomic(&path, text.as_bytes())
                .map_err(|error| format!("writing {}: {error}", path.display()))?;
        }
        Ok(())
    }

    /// Ends what depended on a sandbox that is no more, so that a new one can
    /// be made: all containers, then the network.
    pub(super) async fn lose_sandbox(&self) {
        self.node.recorder.normal(
            self.about(),
            "SandboxChanged",
            "Pod sandbox changed, it will be killed and re-created.".into(),
        );
        self.stop_all_at_once().await;
        self.remove_sandbox().await;
        let pod = self.pod();
        let inits = pod
            .spec
            .as_ref()
            .and_then(|spec| spec.init_containers.as_ref());
        // Init containers run again in a new sandbox.
        self.modify(|record| {
            record.ips.clear();
            record.initialized = inits.is_none_or(Vec::is_empty);
            for init in inits.into_iter().flatten() {
                if let Some(container) = record.containers.get_mut(&init.name) {
                    container.begin_again();
                }
            }
        });
    }

    /// Lets go of the network and the namespaces of a pod whose containers have
    /// ended; its addresses stay in its status.
    pub(super) async fn release_sandbox(&self) {
        self.remove_sandbox().await;
    }

    /// Disconnects the pod and ends its pause process, until it is done.
    pub(super) async fn remove_sandbox(&self) {
        let mut delays = Delays::new(Duration::from_millis(250), Duration::from_secs(30));
        loop {
            let sandbox = self.record.borrow().sandbox.clone();
            self.modify(|record| {
                if let Some(sandbox) = &mut record.sandbox {
                    sandbox.ready = false;
                }
            });
            let disconnected = cni::delete(&self.uid, &self.node.options.cni_bin_dirs).await;
            let removed = match (&disconnected, &sandbox) {
                (Ok(()), Some(sandbox)) => container::remove_sandbox(sandbox)
                    .await
                    .map_err(|error| error.to_string()),
                (Ok(()), None) => Ok(()),
                (Err(error), _) => Err(error.to_string()),
            };
            match removed {
                Ok(()) => break,
                Err(reason) => {
                    self.node.recorder.warning(
                        self.about(),
                        "FailedKillPodSandBox",
                        format!("error killing pod: {reason}"),
                    );
                    delays.wait().await;
                }
            }
        }
        if self.record.borrow().sandbox.is_some() {
            self.modify(|record| record.sandbox = None);
        }
    }
}

/// The primary family's addresses first: the node's.
fn order(ips: &mut [IpAddr], node: Option<&IpAddr>) {
    if let Some(node) = node {
        ips.sort_by_key(|ip| ip.is_ipv4() != node.is_ipv4());
    }
}

/// What a pod asks of the network beyond addresses, by CNI capability.
fn settings(pod: &k8s::Pod, dns: &[IpAddr], domain: &str) -> Value {
    let mut settings = json!({});
    let containers = pod.spec.iter().flat_map(|spec| {
        let sidecars = spec.init_containers.iter().flatten();
        spec.containers.iter().chain(sidecars)
    });
    let ports: Vec<Value> = containers
        .flat_map(|container| container.ports.iter().flatten())
        .filter_map(|port| {
            let host_port = port.host_port.filter(|port| *port > 0)?;
            Some(json!({
                "hostPort": host_port,
                "containerPort": port.container_port,
                "protocol": port.protocol.as_deref().unwrap_or("TCP").to_lowercase(),
                "hostIP": port.host_ip.as_deref().unwrap_or_default(),
            }))
        })
        .collect();
    if !ports.is_empty() {
        settings["portMappings"] = json!(ports);
    }
    if !dns.is_empty() {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
        settings["dns"] = json!({
            "servers": dns,
            "searches": [format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain],
            "options": ["ndots:5"],
        });
    }
    let rate = |direction: &str| {
        let name = format!("kubernetes.io/{direction}-bandwidth");
        let text = pod.metadata.annotations.as_ref()?.get(&name)?.clone();
        let milli = quantity::milli(&k8s_openapi::apimachinery::pkg::api::resource::Quantity(
            text,
        ))?;
        Some(milli / 1000)
    };
    let mut bandwidth = json!({});
    for direction in ["ingress", "egress"] {
        if let Some(rate) = rate(direction) {
            bandwidth[format!("{direction}Rate")] = json!(rate);
            // The largest burst the plugin takes: the rate alone limits.
            bandwidth[format!("{direction}Burst")] = json!(i32::MAX);
        }
    }
    if bandwidth != json!({}) {
        settings["bandwidth"] = bandwidth;
    }
    settings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_ports_and_bandwidth_become_capability_settings() {
        let pod: k8s::Pod = serde_json::from_value(json!({
            "metadata": {"annotations": {"kubernetes.io/egress-bandwidth": "10M"}},
            "spec": {"containers": [{"name": "c", "ports": [
                {"containerPort": 80, "hostPort": 8080, "protocol": "UDP", "hostIP": "127.0.0.1"},
                {"containerPort": 81}
            ]}]}
        }))
        .unwrap();
        assert_eq!(
            settings(&pod, &[], ""),
            json!({
                "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "udp", "hostIP": "127.0.0.1"}],
                "bandwidth": {"egressRate": 10_000_000, "egressBurst": i32::MAX}
            })
        );
    }

    #[test]
    fn the_nodes_first_family_is_the_pods_primary_one() {
        let mut ips: Vec<IpAddr> = vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()];
        order(&mut ips, Some(&"fd00::9".parse().unwrap()));
        assert!(ips[0].is_ipv6());
        order(&mut ips, Some(&"192.0.2.9".parse().unwrap()));
        assert!(ips[0].is_ipv4());
    }
}
