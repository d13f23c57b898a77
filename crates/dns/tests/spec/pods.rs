//! Names of pods' addresses, by mode (CoreDNS's `pods` option; no part of the
//! specification any more).

use hickory_proto::rr::RecordType::{self, A, AAAA};
use podwire_dns::PodRecords;
use rstest::rstest;

use crate::world::World;

#[rstest]
#[case::disabled(PodRecords::Disabled, "10-200-1-5.default", A, "NXDOMAIN")]
#[case::insecure_any(PodRecords::Insecure, "10-200-9-9.default", A, "A 10.200.9.9")]
#[case::insecure_v6(PodRecords::Insecure, "fd00-200--9.default", AAAA, "AAAA fd00:200::9")]
#[case::insecure_other_family(PodRecords::Insecure, "10-200-9-9.default", AAAA, "NODATA")]
#[case::insecure_no_address(PodRecords::Insecure, "web.default", A, "NXDOMAIN")]
#[case::insecure_unknown_namespace(PodRecords::Insecure, "10-200-1-5.nowhere", A, "NXDOMAIN")]
#[case::verified(PodRecords::Verified, "10-200-1-5.default", A, "A 10.200.1.5")]
#[case::verified_nobody(PodRecords::Verified, "10-200-9-9.default", A, "NXDOMAIN")]
#[case::verified_other_namespace(PodRecords::Verified, "10-200-1-5.empty", A, "NXDOMAIN")]
#[case::namespace(PodRecords::Insecure, "default", A, "NODATA")]
#[case::below_nothing(PodRecords::Insecure, "x.10-200-1-5.default", A, "NXDOMAIN")]
fn pod_names(
    #[case] mode: PodRecords,
    #[case] left: &str,
    #[case] kind: RecordType,
    #[case] expected: &str,
) {
    let mut world = World::new().pod("one", "10.200.1.5 fd00:200::5");
    world.config.pods = mode;
    let question = format!("{left}.pod.cluster.local");
    assert_eq!(world.ask(&question, kind), expected);
}

#[test]
fn a_pod_that_goes_frees_its_name_but_not_its_successors() {
    let mut world = World::new()
        .pod("old", "10.200.1.5")
        .pod("new", "10.200.1.5");
    world.config.pods = PodRecords::Verified;
    world.zone.remove_pod("default", "old");
    let name = "10-200-1-5.default.pod.cluster.local";
    assert_eq!(world.ask(name, A), "A 10.200.1.5");
    world.zone.remove_pod("default", "new");
    assert_eq!(world.ask(name, A), "NXDOMAIN");
}
