//! The kinds that make pods.

use super::{NONE, age, labels, list, name, number, selector};
use jiff::Timestamp;
use serde_json::{Value, json};

/// Names and images of the template's containers, and the selector.
fn template(object: &Value) -> [Value; 3] {
    let containers = list(&object["spec"]["template"]["spec"]["containers"]);
    let join = |key: &str| {
        let list: Vec<&str> = containers
            .iter()
            .filter_map(|container| container[key].as_str())
            .collect();
        json!(list.join(","))
    };
    [
        join("name"),
        join("image"),
        json!(selector(&object["spec"]["selector"])),
    ]
}

fn status(object: &Value, key: &str) -> Value {
    json!(number(&object["status"][key]))
}

fn ready(object: &Value) -> Value {
    json!(format!(
        "{}/{}",
        number(&object["status"]["readyReplicas"]),
        number(&object["spec"]["replicas"])
    ))
}

pub(super) fn deployment(object: &Value, now: Timestamp) -> Vec<Value> {
    let [containers, images, selector] = template(object);
    vec![
        name(object),
        ready(object),
        status(object, "updatedReplicas"),
        status(object, "availableReplicas"),
        age(object, now),
        containers,
        images,
        selector,
    ]
}

pub(super) fn replica_set(object: &Value, now: Timestamp) -> Vec<Value> {
    let [containers, images, selector] = template(object);
    vec![
        name(object),
        json!(number(&object["spec"]["replicas"])),
        status(object, "replicas"),
        status(object, "readyReplicas"),
        age(object, now),
        containers,
        images,
        selector,
    ]
}

pub(super) fn daemon_set(object: &Value, now: Timestamp) -> Vec<Value> {
    let [containers, images, selector] = template(object);
    vec![
        name(object),
        status(object, "desiredNumberScheduled"),
        status(object, "currentNumberScheduled"),
        status(object, "numberReady"),
        status(object, "updatedNumberScheduled"),
        status(object, "numberAvailable"),
        json!(labels(&object["spec"]["template"]["spec"]["nodeSelector"])),
        age(object, now),
        containers,
        images,
        selector,
    ]
}

pub(super) fn stateful_set(object: &Value, now: Timestamp) -> Vec<Value> {
    let [containers, images, _] = template(object);
    vec![
        name(object),
        ready(object),
        age(object, now),
        containers,
        images,
    ]
}

pub(super) fn revision(object: &Value, now: Timestamp) -> Vec<Value> {
    let controller = list(&object["metadata"]["ownerReferences"])
        .iter()
        .find(|owner| owner["controller"] == json!(true))
        .map_or(NONE.to_owned(), |owner| {
            let kind = owner["kind"].as_str().unwrap_or_default().to_lowercase();
            let group = owner["apiVersion"]
                .as_str()
                .and_then(|version| version.split_once('/'))
                .map_or(String::new(), |(group, _)| format!(".{group}"));
            format!(
                "{kind}{group}/{}",
                owner["name"].as_str().unwrap_or_default()
            )
        });
    vec![
        name(object),
        json!(controller),
        json!(number(&object["revision"])),
        age(object, now),
    ]
}
