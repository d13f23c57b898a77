//! Where programs are to be and where they are: what has to be attached, what to be
//! taken away, and when. Told the time; the thread of [`super::links`] does it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use super::links::{Done, Job, Spot};

/// How long nothing is to have changed before programs are attached, and how long
/// that is waited for: attaching one holds up those who make pods.
const CALM: Duration = Duration::from_millis(500);
const PATIENCE: Duration = Duration::from_secs(3);

/// Changes that follow each other closely.
#[derive(Clone, Copy, Debug)]
struct Burst {
    first: Instant,
    last: Instant,
}

impl Burst {
    fn end(&self) -> Instant {
        (self.last + CALM).min(self.first + PATIENCE)
    }
}

/// Where programs are.
#[derive(Debug)]
pub(super) struct Programs {
    jobs: Sender<Job>,
    /// Where they are, or are about to be.
    attached: BTreeSet<Spot>,
    /// Where they could not be attached, with the reason.
    failed: BTreeMap<Spot, String>,
    /// How many are to be attached once it is calm, and how many jobs are not done.
    waiting: usize,
    outstanding: usize,
    burst: Option<Burst>,
    /// How many jobs there were.
    changes: u64,
}

impl Programs {
    pub(super) fn new(jobs: Sender<Job>) -> Self {
        Self {
            jobs,
            attached: BTreeSet::new(),
            failed: BTreeMap::new(),
            waiting: 0,
            outstanding: 0,
            burst: None,
            changes: 0,
        }
    }

    /// Takes notice of a job that was done.
    pub(super) fn done(&mut self, done: Done) {
        self.outstanding = self.outstanding.saturating_sub(1);
        let Done::Attached(spot, Err(error)) = done else {
            return;
        };
        self.attached.remove(&spot);
        // Of an interface that is gone a notification is on its way.
        if !error.is_gone() {
            self.failed.insert(spot, error.to_string());
        }
    }

    /// Something has changed: what is to be attached waits until it is calm.
    pub(super) fn hold(&mut self, now: Instant) {
        let first = self.burst.map_or(now, |burst| burst.first);
        self.burst = Some(Burst { first, last: now });
    }

    /// When it is calm, if something waits for that.
    pub(super) fn due(&self) -> Option<Instant> {
        self.burst.as_ref().map(Burst::end)
    }

    /// Has programs taken away where they have no use, at once, and attached where
    /// they are to be, when it is calm.
    pub(super) fn want(&mut self, spots: &BTreeSet<Spot>, now: Instant) {
        let detach: Vec<Spot> = self.attached.difference(spots).copied().collect();
        for spot in detach {
            self.attached.remove(&spot);
            self.tell(Job::Detach(spot));
        }
        self.failed.retain(|spot, _| spots.contains(spot));
        let attach: Vec<Spot> = spots
            .difference(&self.attached)
            .filter(|spot| !self.failed.contains_key(spot))
            .copied()
            .collect();
        self.waiting = attach.len();
        if attach.is_empty() {
            self.burst = None;
        } else if self.due().is_none_or(|due| due <= now) {
            for spot in attach {
                self.attached.insert(spot);
                self.tell(Job::Attach(spot));
            }
            (self.waiting, self.burst) = (0, None);
        }
    }

    fn tell(&mut self, job: Job) {
        self.changes += 1;
        // A thread that is gone has taken its programs along.
        if self.jobs.send(job).is_ok() {
            self.outstanding += 1;
        }
    }

    /// Where programs could not be attached, and why.
    pub(super) fn failures(&self) -> impl Iterator<Item = &String> {
        self.failed.values()
    }

    /// What failed is to be tried again.
    pub(super) fn retry(&mut self) {
        self.failed.clear();
    }

    /// How many programs are about to be attached or taken away.
    pub(super) fn pending(&self) -> usize {
        self.waiting + self.outstanding
    }

    /// How many were.
    pub(super) fn changes(&self) -> u64 {
        self.changes
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::mpsc::{self, Receiver};

    use linux::fast_path::{Error, Place};

    use super::*;

    // Of asm-generic/errno-base.h.
    const EPERM: i32 = 1;
    const ENODEV: i32 = 19;

    const FIRST: Spot = (Place::Pod, 7);
    const SECOND: Spot = (Place::Pod, 8);

    fn programs() -> (Programs, Receiver<Job>, Instant) {
        let (jobs, told) = mpsc::channel();
        (Programs::new(jobs), told, Instant::now())
    }

    fn jobs(told: &Receiver<Job>) -> Vec<Job> {
        told.try_iter().collect()
    }

    /// What the kernel answers with an error number.
    fn refused(spot: Spot, number: i32) -> Done {
        let source = io::Error::from_raw_os_error(number);
        let interface = spot.1;
        Done::Attached(spot, Err(Error::Attach { interface, source }))
    }

    #[test]
    fn programs_are_attached_when_it_is_calm_and_taken_away_at_once() {
        let (mut programs, told, start) = programs();
        programs.hold(start);
        programs.want(&[FIRST].into(), start);
        let later = start + CALM / 2;
        programs.hold(later);
        programs.want(&[FIRST, SECOND].into(), later);
        programs.want(&[FIRST, SECOND].into(), start + CALM);
        assert_eq!((jobs(&told), programs.pending()), (vec![], 2));
        assert_eq!(programs.due(), Some(later + CALM));
        programs.want(&[FIRST, SECOND].into(), later + CALM);
        assert_eq!(jobs(&told), [FIRST, SECOND].map(Job::Attach));
        assert_eq!((programs.due(), programs.pending()), (None, 2));
        for spot in [FIRST, SECOND] {
            programs.done(Done::Attached(spot, Ok(())));
        }
        assert_eq!(programs.pending(), 0);
        programs.hold(later + CALM);
        programs.want(&[SECOND].into(), later + CALM);
        assert_eq!(jobs(&told), [Job::Detach(FIRST)]);
        assert_eq!(programs.due(), None, "nothing waits");
        programs.done(Done::Detached);
        assert_eq!((programs.pending(), programs.changes()), (0, 3));
    }

    #[test]
    fn who_never_comes_to_rest_is_not_waited_for() {
        let (mut programs, told, start) = programs();
        let mut now = start;
        while now < start + PATIENCE {
            programs.hold(now);
            programs.want(&[FIRST].into(), now);
            assert_eq!(jobs(&told), []);
            now += CALM / 2;
        }
        programs.hold(now);
        programs.want(&[FIRST].into(), now);
        assert_eq!(jobs(&told), [Job::Attach(FIRST)]);
    }

    #[test]
    fn what_fails_is_told_and_tried_again_when_it_is_time() {
        let (mut programs, told, now) = programs();
        programs.want(&[FIRST].into(), now);
        programs.done(refused(FIRST, EPERM));
        programs.want(&[FIRST].into(), now);
        assert_eq!(jobs(&told), [Job::Attach(FIRST)]);
        assert_eq!(programs.failures().count(), 1);
        programs.retry();
        programs.want(&[FIRST].into(), now);
        assert_eq!(jobs(&told), [Job::Attach(FIRST)]);
        // An interface that is gone is no failure.
        programs.done(refused(FIRST, ENODEV));
        programs.want(&BTreeSet::new(), now);
        assert_eq!((programs.failures().count(), jobs(&told)), (0, vec![]));
    }
}
