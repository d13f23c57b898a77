//! Tells news of the kernel from the echo of what this process did itself.

use linux::address::Address;
use linux::events::Event;
use linux::fdb::{self, Lifetime};
use linux::{neighbour, route};

use super::Kernel;
use super::read::{Owner, facts};
use crate::difference::{HeldDevice, OtherRoute, PROTOCOL};
use crate::model::{DEVICE_PREFIX, DeviceName, RouteTable, Rule};
use crate::underlay::{OWN_INTERFACES, is_link_local};

impl Kernel {
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
            Event::Qdisc(_) | Event::QdiscGone(_) | Event::IpsecPolicies => false,
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
                let mut others = held.others_in(table, key.destination);
                let is_same = |o: &OtherRoute| o.key == key && o.protocol == route.protocol;
                others.any(is_same) != there
            }
        }
    }

    fn is_rule_news(&self, rule: &Rule, there: bool) -> bool {
        let known = self.shadow.as_ref().map(|held| held.rules.contains(rule));
        rule.protocol == PROTOCOL && known != Some(there)
    }
}
