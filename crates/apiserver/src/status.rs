//! Errors as clients of Kubernetes know them: `Status` objects.

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde_json::{Value, json};

use crate::patch::server_side::Conflict;
use crate::registry::Resource;
use crate::store::StoreError;
use crate::validation::FieldError;

/// A failed request. Becomes a `Status` with code, reason, message and
/// details.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// HTTP status.
    pub code: StatusCode,
    /// Machine-readable reason, for instance `NotFound`.
    pub reason: &'static str,
    /// Text for people.
    pub message: String,
    /// `details` of the Status.
    pub details: Option<Value>,
}

impl ApiError {
    fn new(code: StatusCode, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            reason,
            message: message.into(),
            details: None,
        }
    }

    fn about(mut self, resource: &Resource, name: &str) -> Self {
        let mut details = json!({"kind": resource.plural});
        if !name.is_empty() {
            details["name"] = name.into();
        }
        if !resource.gvk.group.is_empty() {
            details["group"] = resource.gvk.group.clone().into();
        }
        self.details = Some(details);
        self
    }

    fn causes(mut self, causes: Value) -> Self {
        match &mut self.details {
            Some(details) => details["causes"] = causes,
            None => self.details = Some(json!({"causes": causes})),
        }
        self
    }

    /// The path names nothing that is served.
    pub(crate) fn no_such_path() -> Self {
        let mut e = Self::new(
            StatusCode::NOT_FOUND,
            "NotFound",
            "the server could not find the requested resource",
        );
        e.details = Some(json!({}));
        e
    }

    /// There is no object of that name.
    pub(crate) fn not_found(resource: &Resource, name: &str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "NotFound",
            format!("{} \"{name}\" not found", resource.qualified()),
        )
        .about(resource, name)
    }

    /// The namespace to create in does not exist.
    pub(crate) fn no_namespace(name: &str) -> Self {
        let mut e = Self::new(
            StatusCode::NOT_FOUND,
            "NotFound",
            format!("namespaces \"{name}\" not found"),
        );
        e.details = Some(json!({"name": name, "kind": "namespaces"}));
        e
    }

    /// An object of that name exists.
    pub(crate) fn already_exists(resource: &Resource, name: &str) -> Self {
        Self::new(
            StatusCode::CONFLICT,
            "AlreadyExists",
            format!("{} \"{name}\" already exists", resource.qualified()),
        )
        .about(resource, name)
    }

    /// The write was based on something that has changed.
    pub(crate) fn conflict(resource: &Resource, name: &str, why: &str) -> Self {
        Self::new(
            StatusCode::CONFLICT,
            "Conflict",
            format!(
                "Operation cannot be fulfilled on {} \"{name}\": {why}",
                resource.qualified()
            ),
        )
        .about(resource, name)
    }

    /// Another writer was faster.
    pub(crate) fn modified(resource: &Resource, name: &str) -> Self {
        Self::conflict(
            resource,
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    /// Fields that server-side apply found owned by others.
    pub(crate) fn apply_conflict(message: &str, conflicts: &[Conflict]) -> Self {
        let causes: Vec<Value> = conflicts
            .iter()
            .map(|c| {
                json!({
                    "reason": "FieldManagerConflict", "message": c.message(), "field": c.field,
                })
            })
            .collect();
        Self::new(StatusCode::CONFLICT, "Conflict", message).causes(causes.into())
    }

    /// The object breaks rules.
    pub(crate) fn invalid(resource: &Resource, name: &str, errors: &[FieldError]) -> Self {
        let list: Vec<String> = errors.iter().map(ToString::to_string).collect();
        let text = match list.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let causes: Vec<Value> = errors
            .iter()
            .map(|e| json!({"reason": e.kind.reason(), "message": e.message(), "field": e.field}))
            .collect();
        let qualified = if resource.gvk.group.is_empty() {
            resource.gvk.kind.clone()
        } else {
            format!("{}.{}", resource.gvk.kind, resource.gvk.group)
        };
        let mut e = Self::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "Invalid",
            format!("{qualified} \"{name}\" is invalid: {text}"),
        )
        .about(resource, name)
        .causes(causes.into());
        if let Some(details) = &mut e.details {
            details["kind"] = resource.gvk.kind.clone().into();
        }
        e
    }

    /// The request itself makes no sense.
    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadRequest", message)
    }

    /// The action is not allowed in this state.
    pub(crate) fn forbidden(resource: &Resource, name: &str, why: &str) -> Self {
        let named = if name.is_empty() {
            String::new()
        } else {
            format!(" \"{name}\"")
        };
        Self::new(
            StatusCode::FORBIDDEN,
            "Forbidden",
            format!("{}{named} is forbidden: {why}", resource.qualified()),
        )
        .about(resource, name)
    }

    /// Creation in a namespace that is going away.
    pub(crate) fn namespace_terminating(resource: &Resource, name: &str, namespace: &str) -> Self {
        Self::forbidden(
            resource,
            name,
            &format!(
                "unable to create new content in namespace {namespace} because it is being terminated"
            ),
        )
        .causes(json!([{
            "reason": "NamespaceTerminating",
            "message": format!("namespace {namespace} is being terminated"),
            "field": "metadata.namespace",
        }]))
    }

    /// The resource has no such verb.
    pub(crate) fn method_not_allowed() -> Self {
        let mut e = Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
        );
        e.details = Some(json!({}));
        e
    }

    /// The client accepts nothing that the server can write.
    pub(crate) fn not_acceptable() -> Self {
        Self::new(
            StatusCode::NOT_ACCEPTABLE,
            "NotAcceptable",
            "only the following media types are accepted: application/json, application/yaml",
        )
    }

    /// The body has a type that the server cannot read.
    pub(crate) fn unsupported_media_type(accepted: &str) -> Self {
        Self::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "UnsupportedMediaType",
            format!(
                "the body of the request was in an unknown format - accepted media types include: {accepted}"
            ),
        )
    }

    /// The body is larger than the server takes.
    pub(crate) fn too_large(limit: usize) -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "RequestEntityTooLarge",
            format!("limit is {limit}"),
        )
    }

    /// No or a wrong token.
    pub(crate) fn unauthorized() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "Unauthorized", "Unauthorized")
    }

    /// A revision that the history does not reach.
    pub(crate) fn expired(message: impl Into<String>) -> Self {
        Self::new(StatusCode::GONE, "Expired", message)
    }

    /// The server's own trouble.
    pub(crate) fn internal(what: impl std::fmt::Display) -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "InternalError",
            format!("Internal error occurred: {what}"),
        )
    }

    /// A store error that concerns one object.
    pub(crate) fn store(
        error: &StoreError,
        resource: &Resource,
        namespace: &str,
        name: &str,
    ) -> Self {
        match error {
            StoreError::Exists => Self::already_exists(resource, name),
            StoreError::Missing => Self::not_found(resource, name),
            StoreError::Modified => Self::modified(resource, name),
            StoreError::NoNamespace => Self::no_namespace(namespace),
            StoreError::NamespaceTerminating => {
                Self::namespace_terminating(resource, name, namespace)
            }
            StoreError::Expired { asked, oldest } => {
                Self::expired(format!("too old resource version: {asked} ({oldest})"))
            }
            other => Self::internal(other),
        }
    }

    /// The Status object.
    pub fn to_status(&self) -> Value {
        let mut status = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.code.as_u16(),
        });
        if let Some(details) = &self.details {
            status["details"] = details.clone();
        }
        status
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.code, self.to_status().to_string()).into_response();
        response.headers_mut().insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
        response
    }
}
