//! Container logs in the CRI format: `TIME stdout|stderr F|P LINE`, where P
//! marks a line that goes on in the next record.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use jiff::Timestamp;

/// A longer line is written in parts.
const LINE_LIMIT: usize = 16 * 1024;
/// Full log files kept beside the one being written.
const KEPT: usize = 4;

/// The two outputs of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// Cuts an output into records; keeps an unfinished line for the next call.
#[derive(Debug)]
pub struct Lines {
    stream: Stream,
    rest: Vec<u8>,
}

impl Lines {
    /// For one output.
    pub fn new(stream: Stream) -> Self {
        Self {
            stream,
            rest: Vec::new(),
        }
    }

    /// Appends to `records` what `bytes` completes, as read at `now`.
    pub fn push(&mut self, now: Timestamp, mut bytes: &[u8], records: &mut Vec<u8>) {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            self.take(now, &bytes[..end], records);
            let line = std::mem::take(&mut self.rest);
            record(now, self.stream, 'F', &line, records);
            bytes = &bytes[end + 1..];
        }
        self.take(now, bytes, records);
    }

    /// Appends an unfinished last line.
    pub fn finish(&mut self, now: Timestamp, records: &mut Vec<u8>) {
        if !self.rest.is_empty() {
            let line = std::mem::take(&mut self.rest);
            record(now, self.stream, 'P', &line, records);
        }
    }

    /// Adds bytes without a line end, writing full parts.
    fn take(&mut self, now: Timestamp, mut bytes: &[u8], records: &mut Vec<u8>) {
        while self.rest.len() + bytes.len() > LINE_LIMIT {
            let room = LINE_LIMIT - self.rest.len();
            self.rest.extend_from_slice(&bytes[..room]);
            bytes = &bytes[room..];
            let part = std::mem::take(&mut self.rest);
            record(now, self.stream, 'P', &part, records);
        }
        self.rest.extend_from_slice(bytes);
    }
}

fn record(now: Timestamp, stream: Stream, tag: char, line: &[u8], records: &mut Vec<u8>) {
    let head = format!("{now:.9} {} {tag} ", stream.name());
    records.extend_from_slice(head.as_bytes());
    records.extend_from_slice(line);
    records.push(b'\n');
}

/// A log file that starts anew when it is full: `0.log`, older ones `0.log.1`
/// (the latest) to `0.log.4`.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    file: File,
    size: u64,
    limit: u64,
}

impl LogFile {
    /// Opens a log to append to it; it starts anew beyond `limit` bytes.
    ///
    /// # Errors
    /// When the file can't be opened or made.
    pub fn open(path: &Path, limit: u64) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        Ok(Self {
            path: path.to_owned(),
            size: file.metadata()?.len(),
            file,
            limit,
        })
    }

    /// Appends whole records.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn append(&mut self, records: &[u8]) -> io::Result<()> {
        if self.size > 0 && self.size + records.len() as u64 > self.limit {
            for age in (1..KEPT).rev() {
                let older = rotated(&self.path, age);
                if older.exists() {
                    std::fs::rename(&older, rotated(&self.path, age + 1))?;
                }
            }
            std::fs::rename(&self.path, rotated(&self.path, 1))?;
            *self = Self::open(&self.path, self.limit)?;
        }
        self.file.write_all(records)?;
        self.size += records.len() as u64;
        Ok(())
    }
}

fn rotated(path: &Path, age: usize) -> PathBuf {
    let mut name = path.as_os_str().to_os_string();
    name.push(format!(".{age}"));
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at() -> Timestamp {
        Timestamp::new(1_700_000_000, 5).unwrap()
    }

    #[test]
    fn whole_lines_are_full_records_with_nanoseconds() {
        let mut lines = Lines::new(Stream::Stdout);
        let mut out = Vec::new();
        lines.push(at(), b"one\ntw", &mut out);
        lines.push(at(), b"o\n\n", &mut out);
        let stamp = "2023-11-14T22:13:20.000000005Z";
        assert_eq!(
            String::from_utf8(out).unwrap(),
            format!("{stamp} stdout F one\n{stamp} stdout F two\n{stamp} stdout F \n")
        );
    }

    #[test]
    fn long_and_unfinished_lines_are_partial_records() {
        let mut lines = Lines::new(Stream::Stderr);
        let mut out = Vec::new();
        lines.push(at(), &vec![b'x'; LINE_LIMIT + 3], &mut out);
        lines.finish(at(), &mut out);
        let text = String::from_utf8(out).unwrap();
        let records: Vec<&str> = text.lines().collect();
        assert_eq!(records.len(), 2);
        assert!(records[0].contains(" stderr P xxx"));
        assert!(records[1].ends_with(" stderr P xxx"));
    }

    #[test]
    fn a_full_log_moves_aside_and_four_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut log = LogFile::open(&path, 10).unwrap();
        for n in 0..8 {
            log.append(format!("record{n}\n").as_bytes()).unwrap();
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "record7\n");
        assert_eq!(
            std::fs::read_to_string(rotated(&path, 1)).unwrap(),
            "record6\n"
        );
        assert!(rotated(&path, 4).exists());
        assert!(!rotated(&path, 5).exists());
    }
}
