//! What the agent says about itself over HTTP: `/healthz`, `/livez`, `/readyz`
//! to everybody, `/metrics` to this node.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use http::StatusCode;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;

use crate::http::{self as web, Response};
use crate::metrics::Metrics;

/// Work that is not in force after this long makes the agent unhealthy.
const STUCK: Duration = Duration::from_secs(120);
/// What Prometheus reads.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// How the agent stands.
#[derive(Debug, Default)]
pub(crate) struct Status {
    /// Everything was in force once, and pods may come.
    pub(crate) ready: bool,
    /// Since when something wanted is not in force.
    pub(crate) behind_since: Option<Instant>,
    /// Why this node should get no new traffic from load balancers: it is
    /// going away. It works all the same.
    pub(crate) leaving: Option<&'static str>,
    /// What is not as it should be, for people.
    pub(crate) problems: Vec<String>,
    /// Changes of Services and endpoints on their way into the kernel.
    pub(crate) changes: Changes,
}

/// Changes on their way into the kernel, by the time the oldest was queued.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    queued: Option<Instant>,
    at_work: Option<Instant>,
}

impl Changes {
    /// A change was queued.
    pub(crate) fn queue(&mut self, now: Instant) {
        self.queued.get_or_insert(now);
    }

    /// What is queued is being taken to the kernel.
    pub(crate) fn begin(&mut self) {
        let queued = self.queued.take();
        self.at_work = self.at_work.or(queued);
    }

    /// What was begun is in force.
    pub(crate) fn done(&mut self) {
        self.at_work = None;
    }

    fn oldest(self) -> Option<Instant> {
        self.at_work.or(self.queued)
    }
}

/// What `podwire inspect status` is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The agent's version.
    pub version: String,
    /// Whether everything was in force once, so that pods may come.
    pub ready: bool,
    /// How long something wanted has not been in force, in seconds; absent when all is.
    pub behind_seconds: Option<u64>,
    /// Why this node gets no new traffic from load balancers, if so.
    pub leaving: Option<String>,
    /// What is not as it should be, for people.
    pub problems: Vec<String>,
}

impl Status {
    /// Since when something wanted has not been in force, be it known or only queued.
    fn oldest(&self) -> Option<Instant> {
        let both = [self.behind_since, self.changes.oldest()];
        both.into_iter().flatten().min()
    }

    /// Whether what is wanted reaches the kernel in time.
    pub(crate) fn is_live(&self, now: Instant) -> bool {
        self.oldest()
            .is_none_or(|since| now.saturating_duration_since(since) <= STUCK)
    }

    /// How it stands now.
    pub(crate) fn snapshot(&self, now: Instant) -> Snapshot {
        Snapshot {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ready: self.ready,
            behind_seconds: self
                .oldest()
                .map(|since| now.saturating_duration_since(since).as_secs()),
            leaving: self.leaving.map(str::to_owned),
            problems: self.problems.clone(),
        }
    }
}

/// The status, as it is shared between those who know and the servers that tell.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shared(Arc<Mutex<Status>>);

impl Shared {
    /// The status, for a moment.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Status> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Serves what load balancers and the kubelet ask, until the process ends.
pub(crate) async fn serve(listener: TcpListener, status: Shared, metrics: Arc<Metrics>) {
    web::listen(listener, move |request| {
        let response = health(request.uri().path(), &status.lock(), Instant::now());
        metrics.health_asked(request.uri().path(), response.status());
        std::future::ready(response)
    })
    .await;
}

/// Serves what Prometheus asks, until the process ends.
pub(crate) async fn serve_metrics(listener: TcpListener, metrics: Arc<Metrics>) {
    web::listen(listener, move |request| {
        std::future::ready(match request.uri().path() {
            "/metrics" => web::answer(StatusCode::OK, OPEN_METRICS, metrics.text()),
            _ => web::text(StatusCode::NOT_FOUND, "there is /metrics\n"),
        })
    })
    .await;
}

fn health(path: &str, status: &Status, now: Instant) -> Response {
    let live = status.is_live(now);
    let (fine, word) = match path {
        "/healthz" => match status.leaving {
            _ if !live => (false, "stuck"),
            Some(why) => (false, why),
            None => (true, "ok"),
        },
        "/livez" => (live, if live { "ok" } else { "stuck" }),
        "/readyz" => (status.ready, if status.ready { "ok" } else { "not ready" }),
        _ => {
            let text = "there are /healthz, /livez and /readyz\n";
            return web::text(StatusCode::NOT_FOUND, text);
        }
    };
    let mut lines = format!("{word}\n");
    for problem in &status.problems {
        lines.push_str(problem);
        lines.push('\n');
    }
    let code = match fine {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    };
    web::text(code, lines)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const LEAVING: Option<&str> = Some("node is being deleted");

    #[rstest]
    #[case::healthy("/healthz", 0, None, 200)]
    #[case::behind_for_a_moment("/healthz", 1, None, 200)]
    #[case::stuck("/healthz", 121, None, 503)]
    #[case::leaving("/healthz", 0, LEAVING, 503)]
    #[case::leaving_is_no_reason_to_be_restarted("/livez", 1, LEAVING, 200)]
    #[case::stuck_is("/livez", 121, None, 503)]
    #[case::ready("/readyz", 121, LEAVING, 200)]
    #[case::unknown("/", 0, None, 404)]
    fn health_is_about_changes_in_time_and_nodes_that_stay(
        #[case] path: &str,
        #[case] behind_seconds: u64,
        #[case] leaving: Option<&'static str>,
        #[case] code: u16,
    ) {
        let start = Instant::now();
        let now = start + Duration::from_secs(behind_seconds);
        let known = Status {
            ready: true,
            behind_since: Some(start),
            leaving,
            ..Status::default()
        };
        assert_eq!(health(path, &known, now).status(), code);
        let mut queued = Status {
            ready: true,
            leaving,
            ..Status::default()
        };
        queued.changes.queue(start);
        assert_eq!(health(path, &queued, now).status(), code, "only queued");
    }

    #[test]
    fn a_change_that_arrives_meanwhile_is_not_taken_for_done() {
        let start = Instant::now();
        let later = start + Duration::from_secs(60);
        let mut changes = Changes::default();
        changes.queue(start);
        changes.begin();
        changes.queue(later);
        assert_eq!(changes.oldest(), Some(start));
        changes.done();
        assert_eq!(changes.oldest(), Some(later));
        changes.begin();
        // It failed; the next try takes it along.
        changes.queue(later + Duration::from_secs(60));
        changes.begin();
        assert_eq!(changes.oldest(), Some(later));
        changes.done();
        assert_eq!(changes.oldest(), None);
    }

    #[test]
    fn an_agent_is_not_ready_before_it_is() {
        let status = Status::default();
        assert_eq!(health("/readyz", &status, Instant::now()).status(), 503);
    }
}
