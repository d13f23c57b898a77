use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as k8s;
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};

use super::worker::{Delays, Worker};
use crate::plan::status::pod_status;

/// Fields of a status that must be taken away by name when they are no more.
const OPTIONAL: [&str; 5] = [
    "reason",
    "message",
    "podIP",
    "podIPs",
    "initContainerStatuses",
];

impl Worker {
    pub(super) fn api(&self) -> Api<k8s::Pod> {
        let namespace = self.record.borrow().namespace.clone();
        Api::namespaced(self.node.client.clone(), &namespace)
    }

    /// Keeps the API's status of the pod as the record has it; never returns.
    pub(super) async fn keep_reporting(&self) {
        let mut update = self.update.clone();
        let mut delays = None;
        let mut sent: Option<k8s::PodStatus> = None;
        loop {
            let changed = self.changed.notified();
            let mut changed = std::pin::pin!(changed);
            changed.as_mut().enable();
            let seen = update.borrow_and_update().clone();
            // Before the first record there is nothing to say.
            let known = !self.record.borrow().containers.is_empty();
            if known && !seen.gone {
                match self.report(&seen.pod, &mut sent).await {
                    Ok(()) => delays = None,
                    Err(error) => {
                        tracing::debug!("reporting the status of pod {}: {error}", self.uid);
                        let delays = delays.get_or_insert_with(|| {
                            Delays::new(Duration::from_millis(50), Duration::from_secs(2))
                        });
                        delays.wait().await;
                        continue;
                    }
                }
            }
            tokio::select! {
                () = changed => {}
                _ = update.changed() => {}
            }
        }
    }

    /// Sends the status when it is not what was sent last.
    async fn report(
        &self,
        pod: &k8s::Pod,
        sent: &mut Option<k8s::PodStatus>,
    ) -> Result<(), kube::Error> {
        let before = sent.as_ref().or(pod.status.as_ref());
        let mut seen = pod.clone();
        if let Some(sent) = sent.as_ref() {
            keep_own_times(&mut seen, sent);
        }
        let status = pod_status(
            &seen,
            &self.record.borrow(),
            &self.node.options.node_ips,
            Timestamp::now(),
        );
        if before == Some(&status) {
            return Ok(());
        }
        let mut value = json!(status);
        for field in OPTIONAL {
            if value.get(field).is_none() && before.is_some_and(|b| json!(b).get(field).is_some()) {
                value[field] = Value::Null;
            }
        }
        for condition in value["conditions"].as_array_mut().into_iter().flatten() {
            for field in ["reason", "message"] {
                // Conditions are merged by type: what is left out would stay.
                if condition.get(field).is_none() {
                    condition[field] = Value::Null;
                }
            }
        }
        let patch = json!({"metadata": {"uid": self.uid}, "status": value});
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let answer = self
            .api()
            .patch_status(name, &PatchParams::default(), &Patch::Strategic(patch))
            .await;
        match answer {
            Ok(_) => {
                *sent = Some(status);
                Ok(())
            }
            // Gone, or another pod of this name: the watch will tell.
            Err(kube::Error::Api(refusal)) if matches!(refusal.code, 404 | 409) => {
                *sent = Some(status);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}

/// The watch may lag behind what was sent: transition times are taken from the
/// latter.
fn keep_own_times(pod: &mut k8s::Pod, sent: &k8s::PodStatus) {
    let status = pod.status.get_or_insert_default();
    let conditions = status.conditions.get_or_insert_default();
    for own in sent.conditions.iter().flatten() {
        let others = !matches!(
            own.type_.as_str(),
            "PodReadyToStartContainers" | "Initialized" | "ContainersReady" | "Ready"
        );
        if others {
            continue;
        }
        conditions.retain(|condition| condition.type_ != own.type_);
        conditions.push(own.clone());
    }
}
