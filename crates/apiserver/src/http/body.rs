//! Request bodies: JSON and YAML into values, with the faults that a strict
//! reader finds.

use std::fmt;

use axum::body::Body;
use http::{HeaderMap, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::{DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::status::ApiError;

/// Largest body that is read, in bytes; the same as Kubernetes'.
pub(crate) const LIMIT: usize = 3 * 1024 * 1024;

/// A parsed document.
#[derive(Debug)]
pub(crate) struct Document {
    /// The document.
    pub(crate) value: Value,
    /// Fields that were given more than once, for instance
    /// `spec.replicas`.
    pub(crate) duplicates: Vec<String>,
}

/// Reads the whole body.
pub(crate) async fn read(body: Body) -> Result<Vec<u8>, ApiError> {
    match Limited::new(body, LIMIT).collect().await {
        Ok(collected) => Ok(collected.to_bytes().to_vec()),
        Err(e) if e.downcast_ref::<LengthLimitError>().is_some() => Err(ApiError::too_large(LIMIT)),
        Err(e) => Err(ApiError::bad_request(format!(
            "the body of the request could not be read: {e}"
        ))),
    }
}

/// The media type of the body, without parameters.
pub(crate) fn media_type(headers: &HeaderMap) -> String {
    headers
        .get(header::CONTENT_TYPE)
        .and_then(|v| v.to_str().ok())
        .and_then(|v| v.split(';').next())
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase()
}

/// Parses an object by its media type.
pub(crate) fn parse(media_type: &str, body: &[u8]) -> Result<Document, ApiError> {
    let document = match media_type {
        "" | "application/json" | "application/x-www-form-urlencoded" => json(body)?,
        "application/yaml" | "application/x-yaml" | "text/yaml" => yaml(body)?,
        other => {
            let known = (other == "application/vnd.kubernetes.protobuf")
                .then(|| super::protobuf::decode(body))
                .flatten();
            Document {
                value: known.ok_or_else(|| {
                    ApiError::unsupported_media_type("application/json, application/yaml")
                })?,
                duplicates: Vec::new(),
            }
        }
    };
    if document.value.is_object() {
        Ok(document)
    } else {
        Err(ApiError::bad_request(
            "the object provided is unrecognized (must be of type Object): couldn't get version/kind; json parse error: the document is not an object",
        ))
    }
}

/// Parses JSON.
pub(crate) fn json(body: &[u8]) -> Result<Document, ApiError> {
    let mut duplicates = Vec::new();
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let value = Node {
        path: String::new(),
        duplicates: &mut duplicates,
    }
    .deserialize(&mut deserializer)
    .and_then(|value| deserializer.end().map(|()| value))
    .map_err(|e| {
        ApiError::bad_request(format!(
            "the object provided is unrecognized (must be of type Object): couldn't get version/kind; json parse error: {e}"
        ))
    })?;
    Ok(Document { value, duplicates })
}

/// Parses YAML (which JSON is a part of).
pub(crate) fn yaml(body: &[u8]) -> Result<Document, ApiError> {
    let failed = |e: &dyn fmt::Display| {
        ApiError::bad_request(format!("error converting YAML to JSON: yaml: {e}"))
    };
    let text = std::str::from_utf8(body).map_err(|e| failed(&e))?;
    let value = serde_saphyr::from_str(text).map_err(|e| failed(&e))?;
    Ok(Document {
        value,
        duplicates: Vec::new(),
    })
}

/// Builds a value and notes fields that occur twice (the last one counts, as
/// in Go).
struct Node<'a> {
    path: String,
    duplicates: &'a mut Vec<String>,
}

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Value;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_f64<E: serde::de::Error>(self, v: f64) -> Result<Value, E> {
        serde_json::Number::from_f64(v)
            .map(Value::Number)
            .ok_or_else(|| E::custom("a number that is not finite"))
    }

    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_string<E>(self, v: String) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = seq.next_element_seed(Node {
            path: format!("{}[{}]", self.path, list.len()),
            duplicates: &mut *self.duplicates,
        })? {
            list.push(item);
        }
        Ok(list.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut fields = Map::new();
        while let Some(name) = map.next_key::<String>()? {
            let path = if self.path.is_empty() {
                name.clone()
            } else {
                format!("{}.{name}", self.path)
            };
            if fields.contains_key(&name) {
                self.duplicates.push(path.clone());
            }
            let value = map.next_value_seed(Node {
                path,
                duplicates: &mut *self.duplicates,
            })?;
            fields.insert(name, value);
        }
        Ok(fields.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duplicate_fields_are_noted_with_their_path() {
        let document = json(br#"{"spec":{"a":[{"x":1,"x":2}]},"spec":{}}"#).unwrap();
        assert_eq!(document.duplicates, ["spec.a[0].x", "spec"]);
    }

    #[test]
    fn broken_json_is_a_bad_request_that_says_where() {
        let error = parse("application/json", b"{\"a\": }").unwrap_err();
        assert_eq!(error.code, 400);
        assert!(
            error.message.contains("line 1 column 7"),
            "{}",
            error.message
        );
    }

    #[test]
    fn yaml_is_read_like_json() {
        let document = parse("application/yaml", b"a: 1\nb: [x, 'true']\n").unwrap();
        assert_eq!(
            document.value,
            serde_json::json!({"a": 1, "b": ["x", "true"]})
        );
    }

    #[test]
    fn protobuf_bodies_that_are_not_understood_are_refused_by_their_type() {
        let error = parse("application/vnd.kubernetes.protobuf", b"k8s\0").unwrap_err();
        assert_eq!(error.code, 415);
    }
}
