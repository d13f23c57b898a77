//! `podwire inspect status`.

use std::process::ExitCode;

use agent::Status;
use clap::Args;

use super::{Output, ask, show};
use crate::place::Place;

/// Whether everything is in force, and what is not as it should be
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// What to print
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// Asks and prints.
pub(crate) fn run(place: &Place, options: &Options) -> Result<ExitCode, agent::admin::Error> {
    let status: Status = ask(place, "/v1/status", &[])?;
    Ok(show(options.output, &status, words))
}

fn words(status: &Status) -> String {
    let mut text = format!(
        "podwire {}: {}\n",
        status.version,
        if status.ready {
            "ready for pods"
        } else {
            "not ready for pods"
        }
    );
    if let Some(seconds) = status.behind_seconds {
        text.push_str(&format!(
            "something wanted has not been in force for {seconds} s\n"
        ));
    }
    if let Some(why) = &status.leaving {
        text.push_str(&format!("no new traffic from load balancers: {why}\n"));
    }
    for problem in &status.problems {
        text.push_str(&format!("- {problem}\n"));
    }
    text
}
