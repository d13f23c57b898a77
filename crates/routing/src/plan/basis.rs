//! What the plan of every peer depends on, and the plan of a node without peers.

use std::collections::BTreeMap;
use std::sync::Arc;

use ipnet::IpNet;

use super::claims::sound;
use super::{Plan, Refusal, leaving};
use crate::backend::{Backend, Here};
use crate::model::{Family, LAST_RESORT_METRIC, Node, RouteKey, RouteTarget, State};
use crate::underlay::Underlay;

/// What the plan of every peer depends on.
#[derive(Clone, Debug, Default)]
pub struct Basis {
    /// The back ends of this node, the preferred one first. Each peer is reached by the
    /// best of those it has too ([`choose::common`]) that can reach it.
    pub backends: Vec<Arc<dyn Backend>>,
    /// Back ends it is leaving ([`super::leaving`]): what comes by them is taken, and
    /// nothing sent by them.
    pub leaving: Vec<Arc<dyn Backend>>,
    /// This node.
    pub own: Node,
    /// What it is connected to.
    pub underlay: Underlay,
    /// Routes that concern no peer, and no back end.
    pub further: BTreeMap<RouteKey, RouteTarget>,
}

impl Basis {
    pub(super) fn here(&self) -> Here<'_> {
        Here {
            own: &self.own,
            underlay: &self.underlay,
        }
    }

    /// The plan of a node without peers, and the ranges of its own that can be used.
    pub(super) fn plan(&self) -> (Plan, Vec<IpNet>) {
        let mut plan = Plan::default();
        let here = self.here();
        // Without these a packet for an address no pod has would take the default
        // route, and a router that knows this node as the way to the range would
        // send it back, until its hop limit is used up.
        let mut own_ranges = Vec::new();
        for range in self.own.ranges.iter().map(IpNet::trunc) {
            match sound(&range, &self.underlay.subnets) {
                Ok(()) => {
                    let key = RouteKey {
                        metric: LAST_RESORT_METRIC,
                        ..RouteKey::to(range)
                    };
                    plan.state.routes.insert(key, RouteTarget::Unreachable);
                    own_ranges.push(range);
                }
                Err(reason) => plan.refusals.push(Refusal {
                    node: self.own.name.clone(),
                    range,
                    reason,
                }),
            }
        }
        for backend in &self.backends {
            let mut state = State::default();
            match backend.node(&here, &mut state) {
                Ok(()) => plan.state.extend(state),
                Err(reason) => plan.unusable.push((backend.name(), reason)),
            }
        }
        for backend in &self.leaving {
            let mut state = State::default();
            if backend.node(&here, &mut state).is_ok() {
                plan.state.extend(leaving::receiving(state));
            }
        }
        plan.state.routes.extend(&self.further);
        for family in Family::BOTH {
            let backends = self.backends.iter();
            let mtus = backends.filter_map(|b| here.mtu(b.as_ref(), family));
            plan.mtu.set(family, mtus.min());
        }
        (plan, own_ranges)
    }
}
