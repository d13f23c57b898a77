//! Garbage collection: objects go with their owners, and namespaces with all
//! that is in them.

mod controller;
mod graph;
mod inventory;
mod namespaces;

pub(crate) use controller::run;
