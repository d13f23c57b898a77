//! The network the nodes are on: interfaces and subnets that are not podwire's.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use linux::netlink::{Error, Socket};
use linux::{address, link};

use crate::model::Family;

/// Names of podwire's own interfaces begin with this.
pub const OWN_INTERFACES: &str = "pw";

/// A subnet this node is directly connected to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subnet {
    /// This node's address in it, with the subnet's prefix length.
    pub address: IpNet,
    /// Index of the interface.
    pub interface: u32,
}

/// The interfaces and addresses of this node that are not podwire's own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Underlay {
    /// Subnets this node is directly connected to.
    pub subnets: Vec<Subnet>,
    /// Names and largest packets (bytes) of interfaces, by index.
    pub interfaces: BTreeMap<u32, Interface>,
}

/// An interface of the underlay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its largest packet, bytes.
    pub mtu: u32,
    /// Whether its packets have Ethernet headers.
    pub ethernet: bool,
}

impl Underlay {
    /// Reads the interfaces of the socket's network namespace that are up.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn read(socket: &mut Socket) -> Result<Underlay, Error> {
        let mut underlay = Underlay::default();
        for link in link::list(socket)? {
            if link.up && !link.loopback && !link.name.starts_with(OWN_INTERFACES) {
                let interface = Interface {
                    name: link.name,
                    mtu: link.mtu,
                    ethernet: link.mac.is_some(),
                };
                underlay.interfaces.insert(link.index, interface);
            }
        }
        for address in address::list(socket, None)? {
            let net = address.address;
            // A single address is connected to nothing, and link-local ones
            // are on every link.
            let connected = net.prefix_len() < net.max_prefix_len() && !is_link_local(net.addr());
            if connected && underlay.interfaces.contains_key(&address.link) {
                underlay.subnets.push(Subnet {
                    address: net,
                    interface: address.link,
                });
            }
        }
        underlay
            .subnets
            .sort_by_key(|subnet| (subnet.interface, subnet.address));
        Ok(underlay)
    }

    /// The largest packet every subnet with one of these addresses carries, and
    /// where none of them is on any: every interface. `None` without interfaces.
    pub fn mtu(&self, addresses: &[IpAddr]) -> Option<u32> {
        self.mtu_where(|address| addresses.contains(&address))
    }

    /// The largest packet the subnets of a family's addresses carry; like [`Self::mtu`].
    pub fn mtu_of(&self, addresses: &[IpAddr], family: Family) -> Option<u32> {
        self.mtu_where(|address| Family::of(address) == family && addresses.contains(&address))
    }

    fn mtu_where(&self, is_asked_for: impl Fn(IpAddr) -> bool) -> Option<u32> {
        let asked = self
            .subnets
            .iter()
            .filter(|s| is_asked_for(s.address.addr()));
        let mtus = asked.filter_map(|s| self.interfaces.get(&s.interface).map(|i| i.mtu));
        mtus.min()
            .or_else(|| self.interfaces.values().map(|i| i.mtu).min())
    }

    /// The subnet the kernel would reach an address on; of equal ones that of
    /// the oldest interface.
    pub fn subnet_of(&self, address: IpAddr) -> Option<&Subnet> {
        self.subnets
            .iter()
            .filter(|subnet| subnet.address.contains(&address))
            .max_by_key(|s| (s.address.prefix_len(), std::cmp::Reverse(s.interface)))
    }
}

pub(crate) fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}
