//! The Node object: registered, kept alive by its Lease, Ready when pods can be
//! connected.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1 as coordination;
use k8s_openapi::api::core::v1 as k8s;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference, Time};
use kube::api::{Api, Patch, PatchParams, PostParams};
use rustix::fs::inotify;
use serde_json::{Value, json};
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use crate::cni::Network;
use crate::{Error, Options};

/// Between renewals of the Lease.
const LEASE_RENEWAL: Duration = Duration::from_secs(10);
/// After this the node counts as lost.
const LEASE_SECONDS: i32 = 40;
/// Between status updates without a change.
const HEARTBEAT: Duration = Duration::from_secs(60);
/// Pods a node takes.
const PODS: u32 = 110;
/// The release of Kubernetes whose API and behaviour this kubelet follows.
const VERSION: &str = "v1.34.0+podwire";

/// Follows the CNI configuration in a folder: the network pods are connected
/// to, none while there is no usable configuration.
///
/// # Errors
/// When the folder can't be made or watched.
pub(crate) fn watch_network(dir: &Path) -> Result<watch::Receiver<Option<Network>>, Error> {
    let disk = |action: &'static str| {
        let path = dir.to_owned();
        move |source: std::io::Error| Error::Disk {
            action,
            path,
            source,
        }
    };
    std::fs::create_dir_all(dir).map_err(disk("making"))?;
    let watching = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)
        .map_err(|errno| disk("watching")(errno.into()))?;
    inotify::add_watch(
        &watching,
        dir,
        inotify::WatchFlags::CLOSE_WRITE | inotify::WatchFlags::MOVE | inotify::WatchFlags::DELETE,
    )
    .map_err(|errno| disk("watching")(errno.into()))?;
    let watching = crate::container::readable(watching).map_err(disk("watching"))?;
    let (sender, receiver) = watch::channel(read_network(dir));
    tokio::task::spawn_local(follow(dir.to_owned(), watching, sender));
    Ok(receiver)
}

fn read_network(dir: &Path) -> Option<Network> {
    let (network, errors) = Network::find(dir);
    for error in errors {
        tracing::warn!("passed over: {error}");
    }
    network
}

async fn follow(dir: PathBuf, watching: AsyncFd<OwnedFd>, sender: watch::Sender<Option<Network>>) {
    let mut buffer = [0; 4096];
    loop {
        let Ok(mut ready) = watching.readable().await else {
            return;
        };
        // What happened is of no interest: the folder is read anew.
        while rustix::io::read(watching.get_ref(), &mut buffer).is_ok_and(|read| read > 0) {}
        ready.clear_ready();
        let network = read_network(&dir);
        sender.send_if_modified(|current| {
            let changed = *current != network;
            *current = network;
            changed
        });
    }
}

/// Registers the node, then keeps its status and its Lease for ever.
pub(crate) async fn keep(
    client: kube::Client,
    options: Options,
    mut network: watch::Receiver<Option<Network>>,
) {
    let nodes: Api<k8s::Node> = Api::all(client.clone());
    let mut ready_since = Transition::default();
    let uid = loop {
        let has_network = network.borrow_and_update().is_some();
        let status = full_status(&options, ready_since.condition(has_network));
        match register(&nodes, &options, status).await {
            Ok(uid) => break uid,
            Err(error) => {
                tracing::warn!("registering node {}: {error}", options.node);
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        }
    };
    tracing::info!("node {} is registered", options.node);
    let leases: Api<coordination::Lease> = Api::namespaced(client, "kube-node-lease");
    let mut renewal = tokio::time::interval(LEASE_RENEWAL);
    renewal.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut heartbeat = tokio::time::interval(HEARTBEAT);
    heartbeat.reset();
    loop {
        let changed = tokio::select! {
            _ = renewal.tick() => {
                if let Err(error) = renew(&leases, &options.node, &uid).await {
                    tracing::debug!("renewing the lease: {error}");
                }
                false
            }
            _ = heartbeat.tick() => true,
            changed = network.changed() => changed.is_ok(),
        };
        if !changed {
            continue;
        }
        let has_network = network.borrow_and_update().is_some();
        let condition = ready_since.condition(has_network);
        let mut delay = Duration::from_millis(50);
        while let Err(error) = report(&nodes, &options.node, &condition).await {
            match error {
                kube::Error::Api(status) if status.code == 404 => {
                    // Deleted by hand: it comes back, as with Kubernetes.
                    let status = full_status(&options, condition.clone());
                    let _ = register(&nodes, &options, status).await;
                    break;
                }
                error => tracing::debug!("reporting the node's status: {error}"),
            }
            tokio::time::sleep(delay).await;
            delay = (delay * 2).min(Duration::from_secs(2));
        }
    }
}

/// Remembers since when the node is in its present state.
#[derive(Debug, Default)]
struct Transition {
    state: Option<(bool, Timestamp)>,
}

impl Transition {
    fn condition(&mut self, ready: bool) -> k8s::NodeCondition {
        let now = Timestamp::now();
        let since = match self.state {
            Some((before, since)) if before == ready => since,
            _ => now,
        };
        self.state = Some((ready, since));
        ready_condition(ready, since, now)
    }
}

fn ready_condition(ready: bool, since: Timestamp, now: Timestamp) -> k8s::NodeCondition {
    let (status, reason, message) = if ready {
        ("True", "KubeletReady", "kubelet is posting ready status")
    } else {
        (
            "False",
            "NetworkPluginNotReady",
            "container runtime network not ready: no CNI configuration in its folder yet; podwire's agent writes it when its first sync is done",
        )
    };
    k8s::NodeCondition {
        type_: "Ready".into(),
        status: status.into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_heartbeat_time: Some(Time(now)),
        last_transition_time: Some(Time(since)),
    }
}

async fn register(
    nodes: &Api<k8s::Node>,
    options: &Options,
    status: Value,
) -> Result<String, kube::Error> {
    let node = k8s::Node {
        metadata: ObjectMeta {
            name: Some(options.node.clone()),
            labels: Some(labels(options)),
            ..ObjectMeta::default()
        },
        ..k8s::Node::default()
    };
    match nodes.create(&PostParams::default(), &node).await {
        Ok(_) => {}
        Err(kube::Error::Api(refusal)) if refusal.code == 409 => {
            let patch = json!({"metadata": {"labels": labels(options)}});
            nodes
                .patch(&options.node, &PatchParams::default(), &Patch::Merge(patch))
                .await?;
        }
        Err(error) => return Err(error),
    }
    let patched = nodes
        .patch_status(
            &options.node,
            &PatchParams::default(),
            &Patch::Merge(status),
        )
        .await?;
    Ok(patched.metadata.uid.unwrap_or_default())
}

fn labels(options: &Options) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::from([
        ("kubernetes.io/hostname".into(), options.node.clone()),
        ("kubernetes.io/os".into(), "linux".into()),
        ("kubernetes.io/arch".into(), architecture().into()),
    ]);
    if let Some(zone) = &options.zone {
        labels.insert("topology.kubernetes.io/zone".into(), zone.clone());
    }
    labels
}

/// This machine's architecture as Go and OCI call it.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        other => other,
    }
}

fn full_status(options: &Options, ready: k8s::NodeCondition) -> Value {
    let mut addresses: Vec<Value> = options
        .node_ips
        .iter()
        .map(|ip| json!({"type": "InternalIP", "address": ip}))
        .collect();
    addresses.push(json!({"type": "Hostname", "address": options.node}));
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let memory = format!("{}Ki", memory_kib());
    let capacity = json!({"cpu": cpus.to_string(), "memory": memory, "pods": PODS.to_string()});
    let read = |path: &str| {
        std::fs::read_to_string(path)
            .unwrap_or_default()
            .trim()
            .to_owned()
    };
    let os_image = read("/etc/os-release")
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="))
        .map(|name| name.trim_matches('"').to_owned())
        .unwrap_or_default();
    let kernel = rustix::system::uname();
    let pressure = |kind: &str, reason: &str, message: &str| k8s::NodeCondition {
        type_: kind.into(),
        status: "False".into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        ..ready.clone()
    };
    let conditions = [
        pressure(
            "MemoryPressure",
            "KubeletHasSufficientMemory",
            "kubelet has sufficient memory available",
        ),
        pressure(
            "DiskPressure",
            "KubeletHasNoDiskPressure",
            "kubelet has no disk pressure",
        ),
        pressure(
            "PIDPressure",
            "KubeletHasSufficientPID",
            "kubelet has sufficient PID available",
        ),
        ready.clone(),
    ];
    json!({"status": {
        "addresses": addresses,
        "capacity": capacity,
        "allocatable": capacity,
        "conditions": conditions,
        "nodeInfo": {
            "architecture": architecture(),
            "operatingSystem": "linux",
            "osImage": os_image,
            "kernelVersion": kernel.release().to_string_lossy(),
            "bootID": read("/proc/sys/kernel/random/boot_id"),
            "machineID": read("/etc/machine-id"),
            "systemUUID": "",
            "containerRuntimeVersion": "crun://1",
            "kubeletVersion": VERSION,
            "kubeProxyVersion": "",
        },
    }})
}

fn memory_kib() -> u64 {
    std::fs::read_to_string("/proc/meminfo")
        .unwrap_or_default()
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}

/// Reports the Ready condition alone; the other lists stay as they are.
async fn report(
    nodes: &Api<k8s::Node>,
    name: &str,
    ready: &k8s::NodeCondition,
) -> Result<(), kube::Error> {
    let patch = json!({"status": {"conditions": [ready]}});
    nodes
        .patch_status(name, &PatchParams::default(), &Patch::Strategic(patch))
        .await
        .map(drop)
}

async fn renew(
    leases: &Api<coordination::Lease>,
    node: &str,
    uid: &str,
) -> Result<(), kube::Error> {
    let now = MicroTime(Timestamp::now());
    let patch = json!({"spec": {"renewTime": now}});
    match leases
        .patch(node, &PatchParams::default(), &Patch::Merge(patch))
        .await
    {
        Err(kube::Error::Api(refusal)) if refusal.code == 404 => {}
        other => return other.map(drop),
    }
    let lease = coordination::Lease {
        metadata: ObjectMeta {
            name: Some(node.into()),
            // The lease goes with the node.
            owner_references: Some(vec![OwnerReference {
                api_version: "v1".into(),
                kind: "Node".into(),
                name: node.into(),
                uid: uid.into(),
                ..OwnerReference::default()
            }]),
            ..ObjectMeta::default()
        },
        spec: Some(coordination::LeaseSpec {
            holder_identity: Some(node.into()),
            lease_duration_seconds: Some(LEASE_SECONDS),
            renew_time: Some(now),
            ..coordination::LeaseSpec::default()
        }),
    };
    leases
        .create(&PostParams::default(), &lease)
        .await
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_transition_time_moves_only_when_readiness_does() {
        let mut transition = Transition::default();
        let first = transition.condition(false);
        let again = transition.condition(false);
        assert_eq!(first.last_transition_time, again.last_transition_time);
        assert_eq!(again.reason.as_deref(), Some("NetworkPluginNotReady"));
        assert_eq!(transition.condition(true).status, "True");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_configuration_written_later_is_seen_by_inotify() {
        let dir = tempfile::tempdir().unwrap();
        let local = tokio::task::LocalSet::new();
        local
            .run_until(async {
                let mut network = watch_network(dir.path()).unwrap();
                assert!(network.borrow_and_update().is_none());
                let list = r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"a"}]}"#;
                crate::disk::write_atomic(&dir.path().join("10-n.conflist"), list.as_bytes())
                    .unwrap();
                tokio::time::timeout(Duration::from_secs(5), network.changed())
                    .await
                    .unwrap()
                    .unwrap();
                assert_eq!(network.borrow_and_update().as_ref().unwrap().name, "n");
                std::fs::remove_file(dir.path().join("10-n.conflist")).unwrap();
                tokio::time::timeout(Duration::from_secs(5), network.wait_for(Option::is_none))
                    .await
                    .unwrap()
                    .unwrap();
            })
            .await;
    }
}
