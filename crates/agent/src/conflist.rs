//! The CNI configuration list. Its presence tells the kubelet's runtime that
//! the node is ready for pods.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde_json::json;

use crate::options::Attach;

/// Name of the file. Runtimes take the first by name.
pub(crate) const FILE: &str = "10-podwire.conflist";

/// The list's text.
pub(crate) fn text(attach: Attach, mtu: u32, ranges: &[IpNet]) -> String {
    let ranges: Vec<_> = ranges
        .iter()
        .map(|range| json!([{"subnet": range}]))
        .collect();
    let list = json!({
        "cniVersion": "1.0.0",
        "name": "podwire",
        "plugins": [{
            "type": "podwire-cni",
            "attach": attach.name(),
            "mtu": mtu,
            "ipam": {"ranges": ranges},
        }],
    });
    format!("{list:#}\n")
}

/// Writes the list so that a reader sees the old one or the new one, and
/// nothing at all happens when it is there already. Returns whether it was not.
pub(crate) fn write(directory: &Path, text: &str) -> io::Result<bool> {
    let path = directory.join(FILE);
    if fs::read(&path).is_ok_and(|there| there == text.as_bytes()) {
        return Ok(false);
    }
    fs::create_dir_all(directory)?;
    // Runtimes look at names that end in .conf, .conflist and .json only.
    let temporary = directory.join(format!(".{FILE}.new"));
    let mut file = fs::File::create(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&temporary, &path)?;
    Ok(true)
}

/// Other lists that come first by name, so that runtimes would use them.
pub(crate) fn preferred_by_runtimes(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    let mut others: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let is_list = path
                .extension()
                .is_some_and(|kind| kind == "conf" || kind == "conflist" || kind == "json");
            is_list && path.file_name().is_some_and(|name| name < FILE)
        })
        .collect();
    others.sort();
    others
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_has_the_agreed_form() {
        let ranges = [
            "10.200.1.0/24".parse().unwrap(),
            "fd00:200:0:1::/64".parse().unwrap(),
        ];
        let text = text(Attach::Bridge, 1450, &ranges);
        let list: serde_json::Value = serde_json::from_str(&text).unwrap();
        let expected = r#"{"cniVersion":"1.0.0","name":"podwire","plugins":[{"type":"podwire-cni",
            "attach":"bridge","mtu":1450,
            "ipam":{"ranges":[[{"subnet":"10.200.1.0/24"}],[{"subnet":"fd00:200:0:1::/64"}]]}}]}"#;
        assert_eq!(
            list,
            serde_json::from_str::<serde_json::Value>(expected).unwrap()
        );
    }

    #[test]
    fn the_same_list_is_not_written_again() {
        let directory = tempfile::tempdir().unwrap();
        let below = directory.path().join("etc/cni/net.d");
        assert!(write(&below, "one").unwrap());
        let first = fs::metadata(below.join(FILE)).unwrap().modified().unwrap();
        assert!(!write(&below, "one").unwrap());
        assert_eq!(
            fs::metadata(below.join(FILE)).unwrap().modified().unwrap(),
            first
        );
        assert!(write(&below, "two").unwrap());
        assert_eq!(fs::read_to_string(below.join(FILE)).unwrap(), "two");
        assert_eq!(
            fs::read_dir(&below).unwrap().count(),
            1,
            "nothing temporary is left"
        );
    }

    #[test]
    fn lists_that_come_first_are_named() {
        let directory = tempfile::tempdir().unwrap();
        for name in [
            "00-other.conflist",
            "05-x.conf",
            "10-podwire.conflist",
            "99-y.conf",
            "README",
        ] {
            fs::write(directory.path().join(name), "").unwrap();
        }
        let names: Vec<_> = preferred_by_runtimes(directory.path())
            .iter()
            .map(|path| path.file_name().unwrap().to_owned())
            .collect();
        assert_eq!(names, ["00-other.conflist", "05-x.conf"]);
    }
}
