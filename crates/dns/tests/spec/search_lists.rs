//! The client's search list, walked by the server.

use hickory_proto::rr::RecordType::{self, A, AAAA};
use rstest::rstest;

use crate::world::World;

const POD: Option<&str> = Some("10.200.1.5");

fn world() -> World {
    World::new()
        .pod("client", "10.200.1.5 fd00:200::5")
        .cluster("web", "10.96.0.20", "")
        .external("out", "www.example.com")
}

#[rstest]
#[case::found_at_once("web", A, "A 10.96.0.20")]
#[case::of_a_name_with_namespace(
    "web.default",
    A,
    "CNAME web.default.svc.cluster.local., web.default.svc.cluster.local. A 10.96.0.20"
)]
#[case::both_families_alike("web.default", AAAA, "CNAME web.default.svc.cluster.local.")]
#[case::whole_cluster_name(
    "web.default.svc.cluster.local",
    A,
    "CNAME web.default.svc.cluster.local., web.default.svc.cluster.local. A 10.96.0.20"
)]
#[case::alias_found(
    "out.default",
    A,
    "CNAME out.default.svc.cluster.local., \
     out.default.svc.cluster.local. CNAME www.example.com., ask www.example.com."
)]
#[case::outside("example.com", A, "ask example.com.corp.example. example.com.")]
#[case::nothing(
    "no.default.svc.cluster.local",
    A,
    "ask no.default.svc.cluster.local.corp.example."
)]
fn the_first_question_is_answered_like_the_last(
    #[case] wanted: &str,
    #[case] kind: RecordType,
    #[case] expected: &str,
) {
    let question = format!("{wanted}.default.svc.cluster.local");
    assert_eq!(world().ask_as(&question, kind, POD), expected);
}

#[rstest]
#[case::stranger(Some("192.0.2.1"))]
#[case::nobody(None)]
fn who_is_not_known_walks_alone(#[case] client: Option<&str>) {
    let question = "example.com.default.svc.cluster.local";
    assert_eq!(world().ask_as(question, A, client), "NXDOMAIN");
}

#[test]
fn it_can_be_turned_off() {
    let mut world = world();
    world.config.search_completion = false;
    let question = "example.com.default.svc.cluster.local";
    assert_eq!(world.ask_as(question, A, POD), "NXDOMAIN");
}
