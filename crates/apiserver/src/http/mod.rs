//! The HTTP side: paths to actions, answers to bytes.

mod body;
mod change;
mod create;
mod delete;
mod discovery;
mod logs;
mod negotiation;
mod openapi;
mod patch;
mod protobuf;
mod query;
mod read;
mod render;
mod subresource;
mod update;
mod watch;

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use serde_json::{Value, json};
use tokio::sync::watch as signal;

use crate::admission::service::Allocator;
use crate::log_source::LogSource;
use crate::registry::{Registry, Resource};
use crate::status::ApiError;
use crate::store::Store;
use negotiation::{Accepted, Form};
use query::Query;
use render::Renderer;

/// What all requests share.
pub(crate) struct App {
    pub(crate) store: Arc<Store>,
    pub(crate) registry: Registry,
    /// Addresses and ports of Services. Held over a Service's whole write, so
    /// that allocation and commit are one.
    pub(crate) services: tokio::sync::Mutex<Allocator>,
    pub(crate) logs: Arc<dyn LogSource>,
    pub(crate) openapi: openapi::Documents,
    /// Becomes true when the server stops; watches and logs end then.
    pub(crate) stopping: signal::Receiver<bool>,
}

/// The router over everything that is served, without authentication.
pub(crate) fn router(app: Arc<App>) -> axum::Router {
    axum::Router::new().fallback(handle).with_state(app)
}

/// Waits until the server stops.
pub(crate) async fn stopped(stopping: &mut signal::Receiver<bool>) {
    // An error means that the server itself is gone.
    drop(stopping.wait_for(|stop| *stop).await);
}

/// What a path names.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) resource: Arc<Resource>,
    pub(crate) namespace: Option<String>,
    pub(crate) name: Option<String>,
    pub(crate) subresource: Option<String>,
}

/// A request for a resource.
pub(crate) struct Call {
    pub(crate) app: Arc<App>,
    pub(crate) target: Target,
    pub(crate) query: Query,
    pub(crate) headers: HeaderMap,
    pub(crate) accepted: Accepted,
    /// Texts for `Warning` headers of the answer.
    pub(crate) warnings: Vec<String>,
}

impl Call {
    pub(crate) fn resource(&self) -> &Resource {
        &self.target.resource
    }

    pub(crate) fn namespace(&self) -> &str {
        self.target.namespace.as_deref().unwrap_or_default()
    }

    pub(crate) fn name(&self) -> &str {
        self.target.name.as_deref().unwrap_or_default()
    }

    /// A call that the server makes itself.
    pub(crate) fn internal(app: Arc<App>, target: Target, headers: HeaderMap) -> Self {
        Self {
            app,
            target,
            query: Query::default(),
            headers,
            accepted: Accepted {
                form: Form::Objects,
                yaml: false,
            },
            warnings: Vec::new(),
        }
    }

    /// Turns a store error about an object of this call into an answer.
    pub(crate) fn store_error(&self, error: &crate::store::StoreError, name: &str) -> ApiError {
        ApiError::store(error, self.resource(), self.namespace(), name)
    }

    /// The renderer for this call's answer.
    fn renderer(&self) -> Result<Renderer<'_>, ApiError> {
        Ok(Renderer {
            resource: self.resource(),
            form: self.accepted.form,
            include: render::include_object(self.query.get("includeObject"))?,
        })
    }

    /// Whether the change is only to be tried.
    pub(crate) fn dry_run(&self) -> Result<bool, ApiError> {
        let mut dry = false;
        for value in self.query.all("dryRun") {
            match value {
                "All" => dry = true,
                "" => {}
                other => {
                    return Err(ApiError::bad_request(format!(
                        "dryRun: Unsupported value: {other:?}: supported values: \"All\""
                    )));
                }
            }
        }
        Ok(dry)
    }

    /// The name under which the client owns the fields that it writes.
    pub(crate) fn manager(&self) -> String {
        if let Some(manager) = self.query.get("fieldManager") {
            return manager.to_owned();
        }
        self.headers
            .get(header::USER_AGENT)
            .and_then(|v| v.to_str().ok())
            .and_then(|v| v.split('/').next())
            .filter(|v| !v.is_empty())
            .unwrap_or("unknown")
            .chars()
            .take(128)
            .collect()
    }

    /// An answer with an object in the version asked for.
    pub(crate) fn object(&self, code: StatusCode, served: &Value) -> Result<Response, ApiError> {
        let body = self.renderer()?.value(served).to_string();
        Ok(self.document(code, body.into()))
    }

    /// An answer with a stored object.
    pub(crate) fn stored(
        &self,
        code: StatusCode,
        stored: &crate::store::Stored,
    ) -> Result<Response, ApiError> {
        let body = self.renderer()?.stored(stored);
        Ok(self.document(code, body))
    }

    /// An answer with a serialised document and the warnings so far.
    pub(crate) fn document(&self, code: StatusCode, json: Bytes) -> Response {
        let mut response = if self.accepted.yaml {
            as_yaml(code, &json)
        } else {
            json_bytes(code, json)
        };
        for warning in &self.warnings {
            let text: String = warning
                .chars()
                .map(|c| if c.is_control() { ' ' } else { c })
                .flat_map(|c| match c {
                    '"' | '\\' => vec!['\\', c],
                    c => vec![c],
                })
                .collect();
            if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{text}\"")) {
                response.headers_mut().append(header::WARNING, value);
            }
        }
        response
    }
}

fn as_yaml(code: StatusCode, json: &[u8]) -> Response {
    let yaml = serde_json::from_slice::<Value>(json)
        .map_err(|e| e.to_string())
        .and_then(|v| serde_saphyr::to_string(&v).map_err(|e| e.to_string()));
    match yaml {
        Ok(yaml) => {
            let mut response = (code, yaml).into_response();
            response.headers_mut().insert(
                header::CONTENT_TYPE,
                HeaderValue::from_static("application/yaml"),
            );
            response
        }
        Err(e) => ApiError::internal(e).into_response(),
    }
}

/// An answer of serialised JSON.
pub(crate) fn json_bytes(code: StatusCode, json: Bytes) -> Response {
    let mut response = (code, json).into_response();
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    response
}

fn json_value(value: &Value) -> Response {
    json_bytes(StatusCode::OK, value.to_string().into())
}

async fn handle(State(app): State<Arc<App>>, request: Request) -> Response {
    // Tasks of their own: a client that goes away in the middle of a write
    // must not stop it between the allocation of an address and the commit.
    match tokio::spawn(dispatch(app, request)).await {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => error.into_response(),
        Err(panic) => {
            tracing::error!(%panic, "a request handler has panicked");
            ApiError::internal("the request could not be handled").into_response()
        }
    }
}

async fn dispatch(app: Arc<App>, request: Request) -> Result<Response, ApiError> {
    let path = request.uri().path().to_owned();
    let segments: Vec<String> = path
        .split('/')
        .filter(|s| !s.is_empty())
        .map(|s| query::decode(s, false))
        .collect();
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    let catalogue = app.registry.current();
    let headers = request.headers();
    let reading = matches!(*request.method(), Method::GET | Method::HEAD);
    let aggregated = |(document, form): (Value, Option<&str>)| {
        let mut response = json_value(&document);
        if let Some(form) = form {
            let media =
                format!("application/json;g=apidiscovery.k8s.io;v={form};as=APIGroupDiscoveryList");
            if let Ok(media) = HeaderValue::from_str(&media) {
                response.headers_mut().insert(header::CONTENT_TYPE, media);
            }
        }
        response
            .headers_mut()
            .insert(header::VARY, HeaderValue::from_static("Accept"));
        response
    };
    let document = match segments.as_slice() {
        [] if reading => json_value(&json!({"paths": [
            "/api", "/api/v1", "/apis", "/healthz", "/livez", "/openapi/v2", "/openapi/v3",
            "/readyz", "/version",
        ]})),
        ["version"] if reading => json_value(&version()),
        ["healthz" | "livez" | "readyz", ..] if reading => "ok".into_response(),
        ["openapi", path @ ..] if reading => {
            return openapi::serve(&app.openapi, catalogue, path, headers).await;
        }
        ["api"] if reading => aggregated(discovery::core(&catalogue, headers)),
        ["apis"] if reading => aggregated(discovery::named(&catalogue, headers)),
        ["api", "v1"] if reading => found(discovery::version(&catalogue, "", "v1"))?,
        ["apis", group] if reading => found(discovery::group(&catalogue, group))?,
        ["apis", group, version] if reading => {
            found(discovery::version(&catalogue, group, version))?
        }
        ["apis", group, version, plural]
            if discovery::review_kind(group, version, plural).is_some() =>
        {
            let kind = discovery::review_kind(group, version, plural).unwrap_or_default();
            return subresource::review(kind, request).await;
        }
        _ => {
            let target = target(&catalogue, &segments).ok_or_else(ApiError::no_such_path)?;
            return resource_request(app, target, request).await;
        }
    };
    Ok(document)
}

fn found(document: Option<Value>) -> Result<Response, ApiError> {
    document
        .map(|d| json_value(&d))
        .ok_or_else(ApiError::no_such_path)
}

/// What `/version` tells. Clients compare it with their own: it is the newest
/// version whose API the server follows.
fn version() -> Value {
    json!({
        "major": "1",
        "minor": "34",
        "gitVersion": concat!("v1.34.0+podwire.", env!("CARGO_PKG_VERSION")),
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "",
        "compiler": "rustc",
        "platform": format!("linux/{}", std::env::consts::ARCH),
    })
}

/// Finds the resource that a path names.
fn target(catalogue: &crate::registry::Catalogue, segments: &[&str]) -> Option<Target> {
    let (group, version, rest) = match segments {
        ["api", version, rest @ ..] => ("", *version, rest),
        ["apis", group, version, rest @ ..] => (*group, *version, rest),
        _ => return None,
    };
    let (namespace, rest) = match rest {
        // A namespace itself and its subresources.
        ["namespaces"] | ["namespaces", _] | ["namespaces", _, "status" | "finalize"] => {
            (None, rest)
        }
        ["namespaces", namespace, rest @ ..] => (Some((*namespace).to_owned()), rest),
        rest => (None, rest),
    };
    let (plural, name, subresource) = match rest {
        // A binding may be posted to a collection of its own.
        ["bindings"] => ("pods", None, Some("binding")),
        [plural] => (*plural, None, None),
        [plural, name] => (*plural, Some(*name), None),
        [plural, name, subresource] => (*plural, Some(*name), Some(*subresource)),
        _ => return None,
    };
    let resource = catalogue.find(group, version, plural)?;
    if namespace.is_some() && !resource.namespaced {
        return None;
    }
    if resource.namespaced && namespace.is_none() && name.is_some() {
        return None;
    }
    Some(Target {
        resource,
        namespace,
        name: name.map(str::to_owned),
        subresource: subresource.map(str::to_owned),
    })
}

async fn resource_request(
    app: Arc<App>,
    target: Target,
    request: Request,
) -> Result<Response, ApiError> {
    let (parts, body) = request.into_parts();
    let query = Query::parse(parts.uri.query().unwrap_or_default());
    let accepted = if target.subresource.as_deref() == Some("log") {
        Accepted {
            form: Form::Objects,
            yaml: false,
        }
    } else {
        negotiation::accepted(&parts.headers)?
    };
    let mut call = Call {
        app,
        query,
        headers: parts.headers,
        accepted,
        warnings: Vec::new(),
        target,
    };
    if let Some(custom) = &call.target.resource.custom
        && let Some(deprecation) = &custom.deprecation
    {
        call.warnings.push(deprecation.clone());
    }
    let named = call.target.name.is_some();
    let subresource = call.target.subresource.clone();
    match (&parts.method, named, subresource.as_deref()) {
        (&Method::GET | &Method::HEAD, false, None) => {
            if call.query.flag("watch") {
                watch::serve(&call)
            } else {
                read::list(&call)
            }
        }
        (&Method::GET | &Method::HEAD, true, None) => {
            if call.query.flag("watch") {
                watch::serve(&call)
            } else {
                read::get(&call)
            }
        }
        (&Method::GET | &Method::HEAD, true, Some("status")) if call.resource().status => {
            read::get(&call)
        }
        (&Method::POST, false, None) => create::serve(call, body).await,
        (&Method::PUT, true, None) => update::serve(call, body).await,
        (&Method::PATCH, true, None) => patch::serve(call, body).await,
        (&Method::PUT, true, Some("status")) if call.resource().status => {
            update::serve(call, body).await
        }
        (&Method::PATCH, true, Some("status")) if call.resource().status => {
            patch::serve(call, body).await
        }
        (&Method::DELETE, true, None) => delete::one(call, body).await,
        (&Method::DELETE, false, None) => delete::collection(call, body).await,
        (method, _, Some(name)) => {
            let method = method.clone();
            let name = name.to_owned();
            subresource::serve(call, &method, &name, body).await
        }
        _ => Err(ApiError::method_not_allowed()),
    }
}
