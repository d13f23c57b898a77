//! The controllers against the real API server, end to end.

mod support;

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{ConfigMap, Event, Namespace, Node, Pod, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;
use kube::ResourceExt;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use podwire_controllers::Config;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};
use support::{Lab, deployment, service, template, until};

fn ready(pod: &Pod) -> bool {
    pod.status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten())
        .any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn node_of(pod: &Pod) -> &str {
    pod.spec
        .as_ref()
        .and_then(|spec| spec.node_name.as_deref())
        .unwrap_or_default()
}

fn available(deployment: &Deployment) -> i32 {
    deployment
        .status
        .as_ref()
        .and_then(|status| status.available_replicas)
        .unwrap_or(0)
}

fn addresses(
    slices: &[EndpointSlice],
    service: &str,
    family: &str,
    ready: bool,
) -> BTreeSet<String> {
    slices
        .iter()
        .filter(|slice| {
            slice
                .labels()
                .get("kubernetes.io/service-name")
                .is_some_and(|name| name == service)
        })
        .filter(|slice| slice.address_type == family)
        .flat_map(|slice| slice.endpoints.iter().flatten())
        .filter(|endpoint| endpoint.conditions.as_ref().and_then(|c| c.ready) == Some(ready))
        .flat_map(|endpoint| endpoint.addresses.clone())
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployment_runs_spread_over_the_nodes_and_its_service_has_endpoints() {
    let lab = Lab::with_nodes(3).await;
    lab.create::<Service>(service("web")).await;
    lab.create::<Deployment>(deployment("web", 6)).await;
    let found = lab
        .until::<Deployment>("all available", |all| all.iter().any(|d| available(d) == 6))
        .await;
    let status = found[0].status.as_ref().unwrap();
    assert_eq!(status.observed_generation, found[0].metadata.generation);
    let pods = lab.pods().await;
    let mut per_node: BTreeMap<&str, usize> = BTreeMap::new();
    for pod in &pods {
        *per_node.entry(node_of(pod)).or_default() += 1;
    }
    assert_eq!(per_node.into_values().collect::<Vec<_>>(), [2, 2, 2]);
    for family in ["IPv4", "IPv6"] {
        lab.until::<EndpointSlice>("six ready endpoints", |slices| {
            addresses(slices, "web", family, true).len() == 6
        })
        .await;
    }
    lab.until::<Deployment>("complete", |all| {
        all[0]
            .status
            .iter()
            .flat_map(|s| s.conditions.iter().flatten())
            .any(|condition| {
                condition.type_ == "Progressing"
                    && condition.reason.as_deref() == Some("NewReplicaSetAvailable")
            })
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_node_has_ranges_of_its_own() {
    let lab = Lab::with_nodes(5).await;
    let nodes: Api<Node> = Api::all(lab.client.clone());
    let has_both = |node: &Node| {
        node.spec
            .as_ref()
            .and_then(|s| s.pod_cidrs.as_ref())
            .is_some_and(|c| c.len() == 2)
    };
    let all = until(nodes.clone(), "ranges", |all| {
        all.len() == 5 && all.iter().all(has_both)
    })
    .await;
    let ranges: BTreeSet<_> = all
        .iter()
        .flat_map(|node| node.spec.clone().unwrap().pod_cidrs.unwrap())
        .collect();
    assert_eq!(ranges.len(), 10);
    nodes
        .delete("node-2", &DeleteParams::default())
        .await
        .unwrap();
    lab.add_node("node-2").await;
    let all = until(nodes, "the new node's range", |all| {
        all.len() == 5 && all.iter().all(has_both)
    })
    .await;
    let second = all.iter().find(|node| node.name_any() == "node-2").unwrap();
    // Freed ranges come last.
    assert!(!ranges.contains(&second.spec.as_ref().unwrap().pod_cidrs.as_ref().unwrap()[0]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollout_replaces_all_pods_and_its_undo_brings_the_old_set_back() {
    let lab = Lab::with_nodes(2).await;
    lab.create::<Deployment>(deployment("web", 4)).await;
    lab.until::<Deployment>("available", |all| all.iter().any(|d| available(d) == 4))
        .await;
    let image = |image: &str| json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": image}]}}}});
    let strategic = |change| Patch::Strategic(change);
    let deployments: Api<Deployment> = lab.api();
    let complete = |all: &[Deployment], revision: &str| {
        all.iter().any(|d| {
            let status = d.status.clone().unwrap_or_default();
            d.annotations()
                .get("deployment.kubernetes.io/revision")
                .is_some_and(|r| r == revision)
                && status.updated_replicas == Some(4)
                && status.available_replicas == Some(4)
                && status.replicas == Some(4)
                && status.observed_generation == d.metadata.generation
        })
    };
    deployments
        .patch("web", &PatchParams::default(), &strategic(image("two")))
        .await
        .unwrap();
    lab.until::<Deployment>("rolled out", |all| complete(all, "2"))
        .await;
    deployments
        .patch(
            "web",
            &PatchParams::default(),
            &strategic(image("podwire.dev/toolbox")),
        )
        .await
        .unwrap();
    lab.until::<Deployment>("rolled back", |all| complete(all, "3"))
        .await;
    let sets = lab
        .api::<ReplicaSet>()
        .list(&ListParams::default())
        .await
        .unwrap()
        .items;
    let mut sizes: Vec<_> = sets
        .iter()
        .map(|set| set.spec.as_ref().unwrap().replicas)
        .collect();
    sizes.sort_unstable();
    assert_eq!(sizes, [Some(0), Some(4)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stateful_set_keeps_order_and_names() {
    let lab = Lab::with_nodes(2).await;
    lab.create::<Service>(
        json!({"metadata": {"name": "db"}, "spec": {"clusterIP": "None",
        "selector": {"app": "db"}, "ports": [{"port": 80}]}}),
    )
    .await;
    lab.create::<StatefulSet>(
        json!({"metadata": {"name": "db"}, "spec": {"replicas": 3, "serviceName": "db",
        "selector": {"matchLabels": {"app": "db"}}, "template": template("db")}}),
    )
    .await;
    lab.until::<StatefulSet>("three ready", |all| {
        all[0]
            .status
            .as_ref()
            .is_some_and(|s| s.ready_replicas == Some(3) && s.current_revision == s.update_revision)
    })
    .await;
    let pods = lab.pods().await;
    let names: Vec<_> = pods.iter().map(ResourceExt::name_any).collect();
    assert_eq!(names, ["db-0", "db-1", "db-2"]);
    let created: Vec<u64> = pods
        .iter()
        .map(|pod| {
            pod.metadata
                .creation_timestamp
                .as_ref()
                .unwrap()
                .0
                .as_second() as u64
        })
        .collect();
    assert!(created.is_sorted());
    lab.until::<EndpointSlice>("host names", |slices| {
        let hosts: BTreeSet<_> = slices
            .iter()
            .filter(|slice| slice.name_any().starts_with("db-"))
            .flat_map(|slice| slice.endpoints.iter().flatten())
            .filter_map(|endpoint| endpoint.hostname.clone())
            .collect();
        hosts == ["db-0", "db-1", "db-2"].map(str::to_owned).into()
    })
    .await;
    lab.merge::<StatefulSet>("db", json!({"spec": {"replicas": 1}}))
        .await;
    let left = lab.until::<Pod>("one left", |pods| pods.len() == 1).await;
    assert_eq!(left[0].name_any(), "db-0");
    lab.merge::<StatefulSet>(
        "db",
        json!({"spec": {"template": {"metadata": {"annotations": {"new": "yes"}}}}}),
    )
    .await;
    lab.until::<Pod>("replaced", |pods| {
        pods.iter()
            .any(|pod| pod.annotations().contains_key("new") && ready(pod))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_set_follows_the_nodes() {
    let lab = Lab::with_nodes(2).await;
    lab.create::<DaemonSet>(json!({"metadata": {"name": "agent"}, "spec": {
        "selector": {"matchLabels": {"app": "agent"}}, "template": template("agent")}}))
        .await;
    let nodes = |pods: &[Pod]| {
        pods.iter()
            .filter(|pod| ready(pod))
            .map(|pod| node_of(pod).to_owned())
            .collect::<BTreeSet<_>>()
    };
    lab.until::<Pod>("two pods", |pods| {
        nodes(pods) == ["node-1", "node-2"].map(str::to_owned).into()
    })
    .await;
    lab.add_node("node-3").await;
    lab.until::<Pod>("a third", |pods| nodes(pods).len() == 3)
        .await;
    let api: Api<Node> = Api::all(lab.client.clone());
    api.delete("node-1", &DeleteParams::default())
        .await
        .unwrap();
    lab.until::<Pod>("without the removed node", |pods| {
        pods.len() == 2 && nodes(pods) == ["node-2", "node-3"].map(str::to_owned).into()
    })
    .await;
    lab.merge::<DaemonSet>(
        "agent",
        json!({"spec": {"template": {"metadata": {"annotations": {"new": "yes"}}}}}),
    )
    .await;
    lab.until::<Pod>("updated", |pods| {
        pods.len() == 2
            && pods
                .iter()
                .all(|pod| ready(pod) && pod.annotations().contains_key("new"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_of_a_removed_node_move_to_another_and_its_endpoints_go() {
    let lab = Lab::with_nodes(2).await;
    lab.create::<Service>(service("web")).await;
    lab.create::<Deployment>(deployment("web", 4)).await;
    lab.until::<Deployment>("available", |all| all.iter().any(|d| available(d) == 4))
        .await;
    let api: Api<Node> = Api::all(lab.client.clone());
    api.delete("node-1", &DeleteParams::default())
        .await
        .unwrap();
    lab.until::<Pod>("all on the other", |pods| {
        pods.len() == 4
            && pods
                .iter()
                .all(|pod| ready(pod) && node_of(pod) == "node-2")
    })
    .await;
    lab.until::<EndpointSlice>("endpoints of the other alone", |slices| {
        addresses(slices, "web", "IPv4", true).len() == 4
            && slices
                .iter()
                .flat_map(|s| s.endpoints.iter().flatten())
                .all(|e| e.node_name.as_deref() != Some("node-1"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_node_is_tainted_its_pods_leave_the_service_and_are_evicted() {
    let config = Config {
        node_grace: Duration::from_millis(400),
        eviction_after: Duration::from_millis(100),
        ..Config::default()
    };
    let lab = Lab::new(0, config).await;
    lab.add_node("silent-1").await;
    let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "a", "labels": {"app": "web"}},
        "spec": {"nodeName": "silent-1", "containers": [{"name": "c", "image": "x", "ports": [{"name": "http", "containerPort": 80}]}],
            "tolerations": [{"key": "node.kubernetes.io/unreachable", "operator": "Exists", "tolerationSeconds": 1}]}}))
    .unwrap();
    lab.create::<Service>(service("web")).await;
    lab.api::<Pod>()
        .create(&PostParams::default(), &pod)
        .await
        .unwrap();
    lab.api::<Pod>()
        .patch_status(
            "a",
            &PatchParams::default(),
            &Patch::Strategic(support::status(9, true)),
        )
        .await
        .unwrap();
    let nodes: Api<Node> = Api::all(lab.client.clone());
    until(nodes, "tainted", |nodes| {
        nodes.iter().any(|node| {
            let taints = node.spec.iter().flat_map(|s| s.taints.iter().flatten());
            taints
                .filter(|taint| taint.key == "node.kubernetes.io/unreachable")
                .count()
                == 2
        })
    })
    .await;
    lab.until::<EndpointSlice>("not ready", |slices| {
        addresses(slices, "web", "IPv4", true).is_empty()
            && addresses(slices, "web", "IPv4", false).len() == 1
    })
    .await;
    lab.until::<Pod>("evicted", |pods| {
        pods.iter()
            .all(|pod| pod.metadata.deletion_timestamp.is_some())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_fits_nowhere_says_why_and_is_placed_when_it_does() {
    let lab = Lab::with_nodes(2).await;
    let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "a"},
        "spec": {"nodeSelector": {"disk": "fast"}, "containers": [{"name": "c", "image": "x"}]}}))
    .unwrap();
    lab.api::<Pod>()
        .create(&PostParams::default(), &pod)
        .await
        .unwrap();
    let text = "0/2 nodes are available: 2 node(s) didn't match Pod's node affinity/selector.";
    lab.until::<Pod>("unschedulable", |pods| {
        pods[0]
            .status
            .iter()
            .flat_map(|s| s.conditions.iter().flatten())
            .any(|condition| {
                condition.type_ == "PodScheduled"
                    && condition.reason.as_deref() == Some("Unschedulable")
                    && condition.message.as_deref() == Some(text)
            })
    })
    .await;
    lab.until::<Event>("an event", |events| {
        events.iter().any(|event| {
            event.reason.as_deref() == Some("FailedScheduling")
                && event.message.as_deref() == Some(text)
        })
    })
    .await;
    let nodes: Api<Node> = Api::all(lab.client.clone());
    let label = json!({"metadata": {"labels": {"disk": "fast"}}});
    nodes
        .patch("node-2", &PatchParams::default(), &Patch::Merge(label))
        .await
        .unwrap();
    lab.until::<Pod>("placed", |pods| {
        node_of(&pods[0]) == "node-2" && ready(&pods[0])
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_controller_goes_on_without_making_a_pod_twice() {
    let mut lab = Lab::with_nodes(3).await;
    lab.create::<Deployment>(deployment("web", 40)).await;
    // At some moment in the middle, several times.
    for there in [1, 9, 23, 35] {
        lab.until::<Pod>("some pods", |pods| pods.len() >= there)
            .await;
        lab.stop_controllers().await;
        lab.start_controllers();
    }
    lab.until::<Deployment>("available", |all| all.iter().any(|d| available(d) == 40))
        .await;
    let pods = lab.pods().await;
    assert_eq!(pods.len(), 40);
    let made = lab
        .api::<Event>()
        .list(&ListParams::default())
        .await
        .unwrap();
    let deleted = made
        .items
        .iter()
        .filter(|event| event.reason.as_deref() == Some("SuccessfulDelete"))
        .count();
    assert_eq!(deleted, 0, "a pod too many was made");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deleting_an_owner_deletes_or_orphans_what_it_owns() {
    let lab = Lab::with_nodes(1).await;
    let deployments: Api<Deployment> = lab.api();
    for (name, params) in [
        ("back", DeleteParams::background()),
        ("fore", DeleteParams::foreground()),
    ] {
        lab.create::<Deployment>(deployment(name, 2)).await;
        lab.until::<Pod>("pods", |pods| {
            pods.iter().filter(|pod| ready(pod)).count() == 2
        })
        .await;
        deployments.delete(name, &params).await.unwrap();
        lab.until::<Pod>("no pods", <[Pod]>::is_empty).await;
        lab.until::<ReplicaSet>("no sets", <[ReplicaSet]>::is_empty)
            .await;
        lab.until::<Deployment>("no deployment", <[Deployment]>::is_empty)
            .await;
    }
    lab.create::<Deployment>(deployment("keep", 2)).await;
    lab.until::<Pod>("pods", |pods| {
        pods.iter().filter(|pod| ready(pod)).count() == 2
    })
    .await;
    deployments
        .delete("keep", &DeleteParams::orphan())
        .await
        .unwrap();
    lab.until::<Deployment>("gone", <[Deployment]>::is_empty)
        .await;
    let sets = lab
        .until::<ReplicaSet>("freed", |sets| {
            sets.len() == 1 && sets[0].owner_references().is_empty()
        })
        .await;
    assert_eq!(lab.pods().await.len(), 2);
    // The same Deployment again adopts them.
    lab.create::<Deployment>(deployment("keep", 2)).await;
    lab.until::<ReplicaSet>("adopted", |all| {
        all.len() == 1 && all[0].uid() == sets[0].uid() && all[0].owner_references().len() == 1
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_object_whose_owner_never_was_goes() {
    let lab = Lab::with_nodes(0).await;
    lab.create::<ConfigMap>(json!({"metadata": {"name": "dangling", "ownerReferences": [
        {"apiVersion": "v1", "kind": "ConfigMap", "name": "no", "uid": "00000000-0000-0000-0000-000000000000"}]}}))
    .await;
    let owner: ConfigMap = lab.create(json!({"metadata": {"name": "owner"}})).await;
    lab.create::<ConfigMap>(json!({"metadata": {"name": "owned", "ownerReferences": [
        {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner.uid()}]}}))
        .await;
    let names = |all: &[ConfigMap]| all.iter().map(ResourceExt::name_any).collect::<Vec<_>>();
    lab.until::<ConfigMap>("the dangling one gone", |all| {
        names(all) == ["owned", "owner"]
    })
    .await;
    lab.api::<ConfigMap>()
        .delete("owner", &DeleteParams::default())
        .await
        .unwrap();
    lab.until::<ConfigMap>("both gone", <[ConfigMap]>::is_empty)
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_goes_with_all_that_is_in_it() {
    let lab = Lab::with_nodes(1).await;
    let namespaces: Api<Namespace> = Api::all(lab.client.clone());
    let namespace = serde_json::from_value(json!({"metadata": {"name": "shop"}})).unwrap();
    namespaces
        .create(&PostParams::default(), &namespace)
        .await
        .unwrap();
    let accounts: Api<ServiceAccount> = Api::namespaced(lab.client.clone(), "shop");
    until(accounts, "the default account", |all| {
        all.iter().any(|a| a.name_any() == "default")
    })
    .await;
    let deployments: Api<Deployment> = Api::namespaced(lab.client.clone(), "shop");
    let web = serde_json::from_value(deployment("web", 3)).unwrap();
    deployments
        .create(&PostParams::default(), &web)
        .await
        .unwrap();
    let services: Api<Service> = Api::namespaced(lab.client.clone(), "shop");
    let web = serde_json::from_value(service("web")).unwrap();
    services.create(&PostParams::default(), &web).await.unwrap();
    let pods: Api<Pod> = Api::namespaced(lab.client.clone(), "shop");
    until(pods.clone(), "pods", |pods| {
        pods.iter().filter(|pod| ready(pod)).count() == 3
    })
    .await;
    namespaces
        .delete("shop", &DeleteParams::default())
        .await
        .unwrap();
    until(namespaces, "the namespace gone", |all| {
        all.iter().all(|n| n.name_any() != "shop")
    })
    .await;
    assert!(
        pods.list(&ListParams::default())
            .await
            .unwrap()
            .items
            .is_empty()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn custom_resources_are_collected_too() {
    let lab = Lab::with_nodes(0).await;
    let definitions: Api<k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition> =
        Api::all(lab.client.clone());
    let definition = serde_json::from_value(json!({"metadata": {"name": "toys.example.com"}, "spec": {
        "group": "example.com", "scope": "Namespaced", "names": {"plural": "toys", "singular": "toy", "kind": "Toy", "listKind": "ToyList"},
        "versions": [{"name": "v1", "served": true, "storage": true,
            "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}]}}))
    .unwrap();
    definitions
        .create(&PostParams::default(), &definition)
        .await
        .unwrap();
    let owner: ConfigMap = lab.create(json!({"metadata": {"name": "owner"}})).await;
    let kind = kube::core::ApiResource::from_gvk(&kube::core::GroupVersionKind::gvk(
        "example.com",
        "v1",
        "Toy",
    ));
    let toys: Api<kube::api::DynamicObject> =
        Api::default_namespaced_with(lab.client.clone(), &kind);
    let toy = serde_json::from_value(json!({"apiVersion": "example.com/v1", "kind": "Toy", "metadata": {"name": "car",
        "ownerReferences": [{"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner.uid()}]}}))
    .unwrap();
    toys.create(&PostParams::default(), &toy).await.unwrap();
    lab.api::<ConfigMap>()
        .delete("owner", &DeleteParams::default())
        .await
        .unwrap();
    until(toys, "no toys", <[kube::api::DynamicObject]>::is_empty).await;
}

/// No test fails on time; this one prints what it took.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_hundred_pods_on_fifty_nodes() {
    let lab = Lab::with_nodes(50).await;
    lab.create::<Service>(service("web")).await;
    let start = Instant::now();
    lab.create::<Deployment>(deployment("web", 500)).await;
    lab.until::<Pod>("all made", |pods| pods.len() == 500).await;
    println!("made: {:?}", start.elapsed());
    lab.until::<Pod>("all bound", |pods| {
        pods.iter().all(|pod| !node_of(pod).is_empty())
    })
    .await;
    println!("bound: {:?}", start.elapsed());
    lab.until::<Deployment>("all available", |all| {
        all.iter().any(|d| available(d) == 500)
    })
    .await;
    println!("available: {:?}", start.elapsed());
    lab.until::<EndpointSlice>("all endpoints", |slices| {
        addresses(slices, "web", "IPv4", true).len() == 500
    })
    .await;
    println!("endpoints: {:?}", start.elapsed());
    let mut per_node: BTreeMap<String, usize> = BTreeMap::new();
    for pod in lab.pods().await {
        *per_node.entry(node_of(&pod).to_owned()).or_default() += 1;
    }
    assert_eq!(per_node.len(), 50);
    assert!(per_node.values().all(|count| *count == 10), "{per_node:?}");
    // One pod's readiness into its slice.
    let pod = lab.pods().await.remove(0);
    let address = pod
        .status
        .as_ref()
        .and_then(|status| status.pod_ip.clone())
        .unwrap();
    let start = Instant::now();
    let change = json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}});
    lab.api::<Pod>()
        .patch_status(
            &pod.name_any(),
            &PatchParams::default(),
            &Patch::Strategic(change),
        )
        .await
        .unwrap();
    lab.until::<EndpointSlice>("one less", |slices| {
        addresses(slices, "web", "IPv4", false).contains(&address)
    })
    .await;
    println!("readiness to slice: {:?}", start.elapsed());
}
