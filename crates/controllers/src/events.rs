//! Events: what a person sees at the end of `kubectl describe`.

use crate::mirror::MANAGER;
use crate::object;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, Resource};
use serde_json::json;
use std::collections::HashMap;
use tokio::sync::mpsc;

/// The same event of the same object within this time (seconds) is counted
/// once: a controller that tries again in quick succession is no news.
const QUIET: i64 = 5;
/// Events remembered for counting; beyond that the memory starts anew.
const REMEMBERED: usize = 4096;

/// What an event says.
#[derive(Clone, Debug)]
struct Record {
    about: ObjectReference,
    warning: bool,
    reason: &'static str,
    message: String,
    component: &'static str,
}

/// Takes events and writes them in the background: no controller waits for one,
/// and none fails because of one.
#[derive(Clone, Debug)]
pub(crate) struct Recorder {
    records: mpsc::UnboundedSender<Record>,
}

/// Refers to an object.
pub(crate) fn reference<K: Resource<DynamicType = ()>>(object: &K) -> ObjectReference {
    let meta = object.meta();
    ObjectReference {
        api_version: Some(K::api_version(&()).into_owned()),
        kind: Some(K::kind(&()).into_owned()),
        name: meta.name.clone(),
        namespace: meta.namespace.clone(),
        uid: meta.uid.clone(),
        resource_version: meta.resource_version.clone(),
        field_path: None,
    }
}

impl Recorder {
    /// A recorder and the task that writes what it is given.
    pub(crate) fn new(client: Client) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (records, inbox) = mpsc::unbounded_channel();
        (Self { records }, write(client, inbox))
    }

    /// Records something ordinary.
    pub(crate) fn normal<K: Resource<DynamicType = ()>>(
        &self,
        component: &'static str,
        about: &K,
        reason: &'static str,
        message: String,
    ) {
        self.record(component, about, false, reason, message);
    }

    /// Records something a person should look at.
    pub(crate) fn warning<K: Resource<DynamicType = ()>>(
        &self,
        component: &'static str,
        about: &K,
        reason: &'static str,
        message: String,
    ) {
        self.record(component, about, true, reason, message);
    }

    fn record<K: Resource<DynamicType = ()>>(
        &self,
        component: &'static str,
        about: &K,
        warning: bool,
        reason: &'static str,
        message: String,
    ) {
        let record = Record {
            about: reference(about),
            warning,
            reason,
            message,
            component,
        };
        // The writer ends only with the whole process.
        let _ = self.records.send(record);
    }
}

#[derive(PartialEq, Eq, Hash)]
struct Same {
    uid: String,
    reason: &'static str,
    message: String,
}

struct Written {
    name: String,
    count: i32,
    last: Timestamp,
}

async fn write(client: Client, mut inbox: mpsc::UnboundedReceiver<Record>) {
    let mut written: HashMap<Same, Written> = HashMap::new();
    let mut serial: u64 = 0;
    while let Some(record) = inbox.recv().await {
        let now = Timestamp::now();
        let namespace = match record.about.namespace.as_deref() {
            None | Some("") => "default".to_owned(),
            Some(namespace) => namespace.to_owned(),
        };
        let api: Api<Event> = Api::namespaced(client.clone(), &namespace);
        let same = Same {
            uid: record.about.uid.clone().unwrap_or_default(),
            reason: record.reason,
            message: record.message.clone(),
        };
        if let Some(known) = written.get_mut(&same) {
            if now.as_second() - known.last.as_second() < QUIET {
                continue;
            }
            known.count += 1;
            known.last = now;
            let change = json!({"count": known.count, "lastTimestamp": object::time(now)});
            let patched = api
                .patch(&known.name, &PatchParams::default(), &Patch::Merge(change))
                .await;
            match patched {
                Ok(_) => continue,
                // It has run out of its time: write it anew.
                Err(error) => tracing::debug!(%error, "event cannot be counted up"),
            }
        }
        serial += 1;
        let name = format!(
            "{}.{:x}{:04x}",
            record.about.name.as_deref().unwrap_or_default(),
            now.as_nanosecond(),
            serial & 0xffff,
        );
        let event = event(record, &namespace, name.clone(), now);
        match api.create(&PostParams::default(), &event).await {
            Ok(_) => {
                if written.len() >= REMEMBERED {
                    written.clear();
                }
                written.insert(
                    same,
                    Written {
                        name,
                        count: 1,
                        last: now,
                    },
                );
            }
            // The namespace may be going away; an event is never worth a retry.
            Err(error) => tracing::debug!(%error, "event cannot be written"),
        }
    }
}

fn event(record: Record, namespace: &str, name: String, now: Timestamp) -> Event {
    Event {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: Some(namespace.to_owned()),
            ..Default::default()
        },
        involved_object: record.about,
        reason: Some(record.reason.into()),
        message: Some(record.message),
        type_: Some(if record.warning { "Warning" } else { "Normal" }.into()),
        source: Some(EventSource {
            component: Some(record.component.into()),
            host: None,
        }),
        reporting_component: Some(record.component.into()),
        reporting_instance: Some(MANAGER.into()),
        first_timestamp: Some(object::time(now)),
        last_timestamp: Some(object::time(now)),
        count: Some(1),
        ..Default::default()
    }
}
