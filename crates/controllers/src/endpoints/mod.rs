//! EndpointSlices: for each Service with a selector, which pods answer where.

mod controller;
mod desired;
mod plan;
mod trigger;

pub(crate) use controller::run;
