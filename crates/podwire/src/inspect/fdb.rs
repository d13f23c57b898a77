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
    let mut rows = table(&["TABLE", "DEVICE", "MAC", "TO", "ORIGIN", "NODE"]);
    for entry in entries {
        let (of, to) = match entry.table {
            ForwardingTable::Bridge => ("bridge", format!("port {}", entry.to)),
            ForwardingTable::Tunnel => ("tunnel", entry.to.clone()),
        };
        rows.add_row([
            of,
            &entry.device,
            &entry.mac,
            &to,
            match entry.origin {
                ForwardingOrigin::Learned => "learned",
                ForwardingOrigin::Programmed => "programmed",
                ForwardingOrigin::Device => "device",
            },
            entry.node.as_deref().unwrap_or("-"),
        ]);
    }
    lines(&rows)
}
