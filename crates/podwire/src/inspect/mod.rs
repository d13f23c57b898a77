//! `podwire inspect`: what a node's agent knows, what it did, and why.
//!
//! A subcommand asks the agent over its admin socket ([`ask`]), and prints the
//! answer as a table or as JSON ([`show`]).

pub(crate) mod dns;
mod fdb;
mod routes;
mod services;
mod status;

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};
use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::output;
use crate::place::Place;

/// What the agent of a node knows and did, and why
#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(flatten)]
    place: Place,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Names the node's DNS answers, and the questions that were slow or failed
    Dns(dns::Options),
    /// Forwarding tables of tunnels and of their bridge, learned and programmed
    Fdb(fdb::Options),
    /// What carries packets between nodes: devices, routes, neighbours, forwarding entries
    Routes(routes::Options),
    /// Services: where they answer, where their traffic goes, and why not elsewhere
    Services(services::List),
    /// One Service, or what becomes of a packet
    Service(services::One),
    /// Whether everything is in force, and what is not as it should be
    Status(status::Options),
}

/// The form of what is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people
    Text,
    /// For programs
    Json,
}

/// Looks, prints, and answers with the exit code.
pub(crate) fn run(options: &Options) -> ExitCode {
    if let Some(code) = options.place.elsewhere() {
        return code;
    }
    let place = &options.place;
    let result: Result<ExitCode, Box<dyn std::error::Error>> = match &options.command {
        Command::Services(options) => services::list(place, options).map_err(Into::into),
        Command::Service(options) => services::one(place, options).map_err(Into::into),
        Command::Dns(options) => dns::run(place, options).map_err(Into::into),
        Command::Fdb(options) => fdb::run(place, options).map_err(Into::into),
        Command::Routes(options) => routes::run(place, options).map_err(Into::into),
        Command::Status(options) => status::run(place, options).map_err(Into::into),
    };
    result.unwrap_or_else(|error| output::fail(&*error, 1))
}

/// Asks the agent for a snapshot.
pub(crate) fn ask<T: DeserializeOwned>(
    place: &Place,
    path: &str,
    parameters: &[(&str, &str)],
) -> Result<T, agent::admin::Error> {
    agent::admin::get(&place.socket, path, parameters)
}

/// Prints a snapshot as JSON, or in words.
pub(crate) fn show<T: Serialize>(
    output: Output,
    snapshot: &T,
    words: impl FnOnce(&T) -> String,
) -> ExitCode {
    let text = match output {
        Output::Text => words(snapshot),
        Output::Json => {
            let text = serde_json::to_string_pretty(snapshot)
                .expect("snapshots are made of lists, maps, texts and numbers");
            format!("{text}\n")
        }
    };
    output::print(text.as_bytes())
}

/// A table as all of `inspect` prints them: no lines, and as wide as it gets
/// when it is not for eyes.
pub(crate) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_content_arrangement(if std::io::stdout().is_terminal() {
        ContentArrangement::Dynamic
    } else {
        ContentArrangement::Disabled
    });
    table.set_header(header.iter().copied());
    table
}

/// What is printed fits a window of so many columns.
const WIDTH: usize = 100;

/// Words in lines that fit [`WIDTH`], where words do; lines after the first begin
/// with so many blanks.
pub(crate) fn folded(text: &str, indent: usize) -> String {
    let mut lines = String::new();
    let mut column = 0;
    for (index, word) in text.split(' ').enumerate() {
        let length = word.chars().count();
        if column > indent && column + 1 + length > WIDTH {
            lines.push('\n');
            lines.push_str(&" ".repeat(indent));
            column = indent;
        } else if index > 0 {
            lines.push(' ');
            column += 1;
        }
        lines.push_str(word);
        column += length;
    }
    lines.push('\n');
    lines
}

/// A table's text, without the blanks at the ends of its lines.
pub(crate) fn lines(table: &Table) -> String {
    table
        .lines()
        .map(|line| format!("{}\n", line.trim_end()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lines_are_folded_at_blanks_and_words_are_kept_whole() {
        assert_eq!(folded("- a b", 2), "- a b\n");
        assert_eq!(folded("  route  x", 4), "  route  x\n");
        let long = "w".repeat(120);
        assert_eq!(
            folded(&format!("- some {long} {long} more"), 2),
            format!("- some\n  {long}\n  {long}\n  more\n")
        );
    }
}
