//! A tiny API server inside the test process (feature `fake`, tests only).
//!
//! It knows nothing of kinds: objects are JSON under their collection's path.
//! What it does have is everything a watch can run into: pages, versions that
//! expire, bookmarks, watches that end politely or break, an outage. Of writes
//! by clients it knows the merge patch and the creation of named objects.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};

use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper_util::rt::TokioIo;
use kube::{Client, Config};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};

use crate::meta::Resource;

/// The server; ends when dropped.
pub struct FakeApi {
    state: Arc<Mutex<State>>,
    address: SocketAddr,
    requests: watch::Receiver<usize>,
    task: tokio::task::JoinHandle<()>,
}

#[derive(Default)]
struct State {
    version: u64,
    /// Versions below this are answered with 410.
    oldest: u64,
    /// Collection path, then `namespace/name`.
    objects: BTreeMap<String, BTreeMap<String, Value>>,
    history: Vec<Change>,
    watches: Vec<Watch>,
    log: Vec<String>,
    /// Answers everything with this status.
    outage: Option<StatusCode>,
    lists_before_gone: Option<usize>,
    connections: Option<watch::Sender<()>>,
    counter: Option<watch::Sender<usize>>,
}

struct Change {
    version: u64,
    collection: String,
    line: Bytes,
}

struct Watch {
    collection: String,
    lines: mpsc::UnboundedSender<Bytes>,
}

impl FakeApi {
    /// Starts on a free port of IPv4 loopback, on the current tokio runtime.
    pub async fn start() -> FakeApi {
        FakeApi::on(std::net::TcpListener::bind("127.0.0.1:0").expect("loopback is up"))
    }

    /// Starts on a listener, which may be of another network namespace. Must be
    /// called within a tokio runtime.
    pub fn on(listener: std::net::TcpListener) -> FakeApi {
        listener
            .set_nonblocking(true)
            .expect("a socket can be told not to block");
        let listener = TcpListener::from_std(listener).expect("the runtime drives sockets");
        let address = listener
            .local_addr()
            .expect("a bound socket has an address");
        let (counter, requests) = watch::channel(0);
        let state = State {
            version: 1,
            connections: Some(watch::channel(()).0),
            counter: Some(counter),
            ..State::default()
        };
        let state = Arc::new(Mutex::new(state));
        let task = tokio::spawn(serve(listener, state.clone()));
        FakeApi {
            state,
            address,
            requests,
            task,
        }
    }

    /// A client of it.
    pub fn client(&self) -> Client {
        let url = self.url().parse().expect("an address and port make an URL");
        crate::client::with_config(Config::new(url)).expect("plain HTTP needs no credentials")
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// A kubeconfig that leads to it.
    pub fn kubeconfig(&self) -> String {
        json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "fake",
            "clusters": [{"name": "fake", "cluster": {"server": self.url()}}],
            "users": [{"name": "fake", "user": {"token": "fake"}}],
            "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "fake"}}],
        })
        .to_string()
    }

    /// Creates or replaces an object; sets its version, and its uid unless it has one.
    pub fn put<R: Resource>(&self, mut object: Value) {
        let mut state = self.state();
        state.version += 1;
        let version = state.version;
        let metadata = &mut object["metadata"];
        metadata["resourceVersion"] = json!(version.to_string());
        let key = key_of(metadata);
        if metadata["uid"].is_null() {
            metadata["uid"] = json!(format!("uid-of-{key}"));
        }
        let collection = collection::<R>();
        let old = state
            .objects
            .entry(collection.clone())
            .or_default()
            .insert(key, object.clone());
        let kind = if old.is_some() { "MODIFIED" } else { "ADDED" };
        state.publish(collection, version, json!({"type": kind, "object": object}));
    }

    /// An object as it is now.
    pub fn get<R: Resource>(&self, namespace: &str, name: &str) -> Option<Value> {
        let key = format!("{namespace}/{name}");
        let state = self.state();
        state.objects.get(&collection::<R>())?.get(&key).cloned()
    }

    /// All objects of a collection, such as `/api/v1/events`.
    pub fn collection(&self, path: &str) -> Vec<Value> {
        let state = self.state();
        let objects = state.objects.get(path).into_iter();
        objects
            .flat_map(|objects| objects.values().cloned())
            .collect()
    }

    /// Deletes an object; one that is not there is left alone.
    pub fn delete<R: Resource>(&self, namespace: &str, name: &str) {
        let mut state = self.state();
        let collection = collection::<R>();
        let key = format!("{namespace}/{name}");
        let Some(objects) = state.objects.get_mut(&collection) else {
            return;
        };
        let Some(mut object) = objects.remove(&key) else {
            return;
        };
        state.version += 1;
        let version = state.version;
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        state.publish(
            collection,
            version,
            json!({"type": "DELETED", "object": object}),
        );
    }

    /// Forgets history: an older version is answered with 410 from now on.
    pub fn compact(&self) {
        let mut state = self.state();
        state.version += 1;
        state.oldest = state.version;
        state.history.clear();
    }

    /// Sends a bookmark with the present version on every watch of a kind.
    pub fn bookmark<R: Resource>(&self) {
        let mut state = self.state();
        state.version += 1;
        let object =
            json!({"kind": R::KIND, "metadata": {"resourceVersion": state.version.to_string()}});
        let line = line(&json!({"type": "BOOKMARK", "object": object}));
        let collection = collection::<R>();
        state
            .watches
            .retain(|w| w.collection != collection || w.lines.send(line.clone()).is_ok());
    }

    /// Sends any line on every watch of a kind.
    pub fn send<R: Resource>(&self, event: &Value) {
        let collection = collection::<R>();
        let line = line(event);
        self.state()
            .watches
            .retain(|w| w.collection != collection || w.lines.send(line.clone()).is_ok());
    }

    /// Ends all watches as a timeout does.
    pub fn end_watches(&self) {
        self.state().watches.clear();
    }

    /// Breaks all connections in the middle of whatever they carry.
    pub fn disconnect(&self) {
        let mut state = self.state();
        state.connections = Some(watch::channel(()).0);
        state.watches.clear();
    }

    /// From now on answers everything with this status, or normally again.
    pub fn outage(&self, status: Option<u16>) {
        let status = status.map(|code| StatusCode::from_u16(code).expect("a status code"));
        self.state().outage = status;
    }

    /// Lets this many pages of lists pass and answers the one after with 410, once.
    pub fn expire_list_after(&self, pages: usize) {
        self.state().lists_before_gone = Some(pages);
    }

    /// Paths of all requests so far.
    pub fn requests(&self) -> Vec<String> {
        self.state().log.clone()
    }

    /// Number of watches open now.
    pub fn watches<R: Resource>(&self) -> usize {
        let collection = collection::<R>();
        self.state()
            .watches
            .iter()
            .filter(|w| w.collection == collection && !w.lines.is_closed())
            .count()
    }

    /// Waits until the requests made so far satisfy a condition.
    pub async fn until(&self, condition: impl Fn(&[String]) -> bool) {
        let mut requests = self.requests.clone();
        requests
            .wait_for(|_| condition(&self.state().log))
            .await
            .expect("the server's state lives as long as the server");
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .expect("no test panics while it holds the lock")
    }
}

impl Drop for FakeApi {
    fn drop(&mut self) {
        self.task.abort();
        let mut state = self.state();
        state.connections = None;
        state.watches.clear();
    }
}

impl State {
    fn publish(&mut self, collection: String, version: u64, event: Value) {
        let line = line(&event);
        self.watches
            .retain(|w| w.collection != collection || w.lines.send(line.clone()).is_ok());
        self.history.push(Change {
            version,
            collection,
            line,
        });
    }

    /// Merges a document into an object (RFC 7386).
    fn patch(&mut self, path: &str, document: &Value) -> Response<Lines> {
        if let Some(status) = self.outage {
            return refuse(status, "outage");
        }
        let (collection, key) = place(path);
        let object = self
            .objects
            .get_mut(&collection)
            .and_then(|objects| objects.get_mut(&key));
        let Some(object) = object else {
            return refuse(StatusCode::NOT_FOUND, "there is no such object");
        };
        merge(object, document);
        self.version += 1;
        let version = self.version;
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        let object = object.clone();
        let event = json!({"type": "MODIFIED", "object": object});
        self.publish(collection, version, event);
        one(&object)
    }

    /// Takes a new object into a collection.
    fn create(&mut self, path: &str, mut object: Value) -> Response<Lines> {
        if let Some(status) = self.outage {
            return refuse(status, "outage");
        }
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let (collection, key) = place(&format!("{path}/{name}"));
        if self
            .objects
            .get(&collection)
            .is_some_and(|all| all.contains_key(&key))
        {
            return refuse(StatusCode::CONFLICT, "there is such an object");
        }
        self.version += 1;
        let version = self.version;
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        let all = self.objects.entry(collection.clone()).or_default();
        all.insert(key, object.clone());
        self.publish(
            collection,
            version,
            json!({"type": "ADDED", "object": object}),
        );
        one(&object)
    }

    fn answer(&mut self, path: &str, query: &str) -> Response<Lines> {
        let get = |name: &str| {
            query
                .split('&')
                .find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
        };
        if let Some(status) = self.outage {
            return refuse(status, "outage");
        }
        if get("watch") == Some("true") {
            let from: u64 = get("resourceVersion")
                .and_then(|v| v.parse().ok())
                .unwrap_or(0);
            let (lines, receiver) = mpsc::unbounded_channel();
            if from < self.oldest {
                // As the real server does: 200, and the error as an event.
                let status = json!({"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"});
                let _ = lines.send(line(&json!({"type": "ERROR", "object": status})));
            } else {
                for change in &self.history {
                    if change.version > from && change.collection == path {
                        let _ = lines.send(change.line.clone());
                    }
                }
                self.watches.push(Watch {
                    collection: path.into(),
                    lines,
                });
            }
            return Response::new(Lines(receiver));
        }
        let (collection, key) = place(path);
        if let Some(object) = self.objects.get(&collection).and_then(|all| all.get(&key)) {
            return one(object);
        }
        match &mut self.lists_before_gone {
            Some(0) => {
                self.lists_before_gone = None;
                return refuse(StatusCode::GONE, "the continue token is too old");
            }
            Some(left) => *left -= 1,
            None => {}
        }
        let limit: usize = get("limit")
            .and_then(|l| l.parse().ok())
            .unwrap_or(usize::MAX);
        let skip: usize = get("continue").and_then(|c| c.parse().ok()).unwrap_or(0);
        let none = BTreeMap::new();
        let all = self.objects.get(path).unwrap_or(&none);
        let items: Vec<&Value> = all.values().skip(skip).take(limit).collect();
        let done = skip + items.len();
        let next = if done < all.len() {
            done.to_string()
        } else {
            String::new()
        };
        let list = json!({
            "metadata": {"resourceVersion": self.version.to_string(), "continue": next},
            "items": items,
        });
        let (lines, receiver) = mpsc::unbounded_channel();
        let _ = lines.send(line(&list));
        Response::new(Lines(receiver))
    }
}

async fn serve(listener: TcpListener, state: Arc<Mutex<State>>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            return;
        };
        let state = state.clone();
        let alive = {
            let state = state
                .lock()
                .expect("no test panics while it holds the lock");
            let Some(connections) = &state.connections else {
                return;
            };
            connections.subscribe()
        };
        tokio::spawn(async move {
            let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                let state = state.clone();
                async move {
                    let (head, body) = request.into_parts();
                    let document = match head.method {
                        Method::PATCH | Method::POST => {
                            body.collect().await.ok().map(|body| body.to_bytes())
                        }
                        _ => None,
                    };
                    let mut guard = state
                        .lock()
                        .expect("no test panics while it holds the lock");
                    let state = &mut *guard;
                    let uri = head.uri;
                    state.log.push(uri.to_string());
                    let answer = match document {
                        Some(document) => match serde_json::from_slice(&document) {
                            Ok(document) if head.method == Method::POST => {
                                state.create(uri.path(), document)
                            }
                            Ok(document) => state.patch(uri.path(), &document),
                            Err(error) => refuse(StatusCode::BAD_REQUEST, &error.to_string()),
                        },
                        None => state.answer(uri.path(), uri.query().unwrap_or_default()),
                    };
                    let counter = state.counter.clone();
                    // Whoever waits for the count looks at the state while it reads
                    // the count: told with the state held, both would wait for ever.
                    drop(guard);
                    if let Some(counter) = counter {
                        counter.send_modify(|count| *count += 1);
                    }
                    Ok::<_, Infallible>(answer)
                }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service);
            let mut alive = alive;
            tokio::select! {
                _ = connection => {}
                _ = alive.changed() => {}
            }
        });
    }
}

/// A body of lines that come when they come.
struct Lines(mpsc::UnboundedReceiver<Bytes>);

impl Body for Lines {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0
            .poll_recv(context)
            .map(|line| line.map(|line| Ok(Frame::data(line))))
    }
}

fn collection<R: Resource>() -> String {
    format!("{}/{}", R::API, R::PLURAL)
}

/// The collection of an object's path, and its key there.
fn place(path: &str) -> (String, String) {
    let (collection, name) = path.rsplit_once('/').unwrap_or_default();
    match collection.split_once("/namespaces/") {
        Some((api, rest)) => {
            let (namespace, plural) = rest.split_once('/').unwrap_or_default();
            (format!("{api}/{plural}"), format!("{namespace}/{name}"))
        }
        None => (collection.to_owned(), format!("/{name}")),
    }
}

fn merge(into: &mut Value, document: &Value) {
    let Value::Object(members) = document else {
        *into = document.clone();
        return;
    };
    if !into.is_object() {
        *into = json!({});
    }
    for (name, member) in members {
        match member {
            Value::Null => {
                if let Some(object) = into.as_object_mut() {
                    object.remove(name);
                }
            }
            member => merge(&mut into[name], member),
        }
    }
}

fn key_of(metadata: &Value) -> String {
    let text = |field: &str| metadata[field].as_str().unwrap_or_default().to_owned();
    format!("{}/{}", text("namespace"), text("name"))
}

fn line(value: &Value) -> Bytes {
    format!("{value}\n").into()
}

/// An answer that is an object.
fn one(object: &Value) -> Response<Lines> {
    let (lines, receiver) = mpsc::unbounded_channel();
    let _ = lines.send(line(object));
    Response::new(Lines(receiver))
}

fn refuse(status: StatusCode, message: &str) -> Response<Lines> {
    let (lines, receiver) = mpsc::unbounded_channel();
    let _ = lines.send(line(
        &json!({"kind": "Status", "code": status.as_u16(), "message": message}),
    ));
    let mut response = Response::new(Lines(receiver));
    *response.status_mut() = status;
    response
}
