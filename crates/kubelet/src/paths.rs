//! Where a node keeps what the kubelet makes.

use std::path::PathBuf;

/// CNI configuration lists.
pub const CNI_CONF_DIR: &str = "/etc/cni/net.d";
/// CNI plugins.
pub const CNI_BIN_DIR: &str = "/opt/cni/bin";
/// A folder for each pod: its record, volumes, hosts and resolv.conf.
pub const PODS: &str = "/var/lib/kubelet/pods";
/// A folder for each container: OCI bundle and writable layer. Must lie on a
/// file system that can carry an overlay's upper layer, as tmpfs can.
pub const CONTAINERS: &str = "/var/lib/podwire/containers";
/// Images, shared by the nodes of a lab.
pub const IMAGES: &str = "/var/lib/podwire/images";
/// Container logs in the CRI format.
pub const LOGS: &str = "/var/log/pods";
/// State of the OCI runtime.
pub const CRUN_ROOT: &str = "/run/crun";
/// Mounts that name the pods' network namespaces.
pub const NETNS: &str = "/run/netns";
/// The machine's own `/`, the image `host:`.
pub const HOST_ROOT: &str = "/run/podwire/host-root";

/// The folder of a pod.
pub fn pod(uid: &str) -> PathBuf {
    PathBuf::from(PODS).join(uid)
}

/// The folder of a container.
pub fn container(id: &str) -> PathBuf {
    PathBuf::from(CONTAINERS).join(id)
}

/// The folder of a pod's logs.
pub fn pod_logs(namespace: &str, name: &str, uid: &str) -> PathBuf {
    PathBuf::from(LOGS).join(format!("{namespace}_{name}_{uid}"))
}

/// The log of one run of a container.
pub fn container_log(
    namespace: &str,
    name: &str,
    uid: &str,
    container: &str,
    attempt: u32,
) -> PathBuf {
    pod_logs(namespace, name, uid)
        .join(container)
        .join(format!("{attempt}.log"))
}
