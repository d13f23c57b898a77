//! StatefulSets: pods with names that last, in order.

mod controller;
mod plan;

pub(crate) use controller::run;
