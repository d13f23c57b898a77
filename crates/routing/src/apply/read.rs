//! Reads what routing owns, and tells apart whose a route is.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use linux::fdb::{self, Lifetime};
use linux::link::{self, Link};
use linux::route::{self, Filter, Kind};
use linux::tunnel::Tunnel;
use linux::{address, ethtool, neighbour, rule};

use super::{Error, Kernel};
use crate::difference::{Held, HeldDevice, OtherRoute, PROTOCOL};
use crate::model::{
    DEVICE_PREFIX, DeviceKind, DeviceName, NextHop, RouteKey, RouteTable, RouteTarget, TunnelPeer,
    WireguardSettings, default_metric,
};
use crate::table;
use crate::underlay::{OWN_INTERFACES, is_link_local};

/// Interfaces, as read and as notified since.
#[derive(Debug, Default)]
pub(super) struct Links {
    /// Routing's own, by index.
    pub(super) devices: BTreeMap<u32, DeviceName>,
    /// The pods', by index; bridges are marked.
    pub(super) pods: BTreeMap<u32, bool>,
    /// Others: name, MTU, whether up.
    pub(super) others: BTreeMap<u32, (String, u32, bool)>,
    /// Addresses of others, with the index of their interface.
    pub(super) addresses: BTreeSet<(u32, IpNet)>,
}

impl Links {
    pub(super) fn insert(&mut self, link: &Link) {
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
pub(super) enum Owner {
    Routing,
    /// Made by the CNI plugin or the kernel for pods.
    Pods,
    Others,
}

impl Kernel {
    pub(super) fn read(&mut self) -> Result<Held, Error> {
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
                    Owner::Others => {
                        held.others.insert(OtherRoute {
                            key,
                            protocol: route.protocol,
                            unreachable: target == Some(RouteTarget::Unreachable),
                        });
                    }
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
            let known = TunnelPeer {
                endpoint,
                ranges: peer.ranges.into_iter().collect(),
                keepalive: peer.keepalive,
            };
            held.tunnel_peers.insert((on, peer.key), known);
        }
        let port = device.port;
        Ok(device
            .private_key
            .map(|private_key| WireguardSettings { private_key, port }))
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

    /// Routes of podwire's protocol are routing's, except those the CNI plugin
    /// makes for single pods: over pods' links, or without a gateway to one address.
    pub(super) fn owner(&self, route: &route::Route) -> Owner {
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

    pub(super) fn decode(
        &self,
        table: RouteTable,
        route: &route::Route,
    ) -> (RouteKey, Option<RouteTarget>) {
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

fn kind_of(link: &Link) -> Option<DeviceKind> {
    match link.tunnel {
        Some(Tunnel::Vxlan(vxlan)) => Some(DeviceKind::Vxlan(vxlan)),
        Some(Tunnel::Ipip(ipip)) => Some(DeviceKind::Ipip(ipip)),
        Some(Tunnel::Ip6Tunnel) => Some(DeviceKind::Ip6Tunnel),
        Some(Tunnel::Wireguard) => Some(DeviceKind::Wireguard),
        None => (link.kind.as_deref() == Some("bridge")).then_some(DeviceKind::Bridge),
    }
}

/// What matters of an interface of others.
pub(super) fn facts(link: &Link) -> (String, u32, bool) {
    (link.name.clone(), link.mtu, link.up)
}
