//! Why an agent does not start.

use std::io;

/// Why an agent does not start, or the clean-up failed. What goes wrong later
/// is logged, shown by /healthz and retried.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The process may not change the network.
    #[error(
        "podwire agent needs the capability CAP_NET_ADMIN to program routes and packet filters; \
         run it as root, or give its container securityContext.privileged or NET_ADMIN"
    )]
    NotPermitted,
    /// The API server's configuration cannot be used.
    #[error(transparent)]
    Client(#[from] api::client::Error),
    /// Something of the process itself could not be had.
    #[error("cannot set up {what}: {source}")]
    Setup {
        /// What.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The kernel cannot be asked over netlink.
    #[error("cannot talk to the kernel over netlink: {0}")]
    Netlink(#[from] linux::netlink::Error),
    /// Routing cannot start.
    #[error("cannot start routing: {0}")]
    Routing(#[from] routing::apply::Error),
    /// The packet filter cannot be asked, or refuses.
    #[error("cannot remove podwire's nftables table: {0}")]
    Nftables(#[from] linux::nftables::Error),
    /// What a proxy made could not be removed.
    #[error("cannot remove the rules of Services: {0}")]
    Services(#[from] services::Error),
    /// The CNI configuration could not be removed.
    #[error(transparent)]
    Install(#[from] cni::install::Error),
}
