//! Addresses and node ports of Services.

use std::collections::HashMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::IpNet;
use serde_json::{Value, json};

use crate::object;
use crate::registry::Resource;
use crate::status::ApiError;
use crate::store::Key;
use crate::validation::FieldError;

/// Node ports, as Kubernetes has them by default.
pub(crate) const NODE_PORTS: RangeInclusive<u16> = 30000..=32767;
/// The first node ports are left for choice by hand.
const NODE_PORT_BAND: u16 = 86;

/// What one Service holds.
#[derive(Debug, Default, Clone)]
struct Held {
    addresses: Vec<IpAddr>,
    ports: Vec<u16>,
}

/// Hands out Service addresses and node ports. Rebuilt from the stored
/// Services at start: they are the only record.
#[derive(Debug)]
pub(crate) struct Allocator {
    /// Service ranges, the cluster's primary family first.
    ranges: Vec<IpNet>,
    addresses: HashMap<IpAddr, Key>,
    ports: HashMap<u16, Key>,
    held: HashMap<Key, Held>,
    /// Where the search for a free address goes on, per range: not at the one
    /// freed last, so that an address is not reused at once.
    next_address: Vec<u128>,
    next_port: u16,
}

/// Why a Service gets nothing.
enum Refusal {
    Field(FieldError),
    Full(String),
}

impl Allocator {
    /// An allocator in which nothing is taken.
    pub(crate) fn new(ranges: Vec<IpNet>) -> Self {
        Self {
            next_address: vec![0; ranges.len()],
            ranges,
            addresses: HashMap::new(),
            ports: HashMap::new(),
            held: HashMap::new(),
            next_port: NODE_PORT_BAND,
        }
    }

    /// Makes what a Service holds the same as what its stored object says;
    /// none frees all.
    pub(crate) fn settle(&mut self, owner: &Key, service: Option<&Value>) {
        if let Some(held) = self.held.remove(owner) {
            for address in held.addresses {
                if self.addresses.get(&address) == Some(owner) {
                    self.addresses.remove(&address);
                }
            }
            for port in held.ports {
                if self.ports.get(&port) == Some(owner) {
                    self.ports.remove(&port);
                }
            }
        }
        let Some(service) = service else { return };
        for address in addresses(service) {
            self.take_address(owner, address);
        }
        for port in ports(service) {
            self.take_port(owner, port);
        }
    }

    fn take_address(&mut self, owner: &Key, address: IpAddr) {
        self.addresses.insert(address, owner.clone());
        let held = self.held.entry(owner.clone()).or_default();
        held.addresses.push(address);
    }

    fn take_port(&mut self, owner: &Key, port: u16) {
        self.ports.insert(port, owner.clone());
        self.held.entry(owner.clone()).or_default().ports.push(port);
    }

    /// Fills in families, addresses and ports of a new or changed Service.
    /// [`Allocator::settle`] has to follow in any case, with what is stored
    /// then.
    ///
    /// # Errors
    /// `Invalid` with the field's path when something asked for is taken or
    /// out of range; an internal error when a range is full.
    pub(crate) fn admit(
        &mut self,
        resource: &Resource,
        owner: &Key,
        old: Option<&Value>,
        service: &mut Value,
    ) -> Result<(), ApiError> {
        if !service["spec"].is_object() {
            return Ok(());
        }
        if let Some(old) = old {
            inherit(old, service);
            drop_type_dependent(old, service);
        }
        let result = self
            .families_and_addresses(owner, old, service)
            .and_then(|()| self.node_ports(owner, service));
        result.map_err(|refusal| match refusal {
            Refusal::Field(error) => ApiError::invalid(resource, &owner.name, &[error]),
            Refusal::Full(text) => ApiError::internal(text),
        })
    }

    fn families_and_addresses(
        &mut self,
        owner: &Key,
        old: Option<&Value>,
        service: &mut Value,
    ) -> Result<(), Refusal> {
        let spec = &mut service["spec"];
        if object::text(spec, "/type") == "ExternalName" {
            for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
                remove(spec, field);
            }
            return Ok(());
        }
        let mut asked = asked_addresses(spec)?;
        let headless = object::text(spec, "/clusterIP") == "None";
        let families = self.families(old, spec, headless, &asked)?;
        spec["ipFamilies"] = families.iter().map(|v6| family_name(*v6)).collect();
        if headless {
            spec["clusterIPs"] = json!(["None"]);
            return Ok(());
        }
        // A family that is given up gives its address up.
        asked.truncate(families.len());
        let mut given: Vec<String> = Vec::new();
        for (i, v6) in families.iter().enumerate() {
            let Some(range) = self.ranges.iter().position(|r| is_v6(r) == *v6) else {
                continue;
            };
            let address = match asked.get(i) {
                Some(address) => self.claim(owner, range, *address)?,
                None => self.any_address(range)?,
            };
            self.take_address(owner, address);
            given.push(address.to_string());
        }
        spec["clusterIP"] = given.first().cloned().unwrap_or_default().into();
        spec["clusterIPs"] = given.into();
        Ok(())
    }

    /// The families of a Service, true for IPv6; also fills in its policy.
    fn families(
        &self,
        old: Option<&Value>,
        spec: &mut Value,
        headless: bool,
        asked: &[IpAddr],
    ) -> Result<Vec<bool>, Refusal> {
        let served: Vec<bool> = self.ranges.iter().map(is_v6).collect();
        let mut families = Vec::new();
        let wanted = spec["ipFamilies"].as_array().cloned().unwrap_or_default();
        for (i, family) in wanted.iter().enumerate() {
            let path = format!("spec.ipFamilies[{i}]");
            let v6 = match family.as_str() {
                Some("IPv4") => false,
                Some("IPv6") => true,
                _ => {
                    let supported = ["IPv4", "IPv6"];
                    return Err(Refusal::Field(FieldError::not_supported(
                        path,
                        family.clone(),
                        &supported,
                    )));
                }
            };
            if !served.contains(&v6) {
                return Err(Refusal::Field(FieldError::invalid(
                    path,
                    family.clone(),
                    "not configured on this cluster",
                )));
            }
            if families.contains(&v6) {
                return Err(Refusal::Field(FieldError::duplicate(path, family.clone())));
            }
            families.push(v6);
        }
        for (i, address) in asked.iter().enumerate() {
            match families.get(i) {
                None => families.push(address.is_ipv6()),
                Some(v6) if *v6 != address.is_ipv6() => {
                    return Err(Refusal::Field(FieldError::invalid(
                        format!("spec.clusterIPs[{i}]"),
                        address.to_string(),
                        format!(
                            "expected an {} value as indicated by `ipFamilies[{i}]`",
                            family_name(*v6)
                        ),
                    )));
                }
                Some(_) => {}
            }
        }
        let policy = match spec["ipFamilyPolicy"].as_str() {
            Some(policy) => policy.to_owned(),
            None => {
                let selects = spec["selector"].as_object().is_some_and(|s| !s.is_empty());
                // Endpoints made by hand may be of any family.
                let any_family = headless && !selects && families.is_empty() && served.len() > 1;
                let policy = if families.len() > 1 || any_family {
                    "RequireDualStack"
                } else {
                    "SingleStack"
                };
                policy.to_owned()
            }
        };
        if policy == "RequireDualStack" && served.len() < 2 {
            return Err(Refusal::Field(FieldError::invalid(
                "spec.ipFamilyPolicy",
                policy,
                "this cluster is not configured for dual-stack services",
            )));
        }
        if families.is_empty() {
            families.extend(served.first());
        }
        if policy == "SingleStack" && families.len() > 1 {
            let was_dual = old.is_some_and(|o| {
                let policy = object::text(o, "/spec/ipFamilyPolicy");
                !policy.is_empty() && policy != "SingleStack"
            });
            if !was_dual {
                return Err(Refusal::Field(FieldError::invalid(
                    "spec.ipFamilyPolicy",
                    policy,
                    "must be RequireDualStack or PreferDualStack when multiple `ipFamilies` are specified",
                )));
            }
            families.truncate(1);
        }
        if policy != "SingleStack" {
            for v6 in served {
                if !families.contains(&v6) {
                    families.push(v6);
                }
            }
        }
        spec["ipFamilyPolicy"] = policy.into();
        Ok(families)
    }

    /// Checks that an address asked for can be had.
    fn claim(&self, owner: &Key, range: usize, address: IpAddr) -> Result<IpAddr, Refusal> {
        let net = self.ranges[range];
        let broadcast = address.is_ipv4() && address == net.broadcast();
        let why = if !net.contains(&address) || address == net.network() || broadcast {
            format!(
                "the provided IP ({address}) is not in the valid range. The range of valid IPs is {net}"
            )
        } else if self.addresses.get(&address).is_some_and(|o| o != owner) {
            "provided IP is already allocated".to_owned()
        } else {
            return Ok(address);
        };
        Err(Refusal::Field(FieldError::invalid(
            "spec.clusterIPs",
            json!([address.to_string()]),
            format!("failed to allocate IP {address}: {why}"),
        )))
    }

    /// A free address. The first ones of a range (1/16 of it, between 16 and
    /// 256) are left for choice by hand, as in Kubernetes, and are given out
    /// last.
    fn any_address(&mut self, range: usize) -> Result<IpAddr, Refusal> {
        let net = self.ranges[range];
        let count = usable(&net);
        let low = (count / 16).clamp(16, 256).min(count);
        let upper = count - low;
        let start = self.next_address[range];
        // Among one more place than are taken is a free one, if there is any.
        let offset = (0..upper)
            .map(|i| low + 1 + (start + i) % upper)
            .chain(1..=low)
            .take(self.addresses.len() + 1)
            .find(|offset| !self.addresses.contains_key(&nth(&net, *offset)));
        match offset {
            Some(offset) => {
                self.next_address[range] = offset.saturating_sub(low);
                Ok(nth(&net, offset))
            }
            None => Err(Refusal::Full(format!(
                "failed to allocate a serviceIP: range is full: {net} has no free address; delete Services or start the cluster with a larger Service range"
            ))),
        }
    }

    fn node_ports(&mut self, owner: &Key, service: &mut Value) -> Result<(), Refusal> {
        let spec = &mut service["spec"];
        let kind = object::text(spec, "/type").to_owned();
        let may = kind == "NodePort" || kind == "LoadBalancer";
        let wants = kind == "NodePort" || (may && spec["allocateLoadBalancerNodePorts"] != false);
        let local = object::text(spec, "/externalTrafficPolicy") == "Local";
        // Number, protocol and port of what this Service takes.
        let mut taken: Vec<(u16, String, i64)> = Vec::new();
        let mut ports = spec["ports"].as_array().cloned().unwrap_or_default();
        // Those chosen by hand first, so that no automatic one takes them.
        for (i, port) in ports.iter_mut().enumerate() {
            if !may {
                continue;
            }
            let number = port["nodePort"].as_i64().unwrap_or(0);
            if number != 0 {
                let path = format!("spec.ports[{i}].nodePort");
                let number = self.claim_port(owner, &path, number)?;
                self.take_port(owner, number);
                taken.push((number, protocol(port).into(), number_of(port)));
            }
        }
        for port in &mut ports {
            if !wants || port["nodePort"].as_i64().unwrap_or(0) != 0 {
                continue;
            }
            let (own, at) = (protocol(port).to_owned(), number_of(port));
            // One number serves the same port of several protocols.
            let shared = taken.iter().find(|(number, _, p)| {
                *p == at && !taken.iter().any(|(n, q, _)| n == number && *q == own)
            });
            let number = match shared {
                Some((number, ..)) => *number,
                None => self.any_port()?,
            };
            self.take_port(owner, number);
            taken.push((number, own, at));
            port["nodePort"] = number.into();
        }
        if !ports.is_empty() {
            spec["ports"] = ports.into();
        }
        if kind == "LoadBalancer" && local {
            let number = spec["healthCheckNodePort"].as_i64().unwrap_or(0);
            let number = if number == 0 {
                self.any_port()?
            } else {
                self.claim_port(owner, "spec.healthCheckNodePort", number)?
            };
            self.take_port(owner, number);
            spec["healthCheckNodePort"] = number.into();
        } else {
            remove(spec, "healthCheckNodePort");
        }
        Ok(())
    }

    fn claim_port(&self, owner: &Key, path: &str, number: i64) -> Result<u16, Refusal> {
        let refuse = |why: String| Refusal::Field(FieldError::invalid(path, number, why));
        let (first, last) = (NODE_PORTS.start(), NODE_PORTS.end());
        let port = u16::try_from(number)
            .ok()
            .filter(|p| NODE_PORTS.contains(p))
            .ok_or_else(|| {
                refuse(format!(
                    "provided port is not in the valid range. The range of valid ports is {first}-{last}"
                ))
            })?;
        match self.ports.get(&port) {
            Some(other) if other != owner => {
                Err(refuse("provided port is already allocated".into()))
            }
            _ => Ok(port),
        }
    }

    fn any_port(&mut self) -> Result<u16, Refusal> {
        let first = *NODE_PORTS.start();
        let count = NODE_PORTS.end() - first + 1;
        let offset = (0..count)
            .map(|i| (self.next_port + i) % count)
            .find(|offset| !self.ports.contains_key(&(first + offset)))
            .ok_or_else(|| Refusal::Full("failed to allocate a nodePort: range is full".into()))?;
        self.next_port = (offset + 1) % count;
        Ok(first + offset)
    }
}

/// Clients that write a Service without having read it leave out what was
/// allocated: it stays as it was.
fn inherit(old: &Value, service: &mut Value) {
    let (old, new) = (&old["spec"], &mut service["spec"]);
    let with_address = |spec: &Value| object::text(spec, "/type") != "ExternalName";
    if with_address(old) && with_address(new) {
        let listed = new["clusterIPs"].as_array().is_some_and(|l| !l.is_empty());
        if object::text(new, "/clusterIP").is_empty() && !listed {
            copy(old, new, "clusterIP");
            copy(old, new, "clusterIPs");
        }
        for field in ["ipFamilies", "ipFamilyPolicy"] {
            if new[field].is_null() || new[field].as_array().is_some_and(Vec::is_empty) {
                copy(old, new, field);
            }
        }
    }
    let with_ports =
        |spec: &Value| matches!(object::text(spec, "/type"), "NodePort" | "LoadBalancer");
    if with_ports(old) && with_ports(new) {
        let before = old["ports"].as_array().cloned().unwrap_or_default();
        let ports = new["ports"].as_array_mut();
        for port in ports.into_iter().flatten() {
            if port["nodePort"].as_i64().unwrap_or(0) != 0 {
                continue;
            }
            let same = before
                .iter()
                .find(|o| number_of(o) == number_of(port) && protocol(o) == protocol(port));
            if let Some(number) = same.and_then(|o| o.get("nodePort")) {
                port["nodePort"] = number.clone();
            }
        }
    }
    if new["healthCheckNodePort"].as_i64().unwrap_or(0) == 0 {
        copy(old, new, "healthCheckNodePort");
    }
}

/// Fields that the new type does not have go, if the client has only left
/// them as they were.
fn drop_type_dependent(old: &Value, service: &mut Value) {
    let (old, new) = (&old["spec"], &mut service["spec"]);
    let kind = object::text(new, "/type").to_owned();
    let mut drop_same = |field: &str| {
        if new.get(field).is_some() && new.get(field) == old.get(field) {
            remove(new, field);
        }
    };
    if kind != "LoadBalancer" {
        drop_same("allocateLoadBalancerNodePorts");
        drop_same("loadBalancerClass");
    }
    if kind == "ExternalName" {
        drop_same("internalTrafficPolicy");
    }
    if kind == "NodePort" || kind == "LoadBalancer" {
        return;
    }
    if old["externalIPs"].as_array().is_none_or(Vec::is_empty) {
        drop_same("externalTrafficPolicy");
    }
    let before: Vec<&Value> = old["ports"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|p| p.get("nodePort"))
        .collect();
    for port in new["ports"].as_array_mut().into_iter().flatten() {
        if port.get("nodePort").is_some_and(|n| before.contains(&n)) {
            remove(port, "nodePort");
        }
    }
}

fn copy(from: &Value, to: &mut Value, field: &str) {
    if let Some(value) = from.get(field) {
        to[field] = value.clone();
    }
}

fn remove(value: &mut Value, field: &str) {
    if let Some(fields) = value.as_object_mut() {
        fields.remove(field);
    }
}

fn protocol(port: &Value) -> &str {
    port["protocol"].as_str().unwrap_or("TCP")
}

fn number_of(port: &Value) -> i64 {
    port["port"].as_i64().unwrap_or(0)
}

/// The addresses that a client asks for, or that the Service has. `None` in
/// either field makes the Service headless.
fn asked_addresses(spec: &mut Value) -> Result<Vec<IpAddr>, Refusal> {
    let single = object::text(spec, "/clusterIP").to_owned();
    let mut list: Vec<String> = spec["clusterIPs"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect();
    if single == "None" || (single.is_empty() && list.first().is_some_and(|f| f == "None")) {
        spec["clusterIP"] = "None".into();
        return Ok(Vec::new());
    }
    if !single.is_empty() {
        match list.first_mut() {
            // The single field wins: older clients know only it.
            Some(first) => *first = single,
            None => list.push(single),
        }
    }
    list.iter()
        .enumerate()
        .map(|(i, text)| {
            text.parse().map_err(|_| {
                Refusal::Field(FieldError::invalid(
                    format!("spec.clusterIPs[{i}]"),
                    text.clone(),
                    "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
                ))
            })
        })
        .collect()
}

fn addresses(service: &Value) -> impl Iterator<Item = IpAddr> {
    service["spec"]["clusterIPs"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|a| a.as_str()?.parse().ok())
}

fn ports(service: &Value) -> impl Iterator<Item = u16> {
    let spec = &service["spec"];
    spec["ports"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|p| &p["nodePort"])
        .chain([&spec["healthCheckNodePort"]])
        .filter_map(|p| u16::try_from(p.as_u64()?).ok())
        .filter(|p| *p != 0)
}

fn is_v6(net: &IpNet) -> bool {
    matches!(net, IpNet::V6(_))
}

fn family_name(v6: bool) -> &'static str {
    if v6 { "IPv6" } else { "IPv4" }
}

/// Number of addresses that can be given out: all but the network's own and,
/// of IPv4, the broadcast address.
fn usable(net: &IpNet) -> u128 {
    let bits = net.max_prefix_len() - net.prefix_len();
    let all = 1_u128.checked_shl(u32::from(bits)).unwrap_or(u128::MAX);
    all.saturating_sub(if is_v6(net) { 1 } else { 2 })
}

/// The address at an offset from the network's own.
fn nth(net: &IpNet, offset: u128) -> IpAddr {
    match net {
        IpNet::V4(net) => {
            let offset = u32::try_from(offset).unwrap_or(0);
            IpAddr::V4(u32::from(net.network()).wrapping_add(offset).into())
        }
        IpNet::V6(net) => IpAddr::V6(u128::from(net.network()).wrapping_add(offset).into()),
    }
}

/// The address of the API server's own Service: the first of the range.
pub(crate) fn first_address(net: &IpNet) -> IpAddr {
    nth(net, 1)
}
