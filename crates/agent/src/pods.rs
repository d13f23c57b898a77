//! Which pods other nodes have: for the back end `static`, which has a route
//! for each. Pure.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use api::{Event, Key, Pod, Resource as _};
use routing::model::Name;

use crate::routes::PodAddresses;

/// Pods as they become known.
#[derive(Debug, Default)]
pub(crate) struct Pods {
    known: HashMap<Key, (Name, Vec<IpAddr>)>,
    synced: bool,
    changed: bool,
}

impl Pods {
    /// Takes up an event.
    pub(crate) fn take(&mut self, event: Event<Pod>) {
        let before = match event {
            Event::Applied(pod) => {
                let key = pod.key();
                // A node's own address is no pod's.
                let gone = pod.spec.host_network || pod.is_finished();
                if gone || pod.spec.node_name.is_empty() || pod.status.pod_ips.is_empty() {
                    self.known.remove(&key).is_some()
                } else {
                    let now = (pod.spec.node_name.into(), pod.status.pod_ips);
                    let before = self.known.insert(key.clone(), now);
                    before.as_ref() != self.known.get(&key)
                }
            }
            Event::Deleted(key) => self.known.remove(&key).is_some(),
            Event::Synced => !std::mem::replace(&mut self.synced, true),
        };
        self.changed |= before;
    }

    /// The addresses by node, if they changed since they were asked for last;
    /// never before all are known.
    pub(crate) fn news(&mut self) -> Option<Arc<PodAddresses>> {
        if !self.synced || !std::mem::take(&mut self.changed) {
            return None;
        }
        let mut nodes = PodAddresses::new();
        for (node, addresses) in self.known.values() {
            nodes.entry(node.clone()).or_default().extend(addresses);
        }
        for addresses in nodes.values_mut() {
            addresses.sort();
            addresses.dedup();
        }
        Some(Arc::new(nodes))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(name: &str, node: &str, ips: &[&str], more: Value) -> Event<Pod> {
        let ips: Vec<Value> = ips.iter().map(|ip| json!({"ip": ip})).collect();
        let mut pod = json!({
            "metadata": {"namespace": "d", "name": name},
            "spec": {"nodeName": node, "hostNetwork": false},
            "status": {"podIPs": ips, "phase": "Running"}});
        for (path, value) in more.as_object().into_iter().flatten() {
            *pod.pointer_mut(path).expect("it has that") = value.clone();
        }
        Event::Applied(serde_json::from_value(pod).expect("a pod"))
    }

    fn texts(pods: &mut Pods) -> Option<Vec<String>> {
        let news = pods.news()?;
        let lines = news
            .iter()
            .map(|(node, addresses)| format!("{node} {addresses:?}"));
        Some(lines.collect())
    }

    #[test]
    fn addresses_of_running_pods_are_known_by_node() {
        let mut pods = Pods::default();
        pods.take(pod("a", "n", &["10.0.0.2", "fd00::2"], json!({})));
        assert_eq!(texts(&mut pods), None, "not before all are known");
        pods.take(Event::Synced);
        assert_eq!(texts(&mut pods), Some(vec!["n [10.0.0.2, fd00::2]".into()]));
        assert_eq!(texts(&mut pods), None, "nothing new");
        pods.take(pod(
            "host",
            "n",
            &["192.0.2.1"],
            json!({"/spec/hostNetwork": true}),
        ));
        pods.take(pod("a", "n", &["10.0.0.2", "fd00::2"], json!({})));
        assert_eq!(texts(&mut pods), None, "no pod's address, and nothing new");
        pods.take(pod("b", "m", &["10.0.1.2"], json!({})));
        pods.take(pod(
            "a",
            "n",
            &["10.0.0.2"],
            json!({"/status/phase": "Failed"}),
        ));
        assert_eq!(texts(&mut pods), Some(vec!["m [10.0.1.2]".into()]));
        pods.take(Event::Deleted(Key::new("d", "b")));
        assert_eq!(texts(&mut pods), Some(vec![]));
    }
}
