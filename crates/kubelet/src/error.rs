use std::path::PathBuf;

/// Why the kubelet could not start or go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kubeconfig can't be used.
    #[error("reading the kubeconfig {}: {reason}; give a file with a current-context that names a reachable API server", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A folder or file of the node can't be prepared.
    #[error("{action} {}: {source}", path.display())]
    Disk {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// A mount failed.
    #[error(transparent)]
    Mount(#[from] linux::mount::Error),
    /// The asynchronous runtime can't be built.
    #[error("starting the runtime: {0}")]
    Runtime(std::io::Error),
    /// The API server refused something the kubelet can't do without.
    #[error("{action}: {source}")]
    Api {
        /// What was asked.
        action: String,
        /// The answer.
        source: Box<kube::Error>,
    },
    /// The image store can't be opened.
    #[error(transparent)]
    Images(#[from] crate::images::Error),
    /// This process can't do the work of a monitor or a pause process.
    #[error("{action}: {reason}")]
    Helper {
        /// What was being done.
        action: String,
        /// Why it failed.
        reason: String,
    },
}
