//! The plugin's binary: see the library.

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;

use podwire_cni::reaper;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    if arguments
        .next()
        .is_some_and(|first| first == reaper::ARGUMENT)
    {
        return reap(arguments.next());
    }
    let mut output = Vec::new();
    let variables = |name: &str| std::env::var_os(name);
    let outcome = podwire_cni::plugin::run(&variables, &mut io::stdin().lock(), &mut output);
    if let Err(error) = &outcome {
        // For a person who runs the plugin by hand or reads the runtime's log.
        let _ = writeln!(io::stderr(), "podwire-cni: {error}");
    }
    // A runtime that is gone cannot be told anything.
    let _ = io::stdout().write_all(&output);
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// The plugin's own process in the background; a runtime never asks for it.
fn reap(root: Option<OsString>) -> ExitCode {
    match root.as_deref().map(|root| reaper::run(Path::new(root))) {
        Some(Ok(())) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}
