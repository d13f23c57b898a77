//! Workers: take keys from a queue and reconcile them.

use crate::mirror::Failure;
use crate::queue::Queue;
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;

/// What a reconcile came to: done, and perhaps a deadline after which to look
/// again although nothing changed.
pub(crate) type Outcome = Result<Option<Duration>, Failure>;

/// Spawns workers. They begin when `start` is done, which is when all mirrors
/// are complete.
pub(crate) fn spawn<T, F, R>(
    tasks: &mut JoinSet<()>,
    controller: &'static str,
    workers: usize,
    queue: &Arc<Queue<T>>,
    start: &tokio::sync::watch::Receiver<bool>,
    reconcile: R,
) where
    T: Clone + Debug + Eq + Hash + Ord + Send + Sync + 'static,
    F: Future<Output = Outcome> + Send,
    R: Fn(T) -> F + Clone + Send + Sync + 'static,
{
    for _ in 0..workers {
        let queue = queue.clone();
        let reconcile = reconcile.clone();
        let mut start = start.clone();
        tasks.spawn(async move {
            if start.wait_for(|started| *started).await.is_err() {
                return;
            }
            loop {
                let key = queue.next().await;
                match reconcile(key.clone()).await {
                    Ok(deadline) => {
                        queue.forget(&key);
                        if let Some(deadline) = deadline {
                            queue.add_after(key.clone(), deadline);
                        }
                    }
                    Err(failure) => {
                        let conflict = failure.is_conflict();
                        let pause = queue.retry(key.clone());
                        if conflict {
                            // Somebody else was faster; the watch brings it.
                            tracing::debug!(controller, ?key, %failure, ?pause, "trying again");
                        } else {
                            tracing::warn!(controller, ?key, %failure, ?pause, "trying again");
                        }
                    }
                }
                queue.done(&key);
            }
        });
    }
}
