//! Records for external name Services.

use hickory_proto::rr::RecordType::{self, A, CNAME, SRV};
use rstest::rstest;

use crate::world::World;

fn world() -> World {
    World::new()
        .cluster("web", "10.96.0.20", "http/tcp:80")
        .external("out", "www.example.com")
        .external("in", "web.default.svc.cluster.local")
        .external("far", "in.default.svc.cluster.local")
        .external("gone", "nothing.default.svc.cluster.local")
        .external("round", "about.default.svc.cluster.local")
        .external("about", "round.default.svc.cluster.local")
        .external("self", "self.default.svc.cluster.local")
}

#[rstest]
#[case::outside("out", A, "CNAME www.example.com., ask www.example.com.")]
#[case::itself("out", CNAME, "CNAME www.example.com.")]
#[case::inside(
    "in",
    A,
    "CNAME web.default.svc.cluster.local., web.default.svc.cluster.local. A 10.96.0.20"
)]
#[case::through_another(
    "far",
    A,
    "CNAME in.default.svc.cluster.local., \
     in.default.svc.cluster.local. CNAME web.default.svc.cluster.local., \
     web.default.svc.cluster.local. A 10.96.0.20"
)]
#[case::to_nothing("gone", A, "NXDOMAIN, CNAME nothing.default.svc.cluster.local.")]
fn s1_aliases(#[case] service: &str, #[case] kind: RecordType, #[case] expected: &str) {
    let question = format!("{service}.default.svc.cluster.local");
    assert_eq!(world().ask(&question, kind), expected);
}

#[rstest]
#[case("round")]
#[case("self")]
fn s1_a_loop_ends_with_a_failure(#[case] service: &str) {
    let question = format!("{service}.default.svc.cluster.local");
    let answer = world().ask(&question, A);
    assert!(answer.starts_with("SERVFAIL, CNAME"), "{answer}");
}

#[test]
fn s1_a_live_change_of_target_and_type_is_followed() {
    let name = "out.default.svc.cluster.local";
    let world = world().external("out", "other.example.com");
    assert_eq!(
        world.ask(name, A),
        "CNAME other.example.com., ask other.example.com."
    );
    let world = world.cluster("out", "10.96.0.30", "");
    assert_eq!(world.ask(name, A), "A 10.96.0.30");
}

#[test]
fn nothing_stands_below_an_external_name() {
    for left in ["_http._tcp.out", "x.out", "_tcp.out"] {
        let question = format!("{left}.default.svc.cluster.local");
        assert_eq!(world().ask(&question, SRV), "NXDOMAIN", "{left}");
    }
}
