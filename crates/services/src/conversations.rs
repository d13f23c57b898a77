//! UDP and SCTP conversations after a change. They have no end that conntrack
//! sees: without help an entry keeps sending a client's packets to an endpoint
//! that is gone, or to nobody, for as long as the client goes on.
//!
//! Level-triggered: not what happened is looked at but what is there. An entry
//! to a frontend stays if its packets reach an endpoint that still serves, and
//! goes otherwise. Entries of other frontends are never touched.

use std::collections::HashSet;

use linux::conntrack::{Connection, Conntrack, Error, Family as ConntrackFamily};

use crate::model::{Backend, Family, FrontendKey, Protocol};
use crate::table::Table;

/// Whether a frontend's conversations need looking after.
#[must_use]
pub fn concerns(key: &FrontendKey) -> bool {
    matches!(key.protocol, Protocol::Udp | Protocol::Sctp)
}

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
    let kinds: HashSet<(Family, Protocol)> = frontends
        .iter()
        .map(|key| (Family::of(key.address), key.protocol))
        .collect();
    let mut deleted = 0;
    for (family, protocol) in kinds {
        let family = match family {
            Family::V4 => ConntrackFamily::V4,
            Family::V6 => ConntrackFamily::V6,
        };
        for connection in conntrack.list(family, protocol.number())? {
            if is_stale(&connection, frontends, table) && conntrack.delete(&connection)? {
                deleted += 1;
            }
        }
    }
    Ok(deleted)
}
