//! The lab's API server: a store, the REST conventions of Kubernetes, watches,
//! patches and schemas.

mod admission;
mod bootstrap;
pub mod defaulting;
mod http;
pub mod log_source;
mod object;
pub mod openapi;
pub mod patch;
mod pki;
mod registry;
pub mod resource;
mod rules;
pub mod schema;
mod selector;
mod server;
mod status;
mod store;
pub mod table;
pub mod validation;

pub use pki::PkiError;
pub use server::{Config, Error, Server};
pub use status::ApiError;
pub use store::StoreError;
