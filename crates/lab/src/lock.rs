//! Whether a lab lives, and who holds it.
//!
//! The file `lock` is locked (flock(2)) by the process that brings the lab up
//! and then, through the same open file, by its supervisor: the kernel lets go
//! of it when they are dead, and not before. It holds the number and start time
//! of the holder, which name a process for good.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use linux::process::{Process, start_time};
use rustix::process::Pid;

/// The lock, held.
#[derive(Debug)]
pub(crate) struct Lock {
    file: File,
}

/// What the lock of a lab is like.
#[derive(Debug)]
pub(crate) enum State {
    /// Nobody held it; now the caller does.
    Free(Lock),
    /// Somebody does.
    Held,
}

impl Lock {
    /// Takes the lock of the lab in `dir`, which is made when missing, unless
    /// it is held.
    pub(crate) fn take(dir: &Path) -> io::Result<State> {
        loop {
            match Self::try_take(dir) {
                // Whoever takes the last lab down also takes the directories.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Ok(None) => {}
                Ok(Some(state)) => return Ok(state),
                Err(error) => return Err(error),
            }
        }
    }

    fn try_take(dir: &Path) -> io::Result<Option<State>> {
        std::fs::create_dir_all(dir)?;
        let path = dir.join("lock");
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(0o644)
            .open(&path)?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => return Ok(Some(State::Held)),
            Err(TryLockError::Error(error)) => return Err(error),
            Ok(()) => {}
        }
        // The file may have been removed by its last holder meanwhile.
        let (opened, named) = (file.metadata()?, std::fs::metadata(&path)?);
        let same = opened.ino() == named.ino() && opened.dev() == named.dev();
        Ok(same.then_some(State::Free(Self { file })))
    }

    /// A lock handed on by the process that took it.
    pub(crate) fn from_inherited(file: OwnedFd) -> Self {
        Self { file: file.into() }
    }

    /// A second handle on the lock, to hand on.
    pub(crate) fn handle(&self) -> io::Result<OwnedFd> {
        self.file.try_clone().map(Into::into)
    }

    /// Writes who the holder is: the calling process, by its number in the PID
    /// namespace of the mounted `/proc`.
    pub(crate) fn sign(&mut self) -> io::Result<()> {
        let own = std::fs::read_link("/proc/self")?;
        let pid: i32 = own
            .to_str()
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| io::Error::other("/proc/self names no process"))?;
        let pid = Pid::from_raw(pid).ok_or_else(|| io::Error::other("process number zero"))?;
        let started = start_time(pid).map_err(io::Error::other)?;
        let text = format!("{} {started}\n", pid.as_raw_nonzero());
        self.file.set_len(0)?;
        self.file.rewind()?;
        self.file.write_all(text.as_bytes())
    }
}

/// The process that signed the lock of the lab in `dir`, if it lives still.
pub(crate) fn holder(dir: &Path) -> io::Result<Option<Process>> {
    let mut text = String::new();
    match File::open(dir.join("lock")) {
        Ok(mut file) => file.read_to_string(&mut text)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let Some((pid, started)) = parse(&text) else {
        return Ok(None);
    };
    let Ok(process) = Process::open(pid) else {
        return Ok(None);
    };
    // Compared after it was opened: from here on the handle names this process
    // whatever becomes of its number.
    let same = start_time(pid).is_ok_and(|now| now == started);
    Ok(same.then_some(process))
}

fn parse(text: &str) -> Option<(Pid, u64)> {
    let (pid, started) = text.trim().split_once(' ')?;
    Some((
        linux::process::number(pid.parse().ok()?)?,
        started.parse().ok()?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holds_it_and_says_who() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("lab");
        let State::Free(mut lock) = Lock::take(&dir).unwrap() else {
            panic!("nobody can hold it");
        };
        assert!(holder(&dir).unwrap().is_none());
        lock.sign().unwrap();
        assert_eq!(
            holder(&dir).unwrap().unwrap().pid(),
            rustix::process::getpid()
        );
        assert!(matches!(Lock::take(&dir).unwrap(), State::Held));
        let handed_on = Lock::from_inherited(lock.handle().unwrap());
        drop(lock);
        assert!(matches!(Lock::take(&dir).unwrap(), State::Held));
        drop(handed_on);
        assert!(matches!(Lock::take(&dir).unwrap(), State::Free(_)));
    }

    #[test]
    fn a_reused_number_is_nobody() {
        let folder = tempfile::tempdir().unwrap();
        for text in ["", "x", "1", "1 x", "0 0", "-1 5"] {
            std::fs::write(folder.path().join("lock"), text).unwrap();
            assert!(holder(folder.path()).unwrap().is_none(), "{text}");
        }
        let own = rustix::process::getpid();
        std::fs::write(folder.path().join("lock"), format!("{} 1\n", own)).unwrap();
        assert!(holder(folder.path()).unwrap().is_none());
    }
}
