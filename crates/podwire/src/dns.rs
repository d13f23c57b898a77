//! `podwire dns`: questions to the node's DNS.

use std::process::ExitCode;

use clap::{Args, Subcommand};

use crate::inspect::dns::{Query, query};
use crate::output;
use crate::place::Place;

/// Questions to the node's DNS
#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(flatten)]
    place: Place,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// What it answers, and why
    Query(Query),
}

/// Asks, prints, and answers with the exit code.
pub(crate) fn run(options: &Options) -> ExitCode {
    if let Some(code) = options.place.elsewhere() {
        return code;
    }
    let Command::Query(wanted) = &options.command;
    query(&options.place, wanted).unwrap_or_else(|error| output::fail(&error, 1))
}
