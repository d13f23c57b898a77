//! The OpenAPI documents that clients validate and explain with.
//!
//! `/openapi/v2` is what kubectl up to 1.26 checks manifests against and
//! explains from (as protobuf, with the messages of the gnostic project);
//! newer ones read `/openapi/v3`, one document per group and version.

mod gnostic;
mod paths;
mod v2;
mod v3;

pub use v2::{v2_json, v2_protobuf};
pub use v3::{v3_group, v3_index};

use crate::schema::Schemas;
use serde_json::{Value, json};

/// Media type of [`v2_protobuf`] in answers. Clients cannot parse the form with
/// an `@` that they themselves ask for.
pub const V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// Media types by which clients ask for [`v2_protobuf`].
pub const V2_PROTOBUF_ACCEPTED: [&str; 2] = [
    "application/com.github.proto-openapi.spec.v2@v1.0+protobuf",
    V2_PROTOBUF,
];

/// The version the documents say they are of: that of the API served.
const VERSION: &str = "v1.31.0";

/// A served version of a custom resource definition.
#[derive(Clone, Debug, PartialEq)]
pub struct CrdInfo {
    /// API group.
    pub group: String,
    /// Version in the group.
    pub version: String,
    /// Kind of the objects.
    pub kind: String,
    /// Kind of their lists.
    pub list_kind: String,
    /// Resource name in paths.
    pub plural: String,
    /// Whether its objects live in namespaces.
    pub namespaced: bool,
    /// `openAPIV3Schema` of the version.
    pub schema: Option<Value>,
}

impl CrdInfo {
    /// The served versions of a CustomResourceDefinition object.
    pub fn from_definition(definition: &Value) -> Vec<Self> {
        let spec = &definition["spec"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let kind = text(&spec["names"]["kind"]);
        let list_kind = match text(&spec["names"]["listKind"]) {
            given if given.is_empty() => format!("{kind}List"),
            given => given,
        };
        spec["versions"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|version| version["served"] == json!(true))
            .map(|version| Self {
                group: text(&spec["group"]),
                version: text(&version["name"]),
                kind: kind.clone(),
                list_kind: list_kind.clone(),
                plural: text(&spec["names"]["plural"]),
                namespaced: spec["scope"] == "Namespaced",
                schema: version["schema"].get("openAPIV3Schema").cloned(),
            })
            .collect()
    }

    /// Name of its schema: the group backwards, the version, the kind.
    fn definition(&self, kind: &str) -> String {
        let group: Vec<&str> = self.group.rsplit('.').collect();
        format!("{}.{}.{kind}", group.join("."), self.version)
    }

    /// Schemas of the object and its list, with references to the built-in ones.
    fn definitions(&self) -> [(String, Value); 2] {
        let gvk =
            |kind: &str| json!([{"group": self.group, "version": self.version, "kind": kind}]);
        let reference = |name: &str| json!({"$ref": format!("{REFERENCE}{name}")});
        let mut schema = self.schema.clone().filter(Value::is_object).unwrap_or_else(
            || json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}),
        );
        drop_references(&mut schema);
        let version_and_kind = |properties: &mut Value| {
            properties["apiVersion"] = json!({"type": "string", "description": "Group and version of this representation of the object, as GROUP/VERSION."});
            properties["kind"] = json!({"type": "string", "description": "Kind of the object, in CamelCase. Cannot be changed."});
        };
        if !schema["properties"].is_object() {
            schema["properties"] = json!({});
        }
        version_and_kind(&mut schema["properties"]);
        schema["properties"]["metadata"] = reference(OBJECT_META);
        schema["x-kubernetes-group-version-kind"] = gvk(&self.kind);
        let name = self.definition(&self.kind);
        let mut list = json!({
            "description": format!("{} is a list of {}.", self.list_kind, self.kind),
            "type": "object",
            "required": ["items"],
            "properties": {
                "metadata": reference(LIST_META),
                "items": {"type": "array", "description": "The objects.", "items": reference(&name)},
            },
            "x-kubernetes-group-version-kind": gvk(&self.list_kind),
        });
        version_and_kind(&mut list["properties"]);
        [(name, schema), (self.definition(&self.list_kind), list)]
    }
}

const REFERENCE: &str = "#/components/schemas/";
const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
const LIST_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta";

/// A reference in a custom schema would lead nowhere, and one that dangles
/// makes clients refuse the whole document.
fn drop_references(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            if map.get("$ref").is_some_and(Value::is_string) {
                map.remove("$ref");
            }
            map.values_mut().for_each(drop_references);
        }
        Value::Array(list) => list.iter_mut().for_each(drop_references),
        _ => {}
    }
}

/// A kind that has paths.
struct Served<'a> {
    group: &'a str,
    version: &'a str,
    kind: &'a str,
    plural: &'a str,
    namespaced: bool,
}

impl<'a> Served<'a> {
    fn built_in() -> impl Iterator<Item = Self> {
        Schemas::builtin()
            .kinds()
            .iter()
            .filter(|kind| !kind.plural.is_empty())
            .map(|kind| Served {
                group: &kind.gvk.group,
                version: &kind.gvk.version,
                kind: &kind.gvk.kind,
                plural: kind.plural,
                namespaced: kind.namespaced,
            })
    }

    /// The built-in kinds, then the custom ones.
    fn all(crds: &'a [CrdInfo]) -> impl Iterator<Item = Self> {
        Self::built_in().chain(crds.iter().map(Self::custom))
    }

    fn custom(crd: &'a CrdInfo) -> Self {
        Self {
            group: &crd.group,
            version: &crd.version,
            kind: &crd.kind,
            plural: &crd.plural,
            namespaced: crd.namespaced,
        }
    }
}

#[cfg(test)]
mod tests;
