//! Frees the addresses of pods that vanished without the runtime's DEL: after
//! a crash of the runtime, a killed plugin, a sandbox removed by hand. Opens the
//! mapped ports of pods again when somebody flushed all nftables tables. A thread
//! of its own, since the work is a few files and netlink requests, at start and
//! every few minutes.

use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use cni::audit;

use crate::bridge_guard;
use crate::options::Attach;
use crate::worker::Problems;

/// Between two looks. A pool runs full over hours; a runtime's own GC, where
/// there is one, comes more often.
const PERIOD: Duration = Duration::from_secs(5 * 60);

/// Audits until the other end of `stop` is gone, and holds the [`bridge_guard`] as long.
pub(crate) fn run(directory: &Path, attach: Attach, stop: &Receiver<()>) {
    let mut problems = Problems::default();
    let mut guard = bridge_guard::Keeper::new(attach, directory);
    loop {
        guard.keep();
        let now = match audit::reclaim(directory) {
            Ok(reclaimed) => {
                for reservation in &reclaimed.reservations {
                    tracing::info!("freed the addresses of a pod that is gone: {reservation}");
                }
                for reservation in &reclaimed.reopened {
                    tracing::info!("opened the mapped ports of {reservation} again");
                }
                for file in &reclaimed.files {
                    tracing::info!("removed {}, which belonged to no pod", file.display());
                }
                reclaimed
                    .failures
                    .into_iter()
                    .map(|failure| format!("cannot put a pod's reservation in order: {failure}"))
                    .collect()
            }
            Err(error) => vec![format!(
                "cannot audit the addresses of pods in {}: {error}",
                directory.display()
            )],
        };
        problems.set(now);
        match stop.recv_timeout(PERIOD) {
            Err(RecvTimeoutError::Timeout) => {}
            _ => return,
        }
    }
}
