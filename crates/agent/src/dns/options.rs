//! The part of the command line that is about DNS.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ::dns::PodRecords;
use ::dns::config::{CacheLimits, Config, Forwarding};
use ::dns::resolv_conf::{PORT, ResolvConf, parse};
use hickory_proto::rr::Name;

/// Link-local addresses the node answers at too, as node-local-dns has them.
const LOCAL4: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(169, 254, 20, 10));
/// A unique local one: a link-local IPv6 address would need the name of a link.
const LOCAL6: IpAddr = IpAddr::V6(std::net::Ipv6Addr::new(0xfd00, 0x20, 0, 0, 0, 0, 0, 0x10));

/// What this node's DNS is in the cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// Nothing: another project answers.
    #[default]
    Off,
    /// The cluster's DNS: answers for Services and pods from the API.
    Replace,
    /// A cache in front of the endpoints of the Service kube-system/kube-dns.
    Cache,
}

/// Which names pods' addresses have (a-b-c-d.NAMESPACE.pod.DOMAIN).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Pods {
    /// None.
    #[default]
    Disabled,
    /// Any address has one.
    Insecure,
    /// Those of pods have one; needs a watch of all pods.
    Verified,
}

/// Cluster DNS on this node.
#[derive(Clone, Debug, clap::Args)]
pub struct DnsOptions {
    /// Answer DNS questions of this node and its pods, in place of another
    /// cluster DNS or as a cache in front of it.
    #[arg(long, env = "PODWIRE_DNS", value_enum, default_value_t = Mode::Off)]
    pub dns: Mode,

    /// Address of the cluster's DNS, one a family: the cluster address of the
    /// Service kube-system/kube-dns.
    #[arg(long, env = "PODWIRE_CLUSTER_DNS", value_delimiter = ',', value_name = "ADDRESS",
        required_if_eq_any = [("dns", "replace"), ("dns", "cache")])]
    pub cluster_dns: Vec<IpAddr>,

    /// Domain Services are named below.
    #[arg(long, env = "PODWIRE_CLUSTER_DOMAIN", default_value = "cluster.local",
        value_name = "DOMAIN", value_parser = domain)]
    pub cluster_domain: Name,

    /// Further address to answer at, which only this node reaches [default:
    /// 169.254.20.10 and fd00:20::10, of the families of --cluster-dns].
    #[arg(long, value_name = "ADDRESS")]
    pub dns_local: Vec<IpAddr>,

    /// Server to ask for names that are not the cluster's, ADDRESS or
    /// ADDRESS:PORT [default: those of the node's resolv.conf].
    #[arg(long, env = "PODWIRE_DNS_UPSTREAM", value_delimiter = ',', value_name = "SERVER",
        value_parser = server)]
    pub dns_upstream: Vec<SocketAddr>,

    /// Server to ask for names below a domain.
    #[arg(long, env = "PODWIRE_DNS_STUB", value_delimiter = ',', value_name = "DOMAIN=SERVER",
        value_parser = stub)]
    pub dns_stub: Vec<(Name, SocketAddr)>,

    /// The node's resolv.conf, for its servers and search domains.
    #[arg(long, default_value = "/etc/resolv.conf", value_name = "FILE")]
    pub dns_resolv_conf: PathBuf,

    /// Names of pods' addresses.
    #[arg(long, env = "PODWIRE_DNS_PODS", value_enum, default_value_t = Pods::Disabled)]
    pub dns_pods: Pods,

    /// Time to live of the cluster's names, in seconds.
    #[arg(long, default_value_t = 5, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(0..=3600))]
    pub dns_ttl: u32,

    /// Questions each client may ask a second, and ten times as many at once; 0: no limit.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub dns_client_rate: u32,

    /// Leave it to pods to walk their search lists.
    #[arg(long)]
    pub dns_no_search_completion: bool,

    /// Ask again for names that are in use before their time is over.
    #[arg(long)]
    pub dns_prefetch: bool,

    /// While upstream servers fail, answer what was known so many seconds after
    /// its time is over.
    #[arg(long, default_value_t = 0, value_name = "SECONDS")]
    pub dns_serve_stale: u32,
}

fn domain(text: &str) -> Result<Name, String> {
    let mut name = Name::from_ascii(text).map_err(|error| error.to_string())?;
    if name.is_root() {
        return Err("the root is no domain of a cluster".into());
    }
    name.set_fqdn(true);
    Ok(name)
}

fn server(text: &str) -> Result<SocketAddr, String> {
    let address = text.parse::<IpAddr>();
    address
        .map(|address| SocketAddr::new(address, PORT))
        .or_else(|_| text.parse())
        .map_err(|_| "neither an address nor ADDRESS:PORT".to_owned())
}

fn stub(text: &str) -> Result<(Name, SocketAddr), String> {
    let (of, to) = text.split_once('=').ok_or("it has to be DOMAIN=SERVER")?;
    Ok((domain(of)?, server(to)?))
}

impl DnsOptions {
    /// Where it listens: in the cluster, and for this node alone.
    pub(super) fn addresses(&self) -> Vec<IpAddr> {
        let mut addresses = self.cluster_dns.clone();
        if self.dns_local.is_empty() {
            let is_wanted = |local: &IpAddr| {
                self.cluster_dns
                    .iter()
                    .any(|a| a.is_ipv4() == local.is_ipv4())
            };
            addresses.extend([LOCAL4, LOCAL6].into_iter().filter(is_wanted));
        } else {
            addresses.extend(&self.dns_local);
        }
        addresses
    }

    /// The node's resolv.conf; empty when it cannot be read.
    pub(super) fn resolv_conf(&self) -> ResolvConf {
        let file = &self.dns_resolv_conf;
        let text = std::fs::read_to_string(file).unwrap_or_else(|error| {
            tracing::warn!("cannot read {}: {error}", file.display());
            String::new()
        });
        let read = parse(&text, &self.addresses());
        for problem in &read.problems {
            tracing::warn!("{}: {problem}", file.display());
        }
        read
    }

    pub(super) fn config(
        &self,
        options: &crate::Options,
        own: &[IpAddr],
        node: &ResolvConf,
    ) -> Config {
        let mut stubs: Vec<(Name, Vec<SocketAddr>)> = Vec::new();
        for (domain, server) in &self.dns_stub {
            match stubs.iter_mut().find(|(known, _)| known == domain) {
                Some((_, servers)) => servers.push(*server),
                None => stubs.push((domain.clone(), vec![*server])),
            }
        }
        let authoritative = self.dns == Mode::Replace;
        Config {
            authoritative,
            ttl: self.dns_ttl,
            pods: match self.dns_pods {
                Pods::Disabled => PodRecords::Disabled,
                Pods::Insecure => PodRecords::Insecure,
                Pods::Verified => PodRecords::Verified,
            },
            reverse: [&*options.cluster_cidr, &*options.service_cidr].concat(),
            listen: own
                .iter()
                .map(|address| SocketAddr::new(*address, PORT))
                .collect(),
            search_completion: authoritative && !self.dns_no_search_completion,
            client_rate: self.dns_client_rate,
            forwarding: Forwarding {
                upstreams: match (authoritative, self.dns_upstream.is_empty()) {
                    (true, true) => node.servers.clone(),
                    (true, false) => self.dns_upstream.clone(),
                    (false, _) => Vec::new(),
                },
                stubs,
                cache: CacheLimits {
                    prefetch: self.dns_prefetch,
                    serve_stale: Duration::from_secs(self.dns_serve_stale.into()),
                    ..CacheLimits::default()
                },
                ..Forwarding::default()
            },
            ..Config::new(self.cluster_domain.clone())
        }
    }
}
