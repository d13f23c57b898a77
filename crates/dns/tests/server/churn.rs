//! Changes while questions are asked.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hickory_proto::op::ResponseCode;
use podwire_dns::model::{Addressing, Endpoint, EndpointSlice, Service, ServiceKey};

use crate::support::{addresses, ask, config, start};

/// A headless Service whose endpoints always are a block of ten, and change a
/// thousand times a second to another block: every answer is one whole block.
#[test]
fn no_answer_is_wrong_or_fails_while_endpoints_change() {
    let (shared, server) = start(config());
    let server = server.addresses()[0];
    let key = ServiceKey::new("default", "db");
    let slice = |block: u8| EndpointSlice {
        name: "db-1".into(),
        service: ServiceKey::new("default", "db"),
        endpoints: (0..10)
            .map(|n| Endpoint {
                address: std::net::Ipv4Addr::new(10, 200, block, n).into(),
                hostname: None,
            })
            .collect(),
        ports: Vec::new(),
    };
    shared.change(|zone| {
        zone.set_service(Service {
            key,
            addressing: Addressing::Headless,
            ports: Vec::new(),
        });
        zone.set_slice(slice(0));
    });
    let stop = Arc::new(AtomicBool::new(false));
    let (stopping, changed) = (stop.clone(), shared.clone());
    let changer = std::thread::spawn(move || {
        let mut changes = 0u32;
        while !stopping.load(Ordering::Relaxed) {
            changes += 1;
            changed.change(|zone| zone.set_slice(slice(changes.to_be_bytes()[3])));
            std::thread::sleep(Duration::from_millis(1));
        }
        changes
    });
    let end = Instant::now() + Duration::from_secs(3);
    let mut asked = 0;
    let mut blocks = std::collections::HashSet::new();
    while Instant::now() < end {
        let answer = ask(server, "db.default.svc.cluster.local");
        assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
        let found = addresses(&answer);
        assert_eq!(found.len(), 10);
        let block = found[0].rsplit_once('.').expect("an address").0.to_owned();
        assert!(
            found.iter().all(|address| address.starts_with(&block)),
            "{found:?}"
        );
        blocks.insert(block);
        let steady = ask(server, "web.default.svc.cluster.local");
        assert_eq!(addresses(&steady), ["10.96.0.20"]);
        asked += 1;
    }
    stop.store(true, Ordering::Relaxed);
    let changes = changer.join().unwrap();
    println!(
        "{asked} questions during {changes} changes, {} blocks seen",
        blocks.len()
    );
    assert!(blocks.len() > 1);
}
