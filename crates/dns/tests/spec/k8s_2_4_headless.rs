//! Records for a headless Service.

use hickory_proto::rr::RecordType::{self, A, AAAA, PTR, SRV};
use rstest::rstest;

use crate::world::World;

fn world() -> World {
    World::new()
        .headless("db")
        .slice(
            "db-1",
            "db",
            "db-0=10.200.1.5 10.200.1.6",
            "sql/tcp:5432 metrics/tcp:9000",
        )
        // The same endpoint in two slices counts once; another slice has other ports.
        .slice("db-2", "db", "db-0=10.200.1.5", "sql/tcp:5432")
        .slice("db-3", "db", "db-2=10.200.2.7", "sql/tcp:6432")
        .slice(
            "db-4",
            "db",
            "db-0=fd00:200:0:1::5 fd00:200::6",
            "sql/tcp:5432",
        )
        .headless("quiet")
        .slice("quiet-1", "quiet", "", "sql/tcp:5432")
}

#[rstest]
#[case::v4("db", A, "A 10.200.1.5, A 10.200.1.6, A 10.200.2.7")]
#[case::v6("db", AAAA, "AAAA fd00:200:0:1::5, AAAA fd00:200::6")]
#[case::hostname("db-0.db", A, "A 10.200.1.5")]
#[case::hostname_v6("db-0.db", AAAA, "AAAA fd00:200:0:1::5")]
#[case::hostname_of_one_family("db-2.db", AAAA, "NODATA")]
#[case::dashed("10-200-1-6.db", A, "A 10.200.1.6")]
#[case::dashed_v6("fd00-200--6.db", AAAA, "AAAA fd00:200::6")]
#[case::dashed_of_one_with_hostname("10-200-1-5.db", A, "NXDOMAIN")]
#[case::no_such_hostname("db-9.db", A, "NXDOMAIN")]
#[case::without_ready_endpoints("quiet", A, "NXDOMAIN")]
#[case::without_ready_endpoints_v6("quiet", AAAA, "NXDOMAIN")]
fn s1_addresses(#[case] left: &str, #[case] kind: RecordType, #[case] expected: &str) {
    let question = format!("{left}.default.svc.cluster.local");
    assert_eq!(world().ask(&question, kind), expected);
}

#[test]
fn s2_ports_lead_to_each_endpoint_with_its_own_number() {
    assert_eq!(
        world().ask("_sql._tcp.db.default.svc.cluster.local", SRV),
        "SRV 0 25 5432 10-200-1-6.db.default.svc.cluster.local., \
         SRV 0 25 5432 db-0.db.default.svc.cluster.local., \
         SRV 0 25 5432 fd00-200--6.db.default.svc.cluster.local., \
         SRV 0 25 6432 db-2.db.default.svc.cluster.local."
    );
    assert_eq!(
        world().additional("_metrics._tcp.db.default.svc.cluster.local", SRV),
        "10-200-1-6.db.default.svc.cluster.local. A 10.200.1.6, \
         db-0.db.default.svc.cluster.local. A 10.200.1.5, \
         db-0.db.default.svc.cluster.local. AAAA fd00:200:0:1::5"
    );
    let quiet = "_sql._tcp.quiet.default.svc.cluster.local";
    assert_eq!(world().ask(quiet, SRV), "NXDOMAIN");
}

#[rstest]
#[case::hostname("5.1.200.10.in-addr.arpa", "PTR db-0.db.default.svc.cluster.local.")]
#[case::dashed(
    "6.1.200.10.in-addr.arpa",
    "PTR 10-200-1-6.db.default.svc.cluster.local."
)]
#[case::gone("9.1.200.10.in-addr.arpa", "NXDOMAIN")]
fn s3_reverse(#[case] question: &str, #[case] expected: &str) {
    assert_eq!(world().ask(question, PTR), expected);
}

#[test]
fn an_address_of_two_services_has_two_names_and_keeps_the_other() {
    let mut world = world()
        .headless("all")
        .slice("all-1", "all", "10.200.1.5", "");
    let question = "5.1.200.10.in-addr.arpa";
    assert_eq!(
        world.ask(question, PTR),
        "PTR 10-200-1-5.all.default.svc.cluster.local., PTR db-0.db.default.svc.cluster.local."
    );
    world.zone.remove_slice("default", "all-1");
    assert_eq!(
        world.ask(question, PTR),
        "PTR db-0.db.default.svc.cluster.local."
    );
}

#[test]
fn a_change_of_a_slice_changes_its_names() {
    let mut world = world().slice("db-3", "db", "db-3=10.200.2.8", "sql/tcp:6432");
    let ask =
        |world: &World, left: &str| world.ask(&format!("{left}.db.default.svc.cluster.local"), A);
    assert_eq!(
        [ask(&world, "db-2"), ask(&world, "db-3")],
        ["NXDOMAIN", "A 10.200.2.8"]
    );
    assert_eq!(world.ask("7.2.200.10.in-addr.arpa", PTR), "NXDOMAIN");
    // To another Service.
    world = world
        .headless("other")
        .slice("db-3", "other", "db-3=10.200.2.8", "");
    assert_eq!(ask(&world, "db-3"), "NXDOMAIN");
    assert_eq!(
        world.ask("db-3.other.default.svc.cluster.local", A),
        "A 10.200.2.8"
    );
}

#[test]
fn slices_that_come_before_their_service_wait_for_it() {
    let world = World::new().slice("late-1", "late", "10.200.1.9", "");
    let name = "late.default.svc.cluster.local";
    assert_eq!(world.ask(name, A), "NXDOMAIN");
    assert_eq!(world.headless("late").ask(name, A), "A 10.200.1.9");
}
