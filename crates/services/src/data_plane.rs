//! What brings the service table into the kernel of one network namespace: one
//! trait, and an implementation for each proxy. They share the table; only the
//! way from it to the kernel differs.

use std::collections::HashSet;
use std::fmt;

use crate::Error;
use crate::iptables::Variant;
use linux::nftables::Count;
use serde::Serialize;

use crate::model::{Backend, FrontendKey};
use crate::table::{Changes, Table};

/// The proxies there are, by kube-proxy's names of its modes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ProxyMode {
    /// Maps of an nftables table of our own: cost does not grow with the number
    /// of Services.
    Nftables,
    /// Chains in the tables of iptables, one rule for each frontend and backend.
    Iptables,
    /// Virtual servers of IPVS.
    Ipvs,
}

impl ProxyMode {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Nftables, Self::Iptables, Self::Ipvs];

    /// As command lines and reports name it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
            Self::Ipvs => "ipvs",
        }
    }
}

impl fmt::Display for ProxyMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Something a proxy does not do, or does otherwise than the rules of Services say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// The node says that it has the addresses of Services.
    IpvsAnswersArp,
    /// The node holds load-balancer and external addresses.
    IpvsHeldPorts,
    /// Session affinity remembers so many clients of an endpoint and no more.
    IptablesClients(u32),
    /// The first packet of a connection is compared with one rule after another.
    IptablesLinear,
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::IpvsAnswersArp => f.write_str(
                "the node holds the addresses of Services on an interface and answers ARP \
                 requests for them; --ipvs-strict-arp leaves that to others",
            ),
            Self::IpvsHeldPorts => f.write_str(
                "ports of load-balancer and external addresses that are no Service's are refused, \
                 not sent on to whoever else has the address",
            ),
            Self::IptablesClients(count) => write!(
                f,
                "session affinity remembers {count} clients of each endpoint (parameter \
                 ip_list_tot of module xt_recent); the oldest is forgotten for the next"
            ),
            Self::IptablesLinear => f.write_str(
                "the cost of a change and of a new connection grows with the number of Services",
            ),
        }
    }
}

/// How far a removal came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// There was nothing.
    Nothing,
    /// It is gone.
    Done,
    /// So many virtual servers wait for their connections to end.
    Pending(usize),
}

impl Removal {
    pub(crate) const fn of(found: bool) -> Self {
        if found { Self::Done } else { Self::Nothing }
    }
}

/// What an application or an audit did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Applied {
    /// Frontends that were looked at.
    pub frontends: HashSet<FrontendKey>,
    /// Elements or rules added and deleted.
    pub elements: usize,
    /// Bytes sent to the kernel or to the program that speaks to it.
    pub bytes: usize,
    /// Whether everything was compared with what the kernel holds.
    pub full: bool,
    /// What others had damaged and was put right.
    pub repaired: Vec<String>,
}

/// How much a frontend has sent to a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Traffic {
    /// The frontend.
    pub frontend: FrontendKey,
    /// The backend.
    pub backend: Backend,
    /// Packets. Of the nftables and iptables proxies those that began a
    /// connection: others pass no rule of theirs.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Traffic {
    pub(crate) const fn new(frontend: FrontendKey, backend: Backend, count: Count) -> Self {
        Self {
            frontend,
            backend,
            packets: count.packets,
            bytes: count.bytes,
        }
    }
}

/// One way of bringing the service table into the kernel.
///
/// The first [`Self::sync`] adopts what a previous run left and changes only
/// what differs. What it makes stays when it is dropped;
/// [`crate::settings::remove_all`] takes it away.
pub trait DataPlane: fmt::Debug + Send {
    /// Which proxy this is.
    fn mode(&self) -> ProxyMode;

    /// The variant of iptables in use, of that proxy.
    fn variant(&self) -> Option<Variant> {
        None
    }

    /// What this proxy does not do, or does otherwise than the rules of
    /// Services say.
    fn limits(&self) -> Vec<Limit> {
        Vec::new()
    }

    /// Brings the kernel to the table: the frontends and addresses that
    /// `changes` names, or everything if the kernel's state is not known.
    ///
    /// # Errors
    /// If the kernel refuses; the caller keeps the changes for the next call.
    fn sync(&mut self, table: &Table, changes: &Changes) -> Result<Applied, Error>;

    /// Looks whether somebody else changed what is ours, puts it right, and
    /// clears away what is no longer needed.
    ///
    /// # Errors
    /// If the kernel cannot be read, or refuses the repair.
    fn audit(&mut self, table: &Table) -> Result<Applied, Error>;

    /// What frontends have sent to backends since those were made, by the
    /// kernel's counters; none if this proxy has no counters. Reads all of them:
    /// for people, not for the way of a change.
    ///
    /// # Errors
    /// If the kernel cannot be read.
    fn traffic(&mut self) -> Result<Vec<Traffic>, Error> {
        Ok(Vec::new())
    }
}
