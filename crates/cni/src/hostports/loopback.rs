//! The way back to the node's loopback addresses, 127.0.0.1 and ::1, from a pod
//! that a mapping leads to.
//!
//! The kernel takes no packet for such an address from a link, translated back or
//! not. For IPv4 the link's `route_localnet` lets it. That alone would open to the
//! pod all that the node's processes serve on loopback (CVE-2020-8558): the
//! table's chain `guard` drops what comes *as sent* for 127.0.0.0/8, and stands
//! before this is set. For IPv6 the kernel drops what comes as sent for ::1 from
//! any link but loopback, before netfilter, and looks such an address up among the
//! routes of the link the packet came by: a local route of the link lets answers
//! in that were translated back. Only `br_netfilter` translates them back before
//! that drop, while they are on a bridge; no answer reaches ::1 there, and what is
//! sent from it is refused.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use linux::link;
use linux::netlink::Socket;
use linux::route::{self, Filter, Kind, Route, TABLE_LOCAL};
use linux::sysctl::Setting;

use super::Mapping;
use crate::configuration::AttachMode;
use crate::error::Error;

const LOOPBACK4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const LOOPBACK6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

/// Whether a mapping of a pod with these addresses is reached at a loopback
/// address of `like`'s family.
fn concerns(like: IpAddr, mappings: &[Mapping], pod: &[IpAddr]) -> bool {
    let same = |address: &IpAddr| address.is_ipv4() == like.is_ipv4();
    pod.iter().any(same)
        && mappings.iter().any(|mapping| {
            mapping
                .host_ip
                .is_none_or(|host| same(&host) && host.is_loopback())
        })
}

/// Whether answers of a pod that is attached so do not come back to ::1.
pub(crate) fn is_unanswered6(attach: AttachMode) -> bool {
    let bridged = Setting::new("bridge/bridge-nf-call-ip6tables");
    attach == AttachMode::Bridge && bridged.read().is_ok_and(|value| value != 0)
}

fn route_of(link: u32) -> Route {
    Route::to(IpNet::from(LOOPBACK6))
        .dev(link)
        .table(TABLE_LOCAL)
        .kind(Kind::Local)
}

/// Lets answers of the pod in, which come by the node's interface `interface`.
/// The mappings are open, and with them the guard.
pub(crate) fn admit(
    socket: &mut Socket,
    interface: &str,
    mappings: &[Mapping],
    pod: &[IpAddr],
) -> Result<(), Error> {
    let [v4, v6] = [LOOPBACK4, LOOPBACK6].map(|address| concerns(address, mappings, pod));
    if !(v4 || v6) {
        return Ok(());
    }
    let Some(link) = link::get(socket, interface)? else {
        // With the interface went all that it could bring.
        return Ok(());
    };
    let mut requests = Vec::new();
    // A bridge has it from its first pod on.
    if v4 && !link.route_localnet {
        requests.push(link::set_route_localnet(link.index));
    }
    if v6 {
        requests.push(route::append(&route_of(link.index)));
    }
    for outcome in socket.attempt_all(&requests)? {
        match outcome {
            // Another pod's, on the same bridge.
            Err(error) if !error.already_exists() => return Err(error.into()),
            _ => {}
        }
    }
    Ok(())
}

/// Whether they are let in.
pub(crate) fn verify(
    socket: &mut Socket,
    interface: &str,
    mappings: &[Mapping],
    pod: &[IpAddr],
) -> Result<(), Error> {
    let [v4, v6] = [LOOPBACK4, LOOPBACK6].map(|address| concerns(address, mappings, pod));
    if !(v4 || v6) {
        return Ok(());
    }
    let Some(link) = link::get(socket, interface)? else {
        return Ok(());
    };
    if v4 && !link.route_localnet {
        return Err(Error::Mismatch(format!(
            "net.ipv4.conf.{interface}.route_localnet is 0, so that mapped ports are not reached \
             at {LOOPBACK4}"
        )));
    }
    if v6 {
        let wanted = route_of(link.index);
        let filter = Filter {
            table: Some(TABLE_LOCAL),
            link: Some(link.index),
            ..Filter::own()
        };
        let found = route::list(socket, filter)?;
        if !found.iter().any(|r| r.destination == wanted.destination) {
            return Err(Error::Mismatch(format!(
                "the local route to {LOOPBACK6} on {interface} is gone, so that mapped ports are \
                 not reached there"
            )));
        }
    }
    Ok(())
}
