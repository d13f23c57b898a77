//! When to apply what has changed: at once when nothing was applied lately, and
//! in one go with what follows closely otherwise. Pure: told the time.

use std::time::{Duration, Instant};

/// How often something may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pace {
    /// From one start to the next at least.
    pub(crate) interval: Duration,
    /// Before what failed is tried again, the first time; doubled each time.
    pub(crate) first_retry: Duration,
    /// The longest pause before another try.
    pub(crate) longest_retry: Duration,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace {
            interval: Duration::from_millis(10),
            first_retry: Duration::from_millis(500),
            longest_retry: Duration::from_secs(30),
        }
    }
}

/// Says when the next run is due. Requests that come before it become one run.
#[derive(Debug)]
pub(crate) struct Runner {
    pace: Pace,
    wanted: bool,
    /// No run before this: the last one was just now.
    rested: Option<Instant>,
    failures: u32,
    retry: Option<Instant>,
}

impl Runner {
    pub(crate) fn new(pace: Pace) -> Runner {
        Runner {
            pace,
            wanted: false,
            rested: None,
            failures: 0,
            retry: None,
        }
    }

    /// Something changed.
    pub(crate) fn request(&mut self) {
        self.wanted = true;
    }

    /// When to run next; `None` if there is nothing to do. In the past: at once.
    pub(crate) fn due(&self, now: Instant) -> Option<Instant> {
        if self.wanted {
            return Some(self.rested.unwrap_or(now));
        }
        // What failed is tried again no sooner than the pace allows either.
        Some(self.retry?.max(self.rested.unwrap_or(now)))
    }

    /// Whether it is time.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.due(now).is_some_and(|due| due <= now)
    }

    /// A run is over. Requests made before it began are satisfied, or will be
    /// by the next try. A run that took long is followed by as long a pause, so
    /// that half of the time is left for others.
    pub(crate) fn finished(&mut self, started: Instant, now: Instant, succeeded: bool) {
        let took = now.saturating_duration_since(started);
        self.wanted = false;
        self.rested = Some(started + self.pace.interval.max(took * 2));
        if succeeded {
            self.failures = 0;
            self.retry = None;
        } else {
            let pause = self
                .pace
                .first_retry
                .saturating_mul(1 << self.failures.min(16))
                .min(self.pace.longest_retry);
            self.failures = self.failures.saturating_add(1);
            self.retry = Some(now + pause);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn runner() -> (Runner, Instant) {
        (Runner::new(Pace::default()), Instant::now())
    }

    #[test]
    fn an_idle_runner_runs_at_once_and_only_when_asked() {
        let (mut runner, now) = runner();
        assert_eq!(runner.due(now), None);
        runner.request();
        assert!(runner.is_due(now));
        runner.finished(now, now + MS, true);
        assert_eq!(runner.due(now + MS), None);
        runner.request();
        assert!(runner.is_due(now + 3600 * 1000 * MS), "idle again");
    }

    #[test]
    fn a_burst_becomes_one_run_after_the_interval() {
        let (mut runner, now) = runner();
        runner.request();
        runner.finished(now, now + MS, true);
        for i in 1..9 {
            runner.request();
            assert!(!runner.is_due(now + i * MS));
            assert_eq!(runner.due(now + i * MS), Some(now + 10 * MS));
        }
        assert!(runner.is_due(now + 10 * MS));
        runner.finished(now + 10 * MS, now + 11 * MS, true);
        assert_eq!(runner.due(now + 11 * MS), None, "all of it was one run");
    }

    #[test]
    fn a_long_run_leaves_as_much_time_as_it_took() {
        let (mut runner, now) = runner();
        runner.finished(now, now + 700 * MS, true);
        runner.request();
        assert_eq!(runner.due(now + 700 * MS), Some(now + 1400 * MS));
    }

    #[test]
    fn what_failed_is_tried_again_later_and_later_up_to_a_limit() {
        let (mut runner, now) = runner();
        runner.request();
        let mut pauses = Vec::new();
        for _ in 0..9 {
            runner.finished(now, now, false);
            pauses.push(runner.due(now).expect("it is tried again") - now);
        }
        let expected = [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000, 30_000];
        assert_eq!(pauses, expected.map(|ms| ms * MS));
        runner.finished(now, now, true);
        assert_eq!(runner.due(now), None);
    }

    #[test]
    fn a_change_does_not_wait_for_the_retry() {
        let (mut runner, now) = runner();
        runner.finished(now, now, false);
        runner.request();
        assert_eq!(runner.due(now), Some(now + 10 * MS));
    }
}
