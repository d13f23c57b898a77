//! A resolver's configuration file, which `ipam.resolvConf` names, as the `dns`
//! of a result: read as the reference `host-local` reads it.
//!
//! Source: resolv.conf(5).

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use serde_json::{Map, Value};

use crate::error::Error;

/// Longest file read, in bytes.
const LONGEST: u64 = 1024 * 1024;

/// Reads the file; `None` when it says nothing.
///
/// # Errors
///
/// [`Error::Io`] when it cannot be read.
pub fn read(path: &Path) -> Result<Option<Value>, Error> {
    let mut text = Vec::new();
    File::open(path)
        .and_then(|file| file.take(LONGEST).read_to_end(&mut text))
        .map_err(|error| {
            Error::Io(format!(
                "cannot read {}, which ipam.resolvConf names: {error}",
                path.display()
            ))
        })?;
    let dns = parse(&String::from_utf8_lossy(&text));
    Ok((dns != Value::Object(Map::new())).then_some(dns))
}

fn parse(text: &str) -> Value {
    let mut dns = Map::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (key, all) = match words.next() {
            // One for each line.
            Some("nameserver") => ("nameservers", words.take(1).collect::<Vec<_>>()),
            Some("search") => ("search", words.collect()),
            Some("options") => ("options", words.collect()),
            Some("domain") => {
                if let Some(domain) = words.next() {
                    dns.insert("domain".to_owned(), domain.into());
                }
                continue;
            }
            _ => continue,
        };
        if all.is_empty() {
            continue;
        }
        let list = dns.entry(key).or_insert_with(|| Value::Array(Vec::new()));
        if let Value::Array(list) = list {
            list.extend(all.into_iter().map(Value::from));
        }
    }
    dns.into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn comments_and_what_is_not_understood_are_skipped() {
        let text = "# nameserver 192.0.2.1\n;search no\nnameserver\nsortlist 10.0.0.0\n\
                    nameserver 10.0.0.10 ignored\n  nameserver fd00::10\ndomain one\ndomain two\n\
                    search a.test b.test\nsearch c.test\noptions ndots:5\toptions:x\n";
        assert_eq!(
            parse(text),
            json!({
                "nameservers": ["10.0.0.10", "fd00::10"], "domain": "two",
                "search": ["a.test", "b.test", "c.test"], "options": ["ndots:5", "options:x"],
            })
        );
        assert_eq!(parse("#nothing"), json!({}));
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named() {
        let error = read(Path::new("/nowhere/resolv.conf")).unwrap_err();
        assert_eq!(error.code(), 5);
        assert!(error.to_string().contains("ipam.resolvConf"), "{error}");
        assert!(
            error.to_string().contains("/nowhere/resolv.conf"),
            "{error}"
        );
    }

    proptest! {
        #[test]
        fn no_file_makes_the_reader_panic(text in "[\\PC\n\t ]{0,200}") {
            let _ = parse(&text);
        }
    }
}
