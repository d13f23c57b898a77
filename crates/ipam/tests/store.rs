//! Reservations: who gets which address, under concurrency and sudden death.
#![allow(clippy::unwrap_used, reason = "tests say what they expect with unwrap")]

use std::collections::{HashMap, HashSet};
use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::process::{Command, Stdio};

use podwire_ipam::{Attachment, Claim, Error, Pod, Range, RangeSet, Reserved, Store};
use proptest::prelude::*;
use tempfile::TempDir;

fn sets(json: &str) -> Vec<RangeSet> {
    let ranges: Vec<Vec<Range>> = serde_json::from_str(json).unwrap();
    RangeSet::all(&ranges).unwrap()
}

/// Five addresses.
fn small() -> Vec<RangeSet> {
    sets(r#"[[{"subnet":"10.0.0.0/29"}]]"#)
}

fn dual() -> Vec<RangeSet> {
    sets(r#"[[{"subnet":"10.0.0.0/22"}],[{"subnet":"fd00::/64"}]]"#)
}

fn claim(container: &str) -> Claim {
    Claim {
        attachment: Attachment::new(container, "eth0"),
        pod: Some(Pod {
            namespace: "shop".to_owned(),
            name: format!("pod-{container}"),
            uid: String::new(),
        }),
        wanted: Vec::new(),
        apart: false,
        notes: HashMap::new(),
    }
}

fn store(root: &TempDir) -> Store {
    Store::new(root.path(), "pods").unwrap()
}

fn first(reserved: &[Reserved]) -> String {
    reserved[0].address.to_string()
}

#[test]
fn one_address_of_each_family_is_given_with_its_gateway() {
    let root = TempDir::new().unwrap();
    let given = store(&root).reserve(&claim("a"), &dual()).unwrap();
    let given: Vec<_> = given
        .iter()
        .map(|r| (r.address.to_string(), r.gateway.to_string()))
        .collect();
    assert_eq!(
        given,
        [
            ("10.0.0.2/22".to_owned(), "10.0.0.1".to_owned()),
            ("fd00::2/64".to_owned(), "fd00::1".to_owned())
        ]
    );
    // A person reads who holds an address.
    let file = fs::read_to_string(root.path().join("pods/fd00::2.json")).unwrap();
    assert!(
        file.contains("pod-a") && file.contains("10.0.0.2"),
        "{file}"
    );
}

#[test]
fn no_ranges_gateway_is_given_of_another_range_of_the_subnet() {
    let root = TempDir::new().unwrap();
    let parts = sets(
        r#"[[{"subnet":"10.0.0.0/29","rangeEnd":"10.0.0.3","gateway":"10.0.0.6"},
             {"subnet":"10.0.0.0/29","rangeStart":"10.0.0.4"}]]"#,
    );
    let given: Vec<_> = ["a", "b", "c", "d"]
        .iter()
        .map(|name| first(&store(&root).reserve(&claim(name), &parts).unwrap()))
        .collect();
    let all = ["10.0.0.2/29", "10.0.0.3/29", "10.0.0.4/29", "10.0.0.5/29"];
    assert_eq!(given, all);
    store(&root).reserve(&claim("e"), &parts).unwrap_err();
}

#[test]
fn an_address_rests_as_long_as_possible_before_it_is_used_again() {
    let root = TempDir::new().unwrap();
    let store = store(&root);
    let take = |name: &str| first(&store.reserve(&claim(name), &small()).unwrap());
    let give = |name: &str| store.release(&claim(name).attachment).unwrap().unwrap();
    assert_eq!(take("a"), "10.0.0.2/29");
    give("a");
    assert_eq!(take("b"), "10.0.0.3/29");
    assert_eq!(take("c"), "10.0.0.4/29");
    give("c");
    give("b");
    assert_eq!(take("d"), "10.0.0.5/29");
    assert_eq!(take("e"), "10.0.0.6/29");
    // None is fresh now: the one released first comes first.
    assert_eq!(take("f"), "10.0.0.2/29");
    assert_eq!(take("g"), "10.0.0.4/29");
    assert_eq!(take("h"), "10.0.0.3/29");
    give("f");
    give("d");
    assert_eq!(take("i"), "10.0.0.2/29");
    assert_eq!(take("j"), "10.0.0.5/29");
}

#[test]
fn asking_again_gives_the_same_and_releasing_again_is_fine() {
    let root = TempDir::new().unwrap();
    let store = store(&root);
    assert_eq!(store.release(&claim("a").attachment).unwrap(), None);
    let once = store.reserve(&claim("a"), &dual()).unwrap().to_vec();
    assert_eq!(*store.reserve(&claim("a"), &dual()).unwrap(), *once);
    assert_eq!(store.count().unwrap(), 2);
    let mut other = claim("a");
    other.attachment.interface = "eth1".to_owned();
    assert_ne!(*store.reserve(&other, &dual()).unwrap(), *once);
    let released = store.release(&claim("a").attachment).unwrap().unwrap();
    assert_eq!(released.addresses[0], once[0].address.addr());
    assert_eq!(store.release(&claim("a").attachment).unwrap(), None);
    assert_eq!(store.list().unwrap().len(), 1);
}

#[test]
fn a_retired_reservation_holds_its_addresses_until_it_is_freed() {
    let root = TempDir::new().unwrap();
    let store = store(&root);
    let given = store.reserve(&claim("a"), &small()).unwrap().to_vec();
    let held = store.retire(&claim("a").attachment).unwrap().unwrap();
    assert_eq!(held.addresses, [given[0].address.addr()]);
    assert_eq!(store.find(&claim("a").attachment).unwrap(), None);
    assert_eq!(store.retire(&claim("a").attachment).unwrap(), None);

    // The same container again, and all others, get other addresses.
    let again = store.reserve(&claim("a"), &small()).unwrap().to_vec();
    assert_ne!(again, given);
    store.retire(&claim("a").attachment).unwrap();
    for container in ["b", "c", "d"] {
        let other = store.reserve(&claim(container), &small()).unwrap().to_vec();
        assert!(other != given && other != again);
    }
    let full = store.reserve(&claim("e"), &small()).unwrap_err();
    assert!(full.to_string().contains("5 held"), "{full}");

    let retired = store.releasing().unwrap();
    assert_eq!(retired.len(), 2);
    assert!(store.strays().unwrap().is_empty());
    store.free(&retired).unwrap();
    store.free(&retired).unwrap();
    assert!(store.releasing().unwrap().is_empty());
    assert_eq!(store.count().unwrap(), 3);
    store.reserve(&claim("e"), &small()).unwrap();
}

#[test]
fn a_full_pool_says_how_many_are_held_and_by_whom_and_reserves_nothing() {
    let root = TempDir::new().unwrap();
    let store = store(&root);
    let both = sets(r#"[[{"subnet":"fd00::/64"}],[{"subnet":"10.0.0.0/29"}]]"#);
    for name in ["a", "b", "c", "d", "e"] {
        store.reserve(&claim(name), &both).unwrap();
    }
    let text = store.reserve(&claim("f"), &both).unwrap_err().to_string();
    assert!(
        text.contains("no free address in 10.0.0.1-10.0.0.6"),
        "{text}"
    );
    assert!(
        text.contains("5 held") && text.contains("shop/pod-c"),
        "{text}"
    );
    assert_eq!(store.count().unwrap(), 10);
    assert!(store.has_room(&both, false).is_err());
    store.release(&claim("c").attachment).unwrap();
    store.has_room(&both, false).unwrap();
    store.reserve(&claim("f"), &both).unwrap();
}

#[test]
fn particular_addresses_are_given_when_they_are_free_and_allowed() {
    let root = TempDir::new().unwrap();
    let store = store(&root);
    let ask = |name: &str, wanted: &[&str]| {
        let wanted = wanted.iter().map(|a| a.parse().unwrap()).collect();
        let claim = Claim {
            wanted,
            ..claim(name)
        };
        store.reserve(&claim, &dual())
    };
    let given = ask("a", &["fd00::77"]).unwrap();
    assert_eq!(given[1].address.to_string(), "fd00::77/64");
    let error = ask("b", &["fd00::77"]).unwrap_err();
    assert!(error.to_string().contains("shop/pod-a"), "{error}");
    for outside in ["10.0.0.0", "10.0.0.1", "10.0.3.255", "10.9.9.9"] {
        let error = ask("b", &[outside]).unwrap_err();
        assert!(matches!(error, Error::NotInRanges(_)), "{error}");
    }
    assert_eq!(store.count().unwrap(), 2);
}

#[test]
fn no_name_leads_out_of_the_directory() {
    let root = TempDir::new().unwrap();
    for name in ["", "..", ".", "a/b", ".hidden", "a\0b"] {
        assert!(Store::new(root.path(), name).is_err(), "{name:?}");
    }
    let store = store(&root);
    for container in ["../../../etc/passwd", "/", "", "a\nb", &"x".repeat(5000)] {
        store.reserve(&claim(container), &dual()).unwrap();
    }
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
    assert_eq!(store.list().unwrap().len(), 5);
}

#[test]
fn what_a_death_left_half_made_is_finished_or_undone() {
    // Each state is one that a kill between two system calls leaves.
    let root = TempDir::new().unwrap();
    let store = store(&root);
    let attachment = claim("a").attachment;
    let folder = root.path().join("pods");
    let file = folder.join(format!("attachments/{}.json", attachment.key()));
    let address_files = |given: &[Reserved]| -> Vec<_> {
        given
            .iter()
            .map(|r| folder.join(format!("{}.json", r.address.addr())))
            .collect()
    };

    // The attachment's file is there; the last or both addresses' are not.
    for missing in 1..=2 {
        for repeat in [true, false] {
            let given = store.reserve(&claim("a"), &dual()).unwrap().to_vec();
            for path in address_files(&given).iter().rev().take(missing) {
                fs::remove_file(path).unwrap();
            }
            assert_eq!(store.find(&attachment).unwrap(), None);
            if repeat {
                assert_eq!(store.reserve(&claim("a"), &dual()).unwrap().len(), 2);
                assert_eq!(store.count().unwrap(), 2);
            }
            store.release(&attachment).unwrap();
            assert_eq!(store.count().unwrap(), 0);
            assert!(!file.exists());
        }
    }

    // Meanwhile another took the address that was not linked yet.
    let given = store.reserve(&claim("a"), &small()).unwrap().to_vec();
    let path = &address_files(&given)[0];
    fs::remove_file(path).unwrap();
    fs::write(path, "{}").unwrap();
    assert_eq!(store.find(&attachment).unwrap(), None);
    store.release(&attachment).unwrap();
    assert!(path.exists(), "another's reservation stays");
    fs::remove_file(path).unwrap();

    // A file aside that never was renamed, and damaged files.
    fs::write(folder.join("new"), "half").unwrap();
    fs::write(folder.join("released"), "nonsense\n10.0.0.3\n\u{0}").unwrap();
    store.reserve(&claim("a"), &dual()).unwrap();
    fs::write(&file, "{ broken").unwrap();
    assert_eq!(store.list().unwrap(), []);
    store.release(&attachment).unwrap();
    assert_eq!(store.count().unwrap(), 0);
}

#[test]
fn a_reservation_is_held_while_its_maker_lives_and_uses_it() {
    let root = TempDir::new().unwrap();
    let store = store(&root);
    let attachment = claim("a").attachment;
    assert!(store.try_hold(&attachment).unwrap().is_none());
    let lease = store.reserve(&claim("a"), &dual()).unwrap();
    assert!(store.try_hold(&attachment).unwrap().is_none());
    drop(lease);
    let hold = store.try_hold(&attachment).unwrap().unwrap();
    // One who asks again waits until nobody is about to take it away, and then
    // gets what is there by then.
    let given = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| store.reserve(&claim("a"), &dual()).unwrap().to_vec());
        store.release(&attachment).unwrap();
        drop(hold);
        waiting.join().unwrap()
    });
    assert_eq!(store.find(&attachment).unwrap().unwrap().addresses.len(), 2);
    assert_eq!(given.len(), 2);
}

#[test]
fn files_that_belong_to_nobody_are_found_and_removed() {
    let root = TempDir::new().unwrap();
    let store = store(&root);
    assert_eq!(store.strays().unwrap(), Vec::<std::path::PathBuf>::new());
    drop(store.reserve(&claim("a"), &dual()).unwrap());
    drop(store.reserve(&claim("b"), &dual()).unwrap());
    assert_eq!(store.strays().unwrap(), Vec::<std::path::PathBuf>::new());
    let folder = root.path().join("pods");
    let own = folder.join(format!("attachments/{}.json", claim("b").attachment.key()));
    fs::remove_file(own).unwrap();
    fs::write(folder.join("attachments/damaged.json"), "{").unwrap();
    let strays = store.strays().unwrap();
    let names: Vec<_> = strays
        .iter()
        .map(|path| path.file_name().unwrap())
        .collect();
    assert_eq!(names, ["10.0.0.3.json", "damaged.json", "fd00::3.json"]);
    assert_eq!(store.remove_strays().unwrap(), strays);
    assert_eq!(store.count().unwrap(), 2);
    assert_eq!(store.list().unwrap().len(), 1);
    assert_eq!(Store::all(root.path()).unwrap()[0].network(), "pods");
}

#[test]
fn a_directory_that_cannot_be_written_is_named_in_the_error() {
    let root = TempDir::new().unwrap();
    fs::write(root.path().join("pods"), "").unwrap();
    let error = store(&root).reserve(&claim("a"), &dual()).unwrap_err();
    assert!(error.to_string().contains("pods"), "{error}");
}

#[test]
fn threads_never_get_the_same_address() {
    let root = TempDir::new().unwrap();
    let ranges = dual();
    let given: Vec<IpAddr> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|thread| {
                let (root, ranges) = (&root, &ranges);
                scope.spawn(move || {
                    let store = store(root);
                    (0..25)
                        .map(|n| claim(&format!("{thread}-{n}")))
                        .flat_map(|claim| store.reserve(&claim, ranges).unwrap().to_vec())
                        .map(|r| r.address.addr())
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap())
            .collect()
    });
    assert_eq!(given.len(), 400);
    assert_eq!(given.iter().collect::<HashSet<_>>().len(), 400);
    assert_eq!(store(&root).count().unwrap(), 400);
}

/// The body of the processes of the test below: takes and gives back until it
/// is killed. Returns at once when run as an ordinary test.
#[test]
fn worker() {
    let (Ok(root), Ok(name)) = (
        std::env::var("IPAM_WORKER_ROOT"),
        std::env::var("IPAM_WORKER_NAME"),
    ) else {
        return;
    };
    let store = Store::new(Path::new(&root), "pods").unwrap();
    let ranges = dual();
    for round in 0u64.. {
        let claim = claim(&format!("{name}-{}", round % 7));
        store.reserve(&claim, &ranges).unwrap();
        if round % 3 != 0 {
            store.release(&claim.attachment).unwrap();
        }
    }
}

#[test]
fn killed_processes_lose_and_double_nothing() {
    let root = TempDir::new().unwrap();
    let store = store(&root);
    let spawn = |name: usize| {
        Command::new(std::env::current_exe().unwrap())
            .args(["worker", "--exact", "--test-threads=1"])
            .env("IPAM_WORKER_ROOT", root.path())
            .env("IPAM_WORKER_NAME", name.to_string())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    };
    let mut workers: Vec<_> = (0..4).map(spawn).collect();
    let mut mine = 0u32;
    for round in 0..60 {
        // Some work of our own between the kills, so that they fall anywhere.
        for _ in 0..=round % 5 {
            mine += 1;
            let claim = claim(&format!("mine-{mine}"));
            store.reserve(&claim, &dual()).unwrap();
            store.release(&claim.attachment).unwrap();
        }
        let victim = round % workers.len();
        let ended = workers[victim].try_wait().unwrap();
        assert!(ended.is_none(), "a worker failed: {ended:?}");
        workers[victim].kill().unwrap();
        workers[victim].wait().unwrap();
        workers[victim] = spawn(victim);
    }
    for mut worker in workers {
        worker.kill().unwrap();
        worker.wait().unwrap();
    }
    // No address has two holders, and every address's file belongs to an
    // attachment, so that releasing all attachments leaves none.
    let mut seen = HashSet::new();
    for reservation in store.list().unwrap() {
        if store.find(&reservation.attachment).unwrap().is_some() {
            for address in &reservation.addresses {
                assert!(seen.insert(*address), "{address} is held twice");
            }
        }
        store.release(&reservation.attachment).unwrap();
    }
    assert_eq!(store.count().unwrap(), 0);
    assert!(!seen.is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_store_agrees_with_a_model(
        steps in proptest::collection::vec((0u8..12, any::<bool>()), 1..60),
    ) {
        let root = TempDir::new().unwrap();
        let store = store(&root);
        let ranges = small();
        let mut model: HashMap<u8, IpAddr> = HashMap::new();
        for (who, take) in steps {
            let claim = claim(&who.to_string());
            if take {
                match store.reserve(&claim, &ranges) {
                    Ok(given) => {
                        let address = given[0].address.addr();
                        prop_assert!(ranges[0].allows(address));
                        if let Some(before) = model.get(&who) {
                            prop_assert_eq!(*before, address);
                        } else {
                            prop_assert!(!model.values().any(|a| *a == address));
                            model.insert(who, address);
                        }
                    }
                    Err(Error::Full { held, .. }) => {
                        prop_assert_eq!(model.len(), 5);
                        prop_assert_eq!(held.len(), 5);
                    }
                    Err(other) => return Err(TestCaseError::fail(other.to_string())),
                }
            } else {
                let released = store.release(&claim.attachment).unwrap();
                prop_assert_eq!(released.map(|r| r.addresses[0]), model.remove(&who));
            }
            prop_assert_eq!(store.count().unwrap(), model.len());
        }
    }
}
