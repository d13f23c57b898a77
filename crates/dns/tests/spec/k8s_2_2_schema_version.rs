//! Record for schema version.

use hickory_proto::rr::RecordType;

use crate::world::World;

#[test]
fn the_schema_version_is_a_text_record() {
    let world = World::new();
    let name = "dns-version.cluster.local";
    assert_eq!(world.ask(name, RecordType::TXT), "TXT 1.1.0");
    assert_eq!(world.ask(name, RecordType::A), "NODATA");
}
