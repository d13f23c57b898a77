//! The agent's admin socket: what `podwire inspect` and `podwire doctor` ask.
//!
//! HTTP/1.1 over a Unix socket that only root may open; JSON under `/v1/…`.
//! Each part of the agent answers for itself: it names a path and gets a
//! [`Question`] for each request, which it answers from the thread its state
//! lives on. Nothing is changed over this socket.

mod client;
pub(crate) mod socket;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use serde::Serialize;
use tokio::net::UnixListener;
use tokio::sync::oneshot;

use crate::http::{self as web, Response};

pub use client::{Error, get, get_bytes};
pub(crate) use socket::Bound;

/// Where the agent listens unless it is told otherwise.
pub const SOCKET: &str = "/run/podwire/agent.sock";

/// How long a part may take to answer: it may be in the middle of a large
/// application of changes.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why a question has no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// What is asked for does not exist.
    NotFound(String),
    /// The question makes no sense.
    Invalid(String),
    /// It cannot be answered (now).
    Failed(String),
}

/// A question to a part of the agent. One that is dropped is answered with
/// "not now".
#[derive(Debug)]
pub(crate) struct Question {
    parameters: BTreeMap<String, String>,
    reply: oneshot::Sender<Result<Bytes, Refusal>>,
}

impl Question {
    /// A parameter of the query, `?name=value`.
    pub(crate) fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.get(name).map(String::as_str)
    }

    /// Answers with a snapshot.
    pub(crate) fn answer<T: Serialize + ?Sized>(self, snapshot: &T) {
        let body = serde_json::to_vec(snapshot)
            .map(Bytes::from)
            .map_err(|error| Refusal::Failed(format!("the answer is no JSON: {error}")));
        self.reply(body);
    }

    /// Says why there is no answer.
    pub(crate) fn refuse(self, why: Refusal) {
        self.reply(Err(why));
    }

    fn reply(self, answer: Result<Bytes, Refusal>) {
        // Who asked may have gone.
        let _ = self.reply.send(answer);
    }
}

type Part = Box<dyn Fn(Question) + Send + Sync>;

/// The paths and the parts that answer for them.
#[derive(Default)]
pub(crate) struct Admin {
    parts: BTreeMap<&'static str, Part>,
}

impl Admin {
    /// Lets a part answer for a path, for instance `/v1/routes`. It is called on
    /// the event loop and must not block: a part on a thread of its own hands
    /// the question on through its inbox.
    pub(crate) fn add(
        &mut self,
        path: &'static str,
        part: impl Fn(Question) + Send + Sync + 'static,
    ) {
        self.parts.insert(path, Box::new(part));
    }

    /// Listens, and serves in the background as long as the event loop runs.
    /// The socket is removed when what is returned is dropped.
    ///
    /// # Errors
    /// When it cannot listen there, in words.
    pub(crate) fn serve(self, path: &Path) -> Result<Bound, String> {
        let (listener, bound) = socket::bind(path)?;
        let listener = UnixListener::from_std(listener)
            .map_err(|error| format!("cannot wait on {}: {error}", path.display()))?;
        let admin = Arc::new(self);
        tokio::spawn(async move {
            loop {
                match listener.accept().await {
                    Ok((stream, _)) => {
                        let admin = admin.clone();
                        web::connection(stream, move |request| {
                            let admin = admin.clone();
                            async move {
                                if let Some(refused) = web::refusal(&request) {
                                    return refused;
                                }
                                let uri = request.uri();
                                let query = uri.query().unwrap_or_default();
                                admin.respond(uri.path(), query).await
                            }
                        });
                    }
                    Err(error) => {
                        tracing::debug!("admin socket: cannot accept a connection: {error}");
                        tokio::time::sleep(web::BREATH).await;
                    }
                }
            }
        });
        Ok(bound)
    }

    async fn respond(&self, path: &str, query: &str) -> Response {
        if path == "/v1" {
            let paths: Vec<&str> = self.parts.keys().copied().collect();
            return web::json(StatusCode::OK, serde_json::json!(paths).to_string());
        }
        let Some(part) = self.parts.get(path) else {
            let text = format!(
                "this agent (podwire {}) does not know {path}; /v1 lists what it knows\n",
                env!("CARGO_PKG_VERSION")
            );
            return web::text(StatusCode::NOT_FOUND, text);
        };
        let (reply, answer) = oneshot::channel();
        let parameters = form_urlencoded::parse(query.as_bytes())
            .into_owned()
            .collect();
        part(Question { parameters, reply });
        let answer = match tokio::time::timeout(PATIENCE, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(Refusal::Failed(
                "the part of the agent that knows is not running (yet); its log says why".into(),
            )),
            Err(_) => Err(Refusal::Failed(format!(
                "the part of the agent that knows was busy for {} s",
                PATIENCE.as_secs()
            ))),
        };
        match answer {
            Ok(body) => web::json(StatusCode::OK, body),
            Err(Refusal::NotFound(why)) => web::text(StatusCode::NOT_FOUND, why),
            Err(Refusal::Invalid(why)) => web::text(StatusCode::BAD_REQUEST, why),
            Err(Refusal::Failed(why)) => web::text(StatusCode::SERVICE_UNAVAILABLE, why),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::PathBuf;

    use serde_json::{Value, json};

    use super::*;

    /// An agent's admin socket on a thread of its own, as it is for a command.
    struct Served {
        files: tempfile::TempDir,
        _runtime: tokio::runtime::Runtime,
        bound: Option<Bound>,
    }

    impl Served {
        fn path(&self) -> PathBuf {
            self.files.path().join("run/agent.sock")
        }
    }

    fn serve(admin: Admin) -> Served {
        let files = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let path = files.path().join("run/agent.sock");
        let bound = runtime.block_on(async { admin.serve(&path) }).unwrap();
        Served {
            files,
            _runtime: runtime,
            bound: Some(bound),
        }
    }

    fn example() -> Admin {
        let mut admin = Admin::default();
        let (inbox, questions) = std::sync::mpsc::channel::<Question>();
        std::thread::spawn(move || {
            for question in questions {
                match question.parameter("name").map(str::to_owned) {
                    Some(name) => question.answer(&json!({ "name": name })),
                    None => question.refuse(Refusal::NotFound("nothing of no name".into())),
                }
            }
        });
        admin.add("/v1/echo", move |question| {
            let _ = inbox.send(question);
        });
        admin.add("/v1/away", drop);
        admin
    }

    #[test]
    fn a_part_answers_from_its_thread_and_parameters_arrive_as_they_were() {
        let served = serve(example());
        let name = "default/we b&=%é";
        let answer: Value = get(&served.path(), "/v1/echo", &[("name", name)]).unwrap();
        assert_eq!(answer, json!({ "name": name }));
        let paths: Value = get(&served.path(), "/v1", &[]).unwrap();
        assert_eq!(paths, json!(["/v1/away", "/v1/echo"]));
    }

    #[test]
    fn a_refusal_arrives_in_its_words() {
        let served = serve(example());
        let error = |path: &str| get::<Value>(&served.path(), path, &[]).unwrap_err();
        assert_eq!(error("/v1/echo").to_string(), "nothing of no name");
        assert!(error("/v1/away").to_string().contains("not running"));
        assert!(
            error("/v1/other")
                .to_string()
                .contains("does not know /v1/other")
        );
    }

    #[test]
    fn only_the_owner_may_open_the_socket_and_it_goes_with_the_agent() {
        let mut served = serve(example());
        let mode = std::fs::metadata(served.path())
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        drop(served.bound.take());
        assert!(!served.path().exists());
    }

    #[test]
    fn a_socket_without_an_agent_is_replaced_and_one_with_an_agent_is_not() {
        let files = tempfile::tempdir().unwrap();
        let path = files.path().join("agent.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "a killed agent leaves it behind");
        let (_listener, bound) = socket::bind(&path).unwrap();
        let error = socket::bind(&path).unwrap_err();
        assert!(error.contains("another agent"), "{error}");
        drop(bound);
        std::fs::write(&path, "a file").unwrap();
        let error = socket::bind(&path).unwrap_err();
        assert!(error.contains("no socket"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"a file");
    }

    #[test]
    fn without_an_agent_the_error_says_what_to_do() {
        let files = tempfile::tempdir().unwrap();
        let path = files.path().join("agent.sock");
        let error = get::<Value>(&path, "/v1", &[]).unwrap_err().to_string();
        assert!(error.contains("no podwire agent answers at"), "{error}");
        assert!(error.contains("--lab"), "{error}");
    }
}
