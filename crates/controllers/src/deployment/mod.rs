//! Deployments: rollouts by ReplicaSets, one a template.

mod controller;
mod plan;
mod scale;
mod status;

pub(crate) use controller::run;
