//! The lints and every test.

use clap::Args;

use crate::{setup, shell};

/// What to run.
#[derive(Args)]
pub(crate) struct Options {
    /// Leave the lints out
    #[arg(long)]
    no_lint: bool,
    /// Only tests whose name contains this
    filter: Option<String>,
}

/// Formatting, clippy, licences and sources of dependencies.
pub(crate) fn lint() -> anyhow::Result<()> {
    setup::install(setup::Purpose::Test)?;
    shell::run(shell::command("cargo", &["fmt", "--all", "--check"]))?;
    shell::run(shell::command(
        "cargo",
        &[
            "clippy",
            "--workspace",
            "--all-targets",
            "--",
            "--deny",
            "warnings",
        ],
    ))?;
    // Advisories need a database from the network and are checked by their own schedule.
    shell::run(shell::command(
        "cargo",
        &["deny", "check", "licenses", "bans", "sources"],
    ))
}

/// Runs all tests; those that need root get it by `sudo` where this process
/// is not root (the build itself never runs as root then).
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    if options.no_lint {
        setup::install(setup::Purpose::Test)?;
    } else {
        lint()?;
    }
    let kubectl = setup::distribution_kubectl()?;
    // The tests start the programs as a user would: they must be built first. With
    // the tests: alone they are built with other features of their dependencies,
    // and those would be compiled twice.
    shell::run(shell::command(
        "cargo",
        &["build", "--workspace", "--bins", "--tests"],
    ))?;
    let mut command = shell::command("cargo", &["nextest", "run", "--workspace"]);
    command.args(&options.filter);
    command.env("PODWIRE_KUBECTL_DEBIAN", kubectl);
    if !shell::is_root() {
        let runner = format!(
            "CARGO_TARGET_{}_UNKNOWN_LINUX_GNU_RUNNER",
            std::env::consts::ARCH.to_uppercase()
        );
        command.env(runner, "sudo --preserve-env");
    }
    shell::run(command)
}
