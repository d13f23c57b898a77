//! The patch formats of the API: JSON patch, merge patch, strategic merge patch and server-side apply.

mod field_set;
pub mod json;
pub mod managed_fields;
pub mod merge;
pub mod server_side;
pub mod strategic;
mod typed;

use thiserror::Error;

/// Why a patch could not be applied.
#[derive(Debug, Error, PartialEq)]
pub enum PatchError {
    /// The patch is not of the format it claims to be; answer 400.
    #[error("cannot read the patch: {0}")]
    Malformed(String),
    /// The patch does not fit the object, for instance a failed `test`; answer 422.
    #[error("cannot apply the patch: {0}")]
    Mismatch(String),
    /// Strategic merge is only known for built-in kinds; answer 415.
    #[error(
        "strategic merge patch is not supported for {kind} in {api_version}: use application/merge-patch+json or application/json-patch+json"
    )]
    UnsupportedKind {
        /// `apiVersion` of the object.
        api_version: String,
        /// Its kind.
        kind: String,
    },
}
