//! Which of two nodes' back ends packets between them take.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::backend::{Backend, NAMES};
use crate::data::NodeData;

/// The back ends of this node (`own`, the preferred one first) a peer has too,
/// the best first.
///
/// The place in one node's list and the place in the other's are added up, and the
/// least sum is best. A tie goes to the one this node sends to the peer by already
/// (`in_use`): while a cluster changes from one to another, two nodes take the new one
/// when both prefer it. By then each has long been told what it takes to accept the
/// other's packets, such as its key. Else it goes to the name that comes first in
/// [`NAMES`]. A peer that has told nothing yet is taken to have what this node has.
pub fn common<'a>(
    own: &'a [Arc<dyn Backend>],
    theirs: Option<&NodeData>,
    in_use: impl Fn(&dyn Backend) -> bool,
) -> Vec<&'a dyn Backend> {
    let Some(theirs) = theirs else {
        return own.iter().map(Arc::as_ref).collect();
    };
    let mut found: Vec<(usize, bool, usize, &dyn Backend)> = own
        .iter()
        .enumerate()
        .filter_map(|(mine, backend)| {
            let name = backend.name();
            let place = theirs.ways.iter().position(|way| &**way == name)?;
            Some((mine + place, false, rank(name), backend.as_ref()))
        })
        .collect();
    let sums: Vec<usize> = found.iter().map(|(sum, ..)| *sum).collect();
    for (sum, is_other, _, backend) in &mut found {
        // Only then the question is worth its while.
        let is_tie = sums.iter().filter(|other| *other == sum).count() > 1;
        *is_other = is_tie && !in_use(*backend);
    }
    found.sort_by_key(|(sum, is_other, rank, backend)| (*sum, *is_other, *rank, backend.name()));
    found.into_iter().map(|(.., backend)| backend).collect()
}

fn rank(name: &str) -> usize {
    NAMES
        .iter()
        .position(|known| *known == name)
        .unwrap_or(NAMES.len())
}

/// What peers tell of their back ends, all taken together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// How many peers name a back end, and how many prefer it.
    named: BTreeMap<Box<str>, (usize, usize)>,
}

impl Told {
    /// What one more peer tells.
    pub fn add(&mut self, data: &NodeData) {
        for (place, way) in data.ways.iter().enumerate() {
            let (naming, preferring) = match self.named.get_mut(way) {
                Some(counts) => counts,
                None => self.named.entry(way.clone()).or_default(),
            };
            *naming += 1;
            *preferring += usize::from(place == 0);
        }
    }

    /// What a peer has told is so no more.
    pub fn remove(&mut self, data: &NodeData) {
        for (place, way) in data.ways.iter().enumerate() {
            let Some((naming, preferring)) = self.named.get_mut(way) else {
                continue;
            };
            *naming -= 1;
            *preferring -= usize::from(place == 0);
            if *naming == 0 {
                self.named.remove(way);
            }
        }
    }

    /// The names of the back ends that any of them has.
    pub fn named(&self) -> impl Iterator<Item = &str> {
        self.named.keys().map(|way| &**way)
    }

    /// Whether any of them has a back end.
    pub fn names(&self, way: &str) -> bool {
        self.named.contains_key(way)
    }

    /// The names of the back ends that any of them prefers.
    fn preferred(&self) -> impl Iterator<Item = &str> {
        let preferred = self
            .named
            .iter()
            .filter(|(_, (_, preferring))| *preferring > 0);
        preferred.map(|(way, _)| &**way)
    }
}

/// The names of the back ends a node should have: those it is configured with,
/// and then what each peer prefers that has none of these, so that a cluster can
/// change from one to the other node by node. Of peers only what they prefer
/// counts, so nodes do not keep each other in what none of them wants any more.
///
/// The caller leaves out what this kernel cannot do.
pub fn ways(configured: &[&str], told: &Told) -> Vec<Box<str>> {
    let mut ways: Vec<Box<str>> = configured.iter().map(|name| (*name).into()).collect();
    let preferred = told.preferred();
    let extra: BTreeSet<(usize, &str)> = preferred
        .filter(|preferred| !configured.contains(preferred))
        .map(|preferred| (rank(preferred), preferred))
        .collect();
    ways.extend(extra.into_iter().map(|(_, name)| name.into()));
    ways
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::backend::{Settings, by_name};

    fn data(ways: &[&str]) -> NodeData {
        NodeData {
            ways: ways.iter().map(|way| (*way).into()).collect(),
            ..NodeData::default()
        }
    }

    fn backends(ways: &[&str]) -> Vec<Arc<dyn Backend>> {
        let make = |way: &&str| by_name(way, &Settings::default()).expect("a name of a back end");
        ways.iter().map(make).collect()
    }

    fn order(own: &[&str], theirs: Option<&[&str]>) -> Vec<&'static str> {
        order_using(own, theirs, None)
    }

    fn order_using(
        own: &[&str],
        theirs: Option<&[&str]>,
        in_use: Option<&str>,
    ) -> Vec<&'static str> {
        let own = backends(own);
        let theirs = theirs.map(data);
        let found = common(&own, theirs.as_ref(), |backend| {
            Some(backend.name()) == in_use
        });
        found.iter().map(|backend| backend.name()).collect()
    }

    #[rstest]
    #[case::the_same(&["vxlan"], &["vxlan"], &["vxlan"])]
    #[case::nothing_in_common(&["vxlan"], &["host-gw"], &[])]
    #[case::one_in_common(&["vxlan"], &["host-gw", "vxlan"], &["vxlan"])]
    #[case::both_prefer_the_same(&["vxlan", "host-gw"], &["vxlan", "host-gw"], &["vxlan", "host-gw"])]
    #[case::a_tie(&["vxlan", "host-gw"], &["host-gw", "vxlan"], &["host-gw", "vxlan"])]
    #[case::unknown_to_us(&["vxlan"], &["pigeons", "vxlan"], &["vxlan"])]
    fn both_ends_choose_the_same(
        #[case] own: &[&str],
        #[case] theirs: &[&str],
        #[case] expected: &[&str],
    ) {
        assert_eq!(order(own, Some(theirs)), expected);
        let known: Vec<&str> = theirs
            .iter()
            .copied()
            .filter(|name| NAMES.contains(name))
            .collect();
        assert_eq!(order(&known, Some(own)), expected);
    }

    #[rstest]
    #[case::stays(&["ipip", "host-gw"], &["host-gw", "ipip"], "ipip", &["ipip", "host-gw"])]
    #[case::stays_back(&["ipip", "host-gw"], &["host-gw", "ipip"], "host-gw", &["host-gw", "ipip"])]
    #[case::both_prefer_the_other(&["host-gw", "ipip"], &["host-gw", "ipip"], "ipip", &["host-gw", "ipip"])]
    #[case::not_common(&["ipip", "host-gw"], &["host-gw", "ipip"], "vxlan", &["host-gw", "ipip"])]
    fn a_tie_leaves_what_is_in_use(
        #[case] own: &[&str],
        #[case] theirs: &[&str],
        #[case] in_use: &str,
        #[case] expected: &[&str],
    ) {
        for [own, theirs] in [[own, theirs], [theirs, own]] {
            assert_eq!(order_using(own, Some(theirs), Some(in_use)), expected);
        }
    }

    #[test]
    fn a_peer_that_told_nothing_is_taken_to_have_what_we_have() {
        assert_eq!(order(&["vxlan", "host-gw"], None), ["vxlan", "host-gw"]);
    }

    #[rstest]
    #[case::alone(&["vxlan"], &[], &["vxlan"])]
    #[case::agreed(&["vxlan"], &["vxlan host-gw"], &["vxlan"])]
    #[case::others_not_there_yet(&["vxlan"], &["host-gw", "host-gw vxlan"], &["vxlan", "host-gw"])]
    #[case::cross_subnet(&["host-gw", "vxlan"], &["host-gw vxlan"], &["host-gw", "vxlan"])]
    #[case::what_others_merely_keep_is_not_taken_up(&["vxlan"], &["vxlan static"], &["vxlan"])]
    #[case::told_nothing_of_use(&["vxlan"], &[""], &["vxlan"])]
    fn a_node_has_what_it_is_configured_with_and_what_others_prefer(
        #[case] configured: &[&str],
        #[case] peers: &[&str],
        #[case] expected: &[&str],
    ) {
        let split = |ways: &&str| data(&ways.split_whitespace().collect::<Vec<_>>());
        let peers: Vec<NodeData> = peers.iter().map(split).collect();
        let mut told = Told::default();
        let passing = data(&["wireguard", "vxlan"]);
        told.add(&passing);
        peers.iter().for_each(|peer| told.add(peer));
        told.remove(&passing);
        let found = ways(configured, &told);
        assert_eq!(found.iter().map(|w| &**w).collect::<Vec<_>>(), expected);
        peers.iter().for_each(|peer| told.remove(peer));
        assert_eq!(told, Told::default());
    }
}
