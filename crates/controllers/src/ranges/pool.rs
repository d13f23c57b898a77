//! A cluster CIDR cut into equal ranges, one a node.

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The cluster CIDR of one family and how much of it a node gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClusterCidr {
    /// The whole.
    pub cidr: IpNet,
    /// Prefix length of a node's part.
    pub node_prefix: u8,
}

/// Why a cluster CIDR cannot be used, or a range not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// The node's part is not a part.
    #[error(
        "cluster CIDR {cidr} cannot be cut into node ranges of /{node_prefix}: choose a node mask from /{} to /{max}",
        cidr.prefix_len(),
        max = cidr.max_prefix_len()
    )]
    Mask {
        /// The cluster CIDR.
        cidr: IpNet,
        /// The prefix length asked for.
        node_prefix: u8,
    },
    /// Two cluster CIDRs share addresses.
    #[error("cluster CIDRs {0} and {1} overlap: give each family one CIDR of its own")]
    ClusterOverlap(IpNet, IpNet),
    /// Nothing is left.
    #[error(
        "cluster CIDR {cidr} is full: all {total} node ranges of /{node_prefix} are in use; remove a node, or start with a larger cluster CIDR or a longer node mask"
    )]
    Full {
        /// The cluster CIDR.
        cidr: IpNet,
        /// Prefix length of a node's part.
        node_prefix: u8,
        /// How many parts it has.
        total: u64,
    },
    /// A node came with a range that another one has.
    #[error(
        "range {range} of node {node} overlaps the range of node {other}; delete one of the two Node objects so that it registers anew and gets a range of its own"
    )]
    Taken {
        /// The range.
        range: IpNet,
        /// The node that came with it.
        node: String,
        /// The node that has it.
        other: String,
    },
    /// A node came with a range that is none of ours.
    #[error(
        "range {range} of node {node} lies outside the cluster CIDRs {cidrs}; its pods may be unreachable"
    )]
    Outside {
        /// The range.
        range: IpNet,
        /// The node that came with it.
        node: String,
        /// The cluster CIDRs.
        cidrs: String,
    },
}

/// The ranges of one cluster CIDR: which are in use and by whom. Fresh ranges
/// go first and freed ones last, the longest freed before the others, so that
/// what still remembers a removed node's addresses has time to forget them.
#[derive(Clone, Debug)]
pub(super) struct Pool {
    whole: ClusterCidr,
    /// First index in use → (last index in use, node).
    used: BTreeMap<u64, (u64, String)>,
    /// Above every index ever used.
    fresh: u64,
    freed: VecDeque<u64>,
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}

impl Pool {
    pub(super) fn new(whole: ClusterCidr) -> Result<Self, RangeError> {
        let prefix = whole.cidr.prefix_len();
        let fits = whole.node_prefix >= prefix
            && whole.node_prefix <= whole.cidr.max_prefix_len()
            // More than that no cluster has; indices stay far from overflow.
            && whole.node_prefix - prefix <= 32;
        if !fits {
            return Err(RangeError::Mask {
                cidr: whole.cidr,
                node_prefix: whole.node_prefix,
            });
        }
        Ok(Self {
            whole: ClusterCidr {
                cidr: whole.cidr.trunc(),
                ..whole
            },
            used: BTreeMap::new(),
            fresh: 0,
            freed: VecDeque::new(),
        })
    }

    pub(super) fn cidr(&self) -> IpNet {
        self.whole.cidr
    }

    fn total(&self) -> u64 {
        1 << (self.whole.node_prefix - self.whole.cidr.prefix_len())
    }

    fn shift(&self) -> u32 {
        u32::from(self.whole.cidr.max_prefix_len() - self.whole.node_prefix)
    }

    fn range(&self, index: u64) -> Option<IpNet> {
        let offset = u128::from(index).checked_shl(self.shift())?;
        let address = bits(self.whole.cidr.network()) | offset;
        match self.whole.cidr {
            IpNet::V4(_) => Ipv4Net::new(
                Ipv4Addr::from(u32::try_from(address).ok()?),
                self.whole.node_prefix,
            )
            .map(IpNet::V4)
            .ok(),
            IpNet::V6(_) => Ipv6Net::new(Ipv6Addr::from(address), self.whole.node_prefix)
                .map(IpNet::V6)
                .ok(),
        }
    }

    /// First and last index a range touches; none if it is not a part of ours.
    fn indices(&self, range: IpNet) -> Option<(u64, u64)> {
        if !self.whole.cidr.contains(&range) {
            return None;
        }
        let base = bits(self.whole.cidr.network());
        let index = |address| {
            (bits(address) - base)
                .checked_shr(self.shift())
                .and_then(|index| u64::try_from(index).ok())
        };
        Some((index(range.network())?, index(range.broadcast())?))
    }

    /// The node that has any of these indices.
    fn holder(&self, first: u64, last: u64) -> Option<&str> {
        let (_, (end, node)) = self.used.range(..=last).next_back()?;
        (*end >= first).then_some(node.as_str())
    }

    /// Takes note of a range a node has. `None`: it lies outside this pool.
    pub(super) fn adopt(&mut self, node: &str, range: IpNet) -> Option<Result<(), RangeError>> {
        let (first, last) = self.indices(range)?;
        match self.holder(first, last) {
            Some(holder) if holder == node => return Some(Ok(())),
            Some(other) => {
                return Some(Err(RangeError::Taken {
                    range,
                    node: node.to_owned(),
                    other: other.to_owned(),
                }));
            }
            None => {}
        }
        // What was skipped counts as freed: an earlier run may have used it.
        self.freed.retain(|index| !(first..=last).contains(index));
        self.freed.extend(self.fresh..first);
        self.fresh = self.fresh.max(last + 1);
        self.used.insert(first, (last, node.to_owned()));
        Some(Ok(()))
    }

    /// Takes a range for a node.
    pub(super) fn take(&mut self, node: &str) -> Result<IpNet, RangeError> {
        let full = RangeError::Full {
            cidr: self.whole.cidr,
            node_prefix: self.whole.node_prefix,
            total: self.total(),
        };
        let index = if self.fresh < self.total() {
            self.fresh
        } else {
            *self.freed.front().ok_or(full.clone())?
        };
        let range = self.range(index).ok_or(full)?;
        if index == self.fresh {
            self.fresh += 1;
        } else {
            self.freed.pop_front();
        }
        self.used.insert(index, (index, node.to_owned()));
        Ok(range)
    }

    /// Frees what a node has.
    pub(super) fn release(&mut self, node: &str) {
        let freed: Vec<_> = self
            .used
            .iter()
            .filter(|(_, (_, holder))| holder == node)
            .map(|(first, (last, _))| (*first, *last))
            .collect();
        for (first, last) in freed {
            self.used.remove(&first);
            self.freed.extend(first..=last);
        }
    }
}
