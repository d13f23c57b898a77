//! Create.

use axum::body::Body;
use axum::response::Response;
use http::StatusCode;

use super::Call;
use super::body;
use crate::object;
use crate::status::ApiError;

/// Answers a POST to a collection.
pub(super) async fn serve(mut call: Call, body: Body) -> Result<Response, ApiError> {
    let bytes = body::read(body).await?;
    if call.resource().namespaced && call.target.namespace.is_none() {
        return Err(ApiError::method_not_allowed());
    }
    let new = call.decode(&bytes)?;
    let given = object::namespace(&new);
    if !given.is_empty() && given != call.namespace() {
        return Err(ApiError::bad_request(format!(
            "the namespace of the provided object does not match the namespace sent on the request ({given:?} is not {:?})",
            call.namespace()
        )));
    }
    let outcome = call.create_object(new, false).await?;
    call.answer(StatusCode::CREATED, &outcome)
}
