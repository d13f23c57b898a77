//! What the first process of a PID namespace has to do: reap whoever ends,
//! and start again what should run.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use linux::process::{Child, Error, Launch, Process};
use rustix::io::Errno;
use rustix::process::{Pid, WaitId, WaitIdOptions, WaitOptions, WaitStatus};

/// Reaps all children, also those that were left to this process, on a thread
/// of its own. All children are started through it.
pub(crate) struct Reaper {
    gate: Arc<Gate>,
}

#[derive(Default)]
struct Gate {
    /// How many children were started. Held while one is: a program that
    /// can't be executed is reaped by the standard library.
    started: Mutex<u64>,
    more: Condvar,
}

impl Reaper {
    /// Starts the thread; `report` is called on it for each child that ended.
    pub(crate) fn start(
        report: impl Fn(Pid, WaitStatus) + Send + 'static,
    ) -> std::io::Result<Self> {
        let gate = Arc::new(Gate::default());
        let seen = Arc::clone(&gate);
        std::thread::Builder::new()
            .name("reaper".into())
            .spawn(move || reap(&seen, report))?;
        Ok(Self { gate })
    }

    /// Starts a child.
    pub(crate) fn spawn(&self, launch: Launch) -> Result<Child, Error> {
        let mut started = lock(&self.gate.started);
        let child = launch.spawn();
        *started += 1;
        self.gate.more.notify_all();
        child
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn reap(gate: &Gate, report: impl Fn(Pid, WaitStatus)) {
    loop {
        let before = *lock(&gate.started);
        // Only looks: what ends while a child is being started may be the
        // standard library's to reap.
        match rustix::process::waitid(WaitId::All, WaitIdOptions::EXITED | WaitIdOptions::NOWAIT) {
            Ok(_) => {
                let started = lock(&gate.started);
                let ended = rustix::process::wait(WaitOptions::NOHANG);
                drop(started);
                if let Ok(Some((pid, status))) = ended {
                    report(pid, status);
                }
            }
            Err(Errno::CHILD) => {
                let mut started = lock(&gate.started);
                while *started == before {
                    started = gate
                        .more
                        .wait(started)
                        .unwrap_or_else(PoisonError::into_inner);
                }
            }
            Err(_) => {}
        }
    }
}

/// When to start a program again that ended: at once the first time, then
/// after twice as long each time, until it has run for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BackOff {
    delay: Duration,
}

impl BackOff {
    const FIRST: Duration = Duration::from_millis(50);
    const LAST: Duration = Duration::from_secs(10);
    /// Running for this long counts as well.
    const WELL: Duration = Duration::from_secs(10);

    pub(crate) const fn new() -> Self {
        Self { delay: Self::FIRST }
    }

    /// How long to wait after a run of this length.
    pub(crate) fn after(&mut self, ran: Duration) -> Duration {
        if ran >= Self::WELL {
            self.delay = Self::FIRST;
        }
        let wait = self.delay;
        self.delay = (self.delay * 2).min(Self::LAST);
        wait
    }
}

/// A program that is to run always.
pub(crate) struct Service {
    pub(crate) name: String,
    state: State,
    back_off: BackOff,
}

enum State {
    Running { process: Process, since: Instant },
    Waiting { until: Instant },
}

impl Service {
    /// A program to be started at once.
    pub(crate) fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            state: State::Waiting {
                until: Instant::now(),
            },
            back_off: BackOff::new(),
        }
    }

    /// Its process while it runs.
    pub(crate) fn process(&self) -> Option<&Process> {
        match &self.state {
            State::Running { process, .. } => Some(process),
            State::Waiting { .. } => None,
        }
    }

    /// When it is to be started again; none while it runs.
    pub(crate) fn due(&self) -> Option<Instant> {
        match self.state {
            State::Running { .. } => None,
            State::Waiting { until } => Some(until),
        }
    }

    /// Whether it is to be started now.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.due().is_some_and(|due| due <= now)
    }

    /// Notes how a start went; after a failure it is due again later.
    pub(crate) fn started(
        &mut self,
        result: Result<Process, String>,
        now: Instant,
    ) -> Result<(), String> {
        match result {
            Ok(process) => {
                self.state = State::Running {
                    process,
                    since: now,
                };
                Ok(())
            }
            Err(error) => {
                self.state = State::Waiting {
                    until: now + self.back_off.after(Duration::ZERO),
                };
                Err(format!("{}: {error}", self.name))
            }
        }
    }

    /// Notes that a process has ended; true when it was this service's.
    pub(crate) fn ended(&mut self, pid: Pid, now: Instant) -> bool {
        match &self.state {
            State::Running { process, since } if process.pid() == pid => {
                self.state = State::Waiting {
                    until: now + self.back_off.after(now.duration_since(*since)),
                };
                true
            }
            _ => false,
        }
    }
}

/// What a process's end looked like.
pub(crate) fn describe(status: WaitStatus) -> String {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => format!("status {status:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restarts_come_slower_until_a_run_was_long() {
        let mut back_off = BackOff::new();
        let short = Duration::from_millis(1);
        let waits: Vec<u128> = (0..10).map(|_| back_off.after(short).as_millis()).collect();
        assert_eq!(
            waits,
            [50, 100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]
        );
        assert_eq!(
            back_off.after(Duration::from_secs(60)),
            Duration::from_millis(50)
        );
    }

    #[test]
    fn every_child_is_reported_also_after_there_were_none() {
        let (sender, receiver) = std::sync::mpsc::channel();
        let reaper = Reaper::start(move |pid, status| {
            sender.send((pid, status)).unwrap();
        })
        .unwrap();
        for code in ["3", "4"] {
            let script = format!("exit {code}");
            let child = reaper
                .spawn(Launch::new("sh").args(["-c", &script]))
                .unwrap();
            let (pid, status) = receiver.recv().unwrap();
            assert_eq!(pid, child.pid());
            assert_eq!(describe(status), format!("exit code {code}"));
        }
        // A program that is missing is an error and no child.
        assert!(reaper.spawn(Launch::new("/no/such/program")).is_err());
    }
}
