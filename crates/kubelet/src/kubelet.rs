//! The kubelet's main loop: the pods bound to this node, each with a worker.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1 as k8s;
use kube::api::Api;
use kube::runtime::watcher::{self, Event};
use tokio::sync::watch;
use tokio::task::{JoinSet, LocalSet};

use crate::events::Recorder;
use crate::images::{self, Store};
use crate::pod::{Node, Update, Worker};
use crate::{Error, Options, cgroup, node, paths, record};

/// The longest wait before the API server is asked again.
const RETRY_LIMIT: Duration = Duration::from_secs(2);

/// Registers the node and runs its pods until the process is ended. Pods go on
/// without it and are adopted by its next run.
///
/// # Errors
/// When the kubeconfig, the node's folders or the runtime can't be used. A lost
/// API server is no error: it is asked again until it is back.
pub fn run(options: Options) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // Image layers are unpacked there; one at a time is enough.
        .max_blocking_threads(2)
        .build()
        .map_err(Error::Runtime)?;
    LocalSet::new().block_on(&runtime, serve(options))
}

async fn serve(options: Options) -> Result<(), Error> {
    prepare_folders()?;
    let client = client(&options.kubeconfig).await?;
    let store = Store::open(paths::IMAGES)?;
    let image_network = options
        .image_network
        .as_deref()
        .map(images::Network::open)
        .transpose()?;
    let (recorder, sending) = Recorder::new(client.clone(), options.node.clone());
    tokio::task::spawn_local(sending);
    let no_limits = cgroup::unusable();
    if let Some(reason) = &no_limits {
        tracing::info!("containers run without cpu and memory limits: {reason}");
    }
    let network = node::watch_network(&options.cni_conf_dir)?;
    tokio::task::spawn_local(node::keep(client.clone(), options.clone(), network.clone()));
    let node = Rc::new(Node {
        capabilities: available_capabilities(),
        limits: no_limits.is_none(),
        options,
        client,
        store,
        image_network,
        recorder,
        network,
    });
    follow_pods(node).await;
    Ok(())
}

fn prepare_folders() -> Result<(), Error> {
    for dir in [
        paths::PODS,
        paths::CONTAINERS,
        paths::LOGS,
        paths::CRUN_ROOT,
        paths::NETNS,
    ] {
        std::fs::create_dir_all(dir).map_err(|source| Error::Disk {
            action: "making",
            path: dir.into(),
            source,
        })?;
    }
    Ok(())
}

async fn client(kubeconfig: &Path) -> Result<kube::Client, Error> {
    let fail = |reason: String| Error::Kubeconfig {
        path: kubeconfig.into(),
        reason,
    };
    let file = kube::config::Kubeconfig::read_from(kubeconfig).map_err(|e| fail(e.to_string()))?;
    let config = kube::Config::from_custom_kubeconfig(file, &Default::default())
        .await
        .map_err(|error| fail(error.to_string()))?;
    kube::Client::try_from(config).map_err(|error| fail(error.to_string()))
}

/// The capabilities this process could hand on, as `CAP_…`, by the names and
/// numbers of linux/capability.h.
fn available_capabilities() -> Vec<String> {
    const NAMES: [&str; 41] = [
        "CHOWN",
        "DAC_OVERRIDE",
        "DAC_READ_SEARCH",
        "FOWNER",
        "FSETID",
        "KILL",
        "SETGID",
        "SETUID",
        "SETPCAP",
        "LINUX_IMMUTABLE",
        "NET_BIND_SERVICE",
        "NET_BROADCAST",
        "NET_ADMIN",
        "NET_RAW",
        "IPC_LOCK",
        "IPC_OWNER",
        "SYS_MODULE",
        "SYS_RAWIO",
        "SYS_CHROOT",
        "SYS_PTRACE",
        "SYS_PACCT",
        "SYS_ADMIN",
        "SYS_BOOT",
        "SYS_NICE",
        "SYS_RESOURCE",
        "SYS_TIME",
        "SYS_TTY_CONFIG",
        "MKNOD",
        "LEASE",
        "AUDIT_WRITE",
        "AUDIT_CONTROL",
        "SETFCAP",
        "MAC_OVERRIDE",
        "MAC_ADMIN",
        "SYSLOG",
        "WAKE_ALARM",
        "BLOCK_SUSPEND",
        "AUDIT_READ",
        "PERFMON",
        "BPF",
        "CHECKPOINT_RESTORE",
    ];
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let set = |field: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(field))
            .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
            .unwrap_or(0)
    };
    let held = set("CapEff:") & set("CapBnd:");
    NAMES
        .iter()
        .enumerate()
        .filter(|(number, _)| held & (1 << number) != 0)
        .map(|(_, name)| format!("CAP_{name}"))
        .collect()
}

/// Delays of a lost watch: short, as the API server is a neighbour.
pub(crate) struct Retry(Duration);

impl Default for Retry {
    fn default() -> Self {
        Self(Self::FIRST)
    }
}

impl Retry {
    const FIRST: Duration = Duration::from_millis(50);
}

impl Iterator for Retry {
    type Item = Duration;
    fn next(&mut self) -> Option<Duration> {
        let delay = self.0;
        self.0 = (delay * 2).min(RETRY_LIMIT);
        Some(delay)
    }
}

impl kube::runtime::utils::Backoff for Retry {
    fn reset(&mut self) {
        self.0 = Self::FIRST;
    }
}

/// The workers of this node's pods by the pods' UIDs.
struct Workers {
    node: Rc<Node>,
    senders: HashMap<String, watch::Sender<Update>>,
    tasks: JoinSet<String>,
}

impl Workers {
    /// Tells a pod's worker what the API says of it now; makes one when there
    /// is none.
    fn update(&mut self, pod: k8s::Pod) {
        let Some(uid) = pod.metadata.uid.clone() else {
            return;
        };
        let update = Update {
            pod: Rc::new(pod),
            gone: false,
        };
        match self.senders.get(&uid) {
            Some(sender) => {
                sender.send_replace(update);
            }
            None => self.begin(uid, update),
        }
    }

    /// Tells a pod's worker that the API has forgotten the pod.
    fn gone(&self, uid: &str) {
        if let Some(sender) = self.senders.get(uid) {
            sender.send_modify(|update| update.gone = true);
        }
    }

    fn begin(&mut self, uid: String, update: Update) {
        let (sender, receiver) = watch::channel(update);
        let worker = Worker::new(Rc::clone(&self.node), uid.clone(), receiver);
        self.senders.insert(uid.clone(), sender);
        self.tasks.spawn_local(async move {
            worker.run().await;
            uid
        });
    }

    /// Ends what earlier runs left of pods the API no longer knows.
    fn clean_up(&mut self) {
        let uids = match record::Pod::uids() {
            Ok(uids) => uids,
            Err(error) => {
                tracing::warn!("looking for left-over pods in {}: {error}", paths::PODS);
                return;
            }
        };
        for uid in uids {
            if self.senders.contains_key(&uid) {
                continue;
            }
            let mut pod = k8s::Pod::default();
            pod.metadata.uid = Some(uid.clone());
            if let Ok(Some(record)) = record::Pod::load(&uid) {
                pod.metadata.namespace = Some(record.namespace);
                pod.metadata.name = Some(record.name);
            }
            let update = Update {
                pod: Rc::new(pod),
                gone: true,
            };
            self.begin(uid, update);
        }
    }
}

async fn follow_pods(node: Rc<Node>) {
    let api: Api<k8s::Pod> = Api::all(node.client.clone());
    let selector = format!("spec.nodeName={}", node.options.node);
    let stream = watcher::watcher(api, watcher::Config::default().fields(&selector));
    let mut stream = pin!(kube::runtime::WatchStreamExt::backoff(
        stream,
        Retry::default()
    ));
    let mut workers = Workers {
        node,
        senders: HashMap::new(),
        tasks: JoinSet::new(),
    };
    let mut listed: HashSet<String> = HashSet::new();
    loop {
        let event = tokio::select! {
            event = stream.next() => event,
            Some(ended) = workers.tasks.join_next() => {
                if let Ok(uid) = ended {
                    workers.senders.remove(&uid);
                }
                continue;
            }
        };
        match event {
            Some(Ok(Event::Init)) => listed.clear(),
            Some(Ok(Event::InitApply(pod))) => {
                listed.extend(pod.metadata.uid.clone());
                workers.update(pod);
            }
            Some(Ok(Event::InitDone)) => {
                let missing: Vec<String> = workers
                    .senders
                    .keys()
                    .filter(|uid| !listed.contains(*uid))
                    .cloned()
                    .collect();
                for uid in missing {
                    workers.gone(&uid);
                }
                workers.clean_up();
            }
            Some(Ok(Event::Apply(pod))) => workers.update(pod),
            Some(Ok(Event::Delete(pod))) => {
                if let Some(uid) = pod.metadata.uid {
                    workers.gone(&uid);
                }
            }
            Some(Err(error)) => tracing::debug!("watching pods: {error}"),
            None => return,
        }
    }
}
