//! A small synchronous netlink socket.
//!
//! One [`Socket`] serves one thread. Requests are sent several at a time in one
//! `sendmsg` and acknowledged one by one ([`Socket::execute_all`]); dumps are
//! repeated when the kernel says that the table changed below them; refusals
//! carry the kernel's own explanation (extended acknowledgement).
//!
//! The socket is independent of the netlink family: [`Request::route`] encodes
//! route netlink, other families encode their bodies themselves and use
//! [`Request::new`] or, for formats of their own such as nfnetlink batches,
//! [`Socket::send`] and [`Socket::receive`].
//!
//! Sources: RFC 3549; `include/uapi/linux/netlink.h`;
//! `Documentation/userspace-api/netlink/intro.rst`.

mod error;
mod message;
mod request;
mod socket;

pub(crate) use error::gone;
pub use error::{Error, Refusal};
pub use message::{Message, Messages};
pub use netlink_packet_core::{
    NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_DUMP, NLM_F_ECHO, NLM_F_EXCL, NLM_F_REPLACE,
    NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NLMSG_NOOP,
};
pub use request::Request;
pub use socket::{Protocol, Socket};
