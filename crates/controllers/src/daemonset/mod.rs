//! DaemonSets: one pod a node.

mod controller;
mod plan;

pub(crate) use controller::run;
