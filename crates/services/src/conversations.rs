//! UDP and SCTP conversations after a change. They have no end that conntrack
//! sees: without help an entry keeps sending a client's packets to an endpoint
//! that is gone, or to nobody, for as long as the client goes on. On demand also
//! TCP connections, which otherwise outlive their endpoint's place in the Service.
//!
//! Level-triggered: not what happened is looked at but what is there. An entry
//! to a frontend stays if its packets reach an endpoint that still serves, and
//! goes otherwise. Entries of other frontends are never touched.

use std::collections::HashSet;

use linux::conntrack::{Connection, Conntrack, Error, Family as ConntrackFamily};

use crate::model::{Backend, Family, FrontendKey, Protocol};
use crate::table::Table;

/// Whether a frontend's conversations need looking after; `cut` is whether
/// those of TCP do.
#[must_use]
pub fn concerns(key: &FrontendKey, cut: bool) -> bool {
    match key.protocol {
        Protocol::Udp | Protocol::Sctp => true,
        Protocol::Tcp => cut,
    }
}

/// Up to so many frontends the kernel is asked for the entries of each; it goes
/// through its whole table each time, but hands over few.
const FEW: usize = 4;

/// Whether the entry of a connection to one of `frontends` is wrong.
#[must_use]
pub fn is_stale(connection: &Connection, frontends: &HashSet<FrontendKey>, table: &Table) -> bool {
    let original = &connection.original;
    let Some(protocol) = Protocol::from_number(original.protocol) else {
        return false;
    };
    let key = FrontendKey {
        address: original.destination,
        protocol,
        port: original.destination_port,
    };
    if !frontends.contains(&key) {
        return false;
    }
    let partner = Backend {
        address: connection.reply.source,
        port: connection.reply.source_port,
    };
    match table.frontend(&key) {
        Some(frontend) => frontend.serving.binary_search(&partner).is_err(),
        // The frontend is gone. What was never translated belongs to a socket
        // of the node itself.
        None => partner.address != key.address || partner.port != key.port,
    }
}

/// Deletes wrong entries of these frontends; returns how many there were.
pub(crate) fn clean(
    conntrack: &mut Conntrack,
    frontends: &HashSet<FrontendKey>,
    table: &Table,
) -> Result<usize, Error> {
    let mut deleted = 0;
    let mut check = |conntrack: &mut Conntrack, connections: Vec<Connection>| {
        for connection in connections {
            if is_stale(&connection, frontends, table) && conntrack.delete(&connection)? {
                deleted += 1;
            }
        }
        Ok(())
    };
    if frontends.len() <= FEW {
        for key in frontends {
            let found = conntrack.list_to(key.address, key.protocol.number(), key.port)?;
            check(conntrack, found)?;
        }
        return Ok(deleted);
    }
    let kinds: HashSet<(Family, Protocol)> = frontends
        .iter()
        .map(|key| (Family::of(key.address), key.protocol))
        .collect();
    for (family, protocol) in kinds {
        let family = match family {
            Family::V4 => ConntrackFamily::V4,
            Family::V6 => ConntrackFamily::V6,
        };
        let found = conntrack.list(family, protocol.number())?;
        check(conntrack, found)?;
    }
    Ok(deleted)
}
