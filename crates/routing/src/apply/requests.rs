//! The netlink requests that carry out a difference.

use std::collections::BTreeMap;

use linux::link::{self, Bridge};
use linux::netlink::Request;
use linux::route::{self, Encapsulation, Kind};
use linux::tunnel::{self, Tunnel};
use linux::{fdb, neighbour, rule};

use super::read::Links;
use crate::difference::{Difference, Held};
use crate::model::{Device, DeviceKind, DeviceName, NextHop, Route, RouteKey, RouteTarget};

/// The requests that carry out a difference, in its order.
pub(super) struct Orders {
    pub(super) requests: Vec<Request>,
    pub(super) indexes: BTreeMap<DeviceName, u32>,
    /// Entries that wait for a device that is not there.
    pub(super) waits: BTreeMap<DeviceName, usize>,
}

impl Orders {
    pub(super) fn new(held: &Held, links: &Links) -> Orders {
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

    pub(super) fn collect(&mut self, difference: &Difference, held: &Held) {
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

pub(super) fn make(name: DeviceName, device: &Device) -> Request {
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
