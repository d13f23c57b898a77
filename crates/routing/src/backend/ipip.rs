//! IP in IP.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{About, Backend, Carrier, Entries, Here, Peer, Tunnel};
use crate::model::{DeviceKind, DeviceName, Family, Ipip, NextHop, RouteKey, State};
use crate::plan::Reason;

/// IPv4 in IPv4 (RFC 2003) and IPv6 in IPv6 (RFC 2473) (`ipip`): a device a
/// family without a fixed remote end, and a route a range that names it: as the
/// gateway for IPv4, as a lightweight tunnel for IPv6. A family of pods needs the
/// same family on the underlay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IpInIp;

/// Hop limit of outer IPv4 packets: not the inner one's, which counts hops of pods.
const HOPS: u8 = 64;

/// The device for a family.
const fn tunnel(family: Family) -> Tunnel {
    match family {
        Family::V4 => Tunnel {
            device: DeviceName::new("pw-ipip"),
            carriers: &[Family::V4],
        },
        Family::V6 => Tunnel {
            device: DeviceName::new("pw-ip6tnl"),
            carriers: &[Family::V6],
        },
    }
}

impl Backend for IpInIp {
    fn about(&self) -> About {
        About {
            name: "ipip",
            owns: "the devices pw-ipip and, for IPv6, pw-ip6tnl with their addresses, and a route \
                   of protocol 112 for each pod range and each peer's address",
            // The outer IP header.
            overhead: [20, 40],
            carrier: Carrier::Same,
        }
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
            let tunnel = tunnel(family);
            let made = here.device(tunnel, self, kind)?;
            state.devices.insert(tunnel.device, made);
        }
        if state.devices.is_empty() {
            return Err(Reason::NoAddress);
        }
        Ok(())
    }

    fn send(&self, peer: &Peer<'_>, range: IpNet, entries: &mut Entries) -> Result<(), Reason> {
        let family = Family::of_range(&range);
        // Without a range of its own of that family the node has no device for it.
        peer.here.own.range(family).ok_or(Reason::NoAddress)?;
        let remote = peer.path(self, family)?.remote;
        let next_hop = match family {
            Family::V4 => NextHop::OnLink(remote),
            Family::V6 => NextHop::Encapsulated { id: 0, remote },
        };
        let target = peer.over(tunnel(family), self, &range, next_hop)?;
        entries.routes.push((RouteKey::of_peer(range), target));
        Ok(())
    }
}
