//! Patch, in four formats: three that say what to change, and server-side
//! apply, which says what is wanted.

use axum::body::Body;
use axum::response::Response;
use http::StatusCode;
use serde_json::Value;

use super::Call;
use super::body;
use super::change::Changed;
use crate::object;
use crate::patch::server_side::{ApplyError, Request};
use crate::patch::{self, PatchError};
use crate::status::ApiError;
use crate::validation::FieldError;

/// A patch as it came in.
pub(super) enum Patch {
    Json(Value),
    Merge(Value),
    Strategic(Value),
}

const ACCEPTED: &str = "application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json, application/apply-patch+yaml";

/// Reads a patch by the body's media type.
pub(super) fn parse(media_type: &str, bytes: &[u8]) -> Result<Patch, ApiError> {
    let json = || {
        body::json(bytes)
            .map(|d| d.value)
            .map_err(|e| ApiError::bad_request(format!("error decoding patch: {}", e.message)))
    };
    match media_type {
        "application/json-patch+json" => Ok(Patch::Json(json()?)),
        "application/merge-patch+json" => Ok(Patch::Merge(json()?)),
        "application/strategic-merge-patch+json" => Ok(Patch::Strategic(json()?)),
        _ => Err(ApiError::unsupported_media_type(ACCEPTED)),
    }
}

impl Patch {
    /// Applies the patch to an object in the version asked for.
    pub(super) fn apply(&self, call: &Call, old: &Value) -> Result<Value, ApiError> {
        let failed = |e: PatchError| {
            let mut error = ApiError::bad_request(e.to_string());
            match e {
                PatchError::Malformed(_) => {}
                PatchError::UnsupportedKind { .. } => {
                    return ApiError::unsupported_media_type(
                        "application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml",
                    );
                }
                _ => {
                    error.code = StatusCode::UNPROCESSABLE_ENTITY;
                    error.reason = "Invalid";
                    error.message = format!(
                        "the server rejected our request due to an error in our request: {e}"
                    );
                }
            }
            error
        };
        match self {
            Self::Json(p) => patch::json::apply(old, p).map_err(failed),
            Self::Merge(p) => Ok(patch::merge::apply(old, p)),
            Self::Strategic(p) => {
                patch::strategic::apply(&call.resource().gvk, old, p).map_err(failed)
            }
        }
    }
}

/// Answers a PATCH to an object or its status.
pub(super) async fn serve(mut call: Call, body: Body) -> Result<Response, ApiError> {
    let media_type = body::media_type(&call.headers);
    let bytes = body::read(body).await?;
    let subresource = call.target.subresource.clone();
    let name = call.name().to_owned();
    if media_type == "application/apply-patch+yaml" {
        return apply(call, &bytes).await;
    }
    let patch = parse(&media_type, &bytes)?;
    let outcome = call
        .change_object(&name, subresource.as_deref(), |call, old| {
            let mut value = patch.apply(call, old)?;
            if !value.is_object() {
                return Err(ApiError::bad_request(
                    "the patch makes something that is not an object",
                ));
            }
            call.check_fields(&mut value, Vec::new())?;
            if object::name(&value).is_empty() {
                object::set_meta(&mut value, "name", Some(call.name().into()));
            }
            Ok(Changed {
                value,
                tracked: false,
            })
        })
        .await?;
    call.answer(StatusCode::OK, &outcome)
}

/// Answers a server-side apply: the object is made if it is not there.
async fn apply(mut call: Call, bytes: &[u8]) -> Result<Response, ApiError> {
    let name = call.name().to_owned();
    let subresource = call.target.subresource.clone();
    let manager = match call.query.get("fieldManager") {
        Some(manager) => manager.to_owned(),
        None => {
            let error = FieldError::required("fieldManager", "is required for apply patch");
            let mut error = ApiError::invalid(call.resource(), &name, &[error]);
            error.message = "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch".into();
            return Err(error);
        }
    };
    let force = call.query.flag("force");
    let document = body::yaml(bytes)?;
    let mut applied = call.check_document(document)?;
    let given = object::name(&applied);
    if !given.is_empty() && given != name {
        return Err(ApiError::bad_request(format!(
            "the name of the object ({given}) does not match the name on the URL ({name})"
        )));
    }
    object::set_meta(&mut applied, "name", Some(name.clone().into()));
    let custom = call.resource().custom.clone();
    if custom.is_some()
        && call.resource().status
        && subresource.is_none()
        && let Some(fields) = applied.as_object_mut()
    {
        fields.remove("status");
    }
    let make = |call: &Call, live: Option<&Value>| {
        let request = Request {
            gvk: &call.resource().gvk,
            schema: custom.as_ref().and_then(|c| c.schema.as_ref()),
            manager: &manager,
            force,
            now: &object::now(),
            subresource: subresource.as_deref(),
        };
        request.apply(live, &applied).map_err(|e| match e {
            ApplyError::Conflicts(conflicts) => {
                let message = ApplyError::Conflicts(conflicts.clone()).to_string();
                ApiError::apply_conflict(&message, &conflicts)
            }
            ApplyError::Invalid(_) => ApiError::bad_request(e.to_string()),
        })
    };
    loop {
        let changed = call
            .change_object(&name, subresource.as_deref(), |call, old| {
                let version = object::resource_version(&applied);
                if !version.is_empty() && version != object::resource_version(old) {
                    return Err(ApiError::modified(call.resource(), call.name()));
                }
                Ok(Changed {
                    value: make(call, Some(old))?,
                    tracked: true,
                })
            })
            .await;
        match changed {
            Ok(outcome) => return call.answer(StatusCode::OK, &outcome),
            Err(e) if e.reason == "NotFound" && subresource.is_none() => {}
            Err(e) => return Err(e),
        }
        let new = make(&call, None)?;
        match call.create_object(new, true).await {
            Ok(outcome) => return call.answer(StatusCode::CREATED, &outcome),
            // Somebody else has made it meanwhile.
            Err(e) if e.reason == "AlreadyExists" => {}
            Err(e) => return Err(e),
        }
    }
}
