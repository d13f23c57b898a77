//! What is printed: results, errors, logs.

use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;

use anstream::AutoStream;
use owo_colors::OwoColorize;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// The environment variable with the filter of the logs, for instance `debug`
/// or `warn,podwire_services=trace`.
const FILTER: &str = "PODWIRE_LOG";

/// Who reads the logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Audience {
    /// Somebody at a terminal: warnings only, without times.
    Person,
    /// A log file or a log collector.
    File,
}

/// Starts logging to standard error.
pub(crate) fn log(audience: Audience) {
    let default = match audience {
        Audience::Person => Targets::new().with_default(tracing::Level::WARN),
        Audience::File => Targets::new().with_default(tracing::Level::INFO),
    };
    let (filter, wrong) = match std::env::var(FILTER) {
        Ok(text) if !text.is_empty() => match text.parse::<Targets>() {
            Ok(filter) => (filter, None),
            Err(error) => (default, Some(error)),
        },
        _ => (default, None),
    };
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(anstream::stderr().current_choice() != anstream::ColorChoice::Never);
    // The error says that somebody else logs already, which is as good.
    let _ = match audience {
        Audience::Person => tracing_subscriber::registry()
            .with(filter)
            .with(layer.without_time().with_target(false))
            .try_init(),
        Audience::File => tracing_subscriber::registry()
            .with(filter)
            .with(layer)
            .try_init(),
    };
    if let Some(error) = wrong {
        tracing::warn!(
            "{FILTER} is not used: {error}; write for instance debug or warn,podwire_lab=debug"
        );
    }
}

/// Prints a result; a reader that went away is success.
pub(crate) fn print(bytes: &[u8]) -> ExitCode {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => fail(&error, 1),
    }
}

/// Prints an error with its causes, as far as its own text does not name them.
pub(crate) fn fail(error: &dyn Error, code: u8) -> ExitCode {
    let text = chain(error);
    let mut stream = AutoStream::auto(io::stderr());
    // There is nobody left to tell.
    let _ = writeln!(stream, "{} {text}", "error:".red().bold());
    ExitCode::from(code)
}

fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let next_text = next.to_string();
        if !text.contains(&next_text) {
            text.push_str(": ");
            text.push_str(&next_text);
        }
        cause = next.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Layer {
        text: &'static str,
        source: Option<Box<Layer>>,
    }

    #[test]
    fn causes_are_said_once() {
        let layer = |text, source: Option<Layer>| Layer {
            text,
            source: source.map(Box::new),
        };
        let error = layer(
            "cannot start: no file",
            Some(layer("no file", Some(layer("really not", None)))),
        );
        assert_eq!(chain(&error), "cannot start: no file: really not");
    }
}
