//! The network configuration on stdin.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipam::{Attachment, NodeRanges, Range, RangeSet};
use ipnet::IpNet;
use linux::link::{self, MacAddress, MacvlanMode};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::arguments::{Extra, valid_identifier};
use crate::bandwidth::Bandwidth;
use crate::error::Error;
use crate::hostports::{self, Mapping};
use crate::log::{self, Level};
use crate::policy::{self, Gate};
use crate::version::Version;

/// How pods are attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum AttachMode {
    /// To a bridge of the node, whose addresses are the pods' gateways.
    Bridge,
    /// Each by a cable of its own and a route of the node.
    #[default]
    Routed,
    /// To the network of one of the node's interfaces, beside the node.
    Macvlan,
    /// To exactly one other pod, by a cable between the two.
    Direct,
}

impl AttachMode {
    /// Whether the node does not lead to the pods: their addresses are of a network of
    /// their own.
    pub fn is_apart(self) -> bool {
        match self {
            Self::Bridge | Self::Routed => false,
            Self::Macvlan | Self::Direct => true,
        }
    }

    /// As configurations write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bridge => "bridge",
            Self::Routed => "routed",
            Self::Macvlan => "macvlan",
            Self::Direct => "direct",
        }
    }
}

/// The bridge of a node when none is named.
pub const DEFAULT_BRIDGE: &str = "pwbr0";

/// What removing an attachment needs to know of a configuration: little, so
/// that it works with a configuration that changed or became invalid since ADD.
#[derive(Debug, Clone)]
pub struct Network {
    /// The network's name.
    pub name: String,
    /// Name of the bridge in bridge mode.
    pub bridge: String,
    /// Where reservations are kept.
    pub state: PathBuf,
    /// Attachments that GC must keep; `None` when the runtime named none.
    pub valid_attachments: Option<Vec<Attachment>>,
}

/// A checked configuration.
#[derive(Debug, Clone)]
pub struct Configuration {
    /// Version of the specification, of the configuration and of the result.
    pub version: Version,
    /// Name, bridge and state.
    pub network: Network,
    /// How pods are attached.
    pub attach: AttachMode,
    /// Largest packet in bytes; the kernel's default when absent.
    pub mtu: Option<u32>,
    /// Whether the bridge keeps pods from reaching each other below IP.
    pub isolate_ports: bool,
    /// Whether pods of the bridge get each other's multicast.
    pub multicast: bool,
    /// Whether routed pods ask for their gateway's hardware address, and the node
    /// answers on its behalf.
    pub proxy_arp: bool,
    /// The node's interface that macvlan pods are attached to.
    pub master: Option<String>,
    /// Which pods share a cable in direct mode.
    pub pair: Option<String>,
    /// Whether macvlan pods reach each other.
    pub mode: MacvlanMode,
    /// Where addresses come from; one is taken from each set.
    pub ranges: Vec<RangeSet>,
    /// Routes of pods besides the default routes.
    pub routes: Vec<ConfiguredRoute>,
    /// Where to ask whether the pod's policies are in force.
    pub policy: Option<Gate>,
    /// Name service, passed on as it is.
    pub dns: Option<Value>,
    /// A resolver's configuration file that says it when nothing else does.
    pub resolv_conf: Option<PathBuf>,
    /// What the plugin before this one in a chain, or ADD before CHECK and
    /// DEL, gave.
    pub previous: Option<Value>,
    /// Particular addresses asked for.
    pub addresses: Vec<IpAddr>,
    /// A particular hardware address asked for.
    pub mac: Option<MacAddress>,
    /// Ports of the node that lead to the pod.
    pub port_mappings: Vec<Mapping>,
    /// How fast the pod may receive and send.
    pub bandwidth: Bandwidth,
}

/// A route as `ipam.routes` has it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub struct ConfiguredRoute {
    /// Destination.
    #[schemars(with = "String")]
    pub dst: IpNet,
    /// Next hop; the default gateway of the family when absent.
    #[serde(default)]
    pub gw: Option<IpAddr>,
    /// Largest packet in bytes; the interface's when absent or 0.
    #[serde(default)]
    pub mtu: Option<u32>,
    /// Largest segment in bytes told to the other ends of TCP connections; worked out of the
    /// MTU when absent or 0.
    #[serde(default)]
    pub advmss: Option<u32>,
    /// Priority among routes to the same destination, lowest first; the kernel's default when
    /// absent or 0.
    #[serde(default)]
    pub priority: Option<u32>,
    /// Routing table; the main one when absent.
    #[serde(default)]
    pub table: Option<u32>,
    /// Scope as a number: 0 anywhere, 253 on the pod's link and so without a next hop. IPv6 has
    /// none.
    #[serde(default)]
    pub scope: Option<u8>,
}

impl ConfiguredRoute {
    /// Whether it says no more than that there is a default route, as there is.
    pub fn is_plain_default(&self) -> bool {
        self.dst.prefix_len() == 0 && self.gw.is_none() && self.details().is_empty()
    }

    /// What a result of version 1.1 says of it besides destination and next hop.
    pub fn details(&self) -> serde_json::Map<String, Value> {
        let unset = |value: &u32| *value != 0;
        [
            ("mtu", self.mtu.filter(unset)),
            ("advmss", self.advmss.filter(unset)),
            ("priority", self.priority.filter(unset)),
            ("table", self.table),
            ("scope", self.scope.map(u32::from)),
        ]
        .into_iter()
        .filter_map(|(key, value)| Some((key.to_owned(), value?.into())))
        .collect()
    }
}

/// Configuration of podwire-cni, one entry of a config list's `plugins`. Keys that are not
/// described here are left to others.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(rename = "podwire-cni")]
struct Raw {
    /// Version of the CNI specification, of this configuration and of the result. A config list
    /// has it once for all its plugins.
    #[schemars(schema_with = "versions")]
    cni_version: String,
    /// The network's name; a config list has it once for all its plugins. Letters, digits, '.',
    /// '_' and '-' after a letter or digit.
    #[schemars(regex(pattern = "^[a-zA-Z0-9][a-zA-Z0-9_.-]*$"))]
    name: String,
    /// Name of the plugin's binary.
    #[serde(rename = "type")]
    kind: String,
    /// How pods are attached.
    #[schemars(with = "AttachMode")]
    attach: Value,
    /// Largest packet in bytes, on both ends of a pod's interface; 0 is the agent's with the
    /// node's own ranges, else the kernel's own default. IPv6 needs 1280.
    #[schemars(range(min = 0, max = 65535))]
    mtu: u32,
    /// Name of the node's bridge that pods are attached to (attach bridge).
    #[schemars(length(min = 1, max = 15))]
    bridge: String,
    /// No frames between pods below IP (attach bridge).
    isolate_ports: bool,
    /// Multicast of a pod reaches the other pods of the bridge, and not only the node (attach
    /// bridge).
    multicast: bool,
    /// The pod asks for its gateway by ARP and NDP and the node answers in its place, instead of
    /// both knowing each other from the start (attach routed).
    proxy_arp: bool,
    /// The node's interface that pods are attached to (attach macvlan, which requires it).
    #[schemars(length(min = 1, max = 15))]
    master: Option<String>,
    /// Name of the cable that two pods share (attach direct, which requires it here or in
    /// `args.cni`).
    #[schemars(regex(pattern = "^[a-zA-Z0-9][a-zA-Z0-9_.-]*$"))]
    pair: Option<String>,
    /// Whether macvlan pods of the node reach each other: "bridge", or not: "private".
    #[schemars(schema_with = "macvlan_modes")]
    mode: Value,
    /// Where addresses come from, in host-local's shape.
    ipam: RawIpam,
    /// File of the log, an absolute path; "" for none.
    log_file: String,
    /// What is logged: "off", "error" (operations that failed), "info" (also those that changed
    /// something), "debug" (also those that only looked, and configurations).
    log_level: Level,
    /// Size of the log in bytes at which it is renamed to end in ".1", in place of the one before.
    log_bytes: u64,
    /// The agent's socket, where policies are enforced: ADD asks there whether those of the pod are
    /// in force, and waits. "" asks nobody.
    policy_socket: String,
    /// How long ADD waits for policies to be in force, in seconds.
    #[schemars(range(min = 1, max = 3600))]
    policy_seconds: u32,
    /// Name service of the pods, passed on as it is.
    #[schemars(with = "Option<std::collections::BTreeMap<String, Value>>")]
    dns: Option<Value>,
    /// The result of the plugin before in the list, or of ADD. Runtimes give it.
    #[schemars(with = "Option<std::collections::BTreeMap<String, Value>>")]
    prev_result: Option<Value>,
    /// What the runtime wants by capability. Runtimes give it.
    runtime_config: RuntimeConfig,
    /// What the user wants, in the specification's older way.
    args: Args,
}

impl Default for Raw {
    fn default() -> Self {
        Self {
            cni_version: Version::V0_1_0.to_string(),
            name: String::new(),
            kind: String::new(),
            attach: AttachMode::default().as_str().into(),
            mtu: 0,
            bridge: DEFAULT_BRIDGE.to_owned(),
            isolate_ports: false,
            multicast: false,
            proxy_arp: false,
            master: None,
            pair: None,
            mode: "bridge".into(),
            ipam: RawIpam::default(),
            log_file: log::DEFAULT_FILE.to_owned(),
            log_level: Level::default(),
            log_bytes: log::DEFAULT_BYTES,
            policy_socket: String::new(),
            policy_seconds: policy::DEFAULT_SECONDS,
            dns: None,
            prev_result: None,
            runtime_config: RuntimeConfig::default(),
            args: Args::default(),
        }
    }
}

fn versions(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "enum": Version::ALL.map(Version::as_str)})
}

fn macvlan_modes(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "enum": ["bridge", "private"]})
}

/// The JSON schema of a configuration, with a description and the default of
/// every key (JSON Schema 2020-12).
pub fn schema() -> Value {
    let mut schema = schemars::schema_for!(Raw);
    schema.insert("required".to_owned(), json!(["name", "type"]));
    for key in ["name", "type"] {
        // Required keys have no default.
        if let Some(property) = schema.pointer_mut(&format!("/properties/{key}"))
            && let Some(property) = property.as_object_mut()
        {
            property.remove("default");
        }
    }
    schema.to_value()
}

/// Addresses of pods.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
struct RawIpam {
    /// Name of the reference plugin this is in the shape of; podwire does its work itself.
    #[serde(rename = "type")]
    kind: String,
    /// Sets of ranges: a pod gets one address of each set. At most one set of each family. Without
    /// any, here or in `subnet`, the node's own ranges, which its agent knows.
    ranges: Vec<Vec<Range>>,
    /// One range, beside the other keys, in host-local's first form.
    #[schemars(with = "Option<String>")]
    subnet: Option<IpNet>,
    /// First address to hand out of `subnet` [default: its second].
    range_start: Option<IpAddr>,
    /// Last address to hand out of `subnet` [default: its last but one].
    range_end: Option<IpAddr>,
    /// The gateway in `subnet` [default: its first].
    gateway: Option<IpAddr>,
    /// Routes of the pod besides the default routes.
    routes: Vec<ConfiguredRoute>,
    /// A resolver's configuration file (resolv.conf(5)), which the result has as its `dns` when
    /// neither the configuration nor the runtime gives one.
    #[schemars(with = "Option<String>")]
    resolv_conf: Option<PathBuf>,
    /// Directory of the reservations. It must be gone with the boot, as the pods are.
    data_dir: PathBuf,
}

impl Default for RawIpam {
    fn default() -> Self {
        Self {
            kind: "host-local".to_owned(),
            ranges: Vec::new(),
            subnet: None,
            range_start: None,
            range_end: None,
            gateway: None,
            routes: Vec::new(),
            resolv_conf: None,
            data_dir: ipam::store::DEFAULT_ROOT.into(),
        }
    }
}

/// Capabilities that are understood; others are ignored, since a runtime gives
/// only those that the configuration declares.
#[derive(Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
struct RuntimeConfig {
    /// Particular addresses, with or without prefix length.
    ips: Vec<String>,
    /// A particular hardware address.
    mac: Option<String>,
    /// More ranges, added to those of `ipam`.
    ip_ranges: Vec<Vec<Range>>,
    /// Ports of the node that lead to the pod.
    port_mappings: Option<Vec<Mapping>>,
    /// How fast the pod may receive and send.
    bandwidth: Option<Bandwidth>,
    /// Name service of the pod, passed on in the result.
    dns: Option<RuntimeDns>,
}

/// Name service as a runtime gives it; results have other names for its parts.
#[derive(Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default)]
struct RuntimeDns {
    /// Addresses of name servers.
    servers: Vec<String>,
    /// Domains that short names are searched in.
    searches: Vec<String>,
    /// Options of the resolver.
    options: Vec<String>,
}

impl RuntimeDns {
    /// As a result has it.
    fn into_result(self) -> Value {
        let mut result = serde_json::Map::new();
        for (key, list) in [
            ("nameservers", self.servers),
            ("search", self.searches),
            ("options", self.options),
        ] {
            if !list.is_empty() {
                result.insert(key.to_owned(), list.into());
            }
        }
        result.into()
    }
}

/// See the specification's CONVENTIONS.
#[derive(Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default)]
struct Args {
    /// Wishes that count when `runtimeConfig` has none.
    cni: CniArgs,
}

/// Wishes of the user.
#[derive(Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default)]
struct CniArgs {
    /// Particular addresses, with or without prefix length.
    ips: Vec<String>,
    /// Name of the cable that two pods share (attach direct).
    pair: Option<String>,
    /// A particular hardware address.
    mac: Option<String>,
}

/// Keys of the reference plugins that make a difference which podwire does not make:
/// who moves over must not believe that it does.
const NOT_DONE: [&str; 6] = [
    "vlan",
    "vlanTrunk",
    "macspoofchk",
    "promiscMode",
    "disableContainerInterface",
    "ipMasq",
];

/// Refuses what is switched on of [`NOT_DONE`].
fn refuse_not_done(configuration: &Value) -> Result<(), Error> {
    let on = |value: &Value| match value {
        Value::Null => false,
        Value::Bool(on) => *on,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(_) => true,
    };
    for key in NOT_DONE {
        if let Some(value) = configuration.get(key).filter(|value| on(value)) {
            return Err(Error::Unsupported {
                key,
                value: format!("{value} (podwire-cni does nothing of the kind; remove the key)"),
            });
        }
    }
    Ok(())
}

/// The version a configuration asks for; 0.1.0 when it names none.
pub fn version_of(configuration: &Value) -> Result<Version, Error> {
    match configuration.get("cniVersion") {
        None => Ok(Version::V0_1_0),
        Some(Value::String(text)) if text.is_empty() => Ok(Version::V0_1_0),
        Some(Value::String(text)) => text
            .parse()
            .map_err(|_| Error::Version(text.chars().take(40).collect())),
        Some(other) => Err(Error::Decode(format!("cniVersion is {other}, not a text"))),
    }
}

impl Network {
    /// A network of which nothing but the name is known.
    pub(crate) fn named(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            bridge: DEFAULT_BRIDGE.to_owned(),
            state: ipam::store::DEFAULT_ROOT.into(),
            valid_attachments: None,
        }
    }

    /// Reads what removing needs.
    pub fn parse(value: &Value) -> Result<Self, Error> {
        let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
        let name = text(value.get("name")).unwrap_or_default();
        if !valid_identifier(&name) {
            return Err(Error::Configuration(format!(
                "name {name:?} must be letters, digits, '.', '_' and '-' after a letter or digit"
            )));
        }
        let bridge = text(value.get("bridge")).unwrap_or_else(|| DEFAULT_BRIDGE.to_owned());
        if !link::valid_name(&bridge) {
            return Err(Error::Configuration(format!(
                "bridge {bridge:?} is no interface name"
            )));
        }
        let state = text(value.pointer("/ipam/dataDir"))
            .unwrap_or_else(|| ipam::store::DEFAULT_ROOT.to_owned());
        // `null` is how runtimes in Go write an empty list.
        let valid_attachments = value
            .get("cni.dev/valid-attachments")
            .map(Option::<Vec<Attachment>>::deserialize)
            .transpose()
            .map_err(|error| Error::Decode(format!("cni.dev/valid-attachments: {error}")))?
            .map(Option::unwrap_or_default);
        Ok(Self {
            name,
            bridge,
            state: state.into(),
            valid_attachments,
        })
    }
}

impl Configuration {
    /// Reads and checks a configuration; `extra` is `CNI_ARGS`, which yields to
    /// the configuration's own wishes (runtimeConfig, then args.cni).
    pub fn parse(value: Value, extra: &Extra) -> Result<Self, Error> {
        let version = version_of(&value)?;
        if !value.is_object() {
            return Err(Error::Decode(
                "the configuration is not an object".to_owned(),
            ));
        }
        let network = Network::parse(&value)?;
        refuse_not_done(&value)?;
        let raw: Raw =
            serde_json::from_value(value).map_err(|error| Error::Decode(error.to_string()))?;
        let attach =
            serde_json::from_value(raw.attach.clone()).map_err(|_| Error::Unsupported {
                key: "attach",
                value: format!(
                    "{} (there are \"bridge\", \"routed\", \"macvlan\" and \"direct\")",
                    raw.attach
                ),
            })?;
        if attach == AttachMode::Macvlan && !raw.master.as_deref().is_some_and(link::valid_name) {
            return Err(Error::Configuration(
                "attach macvlan needs \"master\", the name of the node's interface to attach to"
                    .to_owned(),
            ));
        }
        if attach == AttachMode::Direct
            && !raw
                .args
                .cni
                .pair
                .as_ref()
                .or(raw.pair.as_ref())
                .is_some_and(|pair| valid_identifier(pair))
        {
            return Err(Error::Configuration(
                "attach direct needs \"pair\" (or args.cni.pair), the name of the cable that two pods share: \
                 letters, digits, '.', '_' and '-' after a letter or digit"
                    .to_owned(),
            ));
        }
        if raw.proxy_arp && attach != AttachMode::Routed {
            return Err(Error::Unsupported {
                key: "proxyArp",
                value: "true with another attach than routed".to_owned(),
            });
        }
        let mode = match raw.mode.as_str() {
            Some("" | "bridge") => MacvlanMode::Bridge,
            Some("private") => MacvlanMode::Private,
            _ => {
                return Err(Error::Unsupported {
                    key: "mode",
                    value: format!("{} (there are \"bridge\" and \"private\")", raw.mode),
                });
            }
        };
        // Below 1280 the kernel switches IPv6 off on an interface (RFC 8200).
        if raw.mtu != 0 && !(68..=65535).contains(&raw.mtu) {
            return Err(Error::Configuration(format!(
                "mtu {} is not between 68 and 65535",
                raw.mtu
            )));
        }
        let ipam = raw.ipam;
        let mut sets = ipam.ranges;
        if let Some(subnet) = ipam.subnet {
            sets.insert(
                0,
                vec![Range {
                    range_start: ipam.range_start,
                    range_end: ipam.range_end,
                    gateway: ipam.gateway,
                    ..Range::of(subnet)
                }],
            );
        }
        sets.extend(raw.runtime_config.ip_ranges);
        let node = if sets.is_empty() {
            NodeRanges::read(&network.state)?.ok_or_else(|| {
                Error::TryAgain(format!(
                    "the configuration has no ipam.ranges, and the node's own ranges are not known \
                     yet: its agent writes them to {} when it has learnt them",
                    NodeRanges::path(&network.state).display()
                ))
            })?
        } else {
            NodeRanges::default()
        };
        sets.extend(node.ranges.iter().map(|range| vec![Range::of(*range)]));
        let ranges = RangeSet::all(&sets)?;
        for v4 in [true, false] {
            if ranges.iter().filter(|set| set.is_v4() == v4).count() > 1 {
                return Err(Error::Configuration(
                    "ipam.ranges has two sets of one family; put ranges of one family into one set"
                        .to_owned(),
                ));
            }
        }
        let gateways = || ranges.iter().flat_map(RangeSet::gateways);
        if attach == AttachMode::Bridge
            && let Some((subnet, gateway)) = gateways().find(|(net, at)| !net.contains(at))
        {
            // The bridge would have it, and the node no route to the subnet.
            return Err(Error::Configuration(format!(
                "ipam.ranges: gateway {gateway} is not in subnet {subnet}, as the address of the \
                 bridge must be"
            )));
        }
        let mtu = (raw.mtu != 0).then_some(raw.mtu).or(node.mtu);
        if mtu.is_some_and(|mtu| mtu < 1280) && ranges.iter().any(|set| !set.is_v4()) {
            return Err(Error::Configuration(format!(
                "mtu {} is too small for IPv6, which needs 1280",
                raw.mtu
            )));
        }

        let wishes = if raw.runtime_config.ips.is_empty() {
            raw.args.cni.ips
        } else {
            raw.runtime_config.ips
        };
        let mut addresses = wishes
            .iter()
            .map(|text| {
                text.split('/')
                    .next()
                    .and_then(|address| address.parse().ok())
                    .ok_or_else(|| Error::Configuration(format!("ips: {text:?} is no address")))
            })
            .collect::<Result<Vec<IpAddr>, Error>>()?;
        if addresses.is_empty() {
            addresses.extend(extra.address);
        }
        let mac = match raw.runtime_config.mac.or(raw.args.cni.mac) {
            None => extra.mac,
            Some(text) => Some(
                text.parse::<MacAddress>()
                    .map_err(|error| Error::Configuration(format!("mac: {error}")))?,
            ),
        };
        if let Some(mac) = mac.filter(|mac| !mac.is_unicast()) {
            return Err(Error::Configuration(format!(
                "mac {mac} is not an address a single interface can have"
            )));
        }
        let bandwidth = raw.runtime_config.bandwidth.unwrap_or_default();
        bandwidth.validate()?;
        if let AttachMode::Macvlan | AttachMode::Direct = attach {
            // The node does not see such a pod's packets.
            let asked = [
                (
                    "portMappings",
                    raw.runtime_config
                        .port_mappings
                        .as_ref()
                        .is_some_and(|list| !list.is_empty()),
                ),
                ("bandwidth", bandwidth != Bandwidth::default()),
            ];
            if let Some((key, _)) = asked.into_iter().find(|(_, asked)| *asked) {
                return Err(Error::Unsupported {
                    key,
                    value: format!(
                        "any with attach {}; bridge and routed have it",
                        attach.as_str()
                    ),
                });
            }
        }
        Ok(Self {
            version,
            network,
            attach,
            mtu,
            isolate_ports: raw.isolate_ports,
            multicast: raw.multicast,
            proxy_arp: raw.proxy_arp,
            master: raw.master,
            pair: raw.args.cni.pair.or(raw.pair),
            mode,
            ranges,
            routes: ipam.routes,
            resolv_conf: ipam.resolv_conf.filter(|path| !path.as_os_str().is_empty()),
            policy: (!raw.policy_socket.is_empty()).then(|| Gate {
                socket: raw.policy_socket.into(),
                patience: Duration::from_secs(raw.policy_seconds.into()),
            }),
            dns: match raw.runtime_config.dns {
                Some(dns) => Some(dns.into_result()),
                None => raw.dns,
            },
            previous: raw.prev_result,
            addresses,
            mac,
            port_mappings: hostports::distinct(
                raw.runtime_config.port_mappings.unwrap_or_default(),
            )?,
            bandwidth,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    /// Any JSON, with the keys that mean something here among its keys.
    fn anything() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "[ -~]{0,12}".prop_map(Value::from),
            Just(json!("10.0.0.0/24")),
            Just(json!("fd00::/64")),
            Just(json!("10.0.0.9")),
            Just(json!("1.1.0")),
        ];
        let key = prop_oneof![
            Just("name"),
            Just("attach"),
            Just("mtu"),
            Just("ipam"),
            Just("ranges"),
            Just("subnet"),
            Just("rangeStart"),
            Just("gateway"),
            Just("exclusions"),
            Just("routes"),
            Just("dst"),
            Just("runtimeConfig"),
            Just("ips"),
            Just("mac"),
            Just("args"),
            Just("cni"),
            Just("dataDir"),
            Just("cni.dev/valid-attachments"),
        ];
        leaf.prop_recursive(5, 40, 6, move |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::btree_map(key.clone(), inner, 0..6)
                    .prop_map(|map| map.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()),
            ]
        })
    }

    proptest! {
        #[test]
        fn no_json_makes_the_reader_panic(mut value in anything(), named in any::<bool>()) {
            if let (Value::Object(object), true) = (&mut value, named) {
                object.insert("name".to_owned(), "pods".into());
            }
            let _ = Network::parse(&value);
            if let Ok(configuration) = Configuration::parse(value, &Extra::default()) {
                prop_assert!(!configuration.ranges.is_empty());
            }
        }
    }

    #[test]
    fn host_locals_first_form_is_understood() {
        let configuration = Configuration::parse(
            json!({"name": "pods", "ipam": {"type": "host-local", "subnet": "10.0.0.0/24", "rangeStart": "10.0.0.50"}}),
            &Extra::default(),
        )
        .unwrap();
        assert_eq!(configuration.version, Version::V0_1_0);
        assert_eq!(configuration.attach, AttachMode::Routed);
        let first = configuration.ranges[0].addresses().next().unwrap();
        assert_eq!(first.to_string(), "10.0.0.50");
    }

    /// The schema of the key that a pointer such as `/ipam/dataDir` leads to.
    fn key<'a>(schema: &'a Value, pointer: &str) -> &'a Value {
        let mut at = schema;
        for name in pointer.split('/').skip(1) {
            at = &at["properties"][name];
            if let Some(reference) = at["$ref"].as_str() {
                let found = schema.pointer(reference.trim_start_matches('#')).unwrap();
                // Beside a reference stands what is said of this use of it.
                if name == pointer.rsplit('/').next().unwrap() {
                    return at;
                }
                at = found;
            }
        }
        at
    }

    #[test]
    fn every_key_is_described_and_has_its_default() {
        fn walk(schema: &Value, at: &str) {
            for (name, property) in schema["properties"].as_object().into_iter().flatten() {
                let at = format!("{at}/{name}");
                assert!(property["description"].is_string(), "{at}: {property}");
                let required = schema["required"]
                    .as_array()
                    .is_some_and(|keys| keys.iter().any(|key| key == name));
                let optional = property["type"]
                    .as_array()
                    .is_some_and(|t| t.contains(&json!("null")))
                    || property["anyOf"].is_array();
                assert!(
                    required || optional || property.get("default").is_some(),
                    "{at}: {property}"
                );
            }
        }
        let schema = schema();
        walk(&schema, "");
        for (name, definition) in schema["$defs"].as_object().unwrap() {
            walk(definition, name);
        }
    }

    #[test]
    fn the_schemas_defaults_are_what_the_smallest_configuration_means() {
        let schema = schema();
        let default = |pointer: &str| key(&schema, pointer)["default"].clone();
        let smallest =
            json!({"name": "pods", "type": "podwire-cni", "ipam": {"subnet": "10.0.0.0/24"}});
        let read = |value: Value| Configuration::parse(value, &Extra::default()).unwrap();
        let small = read(smallest.clone());
        assert_eq!(default("/cniVersion"), small.version.as_str());
        assert_eq!(default("/attach"), small.attach.as_str());
        assert_eq!(default("/bridge"), *small.network.bridge);
        assert_eq!(default("/mtu"), small.mtu.unwrap_or(0));
        assert_eq!(default("/isolatePorts"), small.isolate_ports);
        assert_eq!(default("/proxyArp"), small.proxy_arp);
        assert_eq!(default("/ipam/dataDir"), json!(small.network.state));
        let log = json!({
            "logFile": default("/logFile"), "logLevel": default("/logLevel"), "logBytes": default("/logBytes"),
        });
        assert_eq!(log::Log::of(&log), log::Log::default());
        // Written out, all of them together mean the same.
        let mut written = smallest;
        for name in schema["properties"].as_object().unwrap().keys() {
            if written.get(name).is_none() {
                written[name] = default(&format!("/{name}"));
            }
        }
        written["ipam"]["dataDir"] = default("/ipam/dataDir");
        assert_eq!(format!("{:?}", read(written)), format!("{small:?}"));
    }

    #[test]
    fn without_ranges_the_nodes_own_are_used() {
        let root = tempfile::tempdir().unwrap();
        let value = json!({"name": "pods", "ipam": {"dataDir": root.path()}});
        let read = || Configuration::parse(value.clone(), &Extra::default());
        let error = read().unwrap_err();
        assert_eq!(error.code(), 11);
        assert!(error.to_string().contains("node.json"), "{error}");
        let note = NodeRanges {
            ranges: vec![
                "10.200.7.0/24".parse().unwrap(),
                "fd00:7::/64".parse().unwrap(),
            ],
            mtu: Some(1400),
        };
        note.write(root.path()).unwrap();
        let configuration = read().unwrap();
        assert_eq!(configuration.ranges.len(), 2);
        assert_eq!(configuration.mtu, Some(1400));
    }

    #[test]
    fn the_runtimes_wish_counts_before_arguments() {
        let extra = Extra {
            address: Some([10, 0, 0, 3].into()),
            ..Extra::default()
        };
        let base = json!({"name": "pods", "ipam": {"subnet": "10.0.0.0/24"}});
        let wanted = |key: &str, value: Value| {
            let mut configuration = base.clone();
            configuration[key] = value;
            Configuration::parse(configuration, &extra)
                .unwrap()
                .addresses
        };
        let ips = |ip: &str| json!({"ips": [ip]});
        assert_eq!(
            wanted("x", Value::Null),
            [std::net::IpAddr::from([10, 0, 0, 3])]
        );
        assert_eq!(
            wanted("args", json!({"cni": ips("10.0.0.4")})),
            [std::net::IpAddr::from([10, 0, 0, 4])]
        );
        assert_eq!(
            wanted("runtimeConfig", ips("10.0.0.5/24")),
            [std::net::IpAddr::from([10, 0, 0, 5])]
        );
    }
}
