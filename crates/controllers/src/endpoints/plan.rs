//! From the endpoints that should be to the fewest changes of slices. No I/O.

use super::desired::{Desired, Family, Ports, families, is_headless, port_key, port_of};
use crate::object;
use k8s_openapi::api::core::v1::{Service, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use k8s_openapi::jiff::Timestamp;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Most endpoints in one slice.
pub(super) const MOST: usize = 100;

/// Label that names the slice's Service.
pub(super) const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Label that names who writes the slice.
pub(super) const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// Our value of [`MANAGED_BY`], the same as upstream's.
pub(super) const MANAGER: &str = "endpointslice-controller.k8s.io";
/// Annotation that says when what led to the slice's last change happened (RFC 3339).
const TRIGGER: &str = "endpoints.kubernetes.io/last-change-trigger-time";
const HEADLESS: &str = "service.kubernetes.io/headless";

/// Slices to write.
#[derive(Debug, Default)]
pub(super) struct Changes {
    pub(super) create: Vec<EndpointSlice>,
    pub(super) update: Vec<EndpointSlice>,
    pub(super) delete: Vec<Arc<EndpointSlice>>,
}

/// Labels of the Service's slices: its own, and ours.
fn labels(service: &Service, spec: &ServiceSpec) -> BTreeMap<String, String> {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS);
    labels.insert(
        SERVICE_NAME.into(),
        object::name(&service.metadata).to_owned(),
    );
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    if is_headless(spec) {
        labels.insert(HEADLESS.into(), String::new());
    }
    labels
}

fn owner(service: &Service) -> OwnerReference {
    OwnerReference {
        api_version: "v1".into(),
        kind: "Service".into(),
        name: object::name(&service.metadata).to_owned(),
        uid: object::uid(&service.metadata).to_owned(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

fn annotate(metadata: &mut ObjectMeta, trigger: Option<Timestamp>) {
    let annotations = metadata.annotations.get_or_insert_default();
    match trigger {
        Some(time) => annotations.insert(TRIGGER.into(), time.to_string()),
        None => annotations.remove(TRIGGER),
    };
    if annotations.is_empty() {
        metadata.annotations = None;
    }
}

fn ports_of(slice: &EndpointSlice) -> Ports {
    let mut ports: Ports = slice.ports.iter().flatten().map(port_key).collect();
    ports.sort();
    ports
}

/// What makes two endpoints the same one, though its conditions differ.
fn identity(endpoint: &Endpoint) -> (Vec<String>, String) {
    let target = endpoint.target_ref.as_ref();
    (
        endpoint.addresses.clone(),
        target
            .and_then(|target| target.uid.clone())
            .unwrap_or_default(),
    )
}

/// An existing slice on its way to what it should be.
struct Draft {
    slice: Arc<EndpointSlice>,
    endpoints: Vec<Endpoint>,
    changed: bool,
}

/// The changes from the slices there are to the endpoints that should be, which
/// `trigger` led to. A slice is not written for the sake of that time alone; one
/// that is written for no such reason loses it.
pub(super) fn plan(
    service: &Service,
    mut desired: Desired,
    existing: &[Arc<EndpointSlice>],
    trigger: Option<Timestamp>,
) -> Changes {
    let mut changes = Changes::default();
    let Some(spec) = &service.spec else {
        return changes;
    };
    let labels = labels(service, spec);
    let families = families(spec);
    // A family without endpoints still has one slice, an empty one: whoever
    // watches sees that somebody has looked. One that is there is kept.
    for family in &families {
        if !desired.keys().any(|(of, _)| of == family) {
            let ports = existing
                .iter()
                .filter(|slice| slice.address_type == family.name())
                .min_by(|a, b| a.metadata.name.cmp(&b.metadata.name))
                .map(|slice| ports_of(slice))
                .unwrap_or_default();
            desired.insert((*family, ports), Vec::new());
        }
    }
    let mut groups: HashMap<(Family, Ports), Vec<Arc<EndpointSlice>>> = HashMap::new();
    for slice in existing {
        let family = families
            .iter()
            .find(|family| family.name() == slice.address_type);
        match family.map(|family| (*family, ports_of(slice))) {
            Some(group) if desired.contains_key(&group) => {
                groups.entry(group).or_default().push(slice.clone());
            }
            _ => changes.delete.push(slice.clone()),
        }
    }
    for ((family, ports), endpoints) in desired {
        let mut slices = groups.remove(&(family, ports.clone())).unwrap_or_default();
        slices.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
        let (mut drafts, mut rest) = settle(slices, endpoints);
        fill(&mut drafts, &mut rest);
        let spare = drafts.iter().all(|draft| draft.endpoints.is_empty()) && rest.is_empty();
        let lacking = spare && drafts.is_empty();
        for (index, draft) in drafts.into_iter().enumerate() {
            if draft.endpoints.is_empty() && !(spare && index == 0) {
                changes.delete.push(draft.slice);
                continue;
            }
            let relabel = draft.slice.metadata.labels.as_ref() != Some(&labels);
            if draft.changed || relabel {
                let mut slice = (*draft.slice).clone();
                slice.metadata.labels = Some(labels.clone());
                annotate(&mut slice.metadata, trigger);
                slice.endpoints = Some(draft.endpoints);
                changes.update.push(slice);
            }
        }
        let chunks: Vec<Vec<Endpoint>> = if lacking {
            vec![Vec::new()]
        } else {
            rest.chunks(MOST).map(<[Endpoint]>::to_vec).collect()
        };
        for chunk in chunks {
            let mut metadata = ObjectMeta {
                generate_name: Some(format!("{}-", object::name(&service.metadata))),
                namespace: service.metadata.namespace.clone(),
                labels: Some(labels.clone()),
                owner_references: Some(vec![owner(service)]),
                ..Default::default()
            };
            annotate(&mut metadata, trigger);
            changes.create.push(EndpointSlice {
                metadata,
                address_type: family.name().into(),
                endpoints: Some(chunk),
                ports: Some(ports.iter().map(port_of).collect()),
            });
        }
    }
    changes
}

/// Keeps in each slice what belongs there still, with its conditions as they
/// are now; returns the slices and what has no place yet.
fn settle(
    slices: Vec<Arc<EndpointSlice>>,
    endpoints: Vec<Endpoint>,
) -> (Vec<Draft>, Vec<Endpoint>) {
    let mut wanted: HashMap<_, _> = endpoints
        .into_iter()
        .map(|endpoint| (identity(&endpoint), endpoint))
        .collect();
    let drafts = slices
        .into_iter()
        .map(|slice| {
            let old = slice.endpoints.as_deref().unwrap_or_default();
            let kept: Vec<_> = old
                .iter()
                .filter_map(|endpoint| wanted.remove(&identity(endpoint)))
                .collect();
            let changed = kept != old;
            Draft {
                slice: slice.clone(),
                endpoints: kept,
                changed,
            }
        })
        .collect();
    let mut rest: Vec<_> = wanted.into_values().collect();
    rest.sort_by(|a, b| a.addresses.cmp(&b.addresses));
    (drafts, rest)
}

/// Puts the rest into gaps: first of slices that are written anyway, then,
/// only if all of it fits into one, of another.
fn fill(drafts: &mut [Draft], rest: &mut Vec<Endpoint>) {
    for draft in drafts.iter_mut().filter(|draft| draft.changed) {
        let room = MOST.saturating_sub(draft.endpoints.len()).min(rest.len());
        draft.endpoints.extend(rest.drain(..room));
    }
    // What is left fills whole slices of its own but for the last few.
    let odd = rest.len() % MOST;
    if odd == 0 {
        return;
    }
    let roomy = drafts
        .iter_mut()
        .filter(|draft| !draft.changed && draft.endpoints.len() + odd <= MOST)
        .max_by_key(|draft| draft.endpoints.len());
    if let Some(draft) = roomy {
        let at = rest.len() - odd;
        draft.endpoints.extend(rest.drain(at..));
        draft.changed = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;
    use std::collections::BTreeSet;

    fn service(families: &[&str]) -> Service {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "ns", "uid": "u", "labels": {"team": "x"}},
            "spec": {"selector": {"app": "web"}, "ipFamilies": families, "clusterIP": "None"}}))
        .unwrap()
    }

    fn ports() -> Ports {
        vec![(String::new(), Some(80), "TCP".into(), None)]
    }

    fn endpoint(index: u32, ready: bool) -> Endpoint {
        serde_json::from_value(json!({
            "addresses": [std::net::Ipv4Addr::from(0x0a00_0000 + index).to_string()],
            "conditions": {"ready": ready},
            "targetRef": {"uid": index.to_string()}}))
        .unwrap()
    }

    fn desired(endpoints: impl IntoIterator<Item = Endpoint>) -> Desired {
        let endpoints: Vec<_> = endpoints.into_iter().collect();
        if endpoints.is_empty() {
            return Desired::new();
        }
        [((Family::V4, ports()), endpoints)].into()
    }

    /// A little API server: applies changes to slices.
    #[derive(Default)]
    struct Slices {
        slices: Vec<Arc<EndpointSlice>>,
        serial: usize,
    }

    impl Slices {
        fn apply(&mut self, changes: Changes) -> usize {
            let writes = changes.create.len() + changes.update.len() + changes.delete.len();
            let name = |slice: &EndpointSlice| slice.metadata.name.clone();
            self.slices
                .retain(|slice| !changes.delete.iter().any(|gone| name(gone) == name(slice)));
            for update in changes.update {
                let place = self
                    .slices
                    .iter_mut()
                    .find(|slice| name(slice) == name(&update))
                    .expect("only what is there is updated");
                *place = Arc::new(update);
            }
            for mut made in changes.create {
                self.serial += 1;
                made.metadata.name = Some(format!("web-{:04}", self.serial));
                self.slices.push(Arc::new(made));
            }
            writes
        }

        fn step(&mut self, endpoints: impl IntoIterator<Item = Endpoint>) -> usize {
            let changes = plan(&service(&["IPv4"]), desired(endpoints), &self.slices, None);
            self.apply(changes)
        }

        fn addresses(&self) -> BTreeSet<String> {
            let all: Vec<_> = self
                .slices
                .iter()
                .flat_map(|slice| slice.endpoints.iter().flatten())
                .map(|endpoint| endpoint.addresses[0].clone())
                .collect();
            let set: BTreeSet<_> = all.iter().cloned().collect();
            assert_eq!(set.len(), all.len(), "an endpoint is in two slices");
            set
        }
    }

    #[test]
    fn a_service_without_endpoints_has_one_empty_slice_a_family() {
        let changes = plan(&service(&["IPv4", "IPv6"]), Desired::new(), &[], None);
        let types: Vec<_> = changes
            .create
            .iter()
            .map(|slice| slice.address_type.as_str())
            .collect();
        assert_eq!(types, ["IPv4", "IPv6"]);
        let mut slices = Slices::default();
        slices.apply(changes);
        let again = plan(
            &service(&["IPv4", "IPv6"]),
            Desired::new(),
            &slices.slices,
            None,
        );
        assert_eq!(slices.apply(again), 0);
    }

    #[test]
    fn slices_are_labelled_and_owned() {
        let changes = plan(&service(&["IPv4"]), Desired::new(), &[], None);
        let meta = &changes.create[0].metadata;
        let labels: Vec<_> = crate::selector::labels(meta).iter().collect();
        assert_eq!(
            serde_json::to_value(labels).unwrap(),
            json!([
                [
                    "endpointslice.kubernetes.io/managed-by",
                    "endpointslice-controller.k8s.io"
                ],
                ["kubernetes.io/service-name", "web"],
                ["service.kubernetes.io/headless", ""],
                ["team", "x"]
            ])
        );
        assert!(object::is_controlled_by(meta, "u"));
    }

    #[test]
    fn a_written_slice_says_what_triggered_it() {
        let trigger: Timestamp = "2026-01-01T00:00:07Z".parse().unwrap();
        let service = service(&["IPv4"]);
        let annotation =
            |slice: &EndpointSlice| object::annotation(&slice.metadata, TRIGGER).map(str::to_owned);
        let first = plan(&service, desired([endpoint(1, true)]), &[], Some(trigger));
        let made = annotation(&first.create[0]);
        assert_eq!(made.as_deref(), Some("2026-01-01T00:00:07Z"));
        let mut slices = Slices::default();
        slices.apply(first);
        let same = plan(
            &service,
            desired([endpoint(1, true)]),
            &slices.slices,
            Some(trigger),
        );
        assert_eq!(slices.apply(same), 0, "no write for the time alone");
        let changed = desired([endpoint(1, false)]);
        let unknown = plan(&service, changed, &slices.slices, None);
        assert_eq!(annotation(&unknown.update[0]), None);
    }

    #[test]
    fn a_slice_holds_a_hundred_endpoints() {
        let mut slices = Slices::default();
        slices.step((0..250).map(|index| endpoint(index, true)));
        let mut sizes: Vec<_> = slices
            .slices
            .iter()
            .map(|slice| slice.endpoints.as_ref().unwrap().len())
            .collect();
        sizes.sort_unstable();
        assert_eq!(sizes, [50, 100, 100]);
    }

    #[test]
    fn one_change_of_readiness_writes_one_slice() {
        let mut slices = Slices::default();
        slices.step((0..250).map(|index| endpoint(index, true)));
        assert_eq!(
            slices.step((0..250).map(|index| endpoint(index, index != 120))),
            1
        );
        assert_eq!(
            slices.step((0..250).map(|index| endpoint(index, index != 120))),
            0
        );
    }

    #[test]
    fn a_new_endpoint_fills_a_gap() {
        let mut slices = Slices::default();
        slices.step((0..150).map(|index| endpoint(index, true)));
        assert_eq!(slices.step((0..151).map(|index| endpoint(index, true))), 1);
        assert_eq!(slices.slices.len(), 2);
    }

    #[test]
    fn a_replaced_endpoint_takes_the_place_of_the_old_one() {
        let mut slices = Slices::default();
        slices.step((0..150).map(|index| endpoint(index, true)));
        assert_eq!(slices.step((1..151).map(|index| endpoint(index, true))), 1);
    }

    #[test]
    fn a_slice_that_lost_its_last_endpoint_is_kept_empty() {
        let mut slices = Slices::default();
        slices.step([endpoint(1, true)]);
        assert_eq!(slices.step([]), 1);
        assert_eq!(slices.slices.len(), 1);
        assert_eq!(slices.step([endpoint(2, true)]), 1);
        assert_eq!(slices.slices.len(), 1);
    }

    #[test]
    fn another_port_is_another_slice_and_the_old_one_goes() {
        let mut slices = Slices::default();
        slices.step([endpoint(1, true)]);
        let other = vec![(String::new(), Some(81), "TCP".into(), None)];
        let desired: Desired = [((Family::V4, other), vec![endpoint(1, true)])].into();
        let changes = plan(&service(&["IPv4"]), desired, &slices.slices, None);
        assert_eq!((changes.create.len(), changes.delete.len()), (1, 1));
    }

    #[test]
    fn slices_of_a_family_the_service_no_longer_has_go() {
        let mut slices = Slices::default();
        slices.apply(plan(&service(&["IPv4", "IPv6"]), Desired::new(), &[], None));
        let changes = plan(&service(&["IPv6"]), Desired::new(), &slices.slices, None);
        assert_eq!(changes.delete.len(), 1);
        assert_eq!(changes.delete[0].address_type, "IPv4");
    }

    proptest! {
        /// Whatever the history, the slices hold exactly the endpoints that
        /// should be, at most a hundred each, and settle after one step.
        #[test]
        fn any_history_leads_to_the_desired_endpoints(
            steps in prop::collection::vec(prop::collection::btree_set(0_u32..400, 0..350), 1..6)
        ) {
            let mut slices = Slices::default();
            for wanted in steps {
                let endpoints = || wanted.iter().map(|index| endpoint(*index, true));
                slices.step(endpoints());
                let expected: BTreeSet<_> = endpoints().map(|e| e.addresses[0].clone()).collect();
                prop_assert_eq!(slices.addresses(), expected);
                for slice in &slices.slices {
                    prop_assert!(slice.endpoints.as_ref().unwrap().len() <= MOST);
                }
                prop_assert!(!slices.slices.is_empty());
                prop_assert_eq!(slices.step(endpoints()), 0);
            }
        }
    }
}
