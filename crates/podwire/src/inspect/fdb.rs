//! `podwire inspect fdb`.

use std::process::ExitCode;

use agent::{ForwardingEntry, ForwardingOrigin, ForwardingTable};
use clap::Args;

use super::{Output, ask, lines, show, table};
use crate::place::Place;

/// The forwarding tables of tunnels and of their bridge, as the kernel has them
/// now: what was learned from frames, and what was programmed for which node
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// What to print
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// Asks and prints.
pub(crate) fn run(place: &Place, options: &Options) -> Result<ExitCode, agent::admin::Error> {
    let entries: Vec<ForwardingEntry> = ask(place, "/v1/fdb", &[])?;
    Ok(show(options.output, &entries, |entries| words(entries)))
}

fn words(entries: &[ForwardingEntry]) -> String {
    if entries.is_empty() {
        return "no forwarding entries: no back end of this node has a forwarding table\n".into();
    }
    let mut text = String::new();
    // Entries of a device stand together.
    for entries in entries.chunk_by(|a, b| (a.table, &a.device) == (b.table, &b.device)) {
        let Some(first) = entries.first() else {
            continue;
        };
        let (of, to) = match first.table {
            ForwardingTable::Bridge => ("bridge", "PORT"),
            ForwardingTable::Tunnel => ("tunnel", "OTHER END"),
        };
        text.push_str(&format!("table of the {of} {}\n", first.device));
        let mut rows = table(&["", "MAC", to, "ORIGIN", "NODE"]);
        for entry in entries {
            rows.add_row([
                "",
                &entry.mac,
                &entry.to,
                match entry.origin {
                    ForwardingOrigin::Learned => "learned",
                    ForwardingOrigin::Programmed => "programmed",
                    ForwardingOrigin::Device => "device",
                },
                entry.node.as_deref().unwrap_or("-"),
            ]);
        }
        text.push_str(&lines(&rows));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_table_is_named_with_what_was_learned_and_what_was_programmed() {
        let entry = |table, device: &str, to: &str, origin, node: Option<&str>| ForwardingEntry {
            table,
            device: device.into(),
            mac: "0a:01:02:03:04:05".into(),
            to: to.into(),
            origin,
            node: node.map(Into::into),
        };
        let (bridge, tunnel) = (ForwardingTable::Bridge, ForwardingTable::Tunnel);
        let (learned, device) = (ForwardingOrigin::Learned, ForwardingOrigin::Device);
        let text = words(&[
            entry(bridge, "pw-mcast-br", "pw-mcast", learned, Some("node-2")),
            entry(tunnel, "pw-mcast", "192.168.64.12", learned, Some("node-2")),
            entry(tunnel, "pw-mcast", "239.112.0.1", device, None),
        ]);
        let expected = [
            "table of the bridge pw-mcast-br",
            "    MAC                PORT      ORIGIN   NODE",
            "    0a:01:02:03:04:05  pw-mcast  learned  node-2",
            "table of the tunnel pw-mcast",
            "    MAC                OTHER END      ORIGIN   NODE",
            "    0a:01:02:03:04:05  192.168.64.12  learned  node-2",
            "    0a:01:02:03:04:05  239.112.0.1    device   -",
        ];
        assert_eq!(text.lines().collect::<Vec<_>>(), expected);
        assert!(words(&[]).starts_with("no forwarding entries"));
    }
}
