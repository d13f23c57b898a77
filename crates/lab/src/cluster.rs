//! The cluster seen through its API: what is there, and how it changes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use futures::stream::{self, BoxStream, StreamExt};
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind, ListParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::{WatchStreamExt, utils::Backoff, watcher};
use serde_json::Value;

/// The kinds that are looked at: group, version, kind, plural.
const KINDS: [(&str, &str, &str, &str); 8] = [
    ("", "v1", "Node", "nodes"),
    ("", "v1", "Pod", "pods"),
    ("", "v1", "Service", "services"),
    ("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices"),
    ("apps", "v1", "Deployment", "deployments"),
    ("apps", "v1", "ReplicaSet", "replicasets"),
    ("apps", "v1", "StatefulSet", "statefulsets"),
    ("apps", "v1", "DaemonSet", "daemonsets"),
];

/// Why the API could not be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("cannot use {path}: {why}")]
    Kubeconfig { path: String, why: String },
    #[error("cannot {action}: {why}")]
    Api { action: String, why: String },
}

/// The text of an API error: the server's own message where it sent one.
pub(crate) fn message(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if !status.message.is_empty() => status.message.clone(),
        other => {
            let mut text = other.to_string();
            let mut cause = std::error::Error::source(other);
            while let Some(next) = cause {
                let next_text = next.to_string();
                if !text.contains(&next_text) {
                    text = format!("{text}: {next_text}");
                }
                cause = next.source();
            }
            text
        }
    }
}

/// A client by a kubeconfig.
pub(crate) async fn connect(kubeconfig: &Path) -> Result<kube::Client, Error> {
    let wrong = |why: String| Error::Kubeconfig {
        path: kubeconfig.display().to_string(),
        why,
    };
    let file = Kubeconfig::read_from(kubeconfig).map_err(|error| wrong(error.to_string()))?;
    let config = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
        .await
        .map_err(|error| wrong(error.to_string()))?;
    kube::Client::try_from(config).map_err(|error| wrong(message(&error)))
}

/// How kube names a resource.
pub(crate) fn api_resource(group: &str, version: &str, kind: &str, plural: &str) -> ApiResource {
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), plural)
}

/// An object's kind, namespace and name.
type Key = (&'static str, String, String);

/// Objects of the kinds that count, by kind, namespace and name.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Cluster {
    objects: BTreeMap<Key, Value>,
}

impl Cluster {
    /// All objects of a kind, by namespace and name.
    pub(crate) fn all(&self, kind: &str) -> impl Iterator<Item = &Value> {
        self.objects
            .iter()
            .filter(move |((k, ..), _)| *k == kind)
            .map(|(_, value)| value)
    }

    /// One object.
    pub(crate) fn get(&self, kind: &str, namespace: &str, name: &str) -> Option<&Value> {
        let kind = KINDS.iter().find(|known| known.2 == kind)?.2;
        self.objects
            .get(&(kind, namespace.to_owned(), name.to_owned()))
    }

    fn put(&mut self, kind: &'static str, value: Value) {
        self.objects.insert(key(kind, &value), value);
    }

    #[cfg(test)]
    pub(crate) fn of(values: impl IntoIterator<Item = Value>) -> Self {
        let mut cluster = Self::default();
        for value in values {
            let kind = text(&value, "/kind").to_owned();
            let kind = KINDS.iter().find(|known| known.2 == kind).unwrap().2;
            cluster.put(kind, value);
        }
        cluster
    }

    /// Lists everything once.
    pub(crate) async fn list(client: &kube::Client) -> Result<Self, Error> {
        let lists = KINDS.map(|(group, version, kind, plural)| {
            let resource = api_resource(group, version, kind, plural);
            let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
            async move {
                let list = api.list(&ListParams::default()).await;
                list.map(|list| (kind, list.items))
                    .map_err(|error| Error::Api {
                        action: format!("list {plural}"),
                        why: message(&error),
                    })
            }
        });
        let mut cluster = Self::default();
        for list in futures::future::join_all(lists).await {
            let (kind, items) = list?;
            for item in items {
                cluster.put(kind, value(kind, item));
            }
        }
        Ok(cluster)
    }
}

fn key(kind: &'static str, value: &Value) -> Key {
    (
        kind,
        text(value, "/metadata/namespace").to_owned(),
        text(value, "/metadata/name").to_owned(),
    )
}

/// A text field by its JSON pointer; empty when it is missing.
pub(crate) fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or("")
}

/// A whole number by its JSON pointer; zero when it is missing.
pub(crate) fn number(value: &Value, pointer: &str) -> i64 {
    value.pointer(pointer).and_then(Value::as_i64).unwrap_or(0)
}

/// The elements of a list by its JSON pointer.
pub(crate) fn elements<'a>(value: &'a Value, pointer: &str) -> impl Iterator<Item = &'a Value> {
    value
        .pointer(pointer)
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
}

/// The texts of a list by its JSON pointer.
pub(crate) fn texts<'a>(value: &'a Value, pointer: &str) -> impl Iterator<Item = &'a str> {
    elements(value, pointer).filter_map(Value::as_str)
}

/// The status and message of a condition.
pub(crate) fn condition<'a>(value: &'a Value, kind: &str) -> Option<(&'a str, &'a str)> {
    elements(value, "/status/conditions")
        .find(|condition| text(condition, "/type") == kind)
        .map(|condition| (text(condition, "/status"), text(condition, "/message")))
}

fn value(kind: &str, object: DynamicObject) -> Value {
    let mut value = serde_json::to_value(object).unwrap_or_default();
    // Items of a list come without it.
    if let Some(map) = value.as_object_mut() {
        map.insert("kind".into(), kind.into());
    }
    value
}

/// Between attempts at a watch that failed: short, as the API server is on this
/// machine and starts again within a second.
struct Again;

impl Iterator for Again {
    type Item = Duration;
    fn next(&mut self) -> Option<Duration> {
        Some(Duration::from_millis(100))
    }
}

impl Backoff for Again {
    fn reset(&mut self) {}
}

enum Change {
    Begin(&'static str),
    Put(&'static str, Value),
    Complete(&'static str),
    Gone(Key),
}

/// The cluster as it is and as it changes.
pub(crate) struct Follow {
    changes: BoxStream<'static, Result<Change, watcher::Error>>,
    incomplete: BTreeSet<&'static str>,
    /// Objects of a list that is being read again; what is missing in it is gone.
    reading: BTreeMap<&'static str, BTreeSet<Key>>,
    cluster: Cluster,
}

impl Follow {
    /// Starts to follow.
    pub(crate) fn new(client: &kube::Client) -> Self {
        let streams = KINDS.map(|(group, version, kind, plural)| {
            let resource = api_resource(group, version, kind, plural);
            let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
            watcher(api, watcher::Config::default())
                .backoff(Again)
                .map(move |event| {
                    event.map(|event| match event {
                        watcher::Event::Init => Change::Begin(kind),
                        watcher::Event::InitApply(object) | watcher::Event::Apply(object) => {
                            Change::Put(kind, value(kind, object))
                        }
                        watcher::Event::InitDone => Change::Complete(kind),
                        watcher::Event::Delete(object) => {
                            Change::Gone(key(kind, &value(kind, object)))
                        }
                    })
                })
                .boxed()
        });
        Self {
            changes: stream::select_all(streams).boxed(),
            incomplete: KINDS.iter().map(|(.., kind, _)| *kind).collect(),
            reading: BTreeMap::new(),
            cluster: Cluster::default(),
        }
    }

    /// Waits until something has changed and everything was seen once.
    pub(crate) async fn next(&mut self) -> Result<&Cluster, Error> {
        loop {
            match self.changes.next().await {
                Some(Ok(change)) => self.apply(change),
                // The watcher tries again by itself.
                Some(Err(error)) => tracing::debug!("watch: {error}"),
                None => {
                    return Err(Error::Api {
                        action: "watch the cluster".into(),
                        why: "the watches ended".into(),
                    });
                }
            }
            if self.incomplete.is_empty() {
                return Ok(&self.cluster);
            }
        }
    }

    /// What was seen so far.
    pub(crate) fn seen(&self) -> &Cluster {
        &self.cluster
    }

    fn apply(&mut self, change: Change) {
        match change {
            Change::Begin(kind) => {
                self.reading.insert(kind, BTreeSet::new());
            }
            Change::Put(kind, value) => {
                if let Some(reading) = self.reading.get_mut(kind) {
                    reading.insert(key(kind, &value));
                }
                self.cluster.put(kind, value);
            }
            Change::Complete(kind) => {
                self.incomplete.remove(kind);
                if let Some(read) = self.reading.remove(kind) {
                    self.cluster
                        .objects
                        .retain(|key, _| key.0 != kind || read.contains(key));
                }
            }
            Change::Gone(key) => {
                self.cluster.objects.remove(&key);
            }
        }
    }
}
