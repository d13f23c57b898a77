use super::*;
use crate::defaulting;
use proptest::prelude::*;
use rstest::rstest;
use serde_json::json;

fn gvk(group: &str, kind: &str) -> GroupVersionKind {
    GroupVersionKind::new(group, "v1", kind)
}

fn merged(base: Value, patch: &Value) -> Value {
    crate::patch::merge::apply(&base, patch)
}

fn texts(errors: Vec<FieldError>) -> Vec<String> {
    errors.iter().map(ToString::to_string).collect()
}

/// Exactly these errors, each given by its beginning.
#[track_caller]
fn assert_errors(errors: Vec<FieldError>, expected: &[&str]) {
    let found = texts(errors);
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.starts_with(expected), "{found}\nexpected: {expected}");
    }
}

#[track_caller]
fn assert_create(group: &str, kind: &str, mut object: Value, expected: &[&str]) {
    let gvk = gvk(group, kind);
    defaulting::apply(&gvk, &mut object);
    assert_errors(create(&gvk, &object), expected);
}

#[track_caller]
fn assert_update(group: &str, kind: &str, mut old: Value, mut new: Value, expected: &[&str]) {
    let gvk = gvk(group, kind);
    defaulting::apply(&gvk, &mut old);
    defaulting::apply(&gvk, &mut new);
    assert_errors(update(&gvk, &old, &new), expected);
}

fn pod() -> Value {
    json!({"metadata": {"name": "p"}, "spec": {
        "containers": [{"name": "a", "image": "x"}], "volumes": [{"name": "v", "emptyDir": {}}]}})
}

#[rstest]
#[case(json!({"name": null}), &["metadata.name: Required value: name or generateName is required"])]
#[case(json!({"name": null, "generateName": "x-"}), &[])]
#[case(json!({"name": "A_b"}), &["metadata.name: Invalid value: \"A_b\": a lowercase RFC 1123 subdomain must consist of"])]
#[case(json!({"generateName": "-"}), &[])]
#[case(json!({"generateName": "X-"}), &["metadata.generateName: Invalid value: \"X-\""])]
#[case(json!({"namespace": "a.b"}), &["metadata.namespace: Invalid value: \"a.b\": a lowercase RFC 1123 label"])]
#[case(json!({"labels": {"a b": "c"}}), &["metadata.labels: Invalid value: \"a b\": name part must consist of"])]
#[case(json!({"labels": {"a": "b c"}}), &["metadata.labels[a]: Invalid value: \"b c\": a valid label must be"])]
#[case(json!({"labels": {"a/b/c": "d"}}), &["metadata.labels: Invalid value: \"a/b/c\": a qualified name"])]
#[case(json!({"labels": {"/b": "d"}}), &["metadata.labels: Invalid value: \"/b\": prefix part must be non-empty"])]
#[case(json!({"annotations": {"X.y/Z": "any thing"}}), &[])]
#[case(json!({"annotations": {"a": "x".repeat(262_144)}}), &["metadata.annotations: Too long: may not be more than 262144 bytes"])]
#[case(json!({"finalizers": ["x"]}), &["metadata.finalizers[0]: Invalid value: \"x\": name is neither a standard"])]
#[case(json!({"ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "x"}]}),
    &["metadata.ownerReferences[0].uid: Required value: must not be empty"])]
#[case(json!({"ownerReferences": [
    {"apiVersion": "v1", "kind": "Pod", "name": "x", "uid": "1", "controller": true},
    {"apiVersion": "v1", "kind": "Pod", "name": "y", "uid": "2", "controller": true}]}),
    &["metadata.ownerReferences: Invalid value: \"y\": Only one reference can have Controller set to true. Found \"true\" in references for x and y"])]
fn metadata_rules(#[case] metadata: Value, #[case] expected: &[&str]) {
    let object = merged(
        json!({"metadata": {"name": "x"}}),
        &json!({"metadata": metadata}),
    );
    assert_create("", "ConfigMap", object.clone(), expected);
    assert_create("example.org", "Custom", object, expected);
}

#[rstest]
#[case("Namespace", "a.b", &["metadata.name: Invalid value: \"a.b\": a lowercase RFC 1123 label"])]
#[case("ConfigMap", "a.b", &[])]
#[case("Node", "1.2", &[])]
fn names_by_kind(#[case] kind: &str, #[case] name: &str, #[case] expected: &[&str]) {
    assert_create("", kind, json!({"metadata": {"name": name}}), expected);
}

#[rstest]
#[case("system:node", &[])]
#[case("Any Name", &[])]
#[case("a/b%", &["metadata.name: Invalid value: \"a/b%\": may not contain '/'",
    "metadata.name: Invalid value: \"a/b%\": may not contain '%'"])]
#[case("..", &["metadata.name: Invalid value: \"..\": may not be '..'"])]
fn names_of_roles(#[case] name: &str, #[case] expected: &[&str]) {
    let role = json!({"metadata": {"name": name}, "rules": []});
    assert_create("rbac.authorization.k8s.io", "ClusterRole", role, expected);
}

#[test]
fn services_have_names_that_start_with_a_letter() {
    assert_create(
        "",
        "Service",
        json!({"metadata": {"name": "1a"}, "spec": {"ports": [{"port": 80}]}}),
        &["metadata.name: Invalid value: \"1a\": a DNS-1035 label"],
    );
}

#[test]
fn cluster_kinds_have_no_namespace() {
    assert_create(
        "",
        "Node",
        json!({"metadata": {"name": "n", "namespace": "x"}}),
        &["metadata.namespace: Forbidden: not allowed on this type"],
    );
}

#[rstest]
#[case(json!({"name": "b"}), &["metadata.name: Invalid value: \"b\": field is immutable"])]
#[case(json!({"uid": "2"}), &["metadata.uid: Invalid value: \"2\": field is immutable"])]
#[case(json!({"finalizers": ["a/b"]}), &["metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted"])]
fn metadata_changes(#[case] change: Value, #[case] expected: &[&str]) {
    let old =
        json!({"metadata": {"name": "a", "uid": "1", "deletionTimestamp": "2026-01-01T00:00:00Z"}});
    let new = merged(old.clone(), &json!({"metadata": change}));
    assert_update("", "ConfigMap", old, new, expected);
}

#[rstest]
#[case::fine(json!({}), &[])]
#[case::no_containers(json!({"containers": []}), &["spec.containers: Required value"])]
#[case::no_image(json!({"containers": [{"name": "a"}]}), &["spec.containers[0].image: Required value"])]
#[case::no_name(json!({"containers": [{"image": "x"}]}), &["spec.containers[0].name: Required value"])]
#[case::bad_name(json!({"containers": [{"name": "A", "image": "x"}]}), &["spec.containers[0].name: Invalid value: \"A\""])]
#[case::same_name(json!({"containers": [{"name": "a", "image": "x"}, {"name": "a", "image": "x"}]}),
    &["spec.containers[1].name: Duplicate value: \"a\""])]
#[case::init_same_name(json!({"initContainers": [{"name": "a", "image": "x"}]}), &["spec.initContainers[0].name: Duplicate value: \"a\""])]
#[case::restart(json!({"restartPolicy": "Sometimes"}),
    &["spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"OnFailure\", \"Never\""])]
#[case::dns(json!({"dnsPolicy": "None"}), &["spec.dnsConfig.nameservers: Required value"])]
#[case::hostname(json!({"hostname": "a.b"}), &["spec.hostname: Invalid value: \"a.b\""])]
#[case::alias(json!({"hostAliases": [{"ip": "1.2.3"}]}), &["spec.hostAliases[0].ip: Invalid value: \"1.2.3\": must be a valid IP address"])]
#[case::toleration(json!({"tolerations": [{"operator": "Equal"}]}), &["spec.tolerations[0].operator: Invalid value: \"Equal\""])]
#[case::toleration_all(json!({"tolerations": [{"operator": "Exists"}]}), &[])]
#[case::spread(json!({"topologySpreadConstraints": [{"maxSkew": 0, "topologyKey": "x", "whenUnsatisfiable": "DoNotSchedule"}]}),
    &["spec.topologySpreadConstraints[0].maxSkew: Invalid value: 0: must be greater than zero"])]
#[case::volume_name(json!({"volumes": [{"name": "v", "emptyDir": {}}, {"name": "v", "emptyDir": {}}]}),
    &["spec.volumes[1].name: Duplicate value: \"v\""])]
#[case::two_sources(json!({"volumes": [{"name": "v", "emptyDir": {}, "hostPath": {"path": "/"}}]}),
    &["spec.volumes[0].hostPath: Forbidden: may not specify more than 1 volume type"])]
#[case::no_path(json!({"volumes": [{"name": "v", "hostPath": {}}]}), &["spec.volumes[0].hostPath.path: Required value"])]
#[case::no_map(json!({"volumes": [{"name": "v", "configMap": {}}]}), &["spec.volumes[0].configMap.name: Required value"])]
#[case::item_path(json!({"volumes": [{"name": "v", "configMap": {"name": "m", "items": [{"key": "k", "path": "../x"}]}}]}),
    &["spec.volumes[0].configMap.items[0].path: Invalid value: \"../x\": must not contain '..'"])]
#[case::mode(json!({"volumes": [{"name": "v", "secret": {"secretName": "s", "defaultMode": 1000}}]}),
    &["spec.volumes[0].secret.defaultMode: Invalid value: 1000: must be a number between 0 and 0777"])]
fn pod_rules(#[case] spec: Value, #[case] expected: &[&str]) {
    assert_create("", "Pod", merged(pod(), &json!({"spec": spec})), expected);
}

#[rstest]
#[case::fine(json!({"ports": [{"containerPort": 80, "name": "http"}], "volumeMounts": [{"name": "v", "mountPath": "/x"}]}), &[])]
#[case::policy(json!({"imagePullPolicy": "Often"}), &["imagePullPolicy: Unsupported value: \"Often\": supported values: \"Always\", \"IfNotPresent\", \"Never\""])]
#[case::space(json!({"image": " x"}), &["image: Invalid value: \" x\": must not have leading or trailing whitespace"])]
#[case::port_zero(json!({"ports": [{}]}), &["ports[0].containerPort: Required value"])]
#[case::port_range(json!({"ports": [{"containerPort": 70000}]}), &["ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive"])]
#[case::protocol(json!({"ports": [{"containerPort": 80, "protocol": "tcp"}]}),
    &["ports[0].protocol: Unsupported value: \"tcp\": supported values: \"SCTP\", \"TCP\", \"UDP\""])]
#[case::port_names(json!({"ports": [{"containerPort": 80, "name": "a"}, {"containerPort": 81, "name": "a"}]}),
    &["ports[1].name: Duplicate value: \"a\""])]
#[case::port_name(json!({"ports": [{"containerPort": 80, "name": "this-is-too-long"}]}), &["ports[0].name: Invalid value: \"this-is-too-long\": must be no more than 15"])]
#[case::port_name_letters(json!({"ports": [{"containerPort": 80, "name": "80"}]}), &["ports[0].name: Invalid value: \"80\": must contain at least one letter"])]
#[case::host_ports(json!({"ports": [{"containerPort": 80, "hostPort": 80}, {"containerPort": 81, "hostPort": 80}]}),
    &["ports[1].hostPort: Duplicate value: \"TCP//80\""])]
#[case::env_name(json!({"env": [{"name": "a=b"}]}), &["env[0].name: Invalid value: \"a=b\": a valid environment variable name"])]
#[case::env_no_name(json!({"env": [{"value": "x"}]}), &["env[0].name: Required value"])]
#[case::env_both(json!({"env": [{"name": "a", "value": "x", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]}),
    &["env[0].valueFrom: Invalid value: \"\": may not be specified when `value` is not empty"])]
#[case::env_field(json!({"env": [{"name": "a", "valueFrom": {"fieldRef": {"fieldPath": "metadata.nom"}}}]}),
    &["env[0].valueFrom.fieldRef.fieldPath: Unsupported value: \"metadata.nom\""])]
#[case::env_label(json!({"env": [{"name": "a", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['x']"}}}]}), &[])]
#[case::env_key(json!({"env": [{"name": "a", "valueFrom": {"configMapKeyRef": {"name": "m"}}}]}), &["env[0].valueFrom.configMapKeyRef.key: Required value"])]
#[case::env_from(json!({"envFrom": [{}]}), &["envFrom[0]: Invalid value: \"\": must specify one of: `configMapRef` or `secretRef`"])]
#[case::mount_unknown(json!({"volumeMounts": [{"name": "w", "mountPath": "/x"}]}), &["volumeMounts[0].name: Not found: \"w\""])]
#[case::mount_path(json!({"volumeMounts": [{"name": "v"}]}), &["volumeMounts[0].mountPath: Required value"])]
#[case::mount_twice(json!({"volumeMounts": [{"name": "v", "mountPath": "/x"}, {"name": "v", "mountPath": "/x"}]}),
    &["volumeMounts[1].mountPath: Invalid value: \"/x\": must be unique"])]
#[case::probe_empty(json!({"livenessProbe": {}}), &["livenessProbe: Required value: must specify a handler type"])]
#[case::probe_two(json!({"livenessProbe": {"tcpSocket": {"port": 80}, "exec": {"command": ["x"]}}}),
    &["livenessProbe.tcpSocket: Forbidden: may not specify more than 1 handler type"])]
#[case::probe_port(json!({"readinessProbe": {"httpGet": {"port": 0}}}), &["readinessProbe.httpGet.port: Invalid value: 0: must be between 1 and 65535"])]
#[case::probe_success(json!({"livenessProbe": {"tcpSocket": {"port": 80}, "successThreshold": 2}}),
    &["livenessProbe.successThreshold: Invalid value: 2: must be 1"])]
#[case::probe_negative(json!({"readinessProbe": {"tcpSocket": {"port": "http"}, "periodSeconds": -1}}),
    &["readinessProbe.periodSeconds: Invalid value: -1: must be greater than or equal to 0"])]
#[case::quantity(json!({"resources": {"limits": {"cpu": "fast"}}}), &["resources.limits[cpu]: Invalid value: \"fast\": must be a quantity", "resources.requests[cpu]: Invalid value: \"fast\""])]
#[case::over_limit(json!({"resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "1500m"}}}),
    &["resources.requests[cpu]: Invalid value: \"1500m\": must be less than or equal to cpu limit of 1"])]
fn container_rules(#[case] fields: Value, #[case] expected: &[&str]) {
    let container = merged(json!({"name": "a", "image": "x"}), &fields);
    let prefixed: Vec<String> = expected
        .iter()
        .map(|text| format!("spec.containers[0].{text}"))
        .collect();
    let expected: Vec<&str> = prefixed.iter().map(String::as_str).collect();
    assert_create(
        "",
        "Pod",
        merged(pod(), &json!({"spec": {"containers": [container]}})),
        &expected,
    );
}

#[rstest]
#[case::image(json!({"containers": [{"name": "a", "image": "y", "imagePullPolicy": "Always"}]}), &[])]
#[case::deadline(json!({"activeDeadlineSeconds": 5}), &[])]
#[case::toleration_added(json!({"tolerations": [{"key": "a", "operator": "Exists"}, {"key": "b", "operator": "Exists"}]}), &[])]
#[case::toleration_removed(json!({"tolerations": null}), &["spec.tolerations: Forbidden"])]
#[case::bound(json!({"nodeName": "n"}), &[])]
#[case::command(json!({"containers": [{"name": "a", "image": "x", "command": ["y"]}]}),
    &["spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`"])]
#[case::hostname(json!({"hostname": "h"}), &["spec: Forbidden: pod updates may not change"])]
fn pod_changes(#[case] change: Value, #[case] expected: &[&str]) {
    let old = merged(
        pod(),
        &json!({"spec": {"tolerations": [{"key": "a", "operator": "Exists"}]}}),
    );
    let new = merged(old.clone(), &json!({"spec": change}));
    assert_update("", "Pod", old, new, expected);
}

#[test]
fn a_bound_pod_stays_on_its_node() {
    let old = merged(pod(), &json!({"spec": {"nodeName": "a"}}));
    let new = merged(old.clone(), &json!({"spec": {"nodeName": "b"}}));
    assert_update("", "Pod", old, new, &["spec: Forbidden"]);
}

#[rstest]
#[case(json!({}), &[])]
#[case(json!({"ports": []}), &["spec.ports: Required value"])]
#[case(json!({"ports": [], "clusterIP": "None"}), &[])]
#[case(json!({"ports": [{"port": 0}]}), &["spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive", "spec.ports[0].targetPort"])]
#[case(json!({"ports": [{"port": 80}, {"port": 81}]}), &["spec.ports[0].name: Required value", "spec.ports[1].name: Required value"])]
#[case(json!({"ports": [{"port": 80, "name": "a"}, {"port": 81, "name": "a"}]}), &["spec.ports[1].name: Duplicate value: \"a\""])]
#[case(json!({"ports": [{"port": 80, "name": "a"}, {"port": 80, "name": "b"}]}), &["spec.ports[1]: Duplicate value: {\"port\":80,\"protocol\":\"TCP\"}"])]
#[case(json!({"ports": [{"port": 80, "name": "a"}, {"port": 80, "name": "b", "protocol": "UDP"}]}), &[])]
#[case(json!({"ports": [{"port": 80, "protocol": "ICMP"}]}), &["spec.ports[0].protocol: Unsupported value: \"ICMP\""])]
#[case(json!({"ports": [{"port": 80, "nodePort": 30000}]}), &["spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'"])]
#[case(json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30000}]}), &[])]
#[case(json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 80}]}),
    &["spec.ports[0].nodePort: Invalid value: 80: provided port is not in the valid range. The range of valid ports is 30000-32767"])]
#[case(json!({"type": "Cluster"}), &["spec.type: Unsupported value: \"Cluster\""])]
#[case(json!({"type": "ExternalName"}), &["spec.externalName: Required value"])]
#[case(json!({"type": "ExternalName", "externalName": "example.org."}), &[])]
#[case(json!({"type": "ExternalName", "externalName": "a b"}), &["spec.externalName: Invalid value: \"a b\""])]
#[case(json!({"clusterIP": "10.0.0.256"}), &["spec.clusterIP: Invalid value: \"10.0.0.256\": must be a valid IP address"])]
#[case(json!({"clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.2"]}), &["spec.clusterIPs: Invalid value: [\"10.0.0.2\"]: first value must match `clusterIP`"])]
#[case(json!({"clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1", "10.0.0.2"]}), &["spec.clusterIPs: Invalid value: [\"10.0.0.1\",\"10.0.0.2\"]: may specify no more than one IP for each IP family"])]
#[case(json!({"clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1", "fd00::1"], "ipFamilies": ["IPv4", "IPv6"]}), &[])]
#[case(json!({"clusterIP": "fd00::1", "clusterIPs": ["fd00::1"], "ipFamilies": ["IPv4"]}),
    &["spec.clusterIPs[0]: Invalid value: \"fd00::1\": expected an IPv4 value as indicated by `ipFamilies[0]`"])]
#[case(json!({"ipFamilies": ["IPv5"]}), &["spec.ipFamilies[0]: Unsupported value: \"IPv5\": supported values: \"IPv4\", \"IPv6\""])]
#[case(json!({"ipFamilies": ["IPv4", "IPv4"]}), &["spec.ipFamilies[1]: Duplicate value: \"IPv4\""])]
#[case(json!({"type": "NodePort", "clusterIP": "None"}), &["spec.clusterIPs[0]: Invalid value: \"None\": may not be set to 'None' for NodePort services"])]
#[case(json!({"externalTrafficPolicy": "Local"}), &["spec.externalTrafficPolicy: Invalid value: \"Local\": may only be set for externally-accessible services"])]
#[case(json!({"sessionAffinity": "Cookie"}), &["spec.sessionAffinity: Unsupported value: \"Cookie\": supported values: \"ClientIP\", \"None\""])]
#[case(json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 90000}}}),
    &["spec.sessionAffinityConfig.clientIP.timeoutSeconds: Invalid value: 90000"])]
#[case(json!({"externalIPs": ["127.0.0.1"]}), &["spec.externalIPs[0]: Invalid value: \"127.0.0.1\": may not be in the loopback range"])]
#[case(json!({"loadBalancerSourceRanges": ["10.0.0.0/8"]}), &["spec.loadBalancerSourceRanges: Forbidden"])]
#[case(json!({"selector": {"a": "b c"}}), &["spec.selector[a]: Invalid value: \"b c\""])]
fn service_rules(#[case] spec: Value, #[case] expected: &[&str]) {
    let base = json!({"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}]}});
    assert_create(
        "",
        "Service",
        merged(base, &json!({"spec": spec})),
        expected,
    );
}

#[rstest]
#[case(json!({"clusterIP": "10.0.0.2", "clusterIPs": ["10.0.0.2"]}), &["spec.clusterIPs[0]: Invalid value: \"10.0.0.2\": may not change once set"])]
#[case(json!({"clusterIP": null, "clusterIPs": null}), &["spec.clusterIPs[0]: Invalid value: \"\": primary clusterIP can not be unset"])]
#[case(json!({"type": "NodePort"}), &[])]
#[case(json!({"type": "ExternalName", "externalName": "x", "clusterIP": null, "clusterIPs": null, "internalTrafficPolicy": null}), &[])]
fn service_changes(#[case] change: Value, #[case] expected: &[&str]) {
    let old = json!({"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}], "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"]}});
    let new = merged(old.clone(), &json!({"spec": change}));
    assert_update("", "Service", old, new, expected);
}

#[rstest]
#[case("IPv4", json!(["10.0.0.1"]), &[])]
#[case("IPv6", json!(["fd00::1"]), &[])]
#[case("IPv4", json!(["fd00::1"]), &["endpoints[0].addresses[0]: Invalid value: \"fd00::1\": must be an IPv4 address"])]
#[case("IPv4", json!(["127.0.0.1"]), &["endpoints[0].addresses[0]: Invalid value: \"127.0.0.1\": may not be in the loopback range"])]
#[case("IPv4", json!([]), &["endpoints[0].addresses: Required value: must contain at least 1 address"])]
#[case("FQDN", json!(["a.b"]), &[])]
#[case("IP", json!(["10.0.0.1"]), &["addressType: Unsupported value: \"IP\""])]
fn endpoint_slice_rules(#[case] kind: &str, #[case] addresses: Value, #[case] expected: &[&str]) {
    assert_create(
        "discovery.k8s.io",
        "EndpointSlice",
        json!({"metadata": {"name": "e"}, "addressType": kind, "endpoints": [{"addresses": addresses}]}),
        expected,
    );
}

#[test]
fn the_address_type_of_a_slice_stays() {
    let slice = |kind: &str| json!({"metadata": {"name": "e"}, "addressType": kind});
    assert_update(
        "discovery.k8s.io",
        "EndpointSlice",
        slice("IPv4"),
        slice("IPv6"),
        &["addressType: Invalid value: \"IPv6\": field is immutable"],
    );
}

fn deployment() -> Value {
    json!({"metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": {"app": "a"}},
        "template": {"metadata": {"labels": {"app": "a"}}, "spec": {"containers": [{"name": "a", "image": "x"}]}}}})
}

#[rstest]
#[case(json!({}), &[])]
#[case(json!({"selector": null}), &["spec.selector: Required value"])]
#[case(json!({"selector": {"matchLabels": null}}), &["spec.selector: Invalid value: {}: empty selector is invalid for deployment"])]
#[case(json!({"selector": {"matchLabels": {"app": "b"}}}), &["spec.template.metadata.labels: Invalid value: {\"app\":\"a\"}: `selector` does not match template `labels`"])]
#[case(json!({"replicas": -1}), &["spec.replicas: Invalid value: -1: must be greater than or equal to 0"])]
#[case(json!({"template": {"spec": {"restartPolicy": "Never"}}}), &["spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\""])]
#[case(json!({"template": {"spec": {"containers": [{"name": "a"}]}}}), &["spec.template.spec.containers[0].image: Required value"])]
#[case(json!({"strategy": {"type": "Slow"}}), &["spec.strategy.type: Unsupported value: \"Slow\""])]
#[case(json!({"strategy": {"type": "Recreate", "rollingUpdate": {"maxSurge": 1}}}), &["spec.strategy.rollingUpdate: Forbidden"])]
#[case(json!({"strategy": {"rollingUpdate": {"maxSurge": 0, "maxUnavailable": "0%"}}}),
    &["spec.strategy.rollingUpdate.maxUnavailable: Invalid value: \"0%\": may not be 0 when `maxSurge` is 0"])]
#[case(json!({"strategy": {"rollingUpdate": {"maxSurge": "half"}}}), &["spec.strategy.rollingUpdate.maxSurge: Invalid value: \"half\": a valid percent"])]
#[case(json!({"selector": {"matchLabels": null, "matchExpressions": [{"key": "app", "operator": "In", "values": ["a"]}]}}), &[])]
#[case(json!({"selector": {"matchExpressions": [{"key": "app", "operator": "Is"}]}}),
    &["spec.selector.matchExpressions[0].operator: Invalid value: \"Is\": not a valid selector operator", "spec.template.metadata.labels"])]
fn deployment_rules(#[case] spec: Value, #[case] expected: &[&str]) {
    assert_create(
        "apps",
        "Deployment",
        merged(deployment(), &json!({"spec": spec})),
        expected,
    );
}

#[rstest]
#[case("Deployment")]
#[case("ReplicaSet")]
#[case("DaemonSet")]
fn selectors_of_workloads_stay(#[case] kind: &str) {
    let labels = json!({"app": "a", "more": "b"});
    let old = merged(
        deployment(),
        &json!({"spec": {"template": {"metadata": {"labels": labels}}}}),
    );
    let new = merged(
        old.clone(),
        &json!({"spec": {"selector": {"matchLabels": {"app": null, "more": "b"}}}}),
    );
    assert_update(
        "apps",
        kind,
        old,
        new,
        &["spec.selector: Invalid value: {\"matchLabels\":{\"more\":\"b\"}}: field is immutable"],
    );
}

#[rstest]
#[case(json!({"replicas": 5}), &[])]
#[case(json!({"serviceName": "other"}), &["spec: Forbidden: updates to statefulset spec for fields other than 'replicas'"])]
fn stateful_set_changes(#[case] change: Value, #[case] expected: &[&str]) {
    let new = merged(deployment(), &json!({"spec": change}));
    assert_update("apps", "StatefulSet", deployment(), new, expected);
}

#[rstest]
#[case(json!({"ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}}]}]}), &[])]
#[case(json!({"ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["11.0.0.0/16"]}}]}]}),
    &["spec.ingress[0].from[0].ipBlock.except[0]: Invalid value: \"11.0.0.0/16\": must be a strict subset of `cidr`"])]
#[case(json!({"ingress": [{"from": [{"ipBlock": {"cidr": "fd00::/8", "except": ["fd00::/8"]}}]}]}),
    &["spec.ingress[0].from[0].ipBlock.except[0]: Invalid value: \"fd00::/8\": must be a strict subset"])]
#[case(json!({"ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0"}}]}]}), &["spec.ingress[0].from[0].ipBlock.cidr: Invalid value: \"10.0.0.0\": must be a valid CIDR"])]
#[case(json!({"ingress": [{"from": [{}]}]}), &["spec.ingress[0].from[0]: Required value: must specify a peer"])]
#[case(json!({"egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}, "podSelector": {}}]}]}),
    &["spec.egress[0].to[0]: Forbidden: may not specify both ipBlock and another peer"])]
#[case(json!({"ingress": [{"ports": [{"port": 80, "endPort": 90}]}]}), &[])]
#[case(json!({"ingress": [{"ports": [{"port": 80, "endPort": 70}]}]}), &["spec.ingress[0].ports[0].endPort: Invalid value: 70: must be greater than or equal to `port`"])]
#[case(json!({"ingress": [{"ports": [{"port": "http", "endPort": 70}]}]}), &["spec.ingress[0].ports[0].endPort: Invalid value: 70: may not be specified when `port` is non-numeric"])]
#[case(json!({"ingress": [{"ports": [{"endPort": 70}]}]}), &["spec.ingress[0].ports[0].endPort: Invalid value: 70: may not be specified when `port` is not specified"])]
#[case(json!({"policyTypes": ["Both"]}), &["spec.policyTypes[0]: Unsupported value: \"Both\": supported values: \"Egress\", \"Ingress\""])]
fn network_policy_rules(#[case] spec: Value, #[case] expected: &[&str]) {
    assert_create(
        "networking.k8s.io",
        "NetworkPolicy",
        json!({"metadata": {"name": "n"}, "spec": spec}),
        expected,
    );
}

fn ingress_with(path: Value) -> Value {
    let base = json!({"path": "/", "pathType": "Prefix", "backend": {"service": {"name": "s", "port": {"number": 80}}}});
    json!({"metadata": {"name": "i"}, "spec": {"rules": [{"http": {"paths": [merged(base, &path)]}}]}})
}

#[rstest]
#[case(json!({}), &[])]
#[case(json!({"path": "x"}), &["path: Invalid value: \"x\": must be an absolute path"])]
#[case(json!({"path": "/a//b"}), &["path: Invalid value: \"/a//b\": must not contain '//'"])]
#[case(json!({"pathType": null}), &["pathType: Required value: pathType must be specified"])]
#[case(json!({"pathType": "Regex"}), &["pathType: Unsupported value: \"Regex\""])]
#[case(json!({"backend": {"service": null}}), &["backend: Required value"])]
#[case(json!({"backend": {"service": {"port": {"number": null}}}}), &["backend.service.port: Required value: port name or number is required"])]
#[case(json!({"backend": {"service": {"name": null}}}), &["backend.service.name: Required value"])]
fn ingress_rules(#[case] path: Value, #[case] expected: &[&str]) {
    let prefixed: Vec<String> = expected
        .iter()
        .map(|text| format!("spec.rules[0].http.paths[0].{text}"))
        .collect();
    let expected: Vec<&str> = prefixed.iter().map(String::as_str).collect();
    assert_create(
        "networking.k8s.io",
        "Ingress",
        ingress_with(path),
        &expected,
    );
}

#[test]
fn an_ingress_needs_rules_or_a_backend() {
    assert_create(
        "networking.k8s.io",
        "Ingress",
        json!({"metadata": {"name": "i"}, "spec": {}}),
        &["spec: Invalid value: \"\": either `defaultBackend` or `rules` must be specified"],
    );
}

#[rstest]
#[case(json!({"podCIDRs": ["10.0.0.0/24", "fd00::/64"]}), &[])]
#[case(json!({"podCIDRs": ["10.0.0.0"]}), &["spec.podCIDRs[0]: Invalid value: \"10.0.0.0\": must be a valid CIDR"])]
#[case(json!({"podCIDRs": ["10.0.0.0/24", "10.0.1.0/24"]}), &["spec.podCIDRs: Invalid value"])]
#[case(json!({"taints": [{"key": "a", "effect": "Never"}]}), &["spec.taints[0].effect: Unsupported value: \"Never\""])]
fn node_rules(#[case] spec: Value, #[case] expected: &[&str]) {
    assert_create(
        "",
        "Node",
        json!({"metadata": {"name": "n"}, "spec": spec}),
        expected,
    );
}

#[test]
fn a_nodes_range_is_set_once() {
    let node = |range: Option<&str>| json!({"metadata": {"name": "n"}, "spec": {"podCIDR": range}});
    assert_update("", "Node", node(None), node(Some("10.0.0.0/24")), &[]);
    assert_update(
        "",
        "Node",
        node(Some("10.0.0.0/24")),
        node(Some("10.0.1.0/24")),
        &[
            "spec.podCIDRs: Forbidden: node updates may not change podCIDR except from \"\" to valid",
        ],
    );
}

#[rstest]
#[case(json!({"data": {"a b": "x"}}), &["data[a b]: Invalid value: \"a b\": a valid config key"])]
#[case(json!({"data": {"..": "x"}}), &["data[..]: Invalid value: \"..\": must not be '..'"])]
#[case(json!({"data": {"a": "x"}, "binaryData": {"a": "eA=="}}), &["data[a]: Invalid value: \"a\": duplicate of key"])]
#[case(json!({"binaryData": {"a": "?"}}), &["binaryData[a]: Invalid value: \"<hidden>\": must be base64"])]
#[case(json!({"data": {"a": "x".repeat(1 << 20), "b": "y"}}), &["Too long: may not be more than 1048576 bytes"])]
fn config_map_rules(#[case] fields: Value, #[case] expected: &[&str]) {
    assert_create(
        "",
        "ConfigMap",
        merged(json!({"metadata": {"name": "m"}}), &fields),
        expected,
    );
}

#[test]
fn immutable_maps_and_secrets_stay() {
    let old = json!({"metadata": {"name": "m"}, "immutable": true, "data": {"a": "eA=="}});
    let new = json!({"metadata": {"name": "m"}, "data": {"a": "eQ=="}});
    let expected = &[
        "immutable: Forbidden: field is immutable when `immutable` is set",
        "data: Forbidden: field is immutable when `immutable` is set",
    ];
    assert_update("", "ConfigMap", old.clone(), new.clone(), expected);
    assert_update("", "Secret", old, new, expected);
}

#[rstest]
#[case(json!({"type": "kubernetes.io/tls", "data": {"tls.crt": ""}}), &["data[tls.key]: Required value"])]
#[case(json!({"data": {"a": "not base64!"}}), &["data[a]: Invalid value: \"<hidden>\": must be base64"])]
fn secret_rules(#[case] fields: Value, #[case] expected: &[&str]) {
    assert_create(
        "",
        "Secret",
        merged(json!({"metadata": {"name": "m"}}), &fields),
        expected,
    );
}

fn definition() -> Value {
    json!({"metadata": {"name": "foos.example.org"}, "spec": {"group": "example.org", "scope": "Namespaced",
        "names": {"plural": "foos", "kind": "Foo"},
        "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object"}}}]}})
}

#[rstest]
#[case(json!({}), &[])]
#[case(json!({"metadata": {"name": "bars.example.org"}}), &["metadata.name: Invalid value: \"bars.example.org\": must be spec.names.plural+\".\"+spec.group"])]
#[case(json!({"metadata": {"name": "foos.example"}, "spec": {"group": "example"}}), &["spec.group: Invalid value: \"example\": should be a domain with at least one dot"])]
#[case(json!({"spec": {"scope": "Global"}}), &["spec.scope: Unsupported value: \"Global\""])]
#[case(json!({"spec": {"versions": []}}), &["spec.versions: Required value"])]
#[case(json!({"spec": {"versions": [{"name": "v1", "served": true, "storage": false, "schema": {"openAPIV3Schema": {"type": "object"}}}]}}),
    &["spec.versions: Invalid value: [\"v1\"]: must have exactly one version marked as storage version"])]
#[case(json!({"spec": {"versions": [{"name": "v1", "served": true, "storage": true}]}}),
    &["spec.versions[0].schema.openAPIV3Schema: Required value: schemas are required"])]
fn definition_rules(#[case] change: Value, #[case] expected: &[&str]) {
    assert_create(
        "apiextensions.k8s.io",
        "CustomResourceDefinition",
        merged(definition(), &change),
        expected,
    );
}

#[test]
fn the_scope_of_a_definition_stays() {
    let new = merged(definition(), &json!({"spec": {"scope": "Cluster"}}));
    assert_update(
        "apiextensions.k8s.io",
        "CustomResourceDefinition",
        definition(),
        new,
        &["spec.scope: Invalid value: \"Cluster\": field is immutable"],
    );
}

#[rstest]
#[case(json!({"leaseDurationSeconds": 40, "holderIdentity": "n"}), &[])]
#[case(json!({"leaseDurationSeconds": 0}), &["spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0"])]
fn lease_rules(#[case] spec: Value, #[case] expected: &[&str]) {
    assert_create(
        "coordination.k8s.io",
        "Lease",
        json!({"metadata": {"name": "l"}, "spec": spec}),
        expected,
    );
}

fn anything() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        Just(json!(true)),
        Just(json!(-1)),
        Just(json!(1.5)),
        Just(json!("x")),
        Just(json!("None")),
    ];
    let key = proptest::sample::select(vec![
        "metadata",
        "name",
        "labels",
        "ownerReferences",
        "spec",
        "containers",
        "ports",
        "port",
        "env",
        "volumes",
        "template",
        "selector",
        "matchExpressions",
        "rules",
        "http",
        "paths",
        "clusterIPs",
        "ingress",
        "from",
        "ipBlock",
        "versions",
        "schema",
        "resources",
        "limits",
        "livenessProbe",
        "httpGet",
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
    fn no_object_makes_validation_panic(old in anything(), new in anything()) {
        for kind in Schemas::builtin().kinds() {
            update(&kind.gvk, &old, &new);
        }
    }
}
