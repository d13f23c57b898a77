//! A route for each pod, for teaching.

use ipnet::IpNet;

use super::host_gateway::gateway;
use super::{About, Backend, Carrier, Entries, Peer};
use crate::model::{Family, RouteKey};
use crate::plan::Reason;

/// A route for each pod of each peer, via the peer (`static`): what one would
/// type by hand first. Works where all nodes share a subnet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StaticRoutes;

impl Backend for StaticRoutes {
    fn about(&self) -> About {
        About {
            name: "static",
            owns: "one route of protocol 112 for each pod of other nodes",
            overhead: [0, 0],
            carrier: Carrier::Same,
        }
    }

    fn send(&self, peer: &Peer<'_>, range: IpNet, entries: &mut Entries) -> Result<(), Reason> {
        let target = gateway(self, peer, Family::of_range(&range))?;
        let pods = peer.node.pods.iter();
        for pod in pods.filter(|pod| range.contains(*pod)) {
            entries
                .routes
                .push((RouteKey::of_peer(IpNet::from(*pod)), target));
        }
        Ok(())
    }
}
