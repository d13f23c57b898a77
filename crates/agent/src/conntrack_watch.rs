//! An early warning of a connection table that fills up: when it is full, the
//! kernel drops the first packet of every new connection, and nothing says why.
//! And how many packets conntrack gave up.

use linux::conntrack::{self, Conntrack, Losses};
use linux::sysctl::{Error, Setting};

/// Connections tracked, and the most there may be, of one network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fill {
    /// How many there are.
    pub(crate) count: i64,
    /// How many there may be.
    pub(crate) limit: i64,
}

impl Fill {
    /// Of the calling thread's network namespace; `None` if nothing is tracked there.
    pub(crate) fn read() -> Result<Option<Fill>, Error> {
        let read = |name: &str| match Setting::new(name).read() {
            Err(error) if error.is_absent() => Ok(None),
            result => result.map(Some),
        };
        let count = read("netfilter/nf_conntrack_count")?;
        let limit = read("netfilter/nf_conntrack_max")?;
        Ok(count.zip(limit).map(|(count, limit)| Fill { count, limit }))
    }

    /// Hundredths of the limit; 0 when there is no limit.
    fn percent(self) -> i64 {
        if self.limit <= 0 {
            return 0;
        }
        self.count.saturating_mul(100) / self.limit
    }
}

/// Reads what conntrack lost, over a connection that stays open.
#[derive(Debug, Default)]
pub(crate) struct LossReader {
    connection: Option<Conntrack>,
}

impl LossReader {
    /// Of the network namespace of the thread that called first.
    pub(crate) fn read(&mut self) -> Result<Losses, conntrack::Error> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            none => none.insert(Conntrack::open()?),
        };
        connection.losses()
    }
}

/// Where the warning begins, in hundredths of the limit.
const WARN: i64 = 80;
/// Where it ends: well below, so that it does not come and go.
const CALM: i64 = 65;

/// Warns once each time the table fills up. Pure.
#[derive(Debug, Default)]
pub(crate) struct Warning {
    active: bool,
}

impl Warning {
    /// Takes up a reading. Returns the warning when it is new.
    pub(crate) fn take(&mut self, fill: Fill) -> Option<String> {
        let percent = fill.percent();
        if percent < CALM {
            self.active = false;
        }
        if percent < WARN || self.active {
            return None;
        }
        self.active = true;
        Some(format!(
            "the connection table is {percent} % full ({} of {}); when it is full, new connections \
             are dropped: raise net.netfilter.nf_conntrack_max, or find who opens so many \
             (conntrack -L)",
            fill.count, fill.limit
        ))
    }

    /// Whether the warning stands.
    pub(crate) fn is_active(&self) -> bool {
        self.active
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_warning_comes_once_and_again_only_after_calm() {
        let mut warning = Warning::default();
        let mut at = |count| warning.take(Fill { count, limit: 1000 }).is_some();
        let readings = [790, 800, 1000, 700, 810, 640, 799, 900];
        let warned = readings.map(&mut at);
        assert_eq!(
            warned,
            [false, true, false, false, false, false, false, true]
        );
    }

    #[test]
    fn a_table_without_a_limit_never_fills() {
        let fill = Fill { count: 5, limit: 0 };
        assert_eq!(Warning::default().take(fill), None);
    }
}
