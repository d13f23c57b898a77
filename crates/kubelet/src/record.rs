//! What the kubelet remembers of a pod on disk, so that its next run can adopt
//! the pod's processes.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use linux::process::{Process, start_time};
use rustix::process::Pid;
use serde::{Deserialize, Serialize};

use crate::{disk, paths};

/// A process that can be found again: its number and when it was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Its number on the node.
    pub pid: i32,
    /// Clock ticks from the boot to its start (proc(5), field 22 of stat).
    pub start: u64,
}

impl ProcessId {
    /// Notes a running process.
    ///
    /// # Errors
    /// When it is gone.
    pub fn of(pid: Pid) -> Result<Self, linux::process::Error> {
        Ok(Self {
            pid: pid.as_raw_nonzero().get(),
            start: start_time(pid)?,
        })
    }

    /// Opens the process when it is still the one noted.
    pub fn open(self) -> Option<Process> {
        let pid = linux::process::number(self.pid)?;
        let process = Process::open(pid).ok()?;
        // Compared after opening: from here on the number can't be reused.
        (start_time(pid).ok()? == self.start).then_some(process)
    }
}

/// The processes and names a pod's containers share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sandbox {
    /// The CNI container id.
    pub id: String,
    /// The process that holds the namespaces.
    pub pause: ProcessId,
    /// The network namespace's mount; none for a pod on the node's network.
    pub netns: Option<PathBuf>,
    /// The pod's addresses, the primary one first.
    pub ips: Vec<IpAddr>,
    /// Whether containers may be started in it.
    pub ready: bool,
}

/// How a run of a container ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Exit code; 128 + signal when killed.
    pub code: i32,
    /// The signal that killed it.
    pub signal: Option<i32>,
    /// `Completed`, `Error`, `StartError`, `ContainerStatusUnknown`.
    pub reason: String,
    /// The termination message.
    pub message: Option<String>,
    /// When it started; none when it never did.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Timestamp,
    /// The id of that run.
    pub container_id: String,
}

/// Where a container is in its life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// Not running, for this reason.
    Waiting {
        /// One word in CamelCase.
        reason: String,
        /// In full.
        message: Option<String>,
    },
    /// Running.
    Running {
        /// Since when.
        started_at: Timestamp,
    },
    /// Ended.
    Terminated(Exit),
}

/// The processes of a run of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// The run's id, the container's name to the OCI runtime.
    pub id: String,
    /// The container monitor.
    pub monitor: ProcessId,
    /// The container's first process; none before it started.
    pub init: Option<ProcessId>,
}

/// A container of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// Where it is.
    pub stage: Stage,
    /// How the run before ended.
    pub last: Option<Exit>,
    /// How many runs were begun, less one.
    pub restarts: u32,
    /// How many runs were begun.
    pub attempts: u32,
    /// The run in progress.
    pub instance: Option<Instance>,
    /// Passed its startup probe, and its postStart hook is done.
    pub started: bool,
    /// Passes its readiness probe.
    pub ready: bool,
    /// The image as the store names it.
    pub image: String,
    /// The image's digest.
    pub image_id: String,
}

impl Container {
    /// A container that has yet to be started.
    pub fn waiting(reason: &str) -> Self {
        Self {
            stage: Stage::Waiting {
                reason: reason.into(),
                message: None,
            },
            last: None,
            restarts: 0,
            attempts: 0,
            instance: None,
            started: false,
            ready: false,
            image: String::new(),
            image_id: String::new(),
        }
    }
}

impl Container {
    /// Puts it back to before its first start; how it ended before stays known.
    pub(crate) fn begin_again(&mut self) {
        if let Stage::Terminated(exit) = &self.stage {
            self.last = Some(exit.clone());
        }
        self.stage = Stage::Waiting {
            reason: "PodInitializing".into(),
            message: None,
        };
        self.started = false;
        self.ready = false;
    }
}

/// A pod on this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pod {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// The pod's identity.
    pub uid: String,
    /// When this node first saw it.
    pub started_at: Timestamp,
    /// Its shared namespaces.
    pub sandbox: Option<Sandbox>,
    /// How many sandboxes it had.
    pub sandboxes: u32,
    /// Its addresses; kept when it has ended.
    pub ips: Vec<IpAddr>,
    /// Its containers, init containers among them.
    pub containers: BTreeMap<String, Container>,
    /// All init containers that have to end have done so.
    pub initialized: bool,
    /// Why the pod as a whole failed, and in full.
    pub failed: Option<(String, String)>,
}

impl Pod {
    fn file(uid: &str) -> PathBuf {
        paths::pod(uid).join("pod.json")
    }

    /// Writes the record, whole or not at all.
    ///
    /// # Errors
    /// When the node's disk refuses.
    pub fn save(&self) -> io::Result<()> {
        disk::write_json(&Self::file(&self.uid), self)
    }

    /// Reads the record of a pod; none when this node never had it.
    ///
    /// # Errors
    /// When the file can't be read or understood.
    pub fn load(uid: &str) -> io::Result<Option<Self>> {
        disk::read_json(&Self::file(uid))
    }

    /// The pods this node has on disk, by their UIDs.
    ///
    /// # Errors
    /// When the folder of the pods can't be read.
    pub fn uids() -> io::Result<Vec<String>> {
        let mut uids = Vec::new();
        for entry in Path::new(paths::PODS).read_dir()? {
            if let Ok(name) = entry?.file_name().into_string() {
                uids.push(name);
            }
        }
        Ok(uids)
    }
}

/// The running first process of a container and its run's id, for who wants to
/// enter it from the node. Without a container's name: the pod's only or first
/// running one.
///
/// # Errors
/// When the node's records can't be read.
pub fn find_running(
    namespace: &str,
    pod: &str,
    container: Option<&str>,
) -> io::Result<Option<Instance>> {
    for uid in Pod::uids()? {
        let Ok(Some(record)) = Pod::load(&uid) else {
            continue;
        };
        if record.namespace != namespace || record.name != pod {
            continue;
        }
        let found = record.containers.iter().find(|(name, state)| {
            container.is_none_or(|wanted| wanted == *name)
                && matches!(state.stage, Stage::Running { .. })
        });
        if let Some((_, state)) = found {
            return Ok(state.instance.clone());
        }
    }
    Ok(None)
}
