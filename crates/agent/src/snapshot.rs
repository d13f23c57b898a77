//! What routing has in the kernel, with whose it is: for `podwire inspect
//! routes` and `podwire doctor`.

use std::collections::BTreeMap;

use ipnet::IpNet;
use routing::model::{Counts, DeviceName, MacAddress, Route};
use routing::{Plan, plan};
use serde::{Deserialize, Serialize};

/// What routing has in the kernel.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Snapshot {
    /// Names of the back ends this node has, the preferred one first.
    pub backends: Vec<Box<str>>,
    /// The largest packet of new pods, bytes.
    pub mtu: Option<u32>,
    /// How many entries of each kind.
    pub counts: Counts,
    /// The entries.
    pub entries: Vec<Entry>,
    /// Requests sent to the kernel so far.
    pub requests: u64,
    /// What could not be reached, and why.
    pub refused: Vec<String>,
    /// What somebody else changed and was restored, and how often.
    pub restored: BTreeMap<String, u64>,
    /// Who removed routes that were restored, and how many times.
    #[serde(default)]
    pub culprits: BTreeMap<String, u64>,
}

/// A device, a route, a policy rule, a neighbour or a forwarding entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// `device`, `route`, `rule`, `neighbour`, `forwarding` or `proxy`.
    pub kind: Box<str>,
    /// As people write it.
    pub entry: String,
    /// The node it is for; none of what this node needs whoever its peers are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<Box<str>>,
    /// The back end that made it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<Box<str>>,
}

impl Snapshot {
    /// Of thousands of peers it is long, and seldom asked for: made of the plan then.
    pub(crate) fn new(plan: &Plan) -> Snapshot {
        Snapshot {
            counts: plan.state.counts(),
            entries: entries(plan),
            refused: plan.refusals.iter().map(ToString::to_string).collect(),
            ..Snapshot::default()
        }
    }
}

fn entries(plan: &Plan) -> Vec<Entry> {
    let state = &plan.state;
    let owner = |net: IpNet| -> Option<&plan::Way> {
        // Ranges are disjoint: the one that begins last before it, if any.
        let (range, way) = plan.ways.range(..=widest(net)).next_back()?;
        range.contains(&net).then_some(way)
    };
    let owned = |kind: &str, entry, way: Option<&plan::Way>| Entry {
        kind: kind.into(),
        entry,
        node: way.map(|way| (*way.node).into()),
        backend: way.map(|way| way.backend.into()),
    };
    let mut entries = Vec::new();
    entries.extend(state.devices.iter().map(|(name, device)| {
        let text = format!("{name} mtu {}", device.mtu);
        owned("device", text, None)
    }));
    entries.extend(state.routes.iter().map(|(key, target)| {
        let route = Route {
            key: *key,
            target: *target,
        };
        owned("route", route.to_string(), owner(key.destination))
    }));
    let rules = state.rules.iter();
    entries.extend(rules.map(|rule| owned("rule", rule.to_string(), None)));
    let mut by_mac: BTreeMap<(DeviceName, MacAddress), &plan::Way> = BTreeMap::new();
    for ((device, address), mac) in &state.neighbours {
        let way = owner(IpNet::from(*address));
        if let Some(way) = way {
            by_mac.insert((*device, *mac), way);
        }
        let text = format!("{address} on {device} with {mac}");
        entries.push(owned("neighbour", text, way));
    }
    entries.extend(state.forwarding.iter().map(|((device, mac), remote)| {
        let text = format!("{mac} on {device} to {}", remote.address);
        owned("forwarding", text, by_mac.get(&(*device, *mac)).copied())
    }));
    entries.extend(state.proxies.iter().map(|(device, address)| {
        let text = format!("{address} on {device}");
        owned("proxy", text, owner(IpNet::from(*address)))
    }));
    entries
}

/// The last in order of the nets that begin where this one does.
fn widest(net: IpNet) -> IpNet {
    IpNet::new(net.network(), net.max_prefix_len()).unwrap_or(net)
}
