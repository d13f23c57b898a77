//! The proxy: takes events, and brings the kernel to what they ask for.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use linux::conntrack::{self, Conntrack};
use linux::namespace::{self, NetworkNamespace};
use linux::nftables;

use crate::compile;
use crate::conversations;
use crate::data_plane::{Applied, DataPlane, Limit, ProxyMode, Removal, Traffic};
use crate::model::{EndpointSlice, FrontendKey, NodeFacts, Service, ServiceName};
use crate::settings::{self, ProxySettings};
use crate::table::Table;
use crate::{iptables, ipvs};

/// Why Services could not be brought into the kernel.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The packet filter did not take the rules, or could not be read. What was
    /// to be done is kept and tried again with the next sync.
    #[error("programming Services: {0}")]
    Nftables(#[from] nftables::Error),
    /// The programs of iptables are missing or refused.
    #[error("programming Services by iptables: {0}")]
    Iptables(#[from] iptables::program::Error),
    /// IPVS cannot be used, or refused.
    #[error("programming Services by IPVS: {0}")]
    Ipvs(#[from] ipvs::IpvsError),
    /// A network namespace could not be entered.
    #[error("entering the network namespace of Services: {0}")]
    Namespace(#[from] namespace::Error),
    /// Conntrack cannot be used at all.
    #[error("looking after UDP conversations of Services: {0}")]
    Conntrack(#[from] conntrack::Error),
}

/// What a sync did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stats {
    /// Frontends that were looked at.
    pub frontends: usize,
    /// Elements or rules added and deleted.
    pub elements: usize,
    /// Bytes sent to the kernel; 0 if it needed no change.
    pub bytes: usize,
    /// Whether this sync compared everything: the first one, and those after
    /// somebody else changed what is ours.
    pub full: bool,
    /// UDP and SCTP conversations with endpoints that are gone, ended.
    pub conversations: usize,
    /// What others had damaged and this sync put right.
    pub repaired: Vec<String>,
    /// Of an audit: rules and policies of others that may keep Services' packets
    /// from getting through, see [`Proxy::obstacles`].
    pub obstacles: Vec<String>,
}

/// Services in the kernel of one network namespace.
///
/// Blocking; meant for a thread of its own. Events are taken up at once and
/// reach the kernel together with the next [`Self::sync`].
#[derive(Debug)]
pub struct Proxy {
    table: Table,
    data_plane: Box<dyn DataPlane>,
    conntrack: Conntrack,
    /// Frontends whose conversations are yet to be looked at.
    unchecked: HashSet<FrontendKey>,
    namespace: NetworkNamespace,
    /// Whether what other proxies left is gone.
    alone: bool,
    /// Whether TCP connections with endpoints that are gone are ended too.
    cut: bool,
    /// What stood in the way at the last audit.
    obstacles: Vec<String>,
}

impl Proxy {
    /// The nftables proxy, see [`Self::start_as`].
    ///
    /// # Errors
    /// If nftables or conntrack cannot be used.
    pub fn start(facts: NodeFacts) -> Result<Self, Error> {
        Self::start_as(&ProxySettings::new(ProxyMode::Nftables), facts)
    }

    /// A proxy of any mode: connects to the calling thread's network namespace
    /// and reads what a previous run left there. Changes nothing yet: tell it
    /// all Services and slices there are, then call [`Self::sync`]. The first
    /// sync also removes what a proxy of another mode left, once its own rules
    /// are in force.
    ///
    /// # Errors
    /// If what the proxy needs of kernel or programs is missing.
    pub fn start_as(settings: &ProxySettings, facts: NodeFacts) -> Result<Self, Error> {
        Ok(Self {
            table: Table::new(facts),
            data_plane: settings.start()?,
            conntrack: Conntrack::open()?,
            unchecked: HashSet::new(),
            namespace: NetworkNamespace::current()?,
            alone: false,
            cut: settings.cut_connections,
            obstacles: Vec::new(),
        })
    }

    /// Which proxy this is.
    #[must_use]
    pub fn mode(&self) -> ProxyMode {
        self.data_plane.mode()
    }

    /// What this proxy does not do, or does otherwise than the rules say.
    #[must_use]
    pub fn limits(&self) -> Vec<Limit> {
        self.data_plane.limits()
    }

    /// The table, for reports.
    #[must_use]
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// A Service was made or changed.
    pub fn service_changed(&mut self, service: Service) {
        self.table.set_service(service);
    }

    /// A Service is gone.
    pub fn service_removed(&mut self, name: &ServiceName) {
        self.table.remove_service(name);
    }

    /// A slice was made or changed. Returns whether anything of it that matters
    /// here is other than before.
    pub fn endpoint_slice_changed(&mut self, slice: &EndpointSlice) -> bool {
        self.table.set_slice(slice)
    }

    /// A slice is gone.
    pub fn endpoint_slice_removed(&mut self, namespace: &str, name: &str) {
        self.table.remove_slice(namespace, name);
    }

    /// The facts of node or cluster changed.
    pub fn facts_changed(&mut self, facts: NodeFacts) {
        self.table.set_facts(facts);
    }

    /// Brings the kernel to what the events so far ask for.
    ///
    /// # Errors
    /// If the kernel refuses; the changes are kept for the next call.
    pub fn sync(&mut self) -> Result<Stats, Error> {
        let changes = self.table.take_changes();
        match self.data_plane.sync(&self.table, &changes) {
            Ok(applied) => Ok(self.finish(applied)),
            Err(error) => {
                self.table.return_changes(changes);
                Err(error)
            }
        }
    }

    /// Looks whether somebody else changed what is ours and puts it right.
    ///
    /// # Errors
    /// If the kernel cannot be read, or refuses the repair.
    pub fn audit(&mut self) -> Result<Stats, Error> {
        let applied = self.data_plane.audit(&self.table)?;
        // All conversations, whatever was noticed of them so far.
        let cut = self.cut;
        self.unchecked.extend(
            self.table
                .holders()
                .map(|(key, _)| key)
                .filter(|key| conversations::concerns(key, cut)),
        );
        let mut stats = self.finish(applied);
        stats.obstacles = self.look_for_obstacles();
        Ok(stats)
    }

    /// Rules and policies of others in nftables that drop or reject, as the last
    /// audit found them: whether they concern Services is not known. For people.
    #[must_use]
    pub fn obstacles(&self) -> &[String] {
        &self.obstacles
    }

    fn look_for_obstacles(&mut self) -> Vec<String> {
        let found = self
            .namespace
            .run(|| nftables::Nftables::open()?.obstacles(compile::TABLE));
        match found {
            Ok(Ok(obstacles)) => {
                let found: Vec<String> = obstacles
                    .iter()
                    .filter(|obstacle| {
                        // Not what proxies of ours, of whatever mode, refuse.
                        !obstacle.chain.starts_with(iptables::compile::PREFIX)
                            && !obstacle.table.starts_with(compile::TABLE)
                    })
                    .map(ToString::to_string)
                    .collect();
                for new in found.iter().filter(|text| !self.obstacles.contains(text)) {
                    tracing::warn!("packets of Services may not get through: {new}");
                }
                self.obstacles.clone_from(&found);
                found
            }
            // A kernel without nftables has no such rules.
            Ok(Err(error)) => {
                tracing::debug!(%error, "rules of others were not looked at");
                Vec::new()
            }
            Err(error) => {
                tracing::debug!(%error, "rules of others were not looked at");
                Vec::new()
            }
        }
    }

    /// What frontends have sent to backends, see [`DataPlane::traffic`].
    ///
    /// # Errors
    /// If the kernel cannot be read.
    pub fn traffic(&mut self) -> Result<Vec<Traffic>, Error> {
        self.data_plane.traffic()
    }

    /// How full the conntrack table is. Once it is full, new connections are
    /// dropped: worth a warning long before.
    ///
    /// # Errors
    /// If the kernel does not say.
    pub fn conntrack_usage(&mut self) -> Result<conntrack::Usage, Error> {
        Ok(self.conntrack.usage()?)
    }

    /// Services whose [`Table::problems`] may be others than at the last call.
    pub fn take_reports(&mut self) -> BTreeSet<Arc<ServiceName>> {
        self.table.take_reports()
    }

    fn finish(&mut self, applied: Applied) -> Stats {
        self.remove_others();
        let frontends = applied.frontends.len();
        let cut = self.cut;
        self.unchecked.extend(
            applied
                .frontends
                .into_iter()
                .filter(|key| conversations::concerns(key, cut)),
        );
        Stats {
            frontends,
            elements: applied.elements,
            bytes: applied.bytes,
            full: applied.full,
            conversations: self.check_conversations(),
            repaired: applied.repaired,
            obstacles: Vec::new(),
        }
    }

    /// Removes what a proxy of another mode left. Its rules do no harm: if they
    /// cannot be removed now, the next sync or audit tries again.
    fn remove_others(&mut self) {
        if self.alone {
            return;
        }
        match settings::remove_others(&self.namespace, &*self.data_plane) {
            Ok(found) => {
                self.alone = true;
                for (before, removal) in found {
                    let (now, before) = (self.mode().name(), before.name());
                    if let Removal::Pending(servers) = removal {
                        self.alone = false;
                        tracing::debug!(
                            now,
                            before,
                            servers,
                            "the proxy was changed; waiting for connections through the one before to end"
                        );
                    } else {
                        tracing::info!(
                            now,
                            before,
                            "the proxy was changed; what the one before left is removed"
                        );
                    }
                }
            }
            Err(error) => tracing::warn!(%error, "rules of another proxy may still be there"),
        }
    }

    /// Ends conversations with endpoints that are gone. If conntrack cannot be
    /// read now, the next sync or audit tries again: the rules are right anyhow.
    fn check_conversations(&mut self) -> usize {
        if self.unchecked.is_empty() {
            return 0;
        }
        match conversations::clean(&mut self.conntrack, &self.unchecked, &self.table) {
            Ok(deleted) => {
                self.unchecked.clear();
                deleted
            }
            Err(error) => {
                tracing::warn!(%error, "UDP conversations with old endpoints may go on for a while");
                0
            }
        }
    }
}
