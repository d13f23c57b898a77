//! What has to change so that the kernel holds what is wanted.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::model::{
    Device, DeviceKind, DeviceName, LAST_RESORT_METRIC, MacAddress, PublicKey, Remote, Route,
    RouteKey, RouteTable, RouteTarget, Rule, State, TunnelPeer, WireguardSettings,
};

use crate::changes::Changes;
use crate::table::{self, TABLE, Table};

/// The protocol number of podwire's routes and rules (`rtm_protocol`, `FRA_PROTOCOL`).
pub const PROTOCOL: u8 = linux::PODWIRE_ROUTE_PROTOCOL;

/// What the kernel holds of what concerns routing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Devices with names of routing's.
    pub devices: BTreeMap<DeviceName, HeldDevice>,
    /// Routes routing made; `None` for targets it would not make now.
    pub routes: BTreeMap<RouteKey, Option<RouteTarget>>,
    /// Policy rules of podwire's protocol.
    pub rules: BTreeSet<Rule>,
    /// Permanent neighbours on those devices.
    pub neighbours: BTreeMap<(DeviceName, IpAddr), MacAddress>,
    /// Permanent forwarding entries of those devices.
    pub forwarding: BTreeMap<(DeviceName, MacAddress), Remote>,
    /// Addresses answered for on those devices.
    pub proxies: BTreeSet<(DeviceName, IpAddr)>,
    /// Peers of those devices.
    pub tunnel_peers: BTreeMap<(DeviceName, PublicKey), TunnelPeer>,
    /// The nftables table.
    pub table: Table,
    /// Routes of the same tables others made.
    pub others: BTreeSet<OtherRoute>,
}

/// A device as the kernel holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldDevice {
    /// Its index.
    pub index: u32,
    /// What it is; `None` for what routing would not make now.
    pub kind: Option<DeviceKind>,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Its hardware address.
    pub mac: Option<MacAddress>,
    /// Whether it is up.
    pub up: bool,
    /// Its addresses, without link-local ones.
    pub addresses: BTreeSet<IpNet>,
    /// Index of the bridge it is a port of.
    pub bridge: Option<u32>,
    /// Whether it leaves checksums to the device below.
    pub checksum_offload: bool,
    /// Key and port, of WireGuard devices.
    pub wireguard: Option<WireguardSettings>,
}

/// A route somebody else made, in a table routing has something in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OtherRoute {
    /// Destination and metric.
    pub key: RouteKey,
    /// Who made it (`rtm_protocol`).
    pub protocol: u8,
    /// Whether it refuses packets.
    pub unreachable: bool,
}

/// What has to change. Carried out in the order of the fields, no destination
/// is ever without a route it had and keeps, and no route leads to an end that
/// is not known yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Whether the nftables table is to be made (or made anew: `true`) or removed.
    pub table: Option<bool>,
    /// Devices to be made, those first that others are ports of. One of that
    /// name that is there is something else and goes before.
    pub make: Vec<DeviceName>,
    /// Devices whose settings are to be changed.
    pub change: Vec<DeviceName>,
    /// Forwarding entries to be made or changed.
    pub forwarding: Vec<((DeviceName, MacAddress), Remote)>,
    /// Neighbours to be made or changed.
    pub neighbours: Vec<((DeviceName, IpAddr), MacAddress)>,
    /// Addresses to be answered for.
    pub proxies: Vec<(DeviceName, IpAddr)>,
    /// Peers of WireGuard devices to be made or changed.
    pub tunnel_peers: Vec<((DeviceName, PublicKey), TunnelPeer)>,
    /// Those of them this node begins a handshake with. They add nothing to the state.
    pub handshakes: Vec<(DeviceName, PublicKey)>,
    /// Routes that are not there yet.
    pub add: Vec<Route>,
    /// Routes that are there, ours, but lead elsewhere.
    pub replace: Vec<Route>,
    /// Policy rules that are not there yet.
    pub rules: Vec<Rule>,
    /// Policy rules that are ours and not wanted.
    pub remove_rules: Vec<Rule>,
    /// Routes that are ours and not wanted.
    pub remove: Vec<RouteKey>,
    /// Neighbours not wanted.
    pub remove_neighbours: Vec<(DeviceName, IpAddr)>,
    /// Forwarding entries not wanted.
    pub remove_forwarding: Vec<(DeviceName, MacAddress)>,
    /// Addresses not to be answered for any more.
    pub remove_proxies: Vec<(DeviceName, IpAddr)>,
    /// Peers of WireGuard devices not wanted.
    pub remove_tunnel_peers: Vec<(DeviceName, PublicKey)>,
    /// Devices not wanted.
    pub remove_devices: Vec<DeviceName>,
    /// Routes made by others and in the way.
    pub foreign: Vec<Foreign>,
}

impl Held {
    /// The routes of others into a range, as specific as it or more so.
    pub(crate) fn others_in(
        &self,
        table: RouteTable,
        range: IpNet,
    ) -> impl Iterator<Item = &OtherRoute> {
        let first = OtherRoute {
            key: RouteKey {
                table,
                destination: range,
                metric: 0,
            },
            protocol: 0,
            unreachable: false,
        };
        let inside = self.others.range(first..);
        inside.take_while(move |other| {
            other.key.table == table && range.contains(&other.key.destination.network())
        })
    }
}

impl Difference {
    /// Whether the kernel already holds what is wanted.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many entries change.
    pub fn len(&self) -> usize {
        usize::from(self.table.is_some())
            + self.make.len()
            + self.change.len()
            + self.forwarding.len()
            + self.neighbours.len()
            + self.proxies.len()
            + self.tunnel_peers.len()
            + self.remove_tunnel_peers.len()
            + self.add.len()
            + self.replace.len()
            + self.rules.len()
            + self.remove_rules.len()
            + self.remove.len()
            + self.remove_neighbours.len()
            + self.remove_forwarding.len()
            + self.remove_proxies.len()
            + self.remove_devices.len()
    }

    /// What differs, a line each, for people: when nothing had been changed by
    /// podwire, what others changed.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        lines.extend(self.table.map(|wanted| match wanted {
            true => format!("nftables table inet {TABLE}"),
            false => format!("unwanted nftables table inet {TABLE}"),
        }));
        lines.extend(self.make.iter().map(|name| format!("device {name}")));
        lines.extend(
            self.change
                .iter()
                .map(|name| format!("settings of device {name}")),
        );
        lines.extend(
            self.forwarding
                .iter()
                .map(|((device, mac), remote)| entry(device, mac, &remote.address)),
        );
        lines.extend(
            self.neighbours
                .iter()
                .map(|((device, address), mac)| neighbour(device, address, mac)),
        );
        let answers = |(device, address): &(DeviceName, IpAddr)| {
            format!("proxy entry of {address} on {device}")
        };
        lines.extend(self.proxies.iter().map(answers));
        let peer = |(device, key): &(DeviceName, PublicKey)| format!("peer {key} of {device}");
        lines.extend(self.tunnel_peers.iter().map(|(key, _)| peer(key)));
        lines.extend(self.add.iter().map(|route| format!("route to {route}")));
        lines.extend(self.replace.iter().map(|route| format!("route to {route}")));
        let rule = |rule: &Rule| format!("policy rule {rule}");
        lines.extend(self.rules.iter().map(rule));
        let unwanted = |what: String| format!("unwanted {what}");
        lines.extend(self.remove_rules.iter().map(|r| unwanted(rule(r))));
        let gone = |key: &RouteKey| match key.table {
            RouteTable::Main => format!("route to {}", key.destination),
            table => format!("route to {} table {}", key.destination, table.number()),
        };
        lines.extend(self.remove.iter().map(|key| unwanted(gone(key))));
        lines.extend(
            self.remove_neighbours
                .iter()
                .map(|(device, address)| unwanted(format!("neighbour {address} on {device}"))),
        );
        lines.extend(
            self.remove_forwarding
                .iter()
                .map(|(device, mac)| unwanted(format!("forwarding entry of {mac} on {device}"))),
        );
        lines.extend(
            self.remove_proxies
                .iter()
                .map(|proxy| unwanted(answers(proxy))),
        );
        lines.extend(
            self.remove_tunnel_peers
                .iter()
                .map(|key| unwanted(peer(key))),
        );
        lines.extend(
            self.remove_devices
                .iter()
                .map(|name| unwanted(format!("device {name}"))),
        );
        lines
    }
}

fn entry(device: &DeviceName, mac: &MacAddress, remote: &IpAddr) -> String {
    format!("forwarding entry of {mac} on {device} to {remote}")
}

fn neighbour(device: &DeviceName, address: &IpAddr, mac: &MacAddress) -> String {
    format!("neighbour {address} on {device} with {mac}")
}

/// A route somebody else made that diverts traffic of a range podwire routes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Foreign {
    /// Destination and metric of the foreign route.
    pub key: RouteKey,
    /// Who made it (`rtm_protocol`; /etc/iproute2/rt_protos has names).
    pub protocol: u8,
    /// The range podwire routes, or the address of a node.
    pub range: IpNet,
    /// Whether it stands exactly where podwire's own route belongs, so that
    /// podwire's cannot be made.
    pub occupies: bool,
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Foreign {
            key,
            protocol,
            range,
            occupies,
        } = self;
        let effect = if *occupies {
            "keeps podwire's route from being made"
        } else {
            "takes traffic"
        };
        let (of, table) = match key.table {
            RouteTable::Main => ("the pod range", "main".to_owned()),
            table => ("pods to the node", table.number().to_string()),
        };
        write!(
            f,
            "the route to {} (metric {}, protocol {protocol}) was not made by podwire and {effect} \
             of {of} {range}; find out who made it (`ip route show table {table} proto \
             {protocol}`) and remove it",
            key.destination, key.metric
        )
    }
}

/// Compares what is wanted with what the kernel holds.
pub fn difference(wanted: &State, held: &Held) -> Difference {
    difference_in(wanted, held, &Changes::everything())
}

/// The same of entries that may have changed, where all others are known not to differ.
/// Of the foreign routes, too, only those are named that are in the way of these.
pub fn difference_in(wanted: &State, held: &Held, changes: &Changes) -> Difference {
    let table =
        (held.table != table::wanted(&wanted.devices)).then_some(!wanted.devices.is_empty());
    let mut difference = Difference {
        table,
        ..Difference::default()
    };
    devices(wanted, held, &mut difference);
    // With a device go its entries and the routes over it.
    let all =
        changes.everything || !difference.make.is_empty() || !difference.remove_devices.is_empty();
    let fresh: BTreeSet<DeviceName> = difference.make.iter().copied().collect();
    let stays = |device: &DeviceName| !fresh.contains(device) && held.devices.contains_key(device);
    let keys = (!all).then_some(&changes.forwarding);
    for (key, remote) in among(&wanted.forwarding, keys) {
        if !stays(&key.0) || held.forwarding.get(key) != Some(remote) {
            difference.forwarding.push((*key, *remote));
        }
    }
    let keys = (!all).then_some(&changes.neighbours);
    for (key, mac) in among(&wanted.neighbours, keys) {
        if !stays(&key.0) || held.neighbours.get(key) != Some(mac) {
            difference.neighbours.push((*key, *mac));
        }
    }
    for key in &wanted.proxies {
        if !stays(&key.0) || !held.proxies.contains(key) {
            difference.proxies.push(*key);
        }
    }
    let keys = (!all).then_some(&changes.tunnel_peers);
    for (key, peer) in among(&wanted.tunnel_peers, keys) {
        if !stays(&key.0) || held.tunnel_peers.get(key) != Some(peer) {
            difference.tunnel_peers.push((*key, peer.clone()));
        }
    }
    // What is on a device that goes needs no deletion of its own.
    let stays = |device: &DeviceName| stays(device) && wanted.devices.contains_key(device);
    let keys = (!all).then_some(&changes.forwarding);
    let forwarding = among(&held.forwarding, keys).map(|(key, _)| key);
    difference
        .remove_forwarding
        .extend(forwarding.filter(|key| stays(&key.0) && !wanted.forwarding.contains_key(key)));
    let keys = (!all).then_some(&changes.neighbours);
    let neighbours = among(&held.neighbours, keys).map(|(key, _)| key);
    difference
        .remove_neighbours
        .extend(neighbours.filter(|key| stays(&key.0) && !wanted.neighbours.contains_key(key)));
    let proxies = held.proxies.iter();
    difference
        .remove_proxies
        .extend(proxies.filter(|key| stays(&key.0) && !wanted.proxies.contains(key)));
    let keys = (!all).then_some(&changes.tunnel_peers);
    let peers = among(&held.tunnel_peers, keys).map(|(key, _)| key);
    difference
        .remove_tunnel_peers
        .extend(peers.filter(|key| stays(&key.0) && !wanted.tunnel_peers.contains_key(key)));
    difference.handshakes = handshakes(wanted, held, &difference.tunnel_peers, stays);
    let keys = (!all).then_some(&changes.routes);
    routes(wanted, held, keys, &fresh, &mut difference);
    let missing = wanted.rules.difference(&held.rules);
    difference.rules.extend(missing);
    let unwanted = held.rules.difference(&wanted.rules);
    difference.remove_rules.extend(unwanted);
    difference
}

/// The entries with these keys, in order; all when none are given.
fn among<'a, K: Ord, V>(
    entries: &'a BTreeMap<K, V>,
    keys: Option<&'a BTreeSet<K>>,
) -> impl Iterator<Item = (&'a K, &'a V)> {
    let all = keys.is_none().then(|| entries.iter());
    let some = keys.into_iter().flatten();
    let some = some.filter_map(|key| entries.get_key_value(key));
    all.into_iter().flatten().chain(some)
}

/// With which of the peers that are to be made or changed a handshake is begun: nodes
/// whose key is new here and whose packets were taken until now by another key or way.
///
/// Such a node may have sent before this one knew its key. What it began was dropped
/// then and comes again after `REKEY_TIMEOUT`, 5 seconds; its pods' packets wait for as
/// long, and most are lost. Each of two nodes begins when it learns the other's key, so
/// the one that learns it last is heard.
///
/// A node that comes to a cluster, or finds one at its own start, has sent nothing to
/// this one yet. Were those met so as well, all nodes would begin with one that comes
/// at the same moment, and that one with all. Nor is anybody who does not know this
/// node's key yet: not on a device that is just made.
fn handshakes(
    wanted: &State,
    held: &Held,
    peers: &[((DeviceName, PublicKey), TunnelPeer)],
    stays: impl Fn(&DeviceName) -> bool,
) -> Vec<(DeviceName, PublicKey)> {
    let is_new =
        |key: &(DeviceName, PublicKey)| stays(&key.0) && !held.tunnel_peers.contains_key(key);
    let mut new = peers.iter().filter(|(key, _)| is_new(key)).peekable();
    if new.peek().is_none() {
        return Vec::new();
    }
    let mut by_key = BTreeSet::new();
    for ((device, _), peer) in &held.tunnel_peers {
        by_key.extend(peer.ranges.iter().map(|range| (*device, *range)));
    }
    let over = |device: &DeviceName, target: &RouteTarget| match target {
        RouteTarget::Device { device: on, .. } => on == device,
        _ => false,
    };
    let was_reached = |device: &DeviceName, range: &IpNet| {
        let route = RouteKey::of_peer(*range);
        let goes_over = wanted.routes.get(&route).is_some_and(|to| over(device, to));
        let other_way = |held: &Option<RouteTarget>| held.is_none_or(|to| !over(device, &to));
        by_key.contains(&(*device, *range))
            || goes_over && held.routes.get(&route).is_some_and(other_way)
    };
    new.filter(|((device, _), peer)| peer.ranges.iter().any(|range| was_reached(device, range)))
        .map(|(key, _)| *key)
        .collect()
}

fn devices(wanted: &State, held: &Held, difference: &mut Difference) {
    for (name, device) in &wanted.devices {
        match held.devices.get(name) {
            Some(held) if held.kind == Some(device.kind) => {}
            _ => difference.make.push(*name),
        }
    }
    // Bridges before their ports.
    let is_port = |name: &DeviceName| wanted.devices.get(name).is_some_and(|d| d.bridge.is_some());
    difference.make.sort_by_key(|name| (is_port(name), *name));
    for (name, device) in &wanted.devices {
        let bridge = device.bridge.map(|bridge| {
            let renewed = difference.make.contains(&bridge);
            let held = held.devices.get(&bridge).filter(|_| !renewed);
            held.map(|bridge| bridge.index)
        });
        let same = |held: &HeldDevice| is_as_wanted(device, held, bridge);
        if !difference.make.contains(name) && !held.devices.get(name).is_some_and(same) {
            difference.change.push(*name);
        }
    }
    let unwanted = held.devices.keys();
    difference
        .remove_devices
        .extend(unwanted.filter(|name| !wanted.devices.contains_key(name)));
}

/// `bridge`: whether it is wanted on a bridge, and that one's index if there is one.
fn is_as_wanted(wanted: &Device, held: &HeldDevice, bridge: Option<Option<u32>>) -> bool {
    let on_bridge = match bridge {
        None => held.bridge.is_none(),
        Some(index) => index.is_some() && held.bridge == index,
    };
    held.up
        && held.mtu == wanted.mtu
        && wanted.mac.is_none_or(|mac| held.mac == Some(mac))
        && held.addresses == wanted.addresses
        && held.checksum_offload == wanted.checksum_offload
        && held.wireguard == wanted.wireguard
        && on_bridge
}

fn routes(
    wanted: &State,
    held: &Held,
    keys: Option<&BTreeSet<RouteKey>>,
    fresh: &BTreeSet<DeviceName>,
    difference: &mut Difference,
) {
    difference.foreign = match keys {
        None => in_the_way(&wanted.routes, held.others.iter()),
        Some(keys) => {
            let others = keys.iter();
            let others = others.flat_map(|key| held.others_in(key.table, key.destination));
            in_the_way(&wanted.routes, others.collect::<BTreeSet<_>>().into_iter())
        }
    };
    let occupied: BTreeSet<RouteKey> = difference
        .foreign
        .iter()
        .filter(|foreign| foreign.occupies)
        .map(|foreign| foreign.key)
        .collect();
    let goes_with_its_device = |target: &Option<RouteTarget>| match target {
        Some(RouteTarget::Device { device, .. }) => fresh.contains(device),
        _ => false,
    };
    for (key, target) in among(&wanted.routes, keys) {
        let route = Route {
            key: *key,
            target: *target,
        };
        match held.routes.get(key) {
            Some(held) if goes_with_its_device(held) => difference.add.push(route),
            Some(held) if *held == Some(*target) => {}
            Some(_) => difference.replace.push(route),
            None if occupied.contains(key) => {}
            None => difference.add.push(route),
        }
    }
    let unwanted = among(&held.routes, keys);
    difference.remove.extend(
        unwanted
            .filter(|(key, target)| {
                !wanted.routes.contains_key(key) && !goes_with_its_device(target)
            })
            .map(|(key, _)| *key),
    );
}

/// Which of the routes somebody else made take traffic from ours, by destination.
fn in_the_way<'a>(
    wanted: &BTreeMap<RouteKey, RouteTarget>,
    others: impl Iterator<Item = &'a OtherRoute>,
) -> Vec<Foreign> {
    others.filter_map(|route| foreign(wanted, route)).collect()
}

/// Whether a route somebody else made takes traffic from one of ours: it is
/// as specific or more so, and preferred.
fn foreign(wanted: &BTreeMap<RouteKey, RouteTarget>, route: &OtherRoute) -> Option<Foreign> {
    let RouteKey {
        table,
        destination,
        metric,
    } = route.key;
    // A foreign last resort beside our own is no harm.
    if metric > LAST_RESORT_METRIC {
        return None;
    }
    let diverted = |(key, target): &(&RouteKey, &RouteTarget)| {
        let takes = match target {
            // The Service range's route loses to everything on purpose.
            RouteTarget::Link { .. } => false,
            _ => destination != key.destination || metric <= key.metric,
        };
        takes || **key == route.key
    };
    // Ours to what holds its destination, those to more of it first.
    let (key, _) = (0..=destination.prefix_len()).find_map(|length| {
        let around = IpNet::new(destination.network(), length).ok()?.trunc();
        let of = |metric| RouteKey {
            table,
            destination: around,
            metric,
        };
        wanted.range(of(0)..=of(u32::MAX)).find(diverted)
    })?;
    Some(Foreign {
        key: route.key,
        protocol: route.protocol,
        range: key.destination,
        occupies: *key == route.key,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;
    use crate::model::{NextHop, Vxlan};

    fn key(destination: &str) -> RouteKey {
        RouteKey::to(destination.parse().unwrap())
    }

    fn via(gateway: &str) -> RouteTarget {
        RouteTarget::Gateway {
            address: gateway.parse().unwrap(),
            interface: 2,
            mtu: None,
        }
    }

    fn wanted(routes: &[(&str, &str)]) -> State {
        State {
            routes: routes
                .iter()
                .map(|(destination, gateway)| (key(destination), via(gateway)))
                .collect(),
            ..State::default()
        }
    }

    fn held(routes: &[(&str, &str)]) -> Held {
        let routes = wanted(routes).routes.into_iter();
        Held {
            routes: routes.map(|(key, target)| (key, Some(target))).collect(),
            ..Held::default()
        }
    }

    fn of_others(destination: &str, metric: u32) -> OtherRoute {
        const STATIC: u8 = 4;
        OtherRoute {
            key: RouteKey {
                metric,
                ..key(destination)
            },
            protocol: STATIC,
            unreachable: false,
        }
    }

    #[test]
    fn what_is_there_already_is_adopted() {
        let routes = [
            ("10.200.2.0/24", "192.168.64.12"),
            ("fd00:200:0:2::/64", "fd00:64::12"),
        ];
        assert_eq!(
            difference(&wanted(&routes), &held(&routes)),
            Difference::default()
        );
        let tunnel = tunnel(4, 50, [1, 2, 3]);
        assert_eq!(
            difference(&tunnel, &carried_out(&tunnel)),
            Difference::default()
        );
    }

    #[test]
    fn only_what_differs_changes() {
        let wanted = wanted(&[
            ("10.200.2.0/24", "192.168.64.12"),
            ("10.200.3.0/24", "192.168.64.13"),
            ("10.200.4.0/24", "192.168.64.14"),
        ]);
        let held = held(&[
            ("10.200.2.0/24", "192.168.64.12"),
            ("10.200.3.0/24", "192.168.64.99"),
            ("10.200.9.0/24", "192.168.64.19"),
        ]);
        let difference = difference(&wanted, &held);
        let route = |destination, gateway| Route {
            key: key(destination),
            target: via(gateway),
        };
        assert_eq!(difference.add, [route("10.200.4.0/24", "192.168.64.14")]);
        assert_eq!(
            difference.replace,
            [route("10.200.3.0/24", "192.168.64.13")]
        );
        assert_eq!(difference.remove, [key("10.200.9.0/24")]);
        assert_eq!(difference.len(), 3);
        assert_eq!(difference.foreign, []);
    }

    #[rstest]
    #[case::same_destination("10.200.2.0/24", 0, Some(true))]
    #[case::more_specific("10.200.2.128/25", 0, Some(false))]
    #[case::more_specific_whatever_its_metric("10.200.2.7/32", 500, Some(false))]
    #[case::less_specific("10.0.0.0/8", 0, None)]
    #[case::default("0.0.0.0/0", 0, None)]
    #[case::elsewhere("10.200.3.0/24", 0, None)]
    #[case::same_destination_but_not_preferred("10.200.2.0/24", 100, None)]
    fn a_foreign_route_is_reported_when_it_takes_traffic(
        #[case] destination: &str,
        #[case] metric: u32,
        #[case] occupies: Option<bool>,
    ) {
        let wanted = wanted(&[("10.200.2.0/24", "192.168.64.12")]);
        let held = Held {
            others: BTreeSet::from([of_others(destination, metric)]),
            ..Held::default()
        };
        let difference = difference(&wanted, &held);
        assert_eq!(
            difference.foreign.first().map(|foreign| foreign.occupies),
            occupies
        );
        // Never removed; and ours is made unless its very place is taken.
        assert_eq!(difference.remove, []);
        assert_eq!(difference.replace, []);
        assert_eq!(difference.add.len(), usize::from(occupies != Some(true)));
    }

    const DEVICE: DeviceName = DeviceName::new("pw-test");

    /// One device with a VNI and MTU, and peers behind it.
    fn tunnel(vni: u32, mtu: u32, peers: impl IntoIterator<Item = u8>) -> State {
        let kind = DeviceKind::Vxlan(Vxlan {
            vni,
            port: 8472,
            ..Vxlan::default()
        });
        let mut state = State::default();
        state.devices.insert(DEVICE, Device::new(kind, mtu));
        for peer in peers {
            let gateway: IpAddr = [10, 200, peer, 0].into();
            let mac = MacAddress::local([0, 0, 0, 0, peer]);
            let remote = Remote {
                address: [192, 168, 64, peer].into(),
                port: None,
                vni: None,
            };
            state.forwarding.insert((DEVICE, mac), remote);
            state.neighbours.insert((DEVICE, gateway), mac);
            let target = RouteTarget::Device {
                device: DEVICE,
                next_hop: NextHop::OnLink(gateway),
                source: None,
                mtu: None,
            };
            state
                .routes
                .insert(key(&format!("10.200.{peer}.0/24")), target);
        }
        state
    }

    /// What the kernel holds after a state was applied to nothing.
    fn carried_out(state: &State) -> Held {
        carry_out(
            state,
            &difference(state, &Held::default()),
            &Held::default(),
        )
    }

    /// The kernel, as far as a difference concerns it.
    fn carry_out(wanted: &State, difference: &Difference, held: &Held) -> Held {
        let mut held = held.clone();
        if difference.table.is_some() {
            held.table = table::wanted(&wanted.devices);
        }
        let go = |held: &mut Held, name: &DeviceName| {
            held.devices.remove(name);
            held.neighbours.retain(|(on, _), _| on != name);
            held.forwarding.retain(|(on, _), _| on != name);
            held.routes.retain(|_, target| {
                !matches!(target, Some(RouteTarget::Device { device, .. }) if device == name)
            });
        };
        for name in &difference.make {
            go(&mut held, name);
        }
        for name in difference.make.iter().chain(&difference.change) {
            let device = &wanted.devices[name];
            let made = HeldDevice {
                index: 7,
                kind: Some(device.kind),
                mtu: device.mtu,
                mac: device.mac,
                up: true,
                addresses: device.addresses.clone(),
                bridge: None,
                checksum_offload: device.checksum_offload,
                wireguard: device.wireguard.clone(),
            };
            held.devices.insert(*name, made);
        }
        for (key, remote) in &difference.forwarding {
            held.forwarding.insert(*key, *remote);
        }
        for (key, mac) in &difference.neighbours {
            held.neighbours.insert(*key, *mac);
        }
        for route in &difference.add {
            let occupied = held.others.iter().any(|other| other.key == route.key);
            assert!(!occupied, "the place of {route} is taken");
            let before = held.routes.insert(route.key, Some(route.target));
            assert_eq!(before, None, "add of what is there: {route}");
        }
        for route in &difference.replace {
            let before = held.routes.insert(route.key, Some(route.target));
            assert!(before.is_some(), "replace of what is not there: {route}");
        }
        for rule in &difference.rules {
            assert!(held.rules.insert(*rule), "add of what is there: {rule}");
        }
        for rule in &difference.remove_rules {
            assert!(held.rules.remove(rule), "it is there");
        }
        for key in &difference.remove {
            assert!(held.routes.remove(key).is_some(), "it is there");
        }
        for key in &difference.remove_neighbours {
            assert!(held.neighbours.remove(key).is_some(), "it is there");
        }
        for key in &difference.remove_forwarding {
            assert!(held.forwarding.remove(key).is_some(), "it is there");
        }
        for name in &difference.remove_devices {
            go(&mut held, name);
        }
        held
    }

    #[test]
    fn a_peer_more_or_less_costs_its_own_entries_only() {
        let held = carried_out(&tunnel(1, 1450, 0..200));
        let difference = |state: &State| super::difference(state, &held);
        assert_eq!(difference(&tunnel(1, 1450, 0..201)).len(), 3);
        assert_eq!(difference(&tunnel(1, 1450, 0..199)).len(), 3);
        assert_eq!(difference(&tunnel(1, 1400, 0..200)).change, [DEVICE]);
        assert_eq!(difference(&tunnel(1, 1400, 0..200)).len(), 1);
    }

    #[test]
    fn with_a_device_that_is_replaced_everything_on_it_is_made_anew() {
        let held = carried_out(&tunnel(1, 1450, 0..3));
        let difference = difference(&tunnel(2, 1450, 1..3), &held);
        assert_eq!(difference.make, [DEVICE]);
        assert_eq!((difference.add.len(), difference.neighbours.len()), (2, 2));
        assert_eq!(difference.forwarding.len(), 2);
        assert_eq!(difference.remove, []);
        assert_eq!(difference.remove_neighbours, []);
    }

    #[test]
    fn a_device_not_wanted_any_more_goes_after_its_routes_lead_elsewhere() {
        let held = carried_out(&tunnel(1, 1450, [2, 3]));
        let difference = difference(&wanted(&[("10.200.2.0/24", "192.168.64.2")]), &held);
        assert_eq!(difference.replace.len(), 1);
        assert_eq!(difference.remove, [key("10.200.3.0/24")]);
        assert_eq!(difference.remove_devices, [DEVICE]);
        assert_eq!(difference.table, Some(false));
        assert_eq!(difference.len(), 4);
    }

    const WIREGUARD: DeviceName = DeviceName::new("pw-wg");
    const RANGE: &str = "10.200.2.0/24";

    /// Node 2 with a key, and whether packets to it are sent to WireGuard's device.
    fn encrypted(key: u8, sent: bool) -> State {
        let mut state = State::default();
        let device = Device::new(DeviceKind::Wireguard, 1420);
        state.devices.insert(WIREGUARD, device);
        let peer = TunnelPeer {
            endpoint: "192.168.64.2:51820".parse().unwrap(),
            ranges: [RANGE.parse().unwrap()].into(),
            keepalive: 0,
        };
        let key = (WIREGUARD, PublicKey([key; 32]));
        state.tunnel_peers.insert(key, peer);
        let over = RouteTarget::Device {
            device: WIREGUARD,
            next_hop: NextHop::Direct,
            source: None,
            mtu: None,
        };
        let target = if sent { over } else { via("192.168.64.2") };
        let route = RouteKey::of_peer(RANGE.parse().unwrap());
        state.routes.insert(route, target);
        state
    }

    #[rstest]
    #[case::goes_over(encrypted(2, true), |held: &mut Held| { held.tunnel_peers.clear();
        held.routes.extend(encrypted(2, false).routes.into_iter().map(|(k, to)| (k, Some(to)))) }, true)]
    #[case::has_another_key(encrypted(3, true), |_: &mut Held| {}, true)]
    #[case::goes_on_another_way(encrypted(2, false), |held: &mut Held| { held.tunnel_peers.clear();
        held.routes.extend(encrypted(2, false).routes.into_iter().map(|(k, to)| (k, Some(to)))) }, false)]
    #[case::comes_to_the_cluster(encrypted(2, true), |held: &mut Held| {
        held.tunnel_peers.clear(); held.routes.clear(); }, false)]
    #[case::was_there_before_this_node(encrypted(2, true), |held: &mut Held| *held = Held::default(), false)]
    #[case::is_adopted(encrypted(2, true), |_: &mut Held| {}, false)]
    #[case::has_moved(encrypted(2, true), |held: &mut Held| for peer in held.tunnel_peers.values_mut() {
        peer.endpoint = "192.168.64.9:51820".parse().unwrap() }, false)]
    #[case::knows_no_key_of_a_new_device(encrypted(3, true), |held: &mut Held| held.devices.clear(), false)]
    fn handshakes_are_begun_with_a_node_that_was_reached_before_by_another_key_or_way_only(
        #[case] wanted: State,
        #[case] change: impl FnOnce(&mut Held),
        #[case] begun: bool,
    ) {
        let before = encrypted(2, true);
        let mut held = carried_out(&before);
        held.tunnel_peers = before.tunnel_peers;
        change(&mut held);
        let found = difference(&wanted, &held);
        let keys: Vec<_> = wanted.tunnel_peers.keys().copied().collect();
        assert_eq!(found.handshakes, if begun { keys } else { vec![] });
        // They are no change by themselves.
        let others = Difference {
            handshakes: vec![],
            ..found.clone()
        };
        assert_eq!((found.len(), found.lines()), (others.len(), others.lines()));
    }

    fn any_state() -> impl Strategy<Value = State> {
        let routes = prop::collection::btree_map(0_u8..6, 10_u8..13, 0..6);
        let routes = routes.prop_map(|routes| {
            let gateway = |gateway: u8| format!("192.168.64.{gateway}");
            let route =
                |(third, to): (u8, u8)| (key(&format!("10.200.{third}.0/24")), via(&gateway(to)));
            routes.into_iter().map(route).collect::<BTreeMap<_, _>>()
        });
        let peers = prop::collection::btree_set(0_u8..6, 0..6);
        let device = prop::option::of((1_u32..3, 1400_u32..1402, peers));
        (routes, device).prop_map(|(routes, device)| {
            let mut state = State {
                routes,
                ..State::default()
            };
            if let Some((vni, mtu, peers)) = device {
                state.extend(tunnel(vni, mtu, peers));
            }
            state
        })
    }

    fn any_other() -> impl Strategy<Value = OtherRoute> {
        (0_u8..6, 24_u8..33)
            .prop_map(|(third, length)| of_others(&format!("10.200.{third}.0/{length}"), 0))
    }

    /// The keys of entries that are not the same in both.
    fn differing<K: Ord + Copy, V: PartialEq>(
        one: &BTreeMap<K, V>,
        other: &BTreeMap<K, V>,
    ) -> BTreeSet<K> {
        let keys = one.keys().chain(other.keys());
        keys.filter(|key| one.get(key) != other.get(key))
            .copied()
            .collect()
    }

    proptest! {
        #[test]
        fn carried_out_it_gives_what_is_wanted_and_leaves_the_rest(
            before in any_state(),
            wanted in any_state(),
            others in prop::collection::vec(any_other(), 0..4),
        ) {
            let mut held = carried_out(&before);
            held.others = others
                .into_iter()
                .filter(|other| !held.routes.contains_key(&other.key))
                .collect();
            let first = difference(&wanted, &held);
            let changes = Changes {
                routes: differing(&before.routes, &wanted.routes),
                neighbours: differing(&before.neighbours, &wanted.neighbours),
                forwarding: differing(&before.forwarding, &wanted.forwarding),
                tunnel_peers: differing(&before.tunnel_peers, &wanted.tunnel_peers),
                ..Changes::default()
            };
            let mut of_changes = difference_in(&wanted, &held, &changes);
            prop_assert!(of_changes.foreign.iter().all(|found| first.foreign.contains(found)));
            of_changes.foreign.clone_from(&first.foreign);
            prop_assert_eq!(&of_changes, &first);
            let after = carry_out(&wanted, &first, &held);
            let second = difference(&wanted, &after);
            prop_assert!(second.is_empty(), "{second:?}");
            prop_assert_eq!(&second.foreign, &first.foreign);
            prop_assert_eq!(&after.others, &held.others);
            prop_assert_eq!(after.devices.len(), wanted.devices.len());
            prop_assert_eq!(&after.neighbours, &wanted.neighbours);
            prop_assert_eq!(&after.forwarding, &wanted.forwarding);
            prop_assert_eq!(&after.rules, &wanted.rules);
            for (key, target) in &after.routes {
                prop_assert_eq!(wanted.routes.get(key), target.as_ref());
            }
            for key in wanted.routes.keys() {
                let taken = held.others.iter().any(|other| other.key == *key);
                prop_assert!(taken || after.routes.contains_key(key));
            }
        }

        #[test]
        fn nothing_changes_that_is_as_wanted(state in any_state()) {
            prop_assert_eq!(difference(&state, &carried_out(&state)), Difference::default());
        }
    }
}
