//! The tools that only read, write and wait.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use crate::{Error, duration, runtime};

/// The machine's name as the kernel knows it.
pub(crate) fn hostname() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map_or_else(|_| "localhost".into(), |name| name.trim().to_owned())
}

pub(crate) fn print(bytes: &[u8]) -> Result<(), Error> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)
        .and_then(|()| out.flush())
        .map_err(Error::output)
}

pub(crate) fn sleep(times: &[String]) -> Result<(), Error> {
    let mut total = Some(Duration::ZERO);
    for time in times {
        total = match (total, time.as_str()) {
            (_, "infinity" | "inf") | (None, _) => None,
            (Some(sum), time) => {
                Some(sum.saturating_add(duration::parse(time).map_err(Error::Usage)?))
            }
        };
    }
    if times.is_empty() {
        return Err(Error::Usage("sleep: how long?".into()));
    }
    // As the first process of a container it gets no signal it does not handle.
    runtime()?.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).map_err(Error::Start)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(Error::Start)?;
        let slept = async {
            match total {
                Some(time) => tokio::time::sleep(time).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = slept => Ok(()),
            _ = terminate.recv() => Err(Error::Exit(143)),
            _ = interrupt.recv() => Err(Error::Exit(130)),
        }
    })
}

pub(crate) fn cat(files: &[PathBuf]) -> Result<(), Error> {
    let standard_input = [PathBuf::from("-")];
    let files = if files.is_empty() {
        &standard_input[..]
    } else {
        files
    };
    for file in files {
        if file == Path::new("-") {
            copy("standard input", io::stdin().lock())?;
        } else {
            let opened = std::fs::File::open(file).map_err(|source| at(file, source))?;
            copy(&file.display().to_string(), opened)?;
        }
    }
    Ok(())
}

fn copy(name: &str, mut from: impl Read) -> Result<(), Error> {
    let mut out = io::stdout().lock();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let length = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(source) => {
                return Err(Error::File {
                    what: name.to_owned(),
                    source,
                });
            }
        };
        out.write_all(&buffer[..length]).map_err(Error::output)?;
    }
    out.flush().map_err(Error::output)
}

pub(crate) fn echo(words: &[String]) -> Result<(), Error> {
    match words.split_first() {
        Some((flag, rest)) if flag == "-n" => print(rest.join(" ").as_bytes()),
        _ => print(format!("{}\n", words.join(" ")).as_bytes()),
    }
}

pub(crate) fn env() -> Result<(), Error> {
    let mut lines = Vec::new();
    for (key, value) in std::env::vars_os() {
        lines.extend_from_slice(key.as_encoded_bytes());
        lines.push(b'=');
        lines.extend_from_slice(value.as_encoded_bytes());
        lines.push(b'\n');
    }
    print(&lines)
}

pub(crate) fn touch(files: &[PathBuf]) -> Result<(), Error> {
    for path in files {
        std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .and_then(|file| file.set_modified(std::time::SystemTime::now()))
            .map_err(|source| at(path, source))?;
    }
    Ok(())
}

pub(crate) fn remove(force: bool, files: &[PathBuf]) -> Result<(), Error> {
    for path in files {
        match std::fs::remove_file(path) {
            Err(error) if force && error.kind() == io::ErrorKind::NotFound => {}
            result => result.map_err(|source| at(path, source))?,
        }
    }
    Ok(())
}

fn at(path: &Path, source: io::Error) -> Error {
    Error::File {
        what: path.display().to_string(),
        source,
    }
}
