//! Records for a Service with ClusterIP.

use hickory_proto::rr::RecordType::{self, A, AAAA, MX, PTR, SRV};
use rstest::rstest;

use crate::world::World;

fn world() -> World {
    World::new()
        .cluster("web", "10.96.0.20 fd00:96::20", "http/tcp:80 dns/udp:53")
        .slice(
            "web-1",
            "web",
            "one=10.200.1.5 10.200.1.6",
            "http/tcp:8080 dns/udp:5353",
        )
        .slice("web-2", "web", "fd00:200:0:1::5", "http/tcp:8080")
        .cluster("1st", "10.96.0.31", "http/tcp:80")
        .cluster("six", "fd00:96::6", "/tcp:80")
}

#[rstest]
#[case::v4("web", A, "A 10.96.0.20")]
#[case::v6("web", AAAA, "AAAA fd00:96::20")]
#[case::other_letters("WEB", A, "A 10.96.0.20")]
#[case::begins_with_a_digit("1st", A, "A 10.96.0.31")]
#[case::only_v6("six", AAAA, "AAAA fd00:96::6")]
#[case::only_v6_asked_for_v4("six", A, "NODATA")]
#[case::other_type("web", MX, "NODATA")]
#[case::no_such_service("other", A, "NXDOMAIN")]
#[case::no_such_service_v6("other", AAAA, "NXDOMAIN")]
#[case::endpoint_by_hostname("one.web", A, "A 10.200.1.5")]
#[case::endpoint_by_dashed_address("10-200-1-6.web", A, "A 10.200.1.6")]
#[case::endpoint_by_dashed_address_v6("fd00-200-0-1--5.web", AAAA, "AAAA fd00:200:0:1::5")]
#[case::endpoint_with_hostname_by_dashed_address("10-200-1-5.web", A, "NXDOMAIN")]
fn s1_addresses(#[case] service: &str, #[case] kind: RecordType, #[case] expected: &str) {
    let question = format!("{service}.default.svc.cluster.local");
    assert_eq!(world().ask(&question, kind), expected);
}

#[rstest]
#[case::named("_http._tcp.web", SRV, "SRV 0 100 80 web.default.svc.cluster.local.")]
#[case::udp("_dns._udp.web", SRV, "SRV 0 100 53 web.default.svc.cluster.local.")]
#[case::other_letters("_HTTP._TCP.web", SRV, "SRV 0 100 80 web.default.svc.cluster.local.")]
#[case::all_ports(
    "web",
    SRV,
    "SRV 0 50 53 web.default.svc.cluster.local., SRV 0 50 80 web.default.svc.cluster.local."
)]
#[case::unnamed_port_of_the_service("six", SRV, "SRV 0 100 80 six.default.svc.cluster.local.")]
#[case::other_protocol("_http._udp.web", SRV, "NXDOMAIN")]
#[case::without_underscore("http._tcp.web", SRV, "NXDOMAIN")]
#[case::no_such_port("_https._tcp.web", SRV, "NXDOMAIN")]
#[case::unnamed_ports_have_none("_._tcp.six", SRV, "NXDOMAIN")]
#[case::address_of_a_port("_http._tcp.web", A, "NODATA")]
fn s2_ports(#[case] left: &str, #[case] kind: RecordType, #[case] expected: &str) {
    let question = format!("{left}.default.svc.cluster.local");
    assert_eq!(world().ask(&question, kind), expected);
}

#[test]
fn s2_the_addresses_of_a_port_come_with_it() {
    assert_eq!(
        world().additional("_http._tcp.web.default.svc.cluster.local", SRV),
        "web.default.svc.cluster.local. A 10.96.0.20, \
         web.default.svc.cluster.local. AAAA fd00:96::20"
    );
}

#[rstest]
#[case::v4("20.0.96.10.in-addr.arpa", PTR, "PTR web.default.svc.cluster.local.")]
#[case::v6(
    "0.2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.0.d.f.ip6.arpa",
    PTR,
    "PTR web.default.svc.cluster.local."
)]
#[case::endpoint(
    "5.1.200.10.in-addr.arpa",
    PTR,
    "PTR one.web.default.svc.cluster.local."
)]
#[case::endpoint_without_hostname(
    "6.1.200.10.in-addr.arpa",
    PTR,
    "PTR 10-200-1-6.web.default.svc.cluster.local."
)]
#[case::nobodys("99.0.96.10.in-addr.arpa", PTR, "NXDOMAIN")]
#[case::other_type("20.0.96.10.in-addr.arpa", A, "NODATA")]
#[case::in_the_middle("96.10.in-addr.arpa", PTR, "NODATA")]
#[case::not_ours("1.2.0.192.in-addr.arpa", PTR, "ask 1.2.0.192.in-addr.arpa.")]
#[case::above_ours("10.in-addr.arpa", PTR, "ask 10.in-addr.arpa.")]
#[case::nonsense("x.0.96.10.in-addr.arpa", PTR, "ask x.0.96.10.in-addr.arpa.")]
fn s3_reverse(#[case] question: &str, #[case] kind: RecordType, #[case] expected: &str) {
    assert_eq!(world().ask(question, kind), expected);
}

#[test]
fn a_service_that_changes_or_goes_takes_its_names_along() {
    let mut world = world();
    world = world.cluster("web", "10.96.0.21", "http/tcp:81");
    let name = "web.default.svc.cluster.local";
    assert_eq!(world.ask(name, A), "A 10.96.0.21");
    assert_eq!(world.ask(name, AAAA), "NODATA");
    assert_eq!(world.ask("20.0.96.10.in-addr.arpa", PTR), "NXDOMAIN");
    let key = podwire_dns::model::ServiceKey::new("default", "web");
    world.zone.remove_service(&key);
    assert_eq!(world.ask(name, A), "NXDOMAIN");
    assert_eq!(world.ask("21.0.96.10.in-addr.arpa", PTR), "NXDOMAIN");
    assert_eq!(world.ask("5.1.200.10.in-addr.arpa", PTR), "NXDOMAIN");
}
