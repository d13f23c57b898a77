//! This node and its peers, from Node objects. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use api::Event;
use ipnet::IpNet;
use routing::NodeData;
use routing::model::Name;

use crate::flannel;
use crate::publish::{self, Present};

/// What has changed of the cluster's nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Change {
    /// This node, if it has.
    pub(crate) own: Option<Arc<Member>>,
    /// Peers, by name; `None` for those that are gone.
    pub(crate) peers: BTreeMap<Name, Option<Arc<Member>>>,
}

/// A node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Member {
    /// Its zone.
    pub(crate) zone: Option<Box<str>>,
    /// Its internal addresses, the primary one of each family first.
    pub(crate) addresses: Vec<IpAddr>,
    /// Its pod ranges, at most one a family.
    pub(crate) ranges: Vec<IpNet>,
    /// What it told of how it is reached; `None` when nothing (that can be read).
    pub(crate) data: Option<NodeData>,
    /// Whether flannel looks after it, and not podwire.
    pub(crate) of_flannel: bool,
    /// What of all that cannot be used, and why.
    pub(crate) problems: Vec<String>,
}

impl Member {
    /// What podwire reads of a Node object.
    fn of(node: &api::Node) -> Member {
        let mut member = Member {
            zone: node.zone().map(Into::into),
            addresses: node.internal_addresses().collect(),
            ..Member::default()
        };
        for text in node.pod_cidrs() {
            let name = &node.metadata.name;
            match text.parse::<IpNet>() {
                Err(_) => {
                    let problem = format!("node {name}: {text:?} in spec.podCIDRs is no range");
                    member.problems.push(problem);
                }
                Ok(range) if member.ranges.iter().any(|r| is_v4(r) == is_v4(&range)) => {
                    let problem = format!(
                        "node {name}: {text} in spec.podCIDRs is a second range of its family \
                         and left out"
                    );
                    member.problems.push(problem);
                }
                Ok(range) => member.ranges.push(range.trunc()),
            }
        }
        let annotations = &node.metadata.annotations;
        match annotations.get(publish::ROUTING) {
            Some(text) => match serde_json::from_str(text) {
                Ok(data) => member.data = Some(data),
                Err(error) => member.problems.push(format!(
                    "node {}: cannot read the annotation {}{}: {error}; its agent writes it anew \
                     when it is removed",
                    node.metadata.name,
                    api::meta::OWN_ANNOTATIONS,
                    publish::ROUTING
                )),
            },
            None => {
                member.data = flannel::read(annotations);
                member.of_flannel = member.data.is_some();
                if member.of_flannel {
                    member.put_first(flannel::addresses(annotations));
                }
            }
        }
        member
    }

    /// Makes these addresses the primary ones of their families.
    fn put_first(&mut self, addresses: impl Iterator<Item = IpAddr>) {
        let first: Vec<IpAddr> = addresses.collect();
        self.addresses.retain(|address| !first.contains(address));
        self.addresses.splice(0..0, first);
    }

    /// In the words of the routing crate.
    pub(crate) fn to_routing(&self, name: &Name, pods: &[IpAddr]) -> routing::Node {
        routing::Node {
            name: name.clone(),
            addresses: self.addresses.clone(),
            ranges: self.ranges.clone(),
            data: self.data.clone(),
            pods: pods.into(),
        }
    }

    /// The primary address of each family there is.
    pub(crate) fn primary_addresses(&self) -> Vec<IpAddr> {
        let of = |v4: bool| self.addresses.iter().copied().find(|a| a.is_ipv4() == v4);
        of(true).into_iter().chain(of(false)).collect()
    }
}

/// Why nothing more is to be sent to a node whose object is gone or going.
const DELETED: &str = "this node is being deleted";
/// The cluster autoscaler's mark of a node it is about to remove.
const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";

/// Whether a node is about to go (KEP-3458, as kube-proxy's `/healthz`).
fn leaving(node: &api::Node) -> Option<&'static str> {
    if node.metadata.is_terminating() {
        return Some(DELETED);
    }
    node.spec
        .taints
        .iter()
        .any(|taint| &*taint.key == TO_BE_DELETED)
        .then_some("this node has the taint ToBeDeletedByClusterAutoscaler")
}

fn is_v4(range: &IpNet) -> bool {
    range.addr().is_ipv4()
}

/// The nodes as they become known.
#[derive(Debug)]
pub(crate) struct Nodes {
    own_name: Name,
    /// The last state of this node that had ranges: it stays in force while
    /// the Node object is away or being set up again.
    own: Option<Arc<Member>>,
    /// Whether the Node object is there, and whether it has ranges.
    own_state: OwnState,
    /// What the Node object says of how this node is reached; none while it is away.
    present: Option<Present>,
    /// Why load balancers are to send nothing more here, if so.
    leaving: Option<&'static str>,
    peers: BTreeMap<Name, Arc<Member>>,
    synced: bool,
    /// What has changed since it was asked for.
    own_changed: bool,
    changed: BTreeSet<Name>,
}

/// What is known of this node's own Node object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OwnState {
    /// Not there.
    Absent,
    /// There, without pod ranges.
    WithoutRanges,
    /// There, with pod ranges.
    Complete,
}

impl Nodes {
    pub(crate) fn new(own_name: &str) -> Nodes {
        Nodes {
            own_name: own_name.into(),
            own: None,
            own_state: OwnState::Absent,
            present: None,
            leaving: None,
            peers: BTreeMap::new(),
            synced: false,
            own_changed: false,
            changed: BTreeSet::new(),
        }
    }

    /// Takes up an event. Returns whether anything podwire uses has changed: a
    /// heartbeat changes nothing.
    pub(crate) fn take(&mut self, event: Event<api::Node>) -> bool {
        match event {
            Event::Applied(node) if *node.metadata.name == *self.own_name => {
                self.leaving = leaving(&node);
                let mut member = Member::of(&node);
                // What this node told is the others' to read.
                (member.data, member.of_flannel) = (None, false);
                self.present = Some(Present {
                    uid: node.metadata.uid.clone(),
                    annotations: node.metadata.annotations.clone(),
                });
                let state = if member.ranges.is_empty() {
                    OwnState::WithoutRanges
                } else {
                    OwnState::Complete
                };
                let is_new = self.own.as_deref() != Some(&member);
                let changed = state != self.own_state || is_new;
                self.own_state = state;
                if state == OwnState::Complete && is_new {
                    self.own = Some(Arc::new(member));
                    self.own_changed = true;
                }
                changed
            }
            Event::Applied(node) => {
                let member = Member::of(&node);
                let known = self.peers.get(&*node.metadata.name);
                let changed = known.is_none_or(|known| **known != member);
                if changed {
                    let name = Name::from(node.metadata.name);
                    self.peers.insert(name.clone(), Arc::new(member));
                    self.changed.insert(name);
                }
                changed
            }
            Event::Deleted(key) if *key.name == *self.own_name => {
                self.present = None;
                self.leaving = Some(DELETED);
                std::mem::replace(&mut self.own_state, OwnState::Absent) != OwnState::Absent
            }
            Event::Deleted(key) => {
                let gone = self.peers.remove_entry(&*key.name);
                let gone = gone.map(|(name, _)| self.changed.insert(name));
                gone.is_some()
            }
            Event::Synced => !std::mem::replace(&mut self.synced, true),
        }
    }

    /// What this node's Node object says of how it is reached; `None` while
    /// there is none.
    pub(crate) fn present(&self) -> Option<&Present> {
        self.present.as_ref().filter(|_| self.synced)
    }

    /// Why load balancers are to send nothing more to this node, if so.
    pub(crate) fn leaving(&self) -> Option<&'static str> {
        self.leaving
    }

    /// What is known of this node's own Node object; `None` before the nodes are.
    pub(crate) fn own_state(&self) -> Option<OwnState> {
        self.synced.then_some(self.own_state)
    }

    /// This node, once it has its ranges.
    pub(crate) fn own(&self) -> Option<&Arc<Member>> {
        self.own.as_ref()
    }

    /// The others.
    pub(crate) fn peers(&self) -> impl ExactSizeIterator<Item = &Member> + Clone {
        self.peers.values().map(|peer| &**peer)
    }

    /// What has changed since this was asked for last, once all nodes are known and this
    /// one has its ranges.
    pub(crate) fn news(&mut self) -> Option<Change> {
        let own = self.own.as_ref().filter(|_| self.synced)?;
        if !self.own_changed && self.changed.is_empty() {
            return None;
        }
        let changed = std::mem::take(&mut self.changed).into_iter();
        Some(Change {
            own: std::mem::take(&mut self.own_changed).then(|| own.clone()),
            peers: changed
                .map(|name| {
                    let peer = self.peers.get(&name).cloned();
                    (name, peer)
                })
                .collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use api::Key;
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;

    fn node(name: &str, spec: Value, addresses: &[&str]) -> Event<api::Node> {
        let addresses: Vec<Value> = addresses
            .iter()
            .map(|address| json!({"type": "InternalIP", "address": address}))
            .collect();
        let node =
            json!({"metadata": {"name": name}, "spec": spec, "status": {"addresses": addresses}});
        Event::Applied(serde_json::from_value(node).expect("a node"))
    }

    fn ranges(texts: &[&str]) -> Value {
        json!({ "podCIDRs": texts })
    }

    fn deleted(name: &str) -> Event<api::Node> {
        Event::Deleted(Key::new("", name))
    }

    #[test]
    fn there_is_no_cluster_before_the_first_sync_and_the_own_ranges() {
        let mut nodes = Nodes::new("own");
        nodes.take(node("peer", ranges(&["10.2.0.0/24"]), &["192.168.64.12"]));
        nodes.take(node("own", json!({}), &["192.168.64.11"]));
        assert_eq!((nodes.news(), nodes.own_state()), (None, None));
        assert!(nodes.take(Event::Synced));
        assert_eq!(
            (nodes.news(), nodes.own_state()),
            (None, Some(OwnState::WithoutRanges))
        );
        assert!(nodes.take(node("own", ranges(&["10.1.0.0/24"]), &["192.168.64.11"])));
        let change = nodes.news().expect("complete");
        let own = change.own.expect("it has changed");
        assert_eq!(own.ranges, ["10.1.0.0/24".parse().unwrap()]);
        assert_eq!(change.peers.len(), 1);
        assert_eq!(nodes.news(), None);
    }

    #[test]
    fn a_node_that_is_about_to_go_says_so() {
        let mut nodes = Nodes::new("own");
        nodes.take(node("own", ranges(&["10.1.0.0/24"]), &[]));
        assert_eq!(nodes.leaving(), None);
        let mut spec = ranges(&["10.1.0.0/24"]);
        spec["taints"] = json!([{"key": TO_BE_DELETED, "effect": "NoSchedule"}]);
        nodes.take(node("own", spec, &[]));
        assert!(nodes.leaving().is_some_and(|why| why.contains("taint")));
        nodes.take(node("own", ranges(&["10.1.0.0/24"]), &[]));
        assert_eq!(nodes.leaving(), None, "spared");
        nodes.take(deleted("own"));
        assert_eq!(nodes.leaving(), Some(DELETED));
    }

    #[test]
    fn what_podwire_does_not_use_changes_nothing() {
        let mut nodes = Nodes::new("own");
        let peer = || node("peer", ranges(&["10.2.0.0/24"]), &["192.168.64.12"]);
        let own = || node("own", ranges(&["10.1.0.0/24"]), &["192.168.64.11"]);
        assert!(nodes.take(peer()) && nodes.take(own()) && nodes.take(Event::Synced));
        assert!(nodes.news().is_some());
        assert!(!nodes.take(peer()) && !nodes.take(own()) && !nodes.take(Event::Synced));
        assert!(!nodes.take(deleted("stranger")));
        assert_eq!(nodes.news(), None);
    }

    #[test]
    fn only_what_has_changed_is_told() {
        let mut nodes = Nodes::new("own");
        let peer = |name: &str, range: &str| node(name, ranges(&[range]), &["192.168.64.12"]);
        nodes.take(node("own", ranges(&["10.1.0.0/24"]), &[]));
        nodes.take(peer("a", "10.2.0.0/24"));
        nodes.take(peer("b", "10.3.0.0/24"));
        nodes.take(Event::Synced);
        assert_eq!(nodes.news().map(|change| change.peers.len()), Some(2));
        assert!(nodes.take(peer("b", "10.4.0.0/24")));
        let change = nodes.news().expect("news");
        let peers: Vec<_> = change.peers.into_iter().collect();
        let [(name, Some(now))] = &peers[..] else {
            panic!("{peers:?}")
        };
        assert_eq!(
            (&**name, &now.ranges[0].to_string()),
            ("b", &"10.4.0.0/24".to_owned())
        );
        assert_eq!(change.own, None);
        assert!(nodes.take(deleted("b")));
        assert!(!nodes.take(deleted("b")));
        let change = nodes.news().expect("news");
        assert_eq!(change.peers, BTreeMap::from([("b".into(), None)]));
        assert_eq!(nodes.peers().len(), 1);
    }

    #[test]
    fn the_own_node_stays_in_force_while_its_object_is_away_or_incomplete() {
        let mut nodes = Nodes::new("own");
        nodes.take(node("own", ranges(&["10.1.0.0/24"]), &["192.168.64.11"]));
        nodes.take(Event::Synced);
        assert!(nodes.news().is_some());
        assert!(nodes.take(deleted("own")));
        assert_eq!(nodes.own_state(), Some(OwnState::Absent));
        assert_eq!(nodes.news(), None);
        assert!(nodes.take(node("own", json!({}), &["192.168.64.11"])));
        assert_eq!(nodes.news(), None);
        assert!(nodes.take(node("own", ranges(&["10.9.0.0/24"]), &["192.168.64.11"])));
        let own = nodes
            .news()
            .and_then(|change| change.own)
            .expect("it has changed");
        assert_eq!(own.ranges, ["10.9.0.0/24".parse().unwrap()]);
    }

    #[test]
    fn peers_are_reached_as_they_tell_and_the_own_annotation_is_only_compared() {
        let annotated = |name: &str, text: &str| {
            json!({"metadata": {"name": name, "uid": "u", "annotations": {"podwire.dev/routing": text}},
                "spec": {"podCIDRs": ["10.1.0.0/24"]}})
        };
        let applied = |object| Event::Applied(serde_json::from_value(object).expect("a node"));
        let told = r#"{"ways":["vxlan"]}"#;
        let mut nodes = Nodes::new("own");
        nodes.take(applied(annotated("own", told)));
        nodes.take(applied(annotated("good", told)));
        nodes.take(applied(annotated("bad", "{")));
        nodes.take(Event::Synced);
        let change = nodes.news().expect("complete");
        assert_eq!(change.own.expect("it is new").data, None);
        let present = nodes.present().expect("it is there");
        let text = present.annotations.get(publish::ROUTING);
        assert_eq!((&*present.uid, text.map(|t| &**t)), ("u", Some(told)));
        let peer = |name: &str| change.peers[name].as_ref().expect("there");
        let good = peer("good").data.as_ref().expect("told");
        assert_eq!(good.ways, ["vxlan".into()]);
        let bad = peer("bad");
        assert_eq!(bad.data, None);
        assert!(bad.problems[0].contains("podwire.dev/routing"), "{bad:?}");
        // An annotation of its own that changes is no change of the cluster.
        assert!(!nodes.take(applied(annotated("own", "{}"))));
        nodes.take(deleted("own"));
        assert_eq!(nodes.present(), None);
    }

    #[rstest]
    #[case::both_families(&["fd00::/64", "10.1.0.0/24"], &["fd00::/64", "10.1.0.0/24"], 0)]
    #[case::host_bits(&["10.1.0.7/24"], &["10.1.0.0/24"], 0)]
    #[case::no_range(&["10.1.0.0/33", "fd00::/64"], &["fd00::/64"], 1)]
    #[case::second_of_a_family(&["10.1.0.0/24", "10.2.0.0/24"], &["10.1.0.0/24"], 1)]
    #[case::nonsense(&[""], &[], 1)]
    fn ranges_are_one_a_family_and_what_is_left_out_is_named(
        #[case] given: &[&str],
        #[case] expected: &[&str],
        #[case] problems: usize,
    ) {
        let Event::Applied(node) = node("n", ranges(given), &[]) else {
            unreachable!()
        };
        let member = Member::of(&node);
        let expected: Vec<IpNet> = expected.iter().map(|text| text.parse().unwrap()).collect();
        assert_eq!(member.ranges, expected);
        assert_eq!(member.problems.len(), problems, "{:?}", member.problems);
    }
}
