//! The forwarding tables of the devices between nodes, as the kernel has them
//! now: for `podwire inspect fdb`.

use std::collections::BTreeMap;
use std::net::IpAddr;

use linux::fdb::{self, Lifetime};
use linux::link::{self, MacAddress};
use linux::netlink;
use routing::model::DEVICE_PREFIX;
use serde::{Deserialize, Serialize};

/// An entry of a forwarding table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// Whose table it is in.
    pub table: Table,
    /// The device that has the table.
    pub device: String,
    /// Destination of frames; all zero: whatever no other entry is for.
    pub mac: String,
    /// Where they go: a port of the bridge, or an other end of the tunnel.
    pub to: String,
    /// Where the entry is from.
    pub origin: Origin,
    /// The node at the tunnel's other end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<Box<str>>,
}

/// Whose table an entry is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Table {
    /// A bridge's: through which port.
    Bridge,
    /// A VXLAN device's: to which other end.
    Tunnel,
}

/// Where an entry is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Origin {
    /// Learned from a frame; it ages.
    Learned,
    /// Entered by a program, to stay.
    Programmed,
    /// Part of the device: the address of a bridge or a port, a tunnel's group.
    Device,
}

/// Reads the tables of routing's devices. The other ends of tunnels are known by
/// the addresses of nodes.
///
/// # Errors
/// When the kernel cannot be asked.
pub(crate) fn read(
    socket: &mut netlink::Socket,
    node_at: impl Fn(IpAddr) -> Option<Box<str>>,
) -> Result<Vec<Entry>, netlink::Error> {
    let links = link::list(socket)?;
    let devices: BTreeMap<u32, String> = links
        .into_iter()
        .filter(|link| link.name.starts_with(DEVICE_PREFIX))
        .map(|link| (link.index, link.name))
        .collect();
    let mut found = fdb::list(socket, None)?;
    found.retain(|entry| devices.contains_key(&entry.link));
    Ok(entries(&devices, &found, node_at))
}

fn entries(
    devices: &BTreeMap<u32, String>,
    found: &[fdb::Entry],
    node_at: impl Fn(IpAddr) -> Option<Box<str>>,
) -> Vec<Entry> {
    // What is behind a bridge's port is told by the tunnel that is the port.
    let behind: BTreeMap<(u32, MacAddress), IpAddr> = found
        .iter()
        .filter_map(|entry| Some(((entry.link, entry.mac), entry.remote?.address)))
        .collect();
    let name = |index: u32| devices.get(&index).cloned();
    let mut entries: Vec<Entry> = found
        .iter()
        .filter_map(|entry| {
            let learned = entry.lifetime == Lifetime::Learned;
            let own = entry.mac.0 == [0; 6];
            let (table, device, to, end) = match (entry.remote, entry.bridge) {
                (Some(remote), _) => {
                    let to = remote.address.to_string();
                    (Table::Tunnel, entry.link, to, Some(remote.address))
                }
                (None, Some(bridge)) if !entry.of_device => {
                    let end = behind.get(&(entry.link, entry.mac)).copied();
                    (Table::Bridge, bridge, name(entry.link)?, end)
                }
                // What a device listens to, not where it sends.
                (None, _) => return None,
            };
            Some(Entry {
                table,
                device: name(device)?,
                mac: entry.mac.to_string(),
                to,
                origin: match (learned, table) {
                    (true, _) => Origin::Learned,
                    (false, Table::Tunnel) if !own => Origin::Programmed,
                    (false, _) => Origin::Device,
                },
                node: end.and_then(&node_at),
            })
        })
        .collect();
    // A bridge lists its entries once more for its untagged VLAN.
    entries.sort();
    entries.dedup();
    entries
}
