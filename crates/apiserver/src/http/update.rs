//! Update by PUT.

use axum::body::Body;
use axum::response::Response;
use http::StatusCode;

use super::Call;
use super::body;
use super::change::Changed;
use crate::object;
use crate::status::ApiError;

/// Kinds that a PUT may create, as Kubernetes allows it.
fn may_create(call: &Call) -> bool {
    let resource = call.resource();
    call.target.subresource.is_none()
        && matches!(
            (resource.gvk.group.as_str(), resource.plural.as_str()),
            ("", "endpoints" | "events" | "services")
                | ("events.k8s.io", "events")
                | ("coordination.k8s.io", "leases")
        )
}

/// Answers a PUT to an object or its status.
pub(super) async fn serve(mut call: Call, body: Body) -> Result<Response, ApiError> {
    let bytes = body::read(body).await?;
    let mut new = call.decode(&bytes)?;
    let name = call.name().to_owned();
    if object::name(&new).is_empty() {
        object::set_meta(&mut new, "name", Some(name.clone().into()));
    }
    let subresource = call.target.subresource.clone();
    let changed = call
        .change_object(&name, subresource.as_deref(), |_, _| {
            Ok(Changed {
                value: new.clone(),
                tracked: false,
            })
        })
        .await;
    match changed {
        Ok(outcome) => call.answer(StatusCode::OK, &outcome),
        Err(e)
            if e.reason == "NotFound"
                && may_create(&call)
                && object::resource_version(&new).is_empty()
                && object::name(&new) == name =>
        {
            let outcome = call.create_object(new, false).await?;
            call.answer(StatusCode::CREATED, &outcome)
        }
        Err(e) => Err(e),
    }
}
