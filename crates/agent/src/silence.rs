//! Peers that do not answer on the Ethernet the back end `vxlan-multicast` makes.
//!
//! That back end programs nothing about a peer, so the kernel takes everything
//! and reports success where the underlay carries no multicast. Each peer is
//! therefore asked once, by ARP or NDP for the address its bridge has, when it
//! becomes known and with each audit. The kernel's notifications of neighbours
//! tell of answers. Who has not answered within [`DEADLINE`] is asked again now
//! and then, and reported.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use linux::events::Event;
use linux::neighbour;
use routing::apply::Error;
use routing::model::{DeviceKind, DeviceName, Name};
use routing::{Family, Kernel, Node, Plan, Underlay};

/// How long a peer may take to answer: three times the kernel's three questions.
const DEADLINE: Duration = Duration::from_secs(10);
/// Before those are asked again that still may answer; longer than the kernel
/// goes on asking by itself.
const AGAIN: Duration = Duration::from_secs(5);
/// Before those are asked again that were reported.
const REPORTED: Duration = Duration::from_secs(15);
/// How many are asked at once: each question goes to every node.
const AT_ONCE: usize = 64;
/// How many silent peers a report names.
const NAMED: usize = 5;

/// The Ethernet of all nodes, as this node is connected to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ethernet {
    bridge: DeviceName,
    group: IpAddr,
    port: u16,
    interface: String,
}

impl Ethernet {
    /// That of a plan; `None` when it has none.
    pub(crate) fn of(plan: &Plan, underlay: &Underlay) -> Option<Ethernet> {
        plan.state.devices.values().find_map(|device| {
            let DeviceKind::Vxlan(vxlan) = device.kind else {
                return None;
            };
            let parent = vxlan.parent.and_then(|i| underlay.interfaces.get(&i));
            Some(Ethernet {
                bridge: device.bridge?,
                group: vxlan.group?,
                port: vxlan.port,
                interface: parent.map_or_else(|| "?".to_owned(), |i| i.name.clone()),
            })
        })
    }
}

/// The address to ask a peer for, if it has told that it has the back end too, and is
/// reached by it.
pub(crate) fn address(plan: &Plan, peer: &Node) -> Option<IpAddr> {
    const BACKEND: &str = "vxlan-multicast";
    let told = peer.data.as_ref().map_or(&[][..], |data| &data.ways);
    if !told.iter().any(|way| &**way == BACKEND) {
        return None;
    }
    let families = || Family::BOTH.into_iter();
    let mut ranges = families().filter_map(|family| peer.range(family));
    let is_reached = ranges.any(|range| {
        let way = plan.ways.get(&range);
        way.is_some_and(|way| way.backend == BACKEND && way.node == peer.name)
    });
    // One Ethernet carries both families: one question is enough.
    let mut addresses = families().filter_map(|family| peer.tunnel_address(family));
    addresses.next().filter(|_| is_reached)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stand {
    Unasked,
    Asked { first: Instant },
    Silent,
    Answered,
}

/// Who was asked, and who answered.
#[derive(Debug, Default)]
pub(crate) struct Questions {
    ethernet: Option<Ethernet>,
    /// The address to ask each peer for.
    peers: BTreeMap<Name, IpAddr>,
    asked: BTreeMap<IpAddr, (Name, Stand)>,
    next: Option<Instant>,
}

impl Questions {
    /// The Ethernet is this now.
    pub(crate) fn set_ethernet(&mut self, ethernet: Option<Ethernet>, now: Instant) {
        if self.ethernet == ethernet {
            return;
        }
        self.ethernet = ethernet;
        self.asked.clear();
        self.next = None;
        for (name, address) in std::mem::take(&mut self.peers) {
            self.set_peer(&name, Some(address), now);
        }
    }

    /// The peers that are asked at all.
    pub(crate) fn peers(&self) -> impl Iterator<Item = &Name> {
        self.peers.keys()
    }

    /// A peer is to be asked for this address now, or for none.
    pub(crate) fn set_peer(&mut self, name: &Name, address: Option<IpAddr>, now: Instant) {
        if self.peers.get(name).copied() == address {
            return;
        }
        let before = match address {
            Some(address) => self.peers.insert(name.clone(), address),
            None => self.peers.remove(name),
        };
        // Another may have it by now.
        if let Some(before) = before
            && self.asked.get(&before).is_some_and(|(of, _)| of == name)
        {
            self.asked.remove(&before);
        }
        if let Some(address) = address {
            self.asked.insert(address, (name.clone(), Stand::Unasked));
            self.next = Some(now);
        }
        if self.asked.is_empty() {
            self.next = None;
        }
    }

    /// Asks everybody once more.
    pub(crate) fn ask_anew(&mut self, now: Instant) {
        for (_, stand) in self.asked.values_mut() {
            if *stand == Stand::Answered {
                *stand = Stand::Unasked;
                self.next = Some(now);
            }
        }
    }

    /// When there is something to do.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.next
    }

    /// Takes notice of an answer. Returns whether it changes what is reported.
    pub(crate) fn notice(&mut self, event: &Event) -> bool {
        let Event::Neighbour(neighbour) = event else {
            return false;
        };
        if neighbour.mac.is_none() || neighbour.permanent || neighbour.proxy {
            return false;
        }
        let Some((_, stand)) = self.asked.get_mut(&neighbour.address) else {
            return false;
        };
        // One that was not asked anew has merely been heard of.
        if *stand == Stand::Unasked {
            return false;
        }
        std::mem::replace(stand, Stand::Answered) == Stand::Silent
    }

    /// Who is to be asked now. Returns whether that changes what is reported, too.
    fn round(&mut self, now: Instant) -> (Vec<IpAddr>, bool) {
        let (mut ask, mut news, mut waiting) = (Vec::new(), false, false);
        for (address, (_, stand)) in &mut self.asked {
            if let Stand::Asked { first } = *stand
                && now.saturating_duration_since(first) >= DEADLINE
            {
                *stand = Stand::Silent;
                news = true;
            }
            let open = *stand != Stand::Answered;
            if open && ask.len() < AT_ONCE {
                ask.push(*address);
                if *stand == Stand::Unasked {
                    *stand = Stand::Asked { first: now };
                }
            }
            waiting |= matches!(stand, Stand::Unasked | Stand::Asked { .. });
        }
        self.next = match (waiting, ask.is_empty()) {
            (true, _) => Some(now + AGAIN),
            (false, false) => Some(now + REPORTED),
            (false, true) => None,
        };
        (ask, news)
    }

    /// Asks whom it is time to ask. Returns whether that changes what is reported.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub(crate) fn ask(&mut self, kernel: &mut Kernel, now: Instant) -> Result<bool, Error> {
        if self.next.is_none_or(|next| next > now) {
            return Ok(false);
        }
        let (addresses, news) = self.round(now);
        let Some(ethernet) = &self.ethernet else {
            return Ok(news);
        };
        let Some(device) = kernel.held()?.devices.get(&ethernet.bridge) else {
            return Ok(news);
        };
        let bridge = device.index;
        let requests: Vec<_> = addresses
            .into_iter()
            // What is known by now would be asked by unicast, or not at all.
            .flat_map(|a| [neighbour::delete(bridge, a), neighbour::ask(bridge, a)])
            .collect();
        // There need be nothing to delete, and what is not asked stays unanswered.
        kernel.socket().attempt_all(&requests)?;
        Ok(news)
    }

    /// What is to be reported.
    pub(crate) fn problem(&self) -> Option<String> {
        let ethernet = self.ethernet.as_ref()?;
        let silent = self.asked.iter().filter(|(_, (_, s))| *s == Stand::Silent);
        let silent: Vec<String> = silent
            .map(|(address, (node, _))| format!("{node} ({address})"))
            .collect();
        if silent.is_empty() {
            return None;
        }
        let named = silent[..silent.len().min(NAMED)].join(", ");
        let more = match silent.len().saturating_sub(NAMED) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let Ethernet {
            bridge,
            group,
            port,
            interface,
        } = ethernet;
        Some(format!(
            "no answer within {} s on {bridge} from {named}{more}: the underlay seems to drop the \
             packets to multicast group {group}, UDP port {port}, on {interface} (or the nodes are \
             down); let switches and firewalls pass the group (IGMP or MLD snooping needs a \
             querier), or use the back end vxlan where multicast is not carried",
            DEADLINE.as_secs()
        ))
    }
}

#[cfg(test)]
mod tests {
    use linux::neighbour::Neighbour;
    use routing::model::MacAddress;

    use super::*;

    fn ethernet() -> Ethernet {
        Ethernet {
            bridge: DeviceName::new("pw-mcast-br"),
            group: "239.112.0.1".parse().unwrap(),
            port: 4789,
            interface: "eth0".into(),
        }
    }

    /// With so many peers of 200.
    fn set(questions: &mut Questions, ethernet: Option<Ethernet>, count: u8, now: Instant) {
        questions.set_ethernet(ethernet, now);
        for n in 1..=200 {
            let address = (n <= count).then_some([10, 0, n, 0].into());
            questions.set_peer(&format!("n{n}").into(), address, now);
        }
    }

    fn answer(n: u8) -> Event {
        Event::Neighbour(Neighbour {
            link: 7,
            address: [10, 0, n, 0].into(),
            mac: Some(MacAddress([2, 0, 0, 0, 0, n])),
            permanent: false,
            proxy: false,
        })
    }

    #[test]
    fn who_does_not_answer_in_time_is_reported_until_it_does() {
        let start = Instant::now();
        let mut questions = Questions::default();
        set(&mut questions, Some(ethernet()), 2, start);
        assert_eq!(questions.due(), Some(start));
        assert_eq!(questions.round(start).0.len(), 2);
        assert!(!questions.notice(&answer(2)));
        assert_eq!(
            questions.round(start + AGAIN),
            (vec![[10, 0, 1, 0].into()], false)
        );
        assert_eq!(questions.problem(), None);
        assert!(questions.round(start + DEADLINE).1);
        let problem = questions.problem().unwrap();
        for part in [
            "n1 (10.0.1.0)",
            "239.112.0.1",
            "4789",
            "eth0",
            "pw-mcast-br",
        ] {
            assert!(problem.contains(part), "{problem}");
        }
        assert!(!problem.contains("n2"), "{problem}");
        assert!(questions.notice(&answer(1)));
        assert_eq!(questions.problem(), None);
        assert_eq!(
            questions.round(start + DEADLINE + REPORTED),
            (vec![], false)
        );
        assert_eq!(questions.due(), None);
    }

    #[test]
    fn those_that_left_are_asked_no_more_and_an_audit_asks_all() {
        let start = Instant::now();
        let mut questions = Questions::default();
        set(&mut questions, Some(ethernet()), 2, start);
        questions.round(start);
        questions.notice(&answer(1));
        set(&mut questions, Some(ethernet()), 1, start);
        assert_eq!(questions.round(start + DEADLINE), (vec![], false));
        questions.ask_anew(start + DEADLINE);
        assert_eq!(questions.due(), Some(start + DEADLINE));
        assert_eq!(questions.round(start + DEADLINE).0.len(), 1);
        set(&mut questions, None, 0, start);
        assert_eq!(questions.due(), None);
    }

    #[test]
    fn many_are_asked_a_few_at_a_time() {
        let start = Instant::now();
        let mut questions = Questions::default();
        set(&mut questions, Some(ethernet()), 200, start);
        assert_eq!(questions.round(start).0.len(), AT_ONCE);
        for n in 1..=64 {
            questions.notice(&answer(n));
        }
        let (second, _) = questions.round(start + AGAIN);
        assert_eq!(second.first(), Some(&[10, 0, 65, 0].into()));
    }
}
