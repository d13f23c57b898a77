//! The Rust client on the router, in the same process, as controllers use it.

mod support;

use futures::StreamExt;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{
    Api, DeleteParams, ListParams, ObjectMeta, Patch, PatchParams, PostParams, WatchEvent,
    WatchParams,
};
use serde_json::json;
use support::Cluster;

fn client(cluster: &Cluster) -> kube::Client {
    kube::Client::new(cluster.server.router(), "default")
}

#[tokio::test]
async fn typed_objects_go_in_and_come_out() {
    let cluster = Cluster::new().await;
    let pods: Api<Pod> = Api::default_namespaced(client(&cluster));
    let pod: Pod = serde_json::from_value(support::pod("a")).unwrap();
    let mut events = pods
        .watch(&WatchParams::default(), "0")
        .await
        .unwrap()
        .boxed();
    let made = pods.create(&PostParams::default(), &pod).await.unwrap();
    let status = json!({"status": {"phase": "Running", "podIP": "10.200.1.2"}});
    pods.patch_status("a", &PatchParams::default(), &Patch::Merge(status))
        .await
        .unwrap();
    pods.delete("a", &DeleteParams::default()).await.unwrap();
    let WatchEvent::Added(added) = events.next().await.unwrap().unwrap() else {
        panic!("not added")
    };
    assert_eq!(added.metadata.uid, made.metadata.uid);
    let WatchEvent::Modified(changed) = events.next().await.unwrap().unwrap() else {
        panic!("not changed")
    };
    assert_eq!(
        changed.status.unwrap().pod_ip.as_deref(),
        Some("10.200.1.2")
    );
    assert!(matches!(
        events.next().await.unwrap().unwrap(),
        WatchEvent::Deleted(_)
    ));
    assert!(
        pods.list(&ListParams::default())
            .await
            .unwrap()
            .items
            .is_empty()
    );
}

#[tokio::test]
async fn a_node_registers_with_its_status_and_gets_its_ranges() {
    let cluster = Cluster::new().await;
    let nodes: Api<Node> = Api::all(client(&cluster));
    let node: Node = serde_json::from_value(json!({
        "metadata": {"name": "node-1"},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.168.64.11"}]},
    }))
    .unwrap();
    let made = nodes.create(&PostParams::default(), &node).await.unwrap();
    assert!(made.status.unwrap().addresses.is_some());
    let ranges = json!({"spec": {"podCIDR": "10.200.1.0/24", "podCIDRs": ["10.200.1.0/24"]}});
    let patched = nodes
        .patch("node-1", &PatchParams::default(), &Patch::Merge(ranges))
        .await
        .unwrap();
    assert_eq!(
        patched.spec.unwrap().pod_cidr.as_deref(),
        Some("10.200.1.0/24")
    );
    assert!(patched.status.unwrap().addresses.is_some());
}

#[tokio::test]
async fn server_side_apply_makes_then_changes_then_removes_its_own_fields() {
    let cluster = Cluster::new().await;
    let deployments: Api<Deployment> = Api::default_namespaced(client(&cluster));
    let params = PatchParams::apply("controller");
    let wanted = |replicas: Option<i32>, labels: serde_json::Value| {
        Patch::Apply(json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": "d", "labels": labels},
            "spec": {
                "replicas": replicas,
                "selector": {"matchLabels": {"a": "b"}},
                "template": {
                    "metadata": {"labels": {"a": "b"}},
                    "spec": {"containers": [{"name": "c", "image": "i"}]},
                },
            },
        }))
    };
    let first = deployments
        .patch("d", &params, &wanted(Some(2), json!({"x": "1", "y": "1"})))
        .await
        .unwrap();
    assert_eq!(first.spec.as_ref().unwrap().replicas, Some(2));
    let same = deployments
        .patch("d", &params, &wanted(Some(2), json!({"x": "1", "y": "1"})))
        .await
        .unwrap();
    assert_eq!(
        same.metadata.resource_version, first.metadata.resource_version,
        "nothing changed"
    );
    let fewer = deployments
        .patch("d", &params, &wanted(Some(2), json!({"x": "1"})))
        .await
        .unwrap();
    let labels = fewer.metadata.labels.unwrap();
    assert!(labels.contains_key("x") && !labels.contains_key("y"));
    // Another's change of an owned field is a conflict unless forced.
    let error = deployments
        .patch(
            "d",
            &PatchParams::apply("other"),
            &wanted(Some(9), json!({})),
        )
        .await
        .unwrap_err();
    assert!(error.to_string().contains("conflict"), "{error}");
    let forced = deployments
        .patch(
            "d",
            &PatchParams::apply("other").force(),
            &wanted(Some(9), json!({})),
        )
        .await
        .unwrap();
    assert_eq!(forced.spec.unwrap().replicas, Some(9));
}

#[tokio::test]
async fn an_object_with_an_old_revision_is_not_replaced() {
    let cluster = Cluster::new().await;
    let nodes: Api<Node> = Api::all(client(&cluster));
    let node = Node {
        metadata: ObjectMeta {
            name: Some("n".into()),
            ..ObjectMeta::default()
        },
        ..Node::default()
    };
    let made = nodes.create(&PostParams::default(), &node).await.unwrap();
    let label = json!({"metadata": {"labels": {"a": "b"}}});
    nodes
        .patch("n", &PatchParams::default(), &Patch::Merge(label))
        .await
        .unwrap();
    let error = nodes
        .replace("n", &PostParams::default(), &made)
        .await
        .unwrap_err();
    let kube::Error::Api(status) = error else {
        panic!("{error}")
    };
    assert_eq!((status.code, status.reason.as_str()), (409, "Conflict"));
}
