//! `podwire config`: what configurations may say.

use std::process::ExitCode;

use clap::{Args, Subcommand};

use crate::output;

/// What configurations may say
#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print the JSON schema of a configuration: every key, what it does and its default
    Schema(Schema),
}

#[derive(Debug, Args)]
#[group(required = true)]
struct Schema {
    /// Of the CNI plugin: one entry of a config list's plugins
    #[arg(long)]
    cni: bool,
}

/// Prints.
pub(crate) fn run(options: &Options) -> ExitCode {
    // The only configuration so far, and clap requires that it is asked for.
    let Command::Schema(_) = &options.command;
    let text = format!("{:#}\n", cni::configuration::schema());
    output::print(text.as_bytes())
}
