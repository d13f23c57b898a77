//! Threads that keep a part of the kernel at what is wanted.

use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

/// The first and longest pause before what failed is tried again.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// When to try again.
#[derive(Debug, Default)]
pub(crate) struct Retry {
    failures: u32,
    due: Option<Instant>,
}

impl Retry {
    /// It worked.
    pub(crate) fn succeeded(&mut self) {
        *self = Retry::default();
    }

    /// It did not: later again.
    pub(crate) fn failed(&mut self) {
        let (first, longest) = RETRY;
        let pause = first
            .saturating_mul(1 << self.failures.min(16))
            .min(longest);
        self.failures = self.failures.saturating_add(1);
        self.due = Some(Instant::now() + pause);
    }

    /// When to try again; `None` when there is nothing to.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Whether the pause is over.
    pub(crate) fn is_due(&self) -> bool {
        self.due.is_some_and(|due| due <= Instant::now())
    }
}

/// Waits until there is a message or it is time, and takes all messages there
/// are, so that a burst becomes one piece of work. `None`: no more will come.
pub(crate) fn gather_until<M>(inbox: &Receiver<M>, due: Option<Instant>) -> Option<Vec<M>> {
    let first = match due {
        None => inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
        Some(due) => inbox.recv_timeout(due.saturating_duration_since(Instant::now())),
    };
    let mut messages = match first {
        Ok(message) => vec![message],
        Err(RecvTimeoutError::Timeout) => return Some(Vec::new()),
        Err(RecvTimeoutError::Disconnected) => return None,
    };
    loop {
        match inbox.try_recv() {
            Ok(message) => messages.push(message),
            Err(TryRecvError::Empty | TryRecvError::Disconnected) => return Some(messages),
        }
    }
}

/// Logs problems when they come and when they go, not each time they are met.
#[derive(Debug, Default)]
pub(crate) struct Problems {
    present: Vec<String>,
}

impl Problems {
    /// The problems there are now.
    pub(crate) fn set(&mut self, mut now: Vec<String>) -> &[String] {
        now.dedup();
        for problem in now.iter().filter(|problem| !self.present.contains(problem)) {
            tracing::warn!("{problem}");
        }
        for problem in self.present.iter().filter(|problem| !now.contains(problem)) {
            tracing::info!("no longer so: {problem}");
        }
        self.present = now;
        &self.present
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_burst_is_gathered_whole() {
        let (sender, inbox) = mpsc::channel();
        for i in 0..5 {
            sender.send(i).unwrap();
        }
        assert_eq!(gather_until(&inbox, None), Some(vec![0, 1, 2, 3, 4]));
        drop(sender);
        assert_eq!(gather_until(&inbox, None), None);
    }

    #[test]
    fn a_retry_that_is_due_wakes_without_a_message() {
        let (_sender, inbox) = mpsc::channel::<()>();
        let retry = Retry {
            failures: 1,
            due: Some(Instant::now()),
        };
        assert_eq!(gather_until(&inbox, retry.due()), Some(Vec::new()));
        assert!(retry.is_due());
    }

    #[test]
    fn retries_are_spaced_wider_and_wider_up_to_a_limit() {
        let mut retry = Retry::default();
        for _ in 0..100 {
            retry.failed();
        }
        let due = retry.due.expect("a failed one is retried");
        assert!(due <= Instant::now() + RETRY.1);
        assert!(due > Instant::now() + RETRY.1 / 2);
        retry.succeeded();
        assert!(!retry.is_due() && retry.due.is_none());
    }
}
