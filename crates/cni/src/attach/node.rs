//! What the node as a whole needs for its pods.

use ipam::Reserved;
use linux::netconf;
use linux::netlink::Socket;
use linux::sysctl::{Family, Setting};

use super::family;
use crate::error::Error;

/// Lets the node forward packets of the pods' families.
///
/// Switching IPv6 forwarding on makes the kernel ignore router advertisements
/// on interfaces whose `accept_ra` is 1, which would take a node its default
/// route: those are set to 2 ("also when forwarding") first.
pub(super) fn enable_forwarding(socket: &mut Socket, addresses: &[Reserved]) -> Result<(), Error> {
    for address in addresses {
        let family = family(&address.address.addr());
        if netconf::is_forwarding(socket, family)? {
            continue;
        }
        if family == Family::V6 {
            keep_router_advertisements()?;
        }
        Setting::forwarding(family).write(1)?;
    }
    Ok(())
}

fn keep_router_advertisements() -> Result<(), Error> {
    let folder = "/proc/sys/net/ipv6/conf";
    let listing = std::fs::read_dir(folder)
        .map_err(|error| Error::Io(format!("cannot list {folder}: {error}")))?;
    for entry in listing.flatten() {
        let name = entry.file_name();
        let Some(interface) = name
            .to_str()
            .filter(|name| !matches!(*name, "all" | "default"))
        else {
            continue;
        };
        let setting = Setting::of_interface(Family::V6, interface, "accept_ra");
        // An interface may go while we look.
        if setting.read().is_ok_and(|value| value == 1) {
            setting.write_if_present(2)?;
        }
    }
    Ok(())
}
