//! The IPVS proxy: a virtual server for each frontend, on addresses that an
//! interface of ours holds, and a few nftables rules for what IPVS does not do.
//!
//! Order of a change: whose sources are translated and who is kept off by its
//! source; addresses, servers and endpoints that come; in one transaction what is
//! served, refused and dropped; servers and endpoints that go. So no packet is for a
//! server that is not there yet, and where another proxy serves a frontend it goes
//! on until the server can.

mod listing;
pub mod plan;
pub mod rules;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;

use ipnet::IpNet;
use linux::address::{self, Address};
use linux::ipvs::{Change, Ipvs};
use linux::link::{self, Bridge};
use linux::netlink::{self, Socket};
use linux::nftables::{self, Batch, Count, Element, Family as TableFamily, Nftables};
use linux::sysctl::{self, Setting};

use crate::Error;
use crate::adopt;
use crate::compile::SetNames;
use crate::data_plane::{Applied, DataPlane, Limit, ProxyMode, Removal, Traffic};
use crate::model::{Backend, Family, FrontendKey, ServiceName};
use crate::table::{Changes, Table};
pub use listing::listing;
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

/// Settings by which the node is silent about the addresses its interface holds:
/// it answers ARP requests at the interface that has the address only, and asks
/// others under addresses of the interface it asks at.
const STRICT_ARP: [(&str, i64); 2] = [
    ("ipv4/conf/all/arp_ignore", 1),
    ("ipv4/conf/all/arp_announce", 2),
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
    /// Where the twins of frontends stand, see [`plan::twin`].
    twins: HashMap<FrontendKey, FrontendKey>,
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
    strict_arp: bool,
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
    pub fn start(scheduler: Scheduler, strict_arp: bool) -> Result<Self, Error> {
        let ipvs = Ipvs::open().map_err(IpvsError::from)?;
        let mut socket = Socket::open_route().map_err(IpvsError::from)?;
        for name in SETTINGS {
            Setting::new(name).write(1).map_err(IpvsError::from)?;
        }
        for (name, value) in STRICT_ARP.into_iter().filter(|_| strict_arp) {
            Setting::new(name).write(value).map_err(IpvsError::from)?;
        }
        let link = interface(&mut socket).map_err(IpvsError::from)?;
        Ok(Self {
            ipvs,
            nft: Nftables::open()?,
            socket,
            scheduler,
            strict_arp,
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
        let mut others: Option<HashSet<IpAddr>> = None;
        for (key, wanted) in plan_frontends(&mut shadow, table, &changes.frontends) {
            let key = &key;
            let new = wanted
                .as_ref()
                .filter(|_| table.holder(key).is_some())
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
            let mut hold = wanted.is_some_and(|wanted| wanted.bound);
            if hold && !shadow.bound.contains(&key.address) {
                let others = match &mut others {
                    Some(others) => others,
                    none => none.insert(held_by_others(&mut self.socket, self.link)?),
                };
                hold = !others.contains(&key.address);
            }
            if hold {
                wish.set(rules::held(key.address), true);
            }
            servers.push((*key, server, hold));
        }
        for address in &changes.cluster_ips {
            wish.set(rules::cluster_ip(*address), table.has_cluster_ip(*address));
        }
        for address in &changes.local_endpoints {
            wish.set(rules::hairpin(*address), table.has_local_endpoint(*address));
        }
        if applied.full {
            for address in &shadow.bound {
                wish.set(rules::held(*address), true);
            }
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
                second.flush_set(set);
                second.add_elements(set, &elements);
            }
        }
        for ((set, element), present, replaced) in wish.settled() {
            let held = shadow.elements.entry(set).or_default();
            let waits = match present {
                true => COME_WITH_SERVERS.contains(&set),
                false => GO_WITH_SERVERS.contains(&set) || replaced,
            };
            let batch = if waits { &mut second } else { &mut first };
            if present && held.insert(element.clone()) {
                batch.add_elements(set, [&element]);
            } else if !present && held.remove(&element) {
                batch.delete_elements(set, [&element]);
            }
        }
        applied.elements += give.len() + take.len();
        self.commit(first, applied)?;
        let mut bind = Vec::new();
        for (key, _, hold) in &servers {
            if *hold && shadow.bound.insert(key.address) {
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
        let mut bound = bound(&mut self.socket, self.link).map_err(IpvsError::from)?;
        // Somebody else's by now: then it is for others to say what is served there.
        let others = held_by_others(&mut self.socket, self.link)?;
        for address in bound.intersection(&others) {
            unbind(&mut self.socket, self.link, *address)?;
        }
        bound.retain(|address| !others.contains(address));
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
        own.extend(table.holders().map(|(key, _)| key));
        let servers = read_servers(&mut self.ipvs, |key| {
            own.contains(key) || bound.contains(&key.address)
        })?;
        let twins = Family::ALL
            .into_iter()
            .flat_map(|family| {
                let set = elements.get(FrontendSets::of(family).twins);
                let read = move |element| rules::read_twin(element, family);
                set.into_iter().flatten().filter_map(read)
            })
            .collect();
        Ok(Shadow {
            elements,
            servers,
            twins,
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
            .holders()
            .map(|(key, _)| key.address)
            .chain(shadow.servers.keys().map(|key| key.address))
            .collect();
        let gone: Vec<IpAddr> = shadow.bound.difference(&needed).copied().collect();
        let mut batch = Batch::new(TableFamily::Inet, TABLE, None);
        for address in gone {
            unbind(&mut self.socket, self.link, address)?;
            shadow.bound.remove(&address);
            let (set, element) = rules::held(address);
            if shadow.elements.entry(set).or_default().remove(&element) {
                batch.delete_elements(set, [&element]);
            }
        }
        if !batch.is_empty() {
            self.nft.commit(batch)?;
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

/// What is new in these waits until the servers are there, and then comes at once:
/// until then another proxy may serve the frontends, and must not be disturbed.
const COME_WITH_SERVERS: [&str; 12] = {
    let [v4, v6] = [FrontendSets::of(Family::V4), FrontendSets::of(Family::V6)];
    [
        v4.served,
        v6.served,
        v4.twins,
        v6.twins,
        v4.refused,
        v6.refused,
        v4.discarded,
        v6.discarded,
        v4.held,
        v6.held,
        SetNames::of(Family::V4).cluster_ips,
        SetNames::of(Family::V6).cluster_ips,
    ]
};
/// Sets that keep new connections off; what leaves them waits as long.
const GO_WITH_SERVERS: [&str; 4] = [
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

    /// Elements, whether they shall be there, and of those that shall not,
    /// whether another value for the same key takes their place. What somebody
    /// wants is there.
    fn settled(self) -> impl Iterator<Item = ((&'static str, Element), bool, bool)> {
        let Self { present, absent } = self;
        let values: HashSet<(&str, &[u8])> = present
            .iter()
            .filter(|(_, element)| element.value.is_some())
            .map(|(set, element)| (*set, &*element.key))
            .collect();
        let gone: Vec<_> = absent
            .difference(&present)
            .map(|(set, element)| {
                let replaced = values.contains(&(*set, &*element.key));
                ((*set, element.clone()), false, replaced)
            })
            .collect();
        gone.into_iter()
            .chain(present.into_iter().map(|wish| (wish, true, false)))
    }
}

/// What becomes of these frontends, of those of the same Services that have a
/// twin, and of the twins.
fn plan_frontends(
    shadow: &mut Shadow,
    table: &Table,
    changed: &HashSet<FrontendKey>,
) -> Vec<(FrontendKey, Option<plan::Wanted>)> {
    let services: HashSet<&ServiceName> = changed
        .iter()
        .filter_map(|key| Some(&**table.holder(key)?))
        .collect();
    let mut keys: BTreeSet<FrontendKey> = changed.iter().copied().collect();
    keys.extend(services.into_iter().flat_map(|service| {
        let frontends = table.frontends_of(service).into_iter();
        frontends
            .filter(|(_, frontend)| plan::has_twin(frontend))
            .map(|(key, _)| key)
    }));
    let mut used: HashSet<FrontendKey> = shadow.twins.values().copied().collect();
    let mut twins = HashMap::new();
    for key in keys.clone() {
        let before = shadow.twins.remove(&key);
        keys.extend(before);
        let Some(frontend) = table.frontend(&key) else {
            continue;
        };
        let twin = plan::twin(&key, &frontend, table, before, |place| used.contains(place));
        if let Some(twin) = twin {
            used.insert(twin);
            keys.insert(twin);
            shadow.twins.insert(key, twin);
            twins.insert(twin, plan::of_twin(&frontend));
        }
    }
    keys.into_iter()
        .map(|key| {
            let wanted = match table.frontend(&key) {
                Some(frontend) => {
                    let twin = shadow.twins.get(&key).copied();
                    Some(plan::frontend(&frontend, table.facts(), twin))
                }
                None => twins.remove(&key),
            };
            (key, wanted)
        })
        .collect()
}

/// What a first sync wants of all frontends and their twins.
pub(crate) fn planned(table: &Table) -> Vec<(FrontendKey, plan::Wanted)> {
    let all = table.holders().map(|(key, _)| key).collect();
    plan_frontends(&mut Shadow::default(), table, &all)
        .into_iter()
        .filter_map(|(key, wanted)| Some((key, wanted?)))
        .collect()
}

/// Endpoints of a server that have no connections.
fn idle(ipvs: &mut Ipvs, key: &FrontendKey) -> Result<BTreeSet<Backend>, Error> {
    let states = ipvs
        .destinations(&plan::name(key))
        .map_err(IpvsError::from)?;
    Ok(states
        .into_iter()
        .filter(|state| state.active == 0 && state.inactive == 0)
        .map(|state| plan::backend_of(&state.destination.backend))
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

/// The addresses of this namespace's other interfaces.
fn held_by_others(socket: &mut Socket, link: u32) -> Result<HashSet<IpAddr>, Error> {
    let all = address::list(socket, None).map_err(IpvsError::from)?;
    Ok(all
        .into_iter()
        .filter(|address| address.link != link)
        .map(|address| address.address.addr())
        .collect())
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
                    let backend = plan::backend_of(&state.destination.backend);
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
                    .extend(table.holders().map(|(key, _)| key));
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
        let Some(shadow) = &self.shadow else {
            return Ok(Vec::new());
        };
        let owners: HashMap<&FrontendKey, &FrontendKey> =
            shadow.twins.iter().map(|(key, twin)| (twin, key)).collect();
        let mut found: HashMap<(FrontendKey, Backend), Count> = HashMap::new();
        for key in shadow.servers.keys() {
            let states = self
                .ipvs
                .destinations(&plan::name(key))
                .map_err(IpvsError::from)?;
            // What went to a twin was sent to whom it belongs.
            let frontend = **owners.get(key).unwrap_or(&key);
            for state in states {
                let backend = plan::backend_of(&state.destination.backend);
                let total = found.entry((frontend, backend)).or_default();
                total.packets += state.counters.packets_in;
                total.bytes += state.counters.bytes_in;
            }
        }
        let mut traffic: Vec<Traffic> = found
            .into_iter()
            .map(|((key, backend), count)| Traffic::new(key, backend, count))
            .collect();
        traffic.sort_unstable_by_key(|one| (one.frontend, one.backend));
        Ok(traffic)
    }

    fn limits(&self) -> Vec<Limit> {
        let arp = (!self.strict_arp).then_some(Limit::IpvsAnswersArp);
        arp.into_iter().chain([Limit::IpvsHeldPorts]).collect()
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
