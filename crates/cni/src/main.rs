//! The plugin's binary: see the library.

use std::io::{self, Write as _};
use std::process::ExitCode;

fn main() -> ExitCode {
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
