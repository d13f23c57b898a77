//! Objects and lists in the form that the client asked for.

use bytes::Bytes;
use serde_json::{Value, json};

use super::negotiation::Form;
use crate::registry::{Resource, convert};
use crate::status::ApiError;
use crate::store::Stored;
use crate::table::{self, IncludeObject};

/// Serialises objects of one resource in one form.
pub(super) struct Renderer<'a> {
    pub(super) resource: &'a Resource,
    pub(super) form: Form,
    pub(super) include: IncludeObject,
}

/// How much of each object a table's rows carry.
pub(super) fn include_object(parameter: Option<&str>) -> Result<IncludeObject, ApiError> {
    match parameter {
        None | Some("Metadata") => Ok(IncludeObject::Metadata),
        Some("None") => Ok(IncludeObject::None),
        Some("Object") => Ok(IncludeObject::Object),
        Some(other) => Err(ApiError::bad_request(format!(
            "unrecognized includeObject value: {other:?}"
        ))),
    }
}

impl Renderer<'_> {
    /// The object in the version asked for.
    pub(super) fn served(&self, value: &Value) -> Value {
        let mut value = value.clone();
        convert(&self.resource.stored_as, &self.resource.gvk, &mut value);
        value
    }

    fn table(&self, items: &[Value], version: &str) -> Value {
        let columns = self
            .resource
            .custom
            .as_ref()
            .and_then(|c| c.printer_columns.as_ref());
        let mut table = table::render(
            &self.resource.gvk,
            columns,
            items,
            self.include,
            jiff::Timestamp::now(),
        );
        table["apiVersion"] = format!("meta.k8s.io/{version}").into();
        table
    }

    /// An object that is already in the version asked for.
    pub(super) fn value(&self, served: &Value) -> Value {
        match self.form {
            Form::Objects => served.clone(),
            Form::Metadata { version } => partial(served, version),
            Form::Table { version } => self.table(std::slice::from_ref(served), version),
        }
    }

    /// A stored object, serialised.
    pub(super) fn stored(&self, stored: &Stored) -> Bytes {
        if self.form == Form::Objects && self.resource.is_stored_form() {
            return stored.bytes.clone();
        }
        self.value(&self.served(&stored.value)).to_string().into()
    }

    /// A list of stored objects, serialised.
    pub(super) fn list<'s>(
        &self,
        objects: impl ExactSizeIterator<Item = &'s Stored>,
        metadata: &Value,
    ) -> Bytes {
        if let Form::Table { version } = self.form {
            let items: Vec<Value> = objects.map(|o| self.served(&o.value)).collect();
            let mut table = self.table(&items, version);
            table["metadata"] = metadata.clone();
            return table.to_string().into();
        }
        let (kind, api_version) = match self.form {
            Form::Metadata { version } => (
                "PartialObjectMetadataList",
                format!("meta.k8s.io/{version}"),
            ),
            _ => (
                self.resource.list_kind.as_str(),
                self.resource.gvk.api_version(),
            ),
        };
        let mut out =
            format!("{{\"kind\":\"{kind}\",\"apiVersion\":\"{api_version}\",\"metadata\":{metadata},\"items\":[")
                .into_bytes();
        for (i, object) in objects.enumerate() {
            if i > 0 {
                out.push(b',');
            }
            out.extend_from_slice(&self.stored(object));
        }
        out.extend_from_slice(b"]}");
        out.into()
    }
}

/// `PartialObjectMetadata` of an object.
fn partial(object: &Value, version: &str) -> Value {
    json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": format!("meta.k8s.io/{version}"),
        "metadata": object["metadata"],
    })
}
