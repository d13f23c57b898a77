//! Pod addresses of a node: which are handed out, to whom, and which is next.
//!
//! Addresses come from [`ranges`] in the shape of the reference `host-local`
//! plugin. Reservations live in a [`store`]: small JSON files under `/run`,
//! safe against the death of any process at any moment and gone with the boot.
//! No kernel object is touched.

pub mod node;
pub mod ranges;
pub mod store;

pub use node::NodeRanges;
pub use ranges::{Range, RangeSet};
pub use store::{
    Attachment, Claim, Entry, Error, Hold, Lease, Pod, Releasing, Reservation, Reserved, Store,
};
