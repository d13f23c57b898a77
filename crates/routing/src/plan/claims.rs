//! Which ranges a node may claim for its pods, and who claims what.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::IpAddr;

use ipnet::IpNet;

use super::Reason;
use crate::model::{DeviceName, Family, MacAddress, Name, Node, PublicKey, overlap};
use crate::underlay::Subnet;

/// Who holds something, by name.
#[derive(Debug)]
pub(super) struct Holders<K>(BTreeMap<K, Names>);

/// Names in order: mostly one, which needs no memory of its own.
#[derive(Debug)]
enum Names {
    One(Name),
    Several(Vec<Name>),
}

impl Names {
    fn all(&self) -> &[Name] {
        match self {
            Names::One(name) => std::slice::from_ref(name),
            Names::Several(names) => names,
        }
    }

    fn insert(&mut self, name: &Name) {
        let Err(place) = self.all().binary_search(name) else {
            return;
        };
        match self {
            Names::One(one) => {
                let mut names = vec![one.clone()];
                names.insert(place, name.clone());
                *self = Names::Several(names);
            }
            Names::Several(names) => names.insert(place, name.clone()),
        }
    }

    /// Removes a name; false if none is left.
    fn remove(&mut self, name: &Name) -> bool {
        match self {
            Names::One(one) => one != name,
            Names::Several(names) => {
                names.retain(|other| other != name);
                !names.is_empty()
            }
        }
    }
}

impl<K> Default for Holders<K> {
    fn default() -> Self {
        Holders(BTreeMap::new())
    }
}

impl<K: Ord> Holders<K> {
    /// One more holder; whether it is the first that has it.
    pub(super) fn insert(&mut self, what: K, name: &Name) -> bool {
        match self.0.entry(what) {
            Entry::Vacant(entry) => {
                entry.insert(Names::One(name.clone()));
                true
            }
            Entry::Occupied(mut entry) => {
                entry.get_mut().insert(name);
                false
            }
        }
    }

    /// One holder less; whether it was the last that had it.
    pub(super) fn remove(&mut self, what: &K, name: &Name) -> bool {
        let was_last = self
            .0
            .get_mut(what)
            .is_some_and(|names| !names.remove(name));
        if was_last {
            self.0.remove(what);
        }
        was_last
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All that have it, in order.
    pub(super) fn of(&self, what: &K) -> &[Name] {
        self.0.get(what).map_or(&[], Names::all)
    }

    /// The first by name that has it, if that is one before `name`.
    pub(super) fn before(&self, what: &K, name: &Name) -> Option<&Name> {
        self.of(what).first().filter(|first| *first < name)
    }
}

impl Holders<IpAddr> {
    /// None of these addresses is in a range.
    pub(super) fn outside(&self, range: &IpNet) -> Result<(), Reason> {
        match self.0.range(range.network()..).next() {
            Some((address, names)) if range.contains(address) => Err(Reason::HoldsNode {
                node: names.all().first().map_or("", |name| name).into(),
                address: *address,
            }),
            _ => Ok(()),
        }
    }
}

/// What tells one end of a tunnel from another: no two nodes can have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Identity {
    /// A hardware address behind a device.
    Mac(DeviceName, MacAddress),
    /// A public key of a peer of a device.
    Key(DeviceName, PublicKey),
}

impl Identity {
    /// Why another node cannot have it.
    pub(super) fn taken(&self, node: &Name) -> Reason {
        let node = (**node).into();
        match self {
            Identity::Mac(..) => Reason::SameMac { node },
            Identity::Key(..) => Reason::SameKey { node },
        }
    }
}

/// Ranges and who has them, found by what they have in common with another.
#[derive(Debug, Default)]
pub(super) struct Ranges {
    holders: Holders<IpNet>,
    /// How many ranges there are of each family and length: a cluster has few lengths.
    lengths: BTreeMap<(Family, u8), usize>,
}

impl Ranges {
    pub(super) fn insert(&mut self, range: IpNet, name: &Name) {
        let length = (Family::of_range(&range), range.prefix_len());
        if self.holders.insert(range, name) {
            *self.lengths.entry(length).or_default() += 1;
        }
    }

    pub(super) fn remove(&mut self, range: &IpNet, name: &Name) {
        if self.holders.remove(range, name) {
            let length = (Family::of_range(range), range.prefix_len());
            if let Some(count) = self.lengths.get_mut(&length) {
                *count -= 1;
                if *count == 0 {
                    self.lengths.remove(&length);
                }
            }
        }
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.holders.is_empty() && self.lengths.is_empty()
    }

    /// The ranges that have an address in common with this one, with their holders;
    /// those first that hold all of it.
    pub(super) fn overlapping(&self, range: IpNet) -> impl Iterator<Item = (&IpNet, &[Name])> {
        let family = Family::of_range(&range);
        // Nothing but itself is inside a single address.
        let is_single = range.prefix_len() == range.max_prefix_len();
        let end = range.prefix_len() + u8::from(is_single);
        let shorter = self.lengths.range((family, 0)..(family, end));
        let around = shorter.filter_map(move |((_, length), _)| {
            let around = IpNet::new(range.network(), *length).ok()?.trunc();
            self.holders.0.get_key_value(&around)
        });
        // Of those that begin at the same address the longer ones come later.
        let inside = (!is_single).then(|| self.holders.0.range(range..));
        let inside = inside.into_iter().flatten();
        let inside = inside.take_while(move |(inside, _)| range.contains(&inside.network()));
        around
            .chain(inside)
            .map(|(range, names)| (range, names.all()))
    }

    /// No range of a node before this one by name overlaps.
    pub(super) fn free(&self, range: &IpNet, name: &Name) -> Result<(), Reason> {
        let mut others = self.overlapping(*range);
        let first = others
            .find_map(|(range, names)| Some((range, names.first()?)).filter(|(_, n)| *n < name));
        match first {
            Some((range, node)) => Err(Reason::OtherNode {
                node: (**node).into(),
                range: *range,
            }),
            None => Ok(()),
        }
    }
}

/// Whether a range can be one of pods on this underlay at all.
pub(super) fn sound(range: &IpNet, subnets: &[Subnet]) -> Result<(), Reason> {
    let first = range.network();
    let link_local = match first {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    let single = range.prefix_len() == range.max_prefix_len();
    if single
        || range.prefix_len() == 0
        || link_local
        || first.is_loopback()
        || first.is_multicast()
        || first.is_unspecified()
    {
        return Err(Reason::Unusable);
    }
    match subnets
        .iter()
        .find(|subnet| overlap(&subnet.address, range))
    {
        Some(subnet) => Err(Reason::Underlay {
            subnet: subnet.address.trunc(),
        }),
        None => Ok(()),
    }
}

pub(super) fn not_own(
    own: &Node,
    peer: &Node,
    range: &IpNet,
    subnets: &[Subnet],
) -> Result<(), Reason> {
    if let Some(own) = own.ranges.iter().find(|own| overlap(own, range)) {
        return Err(Reason::OwnRange { own: own.trunc() });
    }
    match peer.address(Family::of_range(range)) {
        Some(address)
            if subnets
                .iter()
                .any(|subnet| subnet.address.addr() == address) =>
        {
            Err(Reason::OwnAddress { address })
        }
        _ => Ok(()),
    }
}
