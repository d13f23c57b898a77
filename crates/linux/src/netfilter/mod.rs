//! The netfilter netlink socket, shared by [`crate::nftables`] and
//! [`crate::conntrack`]: attributes, messages, requests, dumps.

pub(crate) mod socket;
pub(crate) mod wire;
