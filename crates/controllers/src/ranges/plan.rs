//! Who has which range: adopt, assign, release. No I/O.

use super::pool::{ClusterCidr, Pool, RangeError};
use ipnet::IpNet;
use std::collections::HashMap;

/// The ranges of all nodes, known by the uid of their Node objects.
#[derive(Clone, Debug)]
pub(super) struct Ranges {
    pools: Vec<Pool>,
    /// Ranges by node; a node's entry outlives a failed write, so that the next
    /// try writes the same.
    nodes: HashMap<String, Assigned>,
}

#[derive(Clone, Debug)]
struct Assigned {
    uid: String,
    ranges: Vec<IpNet>,
}

/// Whether cluster CIDRs can be used.
///
/// # Errors
/// Names the CIDR that overlaps another or cannot be cut.
pub fn check(cidrs: &[ClusterCidr]) -> Result<(), RangeError> {
    Ranges::new(cidrs).map(|_| ())
}

impl Ranges {
    pub(super) fn new(cidrs: &[ClusterCidr]) -> Result<Self, RangeError> {
        let pools = cidrs
            .iter()
            .map(|cidr| Pool::new(*cidr))
            .collect::<Result<Vec<_>, _>>()?;
        for (index, a) in pools.iter().enumerate() {
            for b in &pools[index + 1..] {
                let (a, b) = (a.cidr(), b.cidr());
                if a.contains(&b) || b.contains(&a) {
                    return Err(RangeError::ClusterOverlap(a, b));
                }
            }
        }
        Ok(Self {
            pools,
            nodes: HashMap::new(),
        })
    }

    /// Takes note of the ranges a node has already, and returns what is wrong
    /// with them.
    pub(super) fn adopt(&mut self, node: &str, uid: &str, ranges: &[IpNet]) -> Vec<RangeError> {
        self.forget_predecessor(node, uid);
        let mut problems = Vec::new();
        for range in ranges {
            match self
                .pools
                .iter_mut()
                .find_map(|pool| pool.adopt(node, *range))
            {
                Some(Ok(())) => {}
                Some(Err(error)) => problems.push(error),
                None => problems.push(RangeError::Outside {
                    range: *range,
                    node: node.to_owned(),
                    cidrs: self
                        .pools
                        .iter()
                        .map(|pool| pool.cidr().to_string())
                        .collect::<Vec<_>>()
                        .join(", "),
                }),
            }
        }
        self.nodes.insert(
            node.to_owned(),
            Assigned {
                uid: uid.to_owned(),
                ranges: ranges.to_vec(),
            },
        );
        problems
    }

    /// The ranges for a node that has none: one of each cluster CIDR, in their
    /// order, or none at all.
    pub(super) fn assign(&mut self, node: &str, uid: &str) -> Result<Vec<IpNet>, RangeError> {
        self.forget_predecessor(node, uid);
        if let Some(assigned) = self.nodes.get(node) {
            return Ok(assigned.ranges.clone());
        }
        let ranges: Result<Vec<_>, _> = self.pools.iter_mut().map(|pool| pool.take(node)).collect();
        match ranges {
            Ok(ranges) => {
                self.nodes.insert(
                    node.to_owned(),
                    Assigned {
                        uid: uid.to_owned(),
                        ranges: ranges.clone(),
                    },
                );
                Ok(ranges)
            }
            Err(error) => {
                self.pools.iter_mut().for_each(|pool| pool.release(node));
                Err(error)
            }
        }
    }

    /// Frees the ranges of a node that is gone.
    pub(super) fn release(&mut self, node: &str) {
        if self.nodes.remove(node).is_some() {
            self.pools.iter_mut().for_each(|pool| pool.release(node));
        }
    }

    /// A Node object of the same name but another uid is another node.
    fn forget_predecessor(&mut self, node: &str, uid: &str) {
        if self.nodes.get(node).is_some_and(|known| known.uid != uid) {
            self.release(node);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rstest::rstest;

    fn cidr(cidr: &str, node_prefix: u8) -> ClusterCidr {
        ClusterCidr {
            cidr: cidr.parse().unwrap(),
            node_prefix,
        }
    }

    fn dual() -> Ranges {
        Ranges::new(&[cidr("10.200.0.0/16", 24), cidr("fd00:200::/48", 64)]).unwrap()
    }

    fn text(ranges: &[IpNet]) -> Vec<String> {
        ranges.iter().map(IpNet::to_string).collect()
    }

    #[test]
    fn a_node_gets_one_range_of_each_family_and_the_same_one_again() {
        let mut ranges = dual();
        let first = ranges.assign("a", "1").unwrap();
        assert_eq!(text(&first), ["10.200.0.0/24", "fd00:200::/64"]);
        assert_eq!(ranges.assign("a", "1").unwrap(), first);
        let second = ranges.assign("b", "2").unwrap();
        assert_eq!(text(&second), ["10.200.1.0/24", "fd00:200:0:1::/64"]);
    }

    #[test]
    fn what_nodes_have_at_the_start_is_adopted() {
        let mut ranges = dual();
        let has = ["10.200.0.0/24", "fd00:200:0:7::/64"].map(|range| range.parse().unwrap());
        assert!(ranges.adopt("a", "1", &has).is_empty());
        let next = ranges.assign("b", "2").unwrap();
        assert_eq!(text(&next), ["10.200.1.0/24", "fd00:200:0:8::/64"]);
    }

    #[test]
    fn a_freed_range_is_reused_last_and_the_longest_freed_first() {
        let mut ranges = Ranges::new(&[cidr("10.0.0.0/22", 24)]).unwrap();
        for node in ["a", "b", "c"] {
            ranges.assign(node, node).unwrap();
        }
        ranges.release("b");
        ranges.release("a");
        let mut next = || text(&ranges.assign("x", &fresh_uid()).unwrap_or_default());
        assert_eq!(next(), ["10.0.3.0/24"]);
        // Each new uid is a new node: the old one's range goes to the end.
        assert_eq!(next(), ["10.0.1.0/24"]);
        assert_eq!(next(), ["10.0.0.0/24"]);
        assert_eq!(next(), ["10.0.3.0/24"]);
    }

    fn fresh_uid() -> String {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NEXT: AtomicU32 = AtomicU32::new(0);
        NEXT.fetch_add(1, Ordering::Relaxed).to_string()
    }

    #[test]
    fn a_full_pool_says_so_and_gives_nothing_of_the_other_family_away() {
        let mut ranges = Ranges::new(&[cidr("fd00::/62", 64), cidr("10.0.0.0/24", 24)]).unwrap();
        ranges.assign("a", "1").unwrap();
        let error = ranges.assign("b", "2").unwrap_err();
        assert!(error.to_string().contains("10.0.0.0/24 is full"), "{error}");
        ranges.release("a");
        assert_eq!(
            text(&ranges.assign("b", "2").unwrap()),
            ["fd00:0:0:2::/64", "10.0.0.0/24"]
        );
    }

    #[test]
    fn two_nodes_with_the_same_range_are_named() {
        let mut ranges = dual();
        let range: IpNet = "10.200.4.0/24".parse().unwrap();
        let larger: IpNet = "10.200.0.0/20".parse().unwrap();
        assert!(ranges.adopt("a", "1", &[range]).is_empty());
        assert!(matches!(
            &ranges.adopt("b", "2", &[larger])[..],
            [RangeError::Taken { other, .. }] if other == "a"
        ));
        let foreign: IpNet = "172.20.0.0/24".parse().unwrap();
        assert!(matches!(
            &ranges.adopt("c", "3", &[foreign])[..],
            [RangeError::Outside { .. }]
        ));
    }

    #[rstest]
    #[case::shorter_than_the_whole("10.0.0.0/16", 15)]
    #[case::longer_than_an_address("10.0.0.0/16", 33)]
    #[case::too_many("fd00::/16", 64)]
    fn masks_that_do_not_fit_are_refused(#[case] net: &str, #[case] mask: u8) {
        assert!(matches!(
            check(&[cidr(net, mask)]),
            Err(RangeError::Mask { .. })
        ));
    }

    #[test]
    fn overlapping_cluster_cidrs_are_refused() {
        assert!(matches!(
            check(&[cidr("10.0.0.0/8", 24), cidr("10.200.0.0/16", 24)]),
            Err(RangeError::ClusterOverlap(..))
        ));
    }

    proptest! {
        /// Whatever comes and goes in whatever order, no address is two nodes'.
        #[test]
        fn no_range_is_ever_two_nodes(steps in prop::collection::vec((0_u8..3, 0_u8..12), 0..200)) {
            let mut ranges = Ranges::new(&[cidr("10.0.0.0/21", 24), cidr("fd00::/60", 64)]).unwrap();
            let mut held: HashMap<String, Vec<IpNet>> = HashMap::new();
            for (action, node) in steps {
                let name = format!("node-{node}");
                match action {
                    0 => {
                        if let Ok(got) = ranges.assign(&name, "uid") {
                            held.insert(name, got);
                        }
                    }
                    1 => {
                        ranges.release(&name);
                        held.remove(&name);
                    }
                    // A restart: all that is known are the nodes' own words.
                    _ => {
                        ranges = Ranges::new(&[cidr("10.0.0.0/21", 24), cidr("fd00::/60", 64)]).unwrap();
                        for (name, has) in &held {
                            prop_assert!(ranges.adopt(name, "uid", has).is_empty());
                        }
                    }
                }
                let all: Vec<_> = held.values().flatten().collect();
                for (index, a) in all.iter().enumerate() {
                    for b in &all[index + 1..] {
                        prop_assert!(!a.contains(*b) && !b.contains(*a), "{a} {b}");
                    }
                }
            }
        }
    }
}
