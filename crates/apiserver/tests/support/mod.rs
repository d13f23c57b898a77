//! An API server of a test's own, and plain HTTP to its router.
#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "each test binary uses a part; helpers of tests fail loudly"
)]

use std::path::PathBuf;
use std::sync::Arc;

use axum::body::Body;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt;
use podwire_apiserver::log_source::FileLogs;
use podwire_apiserver::{Config, Server};
use serde_json::Value;
use tempfile::TempDir;
use tower::ServiceExt;

pub(crate) struct Cluster {
    pub(crate) dir: TempDir,
    pub(crate) server: Server,
}

/// An answer, read whole.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) code: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Value,
    pub(crate) text: String,
}

impl Answer {
    #[track_caller]
    pub(crate) fn ok(self) -> Value {
        assert!(self.code.is_success(), "{}: {}", self.code, self.text);
        self.body
    }

    #[track_caller]
    pub(crate) fn fails(self, code: u16, reason: &str) -> String {
        assert_eq!(self.code, code, "{}", self.text);
        assert_eq!(self.body["kind"], "Status");
        assert_eq!(self.body["reason"], reason, "{}", self.text);
        self.body["message"].as_str().unwrap().to_owned()
    }
}

pub(crate) fn config(dir: &std::path::Path) -> Config {
    let logs: PathBuf = dir.join("logs");
    Config {
        store: dir.join("store.redb"),
        pki: dir.join("pki"),
        service_ranges: vec![
            "10.96.0.0/12".parse().unwrap(),
            "fd00:96::/112".parse().unwrap(),
        ],
        advertise: vec![
            "192.168.64.2".parse().unwrap(),
            "fd00:64::2".parse().unwrap(),
        ],
        advertise_port: 6443,
        logs: Arc::new(FileLogs::new(move |node| logs.join(node))),
    }
}

impl Cluster {
    pub(crate) async fn new() -> Self {
        Self::with(|_| {}).await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut Config)) -> Self {
        // In memory: each change would wait for the disk, which nothing here is about.
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let mut config = config(dir.path());
        change(&mut config);
        let server = Server::open(config).await.unwrap();
        Self { dir, server }
    }

    pub(crate) async fn send(&self, request: Request<Body>) -> http::Response<Body> {
        self.server.router().oneshot(request).await.unwrap()
    }

    pub(crate) async fn call(
        &self,
        method: &str,
        path: &str,
        content_type: &str,
        accept: &str,
        body: impl Into<Body>,
    ) -> Answer {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", content_type)
            .header("accept", accept)
            .header("user-agent", "test/1")
            .body(body.into())
            .unwrap();
        let response = self.send(request).await;
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        Answer {
            code: parts.status,
            headers: parts.headers,
            body: serde_json::from_slice(&bytes).unwrap_or(Value::Null),
            text: String::from_utf8_lossy(&bytes).into_owned(),
        }
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.call("GET", path, "application/json", "application/json", "")
            .await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Answer {
        self.json("POST", path, body).await
    }

    pub(crate) async fn put(&self, path: &str, body: &Value) -> Answer {
        self.json("PUT", path, body).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        self.call("DELETE", path, "application/json", "application/json", "")
            .await
    }

    pub(crate) async fn json(&self, method: &str, path: &str, body: &Value) -> Answer {
        let json = "application/json";
        self.call(method, path, json, json, body.to_string()).await
    }

    pub(crate) async fn patch(&self, path: &str, kind: &str, body: &Value) -> Answer {
        let media = match kind {
            "json" => "application/json-patch+json",
            "merge" => "application/merge-patch+json",
            "strategic" => "application/strategic-merge-patch+json",
            other => other,
        };
        self.call("PATCH", path, media, "application/json", body.to_string())
            .await
    }
}

/// The lines of a watch, one at a time.
pub(crate) struct Watch {
    body: Body,
    buffer: Vec<u8>,
}

impl Cluster {
    pub(crate) async fn watch(&self, path: &str) -> Watch {
        self.watch_as(path, "application/json").await
    }

    pub(crate) async fn watch_as(&self, path: &str, accept: &str) -> Watch {
        let request = Request::builder()
            .uri(path)
            .header("accept", accept)
            .body(Body::empty())
            .unwrap();
        let response = self.send(request).await;
        assert_eq!(response.status(), 200);
        Watch {
            body: response.into_body(),
            buffer: Vec::new(),
        }
    }
}

impl Watch {
    /// The next event; none at the end.
    pub(crate) async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.buffer.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            let wait = std::time::Duration::from_secs(20);
            let frame = tokio::time::timeout(wait, self.body.frame())
                .await
                .expect("an event comes");
            let data = frame?.unwrap().into_data().unwrap();
            self.buffer.extend_from_slice(&data);
        }
    }

    /// Type and name of the next event.
    pub(crate) async fn event(&mut self) -> (String, String) {
        let event = self.next().await.expect("the watch goes on");
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        (
            text(&event["type"]),
            text(&event["object"]["metadata"]["name"]),
        )
    }
}

/// A pod with one container.
pub(crate) fn pod(name: &str) -> Value {
    serde_json::json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"containers": [{"name": "c", "image": "i"}]},
    })
}
