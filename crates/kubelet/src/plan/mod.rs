//! Pure planning: from the pod's manifest and what is known of it to what
//! should be there. No I/O, no clock.

pub(crate) mod environment;
pub(crate) mod names;
pub(crate) mod oci;
pub(crate) mod quantity;
pub(crate) mod status;
