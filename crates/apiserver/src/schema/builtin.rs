//! Schemas of the kinds the server knows by itself.

use super::node::SchemaNode;
use super::topology;
use super::unknown;
use crate::resource::GroupVersionKind;
use crate::validation::FieldError;
use k8s_openapi::api::core::v1 as core_v1;
use k8s_openapi::api::{
    apps, autoscaling, coordination, discovery, events, networking, policy, rbac,
};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions;
use k8s_openapi::apimachinery::pkg::apis::meta;
use k8s_openapi::{ClusterResourceScope, ListableResource, NamespaceResourceScope, Resource};
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};
use std::sync::LazyLock;

/// A kind the server knows by itself.
#[derive(Clone, Debug)]
pub struct BuiltinKind {
    /// Its identity.
    pub gvk: GroupVersionKind,
    /// Resource name in paths, for instance `pods`; empty for types that only
    /// travel in bodies (`Scale`, `DeleteOptions`).
    pub plural: &'static str,
    /// Whether its objects live in namespaces.
    pub namespaced: bool,
    /// Name of its schema, for instance `io.k8s.api.core.v1.Pod`.
    pub definition: String,
}

/// The schemas of all built-in kinds.
#[derive(Debug)]
pub struct Schemas {
    definitions: Map<String, Value>,
    kinds: Vec<BuiltinKind>,
}

static BUILTIN: LazyLock<Schemas> = LazyLock::new(Schemas::build);

struct Builder {
    generator: SchemaGenerator,
    kinds: Vec<BuiltinKind>,
    /// Names and schemas of list kinds, which have no types of their own.
    lists: Vec<(String, Value)>,
}

impl Builder {
    fn body<T: JsonSchema>(&mut self, group: &str, version: &str, kind: &str) {
        self.generator.subschema_for::<T>();
        self.kinds.push(BuiltinKind {
            gvk: GroupVersionKind::new(group, version, kind),
            plural: "",
            namespaced: false,
            definition: T::schema_name().into_owned(),
        });
    }

    fn resource<T: JsonSchema + Resource + ListableResource>(&mut self, namespaced: bool) {
        self.generator.subschema_for::<T>();
        self.kinds.push(BuiltinKind {
            gvk: GroupVersionKind::new(T::GROUP, T::VERSION, T::KIND),
            plural: T::URL_PATH_SEGMENT,
            namespaced,
            definition: T::schema_name().into_owned(),
        });
        self.generator.subschema_for::<meta::v1::ListMeta>();
        let definition = format!("{}List", T::schema_name());
        self.lists
            .push((definition.clone(), list_schema(T::KIND, &T::schema_name())));
        self.kinds.push(BuiltinKind {
            gvk: GroupVersionKind::new(T::GROUP, T::VERSION, T::LIST_KIND),
            plural: "",
            namespaced: false,
            definition,
        });
    }

    fn namespaced<T>(&mut self)
    where
        T: JsonSchema + ListableResource + Resource<Scope = NamespaceResourceScope>,
    {
        self.resource::<T>(true);
    }

    fn cluster<T>(&mut self)
    where
        T: JsonSchema + ListableResource + Resource<Scope = ClusterResourceScope>,
    {
        self.resource::<T>(false);
    }
}

fn list_schema(kind: &str, item: &str) -> Value {
    json!({
        "description": format!("{kind}List is a list of {kind}."),
        "type": "object",
        "required": ["items"],
        "properties": {
            "apiVersion": {"type": "string", "description": "Group and version of the list."},
            "kind": {"type": "string", "description": "Kind of the list."},
            "metadata": {
                "$ref": "#/components/schemas/io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta"
            },
            "items": {
                "description": "The objects.",
                "type": "array",
                "items": {"$ref": format!("#/components/schemas/{item}")},
            },
        },
    })
}

impl Schemas {
    /// The built-in schemas, built at first use (some milliseconds).
    pub fn builtin() -> &'static Self {
        &BUILTIN
    }

    fn build() -> Self {
        let settings = SchemaSettings::draft2020_12().with(|settings| {
            settings.definitions_path = "/components/schemas".into();
            settings.meta_schema = None;
        });
        let mut builder = Builder {
            generator: settings.into_generator(),
            kinds: Vec::new(),
            lists: Vec::new(),
        };
        builder.cluster::<core_v1::Namespace>();
        builder.cluster::<core_v1::Node>();
        builder.namespaced::<core_v1::Pod>();
        builder.namespaced::<core_v1::Service>();
        builder.namespaced::<core_v1::ConfigMap>();
        builder.namespaced::<core_v1::Secret>();
        builder.namespaced::<core_v1::ServiceAccount>();
        builder.namespaced::<core_v1::Event>();
        builder.namespaced::<core_v1::Endpoints>();
        builder.namespaced::<events::v1::Event>();
        builder.namespaced::<apps::v1::Deployment>();
        builder.namespaced::<apps::v1::ReplicaSet>();
        builder.namespaced::<apps::v1::DaemonSet>();
        builder.namespaced::<apps::v1::StatefulSet>();
        builder.namespaced::<apps::v1::ControllerRevision>();
        builder.namespaced::<discovery::v1::EndpointSlice>();
        builder.namespaced::<networking::v1::NetworkPolicy>();
        builder.namespaced::<networking::v1::Ingress>();
        builder.cluster::<networking::v1::IngressClass>();
        builder.namespaced::<coordination::v1::Lease>();
        builder.cluster::<rbac::v1::ClusterRole>();
        builder.cluster::<rbac::v1::ClusterRoleBinding>();
        builder.namespaced::<rbac::v1::Role>();
        builder.namespaced::<rbac::v1::RoleBinding>();
        builder.cluster::<apiextensions::v1::CustomResourceDefinition>();
        builder.body::<autoscaling::v1::Scale>("autoscaling", "v1", "Scale");
        builder.body::<core_v1::Binding>("", "v1", "Binding");
        builder.body::<policy::v1::Eviction>("policy", "v1", "Eviction");
        builder.body::<meta::v1::DeleteOptions>("", "v1", "DeleteOptions");
        builder.body::<meta::v1::Status>("", "v1", "Status");

        let Builder {
            mut generator,
            kinds,
            lists,
        } = builder;
        let mut definitions = generator.take_definitions(true);
        definitions.extend(lists);
        // Any value, not only objects, as the generated type says.
        if let Some(Value::Object(any)) =
            definitions.get_mut("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSON")
        {
            any.remove("type");
        }
        // Tells the union of both from amounts, which share the extension.
        if let Some(Value::Object(union)) =
            definitions.get_mut("io.k8s.apimachinery.pkg.util.intstr.IntOrString")
        {
            union.insert("format".into(), json!("int-or-string"));
        }
        topology::annotate(&mut definitions);
        for kind in &kinds {
            let Some(definition) = definitions
                .get_mut(&kind.definition)
                .and_then(Value::as_object_mut)
            else {
                continue;
            };
            definition.insert(
                "x-kubernetes-group-version-kind".into(),
                json!([{
                    "group": kind.gvk.group,
                    "version": kind.gvk.version,
                    "kind": kind.gvk.kind,
                }]),
            );
            // The generated types insist on metadata because the Rust types
            // have it always; a manifest need not.
            if let Some(required) = definition.get_mut("required").and_then(Value::as_array_mut) {
                required.retain(|name| name != "metadata");
                if required.is_empty() {
                    definition.remove("required");
                }
            }
        }
        Self { definitions, kinds }
    }

    /// All definitions by name, for instance `io.k8s.api.core.v1.Pod`;
    /// references are `#/components/schemas/NAME`.
    pub fn definitions(&self) -> &Map<String, Value> {
        &self.definitions
    }

    /// The kinds, resources first served and types that only travel in bodies.
    pub fn kinds(&self) -> &[BuiltinKind] {
        &self.kinds
    }

    /// The kind's entry, if it is built in.
    pub fn kind(&self, gvk: &GroupVersionKind) -> Option<&BuiltinKind> {
        self.kinds.iter().find(|kind| kind.gvk == *gvk)
    }

    /// The schema of a built-in kind.
    pub fn node(&self, gvk: &GroupVersionKind) -> Option<SchemaNode<'_>> {
        let kind = self.kind(gvk)?;
        self.definitions
            .get(&kind.definition)
            .map(|schema| SchemaNode::new(schema, Some(&self.definitions)))
    }

    /// The schema of the metadata that all kinds share.
    pub fn object_meta(&self) -> Option<SchemaNode<'_>> {
        self.definitions
            .get("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta")
            .map(|schema| SchemaNode::new(schema, Some(&self.definitions)))
    }

    /// Paths of fields that the kind does not have, for instance
    /// `spec.template.spec.containers[0].foo`; empty for a kind that is not
    /// built in. Fields given twice cannot be seen in a parsed value.
    pub fn unknown_fields(&self, gvk: &GroupVersionKind, value: &Value) -> Vec<String> {
        self.node(gvk)
            .map(|node| unknown::unknown_fields(node, value))
            .unwrap_or_default()
    }

    /// Values whose JSON type is not the field's; empty for a kind that is not
    /// built in.
    pub fn type_errors(&self, gvk: &GroupVersionKind, value: &Value) -> Vec<FieldError> {
        self.node(gvk)
            .map(|node| unknown::type_errors(node, value))
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[test]
    fn every_reference_resolves() {
        fn walk(value: &Value, definitions: &Map<String, Value>) {
            match value {
                Value::Object(map) => {
                    if let Some(Value::String(reference)) = map.get("$ref") {
                        let name = reference
                            .strip_prefix("#/components/schemas/")
                            .unwrap_or_else(|| panic!("{reference}"));
                        assert!(definitions.contains_key(name), "{name}");
                    }
                    map.values().for_each(|value| walk(value, definitions));
                }
                Value::Array(list) => list.iter().for_each(|value| walk(value, definitions)),
                _ => {}
            }
        }
        let schemas = Schemas::builtin();
        schemas
            .definitions()
            .values()
            .for_each(|value| walk(value, schemas.definitions()));
    }

    #[rstest]
    #[case("", "v1", "Pod", "io.k8s.api.core.v1.Pod")]
    #[case("", "v1", "PodList", "io.k8s.api.core.v1.PodList")]
    #[case("apps", "v1", "Deployment", "io.k8s.api.apps.v1.Deployment")]
    #[case("events.k8s.io", "v1", "Event", "io.k8s.api.events.v1.Event")]
    #[case(
        "apiextensions.k8s.io",
        "v1",
        "CustomResourceDefinition",
        "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinition"
    )]
    fn kinds_have_the_definition_names_kubectl_knows(
        #[case] group: &str,
        #[case] version: &str,
        #[case] kind: &str,
        #[case] definition: &str,
    ) {
        let gvk = GroupVersionKind::new(group, version, kind);
        let found = Schemas::builtin().kind(&gvk).unwrap();
        assert_eq!(found.definition, definition);
        assert!(Schemas::builtin().definitions().contains_key(definition));
    }

    /// A renamed field or type would silently lose its merge rule.
    #[test]
    fn every_merge_rule_finds_its_field() {
        topology::assert_all_rules_match(Schemas::builtin().definitions());
    }
}
