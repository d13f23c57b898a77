//! `podwire ipam`: the addresses a node's pods hold, and what of them leaks.

use std::io::IsTerminal as _;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};
use cni::audit::{self, Entry, Findings};
use comfy_table::{ContentArrangement, Table, presets};

use crate::output;
use crate::place::LabNode;

/// Exit code of `check` when something leaks.
const LEAKS: u8 = 1;
/// Exit code when it could not be found out.
const TROUBLE: u8 = 2;

/// Addresses reserved for the pods of this node
#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(flatten)]
    node: LabNode,
    /// Directory of the reservations (`ipam.dataDir` of the CNI configuration)
    #[arg(long, global = true, value_name = "DIR", default_value = ::ipam::store::DEFAULT_ROOT)]
    state_dir: PathBuf,
    /// What to print
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Text)]
    output: Output,
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people
    Text,
    /// For programs
    Json,
}

#[derive(Clone, Copy, Debug, Subcommand)]
enum Command {
    /// List who holds which address
    Show,
    /// Compare with the namespaces and interfaces that exist; exit code 1 when something leaks, 2
    /// when that cannot be found out
    Check,
}

/// Looks, prints, and answers with the exit code.
pub(crate) fn run(options: &Options) -> ExitCode {
    if let Some(code) = options.node.elsewhere() {
        return code;
    }
    let findings = match audit::examine(&options.state_dir) {
        Ok(findings) => findings,
        Err(error) => return output::fail(&error, TROUBLE),
    };
    let text = match (options.output, options.command) {
        (Output::Json, _) => json(&findings),
        (Output::Text, Command::Show) => table(findings.reservations.iter()),
        (Output::Text, Command::Check) => report(&findings),
    };
    let code = output::print(text.as_bytes());
    match options.command {
        Command::Check if !findings.is_clean() => ExitCode::from(LEAKS),
        _ => code,
    }
}

fn json(findings: &Findings) -> String {
    let text = serde_json::to_string_pretty(findings)
        .expect("findings are lists and maps of texts and numbers");
    format!("{text}\n")
}

fn table<'a>(entries: impl Iterator<Item = &'a Entry>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    // As wide as it gets when it is not for eyes.
    table.set_content_arrangement(if std::io::stdout().is_terminal() {
        ContentArrangement::Dynamic
    } else {
        ContentArrangement::Disabled
    });
    table.set_header([
        "ADDRESSES",
        "POD",
        "CONTAINER",
        "INTERFACE",
        "HOST",
        "NETWORK",
        "AGE",
        "STATE",
    ]);
    for entry in entries {
        let addresses: Vec<_> = entry.addresses.iter().map(IpAddr::to_string).collect();
        table.add_row([
            addresses.join(" "),
            entry.pod.as_ref().map_or_else(
                || "-".to_owned(),
                |pod| format!("{}/{}", pod.namespace, pod.name),
            ),
            entry.attachment.container_id.chars().take(12).collect(),
            entry.attachment.interface.clone(),
            entry
                .host_interface
                .clone()
                .unwrap_or_else(|| "-".to_owned()),
            entry.network.clone(),
            age(entry.age_seconds),
            entry.state.describe().to_owned(),
        ]);
    }
    let text = table.to_string();
    // Cells are padded to the column's width.
    text.lines()
        .map(|line| format!("{}\n", line.trim_end()))
        .collect()
}

fn report(findings: &Findings) -> String {
    let held = findings.reservations.len();
    if findings.is_clean() {
        return format!("{held} reservations, none leaks\n");
    }
    let mut text = String::new();
    let leaks = findings.leaks().count();
    if leaks > 0 {
        text.push_str(&table(findings.leaks()));
        text.push_str(&format!(
            "\n{leaks} of {held} reservations leak; the agent's audit and the runtime's GC free them\n"
        ));
    }
    for stray in &findings.strays {
        text.push_str(&format!("{stray}\n"));
    }
    text
}

/// Two units at most, as kubectl prints ages.
fn age(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match (days, hours, minutes) {
        (0, 0, 0..2) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m"),
        (0, 1..8, _) => format!("{hours}h{}m", minutes % 60),
        (0..2, _, _) => format!("{hours}h"),
        _ => format!("{days}d"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::ipam::{Attachment, Pod};
    use cni::audit::{State, Stray};

    fn entry(state: State) -> Entry {
        Entry {
            network: "pods".to_owned(),
            addresses: vec!["10.200.1.2".parse().unwrap(), "fd00::2".parse().unwrap()],
            pod: Some(Pod {
                namespace: "shop".to_owned(),
                name: "web-0".to_owned(),
                uid: String::new(),
            }),
            attachment: Attachment::new("0123456789abcdef", "eth0"),
            host_interface: Some("pw0123456789a".to_owned()),
            age_seconds: 4000,
            state,
        }
    }

    #[test]
    fn a_reservation_is_a_line_with_all_there_is_to_know() {
        let text = table([entry(State::Attached)].iter());
        let line = text.lines().nth(1).unwrap();
        let words: Vec<_> = line.split_whitespace().collect();
        assert_eq!(
            words,
            [
                "10.200.1.2",
                "fd00::2",
                "shop/web-0",
                "0123456789ab",
                "eth0",
                "pw0123456789a",
                "pods",
                "1h6m",
                "attached"
            ]
        );
    }

    #[test]
    fn the_check_names_what_leaks_and_counts_it() {
        let mut findings = Findings {
            reservations: vec![entry(State::Attached), entry(State::InProgress)],
            strays: Vec::new(),
        };
        assert_eq!(report(&findings), "2 reservations, none leaks\n");
        findings.reservations.push(entry(State::NoInterface));
        findings.strays.push(Stray::Route {
            address: "10.200.1.9".parse().unwrap(),
            interface: "pw1".to_owned(),
        });
        let text = report(&findings);
        assert!(text.contains("1 of 3 reservations leak"), "{text}");
        assert!(text.contains("leaked: no interface"), "{text}");
        assert!(text.contains("route to 10.200.1.9 on pw1"), "{text}");
        assert!(!findings.is_clean());
        let json: serde_json::Value = serde_json::from_str(&json(&findings)).unwrap();
        assert_eq!(json["reservations"][2]["state"], "no-interface");
        assert_eq!(json["reservations"][2]["containerID"], "0123456789abcdef");
        assert_eq!(json["strays"][0]["kind"], "route");
    }

    #[test]
    fn ages_are_short() {
        let ages = [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (3700, "1h1m"),
            (30000, "8h"),
            (200_000, "2d"),
        ];
        for (seconds, text) in ages {
            assert_eq!(age(seconds), text);
        }
    }
}
