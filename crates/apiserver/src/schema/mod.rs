//! What fields the built-in kinds and the custom resources have.
//!
//! Every schema here is an OpenAPI v3 JSON schema with Kubernetes' extensions
//! (`x-kubernetes-list-type` and its relatives), so that built-in kinds and
//! custom resources are walked by the same code: see [`SchemaNode`].

mod builtin;
pub mod crd;
mod node;
mod topology;
mod unknown;

pub use builtin::{BuiltinKind, Schemas};
pub use node::{ListType, SchemaNode};
pub use unknown::{type_errors, unknown_fields};
