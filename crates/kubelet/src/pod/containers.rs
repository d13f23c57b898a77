use futures::StreamExt;
use futures::future::LocalBoxFuture;
use futures::stream::FuturesUnordered;
use k8s_openapi::api::core::v1 as k8s;

use super::worker::Worker;
use crate::plan::status::is_sidecar;
use crate::record::Stage;

/// Containers that run side by side.
type Running<'a> = FuturesUnordered<LocalBoxFuture<'a, i32>>;

impl Worker {
    /// Runs init containers in their order, then the pod's containers, until
    /// the latter have ended for good.
    pub(super) async fn run_containers(&self) {
        let pod = self.pod();
        let Some(spec) = &pod.spec else { return };
        let mut sidecars: Running<'_> = FuturesUnordered::new();
        for init in spec.init_containers.iter().flatten() {
            if is_sidecar(init) {
                sidecars.push(Box::pin(self.supervise(&pod, init, true)));
                let name = init.name.clone();
                let started = self.until(|record| {
                    record.initialized || record.containers.get(&name).is_some_and(|c| c.started)
                });
                drive(&mut sidecars, started).await;
            } else if !self.record.borrow().initialized {
                let code = drive(&mut sidecars, self.supervise(&pod, init, true)).await;
                if code != 0 {
                    // Only with restartPolicy Never: the pod has failed.
                    self.stop_sidecars(spec, sidecars).await;
                    return;
                }
            }
        }
        self.modify(|record| {
            record.initialized = true;
            for container in &spec.containers {
                if let Some(state) = record.containers.get_mut(&container.name)
                    && state.attempts == 0
                {
                    state.stage = Stage::Waiting {
                        reason: "ContainerCreating".into(),
                        message: None,
                    };
                }
            }
        });
        let mut main: Running<'_> = FuturesUnordered::new();
        for container in &spec.containers {
            main.push(Box::pin(self.supervise(&pod, container, false)));
        }
        drive(&mut sidecars, async {
            while main.next().await.is_some() {}
        })
        .await;
        self.stop_sidecars(spec, sidecars).await;
    }

    /// Ends the sidecars of a pod whose containers are done.
    async fn stop_sidecars(&self, spec: &k8s::PodSpec, sidecars: Running<'_>) {
        drop(sidecars);
        let grace = u64::try_from(spec.termination_grace_period_seconds.unwrap_or(30)).unwrap_or(0);
        let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(grace);
        for init in spec.init_containers.iter().flatten().rev() {
            if is_sidecar(init) {
                self.stop_container(init, true, || tokio::time::sleep_until(deadline))
                    .await;
            }
        }
    }
}

/// Waits for `work` while the sidecars run beside it.
async fn drive<T>(sidecars: &mut Running<'_>, work: impl Future<Output = T>) -> T {
    let beside = async {
        while sidecars.next().await.is_some() {}
        std::future::pending::<T>().await
    };
    tokio::select! {
        done = work => done,
        never = beside => never,
    }
}
