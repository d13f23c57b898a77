use super::*;
use proptest::prelude::*;
use rstest::rstest;

const NOW: &str = "2026-11-21T02:00:00Z";
/// Five minutes and thirty seconds before.
const CREATED: &str = "2026-11-21T01:54:30Z";

fn now() -> Timestamp {
    NOW.parse().unwrap()
}

/// The table as text: columns and cells by name.
fn row(group: &str, kind: &str, mut object: Value) -> Vec<(String, String)> {
    if object["metadata"].is_null() {
        object["metadata"] = json!({});
    }
    object["metadata"]["name"] = json!("x");
    object["metadata"]["creationTimestamp"] = json!(CREATED);
    let table = render(
        &GroupVersionKind::new(group, "v1", kind),
        None,
        &[object],
        IncludeObject::None,
        now(),
    );
    let columns = table["columnDefinitions"].as_array().unwrap();
    let cells = table["rows"][0]["cells"].as_array().unwrap();
    assert_eq!(columns.len(), cells.len());
    columns
        .iter()
        .zip(cells)
        .map(|(column, cell)| {
            let cell = cell
                .as_str()
                .map_or_else(|| cell.to_string(), str::to_owned);
            (column["name"].as_str().unwrap().to_owned(), cell)
        })
        .collect()
}

fn cell(row: &[(String, String)], name: &str) -> String {
    row.iter()
        .find(|(column, _)| column == name)
        .unwrap()
        .1
        .clone()
}

#[rstest]
#[case(-5, "<invalid>")]
#[case(-1, "0s")]
#[case(0, "0s")]
#[case(119, "119s")]
#[case(120, "2m")]
#[case(330, "5m30s")]
#[case(600, "10m")]
#[case(179 * 60 + 59, "179m")]
#[case(3 * 3600, "3h")]
#[case(3 * 3600 + 300, "3h5m")]
#[case(8 * 3600 + 300, "8h")]
#[case(47 * 3600, "47h")]
#[case(51 * 3600, "2d3h")]
#[case(48 * 3600, "2d")]
#[case(8 * 86_400, "8d")]
#[case(729 * 86_400, "729d")]
#[case(750 * 86_400, "2y20d")]
#[case(730 * 86_400, "2y")]
#[case(9 * 365 * 86_400, "9y")]
fn durations(#[case] seconds: i64, #[case] text: &str) {
    assert_eq!(human_duration(seconds), text);
}

fn running(name: &str) -> Value {
    json!({"name": name, "ready": true, "restartCount": 0, "state": {"running": {}}})
}

fn waiting(name: &str, reason: &str) -> Value {
    json!({"name": name, "ready": false, "restartCount": 0, "state": {"waiting": {"reason": reason}}})
}

fn terminated(name: &str, reason: &str, code: i32) -> Value {
    json!({"name": name, "ready": false, "restartCount": 0, "state": {"terminated": {"reason": reason, "exitCode": code}}})
}

#[rstest]
#[case::pending(json!({"phase": "Pending"}), "Pending", "0/2")]
#[case::running(json!({"phase": "Running", "containerStatuses": [running("a"), running("b")]}), "Running", "2/2")]
#[case::creating(json!({"phase": "Pending", "containerStatuses": [waiting("a", "ContainerCreating"), waiting("b", "ContainerCreating")]}),
    "ContainerCreating", "0/2")]
#[case::image(json!({"phase": "Pending", "containerStatuses": [waiting("a", "ErrImagePull"), running("b")]}), "ErrImagePull", "1/2")]
#[case::crash(json!({"phase": "Running", "containerStatuses": [waiting("a", "CrashLoopBackOff"), running("b")]}), "CrashLoopBackOff", "1/2")]
#[case::completed(json!({"phase": "Succeeded", "containerStatuses": [terminated("a", "Completed", 0), terminated("b", "Completed", 0)]}),
    "Completed", "0/2")]
#[case::half_completed(json!({"phase": "Running", "containerStatuses": [terminated("a", "Completed", 0), running("b")]}), "NotReady", "1/2")]
#[case::half_completed_ready(json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}],
    "containerStatuses": [terminated("a", "Completed", 0), running("b")]}), "Running", "1/2")]
#[case::error(json!({"phase": "Failed", "containerStatuses": [terminated("a", "Error", 1)]}), "Error", "0/2")]
#[case::no_reason(json!({"phase": "Failed", "containerStatuses": [terminated("a", "", 3)]}), "ExitCode:3", "0/2")]
#[case::evicted(json!({"phase": "Failed", "reason": "Evicted"}), "Evicted", "0/2")]
#[case::init_first(json!({"phase": "Pending", "initContainerStatuses": [running("i")], "containerStatuses": [waiting("a", "PodInitializing")]}),
    "Init:0/1", "0/2")]
#[case::init_waiting(json!({"phase": "Pending", "initContainerStatuses": [waiting("i", "PodInitializing")]}), "Init:0/1", "0/2")]
#[case::init_crash(json!({"phase": "Pending", "initContainerStatuses": [waiting("i", "CrashLoopBackOff")]}), "Init:CrashLoopBackOff", "0/2")]
#[case::init_error(json!({"phase": "Pending", "initContainerStatuses": [terminated("i", "Error", 1)]}), "Init:Error", "0/2")]
#[case::init_done(json!({"phase": "Pending", "initContainerStatuses": [terminated("i", "Completed", 0)],
    "containerStatuses": [waiting("a", "PodInitializing"), waiting("b", "PodInitializing")]}), "PodInitializing", "0/2")]
fn pod_status(#[case] status: Value, #[case] reason: &str, #[case] ready: &str) {
    let pod = json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "i"}]}, "status": status});
    let found = row("", "Pod", pod.clone());
    assert_eq!(cell(&found, "Status"), reason);
    assert_eq!(cell(&found, "Ready"), ready);
    let mut deleted = pod;
    deleted["metadata"] = json!({"deletionTimestamp": NOW});
    let expected = match status["phase"].as_str() {
        Some("Succeeded" | "Failed") => reason,
        _ => "Terminating",
    };
    assert_eq!(cell(&row("", "Pod", deleted), "Status"), expected);
}

#[test]
fn a_running_sidecar_counts_as_a_container() {
    let found = row(
        "",
        "Pod",
        json!({
            "spec": {"containers": [{"name": "a"}], "initContainers": [{"name": "s", "restartPolicy": "Always"}]},
            "status": {"phase": "Running", "containerStatuses": [running("a")],
                "initContainerStatuses": [{"name": "s", "started": true, "ready": true, "state": {"running": {}}}]},
        }),
    );
    assert_eq!(
        (
            cell(&found, "Ready").as_str(),
            cell(&found, "Status").as_str()
        ),
        ("2/2", "Running")
    );
}

#[test]
fn restarts_tell_when_the_last_one_was() {
    let found = row(
        "",
        "Pod",
        json!({"spec": {"containers": [{}]}, "status": {"phase": "Running", "containerStatuses": [
        {"restartCount": 2, "ready": true, "state": {"running": {}}, "lastState": {"terminated": {"finishedAt": "2026-11-21T01:59:00Z"}}}]}}),
    );
    assert_eq!(cell(&found, "Restarts"), "2 (60s ago)");
}

#[test]
fn pods_wide() {
    let found = row(
        "",
        "Pod",
        json!({"spec": {"containers": [{}], "nodeName": "node-1"},
        "status": {"phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}], "containerStatuses": [running("a")]}}),
    );
    let cells: Vec<&str> = found.iter().map(|(_, cell)| cell.as_str()).collect();
    assert_eq!(
        cells,
        [
            "x", "1/1", "Running", "0", "5m30s", "10.0.0.1", "node-1", "<none>", "<none>"
        ]
    );
}

fn cells(row: &[(String, String)]) -> Vec<&str> {
    row.iter().map(|(_, cell)| cell.as_str()).collect()
}

#[rstest]
#[case(json!({"type": "ClusterIP", "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"], "selector": {"app": "a", "b": "c"},
    "ports": [{"port": 80, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]}),
    &["x", "ClusterIP", "10.96.0.1", "<none>", "80/TCP,53/UDP", "5m30s", "app=a,b=c"])]
#[case(json!({"type": "NodePort", "clusterIP": "10.96.0.1", "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30080}]}),
    &["x", "NodePort", "10.96.0.1", "<none>", "80:30080/TCP", "5m30s", "<none>"])]
#[case(json!({"type": "LoadBalancer", "clusterIP": "10.96.0.1"}), &["x", "LoadBalancer", "10.96.0.1", "<pending>", "<none>", "5m30s", "<none>"])]
#[case(json!({"type": "ExternalName", "externalName": "e.org"}), &["x", "ExternalName", "<none>", "e.org", "<none>", "5m30s", "<none>"])]
#[case(json!({"type": "ClusterIP", "clusterIP": "None", "externalIPs": ["1.2.3.4"]}), &["x", "ClusterIP", "None", "1.2.3.4", "<none>", "5m30s", "<none>"])]
fn services(#[case] spec: Value, #[case] expected: &[&str]) {
    assert_eq!(cells(&row("", "Service", json!({"spec": spec}))), expected);
}

#[test]
fn nodes() {
    let found = row(
        "",
        "Node",
        json!({
            "metadata": {"labels": {"node-role.kubernetes.io/control-plane": "", "kubernetes.io/role": "worker"}},
            "spec": {"unschedulable": true},
            "status": {"conditions": [{"type": "Ready", "status": "False"}], "addresses": [{"type": "InternalIP", "address": "192.168.64.11"}],
                "nodeInfo": {"kubeletVersion": "v1.31.0", "osImage": "Debian", "kernelVersion": "6.1", "containerRuntimeVersion": "podwire://0.1"}},
        }),
    );
    assert_eq!(
        cells(&found),
        [
            "x",
            "NotReady,SchedulingDisabled",
            "control-plane,worker",
            "5m30s",
            "v1.31.0",
            "192.168.64.11",
            "<none>",
            "Debian",
            "6.1",
            "podwire://0.1"
        ]
    );
}

#[rstest]
#[case("Deployment", json!({"replicas": 3}), json!({"readyReplicas": 1, "updatedReplicas": 3, "availableReplicas": 1}),
    &["x", "1/3", "3", "1", "5m30s", "a,b", "i,j", "app=w"])]
#[case("ReplicaSet", json!({"replicas": 3}), json!({"readyReplicas": 1, "replicas": 2}), &["x", "3", "2", "1", "5m30s", "a,b", "i,j", "app=w"])]
#[case("StatefulSet", json!({"replicas": 3}), json!({"readyReplicas": 1}), &["x", "1/3", "5m30s", "a,b", "i,j"])]
#[case("DaemonSet", json!({}), json!({"desiredNumberScheduled": 2, "currentNumberScheduled": 2, "numberReady": 1}),
    &["x", "2", "2", "1", "0", "0", "<none>", "5m30s", "a,b", "i,j", "app=w"])]
fn workloads(
    #[case] kind: &str,
    #[case] mut spec: Value,
    #[case] status: Value,
    #[case] expected: &[&str],
) {
    spec["selector"] = json!({"matchLabels": {"app": "w"}});
    spec["template"] =
        json!({"spec": {"containers": [{"name": "a", "image": "i"}, {"name": "b", "image": "j"}]}});
    assert_eq!(
        cells(&row("apps", kind, json!({"spec": spec, "status": status}))),
        expected
    );
}

#[rstest]
#[case("", "ConfigMap", json!({"data": {"a": "1"}, "binaryData": {"b": ""}}), &["x", "2", "5m30s"])]
#[case("", "Secret", json!({"type": "Opaque", "data": {"a": "1"}}), &["x", "Opaque", "1", "5m30s"])]
#[case("", "Namespace", json!({"status": {"phase": "Active"}}), &["x", "Active", "5m30s"])]
#[case("", "ServiceAccount", json!({}), &["x", "0", "5m30s"])]
#[case("", "Endpoints", json!({"subsets": [{"addresses": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}], "ports": [{"port": 80}]}]}),
    &["x", "10.0.0.1:80,[fd00::1]:80", "5m30s"])]
#[case("discovery.k8s.io", "EndpointSlice", json!({"addressType": "IPv4", "ports": [{"port": 80}, {"port": 81}],
    "endpoints": [{"addresses": ["10.0.0.1"]}, {"addresses": ["10.0.0.2"]}, {"addresses": ["10.0.0.3"]}, {"addresses": ["10.0.0.4"]}]}),
    &["x", "IPv4", "80,81", "10.0.0.1,10.0.0.2,10.0.0.3 + 1 more...", "5m30s"])]
#[case("discovery.k8s.io", "EndpointSlice", json!({"addressType": "IPv6"}), &["x", "IPv6", "<unset>", "<unset>", "5m30s"])]
#[case("networking.k8s.io", "NetworkPolicy", json!({"spec": {"podSelector": {"matchLabels": {"a": "b"},
    "matchExpressions": [{"key": "c", "operator": "In", "values": ["d", "e"]}, {"key": "f", "operator": "DoesNotExist"}]}}}),
    &["x", "a=b,c in (d,e),!f", "5m30s"])]
#[case("networking.k8s.io", "Ingress", json!({"spec": {"ingressClassName": "p", "rules": [{"host": "a.org"}, {"host": "b.org"}], "tls": [{}]},
    "status": {"loadBalancer": {"ingress": [{"ip": "1.2.3.4"}]}}}), &["x", "p", "a.org,b.org", "1.2.3.4", "80, 443", "5m30s"])]
#[case("networking.k8s.io", "Ingress", json!({"spec": {"rules": [{}]}}), &["x", "<none>", "*", "", "80", "5m30s"])]
#[case("networking.k8s.io", "IngressClass", json!({"spec": {"controller": "a/b", "parameters": {"apiGroup": "g", "kind": "K", "name": "n"}}}),
    &["x", "a/b", "K.g/n", "5m30s"])]
#[case("coordination.k8s.io", "Lease", json!({"spec": {"holderIdentity": "n"}}), &["x", "n", "5m30s"])]
#[case("rbac.authorization.k8s.io", "ClusterRole", json!({"rules": []}), &["x", CREATED])]
#[case("rbac.authorization.k8s.io", "RoleBinding", json!({"roleRef": {"kind": "Role", "name": "r"}}), &["x", "Role/r", "5m30s"])]
#[case("apiextensions.k8s.io", "CustomResourceDefinition", json!({}), &["x", CREATED])]
#[case("example.org", "Custom", json!({}), &["x", "5m30s"])]
#[case("apps", "ControllerRevision", json!({"revision": 2, "metadata": {"ownerReferences": [
    {"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "d", "controller": true}]}}), &["x", "daemonset.apps/d", "2", "5m30s"])]
#[case("", "Event", json!({"type": "Warning", "reason": "Failed", "message": "no\n", "count": 3, "source": {"component": "kubelet", "host": "n"},
    "firstTimestamp": CREATED, "lastTimestamp": NOW, "involvedObject": {"kind": "Pod", "name": "p", "fieldPath": "spec"}}),
    &["0s", "Warning", "Failed", "pod/p", "spec", "kubelet, n", "no", "5m30s", "3", "x"])]
#[case("events.k8s.io", "Event", json!({"type": "Normal", "reason": "R", "note": "m", "eventTime": "2026-11-21T01:54:30.000000Z",
    "reportingController": "c", "regarding": {"kind": "Node", "name": "n"}}),
    &["5m30s", "Normal", "R", "node/n", "", "c", "m", "5m30s", "1", "x"])]
fn other_kinds(
    #[case] group: &str,
    #[case] kind: &str,
    #[case] object: Value,
    #[case] expected: &[&str],
) {
    assert_eq!(cells(&row(group, kind, object)), expected);
}

#[test]
fn custom_columns_come_from_the_definition() {
    let columns = json!([
        {"name": "Ready", "type": "string", "jsonPath": ".status.conditions[?(@.type==\"Ready\")].status"},
        {"name": "Hosts", "type": "string", "jsonPath": ".spec.hosts[*]"},
        {"name": "Size", "type": "integer", "jsonPath": ".spec.size", "priority": 1},
        {"name": "Missing", "type": "string", "jsonPath": ".spec.missing"},
        {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
    ]);
    let object = json!({"metadata": {"name": "x", "creationTimestamp": CREATED}, "spec": {"hosts": ["a", "b"], "size": 3},
        "status": {"conditions": [{"type": "Ready", "status": "True"}]}});
    let table = render(
        &GroupVersionKind::new("example.org", "v1", "Foo"),
        Some(&columns),
        &[object],
        IncludeObject::Metadata,
        now(),
    );
    assert_eq!(
        table["rows"][0]["cells"],
        json!(["x", "True", "a b", 3, null, "5m30s"])
    );
    assert_eq!(table["columnDefinitions"][3]["priority"], 1);
    assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
}

#[rstest]
#[case(IncludeObject::None, json!(null))]
#[case(IncludeObject::Metadata, json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": {"name": "x"}}))]
#[case(IncludeObject::Object, json!({"metadata": {"name": "x"}, "data": {"a": "b"}}))]
fn rows_carry_what_was_asked_for(#[case] include: IncludeObject, #[case] expected: Value) {
    let object = json!({"metadata": {"name": "x"}, "data": {"a": "b"}});
    let table = render(
        &GroupVersionKind::new("", "v1", "ConfigMap"),
        None,
        &[object],
        include,
        now(),
    );
    assert_eq!(table["rows"][0]["object"], expected);
}

#[test]
fn wide_columns_have_priority_one() {
    let table = render(
        &GroupVersionKind::new("", "v1", "Pod"),
        None,
        &[],
        IncludeObject::None,
        now(),
    );
    let wide: Vec<&str> = table["columnDefinitions"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|column| column["priority"] == 1)
        .map(|column| column["name"].as_str().unwrap())
        .collect();
    assert_eq!(wide, ["IP", "Node", "Nominated Node", "Readiness Gates"]);
}

fn anything() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        Just(json!(true)),
        Just(json!(-1)),
        Just(json!("x"))
    ];
    let key = proptest::sample::select(vec![
        "metadata",
        "name",
        "spec",
        "status",
        "ports",
        "containerStatuses",
        "state",
        "terminated",
        "waiting",
        "reason",
        "conditions",
        "addresses",
        "endpoints",
        "subsets",
        "template",
        "containers",
        "selector",
        "rules",
    ]);
    leaf.prop_recursive(6, 48, 4, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            proptest::collection::btree_map(key.clone().prop_map(str::to_owned), inner, 0..5)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn every_row_has_a_cell_for_every_column(object in anything()) {
        for kind in crate::schema::Schemas::builtin().kinds() {
            let table = render(&kind.gvk, None, std::slice::from_ref(&object), IncludeObject::Object, now());
            prop_assert_eq!(
                table["rows"][0]["cells"].as_array().map(Vec::len),
                table["columnDefinitions"].as_array().map(Vec::len)
            );
        }
    }
}
