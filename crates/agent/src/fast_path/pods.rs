//! Which pods of this node can take the fast path: what the CNI plugin made in
//! the kernel, kept up to date by the kernel's notifications. The plugin works
//! while the agent is down, and tells it nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use cni::{attach, bandwidth};
use linux::events::Event;
use linux::fast_path::Pod;
use linux::link::{self, Link, MacAddress};
use linux::neighbour::{self, Neighbour};
use linux::netlink::{self, Socket};
use linux::qdisc;

/// Links and permanent neighbours of the node.
#[derive(Debug, Default)]
pub(crate) struct LocalPods {
    links: BTreeMap<u32, Link>,
    neighbours: BTreeMap<(u32, IpAddr), MacAddress>,
    /// Links with filters for what they receive.
    filtered: BTreeSet<u32>,
}

/// Why a pod's packets stay with the stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Excluded {
    /// Its bandwidth is limited, by queues that the fast path would go around.
    Limited,
    /// Somebody else has put a queue before its interface.
    Queued,
    /// Somebody else filters what its interface receives.
    Filtered,
    /// Its interface has no label, or no address is known to be behind it.
    Unknown,
    /// Its interface is down: it is coming or going.
    Down,
}

impl fmt::Display for Excluded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Excluded::Limited => "its bandwidth is limited",
            Excluded::Queued => "somebody else's queueing discipline is at its interface",
            Excluded::Filtered => "somebody else's filters are at its interface",
            Excluded::Unknown => "its addresses are not known",
            Excluded::Down => "its interface is down",
        })
    }
}

/// The pods of a node, by what there is to know of each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// Those that can take the fast path, by address.
    pub(crate) pods: BTreeMap<IpAddr, Pod>,
    /// The others, by the name of the host side of their veth.
    pub(crate) excluded: BTreeMap<String, Excluded>,
}

impl LocalPods {
    /// Reads what is there. Subscribe to notifications before.
    pub(crate) fn read(socket: &mut Socket) -> Result<Self, netlink::Error> {
        let mut pods = Self::default();
        for link in link::list(socket)? {
            pods.links.insert(link.index, link);
        }
        for neighbour in neighbour::list(socket, None)? {
            pods.neighbour(&neighbour);
        }
        for qdisc in qdisc::list_all(socket)? {
            pods.notice(&Event::Qdisc(qdisc));
        }
        Ok(pods)
    }

    /// Takes notice of a change; [`Event::Lost`] is the caller's to answer, by
    /// reading anew. Returns whether something has changed.
    pub(crate) fn notice(&mut self, event: &Event) -> bool {
        match event {
            Event::Link(link) => {
                let before = self.links.insert(link.index, link.clone());
                before.as_ref() != Some(link)
            }
            Event::LinkGone(link) => {
                self.filtered.remove(&link.index);
                self.links.remove(&link.index).is_some()
            }
            Event::Qdisc(qdisc) if qdisc.has_filters() => self.filtered.insert(qdisc.link),
            Event::QdiscGone(gone) if gone.has_filters() => self.filtered.remove(&gone.link),
            // Nothing else is heard of it from the link.
            Event::Qdisc(qdisc) if qdisc.root => self.queue(qdisc.link, Some(&qdisc.kind)),
            Event::QdiscGone(gone) if gone.root => self.queue(gone.link, None),
            Event::Neighbour(neighbour) => self.neighbour(neighbour),
            Event::NeighbourGone(gone) => {
                let key = (gone.link, gone.address);
                !gone.proxy && self.neighbours.remove(&key).is_some()
            }
            _ => false,
        }
    }

    /// Takes notice of what orders that a link sends; `None` is that the kernel does.
    fn queue(&mut self, link: u32, kind: Option<&str>) -> bool {
        let Some(link) = self.links.get_mut(&link) else {
            return false;
        };
        let before = std::mem::replace(&mut link.qdisc, kind.map(str::to_owned));
        before != link.qdisc
    }

    fn neighbour(&mut self, now: &Neighbour) -> bool {
        if now.proxy {
            return false;
        }
        let key = (now.link, now.address);
        match now.mac.filter(|_| now.permanent) {
            Some(mac) => self.neighbours.insert(key, mac) != Some(mac),
            None => self.neighbours.remove(&key).is_some(),
        }
    }

    /// The index of a link that is up.
    pub(crate) fn index_of(&self, name: &str) -> Option<u32> {
        let mut links = self.links.values();
        let link = links.find(|link| link.name == name && link.up);
        link.map(|link| link.index)
    }

    /// Links with filters for what they receive, by index.
    pub(crate) fn filtered(&self) -> &BTreeSet<u32> {
        &self.filtered
    }

    /// The pods there are.
    pub(crate) fn found(&self) -> Found {
        let limiters: Vec<&str> = self
            .links
            .values()
            .filter(|link| link.kind.as_deref() == Some("ifb"))
            .map(|link| &*link.name)
            .collect();
        let is_pod = |cable: &&Link| {
            cable.kind.as_deref() == Some("veth")
                && attach::is_host_interface(&cable.name)
                && cable.group != cni::reaper::GROUP
        };
        let cables: Vec<&Link> = self.links.values().filter(is_pod).collect();
        // Tunnels have far more neighbours, none of which is a pod of this node.
        let sides = cables
            .iter()
            .flat_map(|cable| [Some(cable.index), cable.master]);
        let sides: BTreeSet<u32> = sides.flatten().collect();
        let mut addresses: BTreeMap<(u32, MacAddress), Vec<IpAddr>> = BTreeMap::new();
        for ((link, address), mac) in sides.into_iter().flat_map(|link| self.behind(link)) {
            addresses.entry((*link, *mac)).or_default().push(*address);
        }
        let mut found = Found::default();
        for cable in cables {
            match self.pod(cable, &addresses, &limiters) {
                Ok((pod, addresses)) => found.pods.extend(addresses.iter().map(|a| (*a, pod))),
                Err(why) => {
                    found.excluded.insert(cable.name.clone(), why);
                }
            }
        }
        found
    }

    /// The neighbours on a link.
    fn behind(&self, link: u32) -> impl Iterator<Item = (&(u32, IpAddr), &MacAddress)> {
        let first = (link, Ipv4Addr::UNSPECIFIED.into());
        let last = (link, Ipv6Addr::from_bits(u128::MAX).into());
        self.neighbours.range(first..=last)
    }

    fn pod<'a>(
        &self,
        cable: &Link,
        addresses: &'a BTreeMap<(u32, MacAddress), Vec<IpAddr>>,
        limiters: &[&str],
    ) -> Result<(Pod, &'a [IpAddr]), Excluded> {
        if !cable.up {
            return Err(Excluded::Down);
        }
        let (_, attachment) = attach::label_of(cable).ok_or(Excluded::Unknown)?;
        let shaped = cable.qdisc.as_deref() == Some("tbf");
        if shaped || limiters.contains(&&*bandwidth::interface(&attachment)) {
            return Err(Excluded::Limited);
        }
        // A veth has none of its own.
        if cable.qdisc.as_deref().is_some_and(|kind| kind != "noqueue") {
            return Err(Excluded::Queued);
        }
        if self.filtered.contains(&cable.index) {
            return Err(Excluded::Filtered);
        }
        // Neighbours of a bridged pod are the bridge's, which is its gateway too.
        let gateway = match cable.master {
            Some(master) => self.links.get(&master).ok_or(Excluded::Unknown)?,
            None => cable,
        };
        // A pod that was given a hardware address is not known by it on a bridge.
        let mac = attach::pod_mac(&attachment, None);
        let (mac, behind) = addresses
            .get_key_value(&(gateway.index, mac))
            .or_else(|| {
                let own = (cable.index, MacAddress([0; 6]))..=(cable.index, MacAddress([255; 6]));
                addresses.range(own).next()
            })
            .map(|((_, mac), behind)| (*mac, behind))
            .ok_or(Excluded::Unknown)?;
        let pod = Pod {
            interface: cable.index,
            mac,
            gateway: gateway.mac.ok_or(Excluded::Unknown)?,
        };
        Ok((pod, behind))
    }
}

#[cfg(test)]
mod tests {
    use ipam::Attachment;
    use rstest::rstest;

    use super::*;

    const GATEWAY: MacAddress = MacAddress([2, 0, 0, 0, 0, 1]);
    const CABLE: MacAddress = MacAddress([2, 0, 0, 0, 0, 2]);

    fn attachment() -> Attachment {
        Attachment::new("c1", "eth0")
    }

    fn link(index: u32, name: &str, kind: &str) -> Link {
        Link {
            index,
            name: name.to_owned(),
            mac: Some(CABLE),
            mtu: 1500,
            up: true,
            carrier: true,
            operational: true,
            loopback: false,
            master: None,
            peer: None,
            peer_namespace: None,
            kind: Some(kind.to_owned()),
            group: 0,
            alias: None,
            route_localnet: false,
            qdisc: None,
            port: None,
            tunnel: None,
        }
    }

    /// The host side of the pod's veth.
    fn cable() -> Link {
        let limiter = bandwidth::interface(&attachment());
        let name = format!("pw{}", limiter.trim_start_matches("pwi"));
        Link {
            alias: Some("podwire net c1 eth0".to_owned()),
            qdisc: Some("noqueue".to_owned()),
            ..link(7, &name, "veth")
        }
    }

    fn neighbour(link: u32, address: &str, mac: MacAddress) -> Event {
        Event::Neighbour(Neighbour {
            link,
            address: address.parse().unwrap(),
            mac: Some(mac),
            permanent: true,
            proxy: false,
        })
    }

    fn pod_mac() -> MacAddress {
        attach::pod_mac(&attachment(), None)
    }

    fn routed() -> LocalPods {
        let mut pods = LocalPods::default();
        pods.notice(&Event::Link(cable()));
        pods.notice(&neighbour(7, "10.1.0.5", pod_mac()));
        pods.notice(&neighbour(7, "fd00::5", pod_mac()));
        pods
    }

    fn bridged() -> LocalPods {
        let mut pods = LocalPods::default();
        let bridge = Link {
            mac: Some(GATEWAY),
            ..link(4, "pwbr0", "bridge")
        };
        pods.notice(&Event::Link(bridge));
        pods.notice(&Event::Link(Link {
            master: Some(4),
            ..cable()
        }));
        pods.notice(&neighbour(4, "10.1.0.5", pod_mac()));
        pods.notice(&neighbour(4, "fd00::5", pod_mac()));
        // Another pod's.
        pods.notice(&neighbour(4, "10.1.0.6", MacAddress([2, 0, 0, 0, 0, 6])));
        pods
    }

    #[rstest]
    #[case(routed(), CABLE)]
    #[case(bridged(), GATEWAY)]
    fn a_pod_is_known_by_both_addresses_on_its_own_interface(
        #[case] pods: LocalPods,
        #[case] gateway: MacAddress,
    ) {
        let pod = Pod {
            interface: 7,
            mac: pod_mac(),
            gateway,
        };
        let expected = ["10.1.0.5", "fd00::5"].map(|address| (address.parse().unwrap(), pod));
        assert_eq!(pods.found().pods, expected.into());
        assert!(pods.found().excluded.is_empty());
    }

    #[test]
    fn a_routed_pod_with_a_hardware_address_of_its_own_is_known() {
        let mut pods = LocalPods::default();
        pods.notice(&Event::Link(cable()));
        let given = MacAddress([2, 0, 0, 0, 9, 9]);
        pods.notice(&neighbour(7, "10.1.0.5", given));
        let found = pods.found();
        assert_eq!(found.pods[&"10.1.0.5".parse().unwrap()].mac, given);
    }

    #[rstest]
    #[case(Link { up: false, ..cable() }, Some(Excluded::Down))]
    #[case(Link { alias: None, ..cable() }, Some(Excluded::Unknown))]
    #[case(Link { mac: None, ..cable() }, Some(Excluded::Unknown))]
    #[case(Link { qdisc: Some("tbf".to_owned()), ..cable() }, Some(Excluded::Limited))]
    #[case(Link { qdisc: Some("netem".to_owned()), ..cable() }, Some(Excluded::Queued))]
    #[case(Link { master: Some(99), ..cable() }, Some(Excluded::Unknown))]
    // Set aside to be deleted, and no cable at all.
    #[case(Link { group: cni::reaper::GROUP, ..cable() }, None)]
    #[case(Link { name: "pw-vxlan".to_owned(), ..cable() }, None)]
    #[case(Link { kind: Some("dummy".to_owned()), ..cable() }, None)]
    fn other_pods_are_left_to_the_stack(#[case] now: Link, #[case] why: Option<Excluded>) {
        let mut pods = routed();
        let name = now.name.clone();
        assert!(pods.notice(&Event::Link(now.clone())));
        let found = pods.found();
        assert!(found.pods.is_empty());
        assert_eq!(found.excluded.get(&name).copied(), why);
        assert!(!pods.notice(&Event::Link(now)), "the kernel repeats itself");
    }

    #[test]
    fn a_pod_whose_sending_is_limited_is_left_to_the_stack() {
        let mut pods = bridged();
        let limiter = link(9, &bandwidth::interface(&attachment()), "ifb");
        pods.notice(&Event::Link(limiter.clone()));
        let found = pods.found();
        assert!(found.pods.is_empty());
        assert_eq!(found.excluded[&cable().name], Excluded::Limited);
        assert!(pods.notice(&Event::LinkGone(limiter)));
        assert_eq!(pods.found().pods.len(), 2);
    }

    #[rstest]
    #[case("clsact")]
    #[case("ingress")]
    fn a_pod_whose_packets_somebody_filters_is_left_to_the_stack(#[case] kind: &str) {
        let qdisc = |kind: &str| qdisc::Qdisc {
            link: 7,
            kind: kind.to_owned(),
            root: false,
            rate: None,
        };
        let mut pods = routed();
        assert!(!pods.notice(&Event::Qdisc(qdisc("noqueue"))));
        assert!(pods.notice(&Event::Qdisc(qdisc(kind))));
        assert_eq!(pods.found().excluded[&cable().name], Excluded::Filtered);
        assert!(pods.notice(&Event::QdiscGone(qdisc(kind))));
        assert_eq!(pods.found().pods.len(), 2);
        // They go with the interface, whose number another gets.
        pods.notice(&Event::Qdisc(qdisc(kind)));
        pods.notice(&Event::LinkGone(cable()));
        assert!(pods.filtered().is_empty());
    }

    #[test]
    fn a_queue_that_comes_later_is_noticed() {
        let netem = qdisc::Qdisc {
            link: 7,
            kind: "netem".to_owned(),
            root: true,
            rate: None,
        };
        let mut pods = routed();
        assert!(pods.notice(&Event::Qdisc(netem.clone())));
        assert_eq!(pods.found().excluded[&cable().name], Excluded::Queued);
        assert!(pods.notice(&Event::QdiscGone(netem)));
        assert_eq!(pods.found().pods.len(), 2);
    }

    #[test]
    fn a_pod_goes_with_its_interface_or_its_address() {
        let mut pods = routed();
        let gone = Neighbour {
            link: 7,
            address: "10.1.0.5".parse().unwrap(),
            mac: None,
            permanent: false,
            proxy: false,
        };
        assert!(pods.notice(&Event::NeighbourGone(gone)));
        assert_eq!(pods.found().pods.len(), 1);
        assert!(pods.notice(&Event::LinkGone(cable())));
        assert_eq!(pods.found(), Found::default());
    }
}
