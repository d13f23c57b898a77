//! The REST conventions, by requests to the router.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail loudly")]

mod support;

use serde_json::json;
use support::{Cluster, pod};

const PODS: &str = "/api/v1/namespaces/default/pods";

#[tokio::test]
async fn what_is_created_can_be_read_listed_and_deleted() {
    let c = Cluster::new().await;
    let created = c.post(PODS, &pod("a")).await;
    assert_eq!(created.code, 201);
    let created = created.ok();
    assert_eq!(created["status"]["phase"], "Pending");
    assert_eq!(created["metadata"]["namespace"], "default");
    assert_eq!(created["spec"]["serviceAccountName"], "default");
    assert_eq!(c.get(&format!("{PODS}/a")).await.ok(), created);
    let list = c.get("/api/v1/pods").await.ok();
    assert_eq!(list["kind"], "PodList");
    assert_eq!(list["items"], json!([created]));
    c.delete(&format!("{PODS}/a")).await.ok();
    let message = c.get(&format!("{PODS}/a")).await.fails(404, "NotFound");
    assert_eq!(message, "pods \"a\" not found");
}

#[tokio::test]
async fn a_write_based_on_an_old_revision_conflicts() {
    let c = Cluster::new().await;
    let path = "/api/v1/namespaces/default/configmaps";
    let one = c
        .post(
            path,
            &json!({"metadata": {"name": "m"}, "data": {"k": "1"}}),
        )
        .await
        .ok();
    let mut two = one.clone();
    two["data"]["k"] = "2".into();
    c.put(&format!("{path}/m"), &two).await.ok();
    let message = c
        .put(&format!("{path}/m"), &two)
        .await
        .fails(409, "Conflict");
    assert_eq!(
        message,
        "Operation cannot be fulfilled on configmaps \"m\": the object has been modified; please apply your changes to the latest version and try again"
    );
}

#[tokio::test]
async fn a_watch_shows_what_exists_and_then_changes() {
    let c = Cluster::new().await;
    c.post(PODS, &pod("a")).await.ok();
    let mut watch = c.watch(&format!("{PODS}?watch=true")).await;
    assert_eq!(watch.event().await, ("ADDED".into(), "a".into()));
    c.post(PODS, &pod("b")).await.ok();
    assert_eq!(watch.event().await, ("ADDED".into(), "b".into()));
    c.delete(&format!("{PODS}/a")).await.ok();
    assert_eq!(watch.event().await, ("DELETED".into(), "a".into()));
}

/// Makes a pod that a kubelet has: deletion takes its grace period.
async fn bound(c: &Cluster, name: &str) {
    c.post(PODS, &pod(name)).await.ok();
    let binding = json!({"target": {"kind": "Node", "name": "n1"}});
    let answer = c.post(&format!("{PODS}/{name}/binding"), &binding).await;
    assert_eq!(answer.code, 201, "{}", answer.text);
}

#[tokio::test]
async fn a_binding_places_a_pod_once() {
    let c = Cluster::new().await;
    bound(&c, "a").await;
    let got = c.get(&format!("{PODS}/a")).await.ok();
    assert_eq!(got["spec"]["nodeName"], "n1");
    assert_eq!(got["status"]["conditions"][0]["type"], "PodScheduled");
    let again = json!({"target": {"kind": "Node", "name": "n2"}});
    let message = c
        .post(&format!("{PODS}/a/binding"), &again)
        .await
        .fails(409, "Conflict");
    assert!(
        message.ends_with("pod a is already assigned to node \"n1\""),
        "{message}"
    );
}

#[tokio::test]
async fn a_bound_pod_is_deleted_in_two_steps_and_an_unbound_one_at_once() {
    let c = Cluster::new().await;
    bound(&c, "a").await;
    let marked = c.delete(&format!("{PODS}/a")).await.ok();
    assert_eq!(marked["metadata"]["deletionGracePeriodSeconds"], 30);
    assert!(marked["metadata"]["deletionTimestamp"].is_string());
    c.get(&format!("{PODS}/a")).await.ok();
    // The kubelet's last word.
    c.delete(&format!("{PODS}/a?gracePeriodSeconds=0"))
        .await
        .ok();
    c.get(&format!("{PODS}/a")).await.fails(404, "NotFound");
    c.post(PODS, &pod("b")).await.ok();
    c.delete(&format!("{PODS}/b")).await.ok();
    c.get(&format!("{PODS}/b")).await.fails(404, "NotFound");
}

#[tokio::test]
async fn finalizers_hold_an_object_until_the_last_is_removed() {
    let c = Cluster::new().await;
    let path = "/api/v1/namespaces/default/configmaps";
    let held = json!({"metadata": {"name": "m", "finalizers": ["example.com/hold"]}});
    c.post(path, &held).await.ok();
    let marked = c.delete(&format!("{path}/m")).await.ok();
    assert!(marked["metadata"]["deletionTimestamp"].is_string());
    let more = json!({"metadata": {"finalizers": ["example.com/hold", "example.com/more"]}});
    let message = c
        .patch(&format!("{path}/m"), "merge", &more)
        .await
        .fails(422, "Invalid");
    assert!(
        message.contains("metadata.finalizers: Forbidden"),
        "{message}"
    );
    let free = json!({"metadata": {"finalizers": null}});
    c.patch(&format!("{path}/m"), "merge", &free).await.ok();
    c.get(&format!("{path}/m")).await.fails(404, "NotFound");
}

#[tokio::test]
async fn propagation_adds_its_finalizer() {
    let c = Cluster::new().await;
    let path = "/api/v1/namespaces/default/configmaps";
    for (policy, finalizer) in [("Foreground", "foregroundDeletion"), ("Orphan", "orphan")] {
        let name = policy.to_lowercase();
        c.post(path, &json!({"metadata": {"name": name}}))
            .await
            .ok();
        let options =
            json!({"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": policy});
        let marked = c
            .json("DELETE", &format!("{path}/{name}"), &options)
            .await
            .ok();
        assert_eq!(marked["metadata"]["finalizers"], json!([finalizer]));
    }
}

#[tokio::test]
async fn preconditions_protect_another_object_of_the_same_name() {
    let c = Cluster::new().await;
    c.post(PODS, &pod("a")).await.ok();
    let options = json!({"preconditions": {"uid": "other"}});
    c.json("DELETE", &format!("{PODS}/a"), &options)
        .await
        .fails(409, "Conflict");
    c.get(&format!("{PODS}/a")).await.ok();
}

#[tokio::test]
async fn a_namespace_goes_when_it_is_finalized_and_takes_nothing_new_before() {
    let c = Cluster::new().await;
    let spaces = "/api/v1/namespaces";
    c.post(PODS.replace("default", "none").as_str(), &pod("a"))
        .await
        .fails(404, "NotFound");
    let made = c
        .post(spaces, &json!({"metadata": {"name": "x"}}))
        .await
        .ok();
    assert_eq!(made["status"]["phase"], "Active");
    assert_eq!(
        made["metadata"]["labels"]["kubernetes.io/metadata.name"],
        "x"
    );
    let marked = c.delete(&format!("{spaces}/x")).await.ok();
    assert_eq!(marked["status"]["phase"], "Terminating");
    let message = c
        .post(&PODS.replace("default", "x"), &pod("a"))
        .await
        .fails(403, "Forbidden");
    assert!(
        message.contains("because it is being terminated"),
        "{message}"
    );
    let mut finalized = c.get(&format!("{spaces}/x")).await.ok();
    finalized["spec"] = json!({"finalizers": []});
    c.put(&format!("{spaces}/x/finalize"), &finalized)
        .await
        .ok();
    c.get(&format!("{spaces}/x")).await.fails(404, "NotFound");
}

#[tokio::test]
async fn generation_counts_changes_of_the_spec_only() {
    let c = Cluster::new().await;
    let path = "/apis/apps/v1/namespaces/default/deployments";
    let deployment = json!({
        "metadata": {"name": "d"},
        "spec": {
            "selector": {"matchLabels": {"a": "b"}},
            "template": {
                "metadata": {"labels": {"a": "b"}},
                "spec": {"containers": [{"name": "c", "image": "i"}]},
            },
        },
    });
    let made = c.post(path, &deployment).await.ok();
    assert_eq!(made["metadata"]["generation"], 1);
    assert_eq!(made["spec"]["replicas"], 1);
    let path = format!("{path}/d");
    let status = json!({"status": {"replicas": 1}, "spec": {"replicas": 9}});
    let got = c
        .patch(&format!("{path}/status"), "merge", &status)
        .await
        .ok();
    assert_eq!(got["metadata"]["generation"], 1);
    assert_eq!(got["spec"]["replicas"], 1, "status writes nothing else");
    assert_eq!(got["status"]["replicas"], 1);
    let both = json!({"status": {"replicas": 7}, "spec": {"replicas": 2}});
    let got = c.patch(&path, "strategic", &both).await.ok();
    assert_eq!(got["metadata"]["generation"], 2);
    assert_eq!(got["status"]["replicas"], 1, "status is written there only");
    let label = json!({"metadata": {"labels": {"x": "y"}}});
    let got = c.patch(&path, "merge", &label).await.ok();
    assert_eq!(got["metadata"]["generation"], 2);
    let before = got["metadata"]["resourceVersion"].clone();
    let got = c.patch(&path, "merge", &label).await.ok();
    assert_eq!(
        got["metadata"]["resourceVersion"], before,
        "nothing changed"
    );
    let scale = c.get(&format!("{path}/scale")).await.ok();
    assert_eq!(scale["kind"], "Scale");
    assert_eq!(scale["spec"]["replicas"], 2);
    assert_eq!(scale["status"]["selector"], "a=b");
    let to_four = json!({"spec": {"replicas": 4}});
    let scale = c
        .patch(&format!("{path}/scale"), "merge", &to_four)
        .await
        .ok();
    assert_eq!(scale["spec"]["replicas"], 4);
    assert_eq!(c.get(&path).await.ok()["metadata"]["generation"], 3);
}

#[tokio::test]
async fn a_list_in_parts_shows_one_state() {
    let c = Cluster::new().await;
    for i in 0..7 {
        c.post(PODS, &pod(&format!("p{i}"))).await.ok();
    }
    let first = c.get(&format!("{PODS}?limit=3")).await.ok();
    assert_eq!(first["items"].as_array().unwrap().len(), 3);
    assert_eq!(first["metadata"]["remainingItemCount"], 4);
    // Changes after the first part do not show in the others.
    c.delete(&format!("{PODS}/p4")).await.ok();
    c.post(PODS, &pod("p5a")).await.ok();
    let mut names = Vec::new();
    let mut token = first["metadata"]["continue"].clone();
    while let Some(next) = token.as_str() {
        let part = c.get(&format!("{PODS}?limit=3&continue={next}")).await.ok();
        assert_eq!(
            part["metadata"]["resourceVersion"],
            first["metadata"]["resourceVersion"]
        );
        for item in part["items"].as_array().unwrap() {
            names.push(item["metadata"]["name"].as_str().unwrap().to_owned());
        }
        token = part["metadata"]["continue"].clone();
    }
    assert_eq!(names, ["p3", "p4", "p5", "p6"]);
    let at = first["metadata"]["resourceVersion"].as_str().unwrap();
    let exact = format!("{PODS}?resourceVersion={at}&resourceVersionMatch=Exact");
    assert_eq!(
        c.get(&exact).await.ok()["items"].as_array().unwrap().len(),
        7
    );
    c.get(&format!("{PODS}?continue=nonsense"))
        .await
        .fails(400, "BadRequest");
}

#[tokio::test]
async fn selectors_restrict_lists_and_watches() {
    let c = Cluster::new().await;
    c.post(PODS, &pod("a")).await.ok();
    bound(&c, "b").await;
    let names = async |query: &str| -> Vec<String> {
        let list = c.get(&format!("/api/v1/pods?{query}")).await.ok();
        let items = list["items"].as_array().unwrap().clone();
        items
            .iter()
            .map(|i| i["metadata"]["name"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(names("labelSelector=app%3Da").await, ["a"]);
    assert_eq!(names("fieldSelector=spec.nodeName%3Dn1").await, ["b"]);
    assert_eq!(names("fieldSelector=spec.nodeName%3D").await, ["a"]);
    assert_eq!(names("fieldSelector=metadata.name!%3Da").await, ["b"]);
    let message = c
        .get("/api/v1/pods?fieldSelector=spec.foo%3Dx")
        .await
        .fails(400, "BadRequest");
    assert!(
        message.contains("field label not supported: spec.foo"),
        "{message}"
    );
    // What comes into or leaves the selection is added and deleted.
    let mut watch = c
        .watch("/api/v1/pods?watch=1&resourceVersion=0&fieldSelector=spec.nodeName%3Dn1")
        .await;
    assert_eq!(watch.event().await, ("ADDED".into(), "b".into()));
    bound(&c, "c").await;
    assert_eq!(watch.event().await, ("ADDED".into(), "c".into()));
    let mut watch = c.watch("/api/v1/pods?watch=1&labelSelector=app%3Da").await;
    assert_eq!(watch.event().await, ("ADDED".into(), "a".into()));
    let label = json!({"metadata": {"labels": {"app": "z"}}});
    c.patch(&format!("{PODS}/a"), "merge", &label).await.ok();
    assert_eq!(watch.event().await, ("DELETED".into(), "a".into()));
}

#[tokio::test]
async fn a_watch_of_a_forgotten_revision_is_told_so() {
    let c = Cluster::new().await;
    let dir = c.dir;
    let first = c.server;
    first.shutdown();
    drop(first);
    // After a restart the history starts anew.
    let server = podwire_apiserver::Server::open(support::config(dir.path()))
        .await
        .unwrap();
    let c = Cluster { dir, server };
    let mut watch = c
        .watch(&format!("{PODS}?watch=true&resourceVersion=1"))
        .await;
    let event = watch.next().await.unwrap();
    assert_eq!(event["type"], "ERROR");
    assert_eq!(event["object"]["code"], 410);
    assert_eq!(event["object"]["reason"], "Expired");
    assert!(watch.next().await.is_none(), "and then it ends");
    let revision = c.get(PODS).await.ok()["metadata"]["resourceVersion"].clone();
    let path = format!(
        "{PODS}?watch=true&resourceVersion={}",
        revision.as_str().unwrap()
    );
    let mut watch = c.watch(&path).await;
    c.post(PODS, &pod("a")).await.ok();
    assert_eq!(watch.event().await, ("ADDED".into(), "a".into()));
}

#[tokio::test]
async fn watches_end_in_time_with_a_bookmark() {
    let c = Cluster::new().await;
    let mut watch = c
        .watch(&format!(
            "{PODS}?watch=true&timeoutSeconds=1&allowWatchBookmarks=true"
        ))
        .await;
    let event = watch.next().await.unwrap();
    assert_eq!(event["type"], "BOOKMARK");
    assert_eq!(event["object"]["kind"], "Pod");
    assert!(watch.next().await.is_none());
}

#[tokio::test]
async fn a_watch_list_marks_the_end_of_what_existed() {
    let c = Cluster::new().await;
    c.post(PODS, &pod("a")).await.ok();
    let mut watch = c
        .watch(&format!("{PODS}?watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true"))
        .await;
    assert_eq!(watch.event().await, ("ADDED".into(), "a".into()));
    let event = watch.next().await.unwrap();
    assert_eq!(event["type"], "BOOKMARK");
    assert_eq!(
        event["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"],
        "true"
    );
}

#[tokio::test]
async fn of_many_writers_with_the_same_revision_one_wins() {
    let c = Cluster::new().await;
    let path = "/api/v1/namespaces/default/configmaps";
    let made = c.post(path, &json!({"metadata": {"name": "m"}})).await.ok();
    let writes = (0..8).map(|i| {
        let mut mine = made.clone();
        mine["data"] = json!({"i": i.to_string()});
        let c = &c;
        async move { c.put(&format!("{path}/m"), &mine).await.code.as_u16() }
    });
    let mut codes = futures::future::join_all(writes).await;
    codes.sort_unstable();
    assert_eq!(codes, [200, 409, 409, 409, 409, 409, 409, 409]);
    // Patches say nothing about the revision: all are done.
    let patches = (0..8).map(|i| {
        let patch = json!({"data": {format!("k{i}"): "v"}});
        let c = &c;
        async move {
            c.patch(&format!("{path}/m"), "merge", &patch)
                .await
                .code
                .as_u16()
        }
    });
    let codes = futures::future::join_all(patches).await;
    assert_eq!(codes, [200; 8]);
    let data = c.get(&format!("{path}/m")).await.ok()["data"].clone();
    assert_eq!(data.as_object().unwrap().len(), 9);
}

#[tokio::test]
async fn unknown_fields_are_refused_told_or_dropped_as_the_client_wishes() {
    let c = Cluster::new().await;
    let mut bad = pod("a");
    bad["spec"]["foo"] = 1.into();
    let message = c
        .post(&format!("{PODS}?fieldValidation=Strict"), &bad)
        .await
        .fails(400, "BadRequest");
    assert_eq!(message, "strict decoding error: unknown field \"spec.foo\"");
    let answer = c
        .post(&format!("{PODS}?fieldValidation=Warn&dryRun=All"), &bad)
        .await;
    assert_eq!(
        answer.headers["warning"],
        "299 - \"unknown field \\\"spec.foo\\\"\""
    );
    assert!(answer.ok()["spec"]["foo"].is_null());
    let answer = c
        .post(&format!("{PODS}?fieldValidation=Ignore"), &bad)
        .await;
    assert!(!answer.headers.contains_key("warning"));
    assert!(answer.ok()["spec"]["foo"].is_null());
    let twice = r#"{"metadata":{"name":"m"},"data":{"a":"1","a":"2"}}"#;
    let json = "application/json";
    let path = "/api/v1/namespaces/default/configmaps?fieldValidation=Strict";
    let message = c
        .call("POST", path, json, json, twice)
        .await
        .fails(400, "BadRequest");
    assert_eq!(message, "strict decoding error: duplicate field \"data.a\"");
}

#[tokio::test]
async fn invalid_objects_are_refused_with_the_fields_path() {
    let c = Cluster::new().await;
    let mut bad = pod("a");
    bad["spec"]["containers"][0]["name"] = "UPPER".into();
    let answer = c.post(PODS, &bad).await;
    assert_eq!(
        answer.body["details"]["causes"][0]["field"],
        "spec.containers[0].name"
    );
    assert_eq!(answer.body["details"]["kind"], "Pod");
    let message = answer.fails(422, "Invalid");
    assert!(
        message.starts_with(
            "Pod \"a\" is invalid: spec.containers[0].name: Invalid value: \"UPPER\": "
        ),
        "{message}"
    );
}

#[tokio::test]
async fn a_dry_run_changes_nothing() {
    let c = Cluster::new().await;
    let answer = c.post(&format!("{PODS}?dryRun=All"), &pod("a")).await;
    assert_eq!(answer.code, 201);
    c.get(&format!("{PODS}/a")).await.fails(404, "NotFound");
    c.post(PODS, &pod("a")).await.ok();
    c.delete(&format!("{PODS}/a?dryRun=All")).await.ok();
    let label = json!({"metadata": {"labels": {"x": "y"}}});
    let tried = c
        .patch(&format!("{PODS}/a?dryRun=All"), "merge", &label)
        .await
        .ok();
    assert_eq!(tried["metadata"]["labels"]["x"], "y");
    let got = c.get(&format!("{PODS}/a")).await.ok();
    assert!(got["metadata"]["labels"]["x"].is_null());
}

#[tokio::test]
async fn generated_names_start_with_the_prefix_and_differ() {
    let c = Cluster::new().await;
    let mut generated = pod("x");
    generated["metadata"] = json!({"generateName": "web-"});
    let one = c.post(PODS, &generated).await.ok();
    let two = c.post(PODS, &generated).await.ok();
    let name = one["metadata"]["name"].as_str().unwrap();
    assert!(name.starts_with("web-") && name.len() == 9, "{name}");
    assert_ne!(one["metadata"]["name"], two["metadata"]["name"]);
}

#[tokio::test]
async fn a_collection_is_deleted_by_selector() {
    let c = Cluster::new().await;
    for name in ["a", "b", "c"] {
        c.post(PODS, &pod(name)).await.ok();
    }
    c.delete(&format!("{PODS}?labelSelector=app+in+(a,b)"))
        .await
        .ok();
    let list = c.get(PODS).await.ok();
    assert_eq!(list["items"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn both_apis_of_events_show_the_same_events() {
    let c = Cluster::new().await;
    let event = json!({
        "metadata": {"name": "e"},
        "involvedObject": {"kind": "Pod", "name": "p", "namespace": "default"},
        "reason": "Started", "message": "it runs", "type": "Normal",
        "source": {"component": "kubelet"}, "count": 1,
    });
    c.post("/api/v1/namespaces/default/events", &event)
        .await
        .ok();
    let new = c
        .get("/apis/events.k8s.io/v1/namespaces/default/events/e")
        .await
        .ok();
    assert_eq!(new["apiVersion"], "events.k8s.io/v1");
    assert_eq!(new["note"], "it runs");
    assert_eq!(new["regarding"]["name"], "p");
    let event = json!({
        "metadata": {"name": "f"}, "eventTime": "2026-01-01T00:00:00.000000Z",
        "regarding": {"kind": "Pod", "name": "q", "namespace": "default"},
        "reason": "Killing", "note": "stopping", "type": "Normal", "action": "Stop",
        "reportingController": "kubelet", "reportingInstance": "n1",
    });
    c.post("/apis/events.k8s.io/v1/namespaces/default/events", &event)
        .await
        .ok();
    let list = c
        .get("/api/v1/events?fieldSelector=involvedObject.name%3Dq,reason%3DKilling")
        .await
        .ok();
    assert_eq!(list["items"][0]["message"], "stopping");
    assert_eq!(list["items"][0]["reportingComponent"], "kubelet");
    let list = c
        .get("/apis/events.k8s.io/v1/events?fieldSelector=regarding.name%3Dp")
        .await
        .ok();
    assert_eq!(list["items"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_secrets_plain_strings_are_stored_encoded() {
    let c = Cluster::new().await;
    let secret = json!({"metadata": {"name": "s"}, "stringData": {"k": "hello"}});
    let made = c
        .post("/api/v1/namespaces/default/secrets", &secret)
        .await
        .ok();
    assert_eq!(made["data"]["k"], "aGVsbG8=");
    assert!(made.get("stringData").is_none());
}

#[tokio::test]
async fn metadata_only_clients_get_metadata_only() {
    let c = Cluster::new().await;
    c.post(PODS, &pod("a")).await.ok();
    let accept = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
    let json = "application/json";
    let list = c.call("GET", PODS, json, accept, "").await.ok();
    assert_eq!(list["kind"], "PartialObjectMetadataList");
    assert_eq!(list["items"][0]["kind"], "PartialObjectMetadata");
    assert!(list["items"][0]["spec"].is_null());
    let accept = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
    let mut watch = c.watch_as(&format!("{PODS}?watch=true"), accept).await;
    let event = watch.next().await.unwrap();
    assert_eq!(event["object"]["kind"], "PartialObjectMetadata");
    assert_eq!(event["object"]["metadata"]["name"], "a");
    assert!(event["object"]["spec"].is_null());
}

#[tokio::test]
async fn requests_that_make_no_sense_get_readable_statuses() {
    let c = Cluster::new().await;
    let json = "application/json";
    c.get("/api/v1/unknowns").await.fails(404, "NotFound");
    c.get("/apis/example.com/v1/things")
        .await
        .fails(404, "NotFound");
    c.post("/api/v1/pods", &pod("a"))
        .await
        .fails(405, "MethodNotAllowed");
    c.call("POST", PODS, json, json, "{broken")
        .await
        .fails(400, "BadRequest");
    c.call("POST", PODS, "text/plain", json, "x")
        .await
        .fails(415, "UnsupportedMediaType");
    c.call("GET", PODS, json, "text/xml", "")
        .await
        .fails(406, "NotAcceptable");
    c.post(PODS, &json!([])).await.fails(400, "BadRequest");
    let wrong = json!({"apiVersion": "apps/v1", "kind": "Pod", "metadata": {"name": "a"}});
    let message = c.post(PODS, &wrong).await.fails(400, "BadRequest");
    assert_eq!(
        message,
        "the API version in the data (apps/v1) does not match the expected API version (v1)"
    );
    c.post(PODS, &pod("a")).await.ok();
    let message = c.post(PODS, &pod("a")).await.fails(409, "AlreadyExists");
    assert_eq!(message, "pods \"a\" already exists");
    c.put(&format!("{PODS}/b"), &pod("a"))
        .await
        .fails(404, "NotFound");
    c.put(&format!("{PODS}/a"), &pod("b"))
        .await
        .fails(400, "BadRequest");
    c.get(&format!("{PODS}?resourceVersion=x"))
        .await
        .fails(400, "BadRequest");
    c.get(&format!("{PODS}?labelSelector=a+b+c"))
        .await
        .fails(400, "BadRequest");
    c.patch(&format!("{PODS}/a"), "text/plain", &json!({}))
        .await
        .fails(415, "UnsupportedMediaType");
    let test = json!([{"op": "test", "path": "/metadata/name", "value": "z"}]);
    c.patch(&format!("{PODS}/a"), "json", &test)
        .await
        .fails(422, "Invalid");
    c.get(&format!("{PODS}/a/nothing"))
        .await
        .fails(404, "NotFound");
}

#[tokio::test]
async fn an_eviction_deletes_the_pod() {
    let c = Cluster::new().await;
    c.post(PODS, &pod("a")).await.ok();
    let eviction =
        json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "a"}});
    let answer = c.post(&format!("{PODS}/a/eviction"), &eviction).await;
    assert_eq!(answer.code, 201);
    c.get(&format!("{PODS}/a")).await.fails(404, "NotFound");
}

#[tokio::test]
async fn yaml_is_taken_and_given() {
    let c = Cluster::new().await;
    let yaml = "metadata:\n  name: m\ndata:\n  a: 'true'\n";
    let path = "/api/v1/namespaces/default/configmaps";
    let answer = c
        .call("POST", path, "application/yaml", "application/yaml", yaml)
        .await;
    assert_eq!(answer.code, 201, "{}", answer.text);
    assert_eq!(answer.headers["content-type"], "application/yaml");
    assert!(answer.text.contains("name: m"), "{}", answer.text);
    assert_eq!(c.get(&format!("{path}/m")).await.ok()["data"]["a"], "true");
}

#[tokio::test]
async fn every_cluster_has_its_namespaces_and_the_way_to_the_server() {
    let c = Cluster::new().await;
    for name in ["default", "kube-system", "kube-public", "kube-node-lease"] {
        c.get(&format!("/api/v1/namespaces/{name}")).await.ok();
    }
    let service = c
        .get("/api/v1/namespaces/default/services/kubernetes")
        .await
        .ok();
    assert_eq!(service["spec"]["clusterIP"], "10.96.0.1");
    let slice = c
        .get("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes")
        .await
        .ok();
    assert_eq!(slice["endpoints"][0]["addresses"], json!(["192.168.64.2"]));
    assert_eq!(slice["ports"][0]["port"], 6443);
}

#[tokio::test]
async fn no_document_makes_the_server_fail() {
    let c = Cluster::new().await;
    let definition = json!({
        "metadata": {"name": "things.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced",
            "names": {"plural": "things", "singular": "thing", "kind": "Thing"},
            "versions": [{
                "name": "v1", "served": true, "storage": true,
                "subresources": {"status": {}, "scale": {
                    "specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas",
                }},
                "schema": {"openAPIV3Schema": {
                    "type": "object", "x-kubernetes-preserve-unknown-fields": true,
                }},
            }],
        },
    });
    let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    c.post(definitions, &definition).await.ok();
    let mut collections = vec![
        definitions.to_owned(),
        "/api/v1/nodes".to_owned(),
        "/api/v1/namespaces".to_owned(),
    ];
    for (group, kinds) in [
        (
            "api/v1",
            "pods services configmaps secrets events endpoints serviceaccounts",
        ),
        (
            "apis/apps/v1",
            "deployments replicasets daemonsets statefulsets",
        ),
        ("apis/discovery.k8s.io/v1", "endpointslices"),
        ("apis/networking.k8s.io/v1", "ingresses networkpolicies"),
        ("apis/events.k8s.io/v1", "events"),
        ("apis/coordination.k8s.io/v1", "leases"),
        ("apis/example.com/v1", "things"),
    ] {
        for kind in kinds.split(' ') {
            collections.push(format!("/{group}/namespaces/default/{kind}"));
        }
    }
    let odd = [
        json!(null),
        json!("x"),
        json!(7),
        json!([1]),
        json!({"a": null}),
        json!(true),
    ];
    for path in &collections {
        c.post(path, &json!({"metadata": {"name": "victim"}})).await;
        for value in &odd {
            let mut documents = vec![json!({"metadata": value})];
            for field in [
                "labels",
                "annotations",
                "finalizers",
                "ownerReferences",
                "managedFields",
                "uid",
                "resourceVersion",
                "generateName",
                "name",
                "namespace",
            ] {
                let mut document = json!({"metadata": {"name": "victim"}});
                document["metadata"][field] = value.clone();
                documents.push(document);
            }
            for field in [
                "spec",
                "status",
                "data",
                "stringData",
                "ports",
                "apiVersion",
                "kind",
            ] {
                let mut document = json!({"metadata": {"name": "victim"}});
                document[field] = value.clone();
                documents.push(document);
            }
            for field in [
                "replicas",
                "ports",
                "clusterIP",
                "clusterIPs",
                "ipFamilies",
                "containers",
                "tolerations",
                "versions",
                "names",
                "finalizers",
                "selector",
                "template",
            ] {
                let mut document = json!({"metadata": {"name": "victim"}});
                document["spec"][field] = value.clone();
                documents.push(document);
            }
            for document in documents {
                let victim = format!("{path}/victim");
                let apply = format!("{victim}?fieldManager=m&force=true");
                for answer in [
                    c.post(path, &document).await,
                    c.put(&victim, &document).await,
                    c.patch(&victim, "merge", &document).await,
                    c.patch(&victim, "strategic", &document).await,
                    c.patch(&format!("{victim}/status"), "merge", &document)
                        .await,
                    c.patch(&format!("{victim}/scale"), "merge", &document)
                        .await,
                    c.patch(&apply, "application/apply-patch+yaml", &document)
                        .await,
                ] {
                    assert_ne!(answer.code, 500, "{path} {document}: {}", answer.text);
                }
            }
        }
        let list = c.get(path).await;
        assert_eq!(list.code, 200);
    }
}
