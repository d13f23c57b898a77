//! The kubelet alone with its helper processes, for the tests of this crate;
//! what users run is `podwire`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

#[derive(Parser)]
enum Command {
    Kubelet(podwire_kubelet::Options),
    Pause,
    ContainerMonitor { dir: PathBuf },
    Toolbox(toolbox::Options),
}

fn main() -> ExitCode {
    let mut words = std::env::args_os();
    let name = words.next().map(PathBuf::from).unwrap_or_default();
    let name = name.file_name().and_then(|name| name.to_str());
    if let Some(code) = name.and_then(|name| toolbox::applet(name, words)) {
        return code;
    }
    let result = match Command::parse() {
        Command::Kubelet(options) => {
            tracing_subscriber::fmt()
                .with_writer(std::io::stderr)
                .init();
            podwire_kubelet::run(options)
        }
        Command::Pause => podwire_kubelet::pause::run(),
        Command::ContainerMonitor { dir } => podwire_kubelet::monitor::run(&dir),
        Command::Toolbox(options) => return toolbox::report("toolbox", toolbox::run(options)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("podwire-kubelet: {error}");
            ExitCode::FAILURE
        }
    }
}
