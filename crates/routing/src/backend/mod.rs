//! Ways to carry packets from node to node.
//!
//! A back end is a value that implements [`Backend`]: pure functions from nodes
//! to the entries wanted in the kernel. Reading the kernel, comparing, applying,
//! removing, switching, MTU and the choice between several back ends are done
//! for all of them alike.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::data::NodeData;
use crate::model::{
    Device, DeviceKind, DeviceName, Family, MacAddress, NextHop, Node, PerFamily, PublicKey,
    Remote, RouteKey, RouteTarget, State, TunnelPeer,
};
use crate::plan::Reason;
use crate::underlay::Underlay;

mod host_gateway;
mod ipip;
mod static_routes;
mod vxlan;
mod vxlan_gpe;
mod vxlan_multicast;
mod wireguard;

pub use host_gateway::HostGateway;
pub use ipip::IpInIp;
pub use static_routes::StaticRoutes;
pub use vxlan::VxlanProgrammed;
pub use vxlan_gpe::VxlanGpe;
pub use vxlan_multicast::VxlanMulticast;
pub use wireguard::Wireguard;

/// A way to carry packets from node to node.
///
/// To add one: implement this in a file of its own, name it in [`by_name`] and
/// [`NAMES`], and, if nodes must know something of each other, give it a field in
/// [`NodeData`].
pub trait Backend: fmt::Debug + Send + Sync {
    /// What it is.
    fn about(&self) -> About;

    /// Its name.
    fn name(&self) -> &'static str {
        self.about().name
    }

    /// Writes into `data` what peers have to know of this node.
    fn publish(&self, _own: &Node, _data: &mut NodeData) {}

    /// What this node needs whoever its peers are: devices, and routes that do
    /// not depend on a peer.
    ///
    /// # Errors
    /// Why this node cannot be reached this way at all.
    fn node(&self, _here: &Here<'_>, _state: &mut State) -> Result<(), Reason> {
        Ok(())
    }

    /// What it takes to accept packets from a peer, also while none are sent to
    /// it this way. `sources` is where they may come from: those of the peer's pod
    /// ranges that are sound, and its own addresses. Whose key is another's is refused.
    ///
    /// # Errors
    /// Why this peer's packets cannot be accepted this way.
    fn accept(&self, _: &Peer<'_>, _sources: &[IpNet]) -> Result<Option<Accepted>, Reason> {
        Ok(None)
    }

    /// What it takes to send packets for one range of a peer. `range` is sound:
    /// it overlaps no other node's range and nothing of the underlay. What was
    /// entered is dropped on error. It depends on nothing but the peer's
    /// [`Peer::here`] and [`Peer::node`], and no entry is one that another peer has too,
    /// but for forwarding entries: whose hardware address is another's is refused.
    ///
    /// Called also for the single addresses of the peer itself. If that gives a
    /// route over a device, it goes into the table for packets of pods
    /// ([`crate::model::RouteTable::OfPods`]): through the tunnel those reach the
    /// peer's processes as they do its pods.
    ///
    /// # Errors
    /// Why this range cannot be reached this way.
    fn send(&self, peer: &Peer<'_>, range: IpNet, entries: &mut Entries) -> Result<(), Reason>;
}

/// The peer of a WireGuard device that takes packets from a node.
pub type Accepted = ((DeviceName, PublicKey), TunnelPeer);

/// What it takes to send packets for one range of a peer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entries {
    /// Routes ([`State::routes`]).
    pub routes: Vec<(RouteKey, RouteTarget)>,
    /// Neighbours ([`State::neighbours`]).
    pub neighbours: Vec<((DeviceName, IpAddr), MacAddress)>,
    /// Forwarding entries ([`State::forwarding`]).
    pub forwarding: Vec<((DeviceName, MacAddress), Remote)>,
}

/// What a back end is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct About {
    /// Its name in configuration, in what nodes tell each other, and in reports.
    pub name: &'static str,
    /// What it makes in the kernel, for people.
    pub owns: &'static str,
    /// Bytes it adds to every packet carried by IPv4, and by IPv6.
    pub overhead: [u32; 2],
    /// Which family of the underlay carries which pods' packets.
    pub carrier: Carrier,
}

impl About {
    /// Bytes added to a packet that an underlay of this family carries.
    pub fn overhead(&self, carrier: Family) -> u32 {
        let [v4, v6] = self.overhead;
        match carrier {
            Family::V4 => v4,
            Family::V6 => v6,
        }
    }
}

/// Which family of the underlay carries the packets of pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// The pods' own, and no other.
    Same,
    /// The pods' own where both nodes have it, else the other.
    Either,
    /// One for pods of both: IPv4 where both nodes have it.
    One,
}

impl Carrier {
    /// The family that carries packets of `pods` between two nodes that both have
    /// addresses of `underlay`; `None` when none can.
    pub fn of(self, underlay: Families, pods: Family) -> Option<Family> {
        let order: &[Family] = match self {
            Carrier::Same => &[pods],
            Carrier::Either => &[pods, pods.other()],
            Carrier::One => &Family::BOTH,
        };
        let mut order = order.iter().copied();
        order.find(|family| underlay.has(*family))
    }
}

/// A device of a back end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// Its name.
    pub device: DeviceName,
    /// The families of the underlay that carry what goes into it.
    pub carriers: &'static [Family],
}

/// Which families there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Families {
    v4: bool,
    v6: bool,
}

impl Families {
    /// Those of a node's addresses.
    pub fn of(node: &Node) -> Families {
        Families {
            v4: node.address(Family::V4).is_some(),
            v6: node.address(Family::V6).is_some(),
        }
    }

    /// Those in both.
    pub fn and(self, other: Families) -> Families {
        Families {
            v4: self.v4 && other.v4,
            v6: self.v6 && other.v6,
        }
    }

    /// Whether a family is among them.
    pub fn has(self, family: Family) -> bool {
        match family {
            Family::V4 => self.v4,
            Family::V6 => self.v6,
        }
    }
}

/// The node a plan is made for.
#[derive(Clone, Copy, Debug)]
pub struct Here<'a> {
    /// This node.
    pub own: &'a Node,
    /// What it is connected to.
    pub underlay: &'a Underlay,
}

/// The way between this node and a peer, for pods of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    /// Family of the underlay that carries the packets.
    pub carrier: Family,
    /// The peer's address of that family.
    pub remote: IpAddr,
    /// Largest packet of pods, bytes.
    pub mtu: u32,
}

/// A peer, as the node a plan is made for sees it.
#[derive(Clone, Copy, Debug)]
pub struct Peer<'a> {
    /// The node the plan is made for.
    pub here: Here<'a>,
    /// The peer.
    pub node: &'a Node,
}

impl Peer<'_> {
    /// The way to it for pods of a family.
    ///
    /// # Errors
    /// When the nodes have no addresses that could be used.
    pub fn path(&self, backend: &dyn Backend, pods: Family) -> Result<Path, Reason> {
        let Peer { here, node } = self;
        let both = Families::of(here.own).and(Families::of(node));
        let about = backend.about();
        let carrier = about.carrier.of(both, pods).ok_or(Reason::NoAddress)?;
        let remote = node.address(carrier).ok_or(Reason::NoAddress)?;
        let theirs = node.data.as_ref().and_then(|data| data.mtu.get(carrier));
        let mtu = here.underlay_mtu(carrier).ok_or(Reason::NoInterface)?;
        let mtu = theirs.map_or(mtu, |theirs| theirs.min(mtu));
        let mtu = inner(mtu, &about, carrier);
        if pods == Family::V6 && mtu < IPV6_LEAST {
            return Err(Reason::TooSmall { mtu });
        }
        Ok(Path {
            carrier,
            remote,
            mtu,
        })
    }

    /// Where a route to a range of its leads that takes a device.
    ///
    /// # Errors
    /// As [`Self::path`].
    pub fn over(
        &self,
        tunnel: Tunnel,
        backend: &dyn Backend,
        range: &IpNet,
        next_hop: NextHop,
    ) -> Result<RouteTarget, Reason> {
        let pods = Family::of_range(range);
        let path = self.path(backend, pods)?;
        let device_mtu = self.here.device_mtu(backend, tunnel.carriers)?;
        Ok(RouteTarget::Device {
            device: tunnel.device,
            next_hop,
            source: self.here.own.tunnel_address(pods),
            mtu: route_mtu(path.mtu, device_mtu),
        })
    }
}

impl Here<'_> {
    /// The largest packet this node's underlay of a family carries, bytes.
    pub fn underlay_mtu(&self, carrier: Family) -> Option<u32> {
        self.underlay.mtu_of(&self.own.addresses, carrier)
    }

    /// The largest packet of pods of a family a back end takes here, bytes;
    /// `None` when it takes none.
    pub fn mtu(&self, backend: &dyn Backend, pods: Family) -> Option<u32> {
        let about = backend.about();
        let carrier = about.carrier.of(Families::of(self.own), pods)?;
        Some(inner(self.underlay_mtu(carrier)?, &about, carrier))
    }

    /// The MTU of a device whose packets an underlay of one of these families
    /// carries: the largest of theirs. Routes of a path with less say so
    /// themselves ([`route_mtu`]).
    ///
    /// # Errors
    /// When this node has no address of these families, or is connected to nothing.
    pub fn device_mtu(&self, backend: &dyn Backend, carriers: &[Family]) -> Result<u32, Reason> {
        let about = backend.about();
        let families = Families::of(self.own);
        let usable = || carriers.iter().filter(|carrier| families.has(**carrier));
        usable().next().ok_or(Reason::NoAddress)?;
        usable()
            .filter_map(|carrier| Some(inner(self.underlay_mtu(*carrier)?, &about, *carrier)))
            .max()
            .ok_or(Reason::NoInterface)
    }

    /// The device of a tunnel: with its MTU, and with the addresses of the
    /// families of pods whose packets go into it.
    ///
    /// # Errors
    /// As [`Self::device_mtu`].
    pub fn device(
        &self,
        tunnel: Tunnel,
        backend: &dyn Backend,
        kind: DeviceKind,
    ) -> Result<Device, Reason> {
        let families = Families::of(self.own);
        let mut device = Device::new(kind, self.device_mtu(backend, tunnel.carriers)?);
        for pods in Family::BOTH {
            let carrier = backend.about().carrier.of(families, pods);
            if carrier.is_some_and(|carrier| tunnel.carriers.contains(&carrier)) {
                let address = self.own.tunnel_address(pods);
                device.addresses.extend(address.map(IpNet::from));
            }
        }
        Ok(device)
    }
}

/// The least MTU IPv6 works with (RFC 8200, section 5).
const IPV6_LEAST: u32 = 1280;

/// What is left of an underlay's MTU; never less than any host takes (RFC 791: 576).
fn inner(underlay: u32, about: &About, carrier: Family) -> u32 {
    underlay.saturating_sub(about.overhead(carrier)).max(576)
}

/// The MTU a route has to state: that of its path, where it is below its device's.
pub fn route_mtu(path: u32, device: u32) -> Option<u32> {
    (path < device).then_some(path)
}

/// What this node tells its peers when it has these back ends, the preferred one first.
pub fn publish(backends: &[Arc<dyn Backend>], own: &Node, underlay: &Underlay) -> NodeData {
    let here = Here { own, underlay };
    let mut data = NodeData {
        ways: backends.iter().map(|b| b.name().into()).collect(),
        mtu: PerFamily::default(),
        ..NodeData::default()
    };
    for family in Family::BOTH {
        if own.address(family).is_some() {
            data.mtu.set(family, here.underlay_mtu(family));
        }
    }
    for backend in backends {
        backend.publish(own, &mut data);
    }
    data
}

/// Names of all back ends, in the order a tie between them is decided where none of
/// them is in use: what encrypts before what does not, what adds less before what adds more, what is
/// programmed before what floods.
pub const NAMES: [&str; 7] = [
    "wireguard",
    "host-gw",
    "static",
    "ipip",
    "vxlan-gpe",
    "vxlan",
    "vxlan-multicast",
];

/// Settings of back ends that have some.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Of `vxlan`.
    pub vxlan: VxlanProgrammed,
    /// Of `vxlan-gpe`.
    pub vxlan_gpe: VxlanGpe,
    /// Of `vxlan-multicast`.
    pub vxlan_multicast: VxlanMulticast,
    /// Of `wireguard`; it cannot be had without keys.
    pub wireguard: Option<Wireguard>,
}

/// The back end of a name; `None` when there is none of that name, or its
/// settings are missing.
pub fn by_name(name: &str, settings: &Settings) -> Option<Arc<dyn Backend>> {
    Some(match name {
        "host-gw" => Arc::new(HostGateway),
        "vxlan" => Arc::new(settings.vxlan.clone()),
        "static" => Arc::new(StaticRoutes),
        "ipip" => Arc::new(IpInIp),
        "vxlan-gpe" => Arc::new(settings.vxlan_gpe.clone()),
        "vxlan-multicast" => Arc::new(settings.vxlan_multicast.clone()),
        "wireguard" => Arc::new(settings.wireguard.clone()?),
        _ => return None,
    })
}
