//! Reads the kernel and carries out the difference.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use linux::address::{self, Address};
use linux::events::Event;
use linux::fdb::{self, Lifetime};
use linux::link::{self, Bridge, Link};
use linux::namespace::NetworkNamespace;
use linux::neighbour;
use linux::netlink::{Request, Socket};
use linux::nftables::Nftables;
use linux::route::{self, Encapsulation, Filter, Kind};
use linux::rule;
use linux::sysctl::{self, Setting};
use linux::tunnel::{self, Tunnel};
use linux::wireguard::{self, Change, Ranges, WireGuard};
use linux::{ethtool, netlink};

use crate::difference::{Difference, Foreign, Held, HeldDevice, OtherRoute, PROTOCOL, difference};
use crate::model::{
    DEVICE_PREFIX, Device, DeviceKind, DeviceName, NextHop, PublicKey, Route, RouteKey, RouteTable,
    RouteTarget, Rule, State, TunnelPeer, WireguardSettings, default_metric,
};
use crate::table::{self, Table};
use crate::underlay::{OWN_INTERFACES, is_link_local};

/// A failure to read the kernel or to change it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Netlink refused.
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
    /// The packet filter refused.
    #[error(transparent)]
    Nftables(#[from] linux::nftables::Error),
    /// The network namespace cannot be entered.
    #[error(transparent)]
    Namespace(#[from] linux::namespace::Error),
    /// A setting of the kernel could not be written.
    #[error(transparent)]
    Setting(#[from] linux::sysctl::Error),
    /// A device's checksum offload could not be set.
    #[error("cannot set the checksum offload of {device}: {source}")]
    Offload {
        /// The device.
        device: DeviceName,
        /// Why.
        source: std::io::Error,
    },
    /// A device is not there though it should be.
    #[error("the device {device} is not there; {waits} entries wait for it")]
    NoDevice {
        /// The device.
        device: DeviceName,
        /// How many entries need it.
        waits: usize,
    },
}

/// What came of carrying out a difference.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Entries made, changed and removed.
    pub changed: usize,
    /// What the kernel refused.
    pub failures: Vec<Error>,
    /// Routes of others that are in the way.
    pub foreign: Vec<Foreign>,
}

/// What routing owns in a network namespace, and what this process knows of it.
#[derive(Debug)]
pub struct Kernel {
    namespace: NetworkNamespace,
    socket: Socket,
    nftables: Option<Nftables>,
    /// Opened when a device needs it: opening loads the kernel's module.
    wireguard: Option<WireGuard>,
    /// As it was read and as it became by what was applied since; absent when it
    /// has to be read.
    shadow: Option<Held>,
    links: Links,
}

/// Interfaces, as read and as notified since.
#[derive(Debug, Default)]
struct Links {
    /// Routing's own, by index.
    devices: BTreeMap<u32, DeviceName>,
    /// The pods', by index; bridges are marked.
    pods: BTreeMap<u32, bool>,
    /// Others: name, MTU, whether up.
    others: BTreeMap<u32, (String, u32, bool)>,
    /// Addresses of others, with the index of their interface.
    addresses: BTreeSet<(u32, IpNet)>,
}

impl Links {
    fn insert(&mut self, link: &Link) {
        if link.name.starts_with(DEVICE_PREFIX) {
            self.devices.insert(link.index, DeviceName::new(&link.name));
        } else if link.name.starts_with(OWN_INTERFACES) {
            let is_bridge = link.kind.as_deref() == Some("bridge");
            self.pods.insert(link.index, is_bridge);
        } else {
            self.others.insert(link.index, facts(link));
        }
    }
}

/// Whose a route is.
enum Owner {
    Routing,
    /// Made by the CNI plugin or the kernel for pods.
    Pods,
    Others,
}

impl Kernel {
    /// The calling thread's network namespace.
    ///
    /// # Errors
    /// When no netlink socket can be had.
    pub fn open() -> Result<Kernel, Error> {
        Ok(Kernel {
            namespace: NetworkNamespace::current()?,
            socket: Socket::open_route()?,
            nftables: None,
            wireguard: None,
            shadow: None,
            links: Links::default(),
        })
    }

    /// The socket, for reading what is not routing's.
    pub fn socket(&mut self) -> &mut Socket {
        &mut self.socket
    }

    /// How many netlink requests were sent so far.
    pub fn requests_sent(&self) -> u64 {
        self.socket.requests_sent()
    }

    /// Forgets what is known: the next use reads the kernel.
    pub fn invalidate(&mut self) {
        self.shadow = None;
    }

    /// What the kernel holds.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn held(&mut self) -> Result<&Held, Error> {
        if self.shadow.is_none() {
            self.shadow = Some(self.read()?);
        }
        Ok(self.shadow.get_or_insert_default())
    }

    fn read(&mut self) -> Result<Held, Error> {
        let mut held = Held::default();
        let links = link::list(&mut self.socket)?;
        self.links = Links::default();
        for link in &links {
            self.links.insert(link);
        }
        let addresses = address::list(&mut self.socket, None)?;
        let of_others = addresses
            .iter()
            .filter(|address| self.links.others.contains_key(&address.link));
        self.links.addresses = of_others.map(|a| (a.link, a.address)).collect();
        let own = links.iter().filter(|l| l.name.starts_with(DEVICE_PREFIX));
        for link in own {
            let wireguard = match link.tunnel {
                Some(Tunnel::Wireguard) => self.read_wireguard(&link.name, &mut held)?,
                _ => None,
            };
            let addresses = addresses
                .iter()
                .filter(|address| address.link == link.index)
                .map(|address| address.address)
                .filter(|address| !is_link_local(address.addr()));
            let device = HeldDevice {
                index: link.index,
                kind: kind_of(link),
                mtu: link.mtu,
                mac: link.mac,
                up: link.up,
                addresses: addresses.collect(),
                bridge: link.master,
                // Kinds without the setting count as having the default.
                checksum_offload: self
                    .namespace
                    .run(|| ethtool::tx_checksum_offload(&link.name))?
                    .unwrap_or(true),
                wireguard,
            };
            let name = DeviceName::new(&link.name);
            held.devices.insert(name, device);
            self.read_entries(link, name, &mut held)?;
        }
        // On a kernel without packet filter there is no table, and what wants
        // one is told when it is made.
        held.table = self
            .nftables()
            .and_then(|nft| Ok(table::read(nft)?))
            .unwrap_or_default();
        for table in RouteTable::ALL {
            let filter = Filter {
                table: Some(table.number()),
                ..Filter::default()
            };
            for route in route::list(&mut self.socket, filter)? {
                let (key, target) = self.decode(table, &route);
                match self.owner(&route) {
                    Owner::Routing => {
                        held.routes.insert(key, target);
                    }
                    Owner::Others => held.others.push(OtherRoute {
                        key,
                        protocol: route.protocol,
                        unreachable: target == Some(RouteTarget::Unreachable),
                    }),
                    Owner::Pods => {}
                }
            }
        }
        held.rules = rule::list_own(&mut self.socket)?.into_iter().collect();
        Ok(held)
    }

    /// Key, port and peers of a WireGuard device.
    fn read_wireguard(
        &mut self,
        name: &str,
        held: &mut Held,
    ) -> Result<Option<WireguardSettings>, Error> {
        let Some(device) = self.wireguard()?.device(name)? else {
            return Ok(None);
        };
        let on = DeviceName::new(name);
        for peer in device.peers {
            let Some(endpoint) = peer.endpoint else {
                continue;
            };
            let ranges = peer.ranges.into_iter().collect();
            let known = TunnelPeer { endpoint, ranges };
            held.tunnel_peers.insert((on, peer.key), known);
        }
        let port = device.port;
        Ok(device
            .private_key
            .map(|private_key| WireguardSettings { private_key, port }))
    }

    fn nftables(&mut self) -> Result<&mut Nftables, Error> {
        if self.nftables.is_none() {
            self.nftables = Some(self.namespace.run(Nftables::open)??);
        }
        Ok(self.nftables.as_mut().expect("it was opened just now"))
    }

    fn wireguard(&mut self) -> Result<&mut WireGuard, Error> {
        if self.wireguard.is_none() {
            self.wireguard = Some(self.namespace.run(WireGuard::open)??);
        }
        Ok(self.wireguard.as_mut().expect("it was opened just now"))
    }

    /// Neighbours and forwarding entries of a device.
    fn read_entries(
        &mut self,
        link: &Link,
        name: DeviceName,
        held: &mut Held,
    ) -> Result<(), Error> {
        for neighbour in neighbour::list(&mut self.socket, Some(link.index))? {
            if let Some(mac) = neighbour.mac.filter(|_| neighbour.permanent) {
                held.neighbours.insert((name, neighbour.address), mac);
            }
        }
        for proxy in neighbour::list_proxies(&mut self.socket, Some(link.index))? {
            held.proxies.insert((name, proxy.address));
        }
        if matches!(link.tunnel, Some(Tunnel::Vxlan(_))) {
            for entry in fdb::list(&mut self.socket, Some(link.index))? {
                if let Some(remote) = entry.remote
                    && entry.of_device
                    && entry.lifetime == Lifetime::Permanent
                    // All zero: the multicast group, which belongs to the device.
                    && entry.mac.is_unicast()
                {
                    held.forwarding.insert((name, entry.mac), remote);
                }
            }
        }
        Ok(())
    }

    /// Whether a route somebody else made leads from here to all of a range.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn is_routed_by_others(&mut self, range: &IpNet) -> Result<bool, Error> {
        let others = &self.held()?.others;
        let of_all = others.iter().filter(|r| r.key.table == RouteTable::Main);
        let mut open = of_all.filter(|route| !route.unreachable);
        Ok(open.any(|route| route.key.destination.contains(range)))
    }

    /// What has to change so that the kernel holds what is wanted.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn difference(&mut self, wanted: &State) -> Result<Difference, Error> {
        Ok(difference(wanted, self.held()?))
    }

    /// Makes the kernel hold what is wanted.
    ///
    /// A refusal by the kernel is tried once more after everything was read
    /// again (somebody else may have changed it), and then part of the outcome.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn apply(&mut self, wanted: &State) -> Result<Outcome, Error> {
        let mut outcome = Outcome::default();
        for _ in 0..2 {
            let difference = self.difference(wanted)?;
            outcome.failures.clear();
            if !difference.is_empty() {
                self.carry_out(wanted, &difference, &mut outcome)?;
            }
            outcome.foreign = difference.foreign;
            if outcome.failures.is_empty() {
                break;
            }
            self.invalidate();
        }
        Ok(outcome)
    }

    /// Reads the kernel again and restores what differs from what is wanted.
    /// Returns what did, a line each: when `wanted` was applied before, that is
    /// what somebody else changed.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn audit(&mut self, wanted: &State) -> Result<(Outcome, Vec<String>), Error> {
        self.invalidate();
        let lines = self.difference(wanted)?.lines();
        Ok((self.apply(wanted)?, lines))
    }

    fn carry_out(
        &mut self,
        wanted: &State,
        difference: &Difference,
        outcome: &mut Outcome,
    ) -> Result<(), Error> {
        // Whatever goes wrong below, what is known is known no more.
        let mut held = match self.shadow.take() {
            Some(held) => held,
            None => self.read()?,
        };
        if difference.table.is_some() {
            let nft = self.nftables()?;
            match table::write(nft, &held.table, &wanted.devices) {
                Ok(()) => {
                    outcome.changed += 1;
                    held.table = table::wanted(&wanted.devices);
                }
                Err(error) => outcome.failures.push(error.into()),
            }
        }
        for name in difference.make.iter().chain(&difference.change) {
            let Some(device) = wanted.devices.get(name) else {
                continue;
            };
            let renew = difference.make.contains(name);
            match self.device(*name, device, renew, &mut held) {
                Ok(()) => outcome.changed += 1,
                Err(error) => outcome.failures.push(error),
            }
        }
        let mut orders = Orders::new(&held, &self.links);
        orders.collect(difference, &held);
        let Orders {
            requests, waits, ..
        } = orders;
        outcome.failures.extend(
            waits
                .into_iter()
                .map(|(device, waits)| Error::NoDevice { device, waits }),
        );
        // Peers before the routes to them.
        self.tunnel_peers(&difference.tunnel_peers, &held, outcome)?;
        for result in self.socket.attempt_all(&requests)? {
            match result {
                Ok(()) => outcome.changed += 1,
                Err(error) => outcome.failures.push(error.into()),
            }
        }
        self.remove_tunnel_peers(&difference.remove_tunnel_peers, outcome)?;
        for name in &difference.remove_devices {
            let Some(device) = held.devices.remove(name) else {
                continue;
            };
            match self.socket.execute(&link::delete(device.index)) {
                Ok(()) => outcome.changed += 1,
                Err(error) if error.not_found() => {}
                Err(error) => outcome.failures.push(error.into()),
            }
            held.forget(name);
        }
        held.take_up(difference);
        self.shadow = Some(held);
        Ok(())
    }

    fn tunnel_peers(
        &mut self,
        peers: &[((DeviceName, PublicKey), TunnelPeer)],
        held: &Held,
        outcome: &mut Outcome,
    ) -> Result<(), Error> {
        let mut changes: BTreeMap<DeviceName, Vec<Change>> = BTreeMap::new();
        for ((device, key), peer) in peers {
            let before = held.tunnel_peers.get(&(*device, *key));
            let ranges = peer.ranges.iter().copied();
            let only_more = before.is_none_or(|before| before.ranges.is_subset(&peer.ranges));
            let change = Change::Set {
                key: *key,
                endpoint: Some(peer.endpoint),
                keepalive: None,
                ranges: if only_more {
                    Ranges::Add(ranges.collect())
                } else {
                    Ranges::Replace(ranges.collect())
                },
            };
            changes.entry(*device).or_default().push(change);
        }
        self.change_peers(changes, outcome)
    }

    fn remove_tunnel_peers(
        &mut self,
        peers: &[(DeviceName, PublicKey)],
        outcome: &mut Outcome,
    ) -> Result<(), Error> {
        let mut changes: BTreeMap<DeviceName, Vec<Change>> = BTreeMap::new();
        for (device, key) in peers {
            changes
                .entry(*device)
                .or_default()
                .push(Change::Remove(*key));
        }
        self.change_peers(changes, outcome)
    }

    fn change_peers(
        &mut self,
        changes: BTreeMap<DeviceName, Vec<Change>>,
        outcome: &mut Outcome,
    ) -> Result<(), Error> {
        for (device, changes) in changes {
            match self.wireguard()?.change(device.as_str(), &changes) {
                Ok(()) => outcome.changed += changes.len(),
                Err(error) => outcome.failures.push(error.into()),
            }
        }
        Ok(())
    }

    /// Settings of a device under /proc/sys. Written whenever a device is made
    /// or changed, each only where it differs.
    fn settings(&self, name: DeviceName, wanted: &Device) -> Result<(), Error> {
        self.namespace.run(|| {
            // The way back may be another than the way in while back ends are
            // switched; the strict reverse path filter (RFC 3704) would drop that.
            // The larger of this and the setting for all devices counts.
            let filter = Setting::of_interface(sysctl::Family::V4, name.as_str(), "rp_filter");
            if filter.read().is_ok_and(|value| value < 2) {
                filter.write_if_present(2)?;
            }
            if wanted.answers {
                Setting::of_interface(sysctl::Family::V6, name.as_str(), "proxy_ndp")
                    .write_if_present(1)?;
                // For pods' packets it asks from its link-local address, and not at
                // all while that waits for duplicates of it, up to two seconds. Its
                // hardware address is of podwire's making and on no other node.
                Setting::of_interface(sysctl::Family::V6, name.as_str(), "accept_dad")
                    .write_if_present(0)?;
                // Otherwise an answer on behalf of another waits up to 0.8 s.
                for family in ["ipv4", "ipv6"] {
                    Setting::new(format!("{family}/neigh/{name}/proxy_delay"))
                        .write_if_present(0)?;
                }
            }
            Ok(())
        })?
    }

    /// Makes a device, or brings it to its settings.
    fn device(
        &mut self,
        name: DeviceName,
        wanted: &Device,
        renew: bool,
        held: &mut Held,
    ) -> Result<(), Error> {
        if renew {
            if let Some(old) = held.devices.remove(&name) {
                netlink_gone(self.socket.execute(&link::delete(old.index)))?;
                held.forget(&name);
            }
            self.socket.execute(&make(name, wanted))?;
        }
        let found = link::get(&mut self.socket, name.as_str())?;
        let link = found.ok_or(Error::NoDevice {
            device: name,
            waits: 1,
        })?;
        self.links.insert(&link);
        let index = link.index;
        let known = held.devices.get(&name);
        let addresses = known.map(|d| d.addresses.clone()).unwrap_or_default();
        let bridge = match wanted.bridge {
            None => None,
            Some(bridge) => {
                let index = held.devices.get(&bridge).map(|bridge| bridge.index);
                Some(index.ok_or(Error::NoDevice {
                    device: bridge,
                    waits: 1,
                })?)
            }
        };
        let mut requests = Vec::new();
        if let Some(mac) = wanted.mac.filter(|mac| link.mac != Some(*mac)) {
            requests.push(link::set_mac(index, mac));
        }
        if link.master != bridge {
            requests.push(link::set_master(index, bridge));
        }
        if link.mtu != wanted.mtu {
            requests.push(link::set_mtu(index, wanted.mtu));
        }
        for unwanted in addresses.difference(&wanted.addresses) {
            requests.push(address::delete(index, *unwanted));
        }
        for missing in wanted.addresses.difference(&addresses) {
            let address = Address::new(index, *missing).without_prefix_route();
            requests.push(address::replace(&address));
        }
        if !link.up {
            requests.push(link::set_up(index));
        }
        if let Some(settings) = &wanted.wireguard
            && known.and_then(|known| known.wireguard.as_ref()) != Some(settings)
        {
            let settings = wireguard::Settings {
                private_key: Some(settings.private_key.clone()),
                port: Some(settings.port),
                mark: None,
            };
            self.wireguard()?.configure(name.as_str(), &settings)?;
        }
        self.settings(name, wanted)?;
        self.socket.execute_all(&requests)?;
        let offload = known.is_none_or(|known| known.checksum_offload);
        if offload != wanted.checksum_offload {
            let on = wanted.checksum_offload;
            self.namespace
                .run(|| ethtool::set_tx_checksum_offload(name.as_str(), on))?
                .map_err(|source| Error::Offload {
                    device: name,
                    source,
                })?;
        }
        let now = HeldDevice {
            index,
            kind: Some(wanted.kind),
            mtu: wanted.mtu,
            mac: wanted.mac.or(link.mac),
            up: true,
            addresses: wanted.addresses.clone(),
            bridge,
            checksum_offload: wanted.checksum_offload,
            wireguard: wanted.wireguard.clone(),
        };
        held.devices.insert(name, now);
        Ok(())
    }

    /// Takes notice of a change in the kernel. Returns whether it concerns
    /// routing: whether what is wanted should be computed and applied again.
    /// The echo of what this process did itself does not.
    pub fn notice(&mut self, event: &Event) -> bool {
        let concerns = match event {
            Event::Link(link) if link.name.starts_with(DEVICE_PREFIX) => {
                self.links.insert(link);
                let held = self.held_device(&link.name);
                held.is_none_or(|held| {
                    (held.index, held.mtu, held.up) != (link.index, link.mtu, link.up)
                        || held.mac != link.mac
                        || held.bridge != link.master
                })
            }
            Event::LinkGone(link) if link.name.starts_with(DEVICE_PREFIX) => {
                self.links.devices.remove(&link.index);
                let held = self.held_device(&link.name);
                held.is_some_and(|held| held.index == link.index)
            }
            Event::Link(link) if link.name.starts_with(OWN_INTERFACES) => {
                self.links.insert(link);
                false
            }
            Event::LinkGone(link) if self.links.pods.remove(&link.index).is_some() => false,
            // The kernel repeats itself, and tells of much nobody here uses.
            Event::Link(link) => {
                let now = facts(link);
                !link.loopback && self.links.others.insert(link.index, now.clone()) != Some(now)
            }
            Event::LinkGone(link) => self.links.others.remove(&link.index).is_some(),
            Event::Address(address) => self.is_address_news(address, true),
            Event::AddressGone(address) => self.is_address_news(address, false),
            Event::Route(route) => self.is_route_news(route, true),
            Event::RouteGone(route, _) => self.is_route_news(route, false),
            Event::Rule(rule) => self.is_rule_news(rule, true),
            Event::RuleGone(rule) => self.is_rule_news(rule, false),
            Event::Neighbour(neighbour) => self.is_neighbour_news(neighbour, true),
            Event::NeighbourGone(neighbour) => self.is_neighbour_news(neighbour, false),
            Event::Forwarding(entry) => self.is_forwarding_news(entry, true),
            Event::ForwardingGone(entry) => self.is_forwarding_news(entry, false),
            Event::Lost => true,
        };
        if concerns {
            self.invalidate();
        }
        concerns
    }

    fn held_device(&self, name: &str) -> Option<&HeldDevice> {
        let held = self.shadow.as_ref()?;
        held.devices.get(&DeviceName::new(name))
    }

    fn is_address_news(&mut self, address: &Address, there: bool) -> bool {
        if is_link_local(address.address.addr()) {
            return false;
        }
        match self.links.devices.get(&address.link) {
            Some(device) => {
                let held = self.shadow.as_ref().and_then(|h| h.devices.get(device));
                held.is_some_and(|held| held.addresses.contains(&address.address) != there)
            }
            None if self.links.pods.contains_key(&address.link) => false,
            // The kernel tells of an address again when its state changes.
            None => {
                let key = (address.link, address.address);
                match there {
                    true => self.links.addresses.insert(key),
                    false => self.links.addresses.remove(&key),
                }
            }
        }
    }

    fn is_neighbour_news(&self, neighbour: &neighbour::Neighbour, there: bool) -> bool {
        let Some(device) = self.links.devices.get(&neighbour.link) else {
            return false;
        };
        let Some(held) = &self.shadow else {
            return true;
        };
        let key = (*device, neighbour.address);
        if neighbour.proxy {
            return held.proxies.contains(&key) != there;
        }
        match held.neighbours.get(&key) {
            Some(mac) => !there || !neighbour.permanent || neighbour.mac != Some(*mac),
            None => there && neighbour.permanent,
        }
    }

    fn is_forwarding_news(&self, entry: &fdb::Entry, there: bool) -> bool {
        let Some(device) = self.links.devices.get(&entry.link) else {
            return false;
        };
        let (Some(held), true) = (&self.shadow, entry.of_device && entry.mac.is_unicast()) else {
            return false;
        };
        let is_permanent = entry.lifetime == Lifetime::Permanent;
        match held.forwarding.get(&(*device, entry.mac)) {
            Some(remote) => !there || entry.remote != Some(*remote),
            None => there && is_permanent && entry.remote.is_some(),
        }
    }

    fn is_route_news(&self, route: &route::Route, there: bool) -> bool {
        let Some(table) = RouteTable::of(route.table) else {
            return false;
        };
        if is_link_local(route.destination.addr()) {
            return false;
        }
        let (key, target) = self.decode(table, route);
        let owner = self.owner(route);
        if matches!(owner, Owner::Pods) {
            return false;
        }
        let Some(held) = &self.shadow else {
            return true;
        };
        match owner {
            Owner::Routing => match held.routes.get(&key) {
                Some(known) => !there || *known != target,
                None => there,
            },
            _ => {
                let is_same = |o: &OtherRoute| o.key == key && o.protocol == route.protocol;
                held.others.iter().any(is_same) != there
            }
        }
    }

    fn is_rule_news(&self, rule: &Rule, there: bool) -> bool {
        let known = self.shadow.as_ref().map(|held| held.rules.contains(rule));
        rule.protocol == PROTOCOL && known != Some(there)
    }

    /// Routes of podwire's protocol are routing's, except those the CNI plugin
    /// makes for single pods: over pods' links, or without a gateway to one address.
    fn owner(&self, route: &route::Route) -> Owner {
        let over = |link: u32| self.links.pods.get(&link).copied();
        let over_pods = route.link.and_then(over);
        let single = route.destination.prefix_len() == route.destination.max_prefix_len();
        let is_ours = route.protocol == PROTOCOL;
        match over_pods {
            Some(is_bridge) if is_ours && is_bridge && !single => Owner::Routing,
            Some(_) => Owner::Pods,
            None if is_ours && single && route.gateway.is_none() => {
                let on_device = |link| self.links.devices.contains_key(&link);
                if route.link.is_some_and(on_device) {
                    Owner::Routing
                } else {
                    Owner::Pods
                }
            }
            None if is_ours => Owner::Routing,
            // The kernel's own on our devices.
            None if route
                .link
                .is_some_and(|l| self.links.devices.contains_key(&l)) =>
            {
                Owner::Pods
            }
            None => Owner::Others,
        }
    }

    fn decode(&self, table: RouteTable, route: &route::Route) -> (RouteKey, Option<RouteTarget>) {
        let device = route.link.and_then(|link| self.links.devices.get(&link));
        let target = match (route.kind, route.gateway, route.link, device) {
            // IPv6 shows the loopback interface as the link of an unreachable route.
            (Kind::Unreachable, None, ..) if route.source.is_none() => {
                Some(RouteTarget::Unreachable)
            }
            (Kind::Unicast, gateway, Some(_), Some(device)) => {
                let next_hop = match (gateway, route.encapsulation) {
                    (None, None) => Some(NextHop::Direct),
                    (Some(gateway), None) if route.onlink => Some(NextHop::OnLink(gateway)),
                    (None, Some(outer)) => {
                        let id = u32::try_from(outer.id).ok();
                        let checksum = outer.checksum == outer.remote.is_ipv6();
                        id.filter(|_| checksum).map(|id| NextHop::Encapsulated {
                            id,
                            remote: outer.remote,
                        })
                    }
                    _ => None,
                };
                next_hop.map(|next_hop| RouteTarget::Device {
                    device: *device,
                    next_hop,
                    source: route.source,
                    mtu: route.mtu,
                })
            }
            _ if route.onlink || route.encapsulation.is_some() => None,
            (Kind::Unicast, Some(address), Some(interface), None) if route.source.is_none() => {
                Some(RouteTarget::Gateway {
                    address,
                    interface,
                    mtu: route.mtu,
                })
            }
            (Kind::Unicast, None, Some(interface), None) if route.mtu.is_none() => route
                .source
                .map(|source| RouteTarget::Link { interface, source }),
            _ => None,
        };
        let metric = route.metric;
        let key = RouteKey {
            table,
            destination: route.destination,
            metric: metric.unwrap_or_else(|| default_metric(&route.destination)),
        };
        (key, target)
    }
}

impl Held {
    /// A device is gone, and the kernel took with it what was on it.
    fn forget(&mut self, device: &DeviceName) {
        self.neighbours.retain(|(on, _), _| on != device);
        self.forwarding.retain(|(on, _), _| on != device);
        self.proxies.retain(|(on, _)| on != device);
        self.tunnel_peers.retain(|(on, _), _| on != device);
        self.routes.retain(|_, target| match target {
            Some(RouteTarget::Device { device: on, .. }) => on != device,
            _ => true,
        });
    }

    /// What a difference says of entries and routes was carried out.
    fn take_up(&mut self, difference: &Difference) {
        self.forwarding
            .extend(difference.forwarding.iter().copied());
        self.neighbours
            .extend(difference.neighbours.iter().copied());
        self.proxies.extend(difference.proxies.iter().copied());
        let written = difference.add.iter().chain(&difference.replace);
        self.routes
            .extend(written.map(|route| (route.key, Some(route.target))));
        self.rules.extend(&difference.rules);
        for rule in &difference.remove_rules {
            self.rules.remove(rule);
        }
        for key in &difference.remove {
            self.routes.remove(key);
        }
        for key in &difference.remove_neighbours {
            self.neighbours.remove(key);
        }
        for key in &difference.remove_forwarding {
            self.forwarding.remove(key);
        }
        for key in &difference.remove_proxies {
            self.proxies.remove(key);
        }
        // A range is one peer's: where one has it now, no other has.
        let mut holders = BTreeSet::new();
        for ((device, _), peer) in &difference.tunnel_peers {
            holders.extend(peer.ranges.iter().map(|range| (*device, *range)));
        }
        if !holders.is_empty() {
            for ((device, _), other) in &mut self.tunnel_peers {
                other
                    .ranges
                    .retain(|range| !holders.contains(&(*device, *range)));
            }
        }
        self.tunnel_peers
            .extend(difference.tunnel_peers.iter().cloned());
        for key in &difference.remove_tunnel_peers {
            self.tunnel_peers.remove(key);
        }
    }
}

/// The requests that carry out a difference, in its order.
struct Orders {
    requests: Vec<Request>,
    indexes: BTreeMap<DeviceName, u32>,
    /// Entries that wait for a device that is not there.
    waits: BTreeMap<DeviceName, usize>,
}

impl Orders {
    fn new(held: &Held, links: &Links) -> Orders {
        let devices = links.devices.iter().map(|(index, name)| (*name, *index));
        let mut indexes: BTreeMap<DeviceName, u32> = devices.collect();
        indexes.extend(held.devices.iter().map(|(name, held)| (*name, held.index)));
        Orders {
            requests: Vec::new(),
            indexes,
            waits: BTreeMap::new(),
        }
    }

    fn on(&mut self, device: &DeviceName, request: impl FnOnce(u32) -> Request) {
        match self.indexes.get(device) {
            Some(index) => self.requests.push(request(*index)),
            None => *self.waits.entry(*device).or_default() += 1,
        }
    }

    fn collect(&mut self, difference: &Difference, held: &Held) {
        for ((device, mac), remote) in &difference.forwarding {
            self.on(device, |index| fdb::set(index, *mac, *remote));
        }
        for ((device, address), mac) in &difference.neighbours {
            self.on(device, |index| {
                neighbour::set_permanent(index, *address, *mac)
            });
        }
        for (device, address) in &difference.proxies {
            self.on(device, |index| neighbour::set_proxy(index, *address));
        }
        for route in &difference.add {
            self.route(route, route::add);
        }
        for route in &difference.replace {
            self.route(route, route::replace);
        }
        let rules = difference.rules.iter();
        self.requests.extend(rules.map(rule::add));
        let rules = difference.remove_rules.iter();
        self.requests.extend(rules.map(rule::delete));
        for key in &difference.remove {
            let mut gone = route::Route::to(key.destination).metric(key.metric);
            gone = gone.table(key.table.number());
            if held.routes.get(key) == Some(&Some(RouteTarget::Unreachable)) {
                gone = gone.kind(Kind::Unreachable);
            }
            self.requests.push(route::delete(&gone));
        }
        for (device, address) in &difference.remove_neighbours {
            self.on(device, |index| neighbour::delete(index, *address));
        }
        for (device, mac) in &difference.remove_forwarding {
            self.on(device, |index| fdb::delete(index, *mac));
        }
        for (device, address) in &difference.remove_proxies {
            self.on(device, |index| neighbour::delete_proxy(index, *address));
        }
    }

    fn route(&mut self, route: &Route, request: impl FnOnce(&route::Route) -> Request) {
        let RouteKey {
            table,
            destination,
            metric,
        } = route.key;
        let bare = route::Route::to(destination).metric(metric);
        let bare = bare.table(table.number());
        let sized = |route: route::Route, mtu: Option<u32>| match mtu {
            Some(mtu) => route.mtu(mtu),
            None => route,
        };
        match route.target {
            RouteTarget::Gateway {
                address,
                interface,
                mtu,
            } => {
                let route = sized(bare.via(address).dev(interface), mtu);
                self.requests.push(request(&route));
            }
            RouteTarget::Link { interface, source } => {
                self.requests
                    .push(request(&bare.dev(interface).source(source)));
            }
            RouteTarget::Unreachable => {
                self.requests.push(request(&bare.kind(Kind::Unreachable)));
            }
            RouteTarget::Device {
                device,
                next_hop,
                source,
                mtu,
            } => self.on(&device, |index| {
                let mut route = match next_hop {
                    NextHop::Direct => bare.dev(index),
                    NextHop::OnLink(gateway) => bare.via(gateway).dev(index).onlink(),
                    NextHop::Encapsulated { id, remote } => {
                        bare.dev(index).encapsulated(Encapsulation {
                            id: u64::from(id),
                            remote,
                            checksum: remote.is_ipv6(),
                        })
                    }
                };
                if let Some(source) = source {
                    route = route.source(source);
                }
                request(&sized(route, mtu))
            }),
        }
    }
}

fn make(name: DeviceName, device: &Device) -> Request {
    let tunnel = match device.kind {
        DeviceKind::Vxlan(vxlan) => Tunnel::Vxlan(vxlan),
        DeviceKind::Ipip(ipip) => Tunnel::Ipip(ipip),
        DeviceKind::Ip6Tunnel => Tunnel::Ip6Tunnel,
        DeviceKind::Wireguard => Tunnel::Wireguard,
        DeviceKind::Bridge => {
            return link::add_bridge(&Bridge {
                name: name.as_str(),
                mac: device.mac,
                ageing_seconds: None,
                multicast_snooping: false,
            });
        }
    };
    tunnel::add(name.as_str(), &tunnel, device.mtu, device.mac)
}

fn kind_of(link: &Link) -> Option<DeviceKind> {
    match link.tunnel {
        Some(Tunnel::Vxlan(vxlan)) => Some(DeviceKind::Vxlan(vxlan)),
        Some(Tunnel::Ipip(ipip)) => Some(DeviceKind::Ipip(ipip)),
        Some(Tunnel::Ip6Tunnel) => Some(DeviceKind::Ip6Tunnel),
        Some(Tunnel::Wireguard) => Some(DeviceKind::Wireguard),
        None => (link.kind.as_deref() == Some("bridge")).then_some(DeviceKind::Bridge),
    }
}

fn netlink_gone(outcome: Result<(), netlink::Error>) -> Result<(), netlink::Error> {
    match outcome {
        Err(error) if error.not_found() => Ok(()),
        outcome => outcome,
    }
}

/// What matters of an interface of others.
fn facts(link: &Link) -> (String, u32, bool) {
    (link.name.clone(), link.mtu, link.up)
}

/// Removes the nftables table of routing in the calling thread's network
/// namespace; `false` when there is none.
///
/// # Errors
/// When the kernel cannot be asked or refuses.
pub fn remove_table() -> Result<bool, linux::nftables::Error> {
    let mut nft = Nftables::open()?;
    let held = table::read(&mut nft)?;
    if held == Table::Absent {
        return Ok(false);
    }
    table::write(&mut nft, &held, &BTreeMap::new())?;
    Ok(true)
}

/// Removes every route of podwire's protocol, in all tables, those of pods
/// included, and every policy rule of that protocol. Returns the destinations of the
/// routes removed. (Devices go with all of podwire's links.)
///
/// # Errors
/// When the kernel cannot be asked or refuses.
pub fn remove_all(socket: &mut Socket) -> Result<Vec<IpNet>, netlink::Error> {
    let routes = route::list(socket, Filter::own())?;
    let rules = rule::list_own(socket)?;
    let mut requests: Vec<Request> = rules.iter().map(rule::delete).collect();
    requests.extend(routes.iter().map(route::delete));
    for outcome in socket.attempt_all(&requests)? {
        match outcome {
            // Gone with its link meanwhile.
            Err(error) if error.not_found() => {}
            outcome => outcome?,
        }
    }
    Ok(routes.into_iter().map(|route| route.destination).collect())
}
