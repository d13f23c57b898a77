//! Thousands of random operations at once, each a plugin process of its own,
//! some of them killed: no address is given twice, none is lost.
#![allow(clippy::unwrap_used, reason = "tests say what they expect with unwrap")]

mod common;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, RwLock};
use std::time::Duration;

use common::{Node, Pod, addresses, finish};
use ipam::{Attachment, Claim, Range, RangeSet, Store};
use proptest::prelude::Rng as _;
use proptest::test_runner::{RngAlgorithm, TestRng};
use serde_json::{Value, json};

/// Operations altogether.
const OPERATIONS: usize = 10_000;
/// Runtimes at work at the same time, each with one plugin process.
const RUNTIMES: u8 = 16;
/// Pods of each.
const PODS: usize = 2;

/// What is true of all runtimes together.
struct Shared {
    node: Node,
    configuration: Value,
    /// Who was given an address and has not been deleted since.
    given: Mutex<HashMap<IpAddr, String>>,
    /// GC excludes ADD and DEL, as the specification wants it of runtimes.
    quiet: RwLock<()>,
    left: AtomicUsize,
}

impl Shared {
    fn take(&self, pod: &str, result: &Value) {
        let mut given = self.given.lock().unwrap();
        for address in addresses(result) {
            let other = given.insert(address, pod.to_owned());
            assert_eq!(other, None, "{address} was given to {pod} too");
        }
    }

    fn give_back(&self, pod: &str) {
        self.given.lock().unwrap().retain(|_, holder| holder != pod);
    }
}

/// What a runtime knows of a pod.
struct Known {
    pod: Pod,
    /// The result of ADD.
    result: Option<Value>,
    /// An operation was killed: only DEL or GC make it certain.
    uncertain: bool,
}

fn runtime(shared: &Shared, number: u8) {
    let mut random = TestRng::from_seed(RngAlgorithm::ChaCha, &[number; 32]);
    let mut pods: Vec<_> = (0..PODS)
        .map(|n| Known {
            pod: Pod::new(&format!("{number}-{n}")),
            result: None,
            uncertain: false,
        })
        .collect();
    while shared
        .left
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
            left.checked_sub(1)
        })
        .is_ok()
    {
        let (choice, kill) = (random.next_u32() % 100, random.next_u32() % 20);
        let known = &mut pods[random.next_u32() as usize % PODS];
        if choice == 0 {
            collect(shared, number);
            continue;
        }
        let _quiet = shared.quiet.read().unwrap();
        let command = match (&known.result, known.uncertain) {
            (_, true) => "DEL",
            (None, _) if choice < 90 => "ADD",
            (Some(_), _) if choice < 30 => "CHECK",
            _ => "DEL",
        };
        if command == "DEL" {
            // From here on another may get them.
            shared.give_back(&known.pod.id);
        }
        let mut configuration = shared.configuration.clone();
        if let Some(result) = &known.result {
            configuration["prevResult"] = result.clone();
        }
        let mut child = shared.node.spawn(
            &configuration,
            &[
                ("CNI_COMMAND", command),
                ("CNI_CONTAINERID", &known.pod.id),
                ("CNI_NETNS", &known.pod.path()),
                ("CNI_IFNAME", "eth0"),
            ],
        );
        if kill == 0 && command != "CHECK" {
            std::thread::sleep(Duration::from_micros((random.next_u32() % 8000).into()));
            child.kill().unwrap();
            child.wait().unwrap();
            known.result = None;
            known.uncertain = true;
            continue;
        }
        let outcome = finish(child);
        match command {
            "ADD" => {
                let result = outcome.ok();
                shared.take(&known.pod.id, &result);
                known.result = Some(result);
            }
            "CHECK" => {
                outcome.ok();
            }
            _ => {
                outcome.ok();
                known.result = None;
                known.uncertain = false;
            }
        }
    }
}

/// GC as a runtime calls it: with everything that is attached, all runtimes'
/// pods. What killed operations left goes.
fn collect(shared: &Shared, number: u8) {
    let _quiet = shared.quiet.write().unwrap();
    let given = shared.given.lock().unwrap().clone();
    let mut configuration = shared.configuration.clone();
    let valid: Vec<_> = given
        .values()
        .map(|pod| json!({"containerID": pod, "ifname": "eth0"}))
        .collect();
    configuration["cni.dev/valid-attachments"] = json!(valid);
    let outcome = shared.node.plugin(&configuration, &[("CNI_COMMAND", "GC")]);
    assert!(outcome.success, "GC of {number}: {outcome:?}");
}

#[test]
fn no_address_is_given_twice_and_none_is_lost() {
    let node = Node::new();
    let mut configuration = node.configuration("routed");
    // Sixty-one addresses for thirty-two pods: they are used again and again.
    let ranges = json!([[{"subnet": "10.200.1.0/26"}]]);
    configuration["ipam"]["ranges"] = ranges.clone();
    configuration["logLevel"] = json!("off");
    let shared = Shared {
        node,
        configuration,
        given: Mutex::default(),
        quiet: RwLock::new(()),
        left: AtomicUsize::new(OPERATIONS),
    };
    std::thread::scope(|scope| {
        for number in 0..RUNTIMES {
            let shared = &shared;
            scope.spawn(move || runtime(shared, number));
        }
    });
    shared.given.lock().unwrap().clear();
    collect(&shared, 0);
    shared.node.assert_clean();
    // Every address can be given, and to one only.
    let ranges: Vec<Vec<Range>> = serde_json::from_value(ranges).unwrap();
    let sets = RangeSet::all(&ranges).unwrap();
    let store = Store::new(shared.node.state.path(), "pods").unwrap();
    for n in 0..61 {
        let claim = Claim {
            attachment: Attachment::new(format!("last-{n}"), "eth0"),
            pod: None,
            wanted: Vec::new(),
            apart: false,
            notes: HashMap::new(),
        };
        store.reserve(&claim, &sets).unwrap();
    }
    store.has_room(&sets, false).unwrap_err();
}
