//! List + watch: keeps a consumer informed about all objects of a kind.
//!
//! The rules are those of Kubernetes' own clients (API concepts, "Efficient
//! detection of changes"):
//!
//! - the first state comes from a list in pages, what follows from a watch that
//!   goes on at the list's version;
//! - a watch that ends, breaks or goes quiet is opened again at the last
//!   version seen; bookmarks keep that version fresh on a quiet kind;
//! - a version the server no longer has (410 Gone) leads to a new list, of
//!   which only the *difference* is delivered: objects whose version is the one
//!   already delivered are not repeated, objects that vanished are `Deleted`;
//! - while the API server cannot be reached nothing is delivered: what is known
//!   stays in force. Attempts are spaced with back-off and jitter so that a
//!   server that comes back is not met by all nodes at once.
//!
//! All of that is compiled once. Per kind only the decoding of one object is.

use std::borrow::Cow;
use std::collections::HashMap;
use std::collections::hash_map::{self, RandomState};
use std::hash::{BuildHasher as _, Hash as _, Hasher as _};
use std::io::ErrorKind;
use std::marker::PhantomData;
use std::time::{Duration, Instant};

use http_body_util::BodyExt as _;
use kube::Client;
use kube::client::Body;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::meta::{Key, Metadata, Resource};

/// News of one kind.
#[derive(Debug)]
pub enum Event<R> {
    /// The object is new or has changed; this is its whole state.
    Applied(R),
    /// The object is gone.
    Deleted(Key),
    /// Everything up to here is a complete picture. Sent after every list, so
    /// again when a new list was needed.
    Synced,
}

/// Which objects of a kind are watched, and how patient the watch is.
#[derive(Clone, Debug)]
pub struct Scope {
    /// Label selector in the query's notation; empty: all.
    pub labels: String,
    /// Field selector in the query's notation (`metadata.name=node-1`); empty: all.
    pub fields: String,
    /// Objects in one page of a list.
    pub page: u32,
    /// The server is asked to end a watch after this long (plus up to as much
    /// again, drawn at random). A watch on which nothing was heard, no bookmark
    /// either, for longer than what was asked plus a tenth is taken for dead.
    pub watch_timeout: Duration,
    /// First and longest pause after a failure.
    pub backoff: (Duration, Duration),
}

impl Default for Scope {
    fn default() -> Scope {
        Scope {
            labels: String::new(),
            fields: String::new(),
            page: 500,
            watch_timeout: Duration::from_secs(5 * 60),
            backoff: (Duration::from_millis(100), Duration::from_secs(5)),
        }
    }
}

/// The consumer no longer listens: the watch ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closed;

/// Watches a kind and delivers what happens, in order, until the consumer says
/// [`Closed`] or the future is dropped.
///
/// `deliver` is called on the task that runs the future and must not block.
/// An object that cannot be decoded is reported to the log and left out; the
/// state delivered before stays.
pub async fn watch<R: Resource>(
    client: Client,
    scope: Scope,
    deliver: impl FnMut(Event<R>) -> Result<(), Closed> + Send,
) {
    let mut path = format!("{}/{}?", R::API, R::PLURAL);
    for (name, value) in [
        ("labelSelector", &scope.labels),
        ("fieldSelector", &scope.fields),
    ] {
        if !value.is_empty() {
            path.push_str(name);
            path.push('=');
            escape(value, &mut path);
            path.push('&');
        }
    }
    let mut consumer = Consumer {
        deliver,
        kind: PhantomData,
    };
    let mut watcher = Watcher {
        client,
        scope,
        path,
        kind: R::KIND,
        known: Known::default(),
        trouble: Trouble::default(),
        sink: &mut consumer,
    };
    watcher.run().await;
}

/// The half that knows the kind.
trait Sink {
    /// Decodes an object, and delivers and remembers it unless `known` has this
    /// very version of it.
    fn apply(&mut self, object: &str, known: &mut Known) -> Result<(), ApplyError>;
    fn delete(&mut self, key: Key) -> Result<(), Closed>;
    fn synced(&mut self) -> Result<(), Closed>;
}

enum ApplyError {
    Decode(serde_json::Error),
    Closed,
}

struct Consumer<R, F> {
    deliver: F,
    kind: PhantomData<fn() -> R>,
}

impl<R: Resource, F: FnMut(Event<R>) -> Result<(), Closed>> Sink for Consumer<R, F> {
    fn apply(&mut self, object: &str, known: &mut Known) -> Result<(), ApplyError> {
        let object: R = serde_json::from_str(object).map_err(ApplyError::Decode)?;
        // A list that breaks off half way starts over and must not repeat this.
        if known.insert(&object.key(), Version::of(object.metadata())) {
            (self.deliver)(Event::Applied(object)).map_err(|Closed| ApplyError::Closed)?;
        }
        Ok(())
    }

    fn delete(&mut self, key: Key) -> Result<(), Closed> {
        (self.deliver)(Event::Deleted(key))
    }

    fn synced(&mut self) -> Result<(), Closed> {
        (self.deliver)(Event::Synced)
    }
}

/// Identity and version of a delivered object, as a hash: eight bytes instead
/// of two strings for every object of the cluster.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Version([u32; 2]);

impl Version {
    fn of(metadata: &Metadata) -> Version {
        let mut hasher = hash_map::DefaultHasher::new();
        metadata.uid.hash(&mut hasher);
        metadata.resource_version.hash(&mut hasher);
        let hash = hasher.finish();
        // Halved, so that it needs no room to be aligned.
        Version([hash as u32, (hash >> 32) as u32])
    }
}

/// The objects that were delivered and not deleted. One small allocation for
/// each: there may be a hundred thousand.
#[derive(Default)]
struct Known {
    /// By namespace, `/` and name: the version, and the list that named it last.
    objects: HashMap<Box<str>, (Version, u32)>,
    /// Number of the present list.
    list: u32,
}

impl Known {
    fn text(key: &Key) -> Box<str> {
        [&*key.namespace, "/", &*key.name].concat().into()
    }

    /// A list begins; what is inserted from now on is of it.
    fn begin_list(&mut self) {
        self.list = self.list.wrapping_add(1);
    }

    /// Returns whether this version of the object is new.
    fn insert(&mut self, key: &Key, version: Version) -> bool {
        let now = (version, self.list);
        let before = self.objects.insert(Self::text(key), now);
        before.is_none_or(|(before, _)| before != version)
    }

    /// The object is there in a version that cannot be read.
    fn keep(&mut self, key: &Key) {
        if let Some((_, list)) = self.objects.get_mut(&Self::text(key)) {
            *list = self.list;
        }
    }

    /// Returns whether the object was known.
    fn remove(&mut self, key: &Key) -> bool {
        self.objects.remove(&Self::text(key)).is_some()
    }

    /// The list is complete: removes and returns what it did not name, sorted.
    fn vanished(&mut self) -> Vec<Key> {
        let list = self.list;
        let gone = self.objects.extract_if(|_, (_, named)| *named != list);
        let mut gone: Vec<Key> = gone
            .filter_map(|(text, _)| {
                let (namespace, name) = text.split_once('/')?;
                Some(Key::new(namespace, name))
            })
            .collect();
        gone.sort();
        self.objects.shrink_to_fit();
        gone
    }
}

/// Why a list or watch ended.
enum End {
    /// The consumer is gone.
    Closed,
    /// The server ended the watch as it was asked to.
    Timeout,
    /// The version is no longer there.
    Gone,
    /// The API server refused or could not be understood.
    Refused(String),
    /// The API server could not be reached or broke off.
    Broken(String),
}

impl From<Closed> for End {
    fn from(Closed: Closed) -> End {
        End::Closed
    }
}

/// How the present trouble with the API server goes on.
#[derive(Default)]
struct Trouble {
    failures: u32,
    reported: Option<Instant>,
}

/// Trouble that lasts is reported again after this long.
const REPORT_AGAIN: Duration = Duration::from_secs(30);

struct Watcher<'a> {
    client: Client,
    scope: Scope,
    path: String,
    kind: &'static str,
    known: Known,
    trouble: Trouble,
    sink: &'a mut (dyn Sink + Send),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Page<'a> {
    #[serde(default)]
    metadata: PageMetadata,
    #[serde(borrow, default)]
    items: Option<Vec<&'a RawValue>>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PageMetadata {
    resource_version: String,
    #[serde(rename = "continue")]
    next: String,
}

#[derive(Deserialize)]
struct Frame<'a> {
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    object: &'a RawValue,
}

/// Any object, of which only the metadata is looked at.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Header {
    metadata: Metadata,
}

/// `metav1.Status`, as far as it decides something.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Status {
    code: u16,
    reason: String,
    message: String,
}

impl Status {
    fn is_gone(&self) -> bool {
        self.code == 410 || self.reason == "Expired" || self.reason == "Gone"
    }
}

impl Watcher<'_> {
    async fn run(&mut self) {
        // The version to go on from; none: list first.
        let mut version: Option<String> = None;
        loop {
            let end = match version.take() {
                None => match self.list().await {
                    Ok(listed) => {
                        version = Some(listed);
                        self.recovered();
                        continue;
                    }
                    Err(end) => end,
                },
                Some(mut from) => {
                    let end = self.watch(&mut from).await;
                    // After a refusal that is not about the version the
                    // picture may have holes: list again.
                    if matches!(end, End::Timeout | End::Broken(_)) {
                        version = Some(from);
                    }
                    end
                }
            };
            match end {
                End::Closed => return,
                End::Timeout => {}
                End::Gone => {
                    tracing::debug!(kind = self.kind, "version expired, listing again");
                    // A server that expires even what it has just listed must
                    // not be asked in a tight loop.
                    if self.trouble.failures > 0 {
                        self.pause().await;
                    }
                    self.trouble.failures += 1;
                }
                End::Refused(why) | End::Broken(why) => {
                    self.report(&why);
                    self.pause().await;
                    self.trouble.failures = self.trouble.failures.saturating_add(1);
                }
            }
        }
    }

    fn report(&mut self, why: &str) {
        let due = self
            .trouble
            .reported
            .is_none_or(|last| last.elapsed() >= REPORT_AGAIN);
        if due {
            self.trouble.reported = Some(Instant::now());
            tracing::warn!(
                "cannot watch {} on the API server: {why}; going on with the {} known, retrying",
                self.kind,
                self.known.objects.len(),
            );
        } else {
            tracing::debug!(kind = self.kind, "retry failed: {why}");
        }
    }

    fn recovered(&mut self) {
        if self.trouble.reported.is_some() {
            tracing::info!("watching {} again", self.kind);
        }
        self.trouble = Trouble::default();
    }

    /// Waits between half and the whole of a time that doubles with every failure.
    async fn pause(&mut self) {
        let (first, longest) = self.scope.backoff;
        let whole = first
            .saturating_mul(1_u32 << self.trouble.failures.min(16))
            .min(longest);
        tokio::time::sleep(whole.mul_f64(0.5 + 0.5 * random_fraction())).await;
    }

    /// Lists everything, delivers the difference, returns the list's version.
    async fn list(&mut self) -> Result<String, End> {
        let mut next = String::new();
        self.known.begin_list();
        loop {
            let mut path = format!("{}limit={}", self.path, self.scope.page);
            if !next.is_empty() {
                path.push_str("&continue=");
                escape(&next, &mut path);
            }
            let body = self.request(&path).await?;
            // A page that stops coming is the same as a connection that broke.
            let page = tokio::time::timeout(PATIENCE, body.collect())
                .await
                .map_err(|_| End::Broken("the answer to a list stopped half way".into()))?
                .map_err(|e| End::Broken(with_causes(&e)))?
                .to_bytes();
            let page: Page<'_> = serde_json::from_slice(&page)
                .map_err(|e| End::Refused(format!("the list cannot be read: {e}")))?;
            for item in page.items.unwrap_or_default() {
                match self.sink.apply(item.get(), &mut self.known) {
                    Ok(()) => {}
                    Err(ApplyError::Closed) => return Err(End::Closed),
                    Err(ApplyError::Decode(error)) => {
                        if let Some(key) = self.undecodable(item.get(), &error) {
                            self.known.keep(&key);
                        }
                    }
                }
            }
            next = page.metadata.next;
            if next.is_empty() {
                for key in self.known.vanished() {
                    self.sink.delete(key)?;
                }
                self.sink.synced()?;
                return Ok(page.metadata.resource_version);
            }
        }
    }

    /// Watches from a version on, moving it along, until the watch ends.
    async fn watch(&mut self, version: &mut String) -> End {
        let timeout = self.scope.watch_timeout.mul_f64(1.0 + random_fraction());
        let mut path = format!(
            "{}watch=true&allowWatchBookmarks=true&timeoutSeconds={}&resourceVersion=",
            self.path,
            timeout.as_secs().max(1),
        );
        escape(version, &mut path);
        let mut body = match self.request(&path).await {
            Ok(body) => body,
            Err(end) => return end,
        };
        let opened = Instant::now();
        self.recovered();
        let silence = timeout.max(Duration::from_secs(1)).mul_f64(1.1);
        let mut buffer: Vec<u8> = Vec::new();
        loop {
            match tokio::time::timeout(silence, body.frame()).await {
                Err(_) => {
                    tracing::debug!(kind = self.kind, "watch went quiet, opening it again");
                    return End::Timeout;
                }
                Ok(Some(Ok(frame))) => {
                    let Ok(data) = frame.into_data() else {
                        continue;
                    };
                    buffer.extend_from_slice(&data);
                    let mut start = 0;
                    while let Some(length) = buffer[start..].iter().position(|b| *b == b'\n') {
                        let line = &buffer[start..start + length];
                        start += length + 1;
                        if line.iter().all(u8::is_ascii_whitespace) {
                            continue;
                        }
                        if let Err(end) =
                            handle(self.kind, &mut *self.sink, &mut self.known, line, version)
                        {
                            return end;
                        }
                        self.trouble.failures = 0;
                    }
                    buffer.drain(..start);
                    if buffer.len() > LONGEST_EVENT {
                        let why = format!("an event is longer than {LONGEST_EVENT} bytes");
                        return End::Refused(why);
                    }
                    // One large object must not pin its size for ever.
                    if buffer.is_empty() && buffer.capacity() > 64 * 1024 {
                        buffer = Vec::new();
                    }
                }
                Ok(Some(Err(error))) => return End::Broken(with_causes(&error)),
                // A server that ends every watch at once is in trouble, even if
                // it does so politely.
                Ok(None) if opened.elapsed() < Duration::from_secs(1) => {
                    return End::Broken("the watch ended at once".into());
                }
                Ok(None) => return End::Timeout,
            }
        }
    }

    fn undecodable(&self, object: &str, error: &serde_json::Error) -> Option<Key> {
        undecodable(self.kind, object, error)
    }

    /// Sends a GET and returns the body of a successful answer.
    async fn request(&mut self, path: &str) -> Result<Body, End> {
        let request = http::Request::get(path)
            .header(http::header::ACCEPT, "application/json")
            .body(Body::empty())
            .map_err(|e| End::Refused(format!("cannot form the request {path}: {e}")))?;
        let answer = tokio::time::timeout(PATIENCE, self.client.send(request))
            .await
            .map_err(|_| End::Broken(format!("no answer within {} s", PATIENCE.as_secs())))?
            .map_err(|e| End::Broken(with_causes(&e)))?;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer.into_body());
        }
        let body = tokio::time::timeout(PATIENCE, answer.into_body().collect()).await;
        let text = match body {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(_)) | Err(_) => Default::default(),
        };
        let report: Status = serde_json::from_slice(&text).unwrap_or_default();
        if status == http::StatusCode::GONE || report.is_gone() {
            return Err(End::Gone);
        }
        let why = format!("{status}: {}", report.message);
        Err(match status.as_u16() {
            403 => End::Refused(format!(
                "{why} (the ClusterRole must allow get, list and watch of {})",
                self.kind
            )),
            // Overload and restarts: the version is as good as before.
            429 | 500..=599 => End::Broken(why),
            _ => End::Refused(why),
        })
    }
}

/// No object is this long: the API server's store takes 1.5 MiB (etcd's
/// `--max-request-bytes`), and JSON makes a few times that of it.
const LONGEST_EVENT: usize = 32 * 1024 * 1024;

/// How long an answer may take to begin, or a page of a list to arrive.
const PATIENCE: Duration = Duration::from_secs(30);

/// Takes one line of a watch.
fn handle(
    kind: &'static str,
    sink: &mut dyn Sink,
    known: &mut Known,
    line: &[u8],
    version: &mut String,
) -> Result<(), End> {
    let frame: Frame<'_> = serde_json::from_slice(line)
        .map_err(|e| End::Refused(format!("an event cannot be read: {e}")))?;
    let object = frame.object.get();
    match &*frame.kind {
        "ADDED" | "MODIFIED" => match sink.apply(object, known) {
            Ok(()) => {}
            Err(ApplyError::Closed) => return Err(End::Closed),
            Err(ApplyError::Decode(error)) => {
                undecodable(kind, object, &error);
            }
        },
        "DELETED" => {
            let header: Header = serde_json::from_str(object)
                .map_err(|e| End::Refused(format!("an event cannot be read: {e}")))?;
            let key = header.metadata.key();
            if known.remove(&key) {
                sink.delete(key)?;
            }
        }
        "BOOKMARK" => {}
        "ERROR" => {
            let status: Status = serde_json::from_str(object).unwrap_or_default();
            if status.is_gone() {
                return Err(End::Gone);
            }
            let why = format!("{} {}", status.code, status.message);
            return Err(match status.code {
                429 | 500..=599 => End::Broken(why),
                _ => End::Refused(why),
            });
        }
        other => tracing::debug!(kind, "unknown event type {other}"),
    }
    // All but ERROR carry the version the watch has reached.
    if let Ok(header) = serde_json::from_str::<Header>(object)
        && !header.metadata.resource_version.is_empty()
    {
        *version = header.metadata.resource_version.into();
    }
    Ok(())
}

fn undecodable(kind: &str, object: &str, error: &serde_json::Error) -> Option<Key> {
    let key = serde_json::from_str::<Header>(object)
        .ok()
        .map(|header| header.metadata.key());
    let name = key.as_ref().map(Key::to_string).unwrap_or_default();
    tracing::warn!("{kind} {name} left out: it cannot be read: {error}");
    key
}

/// What to tell people about an error of the HTTP client: the outermost says
/// little, the causes are what happened.
fn with_causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = String::new();
    let mut next = Some(error);
    while let Some(cause) = next {
        let broke = cause.downcast_ref::<std::io::Error>().is_some_and(|io| {
            matches!(
                io.kind(),
                ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe
            )
        });
        if broke {
            return "the connection broke off".into();
        }
        let own = cause.to_string();
        // The client's own wrapping; and some errors repeat their cause.
        let own = own.strip_prefix("ServiceError: ").unwrap_or(&own);
        if !text.contains(own) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(own);
        }
        next = cause.source();
    }
    text
}

/// Percent-encodes a query value (RFC 3986: all but the unreserved characters).
fn escape(value: &str, into: &mut String) {
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            into.push(char::from(byte));
        } else {
            into.push_str(&format!("%{byte:02X}"));
        }
    }
}

/// A number from 0 to 1 that differs from process to process and call to call.
/// Spreads load; nothing depends on its quality.
fn random_fraction() -> f64 {
    f64::from(RandomState::new().build_hasher().finish() as u32) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Outer {
        text: &'static str,
        source: std::io::Error,
    }

    #[test]
    fn errors_say_what_happened_once() {
        let refused = Outer {
            text: "ServiceError: client error (Connect)",
            source: std::io::Error::other("tcp connect error"),
        };
        assert_eq!(
            with_causes(&refused),
            "client error (Connect): tcp connect error"
        );
        let repeated = Outer {
            text: "x: y",
            source: std::io::Error::other("y"),
        };
        assert_eq!(with_causes(&repeated), "x: y");
        let closed = Outer {
            text: "error reading a body",
            source: std::io::Error::new(ErrorKind::UnexpectedEof, "close_notify"),
        };
        assert_eq!(with_causes(&closed), "the connection broke off");
    }
}
