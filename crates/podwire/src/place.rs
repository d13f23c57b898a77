//! Which agent a command asks: this node's, or that of a lab's node, where the
//! command then runs itself.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::process::ExitCode;

use crate::output;

/// Where to look
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Place {
    /// The agent's admin socket
    #[arg(long, global = true, value_name = "PATH", default_value = agent::admin::SOCKET)]
    pub(crate) socket: PathBuf,
    #[command(flatten)]
    node: LabNode,
}

impl Place {
    /// See [`LabNode::elsewhere`].
    pub(crate) fn elsewhere(&self) -> Option<ExitCode> {
        self.node.elsewhere()
    }
}

/// A lab's node instead of this machine
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct LabNode {
    /// Look on a node of this lab instead of on this machine
    #[arg(long, global = true, value_name = "LAB", requires = "node")]
    lab: Option<String>,
    /// The lab's node
    #[arg(long, global = true, value_name = "NODE", requires = "lab")]
    node: Option<String>,
}

impl LabNode {
    /// When a lab's node is meant, runs this very command line there and
    /// returns its exit code.
    pub(crate) fn elsewhere(&self) -> Option<ExitCode> {
        let (lab, node) = (self.lab.as_ref()?, self.node.as_ref()?);
        let arguments = without_place(std::env::args_os().skip(1));
        Some(match lab::run_on_node(lab, node, &arguments) {
            Ok(code) => ExitCode::from(code),
            Err(error) => output::fail(&error, error.exit_code()),
        })
    }
}

/// A command line without `--lab` and `--node`.
fn without_place(arguments: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut kept = Vec::new();
    let mut arguments = arguments;
    while let Some(argument) = arguments.next() {
        if argument == OsStr::new("--") {
            kept.push(argument);
            kept.extend(arguments);
            break;
        }
        match argument.as_bytes() {
            b"--lab" | b"--node" => drop(arguments.next()),
            bytes if bytes.starts_with(b"--lab=") || bytes.starts_with(b"--node=") => {}
            _ => kept.push(argument),
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn on_the_node_the_command_line_is_the_same_but_for_the_place() {
        let given = "inspect --lab a services --node=n -o json -- --node x";
        let kept = without_place(given.split(' ').map(OsString::from));
        let expected = "inspect services -o json -- --node x";
        assert_eq!(kept, expected.split(' ').collect::<Vec<_>>());
    }
}
