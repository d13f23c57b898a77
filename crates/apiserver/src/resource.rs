//! Identity of kinds.

/// Group, version and kind of an object, as its `apiVersion` and `kind` say.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupVersionKind {
    /// API group; empty for the core group.
    pub group: String,
    /// Version in the group, for instance `v1`.
    pub version: String,
    /// Kind in CamelCase, for instance `Pod`.
    pub kind: String,
}

impl GroupVersionKind {
    /// Makes the identity of a kind from its three parts.
    pub fn new(
        group: impl Into<String>,
        version: impl Into<String>,
        kind: impl Into<String>,
    ) -> Self {
        Self {
            group: group.into(),
            version: version.into(),
            kind: kind.into(),
        }
    }

    /// The value of an object's `apiVersion` field.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.clone()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }
}
