use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as k8s;
use kube::api::{DeleteParams, Preconditions};
use tokio::time::Instant;

use super::worker::{Delays, Worker};
use super::{Update, volumes};
use crate::plan::status::is_sidecar;
use crate::{disk, paths};

/// How long containers of a pod the API has forgotten have to end.
const FORGOTTEN_GRACE: i64 = 2;

impl Worker {
    /// Ends the pod: its containers, its network, its files, and at last its
    /// object in the API.
    pub(super) async fn terminate(&self) {
        let pod = self.pod();
        self.stop_containers(&pod).await;
        self.remove_sandbox().await;
        self.remove_files().await;
        self.delete_object(&pod).await;
    }

    async fn stop_containers(&self, pod: &k8s::Pod) {
        let about = self.about();
        let running: Vec<String> = self
            .record
            .borrow()
            .containers
            .iter()
            .filter(|(_, state)| state.instance.is_some())
            .map(|(name, _)| name.clone())
            .collect();
        for name in &running {
            self.node.recorder.normal(
                about.clone(),
                "Killing",
                format!("Stopping container {name}"),
            );
        }
        let begun = (Instant::now(), Timestamp::now());
        let grace = || self.grace_is_over(begun);
        if let Some(spec) = &pod.spec {
            let main = spec
                .containers
                .iter()
                .map(|container| self.end_container(pod, container, false, grace));
            let inits = spec.init_containers.as_deref().unwrap_or_default();
            let initial = inits
                .iter()
                .filter(|container| !is_sidecar(container))
                .map(|container| self.end_container(pod, container, true, grace));
            futures::future::join(
                futures::future::join_all(main),
                futures::future::join_all(initial),
            )
            .await;
            for sidecar in inits.iter().rev().filter(|container| is_sidecar(container)) {
                self.end_container(pod, sidecar, true, grace).await;
            }
        }
        // What an earlier run left of a pod whose manifest is not known.
        self.stop_all_at_once().await;
    }

    /// Waits until the pod's grace is over, which may be shortened meanwhile.
    async fn grace_is_over(&self, (begun, at): (Instant, Timestamp)) {
        let mut update = self.update.clone();
        loop {
            let deadline = begun + remaining(&update.borrow_and_update().clone(), at);
            tokio::select! {
                () = tokio::time::sleep_until(deadline) => return,
                changed = update.changed() => if changed.is_err() {
                    tokio::time::sleep_until(deadline).await;
                    return;
                },
            }
        }
    }

    async fn remove_files(&self) {
        let mut delays = Delays::new(Duration::from_millis(250), Duration::from_secs(30));
        let (namespace, name) = {
            let record = self.record.borrow();
            (record.namespace.clone(), record.name.clone())
        };
        let dir = paths::pod(&self.uid);
        loop {
            let removed = volumes::remove(&self.uid)
                .and_then(|()| disk::remove_dir(&paths::pod_logs(&namespace, &name, &self.uid)))
                .and_then(|()| disk::remove_dir(&dir));
            match removed {
                Ok(()) => return,
                Err(error) => {
                    tracing::warn!("removing the files of pod {namespace}/{name}: {error}");
                    delays.wait().await;
                }
            }
        }
    }

    /// Takes the pod out of the API, unless it is gone or another one has its
    /// name.
    async fn delete_object(&self, pod: &k8s::Pod) {
        let Some(name) = &pod.metadata.name else {
            return;
        };
        let parameters = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions {
                uid: Some(self.uid.clone()),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        let mut update = self.update.clone();
        let mut delays = Delays::new(Duration::from_millis(50), Duration::from_secs(2));
        while !update.borrow_and_update().gone {
            match self.api().delete(name, &parameters).await {
                Ok(_) => break,
                Err(kube::Error::Api(refusal)) if matches!(refusal.code, 404 | 409) => break,
                Err(error) => {
                    tracing::debug!("deleting pod {name}: {error}");
                    delays.wait().await;
                }
            }
        }
        // Finalizers may keep it in the API for a while; until then its
        // updates must not begin a new life.
        let _ = update.wait_for(|update| update.gone).await;
    }
}

/// How long the pod's containers have to end, counted from `at`.
fn remaining(update: &Update, at: Timestamp) -> Duration {
    let meta = &update.pod.metadata;
    let seconds = match (&meta.deletion_timestamp, meta.deletion_grace_period_seconds) {
        // The deletion timestamp is when the grace is over.
        (Some(over), Some(grace)) => (over.0.as_second() - at.as_second()).clamp(0, grace),
        _ if update.gone => FORGOTTEN_GRACE,
        _ => 30,
    };
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use rstest::rstest;
    use std::rc::Rc;

    fn at(second: i64) -> Timestamp {
        Timestamp::new(second, 0).unwrap()
    }

    #[rstest]
    #[case::just_asked(Some((130, 30)), false, 30)]
    #[case::kubelet_was_away(Some((110, 30)), false, 10)]
    #[case::long_over(Some((50, 30)), false, 0)]
    #[case::by_force(Some((100, 0)), false, 0)]
    #[case::forgotten(None, true, 2)]
    fn the_grace_ends_at_the_deletion_timestamp(
        #[case] deletion: Option<(i64, i64)>,
        #[case] gone: bool,
        #[case] seconds: u64,
    ) {
        let mut pod = k8s::Pod::default();
        pod.metadata.deletion_timestamp = deletion.map(|(over, _)| Time(at(over)));
        pod.metadata.deletion_grace_period_seconds = deletion.map(|(_, grace)| grace);
        let update = Update {
            pod: Rc::new(pod),
            gone,
        };
        assert_eq!(remaining(&update, at(100)).as_secs(), seconds);
    }
}
