//! What create, update and patch have in common: from a document to a
//! committed object.

use axum::response::Response;
use http::StatusCode;
use serde_json::Value;

use super::Call;
use super::body::{self, Document};
use crate::admission;
use crate::object;
use crate::registry::{DEFINITIONS, convert, custom};
use crate::rules;
use crate::status::ApiError;
use crate::store::{Expect, Key, StoreError, Stored, Write};

/// How often a change is tried again when others write the same object.
const ATTEMPTS: usize = 32;

/// What comes of a change.
pub(crate) enum Outcome {
    /// The object as it is stored now.
    Stored(std::sync::Arc<Stored>),
    /// The object, in the version asked for, as it would be stored.
    Tried(Value),
}

/// What a change makes of an object.
pub(super) struct Changed {
    /// The new object, in the version asked for.
    pub(super) value: Value,
    /// Whether the ownership of fields is already written down in it.
    pub(super) tracked: bool,
}

/// Why a change was not committed.
enum Failed {
    /// Another writer was faster; trying again may help.
    Raced,
    /// It cannot be done.
    Error(ApiError),
}

impl From<ApiError> for Failed {
    fn from(error: ApiError) -> Self {
        Self::Error(error)
    }
}

/// Whether an object that waits for its deletion is held by nothing any more.
pub(super) fn is_released(object: &Value) -> bool {
    object::is_deleting(object)
        && object::finalizers(object).is_empty()
        && object["metadata"]["deletionGracePeriodSeconds"]
            .as_i64()
            .unwrap_or(0)
            == 0
        // Of namespaces.
        && object["spec"]["finalizers"]
            .as_array()
            .is_none_or(Vec::is_empty)
}

impl Call {
    /// Reads a document of this call's kind, strictly or not as the client
    /// wishes.
    pub(super) fn decode(&mut self, body: &[u8]) -> Result<Value, ApiError> {
        let document = body::parse(&body::media_type(&self.headers), body)?;
        self.check_document(document)
    }

    /// Checks that a document is of this call's kind, and its fields.
    pub(super) fn check_document(&mut self, document: Document) -> Result<Value, ApiError> {
        let Document {
            mut value,
            duplicates,
        } = document;
        if !value.is_object() {
            return Err(ApiError::bad_request("the document is not an object"));
        }
        let gvk = &self.resource().gvk;
        let api_version = gvk.api_version();
        match value["apiVersion"].as_str() {
            None | Some("") => value["apiVersion"] = api_version.into(),
            Some(v) if v == api_version => {}
            Some(other) => {
                return Err(ApiError::bad_request(format!(
                    "the API version in the data ({other}) does not match the expected API version ({api_version})"
                )));
            }
        }
        match value["kind"].as_str() {
            None | Some("") => value["kind"] = gvk.kind.clone().into(),
            Some(k) if k == gvk.kind => {}
            Some(other) => {
                return Err(ApiError::bad_request(format!(
                    "{other} in version {:?} cannot be handled as a {}: the kind in the data does not match the resource {:?}",
                    gvk.version,
                    gvk.kind,
                    self.resource().plural
                )));
            }
        }
        self.check_fields(&mut value, duplicates)?;
        Ok(value)
    }

    /// Refuses, warns about or drops what the kind's schema does not know.
    pub(super) fn check_fields(
        &mut self,
        value: &mut Value,
        duplicates: Vec<String>,
    ) -> Result<(), ApiError> {
        let directive = self
            .query
            .get("fieldValidation")
            .unwrap_or("Warn")
            .to_owned();
        if !matches!(directive.as_str(), "Strict" | "Warn" | "Ignore") {
            return Err(ApiError::bad_request(format!(
                "fieldValidation: Unsupported value: {directive:?}: supported values: \"Ignore\", \"Strict\", \"Warn\""
            )));
        }
        let resource = std::sync::Arc::clone(&self.target.resource);
        let errors = rules::type_errors(&resource, value);
        if !errors.is_empty() {
            let list: Vec<String> = errors.iter().map(ToString::to_string).collect();
            return Err(ApiError::bad_request(format!(
                "{kind} in version {:?} cannot be handled as a {kind}: {}",
                resource.gvk.version,
                list.join(", "),
                kind = resource.gvk.kind,
            )));
        }
        if directive == "Ignore" {
            rules::prune(&resource, value);
            return Ok(());
        }
        let unknown = rules::unknown_fields(&resource, value);
        let faults: Vec<String> = unknown
            .iter()
            .map(|f| format!("unknown field {f:?}"))
            .chain(duplicates.iter().map(|f| format!("duplicate field {f:?}")))
            .collect();
        if faults.is_empty() {
            return Ok(());
        }
        if directive == "Strict" {
            return Err(ApiError::bad_request(format!(
                "strict decoding error: {}",
                faults.join(", ")
            )));
        }
        self.warnings.extend(faults);
        rules::prune(&resource, value);
        Ok(())
    }

    /// Creates an object: fills in, validates, commits. `tracked` says that
    /// the ownership of fields is written down in it already.
    pub(crate) async fn create_object(
        &mut self,
        mut new: Value,
        tracked: bool,
    ) -> Result<Outcome, ApiError> {
        let resource = std::sync::Arc::clone(&self.target.resource);
        let now = object::now();
        let generate = object::name(&new).is_empty();
        let prefix = object::text(&new, "/metadata/generateName").to_owned();
        if generate && prefix.is_empty() {
            let error = crate::validation::FieldError::required(
                "metadata.name",
                "name or generateName is required",
            );
            return Err(ApiError::invalid(&resource, "", &[error]));
        }
        admission::stamp_new(&resource, self.target.namespace.as_deref(), &mut new, &now);
        admission::prepare_new(&resource, &mut new);
        rules::default(&resource, &mut new);
        let mut attempt = 0;
        loop {
            let mut candidate = new.clone();
            if generate {
                // The prefix is cut so that the whole keeps to 63 characters.
                let prefix: String = prefix.chars().take(58).collect();
                let name = format!("{prefix}{}", object::name_suffix());
                object::set_meta(&mut candidate, "name", Some(name.into()));
                admission::prepare(&resource, &mut candidate);
            }
            let name = object::name(&candidate).to_owned();
            attempt += 1;
            match self.commit_new(candidate, tracked, &now).await {
                Err(e) if generate && e.reason == "AlreadyExists" && attempt < ATTEMPTS => {
                    tracing::debug!(name, "a generated name was taken");
                }
                result => return result,
            }
        }
    }

    async fn commit_new(
        &self,
        mut new: Value,
        tracked: bool,
        now: &str,
    ) -> Result<Outcome, ApiError> {
        let resource = &self.target.resource;
        let name = object::name(&new).to_owned();
        let key = Key::new(self.namespace(), name.as_str());
        let app = &self.app;
        let mut services = None;
        if resource.is_core("services") {
            services = Some(app.services.lock().await);
        }
        let result = async {
            if let Some(services) = &mut services {
                services.admit(resource, &key, None, &mut new)?;
            }
            let errors = rules::validate_new(resource, &new);
            if !errors.is_empty() {
                return Err(ApiError::invalid(resource, &name, &errors));
            }
            if &*resource.collection == DEFINITIONS {
                custom::establish(&mut new, &app.registry.current(), now);
            }
            if !tracked {
                rules::track(resource, None, &mut new, &self.manager(), now, None);
            }
            if self.dry_run()? {
                if app.store.get(&resource.collection, &key).is_some() {
                    return Err(ApiError::already_exists(resource, &name));
                }
                return Ok(Outcome::Tried(new));
            }
            convert(&resource.gvk, &resource.stored_as, &mut new);
            let write = Write {
                collection: resource.collection.clone(),
                key: key.clone(),
                expect: Expect::Absent,
                value: Some(new),
                live_namespace: self.target.namespace.clone(),
            };
            let stored = app.store.write(write).await;
            stored
                .map(Outcome::Stored)
                .map_err(|e| self.store_error(&e, &name))
        }
        .await;
        if let Some(mut services) = services {
            let stored = app.store.get(&resource.collection, &key);
            services.settle(&key, stored.as_deref().map(|s| &s.value));
        }
        if &*resource.collection == DEFINITIONS {
            app.registry.reload(&app.store);
        }
        result
    }

    /// Changes an object: reads it, lets `change` make the new one from the
    /// old one (both in the version asked for), commits, and does it again
    /// when another writer was faster.
    pub(super) async fn change_object(
        &mut self,
        name: &str,
        subresource: Option<&str>,
        mut change: impl FnMut(&mut Self, &Value) -> Result<Changed, ApiError>,
    ) -> Result<Outcome, ApiError> {
        let key = Key::new(self.namespace(), name);
        let mut attempt = 0;
        loop {
            let resource = std::sync::Arc::clone(&self.target.resource);
            let current = self
                .app
                .store
                .get(&resource.collection, &key)
                .ok_or_else(|| ApiError::not_found(&resource, name))?;
            let mut old = current.value.clone();
            convert(&resource.stored_as, &resource.gvk, &mut old);
            let warnings = self.warnings.len();
            let changed = change(self, &old)?;
            attempt += 1;
            match self
                .commit_change(&current, &old, changed, subresource)
                .await
            {
                // The condition was the server's own, not the client's.
                Err(Failed::Raced) if attempt < ATTEMPTS => self.warnings.truncate(warnings),
                Err(Failed::Raced) => return Err(ApiError::modified(&resource, name)),
                Err(Failed::Error(error)) => return Err(error),
                Ok(outcome) => return Ok(outcome),
            }
        }
    }

    /// Replaces an object as a whole, whatever its revision.
    pub(crate) async fn replace_object(&mut self, name: &str, new: &Value) -> Result<(), ApiError> {
        let changed = |_: &mut Self, _: &Value| {
            Ok(Changed {
                value: new.clone(),
                tracked: false,
            })
        };
        self.change_object(name, None, changed).await.map(drop)
    }

    async fn commit_change(
        &self,
        current: &std::sync::Arc<Stored>,
        old: &Value,
        changed: Changed,
        subresource: Option<&str>,
    ) -> Result<Outcome, Failed> {
        let resource = &self.target.resource;
        let app = &self.app;
        let key = &current.key;
        let Changed {
            value: mut new,
            tracked,
        } = changed;
        self.check_identity(old, &new)?;
        let now = object::now();
        admission::keep_unwritable(resource, old, &mut new, subresource);
        if subresource.is_none() {
            admission::prepare(resource, &mut new);
        }
        rules::default(resource, &mut new);
        let mut services = None;
        if resource.is_core("services") {
            services = Some(app.services.lock().await);
        }
        let result = async {
            if let Some(services) = &mut services {
                services.admit(resource, key, Some(old), &mut new)?;
            }
            admission::count_generation(resource, old, &mut new);
            let errors = rules::validate_change(resource, old, &new, subresource);
            if !errors.is_empty() {
                return Err(ApiError::invalid(resource, &key.name, &errors).into());
            }
            if &*resource.collection == DEFINITIONS && subresource.is_none() {
                custom::establish(&mut new, &app.registry.current(), &now);
            }
            if !tracked {
                rules::track(
                    resource,
                    Some(old),
                    &mut new,
                    &self.manager(),
                    &now,
                    subresource,
                );
            }
            let same = rules::same_but_managed_times(old, &new);
            if self.dry_run()? {
                return Ok(Outcome::Tried(new));
            }
            let gone = is_released(&new);
            if same && !gone {
                return Ok(Outcome::Stored(std::sync::Arc::clone(current)));
            }
            convert(&resource.gvk, &resource.stored_as, &mut new);
            let write = Write {
                collection: resource.collection.clone(),
                key: key.clone(),
                expect: Expect::Revision(current.revision),
                value: (!gone).then_some(new),
                live_namespace: None,
            };
            match app.store.write(write).await {
                Ok(stored) => Ok(Outcome::Stored(stored)),
                Err(StoreError::Modified) => Err(Failed::Raced),
                Err(e) => Err(self.store_error(&e, &key.name).into()),
            }
        }
        .await;
        if let Some(mut services) = services {
            let stored = app.store.get(&resource.collection, key);
            services.settle(key, stored.as_deref().map(|s| &s.value));
        }
        if &*resource.collection == DEFINITIONS {
            app.registry.reload(&app.store);
        }
        result
    }

    /// The name, the revision and the identity that the client has in mind
    /// must be those of the object.
    fn check_identity(&self, old: &Value, new: &Value) -> Result<(), ApiError> {
        let resource = self.resource();
        let name = object::name(old);
        let given = object::name(new);
        if given != name {
            return Err(ApiError::bad_request(format!(
                "the name of the object ({given}) does not match the name on the URL ({name})"
            )));
        }
        let given = object::namespace(new);
        if !given.is_empty() && given != object::namespace(old) {
            return Err(ApiError::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
        let given = object::resource_version(new);
        if !given.is_empty() && given != object::resource_version(old) {
            return Err(ApiError::modified(resource, name));
        }
        let given = object::uid(new);
        if !given.is_empty() && given != object::uid(old) {
            return Err(ApiError::conflict(
                resource,
                name,
                &format!(
                    "Precondition failed: UID in precondition: {given}, UID in object meta: {}",
                    object::uid(old)
                ),
            ));
        }
        let before = object::finalizers(old);
        let added: Vec<&str> = object::finalizers(new)
            .into_iter()
            .filter(|f| !before.contains(f))
            .collect();
        if object::is_deleting(old) && !added.is_empty() {
            let error = crate::validation::FieldError::forbidden(
                "metadata.finalizers",
                format!(
                    "no new finalizers can be added if the object is being deleted, found new finalizers {added:?}"
                ),
            );
            return Err(ApiError::invalid(resource, name, &[error]));
        }
        Ok(())
    }

    /// The answer to a change.
    pub(super) fn answer(&self, code: StatusCode, outcome: &Outcome) -> Result<Response, ApiError> {
        match outcome {
            Outcome::Stored(stored) => self.stored(code, stored),
            Outcome::Tried(value) => self.object(code, value),
        }
    }
}
