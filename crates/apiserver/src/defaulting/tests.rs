use super::*;
use proptest::prelude::*;
use rstest::rstest;

fn defaulted(group: &str, kind: &str, mut object: Value) -> Value {
    apply(&GroupVersionKind::new(group, "v1", kind), &mut object);
    object
}

#[test]
fn a_pod_gets_the_defaults_of_kubernetes() {
    let pod = defaulted(
        "",
        "Pod",
        json!({"spec": {"containers": [{"name": "a", "image": "x"}]}}),
    );
    assert_eq!(
        pod,
        json!({
            "spec": {
                "containers": [{
                    "name": "a", "image": "x", "imagePullPolicy": "Always", "resources": {},
                    "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
                }],
                "dnsPolicy": "ClusterFirst", "enableServiceLinks": true, "restartPolicy": "Always",
                "schedulerName": "default-scheduler", "securityContext": {},
                "terminationGracePeriodSeconds": 30,
            },
            "status": {"phase": "Pending", "qosClass": "BestEffort"},
        })
    );
}

#[test]
fn what_a_binding_binds_is_of_the_group_of_access_rules() {
    for kind in ["RoleBinding", "ClusterRoleBinding"] {
        let binding = defaulted(
            "rbac.authorization.k8s.io",
            kind,
            json!({
                "roleRef": {"kind": "ClusterRole", "name": "view"},
                "subjects": [{"kind": "User", "name": "u"}, {"kind": "ServiceAccount", "name": "s"}],
            }),
        );
        let group = "rbac.authorization.k8s.io";
        assert_eq!(binding["roleRef"]["apiGroup"], group);
        assert_eq!(binding["subjects"][0]["apiGroup"], group);
        assert_eq!(binding["subjects"][1]["apiGroup"], Value::Null);
    }
}

#[rstest]
#[case("nginx", "Always")]
#[case("nginx:latest", "Always")]
#[case("nginx:1.27", "IfNotPresent")]
#[case("localhost:5000/nginx", "Always")]
#[case("localhost:5000/nginx:1", "IfNotPresent")]
#[case("nginx@sha256:0123", "IfNotPresent")]
#[case("host:", "IfNotPresent")]
fn pull_policy_follows_the_tag(#[case] image: &str, #[case] policy: &str) {
    let pod = defaulted(
        "",
        "Pod",
        json!({"spec": {"containers": [{"image": image}]}}),
    );
    assert_eq!(pod["spec"]["containers"][0]["imagePullPolicy"], policy);
}

#[rstest]
#[case(json!({"httpGet": {"port": 80}}), json!({"httpGet": {"port": 80, "path": "/", "scheme": "HTTP"},
    "timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3}))]
#[case(json!({"tcpSocket": {"port": 80}, "periodSeconds": 2, "failureThreshold": 0}),
    json!({"tcpSocket": {"port": 80}, "timeoutSeconds": 1, "periodSeconds": 2, "successThreshold": 1, "failureThreshold": 3}))]
fn probes_get_periods_and_thresholds(#[case] probe: Value, #[case] expected: Value) {
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let pod = defaulted(
            "",
            "Pod",
            json!({"spec": {"containers": [{name: probe.clone()}]}}),
        );
        assert_eq!(pod["spec"]["containers"][0][name], expected);
    }
}

#[rstest]
#[case(json!({"name": "v"}), json!({"name": "v", "emptyDir": {}}))]
#[case(json!({"name": "v", "configMap": {"name": "c"}}), json!({"name": "v", "configMap": {"name": "c", "defaultMode": 420}}))]
#[case(json!({"name": "v", "secret": {"secretName": "c"}}), json!({"name": "v", "secret": {"secretName": "c", "defaultMode": 420}}))]
#[case(json!({"name": "v", "secret": {"defaultMode": 256}}), json!({"name": "v", "secret": {"defaultMode": 256}}))]
#[case(json!({"name": "v", "hostPath": {"path": "/x"}}), json!({"name": "v", "hostPath": {"path": "/x", "type": ""}}))]
fn volumes(#[case] volume: Value, #[case] expected: Value) {
    let pod = defaulted("", "Pod", json!({"spec": {"volumes": [volume]}}));
    assert_eq!(pod["spec"]["volumes"][0], expected);
}

#[test]
fn ports_are_tcp_and_host_ports_on_the_host_network() {
    let pod = defaulted(
        "",
        "Pod",
        json!({"spec": {"hostNetwork": true,
        "containers": [{"ports": [{"containerPort": 80}, {"containerPort": 53, "protocol": "UDP"}]}]}}),
    );
    assert_eq!(
        pod["spec"]["containers"][0]["ports"],
        json!([{"containerPort": 80, "hostPort": 80, "protocol": "TCP"},
            {"containerPort": 53, "hostPort": 53, "protocol": "UDP"}])
    );
}

#[rstest]
#[case(json!({}), json!({}), "BestEffort")]
#[case(json!({"limits": {"cpu": 1, "memory": "1Gi"}}),
    json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1", "memory": "1Gi"}}), "Guaranteed")]
#[case(json!({"limits": {"cpu": "1"}}), json!({"limits": {"cpu": "1"}, "requests": {"cpu": "1"}}), "Burstable")]
#[case(json!({"requests": {"cpu": "1"}}), json!({"requests": {"cpu": "1"}}), "Burstable")]
fn requests_follow_limits(
    #[case] resources: Value,
    #[case] expected: Value,
    #[case] quality: &str,
) {
    let pod = defaulted(
        "",
        "Pod",
        json!({"spec": {"containers": [{"resources": resources}]}}),
    );
    assert_eq!(pod["spec"]["containers"][0]["resources"], expected);
    assert_eq!(pod["status"]["qosClass"], quality);
}

#[test]
fn templates_do_not_get_what_only_pods_get() {
    let deployment = defaulted(
        "apps",
        "Deployment",
        json!({"spec": {"template": {"spec": {"containers": [{"resources": {"limits": {"cpu": "1"}}}]}}}}),
    );
    let spec = &deployment["spec"]["template"]["spec"];
    assert_eq!(spec["restartPolicy"], "Always");
    assert!(spec.get("enableServiceLinks").is_none());
    assert!(spec["containers"][0]["resources"].get("requests").is_none());
}

#[rstest]
#[case(json!({"ports": [{"port": 80}]}),
    json!({"ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}], "type": "ClusterIP",
        "sessionAffinity": "None", "internalTrafficPolicy": "Cluster"}))]
#[case(json!({"type": "NodePort", "ports": [{"port": 80, "targetPort": "http", "protocol": "SCTP"}]}),
    json!({"ports": [{"port": 80, "protocol": "SCTP", "targetPort": "http"}], "type": "NodePort",
        "sessionAffinity": "None", "internalTrafficPolicy": "Cluster", "externalTrafficPolicy": "Cluster"}))]
#[case(json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local"}),
    json!({"type": "LoadBalancer", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster",
        "externalTrafficPolicy": "Local", "allocateLoadBalancerNodePorts": true}))]
#[case(json!({"type": "ExternalName", "externalName": "example.org"}),
    json!({"type": "ExternalName", "externalName": "example.org", "sessionAffinity": "None"}))]
#[case(json!({"sessionAffinity": "ClientIP"}),
    json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 10800}},
        "type": "ClusterIP", "internalTrafficPolicy": "Cluster"}))]
fn service_specs(#[case] spec: Value, #[case] expected: Value) {
    let service = defaulted("", "Service", json!({"spec": spec}));
    assert_eq!(service["spec"], expected);
    assert_eq!(service["status"], json!({"loadBalancer": {}}));
}

#[rstest]
#[case("Deployment", json!({}), json!({"replicas": 1, "revisionHistoryLimit": 10, "progressDeadlineSeconds": 600,
    "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}}}))]
#[case("Deployment", json!({"replicas": 0, "strategy": {"type": "Recreate"}}),
    json!({"replicas": 0, "revisionHistoryLimit": 10, "progressDeadlineSeconds": 600, "strategy": {"type": "Recreate"}}))]
#[case("ReplicaSet", json!({}), json!({"replicas": 1}))]
#[case("DaemonSet", json!({}), json!({"revisionHistoryLimit": 10,
    "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}}))]
#[case("StatefulSet", json!({}), json!({"replicas": 1, "revisionHistoryLimit": 10, "podManagementPolicy": "OrderedReady",
    "serviceName": "", "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Retain", "whenScaled": "Retain"},
    "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}}}))]
fn workload_specs(#[case] kind: &str, #[case] spec: Value, #[case] expected: Value) {
    let mut object = defaulted("apps", kind, json!({"spec": spec}));
    object["spec"].as_object_mut().unwrap().remove("template");
    assert_eq!(object["spec"], expected);
}

#[rstest]
#[case(json!({}), json!(["Ingress"]))]
#[case(json!({"egress": [{}]}), json!(["Ingress", "Egress"]))]
#[case(json!({"egress": [{}], "policyTypes": ["Egress"]}), json!(["Egress"]))]
fn policy_types_follow_the_rules(#[case] spec: Value, #[case] expected: Value) {
    let policy = defaulted("networking.k8s.io", "NetworkPolicy", json!({"spec": spec}));
    assert_eq!(policy["spec"]["policyTypes"], expected);
}

#[test]
fn secrets_take_plain_text() {
    let secret = defaulted(
        "",
        "Secret",
        json!({"data": {"a": "eA=="}, "stringData": {"b": "hello"}}),
    );
    assert_eq!(
        secret,
        json!({"type": "Opaque", "data": {"a": "eA==", "b": "aGVsbG8="}})
    );
}

#[test]
fn namespaces_are_labelled_and_active() {
    let namespace = defaulted("", "Namespace", json!({"metadata": {"name": "shop"}}));
    assert_eq!(
        namespace["metadata"]["labels"],
        json!({"kubernetes.io/metadata.name": "shop"})
    );
    assert_eq!(namespace["status"]["phase"], "Active");
}

#[rstest]
#[case(json!({"podCIDR": "10.0.0.0/24"}))]
#[case(json!({"podCIDRs": ["10.0.0.0/24"]}))]
fn node_ranges_are_kept_in_step(#[case] spec: Value) {
    let node = defaulted("", "Node", json!({"spec": spec}));
    assert_eq!(
        node["spec"],
        json!({"podCIDR": "10.0.0.0/24", "podCIDRs": ["10.0.0.0/24"]})
    );
}

#[test]
fn pod_addresses_are_kept_in_step() {
    let pod = defaulted(
        "",
        "Pod",
        json!({"status": {"podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]}}),
    );
    assert_eq!(pod["status"]["podIP"], "10.0.0.1");
}

#[test]
fn definitions_get_their_other_names() {
    let crd = defaulted(
        "apiextensions.k8s.io",
        "CustomResourceDefinition",
        json!({"spec": {"names": {"kind": "FooBar", "plural": "foobars"}}}),
    );
    assert_eq!(
        crd["spec"]["names"],
        json!({"kind": "FooBar", "plural": "foobars", "singular": "foobar", "listKind": "FooBarList"})
    );
    assert_eq!(crd["spec"]["conversion"], json!({"strategy": "None"}));
}

#[test]
fn nulls_are_absent_fields() {
    let map = defaulted(
        "",
        "ConfigMap",
        json!({"data": null, "metadata": {"labels": null, "name": "x"}}),
    );
    assert_eq!(map, json!({"metadata": {"name": "x"}}));
}

fn specs() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        Just(json!(true)),
        Just(json!(0)),
        Just(json!("x")),
        Just(json!(""))
    ];
    let key = proptest::sample::select(vec![
        "containers",
        "ports",
        "type",
        "template",
        "spec",
        "status",
        "volumes",
        "strategy",
        "livenessProbe",
        "resources",
        "limits",
        "cpu",
        "podIP",
        "podIPs",
        "name",
        "metadata",
    ]);
    leaf.prop_recursive(5, 32, 4, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            proptest::collection::btree_map(key.clone().prop_map(str::to_owned), inner, 0..5)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    /// Also: no input, however wrong its types, makes it panic.
    #[test]
    fn defaulting_twice_is_defaulting_once(spec in specs(), status in specs()) {
        for (group, kind) in [("", "Pod"), ("", "Service"), ("apps", "Deployment"), ("apps", "StatefulSet"), ("", "Node")] {
            let once = defaulted(group, kind, json!({"spec": spec, "status": status}));
            prop_assert_eq!(defaulted(group, kind, once.clone()), once);
        }
    }
}
