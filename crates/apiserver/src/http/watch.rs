//! Watches.
//!
//! A watcher has a place in the collection's history and reads on from there
//! when the collection changes. Nothing is queued per watcher: who is too slow
//! finds the history gone and is told so (410), as after a restart.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use http::{HeaderValue, header};
use serde_json::json;
use tokio::sync::{mpsc, watch as signal};
use tokio::time::Instant;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

use super::Call;
use super::negotiation::Form;
use super::read::{Selection, revision_parameter};
use super::render::{Renderer, include_object};
use crate::registry::Resource;
use crate::status::ApiError;
use crate::store::{Change, Cursor, Event, Snapshot, Store, StoreError, Stored};
use crate::table::IncludeObject;

/// How long a watch lasts when the client does not say.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30 * 60);
/// How often a quiet watch tells its revision to clients that want bookmarks.
const BOOKMARK_INTERVAL: Duration = Duration::from_secs(60);

/// A watch in progress.
struct Watcher {
    store: Arc<Store>,
    resource: Arc<Resource>,
    namespace: Option<String>,
    selection: Selection,
    form: Form,
    include: IncludeObject,
    /// Column definitions stand in the first table only.
    with_columns: bool,
    bookmarks: bool,
    output: mpsc::Sender<Bytes>,
}

/// Starts a watch.
pub(super) fn serve(call: &Call) -> Result<Response, ApiError> {
    let selection = Selection::of(call)?;
    let revision = revision_parameter(call)?;
    let timeout = call
        .query
        .number::<u64>("timeoutSeconds")?
        .filter(|s| *s > 0)
        .map_or(DEFAULT_TIMEOUT, Duration::from_secs);
    let bookmarks = call.query.flag("allowWatchBookmarks");
    let initial_events = call.query.flag("sendInitialEvents");
    if initial_events && call.query.get("resourceVersionMatch") != Some("NotOlderThan") {
        return Err(ApiError::bad_request(
            "resourceVersionMatch: Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
        ));
    }
    let (output, lines) = mpsc::channel(8);
    let watcher = Watcher {
        store: Arc::clone(&call.app.store),
        resource: Arc::clone(&call.target.resource),
        namespace: call.target.namespace.clone(),
        selection,
        form: call.accepted.form,
        include: include_object(call.query.get("includeObject"))?,
        with_columns: true,
        bookmarks,
        output,
    };
    let store = &call.app.store;
    let collection = &call.resource().collection;
    let start = match revision {
        Some(revision) if revision != 0 && !initial_events => {
            store.watch_from(collection, revision).map(|c| (None, c))
        }
        _ => {
            let (snapshot, cursor) = store.watch_now(collection, watcher.namespace.as_deref());
            Ok((Some(snapshot), cursor))
        }
    };
    let stopping = call.app.stopping.clone();
    tokio::spawn(async move {
        let until = Instant::now() + timeout;
        match start {
            Ok((snapshot, cursor)) => {
                watcher
                    .run(snapshot, initial_events, cursor, until, stopping)
                    .await;
            }
            Err(error) => {
                let _gone = watcher.error(&error).await;
            }
        }
    });
    let stream = ReceiverStream::new(lines).map(Ok::<_, Infallible>);
    let mut response = Response::new(Body::from_stream(stream));
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    Ok(response)
}

/// The client has gone away.
struct Gone;

impl Watcher {
    async fn run(
        mut self,
        snapshot: Option<Snapshot>,
        initial_events: bool,
        mut cursor: Cursor,
        until: Instant,
        mut stopping: signal::Receiver<bool>,
    ) {
        if let Some(snapshot) = snapshot
            && self.initial(&snapshot, initial_events).await.is_err()
        {
            return;
        }
        let mut bookmark_at = Instant::now() + BOOKMARK_INTERVAL;
        loop {
            let changed = tokio::select! {
                open = cursor.changed() => {
                    if !open {
                        return;
                    }
                    true
                }
                () = self.output.closed() => return,
                () = super::stopped(&mut stopping) => return,
                () = tokio::time::sleep_until(until.min(bookmark_at)) => false,
            };
            if changed {
                match self.store.events(&mut cursor) {
                    Ok(events) => {
                        if self.send(&events).await.is_err() {
                            return;
                        }
                    }
                    Err(error) => {
                        let _gone = self.error(&error).await;
                        return;
                    }
                }
                continue;
            }
            let ending = Instant::now() >= until;
            // The place may have moved past changes of other collections.
            if self.bookmarks {
                match self.store.events(&mut cursor) {
                    Ok(events) => {
                        if self.send(&events).await.is_err()
                            || self.bookmark(cursor.revision(), false).await.is_err()
                        {
                            return;
                        }
                    }
                    Err(error) => {
                        let _gone = self.error(&error).await;
                        return;
                    }
                }
            }
            if ending {
                return;
            }
            bookmark_at = Instant::now() + BOOKMARK_INTERVAL;
        }
    }

    /// The objects that exist at the start, as if they were just added.
    async fn initial(&mut self, snapshot: &Snapshot, announced: bool) -> Result<(), Gone> {
        let mut chunk = BytesMut::new();
        for object in &snapshot.objects {
            if self.selection.matches(&object.value) {
                let line = self.line(Change::Added, object);
                chunk.extend_from_slice(&line);
            }
            if chunk.len() > 256 * 1024 {
                self.put(chunk.split().freeze()).await?;
            }
        }
        if !chunk.is_empty() {
            self.put(chunk.freeze()).await?;
        }
        if announced {
            self.bookmark(snapshot.revision, true).await?;
        }
        Ok(())
    }

    async fn put(&self, bytes: Bytes) -> Result<(), Gone> {
        self.output.send(bytes).await.map_err(|_| Gone)
    }

    /// Sends what the watcher gets to see of the events.
    async fn send(&mut self, events: &[Arc<Event>]) -> Result<(), Gone> {
        let mut lines = Vec::new();
        for event in events {
            if self
                .namespace
                .as_ref()
                .is_some_and(|n| *n != event.object.key.namespace)
            {
                continue;
            }
            let is = event.change != Change::Deleted && self.selection.matches(&event.object.value);
            let was = event
                .previous
                .as_ref()
                .is_some_and(|p| self.selection.matches(&p.value));
            let change = match (was, is) {
                (false, false) => continue,
                (false, true) => Change::Added,
                (true, true) => Change::Modified,
                (true, false) => Change::Deleted,
            };
            let own_form = self.form == Form::Objects && self.resource.is_stored_form();
            lines.push(if own_form && change == event.change {
                event.line()
            } else {
                self.line(change, &event.object)
            });
        }
        match lines.len() {
            0 => Ok(()),
            1 => self.put(lines.swap_remove(0)).await,
            _ => self.put(lines.concat().into()).await,
        }
    }

    fn line(&mut self, change: Change, object: &Stored) -> Bytes {
        let renderer = Renderer {
            resource: &self.resource,
            form: self.form,
            include: self.include,
        };
        let bytes = if matches!(self.form, Form::Table { .. }) {
            let mut table = renderer.value(&renderer.served(&object.value));
            table["metadata"] = json!({"resourceVersion": object.revision.to_string()});
            if !std::mem::take(&mut self.with_columns) {
                table["columnDefinitions"] = json!([]);
            }
            table.to_string().into()
        } else {
            renderer.stored(object)
        };
        crate::store::line(change, &bytes)
    }

    async fn bookmark(&self, revision: u64, initial_end: bool) -> Result<(), Gone> {
        let mut metadata = json!({
            "resourceVersion": revision.to_string(),
            "creationTimestamp": null,
        });
        if initial_end {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let (kind, api_version) = match self.form {
            Form::Objects => (
                self.resource.gvk.kind.as_str(),
                self.resource.gvk.api_version(),
            ),
            Form::Metadata { version } => {
                ("PartialObjectMetadata", format!("meta.k8s.io/{version}"))
            }
            Form::Table { version } => ("Table", format!("meta.k8s.io/{version}")),
        };
        let mut object = json!({"kind": kind, "apiVersion": api_version, "metadata": metadata});
        if matches!(self.form, Form::Table { .. }) {
            object["columnDefinitions"] = json!([]);
            object["rows"] = json!([]);
        }
        let line = format!("{}\n", json!({"type": "BOOKMARK", "object": object}));
        self.put(line.into()).await
    }

    async fn error(&self, error: &StoreError) -> Result<(), Gone> {
        let status = ApiError::store(error, &self.resource, "", "").to_status();
        let line = format!("{}\n", json!({"type": "ERROR", "object": status}));
        self.put(line.into()).await
    }
}
