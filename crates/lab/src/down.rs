//! Taking a lab down: kill its first process, wait, remove its files. Works
//! whatever died before, and does nothing to other labs.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::cgroup;
use crate::internet;
use crate::lock::{self, Lock, State};
use crate::paths::Paths;

/// How long a killed lab may take to go: the kernel takes its namespaces apart.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often it is looked who holds the lock meanwhile.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Why a lab could not be taken down.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("cannot {action} {path}: {source}", path = path.display())]
    File {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("cannot close the lab's way to the machine's uplink: {0}")]
    Internet(#[from] internet::Error),
    #[error("cannot stop the lab: {0}")]
    Process(#[from] linux::process::Error),
    #[error(
        "the lab's processes did not end within {} s; look at ps -ef for podwire and try again",
        PATIENCE.as_secs()
    )]
    Patience,
}

/// Takes the lab down; false when there was none.
pub(crate) fn down(name: &str) -> Result<bool, Error> {
    let paths = Paths::of(name);
    if !paths.dir().exists() && !paths.state().exists() {
        remove_cgroups(name)?;
        internet::close(name)?;
        return Ok(false);
    }
    let lock = seize(&paths)?;
    clean(name, &paths)?;
    remove_directory(&paths, lock)?;
    Ok(true)
}

/// Kills whoever holds the lock until it is ours.
pub(crate) fn seize(paths: &Paths) -> Result<Lock, Error> {
    let deadline = Instant::now() + PATIENCE;
    let failed = |source| Error::File {
        action: "lock",
        path: paths.lock(),
        source,
    };
    loop {
        if let State::Free(lock) = Lock::take(paths.dir()).map_err(failed)? {
            outlast(paths)?;
            return Ok(lock);
        }
        if Instant::now() >= deadline {
            return Err(Error::Patience);
        }
        match lock::holder(paths.dir()).map_err(failed)? {
            Some(process) => {
                process.signal(Signal::KILL)?;
                let left = deadline.saturating_duration_since(Instant::now());
                if !process.wait_end(Some(left))? {
                    return Err(Error::Patience);
                }
            }
            // Between taking the lock and signing it, or the child of a dead
            // `up` that the kernel is about to kill: until it lets go, or
            // until there is a signature.
            None => released(paths, LOOK_AGAIN),
        }
    }
}

/// Waits until the last holder is really gone. The kernel closes the files of
/// a dying first process, the lock among them, before it has killed the others
/// of its namespace.
pub(crate) fn outlast(paths: &Paths) -> Result<(), Error> {
    let last = lock::holder(paths.dir()).map_err(|source| Error::File {
        action: "read",
        path: paths.lock(),
        source,
    })?;
    match last {
        Some(process) if process.pid() != rustix::process::getpid() => {
            if process.wait_end(Some(PATIENCE))? {
                Ok(())
            } else {
                Err(Error::Patience)
            }
        }
        _ => Ok(()),
    }
}

/// Waits until the lock is let go of, or for a while.
fn released(paths: &Paths, time: Duration) {
    let (sender, receiver) = mpsc::channel::<()>();
    let path = paths.lock();
    // Ends with the lock's holder; what it gets it lets go of at once.
    let waiter = std::thread::Builder::new().spawn(move || {
        let _ = fs::File::open(path).and_then(|file| file.lock());
        drop(sender);
    });
    if waiter.is_ok() {
        let _ = receiver.recv_timeout(time);
    }
}

/// Removes what a dead lab left, but for its lock.
pub(crate) fn clean(name: &str, paths: &Paths) -> Result<(), Error> {
    remove_cgroups(name)?;
    internet::close(name)?;
    remove_all(paths.state())?;
    let failed = |source| Error::File {
        action: "read",
        path: paths.dir().to_owned(),
        source,
    };
    for entry in fs::read_dir(paths.dir()).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path != paths.lock() {
            remove_all(&path)?;
        }
    }
    Ok(())
}

/// Removes the lock and the directories that only labs have made.
pub(crate) fn remove_directory(paths: &Paths, lock: Lock) -> Result<(), Error> {
    // The file before the lock: whoever waits for it sees that it is gone.
    remove_all(&paths.lock())?;
    drop(lock);
    for path in paths
        .dir()
        .ancestors()
        .take(3)
        .chain(paths.state().ancestors().skip(1).take(2))
    {
        // Another lab may be there, or come up this moment.
        if fs::remove_dir(path).is_err() && path == paths.dir() && path.exists() {
            tracing::info!("{} is in use again", path.display());
        }
    }
    Ok(())
}

fn remove_cgroups(name: &str) -> Result<(), Error> {
    let Some(path) = cgroup::of_lab(name) else {
        return Ok(());
    };
    cgroup::remove(&path).map_err(|source| Error::File {
        action: "remove",
        path,
        source,
    })
}

fn remove_all(path: &Path) -> Result<(), Error> {
    let result = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(|source| Error::File {
            action: "remove",
            path: path.to_owned(),
            source,
        }),
    }
}
