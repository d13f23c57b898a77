//! Logs of containers.

use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use futures::StreamExt;
use http::{HeaderValue, header};
use serde_json::Value;

use super::{App, Call};
use crate::log_source::{Ended, LogError, LogOptions};
use crate::object;
use crate::status::ApiError;
use crate::store::Key;

/// Answers a GET of a pod's log.
pub(super) fn serve(call: &Call) -> Result<Response, ApiError> {
    let name = call.name();
    let key = Key::new(call.namespace(), name);
    let stored = call
        .app
        .store
        .get(&call.resource().collection, &key)
        .ok_or_else(|| ApiError::not_found(call.resource(), name))?;
    let pod = &stored.value;
    let container = container(call, pod)?;
    let options = options(call)?;
    let status = container_status(pod, &container);
    if let Some(waiting) = status.and_then(|s| s["state"].get("waiting"))
        && !options.previous
        && status.is_some_and(|s| s["restartCount"].as_i64().unwrap_or(0) == 0)
    {
        let reason = object::text(waiting, "/reason");
        let why = match reason {
            "ErrImagePull" | "ImagePullBackOff" => "image can't be pulled",
            "" => "ContainerCreating",
            reason => reason,
        };
        return Err(ApiError::bad_request(format!(
            "container {container:?} in pod {name:?} is waiting to start: {why}"
        )));
    }
    if object::text(pod, "/spec/nodeName").is_empty() {
        return Err(ApiError::bad_request(format!(
            "pod {name:?} does not have a host assigned"
        )));
    }
    let ended = ended(Arc::clone(&call.app), key, pod, container.clone());
    let stream = call
        .app
        .logs
        .open(pod, &container, options, ended)
        .map_err(|e| match e {
            LogError::NoPrevious { .. } => ApiError::bad_request(e.to_string()),
            LogError::Unreadable { .. } => ApiError::internal(e),
        })?;
    let mut stopping = call.app.stopping.clone();
    let stream = stream.take_until(async move {
        super::stopped(&mut stopping).await;
    });
    let mut response = Response::new(Body::from_stream(stream));
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    Ok(response)
}

fn names<'a>(pod: &'a Value, field: &str) -> Vec<&'a str> {
    pod["spec"][field]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|c| c["name"].as_str())
        .collect()
}

/// The container that is meant.
fn container(call: &Call, pod: &Value) -> Result<String, ApiError> {
    let containers = names(pod, "containers");
    let init = names(pod, "initContainers");
    let ephemeral = names(pod, "ephemeralContainers");
    match call.query.get("container") {
        Some(name) => {
            if containers.contains(&name) || init.contains(&name) || ephemeral.contains(&name) {
                Ok(name.to_owned())
            } else {
                Err(ApiError::bad_request(format!(
                    "container {name} is not valid for pod {}",
                    call.name()
                )))
            }
        }
        None => match containers.as_slice() {
            [one] => Ok((*one).to_owned()),
            many => {
                let mut message = format!(
                    "a container name must be specified for pod {}, choose one of: [{}]",
                    call.name(),
                    many.join(" ")
                );
                if !init.is_empty() {
                    message += &format!(" or one of the init containers: [{}]", init.join(" "));
                }
                Err(ApiError::bad_request(message))
            }
        },
    }
}

fn options(call: &Call) -> Result<LogOptions, ApiError> {
    let query = &call.query;
    let since = match (query.number::<i64>("sinceSeconds")?, query.get("sinceTime")) {
        (Some(_), Some(_)) => {
            return Err(ApiError::bad_request(
                "at most one of `sinceTime` or `sinceSeconds` may be specified",
            ));
        }
        (Some(seconds), None) => {
            let since = jiff::Timestamp::now()
                .checked_sub(jiff::SignedDuration::from_secs(seconds))
                .map_err(|e| ApiError::bad_request(format!("sinceSeconds: {e}")))?;
            Some(since)
        }
        (None, Some(time)) => Some(
            time.parse()
                .map_err(|e| ApiError::bad_request(format!("sinceTime: {e}")))?,
        ),
        (None, None) => None,
    };
    Ok(LogOptions {
        follow: query.flag("follow"),
        previous: query.flag("previous"),
        tail_lines: query.number("tailLines")?,
        since,
        timestamps: query.flag("timestamps"),
        limit_bytes: query.number("limitBytes")?,
    })
}

fn container_status<'a>(pod: &'a Value, container: &str) -> Option<&'a Value> {
    [
        "containerStatuses",
        "initContainerStatuses",
        "ephemeralContainerStatuses",
    ]
    .iter()
    .filter_map(|f| pod["status"][f].as_array())
    .flatten()
    .find(|s| s["name"] == container)
}

/// Ready when the container's present run is over.
fn ended(app: Arc<App>, key: Key, pod: &Value, container: String) -> Ended {
    let uid = object::uid(pod).to_owned();
    let restarts = |pod: &Value, container: &str| {
        container_status(pod, container).and_then(|s| s["restartCount"].as_i64())
    };
    let run = restarts(pod, &container);
    Box::pin(async move {
        let (_, mut cursor) = app.store.watch_now("pods", Some(&key.namespace));
        loop {
            let over = match app.store.get("pods", &key) {
                None => true,
                Some(now) => {
                    let now = &now.value;
                    let status = container_status(now, &container);
                    object::uid(now) != uid
                        || matches!(object::text(now, "/status/phase"), "Succeeded" | "Failed")
                        || status.is_some_and(|s| s["state"].get("terminated").is_some())
                        || (run.is_some() && restarts(now, &container) > run)
                }
            };
            if over || !cursor.changed().await {
                return;
            }
        }
    })
}
