//! The part of the protobuf messages of OpenAPI 2.0 that clients read.
//!
//! Source of the field numbers: `openapiv2/OpenAPIv2.proto` of the gnostic
//! project, package `openapi.v2`. Fields not named here are left out; readers
//! skip what is absent.

use prost::{Message, Oneof};
use serde_json::Value;

/// `openapi.v2.Document`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Document {
    #[prost(string, tag = "1")]
    pub(super) swagger: String,
    #[prost(message, optional, tag = "2")]
    pub(super) info: Option<Info>,
    #[prost(message, optional, tag = "8")]
    pub(super) paths: Option<Paths>,
    #[prost(message, optional, tag = "9")]
    pub(super) definitions: Option<Definitions>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Info {
    #[prost(string, tag = "1")]
    pub(super) title: String,
    #[prost(string, tag = "2")]
    pub(super) version: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Paths {
    #[prost(message, repeated, tag = "2")]
    pub(super) path: Vec<NamedPathItem>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct NamedPathItem {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(message, optional, tag = "2")]
    pub(super) value: Option<PathItem>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct PathItem {
    #[prost(message, optional, tag = "2")]
    pub(super) get: Option<Operation>,
    #[prost(message, optional, tag = "3")]
    pub(super) put: Option<Operation>,
    #[prost(message, optional, tag = "4")]
    pub(super) post: Option<Operation>,
    #[prost(message, optional, tag = "5")]
    pub(super) delete: Option<Operation>,
    #[prost(message, optional, tag = "8")]
    pub(super) patch: Option<Operation>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Operation {
    #[prost(message, repeated, tag = "8")]
    pub(super) parameters: Vec<ParametersItem>,
    #[prost(message, repeated, tag = "13")]
    pub(super) vendor_extension: Vec<NamedAny>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ParametersItem {
    /// The first of two alternatives; the other is a reference.
    #[prost(message, optional, tag = "1")]
    pub(super) parameter: Option<Parameter>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Parameter {
    /// The second of two alternatives; the other is the body.
    #[prost(message, optional, tag = "2")]
    pub(super) non_body_parameter: Option<NonBodyParameter>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct NonBodyParameter {
    /// The third of four alternatives.
    #[prost(message, optional, tag = "3")]
    pub(super) query_parameter_sub_schema: Option<QueryParameterSubSchema>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct QueryParameterSubSchema {
    #[prost(string, tag = "2")]
    pub(super) r#in: String,
    #[prost(string, tag = "3")]
    pub(super) description: String,
    #[prost(string, tag = "4")]
    pub(super) name: String,
    #[prost(string, tag = "6")]
    pub(super) r#type: String,
    #[prost(bool, tag = "20")]
    pub(super) unique_items: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct NamedAny {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(message, optional, tag = "2")]
    pub(super) value: Option<Any>,
}

/// A value as YAML; JSON is YAML too.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Any {
    #[prost(string, tag = "2")]
    pub(super) yaml: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Definitions {
    #[prost(message, repeated, tag = "1")]
    pub(super) additional_properties: Vec<NamedSchema>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Properties {
    #[prost(message, repeated, tag = "1")]
    pub(super) additional_properties: Vec<NamedSchema>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct NamedSchema {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(message, optional, tag = "2")]
    pub(super) value: Option<Schema>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct TypeItem {
    #[prost(string, repeated, tag = "1")]
    pub(super) value: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ItemsItem {
    #[prost(message, repeated, tag = "1")]
    pub(super) schema: Vec<Schema>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct AdditionalPropertiesItem {
    #[prost(oneof = "AdditionalProperties", tags = "1, 2")]
    pub(super) oneof: Option<AdditionalProperties>,
}

#[derive(Clone, PartialEq, Oneof)]
pub(super) enum AdditionalProperties {
    #[prost(message, tag = "1")]
    Schema(Box<Schema>),
    #[prost(bool, tag = "2")]
    Boolean(bool),
}

/// `openapi.v2.Schema`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Schema {
    #[prost(string, tag = "1")]
    pub(super) reference: String,
    #[prost(string, tag = "2")]
    pub(super) format: String,
    #[prost(string, tag = "4")]
    pub(super) description: String,
    #[prost(message, optional, tag = "5")]
    pub(super) default: Option<Any>,
    #[prost(string, repeated, tag = "19")]
    pub(super) required: Vec<String>,
    #[prost(message, optional, boxed, tag = "21")]
    pub(super) additional_properties: Option<Box<AdditionalPropertiesItem>>,
    #[prost(message, optional, tag = "22")]
    pub(super) r#type: Option<TypeItem>,
    #[prost(message, optional, tag = "23")]
    pub(super) items: Option<ItemsItem>,
    #[prost(message, optional, tag = "25")]
    pub(super) properties: Option<Properties>,
    #[prost(message, repeated, tag = "31")]
    pub(super) vendor_extension: Vec<NamedAny>,
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn extensions(value: &Value) -> Vec<NamedAny> {
    value
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(name, _)| name.starts_with("x-"))
        .map(|(name, value)| NamedAny {
            name: name.clone(),
            value: Some(Any {
                yaml: value.to_string(),
            }),
        })
        .collect()
}

fn schemas(value: &Value) -> Option<Vec<NamedSchema>> {
    let list = value.as_object()?.iter().map(|(name, schema)| NamedSchema {
        name: name.clone(),
        value: Some(Schema::from_json(schema)),
    });
    Some(list.collect())
}

impl Document {
    /// The messages of a document in JSON.
    pub(super) fn from_json(document: &Value) -> Self {
        let info = &document["info"];
        Self {
            swagger: text(&document["swagger"]),
            info: info.is_object().then(|| Info {
                title: text(&info["title"]),
                version: text(&info["version"]),
            }),
            paths: document["paths"].as_object().map(|paths| Paths {
                path: paths
                    .iter()
                    .map(|(name, item)| NamedPathItem {
                        name: name.clone(),
                        value: Some(PathItem::from_json(item)),
                    })
                    .collect(),
            }),
            definitions: schemas(&document["definitions"]).map(|additional_properties| {
                Definitions {
                    additional_properties,
                }
            }),
        }
    }
}

impl PathItem {
    fn from_json(item: &Value) -> Self {
        let operation = |method: &str| item.get(method).map(Operation::from_json);
        Self {
            get: operation("get"),
            put: operation("put"),
            post: operation("post"),
            delete: operation("delete"),
            patch: operation("patch"),
        }
    }
}

impl Operation {
    fn from_json(operation: &Value) -> Self {
        let parameters = operation["parameters"].as_array().into_iter().flatten();
        Self {
            parameters: parameters
                .map(|parameter| ParametersItem {
                    parameter: Some(Parameter {
                        non_body_parameter: Some(NonBodyParameter {
                            query_parameter_sub_schema: Some(QueryParameterSubSchema {
                                r#in: text(&parameter["in"]),
                                description: text(&parameter["description"]),
                                name: text(&parameter["name"]),
                                r#type: text(&parameter["type"]),
                                unique_items: parameter["uniqueItems"].as_bool().unwrap_or(false),
                            }),
                        }),
                    }),
                })
                .collect(),
            vendor_extension: extensions(operation),
        }
    }
}

impl Schema {
    fn from_json(schema: &Value) -> Self {
        let additional_properties = match &schema["additionalProperties"] {
            Value::Bool(allowed) => Some(AdditionalProperties::Boolean(*allowed)),
            inner @ Value::Object(_) => Some(AdditionalProperties::Schema(Box::new(
                Self::from_json(inner),
            ))),
            _ => None,
        };
        Self {
            reference: text(&schema["$ref"]),
            format: text(&schema["format"]),
            description: text(&schema["description"]),
            default: schema.get("default").map(|value| Any {
                yaml: value.to_string(),
            }),
            required: schema["required"]
                .as_array()
                .into_iter()
                .flatten()
                .map(text)
                .collect(),
            additional_properties: additional_properties
                .map(|oneof| Box::new(AdditionalPropertiesItem { oneof: Some(oneof) })),
            r#type: schema["type"].as_str().map(|kind| TypeItem {
                value: vec![kind.to_owned()],
            }),
            items: schema["items"].is_object().then(|| ItemsItem {
                schema: vec![Self::from_json(&schema["items"])],
            }),
            properties: schemas(&schema["properties"]).map(|additional_properties| Properties {
                additional_properties,
            }),
            vendor_extension: extensions(schema),
        }
    }
}
