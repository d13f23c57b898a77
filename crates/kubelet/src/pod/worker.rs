use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as k8s;
use tokio::sync::{Notify, watch};

use super::{Node, Update};
use crate::events::About;
use crate::plan::environment::Downward;
use crate::record::{Container, Pod, Stage};

/// Looks after one pod from its binding to its removal.
pub(crate) struct Worker {
    pub(super) node: Rc<Node>,
    pub(super) uid: String,
    pub(super) update: watch::Receiver<Update>,
    pub(super) record: RefCell<Pod>,
    /// Wakes whoever waits for a change of the record.
    pub(super) changed: Notify,
}

impl Worker {
    pub(crate) fn new(node: Rc<Node>, uid: String, update: watch::Receiver<Update>) -> Self {
        let pod = Rc::clone(&update.borrow().pod);
        let fresh = || Pod {
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            name: pod.metadata.name.clone().unwrap_or_default(),
            uid: uid.clone(),
            started_at: Timestamp::now(),
            sandbox: None,
            sandboxes: 0,
            ips: Vec::new(),
            containers: Default::default(),
            initialized: false,
            failed: None,
        };
        let record = match Pod::load(&uid) {
            Ok(Some(record)) => record,
            Ok(None) => fresh(),
            Err(error) => {
                tracing::warn!("reading the record of pod {uid}: {error}");
                fresh()
            }
        };
        Self {
            node,
            uid,
            update,
            record: RefCell::new(record),
            changed: Notify::new(),
        }
    }

    /// Runs the pod until nothing is left of it on the node and in the API.
    pub(crate) async fn run(self) {
        let life = async {
            tokio::select! {
                biased;
                () = self.deletion() => {}
                () = self.live() => self.deletion().await,
            }
            self.terminate().await;
        };
        tokio::select! {
            () = life => {}
            () = self.keep_reporting() => {}
        }
    }

    /// Runs the pod until its containers have ended for good.
    async fn live(&self) {
        let pod = self.pod();
        let known = crate::paths::pod(&self.uid).exists();
        let phase = pod
            .status
            .as_ref()
            .and_then(|status| status.phase.as_deref());
        if !known && matches!(phase, Some("Succeeded" | "Failed")) {
            return;
        }
        self.begin();
        loop {
            self.prepare().await;
            let pause = self.ensure_sandbox().await;
            tokio::select! {
                () = crate::container::ended(&pause) => self.lose_sandbox().await,
                () = self.run_containers() => break,
                never = self.follow_volumes() => match never {},
            }
        }
        self.release_sandbox().await;
    }

    /// Notes all containers, so that the status shows them from the start.
    fn begin(&self) {
        let pod = self.pod();
        let Some(spec) = &pod.spec else { return };
        let inits = spec.init_containers.as_deref().unwrap_or_default();
        let waiting = if inits.is_empty() {
            "ContainerCreating"
        } else {
            "PodInitializing"
        };
        self.modify(|record| {
            for container in inits.iter().chain(&spec.containers) {
                record
                    .containers
                    .entry(container.name.clone())
                    .or_insert_with(|| Container::waiting(waiting));
            }
            record.initialized |= inits.is_empty();
        });
    }

    /// The pod as the API last had it.
    pub(super) fn pod(&self) -> Rc<k8s::Pod> {
        Rc::clone(&self.update.borrow().pod)
    }

    /// Waits until the pod is to end, by request or because the API has
    /// forgotten it.
    pub(super) async fn deletion(&self) {
        let mut update = self.update.clone();
        let deleted =
            |update: &Update| update.gone || update.pod.metadata.deletion_timestamp.is_some();
        // The sender outlives the worker; were it gone, nobody wants the pod.
        let _ = update.wait_for(deleted).await;
    }

    /// Changes the record, keeps it on disk, and tells all who wait for it.
    pub(super) fn modify(&self, change: impl FnOnce(&mut Pod)) {
        let mut record = self.record.borrow_mut();
        let before = record.clone();
        change(&mut record);
        if *record == before && crate::paths::pod(&self.uid).exists() {
            return;
        }
        let saved =
            std::fs::create_dir_all(crate::paths::pod(&self.uid)).and_then(|()| record.save());
        if let Err(error) = saved {
            tracing::error!("keeping the record of pod {}: {error}", self.uid);
        }
        drop(record);
        self.changed.notify_waiters();
    }

    /// Changes a container's record.
    pub(super) fn modify_container(&self, name: &str, change: impl FnOnce(&mut Container)) {
        self.modify(|record| {
            let container = record
                .containers
                .entry(name.to_owned())
                .or_insert_with(|| Container::waiting("ContainerCreating"));
            change(container);
        });
    }

    /// Shows why a container is not running.
    pub(super) fn wait_because(&self, name: &str, reason: &str, message: Option<String>) {
        self.modify_container(name, |container| {
            // How the last run ended stays visible.
            if let Stage::Terminated(exit) = &container.stage {
                container.last = Some(exit.clone());
            }
            container.stage = Stage::Waiting {
                reason: reason.into(),
                message,
            };
        });
    }

    /// Waits until the record satisfies a condition.
    pub(super) async fn until(&self, condition: impl Fn(&Pod) -> bool) {
        loop {
            let changed = self.changed.notified();
            let mut changed = std::pin::pin!(changed);
            changed.as_mut().enable();
            if condition(&self.record.borrow()) {
                return;
            }
            changed.await;
        }
    }

    /// What events about this pod are about.
    pub(super) fn about(&self) -> About {
        let record = self.record.borrow();
        About {
            kind: "Pod",
            namespace: Some(record.namespace.clone()),
            name: record.name.clone(),
            uid: record.uid.clone(),
            field: None,
        }
    }

    /// What events about a container are about.
    pub(super) fn about_container(&self, name: &str, init: bool) -> About {
        let list = if init { "initContainers" } else { "containers" };
        About {
            field: Some(format!("spec.{list}{{{name}}}")),
            ..self.about()
        }
    }

    /// Runs `work` with the pod's fields as the downward API shows them.
    pub(super) fn with_downward<T>(
        &self,
        pod: &k8s::Pod,
        work: impl FnOnce(Downward<'_>) -> T,
    ) -> T {
        let host_ips = &self.node.options.node_ips;
        let host_network = pod.spec.as_ref().and_then(|spec| spec.host_network) == Some(true);
        let pod_ips = if host_network {
            host_ips.clone()
        } else {
            self.record.borrow().ips.clone()
        };
        work(Downward {
            pod,
            pod_ips: &pod_ips,
            host_ips,
            node: &self.node.options.node,
        })
    }
}

/// Delays between attempts that failed: doubling from the first to the last.
#[derive(Debug)]
pub(super) struct Delays {
    next: Duration,
    last: Duration,
}

impl Delays {
    pub(super) fn new(first: Duration, last: Duration) -> Self {
        Self { next: first, last }
    }

    pub(super) async fn wait(&mut self) {
        let delay = self.next;
        self.next = (delay * 2).min(self.last);
        tokio::time::sleep(delay).await;
    }
}
