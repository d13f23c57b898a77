//! The IPVS proxy: a virtual server for each frontend, on addresses that an
//! interface of ours holds, and a few nftables rules for what IPVS does not do.
//!
//! Order of a change: rules that admit nothing new, addresses, servers and
//! endpoints that come, rules that admit, servers and endpoints that go. So no
//! packet is admitted to a server that is not there yet.

pub mod plan;
pub mod rules;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;

use ipnet::IpNet;
use linux::address::{self, Address};
use linux::ipvs::{Change, Ipvs};
use linux::link::{self, Bridge};
use linux::netlink::{self, Socket};
use linux::nftables::{self, Batch, Element, Family as TableFamily, Nftables};
use linux::sysctl::{self, Setting};

use crate::Error;
use crate::adopt;
use crate::data_plane::{Applied, DataPlane, Limit, ProxyMode, Removal, Traffic};
use crate::model::{Backend, Family, FrontendKey};
use crate::table::{Changes, Table};
pub use plan::Scheduler;
use plan::Server;
use rules::{Elements, FrontendSets, TABLE};

/// The interface that holds the addresses of Services: a bridge without ports,
/// which every kernel has that has pods.
pub const INTERFACE: &str = "pwipvs0";

/// Settings of IPVS in this namespace: connections are conntrack's too, so that
/// sources can be translated; datagrams to an endpoint that is gone find another
/// one; clients are not kept at an endpoint on its way out.
const SETTINGS: [&str; 3] = [
    "ipv4/vs/conntrack",
    "ipv4/vs/expire_nodest_conn",
    "ipv4/vs/expire_quiescent_template",
];

/// Why IPVS could not be programmed.
#[derive(Debug, thiserror::Error)]
pub enum IpvsError {
    /// The kernel refused, or lacks something.
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
    /// A setting could not be made.
    #[error(transparent)]
    Setting(#[from] sysctl::Error),
}

/// What the kernel holds of ours.
#[derive(Debug, Default)]
struct Shadow {
    elements: Elements,
    /// Which of them are a frontend's.
    of_frontends: HashMap<FrontendKey, Vec<(&'static str, Element)>>,
    servers: HashMap<FrontendKey, Server>,
    /// Addresses on our interface.
    bound: HashSet<IpAddr>,
}

/// The virtual servers and rules in the kernel of one network namespace.
#[derive(Debug)]
pub struct IpvsDataPlane {
    ipvs: Ipvs,
    nft: Nftables,
    socket: Socket,
    scheduler: Scheduler,
    link: u32,
    /// Absent when the kernel's state is not known.
    shadow: Option<Shadow>,
    begun: bool,
    generation: Option<u32>,
}

impl IpvsDataPlane {
    /// Connects to the calling thread's network namespace, makes the interface
    /// and the settings.
    ///
    /// # Errors
    /// If the kernel has no IPVS, or refuses.
    pub fn start(scheduler: Scheduler) -> Result<Self, Error> {
        let ipvs = Ipvs::open().map_err(IpvsError::from)?;
        let mut socket = Socket::open_route().map_err(IpvsError::from)?;
        for name in SETTINGS {
            Setting::new(name).write(1).map_err(IpvsError::from)?;
        }
        let link = interface(&mut socket).map_err(IpvsError::from)?;
        Ok(Self {
            ipvs,
            nft: Nftables::open()?,
            socket,
            scheduler,
            link,
            shadow: None,
            begun: false,
            generation: None,
        })
    }

    fn sync_from(
        &mut self,
        mut shadow: Shadow,
        mut first: Batch,
        table: &Table,
        changes: &Changes,
        applied: &mut Applied,
    ) -> Result<Shadow, Error> {
        let mut second = Batch::new(TableFamily::Inet, TABLE, None);
        let mut third = Batch::new(TableFamily::Inet, TABLE, None);
        let (mut give, mut take) = (Vec::new(), Vec::new());
        let mut servers = Vec::new();
        let mut wish = Wishes::default();
        for key in &changes.frontends {
            let wanted = table
                .frontend(key)
                .map(|frontend| plan::frontend(frontend, table.facts()));
            let new = wanted
                .as_ref()
                .map(|wanted| rules::elements(key, wanted))
                .unwrap_or_default();
            for (set, element) in shadow.of_frontends.remove(key).unwrap_or_default() {
                wish.absent.insert((set, element));
            }
            for (set, element) in &new {
                wish.present.insert((set, element.clone()));
            }
            if !new.is_empty() {
                shadow.of_frontends.insert(*key, new);
            }
            let old = shadow.servers.get(key);
            let server = plan::server(key, old, wanted.as_ref(), self.scheduler);
            let (more, less) = plan::changes(key, old, server.as_ref());
            give.extend(more);
            take.extend(less);
            let set = FrontendSets::of(Family::of(key.address)).servers;
            let owned = shadow.elements.entry(set).or_default();
            let name = rules::element(key);
            if server.is_some() && owned.insert(name.clone()) {
                first.add_elements(set, [&name]);
            } else if server.is_none() && owned.remove(&name) {
                third.delete_elements(set, [&name]);
            }
            servers.push((*key, server, wanted));
        }
        for address in &changes.cluster_ips {
            wish.set(rules::cluster_ip(*address), table.has_cluster_ip(*address));
        }
        for address in &changes.local_endpoints {
            wish.set(rules::hairpin(*address), table.has_local_endpoint(*address));
        }
        if applied.full {
            // What is there and nobody wants.
            let servers = Family::ALL.map(|family| FrontendSets::of(family).servers);
            for (set, held) in shadow
                .elements
                .iter()
                .filter(|(set, _)| !servers.contains(set))
            {
                wish.absent
                    .extend(held.iter().map(|element| (*set, element.clone())));
            }
        }
        if changes.facts {
            for (set, elements) in rules::range_sets(table.facts()) {
                first.flush_set(set);
                first.add_elements(set, &elements);
            }
        }
        for ((set, element), present) in wish.settled() {
            let held = shadow.elements.entry(set).or_default();
            let admits = FRONTEND_ADMITTING.contains(&set);
            let closes = FRONTEND_CLOSING.contains(&set);
            let batch = match (present, admits, closes) {
                (true, false, _) | (false, _, false) => &mut first,
                (true, true, _) | (false, _, true) => &mut second,
            };
            if present && held.insert(element.clone()) {
                batch.add_elements(set, [&element]);
            } else if !present && held.remove(&element) {
                batch.delete_elements(set, [&element]);
            }
        }
        applied.elements += give.len() + take.len();
        self.commit(first, applied)?;
        let mut bind = Vec::new();
        for (key, _, wanted) in &servers {
            if wanted.as_ref().is_some_and(|wanted| wanted.bound)
                && shadow.bound.insert(key.address)
            {
                bind.push(address::replace(&Address::new(
                    self.link,
                    IpNet::from(key.address),
                )));
            }
        }
        for request in &bind {
            self.socket.execute(request).map_err(IpvsError::from)?;
        }
        self.change(&give)?;
        self.commit(second, applied)?;
        self.change(&take)?;
        for (key, server, _) in servers {
            match server {
                Some(server) => shadow.servers.insert(key, server),
                None => shadow.servers.remove(&key),
            };
        }
        self.commit(third, applied)?;
        self.unbind(&mut shadow, table)?;
        Ok(shadow)
    }

    /// Reads what is there; what of the rules is wrong is made anew by `batch`.
    fn observe(
        &mut self,
        table: &Table,
        batch: &mut Batch,
        applied: &mut Applied,
    ) -> Result<Shadow, Error> {
        self.link = interface(&mut self.socket).map_err(IpvsError::from)?;
        let bound = bound(&mut self.socket, self.link).map_err(IpvsError::from)?;
        let read = read_elements(&mut self.nft)?;
        let elements = match read {
            Some(elements) if chains_are_right(&mut self.nft)? => elements,
            _ => {
                applied
                    .repaired
                    .push(format!("table inet {TABLE} was missing or changed"));
                let exists = self
                    .nft
                    .tables(TableFamily::Inet)?
                    .iter()
                    .any(|name| name == TABLE);
                build(batch, exists);
                // Servers stay ours, whatever became of the table.
                let kept = read_owned(&mut self.nft)?;
                for (set, elements) in &kept {
                    batch.add_elements(set, elements);
                }
                kept
            }
        };
        // Ours are those of the list, and those at the place of one of ours.
        let mut own: HashSet<FrontendKey> = own_servers(&elements).collect();
        own.extend(table.frontends().map(|(key, _)| *key));
        let servers = read_servers(&mut self.ipvs, |key| {
            own.contains(key) || bound.contains(&key.address)
        })?;
        Ok(Shadow {
            elements,
            servers,
            bound,
            ..Shadow::default()
        })
    }

    fn commit(&mut self, batch: Batch, applied: &mut Applied) -> Result<(), Error> {
        if !batch.is_empty() {
            applied.elements += batch.elements();
            applied.bytes += batch.len();
            self.nft.commit(batch)?;
        }
        Ok(())
    }

    fn change(&mut self, changes: &[Change]) -> Result<(), Error> {
        if changes.is_empty() {
            return Ok(());
        }
        for outcome in self.ipvs.apply(changes).map_err(IpvsError::from)? {
            outcome.map_err(IpvsError::from)?;
        }
        Ok(())
    }

    /// Takes addresses off the interface that neither a frontend nor a server
    /// on its way out has any more.
    fn unbind(&mut self, shadow: &mut Shadow, table: &Table) -> Result<(), Error> {
        let needed: HashSet<IpAddr> = table
            .frontends()
            .map(|(key, _)| key.address)
            .chain(shadow.servers.keys().map(|key| key.address))
            .collect();
        let gone: Vec<IpAddr> = shadow.bound.difference(&needed).copied().collect();
        for address in gone {
            unbind(&mut self.socket, self.link, address)?;
            shadow.bound.remove(&address);
        }
        Ok(())
    }

    /// Removes endpoints on their way out that have no connections left.
    fn drain(&mut self, shadow: &mut Shadow) -> Result<(), Error> {
        let mut batch = Batch::new(TableFamily::Inet, TABLE, None);
        let mut gone = Vec::new();
        for (key, server) in &mut shadow.servers {
            if !server.destinations.values().any(|weight| *weight == 0) {
                continue;
            }
            let idle = idle(&mut self.ipvs, key)?;
            let old = server.clone();
            server
                .destinations
                .retain(|backend, weight| *weight != 0 || !idle.contains(backend));
            let left = (!server.destinations.is_empty()).then_some(&*server);
            let (_, take) = plan::changes(key, Some(&old), left);
            for outcome in self.ipvs.apply(&take).map_err(IpvsError::from)? {
                outcome.map_err(IpvsError::from)?;
            }
            if left.is_none() {
                gone.push(*key);
            }
        }
        for key in gone {
            shadow.servers.remove(&key);
            let set = FrontendSets::of(Family::of(key.address)).servers;
            let name = rules::element(&key);
            if shadow.elements.entry(set).or_default().remove(&name) {
                batch.delete_elements(set, [&name]);
            }
        }
        if !batch.is_empty() {
            self.nft.commit(batch)?;
        }
        Ok(())
    }
}

/// Sets that let new connections through; what is new in them waits until the
/// server is there.
const FRONTEND_ADMITTING: [&str; 2] = [
    FrontendSets::of(Family::V4).served,
    FrontendSets::of(Family::V6).served,
];
/// Sets that keep new connections off; what leaves them waits as long.
const FRONTEND_CLOSING: [&str; 4] = [
    FrontendSets::of(Family::V4).refused,
    FrontendSets::of(Family::V6).refused,
    FrontendSets::of(Family::V4).discarded,
    FrontendSets::of(Family::V6).discarded,
];

/// Elements that shall be there and those that shall not.
#[derive(Debug, Default)]
struct Wishes {
    present: HashSet<(&'static str, Element)>,
    absent: HashSet<(&'static str, Element)>,
}

impl Wishes {
    fn set(&mut self, element: (&'static str, Element), present: bool) {
        if present {
            self.present.insert(element);
        } else {
            self.absent.insert(element);
        }
    }

    /// What somebody wants is there.
    fn settled(self) -> impl Iterator<Item = ((&'static str, Element), bool)> {
        let Self { present, absent } = self;
        let gone: Vec<_> = absent.difference(&present).cloned().collect();
        gone.into_iter()
            .map(|wish| (wish, false))
            .chain(present.into_iter().map(|wish| (wish, true)))
    }
}

/// Endpoints of a server that have no connections.
fn idle(ipvs: &mut Ipvs, key: &FrontendKey) -> Result<BTreeSet<Backend>, Error> {
    let states = ipvs
        .destinations(&plan::name(key))
        .map_err(IpvsError::from)?;
    Ok(states
        .into_iter()
        .filter(|state| state.active == 0 && state.inactive == 0)
        .map(|state| Backend {
            address: state.destination.backend.address,
            port: state.destination.backend.port,
        })
        .collect())
}

/// Our interface; made if it is not there.
fn interface(socket: &mut Socket) -> Result<u32, netlink::Error> {
    if link::get(socket, INTERFACE)?.is_none() {
        socket.execute(&link::add_bridge(&Bridge {
            name: INTERFACE,
            ..Bridge::default()
        }))?;
    }
    match link::get(socket, INTERFACE)? {
        Some(link) => {
            socket.execute(&link::set_up(link.index))?;
            Ok(link.index)
        }
        None => Err(netlink::Error::Malformed {
            purpose: format!("make the interface {INTERFACE}"),
            reason: "it is gone again".to_owned(),
        }),
    }
}

fn unbind(socket: &mut Socket, link: u32, address: IpAddr) -> Result<(), Error> {
    match socket.execute(&address::delete(link, IpNet::from(address))) {
        Err(error) if !error.not_found() => Err(IpvsError::from(error).into()),
        _ => Ok(()),
    }
}

fn bound(socket: &mut Socket, link: u32) -> Result<HashSet<IpAddr>, netlink::Error> {
    let all = address::list(socket, Some(link))?;
    Ok(all
        .into_iter()
        .map(|address| address.address)
        // Not the link-local address the kernel gives it.
        .filter(|network| network.prefix_len() == network.max_prefix_len())
        .map(|network| network.addr())
        .collect())
}

/// The frontends that the list names as those of our servers.
fn own_servers(elements: &Elements) -> impl Iterator<Item = FrontendKey> {
    Family::ALL.into_iter().flat_map(|family| {
        let set = FrontendSets::of(family).servers;
        elements
            .get(set)
            .into_iter()
            .flatten()
            .filter_map(move |element| Some(adopt::read_key(&element.key, family)?.0))
    })
}

fn read_servers(
    ipvs: &mut Ipvs,
    own: impl Fn(&FrontendKey) -> bool,
) -> Result<HashMap<FrontendKey, Server>, Error> {
    let mut servers = HashMap::new();
    for state in ipvs.services().map_err(IpvsError::from)? {
        let name = state.service.frontend;
        let key = plan::key(&name);
        if !own(&key) {
            continue;
        }
        let destinations = ipvs.destinations(&name).map_err(IpvsError::from)?;
        let server = Server {
            scheduler: state.service.scheduler,
            persistence: state.service.persistence.map(|p| p.seconds),
            destinations: destinations
                .into_iter()
                .map(|state| {
                    let at = state.destination.backend;
                    let backend = Backend {
                        address: at.address,
                        port: at.port,
                    };
                    (backend, state.destination.weight)
                })
                .collect(),
        };
        servers.insert(key, server);
    }
    Ok(servers)
}

/// What the table of rules holds, or `None` if it has to be made anew.
fn read_elements(nft: &mut Nftables) -> Result<Option<Elements>, nftables::Error> {
    let inet = TableFamily::Inet;
    if !nft.tables(inet)?.iter().any(|name| name == TABLE) {
        return Ok(None);
    }
    let live = nft.sets(inet, TABLE)?;
    let same = rules::sets()
        .iter()
        .all(|set| live.iter().any(|l| l.name == set.name && l.matches(set)));
    if !same {
        return Ok(None);
    }
    let mut elements = Elements::new();
    for set in rules::compared_sets() {
        elements.insert(set, nft.elements(inet, TABLE, set)?.into_iter().collect());
    }
    Ok(Some(elements))
}

/// The sets that say which servers are ours, also of a table that has no others.
fn read_owned(nft: &mut Nftables) -> Result<Elements, nftables::Error> {
    let inet = TableFamily::Inet;
    let mut elements = Elements::new();
    if nft.tables(inet)?.iter().any(|name| name == TABLE) {
        let live = nft.sets(inet, TABLE)?;
        for sets in FrontendSets::ALL {
            if live.iter().any(|set| set.name == sets.servers) {
                let read = nft.elements(inet, TABLE, sets.servers)?;
                elements.insert(sets.servers, read.into_iter().collect());
            }
        }
    }
    Ok(elements)
}

/// Whether the chains are those that are wanted.
fn chains_are_right(nft: &mut Nftables) -> Result<bool, nftables::Error> {
    let inet = TableFamily::Inet;
    let live = nft.chains(inet, TABLE)?;
    let mut found: HashMap<String, Vec<_>> = HashMap::new();
    for rule in nft.rules(inet, TABLE)? {
        found.entry(rule.chain).or_default().push(rule.expressions);
    }
    Ok(rules::chains().into_iter().all(|chain| {
        let rules = found.get(&chain.name).map_or(&[][..], Vec::as_slice);
        live.iter()
            .any(|l| l.name == chain.name && l.base == chain.base)
            && rules.len() == chain.rules.len()
            && rules
                .iter()
                .zip(&chain.rules)
                .all(|(live, wanted)| live.as_ref() == Some(&wanted.expressions))
    }))
}

/// The table with its sets and chains, in place of one that may be there.
fn build(batch: &mut Batch, exists: bool) {
    if exists {
        batch.delete_table();
    }
    batch.add_table();
    for set in rules::sets() {
        batch.add_set(&set);
    }
    let chains = rules::chains();
    for chain in &chains {
        batch.add_chain(chain);
    }
    for chain in &chains {
        for rule in &chain.rules {
            batch.add_rule(&chain.name, rule);
        }
    }
}

impl DataPlane for IpvsDataPlane {
    fn mode(&self) -> ProxyMode {
        ProxyMode::Ipvs
    }

    fn sync(&mut self, table: &Table, changes: &Changes) -> Result<Applied, Error> {
        let mut applied = Applied::default();
        let mut changes = changes.clone();
        let mut batch = Batch::new(TableFamily::Inet, TABLE, None);
        let asked = !changes.is_empty();
        let mut shadow = match self.shadow.take() {
            Some(shadow) => shadow,
            None => {
                applied.full = true;
                let shadow = self.observe(table, &mut batch, &mut applied)?;
                changes.facts = true;
                changes
                    .frontends
                    .extend(table.frontends().map(|(key, _)| *key));
                changes.frontends.extend(shadow.servers.keys());
                changes.cluster_ips.extend(table.cluster_ips());
                changes.local_endpoints.extend(table.local_endpoints());
                shadow
            }
        };
        self.drain(&mut shadow)?;
        let shadow = self.sync_from(shadow, batch, table, &changes, &mut applied)?;
        self.shadow = Some(shadow);
        applied.frontends = changes.frontends;
        if applied.bytes > 0 || applied.full {
            self.generation = Some(self.nft.generation()?.id);
        }
        if !self.begun || asked {
            applied.repaired.clear();
        }
        self.begun = true;
        for text in &applied.repaired {
            tracing::warn!("somebody changed podwire's rules for IPVS: {text}; put right");
        }
        Ok(applied)
    }

    /// Reads everything back: IPVS tells nobody when it is changed.
    fn audit(&mut self, table: &Table) -> Result<Applied, Error> {
        self.shadow = None;
        self.sync(table, &Changes::default())
    }

    fn traffic(&mut self) -> Result<Vec<Traffic>, Error> {
        let mut traffic = Vec::new();
        let servers = self.shadow.iter().flat_map(|shadow| shadow.servers.keys());
        for key in servers {
            let states = self
                .ipvs
                .destinations(&plan::name(key))
                .map_err(IpvsError::from)?;
            traffic.extend(states.into_iter().map(|state| Traffic {
                frontend: *key,
                backend: Backend {
                    address: state.destination.backend.address,
                    port: state.destination.backend.port,
                },
                packets: state.counters.packets_in,
                bytes: state.counters.bytes_in,
            }));
        }
        traffic.sort_unstable_by_key(|one| (one.frontend, one.backend));
        Ok(traffic)
    }

    fn limits(&self) -> Vec<Limit> {
        vec![Limit::IpvsExternalLocal, Limit::IpvsHeldAddresses]
    }
}

/// Removes what this proxy made in the calling thread's network namespace:
/// rules at once; servers, addresses and the interface when the last
/// connection through them has ended, or at once with `cut`.
///
/// # Errors
/// If something cannot be read or removed.
pub fn remove(cut: bool) -> Result<Removal, Error> {
    let mut nft = Nftables::open()?;
    let mut socket = Socket::open_route().map_err(IpvsError::from)?;
    let inet = TableFamily::Inet;
    let exists = nft.tables(inet)?.iter().any(|name| name == TABLE);
    let link = link::get(&mut socket, INTERFACE).map_err(IpvsError::from)?;
    if !exists && link.is_none() {
        return Ok(Removal::Nothing);
    }
    let elements = read_owned(&mut nft)?;
    let own: HashSet<FrontendKey> = own_servers(&elements).collect();
    let mut left = HashSet::new();
    if !own.is_empty() {
        let mut ipvs = Ipvs::open().map_err(IpvsError::from)?;
        for (key, old) in read_servers(&mut ipvs, |key| own.contains(key))? {
            let idle = idle(&mut ipvs, &key)?;
            let mut new = old.clone();
            new.destinations
                .retain(|backend, _| !cut && !idle.contains(backend));
            new.destinations.values_mut().for_each(|weight| *weight = 0);
            let stays = (!new.destinations.is_empty()).then_some(&new);
            let (_, take) = plan::changes(&key, Some(&old), stays);
            for outcome in ipvs.apply(&take).map_err(IpvsError::from)? {
                outcome.map_err(IpvsError::from)?;
            }
            if stays.is_some() {
                left.insert(key);
            }
        }
    }
    // Without the rules; with the list of the servers that are left.
    let mut batch = Batch::new(inet, TABLE, None);
    if exists {
        batch.delete_table();
    }
    if !left.is_empty() {
        batch.add_table();
        for set in rules::sets() {
            if FrontendSets::ALL
                .iter()
                .any(|sets| sets.servers == set.name)
            {
                batch.add_set(&set);
            }
        }
        for key in &left {
            let set = FrontendSets::of(Family::of(key.address)).servers;
            batch.add_elements(set, [&rules::element(key)]);
        }
    }
    if !batch.is_empty() {
        nft.commit(batch)?;
    }
    if left.is_empty() {
        link::delete_by_name(&mut socket, INTERFACE).map_err(IpvsError::from)?;
        return Ok(Removal::Done);
    }
    if let Some(link) = link {
        let held = bound(&mut socket, link.index).map_err(IpvsError::from)?;
        for address in held {
            if !left.iter().any(|key| key.address == address) {
                unbind(&mut socket, link.index, address)?;
            }
        }
    }
    Ok(Removal::Pending(left.len()))
}
