//! The command line of `podwire agent`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use services::iptables::Variant;
use services::ipvs::Scheduler;
use services::{ProxyMode, ProxySettings};

/// How pods are attached to the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Attach {
    /// To a bridge.
    Bridge,
    /// Each by a link and a route of its own, without a bridge.
    Routed,
}

impl Attach {
    /// As the CNI configuration has it.
    pub fn mode(self) -> cni::configuration::AttachMode {
        match self {
            Attach::Bridge => cni::configuration::AttachMode::Bridge,
            Attach::Routed => cni::configuration::AttachMode::Routed,
        }
    }
}

/// At which of the node's addresses node ports answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodePortAddress {
    /// At its primary ones.
    Primary,
    /// At those of all its interfaces.
    All,
    /// At those within a range.
    Range(IpNet),
}

impl std::str::FromStr for NodePortAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "primary" => Ok(NodePortAddress::Primary),
            "all" => Ok(NodePortAddress::All),
            range => range.parse().map(NodePortAddress::Range).map_err(|_| {
                format!("{range:?} is none of primary, all, and a range such as 192.0.2.0/24")
            }),
        }
    }
}

/// A time that is not zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Period(pub Duration);

impl std::str::FromStr for Period {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (number, scale) = match text.strip_suffix("ms") {
            Some(number) => (number, 1),
            None => ['s', 'm', 'h']
                .iter()
                .zip([1000, 60_000, 3_600_000])
                .find_map(|(unit, scale)| Some((text.strip_suffix(*unit)?, scale)))
                .unwrap_or(("", 0)),
        };
        number
            .parse::<u32>()
            .ok()
            .filter(|number| *number > 0)
            .map(|number| Period(Duration::from_millis(u64::from(number) * scale)))
            .ok_or_else(|| format!("{text:?} is no time such as 500ms, 30s, 5m or 24h"))
    }
}

/// What brings Services into the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Proxy {
    /// Maps of an nftables table: cost does not grow with the number of Services.
    Nftables,
    /// Chains of iptables, one rule for each frontend and endpoint.
    Iptables,
    /// Virtual servers of IPVS.
    Ipvs,
}

/// How a virtual server of IPVS chooses an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum IpvsScheduler {
    /// One after the other.
    Rr,
    /// The one with the fewest connections.
    Lc,
    /// By a hash of the client's address.
    Sh,
}

/// Whether established connections between pods take the fast path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum FastPath {
    /// Where the kernel can do it, while others have no rules about the packets.
    Auto,
    /// No: all packets take the kernel's IP stack.
    Off,
    /// Yes, whatever rules others have: it is reported when the kernel cannot do it.
    Ebpf,
}

/// Whose rules a packet meets: those of the two variants know nothing of each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum IptablesVariant {
    /// nf_tables.
    Nft,
    /// ip_tables.
    Legacy,
}

/// Run a node's network: routes to the other nodes' pods, Services, CNI configuration.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Kubeconfig of the API server; without it, the service account of the pod this runs in.
    #[arg(long, env = "KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,

    /// Name of this node's Node object.
    #[arg(long, env = "NODE_NAME", value_name = "NAME")]
    pub node: String,

    /// Range all pods of the cluster are in; traffic that leaves it is
    /// masqueraded. Without it: the ranges of the nodes there are.
    #[arg(long, value_name = "CIDR")]
    pub cluster_cidr: Vec<IpNet>,

    /// Range Service addresses are from; an address of it without a Service is
    /// refused. Without it: what can be seen from the Services there are.
    #[arg(long, value_name = "CIDR")]
    pub service_cidr: Vec<IpNet>,

    /// At which of the node's addresses node ports answer: `primary`, `all`, or
    /// ranges of addresses. Never at loopback and link-local addresses.
    #[arg(long, value_name = "primary|all|CIDR", value_delimiter = ',')]
    pub nodeport_addresses: Vec<NodePortAddress>,

    /// Range that Services may take external addresses (spec.externalIPs) from.
    /// Without it they get none: whoever may make a Service could take any
    /// address with them (CVE-2020-8554).
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    pub external_ip_cidr: Vec<IpNet>,

    /// Let pods ask cluster addresses under their node's address too.
    #[arg(long)]
    pub masquerade_all: bool,

    /// Do not tell this node's pods from others: connections to cluster
    /// addresses keep their source, and pods that ask a Service whose external
    /// traffic policy is Local from outside get endpoints of this node only.
    #[arg(long)]
    pub no_local_detection: bool,

    /// How pods are attached.
    #[arg(long, value_enum, default_value_t = Attach::Routed)]
    pub attach: Attach,

    /// Whether established connections between pods of different nodes go past the
    /// kernel's IP stack, by eBPF programs. Sets
    /// net.netfilter.nf_conntrack_tcp_be_liberal=1 and
    /// nf_conntrack_tcp_ignore_invalid_rst=1.
    #[arg(long, value_enum, default_value_t = FastPath::Auto)]
    pub fast_path: FastPath,

    /// Let routed pods ask for their gateway, and answer in its place (proxy ARP
    /// and NDP), instead of telling them its hardware address.
    #[arg(long)]
    pub proxy_arp: bool,

    /// What brings Services into the kernel. Started with another one than
    /// before, the agent changes over without a gap and removes what the one
    /// before left.
    #[arg(long, value_enum, default_value_t = Proxy::Nftables)]
    pub proxy: Proxy,

    /// Variant of iptables, for that proxy. Without it: the one that the node's
    /// other programs use.
    #[arg(long, value_enum, value_name = "VARIANT")]
    pub iptables: Option<IptablesVariant>,

    /// How virtual servers choose an endpoint, for proxy ipvs.
    #[arg(long, value_enum, default_value_t = IpvsScheduler::Rr)]
    pub ipvs_scheduler: IpvsScheduler,

    /// Of proxy ipvs: leave ARP for the addresses of Services to others, such as
    /// an announcer of load-balancer addresses. Sets
    /// net.ipv4.conf.all.arp_ignore=1 and arp_announce=2.
    #[arg(long)]
    pub ipvs_strict_arp: bool,

    /// How pods' packets get to other nodes. Nodes that differ use a way both
    /// have, so that a cluster can change from one to another node by node.
    #[arg(long, default_value = "host-gw", value_name = "NAME",
        value_parser = clap::builder::PossibleValuesParser::new(routing::backend::NAMES))]
    pub backend: String,

    /// Send directly to nodes of the same subnet, and to others by the back end
    /// (by vxlan where that is host-gw or static).
    #[arg(long)]
    pub cross_subnet: bool,

    /// VXLAN network identifier.
    #[arg(long, default_value_t = 1, value_name = "VNI",
        value_parser = clap::value_parser!(u32).range(1..1 << 24))]
    pub vxlan_vni: u32,

    /// UDP port of VXLAN.
    #[arg(long, default_value_t = 8472, value_name = "PORT",
        value_parser = clap::value_parser!(u16).range(1..))]
    pub vxlan_port: u16,

    /// UDP port of vxlan-gpe; all nodes need the same.
    #[arg(long, default_value_t = 4790, value_name = "PORT",
        value_parser = clap::value_parser!(u16).range(1..))]
    pub vxlan_gpe_port: u16,

    /// UDP port of vxlan-multicast; all nodes need the same.
    #[arg(long, default_value_t = 4789, value_name = "PORT",
        value_parser = clap::value_parser!(u16).range(1..))]
    pub multicast_port: u16,

    /// Multicast group of vxlan-multicast, one a family [default: 239.112.0.1
    /// and ff05::112:1].
    #[arg(long, value_name = "ADDRESS", value_parser = multicast_group)]
    pub multicast_group: Vec<std::net::IpAddr>,

    /// UDP port of wireguard.
    #[arg(long, default_value_t = 51820, value_name = "PORT",
        value_parser = clap::value_parser!(u16).range(1..))]
    pub wireguard_port: u16,

    /// File of this node's private WireGuard key; made when it is not there.
    #[arg(
        long,
        default_value = "/var/lib/podwire/wireguard.key",
        value_name = "FILE"
    )]
    pub wireguard_key: PathBuf,

    /// Take a new WireGuard key each time after so long: a number with a unit,
    /// such as 24h. Packets on their way during the change are lost.
    #[arg(long, value_name = "TIME")]
    pub wireguard_rotate: Option<Period>,

    /// Let the kernel sum up what goes into the tunnel of vxlan itself: some
    /// network cards do it wrong, which shows as connections that stall.
    #[arg(long)]
    pub vxlan_no_checksum_offload: bool,

    /// How long conntrack keeps a TCP connection that is open and says nothing:
    /// sets net.netfilter.nf_conntrack_tcp_timeout_established. 0 leaves the
    /// kernel's.
    #[arg(long, default_value = "24h", value_name = "TIME", value_parser = timeout)]
    pub conntrack_tcp_timeout_established: Duration,

    /// How long conntrack keeps a TCP connection that one side has closed: sets
    /// net.netfilter.nf_conntrack_tcp_timeout_close_wait. The other side may go on
    /// for long, and the kernel's minute cuts it. 0 leaves the kernel's.
    #[arg(long, default_value = "1h", value_name = "TIME", value_parser = timeout)]
    pub conntrack_tcp_timeout_close_wait: Duration,

    /// Also end TCP connections with Services' endpoints that no longer serve,
    /// instead of letting them go on for as long as the endpoint answers.
    #[arg(long)]
    pub cut_connections: bool,

    #[command(flatten)]
    #[allow(
        missing_docs,
        reason = "a doc comment would become the help of the command"
    )]
    pub dns: crate::dns::DnsOptions,

    /// Directory of the CNI configuration.
    #[arg(long, default_value = "/etc/cni/net.d", value_name = "DIR")]
    pub cni_conf_dir: PathBuf,

    /// Install the CNI plugin podwire-cni, found beside this executable, in
    /// this directory before pods may come. Without it: it is installed already.
    #[arg(long, value_name = "DIR")]
    pub cni_bin_dir: Option<PathBuf>,

    /// Write no CNI configuration: another project attaches the pods.
    #[arg(long)]
    pub no_cni_conf: bool,

    /// Address to serve /healthz, /livez and /readyz at: load balancers ask, too.
    #[arg(long, default_value = "0.0.0.0:10256", value_name = "ADDRESS:PORT")]
    pub health_bind: SocketAddr,

    /// Address to serve /metrics at.
    #[arg(long, default_value = "127.0.0.1:10249", value_name = "ADDRESS:PORT")]
    pub metrics_bind: SocketAddr,

    /// How often to look whether others changed what is ours in the kernel: a
    /// number with a unit, such as 30s or 5m.
    #[arg(long, default_value = "5m", value_name = "TIME")]
    pub audit_period: Period,

    /// Directory of the CNI plugin's address reservations. The agent frees those
    /// of pods that vanished, and notes the node's own ranges there.
    #[arg(long, default_value = ipam::store::DEFAULT_ROOT, value_name = "DIR")]
    pub ipam_dir: PathBuf,

    /// Unix socket the CNI plugin asks at whether a pod's policies are in force,
    /// for root only.
    #[arg(long, default_value = cni::policy::DEFAULT_SOCKET, value_name = "PATH")]
    pub policy_socket: PathBuf,

    /// Unix socket podwire inspect and podwire doctor ask at, for root only.
    #[arg(long, default_value = crate::admin::SOCKET, value_name = "PATH")]
    pub admin_socket: PathBuf,
}

/// A time, or 0 for none.
fn timeout(text: &str) -> Result<Duration, String> {
    match text {
        "0" => Ok(Duration::ZERO),
        text => text.parse().map(|Period(time)| time),
    }
}

fn multicast_group(text: &str) -> Result<std::net::IpAddr, String> {
    let address: std::net::IpAddr = text.parse().map_err(|_| "no address".to_owned())?;
    if address.is_multicast() {
        Ok(address)
    } else {
        Err("no multicast address (224.0.0.0/4, ff00::/8)".to_owned())
    }
}

impl Options {
    /// Which proxy is to run, and how.
    #[must_use]
    pub(crate) fn proxy_settings(&self) -> ProxySettings {
        ProxySettings {
            mode: match self.proxy {
                Proxy::Nftables => ProxyMode::Nftables,
                Proxy::Iptables => ProxyMode::Iptables,
                Proxy::Ipvs => ProxyMode::Ipvs,
            },
            scheduler: match self.ipvs_scheduler {
                IpvsScheduler::Rr => Scheduler::RoundRobin,
                IpvsScheduler::Lc => Scheduler::LeastConnections,
                IpvsScheduler::Sh => Scheduler::SourceHash,
            },
            strict_arp: self.ipvs_strict_arp,
            iptables: self.iptables.map(|variant| match variant {
                IptablesVariant::Nft => Variant::Nft,
                IptablesVariant::Legacy => Variant::Legacy,
            }),
            cut_connections: self.cut_connections,
        }
    }

    /// The back ends wanted, the preferred one first.
    pub(crate) fn backends(&self) -> Vec<&'static str> {
        let wanted = routing::backend::NAMES
            .into_iter()
            .find(|name| *name == self.backend);
        let wanted = wanted.unwrap_or("host-gw");
        let direct = ["host-gw", "static"].contains(&wanted);
        match (self.cross_subnet, direct) {
            (false, _) => vec![wanted],
            (true, true) => vec![wanted, "vxlan"],
            (true, false) => vec!["host-gw", wanted],
        }
    }

    /// Settings of back ends.
    pub(crate) fn settings(&self) -> routing::Settings {
        let mut settings = routing::Settings::default();
        settings.vxlan.vni = self.vxlan_vni;
        settings.vxlan.port = self.vxlan_port;
        settings.vxlan.checksum_offload = !self.vxlan_no_checksum_offload;
        settings.vxlan_gpe.vni = self.vxlan_vni;
        settings.vxlan_gpe.port = self.vxlan_gpe_port;
        settings.vxlan_multicast.vni = self.vxlan_vni;
        settings.vxlan_multicast.port = self.multicast_port;
        settings.vxlan_multicast.cluster = self.cluster_cidr.clone();
        for group in &self.multicast_group {
            let family = routing::Family::of(*group);
            settings.vxlan_multicast.group.set(family, Some(*group));
        }
        settings
    }

    /// The options of the agent of a node, each at its default.
    #[must_use]
    pub fn new(node: &str) -> Options {
        #[derive(clap::Parser)]
        struct Command {
            #[command(flatten)]
            options: Options,
        }
        use clap::Parser as _;
        let mut options = Command::parse_from(["podwire", "--node", ""]).options;
        options.node = node.to_owned();
        options
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use serde_json::Value;

    use super::*;

    #[derive(clap::Parser)]
    struct Command {
        #[command(flatten)]
        options: Options,
    }

    fn parse(arguments: &[&str]) -> Result<Options, clap::Error> {
        let program = ["podwire"].iter().chain(arguments);
        Command::try_parse_from(program).map(|command| command.options)
    }

    #[rstest::rstest]
    #[case(&[], &["host-gw"])]
    #[case(&["--backend", "vxlan"], &["vxlan"])]
    #[case(&["--cross-subnet"], &["host-gw", "vxlan"])]
    #[case(&["--backend", "static", "--cross-subnet"], &["static", "vxlan"])]
    #[case(&["--backend", "vxlan", "--cross-subnet"], &["host-gw", "vxlan"])]
    fn across_subnets_a_tunnel_is_added_or_within_them_left_out(
        #[case] arguments: &[&str],
        #[case] expected: &[&str],
    ) {
        let all: Vec<&str> = ["--node", "n"].iter().chain(arguments).copied().collect();
        assert_eq!(parse(&all).expect("understood").backends(), expected);
    }

    #[test]
    fn a_back_end_that_does_not_exist_is_named_with_those_that_do() {
        let error = parse(&["--node", "n", "--backend", "pigeons"]).unwrap_err();
        assert!(error.to_string().contains("host-gw"), "{error}");
        assert!(parse(&["--node", "n", "--vxlan-vni", "16777216"]).is_err());
    }

    /// The objects of the manifest for a real cluster.
    fn manifest() -> Vec<Value> {
        let text = include_str!("../../../deploy/podwire.yaml");
        serde_saphyr::from_multiple(text).expect("the manifest is YAML")
    }

    #[test]
    fn the_agreed_command_line_is_understood() {
        let options = parse(&[
            "--kubeconfig",
            "/run/podwire/node.kubeconfig",
            "--node",
            "node-1",
            "--cluster-cidr",
            "10.200.0.0/16",
            "--cluster-cidr",
            "fd00:200::/48",
            "--attach",
            "bridge",
            "--cni-conf-dir",
            "/etc/cni/net.d",
            "--no-cni-conf",
        ])
        .expect("it is agreed");
        assert_eq!(
            (options.cluster_cidr.len(), options.attach),
            (2, Attach::Bridge)
        );
        assert!(options.no_cni_conf);
        assert!(parse(&["--node", "n", "--cluster-cidr", "10.0.0.0/33"]).is_err());
        assert!(parse(&["--node", "n", "--attach", "other"]).is_err());
    }

    #[test]
    fn periods_have_a_unit_and_are_not_zero() {
        let read = |text: &str| {
            text.parse::<Period>()
                .map(|period| period.0.as_millis())
                .ok()
        };
        let texts = ["30s", "5m", "250ms", "0s", "5", "-1s", "s", "1h", ""];
        let expected = [
            Some(30_000),
            Some(300_000),
            Some(250),
            None,
            None,
            None,
            None,
            Some(3_600_000),
            None,
        ];
        assert_eq!(texts.map(read), expected);
    }

    #[test]
    fn the_manifest_starts_the_agent_with_a_command_line_it_understands() {
        let manifest = manifest();
        let set = manifest
            .iter()
            .find(|object| object["kind"] == "DaemonSet")
            .expect("there is one");
        let container = &set["spec"]["template"]["spec"]["containers"][0];
        let arguments: Vec<&str> = container["args"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|argument| argument.as_str().expect("text"))
            .chain(["--node", "from NODE_NAME"])
            .collect();
        let options = parse(&arguments).expect("understood");
        let probe = &container["readinessProbe"]["httpGet"];
        assert_eq!(probe["port"], options.health_bind.port());
        assert_eq!(probe["host"], "127.0.0.1");
        assert!(options.health_bind.ip().is_unspecified());
        assert!(
            container["env"]
                .as_array()
                .expect("a list")
                .iter()
                .any(|e| e["name"] == "NODE_NAME")
        );
    }

    #[rstest::rstest]
    #[case::instead(include_str!("../../../deploy/dns-replace.yaml"), crate::DnsMode::Replace)]
    #[case::in_front(include_str!("../../../deploy/dns-cache.yaml"), crate::DnsMode::Cache)]
    fn the_manifests_of_dns_set_what_the_agent_reads(
        #[case] text: &str,
        #[case] mode: crate::DnsMode,
    ) {
        // What is commented out is meant to be used, too.
        let text = text.replace("  # PODWIRE_", "  PODWIRE_");
        let objects: Vec<Value> = serde_saphyr::from_multiple(&text).expect("it is YAML");
        let settings = objects
            .iter()
            .find(|object| object["kind"] == "ConfigMap")
            .expect("there is one");
        let command = <Command as clap::CommandFactory>::command();
        let mut arguments = vec!["--node".to_owned(), "n".to_owned()];
        for (variable, value) in settings["data"].as_object().expect("a map") {
            let argument = command
                .get_arguments()
                .find(|argument| argument.get_env().is_some_and(|env| env == &**variable))
                .unwrap_or_else(|| panic!("nothing reads {variable}"));
            let option = argument.get_long().expect("options have names");
            arguments.push(format!("--{option}={}", value.as_str().expect("text")));
        }
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let options = parse(&arguments).expect("understood");
        assert_eq!(options.dns.dns, mode);
        // The DaemonSet reads that ConfigMap, and the Service has that address.
        let manifest = manifest();
        let set = manifest.iter().find(|object| object["kind"] == "DaemonSet");
        let container = &set.expect("there is one")["spec"]["template"]["spec"]["containers"][0];
        assert_eq!(
            container["envFrom"][0]["configMapRef"]["name"],
            settings["metadata"]["name"]
        );
        for service in objects.iter().filter(|object| object["kind"] == "Service") {
            assert_eq!(
                service["spec"]["clusterIP"],
                options.dns.cluster_dns[0].to_string()
            );
            assert!(service["spec"]["selector"].is_null());
        }
    }

    #[test]
    fn the_manifest_allows_what_the_agent_watches() {
        fn allowed<R: api::Resource>(rules: &[Value]) -> bool {
            let group = R::API
                .strip_prefix("/apis/")
                .and_then(|api| api.split('/').next());
            let has = |list: &Value, text: &str| {
                list.as_array()
                    .is_some_and(|list| list.iter().any(|item| item == text))
            };
            rules.iter().any(|rule| {
                has(&rule["apiGroups"], group.unwrap_or(""))
                    && has(&rule["resources"], R::PLURAL)
                    && has(&rule["verbs"], "list")
                    && has(&rule["verbs"], "watch")
            })
        }
        let manifest = manifest();
        let role = manifest
            .iter()
            .find(|object| object["kind"] == "ClusterRole")
            .expect("there is one");
        let rules = role["rules"].as_array().expect("a list");
        assert!(allowed::<api::Node>(rules));
        assert!(allowed::<api::Service>(rules));
        assert!(allowed::<api::EndpointSlice>(rules));
        assert!(allowed::<api::Pod>(rules));
        assert!(allowed::<api::Namespace>(rules));
        assert!(allowed::<api::NetworkPolicy>(rules));
    }
}
