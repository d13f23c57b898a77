//! Which proxy to run and how, and changing from one to another: a proxy begins
//! by bringing its own rules into force beside those of the one before, and then
//! takes the others' away. Wherever it is interrupted, the next start goes on.

use linux::namespace::NetworkNamespace;

use crate::Error;
use crate::data_plane::{DataPlane, ProxyMode};
use crate::iptables::{self, IptablesDataPlane, Variant};
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
}

impl ProxySettings {
    /// A proxy with the defaults of its options.
    #[must_use]
    pub const fn new(mode: ProxyMode) -> Self {
        Self {
            mode,
            iptables: None,
            cut_connections: false,
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
        })
    }
}

/// Removes all that the proxies made in the calling thread's network namespace.
/// Returns which of them had something there.
///
/// # Errors
/// If something cannot be read or removed; what was removed so far stays removed.
pub fn remove_all() -> Result<Vec<ProxyMode>, Error> {
    let mut found = Vec::new();
    for mode in ProxyMode::ALL {
        if remove(mode, None)? {
            found.push(mode);
        }
    }
    Ok(found)
}

/// Removes what proxies other than `own` left in a namespace.
pub(crate) fn remove_others(
    namespace: &NetworkNamespace,
    own: &dyn DataPlane,
) -> Result<Vec<ProxyMode>, Error> {
    let (mode, variant) = (own.mode(), own.variant());
    namespace.run(|| {
        let mut found = Vec::new();
        for other in ProxyMode::ALL {
            // Of iptables the other variant may hold rules of a previous run.
            let keep = variant.filter(|_| other == mode);
            if (other != mode || keep.is_some()) && remove(other, keep)? {
                found.push(other);
            }
        }
        Ok(found)
    })?
}

fn remove(mode: ProxyMode, keep: Option<Variant>) -> Result<bool, Error> {
    match mode {
        ProxyMode::Nftables => nftables::remove(),
        ProxyMode::Iptables => iptables::remove(keep),
    }
}
