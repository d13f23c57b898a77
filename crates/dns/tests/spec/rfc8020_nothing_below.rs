//! RFC 8020: a name does not exist only if nothing below it does.

use hickory_proto::rr::RecordType::{A, NS, SOA};
use rstest::rstest;

use crate::world::World;

#[rstest]
#[case("cluster.local", "NODATA")]
#[case("svc.cluster.local", "NODATA")]
#[case("pod.cluster.local", "NODATA")]
#[case("dns.cluster.local", "NODATA")]
#[case("default.svc.cluster.local", "NODATA")]
#[case("empty.svc.cluster.local", "NODATA")]
#[case("nowhere.svc.cluster.local", "NXDOMAIN")]
#[case("_tcp.web.default.svc.cluster.local", "NODATA")]
#[case("_udp.web.default.svc.cluster.local", "NXDOMAIN")]
#[case("_tcp.plain.default.svc.cluster.local", "NXDOMAIN")]
#[case("_http._tcp.web.default.svc.cluster.local", "NODATA")]
#[case("a.b.c.web.default.svc.cluster.local", "NXDOMAIN")]
#[case("x.cluster.local", "NXDOMAIN")]
#[case("x.y.cluster.local", "NXDOMAIN")]
#[case("x.dns.cluster.local", "NXDOMAIN")]
#[case("x.ns.dns.cluster.local", "NXDOMAIN")]
#[case("x.dns-version.cluster.local", "NXDOMAIN")]
#[case("web.nowhere.svc.cluster.local", "NXDOMAIN")]
fn empty_non_terminals_exist(#[case] question: &str, #[case] expected: &str) {
    let world = World::new()
        .cluster("web", "10.96.0.20", "http/tcp:80")
        .cluster("plain", "10.96.0.21", "/tcp:80");
    let kind = hickory_proto::rr::RecordType::MX;
    assert_eq!(world.ask(question, kind), expected);
    let expected = if question.starts_with("x.") || expected == "NXDOMAIN" {
        "NXDOMAIN"
    } else {
        "NODATA"
    };
    assert_eq!(world.ask(question, A), expected);
}

#[test]
fn a_namespace_that_goes_is_gone_unless_services_are_in_it() {
    let mut world = World::new().cluster("web", "10.96.0.20", "");
    world.zone.remove_namespace("empty");
    assert_eq!(world.ask("empty.svc.cluster.local", A), "NXDOMAIN");
    world.zone.remove_namespace("default");
    assert_eq!(
        world.ask("web.default.svc.cluster.local", A),
        "A 10.96.0.20"
    );
}

#[test]
fn the_top_of_the_zone_has_soa_and_name_server() {
    let world = World::new();
    assert_eq!(world.ask("cluster.local", NS), "NS ns.dns.cluster.local.");
    assert_eq!(
        world.additional("cluster.local", NS),
        "ns.dns.cluster.local. A 10.96.0.10, ns.dns.cluster.local. AAAA fd00:96::a"
    );
    assert_eq!(world.ask("ns.dns.cluster.local", A), "A 10.96.0.10");
    let soa = world.ask("cluster.local", SOA);
    assert!(
        soa.starts_with("SOA ns.dns.cluster.local. hostmaster.cluster.local. "),
        "{soa}"
    );
}
