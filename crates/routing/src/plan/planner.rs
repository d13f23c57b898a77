//! The plan as the sum of what each peer takes, worked out anew only for the peers
//! that a change concerns.
//!
//! What it takes to reach a peer depends on what all share ([`Basis`]), on the peer
//! itself, on who has which address on the underlay, and on what peers before it by
//! name were given: ranges, and the identities of tunnels' ends. Who holds what is
//! kept by what is held, so that those who want the same are found. A peer that
//! changes has itself worked out anew and those who share an address with it or hold
//! it in their range; one that is given something it had not, or no more what it had,
//! those after it who want that too. In the order of names each is worked out once.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::basis::Basis;
use super::claims::{Holders, Identity, Ranges, not_own, sound};
use super::{Plan, Reason, Refusal, Way, leaving};
use crate::backend::{Accepted, Backend, Entries, Peer};
use crate::changes::Changes;
use crate::choose::{self, Told};
use crate::difference::Held;
use crate::model::{
    self, DeviceName, Family, MacAddress, Name, Node, PerFamily, PublicKey, RouteKey, RouteTable,
    RouteTarget, State,
};

/// Makes plans, each from the last one.
#[derive(Debug)]
pub struct Planner {
    basis: Basis,
    /// What a node without peers needs, and its ranges that can be used.
    base: State,
    own_ranges: Vec<IpNet>,
    /// How many refusals are of this node's own ranges: the first ones.
    own_refusals: usize,
    peers: BTreeMap<Name, Known>,
    told: Told,
    /// Whose addresses on the underlay are, this node's included.
    addresses: Holders<IpAddr>,
    /// What peers claim, and which of it they were given.
    claimed: Ranges,
    given: Ranges,
    /// Who wants which identity; the first by name has it.
    wanted: Holders<Identity>,
    /// Peers that are to be worked out anew.
    open: BTreeSet<Name>,
    /// Peers of which two back ends are as good as each other, so that it counts by which
    /// the kernel sends.
    tied: BTreeSet<Name>,
    /// Routes of pods to peers themselves, by family.
    to_nodes: [usize; 2],
    plan: Plan,
    changes: Changes,
}

/// A peer, and what of the plan is there for it.
#[derive(Debug, Default)]
struct Known {
    node: Arc<Node>,
    routes: Vec<RouteKey>,
    neighbours: Vec<(DeviceName, IpAddr)>,
    forwarding: Vec<(DeviceName, MacAddress)>,
    tunnel_peers: Vec<(DeviceName, PublicKey)>,
    ways: Vec<IpNet>,
    is_refused: bool,
    given: Vec<IpNet>,
    wanted: Vec<Identity>,
}

/// Entries on their way into the plan, those of many peers at once.
#[derive(Debug, Default)]
struct Added {
    entries: Entries,
    accepted: Vec<Accepted>,
    ways: Vec<(IpNet, Way)>,
}

/// What a peer adds to the plan.
#[derive(Debug, Default)]
struct Part {
    entries: Entries,
    accepted: Vec<Accepted>,
    ways: Vec<(IpNet, Way)>,
    refusals: Vec<Refusal>,
    given: Vec<IpNet>,
    wanted: Vec<Identity>,
    /// Those of them that no peer before it wants.
    identities: Vec<Identity>,
    is_tied: bool,
}

impl Default for Planner {
    fn default() -> Planner {
        Planner::new()
    }
}

impl Planner {
    /// Without peers, and without anything known of this node.
    pub fn new() -> Planner {
        Planner {
            basis: Basis::default(),
            base: State::default(),
            own_ranges: Vec::new(),
            own_refusals: 0,
            peers: BTreeMap::new(),
            told: Told::default(),
            addresses: Holders::default(),
            claimed: Ranges::default(),
            given: Ranges::default(),
            wanted: Holders::default(),
            open: BTreeSet::new(),
            tied: BTreeSet::new(),
            to_nodes: [0, 0],
            plan: Plan::default(),
            changes: Changes::everything(),
        }
    }

    /// What all plans depend on is this now: all is planned anew.
    pub fn set_basis(&mut self, basis: Basis) {
        let before = mem::replace(&mut self.basis, basis).own;
        for address in &before.addresses {
            self.addresses.remove(address, &before.name);
        }
        for address in &self.basis.own.addresses {
            self.addresses.insert(*address, &self.basis.own.name);
        }
        let (plan, own_ranges) = self.basis.plan();
        self.base.clone_from(&plan.state);
        self.own_ranges = own_ranges;
        self.own_refusals = plan.refusals.len();
        self.plan = plan;
        self.to_nodes = [0, 0];
        self.given = Ranges::default();
        self.wanted = Holders::default();
        for known in self.peers.values_mut() {
            *known = Known {
                node: mem::take(&mut known.node),
                ..Known::default()
            };
        }
        self.open.extend(self.peers.keys().cloned());
        self.changes = Changes::everything();
    }

    /// What all plans depend on.
    pub fn basis(&self) -> &Basis {
        &self.basis
    }

    /// A peer is so now; of its ranges the first of each family counts.
    pub fn set_peer(&mut self, mut node: Node) {
        node.ranges = Family::BOTH
            .into_iter()
            .filter_map(|family| node.range(family))
            .collect();
        let name = node.name.clone();
        match self.peers.get(&name).map(|known| Arc::clone(&known.node)) {
            Some(before) if *before == node => return,
            Some(before) => {
                self.reopen(&name);
                self.announce(&name, &before, &node);
            }
            None => {
                self.open.insert(name.clone());
                self.announce(&name, &Node::default(), &node);
            }
        }
        self.peers.entry(name).or_default().node = Arc::new(node);
    }

    /// There is no peer of this name any more.
    pub fn remove_peer(&mut self, name: &str) {
        let Some((name, known)) = self.peers.get_key_value(name) else {
            return;
        };
        let (name, node) = (name.clone(), Arc::clone(&known.node));
        self.reopen(&name);
        self.tied.remove(&name);
        self.announce(&name, &node, &Node::default());
        if let Some(known) = self.peers.remove(&name) {
            self.give(&name, known.given, &[]);
            self.want(&name, known.wanted, &[]);
        }
        self.open.remove(&name);
    }

    /// The peers, by name.
    pub fn peers(&self) -> impl ExactSizeIterator<Item = &Node> {
        self.peers.values().map(|known| &*known.node)
    }

    /// The peer of a name.
    pub fn peer(&self, name: &str) -> Option<&Node> {
        self.peers.get(name).map(|known| &*known.node)
    }

    /// What peers tell of their back ends.
    pub fn told(&self) -> &Told {
        &self.told
    }

    /// The first node by name that has an address on the underlay.
    pub fn node_at(&self, address: IpAddr) -> Option<&Name> {
        self.addresses.of(&address).first()
    }

    /// The plan, once what is open has been worked out. Where two back ends are as good as
    /// each other this node goes on by the one its kernel sends by (`held`): while a
    /// cluster changes from one to another.
    pub fn plan(&mut self, held: &Held) -> &Plan {
        for name in std::mem::take(&mut self.tied) {
            self.reopen(&name);
        }
        // None that has been worked out is opened again meanwhile, so that all may be
        // added last.
        let mut added = Added::default();
        while let Some(name) = self.open.pop_first() {
            self.work_out(&name, held, &mut added);
        }
        self.plan.add(added);
        let sending = self.own_ranges.iter().filter(|range| {
            let family = Family::of_range(range);
            self.to_nodes[place(family)] > 0
        });
        self.plan.state.rules = sending.copied().map(model::rule).collect();
        &self.plan
    }

    /// The plan as far as it has been worked out ([`Self::plan`]), and what may have
    /// changed of it since [`Self::took_up`].
    pub fn planned(&self) -> (&Plan, &Changes) {
        (&self.plan, &self.changes)
    }

    /// What has changed has been taken up by whom it concerns.
    pub fn took_up(&mut self) {
        self.changes = Changes::default();
    }

    /// The plan alone.
    pub fn into_plan(mut self, held: &Held) -> Plan {
        self.plan(held);
        self.plan
    }

    /// Has a peer worked out anew: what is there for it is taken out of the plan.
    fn reopen(&mut self, name: &Name) {
        if !self.open.insert(name.clone()) {
            return;
        }
        let Some(known) = self.peers.get_mut(name) else {
            return;
        };
        let Plan { state, ways, .. } = &mut self.plan;
        for key in &known.routes {
            if key.table == RouteTable::OfPods {
                self.to_nodes[place(Family::of_range(&key.destination))] -= 1;
            }
            state.routes.remove(key);
            let base = self.base.routes.get_key_value(key);
            state.routes.extend(base);
        }
        for key in &known.neighbours {
            state.neighbours.remove(key);
        }
        for key in &known.forwarding {
            state.forwarding.remove(key);
        }
        for key in &known.tunnel_peers {
            state.tunnel_peers.remove(key);
        }
        for range in &known.ways {
            ways.remove(range);
        }
        if mem::take(&mut known.is_refused) {
            let refused = refusals_of(&self.plan.refusals, self.own_refusals, name);
            self.plan.refusals.drain(refused);
        }
        let (routes, ways) = (mem::take(&mut known.routes), mem::take(&mut known.ways));
        let neighbours = mem::take(&mut known.neighbours);
        let forwarding = mem::take(&mut known.forwarding);
        let tunnel_peers = mem::take(&mut known.tunnel_peers);
        if !self.changes.everything {
            self.changes.routes.extend(routes);
            self.changes.neighbours.extend(neighbours);
            self.changes.forwarding.extend(forwarding);
            self.changes.tunnel_peers.extend(tunnel_peers);
            self.changes.ways.extend(ways);
            self.changes.nodes.insert(name.clone());
        }
    }

    /// Has those worked out anew whom it concerns what a peer says of itself.
    fn announce(&mut self, name: &Name, before: &Node, now: &Node) {
        if let Some(data) = &before.data {
            self.told.remove(data);
        }
        if let Some(data) = &now.data {
            self.told.add(data);
        }
        for range in before
            .ranges
            .iter()
            .filter(|range| !now.ranges.contains(range))
        {
            self.claimed.remove(range, name);
        }
        for range in now
            .ranges
            .iter()
            .filter(|range| !before.ranges.contains(range))
        {
            self.claimed.insert(*range, name);
        }
        let gone = before
            .addresses
            .iter()
            .filter(|a| !now.addresses.contains(a));
        let new = now
            .addresses
            .iter()
            .filter(|a| !before.addresses.contains(a));
        let mut shared = Vec::new();
        for address in gone.clone() {
            if !self.addresses.remove(address, name) {
                shared.push(*address);
            }
        }
        for address in new.clone() {
            if !self.addresses.insert(*address, name) {
                shared.push(*address);
            }
        }
        let mut concerned: Vec<Name> = Vec::new();
        for address in shared {
            concerned.extend(self.addresses.of(&address).iter().cloned());
        }
        for address in gone.chain(new) {
            let around = self.claimed.overlapping(IpNet::from(*address));
            concerned.extend(around.flat_map(|(_, names)| names).cloned());
        }
        concerned.retain(|other| other != name);
        for other in concerned {
            // This node is no peer.
            if self.peers.contains_key(&other) {
                self.reopen(&other);
            }
        }
    }

    /// A peer has been given ranges; those after it are worked out anew to which that
    /// makes a difference.
    fn give(&mut self, name: &Name, before: Vec<IpNet>, now: &[IpNet]) {
        let mut changed = Vec::new();
        for range in before.iter().filter(|range| !now.contains(range)) {
            self.given.remove(range, name);
            changed.push(*range);
        }
        for range in now.iter().filter(|range| !before.contains(range)) {
            self.given.insert(*range, name);
            changed.push(*range);
        }
        for range in changed {
            let claims = self.claimed.overlapping(range);
            let later = claims
                .flat_map(|(_, names)| names)
                .filter(|other| *other > name);
            for other in later.cloned().collect::<Vec<_>>() {
                self.reopen(&other);
            }
        }
    }

    /// The same of identities.
    fn want(&mut self, name: &Name, before: Vec<Identity>, now: &[Identity]) {
        let mut changed = Vec::new();
        for identity in before.iter().filter(|identity| !now.contains(identity)) {
            self.wanted.remove(identity, name);
            changed.push(*identity);
        }
        for identity in now.iter().filter(|identity| !before.contains(identity)) {
            if !self.wanted.insert(*identity, name) {
                changed.push(*identity);
            }
        }
        for identity in changed {
            let later = self
                .wanted
                .of(&identity)
                .iter()
                .filter(|other| *other > name);
            for other in later.cloned().collect::<Vec<_>>() {
                self.reopen(&other);
            }
        }
    }

    /// Works out a peer, all before it having been.
    fn work_out(&mut self, name: &Name, held: &Held, added: &mut Added) {
        let Some(known) = self.peers.get_mut(name) else {
            return;
        };
        let (given, wanted) = (mem::take(&mut known.given), mem::take(&mut known.wanted));
        let node = Arc::clone(&known.node);
        let part = self.part(&node, held);
        if part.is_tied {
            self.tied.insert(name.clone());
        }
        self.give(name, given, &part.given);
        self.want(name, wanted, &part.wanted);
        self.enter(name, part, added);
    }

    /// Notes what a peer takes, and hands on what is to be added to the plan.
    fn enter(&mut self, name: &Name, part: Part, added: &mut Added) {
        let Some(known) = self.peers.get_mut(name) else {
            return;
        };
        let Entries {
            routes,
            neighbours,
            forwarding,
        } = part.entries;
        known.given = part.given;
        known.wanted = part.wanted;
        known.routes = routes.iter().map(|(key, _)| *key).collect();
        known.neighbours = neighbours.iter().map(|(key, _)| *key).collect();
        known.forwarding = forwarding.iter().map(|(key, _)| *key).collect();
        known.tunnel_peers = part.accepted.iter().map(|(key, _)| *key).collect();
        known.ways = part.ways.iter().map(|(range, _)| *range).collect();
        known.is_refused = !part.refusals.is_empty();
        if !self.changes.everything {
            self.changes.routes.extend(&known.routes);
            self.changes.neighbours.extend(&known.neighbours);
            self.changes.forwarding.extend(&known.forwarding);
            self.changes.tunnel_peers.extend(&known.tunnel_peers);
            self.changes.ways.extend(&known.ways);
            self.changes.nodes.insert(name.clone());
        }
        for key in &known.routes {
            if key.table == RouteTable::OfPods {
                self.to_nodes[place(Family::of_range(&key.destination))] += 1;
            }
        }
        added.entries.routes.extend(routes);
        added.entries.neighbours.extend(neighbours);
        added.entries.forwarding.extend(forwarding);
        added.accepted.extend(part.accepted);
        added.ways.extend(part.ways);
        if known.is_refused {
            let at = refusals_of(&self.plan.refusals, self.own_refusals, name).start;
            self.plan.refusals.splice(at..at, part.refusals);
        }
    }

    /// What it takes to reach a peer, and to be reached by it.
    fn part(&self, node: &Node, held: &Held) -> Part {
        let mut part = Part::default();
        let basis = &self.basis;
        let subnets = &basis.underlay.subnets;
        let mut ranges = Vec::new();
        for range in node.ranges.iter().map(IpNet::trunc) {
            let checked = sound(&range, subnets)
                .and_then(|()| not_own(&basis.own, node, &range, subnets))
                .and_then(|()| self.given.free(&range, &node.name))
                .and_then(|()| self.addresses.outside(&range));
            match checked {
                Ok(()) => ranges.push(range),
                Err(reason) => part.refuse(node, range, reason),
            }
        }
        let peer = Peer {
            here: basis.here(),
            node,
        };
        let addresses = node.addresses.iter().copied();
        let addresses: Vec<IpAddr> = addresses
            .filter(|address| self.node_at(*address) == Some(&node.name))
            .filter(|address| {
                let family = Family::of(*address);
                let mut own = self.own_ranges.iter();
                own.any(|range| Family::of_range(range) == family)
            })
            .collect();
        // What the peer's own processes send comes from its addresses.
        let mut sources = ranges.clone();
        sources.extend(addresses.iter().copied().map(IpNet::from));
        let is_tied = Cell::new(false);
        let common = choose::common(&basis.backends, node.data.as_ref(), |backend| {
            is_tied.set(true);
            let mut ranges = ranges.iter();
            ranges.any(|range| sends_by(backend, &peer, *range, held))
        });
        part.is_tied = is_tied.get();
        let mut usable = Vec::new();
        for backend in common {
            let barred = self.accept(backend, &peer, &sources, &mut part).err();
            usable.push((backend, barred));
        }
        let leaving = basis.leaving.iter().map(Arc::as_ref);
        for backend in leaving.filter(|backend| leaving::sends_by(node, backend.name())) {
            // Whoever is barred is not heard.
            let _ = self.accept(backend, &peer, &sources, &mut part);
        }
        let mut by_family = PerFamily::default();
        for range in ranges {
            match self.reach(usable.iter(), &peer, range, &mut part) {
                Ok(place) => {
                    part.given.push(range);
                    by_family.set(Family::of_range(&range), Some(place));
                    part.reached(node, range, usable[place].0);
                }
                Err(reason) => part.refuse(node, range, reason),
            }
        }
        for address in addresses {
            let family = Family::of(address);
            let (first, last) = match (by_family.get(family), node.range(family)) {
                (Some(place), _) => (place, place + 1),
                // It has no pods of the family, but its processes may talk to ours.
                (None, None) => (0, usable.len()),
                (None, Some(_)) => continue,
            };
            let before = part.entries.lengths();
            let usable = &usable[first..last];
            // Who cannot be reached that way is reached as any other host.
            if let Ok(place) = self.reach(usable.iter(), &peer, IpNet::from(address), &mut part)
                && part.lead_to_node(address, before)
            {
                part.reached(node, IpNet::from(address), usable[place].0);
            }
        }
        part.entries.once_each();
        part
    }

    /// Has what a peer sends by a back end taken.
    ///
    /// # Errors
    /// That another node has its identity.
    fn accept(
        &self,
        backend: &dyn Backend,
        peer: &Peer<'_>,
        sources: &[IpNet],
        part: &mut Part,
    ) -> Result<(), Reason> {
        // Whether a peer can send this way is its own plan's question.
        if let Ok(Some((key, tunnel_peer))) = backend.accept(peer, sources) {
            self.identify(Identity::Key(key.0, key.1), peer.node, part)?;
            part.accepted.push((key, tunnel_peer));
        }
        Ok(())
    }

    /// Enters what it takes to reach a range by the first back end that can, of which it
    /// gives the place.
    fn reach<'b>(
        &self,
        backends: impl Iterator<Item = &'b (&'b dyn Backend, Option<Reason>)>,
        peer: &Peer<'_>,
        range: IpNet,
        part: &mut Part,
    ) -> Result<usize, Reason> {
        let before = part.entries.lengths();
        let mut last = None;
        for (place, (backend, barred)) in backends.enumerate() {
            let sent = match barred {
                Some(reason) => Err(reason.clone()),
                None => backend.send(peer, range, &mut part.entries),
            };
            let sent = sent.and_then(|()| {
                for at in before.2..part.entries.forwarding.len() {
                    let (device, mac) = part.entries.forwarding[at].0;
                    self.identify(Identity::Mac(device, mac), peer.node, part)?;
                }
                Ok(())
            });
            match sent {
                Ok(()) => return Ok(place),
                // The last one tried is the one that is least choosy.
                Err(refused) => last = Some(refused),
            }
            part.entries.truncate(before);
        }
        let theirs = || peer.node.data.as_ref().map(|data| data.ways.clone());
        Err(last.unwrap_or_else(|| Reason::NothingInCommon {
            theirs: theirs().unwrap_or_default(),
        }))
    }

    /// Whether an identity is a peer's: no node before it wants it too.
    fn identify(&self, identity: Identity, node: &Node, part: &mut Part) -> Result<(), Reason> {
        if part.identities.contains(&identity) {
            return Ok(());
        }
        if !part.wanted.contains(&identity) {
            part.wanted.push(identity);
        }
        match self.wanted.before(&identity, &node.name) {
            Some(other) => Err(identity.taken(other)),
            None => {
                part.identities.push(identity);
                Ok(())
            }
        }
    }
}

impl Part {
    fn refuse(&mut self, node: &Node, range: IpNet, reason: Reason) {
        self.refusals.push(Refusal {
            node: node.name.clone(),
            range,
            reason,
        });
    }

    fn reached(&mut self, node: &Node, range: IpNet, backend: &dyn Backend) {
        let way = Way {
            node: node.name.clone(),
            backend: backend.name(),
        };
        self.ways.push((range, way));
    }

    /// Has pods' packets to an address of a peer take the tunnel its pods' packets
    /// take, given what it takes to reach the address as if it were a pod's, behind
    /// what was there `before`: the answers of its processes to pods come through the
    /// tunnel too, and what its processes send with this address is answered the same
    /// way.
    ///
    /// Without a tunnel the peer is reached directly already, and nothing is entered.
    fn lead_to_node(&mut self, address: IpAddr, before: (usize, usize, usize)) -> bool {
        let routes = self.entries.routes.drain(before.0..);
        let target = routes
            .map(|(_, target)| target)
            .find_map(|target| match target {
                RouteTarget::Device {
                    device,
                    next_hop,
                    mtu,
                    ..
                } => Some(RouteTarget::Device {
                    device,
                    next_hop,
                    // Only packets that have a source are routed by this table.
                    source: None,
                    mtu,
                }),
                _ => None,
            });
        match target {
            Some(target) => self
                .entries
                .routes
                .push((RouteKey::of_node(address), target)),
            None => self.entries.truncate(before),
        }
        target.is_some()
    }
}

impl Entries {
    /// How many routes, neighbours and forwarding entries there are.
    fn lengths(&self) -> (usize, usize, usize) {
        (
            self.routes.len(),
            self.neighbours.len(),
            self.forwarding.len(),
        )
    }

    /// Leaves each entry once: an address of the peer itself often takes what its
    /// pods' range takes.
    fn once_each(&mut self) {
        leave_once(&mut self.routes);
        leave_once(&mut self.neighbours);
        leave_once(&mut self.forwarding);
    }

    /// Drops what came after so many.
    fn truncate(&mut self, (routes, neighbours, forwarding): (usize, usize, usize)) {
        self.routes.truncate(routes);
        self.neighbours.truncate(neighbours);
        self.forwarding.truncate(forwarding);
    }
}

impl Plan {
    fn add(&mut self, added: Added) {
        let Entries {
            routes,
            neighbours,
            forwarding,
        } = added.entries;
        add(&mut self.state.routes, routes);
        add(&mut self.state.neighbours, neighbours);
        add(&mut self.state.forwarding, forwarding);
        add(&mut self.state.tunnel_peers, added.accepted);
        add(&mut self.ways, added.ways);
    }
}

/// Adds entries to a map, which they replace. Many are sorted and put in all at once,
/// which goes through the whole map; a few are put in one by one.
fn add<K: Ord, V>(map: &mut BTreeMap<K, V>, entries: Vec<(K, V)>) {
    if entries.len() < map.len() {
        map.extend(entries);
    } else {
        map.append(&mut entries.into_iter().collect());
    }
}

fn leave_once<K: Ord + Copy, V>(entries: &mut Vec<(K, V)>) {
    entries.sort_by_key(|(key, _)| *key);
    entries.dedup_by_key(|(key, _)| *key);
}

/// Whether the kernel already sends packets for a range of a peer by a back end.
fn sends_by(backend: &dyn Backend, peer: &Peer<'_>, range: IpNet, held: &Held) -> bool {
    let mut entries = Entries::default();
    let is_there = |(key, to): &(RouteKey, RouteTarget)| held.routes.get(key) == Some(&Some(*to));
    backend.send(peer, range, &mut entries).is_ok() && entries.routes.iter().any(is_there)
}

/// Which of the refusals, those behind the first `own`, are a peer's.
fn refusals_of(refusals: &[Refusal], own: usize, name: &Name) -> std::ops::Range<usize> {
    let peers = refusals.get(own..).unwrap_or_default();
    let first = own + peers.partition_point(|refusal| refusal.node < *name);
    let last = own + peers.partition_point(|refusal| refusal.node <= *name);
    first..last
}

const fn place(family: Family) -> usize {
    match family {
        Family::V4 => 0,
        Family::V6 => 1,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;
    use crate::backend::{Settings, VxlanMulticast, Wireguard, by_name, publish};
    use crate::model::PrivateKey;
    use crate::plan::plan_on;
    use crate::underlay::{Interface, Subnet, Underlay};
    use crate::ways::{changed_ways, ways};

    /// Back ends of nodes, in the order they prefer them.
    const WAYS: [&[&str]; 10] = [
        &["vxlan"],
        &["vxlan", "host-gw"],
        &["host-gw", "vxlan"],
        &["wireguard"],
        &["wireguard", "vxlan"],
        &["vxlan-gpe", "host-gw"],
        &["ipip"],
        &["static"],
        &["vxlan-multicast"],
        &["vxlan-multicast", "vxlan", "wireguard"],
    ];
    /// Some are in ranges of pods, some this node's.
    const ADDRESSES: [&str; 9] = [
        "192.168.64.11",
        "192.168.64.12",
        "192.168.64.13",
        "192.168.65.14",
        "10.200.2.9",
        "10.201.0.1",
        "fd00:64::12",
        "fd00:64::13",
        "fd00:200:0:2::9",
    ];
    /// Some overlap, some are none for pods.
    const RANGES: [&str; 10] = [
        "10.200.1.0/24",
        "10.200.2.0/24",
        "10.200.2.0/25",
        "10.200.2.128/25",
        "10.200.0.0/22",
        "10.200.3.77/24",
        "192.168.64.0/25",
        "fd00:200:0:2::/64",
        "fd00:200:0:3::/64",
        "fd00:200::/46",
    ];

    fn made(ways: &[&str], key: u8) -> Vec<Arc<dyn Backend>> {
        let settings = Settings {
            wireguard: Some(Wireguard {
                private_key: PrivateKey::from_bytes([key; 32]),
                public_key: PublicKey([key; 32]),
                port: 51820,
            }),
            vxlan_multicast: VxlanMulticast {
                cluster: vec![
                    "10.200.0.0/16".parse().unwrap(),
                    "fd00:200::/48".parse().unwrap(),
                ],
                ..VxlanMulticast::default()
            },
            ..Settings::default()
        };
        let make = |way: &&str| by_name(way, &settings).expect("a name of a back end");
        ways.iter().map(make).collect()
    }

    fn underlay(mtu: u32) -> Underlay {
        let subnets = ["192.168.64.11/24", "fd00:64::11/64"];
        Underlay {
            subnets: subnets
                .map(|address| Subnet {
                    address: address.parse().unwrap(),
                    interface: 2,
                })
                .into(),
            interfaces: BTreeMap::from([(
                2,
                Interface {
                    name: "eth0".to_owned(),
                    mtu,
                    ethernet: true,
                },
            )]),
        }
    }

    prop_compose! {
        /// Any peer. Of hardware addresses, keys and names there are few.
        fn any_peer()(
            name in select(vec!["a", "b", "c", "d", "e"]),
            addresses in prop::collection::vec(select(&ADDRESSES[..]), 0..3),
            ranges in prop::collection::vec(select(&RANGES[..]), 0..3),
            ways in prop::option::weighted(0.9, select(&WAYS[..])),
            identity in 0_u8..5,
            mtu in select(vec![1300, 1500]),
        ) -> Node {
            let mut node = Node {
                name: format!("identity {}", identity.min(3)).into(),
                addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
                ranges: ranges.iter().map(|text| text.parse().unwrap()).collect(),
                data: None,
                pods: vec!["10.200.2.7".parse().unwrap(), "10.200.3.7".parse().unwrap()],
            };
            node.data = ways.map(|ways| publish(&made(ways, identity), &node, &underlay(mtu)));
            node.name = name.into();
            node
        }
    }

    prop_compose! {
        fn any_basis()(
            ways in select(&WAYS[..]),
            leaving in select(vec![&[][..], &["vxlan"], &["wireguard"]]),
            ranges in select(vec![
                &["10.200.1.0/24", "fd00:200:0:1::/64"][..], &["10.200.3.0/24"], &["127.0.0.0/8"],
            ]),
            addresses in select(vec![&["192.168.64.11", "fd00:64::11"][..], &["fd00:64::11"]]),
            mtu in select(vec![1400, 1500]),
            // Of Services, or what a peer has too.
            further in prop::option::of(select(vec!["10.96.0.0/12", "fd00:200:0:3::/64"])),
        ) -> Basis {
            let further = further.map(|net| {
                let net: IpNet = net.parse().unwrap();
                (RouteKey::to(net), RouteTarget::Unreachable)
            });
            Basis {
                backends: made(ways, 0),
                leaving: made(leaving, 0).into_iter()
                    .filter(|backend| !ways.contains(&backend.name()))
                    .collect(),
                own: Node {
                    name: "c, this one".into(),
                    addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
                    ranges: ranges.iter().map(|text| text.parse().unwrap()).collect(),
                    ..Node::default()
                },
                underlay: underlay(mtu),
                further: further.into_iter().collect(),
            }
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Set(Node),
        Remove(&'static str),
        Basis(Box<Basis>),
        TakenUp,
    }

    fn any_step() -> impl Strategy<Value = Step> {
        prop_oneof![
            8 => any_peer().prop_map(Step::Set),
            3 => select(vec!["a", "b", "c", "d", "e"]).prop_map(Step::Remove),
            1 => any_basis().prop_map(|basis| Step::Basis(Box::new(basis))),
            5 => Just(Step::TakenUp),
        ]
    }

    /// All keys that differ are among those that are said to.
    fn named<K: Ord + Clone + std::fmt::Debug, V: PartialEq>(
        before: &BTreeMap<K, V>,
        now: &BTreeMap<K, V>,
        named: &BTreeSet<K>,
    ) -> Result<(), TestCaseError> {
        let differ = before.keys().chain(now.keys());
        for key in differ.filter(|key| before.get(key) != now.get(key)) {
            prop_assert!(named.contains(key), "{:?} has changed", key);
        }
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        #[test]
        fn whatever_changes_the_plan_is_the_one_made_of_all_at_once(
            basis in any_basis(),
            steps in prop::collection::vec(any_step(), 1..40),
        ) {
            let mut planner = Planner::new();
            planner.set_basis(basis.clone());
            let (mut basis, mut peers) = (basis, BTreeMap::new());
            let mut held = Held::default();
            let mut before = planner.plan(&held).clone();
            planner.took_up();
            for step in steps {
                match step {
                    Step::Set(node) => {
                        planner.set_peer(node.clone());
                        peers.insert(node.name.clone(), node);
                    }
                    Step::Remove(name) => {
                        planner.remove_peer(name);
                        peers.remove(name);
                    }
                    Step::Basis(other) => {
                        basis = *other;
                        planner.set_basis(basis.clone());
                    }
                    Step::TakenUp => {
                        // Between two looks at the plan, any number of changes.
                        let plan = planner.plan(&held).clone();
                        prop_assert_eq!(&plan, &plan_on(basis.clone(), peers.values(), &held));
                        let (_, changes) = planner.planned();
                        let now = ways(&plan, &[], &basis.underlay);
                        let changed = changed_ways(&plan, changes, &[], &basis.underlay);
                        for (range, way) in changed {
                            prop_assert_eq!(way, now.get(&range).copied());
                        }
                        if !changes.everything {
                            let (from, to) = (&before.state, &plan.state);
                            prop_assert_eq!(&from.devices, &to.devices);
                            prop_assert_eq!(&from.proxies, &to.proxies);
                            named(&from.routes, &to.routes, &changes.routes)?;
                            named(&from.neighbours, &to.neighbours, &changes.neighbours)?;
                            named(&from.forwarding, &to.forwarding, &changes.forwarding)?;
                            named(&from.tunnel_peers, &to.tunnel_peers, &changes.tunnel_peers)?;
                            named(&before.ways, &plan.ways, &changes.ways)?;
                        }
                        // It is applied.
                        let routes = plan.state.routes.iter();
                        held.routes = routes.map(|(key, to)| (*key, Some(*to))).collect();
                        before = plan;
                        planner.took_up();
                    }
                }
            }
            prop_assert_eq!(planner.plan(&held), &plan_on(basis, peers.values(), &held));
            // All that is known of peers goes with them.
            for name in peers.keys() {
                planner.remove_peer(name);
            }
            planner.plan(&held);
            prop_assert_eq!(planner.told(), &Told::default());
            prop_assert!(planner.claimed.is_empty() && planner.given.is_empty());
            prop_assert!(planner.wanted.is_empty() && planner.open.is_empty());
            prop_assert!(planner.tied.is_empty());
            prop_assert_eq!(&planner.plan.state, &planner.base);
        }

        #[test]
        fn no_entry_is_there_for_two_peers(
            basis in any_basis(),
            peers in prop::collection::vec(any_peer(), 0..8),
        ) {
            let mut planner = Planner::new();
            planner.set_basis(basis);
            peers.into_iter().for_each(|peer| planner.set_peer(peer));
            planner.plan(&Held::default());
            let mut seen = BTreeSet::new();
            for (name, known) in &planner.peers {
                let routes = known.routes.iter().map(|key| format!("{key:?}"));
                let neighbours = known.neighbours.iter().map(|key| format!("{key:?}"));
                let forwarding = known.forwarding.iter().map(|key| format!("{key:?}"));
                let tunnel_peers = known.tunnel_peers.iter().map(|key| format!("{key:?}"));
                let ways = known.ways.iter().map(|key| format!("{key:?}"));
                let keys = routes.chain(neighbours).chain(forwarding).chain(tunnel_peers);
                let keys: BTreeSet<String> = keys.chain(ways).collect();
                for key in keys {
                    prop_assert!(seen.insert(key.clone()), "{} and another have {}", name, key);
                }
            }
        }
    }
}
