//! ReplicaSets: as many pods as asked for.

mod controller;
mod plan;

pub(crate) use controller::run;
