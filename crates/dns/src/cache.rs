//! Answers of upstream servers, kept as long as they may be.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use lru::LruCache;

use crate::config::CacheLimits;
use crate::lookup::{Answer, Reason};

/// Failures are remembered at most so long (RFC 2308 7).
const FAILURE: Duration = Duration::from_secs(5);
/// Time to live of what is given past its time (RFC 8767 4).
const STALE_TTL: u32 = 30;
/// What a record costs beside its name and data.
const RECORD: usize = 128;

/// What tells one question from another (RFC 1035 3.2, RFC 4035 3.2).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    name: Name,
    kind: RecordType,
    dnssec_ok: bool,
    checking_disabled: bool,
}

impl Key {
    /// The key of a question; names are told apart without regard to case.
    #[must_use]
    pub fn new(name: &Name, kind: RecordType, dnssec_ok: bool, checking_disabled: bool) -> Self {
        Self {
            name: name.to_lowercase(),
            kind,
            dnssec_ok,
            checking_disabled,
        }
    }

    /// The name, in lower case.
    #[must_use]
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// The type.
    #[must_use]
    pub fn kind(&self) -> RecordType {
        self.kind
    }

    /// Whether signatures are wanted.
    #[must_use]
    pub fn dnssec_ok(&self) -> bool {
        self.dnssec_ok
    }

    /// Whether answers may be unchecked (CD, RFC 4035 3.2.2).
    #[must_use]
    pub fn checking_disabled(&self) -> bool {
        self.checking_disabled
    }
}

/// An answer found.
#[derive(Clone, Debug, PartialEq)]
pub struct Hit {
    /// The answer, with what is left of its time to live.
    pub answer: Answer,
    /// Little of its time is left: it is worth asking again.
    pub refresh: bool,
    /// How long it can be given without asking again.
    pub lasts: Duration,
}

#[derive(Debug)]
struct Kept {
    answer: Answer,
    at: Instant,
    lives: Duration,
    bytes: usize,
}

#[derive(Debug)]
struct Contents {
    kept: LruCache<Key, Kept>,
    bytes: usize,
}

/// A bounded cache; the answers not asked for longest go first.
#[derive(Debug)]
pub struct Cache {
    limits: CacheLimits,
    contents: Mutex<Contents>,
}

impl Cache {
    /// An empty cache.
    #[must_use]
    pub fn new(limits: CacheLimits) -> Self {
        Self {
            limits,
            contents: Mutex::new(Contents {
                kept: LruCache::unbounded(),
                bytes: 0,
            }),
        }
    }

    fn contents(&self) -> MutexGuard<'_, Contents> {
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers and bytes kept.
    #[must_use]
    pub fn size(&self) -> (usize, usize) {
        let contents = self.contents();
        (contents.kept.len(), contents.bytes)
    }

    /// Whether anything may be given past its time.
    #[must_use]
    pub fn serves_stale(&self) -> bool {
        !self.limits.serve_stale.is_zero()
    }

    /// An answer whose time is not over at `now`.
    #[must_use]
    pub fn get(&self, key: &Key, now: Instant) -> Option<Hit> {
        let mut contents = self.contents();
        let kept = contents.kept.get(key)?;
        let age = now.saturating_duration_since(kept.at);
        let left = kept.lives.checked_sub(age).filter(|left| !left.is_zero())?;
        let refresh = self.limits.prefetch && left * 10 <= kept.lives;
        let lasts = match self.limits.prefetch {
            true => left.saturating_sub(kept.lives / 10),
            false => left,
        };
        let mut answer = kept.answer.clone();
        answer.reason = Reason::Cached;
        let age = u32::try_from(age.as_secs()).unwrap_or(u32::MAX);
        let left = u32::try_from(left.as_secs()).unwrap_or(u32::MAX);
        for record in records(&mut answer) {
            // What was kept longer than it asked for lives as long as it is kept.
            record.ttl = match record.ttl.checked_sub(age) {
                Some(ttl) if ttl > 0 => ttl.min(left.max(1)),
                _ => left.max(1),
            };
        }
        Some(Hit {
            answer,
            refresh,
            lasts,
        })
    }

    /// An answer whose time is over at `now`, but not for longer than allowed.
    #[must_use]
    pub fn get_stale(&self, key: &Key, now: Instant) -> Option<Answer> {
        let mut contents = self.contents();
        let kept = contents.kept.get(key)?;
        let age = now.saturating_duration_since(kept.at);
        if age > kept.lives + self.limits.serve_stale || kept.answer.code == ResponseCode::ServFail
        {
            return None;
        }
        let mut answer = kept.answer.clone();
        answer.reason = Reason::Stale;
        for record in records(&mut answer) {
            record.ttl = STALE_TTL;
        }
        Some(answer)
    }

    /// Keeps an answer that came at `now`.
    pub fn put(&self, key: Key, answer: &Answer, now: Instant) {
        let Some(lives) = self.lifetime(&key, answer) else {
            return;
        };
        let bytes = size(&key, answer);
        if bytes > self.limits.bytes {
            return;
        }
        let mut contents = self.contents();
        // A failure does not drive out what may still be given past its time.
        if answer.code == ResponseCode::ServFail
            && self.serves_stale()
            && contents
                .kept
                .peek(&key)
                .is_some_and(|kept| kept.answer.code != ResponseCode::ServFail)
        {
            return;
        }
        let kept = Kept {
            answer: answer.clone(),
            at: now,
            lives,
            bytes,
        };
        if let Some(before) = contents.kept.put(key, kept) {
            contents.bytes -= before.bytes;
        }
        contents.bytes += bytes;
        while contents.bytes > self.limits.bytes
            && let Some((_, oldest)) = contents.kept.pop_lru()
        {
            contents.bytes -= oldest.bytes;
        }
    }

    /// Forgets everything.
    pub fn clear(&self) {
        let mut contents = self.contents();
        contents.kept.clear();
        contents.bytes = 0;
    }

    /// How long an answer is kept (RFC 2308 5); `None`: not at all.
    fn lifetime(&self, key: &Key, answer: &Answer) -> Option<Duration> {
        let limits = &self.limits;
        let seconds = |ttl: u32| Duration::from_secs(ttl.into());
        let positive = answer
            .answers
            .iter()
            .any(|record| record.record_type() == key.kind || key.kind == RecordType::ANY);
        match answer.code {
            ResponseCode::NoError if positive => {
                let ttl = answer.answers.iter().map(|record| record.ttl).min()?;
                Some(seconds(ttl).max(limits.shortest).min(limits.longest))
            }
            ResponseCode::NoError | ResponseCode::NXDomain => {
                let soa = answer
                    .authorities
                    .iter()
                    .find_map(|record| match &record.data {
                        RData::SOA(soa) => Some(record.ttl.min(soa.minimum)),
                        _ => None,
                    });
                // Without a SOA it says nothing about how long it holds.
                let ttl = soa.map_or(Duration::ZERO, seconds);
                Some(ttl.max(limits.shortest).min(limits.longest_negative))
            }
            ResponseCode::ServFail => Some(FAILURE.min(limits.shortest)),
            _ => None,
        }
        .filter(|lives| !lives.is_zero())
    }
}

fn records(answer: &mut Answer) -> impl Iterator<Item = &mut Record> {
    answer
        .answers
        .iter_mut()
        .chain(&mut answer.authorities)
        .chain(&mut answer.additionals)
}

/// About what an answer takes in memory.
fn size(key: &Key, answer: &Answer) -> usize {
    let of = |record: &Record| {
        let data = match &record.data {
            RData::TXT(txt) => txt.txt_data.iter().map(|text| text.len() + 16).sum(),
            RData::Unknown { rdata, .. } => rdata.anything.len(),
            _ => 64,
        };
        RECORD + record.name.len() + data
    };
    let records = answer
        .answers
        .iter()
        .chain(&answer.authorities)
        .chain(&answer.additionals);
    2 * RECORD + key.name.len() + records.map(of).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::rdata::{A, SOA};
    use rstest::rstest;

    use super::*;
    use crate::message::plain;

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    fn key(text: &str) -> Key {
        Key::new(&name(text), RecordType::A, false, false)
    }

    fn positive(ttl: u32) -> Answer {
        Answer {
            answers: vec![Record::from_rdata(
                name("a.example."),
                ttl,
                RData::A(A::new(192, 0, 2, 1)),
            )],
            ..plain(ResponseCode::NoError)
        }
    }

    fn negative(code: ResponseCode, ttl: u32, minimum: u32) -> Answer {
        let soa = SOA::new(name("ns."), name("h."), 1, 2, 3, 4, minimum);
        Answer {
            authorities: vec![Record::from_rdata(name("example."), ttl, RData::SOA(soa))],
            ..plain(code)
        }
    }

    #[rstest]
    #[case::own_time(positive(20), 20)]
    #[case::at_least(positive(0), 5)]
    #[case::at_most(positive(3600), 30)]
    #[case::smaller_of_soa(negative(ResponseCode::NXDomain, 10, 600), 10)]
    #[case::smaller_of_soa_minimum(negative(ResponseCode::NoError, 600, 12), 12)]
    #[case::negative_at_most(negative(ResponseCode::NXDomain, 600, 600), 30)]
    #[case::without_soa(plain(ResponseCode::NXDomain), 5)]
    #[case::failure(plain(ResponseCode::ServFail), 5)]
    #[case::refusal(plain(ResponseCode::Refused), 0)]
    fn answers_are_kept_as_long_as_they_may_be(#[case] answer: Answer, #[case] seconds: u64) {
        let cache = Cache::new(CacheLimits::default());
        let now = Instant::now();
        cache.put(key("a.example."), &answer, now);
        for second in 0..40 {
            let hit = cache.get(&key("A.example."), now + Duration::from_secs(second));
            assert_eq!(hit.is_some(), second < seconds, "after {second} s");
        }
    }

    #[test]
    fn time_to_live_goes_down() {
        let cache = Cache::new(CacheLimits::default());
        let now = Instant::now();
        cache.put(key("a.example."), &positive(20), now);
        let ttl = |after| {
            let hit = cache.get(&key("a.example."), now + Duration::from_secs(after));
            hit.map(|hit| hit.answer.answers[0].ttl)
        };
        assert_eq!([ttl(0), ttl(7), ttl(19)], [Some(20), Some(13), Some(1)]);
    }

    #[test]
    fn questions_that_differ_in_type_or_flags_are_different() {
        let cache = Cache::new(CacheLimits::default());
        let now = Instant::now();
        cache.put(key("a.example."), &positive(20), now);
        let name = name("a.example.");
        for other in [
            Key::new(&name, RecordType::AAAA, false, false),
            Key::new(&name, RecordType::A, true, false),
            Key::new(&name, RecordType::A, false, true),
        ] {
            assert_eq!(cache.get(&other, now), None);
        }
    }

    #[test]
    fn a_flood_of_names_stays_within_the_limit_and_keeps_what_is_asked_for() {
        let limits = CacheLimits {
            bytes: 100_000,
            ..CacheLimits::default()
        };
        let cache = Cache::new(limits);
        let now = Instant::now();
        cache.put(key("wanted.example."), &positive(20), now);
        for n in 0..10_000 {
            let answer = negative(ResponseCode::NXDomain, 30, 30);
            cache.put(key(&format!("{n}.example.")), &answer, now);
            assert!(cache.get(&key("wanted.example."), now).is_some());
            assert!(cache.size().1 <= 100_000);
        }
        assert!(cache.size().0 < 1000);
        cache.clear();
        assert_eq!(cache.size(), (0, 0));
    }

    #[test]
    fn past_its_time_an_answer_is_given_only_where_wanted_and_not_for_ever() {
        let limits = CacheLimits {
            serve_stale: Duration::from_secs(60),
            ..CacheLimits::default()
        };
        let cache = Cache::new(limits);
        let now = Instant::now();
        cache.put(key("a.example."), &positive(10), now);
        // A failure in between is no better answer.
        let later = now + Duration::from_secs(15);
        cache.put(key("a.example."), &plain(ResponseCode::ServFail), later);
        assert_eq!(cache.get(&key("a.example."), later), None);
        let stale = cache.get_stale(&key("a.example."), later).expect("kept");
        assert_eq!(
            (stale.answers[0].ttl, stale.reason),
            (STALE_TTL, Reason::Stale)
        );
        let too_late = now + Duration::from_secs(71);
        assert_eq!(cache.get_stale(&key("a.example."), too_late), None);
    }

    #[test]
    fn the_last_tenth_of_its_time_is_for_refreshing() {
        let limits = CacheLimits {
            prefetch: true,
            ..CacheLimits::default()
        };
        let cache = Cache::new(limits);
        let now = Instant::now();
        cache.put(key("a.example."), &positive(20), now);
        let refresh = |after| {
            let hit = cache.get(&key("a.example."), now + Duration::from_secs(after));
            hit.map(|hit| hit.refresh)
        };
        assert_eq!([refresh(17), refresh(18)], [Some(false), Some(true)]);
    }
}
