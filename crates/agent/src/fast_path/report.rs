//! What the fast path knows and has done: for `podwire inspect routes`.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use linux::fast_path::{Direction, FastPath, Outcome};
use serde::{Deserialize, Serialize};

/// What the fast path knows and has done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Why there is none, if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub off: Option<String>,
    /// Whether it is being started, while all packets take the stack.
    #[serde(default)]
    pub starting: bool,
    /// What others have that judges packets one by one. While there is any, all take
    /// the stack, unless the fast path is asked for by name.
    pub judges: BTreeSet<String>,
    /// Peers' ranges whose established connections take it.
    pub ranges: Vec<IpNet>,
    /// Peers' other ranges, with the reason.
    pub other_ranges: BTreeMap<IpNet, String>,
    /// How many addresses of pods of this node it knows.
    pub pods: usize,
    /// Pods that stay with the stack, by the name of their interface's host side,
    /// with the reason.
    pub other_pods: BTreeMap<String, String>,
    /// How many programs are about to be attached or taken away.
    #[serde(default)]
    pub pending: usize,
    /// How often the programs were attached or detached, or told something, since the
    /// agent started.
    pub changes: u64,
    /// What became of packets from pods since the agent started. A packet is what
    /// the kernel handles at once, which may be many segments of TCP.
    pub outbound: BTreeMap<Outcome, u64>,
    /// The same of packets to pods.
    pub inbound: BTreeMap<Outcome, u64>,
    /// What could not be done.
    pub problems: Vec<String>,
}

impl Report {
    /// Without a fast path.
    pub(crate) fn without(why: &str) -> Report {
        Report {
            off: Some(why.to_owned()),
            ..Report::default()
        }
    }

    /// While it is being started.
    pub(crate) fn starting() -> Report {
        let nothing = || {
            Outcome::ALL
                .into_iter()
                .map(|outcome| (outcome, 0))
                .collect()
        };
        Report {
            starting: true,
            outbound: nothing(),
            inbound: nothing(),
            ..Report::default()
        }
    }

    /// Reads the counters.
    pub(super) fn count(&mut self, fast: &FastPath) -> Result<(), linux::fast_path::Error> {
        for direction in Direction::BOTH {
            let counts = match direction {
                Direction::Outbound => &mut self.outbound,
                Direction::Inbound => &mut self.inbound,
            };
            for outcome in Outcome::ALL {
                counts.insert(outcome, fast.count(direction, outcome)?);
            }
        }
        Ok(())
    }
}
