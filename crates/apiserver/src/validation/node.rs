//! Rules of Nodes and Leases.

use super::names;
use super::{Errors, FieldError, cidr, is_empty, items, not_negative, one_of, push_all, text};
use serde_json::Value;

pub(super) fn node(new: &Value, old: Option<&Value>, errors: &mut Errors) {
    let spec = &new["spec"];
    let mut families = Vec::new();
    for (index, range) in items(spec, "podCIDRs") {
        let range = range.as_str().unwrap_or_default();
        if let Some(range) = cidr(&format!("spec.podCIDRs[{index}]"), range, errors) {
            families.push(range.addr().is_ipv4());
        }
    }
    if families.len() > 2 || (families.len() == 2 && families[0] == families[1]) {
        errors.push(FieldError::invalid(
            "spec.podCIDRs",
            spec["podCIDRs"].clone(),
            "may specify no more than one CIDR for each IP family",
        ));
    }
    let single = text(spec, "podCIDR");
    if !single.is_empty() && spec["podCIDRs"][0].as_str() != Some(single) {
        errors.push(FieldError::invalid(
            "spec.podCIDR",
            single,
            "must be the first of `podCIDRs`",
        ));
    }
    for (index, taint) in items(spec, "taints") {
        let field = format!("spec.taints[{index}]");
        let key = text(taint, "key");
        push_all(&format!("{field}.key"), key, names::qualified(key), errors);
        let value = text(taint, "value");
        push_all(
            &format!("{field}.value"),
            value,
            names::label_value(value),
            errors,
        );
        one_of(
            &format!("{field}.effect"),
            &taint["effect"],
            &["NoSchedule", "PreferNoSchedule", "NoExecute"],
            errors,
        );
        if is_empty(&taint["effect"]) {
            errors.push(FieldError::required(format!("{field}.effect"), ""));
        }
    }
    let mut seen = Vec::new();
    for (index, address) in items(&new["status"], "addresses") {
        let pair = (text(address, "type"), text(address, "address"));
        if seen.contains(&pair) {
            errors.push(FieldError::duplicate(
                format!("status.addresses[{index}]"),
                address.clone(),
            ));
        }
        seen.push(pair);
    }
    let Some(old) = old else { return };
    let before = &old["spec"]["podCIDRs"];
    if !is_empty(before) && before != &spec["podCIDRs"] {
        errors.push(FieldError::forbidden(
            "spec.podCIDRs",
            "node updates may not change podCIDR except from \"\" to valid",
        ));
    }
    let provider = text(&old["spec"], "providerID");
    if !provider.is_empty() && provider != text(spec, "providerID") {
        errors.push(FieldError::forbidden(
            "spec.providerID",
            "node updates may not change providerID except from \"\" to valid",
        ));
    }
}

pub(super) fn lease(object: &Value, errors: &mut Errors) {
    let spec = &object["spec"];
    if spec["leaseDurationSeconds"]
        .as_i64()
        .is_some_and(|seconds| seconds <= 0)
    {
        errors.push(FieldError::invalid(
            "spec.leaseDurationSeconds",
            spec["leaseDurationSeconds"].clone(),
            "must be greater than 0",
        ));
    }
    not_negative("spec.leaseTransitions", &spec["leaseTransitions"], errors);
    if !spec["holderIdentity"].is_null() && text(spec, "holderIdentity").is_empty() {
        errors.push(FieldError::invalid(
            "spec.holderIdentity",
            "",
            "must not be empty",
        ));
    }
}
