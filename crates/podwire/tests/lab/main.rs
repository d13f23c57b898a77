//! Whole clusters: every test brings up a lab of its own with the built
//! programs, sends real traffic through it, and takes it down. Root is needed;
//! without it the tests fail.

mod dns;
mod endpoints;
mod foreign_cni;
mod hostports;
mod images;
mod internet;
mod kubectl;
mod nodes;
mod outside;
mod paths;
mod pods;
mod publish;
mod routing;
mod services;
mod services_change;
mod services_conformance;
mod services_matrix;
mod support;
mod survival;
