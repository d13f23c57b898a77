//! The sets and maps, and their names.

use linux::nftables::{DataType, Set};

use crate::model::Family;

/// Names of sets that exist once for each family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SetNames {
    /// (address, protocol, port) → number.
    pub services: &'static str,
    /// (address, protocol, port, slot or id) → (address, port). Counts.
    pub backends: &'static str,
    /// (address, protocol, port, slot) → id, of frontends with affinity.
    pub turns: &'static str,
    /// (client, address, protocol, port) → id. Filled by rules.
    pub affinity: &'static str,
    /// (address, protocol, port, source range) that may use a frontend whose
    /// sources are restricted.
    pub sources: &'static str,
    /// Cluster addresses that a Service has.
    pub cluster_ips: &'static str,
    /// (address, address) of local endpoints: a packet with such a source and
    /// destination was sent by an endpoint to itself.
    pub hairpin: &'static str,
    /// Ranges of this node's pods, where those are told from others.
    pub local_pods: &'static str,
    /// Ranges of this node's pods.
    pub pod_ranges: &'static str,
    /// Ranges pods talk to with their own address.
    pub cluster_ranges: &'static str,
    /// Ranges Service addresses are given from.
    pub service_ranges: &'static str,
}

const NAMES4: SetNames = SetNames {
    services: "services4",
    backends: "backends4",
    turns: "turns4",
    affinity: "affinity4",
    sources: "sources4",
    cluster_ips: "cluster-ips4",
    hairpin: "hairpin4",
    local_pods: "local-pods4",
    pod_ranges: "pod-ranges4",
    cluster_ranges: "cluster-ranges4",
    service_ranges: "service-ranges4",
};

const NAMES6: SetNames = SetNames {
    services: "services6",
    backends: "backends6",
    turns: "turns6",
    affinity: "affinity6",
    sources: "sources6",
    cluster_ips: "cluster-ips6",
    hairpin: "hairpin6",
    local_pods: "local-pods6",
    pod_ranges: "pod-ranges6",
    cluster_ranges: "cluster-ranges6",
    service_ranges: "service-ranges6",
};

/// number → chain, for both families.
pub const DISPATCH: &str = "service-dispatch";
/// flags of a number → chain that decides on masquerade.
pub const MASQUERADE_KINDS: &str = "masquerade-kinds";

impl SetNames {
    /// Those of a family.
    #[must_use]
    pub const fn of(family: Family) -> &'static Self {
        match family {
            Family::V4 => &NAMES4,
            Family::V6 => &NAMES6,
        }
    }
}

/// The most clients that are remembered, of each family. Beyond that, new ones
/// are sent anywhere each time.
const AFFINITY_SIZE: u32 = 1 << 20;

/// The sets and maps, which never change while podwire runs.
#[must_use]
pub fn sets() -> Vec<Set> {
    use DataType::{Ipv4Address, Ipv6Address, Number, Port, Protocol};
    let mut sets = Vec::new();
    for family in Family::ALL {
        let names = SetNames::of(family);
        let address = match family {
            Family::V4 => Ipv4Address,
            Family::V6 => Ipv6Address,
        };
        sets.extend([
            Set::map(
                names.services,
                &[address, Protocol, Port],
                &[Number, Number],
            ),
            Set::map(
                names.backends,
                &[address, Protocol, Port, Number],
                &[address, Port],
            )
            .counting(),
            Set::map(names.turns, &[address, Protocol, Port, Number], &[Number]),
            Set::map(
                names.affinity,
                &[address, address, Protocol, Port],
                &[Number],
            )
            .filled_by_rules(AFFINITY_SIZE),
            Set::concatenated_ranges(names.sources, &[address, Protocol, Port, address]),
            Set::ranges(names.local_pods, address),
            Set::of_values(names.cluster_ips, &[address]),
            Set::of_values(names.hairpin, &[address, address]),
            Set::ranges(names.pod_ranges, address),
            Set::ranges(names.cluster_ranges, address),
            Set::ranges(names.service_ranges, address),
        ]);
    }
    sets.push(Set::verdict_map(DISPATCH, &[Number, Number]));
    sets.push(Set::verdict_map(MASQUERADE_KINDS, &[Number]));
    sets
}
