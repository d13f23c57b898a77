//! Where a lab keeps its files on the machine.

use std::path::{Path, PathBuf};

/// All labs.
pub const LABS: &str = "/run/podwire/lab";
/// What labs with a way to the uplink changed of the machine.
pub(crate) const INTERNET: &str = "/run/podwire/internet";
/// What of a lab may be large: its images.
pub const STATE: &str = "/var/lib/podwire/lab";

/// The files of one lab.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    dir: PathBuf,
    state: PathBuf,
}

impl Paths {
    /// Those of the lab with this name, which must have been checked to be one
    /// path component.
    pub fn of(name: &str) -> Self {
        Self {
            dir: Path::new(LABS).join(name),
            state: Path::new(STATE).join(name),
        }
    }

    /// The lab's directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What may be large.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// Locked as long as the lab lives; holds who holds it.
    pub fn lock(&self) -> PathBuf {
        self.dir.join("lock")
    }

    /// The lab's properties.
    pub fn config(&self) -> PathBuf {
        self.dir.join("lab.json")
    }

    /// The supervisor's ear.
    pub fn control(&self) -> PathBuf {
        self.dir.join("control.sock")
    }

    /// For kubectl on the machine.
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.join("kubeconfig")
    }

    /// For kubelets and agents: the API server on the underlay.
    pub fn node_kubeconfig(&self) -> PathBuf {
        self.dir.join("node.kubeconfig")
    }

    /// The API server's objects.
    pub fn store(&self) -> PathBuf {
        self.dir.join("store.redb")
    }

    /// Keys and certificates.
    pub fn pki(&self) -> PathBuf {
        self.dir.join("pki")
    }

    /// Logs of the lab's own processes.
    pub fn logs(&self) -> PathBuf {
        self.dir.join("logs")
    }

    /// One of those logs.
    pub fn log(&self, process: &str) -> PathBuf {
        self.logs().join(format!("{process}.log"))
    }

    /// The tmpfs of the nodes' files, in the lab's mount namespace only.
    pub fn files(&self) -> PathBuf {
        self.dir.join("fs")
    }

    /// A node's files there.
    pub fn node(&self, node: &str) -> PathBuf {
        self.files().join("nodes").join(node)
    }

    /// The container logs of a node.
    pub fn container_logs(&self, node: &str) -> PathBuf {
        self.node(node).join("logs")
    }

    /// Unpacked image layers, shared by the lab's nodes.
    pub fn images(&self) -> PathBuf {
        self.state.join("images")
    }
}
