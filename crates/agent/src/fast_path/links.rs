//! What of the fast path takes long, done in a thread of its own: trying the kernel
//! and loading the programs, and attaching them and taking them away, for each of
//! which the kernel waits until nobody handles a packet by what was before.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use linux::fast_path::{self, Attached, FastPath, Lacking, Place};

/// Where a program is: which, and the index of the interface.
pub(crate) type Spot = (Place, u32);

/// What the thread is told to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Job {
    Attach(Spot),
    Detach(Spot),
}

/// What it has done. Each job is answered.
#[derive(Debug)]
pub(crate) enum Done {
    /// The programs are loaded, or what the kernel lacks. Comes first, once.
    Started(Result<Arc<FastPath>, Lacking>),
    /// A program was attached, or why not.
    Attached(Spot, Result<(), fast_path::Error>),
    /// A program was taken away.
    Detached,
}

/// Starts the fast path and does what it is told until there is nobody to tell it
/// anything. Then all programs are taken away.
pub(crate) fn run(jobs: &Receiver<Job>, tell: impl Fn(Done)) {
    let fast = match fast_path::probe() {
        Ok(fast) => Arc::new(fast),
        Err(error) => return tell(Done::Started(Err(error))),
    };
    tell(Done::Started(Ok(fast.clone())));
    let mut attached: BTreeMap<Spot, Attached> = BTreeMap::new();
    while let Ok(job) = jobs.recv() {
        tell(match job {
            Job::Attach(spot) if attached.contains_key(&spot) => Done::Attached(spot, Ok(())),
            Job::Attach(spot) => {
                let made = fast.attach(spot.0, spot.1);
                Done::Attached(spot, made.map(|made| drop(attached.insert(spot, made))))
            }
            Job::Detach(spot) => {
                attached.remove(&spot);
                Done::Detached
            }
        });
    }
}
