//! Subresources that are not views of the whole object: scale, binding,
//! eviction, finalize, logs; and reviews, which are no resources at all.

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::Call;
use super::body;
use super::change::{Changed, Outcome};
use super::delete;
use super::logs;
use super::negotiation::Form;
use super::patch;
use crate::object;
use crate::registry::custom::ScalePaths;
use crate::status::ApiError;

/// Answers a request for a subresource.
pub(super) async fn serve(
    call: Call,
    method: &Method,
    subresource: &str,
    body: Body,
) -> Result<Response, ApiError> {
    let reading = matches!(*method, Method::GET | Method::HEAD);
    let resource = call.resource();
    if subresource == "scale" && resource.scale {
        return match *method {
            _ if reading => get_scale(&call),
            Method::PUT | Method::PATCH => set_scale(call, method, body).await,
            _ => Err(ApiError::method_not_allowed()),
        };
    }
    let known = resource.actions().iter().any(|a| a.name == subresource)
        || subresource == "status" && resource.status;
    match subresource {
        _ if !known => Err(ApiError::no_such_path()),
        "binding" if *method == Method::POST => bind(call, body).await,
        "eviction" if *method == Method::POST => evict(call, body).await,
        "log" if reading => logs::serve(&call),
        "finalize" if *method == Method::PUT => finalize(call, body).await,
        _ => Err(ApiError::method_not_allowed()),
    }
}

fn success(call: &Call, code: StatusCode) -> Response {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
        "code": code.as_u16(),
    });
    call.document(code, status.to_string().into())
}

fn read_json(call: &Call, bytes: &[u8]) -> Result<Value, ApiError> {
    Ok(body::parse(&body::media_type(&call.headers), bytes)?.value)
}

/// Binds a pod to a node.
async fn bind(mut call: Call, body: Body) -> Result<Response, ApiError> {
    let bytes = body::read(body).await?;
    let binding = read_json(&call, &bytes)?;
    let node = object::text(&binding, "/target/name").to_owned();
    let kind = object::text(&binding, "/target/kind");
    if node.is_empty() || !(kind.is_empty() || kind == "Node") {
        return Err(ApiError::bad_request(format!(
            "target: Invalid value: {}: a binding needs the name of a Node",
            binding["target"]
        )));
    }
    let name = match call.name() {
        "" => object::name(&binding).to_owned(),
        name => name.to_owned(),
    };
    let uid = object::uid(&binding).to_owned();
    let outcome = call
        .change_object(&name, Some("binding"), |call, old| {
            let conflict = |why: String| Err(ApiError::conflict(call.resource(), &name, &why));
            if !uid.is_empty() && uid != object::uid(old) {
                return conflict(format!(
                    "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
                    object::uid(old)
                ));
            }
            if object::is_deleting(old) {
                return conflict(format!(
                    "pod {name} is being deleted, cannot be assigned to a host"
                ));
            }
            let bound = object::text(old, "/spec/nodeName");
            if !bound.is_empty() {
                return conflict(format!("pod {name} is already assigned to node {bound:?}"));
            }
            let mut value = old.clone();
            value["spec"]["nodeName"] = node.clone().into();
            set_condition(&mut value, "PodScheduled");
            Ok(Changed {
                value,
                tracked: false,
            })
        })
        .await?;
    drop(outcome);
    Ok(success(&call, StatusCode::CREATED))
}

/// Sets a condition of an object to true, with the present time.
fn set_condition(value: &mut Value, kind: &str) {
    let condition = json!({
        "type": kind, "status": "True", "lastProbeTime": null,
        "lastTransitionTime": object::now(),
    });
    let mut conditions = value["status"]["conditions"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    match conditions.iter_mut().find(|c| c["type"] == kind) {
        Some(old) if old["status"] == "True" => {}
        Some(old) => *old = condition,
        None => conditions.push(condition),
    }
    value["status"]["conditions"] = conditions.into();
}

/// Deletes a pod by its eviction.
async fn evict(call: Call, body: Body) -> Result<Response, ApiError> {
    let bytes = body::read(body).await?;
    let eviction = read_json(&call, &bytes)?;
    let options = delete::Options::of(&eviction["deleteOptions"])?;
    delete::evict(&call, call.name(), &options).await?;
    Ok(success(&call, StatusCode::CREATED))
}

/// Lets a namespace go: only `spec.finalizers` is taken from the document.
async fn finalize(mut call: Call, body: Body) -> Result<Response, ApiError> {
    let bytes = body::read(body).await?;
    let wanted = call.decode(&bytes)?;
    let name = call.name().to_owned();
    let outcome = call
        .change_object(&name, Some("finalize"), |_, old| {
            let mut value = old.clone();
            let finalizers = wanted["spec"].get("finalizers").cloned();
            value["spec"] = match finalizers {
                Some(finalizers) => json!({"finalizers": finalizers}),
                None => json!({}),
            };
            if let Some(version) = wanted["metadata"].get("resourceVersion") {
                object::set_meta(&mut value, "resourceVersion", Some(version.clone()));
            }
            Ok(Changed {
                value,
                tracked: false,
            })
        })
        .await?;
    call.answer(StatusCode::OK, &outcome)
}

fn paths(call: &Call) -> ScalePaths {
    call.resource()
        .custom
        .as_ref()
        .and_then(|c| c.scale.clone())
        .unwrap_or_else(|| ScalePaths {
            spec: "/spec/replicas".into(),
            status: "/status/replicas".into(),
            selector: None,
        })
}

/// The scale of an object (in the version asked for).
fn scale_of(call: &Call, value: &Value) -> Value {
    let paths = paths(call);
    let selector = match &paths.selector {
        Some(path) => object::text(value, path).to_owned(),
        None => selector_text(&value["spec"]["selector"]),
    };
    let number = |pointer: &str| value.pointer(pointer).and_then(Value::as_i64).unwrap_or(0);
    let mut status = json!({"replicas": number(&paths.status)});
    if !selector.is_empty() {
        status["selector"] = selector.into();
    }
    json!({
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {
            "name": object::name(value),
            "namespace": object::namespace(value),
            "uid": object::uid(value),
            "resourceVersion": object::resource_version(value),
            "creationTimestamp": value["metadata"]["creationTimestamp"],
        },
        "spec": {"replicas": number(&paths.spec)},
        "status": status,
    })
}

/// A label selector of an object in its string form.
fn selector_text(selector: &Value) -> String {
    let mut parts: Vec<String> = selector["matchLabels"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default()))
        .collect();
    for e in selector["matchExpressions"]
        .as_array()
        .into_iter()
        .flatten()
    {
        let key = object::text(e, "/key");
        let values: Vec<&str> = e["values"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        let values = values.join(",");
        parts.push(match object::text(e, "/operator") {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "DoesNotExist" => format!("!{key}"),
            _ => key.to_owned(),
        });
    }
    parts.join(",")
}

fn get_scale(call: &Call) -> Result<Response, ApiError> {
    let key = crate::store::Key::new(call.namespace(), call.name());
    let stored = call
        .app
        .store
        .get(&call.resource().collection, &key)
        .ok_or_else(|| ApiError::not_found(call.resource(), call.name()))?;
    let scale = scale_of(call, &stored.value);
    Ok(call.document(StatusCode::OK, scale.to_string().into()))
}

/// Sets the replicas by PUT or PATCH of the scale.
async fn set_scale(mut call: Call, method: &Method, body: Body) -> Result<Response, ApiError> {
    call.accepted.form = Form::Objects;
    let media_type = body::media_type(&call.headers);
    let bytes = body::read(body).await?;
    let (put, patch) = if *method == Method::PUT {
        (Some(body::parse(&media_type, &bytes)?.value), None)
    } else {
        (None, Some(patch::parse(&media_type, &bytes)?))
    };
    let name = call.name().to_owned();
    let pointer = paths(&call).spec;
    let outcome = call
        .change_object(&name, Some("scale"), |call, old| {
            let scale = match (&put, &patch) {
                (Some(scale), _) => scale.clone(),
                (None, Some(patch::Patch::Json(p))) => {
                    patch::Patch::Json(p.clone()).apply(call, &scale_of(call, old))?
                }
                (None, Some(patch::Patch::Merge(p) | patch::Patch::Strategic(p))) => {
                    // A scale has no lists: both formats are the same.
                    patch::Patch::Merge(p.clone()).apply(call, &scale_of(call, old))?
                }
                (None, None) => return Err(ApiError::method_not_allowed()),
            };
            let replicas = scale["spec"]["replicas"].as_i64().unwrap_or(0);
            if replicas < 0 {
                let error = crate::validation::FieldError::invalid(
                    "spec.replicas",
                    replicas,
                    "must be greater than or equal to 0",
                );
                return Err(ApiError::invalid(call.resource(), &name, &[error]));
            }
            let mut value = old.clone();
            if value.pointer(&pointer).is_none()
                && let Some((parent, field)) = pointer.rsplit_once('/')
                && let Some(parent) = value.pointer_mut(parent).and_then(Value::as_object_mut)
            {
                parent.insert(field.to_owned(), Value::Null);
            }
            if let Some(field) = value.pointer_mut(&pointer) {
                *field = replicas.into();
            }
            let version = object::resource_version(&scale);
            if !version.is_empty() {
                object::set_meta(&mut value, "resourceVersion", Some(version.into()));
            }
            Ok(Changed {
                value,
                tracked: false,
            })
        })
        .await?;
    let value = match &outcome {
        Outcome::Stored(stored) => &stored.value,
        Outcome::Tried(value) => value,
    };
    let scale = scale_of(&call, value);
    Ok(call.document(StatusCode::OK, scale.to_string().into()))
}

/// Answers a review: the token that was let in may do everything.
pub(super) async fn review(kind: &str, request: Request) -> Result<Response, ApiError> {
    if *request.method() != Method::POST {
        return Err(ApiError::method_not_allowed());
    }
    let (parts, body) = request.into_parts();
    let bytes = body::read(body).await?;
    let mut value = body::parse(&body::media_type(&parts.headers), &bytes)?.value;
    value["status"] = match kind {
        "SelfSubjectAccessReview" => json!({"allowed": true}),
        "SelfSubjectRulesReview" => json!({
            "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}],
            "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}],
            "incomplete": false,
        }),
        _ => json!({"userInfo": {
            "username": "podwire-admin",
            "groups": ["system:masters", "system:authenticated"],
        }}),
    };
    Ok(super::json_bytes(
        StatusCode::CREATED,
        value.to_string().into(),
    ))
}
