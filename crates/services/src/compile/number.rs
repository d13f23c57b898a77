//! What a frontend comes to: the number that stands for it, its slots, and the
//! chain that numbers like it share.

use crate::model::{Backend, TrafficPolicy};
use crate::table::Frontend;

/// What a frontend is to the rules: how many backends there are to draw from
/// and how it is to be treated. Frontends with the same number share a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Number {
    /// From the highest bit: 8 bits count of local backends, 16 bits count of
    /// backends, 8 bits flags.
    pub word: u32,
    /// For how many seconds a client keeps its backend; 0 without affinity.
    pub affinity: u32,
}

impl Number {
    const COUNT: u32 = 0xffff;
    const NEAR: u32 = 0xff;
    const COUNT_SHIFT: u32 = 8;
    const NEAR_SHIFT: u32 = 24;
    /// A node port, load-balancer or external address.
    pub const EXTERNAL: u32 = 1;
    /// Traffic from outside goes to local backends only.
    pub const LOCAL: u32 = 1 << 1;
    /// Without backends: dropped instead of refused.
    pub const DISCARD: u32 = 1 << 2;
    /// Only some sources may use it.
    pub const FILTERED: u32 = 1 << 3;

    /// The most backends a frontend is given; further ones are left out.
    pub const MOST: usize = Self::COUNT as usize;
    /// The most local backends a frontend is given.
    pub const MOST_LOCAL: usize = Self::NEAR as usize;

    /// A number without affinity.
    #[must_use]
    pub const fn plain(word: u32) -> Self {
        Self { word, affinity: 0 }
    }

    /// The number for all that are dispatched to the same chain.
    #[must_use]
    pub const fn dispatch(self) -> Self {
        Self {
            word: self.word & !Self::EXTERNAL,
            ..self
        }
    }

    /// Backends to draw from.
    #[must_use]
    pub const fn count(self) -> u32 {
        self.word >> Self::COUNT_SHIFT & Self::COUNT
    }

    /// Local backends to draw from.
    #[must_use]
    pub const fn near(self) -> u32 {
        self.word >> Self::NEAR_SHIFT
    }

    /// Whether clients keep their backend.
    #[must_use]
    pub const fn is_sticky(self) -> bool {
        self.affinity != 0
    }

    /// The bytes by which the maps know it: host order.
    #[must_use]
    pub fn bytes(self) -> Vec<u8> {
        [self.word.to_ne_bytes(), self.affinity.to_ne_bytes()].concat()
    }

    /// Reads what [`Self::bytes`] writes.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (word, affinity) = bytes.split_at_checked(4)?;
        Some(Self {
            word: u32::from_ne_bytes(word.try_into().ok()?),
            affinity: u32::from_ne_bytes(affinity.try_into().ok()?),
        })
    }

    /// The same for everybody.
    pub(super) const fn unfiltered(self) -> Self {
        Self {
            word: self.word & !Self::FILTERED,
            ..self
        }
    }

    /// The chain it is sent to.
    #[must_use]
    pub fn chain(self) -> String {
        let count = self.count();
        if self.word & Self::FILTERED != 0 {
            let inner = self.unfiltered().chain();
            let inner = inner.strip_prefix(SERVICE_PREFIX).unwrap_or(&inner);
            format!("{ALLOW_PREFIX}{inner}")
        } else if self.word & Self::LOCAL != 0 {
            let affinity = match self.affinity {
                0 => String::new(),
                seconds => format!("-{seconds}"),
            };
            format!("split-{count}-{}{affinity}", self.near())
        } else if count != 0 {
            pick_name(count, self.affinity)
        } else if self.word & Self::DISCARD != 0 {
            DISCARD_CHAIN.to_owned()
        } else {
            REFUSE_CHAIN.to_owned()
        }
    }
}

/// Slots of local backends are counted from here, out of the others' way.
pub const NEAR_SLOTS: u32 = 0x1_0000;
/// With affinity: the ids of backends are counted from here.
pub const IDS: u32 = 0x2_0000;
/// With affinity: the ids of local backends are counted from here; a backend
/// has the same in both.
pub const NEAR_IDS: u32 = 0x3_0000;

const SERVICE_PREFIX: &str = "service-";
const ALLOW_PREFIX: &str = "allow-";
pub(crate) const REFUSE_CHAIN: &str = "service-refuse";
pub(crate) const DISCARD_CHAIN: &str = "service-discard";

pub(super) fn pick_name(count: u32, affinity: u32) -> String {
    match affinity {
        0 => format!("pick-{count}"),
        seconds => format!("keep-{count}-{seconds}"),
    }
}

pub(super) fn near_name(count: u32, affinity: u32) -> String {
    match affinity {
        0 => format!("pick-local-{count}"),
        seconds => format!("keep-local-{count}-{seconds}"),
    }
}

/// Whether a chain is made on demand for a number.
#[must_use]
pub fn is_number_chain(name: &str) -> bool {
    let (allow, inner) = match name.strip_prefix(ALLOW_PREFIX) {
        Some(inner) => (true, inner),
        None => (false, name),
    };
    (allow && [REFUSE_CHAIN, DISCARD_CHAIN].contains(&format!("{SERVICE_PREFIX}{inner}").as_str()))
        || ["pick-local-", "pick-", "keep-local-", "keep-", "split-"]
            .iter()
            .find_map(|prefix| inner.strip_prefix(prefix))
            .is_some_and(|rest| {
                !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit() || b == b'-')
            })
}

/// A frontend as the maps hold it: its number and its backends, sorted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted<'a> {
    /// The number.
    pub number: Number,
    /// Drawn from by all, or by pods and the node if there are local ones.
    pub backends: &'a [Backend],
    /// Drawn from by traffic from outside.
    pub near: &'a [Backend],
}

/// What a frontend comes to.
#[must_use]
pub fn frontend(frontend: &Frontend) -> Wanted<'_> {
    fn at_most(list: &[Backend], most: usize) -> &[Backend] {
        &list[..list.len().min(most)]
    }
    let cluster = at_most(&frontend.cluster, Number::MOST);
    let local = at_most(&frontend.local, Number::MOST_LOCAL);
    let (backends, near, flags) = match (frontend.kind.is_external(), frontend.policy) {
        (false, TrafficPolicy::Cluster) => (cluster, &[][..], 0),
        (false, TrafficPolicy::Local) => {
            let elsewhere = local.is_empty() && !cluster.is_empty();
            let flags = if elsewhere { Number::DISCARD } else { 0 };
            (local, &[][..], flags)
        }
        (true, TrafficPolicy::Cluster) => (cluster, &[][..], Number::EXTERNAL),
        (true, TrafficPolicy::Local) => {
            if cluster.is_empty() && local.is_empty() {
                (cluster, local, Number::EXTERNAL)
            } else {
                (cluster, local, Number::EXTERNAL | Number::LOCAL)
            }
        }
    };
    let filtered = match frontend.sources {
        Some(_) => Number::FILTERED,
        None => 0,
    };
    let word = (backends.len() as u32) << Number::COUNT_SHIFT
        | (near.len() as u32) << Number::NEAR_SHIFT
        | flags
        | filtered;
    let drawn = !backends.is_empty() || !near.is_empty();
    Wanted {
        number: Number {
            word,
            affinity: frontend.affinity.filter(|_| drawn).unwrap_or(0),
        },
        backends,
        near,
    }
}
