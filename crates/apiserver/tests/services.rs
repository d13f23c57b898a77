//! Addresses and node ports of Services.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail loudly")]

mod support;

use serde_json::{Value, json};
use support::Cluster;

const SERVICES: &str = "/api/v1/namespaces/default/services";

fn service(name: &str, spec: Value) -> Value {
    let mut whole = json!({"ports": [{"port": 80}], "selector": {"app": "x"}});
    for (field, value) in spec.as_object().unwrap() {
        whole[field] = value.clone();
    }
    json!({"metadata": {"name": name}, "spec": whole})
}

async fn make(c: &Cluster, name: &str, spec: Value) -> Value {
    c.post(SERVICES, &service(name, spec)).await.ok()["spec"].clone()
}

#[tokio::test]
async fn a_service_gets_an_address_of_the_primary_family() {
    let c = Cluster::new().await;
    let spec = make(&c, "a", json!({})).await;
    let ip = spec["clusterIP"].as_str().unwrap();
    assert!(ip.starts_with("10."), "{ip}");
    assert_eq!(spec["clusterIPs"], json!([ip]));
    assert_eq!(spec["ipFamilies"], json!(["IPv4"]));
    assert_eq!(spec["ipFamilyPolicy"], "SingleStack");
}

#[tokio::test]
async fn dual_stack_services_get_an_address_of_each_family() {
    let c = Cluster::new().await;
    for policy in ["PreferDualStack", "RequireDualStack"] {
        let spec = make(
            &c,
            &policy.to_lowercase(),
            json!({"ipFamilyPolicy": policy}),
        )
        .await;
        assert_eq!(spec["ipFamilies"], json!(["IPv4", "IPv6"]));
        assert!(
            spec["clusterIPs"][1]
                .as_str()
                .unwrap()
                .starts_with("fd00:96::")
        );
    }
    let spec = make(&c, "v6", json!({"ipFamilies": ["IPv6"]})).await;
    assert_eq!(spec["ipFamilyPolicy"], "SingleStack");
    assert!(spec["clusterIP"].as_str().unwrap().starts_with("fd00:96::"));
    let spec = make(
        &c,
        "v6first",
        json!({"ipFamilies": ["IPv6", "IPv4"], "ipFamilyPolicy": "PreferDualStack"}),
    )
    .await;
    assert!(spec["clusterIP"].as_str().unwrap().starts_with("fd00:96::"));
    // Up and down again, keeping the first address.
    let up = json!({"spec": {"ipFamilyPolicy": "PreferDualStack"}});
    let v6 = c.patch(&format!("{SERVICES}/v6"), "merge", &up).await.ok();
    assert_eq!(v6["spec"]["ipFamilies"], json!(["IPv6", "IPv4"]));
    let down = json!({"spec": {"ipFamilyPolicy": "SingleStack"}});
    let v6 = c
        .patch(&format!("{SERVICES}/v6"), "merge", &down)
        .await
        .ok();
    assert_eq!(v6["spec"]["ipFamilies"], json!(["IPv6"]));
    assert_eq!(v6["spec"]["clusterIPs"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn headless_and_external_services_get_none() {
    let c = Cluster::new().await;
    let spec = make(&c, "h", json!({"clusterIP": "None"})).await;
    assert_eq!(spec["clusterIPs"], json!(["None"]));
    let spec = make(
        &c,
        "e",
        json!({"type": "ExternalName", "externalName": "example.com"}),
    )
    .await;
    assert!(spec.get("clusterIP").is_none_or(|v| v == ""), "{spec}");
}

#[tokio::test]
async fn an_address_asked_for_must_be_free_and_in_the_range() {
    let c = Cluster::new().await;
    let spec = make(&c, "a", json!({"clusterIP": "10.96.0.20"})).await;
    assert_eq!(spec["clusterIP"], "10.96.0.20");
    let again = service("b", json!({"clusterIP": "10.96.0.20"}));
    let message = c.post(SERVICES, &again).await.fails(422, "Invalid");
    assert_eq!(
        message,
        "Service \"b\" is invalid: spec.clusterIPs: Invalid value: [\"10.96.0.20\"]: failed to allocate IP 10.96.0.20: provided IP is already allocated"
    );
    let outside = service("b", json!({"clusterIP": "10.1.2.3"}));
    let message = c.post(SERVICES, &outside).await.fails(422, "Invalid");
    assert!(
        message.ends_with("the provided IP (10.1.2.3) is not in the valid range. The range of valid IPs is 10.96.0.0/12"),
        "{message}"
    );
    c.delete(&format!("{SERVICES}/a")).await.ok();
    c.post(SERVICES, &again).await.ok();
}

#[tokio::test]
async fn node_ports_are_given_checked_shared_and_freed() {
    let c = Cluster::new().await;
    let both = json!([
        {"name": "t", "port": 53, "protocol": "TCP"},
        {"name": "u", "port": 53, "protocol": "UDP"},
        {"name": "h", "port": 80, "nodePort": 30080},
    ]);
    let spec = make(&c, "a", json!({"type": "NodePort", "ports": both})).await;
    let port = spec["ports"][0]["nodePort"].as_u64().unwrap();
    assert!((30000..=32767).contains(&port));
    assert_eq!(spec["ports"][0]["nodePort"], spec["ports"][1]["nodePort"]);
    assert_eq!(spec["ports"][2]["nodePort"], 30080);
    let same = service(
        "b",
        json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30080}]}),
    );
    let message = c.post(SERVICES, &same).await.fails(422, "Invalid");
    assert_eq!(
        message,
        "Service \"b\" is invalid: spec.ports[0].nodePort: Invalid value: 30080: provided port is already allocated"
    );
    let outside = service(
        "b",
        json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 80}]}),
    );
    let message = c.post(SERVICES, &outside).await.fails(422, "Invalid");
    assert!(
        message.ends_with(
            "provided port is not in the valid range. The range of valid ports is 30000-32767"
        ),
        "{message}"
    );
    let back = json!({"spec": {"type": "ClusterIP"}});
    let a = c.patch(&format!("{SERVICES}/a"), "merge", &back).await.ok();
    assert!(a["spec"]["ports"][2].get("nodePort").is_none());
    c.post(SERVICES, &same).await.ok();
}

#[tokio::test]
async fn a_load_balancer_with_local_traffic_gets_a_health_check_port() {
    let c = Cluster::new().await;
    let spec = make(
        &c,
        "lb",
        json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local"}),
    )
    .await;
    assert!(spec["healthCheckNodePort"].as_u64().unwrap() >= 30000);
    assert!(spec["ports"][0]["nodePort"].as_u64().unwrap() >= 30000);
    assert_ne!(spec["healthCheckNodePort"], spec["ports"][0]["nodePort"]);
    let spec = make(
        &c,
        "without",
        json!({"type": "LoadBalancer", "allocateLoadBalancerNodePorts": false}),
    )
    .await;
    assert!(spec["ports"][0].get("nodePort").is_none());
}

#[tokio::test]
async fn a_full_range_is_said_and_an_address_freed_is_given_again() {
    let c = Cluster::with(|config| {
        config.service_ranges = vec!["10.96.0.0/29".parse().unwrap()];
    })
    .await;
    // Six addresses; the first is the API server's own.
    for i in 0..5 {
        make(&c, &format!("s{i}"), json!({})).await;
    }
    let message = c
        .post(SERVICES, &service("more", json!({})))
        .await
        .fails(500, "InternalError");
    assert!(message.contains("range is full"), "{message}");
    let gone = c.get(&format!("{SERVICES}/s3")).await.ok();
    c.delete(&format!("{SERVICES}/s3")).await.ok();
    let spec = make(&c, "more", json!({})).await;
    assert_eq!(spec["clusterIP"], gone["spec"]["clusterIP"]);
}

#[tokio::test]
async fn a_put_without_the_allocated_values_keeps_them() {
    let c = Cluster::new().await;
    let before = make(&c, "a", json!({"type": "NodePort"})).await;
    let put = service("a", json!({"type": "NodePort"}));
    let after = c.put(&format!("{SERVICES}/a"), &put).await.ok()["spec"].clone();
    assert_eq!(after, before);
}

#[tokio::test]
async fn what_is_taken_is_known_again_after_a_restart() {
    let c = Cluster::new().await;
    let spec = make(&c, "a", json!({"type": "NodePort"})).await;
    let Cluster { dir, server } = c;
    server.shutdown();
    drop(server);
    let server = podwire_apiserver::Server::open(support::config(dir.path()))
        .await
        .unwrap();
    let c = Cluster { dir, server };
    let same = service("b", json!({"clusterIP": spec["clusterIP"]}));
    c.post(SERVICES, &same).await.fails(422, "Invalid");
    let ports = json!([{"port": 80, "nodePort": spec["ports"][0]["nodePort"]}]);
    let same = service("b", json!({"type": "NodePort", "ports": ports}));
    c.post(SERVICES, &same).await.fails(422, "Invalid");
    // A failed write takes nothing.
    c.delete(&format!("{SERVICES}/a")).await.ok();
    let free = service("b", json!({"clusterIP": spec["clusterIP"]}));
    c.post(SERVICES, &free).await.ok();
}

#[tokio::test]
async fn services_made_side_by_side_get_different_addresses() {
    let c = Cluster::new().await;
    let all = (0..40).map(|i| {
        let c = &c;
        async move { make(c, &format!("s{i}"), json!({"type": "NodePort"})).await }
    });
    let specs = futures::future::join_all(all).await;
    for field in ["/clusterIP", "/ports/0/nodePort"] {
        let mut values: Vec<String> = specs
            .iter()
            .map(|s| s.pointer(field).unwrap().to_string())
            .collect();
        values.sort();
        values.dedup();
        assert_eq!(values.len(), 40);
    }
}
