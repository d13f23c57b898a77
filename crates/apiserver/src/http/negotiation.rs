//! What form of answer a client accepts.

use http::{HeaderMap, header};

use crate::status::ApiError;

/// The form of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// The objects themselves.
    Objects,
    /// A `Table` of `meta.k8s.io/v1` (or v1beta1).
    Table {
        /// Version of the table's kind.
        version: &'static str,
    },
    /// Metadata only.
    Metadata {
        /// Version of the kind.
        version: &'static str,
    },
}

/// How to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Accepted {
    /// The form.
    pub(crate) form: Form,
    /// YAML instead of JSON.
    pub(crate) yaml: bool,
}

/// Picks the first form in the `Accept` header that can be served. Clients of
/// built-in kinds that name protobuf only get JSON: they read the answer's
/// content type.
pub(crate) fn accepted(headers: &HeaderMap) -> Result<Accepted, ApiError> {
    let plain = Accepted {
        form: Form::Objects,
        yaml: false,
    };
    let Some(accept) = headers.get(header::ACCEPT) else {
        return Ok(plain);
    };
    let accept = accept.to_str().unwrap_or_default();
    if accept.trim().is_empty() {
        return Ok(plain);
    }
    let mut protobuf = false;
    for range in accept.split(',') {
        let mut parts = range.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default().to_ascii_lowercase();
        let yaml = match media.as_str() {
            "application/json" | "*/*" | "application/*" => false,
            "application/yaml" => true,
            "application/vnd.kubernetes.protobuf" => {
                protobuf = true;
                continue;
            }
            _ => continue,
        };
        let (mut kind, mut group, mut version) = (None, None, None);
        for part in parts {
            match part.split_once('=') {
                Some(("as", v)) => kind = Some(v),
                Some(("g", v)) => group = Some(v),
                Some(("v", v)) => version = Some(v),
                _ => {}
            }
        }
        let version = match version {
            Some("v1") => Some("v1"),
            Some("v1beta1") => Some("v1beta1"),
            _ => None,
        };
        let form = match (kind, group, version) {
            (None, ..) => Form::Objects,
            (Some("Table"), Some("meta.k8s.io"), Some(version)) => Form::Table { version },
            (
                Some("PartialObjectMetadata" | "PartialObjectMetadataList"),
                Some("meta.k8s.io"),
                Some(version),
            ) => Form::Metadata { version },
            _ => continue,
        };
        return Ok(Accepted { form, yaml });
    }
    if protobuf {
        return Ok(plain);
    }
    Err(ApiError::not_acceptable())
}

/// Whether the `Accept` header asks for a document in aggregated form.
pub(crate) fn wants_aggregated_discovery(headers: &HeaderMap) -> Option<&'static str> {
    let accept = headers.get(header::ACCEPT)?.to_str().ok()?;
    for range in accept.split(',') {
        let fields: Vec<&str> = range.split(';').map(str::trim).collect();
        if fields.first() != Some(&"application/json") {
            continue;
        }
        if !fields.contains(&"as=APIGroupDiscoveryList") {
            // Plain JSON is preferred.
            return None;
        }
        if fields.contains(&"v=v2") {
            return Some("v2");
        }
        if fields.contains(&"v=v2beta1") {
            return Some("v2beta1");
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn of(accept: &str) -> Result<Accepted, ApiError> {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, accept.parse().unwrap());
        accepted(&headers)
    }

    #[rstest]
    #[case("application/json;as=Table;v=v1;g=meta.k8s.io,application/json", Form::Table { version: "v1" })]
    #[case("application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json", Form::Table { version: "v1beta1" })]
    #[case(
        "application/json;as=Table;v=v9;g=meta.k8s.io,application/json",
        Form::Objects
    )]
    #[case("application/vnd.kubernetes.protobuf,application/json", Form::Objects)]
    #[case("application/vnd.kubernetes.protobuf", Form::Objects)]
    #[case("application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1", Form::Metadata { version: "v1" })]
    #[case("*/*", Form::Objects)]
    fn the_first_form_that_can_be_served_is_taken(#[case] accept: &str, #[case] form: Form) {
        assert_eq!(of(accept).unwrap().form, form);
    }

    #[test]
    fn a_client_that_accepts_only_xml_gets_not_acceptable() {
        assert_eq!(of("text/xml").unwrap_err().code, 406);
    }
}
