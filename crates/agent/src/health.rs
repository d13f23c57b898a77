//! What the agent says about itself over HTTP: /healthz, /readyz, /metrics.

use std::fmt::Write as _;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// Longest request read, bytes.
const LONGEST_REQUEST: usize = 8 * 1024;
/// How long a client may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Work that is not in force after this long makes the agent unhealthy.
const STUCK: Duration = Duration::from_secs(120);

/// How the agent stands.
#[derive(Debug, Default)]
pub(crate) struct Status {
    /// Everything was in force once, and pods may come.
    pub(crate) ready: bool,
    /// Since when something wanted is not in force.
    pub(crate) behind_since: Option<Instant>,
    /// What is not as it should be, for people.
    pub(crate) problems: Vec<String>,
    /// Numbers: name, what it is, value.
    pub(crate) metrics: Vec<(&'static str, &'static str, u64)>,
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
    /// What is not as it should be, for people.
    pub problems: Vec<String>,
}

impl Status {
    /// How it stands now.
    pub(crate) fn snapshot(&self) -> Snapshot {
        Snapshot {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ready: self.ready,
            behind_seconds: self.behind_since.map(|since| since.elapsed().as_secs()),
            problems: self.problems.clone(),
        }
    }
}

/// The status, as it is shared between the loop that knows and the server that tells.
pub(crate) type Shared = Arc<Mutex<Status>>;

/// Serves until the process ends.
pub(crate) async fn serve(listener: TcpListener, status: Shared) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let status = status.clone();
                tokio::spawn(async move {
                    // A client that goes away harms nobody but itself.
                    let _ = tokio::time::timeout(PATIENCE, answer(stream, &status)).await;
                });
            }
            // Out of descriptors, most likely: they come back.
            Err(error) => {
                tracing::debug!("health: cannot accept a connection: {error}");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

async fn answer(mut stream: TcpStream, status: &Shared) -> io::Result<()> {
    let mut request = Vec::new();
    while !request.windows(4).any(|window| window == b"\r\n\r\n") {
        if request.len() >= LONGEST_REQUEST || stream.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
    }
    let first_line = request
        .split(|byte| *byte == b'\r')
        .next()
        .unwrap_or_default();
    let (code, body) = {
        let status = status.lock().unwrap_or_else(PoisonError::into_inner);
        respond(
            &String::from_utf8_lossy(first_line),
            &status,
            Instant::now(),
        )
    };
    let head = format!(
        "HTTP/1.1 {code}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}

fn respond(first_line: &str, status: &Status, now: Instant) -> (&'static str, String) {
    const FINE: &str = "200 OK";
    const NOT_SO: &str = "503 Service Unavailable";
    let mut words = first_line.split(' ');
    if words.next() != Some("GET") {
        return ("405 Method Not Allowed", "only GET\n".into());
    }
    let path = words.next().unwrap_or_default();
    let mut lines: String = status
        .problems
        .iter()
        .map(|problem| format!("{problem}\n"))
        .collect();
    match path.split('?').next().unwrap_or_default() {
        "/healthz" | "/livez" => {
            let stuck = status
                .behind_since
                .is_some_and(|since| now.duration_since(since) > STUCK);
            lines.insert_str(0, if stuck { "stuck\n" } else { "ok\n" });
            (if stuck { NOT_SO } else { FINE }, lines)
        }
        "/readyz" => {
            lines.insert_str(0, if status.ready { "ok\n" } else { "not ready\n" });
            (if status.ready { FINE } else { NOT_SO }, lines)
        }
        "/metrics" => {
            let mut text = String::new();
            let ready = (
                "podwire_ready",
                "Whether pods may come.",
                u64::from(status.ready),
            );
            let problems = u64::try_from(status.problems.len()).unwrap_or(u64::MAX);
            let problems = (
                "podwire_problems",
                "Things not as they should be.",
                problems,
            );
            for (name, help, value) in [ready, problems].iter().chain(&status.metrics) {
                let kind = if name.ends_with("_total") {
                    "counter"
                } else {
                    "gauge"
                };
                // Writing to a String cannot fail.
                let _ = writeln!(
                    text,
                    "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}"
                );
            }
            (FINE, text)
        }
        _ => (
            "404 Not Found",
            "there are /healthz, /readyz and /metrics\n".into(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::healthy("GET /healthz HTTP/1.1", None, false, "200", "ok\n")]
    #[case::behind_for_a_moment("GET /healthz HTTP/1.1", Some(1), false, "200", "ok\n")]
    #[case::stuck("GET /healthz HTTP/1.1", Some(121), true, "503", "stuck\n")]
    #[case::not_ready("GET /readyz HTTP/1.1", None, false, "503", "not ready\n")]
    #[case::ready("GET /readyz?verbose HTTP/1.1", None, true, "200", "ok\n")]
    #[case::unknown("GET / HTTP/1.1", None, true, "404", "there are")]
    #[case::no_get("POST /healthz HTTP/1.1", None, true, "405", "only GET")]
    #[case::nonsense("\u{fffd}", None, true, "405", "only GET")]
    fn answers_say_how_it_stands(
        #[case] request: &str,
        #[case] behind_seconds: Option<u64>,
        #[case] ready: bool,
        #[case] code: &str,
        #[case] begins: &str,
    ) {
        let start = Instant::now();
        let now = start + Duration::from_secs(behind_seconds.unwrap_or(0));
        let status = Status {
            ready,
            behind_since: behind_seconds.map(|_| start),
            ..Status::default()
        };
        let (answer, body) = respond(request, &status, now);
        assert!(answer.starts_with(code), "{answer}");
        assert!(body.starts_with(begins), "{body}");
    }

    #[test]
    fn metrics_are_in_the_text_format() {
        let status = Status {
            metrics: vec![("podwire_syncs_total", "Syncs.", 7)],
            ..Status::default()
        };
        let (_, text) = respond("GET /metrics HTTP/1.1", &status, Instant::now());
        assert!(
            text.contains("# TYPE podwire_ready gauge\npodwire_ready 0\n"),
            "{text}"
        );
        assert!(text.contains("# TYPE podwire_syncs_total counter\npodwire_syncs_total 7\n"));
    }
}
