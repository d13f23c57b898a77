//! What ADD answers, in the schema of each version of the specification.

use std::net::IpAddr;

use ipnet::IpNet;
use linux::link::MacAddress;
use serde_json::{Map, Value, json};

use crate::version::Version;

/// The result of an ADD: the newest schema, of which the older ones are cuts.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct AddResult {
    /// Interfaces, on the node and in the container.
    pub interfaces: Vec<Interface>,
    /// Addresses of the container.
    pub addresses: Vec<Address>,
    /// Routes of the container.
    pub routes: Vec<Route>,
    /// Name service, as configured or given by an earlier plugin.
    pub dns: Option<Value>,
}

/// An interface that exists for the container.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its hardware address, as text.
    pub mac: Option<String>,
    /// Its MTU in bytes (1.1.0).
    pub mtu: Option<u32>,
    /// The network namespace it is in; absent for the node's own.
    pub sandbox: Option<String>,
    /// Other keys of an earlier plugin, kept as they are.
    pub other: Map<String, Value>,
}

/// An address of the container.
#[derive(Debug, Clone, PartialEq)]
pub struct Address {
    /// With the prefix length of its subnet.
    pub address: IpNet,
    /// Default gateway of the subnet.
    pub gateway: Option<IpAddr>,
    /// Which of [`AddResult::interfaces`] has it.
    pub interface: Option<usize>,
}

/// A route of the container.
#[derive(Debug, Clone, PartialEq)]
pub struct Route {
    /// Destination.
    pub destination: IpNet,
    /// Next hop.
    pub gateway: Option<IpAddr>,
    /// Other keys of an earlier plugin (1.1.0: mtu, advmss, priority, …).
    pub other: Map<String, Value>,
}

impl Interface {
    /// An interface of the node.
    pub fn of_node(name: &str, mac: Option<MacAddress>, mtu: u32) -> Self {
        Self {
            name: name.to_owned(),
            mac: mac.map(|mac| mac.to_string()),
            mtu: Some(mtu),
            ..Self::default()
        }
    }
}

impl Route {
    /// A route without further keys.
    pub fn new(destination: IpNet, gateway: Option<IpAddr>) -> Self {
        Self {
            destination,
            gateway,
            other: Map::new(),
        }
    }
}

impl AddResult {
    /// Renders the result in a version's schema.
    pub fn to_json(&self, version: Version) -> Value {
        let mut result = Map::new();
        result.insert("cniVersion".to_owned(), version.as_str().into());
        if version < Version::V0_3_0 {
            self.render_by_family(&mut result);
        } else {
            self.render_lists(version, &mut result);
        }
        result.insert(
            "dns".to_owned(),
            self.dns.clone().unwrap_or_else(|| json!({})),
        );
        Value::Object(result)
    }

    /// 0.1.0 and 0.2.0: at most one address of each family, with its routes.
    fn render_by_family(&self, result: &mut Map<String, Value>) {
        for (key, v4) in [("ip4", true), ("ip6", false)] {
            let Some(address) = self
                .addresses
                .iter()
                .find(|address| address.address.addr().is_ipv4() == v4)
            else {
                continue;
            };
            let mut family = Map::new();
            family.insert("ip".to_owned(), address.address.to_string().into());
            if let Some(gateway) = address.gateway {
                family.insert("gateway".to_owned(), gateway.to_string().into());
            }
            let routes: Vec<_> = self
                .routes
                .iter()
                .filter(|route| route.destination.addr().is_ipv4() == v4)
                .map(|route| render_route(route, Version::V0_2_0))
                .collect();
            if !routes.is_empty() {
                family.insert("routes".to_owned(), routes.into());
            }
            result.insert(key.to_owned(), family.into());
        }
    }

    fn render_lists(&self, version: Version, result: &mut Map<String, Value>) {
        let interfaces: Vec<Value> = self
            .interfaces
            .iter()
            .map(|interface| {
                let mut object = Map::new();
                object.insert("name".to_owned(), interface.name.clone().into());
                if let Some(mac) = &interface.mac {
                    object.insert("mac".to_owned(), mac.clone().into());
                }
                if let (Some(mtu), true) = (interface.mtu, version >= Version::V1_1_0) {
                    object.insert("mtu".to_owned(), mtu.into());
                }
                if let Some(sandbox) = &interface.sandbox {
                    object.insert("sandbox".to_owned(), sandbox.clone().into());
                }
                if version >= Version::V1_1_0 {
                    object.extend(interface.other.clone());
                }
                object.into()
            })
            .collect();
        let addresses: Vec<Value> = self
            .addresses
            .iter()
            .map(|address| {
                let mut object = Map::new();
                if version < Version::V1_0_0 {
                    let family = if address.address.addr().is_ipv4() {
                        "4"
                    } else {
                        "6"
                    };
                    object.insert("version".to_owned(), family.into());
                }
                object.insert("address".to_owned(), address.address.to_string().into());
                if let Some(gateway) = address.gateway {
                    object.insert("gateway".to_owned(), gateway.to_string().into());
                }
                if let Some(interface) = address.interface {
                    object.insert("interface".to_owned(), interface.into());
                }
                object.into()
            })
            .collect();
        let routes: Vec<Value> = self
            .routes
            .iter()
            .map(|route| render_route(route, version))
            .collect();
        for (key, list) in [
            ("interfaces", interfaces),
            ("ips", addresses),
            ("routes", routes),
        ] {
            if !list.is_empty() {
                result.insert(key.to_owned(), list.into());
            }
        }
    }

    /// Reads a result of any version (`prevResult`).
    ///
    /// # Errors
    ///
    /// What is wrong, in words.
    pub fn from_json(value: &Value) -> Result<Self, String> {
        let object = value
            .as_object()
            .ok_or_else(|| "it is not an object".to_owned())?;
        let mut result = Self {
            dns: object.get("dns").cloned(),
            ..Self::default()
        };
        for key in ["ip4", "ip6"] {
            if let Some(family) = object.get(key).filter(|value| !value.is_null()) {
                result.addresses.push(Address {
                    address: parse(family, "ip")?.ok_or_else(|| format!("{key} has no ip"))?,
                    gateway: parse(family, "gateway")?,
                    interface: None,
                });
                for route in list(family, "routes")? {
                    result.routes.push(read_route(route)?);
                }
            }
        }
        for interface in list(value, "interfaces")? {
            let mut other = interface
                .as_object()
                .cloned()
                .ok_or_else(|| "an interface is not an object".to_owned())?;
            let mut text = |key: &str| match other.remove(key) {
                Some(Value::String(text)) if !text.is_empty() => Some(text),
                _ => None,
            };
            let (name, mac, sandbox) = (text("name"), text("mac"), text("sandbox"));
            let mtu = other.remove("mtu").and_then(|mtu| mtu.as_u64());
            result.interfaces.push(Interface {
                name: name.ok_or_else(|| "an interface has no name".to_owned())?,
                mac,
                mtu: mtu.and_then(|mtu| mtu.try_into().ok()),
                sandbox,
                other,
            });
        }
        for address in list(value, "ips")? {
            let interface = match address.get("interface") {
                None | Some(Value::Null) => None,
                Some(index) => Some(
                    index
                        .as_u64()
                        .and_then(|index| usize::try_from(index).ok())
                        .filter(|index| *index < result.interfaces.len())
                        .ok_or_else(|| format!("ips: {index} is no index of an interface"))?,
                ),
            };
            result.addresses.push(Address {
                address: parse(address, "address")?
                    .ok_or_else(|| "an entry of ips has no address".to_owned())?,
                gateway: parse(address, "gateway")?,
                interface,
            });
        }
        for route in list(value, "routes")? {
            result.routes.push(read_route(route)?);
        }
        Ok(result)
    }

    /// Puts an earlier plugin's result before this one's.
    pub fn after(self, mut earlier: Self) -> Self {
        let offset = earlier.interfaces.len();
        earlier.interfaces.extend(self.interfaces);
        earlier
            .addresses
            .extend(self.addresses.into_iter().map(|mut address| {
                address.interface = address.interface.map(|index| index + offset);
                address
            }));
        earlier.routes.extend(self.routes);
        if let Some(dns) = self.dns {
            earlier.dns = Some(dns);
        }
        earlier
    }
}

fn render_route(route: &Route, version: Version) -> Value {
    let mut object = Map::new();
    object.insert("dst".to_owned(), route.destination.to_string().into());
    if let Some(gateway) = route.gateway {
        object.insert("gw".to_owned(), gateway.to_string().into());
    }
    if version >= Version::V1_1_0 {
        object.extend(route.other.clone());
    }
    object.into()
}

fn read_route(value: &Value) -> Result<Route, String> {
    let mut other = value
        .as_object()
        .cloned()
        .ok_or_else(|| "a route is not an object".to_owned())?;
    other.remove("dst");
    other.remove("gw");
    Ok(Route {
        destination: parse(value, "dst")?.ok_or_else(|| "a route has no dst".to_owned())?,
        gateway: parse(value, "gw")?,
        other,
    })
}

fn list<'a>(value: &'a Value, key: &str) -> Result<&'a [Value], String> {
    match value.get(key) {
        None | Some(Value::Null) => Ok(&[]),
        Some(Value::Array(list)) => Ok(list),
        Some(_) => Err(format!("{key} is not a list")),
    }
}

fn parse<T: std::str::FromStr>(value: &Value, key: &str) -> Result<Option<T>, String> {
    match value.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.is_empty() => Ok(None),
        Some(Value::String(text)) => text
            .parse()
            .map(Some)
            .map_err(|_| format!("{key} {text:?} is not an address")),
        Some(other) => Err(format!("{key} is {other}, not a text")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> AddResult {
        AddResult {
            interfaces: vec![
                Interface::of_node("pwbr0", Some(MacAddress([10, 0, 0, 0, 0, 1])), 1500),
                Interface {
                    name: "eth0".to_owned(),
                    mac: Some("0a:00:00:00:00:02".to_owned()),
                    mtu: Some(1400),
                    sandbox: Some("/run/netns/x".to_owned()),
                    other: Map::new(),
                },
            ],
            addresses: vec![
                Address {
                    address: "10.0.0.2/24".parse().unwrap(),
                    gateway: Some("10.0.0.1".parse().unwrap()),
                    interface: Some(1),
                },
                Address {
                    address: "fd00::2/64".parse().unwrap(),
                    gateway: Some("fd00::1".parse().unwrap()),
                    interface: Some(1),
                },
            ],
            routes: vec![
                Route::new("0.0.0.0/0".parse().unwrap(), None),
                Route::new("::/0".parse().unwrap(), Some("fd00::1".parse().unwrap())),
            ],
            dns: None,
        }
    }

    #[test]
    fn versions_before_0_3_have_one_address_of_each_family() {
        for version in [Version::V0_1_0, Version::V0_2_0] {
            assert_eq!(
                sample().to_json(version),
                json!({
                    "cniVersion": version.as_str(),
                    "ip4": {"ip": "10.0.0.2/24", "gateway": "10.0.0.1", "routes": [{"dst": "0.0.0.0/0"}]},
                    "ip6": {"ip": "fd00::2/64", "gateway": "fd00::1",
                            "routes": [{"dst": "::/0", "gw": "fd00::1"}]},
                    "dns": {},
                })
            );
        }
    }

    #[test]
    fn versions_0_3_and_0_4_name_the_family_of_addresses() {
        for version in [Version::V0_3_0, Version::V0_3_1, Version::V0_4_0] {
            let result = sample().to_json(version);
            assert_eq!(
                result["ips"][1],
                json!({"version": "6", "address": "fd00::2/64", "gateway": "fd00::1", "interface": 1})
            );
            assert_eq!(
                result["interfaces"][1],
                json!({"name": "eth0", "mac": "0a:00:00:00:00:02", "sandbox": "/run/netns/x"})
            );
        }
    }

    #[test]
    fn version_1_0_drops_the_family_and_1_1_adds_the_mtu() {
        let result = sample().to_json(Version::V1_0_0);
        assert_eq!(
            result["ips"][0],
            json!({"address": "10.0.0.2/24", "gateway": "10.0.0.1", "interface": 1})
        );
        assert_eq!(result["interfaces"][1].get("mtu"), None);
        let result = sample().to_json(Version::V1_1_0);
        assert_eq!(result["interfaces"][1]["mtu"], 1400);
    }

    #[test]
    fn a_result_is_read_back_from_every_version() {
        for version in Version::ALL {
            let rendered = sample().to_json(version);
            let read = AddResult::from_json(&rendered).unwrap();
            assert_eq!(read.to_json(version), rendered, "{version}");
        }
    }

    #[test]
    fn an_earlier_plugins_result_comes_first_and_indexes_move() {
        let earlier = AddResult::from_json(&json!({
            "cniVersion": "1.1.0",
            "interfaces": [{"name": "other0", "socketPath": "/x"}],
            "ips": [{"address": "192.0.2.1/24", "interface": 0}],
        }))
        .unwrap();
        let both = sample().after(earlier).to_json(Version::V1_1_0);
        assert_eq!(
            both["interfaces"][0],
            json!({"name": "other0", "socketPath": "/x"})
        );
        assert_eq!(both["ips"][0]["interface"], 0);
        assert_eq!(both["ips"][1]["interface"], 2);
    }

    #[test]
    fn a_broken_result_is_refused_with_the_reason() {
        for (value, reason) in [
            (json!([]), "not an object"),
            (json!({"ips": 3}), "ips is not a list"),
            (json!({"ips": [{"address": "x"}]}), "not an address"),
            (
                json!({"ips": [{"address": "10.0.0.1/8", "interface": 4}]}),
                "no index",
            ),
            (json!({"ip4": {}}), "ip4 has no ip"),
            (json!({"interfaces": [{}]}), "no name"),
        ] {
            let error = AddResult::from_json(&value).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
    }

    proptest! {
        #[test]
        fn no_json_makes_the_reader_panic(text in "[\\[\\]{}:,\"a-z0-9./]{0,60}") {
            if let Ok(value) = serde_json::from_str::<Value>(&text) {
                let _ = AddResult::from_json(&value);
            }
        }
    }
}
