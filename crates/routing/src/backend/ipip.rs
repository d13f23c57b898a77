//! IP in IP.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{Backend, Families, Here, route_mtu, tunnel_addresses};
use crate::model::{
    Device, DeviceKind, DeviceName, Family, Ipip, NextHop, Node, RouteKey, RouteTarget, State,
};
use crate::plan::Reason;

/// IPv4 in IPv4 (RFC 2003) and IPv6 in IPv6 (RFC 2473) (`ipip`): a device a
/// family without a fixed remote end, and a route a range that names it: as the
/// gateway for IPv4, as a lightweight tunnel for IPv6. A family of pods needs the
/// same family on the underlay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IpInIp;

/// Hop limit of outer IPv4 packets: not the inner one's, which counts hops of pods.
const HOPS: u8 = 64;

const fn device(carrier: Family) -> DeviceName {
    match carrier {
        Family::V4 => DeviceName::new("pw-ipip"),
        Family::V6 => DeviceName::new("pw-ip6tnl"),
    }
}

impl Backend for IpInIp {
    fn name(&self) -> &'static str {
        "ipip"
    }

    fn owns(&self) -> &'static str {
        "the devices pw-ipip and, for IPv6, pw-ip6tnl with their addresses, and a route of \
         protocol 112 for each pod range"
    }

    /// The outer IP header.
    fn overhead(&self, carrier: Family) -> u32 {
        match carrier {
            Family::V4 => 20,
            Family::V6 => 40,
        }
    }

    fn carrier(&self, underlay: Families, pods: Family) -> Option<Family> {
        underlay.has(pods).then_some(pods)
    }

    fn node(&self, here: &Here<'_>, state: &mut State) -> Result<(), Reason> {
        for family in Family::BOTH {
            // A device for a family without pods would serve nobody.
            let (Some(local), Some(_)) = (here.own.address(family), here.own.range(family)) else {
                continue;
            };
            let kind = match local {
                IpAddr::V4(local) => DeviceKind::Ipip(Ipip { local, ttl: HOPS }),
                IpAddr::V6(_) => DeviceKind::Ip6Tunnel,
            };
            let mut made = Device::new(kind, here.device_mtu(self, &[family])?);
            made.addresses = tunnel_addresses(here.own, &[family]);
            state.devices.insert(device(family), made);
        }
        if state.devices.is_empty() {
            return Err(Reason::NoAddress);
        }
        Ok(())
    }

    fn send(
        &self,
        here: &Here<'_>,
        peer: &Node,
        range: IpNet,
        state: &mut State,
    ) -> Result<(), Reason> {
        let family = Family::of_range(&range);
        let path = here.path(self, peer, family)?;
        // Without a range of its own of that family the node has no device for it.
        let source = here.own.tunnel_address(family).ok_or(Reason::NoAddress)?;
        let target = RouteTarget::Device {
            device: device(family),
            next_hop: match family {
                Family::V4 => NextHop::OnLink(path.remote),
                Family::V6 => NextHop::Encapsulated {
                    id: 0,
                    remote: path.remote,
                },
            },
            source: Some(source),
            mtu: route_mtu(path.mtu, here.device_mtu(self, &[family])?),
        };
        state.routes.insert(RouteKey::to(range), target);
        Ok(())
    }
}
