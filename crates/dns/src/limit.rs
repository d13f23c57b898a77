//! How much one client may ask.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Independent parts, so that threads rarely wait for each other.
const PARTS: usize = 16;
/// Clients remembered in each part.
const CLIENTS: usize = 4096;
/// What may be asked at once, in seconds of the rate.
const BURST: f64 = 10.0;

/// Between two looks for clients that can be forgotten.
const SWEEP: Duration = Duration::from_secs(1);

/// A token bucket for each client.
#[derive(Debug)]
pub struct Limiter {
    /// Tokens a second; 0: no limit.
    rate: f64,
    parts: Vec<Mutex<Part>>,
    hasher: RandomState,
}

#[derive(Debug, Default)]
struct Part {
    clients: HashMap<IpAddr, Bucket>,
    /// When it was looked through last for those that can be forgotten.
    swept: Option<Instant>,
}

impl Part {
    /// Makes room for one more, if there is any to be had.
    fn make_room(&mut self, now: Instant) -> bool {
        if self.clients.len() < CLIENTS {
            return true;
        }
        // Not for each packet of a flood.
        if self.swept.is_some_and(|at| now.duration_since(at) < SWEEP) {
            return false;
        }
        self.swept = Some(now);
        // Whoever has been quiet for as long as a bucket takes to fill is as good as new.
        let full = Duration::from_secs_f64(BURST);
        self.clients
            .retain(|_, bucket| now.duration_since(bucket.at) < full);
        self.clients.len() < CLIENTS
    }
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Limiter {
    /// Allows each client `rate` questions a second and ten times as many at
    /// once; 0 allows all.
    #[must_use]
    pub fn new(rate: u32) -> Self {
        Self {
            rate: f64::from(rate),
            parts: (0..PARTS).map(|_| Mutex::default()).collect(),
            hasher: RandomState::new(),
        }
    }

    /// Whether `client` may ask one more question at `now`.
    pub fn allows(&self, client: IpAddr, now: Instant) -> bool {
        if self.rate == 0.0 {
            return true;
        }
        let part = usize::try_from(self.hasher.hash_one(client)).unwrap_or(0) % PARTS;
        let mut part = self.parts[part]
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let most = self.rate * BURST;
        if !part.clients.contains_key(&client) && !part.make_room(now) {
            // More clients than can be told apart: spoofed, most likely.
            return false;
        }
        let bucket = part.clients.entry(client).or_insert(Bucket {
            tokens: most,
            at: now,
        });
        let earned = now.duration_since(bucket.at).as_secs_f64() * self.rate;
        bucket.tokens = (bucket.tokens + earned).min(most);
        bucket.at = now;
        if bucket.tokens < 1.0 {
            return false;
        }
        bucket.tokens -= 1.0;
        true
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const ONE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    const OTHER: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));

    #[test]
    fn a_client_that_floods_is_stopped_and_others_are_not() {
        let limiter = Limiter::new(5);
        let now = Instant::now();
        let allowed = (0..1000).filter(|_| limiter.allows(ONE, now)).count();
        assert_eq!(allowed, 50);
        assert!(limiter.allows(OTHER, now));
        let later = now + Duration::from_secs(1);
        let allowed = (0..1000).filter(|_| limiter.allows(ONE, later)).count();
        assert_eq!(allowed, 5);
    }

    #[test]
    fn without_a_rate_all_is_allowed() {
        let limiter = Limiter::new(0);
        let now = Instant::now();
        assert!((0..1000).all(|_| limiter.allows(ONE, now)));
    }

    #[test]
    fn clients_are_remembered_in_bounded_memory() {
        let limiter = Limiter::new(1);
        let now = Instant::now();
        for n in 0..200_000u32 {
            limiter.allows(IpAddr::V4(Ipv4Addr::from_bits(n)), now);
        }
        let remembered: usize = limiter
            .parts
            .iter()
            .map(|p| p.lock().unwrap().clients.len())
            .sum();
        assert!(remembered <= PARTS * CLIENTS, "{remembered}");
        let later = now + Duration::from_secs(60);
        assert!(limiter.allows(IpAddr::V4(Ipv4Addr::from_bits(u32::MAX)), later));
    }
}
