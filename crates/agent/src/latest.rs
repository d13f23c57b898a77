//! What waits for a thread, of each object no more than its latest state: a thread
//! that is busy while objects change again and again has as much to catch up with as
//! there are objects, not changes.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use api::Key;

/// Room that is kept when nothing waits any more, in objects.
const KEPT: usize = 64;

/// The latest news of objects of a kind, by key.
#[derive(Debug)]
pub(crate) struct Latest<T>(Mutex<HashMap<Key, T>>);

impl<T> Default for Latest<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Latest<T> {
    /// Leaves news of an object. Returns the news they overtake: whoever takes
    /// news knows already that there are some when there were.
    pub(crate) fn put(&self, key: Key, news: impl FnOnce(Option<&T>) -> T) -> Option<T> {
        let mut waiting = self.lock();
        let news = news(waiting.get(&key));
        waiting.insert(key, news)
    }

    /// Takes the news of an object.
    pub(crate) fn take(&self, key: &Key) -> Option<T> {
        let mut waiting = self.lock();
        let news = waiting.remove(key);
        // The room of a list of everything is not needed again soon.
        if waiting.is_empty() {
            waiting.shrink_to(KEPT);
        }
        news
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, T>> {
        // Nothing is half done while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_waits_than_the_latest_of_each_object() {
        let latest = Latest::default();
        let [a, b] = ["a", "b"].map(|name| Key::new("d", name));
        assert_eq!(latest.put(a.clone(), |_| 0), None);
        for number in 1..1000 {
            let sum = |before: Option<&i32>| before.copied().unwrap_or_default() + number;
            assert!(latest.put(a.clone(), sum).is_some());
        }
        assert_eq!(latest.put(b.clone(), |_| 7), None);
        assert_eq!(latest.lock().len(), 2);
        assert_eq!(latest.take(&a), Some(499_500));
        assert_eq!(latest.take(&a), None);
        assert_eq!(latest.take(&b), Some(7));
        assert!(latest.lock().capacity() <= 2 * KEPT);
    }
}
