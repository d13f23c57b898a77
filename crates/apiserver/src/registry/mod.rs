//! What is served: the built-in kinds as data, and the kinds that
//! CustomResourceDefinitions add.

mod builtin;
pub(crate) mod custom;

use std::collections::HashMap;
use std::sync::{Arc, RwLock};

use serde_json::Value;

use crate::resource::GroupVersionKind;
use crate::store::Store;
pub(crate) use custom::Custom;

/// One resource as it is served in one version.
#[derive(Debug, Clone)]
pub(crate) struct Resource {
    /// The kind that it holds.
    pub(crate) gvk: GroupVersionKind,
    /// Name in paths, for instance `pods`.
    pub(crate) plural: String,
    /// Name of one object for people, for instance `pod`.
    pub(crate) singular: String,
    /// Abbreviations, for instance `po`.
    pub(crate) short_names: Vec<String>,
    /// Groups of resources that it belongs to, for instance `all`.
    pub(crate) categories: Vec<String>,
    /// Kind of its lists.
    pub(crate) list_kind: String,
    /// Whether objects live in namespaces.
    pub(crate) namespaced: bool,
    /// Whether it has a status subresource: status is written there only.
    pub(crate) status: bool,
    /// Whether it has a scale subresource.
    pub(crate) scale: bool,
    /// Whether `metadata.generation` counts changes of the wanted state.
    pub(crate) generation: bool,
    /// The collection of the store that holds it.
    pub(crate) collection: Arc<str>,
    /// The kind and version in which it is stored.
    pub(crate) stored_as: GroupVersionKind,
    /// Of custom resources: what their definition says.
    pub(crate) custom: Option<Arc<Custom>>,
}

impl Resource {
    /// `plural` or `plural.group`, as messages name it.
    pub(crate) fn qualified(&self) -> String {
        if self.gvk.group.is_empty() {
            self.plural.clone()
        } else {
            format!("{}.{}", self.plural, self.gvk.group)
        }
    }

    /// Whether a built-in resource of the core group has this plural.
    pub(crate) fn is_core(&self, plural: &str) -> bool {
        self.gvk.group.is_empty() && self.plural == plural
    }

    /// Whether objects are stored in the very form in which they are served.
    pub(crate) fn is_stored_form(&self) -> bool {
        self.gvk == self.stored_as
    }

    /// Subresources beside `status` and `scale`, with the kind they take and
    /// its group, and their verbs.
    pub(crate) fn actions(&self) -> &'static [Action] {
        if self.is_core("pods") {
            builtin::POD_ACTIONS
        } else if self.is_core("namespaces") {
            builtin::NAMESPACE_ACTIONS
        } else {
            &[]
        }
    }

    /// Verbs as discovery lists them.
    pub(crate) fn verbs(&self) -> &'static [&'static str] {
        &[
            "create",
            "delete",
            "deletecollection",
            "get",
            "list",
            "patch",
            "update",
            "watch",
        ]
    }
}

/// A subresource that is an action rather than a view of the object.
#[derive(Debug)]
pub(crate) struct Action {
    /// Name in paths.
    pub(crate) name: &'static str,
    /// Group of the kind; empty for the core group.
    pub(crate) group: &'static str,
    /// Version of the kind.
    pub(crate) version: &'static str,
    /// Kind of the document that it takes or gives.
    pub(crate) kind: &'static str,
    /// Verbs as discovery lists them.
    pub(crate) verbs: &'static [&'static str],
}

/// All that is served at one moment.
#[derive(Debug, Default)]
pub(crate) struct Catalogue {
    by_path: HashMap<(String, String, String), Arc<Resource>>,
    /// In the order of discovery.
    resources: Vec<Arc<Resource>>,
}

impl Catalogue {
    fn add(&mut self, resource: Resource) {
        let resource = Arc::new(resource);
        let key = (
            resource.gvk.group.clone(),
            resource.gvk.version.clone(),
            resource.plural.clone(),
        );
        // Built-in kinds come first and cannot be shadowed.
        if let std::collections::hash_map::Entry::Vacant(free) = self.by_path.entry(key) {
            free.insert(Arc::clone(&resource));
            self.resources.push(resource);
        }
    }

    /// The resource at a path.
    pub(crate) fn find(&self, group: &str, version: &str, plural: &str) -> Option<Arc<Resource>> {
        self.by_path
            .get(&(group.to_owned(), version.to_owned(), plural.to_owned()))
            .cloned()
    }

    /// All resources.
    pub(crate) fn all(&self) -> &[Arc<Resource>] {
        &self.resources
    }

    /// The groups in order of discovery, each with its versions, preferred
    /// version first. The core group is the empty name.
    pub(crate) fn groups(&self) -> Vec<(String, Vec<String>)> {
        let mut groups: Vec<(String, Vec<String>)> = Vec::new();
        for resource in &self.resources {
            let GroupVersionKind { group, version, .. } = &resource.gvk;
            match groups.iter_mut().find(|(g, _)| g == group) {
                Some((_, versions)) => {
                    if !versions.contains(version) {
                        versions.push(version.clone());
                    }
                }
                None => groups.push((group.clone(), vec![version.clone()])),
            }
        }
        for (_, versions) in &mut groups {
            versions.sort_by(|a, b| custom::compare_versions(b, a));
        }
        groups
    }

    /// The resources of one group and version.
    pub(crate) fn of<'a>(
        &'a self,
        group: &'a str,
        version: &'a str,
    ) -> impl Iterator<Item = &'a Arc<Resource>> {
        self.resources
            .iter()
            .filter(move |r| r.gvk.group == group && r.gvk.version == version)
    }
}

/// The present catalogue, replaced when definitions change.
#[derive(Debug)]
pub(crate) struct Registry {
    current: RwLock<Arc<Catalogue>>,
}

/// The collection that holds CustomResourceDefinitions.
pub(crate) const DEFINITIONS: &str = "customresourcedefinitions.apiextensions.k8s.io";

impl Registry {
    /// The built-in kinds and what the store's definitions add.
    pub(crate) fn new(store: &Store) -> Self {
        let registry = Self {
            current: RwLock::default(),
        };
        registry.reload(store);
        registry
    }

    /// The present catalogue.
    pub(crate) fn current(&self) -> Arc<Catalogue> {
        Arc::clone(&self.current.read().unwrap_or_else(|e| e.into_inner()))
    }

    /// Reads the definitions again.
    pub(crate) fn reload(&self, store: &Store) {
        // The lock is held while reading, so that of two reloads the later
        // one wins.
        let mut current = self.current.write().unwrap_or_else(|e| e.into_inner());
        let mut catalogue = Catalogue::default();
        for resource in builtin::resources() {
            catalogue.add(resource);
        }
        for definition in store.list(DEFINITIONS, None).objects {
            for resource in custom::resources(&definition.value) {
                catalogue.add(resource);
            }
        }
        *current = Arc::new(catalogue);
    }
}

/// Turns an object from the form in which it is stored into the one asked
/// for, or back.
pub(crate) fn convert(from: &GroupVersionKind, to: &GroupVersionKind, object: &mut Value) {
    if from == to {
        return;
    }
    if from.kind == "Event" && from.group.is_empty() {
        builtin::rename(object, builtin::EVENT_FIELDS.iter().copied());
    } else if to.kind == "Event" && to.group.is_empty() {
        builtin::rename(object, builtin::EVENT_FIELDS.iter().map(|(a, b)| (*b, *a)));
    }
    if let Some(fields) = object.as_object_mut() {
        fields.insert("apiVersion".into(), to.api_version().into());
        fields.insert("kind".into(), to.kind.clone().into());
    }
}
