//! Removes all that routing left in a network namespace.

use ipnet::IpNet;
use linux::netlink::{self, Request, Socket};
use linux::nftables::{Family, Nftables};
use linux::route::{self, Filter};
use linux::rule;

use crate::table::TABLE;

/// Removes the nftables table of routing in the calling thread's network
/// namespace; `false` when there is none.
///
/// # Errors
/// When the kernel cannot be asked or refuses.
pub fn remove_table() -> Result<bool, linux::nftables::Error> {
    Nftables::open()?.remove_table(Family::Inet, TABLE)
}

/// Removes every route of podwire's protocol, in all tables, those of pods
/// included, and every policy rule of that protocol. Returns the destinations of the
/// routes removed. (Devices go with all of podwire's links.)
///
/// # Errors
/// When the kernel cannot be asked or refuses.
pub fn remove_all(socket: &mut Socket) -> Result<Vec<IpNet>, netlink::Error> {
    let routes = route::list(socket, Filter::own())?;
    let rules = rule::list_own(socket)?;
    let mut requests: Vec<Request> = rules.iter().map(rule::delete).collect();
    requests.extend(routes.iter().map(route::delete));
    for outcome in socket.attempt_all(&requests)? {
        match outcome {
            // Gone with its link meanwhile.
            Err(error) if error.not_found() => {}
            outcome => outcome?,
        }
    }
    Ok(routes.into_iter().map(|route| route.destination).collect())
}
