//! `*` and `any` stand for nothing but themselves (CoreDNS took wildcards away in
//! 1.9; RFC 4592 has them in zone files, not in questions).

use hickory_proto::rr::RecordType::{self, A, SRV};
use podwire_dns::PodRecords;
use rstest::rstest;

use crate::world::World;

#[rstest]
#[case::service("*.default.svc", A)]
#[case::any_service("any.default.svc", A)]
#[case::namespace("web.*.svc", A)]
#[case::any_namespace("web.any.svc", A)]
#[case::both("*.*.svc", A)]
#[case::endpoint("*.db.default.svc", A)]
#[case::any_endpoint("any.db.default.svc", A)]
#[case::port("*._tcp.web.default.svc", SRV)]
#[case::any_port("any.any.web.default.svc", SRV)]
#[case::protocol("_http.*.web.default.svc", SRV)]
#[case::pod("*.default.pod", A)]
#[case::namespace_of_a_pod("10-200-1-5.*.pod", A)]
fn a_star_is_a_label_like_others(#[case] left: &str, #[case] kind: RecordType) {
    let mut world = World::new()
        .pod("one", "10.200.1.5")
        .cluster("web", "10.96.0.20", "http/tcp:80")
        .headless("db")
        .slice("db-1", "db", "db-0=10.200.1.5", "sql/tcp:5432");
    for mode in [PodRecords::Insecure, PodRecords::Verified] {
        world.config.pods = mode;
        let question = format!("{left}.cluster.local");
        assert_eq!(world.ask(&question, kind), "NXDOMAIN", "{mode:?}");
    }
}
