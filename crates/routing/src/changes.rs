//! Which entries of a plan may be others than before.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::model::{DeviceName, MacAddress, Name, PublicKey, RouteKey};

/// What may have changed of a plan. What is not named has not; what is named need not
/// have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Whether anything may have, named or not.
    pub everything: bool,
    /// Routes.
    pub routes: BTreeSet<RouteKey>,
    /// Neighbours.
    pub neighbours: BTreeSet<(DeviceName, IpAddr)>,
    /// Forwarding entries.
    pub forwarding: BTreeSet<(DeviceName, MacAddress)>,
    /// Peers of WireGuard devices.
    pub tunnel_peers: BTreeSet<(DeviceName, PublicKey)>,
    /// By which back end ranges and addresses are reached.
    pub ways: BTreeSet<IpNet>,
    /// The nodes all that is for.
    pub nodes: BTreeSet<Name>,
}

impl Changes {
    /// Anything may have changed.
    pub fn everything() -> Changes {
        Changes {
            everything: true,
            ..Changes::default()
        }
    }
}
