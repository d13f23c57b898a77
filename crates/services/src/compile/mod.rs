//! From the table to nftables objects: the fixed sets and chains, the number a
//! frontend gets, and the elements that stand for it. Pure.
//!
//! A packet's way, for the first packet of a connection only (nat chains see no
//! others): `services` looks (address, protocol, port) up and gets a number;
//! `dispatch` sends that number to a chain shared by all frontends alike; there
//! a slot is drawn, and (address, protocol, port, slot) yields the backend.
//!
//! With session affinity the slot yields the backend's id, which `affinity`
//! remembers for (client, address, protocol, port) until its time is over, and
//! the id yields the backend. An id stays with a backend for as long as that is
//! used, whatever happens to the slots; an id that no backend has is forgotten
//! when it is found.

mod chains;
mod choice;
mod elements;
mod expressions;
mod number;
mod sets;

pub(crate) use chains::{
    FROM_NODE_CHAIN, FROM_OTHERS_CHAIN, HAIRPIN_CHAIN, discard_rule, hairpin, if_node, in_state,
    invalid_rule, leaving, refuse_chain, stays_here, unless_pod,
};
pub use chains::{Masqueraded, chains, masquerade_kinds};
pub use choice::number_chains;
pub use elements::{
    allowed, backend_element, cluster_ip_element, dispatch_element, hairpin_element,
    range_elements, ranges, service_element, source_element, turn_element,
};
pub(crate) use elements::{backend_bytes, frontend_bytes, slot_bytes};
pub(crate) use expressions::{Registers, base, from_this_node, goto, lookup, masquerade, regular};
pub(crate) use number::{DISCARD_CHAIN, REFUSE_CHAIN};
pub use number::{IDS, NEAR_IDS, NEAR_SLOTS, Number, Wanted, frontend, is_number_chain};
pub use sets::{DISPATCH, MASQUERADE_KINDS, SetNames, sets};

/// The table all of podwire's rules are in (family `inet`).
pub const TABLE: &str = "podwire";
