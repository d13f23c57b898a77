//! A cluster in this process: the real API server, the controllers, and a
//! kubelet that only says what a kubelet says.
#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests, where a failure is the answer"
)]
#![allow(dead_code, reason = "each test binary uses a part")]

use apiserver::log_source::FileLogs;
use futures::StreamExt;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource};
use podwire_controllers::Config;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::fmt::Debug;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;

/// Nothing here takes that long unless it never happens.
const NEVER: Duration = Duration::from_secs(60);

pub(crate) struct Lab {
    pub(crate) client: Client,
    pub(crate) config: Config,
    /// What the controllers run on, apart from all else.
    controllers: Option<Runtime>,
    kubelet: JoinHandle<()>,
    server: apiserver::Server,
    _dir: TempDir,
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Some(controllers) = self.controllers.take() {
            controllers.shutdown_background();
        }
        self.kubelet.abort();
        self.server.shutdown();
    }
}

impl Lab {
    /// A cluster with ready nodes `node-1` … .
    pub(crate) async fn with_nodes(count: usize) -> Self {
        Self::new(count, Config::default()).await
    }

    pub(crate) async fn new(nodes: usize, config: Config) -> Self {
        // In memory: each change would wait for the disk, which nothing here is about.
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let logs = dir.path().join("logs");
        let server = apiserver::Server::open(apiserver::Config {
            store: dir.path().join("store.redb"),
            pki: dir.path().join("pki"),
            service_ranges: vec![
                "10.96.0.0/12".parse().unwrap(),
                "fd00:96::/112".parse().unwrap(),
            ],
            advertise: vec!["192.168.64.2".parse().unwrap()],
            advertise_port: 6443,
            logs: Arc::new(FileLogs::new(move |node| logs.join(node))),
        })
        .await
        .unwrap();
        let client = Client::new(server.router(), "default");
        let kubelet = tokio::spawn(kubelet(client.clone()));
        let mut lab = Self {
            client,
            config,
            controllers: None,
            kubelet,
            server,
            _dir: dir,
        };
        lab.start_controllers();
        for number in 1..=nodes {
            lab.add_node(&format!("node-{number}")).await;
        }
        lab
    }

    pub(crate) fn start_controllers(&mut self) {
        let run = podwire_controllers::run(self.client.clone(), self.config.clone());
        let controllers = Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        controllers.spawn(async move {
            panic!("controllers ended: {:?}", run.await);
        });
        self.controllers = Some(controllers);
    }

    /// As a `kill -9` would: at whatever await they are. When this is done, none of them
    /// does anything any more, and the server has done what they had asked for.
    pub(crate) async fn stop_controllers(&mut self) {
        if let Some(controllers) = self.controllers.take() {
            // Waits for the tasks that are at work.
            let stop = tokio::task::spawn_blocking(move || drop(controllers));
            stop.await.unwrap();
            // Written after all that they wrote.
            let last: ConfigMap =
                serde_json::from_value(json!({"metadata": {"generateName": "last-"}})).unwrap();
            let all: Api<ConfigMap> = Api::default_namespaced(self.client.clone());
            all.create(&PostParams::default(), &last).await.unwrap();
        }
    }

    pub(crate) async fn add_node(&self, name: &str) {
        let now = Timestamp::now();
        let node: Node = serde_json::from_value(json!({
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
            "status": {"conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady",
                "message": "", "lastHeartbeatTime": now.to_string(), "lastTransitionTime": now.to_string()}]}}))
        .unwrap();
        let nodes: Api<Node> = Api::all(self.client.clone());
        let made = nodes.create(&PostParams::default(), &node).await.unwrap();
        let mut with_status = made;
        with_status.status = node.status;
        // The controllers may be faster with the node's range.
        let status = json!({"status": with_status.status});
        nodes
            .patch_status(name, &PatchParams::default(), &Patch::Merge(status))
            .await
            .unwrap();
    }

    pub(crate) fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), "default")
    }

    pub(crate) async fn create<K>(&self, object: Value) -> K
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + Clone
            + Debug
            + Serialize
            + DeserializeOwned,
    {
        let object: K = serde_json::from_value(object).unwrap();
        self.api()
            .create(&PostParams::default(), &object)
            .await
            .unwrap()
    }

    pub(crate) async fn merge<K>(&self, name: &str, change: Value) -> K
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + Clone
            + Debug
            + DeserializeOwned,
    {
        self.api()
            .patch(name, &PatchParams::default(), &Patch::Merge(change))
            .await
            .unwrap()
    }

    pub(crate) async fn pods(&self) -> Vec<Pod> {
        self.api::<Pod>()
            .list(&Default::default())
            .await
            .unwrap()
            .items
    }

    /// Waits until the objects are as they should be, looking at each change.
    pub(crate) async fn until<K>(&self, what: &str, holds: impl Fn(&[K]) -> bool) -> Vec<K>
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + Clone
            + Debug
            + DeserializeOwned
            + Send
            + 'static,
    {
        until(self.api(), what, holds).await
    }
}

/// Waits until the objects of an API are as they should be.
pub(crate) async fn until<K>(api: Api<K>, what: &str, holds: impl Fn(&[K]) -> bool) -> Vec<K>
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let mut known: BTreeMap<(String, String), K> = BTreeMap::new();
    let key = |object: &K| {
        (
            object.meta().namespace.clone().unwrap_or_default(),
            object.meta().name.clone().unwrap_or_default(),
        )
    };
    let waiting = async {
        // What comes together is looked at together.
        let mut events = pin!(
            watcher(api, watcher::Config::default())
                .default_backoff()
                .ready_chunks(1000)
        );
        let mut complete = false;
        while let Some(chunk) = events.next().await {
            for event in chunk {
                match event.unwrap() {
                    watcher::Event::Apply(object) | watcher::Event::InitApply(object) => {
                        known.insert(key(&object), object);
                    }
                    watcher::Event::Delete(object) => {
                        known.remove(&key(&object));
                    }
                    watcher::Event::Init => known.clear(),
                    watcher::Event::InitDone => complete = true,
                }
            }
            if complete {
                let all: Vec<K> = known.values().cloned().collect();
                if holds(&all) {
                    return all;
                }
            }
        }
        Vec::new()
    };
    let found = tokio::time::timeout(NEVER, waiting).await;
    found.unwrap_or_else(|_| panic!("never happened: {what}; there are {known:#?}"))
}

/// Says of every bound pod that it runs and is ready, and ends those that are
/// to end.
async fn kubelet(client: Client) {
    let all: Api<Pod> = Api::all(client.clone());
    let addresses: Mutex<HashMap<String, usize>> = Mutex::default();
    // One kubelet a node would work side by side as well.
    watcher(all, watcher::Config::default())
        .default_backoff()
        .for_each_concurrent(16, |event| async {
            if let Ok(watcher::Event::Apply(pod) | watcher::Event::InitApply(pod)) = event {
                tend(&client, &addresses, pod).await;
            }
        })
        .await;
}

async fn tend(client: &Client, addresses: &Mutex<HashMap<String, usize>>, pod: Pod) {
    let meta = &pod.metadata;
    let name = meta.name.clone().unwrap_or_default();
    let Some(node) = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()) else {
        return;
    };
    // A node whose kubelet is silent.
    if node.starts_with("silent") {
        return;
    }
    let api: Api<Pod> = Api::namespaced(client.clone(), meta.namespace.as_deref().unwrap());
    if meta.deletion_timestamp.is_some() {
        let _ = api
            .delete(&name, &DeleteParams::default().grace_period(0))
            .await;
        return;
    }
    let phase = pod.status.as_ref().and_then(|status| status.phase.clone());
    if phase.as_deref() == Some("Running") {
        return;
    }
    let number = {
        let mut addresses = addresses.lock().unwrap();
        let next = addresses.len() + 2;
        *addresses
            .entry(meta.uid.clone().unwrap_or_default())
            .or_insert(next)
    };
    // It may be gone already.
    let status = status(number, true);
    let _ = api
        .patch_status(&name, &PatchParams::default(), &Patch::Strategic(status))
        .await;
}

pub(crate) fn status(number: usize, ready: bool) -> Value {
    json!({"status": {
        "phase": "Running",
        "podIPs": [{"ip": format!("10.200.{}.{}", number / 256, number % 256)}, {"ip": format!("fd00:200::{number:x}")}],
        "podIP": format!("10.200.{}.{}", number / 256, number % 256),
        "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" },
            "lastTransitionTime": Timestamp::now().to_string()}]}})
}

pub(crate) fn template(app: &str) -> Value {
    json!({"metadata": {"labels": {"app": app}}, "spec": {"containers": [
        {"name": "c", "image": "podwire.dev/toolbox", "ports": [{"name": "http", "containerPort": 8080}]}]}})
}

pub(crate) fn deployment(name: &str, replicas: i32) -> Value {
    json!({"metadata": {"name": name}, "spec": {"replicas": replicas,
        "selector": {"matchLabels": {"app": name}}, "template": template(name)}})
}

pub(crate) fn service(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"selector": {"app": name},
        "ipFamilyPolicy": "RequireDualStack", "ports": [{"port": 80, "targetPort": "http"}]}})
}
