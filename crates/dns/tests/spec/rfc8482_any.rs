//! RFC 8482: the least possible answer to ANY.

use hickory_proto::rr::RecordType::ANY;

use crate::world::World;

#[test]
fn any_is_answered_with_one_small_record_where_the_name_exists() {
    let world = World::new()
        .cluster("web", "10.96.0.20", "http/tcp:80")
        .headless("db")
        .slice("db-1", "db", "10.200.1.5", "")
        .external("out", "www.example.com");
    for name in [
        "cluster.local",
        "svc.cluster.local",
        "default.svc.cluster.local",
        "web.default.svc.cluster.local",
        "_http._tcp.web.default.svc.cluster.local",
        "db.default.svc.cluster.local",
        "dns-version.cluster.local",
    ] {
        assert_eq!(world.ask(name, ANY), "HINFO RFC8482 ", "{name}");
    }
    assert_eq!(
        world.ask("out.default.svc.cluster.local", ANY),
        "CNAME www.example.com."
    );
    assert_eq!(world.ask("no.default.svc.cluster.local", ANY), "NXDOMAIN");
}
