//! The server over real sockets on loopback, with upstream servers that behave
//! and such that do not.

mod support;

mod churn;
mod cores;
mod forwarding;
mod freshness;
mod hostile;
mod limits;
mod transport;
