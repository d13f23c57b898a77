//! Events, of the core group and of `events.k8s.io`.

use super::{name, since, string};
use jiff::Timestamp;
use serde_json::{Value, json};

pub(super) fn event(object: &Value, now: Timestamp) -> Vec<Value> {
    // The two groups name the same things differently.
    let first_of = |fields: &[&Value]| {
        fields
            .iter()
            .find(|value| !value.is_null())
            .map_or(Value::Null, |value| (*value).clone())
    };
    let about = first_of(&[&object["involvedObject"], &object["regarding"]]);
    let message = first_of(&[&object["message"], &object["note"]]);
    let first = first_of(&[
        &object["firstTimestamp"],
        &object["deprecatedFirstTimestamp"],
        &object["eventTime"],
    ]);
    let last = first_of(&[
        &object["series"]["lastObservedTime"],
        &object["lastTimestamp"],
        &object["deprecatedLastTimestamp"],
        &object["eventTime"],
    ]);
    let count = first_of(&[
        &object["series"]["count"],
        &object["count"],
        &object["deprecatedCount"],
    ]);
    let target = format!(
        "{}/{}",
        about["kind"].as_str().unwrap_or_default().to_lowercase(),
        about["name"].as_str().unwrap_or_default()
    );
    vec![
        json!(since(&last, now)),
        string(object["type"].as_str()),
        string(object["reason"].as_str()),
        json!(target),
        string(about["fieldPath"].as_str()),
        json!(source(object)),
        json!(message.as_str().unwrap_or_default().trim()),
        json!(since(&first, now)),
        json!(count.as_i64().unwrap_or(1)),
        name(object),
    ]
}

fn source(object: &Value) -> String {
    let old = [&object["source"], &object["deprecatedSource"]]
        .into_iter()
        .find(|source| source["component"].is_string());
    let (component, host) = match old {
        Some(source) => (&source["component"], &source["host"]),
        None => (&object["reportingComponent"], &object["reportingInstance"]),
    };
    let component = component
        .as_str()
        .or(object["reportingController"].as_str())
        .unwrap_or_default();
    match host.as_str() {
        Some(host) if !host.is_empty() => format!("{component}, {host}"),
        _ => component.to_owned(),
    }
}
