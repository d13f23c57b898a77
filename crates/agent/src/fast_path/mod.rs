//! The fast path of established connections between pods of this node and pods
//! of others ([`linux::fast_path`]): which pods and ranges it is to know, and
//! keeping it so.

mod others;
mod pods;
mod report;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use linux::events::Event;
use linux::fast_path::{self, Attached, FastPath, Place, Pod};
use linux::netlink::{self, Socket};
use routing::model::DeviceName;
use routing::ways::{NoWay, Way};

use others::Others;
use pods::{Excluded, LocalPods};
pub use report::Report;

/// What the programs are to know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Wanted {
    pods: BTreeMap<IpAddr, Pod>,
    ranges: BTreeMap<IpNet, fast_path::Way>,
}

impl Wanted {
    /// Where programs are attached: at pods only while there is somewhere to send,
    /// and where a program is needed for one way it is for the other.
    fn places(&self) -> BTreeSet<(Place, u32)> {
        if self.pods.is_empty() || self.ranges.is_empty() {
            return BTreeSet::new();
        }
        let nodes = self.ranges.values();
        let nodes = nodes.map(|way| (way.place(), way.interface));
        let pods = self.pods.values().map(|pod| (Place::Pod, pod.interface));
        nodes.chain(pods).collect()
    }
}

/// What has to change between two states, in the order in which it is done:
/// nothing is sent where an address was before.
#[derive(Debug, Default, PartialEq, Eq)]
struct Difference {
    remove_ranges: Vec<IpNet>,
    remove_pods: Vec<IpAddr>,
    detach: Vec<(Place, u32)>,
    attach: Vec<(Place, u32)>,
    set_pods: Vec<(IpAddr, Pod)>,
    set_ranges: Vec<(IpNet, fast_path::Way)>,
}

impl Difference {
    fn len(&self) -> usize {
        self.remove_ranges.len()
            + self.remove_pods.len()
            + self.detach.len()
            + self.attach.len()
            + self.set_pods.len()
            + self.set_ranges.len()
    }
}

fn difference(from: &Wanted, to: &Wanted, attached: &BTreeSet<(Place, u32)>) -> Difference {
    let places = to.places();
    Difference {
        remove_ranges: gone(&from.ranges, &to.ranges),
        remove_pods: gone(&from.pods, &to.pods),
        detach: attached.difference(&places).copied().collect(),
        attach: places.difference(attached).copied().collect(),
        set_pods: changed(&from.pods, &to.pods),
        set_ranges: changed(&from.ranges, &to.ranges),
    }
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
    fast: FastPath,
    local: LocalPods,
    others: Others,
    /// Whether it is for others' rules to decide that there is no fast path.
    yields: bool,
    /// When to look at them.
    look: Instant,
    /// What of others' is in the way.
    judges: BTreeSet<String>,
    /// What is wanted, and what was applied.
    wanted: Wanted,
    applied: Wanted,
    /// How often something was applied.
    changes: u64,
    attached: BTreeMap<(Place, u32), Attached>,
    /// How peers' pods are reached, as the routing plan has it.
    ways: BTreeMap<IpNet, Result<Way, NoWay>>,
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

impl Keeper {
    /// Loads the programs, once the kernel has shown that it can do it. With
    /// `yields` there is no fast path while others have rules about packets.
    ///
    /// # Errors
    /// What it cannot do.
    pub(crate) fn start(yields: bool) -> Result<Self, fast_path::Lacking> {
        fast_path::probe()?;
        Ok(Self {
            fast: FastPath::load()?,
            local: LocalPods::default(),
            others: Others::new(),
            yields,
            look: Instant::now(),
            judges: BTreeSet::new(),
            wanted: Wanted::default(),
            applied: Wanted::default(),
            changes: 0,
            attached: BTreeMap::new(),
            ways: BTreeMap::new(),
            excluded: BTreeMap::new(),
            no_way: BTreeMap::new(),
            changed: false,
            lost: true,
            blind: None,
            undone: Vec::new(),
        })
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

    /// Takes up how peers' pods are reached.
    pub(crate) fn set_ways(&mut self, ways: BTreeMap<IpNet, Result<Way, NoWay>>) {
        self.changed |= self.ways != ways;
        self.ways = ways;
    }

    /// Works out what is wanted.
    fn decide(&mut self) {
        let found = self.local.found();
        self.wanted.pods = found.pods;
        self.excluded = found.excluded;
        self.resolve();
        let own: Vec<IpNet> = self.wanted.pods.keys().copied().map(IpNet::from).collect();
        let peers: Vec<IpNet> = self.wanted.ranges.keys().copied().collect();
        let judges = self.others.judges(&own, &peers);
        announce(&self.judges, &judges);
        self.judges = judges;
        if !self.judges.is_empty() {
            self.wanted.ranges.clear();
        }
    }

    /// Sorts out which ranges have a way.
    fn resolve(&mut self) {
        self.wanted.ranges.clear();
        self.no_way.clear();
        for (range, way) in self.resolved(&self.ways) {
            match way {
                Ok(way) if self.local.filtered().contains(&way.interface) => {
                    let why = "somebody else's filters are at the interface it leaves by";
                    self.no_way.insert(range, why.to_owned());
                }
                Ok(way) => drop(self.wanted.ranges.insert(range, way)),
                Err(why) => drop(self.no_way.insert(range, why.to_string())),
            }
        }
    }

    /// Finds the devices of tunnels among the links there are.
    fn resolved(
        &self,
        ways: &BTreeMap<IpNet, Result<Way, NoWay>>,
    ) -> BTreeMap<IpNet, Result<fast_path::Way, NoWay>> {
        let mut known: BTreeMap<DeviceName, Option<u32>> = BTreeMap::new();
        let mut index = |device: DeviceName| {
            let find = || self.local.index_of(device.as_str());
            *known.entry(device).or_insert_with(find)
        };
        ways.iter()
            .map(|(range, way)| (*range, (*way).and_then(|way| way.resolve(&mut index))))
            .collect()
    }

    /// Leaves to the stack what is about to be reached in another way than the
    /// programs know: what belongs to the old way goes with it, the entries of a
    /// neighbour for one, and packets sent there would be lost.
    pub(crate) fn leave(&mut self, ways: &BTreeMap<IpNet, Result<Way, NoWay>>) {
        let next = self.resolved(ways);
        let (stay, go): (BTreeMap<_, _>, BTreeMap<_, _>) = std::mem::take(&mut self.applied.ranges)
            .into_iter()
            .partition(|(range, way)| next.get(range) == Some(&Ok(*way)));
        self.applied.ranges = stay;
        for (range, way) in go {
            self.changed = true;
            self.changes += 1;
            // What cannot be forgotten is still known.
            if self.fast.remove_range(range).is_err() {
                self.applied.ranges.insert(range, way);
            }
        }
    }

    /// When to call [`Self::apply`] even if nothing was heard: of others' rules
    /// about packets nothing is heard.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.yields.then_some(self.look)
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
            if self.look <= Instant::now() {
                let looked = self.others.look();
                self.changed |= *looked.as_ref().unwrap_or(&false);
                self.blind = looked.err().map(|error| format!("fast path: {error}"));
                self.look = Instant::now() + LOOK;
            }
        }
        if std::mem::take(&mut self.changed) {
            self.decide();
            self.undone = self.carry_out();
        } else if !self.undone.is_empty() {
            self.undone = self.carry_out();
        }
        Ok(self.blind.iter().chain(&self.undone).cloned().collect())
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
            changes: self.changes,
            ..Report::default()
        };
        report.count(&self.fast)?;
        Ok(report)
    }

    fn carry_out(&mut self) -> Vec<String> {
        let mut failures = Vec::new();
        let attached = self.attached.keys().copied().collect();
        let difference = difference(&self.applied, &self.wanted, &attached);
        self.changes += difference.len() as u64;
        let mut done = |what: String, result: Result<(), fast_path::Error>| match result {
            Ok(()) => true,
            Err(error) => {
                failures.push(format!("fast path: {what}: {error}"));
                false
            }
        };
        for range in difference.remove_ranges {
            if done(format!("forgetting {range}"), self.fast.remove_range(range)) {
                self.applied.ranges.remove(&range);
            }
        }
        for address in difference.remove_pods {
            if done(
                format!("forgetting pod {address}"),
                self.fast.remove_pod(address),
            ) {
                self.applied.pods.remove(&address);
            }
        }
        for place in difference.detach {
            self.attached.remove(&place);
        }
        for place in difference.attach {
            match self.fast.attach(place.0, place.1) {
                Ok(attached) => drop(self.attached.insert(place, attached)),
                // A notification of that is on its way.
                Err(error) if error.is_gone() => {}
                Err(error) => {
                    done("attaching".to_owned(), Err(error));
                }
            }
        }
        for (address, pod) in difference.set_pods {
            if done(format!("pod {address}"), self.fast.set_pod(address, &pod)) {
                self.applied.pods.insert(address, pod);
            }
        }
        for (range, way) in difference.set_ranges {
            if done(format!("range {range}"), self.fast.set_range(range, &way)) {
                self.applied.ranges.insert(range, way);
            }
        }
        failures
    }
}

#[cfg(test)]
mod tests {
    use linux::fast_path::Via;
    use linux::link::MacAddress;
    use rstest::rstest;

    use super::*;

    fn wanted(pods: &[(&str, u32)], ranges: &[(&str, &str, u32)]) -> Wanted {
        let pod = |interface| Pod {
            interface,
            mac: MacAddress([2, 0, 0, 0, 0, 1]),
            gateway: MacAddress([2, 0, 0, 0, 0, 2]),
        };
        Wanted {
            pods: pods
                .iter()
                .map(|(address, interface)| (address.parse().unwrap(), pod(*interface)))
                .collect(),
            ranges: ranges
                .iter()
                .map(|(range, address, interface)| {
                    let address = address.parse().unwrap();
                    let way = fast_path::Way {
                        interface: *interface,
                        mtu: None,
                        via: Via::Neighbour(address),
                    };
                    (range.parse().unwrap(), way)
                })
                .collect(),
        }
    }

    const OUT: Place = Place::Pod;
    const IN: Place = Place::Ethernet;

    #[rstest]
    #[case(wanted(&[("10.0.0.2", 7)], &[]), &[])]
    #[case(wanted(&[], &[("10.0.1.0/24", "192.0.2.2", 2)]), &[])]
    #[case(
        wanted(
            &[("10.0.0.2", 7), ("fd00::2", 7), ("10.0.0.3", 8)],
            &[("10.0.1.0/24", "192.0.2.2", 2), ("fd01::/64", "2001:db8::2", 3)]
        ),
        &[(OUT, 7), (OUT, 8), (IN, 2), (IN, 3)]
    )]
    fn programs_are_where_pods_and_their_peers_are(
        #[case] wanted: Wanted,
        #[case] places: &[(Place, u32)],
    ) {
        assert_eq!(wanted.places(), places.iter().copied().collect());
    }

    #[test]
    fn only_what_differs_changes() {
        let from = wanted(
            &[("10.0.0.2", 7), ("10.0.0.3", 8)],
            &[
                ("10.0.1.0/24", "192.0.2.2", 2),
                ("10.0.2.0/24", "192.0.2.3", 2),
            ],
        );
        let to = wanted(
            &[("10.0.0.2", 9), ("10.0.0.4", 10)],
            &[
                ("10.0.1.0/24", "192.0.2.2", 2),
                ("10.0.3.0/24", "192.0.2.4", 3),
            ],
        );
        let attached = from.places();
        assert_eq!(difference(&from, &from, &attached), Difference::default());
        let change = difference(&from, &to, &attached);
        assert_eq!(change.remove_pods, ["10.0.0.3".parse::<IpAddr>().unwrap()]);
        assert_eq!(
            change.remove_ranges,
            ["10.0.2.0/24".parse::<IpNet>().unwrap()]
        );
        let set: Vec<_> = change
            .set_pods
            .iter()
            .map(|(a, pod)| (a.to_string(), pod.interface))
            .collect();
        assert_eq!(
            set,
            [("10.0.0.2".to_owned(), 9), ("10.0.0.4".to_owned(), 10)]
        );
        assert_eq!(change.set_ranges.len(), 1);
        assert_eq!(change.detach, [(OUT, 7), (OUT, 8)]);
        assert_eq!(change.attach, [(OUT, 9), (OUT, 10), (IN, 3)]);
    }
}
