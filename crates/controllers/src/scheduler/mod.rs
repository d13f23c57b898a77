//! The scheduler: which node a pod runs on. Filters say where it may run,
//! scores where it runs best; all pending pods are placed in one go over one
//! view of the cluster.

mod affinity;
mod controller;
mod filter;
mod plan;
mod score;
mod spread;
mod view;

pub(crate) use controller::run;
pub(crate) use filter::{admits, implied_taints};
