//! Processes of pods: the pause process, container monitors, and commands run
//! in containers.

mod command;
mod instance;
mod sandbox;
mod user;

pub(crate) use command::run as run_command;
pub(crate) use instance::{Launch, exit_of, start, stop};
pub(crate) use sandbox::{Shape, loopback_up, remove as remove_sandbox, start as start_sandbox};
pub(crate) use user::resolve as resolve_user;

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use linux::process::Process;
use rustix::process::{WaitId, WaitIdOptions, waitid};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Waits for the end of a process, a child or an adopted one, without polling.
pub(crate) async fn ended(process: &Process) {
    let watch = async {
        let pidfd = readable(process.pidfd().ok()?).ok()?;
        let _ready = pidfd.readable().await.ok()?;
        Some(())
    };
    if watch.await.is_none() {
        tracing::error!(
            "process {} can't be watched: the limit of open files is reached",
            process.pid()
        );
        std::future::pending::<()>().await;
    }
    // Reaps a child; an adopted process is another one's to reap.
    let _ = waitid(
        WaitId::PidFd(process.as_fd()),
        WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
    );
}

/// Makes a file of the kernel's (pidfd, inotify) one whose readiness can be
/// awaited.
pub(crate) fn readable(file: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // Its successor is unsafe for types whose descriptor may change or close
    // under way, which an OwnedFd's can't; and this crate is free of unsafe.
    #[expect(deprecated)]
    AsyncFd::with_interest(file, Interest::READABLE)
}
