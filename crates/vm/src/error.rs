//! What can go wrong before, in and after a guest.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Why the cases could not be run, or that they failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No kernel has been fetched.
    #[error(
        "no kernel to boot below {directory}: run `cargo xtask setup`, which fetches one; \
         it is needed since this machine's kernel lacks {lacking}"
    )]
    NoKernel {
        /// Where it was looked for.
        directory: PathBuf,
        /// The features the running kernel lacks.
        lacking: String,
    },
    /// The fetched kernel is not one that can be booted.
    #[error(
        "cannot take the kernel out of {path}: {reason}; remove its directory and run `cargo xtask setup`"
    )]
    Kernel {
        /// The compressed kernel.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The fetched kernel has no such module.
    #[error("the guest's kernel {version} has no module {module}{}", .wanted_by.as_deref().map(|name| format!(" (needed by {name})")).unwrap_or_default())]
    NoModule {
        /// The module.
        module: String,
        /// The module that depends on it.
        wanted_by: Option<String>,
        /// The kernel.
        version: String,
    },
    /// A module is there and cannot be read.
    #[error("cannot read the kernel module {path}: {reason}")]
    Module {
        /// Its file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A program the guest needs is not installed.
    #[error(
        "the program {program} is not installed here and the guest needs it; `cargo xtask setup` installs what the tests use"
    )]
    NoProgram {
        /// Its name or path.
        program: PathBuf,
    },
    /// Something on this machine failed.
    #[error("cannot {purpose}: {source}")]
    Io {
        /// What was being done, as a verb phrase.
        purpose: String,
        /// Why it failed.
        source: io::Error,
    },
    /// A guest was asked for inside a guest.
    #[error(
        "this is a guest already and it lacks {0}: its kernel was booted without the modules, name the feature where the guest is described"
    )]
    Nested(String),
    /// The guest was not done in time.
    #[error("the guest was not done after {limit:?}; its console so far:\n{console}")]
    Deadline {
        /// How long it was given.
        limit: Duration,
        /// What it wrote.
        console: String,
    },
    /// The guest stopped without saying how its work ended.
    #[error(
        "the guest ended without a result (a kernel panic, or out of memory); its console:\n{console}"
    )]
    Died {
        /// What it wrote.
        console: String,
    },
    /// No test of the binary matches.
    #[error("no ignored test of this binary has \"{filter}\" in its name; output:\n{output}")]
    NoCases {
        /// What was asked for.
        filter: String,
        /// What the test binary wrote.
        output: String,
    },
    /// Some case failed, or the test binary did.
    #[error("{failed} (exit code {code}); output:\n{output}")]
    Failed {
        /// Which cases failed, in words.
        failed: String,
        /// The test binary's exit code.
        code: i32,
        /// What it wrote.
        output: String,
    },
}

impl Error {
    /// For `map_err`: says what was being done.
    pub(crate) fn io(purpose: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let purpose = purpose.into();
        move |source| Self::Io { purpose, source }
    }
}
