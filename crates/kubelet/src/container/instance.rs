use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use jiff::Timestamp;
use linux::process::{Namespace, Process};
use rustix::process::Signal;
use serde_json::Value;
use tokio::io::AsyncReadExt;

use super::ended;
use crate::monitor::{Ended, Report, Task};
use crate::record::{Exit, Instance, ProcessId};
use crate::{disk, paths};

/// A log file starts anew beyond this many bytes (containerLogMaxSize of
/// Kubernetes).
const LOG_LIMIT: u64 = 10 * 1024 * 1024;

/// A container ready to be started.
#[derive(Debug)]
pub(crate) struct Launch {
    pub(crate) id: String,
    /// The OCI runtime's configuration.
    pub(crate) config: Value,
    /// The image's layers, the topmost first.
    pub(crate) layers: Vec<PathBuf>,
    pub(crate) log: PathBuf,
    pub(crate) cgroup: Option<PathBuf>,
}

/// Starts a container's monitor. `begun` is called with it before the container
/// itself is started, so that it can be found again whatever happens next.
///
/// # Errors
/// Why the container could not be started, in words for its status.
pub(crate) async fn start(
    launch: Launch,
    begun: impl FnOnce(Instance),
) -> Result<ProcessId, String> {
    let dir = paths::container(&launch.id);
    let write = |error: std::io::Error| format!("preparing {}: {error}", dir.display());
    std::fs::create_dir_all(&dir).map_err(write)?;
    if let Some(logs) = launch.log.parent() {
        std::fs::create_dir_all(logs)
            .map_err(|error| format!("making {}: {error}", logs.display()))?;
    }
    let task = Task {
        id: launch.id.clone(),
        lower: launch.layers,
        log: launch.log,
        log_limit: LOG_LIMIT,
        cgroup: launch.cgroup,
    };
    disk::write_json(&dir.join(Task::FILE), &task).map_err(write)?;
    disk::write_json(&dir.join("config.json"), &launch.config).map_err(write)?;
    let mut child = linux::process::Launch::this_executable()
        .arg("container-monitor")
        .arg(&dir)
        .unshare([Namespace::Mount])
        .session()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| error.to_string())?;
    let monitor = ProcessId::of(child.pid()).map_err(|error| error.to_string())?;
    begun(Instance {
        id: launch.id,
        monitor,
        init: None,
    });
    let mut report = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        let mut stdout = tokio::process::ChildStdout::from_std(stdout)
            .map_err(|error| format!("listening to the monitor: {error}"))?;
        let _ = stdout.read_to_end(&mut report).await;
    }
    match serde_json::from_slice(&report) {
        Ok(Report::Running { init }) => Ok(init),
        Ok(Report::Failed { reason }) => Err(reason),
        Err(_) => Err("the container's monitor ended before it could report".into()),
    }
}

/// How a run of a container ended, waiting for that end; the container's folder
/// is left for [`crate::pod`] to remove.
pub(crate) async fn exit_of(instance: &Instance, message_path: Option<&Path>) -> Exit {
    if let Some(monitor) = instance.monitor.open() {
        ended(&monitor).await;
    }
    let dir = paths::container(&instance.id);
    let written = Ended::load(&dir).ok().flatten();
    if written.is_none() {
        // The monitor was killed: what it watched must not go on unwatched.
        if let Some(init) = instance.init.and_then(ProcessId::open) {
            let _ = init.signal(Signal::KILL);
            ended(&init).await;
        }
    }
    exit(&instance.id, written, message_path)
}

fn exit(id: &str, written: Option<Ended>, message_path: Option<&Path>) -> Exit {
    let Some(ended) = written else {
        return Exit {
            code: 137,
            signal: None,
            reason: "ContainerStatusUnknown".into(),
            message: Some("The container's monitor was killed: its end is not known.".into()),
            started_at: None,
            finished_at: Timestamp::now(),
            container_id: id.into(),
        };
    };
    let message = message_path
        .and_then(|path| std::fs::read(path).ok())
        .filter(|text| !text.is_empty())
        // Kubernetes' limit of a termination message.
        .map(|text| String::from_utf8_lossy(&text[..text.len().min(4096)]).into_owned());
    Exit {
        reason: match (&ended.error, ended.code) {
            (Some(_), _) => "StartError",
            (None, 0) => "Completed",
            (None, _) => "Error",
        }
        .into(),
        message: ended.error.or(message),
        code: ended.code,
        signal: ended.signal,
        started_at: ended.started_at,
        finished_at: ended.finished_at,
        container_id: id.into(),
    }
}

/// Asks a container to end and makes it end when `grace` is over. Returns when
/// its monitor has ended too.
pub(crate) async fn stop(instance: &Instance, signal: Signal, grace: impl Future<Output = ()>) {
    let Some(monitor) = instance.monitor.open() else {
        // Nothing watches it: end what may be left of it.
        kill(instance.init.and_then(ProcessId::open)).await;
        return;
    };
    let Some(init) = instance.init.and_then(ProcessId::open) else {
        // Still starting, or ended already: the monitor sees to the latter.
        if Ended::load(&paths::container(&instance.id))
            .ok()
            .flatten()
            .is_none()
        {
            stop_starting(instance, &monitor).await;
        }
        return;
    };
    let _ = init.signal(signal);
    tokio::select! {
        () = ended(&monitor) => return,
        () = grace => {}
    }
    let _ = init.signal(Signal::KILL);
    ended(&monitor).await;
}

async fn kill(process: Option<Process>) {
    if let Some(process) = process {
        let _ = process.signal(Signal::KILL);
        ended(&process).await;
    }
}

/// Ends a container whose monitor has not said yet that it runs: by the
/// runtime's name for it, once the monitor is gone.
async fn stop_starting(instance: &Instance, monitor: &Process) {
    if instance.init.is_some() {
        // Its first process has ended; the monitor writes that down.
        ended(monitor).await;
        return;
    }
    let _ = monitor.signal(Signal::KILL);
    ended(monitor).await;
    let delete = tokio::process::Command::new("crun")
        .args(["--root", paths::CRUN_ROOT, "--cgroup-manager=disabled"])
        .args(["delete", "--force", &instance.id])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    let _ = tokio::time::timeout(Duration::from_secs(10), delete).await;
}
