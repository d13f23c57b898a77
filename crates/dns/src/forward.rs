//! Answers from elsewhere: the cache, or an upstream server.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use hickory_proto::op::{Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use tokio::sync::{Notify, Semaphore, oneshot};

use crate::cache::{Cache, Key};
use crate::config::{Config, Forwarding};
use crate::lookup::{Answer, Reason};
use crate::message::plain;
use crate::metrics::Metrics;
use crate::resolver::{Pending, Purpose, found_by_search};
use crate::upstream::{Failure, Pool};

/// Resolves what is not ours.
#[derive(Debug)]
pub struct Forwarder {
    pool: ArcSwap<Pool>,
    cache: Cache,
    /// Questions under way, and who else waits for each.
    under_way: Mutex<HashMap<Key, Vec<oneshot::Sender<Answer>>>>,
    places: Arc<Semaphore>,
    /// Told when there are other servers.
    changed: Notify,
    metrics: Arc<Metrics>,
}

/// The flags of a question that go with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flags {
    /// Signatures are wanted (DO, RFC 3225).
    pub dnssec_ok: bool,
    /// Answers need not be checked (CD, RFC 4035 3.2.2).
    pub checking_disabled: bool,
}

/// An answer made from the cache alone.
#[derive(Clone, Debug, PartialEq)]
pub struct Known {
    /// The answer.
    pub answer: Answer,
    /// How long it holds.
    pub until: Instant,
    /// Answers of the cache it was made of: those that say that something is
    /// there, and those that say that it is not.
    pub hits: (u8, u8),
}

impl Forwarder {
    /// Forwards as configured.
    #[must_use]
    pub fn new(forwarding: &Forwarding, metrics: Arc<Metrics>) -> Self {
        Self {
            pool: ArcSwap::from_pointee(Pool::new(forwarding)),
            cache: Cache::new(forwarding.cache.clone()),
            under_way: Mutex::default(),
            places: Arc::new(Semaphore::new(forwarding.concurrent)),
            changed: Notify::new(),
            metrics,
        }
    }

    /// The servers in use.
    #[must_use]
    pub fn pool(&self) -> Arc<Pool> {
        self.pool.load_full()
    }

    /// Uses the servers of another configuration from now on. What came from the
    /// old ones is forgotten, unless the new ones know the same.
    pub fn set_servers(&self, forwarding: &Forwarding, same: bool) {
        self.pool.store(Arc::new(Pool::new(forwarding)));
        if !same {
            self.cache.clear();
        }
        self.changed.notify_one();
    }

    /// Looks for servers that lead back here, now and whenever there are others.
    pub async fn probe_for_loops(&self) {
        loop {
            let pool = self.pool();
            tokio::select! {
                () = pool.probe_for_loops() => self.changed.notified().await,
                () = self.changed.notified() => {}
            }
        }
    }

    /// Bytes and number of answers in the cache, into the metrics.
    pub fn measure(&self) {
        let (entries, bytes) = self.cache.size();
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.metrics.cache_entries.set(number(entries));
        self.metrics.cache_bytes.set(number(bytes));
    }

    /// Finishes a question from the cache alone, if that is possible.
    #[must_use]
    pub fn finish_from_cache(
        self: &Arc<Self>,
        config: &Config,
        pending: &Pending,
        kind: RecordType,
        flags: Flags,
    ) -> Option<Known> {
        let mut progress = Progress::new(config, pending);
        let now = Instant::now();
        let mut until: Option<Instant> = None;
        let mut hits = (0u8, 0u8);
        loop {
            let name = match progress.next() {
                Next::Done(answer) => {
                    // No record of it outlives its own time either.
                    let records = answer.answers.iter().chain(&answer.authorities);
                    let shortest = records.map(|record| record.ttl).min().unwrap_or(0);
                    let shortest = now + Duration::from_secs(shortest.into());
                    return Some(Known {
                        answer,
                        until: until.map_or(shortest, |until| until.min(shortest)),
                        hits,
                    });
                }
                Next::Ask(name) => name,
            };
            let key = Key::new(name, kind, flags.dnssec_ok, flags.checking_disabled);
            let hit = self.cache.get(&key, now)?;
            if hit.refresh {
                // By the slow way, which refreshes it.
                return None;
            }
            let lasts = now + hit.lasts;
            until = Some(until.map_or(lasts, |until| until.min(lasts)));
            self.count_hit(&hit.answer);
            let count = match hit.answer.answers.is_empty() {
                true => &mut hits.1,
                false => &mut hits.0,
            };
            *count = count.saturating_add(1);
            let mut answer = hit.answer;
            adopt_case(&mut answer, &key, name);
            progress.take(Ok(answer));
        }
    }

    /// Finishes a question.
    pub async fn finish(
        self: &Arc<Self>,
        config: &Config,
        pending: &Pending,
        kind: RecordType,
        flags: Flags,
    ) -> Answer {
        let mut progress = Progress::new(config, pending);
        loop {
            let name = match progress.next() {
                Next::Done(answer) => return answer,
                Next::Ask(name) => name.clone(),
            };
            let reply = self.ask(&name, kind, flags).await;
            progress.take(reply);
        }
    }

    fn count_hit(&self, answer: &Answer) {
        if answer.answers.is_empty() {
            self.metrics.cache_denials.inc();
        } else {
            self.metrics.cache_hits.inc();
        }
    }

    /// Asks for one name. Who asks what is being asked already waits for that.
    async fn ask(
        self: &Arc<Self>,
        name: &Name,
        kind: RecordType,
        flags: Flags,
    ) -> Result<Answer, Failure> {
        let key = Key::new(name, kind, flags.dnssec_ok, flags.checking_disabled);
        if let Some(hit) = self.cache.get(&key, Instant::now()) {
            self.count_hit(&hit.answer);
            if hit.refresh {
                self.metrics.cache_prefetch.inc();
                drop(self.start(&key));
            }
            let mut answer = hit.answer;
            adopt_case(&mut answer, &key, name);
            return Ok(answer);
        }
        self.metrics.cache_misses.inc();
        let Some(answer) = self.start(&key) else {
            self.metrics.too_many.inc();
            return Err(Failure::TooMany);
        };
        match answer.await {
            Ok(mut answer) => {
                if let Reason::UpstreamFailed(why) = answer.reason {
                    return Err(Failure::All(why));
                }
                if answer.reason == Reason::NoUpstream {
                    return Err(Failure::None(name.clone()));
                }
                adopt_case(&mut answer, &key, name);
                Ok(answer)
            }
            // The runtime ends.
            Err(_) => Err(Failure::All("the server is ending".to_owned())),
        }
    }

    /// Starts asking for a name, or joins who does. `None`: too many wait.
    fn start(self: &Arc<Self>, key: &Key) -> Option<oneshot::Receiver<Answer>> {
        let (sender, receiver) = oneshot::channel();
        {
            let mut under_way = self
                .under_way
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            if let Some(waiting) = under_way.get_mut(key) {
                waiting.push(sender);
                return Some(receiver);
            }
            under_way.insert(key.clone(), vec![sender]);
        }
        let Ok(place) = self.places.clone().try_acquire_owned() else {
            self.take_waiting(key);
            return None;
        };
        let (this, key) = (self.clone(), key.clone());
        tokio::spawn(async move {
            let answer = this.ask_upstream(&key).await;
            drop(place);
            for waiting in this.take_waiting(&key) {
                // Who no longer waits needs no answer.
                let _ = waiting.send(answer.clone());
            }
        });
        Some(receiver)
    }

    fn take_waiting(&self, key: &Key) -> Vec<oneshot::Sender<Answer>> {
        self.under_way
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(key)
            .unwrap_or_default()
    }

    async fn ask_upstream(&self, key: &Key) -> Answer {
        let query = Query::query(key.name().clone(), key.kind());
        let pool = self.pool();
        let reply = pool
            .ask(
                &query,
                key.dnssec_ok(),
                key.checking_disabled(),
                &self.metrics,
            )
            .await;
        let (answer, failed) = match reply {
            Ok(answer) => {
                let failed = answer.code == ResponseCode::ServFail;
                (answer, failed)
            }
            Err(Failure::None(_)) => {
                return Answer {
                    reason: Reason::NoUpstream,
                    ..plain(ResponseCode::Refused)
                };
            }
            Err(failure) => (
                Answer {
                    reason: Reason::UpstreamFailed(failure.to_string()),
                    ..plain(ResponseCode::ServFail)
                },
                true,
            ),
        };
        let now = Instant::now();
        if failed
            && self.cache.serves_stale()
            && let Some(stale) = self.cache.get_stale(key, now)
        {
            self.metrics.cache_stale.inc();
            return stale;
        }
        // Of servers that could not be reached nothing is known that could be kept.
        if !matches!(answer.reason, Reason::UpstreamFailed(_)) && Arc::ptr_eq(&pool, &self.pool()) {
            self.cache.put(key.clone(), &answer, now);
        }
        answer
    }
}

/// Gives the records of a question's name the letters it was asked with
/// (draft-vixie-dnsext-dns0x20): names are kept and asked for in lower case.
fn adopt_case(answer: &mut Answer, key: &Key, name: &Name) {
    for record in &mut answer.answers {
        if record.name == *key.name() {
            record.name = name.clone();
        }
    }
}

/// A question on its way through the names it needs.
struct Progress<'a> {
    config: &'a Config,
    pending: &'a Pending,
    at: usize,
    done: Option<Answer>,
}

enum Next<'a> {
    Ask(&'a Name),
    Done(Answer),
}

impl<'a> Progress<'a> {
    fn new(config: &'a Config, pending: &'a Pending) -> Self {
        Self {
            config,
            pending,
            at: 0,
            done: None,
        }
    }

    fn next(&mut self) -> Next<'a> {
        if let Some(answer) = self.done.take() {
            return Next::Done(answer);
        }
        match self.pending.names.get(self.at) {
            Some(name) => Next::Ask(name),
            None => Next::Done(match &self.pending.purpose {
                Purpose::Search(otherwise) => otherwise.clone(),
                // Both have one name, and its reply always ends them.
                Purpose::Same | Purpose::Alias(_) => plain(ResponseCode::ServFail),
            }),
        }
    }

    /// Takes up the reply to the name asked for.
    fn take(&mut self, reply: Result<Answer, Failure>) {
        let name = &self.pending.names[self.at];
        self.at += 1;
        let is_cache = !self.config.authoritative;
        let failed = |failure: &Failure| match failure {
            // Who is told to go elsewhere has nowhere to go.
            Failure::None(_) if is_cache => Answer {
                reason: Reason::NobodyBehind,
                ..plain(ResponseCode::ServFail)
            },
            Failure::None(_) => Answer {
                reason: Reason::NoUpstream,
                ..plain(ResponseCode::Refused)
            },
            Failure::All(_) | Failure::TooMany => Answer {
                reason: Reason::UpstreamFailed(failure.to_string()),
                ..plain(ResponseCode::ServFail)
            },
        };
        self.done = match (&self.pending.purpose, reply) {
            (Purpose::Same, Ok(answer)) => Some(answer),
            (Purpose::Same, Err(failure)) => Some(failed(&failure)),
            (Purpose::Alias(before), reply) => {
                let mut answer = before.clone();
                match reply {
                    Ok(rest) => {
                        answer.code = rest.code;
                        answer.answers.extend(rest.answers);
                        answer.authorities = rest.authorities;
                    }
                    // The alias is all there is to know without upstream servers.
                    Err(Failure::None(_)) => {}
                    Err(failure) => {
                        answer.code = ResponseCode::ServFail;
                        answer.reason = Reason::UpstreamFailed(failure.to_string());
                    }
                }
                Some(answer)
            }
            (Purpose::Search(_), Ok(answer)) => match answer.code {
                ResponseCode::NoError => Some(found_by_search(
                    self.config,
                    &self.pending.question,
                    name.clone(),
                    answer,
                )),
                // The next may exist. What others refuse is none of theirs.
                ResponseCode::NXDomain | ResponseCode::Refused => None,
                _ => Some(answer),
            },
            (Purpose::Search(_), Err(Failure::None(_))) => None,
            (Purpose::Search(_), Err(failure)) => Some(failed(&failure)),
        };
    }
}
