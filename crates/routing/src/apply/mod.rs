//! Reads the kernel and carries out the difference.

mod notice;
mod read;
mod removal;
mod requests;

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use linux::address::{self, Address};
use linux::ethtool;
use linux::link;
use linux::namespace::NetworkNamespace;
use linux::netlink::{self, Socket};
use linux::nftables::Nftables;
use linux::sysctl::{self, Setting};
use linux::wireguard::{self, Change, Ranges, WireGuard};

pub use removal::{remove_all, remove_table};

use crate::changes::Changes;
use crate::difference::{Difference, Foreign, Held, HeldDevice, difference, difference_in};
use crate::model::{Device, DeviceName, PublicKey, RouteKey, RouteTable, RouteTarget, State};
use crate::table;
use read::Links;
use requests::{Orders, make};

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
    /// Whether that is what came of what was applied last, and not what was read since.
    is_applied: bool,
    /// The routes of others that are in the way of what was applied last.
    foreign: BTreeMap<(RouteKey, u8), Foreign>,
    links: Links,
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
            is_applied: false,
            foreign: BTreeMap::new(),
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

    /// Whether the next use does without reading the kernel.
    pub fn is_known(&self) -> bool {
        self.shadow.is_some()
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
            self.is_applied = false;
        }
        Ok(self.shadow.get_or_insert_default())
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
        self.apply_changes(wanted, &Changes::everything())
    }

    /// The same, of a state of which is known what may have changed since one was
    /// applied last: the rest is not looked at, unless the kernel was read meanwhile
    /// or refused something then.
    ///
    /// # Errors
    /// As [`Self::apply`].
    pub fn apply_changes(&mut self, wanted: &State, changes: &Changes) -> Result<Outcome, Error> {
        let everything = Changes::everything();
        let mut outcome = Outcome::default();
        for _ in 0..2 {
            self.held()?;
            let changes = match self.is_applied {
                true => changes,
                false => &everything,
            };
            let held = self.held()?;
            let difference = difference_in(wanted, held, changes);
            outcome.failures.clear();
            if !difference.is_empty() {
                self.carry_out(wanted, &difference, &mut outcome)?;
            }
            self.take_up_foreign(difference.foreign, changes);
            if outcome.failures.is_empty() {
                self.is_applied = true;
                break;
            }
            self.invalidate();
        }
        outcome.foreign = self.foreign.values().cloned().collect();
        Ok(outcome)
    }

    /// What is in the way of entries that may have changed is this now.
    fn take_up_foreign(&mut self, found: Vec<Foreign>, changes: &Changes) {
        if changes.everything {
            self.foreign.clear();
        } else {
            for key in &changes.routes {
                let others = self.shadow.iter();
                let others = others.flat_map(|held| held.others_in(key.table, key.destination));
                for other in others {
                    self.foreign.remove(&(other.key, other.protocol));
                }
            }
        }
        let found = found.into_iter();
        self.foreign
            .extend(found.map(|foreign| ((foreign.key, foreign.protocol), foreign)));
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
        self.tunnel_peers(difference, &held, outcome)?;
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
        difference: &Difference,
        held: &Held,
        outcome: &mut Outcome,
    ) -> Result<(), Error> {
        let mut changes: BTreeMap<DeviceName, Vec<Change>> = BTreeMap::new();
        for ((device, key), peer) in &difference.tunnel_peers {
            let before = held.tunnel_peers.get(&(*device, *key));
            let ranges = peer.ranges.iter().copied();
            let only_more = before.is_none_or(|before| before.ranges.is_subset(&peer.ranges));
            let change = Change::Set {
                key: *key,
                endpoint: Some(peer.endpoint),
                keepalive: Some(peer.keepalive),
                ranges: if only_more {
                    Ranges::Add(ranges.collect())
                } else {
                    Ranges::Replace(ranges.collect())
                },
            };
            changes.entry(*device).or_default().push(change);
        }
        for (device, key) in &difference.handshakes {
            let handshake = Change::Handshake(*key);
            changes.entry(*device).or_default().push(handshake);
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

fn netlink_gone(outcome: Result<(), netlink::Error>) -> Result<(), netlink::Error> {
    match outcome {
        Err(error) if error.not_found() => Ok(()),
        outcome => outcome,
    }
}
