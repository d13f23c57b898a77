//! The work queue: keys to reconcile, each at most once at a time.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// First pause after a failure; doubled with each further one.
const FIRST_RETRY: Duration = Duration::from_millis(5);
/// Longest pause between two tries.
const LAST_RETRY: Duration = Duration::from_secs(30);

/// A queue of keys. A key that is added while it waits is there once; one that
/// is added while it is worked on comes again afterwards. So no two workers
/// ever hold the same key, and no change is missed.
///
/// A paced queue hands a key out again no sooner than the pace after it was
/// done: the first change is worked on at once, a burst of further ones
/// together.
#[derive(Debug)]
pub(crate) struct Queue<T> {
    state: Mutex<State<T>>,
    changed: Notify,
    pace: Duration,
}

#[derive(Debug)]
struct State<T> {
    ready: VecDeque<T>,
    /// Waiting in `ready`, or to be put there when its worker is done.
    dirty: HashSet<T>,
    working: HashSet<T>,
    due: BTreeSet<(Instant, T)>,
    due_at: HashMap<T, Instant>,
    failures: HashMap<T, u32>,
    /// Keys that were done less than a pace ago, and until when they rest.
    resting: HashMap<T, Instant>,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self {
            state: Mutex::new(State {
                ready: VecDeque::new(),
                dirty: HashSet::new(),
                working: HashSet::new(),
                due: BTreeSet::new(),
                due_at: HashMap::new(),
                failures: HashMap::new(),
                resting: HashMap::new(),
            }),
            changed: Notify::new(),
            pace: Duration::ZERO,
        }
    }
}

impl<T: Clone + Eq + Hash + Ord> State<T> {
    fn add(&mut self, key: T) -> bool {
        if !self.dirty.insert(key.clone()) || self.working.contains(&key) {
            return false;
        }
        self.make_ready(key);
        true
    }

    /// Puts a dirty key where it waits: with those that are ready, or until
    /// its rest is over.
    fn make_ready(&mut self, key: T) {
        match self.resting.get(&key).copied() {
            Some(until) => {
                self.dirty.remove(&key);
                self.delay(key, until);
            }
            None => self.ready.push_back(key),
        }
    }

    fn delay(&mut self, key: T, at: Instant) {
        if let Some(known) = self.due_at.get(&key).copied() {
            if known <= at {
                return;
            }
            self.due.remove(&(known, key.clone()));
        }
        self.due_at.insert(key.clone(), at);
        self.due.insert((at, key));
    }

    fn promote_due(&mut self, now: Instant) {
        while let Some((at, _)) = self.due.first() {
            if *at > now {
                break;
            }
            if let Some((_, key)) = self.due.pop_first() {
                self.due_at.remove(&key);
                self.resting.remove(&key);
                self.add(key);
            }
        }
    }

    fn take(&mut self) -> Option<T> {
        let key = self.ready.pop_front()?;
        self.dirty.remove(&key);
        self.working.insert(key.clone());
        Some(key)
    }
}

impl<T: Clone + Eq + Hash + Ord> Queue<T> {
    /// A queue that hands each key out at most once a pace.
    pub(crate) fn paced(pace: Duration) -> Arc<Self> {
        Arc::new(Self {
            pace,
            ..Self::default()
        })
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State<T>> {
        // Every change of the state is complete before anything could panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a key to be worked on as soon as possible.
    pub(crate) fn add(&self, key: T) {
        if self.state().add(key) {
            self.changed.notify_one();
        }
    }

    /// Adds a key to be worked on at a deadline; of several deadlines of one
    /// key the earliest holds.
    pub(crate) fn add_after(&self, key: T, delay: Duration) {
        let at = Instant::now() + delay;
        self.state().delay(key, at);
        self.changed.notify_one();
    }

    /// The next key; it is the caller's alone until [`Queue::done`].
    pub(crate) async fn next(&self) -> T {
        loop {
            let (key, more, wake_at) = {
                let mut state = self.state();
                state.promote_due(Instant::now());
                let key = state.take();
                let wake_at = state.due.first().map(|(at, _)| *at);
                (key, !state.ready.is_empty(), wake_at)
            };
            if let Some(key) = key {
                if more {
                    self.changed.notify_one();
                }
                return key;
            }
            match wake_at {
                Some(at) => tokio::select! {
                    () = self.changed.notified() => {}
                    () = tokio::time::sleep_until(at) => {}
                },
                None => self.changed.notified().await,
            }
        }
    }

    /// Gives a key back; it comes again if it was added meanwhile.
    pub(crate) fn done(&self, key: &T) {
        let mut state = self.state();
        state.working.remove(key);
        if !self.pace.is_zero() {
            let now = Instant::now();
            // Few rest at any time; those whose rest is over are forgotten.
            state.resting.retain(|_, until| *until > now);
            state.resting.insert(key.clone(), now + self.pace);
        }
        if state.dirty.contains(key) {
            state.make_ready(key.clone());
            drop(state);
            self.changed.notify_one();
        }
    }

    /// Forgets the failures of a key.
    pub(crate) fn forget(&self, key: &T) {
        self.state().failures.remove(key);
    }

    /// Adds a key again after a pause that doubles with each failure, and
    /// returns the pause.
    pub(crate) fn retry(&self, key: T) -> Duration {
        let failures = {
            let mut state = self.state();
            let failures = state.failures.entry(key.clone()).or_default();
            *failures = failures.saturating_add(1);
            *failures
        };
        let pause = FIRST_RETRY
            .saturating_mul(1 << (failures - 1).min(16))
            .min(LAST_RETRY);
        self.add_after(key, pause);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_key_waits_once_however_often_it_is_added() {
        let queue = Queue::default();
        queue.add("a");
        queue.add("a");
        queue.add("b");
        assert_eq!(queue.next().await, "a");
        assert_eq!(queue.next().await, "b");
        assert!(queue.state().ready.is_empty());
    }

    #[tokio::test]
    async fn a_key_added_while_worked_on_comes_again_afterwards() {
        let queue = Queue::default();
        queue.add(1);
        let key = queue.next().await;
        queue.add(1);
        assert!(queue.state().ready.is_empty());
        queue.done(&key);
        assert_eq!(queue.next().await, 1);
        queue.done(&1);
        assert!(queue.state().ready.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn of_several_deadlines_the_earliest_holds() {
        let queue = Queue::default();
        let start = Instant::now();
        queue.add_after(1, Duration::from_secs(50));
        queue.add_after(1, Duration::from_secs(5));
        queue.add_after(1, Duration::from_secs(20));
        assert_eq!(queue.next().await, 1);
        assert_eq!(start.elapsed().as_secs(), 5);
        assert!(queue.state().due.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiter_wakes_for_a_deadline_set_after_it_began_to_wait() {
        let queue = std::sync::Arc::new(Queue::default());
        let waiter = tokio::spawn({
            let queue = queue.clone();
            async move { queue.next().await }
        });
        tokio::task::yield_now().await;
        queue.add_after(7, Duration::from_secs(1));
        assert_eq!(waiter.await.unwrap(), 7);
    }

    #[tokio::test(start_paused = true)]
    async fn a_paced_key_comes_at_once_and_then_no_sooner_than_its_pace() {
        let queue = Queue::paced(Duration::from_millis(20));
        let start = Instant::now();
        queue.add(1);
        assert_eq!(queue.next().await, 1);
        assert_eq!(start.elapsed(), Duration::ZERO);
        queue.add(1);
        queue.done(&1);
        queue.add(1);
        // Another key need not wait.
        queue.add(2);
        assert_eq!(queue.next().await, 2);
        assert_eq!(start.elapsed(), Duration::ZERO);
        assert_eq!(queue.next().await, 1);
        assert_eq!(start.elapsed(), Duration::from_millis(20));
        queue.done(&1);
        assert!(queue.state().due.is_empty() && queue.state().ready.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_paced_key_that_has_rested_comes_at_once() {
        let queue = Queue::paced(Duration::from_millis(20));
        queue.add(1);
        queue.next().await;
        queue.done(&1);
        tokio::time::advance(Duration::from_millis(30)).await;
        let start = Instant::now();
        queue.add(1);
        assert_eq!(queue.next().await, 1);
        assert_eq!(start.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn retries_pause_longer_each_time_up_to_half_a_minute() {
        let queue = Queue::default();
        let pauses: Vec<_> = (0..20).map(|_| queue.retry(1)).collect();
        assert_eq!(pauses[0], Duration::from_millis(5));
        assert_eq!(pauses[1], Duration::from_millis(10));
        assert_eq!(pauses[19], LAST_RETRY);
        queue.forget(&1);
        assert_eq!(queue.retry(1), FIRST_RETRY);
    }
}
