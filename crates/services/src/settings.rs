//! Which proxy to run and how, and changing from one to another: a proxy begins
//! by bringing its own rules into force beside those of the one before, and then
//! takes the others' away. Wherever it is interrupted, the next start goes on.

use linux::namespace::NetworkNamespace;

use crate::Error;
use crate::data_plane::{DataPlane, ProxyMode, Removal};
use crate::iptables::{self, IptablesDataPlane, Variant};
use crate::ipvs::{self, IpvsDataPlane, Scheduler};
use crate::nftables::{self, NftablesDataPlane};

/// Which proxy, and its options.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProxySettings {
    /// Which.
    pub mode: ProxyMode,
    /// The variant of iptables; without it, the one that the node's other
    /// programs use.
    pub iptables: Option<Variant>,
    /// Also end TCP connections with endpoints that no longer serve, instead of
    /// letting them go on for as long as the endpoint answers.
    pub cut_connections: bool,
    /// How virtual servers of IPVS choose.
    pub scheduler: Scheduler,
    /// Whether a node with IPVS leaves ARP for the addresses of Services to others.
    pub strict_arp: bool,
}

impl ProxySettings {
    /// A proxy with the defaults of its options.
    #[must_use]
    pub const fn new(mode: ProxyMode) -> Self {
        Self {
            mode,
            iptables: None,
            cut_connections: false,
            scheduler: Scheduler::RoundRobin,
            strict_arp: false,
        }
    }

    /// Starts it in the calling thread's network namespace.
    ///
    /// # Errors
    /// If the kernel or the programs it needs are missing.
    pub fn start(&self) -> Result<Box<dyn DataPlane>, Error> {
        Ok(match self.mode {
            ProxyMode::Nftables => Box::new(NftablesDataPlane::start()?),
            ProxyMode::Iptables => Box::new(IptablesDataPlane::start(self.iptables)?),
            ProxyMode::Ipvs => Box::new(IpvsDataPlane::start(self.scheduler, self.strict_arp)?),
        })
    }
}

/// Removes all that the proxies made in the calling thread's network namespace,
/// whatever still uses it. Returns which of them had something there.
///
/// # Errors
/// If something cannot be read or removed; what was removed so far stays removed.
pub fn remove_all() -> Result<Vec<ProxyMode>, Error> {
    let mut found = Vec::new();
    for mode in ProxyMode::ALL {
        if remove(mode, None, true)? != Removal::Nothing {
            found.push(mode);
        }
    }
    Ok(found)
}

/// Removes what proxies other than `own` left in a namespace, as far as no
/// connection needs it. Returns how far that came with which of them.
pub(crate) fn remove_others(
    namespace: &NetworkNamespace,
    own: &dyn DataPlane,
) -> Result<Vec<(ProxyMode, Removal)>, Error> {
    let (mode, variant) = (own.mode(), own.variant());
    namespace.run(|| {
        let mut found = Vec::new();
        for other in ProxyMode::ALL {
            // Of iptables the other variant may hold rules of a previous run.
            let keep = variant.filter(|_| other == mode);
            if other == mode && keep.is_none() {
                continue;
            }
            let removal = remove(other, keep, false)?;
            if removal != Removal::Nothing {
                found.push((other, removal));
            }
        }
        Ok(found)
    })?
}

fn remove(mode: ProxyMode, keep: Option<Variant>, cut: bool) -> Result<Removal, Error> {
    match mode {
        ProxyMode::Nftables => nftables::remove().map(Removal::of),
        ProxyMode::Iptables => iptables::remove(keep).map(Removal::of),
        ProxyMode::Ipvs => ipvs::remove(cut),
    }
}
