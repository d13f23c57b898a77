//! Images: an unpacked, content-addressed store shared by the nodes of a lab,
//! filled by archives, registries and the two built-in images.

mod archive;
mod config;
mod error;
mod layer;
mod manifest;
mod network;
mod reference;
mod registry;
mod store;
mod toolbox;

pub use config::Config;
pub use error::Error;
pub use network::Network;
pub use reference::Reference;
pub use registry::Credentials;
pub use store::{Image, Store};
