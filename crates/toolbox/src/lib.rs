//! Small network tools, so that an example or a test needs nothing from
//! outside: an HTTP server that says who it is and who asked, TCP and UDP echo,
//! clients that count the answers they get, and the few other programs a probe
//! or an example calls.
//!
//! The podwire binary runs as one of [`APPLETS`] when it is called by that name
//! (see [`applet`]): an image of toolbox is the binary and a link for each.

mod client;
mod curl;
pub mod duration;
mod http;
mod server;
mod text;

use std::ffi::OsString;
use std::io;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

/// The names under which the binary runs as a tool of its own.
pub const APPLETS: &[&str] = &[
    "toolbox", "curl", "sleep", "cat", "echo", "env", "hostname", "touch", "rm", "true", "false",
];

/// The command line of `podwire toolbox`.
#[derive(Debug, Args)]
pub struct Options {
    /// Which tool.
    #[command(subcommand)]
    tool: Tool,
}

#[derive(Debug, Subcommand)]
enum Tool {
    /// Serve HTTP, and echo TCP and UDP
    Serve(server::Options),
    /// Fetch a URL, once or many times, and count the answers
    Get(client::GetOptions),
    /// Send text over TCP or UDP, once or many times, and count the answers
    Connect(client::ConnectOptions),
    /// Fetch URLs with curl's most used options
    #[command(disable_help_flag = true, disable_version_flag = true)]
    Curl(curl::Options),
    /// Wait; ends at once on SIGTERM
    Sleep {
        /// How long: seconds, or with a unit (500ms, 2m, 1h), or infinity
        time: Vec<String>,
    },
    /// Print files, or standard input
    Cat {
        /// The files; - is standard input
        files: Vec<std::path::PathBuf>,
    },
    /// Print the arguments
    #[command(disable_help_flag = true)]
    Echo {
        /// What to print
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
    /// Print the environment
    Env,
    /// Print the host name
    Hostname,
    /// Make files, or set their times to now
    Touch {
        /// The files
        #[arg(required = true)]
        files: Vec<std::path::PathBuf>,
    },
    /// Remove files
    Rm {
        /// A file that is missing is no error
        #[arg(short)]
        force: bool,
        /// The files
        #[arg(required = true)]
        files: Vec<std::path::PathBuf>,
    },
    /// Succeed
    True,
    /// Fail
    False,
}

/// Why a tool failed; [`Error::exit_code`] tells how.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The asynchronous runtime or a signal handler could not be made.
    #[error("cannot start: {0}")]
    Start(#[source] io::Error),
    /// A port could not be listened on.
    #[error("cannot listen on {protocol} port {port}: {source}")]
    Listen {
        /// TCP or UDP.
        protocol: &'static str,
        /// The port.
        port: u16,
        /// What the kernel said.
        source: io::Error,
    },
    /// An argument that makes no sense.
    #[error("{0}")]
    Usage(String),
    /// Some of the requests of `get` or `connect` failed; the tally said which.
    #[error("{failed} of {total} failed")]
    Requests {
        /// How many failed.
        failed: u64,
        /// Of how many.
        total: u64,
    },
    /// curl's way to fail.
    #[error("({code}) {message}")]
    Curl {
        /// curl's exit code.
        code: u8,
        /// What happened.
        message: String,
        /// Nothing is to be printed (`-s` without `-S`).
        silent: bool,
    },
    /// A file could not be read or written.
    #[error("{what}: {source}")]
    File {
        /// The file, or "standard output".
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The tool ends with this exit code without a word.
    #[error("exit code {0}")]
    Exit(u8),
}

impl Error {
    /// The exit code of the process: curl's own, 2 for wrong usage, else 1.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Curl { code, .. } | Self::Exit(code) => *code,
            Self::Usage(_) => 2,
            _ => 1,
        }
    }

    /// Whether the message is not for printing.
    pub fn is_silent(&self) -> bool {
        matches!(self, Self::Exit(_) | Self::Curl { silent: true, .. })
    }

    fn output(source: io::Error) -> Self {
        Self::File {
            what: "standard output".into(),
            source,
        }
    }
}

/// Runs a tool until it is done.
///
/// # Errors
/// Each tool's own; a reader that went away (broken pipe) is success.
pub fn run(options: Options) -> Result<(), Error> {
    let result = match options.tool {
        Tool::Serve(options) => server::run(options),
        Tool::Get(options) => client::get(&options),
        Tool::Connect(options) => client::connect(&options),
        Tool::Curl(options) => curl::run(&options),
        Tool::Sleep { time } => text::sleep(&time),
        Tool::Cat { files } => text::cat(&files),
        Tool::Echo { words } => text::echo(&words),
        Tool::Env => text::env(),
        Tool::Hostname => text::print(format!("{}\n", text::hostname()).as_bytes()),
        Tool::Touch { files } => text::touch(&files),
        Tool::Rm { force, files } => text::remove(force, &files),
        Tool::True => Ok(()),
        Tool::False => Err(Error::Exit(1)),
    };
    match result {
        Err(Error::File { source, .. }) if source.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

#[derive(Parser)]
#[command(name = "toolbox", about = "Small network tools for examples and tests")]
struct Multicall {
    #[command(flatten)]
    options: Options,
}

/// Runs the applet `name` (one of [`APPLETS`]) with its arguments, prints what
/// went wrong, and returns the exit code. None when there is no such applet.
pub fn applet(name: &str, arguments: impl IntoIterator<Item = OsString>) -> Option<ExitCode> {
    if !APPLETS.contains(&name) {
        return None;
    }
    let mut line = vec![OsString::from("toolbox")];
    if name != "toolbox" {
        line.push(name.into());
    }
    line.extend(arguments);
    let code = match Multicall::try_parse_from(line) {
        Ok(parsed) => report(name, run(parsed.options)),
        Err(error) => {
            // Help that nobody reads any more is no failure.
            let _ = error.print();
            ExitCode::from(if error.use_stderr() { 2 } else { 0 })
        }
    };
    Some(code)
}

/// Prints a tool's error as its exit code wants it.
pub fn report(name: &str, result: Result<(), Error>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if !error.is_silent() {
                eprintln!("{name}: {error}");
            }
            ExitCode::from(error.exit_code())
        }
    }
}

/// A runtime on the calling thread: the tools wait more than they compute.
fn runtime() -> Result<tokio::runtime::Runtime, Error> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Error::Start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_applet_is_a_command() {
        use clap::CommandFactory;
        Multicall::command().debug_assert();
        let known: Vec<String> = Multicall::command()
            .get_subcommands()
            .map(|c| c.get_name().to_owned())
            .collect();
        for name in APPLETS.iter().filter(|name| **name != "toolbox") {
            assert!(known.iter().any(|k| k == name), "{name}");
        }
        assert!(applet("bash", []).is_none());
    }
}
