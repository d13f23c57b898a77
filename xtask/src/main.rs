//! Everything a person does with the source tree: `cargo xtask demo`, `test`,
//! `lint`, `bench`, `bpf`. Each installs what it needs first.

mod bench;
mod bpf;
mod demo;
mod setup;
mod shell;
mod test;

use clap::{Parser, Subcommand};

/// Tasks of the podwire source tree.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Build podwire, bring up a two-node cluster with a small shop on it and show it working
    Demo,
    /// Run the lints and every test, those that need root included
    Test(test::Options),
    /// Check formatting, lints, licences and sources of dependencies
    Lint,
    /// Install the programs that building, running and testing need
    Setup,
    /// Compile the BPF programs anew after a change of their source (needs clang)
    Bpf,
    /// Measure, and print a table with a floor or a peer beside each figure
    Bench {
        /// What to measure
        #[command(subcommand)]
        subject: bench::Subject,
    },
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().task {
        Task::Demo => demo::run(),
        Task::Test(options) => test::run(&options),
        Task::Lint => test::lint(),
        Task::Setup => setup::install(setup::Purpose::Test),
        Task::Bpf => bpf::run(),
        Task::Bench { subject } => bench::run(subject),
    }
}
