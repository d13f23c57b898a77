use std::net::IpAddr;
use std::path::PathBuf;

/// The command line of `podwire kubelet`.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Where the API server is and how to authenticate to it.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: PathBuf,

    /// The name of this node's Node object.
    #[arg(long, value_name = "NAME")]
    pub node: String,

    /// An address of this node; the family of the first is the pods' primary
    /// family.
    #[arg(long = "node-ip", value_name = "IP", required = true, num_args = 1..)]
    pub node_ips: Vec<IpAddr>,

    /// An address of the cluster's DNS service, written into the pods'
    /// resolv.conf.
    #[arg(long = "cluster-dns", value_name = "IP", num_args = 0..)]
    pub cluster_dns: Vec<IpAddr>,

    /// The DNS domain below which Services are named.
    #[arg(long, value_name = "DOMAIN", default_value = "cluster.local")]
    pub cluster_domain: String,

    /// The node's failure zone, its label topology.kubernetes.io/zone.
    #[arg(long, value_name = "ZONE")]
    pub zone: Option<String>,

    /// Where the CNI configuration is looked for; the first file by name counts.
    #[arg(long, value_name = "DIR", default_value = crate::paths::CNI_CONF_DIR)]
    pub cni_conf_dir: PathBuf,

    /// Where CNI plugins are looked for; may be given several times.
    #[arg(long = "cni-bin-dir", value_name = "DIR", default_values = [crate::paths::CNI_BIN_DIR, "/usr/lib/cni"])]
    pub cni_bin_dirs: Vec<PathBuf>,

    /// The network namespace in which images are pulled, as a path [default:
    /// the kubelet's own]. With files in /etc/netns/NAME, NAME being the path's
    /// last part, names are resolved there by these.
    #[arg(long, value_name = "PATH")]
    pub image_network: Option<PathBuf>,
}
