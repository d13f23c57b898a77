//! Removing everything podwire made in this network namespace.

use std::path::{Path, PathBuf};

use cni::bridge_guard;
use ipnet::IpNet;
use linux::link;
use linux::netlink::Socket;
use linux::nftables::{Family, Nftables};
use routing::underlay::OWN_INTERFACES;
use services::ProxyMode;
use services::compile::TABLE;

use crate::error::Error;

/// What was there and is gone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// The CNI configuration.
    pub conflist: Option<PathBuf>,
    /// Destinations of routes.
    pub routes: Vec<IpNet>,
    /// Whether there was an nftables table.
    pub table: bool,
    /// Whether there was one of DNS.
    pub dns: bool,
    /// Whether there was one of the pods' mapped ports.
    pub host_ports: bool,
    /// Whether there was one on bridges.
    pub bridge_guard: bool,
    /// Proxies other than nftables that had something there.
    pub proxies: Vec<ProxyMode>,
    /// Names of interfaces.
    pub interfaces: Vec<String>,
}

/// Removes what podwire made: the CNI configuration (first, so that no new pod
/// comes), routes and policy rules of protocol 112, the nftables tables `inet podwire`,
/// `inet podwire_routing`, `inet podwire_dns` and `inet podwire_hostports`, what
/// proxies of other modes made, interfaces whose names begin with `pw`, and, when those
/// are gone, the table `bridge podwire_bridge`. Pods lose their network.
///
/// What is not there is no error, so it can be repeated.
///
/// # Errors
/// When something cannot be listed or removed; what was removed so far stays removed.
pub fn cleanup(cni_conf_dir: &Path) -> Result<Removed, Error> {
    let mut removed = Removed {
        conflist: cni::install::remove_config_list(cni_conf_dir)?,
        ..Removed::default()
    };
    let mut socket = Socket::open_route()?;
    removed.routes = routing::apply::remove_all(&mut socket)?;
    routing::apply::remove_table()?;
    let mut nftables = Nftables::open()?;
    removed.table = nftables.remove_table(Family::Inet, TABLE)?;
    removed.host_ports = nftables.remove_table(Family::Inet, cni::hostports::TABLE)?;
    removed.dns = crate::dns::remove_table()?;
    removed.proxies = services::settings::remove_all()?;
    for link in link::list(&mut socket)? {
        if !link.name.starts_with(OWN_INTERFACES) {
            continue;
        }
        match socket.execute(&link::delete(link.index)) {
            Ok(()) => removed.interfaces.push(link.name),
            // Its other end was ours too, or its pod went.
            Err(error) if error.not_found() => {}
            Err(error) => return Err(error.into()),
        }
    }
    removed.bridge_guard = bridge_guard::remove()?;
    Ok(removed)
}
