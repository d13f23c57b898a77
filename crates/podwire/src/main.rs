//! The podwire binary: the command line, and dispatch to the parts.

mod config;
mod dns;
mod doctor;
mod inspect;
mod install;
mod ipam;
mod output;
mod place;

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

/// Exit code of wrong usage.
const USAGE: u8 = 2;

#[derive(Parser)]
#[command(
    name = "podwire",
    version,
    about = "A Kubernetes node's network, and a cluster on one machine"
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// A cluster on this machine: nodes are network namespaces
    Lab(lab::Options),
    /// The node daemon: routes and Services from the cluster's API
    Agent(Box<agent::Options>),
    /// The kubelet in miniature, on a lab's node
    #[command(hide = true)]
    Kubelet(kubelet::Options),
    /// Holds a pod's namespaces
    #[command(hide = true)]
    Pause,
    /// Looks after one container
    #[command(hide = true)]
    ContainerMonitor {
        /// The container's directory
        directory: PathBuf,
    },
    /// A lab's API server and controllers
    #[command(hide = true)]
    ControlPlane(lab::control_plane::Options),
    /// The first process of a lab
    #[command(hide = true)]
    LabSupervisor(lab::supervisor::Options),
    /// The first process of a lab's node
    #[command(hide = true)]
    LabNode(lab::node::Options),
    /// What the agent of a node knows and did, and why
    Inspect(inspect::Options),
    /// Questions to the node's DNS
    Dns(dns::Options),
    /// Find what of this node would keep pods from talking; exit code 1 when something does
    Doctor(doctor::Options),
    /// Install the CNI plugin on this node
    Install(install::Install),
    /// Remove the CNI plugin from this node
    Uninstall(install::Uninstall),
    /// What configurations may say
    Config(config::Options),
    /// The addresses pods of this node hold, and what of them leaks
    Ipam(ipam::Options),
    /// Small network tools for examples and tests
    Toolbox(toolbox::Options),
    /// Print a shell's completion script
    Completion {
        /// The shell
        shell: Shell,
    },
    /// Print the version
    Version,
}

fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    let own_name = arguments.next().unwrap_or_default();
    if let Some(code) = applet(&own_name, arguments) {
        return code;
    }
    match Arguments::try_parse() {
        Ok(arguments) => run(arguments.command),
        Err(error) => {
            // Help that nobody reads any more is no failure.
            let _ = error.print();
            ExitCode::from(if error.use_stderr() { USAGE } else { 0 })
        }
    }
}

/// Called by the name of a tool, the binary is that tool.
fn applet(own_name: &OsStr, arguments: impl Iterator<Item = OsString>) -> Option<ExitCode> {
    let name = Path::new(own_name).file_name()?.to_str()?;
    toolbox::applet(name, arguments)
}

fn run(command: Command) -> ExitCode {
    match command {
        Command::Toolbox(options) => toolbox::report("podwire toolbox", toolbox::run(options)),
        Command::Dns(options) => dns::run(&options),
        Command::Doctor(options) => doctor::run(&options),
        Command::Install(options) => install::install(&options),
        Command::Uninstall(options) => install::uninstall(&options),
        Command::Config(options) => config::run(&options),
        Command::Inspect(options) => inspect::run(&options),
        Command::Ipam(options) => ipam::run(&options),
        Command::Completion { shell } => output::print(&completion(shell)),
        Command::Version => {
            output::print(format!("podwire {}\n", env!("CARGO_PKG_VERSION")).as_bytes())
        }
        Command::Lab(options) => {
            output::log(output::Audience::Person);
            match lab::run(&options) {
                Ok(code) => ExitCode::from(code),
                Err(error) => output::fail(&error, error.exit_code()),
            }
        }
        Command::Pause => daemon(kubelet::pause::run()),
        Command::ContainerMonitor { directory } => daemon(kubelet::monitor::run(&directory)),
        Command::Agent(options) => logged(|| agent::run(*options)),
        Command::Kubelet(options) => logged(|| kubelet::run(options)),
        Command::ControlPlane(options) => logged(|| lab::control_plane::run(&options)),
        Command::LabSupervisor(options) => logged(|| lab::supervisor::run(&options)),
        Command::LabNode(options) => logged(|| lab::node::run(&options)),
    }
}

fn logged<E: std::error::Error>(part: impl FnOnce() -> Result<(), E>) -> ExitCode {
    output::log(output::Audience::File);
    daemon(part())
}

fn daemon<E: std::error::Error>(result: Result<(), E>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => output::fail(&error, 1),
    }
}

fn completion(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "podwire", &mut script);
    script
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_makes_sense() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn every_shell_gets_a_script() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let script = String::from_utf8(completion(shell)).unwrap();
            assert!(script.contains("kubeconfig"), "{shell}");
        }
    }
}
