//! Probes: how a container's health is asked, and what the answers mean.

mod count;
mod http;

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as k8s;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use count::{Count, Verdict};
pub(crate) use http::get as http_get;

/// How long after a container was not ready yet it is asked again, at first.
const FIRST_PAUSE: Duration = Duration::from_millis(10);

/// A running container to be asked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target<'a> {
    pub(crate) container: &'a k8s::Container,
    /// Its run's id.
    pub(crate) id: &'a str,
    /// The pod's primary address.
    pub(crate) ip: Option<IpAddr>,
}

/// What probing found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    /// The startup probe succeeded, or there is none.
    Started,
    /// Readiness changed.
    Ready(bool),
    /// A probe failed: its kind, and what was answered.
    Unhealthy(&'static str, String),
}

/// Asks a container until it has to be ended; the reason for that.
pub(crate) async fn attend(
    target: Target<'_>,
    already_started: bool,
    started_at: Timestamp,
    report: impl Fn(Change),
) -> String {
    let container = target.container;
    if !already_started {
        if let Some(probe) = &container.startup_probe {
            let verdict = ask(target, probe, "Startup", started_at, &report, |verdict| {
                verdict != Verdict::Unchanged
            })
            .await;
            if verdict == Verdict::Failed {
                return "failed startup probe".into();
            }
        }
        report(Change::Started);
    }
    let readiness = async {
        if container.readiness_probe.is_none() {
            report(Change::Ready(true));
        }
        match follow_readiness(target, started_at, &report).await {}
    };
    let liveness = async {
        match &container.liveness_probe {
            None => std::future::pending().await,
            Some(probe) => {
                ask(target, probe, "Liveness", started_at, &report, |verdict| {
                    verdict == Verdict::Failed
                })
                .await;
            }
        }
    };
    tokio::select! {
        () = readiness => {}
        () = liveness => {}
    }
    "failed liveness probe".into()
}

/// Asks for a container's readiness for as long as it is polled, as
/// [`attend`] does and as is done until the end of a container that is told to end.
pub(crate) async fn follow_readiness(
    target: Target<'_>,
    started_at: Timestamp,
    report: &impl Fn(Change),
) -> Infallible {
    if let Some(probe) = &target.container.readiness_probe {
        first_success(target, probe, started_at).await;
        ask(target, probe, "Readiness", started_at, report, |verdict| {
            match verdict {
                Verdict::Succeeded => report(Change::Ready(true)),
                Verdict::Failed => report(Change::Ready(false)),
                Verdict::Unchanged => {}
            }
            false
        })
        .await;
    }
    std::future::pending().await
}

/// Waits until a container answers that it is ready, at most until a period of the
/// probe has passed since its start. It is asked more often than in the probe's
/// rhythm, at first every few milliseconds, and what it answers counts for nothing:
/// most programs are there soon after, and their pods need not wait for the next
/// beat.
async fn first_success(target: Target<'_>, probe: &k8s::Probe, started_at: Timestamp) {
    wait_for_start(probe, started_at).await;
    let asking = async {
        let mut pause = FIRST_PAUSE;
        while once(target, probe).await.is_err() {
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
    };
    let until = initial_delay(probe) + period(probe);
    // Either way the probe goes on in its rhythm.
    let _ = tokio::time::timeout(until.saturating_sub(age(started_at)), asking).await;
}

/// Asks in the probe's rhythm until `done` says so of a verdict.
async fn ask(
    target: Target<'_>,
    probe: &k8s::Probe,
    kind: &'static str,
    started_at: Timestamp,
    report: &impl Fn(Change),
    done: impl Fn(Verdict) -> bool,
) -> Verdict {
    wait_for_start(probe, started_at).await;
    let timeout = seconds(probe.timeout_seconds, 1);
    let mut rhythm = tokio::time::interval(period(probe));
    rhythm.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut count = Count::new(probe.success_threshold, probe.failure_threshold);
    loop {
        rhythm.tick().await;
        let answer = match tokio::time::timeout(timeout, once(target, probe)).await {
            Ok(answer) => answer,
            Err(_) => Err(format!("no answer within {} s", timeout.as_secs())),
        };
        if let Err(output) = &answer {
            report(Change::Unhealthy(kind, output.clone()));
        }
        let verdict = count.answered(answer.is_ok());
        if done(verdict) {
            return verdict;
        }
    }
}

/// Waits for as long as the probe is not to ask after a container's start.
async fn wait_for_start(probe: &k8s::Probe, started_at: Timestamp) {
    tokio::time::sleep(initial_delay(probe).saturating_sub(age(started_at))).await;
}

fn age(started_at: Timestamp) -> Duration {
    Timestamp::now().duration_since(started_at).unsigned_abs()
}

fn initial_delay(probe: &k8s::Probe) -> Duration {
    seconds(probe.initial_delay_seconds, 0)
}

fn period(probe: &k8s::Probe) -> Duration {
    seconds(probe.period_seconds, 10)
}

fn seconds(value: Option<i32>, default: u64) -> Duration {
    let given = value.and_then(|value| u64::try_from(value).ok());
    Duration::from_secs(given.filter(|value| *value > 0).unwrap_or(default))
}

/// Asks once.
async fn once(target: Target<'_>, probe: &k8s::Probe) -> Result<(), String> {
    if let Some(exec) = &probe.exec {
        let words = exec.command.clone().unwrap_or_default();
        return match crate::container::run_command(target.id, &words).await? {
            (0, _) => Ok(()),
            (code, output) if output.is_empty() => Err(format!("command ended with {code}")),
            (_, output) => Err(output),
        };
    }
    if let Some(get) = &probe.http_get {
        return http::get(target.container, get, target.ip).await;
    }
    if let Some(tcp) = &probe.tcp_socket {
        let address = address(target.container, &tcp.port, tcp.host.as_deref(), target.ip).await?;
        return tokio::net::TcpStream::connect(address)
            .await
            .map(drop)
            .map_err(|error| format!("dial tcp {address}: {error}"));
    }
    if let Some(grpc) = &probe.grpc {
        let port = IntOrString::Int(grpc.port);
        let address = address(target.container, &port, None, target.ip).await?;
        return http::grpc_health(address, grpc.service.as_deref().unwrap_or_default()).await;
    }
    Err("the probe names no way to ask".into())
}

/// Where a probe's port is: by number or by the container's name for it, at the
/// pod's address unless the probe names a host.
async fn address(
    container: &k8s::Container,
    port: &IntOrString,
    host: Option<&str>,
    ip: Option<IpAddr>,
) -> Result<SocketAddr, String> {
    let number = match port {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(name) => container
            .ports
            .iter()
            .flatten()
            .find(|port| port.name.as_deref() == Some(name))
            .map(|port| port.container_port)
            .or_else(|| name.parse().ok()),
    };
    let number = number
        .and_then(|number| u16::try_from(number).ok())
        .ok_or_else(|| format!("port {port:?} is not one of the container's"))?;
    match host.filter(|host| !host.is_empty()) {
        None => {
            let ip = ip.ok_or("the pod has no address")?;
            Ok(SocketAddr::new(ip, number))
        }
        Some(host) => tokio::net::lookup_host((host, number))
            .await
            .map_err(|error| format!("looking up {host}: {error}"))?
            .next()
            .ok_or_else(|| format!("{host} has no address")),
    }
}
