//! `cargo xtask bench …`: each subject is a benchmark of a crate, run with the
//! release build of the programs.

use clap::Subcommand;

use crate::{setup, shell};

/// What to measure.
#[derive(Subcommand)]
pub(crate) enum Subject {
    /// A lab's start: two nodes with the example, fifty nodes with ten pods each
    Lab,
    /// Attaching and detaching pods, beside the reference plugins and bare netlink calls
    Cni,
    /// Pods of two nodes over each back end, beside plain routing and tunnels set up by hand
    Routing,
    /// Services: rules from nothing and changed, beside kube-proxy's layouts by nft and
    /// iptables; their cost for packets; the agent's memory
    Services,
    /// Names answered, beside unbound; installs it, which starts it on Debian
    Dns,
}

/// Builds the programs and runs the benchmark as root.
pub(crate) fn run(subject: Subject) -> anyhow::Result<()> {
    setup::install(match subject {
        Subject::Dns => setup::Purpose::BenchDns,
        _ => setup::Purpose::Bench,
    })?;
    shell::run(shell::command("cargo", &["build", "--release", "--bins"]))?;
    let (package, bench) = match subject {
        Subject::Lab => ("podwire-lab", "lab"),
        Subject::Cni => ("podwire-cni", "cni"),
        Subject::Routing => ("podwire-routing", "routing"),
        Subject::Services => ("podwire-services", "services"),
        Subject::Dns => ("podwire-dns", "dns"),
    };
    let mut command = shell::command("cargo", &["bench", "--package", package, "--bench", bench]);
    command.env("PODWIRE_BIN", shell::root().join("target/release/podwire"));
    if !shell::is_root() {
        let runner = format!(
            "CARGO_TARGET_{}_UNKNOWN_LINUX_GNU_RUNNER",
            std::env::consts::ARCH.to_uppercase()
        );
        command.env(runner, "sudo --preserve-env");
    }
    shell::run(command)
}
