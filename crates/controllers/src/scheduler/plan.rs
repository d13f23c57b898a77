//! Places all pending pods over one view. No I/O.

use super::filter::Demands;
use super::score::Siblings;
use super::view::View;
use crate::object;
use k8s_openapi::api::core::v1::Pod;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What is decided about a pod: its node, or why there is none.
pub(super) type Decision = Result<String, String>;

/// Decides about all pending pods: the more important first, then the older.
/// Each placed pod counts for the next.
pub(super) fn plan(view: &mut View, mut pending: Vec<Arc<Pod>>) -> Vec<(Arc<Pod>, Decision)> {
    let priority = |pod: &Arc<Pod>| {
        pod.spec
            .as_ref()
            .and_then(|spec| spec.priority)
            .unwrap_or(0)
    };
    pending.sort_by_cached_key(|pod| {
        (
            -i64::from(priority(pod)),
            object::created(&pod.metadata),
            object::Key::of(&pod.metadata),
        )
    });
    pending
        .into_iter()
        .map(|pod| {
            let decision = place(view, &pod).map(|index| {
                view.put(index, pod.clone());
                view.places[index].name.clone()
            });
            (pod, decision)
        })
        .collect()
}

fn place(view: &View, pod: &Arc<Pod>) -> Result<usize, String> {
    if view.places.is_empty() {
        return Err("no nodes available to schedule pods".into());
    }
    let demands = Demands::new(view, pod);
    let siblings = Siblings::new(view, pod);
    let mut refusals: BTreeMap<String, usize> = BTreeMap::new();
    let mut best = None;
    for (index, place) in view.places.iter().enumerate() {
        if let Some(reason) = demands.refuse(view, pod, place) {
            *refusals.entry(reason).or_default() += 1;
            continue;
        }
        let badness = siblings.badness(view, pod, &demands, place);
        if best.is_none_or(|(least, _)| badness < least) {
            best = Some((badness, index));
        }
    }
    best.map(|(_, index)| index).ok_or_else(|| {
        let reasons: Vec<_> = refusals
            .iter()
            .map(|(reason, count)| format!("{count} {reason}"))
            .collect();
        format!(
            "0/{} nodes are available: {}.",
            view.places.len(),
            reasons.join(", ")
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{Node, Service};
    use rstest::rstest;
    use serde_json::{Value, json};

    fn node(name: &str, zone: &str, change: Value) -> Arc<Node> {
        let mut node = json!({"metadata": {"name": name, "labels": {
                "kubernetes.io/hostname": name, "topology.kubernetes.io/zone": zone}},
            "status": {"conditions": [{"type": "Ready", "status": "True"}]}});
        for (key, value) in change.as_object().unwrap() {
            node[key] = value.clone();
        }
        Arc::new(serde_json::from_value(node).unwrap())
    }

    fn pod(name: &str, spec: Value) -> Arc<Pod> {
        let mut all = json!({"containers": []});
        all.as_object_mut()
            .unwrap()
            .extend(spec.as_object().unwrap().clone());
        Arc::new(
            serde_json::from_value(json!({"metadata": {"name": name, "namespace": "ns",
                "labels": {"app": "web"}}, "spec": all}))
            .unwrap(),
        )
    }

    fn on(node: &str, name: &str) -> Arc<Pod> {
        pod(name, json!({"nodeName": node}))
    }

    fn two() -> Vec<Arc<Node>> {
        vec![node("n1", "a", json!({})), node("n2", "b", json!({}))]
    }

    fn view(nodes: Vec<Arc<Node>>, pods: Vec<Arc<Pod>>, services: &[Arc<Service>]) -> View {
        View::new(nodes, pods, services, BTreeMap::new())
    }

    fn place_one(nodes: Vec<Arc<Node>>, pods: Vec<Arc<Pod>>, spec: Value) -> Decision {
        let mut view = view(nodes, pods, &[]);
        plan(&mut view, vec![pod("new", spec)]).remove(0).1
    }

    #[rstest]
    #[case::least_pods(json!({}), "n2")]
    #[case::node_selector(json!({"nodeSelector": {"topology.kubernetes.io/zone": "a"}}), "n1")]
    #[case::required_affinity(json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
        {"nodeSelectorTerms": [{"matchExpressions": [{"key": "topology.kubernetes.io/zone", "operator": "NotIn", "values": ["b"]}]}]}}}}), "n1")]
    #[case::preferred_affinity(json!({"affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution":
        [{"weight": 5, "preference": {"matchExpressions": [{"key": "topology.kubernetes.io/zone", "operator": "In", "values": ["a"]}]}}]}}}), "n1")]
    #[case::near_others(json!({"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
        [{"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "web"}}}]}}}), "n1")]
    #[case::away_from_others(json!({"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
        [{"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "web"}}}]}}}), "n2")]
    #[case::spread(json!({"topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone",
        "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": "web"}}}]}), "n2")]
    fn a_pod_goes_where_it_may_and_is_best(#[case] spec: Value, #[case] expected: &str) {
        let placed = place_one(two(), vec![on("n1", "there")], spec);
        assert_eq!(placed, Ok(expected.to_owned()));
    }

    #[rstest]
    #[case::none(vec![], json!({}), "no nodes available to schedule pods")]
    #[case::selector(two(), json!({"nodeSelector": {"x": "y"}}),
        "0/2 nodes are available: 2 node(s) didn't match Pod's node affinity/selector.")]
    #[case::cordoned(vec![node("n1", "a", json!({"spec": {"unschedulable": true}}))], json!({}),
        "0/1 nodes are available: 1 node(s) were unschedulable.")]
    #[case::not_ready(vec![node("n1", "a", json!({"status": {}}))], json!({}),
        "0/1 nodes are available: 1 node(s) had untolerated taint {node.kubernetes.io/not-ready: }.")]
    #[case::tainted(vec![node("n1", "a", json!({"spec": {"taints": [{"key": "gpu", "value": "yes", "effect": "NoSchedule"}]}}))], json!({}),
        "0/1 nodes are available: 1 node(s) had untolerated taint {gpu: yes}.")]
    #[case::cpu(vec![node("n1", "a", json!({"status": {"allocatable": {"cpu": "2"}, "conditions": [{"type": "Ready", "status": "True"}]}}))],
        json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": "2500m"}}}]}),
        "0/1 nodes are available: 1 Insufficient cpu.")]
    #[case::full(vec![node("n1", "a", json!({"status": {"allocatable": {"pods": "0"}, "conditions": [{"type": "Ready", "status": "True"}]}}))], json!({}),
        "0/1 nodes are available: 1 Too many pods.")]
    #[case::several(vec![node("n1", "a", json!({"spec": {"unschedulable": true}})), node("n2", "b", json!({}))],
        json!({"nodeSelector": {"x": "y"}}),
        "0/2 nodes are available: 1 node(s) didn't match Pod's node affinity/selector, 1 node(s) were unschedulable.")]
    #[case::lonely(two(), json!({"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
        [{"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "db"}}}]}}}),
        "0/2 nodes are available: 2 node(s) didn't match pod affinity rules.")]
    fn a_pod_that_fits_nowhere_says_why(
        #[case] nodes: Vec<Arc<Node>>,
        #[case] spec: Value,
        #[case] expected: &str,
    ) {
        assert_eq!(place_one(nodes, vec![], spec), Err(expected.to_owned()));
    }

    #[rstest]
    #[case::same(json!({"hostPort": 80}), json!({"hostPort": 80}), false)]
    #[case::other_protocol(json!({"hostPort": 80}), json!({"hostPort": 80, "protocol": "UDP"}), true)]
    #[case::other_address(json!({"hostPort": 80, "hostIP": "127.0.0.1"}), json!({"hostPort": 80, "hostIP": "10.0.0.1"}), true)]
    #[case::all_addresses(json!({"hostPort": 80, "hostIP": "127.0.0.1"}), json!({"hostPort": 80}), false)]
    fn node_ports_of_pods_do_not_meet(
        #[case] there: Value,
        #[case] new: Value,
        #[case] fits: bool,
    ) {
        let with = |mut port: Value| {
            port["containerPort"] = json!(80);
            json!({"containers": [{"name": "c", "ports": [port]}]})
        };
        let mut spec = with(there);
        spec["nodeName"] = json!("n1");
        let placed = place_one(
            vec![node("n1", "a", json!({}))],
            vec![pod("p", spec)],
            with(new),
        );
        assert_eq!(placed.is_ok(), fits, "{placed:?}");
    }

    #[test]
    fn the_first_of_a_group_that_wants_to_be_together_may_go_anywhere() {
        let spec = json!({"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
            [{"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "web"}}}]}}});
        let mut view = view(two(), vec![], &[]);
        let placed = plan(&mut view, vec![pod("a", spec.clone()), pod("b", spec)]);
        assert_eq!(placed[0].1, placed[1].1);
    }

    #[test]
    fn a_pod_that_wants_to_be_alone_keeps_later_ones_away() {
        let alone = json!({"nodeName": "n1", "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
            [{"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "web"}}}]}}});
        let placed = place_one(
            vec![node("n1", "a", json!({}))],
            vec![pod("alone", alone)],
            json!({}),
        );
        assert_eq!(
            placed.unwrap_err(),
            "0/1 nodes are available: 1 node(s) didn't satisfy existing pods anti-affinity rules."
        );
    }

    #[test]
    fn pods_of_a_service_spread_over_nodes_before_the_emptier_node_counts() {
        let service: Service =
            serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "ns"},
            "spec": {"selector": {"app": "web"}}}))
            .unwrap();
        let stranger = |name: &str| {
            let mut other = (*on("n2", name)).clone();
            other.metadata.labels = None;
            Arc::new(other)
        };
        let pods = vec![on("n1", "a"), stranger("x"), stranger("y")];
        let mut view = view(two(), pods, &[Arc::new(service)]);
        let placed = plan(&mut view, vec![pod("new", json!({}))]);
        assert_eq!(placed[0].1, Ok("n2".to_owned()));
    }

    #[test]
    fn many_pods_placed_in_one_go_are_spread_evenly_and_the_important_come_first() {
        let nodes = (1..=50)
            .map(|n| node(&format!("n{n}"), "a", json!({})))
            .collect();
        let mut pending: Vec<_> = (0..499).map(|n| pod(&format!("p{n}"), json!({}))).collect();
        pending.push(pod("important", json!({"priority": 100})));
        let mut view = view(nodes, vec![], &[]);
        let placed = plan(&mut view, pending);
        assert_eq!(placed[0].0.metadata.name.as_deref(), Some("important"));
        assert!(view.places.iter().all(|place| place.pods.len() == 10));
    }
}
