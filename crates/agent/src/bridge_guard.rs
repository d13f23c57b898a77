//! Holds what spares pods of a bridge settings of their own, see [`cni::bridge_guard`].

use std::path::{Path, PathBuf};

use cni::bridge_guard::{self, BridgeGuard, Holding};

use crate::options::Attach;
use crate::worker::Problems;

/// The table, as long as this agent lives.
#[derive(Debug)]
pub(crate) struct Keeper {
    attach: Attach,
    /// Of all reservations.
    directory: PathBuf,
    held: Option<BridgeGuard>,
    problems: Problems,
}

impl Keeper {
    /// Holds nothing yet.
    pub(crate) fn new(attach: Attach, directory: &Path) -> Self {
        Self {
            attach,
            directory: directory.to_owned(),
            held: None,
            problems: Problems::default(),
        }
    }

    /// Makes the table where pods are attached to a bridge, and holds it; also one that
    /// is left of the time when they were. Where that cannot be, pods get settings of
    /// their own, which takes the plugin longer and nothing else.
    pub(crate) fn keep(&mut self) {
        if self.held.is_some() {
            return;
        }
        let problem = match self.hold() {
            Ok(problem) => problem,
            Err(error) => Some(error.to_string()),
        };
        self.problems.set(Vec::from_iter(problem.map(|problem| {
            format!(
                "cannot hold the nftables table bridge {}: {problem}; each pod of a bridge is \
                 told by its own settings to heed no router advertisements and redirects",
                bridge_guard::TABLE
            )
        })));
    }

    /// Returns why it is not held though it is wanted.
    fn hold(&mut self) -> Result<Option<String>, cni::error::Error> {
        if self.attach != Attach::Bridge && !bridge_guard::exists()? {
            return Ok(None);
        }
        Ok(match bridge_guard::hold(&self.directory)? {
            Holding::Held(guard) => {
                self.held = Some(guard);
                None
            }
            Holding::Taken => Some("another process holds it".to_owned()),
            Holding::Impossible(error) => {
                Some(format!("{error} (needs Linux 6.9 with rules on bridges)"))
            }
        })
    }
}
