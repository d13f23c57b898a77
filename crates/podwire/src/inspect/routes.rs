//! `podwire inspect routes`.

use std::collections::BTreeMap;
use std::process::ExitCode;

use agent::{FastPathReport, RoutingSnapshot};
use clap::Args;
use serde::Serialize;

use super::{Output, ask, folded, show};
use crate::place::Place;

/// Every device, route, policy rule, neighbour and forwarding entry that carries
/// packets between nodes, with the node and the back end it is for; and what takes
/// the fast path
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Only what is for this peer
    #[arg(long = "of", value_name = "NODE")]
    peer: Option<String>,
    /// What to print
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// What is printed.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown {
    #[serde(flatten)]
    routes: RoutingSnapshot,
    fast_path: FastPathReport,
}

/// Asks and prints.
pub(crate) fn run(place: &Place, options: &Options) -> Result<ExitCode, agent::admin::Error> {
    let mut snapshot: RoutingSnapshot = ask(place, "/v1/routes", &[])?;
    let fast_path = ask(place, "/v1/fast-path", &[])?;
    if let Some(peer) = &options.peer {
        snapshot
            .entries
            .retain(|entry| entry.node.as_deref() == Some(&**peer));
    }
    let shown = Shown {
        routes: snapshot,
        fast_path,
    };
    Ok(show(options.output, &shown, |shown| {
        words(&shown.routes) + &fast_path_words(&shown.fast_path)
    }))
}

/// The fast path, for people.
fn fast_path_words(report: &FastPathReport) -> String {
    let problems = report.problems.iter().map(|line| format!("- {line}"));
    let lines: Vec<String> = match &report.off {
        Some(why) => vec![format!("fast path: none, {why}")],
        None if report.starting => vec!["fast path: not yet, it is being started".to_owned()],
        None => {
            let taken = [("from", &report.outbound), ("to", &report.inbound)];
            let taken = taken.into_iter().map(|(way, counts)| {
                let counts: Vec<_> = counts
                    .iter()
                    .map(|(outcome, count)| format!("{count} {outcome}"))
                    .collect();
                format!("  packets {way} pods: {}", counts.join(", "))
            });
            let judges = report
                .judges
                .iter()
                .map(|judge| format!("  all packets take the stack: {judge}, of somebody else"));
            let pending = (report.pending > 0).then(|| {
                format!(
                    "  {} programs are about to be attached or taken away",
                    report.pending
                )
            });
            let ranges = report.ranges.iter().map(|range| format!("  {range}"));
            let others = report.other_ranges.iter();
            let others = others.map(|(range, why)| format!("  not {range}: {why}"));
            let pods = report.other_pods.iter();
            let pods = pods.map(|(name, why)| format!("  not the pod of {name}: {why}"));
            let first = format!(
                "fast path of established connections: {} addresses of pods with these ranges",
                report.pods
            );
            std::iter::once(first)
                .chain(judges)
                .chain(pending)
                .chain(ranges)
                .chain(others)
                .chain(pods)
                .chain(taken)
                .collect()
        }
    };
    lines
        .into_iter()
        .chain(problems)
        .map(|line| folded(&line, 4))
        .collect()
}

fn words(snapshot: &RoutingSnapshot) -> String {
    let counts = &snapshot.counts;
    let mut text = format!(
        "back ends: {}; MTU of pods: {}\n{} devices, {} routes, {} policy rules, {} neighbours, {} \
         forwarding entries, {} proxy entries\n",
        snapshot.backends.join(", "),
        snapshot
            .mtu
            .map_or_else(|| "unknown".to_owned(), |mtu| mtu.to_string()),
        counts.devices,
        counts.routes,
        counts.rules,
        counts.neighbours,
        counts.forwarding,
        counts.proxies,
    );
    // By whom they are for: this node's own come first.
    let mut owners: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for entry in &snapshot.entries {
        let owner = (entry.node.as_deref(), entry.backend.as_deref());
        owners.entry(owner).or_default().push(entry);
    }
    for ((node, backend), entries) in owners {
        text.push_str(&match (node, backend) {
            (Some(node), Some(backend)) => format!("{node}, by {backend}\n"),
            _ => "this node\n".to_owned(),
        });
        for entry in entries {
            let line = format!("  {:<10}  {}", entry.kind, entry.entry);
            text.push_str(&folded(&line, 14));
        }
    }
    for refused in &snapshot.refused {
        text.push_str(&folded(&format!("- {refused}"), 2));
    }
    for (line, times) in &snapshot.restored {
        let line = format!("- changed by somebody else {times} times and restored: {line}");
        text.push_str(&folded(&line, 2));
    }
    for (name, times) in &snapshot.culprits {
        text.push_str(&format!("- {name} removed routes {times} times\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fast_path_is_shown_with_what_takes_it_and_why_the_rest_does_not() {
        let report: FastPathReport = serde_json::from_value(serde_json::json!({
            "judges": ["chain forward of table inet filter"],
            "ranges": ["10.200.2.0/24"],
            "otherRanges": {"10.200.3.0/24": "through a tunnel"},
            "pods": 4, "pending": 3, "changes": 9,
            "otherPods": {"pw12345": "its bandwidth is limited"},
            "outbound": {"taken": 70, "connection": 5},
            "inbound": {"taken": 80, "hopLimit": 1},
            "problems": ["fast path: pod 10.200.1.2: because"],
        }))
        .unwrap();
        let text = fast_path_words(&report);
        for part in [
            "fast path of established connections: 4 addresses of pods with these ranges\n",
            "  3 programs are about to be attached or taken away\n",
            "  all packets take the stack: chain forward of table inet filter, of somebody else\n",
            "  10.200.2.0/24\n",
            "  not 10.200.3.0/24: through a tunnel\n",
            "  not the pod of pw12345: its bandwidth is limited\n",
            "  packets from pods: 70 taken, 5 connection not established, or translated\n",
            "  packets to pods: 80 taken, 1 hop limit\n",
            "- fast path: pod 10.200.1.2: because\n",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn why_there_is_no_fast_path_is_said() {
        let report = FastPathReport {
            off: Some("it is switched off".to_owned()),
            ..FastPathReport::default()
        };
        assert_eq!(
            fast_path_words(&report),
            "fast path: none, it is switched off\n"
        );
        let report = FastPathReport {
            starting: true,
            ..FastPathReport::default()
        };
        assert_eq!(
            fast_path_words(&report),
            "fast path: not yet, it is being started\n"
        );
    }

    #[test]
    fn every_entry_is_shown_with_whose_it_is_and_what_is_refused_with_the_reason() {
        let snapshot: RoutingSnapshot = serde_json::from_value(serde_json::json!({
            "backends": ["vxlan"], "mtu": 1450, "requests": 7,
            "counts": {"devices": 1, "routes": 1, "rules": 2, "neighbours": 0, "forwarding": 0, "proxies": 0,
                "tunnel_peers": 0},
            "entries": [
                {"kind": "device", "entry": "pw-vxlan mtu 1450"},
                {"kind": "route", "entry": "10.200.2.0/24 via 10.200.2.0 on pw-vxlan",
                    "node": "node-2", "backend": "vxlan"},
                {"kind": "route", "node": "node-2", "backend": "vxlan",
                    "entry": "2001:db8:1111:2222::/64 via fe80::8ff:feff:fe08:ff08 on pw-vxlan6 \
                              from 2001:db8:1111:2223:: mtu 1430"}],
            "restored": {"route to 10.200.2.0/24": 2},
            "culprits": {"process networkd": 2},
            "refused": ["no route to 10.200.3.0/24 of node node-3: because"],
        }))
        .unwrap();
        let text = words(&snapshot);
        for part in [
            "back ends: vxlan; MTU of pods: 1450",
            "1 devices, 1 routes, 2 policy rules",
            "this node\n  device      pw-vxlan mtu 1450\n",
            "node-2, by vxlan\n  route       10.200.2.0/24 via 10.200.2.0 on pw-vxlan\n",
            "on pw-vxlan6 from\n              2001:db8:1111:2223:: mtu 1430\n",
            "changed by somebody else 2 times and restored: route to 10.200.2.0/24",
            "process networkd removed routes 2 times",
            "- no route to 10.200.3.0/24 of node node-3: because",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
}
