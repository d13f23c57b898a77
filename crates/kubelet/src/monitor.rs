//! The container monitor: starts one container by the OCI runtime, copies its
//! outputs into its log, and writes down how it ended.
//!
//! The kubelet starts it in a mount namespace of its own, where the container's
//! root file system is mounted: with the monitor and the container goes the
//! mount. As a child subreaper it inherits the container's first process when
//! the runtime is done. It outlives the kubelet. One thread, no async runtime: a
//! few hundred of them run on a machine.

use std::fs::File;
use std::io::{self, PipeReader, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use jiff::Timestamp;
use linux::mount;
use linux::process::{Launch, Process};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, WaitOptions, wait};
use serde::{Deserialize, Serialize};

use crate::logs::{Lines, LogFile, Stream};
use crate::record::ProcessId;
use crate::{Error, disk, paths};

/// What a monitor is to do, written by the kubelet into the container's folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// The container's name to the OCI runtime.
    pub id: String,
    /// The image's layers, the topmost first.
    pub lower: Vec<PathBuf>,
    /// The log file.
    pub log: PathBuf,
    /// A log file starts anew beyond this size in bytes.
    pub log_limit: u64,
    /// The cgroup the container runs in, where the machine has usable ones.
    pub cgroup: Option<PathBuf>,
}

impl Task {
    /// The file in the container's folder.
    pub const FILE: &str = "monitor.json";
}

/// What a monitor prints once its container runs or can't be started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Report {
    /// It runs.
    Running {
        /// Its first process.
        init: ProcessId,
    },
    /// It could not be started.
    Failed {
        /// Why.
        reason: String,
    },
}

/// How a container ended, written into its folder as `exit.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// Exit code; 128 + signal when killed.
    pub code: i32,
    /// The signal that killed it.
    pub signal: Option<i32>,
    /// When it started; none when it could not be started.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Timestamp,
    /// Why it could not be started.
    pub error: Option<String>,
}

impl Ended {
    const FILE: &str = "exit.json";

    /// How the container of this folder ended; none while it runs or when its
    /// monitor was killed.
    ///
    /// # Errors
    /// When the file can't be read or understood.
    pub fn load(dir: &Path) -> io::Result<Option<Self>> {
        disk::read_json(&dir.join(Self::FILE))
    }
}

/// Runs the container of the folder `dir` to its end.
///
/// # Errors
/// When the folder holds no task, or its files can't be written. That the
/// container can't be started is no error: it is reported and written down.
pub fn run(dir: &Path) -> Result<(), Error> {
    let fail = |action: &str, error: &dyn std::fmt::Display| Error::Helper {
        action: format!("{action} (monitor of {})", dir.display()),
        reason: error.to_string(),
    };
    let task: Task = disk::read_json(&dir.join(Task::FILE))
        .map_err(|error| fail("reading its task", &error))?
        .ok_or_else(|| fail("reading its task", &"there is none; the kubelet writes it"))?;
    let own = Pid::from_raw(std::process::id().cast_signed());
    rustix::process::set_child_subreaper(own)
        .map_err(|errno| fail("becoming the container's reaper", &errno))?;

    let ended = match Started::new(dir, &task) {
        Ok(mut started) => {
            report(&Report::Running {
                init: started.init_id,
            });
            started
                .follow()
                .map_err(|error| fail("following the container", &error))?
        }
        Err(reason) => {
            report(&Report::Failed {
                reason: reason.clone(),
            });
            Ended {
                code: 128,
                signal: None,
                started_at: None,
                finished_at: Timestamp::now(),
                error: Some(reason),
            }
        }
    };
    // The runtime's own record of the container; gone before the kubelet may
    // reuse anything of it.
    let _ = crun()
        .args(["delete", "--force", &task.id])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map(|mut child| child.wait());
    if let Some(cgroup) = &task.cgroup {
        crate::cgroup::remove(cgroup);
    }
    disk::write_json(&dir.join(Ended::FILE), &ended)
        .map_err(|error| fail("writing down how the container ended", &error))
}

fn crun() -> Launch {
    Launch::new("crun").args(["--root", paths::CRUN_ROOT, "--cgroup-manager=disabled"])
}

/// Tells the kubelet, which reads to the end of the pipe. A kubelet that died
/// meanwhile is no trouble: the next one finds the container's files.
fn report(report: &Report) {
    let mut stdout = io::stdout();
    let _ = serde_json::to_vec(report).map(|line| stdout.write_all(&line));
    let _ = stdout.flush();
    if let Ok(null) = File::options().write(true).open("/dev/null") {
        let _ = rustix::stdio::dup2_stdout(&null);
    }
}

/// A running container.
struct Started {
    init: Process,
    init_id: ProcessId,
    started_at: Timestamp,
    log: LogFile,
    outputs: Vec<(PipeReader, Lines)>,
}

impl Started {
    fn new(dir: &Path, task: &Task) -> Result<Self, String> {
        let log = LogFile::open(&task.log, task.log_limit)
            .map_err(|error| format!("opening the log {}: {error}", task.log.display()))?;
        mount_root(dir, task)?;
        if let Some(cgroup) = &task.cgroup {
            crate::cgroup::enter(cgroup)?;
        }
        let pipe = || io::pipe().map_err(|error| format!("making a pipe: {error}"));
        let (stdout, to_stdout) = pipe()?;
        let (stderr, to_stderr) = pipe()?;
        let runtime_log = dir.join("crun.log");
        let pid_file = dir.join("pid");
        let mut child = crun()
            .arg(format!("--log=file:{}", runtime_log.display()))
            .arg("--log-format=json")
            .args(["run", "--detach", "--bundle"])
            .arg(dir)
            .arg("--pid-file")
            .arg(&pid_file)
            .arg(&task.id)
            .stdin(Stdio::null())
            .stdout(to_stdout)
            .stderr(to_stderr)
            .spawn()
            .map_err(|error| {
                format!("running crun: {error}; the node needs crun, the OCI runtime, in its PATH")
            })?;
        let status = child
            .wait()
            .map_err(|error| format!("waiting for crun: {error}"))?;
        if !status.success() {
            return Err(runtime_reason(&runtime_log, stderr, status));
        }
        let pid = std::fs::read_to_string(&pid_file)
            .ok()
            .and_then(|text| text.trim().parse::<i32>().ok())
            .and_then(linux::process::number)
            .ok_or("crun left no process number")?;
        // An ended child keeps its number until it is reaped, which only this
        // process does.
        let init = Process::open(pid).map_err(|error| error.to_string())?;
        let init_id = ProcessId::of(pid).map_err(|error| error.to_string())?;
        Ok(Self {
            init,
            init_id,
            started_at: Timestamp::now(),
            log,
            outputs: vec![
                (stdout, Lines::new(Stream::Stdout)),
                (stderr, Lines::new(Stream::Stderr)),
            ],
        })
    }

    /// Copies outputs until the container has ended and its pipes are drained.
    fn follow(&mut self) -> io::Result<Ended> {
        let mut buffer = vec![0; 64 * 1024];
        let mut records = Vec::new();
        let mut status = None;
        loop {
            let pidfd = self.init.as_fd();
            let mut polled: Vec<PollFd<'_>> = self
                .outputs
                .iter()
                .map(|(pipe, _)| PollFd::new(pipe, PollFlags::IN))
                .collect();
            if status.is_none() {
                polled.push(PollFd::from_borrowed_fd(pidfd, PollFlags::IN));
            }
            // Once the container has ended only what is in the pipes counts: a
            // process that escaped with an end of them must not hold us.
            let timeout = status.is_some().then_some(rustix::event::Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            });
            match poll(&mut polled, timeout.as_ref()) {
                Ok(0) => break,
                Err(rustix::io::Errno::INTR) => continue,
                result => result?,
            };
            let outputs = self.outputs.len();
            let ended = polled
                .get(outputs)
                .is_some_and(|fd| !fd.revents().is_empty());
            let readable: Vec<bool> = polled[..outputs]
                .iter()
                .map(|fd| !fd.revents().is_empty())
                .collect();
            let now = Timestamp::now();
            let mut index = 0;
            records.clear();
            self.outputs.retain_mut(|(pipe, lines)| {
                index += 1;
                if !readable[index - 1] {
                    return true;
                }
                match pipe.read(&mut buffer) {
                    Ok(0) | Err(_) => {
                        lines.finish(now, &mut records);
                        false
                    }
                    Ok(length) => {
                        lines.push(now, &buffer[..length], &mut records);
                        true
                    }
                }
            });
            if !records.is_empty() && self.log.append(&records).is_err() {
                // A full disk must not stop the container: its lines are lost.
            }
            if ended {
                status = self.reap()?;
            }
            if status.is_some() && self.outputs.is_empty() {
                break;
            }
        }
        records.clear();
        let finished_at = Timestamp::now();
        for (_, lines) in &mut self.outputs {
            lines.finish(finished_at, &mut records);
        }
        let _ = self.log.append(&records);
        let (code, signal) = status.unwrap_or((255, None));
        Ok(Ended {
            code,
            signal,
            started_at: Some(self.started_at),
            finished_at,
            error: None,
        })
    }

    /// Reaps whatever has ended; the exit code and signal of the container when
    /// it is among them.
    fn reap(&self) -> io::Result<Option<(i32, Option<i32>)>> {
        let mut found = None;
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) if pid == self.init.pid() => {
                    let signal = status.terminating_signal();
                    let code = status
                        .exit_status()
                        .unwrap_or_else(|| 128 + signal.unwrap_or(127));
                    found = Some((code, signal));
                }
                Ok(Some(_)) => {}
                Ok(None) | Err(rustix::io::Errno::CHILD) => return Ok(found),
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

/// Mounts the container's root: the image's layers below, a private one on top.
fn mount_root(dir: &Path, task: &Task) -> Result<(), String> {
    let (upper, work, root) = (dir.join("upper"), dir.join("work"), dir.join("rootfs"));
    for made in [&upper, &work, &root] {
        std::fs::create_dir_all(made)
            .map_err(|error| format!("making {}: {error}", made.display()))?;
    }
    // Unmounts in the node go on reaching this namespace, so that a monitor
    // does not hold what other pods have left.
    rustix::mount::mount_change(
        "/",
        rustix::mount::MountPropagationFlags::DOWNSTREAM
            | rustix::mount::MountPropagationFlags::REC,
    )
    .map_err(|errno| format!("separating the monitor's mounts: {errno}"))?;
    let lower: Vec<&Path> = task.lower.iter().map(PathBuf::as_path).collect();
    mount::overlay(
        &lower,
        Some(mount::Upper {
            upper: &upper,
            work: &work,
        }),
        &root,
    )
    .map_err(|error| error.to_string())
}

/// What the runtime said in its log or, failing that, on its error output.
fn runtime_reason(log: &Path, mut stderr: PipeReader, status: std::process::ExitStatus) -> String {
    #[derive(Deserialize)]
    struct Line {
        msg: String,
    }
    let logged = std::fs::read_to_string(log).unwrap_or_default();
    let said: Vec<String> = logged
        .lines()
        .filter_map(|line| serde_json::from_str::<Line>(line).ok())
        .map(|line| line.msg)
        .collect();
    if !said.is_empty() {
        return said.join("; ");
    }
    let mut printed = String::new();
    let _ = stderr.read_to_string(&mut printed);
    if printed.trim().is_empty() {
        format!("crun ended with {status}")
    } else {
        printed.trim().to_owned()
    }
}
