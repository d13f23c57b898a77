//! The OpenAPI documents, built at first use and again when the served kinds
//! have changed: they are large, and every client asks for them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use axum::response::Response;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};

use crate::openapi::{self, CrdInfo};
use crate::registry::Catalogue;
use crate::status::ApiError;

/// The documents of one catalogue.
#[derive(Default)]
pub(crate) struct Documents {
    current: Mutex<Cached>,
}

#[derive(Default)]
struct Cached {
    of: Option<Arc<Catalogue>>,
    /// By path; a path that names nothing is not kept.
    documents: HashMap<String, Bytes>,
}

/// Answers a GET below `/openapi`.
pub(super) async fn serve(
    documents: &Documents,
    catalogue: Arc<Catalogue>,
    path: &[&str],
    headers: &HeaderMap,
) -> Result<Response, ApiError> {
    let accept = headers
        .get(header::ACCEPT)
        .and_then(|v| v.to_str().ok())
        .unwrap_or_default();
    let protobuf = path == ["v2"] && accept.contains("proto-openapi");
    let key = format!(
        "{}{}",
        path.join("/"),
        if protobuf { "+protobuf" } else { "" }
    );
    let known = {
        let mut cached = documents.current.lock().unwrap_or_else(|e| e.into_inner());
        let same = cached
            .of
            .as_ref()
            .is_some_and(|of| Arc::ptr_eq(of, &catalogue));
        if !same {
            cached.of = Some(Arc::clone(&catalogue));
            cached.documents.clear();
        }
        cached.documents.get(&key).cloned()
    };
    let document = match known {
        Some(document) => document,
        None => {
            let path: Vec<String> = path.iter().map(|p| (*p).to_owned()).collect();
            let of = Arc::clone(&catalogue);
            let document = tokio::task::spawn_blocking(move || build(&of, &path, protobuf))
                .await
                .map_err(ApiError::internal)?
                .ok_or_else(ApiError::no_such_path)?;
            let mut cached = documents.current.lock().unwrap_or_else(|e| e.into_inner());
            if cached
                .of
                .as_ref()
                .is_some_and(|of| Arc::ptr_eq(of, &catalogue))
            {
                cached.documents.insert(key, document.clone());
            }
            document
        }
    };
    let mut response = super::json_bytes(StatusCode::OK, document);
    if protobuf {
        response.headers_mut().insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static(openapi::V2_PROTOBUF),
        );
    }
    response
        .headers_mut()
        .insert(header::VARY, HeaderValue::from_static("Accept"));
    Ok(response)
}

fn build(catalogue: &Catalogue, path: &[String], protobuf: bool) -> Option<Bytes> {
    let crds: Vec<CrdInfo> = catalogue
        .all()
        .iter()
        .filter_map(|r| {
            let custom = r.custom.as_ref()?;
            Some(CrdInfo {
                group: r.gvk.group.clone(),
                version: r.gvk.version.clone(),
                kind: r.gvk.kind.clone(),
                list_kind: r.list_kind.clone(),
                plural: r.plural.clone(),
                namespaced: r.namespaced,
                schema: custom.schema.clone(),
            })
        })
        .collect();
    let path: Vec<&str> = path.iter().map(String::as_str).collect();
    let document = match path.as_slice() {
        ["v2"] if protobuf => return Some(openapi::v2_protobuf(&crds).into()),
        ["v2"] => openapi::v2_json(&crds),
        ["v3"] => openapi::v3_index(&crds),
        ["v3", "api", version] => openapi::v3_group("", version, &crds)?,
        ["v3", "apis", group, version] => openapi::v3_group(group, version, &crds)?,
        _ => return None,
    };
    Some(document.to_string().into())
}
