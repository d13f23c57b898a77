//! Typed access to the parts of the Linux kernel that a node's network is made of.
//!
//! This crate knows the kernel and nothing else: no orchestrator, no
//! configuration format. It speaks netlink directly (no external commands)
//! and is the only crate of the workspace that contains `unsafe`.

pub mod address;
pub mod background;
mod bpf;
pub mod conntrack;
pub mod datagram;
pub mod ethtool;
pub mod events;
pub mod fast_path;
pub mod fdb;
mod generic;
pub mod ipsec;
pub mod ipvs;
pub mod link;
mod mac;
pub mod memory;
pub mod mount;
pub mod namespace;
pub mod neighbour;
pub mod netconf;
mod netfilter;
pub mod netlink;
pub mod nftables;
pub mod process;
pub mod qdisc;
pub mod route;
pub mod rule;
pub mod sysctl;
pub mod tunnel;
pub mod wireguard;

/// The route protocol (`rtm_protocol`, see `/etc/iproute2/rt_protos`) that
/// marks every route and every policy rule podwire makes, so that they can be listed
/// and removed alone.
pub const PODWIRE_ROUTE_PROTOCOL: u8 = 112;
