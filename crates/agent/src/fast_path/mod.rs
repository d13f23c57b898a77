//! The fast path of established connections between pods of this node and pods
//! of others ([`linux::fast_path`]): which pods and ranges it is to know, and
//! keeping it so.

mod links;
mod others;
mod pods;
mod programs;
mod report;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use linux::events::Event;
use linux::fast_path::{self, FastPath, Place, Pod};
use linux::netlink::{self, Socket};
use routing::model::DeviceName;
use routing::ways::{NoWay, RangeWay, Way};

use links::Spot;
pub(crate) use links::{Done, Job, run};
use others::Others;
use pods::{Excluded, LocalPods};
use programs::Programs;
pub use report::Report;

/// The ways to peers' pods, as the routing plan has them.
pub(crate) type Ways = BTreeMap<IpNet, Result<Way, NoWay>>;

/// Those that may have changed, and ranges that there are none of any more.
pub(crate) type ChangedWays = BTreeMap<IpNet, RangeWay>;

/// What the programs are to know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Wanted {
    pods: BTreeMap<IpAddr, Pod>,
    ranges: BTreeMap<IpNet, fast_path::Way>,
}

/// How often each of some things is there.
#[derive(Debug)]
struct Counted<T>(BTreeMap<T, usize>);

impl<T> Default for Counted<T> {
    fn default() -> Self {
        Counted(BTreeMap::new())
    }
}

impl<T: Ord> Counted<T> {
    fn add(&mut self, thing: T) {
        *self.0.entry(thing).or_default() += 1;
    }

    fn remove(&mut self, thing: &T) {
        if let Some(count) = self.0.get_mut(thing) {
            *count -= 1;
            if *count == 0 {
                self.0.remove(thing);
            }
        }
    }

    fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.keys()
    }
}

/// Where packets from a range arrive.
fn arrival(way: &fast_path::Way) -> Spot {
    (way.place(), way.interface)
}

/// Where programs are attached: at pods only while there is somewhere to send,
/// and where a program is needed for one way it is for the other.
fn spots(pods: &BTreeMap<IpAddr, Pod>, arrivals: &Counted<Spot>) -> BTreeSet<Spot> {
    if pods.is_empty() || arrivals.0.is_empty() {
        return BTreeSet::new();
    }
    let pods = pods.values().map(|pod| (Place::Pod, pod.interface));
    pods.chain(arrivals.iter().copied()).collect()
}

fn gone<K: Ord + Copy, V>(from: &BTreeMap<K, V>, to: &BTreeMap<K, V>) -> Vec<K> {
    let keys = from.keys().filter(|key| !to.contains_key(key));
    keys.copied().collect()
}

fn changed<K: Ord + Copy, V: PartialEq + Copy>(
    from: &BTreeMap<K, V>,
    to: &BTreeMap<K, V>,
) -> Vec<(K, V)> {
    let news = to
        .iter()
        .filter(|(key, value)| from.get(key) != Some(value));
    news.map(|(key, value)| (*key, *value)).collect()
}

/// How long a new rule of others' may go unnoticed. The kernel tells of rules only
/// together with each element of every set, podwire's own among them: see
/// ARCHITECTURE.md.
const LOOK: Duration = Duration::from_secs(2);

/// Says what has come into the fast path's way, or that all of it has gone.
fn announce(before: &BTreeSet<String>, now: &BTreeSet<String>) {
    for judge in now.difference(before) {
        tracing::warn!("no fast path while there is {judge}, of somebody else");
    }
    if now.is_empty() && !before.is_empty() {
        tracing::info!("fast path: nothing of somebody else's is in its way any more");
    }
}

/// Keeps the programs' knowledge.
#[derive(Debug)]
pub(crate) struct Keeper {
    fast: Arc<FastPath>,
    programs: Programs,
    local: LocalPods,
    others: Others,
    /// Whether it is for others' rules to decide that there is no fast path.
    yields: bool,
    /// When to look at them, and to try again what could not be done.
    look: Instant,
    /// What of others' is in the way.
    judges: BTreeSet<String>,
    /// What is wanted while nothing is in the way, and what was applied.
    wanted: Wanted,
    applied: Wanted,
    /// Where packets from the wanted ranges arrive.
    arrivals: Counted<Spot>,
    /// Ranges that may be reached in another way than is wanted, and those of which
    /// something else may be wanted than was applied.
    open: BTreeSet<IpNet>,
    stale: BTreeSet<IpNet>,
    /// How often something was applied.
    changes: u64,
    /// How peers' pods are reached, the devices and interfaces among that, and what
    /// there was to know of these.
    ways: Ways,
    devices: Counted<DeviceName>,
    interfaces: Counted<u32>,
    links: Links,
    /// Pods of this node that stay with the stack, and peers' ranges.
    excluded: BTreeMap<String, Excluded>,
    no_way: BTreeMap<IpNet, String>,
    /// Whether what is known has changed, and whether notifications were lost.
    changed: bool,
    lost: bool,
    /// Why others' rules are not known, and what of all that is wanted is not done.
    blind: Option<String>,
    undone: Vec<String>,
}

/// What of links decides which ranges are reached: the devices of tunnels, and
/// interfaces somebody filters.
#[derive(Debug, Default, PartialEq, Eq)]
struct Links {
    devices: BTreeMap<DeviceName, Option<u32>>,
    filtered: BTreeSet<u32>,
}

impl Keeper {
    /// For loaded programs, which the thread that takes the jobs attaches. With
    /// `yields` there is no fast path while others have rules about packets.
    pub(crate) fn new(fast: Arc<FastPath>, jobs: Sender<Job>, yields: bool) -> Self {
        Self {
            fast,
            programs: Programs::new(jobs),
            local: LocalPods::default(),
            others: Others::new(),
            yields,
            look: Instant::now(),
            judges: BTreeSet::new(),
            wanted: Wanted::default(),
            applied: Wanted::default(),
            arrivals: Counted::default(),
            open: BTreeSet::new(),
            stale: BTreeSet::new(),
            changes: 0,
            ways: BTreeMap::new(),
            devices: Counted::default(),
            interfaces: Counted::default(),
            links: Links::default(),
            excluded: BTreeMap::new(),
            no_way: BTreeMap::new(),
            changed: false,
            lost: true,
            blind: None,
            undone: Vec::new(),
        }
    }

    /// Makes conntrack's settings as they have to be, and follows those that others
    /// may make as they like.
    ///
    /// # Errors
    /// When that cannot be done.
    pub(crate) fn settle(&self) -> Result<(), fast_path::Lacking> {
        fast_path::be_liberal()?;
        self.fast.follow_timeouts()
    }

    /// Takes notice of a change in the kernel.
    pub(crate) fn notice(&mut self, event: &Event) {
        self.lost |= matches!(event, Event::Lost);
        self.changed |= self.local.notice(event);
        self.others.notice(event);
    }

    /// Takes notice of what the thread that attaches programs has done.
    pub(crate) fn done(&mut self, done: Done) {
        self.programs.done(done);
    }

    /// How peers' pods are reached now, as what changes of what is known of that.
    pub(crate) fn all(&self, ways: Ways) -> ChangedWays {
        let known = self.ways.keys().map(|range| (*range, None));
        let mut changed: ChangedWays = known.collect();
        changed.extend(ways.into_iter().map(|(range, way)| (range, Some(way))));
        changed
    }

    /// Takes up how peers' pods are reached, as far as that may have changed.
    pub(crate) fn set_ways(&mut self, changed: ChangedWays) {
        for (range, way) in changed {
            let before = match way {
                Some(way) => self.ways.insert(range, way),
                None => self.ways.remove(&range),
            };
            if before == way {
                continue;
            }
            (self.changed, _) = (true, self.open.insert(range));
            let known = |way: RangeWay| way.and_then(Result::ok);
            let (before, way) = (known(before), known(way));
            if let Some(device) = way.as_ref().and_then(Way::device) {
                self.devices.add(device);
            }
            if let Some(interface) = way.as_ref().and_then(Way::underlay) {
                self.interfaces.add(interface);
            }
            if let Some(device) = before.as_ref().and_then(Way::device) {
                self.devices.remove(&device);
            }
            if let Some(interface) = before.as_ref().and_then(Way::underlay) {
                self.interfaces.remove(&interface);
            }
        }
    }

    /// Works out what is wanted.
    fn decide(&mut self) {
        let found = self.local.found();
        self.wanted.pods = found.pods;
        self.excluded = found.excluded;
        let links = self.links();
        if links != self.links {
            self.links = links;
            self.open.extend(self.ways.keys());
        }
        self.resolve();
        let own = self.wanted.pods.keys().copied().map(IpNet::from);
        let peers = self.wanted.ranges.keys().copied();
        let judges = self.others.judges(own.chain(peers));
        announce(&self.judges, &judges);
        if self.judges.is_empty() != judges.is_empty() {
            self.stale.extend(self.wanted.ranges.keys());
        }
        self.judges = judges;
    }

    fn links(&self) -> Links {
        let index = |device: &DeviceName| (*device, self.local.index_of(device.as_str()));
        let devices: BTreeMap<_, _> = self.devices.iter().map(index).collect();
        let tunnels = devices.values().flatten();
        let filtered = tunnels
            .chain(self.interfaces.iter())
            .filter(|index| self.local.filtered().contains(index));
        Links {
            filtered: filtered.copied().collect(),
            devices,
        }
    }

    /// Sorts out which of the open ranges have a way.
    fn resolve(&mut self) {
        for range in std::mem::take(&mut self.open) {
            let before = self.wanted.ranges.remove(&range);
            self.no_way.remove(&range);
            match self
                .ways
                .get(&range)
                .map(|way| resolved(way, &self.links.devices))
            {
                Some(Ok(way)) if self.links.filtered.contains(&way.interface) => {
                    let why = "somebody else's filters are at the interface it leaves by";
                    self.no_way.insert(range, why.to_owned());
                }
                Some(Ok(way)) => {
                    self.arrivals.add(arrival(&way));
                    self.wanted.ranges.insert(range, way);
                }
                Some(Err(why)) => drop(self.no_way.insert(range, why.to_string())),
                None => {}
            }
            if let Some(before) = before {
                self.arrivals.remove(&arrival(&before));
            }
            self.stale.insert(range);
        }
    }

    /// Leaves to the stack what is about to be reached in another way than the
    /// programs know: what belongs to the old way goes with it, the entries of a
    /// neighbour for one, and packets sent there would be lost.
    pub(crate) fn leave(&mut self, changed: &ChangedWays) {
        let next = changed.values().flatten().flatten();
        let devices: BTreeSet<DeviceName> = next.filter_map(Way::device).collect();
        let index = |device: DeviceName| (device, self.local.index_of(device.as_str()));
        let devices: BTreeMap<_, _> = devices.into_iter().map(index).collect();
        let go = changed.iter().filter(|(range, way)| {
            let known = self.applied.ranges.get(range);
            let next = || way.as_ref().map(|way| resolved(way, &devices));
            known.is_some_and(|known| next() != Some(Ok(*known)))
        });
        for range in go.map(|(range, _)| *range).collect::<Vec<_>>() {
            self.changed = true;
            self.stale.insert(range);
            self.changes += 1;
            // What cannot be forgotten is still known.
            if self.fast.remove_range(range).is_ok() {
                self.applied.ranges.remove(&range);
            }
        }
    }

    /// When to call [`Self::apply`] even if nothing was heard: of others' rules
    /// about packets nothing is heard.
    pub(crate) fn due(&self) -> Option<Instant> {
        let look = (self.yields || self.has_failed()).then_some(self.look);
        look.into_iter().chain(self.programs.due()).min()
    }

    fn has_failed(&self) -> bool {
        !self.undone.is_empty() || self.programs.failures().next().is_some()
    }

    /// Makes the programs know what is wanted. Gives what could not be done;
    /// packets concerned take the stack.
    ///
    /// # Errors
    /// When the kernel cannot be asked for its links and neighbours.
    pub(crate) fn apply(&mut self, socket: &mut Socket) -> Result<Vec<String>, netlink::Error> {
        if self.lost {
            self.local = LocalPods::read(socket)?;
            (self.lost, self.changed) = (false, true);
        }
        if self.yields {
            self.changed |= self.others.read_rules(socket)?;
            self.changed |= self.others.read_policies()?;
        }
        let now = Instant::now();
        let mut again = self.programs.due().is_some_and(|due| due <= now);
        if self.look <= now {
            self.look = now + LOOK;
            again |= self.has_failed();
            self.programs.retry();
            if self.yields {
                let looked = self.others.look();
                self.changed |= *looked.as_ref().unwrap_or(&false);
                self.blind = looked.err().map(|error| format!("fast path: {error}"));
            }
        }
        if std::mem::take(&mut self.changed) {
            self.decide();
            self.programs.hold(now);
            again = true;
        }
        if again {
            self.carry_out(now);
        }
        let failures = self.programs.failures();
        let failures = failures.map(|why| format!("fast path: {why}"));
        let undone = self.blind.iter().chain(&self.undone).cloned();
        Ok(undone.chain(failures).collect())
    }

    /// What the programs know and have done.
    ///
    /// # Errors
    /// When the counters cannot be read.
    pub(crate) fn report(&self) -> Result<Report, fast_path::Error> {
        let excluded = self.excluded.iter();
        let mut report = Report {
            judges: self.judges.clone(),
            ranges: self.applied.ranges.keys().copied().collect(),
            other_ranges: self.no_way.clone(),
            pods: self.applied.pods.len(),
            other_pods: excluded
                .map(|(name, why)| (name.clone(), why.to_string()))
                .collect(),
            pending: self.programs.pending(),
            changes: self.changes + self.programs.changes(),
            ..Report::default()
        };
        report.count(&self.fast)?;
        Ok(report)
    }

    /// Does what differs, in an order in which nothing is sent where an address was
    /// before.
    fn carry_out(&mut self, now: Instant) {
        static NONE: BTreeMap<IpNet, fast_path::Way> = BTreeMap::new();
        let judged = !self.judges.is_empty();
        let mut failures = Vec::new();
        let mut changes = 0;
        let mut done = |what: &dyn Fn() -> String, result: Result<(), fast_path::Error>| {
            changes += 1;
            let result = result.map_err(|error| format!("fast path: {}: {error}", what()));
            result.map_err(|failure| failures.push(failure)).is_ok()
        };
        let ranges = if judged { &NONE } else { &self.wanted.ranges };
        let stale = std::mem::take(&mut self.stale);
        for range in &stale {
            if self.applied.ranges.contains_key(range) && !ranges.contains_key(range) {
                let removed = self.fast.remove_range(*range);
                if done(&|| format!("forgetting {range}"), removed) {
                    self.applied.ranges.remove(range);
                } else {
                    self.stale.insert(*range);
                }
            }
        }
        for address in gone(&self.applied.pods, &self.wanted.pods) {
            let removed = self.fast.remove_pod(address);
            if done(&|| format!("forgetting pod {address}"), removed) {
                self.applied.pods.remove(&address);
            }
        }
        for (address, pod) in changed(&self.applied.pods, &self.wanted.pods) {
            let set = self.fast.set_pod(address, &pod);
            if done(&|| format!("pod {address}"), set) {
                self.applied.pods.insert(address, pod);
            }
        }
        for range in &stale {
            let Some(way) = ranges.get(range) else {
                continue;
            };
            if self.applied.ranges.get(range) != Some(way) {
                let set = self.fast.set_range(*range, way);
                if done(&|| format!("range {range}"), set) {
                    self.applied.ranges.insert(*range, *way);
                } else {
                    self.stale.insert(*range);
                }
            }
        }
        self.undone = failures;
        self.changes += changes;
        let spots = if judged {
            BTreeSet::new()
        } else {
            spots(&self.wanted.pods, &self.arrivals)
        };
        self.programs.want(&spots, now);
    }
}

/// A way with the device of its tunnel found among the links there are.
fn resolved(
    way: &Result<Way, NoWay>,
    devices: &BTreeMap<DeviceName, Option<u32>>,
) -> Result<fast_path::Way, NoWay> {
    (*way)?.resolve(|device| devices.get(&device).copied().flatten())
}

#[cfg(test)]
mod tests {
    use linux::fast_path::Via;
    use linux::link::MacAddress;
    use rstest::rstest;

    use super::*;

    fn pods(pods: &[(&str, u32)]) -> BTreeMap<IpAddr, Pod> {
        let pod = |interface| Pod {
            interface,
            mac: MacAddress([2, 0, 0, 0, 0, 1]),
            gateway: MacAddress([2, 0, 0, 0, 0, 2]),
        };
        pods.iter()
            .map(|(address, interface)| (address.parse().unwrap(), pod(*interface)))
            .collect()
    }

    fn ranges(ranges: &[(&str, &str, u32)]) -> BTreeMap<IpNet, fast_path::Way> {
        let way = |address: &str, interface| fast_path::Way {
            interface,
            mtu: None,
            via: Via::Neighbour(address.parse().unwrap()),
        };
        ranges
            .iter()
            .map(|(range, address, interface)| (range.parse().unwrap(), way(address, *interface)))
            .collect()
    }

    const OUT: Place = Place::Pod;
    const IN: Place = Place::Ethernet;

    #[rstest]
    #[case(&[("10.0.0.2", 7)], &[], &[])]
    #[case(&[], &[("10.0.1.0/24", "192.0.2.2", 2)], &[])]
    #[case(
        &[("10.0.0.2", 7), ("fd00::2", 7), ("10.0.0.3", 8)],
        &[("10.0.1.0/24", "192.0.2.2", 2), ("fd01::/64", "2001:db8::2", 3)],
        &[(OUT, 7), (OUT, 8), (IN, 2), (IN, 3)]
    )]
    fn programs_are_where_pods_and_their_peers_are(
        #[case] known: &[(&str, u32)],
        #[case] peers: &[(&str, &str, u32)],
        #[case] places: &[Spot],
    ) {
        let mut arrivals = Counted::default();
        ranges(peers)
            .values()
            .for_each(|way| arrivals.add(arrival(way)));
        assert_eq!(
            spots(&pods(known), &arrivals),
            places.iter().copied().collect()
        );
    }

    #[test]
    fn only_what_differs_changes() {
        let from = ranges(&[
            ("10.0.1.0/24", "192.0.2.2", 2),
            ("10.0.2.0/24", "192.0.2.3", 2),
            ("10.0.3.0/24", "192.0.2.4", 2),
        ]);
        let to = ranges(&[
            ("10.0.1.0/24", "192.0.2.2", 2),
            ("10.0.3.0/24", "192.0.2.9", 2),
            ("10.0.4.0/24", "192.0.2.5", 3),
        ]);
        assert!(gone(&from, &from).is_empty() && changed(&from, &from).is_empty());
        assert_eq!(gone(&from, &to), ["10.0.2.0/24".parse::<IpNet>().unwrap()]);
        let set = changed(&from, &to)
            .into_iter()
            .map(|(range, _)| range.to_string());
        assert!(set.eq(["10.0.3.0/24", "10.0.4.0/24"]));
    }
}
