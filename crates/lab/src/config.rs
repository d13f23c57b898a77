//! What a lab is: the validated form of `lab up`'s options. Pure.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

/// Prefix lengths of a node's range in the IPv4 and the IPv6 cluster range.
const NODE_MASKS: [u8; 2] = [24, 64];
/// The longest of them: room for the gateway and a few pods.
const LONGEST_NODE_MASKS: [u8; 2] = [29, 120];
/// The most subnets of an underlay.
const SUBNETS: u32 = 16;
/// Node n has the underlay address with this number plus n.
const NODE_OFFSET: u32 = 10;
/// The most bytes of a lab's name: part of interface and file names.
const NAME_LENGTH: usize = 40;

/// The IP families of a lab.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// IPv4 only.
    V4,
    /// IPv6 only.
    V6,
    /// Both, IPv4 first.
    #[default]
    Dual,
}

impl Family {
    /// Whether addresses like this one belong to it.
    pub fn takes(self, address: IpAddr) -> bool {
        match self {
            Self::V4 => address.is_ipv4(),
            Self::V6 => address.is_ipv6(),
            Self::Dual => true,
        }
    }
}

/// Who answers the cluster's DNS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Dns {
    /// Every node, at the address of the Service kube-system/kube-dns.
    #[default]
    Replace,
    /// What you deploy behind that Service (pods of kube-system with the label
    /// k8s-app=kube-dns); every node keeps its answers.
    Cache,
    /// Nobody, or what you deploy.
    Off,
}

impl fmt::Display for Dns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Replace => "replace",
            Self::Cache => "cache",
            Self::Off => "off",
        })
    }
}

/// How pods are attached to their node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Attach {
    /// All pods of a node on one bridge.
    #[default]
    Bridge,
    /// A host route and a veth pair for each pod, no bridge.
    Routed,
}

impl fmt::Display for Attach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bridge => "bridge",
            Self::Routed => "routed",
        })
    }
}

/// What brings Services into the nodes' kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Proxy {
    /// Maps of an nftables table.
    #[default]
    Nftables,
    /// Chains of iptables.
    Iptables,
    /// Virtual servers of IPVS.
    Ipvs,
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
            Self::Ipvs => "ipvs",
        })
    }
}

/// Whether established connections between pods go past the kernel's IP stack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum FastPath {
    /// Where the kernel can do it.
    #[default]
    Auto,
    /// No.
    Off,
    /// Yes; nodes report it when the kernel cannot do it.
    Ebpf,
}

impl fmt::Display for FastPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Off => "off",
            Self::Ebpf => "ebpf",
        })
    }
}

/// How a pod's packet gets from node to node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Backend {
    /// A route to each node; nothing is added to a packet.
    #[default]
    HostGw,
    /// A route to each pod.
    Static,
    /// IP in IP.
    Ipip,
    /// VXLAN with programmed entries, as flannel speaks it.
    Vxlan,
    /// VXLAN-GPE with a lightweight-tunnel route to each node.
    VxlanGpe,
    /// VXLAN in the bridge, which learns over a multicast group.
    VxlanMulticast,
    /// WireGuard.
    Wireguard,
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::HostGw => "host-gw",
            Self::Static => "static",
            Self::Ipip => "ipip",
            Self::Vxlan => "vxlan",
            Self::VxlanGpe => "vxlan-gpe",
            Self::VxlanMulticast => "vxlan-multicast",
            Self::Wireguard => "wireguard",
        })
    }
}

/// A Service made reachable on the machine's loopback address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Publish {
    /// The port on 127.0.0.1 and ::1.
    pub port: u16,
    /// The Service's namespace.
    pub namespace: String,
    /// The Service's name.
    pub service: String,
    /// The Service's port.
    pub service_port: u16,
}

impl FromStr for Publish {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?}: write PORT:[NAMESPACE/]SERVICE:PORT, as 8080:web:80");
        let mut parts = text.split(':');
        let (Some(port), Some(service), Some(service_port), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(wrong());
        };
        let number = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0);
        let (namespace, service) = service.split_once('/').unwrap_or(("default", service));
        if !is_label(namespace) || !is_label(service) {
            return Err(wrong());
        }
        Ok(Self {
            port: number(port).ok_or_else(wrong)?,
            namespace: namespace.to_owned(),
            service: service.to_owned(),
            service_port: number(service_port).ok_or_else(wrong)?,
        })
    }
}

/// Another project's CNI plugins instead of podwire's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForeignCni {
    /// Configuration lists, copied into each node's net.d.
    pub conf: PathBuf,
    /// Plugin binaries.
    pub bin: PathBuf,
}

/// The options as they were given, not yet checked.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// The lab's name.
    pub name: String,
    /// Its families.
    pub family: Family,
    /// How pods are attached.
    pub attach: Attach,
    /// `--underlay`, at most one a family; empty for the default.
    pub underlay: Vec<String>,
    /// `--cluster-cidr`.
    pub cluster: Vec<String>,
    /// `--service-cidr`.
    pub service: Vec<String>,
    /// `--node-mask`.
    pub node_mask: Vec<String>,
    /// `--subnets`; none for one.
    pub subnets: Option<u32>,
    /// `--backend`.
    pub backend: Backend,
    /// `--cross-subnet`.
    pub cross_subnet: bool,
    /// `--fast-path`.
    pub fast_path: FastPath,
    /// `--proxy`.
    pub proxy: Proxy,
    /// `--publish`.
    pub publish: Vec<String>,
    /// `--dns`.
    pub dns: Dns,
    /// `--internet`.
    pub internet: bool,
    /// `--cni-conf` and `--cni-bin`.
    pub cni: Option<ForeignCni>,
    /// How many nodes there are to be.
    pub nodes: u32,
}

/// A lab's properties, which never change while it runs but for the back end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// Its name.
    pub name: String,
    /// Its families.
    pub family: Family,
    /// How pods are attached.
    pub attach: Attach,
    /// Ranges of the first subnet of the nodes' own addresses, one a family.
    pub underlay: Vec<IpNet>,
    /// How many subnets the underlay has, each the range behind the one before.
    pub subnets: u32,
    /// How pods' packets get from node to node, unless a node has a way of its own.
    pub backend: Backend,
    /// What brings Services into the nodes' kernel.
    pub proxy: Proxy,
    /// Whether nodes of one subnet leave the tunnel out, and host-gw takes one
    /// across subnets.
    pub cross_subnet: bool,
    /// Whether established connections between pods go past the IP stack.
    pub fast_path: FastPath,
    /// Ranges of the pods' addresses, one a family.
    pub cluster: Vec<IpNet>,
    /// Prefix lengths of a node's range in the IPv4 and the IPv6 one of these.
    pub node_masks: [u8; 2],
    /// Ranges of the Services' addresses, one a family.
    pub service: Vec<IpNet>,
    /// The network behind the router.
    pub outside: Vec<IpNet>,
    /// Services on loopback.
    pub publish: Vec<Publish>,
    /// Who answers the cluster's DNS.
    pub dns: Dns,
    /// Whether pods reach the machine's uplink.
    pub internet: bool,
    /// Another project's CNI plugins.
    pub cni: Option<ForeignCni>,
}

/// Everything that is wrong with the options, one line each.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct Invalid(pub Vec<String>);

impl Config {
    /// Checks the options and fills in the defaults.
    ///
    /// # Errors
    /// All that is wrong, each with what to do about it.
    pub fn new(wanted: &Wanted) -> Result<Self, Invalid> {
        let mut problems = Vec::new();
        if !is_label(&wanted.name) || wanted.name.len() > NAME_LENGTH {
            problems.push(format!(
                "--name {:?}: a lab's name has lower-case letters, digits and dashes, starts and \
                 ends with a letter or digit and is at most {NAME_LENGTH} long",
                wanted.name
            ));
        }
        let family = wanted.family;
        let mut ranges = |option: &str, given: &[String], v4: Ipv4Net, v6: Ipv6Net| {
            ranges(option, given, family, v4, v6, &mut problems)
        };
        let underlay = ranges(
            "--underlay",
            &wanted.underlay,
            v4(192, 168, 64, 0, 24),
            v6([0xfd00, 0x64, 0, 0, 0, 0, 0, 0], 64),
        );
        let cluster = ranges(
            "--cluster-cidr",
            &wanted.cluster,
            v4(10, 200, 0, 0, 16),
            v6([0xfd00, 0x200, 0, 0, 0, 0, 0, 0], 48),
        );
        let service = ranges(
            "--service-cidr",
            &wanted.service,
            v4(10, 96, 0, 0, 12),
            v6([0xfd00, 0x96, 0, 0, 0, 0, 0, 0], 112),
        );
        let outside = ranges(
            "outside",
            &[],
            v4(203, 0, 113, 0, 24),
            v6([0x2001, 0xdb8, 0x113, 0, 0, 0, 0, 0], 64),
        );
        let node_masks = node_masks(&wanted.node_mask, family, &mut problems);
        let subnets = wanted.subnets.unwrap_or(1);
        if !(1..=SUBNETS).contains(&subnets) {
            problems.push(format!(
                "--subnets {subnets}: an underlay has between 1 and {SUBNETS} subnets"
            ));
        }
        let mut published = BTreeSet::new();
        let mut publish = Vec::new();
        for text in &wanted.publish {
            match text.parse::<Publish>() {
                Ok(one) if published.insert(one.port) => publish.push(one),
                Ok(one) => problems.push(format!(
                    "--publish {text}: port {} is published twice; choose another",
                    one.port
                )),
                Err(problem) => problems.push(format!("--publish {problem}")),
            }
        }
        let config = Self {
            name: wanted.name.clone(),
            family,
            attach: wanted.attach,
            underlay,
            subnets,
            backend: wanted.backend,
            cross_subnet: wanted.cross_subnet,
            fast_path: wanted.fast_path,
            proxy: wanted.proxy,
            cluster,
            node_masks,
            service,
            outside,
            publish,
            dns: wanted.dns,
            internet: wanted.internet,
            cni: wanted.cni.clone(),
        };
        if problems.is_empty() {
            config.check_overlaps(&mut problems);
            config.check_sizes(wanted.nodes, &mut problems);
        }
        if problems.is_empty() {
            Ok(config)
        } else {
            Err(Invalid(problems))
        }
    }

    fn check_overlaps(&self, problems: &mut Vec<String>) {
        let underlay: Vec<IpNet> = self.all_subnets().collect();
        if underlay.len() < self.underlay.len() * self.subnets as usize {
            problems.push(format!(
                "behind the underlay range there is no room for {} subnets of its size; choose \
                 another with --underlay",
                self.subnets
            ));
        }
        let all: Vec<(&str, IpNet)> = [
            ("underlay", &underlay),
            ("cluster", &self.cluster),
            ("Service", &self.service),
            ("outside", &self.outside),
        ]
        .into_iter()
        .flat_map(|(what, ranges)| ranges.iter().map(move |range| (what, *range)))
        .collect();
        for (index, (what, range)) in all.iter().enumerate() {
            for (other_what, other) in &all[index + 1..] {
                if range.contains(other) || other.contains(range) {
                    problems.push(format!(
                        "the {what} range {range} and the {other_what} range {other} overlap; \
                         choose ranges that do not by --underlay, --cluster-cidr and --service-cidr"
                    ));
                }
            }
            let special = match range {
                IpNet::V4(range) => {
                    let net = range.network();
                    net.is_loopback()
                        || net.is_multicast()
                        || net.is_link_local()
                        || net.octets()[0] == 0
                }
                IpNet::V6(range) => {
                    let net = range.network();
                    net.is_loopback()
                        || net.is_multicast()
                        || net.is_unspecified()
                        || net.is_unicast_link_local()
                }
            };
            if special {
                problems.push(format!(
                    "the {what} range {range} is one of those no node can use; take one of \
                     10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16 or fd00::/8"
                ));
            }
        }
    }

    fn check_sizes(&self, nodes: u32, problems: &mut Vec<String>) {
        for range in &self.cluster {
            let mask = self.node_mask(range);
            if range.prefix_len() > mask {
                problems.push(format!(
                    "the cluster range {range} is smaller than one node's range, a /{mask}; \
                     give --cluster-cidr a shorter prefix or --node-mask a longer one"
                ));
                continue;
            }
            if mask - range.prefix_len() > 32 {
                problems.push(format!(
                    "the cluster range {range} holds more node ranges of /{mask} than are handed \
                     out; give --node-mask a prefix of at most /{}",
                    range.prefix_len() + 32
                ));
            }
            let room = 1_u64
                .checked_shl(u32::from(mask - range.prefix_len()))
                .unwrap_or(u64::MAX);
            if u64::from(nodes) > room {
                problems.push(format!(
                    "the cluster range {range} holds {room} nodes with a /{mask} each, {nodes} are \
                     wanted; give --cluster-cidr a shorter prefix, --node-mask a longer one or \
                     --nodes a lower number"
                ));
            }
        }
        for range in &self.underlay {
            let room = node_room(range);
            if room == 0 {
                problems.push(format!(
                    "the underlay range {range} has no room for nodes: they are numbered from \
                     {}; use a /24 (IPv4) or a /64 (IPv6)",
                    NODE_OFFSET + 1
                ));
            } else if nodes > room {
                problems.push(format!(
                    "the underlay range {range} holds {room} nodes, {nodes} are wanted; give \
                     --underlay a shorter prefix or --nodes a lower number"
                ));
            }
        }
        for range in &self.service {
            let bits = range.max_prefix_len() - range.prefix_len();
            let (least, most) = if range.addr().is_ipv4() {
                (2, 20)
            } else {
                (2, 64)
            };
            if !(least..=most).contains(&bits) {
                problems.push(format!(
                    "the Service range {range} must have a prefix between /{} and /{}",
                    range.max_prefix_len() - most,
                    range.max_prefix_len() - least
                ));
            }
        }
    }

    /// The underlay address of the machine with this number in it, with the
    /// prefix length of the range.
    fn numbered(range: &IpNet, number: u32) -> Option<IpNet> {
        let address: IpAddr = match range {
            IpNet::V4(range) => {
                let address = Ipv4Addr::from(u32::from(range.network()).checked_add(number)?);
                (range.contains(&address) && address != range.broadcast())
                    .then_some(address)?
                    .into()
            }
            IpNet::V6(range) => {
                // The decimal number read as hexadecimal, so that node 5 is
                // .15 and ::15.
                let digits = u128::from_str_radix(&number.to_string(), 16).ok()?;
                let address = Ipv6Addr::from(u128::from(range.network()).checked_add(digits)?);
                range.contains(&address).then_some(address)?.into()
            }
        };
        IpNet::new(address, range.prefix_len()).ok()
    }

    fn each(ranges: &[IpNet], number: u32) -> Vec<IpNet> {
        ranges
            .iter()
            .filter_map(|range| Self::numbered(range, number))
            .collect()
    }

    /// The ranges of a subnet of the underlay, from 0, one a family.
    pub fn subnet(&self, number: u32) -> Vec<IpNet> {
        let behind = |range: &IpNet| -> Option<IpNet> {
            let host_bits = u32::from(range.max_prefix_len() - range.prefix_len());
            let address: IpAddr = match range {
                IpNet::V4(range) => {
                    let step = number.checked_mul(1_u32.checked_shl(host_bits)?)?;
                    Ipv4Addr::from(u32::from(range.network()).checked_add(step)?).into()
                }
                IpNet::V6(range) => {
                    let step = u128::from(number).checked_mul(1_u128.checked_shl(host_bits)?)?;
                    Ipv6Addr::from(u128::from(range.network()).checked_add(step)?).into()
                }
            };
            IpNet::new(address, range.prefix_len()).ok()
        };
        match number {
            0 => self.underlay.clone(),
            _ => self.underlay.iter().filter_map(behind).collect(),
        }
    }

    /// The ranges of all subnets of the underlay.
    pub fn all_subnets(&self) -> impl Iterator<Item = IpNet> {
        (0..self.subnets).flat_map(|number| self.subnet(number))
    }

    /// The subnet of the node with this number unless it was given another:
    /// nodes are dealt out in turn.
    pub fn subnet_of(&self, number: u32) -> u32 {
        number.saturating_sub(1) % self.subnets.max(1)
    }

    /// The prefix length of a node's range in a cluster range.
    pub fn node_mask(&self, range: &IpNet) -> u8 {
        self.node_masks[usize::from(range.addr().is_ipv6())]
    }

    /// The router's addresses in a subnet, its nodes' default gateways.
    pub fn router(&self, subnet: u32) -> Vec<IpNet> {
        Self::each(&self.subnet(subnet), 1)
    }

    /// The API server's underlay addresses, in the first subnet.
    pub fn control(&self) -> Vec<IpNet> {
        Self::each(&self.underlay, 2)
    }

    /// The underlay addresses of the node with this number, from 1, in a subnet;
    /// fewer than families when the range has no room for it.
    pub fn node(&self, number: u32, subnet: u32) -> Vec<IpNet> {
        Self::each(&self.subnet(subnet), NODE_OFFSET.saturating_add(number))
    }

    /// The router's addresses on the outside network.
    pub fn outside_router(&self) -> Vec<IpNet> {
        Self::each(&self.outside, 1)
    }

    /// The addresses of the host that plays the outside world.
    pub fn outside_host(&self) -> Vec<IpNet> {
        Self::each(&self.outside, 10)
    }

    /// The address of the cluster's DNS in each Service range: the tenth, as
    /// installers of clusters have it.
    pub fn cluster_dns(&self) -> Vec<IpAddr> {
        self.service
            .iter()
            .filter_map(|range| match range {
                IpNet::V4(range) => {
                    let address = Ipv4Addr::from(u32::from(range.network()).checked_add(10)?);
                    range.contains(&address).then_some(address.into())
                }
                IpNet::V6(range) => {
                    let address = Ipv6Addr::from(u128::from(range.network()).checked_add(10)?);
                    range.contains(&address).then_some(address.into())
                }
            })
            .collect()
    }

    /// How many nodes the ranges hold.
    pub fn room(&self) -> u32 {
        let cluster = self.cluster.iter().map(|range| {
            1_u32
                .checked_shl(u32::from(
                    self.node_mask(range).saturating_sub(range.prefix_len()),
                ))
                .unwrap_or(u32::MAX)
        });
        self.underlay
            .iter()
            .map(node_room)
            .chain(cluster)
            .min()
            .unwrap_or(0)
    }
}

/// The number of the node called `node-N`.
pub fn node_number(name: &str) -> Option<u32> {
    let digits = name.strip_prefix("node-")?;
    let number: u32 = digits.parse().ok()?;
    (number > 0 && number.to_string() == digits).then_some(number)
}

/// The prefix lengths given, each for the family it can be one of: a node's
/// IPv6 range is never as short as the longest IPv4 prefix.
fn node_masks(given: &[String], family: Family, problems: &mut Vec<String>) -> [u8; 2] {
    let mut chosen = [None; 2];
    for text in given.iter().flat_map(|text| text.split(',')) {
        let Ok(mask) = text.trim().trim_start_matches('/').parse::<u8>() else {
            problems.push(format!(
                "--node-mask {text:?} is no prefix length; write one a family, as 24 or 64"
            ));
            continue;
        };
        let slot = usize::from(mask > 32);
        let [v4, v6] = LONGEST_NODE_MASKS;
        if mask > LONGEST_NODE_MASKS[slot] {
            problems.push(format!(
                "--node-mask {mask} leaves a node no room for pods; use at most {v4} for IPv4 and \
                 {v6} for IPv6"
            ));
        } else if !family.takes([v4_any(), v6_any()][slot]) {
            problems.push(format!(
                "--node-mask {mask} is of a family the lab does not have; leave it out, or use \
                 --family dual"
            ));
        } else if chosen[slot].replace(mask).is_some() {
            problems.push(format!(
                "--node-mask {mask}: there is one of this family already; take one away"
            ));
        }
    }
    [
        chosen[0].unwrap_or(NODE_MASKS[0]),
        chosen[1].unwrap_or(NODE_MASKS[1]),
    ]
}

const fn v4_any() -> IpAddr {
    IpAddr::V4(Ipv4Addr::UNSPECIFIED)
}

const fn v6_any() -> IpAddr {
    IpAddr::V6(Ipv6Addr::UNSPECIFIED)
}

fn node_room(range: &IpNet) -> u32 {
    // The highest node whose address is in the range; numbers grow with it.
    let holds = |number: u32| Config::numbered(range, NODE_OFFSET + number).is_some();
    let (mut low, mut high) = (0_u32, 1_u32 << 20);
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        if holds(middle) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    low
}

/// Whether this is an RFC 1123 label, as names of Kubernetes objects are.
pub fn is_label(text: &str) -> bool {
    let ends = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    bytes.len() <= 63
        && ends(bytes.first())
        && ends(bytes.last())
        && bytes
            .iter()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
}

fn ranges(
    option: &str,
    given: &[String],
    family: Family,
    v4: Ipv4Net,
    v6: Ipv6Net,
    problems: &mut Vec<String>,
) -> Vec<IpNet> {
    let mut chosen: [Option<IpNet>; 2] = [None, None];
    for text in given.iter().flat_map(|text| text.split(',')) {
        let text = text.trim();
        let range = match text.parse::<IpNet>() {
            Ok(range) => range,
            Err(_) => {
                problems.push(format!(
                    "{option} {text:?} is no CIDR; write an address and a prefix length, as {v4} or {v6}"
                ));
                continue;
            }
        };
        if range.trunc() != range {
            problems.push(format!(
                "{option} {text} has bits set behind the prefix; did you mean {}?",
                range.trunc()
            ));
            continue;
        }
        if !family.takes(range.addr()) {
            problems.push(format!(
                "{option} {text} is of a family the lab does not have; leave it out, or use \
                 --family dual"
            ));
            continue;
        }
        let slot = &mut chosen[usize::from(range.addr().is_ipv6())];
        if let Some(first) = slot {
            problems.push(format!(
                "{option} {text}: there is {first} already, and one range a family is enough; \
                 take one away"
            ));
        } else {
            *slot = Some(range);
        }
    }
    [(chosen[0], IpNet::V4(v4)), (chosen[1], IpNet::V6(v6))]
        .into_iter()
        .filter(|(_, default)| family.takes(default.addr()))
        .map(|(chosen, default)| chosen.unwrap_or(default))
        .collect()
}

fn v4(a: u8, b: u8, c: u8, d: u8, length: u8) -> Ipv4Net {
    Ipv4Net::new(Ipv4Addr::new(a, b, c, d), length).expect("a constant prefix length up to 32")
}

fn v6(segments: [u16; 8], length: u8) -> Ipv6Net {
    Ipv6Net::new(Ipv6Addr::from(segments), length).expect("a constant prefix length up to 128")
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn wanted() -> Wanted {
        Wanted {
            name: "lab".into(),
            nodes: 2,
            ..Wanted::default()
        }
    }

    #[test]
    fn defaults_are_those_of_the_architecture() {
        let config = Config::new(&wanted()).unwrap();
        let text = |nets: Vec<IpNet>| nets.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(text(config.router(0)), ["192.168.64.1/24", "fd00:64::1/64"]);
        assert_eq!(text(config.control()), ["192.168.64.2/24", "fd00:64::2/64"]);
        assert_eq!(
            text(config.node(1, 0)),
            ["192.168.64.11/24", "fd00:64::11/64"]
        );
        assert_eq!(
            text(config.node(90, 0)),
            ["192.168.64.100/24", "fd00:64::100/64"]
        );
        assert_eq!(
            text(config.outside_host()),
            ["203.0.113.10/24", "2001:db8:113::10/64"]
        );
        assert_eq!(
            config.cluster_dns(),
            [
                "10.96.0.10".parse::<IpAddr>().unwrap(),
                "fd00:96::a".parse().unwrap()
            ]
        );
        assert_eq!(config.room(), 244);
        assert!(config.node(245, 0).iter().all(|net| net.addr().is_ipv6()));
    }

    #[rstest]
    #[case(Family::V4, 1)]
    #[case(Family::V6, 1)]
    #[case(Family::Dual, 2)]
    fn a_lab_has_one_range_a_family(#[case] family: Family, #[case] count: usize) {
        let config = Config::new(&Wanted { family, ..wanted() }).unwrap();
        for ranges in [
            &config.underlay,
            &config.cluster,
            &config.service,
            &config.outside,
        ] {
            assert_eq!(ranges.len(), count);
            assert!(ranges.iter().all(|range| family.takes(range.addr())));
        }
    }

    #[test]
    fn subnets_follow_each_other_and_nodes_are_dealt_out_in_turn() {
        let config = Config::new(&Wanted {
            subnets: Some(2),
            nodes: 4,
            ..wanted()
        })
        .unwrap();
        let text = |nets: Vec<IpNet>| nets.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(
            text(config.all_subnets().collect()),
            [
                "192.168.64.0/24",
                "fd00:64::/64",
                "192.168.65.0/24",
                "fd00:64:0:1::/64"
            ]
        );
        assert_eq!(
            text(config.router(1)),
            ["192.168.65.1/24", "fd00:64:0:1::1/64"]
        );
        assert_eq!(
            [1, 2, 3, 4].map(|node| config.subnet_of(node)),
            [0, 1, 0, 1]
        );
        assert_eq!(
            text(config.node(2, 1)),
            ["192.168.65.12/24", "fd00:64:0:1::12/64"]
        );
    }

    #[test]
    fn a_node_mask_is_of_the_family_it_can_be_of() {
        let config = Config::new(&Wanted {
            node_mask: strings(&["26,80"]),
            ..wanted()
        })
        .unwrap();
        assert_eq!(config.node_masks, [26, 80]);
        assert_eq!(config.node_mask(&"fd00::/48".parse().unwrap()), 80);
    }

    fn strings(list: &[&str]) -> Vec<String> {
        list.iter().map(ToString::to_string).collect()
    }

    #[rstest]
    #[case(Wanted { name: "Lab".into(), ..wanted() }, "--name \"Lab\"")]
    #[case(Wanted { name: "../x".into(), ..wanted() }, "--name")]
    #[case(Wanted { name: String::new(), ..wanted() }, "--name")]
    #[case(Wanted { cluster: strings(&["10.1.0.0"]), ..wanted() }, "--cluster-cidr \"10.1.0.0\" is no CIDR")]
    #[case(Wanted { cluster: strings(&["10.1.0.0/33"]), ..wanted() }, "is no CIDR")]
    #[case(Wanted { cluster: strings(&["10.1.2.3/16"]), ..wanted() }, "did you mean 10.1.0.0/16?")]
    #[case(Wanted { cluster: strings(&["10.1.0.0/16", "10.2.0.0/16"]), ..wanted() }, "one range a family")]
    #[case(Wanted { family: Family::V4, service: strings(&["fd00:1::/112"]), ..wanted() }, "of a family the lab does not have")]
    #[case(Wanted { underlay: strings(&["10.96.0.0/24"]), ..wanted() }, "the underlay range 10.96.0.0/24 and the Service range 10.96.0.0/12 overlap")]
    #[case(Wanted { cluster: strings(&["192.168.0.0/16"]), ..wanted() }, "the underlay range 192.168.64.0/24 and the cluster range 192.168.0.0/16 overlap")]
    #[case(Wanted { service: strings(&["203.0.113.128/25"]), ..wanted() }, "the Service range 203.0.113.128/25 and the outside range 203.0.113.0/24 overlap")]
    #[case(Wanted { cluster: strings(&["10.1.0.0/25"]), ..wanted() }, "smaller than one node's range")]
    #[case(Wanted { cluster: strings(&["10.1.0.0/24"]), ..wanted() }, "holds 1 nodes with a /24 each, 2 are wanted")]
    #[case(Wanted { cluster: strings(&["fd00:1::/64"]), ..wanted() }, "holds 1 nodes with a /64 each, 2 are wanted")]
    #[case(Wanted { nodes: 245, ..wanted() }, "the underlay range 192.168.64.0/24 holds 244 nodes, 245 are wanted")]
    #[case(Wanted { underlay: strings(&["192.168.64.0/29"]), ..wanted() }, "has no room for nodes")]
    #[case(Wanted { underlay: strings(&["127.0.0.0/24"]), ..wanted() }, "no node can use")]
    #[case(Wanted { underlay: strings(&["fe80::/64"]), ..wanted() }, "no node can use")]
    #[case(Wanted { service: strings(&["10.0.0.0/8"]), ..wanted() }, "must have a prefix between /12 and /30")]
    #[case(Wanted { subnets: Some(17), ..wanted() }, "between 1 and 16 subnets")]
    #[case(Wanted { subnets: Some(2), underlay: strings(&["255.255.255.0/24"]), ..wanted() }, "no room for 2 subnets")]
    #[case(Wanted { subnets: Some(2), cluster: strings(&["192.168.65.0/24"]), nodes: 1, ..wanted() }, "the cluster range 192.168.65.0/24 overlap")]
    #[case(Wanted { node_mask: strings(&["x"]), ..wanted() }, "--node-mask \"x\" is no prefix length")]
    #[case(Wanted { node_mask: strings(&["31"]), ..wanted() }, "no room for pods")]
    #[case(Wanted { node_mask: strings(&["24", "25"]), ..wanted() }, "one of this family already")]
    #[case(Wanted { family: Family::V4, node_mask: strings(&["80"]), ..wanted() }, "a family the lab does not have")]
    #[case(Wanted { publish: strings(&["80:web"]), ..wanted() }, "--publish \"80:web\": write PORT:")]
    #[case(Wanted { publish: strings(&["0:web:80"]), ..wanted() }, "--publish")]
    #[case(Wanted { publish: strings(&["81:web:80", "81:shop/other:80"]), ..wanted() }, "published twice")]
    fn wrong_options_are_named_with_what_to_do(#[case] wanted: Wanted, #[case] part: &str) {
        let error = Config::new(&wanted).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }

    #[test]
    fn everything_wrong_is_said_at_once() {
        let error = Config::new(&Wanted {
            name: "-".into(),
            cluster: strings(&["x"]),
            service: strings(&["y"]),
            ..wanted()
        })
        .unwrap_err();
        assert_eq!(error.0.len(), 3, "{error}");
    }

    #[test]
    fn a_service_is_published_from_any_namespace() {
        assert_eq!(
            "8080:shop/web:80".parse(),
            Ok(Publish {
                port: 8080,
                namespace: "shop".into(),
                service: "web".into(),
                service_port: 80
            })
        );
        assert_eq!("1:web:2".parse::<Publish>().unwrap().namespace, "default");
    }

    #[test]
    fn a_node_number_is_read_back() {
        assert_eq!(node_number("node-7"), Some(7));
        for name in ["node-", "node-0", "node-07", "x-1", "node--1"] {
            assert_eq!(node_number(name), None, "{name}");
        }
    }
}
