//! Get and list.

use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::StatusCode;
use serde_json::{Value, json};

use super::Call;
use crate::selector::{FieldSelector, LabelSelector, SelectorError};
use crate::status::ApiError;
use crate::store::{Key, Snapshot, StoreError, Stored};

/// Which objects a list or watch is about.
#[derive(Default)]
pub(super) struct Selection {
    labels: LabelSelector,
    fields: FieldSelector,
    restricted: bool,
}

impl Selection {
    /// Reads the selectors of a call; a name in the path counts as one.
    pub(super) fn of(call: &Call) -> Result<Self, ApiError> {
        let labels = call.query.get("labelSelector").unwrap_or_default();
        let mut fields = call
            .query
            .get("fieldSelector")
            .unwrap_or_default()
            .to_owned();
        if let Some(name) = &call.target.name {
            fields = format!("{fields},metadata.name={name}");
        }
        let failed = |e: SelectorError| {
            ApiError::bad_request(format!(
                "Unable to find {:?} that match label selector {labels:?}, field selector {:?}: {e}",
                format!(
                    "{}, Resource={}",
                    call.resource().gvk.api_version(),
                    call.resource().plural
                ),
                call.query.get("fieldSelector").unwrap_or_default(),
            ))
        };
        Ok(Self {
            labels: LabelSelector::parse(labels).map_err(failed)?,
            fields: FieldSelector::parse(&fields, call.resource()).map_err(failed)?,
            restricted: !labels.is_empty() || !fields.is_empty(),
        })
    }

    /// Whether an object (in its storage form) is selected.
    pub(super) fn matches(&self, object: &Value) -> bool {
        !self.restricted || (self.labels.matches(object) && self.fields.matches(object))
    }
}

/// Answers a get.
pub(super) fn get(call: &Call) -> Result<Response, ApiError> {
    let stored = call
        .app
        .store
        .get(
            &call.resource().collection,
            &Key::new(call.namespace(), call.name()),
        )
        .ok_or_else(|| ApiError::not_found(call.resource(), call.name()))?;
    call.stored(StatusCode::OK, &stored)
}

/// Where a list in parts goes on.
struct Continue {
    revision: u64,
    after: Key,
}

impl Continue {
    fn encode(&self) -> String {
        let token = json!({
            "v": "meta.k8s.io/v1",
            "rv": self.revision,
            "namespace": self.after.namespace,
            "name": self.after.name,
        });
        URL_SAFE_NO_PAD.encode(token.to_string())
    }

    fn decode(text: &str) -> Result<Self, ApiError> {
        let parsed = URL_SAFE_NO_PAD
            .decode(text)
            .ok()
            .and_then(|b| serde_json::from_slice::<Value>(&b).ok());
        let fields = parsed.as_ref().and_then(|t| {
            Some((
                t["rv"].as_u64()?,
                t["namespace"].as_str()?,
                t["name"].as_str()?,
            ))
        });
        match fields {
            Some((revision, namespace, name)) => Ok(Self {
                revision,
                after: Key::new(namespace, name),
            }),
            None => Err(ApiError::bad_request(
                "continue key is not valid: it was not given out by this server",
            )),
        }
    }
}

/// Answers a list.
pub(super) fn list(call: &Call) -> Result<Response, ApiError> {
    let selection = Selection::of(call)?;
    let limit = call
        .query
        .number::<usize>("limit")?
        .filter(|limit| *limit > 0);
    let token = call
        .query
        .get("continue")
        .map(Continue::decode)
        .transpose()?;
    let snapshot = snapshot(call, token.as_ref(), limit.is_some())?;
    let after = token.map(|t| t.after);
    let mut rest = snapshot
        .objects
        .iter()
        .filter(|o| after.as_ref().is_none_or(|a| o.key > *a))
        .filter(|o| selection.matches(&o.value));
    let page: Vec<&Stored> = rest
        .by_ref()
        .take(limit.unwrap_or(usize::MAX))
        .map(AsRef::as_ref)
        .collect();
    let remaining = rest.count();
    let mut metadata = json!({"resourceVersion": snapshot.revision.to_string()});
    if remaining > 0
        && let Some(last) = page.last()
    {
        let token = Continue {
            revision: snapshot.revision,
            after: last.key.clone(),
        };
        metadata["continue"] = token.encode().into();
        if !selection.restricted {
            metadata["remainingItemCount"] = remaining.into();
        }
    }
    let body = call.renderer()?.list(page.into_iter(), &metadata);
    Ok(call.document(StatusCode::OK, body))
}

/// The state that a list shows.
fn snapshot(call: &Call, token: Option<&Continue>, limited: bool) -> Result<Snapshot, ApiError> {
    let store = &call.app.store;
    let collection = &call.resource().collection;
    let namespace = call.target.namespace.as_deref();
    let wanted = revision_parameter(call)?;
    let rule = call.query.get("resourceVersionMatch");
    let at = |revision| {
        store
            .list_at(collection, namespace, revision)
            .map_err(|e| match e {
                StoreError::Expired { asked, oldest } => ApiError::expired(format!(
                    "The resourceVersion for the provided list is too old: {asked} ({oldest})"
                )),
                other => ApiError::internal(other),
            })
    };
    if let Some(token) = token {
        if wanted.is_some_and(|w| w != 0) {
            return Err(ApiError::bad_request(
                "specifying resource version is not allowed when using continue",
            ));
        }
        return at(token.revision).map_err(|e| {
            if e.reason == "Expired" {
                ApiError::expired(
                    "The provided continue parameter is too old to display a consistent list result. You must start a new list without the continue parameter.",
                )
            } else {
                e
            }
        });
    }
    match (rule, wanted) {
        (Some("Exact"), None | Some(0)) => Err(ApiError::bad_request(
            "resourceVersionMatch: Forbidden: resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\" or if it is not provided",
        )),
        (Some("NotOlderThan"), None) => Err(ApiError::bad_request(
            "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided",
        )),
        (Some("Exact"), Some(revision)) => {
            not_in_the_future(call, revision)?;
            at(revision)
        }
        (Some(other), _) if other != "NotOlderThan" => Err(ApiError::bad_request(format!(
            "resourceVersionMatch: Unsupported value: {other:?}: supported values: \"Exact\", \"NotOlderThan\""
        ))),
        (None, Some(revision)) if limited && revision != 0 => {
            not_in_the_future(call, revision)?;
            at(revision)
        }
        (_, wanted) => {
            if let Some(revision) = wanted {
                not_in_the_future(call, revision)?;
            }
            Ok(store.list(collection, namespace))
        }
    }
}

/// The `resourceVersion` of a list or watch.
pub(super) fn revision_parameter(call: &Call) -> Result<Option<u64>, ApiError> {
    call.query
        .get("resourceVersion")
        .map(|v| {
            v.parse().map_err(|_| {
                ApiError::bad_request(format!(
                    "resourceVersion: Invalid value: {v:?}: strconv.ParseUint: parsing {v:?}: invalid syntax"
                ))
            })
        })
        .transpose()
}

fn not_in_the_future(call: &Call, revision: u64) -> Result<(), ApiError> {
    let current = call.app.store.revision();
    if revision <= current {
        return Ok(());
    }
    Err(ApiError {
        code: StatusCode::GATEWAY_TIMEOUT,
        reason: "Timeout",
        message: format!("Too large resource version: {revision}, current: {current}"),
        details: Some(json!({
            "causes": [{
                "reason": "ResourceVersionTooLarge",
                "message": "Too large resource version",
            }],
            "retryAfterSeconds": 1,
        })),
    })
}
