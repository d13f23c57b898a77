//! Back ends this node has no more use for but to take what peers still send by them.

use std::sync::Arc;

use crate::backend::{Backend, Here};
use crate::choose::Told;
use crate::difference::Held;
use crate::model::{Node, State};
use crate::underlay::Underlay;

/// Those of `others`, back ends that are none of this node's, by which a peer may
/// still send to it: the peer names it, and the devices it needs are there.
///
/// A node that goes over to another back end tells its peers so when it sends by the
/// new one. Until they have read that they go on as before, and each says by leaving
/// out the old one's name that it has. Whether a device is there is the kernel's to
/// say, not memory's: the agent may have been started anew in between.
pub fn leaving(
    others: Vec<Arc<dyn Backend>>,
    own: &Node,
    told: &Told,
    underlay: &Underlay,
    held: &Held,
) -> Vec<Arc<dyn Backend>> {
    let here = Here { own, underlay };
    let is_there = |backend: &dyn Backend| {
        let mut state = State::default();
        let devices = backend.node(&here, &mut state).map(|()| state.devices);
        devices.is_ok_and(|devices| {
            let mut names = devices.keys();
            !devices.is_empty() && names.all(|name| held.devices.contains_key(name))
        })
    };
    others
        .into_iter()
        .filter(|backend| told.names(backend.name()) && is_there(backend.as_ref()))
        .collect()
}

/// Whether a peer may send by a back end.
pub(super) fn sends_by(peer: &Node, backend: &str) -> bool {
    let data = peer.data.as_ref();
    data.is_some_and(|data| data.ways.iter().any(|way| &**way == backend))
}

/// What of a node's state it takes to receive.
pub(super) fn receiving(state: State) -> State {
    State {
        devices: state.devices,
        proxies: state.proxies,
        ..State::default()
    }
}
