//! `podwire inspect dns`, and `podwire dns query`.

use std::process::ExitCode;

use agent::{DnsAnswer, DnsRecords};
use clap::Args;

use super::{Output, ask, lines, show, table};
use crate::place::Place;

/// Names the node's DNS answers, each with the object that made it
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Questions that were slow or failed instead
    #[arg(long)]
    log: bool,
    /// What to print
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// What the node's DNS answers, and why
#[derive(Debug, Args)]
pub(crate) struct Query {
    /// The whole name
    name: String,
    /// Type of the records
    #[arg(long = "type", default_value = "A", value_name = "TYPE")]
    kind: String,
    /// As this pod of the node would be answered
    #[arg(long, value_name = "[NAMESPACE/]POD")]
    from: Option<String>,
    /// What to print
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// Asks for the records and prints.
pub(crate) fn run(place: &Place, options: &Options) -> Result<ExitCode, agent::admin::Error> {
    let records: DnsRecords = ask(place, "/v1/dns/records", &[])?;
    Ok(if options.log {
        show(options.output, &records.log, |log| {
            let mut notes = table(&["AT", "CLIENT", "NAME", "TYPE", "CODE", "MS", "WHY"]);
            for note in log {
                notes.add_row([
                    note.at.to_string(),
                    note.client.clone(),
                    note.name.clone(),
                    note.kind.clone(),
                    note.code.clone(),
                    note.took_ms.to_string(),
                    note.reason.clone(),
                ]);
            }
            lines(&notes)
        })
    } else {
        show(options.output, &records.records, |records| {
            let mut found = table(&["NAME", "TYPE", "DATA", "OBJECT"]);
            for record in records {
                found.add_row([&record.name, &record.kind, &record.data, &record.object]);
            }
            lines(&found)
        })
    })
}

/// Asks one question and prints.
pub(crate) fn query(place: &Place, options: &Query) -> Result<ExitCode, agent::admin::Error> {
    let mut parameters = vec![("name", &*options.name), ("type", &*options.kind)];
    parameters.extend(options.from.as_deref().map(|from| ("from", from)));
    let answer: DnsAnswer = ask(place, "/v1/dns/query", &parameters)?;
    Ok(show(options.output, &answer, words))
}

fn words(answer: &DnsAnswer) -> String {
    let mut text = format!("{}: {}\n", answer.code, answer.reason);
    for record in answer.answers.iter().chain(&answer.authorities) {
        text.push_str(&format!("{record}\n"));
    }
    text
}
