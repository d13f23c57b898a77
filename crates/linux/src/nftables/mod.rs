//! nftables over netlink: objects as values, batches that the kernel takes
//! whole or not at all, and what it holds read back.
//!
//! An own encoder, because no library writes concatenated maps, data maps and
//! atomic batches. What podwire writes is what it can read: [`Expression`]
//! holds just the forms podwire uses, and a rule with any other reads as
//! foreign.
//!
//! Source: `linux/netfilter/nf_tables.h`, `linux/netfilter/nfnetlink.h`.

mod batch;
mod expression;
mod foreign;
mod object;
mod socket;
mod text;
pub mod walker;

pub use batch::Batch;
pub use expression::{
    Comparison, Conntrack, Expression, FibAddress, Found, Header, Meta, NAT_FULLY_RANDOM,
    NatFamily, RTN_LOCAL, Register, Reject, Verdict, ct_state, ct_status,
};
pub use foreign::{Checkpoint, Obstacle};
pub use object::{
    Base, Chain, ChainKind, Count, DataType, Element, Family, Hook, MapData, Rule, Set, Value,
    priority, push_field,
};
pub use socket::{Error, Generation, LiveChain, LiveRule, LiveSet, Nftables};
pub use text::{render_chain, render_element, render_rule, render_set};
