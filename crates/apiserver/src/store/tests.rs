use super::*;
use serde_json::json;

async fn put(store: &Store, name: &str, expect: Expect) -> Arc<Stored> {
    let write = Write {
        collection: "things".into(),
        key: Key::new("ns", name),
        expect,
        value: Some(json!({"metadata": {"name": name}})),
        live_namespace: None,
    };
    store.write(write).await.unwrap()
}

fn open() -> (tempfile::TempDir, Store) {
    // In memory: each change would wait for the disk otherwise.
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let store = Store::open(&dir.path().join("store")).unwrap();
    (dir, store)
}

#[tokio::test]
async fn revisions_rise_over_collections_and_restarts() {
    let (dir, store) = open();
    let a = put(&store, "a", Expect::Absent).await;
    let b = put(&store, "b", Expect::Absent).await;
    assert!(b.revision > a.revision);
    assert_eq!(crate::object::revision(&b.value), Some(b.revision));
    store.close();
    let store = Store::open(&dir.path().join("store")).unwrap();
    assert_eq!(store.revision(), b.revision);
    let c = put(&store, "c", Expect::Absent).await;
    assert!(c.revision > b.revision);
}

#[tokio::test]
async fn a_watcher_that_is_too_slow_is_told_that_it_missed_something() {
    let (_dir, store) = open();
    let first = put(&store, "a", Expect::Absent).await;
    let (_, mut slow) = store.watch_now("things", None);
    // One more change than the history holds, most of them at once.
    let names: Vec<_> = (2..=8192).map(|number| format!("b{number}")).collect();
    let others = names.iter().map(|name| put(&store, name, Expect::Absent));
    futures::future::join_all(others).await;
    let mut last = first.revision;
    for _ in 0..2 {
        last = put(&store, "a", Expect::Revision(last)).await.revision;
    }
    assert!(matches!(
        store.events(&mut slow),
        Err(StoreError::Expired { .. })
    ));
    assert!(matches!(
        store.watch_from("things", first.revision),
        Err(StoreError::Expired { .. })
    ));
    assert!(matches!(
        store.list_at("things", None, first.revision),
        Err(StoreError::Expired { .. })
    ));
    assert_eq!(
        store.list_at("things", None, last - 1).unwrap().objects[0].revision,
        last - 1
    );
}

#[tokio::test]
async fn a_revision_of_the_future_is_expired() {
    let (_dir, store) = open();
    assert!(matches!(
        store.watch_from("things", store.revision() + 1),
        Err(StoreError::Expired { .. })
    ));
}

#[tokio::test]
async fn a_closed_store_says_so() {
    let (_dir, store) = open();
    store.close();
    let write = Write {
        collection: "things".into(),
        key: Key::new("", "a"),
        expect: Expect::Absent,
        value: Some(json!({})),
        live_namespace: None,
    };
    assert!(matches!(store.write(write).await, Err(StoreError::Closed)));
}

#[test]
fn a_file_that_is_no_database_is_refused_with_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    std::fs::write(
        &path,
        "not a database, but long enough to look at".repeat(100),
    )
    .unwrap();
    let error = Store::open(&path).err().unwrap().to_string();
    assert!(error.contains("cannot open the store"), "{error}");
    assert!(error.contains(path.to_str().unwrap()), "{error}");
}
