//! What kinds the API serves, and the metadata of all their objects: the
//! mirrors' kinds by the mirrors, all others by watches of metadata alone.

use super::graph::{Graph, Item, Resource};
use crate::cluster::Cluster;
use crate::mirror::{Failure, Kind, Mirror};
use crate::object::{self, Key};
use crate::queue::Queue;
use crate::work::{self, Outcome};
use futures::StreamExt;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::DynamicObject;
use kube::core::{ApiResource, PartialObjectMeta};
use kube::discovery::{Discovery, Scope, verbs};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use std::collections::{HashMap, HashSet};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

/// Kinds that are other names of what another kind holds.
const SECOND_NAMES: [(&str, &str); 1] = [("events.k8s.io", "Event")];

/// The graph and who works on it.
pub(super) struct Inventory {
    pub(super) client: Client,
    graph: Mutex<Graph>,
    resources: Mutex<Vec<Arc<Resource>>>,
    /// Watches of kinds without a mirror, by `group/version/kind`.
    watches: Mutex<HashMap<(String, String), AbortHandle>>,
    /// Kinds that a mirror watches, by group and kind.
    mirrored: Mutex<HashSet<(String, String)>>,
    /// Objects to look at, by uid.
    pub(super) objects: Queue<String>,
    /// Namespaces in which something changed.
    pub(super) namespaces: Queue<String>,
    discovery: Arc<Queue<()>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Inventory {
    pub(super) fn new(client: Client) -> Arc<Self> {
        Arc::new(Self {
            client,
            graph: Mutex::default(),
            resources: Mutex::default(),
            watches: Mutex::default(),
            mirrored: Mutex::default(),
            objects: Queue::default(),
            namespaces: Queue::default(),
            discovery: Arc::default(),
        })
    }

    pub(super) fn graph(&self) -> MutexGuard<'_, Graph> {
        lock(&self.graph)
    }

    /// Kinds whose objects can be listed and deleted.
    pub(super) fn resources(&self) -> Vec<Arc<Resource>> {
        lock(&self.resources).clone()
    }

    /// The kind an owner reference names.
    pub(super) fn resolve(&self, api_version: &str, kind: &str) -> Option<Arc<Resource>> {
        lock(&self.resources)
            .iter()
            .find(|resource| resource.api.kind == kind && resource.api.api_version == api_version)
            .cloned()
    }

    /// The API of a kind, in a namespace if it lives in one.
    pub(super) fn api(&self, resource: &Resource, namespace: &str) -> Api<DynamicObject> {
        if resource.namespaced {
            Api::namespaced_with(self.client.clone(), namespace, &resource.api)
        } else {
            Api::all_with(self.client.clone(), &resource.api)
        }
    }

    fn seen(&self, resource: &Arc<Resource>, meta: &ObjectMeta) {
        let item = Item::new(resource, meta);
        let namespace = item.key.namespace.clone();
        let look = self.graph().set(item);
        self.wake(look, namespace);
    }

    fn gone(&self, uid: &str) {
        let mut graph = self.graph();
        let namespace = graph
            .get(uid)
            .map(|item| item.key.namespace.clone())
            .unwrap_or_default();
        let look = graph.remove(uid);
        drop(graph);
        self.wake(look, namespace);
    }

    fn wake(&self, look: Vec<String>, namespace: String) {
        for uid in look {
            self.objects.add(uid);
        }
        if !namespace.is_empty() {
            self.namespaces.add(namespace);
        }
    }

    /// Learns the objects of a kind from its mirror.
    fn attach<K: Kind>(self: &Arc<Self>, mirror: &Arc<Mirror<K>>, namespaced: bool) {
        let resource = Arc::new(Resource {
            api: ApiResource::erase::<K>(&()),
            namespaced,
        });
        lock(&self.mirrored).insert((resource.api.group.clone(), resource.api.kind.clone()));
        let inventory = Arc::downgrade(self);
        let objects = Arc::downgrade(mirror);
        mirror.subscribe(move |change| {
            let (Some(inventory), Some(objects)) = (inventory.upgrade(), objects.upgrade()) else {
                return;
            };
            // Changes may be told in another order than they happened, so what
            // counts is what the mirror holds now, read under the graph's lock.
            let mut graph = inventory.graph();
            let current = objects.get(&change.key);
            let current_uid = current
                .as_ref()
                .and_then(|object| object.meta().uid.clone());
            let mut look = Vec::new();
            for old in change.both() {
                if old.meta().uid != current_uid {
                    look.extend(graph.remove(object::uid(old.meta())));
                }
            }
            if let Some(object) = current {
                look.extend(graph.set(Item::new(&resource, object.meta())));
            }
            drop(graph);
            inventory.wake(look, change.key.namespace.clone());
        });
    }

    /// Learns the objects of a kind from a watch of its own.
    async fn follow(self: Arc<Self>, resource: Arc<Resource>) {
        let api: Api<PartialObjectMeta<DynamicObject>> =
            Api::all_with(self.client.clone(), &resource.api);
        let mut events = pin!(watcher(api, watcher::Config::default()).default_backoff());
        let mut listed: HashSet<String> = HashSet::new();
        let uid = |object: &PartialObjectMeta<DynamicObject>| {
            object.metadata.uid.clone().unwrap_or_default()
        };
        while let Some(event) = events.next().await {
            match event {
                Ok(watcher::Event::Apply(object)) => self.seen(&resource, &object.metadata),
                Ok(watcher::Event::Delete(object)) => self.gone(&uid(&object)),
                Ok(watcher::Event::Init) => listed.clear(),
                Ok(watcher::Event::InitApply(object)) => {
                    listed.insert(uid(&object));
                    self.seen(&resource, &object.metadata);
                }
                Ok(watcher::Event::InitDone) => {
                    let known = self.graph().of(&resource);
                    for uid in known.iter().filter(|uid| !listed.contains(*uid)) {
                        self.gone(uid);
                    }
                }
                Err(error) => {
                    tracing::debug!(kind = resource.api.kind, %error, "watch failed, trying again");
                }
            }
        }
    }

    /// Asks what kinds there are; starts and ends watches accordingly.
    async fn discover(self: &Arc<Self>) -> Outcome {
        let failure =
            |error| Failure::new("list", "the API's kinds", "as discovery tells them", error);
        let found = Discovery::new(self.client.clone())
            .run()
            .await
            .map_err(failure)?;
        let mut resources = Vec::new();
        for group in found.groups() {
            for (api, capabilities) in group.recommended_resources() {
                let second_name = SECOND_NAMES
                    .iter()
                    .any(|(group, kind)| *group == api.group && *kind == api.kind);
                let usable = [verbs::LIST, verbs::WATCH, verbs::DELETE]
                    .iter()
                    .all(|verb| capabilities.supports_operation(verb));
                if usable && !second_name {
                    resources.push(Arc::new(Resource {
                        namespaced: capabilities.scope == Scope::Namespaced,
                        api,
                    }));
                }
            }
        }
        let mut watches = lock(&self.watches);
        let name =
            |resource: &Resource| (resource.api.api_version.clone(), resource.api.kind.clone());
        watches.retain(|known, watch| {
            let stays = resources.iter().any(|resource| name(resource) == *known);
            if !stays {
                watch.abort();
            }
            stays
        });
        let mirrored = lock(&self.mirrored);
        let mut graph = self.graph();
        let before = lock(&self.resources).clone();
        let mut vanished: Vec<String> = Vec::new();
        for old in before {
            if !resources.iter().any(|new| name(new) == name(&old)) {
                vanished.extend(graph.of(&old));
            }
        }
        for uid in vanished {
            for look in graph.remove(&uid) {
                self.objects.add(look);
            }
        }
        drop(graph);
        for resource in &resources {
            let kind = (resource.api.group.clone(), resource.api.kind.clone());
            if !mirrored.contains(&kind) && !watches.contains_key(&name(resource)) {
                let task = tokio::spawn(self.clone().follow(resource.clone()));
                watches.insert(name(resource), task.abort_handle());
            }
        }
        drop((mirrored, watches));
        *lock(&self.resources) = resources;
        Ok(None)
    }
}

/// Ends the watches with the inventory.
struct Watches(Arc<Inventory>);

impl Drop for Watches {
    fn drop(&mut self) {
        for watch in lock(&self.0.watches).values() {
            watch.abort();
        }
    }
}

/// Starts to learn all objects; the returned receiver turns true when the kinds
/// are known.
pub(super) fn run(
    cluster: &Arc<Cluster>,
    inventory: &Arc<Inventory>,
    tasks: &mut JoinSet<()>,
    start: &watch::Receiver<bool>,
) -> watch::Receiver<bool> {
    inventory.attach(&cluster.nodes, false);
    inventory.attach(&cluster.namespaces, false);
    inventory.attach(&cluster.pods, true);
    inventory.attach(&cluster.services, true);
    inventory.attach(&cluster.slices, true);
    inventory.attach(&cluster.replica_sets, true);
    inventory.attach(&cluster.deployments, true);
    inventory.attach(&cluster.stateful_sets, true);
    inventory.attach(&cluster.daemon_sets, true);
    inventory.attach(&cluster.revisions, true);
    inventory.attach(&cluster.service_accounts, true);
    inventory.attach(&cluster.leases, true);
    inventory.attach(&cluster.events, true);
    // Custom kinds come and go with their definitions.
    let definitions: Arc<Mirror<CustomResourceDefinition>> = Mirror::cluster(&cluster.client);
    inventory.attach(&definitions, false);
    definitions.subscribe({
        let queue = inventory.discovery.clone();
        move |_| queue.add(())
    });
    tasks.spawn(definitions.follow());
    inventory.discovery.add(());
    let (known, receiver) = watch::channel(false);
    let known = Arc::new(known);
    let watches = Arc::new(Watches(inventory.clone()));
    work::spawn(tasks, "discovery", 1, &inventory.discovery, start, {
        move |()| {
            let (watches, known) = (watches.clone(), known.clone());
            async move {
                watches.0.discover().await?;
                known.send_replace(true);
                Ok(None)
            }
        }
    });
    receiver
}

impl Inventory {
    /// The key under which an object is reported.
    pub(super) fn describe(item: &Item) -> (String, Key) {
        (item.resource.api.kind.clone(), item.key.clone())
    }
}
