//! RFC 2308: what says how long an absence may be believed.

use hickory_proto::rr::{RData, RecordType};
use podwire_dns::resolver::Step;

use crate::world::World;

#[test]
fn the_soa_of_a_negative_answer_stands_above_the_name_and_limits_its_life() {
    let world = World::new();
    for (question, owner) in [
        ("no.default.svc.cluster.local", "cluster.local."),
        ("default.svc.cluster.local", "cluster.local."),
        ("9.9.96.10.in-addr.arpa", "in-addr.arpa."),
        ("9.9.0.0.d.f.ip6.arpa", "ip6.arpa."),
    ] {
        let Step::Done(answer) = world.step(question, RecordType::A, None) else {
            // Half of an IPv6 name that is not in our range: somebody else's.
            assert!(question.ends_with("ip6.arpa"), "{question}");
            continue;
        };
        let soa = &answer.authorities[0];
        assert_eq!(soa.name.to_ascii(), owner);
        let RData::SOA(data) = &soa.data else {
            panic!("a SOA: {soa}");
        };
        assert_eq!((soa.ttl, data.minimum), (5, 5));
    }
}

#[test]
fn the_serial_grows_with_every_change() {
    let world = World::new();
    let before = world.zone.serial();
    let world = world.cluster("web", "10.96.0.20", "");
    assert!(world.zone.serial() > before);
}
