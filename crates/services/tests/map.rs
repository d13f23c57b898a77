//! The map from rules to tests in this crate's page names tests that there are.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Rust files below a directory.
fn sources(directory: &Path, into: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("readable").path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push(path);
        }
    }
}

#[test]
fn every_test_that_the_page_names_is_there() {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(own.join("README.md")).expect("the crate's page");
    let map = page
        .split_once("## Which test shows which rule")
        .and_then(|(_, rest)| rest.split_once("\n## "))
        .map(|(map, _)| map)
        .expect("the page has the map");
    let named: BTreeSet<&str> = map
        .lines()
        .filter(|line| line.starts_with('|'))
        .flat_map(|line| line.split('`').skip(1).step_by(2))
        // A test's name, often only its beginning.
        .filter(|word| word.contains('_') && !word.contains([' ', '.', '/']))
        .map(|word| word.trim_end_matches('…'))
        .collect();
    assert!(named.len() > 40, "{named:?}");
    let mut files = Vec::new();
    sources(own.parent().expect("the crates' directory"), &mut files);
    let text: String = files
        .iter()
        .map(|file| std::fs::read_to_string(file).expect("text"))
        .collect();
    let missing: Vec<&str> = named
        .into_iter()
        .filter(|name| {
            let file = format!("/{name}.rs");
            !text.contains(&format!("fn {name}"))
                && !text.contains(&format!("mod {name}"))
                && !files
                    .iter()
                    .any(|path| path.to_string_lossy().ends_with(&file))
        })
        .collect();
    assert_eq!(missing, [""; 0]);
}
