//! The one way podwire's daemons write to the API server: a merge patch
//! (RFC 7386) of what is their own.

use http::Request;
use kube::Client;
use serde_json::Value;

use crate::meta::{Key, Resource};

/// Merges a document into an object: members of it are set, those that are
/// `null` removed, all others stay as they are.
///
/// # Errors
/// When the API server cannot be reached, refuses, or has no such object.
pub async fn merge<R: Resource>(
    client: &Client,
    key: &Key,
    document: &Value,
) -> Result<(), kube::Error> {
    let space = match R::NAMESPACED {
        true => format!("/namespaces/{}", key.namespace),
        false => String::new(),
    };
    let path = format!("{}{space}/{}/{}", R::API, R::PLURAL, key.name);
    let request = Request::patch(path)
        .header("Content-Type", "application/merge-patch+json")
        .body(document.to_string().into_bytes())
        .map_err(kube::Error::HttpError)?;
    client.request_text(request).await.map(drop)
}
