//! What the plugin did, in a file: one line for each order of the runtime, since
//! most runtimes throw stderr away when all went well.
//!
//! Many plugins write at once: each line is one write to a file opened for
//! appending. When the file is full, whoever gets its lock renames it; those
//! that have it open write their line into the renamed one. Nothing here ever
//! fails an operation.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The file when none is configured.
pub const DEFAULT_FILE: &str = "/var/log/podwire/cni.log";
/// Its size in bytes at which it is renamed.
pub const DEFAULT_BYTES: u64 = 1024 * 1024;
/// Longest line in bytes.
const LONGEST: usize = 4096;

/// What is written.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Deserialize, Serialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Nothing.
    Off,
    /// Operations that failed.
    Error,
    /// Also those that succeeded and changed something.
    #[default]
    Info,
    /// Also those that only looked, and the configuration of each.
    Debug,
}

/// Where and what to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    file: PathBuf,
    level: Level,
    bytes: u64,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            file: DEFAULT_FILE.into(),
            level: Level::default(),
            bytes: DEFAULT_BYTES,
        }
    }
}

impl Log {
    /// Writes nothing: as long as nobody said where.
    pub fn off() -> Self {
        Self {
            level: Level::Off,
            ..Self::default()
        }
    }

    /// As a configuration has it, also one that is wrong elsewhere; wrong keys
    /// count as not there.
    pub fn of(configuration: &Value) -> Self {
        let default = Self::default();
        let level = configuration
            .get("logLevel")
            .and_then(|level| Level::deserialize(level).ok());
        Self {
            file: configuration
                .get("logFile")
                .and_then(Value::as_str)
                .map_or(default.file, PathBuf::from),
            level: level.unwrap_or(default.level),
            bytes: configuration
                .get("logBytes")
                .and_then(Value::as_u64)
                .unwrap_or(default.bytes),
        }
    }

    /// Whether lines of a level are written.
    pub fn wants(&self, level: Level) -> bool {
        level <= self.level && self.file.is_absolute()
    }

    /// Writes a line. What fails is told on stderr, for want of a log.
    pub fn write(&self, level: Level, text: &dyn fmt::Display) {
        if !self.wants(level) {
            return;
        }
        if let Err(error) = self.append(&line(level, &text.to_string())) {
            // Nobody may listen there either.
            let _ = writeln!(
                io::stderr(),
                "podwire-cni: cannot write the log {}: {error}",
                self.file.display()
            );
        }
    }

    fn append(&self, line: &str) -> io::Result<()> {
        let mut file = match open(&self.file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let folder = self.file.parent().unwrap_or(Path::new("/"));
                fs::DirBuilder::new()
                    .recursive(true)
                    .mode(0o755)
                    .create(folder)?;
                open(&self.file)?
            }
            other => other?,
        };
        if file.metadata()?.len() >= self.bytes {
            file = self.rotate(file)?;
        }
        file.write_all(line.as_bytes())
    }

    /// Renames the full file, unless another did. Gives the one to write to.
    fn rotate(&self, full: File) -> io::Result<File> {
        // One that is at it is not waited for: its file takes one line more.
        if full.try_lock().is_err() {
            return Ok(full);
        }
        let (own, there) = (full.metadata()?, fs::metadata(&self.file));
        if there.is_ok_and(|there| there.ino() == own.ino() && there.dev() == own.dev()) {
            let mut older = self.file.clone().into_os_string();
            older.push(".1");
            fs::rename(&self.file, older)?;
        }
        open(&self.file)
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o640)
        .open(path)
}

/// The time, the level, the text: on one line, whatever it holds.
fn line(level: Level, text: &str) -> String {
    let level = match level {
        Level::Off | Level::Error => "error",
        Level::Info => "info",
        Level::Debug => "debug",
    };
    let mut line = format!("{:.3} {level} ", Timestamp::now());
    for character in text.chars() {
        if line.len() > LONGEST {
            line.push('…');
            break;
        }
        if character.is_control() {
            line.extend(character.escape_default());
        } else {
            line.push(character);
        }
    }
    line.push('\n');
    line
}

/// A duration in milliseconds, for a line.
pub fn milliseconds(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1000.0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn log(file: &Path, bytes: u64) -> Log {
        Log::of(&json!({"logFile": file, "logBytes": bytes}))
    }

    #[test]
    fn a_wrong_key_counts_as_not_there() {
        let wrong = json!({"logFile": 5, "logLevel": "loud", "logBytes": "many"});
        assert_eq!(Log::of(&wrong), Log::default());
        assert_eq!(Log::of(&json!([])), Log::default());
        assert!(!Log::of(&json!({"logFile": ""})).wants(Level::Error));
        assert!(!Log::of(&json!({"logFile": "here.log"})).wants(Level::Error));
        assert!(!Log::of(&json!({"logLevel": "error"})).wants(Level::Info));
        assert!(Log::of(&json!({"logLevel": "debug"})).wants(Level::Debug));
    }

    #[test]
    fn a_line_is_one_line_of_bounded_length() {
        let text = line(Level::Info, "a\nb\u{0}");
        assert!(text.ends_with(" info a\\nb\\u{0}\n"), "{text}");
        assert!(line(Level::Error, &"x".repeat(100_000)).len() < LONGEST + 10);
    }

    #[test]
    fn many_writers_lose_no_line_and_the_file_stays_small() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("below/cni.log");
        let log = &log(&path, 64 * 1024);
        std::thread::scope(|scope| {
            for writer in 0..8 {
                scope.spawn(move || {
                    for n in 0..100 {
                        log.write(Level::Info, &format!("line {writer} {n}"));
                    }
                });
            }
        });
        let older = folder.path().join("below/cni.log.1");
        assert!(!older.exists());
        assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 800);
        // Full: it is renamed once, and the renamed one replaced the next time.
        for n in 0..4000 {
            log.write(Level::Info, &format!("line {n}"));
        }
        let sizes = [&path, &older].map(|path| fs::metadata(path).unwrap().len());
        assert!(sizes.iter().all(|size| *size < 65 * 1024), "{sizes:?}");
        assert_eq!(
            fs::read_dir(folder.path().join("below")).unwrap().count(),
            2
        );
        let last = fs::read_to_string(&path).unwrap();
        assert!(last.ends_with("line 3999\n"));
    }
}
