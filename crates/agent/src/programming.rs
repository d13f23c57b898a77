//! How long changes of endpoints take from what triggered them, by the
//! EndpointSlice controller's account, until they are in force here: Kubernetes'
//! "network programming latency".

use std::collections::HashMap;

use api::Key;
use jiff::Timestamp;

/// When changes that are not in force yet were triggered.
#[derive(Debug)]
pub(crate) struct Triggers {
    /// What was triggered before is no measure of this agent.
    since: Timestamp,
    /// By slice: one may change several times before it is in force.
    waiting: HashMap<Key, Vec<Timestamp>>,
}

impl Triggers {
    /// Of changes triggered from a time on.
    pub(crate) fn since(since: Timestamp) -> Triggers {
        Triggers {
            since,
            waiting: HashMap::new(),
        }
    }

    /// A slice changed; `trigger` is the time its annotation names. Writes of the
    /// slice that name the same one and are not in force yet are one change.
    pub(crate) fn changed(&mut self, slice: Key, trigger: Option<&str>) {
        let trigger = trigger.and_then(|text| text.parse().ok());
        if let Some(trigger) = trigger.filter(|trigger| *trigger > self.since) {
            let waiting = self.waiting.entry(slice).or_default();
            if waiting.last() != Some(&trigger) {
                waiting.push(trigger);
            }
        }
    }

    /// A slice is gone. Nothing says when that was triggered: its annotation is
    /// of the change before.
    pub(crate) fn removed(&mut self, slice: &Key) {
        self.waiting.remove(slice);
    }

    /// All changes so far are in force: seconds since each was triggered. Where
    /// the controller's clock is ahead, none.
    pub(crate) fn in_force(&mut self, now: Timestamp) -> impl Iterator<Item = f64> {
        std::mem::take(&mut self.waiting)
            .into_values()
            .flatten()
            .map(move |trigger| now.duration_since(trigger).as_secs_f64().max(0.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn seconds(triggers: &mut Triggers, now: i64) -> Vec<f64> {
        let mut seconds: Vec<f64> = triggers.in_force(at(now)).collect();
        seconds.sort_by(f64::total_cmp);
        seconds
    }

    #[test]
    fn each_change_is_measured_once_when_it_is_in_force() {
        let mut triggers = Triggers::since(at(0));
        let [a, b] = ["a", "b"].map(|name| Key::new("d", name));
        triggers.changed(a.clone(), Some(&at(10).to_string()));
        triggers.changed(a, Some(&at(12).to_string()));
        triggers.changed(b, Some(&at(13).to_string()));
        assert_eq!(seconds(&mut triggers, 15), [2.0, 3.0, 5.0]);
        assert_eq!(seconds(&mut triggers, 20), [0.0; 0]);
    }

    #[test]
    fn what_was_triggered_together_and_is_in_force_together_is_measured_once() {
        let mut triggers = Triggers::since(at(0));
        let key = Key::new("d", "a");
        for trigger in [10, 12, 12] {
            triggers.changed(key.clone(), Some(&at(trigger).to_string()));
        }
        assert_eq!(seconds(&mut triggers, 15), [3.0, 5.0]);
        triggers.changed(key, Some(&at(12).to_string()));
        assert_eq!(seconds(&mut triggers, 15), [3.0]);
    }

    #[test]
    fn what_says_nothing_of_this_agent_is_left_out() {
        let mut triggers = Triggers::since(at(10));
        let key = Key::new("d", "a");
        for trigger in [None, Some("yesterday"), Some(&*at(10).to_string())] {
            triggers.changed(key.clone(), trigger);
        }
        triggers.changed(key.clone(), Some(&at(11).to_string()));
        triggers.removed(&key);
        assert_eq!(seconds(&mut triggers, 20), [0.0; 0]);
    }

    #[test]
    fn a_clock_that_is_ahead_counts_as_no_time() {
        let mut triggers = Triggers::since(at(0));
        triggers.changed(Key::new("d", "a"), Some(&at(30).to_string()));
        assert_eq!(seconds(&mut triggers, 20), [0.0]);
    }
}
