//! `podwire doctor`: what of this node would keep pods from talking, why, and
//! what to do about it.
//!
//! Three parts: [`facts`] reads the node, [`examine`](mod@examine) judges what
//! was read and does nothing else, this prints.

mod examine;
mod facts;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};

use crate::output;
use crate::place::Place;
use examine::{Finding, Level, examine};
use facts::Facts;

/// Exit code when something is wrong.
const WRONG: u8 = 1;
/// Exit code when it could not be found out.
const TROUBLE: u8 = 2;

/// Where to look and how to print.
#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(flatten)]
    place: Place,
    /// Directory of the CNI configuration
    #[arg(long, default_value = "/etc/cni/net.d", value_name = "DIR")]
    cni_conf_dir: PathBuf,
    /// Directory of the reservations of pods' addresses
    #[arg(long, value_name = "DIR", default_value = ipam::store::DEFAULT_ROOT)]
    state_dir: PathBuf,
    /// Where the agent serves its health
    #[arg(long, default_value = "127.0.0.1:10256", value_name = "ADDRESS:PORT")]
    health: std::net::SocketAddr,
    /// What to print
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people
    Text,
    /// For programs
    Json,
}

/// Looks, judges, prints, and answers with the exit code: 0 when nothing is
/// wrong, 1 when something is, 2 when that could not be found out.
pub(crate) fn run(options: &Options) -> ExitCode {
    if let Some(code) = options.place.elsewhere() {
        return code;
    }
    let facts = match Facts::gather(&options.cni_conf_dir, &options.state_dir, options.health) {
        Ok(facts) => facts,
        Err(error) => return output::fail(&error, TROUBLE),
    };
    let findings = examine(&facts);
    let text = match options.output {
        Output::Json => json(&findings),
        Output::Text => text(&findings),
    };
    let code = output::print(text.as_bytes());
    if findings.iter().any(|finding| finding.level != Level::Note) {
        return ExitCode::from(WRONG);
    }
    code
}

fn json(findings: &[Finding]) -> String {
    let text = serde_json::to_string_pretty(&serde_json::json!({ "findings": findings }))
        .expect("findings are texts");
    format!("{text}\n")
}

fn text(findings: &[Finding]) -> String {
    if findings.is_empty() {
        return "nothing is wrong\n".to_owned();
    }
    findings
        .iter()
        .map(|finding| {
            format!(
                "{}: {}\n  why:   {}\n  to do: {}\n",
                finding.level, finding.what, finding.why, finding.todo
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_finding_says_what_why_and_what_to_do() {
        let finding = Finding {
            check: "forwarding",
            level: Level::Error,
            what: "W".into(),
            why: "Y".into(),
            todo: "D".into(),
        };
        assert_eq!(
            text(std::slice::from_ref(&finding)),
            "error: W\n  why:   Y\n  to do: D\n"
        );
        let json: serde_json::Value = serde_json::from_str(&json(&[finding])).unwrap();
        assert_eq!(json["findings"][0]["level"], "error");
        assert_eq!(json["findings"][0]["todo"], "D");
        assert_eq!(text(&[]), "nothing is wrong\n");
    }
}
