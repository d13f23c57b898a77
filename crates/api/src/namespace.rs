//! Namespace (core/v1).

use serde::Deserialize;

use crate::meta::{Metadata, Resource};

/// A namespace: its labels are what policies select by.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Namespace {
    /// Name and labels.
    pub metadata: Metadata,
}

impl Resource for Namespace {
    const KIND: &'static str = "Namespace";
    const API: &'static str = "/api/v1";
    const PLURAL: &'static str = "namespaces";
    const NAMESPACED: bool = false;

    fn metadata(&self) -> &Metadata {
        &self.metadata
    }
}
