//! The mirror of one kind: its table, the watch that feeds it, and the writes
//! that go through it.

use crate::object::{self, Key};
use crate::table::{Begun, Change, Table};
use futures::StreamExt;
use k8s_openapi::{ClusterResourceScope, NamespaceResourceScope};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::params::PropagationPolicy;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::fmt::{self, Debug};
use std::pin::pin;
use std::sync::{Arc, PoisonError, RwLock};
use tokio::sync::watch;

/// Who the controllers' writes say they are.
pub(crate) const MANAGER: &str = "podwire-controllers";

/// What a mirrored kind must be able to do.
pub(crate) trait Kind:
    Resource<DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned + Send + Sync + 'static
{
}

impl<K> Kind for K where
    K: Resource<DynamicType = ()>
        + Clone
        + Debug
        + Serialize
        + DeserializeOwned
        + Send
        + Sync
        + 'static
{
}

/// A write that did not succeed.
#[derive(Debug, thiserror::Error)]
#[error("{doing} {kind} {key}: {source}")]
pub(crate) struct Failure {
    doing: &'static str,
    kind: String,
    key: String,
    #[source]
    source: Box<kube::Error>,
}

impl Failure {
    pub(crate) fn new(
        doing: &'static str,
        kind: impl Into<String>,
        key: impl fmt::Display,
        source: kube::Error,
    ) -> Self {
        Self {
            doing,
            kind: kind.into(),
            key: key.to_string(),
            source: Box::new(source),
        }
    }

    fn has_reason(&self, reason: &str) -> bool {
        matches!(self.source.as_ref(), kube::Error::Api(status) if status.reason == reason)
    }

    pub(crate) fn is_not_found(&self) -> bool {
        self.has_reason("NotFound")
    }

    pub(crate) fn is_conflict(&self) -> bool {
        self.has_reason("Conflict")
    }

    pub(crate) fn already_exists(&self) -> bool {
        self.has_reason("AlreadyExists")
    }

    /// The API server's own words, or the transport's error.
    pub(crate) fn message(&self) -> String {
        match self.source.as_ref() {
            kube::Error::Api(status) => status.message.clone(),
            other => other.to_string(),
        }
    }
}

/// The API of a kind in a namespace.
type ApiOf<K> = Box<dyn Fn(&str) -> Api<K> + Send + Sync>;
type Listener<K> = Box<dyn Fn(&Change<K>) + Send + Sync>;

/// The objects of one kind as far as known, and the way to change them. Every
/// answer to a write goes into the table at once.
pub(crate) struct Mirror<K> {
    table: RwLock<Table<K>>,
    listeners: RwLock<Vec<Listener<K>>>,
    complete: watch::Sender<bool>,
    all: Api<K>,
    api: ApiOf<K>,
}

/// A write to the API that is under way. Dropped without an answer when it
/// failed.
pub(crate) struct Write<'a, K: Kind> {
    begun: Begun,
    mirror: &'a Mirror<K>,
}

impl<K: Kind> Write<'_, K> {
    /// Records the answer: the object as it is now.
    pub(crate) fn answered(self, object: K) {
        let change = self.mirror.write(|table| table.wrote(self.begun, object));
        self.mirror.tell(change);
    }
}

impl<K: Kind> Drop for Write<'_, K> {
    fn drop(&mut self) {
        self.mirror.write(Table::end);
    }
}

impl<K> Debug for Mirror<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mirror").finish_non_exhaustive()
    }
}

impl<K: Kind> Mirror<K> {
    /// A mirror of a kind that lives in namespaces.
    pub(crate) fn namespaced(client: &Client) -> Arc<Self>
    where
        K: Resource<Scope = NamespaceResourceScope>,
    {
        let client = client.clone();
        Self::new(Api::all(client.clone()), move |namespace| {
            Api::namespaced(client.clone(), namespace)
        })
    }

    /// A mirror of a kind that lives in no namespace.
    pub(crate) fn cluster(client: &Client) -> Arc<Self>
    where
        K: Resource<Scope = ClusterResourceScope>,
    {
        let api = Api::all(client.clone());
        Self::new(api.clone(), move |_| api.clone())
    }

    fn new(all: Api<K>, api: impl Fn(&str) -> Api<K> + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self {
            table: RwLock::default(),
            listeners: RwLock::default(),
            complete: watch::Sender::new(false),
            all,
            api: Box::new(api),
        })
    }

    fn read<T>(&self, ask: impl FnOnce(&Table<K>) -> T) -> T {
        ask(&self.table.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write<T>(&self, change: impl FnOnce(&mut Table<K>) -> T) -> T {
        change(&mut self.table.write().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn get(&self, key: &Key) -> Option<Arc<K>> {
        self.read(|table| table.get(key).cloned())
    }

    pub(crate) fn all(&self) -> Vec<Arc<K>> {
        self.read(|table| table.all().cloned().collect())
    }

    pub(crate) fn in_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        self.read(|table| table.in_namespace(namespace).cloned().collect())
    }

    pub(crate) fn owned_by(&self, uid: &str) -> Vec<Arc<K>> {
        self.read(|table| table.owned_by(uid).cloned().collect())
    }

    /// Calls `listener` for every change from now on, from the watch or from a
    /// write of ours. It must be quick; it may look into any mirror.
    pub(crate) fn subscribe(&self, listener: impl Fn(&Change<K>) + Send + Sync + 'static) {
        self.listeners
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Box::new(listener));
    }

    fn tell(&self, changes: impl IntoIterator<Item = Change<K>>) {
        let listeners = self
            .listeners
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        for change in changes {
            for listener in listeners.iter() {
                listener(&change);
            }
        }
    }

    /// Follows the API server; ends only when dropped.
    pub(crate) async fn follow(self: Arc<Self>) {
        let mut events =
            pin!(watcher(self.all.clone(), watcher::Config::default()).default_backoff());
        while let Some(event) = events.next().await {
            match event {
                Ok(watcher::Event::Apply(object)) => {
                    let change = self.write(|table| table.observe(object));
                    self.tell(change);
                }
                Ok(watcher::Event::Delete(object)) => {
                    let change = self.write(|table| table.observe_removed(&object));
                    self.tell(change);
                }
                Ok(watcher::Event::Init) => self.write(Table::relist),
                Ok(watcher::Event::InitApply(object)) => self.write(|table| table.listed(object)),
                Ok(watcher::Event::InitDone) => {
                    let changes = self.write(Table::relisted);
                    self.tell(changes);
                    self.complete.send_replace(true);
                }
                Err(error) => {
                    tracing::warn!(kind = %K::kind(&()), %error, "watch failed, trying again");
                }
            }
        }
    }

    /// Waits for the first complete list.
    pub(crate) async fn complete(&self) {
        // An error would mean that the sender, which is ours, is gone.
        let _ = self.complete.subscribe().wait_for(|done| *done).await;
    }

    fn failure(&self, doing: &'static str, key: &Key, source: kube::Error) -> Failure {
        Failure::new(doing, K::kind(&()), key, source)
    }

    /// To be called before a write is sent.
    pub(crate) fn begin(&self) -> Write<'_, K> {
        Write {
            begun: self.write(Table::begin),
            mirror: self,
        }
    }

    fn removed(&self, key: &Key, uid: &str) {
        let change = self.write(|table| table.removed(key, uid));
        self.tell(change);
    }

    /// Creates an object.
    pub(crate) async fn create(&self, object: &K) -> Result<K, Failure> {
        let mut key = Key::of(object.meta());
        if key.name.is_empty() {
            key.name = object.meta().generate_name.clone().unwrap_or_default();
        }
        let write = self.begin();
        let made = (self.api)(&key.namespace)
            .create(&post(), object)
            .await
            .map_err(|error| self.failure("create", &key, error))?;
        write.answered(made.clone());
        Ok(made)
    }

    /// Replaces an object; fails with a conflict if it is no longer the version
    /// at hand.
    pub(crate) async fn replace(&self, object: &K) -> Result<(), Failure> {
        let key = Key::of(object.meta());
        let write = self.begin();
        let made = (self.api)(&key.namespace)
            .replace(&key.name, &post(), object)
            .await
            .map_err(|error| self.failure("update", &key, error))?;
        write.answered(made);
        Ok(())
    }

    /// Replaces an object's status; fails with a conflict if it is no longer
    /// the version at hand.
    pub(crate) async fn replace_status(&self, object: &K) -> Result<(), Failure> {
        let key = Key::of(object.meta());
        let write = self.begin();
        let made = (self.api)(&key.namespace)
            .replace_status(&key.name, &post(), object)
            .await
            .map_err(|error| self.failure("update the status of", &key, error))?;
        write.answered(made);
        Ok(())
    }

    /// Merges `change` into the object (JSON merge patch, RFC 7396).
    pub(crate) async fn merge(&self, key: &Key, change: Value) -> Result<(), Failure> {
        let write = self.begin();
        let made = (self.api)(&key.namespace)
            .patch(&key.name, &patch(), &Patch::Merge(change))
            .await
            .map_err(|error| self.failure("patch", key, error))?;
        write.answered(made);
        Ok(())
    }

    /// Merges `change` into the object's status (strategic merge patch: lists
    /// of conditions by their type).
    pub(crate) async fn merge_status(&self, key: &Key, change: Value) -> Result<(), Failure> {
        let write = self.begin();
        let made = (self.api)(&key.namespace)
            .patch_status(&key.name, &patch(), &Patch::Strategic(change))
            .await
            .map_err(|error| self.failure("patch the status of", key, error))?;
        write.answered(made);
        Ok(())
    }

    /// Deletes the very object at hand; one that is gone already is no error.
    pub(crate) async fn delete(&self, object: &K) -> Result<(), Failure> {
        self.delete_with(object, DeleteParams::default()).await
    }

    /// Deletes the very object at hand at once, without a grace period.
    pub(crate) async fn delete_now(&self, object: &K) -> Result<(), Failure> {
        self.delete_with(object, DeleteParams::default().grace_period(0))
            .await
    }

    async fn delete_with(&self, object: &K, mut params: DeleteParams) -> Result<(), Failure> {
        let key = Key::of(object.meta());
        let uid = object::uid(object.meta());
        params.propagation_policy = Some(PropagationPolicy::Background);
        params.preconditions = Some(Preconditions {
            uid: Some(uid.to_owned()),
            resource_version: None,
        });
        let write = self.begin();
        let answer = (self.api)(&key.namespace).delete(&key.name, &params).await;
        match answer {
            Ok(answer) => {
                match answer.left() {
                    Some(object) if lingers(object.meta()) => write.answered(object),
                    _ => self.removed(&key, uid),
                }
                Ok(())
            }
            Err(error) => {
                let failure = self.failure("delete", &key, error);
                // A conflict is the uid's: its successor lives under the name.
                if failure.is_not_found() || failure.is_conflict() {
                    self.removed(&key, uid);
                    return Ok(());
                }
                Err(failure)
            }
        }
    }
}

/// Whether an object that a delete has answered with is still there: something
/// has to finish first, a finalizer or the kubelet.
fn lingers(meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) -> bool {
    object::is_deleting(meta)
        && (meta
            .finalizers
            .as_ref()
            .is_some_and(|finalizers| !finalizers.is_empty())
            || meta.deletion_grace_period_seconds.unwrap_or(0) > 0)
}

fn post() -> PostParams {
    PostParams {
        field_manager: Some(MANAGER.into()),
        ..PostParams::default()
    }
}

fn patch() -> PatchParams {
    PatchParams {
        field_manager: Some(MANAGER.into()),
        ..PatchParams::default()
    }
}
