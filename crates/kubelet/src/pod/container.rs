use std::convert::Infallible;
use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as k8s;
use rustix::process::Signal;

use super::worker::{Delays, Worker};
use crate::backoff::Backoff;
use crate::container;
use crate::plan::status::{restart_policy, restarts};
use crate::plan::{environment, names, oci};
use crate::record::{Container, Exit, Instance, Stage};
use crate::{cgroup, disk, paths, probe};

/// Why a container was not started.
enum Unstarted {
    /// Its manifest can't be carried out as things stand.
    Configuration(String),
    /// The runtime refused; noted as an end of its own.
    Refused,
}

impl Worker {
    /// Runs a container again and again as its restart policy says; the exit
    /// code of its last run.
    pub(super) async fn supervise(
        &self,
        pod: &k8s::Pod,
        container: &k8s::Container,
        init: bool,
    ) -> i32 {
        let Some(spec) = &pod.spec else { return 0 };
        let name = &container.name;
        let policy = restart_policy(spec, container, init);
        let mut backoff = Backoff::default();
        let mut configuration = None;
        loop {
            let (stage, instance) = {
                let record = self.record.borrow();
                match record.containers.get(name) {
                    Some(state) => (Some(state.stage.clone()), state.instance.clone()),
                    None => (None, None),
                }
            };
            if let Some(instance) = instance {
                self.follow(pod, container, &instance, init).await;
                continue;
            }
            if let Some(Stage::Terminated(exit)) = stage {
                if !restarts(policy, exit.code) {
                    return exit.code;
                }
                self.back_off(pod, container, init, &exit, &mut backoff)
                    .await;
            }
            match self.start(pod, spec, container, init).await {
                Ok(()) | Err(Unstarted::Refused) => configuration = None,
                Err(Unstarted::Configuration(reason)) => {
                    self.node.recorder.warning(
                        self.about_container(name, init),
                        "Failed",
                        format!("Error: {reason}"),
                    );
                    self.wait_because(name, "CreateContainerConfigError", Some(reason));
                    configuration
                        .get_or_insert_with(|| {
                            Delays::new(Duration::from_millis(500), Duration::from_secs(10))
                        })
                        .wait()
                        .await;
                }
            }
        }
    }

    async fn back_off(
        &self,
        pod: &k8s::Pod,
        container: &k8s::Container,
        init: bool,
        exit: &Exit,
        backoff: &mut Backoff,
    ) {
        let ran = exit.started_at.map_or(0, |started| {
            exit.finished_at.as_second() - started.as_second()
        });
        let delay = backoff.ended(Duration::from_secs(u64::try_from(ran).unwrap_or(0)));
        if delay.is_zero() {
            return;
        }
        let pod_name = format!(
            "{}_{}({})",
            pod.metadata.name.as_deref().unwrap_or_default(),
            pod.metadata.namespace.as_deref().unwrap_or_default(),
            self.uid
        );
        let message = format!(
            "back-off {delay:?} restarting failed container={} pod={pod_name}",
            container.name
        );
        self.wait_because(&container.name, "CrashLoopBackOff", Some(message));
        self.node.recorder.warning(
            self.about_container(&container.name, init),
            "BackOff",
            format!(
                "Back-off restarting failed container {} in pod {pod_name}",
                container.name
            ),
        );
        tokio::time::sleep(delay).await;
    }

    /// Starts a run of a container and notes it.
    async fn start(
        &self,
        pod: &k8s::Pod,
        spec: &k8s::PodSpec,
        container: &k8s::Container,
        init: bool,
    ) -> Result<(), Unstarted> {
        let name = &container.name;
        let about = || self.about_container(name, init);
        let image = self.ensure_image(container, init).await;
        let attempt = self
            .record
            .borrow()
            .containers
            .get(name)
            .map_or(0, |c| c.attempts);
        let id = format!("{}-{name}-{attempt}", self.uid);
        let launch = self
            .plan(pod, spec, container, &image, &id, attempt)
            .await
            .map_err(Unstarted::Configuration)?;
        self.discard_old_logs(name, attempt);
        let outcome = container::start(launch, |instance| {
            self.modify_container(name, |state| {
                if let Stage::Terminated(exit) = &state.stage {
                    state.last = Some(exit.clone());
                }
                state.attempts = attempt + 1;
                state.restarts = attempt;
                state.instance = Some(instance);
                state.image.clone_from(&image.name);
                state.image_id.clone_from(&image.id);
                state.started = false;
                state.ready = false;
            });
            self.node
                .recorder
                .normal(about(), "Created", format!("Created container: {name}"));
        })
        .await;
        match outcome {
            Ok(process) => {
                self.node
                    .recorder
                    .normal(about(), "Started", format!("Started container {name}"));
                self.modify_container(name, |state| {
                    if let Some(instance) = &mut state.instance {
                        instance.init = Some(process);
                    }
                    state.stage = Stage::Running {
                        started_at: Timestamp::now(),
                    };
                });
                Ok(())
            }
            Err(reason) => {
                self.node
                    .recorder
                    .warning(about(), "Failed", format!("Error: {reason}"));
                let instance = self
                    .record
                    .borrow()
                    .containers
                    .get(name)
                    .and_then(|state| state.instance.clone());
                let exit = match instance {
                    Some(instance) => container::exit_of(&instance, None).await,
                    None => Exit {
                        code: 128,
                        signal: None,
                        reason: "StartError".into(),
                        message: Some(reason),
                        started_at: None,
                        finished_at: Timestamp::now(),
                        container_id: id.clone(),
                    },
                };
                // Counts as a run also when not even the monitor was started.
                self.modify_container(name, |state| {
                    state.attempts = attempt + 1;
                    state.restarts = attempt;
                });
                self.note_end(name, &id, exit, false);
                Err(Unstarted::Refused)
            }
        }
    }

    /// All that the runtime has to know.
    async fn plan(
        &self,
        pod: &k8s::Pod,
        spec: &k8s::PodSpec,
        container: &k8s::Container,
        image: &crate::images::Image,
        id: &str,
        attempt: u32,
    ) -> Result<container::Launch, String> {
        let user =
            container::resolve_user(spec, container, image.config.user.as_deref(), &image.layers)?;
        let hostname = names::hostname(pod);
        let mut variables = environment::Environment::default();
        for pair in &image.config.env {
            if let Some((key, value)) = pair.split_once('=') {
                variables.set(key, value);
            }
        }
        variables.set("HOSTNAME", hostname.as_str());
        if variables.get("HOME").is_none() {
            variables.set("HOME", user.home.as_deref().unwrap_or("/"));
        }
        let services = self.services(spec).await?;
        environment::service_variables(&services, &mut variables);
        let sources = self.sources(container).await?;
        self.with_downward(pod, |downward| {
            environment::container_variables(container, &sources, downward, &mut variables)
        })?;
        let mounts = self.mounts(pod, container, &variables, attempt)?;
        let pause = self
            .record
            .borrow()
            .sandbox
            .as_ref()
            .map(|sandbox| sandbox.pause.pid)
            .ok_or("the pod's sandbox is gone")?;
        let config = oci::config(&oci::Context {
            pod,
            container,
            image: &image.config,
            environment: &variables,
            user,
            mounts,
            pause,
            available: &self.node.capabilities,
        })?;
        let cgroup = if self.node.limits {
            Some(cgroup::make(id, container.resources.as_ref())?)
        } else {
            None
        };
        let record = self.record.borrow();
        Ok(container::Launch {
            id: id.into(),
            config,
            layers: image.layers.clone(),
            log: paths::container_log(
                &record.namespace,
                &record.name,
                &self.uid,
                &container.name,
                attempt,
            ),
            cgroup,
        })
    }

    /// Keeps the logs of the run before, as `kubectl logs -p` wants them.
    fn discard_old_logs(&self, name: &str, attempt: u32) {
        let Some(old) = attempt.checked_sub(2) else {
            return;
        };
        let record = self.record.borrow();
        let log = paths::container_log(&record.namespace, &record.name, &self.uid, name, old);
        let _ = disk::remove_file(&log);
        for age in 1..=4 {
            let mut older = log.clone().into_os_string();
            older.push(format!(".{age}"));
            let _ = disk::remove_file(&PathBuf::from(older));
        }
    }

    /// Watches a run to its end, probes it, and notes the end.
    async fn follow(
        &self,
        pod: &k8s::Pod,
        container: &k8s::Container,
        instance: &Instance,
        init: bool,
    ) {
        let name = &container.name;
        if instance.init.is_none() {
            // The kubelet died while it was being started.
            container::stop(instance, Signal::KILL, std::future::ready(())).await;
        }
        let message = self.message_path(name, instance);
        let exit = tokio::select! {
            exit = container::exit_of(instance, Some(&message)) => exit,
            reason = self.attend(pod, container, instance, init) => {
                self.node.recorder.normal(
                    self.about_container(name, init),
                    "Killing",
                    format!("Container {name} {reason}, will be restarted"),
                );
                self.modify_container(name, |state| state.ready = false);
                let spec_grace = pod.spec.as_ref().and_then(|s| s.termination_grace_period_seconds);
                let probe_grace = container.liveness_probe.as_ref()
                    .and_then(|probe| probe.termination_grace_period_seconds);
                let seconds = u64::try_from(probe_grace.or(spec_grace).unwrap_or(30)).unwrap_or(0);
                self.stop_container(container, init, || tokio::time::sleep(Duration::from_secs(seconds))).await;
                return;
            }
        };
        self.note_end(name, &instance.id, exit, init);
    }

    /// Runs the postStart hook and the probes of a run; returns only when it
    /// has to be ended, with the reason.
    async fn attend(
        &self,
        pod: &k8s::Pod,
        container: &k8s::Container,
        instance: &Instance,
        init: bool,
    ) -> String {
        let name = &container.name;
        let already = self
            .record
            .borrow()
            .containers
            .get(name)
            .is_some_and(|state| state.started);
        let hook = container
            .lifecycle
            .as_ref()
            .and_then(|l| l.post_start.as_ref());
        if let (Some(hook), false) = (hook, already)
            && let Err(reason) = self.hook(container, instance, hook).await
        {
            self.node.recorder.warning(
                self.about_container(name, init),
                "FailedPostStartHook",
                format!("PostStartHook failed: {reason}"),
            );
            return "FailedPostStartHook".into();
        }
        let ip = self.own_ip(pod);
        let target = probe::Target {
            container,
            id: &instance.id,
            ip,
        };
        let started_at = Timestamp::now();
        probe::attend(target, already, started_at, |change| {
            self.note_probe(name, init, change);
        })
        .await
    }

    fn note_probe(&self, name: &str, init: bool, change: probe::Change) {
        match change {
            probe::Change::Started => self.modify_container(name, |state| state.started = true),
            probe::Change::Ready(ready) => {
                self.modify_container(name, |state| state.ready = ready);
            }
            probe::Change::Unhealthy(kind, output) => self.node.recorder.warning(
                self.about_container(name, init),
                "Unhealthy",
                format!("{kind} probe failed: {output}"),
            ),
        }
    }

    /// Ends a container's run with its pod. Until it has ended its readiness is
    /// asked: a Service that has no other endpoint has to know whether it still
    /// serves (KEP-1669).
    pub(super) async fn end_container<F: Future<Output = ()>>(
        &self,
        pod: &k8s::Pod,
        container: &k8s::Container,
        init: bool,
        grace: impl Fn() -> F,
    ) {
        let state = self
            .record
            .borrow()
            .containers
            .get(&container.name)
            .cloned();
        let readiness = async {
            // One that has not started is not ready.
            if let Some(Container {
                instance: Some(instance),
                stage: Stage::Running { started_at },
                started: true,
                ..
            }) = &state
            {
                let target = probe::Target {
                    container,
                    id: &instance.id,
                    ip: self.own_ip(pod),
                };
                let note = |change| self.note_probe(&container.name, init, change);
                match probe::follow_readiness(target, *started_at, &note).await {}
            }
            std::future::pending::<Infallible>().await
        };
        tokio::select! {
            () = self.stop_container(container, init, grace) => {}
            never = readiness => match never {},
        }
    }

    /// Where probes and hooks find the pod.
    pub(super) fn own_ip(&self, pod: &k8s::Pod) -> Option<std::net::IpAddr> {
        self.with_downward(pod, |downward| downward.pod_ips.first().copied())
    }

    /// Notes how a run ended and removes what it left.
    pub(super) fn note_end(&self, name: &str, id: &str, mut exit: Exit, init: bool) {
        if exit.started_at.is_none()
            && let Some(state) = self.record.borrow().containers.get(name)
            && let Stage::Running { started_at } = state.stage
        {
            exit.started_at = Some(started_at);
        }
        self.modify_container(name, |state| {
            if let Stage::Terminated(before) = &state.stage {
                state.last = Some(before.clone());
            }
            // Ready says of an init container that it succeeded.
            state.ready = init && exit.code == 0;
            state.started = false;
            state.instance = None;
            state.stage = Stage::Terminated(exit);
        });
        if let Err(error) = disk::remove_dir(&paths::container(id)) {
            tracing::warn!("removing what container {id} left: {error}");
        }
    }

    /// Ends a container's run if there is one: preStop hook, its signal, and
    /// when the grace is over the end by force.
    pub(super) async fn stop_container<F: Future<Output = ()>>(
        &self,
        container: &k8s::Container,
        init: bool,
        grace: impl Fn() -> F,
    ) {
        let instance = self
            .record
            .borrow()
            .containers
            .get(&container.name)
            .and_then(|state| state.instance.clone());
        let Some(instance) = instance else { return };
        let message = self.message_path(&container.name, &instance);
        let over = async {
            let hook = container
                .lifecycle
                .as_ref()
                .and_then(|l| l.pre_stop.as_ref());
            if let Some(hook) = hook {
                tokio::select! {
                    done = self.hook(container, &instance, hook) => {
                        if let Err(reason) = done {
                            self.node.recorder.warning(
                                self.about_container(&container.name, init),
                                "FailedPreStopHook",
                                format!("PreStopHook failed: {reason}"),
                            );
                        }
                    }
                    () = grace() => {}
                }
            }
            container::stop(&instance, stop_signal(container), grace()).await;
            container::exit_of(&instance, Some(&message)).await
        };
        let exit = over.await;
        self.note_end(&container.name, &instance.id, exit, init);
    }

    /// Ends all runs by force: their sandbox is gone.
    pub(super) async fn stop_all_at_once(&self) {
        let running: Vec<(String, Instance)> = self
            .record
            .borrow()
            .containers
            .iter()
            .filter_map(|(name, state)| Some((name.clone(), state.instance.clone()?)))
            .collect();
        futures::future::join_all(running.iter().map(|(name, instance)| async {
            container::stop(instance, Signal::KILL, std::future::ready(())).await;
            let exit = container::exit_of(instance, None).await;
            self.note_end(name, &instance.id, exit, false);
        }))
        .await;
    }

    /// The file a container may leave its last words in.
    pub(super) fn message_path(&self, name: &str, instance: &Instance) -> PathBuf {
        let attempt = instance.id.rsplit('-').next().unwrap_or("0");
        paths::pod(&self.uid)
            .join("messages")
            .join(format!("{name}-{attempt}"))
    }

    /// Runs a lifecycle hook.
    async fn hook(
        &self,
        container: &k8s::Container,
        instance: &Instance,
        hook: &k8s::LifecycleHandler,
    ) -> Result<(), String> {
        if let Some(sleep) = &hook.sleep {
            let seconds = u64::try_from(sleep.seconds).unwrap_or(0);
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            return Ok(());
        }
        if let Some(exec) = &hook.exec {
            let words = exec.command.clone().unwrap_or_default();
            return match container::run_command(&instance.id, &words).await? {
                (0, _) => Ok(()),
                (code, output) => Err(format!("the command ended with {code}: {output}")),
            };
        }
        if let Some(get) = &hook.http_get {
            let ip = self.own_ip(&self.pod());
            return probe::http_get(container, get, ip).await.map(drop);
        }
        Ok(())
    }
}

/// The signal that asks a container to end; its manifest may choose one.
fn stop_signal(container: &k8s::Container) -> Signal {
    let named = container
        .lifecycle
        .as_ref()
        .and_then(|lifecycle| lifecycle.stop_signal.as_deref());
    match named.unwrap_or("SIGTERM") {
        "SIGHUP" => Signal::HUP,
        "SIGINT" => Signal::INT,
        "SIGQUIT" => Signal::QUIT,
        "SIGUSR1" => Signal::USR1,
        "SIGUSR2" => Signal::USR2,
        "SIGKILL" => Signal::KILL,
        "SIGWINCH" => Signal::WINCH,
        _ => Signal::TERM,
    }
}
