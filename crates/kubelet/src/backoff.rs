//! Back-off between the restarts of a container: the first at once, then 10 s
//! doubling to 5 min; forgotten after 10 min of good running (as the kubelet of
//! Kubernetes has it).

use std::time::Duration;

/// The first delay.
pub(crate) const INITIAL: Duration = Duration::from_secs(10);
/// The longest delay.
pub(crate) const MAXIMUM: Duration = Duration::from_secs(300);
/// How long a container has to run for its past to be forgotten.
pub(crate) const FORGET: Duration = Duration::from_secs(600);

/// The delays a container has earned.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Backoff {
    next: Duration,
}

impl Backoff {
    /// How long to wait before the next start of a container that has just
    /// ended after running for `ran`.
    pub(crate) fn ended(&mut self, ran: Duration) -> Duration {
        if ran >= FORGET {
            self.next = Duration::ZERO;
        }
        let delay = self.next;
        self.next = if delay.is_zero() {
            INITIAL
        } else {
            (delay * 2).min(MAXIMUM)
        };
        delay
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restarts_at_once_then_doubles_to_five_minutes() {
        let mut backoff = Backoff::default();
        let delays: Vec<u64> = (0..8)
            .map(|_| backoff.ended(Duration::from_secs(1)).as_secs())
            .collect();
        assert_eq!(delays, [0, 10, 20, 40, 80, 160, 300, 300]);
    }

    #[test]
    fn ten_good_minutes_wipe_the_slate() {
        let mut backoff = Backoff::default();
        for _ in 0..5 {
            backoff.ended(Duration::ZERO);
        }
        assert_eq!(backoff.ended(Duration::from_secs(600)), Duration::ZERO);
        assert_eq!(backoff.ended(Duration::ZERO), INITIAL);
    }
}
