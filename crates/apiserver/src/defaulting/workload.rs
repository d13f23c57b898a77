//! Defaults of the kinds that make pods.

use super::{child, each, pod, set, text};
use serde_json::{Map, Value, json};

pub(super) fn deployment(object: &mut Map<String, Value>) {
    let spec = child(object, "spec");
    set(spec, "replicas", json!(1));
    set(spec, "revisionHistoryLimit", json!(10));
    set(spec, "progressDeadlineSeconds", json!(600));
    let strategy = child(spec, "strategy");
    set(strategy, "type", json!("RollingUpdate"));
    if text(strategy, "type") == "RollingUpdate" {
        let rolling = child(strategy, "rollingUpdate");
        set(rolling, "maxUnavailable", json!("25%"));
        set(rolling, "maxSurge", json!("25%"));
    }
    pod::template(spec);
}

pub(super) fn replica_set(object: &mut Map<String, Value>) {
    let spec = child(object, "spec");
    set(spec, "replicas", json!(1));
    pod::template(spec);
}

pub(super) fn daemon_set(object: &mut Map<String, Value>) {
    let spec = child(object, "spec");
    set(spec, "revisionHistoryLimit", json!(10));
    let strategy = child(spec, "updateStrategy");
    set(strategy, "type", json!("RollingUpdate"));
    if text(strategy, "type") == "RollingUpdate" {
        let rolling = child(strategy, "rollingUpdate");
        set(rolling, "maxUnavailable", json!(1));
        set(rolling, "maxSurge", json!(0));
    }
    pod::template(spec);
}

pub(super) fn stateful_set(object: &mut Map<String, Value>) {
    let spec = child(object, "spec");
    set(spec, "replicas", json!(1));
    set(spec, "revisionHistoryLimit", json!(10));
    set(spec, "podManagementPolicy", json!("OrderedReady"));
    spec.entry("serviceName").or_insert_with(|| json!(""));
    let strategy = child(spec, "updateStrategy");
    set(strategy, "type", json!("RollingUpdate"));
    if text(strategy, "type") == "RollingUpdate" {
        set(child(strategy, "rollingUpdate"), "partition", json!(0));
    }
    let retention = child(spec, "persistentVolumeClaimRetentionPolicy");
    set(retention, "whenDeleted", json!("Retain"));
    set(retention, "whenScaled", json!("Retain"));
    for claim in each(spec, "volumeClaimTemplates") {
        set(child(claim, "spec"), "volumeMode", json!("Filesystem"));
    }
    pod::template(spec);
}
