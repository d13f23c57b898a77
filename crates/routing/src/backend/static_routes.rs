//! A route for each pod, for teaching.

use ipnet::IpNet;

use super::host_gateway::gateway;
use super::{Backend, Families, Here};
use crate::model::{Family, Node, RouteKey, State};
use crate::plan::Reason;

/// A route for each pod of each peer, via the peer (`static`): what one would
/// type by hand first. Works where all nodes share a subnet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StaticRoutes;

impl Backend for StaticRoutes {
    fn name(&self) -> &'static str {
        "static"
    }

    fn owns(&self) -> &'static str {
        "one route of protocol 112 for each pod of other nodes"
    }

    fn overhead(&self, _: Family) -> u32 {
        0
    }

    fn carrier(&self, underlay: Families, pods: Family) -> Option<Family> {
        underlay.has(pods).then_some(pods)
    }

    fn send(
        &self,
        here: &Here<'_>,
        peer: &Node,
        range: IpNet,
        state: &mut State,
    ) -> Result<(), Reason> {
        let target = gateway(self, here, peer, Family::of_range(&range))?;
        for pod in peer.pods.iter().filter(|pod| range.contains(*pod)) {
            state.routes.insert(RouteKey::to(IpNet::from(*pod)), target);
        }
        Ok(())
    }
}
