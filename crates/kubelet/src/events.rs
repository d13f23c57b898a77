//! Events (core/v1) about pods and the node: sent in order from a queue, and
//! counted instead of repeated.

use std::collections::HashMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as k8s;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Api, Patch, PatchParams, PostParams};
use tokio::sync::mpsc;

/// How many different events are remembered to be counted.
const REMEMBERED: usize = 512;
/// Events that wait while the API server is away; more are dropped.
const QUEUE: usize = 256;

/// Takes events; never waits.
#[derive(Debug, Clone)]
pub(crate) struct Recorder {
    queue: mpsc::Sender<Note>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Note {
    about: About,
    warning: bool,
    reason: &'static str,
    message: String,
}

/// What an event is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct About {
    pub(crate) kind: &'static str,
    pub(crate) namespace: Option<String>,
    pub(crate) name: String,
    pub(crate) uid: String,
    /// `spec.containers{name}`.
    pub(crate) field: Option<String>,
}

impl Recorder {
    /// A recorder and the work that sends its events.
    pub(crate) fn new(client: kube::Client, node: String) -> (Self, impl Future<Output = ()>) {
        let (queue, notes) = mpsc::channel(QUEUE);
        (Self { queue }, send(client, node, notes))
    }

    pub(crate) fn normal(&self, about: About, reason: &'static str, message: String) {
        self.note(about, false, reason, message);
    }

    pub(crate) fn warning(&self, about: About, reason: &'static str, message: String) {
        self.note(about, true, reason, message);
    }

    fn note(&self, about: About, warning: bool, reason: &'static str, message: String) {
        let mut message = message;
        if message.len() > 1024 {
            let cut = (0..=1021)
                .rev()
                .find(|at| message.is_char_boundary(*at))
                .unwrap_or(0);
            message.truncate(cut);
            message.push('…');
        }
        let note = Note {
            about,
            warning,
            reason,
            message,
        };
        if self.queue.try_send(note).is_err() {
            tracing::debug!("too many events wait: one is dropped");
        }
    }
}

async fn send(client: kube::Client, node: String, mut notes: mpsc::Receiver<Note>) {
    let mut sent: HashMap<Note, (String, i32)> = HashMap::new();
    while let Some(note) = notes.recv().await {
        let namespace = note
            .about
            .namespace
            .clone()
            .unwrap_or_else(|| "default".into());
        let api: Api<k8s::Event> = Api::namespaced(client.clone(), &namespace);
        let now = Timestamp::now();
        if let Some((name, count)) = sent.get_mut(&note) {
            *count += 1;
            let patch = serde_json::json!({"count": *count, "lastTimestamp": Time(now)});
            match api
                .patch(name, &PatchParams::default(), &Patch::Merge(patch))
                .await
            {
                Ok(_) => continue,
                // Events are forgotten after a while: begin a new one.
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(error) => {
                    tracing::debug!("an event was not sent: {error}");
                    continue;
                }
            }
        }
        let event = event(&note, &namespace, &node, now);
        let name = event.metadata.name.clone().unwrap_or_default();
        match api.create(&PostParams::default(), &event).await {
            Ok(_) => {
                if sent.len() >= REMEMBERED {
                    sent.clear();
                }
                sent.insert(note, (name, 1));
            }
            Err(error) => tracing::debug!("an event was not sent: {error}"),
        }
    }
}

fn event(note: &Note, namespace: &str, node: &str, now: Timestamp) -> k8s::Event {
    k8s::Event {
        metadata: ObjectMeta {
            // Names of objects are at most 253 long; a pod's leaves room.
            name: Some(format!("{}.{:x}", note.about.name, now.as_nanosecond())),
            namespace: Some(namespace.into()),
            ..ObjectMeta::default()
        },
        involved_object: k8s::ObjectReference {
            api_version: Some("v1".into()),
            kind: Some(note.about.kind.into()),
            namespace: note.about.namespace.clone(),
            name: Some(note.about.name.clone()),
            uid: Some(note.about.uid.clone()),
            field_path: note.about.field.clone(),
            ..k8s::ObjectReference::default()
        },
        reason: Some(note.reason.into()),
        message: Some(note.message.clone()),
        type_: Some(if note.warning { "Warning" } else { "Normal" }.into()),
        source: Some(k8s::EventSource {
            component: Some("kubelet".into()),
            host: Some(node.into()),
        }),
        reporting_component: Some("kubelet".into()),
        reporting_instance: Some(node.into()),
        first_timestamp: Some(Time(now)),
        last_timestamp: Some(Time(now)),
        count: Some(1),
        ..k8s::Event::default()
    }
}
