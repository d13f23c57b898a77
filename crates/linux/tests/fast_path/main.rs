//! The fast path against the kernel: two nodes with a pod each, and real traffic
//! between the pods, with the program's counters, nftables and conntrack as
//! witnesses. Needs root.
#![allow(clippy::unwrap_used, reason = "tests say what they expect with unwrap")]

mod connections;
mod end;
mod forged;
mod ipip;
mod kernels;
mod limits;
mod nodes;
mod peers;
mod pods;
mod traffic;
mod tunnels;
mod wire;
mod witness;
