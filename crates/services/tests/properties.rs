//! What holds for any history: the order of events does not matter, and a
//! difference applied to the old state gives the new one.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use linux::nftables::Value;
use linux::nftables::walker::Ruleset;
use podwire_services::difference::{Shadow, difference};
use podwire_services::simulate::{change, planned};
use podwire_services::table::{Frontend, Table};
use podwire_services::{
    Endpoint, EndpointSlice, Family, FrontendKey, NodeFacts, Protocol, Service, ServiceName,
    ServicePort, SlicePort, TrafficPolicy,
};
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Event {
    Service(Service),
    ServiceGone(ServiceName),
    Slice(EndpointSlice),
    SliceGone(String),
}

fn facts() -> NodeFacts {
    let ip = |text: &str| -> IpAddr { text.parse().expect("a literal") };
    NodeFacts {
        node: "node-1".to_owned(),
        addresses: vec![ip("192.168.64.11"), ip("fd00:64::11")],
        pod_cidrs: vec!["10.200.1.0/24".parse().expect("a literal")],
        cluster_cidrs: vec!["10.200.0.0/16".parse().expect("a literal")],
        service_cidrs: vec!["10.96.0.0/12".parse().expect("a literal")],
        ..NodeFacts::default()
    }
}

fn policy() -> impl Strategy<Value = TrafficPolicy> {
    prop_oneof![Just(TrafficPolicy::Cluster), Just(TrafficPolicy::Local)]
}

fn protocol() -> impl Strategy<Value = Protocol> {
    prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp)]
}

/// Few names and few addresses, so that Services meet and collide.
fn service() -> impl Strategy<Value = Service> {
    (
        0..4usize,
        proptest::collection::vec(0..4u8, 0..2),
        any::<bool>(),
        proptest::collection::vec(
            (
                0..2usize,
                protocol(),
                80..82i32,
                proptest::option::of(30000..30003i32),
            ),
            1..3,
        ),
        policy(),
        policy(),
        proptest::bool::weighted(0.1),
        (
            proptest::option::of(1..3u32),
            proptest::collection::vec(0..3usize, 0..3),
            proptest::option::of(0..3u8),
        ),
    )
        .prop_map(
            |(name, ips, dual, ports, internal_policy, external_policy, foreign, more)| {
                let (affinity, ranges, balancer) = more;
                const RANGES: [&str; 3] = ["10.0.0.0/8", "10.128.0.0/9", "nonsense"];
                let mut cluster_ips: Vec<String> =
                    ips.iter().map(|n| format!("10.96.0.{}", n + 1)).collect();
                if dual {
                    cluster_ips.push(format!("fd00:96::{}", name + 1));
                }
                Service {
                    name: ServiceName::new("default", format!("s{name}")),
                    cluster_ips,
                    ports: ports
                        .into_iter()
                        .map(|(name, protocol, port, node_port)| ServicePort {
                            name: format!("p{name}"),
                            protocol,
                            port,
                            node_port,
                        })
                        .collect(),
                    internal_policy,
                    external_policy,
                    foreign,
                    affinity,
                    source_ranges: ranges.iter().map(|n| RANGES[*n].to_owned()).collect(),
                    load_balancer_ips: balancer
                        .map(|n| format!("203.0.113.{}", n + 1))
                        .into_iter()
                        .collect(),
                    ..Service::default()
                }
            },
        )
}

fn slice() -> impl Strategy<Value = EndpointSlice> {
    let endpoint = (
        0..6u8,
        proptest::option::of(any::<bool>()),
        proptest::option::of(any::<bool>()),
        proptest::option::of(any::<bool>()),
        any::<bool>(),
    );
    (
        0..4usize,
        0..3usize,
        any::<bool>(),
        (0..2usize, protocol(), 8080..8082i32),
        proptest::collection::vec(endpoint, 0..6),
    )
        .prop_map(
            |(service, name, v6, (port, protocol, number), endpoints)| EndpointSlice {
                namespace: "default".to_owned(),
                name: format!("slice{name}"),
                service: format!("s{service}"),
                family: if v6 { Family::V6 } else { Family::V4 },
                ports: vec![SlicePort {
                    name: format!("p{port}"),
                    protocol,
                    port: Some(number),
                }],
                endpoints: endpoints
                    .into_iter()
                    .map(|(n, ready, serving, terminating, local)| Endpoint {
                        address: if v6 {
                            format!("fd00:200::{}", n + 1)
                        } else {
                            format!("10.200.1.{}", n + 1)
                        },
                        ready,
                        serving,
                        terminating,
                        node: Some(if local { "node-1" } else { "node-2" }.to_owned()),
                        ..Endpoint::default()
                    })
                    .collect(),
            },
        )
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => service().prop_map(Event::Service),
        1 => (0..4usize).prop_map(|n| Event::ServiceGone(ServiceName::new("default", format!("s{n}")))),
        6 => slice().prop_map(Event::Slice),
        1 => (0..3usize).prop_map(|n| Event::SliceGone(format!("slice{n}"))),
    ]
}

fn tell(table: &mut Table, event: &Event) {
    match event {
        Event::Service(service) => table.set_service(service.clone()),
        Event::ServiceGone(name) => table.remove_service(name),
        Event::Slice(slice) => _ = table.set_slice(slice),
        Event::SliceGone(name) => table.remove_slice("default", name),
    }
}

/// What is left of a history: the last word on each object.
fn remains(events: &[Event]) -> Vec<Event> {
    let mut last: BTreeMap<String, Event> = BTreeMap::new();
    for event in events {
        let key = match event {
            Event::Service(service) => format!("service {}", service.name),
            Event::ServiceGone(name) => format!("service {name}"),
            Event::Slice(slice) => format!("slice {}", slice.name),
            Event::SliceGone(name) => format!("slice {name}"),
        };
        last.insert(key, event.clone());
    }
    last.into_values()
        .filter(|event| matches!(event, Event::Service(_) | Event::Slice(_)))
        .collect()
}

fn frontends(table: &Table) -> HashMap<FrontendKey, Frontend> {
    table.frontends().collect()
}

type Contents = BTreeMap<String, BTreeSet<(Vec<u8>, Option<Value>)>>;

/// All elements, but which backend has which slot or id left open: backends keep
/// what they had, so that it depends on history. What matters is that each slot
/// is filled, and each backend has an id.
fn contents(rules: &Ruleset) -> Contents {
    podwire_services::compile::sets()
        .into_iter()
        .flat_map(|set| {
            let elements = rules
                .elements(&set.name)
                .map(|(key, value)| (key.to_vec(), value.cloned()));
            if set.name.starts_with("turns") {
                let slots = elements.map(|(key, _)| (key, None)).collect();
                return vec![(set.name.clone(), slots)];
            }
            if !set.name.starts_with("backends") {
                return vec![(set.name.clone(), elements.collect())];
            }
            let slot_of = |key: &[u8]| {
                let slot = &key[key.len() - 4..];
                u32::from_ne_bytes(slot.try_into().expect("four bytes"))
            };
            let all: Vec<(Vec<u8>, Option<Value>)> = elements.collect();
            let slots = all
                .iter()
                .filter(|(key, _)| slot_of(key) < podwire_services::compile::IDS)
                .map(|(key, _)| (key.clone(), None))
                .collect();
            let pairs = all
                .iter()
                .map(|(key, value)| {
                    let mut frontend = key[..key.len() - 4].to_vec();
                    // All or local backends, by slot or by id.
                    frontend.extend((slot_of(key) >> 16).to_ne_bytes());
                    (frontend, value.clone())
                })
                .collect();
            vec![
                (format!("{} slots", set.name), slots),
                (format!("{} pairs", set.name), pairs),
            ]
        })
        // Numbers no longer in use stay until they are collected.
        .filter(|(name, _)| name != podwire_services::compile::DISPATCH)
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn order_of_events_does_not_matter(
        events in proptest::collection::vec(event(), 0..30),
        seed in any::<u64>(),
    ) {
        let mut lived = Table::new(facts());
        for event in &events {
            tell(&mut lived, event);
        }
        let mut told = remains(&events);
        // Any order will do: sort by a hash of the seed.
        told.sort_by_cached_key(|event| {
            use std::hash::{DefaultHasher, Hash, Hasher};
            let mut hasher = DefaultHasher::new();
            (seed, format!("{event:?}")).hash(&mut hasher);
            hasher.finish()
        });
        let mut fresh = Table::new(facts());
        for event in &told {
            tell(&mut fresh, event);
        }
        prop_assert_eq!(frontends(&lived), frontends(&fresh));
        let addresses = |table: &Table| -> (BTreeSet<IpAddr>, BTreeSet<IpAddr>) {
            (table.cluster_ips().collect(), table.local_endpoints().collect())
        };
        prop_assert_eq!(addresses(&lived), addresses(&fresh));
    }

    #[test]
    fn a_difference_applied_to_the_old_state_gives_the_new(
        events in proptest::collection::vec(event(), 0..30),
        every in 1..5usize,
    ) {
        let mut table = Table::new(facts());
        let mut shadow = Shadow::default();
        let mut rules = planned(&table).expect("a strict model takes it");
        // The empty plan has put the ranges in.
        let first = table.take_changes();
        shadow.apply(difference(&table, &shadow, &first));
        for (index, event) in events.iter().enumerate() {
            tell(&mut table, event);
            if index % every == 0 || index + 1 == events.len() {
                let changes = table.take_changes();
                let step = difference(&table, &shadow, &changes);
                // Strict: adding what is there or deleting what is not is an error.
                change(&mut rules, &step).expect("a difference fits what it was made for");
                shadow.apply(step);
            }
        }
        let fresh = planned(&table).expect("a strict model takes it");
        prop_assert_eq!(contents(&rules), contents(&fresh));
    }
}
